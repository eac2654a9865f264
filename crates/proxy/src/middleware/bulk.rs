//! Deleting many objects in one request, with one report at the end: the part of Swift's `bulk` that slo needs for
//! `?multipart-manifest=delete`. What is to be deleted comes from the caller, item by item.
//!
//! Objects go first, containers after them. While the deletes run (`concurrency` at a time) a space is sent every
//! now and then, so that the client sees that the request lives. Swift: the head of the response goes out with the
//! first byte, so a client which looks at the status alone knows by then that quick deletes are done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::quote::quote_path;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use service::http::{
    Body, BodyError, BodySender, BodyStream, BoxFuture, Headers, Method, Request, Response, SharedApp, Status,
};

use super::heartbeat::{Problem, Report};
use crate::subrequest::make_subrequest;

/// More failures than this end the request.
const MAX_FAILED_DELETES: usize = 1000;
const YIELD_FREQUENCY: Duration = Duration::from_secs(10);

/// Something to delete: `/container/object` or `/container`.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub name: String,
    pub version_id: Option<String>,
    /// Why it cannot be deleted.
    pub error: Option<(u16, String)>,
}

/// Where the targets come from; an error ends the request with its status and body in the report.
pub trait Targets: Send {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Target, Response>>>;
}

/// How deletes are made.
#[derive(Clone)]
pub struct Deleter {
    pub app: SharedApp,
    pub concurrency: usize,
    /// Added to the client's User-Agent.
    pub user_agent: &'static str,
    pub source: &'static str,
}

impl Deleter {
    /// The response to a client: always 200, with a report when all is done. `format` is `None` if the client accepts
    /// none of those there are.
    pub async fn respond(
        self,
        client: Request,
        format: Option<&'static str>,
        targets: Box<dyn Targets>,
    ) -> Response {
        let mut resp = Response::new(200);
        if let Some(format) = format {
            resp.headers.insert("Content-Type", format);
        }
        let mut body = Body::driven(move |tx| async move {
            let mut job = Job::new(self, client, format, tx);
            let ended = match format {
                None => Err(Response::new(406)),
                Some(_) => job.run(targets).await,
            };
            job.finish(ended).await;
        });
        let first = body.next().await.transpose().ok().flatten();
        resp.body = Body::stream(Begun { first, rest: body });
        resp
    }
}

/// A body whose first piece has been read already.
struct Begun {
    first: Option<Bytes>,
    rest: Body,
}

impl BodyStream for Begun {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => self.rest.next().await,
            }
        })
    }

    fn abandon(self: Box<Self>) -> Option<BoxFuture<'static, ()>> {
        Some(Box::pin(self.rest.abandon()))
    }
}

/// One request's deletes.
struct Job {
    deleter: Arc<Deleter>,
    client: Request,
    format: Option<&'static str>,
    tx: BodySender,
    last_yield: Instant,
    yielded: bool,
    deleted: u64,
    not_found: u64,
    problems: Vec<Problem>,
    /// A server's fault is among the problems.
    bad_gateway: bool,
}

type Running = FuturesUnordered<BoxFuture<'static, (Response, String)>>;

impl Job {
    fn new(deleter: Deleter, client: Request, format: Option<&'static str>, tx: BodySender) -> Self {
        Self {
            deleter: Arc::new(deleter),
            client,
            format,
            tx,
            last_yield: Instant::now(),
            yielded: false,
            deleted: 0,
            not_found: 0,
            problems: Vec::new(),
            bad_gateway: false,
        }
    }

    async fn run(&mut self, mut targets: Box<dyn Targets>) -> Result<(), Response> {
        let account = self.account_path()?;
        let mut containers = Vec::new();
        let mut running = Running::new();
        while let Some(target) = targets.next().await {
            let target = target?;
            match target.name.trim_matches('/').contains('/') {
                true => self.start(&mut running, &account, target).await?,
                false => containers.push(target),
            }
        }
        self.wait_all(&mut running).await?;
        for target in containers {
            self.start(&mut running, &account, target).await?;
        }
        self.wait_all(&mut running).await
    }

