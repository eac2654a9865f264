"""Requests on an EC policy (index 2, isa_l_rs_vand 4+2) for object_server.py: fragments with their footers and commits,
what is shown of them before and after, preferences, SSYNC's subrequests, POST and DELETE.
"""
import json

from object_server import Talk, chunked, md5, req, ts
from pyeclib.ec_iface import ECDriver

SEGMENT = 1 << 20
DRIVER = ECDriver(k=4, m=2, ec_type='isa_l_rs_vand')
POLICY = {'X-Backend-Storage-Policy-Index': '2'}


def archives(body):
    """The fragment archives of an object."""
    segments = [body[at:at + SEGMENT] for at in range(0, len(body), SEGMENT)]
    return [b''.join(parts) for parts in zip(*map(DRIVER.encode, segments))] or [b''] * 6


def documents(*parts):
    return b''.join(b'--b\r\n' + ''.join('%s: %s\r\n' % item for item in headers.items()).encode() + b'\r\n' + body +
                    b'\r\n' for headers, body in parts)


def footers(index, archive, body, **more):
    meta = {'X-Object-Sysmeta-Ec-Frag-Index': str(index), 'X-Object-Sysmeta-Ec-Etag': md5(body),
            'X-Object-Sysmeta-Ec-Content-Length': str(len(body)), 'X-Object-Sysmeta-Ec-Segment-Size': str(SEGMENT),
            'X-Object-Sysmeta-Ec-Scheme': 'isa_l_rs_vand 4+2', 'Etag': md5(archive),
            'X-Backend-Container-Update-Override-Etag': md5(body),
            'X-Backend-Container-Update-Override-Size': str(len(body))}
    meta.update({k.replace('_', '-'): v for k, v in more.items()})
    return json.dumps({k: v for k, v in meta.items() if v is not None}).encode()


# The boundary before it has been sent with the footers.
COMMIT = chunked(b'X-Document: put commit\r\n\r\ncommit_confirmation\r\n--b--\r\n')


# A client that says something else.
NO_COMMIT = chunked(b'X-Document: nonsense\r\n\r\nx\r\n--b--\r\n')


def put(path, delta, index, body, commit=COMMIT, more=None, archive=None, **footed):
    """The PUT of a fragment as a proxy sends it."""
    if archive is None:
        archive = archives(body)[int(index or 0) % 6]
    foot = footers(index, archive, body, **footed)
    headers = {'X-Timestamp': ts(delta), 'Content-Type': 'a/b', 'X-Backend-Obj-Multipart-Mime-Boundary': 'b',
               'Transfer-Encoding': 'chunked', 'Expect': '100-continue', 'X-Backend-Obj-Metadata-Footer': 'yes',
               'X-Backend-Obj-Multiphase-Commit': 'yes', 'X-Backend-Obj-Content-Length': str(len(archive)), **POLICY}
    headers.update(more or {})
    sent = documents(({}, archive), ({'X-Document': 'object metadata', 'Content-MD5': md5(foot)}, foot))
    return ('PUT', path, headers, Talk([chunked(sent + b'--b\r\n'), commit]))


def subrequest(path, delta, index, body, **more):
    """The PUT of a fragment as SSYNC brings it."""
    archive = archives(body)[index]
    headers = {'X-Timestamp': ts(delta), 'Content-Type': 'a/b', 'X-Object-Sysmeta-Ec-Frag-Index': str(index),
               'X-Object-Sysmeta-Ec-Etag': md5(body), 'X-Object-Sysmeta-Ec-Content-Length': str(len(body)),
               'X-Backend-Ssync-Frag-Index': str(index), 'X-Backend-Replication': 'True', 'ETag': md5(archive), **POLICY,
               'X-Backend-Replication-Headers': 'x-timestamp content-type x-object-sysmeta-ec-frag-index'}
    headers.update({k.replace('_', '-'): v for k, v in more.items()})
    return ('PUT', path, headers, archive)


def ec(method, path, delta=None, body=None, **headers):
    return req(method, path, delta, body, **headers, **{k.replace('-', '_'): v for k, v in POLICY.items()})


def looks(path):
    """What a reader may ask."""
    for method in ('GET', 'HEAD'):
        yield ec(method, path)
        for prefs in ([], [{'timestamp': ts(1), 'exclude': []}], [{'timestamp': ts(1), 'exclude': [1, 3]}],
                      [{'timestamp': ts(2), 'exclude': [1]}, {'timestamp': ts(1), 'exclude': []}],
                      [{'timestamp': float(ts(1)), 'exclude': ['0']}]):
            yield ec(method, path, X_Backend_Fragment_Preferences=json.dumps(prefs))
    for prefs in ('', '{', 'null', '[]'):
        yield ec('HEAD', path, X_Backend_Fragment_Preferences=prefs)


