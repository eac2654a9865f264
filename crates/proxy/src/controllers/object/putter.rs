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
//!
//! With a commit there is a second phase. The document has no end yet: the server stores the data, under a name that shows
//! it is not durable, and says `100 Continue` again. When enough servers have, each is sent the rest as another chunked
//! body, and makes its data durable:
//!
//! ```text
//! X-Document: put commit
//!
//! put_commit_confirmation
//! --BOUNDARY--
//! ```
//!
//! The document of an object that is not large goes out with the head, in one write. The server, which has said nothing before it has stored
//! the data, then says `100 Continue` twice.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use common::digest::{hex, md5};
use common::headers::{
    EXPECT, X_BACKEND_OBJ_CONTENT_LENGTH, X_BACKEND_OBJ_METADATA_FOOTER,
    X_BACKEND_OBJ_MULTIPART_MIME_BOUNDARY, X_BACKEND_OBJ_MULTIPHASE_COMMIT,
};
use ring::Node;
use serde_json::{Map, Value};
use service::http::client::{BodyFraming, ClientConn, ClientError, Timeouts};
use service::http::head::ResponseHead;
use service::http::{Headers, Method};

use crate::app::MAX_ERROR_BODY;
use crate::controllers::base::Answer;
use crate::controllers::info::to_ascii_json;
use crate::controllers::object::put::Put;
use crate::info::is_server_error;

/// What is asked of the servers of a PUT.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Of the object, if the client has said it.
    pub length: Option<u64>,
    /// The object must not exist.
    pub conditional: bool,
    pub footers: bool,
    /// A second phase, which takes footers.
    pub commit: bool,
}

/// All of an object's data and its footers, for a server that is not asked whether it wants them.
pub struct Whole {
    pub data: [Bytes; 2],
    pub footers: Headers,
}

pub struct Putter {
    pub node: Node,
    /// Left behind: it does not count any more.
    pub failed: bool,
    conn: ClientConn,
    /// The answer, when the server gave it without wanting the data.
    answered: Option<ResponseHead>,
    /// With footers.
    document: Option<Document>,
    sent: bool,
}

/// The MIME document of a body with footers.
struct Document {
    boundary: String,
    commit: bool,
    started: bool,
}

