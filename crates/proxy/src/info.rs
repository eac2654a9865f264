//! What is known of an account, container or object: read from backend headers, cached, asked for.
//!
//! Account and container info is cached twice: for the request (and its subrequests) in `InfoCache`, and in
//! memcached under Swift's own keys and as Swift's own JSON, so that Martlet and Python proxies can share
//! servers. The numbers in it are strings there, as Python caches header values. Object info is cached for the
//! request only.
//!
//! The lookups bypass authorization: to have found something does not mean that the caller may see it. Each is counted
//! in statsd by where it found what it wanted, under Swift's names (`account.info.cache.hit`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use common::Timestamp;
use common::headers::{
    LAST_MODIFIED, X_BACKEND_ALLOW_RESERVED_NAMES, X_BACKEND_DELETE_TIMESTAMP, X_BACKEND_PUT_TIMESTAMP,
    X_BACKEND_RECHECK_ACCOUNT_EXISTENCE, X_BACKEND_RECHECK_CONTAINER_EXISTENCE, X_BACKEND_SHARDING_STATE,
    X_BACKEND_STATUS_CHANGED_AT, X_BACKEND_STORAGE_POLICY_INDEX, X_BACKEND_TIMESTAMP, X_CONTAINER_BYTES_USED,
    X_CONTAINER_OBJECT_COUNT, X_CONTAINER_READ, X_CONTAINER_SYNC_KEY, X_CONTAINER_SYNC_TO, X_CONTAINER_WRITE,
    X_PUT_TIMESTAMP, X_STORAGE_POLICY, X_TIMESTAMP,
};
use common::policy::{Policies, PolicyIndex};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use service::http::message::split_path;
use service::http::{Environ, Headers, Method, Request, Response, SharedApp};
use service::memcached::Cache;

use crate::environ::{ProxyContext, SwiftCache, SwiftOwner};
use crate::namespaces::Bounds;
use crate::subrequest::make_pre_authed_request;

pub const DEFAULT_RECHECK_ACCOUNT_EXISTENCE: u64 = 60;
pub const DEFAULT_RECHECK_CONTAINER_EXISTENCE: u64 = 60;

