//! What replication has read of databases that do not change: most are in sync with their replicas, and most of what a pass costs there is to open
//! them and to parse their schemas, at both ends.
//!
//! Nothing is believed that the disk does not confirm. What SQLite commits, whatever process it runs in, changes the file; a journal, a
//! write-ahead log, another epoch, a file that is put in the place of the database, and a `.tmp` change the hash dir; and rows that wait
//! make the pending file longer than nothing. Each use asks for all three, and file and hash dir must be the inodes that they
//! were, unchanged (`common::fs::Stamp`). What was changed a moment ago is not kept, nor a database beside which there is anything but
//! its pending file and the lock: one with epochs, or with something to recover.
//!
//! What changes with time alone, as what there is to reclaim, is not known in here: whoever asks decides by what he kept.
//!
//! What is bounded: the number of databases (`known_databases`, an option of servers and replicators that Swift does not have; 0 for none).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::config::{ConfigError, Section};
use common::fs::{KernelTime, SETTLED, Stamp};
use common::used_lately::UsedLately;

use crate::broker::pending_file;

/// Databases that a process knows if nobody says how many.
const KNOWN_DATABASES: usize = 16384;
/// Metadata of a database that is kept.
pub const MOST_METADATA: usize = 4096;
/// Sync points of a database that are kept: one for each replica that it ever had.
pub const MOST_POINTS: usize = 64;

/// A database and its directory at some time; nothing was pending.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    file: Stamp,
    dir: Stamp,
}

impl Seen {
    fn of(db_file: &Path) -> Option<Self> {
        // First what is pending: what is not there any more has got into the file before that is looked at.
        match std::fs::metadata(pending_file(db_file)) {
            Ok(pending) if pending.len() > 0 => return None,
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return None,
            _ => {}
        }
        Some(Self { file: Stamp::at(db_file).ok()?, dir: Stamp::at(db_file.parent()?).ok()? })
    }
}

/// A database whose content is worth remembering, from before it is read.
pub struct Look {
    db_file: PathBuf,
    seen: Seen,
}

struct Known<T> {
    seen: Seen,
    what: Arc<T>,
}

impl<T> Clone for Known<T> {
    fn clone(&self) -> Self {
        Self { seen: self.seen, what: self.what.clone() }
    }
}

/// What one process knows, by the path of the database.
pub struct KnownDatabases<T> {
    databases: UsedLately<PathBuf, Known<T>>,
    settled: Duration,
}

impl<T> KnownDatabases<T> {
    pub fn from_section(section: &Section) -> Result<Self, ConfigError> {
        Ok(Self::new(section.int("known_databases", KNOWN_DATABASES)?, SETTLED))
    }

    fn new(capacity: usize, settled: Duration) -> Self {
        Self { databases: UsedLately::new(capacity), settled }
    }

    /// What is known of a database that is what it was.
    pub fn get(&self, db_file: &Path) -> Option<Arc<T>> {
        let known = self.databases.get(db_file)?;
        if Seen::of(db_file) == Some(known.seen) {
            return Some(known.what);
        }
        self.databases.remove(db_file);
        None
    }

    /// Called before a database is read, so that what is read may be kept. `None` if it must not be.
    pub fn look(&self, db_file: &Path) -> Option<Look> {
        if !self.databases.is_enabled() {
            return None;
        }
        let looked = KernelTime::now();
        let seen = Seen::of(db_file)?;
        let is_settled = |stamp: Stamp| stamp.is_settled(looked, self.settled);
        let worth = is_settled(seen.file) && is_settled(seen.dir) && is_alone(db_file).ok()?;
        worth.then(|| Look { db_file: db_file.to_owned(), seen })
    }

    /// Keeps what has been read since `look`. If anything was changed meanwhile, nobody will get it.
    pub fn learn(&self, look: Look, what: T) -> Arc<T> {
        let known = Known { seen: look.seen, what: Arc::new(what) };
        let what = known.what.clone();
        self.databases.insert(look.db_file, known);
        what
    }
}

/// Whether the hash dir has nothing but this database, its pending file and the lock.
fn is_alone(db_file: &Path) -> std::io::Result<bool> {
    let (Some(dir), Some(name)) = (db_file.parent(), db_file.file_name()) else { return Ok(false) };
    let pending = pending_file(db_file);
    for entry in std::fs::read_dir(dir)? {
        let found = entry?.file_name();
        if found != name && Some(&*found) != pending.file_name() && found != ".lock" {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_a_moment_ago_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let db_file = dir.path().join("hash.db");
        std::fs::write(&db_file, "").unwrap();
        assert!(KnownDatabases::<()>::new(1, Duration::from_secs(3600)).look(&db_file).is_none());
        let known = KnownDatabases::new(1, Duration::ZERO);
        let look = loop {
            match known.look(&db_file) {
                Some(look) => break look,
                None => std::thread::yield_now(),
            }
        };
        known.learn(look, ());
        assert!(known.get(&db_file).is_some());
        assert!(KnownDatabases::<()>::new(0, Duration::ZERO).look(&db_file).is_none());
    }
}
