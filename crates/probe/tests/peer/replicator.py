#!/usr/bin/env python3
"""Compares object-replicators: Swift's and another one on copies of the same devices, with rsync and with ssync.

    replicator.py SCRATCH REPLICATOR SERVER CASES...

REPLICATOR is the other swift-object-replicator, SERVER a swift-object-server or `-` for Swift's own; SCRATCH is a directory on a
file system with extended attributes. Run it with a Python that has Swift 2.38 installed, where the program rsync is. Both
replicators make the same passes on copies of the same nodes, with the same ports one after the other, and the object servers of the
other nodes are the same program. Compared are the files of all nodes with contents and attributes, the REPLICATE and SSYNC requests
that the servers have logged, statsd, recon and the log. It ends with status 0 if nothing differs; else with the first difference.
"""
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from swift.common import utils
from swift.common.exceptions import PartitionLockTimeout
from swift.common.ring import Ring, RingBuilder, RingData
from swift.common.storage_policy import POLICIES
from swift.common.utils import Timestamp, hash_path, md5
from swift.obj import diskfile

from ports import free_ports
from sides import Receiver, log_line, runner, same, start

SCRATCH, REPLICATOR, SERVER = sys.argv[1:4]
WANTED = sys.argv[4:]
PART_POWER = 2
ETC = os.path.join(SCRATCH, 'etc')
BASE = int(time.time()) - 5000
NODES = 5
SIDES = {'python': runner(ETC, 'swift-object-replicator'), 'ours': [REPLICATOR]}
SERVERS = runner(ETC, 'swift-object-server') if SERVER == '-' else [SERVER]

start(ETC, 'gold', 'silver')

# Of the object servers, of rsync, and one on which nobody listens.
PORTS = free_ports(NODES + 2)
RSYNC, NOBODY = PORTS[NODES:]


def dev(node):
    return 'sd%d' % node


def manager(devices):
    return diskfile.DiskFileManager(
        {'devices': devices, 'mount_check': 'false', 'fallocate_reserve': '0'}, utils.get_logger({}, 'peer'))


def part_of(name):
    return int(hash_path('a', 'c', name), 16) >> (128 - PART_POWER)


class Tree:
    """Devices of all nodes before a case: node N has the device sdN below nodeN."""

    def __init__(self, top, local=()):
        # The devices of nodes in `local` are node 0's.
        self.top, self.local = top, local
        for node in range(NODES):
            for policy in POLICIES:
                os.makedirs(os.path.join(self.device(node), diskfile.get_data_dir(policy)))

    def device(self, node):
        return os.path.join(self.top, 'node%d' % (0 if node in self.local else node), dev(node))

    def df(self, node, name, policy):
        return manager(os.path.dirname(self.device(node))).get_diskfile(
            dev(node), part_of(name), 'a', 'c', name, POLICIES[policy])

    def put(self, node, name, body=b'body', at=BASE, policy=0, **headers):
        metadata = {'X-Timestamp': Timestamp(at).internal, 'Content-Length': str(len(body)), 'Content-Type': 'x/y',
                    'ETag': md5(body, usedforsecurity=False).hexdigest(), 'X-Object-Meta-Caf\u00c3\u00a9': '\u00c3\u00bc'}
        with self.df(node, name, policy).create(size=len(body)) as writer:
            writer.write(body)
            writer.put(dict(metadata, **headers))

    def post(self, node, name, at=BASE + 10, policy=0):
        self.df(node, name, policy).write_metadata(
            {'X-Timestamp': Timestamp(at).internal, 'X-Object-Meta-Color': 'blue'})

    def delete(self, node, name, at=BASE + 20, policy=0):
        self.df(node, name, policy).delete(Timestamp(at))

    def partition(self, node, part, policy=0):
        return os.path.join(self.device(node), diskfile.get_data_dir(POLICIES[policy]), str(part))


def populate(tree, node=0, policies=(0, 1), wanted=lambda policy, name: True):
    """Objects of every kind on a node."""
    for policy in policies:
        names = [name for name in ['o%d' % n for n in range(12)] + ['large', 'posted', 'deleted'] if wanted(policy, name)]
        for name in names:
            if name.startswith('o'):
                n = int(name[1:])
                tree.put(node, name, b'x' * n, BASE + n, policy)
            elif name != 'deleted':
                tree.put(node, name, b'0123456789' * 20000, policy=policy)
        if 'posted' in names:
            tree.post(node, 'posted', policy=policy)
        if 'deleted' in names:
            tree.delete(node, 'deleted', policy=policy)


def primary(node):
    """Whether a node is one of an object's primaries, as the rings are now."""
    found = {int(policy): Ring(ETC, ring_name=policy.ring_name) for policy in POLICIES}
    return lambda policy, name: node in [node['id'] for node in found[policy].get_part_nodes(part_of(name))]


def rings(primaries=(0, 1, 2), regions=(1, 1, 1, 1, 1), zones=range(NODES), replicas=3, ports=None):
    for policy in POLICIES:
        builder = RingBuilder(PART_POWER, replicas, 0)
        for node in range(NODES):
            port = (ports or {}).get(node, PORTS[node])
            builder.add_dev({'id': node, 'region': regions[node], 'zone': zones[node], 'ip': '127.0.0.1', 'port': port,
                             'replication_ip': '127.0.0.1', 'replication_port': port, 'device': dev(node),
                             'weight': 100 if node in primaries else 0})
        builder.rebalance(seed='x')
        builder.get_ring().save(os.path.join(ETC, policy.ring_name + '.ring.gz'))


