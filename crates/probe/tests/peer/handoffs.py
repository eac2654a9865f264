"""Object-reconstructors on copies of the same devices: Swift's, then another one, make the same passes.

    python handoffs.py SCRATCH RECONSTRUCTOR SERVER CASES...                           (with swift importable)

RECONSTRUCTOR is the other swift-object-reconstructor, SERVER a swift-object-server or `-` for Swift's own. Of eight nodes six
are the primaries of a partition and two its handoffs. Compared are the files of all nodes with contents and attributes, the
REPLICATE and SSYNC requests that the servers have logged, statsd and the log, but for what is by chance. It ends with status 0 if nothing differs; else
with the first difference.
"""
import argparse
import collections
import contextlib
import os
import re
import shutil
import sys
import time

from reconstructor import BASE, SEGMENT, Fragments
from sides import Receiver, log_line, same
from ssync import post
from swift.common.ring import Ring
from swift.common.storage_policy import POLICIES
from swift.common.utils import Timestamp, hash_path, md5
from swift.obj import diskfile

# Within reclaim_age.
RECENT = int(time.time()) - 5000
OLD = BASE


class Side(Fragments):
    """The nodes of one side. Objects are all in one partition, unless another one is asked for."""
    nodes = 8

    def __init__(self, kind, case):
        self.options = case.options
        self.lines, self.metrics, self.requests = [], collections.Counter(), collections.Counter()
        self.receivers = [Receiver(take) for take in (self.take_line, self.take_metric, self.take_request)]
        own = {'reconstructor': None} if kind == 'python' else {'reconstructor': RECONSTRUCTOR + ' {conf} once'}
        args = argparse.Namespace(server=SERVER, duplicated=False, large=False, **own)
        super().__init__(os.path.join(SCRATCH, '%s-%s' % (case.name, kind)), args)

    def conf_text(self, node, kind):
        log, statsd, servers = (receiver.port for receiver in self.receivers)
        # As an operator has it; two jobs of a partition at the same time would only find it locked.
        text = super().conf_text(node, kind).replace('commit_window = 0\n', '').replace('concurrency = 4\n', '')
        text = text.replace('log_address = /nonexistent\n', 'log_address = /nonexistent\nlog_udp_host = 127.0.0.1\n')
        text = text.replace('use = egg:swift#object\n', 'use = egg:swift#object\nset log_udp_port = %d\nset log_level = DEBUG\n' % servers)
        return text + ('log_level = DEBUG\nlog_udp_port = %d\nlog_statsd_host = 127.0.0.1\nlog_statsd_port = %d\n%s' % (
            log, statsd, self.options))

    def take_line(self, packet):
        self.lines.append(log_line(packet))

    def take_metric(self, packet):
        for metric in packet.split('\n'):
            # Of counts the value too.
            name, value = metric.split(':', 1)
            self.metrics[name if value.split('|')[1] == 'ms' else metric.rstrip()] += 1

    def take_request(self, packet):
        match = re.search(r'"(REPLICATE|SSYNC) ([^"]*)" (\d+) ', log_line(packet)[2])
        if match:
            method, path, status = match.groups()
            self.requests['%s %s %s' % (method, '/'.join(path.split('/')[:3]), status)] += 1

    def rings(self, nodes):
        super().rings(nodes)
        self.ring = Ring(self.root, ring_name=POLICIES[0].ring_name)

    def name(self, label, part=0):
        """A name of an object that is in the partition."""
        for nth in range(1000):
            name = ('AUTH_a', 'c', '%s-%d' % (label, nth))
            if self.part(*name) == part:
                return name
        raise AssertionError(label)

    def homes(self, name):
        part = self.part(*name)
        return [node['id'] for node in self.ring.get_part_nodes(part)] + [node['id'] for node in self.ring.get_more_nodes(part)]

    def here(self, label, place, index=None, timestamp=OLD, body=b'some data', part=0, **kwargs):
        """The fragment of a primary, at one of the places: of primaries 0 to 5, of handoffs 6 and 7."""
        name = self.name(label, part)
        self.put(self.homes(name)[place], name, place if index is None else index, body, timestamp, **kwargs)

    def primaries(self, label, lost=(), **kwargs):
        for place in range(6):
            if place not in lost:
                self.here(label, place, **kwargs)

    def at(self, label, place):
        name = self.name(label)
        return self.df(self.homes(name)[place], name)

    def passes(self, places, part=0):
        """A pass on each of the nodes."""
        homes = self.homes(self.name('any', part))
        for place in places:
            self.replicate(homes[place])
        for receiver in self.receivers:
            receiver.catch_up()
        # The servers go on, and may keep their last lines for a moment.
        before = None
        while before != (before := self.receivers[-1].count):
            time.sleep(.05)

    def tree(self):
        """Files with their contents and attributes, and empty directories."""
        found = {}
        for node in range(self.nodes):
            for folder, dirs, files in os.walk(self.device(node)):
                path = os.path.relpath(folder, self.root)
                if not dirs and not files:
                    found[path] = 'empty'
                for name in files:
                    # When somebody last has hashed which suffix is compared by the requests.
                    if name.startswith(('.lock', 'hashes.')):
                        continue
                    full = os.path.join(folder, name)
                    with open(full, 'rb') as fp:
                        # A .durable file is nothing but its name.
                        metadata = sorted((os.listxattr(full) and diskfile.read_metadata(fp) or {}).items())
                        found[os.path.join(path, name)] = '%s, data %s' % (
                            metadata, md5(fp.read(), usedforsecurity=False).hexdigest())
        # Locks of partitions that were removed, and what a device has from its first use on.
        return {path: value for path, value in found.items() if not (value == 'empty' and path.endswith('/tmp'))}

    def said(self):
        """The lines of the log without what is by chance."""
        def plain(line):
            line = line.replace(self.root, '')
            for node, port in enumerate(self.ports):
                line = line.replace('127.0.0.1:%d' % port, 'node%d' % node)
            line = re.sub(r'\d+\.\d+s|\(\d+\.\d+ minutes\)|\([0-9.]+/sec, \d+[smh] remaining\)', 'time', line)
            line = re.sub(r'Nothing reconstructed for [0-9.e-]+', 'Nothing reconstructed for', line)
            # Tracebacks, and what the exceptions of each are called.
            line = re.sub(r'(EXCEPTION in ssync.Sender).*', r'\1', line, flags=re.DOTALL)
            line = re.sub(r'(last object hash: ).*', r'\1', line)
            return re.sub(r"(Unable to get remote suffix hashes from )'?([^ ':]*).*", r'\1\2', line, flags=re.DOTALL)
        # Who answers first when a fragment is rebuilt, and which of two jobs comes first, is by chance.
        skip = ('SIGTERM', 'Exited', 'Spawned', 'Started child', 'Partition times', 'Starting ', 'Invalid response')
        return sorted('%s %s' % (level, plain(line)) for level, _name, line in self.lines
                      if level != 'DEBUG' and not line.startswith(skip) and ' suffixes checked' not in line)


