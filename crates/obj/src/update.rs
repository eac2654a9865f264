//! What an object server tells container servers: of each PUT, POST and DELETE the object's container, and the queue of
//! objects that expire.
//!
//! Updates go to the nodes that the proxy names in X-Container-Host and its kin, one each. The request waits for them, but
//! not longer than container_update_timeout: they go on by themselves. One that fails, that nobody can be told of, or that
//! is redirected to a shard, is left as an async_pending file, which the object-updater sends later. A crash before
//! that file is written loses the update; the proxy has asked other object servers for it too.

use std::sync::Arc;

use common::headers::*;
use common::pickle::Value;
use common::quote::{quote_path, unquote};
use common::timestamp::normalize_delete_at;
use common::wsgi::to_stored_str;
use common::{Timestamp, headers};
use futures_util::future::join_all;
use service::http::message::split_path;
use service::http::{Body, Headers, Method, Request, Response};

use crate::diskfile::Metadata;
use crate::server::{ObjectServer, Target};

/// The Content-Type of entries in the expirer's queue.
const DELETE_TYPE: &str = "text/plain";
const EMPTY_ETAG: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// One update of a container for one node.
struct Update {
    op: Method,
    account: String,
    container: String,
    obj: String,
    /// `None`: straight to async_pending.
    node: Option<ContainerNode>,
    headers: Headers,
    container_path: Option<String>,
    db_state: Option<String>,
}

#[derive(Clone, Debug)]
struct ContainerNode {
    /// `ip:port`
    host: String,
    device: String,
    partition: String,
}

/// What of a request its updates need, kept after the request has been taken apart.
pub(crate) struct Origin {
    pub headers: Headers,
    pub referer: String,
    pub timestamp: Timestamp,
}

impl Origin {
    pub fn of(req: &Request, timestamp: Timestamp) -> Self {
        Self { headers: req.headers.clone(), referer: req.as_referer(), timestamp }
    }

    fn trans_id(&self) -> &[u8] {
        self.headers.get(X_TRANS_ID).unwrap_or(b"-")
    }

    fn text(&self, name: &str) -> &str {
        self.headers.get_str(name).unwrap_or_default()
    }
}

/// Where a container server says that the update belongs: the path of a shard and when that was decided.
pub(crate) fn redirect_data(response: &Response) -> Result<Option<(String, Timestamp)>, String> {
    let Some(location) = response.headers.get_str("Location") else { return Ok(None) };
    let path = match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => location,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = match response.headers.get_bool(X_BACKEND_LOCATION_IS_QUOTED) {
        true => String::from_utf8_lossy(&unquote(path.as_bytes())).into_owned(),
        false => path.to_owned(),
    };
    let parts = split_path(&path, 2, 3, true).map_err(|()| format!("Invalid path: {}", quote_path(&path)))?;
    let (Some(account), Some(container)) = (&parts[0], &parts[1]) else {
        return Err(format!("Invalid path: {}", quote_path(&path)));
    };
    let timestamp = response.headers.get_str(X_BACKEND_REDIRECT_TIMESTAMP);
    let parsed = timestamp.and_then(|t| Timestamp::parse(t).ok());
    let timestamp =
        parsed.ok_or_else(|| format!("Invalid timestamp value: {}", timestamp.unwrap_or("None")))?;
    Ok(Some((format!("{account}/{container}"), timestamp)))
}

/// Sets what X-Backend-Container-Update-Override-* and, with more weight, the sysmeta of that name say. Footers
/// weigh more than headers of the same kind.
pub(crate) fn apply_overrides<'a>(
    update: &mut Headers,
    headers: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    footers: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
) {
    let prefixes =
        [X_BACKEND_CONTAINER_UPDATE_OVERRIDE_PREFIX, X_OBJECT_SYSMETA_CONTAINER_UPDATE_OVERRIDE_PREFIX];
    for prefix in prefixes {
        for (name, value) in headers.clone().chain(footers.clone()) {
            let name = std::str::from_utf8(name).unwrap_or_default();
            if let Some(item) = headers::strip_prefix_ignore_case(name, prefix) {
                update.insert(format!("X-{}", title_case(item)), value);
            }
        }
    }
}

