//! The replicator's side of bringing one database and its replica on another node together.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use common::headers::{X_BACKEND_STORAGE_POLICY_INDEX, X_TIMESTAMP};
use common::quote::quote_path;
use ring::Device;
use serde_json::{Value, json};
use service::http::{Body, Headers, Method, Status, Timeouts};
use service::rsync::{Rsync, returncode};

use super::replicator::Replicator;
use super::{Items, RemoteInfo, Replicated, ReplicationInfo, SyncPoint, Syncs};
use crate::broker::{BrokerError, Result};
use crate::metadata::Metadata;
use common::json;

/// An answer: replication info, or shard ranges of which a container has some thousands.
const MAX_ANSWER: usize = 64 << 20;

/// One database and one node.
pub struct Conversation<'a, B> {
    pub replicator: &'a Arc<Replicator<B>>,
    pub node: &'a Device,
    pub partition: u32,
    /// The device that the database is on.
    pub device: &'a str,
    pub db_file: &'a Path,
    pub info: &'a ReplicationInfo,
    /// How far other replicas have taken our rows.
    pub outgoing: &'a [SyncPoint],
    /// The node is in another region than the database.
    pub different_region: bool,
    /// Whether the other had anything to tell that was not known here.
    pub learned: bool,
}

/// Why a node has not got the database, other than that it said so.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("Remote drive not mounted")]
    NotMounted,
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("answer to sync is not readable")]
    Unreadable,
}

type Done = std::result::Result<bool, SyncError>;

/// What is known here about the other replica, after its answer was merged.
struct Local {
    /// How far it has taken our rows.
    outgoing: i64,
    shard_ranges: Option<Value>,
    sharding: bool,
    has_rows: bool,
}

