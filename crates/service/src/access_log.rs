//! What every storage server does around a request: the line in the log, the timing, the last resort.
//!
//! One line per request at INFO, at DEBUG for replication, in the format of `log_format`; `log_requests = no` turns
//! it off. Timings go to statsd as `METHOD.timing`, or `METHOD.errors.timing` when the status says that the fault is
//! ours, at the sample rates of Swift's `timing_stats` decorators. As in Swift the time ends with the head of the
//! response. A handler that panics is a 500 and a line at ERROR, not the end of the server.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use common::constraints::check_utf8;
use futures_util::FutureExt;

use crate::context::Context;
use crate::daemon::panic_text;
use crate::http::{App, BoxFuture, Headers, Method, Request, Response, SharedApp};
use crate::log_format::{Anonymizer, LogFormat, STORAGE_FORMAT, Value};
use crate::logs::Level;

const POLICY_INDEX: &str = "X-Backend-Storage-Policy-Index";
const FIELDS: [&str; 18] = [
    "remote_addr",
    "time",
    "method",
    "path",
    "disk",
    "partition",
    "account",
    "container",
    "object",
    "status",
    "content_length",
    "referer",
    "txn_id",
    "user_agent",
    "trans_time",
    "additional_info",
    "pid",
    "policy_index",
];

/// Which of the storage servers is logged.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ServerType {
    Account,
    Container,
    Object,
}

impl ServerType {
    /// Swift: `timing_stats(sample_rate=...)` on the methods of each controller.
    fn sample_rate(self, method: &Method) -> Option<f64> {
        match (self, method) {
            (ServerType::Object, Method::Head) => Some(0.8),
            (ServerType::Object, Method::Replicate | Method::Ssync) => Some(0.1),
            (ServerType::Container, Method::Head) => Some(0.1),
            (ServerType::Container, Method::Replicate) => Some(0.01),
            _ => None,
        }
    }

    /// Whether a request is the cluster's own upkeep, logged at DEBUG.
    fn is_upkeep(self, method: &Method, headers: &Headers) -> bool {
        match self {
            ServerType::Object => {
                matches!(method, Method::Replicate | Method::Ssync)
                    || headers.contains("X-Backend-Replication")
            }
            ServerType::Account | ServerType::Container => *method == Method::Replicate,
        }
    }
}

/// Wraps the app of a storage server as the options of its section say.
pub fn wrap(
    server: ServerType,
    section: &Section,
    ctx: &Context,
    app: SharedApp,
) -> Result<SharedApp, ConfigError> {
    let anonymizer = Anonymizer::new(
        &section.str("log_anonymization_method", "md5"),
        &section.str("log_anonymization_salt", ""),
    )
    .map_err(|err| section.error("log_anonymization_method", err.to_string()))?;
    let format = LogFormat::parse(&section.str("log_format", STORAGE_FORMAT), &FIELDS, anonymizer)
        .map_err(|err| section.error("log_format", err.to_string()))?;
    let log_requests = section.bool("log_requests", true)?;
    Ok(Arc::new(AccessLog { server, app, format, log_requests, pid: std::process::id(), ctx: ctx.clone() }))
}

struct AccessLog {
    server: ServerType,
    app: SharedApp,
    format: LogFormat,
    log_requests: bool,
    pid: u32,
    ctx: Context,
}

/// What of a request is still needed when it is answered.
struct Asked {
    start: Instant,
    method: Method,
    /// Whether statsd is told. Swift: if the request gets as far as a controller's method.
    is_timed: bool,
    level: Level,
    /// Only made when a line will be written.
    line: Option<Box<AskedLine>>,
}

impl Asked {
    /// Swift: the default text of a status has no length before it is made, and for a HEAD it isn't.
    fn content_length(&self, response: &Response) -> Option<u64> {
        if self.method != Method::Head || response.headers.contains("Content-Length") {
            return response.content_length();
        }
        response.body.content_length().filter(|length| *length == 0)
    }
}

struct AskedLine {
    path: String,
    remote_addr: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
    txn_id: Option<String>,
    policy_index: Option<String>,
}

