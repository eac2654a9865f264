//! Namespaces: which container of a sharded one has which names, and what proxies remember of it.
//!
//! They are kept without their upper bounds, so that a gap belongs to the namespace before it: for the request in `InfoCache`, and in
//! memcached as Swift's proxies do it, so that both can share one. There `listing` ones are those that a listing is made of, `updating`
//! ones those that rows go to.
//!
//! When many requests miss the `updating` ones of a container at once, the first few of them (`namespace_cache_tokens_per_session`)
//! ask its servers, and the others wait for what they will have put into memcached: who asks takes a token there, which lasts for
//! ten times the usual time of an answer (`namespace_avg_backend_fetch_time`).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use service::http::Request;
use service::memcached::Cache;

use crate::app::Application;
use crate::info::{Found, InfoCache, memcache};

/// Which names a container has: all after `lower` up to `upper`, where an empty one is no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `account/container`
    pub name: String,
    pub lower: String,
    pub upper: String,
}

impl Namespace {
    fn from_json(item: &Value) -> Option<Self> {
        let text = |name: &str| item.get(name)?.as_str().map(str::to_owned);
        let name = text("name")?;
        name.contains('/').then_some(())?;
        Some(Self { name, lower: text("lower")?, upper: text("upper")? })
    }

    pub fn list_from_json(body: &[u8]) -> Option<Vec<Self>> {
        serde_json::from_slice::<Vec<Value>>(body).ok()?.iter().map(Self::from_json).collect()
    }

    /// The account and the container that it is.
    pub fn place(&self) -> (&str, &str) {
        self.name.split_once('/').unwrap_or((&self.name, ""))
    }

    pub fn contains(&self, name: &str) -> bool {
        !name.is_empty()
            && self.lower.as_str() < name
            && (self.upper.is_empty() || name <= self.upper.as_str())
    }

    /// Whether no name with `prefix` is in it.
    pub fn is_beside(&self, prefix: &str) -> bool {
        let ends_before = !self.upper.is_empty() && self.upper.as_str() < prefix;
        ends_before || just_past(prefix).is_some_and(|past| !self.lower.is_empty() && self.lower >= past)
    }

    /// Where a listing of it ends.
    pub fn end_marker(&self, reverse: bool) -> String {
        match (reverse, self.upper.as_str()) {
            (true, _) => self.lower.clone(),
            (false, "") => String::new(),
            (false, upper) => format!("{upper}\0"),
        }
    }