@contextlib.contextmanager
def running(command, port, **kwargs):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               start_new_session=True, env=dict(os.environ, PYTHONWARNINGS='ignore'), **kwargs)
    try:
        deadline = time.time() + 60
        while True:
            assert process.poll() is None, '%r has ended' % command
            try:
                socket.create_connection(('127.0.0.1', port)).close()
                break
            except OSError:
                assert time.time() < deadline, '%r does not start' % command
                time.sleep(.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


class Side:
    """One replicator with nodes, logs and figures of its own."""

    def __init__(self, kind, case, template):
        self.kind = kind
        self.top = os.path.join(SCRATCH, '%s-%s' % (case, kind))
        subprocess.check_call(['cp', '-a', template.top, self.top])
        self.home = self.top + '-home'
        os.makedirs(self.home)
        self.lines, self.metrics, self.requests, self.complaints = [], collections.Counter(), [], []
        self.log, self.statsd, self.servers = (
            Receiver(take) for take in (self.take_line, self.take_metric, self.take_request))

    def take_line(self, packet):
        level, _name, line = log_line(packet)
        self.lines.append((level, line))

    def take_metric(self, packet):
        for metric in packet.split('\n'):
            # Of counts the value too.
            name, value = metric.split(':', 1)
            self.metrics[name if value.split('|')[1] == 'ms' else metric.rstrip()] += 1

    def take_request(self, packet):
        level, name, line = log_line(packet)
        match = re.search(r'"(REPLICATE|SSYNC) ([^"]*)" (\d+) .* "([^" ]*)[^"]*" [0-9.]+ "-" \d+ (\d+|-)', line)
        if match:
            method, path, status, agent, policy = match.groups()
            head, part, suffixes = (path.split('/', 3)[1:] + [''])[:3]
            self.requests.append('%s %s/%s %s %s from %s to policy %s' % (
                method, head, part, '-'.join(sorted(suffixes.split('-'))), status, agent, policy))
        elif level in ('ERROR', 'WARNING'):
            self.complaints.append('%s: %s' % (name, line))

    def conf(self, node):
        return os.path.join(self.home, 'node%d.conf' % node)

    def configure(self, node, options, server_options=''):
        with open(self.conf(node), 'w') as fp:
            fp.write('''[DEFAULT]
user = root
workers = 0
swift_dir = %s
devices = %s/node%d
mount_check = no
fallocate_reserve = 0
bind_ip = 127.0.0.1
bind_port = %d
log_udp_host = 127.0.0.1
recon_cache_path = %s
# A busy machine is no reason to differ.
conn_timeout = 20
node_timeout = 60
[pipeline:main]
pipeline = object-server
[app:object-server]
use = egg:swift#object
set log_name = server%d
set log_udp_port = %d
# REPLICATE and SSYNC are no more than that to the log. Not with -v: then Swift's server stops for ever once a hashing thread
# and a request log at the same time.
set log_level = DEBUG
%s
[object-replicator]
log_level = DEBUG
log_udp_port = %d
log_statsd_host = 127.0.0.1
log_statsd_port = %d
log_statsd_metric_prefix = here
%s
''' % (ETC, self.top, node, PORTS[node], self.home, node, self.servers.port, server_options, self.log.port,
                self.statsd.port, options))

    def rsyncd(self, modules):
        path = os.path.join(self.home, 'rsyncd.conf')
        with open(path, 'w') as fp:
            fp.write('address = 127.0.0.1\nport = %d\nuse chroot = no\nlog file = %s/rsyncd.log\nuid = root\ngid = root\n' % (
                RSYNC, self.home))
            for node in modules:
                fp.write('[object_%d]\npath = %s/node%d\nread only = no\nwrite only = no\n' % (PORTS[node], self.top, node))
        return ['rsync', '--daemon', '--no-detach', '--config', path]

    def once(self, *args, path=None, meanwhile=None):
        env = dict(os.environ, PYTHONWARNINGS='ignore')
        if path:
            env['PATH'] = path + ':' + env['PATH']
        command = SIDES[self.kind] + [self.conf(0), 'once'] + list(args)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env, start_new_session=True) as process:
            try:
                if meanwhile:
                    meanwhile(self)
                code = process.wait(120)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert code == 0, '%s ended with %d' % (self.kind, code)
        self.settle()

    def settle(self):
        for receiver in self.log, self.statsd, self.servers:
            receiver.catch_up()

    def recon(self):
        try:
            with open(os.path.join(self.home, 'object.recon')) as fp:
                figures = json.load(fp)
        except FileNotFoundError:
            return None
        # Swift writes a file with nothing in it too.
        return json.loads(re.sub(r'"(\w*replication_(?:time|last))": ?[0-9.e+-]+', r'"\1": 0', json.dumps(figures))) or None

    def tree(self):
        """Files with their contents and attributes, and empty directories."""
        found = {}
        for folder, dirs, files in os.walk(self.top):
            if not dirs and not files:
                found[os.path.relpath(folder, self.top)] = 'empty'
            for name in files:
                path = os.path.join(folder, name)
                # When somebody last has hashed which suffix is compared by the hashes themselves.
                if name.startswith(('.lock', 'hashes.')):
                    continue
                with open(path, 'rb') as fp:
                    found[os.path.relpath(path, self.top)] = (
                        fp.read(), {key: os.getxattr(path, key) for key in os.listxattr(path)})
        return found

    def hashes(self):
        """The hashes as the object servers tell them, without rehashing."""
        found = {}
        for path, _dirs, files in os.walk(self.top):
            if diskfile.HASH_FILE in files:
                hashes = diskfile.read_hashes(path)
                # Consolidated as a reader of both files does.
                with contextlib.suppress(FileNotFoundError), open(os.path.join(path, diskfile.HASH_INVALIDATIONS_FILE)) as fp:
                    hashes.update((line.strip(), None) for line in fp)
                found[os.path.relpath(path, self.top)] = {
                    key: value for key, value in hashes.items() if key not in ('updated', 'valid')}
        return found

    def said(self):
        """The lines of the log without what is by chance."""
        def plain(line):
            line = line.replace(self.top, '').replace(self.home, '')
            line = re.sub(r'pid=\d+', 'pid=', line)
            line = re.sub(r'\((?:\d+\.\d+)( minutes)?\)', r'(time\1)', line)
            line = re.sub(r'in [0-9.]+s \([0-9.]+/sec, \d+[smh] remaining\)', 'in time', line)
            line = re.sub(r'(max|min|med) [0-9.]+s', r'\1', line)
            line = re.sub(r'Nothing replicated for [0-9.e-]+', 'Nothing replicated for', line)
            # What Swift logs in one of its modules has no logger.
            line = line.replace('STDERR: ERROR:root:', '')
            # Suffix dirs in any order.
            line = re.sub(r"(?:'/node[^']*/[0-9a-f]{3}', )+",
                          lambda match: ', '.join(sorted(match[0].split(', ')[:-1])) + ', ', line)
            line = re.sub(r'(Successful rsync of \S*/)\S+\.\.\.', r'\1...', line)
            # rsync's own words: what is local to it.
            line = re.sub(r'(\[(?:sender|Receiver|generator|client)\]|\(code \d+\) at).*', r'\1', line)
            # Tracebacks, and what the exceptions of each are called.
            line = re.sub(r'(EXCEPTION in ssync.Sender).*', r'\1', line, flags=re.DOTALL)
            line = re.sub(r'(Error syncing with node: [^: ]+:\d+/\w+).*', r'\1', line, flags=re.DOTALL)
            line = re.sub(r'(Error syncing (?:handoff )?partition).*', r'\1', line, flags=re.DOTALL)
            return line
        skip = ('Starting ', 'Exited ', 'SIGTERM', 'Spawned worker', 'Forked worker', 'Worker ', 'Finished ', 'Cleaned up',
                'Loaded override', 'Run listdir on')
        return sorted('%s %s' % (level, plain(line)) for level, line in self.lines
                      if not line.startswith(skip) or line.startswith('Starting object'))