class Case:
    """`fill` makes the devices of a side, then passes are made on the nodes at these places; `down` are places without a
    server, `unmounted` those without a device."""

    def __init__(self, name, fill, passes, options='', down=(), unmounted=(), part=0):
        self.name, self.fill, self.passes, self.options = name, fill, passes, options
        self.down, self.unmounted, self.part = down, unmounted, part

    def run_side(self, kind):
        side = Side(kind, self)
        self.fill(side)
        homes = side.homes(side.name('any', self.part))
        for place in self.unmounted:
            shutil.rmtree(side.device(homes[place]))
        try:
            side.start([node for place, node in enumerate(homes) if place not in self.down])
            side.passes(self.passes, self.part)
        finally:
            side.stop()
        return side

    def run(self, same_trees=True, same_metrics=True):
        python, ours = (self.run_side(kind) for kind in ('python', 'ours'))
        same(self.name + ': log', python.said(), ours.said())
        if same_trees:
            same(self.name + ': files', python.tree(), ours.tree())
        if same_metrics:
            same(self.name + ': metrics', dict(python.metrics), dict(ours.metrics))
            same(self.name + ': requests', dict(python.requests), dict(ours.requests))
        print('%s: %d files, %d requests, %d metrics, %d lines of log' % (
            self.name, len(ours.tree()), sum(ours.requests.values()), sum(ours.metrics.values()), len(ours.lines)))
        return python, ours


def files_at(side, place, label=None):
    """The names of files on the node at a place, of one object or of all."""
    name = side.name(label or 'any')
    prefix = os.path.relpath(side.device(side.homes(name)[place]), side.root)
    wanted = (hash_path(*name) if label else '') + '/'
    return sorted(os.path.basename(path) for path, value in side.tree().items()
                  if path.startswith(prefix + '/objects/') and value != 'empty' and (wanted in path or not label))


