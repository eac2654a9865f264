"""What Jerasure makes of a segment, for tests/codec.rs: Debian 12's liberasurecode 1.6.2 with libJerasure 2.0.0.

    apt install liberasurecode1 libjerasure2; python3 make_jerasure.py > jerasure.txt

A line for a code and a segment: type, data, parity, length, MD5 of the payloads of all fragments one after the other.
"""
import ctypes
import hashlib

LIBRARY = ctypes.CDLL('liberasurecode.so.1')


def payloads(backend, ndata, nparity, segment):
    arguments = (ctypes.c_int * 128)(ndata, nparity, 0, nparity + 1)
    instance = LIBRARY.liberasurecode_instance_create(backend, arguments)
    assert instance > 0, instance
    data, parity = ctypes.POINTER(ctypes.c_void_p)(), ctypes.POINTER(ctypes.c_void_p)()
    length = ctypes.c_uint64()
    status = LIBRARY.liberasurecode_encode(
        instance, segment, ctypes.c_uint64(len(segment)),
        ctypes.byref(data), ctypes.byref(parity), ctypes.byref(length))
    assert status == 0, status
    pointers = [data[i] for i in range(ndata)] + [parity[i] for i in range(nparity)]
    return b''.join(ctypes.string_at(pointer, length.value)[80:] for pointer in pointers)


for ec_type, backend in [('jerasure_rs_vand', 1), ('jerasure_rs_cauchy', 2)]:
    for ndata, nparity in [(1, 1), (3, 3), (4, 2), (4, 3), (5, 2), (8, 4), (10, 4), (12, 4)]:
        for length in [1, 37, 4096, 16384, 100000]:
            segment = bytes((i * 167 + (i >> 8) * 13 + 5) % 256 for i in range(length))
            digest = hashlib.md5(payloads(backend, ndata, nparity, segment)).hexdigest()
            print(ec_type, ndata, nparity, length, digest)
