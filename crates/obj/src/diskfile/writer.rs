//! Writing an object file: PUT (`.data`), POST (`.meta`) and DELETE (`.ts`) take the same steps.
//!
//! | step | a crash just after it leaves |
//! |---|---|
//! | make the hash dir, open a file without a name in it (O_TMPFILE) | an empty hash dir, which the next rehash removes |
//! | write data and metadata | the same: a file without a name is gone |
//! | name the suffix in hashes.invalid, sync that | a suffix to be rehashed for nothing |
//! | sync the file | the same |
//! | link it under its name, while the suffix is named in hashes.invalid | the old version or the new one, whole |
//! | sync the hash dir, and the parent of each directory made | the new version: only now the request may succeed |
//! | unlink what it supersedes | obsolete files, which every listing ignores and every cleanup removes |
//!
//! Swift syncs no parents of new directories and hashes.invalid neither. Where the file system has no O_TMPFILE, the
//! file is made in `tmp[-N]` and renamed; a crash leaves it there.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use common::Timestamp;
use common::config::FallocateReserve;
use common::digest::Md5;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, fallocate, fdatasync, fstatvfs, fsync, linkat,
    mkdirat, openat, renameat, stat, unlinkat,
};
use rustix::io::Errno;

use super::files::{Ext, make_on_disk_filename};
use super::hashes::Invalidation;
use super::listing::{Names, open_dir};
use super::metadata::write_metadata;
use super::quarantine::random_hex;
use super::reader::drop_cache;
use super::{DiskFile, DiskFileError, Metadata, SMALL_OBJECT};

/// Others may remove the hash dir while it is empty: it is made again this many times.
const MAX_ATTEMPTS: usize = 3;

/// A file being written. Nobody sees it before [`Writer::put`]; dropping it leaves nothing behind.
pub struct Writer {
    diskfile: DiskFile,
    fd: OwnedFd,
    /// Where there is no O_TMPFILE; taken once renamed.
    tmp_path: Option<PathBuf>,
    /// How many directories had to be made, from the hash dir upwards.
    dirs_created: usize,
    ext: Ext,
    md5: Option<Md5>,
    upload_size: u64,
    last_sync: u64,
}

impl Writer {
    pub(super) fn open(diskfile: &DiskFile, size: Option<u64>, ext: Ext) -> Result<Self, DiskFileError> {
        let mut dirs_created = 0;
        let (fd, tmp_path) = match open_tmpfile(diskfile, &mut dirs_created)? {
            Some(fd) => (fd, None),
            None => open_named_tmpfile(diskfile)?,
        };
        let writer = Writer {
            diskfile: diskfile.clone(),
            fd,
            tmp_path,
            dirs_created,
            ext,
            md5: Some(Md5::new()),
            upload_size: 0,
            last_sync: 0,
        };
        // Deletes are always possible: they are what makes room.
        if ext != Ext::Tombstone {
            writer.reserve(size.unwrap_or(0))?;
        }
        Ok(writer)
    }

    /// Leaves computing the MD5 to the caller.
    pub fn without_etag(mut self) -> Self {
        self.md5 = None;
        self
    }

    fn reserve(&self, size: u64) -> Result<(), DiskFileError> {
        let conf = self.diskfile.manager().conf();
        let failed = |errno| DiskFileError::write("cannot reserve space for", self.diskfile.datadir(), errno);
        if size > 0 && conf.disable_fallocate {
            return Ok(());
        }
        if !conf.fallocate_reserve.is_zero() {
            let fs = fstatvfs(&self.fd).map_err(failed)?;
            let free = i128::from(fs.f_frsize) * i128::from(fs.f_bavail) - i128::from(size);
            let (free, reserve) = match conf.fallocate_reserve {
                FallocateReserve::Bytes(reserve) => (free as f64, reserve as f64),
                FallocateReserve::Percent(reserve) => {
                    (free as f64 / (fs.f_frsize as f64 * fs.f_blocks as f64) * 100.0, reserve)
                }
            };
            // Swift: just the reserve is enough for a file of unknown size, not for one of known size.
            if free < reserve || (size > 0 && free <= reserve) {
                return Err(DiskFileError::NoSpace);
            }
        }
        // What is written at once is allocated at once.
        if size <= SMALL_OBJECT {
            return Ok(());
        }
        match fallocate(&self.fd, FallocateFlags::KEEP_SIZE, 0, size) {
            Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
            Err(errno) => Err(failed(errno)),
        }
    }

