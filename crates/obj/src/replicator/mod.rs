//! object-replicator: keeps the replicas of every partition on this machine's devices alike and where the ring wants them.
//!
//! A pass lists the partitions of all local devices, in a random order, and for each either brings the other primaries up to
//! date (`update.rs`) or, on a handoff, moves it to its primaries (`revert.rs`). Objects travel by SSYNC or rsync (`rsync.rs`).
//!
//! Differences from Swift's on purpose: a handoff only removes what its primaries are known to have; a partition that the ring
//! does not know is left alone; workers are parts of one process, whose passes begin together (`workers.rs`); transfers that
//! run when the ring changes are waited for; with `handoffs_first` all handoffs are done with before the first primary
//! partition, of which Swift begins as many as `concurrency` lets it before it knows; while the part power is increased a
//! policy is left alone from the first pass on, where Swift has not loaded all of the rings yet. An unknown `sync_method` is
//! refused at the start.
//!
//! Not done, as in Swift 2.38: `lockup_timeout`, which only the reconstructor heeds.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::config::{Conf, ConfigError, Section};
use common::hash::{ObjHash, Suffix};
use common::policy::StoragePolicy;
use parking_lot::Mutex;
use ring::{Device, Ring, whataremyips};
use serde_json::{Map, Value, json};
use service::context::Context;
use service::daemon::{Daemon, Mode, Progress, replicator_interval};
use service::http::BoxFuture;
use service::logs::Logger;
use service::recon;
use tokio::task::JoinSet;

use crate::diskfile::{DiskFileConf, DiskFileError, DiskFileRouter, SeenObjects, SuffixHashes};
use crate::ssync::Unchecked;
use crate::ssync::sender::{InSync, Sender, SenderConf};

pub(crate) mod job;
pub(crate) mod revert;
mod rsync;
pub(crate) mod stats;
pub(crate) mod update;
pub(crate) mod workers;

use job::{
    DeviceJobs, Job, Overrides, jobs_of_device, local_devices, node_key, not_available, ring_changed,
    ring_to_sync,
};
use rsync::RsyncConf;
use stats::{NodeKey, Stats, stats_lines};

const NAME: &str = "object-replicator";
/// The last checks of a pass, of objects of any device, are queued under this name.
const CHECK_POOL: &str = "checks";

/// The options of `[object-replicator]`.
struct ReplicatorConf {
    ring_ip: String,
    /// `None` when each device has a port of its own.
    port: Option<u16>,
    /// Jobs at a time, of each worker.
    concurrency: usize,
    /// 0: no workers.
    workers: usize,
    interval: Duration,
    stats_interval: Duration,
    ring_check_interval: Duration,
    handoffs_first: bool,
    /// How many primaries must have a handoff's objects before they are removed; 0: all.
    handoff_delete: usize,
    method: SyncMethod,
    sender: SenderConf,
}

/// `sync_method`.
enum SyncMethod {
    Ssync,
    Rsync(RsyncConf),
}

/// What a session need not find out.
#[derive(Clone, Copy, Default)]
struct Known<'a> {
    /// What has just been seen of the suffixes.
    seen: Option<&'a SeenObjects>,
    /// Objects that another node of the region has got: only whether this one has them is asked.
    in_region: Option<&'a HashSet<ObjHash>>,
}

/// What is in the place of a partition.
enum Found {
    /// Says why.
    NoDevice(String),
    File,
    Handoff,
    /// How many suffixes had to be hashed, and the hashes.
    Primary(Result<(usize, SuffixHashes), DiskFileError>),
}

/// Why a transfer could not be made, other than that the method itself says so.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Disk(#[from] DiskFileError),
    #[error("cannot run rsync: {0}")]
    Rsync(std::io::Error),
    #[error("REPLICATE after rsync: {0}")]
    Notify(String),
}

