"""Compares account- and container-replicators and -auditors: Swift's and Martlet's on copies of the same devices.

    db_replicator.py SCRATCH BIN SERVERS CASES...

BIN has Martlet's programs under Swift's names; SERVERS says whose account and container servers answer, `python`, `ours` or `mixed`. Both
replicators make the same passes on copies of the same nodes. Compared are what all databases hold (with sync points; every database
must pass SQLite's integrity check), which other files there are, the REPLICATE requests that the servers have logged, statsd, recon
and the log. It ends with status 0 if nothing differs.
"""
import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys

BIN, SERVERS = sys.argv[2:4]
sys.argv[2:4] = [os.path.join(BIN, 'swift-object-replicator'), '-']

from db_brokers import YOUNGER, make_old, make_younger  # noqa: E402
from ports import free_ports  # noqa: E402
from replicator import (  # noqa: E402
    ETC, NODES, PORTS, RSYNC, SCRATCH, WANTED, NOBODY, Side as ObjectSide, dev, running)
from sides import runner, same  # noqa: E402
from swift.account.backend import AccountBroker  # noqa: E402
from swift.common.db import chexor  # noqa: E402
from swift.common.ring import Ring, RingBuilder  # noqa: E402
from swift.common.utils import ShardRange, Timestamp, hash_path  # noqa: E402
from swift.container.backend import ContainerBroker  # noqa: E402
import time  # noqa: E402

PART_POWER = 2
KINDS = ('account', 'container')
BASE = int(time.time()) - 5000
OLD = BASE - 20 * 86400
SERVER_PORTS = {'container': PORTS[:NODES], 'account': free_ports(NODES)}


def stamp(n, base=BASE):
    return Timestamp(base + n).internal


def program(maker, name):
    return runner(ETC, 'swift-' + name) if maker == 'python' else [os.path.join(BIN, 'swift-' + name)]


def server_maker(node):
    return {'python': 'python', 'ours': 'ours', 'mixed': ('python', 'ours')[node % 2]}[SERVERS]


def rings(primaries=(0, 1, 2), regions=(1, 1, 1, 1, 1), replicas=3, ports=None, **_):
    for kind in KINDS:
        builder = RingBuilder(PART_POWER, replicas, 0)
        for node in range(NODES):
            port = (ports or {}).get(node, SERVER_PORTS[kind][node])
            builder.add_dev({'id': node, 'region': regions[node], 'zone': node, 'ip': '127.0.0.1', 'port': port,
                             'replication_ip': '127.0.0.1', 'replication_port': port, 'device': dev(node),
                             'weight': 100 if node in primaries else 0})
        builder.rebalance(seed='x')
        builder.get_ring().save(os.path.join(ETC, kind + '.ring.gz'))