    /// `/v1/account`
    fn account_path(&self) -> Result<String, Response> {
        let parts = self.client.split_path(2, 3, true).map_err(|()| Response::new(404))?;
        let mut parts = parts.into_iter().flatten();
        let (version, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        Ok(format!("/{version}/{account}"))
    }

    /// Starts a delete as soon as there is room for it.
    async fn start(&mut self, running: &mut Running, account: &str, target: Target) -> Result<(), Response> {
        if target.name.is_empty() {
            return Ok(());
        }
        if let Some((status, message)) = target.error {
            match status {
                404 => self.not_found += 1,
                _ => self.problems.push((quote_path(&target.name), message)),
            }
            return Ok(());
        }
        if target.name.contains('\0') {
            self.problems.push((quote_path(&target.name), Status(412).to_string()));
            return Ok(());
        }
        while running.len() >= self.deleter.concurrency.max(1) {
            self.wait_one(running).await?;
        }
        running.push(self.delete(account, target));
        Ok(())
    }

    fn delete(&self, account: &str, target: Target) -> BoxFuture<'static, (Response, String)> {
        let path = format!("{account}/{}", target.name.trim_start_matches('/'));
        let query = match &target.version_id {
            Some(version_id) => format!("version-id={}", common::quote::quote(version_id, "")),
            None => String::new(),
        };
        let mut headers = Headers::new();
        if let Some(token) = self.client.headers.get("X-Auth-Token") {
            headers.insert("X-Auth-Token", token);
        }
        let agent = format!("%(orig)s {}", self.deleter.user_agent);
        let source = self.deleter.source;
        let req = make_subrequest(&self.client, Method::Delete, &path, &query, headers, &agent, source);
        let deleter = self.deleter.clone();
        Box::pin(async move { (deleter.app.call(req).await, target.name) })
    }

    async fn wait_one(&mut self, running: &mut Running) -> Result<(), Response> {
        if let Some((resp, name)) = running.next().await {
            self.heartbeat().await;
            self.note(&resp, &name);
        }
        if self.problems.len() >= MAX_FAILED_DELETES {
            while let Some((resp, name)) = running.next().await {
                self.heartbeat().await;
                self.note(&resp, &name);
            }
            return Err(Response::html(400, "Max delete failures exceeded"));
        }
        Ok(())
    }

    async fn wait_all(&mut self, running: &mut Running) -> Result<(), Response> {
        while !running.is_empty() {
            self.wait_one(running).await?;
        }
        Ok(())
    }

    fn note(&mut self, resp: &Response, name: &str) {
        match resp.status {
            status if status.is_success() => self.deleted += 1,
            Status(404) => self.not_found += 1,
            status => {
                self.bad_gateway |= status.is_server_error();
                self.problems.push((quote_path(name), status.to_string()));
            }
        }
    }

    async fn heartbeat(&mut self) {
        if self.last_yield.elapsed() > YIELD_FREQUENCY {
            self.last_yield = Instant::now();
            let first_of_xml = !self.yielded && self.is_xml();
            self.yielded = true;
            let _ = self.tx.send(if first_of_xml { XML_DECLARATION } else { " " }).await;
        }
    }

    fn is_xml(&self) -> bool {
        self.format.is_some_and(|format| format.ends_with("/xml"))
    }

    async fn finish(mut self, ended: Result<(), Response>) {
        let (mut status, mut body) = (Status(200), String::new());
        match ended {
            Err(mut resp) => {
                status = resp.status;
                let told = resp.body.collect(MAX_REPORTED_BODY).await.unwrap_or_default();
                body = String::from_utf8_lossy(&told).into_owned();
            }
            Ok(()) if self.bad_gateway => status = Status(502),
            Ok(()) if !self.problems.is_empty() => status = Status(400),
            Ok(()) if self.deleted + self.not_found == 0 => {
                status = Status(400);
                "Invalid bulk delete.".clone_into(&mut body);
            }
            Ok(()) => (),
        }
        let mut report = Report::default();
        report.set("Response Status", status.to_string());
        report.set("Response Body", body);
        report.set("Number Deleted", self.deleted);
        report.set("Number Not Found", self.not_found);
        let separator = if self.yielded { "\r\n\r\n" } else { "" };
        let report = report.body(self.format, &std::mem::take(&mut self.problems), "delete");
        let _ = self.tx.send(format!("{separator}{report}")).await;
    }
}

/// Sent before the first space, so that what comes before the report is well-formed.
const XML_DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
const MAX_REPORTED_BODY: usize = 64 * 1024;
