//! PUT of an object in a replicated policy: the same bytes to as many servers as the ring has replicas.
//!
//! A small object that is not conditional goes whole with its head, in one write to each server; a server that
//! fails is replaced by the next node as long as there is one. Any other is streamed: first the heads, with
//! `Expect: 100-continue`, until a quorum of servers wants the data; then piece by piece to all of them, so that
//! memory does not grow with the object. A server that fails on the way is left behind, and the PUT fails when
//! there is no quorum left.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use common::headers::{
    CONTENT_TYPE, ETAG, EXPECT, IF_NONE_MATCH, LAST_MODIFIED, X_DELETE_AFTER, X_DELETE_AT, X_TIMESTAMP,
};
use common::timestamp::Timestamp;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use service::http::client::Timeouts;
use service::http::{BodyError, Headers, Method, Request, Response};
use service::logs::Logger;

use crate::app::{Application, MAX_ERROR_BODY, is_chunked};
use crate::backend::{Target, send};
use crate::controllers::base::{Answer, best_response, entity_path};
use crate::controllers::getter::normalize_etag;
use crate::controllers::object::putter::{Putter, Wanted};
use crate::controllers::object::{ObjectController, Place, set_sync_key};
use crate::environ::{Authorizer, ContentTypeOverridden, UpdateFooters};
use crate::info::{is_server_error, is_success};
use crate::node_iter::NodeIter;
use crate::quorum::{have_quorum, quorum_size};

/// Up to this size an object is read before its servers are asked.
const SMALL_OBJECT: u64 = 64 * 1024;

/// What all the ways of one PUT need.
pub struct Put {
    pub app: Arc<Application>,
    pub logger: Logger,
    pub target: Target,
    nodes: Mutex<NodeIter>,
}

impl ObjectController {
    pub async fn put(&self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        let if_none_match = req.headers.get(IF_NONE_MATCH).map(<[u8]>::to_vec);
        if if_none_match.as_ref().is_some_and(|value| !value.contains(&b'*')) {
            return Err(Response::text(400, "If-None-Match only supports *"));
        }
        let info = self.container_info(app, req).await;
        let place = self.place_for_change(app, req)?;
        set_sync_key(req, &info);
        if let Some(denial) = Authorizer::denial(req, info.write_acl.as_deref()).await {
            return Err(denial);
        }
        if !info.is_success() {
            return Err(Response::error(404));
        }
        update_content_type(app, req);
        self.check_creation(app, req)?;
        let delete_at = self.config_expiration(app, req)?;
        let headers = self.backend_headers(app, req, place.nodes.len(), delete_at)?;
        if place.nodes.is_empty() {
            return Err(Response::error(404));
        }
        let put = Arc::new(self.prepare(app, req, &place));
        let length = req.headers.get_int::<u64>("Content-Length").filter(|_| !is_chunked(req));
        let footers = req.env.get::<UpdateFooters>().is_some();
        let small = length.filter(|length| {
            *length <= SMALL_OBJECT && if_none_match.is_none() && !footers && !req.headers.contains(EXPECT)
        });
        let answers = match small {
            Some(length) => put.store_small(req, headers, length).await?,
            None => put.store_streaming(req, headers, length).await?,
        };
        finish(&put.logger, req, answers)
    }

    fn check_creation(&self, app: &Application, req: &mut Request) -> Result<(), Response> {
        let limits = &app.ctx.swift_conf.constraints;
        let delete_at = limits
            .check_object_creation(req.headers.iter(), &self.object)
            .map_err(|(status, text)| Response::text(status, text))?;
        if let Some(delete_at) = delete_at {
            req.headers.insert(X_DELETE_AT, delete_at);
            req.headers.remove(X_DELETE_AFTER);
        }
        let parameters = req.headers.get_str(CONTENT_TYPE).unwrap_or("").split(';').skip(1);
        let reserved = parameters.into_iter().any(|parameter| parameter.trim_start().starts_with("swift_"));
        if reserved && req.env.get::<ContentTypeOverridden>().is_none() {
            let text = "Invalid Content-Type, swift_* is not a valid parameter name.";
            return Err(Response::error(400).with_body(text));
        }
        Ok(())
    }

    fn prepare(&self, app: &Arc<Application>, req: &Request, place: &Place) -> Put {
        let options = app.options.policy(Some(self.policy));
        let nodes = NodeIter::local_first(app, &place.ring, place.part, options, false);
        Put {
            app: app.clone(),
            logger: app.logger(req.trans_id()),
            target: Target::new(req, Method::Put, place.part, entity_path(req)),
            nodes: Mutex::new(nodes),
        }
    }
}