impl ReplicatorConf {
    fn from_section(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let ring_ip = section.get("ring_ip").map(str::to_string);
        let ring_ip = ring_ip.unwrap_or_else(|| section.str("bind_ip", "0.0.0.0"));
        let servers_per_port = section.int::<u32>("servers_per_port", 0)?;
        let port = section.int("bind_port", 6200)?;
        // Read in either case: options of the method that is not in use are no unknown ones.
        let rsync = RsyncConf::from_section(section)?;
        let method = match section.get("sync_method").filter(|method| !method.is_empty()).unwrap_or("rsync") {
            "ssync" => SyncMethod::Ssync,
            "rsync" => SyncMethod::Rsync(rsync),
            _ => return Err(section.error("sync_method", "expected ssync or rsync")),
        };
        let _ignored = section.get("lockup_timeout");
        let conf = Self {
            ring_ip,
            port: (servers_per_port == 0).then_some(port),
            concurrency: section.positive_int::<usize>("concurrency", 1)?,
            // Less than none is none.
            workers: usize::try_from(section.int::<i64>("replicator_workers", 0)?).unwrap_or(0),
            interval: replicator_interval(section, &ctx.logger, NAME)?,
            stats_interval: section.secs("stats_interval", 300.0)?,
            ring_check_interval: section.secs("ring_check_interval", 15.0)?,
            handoffs_first: section.bool("handoffs_first", false)?,
            handoff_delete: section.auto_int::<usize>("handoff_delete")?.unwrap_or(0),
            method,
            sender: SenderConf::from_section(section)?,
        };
        if conf.handoff_delete > 0 || conf.handoffs_first {
            ctx.logger.warning(
                "Handoff only mode is not intended for normal operation, please disable handoffs_first and \
                 handoff_delete before the next normal rebalance",
            );
        }
        Ok(conf)
    }
}

/// The daemon of a configuration file.
pub fn build(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    Ok(Arc::new(ObjectReplicator::new(&conf.section_or_default(NAME), ctx)?))
}

pub struct ObjectReplicator {
    ctx: Context,
    conf: Arc<ReplicatorConf>,
    router: Arc<DiskFileRouter>,
    cycle: AtomicU32,
    started: AtomicBool,
}

/// All of the work of a pass, or the share of one worker.
struct Replicator {
    ctx: Context,
    logger: Logger,
    conf: Arc<ReplicatorConf>,
    router: Arc<DiskFileRouter>,
    overrides: Overrides,
    /// Of all of its sessions.
    unchecked: Arc<Unchecked>,
}

/// One pass, as its jobs see it.
struct Pass {
    /// 0 to 9; each pass lists a tenth of the partitions afresh.
    cycle: u32,
    started: Instant,
    stats: Mutex<BTreeMap<String, Stats>>,
    partition_times: Mutex<Vec<Duration>>,
    handoff_remains: AtomicBool,
    job_count: AtomicU64,
    /// Partitions attempted when the stats were last logged.
    last_count: AtomicU64,
    progress: Progress,
}

impl Pass {
    fn stats(&self, device: &str, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.lock();
        match stats.get_mut(device) {
            Some(stats) => change(stats),
            None => change(stats.entry(device.to_string()).or_default()),
        }
    }

    fn partition_took(&self, took: Duration) {
        self.partition_times.lock().push(took);
        self.progress.inc(1);
    }

    fn handoff_remains(&self) {
        self.handoff_remains.store(true, Ordering::Relaxed);
    }
}

impl Daemon for ObjectReplicator {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        self.run_pass(Mode::Once)
    }

    fn run_pass(&self, mode: Mode) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let cycle = self.cycle.fetch_add(1, Ordering::Relaxed) % 10;
            let begun = Begun { mode, first: !self.started.swap(true, Ordering::Relaxed), cycle };
            // Swift: a command line can choose partitions only `once`.
            let overrides = match mode {
                Mode::Once => Overrides::of(&self.ctx.args),
                Mode::Forever => Overrides::default(),
            };
            let shares = self.shares(&overrides);
            if shares.is_empty() {
                let replicator = self.replicator(self.ctx.logger.clone(), overrides);
                replicator.run(begun, &AtomicU64::new(0)).await;
            } else {
                self.run_workers(begun, &overrides, shares).await;
            }
        })
    }

    fn interval(&self) -> Duration {
        self.conf.interval
    }

    fn delays_first_pass(&self) -> bool {
        false
    }

    fn sleeps_whole_interval(&self) -> bool {
        true
    }
}