    pub fn write(&mut self, mut chunk: &[u8]) -> Result<(), DiskFileError> {
        if let Some(md5) = &mut self.md5 {
            md5.update(chunk);
        }
        while !chunk.is_empty() {
            match rustix::io::write(&self.fd, chunk) {
                Ok(written) => {
                    self.upload_size += written as u64;
                    chunk = &chunk[written..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(DiskFileError::write("cannot write to", self.diskfile.datadir(), errno));
                }
            }
        }
        let unsynced = self.upload_size - self.last_sync;
        if unsynced > 0 && unsynced >= self.diskfile.manager().conf().bytes_per_sync {
            fdatasync(&self.fd)
                .map_err(|errno| DiskFileError::write("cannot sync", self.diskfile.datadir(), errno))?;
            drop_cache(&self.fd, self.last_sync, unsynced);
            self.last_sync = self.upload_size;
        }
        Ok(())
    }

    pub fn upload_size(&self) -> u64 {
        self.upload_size
    }

    /// The MD5 of what has been written so far, in hex; empty after [`Writer::without_etag`].
    pub fn etag(&self) -> String {
        self.md5.as_ref().map_or(String::new(), Md5::hexdigest)
    }

    /// Makes the file durable and visible under the name that the metadata's `X-Timestamp` says (for a POST, its
    /// `Content-Type-Timestamp` too), and removes what it supersedes. `name` is added to the metadata.
    pub fn put(mut self, mut metadata: Metadata) -> Result<(), DiskFileError> {
        let filename = self.filename(&metadata)?;
        if let Some(name) = self.diskfile.name() {
            metadata.insert("name", name);
        }
        let datadir = self.diskfile.datadir().to_owned();
        let target = datadir.join(filename);
        self.finalize(&metadata, &target)?;
        self.sync_dirs_and_clean_up(&datadir, &target)
    }

    /// Makes a fragment durable. Under replication, [`Writer::put`] has done all.
    pub fn commit(&mut self, _timestamp: Timestamp) -> Result<(), DiskFileError> {
        Ok(())
    }

    fn filename(&self, metadata: &Metadata) -> Result<String, DiskFileError> {
        let timestamp = |name| metadata.get_str(name).map(Timestamp::parse);
        let bad =
            || DiskFileError::io("bad timestamp in metadata for", self.diskfile.datadir(), Errno::INVAL);
        let Some(Ok(put)) = timestamp("X-Timestamp") else { return Err(bad()) };
        let ctype = timestamp("Content-Type-Timestamp").transpose().map_err(|_| bad())?;
        Ok(make_on_disk_filename(put, self.ext, ctype))
    }

    fn finalize(&mut self, metadata: &Metadata, target: &Path) -> Result<(), DiskFileError> {
        let failed = |errno| DiskFileError::write("cannot finish", target, errno);
        write_metadata(&self.fd, metadata).map_err(|errno| match errno {
            Errno::OPNOTSUPP => DiskFileError::XattrNotSupported,
            errno => failed(errno),
        })?;
        let place = &self.diskfile.place;
        let suffix = place.hash.suffix();
        let invalidation = Invalidation::begin(place.partition_dir(), &place.device_path, &[suffix])?;
        fsync(&self.fd).map_err(failed)?;
        // A page of a small object costs less to keep than to read again.
        if self.upload_size > SMALL_OBJECT {
            drop_cache(&self.fd, 0, self.upload_size);
        }
        invalidation.publish(|| self.link(target))?;
        Ok(())
    }

    fn link(&mut self, target: &Path) -> Result<(), DiskFileError> {
        let place = self.diskfile.place.clone();
        for attempt in 1.. {
            let linked = match &self.tmp_path {
                Some(tmp_path) => renameat(CWD, tmp_path, CWD, target),
                None => link_tmpfile(&self.fd, target),
            };
            match linked {
                Ok(()) => break,
                Err(Errno::NOENT) if attempt < MAX_ATTEMPTS => {
                    self.dirs_created = self.dirs_created.max(make_dirs(&place.datadir, &place.device_path)?);
                }
                Err(errno) => return Err(DiskFileError::write("cannot link", target, errno)),
            }
        }
        self.tmp_path = None;
        Ok(())
    }

    fn sync_dirs_and_clean_up(&mut self, datadir: &Path, target: &Path) -> Result<(), DiskFileError> {
        let dir = match open_dir(CWD, datadir) {
            Ok(dir) => dir,
            // Somebody wrote a newer version, and it is gone too: we "succeeded" before that.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(DiskFileError::io("cannot open", datadir, errno)),
        };
        fsync(&dir).map_err(|errno| DiskFileError::write("cannot sync", datadir, errno))?;
        fsync_parents(datadir, self.dirs_created)?;
        let relinked_from = self.diskfile.relink(target);
        let manager = self.diskfile.manager();
        let mut names = Names::default();
        match manager.cleanup_dir(dir.as_fd(), datadir, &mut names, manager.clock().now()) {
            Ok(cleaned) if cleaned.removed.len() == names.len() => {
                // Written too late: it was obsolete at once. Only an empty directory goes.
                let _ = rustix::fs::rmdir(datadir);
            }
            Ok(_) => {}
            Err(errno) => {
                let datadir = datadir.display();
                self.diskfile.logger.error(format_args!("Problem cleaning up {datadir}: {errno}"));
            }
        }
        if let Some(other_dir) = relinked_from {
            self.diskfile.clean_up_relinked(&other_dir);
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(tmp_path) = &self.tmp_path
            && let Err(errno) = unlinkat(CWD, tmp_path, AtFlags::empty())
        {
            let tmp_path = tmp_path.display();
            self.diskfile.logger.error(format_args!("Error removing tempfile: {tmp_path}: {errno}"));
        }
    }
}

/// A file without a name in the hash dir, which is made if need be; `None` if the file system cannot.
fn open_tmpfile(diskfile: &DiskFile, dirs_created: &mut usize) -> Result<Option<OwnedFd>, DiskFileError> {
    let datadir = diskfile.datadir();
    let manager = diskfile.manager();
    if !manager.may_use_linkat() {
        *dirs_created = make_dirs(datadir, diskfile.device_path())?;
        return Ok(None);
    }
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut attempt = 1;
    loop {
        match openat(CWD, datadir, flags, Mode::from_raw_mode(0o644)) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) if attempt < MAX_ATTEMPTS => {
                *dirs_created = (*dirs_created).max(make_dirs(datadir, diskfile.device_path())?);
                attempt += 1;
            }
            Err(errno @ (Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL)) => {
                let datadir = datadir.display();
                manager
                    .logger()
                    .debug(format_args!("open({datadir}, O_TMPFILE) failed: {errno}. Using named files"));
                manager.use_linkat.store(false, Ordering::Relaxed);
                return Ok(None);
            }
            Err(errno) => return Err(DiskFileError::write("cannot make a file in", datadir, errno)),
        }
    }
}

