//! PUT of an object in a replicated policy: the same bytes to as many servers as the ring has replicas.
//!
//! A small object that is not conditional goes whole with its head, in one write to each server; a server that
//! fails is replaced by the next node as long as there is one. Any other is streamed: first the heads, with
//! `Expect: 100-continue`, until a quorum of servers wants the data; then piece by piece to all of them, so that
//! memory does not grow with the object. A server that fails on the way is left behind, and the PUT fails when
//! there is no quorum left.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use common::headers::{ETAG, EXPECT, IF_NONE_MATCH};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use service::http::client::Timeouts;
use service::http::{Headers, Request, Response};
use service::logs::Logger;

use crate::app::MAX_ERROR_BODY;
use crate::backend::send;
use crate::controllers::base::{Answer, best_response};
use crate::controllers::getter::normalize_etag;
use crate::controllers::object::put::{Put, check_failures, pad};
use crate::controllers::object::putter::{Putter, Wanted};
use crate::environ::UpdateFooters;
use crate::info::{is_server_error, is_success};
use crate::quorum::{have_quorum, quorum_size};

/// Up to this size an object is read before its servers are asked.
const SMALL_OBJECT: u64 = 64 * 1024;

impl Put {
    pub async fn store_replicated(
        self: &Arc<Self>,
        req: &mut Request,
        headers: Vec<Headers>,
        length: Option<u64>,
    ) -> Result<Response, Response> {
        let whole = req.env.get::<UpdateFooters>().is_none()
            && !req.headers.contains(IF_NONE_MATCH)
            && !req.headers.contains(EXPECT);
        let answers = match length.filter(|length| *length <= SMALL_OBJECT && whole) {
            Some(length) => self.store_small(req, headers, length).await?,
            None => self.store_streaming(req, headers, length).await?,
        };
        finish(&self.logger, answers)
    }

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
        let mut answers =
            self.gather(&mut pending, |statuses| have_quorum(statuses, quorum_size(count))).await;
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
        let wanted = Wanted { length, conditional, footers: footers.is_some(), commit: false };
        let connecting = headers.into_iter().map(|headers| self.clone().connect(headers, wanted, |_| None));
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
        self.gather(&mut pending, |statuses| have_quorum(statuses, quorum_size(count))).await
    }
}

fn finish(logger: &Logger, answers: Vec<Answer>) -> Result<Response, Response> {
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
    Ok(resp)
}
