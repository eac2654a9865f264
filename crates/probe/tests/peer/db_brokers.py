"""Holds Martlet's account and container brokers against Swift's on the same files.

    python db_brokers.py path/to/examples/broker_peer [seed [rounds]]

Each round makes two databases, one by each implementation, and does the same random things to both, by brokers of
either side in turn. At times the pending files must hold the same bytes; in the end the rows, statistics, hashes,
metadata and listings must be equal, whoever reads which. So must they be when the databases have old schemas to begin with.
"""
import contextlib
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading

from swift.account.backend import AccountBroker
from swift.common.utils import ShardRange
from swift.common.utils.timestamp import Timestamp
from swift.container.backend import ContainerBroker

NAMES = ['a', 'b', 'a/b', 'a/b/c', 'a/', 'a0', 'a//b', 'b/a', 'é', 'é/x', 'é/ü', '€', '😀', '😀/1', 'A', 'z z', '/x',
         'x/', '\x00r', '\x00r/a', 'a-b', 'a-b/c', 'a+b', "q'\"", 'ab', 'abc', 'abcd/e']
TYPES = ['text/plain', 'text/plain; charset=utf-8', 'text/plain;swift_bytes=77', 'a/b; x = "y;z" ;swift_bytes=3', '',
         'application/x-é', 'a/b;c', 'a/b;swift_bytes=', 'x; swift_bytes=12; y=1']


class Peer:
    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, op, db_file, **what):
        self.process.stdin.write(json.dumps(dict(what, op=op, db=db_file)).encode() + b'\n')
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if isinstance(answer, dict) and 'error' in answer:
            raise AssertionError((op, db_file, what, answer['error']))
        return answer


def stamp(rng, offset=True):
    t = Timestamp(1700000000 + rng.randrange(60) + rng.randrange(3) / 10.0, offset=rng.choice([0, 0, 0, 5]))
    return t.internal if offset else t.normal


STAT = {
    'container': "account TEXT, container TEXT, created_at TEXT, put_timestamp TEXT DEFAULT '0', delete_timestamp TEXT "
                 "DEFAULT '0', object_count INTEGER, bytes_used INTEGER, reported_put_timestamp TEXT DEFAULT '0', "
                 "reported_delete_timestamp TEXT DEFAULT '0', reported_object_count INTEGER DEFAULT 0, "
                 "reported_bytes_used INTEGER DEFAULT 0, hash TEXT default '%s', id TEXT, status TEXT DEFAULT '', "
                 "status_changed_at TEXT DEFAULT '0'" % ('0' * 32),
    'account': "account TEXT, created_at TEXT, put_timestamp TEXT DEFAULT '0', delete_timestamp TEXT DEFAULT '0', "
               "container_count INTEGER, object_count INTEGER DEFAULT 0, bytes_used INTEGER DEFAULT 0, hash TEXT default "
               "'%s', id TEXT, status TEXT DEFAULT '', status_changed_at TEXT DEFAULT '0'" % ('0' * 32)}
ROWS = {'container': 'object (ROWID INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created_at TEXT, size INTEGER, '
                     'content_type TEXT, etag TEXT, deleted INTEGER DEFAULT 0)',
        'account': 'container (ROWID INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, put_timestamp TEXT, delete_timestamp '
                   'TEXT, object_count INTEGER, bytes_used INTEGER, deleted INTEGER DEFAULT 0)'}
UPDATES = {
    'container': ("object_count = object_count {0} (1 - {1}.deleted), bytes_used = bytes_used {0} {1}.size, "
                  "hash = chexor(hash, {1}.name, {1}.created_at)"),
    'account': ("container_count = container_count {0} (1 - {1}.deleted), object_count = object_count {0} "
                "{1}.object_count, bytes_used = bytes_used {0} {1}.bytes_used, hash = chexor(hash, {1}.name, "
                "{1}.put_timestamp || '-' || {1}.delete_timestamp || '-' || {1}.object_count || '-' || {1}.bytes_used)")}


