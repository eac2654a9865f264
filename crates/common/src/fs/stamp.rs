//! Which inode, and when it was last changed: by that a file or directory is known to be what it was when it was read.
//!
//! Whatever any process does to an inode (its data, length, attributes, links, the names in a directory), the kernel gives it another change time,
//! which nobody can set. But its clock for that ticks every few milliseconds, and two changes within a tick leave the same time. So
//! only what had not been changed for a while when it was looked at can be told from what it becomes later; see [`Stamp::is_settled`].

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::Stat;
use rustix::time::{ClockId, clock_gettime};

/// A change of that age can be told from any later one: ten ticks of the slowest kernels' clock.
pub const SETTLED: Duration = Duration::from_millis(100);

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    changed: KernelTime,
}

/// The clock by which the kernel stamps.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct KernelTime {
    secs: i64,
    nanos: i64,
}

impl KernelTime {
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self { secs: now.tv_sec, nanos: now.tv_nsec }
    }

    /// In nanoseconds.
    fn since(self, earlier: Self) -> i128 {
        i128::from(self.secs - earlier.secs) * 1_000_000_000 + i128::from(self.nanos - earlier.nanos)
    }
}

impl Stamp {
    pub fn of(stat: &Stat) -> Self {
        let changed = KernelTime { secs: stat.st_ctime, nanos: stat.st_ctime_nsec as i64 };
        Self { device: stat.st_dev, inode: stat.st_ino, changed }
    }

    /// Of what is at a path now.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::stat(path)?))
    }

    /// Whether any change after `looked` leaves another stamp: `looked` is from before the stamp was taken. Never on a file system that
    /// counts in whole seconds.
    pub fn is_settled(&self, looked: KernelTime, settled: Duration) -> bool {
        self.changed.nanos != 0 && looked.since(self.changed) >= settled.as_nanos() as i128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(secs: i64, nanos: i64) -> Stamp {
        Stamp { device: 1, inode: 2, changed: KernelTime { secs, nanos } }
    }

    #[test]
    fn a_stamp_is_of_one_inode_at_one_time() {
        let one = stamp(5, 7);
        for other in [Stamp { device: 9, ..one }, Stamp { inode: 9, ..one }, stamp(6, 7), stamp(5, 8)] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn only_old_changes_are_settled() {
        let looked = KernelTime { secs: 10, nanos: 100_000_005 };
        let settled = |secs, nanos| stamp(secs, nanos).is_settled(looked, SETTLED);
        assert!(settled(10, 5) && settled(9, 999_999_999) && settled(1, 1));
        assert!(!settled(10, 6) && !settled(10, 100_000_005) && !settled(11, 1));
        assert!(!settled(1, 0), "no nanoseconds");
    }

    #[test]
    fn what_is_done_to_a_file_or_in_a_directory_leaves_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "1").unwrap();
        let all_settled = || {
            let looked = KernelTime::now();
            [&file, &dir.path().to_owned()]
                .iter()
                .all(|path| Stamp::at(path).unwrap().is_settled(looked, Duration::from_millis(20)))
        };
        let settle = || {
            while !all_settled() {
                std::thread::yield_now();
            }
        };
        settle();
        let (of_dir, of_file) = (Stamp::at(dir.path()).unwrap(), Stamp::at(&file).unwrap());
        std::fs::write(&file, "2").unwrap();
        assert_ne!(Stamp::at(&file).unwrap(), of_file);
        assert_eq!(Stamp::at(dir.path()).unwrap(), of_dir);
        std::fs::write(dir.path().join("other"), "").unwrap();
        assert_ne!(Stamp::at(dir.path()).unwrap(), of_dir);
    }
}
