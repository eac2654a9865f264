//! The object-updater: sends the container updates that object servers have left in async_pending.
//!
//! ```text
//! DEVICE/async_pending[-N]/SUFFIX/HASH-TIMESTAMP      N: the policy index, none for policy 0
//! ```
//!
//! A pass walks every device. Of several updates of one object only the newest is sent, the others are removed: each has all
//! that an older one has. An update goes to the container's nodes that don't have it yet; when all have it, the file is
//! removed, otherwise it is written anew with those who do. A container that was sharded redirects: the update goes to
//! the shard from then on, at once and in later passes. A file that can't be read goes to
//! `quarantined/objects`.
//!
//! Removing a file is not made durable: after a crash the update is sent once more, which changes nothing.

mod pace;
mod pending;
mod stats;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{Conf, ConfigError, Section};
use common::policy::{data_dir, split_data_dir};
use common::quote::quote_path;
use common::{ObjHash, PolicyIndex, Timestamp, fs};
use futures_util::StreamExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use ring::Node;
use serde_json::{Value, json};
use service::http::client::{ClientError, Timeouts};
use service::http::{Body, BoxFuture, Headers, Method};
use service::{Context, Daemon, recon};
use tokio::sync::Semaphore;

use pace::{Deferrals, Offered};
pub use pending::rewrite_pending;
use pending::{PendingUpdate, parse_file_name};
use stats::{Count, OldestPending, SweepStats, aggregate};

use crate::rate_limiter::RateLimiter;
use crate::ssync::sender::node_to_string;
use crate::update::redirect_data;

const NAME: &str = "object-updater";
const ASYNC_BASE: &str = "async_pending";
/// Seconds for which an idle sweep may catch up.
const PACE_BUFFER: f64 = 5.0;
/// An answer to an update has no body worth more.
const MAX_ANSWER: u64 = 64 * 1024;

/// Makes the daemon from the file of an object server.
pub fn build(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    Ok(Arc::new(ObjectUpdater(Arc::new(Updater::new(&conf.section_or_default(NAME), ctx)?))))
}

struct ObjectUpdater(Arc<Updater>);

impl Daemon for ObjectUpdater {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.clone().sweep_all())
    }

    fn interval(&self) -> Duration {
        self.0.interval
    }
}

struct Updater {
    ctx: Context,
    devices: PathBuf,
    mount_check: bool,
    interval: Duration,
    /// Updates sent at a time for one device.
    concurrency: usize,
    /// Devices swept at a time.
    workers: usize,
    objects_per_second: f64,
    per_container_rate: f64,
    per_container_groups: usize,
    max_deferred: usize,
    timeouts: Timeouts,
    report_interval: Duration,
    tracker_entries: usize,
    tracker_dump: usize,
}

/// One device's part of a pass.
struct Sweep {
    device: String,
    path: PathBuf,
    stats: SweepStats,
    oldest: Mutex<OldestPending>,
}

/// A pending file.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    policy: PolicyIndex,
    timestamp: Timestamp,
}

type Loaded = (Found, PendingUpdate);

/// What the nodes said to an update.
struct Outcome {
    /// Ids of the nodes that took it.
    took: Vec<i64>,
    all: bool,
    /// The newest redirection.
    redirect: Option<String>,
}

impl Updater {
    fn new(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let default_pace = match section.get("slowdown") {
            None => 50.0,
            Some(_) => {
                ctx.logger.warning(
                    "The slowdown option is deprecated in favor of objects_per_second. This option may be ignored \
                     in a future release.",
                );
                1.0 / (section.non_negative_float("slowdown", 0.01)? + 0.01)
            }
        };
        Ok(Self {
            devices: section.str("devices", "/srv/node").into(),
            mount_check: section.bool("mount_check", true)?,
            interval: section.secs("interval", 300.0)?,
            concurrency: section.positive_int("concurrency", 8)?,
            workers: section.positive_int("updater_workers", 1)?,
            objects_per_second: section.float("objects_per_second", default_pace)?,
            per_container_rate: section.non_negative_float("max_objects_per_container_per_second", 0.0)?,
            per_container_groups: section.positive_int("per_container_ratelimit_buckets", 1000)?,
            max_deferred: section.int("max_deferred_updates", 10_000)?,
            timeouts: Timeouts {
                conn: section.secs("conn_timeout", 0.5)?,
                node: section.secs("node_timeout", 10.0)?,
            },
            report_interval: section.secs("report_interval", 300.0)?,
            tracker_entries: section.positive_int("async_tracker_max_entries", 100)?,
            tracker_dump: section.positive_int("async_tracker_dump_count", 5)?,
            ctx: ctx.clone(),
        })
    }