def make_old(path, kind, timestamp, with_metadata, names=('a', 'c é'), db_id='id'):
    """A database from before storage policies, perhaps even from before metadata."""
    os.makedirs(os.path.dirname(path))
    db = sqlite3.connect(path)
    rows = 'object' if kind == 'container' else 'container'
    late = ", metadata TEXT DEFAULT ''" if with_metadata else ''
    if late and kind == 'container':
        late += ', x_container_sync_point1 INTEGER DEFAULT -1, x_container_sync_point2 INTEGER DEFAULT -1'
    db.executescript(
        'CREATE TABLE {k}_stat ({stat}{late}); CREATE TABLE {table}; '
        'CREATE INDEX ix_{r}_deleted_name ON {r} (deleted, name); '
        'CREATE TABLE outgoing_sync (remote_id TEXT UNIQUE, sync_point INTEGER, updated_at TEXT DEFAULT 0); '
        'CREATE TABLE incoming_sync (remote_id TEXT UNIQUE, sync_point INTEGER, updated_at TEXT DEFAULT 0); '
        'CREATE TRIGGER {r}_insert AFTER INSERT ON {r} BEGIN UPDATE {k}_stat SET {plus}; END; '
        'CREATE TRIGGER {r}_delete AFTER DELETE ON {r} BEGIN UPDATE {k}_stat SET {minus}; END; '.format(
            k=kind, r=rows, stat=STAT[kind], late=late, table=ROWS[kind], plus=UPDATES[kind].format('+', 'new'),
            minus=UPDATES[kind].format('-', 'old')))
    columns = {'account': names[0], 'created_at': timestamp, 'put_timestamp': timestamp, 'id': db_id, 'object_count': 0,
               'bytes_used': 0}
    columns.update({'container': names[1]} if kind == 'container' else {'container_count': 0})
    db.execute('INSERT INTO %s_stat (%s) VALUES (%s)' % (kind, ', '.join(columns), ', '.join('?' * len(columns))),
               list(columns.values()))
    db.commit()
    db.close()


SHARD_RANGE = (
    'CREATE TABLE shard_range (ROWID INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, timestamp TEXT, lower TEXT, upper TEXT, '
    'object_count INTEGER DEFAULT 0, bytes_used INTEGER DEFAULT 0, meta_timestamp TEXT, deleted INTEGER DEFAULT 0, state INTEGER, '
    'state_timestamp TEXT, epoch TEXT{0}); CREATE TRIGGER shard_range_update BEFORE UPDATE ON shard_range '
    "BEGIN SELECT RAISE(FAIL, 'UPDATE not allowed; DELETE and INSERT'); END;")
DROP_PS = 'DROP TRIGGER container_insert_ps; DROP TRIGGER container_delete_ps; '
UPDATE_PS = ('UPDATE policy_stat SET object_count = object_count {0} {1}.object_count, bytes_used = bytes_used {0} {1}.bytes_used '
             'WHERE storage_policy_index = {1}.storage_policy_index; END; ')
# What makes a database of today one of some years ago.
YOUNGER = {
    ('container', 'unsharded'): 'DROP TABLE shard_range;',
    ('container', 'unreported'): 'DROP TABLE shard_range; ' + SHARD_RANGE.format(''),
    ('container', 'uncounted'): 'DROP TABLE shard_range; ' + SHARD_RANGE.format(', reported INTEGER DEFAULT 0'),
    ('account', 'uncounted'): (
        DROP_PS + 'ALTER TABLE policy_stat DROP COLUMN container_count; '
        'CREATE TRIGGER container_insert_ps AFTER INSERT ON container BEGIN INSERT OR IGNORE INTO policy_stat '
        '(storage_policy_index, object_count, bytes_used) VALUES (new.storage_policy_index, 0, 0); ' + UPDATE_PS.format('+', 'new') +
        'CREATE TRIGGER container_delete_ps AFTER DELETE ON container BEGIN ' + UPDATE_PS.format('-', 'old'))}


def make_younger(path, kind, age):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(YOUNGER[kind, age])


def maybe(rng, make):
    return make() if rng.random() < .3 else None


