"""Writes the golden files beside it with Swift's own functions: /path/to/swift-venv/bin/python make_golden.py"""
import json
import os
import time

from swift.common import swob
from swift.common.middleware import acl, bulk, listing_formats, proxy_logging, slo, tempauth
from swift.common.request_helpers import get_heartbeat_response_body
from swift.common.utils import StrAnonymizer, StrFormatTime, LogStringFormatter

HERE = os.path.dirname(os.path.abspath(__file__))


def write(name, data):
    with open(os.path.join(HERE, name), 'w') as f:
        json.dump(data, f, indent=1)
        f.write('\n')


def acls():
    clean = []
    values = [
        'bob, sue', 'bob , sue', 'bob,,,sue', '.referrer : *', '.ref:*.example.com', '.r:*, .rlistings', '', ' ,',
        '.r:*', '.r:*,.r:-.thief.com', '.r:*,.r:.example.com,.r:-thief.example.com', 'bobs_account,sues_account:sue',
        '.r:', '.r:-', '.r:*.', '.r:-*.example.com', '.r: - example.com', '.unknown:x', '.unknown', ':x', 'a:b:c',
        '.referer:*example.com', ".r:it's", ".bad'x:y", '.bad"\'x:y', '.r:* , .r:-\tx', '.r:-.', '.r:**', '.x\\y:z',
    ]
    for name in ('X-Container-Read', 'X-Container-Write'):
        for value in values:
            try:
                clean.append((name, value, acl.clean_acl(name, value), None))
            except ValueError as err:
                clean.append((name, value, None, str(err)))
    referrer = []
    for url in ('', 'http://www.example.com/x?y', 'https://user:pw@Thief.Example.com:80/', 'www.example.com',
                '//www.example.com', 'http://', 'ftp://a.example.com#x', 'http://[::1]:80/', 'x:y//z', '1http://a.b/',
                'http://example.com', ' http://example.com/'):
        for value in ('*', '.example.com', 'www.example.com', '*,-thief.example.com', '.example.com,-.example.com',
                      '-*', '*,-*', '-www.example.com,*', '::1', 'unknown', '.b'):
            refs, _ = acl.parse_acl(','.join('.r:' + v for v in value.split(',')))
            referrer.append((url, ','.join('.r:' + v for v in value.split(',')), acl.referrer_allowed(url, refs)))
    account = []
    auth = tempauth.TempAuth(None, {})
    for data in ('{"admin":["a"]}', '', '{}', '[]', 'x', '{"other":[]}', '{"admin":"a"}', '{"read-only":[1]}',
                 '{"read-write":["a","b"],"read-only":[]}', '{"adm\\u00efn":[]}', '{"a\\"b":[]}', "it's"):
        req = swob.Request.blank('/v1/AUTH_a', headers={'X-Account-Access-Control': data})
        account.append((data, auth.extract_acl_and_report_errors(req)))
    write('acl.json', {'clean': clean, 'referrer': referrer, 'account': account})


def pyjson():
    out = []
    for text in ('[]', '{}', '[1, -2, 3.5, 1e16, 1e-5, 123456789012345680.0, 0.1, 1.0, -0.0, 1e22, 1.5e300]',
                 '{"b": [true, false, null], "a": {"z": 1, "y": "x"}}', '["\\u00e9\\ud83d\\ude00\\u007f/\\"\\\\\\n\\r\\t\\b\\f\\u0001"]',
                 '{"\\u00e9": "\\u00df"}', '[18446744073709551615, -9223372036854775808]', '[[[]], [{}]]'):
        value = json.loads(text)
        out.append((text, json.dumps(value), json.dumps(value, sort_keys=True)))
    write('pyjson.json', out)


def accept():
    out = []
    options = ['text/plain', 'application/json', 'application/xml', 'text/xml']
    for header in ('', '*/*', 'text/*', 'application/*', 'text/xml', 'application/json;q=0.5,application/xml',
                   'application/json;q=1.0,application/xml', 'text/plain;q=0.5,application/xml;q=0.8',
                   'text/html', 'text/html,*/*;q=0.1', '*/*,application/xml', 'application/xml,*/*', 'text', 'text/',
                   '/plain', 'text/plain;q=1;q=0', 'text/plain;q', 'text/plain;q=x', 'text/plain; q = 0.3 , */xml',
                   'text/plain;level="a;b"', 'text/plain;level="a=b"', 'text/plain;level="ab"', 'text/plain;',
                   'text/plain ; charset=utf-8;q=0.1, application/json ;q=0.2', 'application/json;q=-1,text/xml;q=-2',
                   '*/json', 'text/plain, ', ',', 'TEXT/XML', 'text/xml;a=b;c=d', 'text/x@l', 'text/plain;q=',
                   'text/plain;q=1e-3,application/xml;q=1e-2', 'text/xml;level="a\\"b"', 'text/xml;level="ab'):
        try:
            out.append((header, swob.Accept(header).best_match(options), False))
        except ValueError:
            out.append((header, None, True))
    write('accept.json', out)


