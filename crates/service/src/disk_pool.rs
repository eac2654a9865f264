//! Threads per device, so that a slow device slows only itself.
//!
//! A job is one boxed closure that runs to its end on a thread of its device, even when nobody waits for it any
//! longer: a client that goes away never leaves half of a rename behind. A device has at most `threads` threads and
//! [`QUEUE_LIMIT`] waiting jobs; a caller beyond that waits its turn without holding a thread. Threads are made when
//! a job finds none idle and end after [`IDLE`] without work, so that a quiet device costs nothing.
//!
//! While a device answers from memory its jobs are shorter than the time it takes to wake a thread for each: then one
//! thread does them all, and a [`Watch`] on the callers' runtime tells them, so that what is done meanwhile costs the runtime
//! one wake-up. A job that waits for longer than [`PATIENCE`], or a few that prove to be slow, bring the other threads back.
//!
//! Writes that stop where they need a sync ([`DiskPools::run_staged`]) have a thread of their own (`disk_lane`), while that is
//! the better way.
//!
//! In simulation ([`DiskPools::inline`]) the job runs at once on the caller's own thread.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::fs::Step;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant as Deadline, sleep_until};

use crate::disk_lane::{LONG, Lane};

/// Jobs of one device which may wait for a thread.
pub const QUEUE_LIMIT: usize = 1024;
/// Threads of one device unless `threads_per_disk` says otherwise.
pub const DEFAULT_THREADS: usize = 16;
/// A thread without work ends after this long.
pub const IDLE: Duration = Duration::from_secs(5);
/// A job that takes no longer found in memory what it looked for.
const QUICK: Duration = Duration::from_micros(150);
/// A job waits no longer than this, or twice that, behind jobs that should have been quick.
const PATIENCE: Duration = Duration::from_millis(1);
/// Deep enough for SQLite and directory walks; pages are only touched when used.
pub(crate) const STACK_BYTES: usize = 512 * 1024;

/// The threads of all devices of one server or daemon. Clones share them.
#[derive(Clone)]
pub struct DiskPools(Arc<Inner>);

enum Inner {
    Inline,
    Threads { threads: usize, idle: Duration, long: Duration, devices: RwLock<HashMap<String, Arc<Device>>> },
}

/// What a device's thread does, and how it tells the caller.
type Job = Box<dyn FnOnce() -> Answer + Send>;
pub(crate) type Answer = Box<dyn FnOnce() + Send>;

/// A job that waits.
struct Waiting {
    job: Job,
    slot: OwnedSemaphorePermit,
    since: Instant,
}

struct Device {
    name: String,
    threads: usize,
    idle: Duration,
    /// Running and waiting jobs: the bound of the queue.
    slots: Arc<Semaphore>,
    queue: Mutex<Queue>,
    work: Condvar,
    /// There are answers for the watch to tell.
    answered: Notify,
    lane: Arc<Lane>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Waiting>,
    alive: usize,
    idle: usize,
    /// A thread has been called or made and has not yet looked at the queue.
    coming: bool,
    /// Of jobs that are done, for the watch.
    answers: Vec<Answer>,
    /// A [`Watch`] is there.
    watched: bool,
    pace: Pace,
}

/// Whether the last jobs were quick.
#[derive(Default)]
pub(crate) struct Pace(u8);

impl Pace {
    const MOST: u8 = 64;
    const SLOW_JOB: u8 = 8;

    /// As after many quick ones.
    pub fn quick() -> Self {
        Pace(Self::MOST)
    }

    pub fn note(&mut self, was_quick: bool) {
        self.0 = match was_quick {
            true => (self.0 + 1).min(Self::MOST),
            false => self.0.saturating_sub(Self::SLOW_JOB),
        };
    }

    pub fn is_quick(&self) -> bool {
        self.0 >= Self::MOST / 2
    }
}

impl DiskPools {
    pub fn new(threads: usize) -> Self {
        Self::with(threads, IDLE, LONG)
    }

    fn with(threads: usize, idle: Duration, long: Duration) -> Self {
        DiskPools(Arc::new(Inner::Threads {
            threads: threads.max(1),
            idle,
            long,
            devices: RwLock::default(),
        }))
    }

    /// Runs each job at once on the calling thread.
    pub fn inline() -> Self {
        DiskPools(Arc::new(Inner::Inline))
    }