fn open_named_tmpfile(diskfile: &DiskFile) -> Result<(OwnedFd, Option<PathBuf>), DiskFileError> {
    let tmp_dir = diskfile.manager().tmp_dir(diskfile.device_path());
    make_dirs(&tmp_dir, diskfile.device_path())?;
    let (fd, path) = make_temp_file(&tmp_dir, "")?;
    Ok((fd, Some(path)))
}

fn make_temp_file(dir: &Path, suffix: &str) -> Result<(OwnedFd, PathBuf), DiskFileError> {
    let path = dir.join(format!("tmp{}{suffix}", random_hex()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match openat(CWD, &path, flags, Mode::from_raw_mode(0o600)) {
        Ok(fd) => Ok((fd, path)),
        Err(errno) => Err(DiskFileError::write("cannot make", path, errno)),
    }
}

/// Gives an O_TMPFILE file a name. A file that has this name already (the same timestamp) is replaced in one step:
/// Swift unlinks it first, so that a crash in between loses a version that was acknowledged.
fn link_tmpfile(fd: impl AsFd, target: &Path) -> Result<(), Errno> {
    let source = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    match linkat(CWD, &source, CWD, target, AtFlags::SYMLINK_FOLLOW) {
        Err(Errno::EXIST) => {}
        result => return result,
    }
    let (dir, name) = (target.parent().ok_or(Errno::INVAL)?, target.file_name().ok_or(Errno::INVAL)?);
    // Left over by a crash, it looks like a temp file of rsync, which is no news in a hash dir.
    let temp = dir.join(format!(".{}.{}", name.to_string_lossy(), &random_hex()[..6]));
    linkat(CWD, &source, CWD, &temp, AtFlags::SYMLINK_FOLLOW)?;
    renameat(CWD, &temp, CWD, target).inspect_err(|_| {
        let _ = unlinkat(CWD, &temp, AtFlags::empty());
    })
}

/// Makes `dir` and what is missing above it, but not `root` or anything above that: a device that is not mounted must
/// not be filled. Returns how many directories were made.
pub(super) fn make_dirs(dir: &Path, root: &Path) -> Result<usize, DiskFileError> {
    let failed = |errno| DiskFileError::write("cannot make directory", dir, errno);
    match mkdirat(CWD, dir, Mode::from_raw_mode(0o777)) {
        Ok(()) => Ok(1),
        Err(Errno::EXIST) => match stat(dir) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(0),
            _ => Err(failed(Errno::NOTDIR)),
        },
        Err(Errno::NOENT) => {
            let parent = dir.parent().filter(|parent| parent.starts_with(root) && *parent != root);
            let parent = parent.ok_or_else(|| failed(Errno::NOENT))?;
            let made = make_dirs(parent, root)?;
            match mkdirat(CWD, dir, Mode::from_raw_mode(0o777)) {
                Ok(()) => Ok(made + 1),
                // Somebody else made it; that its entry gets on disk is ours to see to as well.
                Err(Errno::EXIST) => Ok(made + 1),
                Err(errno) => Err(failed(errno)),
            }
        }
        Err(errno) => Err(failed(errno)),
    }
}

/// Puts the entries of `dir` and of `created - 1` directories above it on disk.
pub(super) fn fsync_parents(dir: &Path, created: usize) -> Result<(), DiskFileError> {
    dir.ancestors().skip(1).take(created).try_for_each(fsync_dir)
}

pub(super) fn fsync_dir(dir: &Path) -> Result<(), DiskFileError> {
    match open_dir(CWD, dir).and_then(fsync) {
        // Removed since, and with it what was to be synced.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(DiskFileError::write("cannot sync", dir, errno)),
    }
}

/// Replaces `target` by a file of `contents`, written in `tmp_dir`. A crash leaves the old file or the new one, and
/// perhaps a temp file; once this returns, the new one.
pub(super) fn write_file_durably(
    target: &Path,
    tmp_dir: &Path,
    contents: &[u8],
) -> Result<(), DiskFileError> {
    let (fd, tmp_path) = make_temp_file(tmp_dir, ".tmp")?;
    let mut rest = contents;
    let written = loop {
        match rustix::io::write(&fd, rest) {
            Ok(written) if written == rest.len() => break fsync(&fd),
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(errno) => break Err(errno),
        }
    };
    if let Err(errno) = written.and_then(|()| renameat(CWD, &tmp_path, CWD, target)) {
        let _ = unlinkat(CWD, &tmp_path, AtFlags::empty());
        return Err(DiskFileError::write("cannot write", target, errno));
    }
    target.parent().map_or(Ok(()), fsync_dir)
}
