"""ec_client.py PORT STEP: a client's requests for objects of an erasure coded policy, and what comes back.

Printed is a line for each request, with what does not depend on the time or on who serves: status, some headers, and the MD5
of the body. Whatever is wrong by itself ends the script. STEP is `write` (and reads everything), `read` (only that), or
`degraded` (what can be done with a node down).
"""
import hashlib
import http.client
import sys

SEGMENT = 1 << 20
SIZES = [0, 1, 79, 4096, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 12345]
MANY_RANGES = [79, 3 * SEGMENT + 12345]
SHOWN = ['content-length', 'content-range', 'content-type', 'etag', 'accept-ranges', 'x-object-meta-colour', 'x-storage-policy']


def data(size):
    block = bytes((i * 167 + (i >> 8) * 13 + 5) % 256 for i in range(min(size, 70001)))
    return (block * (size // max(len(block), 1) + 1))[:size]


def md5(text):
    return hashlib.md5(text).hexdigest()


class Client:
    def __init__(self, port):
        self.connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
        self.connection.request('GET', '/auth/v1.0', headers={'X-Auth-User': 'test:tester', 'X-Auth-Key': 'testing'})
        response = self.connection.getresponse()
        response.read()
        self.token = response.getheader('X-Auth-Token')
        self.base = '/v1/' + response.getheader('X-Storage-Url').rsplit('/v1/')[1]

    def __call__(self, method, path, body=None, quiet=False, **headers):
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        named = dict(headers)
        headers['X-Auth-Token'] = self.token
        self.connection.request(method, self.base + path, body=body, headers=headers,
                                encode_chunked='Transfer-Encoding' in headers)
        response = self.connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        content = response.read()
        if not quiet:
            self.show(method, path, named, response.status, found, content)
        return response.status, found, content

    @staticmethod
    def show(method, path, named, status, found, content):
        kind = found.get('content-type', '')
        if kind.startswith('multipart/byteranges'):
            boundary = kind.split('boundary=')[1]
            found['content-type'] = 'multipart/byteranges'
            content = content.replace(boundary.encode(), b'BOUNDARY')
            if found['content-length'] != str(len(content) + (content.count(b'BOUNDARY') * (len(boundary) - 8))):
                sys.exit('a multipart document of the wrong length')
            found['content-length'] = str(len(content))
        elif method == 'GET' and len(content) != int(found['content-length']):
            sys.exit('%s %s: %s bytes, Content-Length %s' % (method, path, len(content), found['content-length']))
        if 400 <= status and 'text' in kind:
            content = b''
            found = {name: value for name, value in found.items() if name == 'content-range'}
        leaked = [name for name in found if name.startswith('x-object-sysmeta')]
        if leaked:
            sys.exit('%s %s shows %s' % (method, path, leaked))
        shown = {name: found[name] for name in SHOWN if name in found}
        print(method, path, sorted(named.items()), status, sorted(shown.items()), md5(content))


def ranges_of(size):
    ends = [0, 1, size // 2, max(size - 1, 0), size, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT - 1]
    if size not in MANY_RANGES:
        ends = ends[:2]
    for start in ends:
        for end in ends:
            if start <= end:
                yield 'bytes=%d-%d' % (start, end)
        yield 'bytes=%d-' % start
    for suffix in (1, 100, size // 2 + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 10 * SEGMENT):
        yield 'bytes=-%d' % suffix
    yield 'bytes=0-0,5-9'
    yield 'bytes=5-9,0-0,20-30'
    yield 'bytes=0-10,%d-%d,-5' % (SEGMENT - 5, SEGMENT + 5)
    yield 'bytes=%d-%d,%d-%d' % (2 * SEGMENT - 3, 2 * SEGMENT + 3, 10, 20)
    yield 'bytes=0-9,99999999-'
    yield 'bytes=%d-%d,0-1' % (size, size + 10)
    yield 'bytes=99999999-,88888888-'
    yield 'bytes=-0'
    if size:
        # Of an object without bytes Python's proxy answers with 500.
        yield 'bytes=10-5'
        yield 'lines=1-2'
    yield 'bytes=0-5,3-9,4-12,2-7'


def sliced(text, size):
    """What a single range is to bring."""
    first, last = text.split('=')[1].split('-')
    if not first:
        return slice(max(size - int(last), 0), size)
    return slice(int(first), min(int(last) + 1, size) if last else size)


def read(client):
    for size in SIZES:
        path = '/ec/object-%d' % size
        body = data(size)
        status, headers, content = client('GET', path)
        if (status, content, headers['etag'].strip('"')) != (200, body, md5(body)):
            sys.exit('%s: %s, %d of %d bytes, ETag %s' % (path, status, len(content), size, headers['etag']))
        client('HEAD', path)
        for text in ranges_of(size):
            status, _, content = client('GET', path, Range=text)
            if status == 206 and ',' not in text and content != body[sliced(text, size)]:
                sys.exit('%s %s brings other bytes' % (path, text))
        etag = md5(body)
        client('GET', path, If_None_Match=etag)
        client('GET', path, If_None_Match='x')
        client('GET', path, If_Match='x')
        client('GET', path, If_Match=etag, Range='bytes=0-1')
        client('HEAD', path, If_Match='x')
        client('GET', path, If_Modified_Since='Fri, 01 Jan 2100 00:00:00 GMT')
        client('GET', path, If_Unmodified_Since='Fri, 01 Jan 2010 00:00:00 GMT')
    client('GET', '/ec/chunked')
    client('GET', '/ec/copied')
    client('HEAD', '/ec/posted')
    client('GET', '/ec/posted')
    client('GET', '/ec/deleted')
    client('HEAD', '/ec/deleted')
    client('GET', '/ec/never')
    client('GET', '/ec/never', Range='bytes=0-1')


def write(client):
    client('PUT', '/ec', X_Storage_Policy='erasure')
    for size in SIZES:
        client('PUT', '/ec/object-%d' % size, data(size), Content_Type='a/b')
        client('PUT', '/ec/object-%d' % size, data(size), ETag=md5(data(size)), Content_Type='a/b')
    body = data(2 * SEGMENT + 7)
    pieces = [body[i:i + 65000] for i in range(0, len(body), 65000)]
    client('PUT', '/ec/chunked', iter(pieces), Transfer_Encoding='chunked', Content_Type='c/d')
    client('PUT', '/ec/refused', data(5000), ETag='0' * 32)
    client('GET', '/ec/refused')
    client('PUT', '/ec/object-1', data(9), If_None_Match='*')
    client('PUT', '/ec/new', data(9), If_None_Match='*')
    client('PUT', '/ec/new', data(9), X_Timestamp='1.00000')
    client('PUT', '/ec/copied', b'', X_Copy_From='/ec/object-%d' % SIZES[-1])
    client('PUT', '/ec/posted', data(100000), X_Object_Meta_Colour='red')
    client('POST', '/ec/posted', X_Object_Meta_Colour='blue')
    client('PUT', '/ec/deleted', data(100))
    client('DELETE', '/ec/deleted')
    client('DELETE', '/ec/deleted')
    client('POST', '/ec/deleted', X_Object_Meta_Colour='blue')
    read(client)


def degraded(client):
    read(client)
    for size in SIZES:
        path = '/ec/degraded-%d' % size
        client('PUT', path, data(size), Content_Type='a/b')
        status, _, content = client('GET', path)
        if (status, content) != (200, data(size)):
            sys.exit('%s: %s, %d of %d bytes' % (path, status, len(content), size))


{'write': write, 'read': read, 'degraded': degraded}[sys.argv[2]](Client(int(sys.argv[1])))
