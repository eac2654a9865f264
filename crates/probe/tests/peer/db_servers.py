"""Holds Martlet's account and container servers against Swift's, answer by answer.

    python db_servers.py path/to/examples/db_server

Both get the same requests in the same order on devices of their own; status, headers (and their order) and body must
be the same bytes, save for what tells the time of day. Then the devices are swapped: each server must answer
from the other's databases what it answered from its own.
"""
import collections
import contextlib
import getpass
import hashlib
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from urllib.parse import quote

from ports import free_port

NAMES = ['a', 'b', 'a/b', 'a/b/c', 'a/', 'a0', 'é', 'é/x', '€', '😀', 'z z', '<x>&"\'', 'ab', 'abc', 'abcd/e', 'q\\"',
         'x\ty', 'new\nline', 'del\x7f']
PREPARE = '''
import sys
import swift.common.utils as utils
utils.SWIFT_CONF_FILE = sys.argv.pop(1)
utils.HASH_PATH_PREFIX = utils.HASH_PATH_SUFFIX = b''
utils.validate_hash_conf()
'''
LAUNCH = PREPARE + '''
kind = sys.argv.pop(1)
__import__('swift.%s.server' % kind, fromlist=['main']).main()
'''
LAUNCH_UPDATER = PREPARE + '''
from swift.container.updater import main
main()
'''
# What depends on when and where: the clock, ids of the process and of transactions, and the addresses.
VOLATILE = {'date', 'x-timestamp', 'x-backend-timestamp', 'x-trans-id', 'x-openstack-request-id'}


class Server:
    def __init__(self, kind, root, devices, command):
        self.port = free_port()
        conf = os.path.join(root, '%s-%d.conf' % (kind, self.port))
        with open(conf, 'w') as f:
            f.write('[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = %d\nworkers = 0\nswift_dir = %s\ndevices = %s\n'
                    'mount_check = false\nlog_address = %s\nfallocate_reserve = 0\n[pipeline:main]\npipeline = %s-server\n'
                    '[app:%s-server]\nuse = egg:swift#%s\n'
                    % (self.port, root, devices, os.path.join(root, 'nolog'), kind, kind, kind))
        self.process = subprocess.Popen(command(kind, conf), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=open(conf + '.err', 'w'))
        for _ in range(1200):
            try:
                socket.create_connection(('127.0.0.1', self.port)).close()
                return
            except OSError:
                time.sleep(.05)
        raise AssertionError('no %s server: %s' % (kind, open(conf + '.err').read()))

    def ask(self, method, path, headers, body=b''):
        """The whole answer as it came: head lines and body."""
        lines = ['%s %s HTTP/1.1' % (method, path), 'Host: h', 'Connection: close']
        lines += ['%s: %s' % h for h in headers]
        if body or method in ('PUT', 'POST', 'UPDATE'):
            lines.append('Content-Length: %d' % len(body))
        s = socket.create_connection(('127.0.0.1', self.port))
        s.sendall('\r\n'.join(lines).encode('utf-8', 'surrogateescape') + b'\r\n\r\n' + body)
        answer = b''
        while True:
            piece = s.recv(65536)
            if not piece:
                break
            answer += piece
        s.close()
        head, _, body = answer.partition(b'\r\n\r\n')
        status, *headers = head.split(b'\r\n')
        kept = [h for h in headers if h.split(b':')[0].decode('latin1').lower() not in VOLATILE]
        # swob keeps the old reason when a container listing turns out to be empty.
        status = status.replace(b'204 OK', b'204 No Content')
        return status, kept, re.sub(rb'(?s)^Traceback.*', b'', body)

    def stop(self):
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait()


class Side:
    """An account and a container server of one maker on devices of its own."""

    def __init__(self, root, name, command):
        self.root, self.name, self.command = root, name, command
        self.devices = os.path.join(root, name)
        os.makedirs(os.path.join(self.devices, 'sda'), exist_ok=True)
        self.servers = {}

    def start(self):
        self.servers = {k: Server(k, self.root, self.devices, self.command) for k in ('account', 'container')}

    def stop(self):
        for server in self.servers.values():
            server.stop()


