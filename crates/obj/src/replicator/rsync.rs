//! `sync_method = rsync`: suffixes travel by the program `rsync`, and the receiver is told by a REPLICATE request which of its
//! suffixes to hash again.
//!
//! The arguments, the lines of the log and what counts as success are Swift's. rsync puts files where the receiver's object
//! server knows nothing of them: until it has been told it answers with the hashes of before.
//!
//! Differences from Swift's on purpose: the suffixes of a REPLICATE request are told in several requests when they are more
//! than a request line holds, which Swift's server would refuse; a template of `rsync_module` with a placeholder that does not
//! exist is refused at the start instead of at each transfer; output beyond a bound is not kept.
//!
//! Not done: formats of placeholders, `{port:05d}` or `{device!r}`, which Swift takes by accident.

use std::io;
use std::net::Ipv6Addr;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use common::hash::Suffix;
use common::policy::data_dir;
use ring::Device;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;

use super::job::Job;
use super::{Replicator, SyncError};
use crate::ssync::protocol::python_repr;

/// Output that is kept of one transfer; a line is some 100 bytes, so that the lines of 100,000 files fit.
const MAX_OUTPUT: usize = 16 << 20;
/// What a killed rsync gets to end. It may hang in a failing disk.
const DEATH: Duration = Duration::from_secs(1);
/// Suffixes in one REPLICATE request: Swift's servers take a request line of 8 KiB.
const SUFFIXES_A_REQUEST: usize = 1024;

/// The options of a transfer.
pub struct RsyncConf {
    timeout: Duration,
    /// As written, like the next one: rsync reads them.
    io_timeout: String,
    bwlimit: String,
    compress: bool,
    module: Module,
    log_transfers: bool,
    /// Characters of the lines that show the arguments; 0 for all.
    error_line_length: usize,
}

impl RsyncConf {
    pub fn from_section(section: &Section) -> Result<Self, ConfigError> {
        let template = section.str("rsync_module", "");
        let template = match template.trim_end_matches('/') {
            "" => "{replication_ip}::object",
            template => template,
        };
        Ok(Self {
            timeout: Duration::from_secs(section.int("rsync_timeout", 900)?),
            io_timeout: section.str("rsync_io_timeout", "30"),
            bwlimit: section.str("rsync_bwlimit", "0"),
            compress: section.bool("rsync_compress", false)?,
            module: Module::parse(template).map_err(|problem| section.error("rsync_module", problem))?,
            log_transfers: section.bool("log_rsync_transfers", true)?,
            error_line_length: section.int("rsync_error_log_line_length", 0)?,
        })
    }

    /// The command line that sends `sources`, suffix dirs of the job, to a node.
    fn args(&self, job: &Job, node: &Device, sources: impl Iterator<Item = String>) -> Vec<String> {
        let mut args: Vec<String> = [
            "rsync",
            "--recursive",
            "--whole-file",
            "--human-readable",
            "--xattrs",
            "--itemize-changes",
            "--ignore-existing",
        ]
        .map(str::to_string)
        .to_vec();
        args.push(format!("--timeout={}", self.io_timeout));
        args.push(format!("--contimeout={}", self.io_timeout));
        args.push(format!("--bwlimit={}", self.bwlimit));
        // rsync's own temporary files, when a transfer to this node is under way.
        args.push(format!("--exclude=.*.{}", "[0-9a-zA-Z]".repeat(6)));
        if self.compress && job.region != node.region {
            args.push("--compress".to_string());
        }
        args.extend(sources);
        let (module, objects) = (self.module.of(node), data_dir("objects", job.manager.policy()));
        args.push(format!("{module}/{}/{objects}/{}", node.device, job.partition));
        args
    }

    fn limited(&self, line: String) -> String {
        match self.error_line_length {
            0 => line,
            length => line.chars().take(length).collect(),
        }
    }
}

/// A template of `rsync_module`.
#[derive(Debug, PartialEq, Eq)]
struct Module(Vec<Piece>);

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Ip,
    Port,
    ReplicationIp,
    ReplicationPort,
    Region,
    Zone,
    Device,
    Meta,
}