    /// Runs `job` on a thread of `device` and returns its value. A panic of the job continues in the caller. The job
    /// is queued by the first poll of the returned future and runs even if that future is dropped afterwards.
    pub fn run<T, F>(&self, device: &str, job: F) -> impl Future<Output = T> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let device = self.device(device);
        async move {
            let Some(device) = device else { return job() };
            let slot = device.slot().await;
            device.run(slot, job).await
        }
    }

    /// Runs a job that stops where it needs a sync, so that its thread can do others meanwhile. All else is as with [`Self::run`].
    pub fn run_staged<T, F>(&self, device: &str, job: F) -> impl Future<Output = T> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> Step<T> + Send + 'static,
    {
        let device = self.device(device);
        async move {
            let Some(device) = device else { return job().finish() };
            let slot = device.slot().await;
            if !device.lane.is_open() {
                let lane = Arc::clone(&device.lane);
                let whole = move || {
                    let began = Instant::now();
                    let step = job();
                    lane.note(began.elapsed());
                    step.finish()
                };
                return device.run(slot, whole).await;
            }
            let (tx, rx) = oneshot::channel();
            let job = Box::new(move || {
                let tell = move |done| -> Answer {
                    drop(slot);
                    // The receiver may be gone; the work is done all the same.
                    Box::new(move || drop(tx.send(done)))
                };
                match catch_unwind(AssertUnwindSafe(job)) {
                    Ok(step) => step.map(|value| tell(Ok(value))),
                    Err(panic) => Step::Done(tell(Err(panic))),
                }
            });
            device.lane.push(job);
            answer(rx.await)
        }
    }

    /// Threads alive at this moment, over all devices.
    pub fn threads_alive(&self) -> usize {
        match &*self.0 {
            Inner::Inline => 0,
            Inner::Threads { devices, .. } => {
                let alive = |d: &Arc<Device>| d.queue.lock().alive + usize::from(d.lane.is_alive());
                devices.read().values().map(alive).sum()
            }
        }
    }

    /// `None` if jobs are run inline.
    fn device(&self, name: &str) -> Option<Arc<Device>> {
        let Inner::Threads { threads, idle, long, devices } = &*self.0 else { return None };
        if let Some(device) = devices.read().get(name) {
            return Some(Arc::clone(device));
        }
        let mut devices = devices.write();
        let device = devices.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Device {
                name: name.to_owned(),
                threads: *threads,
                idle: *idle,
                slots: Arc::new(Semaphore::new(QUEUE_LIMIT + *threads)),
                queue: Mutex::default(),
                work: Condvar::new(),
                answered: Notify::new(),
                lane: Arc::new(Lane::new(name, *idle, *long)),
            })
        });
        Some(Arc::clone(device))
    }
}

/// What a job has come to.
fn answer<T>(done: Result<std::thread::Result<T>, oneshot::error::RecvError>) -> T {
    match done.expect("a job that does not panic answers") {
        Ok(value) => value,
        Err(panic) => resume_unwind(panic),
    }
}

/// Whether somebody comes for a job.
#[derive(PartialEq, Eq)]
enum Called {
    Yes,
    /// The thread that is at work will find it; somebody must see to it that it does so soon.
    Watch,
}

