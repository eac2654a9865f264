//! The cache which proxies share: Swift's memcached client, and an embedded cache for a single process.
//!
//! So that Python proxies and ours share one cache: a key is sent as the hex MD5 of its name, a value as JSON with
//! flag 2, and the server of a key is found on a consistent ring of the MD5s of `server-0` ... `server-49`. A server
//! with more than `error_suppression_limit` errors within `error_suppression_interval` seconds is left alone for
//! that interval. Each server has at most `memcache_max_connections` connections, made when needed. Gets that are made at the same
//! time go out together (`gets.rs`).
//!
//! Values are `serde_json::Value`. Values which Python pickled (flag 1) are a miss, as in Swift. TLS to memcached
//! (`tls_enabled`) is refused when the configuration is read.
//!
//! The embedded cache (`embedded_cache = true` in the filter's section, an option that Python Swift ignores) holds
//! [`LOCAL_MAX_ITEMS`] items; past that the items with the least time to live go first.

mod gets;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::clock::Clock;
use common::config::{Conf, ConfigError, Section};
use common::digest;
use parking_lot::Mutex;
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use self::gets::Gets;
use crate::http::BoxFuture;
use crate::logs::Logger;
use crate::statsd::Statsd;

const DEFAULT_PORT: u16 = 11211;
const JSON_FLAG: u32 = 2;
const PICKLE_FLAG: u32 = 1;
const NODE_WEIGHT: usize = 50;
/// A longer time to live is sent as the moment of its end, since memcached takes it so.
const MAX_DELTA: u64 = 30 * 24 * 60 * 60;
/// memcached's own limit for one item; a longer answer is taken for garbage.
const MAX_VALUE_BYTES: usize = 128 * 1024 * 1024;
/// Items of the embedded cache.
pub const LOCAL_MAX_ITEMS: usize = 100_000;

/// How often the operations' timings are sampled.
const RATE_HIGH: f64 = 0.1;
const RATE_MEDIUM: f64 = 0.01;
const RATE_LOW: f64 = 0.001;

#[derive(Debug, Error)]
pub enum CacheError {
    #[error("No memcached connections succeeded.")]
    NoServer,
    #[error("the value of the key is no number")]
    NotANumber,
}

/// A cache of JSON values; clones share it.
#[derive(Clone)]
pub struct Cache(Backend);

#[derive(Clone)]
enum Backend {
    Ring(Arc<MemcacheRing>),
    Local(Arc<LocalCache>),
}

impl Cache {
    /// As the section `filter:cache` says, with `memcache.conf` of `swift_dir` for what it leaves open.
    pub fn from_section(
        section: &Section,
        swift_dir: &Path,
        clock: &Clock,
        logger: &Logger,
        statsd: &Statsd,
    ) -> Result<Cache, ConfigError> {
        let options = RingOptions::from_section(section, swift_dir)?;
        if section.bool("embedded_cache", false)? {
            return Ok(Self::local(clock));
        }
        let ring = MemcacheRing::new(options, clock.clone(), logger.clone(), statsd.clone());
        Ok(Cache(Backend::Ring(Arc::new(ring))))
    }

    /// A cache inside this process.
    pub fn local(clock: &Clock) -> Cache {
        Cache(Backend::Local(Arc::new(LocalCache { clock: clock.clone(), items: Mutex::default() })))
    }

    /// The value of `key`; errors are misses.
    pub async fn get(&self, key: &str) -> Option<Arc<Value>> {
        self.try_get(key).await.ok().flatten()
    }

    /// The value of `key`, or the error as such.
    pub async fn try_get(&self, key: &str) -> Result<Option<Arc<Value>>, CacheError> {
        match &self.0 {
            Backend::Ring(ring) => Ok(ring.get(key).await?.map(Arc::new)),
            Backend::Local(local) => Ok(local.get(key)),
        }
    }

    /// Stores `value` for `ttl` seconds; 0 is without end. Errors are only logged.
    pub async fn set(&self, key: &str, value: &Value, ttl: u64) {
        let _ = self.try_set(key, value, ttl).await;
    }

    pub async fn try_set(&self, key: &str, value: &Value, ttl: u64) -> Result<(), CacheError> {
        match &self.0 {
            Backend::Ring(ring) => ring.set(key, JSON_FLAG, &dumps(value), ttl).await,
            Backend::Local(local) => {
                local.set(key, value.clone(), ttl);
                Ok(())
            }
        }
    }

    /// Adds `delta` to a counter, which begins at `delta` (0 for a negative one); the sum is never below 0.
    pub async fn incr(&self, key: &str, delta: i64, ttl: u64) -> Result<u64, CacheError> {
        match &self.0 {
            Backend::Ring(ring) => ring.incr(key, delta, ttl).await,
            Backend::Local(local) => local.incr(key, delta, ttl),
        }
    }

