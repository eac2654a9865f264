#!/usr/bin/env python3
"""Objects that are to expire, on a cluster of `martlet up`, and what an expirer has left of them.

    expirer.py fill DATA PORT     puts objects, and tasks into the queue; waits until those that are due are
    expirer.py check DATA PORT    ends with status 0 if the queue, the listings and the disks are as an expirer leaves them
    expirer.py crowd DATA PORT    puts CROWD objects, and waits until all of them are due
    expirer.py paced DATA PORT    ends with status 0 if one pass has expired them, at no more than PACE a second
"""
import glob
import json
import os
import sys
import time

from swift.common import direct_client, utils
from swift.common.ring import Ring
from swift.common.storage_policy import reload_storage_policies
from swift.common.utils import hash_path
from swift.obj.expirer import ExpirerConfig
from swiftclient import Connection
from swiftclient.exceptions import ClientException

COMMAND, DATA, PORT = sys.argv[1:4]
ETC = os.path.join(DATA, 'etc')
ACCOUNT = 'AUTH_test'
DAY = 86400
SOON = 12
CROWD = 16
PACE = 5.0

utils.set_swift_dir(ETC)
reload_storage_policies()
RING = Ring(ETC, ring_name='container')
QUEUE = ExpirerConfig({})
CLIENT = Connection('http://127.0.0.1:%s/auth/v1.0' % PORT, 'test:tester', 'testing', retries=2)

# Names without case, spaces, ASCII; enough of them for many task containers and for turns.
DUE = ['soon', 'Ö/ü x', 'a/b/c', '%2F'] + ['o%d' % n for n in range(12)]
STAY = ['later', 'postponed', 'rewritten', 'mismatch']


def task_container(name, at):
    return QUEUE.get_expirer_container(at, ACCOUNT, 'c', name)


def nodes_of(container):
    return RING.get_nodes(QUEUE.account_name, container)


def enqueue(at, name, content_type='text/plain'):
    """A task on all servers of its container."""
    container = task_container(name, at)
    part, nodes = nodes_of(container)
    task = '%010d-%s/c/%s' % (at, ACCOUNT, name)
    for node in nodes:
        headers = {'X-Size': '0', 'X-Etag': 'd41d8cd98f00b204e9800998ecf8427e', 'X-Content-Type': content_type,
                   'X-Timestamp': utils.Timestamp.now().internal, 'X-Backend-Storage-Policy-Index': '0'}
        direct_client.direct_put_container_object(node, part, QUEUE.account_name, container, task, headers=headers)
    return container, task


def fill():
    now = int(time.time())
    soon, later = now + SOON, now + DAY
    CLIENT.put_container('c')
    CLIENT.put_container('archive', {'X-Storage-Policy': 'archive'})
    for container in ('c', 'archive'):
        for n, name in enumerate(DUE):
            CLIENT.put_object(container, name, 'x' * n, headers={'X-Delete-At': str(soon)})
    for name, at in (('later', later), ('postponed', soon), ('rewritten', soon), ('mismatch', later),
                     ('hastened', later)):
        CLIENT.put_object('c', name, 'body', headers={'X-Delete-At': str(at)})
    CLIENT.put_object('c', 'rewritten', 'other')
    CLIENT.post_object('c', 'postponed', {'X-Delete-At': str(later)})
    CLIENT.post_object('c', 'hastened', {'X-Delete-At': str(soon)})
    CLIENT.put_object('c', 'async', 'body')
    enqueue(soon, 'async', 'application/async-deleted')
    # Another time than the object's; no object, and it is too late for one to turn up.
    left = [enqueue(soon, 'mismatch'), enqueue(soon, 'ghost')]
    left += [(task_container(name, later), '%010d-%s/c/%s' % (later, ACCOUNT, name))
             for name in ('later', 'postponed', 'mismatch')]
    enqueue(now - 30 * DAY, 'oldghost')
    with open(os.path.join(DATA, 'left.json'), 'w') as fp:
        json.dump(sorted(left), fp)
    while time.time() < soon + 1:
        time.sleep(.1)


def queue():
    """The rows of each task container that any server still has; all servers must have the same."""
    account_ring = Ring(ETC, ring_name='account')
    part, nodes = account_ring.get_nodes(QUEUE.account_name)
    names = set()
    for node in nodes:
        names.update(row['name'] for row in direct_client.direct_get_account(node, part, QUEUE.account_name)[1])
    found = []
    for name in names:
        part, nodes = nodes_of(name)
        rows = [sorted(row['name'] for row in direct_client.direct_get_container(
            node, part, QUEUE.account_name, name)[1]) for node in nodes]
        assert rows == rows[:1] * len(rows), (name, rows)
        # No expirer looks at those of the days to come.
        assert rows[0] or int(name) > time.time(), 'the empty %s is still there' % name
        found += [[name, row] for row in rows[0]]
    return sorted(found)


def files(container, name):
    """The kinds of files of an object, on all devices."""
    pattern = os.path.join(DATA, 'node*/*/objects*/*', '*', hash_path(ACCOUNT, container, name), '*')
    return {os.path.splitext(path)[1] for path in glob.glob(pattern)}


def same(what, expected, found):
    if expected != found:
        sys.exit('%s: expected\n  %r\nfound\n  %r' % (what, expected, found))


def check():
    with open(os.path.join(DATA, 'left.json')) as fp:
        same('queue', json.load(fp), queue())
    same('listing', sorted(STAY), sorted(row['name'] for row in CLIENT.get_container('c')[1]))
    same('listing of archive', [], CLIENT.get_container('archive')[1])
    for container, name in [(container, name) for container in ('c', 'archive') for name in DUE] + [
            ('c', 'hastened'), ('c', 'async')]:
        same('files of %s/%s' % (container, name), {'.ts'}, files(container, name))
        try:
            CLIENT.head_object(container, name)
        except ClientException as err:
            same('status of ' + name, 404, err.http_status)
    for name in STAY:
        assert '.data' in files('c', name), name
        CLIENT.head_object('c', name)
    print('%d objects expired, %d stay, %d tasks are left' % (2 * len(DUE) + 2, len(STAY), len(queue())))


def crowd():
    soon = int(time.time()) + SOON
    CLIENT.put_container('c')
    for n in range(CROWD):
        CLIENT.put_object('c', 'o%d' % n, 'x', headers={'X-Delete-At': str(soon)})
    while time.time() < soon + 1:
        time.sleep(.1)


def paced():
    with open(os.path.join(DATA, 'cache', 'proxy', 'object.recon')) as fp:
        recon = json.load(fp)
    same('objects of the pass', CROWD, recon['expired_last_pass'])
    for n in range(CROWD):
        same('files of o%d' % n, {'.ts'}, files('c', 'o%d' % n))
    took, least = recon['object_expiration_pass'], (CROWD - 1) / PACE
    assert took >= least, '%d tasks took %s s at %s a second' % (CROWD, took, PACE)
    print('%d objects expired by one pass in %.2f s, at least %.2f' % (CROWD, took, least))


{'fill': fill, 'check': check, 'crowd': crowd, 'paced': paced}[COMMAND]()
