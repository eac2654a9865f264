//! The only place of durable system calls.
//!
//! A file becomes visible under its name in three steps: its data and metadata are written to a file without a name
//! (`O_TMPFILE`) or with a temporary one, `fsync` makes them durable, and only then a link or rename gives it
//! the name; `fsync` of the directory makes the name durable, and of each directory's parent that was made on the
//! way. A crash before the link leaves nothing, or a temporary file that is swept up later; a crash after it and
//! before the directory's `fsync` leaves either the old state or the new one, never a name for half a file.
//!
//! Syncs that many threads wait for are done once for all: of one file (`group_sync`) or of a whole file system
//! (`filesystem_sync`). A write can also stop where it needs a sync and be taken up again after it, so that one thread does
//! many (`staged`).
//!
//! What has been read once need not be read again while a `stamp` says that it is what it was. What nobody will read again soon is
//! read past the page cache (`direct`).
//!
//! Each step has a fail point (`fail`) of its own name, so that tests can stop a process exactly there. Unlike Swift, an
//! `fsync` of a directory that fails is an error here: what can't be made durable isn't acknowledged.

mod direct;
pub mod fail;
mod filesystem_sync;
mod group_sync;
mod journal;
mod lock;
mod staged;
mod stamp;
mod xattr;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags};
use rustix::io::Errno;

pub use direct::{DirectWrites, read_direct};
pub use filesystem_sync::Since;
pub use lock::{LockError, LockedFile, PathLock, lock_file, lock_path, lock_path_limited};
pub use staged::{Staged, Step, sync_together};
pub use stamp::{KernelTime, SETTLED, Stamp};
pub use xattr::{
    METADATA_CHECKSUM_KEY, METADATA_KEY, RawMetadata, read_metadata_xattrs, write_metadata_xattrs,
};

use crate::config::FallocateReserve;

/// Retries of a link or rename whose directory is removed at the same time by another: each of several rehashes may come
/// just after it was made.
const LINK_RETRIES: usize = 16;

/// Makes a directory and its missing parents; returns how many were made. No error if it exists already.
pub fn mkdirs_count(path: &Path) -> io::Result<usize> {
    mkdirs_below(Path::new(""), path)
}

/// The same, but neither `root` nor anything above it is made: a device that is not mounted must not be filled.
pub fn mkdirs_below(root: &Path, path: &Path) -> io::Result<usize> {
    fail::hit("fs.mkdir")?;
    match DirBuilder::new().mode(0o777).create(path) {
        Ok(()) => Ok(1),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(0),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty() && *p != root).ok_or(e)?;
            let above = mkdirs_below(root, parent)?;
            fail::hit("fs.mkdir")?;
            match DirBuilder::new().mode(0o777).create(path) {
                Ok(()) => Ok(above + 1),
                // Somebody else was faster; the names of what we made above still have to become durable.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(above + 1),
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    }
}

/// Makes a directory and its missing parents, and makes their names durable.
pub fn mkdirs(path: &Path) -> io::Result<()> {
    let made = mkdirs_count(path)?;
    if made > 0 {
        // A crash before this may take the new directories away again: nothing refers to them yet.
        fsync_dirs(path.parent().unwrap_or(path), made - 1)?;
    }
    Ok(())
}

/// Makes the entries of a directory durable.
pub fn fsync_dir(path: &Path) -> io::Result<()> {
    fail::hit("fs.fsync_dir")?;
    let dir = OpenOptions::new().read(true).custom_flags(OFlags::DIRECTORY.bits() as i32).open(path)?;
    journal::synced(&dir, || group_sync::fsync(&dir))
}

/// `fsync_dir` of a directory and of as many of its parents as were made for it.
pub fn fsync_dirs(leaf: &Path, dirs_created: usize) -> io::Result<()> {
    let mut dir = leaf;
    fsync_dir(dir)?;
    for _ in 0..dirs_created {
        match dir.parent() {
            Some(parent) => dir = parent,
            None => break,
        }
        fsync_dir(dir)?;
    }
    Ok(())
}

/// Makes a file's data and metadata durable.
pub fn fsync(file: impl AsFd) -> io::Result<()> {
    fail::hit("fs.fsync")?;
    journal::synced(&file, || Ok(rustix::fs::fsync(&file)?))
}

