#!/usr/bin/env python3
"""Compares object-relinkers: Swift's and another one on copies of the same devices, with rings of Swift's builder.

    relinker.py SCRATCH PROGRAM

PROGRAM is the other swift-object-relinker, SCRATCH a directory on a file system with extended attributes. Run it with a
Python that has Swift 2.38 installed. It ends with status 0 if nothing differs; else with the first difference.
"""
import collections
import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

from swift.common import utils
from swift.common.ring import RingBuilder
from swift.common.storage_policy import POLICIES
from swift.common.utils import Timestamp, hash_path, md5
from swift.obj import diskfile

from sides import runner, same, start

SCRATCH, PROGRAM = sys.argv[1:3]
PART_POWER = 4
STATE = 'sda/relink.objects.json'
ETC = os.path.join(SCRATCH, 'etc')
PYTHON = runner(ETC, 'swift-object-relinker')
SIDES = {'python': PYTHON, 'ours': [PROGRAM]}
NOW = time.time()

start(ETC, 'gold', 'silver', 'bronze', erasure=('coded', 2, 1))


class Rings:
    """The rings of the policies, which go through an increase together; bronze's never does."""

    def __init__(self):
        self.builders = {}
        for name, replicas in (('object', 1), ('object-1', 1), ('object-2', 1), ('object-3', 3)):
            builder = self.builders[name] = RingBuilder(PART_POWER, replicas, 1)
            for number in range(replicas):
                builder.add_dev({'id': number, 'region': 1, 'zone': number, 'ip': '127.0.0.1', 'port': 6200,
                                 'device': 'sda' if number == 0 else 'sdf%d' % number, 'weight': 1})
            builder.rebalance()
        self.save()

    def save(self):
        for name, builder in self.builders.items():
            # Which would remember the part power of before.
            builder._ring = None
            builder.get_ring().save(os.path.join(ETC, name + '.ring.gz'))

    def each(self, method):
        for name in ('object', 'object-1', 'object-3'):
            assert getattr(self.builders[name], method)(), method
        self.save()


def manager(devices):
    return diskfile.DiskFileManager(
        {'devices': devices, 'mount_check': 'false', 'reclaim_age': str(10 ** 9)}, utils.get_logger({}, 'peer'))


def fragments(devices, name, *indexes, at=NOW - 1000, commit=True, power=PART_POWER):
    mgr = diskfile.ECDiskFileManager({'devices': devices, 'mount_check': 'false', 'reclaim_age': str(10 ** 9)},
                                     utils.get_logger({}, 'peer'))
    df = mgr.get_diskfile('sda', part_of(name, power), 'a', 'c', name, POLICIES[3])
    for index in indexes:
        with df.create(size=4) as writer:
            writer.write(b'frag')
            writer.put({'X-Timestamp': Timestamp(at).internal, 'Content-Length': '4', 'Content-Type': 'x/y', 'ETag': 'x',
                        'X-Object-Sysmeta-Ec-Frag-Index': str(index), 'X-Object-Sysmeta-Ec-Etag': 'etag'})
            if commit:
                writer.commit(Timestamp(at))
    return df


def part_of(name, power=PART_POWER):
    return int(hash_path('a', 'c', name), 16) >> (128 - power)


def find(devices, device, name, policy=0, power=PART_POWER):
    return manager(devices).get_diskfile(device, part_of(name, power), 'a', 'c', name, POLICIES[policy])


def put(devices, device, name, body=b'body', policy=0, at=NOW - 1000, power=PART_POWER):
    df = find(devices, device, name, policy, power)
    metadata = {'X-Timestamp': Timestamp(at).internal, 'Content-Length': str(len(body)), 'Content-Type': 'x/y',
                'ETag': md5(body, usedforsecurity=False).hexdigest()}
    with df.create(size=len(body)) as writer:
        writer.write(body)
        writer.put(metadata)
    return os.path.join(df._datadir, Timestamp(at).internal + '.data')


def other_place(path, devices):
    """The same file in the partition to be."""
    return utils.replace_partition_in_path(devices, path, PART_POWER + 1)


def upper(prefix):
    """A name whose partition to be differs from the partition it is in."""
    return next('%s%d' % (prefix, n) for n in range(1000) if part_of('%s%d' % (prefix, n)) > 0)


