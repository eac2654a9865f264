#!/usr/bin/env python3
"""Compares what swift-object-info, swift-get-nodes, swift-account-info and swift-container-info print with what Swift's own
print.

    tools.py SCRATCH OBJECT_INFO GET_NODES ACCOUNT_INFO CONTAINER_INFO

SCRATCH is a directory on a file system with extended attributes, the others are the programs in question. Run it with a
Python that has Swift 2.38 installed. It ends with status 0 if every byte and exit code is the same; else with the first
difference.
"""
import concurrent.futures
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile

from swift.account.backend import AccountBroker
from swift.common import utils
from swift.common.ring import RingBuilder
from swift.common.storage_policy import POLICIES, reload_storage_policies
from swift.common.utils import ShardRange, Timestamp, hash_path, md5
from swift.container.backend import ContainerBroker
from swift.obj import diskfile

SCRATCH, OBJECT_INFO, GET_NODES, ACCOUNT_INFO, CONTAINER_INFO = sys.argv[1:6]
PART_POWER = 4
ETC = os.path.join(SCRATCH, 'etc')
DATABASES = os.path.join(SCRATCH, 'databases')
DEVICES = os.path.join(SCRATCH, 'node')
BIN = os.path.dirname(sys.executable)
RING = os.path.join(ETC, '%s.ring.gz')


def make_cluster():
    os.makedirs(ETC)
    with open(os.path.join(ETC, 'swift.conf'), 'w') as conf:
        conf.write('[swift-hash]\nswift_hash_path_suffix = endcap\nswift_hash_path_prefix = start\n')
        for index, name in enumerate(('gold', 'silver', 'noring')):
            conf.write('[storage-policy:%d]\nname = %s\naliases = %s, metal%d\n' % (index, name, name, index))
            conf.write('default = yes\n' if index == 0 else '')
    utils.set_swift_dir(ETC)
    reload_storage_policies()
    logging.disable(logging.CRITICAL)
    for number, name in enumerate(('account', 'container', 'object', 'object-1')):
        builder = RingBuilder(PART_POWER, 3 if number else 2.5, 1)
        for dev in range(9):
            ip = 'fe80::%d' % dev if dev % 4 == 3 else '10.0.%d.%d' % (dev % 3, dev)
            builder.add_dev({'id': dev, 'region': 1 + dev % 2, 'zone': dev % 3, 'ip': ip, 'port': 6200 + number,
                             'device': 'sd%d' % dev, 'weight': 1 + dev % 2, 'replication_ip': ip,
                             'replication_port': 6300, 'meta': ''})
        builder.rebalance(seed=number)
        builder.get_ring().save(RING % name)


def put(name, policy=0, body=b'body', drop=(), again=(), **headers):
    account, container, obj = name[1:].split('/', 2)
    part = int(hash_path(account, container, obj), 16) >> (128 - PART_POWER)
    conf = {'devices': DEVICES, 'mount_check': 'false'}
    os.makedirs(os.path.join(DEVICES, 'sda'), exist_ok=True)
    manager = diskfile.DiskFileManager(conf, utils.get_logger({}, 'peer'))
    df = manager.get_diskfile('sda', part, account, container, obj, POLICIES[policy])
    at = Timestamp(1700000000.12345)
    metadata = {'X-Timestamp': at.internal, 'Content-Length': str(len(body)), 'Content-Type': 'text/plain',
                'ETag': md5(body, usedforsecurity=False).hexdigest()}
    metadata.update((key.replace('_', '-'), value) for key, value in headers.items())
    with df.create(size=len(body)) as writer:
        writer.write(body)
        writer.put(metadata)
    path = os.path.join(df._datadir, at.internal + '.data')
    if drop or again:
        with open(path, 'rb+') as fp:
            kept = {key: value for key, value in diskfile.read_metadata(fp).items() if key not in drop}
            kept.update(again)
            for key in os.listxattr(path):
                os.removexattr(path, key)
            diskfile.write_metadata(fp, kept)
    return path


