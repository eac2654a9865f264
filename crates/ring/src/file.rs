//! Rings which change on disk while a server runs, and the rings of a Swift directory by service and policy.
//!
//! A changed file is noticed by its modification time, size or inode, asked for at most once per reload time. A changed file
//! which is not a usable ring leaves the old ring in place, and is told once to whom [`Rings::report_to`] names.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::clock::Clock;
use common::policy::{Policies, PolicyIndex};
use parking_lot::Mutex;

use crate::io::RingError;
use crate::ring::Ring;

/// Swift: ring.py, `DEFAULT_RELOAD_TIME`.
pub const DEFAULT_RELOAD_TIME: Duration = Duration::from_secs(15);

/// Who is told why a ring could not be loaded again.
type Report = OnceLock<Box<dyn Fn(&RingError) + Send + Sync>>;

/// One ring file.
pub struct RingFile {
    path: PathBuf,
    reload: Duration,
    clock: Clock,
    report: Arc<Report>,
    state: Mutex<State>,
}

struct State {
    ring: Arc<Ring>,
    stamp: Stamp,
    next_check: f64,
    /// Why the file of now cannot be used, as it was told.
    told: Option<RingError>,
}

/// What changes when a file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    mtime: (i64, i64),
    size: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, RingError> {
        let meta = std::fs::metadata(path).map_err(|err| RingError::io(path, &err))?;
        Ok(Self { mtime: (meta.mtime(), meta.mtime_nsec()), size: meta.len(), inode: meta.ino() })
    }
}

impl RingFile {
    /// Loads `DIR/NAME.ring.gz`, for instance of `object-1`.
    fn open(
        dir: &Path,
        name: &str,
        reload: Duration,
        clock: Clock,
        report: Arc<Report>,
    ) -> Result<Self, RingError> {
        let path = dir.join(format!("{name}.ring.gz"));
        // Stamped before it is read: a file replaced in between is read again at the next check.
        let stamp = Stamp::of(&path)?;
        let ring = Arc::new(Ring::load(&path)?);
        let next_check = clock.unix_secs() + reload.as_secs_f64();
        let state = Mutex::new(State { ring, stamp, next_check, told: None });
        Ok(Self { path, reload, clock, report, state })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ring, loaded again if the file has changed and the reload time has passed.
    pub fn get(&self) -> Arc<Ring> {
        let now = self.clock.unix_secs();
        let mut state = self.state.lock();
        if now > state.next_check {
            state.next_check = now + self.reload.as_secs_f64();
            self.reload_if_changed(&mut state);
        }
        state.ring.clone()
    }

    /// Whether the file on disk differs from the ring in memory; asks the disk.
    pub fn has_changed(&self) -> bool {
        let stamp = self.state.lock().stamp;
        Stamp::of(&self.path).is_ok_and(|now| now != stamp)
    }

    fn reload_if_changed(&self, state: &mut State) {
        let loaded = Stamp::of(&self.path).and_then(|stamp| {
            if stamp == state.stamp {
                return Ok(None);
            }
            Ring::load(&self.path).map(|ring| Some((ring, stamp)))
        });
        match loaded {
            Ok(changed) => {
                if let Some((ring, stamp)) = changed {
                    state.ring = Arc::new(ring);
                    state.stamp = stamp;
                }
                state.told = None;
            }
            Err(err) if state.told.as_ref() == Some(&err) => {}
            Err(err) => {
                if let Some(report) = self.report.get() {
                    report(&err);
                }
                state.told = Some(err);
            }
        }
    }
}

/// The rings of a Swift directory, each opened when first asked for.
pub struct Rings {
    dir: PathBuf,
    reload: Duration,
    clock: Clock,
    report: Arc<Report>,
    files: Mutex<HashMap<String, Arc<RingFile>>>,
}

impl Rings {
    pub fn open(swift_dir: impl Into<PathBuf>) -> Self {
        Self::with_reload(swift_dir, DEFAULT_RELOAD_TIME, Clock::system())
    }

