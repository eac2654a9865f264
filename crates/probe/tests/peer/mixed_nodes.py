"""Four nodes, two of Swift and two of Martlet, each an object server and a replicator, heal what random histories have left.

    python mixed_nodes.py METHOD KILLED SEED OBJECT_SERVER REPLICATOR       (with swift importable)

METHOD is ssync or rsync. The nodes 0 and 1 are Swift's, 2 and 3 are run by OBJECT_SERVER and REPLICATOR. Every object has a history of
PUTs, POSTs and DELETEs, each of which only some nodes have got, primaries or not. The server of node KILLED is killed while others
replicate to it, is away while more is written, and returns. Then passes of all nodes must bring every replica, as Swift's DiskFile
sees it, to the state that the history ends with, leave nothing on handoffs, and leave suffix hashes that are right and equal.
"""
import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from swift.common.exceptions import DiskFileDeleted, DiskFileNotExist
from swift.common.ring import Ring, RingBuilder
from swift.common.storage_policy import POLICIES
from swift.common.utils import Timestamp
from swift.obj import diskfile

from ports import free_port

import ssync
from ssync import PART_POWER

NODES = range(4)
METHOD, KILLED, SEED, OBJECT_SERVER, REPLICATOR = sys.argv[1:]
KILLED = int(KILLED)
# What is only prepared need not be on the disk.
os.fsync = os.fdatasync = lambda _fd: None
START = int(time.time()) - 100000


def is_ours(node):
    return node >= 2


class Cluster(ssync.Cluster):
    def __init__(self, root):
        self.rsync_port = free_port()
        self.running = {}
        super().__init__(root, argparse.Namespace(server=None, replicator=None, large=False))
        self.rings(NODES)
        self.primaries = {}
        for policy in POLICIES:
            ring = Ring(root, ring_name=policy.ring_name)
            for part in range(1 << PART_POWER):
                self.primaries[int(policy), part] = {node['id'] for node in ring.get_part_nodes(part)}

    def conf_text(self, node, kind):
        return super().conf_text(node, kind).replace('sync_method = ssync', '''sync_method = %s
rsync_module = rsync://{replication_ip}:%d/object_{replication_port}
handoff_delete = auto''' % (METHOD, self.rsync_port))

    def rings(self, nodes):
        for policy in POLICIES:
            builder = RingBuilder(PART_POWER, 3, 0)
            for node in nodes:
                builder.add_dev({
                    'id': node, 'region': 1, 'zone': node, 'ip': '127.0.0.1', 'port': self.ports[node],
                    'replication_ip': '127.0.0.1', 'replication_port': self.ports[node],
                    'device': 'sd%d' % node, 'weight': 100})
            builder.rebalance(seed=SEED)
            builder.get_ring().save(os.path.join(self.root, policy.ring_name + '.ring.gz'))

    def program(self, node, kind):
        conf = self.conf(node, kind)
        if is_ours(node):
            return [OBJECT_SERVER if kind == 'server' else REPLICATOR, conf]
        return self.command(None, 'swift-object-%s {conf}' % kind, conf)

    def spawn(self, node, kind, *words):
        with open(os.path.join(self.root, '%s%d.log' % (kind, node)), 'ab') as log:
            return subprocess.Popen(self.program(node, kind) + list(words) + ['-v'], stdout=log, stderr=log, start_new_session=True)

    def serve(self, node):
        self.running[node] = self.spawn(node, 'server')
        wait('server %d listens' % node, lambda: listens(self.ports[node]))

    def kill(self, node):
        """Without a chance to do anything about it."""
        server = self.running.pop(node)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    def rsyncd(self):
        conf = os.path.join(self.root, 'rsyncd.conf')
        with open(conf, 'w') as fp:
            fp.write('address = 127.0.0.1\nport = %d\nuse chroot = no\nlog file = %s/rsyncd.txt\nuid = root\ngid = root\n' % (
                self.rsync_port, self.root))
            for node in NODES:
                fp.write('[object_%d]\npath = %s\nread only = no\n' % (self.ports[node], os.path.dirname(self.device(node))))
        self.running['rsyncd'] = subprocess.Popen(['rsync', '--daemon', '--no-detach', '--config', conf], start_new_session=True)
        wait('rsyncd listens', lambda: listens(self.rsync_port))

    def stop(self):
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.running.values():
            process.wait()
        self.running = {}

    def replicate_all(self, nodes):
        for node in nodes:
            assert self.spawn(node, 'replicator', 'once').wait(120) == 0, node


