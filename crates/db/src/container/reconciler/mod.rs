//! The container-reconciler (swift/container/reconciler.py): moves objects that are in another storage policy than their container.
//!
//! It reads the queue (`reconciler_queue` has its form), the container of this hour first, and for each entry asks the primaries of
//! the object's container for its policy:
//!
//! | the right policy has | and the wrong one | then |
//! |---|---|---|
//! | the object or its tombstone, not older than the entry | | it goes from the wrong one |
//! | less | the object, not older than the entry | it is copied, then goes from the wrong one |
//! | less | nothing, of an entry that is a DELETE | it is deleted in the right one, and in the wrong one |
//! | less | less | it is tried again, until the entry is older than `reclaim_age` |
//!
//! A copy keeps all headers and its time, but for an offset of 3 at that time's end: it wins over what it is a copy of, and
//! loses against whatever a client wrote later. The tombstone that it leaves behind has an offset of 1, and the entry goes with one
//! of 2: what was put into the queue anew meanwhile stays. Neither end of a move may be amid a change of its ring's part power.
//!
//! What it does, it does as a proxy, through the pipeline of its own configuration, which has no filters that would make something
//! else of an object; only containers' policies and entries of the queue are a matter between it and the container servers.
//! That pipeline answers whatever happens, so that there is none of Swift's `unhandled_error`.

mod container_policy;
mod stats;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::config::{Conf, ConfigError, Section, parse_float};
use common::headers::{X_BACKEND_STORAGE_POLICY_INDEX, X_BACKEND_TIMESTAMP, X_TIMESTAMP};
use common::repr::{python_repr, python_repr_json};
use common::{PolicyIndex, Timestamp};
use ring::{RingError, Rings};
use serde_json::Value;
use service::daemon::{Mode, Share, work_off};
use service::direct_client::DirectClient;
use service::http::{Body, BoxFuture, Headers, Method};
use service::internal_client::{self, Entries, InternalClient, UnexpectedResponse, is_success};
use service::logs::Level;
use service::{Context, Daemon, Registry};
use thiserror::Error;
use tokio::sync::mpsc;

use super::reconciler_queue::{Op, QueueEntry, container_name};
use crate::server::MISPLACED_OBJECTS_ACCOUNT as QUEUE;
use container_policy::ContainerPolicies;
use stats::Stats;

const NAME: &str = "container-reconciler";
const USER_AGENT: &str = "Swift Container Reconciler";
/// So much later than the object is the tombstone in the wrong policy, the removal of the entry, the copy.
const CLEANUP_OFFSET: u64 = 1;
const POP_OFFSET: u64 = 2;
const MOVE_OFFSET: u64 = 3;

/// Makes the daemon from container-reconciler.conf. `registry` has the apps of the pipeline.
pub fn build(conf: &Conf, ctx: &Context, registry: &Registry) -> Result<Arc<dyn Daemon>, ConfigError> {
    let section = conf.section_or_default(NAME);
    let options = internal_client::Options {
        user_agent: USER_AGENT.to_owned(),
        request_tries: section.positive_int("request_tries", 3)?,
        use_replication_network: true,
        log_name: format!("{}-ic", section.str("log_name", NAME)),
    };
    let swift = InternalClient::load(Path::new(section.file()), options, registry, &ctx.process)?;
    Ok(Arc::new(Reconciler::new(&section, ctx, swift)?))
}

struct Reconciler {
    ctx: Context,
    swift: InternalClient,
    direct: DirectClient,
    policies: ContainerPolicies,
    /// Looked at again after `ring_check_interval`.
    rings: Rings,
    interval: Duration,
    /// Seconds for which an object that is not there is waited for.
    reclaim_age: f64,
    /// Entries at a time.
    concurrency: usize,
    share: Share,
    stats: Stats,
}

/// What Swift has no word for but an exception.
#[derive(Debug, Error)]
enum Unhandled {
    #[error(transparent)]
    Response(#[from] UnexpectedResponse),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("could not convert string to float: {}", python_repr(.0))]
    ContainerName(String),
    #[error("a container server does not tell its storage policy")]
    NoPolicy,
}

/// What is to be done for an object that the right policy does not have.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Delete it there, at that time.
    Delete(Timestamp),
    /// Copy it there, with that time.
    Copy(Timestamp),
    /// Wait for it no longer.
    GiveUp,
    Wait,
}