impl<B: Replicated> Conversation<'_, B> {
    /// Whether the other has all that we have.
    pub async fn replicate(&mut self) -> Done {
        let Some((mut status, mut body)) = self.ask_for_sync().await else { return Ok(false) };
        if status == Status::NOT_FOUND && self.can_create() && self.create().await {
            match self.ask_for_sync().await {
                Some(answer) => (status, body) = answer,
                None => return Ok(false),
            }
        }
        match status {
            Status::NOT_FOUND => {
                self.count("rsyncs", |stats| stats.rsync += 1);
                self.send_file("complete_rsync", self.replicator.conf.node_timeout).await
            }
            Status::INSUFFICIENT_STORAGE => Err(SyncError::NotMounted),
            status if status.is_success() => {
                let theirs = RemoteInfo::from_answer(&body).ok_or(SyncError::Unreadable)?;
                self.bring_together(theirs).await
            }
            _ => Ok(false),
        }
    }

    async fn ask_for_sync(&self) -> Option<(Status, Bytes)> {
        let with_policy = self.replicator.ctx.swift_conf.policies.iter().count() > 1;
        self.request(&self.info.sync_args(with_policy)).await
    }

    /// A database whose file has an epoch is not what a PUT would make.
    fn can_create(&self) -> bool {
        let stem = self.db_file.file_stem().unwrap_or_default();
        self.replicator.conf.without_rsync && !stem.as_encoded_bytes().contains(&b'_')
    }

    /// Make the database on the other node, with the timestamps of ours.
    async fn create(&self) -> bool {
        let mut headers = Headers::new();
        if let Some(policy) = self.info.storage_policy_index {
            headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, policy);
        }
        let timestamps = &self.info.timestamps;
        let made = self.request_by_name(Method::Put, &timestamps.put_timestamp, headers).await;
        made && (!self.info.is_status_deleted
            || self.request_by_name(Method::Delete, &timestamps.delete_timestamp, Headers::new()).await)
    }

    async fn request_by_name(&self, method: Method, timestamp: &str, mut headers: Headers) -> bool {
        let ReplicationInfo { account, container, .. } = self.info;
        let names = container.as_ref().map_or(account.clone(), |container| format!("{account}/{container}"));
        let path = quote_path(format!("/{}/{}/{names}", self.node.device, self.partition));
        headers.insert(X_TIMESTAMP, crate::server::internal(timestamp));
        let timeout = self.replicator.conf.node_timeout;
        self.is_accepted(self.exchange(method, path, headers, Body::empty(), timeout).await)
    }

    async fn bring_together(&mut self, theirs: RemoteInfo) -> Done {
        if !self.has_news(&theirs) {
            let outgoing = self.outgoing.iter().find(|point| point.remote_id == theirs.id);
            let outgoing = outgoing.map_or(-1, |point| point.sync_point);
            let local = Local { outgoing, shard_ranges: None, sharding: false, has_rows: false };
            return self.send_rows(&local, &theirs).await;
        }
        self.learned = true;
        let their_shards = match theirs.shard_max_row {
            Some(0..) => self.request(&json!(["get_shard_ranges"])).await,
            _ => None,
        };
        let their_shards = their_shards.filter(|(status, _)| status.is_success()).map(|(_, body)| body);
        let theirs = Arc::new(theirs);
        let local = self.merge_answer(theirs.clone(), their_shards).await?;
        let mut shards_done = true;
        if let Some(ranges) = &local.shard_ranges {
            shards_done = self.send_shard_ranges(ranges, &theirs).await;
        }
        if local.sharding {
            self.defer(&local);
            return Ok(shards_done);
        }
        Ok(self.send_rows(&local, &theirs).await? && shards_done)
    }

    /// Whether there may be anything in the other's answer that is not known here, or shard ranges on either side.
    fn has_news(&self, theirs: &RemoteInfo) -> bool {
        let ours = self.info;
        let policy = theirs.policy.as_ref().map(|policy| policy.storage_policy_index);
        let metadata = || Some((Metadata::parse(&ours.metadata)?, Metadata::parse(&theirs.metadata)?));
        theirs.timestamps != ours.timestamps
            || (policy.is_some() && policy != ours.storage_policy_index)
            || ours.shard_max_row.is_some_and(|ours| ours >= 0 || theirs.shard_max_row != Some(-1))
            || metadata().is_none_or(|(ours, theirs)| ours.is_changed_by(&theirs))
    }

    /// Take from the other's answer what we have to learn.
    async fn merge_answer(&self, theirs: Arc<RemoteInfo>, their_shards: Option<Bytes>) -> Result<Local> {
        let source = format!("{}:{}{}", self.node.replication_ip, self.node.replication_port, self.path());
        let (info, logger) = (self.info.clone(), self.replicator.ctx.logger.clone());
        self.on_disk(move |broker| {
            broker.take_answer(&info, &theirs)?;
            let ranges = their_shards.as_ref().and_then(|body| serde_json::from_slice(body).ok());
            if let Some(ranges) = ranges {
                broker.merge_shard_range_data(&ranges, &source)?;
            }
            let outgoing = broker.db().sync_point(&theirs.id, Syncs::Outgoing)?;
            match Metadata::parse(&theirs.metadata) {
                Some(metadata) if metadata.is_empty() => {}
                Some(metadata) => broker.db().update_metadata(&metadata, None)?,
                None => logger.error(format_args!("Unable to decode remote metadata {:?}", theirs.metadata)),
            }
            let sharding = broker.sharding_initiated()?;
            let has_rows = sharding && broker.db().stored_items_since(-1, 1)?.count > 0;
            Ok(Local { outgoing, shard_ranges: broker.shard_range_data()?, sharding, has_rows })
        })
        .await
    }

    async fn send_shard_ranges(&self, ranges: &Value, theirs: &RemoteInfo) -> bool {
        if theirs.shard_max_row.is_none() {
            self.replicator.ctx.logger.warning(self.annotate(format_args!(
                "unable to replicate shard ranges to peer {}; peer may need upgrading",
                self.peer()
            )));
            return false;
        }
        let count = ranges.as_array().map_or(0, Vec::len);
        if count == 0 {
            return true;
        }
        let sent = self.send(&json!(["merge_shard_ranges", ranges, self.info.id])).await;
        if sent {
            self.debug(format_args!("synced {count} shard ranges to {}", self.peer()));
        }
        sent
    }

    /// The rows are not for this replica, but for shards: cleaving takes them there.
    fn defer(&self, local: &Local) {
        if self.info.is_sharded && !local.has_rows {
            self.debug(format_args!("sharded and has nothing more to replicate to peer {}", self.peer()));
        } else {
            self.replicator.ctx.logger.warning(self.annotate(format_args!(
                "able to shard -- refusing to replicate objects to peer {}; have shard ranges and will wait for cleaving",
                self.peer()
            )));
        }
        self.replicator.stats.lock().deferred += 1;
    }

    async fn send_rows(&self, local: &Local, theirs: &RemoteInfo) -> Done {
        if self.is_in_sync(local, theirs).await? {
            self.debug(format_args!("in sync with {}, nothing to do", self.peer()));
            return Ok(true);
        }
        let (ours, per_diff) = (self.info.max_row, self.replicator.conf.per_diff);
        let lacks_half = (theirs.max_row as f64) / (ours as f64) < 0.5;
        let by_file = lacks_half && !self.replicator.conf.without_rsync;
        if by_file && ours - theirs.max_row > i64::try_from(per_diff).unwrap_or(i64::MAX) {
            self.count("remote_merges", |stats| stats.remote_merge += 1);
            // Swift: waits no longer than this even where that is less than `node_timeout`.
            let merging = Duration::from_millis(u64::try_from(self.info.count).unwrap_or(0) / 2);
            let timeout = merging.max(self.replicator.conf.node_timeout);
            return self.send_file("rsync_then_merge", timeout).await;
        }
        self.usync(theirs.point.max(local.outgoing), &theirs.id).await
    }

    async fn is_in_sync(&self, local: &Local, theirs: &RemoteInfo) -> Result<bool> {
        if theirs.point.max(local.outgoing) >= self.info.max_row {
            self.count("no_changes", |stats| stats.no_change += 1);
            return Ok(true);
        }
        if theirs.hash != self.info.hash {
            return Ok(false);
        }
        self.count("hashmatches", |stats| stats.hashmatch += 1);
        self.remember(&theirs.id, theirs.point).await?;
        Ok(true)
    }

    /// Note that the other has taken our rows up to `sync_point`.
    async fn remember(&self, remote_id: &str, sync_point: i64) -> Result<()> {
        let point = SyncPoint { remote_id: remote_id.to_owned(), sync_point };
        self.on_disk(move |broker| broker.db().merge_syncs(&[point], Syncs::Outgoing)).await
    }

    /// Send the rows after `point`, then how far we have come with others.
    async fn usync(&self, point: i64, remote_id: &str) -> Done {
        let (per_diff, max_diffs) = (self.replicator.conf.per_diff, self.replicator.conf.max_diffs);
        self.count("diffs", |stats| stats.diff += 1);
        self.debug(format_args!("usyncing chunks to {}, starting at row {point}", self.peer()));
        let start = Instant::now();
        let first = move |broker: &mut B| {
            Ok((broker.db().sync_points(Syncs::Incoming)?, broker.db().items_since(point, per_diff)?))
        };
        let (sync_points, mut items) = self.on_disk(first).await?;
        let mut point = point;
        let mut diffs = 0;
        while items.count > 0 && diffs < max_diffs {
            diffs += 1;
            let after = items.last;
            // The next chunk is read while this one travels.
            let read = self.on_disk(move |broker| broker.db().items_since(after, per_diff));
            let (sent, next) = tokio::join!(self.send_items(&items), read);
            if !sent {
                return Ok(false);
            }
            point = after;
            items = next?;
        }
        let secs = start.elapsed().as_secs_f64();
        self.debug(format_args!("usyncing chunks to {}, finished at row {point} ({secs}s)", self.peer()));
        if items.count > 0 {
            self.debug(format_args!(
                "Synchronization has fallen more than {} rows behind; moving on and will try again next pass",
                max_diffs * per_diff
            ));
            self.count("diff_caps", |stats| stats.diff_capped += 1);
            return Ok(false);
        }
        let told = self.request(&json!(["merge_syncs", SyncPoint::list_to_json(&sync_points)])).await;
        if !told.is_some_and(|(status, _)| status.is_success()) {
            return Ok(false);
        }
        self.remember(remote_id, point).await?;
        Ok(true)
    }

    async fn send_items(&self, items: &Items) -> bool {
        let mut body = b"[\"merge_items\", ".to_vec();
        body.extend_from_slice(&items.json);
        body.extend_from_slice(b", ");
        json::write_str(&mut body, &self.info.id);
        body.push(b']');
        self.is_accepted(self.request_body(body, self.replicator.conf.node_timeout).await)
    }

    // --- requests ---

    async fn send(&self, words: &Value) -> bool {
        self.is_accepted(self.request(words).await)
    }

    fn is_accepted(&self, answer: Option<(Status, Bytes)>) -> bool {
        match answer {
            Some((status, _)) if !status.is_success() => {
                self.replicator.ctx.logger.error(format_args!(
                    "ERROR Bad response {} from {}:{}",
                    status.0, self.node.replication_ip, self.node.replication_port
                ));
                false
            }
            answer => answer.is_some(),
        }
    }

    async fn request(&self, words: &Value) -> Option<(Status, Bytes)> {
        let mut body = Vec::new();
        json::write_value(&mut body, words);
        self.request_body(body, self.replicator.conf.node_timeout).await
    }

    async fn request_body(&self, body: Vec<u8>, timeout: Duration) -> Option<(Status, Bytes)> {
        let mut headers = Headers::new();
        headers.insert("Content-Type", "application/json");
        self.exchange(Method::Replicate, self.path(), headers, Body::from(body), timeout).await
    }

    /// The answer to a request; what went wrong is logged.
    async fn exchange(
        &self,
        method: Method,
        path: String,
        headers: Headers,
        body: Body,
        timeout: Duration,
    ) -> Option<(Status, Bytes)> {
        let Replicator { ctx, conf, .. } = &**self.replicator;
        let timeouts = Timeouts { conn: conf.conn_timeout, node: timeout };
        let addr = (self.node.replication_ip.as_str(), self.node.replication_port);
        let exchange = async {
            let answer = ctx.pool.request(addr, method, &path, &headers, body, timeouts).await;
            let mut answer = answer.map_err(|error| error.to_string())?;
            let body = answer.body.collect(MAX_ANSWER).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((answer.status, body))
        };
        let failed = match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error,
            Err(_) => format!("Timeout ({}s)", timeout.as_secs_f64()),
        };
        ctx.logger
            .error(format_args!("ERROR reading HTTP response from {}: {failed}", self.replication_peer()));
        None
    }

    fn path(&self) -> String {
        let name = self.db_file.file_stem().unwrap_or_default().to_string_lossy();
        let hash = name.split('_').next().unwrap_or_default();
        quote_path(format!("/{}/{}/{hash}", self.node.device, self.partition))
    }

    // --- whole files ---

    /// Send the database by rsync, then ask the other to do `op` with it.
    async fn send_file(&self, op: &str, timeout: Duration) -> Done {
        let conf = &self.replicator.conf;
        let remote_file =
            format!("{}/{}/tmp/{}", conf.rsync_module.of(self.node), self.node.device, self.info.id);
        let before = self.state_of_file().await?;
        if !self.rsync(&remote_file, true).await? {
            return Ok(false);
        }
        if self.state_of_file().await?.was_written_since(&before) {
            // What has changed, with nobody writing meanwhile. The lock is SQLite's, in the file: those who want to write wait.
            let locked = self.on_disk(|broker| broker.db().lock_database()).await?;
            let sent = self.rsync(&remote_file, false).await;
            self.replicator.ctx.disk_pools.run(self.device, move || drop(locked)).await;
            if !sent? {
                return Ok(false);
            }
        }
        let name = self.db_file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut body = Vec::new();
        json::write_value(&mut body, &json!([op, self.info.id, name]));
        let answer = self.request_body(body, timeout).await;
        Ok(answer.is_some_and(|(status, _)| status.is_success()))
    }

    async fn state_of_file(&self) -> std::io::Result<FileState> {
        let file = self.db_file.to_owned();
        self.replicator.ctx.disk_pools.run(self.device, move || FileState::of(&file)).await
    }

    async fn rsync(&self, remote_file: &str, whole_file: bool) -> std::io::Result<bool> {
        let conf = &self.replicator.conf;
        let mut args = vec![
            "rsync".to_owned(),
            "--quiet".to_owned(),
            "--no-motd".to_owned(),
            format!("--timeout={}", conf.node_timeout.as_secs_f64().ceil()),
            format!("--contimeout={}", conf.conn_timeout.as_secs_f64().ceil()),
        ];
        if whole_file {
            args.push("--whole-file".to_owned());
        }
        if conf.rsync_compress && self.different_region {
            args.push("--compress".to_owned());
        }
        args.extend([self.db_file.display().to_string(), remote_file.to_owned()]);
        let (output, status) = Rsync::start(&args)?.end().await?;
        let logger = &self.replicator.ctx.logger;
        for line in String::from_utf8_lossy(&output).lines() {
            logger.debug(line);
        }
        if !status.success() {
            let args = common::repr::python_list(&args);
            let problem = format_args!("ERROR rsync failed with {}: {args}", returncode(status));
            logger.error(self.annotate(problem));
        }
        Ok(status.success())
    }

    // --- around ---

    /// Do something with the database on a thread of its device.
    async fn on_disk<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut B) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.replicator.on_disk(self.device, self.db_file, job).await
    }

    fn count(&self, metric: &str, count: impl FnOnce(&mut super::stats::Stats)) {
        count(&mut self.replicator.stats.lock());
        self.replicator.ctx.statsd.increment(metric);
    }

    /// The node as `ip:port/device`.
    fn peer(&self) -> String {
        place(&self.node.ip, self.node.port, &self.node.device)
    }

    fn replication_peer(&self) -> String {
        place(&self.node.replication_ip, self.node.replication_port, &self.node.device)
    }

    fn debug(&self, message: std::fmt::Arguments<'_>) {
        if self.replicator.ctx.logger.enabled(service::logs::Level::Debug) {
            self.replicator.ctx.logger.debug(self.annotate(message));
        }
    }

    fn annotate(&self, message: std::fmt::Arguments<'_>) -> String {
        annotate(message, Some(self.info), self.db_file)
    }
}

fn place(ip: &str, port: u16, device: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}/{device}") } else { format!("{ip}:{port}/{device}") }
}

/// A line of the log about a database.
pub fn annotate(message: std::fmt::Arguments<'_>, info: Option<&ReplicationInfo>, db_file: &Path) -> String {
    let path = match info {
        Some(ReplicationInfo { account, container: Some(container), .. }) => format!("{account}/{container}"),
        Some(info) => info.account.clone(),
        None => String::new(),
    };
    format!("{message}, path: {}, db: {}", common::quote::quote(&path, "/"), db_file.display())
}

/// By what a file is known to have been written to.
struct FileState {
    modified: SystemTime,
    has_journal: bool,
}

impl FileState {
    fn of(file: &Path) -> std::io::Result<Self> {
        let mut journal = file.as_os_str().to_owned();
        journal.push("-journal");
        Ok(Self { modified: std::fs::metadata(file)?.modified()?, has_journal: Path::new(&journal).exists() })
    }

    fn was_written_since(&self, before: &Self) -> bool {
        self.has_journal || before.has_journal || self.modified != before.modified
    }
}
