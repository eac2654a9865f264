//! `proxy-logging`: one line in the access log for every request, when its response has been sent, and its timings
//! and bytes to statsd.
//!
//! The filter stands twice in the usual pipeline. The left one logs the client's request; the right one logs only
//! the subrequests of filters between them, told apart by `AccessLogMade`, which subrequests do not inherit.
//! The template of the line and the `access_log_*` options are Swift's; see `service::log_format` for its grammar.
//! A client which goes away is logged as 499.
//!
//! Without Swift's labelled statsd metrics (`statsd_label_mode`), which are off by default.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::clock::Clock;
use common::config::{ConfigError, Section, SwiftConf};
use common::headers::{X_AUTH_TOKEN, X_BACKEND_STORAGE_POLICY_INDEX, title_case_bytes};
use common::policy::PolicyIndex;
use service::Context;
use service::http::message::split_path;
use service::http::{App, Body, BodyError, BodyStream, BoxFuture, Headers, Request, Response, SharedApp};
use service::log_format::{Anonymizer, LogFormat, Value};
use service::logs::{Level, Logger};
use service::statsd::Statsd;

use super::access_log::{AccessLog, Record};
use crate::environ::{AccessLogMade, BackendPath, LogInfo, OrigMethod};

/// `log_msg_template` unless the configuration has another.
const DEFAULT_TEMPLATE: &str = "{client_ip} {remote_addr} {end_time.datetime} {method} {path} {protocol} \
    {status_int} {referer} {user_agent} {auth_token} {bytes_recvd} {bytes_sent} {client_etag} \
    {transaction_id} {headers} {request_time} {source} {log_info} {start_time} {end_time} {policy_index} \
    {access_user_id}";

const FIELDS: [&str; 28] = [
    "end_time",
    "start_time",
    "client_ip",
    "remote_addr",
    "domain",
    "path",
    "referer",
    "user_agent",
    "headers",
    "client_etag",
    "account",
    "container",
    "object",
    "method",
    "protocol",
    "status_int",
    "auth_token",
    "bytes_recvd",
    "bytes_sent",
    "transaction_id",
    "request_time",
    "source",
    "log_info",
    "policy_index",
    "ttfb",
    "pid",
    "wire_status_int",
    "access_user_id",
];

const DEFAULT_METHODS: &str = "GET,HEAD,POST,PUT,DELETE,COPY,OPTIONS,UPDATE";

/// Headers of which only the first characters are logged.
const SENSITIVE_HEADERS: [&str; 2] = [X_AUTH_TOKEN, "X-Storage-Token"];

/// Options that the access log may have otherwise than the proxy: `access_` before the name.
///
/// Swift: its sample configuration has `access_log_address`, but it is not read, and neither is `log_address`.
const ACCESS_OPTIONS: [&str; 11] = [
    "log_address",
    "log_facility",
    "log_name",
    "log_level",
    "log_udp_host",
    "log_udp_port",
    "log_statsd_host",
    "log_statsd_port",
    "log_statsd_default_sample_rate",
    "log_statsd_sample_rate_factor",
    "log_statsd_metric_prefix",
];

pub struct ProxyLogging {
    app: SharedApp,
    log: Arc<AccessLogger>,
}

/// Writes the lines.
struct AccessLogger {
    logger: Logger,
    statsd: Statsd,
    clock: Clock,
    swift_conf: Arc<SwiftConf>,
    format: LogFormat,
    log_headers: bool,
    /// In title case; empty for all.
    log_headers_only: Vec<Vec<u8>>,
    valid_methods: Vec<String>,
    reveal_sensitive_prefix: usize,
    pid: u64,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let log = Arc::new(AccessLogger::from_section(section, ctx)?);
    Ok(Arc::new(ProxyLogging { app, log }))
}