pub fn fdatasync(file: impl AsFd) -> io::Result<()> {
    fail::hit("fs.fdatasync")?;
    journal::synced(&file, || Ok(rustix::fs::fdatasync(&file)?))
}

/// [`fdatasync`] of a file that many threads append to: one sync serves all who wait for it.
pub fn fdatasync_shared(file: impl AsFd) -> io::Result<()> {
    fail::hit("fs.fdatasync")?;
    journal::synced(&file, || group_sync::fdatasync(&file))
}

/// Makes durable what `own` would, which is called unless at least `together` threads wait for the like on the same file
/// system: then one sync of all of it serves them. Never if `together` is 0.
pub fn sync_with_others(
    since: Since<'_>,
    together: usize,
    own: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    filesystem_sync::sync(since, 1, together, own)
}

/// Makes everything durable that has been done so far to the file system that `path` is on.
pub fn sync_filesystem(path: &Path) -> io::Result<()> {
    fail::hit("fs.syncfs")?;
    let file = std::fs::File::open(path)?;
    journal::synced_below(path, || Ok(rustix::fs::syncfs(&file)?))
}

/// Renames without making it durable, and makes the parents of `new` if they are missing. Returns how many.
pub fn rename(old: &Path, new: &Path) -> io::Result<usize> {
    fail::hit("fs.rename")?;
    let dir = parent_of(new)?;
    let mut made = 0;
    for attempt in 0..=LINK_RETRIES {
        match rename_once(old, new) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && attempt < LINK_RETRIES => {
                made = made.max(mkdirs_count(dir)?);
            }
            Err(e) => return Err(e),
            Ok(()) => break,
        }
    }
    Ok(made)
}

/// Renames a file that is there, in directories that are there: nothing is made. Not durable by itself.
pub fn rename_present(old: &Path, new: &Path) -> io::Result<()> {
    fail::hit("fs.rename")?;
    rename_once(old, new)
}

/// Renames a file or directory, but not over one that exists: that is an error of kind `AlreadyExists`.
pub fn rename_noreplace(old: &Path, new: &Path) -> io::Result<()> {
    fail::hit("fs.rename")?;
    let cwd = CWD;
    Ok(rustix::fs::renameat_with(cwd, old, cwd, new, rustix::fs::RenameFlags::NOREPLACE)?)
}

/// Gives a file a second name. Not durable by itself.
pub fn hard_link(old: &Path, new: &Path) -> io::Result<()> {
    fail::hit("fs.hard_link")?;
    std::fs::hard_link(old, new)
}

#[allow(clippy::disallowed_methods)] // the one caller of rename
fn rename_once(old: &Path, new: &Path) -> io::Result<()> {
    std::fs::rename(old, new)
}

/// Swift's `renamer`: renames, makes missing parents and makes the new name durable.
pub fn rename_durable(old: &Path, new: &Path) -> io::Result<()> {
    let made = rename(old, new)?;
    // A crash here leaves the old name or the new one.
    fsync_dirs(parent_of(new)?, made)
}

/// Writes a whole file under a temporary name and renames it into place, durably. What a crash leaves is the old file or
/// the new one, and perhaps a file named `.NAME.PID.N.tmp` beside it.
pub fn write_file_durable(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_file_via(path, parent_of(path)?, contents, true)
}

/// The same with the temporary file in `tmp_dir` (of the same filesystem), and durable only if asked.
pub fn write_file_via(path: &Path, tmp_dir: &Path, contents: &[u8], durable: bool) -> io::Result<()> {
    let (mut file, tmp) = mkstemp(tmp_dir, file_name(path))?;
    let written = (|| {
        fail::hit("fs.write_file")?;
        io::Write::write_all(&mut file, contents)?;
        if durable {
            fsync(&file)?;
            rename_durable(&tmp, path)
        } else {
            rename(&tmp, path).map(drop)
        }
    })();
    if written.is_err() {
        // Best effort: the error that is reported is the first one.
        let _ = std::fs::remove_file(&tmp);
    }
    written
}

