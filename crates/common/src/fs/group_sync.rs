//! One sync for all threads that wait for the same file or directory.
//!
//! Many objects of one partition arrive together, and each has to see hashes.invalid and the new suffixes on disk. A thread
//! that comes while nobody syncs does it; those that come meanwhile wait for the next sync, which one of them does for all:
//! the one under way may have begun before they wrote. A sync that fails fails for everybody who waited for it.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::fs::fstat;

/// Device, inode, and whether only the data are synced.
type Key = (u64, u64, bool);

static PLACES: Mutex<Option<HashMap<Key, Arc<Place>>>> = Mutex::new(None);

#[derive(Default)]
struct Place {
    state: Mutex<State>,
    ended: Condvar,
}

/// Syncs are numbered from 1.
#[derive(Default)]
struct State {
    begun: u64,
    ended: u64,
    waiting: usize,
    /// The last one that failed, and how.
    failed: Option<(u64, i32)>,
}

/// `fsync`, shared with whoever else waits for the same file.
pub(super) fn fsync(file: impl AsFd) -> io::Result<()> {
    shared(&file, false, || Ok(rustix::fs::fsync(&file)?))
}

/// `fdatasync`, shared in the same way.
pub(super) fn fdatasync(file: impl AsFd) -> io::Result<()> {
    shared(&file, true, || Ok(rustix::fs::fdatasync(&file)?))
}

fn shared(file: impl AsFd, data_only: bool, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let stat = fstat(file)?;
    let key = (stat.st_dev, stat.st_ino, data_only);
    let place = PLACES.lock().get_or_insert_default().entry(key).or_default().clone();
    let result = place.sync(sync);
    let mut places = PLACES.lock();
    drop(place);
    if let Some(places) = places.as_mut()
        && places.get(&key).is_some_and(|place| Arc::strong_count(place) == 1)
    {
        places.remove(&key);
    }
    result
}

impl Place {
    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock();
        let wanted = state.begun + 1;
        while state.ended < wanted {
            if state.begun == state.ended {
                state.begun += 1;
                drop(state);
                let mut turn = Turn { place: self, result: Err(io::ErrorKind::Other.into()) };
                turn.result = sync();
                // Its end tells the others.
                return std::mem::replace(&mut turn.result, Ok(())).inspect_err(|err| turn.note(err));
            }
            state.waiting += 1;
            self.ended.wait(&mut state);
            state.waiting -= 1;
        }
        match state.failed {
            // What a failed sync has dropped a later one does not bring back.
            Some((number, code)) if number >= wanted => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        }
    }
}

/// A sync under way. However it ends, those who wait are told.
struct Turn<'a> {
    place: &'a Place,
    result: io::Result<()>,
}

impl Turn<'_> {
    fn note(&self, err: &io::Error) {
        let mut state = self.place.state.lock();
        state.failed =
            Some((state.begun, err.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error())));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Err(err) = std::mem::replace(&mut self.result, Ok(())) {
            self.note(&err);
        }
        let mut state = self.place.state.lock();
        state.ended = state.begun;
        self.place.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn those_who_come_during_a_sync_share_the_next() {
        let place = Arc::new(Place::default());
        let syncs = Arc::new(AtomicUsize::new(0));
        let (release, gate) = mpsc::channel::<()>();
        let first = {
            let (place, syncs) = (place.clone(), syncs.clone());
            std::thread::spawn(move || {
                place.sync(|| {
                    gate.recv().unwrap();
                    syncs.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            })
        };
        while place.state.lock().begun == 0 {
            std::thread::yield_now();
        }
        let others: Vec<_> = (0..8)
            .map(|_| {
                let (place, syncs) = (place.clone(), syncs.clone());
                std::thread::spawn(move || {
                    place.sync(|| {
                        syncs.fetch_add(1, Ordering::SeqCst);
                        Ok(())
                    })
                })
            })
            .collect();
        while place.state.lock().waiting < 8 {
            std::thread::yield_now();
        }
        release.send(()).unwrap();
        first.join().unwrap().unwrap();
        others.into_iter().for_each(|other| other.join().unwrap().unwrap());
        assert_eq!(syncs.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_failure_is_everybodys_who_waited_for_it() {
        let place = Place::default();
        let full = || Err(io::Error::from_raw_os_error(28));
        assert_eq!(place.sync(full).unwrap_err().raw_os_error(), Some(28));
        assert_eq!(place.state.lock().failed, Some((1, 28)));
        // Those who come later start anew.
        place.sync(|| Ok(())).unwrap();
        // One that has waited for the failed sync and looks only after the next.
        let state = place.state.lock();
        assert!(matches!(state.failed, Some((number, _)) if number >= 1 && state.ended == 2));
    }

    #[test]
    fn a_sync_that_panics_ends() {
        let place = Place::default();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| place.sync(|| panic!("disk"))));
        assert!(panicked.is_err());
        assert_eq!(place.state.lock().ended, 1);
        assert!(place.state.lock().failed.is_some());
        place.sync(|| Ok(())).unwrap();
    }

    #[test]
    fn nothing_is_kept_of_files_that_nobody_waits_for() {
        let file = tempfile::tempfile().unwrap();
        fsync(&file).unwrap();
        fdatasync(&file).unwrap();
        let stat = fstat(&file).unwrap();
        let places = PLACES.lock();
        let kept = |data_only| places.as_ref().unwrap().contains_key(&(stat.st_dev, stat.st_ino, data_only));
        assert!(!kept(false) && !kept(true));
    }
}
