"""ec_client.py PORT STEP [few]: a client's requests for objects of an erasure coded policy, and what comes back.

Printed is a line for each request, with what does not depend on the time or on who serves: status, some headers, and the MD5
of the body. Whatever is wrong by itself ends the script. STEP is `write` (and reads everything), `read` (only that),
`degraded` (what can be done with a node down), or `refused` (objects of one segment, many enough to meet a device that is
not there). With `few` there are fewer objects, and fewer ranges of them.
"""
import hashlib
import http.client
import json
import re
import sys

SEGMENT = 1 << 20
SIZES = [0, 1, 79, 4096, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 12345]
MANY_RANGES = [79, 3 * SEGMENT + 12345]
if sys.argv[3:] == ['few']:
    SIZES, MANY_RANGES = SIZES[2::5], [79]
SHOWN = ['content-length', 'content-range', 'content-type', 'etag', 'accept-ranges', 'x-object-meta-colour', 'x-storage-policy',
         'x-static-large-object', 'x-object-manifest', 'x-copied-from', 'x-parts-count']
# Sizes of the parts of large objects.
PARTS = [SEGMENT + 5, 1, 70000, 2 * SEGMENT]


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
        if 'manifest=get' in path:
            # It tells the time, and the ETag is of what it tells.
            found.pop('etag', None)
            content = re.sub(rb'"last_modified": "[^"]*"', b'', content)
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


def write_large(client):
    """Objects of many objects."""
    parts = [('/ec/part/%d' % number, data(size)) for number, size in enumerate(PARTS)]
    for path, body in parts:
        client('PUT', path, body)
    segments = [{'path': path, 'etag': md5(body), 'size_bytes': len(body)} for path, body in parts]
    inline = [{'data': 'aW5saW5l'}]
    sub = [dict(segments[3], range='%d-%d' % (SEGMENT - 10, SEGMENT + 9)), dict(segments[0], range='-3')]
    for name, manifest in (('plain', segments), ('ranged', sub + inline + segments[2:3]),
                           ('bad', [dict(segments[0], etag='0' * 32)]), ('missing', [{'path': '/ec/part/x'}])):
        client('PUT', '/ec/slo-%s?multipart-manifest=put' % name, json.dumps(manifest), Content_Type='a/slo')
    nested = [{'path': '/ec/slo-ranged'}, dict(segments[1])]
    client('PUT', '/ec/slo-nested?multipart-manifest=put', json.dumps(nested))
    client('PUT', '/ec/dlo', b'', X_Object_Manifest='ec/part/', Content_Type='a/dlo')
    client('COPY', '/ec/slo-ranged', Destination='/ec/slo-copied')
    client('COPY', '/ec/slo-ranged?multipart-manifest=get', Destination='/ec/slo-recopied?multipart-manifest=get')
    client('COPY', '/ec/dlo', Destination='/ec/dlo-copied', X_Object_Meta_Colour='green')
    client('PUT', '/plain')
    client('COPY', '/ec/part/3', Destination='/plain/part')
    client('COPY', '/plain/part', Destination='/ec/back', X_Fresh_Metadata='true', X_Object_Meta_Colour='grey')
    client('PUT', '/ec/range-of-it', b'', X_Copy_From='/ec/part/3', Range='bytes=5-%d' % (SEGMENT + 5))
    client('COPY', '/ec/never', Destination='/ec/never-copied')
    client('PUT', '/ec/gone-0', b'gone')
    client('PUT', '/ec/gone?multipart-manifest=put', json.dumps([{'path': '/ec/gone-0'}]))
    client('DELETE', '/ec/gone?multipart-manifest=delete')


def read_large(client):
    bodies = {'slo-plain': b''.join(map(data, PARTS)), 'dlo': b''.join(map(data, PARTS)), 'back': data(PARTS[3])}
    bodies['slo-ranged'] = data(PARTS[3])[SEGMENT - 10:SEGMENT + 10] + data(PARTS[0])[-3:] + b'inline' + data(PARTS[2])
    bodies['slo-nested'] = bodies['slo-ranged'] + data(PARTS[1])
    bodies['slo-copied'], bodies['dlo-copied'] = bodies['slo-ranged'], bodies['dlo']
    bodies['range-of-it'] = data(PARTS[3])[5:SEGMENT + 6]
    for name, body in bodies.items():
        path = '/ec/' + name
        status, headers, content = client('GET', path)
        if (status, content) != (200, body):
            sys.exit('%s: %s, %d of %d bytes' % (path, status, len(content), len(body)))
        client('HEAD', path)
        first = PARTS[0]
        for text in ('0-0', '%d-%d' % (first - 3, first + 3), '%d-' % (len(body) - 7), '-%d' % (first + 9), '%d-' % len(body),
                     '0-4,%d-%d,-5' % (first - 5, first + 5), '0-9,%d-' % len(body), '3-9,2-7,20-22', '21-24,8-30'):
            status, _, content = client('GET', path, Range='bytes=' + text)
            if status == 206 and ',' not in text and content != body[sliced('=' + text, len(body))]:
                sys.exit('%s %s brings other bytes' % (path, text))
        client('GET', path, If_None_Match=headers['etag'].strip('"'))
        client('GET', path, If_Match='x')
    for name in ('slo-plain', 'slo-ranged', 'slo-nested', 'slo-recopied', 'dlo'):
        client('GET', '/ec/%s?multipart-manifest=get' % name)
    for number in (0, 1, 4, 5):
        client('GET', '/ec/slo-plain?part-number=%d' % number)
        client('HEAD', '/ec/slo-plain?part-number=%d' % number)
    for name in ('slo-bad', 'slo-missing', 'slo-recopied', 'gone', 'gone-0', 'never-copied'):
        client('GET', '/ec/' + name)


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
    read_large(client)


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
    write_large(client)
    read(client)


def degraded(client):
    read(client)
    for size in SIZES:
        path = '/ec/degraded-%d' % size
        client('PUT', path, data(size), Content_Type='a/b')
        status, _, content = client('GET', path)
        if (status, content) != (200, data(size)):
            sys.exit('%s: %s, %d of %d bytes' % (path, status, len(content), size))


def refused(client):
    client('PUT', '/ec', quiet=True, X_Storage_Policy='erasure')
    paths = [('/ec/refused-%d-%d' % (size, number), size) for size in (4096, 250 << 10, SEGMENT) for number in range(8)]
    for path, size in paths:
        client('PUT', path, data(size), Content_Type='a/b')
    for path, size in paths:
        client('GET', path)


{'write': write, 'read': read, 'degraded': degraded, 'refused': refused}[sys.argv[2]](Client(int(sys.argv[1])))