def object_cases():
    plain = put('/AUTH_a/c/o')
    full = put('/AUTH_\u00e9/c c/o/\u4e2d//x', X_Object_Meta_Color='blue', X_Object_Meta_Caf__='\u00c3\u00a9',
               X_Object_Sysmeta_B='2', X_Object_Sysmeta_A='1', X_Object_Transient_Sysmeta_T='t',
               X_Delete_At='1800000000', X_Static_Large_Object='True')
    silver = put('/AUTH_a/c/silver', policy=1)
    noring = put('/AUTH_a/c/noring', policy=2)
    crypto = put('/AUTH_a/c/crypto', X_Object_Sysmeta_Crypto_Body_Meta='%7B%22iv%22%3A+%22x%2By%3D%22%2C+%22cipher%22%3A'
                 '+%22AES%22%2C+%22body_key%22%3A+%7B%22key%22%3A+%22k%22%7D%7D',
                 X_Object_Transient_Sysmeta_Crypto_Meta='%7B%7D')
    badcrypto = put('/AUTH_a/c/badcrypto', X_Object_Sysmeta_Crypto_Body_Meta='nonsense')
    wrong = put('/AUTH_a/c/wrong', ETag='0' * 32)
    cut = put('/AUTH_a/c/cut', body=b'x' * 100000)
    os.truncate(cut, 70000)
    empty = put('/AUTH_a/c/empty', body=b'')
    bare = put('/AUTH_a/c/bare', drop=('ETag', 'Content-Length', 'Content-Type', 'X-Timestamp'))
    noname = put('/AUTH_a/c/noname', drop=('name',))
    offset = put('/AUTH_a/c/offset', again={'X-Timestamp': '1700000000.00000_000000000000000f'})
    badtime = put('/AUTH_a/c/badtime', again={'X-Timestamp': 'yesterday'})
    none = os.path.join(SCRATCH, 'none.data')
    with open(none, 'w') as fp:
        fp.write('no metadata')
    checksum = put('/AUTH_a/c/checksum')
    os.setxattr(checksum, 'user.swift.metadata_checksum', b'0' * 32)
    placed = put('/AUTH_a/c/fragment', X_Object_Sysmeta_Ec_Frag_Index='2', X_Object_Sysmeta_Ec_Etag='e' * 32,
                 X_Object_Sysmeta_Ec_Scheme='isa_l_rs_vand 4+2', X_Object_Sysmeta_Ec_Segment_Size='1048576')
    fragment = placed.replace('.data', '#2#d.data')
    os.rename(placed, fragment)
    moved = os.path.join(SCRATCH, 'moved.data')
    subprocess.check_call(['cp', '-a', silver, moved])
    for path in (plain, full, silver, noring, crypto, badcrypto, wrong, cut, empty, bare, noname, offset, badtime, none,
                 checksum, fragment, moved, os.path.join(SCRATCH, 'missing')):
        yield [path]
    for options in (['-n'], ['--no-check-etag'], ['--drop-prefixes'], ['-n', '--drop'], ['-P', 'gold'], ['-P', 'silver'],
                    ['--policy-name=METAL1'], ['-P', 'nosuch'], ['-nPsilver']):
        for path in (full, noring, moved):
            yield options + [path]
    yield ['-n', crypto]
    yield ['--drop-prefixes', crypto]


def node_cases():
    account, container, gold, silver = (RING % name for name in ('account', 'container', 'object', 'object-1'))
    for target in (['AUTH_a'], ['AUTH_a', 'c'], ['AUTH_a', 'c', 'o'], ['/AUTH_a/c/o/p/'], ['AUTH_a/c'], ['a', 'c', '\u00e9 %41'],
                   ['a', '', 'o'], ['', 'c'], ['a', 'b', 'c', 'd'], [], ['/'], ['-Q', 'a/c/%C3%A9%20x'], ['-a', 'a/c/o']):
        for ring in ([account], [container], [silver], ['-P', 'gold'], []):
            # The command line's own order: the ring comes first.
            options = [word for word in target if word.startswith('-')]
            yield options + ring + [word for word in target if word not in options]
    for ring in ([account], [container], [gold], [silver], ['-P', 'silver'], ['-P', 'noring'], ['-P', 'no']):
        for part in ('0', '99', 'x'):
            yield ring + ['-p', part]
        yield ring + ['-a', '-p', '7']
        yield ring + ['-p', '5', 'AUTH_a', 'c', 'o']
        yield ring + ['-p', '5', 'AUTH_a', 'c']
    yield [RING % 'nosuch', 'a']
    yield ['-x']
    yield ['-p']


def at(seconds):
    return Timestamp(1700000000.12345 + seconds).internal


def account_db(name, folder):
    broker = AccountBroker(os.path.join(DATABASES, folder, 'x.db'), account=name)
    broker.initialize(at(0))
    return broker


