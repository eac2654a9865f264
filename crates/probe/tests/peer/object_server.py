#!/usr/bin/env python3
"""Sends a table of requests to two object servers and compares the answers: status, headers, body.

    object_server.py [--hasty | --ec] HOST:PORT HOST:PORT [PY_DEVICES RS_DEVICES SWIFT_DIR [PY_STATSD RS_STATSD PY_LOG RS_LOG]]

The first is Python Swift's, the second Martlet's, each on an empty device sda1 of its own, with policies 0 and 1. With
the two `devices` folders and the folder of swift.conf as well, each one's files are then read by Python's DiskFile
from the other's disk: what both have written must be the same objects, in files of the same names. With the four UDP
ports that the servers send metrics and log lines to, those are compared too. Container updates go to a server of this
script. With --hasty the table is another one, for servers that do not wait long, for clients that stall or go away in every
phase, and for options which are not the default; with --ec it is the one of object_server_ec.py. Prints the differences; exits with 1 if any.
"""
import hashlib
import json
import os
import pickle
import re
import select
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from containers import DEAD, SILENT, ContainerServers, response

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


def table(containers):
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
    for path in ('/sda1/5/a\u00e9/c\u2603/o', '/sda1/5/a b/c,d=e/o', '/sda1/5/a/c/o/p'):
        yield put(path, 0, b'x')
        yield req('GET', path)
    for part in (reading(), writing(), posting(), deleting(), updating(containers), staging(containers), part_power()):
        yield from part


