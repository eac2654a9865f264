//! While the partition power is increased, an object lies in two partitions: hard links of the same files.
//!
//! Before the rings change, a write is also linked into the partition to be; afterwards it goes there by itself, and
//! what it supersedes is also cleaned up in the partition that was. Swift: `relink_paths` and `_part_power_cleanup`.
//!
//! What was there before is linked by the relinker, a whole suffix with one [`SuffixLinker`].

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::hash::storage_directory;
use common::{Suffix, fs};

use super::files::{Want, get_ondisk_files};
use super::hashes::{Invalidation, invalidate_suffixes_unsynced};
use super::listing::Names;
use super::{DiskFile, DiskFileError, DiskFileManager};

impl DiskFile {
    /// Links `target`, which has just been written, into its next partition. Returns the object's hash dir in the
    /// other partition, to be cleaned up; `None` if the partition power is not being increased. A link that fails is
    /// logged: the relinker will make it.
    pub(super) fn relink(&self, target: &Path) -> Option<PathBuf> {
        let Some(next_dir) = self.next_datadir() else { return self.other_datadir() };
        let new_target = next_dir.join(target.file_name()?);
        let (from, to) = (target.display(), new_target.display());
        self.logger.debug(format_args!("Relinking {from} to {to} due to next_part_power set"));
        if let Err(err) = self.link_into(target, &new_target, &next_dir) {
            self.logger.error(format_args!("Relinking {from} to {to} failed: {err}"));
        }
        Some(next_dir)
    }

    /// The hash dir in the partition to be, if it is another one.
    pub(super) fn next_datadir(&self) -> Option<PathBuf> {
        Some(self.datadir_in(self.next_part_power?)).filter(|next_dir| next_dir != self.datadir())
    }

    /// The hash dir in the partition to be or, if this is that, in the one that was.
    fn other_datadir(&self) -> Option<PathBuf> {
        let previous = || Some(self.datadir_in(self.next_part_power?.checked_sub(1)?));
        self.next_datadir().or_else(previous)
    }

    /// Gives a committed fragment its name in the next partition too, where [`DiskFile::relink`] has put it under
    /// `uncommitted`. Returns what `relink` does.
    pub(super) fn relink_committed(&self, uncommitted: &Path, target: &Path) -> Option<PathBuf> {
        let other_dir = self.relink(target);
        if let Some(next_dir) = self.next_datadir()
            && let Some(old) = uncommitted.file_name()
        {
            // One that stays is of the same timestamp, and goes when that is superseded.
            let old = next_dir.join(old);
            if let Err(err) = fs::remove_file(&old) {
                self.logger.error(format_args!("Renaming new path {} failed: {err}", old.display()));
            }
        }
        other_dir
    }

    fn datadir_in(&self, part_power: u32) -> PathBuf {
        let datadir = self.place.partition_dir().parent().expect("a partition lies in a datadir");
        storage_directory(datadir, self.hash().partition(part_power), &self.hash())
    }

    fn link_into(&self, target: &Path, new_target: &Path, next_dir: &Path) -> Result<(), DiskFileError> {
        let next_partition = next_dir.ancestors().nth(2).expect("a hash dir lies in a partition");
        let failed = |err| DiskFileError::write("cannot link", new_target, err);
        let created = fs::mkdirs_below(self.device_path(), next_dir).map_err(failed)?;
        let suffix = self.hash().suffix();
        let invalidation = Invalidation::begin(next_partition, self.device_path(), &[suffix])?;
        // A crash before the link leaves one to be made by the relinker.
        invalidation.publish(|| match fs::hard_link(target, new_target) {
            Ok(()) => Ok(()),
            Err(err) if err.kind() == ErrorKind::NotFound && !target.exists() => Ok(()), // superseded meanwhile
            Err(err) if err.kind() == ErrorKind::AlreadyExists && is_same_file(target, new_target) => Ok(()),
            Err(err) => Err(failed(err)),
        })?;
        fs::fsync_dirs(next_dir, created).map_err(failed)
    }

    pub(super) fn clean_up_relinked(&self, datadir: &Path) {
        if let Err(errno) = self.manager().cleanup_ondisk_files(datadir, &mut Names::default()) {
            self.logger.error(format_args!("Problem cleaning up {}: {errno}", datadir.display()));
        }
    }
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.ino() == b.ino(),
        (Err(_), _) => true, // superseded meanwhile
        _ => false,
    }
}

