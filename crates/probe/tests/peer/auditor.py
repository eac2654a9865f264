#!/usr/bin/env python3
"""Compares object-auditors: Swift's and another one on copies of the same devices.

    auditor.py SCRATCH PROGRAM

PROGRAM is the other swift-object-auditor, SCRATCH a directory on a file system with extended attributes. Run it with a
Python that has Swift 2.38 installed. It ends with status 0 if nothing differs; else with the first difference.
"""
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from swift.common import utils
from swift.common.storage_policy import POLICIES
from swift.common.utils import Timestamp, hash_path, md5
from swift.obj import diskfile

from sides import Receiver, runner, same, start

SCRATCH, PROGRAM = sys.argv[1:3]
PART_POWER = 4
ETC = os.path.join(SCRATCH, 'etc')
PYTHON = runner(ETC, 'swift-object-auditor')
SIDES = {'python': PYTHON, 'ours': [PROGRAM]}
NOW = time.time()

start(ETC, 'gold', 'silver', erasure=('ec', 4, 2))


def manager(devices):
    return diskfile.DiskFileManager(
        {'devices': devices, 'mount_check': 'false', 'reclaim_age': str(10 ** 9)}, utils.get_logger({}, 'peer'))


def put(devices, device, name, body=b'body', etag_of=None, policy=0, at=NOW - 1000, **headers):
    """An object; the path of its data file."""
    part = int(hash_path('a', 'c', name), 16) >> (128 - PART_POWER)
    df = manager(devices).get_diskfile(device, part, 'a', 'c', name, POLICIES[policy])
    metadata = {'X-Timestamp': Timestamp(at).internal, 'Content-Length': str(len(body)), 'Content-Type': 'x/y',
                'ETag': md5(body if etag_of is None else etag_of, usedforsecurity=False).hexdigest()}
    with df.create(size=len(body)) as writer:
        writer.write(body)
        writer.put(dict(metadata, **{key.replace('_', '-'): value for key, value in headers.items()}))
    return os.path.join(df._datadir, Timestamp(at).internal + '.data')


def put_fragment(devices, device, size, change=lambda archive: archive, etag_of=None, commit=True, legacy=False):
    """Fragment 1 of an object of so many bytes, changed before its ETag is computed."""
    part = int(hash_path('a', 'c', 'o'), 16) >> (128 - PART_POWER)
    mgr = diskfile.ECDiskFileManager({'devices': devices, 'mount_check': 'false'}, utils.get_logger({}, 'peer'))
    df = mgr.get_diskfile(device, part, 'a', 'c', 'o', POLICIES[2])
    segments = [b'x' * min(1 << 20, size - at) for at in range(0, size, 1 << 20)]
    archive = change(b''.join(POLICIES[2].pyeclib_driver.encode(segment)[1] for segment in segments))
    with df.create(size=len(archive)) as writer:
        writer.write(archive)
        writer.put({'X-Timestamp': Timestamp(NOW - 1000).internal, 'Content-Length': str(len(archive)), 'Content-Type': 'x/y',
                    'ETag': md5(archive if etag_of is None else etag_of, usedforsecurity=False).hexdigest(),
                    'X-Object-Sysmeta-Ec-Frag-Index': '1', 'X-Object-Sysmeta-Ec-Etag': 'etag'})
        if legacy:
            open(os.path.join(df._datadir, Timestamp(NOW - 1000).internal + '.durable'), 'w').close()
        elif commit:
            writer.commit(Timestamp(NOW - 1000))


def delete(devices, device, name, at):
    part = int(hash_path('a', 'c', name), 16) >> (128 - PART_POWER)
    manager(devices).get_diskfile(device, part, 'a', 'c', name, POLICIES[0]).delete(Timestamp(at))