def container_db(name, folder, policy=0):
    account, container = name.split('/', 1)
    broker = ContainerBroker(os.path.join(DATABASES, folder, 'x.db'), account=account, container=container)
    broker.initialize(at(0), policy)
    return broker


def syncs(broker):
    broker.merge_syncs([{'remote_id': 'a-very-long-remote-id-of-a-database-far-away', 'sync_point': 12345678901},
                        {'remote_id': 'b', 'sync_point': -1}])
    broker.merge_syncs([{'remote_id': 'c', 'sync_point': 7}], incoming=False)


def make_databases():
    account_db('AUTH_empty', 'a-empty')
    full = account_db('AUTH_\u00e9', 'a-full')
    for number in range(5):
        full.put_container('c%d' % number, at(number), at(9) if number == 2 else '0', number * (number != 2), 10 * number,
                           number % 3)
    full.update_metadata({'X-Account-Meta-Color': ('blue \u4e2d', at(1)), 'X-Account-Meta-Gone': ('', at(2)),
                          'X-Account-Sysmeta-B': ('2', at(1)), 'X-Account-Sysmeta-A': ('1', at(1)),
                          'X-Account-Access-Control': ('{}', at(1)), 'X-Other_Thing': ('x', at(1))})
    syncs(full)
    deleted = account_db('AUTH_deleted', 'a-deleted')
    deleted.update_metadata({'X-Account-Meta-Color': ('blue', at(1))})
    deleted.delete_db(at(5))
    container_db('AUTH_a/empty', 'c-empty')
    for policy in (1, 2, 7):
        broker = container_db('AUTH_a/policy \u00e9', 'c-policy%d' % policy, policy)
        broker.put_object('o', at(1), 10, 'text/plain', 'e' * 32, storage_policy_index=policy)
        broker.put_object('wrong', at(2), 20, 'text/plain', 'e' * 32, storage_policy_index=0)
        broker.reported(at(0), '0', 1, 10)
    full = container_db('AUTH_a/full', 'c-full', 1)
    full.update_metadata({'X-Container-Read': ('.r:*', at(1)), 'X-Container-Meta-Color': ('blue', at(1)),
                          'X-Container-Meta-Gone': ('', at(2)), 'X-Container-Sysmeta-S': ('\u4e2d', at(1)),
                          'X-Versions-Location': ('v', at(1))})
    full.set_x_container_sync_points(3, 4)
    full.update_status_changed_at(at(3))
    syncs(full)
    deleted = container_db('AUTH_a/deleted', 'c-deleted')
    deleted.update_metadata({'X-Container-Meta-Color': ('blue', at(1))})
    deleted.delete_db(at(5))
    late = container_db('AUTH_a/late', 'c-late')
    late.delete_db(at(5))
    late.put_object('o', at(6), 10, 'text/plain', 'e' * 32)

    def ranges(broker, *states):
        bounds = ['', "it's", 'm \u00e9', 'n', 't', '']
        broker.merge_shard_ranges([
            ShardRange('.shards_a/c-%d' % number, at(number), bounds[number], bounds[number + 1], number, 100 * number,
                       meta_timestamp=at(number + 1), state=state, deleted=number == 3)
            for number, state in enumerate(states)])

    found = container_db('AUTH_a/found', 'c-found')
    ranges(found, ShardRange.FOUND, ShardRange.CREATED, ShardRange.FOUND, ShardRange.FOUND, ShardRange.CLEAVED)
    for folder in ('c-sharding', 'c-sharded'):
        broker = container_db('AUTH_a/' + folder, folder)
        for number in range(3):
            broker.put_object('o%d' % number, at(number), 10, 'text/plain', 'e' * 32)
        broker.enable_sharding(Timestamp(at(1)))
        ranges(broker, ShardRange.ACTIVE, ShardRange.ACTIVE, ShardRange.SHARDING, ShardRange.ACTIVE, ShardRange.SHRINKING)
        assert broker.set_sharding_state()
        assert folder == 'c-sharding' or broker.set_sharded_state()
    shard = container_db('.shards_a/c-0', 'c-shard')
    shard.update_metadata({'X-Container-Sysmeta-Shard-Quoted-Root': ('AUTH_a/c', at(1))})
    os.makedirs(os.path.join(DATABASES, 'none', 'dir.db'))
    for name, content in (('empty.db', ''), ('text.db', 'no database at all\n' * 100), ('notes.txt', '')):
        with open(os.path.join(DATABASES, 'none', name), 'w') as fp:
            fp.write(content)
    for folder, table in (('a-badtime', 'account'), ('c-badtime', 'container')):
        broker = (account_db if table == 'account' else container_db)('AUTH_a/c', folder)
        with sqlite3.connect(broker.db_file) as conn:
            conn.execute("UPDATE %s_stat SET delete_timestamp = 'never'" % table)
        conn.close()