impl AccessLogger {
    fn from_section(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let access_section = access_section(section);
        let method = section.str("log_anonymization_method", "md5");
        let anonymizer = Anonymizer::new(&method, &section.str("log_anonymization_salt", ""))
            .map_err(|error| section.error("log_anonymization_method", error.to_string()))?;
        let template = section.str("log_msg_template", DEFAULT_TEMPLATE);
        let format = LogFormat::parse(&template, &FIELDS, anonymizer)
            .map_err(|error| section.error("log_msg_template", format!("cannot interpolate: {error}")))?;
        let either = |access: &'static str, plain: &'static str| match section.get(access) {
            Some(_) => access,
            None => plain,
        };
        let valid_methods = either("access_log_statsd_valid_http_methods", "log_statsd_valid_http_methods");
        Ok(Self {
            logger: ctx.process.logger(&access_section, "swift")?,
            statsd: Statsd::from_section(&access_section, "proxy-server", &ctx.rng)?,
            clock: ctx.clock.clone(),
            swift_conf: ctx.swift_conf.clone(),
            format: format.quoted(),
            log_headers: section.bool(either("access_log_headers", "log_headers"), false)?,
            log_headers_only: section
                .list("access_log_headers_only", "")
                .iter()
                .map(|name| title_case_bytes(name.as_bytes()))
                .collect(),
            valid_methods: section
                .list(valid_methods, DEFAULT_METHODS)
                .iter()
                .map(|method| method.to_ascii_uppercase())
                .collect(),
            reveal_sensitive_prefix: section.int("reveal_sensitive_prefix", 16)?,
            pid: u64::from(std::process::id()),
        })
    }
}

/// The options of the access log's own logger.
fn access_section(section: &Section) -> Section {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for option in ACCESS_OPTIONS {
        let own = section.get(&format!("access_{option}")).filter(|value| !value.is_empty());
        if let Some(value) = own.or_else(|| section.get(option)) {
            pairs.push((option, value));
        }
    }
    for (option, value) in section.iter() {
        if option.starts_with("statsd_") || option == "log_max_line_length" {
            pairs.push((option, value));
        }
    }
    Section::from_pairs(section.name(), pairs)
}

impl App for ProxyLogging {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        match req.env.get::<AccessLogMade>() {
            Some(AccessLogMade) => self.app.call(req),
            None => Box::pin(self.call_logged(req)),
        }
    }
}

impl ProxyLogging {
    async fn call_logged(&self, mut req: Request) -> Response {
        let mut entry = Entry::begin(&self.log, &mut req);
        let mut resp = self.app.call(req).await;
        entry.begin_response(&resp);
        add_content_length(&mut resp, entry.method == "HEAD");
        // A HEAD has no body, and 0 bytes are sent at once: no need to look on.
        if entry.method == "HEAD" || resp.body.is_empty() {
            entry.finish();
            return resp;
        }
        let left = resp.content_length();
        let inner = std::mem::take(&mut resp.body);
        resp.body = Body::stream(LoggedBody { inner, left, entry: Some(Box::new(entry)) });
        resp
    }
}

/// A response in memory tells its length. Swift makes the default body of an error when it sends it, and for a HEAD
/// not at all, so that there it counts as empty.
fn add_content_length(resp: &mut Response, is_head: bool) {
    if resp.headers.contains("Content-Length") || resp.headers.contains("Transfer-Encoding") {
        return;
    }
    let Some(body) = resp.body.as_bytes() else {
        return;
    };
    let is_default = || Response::error(resp.status).body.as_bytes() == Some(body);
    let length = if is_head && !body.is_empty() && is_default() { 0 } else { body.len() };
    resp.headers.insert("Content-Length", length);
}

/// What the body of the request told.
#[derive(Default)]
struct Received {
    bytes: AtomicU64,
    disconnected: AtomicBool,
}

