//! Requests straight to one storage server, past the proxy: for tools, for daemons, and for tests that look at one replica.
//!
//! As Swift's `direct_client`: each call names a node of a ring and a partition, may see reserved names, carries a timestamp,
//! and fails for any status but 2xx. What a call does not cover is a [`DirectClient::request`] away.

use std::time::Duration;

use common::clock::Clock;
use common::headers::{self, X_BACKEND_USE_REPLICATION_NETWORK};
use common::quote::quote;
use common::{HashConf, pickle};
use futures_util::future::join_all;
use ring::{Device, Ring};
use serde_json::Value;
use thiserror::Error;

use crate::http::{Body, BodyError, ClientError, Headers, Method, Pool, Response, Timeouts};

/// A listing or a pickle of hashes is not longer than this.
const MAX_ANSWER: usize = 64 << 20;

#[derive(Debug, Error)]
pub enum DirectError {
    #[error("{server} direct {method} {path} gave status {status}")]
    Status { server: String, method: Method, path: String, status: u16, headers: Headers },
    #[error("{server} direct {method} {path}: {source}")]
    Connection { server: String, method: Method, path: String, source: ClientError },
    #[error("{server} direct {method} {path}: {source}")]
    Body { server: String, method: Method, path: String, source: BodyError },
    #[error("{server} direct {method} {path} gave an answer that is not readable")]
    Unreadable { server: String, method: Method, path: String },
}

impl DirectError {
    /// The status, if the server gave one.
    pub fn status(&self) -> Option<u16> {
        match self {
            DirectError::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Makes requests over kept connections.
#[derive(Clone)]
pub struct DirectClient {
    pool: Pool,
    clock: Clock,
    timeouts: Timeouts,
    use_replication: bool,
}

/// What a request is about.
pub struct Target<'a> {
    pub node: &'a Device,
    pub part: u32,
    /// Account, container and object, as far as there are.
    pub names: &'a [&'a str],
}

impl DirectClient {
    pub fn new(pool: Pool, clock: Clock) -> Self {
        let timeouts = Timeouts { conn: Duration::from_secs(5), node: Duration::from_secs(15) };
        DirectClient { pool, clock, timeouts, use_replication: false }
    }

    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// The same, over the nodes' replication addresses.
    pub fn over_replication_network(mut self) -> Self {
        self.use_replication = true;
        self
    }

    /// Any request; `query` is quoted already. `X-Timestamp` is now unless the headers have one.
    pub async fn request(
        &self,
        method: Method,
        target: &Target<'_>,
        query: &str,
        mut headers: Headers,
        body: Body,
    ) -> Result<Response, DirectError> {
        let node = target.node;
        let (ip, port) = match self.use_replication {
            true => (&node.replication_ip, node.replication_port),
            false => (&node.ip, node.port),
        };
        headers.insert_default("X-Backend-Allow-Reserved-Names", "true");
        headers.insert_default(headers::X_TIMESTAMP, self.clock.now().internal());
        headers.insert_default("User-Agent", "direct-client");
        let mut path = format!("/{}/{}", quote(&node.device, "/"), target.part);
        for name in target.names {
            path.push('/');
            path += &quote(name, "/");
        }
        let path_qs = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
        let server = format!("{ip}:{port}");
        let sent =
            self.pool.request((ip, port), method.clone(), &path_qs, &headers, body, self.timeouts).await;
        match sent {
            Ok(response) if response.is_success() => Ok(response),
            Ok(response) => {
                let (status, headers) = (response.status.0, response.headers);
                Err(DirectError::Status { server, method, path, status, headers })
            }
            Err(source) => Err(DirectError::Connection { server, method, path, source }),
        }
    }

    async fn head_or_delete(
        &self,
        method: Method,
        target: &Target<'_>,
        headers: Headers,
    ) -> Result<Headers, DirectError> {
        Ok(self.request(method, target, "", headers, Body::empty()).await?.headers)
    }

    /// The headers of an account, container or object.
    pub async fn head(&self, target: &Target<'_>, headers: Headers) -> Result<Headers, DirectError> {
        self.head_or_delete(Method::Head, target, headers).await
    }

