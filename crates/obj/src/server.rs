//! The object server: requests on the objects of this node's devices.
//!
//! ```text
//! GET HEAD PUT POST DELETE  /DEVICE/PARTITION/ACCOUNT/CONTAINER/OBJECT    get.rs, put.rs, post.rs, delete.rs
//! REPLICATE                 /DEVICE/PARTITION[/SUFFIX-SUFFIX-...]         the hashes of a partition, pickled
//! SSYNC                     /DEVICE/PARTITION                             ssync/receiver.rs
//! OPTIONS                   /anything                                     the methods there are
//! ```
//!
//! `X-Backend-Storage-Policy-Index` names the policy, whose diskfile manager does the rest. Each request goes to its
//! device's thread pool as seldom as it can: a GET of a small object once, a PUT of one twice (its checks come before
//! the body is asked for), or once if the client sends the body unasked.
//!
//! Differences from Swift: a partition that is not a number is 400, where Swift would make a directory of that name; an
//! object that turns out to be corrupt while it is read is 404 if it is small, and otherwise a response that ends
//! before its last bytes, so that no reader takes it for whole.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use common::constraints::{check_utf8, request_timestamp};
use common::digest::Md5Group;
use common::expirer::ExpirerConfig;
use common::headers::{
    CONTENT_LENGTH, CONTENT_TYPE, RESERVED, X_BACKEND_FRAGMENT_PREFERENCES, X_BACKEND_NEXT_PART_POWER,
    X_BACKEND_OPEN_EXPIRED, X_BACKEND_REPLICATION, X_BACKEND_SSYNC_FRAG_INDEX,
    X_BACKEND_STORAGE_POLICY_INDEX, X_BACKEND_TIMESTAMP, X_TIMESTAMP, X_TRANS_ID,
};
use common::quote::quote_path;
use common::{PolicyIndex, Suffix, Timestamp, pickle};
use service::access_log;
use service::context::Context;
use service::http::client::Timeouts;
use service::http::{App, BoxFuture, Headers, Method, Request, Response, SharedApp};
use service::logs::Logger;
use service::statsd::LabeledStatsd;

use crate::diskfile::{DiskFile, DiskFileConf, DiskFileError, DiskFileManager, DiskFileRouter, OpenDiskFile};
use crate::rush::Rush;
use crate::ssync::SsyncReceiver;

/// Metadata headers that a client may set besides those with a prefix, unless `allowed_headers` says otherwise.
const ALLOWED_HEADERS: &str = "content-disposition, content-encoding, x-delete-at, x-object-manifest, \
    x-static-large-object, cache-control, content-language, expires, x-robots-tag";
/// Part of an object's metadata whatever is allowed.
const RESERVED_HEADERS: [&str; 3] = ["content-length", "deleted", "etag"];
const LABELED_TIMING: &str = "swift_object_server_request_timing";
const METHODS: [&str; 6] = ["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"];
const REPLICATION_METHODS: [&str; 2] = ["REPLICATE", "SSYNC"];

/// What `[app:object-server]` says, besides what concerns the disks.
pub(crate) struct Options {
    pub node_timeout: Duration,
    pub conn_timeout: Duration,
    pub container_update_timeout: Duration,
    pub max_upload_time: Duration,
    pub slow: Duration,
    pub keep_cache_private: bool,
    pub keep_cache_slo_manifest: bool,
    /// The part of full reads whose MD5 is checked.
    pub etag_validate_frac: f64,
    pub allowed_headers: Vec<String>,
    pub replication_server: bool,
    pub slow_delete_log_threshold: f64,
    pub expirer: ExpirerConfig,
}