def heartbeat():
    out = []
    cases = [
        ({'Response Status': '201 Created', 'Response Body': '', 'Last Modified': 'x', 'Etag': '"e"'}, []),
        ({'Number Deleted': 2, 'Number Not Found': 0, 'Response Body': 'a<b & "c">', 'Response Status': '400 Bad Request'},
         [['/c/%C3%A9', '404 Not Found'], ['a&b', 'x<y']]),
        ({}, [['c/o', 'Etag Mismatch']]),
    ]
    for fmt in ('text/plain', 'application/json', 'application/xml', 'text/xml', None):
        for data, errors in cases:
            body = get_heartbeat_response_body(fmt, dict(data), errors, 'delete')
            out.append((fmt, list(data.items()), errors, body.decode('utf8')))
    write('heartbeat.json', out)


def listings():
    names = ['a', 'b c', 'é/ü', '<&>"\'', 'new\nline\ttab\rcr', '\U0001f600', ' lead', 'x]]>y', 'ctl\x01\x7f']
    account = [{'name': n, 'count': i, 'bytes': i * 7, 'last_modified': '2014-06-10T22:47:32.054580'}
               for i, n in enumerate(names)]
    account[1]['storage_policy'] = 'gold & co'
    account.insert(2, {'subdir': 'dir/<&>"\n\t\r'})
    container = [{'name': n, 'hash': 'd41d8cd98f00b204e9800998ecf8427e', 'bytes': i, 'content_type': 'text/plain; a="<b>"',
                  'last_modified': '2014-06-10T22:47:32.054580'} for i, n in enumerate(names)]
    container[1]['slo_etag'] = '"x"'
    container[2]['hash'] = ''
    container.insert(3, {'subdir': 'dir/<&>"\n\t\r'})
    copy = lambda x: json.loads(json.dumps(x))
    out = []
    for kind, title, listing in (('account', 'AUTH_é<&>"', account), ('container', 'c\n\t\r\'"é', container),
                                 ('account', 'a', []), ('container', 'c', [])):
        to_xml = listing_formats.account_to_xml if kind == 'account' else listing_formats.container_to_xml
        out.append({
            'kind': kind, 'title': title, 'listing': copy(listing),
            'xml': to_xml(copy(listing), title).decode('utf8'),
            'plain': listing_formats.listing_to_text(listing).decode('utf8'),
            'json': json.dumps(listing),
        })
    write('listings.json', out)


def log_lines():
    def field(value):
        return StrAnonymizer(value, 'md5', 'salt')
    out = []
    templates = [
        '{client_ip} {remote_addr} {end_time.datetime} {method} {path} {protocol} {status_int} {referer} {user_agent} '
        '{auth_token} {bytes_recvd} {bytes_sent} {client_etag} {transaction_id} {headers} {request_time} {source} '
        '{log_info} {start_time} {end_time} {policy_index} {access_user_id}',
        '{path.anonymized} {client_ip.anonymized} {referer.anonymized} {{literal}} {ttfb} {pid} {domain}',
        '{end_time.a} {end_time.A} {end_time.b} {end_time.B} {end_time.d} {end_time.H} {end_time.I} {end_time.j} '
        '{end_time.m} {end_time.M} {end_time.p} {end_time.S} {end_time.U} {end_time.w} {end_time.W} {end_time.y} '
        '{end_time.Y} {end_time.Z} {end_time.c} {end_time.x} {end_time.X} {end_time.asctime} {end_time.iso8601} '
        '{end_time.ms} {end_time.us} {end_time.ns} {end_time.s} {start_time.datetime}',
        '{account} {container} {object} {wire_status_int}',
    ]
    records = [
        dict(client_ip='1.2.3.4', remote_addr='127.0.0.1', end=1416658471.8345821, start=1416658470.5, method='GET',
             path='/v1/AUTH_test/c%20x/o%C3%A9?format=json&a=b c', protocol='HTTP/1.1', status_int=200,
             referer='http://x.y/z?a=b', user_agent='curl/8 (x; y) \u00c3\u00a9', auth_token='AUTH_tk123456789...', bytes_recvd=0,
             bytes_sent=12, client_etag=None, transaction_id='tx123', headers='A: b\nC: d', request_time='1.3346',
             source=None, log_info='a,b', policy_index='0', access_user_id='test:tester', ttfb=0.25, pid=42,
             domain='localhost', account='AUTH_test', container='c x', object=None, wire_status_int=206),
        dict(client_ip=None, remote_addr=None, end=1388534399.9999999, start=951782400.0, method='BAD{}', path='/',
             protocol='HTTP/1.0', status_int=499, referer=None, user_agent=None, auth_token=None, bytes_recvd=7,
             bytes_sent=0, client_etag='"e"', transaction_id=None, headers=None, request_time='0.0000', source='SLO',
             log_info='', policy_index=None, access_user_id=None, ttfb=0, pid=1, domain='', account=None,
             container=None, object=None, wire_status_int=499),
    ]
    fmt = LogStringFormatter(default='-', quote=True)
    for record in records:
        values = {}
        for key, value in record.items():
            if key in ('end', 'start'):
                values[key + '_time'] = StrFormatTime(value)
            elif key in ('client_ip', 'remote_addr', 'domain', 'path', 'referer', 'user_agent', 'headers', 'client_etag',
                         'account', 'container', 'object', 'access_user_id'):
                values[key] = field(value)
            else:
                values[key] = value
        for template in templates:
            out.append((template, record, fmt.format(template, **values)))
    write('log_lines.json', out)


