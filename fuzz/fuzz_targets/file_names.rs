//! Any bytes as the names in a hash dir, a line each: no panic, each name has one fate under either scheme, and a fragment that
//! is chosen has the name that is written for it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use obj::diskfile::{Scheme, Want, get_ondisk_files, make_fragment_filename};

fuzz_target!(|data: &[u8]| {
    let names: Vec<&[u8]> = data.split(|&byte| byte == b'\n').collect();
    for scheme in [Scheme::Replication, Scheme::Erasure { fragments: 6 }] {
        for want in [Want::default(), Want { frag_index: Some(1), frag_prefs: Some(&[]) }] {
            let files = get_ondisk_files(names.iter().copied(), scheme, want);
            let gone: Vec<usize> = files.obsolete.iter().map(|file| file.index).collect();
            let kept = [files.data, files.meta, files.tombstone, files.ctype];
            for file in kept.into_iter().flatten() {
                assert!(!files.unexpected.contains(&file.index));
                // A fragment may be chosen that an old durable file makes obsolete, as in Swift.
                assert!(scheme != Scheme::Replication || !gone.contains(&file.index));
            }
            assert!(gone.iter().all(|index| !files.unexpected.contains(index)));
            assert!(files.data.is_none() || files.tombstone.is_none());
            assert!(files.meta.is_none() || files.data.is_some());
            if let Some(data) = files.data
                && let Some(index) = data.frag_index
            {
                let written = make_fragment_filename(data.timestamp, index, data.durable);
                let read = get_ondisk_files(
                    [written.as_bytes()].into_iter(),
                    scheme,
                    Want { frag_prefs: Some(&[]), ..want },
                );
                let read = read.data.expect("what is written is read");
                assert_eq!(
                    (read.timestamp, read.frag_index, read.durable),
                    (data.timestamp, Some(index), data.durable)
                );
            }
        }
    }
});
