#!/usr/bin/env python3
"""Sends a table of requests to two object servers and compares the answers: status, headers, body.

    object_server.py HOST:PORT HOST:PORT [PY_DEVICES RS_DEVICES SWIFT_DIR]

The first is Python Swift's, the second Martlet's, each on an empty device sda1 of its own, with policies 0 and 1. With
the two `devices` folders and the folder of swift.conf as well, each one's files are then read by Python's DiskFile
from the other's disk: what both have written must be the same objects. Prints the differences; exits with 1 if any.
"""
import hashlib
import json
import os
import pickle
import re
import socket
import sys

NOW = 1700000000.0
DROPPED = {'date', 'connection', 'x-trans-id', 'x-openstack-request-id', 'keep-alive'}


def ts(delta=0.0):
    return '%016.05f' % (NOW + delta)


def md5(data):
    return hashlib.md5(data).hexdigest()


def put(path, delta, body=b'', **headers):
    all_headers = {'X-Timestamp': ts(delta), 'Content-Type': 'text/plain'}
    all_headers.update({k.replace('_', '-'): v for k, v in headers.items()})
    return ('PUT', path, {k: v for k, v in all_headers.items() if v is not None}, body)


def req(method, path, delta=None, body=None, **headers):
    all_headers = {} if delta is None else {'X-Timestamp': ts(delta)}
    all_headers.update({k.replace('_', '-'): v for k, v in headers.items()})
    return (method, path, all_headers, body)


def mime(*documents):
    out = b''
    for headers, body in documents:
        head = ''.join('%s: %s\r\n' % item for item in headers.items())
        out += b'--b\r\n' + head.encode() + b'\r\n' + body + b'\r\n'
    return out + b'--b--'