impl Received {
    fn note(&self, read: Result<usize, &BodyError>) {
        match read {
            Ok(bytes) => drop(self.bytes.fetch_add(bytes as u64, Ordering::Relaxed)),
            Err(BodyError::Disconnected) => self.disconnected.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
    }
}

/// A request on its way to its line in the log.
struct Entry {
    log: Arc<AccessLogger>,
    method: String,
    path_qs: String,
    headers: Headers,
    remote_addr: Option<String>,
    trans_id: String,
    source: Option<&'static str>,
    backend_path: Option<String>,
    record: AccessLog,
    log_info: LogInfo,
    received: Arc<Received>,
    start: f64,
    sent: u64,
    ttfb: f64,
    wire_status: u16,
    response_policy: Option<PolicyIndex>,
    failed: Option<u16>,
}

impl Entry {
    fn begin(log: &Arc<AccessLogger>, req: &mut Request) -> Self {
        let record = AccessLog::default();
        req.env.insert(AccessLogMade);
        req.env.insert(record.clone());
        let log_info = LogInfo::of(&mut req.env);
        let received = Arc::<Received>::default();
        if !req.body.is_empty() {
            let inner = std::mem::take(&mut req.body);
            req.body = Body::stream(CountedBody { inner, received: received.clone() });
        }
        Self {
            log: log.clone(),
            method: match req.env.get::<OrigMethod>() {
                Some(OrigMethod(method)) => method.as_str().to_owned(),
                None => req.method.as_str().to_owned(),
            },
            path_qs: req.path_qs(),
            headers: req.headers.clone(),
            remote_addr: req.env.remote_addr.map(|addr| addr.ip().to_string()),
            trans_id: req.env.trans_id.clone(),
            source: req.env.source,
            backend_path: req.env.get::<BackendPath>().map(|path| path.0.clone()),
            record,
            log_info,
            received,
            start: log.clock.unix_secs(),
            sent: 0,
            ttfb: 0.0,
            wire_status: 0,
            response_policy: None,
            failed: None,
        }
    }

    fn begin_response(&mut self, resp: &Response) {
        self.wire_status = resp.status.0;
        self.response_policy = policy_header(&resp.headers);
        if self.method == "GET" {
            self.log_first_byte();
        }
    }

    /// Swift logs the time to first byte of GETs alone.
    fn log_first_byte(&mut self) {
        self.ttfb = self.log.clock.unix_secs() - self.start;
        if !self.log.statsd.is_enabled() {
            return;
        }
        let took = seconds(self.ttfb);
        for name in self.metric_names(&self.method, self.wire_status, &Record::default()) {
            self.log.statsd.timing(&format!("{name}.first-byte.timing"), took);
        }
    }

    fn path<'a>(&'a self, record: &'a Record) -> &'a str {
        record.path_qs.as_deref().unwrap_or(&self.path_qs)
    }

    /// Account, container and object of the request, for the log line and the metrics.
    fn names(&self, record: &Record) -> [Option<String>; 3] {
        let path = match &self.backend_path {
            Some(path) => path,
            None => self.path(record).split('?').next().unwrap_or(""),
        };
        match split_path(path, 1, 4, true).map(<[_; 4]>::try_from) {
            Ok(Ok([version, account, container, object]))
                if matches!(version.as_deref(), Some("v1" | "v1.0")) =>
            {
                [account, container, object]
            }
            _ => [None, None, None],
        }
    }

    fn policy(&self, record: &Record) -> Option<PolicyIndex> {
        self.response_policy.or(record.policy_index).or_else(|| policy_header(&self.headers))
    }

    /// `object.GET.200`, and `object.policy.0.GET.200` if it is about an object.
    fn metric_names(&self, method: &str, status: u16, record: &Record) -> Vec<String> {
        let [account, container, object] =
            self.names(record).map(|name| name.filter(|name| !name.is_empty()));
        let kind = match (account, container, object) {
            (_, _, Some(_)) => "object",
            (_, Some(_), None) => "container",
            (Some(_), None, None) => "account",
            (None, None, None) => self.source.unwrap_or("UNKNOWN"),
        };
        let mut names = vec![format!("{kind}.{method}.{status}")];
        if let Some(index) = self.policy(record).filter(|_| kind == "object")
            && self.log.swift_conf.policies.get(index).is_some()
        {
            names.push(format!("object.policy.{}.{method}.{status}", index.0));
        }
        names
    }

