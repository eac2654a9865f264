//! One hash dir: what of it belongs into the new partition, and what may go from the old one.
//!
//! The new place is cleaned up before the old one, so that what is still in the old one and is missing in the new one is
//! never something that was just found obsolete there. What the two hold together decides what is needed: the new place may
//! have newer files by now.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use common::fs;
use service::logs::Logger;

use super::Step;
use super::stats::Stats;
use crate::diskfile::{DiskFileError, DiskFileManager, LinkError, SuffixLinker, quarantine_dir_renamer};

/// A hash dir on its way.
pub(super) struct Location<'a> {
    pub manager: &'a DiskFileManager,
    pub logger: &'a Logger,
    pub device_path: &'a Path,
    pub step: Step,
    pub clobber_hardlink_collisions: bool,
    pub hash_path: &'a Path,
    pub new_hash_path: PathBuf,
}

impl Location<'_> {
    /// Links and, when cleaning up, removes; whether a link was made.
    pub fn process(&self, linker: &mut SuffixLinker, stats: &mut Stats) -> Result<bool, DiskFileError> {
        stats.hash_dirs += 1;
        let new_files = self.manager.cleanup_hash_dir(&self.new_hash_path)?;
        let old_files = self.manager.cleanup_hash_dir(self.hash_path)?;
        let (mut missing_links, mut created_links) = (0, 0);
        for name in self.required(&new_files, &old_files) {
            stats.files += 1;
            if self.step == Step::Cleanup && created_links > 0 {
                // The new place is in sight: the newer meta file must not be missing where the data is.
                linker.sync(&self.new_hash_path).map_err(|err| self.failed("cannot sync", err))?;
            }
            match self.relink(linker, name, false) {
                Some(true) => created_links += 1,
                Some(false) => {}
                None => missing_links += 1,
            }
        }
        stats.linked += created_links;
        stats.errors += missing_links;
        if self.step == Step::Cleanup && missing_links == 0 && !old_files.is_empty() {
            if created_links > 0 {
                // Before the only other name goes.
                linker.sync(&self.new_hash_path).map_err(|err| self.failed("cannot sync", err))?;
            }
            self.remove(&old_files, stats);
        }
        Ok(created_links > 0)
    }

    /// Of the old files, those which the new place must have.
    fn required<'f>(&self, new_files: &'f [OsString], old_files: &'f [OsString]) -> Vec<&'f OsStr> {
        let mut union: Vec<&OsStr> = new_files.iter().chain(old_files).map(OsString::as_os_str).collect();
        union.sort_unstable_by(|a, b| b.cmp(a));
        union.dedup();
        let obsolete = self.manager.obsolete(&union);
        let old = old_files.iter().map(OsString::as_os_str);
        old.filter(|name| !obsolete.contains(name)).collect()
    }

    /// Whether a link had to be made; `None` if there is none after all.
    fn relink(&self, linker: &mut SuffixLinker, name: &OsStr, already_quarantined: bool) -> Option<bool> {
        let (old, new) = (self.hash_path.join(name), self.new_hash_path.join(name));
        let (logger, from, to) = (self.logger, old.display(), new.display());
        match linker.link(&old, &new) {
            Ok(created) => {
                if created {
                    logger.debug(format_args!("Relinking created link: {from} to {to}"));
                }
                return Some(created);
            }
            Err(LinkError::Disk(err)) => {
                logger.error(format_args!("Error relinking: failed to relink {from} to {to}: {err}"));
            }
            Err(LinkError::Collision) if name.as_encoded_bytes().ends_with(b".ts") => {
                // Two servers may each have written one for the same DELETE.
                logger.debug(format_args!(
                    "Relinking: tolerating different inodes for tombstone with same timestamp: {from} to {to}"
                ));
                return Some(false);
            }
            Err(LinkError::Collision) if !self.clobber_hardlink_collisions => {
                logger.error(format_args!(
                    "Error relinking: hardlink collision: {from} to {to} (consider enabling \
                     clobber_hardlink_collisions)"
                ));
            }
            Err(LinkError::Collision) if self.step == Step::Cleanup => {
                // Clients have seen the new one for a while.
                logger.debug(format_args!("Relinking: tolerating hardlink collision: {from} to {to}"));
                return Some(false);
            }
            Err(LinkError::Collision) if already_quarantined => {
                logger.warning(format_args!(
                    "Relinking: hardlink collision persists after quarantine: {from} to {to}"
                ));
            }
            Err(LinkError::Collision) => {
                match quarantine_dir_renamer(self.device_path, &self.new_hash_path) {
                    Ok(quarantined) => {
                        let quarantined = quarantined.display();
                        logger.info(format_args!(
                            "Relinking: clobbering hardlink collision: {to} moved to {quarantined}"
                        ));
                        return self.relink(linker, name, true);
                    }
                    Err(err) => logger.error(format_args!("Error relinking: cannot quarantine {to}: {err}")),
                }
            }
        }
        None
    }

    fn remove(&self, files: &[OsString], stats: &mut Stats) {
        // Before, so that nothing leaves a hash of what is gone. Swift: after, and whatever becomes of it.
        if let Some(suffix_dir) = self.hash_path.parent()
            && let Err(err) = self.manager.invalidate_emptied(self.device_path, suffix_dir)
        {
            let path = self.hash_path.display();
            self.logger.warning(format_args!("Error invalidating suffix for {path}: {err}"));
            stats.errors += 1;
            return;
        }
        for name in files {
            let old = self.hash_path.join(name);
            match fs::remove_file(&old) {
                Ok(()) => {
                    stats.removed += 1;
                    self.logger.debug(format_args!("Removed {}", old.display()));
                }
                Err(err) => {
                    stats.errors += 1;
                    self.logger.warning(format_args!("Error cleaning up {}: {err}", old.display()));
                }
            }
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> DiskFileError {
        DiskFileError::Io { what, path: self.new_hash_path.clone(), source }
    }
}
