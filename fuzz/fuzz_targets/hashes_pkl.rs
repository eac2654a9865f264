//! Any bytes as a hashes.pkl: no panic, and what is understood is told to a peer as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obj::diskfile::{SuffixHashes, parse_hashes};

fuzz_target!(|data: &[u8]| {
    if let Some(hashes) = parse_hashes(data) {
        assert_eq!(SuffixHashes::from_answer(&hashes.to_answer()), Some(hashes));
    }
});
