//! A cluster of fake storage servers for tests: each keeps accounts, containers and objects in memory, remembers what
//! it was asked, and fails as it is told.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::config::{Section, SwiftConf};
use common::digest::{Checksum, hex, md5};
use common::headers::{X_BACKEND_ARCHIVE_CHECKSUM, X_OBJECT_SYSMETA_EC_FRAG_INDEX};
use parking_lot::Mutex;
use ring::{Device, FormatVersion, RingBuilder};
use service::http::{
    App, Body, BodyError, Headers, Method, Request, Response, ServeOptions, Server, ServerHandle, app_fn,
};
use service::logs::{Lines, Logger};
use service::memcached::Cache;
use service::{Context, Rng};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::app::{Application, ProxyApp};
use crate::environ::SwiftCache;

/// What a node does instead of answering as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this status.
    Status(u16),
    /// Breaks an object's body off after so many bytes.
    CutBody(usize),
    /// Does not answer.
    Hang,
    /// Answers a PUT with this status once it has the data.
    StatusAfterData(u16),
    /// Stores the data of a PUT, and fails to commit it.
    NoCommit,
    /// Spoils a byte of an object's body.
    Spoil(usize),
}

/// How a node ends that has answered before it has read what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Having read no more than the head. The unread rest makes it a reset.
    Closes,
    /// At once: the client may not even have sent its head.
    ClosesUnread,
    /// By a reset, whatever was read.
    Resets,
    /// Reads no more, and stays.
    Stays,
}

#[derive(Clone, Debug)]
pub struct Asked {
    pub node: usize,
    pub method: Method,
    /// Without device and partition.
    pub path: String,
    pub headers: Headers,
    pub body: Bytes,
}

#[derive(Clone)]
struct StoredObject {
    data: Bytes,
    headers: Headers,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    faults: HashMap<usize, Fault>,
    containers: HashMap<(usize, String), Headers>,
    objects: HashMap<(usize, String), StoredObject>,
}

pub struct Cluster {
    pub app: ProxyApp,
    pub lines: Lines,
    pub cache: Cache,
    state: Arc<Mutex<State>>,
    servers: Vec<Option<ServerHandle>>,
    /// Of nodes that were not stopped: also for who answers in a server's stead.
    listeners: Vec<Option<TcpListener>>,
    /// Those who do.
    refusing: Vec<AbortOnDrop>,
    _dir: TempDir,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cluster {
    /// A proxy with these options before as many nodes, each one server for all.
    pub fn start(nodes: usize, options: &[(&str, &str)]) -> Cluster {
        let state = Arc::new(Mutex::new(State::default()));
        let dir = tempfile::tempdir().unwrap();
        let mut servers = Vec::new();
        let (mut ports, mut listeners) = (Vec::new(), Vec::new());
        for node in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            ports.push(listener.local_addr().unwrap().port());
            listeners.push(Some(listener.try_clone().unwrap()));
            let state = state.clone();
            let app = app_fn(move |req| answer(node, state.clone(), req));
            servers.push(Some(Server::start(vec![listener], app, ServeOptions::default()).unwrap()));
        }
        write_rings(dir.path().to_owned(), &ports);
        let swift_conf = "[swift-hash]\nswift_hash_path_suffix = endcap\n\
            [storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n\
            [storage-policy:2]\nname = old\ndeprecated = yes\n\
            [storage-policy:3]\nname = ec\npolicy_type = erasure_coding\nec_type = isa_l_rs_vand\n\
            ec_num_data_fragments = 4\nec_num_parity_fragments = 2\nec_object_segment_size = 100000\n\
            [storage-policy:4]\nname = twice\npolicy_type = erasure_coding\nec_type = isa_l_rs_vand\n\
            ec_num_data_fragments = 2\nec_num_parity_fragments = 1\nec_duplication_factor = 2\n\
            ec_object_segment_size = 100000\n\
            [storage-policy:5]\nname = long-segments\npolicy_type = erasure_coding\nec_type = isa_l_rs_vand\n\
            ec_num_data_fragments = 4\nec_num_parity_fragments = 2\n";
        let swift_conf = SwiftConf::parse(swift_conf.as_bytes(), "swift.conf", dir.path()).unwrap();
        let (logger, lines) = Logger::memory();
        let ctx = Context::builder("proxy-server")
            .swift_conf(Arc::new(swift_conf))
            .rng(Rng::seeded(1))
            .logger(logger)
            .build();
        let defaults = [("node_timeout", "0.5"), ("account_autocreate", "yes")];
        let section =
            Section::from_pairs("app:proxy-server", defaults.into_iter().chain(options.iter().copied()));
        let cache = Cache::local(&ctx.clock);
        let app = ProxyApp(Arc::new(Application::new(&section, &ctx).unwrap()));
        Cluster { app, lines, cache, state, servers, listeners, refusing: Vec::new(), _dir: dir }
    }