impl Module {
    /// Placeholders in braces; a brace that is doubled stands for itself.
    fn parse(template: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = (&rest[..at], &rest[at..]);
            text.push_str(before);
            if brace.starts_with("{{") || brace.starts_with("}}") {
                text.push_str(&brace[..1]);
                rest = &brace[2..];
                continue;
            }
            let name = brace.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let Some((name, after)) = name else {
                return Err("a single brace; write {{ or }} for one".to_string());
            };
            pieces.push(Piece::Text(std::mem::take(&mut text)));
            pieces.push(Piece::parse(name)?);
            rest = after;
        }
        text.push_str(rest);
        pieces.push(Piece::Text(text));
        Ok(Self(pieces))
    }

    fn of(&self, node: &Device) -> String {
        self.0.iter().map(|piece| piece.of(node)).collect()
    }
}

impl Piece {
    fn parse(name: &str) -> Result<Self, String> {
        Ok(match name {
            "ip" => Self::Ip,
            "port" => Self::Port,
            "replication_ip" => Self::ReplicationIp,
            "replication_port" => Self::ReplicationPort,
            "region" => Self::Region,
            "zone" => Self::Zone,
            "device" => Self::Device,
            "meta" => Self::Meta,
            _ => return Err(format!("Cannot interpolate rsync_module, invalid variable: '{name}'")),
        })
    }

    fn of(&self, node: &Device) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Ip => rsync_ip(&node.ip),
            Self::Port => node.port.to_string(),
            Self::ReplicationIp => rsync_ip(&node.replication_ip),
            Self::ReplicationPort => node.replication_port.to_string(),
            Self::Region => node.region.to_string(),
            Self::Zone => node.zone.to_string(),
            Self::Device => node.device.clone(),
            Self::Meta => node.meta.clone(),
        }
    }
}

fn rsync_ip(ip: &str) -> String {
    if ip.parse::<Ipv6Addr>().is_ok() { format!("[{ip}]") } else { ip.to_string() }
}

impl Replicator {
    /// Whether rsync has sent the suffixes.
    pub(super) async fn rsync(
        &self,
        conf: &RsyncConf,
        node: &Device,
        job: &Job,
        suffixes: &[Suffix],
    ) -> Result<bool, SyncError> {
        let paths: Vec<_> = suffixes.iter().map(|suffix| job.path.join(suffix.to_string())).collect();
        let there = move || paths.into_iter().filter(|path| path.exists()).collect::<Vec<_>>();
        let sources = self.ctx.disk_pools.run(&job.device, there).await;
        if sources.is_empty() {
            return Ok(false);
        }
        let sources = sources.iter().map(|path| path.display().to_string());
        let success = self.transfer(conf, &conf.args(job, node, sources)).await?;
        // Part of the files may be there although it failed. What a handoff has sent in vain it sends again.
        if success || !job.delete {
            for some in suffixes.chunks(SUFFIXES_A_REQUEST) {
                let names: Vec<String> = some.iter().map(ToString::to_string).collect();
                self.replicate_request(node, job, &names.join("-"))
                    .await
                    .map_err(|err| SyncError::Notify(err.to_string()))?;
            }
        }
        Ok(success)
    }

    /// Runs a command line and tells the log of it; whether it ended well.
    async fn transfer(&self, conf: &RsyncConf, args: &[String]) -> Result<bool, SyncError> {
        let started = Instant::now();
        let mut rsync = Rsync::start(args).map_err(SyncError::Rsync)?;
        let Ok(ended) = tokio::time::timeout(conf.timeout, rsync.end()).await else {
            self.logger.error(conf.limited(format!(
                "Killing long-running rsync after {}s: {}",
                conf.timeout.as_secs(),
                python_list(args)
            )));
            rsync.kill().await;
            return Ok(false);
        };
        let (output, status) = ended.map_err(SyncError::Rsync)?;
        self.log_output(conf, &output, status.success());
        if !status.success() {
            self.logger.error(conf.limited(format!(
                "Bad rsync return code: {} <- {}",
                returncode(status),
                python_list(args)
            )));
            return Ok(false);
        }
        let [.., source, destination] = args else { return Ok(true) };
        let source = &source[..source.len().saturating_sub(3)];
        let secs = started.elapsed().as_secs_f64();
        let line = format_args!("Successful rsync of {source}... to {destination} ({secs:.3})");
        if output.is_empty() {
            self.logger.debug(line);
        } else {
            self.logger.info(line);
        }
        Ok(true)
    }