impl Options {
    fn from_section(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        // Read by the HTTP server and the process around us, or without meaning here (green threads).
        for elsewhere in
            ["network_chunk_size", "client_timeout", "cooperative_period", "eventlet_tpool_num_threads"]
        {
            section.get(elsewhere);
        }
        ExpirerConfig::warnings(section).into_iter().for_each(|warning| ctx.logger.warning(warning));
        if section.bool("splice", false)? {
            ctx.logger
                .warning("splice has no effect: a GET checks what it sends, which it must see for that");
        }
        let allowed = section.list("allowed_headers", ALLOWED_HEADERS);
        let allowed = allowed.into_iter().map(|h| h.to_lowercase());
        Ok(Options {
            node_timeout: section.secs("node_timeout", 3.0)?,
            conn_timeout: section.secs("conn_timeout", 0.5)?,
            container_update_timeout: section.secs("container_update_timeout", 1.0)?,
            max_upload_time: section.secs("max_upload_time", 86400.0)?,
            slow: section.secs("slow", 0.0)?,
            keep_cache_private: section.bool("keep_cache_private", false)?,
            keep_cache_slo_manifest: section.bool("keep_cache_slo_manifest", false)?,
            etag_validate_frac: section.percent("etag_validate_pct", 100.0)?,
            allowed_headers: allowed.filter(|h| !RESERVED_HEADERS.contains(&h.as_str())).collect(),
            replication_server: section.bool("replication_server", true)?,
            slow_delete_log_threshold: section.float("slow_delete_log_threshold_seconds", 120.0)?,
            expirer: ExpirerConfig::from_section(
                section,
                &ctx.swift_conf.constraints.auto_create_account_prefix,
            )?,
        })
    }
}

/// What the handlers of all methods share.
pub(crate) struct ObjectServer {
    pub ctx: Context,
    pub options: Options,
    pub router: Arc<DiskFileRouter>,
    /// Of GETs and HEADs.
    pub rush: Rush,
    /// What GETs have read in a rush.
    pub small_gets: Md5Group,
    labeled: LabeledStatsd,
    ssync: SsyncReceiver,
    /// This server with its log around it: where SSYNC's subrequests go. Weak, because that holds us.
    logged: OnceLock<Weak<dyn App>>,
}

/// Where a request's object is.
pub(crate) struct Target {
    pub device: String,
    pub partition: u32,
    pub account: String,
    pub container: String,
    pub obj: String,
    pub policy: PolicyIndex,
    pub manager: Arc<DiskFileManager>,
    pub logger: Logger,
}

/// The factory of `egg:swift#object`.
pub(crate) fn app(section: &Section, ctx: &Context) -> Result<SharedApp, ConfigError> {
    let conf = DiskFileConf::from_section(section, &ctx.logger)?;
    let router = Arc::new(DiskFileRouter::new(&conf, &ctx.swift_conf, &ctx.clock, &ctx.logger, &ctx.statsd));
    let server = Arc::new(ObjectServer {
        ctx: ctx.clone(),
        options: Options::from_section(section, ctx)?,
        rush: Rush::new(ctx.clock.clone()),
        small_gets: Md5Group::default(),
        labeled: LabeledStatsd::from_section(section, &ctx.rng)?,
        ssync: SsyncReceiver::new(section, ctx, router.clone())?,
        router,
        logged: OnceLock::new(),
    });
    let shared: SharedApp = Arc::new(Shared(server.clone()));
    let logged = access_log::wrap(access_log::ServerType::Object, section, ctx, shared)?;
    // Set once, here; nobody else has seen the server yet.
    let _ = server.logged.set(Arc::downgrade(&logged));
    Ok(logged)
}

struct Shared(Arc<ObjectServer>);

impl App for Shared {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        Box::pin(self.0.handle(req))
    }
}

impl ObjectServer {
    async fn handle(self: &Arc<Self>, req: Request) -> Response {
        if !req.path_is_utf8 || !check_utf8(req.path.as_bytes(), true) {
            return Response::html(412, "Invalid UTF8 or contains NULL");
        }
        if !self.is_allowed(&req.method) {
            return Response::error(405);
        }
        let method = req.method.clone();
        let started = Instant::now();
        let labels = self.labeled.is_enabled().then(|| self.labels(&req));
        let mut labeled = None;
        let response = match method {
            Method::Get | Method::Head => self.get(req, &mut labeled).await,
            Method::Put => self.put(req).await,
            Method::Post => self.post(req).await,
            Method::Delete => self.delete(req).await,
            Method::Replicate => self.replicate(req).await,
            Method::Ssync => Ok(self.ssync(req).await),
            _ => Ok(self.options_response()),
        };
        if let Some(mut labels) = labels
            && method != Method::Options
        {
            let status = response.as_ref().unwrap_or_else(|refusal| refusal).status.0;
            labels.push(("status", labeled.unwrap_or(status).to_string()));
            self.labeled.timing(LABELED_TIMING, started.elapsed(), &labels);
        }
        if matches!(method, Method::Put | Method::Delete) && !self.options.slow.is_zero() {
            tokio::time::sleep(self.options.slow.saturating_sub(started.elapsed())).await;
        }
        response.unwrap_or_else(|mut refusal| {
            // Swift tells the length of a text of its own also when a HEAD doesn't get it.
            if method == Method::Head && refusal.headers.get(CONTENT_TYPE) == Some(b"text/plain") {
                let length = refusal.content_length().unwrap_or(0);
                refusal.headers.insert(CONTENT_LENGTH, length);
            }
            refusal
        })
    }