    /// Whether all that is left of it is in a subdir that is listed already.
    pub fn is_within(&self, subdir: &str, reverse: bool) -> bool {
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

/// Those of `namespaces` that a listing needs; in the order of the listing.
pub fn wanted(namespaces: Vec<Namespace>, req: &Request, reverse: bool) -> Vec<Namespace> {
    let param = |name| req.param(name).unwrap_or_default();
    let (includes, mut marker, mut end_marker) = (param("includes"), param("marker"), param("end_marker"));
    if reverse {
        std::mem::swap(&mut marker, &mut end_marker);
    }
    let is_wanted = |namespace: &Namespace| match includes.is_empty() {
        false => namespace.contains(&includes),
        true => {
            (end_marker.is_empty() || end_marker > namespace.lower)
                && (marker.is_empty() || namespace.upper.is_empty() || marker < namespace.upper)
        }
    };
    let mut wanted: Vec<_> = namespaces.into_iter().filter(is_wanted).collect();
    if reverse {
        wanted.reverse();
    }
    wanted
}

/// The lower bound of each namespace, and its name, in the order of the bounds. There is at least one.
#[derive(Debug, PartialEq, Eq)]
pub struct Bounds(Vec<(String, String)>);

impl Bounds {
    /// What overlaps with one before it is left out: servers put the shards of a container before itself. `None` of none.
    pub fn of(namespaces: &[Namespace]) -> Option<Self> {
        // Where the last one ended; `None` is the end of all names.
        let mut end = Some(namespaces.first()?.lower.as_str());
        let mut bounds = Vec::with_capacity(namespaces.len());
        for Namespace { name, lower, upper } in namespaces {
            if end.is_some_and(|end| lower.as_str() >= end) {
                bounds.push((lower.clone(), name.clone()));
                end = Some(upper.as_str()).filter(|upper| !upper.is_empty());
            }
        }
        Some(Self(bounds))
    }

    fn from_json(value: &Value) -> Option<Self> {
        let bound = |bound: &Value| {
            let text = |at: usize| bound.get(at)?.as_str().map(str::to_owned);
            Some((text(0)?, text(1).filter(|name| name.contains('/'))?))
        };
        let bounds: Vec<_> = value.as_array()?.iter().map(bound).collect::<Option<_>>()?;
        (!bounds.is_empty()).then_some(Self(bounds))
    }

    fn to_json(&self) -> Value {
        self.0.iter().map(|(lower, name)| json!([lower, name])).collect()
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Account and container of the namespace that has `name`. Swift: what is before the first is in the last.
    pub fn place_of(&self, name: &str) -> Option<(&str, &str)> {
        let after = self.0.partition_point(|(lower, _)| lower.as_str() < name);
        let (_, place) = after.checked_sub(1).map_or(self.0.last(), |at| self.0.get(at))?;
        place.split_once('/')
    }

    pub fn namespaces(&self) -> Vec<Namespace> {
        let upper = |at: usize| self.0.get(at + 1).map(|(lower, _)| lower.clone()).unwrap_or_default();
        let namespace = |(at, (lower, name)): (usize, &(String, String))| Namespace {
            name: name.clone(),
            lower: lower.clone(),
            upper: upper(at),
        };
        self.0.iter().enumerate().map(namespace).collect()
    }
}

/// What is cached under `key`. `skip` is how often, of 1, memcached is not asked.
pub async fn cached(
    app: &Application,
    req: &mut Request,
    key: &str,
    skip: f64,
) -> (Option<Arc<Bounds>>, Found) {
    let infocache = InfoCache::of(req);
    if let Some(bounds) = infocache.namespaces(key) {
        return (Some(bounds), Found::InfoCache);
    }
    let Some(memcache) = memcache(req) else { return (None, Found::Disabled) };
    if skip > 0.0 && app.rng.next_f64() < skip {
        return (None, Found::Skip);
    }
    let Ok(found) = memcache.try_get(key).await else { return (None, Found::Error) };
    let Some(bounds) = found.and_then(|value| Bounds::from_json(&value)) else { return (None, Found::Miss) };
    let bounds = Arc::new(bounds);
    infocache.insert_namespaces(key, bounds.clone());
    (Some(bounds), Found::Hit)
}

/// Caches the namespaces for `ttl` seconds, and says how that went.
pub async fn remember(req: &mut Request, key: &str, bounds: &Arc<Bounds>, ttl: u64) -> Found {
    InfoCache::of(req).insert_namespaces(key, bounds.clone());
    let Some(memcache) = memcache(req) else { return Found::Disabled };
    match memcache.try_set(key, &bounds.to_json(), ttl).await {
        Ok(()) => Found::Set,
        Err(_) => Found::SetError,
    }
}

/// A request that has missed what is cached under a key, among others that may have missed it too.
pub struct Session {
    memcache: Cache,
    key: String,
    token_key: String,
    fetch_time: Duration,
    has_token: bool,
    /// `token` and `lack_retries` of the metric.
    labels: Vec<(&'static str, String)>,
}

impl Session {
    /// Takes a token if there are tokens to be had.
    pub async fn enter(app: &Application, memcache: Cache, key: &str) -> Self {
        let fetch_time = app.options.namespace_avg_backend_fetch_time;
        let token_key = format!("_cache_token/{key}");
        let most = app.options.namespace_cache_tokens_per_session;
        let mut has_token = false;
        let token = match most {
            0 => "disabled",
            _ => match memcache.incr(&token_key, 1, (fetch_time * 10).as_secs()).await {
                Ok(count) if count <= most => {
                    has_token = true;
                    "with_token"
                }
                Ok(_) => "no_token",
                Err(_) => "error",
            },
        };
        let labels = vec![("token", token.to_owned())];
        Self { memcache, key: key.to_owned(), token_key, fetch_time, has_token, labels }
    }

    pub fn has_token(&self) -> bool {
        self.has_token
    }

    /// Waits for what others will have found, if they have all the tokens.
    pub async fn wait(&mut self) -> Option<Arc<Bounds>> {
        if self.labels.iter().all(|(_, token)| token != "no_token") {
            return None;
        }
        let end = tokio::time::Instant::now() + self.fetch_time * 10;
        let (mut interval, mut waits, mut lacks) = (self.fetch_time.mul_f64(1.5), 0, false);
        let mut found = None;
        while found.is_none() && (tokio::time::Instant::now() < end || waits < 3) {
            if tokio::time::Instant::now() < end {
                tokio::time::sleep(interval).await;
                waits += 1;
            } else {
                // One last look of who was not let run in time.
                lacks = true;
                waits = 3;
            }
            found = self.memcache.get(&self.key).await.and_then(|value| Bounds::from_json(&value));
            interval *= 2;
        }
        self.labels.push(("lack_retries", if lacks { "True" } else { "False" }.to_owned()));
        found.map(Arc::new)
    }

    /// What was wanted is in memcached: the tokens of all who look for it are given back.
    pub async fn finish(&self) {
        if self.has_token {
            self.memcache.delete(&self.token_key).await;
        }
    }

    /// Counts how it went: what the servers answered, if they were asked, and whether that was cached.
    pub fn record(
        mut self,
        app: &Application,
        (account, container): (&str, &str),
        status: Option<u16>,
        set: Option<Found>,
    ) {
        let named = [("resource", "shard_updating"), ("account", account), ("container", container)];
        self.labels.extend(named.map(|(name, value)| (name, value.to_owned())));
        let event = if status.is_some() { "backend_reqs" } else { "cache_served" };
        self.labels.push(("event", event.to_owned()));
        self.labels.extend(status.map(|status| ("status", status.to_string())));
        self.labels.extend(set.map(|set| ("set_cache_state", set.name().to_owned())));
        app.labeled.increment("swift_coop_cache", &self.labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(lower: &str, upper: &str) -> Namespace {
        Namespace { name: format!("a/{lower}-{upper}"), lower: lower.into(), upper: upper.into() }
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

    /// The examples of `NamespaceBoundList.parse`, and `get_namespace` of names at the bounds.
    #[test]
    fn bounds_are_those_of_swift() {
        let bounds = |bounds: &[(&str, &str)]| {
            let namespaces: Vec<_> = bounds.iter().map(|(lower, upper)| namespace(lower, upper)).collect();
            Bounds::of(&namespaces).map(|bounds| bounds.to_json().to_string())
        };
        assert_eq!(bounds(&[]), None);
        let told = bounds(&[("a", "b"), ("b", "c"), ("a", "c")]).unwrap();
        assert_eq!(told, r#"[["a","a/a-b"],["b","a/b-c"]]"#);
        let told = bounds(&[("a", "b"), ("d", "e")]).unwrap();
        assert_eq!(told, r#"[["a","a/a-b"],["d","a/d-e"]]"#);
        let told = bounds(&[("", "m"), ("m", ""), ("", "")]).unwrap();
        assert_eq!(told, r#"[["","a/-m"],["m","a/m-"]]"#);
        let whole = Bounds::from_json(&serde_json::from_str(&told).unwrap()).unwrap();
        for (name, place) in [("a", "-m"), ("m", "-m"), ("m\0", "m-"), ("z", "m-")] {
            assert_eq!(whole.place_of(name), Some(("a", place)), "{name}");
        }
        assert_eq!(whole.namespaces(), [namespace("", "m"), namespace("m", "")]);
        let gap = Bounds::of(&[namespace("d", "m"), namespace("m", "")]).unwrap();
        assert_eq!(gap.place_of("a"), Some(("a", "m-")));
        for bad in ["[]", "{}", "[[]]", r#"[["a"]]"#, r#"[["a", "no slash"]]"#, "[[1, 2]]"] {
            assert_eq!(Bounds::from_json(&serde_json::from_str(bad).unwrap()), None, "{bad}");
        }
    }
}