impl Putter {
    /// A putter to that node, or `None` (which is then logged and counted) if it does not take the head, or the `whole` that
    /// comes with it.
    pub async fn connect(
        put: &Put,
        node: Node,
        headers: &Headers,
        wanted: Wanted,
        whole: Option<Whole>,
    ) -> Option<Putter> {
        let mut headers = headers.clone();
        headers.insert(EXPECT, "100-continue");
        let document = wanted.footers.then(|| ask_for_footers(put, &mut headers, wanted));
        // Swift: a body must be expected to be asked for, so nothing is sent as an empty chunked body.
        let framing = match wanted.length {
            Some(length) if length > 0 && !wanted.footers => BodyFraming::Length(length),
            _ => BodyFraming::Chunked,
        };
        let ahead = document.as_ref().zip(whole.as_ref());
        let attempt = async {
            match begin(put, &node, (&headers, framing), ahead, false).await {
                // A kept connection which the server closed just now.
                Err(ClientError::Closed) => begin(put, &node, (&headers, framing), ahead, true).await,
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
            100..200 if wanted.commit && !head.headers.get_bool("X-Obj-Multiphase-Commit") => {
                failure(&"a commit is not supported");
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
                let sent = ahead.is_some();
                Some(Putter { node, failed: false, conn, answered, document, sent })
            }
        }
    }

    /// The status of a server that did not want the data.
    pub fn final_status(&self) -> Option<u16> {
        self.answered.as_ref().map(|head| head.status.0)
    }

    pub async fn send_chunk(&mut self, put: &Put, chunk: Bytes) {
        self.send_chunks(put, &[&chunk]).await;
    }

    /// Sends several pieces as one.
    pub async fn send_chunks(&mut self, put: &Put, pieces: &[&[u8]]) {
        if self.failed || self.sent || self.answered.is_some() {
            return;
        }
        if let Some(document) = &mut self.document {
            document.start(&mut self.conn);
        }
        let result = self.conn.write_body_pieces(pieces).await;
        self.note(put, result);
    }

    /// All data has been sent.
    pub async fn end_of_object_data(&mut self, put: &Put, footers: &Headers) {
        if self.failed || self.sent || self.answered.is_some() {
            return;
        }
        if let Some(document) = &mut self.document {
            document.start(&mut self.conn);
            self.conn.hold_body(&[document.closing(footers).as_bytes()]);
        }
        let result = self.conn.finish_body().await;
        self.note(put, result);
    }

    /// What the server says when it has stored the data: 100 if it waits for the commit. `None` (and it is logged and
    /// counted) if it says nothing.
    pub async fn stored(&mut self, put: &Put) -> Option<u16> {
        if self.failed {
            return None;
        }
        if self.answered.is_none() {
            match self.conn.read_response_head(true).await {
                Ok(head) if head.status.is_informational() => return Some(head.status.0),
                Ok(head) => self.answered = Some(head),
                Err(error) => {
                    self.failed = true;
                    let doing = format!("Trying to get commit status of PUT to {}", put.target.path);
                    put.app.exception_occurred(&put.logger, &self.node, "Object", &doing, &error);
                    return None;
                }
            }
        }
        let status = self.final_status()?;
        self.failed |= !put.app.check_response(&put.logger, &self.node, "Object", status, &put.target, b"");
        Some(status)
    }

    /// Lets the server make its data durable.
    pub async fn send_commit(&mut self, put: &Put) {
        if self.failed || self.answered.is_some() {
            return;
        }
        let Some(document) = &self.document else { return };
        self.conn.start_next_chunked_body();
        self.conn.hold_body(&[document.confirmation().as_bytes()]);
        let result = self.conn.finish_body().await;
        self.note(put, result);
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

impl Document {
    /// What stands before the data goes out with the data.
    fn start(&mut self, conn: &mut ClientConn) {
        if !std::mem::replace(&mut self.started, true) {
            conn.hold_body(&[self.opening().as_bytes()]);
        }
    }

    fn opening(&self) -> String {
        format!("--{}\r\nX-Document: object body\r\n\r\n", self.boundary)
    }

    /// What follows the data.
    fn closing(&self, footers: &Headers) -> String {
        let footers = footers_json(footers);
        let digest = hex(&md5(footers.as_bytes()));
        let (boundary, end) = (&self.boundary, if self.commit { "" } else { "--" });
        format!(
            "\r\n--{boundary}\r\nX-Document: object metadata\r\nContent-MD5: {digest}\r\n\r\n\
             {footers}\r\n--{boundary}{end}\r\n"
        )
    }

    fn confirmation(&self) -> String {
        format!("X-Document: put commit\r\n\r\nput_commit_confirmation\r\n--{}--", self.boundary)
    }
}

/// Sends the head over a kept connection or a new one, perhaps with all that follows it, and waits for what the server says
/// to it.
async fn begin(
    put: &Put,
    node: &Node,
    (headers, framing): (&Headers, BodyFraming),
    ahead: Option<(&Document, &Whole)>,
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
    let target = put.target.on(node);
    let Some((document, Whole { data, footers })) = ahead else {
        conn.send_request_head(&Method::Put, &target, headers, framing).await?;
        let head = conn.read_response_head(true).await?;
        return Ok((conn, head));
    };
    conn.hold_request_head(&Method::Put, &target, headers, framing)?;
    let (opening, closing) = (document.opening(), document.closing(footers));
    let pieces: [&[u8]; 4] = [opening.as_bytes(), &data[0], &data[1], closing.as_bytes()];
    let all_sent = conn.finish_body_unless_refused(&pieces).await?;
    // That the data was wanted says nothing when it could not be sent.
    let head = conn.read_response_head(all_sent).await?;
    Ok((conn, head))
}

/// Makes the request one with footers, and with a commit if that is wanted.
fn ask_for_footers(put: &Put, headers: &mut Headers, wanted: Wanted) -> Document {
    let rng = &put.app.rng;
    let boundary: String = (0..4).map(|_| format!("{:016x}", rng.next_u64())).collect();
    if let Some(length) = wanted.length {
        headers.insert_default(X_BACKEND_OBJ_CONTENT_LENGTH, length);
    }
    headers.insert(X_BACKEND_OBJ_MULTIPART_MIME_BOUNDARY, &boundary);
    headers.insert(X_BACKEND_OBJ_METADATA_FOOTER, "yes");
    if wanted.commit {
        headers.insert(X_BACKEND_OBJ_MULTIPHASE_COMMIT, "yes");
    }
    Document { boundary, commit: wanted.commit, started: false }
}

fn footers_json(footers: &Headers) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let map: Map<String, Value> =
        footers.iter().map(|(name, value)| (text(name), Value::String(text(value)))).collect();
    to_ascii_json(&Value::Object(map))
}