/// Metadata without its prefix, names in lower case.
pub type Meta = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountInfo {
    /// Of the response it was made from; 0 when none could be asked for.
    pub status: u16,
    pub container_count: u64,
    pub total_object_count: u64,
    pub bytes: u64,
    pub storage_policies: BTreeMap<u32, PolicyUsage>,
    pub meta: Meta,
    pub sysmeta: Meta,
    /// False for the listing that an autocreated account has before it is created.
    pub account_really_exists: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyUsage {
    pub container_count: u64,
    pub object_count: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Of the response it was made from; 0 when the account could not be found.
    pub status: u16,
    pub read_acl: Option<String>,
    pub write_acl: Option<String>,
    pub sync_to: Option<String>,
    pub sync_key: Option<String>,
    pub object_count: u64,
    pub bytes: u64,
    pub versions: Option<String>,
    pub storage_policy: u32,
    pub cors: Cors,
    pub meta: Meta,
    pub sysmeta: Meta,
    pub sharding_state: String,
    pub created_at: Option<String>,
    pub put_timestamp: Option<String>,
    pub delete_timestamp: Option<String>,
    pub status_changed_at: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    pub allow_origin: Option<String>,
    pub expose_headers: Option<String>,
    pub max_age: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectInfo {
    pub status: u16,
    pub length: u64,
    pub content_type: Option<String>,
    pub etag: Option<String>,
    pub meta: Meta,
    pub sysmeta: Meta,
    pub transient_sysmeta: Meta,
}

impl AccountInfo {
    pub fn is_success(&self) -> bool {
        is_success(self.status)
    }

    /// Neither missing nor merely pretended.
    pub fn exists(&self) -> bool {
        self.is_success() && self.account_really_exists.unwrap_or(true)
    }

    pub fn from_headers(headers: &Headers, status: u16, policies: Option<&Policies>) -> Self {
        let mut usage = BTreeMap::new();
        for policy in policies.into_iter().flat_map(Policies::iter) {
            let count =
                |what: &str| number(headers, &format!("X-Account-Storage-Policy-{}-{what}", policy.name));
            usage.insert(
                policy.index.0,
                PolicyUsage {
                    container_count: count("Container-Count"),
                    object_count: count("Object-Count"),
                    bytes: count("Bytes-Used"),
                },
            );
        }
        let (meta, sysmeta) = split_meta(headers, "account");
        let fake = headers.get_bool("X-Backend-Fake-Account-Listing");
        Self {
            status,
            container_count: number(headers, "X-Account-Container-Count"),
            total_object_count: number(headers, "X-Account-Object-Count"),
            bytes: number(headers, "X-Account-Bytes-Used"),
            storage_policies: usage,
            meta,
            sysmeta,
            account_really_exists: is_success(status).then_some(!fake),
        }
    }

    pub fn to_json(&self) -> Value {
        let usage: Map<String, Value> = self
            .storage_policies
            .iter()
            .map(|(index, usage)| {
                let usage = json!({
                    "container_count": usage.container_count,
                    "object_count": usage.object_count,
                    "bytes": usage.bytes,
                });
                (index.to_string(), usage)
            })
            .collect();
        let mut info = json!({
            "status": self.status,
            "container_count": self.container_count.to_string(),
            "total_object_count": self.total_object_count.to_string(),
            "bytes": self.bytes.to_string(),
            "storage_policies": usage,
            "meta": self.meta,
            "sysmeta": self.sysmeta,
        });
        if let Some(exists) = self.account_really_exists {
            info["account_really_exists"] = exists.into();
        }
        info
    }

    pub fn from_json(info: &Value) -> Option<Self> {
        let usage = info.get("storage_policies").and_then(Value::as_object);
        let usage = usage.into_iter().flatten().filter_map(|(index, usage)| {
            let usage = PolicyUsage {
                container_count: json_number(usage.get("container_count")),
                object_count: json_number(usage.get("object_count")),
                bytes: json_number(usage.get("bytes")),
            };
            Some((index.parse().ok()?, usage))
        });
        Some(Self {
            status: json_status(info)?,
            container_count: json_number(info.get("container_count")),
            total_object_count: json_number(info.get("total_object_count")),
            bytes: json_number(info.get("bytes")),
            storage_policies: usage.collect(),
            meta: json_meta(info.get("meta")),
            sysmeta: json_meta(info.get("sysmeta")),
            account_really_exists: info.get("account_really_exists").and_then(Value::as_bool),
        })
    }
}

impl ContainerInfo {
    pub fn is_success(&self) -> bool {
        is_success(self.status)
    }

    /// What is known of a container when nothing is.
    pub fn unknown(status: u16) -> Self {
        Self::from_headers(&Headers::new(), status)
    }

    pub fn from_headers(headers: &Headers, status: u16) -> Self {
        let (meta, sysmeta) = split_meta(headers, "container");
        Self {
            status,
            read_acl: text(headers, "X-Container-Read"),
            write_acl: text(headers, "X-Container-Write"),
            sync_to: text(headers, "X-Container-Sync-To"),
            sync_key: text(headers, "X-Container-Sync-Key"),
            object_count: number(headers, "X-Container-Object-Count"),
            bytes: number(headers, "X-Container-Bytes-Used"),
            versions: text(headers, "X-Versions-Location"),
            storage_policy: number(headers, "X-Backend-Storage-Policy-Index") as u32,
            cors: Cors {
                allow_origin: meta.get("access-control-allow-origin").cloned(),
                expose_headers: meta.get("access-control-expose-headers").cloned(),
                max_age: meta.get("access-control-max-age").cloned(),
            },
            meta,
            sysmeta,
            sharding_state: text(headers, "X-Backend-Sharding-State")
                .unwrap_or_else(|| "unsharded".to_owned()),
            created_at: text(headers, "X-Backend-Timestamp"),
            put_timestamp: text(headers, "X-Backend-Put-Timestamp"),
            delete_timestamp: text(headers, "X-Backend-Delete-Timestamp"),
            status_changed_at: text(headers, "X-Backend-Status-Changed-At"),
        }
    }

    pub fn policy_index(&self) -> PolicyIndex {
        PolicyIndex(self.storage_policy)
    }

    /// What a container server would answer. `None` if too little of it was cached. Swift: `headers_from_container_info`.
    pub fn to_headers(&self, policies: &Policies) -> Option<Headers> {
        let (created_at, put_timestamp) = (self.created_at.as_ref()?, self.put_timestamp.as_ref()?);
        let policy = policies.get(self.policy_index())?;
        let normal = |text: &str| Some(Timestamp::parse(text).ok()?.normal());
        let mut headers = Headers::new();
        headers.insert(X_BACKEND_TIMESTAMP, created_at);
        headers.insert(X_BACKEND_PUT_TIMESTAMP, put_timestamp);
        headers.insert(X_BACKEND_DELETE_TIMESTAMP, self.delete_timestamp.as_ref()?);
        headers.insert(X_BACKEND_STATUS_CHANGED_AT, self.status_changed_at.as_ref()?);
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, self.storage_policy);
        headers.insert(X_CONTAINER_OBJECT_COUNT, self.object_count);
        headers.insert(X_CONTAINER_BYTES_USED, self.bytes);
        headers.insert(X_BACKEND_SHARDING_STATE, &self.sharding_state);
        headers.insert(X_TIMESTAMP, normal(created_at)?);
        headers.insert(X_PUT_TIMESTAMP, normal(put_timestamp)?);
        headers.insert(X_STORAGE_POLICY, &policy.name);
        headers.insert(LAST_MODIFIED, Timestamp::parse(put_timestamp).ok()?.http_date());
        let some = [
            (X_CONTAINER_READ, &self.read_acl),
            (X_CONTAINER_WRITE, &self.write_acl),
            (X_CONTAINER_SYNC_KEY, &self.sync_key),
            (X_CONTAINER_SYNC_TO, &self.sync_to),
            ("X-Versions-Location", &self.versions),
        ];
        for (name, value) in some {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        for (prefix, meta) in [("X-Container-Meta-", &self.meta), ("X-Container-Sysmeta-", &self.sysmeta)] {
            for (name, value) in meta {
                headers.insert(format!("{prefix}{name}"), value);
            }
        }
        Some(headers)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "status": self.status,
            "read_acl": self.read_acl,
            "write_acl": self.write_acl,
            "sync_to": self.sync_to,
            "sync_key": self.sync_key,
            "object_count": self.object_count.to_string(),
            "bytes": self.bytes.to_string(),
            "versions": self.versions,
            "storage_policy": self.storage_policy.to_string(),
            "cors": {
                "allow_origin": self.cors.allow_origin,
                "expose_headers": self.cors.expose_headers,
                "max_age": self.cors.max_age,
            },
            "meta": self.meta,
            "sysmeta": self.sysmeta,
            "sharding_state": self.sharding_state,
            "created_at": self.created_at,
            "put_timestamp": self.put_timestamp,
            "delete_timestamp": self.delete_timestamp,
            "status_changed_at": self.status_changed_at,
        })
    }

    pub fn from_json(info: &Value) -> Option<Self> {
        let cors = |name: &str| json_text(info.get("cors").and_then(|cors| cors.get(name)));
        Some(Self {
            status: json_status(info)?,
            read_acl: json_text(info.get("read_acl")),
            write_acl: json_text(info.get("write_acl")),
            sync_to: json_text(info.get("sync_to")),
            sync_key: json_text(info.get("sync_key")),
            // Swift: before 2.x the count was cached as container_size
            object_count: json_number(info.get("object_count").or_else(|| info.get("container_size"))),
            bytes: json_number(info.get("bytes")),
            versions: json_text(info.get("versions")),
            storage_policy: json_number(info.get("storage_policy")) as u32,
            cors: Cors {
                allow_origin: cors("allow_origin"),
                expose_headers: cors("expose_headers"),
                max_age: cors("max_age"),
            },
            meta: json_meta(info.get("meta")),
            sysmeta: json_meta(info.get("sysmeta")),
            sharding_state: json_text(info.get("sharding_state")).unwrap_or_else(|| "unsharded".to_owned()),
            created_at: json_text(info.get("created_at")),
            put_timestamp: json_text(info.get("put_timestamp")),
            delete_timestamp: json_text(info.get("delete_timestamp")),
            status_changed_at: json_text(info.get("status_changed_at")),
        })
    }
}