/// Why a file could not be linked into its new partition.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("another file of that name is there")]
    Collision,
    #[error(transparent)]
    Disk(#[from] DiskFileError),
}

/// Links files of hash dirs into one suffix of their new partition.
pub struct SuffixLinker {
    device_path: PathBuf,
    partition_dir: PathBuf,
    suffix: Suffix,
    /// Once there was something to link.
    invalidation: Option<Invalidation>,
    /// Directories that have been made, and not synced.
    made: usize,
}

impl SuffixLinker {
    pub fn new(device_path: &Path, partition_dir: &Path, suffix: Suffix) -> Self {
        let (device_path, partition_dir) = (device_path.to_owned(), partition_dir.to_owned());
        SuffixLinker { device_path, partition_dir, suffix, invalidation: None, made: 0 }
    }

    pub fn partition_dir(&self) -> &Path {
        &self.partition_dir
    }

    /// Gives `old` the name `new`; false if it has that name already, or is gone. A crash may take the link away again
    /// until the file system is synced.
    pub fn link(&mut self, old: &Path, new: &Path) -> Result<bool, LinkError> {
        let failed = |err| LinkError::Disk(DiskFileError::write("cannot link", new, err));
        let is_there = |err: std::io::Error| match is_same_file(old, new) {
            true => Ok(false),
            false if new.exists() => Err(LinkError::Collision),
            false => Err(failed(err)),
        };
        if new.symlink_metadata().is_ok() {
            return is_there(ErrorKind::AlreadyExists.into());
        }
        let new_dir = new.parent().unwrap_or(&self.partition_dir);
        self.made += fs::mkdirs_below(&self.device_path, new_dir).map_err(failed)?;
        let invalidation = match &mut self.invalidation {
            Some(invalidation) => invalidation,
            none => none.insert(Invalidation::begin(&self.partition_dir, &self.device_path, &[self.suffix])?),
        };
        // A crash before the link, or one that takes it away: the relinker has not marked the partition as done.
        let linked = invalidation.publish_one(|| match fs::hard_link(old, new) {
            Ok(()) => Ok(true),
            Err(err) if err.kind() == ErrorKind::NotFound && !old.exists() => Ok(false),
            Err(err) if err.kind() == ErrorKind::AlreadyExists => is_there(err),
            Err(err) => Err(failed(err)),
        });
        if let Err(LinkError::Disk(_)) = linked {
            // It may hold the lock.
            self.invalidation = None;
        }
        linked
    }

    /// Makes the links in a hash dir durable.
    pub fn sync(&mut self, hash_dir: &Path) -> std::io::Result<()> {
        fs::fsync_dirs(hash_dir, self.made)?;
        self.made = 0;
        Ok(())
    }
}

impl DiskFileManager {
    /// Cleans up a hash dir; the names that are left, newest first.
    pub fn cleanup_hash_dir(&self, path: &Path) -> Result<Vec<OsString>, DiskFileError> {
        let mut names = Names::default();
        let cleaned = self.cleanup_ondisk_files(path, &mut names);
        let cleaned = cleaned.map_err(|errno| DiskFileError::io("cannot clean up", path, errno))?;
        let kept = (0..names.len()).filter(|index| !cleaned.removed.contains(index));
        Ok(kept.map(|index| OsString::from_vec(names.get(index).to_vec())).collect())
    }

    /// Those of `names`, newest first, which the others make obsolete.
    pub fn obsolete<'n>(&self, names: &[&'n OsStr]) -> Vec<&'n OsStr> {
        let chosen =
            get_ondisk_files(names.iter().map(|name| name.as_bytes()), self.scheme(), Want::default());
        chosen.obsolete.iter().map(|file| names[file.index]).collect()
    }

    /// Marks a suffix, by its directory, to be rehashed without what has been removed from it.
    pub fn invalidate_emptied(&self, device_path: &Path, suffix_dir: &Path) -> Result<(), DiskFileError> {
        let name = suffix_dir.file_name().and_then(OsStr::to_str).and_then(Suffix::parse);
        let (Some(suffix), Some(partition_dir)) = (name, suffix_dir.parent()) else { return Ok(()) };
        invalidate_suffixes_unsynced(partition_dir, device_path, &[suffix])
    }
}
