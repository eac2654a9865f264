"""Holds the REPLICATE verb of Martlet's account and container servers against Swift's.

    python db_replicate.py path/to/examples/db_server

Both get the same requests in the same order, and databases as rsync would bring them; answers must be the same bytes, save for ids and
the time of day, and so must be what the databases hold afterwards. What our servers know of databases that they have been asked for
before they must forget as soon as Swift's brokers, or SQLite alone, have changed them.
"""
import collections
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
import time

from db_servers import both_sides, compare, stamp
from swift.account.backend import AccountBroker
from swift.common.utils import Timestamp
from swift.container.backend import ContainerBroker

ZERO = '0' * 32


def hash_of(*names):
    return hashlib.md5(b'p/' + '/'.join(names).encode() + b's').hexdigest()


def call(*words):
    return json.dumps(words).encode()


def sync(max_row=-1, hash_=ZERO, id_='peer', put=stamp(1), delete='0', metadata='', created=stamp(0), policy=()):
    return call('sync', max_row, hash_, id_, created, put, delete, metadata, *policy)


def item(kind, n, rowid, **changed):
    if kind == 'container':
        row = {'ROWID': rowid, 'name': 'o%d é' % n, 'created_at': stamp(20 + rowid), 'size': n, 'content_type': 'a/b',
               'etag': '%032x' % n, 'deleted': 0, 'storage_policy_index': 0}
    else:
        row = {'ROWID': rowid, 'name': 'c%d é' % n, 'put_timestamp': stamp(20 + rowid), 'delete_timestamp': '0000000000.00000',
               'object_count': n, 'bytes_used': n * 10, 'deleted': 0, 'storage_policy_index': 0}
    return dict(row, **changed)


def shard(name, upper='', at=30, **changed):
    return dict({'name': name, 'timestamp': stamp(at), 'lower': '', 'upper': upper, 'object_count': 3, 'bytes_used': 5,
                 'meta_timestamp': stamp(at), 'deleted': 0, 'state': 40, 'state_timestamp': stamp(at), 'epoch': None,
                 'reported': 0, 'tombstones': -1}, **changed)


def requests(kind):
    names = ('a', 'c') if kind == 'container' else ('a',)
    path = '/sda/9/' + '/'.join(names)
    at = '/sda/9/' + hash_of(*names)
    ts = lambda n: ('X-Timestamp', stamp(n))
    ask = lambda body, path=at: ('REPLICATE', path, [('Content-Type', 'application/json')], body)
    for body in (b'', b'nonsense', b'5', b'"x"', b'null', b'[]', b'{}', call('nonsense'), call('sync'), sync(), call('merge_items'),
                 call('complete_rsync'), call('complete_rsync', 'no'), call('rsync_then_merge', 'no')):
        yield ask(body)
    for wrong in ('/', '/sda', '/sda/9', at + '/x', at + '/', '/../9/' + ZERO, '/sda/../' + ZERO, '/sdb/9/' + ZERO):
        yield ask(sync(), wrong)
    yield 'PUT', path, [ts(10), ('X-%s-Meta-A' % kind.title(), 'a'), ('X-%s-Meta-Ü' % kind.title(), 'ü')], b''
    for body in (b'nonsense', b'5', b'[]', b'{}', call('nonsense'), call('sync'), call('sync', 'x'), call('merge_items'),
                 call('merge_syncs'), call('complete_rsync', 'no'), call('rsync_then_merge', 'no')):
        yield ask(body)
    # Timestamps and metadata are merged, and told as they were before; an equal hash moves the sync point.
    yield ask(sync())
    yield ask(sync(max_row=7))
    yield ask(sync(max_row=5))
    yield ask(sync(max_row=9, hash_='1' * 32))
    meta = 'X-%s-Meta-' % kind.title()
    yield ask(sync(put=stamp(12), metadata=json.dumps({meta + 'A': ['newer', stamp(11)], meta + 'B': ['ß', stamp(9)]})))
    yield ask(sync(put=stamp(11), delete=stamp(5), metadata=json.dumps({meta + 'A': ['older', stamp(8)]})))
    yield ask(sync(metadata='nonsense'))
    yield ask(sync(id_='other', max_row=3))
    yield 'HEAD', path, [], b''
    # Rows in two batches, the first once more, with an older row between.
    first = [item(kind, n, n) for n in range(1, 6)]
    yield ask(call('merge_items', first, 'peer2'))
    yield ask(sync(id_='peer2'))
    yield ask(call('merge_items', [item(kind, 2, 6, **{'deleted': 1, 'object_count': 0, 'delete_timestamp': stamp(90)}
                                        if kind == 'account' else {'deleted': 1, 'size': 0}), item(kind, 9, 8)], 'peer2'))
    yield ask(call('merge_items', first, 'peer2'))
    yield ask(call('merge_items', first))
    yield ask(call('merge_items', first, None))
    yield ask(call('merge_items', [{'name': 'half'}], 'peer2'))
    yield ask(call('merge_items', [dict(item(kind, 10, 9), storage_policy_index=1)], 'peer2'))
    yield ask(sync(id_='peer2', max_row=4))
    yield 'GET', path + '?format=json', [], b''
    yield 'GET', path + '?format=json', [('X-Backend-Storage-Policy-Index', '1')], b''
    yield ask(call('merge_syncs', [{'remote_id': 'x', 'sync_point': 4}, {'remote_id': 'peer2', 'sync_point': 2},
                                   {'remote_id': 'peer', 'sync_point': 70}]))
    yield ask(call('merge_syncs', []))
    yield ask(sync(id_='x'))
    yield ask(sync(id_='peer2'))
    yield ask(sync())
    # A deletion elsewhere is ours too as long as nothing is in it.
    gone = ('a', 'gone') if kind == 'container' else ('gone',)
    at_gone = '/sda/9/' + hash_of(*gone)
    yield 'PUT', '/sda/9/' + '/'.join(gone), [ts(10)], b''
    yield ask(sync(put=stamp(10), delete=stamp(11)), at_gone)
    yield 'HEAD', '/sda/9/' + '/'.join(gone), [], b''
    yield ask(sync(put=stamp(12), delete=stamp(11)), at_gone)
    yield 'HEAD', '/sda/9/' + '/'.join(gone), [], b''
    if kind == 'container':
        yield from container_requests(ask, path)


