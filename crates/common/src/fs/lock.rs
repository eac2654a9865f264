//! Locks that Python's processes honour: `flock` on a hidden file of a directory, or on a file itself.
//!
//! A lock is held by an open file, not by a process or thread: two holders in one process exclude one another as well,
//! and a process that dies lets go.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::mkdirs_count;

/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{0:?} seconds: {path}", path = .1.display())]
    Timeout(Duration, PathBuf),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A locked directory. Dropped, it is unlocked.
#[derive(Debug)]
pub struct PathLock {
    _files: Vec<File>,
}

/// Locks a directory, which is made if it is missing: Swift's `lock_path`. The lock file is `.lock`, or `.lock-NAME`
/// to keep locks for different purposes apart.
pub fn lock_path(dir: &Path, timeout: Duration, name: Option<&str>) -> Result<PathLock, LockError> {
    lock_path_limited(dir, timeout, name, 1)
}

/// The same for up to `limit` holders at a time: any of `.lock`, `.lock-1`, ... will do.
pub fn lock_path_limited(
    dir: &Path,
    timeout: Duration,
    name: Option<&str>,
    limit: usize,
) -> Result<PathLock, LockError> {
    let base = name.map_or_else(|| ".lock".to_owned(), |name| format!(".lock-{name}"));
    let paths: Vec<PathBuf> = (0..limit.max(1))
        .map(|i| if i == 0 { dir.join(&base) } else { dir.join(format!("{base}-{i}")) })
        .collect();
    let files = paths.iter().map(|path| open_lock_file(dir, path)).collect::<io::Result<Vec<_>>>()?;
    wait_for(timeout, &paths[0], || {
        for file in &files {
            if try_lock(file)? {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    Ok(PathLock { _files: files })
}

fn open_lock_file(dir: &Path, path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o777).open(path);
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            mkdirs_count(dir)?;
            open()
        }
        other => other,
    }
}

/// An open and locked file.
#[derive(Debug)]
pub struct LockedFile {
    pub file: File,
}

/// Opens a file, which is made if it is missing, for reading and writing and locks it: Swift's `lock_file`. If
/// the file is replaced while we wait, the new one is locked.
pub fn lock_file(path: &Path, timeout: Duration, append: bool) -> Result<LockedFile, LockError> {
    let deadline = Instant::now() + timeout;
    loop {
        let mut options = OpenOptions::new();
        options.read(true).create(true).mode(0o777);
        let file =
            if append { options.append(true) } else { options.write(true).truncate(false) }.open(path)?;
        wait_for(deadline.saturating_duration_since(Instant::now()), path, || try_lock(&file))?;
        match std::fs::metadata(path) {
            Ok(there) if there.ino() == file.metadata()?.ino() => return Ok(LockedFile { file }),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ if Instant::now() >= deadline => return Err(LockError::Timeout(timeout, path.to_owned())),
            _ => {}
        }
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Tries until it succeeds or time is up, with pauses that grow: most locks are held for less than a millisecond.
fn wait_for(
    timeout: Duration,
    path: &Path,
    mut attempt: impl FnMut() -> io::Result<bool>,
) -> Result<(), LockError> {
    if attempt()? {
        return Ok(());
    }
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(100);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LockError::Timeout(timeout, path.to_owned()));
        }
        std::thread::sleep(pause.min(left));
        if attempt()? {
            return Ok(());
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_locked_directory_cannot_be_locked_again() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("objects/1");
        let held = lock_path(&part, SHORT, None).unwrap();
        assert!(part.join(".lock").is_file());
        assert!(matches!(lock_path(&part, SHORT, None), Err(LockError::Timeout(..))));
        // A lock of another name is another lock.
        lock_path(&part, SHORT, Some("replication")).unwrap();
        assert!(part.join(".lock-replication").is_file());
        drop(held);
        lock_path(&part, SHORT, None).unwrap();
    }

    #[test]
    fn as_many_may_hold_it_as_the_limit_says() {
        let dir = tempfile::tempdir().unwrap();
        let lock = || lock_path_limited(dir.path(), SHORT, Some("replication"), 2);
        let (first, second) = (lock().unwrap(), lock().unwrap());
        assert!(dir.path().join(".lock-replication-1").is_file());
        assert!(lock().is_err());
        drop(first);
        lock().unwrap();
        drop(second);
    }

    #[test]
    fn a_waiter_gets_the_lock_when_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_path(dir.path(), LONG, None).unwrap();
        let path = dir.path().to_owned();
        let waiter = std::thread::spawn(move || lock_path(&path, LONG, None).map(drop));
        drop(held);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_file_that_was_replaced_is_locked_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object.recon");
        let held = lock_file(&path, SHORT, false).unwrap();
        assert!(matches!(lock_file(&path, SHORT, false), Err(LockError::Timeout(..))));
        std::fs::write(dir.path().join("new"), "new").unwrap();
        super::super::rename(&dir.path().join("new"), &path).unwrap();
        let mut again = lock_file(&path, SHORT, false).unwrap();
        let mut contents = String::new();
        io::Read::read_to_string(&mut again.file, &mut contents).unwrap();
        assert_eq!(contents, "new");
        drop(held);
    }
}