    async fn sweep_all(self: Arc<Self>) {
        self.ctx.logger.info("Begin object update sweep of all devices");
        let begin = Instant::now();
        let drain_until = self.ctx.clock.unix_secs() + self.interval.as_secs_f64();
        let all = self.list_devices().await;
        let wanted = &self.ctx.args.devices;
        let chosen: Vec<&String> = all.iter().filter(|d| wanted.is_empty() || wanted.contains(d)).collect();
        let progress = self.ctx.progress(NAME);
        progress.set(chosen.len() as u64);
        futures_util::stream::iter(chosen)
            .for_each_concurrent(self.workers, |device| {
                let (updater, progress) = (self.clone(), progress.clone());
                async move {
                    updater.sweep_device(device, drain_until).await;
                    progress.inc(1);
                }
            })
            .await;
        let elapsed = begin.elapsed().as_secs_f64();
        self.ctx.logger.info(format_args!("Object update sweep of all devices completed: {elapsed:.2}s"));
        self.dump_recon(all, elapsed).await;
    }

    async fn list_devices(&self) -> Vec<String> {
        let devices = self.devices.clone();
        match self.ctx.disk_pools.run("devices", move || list_dir(&devices)).await {
            Ok(names) => names,
            Err(e) => {
                let path = self.devices.display();
                self.ctx.statsd.increment("errors");
                self.ctx.logger.error(format_args!("ERROR: Unable to access {path}: {e}"));
                Vec::new()
            }
        }
    }

    async fn sweep_device(self: Arc<Self>, device: &str, drain_until: f64) {
        let (devices, name, mount_check) = (self.devices.clone(), device.to_owned(), self.mount_check);
        let checked =
            self.ctx.disk_pools.run(device, move || fs::check_drive(&devices, &name, mount_check)).await;
        let Some(path) = checked else {
            let (path, what) =
                (self.devices.join(device), if self.mount_check { "mounted" } else { "a directory" });
            self.ctx.logger.warning(format_args!("Skipping: {} is not {what}", path.display()));
            return;
        };
        let sweep = Arc::new(Sweep {
            device: device.to_owned(),
            path,
            stats: SweepStats::default(),
            oldest: Mutex::new(OldestPending::new(self.tracker_entries)),
        });
        let (begin, pid) = (Instant::now(), std::process::id());
        let shown = sweep.path.display();
        self.ctx.logger.info(format_args!("Object update sweep starting on {shown} (pid: {pid})"));
        self.send_all(&sweep, drain_until, begin).await;
        self.ctx.statsd.timing_since("timing", begin);
        let (elapsed, stats) = (begin.elapsed().as_secs_f64(), &sweep.stats);
        self.ctx.logger.info(format_args!(
            "Object update sweep completed on {shown} in {elapsed:.2}s seconds:, {stats} (pid: {pid})"
        ));
        self.ctx
            .logger
            .info(format_args!("Object update sweep of {device} completed: {elapsed:.2}s, {stats}"));
        let report = sweep.oldest.lock().report(self.ctx.clock.unix_secs(), self.tracker_dump);
        let per_device = json!({ device: report });
        recon::dump_recon_cache(
            &self.ctx,
            recon::OBJECT_FILE,
            vec![("object_updater_per_device".to_owned(), per_device)],
        )
        .await;
    }

    /// Walks a device and sends what it finds, then what it had to put off.
    async fn send_all(self: &Arc<Self>, sweep: &Arc<Sweep>, drain_until: f64, begin: Instant) {
        let mut pace = RateLimiter::new(self.objects_per_second, PACE_BUFFER);
        let mut deferrals =
            Deferrals::new(self.per_container_groups, self.per_container_rate, self.max_deferred);
        let salt = self.ctx.rng.next_u64();
        let sending = Arc::new(Semaphore::new(self.concurrency));
        let mut reported = Instant::now();
        let mut dirs = self.suffix_dirs(sweep).await;
        self.ctx.rng.shuffle(&mut dirs);
        for (policy, dir) in dirs {
            for found in self.scan(sweep, policy, dir).await {
                let Some(update) = self.load(sweep, &found).await else { continue };
                self.pause(pace.wait(self.ctx.clock.unix_secs())).await;
                let group = group_of(&update, salt, deferrals.groups());
                match deferrals.offer(group, (found, update), self.ctx.clock.unix_secs()) {
                    Offered::Send(update) => self.spawn(sweep, &sending, update).await,
                    Offered::Deferred { skipped } => {
                        self.count(sweep, Count::Deferrals, 1);
                        self.count(sweep, Count::Skips, u64::from(skipped));
                    }
                    Offered::Skipped => {
                        self.count(sweep, Count::Deferrals, 1);
                        self.count(sweep, Count::Skips, 1);
                    }
                }
                if reported.elapsed() >= self.report_interval {
                    reported = Instant::now();
                    self.report_progress(sweep, begin);
                }
            }
        }
        while self.ctx.clock.unix_secs() < drain_until {
            let Some((update, wait)) = deferrals.drain(self.ctx.clock.unix_secs()) else { break };
            self.pause(wait).await;
            self.count(sweep, Count::Drains, 1);
            self.spawn(sweep, &sending, update).await;
        }
        self.count(sweep, Count::Skips, deferrals.len() as u64);
        // All permits back means that every update has been dealt with. The semaphore is never closed.
        let _ = sending.acquire_many(u32::try_from(self.concurrency).unwrap_or(u32::MAX)).await;
    }

