//! What filters and the proxy app tell one another about a request, besides its headers.
//!
//! Swift keeps these in the WSGI environ under `swift.*` keys; here each key is a type of its own in the
//! request's `Environ`, so that a typo is a compile error. The Swift key stands beside each type.
//! `swift.trans_id` and `swift.source` are fields of `Environ`, `swift.infocache` is `info::InfoCache`.
//!
//! A request is given away to whoever is called, so what an inner app tells an outer filter goes through a value
//! that the outer one has put there and both share (`LogInfo`, `NonClientDisconnect`), or the response's `ext`.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use service::Context;
use service::http::{BoxFuture, Environ, Headers, Method, Request, Response};
use service::memcached::Cache;

/// An auth filter's say about a request. The app asks before it handles one, and for handlers which delay
/// denial again once it knows the container's ACL (`req.acl` in Swift).
pub trait Authorize: Send + Sync {
    /// `None` means authorized; a response is the denial.
    fn authorize<'a>(&'a self, req: &'a mut Request, acl: Option<&'a str>)
    -> BoxFuture<'a, Option<Response>>;
}

/// `swift.authorize`
#[derive(Clone)]
pub struct Authorizer(pub Arc<dyn Authorize>);

impl Authorizer {
    /// The denial by the request's authorizer, if it has one and that denies.
    pub async fn denial(req: &mut Request, acl: Option<&str>) -> Option<Response> {
        let authorizer = req.env.get::<Authorizer>().cloned()?;
        authorizer.0.authorize(req, acl).await
    }
}

/// `swift.authorize_override`: whoever made the request has vouched for it; auth filters leave it alone.
#[derive(Clone, Copy, Debug)]
pub struct AuthorizeOverride;

/// `swift_owner`: the caller owns the account and may see and set its privileged headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwiftOwner(pub bool);

impl SwiftOwner {
    pub fn of(env: &Environ) -> bool {
        env.get::<SwiftOwner>().is_some_and(|owner| owner.0)
    }
}

/// `reseller_request`: the caller is a reseller admin.
#[derive(Clone, Copy, Debug)]
pub struct ResellerRequest;

/// `REMOTE_USER`: the groups of an authenticated caller, comma separated, as an auth filter found them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteUser(pub Arc<str>);

/// `swift.clean_acl`: normalizes the value of an `X-Container-Read` or `-Write` header (name, value), or says
/// what is wrong with it.
#[derive(Clone, Copy)]
pub struct CleanAcl(pub fn(&str, &str) -> Result<String, String>);

/// `swift_sync_key`: the container's sync key, for the authorizer of `container_sync`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncKey(pub String);

/// `swift.cache`: put there by the `cache` filter.
#[derive(Clone)]
pub struct SwiftCache(pub Cache);

/// `swift.orig_req_method`: what the client sent, whatever filters made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrigMethod(pub Method);

/// `swift.callback.update_footers`: called at the end of an object's data; what it adds becomes metadata.
#[derive(Clone)]
pub struct UpdateFooters(pub Arc<dyn Fn(&mut Headers) + Send + Sync>);

/// `swift.content_type_overridden`: a filter set Content-Type, `swift_*` parameters in it are allowed.
#[derive(Clone, Copy, Debug)]
pub struct ContentTypeOverridden;

/// `swift.slo_override`, on a PUT that a large object's manifest may not have hooks for.
#[derive(Clone, Copy, Debug)]
pub struct SloOverride;

/// `swift.symlink_override`, on a PUT of a static link whose target may be yet to come.
#[derive(Clone, Copy, Debug)]
pub struct SymlinkOverride;

/// `swift.leave_relative_location`: do not make Location absolute.
#[derive(Clone, Copy, Debug)]
pub struct LeaveRelativeLocation;

/// `swift.format_listing`: false keeps `listing_formats` from changing a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatListing(pub bool);

/// `swift.proxy_access_log_made`
#[derive(Clone, Copy, Debug)]
pub struct AccessLogMade;

/// `swift.proxy_logging_status`: a status for the log other than the response's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingStatus(pub u16);

/// `swift.access_logging`'s user id
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessUserId(pub String);

/// `swift.backend_path`: the path that a filter such as s3api made of the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendPath(pub String);

/// `swift.log_info`: notes for the access log line, shared by all who handle the request.
#[derive(Clone, Debug, Default)]
pub struct LogInfo(Arc<Mutex<Vec<String>>>);

impl LogInfo {
    /// That of the request; made if there is none. Who wants to read it later calls this first.
    pub fn of(env: &mut Environ) -> LogInfo {
        if env.get::<LogInfo>().is_none() {
            env.insert(LogInfo::default());
        }
        env.get::<LogInfo>().cloned().unwrap_or_default()
    }

    pub fn append(&self, note: impl Into<String>) {
        self.0.lock().push(note.into());
    }

    pub fn notes(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// `swift.non_client_disconnect`: a response ended early, but not because the client went away. Put there by who
/// logs disconnects, set by the app's body.
#[derive(Clone, Debug, Default)]
pub struct NonClientDisconnect(Arc<AtomicBool>);

impl NonClientDisconnect {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The context of the pipeline that a request is in: whose statsd counts lookups of account and container info, and whose
/// rightmost access log they go to, past all other filters.
#[derive(Clone)]
pub struct ProxyContext(pub Context);

/// `swift.shard_listing_history`: containers which have returned namespaces for this request, or for any of those made for it.
#[derive(Clone, Debug, Default)]
pub struct ShardListingHistory(Arc<Mutex<HashSet<(String, String)>>>);

impl ShardListingHistory {
    pub fn visit(&self, account: &str, container: &str) {
        self.0.lock().insert((account.to_owned(), container.to_owned()));
    }

    pub fn has(&self, account: &str, container: &str) -> bool {
        self.0.lock().contains(&(account.to_owned(), container.to_owned()))
    }
}
