#!/usr/bin/env python3
"""Container updates that the object servers of both implementations could not deliver, delivered by the updater of the other.

    object_updater.py SWIFT_DIR PY_SERVER RS_SERVER PY_UPDATER RS_UPDATER

The servers, `HOST:PORT`, have their devices in SWIFT_DIR/python and SWIFT_DIR/martlet. An updater is a command line with
`{conf}` in it for the configuration. Both servers get the same requests and leave the same async_pendings, as no container
server can be reached. Then Swift's updater works on what Martlet has left and the other way round, both against
container servers of this script: what those hear, what is left on the disks, recon, metrics and the counts in the log must
be the same.
"""
import getpass
import json
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
from collections import Counter

from containers import SILENT, ContainerServers, response
from ports import free_port
from sides import Receiver

NOW = 1700000000
VARYING = {'object_updater_sweep', 'object_updater_last', 'tracker_memory_usage', 'failures_oldest_timestamp_age'}
KINDS = ('ok', 'half', 'fail', 'moved', 'moved-half', 'moved-fail', 'circle', 'hang', 's404', 'dead', 'new-\u00e9 %')


class Nodes(ContainerServers):
    """Container servers, one for each replica. What one answers depends on the object's name and on where it is asked for."""

    healed = False

    def answer(self, number, line):
        path = line.split()[1]
        kind = path.rsplit('/', 1)[1].partition('_')[0]
        status, location = self.outcome(number, kind, path)
        if not status:
            return SILENT
        return response(status, *(['Location: /' + location, 'X-Backend-Redirect-Timestamp: %d.0000%d' % (NOW, number)]
                                if location else []))

    def outcome(self, number, kind, path):
        in_shard = '/.shards_a/' in path
        if self.healed or kind == 'ok':
            return 201, None
        if kind == 'half' or (kind == 'moved-half' and in_shard):
            return (503 if number == 1 else 201), None
        if kind.startswith('moved') and not in_shard:
            return 301, '.shards_a/c-%d' % number
        if kind == 'moved':
            return 204, None
        if kind == 'circle':
            return 301, '.shards_a/c-2' if path.split('/')[4] == 'c-1' else '.shards_a/c-1'
        if kind == 'hang':
            return 0, None
        return (404 if kind == 's404' else 500), None


def ask(address, method, path, headers):
    host, port = address.split(':')
    lines = ['%s %s HTTP/1.1' % (method, path), 'Host: h', 'Connection: close', 'Content-Length: 0']
    lines += ['%s: %s' % item for item in headers.items()]
    with socket.create_connection((host, int(port)), timeout=60) as s:
        s.sendall('\r\n'.join(lines).encode('latin1') + b'\r\n\r\n')
        status = s.makefile('rb').read().split()[1]
    assert status[:1] == b'2', (method, path, status)


def prepare(address, dead):
    """Requests whose updates go nowhere."""
    from urllib.parse import quote
    common = {'X-Container-Host': dead, 'X-Container-Device': 'd', 'X-Container-Partition': '1', 'Content-Type': 'a/b',
              'X-Trans-Id': 'tx1'}
    for policy in ('0', '1'):
        for kind in KINDS:
            path = '/sda1/5/a/c/' + quote('%s_%s' % (kind, policy))
            headers = dict(common, **{'X-Backend-Storage-Policy-Index': policy})
            ask(address, 'PUT', path, dict(headers, **{'X-Timestamp': '%d.00000' % NOW}))
            if kind != 'fail':
                ask(address, 'POST', path, dict(headers, **{'X-Timestamp': '%d.00000' % (NOW + 1), 'X-Object-Meta-A': '1'}))
            if kind == 's404':
                ask(address, 'DELETE', path, dict(headers, **{'X-Timestamp': '%d.00000' % (NOW + 2)}))
    for number in range(9):
        ask(address, 'PUT', '/sda1/5/a/busy/ok_busy%d' % number, dict(common, **{'X-Timestamp': '%d.00000' % NOW}))
    ask(address, 'PUT', '/sda1/5/a/c/ok_path', dict(common, **{'X-Timestamp': '%d.00000' % NOW, 'X-Backend-Container-Path':
        '.shards_a/c-7', 'X-Container-Root-Db-State': 'sharded'}))