    /// What a request's labeled timing tells besides the status: what is known when its path and policy are.
    fn labels(&self, req: &Request) -> Vec<(&'static str, String)> {
        let mut labels = vec![("method", req.method.to_string())];
        match req.method {
            Method::Replicate | Method::Ssync => {
                let parts = split_and_validate_path(req, 2, 3);
                if let (Ok(parts), Ok(manager)) = (parts, self.manager(req)) {
                    labels.push(("policy", manager.policy().0.to_string()));
                    if req.method == Method::Replicate {
                        let is_skipped = parts.get(2).is_some_and(|suffixes| suffixes.as_deref() > Some(""));
                        labels.push(("skip_rehash", if is_skipped { "True" } else { "False" }.to_owned()));
                    }
                }
            }
            _ => {
                if let Ok(Target { account, container, policy, .. }) = self.target(req) {
                    labels.extend([("account", account), ("container", container)]);
                    labels.push(("policy", policy.0.to_string()));
                }
            }
        }
        labels
    }

    fn is_allowed(&self, method: &Method) -> bool {
        let name = method.as_str();
        METHODS.contains(&name) || (self.options.replication_server && REPLICATION_METHODS.contains(&name))
    }

    fn options_response(&self) -> Response {
        let mut methods = METHODS.to_vec();
        if self.options.replication_server {
            methods.extend(REPLICATION_METHODS);
        }
        methods.sort_unstable();
        Response::new(200)
            .with_header("Allow", methods.join(", "))
            .with_header("Server", format!("object-server/{}", service::VERSION))
    }

    async fn ssync(&self, req: Request) -> Response {
        match self.logged.get().and_then(Weak::upgrade) {
            Some(app) => self.ssync.ssync(req, app).await,
            // The server is going away.
            None => Response::error(503),
        }
    }

    /// The hashes of a partition; with suffixes in the path those are only marked to be hashed anew.
    async fn replicate(&self, req: Request) -> Result<Response, Response> {
        let manager = self.manager(&req)?;
        let parts = split_and_validate_path(&req, 2, 3)?;
        let [Some(device), Some(partition), suffixes] = parts.as_slice() else {
            return Err(invalid_path(&req));
        };
        let partition = parse_partition(partition)?;
        let asked = suffixes.as_deref().unwrap_or_default();
        let skip_rehash = !asked.is_empty();
        let suffixes: Vec<Suffix> = asked.split('-').filter_map(Suffix::parse).collect();
        if !skip_rehash && let Some(hashes) = manager.hashes_in_memory(device, partition) {
            return Ok(Response::html(200, hashes.to_answer()));
        }
        let logger = self.logger(&req.headers);
        let drive = device.clone();
        let hashes = self
            .ctx
            .disk_pools
            .run(device, move || manager.get_hashes(&drive, partition, &suffixes, skip_rehash))
            .await
            .map_err(|e| self.disk_error(e, device, &req.method, &logger))?;
        let none = || pickle::dumps(&pickle::Value::None);
        Ok(Response::html(200, hashes.map_or_else(none, |hashes| hashes.to_answer())))
    }

    /// The logger that marks lines with the request's transaction.
    pub fn logger(&self, headers: &Headers) -> Logger {
        match headers.get_str(X_TRANS_ID) {
            Some(txn) => self.ctx.logger.with_txn(txn),
            None => self.ctx.logger.clone(),
        }
    }

