//! The services of a cluster of `up`: a proxy with the object-expirer and the container-reconciler, and the servers and daemons of each node, in one runtime.
//!
//! Each is built from its own file by the same code as the program of its name. A node is stopped and started as a
//! whole: its listeners are closed (connections to it are refused, as by a machine that is off), its daemons dropped, and
//! nothing of its state is kept but what is on its disks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::Conf;
use service::daemon::{self, Mode};
use service::server::{self, RunningServer};
use service::{Context, Process, Registry};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::folder::Folder;
use crate::programs::{self, PROGRAMS};

/// What the open requests of a node get when it is stopped: little, since a node that fails gives none.
const STOP_GRACE: Duration = Duration::from_millis(200);

/// When daemons are woken after the start of a node, each time after the one before: a first pass brings what is missing, the
/// others what the first one's updates have led to.
const WAKE_AFTER: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_secs(4), Duration::from_secs(6)];

/// A running cluster.
pub struct Cluster {
    folder: Folder,
    process: Process,
    registry: Registry,
    proxy: Mutex<Option<Node>>,
    nodes: Vec<Mutex<Option<Node>>>,
}

/// Servers and daemons that stop together.
struct Node {
    process: Process,
    servers: Vec<RunningServer>,
    daemons: Vec<JoinHandle<()>>,
}

/// How a node is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    pub node: u16,
    pub runs: bool,
    pub object_port: u16,
}

impl Cluster {
    /// A cluster of which nothing runs yet.
    pub fn new(folder: Folder, process: Process) -> Cluster {
        let nodes = (0..folder.settings.nodes).map(|_| Mutex::default()).collect();
        Cluster { folder, process, registry: programs::registry(), proxy: Mutex::default(), nodes }
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Starts the servers of all nodes, then their daemons, then the proxy and the daemons of the whole cluster.
    pub async fn start(&self) -> Result<()> {
        for node in 1..=self.folder.settings.nodes {
            let running = self.start_storage(node)?;
            *self.slot(node)?.lock().await = Some(running);
        }
        for node in 1..=self.folder.settings.nodes {
            if let Some(running) = self.slot(node)?.lock().await.as_mut() {
                self.start_daemons(node, running)?;
            }
        }
        let process = self.process.for_node("proxy");
        let mut proxy = self.start_servers(process, &[("proxy-server", self.folder.proxy_conf())])?;
        for program in PROGRAMS {
            if let Some(build) = program.build_on_cluster() {
                let daemon =
                    start_daemon(&proxy.process, program.name, &self.folder.daemon_conf(program.name), build);
                proxy.daemons.push(daemon.with_context(|| format!("cannot start the {}", program.name))?);
            }
        }
        *self.proxy.lock().await = Some(proxy);
        Ok(())
    }

    /// Stops everything.
    pub async fn stop(&self) {
        if let Some(proxy) = self.proxy.lock().await.take() {
            proxy.stop(service::supervisor::STOP_GRACE).await;
        }
        for node in &self.nodes {
            if let Some(node) = node.lock().await.take() {
                node.stop(STOP_GRACE).await;
            }
        }
    }

    /// Starts node `node`; false if it runs already.
    pub async fn start_node(&self, node: u16) -> Result<bool> {
        let mut slot = self.slot(node)?.lock().await;
        if slot.is_some() {
            return Ok(false);
        }
        let mut running = self.start_storage(node)?;
        self.start_daemons(node, &mut running)?;
        *slot = Some(running);
        self.wake_daemons();
        Ok(true)
    }

    /// A node came back: what the daemons of all nodes have for it need not wait for their next pass.
    fn wake_daemons(&self) {
        let board = self.process.progress.clone();
        tokio::spawn(async move {
            for pause in WAKE_AFTER {
                tokio::time::sleep(pause).await;
                board.all().iter().for_each(daemon::Progress::wake);
            }
        });
    }

    /// Takes node `node` away; false if it does not run.
    pub async fn stop_node(&self, node: u16) -> Result<bool> {
        let stopped = self.slot(node)?.lock().await.take();
        match stopped {
            Some(node) => node.stop(STOP_GRACE).await,
            None => return Ok(false),
        }
        Ok(true)
    }

    pub async fn status(&self) -> Vec<NodeStatus> {
        let mut all = Vec::new();
        for (node, slot) in (1..).zip(&self.nodes) {
            let runs = slot.lock().await.is_some();
            all.push(NodeStatus { node, runs, object_port: self.folder.settings.object_port(node) });
        }
        all
    }

    fn slot(&self, node: u16) -> Result<&Mutex<Option<Node>>> {
        let count = self.nodes.len();
        ensure!((1..=count).contains(&usize::from(node)), "there is no node {node}: expected 1 to {count}");
        Ok(&self.nodes[usize::from(node) - 1])
    }

    fn start_storage(&self, node: u16) -> Result<Node> {
        let process = self.process.for_node(&format!("node{node}"));
        let server = |name| (name, self.folder.node_conf(node, name));
        self.start_servers(process, &["account-server", "container-server", "object-server"].map(server))
    }

    fn start_daemons(&self, node: u16, running: &mut Node) -> Result<()> {
        for program in PROGRAMS {
            if let Some(build) = program.build_on_node() {
                let tier = program.name.split('-').next().unwrap_or_default();
                let conf = self.folder.node_conf(node, &format!("{tier}-server"));
                // A folder of before there was this daemon runs without it.
                if Conf::load(&conf)?.section(program.name).is_none() {
                    continue;
                }
                let daemon = start_daemon(&running.process, program.name, &conf, build);
                running.daemons.push(daemon.with_context(|| format!("cannot start node {node}"))?);
            }
        }
        Ok(())
    }

    fn start_servers(&self, process: Process, servers: &[(&str, PathBuf)]) -> Result<Node> {
        let mut node = Node { process, servers: Vec::new(), daemons: Vec::new() };
        for (name, conf) in servers {
            let loaded = server::load(&node.process, &self.registry, name, conf)?;
            node.servers.push(loaded.bind_and_start()?);
        }
        Ok(node)
    }
}

fn start_daemon(
    process: &Process,
    name: &str,
    path: &Path,
    build: service::daemonize::Build,
) -> Result<JoinHandle<()>> {
    let conf = Conf::load(path)?;
    let ctx = Context::new(process, name, &conf.require(name)?)?;
    let daemon = build(&conf, &ctx)?;
    Ok(tokio::spawn(async move { daemon::run(daemon, &ctx, Mode::Forever).await }))
}

impl Node {
    async fn stop(self, grace: Duration) {
        self.process.shutdown.trigger();
        let servers = self.servers.into_iter().map(|server| async move { server.stop(grace).await });
        futures_util::future::join_all(servers).await;
        for daemon in self.daemons {
            // It was told to end; how it did is in the log.
            let _ = daemon.await;
        }
    }
}

/// A cluster that the control socket and the display share.
pub type SharedCluster = Arc<Cluster>;
