//! GET and HEAD: ask one node after the other until one has what is wanted, and stream it from there; when that
//! node fails half way, go on from the next one.
//!
//! With `concurrent_gets` further nodes are asked before the first has answered, each `concurrency_timeout`
//! later; with `X-Newest` all are asked, and the newest answer taken.
//!
//! A download is resumed only from an object with the same ETag, by a Range that begins where the first node
//! stopped, and only if the answer begins exactly there. What it does not do: resume within a response of
//! several ranges (`multipart/byteranges`), which is passed on as it comes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::headers::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, RANGE, ServerType, X_BACKEND_DATA_TIMESTAMP,
    X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT, X_BACKEND_STORAGE_POLICY_INDEX, X_BACKEND_TIMESTAMP,
    X_NEWEST, X_PUT_TIMESTAMP, X_STORAGE_POLICY, X_TIMESTAMP,
};
use common::policy::PolicyIndex;
use common::timestamp::Timestamp;
use futures_util::stream::{FuturesUnordered, StreamExt};
use ring::Node;
use service::http::client::Timeouts;
use service::http::{Body, BodyError, BodyStream, BoxFuture, Headers, Method, Request, Response};
use service::logs::Logger;

use crate::app::{Application, MAX_ERROR_BODY};
use crate::backend::{Target, send};
use crate::controllers::base::{Answer, all_request_headers, best_response, title, update_headers};
use crate::environ::NonClientDisconnect;
use crate::info::{is_server_error, is_success};
use crate::node_iter::NodeIter;

/// What every attempt of a GET or HEAD needs.
pub struct Ask {
    pub app: Arc<Application>,
    pub logger: Logger,
    pub server_type: ServerType,
    pub target: Target,
    pub node_timeout: Duration,
}

pub struct Getter {
    ask: Arc<Ask>,
    nodes: NodeIter,
    headers: Arc<Headers>,
    newest: bool,
    concurrency: usize,
    concurrency_timeout: Duration,
    suppress_missing: usize,
    used_nodes: Vec<u32>,
    used_etag: Option<Vec<u8>>,
    latest_404: Timestamp,
    answers: Vec<Answer>,
    sources: Vec<Source>,
}

struct Source {
    node: Node,
    timestamp: Timestamp,
    resp: Response,
}

/// `GETorHEAD_base`: the response for the client.
pub fn get_or_head(
    app: &Arc<Application>,
    req: &Request,
    server_type: ServerType,
    nodes: NodeIter,
    target: Target,
    policy: Option<PolicyIndex>,
) -> impl Future<Output = Response> + Send + use<> {
    let getter = Getter::new(app, req, server_type, nodes, target, policy);
    let disconnect = req.env.get::<NonClientDisconnect>().cloned();
    async move { getter.respond(disconnect).await }
}

impl Getter {
    fn new(
        app: &Arc<Application>,
        req: &Request,
        server_type: ServerType,
        nodes: NodeIter,
        target: Target,
        policy: Option<PolicyIndex>,
    ) -> Self {
        let newest = req.headers.get_bool(X_NEWEST);
        let options = app.options.policy(policy);
        let node_timeout = match server_type {
            ServerType::Object if !newest => app.options.recoverable_node_timeout,
            _ => app.options.node_timeout,
        };
        let ask =
            Ask { app: app.clone(), logger: app.logger(req.trans_id()), server_type, target, node_timeout };
        Self {
            concurrency: if options.concurrent_gets { app.sources_of(policy, &nodes) } else { 1 },
            concurrency_timeout: options.concurrency_timeout,
            suppress_missing: options
                .rebalance_missing_suppression_count
                .min(nodes.num_primary_nodes.saturating_sub(1)),
            ask: Arc::new(ask),
            nodes,
            headers: Arc::new(all_request_headers(app, req)),
            newest,
            used_nodes: Vec::new(),
            used_etag: None,
            latest_404: Timestamp::ZERO,
            answers: Vec::new(),
            sources: Vec::new(),
        }
    }