impl Device {
    async fn slot(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.slots).acquire_owned().await.expect("the semaphore is never closed")
    }

    async fn run<T, F>(self: Arc<Self>, slot: OwnedSemaphorePermit, job: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (tx, rx) = oneshot::channel();
        let job = Box::new(move || -> Answer {
            let done = catch_unwind(AssertUnwindSafe(job));
            // The receiver may be gone; the work is done all the same.
            Box::new(move || drop(tx.send(done)))
        });
        if self.push(Waiting { job, slot, since: Instant::now() }) == Called::Watch {
            tokio::spawn(Watch { device: self, over: false }.run());
        }
        answer(rx.await)
    }

    fn push(self: &Arc<Self>, waiting: Waiting) -> Called {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(waiting);
        if queue.pace.is_quick() && queue.alive > queue.idle {
            return if std::mem::replace(&mut queue.watched, true) { Called::Yes } else { Called::Watch };
        }
        self.call_thread(queue);
        Called::Yes
    }

    /// A job has waited for too long.
    fn hurry(self: &Arc<Self>) {
        let mut queue = self.queue.lock();
        queue.pace = Pace::default();
        self.call_thread(queue);
    }

    /// Sees to it that somebody comes for what is queued. One thread at a time is on its way, and calls the next one if
    /// it finds more than one job: a burst of short jobs does not wake every thread.
    fn call_thread(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if queue.coming || queue.jobs.is_empty() {
            return;
        }
        if queue.idle > 0 {
            queue.coming = true;
            drop(queue);
            self.work.notify_one();
            return;
        }
        if queue.alive >= self.threads {
            return;
        }
        queue.alive += 1;
        queue.coming = true;
        drop(queue);
        let device = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name(format!("disk-{}", self.name))
            .stack_size(STACK_BYTES)
            .spawn(move || device.work());
        if spawned.is_err() {
            self.spawn_failed();
        }
    }

    /// No thread to be had from the system. Another thread of this device takes the job; with none alive the
    /// submitting thread does it, so that a job is never lost.
    fn spawn_failed(&self) {
        let mut queue = self.queue.lock();
        queue.alive -= 1;
        queue.coming = false;
        if queue.alive > 0 {
            return;
        }
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        for waiting in jobs {
            (waiting.job)()();
            drop(waiting.slot);
        }
    }

    fn work(self: Arc<Self>) {
        let mut queue = self.queue.lock();
        queue.coming = false;
        // Whether this thread has yet to call another one if there is more than it can do alone.
        let mut calls = true;
        loop {
            if let Some(Waiting { job, slot, .. }) = queue.jobs.pop_front() {
                match calls && !queue.pace.is_quick() {
                    true => self.call_thread(queue),
                    false => drop(queue),
                }
                let started = Instant::now();
                let answer = job();
                let took = started.elapsed();
                drop(slot);
                queue = self.queue.lock();
                let was_quick = queue.pace.is_quick();
                queue.pace.note(took <= QUICK);
                let is_quick = queue.pace.is_quick();
                calls = was_quick && !is_quick;
                if !queue.watched {
                    drop(queue);
                    answer();
                    queue = self.queue.lock();
                    continue;
                }
                queue.answers.push(answer);
                if queue.answers.len() == 1 {
                    drop(queue);
                    self.answered.notify_one();
                    queue = self.queue.lock();
                }
                continue;
            }
            queue.idle += 1;
            let timed_out = self.work.wait_for(&mut queue, self.idle).timed_out();
            queue.idle -= 1;
            // Also after a time-out: the call may have been meant for this thread.
            queue.coming = false;
            calls = true;
            if timed_out && queue.jobs.is_empty() {
                queue.alive -= 1;
                return;
            }
        }
    }
}

/// Looks after a thread that works alone, until there is nothing left to do: tells what is done, and sees to it that no job
/// waits for too long.
struct Watch {
    device: Arc<Device>,
    over: bool,
}