    pub async fn call(&self, mut req: Request) -> (Response, Bytes) {
        req.env.insert(SwiftCache(self.cache.clone()));
        let mut resp = self.app.call(req).await;
        let body = resp.body.collect(1 << 24).await.unwrap_or_default();
        (resp, body)
    }

    /// The status of a request without more.
    pub async fn status(&self, method: Method, path: &str) -> u16 {
        self.call(Request::new(method, path)).await.0.status.0
    }

    pub async fn put(&self, path: &str, data: impl Into<Bytes>) -> u16 {
        self.call(put_request(path, data.into())).await.0.status.0
    }

    pub fn fail(&self, node: usize, fault: Fault) {
        self.state.lock().faults.insert(node, fault);
    }

    pub fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// Stops a node: nobody listens there any more.
    pub async fn stop(&mut self, node: usize) {
        self.listeners[node] = None;
        if let Some(server) = self.servers[node].take() {
            server.stop(Duration::ZERO).await;
        }
    }

    /// From now on a node answers whatever it is asked with this status, before it has read it, and then ends.
    pub async fn refuse(&mut self, node: usize, status: u16, ending: Ending) {
        if let Some(server) = self.servers[node].take() {
            server.stop(Duration::ZERO).await;
        }
        let listener = tokio::net::TcpListener::from_std(self.listeners[node].take().unwrap()).unwrap();
        self.refusing.push(AbortOnDrop(tokio::spawn(async move {
            let mut staying = Vec::new();
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                // A failure is the client's hanging up.
                let _ = refuse(&mut tcp, status, ending).await;
                if ending == Ending::Stays {
                    staying.push(tcp);
                }
            }
        })));
    }

    /// What the nodes were asked since the last call of this.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().asked)
    }

    pub fn asked_with(&self, method: &Method) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.method == *method).collect()
    }

    /// The nodes which have an object, and that it has this data everywhere.
    pub fn holders(&self, path: &str, data: &[u8]) -> Vec<usize> {
        let state = self.state.lock();
        let of_path = state.objects.iter().filter(|((_, other), _)| other == path);
        let mut nodes: Vec<usize> = of_path
            .map(|((node, _), object)| {
                assert_eq!(object.data, data, "node {node} has other data");
                *node
            })
            .collect();
        nodes.sort_unstable();
        nodes
    }

    /// What the nodes have of an erasure coded object: the archive, its metadata and whether it was committed.
    pub fn archives(&self, path: &str) -> Vec<(Bytes, Headers, bool)> {
        let state = self.state.lock();
        let of_path = state.objects.iter().filter(|((_, other), _)| other == path);
        of_path
            .map(|(_, object)| {
                let committed = object.headers.contains("X-Committed");
                (object.data.clone(), object.headers.clone(), committed)
            })
            .collect()
    }

    /// A node that has the fragment archive of that index, and does as it should.
    pub fn holder_without_fault(&self, path: &str, index: usize) -> usize {
        let state = self.state.lock();
        let has = |headers: &Headers| headers.get_int(X_OBJECT_SYSMETA_EC_FRAG_INDEX) == Some(index);
        let mut holders = state.objects.iter().filter(|((_, other), o)| other == path && has(&o.headers));
        holders.find(|((node, _), _)| !state.faults.contains_key(node)).unwrap().0.0
    }

    pub fn forget(&self, node: usize, path: &str) {
        self.state.lock().objects.remove(&(node, path.to_owned()));
    }
}

