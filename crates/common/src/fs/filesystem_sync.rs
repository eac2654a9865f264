//! One `syncfs` for all threads that wait for a sync of the same file system.
//!
//! A write of a small file needs several syncs, of the file and of directories, and each of them goes to the disk alone. Where
//! many threads wait for theirs, one sync of the whole file system serves all and costs little more than that of one file:
//! the kernel writes what lies together at once, and empties the disk's cache once.
//!
//! ```text
//! up to ALONE threads           each does its own syncs; nobody waits for anybody
//! others                        gather, until one of those is done
//!   enough of them              one calls syncfs for all who have gathered; who comes meanwhile gathers for the next
//!   too few                     one does its own syncs
//! ```
//!
//! A thread may come with several writes at once (`staged`), and counts as so many.
//!
//! `syncfs` also writes what others have left to be written, which may be gigabytes. So one that takes longer than the callers'
//! own syncs would have taken one after the other is the last for a while ([`Pauses`]), and nobody waits for one longer than
//! [`PATIENCE`].
//!
//! What it promises differs from file system to file system. Here are those of which it is known that all is on disk when it
//! returns: XFS and ext4, and for ext4 without a journal only with a sync of any file after it, as it may empty the disk's
//! cache before it writes the last blocks. And it has to tell of errors, which it does since Linux 5.8: of those since its
//! file descriptor was opened. Hence [`Since`]: of all who wait, the file that was opened first is asked. An error is everybody's.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{Timespec, fstat, fstatfs};
use rustix::thread::futex;

use super::{fail, journal};

/// Threads that may do their own syncs at a time, while there is no reason not to have one for all.
const ALONE: usize = 2;
/// For somebody else's `syncfs`.
const PATIENCE: Duration = Duration::from_millis(500);
/// Shorter ones are never too long.
const QUICK: Duration = Duration::from_millis(50);
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;

/// A file that was open before the changes that are to be made durable, and a time in between.
#[derive(Clone, Copy)]
pub struct Since<'a> {
    pub file: BorrowedFd<'a>,
    pub opened: Instant,
}

static GROUPS: Mutex<Option<HashMap<u64, Arc<Group>>>> = Mutex::new(None);

/// Calls `own`, which does the syncs of `members` writes, or has done by one `syncfs` for several what it would do, if at least
/// `together` writes wait for that. Never if `together` is 0.
pub(super) fn sync(
    since: Since<'_>,
    members: usize,
    together: usize,
    own: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    if together == 0 {
        return own();
    }
    let device = fstat(since.file)?.st_dev;
    let group = GROUPS.lock().get_or_insert_default().entry(device).or_default().clone();
    match group.sync(since, members, together, own, sync_file_system)? {
        // What is durable already is taken down file by file.
        Some(own) if journal::is_kept() => own(),
        _ => Ok(()),
    }
}

/// All changes to the file system of an open file, to the disk.
fn sync_file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    fail::hit("fs.syncfs")?;
    rustix::fs::syncfs(file)?;
    if is_type(file, EXT4) {
        rustix::fs::fsync(file)?;
    }
    Ok(())
}

fn is_type(file: BorrowedFd<'_>, wanted: u64) -> bool {
    fstatfs(file).is_ok_and(|stat| stat.f_type as u64 == wanted)
}

/// Whether `syncfs` on the file system of this file is known to do what is needed.
fn is_known(file: BorrowedFd<'_>) -> bool {
    static TELLS_OF_ERRORS: OnceLock<bool> = OnceLock::new();
    let tells = *TELLS_OF_ERRORS.get_or_init(|| {
        rustix::system::uname().release().to_str().is_ok_and(|release| version(release) >= Some((5, 8)))
    });
    tells && (is_type(file, EXT4) || is_type(file, XFS))
}

/// Of a kernel's release, `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The threads that sync one file system.
struct Group {
    /// How long they wait for somebody else's `syncfs`.
    patience: Duration,
    /// Whether it is one on which `syncfs` does what is needed.
    known: OnceLock<bool>,
    state: Mutex<State>,
}

impl Default for Group {
    fn default() -> Self {
        Group { patience: PATIENCE, known: OnceLock::new(), state: Mutex::default() }
    }
}