def litter(devices):
    """What is no update among the updates."""
    for folder, files in {'async_pending/abc': {'d41d8cd98f00b204e9800998ecf8427e-1700000000.00000': b'garbage', 'x-y-z': b'x'},
                          'async_pending-7/abc': {'d41d8cd98f00b204e9800998ecf8427e-1700000000.00000': b'garbage'},
                          'async_pending-x': {}, 'async_pending/def': {}, 'async_pending': {'file': b''}}.items():
        os.makedirs(os.path.join(devices, 'sda1', folder), exist_ok=True)
        for name, data in files.items():
            with open(os.path.join(devices, 'sda1', folder, name), 'wb') as f:
                f.write(data)
    with open(os.path.join(devices, 'not-a-device'), 'w'):
        pass


def pendings(devices):
    from swift.common.utils.pickle import unpickle
    found = {}
    for folder, _, files in os.walk(os.path.join(devices, 'sda1')):
        for name in files:
            path = os.path.relpath(os.path.join(folder, name), devices)
            if not re.match('sda1/(async|quarantined|tmp)', path):
                continue
            with open(os.path.join(folder, name), 'rb') as f:
                data = f.read()
            try:
                update = unpickle(data)
            except (pickle.UnpicklingError, EOFError, ValueError):
                found[path] = data
                continue
            update['headers'] = {k: v for k, v in update['headers'].items() if k not in ('User-Agent', 'Referer')}
            found[path] = sorted((k, sorted(v) if k == 'successes' else v) for k, v in update.items())
    return found


def counted(found):
    """How often a timing was sent; what a counter came to."""
    total = Counter()
    for line in found:
        name, value, kind = re.fullmatch(r'([^:]*):([^|]*)\|(.*)', line).groups()
        total[name] += int(value) if kind == 'c' else 1
    return total


def recon(cache):
    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in VARYING} | {k: True for k in VARYING & set(value)}
        return value
    with open(os.path.join(cache, 'object.recon')) as f:
        return strip(json.load(f))