class Tree:
    """Databases of all nodes before a case."""

    def __init__(self, top, kind):
        self.top, self.kind = top, kind
        for node in range(NODES):
            os.makedirs(os.path.join(self.device(node), kind + 's'))

    def device(self, node):
        return os.path.join(self.top, 'node%d' % node, dev(node))

    def names(self, name):
        return ('a', name) if self.kind == 'container' else (name,)

    def part(self, name):
        return Ring(ETC, ring_name=self.kind).get_part(*self.names(name))

    def db_file(self, node, name, part=None):
        hsh = hash_path(*self.names(name))
        return os.path.join(self.device(node), self.kind + 's', str(self.part(name) if part is None else part), hsh[-3:], hsh,
                            hsh + '.db')

    def broker(self, node, name, part=None):
        path = self.db_file(node, name, part)
        if self.kind == 'container':
            return ContainerBroker(path, account='a', container=name)
        return AccountBroker(path, account=name)

    def create(self, node, name, at=0, policy=0, part=None, base=BASE):
        broker = self.broker(node, name, part)
        broker.initialize(stamp(at, base), policy)
        # Not when the test was made: each replica says since when it has been.
        stat = 'container_info' if self.kind == 'container' else 'account_stat'
        with broker.get() as conn:
            conn.execute('UPDATE %s SET created_at = ?' % stat, (stamp(at + node, base),))
            conn.commit()
        return broker

    def rows(self, broker, numbers, at=100, deleted=False, base=BASE, policy=0, pending=False):
        for n in numbers:
            if self.kind == 'container':
                broker.put_object('o%03d \u00e9' % n, stamp(at + n, base), n, 'text/x', '%032x' % n, int(deleted),
                                  storage_policy_index=policy)
            else:
                put, delete = stamp(at + n, base), '0'
                if deleted:
                    put, delete = '0', stamp(at + n, base)
                broker.put_container('c%03d \u00e9' % n, put, delete, 0 if deleted else n, n, policy)
        if not pending:
            broker.get_info()

    def empty_stat(self, node, name):
        with contextlib.closing(sqlite3.connect(self.db_file(node, name))) as conn:
            conn.execute('DELETE FROM %s' % ('container_info' if self.kind == 'container' else 'account_stat'))
            conn.commit()

    def everywhere(self, name, nodes=(0, 1, 2), numbers=range(5), **how):
        for node in nodes:
            self.rows(self.create(node, name, **how), numbers)


