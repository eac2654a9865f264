//! Any bytes as fragments of a segment: no panic, and what is decoded has the length that the headers say.
#![no_main]

use bytes::Bytes;
use ec::Codec;
use ec::fragment::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let codec = Codec::new("isa_l_rs_vand", 2, 1).expect("a code");
    let header = Header::parse(data);
    let halves: Vec<Bytes> = data.chunks(data.len() / 2 + 1).map(Bytes::copy_from_slice).collect();
    if let Ok(slices) = codec.decode(&halves) {
        let len: usize = slices.iter().map(Bytes::len).sum();
        assert_eq!(header.map(|h| h.segment_len), Ok(len as u64));
    }
    let _ = codec.reconstruct(&halves, 2);
});
