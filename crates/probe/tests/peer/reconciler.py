#!/usr/bin/env python3
"""Compares container-reconcilers: Swift's and Martlet's on the same queue, before servers of this script.

    reconciler.py SCRATCH PROGRAM CASES...

Both work on a queue whose entries are one of each kind: objects that are where they belong, elsewhere, older or newer than the queue
says, gone, in policies that are none; entries that are none; containers that are gone, at odds or away; servers that fail. Compared are
the requests that reach account, container and object servers with all their headers, the lines of the log, and statsd. Of the lines
about one object the order counts. It ends with status 0 if nothing differs.
"""
import ast
import collections
import contextlib
import getpass
import http
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import parse_qs, unquote

SCRATCH, PROGRAM = sys.argv[1:3]
ETC = os.path.join(SCRATCH, 'etc')

from containers import DEAD, ContainerServers, read_head  # noqa: E402
from sides import runner, same, start  # noqa: E402
start(ETC, 'zero', 'one', 'two')
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.utils import Timestamp  # noqa: E402

NOW = int(time.time())
RECENT = NOW - 5000
OLD = NOW - 30 * 86400
QUEUE = '.misplaced_objects'
# Of each request; our proxy does not ask whether it may send a body that is small.
VARYING = ('connection', 'host', 'accept-encoding', 'date', 'x-trans-id', 'x-openstack-request-id', 'expect')
KINDS = {'PUT': 'application/x-put', 'DELETE': 'application/x-delete'}


def stamp(seconds, offset=0):
    return Timestamp(seconds, offset=offset).internal


def ts_headers(at, **more):
    return dict({'X-Backend-Timestamp': stamp(at), 'X-Timestamp': stamp(at)}, **more)


def replica(policy, put=RECENT - 900, delete=0, changed=None, status=204):
    """What a container server says of its replica."""
    return status, {'X-Backend-Storage-Policy-Index': str(policy), 'X-Backend-Put-Timestamp': stamp(put),
                    'X-Backend-Delete-Timestamp': stamp(delete), 'X-Backend-Status-Changed-At': stamp(changed or put)}


METADATA = {
    'Content-Type': 'text/x-odd; charset=a', 'X-Object-Meta-Color': 'r\xc3\xa9d', 'X-Object-Sysmeta-Slo-Etag': 'abc',
    'X-Object-Sysmeta-Slo-Size': '7', 'X-Static-Large-Object': 'True', 'Content-Encoding': 'gzip',
    'X-Object-Transient-Sysmeta-Crypto-Meta': '{"iv": "x"}', 'X-Object-Sysmeta-Symlink-Target': 'c/o',
    'Content-Disposition': 'attachment', 'X-Delete-At': str(NOW + 86400), 'X-Object-Sysmeta-Crypto-Etag': 'e',
    'X-Backend-Data-Timestamp': stamp(RECENT), 'X-Backend-Durable-Timestamp': stamp(RECENT)}


class Case:
    """An object and what the servers say of it: by method, one status or one of each node."""

    def __init__(self, op='PUT', at=RECENT, policy='1', containers=replica(0), head=404, there=None, get=200, source=0,
                 put=201, undo=204, delete=204, more=None, hash=None, modified=None, late=False, account='a'):
        self.op, self.at, self.policy, self.account = op, at, policy, account
        self.containers = containers if isinstance(containers, list) else [containers] * 3
        self.head, self.there, self.get = head, there, get
        self.source = None if source is None else at + source
        self.put, self.undo, self.delete, self.late = put, undo, delete, late
        self.more = more or {}
        self.hash = hash or stamp(at)
        self.modified = modified or Timestamp(at).isoformat

    def row(self, container, name):
        return {'bytes': 0, 'hash': self.hash, 'name': '%s:/%s/%s/%s' % (self.policy, self.account, container, name),
                'content_type': KINDS[self.op], 'last_modified': self.modified}