def listens(port):
    try:
        socket.create_connection(('127.0.0.1', port)).close()
        return True
    except OSError:
        return False


def wait(what, done):
    deadline = time.time() + 60
    while not done():
        assert time.time() < deadline, what
        time.sleep(.01)


class Object:
    """One object, the state that its history ends with, and where it lives."""

    def __init__(self, cluster, policy, name):
        self.cluster, self.policy, self.name = cluster, policy, ('AUTH_a', 'c', name)
        self.part = cluster.part(*self.name)
        self.primaries = cluster.primaries[int(policy), self.part]
        self.clock = START
        self.deleted = self.data = self.headers = None

    def df(self, node):
        return self.cluster.diskfile(node, self.policy, self.name)

    def happens(self, rng, what, nodes):
        """To some of the nodes, of which the handoff takes a primary's place."""
        self.clock += rng.choice((.00001, 1, 1000))
        at = Timestamp(self.clock, offset=rng.choice((0, 0, 7)))
        got = rng.sample(nodes, rng.randint(1, min(3, len(nodes))))
        if what == 'post':
            # A node that has no object refuses it.
            got = [node for node in got if self.has_data(node)]
            if not got:
                return
            self.headers = {'X-Object-Meta-Posted': at.internal}
            # Not with an offset: a name of both timestamps has no place for that, so Swift's hashes of it differ for ever.
            if not at.offset and rng.random() < .3:
                self.headers.update({'Content-Type': 'image/png', 'Content-Type-Timestamp': at.internal})
        elif what == 'put':
            self.data, self.headers = rng.randbytes(rng.choice((0, 10, 100000))), None
            self.deleted, self.put_at = None, at
        else:
            self.deleted, self.data = at, None
        for node in got:
            if what == 'post':
                ssync.post(self.df(node), at.internal, **self.headers)
            elif what == 'put':
                ssync.put(self.df(node), self.data, at.internal, **{'X-Object-Meta-Put': at.internal})
            else:
                self.df(node).delete(at)

    def has_data(self, node):
        """The data that the history has come to."""
        if self.data is None:
            return False
        try:
            with self.df(node).open() as df:
                return df.data_timestamp == self.put_at
        except (DiskFileNotExist, DiskFileDeleted):
            return False

    def seen(self, node):
        """What Swift's DiskFile sees."""
        try:
            with self.df(node).open() as df:
                data = b''.join(df.reader())
                return data, df.data_timestamp.internal, df.timestamp.internal, df.content_type, sorted(df.get_metadata().items())
        except DiskFileDeleted as err:
            return 'deleted', err.timestamp.internal
        except DiskFileNotExist:
            return None

    def check(self):
        states = {node: self.seen(node) for node in NODES}
        first = states[min(self.primaries)]
        for node in NODES:
            wanted = first if node in self.primaries else None
            assert states[node] == wanted, '%s of %r at node %d (primaries %r)\n%r\n%r' % (
                self.policy.name, self.name, node, self.primaries, states[node], wanted)
        if self.deleted:
            assert first == ('deleted', self.deleted.internal), (self.name, first, self.deleted)
            return
        data, put_at, _at, content_type, found = first
        assert (data, put_at) == (self.data, self.put_at.internal), (self.name, len(data), put_at, self.put_at)
        found = dict(found)
        for key, value in (self.headers or {'X-Object-Meta-Put': self.put_at.internal}).items():
            if key != 'Content-Type-Timestamp':
                assert found.get(key) == value, (self.name, key, value, found)


def settle(objects):
    for obj in objects:
        obj.check()


def partition_files(cluster, policy, part):
    """For who looks for what differs."""
    for node in NODES:
        for root, _dirs, files in os.walk(os.path.join(cluster.device(node), diskfile.get_data_dir(policy), str(part))):
            yield '%s: %s' % (os.path.relpath(root, cluster.root), ' '.join(sorted(files)))


