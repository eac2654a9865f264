//! The object-expirer: deletes objects when their X-Delete-At has come, and those that were queued to be deleted anyway.
//!
//! It reads the queue (`common::expirer` has its form) and deletes through the pipeline of its own configuration, or
//! that of `internal_client_conf_path`: a proxy in this process, so that its quorums and handoffs are a client's. An
//! object goes only if its X-Delete-At is the task's (`X-If-Delete-At`): one that was written anew since stays. Then the
//! task is removed from all primaries of its container, straight. A task for something that is not there is tried again
//! until `reclaim_age`: the object may be on a server that is down.
//!
//! Several expirers share the work by `processes` and `process`: each does the tasks whose names hash to it.
//!
//! A file that has `expirer` in its path reads the queue; of any other one (object-server.conf), `dequeue_from_legacy` says
//! whether it does. There is no other queue yet.

mod delay;
mod order;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{Conf, ConfigError, Section};
use common::digest::md5;
use common::expirer::{ASYNC_DELETE_TYPE, ExpirerConfig, Task};
use common::headers::{X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE, X_IF_DELETE_AT, X_TIMESTAMP};
use common::{Clock, Timestamp};
use parking_lot::Mutex;
use serde_json::Value;
use service::daemon::{Share, work_off};
use service::direct_client::DirectClient;
use service::http::{BoxFuture, Headers};
use service::internal_client::{self, InternalClient, UnexpectedResponse, is_success};
use service::{Context, Daemon, Progress, Registry, recon};
use tokio::sync::mpsc;

use crate::rate_limiter::RateLimiter;
use delay::Delays;
use order::RoundRobin;

const NAME: &str = "object-expirer";
const INTERNAL_CLIENT_CONF: &str = "/etc/swift/internal-client.conf";
const USER_AGENT: &str = "Swift Object Expirer";
const MAX_OBJECTS_TO_CACHE: usize = 100_000;
/// Seconds for which a slow stretch may be caught up with.
const RATE_BUFFER: f64 = 5.0;
/// So many containers that are not expected are named in the log.
const MAX_EXAMPLES: usize = 4;

/// Makes the daemon from object-expirer.conf, or from the file of an object server. `registry` has the apps of the
/// pipeline.
pub fn build(conf: &Conf, ctx: &Context, registry: &Registry) -> Result<Arc<dyn Daemon>, ConfigError> {
    Ok(Arc::new(Expirer::new(&conf.section_or_default(NAME), ctx, registry)?))
}

struct Expirer {
    ctx: Context,
    swift: InternalClient,
    direct: DirectClient,
    config: ExpirerConfig,
    interval: Duration,
    tasks_per_second: f64,
    /// Deletes at a time.
    concurrency: usize,
    /// Whether this one works at all.
    dequeue_from_legacy: bool,
    share: Share,
    report_interval: f64,
    reclaim_age: f64,
    delays: Delays,
    round_robin_task_cache_size: usize,
}

/// An entry of the queue that is due.
#[derive(Clone, Debug, PartialEq)]
struct DeleteTask {
    /// Of the queue.
    container: String,
    name: String,
    target: Task,
    is_async: bool,
}

/// What becomes of an entry.
#[derive(Debug, PartialEq)]
enum Verdict {
    Do(DeleteTask),
    /// Not a task.
    Broken,
    /// Another process's.
    Skip,
    /// Due, but to stay for a while.
    Delay,
    /// It and all after it are not due.
    NotYet,
}

/// One pass.
struct Pass {
    start: Instant,
    progress: Progress,
    count: Mutex<Count>,
}

struct Count {
    objects: u64,
    last_report: Instant,
}

impl Daemon for Expirer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.expire_all())
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    fn sleeps_random_part(&self) -> bool {
        true
    }
}

