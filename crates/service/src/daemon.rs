//! Daemons: run once or forever, and report alike.
//!
//! A [`Daemon`] knows one pass and its interval; [`run`] does the rest: a first random delay (so that a cluster which
//! was switched on at once does not sweep in step), the pause between passes, a pass that panics, the end at shutdown.
//! A pass which is cut off by shutdown is dropped at its next `.await`; work already handed to a disk pool is done to
//! its end.
//!
//! [`Progress`] is how a pass tells how far it is. All of a process's progress is on one [`ProgressBoard`], where the
//! live table of `up` and the metrics read it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::context::Context;
use crate::http::BoxFuture;
use crate::logs::Logger;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Once,
    Forever,
}

pub trait Daemon: Send + Sync + 'static {
    /// As in Swift's program name: `object-replicator`.
    fn name(&self) -> &'static str;

    /// One whole pass. Errors are logged where they are met.
    fn run_once(&self) -> BoxFuture<'_, ()>;

    /// A pass in one of the modes: for daemons whose passes differ by it.
    fn run_pass(&self, _mode: Mode) -> BoxFuture<'_, ()> {
        self.run_once()
    }

    /// From the start of a pass to the start of the next.
    fn interval(&self) -> Duration;

    /// Whether the first pass comes after a random part of the interval, as with most of Swift's daemons.
    fn delays_first_pass(&self) -> bool {
        true
    }

    /// Whether the whole interval is slept after a pass, however long the pass took (Swift's replicators), rather than
    /// what is left of it.
    fn sleeps_whole_interval(&self) -> bool {
        false
    }

    /// Whether only a random part of that is slept (Swift's object-expirer).
    fn sleeps_random_part(&self) -> bool {
        false
    }
}

/// What a daemon's command line asks for: `once -d sda1,sda2 -p 5 --policies 0`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DaemonArgs {
    /// Empty for all.
    pub devices: Vec<String>,
    /// Empty for all.
    pub partitions: Vec<u32>,
    /// Empty for all.
    pub policies: Vec<u32>,
    /// Of the object-auditor: look for zero-byte files only, so many a second.
    pub zero_byte_fps: Option<f64>,
    /// Of the object-expirer: how many share the work.
    pub processes: Option<u64>,
    /// Of the object-expirer: which of them this one is.
    pub process: Option<u64>,
}

/// Which part of the work is this process's, by the options `processes` and `process` or the words after the program's name.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub index: u64,
    pub of: u64,
}

impl Share {
    pub fn from_section(section: &Section, args: &DaemonArgs) -> Result<Self, ConfigError> {
        let processes = args.processes.map_or_else(|| section.int("processes", 0), Ok)?;
        let process = args.process.map_or_else(|| section.int("process", 0), Ok)?;
        match processes {
            0 => Ok(Share { index: 0, of: 1 }),
            _ if process >= processes => Err(section.error("process", "expected less than processes")),
            _ => Ok(Share { index: process, of: processes }),
        }
    }

    /// Whether what has this hash is ours.
    pub fn has(self, hash: u128) -> bool {
        hash % u128::from(self.of) == u128::from(self.index)
    }
}

/// Does what comes, so many tasks at a time, until nobody can send any more and all is done.
pub async fn work_off<'a, T>(
    mut tasks: mpsc::Receiver<T>,
    at_a_time: usize,
    work: impl Fn(T) -> BoxFuture<'a, ()>,
) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            task = tasks.recv(), if running.len() < at_a_time => match task {
                Some(task) => running.push(work(task)),
                None => break,
            },
            Some(()) = running.next(), if !running.is_empty() => {}
        }
    }
    while running.next().await.is_some() {}
}

/// Runs `daemon` until its only pass is done or the context shuts down.
pub async fn run(daemon: Arc<dyn Daemon>, ctx: &Context, mode: Mode) {
    let progress = ctx.progress(daemon.name());
    let work = async {
        match mode {
            Mode::Once => pass(&*daemon, ctx, &progress, Mode::Once).await,
            Mode::Forever => forever(&*daemon, ctx, &progress).await,
        }
    };
    tokio::select! {
        () = work => {}
        () = ctx.shutdown.wait() => progress.set_state(State::Stopped),
    }
}

async fn forever(daemon: &dyn Daemon, ctx: &Context, progress: &Progress) {
    if daemon.delays_first_pass() {
        progress.pause(ctx.rng.fraction_of(daemon.interval())).await;
    }
    loop {
        let start = Instant::now();
        pass(daemon, ctx, progress, Mode::Forever).await;
        let rest = match daemon.sleeps_whole_interval() {
            true => daemon.interval(),
            false => daemon.interval().saturating_sub(start.elapsed()),
        };
        let rest = if daemon.sleeps_random_part() { ctx.rng.fraction_of(rest) } else { rest };
        progress.pause(rest).await;
    }
}