def random_query(rng):
    name = lambda: rng.choice(NAMES + ['b', 'a/b', 'x', '', 'zzz'])
    return {
        'limit': rng.choice([0, 1, 2, 3, 5, 10000]),
        'marker': rng.choice(['', '', name()]), 'end_marker': rng.choice(['', '', name()]),
        'prefix': rng.choice([None, None, '', 'a', 'a/', 'é', 'a/b', '\x00', name()]),
        'delimiter': rng.choice(['', '/', '/', 'b', '//', 'é', '-b']),
        'path': rng.choice([None, None, None, '', 'a', 'a/', 'é', 'x']),
        'reverse': rng.random() < .4, 'allow_reserved': rng.random() < .5}


class Side:
    """A database of one maker, and brokers of both on it."""

    def __init__(self, peer, root, kind):
        self.peer = peer
        self.path = os.path.join(root, 'dev', kind + 's', '1', 'abc', 'd' * 32, 'd' * 32 + '.db')
        self.kind = kind

    def broker(self):
        if self.kind == 'account':
            return AccountBroker(self.path, account='a')
        return ContainerBroker(self.path, account='a', container='c é')

    def dump(self):
        db = sqlite3.connect(self.path)
        table = 'container' if self.kind == 'account' else 'object'
        columns = [c[1] for c in db.execute('PRAGMA table_info(%s)' % table)]
        rows = sorted(db.execute('SELECT * FROM ' + table), key=repr)
        has_ranges = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'shard_range'").fetchone()
        ranges = sorted([row[1:] for row in db.execute('SELECT * FROM shard_range')], key=repr) if has_ranges else None
        shape = sorted(
            (t, n, [tuple(c[1:]) for c in db.execute('PRAGMA table_info(%s)' % n)] if t in ('table', 'view') else None)
            for t, n in db.execute('SELECT type, name FROM sqlite_master'))
        assert db.execute('PRAGMA integrity_check').fetchone()[0] == 'ok'
        db.close()
        return columns, [row[1:] for row in rows], ranges, shape


def python_container_info(broker):
    info = broker.get_info()
    info.pop('x_container_sync_point1'), info.pop('x_container_sync_point2')
    stats = [[k, v['object_count'], v['bytes_used']] for k, v in broker.get_policy_stats().items()]
    return dict(info, is_deleted=broker.is_deleted(), empty=broker.empty(), policy_stats=stats,
                metadata=json.dumps(broker.metadata), is_root=broker.is_root_container(),
                shard_ranges=[dict(r) for r in broker.get_all_shard_range_data()])


def python_account_info(broker):
    stats = [[k, v.get('container_count'), v['object_count'], v['bytes_used']]
             for k, v in broker.get_policy_stats().items()]
    return dict(broker.get_info(), is_deleted=broker.is_deleted(), is_status_deleted=broker.is_status_deleted(),
                policy_stats=stats, metadata=json.dumps(broker.metadata))


def container_step(rng, side, us, arguments):
    op, a = arguments
    if us:
        side.peer(op, side.path, **a)
        return
    with side.broker() as broker:
        if op == 'put':
            broker.put_object(a['name'], a['created_at'], a['size'], a['content_type'], a['etag'], a['deleted'],
                              a['policy'], a['ctype_timestamp'], a['meta_timestamp'])
        elif op == 'merge':
            item = {k: v for k, v in a.items() if k != 'policy'}
            broker.merge_items([dict(item, storage_policy_index=a['policy'])])
        elif op == 'delete_db':
            broker.delete_db(a['timestamp'])
        elif op == 'put_timestamp':
            broker.update_put_timestamp(a['timestamp'])
        elif op == 'metadata':
            broker.update_metadata(a['metadata'])
        elif op == 'policy':
            broker.set_storage_policy_index(a['policy'], a['timestamp'])
        elif op == 'shards':
            broker.merge_shard_ranges([ShardRange.from_dict(item) for item in a['ranges']])
        elif op == 'reported':
            i = broker.get_info()
            broker.reported(i['put_timestamp'], i['delete_timestamp'], i['object_count'], i['bytes_used'])


