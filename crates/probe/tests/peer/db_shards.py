"""Holds what Martlet's container server does with shard ranges against Swift's, answer by answer and row by row.

    python db_shards.py path/to/examples/db_server path/to/examples/proxy

Both get the same PUTs of shard ranges, good and bad, and must answer the same bytes and store the same rows. Swift's
broker then begins to shard the same containers on both sides, and ends it; in each state the servers must list, redirect
and count alike, also each from the other's databases. The proxies of both list a sharded container from the servers of both; with a
memcached, they store the same bytes there, count the same metrics, and go by what the other has stored.
"""
import collections
import contextlib
import glob
import hashlib
import http.client
import itertools
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from urllib.parse import quote

from db_servers import both_sides, compare, stamp
from ports import free_port

ROOT = 'c é'
COLUMNS = ('name, timestamp, lower, upper, object_count, bytes_used, meta_timestamp, deleted, state, state_timestamp, epoch, '
           'reported, tombstones')
BOUNDS = ['', 'a', 'b', 'd', 'é', 'm', 'm/x', 'z', '😀']
STATES = [10, 20, 30, 40, 50, 60, 70, 80]
SHARD = ('X-Backend-Record-Type', 'shard')


def path_of(container, account='a', part=9):
    return quote('/sda/%d/%s/%s' % (part, account, container))


def files_of(side, container, account='a'):
    hsh = hashlib.md5(('p/%s/%ss' % (account, container)).encode()).hexdigest()
    return sorted(glob.glob(os.path.join(side.devices, 'sda/containers/*', hsh[-3:], hsh, '*.db')))


def rows(side, container):
    """All that is stored of shard ranges and objects of a container, file by file."""
    found = []
    for path in files_of(side, container):
        with contextlib.closing(sqlite3.connect(path)) as conn:
            ranges = conn.execute('SELECT ROWID, %s FROM shard_range ORDER BY ROWID' % COLUMNS).fetchall()
            objects = conn.execute('SELECT name, created_at, size, deleted FROM object ORDER BY name').fetchall()
            assert conn.execute('PRAGMA integrity_check').fetchone() == ('ok',)
        found.append((os.path.basename(path), ranges, objects))
    return found


def shard(name, lower='', upper='', n=1, **more):
    one = {'name': name, 'timestamp': stamp(n), 'lower': lower, 'upper': upper, 'object_count': 0, 'bytes_used': 0,
           'meta_timestamp': stamp(n), 'deleted': 0, 'state': 40, 'state_timestamp': stamp(n), 'epoch': None,
           'reported': 0, 'tombstones': -1}
    one.update(more)
    return one


def random_shard(rng, container):
    lower, upper = sorted(rng.sample(BOUNDS, 2))
    name = rng.choice(['.shards_a/s%d' % n for n in range(6)] + ['a/' + container])
    one = shard(name, lower, rng.choice([upper, upper, '']), rng.choice([1, 1, 2]), deleted=rng.choice([0, 0, 0, 1]),
                state=rng.choice(STATES), epoch=rng.choice([None, None, stamp(3), stamp(4)]),
                object_count=rng.randrange(3), bytes_used=rng.randrange(3), reported=rng.choice([0, 1]))
    for key in ('meta_timestamp', 'state_timestamp'):
        one[key] = rng.choice([stamp(n) for n in (1, 2, 3)] + [None])
    if rng.random() < .3:
        del one['tombstones']
    elif rng.random() < .5:
        one['tombstones'] = rng.randrange(3)
    if rng.random() < .2:
        del one['reported']
    return one


VALUES = [None, True, False, 0, 1, -1, 2.5, -2.5, 1e300, '', 'x', '5', ' 6_0 ', '-1', '1.5', 'nan', '-inf', "it's", 'a/c',
          'a/', '/c', 'a/b/c', 'sharding', 'Shrunk', 'é', 45, 40.0, '40.0', '70', 10 ** 18, 10 ** 19, 12345678901,
          '1700000000.00000_0000000000000001', [], ['a/c'], {}, {'a': None, "b'": [True]}]
