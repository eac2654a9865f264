//! DiskFile: one object on one device, as files and extended attributes.
//!
//! ```text
//! DEVICES/DEVICE/objects[-N]/PARTITION/SUFFIX/HASH/TIMESTAMP.data      see files.rs for the names
//!                                     /hashes.pkl, hashes.invalid      see hashes.rs, suffix_hashes.rs
//!                                     /.lock, .lock-replication        see locks.rs
//!                            /auditor_status_ALL.json, ...             see audit.rs
//!               /tmp[-N]/                    where O_TMPFILE is not supported; async_pending's temp files
//!               /async_pending[-N]/SUFFIX/HASH-TIMESTAMP               container updates still to be sent
//!               /quarantined/objects[-N]/HASH[-UUID]                   what was found to be corrupt
//! ```
//!
//! N is the policy index, left out for policy 0. A file, once linked under its name, never changes: a write is a new
//! file with a newer timestamp, and what it supersedes is unlinked after that. So a reader that has listed a hash dir
//! either opens a complete version or finds it gone ([`DiskFileError::StateChanged`]).
//!
//! All calls block; services run them in a device's pool. [`DiskFile::open`], [`DiskFile::put_small`] and
//! [`OpenDiskFile::read_small`] do all of a small request, so that it takes one hop to the pool.
//!
//! Of an EC policy each device holds fragments (`ec.rs`, `fragment.rs`): what they are of, only the proxy and the
//! reconstructor know.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{ObjHash, Timestamp, fs};
use service::logs::Logger;

mod audit;
mod cleanup;
mod ec;
mod files;
mod fragment;
mod hashes;
mod in_memory;
mod known;
mod listing;
mod locks;
mod manager;
mod metadata;
mod open;
mod quarantine;
mod reader;
mod relink;
mod suffix_hashes;
mod writer;

pub use audit::{AuditWalk, Audited, AuditorType, ObjectAudit, SoundObject, parse_auditor_status};
pub use files::{
    Ext, FileInfo, FragPref, OnDiskFiles, Scheme, Want, get_ondisk_files, make_on_disk_filename,
};
pub use fragment::{Placed, make_fragment_filename};
pub use hashes::SeenObjects;
pub use locks::LockGuard;
pub use manager::{DiskFileConf, DiskFileManager, DiskFileRouter, HashesIter, Listed, TimestampSet};
pub use metadata::{Metadata, MetadataError, read_metadata, write_metadata};
pub use open::{OpenDiskFile, SmallRead};
pub use quarantine::quarantine_dir_renamer;
pub use reader::{Reader, ReaderOptions};
pub use relink::{LinkError, SuffixLinker};
pub use suffix_hashes::{HexMd5, SuffixHash, SuffixHashes, parse_hashes};
pub use writer::Writer;

/// The largest object that [`OpenDiskFile::read_small`] reads and [`DiskFile::put_small`] should be given.
pub const SMALL_OBJECT: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum DiskFileError {
    #[error("object does not exist")]
    NotExist,
    #[error("object was deleted at {timestamp:?}")]
    Deleted { timestamp: Timestamp, metadata: Metadata },
    #[error("object has expired")]
    Expired { timestamp: Timestamp, metadata: Metadata },
    /// It was corrupt and lies in quarantine now: whoever asks again finds nothing.
    #[error("quarantined: {0}")]
    Quarantined(String),
    #[error("client path does not match path stored in object metadata")]
    Collision,
    /// Files vanished between listing and opening: the call may succeed if tried again.
    #[error("object changed while it was being opened")]
    StateChanged,
    /// What was written is not what its ETag says.
    #[error("data does not match its ETag")]
    WrongEtag,
    #[error("no space left on device")]
    NoSpace,
    #[error("device is not available")]
    DeviceUnavailable,
    #[error("file system does not support extended attributes")]
    XattrNotSupported,
    #[error("timed out waiting for the lock on {}", .0.display())]
    LockTimeout(PathBuf),
    #[error("{what} {}: {source}", .path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl DiskFileError {
    fn io(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        DiskFileError::Io { what, path: path.into(), source: source.into() }
    }

    /// As [`DiskFileError::io`], for calls that take up space.
    fn write(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match fs::is_no_space(&source) {
            true => DiskFileError::NoSpace,
            false => DiskFileError::io(what, path, source),
        }
    }

    /// Nothing to serve: never there, deleted, expired, or just found to be corrupt.
    pub fn is_not_exist(&self) -> bool {
        use DiskFileError::*;
        matches!(self, NotExist | Deleted { .. } | Expired { .. } | Quarantined(_) | StateChanged)
    }
}