#[derive(Default)]
struct State {
    /// Threads at work on their own syncs.
    alone: usize,
    /// Whether a thread is at work for others.
    leading: bool,
    gathering: Arc<Round>,
    /// Writes whose threads gather.
    waiting: usize,
    /// The file that was opened first, of those of the threads that wait.
    oldest: Option<(OwnedFd, Instant)>,
    /// What a write's own syncs take, about.
    own_cost: Duration,
    pauses: Pauses,
}

/// Those who gather for a `syncfs`.
#[derive(Default)]
struct Round {
    /// How it ended: the number of an error.
    outcome: OnceLock<Result<(), i32>>,
    /// There is one, or something for one of them to do.
    changed: Bell,
}

/// Wakes threads that wait. Those for whom a sync has been done need no lock to see it; a condition variable would have each of
/// them take the group's, one after the other.
#[derive(Default)]
struct Bell(AtomicU32);

impl Bell {
    /// How often it has been rung: to be asked before looking at what it tells of.
    fn rung(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Waits until it is rung once more; perhaps not so long.
    fn wait(&self, rung: u32, limit: Duration) {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        // Whatever ends it, the caller looks again.
        let _ = futex::wait(&self.0, futex::Flags::PRIVATE, rung, Some(&limit));
    }

    fn ring(&self, threads: u32) {
        self.0.fetch_add(1, Ordering::Release);
        // Fails only for an address that is none.
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, threads);
    }
}

/// When not to call `syncfs`.
#[derive(Default)]
struct Pauses {
    until: Option<Instant>,
}

impl Pauses {
    /// Of the time, one part in so many at most goes into such as take too long.
    const SHARE: u32 = 20;

    /// Takes note of a `syncfs` for `members` writes.
    fn note(&mut self, now: Instant, took: Duration, members: usize, own_cost: Duration) {
        if took > QUICK.max(own_cost * u32::try_from(members).unwrap_or(u32::MAX)) {
            self.until = Some(now + took * Self::SHARE);
        }
    }

    fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

impl Group {
    /// Returns `own` if it was not needed.
    fn sync<F: FnOnce() -> io::Result<()>>(
        &self,
        since: Since<'_>,
        members: usize,
        together: usize,
        own: F,
        sync_all: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<Option<F>> {
        let known = *self.known.get_or_init(|| is_known(since.file));
        let mut state = self.state.lock();
        if !known || state.pauses.is_on(Instant::now()) || (state.may_be_alone() && together > members) {
            return self.alone(state, members, own);
        }
        state.join(since, members)?;
        let round = state.gathering.clone();
        let deadline = Instant::now() + self.patience;
        loop {
            let rung = round.changed.rung();
            if let Some(outcome) = round.outcome.get() {
                return ended(*outcome, own);
            }
            let gathers = Arc::ptr_eq(&round, &state.gathering);
            if gathers && !state.leading && state.waiting >= together {
                return self.lead(state, sync_all).map(|()| Some(own));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (gathers && state.may_be_alone()) {
                if gathers {
                    state.leave(members);
                }
                return self.alone(state, members, own);
            }
            drop(state);
            round.changed.wait(rung, left);
            if let Some(outcome) = round.outcome.get() {
                return ended(*outcome, own);
            }
            state = self.state.lock();
        }
    }

    fn alone<F: FnOnce() -> io::Result<()>>(
        &self,
        mut state: MutexGuard<'_, State>,
        members: usize,
        own: F,
    ) -> io::Result<Option<F>> {
        state.alone += 1;
        if state.may_be_alone() {
            state.call_next();
        }
        drop(state);
        let _turn = Alone { group: self, members, began: Instant::now() };
        own().map(|()| None)
    }

    /// Syncs for all who have gathered, this thread among them.
    fn lead(
        &self,
        mut state: MutexGuard<'_, State>,
        sync_all: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let members = std::mem::take(&mut state.waiting);
        let Some((oldest, _)) = state.oldest.take() else { return Err(io::ErrorKind::Other.into()) };
        let round = std::mem::take(&mut state.gathering);
        state.leading = true;
        drop(state);
        let turn = Lead { group: self, round, members, began: Instant::now() };
        let result = sync_all(oldest.as_fd());
        turn.end(&result);
        result
    }
}

/// What a round's end is for one who gathered.
fn ended<F>(outcome: Result<(), i32>, own: F) -> io::Result<Option<F>> {
    outcome.map(|()| Some(own)).map_err(io::Error::from_raw_os_error)
}

impl State {
    fn may_be_alone(&self) -> bool {
        !self.leading && self.alone < ALONE
    }

    /// Wakes one of those who gather: it may lead or be alone now.
    fn call_next(&self) {
        if self.waiting > 0 && !self.leading {
            self.gathering.changed.ring(1);
        }
    }

    fn leave(&mut self, members: usize) {
        self.waiting -= members;
        if self.waiting == 0 {
            // A file that stays open would keep its file system mounted.
            self.oldest = None;
        }
    }

    fn join(&mut self, since: Since<'_>, members: usize) -> io::Result<()> {
        if self.oldest.as_ref().is_none_or(|(_, opened)| since.opened < *opened) {
            // The same open file: its owner may give up waiting and close it.
            self.oldest = Some((since.file.try_clone_to_owned()?, since.opened));
        }
        self.waiting += members;
        Ok(())
    }
}

/// A thread at work on its own syncs; however that ends, the others go on.
struct Alone<'a> {
    group: &'a Group,
    members: usize,
    began: Instant,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let took = self.began.elapsed() / u32::try_from(self.members).unwrap_or(u32::MAX).max(1);
        let mut state = self.group.state.lock();
        state.alone -= 1;
        state.own_cost = match state.own_cost {
            Duration::ZERO => took,
            before => (before * 7 + took) / 8,
        };
        state.call_next();
    }
}

/// A thread at work for all of a round; however that ends, they are told.
struct Lead<'a> {
    group: &'a Group,
    round: Arc<Round>,
    members: usize,
    began: Instant,
}