    pub async fn decr(&self, key: &str, delta: i64, ttl: u64) -> Result<u64, CacheError> {
        self.incr(key, -delta, ttl).await
    }

    pub async fn delete(&self, key: &str) {
        match &self.0 {
            Backend::Ring(ring) => ring.delete(key, key).await,
            Backend::Local(local) => local.delete(key),
        }
    }

    /// Stores all items on the server of `server_key`.
    pub async fn set_multi(&self, items: &[(String, Value)], server_key: &str, ttl: u64) {
        match &self.0 {
            Backend::Ring(ring) => ring.set_multi(items, server_key, ttl).await,
            Backend::Local(local) => items.iter().for_each(|(key, value)| local.set(key, value.clone(), ttl)),
        }
    }

    /// The values of `keys` on the server of `server_key`; errors are misses.
    pub async fn get_multi(&self, keys: &[&str], server_key: &str) -> Vec<Option<Value>> {
        match &self.0 {
            Backend::Ring(ring) => ring.get_multi(keys, server_key).await,
            Backend::Local(local) => keys.iter().map(|key| Some((*local.get(key)?).clone())).collect(),
        }
    }
}

/// As Swift writes a value.
fn dumps(value: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    common::json::write_value(&mut text, value);
    text
}

/// Where the items of this process live.
struct LocalCache {
    clock: Clock,
    items: Mutex<LocalItems>,
}

#[derive(Default)]
struct LocalItems {
    values: HashMap<String, (Arc<Value>, u64)>,
    /// (end of life in ms, key); the first to go.
    by_end: BTreeSet<(u64, String)>,
}

impl LocalItems {
    fn remove(&mut self, key: &str) -> Option<(Arc<Value>, u64)> {
        let (key, (value, end)) = self.values.remove_entry(key)?;
        self.by_end.remove(&(end, key));
        Some((value, end))
    }

    fn insert(&mut self, key: &str, value: Value, end: u64) {
        self.remove(key);
        if self.values.len() >= LOCAL_MAX_ITEMS
            && let Some((_, oldest)) = self.by_end.pop_first()
        {
            self.values.remove(&oldest);
        }
        self.values.insert(key.to_owned(), (Arc::new(value), end));
        self.by_end.insert((end, key.to_owned()));
    }

    fn live(&mut self, key: &str, now: u64) -> Option<&(Arc<Value>, u64)> {
        if self.values.get(key).is_some_and(|(_, end)| *end <= now) {
            self.remove(key);
        }
        self.values.get(key)
    }
}

impl LocalCache {
    fn now(&self) -> u64 {
        (self.clock.unix_secs() * 1000.0) as u64
    }

    fn end(&self, ttl: u64) -> u64 {
        if ttl == 0 { u64::MAX } else { self.now().saturating_add(ttl.saturating_mul(1000)) }
    }

    fn get(&self, key: &str) -> Option<Arc<Value>> {
        self.items.lock().live(key, self.now()).map(|(value, _)| value.clone())
    }

    fn set(&self, key: &str, value: Value, ttl: u64) {
        self.items.lock().insert(key, value, self.end(ttl));
    }

    fn incr(&self, key: &str, delta: i64, ttl: u64) -> Result<u64, CacheError> {
        let mut items = self.items.lock();
        let (value, end) = match items.live(key, self.now()) {
            Some((value, end)) => {
                let old = value.as_u64().ok_or(CacheError::NotANumber)?;
                (old.saturating_add_signed(delta), *end)
            }
            None => (u64::try_from(delta).unwrap_or(0), self.end(ttl)),
        };
        items.insert(key, value.into(), end);
        Ok(value)
    }

    fn delete(&self, key: &str) {
        self.items.lock().remove(key);
    }
}

#[derive(Clone, Copy)]
struct Timeouts {
    connect: Duration,
    /// For a connection to be free.
    pool: Duration,
    io: Duration,
}

struct RingOptions {
    servers: Vec<String>,
    max_connections: usize,
    timeouts: Timeouts,
    tries: usize,
    error_limit: f64,
    error_interval: f64,
    item_size_warning_threshold: i64,
}