impl Step {
    /// By the status and the time with which the wrong policy has it.
    fn of(entry: &QueueEntry, status: u16, source: Timestamp, expired_before: Timestamp) -> Step {
        if status == 404 && entry.op == Op::Delete {
            Step::Delete(later(entry.timestamp, MOVE_OFFSET))
        } else if is_success(status) && source >= entry.timestamp {
            Step::Copy(later(source, MOVE_OFFSET))
        } else if entry.timestamp < expired_before {
            Step::GiveUp
        } else {
            Step::Wait
        }
    }
}

fn later(timestamp: Timestamp, by: u64) -> Timestamp {
    timestamp.with_offset(timestamp.offset() + by)
}

/// An entry of the queue on its way to be worked on.
struct Task {
    container: String,
    name: String,
    entry: QueueEntry,
}

/// An object as lines of the log call it.
struct Shown<'a>(&'a str, Timestamp);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:.6})", python_repr(self.0), self.1.as_secs_f64())
    }
}

impl Daemon for Reconciler {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.pass())
    }

    fn run_pass(&self, mode: Mode) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.pass().await;
            if mode == Mode::Forever {
                self.stats.clear();
                let secs = self.interval.as_secs_f64();
                self.ctx.logger.info(format_args!("sleeping between intervals ({secs:?}s)"));
            }
        })
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    fn delays_first_pass(&self) -> bool {
        false
    }

    fn sleeps_whole_interval(&self) -> bool {
        true
    }
}

impl Reconciler {
    fn new(section: &Section, ctx: &Context, swift: InternalClient) -> Result<Self, ConfigError> {
        let direct = DirectClient::new(ctx.pool.clone(), ctx.clock.clone()).over_replication_network();
        let check_interval = section.secs("ring_check_interval", 15.0)?;
        Ok(Reconciler {
            policies: ContainerPolicies::new(direct.clone(), ctx.clock.clone()),
            rings: Rings::with_reload(ctx.rings.dir(), check_interval, ctx.clock.clone()),
            interval: section.secs("interval", 30.0)?,
            reclaim_age: section.int::<i64>("reclaim_age", 604_800)? as f64,
            concurrency: section.positive_int("concurrency", 1)?,
            share: Share::from_section(section, &ctx.args)?,
            stats: Stats::new(ctx.logger.clone(), ctx.clock.unix_secs()),
            direct,
            swift,
            ctx: ctx.clone(),
        })
    }

    async fn pass(&self) {
        self.ctx.logger.debug("pulling items from the queue");
        // One entry: what waits beyond it waits in the queue.
        let (sender, tasks) = mpsc::channel(1);
        let work = work_off(tasks, self.concurrency, |task| Box::pin(self.process_queue_item(task)));
        let (found, ()) = tokio::join!(self.find(sender), work);
        if let Err(err) = found {
            self.ctx.logger.error(format_args!("Unhandled Exception trying to reconcile: {err}"));
        }
        self.stats.report(self.ctx.clock.unix_secs());
    }

    /// Sends what is in the queue: the newest container, which updates may not have told to the account yet, then all, of each
    /// page of the listing the last one first.
    async fn find(&self, tasks: mpsc::Sender<Task>) -> Result<(), Unhandled> {
        let current = container_name(&self.ctx.clock.now().internal());
        self.find_in(&current, &tasks).await?;
        self.ctx.logger.debug(format_args!("looking for containers in {QUEUE}"));
        let mut containers = self.swift.entries(&[QUEUE]);
        loop {
            let page = self.page(&mut containers).await.unwrap_or_else(|err| {
                self.ctx.logger.error(format_args!("Error listing containers in account {QUEUE} ({err})"));
                Vec::new()
            });
            if page.is_empty() {
                return Ok(());
            }
            for container in page.iter().rev().filter(|name| **name != current) {
                self.find_in(container, &tasks).await?;
            }
        }
    }