impl Watch {
    async fn run(mut self) {
        let device = Arc::clone(&self.device);
        let mut tick = std::pin::pin!(sleep_until(Deadline::now() + PATIENCE));
        loop {
            let ticked = tokio::select! {
                () = device.answered.notified() => false,
                () = &mut tick => true,
            };
            let mut queue = device.queue.lock();
            let answers = std::mem::take(&mut queue.answers);
            let waits = queue.jobs.front().map(|waiting| waiting.since.elapsed() >= PATIENCE);
            self.over = ticked && waits != Some(false);
            queue.watched = !self.over;
            drop(queue);
            answers.into_iter().for_each(|answer| answer());
            match (ticked, waits) {
                (true, None) => return,
                (true, Some(true)) => return device.hurry(),
                (true, Some(false)) => tick.as_mut().reset(Deadline::now() + PATIENCE),
                (false, _) => {}
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // The runtime ends.
        let mut queue = self.device.queue.lock();
        queue.watched = false;
        let answers = std::mem::take(&mut queue.answers);
        drop(queue);
        answers.into_iter().for_each(|answer| answer());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::fs::{Since, Staged};
    use std::sync::mpsc;

    #[tokio::test]
    async fn returns_the_value_of_the_job() {
        let pools = DiskPools::new(2);
        assert_eq!(pools.run("sda1", || 6 * 7).await, 42);
        assert_eq!(DiskPools::inline().run("sda1", || 6 * 7).await, 42);
    }

    #[tokio::test]
    async fn a_stuck_device_does_not_hold_up_another() {
        let pools = DiskPools::new(1);
        let (release, stuck) = mpsc::channel::<()>();
        let slow = tokio::spawn(pools.run("slow", move || stuck.recv()));
        assert_eq!(pools.run("fast", || 1).await, 1);
        release.send(()).unwrap();
        slow.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_device_never_has_more_threads_than_allowed() {
        let pools = DiskPools::new(3);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let jobs: Vec<_> = (0..10)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(pools.run("sda1", move || gate.lock().recv()))
            })
            .collect();
        for _ in 0..10 {
            release.send(()).unwrap();
        }
        for job in jobs {
            job.await.unwrap().unwrap();
        }
        assert!(pools.threads_alive() <= 3);
    }

    #[tokio::test]
    async fn a_job_runs_to_its_end_when_its_caller_goes_away() {
        let pools = DiskPools::new(1);
        let (started_tx, started) = oneshot::channel::<()>();
        let (release, gate) = mpsc::channel::<()>();
        let (done_tx, done) = oneshot::channel();
        let caller = tokio::spawn(pools.run("sda1", move || {
            started_tx.send(()).unwrap();
            gate.recv().unwrap();
            done_tx.send("renamed").unwrap();
        }));
        started.await.unwrap();
        caller.abort();
        release.send(()).unwrap();
        assert_eq!(done.await.unwrap(), "renamed");
    }

    #[tokio::test]
    async fn one_thread_does_quick_jobs_until_one_of_them_is_not() {
        let pools = DiskPools::new(2);
        let device = pools.device("sda1").unwrap();
        device.queue.lock().pace = Pace(Pace::MOST);
        let (release, gate) = mpsc::channel::<()>();
        let (started_tx, started) = oneshot::channel::<()>();
        let stuck = tokio::spawn(pools.run("sda1", move || {
            started_tx.send(()).unwrap();
            gate.recv()
        }));
        started.await.unwrap();
        assert_eq!(device.queue.lock().alive, 1);
        // Nobody is called for it at first; it loses its patience.
        assert_eq!(pools.run("sda1", || 5).await, 5);
        assert_eq!(device.queue.lock().alive, 2);
        release.send(()).unwrap();
        stuck.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_does_not_wait_for_a_later_job() {
        let pools = DiskPools::new(1);
        let device = pools.device("sda1").unwrap();
        device.queue.lock().pace = Pace(Pace::MOST);
        let (release, gate) = mpsc::channel::<()>();
        let (quick_tx, quick_gate) = mpsc::channel::<()>();
        let (started_tx, started) = oneshot::channel::<()>();
        let first = tokio::spawn(pools.run("sda1", move || {
            started_tx.send(()).unwrap();
            quick_gate.recv()
        }));
        started.await.unwrap();
        let quick = tokio::spawn(pools.run("sda1", || 5));
        let stuck = tokio::spawn(pools.run("sda1", move || gate.recv()));
        while device.queue.lock().jobs.len() < 2 {
            tokio::task::yield_now().await;
        }
        quick_tx.send(()).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(quick.await.unwrap(), 5);
        release.send(()).unwrap();
        stuck.await.unwrap().unwrap();
    }

    #[test]
    fn a_few_slow_jobs_outweigh_many_quick_ones() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.note(true);
        }
        assert!(pace.is_quick());
        for _ in 0..5 {
            pace.note(false);
            pace.note(true);
        }
        assert!(!pace.is_quick());
    }

    #[tokio::test]
    async fn a_panicking_job_panics_its_caller_and_leaves_the_device_usable() {
        let pools = DiskPools::new(1);
        let crashed = tokio::spawn(pools.run("sda1", || panic!("bad pickle"))).await;
        assert!(crashed.unwrap_err().is_panic());
        assert_eq!(pools.run("sda1", || 2).await, 2);
    }

    const HOUR: Duration = Duration::from_secs(3600);

    /// Stops once; its sync ends when the gate opens.
    struct Write {
        file: std::fs::File,
        began: mpsc::Sender<std::thread::ThreadId>,
        gate: Arc<Mutex<mpsc::Receiver<()>>>,
        panics: bool,
    }

    impl Staged<&'static str> for Write {
        fn since(&self) -> Since<'_> {
            Since { file: std::os::fd::AsFd::as_fd(&self.file), opened: Instant::now() }
        }

        fn together(&self) -> usize {
            0
        }

        fn sync(&self) -> std::io::Result<()> {
            self.began.send(std::thread::current().id()).unwrap();
            self.gate.lock().recv().unwrap();
            Ok(())
        }

