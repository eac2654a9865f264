#!/usr/bin/env python3
"""Compares DiskFile with Python Swift's, each working on what the other has written.

    diskfile_peer.py EXAMPLE SCRATCH [rounds] [seed]

EXAMPLE is the program built from crates/obj/examples/diskfile.rs, SCRATCH a directory on a file system with extended
attributes (XFS, if large metadata is to be tested). Run it with a Python that has Swift 2.38 installed. It ends with
status 0 and one line if nothing differs; else with the first difference.
"""
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import time

from swift.common import utils
from swift.common.exceptions import DiskFileDeleted, DiskFileError, \
    DiskFileQuarantined
from swift.common.storage_policy import POLICIES
from swift.common.utils import Timestamp, hash_path, md5
from swift.obj import diskfile

PART_POWER = 2
NAMES = ['/a/c/o%d' % i for i in range(12)] + ['/a/c/\u00f6\u4e2d', '/AUTH_x/c c/a/b//c']

utils.HASH_PATH_PREFIX, utils.HASH_PATH_SUFFIX = b'', b'endcap'


class Ours:
    def __init__(self, example, devices, reclaim_age):
        self.proc = subprocess.Popen(
            [example, devices, str(PART_POWER), str(reclaim_age)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def __call__(self, cmd, **args):
        self.proc.stdin.write(json.dumps(dict(args, cmd=cmd)).encode() + b'\n')
        self.proc.stdin.flush()
        line = self.proc.stdout.readline()
        assert line, 'the example ended at %s %s' % (cmd, args)
        return json.loads(line)

    def close(self):
        self.proc.stdin.close()
        self.proc.wait()


def to_hex(text):
    return text.encode('utf8', 'surrogateescape').hex()


class Python:
    def __init__(self, devices, reclaim_age):
        logger = utils.get_logger({}, 'peer')
        logger.logger.setLevel(logging.CRITICAL)
        logging.disable(logging.CRITICAL)
        conf = {'devices': devices, 'mount_check': 'false', 'reclaim_age': str(reclaim_age)}
        self.mgr = diskfile.DiskFileManager(conf, logger)

    def df(self, path):
        acc, con, obj = path[1:].split('/', 2)
        part = int(hash_path(acc, con, obj), 16) >> (128 - PART_POWER)
        return self.mgr.get_diskfile('sda', part, acc, con, obj, POLICIES[0])

    def put(self, path, ts, body, meta):
        with self.df(path).create(size=len(body) or None) as writer:
            writer.write(body)
            writer.put(dict(meta, **{
                'X-Timestamp': Timestamp(ts).internal, 'Content-Length': str(len(body)),
                'ETag': md5(body, usedforsecurity=False).hexdigest()}))

    def post(self, path, ts, meta):
        self.df(path).write_metadata(dict(meta, **{'X-Timestamp': Timestamp(ts).internal}))

    def delete(self, path, ts):
        self.df(path).delete(Timestamp(ts))

    def read(self, path):
        df = self.df(path)
        def pairs(meta):
            return None if meta is None else sorted([to_hex(k), to_hex(v)] for k, v in meta.items())
        try:
            with df.open():
                quarantined = []
                body = b''.join(df.reader(_quarantine_hook=quarantined.append))
                return {'ok': {
                    'meta': pairs(df.get_metadata()), 'datafile': pairs(df.get_datafile_metadata()),
                    'metafile': pairs(df.get_metafile_metadata()), 'ts': df.timestamp.internal,
                    'data_ts': df.data_timestamp.internal, 'ctype_ts': df.content_type_timestamp.internal,
                    'body': body.hex(), 'quarantined': quarantined[0] if quarantined else None}}
        except DiskFileDeleted as err:
            return {'error': type(err).__name__, 'ts': err.timestamp.internal}
        except DiskFileQuarantined as err:
            return {'error': 'DiskFileQuarantined', 'reason': str(err)}
        except DiskFileError as err:
            return {'error': type(err).__name__}

    def hashes(self, part, recalculate=(), skip_rehash=False):
        return {'ok': self.mgr.get_hashes('sda', part, list(recalculate), POLICIES[0], skip_rehash)}

    def yield_hashes(self, part):
        return {'ok': {h: {k: v.internal for k, v in t.items()}
                       for h, t in self.mgr.yield_hashes('sda', part, POLICIES[0])}}


def differ(what, ours, theirs):
    sys.exit('%s differs\nours:   %s\npython: %s' % (what, ours, theirs))


def same(what, ours, theirs):
    if ours != theirs:
        differ(what, ours, theirs)


def random_meta(rng, big):
    meta = {'Content-Type': rng.choice(['text/plain', 'application/x-\u00e9'])}
    for i in range(rng.randrange(5)):
        name = 'X-Object-Meta-' + rng.choice(['Color', 'Caf\u00e9', '\u4e2d\u6587', 'Raw\udcff'])
        meta[name] = rng.choice(['', 'blue', '\u00fc', '\udce9\udcff', 'x' * 300])
    if rng.random() < .3:
        meta['X-Object-Sysmeta-Thing'] = 'kept'
    if rng.random() < .2:
        meta['X-Static-Large-Object'] = 'True'
    if big and rng.random() < .1:
        meta['X-Object-Meta-Big'] = 'y' * 70000
    return meta


def tree(top):
    found = []
    for parent, _dirs, files in os.walk(top):
        found.extend(os.path.relpath(os.path.join(parent, f), top) for f in files
                     if f.endswith(('.data', '.meta', '.ts')))
    return sorted(found)


class Run:
    def __init__(self, example, scratch, rng):
        self.rng = rng
        self.scratch = scratch
        shutil.rmtree(scratch, ignore_errors=True)
        # The same history twice: on `mixed` each step is done by either side, on `theirs` all by Python.
        self.mixed, self.theirs = os.path.join(scratch, 'mixed'), os.path.join(scratch, 'theirs')
        for devices in (self.mixed, self.theirs):
            os.makedirs(os.path.join(devices, 'sda'))
        self.reclaim_age = 1000
        self.ours = Ours(example, self.mixed, self.reclaim_age)
        self.peer = Python(self.mixed, self.reclaim_age)
        self.reference = Python(self.theirs, self.reclaim_age)
        self.big = self.can_be_big()

    def can_be_big(self):
        probe = os.path.join(self.scratch, 'probe')
        with open(probe, 'wb') as f:
            try:
                os.setxattr(f.fileno(), 'user.big', b'x' * 65000)
                return True
            except OSError:
                return False

    def timestamp(self):
        base = time.time() - self.rng.choice([10, 20, 100, 100, 100, 5000])
        # Few different times, so that equal ones meet.
        offset = self.rng.choice([0, 0, 0, 1])
        return Timestamp(int(base / 10) * 10 + self.rng.randrange(6), offset=offset).internal

    def write(self):
        rng, path, ts = self.rng, self.rng.choice(NAMES), self.timestamp()
        by_us = rng.random() < .5
        kind = rng.choice(['put', 'put', 'post', 'post', 'delete'])
        if kind == 'put':
            size = rng.choice([0, 1, 4096, 70000])
            body, meta = rng.randbytes(size), random_meta(rng, self.big)
            if rng.random() < .1:
                meta['X-Delete-At'] = str(int(time.time()) + rng.choice([-10, 1000]))
            if by_us:
                pairs = [[to_hex(k), to_hex(v)] for k, v in meta.items()]
                self.done(self.ours('put', path=path, ts=ts, body=body.hex(), meta=pairs,
                                    small=rng.random() < .5))
            else:
                self.peer.put(path, ts, body, meta)
            self.reference.put(path, ts, body, meta)
        elif kind == 'post':
            meta = random_meta(rng, False)
            del meta['Content-Type']
            if rng.random() < .5:
                meta['Content-Type'] = rng.choice(['a/b', 'c/d'])
                meta['Content-Type-Timestamp'] = Timestamp(self.timestamp().split('_')[0]).internal
            if by_us:
                pairs = [[to_hex(k), to_hex(v)] for k, v in meta.items()]
                self.done(self.ours('post', path=path, ts=ts, meta=pairs))
            else:
                self.peer.post(path, ts, meta)
            self.reference.post(path, ts, meta)
        else:
            if by_us:
                self.done(self.ours('delete', path=path, ts=ts))
            else:
                self.peer.delete(path, ts)
            self.reference.delete(path, ts)

    def done(self, answer):
        if 'ok' not in answer:
            sys.exit('failed: %s' % answer)

    def compare_objects(self):
        for path in NAMES:
            theirs = self.reference.read(path)
            same('ours reading ' + path, self.ours('read', path=path), theirs)
            same('python reading ' + path, self.peer.read(path), theirs)
        top = 'sda/objects'
        same('files', tree(os.path.join(self.mixed, top)), tree(os.path.join(self.theirs, top)))

    def compare_hashes(self):
        rng = self.rng
        for part in range(1 << PART_POWER):
            partition = os.path.join(self.mixed, 'sda/objects', str(part))
            first, second = (self.ours, self.peer) if rng.random() < .5 else (self.peer, self.ours)
            listed = sorted(s for s in os.listdir(partition) if len(s) == 3) if os.path.isdir(partition) else []
            recalculate = rng.sample(listed, min(len(listed), rng.randrange(3)))
            answers = []
            for side in (first, second):
                if side is self.ours:
                    answers.append(self.ours('hashes', part=part, recalculate=recalculate))
                else:
                    answers.append(self.peer.hashes(part, recalculate))
            same('second hashes of %d' % part, answers[1], answers[0])
            expected = self.reference.hashes(part, recalculate)
            same('hashes of %d' % part, answers[0], expected)
            same('yield_hashes of %d' % part, self.ours('yield_hashes', part=part),
                 self.reference.yield_hashes(part))
            if rng.random() < .2 and recalculate:
                self.ours('hashes', part=part, recalculate=recalculate, skip_rehash=True)
            if rng.random() < .05 and os.path.isdir(partition):
                with open(os.path.join(partition, 'hashes.pkl'), 'wb') as f:
                    f.write(rng.choice([b'', b'junk', pickle.dumps({'zzz': 1}), pickle.dumps([1])
                                        if first is None else b'\x80']))

    def round(self):
        for _ in range(self.rng.randrange(1, 8)):
            self.write()
        if self.rng.random() < .7:
            self.compare_objects()
        if self.rng.random() < .7:
            self.compare_hashes()


def xattr_names(path):
    return [n for n in os.listxattr(path) if n.startswith('user.swift.metadata')]


def rewrite_metadata(path, change):
    meta = diskfile.read_metadata(path)
    change(meta)
    diskfile.write_metadata(path, meta)


def replace_by_file(hash_dir):
    shutil.rmtree(hash_dir)
    with open(hash_dir, 'w'):
        pass


def truncate_xattr(path):
    value = os.getxattr(path, 'user.swift.metadata')
    os.setxattr(path, 'user.swift.metadata', value[:len(value) // 2])


def in_file(data_file, how):
    def damage(hash_dir):
        name = [n for n in os.listdir(hash_dir) if n.endswith(data_file)][0]
        how(os.path.join(hash_dir, name))
    return damage


def add_junk(hash_dir):
    for name in ('junk', '.1234567890.00000.data.Xy09_a', '0000000001.00000.weird', '\udcff.data', 'nan.data'):
        with open(os.path.join(hash_dir, name), 'w'):
            pass


def damages():
    def set_meta(key, value):
        return lambda path: rewrite_metadata(path, lambda meta: meta.__setitem__(key, value))

    def del_meta(key):
        return lambda path: rewrite_metadata(path, lambda meta: meta.pop(key))
    data, meta, ts = (lambda how: ('put', in_file('.data', how))), (lambda how: ('post', in_file('.meta', how))), \
        (lambda how: ('delete', in_file('.ts', how)))
    return {
        'a file as hash dir': ('put', replace_by_file),
        'an empty hash dir': ('put', lambda d: [os.unlink(os.path.join(d, n)) for n in os.listdir(d)]),
        'longer than its length': data(lambda f: os.truncate(f, 20)),
        'shorter than its length': data(lambda f: os.truncate(f, 3)),
        'other bytes': data(lambda f: open(f, 'r+b').write(b'XX')),
        'bad etag': data(set_meta('ETag', 'badetag')),
        'no name': data(del_meta('name')),
        'another name': data(set_meta('name', '/a/c/other')),
        'bad length': data(set_meta('Content-Length', 'x')),
        'no length': data(del_meta('Content-Length')),
        'bad delete-at': data(set_meta('X-Delete-At', 'x')),
        'expired': data(set_meta('X-Delete-At', '1')),
        'no metadata': data(lambda f: [os.removexattr(f, n) for n in xattr_names(f)]),
        'truncated metadata': data(truncate_xattr),
        'no checksum': data(lambda f: os.removexattr(f, 'user.swift.metadata_checksum')),
        'truncated without checksum': data(lambda f: (
            truncate_xattr(f), os.removexattr(f, 'user.swift.metadata_checksum'))),
        'truncated metadata of a POST': meta(truncate_xattr),
        'truncated metadata of a tombstone': ts(truncate_xattr),
        'junk beside a data file': ('put', add_junk),
        'junk beside a tombstone': ('delete', add_junk),
    }


def everything(devices):
    """All names below the device, quarantined ones without what makes them unique."""
    found = []
    for parent, dirs, files in os.walk(os.path.join(devices, 'sda')):
        for name in dirs + files:
            path = os.path.relpath(os.path.join(parent, name), devices)
            if '/.lock' not in path:
                parts = path.split('/')
                if parts[1] == 'quarantined':
                    parts[3:4] = [p[:32] for p in parts[3:4]]
                found.append('/'.join(parts))
    return sorted(found)


def compare_damage(example, scratch):
    """Damages the same object in two trees, and looks what each side makes of it, by reading and by rehashing."""
    for name, (last, damage) in sorted(damages().items()):
        for act in ('read', 'hashes', 'yield'):
            shutil.rmtree(scratch, ignore_errors=True)
            results = []
            for side in ('ours', 'python'):
                devices = os.path.join(scratch, side)
                os.makedirs(os.path.join(devices, 'sda'))
                python = Python(devices, 10 ** 10)
                ours = Ours(example, devices, 10 ** 10)
                results.append(treat(python, ours if side == 'ours' else python, last, damage, act, devices))
                ours.close()
            same('%s, found by %s' % (name, act), *results)
    return len(damages()) * 3


def treat(python, side, last, damage, act, devices):
    path = '/a/c/o'
    for neighbour in NAMES:
        python.put(neighbour, '10', b'neighbour', {})
    python.put(path, '1000000001', b'0123456789', {'Content-Type': 'x/y'})
    if last == 'post':
        python.post(path, '1000000002', {'X-Object-Meta-A': 'b'})
    if last == 'delete':
        python.delete(path, '1000000002')
    hash_dir = python.df(path)._datadir
    part = int(hash_dir.split('/')[-3])
    python.hashes(part)
    damage(hash_dir)
    call = side if isinstance(side, Ours) else (lambda cmd, **args: getattr(side, cmd)(**args))
    answers = []
    if act == 'read':
        answers = [call('read', path=path), call('read', path=path)]
        for answer in answers:
            answer.pop('reason', None)
    elif act == 'yield':
        try:
            answers = [call('yield_hashes', part=part)]
        except NotADirectoryError:
            # Python gives up on the partition; ours quarantines the file as a rehash would, and goes on.
            python.hashes(part, [hash_dir[-3:]])
            answers = [call('yield_hashes', part=part)]
    # The rehash finds what reading has invalidated.
    answers.append(call('hashes', part=part, recalculate=[hash_dir[-3:]] if act == 'hashes' else []))
    return answers, everything(devices)


def main():
    example, scratch = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    run = Run(example, scratch, random.Random(seed))
    try:
        for _ in range(rounds):
            run.round()
    finally:
        run.ours.close()
    damaged = compare_damage(example, scratch + '-damage')
    print('%d rounds with seed %d, %d damages: no difference (large metadata: %s)' % (
        rounds, seed, damaged, run.big))


if __name__ == '__main__':
    main()
