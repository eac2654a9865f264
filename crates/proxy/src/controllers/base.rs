//! What controllers share: headers for backend requests, asking several backends at once, the best response.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::headers::{
    RESERVED, ServerType, USER_AGENT, X_OPENSTACK_REQUEST_ID, X_TIMESTAMP, X_TRANS_ID, is_sys_meta,
    is_sys_or_user_meta,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use ring::{Node, Ring};
use service::http::client::Timeouts;
use service::http::{Headers, Method, Request, Response};
use service::logs::Logger;

use crate::app::{Application, MAX_ERROR_BODY};
use crate::backend::{Target, send};
use crate::info::{cache_key, clear_info_cache, is_success};
use crate::node_iter::NodeIter;
use crate::quorum;

/// Headers which belong to one connection or one message, never passed on to a backend.
const NOT_FORWARDED: [&str; 7] =
    ["Connection", "Keep-Alive", "Content-Length", "Transfer-Encoding", "Expect", "TE", "Upgrade"];

/// What a backend server said.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Headers,
    pub body: Bytes,
    /// `None` when no node answered at all.
    pub node: Option<Node>,
}

impl Answer {
    pub fn nothing(status: u16) -> Self {
        Self { status, headers: Headers::new(), body: Bytes::new(), node: None }
    }

    /// A handoff's 404 says nothing, unless it holds a tombstone.
    fn is_useful(&self) -> bool {
        let handoff = self.node.as_ref().is_some_and(|node| node.handoff_index.is_some());
        !(handoff && self.status == 404 && !self.headers.contains("X-Backend-Timestamp"))
    }
}

/// What a controller's server type passes on to its backends.
pub struct Transfer {
    pub server_type: ServerType,
    /// In lower case.
    pub pass_through: &'static [&'static str],
    /// Headers named here are emptied on the backend by `X-Remove-...`.
    pub removable: &'static [&'static str],
}

pub const ACCOUNT: Transfer =
    Transfer { server_type: ServerType::Account, pass_through: &[], removable: &[] };

pub const CONTAINER: Transfer = Transfer {
    server_type: ServerType::Container,
    pass_through: &[
        "x-container-read",
        "x-container-write",
        "x-container-sync-key",
        "x-container-sync-to",
        "x-versions-location",
    ],
    removable: &[
        "x-remove-container-read",
        "x-remove-container-write",
        "x-remove-versions-location",
        "x-remove-container-sync-key",
        "x-remove-container-sync-to",
    ],
};

/// `transfer_headers`: what a client may say to the backend of this type.
fn transfer_headers(from: &Headers, to: &mut Headers, transfer: &Transfer) {
    let remove_meta = format!("x-remove-{}-meta-", transfer.server_type.as_str());
    for (name, _) in from.iter() {
        let lower = name.to_ascii_lowercase();
        let removable = transfer.removable.iter().any(|removable| lower == removable.as_bytes());
        if removable || lower.starts_with(remove_meta.as_bytes()) {
            let kept = [b"x", &lower["x-remove".len()..]].concat();
            to.insert(kept, "");
        }
    }
    for (name, value) in from.iter() {
        let passes = transfer.pass_through.iter().any(|pass| name.eq_ignore_ascii_case(pass.as_bytes()));
        let text = String::from_utf8_lossy(name);
        if passes || is_sys_or_user_meta(transfer.server_type, &text) {
            to.insert(name, value);
        }
    }
}

/// `generate_request_headers`: those of a backend request, from the client's.
pub fn request_headers(
    app: &Application,
    req: &Request,
    additional: &Headers,
    transfer: Option<&Transfer>,
) -> Headers {
    let mut headers = Headers::with_capacity(16, 1024);
    for (name, value) in req.headers.iter() {
        if starts_with_ignore_case(name, "x-backend-") || name.eq_ignore_ascii_case(X_TIMESTAMP.as_bytes()) {
            headers.append(name, value);
        }
    }
    headers.update(additional);
    if let Some(transfer) = transfer {
        transfer_headers(&req.headers, &mut headers, transfer);
    }
    identify(app, req, &mut headers);
    headers
}

/// As `request_headers`, with all that the client sent.
pub fn all_request_headers(app: &Application, req: &Request) -> Headers {
    let mut headers = req.headers.clone();
    headers.retain(|name, _| !NOT_FORWARDED.iter().any(|not| name.eq_ignore_ascii_case(not.as_bytes())));
    identify(app, req, &mut headers);
    headers
}