class Case:
    """Both replicators on the same nodes. `up` are the nodes with object servers, `rsync` those with rsync modules."""

    def __init__(self, name, options='', up=(1, 2, 3, 4), rsync=(1, 2, 3, 4), server_options=None, path=None, args=(), local=(),
                 **ring):
        self.name, self.options, self.up, self.modules, self.path, self.args = name, options, up, rsync, path, args
        self.server_options = server_options or {}
        rings(**ring)
        self.template = Tree(os.path.join(SCRATCH, name + '-template'), local)

    def run_side(self, kind, passes=1, before=None, meanwhile=None):
        side = Side(kind, self.name, self.template)
        with contextlib.ExitStack() as stack:
            for node in range(NODES):
                side.configure(node, self.options, self.server_options.get(node, ''))
            for node in self.up:
                stack.enter_context(running(SERVERS + [side.conf(node)], PORTS[node]))
            if self.modules:
                stack.enter_context(running(side.rsyncd(self.modules), RSYNC, stderr=subprocess.DEVNULL))
            if before:
                stack.enter_context(before(side))
            for _ in range(passes):
                side.once(*self.args, path=self.path, meanwhile=meanwhile)
        side.settle()
        return side

    def run(self, passes=1, before=None, ignore_log=(), same_requests=True, same_trees=True):
        python, ours = (self.run_side(kind, passes, before) for kind in SIDES)
        name = self.name
        same(name + ': recon', python.recon(), ours.recon())
        same(name + ': metrics', dict(python.metrics), dict(ours.metrics))
        said = [[line for line in side.said() if not any(part in line for part in ignore_log)] for side in (python, ours)]
        same(name + ': log', *said)
        if same_trees:
            same(name + ': files', python.tree(), ours.tree())
            same(name + ': hashes', python.hashes(), ours.hashes())
        if same_requests:
            same(name + ': requests', sorted(python.requests), sorted(ours.requests))
        same(name + ': complaints of the servers', sorted(python.complaints), sorted(ours.complaints))
        stats = (ours.recon() or {}).get('replication_stats') or {}
        print('%s: %d files, %d requests, %d lines of log, %s' % (
            name, len(ours.tree()), len(ours.requests), len(said[1]),
            ', '.join('%s %s' % item for item in sorted(stats.items()) if item[1])))
        return python, ours


RSYNC_OPTIONS = 'sync_method = rsync\nrsync_module = rsync://{replication_ip}:%d/object_{replication_port}\n' % RSYNC


def files_of(side, node):
    prefix = 'node%d/%s/' % (node, dev(node))
    return {path[len(prefix):]: value for path, value in side.tree().items() if path.startswith(prefix) and value != 'empty'}