        fn go_on(self: Box<Self>, synced: std::io::Result<()>) -> Step<&'static str> {
            assert!(!self.panics, "bad name");
            Step::Done(synced.map_or("lost", |()| "durable"))
        }
    }

    /// Makes such writes; tells which thread syncs, lets one sync end.
    struct Writes {
        pools: DiskPools,
        began: (mpsc::Sender<std::thread::ThreadId>, mpsc::Receiver<std::thread::ThreadId>),
        gate: (mpsc::Sender<()>, Arc<Mutex<mpsc::Receiver<()>>>),
    }

    impl Writes {
        fn new(long: Duration) -> Self {
            let (open, gate) = mpsc::channel();
            let gate = (open, Arc::new(Mutex::new(gate)));
            Writes { pools: DiskPools::with(2, Duration::from_millis(1), long), began: mpsc::channel(), gate }
        }

        fn start(&self, panics: bool) -> tokio::task::JoinHandle<&'static str> {
            let (file, began) = (tempfile::tempfile().unwrap(), self.began.0.clone());
            let gate = Arc::clone(&self.gate.1);
            let write = Write { file, began, gate, panics };
            tokio::spawn(self.pools.run_staged("sda1", move || Step::waits(write)))
        }

        /// The thread that syncs next.
        async fn syncing(&self) -> std::thread::ThreadId {
            loop {
                match self.began.1.try_recv() {
                    Ok(thread) => return thread,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        }

        fn let_go(&self) {
            self.gate.0.send(()).unwrap();
        }
    }

    #[tokio::test]
    async fn one_thread_syncs_for_the_writes_that_came_meanwhile() {
        let writes = Writes::new(HOUR);
        let first = writes.start(false);
        let thread = writes.syncing().await;
        let others = [writes.start(false), writes.start(false)];
        while writes.pools.device("sda1").unwrap().lane.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        (0..3).for_each(|_| writes.let_go());
        assert_eq!(first.await.unwrap(), "durable");
        for write in others {
            assert_eq!(writes.syncing().await, thread);
            assert_eq!(write.await.unwrap(), "durable");
        }
        while writes.pools.threads_alive() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(writes.pools.run_staged("sda1", || Step::Done(3)).await, 3);
    }

    #[tokio::test]
    async fn a_sync_that_takes_long_does_not_hold_up_later_writes() {
        let writes = Writes::new(Duration::from_millis(1));
        let stuck = writes.start(false);
        let thread = writes.syncing().await;
        while writes.pools.device("sda1").unwrap().lane.is_open() {
            tokio::task::yield_now().await;
        }
        let later = writes.start(false);
        assert_ne!(writes.syncing().await, thread);
        (0..2).for_each(|_| writes.let_go());
        assert_eq!((stuck.await.unwrap(), later.await.unwrap()), ("durable", "durable"));
    }

    #[tokio::test]
    async fn writes_that_wait_for_the_disk_before_their_sync_have_threads_of_their_own_until_they_do_not() {
        let pools = DiskPools::with(2, HOUR, HOUR);
        let name = || std::thread::current().id();
        let lane = pools.run_staged("sda1", move || Step::Done(name())).await;
        for _ in 0..8 {
            pools.device("sda1").unwrap().lane.note(Duration::from_secs(1));
        }
        assert_ne!(pools.run_staged("sda1", move || Step::Done(name())).await, lane);
        while !pools.device("sda1").unwrap().lane.is_open() {
            pools.run_staged("sda1", || Step::Done(())).await;
        }
        assert_eq!(pools.run_staged("sda1", move || Step::Done(name())).await, lane);
    }

    #[tokio::test]
    async fn a_panicking_write_panics_its_caller_and_leaves_the_others() {
        let writes = Writes::new(HOUR);
        let first = writes.start(false);
        writes.syncing().await;
        let (panicking, good) = (writes.start(true), writes.start(false));
        (0..3).for_each(|_| writes.let_go());
        assert!(panicking.await.unwrap_err().is_panic());
        assert_eq!((first.await.unwrap(), good.await.unwrap()), ("durable", "durable"));
        let early = tokio::spawn(writes.pools.run_staged("sda1", || -> Step<()> { panic!("bad pickle") }));
        assert!(early.await.unwrap_err().is_panic());
        assert_eq!(writes.pools.run_staged("sda1", || Step::Done(2)).await, 2);
    }

    #[tokio::test]
    async fn a_write_is_finished_when_its_caller_goes_away() {
        let writes = Writes::new(HOUR);
        let caller = writes.start(false);
        writes.syncing().await;
        caller.abort();
        writes.let_go();
        while writes.pools.threads_alive() > 0 {
            tokio::task::yield_now().await;
        }
        let device = writes.pools.device("sda1").unwrap();
        assert_eq!(device.slots.available_permits(), QUEUE_LIMIT + device.threads);
    }

    #[tokio::test]
    async fn idle_threads_end() {
        let pools = DiskPools::with(4, Duration::from_millis(1), LONG);
        pools.run("sda1", || ()).await;
        while pools.threads_alive() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(pools.run("sda1", || 3).await, 3);
    }
}
