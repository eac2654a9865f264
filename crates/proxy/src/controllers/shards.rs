//! Sharded containers: the listing of one is made of those of its shards, and an object's row goes to the shard that has its name.
//!
//! The container's server answers with namespaces: which containers hold which names. For a listing they are asked one after the
//! other, each from the last name listed so far and up to its own end, until there is as much as was asked for. A shard may be sharded
//! itself, and answers the same way; a container that was asked before for this request is asked for the objects that it has, as a
//! container may fill a gap between its shards with itself.

use std::sync::Arc;

use bytes::Bytes;
use common::headers::{
    CONTENT_LENGTH, CONTENT_TYPE, X_BACKEND_CACHED_RESULTS, X_BACKEND_INCLUDE_DELETED,
    X_BACKEND_OVERRIDE_SHARD_NAME_FILTER, X_BACKEND_RECORD_SHARD_FORMAT,
    X_BACKEND_RECORD_STORAGE_POLICY_INDEX, X_BACKEND_RECORD_TYPE, X_BACKEND_SHARDING_STATE,
    X_BACKEND_STORAGE_POLICY_INDEX, X_CONTAINER_BYTES_USED, X_CONTAINER_OBJECT_COUNT, X_NEWEST,
    is_true_value,
};
use common::quote::quote;
use serde_json::Value;
use service::http::{App, Headers, Method, Request, Response};
use service::memcached::Cache;

use crate::app::{Application, ProxyApp};
use crate::environ::ShardListingHistory;
use crate::info::{ContainerInfo, Found, cached_container_info, is_success, memcache, shard_cache_key};
use crate::namespaces::{self, Bounds, Namespace, Session};
use crate::subrequest::make_pre_authed_request;

/// Ten thousand of the longest names are less.
const MAX_LISTING: usize = 128 << 20;

/// Let a container's server answer with namespaces if the container is sharded: with all of them, whatever the query, if they are
/// to be cached.
fn ask_for_namespaces(req: &mut Request, query: &str, all: bool) -> String {
    if all {
        req.headers.insert(X_BACKEND_OVERRIDE_SHARD_NAME_FILTER, "sharded");
    }
    req.headers.insert(X_BACKEND_RECORD_TYPE, "auto");
    req.headers.insert(X_BACKEND_RECORD_SHARD_FORMAT, "namespace");
    req.headers.insert(X_BACKEND_INCLUDE_DELETED, "false");
    with_params(query, &[("states", "listing")])
}

/// The query with these parameters in place of its own of these names; `states` goes without one.
fn with_params(query: &str, params: &[(&str, &str)]) -> String {
    let is_kept = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        !name.is_empty() && name != "states" && params.iter().all(|(replaced, _)| *replaced != name)
    };
    let kept = query.split('&').filter(is_kept).map(str::to_owned);
    let given = params.iter().map(|(name, value)| format!("{name}={}", quote(value, "")));
    kept.chain(given).collect::<Vec<_>>().join("&")
}

/// Account and container of the shard that keeps the row of an object. `None` if there is none, or nobody says so: then it is the root's,
/// from where it is sent on later.
pub async fn keeper(
    app: &Arc<Application>,
    req: &mut Request,
    root: (&str, &str),
    object: &str,
) -> Option<(String, String)> {
    let owned = |(account, container): (&str, &str)| (account.to_owned(), container.to_owned());
    let memcache = memcache(req).filter(|_| app.options.recheck_updating_shard_ranges > 0);
    let Some(memcache) = memcache else {
        let (namespaces, status) = updating(app, req, root, Some(object)).await;
        Found::Disabled.record(req, UPDATING, Some(status));
        return namespaces?.first().map(|namespace| owned(namespace.place()));
    };
    let key = shard_cache_key("updating", root.0, root.1);
    let skip = app.options.container_updating_shard_ranges_skip_cache;
    let (mut bounds, found) = namespaces::cached(app, req, &key, skip).await;
    let mut status = None;
    if bounds.is_none() {
        (bounds, status) = find_updating(app, req, memcache, root, &key).await;
    }
    found.record(req, UPDATING, status);
    bounds?.place_of(object).map(owned)
}

/// What metrics call lookups of namespaces that rows go to.
const UPDATING: &str = "object.shard_updating";