def cases(devices):
    def on(device):
        os.makedirs(os.path.join(devices, device), exist_ok=True)
        return device

    for n in range(40):
        put(devices, on('sda'), 'o%d' % n, policy=n % 2)
    for n in range(3):
        put(devices, 'sda', 'bronze%d' % n, policy=2)
    # Durable, not durable, both, with a legacy marker, with metadata of a POST, and a newer one in the partition to be.
    for n in range(4):
        fragments(devices, 'c%d' % n, n % 3)
    fragments(devices, upper('fresh'), 0, 2, commit=False)
    fragments(devices, upper('both'), 1)
    fragments(devices, upper('both'), 1, at=NOW - 900, commit=False)
    df = fragments(devices, upper('legacy'), 1, commit=False)
    open(os.path.join(df._datadir, Timestamp(NOW - 1000).internal + '.durable'), 'w').close()
    fragments(devices, upper('posted'), 0, 1).write_metadata(
        {'X-Timestamp': Timestamp(NOW - 10).internal, 'X-Object-Meta-A': 'b'})
    fragments(devices, upper('newer'), 1)
    fragments(devices, upper('newer'), 1, at=NOW - 5, power=PART_POWER + 1)
    find(devices, 'sda', 'o2').write_metadata({'X-Timestamp': Timestamp(NOW - 10).internal, 'X-Object-Meta-A': 'b'})
    find(devices, 'sda', 'o4').delete(Timestamp(NOW - 20))
    for n in range(5):
        name = upper('h%d-' % n)
        path = put(devices, on('sdb'), name)
        if n == 0:  # linked by an object server already
            os.makedirs(os.path.dirname(other_place(path, devices)))
            os.link(path, other_place(path, devices))
        elif n == 1:  # written anew since the ring changed
            put(devices, 'sdb', name, at=NOW - 5, power=PART_POWER + 1)
        elif n == 2:  # deleted since
            find(devices, 'sdb', name, power=PART_POWER + 1).delete(Timestamp(NOW - 5))
        elif n == 3:  # something else is in the hash dir
            with open(os.path.join(os.path.dirname(path), 'junk'), 'w') as fp:
                fp.write('junk')
        else:  # and in place of a suffix and of a partition
            for up in (3, 4):
                folder = path
                for _ in range(up):
                    folder = os.path.dirname(folder)
                with open(os.path.join(folder, 'junk%d' % up), 'w') as fp:
                    fp.write('junk')
    # Tombstones of two servers for one DELETE.
    name = upper('ts')
    for power in (PART_POWER, PART_POWER + 1):
        find(devices, on('sdts'), name, power=power).delete(Timestamp(NOW - 50))
    # No object, no datadir, empty partitions.
    on('sdempty')
    os.makedirs(os.path.join(devices, on('sdparts'), 'objects/7/abc'))
    os.makedirs(os.path.join(devices, 'sdparts/objects/25'))
    put(devices, 'sdparts', 'o1')
    # State that is of no use.
    put(devices, on('sdstate'), 'o1')
    with open(os.path.join(devices, 'sdstate/relink.objects.json'), 'w') as fp:
        fp.write('{"part_power": 2')


def collisions(devices):
    for device in ('sda', 'sdb'):
        os.makedirs(os.path.join(devices, device))
    name = upper('x')
    put(devices, 'sda', name, body=b'old')
    put(devices, 'sda', name, body=b'new', power=PART_POWER + 1)
    for n in range(4):
        put(devices, 'sda', 'o%d' % n)
        put(devices, 'sdb', 'o%d' % n)


def tree(top):
    """Files: with whom they share an inode, their contents and attributes. Folders too, as they must go."""
    found, shared = {}, collections.defaultdict(list)
    for folder, dirs, files in os.walk(top):
        for name in dirs:
            found[os.path.relpath(os.path.join(folder, name), top) + '/'] = 'dir'
        for name in files:
            path = os.path.join(folder, name)
            relative = re.sub(r'-[0-9a-f]{32}/', '-UUID/', os.path.relpath(path, top))
            with open(path, 'rb') as fp:
                body = fp.read()
            if name == 'hashes.invalid':
                body = sorted(set(body.split()))
            elif name == 'hashes.pkl':
                body = pickle.loads(body)
                body.pop('updated')
            elif name.startswith('relink.'):
                with contextlib.suppress(ValueError):
                    body = json.loads(body)
            attrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
            shared[os.stat(path).st_ino].append(relative)
            found[relative] = [body, attrs, shared[os.stat(path).st_ino]]
    for value in found.values():
        if value != 'dir':
            value[2].sort()
    return found