    async fn pause(&self, secs: f64) {
        if secs > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(secs)).await;
        }
    }

    fn report_progress(&self, sweep: &Sweep, begin: Instant) {
        let (elapsed, pid) = (begin.elapsed().as_secs_f64(), std::process::id());
        let (path, stats) = (sweep.path.display(), &sweep.stats);
        self.ctx.logger.info(format_args!(
            "Object update sweep progress on {path}: {elapsed:.2}s, {stats} (pid: {pid})"
        ));
    }

    fn count(&self, sweep: &Sweep, count: Count, n: u64) {
        if n > 0 {
            sweep.stats.add(count, n);
            self.ctx.statsd.update_stats(count.name(), i64::try_from(n).unwrap_or(i64::MAX));
        }
    }

    async fn spawn(self: &Arc<Self>, sweep: &Arc<Sweep>, sending: &Arc<Semaphore>, update: Loaded) {
        let Ok(permit) = sending.clone().acquire_owned().await else { return };
        let (updater, sweep) = (self.clone(), sweep.clone());
        tokio::spawn(async move {
            updater.process(&sweep, update).await;
            drop(permit);
        });
    }

    /// The suffix directories of every policy. Directories of unknown policies are left alone, with a warning.
    async fn suffix_dirs(&self, sweep: &Arc<Sweep>) -> Vec<(PolicyIndex, PathBuf)> {
        let device = sweep.path.clone();
        let listed = self.ctx.disk_pools.run(&sweep.device, move || list_dir(&device)).await;
        let mut dirs = Vec::new();
        for name in self.listed(sweep, &sweep.path, listed) {
            if !name.starts_with(ASYNC_BASE) {
                continue;
            }
            let known = |index: &PolicyIndex| self.ctx.swift_conf.policies.get(*index).is_some();
            let Some(policy) = split_data_dir(ASYNC_BASE, &name).filter(known) else {
                self.ctx.logger.warning(format_args!(
                    "Directory '{name}' does not map to a valid policy (Unknown policy)"
                ));
                continue;
            };
            let dir = sweep.path.join(&name);
            let listed_dir = dir.clone();
            let listed = self.ctx.disk_pools.run(&sweep.device, move || list_dir(&listed_dir)).await;
            let suffixes = self.listed(sweep, &dir, listed);
            dirs.extend(suffixes.into_iter().map(|suffix| (policy, dir.join(suffix))));
        }
        dirs
    }

    fn listed(&self, sweep: &Sweep, path: &Path, listed: std::io::Result<Vec<String>>) -> Vec<String> {
        listed.unwrap_or_else(|e| {
            // A file among the directories is nobody's error.
            if !matches!(e.kind(), std::io::ErrorKind::NotADirectory | std::io::ErrorKind::NotFound) {
                self.count(sweep, Count::Errors, 1);
                self.ctx.logger.error(format_args!("ERROR: Unable to access {}: {e}", path.display()));
            }
            Vec::new()
        })
    }

    /// The newest update of each object in a suffix directory; older ones are removed.
    async fn scan(&self, sweep: &Arc<Sweep>, policy: PolicyIndex, dir: PathBuf) -> Vec<Found> {
        let listed_dir = dir.clone();
        let scanned = self.ctx.disk_pools.run(&sweep.device, move || scan_dir(&listed_dir, policy)).await;
        match scanned {
            Ok(Scanned { found, outdated, unexpected }) => {
                self.count(sweep, Count::OutdatedUnlinks, outdated);
                for path in unexpected {
                    self.count(sweep, Count::Errors, 1);
                    let path = path.display();
                    self.ctx
                        .logger
                        .error(format_args!("ERROR async pending file with unexpected name {path}"));
                }
                found
            }
            Err(e) => {
                self.listed(sweep, &dir, Err(e));
                Vec::new()
            }
        }
    }

    /// Reads an update; one that can't be read goes to quarantine.
    async fn load(&self, sweep: &Arc<Sweep>, found: &Found) -> Option<PendingUpdate> {
        let (path, device) = (found.path.clone(), sweep.path.clone());
        let load = move || -> Result<Option<PendingUpdate>, String> {
            let bytes = match std::fs::read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                read => read.map_err(|e| ("reading", e.to_string())),
            };
            let update = bytes
                .and_then(|bytes| PendingUpdate::parse(&bytes).map_err(|e| ("unpickling", e.to_string())));
            update.map(Some).map_err(|(doing, problem)| {
                let moved = quarantine(&device, &path).err().map_or(String::new(), |e| format!(" ({e})"));
                format!("{doing}, quarantining {}: {problem}{moved}", path.display())
            })
        };
        match self.ctx.disk_pools.run(&sweep.device, load).await {
            Ok(update) => update,
            Err(problem) => {
                self.count(sweep, Count::Quarantines, 1);
                self.ctx.logger.error(format_args!("ERROR Pickle problem {problem}"));
                None
            }
        }
    }

    /// Sends an update, once more if it is redirected, and does with its file what came of it. Swift: an update that
    /// nobody at the new place took is left as it was, to be redirected anew.
    async fn process(&self, sweep: &Arc<Sweep>, (found, mut update): Loaded) {
        let mut rewrite = false;
        for attempt in 0..2 {
            let Some(outcome) = self.send(&found, &update).await else { return };
            if outcome.all {
                self.count(sweep, Count::Successes, 1);
                self.count(sweep, Count::Unlinks, 1);
                self.remove(sweep, &found).await;
                return;
            }
            if let Some(path) = outcome.redirect {
                update.redirect(&path);
                self.count(sweep, Count::Redirects, 1);
                rewrite = true;
                if attempt == 0 {
                    continue;
                }
            } else {
                self.count(sweep, Count::Failures, 1);
                sweep.oldest.lock().add(update.destination(), found.timestamp);
                rewrite = !outcome.took.is_empty();
                update.successes.extend(outcome.took);
            }
            break;
        }
        if rewrite {
            self.rewrite(sweep, &found, &update).await;
        }
    }

    /// Tells every node that doesn't have it yet. `None` without a container ring.
    async fn send(&self, found: &Found, update: &PendingUpdate) -> Option<Outcome> {
        let ring = match self.ctx.rings.container() {
            Ok(ring) => ring,
            Err(e) => {
                self.ctx.logger.error(format_args!("ERROR no container ring: {e}"));
                return None;
            }
        };
        let (account, container) = update.destination();
        let (part, nodes) = ring.get_nodes(&self.ctx.swift_conf.hash, &account, Some(&container), None);
        let headers = update.headers(found.policy);
        let path = format!("/{account}/{container}/{}", update.obj);
        let missing = nodes.into_iter().filter(|n| !update.successes.contains(&i64::from(n.id)));
        let answers =
            join_all(missing.map(|node| self.send_to(node, part, &update.op, &path, &headers))).await;
        let all = answers.iter().all(|(took, _)| took.is_some());
        let took = answers.iter().filter_map(|(took, _)| *took).collect();
        let redirect = answers.into_iter().filter_map(|(_, redirect)| redirect).max_by_key(|(_, t)| *t);
        Some(Outcome { took, all, redirect: redirect.map(|(path, _)| path) })
    }

    /// The node's id if it took the update, and where it redirected it.
    async fn send_to(
        &self,
        node: Node,
        part: u32,
        op: &Method,
        path: &str,
        headers: &Headers,
    ) -> (Option<i64>, Option<(String, Timestamp)>) {
        let begin = Instant::now();
        let target = quote_path(format!("/{}/{part}{path}", node.device));
        let addr = (node.replication_ip.as_str(), node.replication_port);
        let shown = node_to_string(&node);
        let (mut status, mut took, mut redirect) = (500, None, None);
        match self.ctx.pool.request(addr, op.clone(), &target, headers, Body::empty(), self.timeouts).await {
            Ok(mut response) => {
                // So that the connection can be used again.
                let _ = response.body.drain(MAX_ANSWER).await;
                status = response.status.0;
                took = response.is_success().then_some(i64::from(node.id));
                if status == 301 {
                    redirect = redirect_data(&response).unwrap_or_else(|e| {
                        self.ctx.logger.error(format_args!(
                            "Container update failed for '{path}'; problem with redirect location: {e}"
                        ));
                        None
                    });
                }
                if took.is_none() {
                    let text = format_args!("Error code {status} is returned from remote server {shown}");
                    self.ctx.logger.debug(text);
                }
            }
            Err(ClientError::Timeout) => {
                status = 499;
                self.ctx.logger.info(format_args!("Timeout waiting on remote server {shown}"));
            }
            Err(ClientError::ConnTimeout) => {
                self.ctx.logger.info(format_args!("Timeout connecting to remote server {shown}"));
            }
            Err(e) => self.ctx.logger.error(format_args!("ERROR with remote server {shown}: {e}")),
        }
        self.ctx.statsd.timing(&format!("updater.timing.status.{status}"), begin.elapsed());
        (took, redirect)
    }

    async fn remove(&self, sweep: &Sweep, found: &Found) {
        let path = found.path.clone();
        let remove = move || {
            fs::remove_file(&path)?;
            path.parent().map_or(Ok(false), fs::remove_empty_dir)
        };
        if let Err(e) = self.ctx.disk_pools.run(&sweep.device, remove).await {
            self.ctx.logger.error(format_args!("ERROR removing {}: {e}", found.path.display()));
        }
    }

    async fn rewrite(&self, sweep: &Sweep, found: &Found, update: &PendingUpdate) {
        let (path, bytes) = (found.path.clone(), update.to_pickle());
        let tmp_dir = sweep.path.join(data_dir("tmp", found.policy));
        // A crash leaves the old file or the new one; who has the update twice is none the worse.
        let write = move || fs::write_file_via(&path, &tmp_dir, &bytes, true);
        if let Err(e) = self.ctx.disk_pools.run(&sweep.device, write).await {
            self.ctx.logger.error(format_args!("ERROR writing {}: {e}", found.path.display()));
        }
    }

    async fn dump_recon(&self, devices: Vec<String>, elapsed: f64) {
        let file = self.ctx.recon_cache_path.join(recon::OBJECT_FILE);
        let load = move || common::recon::load_recon(&file).unwrap_or_default();
        let cache = self.ctx.disk_pools.run("recon", load).await;
        let empty = serde_json::Map::new();
        let per_device = cache.get("object_updater_per_device").and_then(Value::as_object).unwrap_or(&empty);
        let figures: Vec<Value> =
            devices.iter().map(|device| per_device.get(device).cloned().unwrap_or(json!({}))).collect();
        let mut entries = vec![
            ("object_updater_sweep".to_owned(), json!(elapsed)),
            ("object_updater_stats".to_owned(), aggregate(&figures, self.tracker_dump, self.workers)),
            ("object_updater_last".to_owned(), json!(self.ctx.clock.unix_secs())),
        ];
        let gone: serde_json::Map<String, Value> =
            per_device.keys().filter(|d| !devices.contains(d)).map(|d| (d.clone(), json!({}))).collect();
        if !gone.is_empty() {
            entries.push(("object_updater_per_device".to_owned(), Value::Object(gone)));
        }
        recon::dump_recon_cache(&self.ctx, recon::OBJECT_FILE, entries).await;
    }
}

