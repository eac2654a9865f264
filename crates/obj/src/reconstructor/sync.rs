//! Sync: what a primary has of its fragment, its partners should have of theirs.
//!
//! Each partner tells its suffix hashes. Where they differ, by its index and by ours or in anything without an index, a
//! session offers our objects; what the partner lacks of an object is rebuilt for it. A partner whose device is unmounted is
//! replaced by handoffs that would get the same fragment.

use std::sync::Arc;
use std::time::Instant;

use common::Suffix;
use futures_util::future::join_all;
use ring::Node;
use service::http::Status;
use service::http::client::Timeouts;

use super::job::{Job, Part, suffix_delta};
use super::rebuild::FragmentRebuilder;
use super::{Pass, Reconstructor, add, full_path};
use crate::diskfile::{DiskFileError, SuffixHashes};
use crate::replicator::update::replicate_request;
use crate::ssync::sender::Fragments;

impl Reconstructor {
    pub(super) async fn sync(&self, pass: &Pass, part: &Arc<Part>, job: &Job, hashes: &SuffixHashes) {
        let begin = Instant::now();
        self.ctx.statsd.increment(&format!("partition.update.count.{}", part.dev.device));
        // All partners are asked at the same time.
        let asked = job.sync_to.iter().map(|partner| {
            let wanted = part.scheme.backend_index(partner.index);
            async move { (self.hashes_of(part, partner, wanted).await, wanted) }
        });
        let mut fresh = None;
        for (answer, wanted) in join_all(asked).await {
            let Some((node, remote)) = answer else { continue };
            match self.suffixes_to_sync(pass, part, job, hashes, (&remote, wanted), &mut fresh).await {
                Ok(suffixes) if suffixes.is_empty() => {}
                Ok(suffixes) => {
                    self.send(pass, part, job, (&node, &remote, wanted), &suffixes).await;
                    fresh = None;
                }
                Err(err) => self.logger.error(format_args!("Unable to hash {}: {err}", part.path.display())),
            }
        }
        self.ctx.statsd.timing_since("partition.update.timing", begin);
    }

    async fn send(
        &self,
        pass: &Pass,
        part: &Arc<Part>,
        job: &Job,
        (node, remote, wanted): (&Node, &SuffixHashes, u32),
        suffixes: &[Suffix],
    ) {
        let has_some =
            |suffix: Suffix| remote.get(suffix).is_some_and(|hash| hash.of(Some(wanted)).is_some());
        let lacked: Vec<Suffix> = suffixes.iter().copied().filter(|suffix| !has_some(*suffix)).collect();
        let rebuilder = FragmentRebuilder {
            ctx: &self.ctx,
            logger: &self.logger,
            conf: &self.conf,
            part,
            node,
            wanted,
            local: job.frag_index.unwrap_or_default(),
        };
        let fragments = Fragments {
            frag_index: job.frag_index,
            backend_index: wanted,
            include_non_durable: false,
            max_objects: 0,
            rebuilder: Some(&rebuilder),
            lacked: &lacked,
        };
        // What has failed is logged, and comes again in the next pass.
        self.sender(part, node, suffixes, fragments).run().await;
        add(&pass.suffix_sync, suffixes.len());
        self.ctx.statsd.update_stats("suffix.syncs", suffixes.len() as i64);
    }

    /// The suffix hashes of a partner, or of the first of its handoffs that is mounted.
    async fn hashes_of(&self, part: &Arc<Part>, partner: &Node, wanted: u32) -> Option<(Node, SuffixHashes)> {
        let stands_in =
            |node: &Node| node.handoff_index.is_some_and(|nth| part.scheme.backend_index(nth) == wanted);
        let handoffs = part.ring.get_more_nodes(part.partition).filter(stands_in);
        let count = self.conf.rebuild_handoff_node_count.unwrap_or(usize::MAX);
        let conf = &self.conf.sender;
        let timeouts = Timeouts { conn: conf.conn_timeout, node: conf.http_timeout };
        let place = (part.manager.policy(), part.partition);
        for node in std::iter::once(partner.clone()).chain(handoffs.take(count)) {
            let shown = full_path(&node, part, "");
            match replicate_request(&self.ctx, "obj-reconstructor", timeouts, &node, place, "").await {
                Ok((Status::INSUFFICIENT_STORAGE, _)) => {
                    self.logger.error(format_args!("{shown} responded as unmounted"));
                    continue;
                }
                Ok((Status::OK, body)) => match SuffixHashes::from_answer(&body) {
                    Some(hashes) => return Some((node, hashes)),
                    None => self.logger.error(format_args!(
                        "Unable to get remote suffix hashes from {shown}: it is no dict"
                    )),
                },
                Ok((status, _)) => {
                    self.logger.error(format_args!("Invalid response {} from {shown}", status.0));
                }
                Err(err) => {
                    self.logger.error(format_args!("Unable to get remote suffix hashes from {shown}: {err}"));
                }
            }
            return None;
        }
        None
    }

    /// The suffixes that differ when those that seemed to are hashed anew, and everything is read again: it may have changed since
    /// the pass came here. What is `fresh` was read so just now; partners that agree share that.
    async fn suffixes_to_sync(
        &self,
        pass: &Pass,
        part: &Arc<Part>,
        job: &Job,
        listed: &SuffixHashes,
        (remote, wanted): (&SuffixHashes, u32),
        fresh: &mut Option<SuffixHashes>,
    ) -> Result<Vec<Suffix>, DiskFileError> {
        let recalculate = suffix_delta(listed, job.frag_index, remote, wanted);
        let local = match fresh.take().filter(|_| recalculate.is_empty()) {
            Some(local) => {
                self.ctx.statsd.update_stats("suffix.hashes", 0);
                local
            }
            None => self.hash(part, recalculate, false).await?,
        };
        let suffixes = suffix_delta(&local, job.frag_index, remote, wanted);
        *fresh = Some(local);
        add(&pass.suffix_count, suffixes.len());
        Ok(suffixes)
    }
}