/// The same with a temporary file of that very name, which takes the place of one that a crash has left: for files of
/// which only one process writes.
pub fn write_file_as(path: &Path, tmp: &Path, contents: &[u8]) -> io::Result<()> {
    fail::hit("fs.create")?;
    let mut file = File::create(tmp)?;
    fail::hit("fs.write_file")?;
    io::Write::write_all(&mut file, contents)?;
    fsync(&file)?;
    rename_durable(tmp, path)
}

/// A new file of a unique name in `dir`, which is made if it is missing.
fn mkstemp(dir: &Path, hint: &str) -> io::Result<(File, PathBuf)> {
    fail::hit("fs.create")?;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".{hint}.{}.{unique}.tmp", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                mkdirs_count(dir)?;
            }
            Err(e) => return Err(e),
        }
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or("file")
}

fn parent_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no parent"))
}

/// A file that is being written and has no final name yet. Dropped before `link`, it is gone.
#[derive(Debug)]
pub struct TmpFile {
    file: File,
    /// A temporary name, where the filesystem has no files without a name.
    path: Option<PathBuf>,
    /// Directories made for the target so far, and whether these are on disk.
    dirs_created: usize,
    dirs_durable: bool,
    /// Must exist: see `mkdirs_below`.
    root: PathBuf,
    /// After which it was written.
    opened: Instant,
}

impl TmpFile {
    /// A file for `dir`: without a name in there if the filesystem can do that, or else of a temporary name in
    /// `tmp_dir`. Makes missing directories.
    pub fn create(dir: &Path, tmp_dir: &Path, use_tmpfile: bool) -> io::Result<Self> {
        Self::create_below(Path::new(""), dir, tmp_dir, use_tmpfile)
    }

    /// The same on a device mounted at `root`, which is not made if it is missing.
    pub fn create_below(root: &Path, dir: &Path, tmp_dir: &Path, use_tmpfile: bool) -> io::Result<Self> {
        fail::hit("fs.create")?;
        let root = root.to_owned();
        if use_tmpfile {
            let mut dirs_created = 0;
            for _ in 0..=LINK_RETRIES {
                match open_tmpfile(dir) {
                    Ok(file) => {
                        return Ok(Self {
                            file,
                            path: None,
                            dirs_created,
                            dirs_durable: false,
                            root,
                            opened: Instant::now(),
                        });
                    }
                    Err(Errno::NOENT) => dirs_created = dirs_created.max(mkdirs_below(&root, dir)?),
                    // Kernels or filesystems without O_TMPFILE.
                    Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => break,
                    Err(e) => return Err(e.into()),
                }
            }
        }
        let dirs_created = mkdirs_below(&root, dir)?;
        mkdirs_below(&root, tmp_dir)?;
        let (file, path) = mkstemp(tmp_dir, "put")?;
        Ok(Self { file, path: Some(path), dirs_created, dirs_durable: false, root, opened: Instant::now() })
    }

    /// Whether it has a temporary name, as the filesystem knows no files without one.
    pub fn is_named(&self) -> bool {
        self.path.is_some()
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    /// For [`sync_with_others`].
    pub fn since(&self) -> Since<'_> {
        Since { file: self.file.as_fd(), opened: self.opened }
    }

    /// How many directories were made for it, its own and those above.
    pub fn dirs_created(&self) -> usize {
        self.dirs_created
    }

    /// They are on disk by now, if they are still there.
    pub fn dirs_are_durable(&mut self) {
        self.dirs_durable = true;
    }

    /// Gives the file its name, replacing what has it. Neither the file nor the name is made durable: `fsync` comes
    /// before, `fsync_dirs` of the target's directory with the returned number of directories that are not durable after.
    pub fn link(&mut self, target: &Path) -> io::Result<usize> {
        fail::hit("fs.link")?;
        match self.path.take() {
            None => self.with_dirs_of(target, || link_fd(&self.file, target)),
            Some(tmp) => match self.with_dirs_of(target, || rename_once(&tmp, target)) {
                Ok(made) => Ok(made),
                Err(e) => {
                    self.path = Some(tmp);
                    Err(e)
                }
            },
        }
    }

