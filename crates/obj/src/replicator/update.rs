//! Bringing the other primaries of a partition up to date.
//!
//! Each primary is asked for its suffix hashes, then one after the other gets the suffixes that differ. All of this region and
//! one of each other region are asked at once, which Swift does in turn. A primary whose device is unmounted is replaced by the
//! next handoff. A remote region gets the partition once per pass; its own replicators spread it there.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use common::hash::Suffix;
use common::policy::PolicyIndex;
use futures_util::future::join_all;
use ring::Device;
use service::context::Context;
use service::http::client::Timeouts;
use service::http::{Body, Headers, Method, Status};

use super::job::{Job, node_key};
use super::stats::NodeKey;
use super::{Known, Pass, Replicator, SyncError};
use crate::diskfile::{DiskFileError, DiskFileManager, SeenObjects, SuffixHashes};
use crate::ssync::sender::node_to_string;

/// A partition has at most 4096 suffixes; the pickle of one is some 50 bytes, with fragments some hundred times that.
const MAX_HASHES: usize = 64 << 20;

/// What became of one sync.
#[derive(Default)]
struct Outcome {
    targets: BTreeSet<NodeKey>,
    failures: BTreeSet<NodeKey>,
}

impl Replicator {
    /// `hashed` is how many suffixes have been hashed for this since `begin`, and the partition's hashes.
    pub(super) async fn update(
        &self,
        pass: &Pass,
        job: &Job,
        begin: Instant,
        hashed: Result<(usize, SuffixHashes), DiskFileError>,
    ) {
        pass.stats(&job.device, |stats| stats.attempted += 1);
        self.ctx.statsd.increment(&format!("partition.update.count.{}", job.device));
        let mut outcome = Outcome::default();
        let synced = match hashed {
            Ok((hashed, local)) => {
                self.ctx.statsd.update_stats("suffix.hashes", hashed as i64);
                pass.stats(&job.device, |stats| stats.suffix_hash += hashed as u64);
                self.sync_primaries(pass, job, local, &mut outcome).await
            }
            Err(err) => Err(err),
        };
        if let Err(err) = synced {
            outcome.failures.extend(outcome.targets.iter().cloned());
            self.logger.error(format_args!("Error syncing partition {}: {err}", job.path.display()));
        }
        pass.stats(&job.device, |stats| {
            stats.add_failure_stats(&outcome.failures);
            stats.success += outcome.targets.difference(&outcome.failures).count() as u64;
        });
        pass.partition_took(begin.elapsed());
        self.ctx.statsd.timing_since("partition.update.timing", begin);
    }

    async fn sync_primaries(
        &self,
        pass: &Pass,
        job: &Job,
        mut local: SuffixHashes,
        outcome: &mut Outcome,
    ) -> Result<(), DiskFileError> {
        let mut nodes = job.nodes.clone();
        self.ctx.rng.shuffle(&mut nodes);
        let mut regions = BTreeSet::from([job.region]);
        let answers = nodes.iter().map(|node| {
            let now = node.region == job.region || regions.insert(node.region);
            async move { if now { Some(self.remote_hashes(node, job).await) } else { None } }
        });
        let answers = join_all(answers).await;
        let mut primaries = nodes.into_iter().zip(answers);
        let mut handoffs = job.ring.get_more_nodes(job.partition);
        let mut synced_remote_regions = BTreeSet::new();
        let mut attempts_left = job.nodes.len();
        while attempts_left > 0 {
            let (node, answer) = match primaries.next() {
                Some(primary) => primary,
                None => match handoffs.next() {
                    Some(node) => (node, None),
                    None => {
                        self.logger.error(format_args!(
                            "Ran out of handoffs while replicating partition {} of policy {}",
                            job.partition,
                            job.manager.policy().0
                        ));
                        // Swift leaves its suffixes uncounted then.
                        return Ok(());
                    }
                },
            };
            outcome.targets.insert(node_key(&node));
            attempts_left -= 1;
            if synced_remote_regions.contains(&node.region) {
                continue;
            }
            let answer = match answer {
                Some(answer) => answer,
                None => self.remote_hashes(&node, job).await,
            };
            let remote = match answer {
                Ok(remote) => remote,
                Err(refusal) => {
                    outcome.failures.insert(node_key(&node));
                    attempts_left += self.refused(&node, refusal, outcome, attempts_left);
                    continue;
                }
            };
            let (success, synced) = match self.sync_node(pass, job, &node, &remote, &mut local).await {
                Ok(done) => done,
                Err(err) => {
                    self.error_with_node(&node, &err);
                    (false, 0)
                }
            };
            if !success {
                outcome.failures.insert(node_key(&node));
            } else if synced > 0 && node.region != job.region {
                synced_remote_regions.insert(node.region);
            }
        }
        pass.stats(&job.device, |stats| stats.suffix_count += local.len() as u64);
        Ok(())
    }