impl App for AccessLog {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            let asked = self.asked(&req);
            let trans_id = req.headers.get_str("X-Trans-Id").map(str::to_owned);
            let path = req.path.clone();
            let answer = AssertUnwindSafe(self.app.call(req)).catch_unwind().await;
            let response = answer.unwrap_or_else(|panic| {
                let logger = self.ctx.logger.with_txn(trans_id.as_deref().unwrap_or_default());
                let (method, what) = (&asked.method, panic_text(&*panic));
                logger.error(format_args!("ERROR __call__ error with {method} {path} : {what}"));
                Response::error(500)
            });
            self.answered(&asked, &response);
            response
        })
    }
}

impl AccessLog {
    fn asked(&self, req: &Request) -> Asked {
        let upkeep = self.server.is_upkeep(&req.method, &req.headers);
        let level = if upkeep { Level::Debug } else { Level::Info };
        let text = |name: &str| req.headers.get_str(name).map(str::to_owned);
        let line = (self.log_requests && self.ctx.logger.enabled(level)).then(|| {
            Box::new(AskedLine {
                // Swift: swob's path is quoted.
                path: req.quoted_path(),
                remote_addr: req.env.remote_addr.map(|addr| addr.ip().to_string()),
                referer: text("Referer"),
                user_agent: text("User-Agent"),
                txn_id: text("X-Trans-Id"),
                policy_index: text(POLICY_INDEX),
            })
        });
        let is_timed =
            self.ctx.statsd.is_enabled() && req.path_is_utf8 && check_utf8(req.path.as_bytes(), true);
        Asked { start: Instant::now(), method: req.method.clone(), is_timed, level, line }
    }

    fn answered(&self, asked: &Asked, response: &Response) {
        let took = asked.start.elapsed();
        let status = response.status.0;
        if asked.is_timed && status != 405 {
            let kind = if response.status.is_server_error() { ".errors.timing" } else { ".timing" };
            let rate = self.server.sample_rate(&asked.method);
            self.ctx.statsd.timing_sampled(&format!("{}{kind}", asked.method), took, rate);
        }
        if let Some(line) = &asked.line {
            let line = self.line(asked, line, response, took);
            self.ctx.logger.log(asked.level, line);
        }
    }

