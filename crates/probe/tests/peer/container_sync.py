#!/usr/bin/env python3
"""Swift's container-sync and ours, on copies of the same databases, against the same cluster.

    container_sync.py SCRATCH DAEMON

DAEMON is our program. The cluster is sync_cluster.py. After each of two passes these must be the same: the requests to the cluster
there with headers and bodies, the lines of the log, the metrics, the sync points of all databases, and the links in
sync_containers. Ends with status 0 if they are; else with the first difference.
"""
import collections
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

from ports import free_ports, is_free
from sides import HERE as PEER, Receiver, log_line, runner, same, start
from swift.common.ring import Ring, RingBuilder
from swift.common.utils import Timestamp, hash_path
from swift.container.backend import ContainerBroker
from swift.container.sync_store import ContainerSyncStore
from sync_cluster import DEVICES, KEY, USER_KEY, body_of, seconds

SCRATCH, DAEMON = sys.argv[1:3]
ETC = os.path.join(SCRATCH, 'etc')
COMMANDS = {'python': runner(ETC, 'swift-container-sync'), 'ours': [DAEMON]}
NOW = int(time.time()) - 3000
PART_POWER = 4
HERE = 'AUTH_here'

start(ETC, 'gold', 'silver')
PORTS = free_ports(3)


def stamp(second):
    return Timestamp(NOW + second)


def ask(what):
    with urllib.request.urlopen('http://127.0.0.1:%d/-/%s' % (PORTS[0], what)) as told:
        return json.load(told)


def make_rings():
    for ring in ('account', 'container', 'object', 'object-1'):
        builder = RingBuilder(PART_POWER, 3, 1)
        for number, (device, port) in enumerate(zip(DEVICES, PORTS)):
            builder.add_dev({'id': number, 'region': 1, 'zone': number, 'ip': '127.0.0.1', 'port': port, 'replication_ip': '127.0.0.1',
                             'replication_port': port, 'device': device, 'weight': 1})
        builder.rebalance()
        builder.get_ring().save(os.path.join(ETC, ring + '.ring.gz'))
    with open(os.path.join(ETC, 'container-sync-realms.conf'), 'w') as fp:
        fp.write('[us]\nkey = %s\nkey2 = other\ncluster_There = http://127.0.0.1:%d/v1/\n' % (KEY, PORTS[0]))
    with open(os.path.join(ETC, 'internal-client.conf'), 'w') as fp:
        fp.write('[DEFAULT]\nswift_dir = %s\n[pipeline:main]\npipeline = catch_errors proxy-server\n[app:proxy-server]\n'
                 'use = egg:swift#proxy\n[filter:catch_errors]\nuse = egg:swift#catch_errors\n' % ETC)


KINDS = ['plain', 'empty', 'slo', 'newer', 'old', 'missing', 'link', '\u00e9 %/:x', 'large object', 'head401', 'head500', 'put401', 'put404',
         'put422', 'delete404', 'delete409', 'delete403']


def fill(broker, count):
    for number in range(count):
        for kind in KINDS:
            name = '%s-%d' % (kind, number)
            at = stamp(seconds(name))
            if kind.startswith('delete') or (number == 1 and kind == 'plain'):
                broker.delete_object(name, at.internal)
            elif number == 2:
                # Changed by POST since.
                broker.put_object(name, stamp(5).internal, 7, 'a/b', 'e', ctype_timestamp=stamp(6).internal, meta_timestamp=at.internal)
            else:
                broker.put_object(name, at.internal, len(body_of(name)), 'text/plain', 'e')


CONTAINERS = {
    'realm': '//US/there/AUTH_there/c',
    'plain': 'http://127.0.0.1:%d/v1/AUTH_there/p%%20q/' % PORTS[0],
    'silver': '//us/THERE/AUTH_there/s',
    'again': '//us/there/AUTH_there/again',
    'refused': 'http://elsewhere/v1/a/c',
    'nowhere': '//us/elsewhere/a/c',
    'norealm': '//eu/there/a/c',
    'nokey': '//us/there/AUTH_there/c',
    'deleted': '//us/there/AUTH_there/c',
    'nothing': '//us/there/AUTH_there/c',
}


