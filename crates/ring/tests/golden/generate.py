"""Builds rings of odd shapes with Swift's own RingBuilder and records what its Ring answers.

    python generate.py      (with swift 2.38.3 importable; writes into this directory)

expected.json has for each file: the shape as Swift sees it, and an MD5 over one line per partition (every `step`-th):
"PART:primary ids joined by ','|handoff ids joined by ','\n".
"""
import hashlib
import json
import os
import random
from unittest import mock

from swift.common import utils
utils.HASH_PATH_SUFFIX = b'changeme'
utils.HASH_PATH_PREFIX = b''
from swift.common.ring import ring as ring_module
ring_module.validate_configuration = lambda: None
from swift.common.ring import Ring, RingBuilder

HERE = os.path.dirname(os.path.abspath(__file__))
EXPECTED = {}


def device(n, region=1, zone=1, ip=None, port=6200, weight=100, **kw):
    ip = ip or '10.%d.%d.%d' % (region, zone, n)
    return dict({'region': region, 'zone': zone, 'ip': ip, 'port': port, 'replication_ip': ip,
                 'replication_port': port + 1000, 'device': 'sd%d' % n, 'weight': weight, 'meta': ''}, **kw)


def build(name, part_power, replicas, devs, version=1, step=1, then=None, wide=False, overload=None):
    random.seed(1)
    b = RingBuilder(part_power, replicas, 0)
    if overload is not None:
        b.set_overload(overload)
    for dev in devs:
        b.add_dev(dev)
    b.rebalance(seed=name)
    if then:
        then(b)
        b.pretend_min_part_hours_passed()
        b.rebalance(seed=name)
    if wide:
        b.set_dev_id_bytes(4)
    data = b.get_ring()
    record(name, data, version, step)


def record(name, data, version, step):
    path = os.path.join(HERE, name + '.ring.gz')
    if data:
        data.save(path, format_version=version)
    ring = Ring(path)
    digest = hashlib.md5()
    handoffs = 0
    for part in range(0, ring.partition_count, step):
        primaries = ring.get_part_nodes(part)
        assert [n['index'] for n in primaries] == list(range(len(primaries)))
        more = list(ring.get_more_nodes(part))
        assert [n['handoff_index'] for n in more] == list(range(len(more)))
        handoffs += len(more)
        digest.update(('%d:%s|%s\n' % (part, ','.join(str(n['id']) for n in primaries),
                                       ','.join(str(n['id']) for n in more))).encode())
    part, nodes = ring.get_nodes('AUTH_test', 'c\u00f6ntainer', 'object \u2603')
    EXPECTED[name] = {
        'format': version, 'step': step, 'part_power': ring.part_power, 'replicas': ring.replica_count,
        'version': ring.version, 'next_part_power': ring.next_part_power, 'devices': ring.device_count,
        'handoffs': handoffs, 'md5': digest.hexdigest(), 'object_part': part, 'object_nodes': [n['id'] for n in nodes],
        'file_md5': hashlib.md5(open(path, 'rb').read()).hexdigest(), 'size': ring.size,
    }


def removed(*ids):
    def then(b):
        for dev_id in ids:
            b.remove_dev(dev_id)
    return then


def zeroed(*ids):
    def then(b):
        for dev_id in ids:
            b.set_dev_weight(dev_id, 0)
    return then


def next_power(b):
    b.prepare_increase_partition_power()


def increased(b):
    b.prepare_increase_partition_power()
    b.increase_partition_power()
    b.finish_increase_partition_power()


rng = random.Random(38)
build('saio', 7, 3, [device(n, zone=n + 1, ip='127.0.0.%d' % (n + 1), port=6210 + 10 * n) for n in range(4)])
build('one-device', 6, 1, [device(0)])
build('two-devices', 6, 2, [device(0), device(1)])
build('all-primaries', 6, 3, [device(n) for n in range(3)])
build('many-zones', 8, 3, [device(n, zone=n % 7) for n in range(21)])
build('two-regions', 8, 3, [device(n, region=1 + n % 2, zone=n // 2 % 3) for n in range(18)])
build('three-regions-odd', 7, 3, [device(n, region=1 + (n > 5) + (n > 8), zone=n % 3) for n in range(11)])
build('five-regions', 7, 4, [device(n, region=n % 5, zone=n // 5) for n in range(20)], version=2)
build('weights', 8, 3, [device(n, zone=n % 4, weight=10 ** (n % 4)) for n in range(12)], overload=0.1)
build('weights-float', 7, 2, [device(n, zone=n % 3, weight=rng.random() * 50 + 0.125) for n in range(9)], version=2)
build('same-ip-ports', 7, 3, [device(n, zone=1 + n // 4, ip='10.0.0.%d' % (n // 4), port=6200 + n) for n in range(16)])
build('one-ip', 6, 3, [device(n, ip='127.0.0.1', port=6200 + n) for n in range(8)])
build('fraction-3.25', 8, 3.25, [device(n, zone=n % 5) for n in range(15)])
build('fraction-1.5', 7, 1.5, [device(n, zone=n % 2) for n in range(4)], version=2)
build('fraction-2.7-regions', 7, 2.7, [device(n, region=n % 3, zone=n % 2) for n in range(14)])
build('removed', 8, 3, [device(n, zone=n % 4) for n in range(16)], then=removed(0, 5, 15))
build('removed-region', 7, 3, [device(n, region=1 + n % 3) for n in range(12)], then=removed(2, 5, 8, 11), version=2)
build('zero-weight', 8, 3, [device(n, zone=n % 4) for n in range(12)], then=zeroed(1, 3, 7))
build('zero-weight-zone', 7, 2, [device(n, zone=n % 3, weight=0 if n % 3 == 2 else 10) for n in range(9)], overload=0.5)
build('ipv6-meta', 6, 3, [device(n, zone=n, ip='fe80::%x' % (n + 1), meta='r\u00e4ck "%d"\\' % n) for n in range(6)])
build('unknown-keys', 6, 2, [device(n, zone=n, serial='X%d' % n, slot={'bay': n}) for n in range(4)])
build('wide-ids', 7, 3, [device(n, zone=n % 4) for n in range(12)], version=2, wide=True)
build('high-ids', 6, 3, [device(n, zone=n % 4, id=65530 + n) for n in range(12)], version=2)
build('next-part-power', 7, 3, [device(n, zone=n % 4) for n in range(8)], then=next_power)
build('increased-part-power', 6, 3, [device(n, zone=n % 4) for n in range(8)], then=increased, version=2)
build('part-power-0', 0, 2, [device(n, zone=n) for n in range(5)])
build('part-power-1', 1, 3, [device(n, zone=n) for n in range(5)], version=2)
build('steps', 17, 2, [device(n, region=n % 2, zone=n % 3) for n in range(3)] + [device(9, region=3, weight=1)], step=509)
build('ec-14', 7, 14, [device(n, zone=n % 4, ip='10.0.0.%d' % (n % 8)) for n in range(20)])

# The file of format 1 which a big-endian machine writes.
data = ring_module.RingData.load(os.path.join(HERE, 'weights.ring.gz'))
for row in data._replica2part2dev_id:
    row.byteswap()
with mock.patch.object(ring_module.sys, 'byteorder', 'big'):
    data.save(os.path.join(HERE, 'big-endian.ring.gz'))
record('big-endian', None, 1, 1)

with open(os.path.join(HERE, 'expected.json'), 'w') as fp:
    json.dump(EXPECTED, fp, indent=1, sort_keys=True)
    fp.write('\n')
