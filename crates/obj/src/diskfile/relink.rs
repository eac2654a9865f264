//! While the partition power is increased, an object lies in two partitions: hard links of the same files.
//!
//! Before the rings change, a write is also linked into the partition to be; afterwards it goes there by itself, and
//! what it supersedes is also cleaned up in the partition that was. Swift: `relink_paths` and `_part_power_cleanup`.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::fs;
use common::hash::storage_directory;

use super::hashes::Invalidation;
use super::listing::Names;
use super::{DiskFile, DiskFileError};

impl DiskFile {
    /// Links `target`, which has just been written, into its next partition. Returns the object's hash dir in the
    /// other partition, to be cleaned up; `None` if the partition power is not being increased. A link that fails is
    /// logged: the relinker will make it.
    pub(super) fn relink(&self, target: &Path) -> Option<PathBuf> {
        let next_part_power = self.next_part_power?;
        let next_dir = self.datadir_in(next_part_power);
        if next_dir == self.datadir() {
            return Some(self.datadir_in(next_part_power.checked_sub(1)?));
        }
        let new_target = next_dir.join(target.file_name()?);
        let (from, to) = (target.display(), new_target.display());
        self.logger.debug(format_args!("Relinking {from} to {to} due to next_part_power set"));
        if let Err(err) = self.link_into(target, &new_target, &next_dir) {
            self.logger.error(format_args!("Relinking {from} to {to} failed: {err}"));
        }
        Some(next_dir)
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
