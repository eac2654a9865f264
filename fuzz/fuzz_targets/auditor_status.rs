//! Any bytes as an auditor's status: no panic, and nothing but names of files comes out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obj::diskfile::parse_auditor_status;

fuzz_target!(|data: &[u8]| {
    for partition in parse_auditor_status(data).unwrap_or_default() {
        let path = std::path::Path::new(&partition);
        assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(partition.as_str()));
    }
});
