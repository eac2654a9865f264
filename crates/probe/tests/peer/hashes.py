"""hashes.py CONF: for every partition of every device of an object server's configuration, Python's own suffix hashes
(computed afresh, by listing) must equal those that hashes.pkl and hashes.invalid say. Nothing may be quarantined."""
import os
import sys

from swift.common import utils
from swift.common.storage_policy import POLICIES, reload_storage_policies
from swift.common.utils import readconf
from swift.obj.diskfile import DiskFileRouter, consolidate_hashes, get_data_dir

conf = readconf(sys.argv[1], 'app:object-server')
utils.SWIFT_CONF_FILE = os.path.join(conf['swift_dir'], 'swift.conf')
utils.validate_configuration()
import swift.common.storage_policy as sp
sp.SWIFT_CONF_FILE = utils.SWIFT_CONF_FILE
reload_storage_policies()

router = DiskFileRouter(conf, utils.get_logger({}, 'hashes'))
checked = wrong = 0
for device in sorted(os.listdir(conf['devices'])):
    for policy in sp.POLICIES:
        datadir = os.path.join(conf['devices'], device, get_data_dir(policy))
        if not os.path.isdir(datadir):
            continue
        manager = router[policy]
        for part in sorted(os.listdir(datadir)):
            path = os.path.join(datadir, part)
            if not part.isdigit():
                continue
            stored = consolidate_hashes(path)
            suffixes = [s for s in os.listdir(path) if len(s) == 3 and os.path.isdir(os.path.join(path, s))]
            fresh = {s: manager._hash_suffix(os.path.join(path, s)) for s in suffixes
                     if os.listdir(os.path.join(path, s))}
            for suffix, value in fresh.items():
                checked += 1
                known = stored.get(suffix)
                # None: invalidated and not yet hashed again
                if stored.get('valid') and known is not None and known != value:
                    wrong += 1
                    print('%s/%s: hashes.pkl says %s, Python %s' % (path, suffix, known, value))
    if os.path.isdir(os.path.join(conf['devices'], device, 'quarantined')):
        wrong += 1
        print('%s holds quarantined' % device)
print('%d suffixes checked, %d wrong' % (checked, wrong))
sys.exit(1 if wrong or not checked else 0)
