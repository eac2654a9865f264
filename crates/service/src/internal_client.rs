//! Requests to a whole cluster from within: through a proxy's pipeline that stands in this process.
//!
//! As Swift's `InternalClient`: daemons which need what a proxy does (rings, quorums, handoffs, error limits) read a file
//! with a `[pipeline:main]` and send requests into it. Whoever builds the binary gives the registry of its apps, so that
//! no tier depends on the proxy. The filter `gatekeeper` is refused, since it would take away the `X-Backend-*` headers
//! that such requests are for; nothing is added to the pipeline that the file does not name.
//!
//! A 5xx is tried again after 2, 4, ... seconds.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::config::{ConfigError, Paste};
use common::headers::X_BACKEND_USE_REPLICATION_NETWORK;
use common::quote::quote;
use common::repr::python_repr_bytes;
use parking_lot::Mutex;
use serde_json::Value;
use thiserror::Error;

use crate::context::{Context, Process};
use crate::http::{Body, BodyError, BodyStream, BoxFuture, Headers, Method, Request, Response, SharedApp};
use crate::pipeline::{Registry, load_as_it_stands};

const GATEKEEPER: &str = "egg:swift#gatekeeper";
/// A listing is not longer than this.
const MAX_LISTING: usize = 64 << 20;
/// So much of an upload is kept for another try: what a proxy reads before it asks object servers.
const MAX_KEPT: usize = 64 << 10;
/// So much of a refusal is told.
const MAX_REFUSAL: usize = 64 << 10;

/// An answer that was not wanted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Unexpected response: {status} {reason}{}", told(.body))]
pub struct UnexpectedResponse {
    pub status: u16,
    reason: &'static str,
    pub body: String,
}

fn told(body: &str) -> String {
    if body.is_empty() { String::new() } else { format!(" ({})", python_repr_bytes(body.as_bytes())) }
}

/// How often a request is tried, and how it is marked.
#[derive(Clone, Debug)]
pub struct Options {
    pub user_agent: String,
    /// At least 1.
    pub request_tries: u32,
    pub use_replication_network: bool,
    /// How the pipeline's lines are marked.
    pub log_name: String,
}

/// A pipeline to send requests into.
pub struct InternalClient {
    app: SharedApp,
    options: Options,
    ctx: Context,
}

impl InternalClient {
    /// Builds the pipeline of the file at `path`.
    pub fn load(
        path: &Path,
        options: Options,
        registry: &Registry,
        process: &Process,
    ) -> Result<Self, ConfigError> {
        Self::from_paste(Paste::load(path, "main")?, options, registry, process)
    }

    /// Builds a pipeline that is not a file's.
    pub fn from_paste(
        mut paste: Paste,
        options: Options,
        registry: &Registry,
        process: &Process,
    ) -> Result<Self, ConfigError> {
        for part in paste.filters.iter_mut().chain([&mut paste.app]) {
            if part.uses == GATEKEEPER {
                let problem = "the gatekeeper is not allowed in the pipeline of an internal client";
                return Err(ConfigError::in_section(part.section.file(), part.section.name(), problem));
            }
            part.section = part.section.with("log_name", &options.log_name);
        }
        let mut process = process.clone();
        process.backend_user_agent = Some(options.user_agent.clone());
        let ctx = Context::of_proxy(&process, &options.log_name, &paste.app.section)?;
        let app = load_as_it_stands(&paste, registry, &ctx)?;
        for warning in paste.warnings() {
            ctx.logger.warning(warning);
        }
        Ok(InternalClient { app, options, ctx })
    }

    /// A client of any app: for tests.
    pub fn new(app: SharedApp, options: Options, ctx: Context) -> Self {
        InternalClient { app, options, ctx }
    }

    /// Rings, options and clock of the pipeline.
    pub fn ctx(&self) -> &Context {
        &self.ctx
    }