impl RingOptions {
    /// Swift: `memcache.conf` is the base, the filter's own section goes before it.
    fn from_section(section: &Section, swift_dir: &Path) -> Result<RingOptions, ConfigError> {
        let path = swift_dir.join("memcache.conf");
        let base = if path.exists() { Conf::load(&path)?.section("memcache") } else { None };
        let pick = |option: &str| match (section.get(option), &base) {
            (None, Some(base)) if base.get(option).is_some() => base.clone(),
            _ => section.clone(),
        };
        if pick("tls_enabled").bool("tls_enabled", false)? {
            return Err(section.error("tls_enabled", "false: TLS to memcached is not supported"));
        }
        let servers = pick("memcache_servers").list("memcache_servers", "127.0.0.1:11211");
        let max_connections =
            match pick("memcache_max_connections").int("memcache_max_connections", 0usize)? {
                0 => section.int("max_connections", 0usize)?,
                n => n,
            };
        Ok(RingOptions {
            servers,
            max_connections: if max_connections == 0 { 2 } else { max_connections },
            timeouts: Timeouts {
                connect: pick("connect_timeout").secs("connect_timeout", 0.3)?,
                pool: pick("pool_timeout").secs("pool_timeout", 1.0)?,
                io: pick("io_timeout").secs("io_timeout", 2.0)?,
            },
            tries: pick("tries").int("tries", 3usize)?,
            error_limit: pick("error_suppression_limit").float("error_suppression_limit", 10.0)?,
            error_interval: pick("error_suppression_interval").float("error_suppression_interval", 60.0)?,
            item_size_warning_threshold: pick("item_size_warning_threshold")
                .int("item_size_warning_threshold", -1i64)?,
        })
    }
}

/// The servers and the ring of their places.
pub struct MemcacheRing {
    /// MD5 hex of `server-n` to the index of the server.
    places: BTreeMap<String, usize>,
    servers: Vec<Arc<Server>>,
    options: RingOptions,
    clock: Clock,
    logger: Logger,
    statsd: Statsd,
}

struct Server {
    name: String,
    address: (String, u16),
    connections: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    timeouts: Timeouts,
    gets: Gets,
    errors: Mutex<Errors>,
}

#[derive(Default)]
struct Errors {
    at: VecDeque<f64>,
    limited_until: f64,
}

type Connection = BufStream<TcpStream>;

/// Flags and data.
type RawValue = (u32, Vec<u8>);

/// Where an attempt with one server has failed.
struct Failure {
    action: &'static str,
    error: AttemptError,
}

impl Failure {
    fn connecting(error: impl Into<AttemptError>) -> Arc<Self> {
        Arc::new(Failure { action: "connecting", error: error.into() })
    }

    fn getting_a_connection(error: AttemptError) -> Arc<Self> {
        Arc::new(Failure { action: "getting a connection", error })
    }

    fn talking(error: AttemptError) -> Arc<Self> {
        Arc::new(Failure { action: Self::TALKING, error })
    }

    const TALKING: &'static str = "talking";
}

/// Why an attempt with one server failed.
#[derive(Debug, Error)]
enum AttemptError {
    #[error("Timeout")]
    Timeout,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Protocol(String),
    /// The counter went away between two commands: no fault of the server.
    #[error("expired")]
    Expired,
}

fn hash_key(key: &str) -> String {
    digest::hex(&digest::md5(key.as_bytes()))
}