def both_sides(prefix):
    """A new directory with a swift.conf, and the sides of both makers in it. The first argument is the program of ours."""
    root = tempfile.mkdtemp(prefix=prefix)
    conf = os.path.join(root, 'swift.conf')
    with open(conf, 'w') as f:
        f.write('[swift-hash]\nswift_hash_path_prefix = p\nswift_hash_path_suffix = s\n'
                '[storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver-Two\n')
    return (root, Side(root, 'ours', lambda kind, path: [sys.argv[1], kind + '-server', path]),
            Side(root, 'theirs', lambda kind, path: [sys.executable, '-c', LAUNCH, conf, kind, path]))


def stamp(n, offset=''):
    return '%010d.%05d%s' % (1700000000 + n, n % 7, offset)


def queries(rng, table):
    """Query strings of listings: each parameter alone, then random ones, then bad ones."""
    name = lambda: quote(rng.choice(NAMES + ['b/', 'zz']), safe='')
    fixed = ['', 'format=json', 'format=xml', 'format=plain', 'format=XML', 'format=', 'format=no', 'limit=0',
             'limit=3', 'limit=-1', 'limit=10001', 'limit=x', 'marker=b', 'end_marker=b', 'prefix=a', 'prefix=a%2F',
             'prefix=', 'delimiter=/', 'delimiter=/&prefix=a/', 'delimiter=b&format=json', 'path=', 'path=a',
             'path=a/&format=json', 'reverse=true', 'reverse=on&marker=b', 'reverse=no', 'marker=%FF', 'prefix=%C3',
             'delimiter=%FF', 'format=%FF', 'limit=%FF', 'marker=a+b', 'marker=a&marker=b', 'states=%FF',
             'delimiter=//&prefix=', 'limit=2&delimiter=/&format=xml']
    for q in fixed:
        yield q
    for _ in range(table):
        parts = ['format=' + rng.choice(['json', 'json', 'xml', 'plain'])]
        for key, make in [('marker', name), ('end_marker', name), ('prefix', name), ('path', name),
                          ('delimiter', lambda: rng.choice(['/', 'b', '%C3%A9', '//'])),
                          ('limit', lambda: str(rng.choice([0, 1, 2, 5, 100]))), ('reverse', lambda: 'yes')]:
            if rng.random() < .3:
                parts.append('%s=%s' % (key, make()))
        yield '&'.join(parts)


ACCEPTS = ['*/*', 'text/plain', 'application/json', 'application/xml', 'text/xml', 'text/*;q=0.1, application/*',
           'image/png', 'nonsense', 'application/json;q=x', '']


def account_requests(rng):
    yield from requests_of_account(rng, 'AUTH_é')
    for request in requests_of_account(rng, 'kept'):
        if request[0] != 'DELETE':
            yield request