def rsync_primaries():
    case = Case('rsync-primaries', RSYNC_OPTIONS)
    populate(case.template)
    # Half of it is there already, one object with other data under the same name, which stays.
    for node in (1, 2):
        for n in range(0, 12, 2):
            case.template.put(node, 'o%d' % n, b'x' * n, BASE + n)
    # rsync's temporary files do not travel.
    folder = case.template.df(0, 'o1', 0)._datadir
    with open(os.path.join(folder, '.%s.data.Ab3dE9' % Timestamp(BASE).internal), 'w') as fp:
        fp.write('half')
    _python, ours = case.run(passes=2)
    here = {path: value for path, value in files_of(ours, 0).items() if 'Ab3dE9' not in path}
    for node in (1, 2):
        same('node %d after rsync' % node, here, files_of(ours, node))


def rsync_quiet():
    case = Case('rsync-quiet', RSYNC_OPTIONS + 'log_rsync_transfers = no\nrsync_bwlimit = 100000\nrsync_io_timeout = 20\n')
    populate(case.template, policies=(0,))
    case.run()


def rsync_handoff():
    case = Case('rsync-handoff', RSYNC_OPTIONS, primaries=(1, 2, 3))
    populate(case.template)
    _python, ours = case.run()
    for policy in POLICIES:
        assert os.listdir(os.path.join(ours.top, 'node0', dev(0), diskfile.get_data_dir(policy))) == []


def rsync_handoff_kept():
    """One primary has no module: nothing is removed. With handoff_delete = 2 it is."""
    for wanted in ('auto', '2'):
        case = Case('rsync-handoff-delete-' + wanted, RSYNC_OPTIONS + 'handoff_delete = %s\n' % wanted, primaries=(1, 2, 3),
                    rsync=(1, 2))
        populate(case.template)
        _python, ours = case.run()
        left = os.listdir(os.path.join(ours.top, 'node0', dev(0), 'objects'))
        assert bool(left) == (wanted == 'auto'), left


def rsync_regions():
    """Two nodes in another region: one gets it, with compression."""
    log = os.path.join(SCRATCH, 'rsync-args')
    bin_dir = os.path.join(SCRATCH, 'bin-args')
    os.makedirs(bin_dir)
    with open(os.path.join(bin_dir, 'rsync'), 'w') as fp:
        fp.write('#!/bin/sh\nfor arg; do printf "%%s|" "$arg"; done >> %s\necho >> %s\nexec %s "$@"\n' % (
            log, log, shutil.which('rsync')))
    os.chmod(os.path.join(bin_dir, 'rsync'), 0o755)
    case = Case('rsync-regions', RSYNC_OPTIONS + 'rsync_compress = yes\n', regions=(1, 1, 2, 2, 2), primaries=(0, 1, 2, 3),
                replicas=4, path=bin_dir)
    populate(case.template)
    # Which of the remote nodes is the first is random.
    python, ours = case.run(ignore_log=('Successful rsync', ' <f', 'created director'), same_requests=False, same_trees=False)
    same('requests by kind', *[sorted(re.sub(r'sd[23]', 'sd', line) for line in side.requests) for side in (python, ours)])
    with open(log) as fp:
        args = fp.read().splitlines()
    assert len(args) == 32, args
    for line in args:
        assert ('--compress' in line) == ('/sd1/' not in line), line
    half = len(args) // 2

    def plain(lines, side):
        found = []
        for line in lines:
            line = re.sub(r'object_\d+/sd[23]', 'remote', line.replace(side.top, ''))
            words = line.split('|')
            found.append('|'.join(sorted(words)))
        return sorted(found)
    same('arguments', plain(args[:half], python), plain(args[half:], ours))


def rsync_fails():
    """No module, and no object server either; lines cut at a length."""
    case = Case('rsync-fails', RSYNC_OPTIONS + 'rsync_error_log_line_length = 60\n', rsync=(1,))
    populate(case.template, policies=(0,))
    case.run()
    case = Case('rsync-objects-dir', RSYNC_OPTIONS)
    case.template.put(0, 'o1', policy=1)
    # rsync makes one directory, not two.
    shutil.rmtree(os.path.join(case.template.device(1), 'objects-1'))
    case.run()


def rsync_timeout():
    """An rsync that hangs is killed."""
    bin_dir = os.path.join(SCRATCH, 'bin-hangs')
    os.makedirs(bin_dir)
    pids = os.path.join(bin_dir, 'pids')
    with open(os.path.join(bin_dir, 'rsync'), 'w') as fp:
        fp.write('#!/bin/sh\necho $$ >> %s\nexec sleep 1000\n' % pids)
    os.chmod(os.path.join(bin_dir, 'rsync'), 0o755)
    case = Case('rsync-timeout', RSYNC_OPTIONS + 'rsync_timeout = 1\nconcurrency = 8\n', path=bin_dir)
    case.template.put(0, 'o1')
    case.run()
    with open(pids) as fp:
        pids = fp.read().split()
    assert len(pids) == 4, pids
    for pid in pids:
        assert not os.path.exists('/proc/' + pid), 'rsync %s is still there' % pid


def no_server():
    """rsync works and the object server is down: nobody can be asked, and of a handoff nobody told."""
    case = Case('rsync-no-server', RSYNC_OPTIONS, up=(1,))
    populate(case.template, policies=(0,))
    case.run()
    # Swift stops at the first node that cannot be told and counts all as successes; not so ours.
    case = Case('rsync-handoff-no-server', RSYNC_OPTIONS, up=(1, 2), primaries=(1, 2, 3))
    case.template.put(0, 'o1')
    ours = case.run_side('ours')
    stats = ours.recon()['replication_stats']
    assert stats['failure_nodes'] == {'127.0.0.1': {dev(3): 1}} and stats['success'] == 2, stats
    here = files_of(ours, 0)
    assert here
    for node in (1, 2, 3):
        same('node %d' % node, here, files_of(ours, node))
    print('rsync-handoff-no-server: kept')