    /// Tries again with the target's directories made anew if they have been removed.
    fn with_dirs_of(&self, target: &Path, mut link: impl FnMut() -> io::Result<()>) -> io::Result<usize> {
        let mut made = if self.dirs_durable { 0 } else { self.dirs_created };
        for _ in 0..LINK_RETRIES {
            match link() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    made = made.max(self.dirs_created).max(mkdirs_below(&self.root, parent_of(target)?)?);
                }
                other => return other.map(|()| made),
            }
        }
        link().map(|()| made)
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Best effort: a file that stays is swept from the tmp directory after reclaim_age.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open_tmpfile(dir: &Path) -> Result<File, Errno> {
    fail::hit("fs.open_tmpfile").map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, rustix::fs::Mode::from_raw_mode(0o644)).map(File::from)
}

/// Links a file without a name to one that nothing has. Kernels before 6.10 let only root name it by its descriptor; the detour
/// over `/proc` is everybody's.
fn link_fd_at(file: &File, path: &Path) -> rustix::io::Result<()> {
    static DETOUR: AtomicBool = AtomicBool::new(false);
    if !DETOUR.load(Ordering::Relaxed) {
        match rustix::fs::linkat(file, "", CWD, path, AtFlags::EMPTY_PATH) {
            // Also if the directory is gone.
            Err(Errno::NOENT) => {}
            other => return other,
        }
    }
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = rustix::fs::linkat(CWD, &source, CWD, path, AtFlags::SYMLINK_FOLLOW);
    if linked.is_ok() {
        DETOUR.store(true, Ordering::Relaxed);
    }
    linked
}

/// Links a file without a name. A link can't replace, so that over a file of the same name it is linked under another
/// and renamed. Swift removes the file first: a crash in between loses a version that was acknowledged.
fn link_fd(file: &File, target: &Path) -> io::Result<()> {
    let link_at = |path: &Path| link_fd_at(file, path);
    match link_at(target) {
        Err(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        // Left behind by a crash it is taken for a temporary file of rsync, which is no news in a hash directory.
        let unique =
            (u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)) % 36u64.pow(6);
        let tmp = parent_of(target)?.join(format!(".{}.{}", file_name(target), base36(unique)));
        match link_at(&tmp) {
            Err(Errno::EXIST) => continue,
            other => other?,
        }
        let renamed = fail::hit("fs.replace").and_then(|()| rename_once(&tmp, target));
        return renamed.inspect_err(|_| {
            // Best effort: the error that is reported is the first one.
            let _ = std::fs::remove_file(&tmp);
        });
    }
}

/// Six digits or lower-case letters.
fn base36(mut n: u64) -> String {
    let mut out = [b'0'; 6];
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(n % 36) as usize];
        n /= 36;
    }
    out.iter().map(|&digit| digit as char).collect()
}

/// Removes a file; no error if there is none.
pub fn remove_file(path: &Path) -> io::Result<()> {
    fail::hit("fs.remove_file")?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the files of a directory whose names end so and which were last written before `oldest`, since the epoch: what those
/// have left who died. Best effort: what cannot be removed is left for the next time.
pub fn remove_older_than(dir: &Path, oldest: Duration, suffix: &str) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().ends_with(suffix.as_bytes()) {
            continue;
        }
        let modified = entry.metadata().ok().and_then(|meta| meta.modified().ok());
        let age = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        if age.is_some_and(|modified| modified < oldest) {
            let _ = remove_file(&entry.path());
        }
    }
}

/// Removes an empty directory; true if it was there and empty.
pub fn remove_empty_dir(path: &Path) -> io::Result<bool> {
    fail::hit("fs.remove_dir")?;
    match std::fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(e) => match Errno::from_io_error(&e) {
            Some(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            _ => Err(e),
        },
    }
}