BODIES = [b'', b' ', b'[', b'[]', b'{}', b'""', b'"x"', b'{"name": 1}', b'5', b'null', b'true', b'1.5', b'[1]', b'[null]',
          b'["x"]', b'[[]]', b'[true]', b'[0.5]', b'[{}]', b'[{"name": "a/c"}]', b'\xff', b'"\xc3', b'[1 2]', b'{"a": }',
          b'[{"name": "a/c", "timestamp": }]', b'nonsense', b'[] x', b'"\\x"', b'"\\u12"', b'"a\nb"']


def bodies():
    """Bodies that are wrong, then one value of each kind in each place."""
    yield from BODIES
    for key in shard('a/c'):
        without = shard('.shards_a/x', 'b', 'd')
        del without[key]
        yield json.dumps([without]).encode()
        for n, value in enumerate(VALUES):
            # A name of its own for each, so that what is taken is stored.
            one = shard('.shards_a/%s-%d' % (key, n), 'b', 'd')
            one[key] = value
            yield json.dumps([one]).encode()
    yield json.dumps([shard('a/b'), shard('a/b/c')]).encode()
    yield json.dumps([shard('a/b', 'd', 'b')]).encode()
    yield json.dumps([shard('a/b', 'é"\'', 'd')]).encode()


def queries(rng, count):
    name = lambda: quote(rng.choice(BOUNDS + ['c', 'n', 'zz']), safe='')
    states = ['listing', 'updating', 'auditing', 'active', 'FOUND', '40', '60.0', ' shrunk ', 'sharding']
    for fixed in ('', 'states=', 'states=,', 'states=x', 'states=Listing', 'states=45', 'states=inf', 'states=nan',
                  'states=listing', 'states=updating', 'states=auditing', 'includes=', 'includes=&states=listing',
                  'includes=m&reverse=on', 'reverse=true', 'states=listing&reverse=true', 'format=xml', 'format=plain',
                  'format=json', 'marker=m&end_marker=b', 'states=%FF', 'includes=%FF', 'limit=1', 'prefix=a', 'limit=99999'):
        yield fixed
    for _ in range(count):
        parts = ['format=' + rng.choice(['json'] * 8 + ['xml', 'plain'])]
        for key, make, chance in [('marker', name, .4), ('end_marker', name, .4), ('includes', name, .2),
                                  ('reverse', lambda: 'yes', .3), ('limit', lambda: '3', .1),
                                  ('states', lambda: quote(','.join(rng.sample(states, rng.choice([1, 1, 2])))), .6)]:
            if rng.random() < chance:
                parts.append('%s=%s' % (key, make()))
        yield '&'.join(parts)


def reads(rng, container, count):
    path = path_of(container)
    for query in queries(rng, count):
        headers = [('X-Backend-Record-Type', rng.choice(['shard', 'shard', 'Shard', 'auto', 'object', 'other']))]
        for header, values, chance in [('X-Backend-Record-Shard-Format', ['namespace', 'Namespace', 'full', 'x'], .5),
                                       ('X-Backend-Include-Deleted', ['true', 'no'], .2),
                                       ('X-Backend-Override-Deleted', ['true', 'no'], .3),
                                       ('X-Backend-Override-Shard-Name-Filter', ['sharded', 'Sharded', 'sharding'], .3)]:
            if rng.random() < chance:
                headers.append((header, rng.choice(values)))
        yield 'GET', path + '?' + query, headers
    for record_type in ('shard', 'auto', 'object'):
        yield 'HEAD', path, [('X-Backend-Record-Type', record_type)]
        yield 'GET', path, [('X-Backend-Record-Type', record_type), ('Accept', 'image/png')]


