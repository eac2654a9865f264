//! Moving a partition from a handoff to its primaries.
//!
//! Swift removes the whole partition when every primary has answered well; an object that is written to the handoff between
//! its listing and its removal is lost. Here only what the primaries are known to have is removed: the files of an object
//! whose state still is the one that was offered. The partition's directory goes when nothing is left in it; an object that
//! arrived meanwhile stays for the next pass. rsync does not tell what it has sent: there the state is the one from before the
//! first transfer. What is no object and does not belong in a partition goes with it once it is old; of directories that are
//! no suffixes only empty ones go, where Swift's rsync would copy those with names of three letters.
//!
//! A node that cannot be told to hash again after an rsync has failed, and the next ones are tried; Swift gives up the
//! partition and counts all of its nodes as successes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::fs::{fsync_dir, remove_empty_dir, remove_file};
use common::hash::{ObjHash, Suffix};
use service::context::Context;
use service::logs::Logger;

use super::job::{Job, node_key};
use super::stats::NodeKey;
use super::{Known, Pass, Replicator, SyncMethod};
use crate::diskfile::{DiskFileError, DiskFileManager, LockGuard, TimestampSet, Want};
use crate::ssync::sender::{InSync, node_to_string};

/// Swift: how long a revert waits for a session that receives the same partition.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Files which are no object are removed with the partition, unless somebody may be writing them now.
const JUNK_AGE: Duration = Duration::from_secs(3600);

impl Replicator {
    pub(super) async fn revert(&self, pass: &Pass, job: &Job) {
        let begin = Instant::now();
        pass.stats(&job.device, |stats| stats.attempted += 1);
        self.ctx.statsd.increment(&format!("partition.delete.count.{}", job.device));
        let mut failures = BTreeSet::new();
        let removed = match self.revert_locked(pass, job, &mut failures).await {
            Ok(removed) => removed,
            Err(DiskFileError::LockTimeout(_)) => {
                self.logger.info(format_args!(
                    "Unable to lock handoff partition {} for replication on device {} policy {}",
                    job.partition,
                    job.device,
                    job.manager.policy().0
                ));
                self.ctx.statsd.increment("partition.lock-failure.count");
                false
            }
            Err(err) => {
                let path = job.path.display();
                self.logger.error(format_args!("Error syncing handoff partition {path}: {err}"));
                false
            }
        };
        let targets: BTreeSet<NodeKey> = job.node_keys().into_iter().collect();
        pass.stats(&job.device, |stats| {
            stats.add_failure_stats(&failures);
            stats.success += targets.difference(&failures).count() as u64;
        });
        if !removed {
            pass.handoff_remains();
        }
        pass.partition_took(begin.elapsed());
        self.ctx.statsd.timing_since("partition.delete.timing", begin);
    }