/// Reserves room for a file without changing its length. Fails with ENOSPC if less than `reserve` would stay free.
pub fn fallocate(file: impl AsFd, size: u64, reserve: FallocateReserve) -> io::Result<()> {
    let file = file.as_fd();
    check_reserve(file, size, reserve)?;
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The check of `fallocate` alone: ENOSPC if less than `reserve` would stay free after writing `size` bytes.
pub fn check_reserve(file: impl AsFd, size: u64, reserve: FallocateReserve) -> io::Result<()> {
    fail::hit("fs.fallocate")?;
    if reserve.is_zero() {
        return Ok(());
    }
    let stat = rustix::fs::fstatvfs(file)?;
    // Swift: free is compared as a float that may become negative.
    let free = (stat.f_frsize * stat.f_bavail) as f64 - size as f64;
    let too_little = match reserve {
        FallocateReserve::Bytes(bytes) => free <= bytes as f64,
        FallocateReserve::Percent(p) => free / (stat.f_frsize * stat.f_blocks) as f64 * 100.0 <= p,
    };
    if too_little { Err(Errno::NOSPC.into()) } else { Ok(()) }
}

/// True if the filesystem of `path` has more free than `reserve`.
pub fn has_free_space(path: &Path, reserve: FallocateReserve) -> io::Result<bool> {
    let stat = rustix::fs::statvfs(path)?;
    let free = (stat.f_frsize * stat.f_bavail) as f64;
    Ok(match reserve {
        FallocateReserve::Bytes(bytes) => free >= bytes as f64,
        FallocateReserve::Percent(p) => free / (stat.f_frsize * stat.f_blocks) as f64 * 100.0 >= p,
    })
}

/// Tells the kernel that this part of a file won't be read again soon; `len` 0 is up to the end.
pub fn drop_cache(file: impl AsFd, offset: u64, len: u64) {
    // Only advice: a failure changes nothing but the use of memory.
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::DontNeed);
}

/// Has the disk begin to write this part of a file, and does not wait for it.
pub fn write_ahead(file: impl AsFd, offset: u64, len: u64) {
    // The kernel writes what is dirty before it drops anything, and drops nothing that is being written.
    drop_cache(file, offset, len);
}

/// Tells the kernel to read this part of a file ahead.
pub fn read_ahead(file: impl AsFd, offset: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
}

/// True for a mount point, and for a directory or link to one that holds a file `.ismount`.
pub fn is_mount(path: &Path) -> bool {
    let Ok(here) = path.symlink_metadata() else { return false };
    if here.file_type().is_symlink() {
        return path.join(".ismount").is_file();
    }
    let Ok(parent) = path.join("..").symlink_metadata() else { return false };
    here.dev() != parent.dev() || here.ino() == parent.ino() || path.join(".ismount").is_file()
}

/// The directory of a device below `root`, if there is one by that name and, with `mount_check`, it is mounted.
pub fn check_drive(root: &Path, device: &str, mount_check: bool) -> Option<PathBuf> {
    let path = drive_path(root, device)?;
    let usable = if mount_check { is_mount(&path) } else { path.is_dir() };
    usable.then_some(path)
}

/// The path of a device, whether or not it is there; `None` if nothing can be called that.
pub fn drive_path(root: &Path, device: &str) -> Option<PathBuf> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'~');
    // Swift lets `.` and `..` through; nobody's device is called that.
    if matches!(device, "" | "." | "..") || !device.bytes().all(plain) {
        return None;
    }
    Some(root.join(device))
}