def table():
    big = bytes(range(256)) * 1024
    o = '/sda1/5/a/c/o'
    yield req('GET', o)
    yield req('HEAD', o)
    yield req('GET', o, If_Match='*')
    yield req('HEAD', o, If_Match='*')
    yield req('POST', o, 0)
    yield req('DELETE', o, 0)
    yield req('GET', o)
    yield put(o, 0, b'older than the tombstone')
    yield put(o, 1, b'hello', X_Object_Meta_A='1', X_Object_Sysmeta_B='2', Content_Encoding='gzip', X_Foo='bar',
              X_Object_Transient_Sysmeta_T='t', Content_Disposition='attachment', ETag='"%s"' % md5(b'hello'))
    for method in ('GET', 'HEAD'):
        yield req(method, o)
        yield req(method, o, If_None_Match='"%s"' % md5(b'hello'))
        yield req(method, o, If_None_Match='*')
        yield req(method, o, If_Match='x, %s' % md5(b'hello'))
        yield req(method, o, If_Match='x')
        yield req(method, o, If_Modified_Since='Tue, 14 Nov 2023 22:13:21 GMT')
        yield req(method, o, If_Modified_Since='Tue, 14 Nov 2023 22:13:20 GMT')
        yield req(method, o, If_Unmodified_Since='Tue, 14 Nov 2023 22:13:20 GMT')
        yield req(method, o, If_Modified_Since='nonsense')
        yield req(method, o, Range='bytes=1-2')
        yield req(method, o, X_Backend_Etag_Is_At='X-Object-Sysmeta-B', If_Match='2')
        yield req(method, o, X_Timestamp='nonsense')
    for value in ('bytes=0-0', 'bytes=-2', 'bytes=3-', 'bytes=5-', 'bytes=0-1,3-3', 'bytes=9-10,0-0', 'bytes=2-1',
                  'bytes=', 'lines=0-1', 'bytes=-0', 'bytes=0-4,0-4,0-4,0-4'):
        yield req('GET', o, Range=value)
    yield req('GET', o, Range='bytes=0-0', X_Backend_Ignore_Range_If_Metadata_Present='x-none, X-Object-Meta-A')
    yield put(o, 1, b'same time')
    yield put(o, 0.5, b'older')
    yield put(o, 2, b'hello', ETag='0' * 32)
    yield put(o, 2, b'hello', If_None_Match='*')
    yield put(o, 2, b'hello', If_None_Match=md5(b'hello'))
    yield put(o, 2, b'hello', Content_Type=None)
    yield put(o, 2, b'hello', X_Timestamp=None)
    yield put(o, 2, b'hello', X_Timestamp='nonsense')
    yield put(o, 2, b'hello', X_Delete_At='nonsense')
    yield put(o, 2, b'hello', X_Delete_At='17')
    yield put(o, 2, b'hello', X_Delete_After='-1')
    yield put(o, 2, b'hello', X_Delete_After='x')
    yield put(o, 2, b'', Content_Length='99999999999')
    yield put(o, 2, b'hello', X_Object_Meta_='x')
    yield put(o, 2, b'hello', X_Object_Meta_Long='v' * 257)
    yield put(o, 2, b'hello', **{'X_Object_Meta_' + 'n' * 129: 'v'})
    yield put(o, 2, b'', Transfer_Encoding='gzip')
    yield put(o, 2, b'', Transfer_Encoding='gzip,chunked')
    yield put('/sda1/5/a/c/' + 'n' * 1025, 2, b'hello')
    yield req('POST', o, 1.5, X_Object_Meta_New='n', X_Object_Sysmeta_No='n', Content_Disposition='inline')
    yield req('GET', o)
    yield req('POST', o, 1.5, X_Object_Meta_New='n')
    yield req('POST', o, 1.2, X_Object_Meta_New='n')
    yield req('POST', o, 1.6, Content_Type='image/png')
    yield req('GET', o)
    yield req('POST', o, 1.7)
    yield req('HEAD', o)
    yield req('POST', o, 1.7, Content_Type='image/gif', Content_Type_Timestamp=ts(1.65))
    yield req('HEAD', o)
    yield req('POST', o, 1.8, Content_Type='a/b', Content_Type_Timestamp='nonsense')
    yield req('POST', o, 1.8, X_Delete_At='x')
    yield req('POST', o, 1.8, X_Delete_At='5')
    yield req('POST', o, 1.8, X_Object_Meta_='x')
    yield req('POST', o)
    for name, size in (('/sda1/5/a/c/\u00e9\u2603 %', 0), ('/sda1/5/a/c/with/slash//es/', 65536),
                       ('/sda1/5/a/c/large', 262144)):
        yield put(name, 1, big[:size], X_Object_Meta_Utf8='caf\u00c3\u00a9', **{'X-Object-Meta-N\u00c3\u00a4me': 'v'})
        yield req('GET', name)
        yield req('GET', name, Range='bytes=100-200,-5')
        yield req('HEAD', name)
    yield ('PUT', '/sda1/5/a/c/chunked', {'X-Timestamp': ts(), 'Content-Type': 'a/b'}, [b'one', b'two', big])
    yield req('GET', '/sda1/5/a/c/chunked')
    footers = json.dumps({'X-Object-Sysmeta-Foot': 'er', 'Etag': md5(b'data')}).encode()
    staged = {'X-Timestamp': ts(), 'Content-Type': 'a/b', 'X-Backend-Obj-Metadata-Footer': 'yes',
              'X-Backend-Obj-Multipart-Mime-Boundary': 'b'}
    good = {'X-Document': 'object metadata', 'Content-MD5': md5(footers)}
    yield ('PUT', '/sda1/5/a/c/foot', staged, [mime(({}, b'data'), (good, footers))])
    yield req('GET', '/sda1/5/a/c/foot')
    later = dict(staged, **{'X-Timestamp': ts(9)})
    yield ('PUT', '/sda1/5/a/c/foot', later, [mime(({}, b'data'), ({'Content-MD5': 'x'}, footers))])
    yield ('PUT', '/sda1/5/a/c/foot', later, [mime(({}, b'data'), ({}, footers))])
    yield ('PUT', '/sda1/5/a/c/foot', later, [mime(({}, b'data'), ({'Content-MD5': md5(b'{')}, b'{'))])
    yield ('PUT', '/sda1/5/a/c/foot', later, [mime(({}, b'data'))])
    yield ('PUT', '/sda1/5/a/c/foot', later, [mime(({}, b'other'), (good, footers))])
    yield ('PUT', '/sda1/5/a/c/foot', dict(later, **{'X-Backend-Obj-Multipart-Mime-Boundary': ''}), [b'x'])
    at = str(int(NOW) + 4000000000)
    yield put('/sda1/5/a/c/expires', 0, b'x', X_Delete_At=at, X_Delete_At_Container='5')
    yield req('HEAD', '/sda1/5/a/c/expires')
    yield req('POST', '/sda1/5/a/c/expires', 1, X_Delete_At=str(int(at) + 1))
    yield req('GET', '/sda1/5/a/c/expires', X_Timestamp='%d' % (int(at) + 2))
    yield req('GET', '/sda1/5/a/c/expires', X_Timestamp='%d' % (int(at) + 2), X_Backend_Open_Expired='yes')
    yield req('DELETE', '/sda1/5/a/c/expires', 2, X_If_Delete_At='nonsense')
    yield req('DELETE', '/sda1/5/a/c/expires', 2, X_If_Delete_At='5')
    yield req('DELETE', '/sda1/5/a/c/expires', 0.5, X_If_Delete_At=str(int(at) + 1))
    yield req('DELETE', '/sda1/5/a/c/none', 2, X_If_Delete_At='5')
    yield req('DELETE', '/sda1/5/a/c/expires', 2, X_If_Delete_At=str(int(at) + 1))
    yield put('/sda1/5/a/c/replicated', 0, b'x', X_Delete_At='17', X_Backend_Replication='true',
              X_Backend_Replication_Headers='content-type x-delete-at x-other', X_Other='o')
    yield req('HEAD', '/sda1/5/a/c/replicated')
    yield req('HEAD', '/sda1/5/a/c/replicated', X_Backend_Replication='true')
    yield put('/sda1/5/a/c/policy', 0, b'x', X_Backend_Storage_Policy_Index='1')
    yield req('GET', '/sda1/5/a/c/policy')
    yield req('GET', '/sda1/5/a/c/policy', X_Backend_Storage_Policy_Index='1')
    yield req('GET', '/sda1/5/a/c/policy', X_Backend_Storage_Policy_Index='77')
    yield req('GET', '/sda1/5/a/c/policy', X_Backend_Storage_Policy_Index='x')
    yield put('/sda1/5/a/c/updates', 0, b'x', X_Container_Host='127.0.0.1:1,127.0.0.1:1', X_Container_Device='d1,d2',
              X_Container_Partition='3', X_Trans_Id='tx1', X_Backend_Container_Update_Override_Etag='e',
              X_Object_Sysmeta_Container_Update_Override_Size='77', X_Backend_Container_Path='.shards_a/c-1')
    yield req('POST', '/sda1/5/a/c/updates', 1, Content_Type='b/c', X_Container_Host='127.0.0.1:1',
              X_Container_Device='d1', X_Container_Partition='3')
    yield req('DELETE', '/sda1/5/a/c/updates', 2, X_Container_Host='127.0.0.1:1', X_Container_Device='d1',
              X_Container_Partition='3')
    yield put('/sda1/5/a/c/queued', 0, b'four', X_Delete_At=at, X_Delete_At_Host='127.0.0.1:1',
              X_Delete_At_Device='d1', X_Delete_At_Partition='3')
    for path in ('/', '/sda1', '/sda1/5', '/sda1/5/a', '/sda1/5/a/c', '/./5/a/c/o',
                 '/sda1/../a/c/o', '/none/5/a/c/o', '/sda1/5/a/c/r%00s', '/sda1/5/a/%00c/o', '/sda1/5/a/%00c/%00o',
                 '/sda1/5/%00a/c/o', '/sda1/5/.a/c/%00o', '/sda1/5/a/c/%ff', '/sda1/5/a/c/o?x=y'):
        for method in ('GET', 'DELETE', 'PUT'):
            yield (method, path, {'X-Timestamp': ts(-1), 'Content-Type': 'a/b'}, b'' if method == 'PUT' else None)
    for method in ('FOO', 'COPY', 'get', '__init__', 'setup'):
        yield req(method, o)
    yield req('OPTIONS', '/sda1/5/a/c/o')
    yield req('OPTIONS', '/')
    yield req('REPLICATE', '/sda1/5')
    yield req('REPLICATE', '/sda1/5/abc-def')
    yield req('REPLICATE', '/sda1/77')
    yield req('REPLICATE', '/none/5')
    yield req('REPLICATE', '/sda1')
    yield req('DELETE', o, 1)
    yield req('DELETE', o, 1.4)
    yield req('DELETE', o, 3)
    yield req('GET', o)
    yield req('GET', '/healthcheck')