def matrix(side):
    """A handoff, or both, have every kind of thing that there can be of an object, and so do its primaries."""
    large = (bytes(range(251)) * 9000)[:SEGMENT + 4711]
    # Both have the same fragment, or others; one has two; with or without a primary that has it too.
    for label, has in (('same', ((6, 0), (7, 0))), ('different', ((6, 0), (7, 1))), ('two', ((6, 2), (6, 3))),
                       ('two-and-one', ((6, 2), (6, 3), (7, 3)))):
        indexes = {index for _place, index in has}
        for there in (False, True):
            label = label + '-there' * there
            side.primaries(label, () if there else indexes, body=large)
            for place, index in has:
                side.here(label, place, index, body=large)
    # The primary has an older one, a newer one.
    for label, theirs in (('older', OLD - 5), ('newer', OLD + 5)):
        side.primaries(label, timestamp=theirs)
        side.here(label, 6, 4)
    # With and without a commit, here and there, young and old.
    for age in (OLD, RECENT):
        for here in (True, False):
            for there in (True, False, None):
                label = 'commit-%d-%s-%s' % (age == RECENT, here, there)
                side.primaries(label, (1,), timestamp=age)
                if there is not None:
                    side.here(label, 1, timestamp=age, commit=there)
                side.here(label, 6, 1, timestamp=age, commit=here)
    # Two versions of one fragment: the newer one is not durable; and of two.
    side.primaries('versions', (2,))
    side.here('versions', 6, 2)
    side.here('versions', 6, 2, timestamp=RECENT, commit=False)
    side.primaries('versions-of-two', (2, 3))
    side.here('versions-of-two', 6, 2)
    side.here('versions-of-two', 6, 3, timestamp=RECENT, commit=False)
    side.primaries('nobody', timestamp=RECENT, commit=False)
    side.here('nobody', 7, 3, timestamp=RECENT, commit=False)
    # Of an old writer.
    side.primaries('legacy', (5,))
    side.here('legacy', 6, 5)
    datadir = side.at('legacy', 6)._datadir
    (data,) = os.listdir(datadir)
    os.rename(os.path.join(datadir, data), os.path.join(datadir, data.replace('#d', '')))
    with open(os.path.join(datadir, Timestamp(OLD).internal + '.durable'), 'w'):
        pass
    # Meta files with what they are about, with two fragments of it, and alone.
    for label, here, lost in (('meta', (1,), (1,)), ('meta-there', (1,), ()), ('meta-of-two', (1, 4), (1, 4)), ('meta-alone', (), ())):
        side.primaries(label, lost)
        for index in here or (0,):
            side.here(label, 6, index)
        post(side.at(label, 6), RECENT, **{'X-Object-Meta-A': 'b'})
        if not here:
            datadir = side.at(label, 6)._datadir
            for data in os.listdir(datadir):
                if data.endswith('.data'):
                    os.remove(os.path.join(datadir, data))


def tombstones(side):
    """Deleted on the handoff: of what primaries have in an older or newer version, or not at all; and before reclaim_age."""
    side.primaries('deleted')
    side.primaries('deleted-before', timestamp=RECENT + 5)
    for label in ('deleted', 'deleted-before', 'deleted-alone'):
        side.at(label, 6).delete(Timestamp(RECENT))
    side.at('deleted-both', 6).delete(Timestamp(RECENT))
    side.at('deleted-both', 7).delete(Timestamp(RECENT))
    # Reclaimed by the first who looks.
    datadir = side.at('deleted-long-ago', 6)
    datadir.delete(Timestamp(OLD))


def few(side, part=0):
    side.primaries('one', (1,), part=part)
    side.primaries('two', (1, 2), part=part)
    for label, index in (('one', 1), ('two', 1), ('two', 2)):
        side.here(label, 6, index, part=part)


def run_matrix():
    case = Case('matrix', matrix, (6, 7))
    _python, ours = case.run()
    # But for what is too young, and for the older of two versions, of which the newer one went first.
    left = [[name for name in files_at(ours, place) if '#d' in name] for place in (6, 7)]
    assert left == [[Timestamp(OLD).internal + '#2#d.data'] * 2, []], left


def run_matrix_healed():
    """After passes on the primaries too, and on the handoffs again, nothing is left on those but the meta file."""
    case = Case('matrix-healed', matrix, (6, 7, 0, 1, 2, 3, 4, 5, 6, 7), 'commit_window = 0\n')
    _python, ours = case.run(same_metrics=False)
    assert files_at(ours, 6) == [Timestamp(RECENT).internal + '.meta'] and not files_at(ours, 7), files_at(ours, 6)


