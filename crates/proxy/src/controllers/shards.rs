//! Sharded containers: the listing of one is made of those of its shards, and an object's row goes to the shard that has its name.
//!
//! The container's server answers with namespaces: which containers hold which names. For a listing they are asked one after the
//! other, each from the last name listed so far and up to its own end, until there is as much as was asked for. A shard may be sharded
//! itself, and answers the same way; a container that was asked before for this request is asked for the objects that it has, as a
//! container may fill a gap between its shards with itself. What this does not do: keep namespaces in the cache.

use std::sync::Arc;

use bytes::Bytes;
use common::headers::{
    CONTENT_LENGTH, X_BACKEND_INCLUDE_DELETED, X_BACKEND_RECORD_SHARD_FORMAT,
    X_BACKEND_RECORD_STORAGE_POLICY_INDEX, X_BACKEND_RECORD_TYPE, X_BACKEND_STORAGE_POLICY_INDEX,
    X_CONTAINER_BYTES_USED, X_CONTAINER_OBJECT_COUNT, is_true_value,
};
use common::quote::quote;
use serde_json::Value;
use service::http::{App, Headers, Method, Request, Response};

use crate::app::{Application, ProxyApp};
use crate::environ::ShardListingHistory;
use crate::info::is_success;
use crate::subrequest::make_pre_authed_request;

/// Ten thousand of the longest names are less.
const MAX_LISTING: usize = 128 << 20;

/// Which names a container has: all after `lower` up to `upper`, where an empty one is no bound.
#[derive(Debug, PartialEq, Eq)]
struct Namespace {
    account: String,
    container: String,
    lower: String,
    upper: String,
}

impl Namespace {
    fn from_json(item: &Value) -> Option<Self> {
        let text = |name: &str| item.get(name)?.as_str().map(str::to_owned);
        let (account, container) =
            text("name")?.split_once('/').map(|(a, c)| (a.to_owned(), c.to_owned()))?;
        Some(Self { account, container, lower: text("lower")?, upper: text("upper")? })
    }

    fn list_from_json(body: &[u8]) -> Option<Vec<Self>> {
        serde_json::from_slice::<Vec<Value>>(body).ok()?.iter().map(Self::from_json).collect()
    }

    fn contains(&self, name: &str) -> bool {
        !name.is_empty()
            && self.lower.as_str() < name
            && (self.upper.is_empty() || name <= self.upper.as_str())
    }

    /// Whether no name with `prefix` is in it.
    fn is_beside(&self, prefix: &str) -> bool {
        let ends_before = !self.upper.is_empty() && self.upper.as_str() < prefix;
        ends_before || just_past(prefix).is_some_and(|past| !self.lower.is_empty() && self.lower >= past)
    }

    /// Where a listing of it ends.
    fn end_marker(&self, reverse: bool) -> String {
        match (reverse, self.upper.as_str()) {
            (true, _) => self.lower.clone(),
            (false, "") => String::new(),
            (false, upper) => format!("{upper}\0"),
        }
    }

    /// Whether all that is left of it is in a subdir that is listed already.
    fn is_within(&self, subdir: &str, reverse: bool) -> bool {
        let end = if reverse { &self.lower } else { &self.upper };
        end.starts_with(subdir)
    }
}

/// The first text after all that begin with `prefix`.
fn just_past(prefix: &str) -> Option<String> {
    let last = prefix.chars().next_back()?;
    let next = char::from_u32(last as u32 + 1)?;
    Some(format!("{}{next}", &prefix[..prefix.len() - last.len_utf8()]))
}

/// Let a container's server answer with namespaces if the container is sharded.
pub fn ask_for_namespaces(req: &mut Request, query: &str) -> String {
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
    (account, container): (&str, &str),
    object: &str,
) -> Option<(String, String)> {
    let headers =
        Headers::from([(X_BACKEND_RECORD_TYPE, "shard"), (X_BACKEND_RECORD_SHARD_FORMAT, "namespace")]);
    let query = format!("format=json&states=updating&includes={}", quote(object, ""));
    let path = format!("/{}/{account}/{container}", api_version(req));
    let subreq = make_pre_authed_request(req, Method::Get, &path, &query, headers, "Swift", "SH");
    let mut answer = ProxyApp(app.clone()).call(subreq).await;
    if !is_success(answer.status.0) {
        return None;
    }
    let body = answer.body.collect(MAX_LISTING).await.ok()?;
    let namespace = Namespace::list_from_json(&body)?.into_iter().next()?;
    Some((namespace.account, namespace.container))
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

/// The listing of a container, whose server has answered `resp` to a request that asked for namespaces. `query` is that of a listing.
pub async fn listing(
    app: &Arc<Application>,
    req: &mut Request,
    container: (&str, &str),
    query: &str,
    mut resp: Response,
) -> Response {
    let record_type = resp.headers.get_str(X_BACKEND_RECORD_TYPE).unwrap_or_default();
    if !is_success(resp.status.0) || !record_type.eq_ignore_ascii_case("shard") {
        return resp;
    }
    let logger = app.logger(req.trans_id());
    let body = resp.body.collect(MAX_LISTING).await.unwrap_or_default();
    let Some(namespaces) = Namespace::list_from_json(&body) else {
        // Swift: it lets the client have what it could not read.
        logger.error(format_args!("Failed to get namespaces from {}: invalid data", req.path_qs()));
        return Response::error(503);
    };
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
        let is_visited = history.has(&namespace.account, &namespace.container);
        headers.insert(X_BACKEND_RECORD_TYPE, if is_visited { "object" } else { "auto" });
        // From what is listed on, so that names which are in the wrong shard are neither listed twice nor hide others.
        let marker = if listing.count > 0 { &listing.last } else { &asked.marker };
        let end_marker = match namespace.contains(&asked.end_marker) {
            true => asked.end_marker.clone(),
            false => namespace.end_marker(asked.reverse),
        };
        let limit = asked.limit.saturating_sub(listing.count).to_string();
        let params = [("limit", limit.as_str()), ("marker", marker), ("end_marker", &end_marker)];
        let path = format!("/{version}/{}/{}", namespace.account, namespace.container);
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

    fn namespace(lower: &str, upper: &str) -> Namespace {
        Namespace { account: "a".into(), container: "c".into(), lower: lower.into(), upper: upper.into() }
    }

    /// From comparisons of `Namespace` of 2.38.3.
    #[test]
    fn shards_beside_a_prefix_are_not_asked() {
        let middle = namespace("d", "m");
        for (prefix, is_beside) in
            [("d", false), ("c", true), ("m", false), ("l", false), ("ma", true), ("cz", true), ("da", false)]
        {
            assert_eq!(middle.is_beside(prefix), is_beside, "{prefix}");
        }
        assert!(!namespace("", "").is_beside("x"));
        assert!(!namespace("", "m").is_beside("a"));
        assert!(namespace("b", "").is_beside("a"));
        assert!(namespace("\u{10ffff}", "").is_beside("a"));
        assert_eq!(just_past("a\u{10ffff}"), None);
    }

    #[test]
    fn a_listing_ends_where_the_namespace_does() {
        assert_eq!(namespace("d", "m").end_marker(false), "m\0");
        assert_eq!(namespace("d", "").end_marker(false), "");
        assert_eq!(namespace("d", "m").end_marker(true), "d");
        assert!(namespace("d", "m").contains("m") && !namespace("d", "m").contains("d"));
        assert!(!namespace("", "").contains(""));
        assert!(namespace("d", "m/x").is_within("m/", false) && !namespace("d", "m/x").is_within("m/", true));
    }

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