impl Put {
    /// Sends the object in one piece with the head.
    async fn store_small(
        self: &Arc<Self>,
        req: &mut Request,
        headers: Vec<Headers>,
        length: u64,
    ) -> Result<Vec<Answer>, Response> {
        let data = self.read_small(req, length).await?;
        let count = headers.len();
        let quorum = quorum_size(count);
        let mut pending: FuturesUnordered<_> =
            headers.into_iter().map(|headers| self.clone().send_small(headers, data.clone())).collect();
        let mut answers = self.gather(&mut pending, count).await;
        if !pending.is_empty() {
            // They have the data: a slow replica gets the object too.
            tokio::spawn(async move { while pending.next().await.is_some() {} });
        }
        if answers.iter().any(|answer| answer.status == 409) {
            return Err(Response::error(202));
        }
        self.check_connections(answers.len(), quorum)?;
        pad(&mut answers, count);
        Ok(answers)
    }

    async fn read_small(&self, req: &mut Request, length: u64) -> Result<Bytes, Response> {
        let mut data = BytesMut::new();
        loop {
            let piece = self.next_piece(req).await?;
            match piece {
                Some(piece) if data.is_empty() && piece.len() as u64 == length => return Ok(piece),
                Some(piece) => data.extend_from_slice(&piece),
                None if (data.len() as u64) < length => {
                    return Err(self.client_disconnected("Client disconnected without sending enough data"));
                }
                None => return Ok(data.freeze()),
            }
            if data.len() as u64 > length {
                return Err(Response::error(400));
            }
        }
    }

    async fn next_piece(&self, req: &mut Request) -> Result<Option<Bytes>, Response> {
        match tokio::time::timeout(self.app.options.client_timeout, req.body.next()).await {
            Ok(piece) => piece.transpose().map_err(|error| self.client_failed(&error)),
            Err(_) => Err(self.client_failed(&BodyError::Timeout)),
        }
    }

    /// The first answer that is no server error, from one node after the other.
    async fn send_small(self: Arc<Self>, headers: Headers, data: Bytes) -> Option<Answer> {
        let app = &self.app;
        let timeouts = Timeouts { conn: app.options.conn_timeout, node: app.options.node_timeout };
        loop {
            let node = self.next_node()?;
            let attempt = async {
                let mut resp = send(app, &node, &self.target, &headers, data.clone(), timeouts)
                    .await
                    .map_err(|e| e.to_string())?;
                let body = resp.body.collect(MAX_ERROR_BODY).await.map_err(|e| e.to_string())?;
                Ok::<_, String>((resp.status.0, resp.headers, body))
            };
            match attempt.await {
                Ok((status, headers, body)) if !is_server_error(status) => {
                    return Some(Answer { status, headers, body, node: Some(node) });
                }
                Ok((507, ..)) => app.error_limit(&self.logger, &node, "ERROR Insufficient Storage"),
                Ok((status, ..)) => {
                    app.error_occurred(&self.logger, &node, &format!("ERROR {status} From Object Server"));
                }
                Err(error) => {
                    let doing = format!("Trying to PUT {}", self.target.path);
                    app.exception_occurred(&self.logger, &node, "Object", &doing, &error);
                }
            }
        }
    }

    async fn store_streaming(
        self: &Arc<Self>,
        req: &mut Request,
        headers: Vec<Headers>,
        length: Option<u64>,
    ) -> Result<Vec<Answer>, Response> {
        let count = headers.len();
        let min = quorum_size(count);
        let conditional = req.headers.contains(IF_NONE_MATCH);
        let footers = req.env.get::<UpdateFooters>().cloned();
        let wanted = Wanted { length, conditional, footers: footers.is_some() };
        let connecting = headers.into_iter().map(|headers| self.clone().connect(headers, wanted));
        let mut putters: Vec<Putter> = join_all(connecting).await.into_iter().flatten().collect();
        check_failures(&putters, conditional)?;
        self.check_connections(putters.len(), min)?;

        self.transfer(req, &mut putters, min, length).await?;
        let mut trailer = Headers::new();
        if let Some(footers) = footers {
            (footers.0)(&mut trailer);
        }
        join_all(putters.iter_mut().map(|putter| putter.end_of_object_data(self, &trailer))).await;
        putters.retain(|putter| !putter.failed);
        self.check_connections(putters.len(), min)?;
        let mut answers = self.responses(putters, count).await;
        pad(&mut answers, count);
        Ok(answers)
    }

    /// A putter to the first node that takes the head.
    async fn connect(self: Arc<Self>, headers: Headers, wanted: Wanted) -> Option<Putter> {
        loop {
            let node = self.next_node()?;
            if let Some(putter) = Putter::connect(&self, node, &headers, wanted).await {
                return Some(putter);
            }
        }
    }

    fn next_node(&self) -> Option<ring::Node> {
        self.nodes.lock().next(&self.app)
    }

    /// Passes the client's data on to all putters, piece by piece.
    async fn transfer(
        &self,
        req: &mut Request,
        putters: &mut Vec<Putter>,
        min: usize,
        length: Option<u64>,
    ) -> Result<(), Response> {
        let limit = self.app.ctx.swift_conf.constraints.max_file_size;
        let mut transferred = 0;
        while let Some(piece) = self.next_piece(req).await? {
            transferred += piece.len() as u64;
            if transferred > limit {
                return Err(Response::error(413));
            }
            join_all(putters.iter_mut().map(|putter| putter.send_chunk(self, piece.clone()))).await;
            putters.retain(|putter| !putter.failed);
            if putters.len() < min {
                self.logger.error(format_args!(
                    "Object PUT exceptions during send, {}/{min} required connections",
                    putters.len()
                ));
                return Err(Response::error(503));
            }
        }
        if length.is_some_and(|length| transferred < length) {
            return Err(self.client_disconnected("Client disconnected without sending enough data"));
        }
        Ok(())
    }

