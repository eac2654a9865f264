//! One worker of the relinker: its devices, policy by policy, partition by partition.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::policy::data_dir;
use common::recon::{RELINKER_FILE, dump_recon};
use common::{ObjHash, StoragePolicy, fs};
use ring::{Ring, RingError};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use service::logs::Logger;
use service::statsd::Statsd;

use super::location::Location;
use super::state::State;
use super::stats::{Begun, Figures, PolicyFigures, Progress, Stats};
use super::{EXIT_ERROR, EXIT_NO_APPLICABLE_POLICY, EXIT_SUCCESS, RelinkerConf, Step};
use crate::diskfile::{DiskFileError, DiskFileManager, DiskFileRouter, SuffixLinker};
use crate::rate_limiter::RateLimiter;

/// Seconds that a slow stretch may be caught up with.
const RATE_BUFFER: f64 = 5.0;
/// What lies in a partition besides suffixes, in the order in which it is removed.
const PARTITION_FILES: [&str; 4] = ["hashes.pkl", "hashes.invalid", ".lock", ".lock-replication"];

/// What ends a worker.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Disk(#[from] DiskFileError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Fatal + '_ {
    move |source| Fatal::Io { path: path.to_owned(), source }
}

pub(super) struct Worker<'a> {
    step: Step,
    conf: &'a RelinkerConf,
    logger: &'a Logger,
    /// Empty for all there are.
    devices: Vec<String>,
    id: i32,
    router: DiskFileRouter,
    figures: Figures,
    last_recon_update: f64,
}

/// One policy's turn.
struct Turn<'a> {
    policy: &'a StoragePolicy,
    manager: &'a DiskFileManager,
    datadir: String,
    state: State,
    limiter: RateLimiter,
}

/// The partition at hand.
struct Partition<'a> {
    device: &'a str,
    device_path: &'a Path,
    name: &'a str,
    path: &'a Path,
    /// Partitions that got links.
    linked_into: BTreeSet<u32>,
}

impl<'a> Worker<'a> {
    pub fn new(
        step: Step,
        conf: &'a RelinkerConf,
        logger: &'a Logger,
        devices: Vec<String>,
        id: i32,
    ) -> Self {
        let statsd = Statsd::disabled();
        let router = DiskFileRouter::new(&conf.diskfile, &conf.swift_conf, &conf.clock, logger, &statsd);
        let last_recon_update = conf.clock.unix_secs();
        Worker { step, conf, logger, devices, id, router, figures: Figures::default(), last_recon_update }
    }

    /// The exit code.
    pub fn run(mut self) -> u8 {
        self.dump_recon(&[("workers", self.worker_stats(None))]);
        let status = self.run_policies().unwrap_or_else(|err| {
            self.logger.error(format_args!("Unhandled exception in relinker worker: {err}"));
            EXIT_ERROR
        });
        self.dump_recon(&[("workers", self.worker_stats(Some(status)))]);
        status
    }

    fn run_policies(&mut self) -> Result<u8, Fatal> {
        let swift_conf = self.conf.swift_conf.clone();
        let mut any = false;
        for policy in swift_conf.policies.iter().filter(|policy| self.conf.policies.contains(&policy.index)) {
            let file = swift_conf.dir.join(format!("{}.ring.gz", policy.object_ring_name));
            let ring = Ring::load(&file)?;
            let Some(next_part_power) = ring.next_part_power().filter(|power| *power > 0) else { continue };
            let has_increased = next_part_power == ring.part_power();
            if has_increased != (self.step == Step::Cleanup) {
                continue;
            }
            any = true;
            self.process_policy(policy, ring.part_power(), next_part_power)?;
        }
        self.update_recon(None, true);
        if !any {
            self.logger.warning("No policy found to increase the partition power.");
            return Ok(EXIT_NO_APPLICABLE_POLICY);
        }
        Ok(self.sum_up())
    }

    fn sum_up(&self) -> u8 {
        let total = self.figures.total();
        let Stats { hash_dirs, files, linked, removed, errors, unmounted, unlistable_partitions } = total;
        if unmounted > 0 {
            self.logger.warning(format_args!("{unmounted} disks were unmounted"));
        }
        if unlistable_partitions > 0 {
            self.logger.warning(format_args!(
                "There were {unlistable_partitions} errors listing partition directories"
            ));
        }
        let errors = errors + unlistable_partitions;
        let text = format_args!(
            "{hash_dirs} hash dirs processed ({files} files, {linked} linked, {removed} removed, {errors} errors)"
        );
        if total.all_errors() > 0 {
            self.logger.warning(text);
            return EXIT_ERROR;
        }
        self.logger.info(text);
        EXIT_SUCCESS
    }

