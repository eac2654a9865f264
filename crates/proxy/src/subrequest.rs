//! Requests that the proxy or a filter makes on its own behalf while it serves another.
//!
//! A subrequest starts from a chosen part of the request it serves: who asks, the transaction id, the caches;
//! never its body, nor headers other than those named here. Pre-authed ones pass every auth filter.

use service::http::{Environ, Headers, Method, Request};

use crate::environ::{
    AuthorizeOverride, Authorizer, ProxyContext, RemoteUser, ShardListingHistory, SwiftCache,
};
use crate::info::InfoCache;

/// Headers which a subrequest takes over.
const INHERITED_HEADERS: [&str; 6] =
    ["Host", "Origin", "Access-Control-Request-Method", "X-User-Id", "X-Project-Id", "Referer"];

/// Swift's `make_subrequest`: with the rights of the caller. `path` is not quoted, `query` is raw; `%(orig)s` in
/// `agent` stands for the User-Agent of the original request, an empty one means none; an empty `source` keeps
/// the original's.
pub fn make_subrequest(
    from: &Request,
    method: Method,
    path: &str,
    query: &str,
    headers: Headers,
    agent: &str,
    source: &'static str,
) -> Request {
    let mut req = Request::new(method, path);
    if !query.is_empty() {
        req = req.with_query(query);
    }
    req.env = inherited_env(&from.env);
    if !source.is_empty() {
        req.env.source = Some(source);
    }
    for name in INHERITED_HEADERS {
        if let Some(value) = from.headers.get(name) {
            req.headers.insert(name, value);
        }
    }
    if !agent.is_empty() {
        let orig = from.headers.get_str("User-Agent").unwrap_or("");
        req.headers.insert("User-Agent", agent.replace("%(orig)s", orig).trim());
    }
    req.headers.update(&headers);
    req
}

/// Swift's `make_pre_authed_request`: with all rights.
pub fn make_pre_authed_request(
    from: &Request,
    method: Method,
    path: &str,
    query: &str,
    headers: Headers,
    agent: &str,
    source: &'static str,
) -> Request {
    let mut req = make_subrequest(from, method, path, query, headers, agent, source);
    pre_auth(&mut req.env);
    req
}

/// Lets the request of this environ pass every auth filter.
pub fn pre_auth(env: &mut Environ) {
    env.remove::<Authorizer>();
    env.insert(AuthorizeOverride);
    env.insert(RemoteUser(".wsgi.pre_authed".into()));
}

/// The part of an environ that a subrequest shares with the request it serves. Swift: not the client's address, so
/// that the access log shows `-` for it.
pub fn inherited_env(env: &Environ) -> Environ {
    let mut new = Environ::default();
    new.trans_id.clone_from(&env.trans_id);
    new.local_addr = env.local_addr;
    new.start = env.start;
    new.source = env.source;
    new.https = env.https;
    new.share::<SwiftCache>(env);
    new.share::<InfoCache>(env);
    new.share::<Authorizer>(env);
    new.share::<AuthorizeOverride>(env);
    new.share::<RemoteUser>(env);
    new.share::<ProxyContext>(env);
    new.share::<ShardListingHistory>(env);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environ::{AccessLogMade, SwiftOwner};

    #[test]
    fn a_subrequest_takes_over_who_asks_but_not_what() {
        let mut from = Request::new(Method::Put, "/v1/a/c/o")
            .with_header("User-Agent", "curl")
            .with_header("Host", "example.com")
            .with_header("X-Object-Meta-A", "b")
            .with_body("data");
        from.env.trans_id = "tx1".to_owned();
        from.env.insert(SwiftOwner(true));
        from.env.insert(AccessLogMade);
        from.env.insert(RemoteUser("test".into()));
        from.env.insert(InfoCache::default());
        let extra = Headers::from([("X-Newest", "true")]);
        let req = make_subrequest(&from, Method::Get, "/v1/a/c/p q", "a=b", extra, "%(orig)s SLO", "SLO");
        assert_eq!(req.path_qs(), "/v1/a/c/p%20q?a=b");
        assert_eq!(req.headers.get_str("User-Agent"), Some("curl SLO"));
        assert_eq!(req.headers.get_str("Host"), Some("example.com"));
        assert_eq!(req.headers.get_str("X-Newest"), Some("true"));
        assert_eq!(req.headers.len(), 3);
        assert!(req.body.is_empty());
        assert_eq!((req.trans_id(), req.env.source), ("tx1", Some("SLO")));
        assert_eq!(req.env.get::<RemoteUser>(), Some(&RemoteUser("test".into())));
        assert!(req.env.get::<InfoCache>().is_some());
        assert!(req.env.get::<SwiftOwner>().is_none());
        assert!(req.env.get::<AccessLogMade>().is_none());
        assert!(req.env.get::<AuthorizeOverride>().is_none());

        let req = make_pre_authed_request(&from, Method::Get, "/v1/a", "", Headers::new(), "Swift", "X");
        assert!(req.env.get::<AuthorizeOverride>().is_some());
        assert_eq!(req.env.get::<RemoteUser>(), Some(&RemoteUser(".wsgi.pre_authed".into())));
    }
}
