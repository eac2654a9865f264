//! A few nodes in this process, each with one device in a temporary folder and an object server on a port of its own.

#![allow(dead_code)] // not every test needs all of it

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::config::{Conf, Paste, SwiftConf};
use common::hash::HashConf;
use common::{ObjHash, Timestamp};
use obj::diskfile::read_metadata;
use parking_lot::Mutex;
use ring::{Device, FormatVersion, RingBuilder};
use service::context::Context;
use service::daemon::DaemonArgs;
use service::http::serve::{ServeOptions, Server, ServerHandle};
use service::http::{Body, BodyError, Method, Request, Response, SharedApp, app_fn};
use service::logs::{Lines, Logger};
use service::pipeline::{Registry, load_app};

pub const PART_POWER: u32 = 2;
pub const SEGMENT: usize = 1 << 20;
const SECRET: &str = "[swift-hash]\nswift_hash_path_suffix = endcap\n";

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub nodes: Vec<Node>,
}

pub struct Node {
    pub port: u16,
    pub app: SharedApp,
    pub lines: Lines,
    server: Option<ServerHandle>,
    /// Runs each time this node's server has told a sender that its updates are done.
    pub after_updates: Arc<Mutex<Option<SharedApp>>>,
    pub trouble: Arc<Mutex<Trouble>>,
    /// The other ends of the connections that requests came over.
    pub clients: Arc<Mutex<BTreeSet<SocketAddr>>>,
}

/// What a node's server does to some requests.
#[derive(Clone, Default)]
pub enum Trouble {
    #[default]
    None,
    /// 507 to everything.
    Unmounted,
    /// Bodies of GETs end after so many bytes.
    Cut(usize),
    /// No answer to anything.
    Silent,
}

/// Path below the device -> (metadata, data).
pub type Files = BTreeMap<PathBuf, (Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>)>;

impl Cluster {
    /// `nodes` nodes, of which `primaries` have partitions, each of them all.
    pub fn new(nodes: usize, primaries: &[usize]) -> Self {
        Self::with_options(nodes, primaries, "")
    }