def ask(address, request):
    """Status, headers and body of the answer to one request, read by hand: http.client stops at a non-ASCII header name."""
    method, path, headers, body = request
    path = ''.join(c if ord(c) < 128 and c != ' ' else ''.join('%%%02X' % b for b in c.encode()) for c in path)
    path = re.sub('%(?![0-9A-Fa-f]{2})', '%25', path)
    lines = ['%s %s HTTP/1.1' % (method, path), 'Host: %s' % address, 'Connection: close']
    lines += ['%s: %s' % item for item in headers.items()]
    if isinstance(body, list):
        lines.append('Transfer-Encoding: chunked')
        body = b''.join(b'%x\r\n%s\r\n' % (len(piece), piece) for piece in body) + b'0\r\n\r\n'
    elif body is not None and not {'Content-Length', 'Transfer-Encoding'} & set(headers):
        lines.append('Content-Length: %d' % len(body))
    elif 'Content-Length' in headers:
        body = None
    host, port = address.split(':')
    with socket.create_connection((host, int(port)), timeout=20) as s:
        s.sendall('\r\n'.join(lines).encode('latin1') + b'\r\n\r\n' + (body or b''))
        head, _, data = s.makefile('rb').read().partition(b'\r\n\r\n')
    status, *headers = head.decode('latin1').split('\r\n')
    headers = sorted((k.lower(), v) for k, v in (line.split(': ', 1) for line in headers) if k.lower() not in DROPPED)
    boundary = re.search('boundary=([0-9a-f]+)', dict(headers).get('content-type', ''))
    if boundary:
        data = data.replace(boundary.group(1).encode(), b'BOUNDARY')
        headers = [(k, v.replace(boundary.group(1), 'BOUNDARY')) for k, v in headers]
    if method == 'REPLICATE' and ' 200 ' in status:
        assert dict(headers).get('transfer-encoding') is None
        data = repr(pickle.loads(data)).encode()
    return status, headers, data


