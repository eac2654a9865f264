"""Ports for servers that a script names in a configuration and starts later.

Held in blocks as src/ports.rs holds them, which says why: by an abstract Unix socket, for as long as the script runs.
"""
import os
import socket

FIRST, BLOCK, BLOCKS = 10000, 50, 450
LOCKS, LEFT = [], []


def is_free(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(('127.0.0.1', port))
            sock.listen()
        except OSError:
            return False
    return True


def hold_block():
    for nth in range(BLOCKS):
        first = FIRST + (os.getpid() * 7 + nth) % BLOCKS * BLOCK
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind('\0martlet-ports-%d' % first)
        except OSError:
            lock.close()
            continue
        if all(is_free(port) for port in range(first, first + BLOCK)):
            LOCKS.append(lock)
            return range(first, first + BLOCK)
        lock.close()
    raise SystemExit('no block of %d ports is free from %d on' % (BLOCK, FIRST))


def free_ports(count):
    """Ports of 127.0.0.1 on which nobody listens and nobody will but who gets them here; all different."""
    while len(LEFT) < count:
        LEFT.extend(hold_block())
    return [LEFT.pop(0) for _ in range(count)]


def free_port():
    return free_ports(1)[0]