def is_empty(path):
    """Whether a database has none of the tables that it should, or no row of statistics."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        stat = conn.execute("SELECT name FROM sqlite_master WHERE name IN ('account_stat', 'container_stat')").fetchone()
        return stat is None or conn.execute('SELECT count(*) FROM ' + stat[0]).fetchone()[0] == 0


class Side(ObjectSide):
    """One replicator with nodes, logs and figures of its own."""

    def __init__(self, maker, case, template):
        super().__init__(maker, case, template)
        self.tier = template.kind

    def take_request(self, packet):
        match = re.search(r'"REPLICATE ([^"]*)" (\d+) ', packet)
        if match:
            self.requests.append('%s %s' % match.groups())

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
[pipeline:main]
pipeline = %s-server
[app:%s-server]
use = egg:swift#%s
set log_udp_port = %d
set log_level = DEBUG
%s
[%s-replicator]
log_level = DEBUG
log_udp_port = %d
log_statsd_host = 127.0.0.1
log_statsd_port = %d
log_statsd_metric_prefix = here
databases_per_second = 1000
conn_timeout = 10
%s
[%s-auditor]
log_level = DEBUG
log_udp_port = %d
log_statsd_host = 127.0.0.1
log_statsd_port = %d
log_statsd_metric_prefix = here
''' % (ETC, self.top, node, SERVER_PORTS[self.tier][node], self.home, self.tier, self.tier, self.tier, self.servers.port,
                server_options, self.tier, self.log.port, self.statsd.port, options, self.tier, self.log.port, self.statsd.port))

    def rsyncd(self, modules):
        path = os.path.join(self.home, 'rsyncd.conf')
        with open(path, 'w') as fp:
            fp.write('address = 127.0.0.1\nport = %d\nuse chroot = no\nlog file = %s/rsyncd.log\nuid = root\ngid = root\n' % (
                RSYNC, self.home))
            for node in modules:
                fp.write('[db_%d]\npath = %s/node%d\nread only = no\nwrite only = no\n' % (
                    SERVER_PORTS[self.tier][node], self.top, node))
        return ['rsync', '--daemon', '--no-detach', '--config', path]

    def once(self, *args, node=0, daemon='replicator'):
        command = program(self.kind, '%s-%s' % (self.tier, daemon)) + [self.conf(node), 'once'] + list(args)
        subprocess.run(command, stdout=subprocess.DEVNULL, env=dict(os.environ, PYTHONWARNINGS='ignore'), check=True, timeout=120)
        self.settle()

    def recon(self):
        with open(os.path.join(self.home, self.tier + '.recon')) as fp:
            text = fp.read()
        return json.loads(re.sub(r'"(replication_(?:time|last)|start|\w*_completed)": ?[0-9.e+-]+', r'"\1": 0', text))

    def db_paths(self):
        for folder, _, files in os.walk(self.top):
            for name in files:
                if name.endswith('.db'):
                    yield os.path.join(folder, name)

    def databases(self, points=True):
        """What the databases hold, by their paths; databases are called by their nodes."""
        names, found = {}, {}
        tables = ('object', 'shard_range') if self.tier == 'container' else ('container',)
        paths = [path for path in self.db_paths() if '/quarantined/' not in path and not is_empty(path)]
        for path in paths:
            with contextlib.closing(sqlite3.connect(path)) as conn:
                assert conn.execute('PRAGMA integrity_check').fetchall() == [('ok',)], path
                names[conn.execute('SELECT id FROM %s_stat' % self.tier).fetchone()[0]] = re.search('node.', path)[0]
        for path in paths:
            with contextlib.closing(sqlite3.connect(path)) as conn:
                conn.row_factory = sqlite3.Row
                stat = dict(conn.execute('SELECT * FROM %s_stat' % self.tier).fetchone())
                stat.pop('id')
                stat['metadata'] = json.loads(stat.get('metadata') or '{}')
                for when in ('created_at', 'status_changed_at'):
                    if stat[when] > stamp(4000):
                        stat[when] = 'now'
                there = {row[0] for row in conn.execute('SELECT name FROM sqlite_master')}
                rows = [sorted(tuple(row)[1:] for row in conn.execute('SELECT * FROM ' + table)) if table in there else None
                        for table in tables]
                rows.append(sorted(map(tuple, conn.execute('SELECT * FROM policy_stat'))) if 'policy_stat' in there else None)
                rows.append(sorted(there))
                syncs = {way: sorted((names.get(row[0], 'gone'), row[1]) for row in conn.execute(
                    'SELECT remote_id, sync_point FROM %s_sync' % way)) for way in ('incoming', 'outgoing')} if points else {}
                found[os.path.relpath(path, self.top)] = json.dumps([stat, rows, syncs], sort_keys=True)
        return found

    def files(self):
        """Other files and empty directories."""
        found = []
        for folder, dirs, files in os.walk(self.top):
            if not dirs and not files:
                found.append(os.path.relpath(folder, self.top) + '/')
            found += [os.path.relpath(os.path.join(folder, name), self.top) for name in files if not name.startswith('.lock')]
        # Quarantine avoids a name that is taken by a random one; empty pending files say nothing.
        return sorted(re.sub('-[0-9a-f]{32}', '-UUID', path) for path in found
                      if not (path.endswith('.pending') and not os.path.getsize(os.path.join(self.top, path))))

    def said(self):
        def plain(line):
            line = line.replace(self.top, '').replace(self.home, '')
            line = re.sub(r'in [0-9.]+ seconds \([0-9.]+/s\)', 'in time', line)
            line = re.sub(r'\([0-9.e-]+g?s\)|completed: [0-9.]+s', '(time)', line)
            line = re.sub(r'(ERROR Could not get \w+ info [^ :]*).*', r'\1', line, flags=re.DOTALL)
            line = re.sub(r'[0-9a-f]{8}-[0-9a-f-]{27}-\w*', 'ID', line)
            # Nodes as dicts, tracebacks, and what the exceptions of each are called.
            line = re.sub(r'(ERROR (?:reading HTTP response from|syncing with|Remote drive not mounted)) .*', r'\1', line, flags=re.DOTALL)
            line = re.sub(r'(ERROR reading db).*(, path: [^,]*, db: \S*).*', r'\1', line, flags=re.DOTALL)
            line = re.sub(r'(ERROR reading db).*', r'\1', line, flags=re.DOTALL)
            line = re.sub(r'(Quarantining DB).*', r'\1', line)
            line = re.sub(r', own_sr: .*', '', line)
            line = re.sub(r'reconciler container \d+', 'reconciler container', line)
            return line
        # What rsync itself complains of has no logger with Swift.
        skip = ('Starting ', 'Exited ', 'SIGTERM', 'rsync', '@ERROR', 'STDERR', 'STDOUT', 'Loaded override', 'Cleaned up', 'Quarantined ')
        return sorted('%s %s' % (level, plain(line)) for level, line in self.lines if not line.startswith(skip))


OPTIONS = 'rsync_module = rsync://{replication_ip}:%d/db_{replication_port}\n' % RSYNC


class Case:
    """Both replicators on the same nodes. `up` are the nodes with servers, `rsync` those with rsync modules."""

    def __init__(self, name, kind, options='', up=(0, 1, 2, 3, 4), rsync=(0, 1, 2, 3, 4), args=(), daemon='replicator', **ring):
        self.daemon = daemon
        self.name, self.options, self.up, self.modules, self.args = '%s-%s' % (name, kind), options, up, rsync, args
        rings(**ring)
        self.template = Tree(os.path.join(SCRATCH, self.name + '-template'), kind)

    @contextlib.contextmanager
    def side(self, maker):
        side = Side(maker, self.name, self.template)
        with contextlib.ExitStack() as stack:
            for node in range(NODES):
                side.configure(node, OPTIONS + self.options)
            for node in self.up:
                command = program(server_maker(node), self.template.kind + '-server') + [side.conf(node)]
                stack.enter_context(running(command, SERVER_PORTS[self.template.kind][node]))
            if self.modules:
                stack.enter_context(running(side.rsyncd(self.modules), RSYNC, stderr=subprocess.DEVNULL))
            yield side

    def run(self, passes=((0,),), between=None, points=True, requests=True, ignore_log=()):
        """Passes on these nodes, one after the other; what both have left must be the same."""
        sides = []
        for maker in ('python', 'ours'):
            with self.side(maker) as side:
                for index, nodes in enumerate(passes):
                    if index and between:
                        between(side)
                    for node in nodes:
                        side.once(*self.args, node=node, daemon=self.daemon)
                side.settle()
            sides.append(side)
        python, ours = sides
        name = self.name
        same(name + ': log', *([line for line in side.said() if not any(part in line for part in ignore_log)] for side in sides))
        for what in ('recon', 'databases', 'files'):
            same('%s: %s' % (name, what), *(getattr(side, what)(*([points] if what == 'databases' else [])) for side in sides))
        same(name + ': metrics', dict(python.metrics), dict(ours.metrics))
        if requests:
            same(name + ': requests', sorted(python.requests), sorted(ours.requests))
        stats = ours.recon().get('replication_stats', {})
        print('%s: %d databases, %d requests, %d lines of log, %s' % (
            name, len(ours.databases()), len(ours.requests), len(ours.said()),
            ', '.join('%s %s' % item for item in sorted(stats.items()) if item[1])))
        return python, ours


def alike(side, name, nodes=(0, 1, 2)):
    """Whether the replicas of a database hold the same rows, counts, metadata and timestamps."""
    held = []
    hsh = hash_path(*((('a', name) if side.tier == 'container' else (name,))))
    for path, text in side.databases().items():
        if hsh in path:
            stat, rows, _ = json.loads(text)
            held.append([{key: value for key, value in stat.items() if 'point' not in key and not key.startswith('reported')
                          and key != 'status_changed_at'}, rows])
    assert len(held) == len(nodes), (name, len(held))
    for other in held[1:]:
        same('replicas of ' + name, [json.dumps(held[0])], [json.dumps(other)])


def each_kind(case):
    def both():
        for kind in KINDS:
            case(kind)
    both.__name__ = case.__name__
    return both


@each_kind
def in_sync(kind):
    """Replicas that are equal, and then once more; one that is empty; metadata and timestamps that differ."""
    case = Case('in_sync', kind)
    tree = case.template
    tree.everywhere('equal')
    tree.everywhere('empty', numbers=())
    meta = 'X-%s-Meta-' % kind.title()
    for node in range(3):
        broker = tree.create(node, 'meta', at=node * 2)
        broker.update_metadata({meta + 'A': ['of %d' % node, stamp(10 + node)], meta + 'B%d' % node: ['\u00fc', stamp(10)]})
    tree.broker(1, 'meta').update_metadata({meta + 'B1': ['', stamp(20)]})
    _, ours = case.run(passes=((0, 1, 2), (0,)))
    alike(ours, 'meta')


@each_kind
def usync(kind):
    """Rows that only one has, or all have in other versions; a chunk at a time; more than a pass sends."""
    for options in ('', 'per_diff = 2\nmax_diffs = 2\n'):
        case = Case('usync%d' % len(options), kind, options)
        tree = case.template
        tree.everywhere('one')
        tree.rows(tree.broker(0, 'one'), range(10, 14))
        tree.everywhere('all')
        for node in range(3):
            broker = tree.broker(node, 'all')
            tree.rows(broker, range(4), at=200 + 10 * node)
            tree.rows(broker, (30 + node,), pending=True)
            tree.rows(broker, (3 + node,), at=300, deleted=True)
        _, ours = case.run(passes=((0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 1, 2)))
        alike(ours, 'one')
        alike(ours, 'all')


@each_kind
def missing(kind):
    """Databases that only one node has travel by rsync; one of them is written to later."""
    case = Case('missing', kind)
    tree = case.template
    tree.everywhere('alone', nodes=(0,))
    tree.everywhere('two', nodes=(0, 2), numbers=range(3))
    tree.everywhere('empty', nodes=(0,), numbers=())

    def between(side):
        live = Tree.__new__(Tree)
        live.top, live.kind = side.top, kind
        live.rows(live.broker(1, 'alone'), range(20, 25))

    _, ours = case.run(passes=((0,), (1,), (0, 1, 2)), between=between)
    for name in ('alone', 'two', 'empty'):
        alike(ours, name)


@each_kind
def merged_by_rsync(kind):
    """One that lacks more than half gets the file, and keeps what only it has."""
    case = Case('merged_by_rsync', kind, 'per_diff = 4\n')
    tree = case.template
    tree.everywhere('c', numbers=range(2))
    # Swift waits for the merge half a millisecond for each of them.
    tree.rows(tree.broker(0, 'c'), range(1000, 6000))
    tree.rows(tree.broker(1, 'c'), range(40, 43))
    tree.broker(1, 'c').update_metadata({'X-%s-Meta-Kept' % kind.title(): ['k', stamp(50)]})
    # The sync point for the sender is ours on purpose.
    python, ours = case.run(passes=((0,),), points=False)
    python, ours = case.run_again(passes=((1, 2, 0), (0, 1, 2)))
    for side in (python, ours):
        alike(side, 'c')


def run_again(case, passes):
    """Further passes of each replicator on what it has left; only the ends are looked at."""
    sides = []
    for maker in ('python', 'ours'):
        shutil.rmtree(os.path.join(SCRATCH, '%s-%s' % (case.name, maker)))
        shutil.rmtree(os.path.join(SCRATCH, '%s-%s-home' % (case.name, maker)))
        with case.side(maker) as side:
            for nodes in passes:
                for node in nodes:
                    side.once(node=node)
        sides.append(side)
    return sides


Case.run_again = run_again


@each_kind
def handoffs(kind):
    """A handoff goes when all primaries have it, or as many as are asked for."""
    for index, (options, up) in enumerate((('', (0, 1, 2, 3, 4)), ('', (0, 1, 2)), ('handoff_delete = 2\n', (0, 1, 2)), ('handoffs_only = yes\n', (0, 1, 2, 3, 4)),
                        ('handoff_delete = 3\n', (0, 1, 2)))):
        case = Case('handoffs%d' % index, kind, options, up=up, primaries=(1, 2, 3))
        tree = case.template
        tree.everywhere('known', nodes=(0, 1, 2, 3))
        tree.rows(tree.broker(0, 'known'), range(10, 13))
        tree.everywhere('new', nodes=(0,))
        tree.everywhere('empty', nodes=(0,), numbers=())
        case.run(passes=((0,), (0, 1)))


@each_kind
def reclaimed(kind):
    """Old tombstones, metadata and whole databases go; what the account has not been told stays."""
    case = Case('reclaimed', kind)
    tree = case.template
    for node in range(3):
        broker = tree.create(node, 'rows', base=OLD)
        tree.rows(broker, range(3))
        tree.rows(broker, range(10, 15), deleted=True, base=OLD)
        tree.rows(broker, range(20, 22), deleted=True)
        broker.update_metadata({'X-%s-Meta-Old' % kind.title(): ['', stamp(1, OLD)], 'X-%s-Meta-New' % kind.title(): ['', stamp(1)]})
        for name in ('told', 'untold', 'full'):
            broker = tree.create(node, name, base=OLD)
            broker.delete_db(stamp(5, OLD))
            if name == 'full':
                tree.rows(broker, range(2))
            if name == 'told' and kind == 'container':
                info = broker.get_info()
                broker.reported(info['put_timestamp'], info['delete_timestamp'], info['object_count'], info['bytes_used'])
    tmp = os.path.join(tree.device(0), 'tmp')
    os.makedirs(tmp)
    for path in (os.path.join(tmp, 'old'), os.path.join(os.path.dirname(tree.db_file(0, 'rows')), 'x.tmp')):
        open(path, 'w').close()
        os.utime(path, (OLD, OLD))
    open(os.path.join(tmp, 'new'), 'w').close()
    case.run(passes=((0,), (0,)))


@each_kind
def misplaced(kind):
    """A database in the wrong partition goes to the right one."""
    case = Case('misplaced', kind)
    tree = case.template
    wrong = (tree.part('c') + 1) % 2 ** PART_POWER
    tree.rows(tree.create(0, 'c', part=wrong), range(4))
    tree.everywhere('d')
    # Not beside the right one: which of two partitions a pass comes to first is chance.
    tree.rows(tree.create(3, 'd', part=(tree.part('d') + 1) % 2 ** PART_POWER), range(10, 14))
    _, ours = case.run(passes=((0, 1, 3),))
    alike(ours, 'c')
    alike(ours, 'd')


@each_kind
def partners(kind):
    """Nodes that are down, have no rsync or no device: then it is a handoff's turn."""
    for up, modules in (((0, 2), (0, 2)), ((0, 1, 2), ()), ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4))):
        case = Case('partners%d%d' % (len(up), len(modules)), kind, up=up, rsync=modules)
        tree = case.template
        tree.everywhere('c', nodes=(0, 2))
        tree.everywhere('d', nodes=(0,))
        if len(up) == 5:
            shutil.rmtree(tree.device(1))
        case.run(passes=((0,), (0,)))