/// Where one object lives on one device. Cheap to clone; holds no file open.
#[derive(Clone)]
pub struct DiskFile {
    place: Arc<Place>,
    logger: Logger,
    open_expired: bool,
    next_part_power: Option<u32>,
    frag_index: Option<u32>,
    frag_prefs: Option<Arc<[FragPref]>>,
}

struct Place {
    manager: Arc<DiskFileManager>,
    device_path: PathBuf,
    partition: u32,
    hash: ObjHash,
    /// The hash dir.
    datadir: PathBuf,
    /// `/account/container/object`; unknown if only the hash dir was given: then the metadata tells.
    name: Option<String>,
}

impl Place {
    fn suffix_dir(&self) -> &Path {
        self.datadir.parent().expect("a hash dir lies in a suffix dir")
    }

    fn partition_dir(&self) -> &Path {
        self.suffix_dir().parent().expect("a suffix dir lies in a partition")
    }
}

impl DiskFile {
    /// Marks what it logs with a request's transaction.
    pub fn logger(mut self, logger: &Logger) -> Self {
        self.logger = logger.clone();
        self
    }

    /// Opens expired objects as well.
    pub fn open_expired(mut self, open_expired: bool) -> Self {
        self.open_expired = open_expired;
        self
    }

    /// While the part power is being increased: also link what is written into the partition to be (or clean up in
    /// the partition that was).
    pub fn next_part_power(mut self, next_part_power: Option<u32>) -> Self {
        self.next_part_power = next_part_power;
        self
    }

    /// EC: opens no other fragment, and is the one that is written if the metadata tell none.
    pub fn frag_index(mut self, frag_index: Option<u32>) -> Self {
        self.frag_index = frag_index;
        self
    }

    /// EC: which fragments to open. Any preferences, even none, open such as are not durable.
    pub fn frag_prefs(mut self, frag_prefs: Option<Arc<[FragPref]>>) -> Self {
        self.frag_prefs = frag_prefs;
        self
    }

    fn want(&self) -> Want<'_> {
        Want { frag_index: self.frag_index, frag_prefs: self.frag_prefs.as_deref() }
    }

    pub fn manager(&self) -> &Arc<DiskFileManager> {
        &self.place.manager
    }

    pub fn hash(&self) -> ObjHash {
        self.place.hash
    }

    pub fn partition(&self) -> u32 {
        self.place.partition
    }

    /// `/account/container/object`, if known.
    pub fn name(&self) -> Option<&str> {
        self.place.name.as_deref()
    }

    /// The hash dir.
    pub fn datadir(&self) -> &Path {
        &self.place.datadir
    }

    pub fn device_path(&self) -> &Path {
        &self.place.device_path
    }

    /// The metadata of an object as [`DiskFile::open`] finds it.
    pub fn read_metadata(&self, now: Option<Timestamp>) -> Result<Metadata, DiskFileError> {
        Ok(self.open(now)?.into_metadata())
    }

    /// Replaces the metadata (POST): writes a `.meta` file. The name is added.
    pub fn write_metadata(&self, metadata: Metadata) -> Result<(), DiskFileError> {
        Writer::open(self, None, Ext::Meta)?.put(metadata)?.commit()
    }

    /// Writes a tombstone; removes what is older.
    pub fn delete(&self, timestamp: Timestamp) -> Result<(), DiskFileError> {
        self.delete_staged(timestamp).finish()
    }

    /// The same as a work that stops where it needs a sync.
    pub fn delete_staged(&self, timestamp: Timestamp) -> fs::Step<Result<(), DiskFileError>> {
        let mut metadata = Metadata::new();
        metadata.insert("X-Timestamp", timestamp.internal());
        let opened = fs::Step::Done(Writer::open(self, None, Ext::Tombstone));
        let placed = opened.and_then(|writer| writer.put_staged(metadata));
        placed.and_then(|placed| placed.finish_staged(true))
    }

    /// Starts a PUT. `size` if known: the space is reserved.
    pub fn writer(&self, size: Option<u64>) -> Result<Writer, DiskFileError> {
        Writer::open(self, size, Ext::Data)
    }

    /// A whole PUT of a small object, whose ETag and length are in `metadata` already.
    pub fn put_small(&self, data: &[u8], metadata: Metadata) -> Result<(), DiskFileError> {
        let (writer, _) = self.write_small(data)?;
        writer.put(metadata)?.commit()
    }

    /// The data of a small object, whose ETag is known. Also tells how long writing took.
    pub fn write_small(&self, data: &[u8]) -> Result<(Writer, Duration), DiskFileError> {
        let mut writer = Writer::open(self, Some(data.len() as u64), Ext::Data)?.without_etag();
        let began = Instant::now();
        writer.append(data)?;
        Ok((writer, began.elapsed()))
    }
}

#[cfg(test)]
mod fragment_tests;
#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod tests;
