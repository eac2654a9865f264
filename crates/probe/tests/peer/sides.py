"""What scripts share that run Swift's program and another one on copies of the same devices, and compare what both did.

Not a script. A `Receiver` takes their logs and metrics. `start` writes a swift.conf and lets Swift's modules, and the programs that are run, read it; `same` ends
the script with the first difference.
"""
import collections
import logging
import os
import re
import socket
import sys
import threading

from swift.common import utils
from swift.common.storage_policy import reload_storage_policies

HERE = os.path.dirname(os.path.abspath(__file__))


def start(etc, *policies, erasure=None):
    """A swift.conf with replicated policies of these names, the first of them the default, and of `erasure`: a name, and how many
    data and parity fragments."""
    os.makedirs(etc)
    with open(os.path.join(etc, 'swift.conf'), 'w') as conf:
        conf.write('[swift-hash]\nswift_hash_path_suffix = endcap\n')
        for index, name in enumerate(policies):
            conf.write('[storage-policy:%d]\nname = %s\n%s' % (index, name, '' if index else 'default = yes\n'))
        if erasure:
            conf.write('[storage-policy:%d]\nname = %s\npolicy_type = erasure_coding\nec_type = isa_l_rs_vand\n'
                       'ec_num_data_fragments = %d\nec_num_parity_fragments = %d\n' % (len(policies), *erasure))
    utils.set_swift_dir(etc)
    reload_storage_policies()
    logging.disable(logging.CRITICAL)


def runner(etc, program):
    """The command line of a program of Swift."""
    return [sys.executable, os.path.join(HERE, 'run_swift.py'), etc, program]


def same(what, python, ours):
    if python != ours:
        def lines(value):
            if isinstance(value, dict):
                return ['%s: %r' % item for item in sorted(value.items())]
            return value if isinstance(value, list) else [str(value)]
        counts = [collections.Counter(map(str, lines(value))) for value in (python, ours)]
        only = [sorted((a - b).elements()) for a, b in (counts, counts[::-1])]
        only = [['%.1200s' % line for line in some] for some in only]
        sys.exit('%s differs\nonly python:\n  %s\nonly ours:\n  %s' % (what, '\n  '.join(only[0]), '\n  '.join(only[1])))


class Receiver:
    """What comes as datagrams."""

    def __init__(self, take):
        # Nobody waits for a listener: what does not fit into the socket is lost.
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind(('127.0.0.1', 0))
        self.port = self.sock.getsockname()[1]
        self.count = 0
        self.take = take
        self.mark, self.is_there = b'mark ' + os.urandom(16), threading.Event()
        threading.Thread(target=self.receive, daemon=True).start()

    def receive(self):
        while True:
            packet = self.sock.recv(65536)
            if packet == self.mark:
                self.is_there.set()
                continue
            self.take(packet.decode('utf8', 'replace'))
            self.count += 1

    def catch_up(self):
        """Waits until all has been taken that programs which have ended have sent: datagrams come in the order of their sending."""
        self.is_there.clear()
        self.sock.sendto(self.mark, ('127.0.0.1', self.port))
        assert self.is_there.wait(120), 'a datagram is lost'


LEVELS = {3: 'ERROR', 4: 'WARNING', 5: 'NOTICE', 6: 'INFO', 7: 'DEBUG'}


def log_line(packet):
    match = re.match(r'<(\d+)>([^:]*): (.*)', packet.rstrip('\0\n'), re.DOTALL)
    return LEVELS.get(int(match[1]) & 7, match[1]), match[2], match[3]
