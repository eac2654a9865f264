//! The proxy server's app, at the end of its pipeline: checks a request, finds its controller, asks whether the
//! caller may, and lets the controller answer.
//!
//! `Application` also holds what all requests share: options, rings, which nodes are error limited.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::config::{ConfigError, Section};
use common::expirer::ExpirerConfig;
use common::headers::{
    X_AUTH_TOKEN, X_BACKEND_ALLOW_PRIVATE_METHODS, X_BACKEND_ALLOW_RESERVED_NAMES, X_STORAGE_TOKEN,
    X_TIMESTAMP, X_TRANS_ID, X_TRANS_ID_EXTRA,
};
use common::policy::{Policies, PolicyIndex};
use common::timestamp::Timestamp;
use ring::{Device, Node, Ring};
use serde_json::{Value, json};
use service::context::Context;
use service::http::{App, BoxFuture, Pool, Request, Response, SharedApp};
use service::logs::Logger;
use service::rng::Rng;
use service::statsd::LabeledStatsd;
use service::trans_id::gen_trans_id;

use crate::backend::Target;
use crate::controllers::Controller;
use crate::controllers::object::ec::EcPolicy;
use crate::environ::{Authorizer, OrigMethod};
use crate::error_limiter::{ErrorLimiter, node_to_string};
use crate::info::SkipCache;
use crate::mime_types::MimeTypes;
use crate::node_iter::NodeIter;
use crate::options::Options;
use crate::swift_info::SwiftInfo;
use crate::timings::NodeTimings;

/// The version of Swift that `/info` names: whose behaviour this is.
pub const SWIFT_VERSION: &str = "2.38.3";

/// How much of a backend's error body is read.
pub const MAX_ERROR_BODY: usize = 64 * 1024;

pub struct Application {
    pub ctx: Context,
    pub options: Options,
    pub expirer: ExpirerConfig,
    pub rng: Rng,
    pub pool: Pool,
    /// Swift: `app.statsd`.
    pub labeled: LabeledStatsd,
    pub timings: NodeTimings,
    pub mime_types: MimeTypes,
    pub swift_info: Arc<SwiftInfo>,
    pub backend_user_agent: String,
    ec_policies: HashMap<PolicyIndex, Arc<EcPolicy>>,
    error_limiter: ErrorLimiter,
}

/// The app as a pipeline holds it.
#[derive(Clone)]
pub struct ProxyApp(pub Arc<Application>);

impl App for ProxyApp {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        Box::pin(self.0.handle(req))
    }
}

/// `egg:swift#proxy`
pub fn app_factory(section: &Section, ctx: &Context) -> Result<SharedApp, ConfigError> {
    Ok(Arc::new(ProxyApp(Arc::new(Application::new(section, ctx)?))))
}

impl Application {
    pub fn new(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let policies = &ctx.swift_conf.policies;
        let options = Options::load(section, policies)?;
        for warning in options.warnings().into_iter().chain(ExpirerConfig::warnings(section)) {
            ctx.logger.warning(warning);
        }
        let swift_dir = section.str("swift_dir", "/etc/swift");
        let ring_error = |error: ring::RingError| ConfigError::in_file(swift_dir.clone(), error.to_string());
        ctx.rings.account().map_err(ring_error)?;
        ctx.rings.container().map_err(ring_error)?;
        for policy in policies.iter() {
            ctx.rings.file(&policy.object_ring_name).map_err(ring_error)?;
        }
        let mut ec_policies = HashMap::new();
        for policy in policies.iter() {
            let ec = EcPolicy::of(policy)
                .map_err(|error| ConfigError::in_file("swift.conf".to_owned(), error.to_string()))?;
            ec_policies.extend(ec.map(|ec| (policy.index, Arc::new(ec))));
        }
        let app = Self {
            ec_policies,
            error_limiter: ErrorLimiter::new(
                options.error_suppression_interval,
                options.error_suppression_limit,
                ctx.clock.clone(),
            ),
            expirer: ExpirerConfig::from_section(
                section,
                &ctx.swift_conf.constraints.auto_create_account_prefix,
            )?,
            rng: ctx.rng.clone(),
            pool: ctx.pool.clone(),
            labeled: LabeledStatsd::from_section(section, &ctx.rng)?,
            timings: NodeTimings::new(ctx.clock.clone(), options.timing_expiry),
            mime_types: MimeTypes::load(Path::new(&swift_dir)),
            swift_info: SwiftInfo::of(ctx),
            backend_user_agent: match &ctx.process.backend_user_agent {
                Some(agent) => agent.clone(),
                None => format!("proxy-server {}", std::process::id()),
            },
            ctx: ctx.clone(),
            options,
        };
        app.register_swift_info();
        Ok(app)
    }

    pub fn policies(&self) -> &Policies {
        &self.ctx.swift_conf.policies
    }

    /// An erasure coded policy, with its code.
    pub fn ec_policy(&self, index: PolicyIndex) -> Result<Arc<EcPolicy>, Response> {
        self.ec_policies.get(&index).cloned().ok_or_else(|| Response::error(503))
    }