/// Who asks, on whose behalf: nothing of the client's overrides it.
fn identify(app: &Application, req: &Request, headers: &mut Headers) {
    headers.insert(X_TRANS_ID, req.trans_id());
    headers.insert(USER_AGENT, &app.backend_user_agent);
    headers.insert("Referer", req.as_referer());
}

pub fn starts_with_ignore_case(name: &[u8], prefix: &str) -> bool {
    name.len() >= prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes())
}

/// Requests to several backend servers at once: one for each of `headers`, to the next node that works.
pub struct Backends {
    pub app: Arc<Application>,
    pub server_type: ServerType,
    pub target: Target,
    pub nodes: NodeIter,
    pub node_count: usize,
    pub headers: Vec<Headers>,
    pub body: Bytes,
    pub trans_id: String,
}

impl Backends {
    /// To the primaries of a partition, the same headers for all.
    pub fn new(
        app: &Arc<Application>,
        req: &Request,
        server_type: ServerType,
        ring: &Arc<Ring>,
        target: Target,
        headers: Headers,
    ) -> Self {
        let nodes = NodeIter::new(app, server_type.as_str(), ring, target.part, app.options.policy(None));
        let node_count = nodes.num_primary_nodes;
        let headers = vec![headers; node_count];
        Self {
            app: app.clone(),
            server_type,
            target,
            nodes,
            node_count,
            headers,
            body: Bytes::new(),
            trans_id: req.trans_id().to_owned(),
        }
    }

    /// The best of the answers, lacking a quorum with `overrides`.
    pub async fn best_response(self, overrides: &[(u16, u16)]) -> Response {
        let app = self.app.clone();
        let logger = app.logger(&self.trans_id);
        let what = format!("{} {}", title(self.server_type), self.target.method);
        let answers = self.ask().await.0;
        best_response(&logger, &answers, &what, overrides, None)
    }

    /// All answers, once there is a quorum of them and the others had `post_quorum_timeout` to come in too; at
    /// least `node_count` of them, as those which lack are 503. Gives the rest of the nodes back.
    ///
    /// Requests still under way then are left to run to their end: a slow replica gets its update too.
    pub async fn ask(self) -> (Vec<Answer>, NodeIter) {
        let Backends { app, server_type, target, nodes, node_count, headers, body, trans_id } = self;
        let quorum = quorum::quorum_size(node_count);
        let shared = Arc::new(Shared {
            post_quorum_timeout: app.options.post_quorum_timeout,
            logger: app.logger(&trans_id),
            nodes: Mutex::new(nodes),
            app,
            server_type,
            target,
            body,
        });
        let mut pending: FuturesUnordered<_> =
            headers.into_iter().map(|headers| shared.clone().ask_one(headers)).collect();
        let mut answers: Vec<Answer> = Vec::with_capacity(node_count);
        let mut statuses = Vec::with_capacity(node_count);
        while let Some(answer) = pending.next().await {
            let Some(answer) = answer.filter(Answer::is_useful) else { continue };
            statuses.push(answer.status);
            answers.push(answer);
            if quorum::have_quorum(&statuses, quorum) {
                break;
            }
        }
        let stragglers = async {
            while let Some(answer) = pending.next().await {
                answers.extend(answer.filter(Answer::is_useful));
            }
        };
        let all_in = tokio::time::timeout(shared.post_quorum_timeout, stragglers).await.is_ok();
        if !all_in && !pending.is_empty() {
            tokio::spawn(async move { while pending.next().await.is_some() {} });
        }
        while answers.len() < node_count {
            answers.push(Answer::nothing(503));
        }
        let nodes = shared.take_nodes();
        (answers, nodes)
    }
}

struct Shared {
    app: Arc<Application>,
    logger: Logger,
    server_type: ServerType,
    target: Target,
    nodes: Mutex<NodeIter>,
    body: Bytes,
    post_quorum_timeout: Duration,
}

impl Shared {
    /// The first answer that is no server error, from one node after the other.
    async fn ask_one(self: Arc<Self>, headers: Headers) -> Option<Answer> {
        let app = &self.app;
        let timeouts = Timeouts { conn: app.options.conn_timeout, node: app.options.node_timeout };
        let server_type = title(self.server_type);
        let Target { method, path, .. } = &self.target;
        loop {
            let node = self.nodes.lock().next(app)?;
            let attempt = async {
                let mut resp = send(app, &node, &self.target, &headers, self.body.clone(), timeouts)
                    .await
                    .map_err(|e| e.to_string())?;
                let body = resp.body.collect(MAX_ERROR_BODY).await.map_err(|error| error.to_string())?;
                Ok::<_, String>(Answer { status: resp.status.0, headers: resp.headers, body, node: None })
            };
            match attempt.await {
                Ok(answer) => {
                    let status = answer.status;
                    if app.check_response(&self.logger, &node, server_type, status, &self.target, b"")
                        && status >= 200
                    {
                        return Some(Answer { node: Some(node), ..answer });
                    }
                }
                Err(error) => {
                    let doing = format!("Trying to {method} {path}");
                    app.exception_occurred(&self.logger, &node, server_type, &doing, &error);
                }
            }
        }
    }

