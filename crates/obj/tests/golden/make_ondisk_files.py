#!/usr/bin/env python3
"""Writes ondisk_files.txt: listings of hash dirs and what Python Swift 2.38.3 chooses of them.

    python make_ondisk_files.py > ondisk_files.txt          (with Swift installed)

A line is `SCHEME|FRAG_INDEX|FRAG_PREFS|FILES|data=..|meta=..|ts=..|ctype=..|obsolete=..|possible_reclaim=..|
unexpected=..`; SCHEME is r or e (4+2), lists are separated by commas, preferences are TIMESTAMP:EXCLUDED+EXCLUDED.
"""
import logging
import random

from swift.common.storage_policy import ECStoragePolicy, StoragePolicy
from swift.common.utils import Timestamp, encode_timestamps
from swift.obj.diskfile import DiskFileManager, ECDiskFileManager

rng = random.Random(20)
logger = logging.getLogger('quiet')
logger.addHandler(logging.NullHandler())
logger.propagate = False
logger.increment = lambda *a: None
REPLICATED = StoragePolicy(0, 'r', is_default=True)
EC = ECStoragePolicy(1, 'e', ec_type='liberasurecode_rs_vand', ec_ndata=4, ec_nparity=2)
MANAGERS = {'r': DiskFileManager({}, logger), 'e': ECDiskFileManager({}, logger)}
JUNK = ['junk', '.0000000001.00000.data.Xy09_a', '0000000002.00000', '0000000003.00000.tmp', '1.data', '.data',
        '0000000001.00000#x#d.data', '0000000001.00000#9#d.data', '0000000001.00000#.data', '-1.ts', 'nan.ts',
        '0000000003.00000+zz.meta', '0000000002.00000_000000000000000g.data', ' 2.ts', '0000000003.00000.data.x']


def timestamp():
    return Timestamp(float(rng.randrange(1, 6)), offset=rng.choice([0, 0, 0, 0, 1]))


def name(scheme):
    kind, ts = rng.choice(['data', 'data', 'data', 'meta', 'meta', 'ts', 'durable', 'junk']), timestamp()
    if kind == 'junk':
        return rng.choice(JUNK)
    if kind == 'data' and scheme == 'e' and rng.random() < .97:
        return '%s#%d%s.data' % (ts.internal, rng.randrange(6), rng.choice(['', '', '#d']))
    if kind == 'meta' and rng.random() < .5:
        return encode_timestamps(ts, Timestamp(float(rng.randrange(1, 6))), explicit=True) + '.meta'
    return '%s.%s' % (ts.internal, kind)


def case():
    scheme = rng.choice('re')
    files = sorted({name(scheme) for _ in range(rng.randrange(0, 8))}, reverse=True)
    frag_index, prefs = None, None
    if scheme == 'e':
        frag_index = rng.choice([None, None, 0, 1, 2])
        if rng.random() < .5:
            prefs = [{'timestamp': timestamp(), 'exclude': rng.sample(range(6), rng.randrange(4))}
                     for _ in range(rng.randrange(3))]
    kwargs = {'frag_index': frag_index, 'frag_prefs': prefs} if scheme == 'e' else {}
    policy = EC if scheme == 'e' else REPLICATED
    chosen = MANAGERS[scheme].get_ondisk_files(files, '', verify=False, policy=policy, **kwargs)

    def infos(key):
        # A file may be listed twice; it is removed once.
        return ','.join(sorted({info['filename'] for info in chosen.get(key, [])}))
    prefs_text = '-' if prefs is None else ','.join(
        '%s:%s' % (p['timestamp'].internal, '+'.join(map(str, p['exclude']))) for p in prefs)
    fields = [scheme, '' if frag_index is None else str(frag_index), prefs_text, ','.join(files)]
    for key in ('data', 'meta', 'ts', 'ctype'):
        fields.append('%s=%s' % (key, chosen[key + '_file'] or ''))
    fields.append('obsolete=' + infos('obsolete'))
    fields.append('possible_reclaim=' + infos('possible_reclaim'))
    fields.append('unexpected=' + ','.join(sorted(chosen.get('unexpected', []))))
    return '|'.join(fields)


print('\n'.join(sorted({case() for _ in range(500)})))
