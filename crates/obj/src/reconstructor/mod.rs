//! object-reconstructor: keeps the fragments of EC policies where the ring wants them, and rebuilds those that are lost.
//!
//! A pass goes over the partitions of all local devices in a random order. For each index of which there are fragments
//! there is a job (`job.rs`): a device compares what it is primary for with three partners among the other primaries, and
//! sends them, by SSYNC, what they lack of theirs, rebuilt of the fragments of all (`rebuild.rs`); what belongs to another
//! primary is moved there (`revert.rs`).
//!
//! Differences from Swift's on purpose: a device whose partner is itself, or twice the same, in a small ring, syncs once
//! with each other; a handoff is only emptied of what all of its primaries have taken; a partition is removed only if
//! nothing of value is in it, and what is no partition only if it is a file; fragments of an index that the ring has no
//! place for are left alone with all that is beside them; workers are parts of one process, whose passes begin together.
//! With `lockup_timeout` a pass ends if no job has ended for so long.
//!
//! Recon, `object.recon`: `object_reconstruction_time` (minutes) and `object_reconstruction_last`, with workers also by
//! device below `object_reconstruction_per_disk`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::Suffix;
use common::config::{Conf, ConfigError, NodeCount, Section};
use common::policy::{PolicyIndex, StoragePolicy, data_dir};
use futures_util::future::join_all;
use parking_lot::Mutex;
use ring::{Device, Node, Ring, whataremyips};
use serde_json::{Map, Value, json};
use service::context::Context;
use service::daemon::{Daemon, Mode, Progress, replicator_interval};
use service::http::BoxFuture;
use service::logs::Logger;
use service::recon;
use tokio::task::JoinSet;

use crate::diskfile::{DiskFileConf, DiskFileManager, DiskFileRouter};
use crate::replicator::job::{Overrides, local_devices, ring_changed, ring_to_sync, sweep_tmp};
use crate::replicator::revert::remove_partition;
use crate::replicator::stats::{compute_eta, suffix_lines};
use crate::replicator::workers::{all_local_devices, distribute_evenly, gone};
use crate::ssync::sender::{Fragments, Sender, SenderConf, node_to_string};

mod job;
mod rebuild;
mod revert;
mod sync;

use job::{Kind, Part, Scheme};

const NAME: &str = "object-reconstructor";
const PER_DISK: &str = "object_reconstruction_per_disk";

/// The options of `[object-reconstructor]`.
struct ReconstructorConf {
    ring_ip: String,
    /// `None` when each device has a port of its own.
    port: Option<u16>,
    /// Partitions at a time, of each worker.
    concurrency: usize,
    /// 0: no workers.
    workers: usize,
    interval: Duration,
    stats_interval: Duration,
    ring_check_interval: Duration,
    lockup_timeout: Duration,
    handoffs_only: bool,
    /// Handoffs to try for a primary that is unmounted; `None`: all.
    rebuild_handoff_node_count: Option<usize>,
    /// 0: nothing is quarantined for being alone.
    quarantine_threshold: usize,
    quarantine_age: Duration,
    request_node_count: NodeCount,
    /// 0: no limit.
    max_objects_per_revert: usize,
    sender: SenderConf,
}

