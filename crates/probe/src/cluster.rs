//! A cluster of separate processes, each of them Martlet's or Python's, on the folder that `martlet up --prepare` writes.
//!
//! The configuration files are the ones that `up` runs from; only `log_address` is added, so that all logs can be
//! searched for errors. Programs of both implementations can be stopped and started on the same disks at will.

use crate::peer::{self, Peer, Process};
use crate::ports::{base_port, free_ports};
use crate::syslog::Syslog;
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Cluster {
    pub dir: PathBuf,
    pub port: u16,
    pub syslog: Syslog,
    processes: Vec<Process>,
}

/// The servers of a storage node and the proxy.
pub const SERVERS: [&str; 4] = ["account-server", "container-server", "object-server", "proxy-server"];

/// Daemons that have a file of their own.
const OWN_CONFS: [&str; 2] = ["object-expirer.conf", "container-reconciler.conf"];

impl Cluster {
    /// Writes a new cluster's folder below `dir`.
    pub fn prepare(dir: &Path) -> Result<Cluster> {
        Cluster::prepare_with(dir, &[])
    }

    /// The same with options of `up`.
    pub fn prepare_with(dir: &Path, options: &[&str]) -> Result<Cluster> {
        let ports = free_ports(1)?;
        let data = dir.join("cluster");
        let base = base_port()?;
        let mut up = Command::new(peer::martlet()?);
        up.args(["up", "--prepare", "--data"]).arg(&data);
        up.args(["--port", &ports[0].to_string(), "--base-port", &base.to_string()]).args(options);
        peer::success(&mut up)?;
        let syslog = Syslog::listen(&dir.join("log"))?;
        let cluster = Cluster { dir: data, port: ports[0], syslog, processes: Vec::new() };
        for conf in cluster.confs("")? {
            let text =
                std::fs::read_to_string(&conf).with_context(|| format!("cannot read {}", conf.display()))?;
            let logged = text.replacen(
                "[DEFAULT]\n",
                &format!("[DEFAULT]\nlog_address = {}\n", cluster.syslog.path.display()),
                1,
            );
            ensure!(logged != text, "{} has no [DEFAULT]", conf.display());
            std::fs::write(&conf, logged).with_context(|| format!("cannot write {}", conf.display()))?;
        }
        Ok(cluster)
    }

    /// Configuration files of a service (`object-server`) of every node; all services' for "".
    pub fn confs(&self, service: &str) -> Result<Vec<PathBuf>> {
        let mut confs = Vec::new();
        collect(&self.dir.join("etc"), service, &mut confs)?;
        ensure!(!confs.is_empty(), "no {service} conf below {}", self.dir.display());
        confs.sort();
        Ok(confs)
    }

    /// Starts a program (`object-server`) on every node that has one, and waits until servers listen.
    pub fn start(&mut self, peer: Peer, program: &str) -> Result<()> {
        self.start_with(peer, program, |_| &[])
    }

    /// The same with variables of the environment, which depend on the path of the configuration file.
    pub fn start_with(
        &mut self,
        peer: Peer,
        program: &str,
        env: impl Fn(&Path) -> &'static [(&'static str, &'static str)],
    ) -> Result<()> {
        let name = format!("swift-{program}");
        let service = if program.ends_with("-server") { program.to_string() } else { server_of(program) };
        for conf in self.confs(&service)? {
            let mut command = self.command(peer, &name)?;
            command.arg(&conf).stdin(Stdio::null()).stdout(Stdio::null());
            command.envs(env(&conf).iter().copied());
            let process =
                Process::spawn(&format!("{} {name} {}", peer.name(), conf.display()), &mut command)?;
            self.processes.push(process);
            if program.ends_with("-server") {
                peer::wait_for(listening(&conf)?)?;
            }
        }
        Ok(())
    }

    /// Runs a daemon's single pass on every node, one node after the other.
    pub fn once(&self, peer: Peer, program: &str) -> Result<()> {
        for conf in self.confs(&server_of(program))? {
            peer::success(self.command(peer, &format!("swift-{program}"))?.arg(conf).arg("once"))?;
        }
        Ok(())
    }