impl MemcacheRing {
    fn new(options: RingOptions, clock: Clock, logger: Logger, statsd: Statsd) -> Self {
        let mut names = options.servers.clone();
        names.sort_unstable();
        names.dedup();
        let mut places = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            for n in 0..NODE_WEIGHT {
                places.insert(hash_key(&format!("{name}-{n}")), index);
            }
        }
        let servers = names.into_iter().map(|name| Arc::new(Server::new(name, &options))).collect();
        MemcacheRing { places, servers, options, clock, logger, statsd }
    }

    /// The servers to try for a key, in order.
    ///
    /// Swift: memcached._get_conns goes on from `bisect` by one more place before it looks at the first.
    fn servers_of(&self, hash_key: &str) -> Vec<&Arc<Server>> {
        let above =
            self.places.range::<str, _>((std::ops::Bound::Excluded(hash_key), std::ops::Bound::Unbounded));
        let around = above.chain(self.places.iter()).skip(1);
        let mut chosen: Vec<usize> = Vec::new();
        let tries = self.options.tries.min(self.servers.len());
        for (_, index) in around.take(2 * self.places.len()) {
            if chosen.len() == tries {
                break;
            }
            if !chosen.contains(index) {
                chosen.push(*index);
            }
        }
        chosen.into_iter().map(|index| &self.servers[index]).collect()
    }

    fn expiry(&self, ttl: u64) -> u64 {
        if ttl > MAX_DELTA { ttl + self.clock.unix_secs() as u64 } else { ttl }
    }

    /// Runs `exchange` with the servers of the command's key in turn until one succeeds.
    async fn with_server<T: Send>(
        &self,
        command: Command<'_>,
        exchange: impl for<'a> Fn(&'a mut Connection) -> BoxFuture<'a, Result<T, AttemptError>> + Send + Sync,
    ) -> Result<T, CacheError> {
        let exchange = &exchange;
        self.attempt_all(command, |server| Box::pin(async move { server.talk(exchange).await })).await
    }

    async fn attempt_all<'e, T: Send>(
        &self,
        command: Command<'_>,
        attempt: impl Fn(Arc<Server>) -> BoxFuture<'e, Result<T, Arc<Failure>>> + Send + Sync,
    ) -> Result<T, CacheError> {
        let start = Instant::now();
        let result = self.attempt_each(&command, attempt).await;
        let metric = format!("memcached.{}.timing", command.method);
        self.statsd.timing_sampled(&metric, start.elapsed(), Some(command.sample_rate));
        result
    }

    async fn attempt_each<'e, T: Send>(
        &self,
        command: &Command<'_>,
        attempt: impl Fn(Arc<Server>) -> BoxFuture<'e, Result<T, Arc<Failure>>> + Send + Sync,
    ) -> Result<T, CacheError> {
        let mut any_connected = false;
        for server in self.servers_of(&hash_key(command.key)) {
            if server.errors.lock().limited_until > self.clock.unix_secs() {
                continue;
            }
            let start = Instant::now();
            match attempt(server.clone()).await {
                Ok(value) => return Ok(value),
                Err(failure) => {
                    any_connected |= failure.action == Failure::TALKING;
                    self.failed(server, command, &failure, start);
                }
            }
        }
        if !any_connected {
            self.logger.error(format_args!(
                "Error connecting to memcached: ALL: with key_prefix {}, method {}: No more memcached servers to try",
                command.key_prefix(),
                command.method
            ));
        }
        Err(CacheError::NoServer)
    }

    fn failed(&self, server: &Server, command: &Command<'_>, failure: &Failure, start: Instant) {
        let Failure { action, error } = failure;
        let spent = start.elapsed();
        let (name, prefix, method) = (&server.name, command.key_prefix(), command.method);
        let kind = if let AttemptError::Timeout = error {
            self.logger.error(format_args!(
                "Timeout {action} to memcached: {name}: with key_prefix {prefix}, method {method}, \
                 time_spent {}",
                spent.as_secs_f64()
            ));
            "timeout"
        } else {
            self.logger.error(format_args!(
                "Error {action} to memcached: {name}: with key_prefix {prefix}, method {method}, \
                 time_spent {}, {error}",
                spent.as_secs_f64()
            ));
            "conn_err"
        };
        self.statsd.timing(&format!("memcached.{method}.{kind}.timing"), spent);
        if matches!(error, AttemptError::Expired) || self.options.error_interval <= 0.0 {
            return;
        }
        if server.count_error(self.clock.unix_secs(), self.options.error_limit, self.options.error_interval) {
            self.logger.error(format_args!("Error limiting server {name}"));
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Value>, CacheError> {
        let hashed = hash_key(key);
        self.attempt_all(Command { method: "get", key, sample_rate: RATE_MEDIUM }, |server| {
            let hashed = hashed.clone();
            Box::pin(async move {
                let value = server.get(hashed).await?;
                Ok(value.map(decode).transpose().map_err(Failure::talking)?.flatten())
            })
        })
        .await
    }

    async fn get_multi(&self, keys: &[&str], server_key: &str) -> Vec<Option<Value>> {
        let hashed: Vec<String> = keys.iter().map(|key| hash_key(key)).collect();
        let command = Command { method: "get_multi", key: server_key, sample_rate: RATE_HIGH };
        let values = self
            .with_server(command, |connection| {
                let message = format!("get {}\r\n", hashed.join(" "));
                Box::pin(async move {
                    write(connection, message.as_bytes()).await?;
                    read_values(connection).await
                })
            })
            .await
            .unwrap_or_default();
        let mut values: HashMap<String, RawValue> = values.into_iter().collect();
        // What cannot be read is a miss.
        hashed.iter().map(|key| decode(values.remove(key)?).ok().flatten()).collect()
    }

    async fn set(&self, key: &str, flags: u32, value: &[u8], ttl: u64) -> Result<(), CacheError> {
        let threshold = self.options.item_size_warning_threshold;
        if threshold >= 0 && value.len() as i64 >= threshold {
            self.logger.warning(format_args!(
                "Item size larger than warning threshold: {} >= {threshold}",
                value.len()
            ));
        }
        let message = set_message(&hash_key(key), flags, self.expiry(ttl), value);
        let message = Bytes::from(message);
        self.with_server(Command { method: "set", key, sample_rate: RATE_HIGH }, |connection| {
            let message = message.clone();
            Box::pin(async move {
                write(connection, &message).await?;
                match read_line(connection).await?.as_str() {
                    "STORED" => Ok(()),
                    other => Err(AttemptError::Protocol(format!("failed set: {other}"))),
                }
            })
        })
        .await
    }

    async fn set_multi(&self, items: &[(String, Value)], server_key: &str, ttl: u64) {
        let mut message = Vec::new();
        for (key, value) in items {
            message.extend(set_message(&hash_key(key), JSON_FLAG, self.expiry(ttl), &dumps(value)));
        }
        let command = Command { method: "set_multi", key: server_key, sample_rate: RATE_HIGH };
        // Errors are logged where they happen.
        let (message, count) = (Bytes::from(message), items.len());
        let _ = self
            .with_server(command, |connection| {
                let message = message.clone();
                Box::pin(async move {
                    write(connection, &message).await?;
                    for _ in 0..count {
                        read_line(connection).await?;
                    }
                    Ok(())
                })
            })
            .await;
    }

    async fn incr(&self, key: &str, delta: i64, ttl: u64) -> Result<u64, CacheError> {
        let method = if delta >= 0 { "incr" } else { "decr" };
        let hashed = hash_key(key);
        let step = format!("{method} {hashed} {}\r\n", delta.unsigned_abs());
        let first = if delta >= 0 { delta.to_string() } else { "0".to_owned() };
        let add = format!("add {hashed} 0 {} {}\r\n{first}\r\n", self.expiry(ttl), first.len());
        self.with_server(Command { method, key, sample_rate: RATE_LOW }, |connection| {
            let (step, add) = (step.clone(), add.clone());
            Box::pin(async move {
                write(connection, step.as_bytes()).await?;
                if let Some(sum) = read_sum(connection).await? {
                    return Ok(sum);
                }
                write(connection, add.as_bytes()).await?;
                if !read_line(connection).await?.eq_ignore_ascii_case("NOT_STORED") {
                    return Ok(u64::try_from(delta).unwrap_or(0));
                }
                write(connection, step.as_bytes()).await?;
                read_sum(connection).await?.ok_or(AttemptError::Expired)
            })
        })
        .await
    }

    async fn delete(&self, key: &str, server_key: &str) {
        let message = format!("delete {}\r\n", hash_key(key));
        let command = Command { method: "delete", key: server_key, sample_rate: RATE_HIGH };
        // Errors are logged where they happen.
        let _ = self
            .with_server(command, |connection| {
                let message = message.clone();
                Box::pin(async move {
                    write(connection, message.as_bytes()).await?;
                    read_line(connection).await
                })
            })
            .await;
    }
}

/// One call of the client: what to name in logs and metrics, and which key finds the server.
struct Command<'a> {
    method: &'static str,
    key: &'a str,
    sample_rate: f64,
}