    fn log_output(&self, conf: &RsyncConf, output: &[u8], success: bool) {
        for line in String::from_utf8_lossy(output).split('\n') {
            // Directories that were made say nothing; files that were sent begin with `<`.
            if line.is_empty() || line.starts_with("cd+") || (line.starts_with('<') && !conf.log_transfers) {
                continue;
            }
            if success {
                self.logger.debug(line);
            } else {
                self.logger.error(line);
            }
        }
    }
}

/// A running rsync. It dies with this value.
struct Rsync {
    child: tokio::process::Child,
    /// What it says on both of its streams.
    output: pipe::Receiver,
}

impl Rsync {
    fn start(args: &[String]) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let [program, args @ ..] = args else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn()?;
        Ok(Self { child, output: pipe::Receiver::from_owned_fd(reader.into())? })
    }

    /// Reads its output to the end and waits for its own.
    async fn end(&mut self) -> io::Result<(Vec<u8>, ExitStatus)> {
        let mut kept = Vec::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            match self.output.read(&mut piece).await? {
                0 => break,
                n => {
                    let room = MAX_OUTPUT.saturating_sub(kept.len());
                    kept.extend_from_slice(&piece[..n.min(room)]);
                }
            }
        }
        Ok((kept, self.child.wait().await?))
    }

    /// Kills it, and waits a moment for its end; the runtime reaps it if that takes longer.
    async fn kill(mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.start_kill();
        let _ = tokio::time::timeout(DEATH, self.child.wait()).await;
    }
}

/// As Python tells it: a signal is negative.
fn returncode(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| -signal)).unwrap_or(-1)
}

/// As Python shows a list of strings.
fn python_list(args: &[String]) -> String {
    let args: Vec<String> = args.iter().map(|arg| python_repr(arg)).collect();
    format!("[{}]", args.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn node() -> Device {
        Device {
            id: 1,
            weight: 1.0,
            extra: Map::new(),
            ip: "10.0.0.1".to_string(),
            port: 6200,
            replication_ip: "fe80::1".to_string(),
            replication_port: 6300,
            region: 2,
            zone: 3,
            device: "sda1".to_string(),
            meta: "rack 5".to_string(),
        }
    }

    fn module(template: &str) -> String {
        Module::parse(template).unwrap().of(&node())
    }

    #[test]
    fn a_module_names_the_node_by_its_placeholders() {
        assert_eq!(module("{replication_ip}::object"), "[fe80::1]::object");
        assert_eq!(module("{ip}:{port}/object_{device}"), "10.0.0.1:6200/object_sda1");
        assert_eq!(
            module("rsync://{replication_ip}:{replication_port}/r{region}z{zone}{meta}"),
            "rsync://[fe80::1]:6300/r2z3rack 5"
        );
        assert_eq!(module("{{ip}}"), "{ip}");
    }

    #[test]
    fn a_placeholder_that_does_not_exist_is_refused() {
        for template in ["{host}::object", "{ip", "ip}", "{}", "{device:>5}"] {
            assert!(Module::parse(template).is_err(), "{template}");
        }
        let section = |module: &str| Section::from_pairs("object-replicator", [("rsync_module", module)]);
        let problem = RsyncConf::from_section(&section("{host}::object")).err().unwrap().to_string();
        assert!(problem.contains("Cannot interpolate rsync_module, invalid variable: 'host'"), "{problem}");
        let conf = RsyncConf::from_section(&section("{ip}::object///")).unwrap();
        assert_eq!(conf.module.of(&node()), "10.0.0.1::object");
        let conf = RsyncConf::from_section(&section("/")).unwrap();
        assert_eq!(conf.module.of(&node()), "[fe80::1]::object");
    }

    #[tokio::test]
    async fn output_of_both_streams_is_read_and_the_code_is_pythons() {
        let sh = |script: &str| ["sh", "-c", script].map(str::to_string);
        let (output, status) =
            Rsync::start(&sh("echo out; echo err >&2; exit 3")).unwrap().end().await.unwrap();
        assert_eq!((&output[..], returncode(status)), (&b"out\nerr\n"[..], 3));
        let (_, status) = Rsync::start(&sh("kill -9 $$")).unwrap().end().await.unwrap();
        assert_eq!(returncode(status), -9);
        assert!(Rsync::start(&["/no/such/program".to_string()]).is_err());
    }

    #[tokio::test]
    async fn a_killed_rsync_is_gone() {
        let rsync = Rsync::start(&["sleep", "1000"].map(str::to_string)).unwrap();
        let pid = rsync.child.id().unwrap();
        rsync.kill().await;
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