class Side:
    def __init__(self, kind, name, template):
        self.kind = kind
        self.home = os.path.join(SCRATCH, '%s-%s' % (name, kind))
        self.devices = os.path.join(self.home, 'devices')
        os.makedirs(self.home)
        subprocess.check_call(['cp', '-a', template, self.devices])
        self.conf = os.path.join(self.home, 'relinker.conf')
        with open(self.conf, 'w') as fp:
            fp.write('[object-relinker]\nswift_dir = %s\ndevices = %s\nmount_check = no\nrecon_cache_path = %s\n'
                     'reclaim_age = %d\nlog_level = DEBUG\nlog_address = %s/nolog\n' % (
                         ETC, self.devices, self.home, 10 ** 9, self.home))

    def command(self, *args):
        return SIDES[self.kind] + list(args)

    def run(self, *args):
        """With a conf: only what is on disk tells."""
        done = subprocess.run(self.command(args[0], self.conf, *args[1:]), capture_output=True, text=True,
                              env=dict(os.environ, PYTHONWARNINGS='ignore'), timeout=120)
        assert 'Traceback' not in done.stderr, done.stderr
        return done.returncode

    def run_bare(self, step, *args):
        """Without one: exit code and lines."""
        done = subprocess.run(
            self.command(step, '--swift-dir', ETC, '--devices', self.devices, '--skip-mount-check', *args),
            capture_output=True, text=True, env=dict(os.environ, PYTHONWARNINGS='ignore'), timeout=120)
        lines = done.stderr.replace(self.devices, '')
        for pattern, plain in ((r'\d\d:\d\d:\d\d \d\d/\d\d/\d\d', 'TIME'), (r'\d+:\d\d:\d\d(\.\d+)?', 'TOOK'),
                               (r'pid=\d+', 'pid=N'), (r'in \d+\.\d+s', 'in Ns'), (r'-[0-9a-f]{32}\b', '-UUID')):
            lines = re.sub(pattern, plain, lines)
        # The cache in /var/cache/swift is not the machine's to write.
        return done.returncode, sorted(line for line in lines.splitlines() if wanted(line))

    def recon(self):
        with open(os.path.join(self.home, 'relinker.recon')) as fp:
            figures = json.loads(re.sub(r'"(total_time|start_time|timestamp)": ?[0-9.e+-]+', r'"\1": 0', fp.read()))
        figures['workers'] = sorted(figures['workers'].values(), key=str)
        return figures


def wanted(line):
    # Swift's hashing tells of its listings.
    return line.startswith('[') and 'recon' not in line and 'Run listdir' not in line


def both(name, template, *steps):
    """Runs each step of both; between them all must be the same."""
    sides, ended = [Side(kind, name, template) for kind in SIDES], []
    for number, step in enumerate(steps):
        if callable(step):
            step()
            continue
        what = '%s: step %d %s' % (name, number, ' '.join(step))
        codes = [side.run(*step) for side in sides]
        same(what + ': exit code', *codes)
        ended.append(codes[0])
        same(what + ': files', *[tree(side.devices) for side in sides])
        same(what + ': recon', *[side.recon() for side in sides])
    print('%s: exit codes %s, %d files in the end' % (name, ended, len(tree(sides[0].devices))))
    return ended


def lines(name, template, *steps):
    sides = [Side(kind, name, template) for kind in SIDES]
    codes = []
    for step in steps:
        if callable(step):
            step()
            continue
        (python, python_lines), (ours, our_lines) = [side.run_bare(*step) for side in sides]
        same('%s: %s: exit code' % (name, step), python, ours)
        same('%s: %s: lines' % (name, step), python_lines, our_lines)
        same('%s: %s: files' % (name, step), *[tree(side.devices) for side in sides])
        codes.append((python, len(our_lines)))
    print('%s: exit codes and lines %s' % (name, codes))


def wait_for_half(side, running, state_file, part_power):
    deadline = time.time() + 60
    while time.time() < deadline:
        assert running.poll() is None, side.kind + ' has ended'
        with contextlib.suppress(OSError, ValueError):
            with open(state_file) as fp:
                state = json.load(fp)
            parts = state['state']
            # Not the one that the step before has left.
            if state['part_power'] == part_power and sum(parts.values()) >= len(parts) // 2:
                return
        time.sleep(.005)
    sys.exit('%s wrote no state' % side.kind)


def cut_off(side, step):
    state_file = os.path.join(side.devices, STATE)
    running = subprocess.Popen(side.command(step, side.conf, '--files-per-second', '30', '--policy', 'gold'),
                               start_new_session=True, stderr=subprocess.DEVNULL,
                               env=dict(os.environ, PYTHONWARNINGS='ignore'))
    try:
        wait_for_half(side, running, state_file, PART_POWER + (step == 'cleanup'))
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    with open(state_file) as fp:
        return sum(1 for done in json.load(fp)['state'].values() if not done)