    /// A request without a body; `query` is quoted. The answer has one of the wanted statuses, and its body is to be
    /// read.
    pub async fn request(
        &self,
        method: Method,
        names: &[&str],
        query: &str,
        headers: &Headers,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<Response, UnexpectedResponse> {
        self.send(method, names, query, headers, Body::empty(), wanted).await
    }

    /// Writes an object. Of a large one that was read in part by a try that failed, the next one finds the rest only, and fails by
    /// its length.
    pub async fn upload(
        &self,
        names: &[&str],
        headers: &Headers,
        body: Body,
    ) -> Result<(), UnexpectedResponse> {
        let mut headers = headers.clone();
        if !headers.contains("Content-Length") {
            headers.insert("Transfer-Encoding", "chunked");
        }
        let mut response = self.send(Method::Put, names, "", &headers, body, is_success).await?;
        // Whether all of an answer that is fine can be read does not matter.
        let _ = response.body.drain(MAX_REFUSAL as u64).await;
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        names: &[&str],
        query: &str,
        headers: &Headers,
        body: Body,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<Response, UnexpectedResponse> {
        let path = format!("/v1/{}", names.join("/"));
        let lender = Arc::new(Mutex::new(Upload { body, ..Upload::default() }));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut req = Request::new(method.clone(), path.clone());
            if !query.is_empty() {
                req = req.with_query(query);
            }
            req.headers.update(headers);
            req.headers.insert("User-Agent", &self.options.user_agent);
            req.headers.insert_default("X-Backend-Allow-Reserved-Names", "true");
            if self.options.use_replication_network {
                req.headers.insert_default(X_BACKEND_USE_REPLICATION_NETWORK, "true");
            }
            if method == Method::Put {
                let upload = std::mem::take(&mut *lender.lock());
                req.body = Body::stream(Lent { upload, at: 0, lender: lender.clone() });
            }
            let mut response = self.app.call(req).await;
            if wanted(response.status.0) {
                return Ok(response);
            }
            if !response.status.is_server_error() || attempt >= self.options.request_tries {
                let body = match response.is_success() {
                    true => Default::default(),
                    // A refusal that cannot be read is told by its status.
                    false => response.body.collect(MAX_REFUSAL).await.unwrap_or_default(),
                };
                return Err(UnexpectedResponse {
                    status: response.status.0,
                    reason: response.status.reason(),
                    body: String::from_utf8_lossy(&body).into_owned(),
                });
            }
            tokio::time::sleep(Duration::from_secs(1 << attempt.min(16))).await;
        }
    }

    /// How many containers and objects an account has; none if there is no account.
    pub async fn account_info(&self, account: &str) -> Result<(u64, u64), UnexpectedResponse> {
        let wanted = |status| is_success(status) || status == 404;
        let response = self.request(Method::Head, &[account], "", &Headers::new(), wanted).await?;
        let count = |name| response.headers.get_str(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(match response.is_success() {
            true => (count("X-Account-Container-Count"), count("X-Account-Object-Count")),
            false => (0, 0),
        })
    }

    /// The part of a listing that comes after `marker`; empty at the end, and for what is not there if `wanted` has 404.
    pub async fn listing(
        &self,
        names: &[&str],
        marker: &str,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<Vec<Value>, UnexpectedResponse> {
        let query = format!("format=json&marker={}&end_marker=&prefix=", quote(marker, "/"));
        let mut response = self.request(Method::Get, names, &query, &Headers::new(), wanted).await?;
        if response.status.0 != 200 {
            // What is left unread is a client that has gone.
            let _ = response.body.drain(MAX_REFUSAL as u64).await;
            return Ok(Vec::new());
        }
        let bytes = response.body.collect(MAX_LISTING).await;
        let listing = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        listing.ok_or_else(|| UnexpectedResponse {
            status: response.status.0,
            reason: response.status.reason(),
            body: "a listing that cannot be read".to_owned(),
        })
    }

    /// The entries of the listing of an account or a container, page by page; none of what is not there.
    pub fn entries<'a>(&'a self, names: &'a [&'a str]) -> Entries<'a> {
        Entries { client: self, names, page: VecDeque::new(), marker: String::new(), at_end: false }
    }