def workers():
    """Three devices and two workers: figures by disk, and lines by worker. No partition is on two devices of the machine."""
    for name, options in (('rsync', RSYNC_OPTIONS), ('ssync', 'sync_method = ssync\n')):
        for args in ((), ('-d', 'sd3,sd4')):
            case = Case('workers-%s%s' % (name, ''.join(args)), options + 'replicator_workers = 2\nconcurrency = 2\n', up=(1, 2),
                        args=args, local=(3, 4), primaries=(0, 1, 2, 3, 4), replicas=2, zones=(0, 1, 1, 0, 0),
                        ports={3: PORTS[0], 4: PORTS[0]})
            for node in (0, 3, 4):
                populate(case.template, node, wanted=primary(node))
            _python, ours = case.run()
            assert any('[worker 2/2 pid=' in line for _level, line in ours.lines)
            assert args or sorted(ours.recon()['object_replication_per_disk']) == ['sd0', 'sd3', 'sd4']


def ssync_matrix():
    options = 'sync_method = ssync\n'
    case = Case('ssync-primaries', options)
    populate(case.template)
    case.run(passes=2)
    case = Case('ssync-handoff', options, primaries=(1, 2, 3))
    populate(case.template)
    case.run()


def ssync_handoffs():
    options = 'sync_method = ssync\n'
    for wanted in ('auto', '2'):
        case = Case('ssync-handoff-delete-' + wanted, options + 'handoff_delete = %s\n' % wanted, primaries=(1, 2, 3), up=(1, 2, 4))
        populate(case.template)
        _python, ours = case.run()
        left = os.listdir(os.path.join(ours.top, 'node0', dev(0), 'objects'))
        assert bool(left) == (wanted == 'auto'), left


def handoffs_first():
    """Node 0 is a primary of some partitions and a handoff of others, which can be moved or not."""
    for name, options in (('rsync', RSYNC_OPTIONS), ('ssync', 'sync_method = ssync\n')):
        options += 'handoffs_first = yes\n'
        case = Case('handoffs-first-' + name, options, primaries=(0, 1, 2, 3))
        populate(case.template, policies=(0,))
        case.run()
        case = Case('handoffs-first-stuck-' + name, options, primaries=(0, 1, 2, 3), up=(), rsync=())
        populate(case.template, policies=(0,))
        attempted = {}
        for kind in SIDES:
            side = case.run_side(kind)
            assert any('Handoffs first mode still has handoffs remaining.  Aborting current replication pass.' in line
                       for _level, line in side.lines), side.said()
            attempted[kind] = side.metrics
        # Of four partitions one is a handoff. Swift begins a primary one before it knows what becomes of that.
        updates = {kind: sum(count for name, count in metrics.items() if 'partition.update.count' in name)
                   for kind, metrics in attempted.items()}
        deletes = {kind: sum(count for name, count in metrics.items() if 'partition.delete.count' in name)
                   for kind, metrics in attempted.items()}
        assert deletes == {'python': 1, 'ours': 1} and updates == {'python': 1, 'ours': 0}, (deletes, updates)
        print('handoffs-first-stuck-%s: both' % name)


def partners():
    """One primary is down, then unmounted: the others are tried, and of an unmounted one the only handoff."""
    for name, options in (('rsync', RSYNC_OPTIONS), ('ssync', 'sync_method = ssync\n')):
        for primaries in ((0, 1, 2), (0, 1, 2, 3)):
            suffix = '%s-%d' % (name, len(primaries))
            case = Case('partner-down-' + suffix, options, up=(1, 3), primaries=primaries)
            populate(case.template, wanted=primary(0))
            _python, ours = case.run()
            assert not any(' %s/' % dev(0) in line for line in ours.requests), ours.requests
            case = Case('partner-unmounted-' + suffix, options, server_options={2: 'set mount_check = yes'}, primaries=primaries)
            populate(case.template, wanted=primary(0))
            _python, ours = case.run()
            assert not any(' %s/' % dev(0) in line for line in ours.requests), ours.requests
            assert any(' 507 ' in line for line in ours.requests), ours.requests
            ran_out = any('Ran out of handoffs' in line for _level, line in ours.lines)
            assert ran_out == (len(primaries) == 3), ours.said()


class Strange:
    """In place of an object server: says this to whoever asks, and hangs up or says no more."""

    def __init__(self, port, words, hangs_up):
        self.sock = socket.create_server(('127.0.0.1', port))
        self.words, self.hangs_up, self.open = words, hangs_up, []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                sock, _addr = self.sock.accept()
            except OSError:
                return
            asked = b''
            while b'\r\n\r\n' not in asked and (said := sock.recv(65536)):
                asked += said
            sock.sendall(self.words)
            if self.hangs_up:
                sock.close()
            else:
                self.open.append(sock)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.shutdown(socket.SHUT_RDWR)
        for sock in [self.sock] + self.open:
            sock.close()


def strange_partners():
    """One primary says nothing, half of something, or nonsense when it is asked for its hashes; the other gets all."""
    ok = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n'
    for name, words, hangs_up in (('silent', b'', False), ('gone', ok[:20], True), ('half', ok + b'half', False),
                                  ('nonsense', ok + b'x' * 100, True)):
        case = Case('strange-' + name, 'sync_method = ssync\nhttp_timeout = 3\n', up=(2,))
        populate(case.template, wanted=lambda policy, name: policy == 0 and part_of(name) == 1)
        for side in case.run(before=lambda _side: Strange(PORTS[1], words, hangs_up)):
            assert side.recon()['replication_stats']['failure_nodes'] == {'127.0.0.1': {dev(1): 1}}, side.recon()
            assert any('Error syncing with node' in line for line in side.said()), side.said()
            same('%s: files of %s' % (name, side.kind), sorted(files_of(side, 0)), sorted(files_of(side, 2)))
            with manager(os.path.join(side.top, 'node0')).partition_lock(dev(0), POLICIES[0], '1', name='replication', timeout=.1):
                pass