def check_disks(cluster):
    """Handoffs are empty, the hashes that are stored are those of the files, and nothing is left over."""
    for policy in POLICIES:
        for part in range(1 << PART_POWER):
            found = {}
            for node in NODES:
                path = os.path.join(cluster.device(node), diskfile.get_data_dir(policy), str(part))
                if node not in cluster.primaries[int(policy), part]:
                    assert not os.path.exists(path), path
                    continue
                manager = cluster.router(node)[policy]
                stored = diskfile.consolidate_hashes(path)
                suffixes = [name for name in os.listdir(path) if len(name) == 3 and os.listdir(os.path.join(path, name))]
                found[node] = manager.get_hashes('sd%d' % node, str(part), suffixes, policy)
                said = {suffix: value for suffix, value in stored.items() if suffix in found[node] and value is not None}
                wrong = {suffix: value for suffix, value in said.items() if found[node][suffix] != value}
                assert not wrong, (path, wrong, found[node])
            assert len({tuple(sorted(hashes.items())) for hashes in found.values()}) == 1, '%s/%d: %r\n%s' % (
                policy.name, part, found, '\n'.join(partition_files(cluster, policy, part)))
    for node in NODES:
        for root, _dirs, files in os.walk(cluster.device(node)):
            kind = os.path.relpath(root, cluster.device(node)).split(os.sep)[0]
            assert kind != 'quarantined', root
            if node == KILLED:
                # Of what it was about to write.
                files = [name for name in files if not name.startswith(('tmp', '.hashes.'))]
            assert kind != 'tmp' and not kind.startswith('tmp-') or not files, (root, files)
            odd = [name for name in files if kind.startswith('objects') and not (
                name.endswith(('.data', '.meta', '.ts')) and not name.startswith('.') or name.startswith(('hashes.', '.lock')))]
            assert not odd, (root, odd)


def names(cluster, node):
    return {name for _root, _dirs, files in os.walk(cluster.device(node)) for name in files if name.endswith(('.data', '.meta', '.ts'))}


def main():
    rng = random.Random(SEED)
    root = tempfile.mkdtemp(prefix='mixed-')
    cluster = Cluster(os.path.join(root, 'cluster'))
    try:
        objects = [Object(cluster, policy, 'o%d' % n) for policy in POLICIES for n in range(40)]
        for obj in objects:
            obj.happens(rng, 'put', list(NODES))
            for _ in range(rng.randint(0, 4)):
                obj.happens(rng, rng.choice(('put', 'post', 'post', 'delete')), list(NODES))
                if obj.deleted:
                    break
        if METHOD == 'rsync':
            cluster.rsyncd()
        for node in NODES:
            cluster.serve(node)

        # The killed one dies while it is sent to.
        before = names(cluster, KILLED)
        sender = (KILLED + 1) % 4
        with cluster.spawn(sender, 'replicator', 'once') as replicator:
            wait('something arrives', lambda: names(cluster, KILLED) != before or replicator.poll() is not None)
            cluster.kill(KILLED)
            assert names(cluster, KILLED) != before
            assert replicator.wait(120) == 0
        # Life goes on without it.
        others = [node for node in NODES if node != KILLED]
        cluster.replicate_all(others)
        for obj in objects:
            if rng.random() < .5:
                obj.happens(rng, rng.choice(('put', 'post', 'delete')), others)
        for name in os.listdir(cluster.root):
            if name.endswith('.log'):
                os.truncate(os.path.join(cluster.root, name), 0)

        cluster.serve(KILLED)
        for passes in range(1, 5):
            cluster.replicate_all(NODES)
            try:
                settle(objects)
                check_disks(cluster)
                break
            except AssertionError:
                if passes == 4:
                    raise
        # Nothing more to do: nobody sends a thing.
        state = [ssync.snapshot(cluster, node) for node in NODES]
        cluster.replicate_all(NODES)
        assert [ssync.snapshot(cluster, node) for node in NODES] == state
        problems = ssync.complaints(cluster)
        assert not problems, '\n'.join(problems)
        alive = sum(obj.deleted is None for obj in objects)
        print('%s, node %d killed: %d objects, %d of them deleted, alike after %d rounds' % (
            METHOD, KILLED, len(objects), len(objects) - alive, passes))
    finally:
        cluster.stop()
        shutil.rmtree(root)


if __name__ == '__main__':
    main()
