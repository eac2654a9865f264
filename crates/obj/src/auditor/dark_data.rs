//! The watcher `dark_data`: finds objects that no container lists.
//!
//! All servers of the object's container are asked, and of its shards if it has any. Only if every one of them answers
//! and none has the object is it dark: a container server that is down, or knows nothing of the container, leaves it
//! `unknown`. Objects younger than `grace_age` are fine, as their rows may still be under way.
//!
//! What is done with a dark object: `action = log`, `delete` or `quarantine`.

use std::collections::HashSet;
use std::sync::Arc;

use common::Timestamp;
use common::config::{Conf, ConfigError, Section, parse_int};
use common::quote::quote;
use ring::Ring;
use serde_json::Value;
use service::Context;
use service::direct_client::{DirectClient, Target};
use service::http::{Body, BoxFuture, Headers, Method};
use service::logs::Logger;

use crate::diskfile::{AuditorType, SoundObject};

const RECORD_TYPE: &str = "X-Backend-Record-Type";
/// One row, or the ranges that include one name.
const MAX_LISTING: usize = 4 * 1024 * 1024;
/// A root has shards, these may have some again: deeper than this they lead in circles.
const MAX_DEPTH: usize = 8;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Action {
    Log,
    Delete,
    Quarantine,
}

/// A watcher as configured.
#[derive(Clone)]
pub(super) struct DarkData {
    /// As in `watchers`: `swift#dark_data`.
    pub name: String,
    ctx: Context,
    logger: Logger,
    action: Action,
    grace_age: i64,
}

/// Whether a name is this watcher's, with or without the package that Swift finds it in.
pub(super) fn is_dark_data(name: &str) -> bool {
    matches!(name, "dark_data" | "swift#dark_data" | "egg:swift#dark_data")
}

impl DarkData {
    /// From `[object-auditor:watcher:NAME]`, or else the auditor's own section.
    pub fn new(conf: &Conf, auditor: &Section, name: &str, ctx: &Context) -> Result<Self, ConfigError> {
        let own = conf.section(&format!("object-auditor:watcher:{name}"));
        let section = |option| own.as_ref().filter(|own| own.get(option).is_some()).unwrap_or(auditor);
        let logger = ctx.logger.with_prefix(&format!("[audit-watcher {name}] "));
        let action = match section("action").get("action") {
            Some("delete") => Action::Delete,
            Some("quarantine") => Action::Quarantine,
            None | Some("log") => Action::Log,
            Some(other) => {
                logger
                    .warning(format_args!("Dark data action '{other}' unknown, defaults to action = 'log'"));
                Action::Log
            }
        };
        let grace = section("grace_age");
        let grace_age = match grace.get("grace_age") {
            None => 604_800,
            Some(value) => {
                parse_int(value).ok_or_else(|| grace.error("grace_age", "expected a number of seconds"))?
            }
        };
        Ok(DarkData { name: name.to_owned(), ctx: ctx.clone(), logger, action, grace_age })
    }

    /// Begins a pass.
    pub fn start(&self, auditor_type: AuditorType) -> DarkDataPass {
        // Sizes and metadata say nothing about containers: no pass of that kind asks for them.
        let wanted = auditor_type == AuditorType::All;
        let ring = wanted.then(|| self.ctx.rings.container()).and_then(|ring| {
            ring.inspect_err(|err| self.logger.error(format_args!("Error starting watcher: {err}"))).ok()
        });
        let client = DirectClient::new(self.ctx.pool.clone(), self.ctx.clock.clone());
        DarkDataPass { watcher: self.clone(), ring, client, unknown: 0, dark: 0, okay: 0 }
    }
}

/// What an audited object is to a watcher.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Keep,
    Quarantine,
}

/// One pass.
pub(super) struct DarkDataPass {
    watcher: DarkData,
    /// `None` in a pass that this watcher has no part in.
    ring: Option<Arc<Ring>>,
    client: DirectClient,
    unknown: u64,
    dark: u64,
    okay: u64,
}

/// Not every server gave an answer that says something.
struct Unknown;

impl DarkDataPass {
    pub fn name(&self) -> &str {
        &self.watcher.name
    }

    pub async fn see_object(&mut self, object: &SoundObject) -> Wish {
        let Some(ring) = self.ring.clone() else { return Wish::Keep };
        let timestamp = object.metadata.get_str("X-Timestamp").and_then(|text| Timestamp::parse(text).ok());
        let Some((name, timestamp)) = object.metadata.get_str("name").zip(timestamp) else {
            let path = object.data_file.display();
            self.watcher.logger.error(format_args!("Error in see_object of {path}: no name or timestamp"));
            return Wish::Keep;
        };
        let age = self.watcher.ctx.clock.unix_secs() - timestamp.as_secs_f64();
        if age <= self.watcher.grace_age as f64 {
            self.okay += 1;
            return Wish::Keep;
        }
        match self.is_listed(&ring, name).await {
            Err(Unknown) => self.unknown += 1,
            Ok(true) => self.okay += 1,
            Ok(false) => {
                self.dark += 1;
                return self.handle(object, name).await;
            }
        }
        Wish::Keep
    }