    /// A program of Swift's with the cluster's swift.conf.
    pub fn command(&self, peer: Peer, name: &str) -> Result<Command> {
        let links = self.dir.join("bin");
        std::fs::create_dir_all(&links).with_context(|| format!("cannot create {}", links.display()))?;
        peer.command(&links, &self.dir.join("etc"), name)
    }

    /// A memcached where the proxy's configuration looks for one: Python's proxy has no cache of its own.
    pub fn memcached(&self) -> Result<Process> {
        let confs = self.confs("proxy-server")?;
        let text = std::fs::read_to_string(&confs[0])
            .with_context(|| format!("cannot read {}", confs[0].display()))?;
        let servers =
            text.lines().find_map(|l| l.strip_prefix("memcache_servers")).context("no memcache_servers")?;
        let port = servers.rsplit(':').next().unwrap_or_default().trim();
        let mut command = Command::new("memcached");
        command.args(["-u", "root", "-l", "127.0.0.1", "-U", "0", "-p", port]);
        let process = Process::spawn("memcached", command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        peer::wait_for(format!("127.0.0.1:{port}").parse().context("memcache_servers is no address")?)?;
        Ok(process)
    }

    /// Pids of everything that runs.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    /// Stops a node's server, and forgets it.
    pub fn stop_node(&mut self, program: &str, node: u16) -> Result<()> {
        let ending = format!("/node{node}/{program}.conf");
        let found = self.processes.iter().position(|process| process.name.ends_with(&ending));
        let mut process = self.processes.remove(found.with_context(|| format!("no {ending} runs"))?);
        process.stop()
    }

    pub fn stop_all(&mut self) -> Result<()> {
        for mut process in self.processes.drain(..) {
            process.check()?;
            process.stop()?;
        }
        Ok(())
    }

    /// A token of the `swift` client.
    pub fn token(&self, cwd: &Path) -> Result<String> {
        let auth = self.client(cwd, &["auth"])?;
        let token = auth.lines().find_map(|line| line.strip_prefix("export OS_AUTH_TOKEN="));
        Ok(token.context("no token")?.to_owned())
    }

    /// The `swift` client with these words.
    pub fn client(&self, cwd: &Path, words: &[&str]) -> Result<String> {
        let mut command = Command::new(peer::venv()?.join("bin/swift"));
        let auth = format!("http://127.0.0.1:{}/auth/v1.0", self.port);
        command.args(["-A", &auth, "-U", "test:tester", "-K", "testing"]).args(words).current_dir(cwd);
        peer::success(command.env("PYTHONWARNINGS", "ignore").env("LC_ALL", "C.UTF-8"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.processes.clear();
    }
}

fn collect(dir: &Path, service: &str, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, service, into)?;
        } else if (name.ends_with("-server.conf") || OWN_CONFS.contains(&name.as_str()))
            && (service.is_empty() || name == format!("{service}.conf"))
        {
            into.push(path);
        }
    }
    Ok(())
}

/// `object-replicator` lives in object-server.conf.
fn server_of(program: &str) -> String {
    if OWN_CONFS.contains(&format!("{program}.conf").as_str()) {
        return program.to_owned();
    }
    let tier = program.split('-').next().unwrap_or(program);
    format!("{tier}-server")
}

/// bind_ip and bind_port of a server's configuration file.
pub fn listening(conf: &Path) -> Result<SocketAddr> {
    let text = std::fs::read_to_string(conf).with_context(|| format!("cannot read {}", conf.display()))?;
    let value = |name: &str| -> Result<String> {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_prefix('='));
        Ok(line.with_context(|| format!("{}: no {name}", conf.display()))?.trim().to_string())
    };
    format!("{}:{}", value("bind_ip")?, value("bind_port")?)
        .parse()
        .with_context(|| format!("{}: no address", conf.display()))
}
