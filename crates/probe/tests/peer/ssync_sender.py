"""Swift's ssync sender, told what to do line by line: `put LARGE SMALL` makes two objects in partition 0, `send PORT [SHORT]` offers
them to a receiver at PORT, with 1.5 seconds for the timeout named SHORT (conn, node, http) and much for the others.

    python ssync_sender.py SWIFT_DIR DEVICES        (with swift importable)

The answer to each is a line: for `send` whether it was done or failed, and what it has logged.
"""
import logging
import os
import sys
import types

from swift.common import utils
from swift.common.storage_policy import POLICIES, reload_storage_policies
from swift.common.utils import Timestamp
from swift.obj import diskfile, ssync_sender

swift_dir, devices = sys.argv[1:]
utils.set_swift_dir(swift_dir)
utils.validate_configuration()
reload_storage_policies()
os.makedirs(os.path.join(devices, 'sda1'))

said = []


class Kept(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


def daemon(short):
    """What a sender takes from the replicator that runs it."""
    logger = utils.get_logger({'log_address': '/nonexistent'}, 'sender')
    logger.logger.handlers = [Kept(level=logging.ERROR)]
    router = diskfile.DiskFileRouter({'devices': devices, 'mount_check': 'no', 'fallocate_reserve': '0'}, logger)
    timeouts = {name + '_timeout': 1.5 if name == short else 120 for name in ('conn', 'node', 'http')}
    return types.SimpleNamespace(_df_router=router, logger=logger, network_chunk_size=65536, **timeouts)


def put(name, data):
    df = daemon('')._df_router[POLICIES[0]].get_diskfile('sda1', '0', 'a', 'c', name, POLICIES[0])
    with df.create() as writer:
        writer.write(data)
        _size, etag = writer.chunks_finished()
        at = Timestamp.now()
        writer.put({'X-Timestamp': at.internal, 'ETag': etag, 'Content-Length': str(len(data)), 'Content-Type': 'x/y'})
        writer.commit(at)


def send(port, short=''):
    node = {'replication_ip': '127.0.0.1', 'replication_port': int(port), 'device': 'sda1', 'ip': '127.0.0.1', 'port': int(port),
            'region': 1, 'zone': 1, 'id': 1}
    partition = os.path.join(devices, 'sda1', 'objects', '0')
    suffixes = [name for name in os.listdir(partition) if len(name) == 3]
    del said[:]
    done, _in_sync = ssync_sender.Sender(daemon(short), node, {'device': 'sda1', 'partition': '0', 'policy': POLICIES[0]}, suffixes)()
    here = '127.0.0.1:%s/sda1/0 ' % port
    return '%s %s' % ('done' if done else 'failed', '; '.join(line.replace(here, '') for line in said))


for line in sys.stdin:
    word, *rest = line.split()
    if word == 'put':
        put(rest[0], b'x' * (8 << 20))
        put(rest[1], b'small')
        answer = 'ok'
    else:
        answer = send(*rest)
    print(answer.replace('\n', '\\n'), flush=True)