    async fn respond(mut self, disconnect: Option<NonClientDisconnect>) -> Response {
        let app = self.ask.app.clone();
        let mut resp = match self.find_source().await {
            Some(source) => self.stream(source, disconnect),
            None => {
                let what = format!("{} {}", title(self.ask.server_type), self.ask.target.method);
                best_response(&self.ask.logger, &self.answers, &what, &[], None)
            }
        };
        if is_success(resp.status.0)
            && let Some(index) = resp.headers.get(X_BACKEND_STORAGE_POLICY_INDEX)
        {
            let text = String::from_utf8_lossy(index).into_owned();
            let policy = text.parse().ok().and_then(|index| app.policies().get(PolicyIndex(index)));
            match policy {
                Some(policy) => resp.headers.insert(X_STORAGE_POLICY, &policy.name),
                None => {
                    app.ctx.logger.error(format_args!("Could not translate policy index '{text}' to policy"))
                }
            }
        }
        resp
    }

    /// The response that a source makes; its body holds on to the getter, to resume.
    fn stream(self, source: Source, disconnect: Option<NonClientDisconnect>) -> Response {
        let status = source.resp.status;
        let mut resp = Response::new(status);
        update_headers(&mut resp.headers, &source.resp.headers);
        resp.headers.insert("Accept-Ranges", "bytes");
        for name in [CONTENT_TYPE, CONTENT_LENGTH] {
            if let Some(value) = source.resp.headers.get(name) {
                resp.headers.insert(name, value);
            }
        }
        if self.ask.target.method != Method::Get {
            return resp;
        }
        if matches!(status.0, 200 | 206) {
            let length = source.resp.headers.get_int::<u64>(CONTENT_LENGTH);
            let body = Body::stream(Download::new(self, source, disconnect));
            resp.body = match length {
                Some(length) => body.with_length(length),
                None => body,
            };
        } else if !status.explanation().is_empty() {
            resp.headers.remove(CONTENT_LENGTH);
            resp.body = Response::error(status).body;
        }
        resp
    }

    /// The source to take, if any node has one; what the others said is in `answers`.
    async fn find_source(&mut self) -> Option<Source> {
        self.answers.clear();
        self.sources.clear();
        if self.concurrency <= 1 {
            while let Some(node) = self.next_node() {
                let result = self.ask.clone().ask(node, self.headers.clone()).await;
                if self.judge(result).is_break() {
                    break;
                }
            }
        } else {
            self.ask_concurrently().await;
        }
        let latest_404 = self.latest_404;
        self.sources.retain(|source| source.timestamp >= latest_404);
        let newest = (0..self.sources.len()).max_by_key(|index| self.sources[*index].timestamp)?;
        let source = self.sources.swap_remove(newest);
        self.sources.clear();
        self.used_nodes.push(source.node.id);
        if self.used_etag.is_none() {
            self.used_etag = Some(normalize_etag(source.resp.headers.get(ETAG)));
        }
        Some(source)
    }

    async fn ask_concurrently(&mut self) {
        let mut pending = FuturesUnordered::new();
        loop {
            let node = self.next_node();
            let out_of_nodes = node.is_none();
            if let Some(node) = node {
                pending.push(self.ask.clone().ask(node, self.headers.clone()));
            }
            // With room for more requests, the next node's turn comes after the concurrency timeout.
            let patience = match pending.len() < self.concurrency && !out_of_nodes {
                true => self.concurrency_timeout,
                false => Duration::MAX,
            };
            let first_good = async {
                while let Some(result) = pending.next().await {
                    if self.judge(result).is_break() {
                        return true;
                    }
                }
                false
            };
            let found = tokio::time::timeout(patience, first_good).await.unwrap_or(false);
            if found || out_of_nodes {
                return;
            }
        }
    }

    fn next_node(&mut self) -> Option<Node> {
        loop {
            let node = self.nodes.next(&self.ask.app)?;
            if !self.used_nodes.contains(&node.id) {
                return Some(node);
            }
        }
    }

    /// Files what a node said; breaks when nobody else need be asked.
    fn judge(&mut self, (node, result): (Node, Option<Result<Response, Answer>>)) -> ControlFlow<()> {
        match result {
            None => ControlFlow::Continue(()),
            Some(Ok(resp)) => self.judge_good(node, resp),
            Some(Err(answer)) => {
                self.judge_bad(node, answer);
                ControlFlow::Continue(())
            }
        }
    }