def database_cases():
    for folder in sorted(os.listdir(DATABASES)):
        for name in sorted(os.listdir(os.path.join(DATABASES, folder))):
            if name.startswith('.') or name.endswith('.pending'):
                continue
            path = os.path.join(folder, name)
            for tool, program in (('swift-account-info', ACCOUNT_INFO), ('swift-container-info', CONTAINER_INFO)):
                is_own = folder[0] == tool[6]
                if is_own or folder in ('a-full', 'c-full', 'none'):
                    yield tool, program, ['-d', ETC, path]
                if is_own:
                    yield tool, program, ['-vs', '--swift-dir=' + ETC, './' + path]
                if is_own and folder.endswith('-full'):
                    yield tool, program, ['-d', '/nowhere', '--drop-prefixes', '-s', path]
    for tool, program in (('swift-account-info', ACCOUNT_INFO), ('swift-container-info', CONTAINER_INFO)):
        for args in (['missing.db'], ['-x'], ['-d'], [], ['a', 'b']):
            yield tool, program, args


def run_on_databases(program, args):
    """Runs it on a copy, as it merges what is pending, in a namespace where /etc/swift is ours: -d is for the rings alone."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        # Swift moves folders four levels above a file that is no database.
        copy = os.path.join(scratch, '1', '2', '3', '4')
        shutil.copytree(DATABASES, copy)
        command = NAMESPACE + [program] + args
        done = subprocess.run(command, capture_output=True, cwd=copy)
        pending = [name for _, _, names in os.walk(copy) for name in names
                   if name.endswith(('-journal', '.tmp')) and 'none' not in name]
        assert not pending, pending
    return done.returncode, done.stdout, done.stderr


def own_etc():
    root = os.path.join(SCRATCH, 'root')
    os.makedirs(root)
    shutil.copytree(ETC, os.path.join(root, 'swift'))
    unshare = ['unshare', '-m'] if os.geteuid() == 0 else ['unshare', '-rm']
    return unshare + ['sh', '-c', 'mount --bind "$0" /etc && exec "$@"', root]


def run(program, args):
    if program in (ACCOUNT_INFO, CONTAINER_INFO) or os.path.basename(program) in ('swift-account-info', 'swift-container-info'):
        return run_on_databases(program, args)
    done = subprocess.run([program, '-d', ETC] + args, capture_output=True, cwd=SCRATCH)
    return done.returncode, done.stdout, done.stderr


def plain(result):
    """A traceback is a failure, in other words; help is in other words."""
    code, out, err = result
    lines = err.decode('utf8', 'replace').splitlines()
    if any(line.startswith('Traceback') for line in lines):
        return code, out, 'failed'
    if lines and lines[0].startswith('Usage'):
        return code, out, lines[-1]
    if out.startswith(b'Usage'):
        return code, b'Usage', ''.join(lines)
    if lines and lines[0].startswith('ERROR: '):
        return code, b'', lines[0]
    return code, out, ''.join(lines)


def compare(name, program, args):
    python, ours = plain(run(os.path.join(BIN, name), args)), plain(run(program, args))
    if python[2] == 'failed' and ours[2]:
        ours = ours[:2] + ('failed',)
    if python != ours:
        return '%s %s differs\npython: %d %s\n%s\nours: %d %s\n%s' % (
            name, args, python[0], python[2], python[1].decode('utf8', 'replace'),
            ours[0], ours[2], ours[1].decode('utf8', 'replace'))
    succeeded.append(python[0] == 0 and len(python[1]) > 100)


succeeded = []
make_cluster()
make_databases()
NAMESPACE = own_etc()
jobs = [('swift-object-info', OBJECT_INFO, args) for args in object_cases()]
jobs += [('swift-get-nodes', GET_NODES, args) for args in node_cases()]
jobs += database_cases()
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for difference in pool.map(lambda job: compare(*job), jobs):
        if difference:
            pool.shutdown(cancel_futures=True)
            sys.exit(difference)
assert sum(succeeded) > len(jobs) // 2, 'most command lines fail'
print('%d command lines print the same' % len(jobs))
