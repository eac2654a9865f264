"""Writes ec_put.txt: the bytes of an EC PUT between Swift's own putter and a running object server (2.38.3).

    python generate_ec_put.py DIRECTORY PORT

The server has a device `sda` and an erasure coding policy of index 1. Lines begin with who wrote: `C` the putter (the proxy's
MIMEPutter), `S` the object server; the rest is escaped. A GET of the object on the same connection follows.
"""
import random
import sys
import time

import eventlet
eventlet.monkey_patch()

from swift.common.utils import Watchdog, md5
from swift.proxy.controllers.obj import MIMEPutter

LOG = []


def pump(who, source, sink):
    while True:
        data = source.recv(65536)
        if not data:
            sink.shutdown(eventlet.greenio.socket.SHUT_WR)
            return
        if LOG and LOG[-1][0] == who:
            LOG[-1][1] += data
        else:
            LOG.append([who, data])
        sink.sendall(data)


def relay(listener):
    client, _ = listener.accept()
    server = eventlet.connect(("127.0.0.1", int(sys.argv[2])))
    eventlet.spawn(pump, "C", client, server)
    eventlet.spawn(pump, "S", server, client)


listener = eventlet.listen(("127.0.0.1", 0))
eventlet.spawn(relay, listener)
random.seed(1)
watchdog = Watchdog()
watchdog.spawn()
body = b"fragment \r\n--archive" * 5
node = {"ip": "127.0.0.1", "port": listener.getsockname()[1], "device": "sda"}
headers = {
    "X-Timestamp": "%.5f" % time.time(), "Content-Type": "text/plain", "X-Backend-Storage-Policy-Index": "1",
    "X-Backend-Obj-Content-Length": str(len(body)), "X-Object-Meta-Caf\u00c3\u00a9": "\u00c3\u00a9",
}
putter = MIMEPutter.connect(node, 0, "/a/c/%.5f" % time.time(), headers, watchdog, 1, 5, 5, print)
putter.send_chunk(body[:10])
putter.send_chunk(body[10:])
footers = {"Etag": md5(body, usedforsecurity=False).hexdigest(), "X-Object-Sysmeta-Ec-Frag-Index": "0",
           "X-Object-Sysmeta-Ec-Etag": "0" * 32, "X-Object-Sysmeta-Ec-Content-Length": "200"}
putter.end_of_object_data(footer_metadata=footers)
assert putter.await_response(5, informational=True).status == 100
putter.send_commit_confirmation()
response = putter.await_response(5)
assert response.status == 201, response.status
response.read()
conn = putter.conn
conn.putrequest("GET", conn._path)
conn.putheader("X-Backend-Storage-Policy-Index", "1")
conn.endheaders()
response = conn.getresponse()
assert (response.status, response.read()) == (200, body)

with open("%s/ec_put.txt" % sys.argv[1], "w") as out:
    for who, data in LOG:
        text = data.decode("latin-1").encode("unicode_escape").decode()
        out.write("%s %s\n" % (who, text))
