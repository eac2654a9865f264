//! Any bytes as a chunked body: no panic, and the same data however they arrive.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use service::http::chunked::{ChunkDecoder, Malformed, Step};

fn decode(data: &[u8], piece: usize) -> Result<(Vec<u8>, bool), Malformed> {
    let (mut decoder, mut buf, mut out) = (ChunkDecoder::new(), BytesMut::new(), Vec::new());
    for piece in data.chunks(piece.max(1)) {
        buf.extend_from_slice(piece);
        while let Step::Data(bytes) = decoder.decode(&mut buf, usize::MAX)? {
            out.extend_from_slice(&bytes);
        }
    }
    Ok((out, decoder.is_end()))
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(decode(data, 1), decode(data, data.len()));
});
