#!/usr/bin/env python3
"""Writes reclaimed.txt: which files of a hash dir without a durable fragment Python Swift 2.38.3 removes for their age.

    python make_reclaimed.py > reclaimed.txt          (with Swift installed)

A line is `COMMIT_WINDOW|TIMESTAMP|FILE|MTIME,...|MTIME,...`: with that window and a reclaim_age of 100 seconds, a file of
this name, alone in its hash dir, is removed if it was written at one of the first times, and stays if at one of the second.
Times are milliseconds before the cleanup.
"""
import logging
import os
import tempfile
from unittest import mock

from swift.common.storage_policy import ECStoragePolicy
from swift.common.utils import Timestamp
from swift.obj.diskfile import ECDiskFileManager

NOW = 1500000000.25
EC = ECStoragePolicy(0, 'e', is_default=True, ec_type='liberasurecode_rs_vand', ec_ndata=4, ec_nparity=2)
logger = logging.getLogger('quiet')
logger.addHandler(logging.NullHandler())
logger.propagate = False
logger.increment = lambda *a: None


def removed(manager, name, mtime):
    with tempfile.TemporaryDirectory() as top:
        path = os.path.join(top, name)
        open(path, 'w').close()
        written = int(NOW * 1000) - mtime
        os.utime(path, ns=(written * 10 ** 6, written * 10 ** 6))
        with mock.patch('time.time', lambda: NOW):
            manager.cleanup_ondisk_files(top, policy=EC)
        return not os.path.exists(path)


for window in ('0', '0.5', '1', '1.5', '60', '60.5'):
    manager = ECDiskFileManager({'commit_window': window, 'reclaim_age': '100'}, logger)
    for age in (10, 99, 101, 1000):
        timestamp = Timestamp(NOW - age).internal
        for suffix in ('#1.data', '#1#d.data', '.meta', '.ts', '.durable'):
            ages = (0, 300, 499, 501, 900, 999, 1001, 1300, 1499, 1501, 2000, 59900, 60100, 60400, 60600, 61500, 2000000)
            gone = [mtime for mtime in ages if removed(manager, timestamp + suffix, mtime)]
            kept = [mtime for mtime in ages if mtime not in gone]
            print('|'.join((window, str(age), timestamp + suffix, ','.join(map(str, gone)), ','.join(map(str, kept)))))