def random_shard_range(rng):
    # Names and bounds belong together, and each is made but once, as a sharder does it.
    number = rng.randrange(3)
    return dict(ShardRange(
        '.shards_a/c-%d' % number, '1700000000.00000', ('', 'h', 'p')[number], ('h', 'p', '')[number], rng.randrange(9),
        rng.randrange(99), meta_timestamp=stamp(rng, False), state=rng.choice([ShardRange.FOUND, ShardRange.CREATED, ShardRange.ACTIVE]),
        state_timestamp=stamp(rng, False), tombstones=rng.choice([-1, 4])))


def random_container_step(rng):
    op = rng.choice(['put'] * 14 + ['merge'] * 3 + ['metadata', 'policy', 'put_timestamp', 'delete_db', 'reported', 'shards'])
    if op in ('put', 'merge'):
        deleted = int(rng.random() < .2)
        a = dict(name=rng.choice(NAMES), created_at=stamp(rng), size=rng.choice([0, 1, 5, 2 ** 40]),
                 content_type=rng.choice(TYPES), etag='e%d' % rng.randrange(9), deleted=deleted,
                 policy=rng.choice([0, 0, 0, 1]), ctype_timestamp=maybe(rng, lambda: stamp(rng)),
                 meta_timestamp=maybe(rng, lambda: stamp(rng)))
        if deleted:
            a.update(size=0, content_type='application/deleted', etag='noetag')
    elif op == 'metadata':
        a = {'metadata': {'X-Container-Meta-' + rng.choice('ABé'): (rng.choice(['', 'v', 'ü"\\\x7f']), stamp(rng))}}
    elif op == 'shards':
        a = {'ranges': [random_shard_range(rng) for _ in range(rng.randrange(1, 3))]}
    elif op == 'policy':
        a = {'policy': rng.choice([0, 1]), 'timestamp': stamp(rng, False)}
    else:
        a = {'timestamp': stamp(rng, False)}
    return op, a


def account_step(rng, side, us, arguments):
    op, a = arguments
    if us:
        side.peer(op, side.path, **a)
        return
    with side.broker() as broker:
        if op == 'put':
            broker.put_container(a['name'], a['put_timestamp'], a['delete_timestamp'], a['object_count'],
                                 a['bytes_used'], a['policy'])
        elif op == 'delete_db':
            broker.delete_db(a['timestamp'])
        elif op == 'put_timestamp':
            broker.update_put_timestamp(a['timestamp'])
        elif op == 'metadata':
            broker.update_metadata(a['metadata'])


def random_account_step(rng):
    op = rng.choice(['put'] * 14 + ['metadata', 'put_timestamp', 'delete_db'])
    if op == 'put':
        a = dict(name=rng.choice(NAMES), put_timestamp=stamp(rng, False),
                 delete_timestamp=rng.choice(['0', stamp(rng, False)]), object_count=rng.choice([0, '0', 3, '12']),
                 bytes_used=rng.choice([0, '0', 3, '1200']), policy=rng.choice([0, '0', 1, '1']))
    elif op == 'metadata':
        a = {'metadata': {'X-Account-Meta-' + rng.choice('ABé'): (rng.choice(['', 'v', 'ü"\\']), stamp(rng))}}
    else:
        a = {'timestamp': stamp(rng, False)}
    return op, a


def pending(path):
    try:
        with open(path + '.pending', 'rb') as f:
            return f.read()
    except FileNotFoundError:
        return b''


def equal(ours, theirs, *what):
    assert ours == theirs, '\n'.join(['%r' % (w,) for w in what] + ['ours   %r' % (ours,), 'theirs %r' % (theirs,)])