CASES = {
    'copy': Case(more=METADATA),
    'copy-newer': Case(source=5),
    'copy-of-delete': Case('DELETE', source=5),
    'copy-encoded': Case(hash='%s+1-3' % stamp(RECENT)),
    'copy-offset': Case(hash=stamp(RECENT, 2), more={'X-Backend-Timestamp': stamp(RECENT, 2)}),
    'copy-again': Case(modified=Timestamp(RECENT + 100).isoformat),
    'copy-\u00fc %2F/x "\'': Case(),
    'copy-hidden': Case(account='.shards_a'),
    'delete': Case('DELETE', get=404, source=None),
    'delete-tombstone': Case('DELETE', get=404),
    'delete-fails': Case('DELETE', get=404, delete=503),
    'delete-409': Case('DELETE', get=404, delete=409),
    'there': Case(head=200, there=RECENT + 1),
    'there-same': Case(head=200, there=RECENT),
    'there-deleted': Case(head=404, there=RECENT + 1),
    'there-older': Case(head=200, there=RECENT - 1),
    'there-older-deleted': Case('DELETE', head=200, there=RECENT - 1, get=404, source=None),
    'source-older': Case(source=-1),
    'source-older-lost': Case(at=OLD, source=-1),
    'source-missing': Case(get=404, source=None),
    'source-deleted': Case(get=404, source=5),
    'source-lost': Case(at=OLD, get=404, source=None),
    'source-fails': Case(get=503),
    'source-fails-lost': Case(at=OLD, get=503),
    'head-fails': Case(head=503),
    'put-fails': Case(put=503),
    'put-fails-late': Case(put=503, late=True),
    'put-one-fails': Case(put=[201, 503, 201], late=True),
    'put-409': Case(put=409, more={'X-Backend-Timestamp': stamp(RECENT)}),
    'undo-fails': Case(undo=503),
    'undo-404': Case(undo=404),
    'undo-409': Case(undo=409),
    'policy-unknown': Case(policy='7'),
    'policy-negative': Case(policy='-1'),
    'policy-spelled': Case(policy=' +1'),
    'policy-right': Case(policy='0'),
    'policy-moving': Case(policy='2'),
    'container-moving': Case(containers=replica(2)),
    'container-unknown': Case(containers=replica(9)),
    'container-other': Case(policy='0', containers=replica(1), more=METADATA),
    'container-deleted': Case(containers=replica(0, delete=RECENT, status=404)),
    'container-never': Case(containers=replica(0, put=0, status=404)),
    'container-odds': Case(containers=[replica(1), replica(0, put=RECENT - 950), replica(1)]),
    'container-recreated': Case(containers=[replica(1, put=RECENT - 990), replica(0, delete=RECENT - 980), replica(1)]),
    'container-one-deleted': Case(containers=[replica(1, delete=RECENT - 1), replica(0), replica(1, delete=RECENT)]),
    'container-one-away': Case(containers=[(503, {}), replica(0), replica(0)]),
    'container-away': Case(containers=[(503, {}), replica(0), DEAD]),
    'container-dead': Case(containers=DEAD),
    'container-silent': Case(containers=[(404, {}), replica(0), replica(0)]),
    'container-odd': Case(containers=replica('x')),
}
GOOD = Case().row('c', 'o')
BROKEN = [dict(GOOD, **bad) for bad in (
    {'name': 'a/c/o'}, {'name': '1:a/c/o'}, {'name': '1:/a/c'}, {'name': 'x:/a/c/o'}, {'name': '1:/a//o'},
    {'content_type': 'text/plain'}, {'hash': 'x'}, {'last_modified': 'today'})]
CONTAINERS = {'c%d' % number: name for number, name in enumerate(CASES)}
# Our reconciler begins a small upload anew, of which Swift's second try finds nothing once it has been read: not put-fails-late.
FAILING = ['head-fails', 'put-fails', 'undo-fails', 'source-fails', 'delete-fails', 'copy']