def resume():
    """Each goes on where the other one was killed; what it comes to is what one undisturbed run comes to."""
    template = os.path.join(SCRATCH, 'many')
    os.makedirs(os.path.join(template, 'sda'))
    for n in range(60):
        put(template, 'sda', 'o%d' % n)
    rings = Rings()
    rings.each('prepare_increase_partition_power')
    whole = Side('python', 'whole', template)
    assert whole.run('relink') == 0
    sides = {kind: Side(kind, 'cut', template) for kind in SIDES}

    def crossed(step, expected):
        # What the killed one has left is taken up by the other.
        left = {kind: cut_off(side, step) for kind, side in sides.items()}
        states = []
        sides['python'].devices, sides['ours'].devices = sides['ours'].devices, sides['python'].devices
        for kind, side in sides.items():
            with open(side.conf) as fp:
                text = fp.read()
            with open(side.conf, 'w') as fp:
                fp.write(re.sub('devices = .*', 'devices = ' + side.devices, text))
            assert side.run(step, '--policy', 'gold') == 0, (kind, step)
            found = tree(side.devices)
            # One that resumes a cleanup takes the new partitions for old ones.
            expected.pop(STATE, None)
            states.append(found.pop(STATE))
            for files in (found, expected):
                # Whether a suffix was hashed before or after the kill does not matter; temporary names do not stay.
                for path in list(files):
                    if re.search(r'hashes\.|\.lock|\.tmp$', path):
                        files.pop(path)
            same('%s resumed by %s' % (step, kind), expected, found)
        same(step + ': states', *states)
        assert min(left.values()) > 0, left
        print('%s: killed with %r partitions left, resumed by the other' % (step, left))

    crossed('relink', tree(whole.devices))
    rings.each('increase_partition_power')
    assert whole.run('cleanup') == 0
    crossed('cleanup', tree(whole.devices))


def main():
    template = os.path.join(SCRATCH, 'template')
    cases(template)
    clash = os.path.join(SCRATCH, 'clash')
    collisions(clash)
    for extra in ((), ('--workers', '2'), ('--workers', '0'), ('--stats-interval', '0.0001')):
        rings = Rings()
        both('all' + ''.join(extra), template,
             ('relink',) + extra,
             lambda: rings.each('prepare_increase_partition_power'),
             ('cleanup',) + extra,
             ('relink',) + extra,
             ('relink',) + extra,
             lambda: rings.each('increase_partition_power'),
             ('relink',) + extra,
             ('cleanup',) + extra,
             ('cleanup',) + extra,
             lambda: rings.each('finish_increase_partition_power'),
             ('cleanup',) + extra)
    for extra in (('--device', 'sda'), ('--policy', 'silver'), ('--policy', '0', '-p', '3', '-p', '9'),
                  ('--device', 'nosuch'), ('--device', 'sda', '--device', 'sdb')):
        rings = Rings()
        both('some' + '-'.join(extra), template,
             lambda: rings.each('prepare_increase_partition_power'),
             ('relink',) + extra,
             lambda: rings.each('increase_partition_power'),
             ('cleanup',) + extra)
    for extra in ((), ('--clobber-hardlink-collisions',)):
        rings = Rings()
        both('clash' + ''.join(extra), clash,
             lambda: rings.each('prepare_increase_partition_power'),
             ('relink',) + extra,
             ('relink',) + extra,
             lambda: rings.each('increase_partition_power'),
             ('cleanup',) + extra)
        rings = Rings()
        lines('clash-lines' + ''.join(extra), clash,
              ('relink', '--debug') + extra,
              lambda: rings.each('prepare_increase_partition_power'),
              ('relink', '--debug') + extra,
              lambda: rings.each('increase_partition_power'),
              ('cleanup', '--debug', '--workers', '1') + extra)
    # Mounts are looked for; a datadir that is a file; a policy that is none.
    rings = Rings()
    rings.each('prepare_increase_partition_power')
    sides = [Side(kind, 'mounts', template) for kind in SIDES]
    for side in sides:
        with open(side.conf, 'a') as fp:
            fp.write('mount_check = yes\n')
        subprocess.check_call(['sed', '-i', '/mount_check = no/d', side.conf])
        with open(os.path.join(side.devices, 'sda/.ismount'), 'w'):
            pass
    same('mounts: exit code', *[side.run('relink') for side in sides])
    same('mounts: files', *[tree(side.devices) for side in sides])
    same('mounts: recon', *[side.recon() for side in sides])
    assert sides[1].recon()['devices']['sdb']['stats']['unmounted'] == 3
    sides = [Side(kind, 'unlistable', template) for kind in SIDES]
    for side in sides:
        shutil.rmtree(os.path.join(side.devices, 'sda/objects'))
        with open(os.path.join(side.devices, 'sda/objects'), 'w'):
            pass
    same('unlistable: exit code', *[side.run('relink') for side in sides])
    same('unlistable: files', *[tree(side.devices) for side in sides])
    same('unlistable: recon', *[side.recon() for side in sides])
    same('no policy', *[side.run_bare('relink', '--policy', 'nosuch')[0] for side in sides])
    same('no step', *[side.run_bare('undo')[0] for side in sides])
    resume()


main()