    async fn page(&self, containers: &mut Entries<'_>) -> Result<Vec<String>, UnexpectedResponse> {
        let limit = self.ctx.swift_conf.constraints.container_listing_limit;
        let mut page = Vec::new();
        while page.len() < limit
            && let Some(row) = containers.next().await?
        {
            page.push(row["name"].as_str().unwrap_or_default().to_owned());
        }
        Ok(page)
    }

    async fn find_in(&self, container: &str, tasks: &mpsc::Sender<Task>) -> Result<(), Unhandled> {
        self.ctx.logger.debug(format_args!("checking container {container}"));
        self.ctx.logger.debug(format_args!("looking for objects in {container}"));
        let names = [QUEUE, container];
        let mut entries = self.swift.entries(&names);
        let mut found = false;
        loop {
            match entries.next().await {
                Ok(None) => break,
                Ok(Some(row)) => {
                    found = true;
                    if let Some(task) = self.read(container, &row) {
                        // The other end is there for as long as this one.
                        let _ = tasks.send(task).await;
                    }
                }
                Err(err) => {
                    let logger = &self.ctx.logger;
                    logger.error(format_args!("Error listing objects in container {container} ({err})"));
                    break;
                }
            }
        }
        let hour = parse_float(container).ok_or_else(|| Unhandled::ContainerName(container.to_owned()))?;
        if hour < self.ctx.clock.unix_secs() - self.reclaim_age && !found {
            // It may have got an entry meanwhile: then it stays.
            let wanted = |status| is_success(status) || matches!(status, 404 | 409 | 412);
            self.swift.delete(&names, &Headers::new(), wanted).await?;
        }
        self.stats.report_if_due(self.ctx.clock.unix_secs());
        Ok(())
    }

    /// An entry that is for this process.
    fn read(&self, container: &str, row: &Value) -> Option<Task> {
        let entry = match QueueEntry::from_listing(row) {
            Ok(entry) => entry,
            Err(err) => {
                let shown = python_repr_json(row);
                self.stats.log(
                    Level::Error,
                    "invalid_record",
                    format_args!("invalid queue record: {shown}: {err}"),
                );
                return None;
            }
        };
        let QueueEntry { account, container: of, object, .. } = &entry;
        let hash = self.ctx.swift_conf.hash.hash_path(account, Some(of), Some(object));
        let name = row["name"].as_str().unwrap_or_default().to_owned();
        let is_ours = self.share.has(u128::from_be_bytes(hash.0));
        is_ours.then(|| Task { container: container.to_owned(), name, entry })
    }

    async fn process_queue_item(&self, task: Task) {
        if self.reconcile_object(&task.entry).await {
            self.pop_queue(&task).await;
        }
        self.ctx.progress(NAME).inc(1);
    }

    /// Whether the entry is done with.
    async fn reconcile_object(&self, entry: &QueueEntry) -> bool {
        let path = entry.path();
        let (shown, policy) = (Shown(&path, entry.timestamp), entry.policy_index);
        self.ctx.logger.debug(format_args!("checking placement for {shown} in policy_index {policy}"));
        let done = self.place(entry, &shown).await.unwrap_or_else(|err| {
            self.ctx.logger.error(format_args!(
                "Unhandled Exception trying to reconcile {shown} in policy_index {policy}: {err}"
            ));
            false
        });
        let (metric, outcome) = match done {
            true => ("success", "was handled successfully"),
            false => ("retry", "must be retried"),
        };
        self.stats.log(Level::Info, metric, format_args!("{shown} in policy_index {policy} {outcome}"));
        self.stats.report_if_due(self.ctx.clock.unix_secs());
        done
    }