def container_requests(ask, path):
    # Policies: created first is right, and recreated is righter.
    at = '/sda/9/' + hash_of('a', 'policy')
    put = lambda n, policy: ('PUT', '/sda/9/a/policy', [('X-Timestamp', stamp(n)), ('X-Backend-Storage-Policy-Index', policy)], b'')
    theirs = lambda put, delete, changed, count, policy: ask(sync(
        put=stamp(put), delete=delete, policy=(stamp(changed), count, policy)), at)
    yield put(10, '1')
    yield theirs(11, '0', 11, 0, 0)
    yield theirs(9, '0', 9, 0, 1)
    yield theirs(9, '0', 9, 3, 0)
    yield ask(sync(put=stamp(9)), at)
    yield theirs(20, stamp(15), 20, 0, 1)
    yield ask(sync(put=stamp(9)), at)
    yield ask(sync(put=stamp(9), policy=(stamp(1), 1)), at)
    # Shard ranges.
    yield ask(call('get_shard_ranges'))
    yield ask(call('merge_shard_ranges', [], 'x'))
    yield ask(call('merge_shard_ranges', [shard('.shards_a/c2'), shard('.shards_a/c1', 'm é'), shard('a/c', at=29)], 'x'))
    yield ask(call('get_shard_ranges'))
    yield ask(call('merge_shard_ranges', [shard('.shards_a/c1', 'x', at=29), shard('.shards_a/c2', meta_timestamp=stamp(35), object_count=7),
                                          shard('.shards_a/c3', 'z', deleted=1)], 'x'))
    yield ask(call('merge_shard_ranges', [shard('a/c', at=29, state=60, state_timestamp=stamp(36), epoch=stamp(36))], 'x'))
    yield ask(call('get_shard_ranges'))
    # One without epoch does not undo one with.
    yield ask(call('merge_shard_ranges', [shard('a/c', at=40)], 'x'))
    yield ask(call('merge_shard_ranges', [{'name': 'half'}], 'x'))
    yield ask(call('merge_shard_ranges'))
    yield ask(call('get_shard_ranges'))
    yield ask(sync())
    yield 'HEAD', path, [], b''
    # What is being sharded is not merged into what rsync brings.
    yield ask(call('rsync_then_merge', 'sharding'))


# What differs between two nodes: ids, and when something was done.
MASKS = [(rb'("(?:id|remote_id)": ")[0-9a-f-]{36}-[^"]*', rb'\1ID'), (rb'("created_at": ")17[6-9]\d{7}\.\d{5}', rb'\1NOW'),
         (rb'("status_changed_at": ")17[6-9]\d{7}\.\d{5}', rb'\1NOW')]


def masked(answer):
    status, headers, body = answer
    for pattern, text in MASKS:
        body = re.sub(pattern, text, body)
    # The length of an id is that of its device's name, which Swift takes from the wrong folder after rsync.
    is_parse_error = b' 400 ' in status and b'Content-Type: text/plain' in headers
    if is_parse_error:
        body = b''  # a JSON parser's own words
    unlike = b'"ID"' in body or is_parse_error
    headers = [h for h in headers if not (unlike and h.startswith(b'Content-Length'))]
    return status, [h for h in headers if not re.match(rb'X-Backend-Status-Changed-At: 17[6-9]', h)], body