impl Command<'_> {
    /// The part of the key that is no user's name.
    fn key_prefix(&self) -> &str {
        self.key.rsplit_once('/').map_or(self.key, |(prefix, _)| prefix)
    }
}

impl Server {
    fn new(name: String, options: &RingOptions) -> Server {
        let address = parse_address(&name);
        Server {
            name,
            address,
            connections: Arc::new(Semaphore::new(options.max_connections)),
            idle: Mutex::default(),
            timeouts: options.timeouts,
            gets: Gets::default(),
            errors: Mutex::default(),
        }
    }

    /// Runs `exchange` on a connection of its own.
    async fn talk<T>(
        &self,
        exchange: &(impl for<'a> Fn(&'a mut Connection) -> BoxFuture<'a, Result<T, AttemptError>> + Sync),
    ) -> Result<T, Arc<Failure>> {
        let (mut connection, permit) = self.checkout().await?;
        let exchanged = timeout(self.timeouts.io, exchange(&mut connection)).await;
        let value = exchanged.unwrap_or(Err(AttemptError::Timeout)).map_err(Failure::talking)?;
        self.idle.lock().push(connection);
        drop(permit);
        Ok(value)
    }

    async fn checkout(&self) -> Result<(Connection, OwnedSemaphorePermit), Arc<Failure>> {
        let permit = timeout(self.timeouts.pool, Arc::clone(&self.connections).acquire_owned())
            .await
            .map_err(|_| Failure::getting_a_connection(AttemptError::Timeout))?
            .map_err(|err| Failure::getting_a_connection(AttemptError::Protocol(err.to_string())))?;
        if let Some(connection) = self.idle.lock().pop() {
            return Ok((connection, permit));
        }
        let (host, port) = &self.address;
        let connect = TcpStream::connect((host.as_str(), *port));
        let stream = timeout(self.timeouts.connect, connect)
            .await
            .map_err(|_| Failure::connecting(AttemptError::Timeout))?
            .map_err(Failure::connecting)?;
        stream.set_nodelay(true).map_err(Failure::connecting)?;
        Ok((BufStream::new(stream), permit))
    }