    pub fn with_reload(swift_dir: impl Into<PathBuf>, reload: Duration, clock: Clock) -> Self {
        Self { dir: swift_dir.into(), reload, clock, report: Arc::default(), files: Mutex::default() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Who is told, once each time, that a ring file became unusable while the ring of before stays in use. The first one
    /// to be named stays: services of one process share their rings, and one line is enough.
    pub fn report_to(&self, report: impl Fn(&RingError) + Send + Sync + 'static) {
        // An error means that somebody was named before.
        let _ = self.report.set(Box::new(report));
    }

    pub fn account(&self) -> Result<Arc<Ring>, RingError> {
        Ok(self.file("account")?.get())
    }

    pub fn container(&self) -> Result<Arc<Ring>, RingError> {
        Ok(self.file("container")?.get())
    }

    /// The object ring of a policy; an error too when there is no such policy.
    pub fn object(&self, index: PolicyIndex, policies: &Policies) -> Result<Arc<Ring>, RingError> {
        let policy = policies.get(index).ok_or_else(|| RingError {
            path: self.dir.join("swift.conf"),
            reason: format!("there is no storage policy with index {}", index.0),
            missing: true,
        })?;
        Ok(self.file(&policy.object_ring_name)?.get())
    }

    /// The file `NAME.ring.gz`, such as `container` or `object-1`.
    pub fn file(&self, name: &str) -> Result<Arc<RingFile>, RingError> {
        if let Some(file) = self.files.lock().get(name) {
            return Ok(file.clone());
        }
        let file =
            Arc::new(RingFile::open(&self.dir, name, self.reload, self.clock.clone(), self.report.clone())?);
        Ok(self.files.lock().entry(name.to_string()).or_insert(file).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::timestamp::Timestamp;

    fn golden(name: &str) -> Vec<u8> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        std::fs::read(dir.join(format!("{name}.ring.gz"))).unwrap()
    }

    #[test]
    fn a_replaced_file_is_loaded_after_the_reload_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object-1.ring.gz");
        std::fs::write(&path, golden("saio")).unwrap();
        let clock = Clock::manual(Timestamp::from_secs_f64(1000.0));
        let rings = Rings::with_reload(dir.path(), DEFAULT_RELOAD_TIME, clock.clone());
        let file = rings.file("object-1").unwrap();
        assert_eq!(file.get().part_count(), 128);
        assert!(!file.has_changed());
        std::fs::write(&path, golden("removed")).unwrap();
        assert!(file.has_changed());
        clock.advance(Duration::from_secs(14));
        assert_eq!(file.get().part_count(), 128);
        clock.advance(Duration::from_secs(2));
        assert_eq!(file.get().part_count(), 256);
        assert!(!file.has_changed());
    }

    #[test]
    fn a_broken_or_missing_new_file_leaves_the_old_ring_and_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("container.ring.gz");
        std::fs::write(&path, golden("saio")).unwrap();
        let clock = Clock::manual(Timestamp::from_secs_f64(1000.0));
        let rings = Rings::with_reload(dir.path(), DEFAULT_RELOAD_TIME, clock.clone());
        let (told, hears) = std::sync::mpsc::channel();
        rings.report_to(move |err| told.send(err.to_string()).unwrap());
        let old = rings.container().unwrap();
        assert!(rings.account().unwrap_err().missing);
        let check = |errors: &[&str]| {
            for _ in 0..3 {
                clock.advance(Duration::from_secs(16));
                assert!(Arc::ptr_eq(&old, &rings.container().unwrap()));
            }
            let heard: Vec<String> = hears.try_iter().collect();
            assert_eq!(heard.len(), errors.len(), "{heard:?}");
            assert!(heard.iter().zip(errors).all(|(heard, error)| heard.contains(error)), "{heard:?}");
        };
        let broken = "container.ring.gz: not a usable ring: the gzip data is truncated";
        std::fs::write(&path, &golden("removed")[..500]).unwrap();
        check(&[broken]);
        std::fs::remove_file(&path).unwrap();
        check(&["container.ring.gz: cannot read ring: No such file"]);
        std::fs::write(&path, &golden("removed")[..500]).unwrap();
        check(&[broken]);
        std::fs::write(&path, golden("removed")).unwrap();
        clock.advance(Duration::from_secs(16));
        assert_eq!(rings.container().unwrap().part_count(), 256);
        assert_eq!(hears.try_iter().count(), 0);
    }
}