    async fn place(&self, entry: &QueueEntry, shown: &Shown<'_>) -> Result<bool, Unhandled> {
        let stats = &self.stats;
        let swift = self.swift.ctx();
        let (ring, hash_conf) = (swift.rings.container()?, &swift.swift_conf.hash);
        let policy = self.policies.get(&ring, hash_conf, &entry.account, &entry.container).await?;
        let Some(policy) = policy else {
            stats.debug(
                "unavailable_container",
                format_args!("{shown} unable to determine the destination policy_index"),
            );
            return Ok(false);
        };
        if policy == entry.policy_index {
            stats.debug(
                "noop_object",
                format_args!("{shown} container policy_index {policy} matches queue policy index {policy}"),
            );
            return Ok(true);
        }
        for (what, index) in [("Source", entry.policy_index), ("Container", policy)] {
            if !self.can_reconcile_policy(index)? {
                let amid = "in the middle of a part power increase (PPI)";
                stats.debug("ppi_skip", format_args!("{what} policy ({index}) {amid}"));
                return Ok(false);
            }
        }
        self.ctx.logger.debug(format_args!("checking for {shown} in destination policy_index {policy}"));
        let there = match self.request(Method::Head, entry, policy).await {
            Ok((_, headers, _)) => backend_timestamp(&headers),
            Err(_) => {
                stats.debug(
                    "unavailable_destination",
                    format_args!("{shown} unable to determine the destination timestamp, if any"),
                );
                return Ok(false);
            }
        };
        if there >= entry.timestamp {
            let (there, queued) = (Shown(shown.0, there), entry.timestamp.as_secs_f64());
            stats.debug(
                "found_object",
                format_args!("{there} in policy_index {policy} is newer than queue ({queued:.6})"),
            );
            return Ok(self.throw_tombstones(entry, shown).await);
        }
        Ok(self.bring(entry, shown, policy).await)
    }

    /// Sees to it that `policy` has what the entry tells of.
    async fn bring(&self, entry: &QueueEntry, shown: &Shown<'_>, policy: i64) -> bool {
        let wrong = entry.policy_index;
        self.stats.debug(
            "misplaced_object",
            format_args!("{shown} in policy_index {wrong} should be in policy_index {policy}"),
        );
        self.ctx.logger.debug(format_args!("fetching {shown} from storage policy {wrong}"));
        let (status, headers, body) = match self.request(Method::Get, entry, wrong).await {
            Ok(answer) => answer,
            Err(err) => (err.status, Headers::new(), Body::empty()),
        };
        let source = backend_timestamp(&headers);
        let now = self.ctx.clock.unix_secs();
        let expired_before = Timestamp::from_secs_f64(now - self.reclaim_age);
        let (path, queued) = (python_repr(shown.0), entry.timestamp.internal());
        let done = match Step::of(entry, status, source, expired_before) {
            Step::Delete(at) => self.delete_there(entry, &Shown(shown.0, source), policy, at).await,
            Step::Copy(at) => {
                self.copy_there(entry, &Shown(shown.0, source), policy, at, (headers, body)).await
            }
            Step::GiveUp => {
                self.stats.log(
                    Level::Critical,
                    "lost_source",
                    format_args!(
                        "{path} ({queued}) was not available in policy_index {wrong} and has expired"
                    ),
                );
                return true;
            }
            Step::Wait => {
                let source = source.internal();
                self.stats.log(
                    Level::Warning,
                    "unavailable_source",
                    format_args!("{path} ({queued}) in policy_index {wrong} responded {status} ({source})"),
                );
                return false;
            }
        };
        done && self.throw_tombstones(entry, shown).await
    }