impl ObjectInfo {
    pub fn is_success(&self) -> bool {
        is_success(self.status)
    }

    pub fn from_headers(headers: &Headers, status: u16) -> Self {
        let (meta, sysmeta) = split_meta(headers, "object");
        Self {
            status,
            length: number(headers, "Content-Length"),
            content_type: text(headers, "Content-Type"),
            etag: text(headers, "Etag"),
            meta,
            sysmeta,
            transient_sysmeta: prefixed(headers, "x-object-transient-sysmeta-"),
        }
    }
}

/// `swift.infocache`: shared by a request and its subrequests.
#[derive(Clone, Default)]
pub struct InfoCache(Arc<Mutex<HashMap<String, Info>>>);

#[derive(Clone)]
enum Info {
    Account(Arc<AccountInfo>),
    Container(Arc<ContainerInfo>),
    Object(Arc<ObjectInfo>),
    Namespaces(Arc<Bounds>),
}

impl InfoCache {
    /// That of the request; made if it has none yet.
    pub fn of(req: &mut Request) -> InfoCache {
        if let Some(cache) = req.env.get::<InfoCache>() {
            return cache.clone();
        }
        let cache = InfoCache::default();
        req.env.insert(cache.clone());
        cache
    }

    pub fn in_env(env: &Environ) -> Option<&InfoCache> {
        env.get::<InfoCache>()
    }