def odd_partitions():
    """What is no partition, and partitions with nothing or with something strange in them."""
    for name, options in (('rsync', RSYNC_OPTIONS), ('ssync', 'sync_method = ssync\n')):
        case = Case('odd-' + name, options + 'replicator_workers = 0\n')
        populate(case.template, policies=(0,))
        objects = os.path.dirname(case.template.partition(0, 0))
        shutil.rmtree(os.path.join(objects, '0'))
        with open(os.path.join(objects, '0'), 'w'):
            pass
        os.makedirs(os.path.join(objects, 'strange'))
        with open(os.path.join(objects, 'auditor_status_ALL.json'), 'w') as fp:
            fp.write('{}')
        with open(os.path.join(objects, '1', 'junk'), 'w') as fp:
            fp.write('junk')
        os.makedirs(os.path.join(objects, '1', 'fff'))
        # A file in place of a hash dir goes into quarantine.
        suffix = os.path.dirname(case.template.df(0, 'large', 0)._datadir)
        with open(os.path.join(suffix, 'f' * 29 + suffix[-3:]), 'w') as fp:
            fp.write('junk')
        _python, ours = case.run()
        assert any('/quarantined/' in path for path in ours.tree())
        # The device of this node is not there.
        case = Case('odd-no-device-' + name, options)
        shutil.rmtree(case.template.device(0))
        _python, ours = case.run()
        assert any('is not a directory' in line for _level, line in ours.lines), ours.lines
        # A handoff with an empty partition, and with an empty suffix.
        case = Case('odd-handoff-' + name, options, primaries=(1, 2, 3))
        os.makedirs(case.template.partition(0, 0))
        os.makedirs(os.path.join(case.template.partition(0, 1), 'abc'))
        case.run()


def overrides():
    for name, options in (('rsync', RSYNC_OPTIONS), ('ssync', 'sync_method = ssync\n')):
        for args in (('-d', 'sd1,sd2'), ('-p', '0,2'), ('-i', '1', '-p', '3', '-d', 'sd0')):
            case = Case('overrides-%s-%s' % (name, ''.join(args)), options, args=args, up=(1, 2))
            populate(case.template)
            case.run()


def locks():
    """Who holds a handoff partition's lock keeps the replicator out."""
    for name, options in (('rsync', RSYNC_OPTIONS), ('ssync', 'sync_method = ssync\n')):
        case = Case('locks-' + name, options, primaries=(1, 2, 3))
        populate(case.template, policies=(0,))

        @contextlib.contextmanager
        def held(side):
            lock = manager(os.path.join(side.top, 'node0')).partition_lock(dev(0), POLICIES[0], '1', name='replication')
            with lock:
                yield
        _python, ours = case.run(before=held)
        assert os.listdir(os.path.join(ours.top, 'node0', dev(0), 'objects')) == ['1']


def receiver_locks():
    """Who holds a partition's lock keeps an SSYNC out of it."""
    case = Case('receiver-locks', 'sync_method = ssync\n', server_options={1: 'replication_lock_timeout = 1'})
    populate(case.template, policies=(0,))

    @contextlib.contextmanager
    def held(side):
        with manager(os.path.join(side.top, 'node1')).partition_lock(dev(1), POLICIES[0], '1', name='replication'):
            yield
    _python, ours = case.run(before=held)
    assert ours.recon()['replication_stats']['failure_nodes'] == {'127.0.0.1': {dev(1): 1}}
    assert not any('/objects/1/' in '/' + path for path in files_of(ours, 1)), files_of(ours, 1)


class Hanging:
    """A pass in which rsync waits until it is told to go on."""

    def __init__(self, kind, name):
        bin_dir = os.path.join(SCRATCH, 'bin-%s-%s' % (name, kind))
        os.makedirs(bin_dir)
        template = Tree(os.path.join(SCRATCH, '%s-%s-template' % (name, kind)))
        template.put(0, 'o1')
        self.side = Side(kind, name, template)
        self.begun, self.go = (os.path.join(bin_dir, word) for word in ('begun', 'go'))
        with open(os.path.join(bin_dir, 'rsync'), 'w') as fp:
            fp.write('#!/bin/sh\necho $$ > %s.tmp\nmv %s.tmp %s\nuntil [ -e %s ]; do sleep 0.05; done\nexit 1\n' % (
                self.begun, self.begun, self.begun, self.go))
        os.chmod(os.path.join(bin_dir, 'rsync'), 0o755)
        self.side.configure(0, RSYNC_OPTIONS)
        self.env = dict(os.environ, PYTHONWARNINGS='ignore', PATH=bin_dir + ':' + os.environ['PATH'])

    def __enter__(self):
        self.process = subprocess.Popen(SIDES[self.side.kind] + [self.side.conf(0), 'once'], stdout=subprocess.DEVNULL,
                                        env=self.env, start_new_session=True)
        wait('rsync has begun', lambda: os.path.exists(self.begun) or self.process.poll() is not None)
        with open(self.begun) as fp:
            self.rsync = int(fp.read())
        return self

    def __exit__(self, *exc):
        with open(self.go, 'w'):
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait(what, done):
    deadline = time.time() + 60
    while not done():
        assert time.time() < deadline, what
        time.sleep(.02)