    fn process_policy(
        &mut self,
        policy: &StoragePolicy,
        part_power: u32,
        next_part_power: u32,
    ) -> Result<(), Fatal> {
        let devices = &self.conf.diskfile.devices;
        let root = match &self.devices[..] {
            [one] => devices.join(one),
            _ => devices.clone(),
        };
        let (name, root) = (&policy.name, root.display());
        self.logger.info(format_args!("Processing files for policy {name} under {root}"));
        let manager = self.router.get(policy.index).cloned().expect("the router has every policy");
        let mut turn = Turn {
            policy,
            manager: &manager,
            datadir: data_dir("objects", policy.index),
            state: State::new(part_power, next_part_power),
            limiter: RateLimiter::new(self.conf.files_per_second, RATE_BUFFER),
        };
        let mut names = list(devices)?;
        names.retain(|name| self.devices.is_empty() || self.devices.contains(name));
        names.sort();
        for device in names {
            let path = devices.join(&device);
            if self.conf.diskfile.mount_check && !fs::is_mount(&path) {
                self.logger.warning(format_args!("Skipping {device} as it is not mounted"));
                self.figures.policy(&device, policy.index).stats.unmounted += 1;
                continue;
            }
            self.process_device(&mut turn, &device, &path)?;
        }
        Ok(())
    }

