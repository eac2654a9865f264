//! Any bytes as a line of an SSYNC conversation: no panic, and what is understood is written and understood alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obj::ssync::protocol::{Offer, Wanted, parse_header_line, parse_subrequest_line, printable};

fuzz_target!(|line: &[u8]| {
    if let Ok(offer) = Offer::decode(line)
        && offer.ts_meta != offer.ts_data
    {
        assert_eq!(Offer::decode(offer.encode().as_bytes()), Ok(offer));
    }
    if let Ok(Some((hash, wanted))) = Wanted::decode(line) {
        assert_eq!(Wanted::decode(wanted.encode(&hash).as_bytes()), Ok(Some((hash, wanted))));
    }
    let _ = (parse_subrequest_line(line), parse_header_line(line));
    assert!(printable(line).is_ascii());
});