/// What a pass knows at its start.
#[derive(Clone, Copy)]
struct Begun {
    mode: Mode,
    /// The first of this process.
    first: bool,
    /// 0 to 9; each pass lists a tenth of the partitions afresh.
    cycle: u32,
}

/// What a pass has done.
struct Done {
    stats: BTreeMap<String, Stats>,
    minutes: f64,
    /// Unix time.
    ended: f64,
}

impl Done {
    fn recon(&self, stats: &Stats) -> Map<String, Value> {
        let mut entries = times(self.minutes, self.ended);
        entries.insert("replication_stats".to_string(), stats.to_recon());
        entries
    }
}

/// The times of a pass, under all the keys by which they are looked up.
fn times(minutes: f64, ended: f64) -> Map<String, Value> {
    let entries = [
        ("replication_time", minutes),
        ("replication_last", ended),
        ("object_replication_time", minutes),
        ("object_replication_last", ended),
    ];
    entries.into_iter().map(|(key, value)| (key.to_string(), json!(value))).collect()
}

fn total(stats: &BTreeMap<String, Stats>) -> Stats {
    let mut total = Stats::default();
    stats.values().for_each(|stats| total.add(stats));
    total
}

impl ObjectReplicator {
    fn new(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let mut conf = ReplicatorConf::from_section(section, ctx)?;
        let disks = DiskFileConf::from_section(section, &ctx.logger)?;
        let router = DiskFileRouter::new(&disks, &ctx.swift_conf, &ctx.clock, &ctx.logger, &ctx.statsd);
        let replicas = |policy: &StoragePolicy| {
            ctx.rings.object(policy.index, &ctx.swift_conf.policies).map_or(0, |ring| ring.replica_count())
        };
        let mut policies = ctx.swift_conf.policies.iter().filter(|policy| !policy.is_erasure());
        if conf.handoff_delete > 0 && policies.all(|policy| replicas(policy) <= conf.handoff_delete) {
            ctx.logger.warning(format_args!(
                "No storage policies found for which handoff_delete={} would have an effect. Disabling.",
                conf.handoff_delete
            ));
            conf.handoff_delete = 0;
        }
        Ok(Self {
            ctx: ctx.clone(),
            conf: Arc::new(conf),
            router: Arc::new(router),
            cycle: AtomicU32::new(ctx.rng.below(10) as u32),
            started: AtomicBool::new(false),
        })
    }

    fn replicator(&self, logger: Logger, overrides: Overrides) -> Arc<Replicator> {
        let (ctx, conf, router) = (self.ctx.clone(), self.conf.clone(), self.router.clone());
        Arc::new(Replicator { ctx, logger, conf, router, overrides, unchecked: Arc::default() })
    }
}

impl Replicator {
    /// A pass of a replicator without workers.
    async fn run(self: &Arc<Self>, begun: Begun, planned: &AtomicU64) {
        let done = self.pass(begun, planned).await;
        // A pass over a part says nothing on how the whole is doing.
        if !self.overrides.any() {
            let entries = done.recon(&total(&done.stats)).into_iter().collect();
            recon::dump_recon_cache(&self.ctx, recon::OBJECT_FILE, entries).await;
        }
        self.log_sleep(begun.mode);
    }

    /// One pass. `planned` counts the jobs of all passes which run beside this one.
    async fn pass(self: &Arc<Self>, begun: Begun, planned: &AtomicU64) -> Done {
        match begun.mode {
            Mode::Once => self.logger.info("Running object replicator in script mode."),
            Mode::Forever => {
                if begun.first {
                    self.logger.info("Starting object replicator in daemon mode.");
                }
                self.logger.info("Starting object replication pass.");
            }
        }
        let pass = Arc::new(Pass {
            cycle: begun.cycle,
            started: Instant::now(),
            stats: Mutex::default(),
            partition_times: Mutex::default(),
            handoff_remains: AtomicBool::new(false),
            job_count: AtomicU64::new(0),
            last_count: AtomicU64::new(0),
            progress: self.ctx.progress(NAME),
        });
        let heartbeat = async {
            loop {
                tokio::time::sleep(self.conf.stats_interval).await;
                self.log_stats(&pass);
            }
        };
        tokio::select! {
            () = self.replicate(&pass, planned) => {}
            () = heartbeat => {}
        }
        self.log_stats(&pass);
        let minutes = pass.started.elapsed().as_secs_f64() / 60.0;
        let how = if begun.mode == Mode::Once { " (once)" } else { "" };
        self.logger.info(format_args!("Object replication complete{how}. ({minutes:.2} minutes)"));
        let stats = std::mem::take(&mut *pass.stats.lock());
        Done { stats, minutes, ended: self.ctx.clock.unix_secs() }
    }