impl Expirer {
    fn new(section: &Section, ctx: &Context, registry: &Registry) -> Result<Self, ConfigError> {
        let path = section.file().to_owned();
        let is_legacy = path.contains("expirer");
        let default_path = if is_legacy { &path } else { INTERNAL_CLIENT_CONF };
        let client_path = PathBuf::from(section.str("internal_client_conf_path", default_path));
        let options = internal_client::Options {
            user_agent: USER_AGENT.to_owned(),
            request_tries: section.positive_int("request_tries", 3)?,
            use_replication_network: true,
            log_name: format!("{}-ic", section.str("log_name", NAME)),
        };
        let swift = InternalClient::load(&client_path, options, registry, &ctx.process)?;
        Self::with_client(section, ctx, swift, is_legacy)
    }

    fn with_client(
        section: &Section,
        ctx: &Context,
        swift: InternalClient,
        is_legacy: bool,
    ) -> Result<Self, ConfigError> {
        let prefix = &ctx.swift_conf.constraints.auto_create_account_prefix;
        let config = ExpirerConfig::from_section(section, prefix)?;
        ExpirerConfig::warnings(section).into_iter().for_each(|warning| ctx.logger.warning(warning));
        let dequeue_from_legacy = section.bool("dequeue_from_legacy", false)?;
        Ok(Expirer {
            swift,
            direct: DirectClient::new(ctx.pool.clone(), ctx.clock.clone()).over_replication_network(),
            config,
            interval: section.secs("interval", 300.0)?,
            tasks_per_second: section.float("tasks_per_second", 50.0)?,
            concurrency: section.positive_int("concurrency", 1)?,
            dequeue_from_legacy: is_legacy || dequeue_from_legacy,
            share: Share::from_section(section, &ctx.args)?,
            report_interval: section.float("report_interval", 300.0)?,
            reclaim_age: section.int::<i64>("reclaim_age", 604_800)? as f64,
            delays: Delays::from_section(section)?,
            round_robin_task_cache_size: section.int("round_robin_task_cache_size", MAX_OBJECTS_TO_CACHE)?,
            ctx: ctx.clone(),
        })
    }

    async fn expire_all(&self) {
        if !self.dequeue_from_legacy {
            self.ctx.logger.info(
                "This node is not configured to dequeue tasks from the legacy queue.  This node will not process \
                 any expiration tasks.  At least one node in your cluster must be configured with \
                 dequeue_from_legacy == true.",
            );
            return;
        }
        let start = Instant::now();
        let count = Mutex::new(Count { objects: 0, last_report: start });
        let pass = Pass { start, progress: self.ctx.progress(NAME), count };
        self.ctx.logger.debug("Run begin");
        if let Err(err) = self.expire_account(&pass).await {
            self.ctx.logger.error(format_args!("Unhandled exception: {err}"));
            return;
        }
        self.ctx.logger.debug("Run end");
        let (elapsed, objects) = (pass.start.elapsed().as_secs_f64(), pass.count.lock().objects);
        let whole = elapsed as u64;
        self.ctx.logger.info(format_args!("Pass completed in {whole}s; {objects} objects expired"));
        let entries = vec![
            ("object_expiration_pass".to_owned(), elapsed.into()),
            ("expired_last_pass".to_owned(), objects.into()),
        ];
        recon::dump_recon_cache(&self.ctx, recon::OBJECT_FILE, entries).await;
    }

    async fn expire_account(&self, pass: &Pass) -> Result<(), UnexpectedResponse> {
        let account = &self.config.account_name;
        let (containers, objects) = self.swift.account_info(account).await?;
        if containers == 0 {
            return Ok(());
        }
        self.ctx.logger.info(format_args!(
            "Pass beginning for task account {account}; {containers} possible containers; {objects} possible objects"
        ));
        let containers = self.task_containers().await?;
        // One task: what waits beyond it waits in the order.
        let (sender, receiver) = mpsc::channel(1);
        let limiter = RateLimiter::new(self.tasks_per_second, RATE_BUFFER);
        let paced = Paced { sender, limiter, clock: self.ctx.clock.clone() };
        let delete = work_off(receiver, self.concurrency, |task| Box::pin(self.delete_object(pass, task)));
        tokio::join!(self.find_tasks(&containers, paced), delete);
        Ok(())
    }