def table(containers):
    told = {'X-Container-Host': containers, 'X-Container-Device': 'ok', 'X-Container-Partition': '3'}
    lost = dict(told, **{'X-Container-Device': 's503'})
    part = '/sda1/5'
    small, large = b'hello ec' * 100, bytes(range(256)) * 10000
    o = part + '/a/c/o'
    yield from looks(o)
    yield put(o, 1, 1, small, more=told)
    yield from looks(o)
    yield ec('GET', o, Range='bytes=0-9')
    yield ec('GET', o, Range='bytes=-9,3-4')
    yield ec('GET', o, If_None_Match='"%s"' % md5(small), X_Backend_Etag_Is_At='X-Object-Sysmeta-Ec-Etag')
    yield put(o, 0.5, 1, small, more=told)
    yield put(o, 1, 1, small, more=told)
    yield put(o, 1, 3, small, more=told)
    # No commit: the old one is shown, the new one on demand.
    yield put(o, 2, 1, large, commit=NO_COMMIT, more=told)
    yield from looks(o)
    yield put(o, 2, 3, large, commit=NO_COMMIT, more=told)
    yield put(o, 2, 4, large, commit=chunked(b''), more=told)
    yield from looks(o)
    yield ec('REPLICATE', part)
    yield ec('POST', o, 1.5, X_Object_Meta_A='1', **{k.replace('-', '_'): v for k, v in told.items()})
    yield from looks(o)
    yield ec('REPLICATE', part)
    yield put(o, 2, 5, large, more=lost)
    yield from looks(o)
    yield ec('REPLICATE', part)
    yield put(o, 3, 2, b'', more=told)
    yield ec('GET', o)
    yield ec('POST', o, 4, X_Object_Meta_A='1', Content_Type='new/type')
    yield ec('POST', o, 3.5, X_Object_Meta_A='1')
    yield from looks(o)
    yield ec('DELETE', o, 2.5, **{k.replace('-', '_'): v for k, v in told.items()})
    yield ec('DELETE', o, 5, **{k.replace('-', '_'): v for k, v in told.items()})
    yield from looks(o)
    yield put(o, 4.5, 1, small)
    yield put(o, 6, 1, small, commit=NO_COMMIT)
    yield ec('GET', o)
    yield ec('HEAD', o, X_Backend_Fragment_Preferences='[]')
    yield ec('DELETE', o, 5.5)
    yield ec('POST', o, 7)
    # What is wrong with a fragment.
    w = part + '/a/c/wrong'
    for index in ('6', '-1', 'x', '', None):
        yield put(w, 1, index, small, archive=archives(small)[0], commit=NO_COMMIT)
    yield put(w, 1, 1, small, Etag='0' * 32, commit=NO_COMMIT)
    yield put(w, 1, 1, small, more={'X-Backend-Obj-Content-Length': '3'}, commit=NO_COMMIT)
    yield put(w, 1, 1, small, more={'If-None-Match': '*'})
    yield put(w, 2, 1, small, more={'If-None-Match': '*'})
    yield ec('GET', w)
    # As SSYNC brings them.
    s = part + '/a/c/synced'
    yield subrequest(s, 1, 2, small)
    yield ec('GET', s)
    yield subrequest(s, 1, 2, small)
    yield subrequest(s, 1, 3, small)
    yield subrequest(s, 0.5, 3, small)
    yield subrequest(s, 0.5, 4, small)
    yield ec('HEAD', s)
    yield subrequest(s, 2, 2, large, X_Backend_No_Commit='True')
    yield from looks(s)
    yield subrequest(s, 2, 2, large)
    yield from looks(s)
    yield subrequest(s, 3, 2, small, X_Backend_Ssync_Frag_Index='6')
    yield subrequest(s, 3, 2, small, X_Backend_Ssync_Frag_Index='x')
    yield subrequest(s, 3, 2, small, X_Backend_Ssync_Frag_Index='5')
    yield ec('HEAD', s)
    yield ec('REPLICATE', part)
    for prefs in ('[{}]', '[{"timestamp": "x", "exclude": []}]', '17', '[17]', '[{"timestamp": "1", "exclude": [-1]}]',
                  '[{"timestamp": "1", "exclude": ["x"]}]'):
        yield ec('GET', s, X_Backend_Fragment_Preferences=prefs)
    # An object that expires.
    e = part + '/a/c/expires'
    yield put(e, 1, 0, small, more={'X-Delete-At': '1700000100'})
    yield ec('GET', e, 50)
    yield ec('GET', e, 200)
    yield ec('GET', e, 200, X_Backend_Open_Expired='true')
    yield ec('DELETE', e, 300, X_If_Delete_At='1700000100')
    # While the part power is increased.
    for power, name in (('10', 'power'), ('11', 'power'), ('11', 'cleaned')):
        p = '/sda1/12/a/c/' + name
        if name == 'cleaned':
            digest = int(md5(b'p/a/c/cleaneds')[:8], 16)
            p = '/sda1/%d/a/c/cleaned' % (digest >> 22)
        more = {'X-Backend-Next-Part-Power': power}
        for delta in (1, 2):
            yield put(p, delta, 1, small, more=more)
        yield put(p, 3, 1, small, more=more, commit=NO_COMMIT)
        yield ec('POST', p, 2.5, X_Object_Meta_A='1', X_Backend_Next_Part_Power=power)
        yield subrequest(p, 4, 1, small, X_Backend_Next_Part_Power=power, X_Backend_No_Commit='true')
        yield ec('GET', p)
    yield ec('REPLICATE', '/sda1/12')
