//! The account-reaper (swift/account/reaper.py): empties accounts that a client has deleted, and whose databases therefore say DELETED.
//!
//! Each primary of an account takes the containers whose names hash to its place among the primaries. Of each container it deletes the
//! objects that the last of the container's nodes lists, then the container itself, on all nodes of each; these tell their
//! containers and the account. What fails is tried again with the next pass. The empty database is reclaimed by the account-replicator.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::PolicyIndex;
use common::config::{Conf, ConfigError};
use common::headers::{X_BACKEND_STORAGE_POLICY_INDEX, X_BACKEND_USE_REPLICATION_NETWORK, X_TIMESTAMP};
use common::quote::quote;
use common::timestamp::Timestamp;
use futures_util::StreamExt;
use parking_lot::Mutex;
use ring::{Node, Ring, is_local_device, whataremyips};
use service::direct_client::{DirectClient, DirectError, Target};
use service::http::{BoxFuture, Headers, Timeouts};
use service::{Context, Daemon};

use super::broker::{AccountBroker, AccountInfo, ContainerEntry, DATADIR};
use crate::broker::{BrokerError, Options, Shared};
use crate::listing::Query;
use crate::locations::{database_files, names_in};

const NAME: &str = "account-reaper";
/// Containers of one listing, for each node that shares the work.
const CONTAINERS_AT_A_TIME: usize = 1000;

struct Reaper {
    ctx: Context,
    shared: Arc<Shared>,
    client: DirectClient,
    devices: PathBuf,
    mount_check: bool,
    interval: Duration,
    ips: Vec<IpAddr>,
    /// 0 for any.
    port: u16,
    /// Containers at a time, and objects of each.
    concurrency: usize,
    delay_reaping: f64,
    /// From when on an account that is not empty yet is worth a warning.
    not_done_after: f64,
}

/// An account to empty.
struct Found {
    db_file: PathBuf,
    info: AccountInfo,
    partition: u32,
    nodes: Vec<Node>,
    /// Which of the nodes this is.
    share: usize,
}

/// What has become of an account's containers or objects, or of all requests by the hundreds of their statuses.
#[derive(Default)]
struct Stats {
    return_codes: BTreeMap<u16, u64>,
    containers: Counts,
    objects: Counts,
}

#[derive(Default)]
struct Counts {
    deleted: u64,
    remaining: u64,
    possibly_remaining: u64,
}

impl Counts {
    /// Count by how many nodes have deleted it and how many have not; how that is called.
    fn add(&mut self, successes: usize, failures: usize) -> &'static str {
        let (count, name) = if successes > failures {
            (&mut self.deleted, "deleted")
        } else if successes == 0 {
            (&mut self.remaining, "remaining")
        } else {
            (&mut self.possibly_remaining, "possibly_remaining")
        };
        *count += 1;
        name
    }
}

impl Stats {
    /// The end of the line about an account: what is not zero.
    fn to_line(&self) -> String {
        let (c, o) = (&self.containers, &self.objects);
        let counts = [
            (c.deleted, "containers deleted"),
            (o.deleted, "objects deleted"),
            (c.remaining, "containers remaining"),
            (o.remaining, "objects remaining"),
            (c.possibly_remaining, "containers possibly remaining"),
            (o.possibly_remaining, "objects possibly remaining"),
        ];
        let mut line = String::new();
        for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
            line.push_str(&format!(", {count} {what}"));
        }
        if !self.return_codes.is_empty() {
            let codes: Vec<_> =
                self.return_codes.iter().map(|(code, count)| format!("{count} {code}xxs")).collect();
            line.push_str(&format!(", return codes: {}", codes.join(", ")));
        }
        line
    }
}

pub fn build(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    let section = conf.section_or_default(NAME);
    // It concerns how Swift's own broker works.
    section.bool("db_preallocation", false)?;
    let logger = ctx.logger.clone();
    let delay_reaping = section.secs("delay_reaping", 0.0)?.as_secs_f64();
    let warn_after = section.secs("reap_warn_after", 2_592_000.0)?.as_secs_f64();
    let timeouts =
        Timeouts { conn: section.secs("conn_timeout", 0.5)?, node: section.secs("node_timeout", 10.0)? };
    let client = DirectClient::new(ctx.pool.clone(), ctx.clock.clone()).over_replication_network();
    let concurrency = section.positive_int::<usize>("concurrency", 25)?;
    Ok(Arc::new(Reaper {
        shared: Shared::new(ctx.clock.clone(), move |line: &str| logger.error(line)),
        client: client.with_timeouts(timeouts),
        devices: section.str("devices", "/srv/node").into(),
        mount_check: section.bool("mount_check", true)?,
        interval: section.secs("interval", 3600.0)?,
        ips: whataremyips(&section.str("bind_ip", "0.0.0.0")),
        port: section.int("bind_port", 6202)?,
        concurrency: concurrency.isqrt(),
        delay_reaping,
        not_done_after: warn_after + delay_reaping,
        ctx: ctx.clone(),
    }))
}

