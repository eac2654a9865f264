"""Fragments as PyECLib 1.8.0 makes them, for tests/codec.rs.

    python make_fragments.py > fragments.txt

A line for a code (type, data, parity, length of the segment) and one for each of its fragments, in hex.
"""
from pyeclib.ec_iface import ECDriver

SCHEMES = [
    ('isa_l_rs_vand', 4, 2, 37), ('isa_l_rs_vand', 3, 2, 1), ('isa_l_rs_cauchy', 4, 3, 50),
    ('isa_l_rs_vand_inv', 4, 3, 50), ('liberasurecode_rs_vand', 4, 2, 101), ('liberasurecode_rs_vand', 3, 3, 1),
    ('flat_xor_hd_3', 5, 5, 60), ('flat_xor_hd_4', 6, 6, 100),
]

for ec_type, ndata, nparity, length in SCHEMES:
    segment = bytes((i * 167 + (i >> 8) * 13 + 5) % 256 for i in range(length))
    print(ec_type, ndata, nparity, length)
    for fragment in ECDriver(ec_type=ec_type, k=ndata, m=nparity).encode(segment):
        print(fragment.hex())