def a_round(peer, rng, kind, age):
    root = tempfile.mkdtemp(prefix='db-brokers-')
    sides = [Side(peer, os.path.join(root, maker), kind) for maker in ('ours', 'theirs')]
    step, make, python_info = {
        'account': (account_step, random_account_step, python_account_info),
        'container': (container_step, random_container_step, python_container_info)}[kind]
    first = stamp(rng, False)
    if age not in ('old', 'ancient'):
        sides[0].peer('create', sides[0].path, account='a', container='c é', timestamp=first, policy=0)
        with sides[1].broker() as broker:
            broker.initialize(first, 0)
        for side in sides:
            if age != 'new':
                make_younger(side.path, kind, age)
    else:
        for side in sides:
            make_old(side.path, kind, first, age == 'old')
    for _ in range(rng.choice([3, 30, 120])):
        if rng.random() < .1:
            # Both files have the same history and are read at the same moments, so what is pending is the same, too.
            equal(pending(sides[0].path), pending(sides[1].path), 'pending')
            us = rng.random() < .5
            for side in sides:
                side.peer('info', side.path) if us else python_info(side.broker())
        else:
            arguments = make(rng)
            # Not the same maker's broker on both files, and neither always its own.
            us = rng.random() < .5
            step(rng, sides[0], us, arguments)
            step(rng, sides[1], not us, arguments)
    for side in sides:
        ours, theirs = side.peer('info', side.path), python_info(side.broker())
        if kind == 'container':
            theirs['db_state'] = str(theirs['db_state'])
        equal(ours, json.loads(json.dumps(theirs)), 'info', side.path)
        for _ in range(40):
            q = random_query(rng)
            if kind == 'account':
                q['path'] = None
                theirs = side.broker().list_containers_iter(
                    q['limit'], q['marker'], q['end_marker'], q['prefix'], q['delimiter'], q['reverse'],
                    q['allow_reserved'])
            else:
                q['policy'] = rng.choice([0, 0, 1])
                theirs = side.broker().list_objects_iter(
                    q['limit'], q['marker'], q['end_marker'], q['prefix'], q['delimiter'], q['path'], q['policy'],
                    q['reverse'], allow_reserved=q['allow_reserved'])
            equal(side.peer('list', side.path, **q), [list(row) for row in theirs], 'list', q, side.path)
    equal(sides[0].dump(), sides[1].dump(), 'rows and schema')
    volatile = ('id', 'created_at')
    infos = [{k: v for k, v in python_info(side.broker()).items() if k not in volatile} for side in sides]
    equal(infos[0], infos[1], 'info of both')
    shutil.rmtree(root)


def at_once(peer, kind):
    """Both implementations write and read one database at the same time; no row may be lost."""
    root = tempfile.mkdtemp(prefix='db-brokers-')
    side = Side(peer, root, kind)
    with side.broker() as broker:
        broker.initialize(stamp(random.Random(0), False), 0)
    rows = 400

    def we_write():
        for n in range(rows):
            if kind == 'account':
                peer('put', side.path, name='ours%d' % n, put_timestamp='1', delete_timestamp='0', object_count=1, bytes_used=1)
            else:
                peer('put', side.path, name='ours%d' % n, created_at='1', size=1, content_type='t', etag='e')
            if n % 7 == 0:
                peer('info', side.path)

    writer = threading.Thread(target=we_write)
    writer.start()
    for n in range(rows):
        with side.broker() as broker:
            if kind == 'account':
                broker.put_container('theirs%d' % n, '1', '0', 1, 1, 0)
            else:
                broker.put_object('theirs%d' % n, '1', 1, 't', 'e')
            if n % 9 == 0:
                broker.get_info()
    writer.join()
    count = 'container_count' if kind == 'account' else 'object_count'
    equal(side.peer('info', side.path)[count], 2 * rows, 'rows written at once')
    equal(side.broker().get_info()['hash'], side.peer('info', side.path)['hash'], 'hash')
    side.dump()
    shutil.rmtree(root)


def main():
    program, seed, rounds = (sys.argv[1:] + ['', ''])[:3]
    peer = Peer(program)
    for kind in ('container', 'account'):
        at_once(peer, kind)
    for number in range(int(rounds or 40)):
        for kind, age in list(itertools.product(('container', 'account'), ('new', 'old', 'ancient'))) + list(YOUNGER):
            name = '%s/%s/%s/%s' % (seed or 0, number, kind, age)
            try:
                a_round(peer, random.Random(name), kind, age)
            except BaseException:
                print('in round', name)
                raise
    print('equal in %s rounds' % (rounds or 40))


if __name__ == '__main__':
    main()