    async fn copy_there(
        &self,
        entry: &QueueEntry,
        shown: &Shown<'_>,
        policy: i64,
        at: Timestamp,
        (mut headers, body): (Headers, Body),
    ) -> bool {
        let (stats, wrong, at) = (&self.stats, entry.policy_index, at.internal());
        stats.debug(
            "copy_attempt",
            format_args!("{shown} in policy_index {wrong} will be moved to policy_index {policy} ({at})"),
        );
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, policy);
        headers.insert(X_TIMESTAMP, &at);
        if let Err(err) = self.swift.upload(&names_of(entry), &headers, body).await {
            stats.log(
                Level::Warning,
                "copy_failed",
                format_args!(
                    "upload {shown} from policy_index {wrong} to policy_index {policy} returned {err}"
                ),
            );
            return false;
        }
        stats.debug(
            "copy_success",
            format_args!("{shown} moved from policy_index {wrong} to policy_index {policy} ({at})"),
        );
        true
    }

    async fn delete_there(&self, entry: &QueueEntry, shown: &Shown<'_>, policy: i64, at: Timestamp) -> bool {
        let (stats, wrong) = (&self.stats, entry.policy_index);
        let time = at.internal();
        stats.debug(
            "delete_attempt",
            format_args!(
                "{shown} in policy_index {wrong} will be deleted from policy_index {policy} ({time})"
            ),
        );
        if let Err(err) = self.delete(entry, policy, at).await {
            stats.log(
                Level::Warning,
                "delete_failed",
                format_args!("delete {shown} from policy_index {policy} ({time}) returned {err}"),
            );
            return false;
        }
        stats.log(
            Level::Info,
            "delete_success",
            format_args!("{shown} deleted from policy_index {policy} ({time})"),
        );
        true
    }

    /// Deletes the object in the wrong policy.
    async fn throw_tombstones(&self, entry: &QueueEntry, shown: &Shown<'_>) -> bool {
        let (stats, wrong) = (&self.stats, entry.policy_index);
        let at = later(entry.timestamp, CLEANUP_OFFSET);
        let time = at.internal();
        stats.debug(
            "cleanup_attempt",
            format_args!("{shown} from policy_index {wrong} ({time}) will be deleted"),
        );
        if let Err(err) = self.delete(entry, wrong, at).await {
            stats.debug(
                "cleanup_failed",
                format_args!("{shown} was not cleaned up in storage_policy {wrong} ({err})"),
            );
            return false;
        }
        stats.debug(
            "cleanup_success",
            format_args!("{shown} was successfully removed from policy_index {wrong}"),
        );
        true
    }

    /// Removes an entry from the queue. A server that cannot be told has it still: it is found again, and there is nothing to do for it.
    async fn pop_queue(&self, task: &Task) {
        let QueueEntry { recorded, timestamp, .. } = task.entry;
        let at = later(recorded.max(timestamp), POP_OFFSET).internal();
        let path = format!("/{QUEUE}/{}/{}", task.container, task.name);
        self.stats
            .debug("pop_queue", format_args!("remove {} from the queue ({at})", Shown(&path, timestamp)));
        let swift = self.swift.ctx();
        let ring = match swift.rings.container() {
            Ok(ring) => ring,
            Err(err) => return self.ctx.logger.error(err),
        };
        let mut headers = Headers::new();
        headers.insert(X_TIMESTAMP, at);
        let names = [QUEUE, &task.container, &task.name];
        for err in self.direct.delete_container_entry(&ring, &swift.swift_conf.hash, names, &headers).await {
            self.ctx.logger.debug(format_args!("Cannot remove an entry: {err}"));
        }
    }

    /// Whether there is such a policy, and its part power is not about to change.
    fn can_reconcile_policy(&self, index: i64) -> Result<bool, RingError> {
        let policies = &self.ctx.swift_conf.policies;
        let index = u32::try_from(index).map(PolicyIndex).ok().filter(|index| policies.get(*index).is_some());
        let Some(index) = index else { return Ok(false) };
        Ok(self.rings.object(index, policies)?.next_part_power().is_none())
    }

    /// The object in one policy, which may well have none.
    async fn request(
        &self,
        method: Method,
        entry: &QueueEntry,
        policy: i64,
    ) -> Result<(u16, Headers, Body), UnexpectedResponse> {
        let mut headers = Headers::new();
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, policy);
        let wanted = |status| is_success(status) || (400..500).contains(&status);
        let response = self.swift.request(method, &names_of(entry), "", &headers, wanted).await?;
        Ok((response.status.0, response.headers, response.body))
    }

    async fn delete(&self, entry: &QueueEntry, policy: i64, at: Timestamp) -> Result<(), UnexpectedResponse> {
        let mut headers = Headers::new();
        headers.insert(X_TIMESTAMP, at.internal());
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, policy);
        let wanted = |status| is_success(status) || status == 404;
        self.swift.delete(&names_of(entry), &headers, wanted).await
    }
}

fn names_of(entry: &QueueEntry) -> [&str; 3] {
    [&entry.account, &entry.container, &entry.object]
}

fn backend_timestamp(headers: &Headers) -> Timestamp {
    headers.get_str(X_BACKEND_TIMESTAMP).and_then(|text| Timestamp::parse(text).ok()).unwrap_or_default()
}
