#!/usr/bin/env python3
"""Writes the golden files of this folder with Python Swift 2.38.3 (run it in a venv that holds swift)."""
import json
import os
import pickle
import random

from swift.common import utils
from swift.common.header_key_dict import HeaderKeyDict
from swift.common.utils import Timestamp
from swift.common.utils.timestamp import encode_timestamps, decode_timestamps
from urllib.parse import quote

HERE = os.path.dirname(os.path.abspath(__file__))


def write(name, lines):
    with open(os.path.join(HERE, name), 'w') as f:
        f.writelines(line + '\n' for line in lines)


def timestamps():
    rnd = random.Random(1)
    texts = ['0', '1', '1.5', '1234', '1234.56789', '1234.56789_0f', '1234.56789_F', '1402464677.04188',
             '1402464677.04188_0000000000000001', '1402464677.04188_00000000000000001', '  12.5 ', '1e3', '.5',
             '5.', '+7', '-0', '-0.000001', '-1', '1_2_3', '1_', '_1', '', 'nan', 'inf', '1_-1', '1_0x1f', '1_g',
             '9999999999.99999', '9999999999.999999', '10000000000', '1.000005', '1.000015', '1.0000049',
             '0000000000.00000_ffffffffffffffff', '4102444800.12345', '9999999998.99999', '0x10', '1,5', '1 2']
    texts += ['%.5f' % rnd.uniform(0, 9999999999) for _ in range(30)]
    texts += ['%.7f' % rnd.uniform(0, 3000000000) for _ in range(30)]
    lines = []
    for text in texts:
        try:
            t = Timestamp(text)
            lines.append('|'.join([text, t.normal, t.internal, t.short, str(t.ceil()), t.isoformat, str(t.raw)]))
        except (ValueError, OverflowError):
            lines.append(text + '|error')
    write('timestamps.txt', lines)
    ts = ['1402464677.04188', '1402464677.04188_0f', '1402464678.00000', '0000000001.00000', '1402464677.04187']
    lines = []
    for t1 in ts:
        for t2 in [None] + ts:
            for t3 in [None] + ts if t2 else [None]:
                for explicit in (False, True):
                    objs = [t and Timestamp(t) for t in (t1, t2, t3)]
                    enc = encode_timestamps(*objs, explicit=explicit)
                    dec = decode_timestamps(enc, explicit=explicit)
                    lines.append('|'.join([t1, t2 or '', t3 or '', str(explicit), enc] +
                                          [d.internal if d is not None else '' for d in dec]))
    write('encoded_timestamps.txt', lines)


def hash_paths():
    lines = []
    for prefix, suffix in ((b'', b'changeme'), (b'pre', b''), (b'\xff\x00%', b'\xe9s')):
        utils.HASH_PATH_PREFIX, utils.HASH_PATH_SUFFIX = prefix, suffix
        for names in (('AUTH_test', '', ''), ('AUTH_test', 'c', ''), ('AUTH_test', 'c', 'o/with/slashes'),
                      ('a', 'c', '\u00e9t\u00e9 \u2603\U0001f600'), ('.shards_a', 'c', 'o')):
            h = utils.hash_path(*[n or None for n in names])
            part = utils.get_partition_for_hash(h, 10)
            lines.append('|'.join([prefix.hex(), suffix.hex()] + list(names) +
                                  [h, str(part), utils.storage_directory('objects', part, h)]))
    write('hash_paths.txt', lines)


def quoted():
    lines = []
    for raw in (b'', b'abc/d e', bytes(range(33, 127)), '\u00e9\u2603'.encode(), b'a+b&c=d;e,f~g', bytes(range(128, 256))):
        for safe in ('/', '', '/:'):
            lines.append('|'.join([raw.hex(), safe, quote(raw, safe)]))
    write('quoted.txt', lines)