/// The namespaces that rows of a container go to, from its servers or from others who have just asked them; and what they answered.
async fn find_updating(
    app: &Arc<Application>,
    req: &mut Request,
    memcache: Cache,
    root: (&str, &str),
    key: &str,
) -> (Option<Arc<Bounds>>, Option<u16>) {
    let mut session = Session::enter(app, memcache, key).await;
    let (mut bounds, mut status, mut set) = (session.wait().await, None, None);
    if bounds.is_none() {
        let (namespaces, answered) = updating(app, req, root, None).await;
        status = Some(answered);
        bounds = namespaces.and_then(|namespaces| Bounds::of(&namespaces)).map(Arc::new);
    }
    if let (Some(bounds), Some(_)) = (&bounds, status) {
        let how = namespaces::remember(req, key, bounds, app.options.recheck_updating_shard_ranges).await;
        how.record(req, UPDATING, None);
        set = Some(how);
    }
    if let (Some(bounds), Some(Found::Set)) = (&bounds, set) {
        session.finish().await;
        let token = if session.has_token() { " with a finished token" } else { "" };
        let line = format_args!("Caching updating shards for {key} ({} shards){token}", bounds.count());
        app.logger(req.trans_id()).info(line);
    }
    session.record(app, root, status, set);
    (bounds, status)
}

/// What the servers of a container tell of the namespaces that its rows go to: of all of them, or of that of `object`.
async fn updating(
    app: &Arc<Application>,
    req: &mut Request,
    (account, container): (&str, &str),
    object: Option<&str>,
) -> (Option<Vec<Namespace>>, u16) {
    let headers =
        Headers::from([(X_BACKEND_RECORD_TYPE, "shard"), (X_BACKEND_RECORD_SHARD_FORMAT, "namespace")]);
    let includes = object.map(|object| format!("&includes={}", quote(object, ""))).unwrap_or_default();
    let query = format!("format=json&states=updating{includes}");
    let path = format!("/{}/{account}/{container}", api_version(req));
    let subreq = make_pre_authed_request(req, Method::Get, &path, &query, headers, "Swift", "SH");
    let mut answer = ProxyApp(app.clone()).call(subreq).await;
    let status = answer.status.0;
    if !is_success(status) {
        return (None, status);
    }
    let body = answer.body.collect(MAX_LISTING).await;
    (body.ok().and_then(|body| Namespace::list_from_json(&body)), status)
}

fn api_version(req: &Request) -> &str {
    req.path.split('/').nth(1).unwrap_or("v1")
}

/// What has been listed so far.
#[derive(Default)]
struct Listing {
    body: Vec<u8>,
    count: usize,
    bytes: i64,
    last: String,
    last_is_subdir: bool,
}

impl Listing {
    /// Take over the items of a shard's listing, as they are. `None` if it is no list.
    fn extend(&mut self, body: &[u8]) -> Option<usize> {
        let items: Vec<Value> = serde_json::from_slice(body).ok()?;
        let Some(last) = items.last() else { return Some(0) };
        let name = last.get("name").or_else(|| last.get("subdir"))?.as_str()?;
        self.last_is_subdir = last.get("subdir").is_some();
        name.clone_into(&mut self.last);
        self.bytes += items.iter().filter_map(|item| item.get("bytes")?.as_i64()).sum::<i64>();
        self.body.extend_from_slice(if self.count == 0 { b"[" } else { b", " });
        self.body.extend_from_slice(body.trim_ascii().strip_prefix(b"[")?.strip_suffix(b"]")?);
        self.count += items.len();
        Some(items.len())
    }

    fn finish(mut self) -> Bytes {
        self.body.extend_from_slice(if self.count == 0 { b"[]" } else { b"]" });
        self.body.into()
    }
}

/// What a listing is asked for by.
struct Asked {
    limit: usize,
    marker: String,
    end_marker: String,
    prefix: String,
    reverse: bool,
    is_constrained: bool,
}

impl Asked {
    fn of(app: &Application, req: &Request) -> Self {
        let param = |name| req.param(name).unwrap_or_default();
        let most = app.ctx.swift_conf.constraints.container_listing_limit;
        let constraints = ["marker", "end_marker", "path", "prefix", "delimiter"];
        Self {
            limit: param("limit").parse().unwrap_or(most),
            marker: param("marker"),
            end_marker: param("end_marker"),
            prefix: param("prefix"),
            reverse: is_true_value(&param("reverse")),
            is_constrained: constraints.into_iter().any(|name| !param(name).is_empty()),
        }
    }

    /// Whether what comes after `last` is past the end marker.
    fn ends_at(&self, last: &str) -> bool {
        !self.end_marker.is_empty()
            && if self.reverse { self.end_marker.as_str() >= last } else { self.end_marker.as_str() <= last }
    }
}