    async fn responses(self: &Arc<Self>, putters: Vec<Putter>, count: usize) -> Vec<Answer> {
        let mut pending: FuturesUnordered<_> =
            putters.into_iter().map(|putter| putter.response(self.clone())).collect();
        // Who answers later has all the data, and finishes by itself.
        self.gather(&mut pending, count).await
    }

    /// Answers up to a quorum, and those that come soon after it. The rest stays pending.
    async fn gather<F>(&self, pending: &mut FuturesUnordered<F>, count: usize) -> Vec<Answer>
    where
        F: Future<Output = Option<Answer>>,
    {
        let quorum = quorum_size(count);
        let (mut answers, mut statuses) = (Vec::with_capacity(count), Vec::with_capacity(count));
        while let Some(answer) = pending.next().await {
            let Some(answer) = answer else { continue };
            statuses.push(answer.status);
            answers.push(answer);
            if have_quorum(&statuses, quorum) {
                break;
            }
        }
        let stragglers = async {
            while let Some(answer) = pending.next().await {
                answers.extend(answer);
            }
        };
        // Not an error: who is late is left pending.
        let _ = tokio::time::timeout(self.app.options.post_quorum_timeout, stragglers).await;
        answers
    }

    fn check_connections(&self, connections: usize, min: usize) -> Result<(), Response> {
        if connections >= min {
            return Ok(());
        }
        self.logger.error(format_args!("Object PUT returning 503, {connections}/{min} required connections"));
        Err(Response::error(503))
    }

    /// The response when the client's data ended too early.
    fn client_failed(&self, error: &BodyError) -> Response {
        match error {
            BodyError::Timeout => {
                let secs = self.app.options.client_timeout.as_secs_f64();
                self.logger.warning(format_args!("ERROR Client read timeout ({secs}s)"));
                self.app.ctx.statsd.increment("object.client_timeouts");
                Response::error(408)
            }
            BodyError::TooLong => Response::error(413),
            _ => self.client_disconnected("Client disconnected without sending last chunk"),
        }
    }

    fn client_disconnected(&self, text: &str) -> Response {
        self.logger.warning(text);
        self.app.ctx.statsd.increment("object.client_disconnects");
        Response::error(499)
    }
}

/// 412 if the object must not exist and does, 202 if a server has a newer one: nothing is sent then.
fn check_failures(putters: &[Putter], conditional: bool) -> Result<(), Response> {
    let said = |status: u16| putters.iter().any(|putter| putter.final_status() == Some(status));
    if conditional && said(412) {
        return Err(Response::error(412));
    }
    if said(409) {
        return Err(Response::error(202));
    }
    Ok(())
}

fn pad(answers: &mut Vec<Answer>, count: usize) {
    while answers.len() < count {
        answers.push(Answer::nothing(503));
    }
}

fn finish(logger: &Logger, req: &Request, answers: Vec<Answer>) -> Result<Response, Response> {
    let mut etags: Vec<Vec<u8>> = answers
        .iter()
        .filter(|answer| is_success(answer.status))
        .map(|answer| normalize_etag(answer.headers.get(ETAG)))
        .collect();
    etags.sort_unstable();
    etags.dedup();
    if etags.len() > 1 {
        logger.error(format_args!("Object servers returned {} mismatched etags", etags.len()));
        return Err(Response::error(500));
    }
    // Swift: of the backends' headers the client sees the ETag alone.
    let bare: Vec<Answer> =
        answers.into_iter().map(|answer| Answer { headers: Headers::new(), ..answer }).collect();
    let mut resp = best_response(logger, &bare, "Object PUT", &[], None);
    if resp.status.0 != 503
        && let Some(etag) = etags.pop()
    {
        resp.headers.insert("Etag", etag);
    }
    if let Some(timestamp) = req.headers.get_str(X_TIMESTAMP).and_then(|text| Timestamp::parse(text).ok()) {
        resp.headers.insert(LAST_MODIFIED, timestamp.http_date());
    }
    Ok(resp)
}

/// Guesses a Content-Type from the name if there is none, or if the client wants that.
fn update_content_type(app: &Application, req: &mut Request) {
    let detect = req.headers.get_bool("X-Detect-Content-Type");
    if detect || req.headers.get(CONTENT_TYPE).is_none_or(<[u8]>::is_empty) {
        let guessed = app.mime_types.guess_type(&req.path).unwrap_or("application/octet-stream");
        req.headers.insert(CONTENT_TYPE, guessed);
        if detect {
            req.headers.remove("X-Detect-Content-Type");
        }
    }
}
