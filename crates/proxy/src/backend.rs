//! One request to one backend server: its target, its address, sending it whole.

use bytes::Bytes;
use common::headers::X_BACKEND_USE_REPLICATION_NETWORK;
use common::quote::quote_path;
use ring::Node;
use service::http::client::{ClientError, Timeouts};
use service::http::{Body, Headers, Method, Request, Response};

use crate::app::Application;

/// What all the backend requests of a client's request have in common.
#[derive(Clone, Debug)]
pub struct Target {
    pub method: Method,
    pub part: u32,
    /// `/account[/container[/object]]`, quoted.
    pub path: String,
    pub query: String,
    pub use_replication: bool,
}

impl Target {
    /// For a path that is not quoted.
    pub fn new(req: &Request, method: Method, part: u32, path: &str) -> Self {
        let use_replication = req.headers.get_bool(X_BACKEND_USE_REPLICATION_NETWORK);
        Self { method, part, path: quote_path(path), query: String::new(), use_replication }
    }

    pub fn with_query(mut self, query: impl Into<String>) -> Self {
        self.query = query.into();
        self
    }

    /// Path and query on that node.
    pub fn on(&self, node: &Node) -> String {
        let device = quote_path(&node.device);
        let question = if self.query.is_empty() { "" } else { "?" };
        format!("/{device}/{}{}{question}{}", self.part, self.path, self.query)
    }

    pub fn address<'a>(&self, node: &'a Node) -> (&'a str, u16) {
        ip_port(node, self.use_replication)
    }
}

pub fn ip_port(node: &Node, use_replication: bool) -> (&str, u16) {
    match use_replication {
        true => (&node.replication_ip, node.replication_port),
        false => (&node.ip, node.port),
    }
}

/// Sends a request with the whole of its body, and waits for the head of the response.
pub async fn send(
    app: &Application,
    node: &Node,
    target: &Target,
    headers: &Headers,
    body: Bytes,
    timeouts: Timeouts,
) -> Result<Response, ClientError> {
    let target_path = target.on(node);
    let (method, address) = (target.method.clone(), target.address(node));
    // Apart, as it would be part of every future above it, which are moved and kept for each request.
    Box::pin(app.pool.request(address, method, &target_path, headers, Body::from(body), timeouts)).await
}