pub fn put_request(path: &str, data: Bytes) -> Request {
    Request::new(Method::Put, path).with_header("Content-Length", data.len()).with_body(data)
}

/// A PUT whose data comes in pieces, with no length said.
pub fn chunked_request(path: &str, pieces: Vec<Result<Bytes, BodyError>>) -> Request {
    let (sender, body) = Body::channel(pieces.len());
    tokio::spawn(async move {
        for piece in pieces {
            match piece {
                Ok(piece) => sender.send(piece).await.unwrap(),
                Err(error) => return sender.fail(error).await,
            }
        }
    });
    Request::new(Method::Put, path).with_header("Transfer-Encoding", "chunked").with_body(body)
}

fn write_rings(dir: PathBuf, ports: &[u16]) {
    for name in ["account", "container", "object", "object-1", "object-2", "object-3", "object-4", "object-5"]
    {
        let erasure_coded = ["object-3", "object-4", "object-5"].contains(&name);
        let replicas = if erasure_coded { ports.len().min(6) } else { 3 };
        let mut builder = RingBuilder::new(2, replicas as f64, 1).unwrap();
        for (id, port) in ports.iter().enumerate() {
            let dev = Device {
                id: id as u32,
                region: 1,
                zone: id as u32,
                ip: "127.0.0.1".to_owned(),
                port: *port,
                device: format!("sd{id}"),
                weight: 1.0,
                replication_ip: "127.0.0.1".to_owned(),
                replication_port: *port,
                meta: String::new(),
                extra: Default::default(),
            };
            builder.add_dev(dev).unwrap();
        }
        builder.rebalance(1).unwrap();
        builder.save_ring(&dir.join(format!("{name}.ring.gz")), FormatVersion::V1).unwrap();
    }
}

async fn refuse(tcp: &mut TcpStream, status: u16, ending: Ending) -> io::Result<()> {
    let mut byte = [0; 1];
    let mut seen = Vec::new();
    while ending != Ending::ClosesUnread && !seen.ends_with(b"\r\n\r\n") {
        tcp.read_exact(&mut byte).await?;
        seen.extend(byte);
    }
    let head = format!("HTTP/1.1 {status} No\r\nContent-Type: text/html\r\nContent-Length: 70\r\n\r\n");
    tcp.write_all(format!("{head}{:70}", "<html>").as_bytes()).await?;
    if ending == Ending::Resets {
        tcp.set_zero_linger()?;
    }
    Ok(())
}

async fn answer(node: usize, state: Arc<Mutex<State>>, mut req: Request) -> Response {
    let path = format!("/{}", req.path.splitn(4, '/').nth(3).unwrap_or_default());
    let fault = state.lock().faults.get(&node).cloned();
    // As a server does that does not want the data.
    if let Some(Fault::Status(status)) = fault {
        note(node, &state, &req, &path, Bytes::new());
        return Response::error(status);
    }
    if req.headers.get_str("If-None-Match") == Some("*")
        && state.lock().objects.contains_key(&(node, path.clone()))
    {
        note(node, &state, &req, &path, Bytes::new());
        return Response::error(412);
    }
    let able = [("X-Obj-Metadata-Footer", "yes"), ("X-Obj-Multiphase-Commit", "yes")];
    req.body.set_continue_headers(Headers::from(able));
    let Ok(mut data) = req.body.collect(1 << 24).await else { return Response::error(499) };
    note(node, &state, &req, &path, data.clone());
    let document = data.clone();
    if let Some(boundary) = req.headers.get_str("X-Backend-Obj-Multipart-Mime-Boundary") {
        data = first_document(&data, boundary);
    }
    if fault == Some(Fault::Hang) {
        std::future::pending::<()>().await;
    }
    if let (Some(Fault::StatusAfterData(status)), Method::Put) = (&fault, &req.method) {
        return Response::error(*status);
    }
    if req.headers.contains("X-Backend-Obj-Multiphase-Commit") {
        return commit(node, &state, req, path, data, document, fault).await;
    }
    let mut state = state.lock();
    match path.matches('/').count() {
        1 => Response::new(204)
            .with_header("X-Account-Container-Count", "1")
            .with_header("X-Put-Timestamp", "1"),
        2 => container(&mut state, node, &req, path),
        _ => object(&mut state, node, &req, path, data, fault),
    }
}

