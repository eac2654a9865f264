//! What a test can know of a process after its end: the fail points that it passed, and what it made durable.
//!
//! ```text
//! FOLDER/points          a line for each fail point passed, in order
//! FOLDER/N.INODE.dir     a directory when it was synced: a line `INODE d|f NAME` for each entry
//! FOLDER/N.INODE.file    a file when it was synced, with its extended attributes
//! ```
//!
//! N counts up. A state is taken down before the sync and counts (loses its `.tmp`) only after it: what is changed while the
//! sync runs may not be covered by it. So a test that knows the disk before and after can make any disk that a loss of
//! power would have left. What is synced stays open: its inode's number is not given to another file.
//!
//! Off, it costs one load a sync. `MARTLET_FAIL_JOURNAL=FOLDER` turns it on; not for anything but tests.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;

static JOURNAL: OnceLock<Mutex<Journal>> = OnceLock::new();

struct Journal {
    folder: PathBuf,
    points: File,
    /// States taken down so far.
    count: usize,
    /// What has been synced.
    open: Vec<File>,
}

/// Starts a journal in an empty folder.
pub(super) fn keep(folder: &Path) -> io::Result<()> {
    let points = File::options().create_new(true).append(true).open(folder.join("points"))?;
    let journal = Journal { folder: folder.to_owned(), points, count: 0, open: Vec::new() };
    JOURNAL.set(Mutex::new(journal)).map_err(|_| io::ErrorKind::AlreadyExists.into())
}

pub(super) fn is_kept() -> bool {
    JOURNAL.get().is_some()
}

/// Takes down that a fail point was passed.
pub(super) fn passed(name: &str) -> io::Result<()> {
    match JOURNAL.get() {
        Some(journal) => journal.lock().points.write_all(format!("{name}\n").as_bytes()),
        None => Ok(()),
    }
}

/// Runs a sync of `file`, and takes down what it has made durable.
#[inline]
pub(super) fn synced(file: impl AsFd, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match JOURNAL.get() {
        Some(journal) => taken_down(journal, file, sync),
        None => sync(),
    }
}

/// Runs a sync of the whole file system, and takes down what is below `path`.
pub(super) fn synced_below(path: &Path, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Some(journal) = JOURNAL.get() else { return sync() };
    let (mut todo, mut states) = (vec![path.to_owned()], Vec::new());
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path)?.map(|entry| Ok(entry?.path()));
            todo.extend(entries.collect::<io::Result<Vec<_>>>()?);
        }
        states.push(journal.lock().take_down(File::open(path)?)?);
    }
    sync()?;
    states.iter().try_for_each(|state| rename(&state.with_extension("tmp"), state))
}

#[cold]
fn taken_down(
    journal: &Mutex<Journal>,
    file: impl AsFd,
    sync: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let state = journal.lock().take_down(File::from(file.as_fd().try_clone_to_owned()?))?;
    sync()?;
    rename(&state.with_extension("tmp"), &state)
}

#[allow(clippy::disallowed_methods)] // not one of the steps that are looked at
fn rename(old: &Path, new: &Path) -> io::Result<()> {
    std::fs::rename(old, new)
}

impl Journal {
    /// The name that the state is to have; it has `tmp` for an extension so far.
    fn take_down(&mut self, file: File) -> io::Result<PathBuf> {
        let metadata = file.metadata()?;
        let (number, inode) = (self.count, metadata.ino());
        self.count += 1;
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let extension = if metadata.is_dir() { "dir" } else { "file" };
        let state = self.folder.join(format!("{number:06}.{inode}.{extension}"));
        let tmp = state.with_extension("tmp");
        if metadata.is_dir() {
            let mut lines = Vec::new();
            for entry in std::fs::read_dir(source)? {
                let entry = entry?;
                let kind = if entry.file_type()?.is_dir() { 'd' } else { 'f' };
                lines.extend_from_slice(format!("{} {kind} ", entry.ino()).as_bytes());
                lines.extend_from_slice(entry.file_name().as_bytes());
                lines.push(b'\n');
            }
            std::fs::write(&tmp, lines)?;
        } else {
            std::fs::copy(&source, &tmp)?;
            copy_xattrs(&file, &File::options().write(true).open(&tmp)?)?;
        }
        self.open.push(file);
        Ok(state)
    }
}

/// Gives `to` the extended attributes of `from`.
fn copy_xattrs(from: &File, to: &File) -> io::Result<()> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::flistxattr(from, &mut names[..])?;
    let mut value = vec![0; 65536];
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..length], rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}