    fn log_sleep(&self, mode: Mode) {
        if mode == Mode::Forever {
            let secs = self.conf.interval.as_secs_f64();
            self.logger.debug(format_args!("Replication sleeping for {secs:?} seconds."));
        }
    }

    async fn replicate(self: &Arc<Self>, pass: &Arc<Pass>, planned: &AtomicU64) {
        let mut jobs = self.collect_jobs(pass).await;
        self.ctx.rng.shuffle(&mut jobs);
        if self.conf.handoffs_first {
            jobs.sort_by_key(|job| !job.delete);
        }
        let count = jobs.len() as u64;
        pass.job_count.store(count, Ordering::Relaxed);
        pass.progress.set(planned.fetch_add(count, Ordering::Relaxed) + count);
        let mut running = JoinSet::new();
        let mut next_check = Instant::now() + self.conf.ring_check_interval;
        let mut handoffs_first = self.conf.handoffs_first;
        for job in jobs {
            if handoffs_first && !job.delete {
                handoffs_first = false;
                // What becomes of the handoffs decides whether there is more to do in this pass.
                while let Some(done) = running.join_next().await {
                    self.note_panic(done);
                }
                if pass.handoff_remains.load(Ordering::Relaxed) {
                    self.logger.warning(
                        "Handoffs first mode still has handoffs remaining.  Aborting current replication pass.",
                    );
                    break;
                }
            }
            if Instant::now() >= next_check {
                next_check = Instant::now() + self.conf.ring_check_interval;
                if ring_changed(&self.ctx, job.manager.policy(), &job.ring) {
                    self.logger.info("Ring change detected. Aborting current replication pass.");
                    break;
                }
            }
            if running.len() >= self.conf.concurrency
                && let Some(done) = running.join_next().await
            {
                self.note_panic(done);
            }
            running.spawn(self.clone().process(pass.clone(), job));
        }
        while let Some(done) = running.join_next().await {
            self.note_panic(done);
        }
        let unchecked = self.unchecked.clone();
        self.ctx.disk_pools.run(CHECK_POOL, move || unchecked.check()).await;
    }

    fn note_panic(&self, done: Result<(), tokio::task::JoinError>) {
        if let Err(err) = done {
            self.logger.error(format_args!("Exception in top-level replication loop: {err}"));
        }
    }

    async fn process(self: Arc<Self>, pass: Arc<Pass>, job: Job) {
        pass.progress.note(format!("{}/{}", job.device, job.partition));
        let begin = Instant::now();
        match self.look(&pass, &job).await {
            Found::NoDevice(reason) => {
                self.logger.warning(reason);
                pass.stats(&job.device, |stats| stats.add_failure_stats(&job.node_keys()));
            }
            Found::File => self.remove_file(&job.path, &job.device).await,
            Found::Handoff => self.revert(&pass, &job).await,
            Found::Primary(hashed) => self.update(&pass, &job, begin, hashed).await,
        }
    }

