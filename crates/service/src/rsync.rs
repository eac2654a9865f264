//! The program `rsync`, by which replicators send what is whole: how a node's module is named, and a transfer that runs.
//!
//! Differences from Swift's on purpose: a template of `rsync_module` with a placeholder that does not exist is refused at the start
//! instead of at each transfer; output beyond a bound is not kept.
//!
//! Not done: formats of placeholders, `{port:05d}` or `{device!r}`, which Swift takes by accident.

use std::io;
use std::net::Ipv6Addr;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use common::config::{ConfigError, Section};
use ring::Device;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;

/// Output that is kept of one transfer; a line is some 100 bytes, so that the lines of 100,000 files fit.
const MAX_OUTPUT: usize = 16 << 20;
/// What a killed rsync gets to end. It may hang in a failing disk.
const DEATH: Duration = Duration::from_secs(1);

/// A template of `rsync_module`.
#[derive(Debug, PartialEq, Eq)]
pub struct Module(Vec<Piece>);

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
    /// The option `rsync_module`; by default the module of the server's name at the node's replication address.
    pub fn from_section(section: &Section, server: &str) -> Result<Self, ConfigError> {
        let template = section.str("rsync_module", "");
        let template = match template.trim_end_matches('/') {
            "" => format!("{{replication_ip}}::{server}"),
            template => template.to_owned(),
        };
        Self::parse(&template).map_err(|problem| section.error("rsync_module", problem))
    }

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

    pub fn of(&self, node: &Device) -> String {
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

/// A running rsync. It dies with this value.
pub struct Rsync {
    child: tokio::process::Child,
    /// What it says on both of its streams.
    output: pipe::Receiver,
}

impl Rsync {
    pub fn start(args: &[String]) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let [program, args @ ..] = args else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn()?;
        Ok(Self { child, output: pipe::Receiver::from_owned_fd(reader.into())? })
    }

    /// Reads its output to the end and waits for its own.
    pub async fn end(&mut self) -> io::Result<(Vec<u8>, ExitStatus)> {
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
    pub async fn kill(mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.start_kill();
        let _ = tokio::time::timeout(DEATH, self.child.wait()).await;
    }
}

/// As Python tells it: a signal is negative.
pub fn returncode(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| -signal)).unwrap_or(-1)
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
        let of = |module: &str| {
            Module::from_section(&Section::from_pairs("x", [("rsync_module", module)]), "object")
        };
        let problem = of("{host}::object").err().unwrap().to_string();
        assert!(problem.contains("Cannot interpolate rsync_module, invalid variable: 'host'"), "{problem}");
        assert_eq!(of("{ip}::object///").unwrap().of(&node()), "10.0.0.1::object");
        assert_eq!(of("/").unwrap().of(&node()), "[fe80::1]::object");
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