    pub async fn delete(
        &self,
        names: &[&str],
        headers: &Headers,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<(), UnexpectedResponse> {
        let mut response = self.request(Method::Delete, names, "", headers, wanted).await?;
        // Whether all of an answer that is fine can be read does not matter.
        let _ = response.body.drain(MAX_REFUSAL as u64).await;
        Ok(())
    }
}

impl Drop for InternalClient {
    fn drop(&mut self) {
        // The apps of a pipeline know the context and the context knows them: cut the circle.
        self.ctx.pipeline.clear();
    }
}

pub fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// The entries of a listing.
pub struct Entries<'a> {
    client: &'a InternalClient,
    names: &'a [&'a str],
    page: VecDeque<Value>,
    marker: String,
    at_end: bool,
}

impl Entries<'_> {
    /// The next one; there is none after an error.
    pub async fn next(&mut self) -> Result<Option<Value>, UnexpectedResponse> {
        if self.page.is_empty() && !self.at_end {
            let wanted = |status| is_success(status) || status == 404;
            let page = self.client.listing(self.names, &self.marker, wanted).await;
            let last = page.as_deref().ok().and_then(|page| page.last()?["name"].as_str());
            // One that does not lead on would be asked for again and again.
            match last.filter(|last| **last > *self.marker) {
                Some(last) => self.marker = last.to_owned(),
                None => self.at_end = true,
            }
            self.page = page?.into();
        }
        Ok(self.page.pop_front())
    }
}

/// A body that is lent to one try after the other.
#[derive(Default)]
struct Upload {
    body: Body,
    /// What has been read, until that is too much to keep.
    read: Vec<Bytes>,
    read_bytes: usize,
}

/// An upload that goes back to where it is from. It begins anew, if all that was read of it is still there.
struct Lent {
    upload: Upload,
    /// In what was read.
    at: usize,
    lender: Arc<Mutex<Upload>>,
}

impl Lent {
    async fn next_piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        if let Some(piece) = self.upload.read.get(self.at) {
            self.at += 1;
            return Some(Ok(piece.clone()));
        }
        let piece = self.upload.body.next().await;
        if let Some(Ok(piece)) = &piece {
            self.upload.read_bytes += piece.len();
            if self.upload.read_bytes <= MAX_KEPT {
                self.upload.read.push(piece.clone());
                self.at += 1;
            } else {
                self.upload.read.clear();
                self.at = 0;
            }
        }
        piece
    }
}

