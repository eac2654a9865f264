"""The object-reconstructor and SSYNC of fragments between Martlet and Swift, in both roles.

    python reconstructor.py --reconstructor 'CMD {conf}' [--server 'CMD {conf}'] [--duplicated] [--keep]
                                                                                        (with swift importable)

Without options both ends are Swift's: the check of the check. Seven nodes of one device each hold objects of an EC policy
4+2, or twice 2+1, written by Swift's DiskFile, each damaged in a way of its own: fragments lost, misplaced, without their commit, of old
writers; meta files and tombstones that only some have; old versions; a device wiped. After a few passes on every node each
primary must hold exactly its fragment, byte for byte, and nobody anything else.
"""
import argparse
import os
import shutil
import tempfile
import time

from ssync import BASE, Cluster, complaints, post
from swift.common.ring import RingBuilder
from swift.common.storage_policy import POLICIES
from swift.common.utils import Timestamp, md5
from swift.obj import diskfile

PART_POWER = 3
SEGMENT = 1 << 20
PASSES = 3
# A device that loses everything.
WIPED = 3


class Fragments(Cluster):
    nodes = 7
    daemon = 'reconstructor'

    def __init__(self, root, args):
        self.code, self.copies = ((2, 1), 2) if args.duplicated else ((4, 2), 1)
        self.policies = (
            '[storage-policy:0]\nname = ec\ndefault = yes\npolicy_type = erasure_coding\nec_type = isa_l_rs_vand\n'
            'ec_num_data_fragments = %d\nec_num_parity_fragments = %d\nec_duplication_factor = %d\n' % (*self.code, self.copies))
        super().__init__(root, args)

    def conf_text(self, node, kind):
        text = super().conf_text(node, kind).replace('[object-replicator]\nsync_method = ssync\n', '[object-reconstructor]\n')
        return text.replace('workers = 0\n', 'workers = 0\ncommit_window = 0\n')

    def rings(self, nodes):
        builder = RingBuilder(PART_POWER, 6, 0)
        for node in range(self.nodes):
            builder.add_dev({
                'id': node, 'region': 1, 'zone': node, 'ip': '127.0.0.1', 'port': self.ports[node],
                'replication_ip': '127.0.0.1', 'replication_port': self.ports[node], 'device': 'sd%d' % node, 'weight': 100})
        builder.rebalance(seed='x')
        self.ring = builder.get_ring()
        self.ring.save(os.path.join(self.root, POLICIES[0].ring_name + '.ring.gz'))

    def homes(self, name):
        """The nodes of a partition: the primaries in the order of their fragments, then the handoff."""
        part = self.part(*name)
        ids = [row[part] for row in self.ring._replica2part2dev_id]
        return ids + [node for node in range(self.nodes) if node not in ids]

    def df(self, node, name, **kwargs):
        policy = POLICIES[0]
        return self.router(node)[policy].get_diskfile('sd%d' % node, self.part(*name), *name, policy=policy, **kwargs)

    def archives(self, body):
        segments = [body[at:at + SEGMENT] for at in range(0, len(body), SEGMENT)]
        driver = POLICIES[0].pyeclib_driver
        return [b''.join(parts) for parts in zip(*map(driver.encode, segments))] or [b''] * sum(self.code)

    def put(self, node, name, place, body, timestamp, commit=True):
        """The fragment of a primary of this place in the ring."""
        index = place % sum(self.code)
        archive = self.archives(body)[index]
        with self.df(node, name).create() as writer:
            writer.write(archive)
            writer.put({'X-Timestamp': Timestamp(timestamp).internal, 'Content-Type': 'a/b', 'ETag': md5(
                archive, usedforsecurity=False).hexdigest(), 'Content-Length': str(len(archive)),
                'X-Object-Sysmeta-Ec-Frag-Index': str(index), 'X-Object-Sysmeta-Ec-Etag': md5(
                    body, usedforsecurity=False).hexdigest(), 'X-Object-Sysmeta-Ec-Content-Length': str(len(body)),
                'X-Object-Sysmeta-Ec-Scheme': 'isa_l_rs_vand %d+%d' % self.code, 'X-Object-Sysmeta-Ec-Segment-Size': str(SEGMENT),
                'X-Object-Meta-Caf\u00c3\u00a9': 'cr\u00c3\u00a8me'})
            if commit:
                writer.commit(Timestamp(timestamp))

    def snapshot(self):
        found = {}
        for node in range(self.nodes):
            base = os.path.join(self.device(node), 'objects')
            for root, _dirs, files in os.walk(base):
                durable = [name[:-len('.durable')] for name in files if name.endswith('.durable')]
                for name in files:
                    if name.startswith(('hashes.', '.lock')) or name.endswith('.durable'):
                        continue
                    path = os.path.join(root, name)
                    if name.split('#')[0] in durable:
                        # The same state in the words of an old writer.
                        name = name.replace('.data', '#d.data')
                    with open(path, 'rb') as fp:
                        found[node, os.path.basename(root), name] = (diskfile.read_metadata(fp), fp.read())
        return found


