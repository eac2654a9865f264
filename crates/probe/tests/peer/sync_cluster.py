#!/usr/bin/env python3
"""Every server of two clusters: account, container and object servers of the one here, and the proxy of the one there.

    sync_cluster.py NOW PORT...

Times are seconds after NOW. What is here is any object, as old as its name says. The proxy checks signatures, remembers what it is
sent, and fails as the name of an object says; GET /-/seen tells the requests since the last time, GET /-/forget forgets what was put.
"""
import hashlib
import hmac
import http.server
import json
import re
import sys
import threading
import urllib.parse

DEVICES = ('sda', 'sdb', 'sdc')
KEY, USER_KEY = 'realm-key', 'user key'


def stamp(second):
    return '%d.00000' % (int(sys.argv[1]) + second)


def digest(body):
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def seconds(name):
    """When an object that is called so was made here."""
    return 100 + int(digest(name.encode())[:4], 16) % 50


def body_of(name):
    return b'' if name.startswith('empty') else ('body of %s' % name).encode() * (1 if len(name) < 9 else 9000)


class Cluster(http.server.BaseHTTPRequestHandler):
    """Every server of both clusters."""
    protocol_version = 'HTTP/1.1'
    lock = threading.Lock()
    seen, there = [], {}

    def log_message(self, *args):
        pass

    def answer(self, status, headers=(), body=b''):
        self.send_response_only(status)
        for name, value in dict({'Content-Length': str(len(body))}, **dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        path = urllib.parse.unquote(self.path.partition('?')[0])
        if path.startswith('/-/'):
            return self.tell(path[3:])
        if path.startswith('/v1/'):
            return self.proxy_there(path, body)
        device, _part, *names = path[1:].split('/', 4)
        assert device in DEVICES and self.command in ('GET', 'HEAD'), path
        if len(names) == 3:
            return self.object_here(names[2])
        headers = {'X-Backend-Storage-Policy-Index': '1' if names[-1] == 'silver' else '0', 'X-Backend-Timestamp': stamp(0),
                   'X-Timestamp': stamp(0), 'X-PUT-Timestamp': stamp(0), 'Content-Type': 'text/plain'}
        for kind in ('Account-Container', 'Account-Object', 'Container-Object'):
            headers['X-%s-Count' % kind] = '1'
        headers.update({'X-Account-Bytes-Used': '1', 'X-Container-Bytes-Used': '1'})
        self.answer(204, headers)

    def tell(self, what):
        with self.lock:
            told = json.dumps(self.seen)
            self.seen.clear()
            if what == 'forget':
                self.there.clear()
        self.answer(200, body=told.encode())

    def object_here(self, name):
        at = stamp(seconds(name) - (50 if name.startswith('old') else 0))
        if name.startswith('missing'):
            return self.answer(404, {'X-Backend-Timestamp': at})
        body = body_of(name)
        headers = {'X-Timestamp': at, 'X-Backend-Timestamp': at, 'X-Backend-Data-Timestamp': at,
                   'X-Backend-Durable-Timestamp': at, 'Content-Type': 'text/plain; charset=x', 'Last-Modified':
                   'Sun, 01 Jan 2023 00:00:00 GMT', 'ETag': '"%s"' % digest(body),
                   'X-Object-Meta-Name': urllib.parse.quote(name), 'X-Object-Sysmeta-Inner': 'stays', 'X-Delete-At': '4000000000'}
        if name.startswith('slo'):
            headers.update({'X-Static-Large-Object': 'True', 'Content-Type': 'a/b;c=d;swift_bytes=99'})
        if name.startswith('link'):
            headers['X-Object-Sysmeta-Versions-Symlink'] = 'true'
        self.answer(200, headers, body)

    def proxy_there(self, path, body):
        name = path.split('/', 4)[4]
        headers = {key.lower(): value for key, value in self.headers.items()}
        for dropped in ('host', 'connection', 'user-agent', 'accept-encoding', 'x-trans-id', 'x-openstack-request-id'):
            headers.pop(dropped, None)
        if 'x-container-sync-auth' in headers:
            realm, nonce, sig = headers.pop('x-container-sync-auth').split()
            signed = '\n'.join((self.command, self.path, headers.get('x-timestamp', '0'), nonce, USER_KEY))
            right = hmac.new(KEY.encode(), signed.encode(), 'sha1').hexdigest()
            headers['signed'] = (realm, len(nonce), sig == right)
        with self.lock:
            self.seen.append((self.command, self.path, sorted(headers.items()), len(body), digest(body)))
        fails = re.match(r'(head|put|delete)(\d+)', name)
        if fails and fails[1] == self.command.lower():
            return self.answer(int(fails[2]))
        if self.command == 'HEAD':
            at = self.there.get(path) or (stamp(500) if name.startswith('newer') else None)
            return self.answer(200, {'X-Timestamp': at}) if at else self.answer(404)
        self.there[path] = headers['x-timestamp'] if self.command == 'PUT' else None
        self.answer(201 if self.command == 'PUT' else 204)

    do_GET = do_HEAD = do_PUT = do_DELETE = handle_any


class Server(http.server.ThreadingHTTPServer):
    # All rows of a batch come at once, each to three servers.
    request_queue_size = 512

    def handle_error(self, request, client_address):
        """Of three answers the proxy takes one, and hangs up on the others."""


if __name__ == '__main__':
    servers = [Server(('127.0.0.1', int(port)), Cluster) for port in sys.argv[2:]]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()