impl BodyStream for Lent {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(self.next_piece())
    }

    fn content_length(&self) -> Option<u64> {
        let again: usize = self.upload.read[self.at..].iter().map(Bytes::len).sum();
        Some(again as u64 + self.upload.body.content_length()?)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.lender.lock() = std::mem::take(&mut self.upload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::app_fn;

    fn options() -> Options {
        Options {
            user_agent: "Swift Test".to_owned(),
            request_tries: 3,
            use_replication_network: true,
            log_name: "test-ic".to_owned(),
        }
    }

    /// A client whose requests get these answers, and what it has sent.
    fn client(answers: &[(u16, &'static str)]) -> (InternalClient, Arc<Mutex<Vec<String>>>) {
        let (answers, seen) = (Arc::new(Mutex::new(answers.to_vec())), Arc::<Mutex<Vec<String>>>::default());
        let told = seen.clone();
        let app = app_fn(move |req: Request| {
            let header = |name| req.headers.get_str(name).unwrap_or("-").to_owned();
            let marks = (header("User-Agent"), header("X-Backend-Use-Replication-Network"));
            told.lock().push(format!("{} {} {} {}", req.method, req.path_qs(), marks.0, marks.1));
            let (status, body) = answers.lock().remove(0);
            async move { Response::new(status).with_body(body) }
        });
        (InternalClient::new(app, options(), Context::builder("test-ic").build()), seen)
    }

    #[tokio::test(start_paused = true)]
    async fn server_errors_are_tried_again_and_refusals_are_not() {
        let (client, seen) = client(&[(503, ""), (500, ""), (204, "")]);
        client.delete(&["a", "c", "p q/r"], &Headers::new(), is_success).await.unwrap();
        assert_eq!(*seen.lock(), ["DELETE /v1/a/c/p%20q/r Swift Test true"; 3]);
        let (client, seen) = self::client(&[(412, "why")]);
        let err = client.delete(&["a", "c", "o"], &Headers::new(), is_success).await.unwrap_err();
        assert_eq!(err.to_string(), "Unexpected response: 412 Precondition Failed (b'why')");
        assert_eq!(seen.lock().len(), 1);
        let (client, seen) = self::client(&[(503, ""), (503, ""), (507, "")]);
        let err = client.delete(&["a"], &Headers::new(), is_success).await.unwrap_err();
        assert_eq!((err.status, seen.lock().len()), (507, 3));
    }

    #[tokio::test]
    async fn listings_go_on_after_a_marker() {
        let (client, seen) = client(&[(200, "[{\"name\": \"c\"}]"), (404, ""), (200, "{")]);
        let wanted = |status| is_success(status) || status == 404;
        let listing = client.listing(&["a"], "b ü", wanted).await.unwrap();
        assert_eq!(listing[0]["name"], "c");
        assert!(seen.lock()[0].contains("/v1/a?format=json&marker=b%20%C3%BC&end_marker=&prefix="));
        assert!(client.listing(&["a"], "", wanted).await.unwrap().is_empty());
        assert!(client.listing(&["a"], "", wanted).await.is_err());
    }

    #[tokio::test]
    async fn entries_come_page_by_page_until_there_are_no_more() {
        let page = "[{\"name\": \"b\"}, {\"name\": \"c\"}]";
        for (end, fails) in
            [((200, "[]"), false), ((404, ""), false), ((200, page), false), ((403, ""), true)]
        {
            let (client, seen) = client(&[(200, page), end]);
            let mut entries = client.entries(&["a", "q"]);
            assert_eq!(entries.next().await.unwrap().unwrap()["name"], "b");
            assert_eq!(entries.next().await.unwrap().unwrap()["name"], "c");
            match end == (200, page) {
                // A listing that does not heed the marker: what it has is told once more, and no further.
                true => {
                    assert!(entries.next().await.unwrap().is_some());
                    assert!(entries.next().await.unwrap().is_some());
                }
                false => assert_eq!(entries.next().await.is_err(), fails),
            }
            assert!(entries.next().await.unwrap().is_none());
            assert_eq!(seen.lock().len(), 2);
            assert!(seen.lock()[1].contains("marker=c&"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_begins_anew_unless_it_is_large_and_was_read() {
        let large = "x".repeat(MAX_KEPT - 5);
        for (reads, first, is_whole) in
            [(true, "first", true), (false, &*large, true), (true, &*large, false)]
        {
            let (left, got) = (Arc::new(Mutex::new(1)), Arc::<Mutex<String>>::default());
            let told = got.clone();
            let app = app_fn(move |mut req: Request| {
                let (left, told) = (left.clone(), told.clone());
                async move {
                    let fails = std::mem::replace(&mut *left.lock(), 0) == 1;
                    if fails && reads {
                        let _ = req.body.drain(u64::MAX).await;
                    }
                    if fails {
                        return Response::new(503);
                    }
                    let length = req.body.content_length();
                    let body = req.body.collect(2 * MAX_KEPT).await.unwrap();
                    assert_eq!(length, Some(body.len() as u64));
                    *told.lock() = String::from_utf8(body.to_vec()).unwrap();
                    Response::new(201)
                }
            });
            let client = InternalClient::new(app, options(), Context::builder("test-ic").build());
            let whole = format!("{first}second");
            let length = whole.len() as u64;
            let first = first.to_owned();
            let body = Body::driven(|sender| async move {
                sender.send(first).await.unwrap();
                sender.send("second").await.unwrap();
            });
            client.upload(&["a", "c", "o"], &Headers::new(), body.with_length(length)).await.unwrap();
            assert_eq!(*got.lock(), if is_whole { whole } else { String::new() });
        }
    }

    #[test]
    fn a_gatekeeper_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("expirer.conf");
        std::fs::write(
            &path,
            "[pipeline:main]\npipeline = gatekeeper proxy-server\n[filter:gatekeeper]\n\
             use = egg:swift#gatekeeper\n[app:proxy-server]\nuse = egg:swift#proxy\n",
        )
        .unwrap();
        let loaded = InternalClient::load(&path, options(), &Registry::new(), &Process::new());
        let err = loaded.err().unwrap().to_string();
        assert!(
            err.ends_with(
                "[filter:gatekeeper]: the gatekeeper is not allowed in the pipeline of an internal client"
            ),
            "{err}"
        );
    }
}
