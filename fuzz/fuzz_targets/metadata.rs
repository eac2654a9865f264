//! Any bytes as the pickle in an object's extended attributes: no panic, and what is understood is written so that it
//! is understood alike.
#![no_main]

use common::pickle::{Pairs, dump_metadata, load_metadata};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(metadata) = load_metadata(data) else { return };
    // The first name tells which Python has written it; Swift's is never empty.
    let named = std::iter::once((&b"name"[..], &b"/a/c/o"[..])).chain(metadata.iter());
    let named: Pairs = named.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    assert_eq!(load_metadata(&dump_metadata(&named)), Ok(named));
});