def compare_answers(first, second):
    differences = count = good = 0
    for request in table():
        count += 1
        one, two = ask(first, request), ask(second, request)
        good += ' 20' in one[0]
        if one == two:
            continue
        differences += 1
        print('%s %s %s' % (request[0], request[1][:60], request[2]))
        if one[0] != two[0]:
            print('    status   %s | %s' % (one[0], two[0]))
        for header in sorted(set(one[1]) ^ set(two[1])):
            print('    %-8s %s: %s' % ('python' if header in one[1] else 'martlet', *header))
        if one[2] != two[2]:
            print('    body     %r | %r' % (one[2][:200], two[2][:200]))
    print('%d requests, %d answered differently' % (count, differences))
    assert good > 70, good
    return differences


def objects(devices, conf):
    """What Python's diskfile reads: names and metadata, data digests; and the pending updates."""
    from swift.common.storage_policy import POLICIES
    from swift.common.utils.pickle import unpickle
    from swift.common.utils import audit_location_generator, get_logger
    from swift.obj import diskfile
    router = diskfile.DiskFileRouter(dict(conf, devices=devices), get_logger({}))
    found = {}
    for policy in POLICIES:
        manager = router[policy]
        datadir = diskfile.get_data_dir(policy)
        for path, device, partition in audit_location_generator(devices, datadir, '.data', mount_check=False):
            location = diskfile.AuditLocation(os.path.dirname(path), device, partition, policy)
            df = manager.get_diskfile_from_audit_location(location)
            with df.open(current_time=0):
                digest = hashlib.md5(b''.join(df.reader())).hexdigest()
                found[int(policy), df._name, 'data'] = (digest, sorted(df.get_metadata().items()))
        hashes = {}
        for partition in os.listdir(os.path.join(devices, 'sda1', datadir)):
            hashes[partition] = sorted(manager.get_hashes('sda1', partition, [], policy).items())
        found[int(policy), 'hashes'] = hashes
        asyncs = os.path.join(devices, 'sda1', diskfile.get_async_dir(policy))
        for folder, _, files in os.walk(asyncs):
            for name in files:
                with open(os.path.join(folder, name), 'rb') as f:
                    update = unpickle(f.read())
                update['headers'] = {k: v for k, v in update['headers'].items() if k not in ('User-Agent', 'Referer')}
                found[int(policy), 'async', name] = sorted(update.items(), key=lambda i: i[0])
    return found


def compare_disks(first, second, swift_dir):
    from swift.common import storage_policy, utils
    utils.set_swift_dir(swift_dir)
    storage_policy.reload_storage_policies()
    one, two = (objects(devices, {'mount_check': 'false'}) for devices in (first, second))
    differences = 0
    for key in sorted(set(one) | set(two), key=repr):
        if one.get(key) != two.get(key):
            differences += 1
            print('%s\n    python   %s\n    martlet  %s' % (key, one.get(key), two.get(key)))
    print('%d things on disk, %d differ' % (len(set(one) | set(two)), differences))
    return differences


def main():
    differences = compare_answers(*sys.argv[1:3])
    if len(sys.argv) > 3:
        differences += compare_disks(*sys.argv[3:6])
    sys.exit(1 if differences else 0)


if __name__ == '__main__':
    main()