    /// Deletes an account, a container, an object, or the row of an object in a container.
    pub async fn delete(&self, target: &Target<'_>, headers: Headers) -> Result<Headers, DirectError> {
        self.head_or_delete(Method::Delete, target, headers).await
    }

    /// Removes the row of an object from all primaries of its container; what those which could not be told say. It is for rows that
    /// have no object: no object server hears of it.
    pub async fn delete_container_entry(
        &self,
        ring: &Ring,
        hash_conf: &HashConf,
        names: [&str; 3],
        headers: &Headers,
    ) -> Vec<DirectError> {
        let mut headers = headers.clone();
        headers.insert(X_BACKEND_USE_REPLICATION_NETWORK, "true");
        let (part, nodes) = ring.get_nodes(hash_conf, names[0], Some(names[1]), None);
        let targets: Vec<_> = nodes.iter().map(|node| Target { node, part, names: &names }).collect();
        let told = join_all(targets.iter().map(|target| self.delete(target, headers.clone()))).await;
        told.into_iter().filter_map(Result::err).collect()
    }

    /// Puts an object with its data, or a container or a row with an empty body.
    pub async fn put(
        &self,
        target: &Target<'_>,
        headers: Headers,
        body: impl Into<Body>,
    ) -> Result<Headers, DirectError> {
        Ok(self.request(Method::Put, target, "", headers, body.into()).await?.headers)
    }

    /// Changes metadata.
    pub async fn post(&self, target: &Target<'_>, headers: Headers) -> Result<Headers, DirectError> {
        Ok(self.request(Method::Post, target, "", headers, Body::empty()).await?.headers)
    }

    /// An object: its headers, and its data still to be read.
    pub async fn get_object(&self, target: &Target<'_>, headers: Headers) -> Result<Response, DirectError> {
        self.request(Method::Get, target, "", headers, Body::empty()).await
    }

    /// The listing of an account or a container as JSON, and its headers. `query` is `marker=...&limit=...`, quoted.
    pub async fn get_listing(
        &self,
        target: &Target<'_>,
        query: &str,
    ) -> Result<(Headers, Value), DirectError> {
        self.get_listing_with(target, query, Headers::new()).await
    }

    /// The same with headers of the caller's.
    pub async fn get_listing_with(
        &self,
        target: &Target<'_>,
        query: &str,
        headers: Headers,
    ) -> Result<(Headers, Value), DirectError> {
        let query = if query.is_empty() { "format=json".to_owned() } else { format!("format=json&{query}") };
        let response = self.request(Method::Get, target, &query, headers, Body::empty()).await?;
        let headers = response.headers;
        let bytes = collect(response.body, target, Method::Get).await?;
        if bytes.is_empty() {
            return Ok((headers, Value::Array(Vec::new())));
        }
        let listing = serde_json::from_slice(&bytes).map_err(|_| unreadable(target, Method::Get))?;
        Ok((headers, listing))
    }