def sweep(swift_dir, side, command, options):
    """One pass over the devices of one side. The metrics, the counts in the log, recon."""
    cache = os.path.join(swift_dir, 'recon-' + side)
    os.makedirs(cache, exist_ok=True)
    conf = os.path.join(swift_dir, 'updater-%s.conf' % side)
    metrics, lines = [], []
    statsd, log = Receiver(metrics.append), Receiver(lines.append)
    with open(conf, 'w') as f:
        f.write('[DEFAULT]\nuser = %s\nswift_dir = %s\ndevices = %s\nmount_check = false\nlog_statsd_host = 127.0.0.1\n'
                'log_statsd_port = %d\nlog_udp_host = 127.0.0.1\nlog_udp_port = %d\nlog_level = DEBUG\nrecon_cache_path = %s\n'
                '[object-updater]\nnode_timeout = 2\nobjects_per_second = 1000\n%s' %
                (getpass.getuser(), swift_dir, os.path.join(swift_dir, side), statsd.port, log.port, cache, options))
    done = subprocess.run(shlex.split(command.format(conf=conf)), timeout=120, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()

    statsd.catch_up()
    log.catch_up()
    lines = [re.sub(r'^<[0-9]+>[^:]*: ', '', line).rstrip('\0') for line in lines]
    lines = [re.sub(r'(?<= )[0-9.]+s\b|pid: [0-9]+|%s/[a-z]+' % re.escape(swift_dir), '', line) for line in lines]
    lines = [line for line in lines if 'sweep' in line]
    return counted(metrics), lines, recon(cache)


def compare(what, one, two):
    if one == two:
        return 0
    print('%s differ:' % what)
    if isinstance(one, dict):
        for key in sorted(set(one) | set(two), key=repr):
            if one.get(key) != two.get(key):
                print('  %s\n    python   %r\n    martlet  %r' % (key, one.get(key), two.get(key)))
    else:
        print('  python   %s\n  martlet  %s' % ([i for i in one if i not in two], [i for i in two if i not in one]))
    return 1


def both(swift_dir, nodes, commands, options, what, differences):
    """Swift's updater on what Martlet has left, and Martlet's on what Swift has. Returns what both were heard to do."""
    results = []
    for side, command in (('martlet', commands[0]), ('python', commands[1])):
        result = sweep(swift_dir, side, command, options)
        results.append(result + (nodes.take(), pendings(os.path.join(swift_dir, side))))
    for name, one, two in zip(('metrics', 'lines', 'recon', 'updates', 'pendings'), *results):
        differences.append(compare('%s: %s' % (what, name), one, two))
    print('%s: %d updates heard, %d files left; %s' % (what, len(results[0][3]), len(results[0][4]), results[0][1][-2]))
    return results[0]


def main():
    swift_dir, python, martlet, *commands = sys.argv[1:]
    from swift.common import storage_policy, utils
    from swift.common.ring import RingBuilder
    utils.set_swift_dir(swift_dir)
    storage_policy.reload_storage_policies()
    dead = '127.0.0.1:%d' % free_port()
    for side, address in (('python', python), ('martlet', martlet)):
        prepare(address, dead)
        litter(os.path.join(swift_dir, side))
    left = [pendings(os.path.join(swift_dir, side)) for side in ('python', 'martlet')]
    differences = [compare('what the servers left', *left)]
    assert len(left[0]) > 40, left[0]
    nodes = Nodes('object-updater', 3)
    builder = RingBuilder(2, 3, 1)
    for number, port in enumerate(nodes.ports):
        builder.add_dev({'id': number, 'region': 1, 'zone': number, 'ip': '127.0.0.1', 'port': 1, 'replication_ip': '127.0.0.1',
                         'replication_port': port, 'device': 'c%d' % number, 'weight': 1})
    builder.rebalance()
    builder.get_ring().save(os.path.join(swift_dir, 'container.ring.gz'))
    # One update of the busy container passes, and no time to send the others.
    busy = 'max_objects_per_container_per_second = 0.001\nper_container_ratelimit_buckets = 1\ninterval = 0\n'
    run = lambda *args: both(swift_dir, nodes, commands, *args, differences)
    kept = [os.path.join(swift_dir, side, 'sda1') for side in ('python', 'martlet')]
    for device in kept:
        for name in ('async_pending', 'async_pending-1'):
            os.rename(os.path.join(device, name), os.path.join(device, 'kept' + name))
        os.makedirs(os.path.join(device, 'async_pending', '123'))
        for number in range(5):
            with open(os.path.join(device, 'async_pending', '123', '%032x-1700000000.00000' % number), 'wb') as f:
                pickle.dump({'op': 'PUT', 'account': 'a', 'container': 'c', 'obj': 'ok_%d' % number, 'headers':
                             {'X-Timestamp': '1700000000.00000', 'Referer': 'r'}}, f, 2)
    # The order within the folder is that of the names, so that both send the same one.
    heard = run(busy + 'max_deferred_updates = 2\n', 'deferred')
    assert heard[0]['object-updater.deferrals'] == 4, heard[0]
    heard = run(busy + 'max_deferred_updates = 0\n', 'skipped')
    assert len(heard[4]) == 4, heard[4]
    run('', 'the rest')
    for device in kept:
        for name in ('async_pending', 'async_pending-1'):
            subprocess.run(['rm', '-rf', os.path.join(device, name)], check=True)
            os.rename(os.path.join(device, 'kept' + name), os.path.join(device, name))
    heard = run('async_tracker_max_entries = 1\nconcurrency = 1\n', 'first pass')
    assert heard[0]['object-updater.redirects'] > 4 and heard[0]['object-updater.quarantines'] == 1, heard[0]
    run('', 'second pass')
    nodes.healed = True
    heard = run('updater_workers = 2\n', 'last pass')
    assert all(path.startswith('sda1/quarantined') or 'pending-7' in path or path.endswith(('x-y-z', 'pending/file'))
               for path in heard[4]), heard[4]
    sys.exit(1 if any(differences) else 0)


if __name__ == '__main__':
    main()
