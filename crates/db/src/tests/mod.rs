//! Tests of brokers, servers and the updater as wholes. What one file does by itself is tested in that file.

mod brokers;
mod convergence;
mod known;
mod replicate;
mod replicator;
mod servers;
mod sync;
mod updater;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::clock::Clock;
use common::timestamp::Timestamp;
use common::{Section, SwiftConf};
use ring::{FormatVersion, RingBuilder};
use service::http::serve::{ServeOptions, Server, ServerHandle};
use service::http::{Method, Request, Response, SharedApp};
use service::logs::{Lines, Logger};
use service::{Context, DiskPools};
use tempfile::TempDir;

const NOW: u64 = 1_700_000_100;

const SWIFT_CONF: &str = "[swift-hash]\nswift_hash_path_suffix = s\n[storage-policy:0]\nname = gold\ndefault = yes\n\
                          [storage-policy:1]\nname = silver\n";

/// A folder with a device `sda`, and services on it.
struct Node {
    dir: TempDir,
    swift_conf: Arc<SwiftConf>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("devices/sda")).unwrap();
        let swift_conf = SwiftConf::parse(SWIFT_CONF.as_bytes(), "swift.conf", dir.path()).unwrap();
        Self { dir, swift_conf: Arc::new(swift_conf) }
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("devices/sda")
    }

    fn context(&self, name: &str) -> (Context, Lines) {
        self.context_with(name, DiskPools::inline())
    }

    fn context_with(&self, name: &str, disk_pools: DiskPools) -> (Context, Lines) {
        let (logger, lines) = Logger::memory();
        let ctx = Context::builder(name)
            .clock(Clock::manual(Timestamp::from_secs_f64(NOW as f64)))
            .swift_conf(self.swift_conf.clone())
            .disk_pools(disk_pools)
            .recon_cache_path(self.dir.path())
            .logger(logger)
            .build();
        (ctx, lines)
    }

    fn section(&self, name: &str, more: &[(&str, &str)]) -> Section {
        let devices = self.dir.path().join("devices");
        let pairs =
            [("devices", devices.to_str().unwrap()), ("mount_check", "false"), ("fallocate_reserve", "0")];
        Section::from_pairs(name, pairs.into_iter().chain(more.iter().copied()))
    }

    fn account_server(&self) -> SharedApp {
        let (ctx, _) = self.context("account-server");
        crate::account::server::app(&self.section("app:account-server", &[]), &ctx).unwrap()
    }

    fn container_server(&self) -> SharedApp {
        let (ctx, _) = self.context("container-server");
        crate::container::server::app(&self.section("app:container-server", &[]), &ctx).unwrap()
    }
}

fn serve(app: SharedApp) -> ServerHandle {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Server::start(vec![listener], app, ServeOptions::default()).unwrap()
}

/// A ring of one device behind `port`.
fn save_ring(node: &Node, name: &str, port: u16) {
    let mut builder = RingBuilder::new(4, 1.0, 0).unwrap();
    builder.add_dev(device(port)).unwrap();
    builder.rebalance(0).unwrap();
    builder.save_ring(&node.dir.path().join(format!("{name}.ring.gz")), FormatVersion::V1).unwrap();
}

/// A device of a ring, on this machine.
pub fn device(port: u16) -> ring::Device {
    ring::Device {
        id: 0,
        ip: "127.0.0.1".into(),
        port,
        replication_ip: "127.0.0.1".into(),
        replication_port: port,
        device: "sda".into(),
        weight: 1.0,
        zone: 1,
        region: 1,
        meta: String::new(),
        extra: Default::default(),
    }
}

fn request(method: Method, path: &str, timestamp: u64) -> Request {
    Request::new(method, path).with_header("X-Timestamp", format!("{:010}.00000", NOW + timestamp))
}

fn object_row(path: &str, timestamp: u64, size: u64) -> Request {
    request(Method::Put, path, timestamp)
        .with_header("X-Size", size)
        .with_header("X-Content-Type", "text/plain")
        .with_header("X-Etag", "e")
}

async fn text_of(mut response: Response) -> String {
    String::from_utf8(response.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}

/// All files below a directory.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}
