//! Erasure codes against PyECLib: the same fragments, byte for byte, for every code that its wheel has.
//!
//! That decoding and reconstructing undo this, for every loss, is shown on each side of what it made itself: what both make
//! is the same.

use bytes::Bytes;
use common::digest::Md5;
use ec::Codec;
use probe::peer;

const SCHEMES: [(usize, usize); 9] =
    [(2, 1), (3, 2), (4, 2), (5, 3), (8, 4), (10, 4), (15, 3), (5, 8), (16, 4)];
const LENGTHS: [usize; 10] = [1, 2, 79, 80, 1000, 4095, 4096, 65_537, 262_143, 1_048_576];

fn codes() -> Vec<(&'static str, usize, usize)> {
    let mut codes = Vec::new();
    for ec_type in ["isa_l_rs_vand", "isa_l_rs_cauchy", "isa_l_rs_vand_inv", "liberasurecode_rs_vand"] {
        codes.extend(SCHEMES.map(|(ndata, nparity)| (ec_type, ndata, nparity)));
    }
    codes.push(("flat_xor_hd_3", 3, 3));
    for ec_type in ["flat_xor_hd_3", "flat_xor_hd_4"] {
        codes.extend((5..=10).map(|ndata| (ec_type, ndata, 5)));
        codes.extend((6..=15).map(|ndata| (ec_type, ndata, 6)));
    }
    codes.extend((16..=20).map(|ndata| ("flat_xor_hd_4", ndata, 6)));
    codes
}

fn segment(len: usize) -> Bytes {
    (0..len).map(|i| (i * 167 + (i >> 8) * 13 + 5) as u8).collect()
}

#[test]
fn fragments_are_pyeclibs() {
    let lengths = LENGTHS.map(|len| len.to_string()).join(",");
    let codes = codes();
    let mut script = peer::script("codes.py").expect("the script");
    script.arg(lengths).args(codes.iter().map(|(ec_type, k, m)| format!("{ec_type}:{k}:{m}")));
    let expected = peer::success(&mut script).expect("PyECLib");
    let mut expected = expected.lines();
    let segments = LENGTHS.map(segment);
    for (ec_type, ndata, nparity) in codes {
        let codec = Codec::new(ec_type, ndata, nparity).expect("a code");
        for segment in &segments {
            let mut md5 = Md5::new();
            for fragment in codec.encode(segment) {
                md5.update(&fragment.header);
                md5.update(&fragment.payload);
            }
            let line = format!("{ec_type} {ndata} {nparity} {} {}", segment.len(), md5.hexdigest());
            assert_eq!(Some(line.as_str()), expected.next());
        }
    }
    assert_eq!(expected.next(), None);
}