    /// How many nodes may be asked at once for one answer.
    pub fn sources_of(&self, policy: Option<PolicyIndex>, nodes: &NodeIter) -> usize {
        let ec = policy.and_then(|index| self.ec_policies.get(&index));
        ec.map_or(nodes.num_primary_nodes, |ec| ec.ndata())
    }

    pub fn object_ring(&self, index: PolicyIndex) -> Result<Arc<Ring>, Response> {
        let policy = self.policies().get(index).ok_or_else(|| Response::error(503))?;
        let file = self.ctx.rings.file(&policy.object_ring_name).map_err(|error| self.no_ring(error))?;
        Ok(file.get())
    }

    pub fn container_ring(&self) -> Result<Arc<Ring>, Response> {
        self.ctx.rings.container().map_err(|error| self.no_ring(error))
    }

    pub fn account_ring(&self) -> Result<Arc<Ring>, Response> {
        self.ctx.rings.account().map_err(|error| self.no_ring(error))
    }

    /// What the app itself tells in `/info`.
    fn register_swift_info(&self) {
        let (limits, options) = (&self.ctx.swift_conf.constraints, &self.options);
        let policies: Vec<Value> = self
            .policies()
            .iter()
            .filter(|policy| !policy.is_deprecated)
            .map(|policy| {
                let mut info = json!({"name": policy.name, "aliases": policy.aliases.join(", ")});
                if policy.is_default {
                    info["default"] = true.into();
                }
                info
            })
            .collect();
        self.swift_info.register(
            "swift",
            json!({
                "version": SWIFT_VERSION,
                "strict_cors_mode": options.strict_cors_mode,
                "policies": policies,
                "allow_account_management": options.allow_account_management,
                "account_autocreate": options.account_autocreate,
                "allow_open_expired": options.allow_open_expired,
                "max_file_size": limits.max_file_size,
                "max_meta_name_length": limits.max_meta_name_length,
                "max_meta_value_length": limits.max_meta_value_length,
                "max_meta_count": limits.max_meta_count,
                "max_meta_overall_size": limits.max_meta_overall_size,
                "max_header_size": limits.max_header_size,
                "max_request_line": limits.max_request_line,
                "max_object_name_length": limits.max_object_name_length,
                "container_listing_limit": limits.container_listing_limit,
                "account_listing_limit": limits.account_listing_limit,
                "max_account_name_length": limits.max_account_name_length,
                "max_container_name_length": limits.max_container_name_length,
                "valid_api_versions": limits.valid_api_versions,
                "auto_create_account_prefix": limits.auto_create_account_prefix,
                "extra_header_count": limits.extra_header_count,
            }),
        );
    }

    fn no_ring(&self, error: ring::RingError) -> Response {
        self.ctx.logger.error(error);
        Response::error(500)
    }

    /// For log lines which belong to a request.
    pub fn logger(&self, trans_id: &str) -> Logger {
        self.ctx.logger.with_txn(trans_id)
    }

    async fn handle(self: &Arc<Self>, mut req: Request) -> Response {
        if let Some(refusal) = self.update_request(&mut req) {
            self.ctx.statsd.increment("errors");
            return refusal;
        }
        self.skip_caches(&mut req);
        let controller = match Box::pin(Controller::of(self, &mut req)).await {
            Ok(controller) => controller,
            Err(refusal) => return refusal,
        };
        if self.is_denied_host(&req) {
            return Response::error(403).with_body("Invalid host header");
        }
        self.set_trans_id(&mut req);
        let private = req.headers.get_bool(X_BACKEND_ALLOW_PRIVATE_METHODS);
        if !controller.allows(self, &req.method, private) {
            return Response::error(405).with_header("Allow", controller.allowed_methods(self).join(", "));
        }
        // Asked before the handler, always. Who passes is not asked again; who is denied may be, once the handler
        // knows more, if it is one that delays denial.
        match Authorizer::denial(&mut req, None).await {
            None => drop(req.env.remove::<Authorizer>()),
            Some(denial) if !controller.delays_denial(&req.method) => return denial,
            Some(_) => {}
        }
        if req.env.get::<OrigMethod>().is_none() {
            let method = req.method.clone();
            req.env.insert(OrigMethod(method));
        }
        controller.handle(self, req).await
    }

    /// Brings the request into the form that controllers expect, or refuses it.
    fn update_request(&self, req: &mut Request) -> Option<Response> {
        let timestamp = match req.headers.get(X_TIMESTAMP) {
            None => self.ctx.clock.now(),
            Some(value) => match std::str::from_utf8(value).ok().and_then(|text| Timestamp::parse(text).ok())
            {
                Some(timestamp) => timestamp,
                None => {
                    let value = String::from_utf8_lossy(value);
                    let text = format!("X-Timestamp should be a UNIX timestamp float value; was '{value}'");
                    return Some(Response::text(400, text));
                }
            },
        };
        req.headers.insert(X_TIMESTAMP, timestamp.internal());
        if let Some(token) = req.headers.get(X_STORAGE_TOKEN).map(<[u8]>::to_vec)
            && !req.headers.contains(X_AUTH_TOKEN)
        {
            req.headers.insert(X_AUTH_TOKEN, token);
        }
        // With both, the chunked encoding wins; forwarding the other would invite request smuggling.
        if is_chunked(req) {
            req.headers.remove("Content-Length");
        }
        if req.headers.get("Content-Length").is_some_and(|length| length.starts_with(b"-")) {
            return Some(Response::error(400).with_body("Invalid Content-Length"));
        }
        let internal = req.headers.get_bool(X_BACKEND_ALLOW_RESERVED_NAMES);
        if !req.path_is_utf8 || req.path.is_empty() || (!internal && req.path.contains('\0')) {
            return Some(Response::error(412).with_body("Invalid UTF8 or contains NULL"));
        }
        None
    }