impl Lead<'_> {
    fn end(self, result: &io::Result<()>) {
        let code = |err: &io::Error| err.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
        // The only one that sets it but for the drop, which comes after.
        let _ = self.round.outcome.set(result.as_ref().copied().map_err(code));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let _ = self.round.outcome.set(Err(rustix::io::Errno::IO.raw_os_error()));
        let (now, took) = (Instant::now(), self.began.elapsed());
        let mut state = self.group.state.lock();
        state.leading = false;
        let own_cost = state.own_cost;
        state.pauses.note(now, took, self.members, own_cost);
        state.call_next();
        drop(state);
        self.round.changed.ring(u32::MAX >> 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::mpsc::{self, Receiver, Sender};

    const LONG: Duration = Duration::from_secs(600);

    /// Threads that sync one file system, each stopped until it is let go.
    struct Threads {
        group: Arc<Group>,
        file: Arc<File>,
        did: Sender<&'static str>,
        done: Receiver<&'static str>,
        gates: Vec<Sender<io::Result<()>>>,
        handles: Vec<std::thread::JoinHandle<io::Result<()>>>,
    }

    impl Threads {
        fn new(patience: Duration) -> Self {
            let group = Arc::new(Group { patience, known: OnceLock::from(true), ..Group::default() });
            let (did, done) = mpsc::channel();
            let file = Arc::new(tempfile::tempfile().unwrap());
            Threads { group, file, did, done, gates: Vec::new(), handles: Vec::new() }
        }

        /// One more thread, which will sync for `together` at least.
        fn start(&mut self, together: usize) {
            let (gate, opened) = mpsc::channel::<io::Result<()>>();
            let (group, file, did) = (self.group.clone(), self.file.clone(), self.did.clone());
            self.gates.push(gate);
            self.handles.push(std::thread::spawn(move || {
                let since = Since { file: file.as_fd(), opened: Instant::now() };
                let wait = |what| {
                    did.send(what).unwrap();
                    opened.recv().unwrap()
                };
                group.sync(since, 1, together, || wait("own"), |_| wait("all")).map(drop)
            }));
        }

        fn until(&self, what: impl Fn(&State) -> bool) {
            while !what(&self.group.state.lock()) {
                std::thread::yield_now();
            }
        }

        /// Lets a thread end what it does.
        fn go(&self, thread: usize, result: io::Result<()>) {
            // One for which another did it may have ended.
            let _ = self.gates[thread].send(result);
        }

        fn results(self) -> Vec<bool> {
            self.handles.into_iter().map(|handle| handle.join().unwrap().is_ok()).collect()
        }
    }

    #[test]
    fn one_syncs_for_all_who_find_enough_at_work() {
        let mut threads = Threads::new(LONG);
        for n in 0..ALONE {
            threads.start(3);
            assert_eq!(threads.done.recv(), Ok("own"), "{n}");
        }
        for waiting in 1..3 {
            threads.start(3);
            threads.until(|state| state.waiting == waiting);
        }
        threads.start(3);
        assert_eq!(threads.done.recv(), Ok("all"));
        // This one comes too late for that, and there is nobody for another.
        threads.start(3);
        threads.until(|state| state.waiting == 1);
        (0..ALONE).for_each(|thread| threads.go(thread, Ok(())));
        threads.until(|state| state.alone == 0);
        assert!(threads.group.state.lock().leading);
        threads.go(ALONE + 2, Ok(()));
        assert_eq!(threads.done.recv(), Ok("own"));
        threads.go(ALONE + 3, Ok(()));
        assert_eq!(threads.results(), [true; ALONE + 4]);
    }

    #[test]
    fn too_few_sync_for_themselves_as_soon_as_others_are_done() {
        let mut threads = Threads::new(LONG);
        for _ in 0..ALONE {
            threads.start(9);
            assert_eq!(threads.done.recv(), Ok("own"));
        }
        threads.start(9);
        threads.until(|state| state.waiting == 1);
        threads.go(0, Ok(()));
        assert_eq!(threads.done.recv(), Ok("own"));
        (1..=ALONE).for_each(|thread| threads.go(thread, Ok(())));
        assert_eq!(threads.results(), [true; ALONE + 1]);
    }

    #[test]
    fn an_error_is_everybodys_who_gathered() {
        let mut threads = Threads::new(LONG);
        threads.group.state.lock().leading = true;
        threads.start(2);
        threads.start(2);
        threads.until(|state| state.waiting == 2);
        {
            let mut state = threads.group.state.lock();
            state.leading = false;
            state.call_next();
        }
        assert_eq!(threads.done.recv(), Ok("all"));
        for thread in 0..2 {
            threads.go(thread, Err(io::Error::from_raw_os_error(5)));
        }
        assert_eq!(threads.results(), [false, false]);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut threads = Threads::new(Duration::from_millis(5));
        threads.group.state.lock().leading = true;
        threads.start(2);
        assert_eq!(threads.done.recv(), Ok("own"));
        let state = threads.group.state.lock();
        assert!(state.waiting == 0 && state.oldest.is_none());
        drop(state);
        threads.go(0, Ok(()));
        assert_eq!(threads.results(), [true]);
    }

    #[test]
    fn the_file_that_was_opened_first_is_asked() {
        let mut state = State::default();
        let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        let now = Instant::now();
        for (file, age) in files.iter().zip([2, 3, 1]) {
            let since = Since { file: file.as_fd(), opened: now - Duration::from_secs(age) };
            state.join(since, 1).unwrap();
        }
        let inode = |file: BorrowedFd<'_>| fstat(file).unwrap().st_ino;
        let (oldest, _) = state.oldest.as_ref().unwrap();
        assert_eq!(inode(oldest.as_fd()), inode(files[1].as_fd()));
    }

    #[test]
    fn what_takes_longer_than_one_after_the_other_is_left_alone_for_a_while() {
        let (now, own) = (Instant::now(), 2 * QUICK);
        let mut pauses = Pauses::default();
        pauses.note(now, 5 * own, 5, own);
        pauses.note(now, QUICK, 5, Duration::from_micros(1));
        assert!(!pauses.is_on(now));
        pauses.note(now, 6 * own, 5, own);
        assert!(pauses.is_on(now + 100 * own) && !pauses.is_on(now + 120 * own));
    }

    #[test]
    fn kernels_are_told_by_their_release() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-rc3"), Some((5, 15)));
        assert_eq!(version("linux"), None);
    }
}