    fn judge_good(&mut self, node: Node, resp: Response) -> ControlFlow<()> {
        // A database that was never PUT: the node has no copy in sync.
        let put_timestamp = resp.headers.get_str(X_PUT_TIMESTAMP);
        let never_put = put_timestamp.is_some_and(|value| value.parse::<f64>().is_ok_and(|secs| secs == 0.0));
        let other_etag =
            self.used_etag.as_ref().is_some_and(|used| *used != normalize_etag(resp.headers.get(ETAG)));
        if never_put || other_etag {
            self.answers.push(Answer::nothing(404));
            return ControlFlow::Continue(());
        }
        let timestamp = source_timestamp(&resp.headers);
        if timestamp < self.latest_404 {
            return ControlFlow::Continue(());
        }
        let (status, headers) = (resp.status.0, resp.headers.clone());
        self.answers.push(Answer { status, headers, body: Bytes::new(), node: None });
        self.sources.push(Source { node, timestamp, resp });
        if self.newest { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn judge_bad(&mut self, node: Node, answer: Answer) {
        let timestamp = answer
            .headers
            .get_str(X_BACKEND_TIMESTAMP)
            .and_then(|text| Timestamp::parse(text).ok())
            .unwrap_or(Timestamp::ZERO);
        let status = answer.status;
        if timestamp.is_zero() {
            // A handoff that merely has nothing says nothing, and neither does a primary which may have been
            // assigned the partition just now.
            if node.handoff_index.is_some() && (status == 404 || is_server_error(status)) {
                return;
            }
            if status == 404 && self.suppress_missing > 0 {
                self.suppress_missing -= 1;
                return;
            }
        }
        if self.ask.server_type == ServerType::Object && status == 404 {
            self.latest_404 = self.latest_404.max(timestamp);
        }
        let Ask { app, logger, server_type, target, .. } = &*self.ask;
        app.check_response(logger, &node, title(*server_type), status, target, &answer.body);
        self.answers.push(answer);
    }
}

impl Ask {
    /// A good response, or an answer read to its end which is not; `None` if the node could not be talked to.
    pub async fn ask(
        self: Arc<Self>,
        node: Node,
        headers: Arc<Headers>,
    ) -> (Node, Option<Result<Response, Answer>>) {
        let timeouts = Timeouts { conn: self.app.options.conn_timeout, node: self.node_timeout };
        let attempt = async {
            let mut resp = send(&self.app, &node, &self.target, &headers, Bytes::new(), timeouts)
                .await
                .map_err(|error| error.to_string())?;
            if is_good_source(resp.status.0, self.server_type) {
                return Ok(Ok(resp));
            }
            let body = match tokio::time::timeout(self.node_timeout, resp.body.collect(MAX_ERROR_BODY)).await
            {
                Ok(body) => body.map_err(|error| error.to_string())?,
                Err(_) => return Err("timeout".to_owned()),
            };
            Ok::<_, String>(Err(Answer { status: resp.status.0, headers: resp.headers, body, node: None }))
        };
        match attempt.await {
            Ok(result) => (node, Some(result)),
            Err(error) => {
                let doing = format!("Trying to {} {}", self.target.method, self.target.path);
                self.app.exception_occurred(&self.logger, &node, title(self.server_type), &doing, &error);
                (node, None)
            }
        }
    }
}

fn is_good_source(status: u16, server_type: ServerType) -> bool {
    (200..400).contains(&status) || (status == 416 && server_type == ServerType::Object)
}

fn source_timestamp(headers: &Headers) -> Timestamp {
    let names = [X_BACKEND_DATA_TIMESTAMP, X_BACKEND_TIMESTAMP, X_PUT_TIMESTAMP, X_TIMESTAMP];
    let first = names.iter().find_map(|name| headers.get_str(name).filter(|value| !value.is_empty()));
    first.and_then(|text| Timestamp::parse(text).ok()).unwrap_or(Timestamp::ZERO)
}

/// An ETag without its quotes.
pub fn normalize_etag(etag: Option<&[u8]>) -> Vec<u8> {
    let etag = etag.unwrap_or_default();
    etag.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(etag).to_vec()
}

/// The body of a response on its way from one node, or several in turn, to the client.
struct Download {
    getter: Getter,
    node: Node,
    body: Body,
    /// What is left of the one range that is downloaded: the next byte, and the last if it is known.
    range: Option<(u64, Option<u64>)>,
    disconnect: Option<NonClientDisconnect>,
    done: bool,
}

impl Download {
    fn new(getter: Getter, source: Source, disconnect: Option<NonClientDisconnect>) -> Self {
        let range = response_range(&source.resp);
        Self { getter, node: source.node, body: source.resp.body, range, disconnect, done: false }
    }

    async fn next_piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            let node_timeout = self.getter.ask.node_timeout;
            let error = match tokio::time::timeout(node_timeout, self.body.next()).await {
                Ok(Some(Ok(piece))) => {
                    if let Some((next, _)) = &mut self.range {
                        *next += piece.len() as u64;
                    }
                    return Some(Ok(piece));
                }
                Ok(None) => match self.range {
                    Some((next, Some(last))) if next <= last => BodyError::Disconnected,
                    _ => return None,
                },
                Ok(Some(Err(error))) => error,
                Err(_) => BodyError::Timeout,
            };
            // The last byte may have been sent just before the failure.
            if matches!(self.range, Some((next, Some(last))) if next > last) {
                return None;
            }
            if !self.resume().await {
                let ask = &self.getter.ask;
                ask.logger.error(format_args!("Trying to send to client {}: {error}", ask.target.path));
                return Some(Err(error));
            }
        }
    }