def reading():
    o, empty = '/sda1/6/a/c/read', '/sda1/6/a/c/empty'
    body = b'0123456789'
    etag, other = md5(body), '0' * 32
    yield put(o, 0, body, X_Object_Sysmeta_Other_Etag='other', X_Object_Meta_One='1', Cache_Control='no-cache',
              Content_Language='en', Expires='never', X_Robots_Tag='none', X_Object_Manifest='c/p',
              X_Static_Large_Object='True', X_Unknown='x')
    yield put(empty, 0)
    dates = {'before': 'Tue, 14 Nov 2023 22:13:19 GMT', 'at': 'Tue, 14 Nov 2023 22:13:20 GMT'}
    for method in ('GET', 'HEAD'):
        yield req(method, o)
        yield req(method, empty)
        for value in ('bytes=0-0,2-2,4-4', 'bytes=9-', 'bytes=-100', 'bytes=10-', 'bytes=-0', 'bytes=0-9999', 'bytes=8-99,0-1',
                      'bytes=0-1,1-2', 'bytes=0-4,0-4', 'bytes=5-6,0-1,3-4', 'bytes=x-y', 'bytes=1-0', 'bytes= 1 - 2 ',
                      'bytes=1-2, 3-4', 'bytes=1-2,', ',', 'bytes=--1', 'BYTES=1-2', 'bytes=0-0,20-30', 'bytes=20-30,40-50',
                      'bytes=' + ','.join('%d-%d' % (i % 10, i % 10) for i in range(51)),
                      'bytes=' + ','.join('%d-%d' % (i // 6, i // 6) for i in range(50)),
                      'bytes=' + ','.join('%d-%d' % (9 - i // 6, 9) for i in range(50))):
            yield req(method, o, Range=value)
        for value in ('bytes=0-0', 'bytes=-5', 'bytes=0-', 'bytes=0-0,1-1', 'bytes=-0'):
            yield req(method, empty, Range=value)
        for match in (None, etag, other, '"%s"' % etag, '*', 'W/"%s"' % etag):
            for none_match in (None, etag, other, '*'):
                headers = {'If-Match': match, 'If-None-Match': none_match}
                headers = {k: v for k, v in headers.items() if v}
                yield (method, o, headers, None)
                yield (method, o, dict(headers, Range='bytes=1-2'), None)
                yield (method, o, dict(headers, Range='bytes=20-'), None)
                yield (method, o, dict(headers, **{'If-Modified-Since': dates['at']}), None)
                yield (method, o, dict(headers, **{'If-Unmodified-Since': dates['before']}), None)
                yield (method, o, dict(headers, **{'If-Modified-Since': dates['before'],
                                                   'If-Unmodified-Since': dates['at']}), None)
        for names in ('X-Object-Sysmeta-Other-Etag', 'x-none,x-object-sysmeta-other-etag', 'X-None', '',
                      ' X-None , X-Object-Meta-One, X-Object-Sysmeta-Other-Etag'):
            for match in ('other', '1', etag):
                yield req(method, o, X_Backend_Etag_Is_At=names, If_Match=match)
                yield req(method, o, X_Backend_Etag_Is_At=names, If_None_Match=match)
                yield req(method, o, X_Backend_Etag_Is_At=names, If_None_Match=match, Range='bytes=0-1')
        for names in ('X-Static-Large-Object', 'x-static-large-object', 'X-Object-Meta-One,x', 'X-Unknown', 'Content-Type', ''):
            yield req(method, o, Range='bytes=0-0', X_Backend_Ignore_Range_If_Metadata_Present=names)
        yield req(method, o, Range='bytes=20-', X_Backend_Ignore_Range_If_Metadata_Present='ETag')
        yield req(method, o, If_Range=etag, Range='bytes=0-0')
        yield req(method, o, If_Range=other, Range='bytes=0-0')
        yield req(method, o, X_Backend_Fragment_Preferences='nonsense')
        yield req(method, o, X_Auth_Token='t')
        yield req(method, '/sda1/6/a/c/none', If_None_Match='*')
        yield req(method, '/sda1/6/a/c/none', If_Match=etag)
        yield req(method, '/sda1/6/a/c/none', Range='bytes=0-1')
        yield req(method, '/sda1/6/a/c/none', If_Unmodified_Since=dates['at'])
        for when in ('0', '-1', 'nan', '9' * 12, '1.5', '1700000001.00000_0000000000000001', '', '1e9'):
            yield req(method, o, X_Timestamp=when)


def writing():
    o = '/sda1/7/a/c/write'
    body = b'hello'
    etag = md5(body)
    for when in ('0', '-1', 'nan', '9' * 12, '1e3', '', '1600000000.12345678', '1600000001.00000_0000000000000001',
                 '1600000002.00000_zz', '1600000003', ' 1600000004 '):
        yield put(o, 0, body, X_Timestamp=when)
        yield req('HEAD', o)
    yield req('DELETE', o, X_Timestamp='1600000100.00000_0000000000000001')
    yield put(o, 0, body, X_Timestamp='1600000100.00000')
    yield put(o, 0, body, X_Timestamp='1600000100.00000_0000000000000002')
    yield req('GET', o)
    yield put(o, 1, body, If_None_Match='"%s"' % etag)
    yield put(o, 1, body, If_None_Match='x, "%s"' % etag)
    yield put(o, 1, body, If_None_Match='"*"')
    yield put(o, 1, body, If_None_Match='x')
    yield put(o, 0, body, If_None_Match='*')
    yield put(o, 2, body, If_Match='x')
    for value in (etag.upper(), '"%s"' % etag, 'W/"%s"' % etag, ' %s ' % etag, '""', '"', '"%s' % etag):
        yield put(o, 3, body, ETag=value)
    yield put(o, 4, body, X_Copy_From='c/o')
    yield put(o, 4, None, X_Copy_From='c/o')
    yield put(o, 4, None)
    yield put(o, 4, body, Content_Type='')
    yield put(o, 4, body, Content_Type='\xff')
    yield put(o, 4, body, Content_Type='text/html; charset="utf-8" ;swift_bytes=12')
    yield req('HEAD', o)
    for value in ('', '0', '1.5', '-5', '5x', '99999999999', '10000000000'):
        yield put(o, 5, body, X_Delete_At=value)
        yield req('HEAD', o)
    for value in ('', '0', '1.5', '-5'):
        yield put(o, 6, body, X_Delete_After=value)
    yield put(o, 7, body, X_Delete_At='17', X_Backend_Replication='true')
    yield put(o, 7, body, X_Delete_At=str(int(NOW)))
    yield put(o, 7, body, **{'X-Object-Meta-%d' % i: 'v' for i in range(91)})
    yield put(o, 7, body, **{'X-Object-Meta-%d' % i: 'v' for i in range(90)})
    yield put(o, 8, body, **{'X-Object-Meta-%d' % i: 'v' * 250 for i in range(17)})
    yield put(o, 8, body, **{'X-Object-Sysmeta-' + 'n' * 200: 'v' * 5000})
    yield put(o, 8.5, body, X_Object_Meta_Empty='', X_Object_Meta_Bad='\xff')
    yield req('GET', o)
    for told in ('5', '6', 'x', '', '5.0'):
        yield ('PUT', o, {'X-Timestamp': ts(9), 'Content-Type': 'a/b', 'X-Backend-Obj-Content-Length': told}, [body])
    yield put(o, 10, body, X_Backend_Obj_Content_Length='x')
    yield put(o, 11, body, X_Backend_No_Commit='true', X_Backend_Ssync_Frag_Index='1')
    yield put(o, 12, body, X_Backend_Replication_Headers='X-Other content-encoding ETag Content-Length X-Object-Meta-Z '
              'x-timestamp', X_Other='o', Content_Encoding='e', X_Object_Meta_Z='z')
    yield req('HEAD', o, X_Backend_Replication='true')
    for size in (0, 65535, 65536, 65537, 400000):
        path = '%s-%d' % (o, size)
        data = bytes(range(256)) * (size // 256) + b'x' * (size % 256)
        yield put(path, 0, data, ETag=md5(data))
        yield put(path, 1, data, ETag='0' * 32)
        yield ('PUT', path, {'X-Timestamp': ts(2), 'Content-Type': 'a/b', 'Expect': '100-continue',
                             'Content-Length': str(size)}, Talk([data]))
        yield ('PUT', path, {'X-Timestamp': ts(1), 'Content-Type': 'a/b', 'Expect': '100-continue',
                             'Content-Length': str(size)}, Talk([]))
        yield req('GET', path)
    # Less than was promised, and chunks that are none.
    yield ('PUT', o, {'X-Timestamp': ts(20), 'Content-Type': 'a/b', 'Content-Length': '10'}, Raw(b'hello'))
    yield ('PUT', o, {'X-Timestamp': ts(20), 'Content-Type': 'a/b', 'Content-Length': '1000000'}, Raw(b'hello' * 60000))
    yield ('PUT', o, {'X-Timestamp': ts(20), 'Content-Type': 'a/b', 'Transfer-Encoding': 'chunked'}, Raw(b'5\r\nhello\r\n'))
    yield ('PUT', o, {'X-Timestamp': ts(20), 'Content-Type': 'a/b', 'Transfer-Encoding': 'chunked'}, Raw(b'5\r\nhel'))
    yield ('PUT', o, {'X-Timestamp': ts(20), 'Content-Type': 'a/b', 'Transfer-Encoding': 'chunked'}, Raw(b'zz\r\nhello\r\n'))
    yield req('HEAD', o)


def posting():
    o, at = '/sda1/8/a/c/post', int(NOW) + 4000000000
    yield put(o, 0, b'data', Content_Type='text/plain;swift_bytes=99', X_Object_Meta_Old='o', X_Object_Sysmeta_S='s',
              X_Object_Transient_Sysmeta_T='t', Content_Encoding='gzip', X_Static_Large_Object='True')
    yield req('POST', o, 1, X_Object_Meta_New='n', X_Object_Transient_Sysmeta_U='u', X_Other='x', Content_Encoding='br',
              X_Object_Sysmeta_S='no', X_Backend_Replication_Headers='X-Other Content-Type')
    yield req('HEAD', o)
    yield req('POST', o, 2, Content_Type='image/png')
    yield req('HEAD', o)
    # Older than the metadata, with a newer type, and the other way round.
    yield req('POST', o, 1.5, Content_Type='image/gif', Content_Type_Timestamp=ts(2.5), X_Object_Meta_New='no')
    yield req('HEAD', o)
    yield req('POST', o, 3, Content_Type='image/bmp', Content_Type_Timestamp=ts(2.2), X_Object_Meta_New='yes')
    yield req('HEAD', o)
    yield req('POST', o, 3, Content_Type='image/bmp', Content_Type_Timestamp=ts(2.5))
    yield req('POST', o, 4, Content_Type='', Content_Type_Timestamp=ts(9))
    yield req('HEAD', o)
    # Between data and metadata, and newer than both.
    yield put(o, 0.5, b'newer', Content_Type='text/css')
    yield req('GET', o)
    yield put(o, 2.7, b'newest', Content_Type='text/html')
    yield req('GET', o)
    yield req('DELETE', o, 2.8)
    yield req('GET', o)
    yield req('POST', o, 9)
    yield put(o, 2.9, b'again')
    yield req('HEAD', o)
    for value in ('', '0', '-1', '1.5', ' 99999999999 ', '99999999999', '010000000000'):
        yield req('POST', o, 10, X_Delete_At=value)
        yield req('HEAD', o)
    yield req('POST', o, 11, X_Delete_At=str(at))
    yield req('HEAD', o)
    yield req('POST', o, 12)
    yield req('HEAD', o)
    yield req('POST', o, 13, X_Delete_At=str(int(NOW) + 20))
    for headers in ({}, {'X-Backend-Open-Expired': 'true'}, {'X-Backend-Open-Expired': 'x'}, {'X-Backend-Replication': 'true'}):
        yield ('GET', o, dict(headers, **{'X-Timestamp': ts(21)}), None)
        yield ('HEAD', o, dict(headers, **{'X-Timestamp': ts(21)}), None)
        yield ('POST', o, dict(headers, **{'X-Timestamp': ts(21), 'X-Delete-At': str(int(NOW) + 25)}), None)
    yield req('POST', o, 26)
    yield put(o, 12, b'older than its metadata')
    yield put(o, 30, b'later', If_None_Match='*')
    yield req('HEAD', o)
    for when in ('0', 'x', '', '1700000040.00000_0000000000000001'):
        yield req('POST', o, X_Timestamp=when, X_Object_Meta_When='w')
        yield req('POST', o, 41, Content_Type='a/b', Content_Type_Timestamp=when)
        yield req('HEAD', o)
    yield req('POST', o, 50, X_Object_Meta_Long='v' * 257)
    yield req('POST', o, 50, Content_Type='\xff')
    yield req('HEAD', o)
    yield req('POST', o, 51, b'a body', X_Object_Meta_A='1')
    yield req('POST', '/sda1/8/a/c/only-type', 51)
    yield put('/sda1/8/a/c/only-type', 5, b'x', Content_Type='a/b;swift_bytes=7')
    yield req('POST', '/sda1/8/a/c/only-type', 6, Content_Type='c/d;swift_bytes=8', X_Container_Host='127.0.0.1:1',
              X_Container_Device='d1', X_Container_Partition='3')
    yield req('HEAD', '/sda1/8/a/c/only-type')


def deleting():
    o, at = '/sda1/9/a/c/delete', str(int(NOW) + 50)
    host = {'X-Container-Host': '127.0.0.1:1', 'X-Container-Device': 'd1', 'X-Container-Partition': '3'}
    yield ('DELETE', o, dict(host, **{'X-Timestamp': ts(-5)}), None)
    yield ('DELETE', o, dict(host, **{'X-Timestamp': ts(-5)}), None)
    yield ('DELETE', o, dict(host, **{'X-Timestamp': ts(-6)}), None)
    yield ('DELETE', o, {}, None)
    yield ('DELETE', o, {'X-Timestamp': 'x'}, None)
    yield req('DELETE', o, 0, X_If_Delete_At='5')
    yield req('DELETE', o, 0, X_If_Delete_At='')
    yield put(o, 1, b'x', X_Delete_At=at, Content_Type='a/b')
    yield req('DELETE', o, 0.5, X_If_Delete_At='nonsense')
    yield req('DELETE', o, 0.5)
    yield req('DELETE', o, 1)
    yield req('DELETE', o, 51)
    yield req('GET', o)
    yield put(o, 52, b'x', X_Delete_At=str(int(NOW) + 100))
    yield req('POST', o, 60)
    yield req('DELETE', o, 55, X_If_Delete_At=str(int(NOW) + 100))
    yield req('DELETE', o, 55, X_Backend_Clean_Expiring_Object_Queue='false')
    yield put(o, 70, b'x', X_Delete_At=str(int(NOW) + 100))
    yield req('DELETE', o, 80, X_Backend_Clean_Expiring_Object_Queue='f')
    yield put(o, 81, b'x', X_Delete_At=str(int(NOW) + 101))
    yield req('DELETE', o, 82, X_Backend_Clean_Expiring_Object_Queue='', X_If_Delete_At='%d.00000' % (int(NOW) + 101))
    yield put(o, 83, b'x', X_Delete_At=str(int(NOW) + 102))
    yield req('DELETE', o, 200, X_If_Delete_At=str(int(NOW) + 102))
    yield put(o, 201, b'x', X_Delete_At=str(int(NOW) + 300))
    yield req('DELETE', o, 202, X_Backend_Replication='true')
    yield put(o, 203, b'x')
    yield req('DELETE', o, 204, b'a body')


def updating(containers):
    o, at = '/sda1/10/a/c/told', str(int(NOW) + 4000000000)

    def told(devices, **more):
        hosts = ','.join(containers for _ in devices)
        return dict({'X_Container_Host': hosts, 'X_Container_Device': ','.join(devices), 'X_Container_Partition': '3'}, **more)

    yield put(o, 0, b'x', **told(['ok']))
    yield put(o, 1, b'x', **told(['ok', 'ok2', 'ok3'], X_Trans_Id='tx9', Referer='http://r'))
    yield put(o + '-fails', 1, b'x', **told(['s500', 'ok', 's404']))
    yield put(o + '-db', 1, b'x', **told(['s500'], X_Container_Root_Db_State='sharded'))
    yield put(o + '-shard', 1, b'x', **told(['s301'], X_Backend_Quoted_Container_Path='.shards_a/c%2520-x'))
    yield put(o + '-moved', 1, b'x', **told(['s301']))
    yield put(o + '-moved-quoted', 1, b'x', **told(['s301quoted']))
    yield put(o + '-moved-bad', 1, b'x', **told(['s301bad']))
    yield put(o + '-moved-nowhere', 1, b'x', **told(['s301none']))
    yield put(o + '-moved-when', 1, b'x', **told(['s301when']))
    yield put(o + '-302', 1, b'x', **told(['s302']))
    yield put(o + '-dead', 1, b'x', **told(['dead']))
    yield put(o + '-hang', 1, b'x', **told(['hang', 'ok']))
    yield put(o + '-bad-path', 1, b'x', **told(['s500'], X_Backend_Container_Path='nonsense'))
    yield put(o + '-path', 1, b'x', **told(['ok', 's503'], X_Backend_Container_Path='.shards_a/c-1'))
    yield put(o + '-counts', 1, b'x', **told(['ok', 'ok'], X_Container_Device='ok'))
    yield put(o + '-nowhere', 1, b'x', **told(['ok'], X_Container_Partition=''))
    yield put(o + '-nowhere', 2, b'x', **told([''], X_Container_Partition='3'))
    yield put(o + '-nowhere', 3, b'x', **told(['ok', ''], X_Container_Host=containers + ','))
    yield put(o + '-space', 3, b'x', **told(['ok'], X_Container_Host=' %s , %s ' % (containers, containers),
                                            X_Container_Device=' ok , ok2 '))
    overrides = {'X-Backend-Container-Update-Override-Etag': 'backend', 'X-Object-Sysmeta-Container-Update-Override-Etag':
                 'sysmeta', 'X-Backend-Container-Update-Override-Size': '7', 'X-Object-Sysmeta-Container-Update-Override-'
                 'Content-Type': 'c/t', 'X-Backend-Container-Update-Override-New': 'n'}
    yield put(o + '-override', 1, b'x', **told(['ok'], **overrides))
    yield req('POST', o + '-override', 2, **told(['ok', 's500'], X_Object_Meta_A='1'))
    yield req('POST', o + '-override', 3, **told(['ok'], Content_Type='d/e'))
    yield req('DELETE', o + '-override', 4, **told(['ok', 's500']))
    yield req('DELETE', o + '-override', 3, **told(['ok']))
    yield req('DELETE', o + '-override', 4, **told(['ok']))
    yield req('DELETE', o + '-never', 4, **told(['ok', 's404']))
    yield put(o + '-ec', 1, b'x', X_Object_Sysmeta_Ec_Etag='ec', X_Object_Sysmeta_Ec_Content_Length='500', **told(['ok']))
    yield req('POST', o + '-ec', 2, **told(['ok']))
    yield put(o + '-\u00e9 %', 1, b'x', Content_Type='a/\u00e9'.encode().decode('latin1'), **told(['ok', 's500']))
    yield put(o + '-x', 1, b'x', X_Backend_Replication='true', **told(['ok']))
    yield put(o + '-policy', 1, b'x', X_Backend_Storage_Policy_Index='1', **told(['ok', 's500']))
    queue = {'X_Delete_At': at, 'X_Delete_At_Host': '%s,%s' % (containers, containers), 'X_Delete_At_Device': 'ok,s500',
             'X_Delete_At_Partition': '8', 'X_Delete_At_Container': '5699900000'}
    yield put(o + '-at', 1, b'four', Content_Type='t/u', **queue)
    yield req('POST', o + '-at', 2, **dict(queue, X_Delete_At=str(int(at) + 9)))
    yield req('POST', o + '-at', 3, **queue)
    yield req('POST', o + '-at', 4, **dict(queue, X_Delete_At_Container=''))
    yield req('POST', o + '-at', 5, **dict(queue, X_Delete_At=str(int(at) + 1), X_Delete_At_Device='ok'))
    yield req('POST', o + '-at', 6, **dict(queue, X_Delete_At=str(int(at) + 2), X_Delete_At_Partition=''))
    yield req('POST', o + '-at', 7, **dict(queue, X_Delete_At=str(int(at) + 3), X_Delete_At_Host=''))
    yield req('POST', o + '-at', 8, **dict(queue, X_Delete_At=str(int(at) + 4), X_Backend_Replication='true'))
    yield put(o + '-at', 9, b'fives', **dict(queue, X_Delete_At=str(int(at) + 5)))
    yield req('DELETE', o + '-at', 10, **queue)
    yield put(o + '-at-policy', 1, b'four', X_Backend_Storage_Policy_Index='1', **queue)
    yield req('DELETE', o + '-at-policy', 2, X_Backend_Storage_Policy_Index='1')


def staging(containers):
    o = '/sda1/11/a/c/staged'
    base = {'Content-Type': 'a/b', 'X-Backend-Obj-Multipart-Mime-Boundary': 'b', 'Transfer-Encoding': 'chunked',
            'Expect': '100-continue', 'ETag': md5(b'data')}
    footers = json.dumps({'X-Object-Sysmeta-Foot': 'er', 'X-Object-Meta-Late': '\u00c3\u00a9', 'Content-Type': 'no/no',
                          'X-Object-Transient-Sysmeta-X': '1', 'Content-Encoding': 'no',
                          'X-Backend-Container-Update-Override-Etag': 'footed',
                          'X-Object-Sysmeta-Container-Update-Override-Size': '77'}).encode()
    good = {'X-Document': 'object metadata', 'Content-MD5': md5(footers)}
    told = {'X-Container-Host': containers, 'X-Container-Device': 'ok', 'X-Container-Partition': '3',
            'X-Backend-Container-Update-Override-Etag': 'header'}
    foot, commit = {'X-Backend-Obj-Metadata-Footer': 'yes'}, {'X-Backend-Obj-Multiphase-Commit': 'true'}

    def staged(delta, flags, *pieces, **more):
        return ('PUT', o, dict(base, **{'X-Timestamp': ts(delta)}, **flags, **more), Talk(list(pieces)))

    def first(*documents):
        return b''.join(b'--b\r\n' + ''.join('%s: %s\r\n' % item for item in headers.items()).encode() + b'\r\n' + body +
                        b'\r\n' for headers, body in documents)

    body = ({}, b'data')
    committed = chunked(first(({'X-Document': 'put commit'}, b'commit_confirmation'))[:-2] + b'\r\n--b--')
    yield staged(0, foot, chunked(mime(body, (good, footers))), **told)
    yield req('GET', o)
    yield staged(1, dict(foot, **commit), chunked(first(body, (good, footers))), committed, **told)
    yield req('GET', o)
    yield staged(2, commit, chunked(first(body)), committed)
    yield req('GET', o)
    yield staged(3, dict(foot, **commit), chunked(first(body, (good, footers))),
                 chunked(b'--b\r\nX-Document: nonsense\r\n\r\nx\r\n--b--'))
    yield req('HEAD', o)
    yield staged(4, dict(foot, **commit), chunked(first(body, (good, footers))), chunked(b'--b--'))
    yield staged(5, {'X-Backend-Obj-Metadata-Footer': 'no'}, chunked(b'data'))
    yield staged(6, dict(foot, **{'X-Backend-Obj-Content-Length': '4'}), chunked(mime(body, (good, footers))))
    yield staged(7, dict(foot, **{'X-Backend-Obj-Content-Length': '5'}), chunked(mime(body, ({}, footers))))
    yield staged(7, foot, chunked(mime(({}, b'other'), (good, footers))))
    yield staged(7, foot, chunked(mime(({}, b'other'), ({}, footers))))
    etag = json.dumps({'Etag': md5(b'data').upper()}).encode()
    yield staged(8, dict(foot, ETag='0' * 32), chunked(mime(body, ({'Content-MD5': md5(etag)}, etag))))
    quoted = json.dumps({'Etag': '"%s"' % md5(b'data')}).encode()
    yield staged(9, foot, chunked(mime(body, ({'Content-MD5': md5(quoted)}, quoted))))
    empty = json.dumps({'Etag': ''}).encode()
    yield staged(9.5, foot, chunked(mime(body, ({'Content-MD5': md5(empty)}, empty))))
    yield staged(9.5, dict(foot, ETag='0' * 32), chunked(mime(body, ({'Content-MD5': md5(empty)}, empty))))
    yield staged(10, foot, chunked(mime(body, (good, footers), ({}, b'more'))))
    yield staged(11, foot, chunked(mime(({}, b'data' * 100000), ({'Content-MD5': md5(b'{}')}, b'{}'))), ETag='')
    yield staged(0, foot)
    yield staged(12, dict(foot, **{'If-None-Match': '*'}))
    yield req('HEAD', o)


def hasty():
    o = '/sda1/13/a/c/'
    plain = {'X-Timestamp': ts(), 'Content-Type': 'a/b', 'Content-Length': '10'}
    large = dict(plain, **{'Content-Length': '1000000'})
    pieces = {'X-Timestamp': ts(), 'Content-Type': 'a/b', 'Transfer-Encoding': 'chunked'}
    expect = {'Expect': '100-continue'}
    yield ('PUT', o + 'plain', plain, Stalled(b'hello'))
    yield ('PUT', o + 'plain', plain, Stalled(b''))
    yield ('PUT', o + 'large', large, Stalled(b'hello' * 50000))
    yield ('PUT', o + 'chunked', pieces, Stalled(b'5\r\nhello\r\n'))
    yield ('PUT', o + 'chunked', pieces, Stalled(b'5\r\nhel'))
    yield ('PUT', o + 'slow', dict(plain, **{'Content-Length': '100000000'}), Slow(b'hello' * 50000))
    for kind in Talk, Leave:
        yield ('PUT', o + 'plain', dict(plain, **expect), kind([b'hello']))
        yield ('PUT', o + 'plain', dict(plain, **expect), kind([b'']))
        yield ('PUT', o + 'large', dict(large, **expect), kind([b'hello' * 50000]))
        yield ('PUT', o + 'chunked', dict(pieces, **expect), kind([b'5\r\nhello\r\n']))
        staged = dict(pieces, **expect, **{'X-Backend-Obj-Multipart-Mime-Boundary': 'b', 'X-Backend-Obj-Metadata-Footer': 'y',
                                           'X-Backend-Obj-Multiphase-Commit': 'yes', 'X-Backend-Obj-Content-Length': '4'})
        footers = json.dumps({'X-Object-Sysmeta-A': 'b'}).encode()
        data = b'--b\r\n\r\ndata\r\n'
        foot = b'--b\r\nContent-MD5: %s\r\n\r\n%s\r\n' % (md5(footers).encode(), footers)
        yield ('PUT', o + 'staged', staged, kind([b'2\r\n--\r\n']))
        yield ('PUT', o + 'staged', staged, kind([b'%x\r\n%s\r\n' % (len(data) - 4, data[:-4])]))
        yield ('PUT', o + 'staged', staged, kind([b'%x\r\n%s\r\n' % (len(data), data)]))
        yield ('PUT', o + 'staged', staged, kind([b'%x\r\n%s\r\n' % (len(data + foot) - 9, (data + foot)[:-9])]))
        for suffix, last in (('none', b''), ('half', b'7\r\n--b\r\nX-\r\n')):
            yield ('PUT', o + 'commit-%s-%s' % (suffix, kind.__name__), staged, kind([chunked(data + foot + b'--b--'), last]))
    yield req('OPTIONS', o)
    for method in ('REPLICATE', 'SSYNC'):
        yield req(method, '/sda1/13', body=b'')
    yield put(o + 'headers', 0, b'x', X_Foo='f', Content_Encoding='e', Content_Disposition='d', X_Delete_At='9999999999',
              X_Object_Meta_A='a', Deleted='1', Content_Language='en')
    for method in ('GET', 'HEAD'):
        yield req(method, o + 'headers')
        yield req(method, o + 'headers', X_Auth_Token='t')
    yield req('POST', o + 'headers', 1, X_Foo='g', Content_Disposition='d', Content_Length='0')
    yield req('HEAD', o + 'headers')
    for name in ('plain', 'large', 'chunked', 'staged', 'commit-none-Talk', 'commit-half-Leave'):
        yield req('GET', o + name)
    # One DELETE of each device is allowed, and then none for hours.
    for device in ('sda1', 'sda1', 'none', 'none', 'sda1'):
        yield req('DELETE', '/%s/13/a/c/x' % device, 1)
    yield req('DELETE', '/healthcheck')
    yield req('GET', '/healthcheck')


def part_power():
    for power in ('10', '11', ''):
        o = '/sda1/12/a/c/power' + power
        yield put(o, 0, b'x', X_Backend_Next_Part_Power=power)
        yield req('POST', o, 1, X_Object_Meta_A='1', X_Backend_Next_Part_Power=power)
        yield req('POST', o, 1, Content_Type='c/t', Content_Type_Timestamp=ts(2), X_Backend_Next_Part_Power=power)
        yield put(o, 0.5, b'y', X_Backend_Next_Part_Power=power)
        yield put(o, 3, b'z' * 100000, X_Backend_Next_Part_Power=power)
        yield put(o + 'gone', 0, b'x', X_Backend_Next_Part_Power=power)
        yield req('DELETE', o + 'gone', 1, X_Backend_Next_Part_Power=power)
        yield req('DELETE', o + 'never', 1, X_Backend_Next_Part_Power=power)
    # In the partition that the object really has: linked into the next one, and when that is its own, cleaned up in the old.
    for name in ('cleaned', 'cleaned-too', 'other'):
        digest = int(md5(('p/a/c/%ss' % name).encode())[:8], 16)
        old, new = ('/sda1/%d/a/c/%s' % (digest >> (32 - power), name) for power in (10, 11))
        yield put(old, 0, b'x')
        yield put(old, 1, b'linked', X_Backend_Next_Part_Power='11')
        yield req('GET', new)
        yield req('POST', new, 2, X_Object_Meta_A='1', X_Backend_Next_Part_Power='11')
        yield req('GET', old)
        yield put(new, 3, b'y' * 70000, X_Backend_Next_Part_Power='11')
        yield req('HEAD', old)
        if name == 'cleaned':
            yield req('DELETE', new, 4, X_Backend_Next_Part_Power='11')
        if name == 'cleaned-too':
            yield req('DELETE', old, 4, X_Backend_Next_Part_Power='11')
        yield req('GET', old)
        yield req('GET', new)


class Talk(list):
    """Pieces of a body, each of which is sent when the server has asked for it by a 100 Continue."""


class Leave(Talk):
    """The same, and then the client is gone."""


class Raw(bytes):
    """A body as it is, and no more."""


class Stalled(bytes):
    """A body as it is, after which the client says nothing."""


class Slow(Stalled):
    """A body as it is, again and again, with a pause, until the server has had enough."""


def chunked(*pieces):
    return b''.join(b'%x\r\n%s\r\n' % (len(piece), piece) for piece in pieces) + b'0\r\n\r\n'


class Containers(ContainerServers):
    """A container server that answers as the name of the device says."""

    def answer(self, number, line):
        device = line.split('/')[1]
        if device in ('dead', 'hang'):
            return DEAD if device == 'dead' else SILENT
        status = re.search('[0-9]{3}', device)
        status = int(status.group()) if status else 201
        location = {'s301quoted': '/.shards_a/c%25%20x', 's301bad': '/nonsense', 's301none': None}.get(
            device, 'http://h/.shards_a/c-1?x')
        headers = []
        if status == 301 and location:
            headers = ['Location: ' + location,
                       'X-Backend-Redirect-Timestamp: ' + ('x' if device == 's301when' else ts(5))]
        if device == 's301quoted':
            headers.append('X-Backend-Location-Is-Quoted: true')
        return response(status, *headers)


def datagrams(port):
    """What comes to a UDP port of this host, in a list that grows."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
    s.bind(('127.0.0.1', port))
    found = []

    def receive():
        while True:
            found.append(s.recv(65536).decode())
    threading.Thread(target=receive, daemon=True).start()
    return found


def ask(address, request):
    """Status, headers and body of the answer to one request, read by hand: http.client stops at a non-ASCII header name."""
    method, path, headers, body = request
    path = ''.join(c if ord(c) < 128 and c != ' ' else ''.join('%%%02X' % b for b in c.encode()) for c in path)
    path = re.sub('%(?![0-9A-Fa-f]{2})', '%25', path)
    lines = ['%s %s HTTP/1.1' % (method, path), 'Host: %s' % address, 'Connection: close']
    lines += ['%s: %s' % item for item in headers.items()]
    pieces, asked = (body, []) if isinstance(body, Talk) else ([], [])
    if isinstance(body, Talk):
        body = None
    elif isinstance(body, list):
        lines.append('Transfer-Encoding: chunked')
        body = chunked(*body)
    elif isinstance(body, (Raw, Stalled)):
        pass
    elif body is not None and not {'Content-Length', 'Transfer-Encoding'} & set(headers):
        lines.append('Content-Length: %d' % len(body))
    elif 'Content-Length' in headers:
        body = None
    host, port = address.split(':')
    with socket.create_connection((host, int(port)), timeout=20) as s:
        s.sendall('\r\n'.join(lines).encode('latin1') + b'\r\n\r\n' + (body or b''))
        if isinstance(body, Raw):
            s.shutdown(socket.SHUT_WR)
        while isinstance(body, Slow) and not select.select([s], [], [], .3)[0]:
            s.sendall(body)
        answer = s.makefile('rb')
        seen = b''
        for piece in pieces:
            interim = b''.join(iter(answer.readline, b'\r\n'))
            if b' 100 ' not in interim:
                seen = interim + b'\r\n'
                break
            asked.append(sorted(interim.decode().split('\r\n')))
            s.sendall(piece)
        if isinstance(request[3], Leave):
            return 'left', [], b'', asked
        head, _, data = (seen + answer.read()).partition(b'\r\n\r\n')
    status, *headers = head.decode('latin1').split('\r\n')
    headers = sorted((k.lower(), v) for k, v in (line.split(': ', 1) for line in headers) if k.lower() not in DROPPED)
    boundary = re.search('boundary=([0-9a-f]+)', dict(headers).get('content-type', ''))
    if boundary:
        data = data.replace(boundary.group(1).encode(), b'BOUNDARY')
        headers = [(k, v.replace(boundary.group(1), 'BOUNDARY')) for k, v in headers]
    if method == 'REPLICATE' and ' 200 ' in status:
        assert dict(headers).get('transfer-encoding') is None
        data = repr(pickle.loads(data)).encode()
    if ' 500 ' in status and (data.startswith(b'Traceback') or b'<h1>Internal Error' in data):
        # Only Swift shows how it failed.
        headers, data = [], b''
    return status, headers, data, asked


def compare_answers(first, second, containers, requests, is_hasty):
    differences = count = good = 0
    both = ThreadPoolExecutor(2)
    for request in requests:
        count += 1
        if is_hasty:
            one, two = (answer + ([],) for answer in both.map(ask, (first, second), (request, request)))
        else:
            one, two = (ask(address, request) + (containers.take(),) for address in (first, second))
        good += ' 20' in one[0]
        if one == two:
            continue
        differences += 1
        print('%s %s %s' % (request[0], request[1][:60], request[2]))
        if one[0] != two[0]:
            print('    status   %s | %s' % (one[0], two[0]))
        for header in sorted(set(one[1]) ^ set(two[1])):
            print('    %-8s %s: %s' % ('python' if header in one[1] else 'martlet', *header))
        for what, number in (('body', 2), ('100s', 3), ('told', 4)):
            if one[number] != two[number]:
                print('    %-8s %r\n           | %r' % (what, one[number][:200], two[number][:200]))
    print('%d requests, %d answered differently' % (count, differences))
    # The tables are not of nothing but refusals; what time runs out for depends on the machine too.
    assert good > count / 6, (good, count)
    return differences


def compare_counts(what, one, two):
    """Compares how often each thing was said. Waits for what is still on its way."""
    deadline = time.monotonic() + 20
    while sorted(one()) != sorted(two()) and time.monotonic() < deadline:
        time.sleep(0.1)
    first, second = Counter(one()), Counter(two())
    for key in sorted(set(first) | set(second)):
        if first[key] != second[key]:
            print('%s    %d | %d    %s' % (what, first[key], second[key], key))
    assert len(first) > 3, first
    print('%d different %s, %d of them in all' % (len(first), what, sum(first.values())))
    return first != second


def metrics(found):
    """Names and types; the values of timings are what they are."""
    return [re.sub(r':[^|]*\|', '|', line) if '|ms' in line else line for line in list(found)]


def lines(found):
    """The lines of the access log, without times and process ids."""
    found = [re.sub(r'^<[0-9]+>[^:]*: ', '', line) for line in list(found)]
    # What was slow, and in which steps; how slow doesn't matter.
    slow = [re.sub(r'[0-9]+\.[0-9]+', 'N', line.rstrip('\0')) for line in found if line.startswith('Slow')]
    found = (re.sub(r' - - \[[^]]*\] ', ' ', line) for line in found if ' - - [' in line)
    # The length of a traceback.
    found = (re.sub('" 500 [0-9]+ ', '" 500 - ', line) for line in found)
    return slow + [re.sub(r' [0-9.]+ "-" [0-9]+ ', ' ', re.sub('127.0.0.1:[0-9]+', 'HOST', line))
                   for line in found]


def objects(devices, conf):
    """What Python's diskfile reads: names and metadata, data digests; and the pending updates."""
    from swift.common.exceptions import DiskFileNotExist
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
            try:
                with df.open(current_time=0):
                    digest = hashlib.md5(b''.join(df.reader())).hexdigest()
                    found[int(policy), df._name, 'data'] = (digest, sorted(df.get_metadata().items()))
            except DiskFileNotExist:
                # Fragments that are not durable.
                found[int(policy), partition, df._datadir[-32:], 'data'] = None
        hashes = {}
        datadir_path = os.path.join(devices, 'sda1', datadir)
        for partition in os.listdir(datadir_path) if os.path.isdir(datadir_path) else ():
            hashes[partition] = sorted(manager.get_hashes('sda1', partition, [], policy).items())
        found[int(policy), 'hashes'] = hashes
        asyncs = os.path.join(devices, 'sda1', diskfile.get_async_dir(policy))
        for folder, _, files in os.walk(asyncs):
            for name in files:
                with open(os.path.join(folder, name), 'rb') as f:
                    update = unpickle(f.read())
                update['headers'] = {k: v for k, v in update['headers'].items() if k not in ('User-Agent', 'Referer')}
                found[int(policy), 'async', name] = sorted(update.items(), key=lambda i: i[0])
    for folder, _, files in os.walk(devices):
        for name in files:
            if not name.startswith('.lock') and not name.startswith('hashes'):
                found['file', os.path.relpath(os.path.join(folder, name), devices)] = True
    return found


def compare_disks(first, second, swift_dir):
    from swift.common import storage_policy, utils
    utils.set_swift_dir(swift_dir)
    storage_policy.reload_storage_policies()
    # A container server that hangs is given up after a while, and only then is its update on disk.
    deadline = time.time() + 20
    while True:
        one, two = (objects(devices, {'mount_check': 'false'}) for devices in (first, second))
        if one == two or time.time() > deadline:
            break
        time.sleep(0.2)
    differences = 0
    for key in sorted(set(one) | set(two), key=repr):
        if one.get(key) != two.get(key):
            differences += 1
            print('%s\n    python   %s\n    martlet  %s' % (key, one.get(key), two.get(key)))
    print('%d things on disk, %d differ' % (len(set(one) | set(two)), differences))
    return differences


def main():
    is_hasty = '--hasty' in sys.argv
    first, second, *more = (arg for arg in sys.argv[1:] if not arg.startswith('--'))
    said = [datagrams(int(port)) for port in more[3:]]
    containers = Containers('object-server')
    if '--ec' in sys.argv:
        # The classes of bodies there are those of here.
        sys.modules['object_server'] = sys.modules['__main__']
        import object_server_ec
        requests = object_server_ec.table(containers.address)
    else:
        requests = hasty() if is_hasty else table(containers.address)
    differences = compare_answers(first, second, containers, requests, is_hasty)
    if said:
        # Swift reads ahead: of what stalls after the data, it has not seen all the data yet. What it fails at with a
        # traceback, it does not time.
        unsure = 'PUT.sda1.timing' if is_hasty else '.errors.timing' if '--ec' in sys.argv else ' '
        one, two = (lambda found=found: [line for line in metrics(found) if unsure not in line] for found in said[:2])
        differences += compare_counts('metrics', one, two)
        differences += compare_counts('lines', lambda: lines(said[2]), lambda: lines(said[3]))
    if more:
        differences += compare_disks(*more[:3])
    sys.exit(1 if differences else 0)


if __name__ == '__main__':
    main()
