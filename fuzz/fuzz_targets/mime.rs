//! Any bytes as a multipart document: no panic, an end, and the same documents however they arrive.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use service::http::Headers;
use service::http::mime::{Event, Malformed, MimeDecoder};

fn decode(data: &[u8], piece: usize) -> Result<Vec<(Headers, Vec<u8>)>, Malformed> {
    let mut decoder = MimeDecoder::new(b"b");
    let mut pieces = data.chunks(piece.max(1));
    let mut documents: Vec<(Headers, Vec<u8>)> = Vec::new();
    loop {
        match decoder.decode()? {
            Event::NeedMore => match pieces.next() {
                Some(piece) => decoder.feed(Bytes::copy_from_slice(piece)),
                None => decoder.end(),
            },
            Event::Headers(headers) => documents.push((headers, Vec::new())),
            Event::Data(bytes) => {
                documents.last_mut().expect("headers come first").1.extend_from_slice(&bytes)
            }
            Event::EndOfDocument => {}
            Event::Done => return Ok(documents),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    assert_eq!(decode(data, 1), decode(data, data.len()));
});