@each_kind
def damaged(kind):
    """Files that are no databases, have no tables or no row of statistics: they go to quarantine and come back from others."""
    case = Case('damaged', kind)
    tree = case.template
    for name in ('garbage', 'tables', 'good', 'remote', 'rowless', 'rowless there'):
        tree.everywhere(name)
    tree.empty_stat(0, 'rowless')
    if kind == 'account':
        tree.empty_stat(1, 'rowless there')  # Swift's container server would look for the row until there is one.
    with open(tree.db_file(0, 'garbage'), 'w') as fp:
        fp.write('x' * 10000)
    for node, name in ((0, 'tables'), (1, 'remote')):
        os.unlink(tree.db_file(node, name))
        with contextlib.closing(sqlite3.connect(tree.db_file(node, name))) as conn:
            conn.execute('CREATE TABLE other (x)')
            conn.commit()
    case.run(passes=((0,), (1,)))


@each_kind
def old_schemas(kind):
    """Databases of releases of long ago, on one side or on both."""
    case = Case('old_schemas', kind)
    tree = case.template

    def old(node, name, numbers, with_metadata):
        path = tree.db_file(node, name)
        make_old(path, kind, stamp(node), with_metadata, names=tree.names(name), db_id='old-%s-%d' % (name, node))
        with contextlib.closing(sqlite3.connect(path)) as conn:
            conn.create_function('chexor', 3, chexor)
            for n in numbers:
                if kind == 'container':
                    row = 'o%03d' % n, stamp(100 + n), n, 'text/x', '%032x' % n, 0
                else:
                    row = 'c%03d' % n, stamp(100 + n), '0', 0, n, 0
                conn.execute('INSERT INTO %s VALUES (NULL, ?, ?, ?, ?, ?, ?)' % {
                    'container': 'object', 'account': 'container'}[kind], row)
            conn.commit()

    for name, olds in (('ours', (0,)), ('theirs', (1,)), ('both', (0, 1)), ('all', (0, 1, 2))):
        tree.everywhere(name, nodes=[node for node in range(3) if node not in olds])
        for node in olds:
            old(node, name, range(3 * node, 3 * node + 3), with_metadata=node != 1)
    for age in (age for which, age in YOUNGER if which == kind):
        tree.everywhere(age)
        for node in (0, 1):
            tree.rows(tree.broker(node, age), range(10 + 3 * node, 13 + 3 * node))
            make_younger(tree.db_file(node, age), kind, age)
    case.run(passes=((0,), (1,)))


