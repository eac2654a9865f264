"""SSYNC between Martlet and Swift, in both roles.

    python ssync.py --replicator 'CMD {conf}' [--server 'CMD {conf}'] [--keep] [--large]      (with swift importable)

Without options both ends are Swift's: the check of the check. A case has three nodes of one device each. The first gets the
source objects, by Swift's DiskFile; the others get nothing, or older states of some of them. One pass of the replicator on the
first node must make all three alike: file names, metadata, data, suffix hashes. Then the ring is changed so that the first
node is a handoff of everything, and one more pass must leave nothing there.

With --large the only object has 5 GiB and a byte, and the first node gives it to the only primary.
"""
import argparse
import os
import random
import shutil
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

from swift.common import utils
from swift.common.ring import RingBuilder
from swift.common.storage_policy import POLICIES, reload_storage_policies
from swift.common.utils import Timestamp, hash_path
from swift.obj import diskfile

from ports import free_ports

PART_POWER = 3
BASE = 1700000000
ODD_NAMES = ('/', '//', '/leading', 'trailing/', 'a//b', '.', '..', '../../etc', ' ', ' spaces ', 'new\nline', '\r\n', 'tab\t',
             '\x01\x7f', '%', '%2F', 'a%20b', '?', '#', 'a:b', 'x' * 1000, '\U0001f600', 'e\u0301', '\u00e9')
RECLAIMED = 'reclaimed'
LARGE = 5 * (1 << 30) + 1
# Of so many zero bytes, by Python's hashlib.
LARGE_ETAG = '554157458fc3c9573486e4add4a8fd50'


class Cluster(object):
    nodes = 4
    policies = '[storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n'
    daemon = 'replicator'

    def __init__(self, root, args):
        self.root = root
        self.args = args
        self.servers = []
        os.makedirs(root)
        with open(os.path.join(root, 'swift.conf'), 'w') as fp:
            fp.write('[swift-hash]\nswift_hash_path_suffix = changeme\n' + self.policies)
        utils.SWIFT_CONF_FILE = os.path.join(root, 'swift.conf')
        utils.HASH_PATH_SUFFIX = b'changeme'
        utils.HASH_PATH_PREFIX = b''
        reload_storage_policies()
        self.ports = free_ports(self.nodes)
        for node in range(self.nodes):
            os.makedirs(self.device(node))
            for kind in ('server', self.daemon):
                with open(self.conf(node, kind), 'w') as fp:
                    fp.write(self.conf_text(node, kind))
        self.rings([0, 1, 2])

    def device(self, node):
        return os.path.join(self.root, 'node%d' % node, 'sd%d' % node)

    def conf(self, node, kind):
        return os.path.join(self.root, '%s%d.conf' % (kind, node))

    def conf_text(self, node, kind):
        # Not DEBUG: with -v, Swift's object server stops for ever once a hashing thread and a request log at the same time.
        return '''[DEFAULT]
devices = %(root)s/node%(node)d
mount_check = false
bind_ip = 127.0.0.1
bind_port = %(port)d
swift_dir = %(root)s
log_name = %(kind)s%(node)d
log_level = INFO
log_address = /nonexistent
recon_cache_path = %(root)s/node%(node)d
fallocate_reserve = 0
workers = 0
user = %(user)s
[pipeline:main]
pipeline = object-server
[app:object-server]
use = egg:swift#object
replication_concurrency_per_device = 2
[object-replicator]
sync_method = ssync
concurrency = 4
conn_timeout = 20
node_timeout = %(node_timeout)d
http_timeout = %(http_timeout)d
''' % {'root': self.root, 'node': node, 'port': self.ports[node], 'kind': kind,
            'user': os.environ.get('USER') or 'root',
            # To write back 5 GiB takes a disk its time, and a busy machine to do anything.
            'node_timeout': 300 if self.args.large else 60, 'http_timeout': 600 if self.args.large else 120}

    def rings(self, nodes):
        for policy in POLICIES:
            builder = RingBuilder(PART_POWER, len(nodes), 0)
            for node in range(4):
                builder.add_dev({
                    'id': node, 'region': 1, 'zone': node, 'ip': '127.0.0.1', 'port': self.ports[node],
                    'replication_ip': '127.0.0.1', 'replication_port': self.ports[node],
                    'device': 'sd%d' % node, 'weight': 100 if node in nodes else 0})
            builder.rebalance(seed='x')
            builder.get_ring().save(os.path.join(self.root, policy.ring_name + '.ring.gz'))

    def command(self, template, default, conf):
        if template:
            return shlex.split(template.format(conf=conf))
        runner = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'run_swift.py')
        return [sys.executable, runner, self.root] + default.format(conf=conf).split()

    def start(self, nodes):
        for node in nodes:
            command = self.command(self.args.server, 'swift-object-server {conf} -v',
                                   self.conf(node, 'server'))
            log = open(os.path.join(self.root, 'server%d.log' % node), 'ab')
            self.servers.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        deadline = time.time() + 120
        for node in nodes:
            while True:
                try:
                    socket.create_connection(('127.0.0.1', self.ports[node])).close()
                    break
                except OSError:
                    assert time.time() < deadline, 'server %d does not start' % node
                    time.sleep(0.05)

    def stop(self):
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
        for server in self.servers:
            server.wait()
        self.servers = []

    def replicate(self, node):
        command = self.command(getattr(self.args, self.daemon),
                               'swift-object-%s {conf} once -v' % self.daemon,
                               self.conf(node, self.daemon))
        with open(os.path.join(self.root, '%s%d.log' % (self.daemon, node)), 'ab') as log:
            started = time.time()
            subprocess.run(command, stdout=log, stderr=log, check=True, timeout=1200 if self.args.large else 300)
            return time.time() - started

    def router(self, node):
        logger = utils.get_logger({'log_address': '/nonexistent'}, 'ssync-check')
        return diskfile.DiskFileRouter({
            'devices': os.path.dirname(self.device(node)), 'mount_check': 'false', 'fallocate_reserve': '0'}, logger)

    def part(self, account, container, obj):
        return int(hash_path(account, container, obj)[:8], 16) >> (32 - PART_POWER)

    def diskfile(self, node, policy, name):
        return self.router(node)[policy].get_diskfile(
            'sd%d' % node, self.part(*name), *name, policy=policy)