impl ObjectServer {
    /// Tells the container servers, and waits for them for a while. An error if one has neither been told nor is to be told
    /// by the object-updater: the listing would never show what the client was promised.
    pub async fn container_update(
        self: &Arc<Self>,
        op: Method,
        target: &Arc<Target>,
        origin: &Origin,
        mut headers: Headers,
    ) -> Result<(), Response> {
        let (hosts, devices) = (origin.text(X_CONTAINER_HOST), origin.text(X_CONTAINER_DEVICE));
        let list = |text: &str| text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>();
        let (host_list, device_list) = (list(hosts), list(devices));
        if host_list.len() != device_list.len() {
            target.logger.error(format_args!(
                "ERROR Container update failed: different numbers of hosts and devices in request: \
                 \"{hosts}\" vs \"{devices}\""
            ));
            return Ok(());
        }
        let partition = origin.text(X_CONTAINER_PARTITION);
        if partition.is_empty() {
            return Ok(());
        }
        let container_path = self.container_path(target, origin);
        headers.insert(X_TRANS_ID, origin.trans_id());
        headers.insert(REFERER, &origin.referer);
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, target.policy.0);
        headers.insert(USER_AGENT, user_agent());
        let tasks = host_list.into_iter().zip(device_list).map(|(host, device)| {
            let known = !host.is_empty() && !device.is_empty();
            let update = Update {
                op: op.clone(),
                account: target.account.clone(),
                container: target.container.clone(),
                obj: target.obj.clone(),
                node: known.then(|| ContainerNode { host, device, partition: partition.to_owned() }),
                headers: headers.clone(),
                container_path: container_path.clone(),
                db_state: origin.headers.get_str(X_CONTAINER_ROOT_DB_STATE).map(str::to_owned),
            };
            // A task of its own: it goes on when we wait no longer.
            tokio::spawn(self.clone().send_or_save(update, target.clone()))
        });
        let tasks: Vec<_> = tasks.collect();
        let (count, limit) = (tasks.len(), self.options.container_update_timeout);
        let Ok(told) = tokio::time::timeout(limit, join_all(tasks)).await else {
            let limit = limit.as_secs_f64();
            target
                .logger
                .debug(format_args!("Container update timeout ({limit:.4}s) waiting for {count} updates"));
            return Ok(());
        };
        told.into_iter().try_for_each(|told| told.unwrap_or_else(|_| Err(Response::error(500))))
    }

    /// The shard that the proxy says the update goes to, instead of the root container.
    fn container_path(&self, target: &Target, origin: &Origin) -> Option<String> {
        let quoted = origin.text(X_BACKEND_QUOTED_CONTAINER_PATH);
        let path = match quoted.is_empty() {
            true => origin.text(X_BACKEND_CONTAINER_PATH).to_owned(),
            false => String::from_utf8_lossy(&unquote(quoted.as_bytes())).into_owned(),
        };
        if path.is_empty() {
            return None;
        }
        if split_path(&format!("/{path}"), 2, 2, false).is_err() {
            target.logger.error(format_args!(
                "Invalid X-Backend-Container-Path, should be of the form 'account/container' but got {path:?}."
            ));
            return None;
        }
        Some(path)
    }

    async fn send_or_save(self: Arc<Self>, update: Update, target: Arc<Target>) -> Result<(), Response> {
        let mut container_path = update.container_path.clone();
        if let Some(node) = &update.node {
            match self.send(&update, node, &target).await {
                Sent::Done => return Ok(()),
                Sent::Failed => {}
                Sent::Redirected(path) => {
                    target.logger.debug(format_args!("Update to {} redirected to {path}", update.path()));
                    container_path = Some(path);
                }
            }
        }
        self.save(update, container_path, target).await
    }

    async fn send(&self, update: &Update, node: &ContainerNode, target: &Target) -> Sent {
        let ContainerNode { host, device, partition } = node;
        let failed = |why: &str| {
            target.logger.error(format_args!(
                "ERROR container update failed with {host}/{device} (saving for async update later): {why}"
            ));
            Sent::Failed
        };
        let addr = host.rsplit_once(':').and_then(|(ip, port)| Some((ip, port.parse::<u16>().ok()?)));
        let Some((ip, port)) = addr else { return failed("bad host") };
        let path = quote_path(format!("/{device}/{partition}{}", update.path()));
        let answer = self
            .ctx
            .pool
            .request(
                (ip, port),
                update.op.clone(),
                &path,
                &update.headers,
                Body::empty(),
                self.backend_timeouts(),
            )
            .await;
        let mut response = match answer {
            Ok(response) => response,
            Err(e) => return failed(&e.to_string()),
        };
        // So that the connection can be used again.
        let _ = response.body.drain(MAX_ANSWER).await;
        match response.status.0 {
            200..=299 => Sent::Done,
            301 => match redirect_data(&response) {
                Ok(Some((path, _))) => Sent::Redirected(path),
                Ok(None) => Sent::Failed,
                Err(e) => {
                    let obj = &update.obj;
                    target.logger.error(format_args!(
                        "Container update failed for {obj:?}; problem with redirect location: {e}"
                    ));
                    Sent::Failed
                }
            },
            status => {
                target.logger.error(format_args!(
                    "ERROR Container update failed (saving for async update later): {status} response from \
                     {host}/{device}"
                ));
                Sent::Failed
            }
        }
    }

    /// Leaves the update for the object-updater.
    async fn save(
        &self,
        update: Update,
        container_path: Option<String>,
        target: Arc<Target>,
    ) -> Result<(), Response> {
        let data = update.to_pickle(container_path);
        let timestamp =
            ["X-Meta-Timestamp", X_TIMESTAMP].iter().find_map(|name| update.headers.get_str(name));
        let timestamp = timestamp.and_then(|t| Timestamp::parse(t).ok()).unwrap_or_default();
        let Update { account, container, obj, .. } = update;
        let place = target.clone();
        let save = move || {
            let Target { device, manager, .. } = &*place;
            manager.pickle_async_update(device, &account, &container, &obj, &data, timestamp)
        };
        let device = &target.device;
        self.ctx.disk_pools.run(device, save).await.map_err(|e| {
            target.logger.error(format_args!("ERROR saving container update on {device}: {e}"));
            Response::error(500)
        })
    }

    /// Puts the object into the expirer's queue for its new time and takes it out for its old one.
    pub async fn delete_at_updates(
        self: &Arc<Self>,
        target: &Arc<Target>,
        origin: &Origin,
        metadata: Option<&Metadata>,
        old: u64,
        new: u64,
    ) -> Result<(), Response> {
        if new != 0 {
            let length = metadata.and_then(|m| m.get_str(CONTENT_LENGTH)).unwrap_or("0").to_owned();
            let timestamp = metadata.and_then(|m| m.get(X_TIMESTAMP)).unwrap_or_default();
            let mut extra = Headers::new();
            extra.insert("X-Content-Type", format!("{DELETE_TYPE};swift_expirer_bytes={length}"));
            extra.insert("X-Content-Type-Timestamp", timestamp);
            self.delete_at_update(Method::Put, new, target, origin, extra).await?;
        }
        if old != 0 && old != new {
            self.delete_at_update(Method::Delete, old, target, origin, Headers::new()).await?;
        }
        Ok(())
    }

    async fn delete_at_update(
        self: &Arc<Self>,
        op: Method,
        delete_at: u64,
        target: &Arc<Target>,
        origin: &Origin,
        extra: Headers,
    ) -> Result<(), Response> {
        if origin.headers.get_bool(X_BACKEND_REPLICATION) {
            return Ok(());
        }
        let Target { account, container, obj, .. } = &**target;
        let expirer = &self.options.expirer;
        let delete_at: u64 = normalize_delete_at(delete_at as f64).parse().unwrap_or(0);
        let mut queue = expirer.container(&self.ctx.swift_conf.hash, delete_at, account, container, obj);
        let mut headers = Headers::new();
        // System accounts are always of policy 0.
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, "0");
        headers.insert(X_TIMESTAMP, origin.timestamp.internal());
        headers.insert(X_TRANS_ID, origin.trans_id());
        headers.insert(REFERER, &origin.referer);
        headers.insert(USER_AGENT, user_agent());
        let mut nodes = vec![None];
        if op == Method::Delete {
            let clean = origin.headers.get_str(X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE);
            if clean.is_some_and(|value| !is_true_value(value)) {
                return Ok(());
            }
        } else {
            // Without the header enough other object servers do it.
            let Some(hosts) = origin.headers.get_str(X_DELETE_AT_HOST) else { return Ok(()) };
            if let Some(named) = named_queue(target, origin, &queue) {
                queue = named;
            }
            let partition = origin.text(X_DELETE_AT_PARTITION);
            let found: Vec<_> = hosts
                .split(',')
                .zip(origin.text(X_DELETE_AT_DEVICE).split(','))
                .map(|(host, device)| (host.trim(), device.trim()))
                .filter(|(host, device)| !host.is_empty() && !device.is_empty() && !partition.is_empty())
                .map(|(host, device)| {
                    let partition = partition.to_owned();
                    Some(ContainerNode { host: host.to_owned(), device: device.to_owned(), partition })
                })
                .collect();
            if !found.is_empty() {
                nodes = found;
            }
            headers.insert("X-Size", "0");
            headers.insert("X-Content-Type", DELETE_TYPE);
            headers.insert("X-Etag", EMPTY_ETAG);
            headers.update(&extra);
        }
        let task = format!("{delete_at:010}-{account}/{container}/{obj}");
        for node in nodes {
            let update = Update {
                op: op.clone(),
                account: expirer.account_name.clone(),
                container: queue.clone(),
                obj: task.clone(),
                node,
                headers: headers.clone(),
                container_path: None,
                db_state: None,
            };
            self.clone().send_or_save(update, target.clone()).await?;
        }
        Ok(())
    }
}