    /// Writes the line and the metrics.
    fn finish(self) {
        let end = self.log.clock.unix_secs();
        let record = self.record.take();
        let disconnected = self.received.disconnected.load(Ordering::Relaxed);
        let status = match (disconnected, record.status, self.failed) {
            (true, ..) => 499,
            (_, Some(status), _) => status,
            (_, _, Some(failed)) => failed,
            _ => self.wire_status,
        };
        if self.log.logger.enabled(Level::Info) {
            self.log.logger.info(self.line(&record, status, end));
        }
        if self.log.statsd.is_enabled() {
            let method = match self.log.valid_methods.contains(&self.method) {
                true => self.method.as_str(),
                false => "BAD_METHOD",
            };
            let bytes = self.received.bytes.load(Ordering::Relaxed) + self.sent;
            for name in self.metric_names(method, status, &record) {
                self.log.statsd.timing(&format!("{name}.timing"), seconds(end - self.start));
                self.log
                    .statsd
                    .update_stats(&format!("{name}.xfer"), i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        }
    }

    fn line(&self, record: &Record, status: u16, end: f64) -> String {
        let name = |index: usize| self.names(record)[index].take().map_or(Value::Missing, Value::Owned);
        let header = |name: &str| latin1(self.headers.get(name));
        let log = &self.log;
        log.format.line(|field| match field {
            "end_time" => Value::Time(end),
            "start_time" => Value::Time(self.start),
            "client_ip" => match latin1(remote_client(&self.headers)) {
                Value::Missing => Value::from(self.remote_addr.as_deref()),
                client => client,
            },
            "remote_addr" => Value::from(self.remote_addr.as_deref()),
            "domain" => header("Host").map_text(|host| host.rsplit_once(':').map_or(host, |(host, _)| host)),
            "path" => Value::Text(self.path(record)),
            "referer" => header("Referer"),
            "user_agent" => header("User-Agent"),
            "headers" if log.log_headers => Value::Owned(self.logged_headers()),
            "client_etag" => header("ETag"),
            "account" => name(0),
            "container" => name(1),
            "object" => name(2),
            "method" => Value::Text(&self.method),
            // Swift: eventlet tells applications HTTP/1.0, whatever the client speaks.
            "protocol" => Value::Text("HTTP/1.0"),
            "status_int" => Value::Int(u64::from(status)),
            "auth_token" => match self.headers.get(X_AUTH_TOKEN) {
                Some(token) => Value::Owned(log.obscured(token)),
                None => Value::Missing,
            },
            "bytes_recvd" => Value::Int(self.received.bytes.load(Ordering::Relaxed)),
            "bytes_sent" => Value::Int(self.sent),
            "transaction_id" => Value::Text(&self.trans_id),
            "request_time" => Value::Owned(format!("{:.4}", end - self.start)),
            "source" => Value::from(self.source),
            "log_info" => Value::Owned(self.log_info.notes().join(",")),
            "policy_index" => match self.policy(record) {
                Some(index) => Value::Owned(index.0.to_string()),
                None => Value::Missing,
            },
            "ttfb" => Value::Float(self.ttfb),
            "pid" => Value::Int(log.pid),
            "wire_status_int" => Value::Int(u64::from(self.wire_status)),
            "access_user_id" => record.user_id.clone().map_or(Value::Missing, Value::Owned),
            _ => Value::Missing,
        })
    }

    fn logged_headers(&self) -> String {
        let mut lines = Vec::new();
        for (name, value) in self.headers.iter() {
            let name = title_case_bytes(name);
            if !self.log.log_headers_only.is_empty() && !self.log.log_headers_only.contains(&name) {
                continue;
            }
            let sensitive =
                SENSITIVE_HEADERS.iter().any(|header| name.eq_ignore_ascii_case(header.as_bytes()));
            let value = if sensitive { self.log.obscured(value) } else { latin1_string(value) };
            lines.push(format!("{}: {value}", latin1_string(&name)));
        }
        lines.join("\n")
    }
}

impl AccessLogger {
    /// Enough of a secret to recognize it, too little to use it.
    fn obscured(&self, secret: &[u8]) -> String {
        match secret.get(..self.reveal_sensitive_prefix).filter(|start| start.len() < secret.len()) {
            Some(start) => latin1_string(start) + "...",
            None => latin1_string(secret),
        }
    }
}

fn policy_header(headers: &Headers) -> Option<PolicyIndex> {
    headers.get_int(X_BACKEND_STORAGE_POLICY_INDEX).map(PolicyIndex)
}

/// The client behind load balancers, by their headers.
fn remote_client(headers: &Headers) -> Option<&[u8]> {
    let cluster = headers.get("X-Cluster-Client-Ip").filter(|client| !client.is_empty());
    cluster.or_else(|| headers.get("X-Forwarded-For")?.split(|&b| b == b',').next().map(<[u8]>::trim_ascii))
}

/// Swift: headers are Latin-1 strings there, and are logged as such.
fn latin1(value: Option<&[u8]>) -> Value<'_> {
    match value {
        None | Some([]) => Value::Missing,
        Some(value) if value.is_ascii() => std::str::from_utf8(value).map_or(Value::Missing, Value::Text),
        Some(value) => Value::Owned(latin1_string(value)),
    }
}

fn latin1_string(value: &[u8]) -> String {
    value.iter().copied().map(char::from).collect()
}

trait MapText {
    fn map_text(self, map: impl Fn(&str) -> &str) -> Self;
}

impl MapText for Value<'_> {
    fn map_text(self, map: impl Fn(&str) -> &str) -> Self {
        match self {
            Value::Text(text) => Value::Owned(map(text).to_owned()),
            Value::Owned(text) => Value::Owned(map(&text).to_owned()),
            other => other,
        }
    }
}

fn seconds(took: f64) -> Duration {
    Duration::try_from_secs_f64(took).unwrap_or_default()
}

/// The body of the request, counted.
struct CountedBody {
    inner: Body,
    received: Arc<Received>,
}

impl BodyStream for CountedBody {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            let next = self.inner.next().await;
            if let Some(next) = &next {
                self.received.note(next.as_ref().map(Bytes::len));
            }
            next
        })
    }

    fn read<'a>(&'a mut self, to: &'a mut [u8]) -> Option<BoxFuture<'a, Result<usize, BodyError>>> {
        Some(Box::pin(async move {
            let read = self.inner.read(to).await;
            self.received.note(read.as_ref().copied());
            read
        }))
    }

    fn content_length(&self) -> Option<u64> {
        self.inner.content_length()
    }

    fn abandon(self: Box<Self>) -> Option<BoxFuture<'static, ()>> {
        Some(Box::pin(self.inner.abandon()))
    }
}

