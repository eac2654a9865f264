//! Replicators and the reaper on several nodes, against servers on sockets. That passes do what Swift's do is shown beside real Swift.

use super::*;
use crate::account::broker::AccountBroker;
use crate::broker::{Options, Shared};
use crate::container::broker::ContainerBroker;
use crate::container::rows::ObjectRecord;
use crate::replication::Replicated;
use common::Conf;
use ring::{FormatVersion, RingBuilder};
use service::Daemon;
use service::http::serve::{ServeOptions, Server, ServerHandle};

const PART_POWER: u32 = 1;

/// Nodes with a device `sdN` each, below one folder of rings; each has a container and an account server.
pub(super) struct Cluster {
    dir: TempDir,
    swift_conf: Arc<SwiftConf>,
    clock: Clock,
    servers: Vec<[ServerHandle; 2]>,
    logs: Vec<Lines>,
}

const KINDS: [&str; 2] = ["account", "container"];

impl Cluster {
    /// `primaries` of the nodes have partitions, the others are handoffs.
    pub(super) fn new(nodes: usize, primaries: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let swift_conf = SwiftConf::parse(SWIFT_CONF.as_bytes(), "swift.conf", dir.path()).unwrap();
        let clock = Clock::manual(Timestamp::from_secs_f64(NOW as f64));
        let mut cluster =
            Self { dir, swift_conf: Arc::new(swift_conf), clock, servers: Vec::new(), logs: Vec::new() };
        for node in 0..nodes {
            std::fs::create_dir_all(cluster.device(node)).unwrap();
            let servers = KINDS.map(|kind| cluster.serve(node, kind));
            cluster.servers.push(servers);
        }
        for (kind, name) in KINDS.iter().enumerate() {
            let ports: Vec<u16> =
                cluster.servers.iter().map(|servers| servers[kind].addrs()[0].port()).collect();
            cluster.save_ring(name, &ports, primaries);
        }
        cluster
    }

    fn save_ring(&self, name: &str, ports: &[u16], primaries: usize) {
        let mut builder = RingBuilder::new(PART_POWER, primaries as f64, 0).unwrap();
        for (node, port) in ports.iter().enumerate() {
            let weight = if node < primaries { 1.0 } else { 0.0 };
            let place = ring::Device {
                id: node as u32,
                device: format!("sd{node}"),
                zone: node as u32,
                weight,
                ..device(*port)
            };
            builder.add_dev(place).unwrap();
        }
        builder.rebalance(0).unwrap();
        builder.save_ring(&self.dir.path().join(format!("{name}.ring.gz")), FormatVersion::V1).unwrap();
    }

    fn device(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node{node}/sd{node}"))
    }

    fn context(&mut self, name: &str) -> Context {
        let (logger, lines) = Logger::memory();
        self.logs.push(lines);
        Context::builder(name)
            .clock(self.clock.clone())
            .swift_conf(self.swift_conf.clone())
            .swift_dir(self.dir.path())
            .disk_pools(DiskPools::inline())
            .recon_cache_path(self.dir.path())
            .logger(logger)
            .build()
    }