def holds_its_lock():
    """A replicator that reverts a partition keeps others from its lock until it is done."""
    rings(primaries=(1, 2, 3))
    for kind in SIDES:
        with Hanging(kind, 'holds') as hanging:
            df_mgr = manager(os.path.join(hanging.side.top, 'node0'))

            def lock():
                return df_mgr.partition_lock(dev(0), POLICIES[0], str(part_of('o1')), name='replication', timeout=.1)
            try:
                with lock():
                    sys.exit('%s does not hold its lock' % kind)
            except PartitionLockTimeout:
                pass
            with open(hanging.go, 'w'):
                pass
            assert hanging.process.wait(60) == 0
            with lock():
                pass
    print('holds-its-lock: both')


def arrives():
    """What comes to a handoff during its revert stays there. (Swift removes it.)"""
    case = Case('arrives', RSYNC_OPTIONS, primaries=(1, 2, 3))
    names = [name for name in ('o%d' % n for n in range(100)) if part_of(name) == part_of('o0')][:4]
    for name in names[:3]:
        case.template.put(0, name)
    bin_dir = os.path.join(SCRATCH, 'bin-arrives')
    os.makedirs(bin_dir)
    begun, go = (os.path.join(bin_dir, word) for word in ('begun', 'go'))
    # The first one has sent all before it waits.
    with open(os.path.join(bin_dir, 'rsync'), 'w') as fp:
        fp.write('#!/bin/sh\n%s "$@" || exit\ntouch %s\nuntil [ -e %s ]; do sleep 0.05; done\n' % (
            shutil.which('rsync'), begun, go))
    os.chmod(os.path.join(bin_dir, 'rsync'), 0o755)
    case.path = bin_dir

    def write(side):
        here = Tree.__new__(Tree)
        here.top, here.local = side.top, ()
        wait('rsync has sent', lambda: os.path.exists(begun))
        # A new one, a newer one, and newer metadata.
        here.put(0, names[3])
        here.put(0, names[0], b'newer', BASE + 5)
        here.post(0, names[1])
        with open(go, 'w'):
            pass
    ours = case.run_side('ours', meanwhile=write)
    left = {path.split('/')[-2] + path[path.rindex('.'):] for path in files_of(ours, 0)}
    expected = {hash_path('a', 'c', names[n]) + end for n, end in ((0, '.data'), (1, '.data'), (1, '.meta'), (3, '.data'))}
    assert left == expected, (left, expected)
    assert any('Removing 1 objects' in line for _level, line in ours.lines), ours.said()
    # The next pass moves the rest.
    with contextlib.ExitStack() as stack:
        for node in (1, 2, 3):
            stack.enter_context(running(SERVERS + [ours.conf(node)], PORTS[node]))
        stack.enter_context(running(ours.rsyncd((1, 2, 3)), RSYNC, stderr=subprocess.DEVNULL))
        ours.once()
    assert os.listdir(os.path.join(ours.top, 'node0', dev(0), 'objects')) == []
    for node in (1, 2, 3):
        names_there = {path.split('/')[-2] for path in files_of(ours, node)}
        assert names_there == {hash_path('a', 'c', name) for name in names}, names_there
    print('arrives: kept')


def forever():
    """Pass after pass; what the command line chooses is for `once`."""
    for extra in ('', 'replicator_workers = 2\n'):
        case = Case('forever-%d' % bool(extra), RSYNC_OPTIONS + extra + 'interval = 0.5\nstats_interval = 1\n')
        populate(case.template, policies=(0,))
        said = []
        for kind in SIDES:
            side = Side(kind, case.name, case.template)
            with contextlib.ExitStack() as stack:
                for node in (0, 1, 2):
                    side.configure(node, case.options)
                for node in (1, 2):
                    stack.enter_context(running(SERVERS + [side.conf(node)], PORTS[node]))
                stack.enter_context(running(side.rsyncd((1, 2)), RSYNC, stderr=subprocess.DEVNULL))
                process = subprocess.Popen(SIDES[kind] + [side.conf(0), '-p', '0'], stdout=subprocess.DEVNULL,
                                           env=dict(os.environ, PYTHONWARNINGS='ignore'), start_new_session=True)
                try:
                    wait('%s makes passes' % kind, lambda: sum(
                        'Replication sleeping' in line for _level, line in side.lines) > 2)
                    if extra:
                        # Each worker's, and added up.
                        wait('%s tells of all' % kind, lambda: 'replication_stats' in (side.recon() or {}))
                finally:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait(60)
            side.settle()
            figures = side.recon()
            assert figures['replication_stats']['attempted'] == 4, figures
            said.append((sorted(figures), sorted(set(side.said()))))
        same('forever: recon', said[0][0], said[1][0])
        # How far a pass was when its figures were logged is by chance.
        same('forever: log', *[sorted({line for line in lines if ' failures' not in line and ' suffixes checked' not in line
                                       and ' partitions replicated' not in line and 'Nothing replicated' not in line})
                               for _recon, lines in said])
    print('forever: both')


SAMPLE = """
log_rsync_transfers = true
interval = 30.0
stats_interval = 300.0
rsync_timeout = 900
rsync_bwlimit = 0
rsync_io_timeout = 30
rsync_compress = no
node_timeout = 10
http_timeout = 60
lockup_timeout = 1800
ring_check_interval = 15.0
rsync_error_log_line_length = 0
handoffs_first = False
handoff_delete = auto
concurrency = 1
replicator_workers = 0
daemonize = on
reclaim_age = 604800
"""