    fn manager(&self, req: &Request) -> Result<Arc<DiskFileManager>, Response> {
        let index = req.headers.get_str(X_BACKEND_STORAGE_POLICY_INDEX);
        let policy = self.ctx.swift_conf.policies.parse_header(index);
        let policy = policy.map_err(|e| Response::text(503, e.to_string()))?;
        let manager = self.router.get(policy.index).cloned();
        manager.ok_or_else(|| Response::text(503, format!("No policy with index {}", policy.index)))
    }

    /// What the path and headers of an object request name.
    pub fn target(&self, req: &Request) -> Result<Target, Response> {
        let manager = self.manager(req)?;
        let parts = split_and_validate_path(req, 5, 5)?;
        let parts: Option<[String; 5]> =
            parts.into_iter().collect::<Option<Vec<_>>>().and_then(|p| p.try_into().ok());
        let [device, partition, account, container, obj] = parts.ok_or_else(|| invalid_path(req))?;
        let partition = parse_partition(&partition)?;
        self.validate_internal(&account, &container, &obj)?;
        let (policy, logger) = (manager.policy(), self.logger(&req.headers));
        Ok(Target { device, partition, account, container, obj, policy, manager, logger })
    }

    /// Names with reserved characters begin with one, in the container as in the object.
    fn validate_internal(&self, account: &str, container: &str, obj: &str) -> Result<(), Response> {
        let misplaced = |name: &str| name.contains(RESERVED) && !name.starts_with(RESERVED);
        let refuse = |text: &'static str| Err(Response::html(400, text));
        if misplaced(account) {
            return refuse("Invalid reserved-namespace account");
        }
        if misplaced(container) {
            return refuse("Invalid reserved-namespace container");
        }
        if account.starts_with('.') || account == ".misplaced_objects" {
            return Ok(());
        }
        if misplaced(obj) {
            return refuse("Invalid reserved-namespace object");
        }
        match (container.starts_with(RESERVED), obj.starts_with(RESERVED)) {
            (true, false) => refuse("Invalid user-namespace object in reserved-namespace container"),
            (false, true) => refuse("Invalid reserved-namespace object in user-namespace container"),
            _ => Ok(()),
        }
    }

    /// The answer to what a diskfile couldn't do, where a method has no answer of its own.
    pub fn disk_error(&self, e: DiskFileError, device: &str, method: &Method, logger: &Logger) -> Response {
        match e {
            DiskFileError::DeviceUnavailable | DiskFileError::XattrNotSupported | DiskFileError::NoSpace => {
                Response::insufficient_storage(device)
            }
            DiskFileError::Collision => Response::error(403),
            DiskFileError::WrongEtag => Response::error(422),
            DiskFileError::StateChanged => Response::error(503),
            DiskFileError::NotExist | DiskFileError::Quarantined(_) => Response::error(404),
            DiskFileError::Deleted { timestamp, .. } | DiskFileError::Expired { timestamp, .. } => {
                Response::error(404).with_header(X_BACKEND_TIMESTAMP, timestamp.internal())
            }
            DiskFileError::LockTimeout(_) | DiskFileError::Io { .. } => {
                logger.error(format_args!("ERROR __call__ error with {method} on {device}: {e}"));
                Response::error(500)
            }
        }
    }

    pub fn backend_timeouts(&self) -> Timeouts {
        Timeouts { conn: self.options.conn_timeout, node: self.options.node_timeout }
    }

    pub fn is_allowed_header(&self, name: &[u8]) -> bool {
        self.options.allowed_headers.iter().any(|allowed| name.eq_ignore_ascii_case(allowed.as_bytes()))
    }
}

impl Target {
    /// The diskfile as the request's headers want it. To be called on a thread of the device.
    pub fn diskfile(&self, wants: &Wants) -> Result<DiskFile, DiskFileError> {
        let Target { device, partition, account, container, obj, .. } = self;
        let diskfile = self.manager.diskfile(device, *partition, account, container, obj)?;
        self.wanted(diskfile, wants)
    }

    /// As [`Target::diskfile`], for who only wants to open it.
    pub fn diskfile_to_open(&self, wants: &Wants) -> Result<DiskFile, DiskFileError> {
        let Target { device, partition, account, container, obj, .. } = self;
        let diskfile = self.manager.diskfile_to_open(device, *partition, account, container, obj)?;
        self.wanted(diskfile, wants)
    }

