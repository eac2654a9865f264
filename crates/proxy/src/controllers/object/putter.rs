//! One object server's end of a PUT that is streamed: head and `Expect: 100-continue`, then the data, then the answer.
//!
//! With footers (metadata that is known only after the data) the body is a MIME document:
//!
//! ```text
//! --BOUNDARY
//! X-Document: object body
//!
//! the object's bytes
//! --BOUNDARY
//! X-Document: object metadata
//! Content-MD5: of the footers
//!
//! {"Name": "value", ...}
//! --BOUNDARY--
//! ```

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use common::digest::{hex, md5};
use common::headers::{
    EXPECT, X_BACKEND_OBJ_CONTENT_LENGTH, X_BACKEND_OBJ_METADATA_FOOTER,
    X_BACKEND_OBJ_MULTIPART_MIME_BOUNDARY,
};
use ring::Node;
use serde_json::{Map, Value};
use service::http::client::{BodyFraming, ClientConn, ClientError, Timeouts};
use service::http::head::ResponseHead;
use service::http::{Headers, Method};

use crate::app::MAX_ERROR_BODY;
use crate::controllers::base::Answer;
use crate::controllers::info::to_ascii_json;
use crate::controllers::object::replicated::Put;
use crate::info::is_server_error;

/// What is asked of the servers of a PUT.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Of the object, if the client has said it.
    pub length: Option<u64>,
    /// The object must not exist.
    pub conditional: bool,
    pub footers: bool,
}

pub struct Putter {
    pub node: Node,
    /// Left behind: it does not count any more.
    pub failed: bool,
    conn: ClientConn,
    /// The answer, when the server gave it without wanting the data.
    answered: Option<ResponseHead>,
    /// Of the MIME document, with footers.
    boundary: Option<String>,
    started: bool,
}

impl Putter {
    /// A putter to that node, or `None` (which is then logged and counted) if it does not take the head.
    pub async fn connect(put: &Put, node: Node, headers: &Headers, wanted: Wanted) -> Option<Putter> {
        let mut headers = headers.clone();
        headers.insert(EXPECT, "100-continue");
        let boundary = wanted.footers.then(|| ask_for_footers(put, &mut headers, wanted.length));
        // Swift: a body must be expected to be asked for, so nothing is sent as an empty chunked body.
        let framing = match wanted.length {
            Some(length) if length > 0 && !wanted.footers => BodyFraming::Length(length),
            _ => BodyFraming::Chunked,
        };
        let attempt = async {
            match begin(put, &node, &headers, framing, false).await {
                // A kept connection which the server closed just now.
                Err(ClientError::Closed) => begin(put, &node, &headers, framing, true).await,
                begun => begun,
            }
        };
        let failure = |error: &dyn std::fmt::Display| {
            let doing = format!("Expect: 100-continue on {}", put.target.path);
            put.app.exception_occurred(&put.logger, &node, "Object", &doing, error);
        };
        let (conn, head) = match attempt.await {
            Ok(begun) => begun,
            Err(error) => {
                failure(&error);
                return None;
            }
        };
        match head.status.0 {
            100..200 if wanted.footers && !head.headers.get_bool("X-Obj-Metadata-Footer") => {
                failure(&"footers are not supported");
                None
            }
            507 => {
                put.app.error_limit(&put.logger, &node, "ERROR Insufficient Storage");
                None
            }
            status if is_server_error(status) => {
                let error = format!("ERROR {status} Expect: 100-continue From Object Server");
                put.app.error_occurred(&put.logger, &node, &error);
                None
            }
            status => {
                let answered = (status >= 200).then_some(head);
                Some(Putter { node, failed: false, conn, answered, boundary, started: false })
            }
        }
    }

    /// The status of a server that did not want the data.
    pub fn final_status(&self) -> Option<u16> {
        self.answered.as_ref().map(|head| head.status.0)
    }

    pub async fn send_chunk(&mut self, put: &Put, chunk: Bytes) {
        if self.failed || self.answered.is_some() {
            return;
        }
        let result = match self.start().await {
            Ok(()) => self.conn.write_body(&chunk).await,
            Err(error) => Err(error),
        };
        self.note(put, result);
    }