    /// What is in the place of a partition, and of a primary its hashes.
    async fn look(&self, pass: &Pass, job: &Job) -> Found {
        let do_listdir = (job.partition + pass.cycle).is_multiple_of(10);
        if !job.delete
            && !do_listdir
            && let Some(hashes) = job.manager.hashes_in_memory(&job.device, job.partition)
        {
            return Found::Primary(Ok((0, hashes)));
        }
        let (manager, device, partition) = (job.manager.clone(), job.device.clone(), job.partition);
        let (path, delete) = (job.path.clone(), job.delete);
        let look = move || match manager.dev_path(&device) {
            None => Found::NoDevice(not_available(&manager, &device)),
            Some(_) if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) => Found::File,
            Some(_) if delete => Found::Handoff,
            Some(device_path) => Found::Primary(manager.rehash(&device_path, partition, &[], do_listdir)),
        };
        self.ctx.disk_pools.run(&job.device, look).await
    }

    /// Cleans up a file, probably an empty one, where a partition should be.
    async fn remove_file(&self, path: &Path, device: &str) {
        let shown = path.display();
        self.logger.warning(format_args!("Removing partition directory which was a file: {shown}"));
        let file = path.to_path_buf();
        if let Err(err) = self.ctx.disk_pools.run(device, move || common::fs::remove_file(&file)).await {
            self.logger.error(format_args!("cannot remove {shown}: {err}"));
        }
    }

    /// Sends suffixes to a node. What is in sync then, of which rsync tells nothing; `None` if it failed, which has been logged.
    async fn sync(
        &self,
        node: &Device,
        job: &Job,
        suffixes: &[Suffix],
        known: Known<'_>,
    ) -> Result<Option<InSync>, SyncError> {
        if let SyncMethod::Rsync(conf) = &self.conf.method {
            return Ok(self.rsync(conf, node, job, suffixes).await?.then(InSync::new));
        }
        let sender = Sender {
            ctx: &self.ctx,
            logger: &self.logger,
            conf: self.conf.sender,
            manager: &job.manager,
            device: &job.device,
            partition: job.partition,
            node,
            suffixes,
            seen: known.seen,
            remote_check_objs: known.in_region,
            unchecked: Some(&self.unchecked),
            fragments: None,
        };
        Ok(sender.run().await)
    }

    async fn collect_jobs(&self, pass: &Pass) -> Vec<Job> {
        let policies = &self.ctx.swift_conf.policies;
        let mut jobs = Vec::new();
        for policy in policies.iter().filter(|policy| !policy.is_erasure()) {
            let Some(ring) = ring_to_sync(&self.ctx, policy, &self.logger) else { continue };
            if !self.overrides.takes_policy(policy.index.0) {
                continue;
            }
            self.jobs_of_policy(pass, policy, &ring, &mut jobs).await;
        }
        jobs
    }

    async fn jobs_of_policy(
        &self,
        pass: &Pass,
        policy: &StoragePolicy,
        ring: &Arc<Ring>,
        jobs: &mut Vec<Job>,
    ) {
        let Some(manager) = self.router.get(policy.index) else { return };
        let ips = whataremyips(&self.conf.ring_ip);
        let local = local_devices(ring, &ips, self.conf.port, &self.overrides);
        if local.is_empty() {
            let ips = ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let port = self.conf.port.map_or("None".to_string(), |port| port.to_string());
            self.logger.error(format_args!(
                "Can't find itself in policy with index {} with ips {ips} and with port {port} in ring file, not replicating",
                policy.index.0
            ));
        }
        for dev in local {
            let (manager, ring, logger) = (manager.clone(), ring.clone(), self.logger.clone());
            let (overrides, device) = (self.overrides.clone(), dev.device.clone());
            let all: Vec<NodeKey> = ring.devs().iter().flatten().map(|dev| node_key(dev)).collect();
            let list = move || jobs_of_device(&manager, &ring, &dev, &overrides, &logger);
            match self.ctx.disk_pools.run(&device, list).await {
                DeviceJobs::Unavailable(reason) => {
                    self.logger.warning(reason);
                    pass.stats(&device, |stats| stats.add_failure_stats(&all));
                }
                DeviceJobs::Found(found, strange) => {
                    jobs.extend(found);
                    for _ in 0..strange {
                        pass.stats(&device, |stats| stats.add_failure_stats(&all));
                    }
                }
            }
        }
    }

    fn log_stats(&self, pass: &Pass) {
        let stats = total(&pass.stats.lock());
        if pass.last_count.swap(stats.attempted, Ordering::Relaxed) == stats.attempted {
            let secs = pass.started.elapsed().as_secs_f64();
            self.logger.info(format_args!("Nothing replicated for {secs} seconds."));
            return;
        }
        let times = pass.partition_times.lock().clone();
        let total = pass.job_count.load(Ordering::Relaxed);
        for line in stats_lines(&stats, total, pass.started.elapsed(), &times) {
            self.logger.info(line);
        }
    }
}