impl Daemon for Reaper {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.pass())
    }

    fn interval(&self) -> Duration {
        self.interval
    }
}

impl Reaper {
    async fn pass(&self) {
        self.ctx.logger.debug(format_args!("Begin devices pass: {}", self.devices.display()));
        let begin = Instant::now();
        let root = self.devices.clone();
        match self.ctx.disk_pools.run(NAME, move || names_in(&root)).await {
            Ok(devices) => {
                for device in devices {
                    self.reap_device(&device).await;
                }
            }
            Err(error) => {
                self.ctx.logger.error(format_args!("Exception in top-level account reaper loop: {error}"));
            }
        }
        self.shared.connections.close_all();
        self.ctx.logger.info(format_args!("Devices pass completed: {:.2}s", begin.elapsed().as_secs_f64()));
    }

    async fn reap_device(&self, device: &str) {
        let ring = match self.ctx.rings.account() {
            Ok(ring) => ring,
            Err(error) => {
                self.ctx.logger.error(format_args!("Exception in top-level account reaper loop: {error}"));
                return;
            }
        };
        let (root, name, mount_check) = (self.devices.clone(), device.to_owned(), self.mount_check);
        let list = move || {
            let path = common::fs::check_drive(&root, &name, mount_check)?.join(DATADIR);
            // No such directory is no accounts.
            Some((names_in(&path).unwrap_or_default(), path))
        };
        let Some((partitions, datadir)) = self.ctx.disk_pools.run(device, list).await else {
            self.ctx.statsd.increment("errors");
            let what = if self.mount_check { "mounted" } else { "a directory" };
            let path = self.devices.join(device);
            self.ctx.logger.debug(format_args!("Skipping: {} is not {what}", path.display()));
            return;
        };
        for partition in partitions {
            let Ok(number) = partition.parse() else { continue };
            let nodes = ring.get_part_nodes(number);
            let is_this = |node: &Node| {
                is_local_device(&self.ips, None, &node.ip, node.port)
                    && (self.port == 0 || self.port == node.port)
                    && node.device == device
            };
            let Some(share) = nodes.iter().position(is_this) else { continue };
            let path = datadir.join(&partition);
            let files = self.ctx.disk_pools.run(device, move || database_files(&path)).await;
            for db_file in files {
                let (shared, path) = (self.shared.clone(), db_file.clone());
                let read = move || to_reap(&shared, &path);
                match self.ctx.disk_pools.run(device, read).await {
                    Ok(None) => {}
                    Ok(Some(info)) => {
                        let found = Found { db_file, info, partition: number, nodes: nodes.clone(), share };
                        self.reap_account(device, &found).await;
                    }
                    Err(error) => {
                        let path = db_file.display();
                        self.ctx.logger.error(format_args!("ERROR reading db {path}: {error}"));
                    }
                }
            }
        }
    }

    async fn reap_account(&self, device: &str, found: &Found) {
        let (begin, now) = (Instant::now(), self.ctx.clock.unix_secs());
        let deleted_at = Timestamp::parse(&found.info.delete_timestamp).unwrap_or_default();
        if now - deleted_at.as_secs_f64() <= self.delay_reaping {
            return;
        }
        let account = &found.info.account;
        self.ctx.logger.info(format_args!("Beginning pass on account {account}"));
        let stats = Mutex::new(Stats::default());
        let mut marker = String::new();
        let outcome = loop {
            let containers = match self.containers_after(device, found, marker).await {
                Ok(containers) => containers,
                Err(error) => {
                    self.ctx.logger.error(format_args!("Exception with account {account}: {error}"));
                    break "Incomplete";
                }
            };
            let Some(last) = containers.last() else { break "Completed" };
            marker = last.clone();
            let ours = containers.iter().filter(|name| share_of(name, found.nodes.len()) == found.share);
            futures_util::stream::iter(ours)
                .for_each_concurrent(self.concurrency, |name| self.reap_container(found, name, &stats))
                .await;
        };
        let stats = stats.into_inner();
        let secs = begin.elapsed().as_secs_f64();
        self.ctx.logger.info(format_args!(
            "{outcome} pass on account {account}{}, elapsed: {secs:.2}s",
            stats.to_line()
        ));
        self.ctx.statsd.timing_since("timing", begin);
        if stats.containers.remaining > 0 && now - deleted_at.as_secs_f64() >= self.not_done_after {
            let since = deleted_at.isoformat();
            self.ctx.logger.warning(format_args!("Account {account} has not been reaped since {since}"));
        }
    }

