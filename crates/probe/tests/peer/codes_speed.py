"""codes_speed.py TYPE DATA PARITY SECONDS: PyECLib's speed in GB of segments for a CPU second.

Printed: encode, decode without the first data fragment, decode without as many as there are parities, and encode and
decode (one lost) of segments that are not in any cache. Each figure takes SECONDS.
"""
import sys
import time

from pyeclib.ec_iface import ECDriver

SEGMENT = 1024 * 1024
RING = 192


def speed(work):
    for i in range(16):
        work(i)
    began, done = time.thread_time(), 0
    while True:
        for i in range(done, done + 16):
            work(i)
        done += 16
        spent = time.thread_time() - began
        if spent > seconds:
            return done * SEGMENT / spent / 1e9


ec_type, ndata, nparity, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
driver = ECDriver(ec_type=ec_type, k=ndata, m=nparity)
first = bytes((i * 167 + (i >> 8) * 13) % 256 for i in range(SEGMENT))
ring = [bytes([i]) + first[1:] for i in range(RING)]
fragments = driver.encode(first)
print(speed(lambda i: driver.encode(first)))
print(speed(lambda i: driver.decode(fragments[1:ndata + 1])))
print(speed(lambda i: driver.decode(fragments[nparity:])))
print(speed(lambda i: driver.encode(ring[i % RING])))
cold = [driver.encode(segment)[1:ndata + 1] for segment in ring]
print(speed(lambda i: driver.decode(cold[i % RING])))