/// The group whose rate an update counts for.
fn group_of(update: &PendingUpdate, salt: u64, groups: usize) -> usize {
    let (account, container) = update.destination();
    let digest = common::digest::md5(format!("{salt}/{account}/{container}").as_bytes());
    (u128::from_be_bytes(digest) % groups as u128) as usize
}

struct Scanned {
    found: Vec<Found>,
    outdated: u64,
    unexpected: Vec<PathBuf>,
}

/// The job that looks through a suffix directory.
fn scan_dir(dir: &Path, policy: PolicyIndex) -> std::io::Result<Scanned> {
    let mut names = list_dir(dir)?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    let mut scanned = Scanned { found: Vec::new(), outdated: 0, unexpected: Vec::new() };
    let mut last: Option<ObjHash> = None;
    for name in names {
        let path = dir.join(&name);
        let Some((hash, timestamp)) = parse_file_name(&name) else {
            if path.is_file() {
                scanned.unexpected.push(path);
            }
            continue;
        };
        if last == Some(hash) {
            fs::remove_file(&path)?;
            scanned.outdated += 1;
        } else {
            last = Some(hash);
            scanned.found.push(Found { path, policy, timestamp });
        }
    }
    Ok(scanned)
}

fn list_dir(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Moves a file that can't be read out of the way.
fn quarantine(device: &Path, path: &Path) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    fs::rename(path, &device.join("quarantined").join("objects").join(name))?;
    if let Some(dir) = path.parent() {
        fs::remove_empty_dir(dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
