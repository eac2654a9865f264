//! Opening and reading what is in memory, without ever waiting for a disk: so it needs no thread of the device.
//!
//! Only for an object that is known (`known.rs`) and plain: one data file, no POST, no expiry. Its path is walked in the
//! kernel's cache of names alone (`RESOLVE_CACHED`, Linux 5.12), what has been found is compared with what is known, and the data are read
//! from the page cache or not at all (`RWF_NOWAIT`). Whatever is missing there, or is not as it should be, is left to
//! [`DiskFile::open_known`] on a thread of the device, which finds out why. Nothing here changes or quarantines anything.
//!
//! No look at the mount point either: the data file is on the file system that it was on when it became known.
//!
//! In the same way the hashes of a partition are read where there is nothing to hash: `hashes.invalid` is empty, and what
//! `hashes.pkl` says after that is as good as what [`DiskFileManager::rehash`] would find there. A device that must be a mount point
//! is one if the partition is not on the file system that the devices' directory is on; where that is in doubt, it is left to the thread.

use std::io::IoSliceMut;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::fs::{Stamp, drive_path};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::files::get_ondisk_files;
use super::hashes::{HASH_FILE, INVALIDATIONS_FILE};
use super::open::{OpenDiskFile, parse_int};
use super::suffix_hashes::{HashesFile, SuffixHashes};
use super::{DiskFile, DiskFileManager};

/// Larger ones are worth a thread, as checking them takes longer than waking it.
const MOST: u64 = 16 * 1024;
/// The same for a hashes.pkl: of some 1,300 suffixes.
const MOST_HASHES: u64 = 64 * 1024;

impl DiskFile {
    /// The object, if it is known and can be opened without the disk.
    pub fn open_in_memory(&self) -> Option<OpenDiskFile> {
        let known = self.manager().known.look_up(self.datadir())?;
        let files = get_ondisk_files(known.names.iter(), self.manager().scheme(), self.want());
        let data = files.data.as_ref().filter(|_| files.meta.is_none() && files.unexpected.is_empty())?;
        let path = self.datadir().join(known.names.lossy(data.index));
        let file = open_cached(&path)?;
        // Looked at after the file was opened by a name of that time: if nothing has changed, it is the one that was known.
        if Stamp::at(self.datadir()).ok()? != known.dir {
            return None;
        }
        let stat = fstat(&file).ok()?;
        let metadata = known.metadata(data.index, Stamp::of(&stat))?;
        let is_plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && metadata.get("X-Delete-At").is_none()
            && metadata.get_str("name").is_some_and(|stored| self.name() == Some(stored))
            && metadata.get("Content-Length").and_then(parse_int) == Some(stat.st_size);
        is_plain.then(|| OpenDiskFile::plain(self, file, path, metadata.clone(), stat.st_size as u64, &files))
    }
}

impl OpenDiskFile {
    /// The whole data, if it is small, in memory, and what its ETag says.
    pub fn read_in_memory(&self) -> Option<Vec<u8>> {
        if self.content_length() > MOST {
            return None;
        }
        let data = read_cached(&self.file, self.content_length())?;
        self.what_is_wrong(&data, true).is_none().then_some(data)
    }
}

impl DiskFileManager {
    /// The hashes of a partition, if there is nothing to hash and no need of the disk.
    pub fn hashes_in_memory(&self, device: &str, partition: u32) -> Option<SuffixHashes> {
        let devices = &self.conf().devices;
        let partition_dir = self.partition_dir(&drive_path(devices, device)?, partition);
        // Before hashes.pkl is opened: names go from here only when it is there without their hashes.
        let invalidations = fstat(open_cached(&partition_dir.join(INVALIDATIONS_FILE))?).ok()?;
        if invalidations.st_size != 0 {
            return None;
        }
        if self.conf().mount_check && fstat(open_cached(devices)?).ok()?.st_dev == invalidations.st_dev {
            return None;
        }
        let hashes = open_cached(&partition_dir.join(HASH_FILE))?;
        let size = u64::try_from(fstat(&hashes).ok()?.st_size).ok().filter(|size| *size <= MOST_HASHES)?;
        let file = HashesFile::from_pickle(&read_cached(&hashes, size)?)?;
        file.is_settled().then_some(file.hashes)
    }
}

fn read_cached(file: &OwnedFd, size: u64) -> Option<Vec<u8>> {
    let mut data = vec![0; size as usize];
    if !data.is_empty() {
        let read = preadv2(file, &mut [IoSliceMut::new(&mut data)], 0, ReadWriteFlags::NOWAIT);
        read.ok().filter(|read| *read == data.len())?;
    }
    Some(data)
}

/// `None` if that might take more than memory, or fails.
fn open_cached(path: &Path) -> Option<OwnedFd> {
    static UNKNOWN: AtomicBool = AtomicBool::new(false);
    if UNKNOWN.load(Ordering::Relaxed) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOATIME;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
        Err(Errno::NOSYS | Errno::INVAL) => {
            // An old kernel, or one that is not asked directly.
            UNKNOWN.store(true, Ordering::Relaxed);
            None
        }
        opened => opened.ok(),
    }
}