async fn pass(daemon: &dyn Daemon, ctx: &Context, progress: &Progress, mode: Mode) {
    progress.pass_begins();
    let start = Instant::now();
    if let Err(panic) = AssertUnwindSafe(daemon.run_pass(mode)).catch_unwind().await {
        let text = panic_text(&*panic);
        ctx.logger.error(format_args!("Exception in {} pass: {text}", daemon.name()));
    }
    progress.pass_ends();
    let labels = [("daemon", daemon.name())];
    let took = i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX);
    ctx.metrics.counter("swift_daemon_passes_total", "Passes of a daemon.", &labels).inc();
    ctx.metrics
        .gauge("swift_daemon_last_pass_milliseconds", "How long the last pass took.", &labels)
        .set(took);
}

/// The option `interval` of a replicator, which was called `run_pause`.
pub fn replicator_interval(section: &Section, logger: &Logger, name: &str) -> Result<Duration, ConfigError> {
    let Some(run_pause) = section.get("run_pause") else { return section.secs("interval", 30.0) };
    let run_pause = run_pause.parse::<f64>().ok().and_then(|secs| Duration::try_from_secs_f64(secs).ok());
    if section.get("interval").is_some() {
        logger.warning(format_args!(
            "Option {name}/run_pause is deprecated and {name}/interval is already configured. You can safely remove \
             run_pause; it is now ignored and will be removed in a future version."
        ));
        return section.secs("interval", 30.0);
    }
    logger.warning(format_args!(
        "Option {name}/run_pause is deprecated and will be removed in a future version. Update your configuration to use \
         option {name}/interval."
    ));
    run_pause.ok_or_else(|| section.error("run_pause", "expected a number of seconds"))
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panicked")
}

/// Told by `trigger`, heard by everyone who waits. Clones are one.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown(Arc::new(watch::channel(false).0))
    }
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn trigger(&self) {
        self.0.send_replace(true);
    }

    pub fn is_triggered(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn wait(&self) {
        // An error would mean that the sender is gone, which we hold.
        let _ = self.0.subscribe().wait_for(|down| *down).await;
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Between passes.
    Waiting,
    Running,
    Stopped,
}

/// How far one daemon is. Clones are one.
#[derive(Clone)]
pub struct Progress(Arc<ProgressData>);

struct ProgressData {
    node: String,
    name: String,
    total: AtomicU64,
    done: AtomicU64,
    passes: AtomicU64,
    pass: Mutex<Pass>,
    wake: Notify,
}

struct Pass {
    state: State,
    began: Instant,
    last_took: Option<Duration>,
    note: String,
}

/// A progress at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub node: String,
    pub name: String,
    pub state: State,
    pub done: u64,
    pub total: u64,
    pub passes: u64,
    /// Of the running pass.
    pub elapsed: Duration,
    pub last_took: Option<Duration>,
    /// Items per second of the running pass.
    pub rate: f64,
    pub eta: Option<Duration>,
    pub note: String,
}

impl Progress {
    fn new(node: &str, name: &str) -> Self {
        let pass =
            Pass { state: State::Waiting, began: Instant::now(), last_took: None, note: String::new() };
        Progress(Arc::new(ProgressData {
            node: node.to_owned(),
            name: name.to_owned(),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            pass: Mutex::new(pass),
            wake: Notify::new(),
        }))
    }

    /// How many items this pass has; may be called again when more turn up.
    pub fn set(&self, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
    }

    pub fn inc(&self, n: u64) {
        self.0.done.fetch_add(n, Ordering::Relaxed);
    }

    /// A few words on what is done just now.
    pub fn note(&self, note: impl Into<String>) {
        self.0.pass.lock().note = note.into();
    }