    async fn containers_after(
        &self,
        device: &str,
        found: &Found,
        marker: String,
    ) -> Result<Vec<String>, BrokerError> {
        let (shared, db_file) = (self.shared.clone(), found.db_file.clone());
        let limit = CONTAINERS_AT_A_TIME * found.nodes.len();
        let list = move || {
            let mut names = Vec::new();
            let query = Query {
                limit,
                marker,
                end_marker: String::new(),
                prefix: None,
                delimiter: String::new(),
                path: None,
                reverse: false,
                allow_reserved: true,
            };
            let mut broker = AccountBroker::new(&shared, db_file, Options::default());
            broker.list_containers(&query, |entry| {
                if let ContainerEntry::Container { name, .. } = entry {
                    names.push(name.to_owned());
                }
            })?;
            Ok(names)
        };
        self.ctx.disk_pools.run(device, list).await
    }

    async fn reap_container(&self, found: &Found, container: &str, stats: &Mutex<Stats>) {
        let ring = match self.ctx.rings.container() {
            Ok(ring) => ring,
            Err(error) => {
                self.ctx.logger.error(format_args!("ERROR container ring: {error}"));
                return;
            }
        };
        let account = found.info.account.as_str();
        let names = [account, container];
        let (part, nodes) = ring.get_nodes(&self.ctx.swift_conf.hash, account, Some(container), None);
        let Some(last) = nodes.last() else { return };
        let mut marker = String::new();
        loop {
            let query = format!("marker={}", quote(&marker, ""));
            let target = Target { node: last, part, names: &names };
            let listed = self.client.get_listing_with(&target, &query, replication_headers()).await;
            let (headers, listing) = match self.judge(stats, last, listed, "") {
                Some(listed) => listed,
                None => break,
            };
            let objects: Vec<&str> =
                listing.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str()).collect();
            let Some(end) = objects.last() else { break };
            let policy = headers
                .get_str(X_BACKEND_STORAGE_POLICY_INDEX)
                .and_then(common::config::parse_int)
                .unwrap_or(0);
            futures_util::stream::iter(&objects)
                .for_each_concurrent(self.concurrency, |object| {
                    self.reap_object([account, container, object], part, &nodes, policy, stats)
                })
                .await;
            marker = (*end).to_owned();
        }
        self.delete_container(found, container, part, &nodes, stats).await;
    }

    /// Delete the container on all of its nodes, each of which tells one of the account's.
    async fn delete_container(
        &self,
        found: &Found,
        container: &str,
        part: u32,
        nodes: &[Node],
        stats: &Mutex<Stats>,
    ) {
        let timestamp = self.ctx.clock.now().internal();
        let names = [found.info.account.as_str(), container];
        let (mut successes, mut failures) = (0, 0);
        for (node, account_node) in nodes.iter().zip(found.nodes.iter().rev().cycle()) {
            let mut headers = replication_headers();
            headers.insert("X-Account-Host", format!("{}:{}", account_node.ip, account_node.port));
            headers.insert("X-Account-Partition", found.partition);
            headers.insert("X-Account-Device", &account_node.device);
            headers.insert("X-Account-Override-Deleted", "yes");
            headers.insert(X_TIMESTAMP, &timestamp);
            let deleted = self.client.delete(&Target { node, part, names: &names }, headers).await;
            match self.judge(stats, node, deleted, "containers_failures") {
                Some(_) => successes += 1,
                None => failures += 1,
            }
        }
        let outcome = stats.lock().containers.add(successes, failures);
        self.ctx.statsd.increment(&format!("containers_{outcome}"));
    }

    async fn reap_object(
        &self,
        names: [&str; 3],
        container_part: u32,
        container_nodes: &[Node],
        policy: u32,
        stats: &Mutex<Stats>,
    ) {
        let Some(ring) = self.object_ring(policy) else {
            stats.lock().objects.remaining += 1;
            self.ctx.statsd.increment("objects_remaining");
            return;
        };
        let [account, container, object] = names;
        let hash_conf = &self.ctx.swift_conf.hash;
        let (part, nodes) = ring.get_nodes(hash_conf, account, Some(container), Some(object));
        let timestamp = self.ctx.clock.now().internal();
        let (mut successes, mut failures) = (0, 0);
        for (node, container_node) in nodes.iter().zip(container_nodes.iter().cycle()) {
            let mut headers = replication_headers();
            headers.insert("X-Container-Host", format!("{}:{}", container_node.ip, container_node.port));
            headers.insert("X-Container-Partition", container_part);
            headers.insert("X-Container-Device", &container_node.device);
            headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, policy);
            headers.insert(X_TIMESTAMP, &timestamp);
            let deleted = self.client.delete(&Target { node, part, names: &names }, headers).await;
            match self.judge(stats, node, deleted, "objects_failures") {
                Some(_) => successes += 1,
                None => failures += 1,
            }
            // Swift: an object is counted anew after each of its nodes.
            let outcome = stats.lock().objects.add(successes, failures);
            self.ctx.statsd.increment(&format!("objects_{outcome}"));
        }
    }

    fn object_ring(&self, policy: u32) -> Option<Arc<Ring>> {
        match self.ctx.rings.object(PolicyIndex(policy), &self.ctx.swift_conf.policies) {
            Ok(ring) => Some(ring),
            Err(error) => {
                self.ctx.logger.error(format_args!("ERROR: invalid storage policy index: {policy}: {error}"));
                None
            }
        }
    }

    /// Count a request by its status, and as a failure under `failures` unless that is empty.
    fn judge<T>(
        &self,
        stats: &Mutex<Stats>,
        node: &Node,
        answer: Result<T, DirectError>,
        failures: &str,
    ) -> Option<T> {
        let status = match &answer {
            Ok(_) => Some(200),
            Err(error) => error.status(),
        };
        if answer.is_err() && !failures.is_empty() {
            self.ctx.statsd.increment(failures);
        }
        match status {
            Some(status) => {
                *stats.lock().return_codes.entry(status / 100).or_default() += 1;
                self.ctx.statsd.increment(&format!("return_codes.{}", status / 100));
            }
            None => self
                .ctx
                .logger
                .error(format_args!("Timeout Exception with {}:{}/{}", node.ip, node.port, node.device)),
        }
        answer.ok()
    }
}