    /// Sends a node the suffixes that differ: whether that succeeded, and how many they were.
    async fn sync_node(
        &self,
        pass: &Pass,
        job: &Job,
        node: &Device,
        remote: &SuffixHashes,
        local: &mut SuffixHashes,
    ) -> Result<(bool, usize), SyncError> {
        let mut suffixes = differing(local, remote);
        let mut seen = SeenObjects::default();
        if !suffixes.is_empty() {
            // What differs may only be stale.
            let partition = job.partition;
            let rehash = move |manager: &DiskFileManager, device: &Path| {
                manager.rehash_and_list(device, partition, &suffixes)
            };
            (_, (*local, seen)) = self.hash(job, rehash).await?;
            suffixes = differing(local, remote);
        }
        if suffixes.is_empty() {
            pass.stats(&job.device, |stats| stats.hashmatch += 1);
            return Ok((true, 0));
        }
        pass.stats(&job.device, |stats| stats.rsync += 1);
        let known = Known { seen: Some(&seen), in_region: None };
        let success = self.sync(node, job, &suffixes, known).await?.is_some();
        pass.stats(&job.device, |stats| stats.suffix_sync += suffixes.len() as u64);
        self.ctx.statsd.update_stats("suffix.syncs", suffixes.len() as i64);
        Ok((success, suffixes.len()))
    }

    /// Hashes a partition on its device; how many suffixes have been hashed, and what else `rehash` returns.
    async fn hash<T: Send + 'static>(
        &self,
        job: &Job,
        rehash: impl FnOnce(&DiskFileManager, &Path) -> Result<(usize, T), DiskFileError> + Send + 'static,
    ) -> Result<(usize, T), DiskFileError> {
        let (manager, device) = (job.manager.clone(), job.device.clone());
        let rehash = move || {
            let device_path = manager.dev_path(&device).ok_or(DiskFileError::DeviceUnavailable)?;
            rehash(&manager, &device_path)
        };
        let (hashed, found) = self.ctx.disk_pools.run(&job.device, rehash).await?;
        self.ctx.statsd.update_stats("suffix.hashes", hashed as i64);
        Ok((hashed, found))
    }

    async fn remote_hashes(&self, node: &Device, job: &Job) -> Result<SuffixHashes, Refusal> {
        let failed = |err: String| Refusal::Failed(err);
        let (status, body) = self.replicate_request(node, job, "").await.map_err(failed)?;
        match status {
            Status::OK => {}
            Status::INSUFFICIENT_STORAGE => return Err(Refusal::Unmounted),
            status => return Err(Refusal::Status(status)),
        }
        SuffixHashes::from_answer(&body).ok_or_else(|| failed("answer is not a dict".to_string()))
    }

    /// Asks a node for its hashes of a partition, after hashing again the suffixes in `suffixes`, which dashes separate.
    pub(super) async fn replicate_request(
        &self,
        node: &Device,
        job: &Job,
        suffixes: &str,
    ) -> Result<(Status, Bytes), String> {
        let sender = &self.conf.sender;
        let timeouts = Timeouts { conn: sender.conn_timeout, node: sender.http_timeout };
        let place = (job.manager.policy(), job.partition);
        replicate_request(&self.ctx, "object-replicator", timeouts, node, place, suffixes).await
    }

    fn error_with_node(&self, node: &Device, err: &dyn std::fmt::Display) {
        self.logger.error(format_args!("Error syncing with node: {}: {err}", node_to_string(node)));
    }

    /// Logs why a node has not told its hashes; how many more nodes to try for that.
    fn refused(&self, node: &Device, refusal: Refusal, outcome: &Outcome, attempts_left: usize) -> usize {
        let name = node_to_string(node);
        match refusal {
            Refusal::Unmounted => {
                self.logger.error(format_args!("{name} responded as unmounted"));
                let safe = 1 + outcome.targets.difference(&outcome.failures).count();
                // With handoff_delete enough copies elsewhere are enough; else every lost one is made up for.
                usize::from(self.conf.handoff_delete == 0 || safe + attempts_left < self.conf.handoff_delete)
            }
            Refusal::Status(status) => {
                self.logger.error(format_args!("Invalid response {} from {name}", status.0));
                0
            }
            Refusal::Failed(reason) => {
                self.error_with_node(node, &reason);
                0
            }
        }
    }
}

/// Sends REPLICATE for a partition of a policy, and its suffixes if any, and reads the answer.
pub async fn replicate_request(
    ctx: &Context,
    agent: &str,
    timeouts: Timeouts,
    node: &Device,
    (policy, partition): (PolicyIndex, u32),
    suffixes: &str,
) -> Result<(Status, Bytes), String> {
    let mut headers = Headers::new();
    headers.insert("User-Agent", format!("{agent} {}", std::process::id()));
    headers.insert("X-Backend-Storage-Policy-Index", policy.0);
    let mut path = format!("/{}/{partition}", node.device);
    if !suffixes.is_empty() {
        path = format!("{path}/{suffixes}");
    }
    let addr = (node.replication_ip.as_str(), node.replication_port);
    let sent = ctx.pool.request(addr, Method::Replicate, &path, &headers, Body::empty(), timeouts).await;
    let mut resp = sent.map_err(|err| err.to_string())?;
    let body = resp.body.collect(MAX_HASHES).await.map_err(|err| err.to_string())?;
    Ok((resp.status, body))
}

enum Refusal {
    Unmounted,
    Status(Status),
    Failed(String),
}

/// The suffixes that the other side lacks or has differently. One that could not be hashed here counts as different.
fn differing(local: &SuffixHashes, remote: &SuffixHashes) -> Vec<Suffix> {
    let differs = |(suffix, hash): &(Suffix, Option<&crate::diskfile::SuffixHash>)| {
        hash.is_none() || *hash != remote.get(*suffix)
    };
    local.iter().filter(differs).map(|(suffix, _)| suffix).collect()
}