def manifests():
    out = []
    path = '/v1/AUTH_test/c/m%C3%A9'
    good = [
        '[]', '[{"path": "/c/o"}]', '[{"path": "c/o", "etag": null, "size_bytes": null}]',
        '[{"path": "/c/o", "etag": "abc", "size_bytes": 10, "range": "1-5"}, {"data": "aGk="}]',
        '[{"path": "/c/o", "size_bytes": "12"}]', '[{"path": "/c/o", "size_bytes": 0}]', '[{"path": "/c/o", "range": "-5"}]',
        '[{"path": "/c/o", "range": "5-"}]', '[{"path": "/c/o", "range": ""}]', '[{"path": "/c/o", "range": null}]',
        '[{"path": "/c/o", "size_bytes": 3.7}]', '[{"path": "/c/o", "size_bytes": true}]',
        '[{"data": "aGk=="}, {"path": "/c/o"}]', '[{"path": "//c/o//"}]', '[{"path": "/c/o", "size_bytes": " 7 "}]',
    ]
    bad = [
        'x', '{}', '7', '[1, "a", null, []]', '[{"path": 7}]', '[{"path": "/c"}]', '[{"path": "/c/"}]',
        '[{"path": "/c/o", "etag": 5}]', '[{"path": "/c/o", "size_bytes": "x"}]', '[{"path": "/c/o", "size_bytes": []}]',
        '[{"path": "/c/o", "size_bytes": 0}, {"path": "/c/o"}]', '[{"path": "/c/m\\u00e9"}]', '[{"path": "c/m\\u00e9"}]',
        '[{"path": "/c/o", "range": "x"}]', '[{"path": "/c/o", "range": "1-2,3-4"}]', '[{"path": "/c/o", "range": "5-1"}]',
        '[{"path": "/c/o", "range": "20-", "size_bytes": 10}]', '[{"path": "/c/o", "foo": 1, "b\\u00e4r": 2}]',
        '[{"data": "aGk=", "etag": "x"}, {"path": "/c/o"}]', '[{"data": "aGk="}]', '[{"data": ""}, {"path": "/c/o"}]',
        '[{"data": "a b"}, {"path": "/c/o"}]', '[{"data": 7}, {"path": "/c/o"}]', '[{"data": "a"}, {"path": "/c/o"}]',
        '[{"path": "/c/o", "size_bytes": -1}, {"path": "/c/o", "size_bytes": -1}]', '[{"path": "/c/o", "range": 5}]',
        '[{"path": "/c/o", "range": [1]}]', '[{"data": "AA=="}, {"data": "BB=="}]', '[{"path": "/c/o", "size_bytes": "1_0x"}]',
        '[{"path": ""}]', '[{"path": "/c/o", "range": "-0", "size_bytes": 5}]',
    ]
    for text in good + bad:
        try:
            parsed = slo.parse_and_validate_input(text.encode(), path)
        except swob.HTTPException as err:
            out.append((text, None, err.body.decode('utf8'), err.headers['Content-Type']))
        except TypeError:
            continue  # Swift answers 500 to some malformed manifests; there is nothing to compare
        else:
            for seg in parsed:
                if seg.get('range'):
                    seg['range'] = str(seg['range'])
            out.append((text, parsed, None, None))
    write('manifests.json', out)


if __name__ == '__main__':
    os.environ['TZ'] = 'UTC'
    time.tzset()
    acls()
    pyjson()
    accept()
    heartbeat()
    listings()
    log_lines()
    manifests()