def pickles():
    metadata = {
        'name': '/a/c/\u00e9\u2603', 'X-Timestamp': '1402464677.04188', 'Content-Type': 'text/plain', 'ETag': 'd41d8',
        'Content-Length': '0', 'X-Object-Meta-Odd': 'caf\udce9', 'X-Object-Meta-Empty': '', 'X-Object-Meta-Empty2': '',
        'X-Object-Meta-One': '0', 'x': '0', 'y': 'x'}
    for i in range(91):
        metadata['X-Object-Meta-%d' % i] = 'value \u00fc %d' % i
    encode = lambda s: s.encode('utf8', 'surrogateescape')
    metadata = {encode(k): encode(v) for k, v in metadata.items()}
    small = {k: metadata[k] for k in list(metadata)[:11]}
    cases = {'metadata_small': small, 'metadata_large': metadata}
    hashes = {'%03x' % i: '%032x' % (i * 7919) for i in range(0, 40)}
    hashes.update({'fff': None, 'valid': True, 'updated': 1402464677.04188})
    cases['hashes'] = hashes
    cases['hashes_ec'] = {'abc': {None: '0' * 32, 2: 'f' * 32}, 'def': {}, 'valid': False, 'updated': -1}
    for n in (1, 999, 1000, 1001, 2000):
        cases['dict_%d' % n] = {i: None for i in range(n)}
        cases['list_%d' % n] = [i for i in range(n)]
    cases['async_pending'] = {
        'op': 'PUT', 'account': 'a', 'container': 'c', 'obj': 'o\u00e9', 'db_state': None,
        'headers': HeaderKeyDict([('x-size', '12'), ('X-ETag', 'abc'), ('x-timestamp', '1402464677.04188')])}
    cases['numbers'] = [0, 255, 256, 65535, 65536, -1, 2 ** 31 - 1, 2 ** 31, -2 ** 31, -2 ** 31 - 1, 2 ** 63 - 1, -2 ** 63,
                        128 * 2 ** 24, 1.5, -0.0, True, False, None, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, '', b'']
    for name, value in cases.items():
        with open(os.path.join(HERE, name + '.pickle'), 'wb') as f:
            f.write(pickle.dumps(value, 2))
    update = {
        'op': 'PUT', 'account': 'a', 'container': 'c\u00e9', 'obj': 'o\\u \\ \n\u2603\U0001f600\u00e9', 'successes': [1, 300],
        'headers': HeaderKeyDict({'x-size': '1', 'a': '2'}), 'db_state': None, 'b': True, 'neg': -5, 'big': 2 ** 40,
        'f': 1.5, 'bytes': b'x\xff', 'empty': b'', 't': (1,), 'u': ()}
    for protocol in (0, 1, 2):
        with open(os.path.join(HERE, 'async_pending_%d.pickle' % protocol), 'wb') as f:
            f.write(pickle.dumps(update, protocol))
    py2 = b"\x80\x02}q\x01(U\x04nameq\x02U\x07/a/c/\xc3\xa9q\x03U\x01xq\x04U\x02\xc3\xa9q\x05u."
    with open(os.path.join(HERE, 'metadata_py2.pickle'), 'wb') as f:
        f.write(py2)


def ini():
    cases = {
        'plain': '[DEFAULT]\na = 1\n[s]\nb=2\nc : 3\nd = x = y : z\n  e =  spaced value  \nf:=g\n',
        'comments': '# c\n; d\n[s]  # trailing\na = 1 # not a comment\nb = 2 ; nor this\n  # indented\nc = 3\n',
        'continued': '[s]\na = one\n two\n\n three\n# gone\n  four\n\n\nb = x\n\ty\nc =\n  1\n  2\n',
        'indented': '[s]\n  a = 1\n  b = 2\n    more = 3\nc = 4\n [t]\n d = 5\n',
        'case': '[S]\nAbc = 1\nabc = 2\n[s]\nABC = 3\n',
        'interpolated': '[DEFAULT]\nroot = /srv\n[s]\na = %(root)s/x\nb = %(a)s/y%%\nc = 1%\nd = 100%%\n',
        'interpolation_missing': '[s]\na = %(none)s\n',
        'interpolation_bad': '[s]\na = %(b)d\nb = 1\n',
        'interpolation_percent': '[s]\na = %(b)s 1%\nb = 1\n',
        'interpolation_loop': '[s]\na = %(b)s\nb = %(a)s\n',
        'interpolation_empty': '[s]\na = %()s\n',
        'no_section': 'a = 1\n[s]\n',
        'no_value': '[s]\na\n',
        'no_name': '[s]\n= 1\n',
        'twice_option': '[s]\na = 1\na = 2\n',
        'twice_section': '[s]\na = 1\n[s]\nb = 2\n',
        'twice_default': '[DEFAULT]\na = 1\n[s]\n[DEFAULT]\nb = 2\n',
        'empty': '',
        'empty_value': '[s]\na =\nb:\nc = \n\nd = 1\n',
        'brackets': '[a]b]\nx = 1\n[c] ]\n y = 2\n[]\n',
        'brackets_ok': '[a]b]\nx = 1\n[c] tail\ny = 2\n',
        'unicode': '[s]\na = \u00e9\u2603\n\u00e4 = 1\n',
        'crlf': '[s]\r\na = 1\r\n 2\r\n',
        'set': '[app:x]\nuse = egg:swift#x\nset log_level = DEBUG\nset a=b\n',
        'default_continued': '[DEFAULT]\n  a = 1\n    2\n[s]\nb = %(a)s\n',
        'form_feed': '[s]\na = 1\x0c2\nb = 3\x1c4\nc = 5\x85 6\n',
    }
    folder = os.path.join(HERE, 'ini')
    os.makedirs(folder, exist_ok=True)
    for name, text in cases.items():
        path = os.path.join(folder, name + '.conf')
        with open(path, 'w', newline='') as f:
            f.write(text)
        try:
            conf = utils.readconf(path)
            conf = {k: v for k, v in conf.items() if k not in ('log_name', '__file__')}
        except Exception:
            conf = {'error': True}
        with open(os.path.join(folder, name + '.json'), 'w') as f:
            json.dump(conf, f)
            f.write('\n')


timestamps()
ini()
hash_paths()
quoted()
pickles()