    /// Notes an error at `now`; true when the server is left alone from now on.
    fn count_error(&self, now: f64, limit: f64, interval: f64) -> bool {
        let mut errors = self.errors.lock();
        errors.at.push_back(now);
        while errors.at.front().is_some_and(|at| *at <= now - interval) {
            errors.at.pop_front();
        }
        let limited = errors.at.len() as f64 > limit;
        if limited {
            errors.limited_until = now + interval;
            errors.at.clear();
        }
        limited
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
fn parse_address(text: &str) -> (String, u16) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        let port = rest.strip_prefix(':').and_then(|p| p.parse().ok()).unwrap_or(DEFAULT_PORT);
        return (host.to_owned(), port);
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host.to_owned(), port.parse().unwrap_or(DEFAULT_PORT)),
        _ => (text.to_owned(), DEFAULT_PORT),
    }
}

fn set_message(key: &str, flags: u32, expiry: u64, value: &[u8]) -> Vec<u8> {
    let head = format!("set {key} {flags} {expiry} {}\r\n", value.len());
    [head.as_bytes(), value, b"\r\n"].concat()
}

async fn write(connection: &mut Connection, bytes: &[u8]) -> Result<(), AttemptError> {
    connection.write_all(bytes).await?;
    Ok(connection.flush().await?)
}

async fn read_line(connection: &mut Connection) -> Result<String, AttemptError> {
    const MAX_LINE: u64 = 2048;
    let mut line = Vec::new();
    connection.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(AttemptError::Protocol("incomplete read".to_owned()));
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

async fn read_sum(connection: &mut Connection) -> Result<Option<u64>, AttemptError> {
    let line = read_line(connection).await?;
    if line.eq_ignore_ascii_case("NOT_FOUND") {
        return Ok(None);
    }
    line.parse().map(Some).map_err(|_| AttemptError::Protocol(line))
}

/// The lines `VALUE key flags bytes`, each with its data, up to `END`.
async fn read_values(connection: &mut Connection) -> Result<Vec<(String, RawValue)>, AttemptError> {
    let mut values = Vec::new();
    loop {
        let line = read_line(connection).await?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["END"] => return Ok(values),
            ["VALUE", key, flags, size, ..] => {
                let bad = || AttemptError::Protocol(line.clone());
                let flags: u32 = flags.parse().map_err(|_| bad())?;
                let size: usize = size.parse().ok().filter(|n| *n <= MAX_VALUE_BYTES).ok_or_else(bad)?;
                let mut data = vec![0; size];
                connection.read_exact(&mut data).await?;
                read_line(connection).await?;
                values.push((key.to_owned(), (flags, data)));
            }
            _ => return Err(AttemptError::Protocol(line)),
        }
    }
}