impl ReconstructorConf {
    fn from_section(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let ring_ip = section.get("ring_ip").map(str::to_string);
        let ring_ip = ring_ip.unwrap_or_else(|| section.str("bind_ip", "0.0.0.0"));
        let servers_per_port = section.int::<u32>("servers_per_port", 0)?;
        let port = section.int("bind_port", 6200)?;
        let handoffs_first = section.get("handoffs_first").is_some();
        if handoffs_first {
            ctx.logger.warning(
                "The handoffs_first option is deprecated in favor of handoffs_only. This option may be ignored in a future \
                 release.",
            );
        }
        let handoffs_first = section.bool("handoffs_first", false)?;
        let handoffs_only = section.bool("handoffs_only", handoffs_first)?;
        if handoffs_only {
            ctx.logger.warning(
                "Handoff only mode is not intended for normal operation, use handoffs_only with care.",
            );
        } else if handoffs_first {
            ctx.logger.warning("Ignored handoffs_first option in favor of handoffs_only.");
        }
        if section.bool("write_legacy_ec_crc", false)? {
            ctx.logger.warning("write_legacy_ec_crc has no effect: fragments are written with today's CRC");
        }
        let reclaim_age = section.secs("reclaim_age", DiskFileConf::default().reclaim_age.as_secs_f64())?;
        let request_node_count = NodeCount::parse(&section.str("request_node_count", "2 * replicas"))
            .ok_or_else(|| {
                section.error("request_node_count", "expected a number, or a number * replicas")
            })?;
        Ok(Self {
            ring_ip,
            port: (servers_per_port == 0).then_some(port),
            concurrency: section.positive_int::<usize>("concurrency", 1)?,
            workers: usize::try_from(section.int::<i64>("reconstructor_workers", 0)?).unwrap_or(0),
            interval: replicator_interval(section, &ctx.logger, NAME)?,
            stats_interval: section.secs("stats_interval", 300.0)?,
            ring_check_interval: section.secs("ring_check_interval", 15.0)?,
            lockup_timeout: section.secs("lockup_timeout", 1800.0)?,
            handoffs_only,
            rebuild_handoff_node_count: usize::try_from(section.int::<i64>("rebuild_handoff_node_count", 2)?)
                .ok(),
            quarantine_threshold: section.int("quarantine_threshold", 0)?,
            quarantine_age: section.secs("quarantine_age", reclaim_age.as_secs_f64())?,
            request_node_count,
            max_objects_per_revert: section.int("max_objects_per_revert", 0)?,
            sender: SenderConf::from_section(section)?,
        })
    }
}

/// The daemon of a configuration file.
pub fn build(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    let section = conf.section_or_default(NAME);
    let disks = DiskFileConf::from_section(&section, &ctx.logger)?;
    let router = DiskFileRouter::new(&disks, &ctx.swift_conf, &ctx.clock, &ctx.logger, &ctx.statsd);
    Ok(Arc::new(ObjectReconstructor {
        ctx: ctx.clone(),
        conf: Arc::new(ReconstructorConf::from_section(&section, ctx)?),
        router: Arc::new(router),
        started: AtomicBool::new(false),
    }))
}

/// `IP:PORT/DEVICE/PARTITION/PATH policy#N`, as Swift's log lines name where something is.
fn full_path(node: &Device, part: &Part, path: &str) -> String {
    format!("{}/{}{path} policy#{}", node_to_string(node), part.partition, part.manager.policy().0)
}

pub struct ObjectReconstructor {
    ctx: Context,
    conf: Arc<ReconstructorConf>,
    router: Arc<DiskFileRouter>,
    started: AtomicBool,
}

/// All of the work of a pass, or the share of one worker.
struct Reconstructor {
    ctx: Context,
    logger: Logger,
    conf: Arc<ReconstructorConf>,
    router: Arc<DiskFileRouter>,
    overrides: Overrides,
}