def cases(devices):
    """A device for each kind of object."""
    def on(device):
        os.makedirs(os.path.join(devices, device), exist_ok=True)
        return device

    def truncate(path, size):
        os.truncate(path, size)

    put(devices, on('good'), 'o', body=b'x' * 200000)
    put(devices, on('empty'), 'o', body=b'')
    put(devices, on('emptywrong'), 'o', body=b'', etag_of=b'x')
    put(devices, on('etag'), 'o', etag_of=b'else')
    put(devices, on('silver'), 'o', etag_of=b'else', policy=1)
    truncate(put(devices, on('zero'), 'o'), 0)
    truncate(put(devices, on('cut'), 'o', body=b'x' * 100000), 70000)
    truncate(put(devices, on('longer'), 'o'), 9)
    os.removexattr(put(devices, on('noxattr'), 'o'), 'user.swift.metadata')
    os.setxattr(put(devices, on('badxattr'), 'o'), 'user.swift.metadata', b'\x80\x02}q')
    os.removexattr(put(devices, on('nochecksum'), 'o'), 'user.swift.metadata_checksum')
    put(devices, on('expired'), 'o', etag_of=b'else', X_Delete_At=str(int(NOW) - 10))
    put(devices, on('baddeleteat'), 'o', X_Delete_At='soon')
    delete(devices, on('gone'), 'o', NOW - 1000)
    delete(devices, on('longgone'), 'o', NOW - 30 * 86400)
    os.setxattr(put(devices, on('moved'), 'other'), 'user.swift.metadata_checksum', b'0' * 32)
    here = os.path.dirname(put(devices, on('otherhash'), 'o'))
    os.rename(here, here[:-32] + '0' * 29 + here[-3:])
    junk = put(devices, on('junk'), 'o')
    folder = os.path.dirname(junk)
    os.makedirs(os.path.join(os.path.dirname(folder), 'emptydir'))
    # In the hash dir, the suffix dir, the partition, and objects.
    for _ in range(4):
        with open(os.path.join(folder, 'junk'), 'w') as fp:
            fp.write('junk')
        folder = os.path.dirname(folder)
    rsync = os.path.dirname(put(devices, on('rsync'), 'o'))
    alone = os.path.join(os.path.dirname(rsync), 'f' * 29 + rsync[-3:])
    os.makedirs(alone)
    for folder in (rsync, alone):
        for name in ('.1700000000.00000.data.Xy095a', '.x.abc_Z9', 'x.abcdef', '.1700000000.00000.data.toolong7'):
            for age, mark in ((10 ** 5, 'a'), (1000, 'b'), (0, 'c')):
                path = os.path.join(folder, name.replace('0000', mark * 4).replace('.x', '.x' + mark))
                with open(path, 'w') as fp:
                    fp.write('half')
                os.utime(path, (NOW - age, NOW - age))
    meta = put(devices, on('badmeta'), 'o')
    part = int(hash_path('a', 'c', 'o'), 16) >> (128 - PART_POWER)
    manager(devices).get_diskfile('badmeta', part, 'a', 'c', 'o', POLICIES[0]).write_metadata(
        {'X-Timestamp': Timestamp(NOW - 10).internal, 'X-Object-Meta-Color': 'blue'})
    (path,) = [name for name in os.listdir(os.path.dirname(meta)) if name.endswith('.meta')]
    os.setxattr(os.path.join(os.path.dirname(meta), path), 'user.swift.metadata_checksum', b'0' * 32)
    def flipped(at):
        return lambda archive: archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1:]

    whole = 262224
    put_fragment(devices, on('ecgood'), (2 << 20) + 5)
    put_fragment(devices, on('ecsmall'), 100)
    put_fragment(devices, on('ecempty'), 0)
    put_fragment(devices, on('ecfirst'), (1 << 20) + 5, flipped(70))
    put_fragment(devices, on('ecsecond'), (1 << 20) + 5, flipped(whole + 3))
    put_fragment(devices, on('ecpayload'), (1 << 20) + 5, flipped(whole + 81))
    put_fragment(devices, on('eccut'), (1 << 20) + 5, lambda archive: archive[:whole + 40])
    put_fragment(devices, on('ecetag'), 100, etag_of=b'else')
    put_fragment(devices, on('ecfresh'), 100, flipped(3), commit=False)
    put_fragment(devices, on('eclegacy'), 100, flipped(3), legacy=True)
    # What making the objects has marked is not what the auditor marks.
    for folder, _dirs, files in os.walk(devices):
        if 'hashes.invalid' in files:
            os.truncate(os.path.join(folder, 'hashes.invalid'), 0)