    /// Lets this request ask anew for what is cached, once in a while.
    fn skip_caches(&self, req: &mut Request) {
        let draw = |chance: f64| chance > 0.0 && self.rng.next_f64() < chance;
        let skip = SkipCache {
            account: draw(self.options.account_existence_skip_cache),
            container: draw(self.options.container_existence_skip_cache),
        };
        if skip.account || skip.container {
            req.env.insert(skip);
        }
    }

    fn is_denied_host(&self, req: &Request) -> bool {
        if self.options.deny_host_headers.is_empty() {
            return false;
        }
        let host = req.headers.get_str("Host").unwrap_or("");
        let host = host.split(':').next().unwrap_or("");
        self.options.deny_host_headers.iter().any(|denied| denied == host)
    }

    fn set_trans_id(&self, req: &mut Request) {
        if req.env.trans_id.is_empty() {
            let mut suffix = self.options.trans_id_suffix.clone();
            if let Some(extra) = req.headers.get_str(X_TRANS_ID_EXTRA) {
                suffix.push('-');
                suffix.extend(extra.chars().take(32));
            }
            req.env.trans_id = gen_trans_id(&self.rng, self.ctx.clock.unix_secs(), &suffix);
        }
        req.headers.insert(X_TRANS_ID, &req.env.trans_id);
    }

    pub fn set_node_timing(&self, node: &Node, took: Duration) {
        if self.options.sorts_by_timing() {
            self.timings.set(node, took);
        }
    }

    pub fn error_limited(&self, node: &Device) -> bool {
        let limited = self.error_limiter.is_limited(node);
        if limited {
            self.ctx.statsd.increment("error_limiter.is_limited");
            self.ctx.logger.debug(format_args!("Node is error limited: {}", node_to_string(node)));
        }
        limited
    }

    /// Leaves the node alone from now on, for its error interval.
    pub fn error_limit(&self, logger: &Logger, node: &Device, error: &str) {
        self.error_limiter.limit(node);
        self.ctx.statsd.increment("error_limiter.forced_limit");
        logger.error(format_args!(
            "Node will be error limited for {:.2}s: {}, error: {error}",
            self.options.error_suppression_interval,
            node_to_string(node)
        ));
    }

    /// Logs and counts an error of a node.
    pub fn error_occurred(&self, logger: &Logger, node: &Device, error: &str) {
        logger.error(format_args!("{error} {}", node_to_string(node)));
        self.count_error(logger, node);
    }

    /// As `error_occurred`, when the node could not be talked to.
    pub fn exception_occurred(
        &self,
        logger: &Logger,
        node: &Device,
        server_type: &str,
        doing: &str,
        error: &dyn std::fmt::Display,
    ) {
        let node_name = node_to_string(node);
        logger.error(format_args!("ERROR with {server_type} server {node_name} re: {doing}: {error}"));
        self.count_error(logger, node);
    }

    fn count_error(&self, logger: &Logger, node: &Device) {
        if self.error_limiter.increment(node) {
            self.ctx.statsd.increment("error_limiter.incremented_limit");
            logger.error(format_args!(
                "Node will be error limited for {:.2}s: {}",
                self.options.error_suppression_interval,
                node_to_string(node)
            ));
        }
    }

    /// Counts what a response says against its node; false for a server error.
    pub fn check_response(
        &self,
        logger: &Logger,
        node: &Device,
        server_type: &str,
        status: u16,
        target: &Target,
        body: &[u8],
    ) -> bool {
        match status {
            507 => self.error_limit(logger, node, "ERROR Insufficient Storage"),
            500..600 => {
                let body = String::from_utf8_lossy(&body[..body.len().min(1024)]);
                let body = if body.is_empty() { String::new() } else { format!(" {body}") };
                let Target { method, path, .. } = target;
                let text =
                    format!("ERROR {status}{body} Trying to {method} {path} From {server_type} Server");
                self.error_occurred(logger, node, &text);
            }
            _ => return true,
        }
        false
    }
}

pub fn is_chunked(req: &Request) -> bool {
    let encodings = req.headers.get("Transfer-Encoding").unwrap_or_default();
    let last = encodings.rsplit(|b| *b == b',').next().unwrap_or_default();
    last.trim_ascii().eq_ignore_ascii_case(b"chunked")
}
