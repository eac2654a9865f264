//! What the account server and the container server share: devices, paths and parameters of requests, refusals.
//!
//! Requests are `/DEVICE/PARTITION/ACCOUNT[/CONTAINER[/OBJECT]]`. Everything a request does to files and databases is one job in the
//! device's pool. An `Err` in here is the response that ends a request.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use common::config::{ConfigError, FallocateReserve, Section, parse_int};
use common::constraints::request_timestamp;
use common::headers::{self, RESERVED, ServerType, is_true_value};
use common::quote::quote_path;
use common::timestamp::Timestamp;
use common::{Policies, PolicyIndex, SwiftConf};
use service::Context;
use service::http::{Headers, Method, Request, Response};

use crate::broker::{BrokerError, Shared};
use crate::connections::IDLE_LIMIT;
use crate::listing::Query;
use crate::metadata::{Metadata, MetadataLimits};
use crate::replication::known::KnownDatabases;
use crate::replication::rpc::{self, KnownReplica};

pub type Answer<T> = Result<T, Response>;

/// Of containers that other programs of the cluster keep; their objects may have any name.
pub const MISPLACED_OBJECTS_ACCOUNT: &str = ".misplaced_objects";

/// Where a server's databases are, and what it asks of a device before it touches them.
pub struct Devices {
    root: PathBuf,
    mount_check: bool,
    fallocate_reserve: FallocateReserve,
}

impl Devices {
    pub fn from_section(section: &Section) -> Result<Self, ConfigError> {
        // Read so that they count as known: both concern how Swift's own broker works.
        section.bool("db_preallocation", false)?;
        section.bool("db_query_logging", false)?;
        Ok(Self {
            root: section.str("devices", "/srv/node").into(),
            mount_check: section.bool("mount_check", true)?,
            fallocate_reserve: section.percent_or_bytes("fallocate_reserve", "1%")?,
        })
    }

    /// The path of a device that can be used, else 507.
    pub fn check_drive(&self, drive: &str) -> Answer<PathBuf> {
        common::fs::check_drive(&self.root, drive, self.mount_check)
            .ok_or_else(|| Response::insufficient_storage(drive))
    }

    /// As `check_drive`, for a request that adds data.
    pub fn check_drive_and_space(&self, drive: &str) -> Answer<PathBuf> {
        let path = self.check_drive(drive)?;
        if !common::fs::has_free_space(&path, self.fallocate_reserve).unwrap_or(false) {
            return Err(Response::insufficient_storage(drive));
        }
        Ok(path)
    }
}

/// The database file of a hash: `DEVICE/DATADIR/PARTITION/SUFFIX/HASH/HASH.db`.
pub fn db_path(device: &Path, datadir: &str, partition: &str, hash: &common::ObjHash) -> PathBuf {
    let name = hash.to_string();
    let mut path = device.join(datadir);
    path.extend([partition, &name[name.len() - 3..], &name]);
    path.join(format!("{name}.db"))
}

// --- paths ---

/// What a request's path names. Segments past the shortest path may be missing.
pub struct Target {
    pub drive: String,
    pub partition: String,
    pub account: String,
    pub container: Option<String>,
    pub object: Option<String>,
}

impl Target {
    /// Split a path of `min` to `max` segments; the last takes the rest of the path with `rest_with_last`.
    pub fn of(req: &Request, min: usize, max: usize, rest_with_last: bool) -> Answer<Self> {
        let Ok(parts) = req.split_path(min, max, rest_with_last) else {
            return Err(text_answer(400, format!("Invalid path: {}", req.quoted_path())));
        };
        let mut parts = parts.into_iter();
        let mut next = || parts.next().flatten();
        let (drive, partition) = (next().unwrap_or_default(), next().unwrap_or_default());
        for (what, name) in [("device", &drive), ("partition", &partition)] {
            if name.is_empty() || name == "." || name == ".." {
                return Err(text_answer(400, format!("Invalid {what}: {}", quote_path(name))));
            }
        }
        let target = Self {
            drive,
            partition,
            account: next().unwrap_or_default(),
            container: next().filter(|name| !name.is_empty()),
            object: next().filter(|name| !name.is_empty()),
        };
        Ok(target)
    }

    /// The reserved byte may only begin a name, and an object's name as well as its container's or neither.
    pub fn validate_reserved(&self, auto_create_prefix: &str) -> Answer<()> {
        validate_name(&self.account, "account")?;
        let Some(container) = &self.container else { return Ok(()) };
        validate_name(container, "container")?;
        let Some(object) = &self.object else { return Ok(()) };
        if self.account.starts_with(auto_create_prefix) || self.account == MISPLACED_OBJECTS_ACCOUNT {
            return Ok(());
        }
        validate_name(object, "object")?;
        match (container.starts_with(RESERVED), object.starts_with(RESERVED)) {
            (true, false) => {
                Err(html_answer(400, "Invalid user-namespace object in reserved-namespace container"))
            }
            (false, true) => {
                Err(html_answer(400, "Invalid reserved-namespace object in user-namespace container"))
            }
            _ => Ok(()),
        }
    }
}

