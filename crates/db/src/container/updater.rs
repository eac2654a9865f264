//! The container-updater (swift/container/updater.py): tells accounts what has changed in their containers.
//!
//! A pass walks all container databases of the node, `concurrency` partitions at a time and at most `containers_per_second`. A
//! database whose timestamps or counts differ from what was last reported is reported to every account server of the account;
//! when most of them took it, the database remembers it. If all of them say that there is no such account, the database is
//! quarantined. An account that could not be told is left alone for `account_suppression_time`.
//!
//! A database that had nothing to report and has not been written to since (its file and its pending file) is not opened again: an
//! idle node's pass costs a walk.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::config::{Conf, ConfigError, Section};
use common::policy::majority_size;
use common::timestamp::Timestamp;
use futures_util::StreamExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use ring::Node;
use service::http::{BoxFuture, Status};
use service::{Context, Daemon, recon};

use super::account_update::{self, Place, Report};
use super::broker::{ContainerBroker, ContainerInfo, DATADIR};
use crate::broker::{BrokerError, Options, Shared};
use crate::locations::{database_files, names_in};
use crate::pace::Pace;

const NAME: &str = "container-updater";
/// Databases of which it is remembered that they had nothing to report.
const MAX_QUIET: usize = 100_000;
/// A file written to more recently than this may be written to again without its time changing.
const SETTLED: Duration = Duration::from_secs(2);

pub fn build(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    Ok(Arc::new(ContainerUpdater(Arc::new(Updater::new(&conf.section_or_default(NAME), ctx)?))))
}

struct ContainerUpdater(Arc<Updater>);

struct Updater {
    ctx: Context,
    shared: Arc<Shared>,
    devices: PathBuf,
    mount_check: bool,
    interval: Duration,
    concurrency: usize,
    pace: Pace,
    node_timeout: Duration,
    conn_timeout: Duration,
    suppression_time: Duration,
    /// Accounts that could not be told, and until when (seconds since the epoch) to leave them alone.
    suppressions: Mutex<HashMap<String, f64>>,
    quiet: Mutex<HashMap<PathBuf, Fingerprint>>,
    user_agent: String,
}

/// What a pass did.
#[derive(Default)]
struct Counts {
    successes: AtomicU64,
    failures: AtomicU64,
    no_changes: AtomicU64,
}

impl Daemon for ContainerUpdater {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.clone().sweep())
    }

    fn interval(&self) -> Duration {
        self.0.interval
    }
}

impl Updater {
    fn new(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let logger = ctx.logger.clone();
        let default_pace = match section.get("slowdown") {
            None => 50.0,
            Some(_) => {
                ctx.logger.warning(
                    "The slowdown option is deprecated in favor of containers_per_second. This option may be \
                     ignored in a future release.",
                );
                1.0 / (section.non_negative_float("slowdown", 0.01)? + 0.01)
            }
        };
        section.bool("db_preallocation", false)?;
        Ok(Self {
            shared: Shared::new(ctx.clock.clone(), move |line: &str| logger.error(line)),
            devices: section.str("devices", "/srv/node").into(),
            mount_check: section.bool("mount_check", true)?,
            interval: section.secs("interval", 300.0)?,
            concurrency: section.positive_int("concurrency", 4)?,
            pace: Pace::new(section.non_negative_float("containers_per_second", default_pace)?),
            node_timeout: section.secs("node_timeout", 3.0)?,
            conn_timeout: section.secs("conn_timeout", 0.5)?,
            suppression_time: section.secs("account_suppression_time", 60.0)?,
            suppressions: Mutex::default(),
            quiet: Mutex::default(),
            user_agent: format!("container-updater {}", std::process::id()),
            ctx: ctx.clone(),
        })
    }

    async fn sweep(self: Arc<Self>) {
        self.ctx.logger.info("Begin container update sweep");
        let begin = Instant::now();
        let now = self.ctx.clock.unix_secs();
        self.suppressions.lock().retain(|_, until| *until >= now);
        let counts = Counts::default();
        let mut partitions = self.partitions().await;
        self.ctx.rng.shuffle(&mut partitions);
        let progress = self.ctx.progress(NAME);
        progress.set(partitions.len() as u64);
        futures_util::stream::iter(partitions)
            .for_each_concurrent(self.concurrency, |(device, path)| {
                let (updater, counts, progress) = (&self, &counts, &progress);
                async move {
                    updater.sweep_partition(&device, path, counts).await;
                    progress.inc(1);
                }
            })
            .await;
        self.shared.connections.close_all();
        let elapsed = begin.elapsed().as_secs_f64();
        self.ctx.logger.info(format_args!(
            "Container update sweep completed: {elapsed:.2}s, {} successes, {} failures, {} with no changes",
            counts.successes.load(Ordering::Relaxed),
            counts.failures.load(Ordering::Relaxed),
            counts.no_changes.load(Ordering::Relaxed)
        ));
        let entries = vec![("container_updater_sweep".to_owned(), elapsed.into())];
        recon::dump_recon_cache(&self.ctx, recon::CONTAINER_FILE, entries).await;
    }