    /// Ends the pause before the next pass.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    async fn pause(&self, pause: Duration) {
        // Either way the pause is over.
        let _ = tokio::time::timeout(pause, self.0.wake.notified()).await;
    }

    fn set_state(&self, state: State) {
        self.0.pass.lock().state = state;
    }

    fn pass_begins(&self) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.total.store(0, Ordering::Relaxed);
        let mut pass = self.0.pass.lock();
        pass.state = State::Running;
        pass.began = Instant::now();
        pass.note.clear();
    }

    fn pass_ends(&self) {
        self.0.passes.fetch_add(1, Ordering::Relaxed);
        let mut pass = self.0.pass.lock();
        pass.state = State::Waiting;
        pass.last_took = Some(pass.began.elapsed());
    }

    pub fn snapshot(&self) -> Snapshot {
        let done = self.0.done.load(Ordering::Relaxed);
        let total = self.0.total.load(Ordering::Relaxed);
        let pass = self.0.pass.lock();
        let elapsed = if pass.state == State::Running { pass.began.elapsed() } else { Duration::ZERO };
        let rate = if elapsed.is_zero() { 0.0 } else { done as f64 / elapsed.as_secs_f64() };
        let left = total.saturating_sub(done) as f64;
        let eta = (rate > 0.0).then(|| Duration::try_from_secs_f64(left / rate).unwrap_or(Duration::MAX));
        Snapshot {
            node: self.0.node.clone(),
            name: self.0.name.clone(),
            state: pass.state,
            done,
            total,
            passes: self.0.passes.load(Ordering::Relaxed),
            elapsed,
            last_took: pass.last_took,
            rate,
            eta,
            note: pass.note.clone(),
        }
    }
}

/// The progress of all daemons of a process.
#[derive(Clone, Default)]
pub struct ProgressBoard(Arc<Mutex<Vec<Progress>>>);

impl ProgressBoard {
    /// The progress of daemon `name` on `node`; the same one each time.
    pub fn get(&self, node: &str, name: &str) -> Progress {
        let mut all = self.0.lock();
        if let Some(known) = all.iter().find(|p| p.0.node == node && p.0.name == name) {
            return known.clone();
        }
        let progress = Progress::new(node, name);
        all.push(progress.clone());
        progress
    }

    pub fn all(&self) -> Vec<Progress> {
        self.0.lock().clone()
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.0.lock().iter().map(Progress::snapshot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting {
        interval: Duration,
        passes: AtomicU64,
        panics: bool,
    }

    impl Daemon for Counting {
        fn name(&self) -> &'static str {
            "object-updater"
        }

        fn run_once(&self) -> BoxFuture<'_, ()> {
            Box::pin(async move {
                self.passes.fetch_add(1, Ordering::Relaxed);
                assert!(!self.panics, "bad pickle");
            })
        }

        fn interval(&self) -> Duration {
            self.interval
        }
    }

    fn counting(interval: Duration, panics: bool) -> Arc<Counting> {
        Arc::new(Counting { interval, passes: AtomicU64::new(0), panics })
    }

    #[tokio::test]
    async fn once_is_one_pass_without_delay() {
        let daemon = counting(Duration::from_secs(3600), false);
        let ctx = Context::builder("object-updater").build();
        run(daemon.clone(), &ctx, Mode::Once).await;
        assert_eq!(daemon.passes.load(Ordering::Relaxed), 1);
        let shown = ctx.progress("object-updater").snapshot();
        assert_eq!((shown.state, shown.passes), (State::Waiting, 1));
    }

    #[tokio::test]
    async fn forever_goes_on_after_a_panic_and_ends_at_shutdown() {
        let daemon = counting(Duration::from_millis(1), true);
        let ctx = Context::builder("object-updater").build();
        let running = tokio::spawn({
            let (daemon, ctx) = (daemon.clone(), ctx.clone());
            async move { run(daemon, &ctx, Mode::Forever).await }
        });
        while daemon.passes.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        ctx.shutdown.trigger();
        running.await.unwrap();
        assert_eq!(ctx.progress("object-updater").snapshot().state, State::Stopped);
    }

    #[tokio::test]
    async fn a_waiting_daemon_can_be_woken() {
        let daemon = counting(Duration::from_secs(3600), false);
        let ctx = Context::builder("object-updater").build();
        let running = tokio::spawn({
            let (daemon, ctx) = (daemon.clone(), ctx.clone());
            async move { run(daemon, &ctx, Mode::Forever).await }
        });
        ctx.progress("object-updater").wake();
        while daemon.passes.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        running.abort();
    }

    #[test]
    fn progress_tells_rate_and_time_left() {
        let board = ProgressBoard::default();
        let progress = board.get("node1", "object-replicator");
        progress.pass_begins();
        progress.set(10);
        progress.inc(4);
        progress.note("sda1");
        std::thread::sleep(Duration::from_millis(2));
        let shown = board.get("node1", "object-replicator").snapshot();
        assert_eq!((shown.done, shown.total, shown.note.as_str()), (4, 10, "sda1"));
        assert!(shown.rate > 0.0 && shown.eta.is_some());
        assert_eq!(board.snapshots().len(), 1);
    }
}
