"""Makes the golden databases of this directory with Swift 2.38.3: python make.py (in this directory)."""
import json
import os
import shutil

from swift.account.backend import AccountBroker
from swift.container.backend import ContainerBroker
from swift.common.utils.timestamp import Timestamp


def stamp(n, offset=0):
    return Timestamp(1700000000 + n, offset=offset).internal


for name in ('container', 'account'):
    for suffix in ('.db', '.db.pending'):
        if os.path.exists(name + suffix):
            os.unlink(name + suffix)

shutil.rmtree('work', ignore_errors=True)
path = os.path.abspath('work/sda/containers/1/abc/hash/container.db')
broker = ContainerBroker(path, account='a', container='c é')
broker.initialize(stamp(0), 1)
broker.put_object('merged', stamp(1), 10, 'text/plain; charset=utf-8;swift_bytes=99', 'e1', storage_policy_index=1)
broker.put_object('dir/é', stamp(2, 3), 20, 'a/b', 'e2', storage_policy_index=1, ctype_timestamp=stamp(4),
                  meta_timestamp=stamp(5))
broker.put_object('elsewhere', stamp(2), 5, 'a/b', 'e3', storage_policy_index=0)
broker.delete_object('gone', stamp(3), storage_policy_index=1)
broker.update_metadata({'X-Container-Meta-Ü': ('wert', stamp(1)), 'X-Container-Meta-Gone': ('', stamp(2))})
broker.get_info()
with open(path + '.pending', 'rb') as f:
    assert not f.read()
shutil.copy(path, 'container.db')
broker.put_object('merged', stamp(9), 11, 'text/x', 'e9', storage_policy_index=1)
broker.put_object('dir/new', stamp(9), 30, 'a/b', 'e8', storage_policy_index=1, meta_timestamp=stamp(10))
broker.delete_object('dir/é', '1700000009.5', storage_policy_index=1)
shutil.copy(path + '.pending', 'container.db.pending')
info = {k: v for k, v in broker.get_info().items() if not k.startswith('x_container')}
container = {'info': info, 'policy_stats': [[k, v['object_count'], v['bytes_used']]
                                            for k, v in broker.get_policy_stats().items()],
             'metadata': json.dumps(broker.metadata),
             'list': broker.list_objects_iter(100, '', '', None, '', storage_policy_index=1),
             'subdirs': broker.list_objects_iter(100, '', '', '', '/', storage_policy_index=1)}

path = os.path.abspath('work/sda/accounts/1/abc/hash/account.db')
broker = AccountBroker(path, account='a é')
broker.initialize(stamp(0))
broker.put_container('c1', stamp(1), '0', '3', '300', '0')
broker.put_container('c/2', stamp(2), '0', 4, 400, 1)
broker.put_container('deleted', stamp(2), stamp(3), 0, 0, 1)
broker.update_metadata({'X-Account-Meta-Ü': ('wert', stamp(1))})
broker.get_info()
shutil.copy(path, 'account.db')
broker.put_container('c1', stamp(1), stamp(5), '0', '0', '0')
broker.put_container('c/3', stamp(4), '0', '1', '1', '1')
shutil.copy(path + '.pending', 'account.db.pending')
account = {'info': broker.get_info(), 'policy_stats': [[k, v['container_count'], v['object_count'], v['bytes_used']]
                                                       for k, v in broker.get_policy_stats().items()],
           'metadata': json.dumps(broker.metadata),
           'list': broker.list_containers_iter(100, '', '', None, ''),
           'subdirs': broker.list_containers_iter(100, '', '', 'c', '/', reverse=True)}
with open('expected.json', 'w') as f:
    json.dump({'container': container, 'account': account}, f, indent=1)
    f.write('\n')
shutil.rmtree('work')