@each_kind
def overrides(kind):
    """Only given devices and partitions."""
    for args in (('-d', 'sd1'), ('-d', 'sd0,sd1'), ('-p', '1,3'), ('-p', '9')):
        case = Case('overrides-' + '-'.join(args).replace(',', ''), kind, args=args)
        for name in 'abcdefgh':
            case.template.everywhere(name, nodes=(0,), numbers=range(2))
        folder = os.path.join(case.template.device(0), kind + 's')
        for odd in ('x', '-1', '77'):
            os.makedirs(os.path.join(folder, odd))
        case.run()


@each_kind
def elsewhere(kind):
    """A machine that is not in the ring."""
    case = Case('elsewhere', kind, ports={0: NOBODY}, up=(1, 2))
    case.template.everywhere('c')
    case.run()


def policies():
    """Replicas that disagree on the policy; what is in the wrong one is queued."""
    case = Case('policies', 'container')
    tree = case.template
    for node in range(3):
        broker = tree.create(node, 'c', at=node, policy=node % 2)
        tree.rows(broker, range(3 * node, 3 * node + 3), policy=node % 2)
        tree.rows(broker, (50 + node,), deleted=True, policy=node % 2)
    _, ours = case.run(passes=((1,), (0, 1, 2), (0, 1, 2)), requests=False)
    alike(ours, 'c')
    assert any('misplaced' in text for text in ours.databases().values())
    # A queue on a node that is none of its primaries is moved in the same pass.
    case = Case('policies-handoff', 'container', primaries=(1, 2, 3))
    tree = case.template
    for node in range(4):
        broker = tree.create(node, 'c', at=node, policy=0)
        tree.rows(broker, range(3), policy=1)
    # Swift calls it a failure that the queue's removal has to wait.
    case.run(passes=((0,),), requests=False, ignore_log=('Successfully deleted db', 'Failed to delete db'))