    /// The containers of the queue whose time has come.
    async fn task_containers(&self) -> Result<Vec<String>, UnexpectedResponse> {
        let (account, mut marker) = (self.config.account_name.as_str(), String::new());
        let (mut due, mut unexpected) = (Vec::new(), Vec::new());
        'listing: loop {
            let page =
                self.swift.listing(&[account], &marker, |status| is_success(status) || status == 404).await?;
            let Some(last) = last_name(&page, &marker) else { break };
            marker = last.to_owned();
            for name in page.iter().map(name_of) {
                let Ok(time) = Timestamp::parse(name) else {
                    self.ctx.logger.error(format_args!("skipping invalid task container: {account}/{name}"));
                    continue;
                };
                if !self.config.is_expected_task_container(time.as_secs()) {
                    unexpected.push(name.to_owned());
                }
                if time.as_secs() as f64 > self.ctx.clock.unix_secs() {
                    break 'listing;
                }
                due.push(time.as_secs().to_string());
            }
        }
        if !unexpected.is_empty() {
            let examples = unexpected[..unexpected.len().min(MAX_EXAMPLES)].join(" ");
            let count = unexpected.len();
            self.ctx
                .logger
                .info(format_args!("processing {count} unexpected task containers (e.g. {examples})"));
        }
        Ok(due)
    }

    /// Sends what is to be done, one container of the queue after the other.
    async fn find_tasks(&self, containers: &[String], mut paced: Paced) {
        let account = &self.config.account_name;
        let mut order = RoundRobin::new(self.round_robin_task_cache_size);
        for container in containers {
            if let Err(err) = self.find_tasks_in(container, &mut order, &mut paced).await
                && err.status != 404
            {
                self.ctx.logger.error(format_args!(
                    "Unexpected response while listing objects in container {account} {container}: {err}"
                ));
            }
        }
        paced.send_all(order.drain()).await;
    }

    async fn find_tasks_in(
        &self,
        container: &str,
        order: &mut RoundRobin,
        paced: &mut Paced,
    ) -> Result<(), UnexpectedResponse> {
        let account = self.config.account_name.as_str();
        let mut marker = String::new();
        loop {
            let page = self.swift.listing(&[account, container], &marker, is_success).await?;
            let Some(last) = last_name(&page, &marker) else { break };
            marker = last.to_owned();
            for row in &page {
                match self.judge(container, row) {
                    Verdict::Do(task) => {
                        self.ctx.statsd.increment("tasks.assigned");
                        paced.send_all(order.push(task)).await;
                    }
                    Verdict::Broken => {
                        let name = name_of(row);
                        self.ctx.logger.error(format_args!("Unexcepted error handling task {name:?}"));
                        self.ctx.statsd.increment("tasks.parse_errors");
                    }
                    Verdict::Skip => self.ctx.statsd.increment("tasks.skipped"),
                    Verdict::Delay => self.ctx.statsd.increment("tasks.delayed"),
                    Verdict::NotYet => return Ok(()),
                }
            }
        }
        if marker.is_empty() {
            self.delete_container(container).await;
        }
        Ok(())
    }

    fn judge(&self, container: &str, row: &Value) -> Verdict {
        let name = name_of(row);
        let Some(target) = Task::parse(name) else { return Verdict::Broken };
        let is_async = row["content_type"].as_str() == Some(ASYNC_DELETE_TYPE);
        let now = self.ctx.clock.now();
        if target.delete_at > now {
            return Verdict::NotYet;
        }
        if !self.share.has(task_hash(container, name)) {
            return Verdict::Skip;
        }
        let delay = self.delays.get(&target.account, &target.container);
        if !is_async && target.delete_at > Timestamp::from_secs_f64((now.as_secs_f64() - delay).max(0.0)) {
            return Verdict::Delay;
        }
        Verdict::Do(DeleteTask { container: container.to_owned(), name: name.to_owned(), target, is_async })
    }

    /// An empty container of the queue; if it has got a task meanwhile, it stays.
    async fn delete_container(&self, container: &str) {
        let account = self.config.account_name.as_str();
        let wanted = |status| is_success(status) || matches!(status, 404 | 409);
        if let Err(err) = self.swift.delete(&[account, container], &Headers::new(), wanted).await {
            self.ctx
                .logger
                .error(format_args!("Exception while deleting container {account} {container} {err}"));
        }
    }

    async fn delete_object(&self, pass: &Pass, task: DeleteTask) {
        let start = Instant::now();
        let done = match self.delete_actual_object(&task).await {
            Err(err) if matches!(err.status, 404 | 412) => {
                // Not there, or not what the task is about: perhaps on a server that is down.
                let is_recent =
                    task.target.delete_at.as_secs_f64() > self.ctx.clock.unix_secs() - self.reclaim_age;
                if is_recent { Err(err) } else { Ok(()) }
            }
            done => done,
        };
        match done {
            Ok(()) => {
                self.pop_queue(&task).await;
                pass.count.lock().objects += 1;
                pass.progress.inc(1);
                self.ctx.statsd.increment("objects");
            }
            Err(err) => {
                self.ctx.statsd.increment("errors");
                let (account, status) = (&self.config.account_name, err.status);
                let DeleteTask { container, name, .. } = &task;
                self.ctx.logger.error(format_args!(
                    "Unexpected response while deleting object {account} {container} {name}: {status}"
                ));
                self.ctx.logger.debug(&err.body);
            }
        }
        self.ctx.statsd.timing_since("timing", start);
        self.report(pass);
    }

    async fn delete_actual_object(&self, task: &DeleteTask) -> Result<(), UnexpectedResponse> {
        let Task { delete_at, account, container, object } = &task.target;
        let mut headers = Headers::new();
        headers.insert(X_TIMESTAMP, delete_at.normal());
        if !task.is_async {
            headers.insert(X_IF_DELETE_AT, delete_at.normal());
            // That is for us to do.
            headers.insert(X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE, "no");
        }
        let is_async = task.is_async;
        let wanted = |status| is_success(status) || status == 409 || (is_async && status == 404);
        self.swift.delete(&[account, container, object], &headers, wanted).await
    }

    /// Removes a task from the queue. A server that cannot be told has it still: it is found again, and the object is not.
    async fn pop_queue(&self, task: &DeleteTask) {
        let account = self.config.account_name.as_str();
        let ctx = self.swift.ctx();
        let ring = match ctx.rings.container() {
            Ok(ring) => ring,
            Err(err) => return self.ctx.logger.error(err),
        };
        let names = [account, &task.container, &task.name];
        let hash_conf = &ctx.swift_conf.hash;
        for err in self.direct.delete_container_entry(&ring, hash_conf, names, &Headers::new()).await {
            self.ctx.logger.debug(format_args!("Cannot remove a task: {err}"));
        }
    }

    fn report(&self, pass: &Pass) {
        let mut count = pass.count.lock();
        if count.last_report.elapsed().as_secs_f64() < self.report_interval {
            return;
        }
        count.last_report = Instant::now();
        let (elapsed, objects) = (pass.start.elapsed().as_secs(), count.objects);
        self.ctx.logger.info(format_args!("Pass so far {elapsed}s; {objects} objects expired"));
    }
}

/// The way from the queue to the deletes, so many tasks a second.
struct Paced {
    sender: mpsc::Sender<DeleteTask>,
    limiter: RateLimiter,
    clock: Clock,
}

impl Paced {
    async fn send_all(&mut self, tasks: Vec<DeleteTask>) {
        for task in tasks {
            let wait = self.limiter.wait(self.clock.unix_secs());
            tokio::time::sleep(Duration::from_secs_f64(wait)).await;
            // The other end waits for as long as there is this one.
            let _ = self.sender.send(task).await;
        }
    }
}

/// By what the processes share tasks.
fn task_hash(container: &str, task: &str) -> u128 {
    u128::from_be_bytes(md5(format!("{container}/{task}").as_bytes()))
}

/// Where to go on after a page; `None` at the end, and if it does not lead on.
fn last_name<'p>(page: &'p [Value], marker: &str) -> Option<&'p str> {
    page.last().map(name_of).filter(|last| *last > marker)
}

fn name_of(row: &Value) -> &str {
    row["name"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