    /// What is left of the nodes, for whoever asks more of them.
    fn take_nodes(&self) -> NodeIter {
        std::mem::replace(&mut *self.nodes.lock(), NodeIter::exhausted())
    }
}

pub fn title(server_type: ServerType) -> &'static str {
    match server_type {
        ServerType::Account => "Account",
        ServerType::Container => "Container",
        ServerType::Object => "Object",
    }
}

/// The answer that speaks for all of them, or a 503.
pub fn best_response(
    logger: &Logger,
    answers: &[Answer],
    what: &str,
    overrides: &[(u16, u16)],
    quorum_size: Option<usize>,
) -> Response {
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    let quorum = quorum_size.unwrap_or_else(|| quorum::quorum_size(statuses.len()));
    match quorum::best(&statuses, quorum, overrides) {
        Some(best) => response_of(&answers[best]),
        None => {
            logger.error(format_args!("{what} returning 503 for {statuses:?}"));
            Response::error(503)
        }
    }
}

fn response_of(answer: &Answer) -> Response {
    let mut resp = Response::new(answer.status).with_body(answer.body.clone());
    update_headers(&mut resp.headers, &answer.headers);
    resp
}

/// `update_headers`: those of a backend's response that go into the client's.
pub fn update_headers(to: &mut Headers, from: &Headers) {
    const NOT: [&str; 8] = [
        "date",
        "content-length",
        "content-type",
        "connection",
        "x-put-timestamp",
        "x-delete-after",
        "keep-alive",
        "transfer-encoding",
    ];
    for (name, value) in from.iter() {
        if name.eq_ignore_ascii_case(b"etag") {
            let bare: Vec<u8> = value.iter().copied().filter(|b| *b != b'"').collect();
            to.insert(name, bare);
        } else if !NOT.iter().any(|not| name.eq_ignore_ascii_case(not.as_bytes())) {
            to.insert(name, value);
        }
    }
}

/// Creates an account because something in it is about to be.
pub async fn autocreate_account(
    app: &Arc<Application>,
    req: &mut Request,
    account: &str,
) -> Result<bool, Response> {
    let ring = app.account_ring()?;
    let part = ring.get_part(&app.ctx.swift_conf.hash, account, None, None);
    let path = format!("/{account}");
    let mut headers = Headers::from([
        (X_TIMESTAMP, app.ctx.clock.now().internal()),
        (X_TRANS_ID, req.trans_id().to_owned()),
        (X_OPENSTACK_REQUEST_ID, req.trans_id().to_owned()),
    ]);
    for (name, value) in req.headers.iter() {
        if is_sys_meta(ServerType::Account, &String::from_utf8_lossy(name)) {
            headers.insert(name, value);
        }
    }
    let target = Target::new(&Request::new(Method::Put, ""), Method::Put, part, &path);
    let backends = Backends::new(app, req, ServerType::Account, &ring, target, headers);
    let resp = backends.best_response(&[]).await;
    let logger = app.logger(req.trans_id());
    if is_success(resp.status.0) {
        logger.info(format_args!("autocreate account '{path}'"));
        clear_info_cache(req, &cache_key(account, None)).await;
        return Ok(true);
    }
    logger.warning(format_args!("Could not autocreate account '{path}'"));
    Ok(false)
}

/// 400 for the name of an account or container that is too long. Swift's own accounts may have twice as much.
pub fn check_name_length(
    server_type: ServerType,
    account: &str,
    name: &str,
    limit: usize,
) -> Result<(), Response> {
    let limit = if account.starts_with('.') { 2 * limit } else { limit };
    let length = name.chars().count();
    if length <= limit {
        return Ok(());
    }
    let what = title(server_type);
    Err(Response::error(400).with_body(format!("{what} name length of {length} longer than {limit}")))
}

/// `/account[/container[/object]]` of a request's path, not quoted.
pub fn entity_path(req: &Request) -> &str {
    req.path.get(1..).and_then(|path| path.find('/')).map_or("", |slash| &req.path[slash + 1..])
}

/// Is there a name of Swift's own in it?
pub fn is_reserved(name: &str) -> bool {
    name.starts_with(RESERVED)
}