def populate(cluster):
    """Stores objects as they should be, remembers that, and damages them."""
    damages = []
    primaries = range(6)
    recent = int(time.time()) - 3600

    def stored(label, body=b'some data', timestamp=BASE, commit=True):
        name = ('AUTH_a', 'c', label)
        homes = cluster.homes(name)
        for index in primaries:
            cluster.put(homes[index], name, index, body, timestamp, commit)
        return name, homes

    def lose(node, name):
        damages.append(lambda: shutil.rmtree(cluster.df(node, name)._datadir))

    def rename(node, name, change):
        def damage():
            datadir = cluster.df(node, name)._datadir
            for old in os.listdir(datadir):
                os.rename(os.path.join(datadir, old), os.path.join(datadir, change(old)))
        damages.append(damage)

    def uncommit(old):
        return old.replace('#d', '')

    for size in (0, 1, 1000, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 12345):
        body = (bytes(range(251)) * (size // 251 + 1))[:size]
        name, homes = stored('size%d' % size, body)
        lose(homes[size % 6], name)
    for index in primaries:
        name, homes = stored('lost%d' % index)
        lose(homes[index], name)
        name, homes = stored('two-lost%d' % index)
        # One of the two is on the device that is wiped, if that has any.
        lose(homes[index], name)
        if WIPED not in homes[:6]:
            lose(homes[(index + 2) % 6], name)
        # Young enough not to be reclaimed.
        name, homes = stored('uncommitted%d' % index, timestamp=recent)
        rename(homes[index], name, uncommit)
        # On the handoff instead of where it belongs.
        name, homes = stored('misplaced%d' % index)
        lose(homes[index], name)
        damages.append(lambda node=homes[6], name=name, index=index: cluster.put(node, name, index, b'some data', BASE))
        # A primary has its neighbour's too.
        name, homes = stored('two-here%d' % index)
        lose(homes[(index + 1) % 6], name)
        damages.append(lambda node=homes[index], name=name, index=(index + 1) % 6: cluster.put(
            node, name, index, b'some data', BASE))
    # Of a fragment that is stored twice, one or both are lost; or one of each, wherever it is.
    for index in range(3 if cluster.copies == 2 else 0):
        name, homes = stored('both-lost%d' % index)
        lose(homes[index], name)
        lose(homes[index + 3], name)
        name, homes = stored('both-misplaced%d' % index)
        lose(homes[index], name)
        lose(homes[index + 3], name)
        damages.append(lambda node=homes[6], name=name, index=index: cluster.put(node, name, index, b'some data', BASE))
        name, homes = stored('one-misplaced%d' % index)
        lose(homes[index], name)
        damages.append(lambda node=homes[6], name=name, index=index: cluster.put(node, name, index, b'some data', BASE))
        name, homes = stored('in-each-others-place%d' % index)
        lose(homes[index], name)
        lose(homes[(index + 1) % 3], name)
        damages.append(lambda node=homes[index], name=name, index=(index + 1) % 3: cluster.put(
            node, name, index, b'some data', BASE))
    for label, places in (('one-copy', (0, 1, 2)), ('other-copy', (3, 4, 5)), ('of-both', (0, 4, 2)))[:3 * (cluster.copies - 1)]:
        name, homes = stored(label, (bytes(range(253)) * 9000)[:SEGMENT + 4711])
        for place in places:
            lose(homes[place], name)
    # Of an old writer: durable by a file of its own.
    name, homes = stored('legacy')
    for index in (0, 1):
        rename(homes[index], name, uncommit)
        damages.append(lambda node=homes[index], name=name: open(os.path.join(
            cluster.df(node, name)._datadir, Timestamp(BASE).internal + '.durable'), 'w').close())
    lose(homes[2], name)
    # Nobody has committed; the handoff has one of the fragments.
    name, homes = stored('nobody', timestamp=recent, commit=False)
    index = next(index for index in primaries if homes[index] != WIPED)
    damages.append(lambda node=homes[6], name=name, index=index: cluster.put(
        node, name, index, b'some data', recent, commit=False))
    lose(homes[index], name)
    # POSTed where it is known, and on one that has no data.
    name, homes = stored('posted')
    for index in primaries:
        post(cluster.df(homes[index], name), BASE + 5, **{'X-Object-Meta-A': 'b'})
    damages.append(lambda node=homes[0], name=name: os.remove(os.path.join(
        cluster.df(node, name)._datadir, Timestamp(BASE + 5).internal + '.meta')))
    lose(homes[4], name)
    # An older version on some.
    name, homes = stored('old', b'new data', BASE + 7)
    lose(homes[1], name)
    damages.append(lambda node=homes[1], name=name: cluster.put(node, name, 1, b'old', BASE + 3))
    # A newer one that has come to too few to be durable stays beside.
    name, homes = stored('half')
    whole = next(index for index in primaries if homes[index] != WIPED)
    cluster.put(homes[whole], name, whole, b'newer', recent, commit=False)
    now = time.time()
    # Deleted, which some have not heard.
    for label in ('deleted', 'handoff-deleted'):
        name, homes = stored(label)
        for index in primaries:
            cluster.df(homes[index], name).delete(Timestamp(now))
        for index in (0, 3):
            lose(homes[index], name)
            damages.append(lambda node=homes[index], name=name, index=index: cluster.put(node, name, index, b'x', BASE))
        if label == 'handoff-deleted':
            for index in (1, 2, 4, 5):
                lose(homes[index], name)
            damages.append(lambda node=homes[6], name=name: cluster.df(node, name).delete(Timestamp(now)))
            # Only a sample hears of it, who tell their partners.
    # A device without anything.
    return damages, lambda: shutil.rmtree(os.path.join(cluster.device(WIPED), 'objects'))


def compare(want, got):
    wrong = []
    for key in sorted(set(want) | set(got)):
        one, two = want.get(key), got.get(key)
        if one is None or two is None:
            wrong.append('%s %s' % (key, 'is missing' if two is None else 'should not be there'))
        elif one != two:
            diff = {k: (one[0].get(k), two[0].get(k)) for k in set(one[0]) | set(two[0]) if one[0].get(k) != two[0].get(k)}
            wrong.append('%s: metadata %r, data %s' % (key, diff, 'equal' if one[1] == two[1] else 'differs'))
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--reconstructor', help="a reconstructor's command; {conf} stands for its configuration")
    parser.add_argument('--server', help="an object server's command")
    parser.add_argument('--duplicated', action='store_true', help='a policy of twice 2+1')
    parser.add_argument('--keep', action='store_true', help='keep the folder')
    parser.set_defaults(large=False)
    args = parser.parse_args()
    root = tempfile.mkdtemp(prefix='reconstructor-')
    cluster = Fragments(os.path.join(root, 'cluster'), args)
    try:
        damages, wipe = populate(cluster)
        # What is not durable is not rebuilt.
        want = {key: value for key, value in cluster.snapshot().items()
                if key[0] != WIPED or '#' not in key[2] or '#d' in key[2]}
        for damage in damages:
            damage()
        wipe()
        cluster.start(range(cluster.nodes))
        seconds = []
        for _ in range(PASSES):
            seconds.append(sum(cluster.replicate(node) for node in range(cluster.nodes)))
            wrong = compare(want, cluster.snapshot())
            if not wrong:
                break
        problems = complaints(cluster)
        assert not wrong, '\n'.join(wrong + problems)
        assert not problems, '\n'.join(problems)
        # What all have alike is hashed alike: a pass with nothing to do sends nothing.
        again = cluster.replicate(0)
        assert compare(want, cluster.snapshot()) == []
        print('%d files as they should be after %d passes of all nodes (%s s, then %.2f s with nothing to do)' % (
            len(want), len(seconds), ', '.join('%.2f' % took for took in seconds), again))
    finally:
        cluster.stop()
        if args.keep:
            print(cluster.root)
        else:
            shutil.rmtree(root)


if __name__ == '__main__':
    main()