    /// The object, if it can be opened without waiting for the disk.
    pub fn open_in_memory(&self, wants: &Wants) -> Option<OpenDiskFile> {
        let Target { device, partition, account, container, obj, .. } = self;
        let device_path = self.manager.device_path_in_memory(device)?;
        let diskfile = self.manager.named(device_path, *partition, account, container, obj);
        self.wanted(diskfile, wants).ok()?.open_in_memory()
    }

    fn wanted(&self, diskfile: DiskFile, wants: &Wants) -> Result<DiskFile, DiskFileError> {
        let diskfile = diskfile
            .logger(&self.logger)
            .open_expired(wants.open_expired)
            .next_part_power(wants.next_part_power);
        if !self.manager.is_erasure() {
            return Ok(diskfile);
        }
        let frag_index = wants.frag_index.as_deref().map(|text| self.manager.validate_fragment_index(text));
        let frag_prefs = wants.frag_prefs.as_ref().map(|prefs| self.manager.validate_frag_prefs(prefs));
        Ok(diskfile.frag_index(frag_index.transpose()?).frag_prefs(frag_prefs.transpose()?))
    }
}

/// How a request wants its diskfile.
#[derive(Clone, Default)]
pub(crate) struct Wants {
    pub open_expired: bool,
    pub next_part_power: Option<u32>,
    /// EC: as in the header.
    pub frag_index: Option<String>,
    /// EC: as in the header, which is JSON.
    pub frag_prefs: Option<serde_json::Value>,
}

impl Wants {
    /// Expired objects are there for replication and for those who ask for them.
    pub fn expired(headers: &Headers) -> Self {
        let open_expired =
            headers.get_bool(X_BACKEND_OPEN_EXPIRED) || headers.get_bool(X_BACKEND_REPLICATION);
        Wants { open_expired, ..Wants::default() }
    }

    pub fn next_part_power(self, headers: &Headers) -> Self {
        Wants { next_part_power: headers.get_int(X_BACKEND_NEXT_PART_POWER), ..self }
    }

    /// SSYNC tells which fragment it brings: another one of the object is no reason to refuse it.
    pub fn frag_index(self, headers: &Headers) -> Self {
        Wants { frag_index: headers.get_str(X_BACKEND_SSYNC_FRAG_INDEX).map(str::to_owned), ..self }
    }

    /// What is no JSON is no preference.
    pub fn frag_prefs(self, headers: &Headers) -> Self {
        let prefs = headers.get(X_BACKEND_FRAGMENT_PREFERENCES);
        let prefs = prefs.and_then(|prefs| serde_json::from_slice(prefs).ok());
        Wants { frag_prefs: prefs.filter(|prefs: &serde_json::Value| !prefs.is_null()), ..self }
    }
}

/// The X-Timestamp that a write must have.
pub(crate) fn valid_timestamp(headers: &Headers) -> Result<Timestamp, Response> {
    request_timestamp(headers.get(X_TIMESTAMP)).map_err(|(status, text)| Response::text(status, text))
}

fn split_and_validate_path(req: &Request, min: usize, max: usize) -> Result<Vec<Option<String>>, Response> {
    let parts = req.split_path(min, max, true).map_err(|()| invalid_path(req))?;
    for (part, what) in parts.iter().zip(["device", "partition"]) {
        let part = part.as_deref().unwrap_or_default();
        if part.is_empty() || part == "." || part == ".." {
            return Err(Response::text(400, format!("Invalid {what}: {}", quote_path(part))));
        }
    }
    Ok(parts)
}

fn invalid_path(req: &Request) -> Response {
    Response::text(400, format!("Invalid path: {}", req.quoted_path()))
}

fn parse_partition(partition: &str) -> Result<u32, Response> {
    // What Python would read as another name for the same number names another directory.
    let canonical = |p: &u32| p.to_string() == partition;
    let invalid = || Response::text(400, format!("Invalid partition: {}", quote_path(partition)));
    partition.parse().ok().filter(canonical).ok_or_else(invalid)
}