fn decode((flags, data): RawValue) -> Result<Option<Value>, AttemptError> {
    if flags & PICKLE_FLAG != 0 {
        return Ok(None);
    }
    if flags & JSON_FLAG != 0 {
        return serde_json::from_slice(&data)
            .map(Some)
            .map_err(|err| AttemptError::Protocol(err.to_string()));
    }
    Ok(Some(Value::String(String::from_utf8_lossy(&data).into_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::timestamp::Timestamp;
    use serde_json::json;
    use tokio::net::TcpListener;

    pub fn ring(servers: &str, more: &[(&str, &str)]) -> (Cache, crate::logs::Lines, Clock) {
        let (logger, lines) = Logger::memory();
        let clock = Clock::manual(Timestamp::from_secs_f64(1_700_000_000.0));
        let pairs = [("memcache_servers", servers)].into_iter().chain(more.iter().copied());
        let section = Section::from_pairs("filter:cache", pairs);
        let cache =
            Cache::from_section(&section, Path::new("/nonexistent"), &clock, &logger, &Statsd::disabled());
        (cache.unwrap(), lines, clock)
    }

    fn inner(cache: &Cache) -> &MemcacheRing {
        match &cache.0 {
            Backend::Ring(ring) => ring,
            Backend::Local(_) => panic!("not a ring"),
        }
    }

    /// Flags and data by key.
    pub type Items = Arc<Mutex<HashMap<String, (String, Vec<u8>)>>>;

    /// A memcached of which only the commands are that the client uses; returns its address and what it stored.
    pub async fn fake_server() -> (String, Items) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let items = Arc::new(Mutex::new(HashMap::new()));
        let shared = Arc::clone(&items);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(BufStream::new(stream), Arc::clone(&shared)));
            }
        });
        (address, items)
    }

    async fn serve(mut stream: Connection, items: Items) {
        while let Ok(line) = read_line(&mut stream).await {
            let words: Vec<&str> = line.split(' ').collect();
            let answer = match words[..] {
                ["set" | "add", key, flags, _, size] => {
                    let mut data = vec![0; size.parse::<usize>().unwrap() + 2];
                    stream.read_exact(&mut data).await.unwrap();
                    data.truncate(data.len() - 2);
                    let known = items.lock().contains_key(key);
                    if words[0] == "add" && known {
                        "NOT_STORED\r\n".into()
                    } else {
                        items.lock().insert(key.to_owned(), (flags.to_owned(), data));
                        "STORED\r\n".into()
                    }
                }
                ["get", ..] => {
                    let mut answer = Vec::new();
                    for key in &words[1..] {
                        if let Some((flags, data)) = items.lock().get(*key) {
                            answer.extend(format!("VALUE {key} {flags} {}\r\n", data.len()).into_bytes());
                            answer.extend([data, &b"\r\n"[..]].concat());
                        }
                    }
                    answer.extend(b"END\r\n");
                    String::from_utf8(answer).unwrap()
                }
                ["incr" | "decr", key, delta] => match items.lock().get_mut(key) {
                    Some((_, data)) => {
                        let old: u64 = String::from_utf8(data.clone()).unwrap().parse().unwrap();
                        let delta: u64 = delta.parse().unwrap();
                        let sum = if words[0] == "incr" { old + delta } else { old.saturating_sub(delta) };
                        *data = sum.to_string().into_bytes();
                        format!("{sum}\r\n")
                    }
                    None => "NOT_FOUND\r\n".into(),
                },
                ["delete", key] => {
                    items.lock().remove(key);
                    "DELETED\r\n".into()
                }
                _ => "ERROR\r\n".into(),
            };
            write(&mut stream, answer.as_bytes()).await.unwrap();
        }
    }

    // Made by swift.common.memcached.MemcacheRing(servers)._get_conns, as indexes into these servers.
    #[test]
    fn servers_are_chosen_as_by_swift() {
        let servers = ["10.0.0.1:11211", "10.0.0.2:11211", "cache3:11311", "[fe80::1]:11211"];
        let (cache, ..) = ring(&servers.join(","), &[]);
        for (key, expected) in [
            ("account/AUTH_test", [0, 2, 3]),
            ("container/AUTH_test/c", [2, 1, 3]),
            ("nvratelimit/é", [2, 1, 3]),
            ("AUTH_/auth/AUTH_tk123", [1, 0, 3]),
            ("a", [1, 2, 3]),
            ("b", [3, 1, 0]),
            ("shard-updating-v2/a/c", [3, 1, 0]),
        ] {
            let chosen: Vec<&str> =
                inner(&cache).servers_of(&hash_key(key)).iter().map(|s| s.name.as_str()).collect();
            assert_eq!(chosen, expected.map(|index: usize| servers[index]), "{key}");
        }
    }

    #[test]
    fn calls_may_move_between_threads() {
        fn assert_send(_: &impl Send) {}
        let cache = Cache::local(&Clock::system());
        let value = Value::Null;
        assert_send(&cache.get("key"));
        assert_send(&cache.get_multi(&["key"], "server"));
        assert_send(&cache.set("key", &value, 1));
        assert_send(&cache.set_multi(&[], "server", 1));
        assert_send(&cache.incr("key", 1, 1));
        assert_send(&cache.delete("key"));
    }

    #[tokio::test]
    async fn values_are_json_under_the_md5_of_their_key() {
        let (address, items) = fake_server().await;
        let (cache, lines, _) = ring(&address, &[]);
        cache.set("account/AUTH_test", &json!({"status": 200, "name": "ü"}), 60).await;
        assert_eq!(cache.get("account/AUTH_test").await, Some(Arc::new(json!({"status": 200, "name": "ü"}))));
        let (flags, _) = items.lock()["05fad1c218a819c6507731ef4698a285"].clone();
        assert_eq!(flags, "2");
        assert_eq!(cache.get("other").await, None);
        cache.delete("account/AUTH_test").await;
        assert_eq!(cache.get("account/AUTH_test").await, None);
        assert!(lines.all().is_empty(), "{:?}", lines.all());
    }

    #[tokio::test]
    async fn pickled_values_are_misses() {
        let (address, items) = fake_server().await;
        let (cache, ..) = ring(&address, &[]);
        items.lock().insert(hash_key("k"), ("1".into(), b"(lp0\n.".to_vec()));
        assert_eq!(cache.try_get("k").await.unwrap(), None);
    }

    #[tokio::test]
    async fn counters_begin_at_their_first_step_and_never_go_below_zero() {
        let (address, _) = fake_server().await;
        let clock = Clock::manual(Timestamp::from_secs_f64(1_700_000_000.0));
        for cache in [ring(&address, &[]).0, Cache::local(&clock)] {
            assert_eq!(cache.incr("n", 5, 60).await.unwrap(), 5);
            assert_eq!(cache.incr("n", 2, 60).await.unwrap(), 7);
            assert_eq!(cache.decr("n", 9, 60).await.unwrap(), 0);
            assert_eq!(cache.decr("m", 9, 60).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn many_items_go_to_the_server_of_one_key() {
        let (address, _) = fake_server().await;
        let clock = Clock::manual(Timestamp::from_secs_f64(1_700_000_000.0));
        for cache in [ring(&address, &[]).0, Cache::local(&clock)] {
            cache.set_multi(&[("a".into(), json!(1)), ("b".into(), json!("x"))], "a", 60).await;
            assert_eq!(
                cache.get_multi(&["b", "c", "a"], "a").await,
                [Some(json!("x")), None, Some(json!(1))]
            );
        }
    }

    #[tokio::test]
    async fn a_server_that_fails_is_left_alone_for_a_while() {
        // A port of the system's, which no test listens on.
        let dead = "127.0.0.1:1".to_owned();
        let (cache, lines, clock) = ring(&dead, &[("error_suppression_limit", "2")]);
        for _ in 0..3 {
            assert!(cache.try_get("k").await.is_err());
        }
        assert!(lines.contains(&format!("Error limiting server {dead}")));
        let before = lines.all().len();
        assert!(cache.try_get("k").await.is_err());
        assert!(lines.all()[before..].iter().all(|(_, line)| line.contains("No more memcached servers")));
        clock.advance(Duration::from_secs(61));
        assert!(cache.try_get("k").await.is_err());
        assert!(lines.all().last().unwrap().1.contains("No more memcached servers"));
        assert!(
            lines.all()[before + 1..]
                .iter()
                .any(|(_, line)| line.contains("Error connecting to memcached: 127"))
        );
    }

    #[tokio::test]
    async fn local_items_end_with_their_time_to_live() {
        let clock = Clock::manual(Timestamp::from_secs_f64(1_700_000_000.0));
        let cache = Cache::local(&clock);
        cache.set("short", &json!(1), 10).await;
        cache.set("forever", &json!(2), 0).await;
        clock.advance(Duration::from_secs(9));
        assert_eq!(cache.get("short").await, Some(Arc::new(json!(1))));
        clock.advance(Duration::from_secs(1));
        assert_eq!(cache.get("short").await, None);
        assert_eq!(cache.get("forever").await, Some(Arc::new(json!(2))));
        cache.delete("forever").await;
        assert_eq!(cache.get("forever").await, None);
    }

    #[tokio::test]
    async fn the_embedded_cache_is_bounded() {
        let clock = Clock::manual(Timestamp::from_secs_f64(1_700_000_000.0));
        let cache = Cache::local(&clock);
        cache.set("kept", &json!(0), 1000).await;
        for n in 0..LOCAL_MAX_ITEMS {
            cache.set(&format!("k{n}"), &json!(n), 10).await;
        }
        assert_eq!(cache.get("kept").await, Some(Arc::new(json!(0))));
        let Backend::Local(local) = &cache.0 else { panic!("not local") };
        assert_eq!(local.items.lock().values.len(), LOCAL_MAX_ITEMS);
    }

    #[test]
    fn addresses_are_read_as_by_swift() {
        for (text, host, port) in [
            ("127.0.0.1", "127.0.0.1", 11211),
            ("cache1:11311", "cache1", 11311),
            ("[fe80::1]:11311", "fe80::1", 11311),
            ("[fe80::1]", "fe80::1", 11211),
            ("fe80::1", "fe80::1", 11211),
        ] {
            assert_eq!(parse_address(text), (host.to_owned(), port), "{text}");
        }
    }

    #[test]
    fn a_long_time_to_live_is_sent_as_its_end() {
        let (cache, ..) = ring("127.0.0.1", &[]);
        assert_eq!(inner(&cache).expiry(60), 60);
        assert_eq!(inner(&cache).expiry(MAX_DELTA + 1), 1_700_000_000 + MAX_DELTA + 1);
    }
}