    pub fn account(&self, key: &str) -> Option<Arc<AccountInfo>> {
        match self.0.lock().get(key) {
            Some(Info::Account(info)) => Some(info.clone()),
            _ => None,
        }
    }

    pub fn container(&self, key: &str) -> Option<Arc<ContainerInfo>> {
        match self.0.lock().get(key) {
            Some(Info::Container(info)) => Some(info.clone()),
            _ => None,
        }
    }

    pub fn object(&self, key: &str) -> Option<Arc<ObjectInfo>> {
        match self.0.lock().get(key) {
            Some(Info::Object(info)) => Some(info.clone()),
            _ => None,
        }
    }

    pub fn namespaces(&self, key: &str) -> Option<Arc<Bounds>> {
        match self.0.lock().get(key) {
            Some(Info::Namespaces(bounds)) => Some(bounds.clone()),
            _ => None,
        }
    }

    pub fn insert_namespaces(&self, key: &str, bounds: Arc<Bounds>) {
        self.insert(key.to_owned(), Info::Namespaces(bounds));
    }

    pub fn remove(&self, key: &str) {
        self.0.lock().remove(key);
    }

    fn insert(&self, key: String, info: Info) {
        self.0.lock().insert(key, info);
    }
}

/// Set on a request of which memcached is not asked for the one or the other (`*_existence_skip_cache_pct`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipCache {
    pub account: bool,
    pub container: bool,
}

/// The key of an account's or container's info, in memcached and in `InfoCache`.
pub fn cache_key(account: &str, container: Option<&str>) -> String {
    match container {
        Some(container) => format!("container/{account}/{container}"),
        None => format!("account/{account}"),
    }
}

/// The key under which the namespaces of a sharded container are cached; `state` is `listing` or `updating`.
pub fn shard_cache_key(state: &str, account: &str, container: &str) -> String {
    format!("shard-{state}-v2/{account}/{container}")
}