def metadata(headers, timestamp):
    return dict({'X-Timestamp': Timestamp(timestamp).internal}, **headers)


def put(df, data, timestamp, **headers):
    with df.create() as writer:
        writer.write(data)
        upload_size, etag = writer.chunks_finished()
        writer.put(metadata(dict({'ETag': etag, 'Content-Length': str(upload_size),
                                  'Content-Type': 'text/plain'}, **headers), timestamp))
        writer.commit(Timestamp(timestamp))


def post(df, timestamp, **headers):
    df.write_metadata(metadata(headers, timestamp))


def populate(cluster):
    rng = random.Random(7)
    user = {'X-Object-Meta-Caf\u00c3\u00a9': 'cr\u00c3\u00a8me br\u00c3\u00bbl\u00c3\u00a9e', 'X-Object-Meta-Empty': '',
            'X-Object-Sysmeta-Thing': 'a:b, c', 'Content-Disposition': 'attachment; filename="x y"'}
    for policy in POLICIES:
        def df(node, name):
            return cluster.diskfile(node, policy, name)

        def each(*nodes):
            return lambda name: [df(node, name) for node in nodes]

        for n in range(40):
            put(df(0, ('AUTH_a', 'c', 'small%d' % n)), b'x' * n, BASE + n, **user)
        for n, size in enumerate((0, 65535, 65536, 65537, 1 << 20, 5 * 1000 * 1000 + 1)):
            put(df(0, ('AUTH_a', 'c', 'size%d' % n)), rng.randbytes(size), BASE + 100.12345)
        odd = ('AUTH_a', 'c\u00f6ntainer', 'd\u00efr/\u2603 %41?#&=+;"\'')
        put(df(0, odd), b'snowman', '%d.00001_00000000000000ff' % BASE, **user)
        for name in ODD_NAMES:
            put(df(0, ('AUTH_a', 'c', name)), name.encode(), BASE + 3)
        # Offsets of each of the timestamps; data and metadata differ in nothing else.
        put(df(0, ('AUTH_a', 'c', 'offsets')), b'offsets', Timestamp(BASE + 20, offset=1).internal)
        post(df(0, ('AUTH_a', 'c', 'offsets')), Timestamp(BASE + 20, offset=5).internal, **{'X-Object-Meta-A': 'b'})
        for d in each(0, 1, 2)(('AUTH_a', 'c', 'offset-posted')):
            put(d, b'offset-posted', Timestamp(BASE + 20, offset=1).internal)
        post(df(0, ('AUTH_a', 'c', 'offset-posted')), Timestamp(BASE + 22, offset=3).internal, **{
            'X-Object-Meta-A': 'b', 'Content-Type': 'image/png',
            'Content-Type-Timestamp': Timestamp(BASE + 21, offset=2).internal})
        # Both have it, older data there.
        for d in each(1, 2)(('AUTH_a', 'c', 'size3')):
            put(d, b'old', BASE + 5)
        # Both have the data; the meta file is new.
        for d in each(0, 1, 2)(('AUTH_a', 'c', 'posted')):
            put(d, b'posted', BASE + 7, **user)
        post(df(0, ('AUTH_a', 'c', 'posted')), BASE + 8, **{'X-Object-Meta-New': 'yes'})
        # Nobody has data nor meta file; the Content-Type was POSTed too.
        put(df(0, ('AUTH_a', 'c', 'both')), b'both', BASE + 9)
        post(df(0, ('AUTH_a', 'c', 'both')), BASE + 10, **{
            'X-Object-Meta-A': 'b', 'Content-Type': 'image/png', 'Content-Type-Timestamp': Timestamp(BASE + 10).internal})
        # Two meta files: newer metadata, and newer content-type before it.
        name = ('AUTH_a', 'c', 'ctype')
        put(df(0, name), b'ctype', BASE + 9)
        post(df(0, name), BASE + 10, **{
            'X-Object-Meta-A': 'b', 'Content-Type': 'image/png', 'Content-Type-Timestamp': Timestamp(BASE + 10).internal})
        post(df(0, name), BASE + 11, **{'X-Object-Meta-A': 'c'})
        # Deleted here, there not; deleted everywhere; deleted here and never there.
        for d in each(0, 1, 2)(('AUTH_a', 'c', 'deleted')):
            put(d, b'deleted', BASE + 7)
        now = time.time()
        df(0, ('AUTH_a', 'c', 'deleted')).delete(Timestamp(now))
        df(0, ('AUTH_a', 'c', 'never')).delete(Timestamp(now, offset=3))
        # Too old to be told of.
        df(0, ('AUTH_a', 'c', RECLAIMED)).delete(Timestamp(now - 8 * 86400))
        # Expired, with and without time left.
        for name, at in (('expired', now - 100), ('expires', now + 10000)):
            put(df(0, ('AUTH_a', 'c', name)), b'expiry', BASE, **{'X-Delete-At': str(int(at))})
        # Newer there than here: stays.
        put(df(0, ('AUTH_a', 'c', 'newer')), b'here', BASE + 1)
        for node in (1, 2):
            put(df(node, ('AUTH_a', 'c', 'newer')), b'there', BASE + 2)