class Side:
    def __init__(self, kind):
        self.kind = kind
        self.top = os.path.join(SCRATCH, kind)
        self.devices = os.path.join(self.top, 'devices')
        os.makedirs(self.top)
        self.lines, self.metrics = [], collections.Counter()
        self.log, self.statsd = Receiver(self.take_line), Receiver(self.take_metric)
        with open(os.path.join(self.top, 'container-server.conf'), 'w') as fp:
            fp.write('[DEFAULT]\nuser = root\nswift_dir = %s\ndevices = %s\nmount_check = false\nbind_ip = 127.0.0.1\nbind_port = %d\n'
                     'log_udp_host = 127.0.0.1\nlog_udp_port = %d\nlog_statsd_host = 127.0.0.1\nlog_statsd_port = %d\n'
                     'log_statsd_metric_prefix = here\nlog_level = DEBUG\n[container-sync]\nconn_timeout = 60\n'
                     'internal_client_conf_path = %s/internal-client.conf\n' % (
                         ETC, self.devices, PORTS[0], self.log.port, self.statsd.port, ETC))
        ring = Ring(ETC, ring_name='container')
        store = ContainerSyncStore(self.devices, None, False)
        self.databases = {}
        brokers = {}
        for container, to in sorted(CONTAINERS.items()):
            part, _nodes = ring.get_nodes(HERE, container)
            name = hash_path(HERE, container)
            path = os.path.join(self.devices, 'sda', 'containers', str(part), name[-3:], name, name + '.db')
            self.databases[container] = path
            broker = brokers[container] = ContainerBroker(path, account=HERE, container=container)
            broker.initialize(stamp(0).internal, 1 if container == 'silver' else 0)
            metadata = {'X-Container-Sync-To': to, 'X-Container-Sync-Key': USER_KEY}
            broker.update_metadata({key: (value, stamp(1).internal) for key, value in metadata.items()})
            if container not in ('deleted', 'nothing'):
                fill(broker, 4)
            store.add_synced_container(broker)
        brokers['nokey'].update_metadata({'X-Container-Sync-Key': ('', stamp(2).internal)})
        brokers['deleted'].delete_db(stamp(9).internal)
        brokers['again'].get_info()
        brokers['again'].set_x_container_sync_points(40, 3)
        store.add_synced_container(ContainerBroker(os.path.join(self.devices, 'sda/containers/1/abc/gone/gone.db')))
        # A connection that has been read from may keep others from writing.
        for broker in brokers.values():
            broker.conn.close()

    def take_line(self, packet):
        level, name, line = log_line(packet)
        if level != 'DEBUG':
            self.lines.append((level, re.sub(r' \d+$', '', name), re.sub(r'^(Starting|Exited) \d+$', r'\1', line)))

    def take_metric(self, packet):
        name, value = packet.split(':', 1)
        self.metrics[name if '|ms' in value else packet.strip()] += 1

    def seen_lines(self):
        """What the log says, without what is a time, a path, or what went wrong in the words of the one or the other."""
        lines, self.lines[:] = list(self.lines), []
        found = []
        for level, name, line in lines:
            line = line.replace(self.devices, 'DEVICES').replace('#012', '\n')
            line = re.sub(r'(?s)^(ERROR Syncing \S+?)(:? \{.*?\})?(:\s.*)?$', r'\1\2', line)
            line = re.sub(r", 'storage_policy_index': \d", '', line)
            line = re.sub(r'(start|end): [0-9.]+,', r'\1: T,', line)
            line = re.sub(r'^Since [^[]*: (?=\d+ synced)', 'Since T: ', re.sub(r'[0-9.]+s$', 'T', line))
            # Of the pass so far, whatever the order of the containers was.
            line = re.sub(r'(puts|deletes|bytes): \d+', r'\1: N', line)
            found.append('%s %s %s' % (level, name, ' '.join(line.split())))
        return sorted(found)

    def once(self):
        code = subprocess.run(COMMANDS[self.kind] + [os.path.join(self.top, 'container-server.conf'), 'once'], timeout=300,
                              stdout=subprocess.DEVNULL, env=dict(os.environ, PYTHONWARNINGS='ignore')).returncode
        assert code == 0, '%s ended with %d' % (self.kind, code)
        self.log.catch_up()
        self.statsd.catch_up()
        points = {}
        for container, path in self.databases.items():
            info = ContainerBroker(path).get_info()
            points[container] = (info['x_container_sync_point1'], info['x_container_sync_point2'])
        links = {os.path.relpath(os.path.join(folder, name), self.devices): os.path.relpath(
            os.readlink(os.path.join(folder, name)), self.devices)
            for folder, _dirs, names in os.walk(os.path.join(self.devices, 'sda/sync_containers')) for name in names}
        metrics, self.metrics = self.metrics, collections.Counter()
        return {'requests': sorted(map(repr, ask('seen'))), 'lines': self.seen_lines(), 'metrics': dict(metrics), 'sync points': points,
                'links': links}


make_rings()
told = {}
command = [sys.executable, os.path.join(PEER, 'sync_cluster.py'), str(NOW), *map(str, PORTS)]
with subprocess.Popen(command) as cluster:
    try:
        while any(map(is_free, PORTS)):
            assert cluster.poll() is None, 'the cluster ended'
            time.sleep(.1)
        for kind in COMMANDS:
            ask('forget')
            side = Side(kind)
            told[kind] = [side.once() for _ in range(2)]
    finally:
        cluster.kill()
for number, (python, ours) in enumerate(zip(*told.values())):
    for what in python:
        same('pass %d: %s' % (number + 1, what), python[what], ours[what])
    print('pass %d: %d requests, %d lines, %d metrics' % (number + 1, *(len(python[what]) for what in (
        'requests', 'lines', 'metrics'))))
first = told['python'][0]
assert any(request.startswith("['PUT'") and "['signed', ['US', 32, True]]" in request for request in first['requests']), first['requests']
assert first['sync points']['plain'][0] == 4 * len(KINDS), first['sync points']