/// The queue's container as the proxy names it, if that isn't the one we would name: its nodes belong to that one.
fn named_queue(target: &Target, origin: &Origin, expected: &str) -> Option<String> {
    let named = origin.text(X_DELETE_AT_CONTAINER);
    if named == expected {
        return None;
    }
    if named.is_empty() {
        target.logger.warning(
            "X-Delete-At-Container header must be specified for expiring objects background PUT to work properly. \
             Making best guess as to the container name for now.",
        );
        return None;
    }
    target.logger.debug(format_args!(
        "Proxy X-Delete-At-Container {named:?} does not match expected {expected:?} for current expirer_config."
    ));
    named.parse::<f64>().ok().map(normalize_delete_at)
}

/// How sending went.
enum Sent {
    Done,
    Failed,
    Redirected(String),
}

/// An answer to an update has no body worth more.
const MAX_ANSWER: u64 = 64 * 1024;

fn user_agent() -> String {
    format!("object-server {}", std::process::id())
}

impl Update {
    fn path(&self) -> String {
        match &self.container_path {
            Some(path) => format!("/{path}/{}", self.obj),
            None => format!("/{}/{}/{}", self.account, self.container, self.obj),
        }
    }

    /// As Swift pickles it.
    fn to_pickle(&self, container_path: Option<String>) -> Value {
        let headers = self.headers.iter().map(|(name, value)| {
            let name = String::from_utf8_lossy(&headers::title_case_bytes(name)).into_owned();
            (Value::Str(name), Value::Str(to_stored_str(value)))
        });
        let mut items: Vec<(Value, Value)> = vec![
            ("op".into(), self.op.as_str().into()),
            ("account".into(), self.account.as_str().into()),
            ("container".into(), self.container.as_str().into()),
            ("obj".into(), self.obj.as_str().into()),
            ("headers".into(), Value::HeaderKeyDict(headers.collect())),
            ("db_state".into(), self.db_state.as_deref().map_or(Value::None, Value::from)),
        ];
        if let Some(path) = container_path {
            items.push(("container_path".into(), path.into()));
        }
        Value::Dict(items)
    }
}