def requests_of_account(rng, name):
    p = quote('/sda/7/' + name)
    ts = lambda n, o='': ('X-Timestamp', stamp(n, o))
    row = lambda n, put, delete, objects, used: [ts(n), ('X-Put-Timestamp', put), ('X-Delete-Timestamp', delete),
                                                 ('X-Object-Count', objects), ('X-Bytes-Used', used)]
    for method in ('GET', 'HEAD', 'DELETE', 'POST', 'PUT'):
        yield method, p, [] if method in ('GET', 'HEAD', 'POST', 'PUT') else [ts(1)]
    yield 'HEAD', p, []
    yield 'PUT', p + '/c', row(1, stamp(1), '0', '0', '0')
    yield 'POST', p, [ts(1)]
    yield 'PUT', p, [ts(2), ('X-Account-Meta-Ü', 'wert ü'), ('X-Account-Sysmeta-S', 's'), ('X-Other', 'o')]
    yield 'PUT', p, [ts(3)]
    yield 'PUT', p, [('X-Timestamp', 'nonsense')]
    yield 'PUT', p, [ts(1)]
    yield 'POST', p, [ts(4), ('X-Account-Meta-Ü', 'neu'), ('X-Account-Meta-Empty', '')]
    yield 'POST', p, [ts(4), ('X-Account-Meta-Bad', '\udcff')]
    yield 'POST', p, [ts(4)] + [('X-Account-Meta-%d' % i, 'x') for i in range(91)]
    yield 'POST', p, [ts(4), ('X-Account-Meta-Long', 'x' * 4090)]
    for i, name in enumerate(NAMES + ['\x00hidden', '\x00', 'a\x00b']):
        path = p + '/' + quote(name, safe='')
        if '/' in name:
            path = p + '/' + quote(name.replace('/', '-'), safe='')
        yield 'PUT', path, row(5 + i, stamp(5 + i), '0', str(i), str(i * i)) + [
            ('X-Backend-Storage-Policy-Index', str(i % 3))] * (i % 4 > 0)
    yield 'PUT', p + '/b', row(60, stamp(5), stamp(60), '0', '0')
    yield 'PUT', p + '/never', row(60, stamp(5), stamp(60), '0', '0')
    yield 'PUT', p + '/full', row(60, stamp(5), stamp(60), '1', '0')
    yield 'PUT', p + '/nohdr', [ts(3), ('X-Put-Timestamp', stamp(1))]
    yield 'PUT', p + '/badts', row('1' and 60, 'x', stamp(60), '1', '0')
    yield 'HEAD', p, []
    for q in queries(rng, 60):
        yield 'GET', p + '?' + q, [('X-Backend-Allow-Reserved-Names', 'true')] if rng.random() < .3 else []
        if rng.random() < .2:
            yield 'HEAD', p + '?' + q, []
    for accept in ACCEPTS:
        yield 'GET', p, [('Accept', accept)]
        yield 'HEAD', p, [('Accept', accept)]
        yield 'GET', p + '?format=json', [('Accept', accept)]
    for path in ('/', '/sda', '/sda/7', '/sda/7/', '/../7/a', '/sda/../a', '/sdb/7/a', '/s%20d/7/a', '/sda/7/a/b/c',
                 '/sda/7/%FF', '/sda/7/a%00b', '/sda/7/%00a'):
        for method in ('GET', 'HEAD', 'PUT', 'POST', 'DELETE'):
            yield method, path, [ts(5)]
    for method in ('COPY', 'PATCH', 'get', 'SSYNC', 'UPDATE'):
        yield method, p, [ts(5)]
    yield 'DELETE', p, [ts(1)]
    yield 'HEAD', p, []
    yield 'DELETE', p, []
    yield 'DELETE', p, [ts(100)]
    yield 'DELETE', p, [ts(101)]
    for method in ('GET', 'HEAD', 'POST', 'PUT', 'DELETE'):
        yield method, p, [ts(102)]
    yield 'PUT', p + '/c', row(103, stamp(103), '0', '0', '0')
    yield 'PUT', p + '/c', row(103, stamp(103), '0', '0', '0') + [('X-Account-Override-Deleted', 'yes')]
    yield 'GET', p, []
    auto = '/sda/7/.auto'
    yield 'GET', auto, []
    yield 'PUT', auto + '/c', row(1, stamp(1), '0', '0', '0')
    yield 'GET', auto + '?format=json', []
    yield 'HEAD', auto, []


