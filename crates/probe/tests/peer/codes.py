"""codes.py LENGTHS CODE...: what PyECLib makes of segments.

LENGTHS are numbers with commas between them, a CODE is TYPE:DATA:PARITY. Prints TYPE DATA PARITY LENGTH and the MD5 of all
fragments one after the other. Of small codes, every loss that the code promises to make good is given to PyECLib: what it
decodes and reconstructs must be what was lost.
"""
import hashlib
import itertools
import sys

from pyeclib.ec_iface import ECDriver


def losses(count, most):
    for n in range(1, most + 1):
        yield from itertools.combinations(range(count), n)


segments = [bytes((i * 167 + (i >> 8) * 13 + 5) % 256 for i in range(int(length))) for length in sys.argv[1].split(',')]
for code in sys.argv[2:]:
    ec_type, ndata, nparity = code.split(':')
    ndata, nparity = int(ndata), int(nparity)
    driver = ECDriver(ec_type=ec_type, k=ndata, m=nparity)
    promised = int(ec_type[-1]) - 1 if ec_type.startswith('flat_xor') else nparity
    for segment in segments:
        fragments = driver.encode(segment)
        print(ec_type, ndata, nparity, len(segment), hashlib.md5(b''.join(fragments)).hexdigest())
        if ndata + nparity > 7 or len(segment) > 5000:
            continue
        for lost in losses(ndata + nparity, promised):
            left = [f for i, f in enumerate(fragments) if i not in lost]
            if driver.decode(left) != segment:
                sys.exit('%s: PyECLib decodes something else without %s' % (code, lost))
            for made, index in zip(driver.reconstruct(left, list(lost)), lost):
                if made != fragments[index]:
                    sys.exit('%s: PyECLib reconstructs something else without %s' % (code, lost))