def databases(side):
    """Every database's contents, by its path below the device."""
    found = {}
    for top, _, files in os.walk(os.path.join(side.devices, 'sda')):
        for name in files:
            if not name.endswith('.db'):
                continue
            path = os.path.join(top, name)
            conn = sqlite3.connect(path)
            assert conn.execute('PRAGMA integrity_check').fetchall() == [('ok',)], path
            kind = 'account' if '/accounts/' in path else 'container'
            rows = conn.execute('SELECT * FROM %s ORDER BY ROWID' % ('container' if kind == 'account' else 'object')).fetchall()
            syncs = [sorted(conn.execute('SELECT remote_id, sync_point FROM %s_sync' % way)) for way in ('incoming', 'outgoing')]
            # Rows that came in, whose order in a transaction is nobody's business, by name.
            rows = sorted(row[1:] for row in rows)
            stat = conn.execute('SELECT put_timestamp, delete_timestamp, hash, metadata, object_count, bytes_used FROM %s_stat'
                                % kind).fetchall()
            conn.close()
            found[os.path.relpath(path, side.devices)] = rows, syncs, stat
    return found


def db_file(side, datadir, names):
    hsh = hash_of(*names)
    return os.path.join(side.devices, 'sda', datadir, '9', hsh[-3:], hsh, hsh + '.db')


def by_rsync(side, kind):
    """Databases that come as files: to where there is none, where there is one, and cut off ones. Yields requests."""
    datadir = kind + 's'
    tmp = os.path.join(side.devices, 'sda', 'tmp')
    os.makedirs(tmp, exist_ok=True)
    source = ('a', 'source') if kind == 'container' else ('source',)
    target = ('a', 'target') if kind == 'container' else ('target',)
    at = '/sda/9/' + hash_of(*target)
    ask = lambda *words: ('REPLICATE', at, [('Content-Type', 'application/json')], call(*words))

    def row(names, n, size):
        path = '/sda/9/%s/r%d' % ('/'.join(names), n)
        times = [('X-Timestamp', stamp(20 + n))]
        if kind == 'container':
            return 'PUT', path, times + [('X-Size', str(size)), ('X-Content-Type', 't'), ('X-Etag', 'e')], b''
        return 'PUT', path, times + [('X-Put-Timestamp', stamp(20 + n)), ('X-Delete-Timestamp', '0'), ('X-Object-Count', str(size)),
                                     ('X-Bytes-Used', '0')], b''

    def brought(name):
        shutil.copy(db_file(side, datadir, source), os.path.join(tmp, name))

    for names in (source, ('a', 'x') if kind == 'container' else ('x',)):
        yield 'PUT', '/sda/9/' + '/'.join(names), [('X-Timestamp', stamp(10))], b''
    for n in range(20):
        yield row(source, n, n)
    yield 'GET', '/sda/9/' + '/'.join(source), [], b''
    brought('peer-1')
    os.makedirs(os.path.join(tmp, 'folder'), exist_ok=True)
    yield ask('rsync_then_merge', 'peer-1')
    yield ask('complete_rsync', '../../secret')
    yield ask('complete_rsync', 'peer-1', hash_of(*target) + '.db')
    yield ask('complete_rsync', 'peer-1', hash_of(*target) + '.db')
    yield 'GET', '/sda/9/%s?format=json' % '/'.join(target), [], b''
    yield row(target, 50, 7)
    yield row(target, 3, 70)
    brought('peer-2')
    yield ask('complete_rsync', 'peer-2', hash_of(*target) + '.db')
    yield 'POST', '/sda/9/' + '/'.join(target), [('X-Timestamp', stamp(60)), ('X-%s-Meta-Kept' % kind.title(), 'kept')], b''
    yield row(target, 51, 8)
    yield ask('rsync_then_merge', 'peer-2')
    assert not os.path.exists(os.path.join(tmp, 'peer-2'))
    yield 'GET', '/sda/9/%s?format=json' % '/'.join(target), [], b''
    yield 'HEAD', '/sda/9/' + '/'.join(target), [], b''


def in_place(path, sql):
    """Nothing appears beside the file meanwhile."""
    conn = sqlite3.connect(path)
    conn.executescript('PRAGMA journal_mode = OFF; ' + sql)
    conn.close()


def shard_it(broker):
    broker.enable_sharding(Timestamp(stamp(70)))
    assert broker.set_sharding_state()