def sharded():
    """Containers on their way into shards: shard ranges travel, rows do not; and what has been sharded by Swift's broker."""
    case = Case('sharded', 'container')
    tree = case.template

    def ranges(broker, state=ShardRange.ACTIVE, at=500):
        return [ShardRange('.shards_a/c-%d' % n, stamp(at), lower, upper, 3, 4, state=state)
                for n, (lower, upper) in enumerate((('', 'm'), ('m', '')))]

    for name in ('found', 'sharding', 'sharded', 'behind'):
        tree.everywhere(name, numbers=range(5) if name != 'sharded' else ())
        for node in (0, 1) if name != 'behind' else (1,):
            broker = tree.broker(node, name)
            broker.merge_shard_ranges(ranges(broker))
            if name == 'found':
                continue
            broker.enable_sharding(Timestamp(BASE + 600))
            if name == 'sharding':
                assert broker.set_sharding_state()
            if name == 'sharded':
                assert broker.set_sharding_state() and broker.set_sharded_state()
        tree.rows(tree.broker(0, name), range(20, 22), pending=True)
    case.run(passes=((0,), (1,), (2,)), requests=True)
    # On a handoff what is not sharded yet stays.
    case = Case('sharded-handoff', 'container', primaries=(1, 2, 3))
    tree = case.template
    for name in ('sharding', 'sharded'):
        tree.everywhere(name, nodes=(0, 1, 2, 3), numbers=())
        broker = tree.broker(0, name)
        broker.merge_shard_ranges(ranges(broker))
        broker.enable_sharding(Timestamp(BASE + 600))
        assert broker.set_sharding_state()
        if name == 'sharded':
            assert broker.set_sharded_state()
    case.run()


