//! Locks on directories, held as Python Swift holds them: `flock` on a file `.lock` in the directory.
//!
//! ```text
//! PARTITION/.lock                 hashes.pkl and hashes.invalid; held for microseconds
//! PARTITION/.lock-replication     one replication or ssync into the partition at a time
//! DEVICE/.lock, .lock-1, ...      as many replications into the device as are configured
//! ```
//!
//! The files stay when the lock is released: unlinking them would let two holders lock different files. The kernel
//! releases the lock of a process that dies.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::fs;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use super::DiskFileError;

/// Swift: DEFAULT_LOCK_TIMEOUT.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Between tries: short, as the holder of a partition's lock needs microseconds; longer for who waits for long.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Held until dropped.
#[derive(Debug)]
pub struct LockGuard {
    _fd: OwnedFd,
}

/// A lock file, open and perhaps locked; several turns of the lock cost one open.
pub(super) struct Lock {
    fd: OwnedFd,
    path: PathBuf,
}

impl Lock {
    /// Opens `directory`'s lock file; makes the directory if it has been removed, but none above `root`.
    pub fn open(directory: &Path, file_name: &str, root: &Path) -> Result<Self, DiskFileError> {
        let path = directory.join(file_name);
        let open = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::from_raw_mode(0o644))
        };
        let fd = match open() {
            Err(Errno::NOENT) => {
                fs::mkdirs_below(root, directory)
                    .map_err(|err| DiskFileError::write("cannot make directory", directory, err))?;
                open()
            }
            result => result,
        };
        match fd {
            Ok(fd) => Ok(Lock { fd, path }),
            Err(errno) => Err(DiskFileError::write("cannot open lock", path, errno)),
        }
    }

    pub fn lock(&self, timeout: Duration) -> Result<(), DiskFileError> {
        wait_for_any(std::slice::from_ref(self), timeout).map(drop)
    }

    pub fn unlock(&self) {
        // Fails for a descriptor that is none; the lock goes with the descriptor at the latest.
        let _ = flock(&self.fd, FlockOperation::Unlock);
    }

    pub fn into_guard(self) -> LockGuard {
        LockGuard { _fd: self.fd }
    }
}

/// Locks one of `limit` files `.lock`, `.lock-1`, ... (`.lock-NAME`, `.lock-NAME-1`, ...) in `directory`.
pub(super) fn lock_path(
    directory: &Path,
    root: &Path,
    name: Option<&str>,
    limit: usize,
    timeout: Duration,
) -> Result<LockGuard, DiskFileError> {
    let base = name.map_or(".lock".to_owned(), |name| format!(".lock-{name}"));
    let file_name = |i| if i == 0 { base.clone() } else { format!("{base}-{i}") };
    let mut locks = Vec::with_capacity(limit);
    for i in 0..limit {
        locks.push(Lock::open(directory, &file_name(i), root)?);
    }
    let locked = wait_for_any(&locks, timeout)?;
    Ok(locks.swap_remove(locked).into_guard())
}

fn wait_for_any(locks: &[Lock], timeout: Duration) -> Result<usize, DiskFileError> {
    let mut pause = FIRST_PAUSE;
    let mut deadline = None;
    loop {
        for (i, lock) in locks.iter().enumerate() {
            match flock(&lock.fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(i),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => return Err(DiskFileError::io("cannot lock", &lock.path, errno)),
            }
        }
        let now = Instant::now();
        if now >= *deadline.get_or_insert(now + timeout) {
            return Err(DiskFileError::LockTimeout(locks[0].path.clone()));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