/// One pass, as its jobs see it.
struct Pass {
    started: Instant,
    device_count: AtomicU64,
    part_count: AtomicU64,
    parts_done: AtomicU64,
    suffix_count: AtomicU64,
    suffix_sync: AtomicU64,
    handoffs_remaining: AtomicU64,
    partition_times: Mutex<Vec<Duration>>,
    progress: Progress,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl Daemon for ObjectReconstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        self.run_pass(Mode::Once)
    }

    fn run_pass(&self, mode: Mode) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let first = !self.started.swap(true, Ordering::Relaxed);
            // Swift: a command line can choose devices and partitions only `once`.
            let overrides = match mode {
                Mode::Once => Overrides::of(&self.ctx.args),
                Mode::Forever => Overrides::default(),
            };
            let shares = self.shares(&overrides);
            if shares.is_empty() {
                let reconstructor = self.reconstructor(self.ctx.logger.clone(), overrides);
                reconstructor.run(mode, first).await;
            } else {
                self.run_workers(mode, first, &overrides, shares).await;
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

impl ObjectReconstructor {
    fn reconstructor(&self, logger: Logger, overrides: Overrides) -> Arc<Reconstructor> {
        let (ctx, conf, router) = (self.ctx.clone(), self.conf.clone(), self.router.clone());
        Arc::new(Reconstructor { ctx, logger, conf, router, overrides })
    }

    /// The devices of each worker; no shares if there are no workers, or nothing for them to do.
    fn shares(&self, overrides: &Overrides) -> Vec<Vec<String>> {
        if self.conf.workers == 0 {
            return Vec::new();
        }
        let devices = self.all_local_devices().into_iter().filter(|device| overrides.takes_device(device));
        distribute_evenly(devices.collect(), self.conf.workers)
    }

    fn all_local_devices(&self) -> BTreeSet<String> {
        all_local_devices(&self.ctx, &self.conf.ring_ip, self.conf.port, StoragePolicy::is_erasure)
    }

    /// A pass of all workers.
    async fn run_workers(&self, mode: Mode, first: bool, overrides: &Overrides, shares: Vec<Vec<String>>) {
        let (count, pid) = (shares.len(), std::process::id());
        let worker = async |(index, devices): (usize, Vec<String>)| {
            let prefix = format!("[worker {}/{count} pid={pid}] ", index + 1);
            let share = Overrides { devices: devices.clone(), ..overrides.clone() };
            let reconstructor = self.reconstructor(self.ctx.logger.with_prefix(&prefix), share);
            let mut told = reconstructor.pass(mode, first).await;
            if overrides.partitions.is_empty() {
                told.insert("pid".to_owned(), json!(pid));
                let per_disk: Map<String, Value> =
                    devices.into_iter().map(|device| (device, Value::Object(told.clone()))).collect();
                reconstructor.dump(vec![(PER_DISK.to_owned(), Value::Object(per_disk))]).await;
            }
            reconstructor.log_sleep(mode);
        };
        join_all(shares.into_iter().enumerate().map(worker)).await;
        let file = self.ctx.recon_cache_path.join(recon::OBJECT_FILE);
        let cache = self.ctx.disk_pools.run("recon", move || common::recon::load_recon(&file)).await;
        let entries = aggregate(&cache.unwrap_or_default(), &self.all_local_devices());
        if !entries.is_empty() {
            recon::dump_recon_cache(&self.ctx, recon::OBJECT_FILE, entries).await;
        }
    }
}

/// What the figures by device say of the machine, and that those of devices which are gone are to be removed.
fn aggregate(cache: &Map<String, Value>, local: &BTreeSet<String>) -> Vec<(String, Value)> {
    let none = Map::new();
    let per_disk = cache.get(PER_DISK).and_then(Value::as_object).unwrap_or(&none);
    let figures = |device: &String| {
        let figures = per_disk.get(device)?;
        let last = figures["object_reconstruction_last"].as_f64()?;
        Some((last - figures["object_reconstruction_time"].as_f64()? * 60.0, last))
    };
    let mut entries = Vec::new();
    let told: Option<Vec<(f64, f64)>> = local.iter().map(figures).collect();
    if let Some(told) = told.filter(|told| !told.is_empty()) {
        let began = told.iter().map(|(began, _)| *began).fold(f64::INFINITY, f64::min);
        let last = told.iter().map(|(_, last)| *last).fold(0.0, f64::max);
        entries.push(("object_reconstruction_time".to_owned(), json!((last - began) / 60.0)));
        entries.push(("object_reconstruction_last".to_owned(), json!(last)));
    }
    entries.extend(gone(PER_DISK, per_disk, local));
    entries
}

impl Reconstructor {
    /// A session about fragments of a partition.
    fn sender<'a>(
        &'a self,
        part: &'a Part,
        node: &'a Node,
        suffixes: &'a [Suffix],
        fragments: Fragments<'a>,
    ) -> Sender<'a> {
        Sender {
            ctx: &self.ctx,
            logger: &self.logger,
            conf: self.conf.sender,
            manager: &part.manager,
            device: &part.dev.device,
            partition: part.partition,
            node,
            suffixes,
            seen: None,
            remote_check_objs: None,
            // Nobody else knows the ETag of a fragment before it is rebuilt from.
            unchecked: None,
            fragments: Some(fragments),
        }
    }

    /// A pass of a reconstructor without workers.
    async fn run(self: &Arc<Self>, mode: Mode, first: bool) {
        let told = self.pass(mode, first).await;
        // A pass over a part says nothing on how the whole is doing.
        if !self.overrides.any() {
            let mut entries: Vec<(String, Value)> = told.into_iter().collect();
            entries.push((PER_DISK.to_owned(), json!({})));
            self.dump(entries).await;
        }
        self.log_sleep(mode);
    }

    async fn dump(&self, entries: Vec<(String, Value)>) {
        recon::dump_recon_cache(&self.ctx, recon::OBJECT_FILE, entries).await;
    }

    fn log_sleep(&self, mode: Mode) {
        if mode == Mode::Forever {
            let secs = self.conf.interval.as_secs_f64();
            self.logger.debug(format_args!("reconstruction sleeping for {secs:?} seconds."));
        }
    }

    /// One pass; what recon is told of it.
    async fn pass(self: &Arc<Self>, mode: Mode, first: bool) -> Map<String, Value> {
        match mode {
            Mode::Once => self.logger.info("Running object reconstructor in script mode."),
            Mode::Forever => {
                if first {
                    self.logger.info("Starting object reconstructor in daemon mode.");
                }
                self.logger.info("Starting object reconstruction pass.");
            }
        }
        let pass = Arc::new(Pass {
            started: Instant::now(),
            device_count: AtomicU64::new(0),
            part_count: AtomicU64::new(0),
            parts_done: AtomicU64::new(0),
            suffix_count: AtomicU64::new(0),
            suffix_sync: AtomicU64::new(0),
            handoffs_remaining: AtomicU64::new(0),
            partition_times: Mutex::default(),
            progress: self.ctx.progress(NAME),
        });
        let heartbeat = async {
            loop {
                tokio::time::sleep(self.conf.stats_interval).await;
                self.log_stats(&pass);
            }
        };
        tokio::select! {
            () = self.reconstruct(&pass) => {}
            () = heartbeat => {}
        }
        self.log_stats(&pass);
        self.log_handoffs(&pass);
        let minutes = pass.started.elapsed().as_secs_f64() / 60.0;
        let how = if mode == Mode::Once { " (once)" } else { "" };
        self.logger.info(format_args!("Object reconstruction complete{how}. ({minutes:.2} minutes)"));
        let entries = [
            ("object_reconstruction_time", minutes),
            ("object_reconstruction_last", self.ctx.clock.unix_secs()),
        ];
        entries.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect()
    }

    async fn reconstruct(self: &Arc<Self>, pass: &Arc<Pass>) {
        let mut parts = self.collect_parts(pass).await;
        self.ctx.rng.shuffle(&mut parts);
        pass.progress.set(parts.len() as u64);
        let mut running = JoinSet::new();
        let mut next_check = Instant::now() + self.conf.ring_check_interval;
        let mut changed: BTreeSet<PolicyIndex> = BTreeSet::new();
        for part in parts {
            let policy = part.manager.policy();
            if Instant::now() >= next_check {
                next_check = Instant::now() + self.conf.ring_check_interval;
                if ring_changed(&self.ctx, policy, &part.ring) && changed.insert(policy) {
                    let name = self.ctx.swift_conf.policies.get(policy).map_or("", |policy| &policy.name);
                    self.logger.info(format_args!(
                        "Ring change detected for policy {policy} ({name}). Aborting current reconstruction pass for this \
                         policy."
                    ));
                }
            }
            if changed.contains(&policy) {
                continue;
            }
            if running.len() >= self.conf.concurrency && !self.join_one(&mut running).await {
                return;
            }
            running.spawn(self.clone().process_part(pass.clone(), Arc::new(part)));
        }
        while !running.is_empty() {
            if !self.join_one(&mut running).await {
                return;
            }
        }
    }

    /// Waits for one of the partitions; false if nothing has ended for too long, and all have been given up.
    async fn join_one(&self, running: &mut JoinSet<()>) -> bool {
        match tokio::time::timeout(self.conf.lockup_timeout, running.join_next()).await {
            Ok(Some(Err(err))) => {
                self.logger.error(format_args!("Exception in top-level reconstruction loop: {err}"));
            }
            Ok(_) => {}
            Err(_) => {
                self.logger.error("Lockup detected.. killing live coros.");
                running.shutdown().await;
                return false;
            }
        }
        true
    }

    async fn process_part(self: Arc<Self>, pass: Arc<Pass>, part: Arc<Part>) {
        pass.progress.note(format!("{}/{}", part.dev.device, part.partition));
        add(&pass.parts_done, 1);
        self.jobs_of(&pass, &part).await;
        pass.progress.inc(1);
    }

    async fn jobs_of(&self, pass: &Pass, part: &Arc<Part>) {
        let hashes = match self.hash(part, Vec::new(), true).await {
            Ok(hashes) => hashes,
            Err(err) => {
                self.logger.error(format_args!("Unable to hash {}: {err}", part.path.display()));
                return;
            }
        };
        let (mut jobs, homeless) = part.jobs(&hashes, &self.ctx.rng);
        for index in &homeless {
            self.logger.warning(format_args!("Bad fragment index {index} under {}", part.path.display()));
        }
        if jobs.is_empty() && homeless.is_empty() && hashes.is_empty() {
            self.delete_partition(part).await;
        }
        self.ctx.rng.shuffle(&mut jobs);
        for job in jobs {
            let begin = Instant::now();
            match job.kind {
                Kind::Sync => self.sync(pass, part, &job, &hashes).await,
                Kind::Revert => self.revert(pass, part, &job).await,
            }
            pass.partition_times.lock().push(begin.elapsed());
        }
    }

    /// The hashes of a partition, those of `recalculate` made anew.
    async fn hash(
        &self,
        part: &Arc<Part>,
        recalculate: Vec<common::Suffix>,
        do_listdir: bool,
    ) -> Result<crate::diskfile::SuffixHashes, crate::diskfile::DiskFileError> {
        if recalculate.is_empty()
            && !do_listdir
            && let Some(hashes) = part.manager.hashes_in_memory(&part.dev.device, part.partition)
        {
            self.ctx.statsd.update_stats("suffix.hashes", 0);
            return Ok(hashes);
        }
        let hashed_part = part.clone();
        let rehash = move || {
            let Part { manager, dev, partition, .. } = &*hashed_part;
            let device_path =
                manager.dev_path(&dev.device).ok_or(crate::diskfile::DiskFileError::DeviceUnavailable)?;
            manager.rehash(&device_path, *partition, &recalculate, do_listdir)
        };
        let (hashed, hashes) = self.ctx.disk_pools.run(&part.dev.device, rehash).await?;
        self.ctx.statsd.update_stats("suffix.hashes", hashed as i64);
        Ok(hashes)
    }

    async fn delete_partition(&self, part: &Arc<Part>) {
        self.logger.info(format_args!("Removing partition: {}", part.path.display()));
        let gone = part.clone();
        let remove = move || remove_partition(&gone.manager, &gone.path);
        if let Err(err) = self.ctx.disk_pools.run(&part.dev.device, remove).await {
            self.logger.error(err);
        }
    }

    async fn collect_parts(&self, pass: &Pass) -> Vec<Part> {
        let policies = &self.ctx.swift_conf.policies;
        let mut parts = Vec::new();
        for policy in policies.iter() {
            let (Some(scheme), Some(manager)) = (Scheme::of(&policy.kind), self.router.get(policy.index))
            else {
                continue;
            };
            let Some(ring) = ring_to_sync(&self.ctx, policy, &self.logger) else { continue };
            let ips = whataremyips(&self.conf.ring_ip);
            for dev in local_devices(&ring, &ips, self.conf.port, &self.overrides) {
                add(&pass.device_count, 1);
                parts.extend(self.parts_of(pass, policy, scheme, (manager, &ring), dev).await);
            }
        }
        parts
    }

    async fn parts_of(
        &self,
        pass: &Pass,
        policy: &StoragePolicy,
        scheme: Scheme,
        (manager, ring): (&Arc<DiskFileManager>, &Arc<Ring>),
        dev: Arc<Device>,
    ) -> Vec<Part> {
        let datadir = data_dir("objects", policy.index);
        let (listing, logger, device) = (manager.clone(), self.logger.clone(), dev.device.clone());
        let list = move || list_partitions(&listing, &device, &datadir, &logger);
        let Some(found) = self.ctx.disk_pools.run(&dev.device, list).await else { return Vec::new() };
        add(&pass.part_count, found.len());
        let is_mine = |partition: u32| ring.get_part_nodes(partition).iter().any(|node| node.id == dev.id);
        let wanted = |(partition, path): &(u32, std::path::PathBuf)| {
            if !self.overrides.takes_partition(*partition) {
                return false;
            }
            if self.conf.handoffs_only && is_mine(*partition) {
                let path = path.display();
                self.logger
                    .debug(format_args!("Skipping sync_only job for {path} while in handoffs_only mode."));
                return false;
            }
            true
        };
        let part = |(partition, path)| Part {
            manager: manager.clone(),
            ring: ring.clone(),
            scheme,
            dev: dev.clone(),
            partition,
            path,
        };
        found.into_iter().filter(wanted).map(part).collect()
    }

    fn log_stats(&self, pass: &Pass) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let secs = pass.started.elapsed().as_secs_f64();
        let (done, total) = (of(&pass.parts_done), of(&pass.part_count));
        if of(&pass.device_count) == 0 || total == 0 {
            self.logger.info(format_args!("Nothing reconstructed for {secs} seconds."));
            return;
        }
        self.logger.info(format_args!(
            "{done}/{total} ({:.2}%) partitions reconstructed in {secs:.2}s ({:.2}/sec, {} remaining)",
            done as f64 * 100.0 / total as f64,
            done as f64 / secs.max(0.000_001),
            compute_eta(secs, done, total)
        ));
        let times = pass.partition_times.lock().clone();
        // Swift has "0.00% hashed" always: its reconstructor does not count that.
        let suffixes = [of(&pass.suffix_count), 0, of(&pass.suffix_sync)];
        suffix_lines(suffixes, &times).into_iter().for_each(|line| self.logger.info(line));
    }

    fn log_handoffs(&self, pass: &Pass) {
        if !self.conf.handoffs_only {
            return;
        }
        match pass.handoffs_remaining.load(Ordering::Relaxed) {
            0 => self.logger.warning(
                "Handoffs only mode found no handoffs remaining. You should disable handoffs_only once all nodes are \
                 reporting no handoffs remaining.",
            ),
            _ => self.logger.info(
                "Handoffs only mode still has handoffs remaining. Next pass will continue to revert handoffs.",
            ),
        }
    }
}