/// Info of the account in the request's path, from the caches or else by a HEAD through `app`.
pub async fn get_account_info(req: &mut Request, app: &SharedApp, source: &'static str) -> Arc<AccountInfo> {
    let path = req.path.clone();
    match split_api_path(&path) {
        Some((account, _)) => account_info(req, app, account, source).await,
        None => Arc::new(AccountInfo::default()),
    }
}

/// Info of the container in the request's path, from the caches or else by a HEAD through `app`.
pub async fn get_container_info(
    req: &mut Request,
    app: &SharedApp,
    source: &'static str,
) -> Arc<ContainerInfo> {
    let path = req.path.clone();
    match split_api_path(&path) {
        Some((account, Some(container))) => container_info(req, app, account, container, source).await,
        _ => Arc::new(ContainerInfo::unknown(0)),
    }
}

/// Info of any account. An empty `source` stands for Swift's default one, in the access log.
pub async fn account_info(
    req: &mut Request,
    app: &SharedApp,
    account: &str,
    source: &'static str,
) -> Arc<AccountInfo> {
    let key = cache_key(account, None);
    let (info, found) = cached(req, &key, InfoCache::account, AccountInfo::from_json, Info::Account).await;
    if let Some(info) = info {
        found.record(req, "account.info", None);
        return info;
    }
    let source = if source.is_empty() { "GET_ACCOUNT_INFO" } else { source };
    let resp = ask(req, app, info_request(req, &format!("/v1/{account}"), source)).await;
    found.record(req, "account.info", Some(resp.status.0));
    // The app has filled the caches, unless a filter answered in its stead.
    if let Some(info) = InfoCache::of(req).account(&key) {
        return info;
    }
    match set_account_info_cache(req, None, account, &resp.headers, resp.status.0).await {
        Some(info) => info,
        None => Arc::new(AccountInfo { status: 503, ..AccountInfo::default() }),
    }
}

/// Info of any container.
pub async fn container_info(
    req: &mut Request,
    app: &SharedApp,
    account: &str,
    container: &str,
    source: &'static str,
) -> Arc<ContainerInfo> {
    let info = container_info_alone(req, app, account, container, source).await;
    let Some(versions) = info.sysmeta.get("versions-container") else { return info };
    let versions = common::quote::unquote(versions.as_bytes());
    let versions = String::from_utf8_lossy(&versions);
    let versions = versions.split('/').next().unwrap_or("");
    if versions.is_empty() {
        return info;
    }
    // What its old versions use counts as the container's own.
    let versions = container_info_alone(req, app, account, versions, source).await;
    let mut info = (*info).clone();
    info.bytes += versions.bytes;
    Arc::new(info)
}

async fn container_info_alone(
    req: &mut Request,
    app: &SharedApp,
    account: &str,
    container: &str,
    source: &'static str,
) -> Arc<ContainerInfo> {
    let key = cache_key(account, Some(container));
    let (info, found) =
        cached(req, &key, InfoCache::container, ContainerInfo::from_json, Info::Container).await;
    if let Some(info) = info {
        found.record(req, "container.info", None);
        return info;
    }
    // An account of Swift's own looks the same whether it exists or not.
    if !account.starts_with(AUTO_CREATE_ACCOUNT_PREFIX)
        && !account_info(req, app, account, source).await.is_success()
    {
        found.record(req, "container.info", None);
        return Arc::new(ContainerInfo::unknown(0));
    }
    let source = if source.is_empty() { "GET_CONTAINER_INFO" } else { source };
    let resp = ask(req, app, info_request(req, &format!("/v1/{account}/{container}"), source)).await;
    found.record(req, "container.info", Some(resp.status.0));
    if let Some(info) = InfoCache::of(req).container(&key) {
        return info;
    }
    match set_container_info_cache(req, account, container, &resp.headers, resp.status.0).await {
        Some(info) => info,
        None => Arc::new(ContainerInfo::unknown(503)),
    }
}