    fn line(&self, asked: &Asked, line: &AskedLine, response: &Response, took: Duration) -> String {
        let mut parts = line.path.strip_prefix('/').unwrap_or_default().splitn(5, '/');
        let names: [Option<&str>; 5] = std::array::from_fn(|_| parts.next());
        let additional_info = match self.server {
            ServerType::Account => response.headers.get_str("X-Container-Timestamp"),
            _ => None,
        };
        self.format.line(|field| match field {
            "remote_addr" => line.remote_addr.as_deref().into(),
            "time" => Value::Time(self.ctx.clock.unix_secs()),
            "method" => Value::Text(asked.method.as_str()),
            "path" => Value::Text(&line.path),
            "disk" => names[0].into(),
            "partition" => names[1].into(),
            "account" => names[2].into(),
            "container" => names[3].into(),
            "object" => names[4].into(),
            "status" => Value::Int(response.status.0.into()),
            "content_length" => asked.content_length(response).map_or(Value::Missing, Value::Int),
            "referer" => line.referer.as_deref().into(),
            "txn_id" => line.txn_id.as_deref().into(),
            "user_agent" => line.user_agent.as_deref().into(),
            "trans_time" => Value::Float(took.as_secs_f64()),
            "additional_info" => additional_info
                .map_or(Value::Missing, |t| Value::Owned(format!("x-container-timestamp: {t}"))),
            "pid" => Value::Int(self.pid.into()),
            "policy_index" => response.headers.get_str(POLICY_INDEX).or(line.policy_index.as_deref()).into(),
            _ => Value::Missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::app_fn;
    use crate::logs::{Lines, Logger};
    use common::clock::Clock;
    use common::timestamp::Timestamp;

    fn server(server: ServerType, options: &[(&str, &str)]) -> (SharedApp, Lines) {
        let (logger, lines) = Logger::memory();
        let ctx = Context::builder("object-server")
            .logger(logger)
            .clock(Clock::manual(Timestamp::from_secs_f64(1_402_437_365.0)))
            .build();
        let section = Section::from_pairs("app:object-server", options.iter().copied());
        let app = app_fn(|req: Request| async move {
            assert!(!req.path.ends_with("panic"), "bad pickle");
            Response::text(200, "hello").with_header(POLICY_INDEX, "1")
        });
        (wrap(server, &section, &ctx, app).unwrap(), lines)
    }

    fn request(method: Method, path: &str) -> Request {
        let mut req = Request::new(method, path)
            .with_header("X-Trans-Id", "tx1")
            .with_header("User-Agent", "proxy-server 42")
            .with_header("Referer", "PUT http://h/v1/a/c/o");
        req.env.remote_addr = Some("10.0.0.1:1234".parse().unwrap());
        req
    }

    #[tokio::test]
    async fn the_line_is_swifts() {
        let (app, lines) = server(ServerType::Object, &[]);
        app.call(request(Method::Put, "/sda1/5/a/c/o")).await;
        let (level, line) = lines.all().remove(0);
        assert_eq!(level, Level::Info);
        let expected_head = "test: 10.0.0.1 - - [10/Jun/2014:21:56:05 +0000] \"PUT /sda1/5/a/c/o\" 200 5 \
             \"PUT http://h/v1/a/c/o\" \"tx1\" \"proxy-server 42\" 0.";
        assert_eq!(&line[..expected_head.len()], expected_head);
        assert!(line.ends_with(&format!(" \"-\" {} 1", std::process::id())), "{line}");
    }

    #[tokio::test]
    async fn names_are_logged_quoted() {
        let (app, lines) = server(ServerType::Object, &[("log_format", "{path} {object}")]);
        app.call(request(Method::Get, "/sda1/5/a/c/o \"ü\n")).await;
        assert_eq!(lines.all()[0].1, "test: /sda1/5/a/c/o%20%22%C3%BC%0A o%20%22%C3%BC%0A");
    }

    #[tokio::test]
    async fn upkeep_is_logged_at_debug() {
        let (app, lines) = server(ServerType::Object, &[]);
        app.call(request(Method::Replicate, "/sda1/5")).await;
        app.call(request(Method::Put, "/sda1/5/a/c/o").with_header("X-Backend-Replication", "True")).await;
        assert!(lines.all().iter().all(|(level, _)| *level == Level::Debug));
        assert_eq!(lines.all().len(), 2);
    }

    #[tokio::test]
    async fn a_format_of_ones_own_can_name_the_parts_of_the_path() {
        let format = "{disk} {partition} {account} {container} {object} {status}";
        let (app, lines) = server(ServerType::Container, &[("log_format", format)]);
        app.call(request(Method::Get, "/sda1/5/a/c/o/p")).await;
        app.call(request(Method::Get, "/sda1/5/a")).await;
        let lines: Vec<String> = lines.all().into_iter().map(|(_, line)| line).collect();
        assert_eq!(lines, ["test: sda1 5 a c o/p 200", "test: sda1 5 a - - 200"]);
    }

    #[tokio::test]
    async fn a_panic_is_a_500_and_a_line() {
        let (app, lines) = server(ServerType::Object, &[("log_requests", "no")]);
        let response = app.call(request(Method::Get, "/sda1/5/a/c/panic")).await;
        assert_eq!(response.status.0, 500);
        assert_eq!(
            lines.at_least(Level::Error),
            ["test: ERROR __call__ error with GET /sda1/5/a/c/panic : bad pickle (txn: tx1)"]
        );
        assert_eq!(lines.all().len(), 1);
    }

    #[test]
    fn a_bad_format_is_a_configuration_error() {
        let section = Section::from_pairs("app:object-server", [("log_format", "{nonsense}")]);
        let ctx = Context::builder("object-server").build();
        let app = app_fn(|_| async { Response::new(200) });
        let err = wrap(ServerType::Object, &section, &ctx, app).err().unwrap();
        assert!(err.to_string().contains("log_format"), "{err}");
    }
}
