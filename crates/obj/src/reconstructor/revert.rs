//! Revert: fragments that belong to other primaries are sent there and then removed here, object by object.
//!
//! The partition is locked against sessions that bring fragments into it, so that two nodes cannot both take the other's for
//! safe and remove them. What is removed is exactly the files that were offered and taken: a newer version that has come
//! meanwhile has another name. Fragments without a commit are sent as such, and removed when they are older than
//! `commit_window`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{ObjHash, Suffix};
use service::logs::Logger;

use super::job::{Job, Part};
use super::{Pass, Reconstructor};
use crate::diskfile::{DiskFileError, TimestampSet};
use crate::replicator::revert::{in_all, lock_partition};
use crate::ssync::sender::{Fragments, InSync};

impl Reconstructor {
    pub(super) async fn revert(&self, pass: &Pass, part: &Arc<Part>, job: &Job) {
        let begin = Instant::now();
        self.ctx.statsd.increment(&format!("partition.delete.count.{}", part.dev.device));
        let device = &part.dev.device;
        let remains = match lock_partition(&self.ctx, &part.manager, device, part.partition).await {
            Ok(_lock) => self.revert_locked(part, job).await,
            Err(DiskFileError::LockTimeout(_)) => {
                self.logger.info(format_args!(
                    "Unable to lock handoff partition {} for revert on device {device} policy {}",
                    part.partition,
                    part.manager.policy().0
                ));
                self.ctx.statsd.increment("partition.lock-failure.count");
                true
            }
            Err(err) => {
                self.logger
                    .error(format_args!("Error reverting handoff partition {}: {err}", part.path.display()));
                true
            }
        };
        if remains {
            pass.handoffs_remaining.fetch_add(1, Ordering::Relaxed);
        }
        self.ctx.statsd.timing_since("partition.delete.timing", begin);
    }

    /// Whether something is left to be reverted.
    async fn revert_locked(&self, part: &Arc<Part>, job: &Job) -> bool {
        let mut taken = Vec::new();
        let mut limited = false;
        for node in &job.sync_to {
            let fragments = Fragments {
                frag_index: job.frag_index,
                backend_index: part.scheme.backend_index(node.index),
                include_non_durable: true,
                max_objects: self.conf.max_objects_per_revert,
                rebuilder: None,
                lacked: &[],
            };
            let sent = self.sender(part, node, &job.suffixes, fragments).run_limited().await;
            limited |= sent.limited;
            taken.extend(sent.in_sync);
        }
        if taken.len() < job.sync_to.len() {
            return true;
        }
        let objects = in_all(taken.into_iter());
        let (part_here, logger) = (part.clone(), self.logger.clone());
        let (frag_index, pure_handoff) = (job.frag_index, job.primary_frag_index.is_none());
        let remove = move || delete_reverted(&part_here, frag_index, pure_handoff, &objects, &logger);
        self.ctx.disk_pools.run(&part.dev.device, remove).await;
        limited
    }
}

/// Removes what all of its primaries have. Blocks.
fn delete_reverted(
    part: &Part,
    frag_index: Option<u32>,
    pure_handoff: bool,
    objects: &InSync,
    logger: &Logger,
) {
    let mut suffixes: Vec<Suffix> = objects.keys().map(ObjHash::suffix).collect();
    suffixes.sort();
    suffixes.dedup();
    for (hash, timestamps) in objects {
        match purge(part, frag_index, pure_handoff, *hash, timestamps) {
            // Reclaimed since, or removed by another reconstructor.
            Ok(()) | Err(DiskFileError::NotExist) => {}
            Err(err) => {
                let timestamp = timestamps.data.internal();
                logger.error(format_args!(
                    "Unable to purge DiskFile ({hash} {timestamp} {frag_index:?}): {err}"
                ));
            }
        }
    }
    for suffix in suffixes {
        let dir = part.path.join(suffix.to_string());
        if let Err(err) = common::fs::remove_empty_dir(&dir) {
            logger.error(format_args!("cannot remove {}: {err}", dir.display()));
        }
    }
}

fn purge(
    part: &Part,
    frag_index: Option<u32>,
    pure_handoff: bool,
    hash: ObjHash,
    timestamps: &TimestampSet,
) -> Result<(), DiskFileError> {
    let manager = &part.manager;
    let (diskfile, files) =
        manager.diskfile_and_filenames_from_hash(&part.dev.device, part.partition, hash)?;
    // An old durable fragment has the name of one without a commit.
    let delay = if timestamps.durable { Duration::ZERO } else { manager.conf().commit_window };
    let timestamp = timestamps.data.internal();
    let data: Vec<&String> = files.iter().filter(|file| file.ends_with(".data")).collect();
    let goes = data.iter().filter(|file| file.starts_with(&timestamp)).count();
    // With the last fragment the meta file goes, whose headers have been sent along.
    let last = pure_handoff && goes == data.len() && data.len() <= 1;
    diskfile.purge(timestamps.data, frag_index, delay, timestamps.meta.filter(|_| last))
}