/// The partitions of a device; `None` if it is not there, which is logged. Blocks.
fn list_partitions(
    manager: &DiskFileManager,
    device: &str,
    datadir: &str,
    logger: &Logger,
) -> Option<Vec<(u32, std::path::PathBuf)>> {
    let Some(dev_path) = manager.dev_path(device) else {
        logger.warning(format_args!("{device} is not mounted"));
        return None;
    };
    sweep_tmp(&dev_path.join(data_dir("tmp", manager.policy())), manager);
    let obj_path = dev_path.join(datadir);
    let entries = match std::fs::read_dir(&obj_path) {
        Ok(entries) => entries,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            if let Err(err) = common::fs::mkdirs(&obj_path) {
                logger.error(format_args!("Unable to create {}: {err}", obj_path.display()));
            }
            return None;
        }
        Err(err) => {
            logger.error(format_args!("Unable to list partitions in {}: {err}", obj_path.display()));
            return None;
        }
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("auditor_status_") && name.ends_with(".json") {
            continue;
        }
        match name.parse::<u32>() {
            Ok(partition) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                found.push((partition, entry.path()));
            }
            _ => remove_unexpected(&entry.path(), logger),
        }
    }
    Some(found)
}

fn remove_unexpected(path: &Path, logger: &Logger) {
    let shown = path.display();
    logger.warning(format_args!("Unexpected entity in data dir: {shown}"));
    if path.is_file() {
        logger.info(format_args!("Removing partition: {shown}"));
        if let Err(err) = common::fs::remove_file(path) {
            logger.error(format_args!("cannot remove {shown}: {err}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_told_of_when_every_device_is() {
        let figures = |minutes: f64, last: f64| json!({"object_reconstruction_time": minutes, "object_reconstruction_last": last});
        let per_disk =
            json!({"sda": figures(1.0, 1000.0), "sdb": figures(2.0, 1030.0), "old": figures(9.0, 900.0)});
        let cache = Map::from_iter([(PER_DISK.to_owned(), per_disk)]);
        let told = |local: &[&str]| {
            let local = local.iter().map(|device| device.to_string()).collect();
            aggregate(&cache, &local).into_iter().collect::<Map<_, _>>()
        };
        let all = told(&["sda", "sdb"]);
        // From the first beginning, at 910, to the last end.
        assert_eq!(all["object_reconstruction_time"], json!(2.0));
        assert_eq!(all["object_reconstruction_last"], json!(1030.0));
        assert_eq!(all[PER_DISK], json!({"old": {}}));
        assert!(told(&["sda", "sdb", "old", "sdc"]).is_empty());
        assert_eq!(told(&[]).len(), 1);
    }
}