def snapshot(cluster, node):
    """Every object file: path below the device -> (metadata, data)."""
    found = {}
    for policy in POLICIES:
        base = os.path.join(cluster.device(node), diskfile.get_data_dir(policy))
        for root, _dirs, files in os.walk(base):
            for name in files:
                # And what a killed server was about to make hashes.pkl of.
                if name.startswith(('hashes.', '.lock', '.hashes.', 'tmp')):
                    continue
                path = os.path.join(root, name)
                with open(path, 'rb') as fp:
                    found[os.path.relpath(path, cluster.device(node))] = (diskfile.read_metadata(fp), fp.read())
    return merge_meta(found)


def merge_meta(found):
    """Two meta files of one object, the newer one and the one with the newer content-type, travel as one."""
    metas = {}
    for path in sorted(found):
        if path.endswith('.meta'):
            metas.setdefault(os.path.dirname(path), []).append(path)
    for directory, paths in metas.items():
        if len(paths) == 2:
            older, newer = (found.pop(path)[0] for path in paths)
            newer.update({k: older[k] for k in ('Content-Type', 'Content-Type-Timestamp')})
            name = utils.encode_timestamps(Timestamp(newer['X-Timestamp']), Timestamp(older['Content-Type-Timestamp']),
                                           explicit=True)
            found[os.path.join(directory, name + '.meta')] = (newer, b'')
    return found


def hashes(cluster, node):
    return {(int(policy), part): cluster.router(node)[policy].get_hashes('sd%d' % node, str(part), [], policy)
            for policy in POLICIES for part in range(1 << PART_POWER)}


def compare(what, want, got):
    for path in sorted(set(want) | set(got)):
        if want.get(path) == got.get(path):
            continue
        w, g = want.get(path), got.get(path)
        if w and g:
            diff = {k: (w[0].get(k), g[0].get(k)) for k in set(w[0]) | set(g[0]) if w[0].get(k) != g[0].get(k)}
            problem = 'metadata %r, data %s' % (diff, 'equal' if w[1] == g[1] else 'differs')
        else:
            problem = 'is missing' if w else 'should not be there'
        sys.exit('%s: %s: %s' % (what, path, problem))


