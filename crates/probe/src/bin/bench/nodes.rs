//! Two nodes of one implementation in a folder, each with one device that has every partition, and a configuration of a server and its
//! replicator: what a pass of the first node's replicator costs both ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use probe::load;
use probe::peer::{self, Peer, Process};
use probe::ports::free_ports;
use ring::{Device, FormatVersion, RingBuilder};

use crate::pass::{Pass, children_cpu};

pub const PART_POWER: u32 = 6;
pub const SECRET: &str =
    "[swift-hash]\nswift_hash_path_suffix = bench\n[storage-policy:0]\nname = gold\ndefault = yes\n";

pub struct Nodes {
    pub peer: Peer,
    pub dir: PathBuf,
    /// Of the two servers, and one for whoever else listens.
    pub ports: Vec<u16>,
    /// `object` or `container`.
    kind: &'static str,
}

impl Nodes {
    /// The folder may have been used before. `options` are the replicator's, who may want to know the ports.
    pub fn new(
        peer: Peer,
        dir: &Path,
        kind: &'static str,
        options: impl Fn(&[u16]) -> String,
    ) -> Result<Nodes> {
        let nodes = Nodes { peer, dir: dir.join(peer.name()), ports: free_ports(3)?, kind };
        let (dir, options) = (nodes.dir.display(), options(&nodes.ports));
        std::fs::create_dir_all(&nodes.dir).with_context(|| format!("cannot create {dir}"))?;
        std::fs::write(nodes.dir.join("swift.conf"), SECRET).context("cannot write swift.conf")?;
        save_ring(&nodes.dir, kind, &nodes.ports)?;
        for node in 0..2 {
            std::fs::create_dir_all(nodes.device(node)).context("cannot create a device")?;
            let conf = format!(
                "[DEFAULT]\nswift_dir = {dir}\ndevices = {dir}/node{node}\nmount_check = false\nbind_ip = 127.0.0.1\n\
                 bind_port = {port}\nworkers = 1\nuser = {user}\nlog_address = /nonexistent\nlog_level = WARNING\n\
                 recon_cache_path = {dir}/node{node}\n[pipeline:main]\npipeline = {kind}-server\n\
                 [app:{kind}-server]\nuse = egg:swift#{kind}\n[{kind}-replicator]\n{options}",
                port = nodes.ports[node],
                user = crate::user(),
            );
            std::fs::write(nodes.conf(node), conf).context("cannot write a configuration")?;
        }
        Ok(nodes)
    }

    pub fn conf(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}.conf"))
    }

    pub fn device(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}/sd{node}"))
    }

    pub fn addr(&self, node: usize) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[node]).into()
    }

    fn command(&self, program: &str, node: usize) -> Result<Command> {
        let mut command =
            self.peer.command(&self.dir, &self.dir, &format!("swift-{}-{program}", self.kind))?;
        command.arg(self.conf(node)).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }

    pub fn server(&self, node: usize) -> Result<Process> {
        let server = Process::spawn(self.peer.name(), &mut self.command("server", node)?)?;
        peer::wait_for(self.addr(node))?;
        Ok(server)
    }

    /// Run the first node's replicator `once`.
    pub fn pass(&self, server: &Process) -> Result<Pass> {
        let (server_before, children_before) = (load::cpu_seconds(&[server.pid()]), children_cpu()?);
        let start = Instant::now();
        peer::success(self.command("replicator", 0)?.arg("once"))?;
        let wall = start.elapsed().as_secs_f64();
        let cpu = load::cpu_seconds(&[server.pid()]) - server_before + children_cpu()? - children_before;
        Ok(Pass { wall, cpu })
    }

    /// Run the first node's replicator as a daemon: what each of `count` passes costs that come after the first `skipped`.
    pub fn passes(&self, server: &Process, skipped: usize, count: usize) -> Result<Vec<Pass>> {
        let recon = self.dir.join(format!("node0/{}.recon", self.kind));
        // As a pass before may have left it.
        let mut seen = std::fs::read_to_string(&recon).unwrap_or_default();
        let daemon = Process::spawn(self.peer.name(), &mut self.command("replicator", 0)?)?;
        let pids = [server.pid(), daemon.pid()];
        let mut ends = Vec::new();
        while ends.len() < skipped + count {
            let deadline = Instant::now() + peer::PATIENCE;
            let told = loop {
                ensure!(Instant::now() < deadline, "{}: no end of a pass", self.peer.name());
                std::thread::sleep(Duration::from_millis(20));
                let told = std::fs::read_to_string(&recon).unwrap_or_default();
                if told != seen && told.contains("replication_last") {
                    break told;
                }
            };
            let figures: serde_json::Value = serde_json::from_str(&told).context("recon")?;
            let wall = figures["replication_time"].as_f64().context("no replication_time in recon")?;
            ends.push(Pass { wall, cpu: load::cpu_seconds(&pids) });
            seen = told;
        }
        let each = |pair: &[Pass]| Pass { wall: pair[1].wall, cpu: pair[1].cpu - pair[0].cpu };
        Ok(ends[skipped - 1..].windows(2).map(each).collect())
    }
}

/// A ring of two nodes with one device each, `sd0` and `sd1`, that both have every partition.
fn save_ring(dir: &Path, name: &str, ports: &[u16]) -> Result<()> {
    let mut builder = RingBuilder::new(PART_POWER, 2.0, 1)?;
    for (node, &port) in ports.iter().enumerate().take(2) {
        builder.add_dev(Device {
            id: node as u32,
            region: 1,
            zone: node as u32,
            ip: "127.0.0.1".into(),
            port,
            replication_ip: "127.0.0.1".into(),
            replication_port: port,
            device: format!("sd{node}"),
            weight: 100.0,
            meta: String::new(),
            extra: Default::default(),
        })?;
    }
    builder.rebalance(1)?;
    Ok(builder.save_ring(&dir.join(format!("{name}.ring.gz")), FormatVersion::V1)?)
}