def tree(top):
    """Files with their contents and attributes; what is marked, without order."""
    found = {}
    for folder, _dirs, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            with open(path, 'rb') as fp:
                body = fp.read()
            if name == 'hashes.invalid':
                body = sorted(set(body.split()))
            attrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
            if name not in ('.lock', 'hashes.invalid') or body:
                found[os.path.relpath(path, top)] = (body, attrs)
    return found


class Side:
    """One auditor with devices, logs and figures of its own."""

    def __init__(self, kind, name, devices):
        self.kind, self.devices = kind, devices
        self.home = os.path.join(SCRATCH, '%s-%s' % (name, kind))
        os.makedirs(self.home)
        self.conf = os.path.join(self.home, 'object-server.conf')
        self.lines, self.metrics = [], collections.Counter()
        self.log, self.statsd = Receiver(self.take_line), Receiver(self.take_metric)

    def take_line(self, line):
        self.lines.append(re.sub(r'^<\d+>[^:]*: ', '', line.rstrip('\0\n')).replace(self.devices, ''))

    def take_metric(self, packet):
        for metric in packet.split('\n'):
            if metric:
                self.metrics[metric.split(':')[0]] += 1

    def configure(self, options):
        with open(self.conf, 'w') as fp:
            fp.write('[DEFAULT]\nuser = root\nswift_dir = %s\ndevices = %s\nmount_check = no\nlog_udp_host = 127.0.0.1\nlog_udp_port = %d\n'
                     'log_statsd_host = 127.0.0.1\nlog_statsd_port = %d\nrecon_cache_path = %s\n'
                     'files_per_second = 0\nbytes_per_second = 0\nzero_byte_files_per_second = 0\n'
                     '[object-auditor]\n%s\n[object-replicator]\nrsync_timeout = 50\n' % (
                         ETC, self.devices, self.log.port, self.statsd.port,
                         self.home, options.replace(',', '\n').replace(';', ',')))

    def start(self, *args):
        return subprocess.Popen(SIDES[self.kind] + [self.conf] + list(args), stdout=subprocess.DEVNULL,
                                start_new_session=True, env=dict(os.environ, PYTHONWARNINGS='ignore'))

    def once(self, *args):
        code = self.start('once', *args).wait(120)
        assert code == 0, '%s ended with %d' % (self.kind, code)
        self.log.catch_up()
        self.statsd.catch_up()

    def recon(self):
        with open(os.path.join(self.home, 'object.recon')) as fp:
            figures = json.load(fp)
        figures = json.loads(re.sub(r'"(audit_time|start_time)": ?[0-9.e+-]+', r'"\1": 0', json.dumps(figures)))
        for device, stats in figures.get('object_auditor_stats_ALL', {}).items():
            # Swift looks at a header when it has all of the fragment.
            if device in ('ecfirst', 'ecsecond', 'eclegacy'):
                stats['bytes_processed'] = 0
        return figures

    def said(self, parallel):
        """Lines of which both must say the same. Which object is the first, and reported, is random but in parallel."""
        def plain(line):
            line = re.sub(r'(Exception reading metadata|Metadata checksum mismatch).*', r'\1', line)
            line = re.sub(r'completed: [0-9.]+s', 'completed', line)
            line = re.sub(r'Since [A-Z][a-z]+ [A-Z][a-z]+ [ 0-9]?[0-9] [0-9:]{8} [0-9]{4}:', 'Since:', line)
            if not parallel:
                line = re.sub(r'Locally: .* errors', 'Locally', line)
            return re.sub(r'(/sec|Auditing time|Rate|Total time): [0-9]+\.[0-9]{2}(?=,|$)', r'\1', line)
        wanted = ('Object audit', 'Begin object audit', 'ERROR', '[audit')
        return sorted(plain(line) for line in self.lines if line.startswith(wanted))