    /// All data has been sent.
    pub async fn end_of_object_data(&mut self, put: &Put, footers: &Headers) {
        if self.failed || self.answered.is_some() {
            return;
        }
        let result = self.finish(footers).await;
        self.note(put, result);
    }

    async fn start(&mut self) -> Result<(), ClientError> {
        if let Some(boundary) = self.boundary.as_ref().filter(|_| !self.started) {
            let start = format!("--{boundary}\r\nX-Document: object body\r\n\r\n");
            self.started = true;
            self.conn.write_body(start).await?;
        }
        Ok(())
    }

    async fn finish(&mut self, footers: &Headers) -> Result<(), ClientError> {
        self.start().await?;
        if let Some(boundary) = &self.boundary {
            let footers = footers_json(footers);
            let digest = hex(&md5(footers.as_bytes()));
            let end = format!(
                "\r\n--{boundary}\r\nX-Document: object metadata\r\nContent-MD5: {digest}\r\n\r\n\
                 {footers}\r\n--{boundary}--\r\n"
            );
            self.conn.write_body(end).await?;
        }
        self.conn.finish_body().await
    }

    fn note(&mut self, put: &Put, result: Result<(), ClientError>) {
        if let Err(error) = result {
            self.failed = true;
            let doing = format!("Trying to write to {}", put.target.path);
            put.app.exception_occurred(&put.logger, &self.node, "Object", &doing, &error);
        }
    }

    /// The server's answer, after the data; `None` (and it is logged and counted) if there comes none.
    pub async fn response(mut self, put: Arc<Put>) -> Option<Answer> {
        let result = match self.answered.take() {
            Some(head) => Ok(head),
            None => self.conn.read_response_head(false).await,
        };
        let answer = match result {
            Ok(head) => {
                let body = self.conn.into_body().collect(MAX_ERROR_BODY).await;
                body.map(|body| (head, body)).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match answer {
            Ok((head, body)) => {
                put.app.check_response(&put.logger, &self.node, "Object", head.status.0, &put.target, &body);
                Some(Answer { status: head.status.0, headers: head.headers, body, node: Some(self.node) })
            }
            Err(error) => {
                let doing = format!("Trying to get final status of PUT to {}", put.target.path);
                put.app.exception_occurred(&put.logger, &self.node, "Object", &doing, &error);
                None
            }
        }
    }
}

/// Sends the head over a kept connection or a new one, and waits for what the server says to it.
async fn begin(
    put: &Put,
    node: &Node,
    headers: &Headers,
    framing: BodyFraming,
    fresh: bool,
) -> Result<(ClientConn, ResponseHead), ClientError> {
    let timeouts = Timeouts { conn: put.app.options.conn_timeout, node: put.app.options.node_timeout };
    let started = Instant::now();
    let (pool, address) = (&put.app.pool, put.target.address(node));
    let mut conn = match fresh {
        true => pool.connect(address, timeouts).await?,
        false => pool.checkout(address, timeouts).await?,
    };
    put.app.set_node_timing(node, started.elapsed());
    conn.send_request_head(&Method::Put, &put.target.on(node), headers, framing).await?;
    let head = conn.read_response_head(true).await?;
    Ok((conn, head))
}

/// Makes the request one with footers: gives the boundary back.
fn ask_for_footers(put: &Put, headers: &mut Headers, length: Option<u64>) -> String {
    let rng = &put.app.rng;
    let boundary: String = (0..4).map(|_| format!("{:016x}", rng.next_u64())).collect();
    if let Some(length) = length {
        headers.insert_default(X_BACKEND_OBJ_CONTENT_LENGTH, length);
    }
    headers.insert(X_BACKEND_OBJ_MULTIPART_MIME_BOUNDARY, &boundary);
    headers.insert(X_BACKEND_OBJ_METADATA_FOOTER, "yes");
    boundary
}

fn footers_json(footers: &Headers) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let map: Map<String, Value> =
        footers.iter().map(|(name, value)| (text(name), Value::String(text(value)))).collect();
    to_ascii_json(&Value::Object(map))
}