/// The listing of a container that asks its servers with `ask`, which is given `req` and the query. `query` is that of a listing.
pub async fn listing<F: Future<Output = Response>>(
    app: &Arc<Application>,
    req: &mut Request,
    container: (&str, &str),
    query: &str,
    ask: impl FnOnce(&Request, String) -> F,
) -> Response {
    let reverse = is_true_value(&req.param("reverse").unwrap_or_default());
    let info = cached_container_info(req, container.0, container.1).await;
    let info = info.filter(|info| info.is_success() && info.sharding_state == "sharded");
    let key = shard_cache_key("listing", container.0, container.1);
    let (cached, found) = cached_listing(app, req, info.as_deref(), &key).await;
    if let Some((resp, bounds)) = cached {
        let namespaces = namespaces::wanted(bounds.namespaces(), req, reverse);
        if !namespaces.is_empty() {
            found.record(req, LISTING, None);
            return from_shards(app, req, container, query, resp, namespaces).await;
        }
    }
    let is_cacheable = found != Found::Disabled;
    let part = ask_for_namespaces(req, query, is_cacheable);
    let mut resp = ask(req, part).await;
    let is_complete = resp.headers.get_bool(X_BACKEND_OVERRIDE_SHARD_NAME_FILTER);
    resp.headers.remove(X_BACKEND_OVERRIDE_SHARD_NAME_FILTER);
    let is_listed = is_success(resp.status.0);
    let record_type = resp.headers.get_str(X_BACKEND_RECORD_TYPE).unwrap_or_default();
    let is_sharded = is_listed && record_type.eq_ignore_ascii_case("shard");
    // Of what cannot be read it is not known whether it is sharded, but for what was known before.
    if is_sharded || !is_listed && info.is_some() {
        found.record(req, LISTING, Some(resp.status.0));
    }
    if !is_sharded {
        return resp;
    }
    let body = resp.body.collect(MAX_LISTING).await.unwrap_or_default();
    let Some(mut namespaces) = Namespace::list_from_json(&body) else {
        // Swift: it lets the client have what it could not read.
        let problem = format_args!("Failed to get namespaces from {}: invalid data", req.path_qs());
        app.logger(req.trans_id()).error(problem);
        return Response::error(503);
    };
    let state = resp.headers.get_str(X_BACKEND_SHARDING_STATE).unwrap_or_default();
    if is_complete
        && state.eq_ignore_ascii_case("sharded")
        && let Some(bounds) = Bounds::of(&namespaces).map(Arc::new)
    {
        let how = namespaces::remember(req, &key, &bounds, app.options.recheck_listing_shard_ranges).await;
        if how == Found::Set {
            let count = bounds.count();
            let line = format_args!("Caching listing namespaces for {key} ({count} namespaces)");
            app.logger(req.trans_id()).info(line);
        }
        namespaces = namespaces::wanted(bounds.namespaces(), req, reverse);
    }
    from_shards(app, req, container, query, resp, namespaces).await
}

/// What metrics call lookups of namespaces that a listing is made of.
const LISTING: &str = "container.shard_listing";

/// What the servers of a sharded container of this `info` would answer, without its body, and its namespaces; as far as caches know both.
async fn cached_listing(
    app: &Arc<Application>,
    req: &mut Request,
    info: Option<&ContainerInfo>,
    key: &str,
) -> (Option<(Response, Arc<Bounds>)>, Found) {
    if app.options.recheck_listing_shard_ranges == 0 || memcache(req).is_none() {
        return (None, Found::Disabled);
    }
    if req.headers.get_bool(X_NEWEST) {
        return (None, Found::ForceSkip);
    }
    let headers = info.and_then(|info| info.to_headers(app.policies()));
    let Some(mut headers) = headers else { return (None, Found::Bypass) };
    let skip = app.options.container_listing_shard_ranges_skip_cache;
    let (bounds, found) = namespaces::cached(app, req, key, skip).await;
    headers.insert(X_BACKEND_CACHED_RESULTS, "true");
    headers.insert("Accept-Ranges", "bytes");
    headers.insert(CONTENT_TYPE, "application/json");
    let mut resp = Response::new(200);
    resp.headers = headers;
    (bounds.map(|bounds| (resp, bounds)), found)
}

