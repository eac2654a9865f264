//! Any bytes as the head of a request or a response: no panic, and the scanner finds the same end however they arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use service::http::head::{HeadScanner, Limits, parse_request, parse_response};

fuzz_target!(|data: &[u8]| {
    let whole = HeadScanner::default().scan(data, &Limits::REQUEST);
    let mut scanner = HeadScanner::default();
    let mut found = Ok(None);
    for end in 0..=data.len() {
        found = scanner.scan(&data[..end], &Limits::REQUEST);
        if found != Ok(None) {
            break;
        }
    }
    assert_eq!(found, whole);
    if let Ok(Some(end)) = whole {
        let _ = parse_request(&data[..end]);
        let _ = parse_response(&data[..end]);
    }
});