def compare(name, options, *args):
    """A pass of each over all cases."""
    sides = []
    for kind in ('python', 'ours'):
        devices = os.path.join(SCRATCH, 'devices-%s-%s' % (name, kind))
        subprocess.check_call(['cp', '-a', TEMPLATE, devices])
        side = Side(kind, name, devices)
        side.configure(options)
        side.once(*args)
        sides.append(side)
    python, ours = sides
    same(name + ': files', tree(python.devices), tree(ours.devices))
    parallel = 'concurrency' in options
    same(name + ': log', python.said(parallel), ours.said(parallel))
    same(name + ': metrics', python.metrics, ours.metrics)
    if parallel:
        same(name + ': recon', python.recon()['object_auditor_stats_ALL'], ours.recon()['object_auditor_stats_ALL'])
    else:
        same(name + ': recon keys', *[{key: sorted(value) for key, value in side.recon().items()} for side in sides])
    quarantined = [path for path in tree(ours.devices) if '/quarantined/' in path]
    print('%s: %d files, %d of them quarantined, %d lines of log' % (
        name, len(tree(ours.devices)), len(quarantined), len(ours.said(parallel))))
    return quarantined


def status_file(devices):
    return os.path.join(devices, 'sda/objects/auditor_status_ALL.json')


def cut_off(side):
    """Starts it on many partitions and kills it about half way; its position."""
    path, total = status_file(side.devices), None
    side.configure('files_per_second = 20')
    running = side.start('once')
    try:
        deadline = time.time() + 60
        while time.time() < deadline:
            assert running.poll() is None, side.kind + ' has ended'
            with contextlib.suppress(OSError, ValueError):
                with open(path) as fp:
                    text = fp.read()
                left = json.loads(text)['partitions']
                if total is None:
                    first, total = text, len(left)
                if len(left) <= total // 2:
                    return first, text, left
                # Positions are written once a minute: let a minute have passed.
                os.utime(path, (NOW - 100, NOW - 100))
            time.sleep(.005)
        sys.exit('%s wrote no position' % side.kind)
    finally:
        # Children of Swift's do its work.
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def resume():
    """Each goes on where the other one was killed."""
    template = os.path.join(SCRATCH, 'many')
    os.makedirs(os.path.join(template, 'sda'))
    objects = {}
    for n in range(40):
        path = put(template, 'sda', 'o%d' % n, etag_of=b'else')
        objects.setdefault(path.split('/')[-4], []).append(path.split('/')[-2])
    firsts = {}
    for killed, other in (('python', 'ours'), ('ours', 'python')):
        devices = os.path.join(SCRATCH, 'many-' + killed)
        subprocess.check_call(['cp', '-a', template, devices])
        firsts[killed], text, left = cut_off(Side(killed, 'cut', devices))
        assert json.dumps({'partitions': left}) == text, text
        shutil.rmtree(devices)
        subprocess.check_call(['cp', '-a', template, devices])
        with open(status_file(devices), 'w') as fp:
            fp.write(text)
        side = Side(other, 'resume', devices)
        side.configure('')
        side.once()
        expected = sorted(name for part in left for name in objects.get(part, []))
        found = sorted(os.listdir(os.path.join(devices, 'sda/quarantined/objects')))
        assert 0 < len(expected) < 40
        same('resumed by ' + other, expected, found)
        assert not os.path.exists(status_file(devices)), 'the position is still there'
        print('%s was cut off with %d partitions left, %s audited their %d objects' % (
            killed, len(left), other, len(found)))
    same('positions', *[sorted(json.loads(firsts[kind])['partitions']) for kind in ('python', 'ours')])


TEMPLATE = os.path.join(SCRATCH, 'template')
cases(TEMPLATE)
# In parallel a device's figures are those of its only object.
assert len(compare('parallel', 'concurrency = 3,log_time = 0,disk_chunk_size = 4096')) > 10
compare('all', 'object_size_stats = 1;10;100000')
compare('tempfiles', 'rsync_tempfile_timeout = 500')
assert compare('devices', '', '-d', 'etag,zero,nosuch')
assert compare('sizes', '', '-z', '1000')
resume()