class Servers(ContainerServers):
    """Account, container and object servers: three nodes that are all of them."""

    def __init__(self):
        super().__init__('', 3)
        self.queue, self.account_status = {}, 200

    def serve(self, number, connection):
        with contextlib.suppress(ConnectionError), connection, connection.makefile('rb') as f:
            while True:
                line, headers = read_head(f)
                if not line:
                    return
                method, target, _ = line.split()
                path, _, query = target.partition('?')
                names = [unquote(part) for part in path.lstrip('/').split('/', 4)][2:]
                answer = self.answer(number, method, names, parse_qs(query), headers)
                late, body = False, b''
                if method == 'PUT' and len(names) == 3:
                    late = CASES[CONTAINERS[names[1]]].late
                    if answer is not DEAD and (answer[0] // 100 == 2 or late):
                        if headers.get('expect') == '100-continue':
                            connection.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
                        body = self.read(f, headers)
                        if body is None:
                            return
                self.note(number, method, names, query, headers, body, answer)
                if answer is DEAD:
                    return
                status, more, content = answer
                more = dict({'Content-Length': str(len(content))}, **more)
                if 'Content-Type' not in more:
                    more['Content-Type'] = 'text/html'
                head = ['HTTP/1.1 %d %s' % (status, http.HTTPStatus(status).phrase)] + ['%s: %s' % item for item in more.items()]
                content = b'' if method == 'HEAD' else content
                connection.sendall('\r\n'.join(head).encode('latin1') + b'\r\n\r\n' + content)
                if method == 'PUT' and status // 100 != 2 and not late:
                    return

    def take(self):
        with self.lock:
            told, self.told = self.told, []
        return sorted(map(repr, told))

    @staticmethod
    def read(f, headers):
        if headers.get('transfer-encoding') != 'chunked':
            return f.read(int(headers.get('content-length', 0)))
        body = b''
        while True:
            size = f.readline()
            if not size.strip():
                return None
            size = int(size, 16)
            body += f.read(size)
            f.readline()
            if not size:
                return body

    def note(self, number, method, names, query, headers, body, answer):
        headers = dict(headers)
        if answer is DEAD or answer[0] >= 500 or names[-1] == 'put-one-fails':
            # Which node gets whose row when the first one fails is a matter of time.
            rows = re.compile('x-(container|delete-at|backend-clean)-')
            headers = {name: value for name, value in headers.items() if not rows.match(name)}
        agent = headers.pop('user-agent', '').split()[0]
        for name in VARYING:
            headers.pop(name, None)
        if 'referer' in headers:
            headers['referer'] = headers['referer'].split('?')[0]
        if abs(float(headers.get('x-timestamp', '0').split('_')[0]) - time.time()) < 3000:
            headers['x-timestamp'] = 'now'
        # A proxy asks whichever node comes first, and what it wants to know of accounts and containers as often as it
        # likes. Who finds a kept connection closed asks again: that counts once.
        where = number if agent.startswith('direct') else 'proxy'
        asides = where == 'proxy' and len(names) < 3
        request = (where, method, re.sub(CURRENT, 'CURRENT', '/'.join(names)), query, body) + tuple(sorted(headers.items()))
        request = request[:3] if asides else request
        with self.lock:
            if not (asides or method == 'HEAD' and where != 'proxy') or request not in self.told:
                self.told.append(request)

    def answer(self, number, method, names, query, headers):
        if names[0] == QUEUE:
            return self.queue_answer(method, names, query)
        if len(names) == 1:
            return 204, {'X-Account-Container-Count': '1', 'X-Timestamp': stamp(OLD), 'X-Account-Object-Count': '1',
                         'X-Account-Bytes-Used': '0'}, b''
        case = CASES[CONTAINERS[names[1]]]
        if len(names) == 2:
            if case.containers[number] is DEAD:
                return DEAD
            status, more = case.containers[number]
            return status, dict({'X-Container-Object-Count': '0', 'X-Container-Bytes-Used': '0',
                                 'X-Timestamp': stamp(OLD), 'X-Put-Timestamp': stamp(OLD)}, **more), b''
        return self.object_answer(number, method, case, headers.get('x-backend-storage-policy-index'))

    def queue_answer(self, method, names, query):
        marker = query.get('marker', [''])[0]
        if method == 'GET':
            status, rows = 200, [{'name': name, 'count': 1, 'bytes': 0} for name in sorted(self.queue)]
            if len(names) == 2:
                status, rows = self.queue.get(names[1], (404, []))
            elif self.account_status != 200:
                status, rows = self.account_status, []
            rows = sorted((row for row in rows if row['name'] > marker), key=lambda row: row['name'])
            return status, dict(replica(0)[1], **{'Content-Type': 'application/json; charset=utf-8',
                                                  'X-Timestamp': stamp(OLD)}), json.dumps(rows).encode()
        # A container that was found empty has got something meanwhile.
        busy = method == 'DELETE' and len(names) == 2 and names[1] == str(hour(OLD - 7200))
        return 409 if busy else 204, replica(0)[1], b''

    @staticmethod
    def object_answer(number, method, case, policy):
        undo = policy == str(int(case.policy))
        status = {'HEAD': case.head, 'GET': case.get, 'PUT': case.put, 'DELETE': case.undo if undo else case.delete}[method]
        if isinstance(status, list):
            status = status[number]
        headers, body = {'Etag': ETAG}, b''
        if method == 'HEAD' and case.there:
            headers.update(times(case.there))
        if method == 'GET' and case.source is not None and status < 500:
            headers.update(times(case.source))
        if method == 'GET' and status == 200:
            headers.update(case.more)
            body = BODY
        if method in ('PUT', 'DELETE') and status == 409:
            headers.update(times(RECENT + 1000))
        return status, headers, body


class Listener:
    """A socket for datagrams, and what came to it."""

    def __init__(self, family, address):
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind(address)
        self.heard = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            self.heard.append(self.socket.recv(1 << 16).decode())

    def take(self):
        """What has come, after everything that was sent before has."""
        address = self.socket.getsockname()
        with socket.socket(self.socket.family, socket.SOCK_DGRAM) as last:
            last.sendto(b'the end', address)
        while 'the end' not in self.heard:
            time.sleep(.01)
        heard, self.heard = self.heard, []
        return [line for line in heard if line != 'the end']


def hour(at):
    return int(at) // 3600 * 3600


def times(at):
    return {'X-Backend-Timestamp': stamp(at), 'X-Timestamp': stamp(at)}


CURRENT = '|'.join(str(hour(NOW + n * 3600)) for n in range(3))
BODY, ETAG = b'payload', '321c3cf486ed509164edec1e1981fec8'


def rings(ports):
    for name in ('account', 'container', 'object', 'object-1', 'object-2'):
        builder = RingBuilder(2, 3, 0)
        for number, port in enumerate(ports):
            builder.add_dev({'id': number, 'region': 1, 'zone': number, 'ip': '127.0.0.1', 'port': port, 'weight': 1,
                             'replication_ip': '127.0.0.1', 'replication_port': port, 'device': 'd%d' % number})
        builder.rebalance(seed='x')
        if name == 'object-2':
            builder.prepare_increase_partition_power()
        builder.get_ring().save(os.path.join(ETC, name + '.ring.gz'))


def conf(log, statsd, options):
    path = os.path.join(SCRATCH, 'container-reconciler.conf')
    with open(path, 'w') as file:
        file.write(
            '[DEFAULT]\nswift_dir = %s\nuser = %s\nlog_address = %s\nlog_level = DEBUG\nlog_statsd_host = 127.0.0.1\n'
            'log_statsd_port = %d\n[container-reconciler]\n%s\n'
            '[pipeline:main]\npipeline = catch_errors proxy-logging proxy-server\n'
            '[filter:catch_errors]\nuse = egg:swift#catch_errors\n[filter:proxy-logging]\nuse = egg:swift#proxy_logging\n'
            '[app:proxy-server]\nuse = egg:swift#proxy\nerror_suppression_limit = 1000000\nsorting_method = shuffle\n'
            'node_timeout = 20\nrecoverable_node_timeout = 20\nconn_timeout = 5\n' % (
                ETC, getpass.getuser(), log, statsd, options))
    return path


def plain(line):
    """A line of the log without what differs from one run to the next; of an exception only that there was one."""
    line = line.partition('container-reconciler: ')[2].rstrip('\0')
    line = re.sub(r' \(txn: [^)]*\)', '', line)
    line = re.sub(CURRENT, 'CURRENT', line)
    for word in ('invalid queue record: {', 'Unhandled Exception trying to reconcile'):
        if word in line:
            line = line.partition('#012')[0].partition('\n')[0]
            line = line[:line.index('}') + 1] if word.endswith('{') else re.sub(
                r'( in policy_index \S+?|reconcile)(:.*)?$', r'\1', line)
    stats = re.fullmatch(r'Reconciler Stats: (\{.*\})', line)
    return 'stats: %r' % sorted(ast.literal_eval(stats[1]).items()) if stats else line


def order(lines):
    """Lines of each object with their number, others as they are."""
    numbers, numbered = collections.Counter(), []
    for line in lines:
        found = re.search(r'/c\d+/', line)
        if found:
            numbers[found[0]] += 1
            line = '%d. %s' % (numbers[found[0]], line)
        numbered.append(line)
    return sorted(numbered)


def metrics(datagrams):
    """What the reconcilers themselves count; not what their pipelines do."""
    names = [line.partition(':')[0] for line in '\n'.join(datagrams).split('\n')]
    return collections.Counter(name for name in names if name and not name.startswith('proxy-server.'))


def queue(names, *more):
    """The entries of these cases in a container of their hour, and further containers."""
    entries = collections.defaultdict(list)
    for container, name in CONTAINERS.items():
        if name in names:
            case = CASES[name]
            entries[str(hour(case.at))].append(case.row(container, name))
    return {name: (200, rows) for name, rows in list(entries.items()) + list(more)}


def all_cases():
    yield 'all', 'request_tries = 1', queue(CASES), 200
    yield 'four at a time', 'request_tries = 1\nconcurrency = 4', queue(CASES), 200


def broken():
    containers = [(str(hour(RECENT)), BROKEN), (str(hour(OLD)), []), (str(hour(OLD - 7200)), []), (str(hour(RECENT - 3600)), [])]
    yield 'broken entries', 'request_tries = 1', queue([], *containers), 200
    yield 'a broken container', 'request_tries = 1', dict(queue(['copy']), **{str(hour(RECENT) - 3600): (503, [])}), 200
    yield 'no account', '', {}, 404
    yield 'a broken account', 'request_tries = 1', {}, 503
    yield 'no number', '', queue(['copy'], ('x', [])), 200
    yield 'a young container that is to go', 'reclaim_age = 1', queue([], (str(hour(RECENT)), [])), 200


def shares():
    for process in range(3):
        yield 'process %d' % process, 'request_tries = 1\nprocesses = 3\nprocess = %d' % process, queue(CASES), 200


def retries():
    yield 'two tries', 'request_tries = 2', queue(FAILING), 200


def main():
    servers = Servers()
    rings(servers.ports)
    log = Listener(socket.AF_UNIX, os.path.join(SCRATCH, 'log'))
    statsd = Listener(socket.AF_INET, ('127.0.0.1', 0))
    done = 0
    for case in sys.argv[3:]:
        for what, options, servers.queue, servers.account_status in globals()[case]():
            path = conf(log.socket.getsockname(), statsd.socket.getsockname()[1], options)
            found = []
            for command in (runner(ETC, 'swift-container-reconciler'), [PROGRAM]):
                subprocess.run(command + [path, 'once'], check=True, timeout=300)
                told = servers.take()
                lines = [plain(line) for line in log.take() if 'container-reconciler: ' in line]
                lines = [line for line in lines if line and not line.startswith(('Starting', 'Exited', 'Cannot remove'))]
                found.append((told, order(lines), metrics(statsd.take())))
            for kind, python, ours in zip(('requests', 'log', 'statsd'), *found):
                assert python or kind == 'statsd', (what, kind)
                same('%s: %s' % (what, kind), python, ours)
            done += len(found[0][0])
    print('%d requests were the same' % done)


main()