fn validate_name(name: &str, what: &str) -> Answer<()> {
    if name.contains(RESERVED) && !name.starts_with(RESERVED) {
        return Err(html_answer(400, format!("Invalid reserved-namespace {what}")));
    }
    Ok(())
}

/// The body of a REPLICATE request; nothing of any other.
pub async fn replicate_body(req: &mut Request) -> Answer<Bytes> {
    if req.method != Method::Replicate {
        return Ok(Bytes::new());
    }
    req.body.collect(rpc::MAX_BODY).await.map_err(|error| text_answer(400, error.to_string()))
}

// --- headers and parameters ---

pub fn valid_timestamp(req: &Request) -> Answer<Timestamp> {
    request_timestamp(req.headers.get(headers::X_TIMESTAMP))
        .map_err(|(status, body)| text_answer(status, body))
}

/// A parameter of the query, which must be UTF-8.
pub fn param(req: &Request, name: &str) -> Answer<Option<String>> {
    let Some(value) = req.param_bytes(name) else { return Ok(None) };
    match String::from_utf8(value) {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(text_answer(400, format!("\"{name}\" parameter not valid UTF-8"))),
    }
}

/// The parameters of a listing. `limit` is at most `most`, else 412.
pub fn listing_query(req: &Request, most: usize) -> Answer<Query> {
    let marker = param(req, "marker")?.unwrap_or_default();
    let end_marker = param(req, "end_marker")?.unwrap_or_default();
    let prefix = param(req, "prefix")?;
    let delimiter = param(req, "delimiter")?.unwrap_or_default();
    let path = param(req, "path")?;
    let reverse = param(req, "reverse")?.is_some_and(|value| is_true_value(&value));
    let limit = constrain_limit(req, most)?;
    let allow_reserved = header_is_true(&req.headers, headers::X_BACKEND_ALLOW_RESERVED_NAMES);
    Ok(Query { limit, marker, end_marker, prefix, delimiter, path, reverse, allow_reserved })
}

fn constrain_limit(req: &Request, most: usize) -> Answer<usize> {
    let given =
        param(req, "limit")?.filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    match given.map(|digits| digits.parse()) {
        None => Ok(most),
        Some(Ok(limit)) if limit <= most => Ok(limit),
        Some(_) => Err(html_answer(412, format!("Maximum limit is {most}"))),
    }
}

pub fn header_is_true(headers: &Headers, name: &str) -> bool {
    headers.get_str(name).is_some_and(is_true_value)
}

/// The policy that a request names, `None` if it names none, 400 if it is none of ours.
pub fn policy_index(req: &Request, policies: &Policies) -> Answer<Option<i64>> {
    let Some(value) = req.headers.get(headers::X_BACKEND_STORAGE_POLICY_INDEX) else { return Ok(None) };
    let value = String::from_utf8_lossy(value);
    let number: Option<i64> = parse_int(&value);
    let known =
        number.and_then(|n| u32::try_from(n).ok()).filter(|n| policies.get(PolicyIndex(*n)).is_some());
    match (known, number) {
        (Some(known), _) => Ok(Some(i64::from(known))),
        // Swift: the message has Python's representation of what failed, the number if it was one.
        (None, Some(number)) => Err(invalid_policy(&number.to_string())),
        (None, None) => Err(invalid_policy(&format!("'{value}'"))),
    }
}

fn invalid_policy(value: &str) -> Response {
    text_answer(400, format!("Invalid X-Backend-Storage-Policy-Index {value}"))
}

/// The headers of a request that a database keeps as metadata.
pub fn metadata_of(
    headers: &Headers,
    server_type: ServerType,
    also: impl Fn(&str) -> bool,
    timestamp: Timestamp,
) -> Metadata {
    let mut metadata = Metadata::default();
    let timestamp = timestamp.internal();
    for (name, value) in headers.iter() {
        let name = String::from_utf8_lossy(name);
        if also(&name.to_ascii_lowercase()) || headers::is_sys_or_user_meta(server_type, &name) {
            let value = String::from_utf8_lossy(value).into_owned();
            metadata.set(headers::title_case(&name), value, timestamp.clone());
        }
    }
    metadata
}

/// Whether any header that `metadata_of` would keep is not UTF-8, which the limits refuse.
pub fn has_invalid_metadata(headers: &Headers, server_type: ServerType, also: impl Fn(&str) -> bool) -> bool {
    headers.iter().any(|(name, value)| {
        let lossy = String::from_utf8_lossy(name);
        let kept = also(&lossy.to_ascii_lowercase()) || headers::is_sys_or_user_meta(server_type, &lossy);
        kept && (std::str::from_utf8(name).is_err() || std::str::from_utf8(value).is_err())
    })
}

pub fn metadata_limits(conf: &SwiftConf) -> MetadataLimits {
    let constraints = &conf.constraints;
    MetadataLimits { count: constraints.max_meta_count, overall_size: constraints.max_meta_overall_size }
}

// --- answers ---