/// Info of a container, if a cache has it.
pub async fn cached_container_info(
    req: &mut Request,
    account: &str,
    container: &str,
) -> Option<Arc<ContainerInfo>> {
    let key = cache_key(account, Some(container));
    let (info, found) =
        cached(req, &key, InfoCache::container, ContainerInfo::from_json, Info::Container).await;
    found.record(req, "container.info", None);
    info
}

/// Where a lookup found what it wanted, or why not in memcached; or how it was put there. Swift: `cache_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    InfoCache,
    Hit,
    Miss,
    /// Not looked for, by chance.
    Skip,
    /// Not looked for, as the client wants the newest.
    ForceSkip,
    /// Not looked for, as too little is known of the container.
    Bypass,
    /// No memcached answers.
    Error,
    /// There is no memcached.
    Disabled,
    Set,
    SetError,
}

impl Found {
    /// Counts the lookup of `what`. `status` is what a server answered, if one was asked. Swift: `record_cache_op_metrics`.
    pub fn record(self, req: &Request, what: &str, status: Option<u16>) {
        let Some(ProxyContext(ctx)) = req.env.get() else { return };
        if !ctx.statsd.is_enabled() {
            return;
        }
        let cache = if self == Found::InfoCache { "infocache" } else { "cache" };
        let state = self.name();
        match status {
            None => ctx.statsd.increment(&format!("{what}.{cache}.{state}")),
            Some(status) => ctx.statsd.increment(&format!("{what}.{cache}.{state}.{status}")),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Found::InfoCache | Found::Hit => "hit",
            Found::Miss => "miss",
            Found::Skip => "skip",
            Found::ForceSkip => "force_skip",
            Found::Bypass => "bypass",
            Found::Error => "error",
            Found::Disabled => "disabled",
            Found::Set => "set",
            Found::SetError => "set_error",
        }
    }
}

/// What this request knows already, or memcached.
async fn cached<T>(
    req: &mut Request,
    key: &str,
    known: fn(&InfoCache, &str) -> Option<Arc<T>>,
    from_json: fn(&Value) -> Option<T>,
    info_of: fn(Arc<T>) -> Info,
) -> (Option<Arc<T>>, Found) {
    let infocache = InfoCache::of(req);
    if let Some(info) = known(&infocache, key) {
        return (Some(info), Found::InfoCache);
    }
    match from_memcache(req, key).await.map(|json| from_json(&json).map(Arc::new)) {
        Ok(Some(info)) => {
            infocache.insert(key.to_owned(), info_of(info.clone()));
            (Some(info), Found::Hit)
        }
        Ok(None) => (None, Found::Miss),
        Err(found) => (None, found),
    }
}

/// Info of the object in `path` (of the request if `None`), by a HEAD through `app` unless that was done before.
pub async fn get_object_info(
    req: &mut Request,
    app: &SharedApp,
    path: Option<&str>,
    source: &'static str,
) -> Arc<ObjectInfo> {
    let path = path.unwrap_or(&req.path).to_owned();
    let Ok(parts) = split_path(&path, 4, 4, true) else { return Arc::default() };
    let [_, Some(account), Some(container), Some(object)] = &parts[..] else { return Arc::default() };
    let key = format!("object/{account}/{container}/{object}");
    let infocache = InfoCache::of(req);
    if let Some(info) = infocache.object(&key) {
        return info;
    }
    let subreq = info_request(req, &format!("/v1/{account}/{container}/{object}"), source);
    let resp = app.call(subreq).await;
    let info = Arc::new(ObjectInfo::from_headers(&resp.headers, resp.status.0));
    infocache.insert(key, Info::Object(info.clone()));
    info
}

