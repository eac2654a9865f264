//! Reading a file past the page cache.
//!
//! For what is to leave the page cache as soon as it has been read: the disk fills the reader's own memory (`O_DIRECT`), so that no
//! pages are found for it, filled, copied and dropped. What is in the page cache and not on the disk yet is written before.
//! Memory, offset and length must be aligned, which is of no interest to anybody else.

use std::os::fd::AsFd;
use std::sync::LazyLock;

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::pread;

use crate::buffers::Buffers;

/// What any disk is content with.
const ALIGNMENT: usize = 4096;

static BUFFERS: LazyLock<Buffers> = LazyLock::new(Buffers::default);

/// The first `len` bytes of a file. `None` if its file system can't do it, or if it fails: reading as usual tells why.
pub fn read_direct(file: impl AsFd, len: usize) -> Option<Bytes> {
    let flags = fcntl_getfl(&file).ok()?;
    fcntl_setfl(&file, flags | OFlags::DIRECT).ok()?;
    let aligned = len.next_multiple_of(ALIGNMENT);
    let mut buffer = BUFFERS.take(aligned + ALIGNMENT);
    let data = buffer.bytes_mut();
    let start = data.as_ptr().align_offset(ALIGNMENT);
    // It ends at the end of the file, wherever that is.
    let read = pread(&file, &mut data[start..start + aligned], 0);
    // Other reads are not aligned.
    fcntl_setfl(&file, flags).ok()?;
    read.is_ok_and(|read| read >= len).then(|| buffer.freeze().slice(start..start + len))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_file_is_read_to_its_end_directly_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        for len in [1, 4095, 4096, 4097, 300_000] {
            let path = dir.path().join("file");
            let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, &data).unwrap();
            let mut file = std::fs::File::open(&path).unwrap();
            let flags = fcntl_getfl(&file).unwrap();
            // There is no such byte.
            assert_eq!(read_direct(&file, len + 1), None);
            let direct = read_direct(&file, len);
            assert!(direct.is_none_or(|direct| direct == data), "{len}");
            assert_eq!(fcntl_getfl(&file).unwrap(), flags);
            let mut as_usual = Vec::new();
            file.read_to_end(&mut as_usual).unwrap();
            assert_eq!(as_usual, data);
        }
    }
}