    /// Whether the partition is gone.
    async fn revert_locked(
        &self,
        pass: &Pass,
        job: &Job,
        failures: &mut BTreeSet<NodeKey>,
    ) -> Result<bool, DiskFileError> {
        // A session that receives this partition holds the same lock: two nodes which give it to one another at the same
        // time would both remove it.
        let _lock = lock_partition(&self.ctx, &job.manager, &job.device, job.partition).await?;
        let suffixes = self.suffixes(job).await?;
        let mut responses: Vec<Option<InSync>> = Vec::new();
        let offered = self.states_for_rsync(job, &suffixes).await?;
        if !suffixes.is_empty() {
            let mut synced_remote_regions: BTreeMap<u32, HashSet<ObjHash>> = BTreeMap::new();
            for node in &job.nodes {
                pass.stats(&job.device, |stats| stats.rsync += 1);
                // A region gets the data once; its other nodes are only asked whether they have it by now.
                let known = Known { in_region: synced_remote_regions.get(&node.region), seen: None };
                let in_sync = self.sync(node, job, &suffixes, known).await.unwrap_or_else(|err| {
                    let (path, node) = (job.path.display(), node_to_string(node));
                    self.logger.error(format_args!(
                        "Error syncing handoff partition {path} with node {node}: {err}"
                    ));
                    None
                });
                match &in_sync {
                    None => {
                        failures.insert(node_key(node));
                    }
                    Some(in_sync) if node.region != job.region => {
                        synced_remote_regions.insert(node.region, in_sync.keys().copied().collect());
                    }
                    Some(_) => {}
                }
                responses.push(in_sync);
            }
        }
        let successes = responses.iter().flatten().count();
        let enough = match self.conf.handoff_delete {
            0 => responses.len() == job.nodes.len() && successes == responses.len(),
            wanted => successes >= wanted.min(job.nodes.len()),
        };
        if !enough && !suffixes.is_empty() {
            return Ok(false);
        }
        let in_sync = offered.unwrap_or_else(|| in_all(responses.into_iter().flatten()));
        if !suffixes.is_empty() {
            pass.stats(&job.device, |stats| stats.remove += 1);
        }
        let (manager, device) = (job.manager.clone(), job.device.clone());
        let (partition, path, logger) = (job.partition, job.path.clone(), self.logger.clone());
        let remove =
            move || remove_in_sync(&manager, &device, partition, &path, &suffixes, &in_sync, &logger);
        match self.ctx.disk_pools.run(&job.device, remove).await {
            Ok(removed) => Ok(removed),
            Err(err) => {
                // It will have to be offered again: as if no primary had it.
                failures.extend(job.node_keys());
                Err(err)
            }
        }
    }

    /// What an rsync that begins now will send at least.
    async fn states_for_rsync(
        &self,
        job: &Job,
        suffixes: &[Suffix],
    ) -> Result<Option<InSync>, DiskFileError> {
        if matches!(self.conf.method, SyncMethod::Ssync) {
            return Ok(None);
        }
        let (manager, device, partition) = (job.manager.clone(), job.device.clone(), job.partition);
        let suffixes = suffixes.to_vec();
        let list =
            move || Ok(manager.yield_hashes(&device, partition, Some(&suffixes), Want::default())?.collect());
        self.ctx.disk_pools.run(&job.device, list).await.map(Some)
    }

    async fn suffixes(&self, job: &Job) -> Result<Vec<Suffix>, DiskFileError> {
        let (manager, device, partition) = (job.manager.clone(), job.device.clone(), job.partition);
        self.ctx.disk_pools.run(&job.device, move || manager.yield_suffixes(&device, partition)).await
    }
}