/// Caches what response headers say about an account; `None` if they say nothing lasting.
pub async fn set_account_info_cache(
    req: &mut Request,
    policies: Option<&Policies>,
    account: &str,
    headers: &Headers,
    status: u16,
) -> Option<Arc<AccountInfo>> {
    let ttl =
        cache_time(headers, status, X_BACKEND_RECHECK_ACCOUNT_EXISTENCE, DEFAULT_RECHECK_ACCOUNT_EXISTENCE)?;
    let info = Arc::new(AccountInfo::from_headers(headers, status, policies));
    let key = cache_key(account, None);
    if let Some(memcache) = memcache(req) {
        memcache.set(&key, &info.to_json(), ttl).await;
    }
    InfoCache::of(req).insert(key, Info::Account(info.clone()));
    Some(info)
}

/// Caches what response headers say about a container; `None` if they say nothing lasting.
pub async fn set_container_info_cache(
    req: &mut Request,
    account: &str,
    container: &str,
    headers: &Headers,
    status: u16,
) -> Option<Arc<ContainerInfo>> {
    let default = DEFAULT_RECHECK_CONTAINER_EXISTENCE;
    let ttl = cache_time(headers, status, X_BACKEND_RECHECK_CONTAINER_EXISTENCE, default)?;
    let info = Arc::new(ContainerInfo::from_headers(headers, status));
    let key = cache_key(account, Some(container));
    if let Some(memcache) = memcache(req) {
        memcache.set(&key, &info.to_json(), ttl).await;
    }
    InfoCache::of(req).insert(key, Info::Container(info.clone()));
    Some(info)
}

/// Forgets what is cached under a key.
pub async fn clear_info_cache(req: &mut Request, key: &str) {
    InfoCache::of(req).remove(key);
    if let Some(memcache) = memcache(req) {
        memcache.delete(key).await;
    }
}

/// That something is missing is remembered for a tenth of the time; a failure not at all.
fn cache_time(headers: &Headers, status: u16, header: &str, default: u64) -> Option<u64> {
    let secs = headers.get_int::<u64>(header).unwrap_or(default);
    match status {
        404 | 410 => Some(secs.div_ceil(10)),
        status if is_success(status) => Some(secs),
        _ => None,
    }
}

pub fn memcache(req: &Request) -> Option<Cache> {
    req.env.get::<SwiftCache>().map(|cache| cache.0.clone())
}

async fn from_memcache(req: &mut Request, key: &str) -> Result<Arc<Value>, Found> {
    let memcache = memcache(req).ok_or(Found::Disabled)?;
    if let Some(skip) = req.env.get::<SkipCache>() {
        let is_container = key.starts_with("container/");
        if (is_container && skip.container) || (!is_container && skip.account) {
            return Err(Found::Skip);
        }
    }
    memcache.get(key).await.ok_or(Found::Miss)
}

/// Through the logging app rather than `app`, when there is one: no filter has a say. Swift: `_pipeline_request_logging_app`.
async fn ask(req: &mut Request, app: &SharedApp, subreq: Request) -> Response {
    let logging = req.env.get::<ProxyContext>().and_then(|ctx| ctx.0.pipeline.logging_app());
    logging.as_ref().unwrap_or(app).call(subreq).await
}

/// A HEAD with the owner's eyes, so that ACLs are seen.
fn info_request(req: &Request, path: &str, source: &'static str) -> Request {
    let headers = Headers::from([(X_BACKEND_ALLOW_RESERVED_NAMES, "true")]);
    let mut subreq = make_pre_authed_request(req, Method::Head, path, "", headers, "Swift", source);
    subreq.headers.remove("Origin");
    subreq.env.insert(SwiftOwner(true));
    subreq
}

/// Account and container of `/v1/account[/container[/object]]`.
pub fn split_api_path(path: &str) -> Option<(&str, Option<&str>)> {
    let mut parts = path.strip_prefix('/')?.splitn(4, '/');
    let version = parts.next()?;
    if !matches!(version, "v1" | "v1.0") {
        return None;
    }
    let account = parts.next().filter(|account| !account.is_empty())?;
    Some((account, parts.next().filter(|container| !container.is_empty())))
}

/// Accounts of Swift's own begin so.
pub const AUTO_CREATE_ACCOUNT_PREFIX: char = '.';