def complaints(cluster):
    words = ('Traceback', 'EXCEPTION', 'ERROR', 'panicked', 'Unexpected', 'uarantin')
    found = []
    for name in sorted(os.listdir(cluster.root)):
        if name.endswith('.log'):
            with open(os.path.join(cluster.root, name), errors='replace') as fp:
                found += ['%s: %s' % (name, line.rstrip()) for line in fp if any(word in line for word in words)]
    return found


def large(cluster):
    """A sparse object goes from a handoff to its primary, where it has its bytes."""
    cluster.rings([1])
    name = ('AUTH_a', 'c', 'large')
    df = cluster.diskfile(0, POLICIES[0], name)
    with df.create() as writer:
        os.truncate(writer._fd, LARGE)
        writer.put(metadata({'ETag': LARGE_ETAG, 'Content-Length': str(LARGE), 'Content-Type': 'text/plain'}, BASE))
        writer.commit(Timestamp(BASE))
    cluster.start([1])
    seconds = cluster.replicate(0)
    problems = complaints(cluster)
    assert not problems, '\n'.join(problems)
    left = [files for _root, _dirs, files in os.walk(df._datadir)]
    assert not left, left
    with cluster.diskfile(1, POLICIES[0], name).open() as df:
        assert df.content_length == LARGE, df.content_length
        found = df.get_metadata()
        assert (found['ETag'], found['X-Timestamp']) == (LARGE_ETAG, Timestamp(BASE).internal), found
        etag = utils.md5(usedforsecurity=False)
        for chunk in df.reader():
            etag.update(chunk)
        assert etag.hexdigest() == LARGE_ETAG, etag.hexdigest()
    print('5 GiB and a byte moved in %.1f s' % seconds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--replicator', help="a replicator's command; {conf} stands for its configuration")
    parser.add_argument('--server', help="an object server's command")
    parser.add_argument('--large', action='store_true', help='one object, over 5 GiB')
    parser.add_argument('--keep', action='store_true', help='keep the folder')
    args = parser.parse_args()
    root = tempfile.mkdtemp(prefix='ssync-')
    cluster = Cluster(os.path.join(root, 'cluster'), args)
    try:
        if args.large:
            large(cluster)
            return
        populate(cluster)
        source = {path: value for path, value in snapshot(cluster, 0).items() if not value[0]['name'].endswith('/' + RECLAIMED)}
        there = snapshot(cluster, 1)
        newer = [path for path in there if 'newer' in there[path][0]['name']]
        cluster.start([0, 1, 2, 3])
        seconds = cluster.replicate(0)
        for path in newer:
            source[path] = there[path]
        want = {path: value for path, value in source.items()
                if not (value[0]['name'].endswith('/newer') and path not in newer)}
        for node in (1, 2):
            compare('node %d after the pass' % node, want, snapshot(cluster, node))
            for key, suffixes in hashes(cluster, node).items():
                mine = hashes(cluster, 0).get(key)
                differ = [s for s in set(mine) | set(suffixes) if mine.get(s) != suffixes.get(s)]
                assert len(differ) <= 1, (key, differ)
        # What the others have newer comes back.
        cluster.replicate(1)
        compare('node 0 after a pass of node 1', want, snapshot(cluster, 0))
        assert hashes(cluster, 0) == hashes(cluster, 1) == hashes(cluster, 2)
        # A pass with nothing to do.
        cluster.replicate(2)
        # Node 0 is no primary any more, node 3 is.
        cluster.rings([1, 3])
        cluster.replicate(0)
        left = snapshot(cluster, 0)
        compare('node 0 after its reverts', {}, left)
        for policy in POLICIES:
            base = os.path.join(cluster.device(0), diskfile.get_data_dir(policy))
            assert os.listdir(base) == [], os.listdir(base)
        compare('node 3 after the reverts', want, snapshot(cluster, 3))
        problems = complaints(cluster)
        assert not problems, '\n'.join(problems)
        print('%d files alike on all nodes (%.2f s for the first pass)' % (len(want), seconds))
    finally:
        cluster.stop()
        if args.keep:
            print(cluster.root)
        else:
            shutil.rmtree(root)


if __name__ == '__main__':
    main()
