//! One thread of a device for the writes that wait for its syncs.
//!
//! Most of what a small write takes is waiting for its syncs, and a thread for each costs more in being woken than in what it
//! does. So one thread, the lane, takes all that have come, each up to where it needs a sync (`common::fs::Staged`), makes that
//! durable at once and goes on with each, over and over:
//!
//! ```text
//! round   1         2           3           4
//! write   a: file   a: linked   a: done
//!                   b: file     b: linked   b: done
//!                   c: file     c: linked   c: done
//! ```
//!
//! That is right while what is done between the syncs finds in memory what it looks for. Where it does not, where a round
//! takes long, or where more has come than one thread should do, writes go to the device's other threads, each from end to end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::fs::{Staged, Step, sync_together};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::disk_pool::{Answer, Pace, STACK_BYTES};

/// Writes that one round takes up: the first of them waits for the last.
const MOST: usize = 32;
/// A write that takes no longer up to its first sync found in memory what it looked for, or on a disk without a head to move.
const QUICK: Duration = Duration::from_millis(2);
/// While a round takes longer than this, writes go elsewhere.
pub(crate) const LONG: Duration = Duration::from_millis(20);

type Job = Box<dyn FnOnce() -> Step<Answer> + Send>;
type Works = Vec<Box<dyn Staged<Answer>>>;

/// The lane of one device.
pub(crate) struct Lane {
    name: String,
    idle: Duration,
    long: Duration,
    state: Mutex<State>,
    work: Condvar,
    /// There are answers to tell.
    answered: Notify,
}

struct State {
    jobs: Vec<Job>,
    alive: bool,
    is_idle: bool,
    /// When the round began that the thread is at work on.
    round: Option<Instant>,
    /// Of writes that are done.
    answers: Vec<Answer>,
    /// Writes that have not been answered for.
    unanswered: usize,
    /// A [`Teller`] is there.
    told: bool,
    pace: Pace,
}

impl Lane {
    /// Its thread ends after `idle` without work. `long`: see [`LONG`].
    pub fn new(name: &str, idle: Duration, long: Duration) -> Self {
        let state = State {
            jobs: Vec::new(),
            alive: false,
            is_idle: false,
            round: None,
            answers: Vec::new(),
            unanswered: 0,
            told: false,
            pace: Pace::quick(),
        };
        let (work, answered) = (Condvar::new(), Notify::new());
        Lane { name: name.to_owned(), idle, long, state: Mutex::new(state), work, answered }
    }

    /// Whether a write is to come here.
    pub fn is_open(&self) -> bool {
        let state = self.state.lock();
        state.pace.is_quick()
            && state.jobs.len() < MOST
            && state.round.is_none_or(|since| since.elapsed() < self.long)
    }

    pub fn is_alive(&self) -> bool {
        self.state.lock().alive
    }

    /// Writes that it has not taken up.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// How long a write took up to its first sync, wherever that was.
    pub fn note(&self, took: Duration) {
        self.state.lock().pace.note(took <= QUICK);
    }

    /// Takes a write.
    pub fn push(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        if !state.alive && !self.spawn(&mut state) {
            drop(state);
            // No thread to be had from the system.
            return job().finish()();
        }
        state.jobs.push(job);
        state.unanswered += 1;
        let wakes = std::mem::take(&mut state.is_idle);
        let needs_teller = !std::mem::replace(&mut state.told, true);
        drop(state);
        if wakes {
            self.work.notify_one();
        }
        if needs_teller {
            tokio::spawn(Teller { lane: Arc::clone(self), over: false }.run());
        }
    }

    fn spawn(self: &Arc<Self>, state: &mut State) -> bool {
        let lane = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name(format!("disk-{}", self.name))
            .stack_size(STACK_BYTES)
            .spawn(move || lane.work());
        state.alive = spawned.is_ok();
        state.alive
    }

    fn work(&self) {
        let mut works = Works::new();
        let mut state = self.state.lock();
        loop {
            let taken = state.jobs.len().min(MOST);
            if taken == 0 && works.is_empty() {
                state.round = None;
                if !self.wait(&mut state) {
                    state.alive = false;
                    return;
                }
                continue;
            }
            let jobs: Vec<Job> = state.jobs.drain(..taken).collect();
            state.round = Some(Instant::now());
            drop(state);
            self.begin(jobs, &mut works);
            self.go_on(&mut works);
            state = self.state.lock();
        }
    }

    /// False after a long time without work.
    fn wait(&self, state: &mut MutexGuard<'_, State>) -> bool {
        state.is_idle = true;
        let timed_out = self.work.wait_for(state, self.idle).timed_out();
        state.is_idle = false;
        !timed_out || !state.jobs.is_empty()
    }

    /// Takes each write up to its first sync.
    fn begin(&self, jobs: Vec<Job>, works: &mut Works) {
        let mut answers = Vec::new();
        for job in jobs {
            let began = Instant::now();
            sort(job(), works, &mut answers);
            self.note(began.elapsed());
        }
        // Refused: nothing to wait for.
        self.answer(answers);
    }

    /// Makes durable what they wait for, and takes each up to its next sync.
    fn go_on(&self, works: &mut Works) {
        // A panic is that of a write's caller, who learns of it by not being answered.
        let unanswered = || -> Answer { Box::new(|| ()) };
        let waiting = std::mem::take(works);
        let mut answers = Vec::new();
        match catch_unwind(AssertUnwindSafe(|| sync_together(&waiting))) {
            Err(_) => answers.extend(waiting.into_iter().map(|_| unanswered())),
            Ok(results) => {
                for (work, synced) in waiting.into_iter().zip(results) {
                    match catch_unwind(AssertUnwindSafe(|| work.go_on(synced))) {
                        Ok(step) => sort(step, works, &mut answers),
                        Err(_) => answers.push(unanswered()),
                    }
                }
            }
        }
        self.answer(answers);
    }

    fn answer(&self, answers: Vec<Answer>) {
        if answers.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        state.unanswered -= answers.len();
        state.answers.extend(answers);
        drop(state);
        self.answered.notify_one();
    }
}

fn sort(step: Step<Answer>, works: &mut Works, answers: &mut Vec<Answer>) {
    match step {
        Step::Done(answer) => answers.push(answer),
        Step::Waits(work) => works.push(work),
    }
}

/// Tells the callers on their own runtime: what a round has done costs it one wake-up.
struct Teller {
    lane: Arc<Lane>,
    over: bool,
}

impl Teller {
    async fn run(mut self) {
        let lane = Arc::clone(&self.lane);
        while !self.over {
            lane.answered.notified().await;
            let mut state = lane.state.lock();
            let answers = std::mem::take(&mut state.answers);
            self.over = state.unanswered == 0;
            state.told = !self.over;
            drop(state);
            answers.into_iter().for_each(|answer| answer());
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // The runtime ends.
        let mut state = self.lane.state.lock();
        state.told = false;
        let answers = std::mem::take(&mut state.answers);
        drop(state);
        answers.into_iter().for_each(|answer| answer());
    }
}