pub fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

pub fn is_server_error(status: u16) -> bool {
    (500..600).contains(&status)
}

fn text(headers: &Headers, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
}

fn number(headers: &Headers, name: &str) -> u64 {
    headers.get_int::<u64>(name).unwrap_or(0)
}

fn split_meta(headers: &Headers, server_type: &str) -> (Meta, Meta) {
    let meta = prefixed(headers, &format!("x-{server_type}-meta-"));
    (meta, prefixed(headers, &format!("x-{server_type}-sysmeta-")))
}

fn prefixed(headers: &Headers, prefix: &str) -> Meta {
    let mut meta = Meta::new();
    for (name, value) in headers.iter() {
        let has_prefix =
            name.len() > prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes());
        if has_prefix {
            let name = String::from_utf8_lossy(&name[prefix.len()..]).to_lowercase();
            meta.insert(name, String::from_utf8_lossy(value).into_owned());
        }
    }
    meta
}

fn json_status(info: &Value) -> Option<u16> {
    info.get("status")?.as_u64()?.try_into().ok()
}

fn json_text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn json_number(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        _ => 0,
    }
}

fn json_meta(value: Option<&Value>) -> Meta {
    let map = value.and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    use common::clock::Clock;
    use common::config::Conf;
    use service::Context;
    use service::http::app_fn;
    use service::rng::Rng;
    use service::statsd::Statsd;

    fn received(daemon: &UdpSocket) -> String {
        let mut buffer = [0; 512];
        let n = daemon.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    /// As the real proxy counts them: `record_cache_op_metrics`.
    #[tokio::test]
    async fn lookups_are_counted_by_where_they_ended() {
        let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = daemon.local_addr().unwrap().port();
        let text = format!("[s]\nlog_statsd_host = 127.0.0.1\nlog_statsd_port = {port}\n");
        let section = Conf::parse(&text, "test.conf").unwrap().section("s").unwrap();
        let statsd = Statsd::from_section(&section, "proxy-server", &Rng::seeded(1)).unwrap();
        let ctx = Context::builder("proxy-server").statsd(statsd).build();
        let app = app_fn(|req: Request| async move {
            Response::new(if req.path.starts_with("/v1/gone") { 404 } else { 204 })
        });
        let cache = Cache::local(&Clock::system());
        let request = |path: &str, cached: bool| {
            let mut req = Request::new(Method::Get, path);
            req.env.insert(ProxyContext(ctx.clone()));
            if cached {
                req.env.insert(SwiftCache(cache.clone()));
            }
            req
        };
        let mut req = request("/v1/a/c", false);
        get_account_info(&mut req, &app, "").await;
        assert_eq!(received(&daemon), "proxy-server.account.info.cache.disabled.204:1|c");
        get_account_info(&mut req, &app, "").await;
        assert_eq!(received(&daemon), "proxy-server.account.info.infocache.hit:1|c");

        let mut req = request("/v1/a/c", true);
        get_container_info(&mut req, &app, "").await;
        assert_eq!(received(&daemon), "proxy-server.account.info.cache.miss.204:1|c");
        assert_eq!(received(&daemon), "proxy-server.container.info.cache.miss.204:1|c");
        get_container_info(&mut request("/v1/a/c", true), &app, "").await;
        assert_eq!(received(&daemon), "proxy-server.container.info.cache.hit:1|c");

        let mut req = request("/v1/a/c", true);
        req.env.insert(SkipCache { account: false, container: true });
        get_container_info(&mut req, &app, "").await;
        assert_eq!(received(&daemon), "proxy-server.account.info.cache.hit:1|c");
        assert_eq!(received(&daemon), "proxy-server.container.info.cache.skip.204:1|c");

        get_container_info(&mut request("/v1/gone/c", true), &app, "").await;
        assert_eq!(received(&daemon), "proxy-server.account.info.cache.miss.404:1|c");
        assert_eq!(received(&daemon), "proxy-server.container.info.cache.miss:1|c");
    }
}