/// The second phase of a PUT: until the commit has come the object is not durable.
async fn commit(
    node: usize,
    state: &Mutex<State>,
    mut req: Request,
    path: String,
    data: Bytes,
    document: Bytes,
    fault: Option<Fault>,
) -> Response {
    let mut headers = req.headers.clone();
    let start = memchr::memmem::rfind(&document, b"\r\n\r\n{").unwrap() + 4;
    let end = memchr::memrchr(b'}', &document).unwrap() + 1;
    let footers: HashMap<String, String> = serde_json::from_slice(&document[start..end]).unwrap();
    footers.iter().for_each(|(name, value)| headers.insert(name, value));
    assert_eq!(headers.get_str("Etag"), Some(&*hex(&md5(&data))), "an archive with the wrong ETag");
    if req.headers.contains(X_BACKEND_ARCHIVE_CHECKSUM) {
        let mut checksum = Checksum::default();
        checksum.update(&data);
        assert_eq!(headers.get_str(X_BACKEND_ARCHIVE_CHECKSUM), Some(&*checksum.hexdigest()));
    }
    let key = (node, path);
    state.lock().objects.insert(key.clone(), StoredObject { data, headers });
    req.body.set_continue_headers(Headers::new());
    if req.body.next_chunked_body().await.is_err() {
        return Response::error(499);
    }
    let Ok(rest) = req.body.collect(1000).await else { return Response::error(499) };
    if fault == Some(Fault::NoCommit) {
        return Response::error(500);
    }
    assert!(rest.starts_with(b"X-Document: put commit\r\n\r\nput_commit_confirmation\r\n--"));
    state.lock().objects.get_mut(&key).unwrap().headers.insert("X-Committed", "yes");
    Response::error(201)
}

/// What an object server says of a fragment archive.
fn tell_of_archive(stored: &Headers, timestamp: &str, resp: &mut Response) {
    let Some(index) = stored.get_str(X_OBJECT_SYSMETA_EC_FRAG_INDEX) else { return };
    for (name, value) in stored.iter().filter(|(name, _)| name.to_ascii_lowercase().starts_with(b"x-object-"))
    {
        resp.headers.insert(name, value);
    }
    resp.headers.insert("X-Backend-Data-Timestamp", timestamp);
    resp.headers.insert("X-Backend-Fragments", format!("{{\"{timestamp}\": [{index}]}}"));
    if stored.contains("X-Committed") {
        resp.headers.insert("X-Backend-Durable-Timestamp", timestamp);
    }
}

fn note(node: usize, state: &Mutex<State>, req: &Request, path: &str, body: Bytes) {
    let (method, headers) = (req.method.clone(), req.headers.clone());
    state.lock().asked.push(Asked { node, method, path: path.to_owned(), headers, body });
}