    fn serve(&mut self, node: usize, kind: &str) -> ServerHandle {
        let ctx = self.context(&format!("{kind}-server"));
        let devices = self.dir.path().join(format!("node{node}"));
        let options =
            [("devices", devices.to_str().unwrap()), ("mount_check", "false"), ("fallocate_reserve", "0")];
        let section = Section::from_pairs(&format!("app:{kind}-server"), options);
        let app = match kind {
            "account" => crate::account::server::app(&section, &ctx),
            _ => crate::container::server::app(&section, &ctx),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Server::start(vec![listener], app.unwrap(), ServeOptions::default()).unwrap()
    }

    /// A pass of a node's replicator.
    pub(super) async fn pass(&mut self, node: usize, kind: usize) {
        self.daemon(node, kind).run_once().await;
    }

    /// A node's replicator.
    pub(super) fn daemon(&mut self, node: usize, kind: usize) -> Arc<dyn Daemon> {
        let port = self.servers[node][kind].addrs()[0].port();
        let devices = self.dir.path().join(format!("node{node}"));
        let conf = format!(
            "[{}-replicator]\nsync_method = usync\ndevices = {}\nmount_check = false\nbind_ip = 127.0.0.1\nbind_port = {port}\n\
             per_diff = 3\ndatabases_per_second = 0\n",
            KINDS[kind],
            devices.display()
        );
        let conf = Conf::parse(&conf, "server.conf").unwrap();
        let ctx = self.context(&format!("{}-replicator", KINDS[kind]));
        match kind {
            0 => crate::account::replicator::build(&conf, &ctx),
            _ => crate::container::replicator::build(&conf, &ctx),
        }
        .unwrap()
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn shared(&self) -> Arc<Shared> {
        Shared::new(self.clock.clone(), |line| panic!("{line}"))
    }

    fn db_file(&self, node: usize, names: [Option<&str>; 2]) -> PathBuf {
        let hash = self.swift_conf.hash.hash_path(names[0].unwrap(), names[1], None);
        let kind = if names[1].is_some() { "containers" } else { "accounts" };
        let part = hash.partition(PART_POWER).to_string();
        crate::server::db_path(&self.device(node), kind, &part, &hash)
    }

    pub(super) fn container(&self, node: usize) -> ContainerBroker {
        ContainerBroker::new(&self.shared(), &self.db_file(node, [Some("a"), Some("c")]), Options::default())
    }

    pub(super) fn errors(&self) -> Vec<String> {
        self.logs.iter().flat_map(|lines| lines.at_least(service::logs::Level::Warning)).collect()
    }
}

/// What a container holds, without what is its own affair.
pub(super) fn contents(broker: &mut ContainerBroker) -> (Vec<String>, i64, i64, String, String) {
    let mut rows: Vec<String> = Vec::new();
    let items = broker.db().items_since(-1, 10_000).unwrap();
    let parsed: Vec<serde_json::Value> = serde_json::from_slice(&items.json).unwrap();
    for mut row in parsed {
        row.as_object_mut().unwrap().remove("ROWID");
        rows.push(row.to_string());
    }
    rows.sort();
    let check: String =
        broker.db().read(|sqlite| sqlite.query_row("PRAGMA integrity_check", [], |row| row.get(0))).unwrap();
    assert_eq!(check, "ok");
    let info = broker.info().unwrap();
    (rows, info.object_count, info.bytes_used, info.hash, info.put_timestamp)
}

pub(super) fn record(name: &str, at: u64, deleted: bool) -> ObjectRecord {
    let created_at = Timestamp::from_secs_f64((NOW - 1000 + at) as f64).internal();
    if deleted {
        return ObjectRecord::tombstone(name.into(), created_at, 0);
    }
    ObjectRecord {
        name: name.into(),
        created_at,
        size: at as i64,
        content_type: format!("t{at}"),
        etag: format!("e{at}"),
        ..ObjectRecord::default()
    }
}

#[tokio::test]
async fn without_rsync_missing_databases_are_made_by_requests() {
    let mut cluster = Cluster::new(3, 3);
    let mut broker = cluster.container(0);
    broker.initialize("a", "c", &Timestamp::from_secs_f64(NOW as f64 - 50.0).internal(), 1).unwrap();
    broker.merge_items((0..10).map(|n| record(&format!("o{n}"), n, n == 3)).collect()).unwrap();
    let before = contents(&mut broker);
    drop(broker);
    let mut account =
        AccountBroker::new(&cluster.shared(), cluster.db_file(0, [Some("a"), None]), Options::default());
    account.initialize("a", &Timestamp::from_secs_f64(NOW as f64 - 50.0).internal()).unwrap();
    account.db.delete_db(&Timestamp::from_secs_f64(NOW as f64 - 20.0).internal()).unwrap();
    drop(account);
    for kind in [0, 1] {
        cluster.pass(0, kind).await;
    }
    for node in [1, 2] {
        let mut broker = cluster.container(node);
        assert_eq!(contents(&mut broker), before, "node {node}");
        assert_eq!(broker.storage_policy_index().unwrap(), 1);
        let file = cluster.db_file(node, [Some("a"), None]);
        let mut account = AccountBroker::new(&cluster.shared(), file, Options::default());
        assert_eq!(account.info().unwrap().status, "DELETED");
    }
    assert_eq!(cluster.errors(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_pending_on_a_handoff_travels_before_it_is_removed() {
    let mut cluster = Cluster::new(4, 3);
    for node in [0, 1, 2, 3] {
        let mut broker = cluster.container(node);
        broker.initialize("a", "c", "1700000000.00000", 0).unwrap();
    }
    cluster.container(3).put_object(record("first", 1, false)).unwrap();
    cluster.pass(3, 1).await;
    assert!(!cluster.db_file(3, [Some("a"), Some("c")]).exists());
    assert_eq!(contents(&mut cluster.container(0)).1, 1);
    assert_eq!(cluster.errors(), Vec::<String>::new());
}

#[tokio::test]
async fn the_reaper_deletes_what_a_deleted_account_has() {
    let mut cluster = Cluster::new(1, 1);
    // An object server that says yes, and tells no container of it.
    let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let heard = asked.clone();
    let objects = service::http::app_fn(move |req: Request| {
        let header = |name: &str| req.headers.get_str(name).unwrap_or_default().to_owned();
        heard.lock().push(format!(
            "{} {} {} {}",
            req.method,
            req.path,
            header("X-Container-Device"),
            header("X-Backend-Storage-Policy-Index")
        ));
        async { Response::new(204) }
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let objects = Server::start(vec![listener], objects, ServeOptions::default()).unwrap();
    cluster.save_ring("object-1", &[objects.addrs()[0].port()], 1);
    let port = cluster.servers[0][0].addrs()[0].port();
    let file = cluster.db_file(0, [Some("a"), None]);
    let account = || AccountBroker::new(&cluster.shared(), file.clone(), Options::default());
    let at = |ago: f64| Timestamp::from_secs_f64(NOW as f64 - ago).internal();
    account().initialize("a", &at(90.0)).unwrap();
    for name in ["c", "empty"] {
        let db_file = cluster.db_file(0, [Some("a"), Some(name)]);
        let mut broker = ContainerBroker::new(&cluster.shared(), &db_file, Options::default());
        broker.initialize("a", name, &at(80.0), 1).unwrap();
        if name == "c" {
            broker.put_object(ObjectRecord { storage_policy_index: 1, ..record("o", 1, false) }).unwrap();
        }
        let told = crate::account::broker::Count::Number(0);
        let row = crate::account::broker::ContainerRecord::new(
            name.into(),
            at(80.0),
            "0".into(),
            told.clone(),
            told.clone(),
            told,
        );
        account().put_container(row).unwrap();
    }
    let conf = format!(
        "[account-reaper]\ndevices = {}\nmount_check = false\nbind_ip = 127.0.0.1\nbind_port = {port}\n",
        cluster.dir.path().join("node0").display()
    );
    let ctx = cluster.context("account-reaper");
    let conf = Conf::parse(&conf, "account-server.conf").unwrap();
    let reaper = crate::account::reaper::build(&conf, &ctx).unwrap();
    reaper.run_once().await;
    assert_eq!(*asked.lock(), Vec::<String>::new(), "the account is not deleted yet");
    AccountBroker::new(&cluster.shared(), file.clone(), Options::default()).db.delete_db(&at(20.0)).unwrap();
    reaper.run_once().await;
    let part = cluster.swift_conf.hash.hash_path("a", Some("c"), Some("o")).partition(PART_POWER);
    assert_eq!(*asked.lock(), [format!("DELETE /sd0/{part}/a/c/o sd0 1")]);
    let log = cluster.logs.last().unwrap();
    let told = ", 1 containers deleted, 1 objects deleted, 1 containers remaining, return codes: 5 2xxs, 1 4xxs, elapsed: ";
    assert!(log.contains(told), "{:?}", log.all());
    // The container that is gone has told the account.
    let mut account = AccountBroker::new(&cluster.shared(), file, Options::default());
    assert_eq!(account.info().unwrap().container_count, 1);
    objects.stop(std::time::Duration::ZERO).await;
}