/// True for errors that mean a full disk: no space, or no quota.
pub fn is_no_space(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOSPC | Errno::DQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn tempdir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn missing_parents_are_made_and_counted() {
        let dir = tempdir();
        let deep = dir.path().join("a/b/c");
        assert_eq!(mkdirs_count(&deep).unwrap(), 3);
        assert_eq!(mkdirs_count(&deep).unwrap(), 0);
        mkdirs(&dir.path().join("x/y")).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(mkdirs_count(&file).is_err());
        assert!(mkdirs_count(&file.join("below")).is_err());
    }

    #[test]
    fn a_file_without_a_name_gets_one_and_replaces() {
        let dir = tempdir();
        let target = dir.path().join("new/hash/1.data");
        for (contents, expected_dirs) in [("one", 2), ("two", 0)] {
            let hash_dir = target.parent().unwrap();
            let mut tmp = TmpFile::create(hash_dir, &dir.path().join("tmp"), true).unwrap();
            tmp.file_mut().write_all(contents.as_bytes()).unwrap();
            fsync(tmp.file()).unwrap();
            let made = tmp.link(&target).unwrap();
            assert_eq!(made, expected_dirs);
            fsync_dirs(hash_dir, made).unwrap();
            assert_eq!(std::fs::read_to_string(&target).unwrap(), contents);
        }
    }

    #[test]
    fn a_directory_that_vanishes_is_made_again() {
        let dir = tempdir();
        let hash_dir = dir.path().join("sfx/hash");
        let mut tmp = TmpFile::create(&hash_dir, &dir.path().join("tmp"), false).unwrap();
        tmp.file_mut().write_all(b"x").unwrap();
        let target = hash_dir.join("1.data");
        assert_eq!(tmp.link(&target).unwrap(), 2);
        assert!(target.exists());
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn an_open_file_survives_being_replaced_under_its_name() {
        let dir = tempdir();
        let target = dir.path().join("1.data");
        let write = |contents: &str| {
            let mut tmp = TmpFile::create(dir.path(), dir.path(), true).unwrap();
            tmp.file_mut().write_all(contents.as_bytes()).unwrap();
            tmp.link(&target).unwrap();
        };
        write("one");
        let mut opened = File::open(&target).unwrap();
        write("two");
        let mut read = String::new();
        io::Read::read_to_string(&mut opened, &mut read).unwrap();
        assert_eq!((read.as_str(), std::fs::read_to_string(&target).unwrap().as_str()), ("one", "two"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_root_is_not_made() {
        let dir = tempdir();
        let root = dir.path().join("sda");
        assert!(mkdirs_below(&root, &root.join("objects/1")).is_err());
        for use_tmpfile in [true, false] {
            assert!(
                TmpFile::create_below(&root, &root.join("objects"), &root.join("tmp"), use_tmpfile).is_err()
            );
        }
        assert!(!root.exists());
        std::fs::create_dir(&root).unwrap();
        assert_eq!(mkdirs_below(&root, &root.join("objects/1")).unwrap(), 2);
    }

    #[test]
    fn nothing_is_renamed_over_what_exists() {
        let dir = tempdir();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "1").unwrap();
        std::fs::create_dir(&two).unwrap();
        assert_eq!(rename_noreplace(&one, &two).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        rename_noreplace(&one, &dir.path().join("three")).unwrap();
        assert_eq!(base36(36u64.pow(6) - 1), "zzzzzz");
    }

    #[test]
    fn a_dropped_file_leaves_no_debris() {
        let dir = tempdir();
        for use_tmpfile in [true, false] {
            drop(TmpFile::create(dir.path(), dir.path(), use_tmpfile).unwrap());
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_debris() {
        let dir = tempdir();
        let path = dir.path().join("hashes.pkl");
        write_file_durable(&path, b"old").unwrap();
        let _armed = fail::arm_thread("fs.fsync", fail::Action::Error(Errno::IO));
        assert!(write_file_durable(&path, b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_reserve_larger_than_what_is_free_is_no_space() {
        let file = tempfile::tempfile().unwrap();
        fallocate(&file, 4096, FallocateReserve::Bytes(0)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        let full = fallocate(&file, 0, FallocateReserve::Percent(100.0)).unwrap_err();
        assert!(is_no_space(&full));
        assert!(fallocate(&file, 0, FallocateReserve::Bytes(u64::MAX)).is_err());
        assert!(!has_free_space(Path::new("/"), FallocateReserve::Bytes(u64::MAX)).unwrap());
    }

    #[test]
    fn devices_are_names_of_directories_or_mounts() {
        let dir = tempdir();
        std::fs::create_dir(dir.path().join("d1")).unwrap();
        assert_eq!(check_drive(dir.path(), "d1", false), Some(dir.path().join("d1")));
        assert_eq!(check_drive(dir.path(), "d1", true), None);
        std::fs::write(dir.path().join("d1/.ismount"), "").unwrap();
        assert_eq!(check_drive(dir.path(), "d1", true), Some(dir.path().join("d1")));
        for bad in ["", ".", "..", "d2", "a b", "d1/x", "d%31"] {
            assert_eq!(check_drive(dir.path(), bad, false), None, "{bad}");
        }
        assert!(is_mount(Path::new("/proc")));
    }

    #[test]
    fn empty_directories_are_removed_and_others_stay() {
        let dir = tempdir();
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        assert!(!remove_empty_dir(dir.path()).unwrap());
        assert!(remove_empty_dir(&sub).unwrap());
        assert!(!remove_empty_dir(&sub).unwrap());
        remove_file(&sub).unwrap();
    }
}