# What is done to a database that a server knows: by Swift's brokers, and by SQLite alone.
CHANGES = {
    'metadata': lambda kind, b: b.update_metadata({'X-%s-Meta-A' % kind.title(): ('a', stamp(60))}),
    'delete': lambda kind, b: b.delete_db(stamp(60)),
    'put': lambda kind, b: b.update_put_timestamp(stamp(60)),
    'syncs': lambda kind, b: b.merge_syncs([{'remote_id': 'peer', 'sync_point': 8}]),
    'rows': lambda kind, b: b.merge_items([item(kind, 1, 1)]),
    'pending': lambda kind, b: b.put_object('o', stamp(50), 1, 'a/b', 'e') if kind == 'container' else b.put_container(
        'c', stamp(50), '0', 1, 1, 0),
    'sqlite': lambda kind, b: in_place(b.db_file, "UPDATE %s SET put_timestamp = '%s'" % (
        'container_info' if kind == 'container' else 'account_stat', stamp(61))),
    'moved': lambda kind, b: os.rename(b.db_dir, b.db_dir + '-away'),
}
OF_CONTAINERS = {
    'policy': lambda kind, b: b.set_storage_policy_index(1, stamp(60)),
    'sync_to': lambda kind, b: b.set_x_container_sync_points(4, 3),
    'reported': lambda kind, b: b.reported(stamp(10), '0', 5, 6),
    'sharding': lambda kind, b: shard_it(b),
}


def known(kind, ours, theirs):
    """Every change of a database that ours knows is seen; yields what was asked, and both answers."""
    changes = dict(CHANGES, **OF_CONTAINERS) if kind == 'container' else CHANGES
    names = lambda name: ('a', 'known-' + name) if kind == 'container' else ('known-' + name,)
    ask = lambda side, name: side.servers[kind].ask('REPLICATE', '/sda/9/' + hash_of(*names(name)), [], sync(put=stamp(10)))
    for name in changes:
        for side in (ours, theirs):
            side.servers[kind].ask('PUT', '/sda/9/' + '/'.join(names(name)), [('X-Timestamp', stamp(10))], b'')
            ask(side, name)
    # Older than two seconds, as the kernel's clock has it.
    path = lambda side, name: db_file(side, kind + 's', names(name))
    while any(time.time() - os.stat(p).st_ctime < 2.1 for n in changes for p in (path(ours, n), os.path.dirname(path(ours, n)))):
        time.sleep(.05)
    before = {name: masked(ask(ours, name)) for name in changes}
    for name, change in changes.items():
        conn = sqlite3.connect(path(ours, name), isolation_level=None)
        conn.execute('BEGIN EXCLUSIVE')
        start = time.time()
        assert masked(ask(ours, name)) == before[name], 'a database that is not to be read is'
        assert time.time() - start < 20
        conn.close()
    for name, change in changes.items():
        answers = []
        for side in (ours, theirs):
            if kind == 'container':
                broker = ContainerBroker(path(side, name), account='a', container=names(name)[1])
            else:
                broker = AccountBroker(path(side, name), account=names(name)[0])
            change(kind, broker)
            answers.append(masked(ask(side, name)))
        assert answers[0] != before[name], name
        yield (kind, 'known', name), answers


def main():
    root, ours, theirs = both_sides('db-replicate-')
    failures, statuses = [], collections.Counter()
    try:
        ours.start()
        theirs.start()
        for kind in ('account', 'container'):
            for step in (lambda side: requests(kind), lambda side: by_rsync(side, kind)):
                for one, other in zip(step(ours), step(theirs)):
                    assert one == other
                    answers = [masked(side.servers[kind].ask(*one)) for side in (ours, theirs)]
                    compare((kind,) + one, *answers, failures)
                    statuses[answers[1][0].split()[1]] += 1
            for asked, answers in known(kind, ours, theirs):
                compare(asked, *answers, failures)
                statuses[answers[1][0].split()[1]] += 1
        one, other = databases(ours), databases(theirs)
        assert one.keys() == other.keys(), (one.keys(), other.keys())
        for path in one:
            target = hash_of('a', 'target') in path or hash_of('target') in path
            for what, a, b in zip(('rows', 'syncs', 'stat'), one[path], other[path]):
                # After rsync_then_merge the sync point of who sent is ours on purpose.
                if a != b and not (what == 'syncs' and target):
                    failures.append(path)
                    print('%s: %s\n    ours   %r\n    theirs %r' % (path, what, a, b))
    finally:
        ours.stop()
        theirs.stop()
    if failures:
        sys.exit('%d differences; see %s' % (len(failures), root))
    shutil.rmtree(root)
    print('%d databases alike after answers %s' % (len(one), dict(statuses)))


if __name__ == '__main__':
    main()