    pub fn with_options(nodes: usize, primaries: &[usize], options: &str) -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), nodes, primaries, options)
    }

    /// For many clusters.
    pub fn in_memory(nodes: usize, primaries: &[usize], options: &str) -> Self {
        Self::in_dir(memory_dir(), nodes, primaries, options)
    }

    /// With policy 0 an EC policy, of which each partition has so many primaries; any other node is a handoff.
    pub fn of_fragments(nodes: usize, (ndata, nparity): (usize, usize), options: &str) -> Self {
        let dir = memory_dir();
        let policy = format!(
            "[storage-policy:0]\nname = ec\ndefault = yes\npolicy_type = erasure_coding\nec_type = isa_l_rs_cauchy\n\
             ec_num_data_fragments = {ndata}\nec_num_parity_fragments = {nparity}\n"
        );
        std::fs::write(dir.path().join("swift.conf"), format!("{SECRET}{policy}")).unwrap();
        let cluster = Self::with_servers(dir, nodes, options);
        let mut builder = RingBuilder::new(PART_POWER, (ndata + nparity) as f64, 0).unwrap();
        for id in 0..nodes {
            builder.add_dev(cluster.dev(id, 1.0)).unwrap();
        }
        builder.rebalance(1).unwrap();
        builder.save_ring(&cluster.dir.path().join("object.ring.gz"), FormatVersion::V1).unwrap();
        cluster
    }

    /// The nodes of an object's partition: the primaries in their order, then the handoffs in theirs.
    pub fn homes(&self, object: &str) -> Vec<usize> {
        let ring = Arc::new(ring::Ring::load(&self.dir.path().join("object.ring.gz")).unwrap());
        let part = self.part(object);
        let nodes = ring.get_part_nodes(part).into_iter().chain(ring.get_more_nodes(part));
        nodes.map(|node| node.id as usize).collect()
    }

    fn in_dir(dir: tempfile::TempDir, nodes: usize, primaries: &[usize], options: &str) -> Self {
        std::fs::write(dir.path().join("swift.conf"), SECRET).unwrap();
        let cluster = Self::with_servers(dir, nodes, options);
        cluster.ring(primaries);
        cluster
    }

    fn with_servers(dir: tempfile::TempDir, nodes: usize, options: &str) -> Self {
        let listeners: Vec<_> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        let mut cluster = Self { dir, nodes: Vec::new() };
        for (id, listener) in listeners.into_iter().enumerate() {
            std::fs::create_dir_all(cluster.device(id)).unwrap();
            let node = cluster.node(id, ports[id], listener, options);
            cluster.nodes.push(node);
        }
        cluster
    }

    pub fn devices(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("node{id}"))
    }

    pub fn device(&self, id: usize) -> PathBuf {
        self.devices(id).join(format!("sd{id}"))
    }

    pub fn partition(&self, id: usize, part: u32) -> PathBuf {
        self.device(id).join("objects").join(part.to_string())
    }

    pub fn context(&self, name: &str, args: DaemonArgs) -> (Context, Lines) {
        let (logger, lines) = Logger::memory();
        let swift_conf = SwiftConf::load(self.dir.path()).unwrap();
        let ctx = Context::builder(name)
            .logger(logger)
            .swift_conf(swift_conf)
            .args(args)
            .recon_cache_path(self.dir.path())
            .build();
        (ctx, lines)
    }

    pub fn conf(&self, id: usize, port: u16, options: &str) -> String {
        format!(
            "[DEFAULT]\ndevices = {}\nmount_check = false\nfallocate_reserve = 0\nbind_ip = 127.0.0.1\nbind_port = {port}\n\
             [pipeline:main]\npipeline = object-server\n[app:object-server]\nuse = egg:swift#object\n\
             {options}\n[object-replicator]\nsync_method = ssync\n{options}\n[object-reconstructor]\n{options}\n",
            self.devices(id).display()
        )
    }

    pub fn node(&self, id: usize, port: u16, listener: TcpListener, options: &str) -> Node {
        let (ctx, lines) = self.context("object-server", DaemonArgs::default());
        let mut registry = Registry::new();
        obj::register(&mut registry);
        let paste = Paste::parse(&self.conf(id, port, options), "object-server.conf", "main").unwrap();
        let app = load_app(&paste, &registry, &ctx).unwrap();
        let after_updates = Arc::new(Mutex::new(None::<SharedApp>));
        let trouble = Arc::new(Mutex::new(Trouble::None));
        let served = troubled(hooked(app.clone(), after_updates.clone()), trouble.clone());
        let clients = Arc::new(Mutex::new(BTreeSet::new()));
        let served = noted(served, clients.clone());
        let server = Server::start(vec![listener], served, ServeOptions::default());
        Node { port, app, lines, server: Some(server.unwrap()), after_updates, trouble, clients }
    }

    /// A ring in which `primaries` have every partition.
    pub fn ring(&self, primaries: &[usize]) {
        let mut builder = RingBuilder::new(PART_POWER, primaries.len() as f64, 1).unwrap();
        for &id in primaries {
            builder.add_dev(self.dev(id, 1.0)).unwrap();
        }
        builder.rebalance(1).unwrap();
        let mut data = builder.to_ring_data().unwrap();
        data.devs.resize(self.nodes.len().max(data.devs.len()), None);
        for id in 0..self.nodes.len() {
            data.devs[id].get_or_insert_with(|| Arc::new(self.dev(id, 0.0)));
        }
        data.save(&self.dir.path().join("object.ring.gz"), FormatVersion::V1).unwrap();
    }

    /// Puts a node into another region than 1.
    pub fn set_region(&self, id: usize, region: u32) {
        let path = self.dir.path().join("object.ring.gz");
        let mut data = ring::Ring::load(&path).unwrap().data();
        let dev = Device { region, ..(**data.devs[id].as_ref().unwrap()).clone() };
        data.devs[id] = Some(Arc::new(dev));
        data.save(&path, FormatVersion::V1).unwrap();
    }

    pub fn dev(&self, id: usize, weight: f64) -> Device {
        let port = self.nodes[id].port;
        Device {
            id: id as u32,
            region: 1,
            zone: id as u32,
            ip: "127.0.0.1".into(),
            port,
            device: format!("sd{id}"),
            weight,
            replication_ip: "127.0.0.1".into(),
            replication_port: port,
            meta: String::new(),
            extra: Default::default(),
        }
    }

    pub fn hash(&self, object: &str) -> ObjHash {
        HashConf { prefix: vec![], suffix: b"endcap".to_vec() }.hash_path("a", Some("c"), Some(object))
    }

    pub fn part(&self, object: &str) -> u32 {
        self.hash(object).partition(PART_POWER)
    }

    pub async fn call(&self, id: usize, method: Method, object: &str, at: f64, data: &str) -> u16 {
        let req = self.request(id, method, object, at).with_header("Content-Length", data.len());
        self.nodes[id].app.call(req.with_body(data.to_string())).await.status.0
    }

    pub fn request(&self, id: usize, method: Method, object: &str, at: f64) -> Request {
        Request::new(method, format!("/sd{id}/{}/a/c/{object}", self.part(object)))
            .with_header("X-Timestamp", Timestamp::from_secs_f64(at).internal())
            .with_header("Content-Type", "text/plain")
            .with_header("X-Object-Meta-Caf\u{e9}", "\u{fc}ber")
    }

    pub async fn put(&self, id: usize, object: &str, at: f64, data: &str) {
        assert_eq!(self.call(id, Method::Put, object, at, data).await, 201);
    }

    /// One pass on node `id`; what it logged.
    pub async fn replicate(&self, id: usize) -> Lines {
        self.replicate_with(id, "", DaemonArgs::default()).await
    }

    pub async fn replicate_with(&self, id: usize, options: &str, args: DaemonArgs) -> Lines {
        let (ctx, lines) = self.context("object-replicator", args);
        let conf = Conf::parse(&self.conf(id, self.nodes[id].port, options), "object-server.conf").unwrap();
        obj::replicator::build(&conf, &ctx).unwrap().run_once().await;
        lines
    }

    /// One pass of the reconstructor on node `id`; what it logged.
    pub async fn reconstruct(&self, id: usize, options: &str) -> Lines {
        let (ctx, lines) = self.context("object-reconstructor", DaemonArgs::default());
        let conf = Conf::parse(&self.conf(id, self.nodes[id].port, options), "object-server.conf").unwrap();
        obj::reconstructor::build(&conf, &ctx).unwrap().run_once().await;
        lines
    }

    pub fn recon(&self) -> serde_json::Value {
        let text = std::fs::read(self.dir.path().join("object.recon")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub fn files(&self, id: usize) -> Files {
        let mut dirs = vec![self.device(id).join("objects")];
        let mut files = Files::new();
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let name = entry.file_name().into_string().unwrap();
                if path.is_dir() {
                    dirs.push(path);
                } else if !name.starts_with("hashes.") && !name.starts_with(".lock") {
                    let file = std::fs::File::open(&path).unwrap();
                    let metadata = read_metadata(&file, false).unwrap();
                    let mut metadata: Vec<_> =
                        metadata.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                    metadata.sort();
                    let below = path.strip_prefix(self.device(id)).unwrap().to_path_buf();
                    files.insert(below, (metadata, std::fs::read(&path).unwrap()));
                }
            }
        }
        files
    }

    pub fn partitions(&self, id: usize) -> Vec<String> {
        let names = std::fs::read_dir(self.device(id).join("objects")).into_iter().flatten();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub async fn stop(&mut self, id: usize) {
        self.nodes[id].server.take().unwrap().stop(Duration::ZERO).await;
    }

    /// No node has logged anything worse than a notice.
    pub fn assert_quiet(&self) {
        for node in &self.nodes {
            assert_eq!(node.lines.at_least(service::logs::Level::Warning), Vec::<String>::new());
        }
    }
}

