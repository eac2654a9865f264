"""Has Swift read the rings which `cargo run -p martlet-ring --example write_rings -- DIR` wrote.

    python rings.py DIR      (with swift importable)

For each DIR/NAME.ring.gz: RingData and Ring load it, RingReader finds every section, and every partition's primaries and
handoffs are those of DIR/NAME.lines. The ring written again by Python has the same decompressed bytes when it is of format 1.
"""
import glob
import gzip
import os
import sys
import tempfile

from swift.common.ring import ring as ring_module
ring_module.validate_configuration = lambda: None
from swift.common.ring import Ring, RingData
from swift.common.ring.io import RingReader


def check(path):
    ring = Ring(path)
    with open(path[:-len('.ring.gz')] + '.lines') as fp:
        for line in fp:
            part, _, rest = line.strip().partition(':')
            primaries, _, handoffs = rest.partition('|')
            for want, nodes in ((primaries, ring.get_part_nodes(int(part))), (handoffs, ring.get_more_nodes(int(part)))):
                got = ','.join(str(node['id']) for node in nodes)
                assert got == want, '%s: partition %s: Swift says %s, we say %s' % (path, part, got, want)
    with gzip.open(path) as fp:
        ours = fp.read()
    with RingReader.open(path) as reader:
        assert reader.raw_size == len(ours) and reader.size == os.path.getsize(path)
        sections = list(reader.index)
        if reader.version == 2:
            assert sections == ['swift/ring/metadata', 'swift/ring/devices', 'swift/ring/assignments'], sections
            for section in sections:
                reader.read_section(section)
    data = RingData.load(path)
    with tempfile.NamedTemporaryFile(suffix='.ring.gz') as fp:
        data.save(fp.name, format_version=data.format_version)
        with gzip.open(fp.name) as again:
            again = again.read()
    if data.format_version == 1:
        assert again == ours, path
    else:
        # The index holds places in the compressed file, which is another compressor's.
        end = ours.index(b'{"swift/ring/') - 8
        assert again[:end] == ours[:end], path


def main(directory):
    paths = sorted(glob.glob(os.path.join(directory, '*.ring.gz')))
    assert paths, 'no rings in %s' % directory
    for path in paths:
        check(path)
    print('Swift read %d rings' % len(paths))


main(sys.argv[1])