/// The body of the response, whose end writes the line.
struct LoggedBody {
    inner: Body,
    /// How much the client still waits for, if it was told.
    left: Option<u64>,
    entry: Option<Box<Entry>>,
}

impl LoggedBody {
    fn finish(&mut self, failed: Option<u16>) {
        if let Some(mut entry) = self.entry.take() {
            entry.failed = failed;
            entry.finish();
        }
    }
}

impl BodyStream for LoggedBody {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            let next = self.inner.next().await;
            match &next {
                Some(Ok(chunk)) => {
                    if let Some(entry) = &mut self.entry {
                        entry.sent += chunk.len() as u64;
                    }
                    // Nobody needs to ask for the end of a body whose length is known.
                    self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
                    if self.left == Some(0) {
                        self.finish(None);
                    }
                }
                Some(Err(BodyError::Disconnected)) => self.finish(Some(499)),
                Some(Err(_)) => self.finish(Some(500)),
                None => self.finish(None),
            }
            next
        })
    }

    fn content_length(&self) -> Option<u64> {
        self.inner.content_length()
    }

    fn abandon(mut self: Box<Self>) -> Option<BoxFuture<'static, ()>> {
        self.finish(Some(499));
        Some(Box::pin(std::mem::take(&mut self.inner).abandon()))
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        self.finish(Some(499));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{request, send};
    use common::timestamp::Timestamp;
    use service::context::Process;
    use service::http::{Method, app_fn};
    use service::logs::Lines;

    fn filter(options: &[(&str, &str)], app: SharedApp) -> (SharedApp, Lines) {
        let lines = Lines::default();
        let mut process = Process::new().with_sinks(vec![Arc::new(lines.clone())]);
        process.clock = Clock::manual(Timestamp::from_secs_f64(1_416_658_470.5));
        let ctx = Context::builder("proxy-server").process(process).build();
        let section = Section::from_pairs("filter:proxy-logging", options.iter().copied());
        (factory(&section, &ctx, app).unwrap(), lines)
    }

    fn only_line(lines: &Lines) -> String {
        let all = lines.all();
        assert_eq!(all.len(), 1, "{all:?}");
        let line = &all[0].1;
        line.split_once(": ").map_or(line.clone(), |(_, line)| line.to_owned())
    }

    #[tokio::test]
    async fn line_is_written_when_the_body_has_been_read() {
        let app = app_fn(|mut req: Request| async move {
            let body = req.body.collect(100).await.unwrap();
            AccessLog::set_user(&req.env, "test:tester");
            AccessLog::note_policy(&req.env, PolicyIndex(1));
            LogInfo::of(&mut req.env).append("x-delete-at:5");
            Response::text(201, body)
        });
        let (app, lines) = filter(&[], app);
        let headers = [
            ("X-Auth-Token", "AUTH_tk0123456789abcdef"),
            ("User-Agent", "curl 8"),
            ("Referer", "http://x/"),
            ("ETag", "abc"),
            ("X-Forwarded-For", "9.9.9.9, 8.8.8.8"),
        ];
        let mut req = request(Method::Put, "/v1/a/c%20x/o?y=1", &headers);
        req.body = Body::from("12345");
        req.env.trans_id = "tx1".to_owned();
        req.env.remote_addr = Some(([127, 0, 0, 1], 80).into());
        let mut resp = app.call(req).await;
        assert!(lines.all().is_empty());
        assert_eq!(resp.body.collect(100).await.unwrap(), "12345");
        assert_eq!(
            only_line(&lines),
            "9.9.9.9 127.0.0.1 22/Nov/2014/12/14/30 PUT /v1/a/c%2520x/o%3Fy%3D1 HTTP/1.0 201 http://x/ curl%208 \
             AUTH_tk012345678... 5 5 abc tx1 - 0.0000 - x-delete-at:5 1416658470.500000000 1416658470.500000000 1 \
             test:tester"
        );
    }

    #[tokio::test]
    async fn only_subrequests_are_logged_by_the_second_filter() {
        let (inner, lines) = filter(&[], app_fn(|_| async { Response::text(200, "x") }));
        let between = app_fn(move |req: Request| {
            let inner = inner.clone();
            async move {
                let sub = crate::subrequest::make_subrequest(
                    &req,
                    Method::Get,
                    "/v1/a/c/segment",
                    "",
                    Headers::new(),
                    "",
                    "SLO",
                );
                let mut seen = inner.call(sub).await;
                seen.body.collect(10).await.unwrap();
                inner.call(req).await
            }
        });
        send(&between, request(Method::Get, "/v1/a/c/o", &[])).await;
        let seen: Vec<String> = lines.all().into_iter().map(|(_, line)| line).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen[0].contains(" /v1/a/c/segment ") && seen[0].contains(" SLO "));
    }

    #[tokio::test]
    async fn client_that_goes_away_is_499() {
        let app = app_fn(|_| async {
            let body = Body::driven(|tx| async move {
                for _ in 0..5 {
                    let _ = tx.send("xx").await;
                }
            });
            Response::new(200).with_body(body)
        });
        let (app, lines) =
            filter(&[("log_msg_template", "{status_int} {wire_status_int} {bytes_sent}")], app);
        let mut resp = app.call(request(Method::Get, "/v1/a/c/o", &[])).await;
        resp.body.next().await.unwrap().unwrap();
        drop(resp);
        assert_eq!(only_line(&lines), "499 200 2");
    }

    #[tokio::test]
    async fn broken_body_is_500() {
        struct Broken;
        impl BodyStream for Broken {
            fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
                Box::pin(async { Some(Err(BodyError::Timeout)) })
            }
        }
        let app = app_fn(|_| async { Response::new(200).with_body(Body::stream(Broken)) });
        let (app, lines) = filter(&[("log_msg_template", "{status_int} {wire_status_int}")], app);
        send(&app, request(Method::Get, "/v1/a/c/o", &[])).await;
        assert_eq!(only_line(&lines), "500 200");
    }

    #[tokio::test]
    async fn headers_are_logged_on_demand_with_secrets_cut() {
        let options = [
            ("log_msg_template", "{headers}"),
            ("access_log_headers", "yes"),
            ("access_log_headers_only", "x-auth-token,Host"),
            ("reveal_sensitive_prefix", "4"),
        ];
        let (app, lines) = filter(&options, app_fn(|_| async { Response::new(204) }));
        let headers = [("x-auth-token", "AUTH_tk1"), ("host", "h"), ("user-agent", "x")];
        send(&app, request(Method::Get, "/v1/a", &headers)).await;
        assert_eq!(only_line(&lines), "X-Auth-Token:%20AUTH...%0AHost:%20h");
    }

    #[tokio::test]
    async fn what_is_logged_is_where_the_request_went() {
        let app = app_fn(|mut req: Request| async move {
            req.set_path("/v1/a/d/new");
            AccessLog::note_target(&req);
            Response::new(201)
        });
        let (app, lines) = filter(&[("log_msg_template", "{method} {path} {object} {bytes_sent}")], app);
        send(&app, request(Method::Copy, "/v1/a/c/o", &[])).await;
        assert_eq!(only_line(&lines), "COPY /v1/a/d/new new -");
    }

    #[test]
    fn bad_templates_are_refused_at_start() {
        let ctx = Context::builder("proxy-server").build();
        for option in [("log_msg_template", "{nope}"), ("log_anonymization_method", "rot13")] {
            let section = Section::from_pairs("filter:proxy-logging", [option]);
            let app = app_fn(|_| async { Response::new(200) });
            assert!(factory(&section, &ctx, app).is_err());
        }
    }

    /// `golden/log_lines.json`: lines of Swift's formatter (see golden/README.md).
    #[test]
    fn lines_are_formatted_as_swift_formats_them() {
        use serde_json::{Map, Value as Json};
        let golden: Vec<(String, Map<String, Json>, String)> =
            serde_json::from_str(include_str!("golden/log_lines.json")).unwrap();
        assert_eq!(golden[0].0, DEFAULT_TEMPLATE);
        for (template, record, expected) in golden {
            let anonymizer = Anonymizer::new("md5", "salt").unwrap();
            let format = LogFormat::parse(&template, &FIELDS, anonymizer).unwrap().quoted();
            let line = format.line(|field| match (field, record.get(field)) {
                ("end_time", _) => Value::Time(record["end"].as_f64().unwrap()),
                ("start_time", _) => Value::Time(record["start"].as_f64().unwrap()),
                (_, Some(Json::String(text))) => Value::Text(text),
                (_, Some(Json::Number(number))) if number.is_f64() => Value::Float(number.as_f64().unwrap()),
                (_, Some(Json::Number(number))) => Value::Int(number.as_u64().unwrap()),
                _ => Value::Missing,
            });
            assert_eq!(line, expected, "{template}");
        }
    }
}