    /// The partitions of all devices that can be used.
    async fn partitions(self: &Arc<Self>) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        let updater = self.clone();
        let list = move || names_in(&updater.devices).unwrap_or_else(|error| updater.cannot_list(&error));
        for device in self.ctx.disk_pools.run(NAME, list).await {
            let wanted = &self.ctx.args.devices;
            if !wanted.is_empty() && !wanted.contains(&device) {
                continue;
            }
            let (updater, name) = (self.clone(), device.clone());
            let listed = self.ctx.disk_pools.run(&device, move || updater.partitions_of(&name)).await;
            found.extend(listed.into_iter().map(|path| (device.clone(), path)));
        }
        found
    }

    fn partitions_of(&self, device: &str) -> Vec<PathBuf> {
        let Some(path) = common::fs::check_drive(&self.devices, device, self.mount_check) else {
            let what = if self.mount_check { "mounted" } else { "a directory" };
            self.ctx.logger.warning(format_args!("{} is not {what}", self.devices.join(device).display()));
            return Vec::new();
        };
        let containers = path.join(DATADIR);
        if !containers.exists() {
            return Vec::new();
        }
        let names = names_in(&containers).unwrap_or_else(|error| self.cannot_list(&error));
        names.into_iter().map(|name| containers.join(name)).collect()
    }

    fn cannot_list(&self, error: &std::io::Error) -> Vec<String> {
        self.ctx.logger.error(format_args!("ERROR:  Failed to get paths to drive partitions: {error}"));
        Vec::new()
    }

    async fn sweep_partition(self: &Arc<Self>, device: &str, partition: PathBuf, counts: &Counts) {
        let updater = self.clone();
        let (files, quiet) =
            self.ctx.disk_pools.run(device, move || updater.split_quiet(database_files(&partition))).await;
        for _ in 0..quiet {
            self.count_no_change(counts);
        }
        for file in files {
            let path = file.clone();
            if let Err(error) = self.process_container(device, file, counts).await {
                self.ctx.logger.error(format_args!("Error processing container {}: {error}", path.display()));
            }
        }
    }

    async fn process_container(
        self: &Arc<Self>,
        device: &str,
        file: PathBuf,
        counts: &Counts,
    ) -> Result<(), BrokerError> {
        self.pace.wait().await;
        let start = Instant::now();
        let (updater, path) = (self.clone(), file.clone());
        let found = match self.ctx.disk_pools.run(device, move || updater.read(&path)).await {
            Err(BrokerError::LockTimeout(what)) => {
                self.ctx.logger.info(format_args!(
                    "Failed to get container info (Lock timeout: {}); skipping.",
                    what.display()
                ));
                return Ok(());
            }
            other => other?,
        };
        match found {
            Found::Skip => Ok(()),
            Found::NoChange => {
                self.count_no_change(counts);
                Ok(())
            }
            Found::Changed(info) => {
                let done = self.report(device, file, *info, counts).await;
                self.ctx.statsd.timing_since("timing", start);
                done
            }
        }
    }

    /// What a database has to report.
    fn read(&self, file: &Path) -> Result<Found, BrokerError> {
        let mut broker = ContainerBroker::new(&self.shared, file, Options::default());
        let mut info = broker.info()?;
        // A container that only rows have created knows nothing worth telling.
        if Timestamp::parse(&info.put_timestamp).unwrap_or_default().is_zero() {
            return Ok(Found::Skip);
        }
        let until = self.suppressions.lock().get(&info.account).copied();
        if until.is_some_and(|until| until > self.ctx.clock.unix_secs()) {
            return Ok(Found::Skip);
        }
        if !broker.is_root_container()? {
            // The root's counts have those of its shards in them.
            (info.object_count, info.bytes_used) = (0, 0);
        }
        let changed = info.put_timestamp > info.reported_put_timestamp
            || info.delete_timestamp > info.reported_delete_timestamp
            || info.object_count != info.reported_object_count
            || info.bytes_used != info.reported_bytes_used;
        if changed {
            return Ok(Found::Changed(Box::new(info)));
        }
        drop(broker);
        self.remember_quiet(file);
        Ok(Found::NoChange)
    }

    /// The databases that must be read, and how many others had nothing to report and still have not.
    fn split_quiet(&self, files: Vec<PathBuf>) -> (Vec<PathBuf>, usize) {
        let all = files.len();
        let is_quiet = |file: &PathBuf| {
            let known = self.quiet.lock().get(file).cloned();
            known.is_some() && known == Fingerprint::of(file)
        };
        let files: Vec<PathBuf> = files.into_iter().filter(|file| !is_quiet(file)).collect();
        let quiet = all - files.len();
        (files, quiet)
    }

    async fn report(
        self: &Arc<Self>,
        device: &str,
        file: PathBuf,
        info: ContainerInfo,
        counts: &Counts,
    ) -> Result<(), BrokerError> {
        let ring = match self.ctx.rings.account() {
            Ok(ring) => ring,
            Err(error) => {
                self.ctx.logger.error(format_args!("ERROR account ring: {error}"));
                return Ok(());
            }
        };
        let (partition, nodes) = ring.get_nodes(&self.ctx.swift_conf.hash, &info.account, None, None);
        let report =
            Report { override_deleted: true, user_agent: self.user_agent.clone(), ..Report::of(&info) };
        let answers =
            join_all(nodes.iter().map(|node| self.container_report(node, partition, &report))).await;
        let successes = answers.iter().filter(|status| status.is_success()).count();
        let not_found = answers.iter().filter(|status| **status == Status::NOT_FOUND).count();
        let outcome = if successes >= majority_size(answers.len()) {
            Told::Yes
        } else if not_found == answers.len() {
            Told::NobodyHasIt
        } else {
            Told::No
        };
        self.count_told(outcome, &info, &file, counts);
        if outcome == Told::No {
            let until = self.ctx.clock.unix_secs() + self.suppression_time.as_secs_f64();
            self.suppressions.lock().insert(info.account, until);
            return Ok(());
        }
        let updater = self.clone();
        let conclude = move || {
            let mut broker = ContainerBroker::new(&updater.shared, &file, Options::default());
            match outcome {
                Told::Yes => broker.reported(&info),
                _ => {
                    broker.db.quarantine("no account replicas exist");
                    Ok(())
                }
            }
        };
        self.ctx.disk_pools.run(device, conclude).await
    }

    /// The status of one account server's answer; 500 if there was none.
    async fn container_report(&self, node: &Node, partition: u32, report: &Report) -> Status {
        let partition = partition.to_string();
        let place = Place {
            ip: &node.replication_ip,
            port: node.replication_port,
            device: &node.device,
            partition: &partition,
        };
        let timeouts = account_update::timeouts(self.conn_timeout, self.node_timeout);
        match account_update::send(&self.ctx, &place, report, timeouts).await {
            Ok(status) => status,
            Err(error) => {
                self.ctx.logger.error(format_args!(
                    "ERROR account update failed with {}:{}/{} (will retry later): {error}",
                    place.ip, place.port, place.device
                ));
                Status::INTERNAL_SERVER_ERROR
            }
        }
    }

    fn count_told(&self, outcome: Told, info: &ContainerInfo, file: &Path, counts: &Counts) {
        let (metric, counter, word) = match outcome {
            Told::Yes => ("successes", &counts.successes, "sent"),
            Told::NobodyHasIt => ("failures", &counts.failures, "stub"),
            Told::No => ("failures", &counts.failures, "failed"),
        };
        self.ctx.statsd.increment(metric);
        counter.fetch_add(1, Ordering::Relaxed);
        self.ctx.logger.debug(format_args!(
            "Update report {word} for /{}/{} {}",
            info.account,
            info.container,
            file.display()
        ));
    }

    fn count_no_change(&self, counts: &Counts) {
        self.ctx.statsd.increment("no_changes");
        counts.no_changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Reading may have merged pending rows, so the files are looked at afterwards; but only what has been at rest for a
    /// while tells by its times that nobody wrote since.
    fn remember_quiet(&self, file: &Path) {
        let Some(now) = Fingerprint::of(file) else { return };
        if !now.is_settled(self.ctx.clock.unix_secs()) {
            return;
        }
        let mut quiet = self.quiet.lock();
        if quiet.len() >= MAX_QUIET {
            quiet.clear();
        }
        quiet.insert(file.to_owned(), now);
    }
}

enum Found {
    Skip,
    NoChange,
    Changed(Box<ContainerInfo>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Yes,
    No,
    NobodyHasIt,
}

/// By what a database and its pending file are known to be unchanged.
#[derive(Clone, Debug, PartialEq)]
struct Fingerprint {
    database: FileState,
    pending: Option<FileState>,
}

#[derive(Clone, Debug, PartialEq)]
struct FileState {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Fingerprint {
    fn of(file: &Path) -> Option<Self> {
        let mut pending = file.as_os_str().to_owned();
        pending.push(".pending");
        Some(Self { database: FileState::of(file)?, pending: FileState::of(Path::new(&pending)) })
    }

    fn is_settled(&self, now: f64) -> bool {
        let latest = self.pending.iter().map(|state| state.modified).fold(self.database.modified, Ord::max);
        now - latest.0 as f64 > SETTLED.as_secs_f64()
    }
}

impl FileState {
    fn of(file: &Path) -> Option<Self> {
        let found = std::fs::metadata(file).ok()?;
        Some(Self { inode: found.ino(), size: found.len(), modified: (found.mtime(), found.mtime_nsec()) })
    }
}