def updates(rng, container, n):
    """Rows of objects, which may be sent on to a shard."""
    row = [('X-Size', '5'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    for name in BOUNDS[1:] + ['c', 'm y', 'zz']:
        redirect = [[], [('X-Backend-Accept-Redirect', 'true')],
                    [('X-Backend-Accept-Redirect', 'true'), ('X-Backend-Accept-Quoted-Location', 'true')]][rng.randrange(3)]
        method = rng.choice(['PUT', 'PUT', 'DELETE'])
        yield method, path_of(container) + '/' + quote(name), [('X-Timestamp', stamp(n))] + row + redirect


def masked(answer):
    """Without the time at which a filler of a container without shard range of its own was made."""
    status, headers, body = answer
    body = re.sub(rb'"(?!17000)\d{10}\.\d{5}"', b'"now"', body)
    return status, headers, re.sub(rb'"(?!2023)\d{4}-\d\d-\d\dT[^"]*"', b'"now"', body)


class Comparison:
    def __init__(self, ours, theirs):
        self.sides, self.failures, self.count, self.statuses = (ours, theirs), [], 0, set()

    def ask(self, what, requests, kind='container'):
        for request in requests:
            answers = [masked(side.servers[kind].ask(*request)) for side in self.sides]
            compare((what,) + request, *answers, self.failures)
            self.count += 1
            self.statuses.add((request[0], int(answers[0][0].split()[1])))

    def stored(self, what, container):
        ours, theirs = [rows(side, container) for side in self.sides]
        assert theirs and ours, container
        if ours != theirs:
            self.failures.append((what, container))
            print(what, 'stored\n  ours   %s\n  theirs %s' % (ours, theirs))
        return ours

    def broker(self, container, change, account='a'):
        """Let Swift's broker change what each side has."""
        from swift.container.backend import ContainerBroker
        for side in self.sides:
            files = files_of(side, container, account)
            broker = ContainerBroker(os.path.join(os.path.dirname(files[0]), os.path.basename(files[0])[:32] + '.db'),
                                     account=account, container=container)
            assert getattr(broker, change)(), change


def put(container, ranges, n=1, *more, part=9):
    return 'PUT', path_of(container, part=part), [('X-Timestamp', stamp(n)), SHARD] + list(more), json.dumps(ranges).encode()


def compare_bodies(both):
    rng = random.Random(1)
    create = [('X-Backend-Auto-Create', 'true'), ('X-Backend-Storage-Policy-Index', '1')]
    both.ask('without container', [put('none', []), put('none', [shard('a/none')]), put('bad', [], 1, create[0])])
    both.ask('creating', [put('new', [shard('a/new')], 1, *create), put('new', [], 2, *create),
                          put('new', [], 2, create[0], ('X-Backend-Storage-Policy-Index', '9')),
                          put('new', [shard('a/new', state='SHARDING', epoch=stamp(2))], 2,
                              ('X-Container-Sysmeta-Shard-Quoted-Root', 'a/root'), ('X-Container-Meta-Color', 'red')),
                          ('PUT', '/sda/9/.shards_a/new', [('X-Timestamp', stamp(1)), SHARD], b'[]'),
                          ('PUT', '/sda/9/.auto/new', [('X-Timestamp', stamp(1)), SHARD] + create[1:], b'[]'),
                          ('PUT', '/sda/9/.auto/other', [('X-Timestamp', stamp(1)), SHARD], b'[]'),
                          ('PUT', '/sda/9/a/new', [('X-Timestamp', 'x'), SHARD], b'[]'), ('HEAD', '/sda/9/a/new', [])])
    both.stored('creating', 'new')
    both.ask('bad bodies', (('PUT', path_of('new'), [('X-Timestamp', stamp(3)), SHARD], body) for body in bodies()))
    taken = both.stored('bad bodies', 'new')
    assert 50 < len(taken[0][1]) < 300, len(taken[0][1])
    both.ask('what was taken of them', reads(rng, 'new', 20))


def compare_merges(both):
    """Ranges of few names and times, so that each part of one meets older, equal and younger ones."""
    rng = random.Random(2)
    for n in range(12):
        container = 'merge%d' % n
        both.ask('create', [('PUT', path_of(container), [('X-Timestamp', stamp(1))])])
        for _ in range(8):
            both.ask('merge', [put(container, [random_shard(rng, container) for _ in range(rng.choice([1, 3, 8]))])])
            both.stored('merge', container)
        both.ask('merged', reads(rng, container, 40))
        both.ask('update', updates(rng, container, 20))
        both.ask('delete', [('DELETE', path_of(container), [('X-Timestamp', stamp(n % 2 * 100))])])
        both.ask('deleted', reads(rng, container, 20))
        both.stored('deleted', container)


def compare_states(both):
    """A root container before, while and after it is sharded, and empty in the end."""
    rng = random.Random(3)
    own = 'a/' + ROOT
    both.ask('create', [('PUT', path_of(ROOT), [('X-Timestamp', stamp(1)), ('X-Container-Meta-Color', 'red')])])
    ranges = [shard('.shards_a/1', '', 'b', state=30, object_count=2, bytes_used=10), shard('.shards_a/é', 'b', 'm', state=20),
              shard('.shards_a/3', 'm', 'é', state=40, object_count=1, bytes_used=7), shard('.shards_a/old', '', 'm', deleted=1),
              shard('.shards_a/4', 'é', '', state=10, object_count=1, bytes_used=1)]
    for state, change in (('unsharded', None), ('sharding', 'set_sharding_state'), ('sharded', 'set_sharded_state')):
        if change:
            both.ask('own range', [put(ROOT, ranges + [shard(own, n=2, state=60, epoch=stamp(5))], 5)])
            both.broker(ROOT, change)
        for n in (10, 20):
            both.ask(state, updates(rng, ROOT, n + len(state)))
            both.ask(state, reads(rng, ROOT, 60))
            both.stored(state, ROOT)
            both.ask(state, [('POST', path_of(ROOT), [('X-Timestamp', stamp(n)), ('X-Container-Meta-State', state)]),
                             ('PUT', path_of(ROOT), [('X-Timestamp', stamp(n + 1))]),
                             put(ROOT, [dict(one, state=40, state_timestamp=stamp(n), object_count=n, meta_timestamp=stamp(n))
                                        for one in ranges[:3]], n),
                             ('HEAD', path_of(ROOT), []), ('DELETE', path_of(ROOT), [('X-Timestamp', stamp(90))])])
        told = both.sides[0].servers['container'].ask('HEAD', path_of(ROOT), [])[1]
        assert b'X-Backend-Sharding-State: %s' % state.encode() in told, told
    both.ask('all told', reads(rng, ROOT, 60))
    # Shards without objects: the root may go, and what is deleted still says where they were. Then they have some again.
    none = [dict(one, state=40, state_timestamp=stamp(70), meta_timestamp=stamp(70), object_count=0, bytes_used=0) for one in ranges]
    some = [dict(one, meta_timestamp=stamp(200), object_count=3) for one in none[:1]]
    gone = [('DELETE', path_of(ROOT) + '/' + quote(name), [('X-Timestamp', stamp(80))]) for name in BOUNDS[1:] + ['c', 'm y', 'zz']]
    both.ask('empty', [put(ROOT, none, 70)] + gone + [('DELETE', path_of(ROOT), [('X-Timestamp', stamp(95))])])
    both.ask('gone', itertools.chain(reads(rng, ROOT, 40), [put(ROOT, some, 96)], reads(rng, ROOT, 20)))
    both.stored('gone', ROOT)


def ring_part(*names):
    """Where the rings of `swift_dir` have an account or container."""
    return hashlib.md5(('p/%ss' % '/'.join(names)).encode()).digest()[0] >> 4


def swift_dir(root, side):
    """A directory of configuration whose rings have one device, behind a side's servers."""
    from swift.common.ring import RingBuilder
    path = os.path.join(root, side.name + '-etc')
    os.makedirs(path)
    shutil.copy(os.path.join(root, 'swift.conf'), path)
    for kind, port in (('account', side.servers['account'].port), ('container', side.servers['container'].port), ('object', 9),
                       ('object-1', 9)):
        builder = RingBuilder(4, 1, 0)
        builder.add_dev({'id': 0, 'region': 1, 'zone': 1, 'weight': 1, 'ip': '127.0.0.1', 'port': port, 'device': 'sda',
                         'replication_ip': '127.0.0.1', 'replication_port': port})
        builder.rebalance()
        builder.get_ring().save(os.path.join(path, kind + '.ring.gz'))
    return path


class SwiftsProxy:
    """Swift's proxy, in this process."""

    def __init__(self, path, more=None, cache=None):
        import swift.common.utils as utils
        utils.SWIFT_CONF_FILE = os.path.join(path, 'swift.conf')
        utils.HASH_PATH_PREFIX = utils.HASH_PATH_SUFFIX = b''
        utils.validate_hash_conf()
        from swift.common.middleware import listing_formats
        from swift.proxy.server import Application
        conf = {'swift_dir': path, 'log_address': os.path.join(path, 'nolog'), 'allow_account_management': 'true'}
        self.app = listing_formats.ListingFilter(Application(dict(conf, **more or {})), {})
        if cache:
            from swift.common.middleware import memcache
            self.app = memcache.filter_factory({}, memcache_servers=cache)(self.app)

    def get(self, path, method='GET', headers=(), body=b''):
        from swift.common.swob import Request
        request = Request.blank(path, environ={'REQUEST_METHOD': method, 'swift_owner': True}, headers=dict(headers), body=body)
        answer = request.get_response(self.app)
        return answer.status, answer.headers, answer.body

    def stop(self):
        pass


class MartletsProxy:
    def __init__(self, path, program, more=None, cache=None):
        self.port = free_port()
        conf = os.path.join(path, 'proxy.conf')
        with open(conf, 'w') as f:
            f.write('[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = %d\nswift_dir = %s\n%s[pipeline:main]\n'
                    'pipeline = %slisting_formats proxy-server\n[filter:listing_formats]\nuse = egg:swift#listing_formats\n'
                    '[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = %s\n'
                    '[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\n' % (
                        self.port, path, ''.join('%s = %s\n' % option for option in (more or {}).items()),
                        'cache ' if cache else '', cache))
        self.process = subprocess.Popen([program, conf], stdout=subprocess.PIPE, stderr=open(conf + '.err', 'w'))
        assert self.process.stdout.readline().startswith(b'serving'), open(conf + '.err').read()

    def get(self, path, method='GET', headers=(), body=b''):
        connection = http.client.HTTPConnection('127.0.0.1', self.port)
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return '%d %s' % (answer.status, answer.reason), answer.headers, body

    def stop(self):
        self.process.terminate()
        self.process.wait()


TOLD = ('X-Container-Object-Count', 'X-Container-Bytes-Used', 'Content-Type', 'Content-Length', 'Last-Modified', 'X-Storage-Policy',
        'X-Container-Meta-Color')


def compare_proxied(both, root, program):
    """A container of 60 objects in four shards, one of which is sharded itself, as clients of both proxies see it on both servers."""
    rng = random.Random(4)
    names = sorted({rng.choice('abcdefghij') + rng.choice(['', '/', '/x', 'é', 'zz']) + str(n) for n in range(60)})
    row = [('X-Size', '5'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    cuts = ['', 'c', 'e/x', 'h', '']
    shards = [shard('.shards_a/big-%d' % n, cuts[n], cuts[n + 1], object_count=15, bytes_used=75) for n in range(4)]
    inner = [shard('.shards_a/big-1-%d' % n, lower, upper, object_count=7, bytes_used=35)
             for n, (lower, upper) in enumerate([('c', 'd'), ('d', 'e/x')])]
    big = lambda more: put('big', more[0], more[1], part=ring_part('a', 'big'))
    path_of_big = path_of('big', part=ring_part('a', 'big'))
    made = [('PUT', path_of_big, [('X-Timestamp', stamp(1)), ('X-Container-Meta-Color', 'red')]),
            big((shards + [shard('a/big', n=1, state=60, epoch=stamp(5))], 2))]
    for one in shards + inner:
        container = one['name'].split('/')[1]
        path = path_of(container, '.shards_a', ring_part('.shards_a', container))
        made.append(('PUT', path, [('X-Timestamp', stamp(1)), SHARD, ('X-Backend-Auto-Create', 'true'),
                                   ('X-Backend-Storage-Policy-Index', '0'), ('X-Container-Sysmeta-Shard-Quoted-Root', 'a/big')],
                     json.dumps([dict(one, epoch=stamp(5), state=60) if one is shards[1] else one]).encode()))
        for name in names:
            if one['lower'] < name and (not one['upper'] or name <= one['upper']) and one is not shards[1]:
                made.append(('PUT', path + '/' + quote(name), [('X-Timestamp', stamp(3))] + row))
        if one is shards[1]:
            # This shard's objects are in two shards of its own.
            made.append(('PUT', path, [('X-Timestamp', stamp(2)), SHARD], json.dumps(inner).encode()))
    # What proxies read while the container is being sharded.
    made += [('PUT', path_of_big + '/' + quote(name), [('X-Timestamp', stamp(3))] + row) for name in names]
    both.ask('account', [('PUT', '/sda/%d/a' % ring_part('a'), [('X-Timestamp', stamp(1))])], 'account')
    both.ask('shards', made)
    both.broker('big-1', 'set_sharding_state', '.shards_a')
    both.broker('big-1', 'set_sharded_state', '.shards_a')
    paths = [swift_dir(root, side) for side in both.sides]
    proxies = []
    try:
        for path in paths:
            proxies += [SwiftsProxy(path), MartletsProxy(path, program)]
        for state, change in (('sharding', 'set_sharding_state'), ('sharded', 'set_sharded_state')):
            both.broker('big', change)
            if state == 'sharding':
                # One shard is not cleaved yet: the root lists the rest of the names.
                both.ask(state, [big(([dict(shards[3], state=20, state_timestamp=stamp(6))], 6))])
            else:
                both.ask(state, [big(([dict(one, state=40, state_timestamp=stamp(7)) for one in shards] +
                                      [shard('a/big', n=1, state=70, state_timestamp=stamp(7), epoch=stamp(5))], 7))])
            asked = ['', 'format=json', 'format=xml', 'limit=7&format=json', 'reverse=true', 'prefix=d', 'delimiter=/&format=json',
                     'prefix=e/&delimiter=/', 'marker=c&end_marker=f', 'marker=g&limit=5', 'reverse=on&marker=e&limit=9', 'path=e',
                     'limit=0', 'prefix=zz&format=json', 'reverse=yes&delimiter=/', 'limit=x', 'states=active&format=json']
            for _ in range(40):
                parts = ['format=json'] * rng.randrange(2)
                for key, values in [('marker', names + ['c', 'h']), ('end_marker', names + ['c', 'h', 'zz']), ('reverse', ['on']),
                                    ('prefix', ['a', 'c', 'd', 'e', 'e/', 'h', 'hé']), ('delimiter', ['/', 'z', 'é']),
                                    ('limit', ['1', '3', '10', '40'])]:
                    if rng.random() < .35:
                        parts.append('%s=%s' % (key, quote(rng.choice(values), safe='')))
                asked.append('&'.join(parts))
            for query in asked:
                answers = []
                for proxy in proxies:
                    status, headers, body = proxy.get('/v1/a/big?' + query)
                    answers.append((status.encode(), [(key, headers.get(key)) for key in TOLD], body))
                for which, answer in zip(("Martlet's proxy, Martlet's servers", "Swift's, Swift's", "Martlet's, Swift's"),
                                         (answers[1], answers[2], answers[3])):
                    compare(('proxied', state, query, which, "differs from Swift's proxy, Martlet's servers"), answer, answers[0],
                            both.failures)
                    both.count += 1
                if not query:
                    assert answers[0][2].decode().splitlines() == names, (state, answers[0])
    finally:
        for proxy in proxies:
            proxy.stop()
    compare_cached(both, paths, program, names)


class Memcached:
    def __init__(self):
        self.port = free_port()
        self.process = subprocess.Popen(['memcached', '-u', 'root', '-l', '127.0.0.1', '-U', '0', '-p', str(self.port)])
        while True:
            try:
                self.sock = socket.create_connection(('127.0.0.1', self.port))
                break
            except OSError:
                assert self.process.poll() is None, 'memcached ended'
                time.sleep(.05)

    def stored(self, key):
        """What is stored, with its flags, as it came."""
        self.sock.sendall(b'get %s\r\n' % hashlib.md5(key.encode()).hexdigest().encode())
        found = b''
        while not found.endswith(b'END\r\n'):
            found += self.sock.recv(65536)
        return found

    def stop(self):
        self.sock.close()
        self.process.terminate()
        self.process.wait()


CACHED_KEYS = ['shard-listing-v2/a/big', 'shard-listing-v2/.shards_a/big-1', 'shard-updating-v2/a/big',
               '_cache_token/shard-updating-v2/a/big']


class Cached:
    """A proxy with a memcached of its own, and what it says and counts."""

    def __init__(self, kind, path, program, memcached):
        # Now that Swift knows which swift.conf to read.
        from sides import Receiver
        self.metrics = collections.Counter()
        self.statsd = Receiver(self.take)
        more = {'log_statsd_host': '127.0.0.1', 'log_statsd_port': str(self.statsd.port), 'statsd_label_mode': 'dogstatsd'}
        cache = '127.0.0.1:%d' % memcached.port
        self.proxy = SwiftsProxy(path, more, cache) if kind == 'swift' else MartletsProxy(path, program, more, cache)

    def take(self, metric):
        if 'shard_' in metric:
            self.metrics[metric.removeprefix('proxy-server.')] += 1

    def answers(self, names):
        found = []
        for query in ['format=json', '', 'marker=c&end_marker=f', 'reverse=on&marker=e&limit=9', 'prefix=d', 'marker=zzz', 'includes=d',
                      'limit=3&format=xml']:
            for headers in [(), (('X-Newest', 'true'),)]:
                status, told, body = self.proxy.get('/v1/a/big?' + query, headers=headers)
                found.append((query, headers, status, [(key, told.get(key)) for key in TOLD], body))
        # Nobody has objects; but the namespaces are looked for before.
        for name in ['a', names[-1], names[len(names) // 2]]:
            found.append((name, self.proxy.get('/v1/a/big/' + quote(name), 'PUT', body=b'x')[0]))
        return found

    def told(self, names):
        answers = self.answers(names)
        self.statsd.catch_up()
        metrics, self.metrics = dict(self.metrics), collections.Counter()
        return answers, metrics


def compare_cached(both, paths, program, names):
    """What the proxies of both leave in memcached, and what they make of what is there."""
    caches, proxies, told = [], [], []
    try:
        for path in paths:
            for kind in ('swift', 'martlet'):
                caches.append(Memcached())
                proxies.append(Cached(kind, path, program, caches[-1]))
                answers, metrics = proxies[-1].told(names)
                told.append({'answers': answers, 'metrics': metrics, 'stored': [caches[-1].stored(key) for key in CACHED_KEYS]})
                proxies[-1].proxy.stop()
        for cache, path, kind in ((caches[0], paths[0], 'martlet'), (caches[1], paths[0], 'swift')):
            proxies.append(Cached(kind, path, program, cache))
            answers, metrics = proxies[-1].told(names)
            told.append({'answers': answers, 'metrics': metrics})
            proxies[-1].proxy.stop()
    finally:
        for proxy in proxies:
            proxy.proxy.stop()
        for cache in caches:
            cache.stop()
    assert told[0]['stored'][0].count(b'.shards_a/big-') == 4 and b'big-3' in told[0]['stored'][2], told[0]['stored']
    assert not told[0]['stored'][3].startswith(b'VALUE'), told[0]['stored']
    for number, right in ((1, 0), (2, 0), (3, 0), (5, 4)):
        for what, expected in told[right].items():
            if told[number][what] != expected:
                print('cached: %s of proxy %d:\n  %r\nnot\n  %r' % (what, number, told[number][what], expected))
                both.failures.append(('cached', number, what))
            both.count += 1
    for name in ('container.shard_listing.cache.hit:1|c', 'object.shard_updating.cache.hit:1|c'):
        assert name in told[4]['metrics'], told[4]['metrics']


def main():
    root, ours, theirs = both_sides('db-shards-')
    both = Comparison(ours, theirs)
    try:
        ours.start()
        theirs.start()
        compare_bodies(both)
        compare_merges(both)
        compare_states(both)
        compare_proxied(both, root, sys.argv[2])
        ours.stop()
        theirs.stop()
        ours.devices, theirs.devices = theirs.devices, ours.devices
        ours.start()
        theirs.start()
        rng = random.Random(5)
        for container in ['new', ROOT] + ['merge%d' % n for n in range(12)]:
            both.ask('swapped', reads(rng, container, 30))
    finally:
        ours.stop()
        theirs.stop()
        if not both.failures:
            shutil.rmtree(root)
    wanted = {('PUT', 201), ('PUT', 202), ('PUT', 301), ('PUT', 400), ('PUT', 404), ('PUT', 500), ('DELETE', 301), ('DELETE', 409),
              ('DELETE', 204), ('GET', 200), ('GET', 204), ('GET', 400), ('GET', 404), ('GET', 406), ('GET', 412), ('GET', 500)}
    assert wanted <= both.statuses, wanted - both.statuses
    print('%d of %d answers differ' % (len(both.failures), both.count))
    sys.exit(1 if both.failures else 0)


if __name__ == '__main__':
    main()