    async fn handle(&self, object: &SoundObject, name: &str) -> Wish {
        let logger = &self.watcher.logger;
        match self.watcher.action {
            Action::Log => logger.info(format_args!("reporting dark data {name}")),
            Action::Quarantine => {
                logger.info(format_args!("quarantining dark data {name}"));
                return Wish::Quarantine;
            }
            Action::Delete => {
                let dir = object.diskfile.datadir().display().to_string();
                logger.info(format_args!("deleting dark data {dir}"));
                let (device, object) = (device_of(object), object.clone());
                if let Err(err) = self.watcher.ctx.disk_pools.run(&device, move || object.remove()).await {
                    logger.error(format_args!("Error in see_object of {dir}: {err}"));
                }
            }
        }
        Wish::Keep
    }

    async fn is_listed(&self, ring: &Arc<Ring>, name: &str) -> Result<bool, Unknown> {
        let mut parts = name.trim_start_matches('/').splitn(3, '/');
        let (Some(account), Some(container), Some(obj)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Unknown);
        };
        let mut visited = HashSet::new();
        self.ask(ring, (account.to_owned(), container.to_owned()), obj, &mut visited, 0).await
    }

    /// Asks every server of a container, then those of the shards that they name.
    fn ask<'a>(
        &'a self,
        ring: &'a Arc<Ring>,
        path: (String, String),
        obj: &'a str,
        visited: &'a mut HashSet<(String, String)>,
        depth: usize,
    ) -> BoxFuture<'a, Result<bool, Unknown>> {
        Box::pin(async move {
            // A shard may point back to its root, which then is asked for rows of its own.
            let record_type = if visited.insert(path.clone()) { "auto" } else { "object" };
            let (account, container) = (path.0.as_str(), path.1.as_str());
            let hash_conf = &self.watcher.ctx.swift_conf.hash;
            let (part, mut nodes) = ring.get_nodes(hash_conf, account, Some(container), None);
            if nodes.is_empty() || depth > MAX_DEPTH {
                return Err(Unknown);
            }
            self.watcher.ctx.rng.shuffle(&mut nodes);
            let mut failed = false;
            let mut shards: Vec<(String, String)> = Vec::new();
            for node in &nodes {
                let target = Target { node, part, names: &[account, container] };
                match self.listing(&target, obj, record_type).await {
                    None => failed = true,
                    Some(Answer::Shard(shard)) if !shards.contains(&shard) => shards.push(shard),
                    Some(Answer::Row(listed)) if listed == obj => return Ok(true),
                    Some(Answer::Row(_) | Answer::Shard(_) | Answer::Nothing) => {}
                }
            }
            for shard in shards {
                if self.ask(ring, shard, obj, visited, depth + 1).await? {
                    return Ok(true);
                }
            }
            if failed { Err(Unknown) } else { Ok(false) }
        })
    }

    /// What one server has: the row of that name or the next one, or the shard that would have it.
    async fn listing(&self, target: &Target<'_>, obj: &str, record_type: &str) -> Option<Answer> {
        let mut headers = Headers::new();
        headers.insert(RECORD_TYPE, record_type);
        let name = quote(obj, "/");
        let query = format!("format=json&limit=1&prefix={name}&includes={name}&states=listing");
        let response = self.client.request(Method::Get, target, &query, headers, Body::empty()).await;
        let mut response = response.ok()?;
        let bytes = response.body.collect(MAX_LISTING).await.ok()?;
        let listing: Value = match bytes.is_empty() {
            true => Value::Array(Vec::new()),
            false => serde_json::from_slice(&bytes).ok()?,
        };
        let first = listing.as_array()?.first().map(|row| row["name"].as_str().map(str::to_owned));
        let Some(first) = first else { return Some(Answer::Nothing) };
        if response.headers.get_str(RECORD_TYPE) != Some("shard") {
            return first.map(Answer::Row);
        }
        let (account, container) = first.as_deref()?.split_once('/')?;
        Some(Answer::Shard((account.to_owned(), container.to_owned())))
    }

    pub fn end(&self) {
        if self.ring.is_some() {
            let DarkDataPass { unknown, okay, dark, .. } = self;
            self.watcher.logger.info(format_args!("total unknown {unknown} ok {okay} dark {dark}"));
        }
    }
}

enum Answer {
    Row(String),
    Shard((String, String)),
    Nothing,
}

fn device_of(object: &SoundObject) -> String {
    object.diskfile.device_path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}
