//! PUT of an object: what all policies have in common, until it is known how the data is stored.
//!
//! The checks come in Swift's order. Then the policy's own file takes over: [`super::replicated`] or [`super::ec`]. Here
//! is also what both of them do alike: take the client's data, find a node for each putter, gather answers.

use std::sync::Arc;

use bytes::Bytes;
use common::headers::{CONTENT_TYPE, IF_NONE_MATCH, LAST_MODIFIED, X_DELETE_AFTER, X_DELETE_AT, X_TIMESTAMP};
use common::policy::PolicyKind;
use common::timestamp::Timestamp;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use service::http::{BodyError, Headers, Method, Request, Response};
use service::logs::Logger;

use crate::app::{Application, is_chunked};
use crate::backend::Target;
use crate::controllers::base::{Answer, entity_path};
use crate::controllers::object::putter::{Putter, Wanted, Whole};
use crate::controllers::object::{ObjectController, Place};
use crate::environ::ContentTypeOverridden;
use crate::node_iter::NodeIter;

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
        let place = self.place_of_allowed_change(app, req).await?;
        update_content_type(app, req);
        self.check_creation(app, req)?;
        let delete_at = self.config_expiration(app, req)?;
        let headers = self.backend_headers(app, req, place.nodes.len(), delete_at).await?;
        if place.nodes.is_empty() {
            return Err(Response::error(404));
        }
        let put = Arc::new(self.prepare(app, req, &place));
        let length = req.headers.get_int::<u64>("Content-Length").filter(|_| !is_chunked(req));
        let mut resp = match self.storage_policy(app)?.kind {
            PolicyKind::Replication => put.store_replicated(req, headers, length).await?,
            PolicyKind::Erasure { .. } => put.store_erasure(req, headers, length, self.policy).await?,
        };
        if let Some(timestamp) = req.headers.get_str(X_TIMESTAMP).and_then(|text| Timestamp::parse(text).ok())
        {
            resp.headers.insert(LAST_MODIFIED, timestamp.http_date());
        }
        Ok(resp)
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
    pub async fn next_piece(&self, req: &mut Request) -> Result<Option<Bytes>, Response> {
        match tokio::time::timeout(self.app.options.client_timeout, req.body.next()).await {
            Ok(piece) => piece.transpose().map_err(|error| self.client_failed(&error)),
            Err(_) => Err(self.client_failed(&BodyError::Timeout)),
        }
    }

    /// Reads the client's data once, to where it is wanted; zero at its end.
    pub async fn read(&self, req: &mut Request, to: &mut [u8]) -> Result<usize, Response> {
        match tokio::time::timeout(self.app.options.client_timeout, req.body.read(to)).await {
            Ok(read) => read.map_err(|error| self.client_failed(&error)),
            Err(_) => Err(self.client_failed(&BodyError::Timeout)),
        }
    }

    /// A putter to the first node that takes the head, and what there may be `ahead` for it.
    pub async fn connect(
        self: Arc<Self>,
        headers: Headers,
        wanted: Wanted,
        ahead: impl Fn(&ring::Node) -> Option<Whole>,
    ) -> Option<Putter> {
        loop {
            let node = self.next_node()?;
            let whole = ahead(&node);
            if let Some(putter) = Putter::connect(&self, node, &headers, wanted, whole).await {
                return Some(putter);
            }
        }
    }

    pub fn next_node(&self) -> Option<ring::Node> {
        self.nodes.lock().next(&self.app)
    }

    /// Answers until their statuses are enough, and those that come soon after. The rest stays pending.
    pub async fn gather<F>(
        &self,
        pending: &mut FuturesUnordered<F>,
        enough: impl Fn(&[u16]) -> bool,
    ) -> Vec<Answer>
    where
        F: Future<Output = Option<Answer>>,
    {
        let (mut answers, mut statuses) = (Vec::new(), Vec::new());
        while let Some(answer) = pending.next().await {
            let Some(answer) = answer else { continue };
            statuses.push(answer.status);
            answers.push(answer);
            if enough(&statuses) {
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

    pub fn check_connections(&self, connections: usize, min: usize) -> Result<(), Response> {
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

    pub fn client_disconnected(&self, text: &str) -> Response {
        self.logger.warning(text);
        self.app.ctx.statsd.increment("object.client_disconnects");
        Response::error(499)
    }
}

/// 412 if the object must not exist and does, 202 if a server has a newer one: nothing is sent then.
pub fn check_failures(putters: &[Putter], conditional: bool) -> Result<(), Response> {
    let said = |status: u16| putters.iter().any(|putter| putter.final_status() == Some(status));
    if conditional && said(412) {
        return Err(Response::error(412));
    }
    if said(409) {
        return Err(Response::error(202));
    }
    Ok(())
}

/// For each node of which nothing is known a 503.
pub fn pad(answers: &mut Vec<Answer>, count: usize) {
    while answers.len() < count {
        answers.push(Answer::nothing(503));
    }
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