/// Keeps sessions that receive a partition out of it; waits for one that runs, but not for long.
pub async fn lock_partition(
    ctx: &Context,
    manager: &Arc<DiskFileManager>,
    device: &str,
    partition: u32,
) -> Result<LockGuard, DiskFileError> {
    let started = Instant::now();
    loop {
        let (manager, name) = (manager.clone(), device.to_string());
        let lock =
            move || manager.partition_lock(&name, partition, Some("replication"), Some(Duration::ZERO));
        match ctx.disk_pools.run(device, lock).await {
            Err(DiskFileError::LockTimeout(_)) if started.elapsed() < LOCK_TIMEOUT => {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// The objects that every one of the nodes has, in the state that was offered to each.
pub fn in_all(mut responses: impl Iterator<Item = InSync>) -> InSync {
    let Some(mut all) = responses.next() else { return HashMap::new() };
    for other in responses {
        all.retain(|hash, timestamps| other.get(hash) == Some(timestamps));
    }
    all
}

/// Removes what is in sync, then what is empty. Whether the partition is gone. Blocks.
fn remove_in_sync(
    manager: &Arc<DiskFileManager>,
    device: &str,
    partition: u32,
    path: &Path,
    suffixes: &[Suffix],
    in_sync: &InSync,
    logger: &Logger,
) -> Result<bool, DiskFileError> {
    let mut removed = 0;
    // Before anything goes: a node that is stopped now and has the partition back later must not take itself for in sync.
    manager.get_hashes(device, partition, suffixes, true)?;
    for &suffix in suffixes {
        let suffix_dir = path.join(suffix.to_string());
        let listed = list_hash_dirs(&suffix_dir);
        // The names were listed first: a file that comes after that is not among them, and one that came before shows in the
        // state that is compared now.
        let states: HashMap<ObjHash, TimestampSet> =
            manager.yield_hashes(device, partition, Some(&[suffix]), Want::default())?.collect();
        for (hash_dir, files) in listed {
            let hash = hash_dir.file_name().and_then(|name| ObjHash::parse(name.to_str()?));
            let state = hash.and_then(|hash| states.get(&hash));
            let goes = match (hash, state) {
                (Some(hash), Some(state)) => in_sync.get(&hash) == Some(state),
                _ => is_old_junk(manager, &files),
            };
            if !goes {
                continue;
            }
            removed += usize::from(state.is_some());
            // A crash leaves part of the files: the object is offered again.
            remove_files(&files)?;
            remove_dir(&hash_dir)?;
        }
        remove_dir(&suffix_dir)?;
    }
    let gone = remove_partition(manager, path)?;
    if gone {
        logger.info(format_args!("Removing partition: {}", path.display()));
    } else {
        // Somebody may have hashed it meanwhile.
        manager.get_hashes(device, partition, suffixes, true)?;
        logger.info(format_args!("Removing {removed} objects"));
    }
    Ok(gone)
}

/// Each entry of a suffix dir, with the files in it; of an entry that is a file, itself.
fn list_hash_dirs(suffix_dir: &Path) -> Vec<(PathBuf, Vec<PathBuf>)> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        entries.flatten().map(|entry| entry.path()).collect()
    };
    list(suffix_dir).into_iter().map(|hash_dir| (hash_dir.clone(), list(&hash_dir))).collect()
}

fn is_old_junk(manager: &DiskFileManager, files: &[PathBuf]) -> bool {
    let now = Duration::try_from_secs_f64(manager.clock().unix_secs()).unwrap_or_default();
    files.iter().all(|file| {
        let modified = std::fs::symlink_metadata(file).and_then(|meta| meta.modified()).ok();
        let modified = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        modified.is_none_or(|modified| now.saturating_sub(modified) > JUNK_AGE)
    })
}

fn remove_files(files: &[PathBuf]) -> Result<(), DiskFileError> {
    files.iter().try_for_each(|file| remove_file(file).map_err(|err| io_error("cannot remove", file, err)))
}

/// No error if it is not empty: somebody has written to it.
fn remove_dir(dir: &Path) -> Result<bool, DiskFileError> {
    remove_empty_dir(dir).map_err(|err| io_error("cannot remove", dir, err))
}

fn io_error(what: &'static str, path: &Path, source: std::io::Error) -> DiskFileError {
    DiskFileError::Io { what, path: path.to_path_buf(), source }
}

/// Removes a partition in which nothing is left but hashes and locks, and what is in the wrong place.
pub fn remove_partition(manager: &DiskFileManager, path: &Path) -> Result<bool, DiskFileError> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(err) => return Err(io_error("cannot list", path, err)),
    };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let own = name.starts_with("hashes.") || name.starts_with(".lock") || name.starts_with(".hashes.");
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if Suffix::parse(&name).is_some() || !remove_dir(&entry.path())? {
                return Ok(false);
            }
        } else if own || is_old_junk(manager, &[entry.path()]) {
            files.push(entry.path());
        } else {
            return Ok(false);
        }
    }
    // A crash must not leave hashes without what tells that they are stale.
    let hashes = path.join("hashes.pkl");
    if files.contains(&hashes) {
        remove_files(&[hashes])?;
        fsync_dir(path).map_err(|err| io_error("cannot sync", path, err))?;
    }
    remove_files(&files)?;
    remove_dir(path)
}