/// A container whose metadata names a shard is sharded, into that one.
fn container(state: &mut State, node: usize, req: &Request, path: String) -> Response {
    let key = (node, path);
    match (&req.method, state.containers.get(&key)) {
        (Method::Put, found) => {
            let status = if found.is_some() { 202 } else { 201 };
            state.containers.insert(key, req.headers.clone());
            Response::new(status)
        }
        (_, None) => Response::error(404),
        (Method::Get, Some(headers)) if req.headers.get_str("X-Backend-Record-Type") == Some("shard") => {
            let shard = headers.get_str("X-Container-Meta-Shard").unwrap_or_default();
            let body = format!("[{{\"name\": \"{shard}\", \"lower\": \"\", \"upper\": \"\"}}]");
            Response::new(200)
                .with_header("X-Backend-Storage-Policy-Index", "0")
                .with_header("X-Backend-Sharding-State", "sharded")
                .with_header("X-Backend-Record-Type", "shard")
                .with_header("Content-Length", body.len())
                .with_body(body)
        }
        (_, Some(headers)) => {
            let mut resp = Response::new(204).with_header("X-Backend-Storage-Policy-Index", "0");
            for (name, value) in headers.iter() {
                if name.to_ascii_lowercase().starts_with(b"x-container-") {
                    resp.headers.insert(name, value);
                }
            }
            if headers.contains("X-Container-Meta-Shard") {
                resp.headers.insert("X-Backend-Sharding-State", "sharded");
            }
            resp
        }
    }
}

fn object(
    state: &mut State,
    node: usize,
    req: &Request,
    path: String,
    data: Bytes,
    fault: Option<Fault>,
) -> Response {
    let key = (node, path);
    let etag = |data: &[u8]| hex(&md5(data));
    match req.method {
        Method::Put => {
            if req.headers.get_str("Etag").is_some_and(|wanted| wanted != etag(&data)) {
                return Response::error(422);
            }
            let resp = Response::new(201).with_header("Etag", etag(&data));
            state.objects.insert(key, StoredObject { data, headers: req.headers.clone() });
            resp
        }
        Method::Delete => match state.objects.remove(&key) {
            Some(_) => Response::new(204),
            None => Response::error(404),
        },
        Method::Post if state.objects.contains_key(&key) => Response::error(202),
        Method::Get | Method::Head => match state.objects.get(&key) {
            None => Response::error(404),
            Some(object) => {
                let timestamp = object.headers.get_str("X-Timestamp").unwrap_or("1");
                let mut resp = Response::new(200)
                    .with_header("Etag", format!("\"{}\"", etag(&object.data)))
                    .with_header("Content-Type", "a/b; swift_bytes=7")
                    .with_header("X-Timestamp", timestamp)
                    .with_header("X-Backend-Timestamp", timestamp);
                tell_of_archive(&object.headers, timestamp, &mut resp);
                let length = object.data.len();
                let range = req.headers.get_str("Range").and_then(|range| range.strip_prefix("bytes="));
                let mut data = object.data.clone();
                if let Some((start, end)) = range.and_then(|range| range.split_once('-')) {
                    let start: usize = start.parse().unwrap();
                    let end = end.parse().unwrap_or(length - 1).min(length - 1);
                    resp.status = 206.into();
                    resp.headers.insert("Content-Range", format!("bytes {start}-{end}/{length}"));
                    data = data.slice(start..=end);
                }
                resp.headers.insert("Content-Length", data.len());
                let is_one_fragment = data.len() <= 25_080;
                if req.headers.get_bool("X-Backend-Checks-Etag") && range.is_none() && is_one_fragment {
                    resp.headers.insert("X-Backend-Etag-Unchecked", "true");
                }
                resp.body = match fault {
                    Some(Fault::CutBody(at)) if at < data.len() => cut(data, at),
                    Some(Fault::Spoil(at)) if at < data.len() => {
                        let mut spoilt = data.to_vec();
                        spoilt[at] ^= 1;
                        spoilt.into()
                    }
                    _ => data.into(),
                };
                resp
            }
        },
        _ => Response::error(404),
    }
}

/// The object in a MIME document.
fn first_document(document: &Bytes, boundary: &str) -> Bytes {
    let find = |what: &str| memchr::memmem::find(document, what.as_bytes()).unwrap();
    document.slice(find("\r\n\r\n") + 4..find(&format!("\r\n--{boundary}\r\n")))
}

fn cut(data: Bytes, at: usize) -> Body {
    let length = data.len() as u64;
    let (sender, body) = Body::channel(2);
    tokio::spawn(async move {
        sender.send(data.slice(..at)).await.unwrap();
        sender.fail(BodyError::Other("cut".to_owned())).await;
    });
    body.with_length(length)
}