/// A folder where a sync takes no time, if there is such a place that takes metadata.
fn memory_dir() -> tempfile::TempDir {
    let takes_metadata = |dir: &tempfile::TempDir| {
        let file = std::fs::File::create(dir.path().join("file")).unwrap();
        common::fs::write_metadata_xattrs(file, b"pickle", 6).is_ok()
    };
    let dir = tempfile::tempdir_in("/dev/shm").ok().filter(takes_metadata);
    dir.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// The fragment archives of an object of a policy 2+2 of [`Cluster::of_fragments`].
pub fn archives(body: &[u8]) -> Vec<Vec<u8>> {
    let codec = ec::Codec::new("isa_l_rs_cauchy", 2, 2).unwrap();
    let mut archives = vec![Vec::new(); 4];
    for segment in body.chunks(SEGMENT) {
        let fragments = codec.encode(&bytes::Bytes::copy_from_slice(segment));
        fragments
            .iter()
            .zip(&mut archives)
            .for_each(|(fragment, archive)| archive.extend(fragment.to_bytes()));
    }
    archives
}

/// Calls the hook before the end of a session's updates is passed on to the sender.
fn hooked(app: SharedApp, hook: Arc<Mutex<Option<SharedApp>>>) -> SharedApp {
    app_fn(move |req| {
        let (app, hook) = (app.clone(), hook.clone());
        async move {
            let ssync = req.method == Method::Ssync;
            let mut resp = app.call(req).await;
            let called = hook.lock().clone();
            let (true, Some(called)) = (ssync, called) else { return resp };
            let mut inner = std::mem::take(&mut resp.body);
            resp.body = Body::driven(|tx| async move {
                while let Some(Ok(piece)) = inner.next().await {
                    if piece.windows(13).any(|window| window == b":UPDATES: END") {
                        called.call(Request::new(Method::Get, "/")).await;
                    }
                    if tx.send(piece).await.is_err() {
                        break;
                    }
                }
                inner.abandon().await;
            });
            resp
        }
    })
}

/// Takes down who makes requests.
fn noted(app: SharedApp, clients: Arc<Mutex<BTreeSet<SocketAddr>>>) -> SharedApp {
    app_fn(move |req| {
        clients.lock().extend(req.env.remote_addr);
        let app = app.clone();
        async move { app.call(req).await }
    })
}

fn troubled(app: SharedApp, trouble: Arc<Mutex<Trouble>>) -> SharedApp {
    app_fn(move |req| {
        let (app, trouble) = (app.clone(), trouble.lock().clone());
        async move {
            let is_get = req.method == Method::Get;
            match trouble {
                Trouble::Unmounted => Response::insufficient_storage("sd"),
                Trouble::Silent => std::future::pending().await,
                Trouble::Cut(length) if is_get => {
                    let mut resp = app.call(req).await;
                    let whole = resp.body.collect(usize::MAX).await.unwrap();
                    let (told, sent) = (whole.len() as u64, whole.slice(..length.min(whole.len())));
                    resp.body = Body::driven(|tx| async move {
                        if tx.send(sent).await.is_ok() && told > length as u64 {
                            tx.fail(BodyError::Disconnected).await;
                        }
                    })
                    .with_length(told);
                    resp
                }
                _ => app.call(req).await,
            }
        }
    })
}
