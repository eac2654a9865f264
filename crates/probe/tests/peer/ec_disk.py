#!/usr/bin/env python3
"""Two object servers on the same disk: what one writes on an EC policy, both serve and hash alike.

    ec_disk.py PYTHON_HOST:PORT MARTLET_HOST:PORT DEVICES

Each writes every kind of hash dir: durable, not durable, old and new, several fragments, legacy `.durable` files, meta
files, tombstones. Then both are asked for everything, each hashing afresh. Exits with 1 at a difference.
"""
import os
import shutil
import sys

from object_server import ask
from object_server_ec import NO_COMMIT, ec, looks, put, subrequest

PART = 9


def histories(writer):
    small, large = b'hello ec' * 100, bytes(range(256)) * 10000
    o = '/sda1/%d/a/c/%s-' % (PART, writer)
    yield put(o + 'durable', 1, 1, small)
    yield put(o + 'large', 1, 1, large)
    yield put(o + 'empty', 1, 1, b'')
    yield put(o + 'fresh', 1, 1, small, commit=NO_COMMIT)
    yield put(o + 'both', 1, 1, large)
    yield put(o + 'both', 2, 3, small, commit=NO_COMMIT)
    for index in (4, 0, 2):
        yield subrequest(o + 'several', 1, index, small)
        yield subrequest(o + 'several-fresh', 1, index, small, X_Backend_No_Commit='yes')
    yield put(o + 'legacy', 1, 1, small, commit=NO_COMMIT)
    yield put(o + 'legacy-newer', 1, 1, small, commit=NO_COMMIT)
    yield put(o + 'legacy-newer', 2, 1, small, commit=NO_COMMIT)
    yield put(o + 'posted', 1, 1, small)
    yield ec('POST', o + 'posted', 2, X_Object_Meta_A='1')
    yield ec('POST', o + 'posted', 3, Content_Type='new/type', Content_Type_Timestamp='1700000002.50000')
    yield put(o + 'deleted', 1, 1, small)
    yield ec('DELETE', o + 'deleted', 2)
    yield put(o + 'again', 1, 1, small)
    yield ec('DELETE', o + 'again', 2)
    yield put(o + 'again', 3, 1, small, commit=NO_COMMIT)


def age(devices):
    """Makes of some fragments what an old writer would have left."""
    legacy = 0
    for folder, _, files in os.walk(devices):
        for name in files:
            with_meta = os.path.join(folder, name)
            if name == '1700000001.00000#1.data' and b'-legacy' in os.getxattr(with_meta, 'user.swift.metadata'):
                open(os.path.join(folder, '1700000001.00000.durable'), 'w').close()
                legacy += 1
    return legacy


def hashes(address, devices):
    partition = os.path.join(devices, 'sda1', 'objects-2', str(PART))
    for name in ('hashes.pkl', 'hashes.invalid'):
        if os.path.exists(os.path.join(partition, name)):
            os.remove(os.path.join(partition, name))
    return ask(address, ec('REPLICATE', '/sda1/%d' % PART))


def main():
    python, martlet, devices = sys.argv[1:]
    differences = count = 0
    for writer, address in (('python', python), ('martlet', martlet)):
        for request in histories(writer):
            status = ask(address, request)[0]
            # Who does not commit fails, and leaves the fragment.
            assert status.split()[1] in ('201', '202', '204', '500'), (request[:3], status)
    assert age(devices) == 4
    first, second = hashes(python, devices), hashes(martlet, devices)
    assert first[0].endswith('200 OK') and len(first[2]) > 1000, first
    if first != second:
        differences += 1
        print('hashes', first[2], second[2], sep='\n    ')
    # Each of the other's: hashes.pkl of one is good enough for the other.
    assert ask(python, ec('REPLICATE', '/sda1/%d' % PART)) == second
    for writer in ('python', 'martlet'):
        for path in sorted({request[1] for request in histories(writer)}):
            for request in looks(path):
                one, two = ask(python, request), ask(martlet, request)
                count += 1
                if one != two:
                    differences += 1
                    print(request[:3], one[:2], two[:2], sep='\n    ')
    assert not os.path.exists(os.path.join(devices, 'sda1', 'quarantined'))
    print('%d answers and hashes, %d differ' % (count, differences))
    shutil.rmtree(os.path.join(devices, 'sda1'))
    sys.exit(1 if differences else 0)


if __name__ == '__main__':
    main()