def synced():
    """The list of synced containers is kept by the replicator, too."""
    case = Case('synced', 'container', primaries=(0, 1, 2))
    tree = case.template
    for node in range(3):
        for name in ('on', 'off', 'half'):
            broker = tree.create(node, name)
            wanted = {'X-Container-Sync-To': ['http://127.0.0.1/v1/a/c' if name != 'off' else '', stamp(3)],
                      'X-Container-Sync-Key': ['k' if name == 'on' else '', stamp(3)]}
            broker.update_metadata(wanted)
    folder = tree.db_file(0, 'off').replace('/containers/', '/sync_containers/')
    os.makedirs(os.path.dirname(folder))
    os.symlink(tree.db_file(0, 'off'), folder)
    case.run()


@each_kind
def audited(kind):
    """Databases that are fine, deleted, garbage, without tables, or count wrong."""
    case = Case('audited', kind, up=(), rsync=(), daemon='auditor')
    tree = case.template
    for name in ('good', 'empty', 'deleted', 'garbage', 'tables', 'wrong', 'uncounted', 'rowless'):
        tree.rows(tree.create(0, name), range(0 if name in ('empty', 'deleted') else 4))
    tree.broker(0, 'deleted').delete_db(stamp(300))
    if kind == 'account':
        tree.empty_stat(0, 'rowless')  # as above
    with open(tree.db_file(0, 'garbage'), 'w') as fp:
        fp.write('x' * 10000)
    os.unlink(tree.db_file(0, 'tables'))
    for name, script in (('tables', 'CREATE TABLE other (x)'), ('wrong', 'UPDATE policy_stat SET bytes_used = 1000'),
                         ('uncounted', 'ALTER TABLE policy_stat DROP COLUMN container_count')):
        if name == 'uncounted' and kind == 'container':
            continue
        with contextlib.closing(sqlite3.connect(tree.db_file(0, name))) as conn:
            if name == 'uncounted':
                # As it was before policies counted their containers.
                conn.executescript('DROP TRIGGER container_insert_ps; DROP TRIGGER container_delete_ps;')
                conn.execute(script)
                conn.executescript('CREATE TRIGGER container_insert_ps AFTER INSERT ON container BEGIN SELECT 1; END;'
                                   'CREATE TRIGGER container_delete_ps AFTER DELETE ON container BEGIN SELECT 1; END;')
            else:
                conn.execute(script)
            conn.commit()
    case.run(passes=((0,), (0,)))


CASES = {case.__name__: case for case in (
    in_sync, usync, missing, merged_by_rsync, handoffs, reclaimed, misplaced, partners, damaged, overrides, elsewhere, policies,
    sharded, synced, audited, old_schemas)}
if __name__ == '__main__':
    for case_name in WANTED or CASES:
        CASES[case_name]()