/// The response that an error of a broker makes. `Swift:` its controllers answer 500 to all that no check foresaw, a full device
/// included; that is 507 here.
pub fn broker_failure(ctx: &Context, req: &Request, drive: &str, error: &BrokerError) -> Response {
    if let BrokerError::InvalidMetadata(reason) = error {
        return html_answer(400, reason);
    }
    ctx.logger.with_txn(req.headers.get_str(headers::X_TRANS_ID).unwrap_or_default()).error(format_args!(
        "ERROR __call__ error with {} {} : {error}",
        req.method,
        req.quoted_path()
    ));
    if error.is_no_space() { Response::insufficient_storage(drive) } else { Response::error(500) }
}

/// A response whose body is told and not made of its status. Its length is known to a HEAD, too, as with swob.
pub fn text_answer(status: u16, body: impl Into<String>) -> Response {
    with_length(Response::new(status).with_header("Content-Type", "text/plain"), body.into())
}

/// The same of swob's default content type.
pub fn html_answer(status: u16, body: impl Into<String>) -> Response {
    with_length(Response::new(status), body.into())
}

fn with_length(response: Response, body: String) -> Response {
    response.with_header("Content-Length", body.len()).with_body(body)
}

/// Count how long an inner step of a verb took, as Swift's decorators of `PUT_object` and the like do.
pub fn time_step(ctx: &Context, step: &str, start: Instant, response: &Response) {
    if ctx.statsd.is_enabled() {
        let errors = if response.status.is_server_error() { "errors." } else { "" };
        ctx.statsd.timing_since(&format!("{step}.{errors}timing"), start);
    }
}

/// The answer to OPTIONS.
pub fn options(server: &str, allowed: &[&str]) -> Response {
    Response::new(200)
        .with_header("Allow", allowed.join(", "))
        .with_header("Server", format!("{server}/{}", service::VERSION))
}

/// A timestamp column as a header, in internal form.
pub fn internal(column: &str) -> String {
    Timestamp::parse(column).unwrap_or_default().internal()
}

/// A timestamp column as a header, in normal form.
pub fn normal(column: &str) -> String {
    Timestamp::parse(column).unwrap_or_default().normal()
}

/// The brokers' share in one server, and the task that closes its idle connections.
pub struct Databases {
    pub shared: Arc<Shared>,
    pub known: KnownDatabases<KnownReplica>,
    closing: Arc<AtomicBool>,
}

impl Databases {
    pub fn from_section(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let logger = ctx.logger.clone();
        let shared = Shared::new(ctx.clock.clone(), move |line: &str| logger.error(line));
        Ok(Self { shared, known: KnownDatabases::from_section(section)?, closing: Arc::default() })
    }

    /// Called after a request: as long as there are idle connections, somebody will close them.
    pub fn close_idle_later(&self) {
        if self.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (shared, closing) = (Arc::downgrade(&self.shared), self.closing.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_LIMIT / 2).await;
                closing.store(false, Ordering::Release);
                let remain = shared.upgrade().is_some_and(|shared| shared.connections.close_idle());
                // If a request put one back meanwhile, either it started another task or this one goes on.
                if !remain || closing.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> Request {
        Request::new(Method::Get, path)
    }

    #[test]
    fn paths_are_split_as_the_servers_need_them() {
        let target = Target::of(&request("/sda1/12/a/c/o/with/slash"), 4, 5, true).ok().unwrap();
        assert_eq!(target.object.as_deref(), Some("o/with/slash"));
        for (path, body) in [
            ("/sda1/12/a", "Invalid path: /sda1/12/a"),
            ("/./12/a/c", "Invalid device: ."),
            ("/sda1/../a/c", "Invalid partition: .."),
        ] {
            let refused = Target::of(&request(path), 4, 5, true).err().unwrap();
            assert_eq!(refused.status.0, 400);
            assert_eq!(refused.body.as_bytes(), Some(body.as_bytes()), "{path}");
        }
    }

    #[test]
    fn reserved_names_go_with_reserved_containers() {
        let check =
            |path: &str| Target::of(&request(path), 4, 5, true).ok().unwrap().validate_reserved(".").is_ok();
        assert!(check("/d/p/a/\0c/\0o"));
        assert!(check("/d/p/.a/c/\0o"));
        assert!(!check("/d/p/a/\0c/o"));
        assert!(!check("/d/p/a/c/\0o"));
        assert!(!check("/d/p/a/c\0/o"));
    }

    #[test]
    fn a_limit_over_the_most_is_412_and_no_number_is_none() {
        let limit =
            |query: &str| constrain_limit(&request("/").with_query(query), 10_000).map_err(|r| r.status.0);
        assert_eq!(limit("limit=10"), Ok(10));
        assert_eq!(limit("limit=0"), Ok(0));
        assert_eq!(limit("limit=-1"), Ok(10_000));
        assert_eq!(limit("limit="), Ok(10_000));
        assert_eq!(limit("limit=10001"), Err(412));
        assert_eq!(limit("limit=99999999999999999999999"), Err(412));
    }
}
