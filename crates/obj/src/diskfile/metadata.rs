//! Metadata of an object file, in its extended attributes.
//!
//! ```text
//! user.swift.metadata             the first 64 KiB of the pickle (old writers: 254 bytes)
//! user.swift.metadata1, 2, ...    the rest, in chunks of the same size
//! user.swift.metadata_checksum    hex MD5 of the pickle; absent on files of old writers
//! ```
//!
//! The pickle is a dict of bytes to bytes (`common::pickle`). Names are title-cased headers, plus `name`, the path
//! of the object; the order is the writer's and carries no meaning.

use common::digest::{hex, md5};
use common::fs;
use common::pickle::{self, Pairs};
use rustix::fd::AsFd;
use rustix::fs::{XattrFlags, fsetxattr};
use rustix::io::Errno;

/// The largest value the kernel takes, and Swift's chunk.
const XATTR_SIZE: usize = 65536;

/// Header names and values as stored: UTF-8 if clients behaved, any bytes if not. No name occurs twice.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Metadata(Pairs);

impl Metadata {
    pub fn new() -> Self {
        Self::default()
    }

    /// Names compare exactly, as the title-cased keys of Swift's dicts.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.0.get(name.as_ref())
    }

    /// The value as text; `None` also if it is not UTF-8.
    pub fn get_str(&self, name: impl AsRef<[u8]>) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.get(name).is_some()
    }

    /// Sets a value; a name that is there already keeps its place.
    pub fn insert(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        match self.0.position(name) {
            Some(index) => self.0.set(index, name, value),
            None => self.0.push(name, value),
        }
    }

    pub fn remove(&mut self, name: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        let index = self.0.position(name.as_ref())?;
        let value = self.get(name).map(<[u8]>::to_vec);
        self.0.remove(index);
        value
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Metadata {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(items: T) -> Self {
        let mut metadata = Metadata::new();
        for (name, value) in items {
            metadata.insert(name, value);
        }
        metadata
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("file system does not support extended attributes")]
    NotSupported,
    #[error("Metadata checksum mismatch: stored checksum='{stored}', computed='{computed}'")]
    BadChecksum { stored: String, computed: String },
    #[error("Exception reading metadata: {0}")]
    Malformed(String),
    /// Not the file's fault: nothing is said about the metadata.
    #[error("{0}")]
    Io(std::io::Error),
}

/// Reads and checks the metadata of an open file. With `add_missing_checksum`, a file of an old writer gets its
/// checksum.
pub fn read_metadata(file: impl AsFd, add_missing_checksum: bool) -> Result<Metadata, MetadataError> {
    let raw = fs::read_metadata_xattrs(&file).map_err(unreadable)?;
    if !raw.checksum_matches {
        let stored = String::from_utf8_lossy(&raw.checksum.unwrap_or_default()).into_owned();
        return Err(MetadataError::BadChecksum { stored, computed: hex(&md5(&raw.pickle)) });
    }
    if raw.pickle.is_empty() {
        return Err(MetadataError::Malformed("Ran out of input".into()));
    }
    let metadata =
        pickle::load_metadata(&raw.pickle).map_err(|err| MetadataError::Malformed(err.to_string()))?;
    if raw.checksum.is_none() && add_missing_checksum {
        // A crash leaves the file as it was, or complete: one attribute is set in one step.
        let checksum = hex(&md5(&raw.pickle));
        let _ = fsetxattr(&file, fs::METADATA_CHECKSUM_KEY, checksum.as_bytes(), XattrFlags::empty());
    }
    Ok(Metadata(metadata))
}

/// Swift takes any failure to read an attribute but "not supported" for its absence, so that the metadata proves
/// truncated and goes to quarantine; errors that say nothing about the file are passed on here instead.
fn unreadable(err: std::io::Error) -> MetadataError {
    match Errno::from_io_error(&err) {
        Some(Errno::OPNOTSUPP) => MetadataError::NotSupported,
        Some(Errno::NOMEM | Errno::ACCESS | Errno::PERM) | None => MetadataError::Io(err),
        Some(errno) => MetadataError::Malformed(errno.to_string()),
    }
}

/// Sets the metadata of an open file; the caller syncs it. A crash before that leaves part of the chunks on a file
/// that has no name yet.
pub fn write_metadata(file: impl AsFd, metadata: &Metadata) -> std::io::Result<()> {
    fs::write_metadata_xattrs(file, &pickle::dump_metadata(&metadata.0), XATTR_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::fs::{METADATA_CHECKSUM_KEY as CHECKSUM_KEY, METADATA_KEY};
    use rustix::fs::fgetxattr;

    fn sample() -> Metadata {
        Metadata::from_iter([
            ("name", "/a/c/\u{f6}".as_bytes().to_vec()),
            ("Content-Length", b"5".to_vec()),
            ("X-Object-Meta-Caf\u{e9}", vec![0xff, 0xfe]),
            ("X-Object-Meta-Empty", Vec::new()),
        ])
    }

    #[test]
    fn metadata_survives_any_chunk_size() {
        for xattr_size in [40, 254, XATTR_SIZE] {
            let file = tempfile::tempfile().unwrap();
            fs::write_metadata_xattrs(&file, &pickle::dump_metadata(&sample().0), xattr_size).unwrap();
            assert_eq!(read_metadata(&file, false).unwrap(), sample(), "{xattr_size}");
        }
    }

    #[test]
    fn missing_checksum_is_accepted_and_added_on_demand() {
        let file = tempfile::tempfile().unwrap();
        fs::write_metadata_xattrs(&file, &pickle::dump_metadata(&sample().0), 100).unwrap();
        rustix::fs::fremovexattr(&file, CHECKSUM_KEY).unwrap();
        assert_eq!(read_metadata(&file, false).unwrap(), sample());
        assert_eq!(fgetxattr(&file, CHECKSUM_KEY, &mut [0; 64][..]), Err(Errno::NODATA));
        read_metadata(&file, true).unwrap();
        assert_eq!(fgetxattr(&file, CHECKSUM_KEY, &mut [0; 64][..]), Ok(32));
        assert_eq!(read_metadata(&file, false).unwrap(), sample());
    }

    #[test]
    fn damage_is_told_from_absence() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(read_metadata(&file, false), Err(MetadataError::Malformed(_))));
        write_metadata(&file, &sample()).unwrap();
        fsetxattr(&file, METADATA_KEY, b"\x80\x02}q\x00", XattrFlags::empty()).unwrap();
        assert!(matches!(read_metadata(&file, false), Err(MetadataError::BadChecksum { .. })));
        rustix::fs::fremovexattr(&file, CHECKSUM_KEY).unwrap();
        assert!(matches!(read_metadata(&file, false), Err(MetadataError::Malformed(_))));
    }
}
