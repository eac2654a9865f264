#!/usr/bin/env python3
"""Opens with Python's DiskFile what an object server of ours has left where it was stopped.

    kills.py FOLDER

FOLDER is that of crates/probe/examples/object_kills.rs after its run. Each disk in it, FOLDER/*/*.python, has an expect.json: the
states that each object may be in, nothing of them quarantined, and cached hashes that are those of the files.
"""
import glob
import json
import logging
import os
import sys

from swift.common import utils
from swift.common.exceptions import DiskFileDeleted, DiskFileNotExist, DiskFileQuarantined
from swift.common.storage_policy import POLICIES
from swift.obj import diskfile

utils.HASH_PATH_PREFIX, utils.HASH_PATH_SUFFIX = b'', b'endcap'
RECLAIM_AGE = '1500000000'


def to_hex(text):
    return text.encode('utf8', 'surrogateescape').hex()


def read(mgr, device, part, path):
    df = mgr.get_diskfile(device, part, *path.split('/', 2), POLICIES[0])
    quarantined = []
    try:
        with df.open():
            for _ in df.reader(_quarantine_hook=quarantined.append):
                pass
            assert not quarantined, quarantined
            return {'metadata': sorted([to_hex(k), to_hex(v)] for k, v in df.get_metadata().items())}
    except DiskFileDeleted as err:
        return {'deleted': err.timestamp.internal}
    except DiskFileQuarantined:
        return 'quarantined'
    except DiskFileNotExist:
        return None


def check(folder, logger):
    mgr = diskfile.DiskFileManager(
        {'devices': folder, 'mount_check': 'false', 'reclaim_age': RECLAIM_AGE}, logger)
    for partition in glob.glob(folder + '/sd*/objects/[0-9]*'):
        device, part = partition.split('/')[-3::2]
        if part == '1' and '/cleanup/' in folder:
            # Only emptied: Swift's relinker leaves hashes of what is gone too.
            continue
        cached = mgr.get_hashes(device, part, [], POLICIES[0])
        for name in ('hashes.pkl', 'hashes.invalid'):
            if os.path.exists(os.path.join(partition, name)):
                os.unlink(os.path.join(partition, name))
        anew = mgr.get_hashes(device, part, [], POLICIES[0])
        if cached != anew:
            return 'stale hashes of %s: %s, not %s' % (partition, cached, anew)
    with open(os.path.join(folder, 'expect.json')) as file:
        expected = json.load(file)
    objects = 0
    for key, allowed in expected.items():
        if not key.startswith('sda'):
            continue
        device, part, path = key.split('/', 2)
        found = read(mgr, device, part, path)
        objects += found is not None
        if found not in allowed:
            return '%s: %s, not one of %s' % (key, found, allowed)
    return None if objects else 'nothing there'


def main():
    logger = utils.get_logger({}, 'kills')
    logging.disable(logging.CRITICAL)
    folders = sorted(glob.glob(sys.argv[1] + '/*/*.python'))
    for folder in folders:
        wrong = check(folder, logger)
        if wrong:
            sys.exit('%s: %s' % (folder, wrong))
    print('%d disks: nothing quarantined, nothing stale' % len(folders))
    return not folders


if __name__ == '__main__':
    sys.exit(main())
