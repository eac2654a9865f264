//! Any bytes as a pending update of a container: no panic, and what is understood is written so that it stays that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obj::updater::rewrite_pending;

fuzz_target!(|data: &[u8]| {
    if let Some(written) = rewrite_pending(data) {
        assert_eq!(rewrite_pending(&written), Some(written));
    }
});