fn replication_headers() -> Headers {
    let mut headers = Headers::new();
    headers.insert(X_BACKEND_USE_REPLICATION_NETWORK, "true");
    headers
}

/// The account of a database, if it was deleted by a client and is not empty.
fn to_reap(shared: &Arc<Shared>, db_file: &Path) -> Result<Option<AccountInfo>, BrokerError> {
    let mut broker = AccountBroker::new(shared, db_file.to_owned(), Options::default());
    let info = broker.info()?;
    Ok((info.is_status_deleted() && info.container_count > 0).then_some(info))
}

/// Which of `nodes` primaries takes a container.
fn share_of(container: &str, nodes: usize) -> usize {
    let hash = u128::from_be_bytes(common::digest::md5(container.as_bytes()));
    (hash % nodes.max(1) as u128) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `int(md5(name).hexdigest(), 16) % 3` in Python.
    #[test]
    fn containers_are_shared_as_swift_shares_them() {
        assert_eq!(["a", "d", "f", "ü"].map(|name| share_of(name, 3)), [1, 0, 2, 1]);
    }

    #[test]
    fn a_line_tells_what_is_not_zero() {
        let mut stats = Stats::default();
        assert_eq!(stats.to_line(), "");
        for (successes, failures, expected) in
            [(3, 0, "deleted"), (2, 1, "deleted"), (0, 3, "remaining"), (1, 1, "possibly_remaining")]
        {
            assert_eq!(stats.objects.add(successes, failures), expected);
        }
        stats.return_codes.extend([(4, 1), (2, 5)]);
        assert_eq!(
            stats.to_line(),
            ", 2 objects deleted, 1 objects remaining, 1 objects possibly remaining, return codes: 5 2xxs, 1 4xxs"
        );
    }
}