def options():
    """The options of Swift's sample are known, old ones warn, and of a wrong one both say what is wrong."""
    for name, text in (('sample', SAMPLE), ('run-pause', 'run_pause = 5\n'), ('both', 'run_pause = 5\ninterval = 6\n'),
                       ('handoff-delete', 'handoff_delete = 7\n'), ('none', 'sync_method =\n')):
        case = Case('options-' + name, RSYNC_OPTIONS.replace('sync_method = rsync\n', '') + text, up=(1, 2))
        case.template.put(0, 'o1')
        _python, ours = case.run()
        assert not any('unknown option' in line for _level, line in ours.lines), ours.lines
    for text in ('rsync_module = {host}::object\n', 'sync_method = rsink\n'):
        case = Case('wrong-%d' % len(text), text)
        side = Side('ours', case.name, case.template)
        side.configure(0, text)
        done = subprocess.run([REPLICATOR, side.conf(0), 'once'], stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 1 and text.split()[0] in done.stderr and '[object-replicator]' in done.stderr, done
    print('options: alike')


def stops():
    """With the replicator its rsync ends."""
    rings()
    for kind in SIDES:
        rings(primaries=(1, 2, 3))
        with Hanging(kind, 'stops') as hanging:
            os.kill(hanging.process.pid, signal.SIGTERM)
            hanging.process.wait(60)

            def ended():
                try:
                    with open('/proc/%d/stat' % hanging.rsync) as fp:
                        # Without a parent, and nobody to ask for its end: that is as good.
                        return fp.read().rpartition(')')[2].split()[0] == 'Z'
                except FileNotFoundError:
                    return True
            wait('the rsync of %s ends' % kind, ended)
    print('stops: both')


def part_power():
    """While the part power is increased the policy is left alone. In its first pass Swift sees that of the first policy only."""
    for args in ((), ('-i', '1')):
        case = Case('part-power' + ''.join(args), RSYNC_OPTIONS, args=args)
        populate(case.template)
        ring = RingData.load(os.path.join(ETC, POLICIES[0].ring_name + '.ring.gz'))
        ring.next_part_power = PART_POWER + 1
        ring.save(os.path.join(ETC, POLICIES[0].ring_name + '.ring.gz'))
        _python, ours = case.run()
        assert any('next_part_power set in policy' in line for _level, line in ours.lines)


def ring_changes():
    """A ring that changes ends the pass."""
    bin_dir = os.path.join(SCRATCH, 'bin-ring')
    os.makedirs(bin_dir)
    ring = os.path.join(ETC, POLICIES[0].ring_name + '.ring.gz')
    with open(os.path.join(bin_dir, 'rsync'), 'w') as fp:
        fp.write('#!/bin/sh\ntouch -d "$(date -r %s) + 10 seconds" %s\nexit 1\n' % (ring, ring))
    os.chmod(os.path.join(bin_dir, 'rsync'), 0o755)
    case = Case('ring-changes', RSYNC_OPTIONS + 'ring_check_interval = 0\n', path=bin_dir)
    populate(case.template)
    for kind in SIDES:
        side = case.run_side(kind)
        assert any('Ring change detected. Aborting current replication pass.' in line for _level, line in side.lines), kind
        assert side.recon()['replication_stats']['attempted'] < 8, (kind, side.recon())
    print('ring-changes: both')


def swift_recon():
    """swift-recon shows what our replicator has left."""
    port = free_ports(1)[0]
    for workers_count in (0, 2):
        case = Case('recon-%d' % workers_count, 'sync_method = ssync\nreplicator_workers = %d\n' % workers_count)
        populate(case.template, policies=(0,))
        _python, ours = case.run(ignore_log=('Daemon needs',))
        conf = os.path.join(ours.home, 'recon.conf')
        with open(ours.conf(0)) as source, open(conf, 'w') as fp:
            fp.write(source.read().replace('pipeline = object-server', 'pipeline = recon object-server').replace(
                'bind_port = %d' % PORTS[0], 'bind_port = %d' % port) +
                '[filter:recon]\nuse = egg:swift#recon\nrecon_cache_path = %s\n' % ours.home)
        rings(primaries=(0,), replicas=1, ports={0: port})
        with running(runner(ETC, 'swift-object-server') + [conf], port):
            shown = subprocess.run(runner(ETC, 'swift-recon') + ['object', '-r', '--swiftdir', ETC], check=True, text=True,
                                   stdout=subprocess.PIPE, env=dict(os.environ, PYTHONWARNINGS='ignore')).stdout
        stats = ours.recon()['replication_stats']
        for key in ('success', 'failure', 'attempted'):
            assert re.search(r'\[replication_%s\] low: %d, high: %d,.*reported: 1' % (key, stats[key], stats[key]), shown), shown
        assert re.search(r'\[replication_time\] low: 0.*reported: 1', shown), shown
        assert re.search(r'Most recent completion was .* \(\d+ seconds ago\)', shown), shown


CASES = {case.__name__: case for case in (
    rsync_primaries, rsync_quiet, rsync_handoff, rsync_handoff_kept, rsync_regions, rsync_fails, rsync_timeout, no_server,
    workers, ssync_matrix, ssync_handoffs, handoffs_first, partners, strange_partners, odd_partitions, overrides, locks, receiver_locks,
    holds_its_lock, stops, part_power, ring_changes, swift_recon, arrives, forever, options)}
if __name__ == '__main__':
    for case_name in WANTED or CASES:
        CASES[case_name]()
