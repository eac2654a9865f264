#!/usr/bin/env python3
"""Reads with Python's brokers what account and container servers of ours have left where they were stopped.

    database_kills.py FOLDER

FOLDER is that of crates/probe/examples/database_kills.rs after its run. Each disk in it, FOLDER/*/*.python, has an expect.json:
what each database may say. Besides, SQLite finds nothing wrong, the hash and the counts are those of the rows, and a later row is
taken.
"""
import glob
import json
import logging
import os
import sqlite3
import sys

from swift.account.backend import AccountBroker
from swift.common.db import chexor
from swift.common.utils import Timestamp
from swift.container.backend import ContainerBroker

LATER = Timestamp(1700001000).internal


def rows_of(broker):
    return broker.get_items_since(-1, 1000000)


def says(broker):
    info = broker.get_replication_info()
    said = {key: info[key] for key in ('created_at', 'put_timestamp', 'delete_timestamp')}
    said['status'] = broker.is_status_deleted() if isinstance(broker, AccountBroker) else broker.get_info()['status'] == 'DELETED'
    for name, item in broker.metadata.items():
        said['metadata ' + name] = list(item)
    for point in broker.get_syncs():
        said['incoming ' + point['remote_id']] = point['sync_point']
    rows = rows_of(broker)
    assert info['count'] == sum(not row['deleted'] for row in rows), 'counted, and there'
    rolled = '0' * 32
    for row in rows:
        row.pop('ROWID')
        what = row.get('created_at')
        if what is None:
            what = '%s-%s-%s-%s' % (row['put_timestamp'], row['delete_timestamp'], row['object_count'], row['bytes_used'])
        rolled = chexor(rolled, row['name'], what)
        assert said.setdefault('row ' + row['name'], row) is row, 'twice: ' + row['name']
    assert info['hash'] == rolled, 'hash'
    return said


def integrity(path):
    db = sqlite3.connect(path)
    verdict = db.execute('PRAGMA integrity_check').fetchone()[0]
    db.close()
    assert verdict == 'ok', verdict


def read(path):
    if not os.path.exists(path):
        return None, {}
    if '/accounts/' in path:
        broker = AccountBroker(path, account='a')
    else:
        broker = ContainerBroker(path, account='a', container='c')
    try:
        return broker, says(broker)
    except sqlite3.DatabaseError as error:
        assert 'Quarantined' in str(error), error
        return None, {'readable': False}


def check_quarantined(folder, allowed):
    for name, states in allowed.items():
        found = True if os.path.exists(os.path.join(folder, name)) else None
        assert found in states, '%s: %s' % (name, found)


def check(folder):
    with open(os.path.join(folder, 'expect.json')) as file:
        expected = json.load(file)
    databases = 0
    for name, allowed in expected.items():
        path = os.path.join(folder, name)
        if not name.endswith('.db'):
            check_quarantined(path, allowed)
            continue
        broker, said = read(path)
        for key in set(allowed) | set(said):
            assert said.get(key) in allowed.get(key, [None]), '%s: %s: %s, not one of %s' % (
                name, key, said.get(key), allowed.get(key))
        if broker is None:
            continue
        databases += 1
        if isinstance(broker, AccountBroker):
            broker.put_container('later', LATER, '0', 0, 0, 0)
        else:
            broker.put_object('later', LATER, 0, 'text/plain', 'e')
        later = says(broker)
        assert later.pop('row later') and later == said, 'later'
        integrity(path)
    assert databases, 'nothing there'


def main():
    logging.disable(logging.CRITICAL)
    folders = sorted(glob.glob(sys.argv[1] + '/*/*.python'))
    for folder in folders:
        try:
            check(folder)
        except BaseException:
            print('in', folder, file=sys.stderr)
            raise
    print('%d disks: what Python reads is whole' % len(folders))
    return not folders


if __name__ == '__main__':
    sys.exit(main())