def run_tombstones():
    """Without any fragments they go to a sample of the primaries."""
    python, ours = Case('tombstones', tombstones, (6, 7)).run(same_trees=False, same_metrics=False)
    for label, sure in (('deleted', False), ('deleted-before', True), ('deleted-alone', False), ('deleted-long-ago', True)):
        left = [[files_at(side, place, label) for place in range(8)] for side in (python, ours)]
        assert not any(left[1][6:]), left[1]
        if not sure:
            left = [sorted([os.path.splitext(name)[1] for name in names] for names in side) for side in left]
        same('tombstones: ' + label, *left)

    def beside(side):
        tombstones(side)
        side.here('data', 6, 3)
        side.here('data', 7, 2)
        side.primaries('data', (2, 3))
    # They go along with the fragments.
    Case('tombstones-beside', beside, (6, 7)).run()


def run_meta_alone():
    """A partition with nothing but a meta file, of which nothing can be offered: Swift removes it, and with it what a client has
    POSTed. Ours keeps it until the data comes by."""
    def fill(side):
        side.here('meta-alone', 6, 0)
        post(side.at('meta-alone', 6), RECENT, **{'X-Object-Meta-A': 'b'})
        datadir = side.at('meta-alone', 6)._datadir
        for data in os.listdir(datadir):
            if data.endswith('.data'):
                os.remove(os.path.join(datadir, data))
    case = Case('meta-alone', fill, (6,))
    python, ours = (case.run_side(kind) for kind in ('python', 'ours'))
    same('meta-alone: metrics', dict(python.metrics), dict(ours.metrics))
    same('meta-alone: requests', {}, dict(ours.requests))
    assert files_at(python, 6) == [] and files_at(ours, 6) == [Timestamp(RECENT).internal + '.meta'], files_at(ours, 6)
    print('meta-alone: kept')


def run_partners():
    """A primary has no server, or no device: what is its stays."""
    for name, kwargs in (('down', {'down': (2,)}), ('unmounted', {'unmounted': (2,)})):
        _python, ours = Case(name, few, (6,), **kwargs).run()
        assert files_at(ours, 6, 'one') == [], files_at(ours, 6, 'one')
        assert files_at(ours, 6, 'two') == [Timestamp(OLD).internal + '#2#d.data'], files_at(ours, 6, 'two')
    # Nobody to rebuild for, or the next one of the ring.
    for name, kwargs in (('sync-down', {'down': (1,)}), ('sync-unmounted', {'unmounted': (1,)})):
        Case(name, few, (0, 2), **kwargs).run()


def run_modes():
    """A node that is a primary of one partition and a handoff of another."""
    def fill(side):
        homes = [side.homes(side.name('any', part)) for part in range(8)]
        node = homes[0][6]
        part = next(part for part in range(8) if node in homes[part][:6])
        place = homes[part].index(node)
        few(side)
        side.primaries('lacking', ((place + 1) % 6,), part=part)
        side.here('lacking', place, (place + 2) % 6, part=part)
    for options in ('handoffs_only = yes\n', 'handoffs_first = yes\n', 'handoffs_first = yes\nhandoffs_only = no\n', ''):
        Case('modes-%d' % len(options), fill, (6, 6), options).run()


def run_limits():
    """So many objects of each job are reverted; which ones is by chance."""
    for limit in (1, 2, 3):
        def fill(side):
            for n in range(3):
                side.primaries('limited%d' % n, (1,))
                side.here('limited%d' % n, 6, 1)
        python, ours = Case('limit-%d' % limit, fill, (6,), 'handoffs_only = yes\nmax_objects_per_revert = %d\n' % limit).run(
            same_trees=False)
        left = [len(files_at(side, 6)) for side in (python, ours)]
        assert left == [3 - limit] * 2, left


def run_rebuild_handoffs():
    """What the neighbours of a device that is gone rebuild on its handoff."""
    for count in ('0', '1', '-1'):
        def fill(side):
            side.primaries('lost')
            side.primaries('large', body=(bytes(range(253)) * 9000)[:SEGMENT + 4711])
        _python, ours = Case('rebuild-handoffs' + count, fill, (5, 1, 3), 'rebuild_handoff_node_count = %s\n' % count,
                             unmounted=(0,)).run()
        rebuilt = [] if count == '0' else [Timestamp(OLD).internal + '#0#d.data'] * 2
        assert files_at(ours, 6) == rebuilt, files_at(ours, 6)


CASES = {name[4:]: value for name, value in list(globals().items()) if name.startswith('run_')}
if __name__ == '__main__':
    SCRATCH, RECONSTRUCTOR, SERVER = sys.argv[1:4]
    SERVER = None if SERVER == '-' else SERVER + ' {conf}'
    os.makedirs(SCRATCH)
    for case_name in sys.argv[4:] or CASES:
        CASES[case_name]()