    /// The hashes of a partition's suffixes on a node, as REPLICATE tells them.
    pub async fn get_suffix_hashes(
        &self,
        target: &Target<'_>,
        suffixes: &[&str],
        headers: Headers,
    ) -> Result<Vec<(String, Option<String>)>, DirectError> {
        let joined = suffixes.join("-");
        let names: Vec<&str> = if joined.is_empty() { Vec::new() } else { vec![&joined] };
        let target = Target { names: &names, ..*target };
        let response = self.request(Method::Replicate, &target, "", headers, Body::empty()).await?;
        let bytes = collect(response.body, &target, Method::Replicate).await?;
        let hashes = pickle::loads(&bytes).ok().and_then(hashes_of);
        hashes.ok_or_else(|| unreadable(&target, Method::Replicate))
    }
}

async fn collect(body: Body, target: &Target<'_>, method: Method) -> Result<bytes::Bytes, DirectError> {
    let mut body = body;
    body.collect(MAX_ANSWER).await.map_err(|source| {
        let (server, path) = place(target);
        DirectError::Body { server, method, path, source }
    })
}

fn unreadable(target: &Target<'_>, method: Method) -> DirectError {
    let (server, path) = place(target);
    DirectError::Unreadable { server, method, path }
}

fn place(target: &Target<'_>) -> (String, String) {
    let Device { ip, port, device, .. } = target.node;
    (format!("{ip}:{port}"), format!("/{device}/{}/{}", target.part, target.names.join("/")))
}

fn hashes_of(value: pickle::Value) -> Option<Vec<(String, Option<String>)>> {
    let pickle::Value::Dict(items) = value else { return None };
    let text = |value: pickle::Value| match value {
        pickle::Value::Str(text) => Some(text),
        pickle::Value::Bytes(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    };
    let hash = |(suffix, hash): (pickle::Value, pickle::Value)| Some((text(suffix)?, text(hash)));
    items.into_iter().map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Request, ServeOptions, Server, ServerHandle, app_fn};
    use common::timestamp::Timestamp;

    /// A server that tells what it was asked.
    fn echo() -> (ServerHandle, Device) {
        let app = app_fn(|req: Request| async move {
            let seen = format!(
                "{} {} {} {}",
                req.method,
                req.path_qs(),
                req.headers.get_str("X-Timestamp").unwrap_or_default(),
                req.headers.get_str("X-Backend-Allow-Reserved-Names").unwrap_or_default()
            );
            match (req.method.as_str(), req.path.as_str()) {
                ("REPLICATE", _) => {
                    let hashes = [("a83".into(), "hash".into()), ("b01".into(), pickle::Value::None)];
                    Response::new(200).with_body(pickle::dumps(&pickle::Value::Dict(hashes.to_vec())))
                }
                (_, "/sda1/5/a/gone") => Response::error(404).with_header("X-Seen", seen),
                ("GET", "/sda1/5/a") => Response::new(200).with_body("[{\"name\": \"c\"}]"),
                _ => Response::new(200).with_header("X-Seen", seen),
            }
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let device = Device {
            id: 0,
            region: 1,
            zone: 1,
            ip: "127.0.0.1".into(),
            port,
            device: "sda1".into(),
            weight: 1.0,
            replication_ip: "127.0.0.1".into(),
            replication_port: port,
            meta: String::new(),
            extra: Default::default(),
        };
        (Server::start(vec![listener], app, ServeOptions::default()).unwrap(), device)
    }

    fn client() -> DirectClient {
        DirectClient::new(Pool::default(), Clock::manual(Timestamp::from_secs_f64(1_234_567_890.5)))
    }

    #[tokio::test]
    async fn requests_name_device_partition_and_object_and_carry_a_timestamp() {
        let (_server, node) = echo();
        let target = Target { node: &node, part: 5, names: &["a", "c", "o ü/x"] };
        let headers = client().head(&target, Headers::new()).await.unwrap();
        let seen = "HEAD /sda1/5/a/c/o%20%C3%BC/x 1234567890.50000 true";
        assert_eq!(headers.get_str("X-Seen"), Some(seen));
        let mut headers = Headers::new();
        headers.insert("X-Timestamp", "0000000001.00000");
        let headers = client().put(&target, headers, "data").await.unwrap();
        assert!(headers.get_str("X-Seen").unwrap().contains(" 0000000001.00000 "));
    }

    #[tokio::test]
    async fn other_statuses_are_errors_with_their_headers() {
        let (_server, node) = echo();
        let target = Target { node: &node, part: 5, names: &["a", "gone"] };
        let err = client().delete(&target, Headers::new()).await.unwrap_err();
        assert_eq!(err.status(), Some(404));
        let DirectError::Status { headers, .. } = &err else { panic!("{err}") };
        assert!(headers.contains("X-Seen"));
        assert!(err.to_string().ends_with("direct DELETE /sda1/5/a/gone gave status 404"), "{err}");
    }

    #[tokio::test]
    async fn listings_and_hashes_are_decoded() {
        let (_server, node) = echo();
        let target = Target { node: &node, part: 5, names: &["a"] };
        let (_, listing) = client().get_listing(&target, "limit=1").await.unwrap();
        assert_eq!(listing[0]["name"], "c");
        let hashes = client().get_suffix_hashes(&target, &["a83", "b01"], Headers::new()).await.unwrap();
        assert_eq!(hashes, [("a83".to_owned(), Some("hash".to_owned())), ("b01".to_owned(), None)]);
    }
}