def container_requests(rng):
    p = quote('/sda/9/a/c é')
    ts = lambda n, o='': ('X-Timestamp', stamp(n, o))
    policy = lambda n: ('X-Backend-Storage-Policy-Index', str(n))
    for method in ('GET', 'HEAD', 'DELETE', 'POST', 'PUT', 'DELETE'):
        yield method, p, [ts(1)] if method in ('GET', 'HEAD', 'POST', 'DELETE') else []
    yield 'PUT', p + '/o', [ts(1), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    yield 'DELETE', p + '/o', [ts(1)]
    yield 'PUT', p, [ts(2), policy(9)]
    yield 'PUT', p, [ts(2), policy('x')]
    yield 'PUT', p, [ts(2), policy(' 1 '), ('X-Container-Meta-Ü', 'wert ü'), ('X-Container-Sysmeta-S', 's'),
                     ('X-Container-Read', '.r:*'), ('X-Container-Write', 'me'), ('X-Other', 'o'),
                     ('X-Versions-Location', 'v')]
    yield 'PUT', p, [ts(3)]
    yield 'PUT', p, [ts(3), policy(0)]
    yield 'PUT', p, [ts(3), policy(1)]
    yield 'PUT', p, [('X-Timestamp', 'nonsense')]
    yield 'POST', p, [ts(4), ('X-Container-Meta-Ü', 'neu'), ('X-Container-Meta-Empty', '')]
    yield 'POST', p, [ts(5), ('X-Container-Meta-New', 'n'), ('X-Backend-No-Timestamp-Update', 'true')]
    yield 'HEAD', p, []
    yield 'POST', p, [ts(4), ('X-Container-Meta-Bad', '\udcff')]
    yield 'POST', p, [ts(4)] + [('X-Container-Meta-%d' % i, 'x') for i in range(91)]
    yield 'POST', p, [ts(4), ('X-Container-Meta-Long', 'x' * 4090)]
    for sync in ('http://127.0.0.1/v1/a/c', 'http://nowhere/v1/a/c', '//r/c/a/c', 'ftp://x/', '//r/c', 'x', ''):
        yield 'POST', p, [ts(6), ('X-Container-Sync-To', sync), ('X-Container-Sync-Key', 'k')]
        yield 'PUT', p, [ts(6), ('X-Container-Sync-To', sync)]
    yield 'POST', '/sda/9/a/c/o', [ts(6)]
    types = ['text/plain', 'text/plain; charset=utf-8', 'text/plain;swift_bytes=77', 'a/b; x = "y;z" ;swift_bytes=3',
             'application/x-é', 'a/b;swift_bytes=x']
    for i, name in enumerate(NAMES):
        yield 'PUT', p + '/' + quote(name), [ts(10 + i), ('X-Size', str(i * 10)), ('X-Content-Type', types[i % len(types)]),
                                             ('X-Etag', '%032x' % i), policy(1)]
    yield 'PUT', p + '/other', [ts(10), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e'), policy(0)]
    yield 'PUT', p + '/old', [ts(10, '_0000000000000002'), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    yield 'PUT', p + '/late', [ts(10), ('X-Size', '1'), ('X-Content-Type', 'old'), ('X-Etag', 'e'), policy(1),
                               ('X-Content-Type-Timestamp', stamp(40)), ('X-Meta-Timestamp', stamp(50))]
    yield 'PUT', p + '/nohdr', [ts(10), ('X-Size', '1')]
    yield 'PUT', p + '/badsize', [ts(10), ('X-Size', 'x'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    yield 'PUT', p + '/badpolicy', [ts(10), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e'), policy(7)]
    yield 'DELETE', p + '/ab', [ts(70), policy(1)]
    yield 'DELETE', p + '/abc', [('X-Timestamp', '1'), policy(1)]
    yield 'DELETE', p + '/abc', [('X-Timestamp', 'x')]
    yield 'HEAD', p, []
    for q in queries(rng, 100):
        headers = [('X-Backend-Allow-Reserved-Names', 'true')] if rng.random() < .3 else []
        headers += [policy(0)] if rng.random() < .1 else []
        headers += [('X-Backend-Record-Type', rng.choice(['auto', 'object']))] if rng.random() < .5 else []
        yield 'GET', p + '?' + q, headers
        if rng.random() < .2:
            yield 'HEAD', p + '?' + q, headers
    yield 'GET', p, [policy('bad')]
    for accept in ACCEPTS:
        yield 'GET', p, [('Accept', accept)]
        yield 'HEAD', p, [('Accept', accept)]
    for path in ('/', '/sda', '/sda/7', '/sda/7/', '/sda/7/a', '/sda/7/a/', '/../7/a/c', '/sda/../a/c', '/sdb/7/a/c',
                 '/s%20d/7/a/c', '/sda/7/%FF/c', '/sda/7/a%00b/c', '/sda/7/a/%00c', '/sda/7/a/%00c/o', '/sda/7/a/c/%00o',
                 '/sda/7/.a/c/%00o', '/sda/7/a/c%00'):
        for method in ('GET', 'HEAD', 'PUT', 'POST', 'DELETE'):
            yield method, path, [ts(5), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    for method in ('COPY', 'PATCH', 'get', 'SSYNC'):
        yield method, p, [ts(5)]
    update = b'[{"name": "upd", "created_at": "1700000000.00000", "size": 3, "content_type": "t", "etag": "e", "deleted": 0, ' \
             b'"storage_policy_index": 1}]'
    yield 'UPDATE', p, [ts(80)], update
    yield 'GET', p + '?format=json&prefix=u', []
    yield 'DELETE', p, [ts(90)]
    d = '/sda/9/a/del'
    yield 'PUT', d, [ts(1), ('X-Backend-Storage-Policy-Default', '2'), ('X-Container-Meta-A', 'a')]
    yield 'HEAD', d, []
    yield 'DELETE', d, [ts(1)]
    yield 'DELETE', d, [ts(2)]
    yield 'DELETE', d, [ts(3)]
    for method in ('GET', 'HEAD', 'POST'):
        yield method, d, [ts(4)]
    yield 'PUT', d, [ts(2)]
    yield 'PUT', d, [ts(5), policy(1)]
    yield 'HEAD', d, []
    yield 'PUT', d + '/o', [ts(6), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e'), policy(0)]
    yield 'DELETE', d, [ts(7)]
    yield 'HEAD', d, []
    e = '/sda/9/.auto/c'
    yield 'PUT', e + '/o', [ts(6, '_0000000000000002'), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e'), policy(2)]
    yield 'HEAD', e, []
    yield 'GET', e + '?format=json', []
    yield 'DELETE', '/sda/9/.auto/d/o', [ts(6)]
    yield 'PUT', '/sda/9/.shards_a/c/o', [ts(6), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    yield 'PUT', '/sda/9/a/asked/o', [ts(6), ('X-Size', '1'), ('X-Content-Type', 't'), ('X-Etag', 'e'),
                                      ('X-Backend-Auto-Create', 'true')]
    yield 'GET', '/sda/9/a/asked?format=json', []


def account_updates(account_port):
    """Container requests that tell account servers; what those then list."""
    ts = lambda n: ('X-Timestamp', stamp(n))
    hosts = lambda *names: [('X-Account-Host', ','.join('127.0.0.1:%d' % account_port for _ in names)),
                            ('X-Account-Device', ','.join(names)), ('X-Account-Partition', '3')]
    row = [('X-Size', '5'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    yield 'container', 'PUT', '/sda/9/acc/c1', [ts(1)] + hosts('sda')
    yield 'account', 'PUT', '/sda/3/acc', [ts(1)]
    yield 'container', 'PUT', '/sda/9/acc/c1', [ts(2)] + hosts('sda')
    yield 'container', 'PUT', '/sda/9/acc/c1/o', [ts(3)] + row
    yield 'container', 'PUT', '/sda/9/acc/c1', [ts(4)] + hosts('sda', 'sdb')
    yield 'container', 'PUT', '/sda/9/acc/c1', [ts(4)] + hosts('sda')[:1] + [('X-Account-Device', 'a,b')]
    yield 'container', 'PUT', '/sda/9/acc/c2', [ts(5), ('X-Backend-Storage-Policy-Index', '1')] + hosts('sda')
    yield 'container', 'PUT', '/sda/9/acc/c3', [ts(5)]
    yield 'account', 'GET', '/sda/3/acc?format=json', []
    yield 'container', 'DELETE', '/sda/9/acc/c2', [ts(6)] + hosts('sda')
    yield 'account', 'GET', '/sda/3/acc?format=json', []
    yield 'account', 'DELETE', '/sda/3/acc', [ts(9)]
    yield 'container', 'PUT', '/sda/9/acc/c4', [ts(10)] + hosts('sda')
    yield 'container', 'PUT', '/sda/9/acc/c4', [ts(11), ('X-Account-Override-Deleted', 'yes')] + hosts('sda')
    yield 'account', 'HEAD', '/sda/3/acc', []


def updater_pass(side, accounts, command):
    """One pass of a side's container-updater, whose account ring has one device behind the other side's account server."""
    from swift.common.ring import RingBuilder
    swift_dir = os.path.join(side.root, side.name + '-etc')
    os.makedirs(swift_dir, exist_ok=True)
    shutil.copy(os.path.join(side.root, 'swift.conf'), swift_dir)
    builder = RingBuilder(4, 1, 0)
    builder.add_dev({'id': 0, 'region': 1, 'zone': 1, 'weight': 1, 'ip': '127.0.0.1', 'port': accounts.port, 'device': 'sda',
                     'replication_ip': '127.0.0.1', 'replication_port': accounts.port})
    builder.rebalance()
    builder.get_ring().save(os.path.join(swift_dir, 'account.ring.gz'))
    conf = os.path.join(swift_dir, 'updater.conf')
    with open(conf, 'w') as f:
        f.write('[DEFAULT]\nswift_dir = %s\ndevices = %s\nmount_check = false\nlog_address = %s\nrecon_cache_path = %s\n'
                'user = %s\n[container-updater]\n'
                % (swift_dir, side.devices, os.path.join(side.root, 'nolog'), swift_dir, getpass.getuser()))
    subprocess.run(command(conf), check=True, stderr=open(conf + '.err', 'w'))
    with open(os.path.join(swift_dir, 'container.recon')) as f:
        assert 'container_updater_sweep' in f.read()


def partition_of(account):
    """Where the ring of `updater_pass` has an account."""
    import hashlib
    return hashlib.md5(b'p/' + account.encode() + b's').digest()[0] >> 4


def updater_requests(step):
    """Containers whose accounts have not been told of them, then a change of one of them."""
    ts = lambda n: ('X-Timestamp', stamp(n))
    row = [('X-Size', '5'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    if step == 0:
        yield 'account', 'PUT', '/sda/%d/upd' % partition_of('upd'), [ts(1)]
        for n in range(3):
            yield 'container', 'PUT', '/sda/9/upd/c%d' % n, [ts(2 + n), ('X-Backend-Storage-Policy-Index', str(n % 2))]
            yield 'container', 'PUT', '/sda/9/upd/c%d/o' % n, [ts(3 + n)] + row
    else:
        yield 'container', 'DELETE', '/sda/9/upd/c1/o', [ts(20), ('X-Backend-Storage-Policy-Index', '0')]
        yield 'container', 'PUT', '/sda/9/upd/c2/p', [ts(20)] + row
        yield 'container', 'DELETE', '/sda/9/upd/c1', [ts(21)]


def compare(what, ours, theirs, failures):
    if ours[0] == theirs[0] and b' 500 ' in ours[0]:
        return  # the body is a traceback there
    if ours != theirs:
        failures.append(what)
        print(what)
        for part, a, b in zip(('status', 'headers', 'body'), ours, theirs):
            if a != b:
                print('  %s\n    ours   %r\n    theirs %r' % (part, a, b))


def overwrite(path, at, data):
    with open(path, 'r+b') as fp:
        fp.seek(at)
        fp.write(data)


def run_script(path, script):
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(script)


def refill(path, script=None, text=b''):
    os.unlink(path)
    with open(path, 'wb') as fp:
        fp.write(text)
    if script:
        run_script(path, script)


# Each in a file of its own, as what a process has open already is not read anew.
DAMAGES = {
    'garbage': lambda path: refill(path, text=b'no database at all ' * 1000),
    'empty': lambda path: refill(path),
    'foreign': lambda path: refill(path, script='CREATE TABLE other (x); INSERT INTO other VALUES (1)'),
    'header': lambda path: overwrite(path, 0, b'\xff' * 16),
    'pages': lambda path: overwrite(path, 4096, b'\xff' * (os.path.getsize(path) - 4096)),
    'cut': lambda path: os.truncate(path, os.path.getsize(path) // 2),
    'rowless': lambda path: run_script(path, 'DELETE FROM %s' % ('account_stat' if '/accounts/' in path else 'container_info')),
}


def damaged_row(kind):
    at = [('X-Timestamp', stamp(40))]
    if kind == 'container':
        return at + [('X-Size', '5'), ('X-Content-Type', 't'), ('X-Etag', 'e')]
    return at + [('X-Put-Timestamp', stamp(40)), ('X-Delete-Timestamp', '0'), ('X-Object-Count', '1'), ('X-Bytes-Used', '1')]


def damaged_requests(kind, path):
    """What is first asked of a damaged database, and what is asked of it again."""
    ts = ('X-Timestamp', stamp(50))
    hsh = hashlib.md5(('p/%ss' % path.split('/', 3)[3]).encode()).hexdigest()
    sync = json.dumps(['sync', 5, '0' * 32, 'id', stamp(1), stamp(1), '0', '{}'])
    yield 'HEAD', path, []
    yield 'GET', path + '?format=json', []
    yield 'PUT', path, [ts]
    yield 'PUT', path + '/row', damaged_row(kind)
    yield 'POST', path, [ts, ('X-%s-Meta-Color' % kind.title(), 'red')]
    yield 'DELETE', path, [ts]
    yield 'REPLICATE', '/sda/7/' + hsh, [('Content-Length', str(len(sync)))], sync.encode()


def places(side, kind, path):
    """Where the database of a path and its directory are."""
    hsh = hashlib.md5(('p/%ss' % path.split('/', 3)[3]).encode()).hexdigest()
    device = os.path.join(side.devices, 'sda')
    folder = os.path.join(device, kind + 's', '7', hsh[-3:], hsh)
    quarantined = os.path.join(device, 'quarantined', kind + 's', hsh)
    return os.path.join(folder, hsh + '.db'), [os.path.exists(folder), os.path.exists(os.path.join(quarantined, hsh + '.db'))]


def compare_damaged(ours, theirs, failures):
    """Databases that are none any more: each method is the first to meet one, and a GET the next."""
    count, quarantined = 0, 0
    for kind in ('account', 'container'):
        for damage, harm in DAMAGES.items():
            if damage == 'rowless' and kind == 'container':
                continue  # Swift's container server looks for the row until there is one.
            for number in range(7):
                path = '/sda/7/%s%d' % (damage.replace(' ', ''), number) + ('/c' if kind == 'container' else '')
                request = list(damaged_requests(kind, path))[number]
                found = []
                for side in (ours, theirs):
                    ask = side.servers[kind].ask
                    made = ask('PUT', path, [('X-Timestamp', stamp(1))])
                    assert b' 201 ' in made[0], made
                    for n in range(3):
                        if n == 2:
                            ask('GET', path, [])
                        # The last row is pending, so that the damage is met by whoever merges it.
                        ask('PUT', path + '/o%d' % n, damaged_row(kind))
                    db_file, _ = places(side, kind, path)
                    shutil.copy(db_file, db_file + '.new')
                    harm(db_file + '.new')
                    os.replace(db_file + '.new', db_file)
                    answers = [ask(*request)]
                    where = places(side, kind, path)[1]
                    answers.append(ask('GET', path + '?format=json', []))
                    found.append(([answer[0].split()[1] for answer in answers], where, places(side, kind, path)[1]))
                count += 1
                quarantined += found[0][2][1]
                if found[0] != found[1]:
                    failures.append((kind, damage, request))
                    print(kind, damage, request[:2], '\n  ours   %s\n  theirs %s' % tuple(found))
    assert quarantined > count / 2, (quarantined, count)
    return count


def compare_updaters(ours, theirs, failures):
    """Each updater tells the other implementation's account server; what these list must be the same."""
    count = 0
    for step in (0, 1):
        for kind, *request in updater_requests(step):
            sides = (ours, theirs) if kind == 'container' else (theirs, ours)
            compare(('updater', kind) + tuple(request), *[s.servers[kind].ask(*request) for s in sides], failures)
        updater_pass(ours, theirs.servers['account'], lambda conf: [sys.argv[1], 'container-updater', conf])
        updater_pass(theirs, ours.servers['account'], lambda conf: [
            sys.executable, '-c', LAUNCH_UPDATER, os.path.join(theirs.root, 'swift.conf'), conf, 'once'])
        listing = 'GET', '/sda/%d/upd?format=json' % partition_of('upd'), []
        answers = [side.servers['account'].ask(*listing) for side in (theirs, ours)]
        assert answers[0][2].count(b'"name"') == 3 - step, answers
        compare(('updater',) + listing, *answers, failures)
        count += 1
    return count


def main():
    root, ours, theirs = both_sides('db-servers-')
    failures, count, found = [], 0, collections.Counter()
    try:
        for attempt in ('own devices', 'swapped devices'):
            ours.start()
            theirs.start()
            for kind, requests in (('account', account_requests), ('container', container_requests)):
                for request in requests(random.Random(0)):
                    if attempt == 'swapped devices' and request[0] not in ('GET', 'HEAD'):
                        continue
                    answers = [side.servers[kind].ask(*request) for side in (ours, theirs)]
                    compare((attempt, kind) + request, *answers, failures)
                    count += 1
                    found[attempt] += b' 200 ' in answers[0][0]
            if attempt == 'own devices':
                # Each side's container server tells the other side's account server.
                for ours_step, theirs_step in zip(account_updates(theirs.servers['account'].port),
                                                  account_updates(ours.servers['account'].port)):
                    side = {'container': (ours, theirs), 'account': (theirs, ours)}[ours_step[0]]
                    answers = [side[0].servers[ours_step[0]].ask(*ours_step[1:]),
                               side[1].servers[theirs_step[0]].ask(*theirs_step[1:])]
                    compare(('account update',) + ours_step, *answers, failures)
                    count += 1
            else:
                count += compare_updaters(ours, theirs, failures)
                count += compare_damaged(ours, theirs, failures)
            ours.stop()
            theirs.stop()
            ours.devices, theirs.devices = theirs.devices, ours.devices
    finally:
        ours.stop()
        theirs.stop()
        if not failures:
            shutil.rmtree(root)
    assert found['swapped devices'] > 200, found
    print('%d of %d answers differ' % (len(failures), count))
    sys.exit(1 if failures else 0)


if __name__ == '__main__':
    main()