    /// Goes on from another node; false if that is not possible.
    async fn resume(&mut self) -> bool {
        let ask = self.getter.ask.clone();
        let Some((next, last)) = self.range else { return false };
        if self.getter.newest || ask.server_type != ServerType::Object {
            return false;
        }
        self.body = Body::empty();
        ask.app.error_occurred(&ask.logger, &self.node, "Trying to read object during GET (retrying)");
        let mut headers = (*self.getter.headers).clone();
        headers.remove(X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT);
        let last_text = last.map_or(String::new(), |last| last.to_string());
        headers.insert(RANGE, format!("bytes={next}-{last_text}"));
        self.getter.headers = Arc::new(headers);
        let Some(source) = self.getter.find_source().await else { return false };
        let same_place = match response_range(&source.resp) {
            Some((start, end)) => start == next && (last.is_none() || end == last),
            None => false,
        };
        if !same_place {
            return false;
        }
        self.node = source.node;
        self.body = source.resp.body;
        true
    }
}

impl BodyStream for Download {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            let piece = self.next_piece().await;
            if !matches!(piece, Some(Ok(_))) {
                self.done = true;
                if let (Some(Err(_)), Some(disconnect)) = (&piece, &self.disconnect) {
                    disconnect.set();
                }
            }
            piece
        })
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let complete = matches!(self.range, Some((next, Some(last))) if next > last);
        if !self.done && !complete {
            let ask = &self.getter.ask;
            ask.logger.info(format_args!("Client disconnected on read of '{}'", ask.target.path));
        }
    }
}

/// First and last byte of what a response brings, if it is one piece of the object.
fn response_range(resp: &Response) -> Option<(u64, Option<u64>)> {
    match resp.status.0 {
        200 => {
            let length = resp.headers.get_int::<u64>(CONTENT_LENGTH);
            match length {
                Some(0) => Some((1, Some(0))),
                Some(length) => Some((0, Some(length - 1))),
                None => Some((0, None)),
            }
        }
        206 => {
            let range = resp.headers.get_str("Content-Range")?.strip_prefix("bytes ")?;
            let (start, end) = range.split_once('/')?.0.split_once('-')?;
            Some((start.parse().ok()?, Some(end.parse().ok()?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_lose_their_quotes() {
        assert_eq!(normalize_etag(Some(b"\"abc\"")), b"abc");
        assert_eq!(normalize_etag(Some(b"abc")), b"abc");
        assert_eq!(normalize_etag(Some(b"\"abc")), b"\"abc");
        assert_eq!(normalize_etag(None), b"");
    }

    #[test]
    fn the_range_of_a_response_is_known_unless_there_are_several() {
        let of = |status: u16, name: &str, value: &str| {
            response_range(&Response::new(status).with_header(name, value))
        };
        assert_eq!(of(200, "Content-Length", "10"), Some((0, Some(9))));
        assert_eq!(of(200, "Content-Length", "0"), Some((1, Some(0))));
        assert_eq!(of(200, "X", "y"), Some((0, None)));
        assert_eq!(of(206, "Content-Range", "bytes 5-9/20"), Some((5, Some(9))));
        assert_eq!(of(206, "Content-Type", "multipart/byteranges; boundary=x"), None);
        assert_eq!(of(206, "Content-Range", "items 5-9/20"), None);
    }
}