    fn process_device(&mut self, turn: &mut Turn<'_>, device: &str, path: &Path) -> Result<(), Fatal> {
        let lock_path = path.join(format!(".relink.{}.lock", turn.datadir));
        let lock = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(at(&lock_path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|err| at(&lock_path)(err.into()))?;
        load_state(&mut turn.state, &state_file(path, &turn.datadir))?;
        if self.step == Step::Cleanup {
            // Links that another run has made, and not lived to sync: their other names go now.
            fs::sync_filesystem(path).map_err(at(path))?;
        }
        let State { part_power, next_part_power, .. } = turn.state;
        let start_time = self.now();
        let begun = Some(Begun { start_time, part_power, next_part_power });
        *self.figures.policy(device, turn.policy.index) = PolicyFigures { begun, ..Default::default() };
        self.update_recon(Some((device, turn)), false);
        let datadir_path = path.join(&turn.datadir);
        let names = match list(&datadir_path) {
            Ok(names) => names,
            Err(Fatal::Io { source, .. }) => {
                let datadir = datadir_path.display();
                self.logger.warning(format_args!("Skipping {datadir} because {source}"));
                self.figures.policy(device, turn.policy.index).stats.unlistable_partitions += 1;
                return Ok(());
            }
            Err(err) => return Err(err),
        };
        for name in turn.state.partitions_to_do(names, &self.conf.partitions) {
            let part_path = datadir_path.join(&name);
            let linked_into = BTreeSet::new();
            let mut partition =
                Partition { device, device_path: path, name: &name, path: &part_path, linked_into };
            self.process_partition(turn, &mut partition)?;
        }
        let total_time = self.now() - start_time;
        self.figures.policy(device, turn.policy.index).total_time = Some(total_time);
        self.update_recon(Some((device, turn)), true);
        // The lock goes here.
        Ok(())
    }

    fn process_partition(&mut self, turn: &mut Turn<'_>, partition: &mut Partition<'_>) -> Result<(), Fatal> {
        let errors_before = self.figures.total().all_errors();
        let Some(suffixes) = list_if_dir(partition.path)? else { return Ok(()) };
        for suffix in suffixes {
            let suffix_path = partition.path.join(suffix);
            if let Some(hashes) = list_if_dir(&suffix_path)? {
                self.process_suffix(turn, partition, &suffix_path, &hashes)?;
            }
        }
        self.finish_partition(turn, partition, errors_before)
    }

    fn process_suffix(
        &mut self,
        turn: &mut Turn<'_>,
        partition: &mut Partition<'_>,
        suffix_path: &Path,
        hashes: &[String],
    ) -> Result<(), Fatal> {
        let datadir = partition.device_path.join(&turn.datadir);
        let mut linkers: Vec<SuffixLinker> = Vec::new();
        for name in hashes {
            let hash_path = suffix_path.join(name);
            let Some(hash) = ObjHash::parse(name) else {
                self.logger.warning(format_args!("Skipping {}: it is no hash", hash_path.display()));
                continue;
            };
            let new_part = hash.partition(turn.state.next_part_power);
            if new_part.to_string() == partition.name || !hash_path.is_dir() {
                continue;
            }
            let wait = turn.limiter.wait(self.now());
            std::thread::sleep(Duration::from_secs_f64(wait));
            let new_partition_dir = datadir.join(new_part.to_string());
            let known = linkers.iter().position(|linker| linker.partition_dir() == new_partition_dir);
            let linker = known.unwrap_or_else(|| {
                linkers.push(SuffixLinker::new(partition.device_path, &new_partition_dir, hash.suffix()));
                linkers.len() - 1
            });
            // By the directory that it is in, even if that is not its own.
            let suffix = suffix_path.file_name().unwrap_or_default();
            let location = Location {
                manager: turn.manager,
                logger: self.logger,
                device_path: partition.device_path,
                step: self.step,
                clobber_hardlink_collisions: self.conf.clobber_hardlink_collisions,
                hash_path: &hash_path,
                new_hash_path: new_partition_dir.join(suffix).join(name),
            };
            let stats = &mut self.figures.policy(partition.device, turn.policy.index).stats;
            if location.process(&mut linkers[linker], stats)? {
                partition.linked_into.insert(new_part);
            }
        }
        Ok(())
    }

    fn finish_partition(
        &mut self,
        turn: &mut Turn<'_>,
        partition: &Partition<'_>,
        errors_before: u64,
    ) -> Result<(), Fatal> {
        let &Partition { device, device_path, name, path, .. } = partition;
        let is_cleanup = self.step == Step::Cleanup;
        for &dirty in &partition.linked_into {
            // The others are rehashed when they are cleaned up; those above will not be looked at again.
            if is_cleanup || u64::from(dirty) >= 1 << turn.state.part_power {
                turn.manager.get_hashes(device, dirty, &[], false)?;
            }
        }
        if is_cleanup && let Ok(number) = name.parse() {
            let hashes = turn.manager.get_hashes(device, number, &[], false);
            match hashes {
                Ok(Some(hashes)) if hashes.is_empty() => remove_partition(turn.manager, device, number, path),
                Ok(_) | Err(DiskFileError::LockTimeout(_)) => {}
                Err(err) => return Err(err.into()),
            }
        }
        if errors_before == self.figures.total().all_errors() {
            if !partition.linked_into.is_empty() {
                fs::sync_filesystem(device_path).map_err(at(device_path))?;
            }
            turn.state.parts.insert(name.to_owned(), true);
            let file = state_file(device_path, &turn.datadir);
            let tmp = device_path.join(format!(".relink.{}.json.tmp", turn.datadir));
            // A crash before this leaves the partition to be looked at again.
            fs::write_file_as(&file, &tmp, turn.state.to_json().as_bytes()).map_err(at(&file))?;
        }
        let (done, total) = (turn.state.done(), turn.state.parts.len());
        let policy = &turn.policy.name;
        self.logger.info(format_args!("Device: {device} Policy: {policy} Partitions: {done}/{total}"));
        self.update_recon(Some((device, turn)), false);
        Ok(())
    }

    fn now(&self) -> f64 {
        self.conf.clock.unix_secs()
    }

    fn update_recon(&mut self, place: Option<(&str, &Turn<'_>)>, force: bool) {
        let now = self.now();
        if !force && self.last_recon_update + self.conf.stats_interval.as_secs_f64() > now {
            return;
        }
        if let Some((device, turn)) = place {
            let (parts_done, total_parts) = (turn.state.done(), turn.state.parts.len());
            let progress = Progress { step: self.step.name(), parts_done, total_parts, timestamp: now };
            self.figures.policy(device, turn.policy.index).progress = Some(progress);
            self.logger.debug(format_args!("Updating recon for {device}"));
        } else {
            self.logger.debug("Updating recon");
        }
        self.last_recon_update = now;
        let entries = [("workers", self.worker_stats(None)), ("devices", self.figures.to_json())];
        self.dump_recon(&entries);
    }

    fn worker_stats(&self, return_code: Option<u8>) -> Value {
        let stats = json!({ "devices": self.devices, "timestamp": self.now(), "return_code": return_code });
        json!({ self.id.to_string(): stats })
    }

    fn dump_recon(&self, entries: &[(&str, Value)]) {
        if let Err(err) = dump_recon(&self.conf.recon_cache_path.join(RELINKER_FILE), entries) {
            self.logger.error(format_args!("Exception dumping recon cache: {err}"));
        }
    }
}

fn state_file(device_path: &Path, datadir: &str) -> PathBuf {
    device_path.join(format!("relink.{datadir}.json"))
}

fn load_state(state: &mut State, file: &Path) -> Result<(), Fatal> {
    match std::fs::read(file) {
        Ok(text) if state.load(&text) => Ok(()),
        Ok(_) => fs::remove_file(file).map_err(at(file)),
        Err(err) if err.kind() == ErrorKind::NotFound => {
            state.parts.clear();
            Ok(())
        }
        Err(err) => Err(at(file)(err)),
    }
}

/// Names in a directory; none if it is not there. Names that are no text are nobody's here.
fn list(path: &Path) -> Result<Vec<String>, Fatal> {
    let entries = match std::fs::read_dir(path) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(at(path))?.file_name().into_string());
    }
    Ok(names)
}

fn list_if_dir(path: &Path) -> Result<Option<Vec<String>>, Fatal> {
    match list(path) {
        Ok(names) => Ok(Some(names)),
        Err(Fatal::Io { source, .. }) if source.kind() == ErrorKind::NotADirectory => Ok(None),
        Err(err) => Err(err),
    }
}

/// Removes what is left of an empty partition. If something lands in it meanwhile, it stays, for the replicator.
fn remove_partition(manager: &DiskFileManager, device: &str, partition: u32, path: &Path) {
    let Ok(_replication) = manager.replication_lock(device, partition, None) else { return };
    let Ok(_partition) = manager.partition_lock(device, partition, None, None) else { return };
    for name in PARTITION_FILES {
        if fs::remove_file(&path.join(name)).is_err() {
            return;
        }
    }
    // Not empty: see above.
    let _ = fs::remove_empty_dir(path);
}
