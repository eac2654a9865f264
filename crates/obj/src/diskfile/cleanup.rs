//! Removes from a hash dir what no version of the object needs any more: obsolete files, old tombstones, old strays.
//!
//! Unlinking is never synced: a file that comes back after a crash is as obsolete as before. It happens only after the
//! file that supersedes it is on disk, or has been seen by a listing: the journal keeps the order.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Timestamp;
use common::fs::{fail, remove_empty_dir};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, statat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::files::{FileInfo, OnDiskFiles, get_ondisk_files, is_rsync_tempfile};
use super::listing::{Names, open_dir};
use super::manager::DiskFileManager;
use super::{DiskFile, DiskFileError, Want};

/// What a hash dir holds after its cleanup.
#[derive(Default)]
pub(super) struct Cleaned {
    /// The object's state; files removed for their age are not part of it.
    pub info: OnDiskFiles,
    /// Listing places of what was removed.
    pub removed: Vec<usize>,
}

impl DiskFile {
    /// Cleans up the open hash dir, and the object's hash dir `other` in another partition. What goes wrong is logged.
    pub(super) fn clean_up(&self, dir: BorrowedFd<'_>, other: Option<PathBuf>) {
        let (manager, datadir) = (self.manager(), self.datadir());
        let mut names = Names::default();
        match manager.cleanup_listed(
            dir,
            &|| datadir.to_owned(),
            &mut names,
            manager.clock().now(),
            Want::default(),
        ) {
            Ok(cleaned) if cleaned.removed.len() == names.len() => {
                // Written too late: it was obsolete at once. Only an empty directory goes.
                let _ = remove_empty_dir(datadir);
            }
            Ok(_) => {}
            Err(errno) => {
                self.logger.error(format_args!("Problem cleaning up {}: {errno}", datadir.display()));
            }
        }
        if let Some(other) = other {
            self.clean_up_relinked(&other);
        }
    }
}

impl DiskFileManager {
    /// Cleans up the hash dir at `path`. A missing one is empty.
    pub(super) fn cleanup_ondisk_files(&self, path: &Path, names: &mut Names) -> Result<Cleaned, Errno> {
        let dir = match open_dir(CWD, path) {
            Err(Errno::NOENT) => return Ok(Cleaned::default()),
            result => result?,
        };
        let now = self.clock().now();
        let cleaned = self.cleanup_listed(dir.as_fd(), &|| path.to_owned(), names, now, Want::default())?;
        if cleaned.removed.len() == names.len() {
            self.remove_empty(path, || rustix::fs::rmdir(path));
        }
        Ok(cleaned)
    }

    /// The same for the entry `name` of the open directory `parent`; leaves its listing in `names`. What is wanted is
    /// the object's state, and of no age to be removed.
    pub(super) fn cleanup_at(
        &self,
        parent: impl AsFd,
        name: &CStr,
        parent_path: &Path,
        names: &mut Names,
        now: Timestamp,
        want: Want<'_>,
    ) -> Result<Cleaned, Errno> {
        names.clear();
        let dir = match open_dir(&parent, name) {
            Err(Errno::NOENT) => return Ok(Cleaned::default()),
            result => result?,
        };
        let path = || parent_path.join(String::from_utf8_lossy(name.to_bytes()).as_ref());
        let cleaned = self.cleanup_listed(dir.as_fd(), &path, names, now, want)?;
        if cleaned.removed.len() == names.len() {
            self.remove_empty(&path(), || unlinkat(parent, name, AtFlags::REMOVEDIR));
        }
        Ok(cleaned)
    }

    fn cleanup_listed(
        &self,
        dir: BorrowedFd<'_>,
        path: &dyn Fn() -> PathBuf,
        names: &mut Names,
        now: Timestamp,
        want: Want<'_>,
    ) -> Result<Cleaned, Errno> {
        match names.read(dir) {
            // Removed since it was opened, as empty hash dirs are; a writer makes its own again.
            Err(Errno::NOENT) => return Ok(Cleaned::default()),
            result => result?,
        }
        names.sort_descending();
        let mut info = get_ondisk_files(names.iter(), self.scheme(), want);
        self.log_unexpected(&info, names, path);

        let reclaimable = |timestamp: Timestamp| {
            now.as_secs_f64() - timestamp.as_secs_f64() > self.conf().reclaim_age.as_secs_f64()
        };
        let mut removed = Vec::new();
        let mut remove = |file: &FileInfo| {
            // Whoever removed it before us is welcome; whoever keeps us from it, the next cleanup tells.
            let _ = fail::hit("cleanup.unlink")
                .map(|()| unlinkat(dir, names.c_str(file.index), AtFlags::empty()));
            removed.push(file.index);
        };
        if let Some(tombstone) = info.tombstone.filter(|file| reclaimable(file.timestamp)) {
            remove(&tombstone);
            info.tombstone = None;
        }
        for file in &info.possible_reclaim {
            let settled = file.durable || self.is_older_than_commit_window(dir, names.c_str(file.index), now);
            if reclaimable(file.timestamp) && settled {
                remove(file);
            }
        }
        info.obsolete.iter().for_each(remove);
        Ok(Cleaned { info, removed })
    }

    /// A fragment without its commit may be one of a PUT under way, however old its timestamp.
    fn is_older_than_commit_window(&self, dir: BorrowedFd<'_>, name: &CStr, now: Timestamp) -> bool {
        is_file_older(dir, name, now, self.conf().commit_window)
    }

    pub(super) fn log_unexpected(&self, info: &OnDiskFiles, names: &Names, path: &dyn Fn() -> PathBuf) {
        for &index in &info.unexpected {
            let file = path().join(names.lossy(index));
            if is_rsync_tempfile(names.get(index)) {
                self.logger().debug(format_args!("Rsync tempfile: {}", file.display()));
            } else {
                let why = "Invalid Timestamp value in filename";
                self.logger().warning(format_args!("Unexpected file {}: {why}", file.display()));
            }
        }
    }

    fn remove_empty(&self, path: &Path, rmdir: impl FnOnce() -> Result<(), Errno>) {
        if fail::hit("cleanup.rmdir").is_err() {
            return;
        }
        match rmdir() {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => {
                let err = DiskFileError::io("Error cleaning up empty hash directory", path, errno);
                self.logger().debug(err);
            }
        }
    }
}

/// Whether a file was written longer ago than `age`, or no age is asked for. One that is gone is not.
pub(super) fn is_file_older(dir: impl AsFd, name: impl Arg, now: Timestamp, age: Duration) -> bool {
    if age.is_zero() {
        return true;
    }
    let Ok(stat) = statat(dir, name, AtFlags::empty()) else { return false };
    now.as_secs_f64() - (stat.st_mtime as f64 + stat.st_mtime_nsec as f64 / 1e9) > age.as_secs_f64()
}