/// The listing of a container that is made of `namespaces`, with the headers of `resp`. `query` is that of a listing.
async fn from_shards(
    app: &Arc<Application>,
    req: &mut Request,
    container: (&str, &str),
    query: &str,
    mut resp: Response,
    namespaces: Vec<Namespace>,
) -> Response {
    let logger = app.logger(req.trans_id());
    let history = req.env.get::<ShardListingHistory>().cloned().unwrap_or_default();
    history.visit(container.0, container.1);
    req.env.insert(history.clone());
    // Shards are listed for the policy of the root, which asks first.
    if !req.headers.contains(X_BACKEND_STORAGE_POLICY_INDEX)
        && let Some(index) = resp.headers.get(X_BACKEND_STORAGE_POLICY_INDEX)
    {
        req.headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, index);
    }
    let policy = req.headers.get_str(X_BACKEND_STORAGE_POLICY_INDEX).unwrap_or_default().to_owned();
    let asked = Asked::of(app, req);
    let version = api_version(req).to_owned();
    let (mut listing, mut statuses) = (Listing::default(), Vec::new());
    for namespace in &namespaces {
        let is_beside = !asked.prefix.is_empty() && namespace.is_beside(&asked.prefix);
        if is_beside || listing.last_is_subdir && namespace.is_within(&listing.last, asked.reverse) {
            continue;
        }
        let mut headers = req.headers.clone();
        let (account, container) = namespace.place();
        let is_visited = history.has(account, container);
        headers.insert(X_BACKEND_RECORD_TYPE, if is_visited { "object" } else { "auto" });
        // From what is listed on, so that names which are in the wrong shard are neither listed twice nor hide others.
        let marker = if listing.count > 0 { &listing.last } else { &asked.marker };
        let end_marker = match namespace.contains(&asked.end_marker) {
            true => asked.end_marker.clone(),
            false => namespace.end_marker(asked.reverse),
        };
        let limit = asked.limit.saturating_sub(listing.count).to_string();
        let params = [("limit", limit.as_str()), ("marker", marker), ("end_marker", &end_marker)];
        let path = format!("/{version}/{account}/{container}");
        let part = with_params(query, &params);
        let subreq = make_pre_authed_request(req, Method::Get, &path, &part, headers, "Swift", "SH");
        let mut answer = ProxyApp(app.clone()).call(subreq).await;
        statuses.push(answer.status.0);
        let found = match is_success(answer.status.0) {
            true => answer.body.collect(MAX_LISTING).await.ok().and_then(|body| listing.extend(&body)),
            false => None,
        };
        let Some(found) = found else {
            logger.error(format_args!("Aborting listing from shards due to bad response: {statuses:?}"));
            return Response::error(503);
        };
        let of_policy = [X_BACKEND_RECORD_STORAGE_POLICY_INDEX, X_BACKEND_STORAGE_POLICY_INDEX]
            .into_iter()
            .find_map(|name| answer.headers.get_str(name))
            .unwrap_or_default();
        if of_policy != policy {
            logger.error(format_args!(
                "Aborting listing from shards due to bad shard policy index: {of_policy} (expected {policy})"
            ));
            return Response::error(503);
        }
        resp.headers.insert(X_BACKEND_RECORD_STORAGE_POLICY_INDEX, &policy);
        if found > 0 && (listing.count >= asked.limit || asked.ends_at(&listing.last)) {
            break;
        }
    }
    if !asked.is_constrained && listing.count < asked.limit {
        // All of it was listed, and so is known better than the root has heard yet.
        resp.headers.insert(X_CONTAINER_OBJECT_COUNT, listing.count);
        resp.headers.insert(X_CONTAINER_BYTES_USED, listing.bytes);
    }
    let body = listing.finish();
    resp.headers.insert(CONTENT_LENGTH, body.len());
    resp.with_body(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_replaced() {
        let query =
            with_params("marker=a&states=x&prefix=%C3%A9&&limit=5", &[("limit", "2"), ("marker", "b/&")]);
        assert_eq!(query, "prefix=%C3%A9&limit=2&marker=b%2F%26");
    }

    #[test]
    fn parts_are_joined_as_they_came() {
        let mut listing = Listing::default();
        assert_eq!(listing.extend(b"[]"), Some(0));
        assert_eq!(listing.extend(br#"[{"name": "\u00e9", "bytes": 3}]"#), Some(1));
        assert_eq!(listing.extend(br#"[{"name": "f", "bytes": 4}, {"subdir": "x/"}]"#), Some(2));
        assert_eq!(listing.extend(b"{}"), None);
        assert_eq!((listing.count, listing.bytes, listing.last.as_str()), (3, 7, "x/"));
        assert!(listing.last_is_subdir);
        let whole = br#"[{"name": "\u00e9", "bytes": 3}, {"name": "f", "bytes": 4}, {"subdir": "x/"}]"#;
        assert_eq!(listing.finish(), whole.as_slice());
        assert_eq!(Listing::default().finish(), "[]");
    }
}
