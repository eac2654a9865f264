//! Object metadata in extended attributes: `user.swift.metadata`, `user.swift.metadata1`, ... hold a pickle in
//! pieces of up to 64 KiB, `user.swift.metadata_checksum` the MD5 of the whole as 32 hexadecimal digits.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::fail;
use crate::digest::{hex, md5};

pub const METADATA_KEY: &str = "user.swift.metadata";
pub const METADATA_CHECKSUM_KEY: &str = "user.swift.metadata_checksum";
/// The largest piece.
const CHUNK: usize = 65536;
/// What nearly every piece fits in. The kernel allocates and clears as much as it is offered.
const USUAL: usize = 1024;

/// The pickle as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMetadata {
    pub pickle: Vec<u8>,
    /// As stored; `None` in files of old versions of Swift.
    pub checksum: Option<Vec<u8>>,
    pub checksum_matches: bool,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::default();
}

/// Reads every piece and the checksum. A file without metadata gives an empty pickle; an error is one of the
/// filesystem: ENOTSUP if it has no extended attributes.
pub fn read_metadata_xattrs(file: impl AsFd) -> io::Result<RawMetadata> {
    fail::hit("fs.read_metadata")?;
    let file = file.as_fd();
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(USUAL.max(buffer.len()), 0);
        let mut pickle = Vec::new();
        let found = append(file, METADATA_KEY, buffer, &mut pickle)?;
        let mut checksum = Vec::new();
        let checksum = append(file, METADATA_CHECKSUM_KEY, buffer, &mut checksum)?.then_some(checksum);
        let matches = |pickle: &[u8]| match &checksum {
            Some(stored) => stored.as_slice() == hex(&md5(pickle)).as_bytes(),
            None => false,
        };
        // A matching checksum tells that the first piece is the only one, and saves asking for a second.
        if matches(&pickle) {
            return Ok(RawMetadata { pickle, checksum, checksum_matches: true });
        }
        let mut piece = 1;
        while found && append(file, &format!("{METADATA_KEY}{piece}"), buffer, &mut pickle)? {
            piece += 1;
        }
        let checksum_matches = checksum.is_none() || matches(&pickle);
        Ok(RawMetadata { pickle, checksum, checksum_matches })
    })
}

/// Appends the value of an attribute; false if there is none.
fn append(file: impl AsFd, name: &str, buffer: &mut Vec<u8>, out: &mut Vec<u8>) -> io::Result<bool> {
    let mut room = USUAL;
    loop {
        match rustix::fs::fgetxattr(&file, name, &mut buffer[..room]) {
            Ok(len) => {
                out.extend_from_slice(&buffer[..len]);
                return Ok(true);
            }
            Err(Errno::NODATA) => return Ok(false),
            Err(Errno::RANGE) if room <= CHUNK => {
                room = if room < CHUNK { CHUNK } else { 2 * CHUNK };
                buffer.resize(room.max(buffer.len()), 0);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Writes a pickle in pieces of `chunk_size` bytes (65536 in Swift), then its checksum.
pub fn write_metadata_xattrs(file: impl AsFd, pickle: &[u8], chunk_size: usize) -> io::Result<()> {
    fail::hit("fs.write_metadata")?;
    let file = file.as_fd();
    for (i, piece) in pickle.chunks(chunk_size.clamp(1, CHUNK)).enumerate() {
        if i == 0 {
            rustix::fs::fsetxattr(file, METADATA_KEY, piece, XattrFlags::empty())?;
        } else {
            rustix::fs::fsetxattr(file, format!("{METADATA_KEY}{i}"), piece, XattrFlags::empty())?;
        }
    }
    let checksum = hex(&md5(pickle));
    rustix::fs::fsetxattr(file, METADATA_CHECKSUM_KEY, checksum.as_bytes(), XattrFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn pieces_are_read_back_as_one() {
        for chunk in [10, 100, 65536] {
            let file = file();
            let pickle: Vec<u8> = (0..100).collect();
            write_metadata_xattrs(&file, &pickle, chunk).unwrap();
            let read = read_metadata_xattrs(&file).unwrap();
            assert_eq!(read.pickle, pickle);
            assert!(read.checksum_matches);
            assert_eq!(read.checksum.unwrap(), hex(&md5(&pickle)).as_bytes());
        }
    }

    #[test]
    fn a_wrong_checksum_is_noticed_and_a_missing_one_accepted() {
        let file = file();
        rustix::fs::fsetxattr(&file, METADATA_KEY, b"pickle", XattrFlags::empty()).unwrap();
        let read = read_metadata_xattrs(&file).unwrap();
        assert_eq!((read.checksum, read.checksum_matches), (None, true));
        rustix::fs::fsetxattr(&file, METADATA_CHECKSUM_KEY, b"0", XattrFlags::empty()).unwrap();
        assert!(!read_metadata_xattrs(&file).unwrap().checksum_matches);
    }

    #[test]
    fn a_file_without_metadata_has_an_empty_pickle() {
        assert!(read_metadata_xattrs(file()).unwrap().pickle.is_empty());
    }
}
