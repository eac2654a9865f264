//! Stops an object server at every step that it takes, and looks at the disk that it leaves.
//!
//! ```text
//! kills FOLDER [SCENARIO]        all of it; every disk is left in FOLDER/SCENARIO/..., with expect.json for Python to look at
//! kills FOLDER act SCENARIO      one child: does the scenario on the disk in FOLDER
//! ```
//!
//! A child does a scenario on a copy of the same disk, first undisturbed and with a journal (`common::fs`) of the fail points
//! that it passes, so that none can be forgotten; then once for each of them, killed there, and once more, where that step
//! fails with EIO. Of each killed child the disks are made that a loss of power may leave: what was synced, and of the rest
//! nothing, or any part. A name and the end of the one that it was moved from are one part, as in the journal of a file system.
//!
//! On each of all those disks: every object is what it was before or what it was to be, whole; what was acknowledged is
//! there; hashes.pkl tells what a hash of the files does; nothing lies about that Swift would not leave; a later PUT works.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::config::{Conf, Paste, SwiftConf};
use common::digest::{hex, md5};
use common::hash::HashConf;
use common::{Clock, ObjHash, Timestamp, fs};
use obj::diskfile::{
    DiskFile, DiskFileConf, DiskFileError, DiskFileManager, DiskFileRouter, Metadata, ReaderOptions,
};
use ring::{Device, FormatVersion, RingBuilder};
use serde_json::{Value, json};
use service::context::Context;
use service::daemon::DaemonArgs;
use service::http::serve::{ServeOptions, Server};
use service::http::{Method, Request, SharedApp};
use service::logs::{Level, Logger};
use service::pipeline::{Registry, load_app};
use service::statsd::Statsd;

const PART_POWER: u32 = 2;
/// Of the partition that all objects are in.
const PARTITION: u32 = 1;
const SUFFIX: &str = "endcap";
/// An object's first version, and what is done to it.
const BEFORE: f64 = 1_700_000_000.0;
const NOW: f64 = 1_700_000_100.0;
/// Later than anything of a scenario.
const LATER: f64 = 1_700_001_000.0;
/// Tombstones of 1970 go, those of the scenarios stay.
const RECLAIM_AGE: u64 = 1_500_000_000;
/// Disks that a loss of power leaves, the first of them without anything unsynced.
const POWER_CUTS: u64 = 3;

struct Scenario {
    name: &'static str,
    /// Fail points that are armed in all of its children.
    armed: &'static str,
    /// Whether what was acknowledged survives a loss of power; what is only tidied up need not.
    durable: bool,
}

const SCENARIOS: [Scenario; 14] = [
    Scenario { name: "put", armed: "", durable: true },
    Scenario { name: "put_new", armed: "", durable: true },
    Scenario { name: "put_again", armed: "", durable: true },
    Scenario { name: "put_named", armed: "fs.open_tmpfile=err:ENOTSUP", durable: true },
    Scenario { name: "put_large", armed: "", durable: true },
    Scenario { name: "put_relinked", armed: "", durable: true },
    Scenario { name: "post", armed: "", durable: true },
    Scenario { name: "delete", armed: "", durable: true },
    Scenario { name: "ssync", armed: "", durable: true },
    Scenario { name: "put_fragment", armed: "", durable: true },
    Scenario { name: "purge", armed: "", durable: false },
    Scenario { name: "revert", armed: "", durable: false },
    Scenario { name: "get_hashes", armed: "", durable: false },
    Scenario { name: "quarantine", armed: "", durable: false },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [folder, "act", name] => {
            let node = Node::new(folder.as_ref());
            fs::fail::arm_from_env().unwrap();
            println!("{}", if node.act(name) { "acknowledged" } else { "refused" });
        }
        [folder] => SCENARIOS.iter().for_each(|scenario| run(scenario, folder.as_ref())),
        [folder, name] => {
            let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
            run(scenario.expect("no such scenario"), folder.as_ref());
        }
        _ => panic!("FOLDER [SCENARIO]"),
    }
}

/// The n-th name of an object in the partition.
fn object(n: usize) -> String {
    (0..)
        .map(|n| format!("o{n}"))
        .filter(|name| hash(name).partition(PART_POWER) == PARTITION)
        .nth(n)
        .unwrap()
}

fn hash(name: &str) -> ObjHash {
    let conf = HashConf { prefix: Vec::new(), suffix: SUFFIX.into() };
    conf.hash_path("a", Some("c"), Some(name))
}

/// The name of a file where a hash dir should be.
fn stray() -> String {
    "0".repeat(32)
}

fn metadata(at: f64, body: &[u8]) -> Metadata {
    Metadata::from_iter([
        ("X-Timestamp", internal(at)),
        ("Content-Length", body.len().to_string()),
        ("ETag", hex(&md5(body))),
    ])
}

/// Policy 1 is erasure coded.
fn swift_conf_text() -> String {
    format!(
        "[swift-hash]\nswift_hash_path_suffix = {SUFFIX}\n[storage-policy:0]\nname = gold\ndefault = yes\n\
         [storage-policy:1]\nname = ec\npolicy_type = erasure_coding\nec_type = isa_l_rs_cauchy\n\
         ec_num_data_fragments = 4\nec_num_parity_fragments = 2\n"
    )
}

fn swift_conf() -> SwiftConf {
    SwiftConf::parse(swift_conf_text().as_bytes(), "swift.conf", "/".as_ref()).unwrap()
}

fn internal(secs: f64) -> String {
    Timestamp::from_secs_f64(secs).internal()
}

/// An object server with devices sda1 and sda2 in its folder.
struct Node {
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
    app: SharedApp,
    listener: TcpListener,
}

impl Node {
    fn new(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        save_ring(folder, listener.local_addr().unwrap().port());
        let mut registry = Registry::new();
        obj::register(&mut registry);
        let app = load_app(
            &Paste::parse(&conf(folder), "object-server.conf", "main").unwrap(),
            &registry,
            &context(folder),
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Node { folder: folder.to_owned(), runtime, app: app.unwrap(), listener }
    }

    fn call(&self, req: Request) -> (u16, Vec<u8>) {
        self.runtime.block_on(async {
            let mut response = self.app.call(req).await;
            let body = response.body.collect(1 << 20).await.unwrap_or_default();
            (response.status.0, body.to_vec())
        })
    }

    fn send(&self, method: Method, n: usize, at: f64, headers: &[(&str, &str)], body: &str) -> u16 {
        self.call(request(method, "sda1", &object(n), at, headers, body)).0
    }

    fn get_hashes(&self) -> bool {
        let path = format!("/sda1/{PARTITION}");
        self.call(Request::new(Method::Replicate, path)).0 == 200
    }

    /// What is on the disk before.
    fn prepare(&self, scenario: &str) {
        for n in 0..4 {
            assert_eq!(self.send(Method::Put, n, BEFORE, &[], &format!("old {n}")), 201);
        }
        if scenario != "revert" {
            assert_eq!(self.send(Method::Post, 2, BEFORE + 1.0, &[], ""), 202);
        } else {
            assert_eq!(self.send(Method::Delete, 3, BEFORE + 1.0, &[], ""), 204);
            // The other device has an older state of some.
            for n in 1..3 {
                let put = request(Method::Put, "sda2", &object(n), BEFORE - 5.0, &[], "older");
                assert_eq!(self.call(put).0, 201);
            }
        }
        if scenario == "get_hashes" {
            assert_eq!(self.send(Method::Delete, 4, BEFORE, &[], ""), 404);
        }
        if matches!(scenario, "put_fragment" | "purge") {
            let disk = Disk::new(&self.folder);
            (0..2).for_each(|n| put_fragment(&disk, n, BEFORE).unwrap());
            disk.check_hashes();
        }
        assert!(self.get_hashes());
        if scenario == "post" {
            // Whoever made the hashes, as rsync does, has not made this.
            let invalid = self.folder.join(format!("sda1/objects/{PARTITION}/hashes.invalid"));
            fs::remove_file(&invalid).unwrap();
        }
        if scenario == "get_hashes" {
            let tombstone = |at| self.hash_dir(4).join(format!("{}.ts", internal(at)));
            fs::rename(&tombstone(BEFORE), &tombstone(1.0)).unwrap();
            // A version that should have gone with the next one, a file where a hash dir should be, changes since.
            let version = |at| self.hash_dir(0).join(format!("{}.data", internal(at)));
            std::fs::copy(version(BEFORE), version(BEFORE - 1.0)).unwrap();
            std::fs::write(self.hash_dir(0).with_file_name(stray()), "stray").unwrap();
            let partition = self.folder.join(format!("sda1/objects/{PARTITION}"));
            std::fs::create_dir(partition.join("fff")).unwrap();
            let changed = [0, 4].map(|n| format!("{}\n", hash(&object(n)).suffix())).concat();
            std::fs::write(partition.join("hashes.invalid"), changed + "fff\n").unwrap();
        }
        if scenario == "quarantine" {
            std::fs::write(self.hash_dir(2).join(format!("{}.data", internal(BEFORE))), "cut off").unwrap();
        }
    }

    fn hash_dir(&self, n: usize) -> PathBuf {
        let hash = hash(&object(n));
        self.folder.join(format!("sda1/objects/{PARTITION}/{}/{hash}", hash.suffix()))
    }

    /// What is done; whether it was acknowledged.
    fn act(&self, scenario: &str) -> bool {
        let put =
            |n, at, headers: &[(&str, &str)], body: &str| self.send(Method::Put, n, at, headers, body) == 201;
        match scenario {
            // The container servers cannot be told: async_pending.
            "put" | "put_named" => put(0, NOW, &CONTAINER, "new"),
            "put_new" => put(5, NOW, &CONTAINER, "new"),
            // Of the same time: the server itself refuses that, unless both come at once.
            "put_again" => {
                let diskfile = Disk::new(&self.folder).diskfile("sda1", PARTITION, &object(0));
                diskfile.put_small(b"again", metadata(BEFORE, b"again")).is_ok()
            }
            "put_large" => put(0, NOW, &[], &"large".repeat(30_000)),
            "put_relinked" => {
                let power = (PART_POWER + 1).to_string();
                put(0, NOW, &[("X-Backend-Next-Part-Power", &power)], "new")
            }
            "post" => self.send(Method::Post, 0, NOW, &CONTAINER, "") == 202,
            "delete" => self.send(Method::Delete, 2, NOW, &CONTAINER, "") == 204,
            "put_fragment" => put_fragment(&Disk::new(&self.folder), 0, NOW).is_ok(),
            "purge" => {
                let at = Timestamp::from_secs_f64(BEFORE);
                Disk::new(&self.folder).fragment(0).purge(at, Some(3), Duration::ZERO, None).is_ok()
            }
            "ssync" => self.ssync(),
            "revert" => self.revert(),
            "get_hashes" => self.get_hashes(),
            "quarantine" => self.call(request(Method::Get, "sda1", &object(2), NOW, &[], "")).0 == 404,
            _ => panic!("{scenario}"),
        }
    }

    /// A session with each kind of subrequest.
    fn ssync(&self) -> bool {
        let head = |method: &str, n: usize, at: f64, headers: &str| {
            format!("{method} /a/c/{}\r\nX-Timestamp: {}\r\n{headers}\r\n", object(n), internal(at))
        };
        let put = |n, at, body: &str| {
            let length = format!("Content-Length: {}\r\nContent-Type: x/y\r\n", body.len());
            head("PUT", n, at, &length) + body
        };
        let subrequests = [
            put(0, NOW, "new"),
            put(5, NOW, "new"),
            head("POST", 1, NOW, "X-Object-Meta-Color: blue\r\n"),
            put(6, NOW, &"large".repeat(30_000)),
            head("DELETE", 2, NOW, ""),
        ];
        let session = format!(
            ":MISSING_CHECK: START\r\n{} {}\r\n:MISSING_CHECK: END\r\n:UPDATES: START\r\n{}:UPDATES: END\r\n",
            hash(&object(5)),
            internal(NOW),
            subrequests.concat()
        );
        let request = Request::new(Method::Ssync, format!("/sda1/{PARTITION}"));
        let (_, answer) = self.call(request.with_body(session));
        answer.ends_with(b":UPDATES: START\r\n:UPDATES: END\r\n")
    }

    /// A pass of the replicator, in which the partition is a handoff on sda1 and goes to sda2.
    fn revert(&self) -> bool {
        let port = self.listener.local_addr().unwrap().port();
        self.runtime.block_on(async {
            let listeners = vec![self.listener.try_clone().unwrap()];
            let server = Server::start(listeners, self.app.clone(), ServeOptions::default()).unwrap();
            let conf = conf(&self.folder).replace("bind_port = 1\n", &format!("bind_port = {port}\n"));
            let conf = Conf::parse(&conf, "object-server.conf").unwrap();
            obj::replicator::build(&conf, &context(&self.folder)).unwrap().run_once().await;
            server.stop(Duration::ZERO).await;
        });
        !self.folder.join(format!("sda1/objects/{PARTITION}")).exists()
    }
}

/// Places a fragment and commits it.
fn put_fragment(disk: &Disk, n: usize, at: f64) -> Result<(), DiskFileError> {
    disk.fragment(n).place_small(b"", metadata(at, b""))?.0.commit()
}

/// Updates go to a host that there is not.
const CONTAINER: [(&str, &str); 4] = [
    ("X-Container-Host", "nowhere"),
    ("X-Container-Device", "sda1"),
    ("X-Container-Partition", "1"),
    ("X-Object-Meta-Color", "blue"),
];

fn request(
    method: Method,
    device: &str,
    name: &str,
    at: f64,
    headers: &[(&str, &str)],
    body: &str,
) -> Request {
    let partition = hash(name).partition(PART_POWER);
    let mut request = Request::new(method, format!("/{device}/{partition}/a/c/{name}"))
        .with_header("X-Timestamp", internal(at))
        .with_header("Content-Type", "text/plain")
        .with_header("Content-Length", body.len());
    for (name, value) in headers {
        request = request.with_header(name, *value);
    }
    request.with_body(body.to_owned())
}

fn conf(folder: &Path) -> String {
    format!(
        "[DEFAULT]\ndevices = {}\nmount_check = false\nfallocate_reserve = 0\nbind_ip = 127.0.0.1\nbind_port = 1\n\
         reclaim_age = {RECLAIM_AGE}\n[pipeline:main]\npipeline = object-server\n[app:object-server]\n\
         use = egg:swift#object\nreplication_concurrency_per_device = 2\n[object-replicator]\nsync_method = ssync\n\
         replication_concurrency_per_device = 2\n",
        folder.display()
    )
}

fn context(folder: &Path) -> Context {
    std::fs::write(folder.join("swift.conf"), swift_conf_text()).unwrap();
    Context::builder("object-server")
        .logger(Logger::memory().0)
        .swift_conf(SwiftConf::load(folder).unwrap())
        .args(DaemonArgs::default())
        .recon_cache_path(folder)
        .build()
}

/// sda2 has every partition, sda1 none.
fn save_ring(folder: &Path, port: u16) {
    let device = |id: u32| Device {
        id,
        region: 1,
        zone: id,
        ip: "127.0.0.1".into(),
        port,
        device: format!("sda{id}"),
        weight: 1.0,
        replication_ip: "127.0.0.1".into(),
        replication_port: port,
        meta: String::new(),
        extra: Default::default(),
    };
    let mut builder = RingBuilder::new(PART_POWER, 1.0, 1).unwrap();
    builder.add_dev(device(2)).unwrap();
    builder.rebalance(1).unwrap();
    let mut data = builder.to_ring_data().unwrap();
    data.devs[1] = Some(Arc::new(Device { weight: 0.0, ..device(1) }));
    data.save(&folder.join("object.ring.gz"), FormatVersion::V1).unwrap();
}

/// What a client and a daemon find on a disk: a name -> a state.
type Found = BTreeMap<String, Value>;

/// A disk at rest, as a server that starts anew finds it.
struct Disk {
    folder: PathBuf,
    managers: Vec<Arc<DiskFileManager>>,
    lines: service::logs::Lines,
}

impl Disk {
    fn new(folder: &Path) -> Self {
        let conf = DiskFileConf {
            devices: folder.into(),
            mount_check: false,
            reclaim_age: Duration::from_secs(RECLAIM_AGE),
            ..DiskFileConf::default()
        };
        let (logger, lines) = Logger::memory();
        let router =
            DiskFileRouter::new(&conf, &swift_conf(), &Clock::system(), &logger, &Statsd::disabled());
        Disk { folder: folder.to_owned(), managers: router.iter().cloned().collect(), lines }
    }

    fn manager(&self) -> &Arc<DiskFileManager> {
        &self.managers[0]
    }

    fn diskfile(&self, device: &str, partition: u32, name: &str) -> DiskFile {
        self.manager().diskfile(device, partition, "a", "c", name).unwrap()
    }

    /// Fragment 3 of an object of the other policy.
    fn fragment(&self, n: usize) -> DiskFile {
        let diskfile = self.managers[1].diskfile("sda1", PARTITION, "a", "c", &object(n)).unwrap();
        diskfile.frag_index(Some(3))
    }

    fn find(&self, scenario: &str) -> Found {
        let mut found = Found::new();
        let (objects, quarantined) =
            (self.folder.join("sda1/objects"), self.folder.join("sda1/quarantined/objects"));
        let in_partition = |n| {
            let hash: ObjHash = hash(&object(n));
            objects.join(format!("{PARTITION}/{}/{hash}", hash.suffix()))
        };
        // Before anything is opened: that may quarantine.
        if scenario == "quarantine" {
            let mut files = names(&in_partition(2));
            files.extend(names(&quarantined.join(hash(&object(2)).to_string())));
            found.insert("files of the damaged".into(), json!(files));
        }
        if scenario == "get_hashes" {
            let places = [in_partition(0).with_file_name(stray()), quarantined.join(stray())];
            found.insert("strays".into(), json!(places.iter().filter(|path| path.exists()).count()));
        }
        if matches!(scenario, "put_fragment" | "purge") {
            for n in 0..2 {
                let state = match self.fragment(n).open(None) {
                    Ok(opened) => json!(opened.data_timestamp().internal()),
                    Err(DiskFileError::NotExist) => Value::Null,
                    Err(err) => panic!("fragment {n}: {err}"),
                };
                found.insert(format!("fragment {n}"), state);
            }
        }
        for device in ["sda1", "sda2"].into_iter().filter(|device| self.folder.join(device).exists()) {
            for n in 0..8 {
                let name = object(n);
                for power in [PART_POWER, PART_POWER + 1] {
                    let partition = hash(&name).partition(power);
                    found.insert(
                        format!("{device}/{partition}/a/c/{name}"),
                        self.read(device, partition, &name),
                    );
                }
            }
        }
        let pending = self.folder.join("sda1/async_pending");
        for suffix in names(&pending) {
            for file in names(&pending.join(&suffix)) {
                let update = std::fs::read(pending.join(&suffix).join(&file)).unwrap();
                let update = common::pickle::loads(&update).unwrap_or_else(|err| panic!("{file}: {err}"));
                let item = |key: &str| update.get(key).and_then(|value| value.as_str()).unwrap().to_owned();
                found.insert(format!("update {file}"), json!([item("op"), item("container"), item("obj")]));
            }
        }
        found
    }

    fn read(&self, device: &str, partition: u32, name: &str) -> Value {
        let opened = match self.diskfile(device, partition, name).open(None) {
            Ok(opened) => opened,
            Err(DiskFileError::NotExist) => return Value::Null,
            Err(DiskFileError::Deleted { timestamp, .. }) => {
                return json!({ "deleted": timestamp.internal() });
            }
            Err(DiskFileError::Quarantined(_)) => return json!("quarantined"),
            Err(err) => panic!("{name}: {err}"),
        };
        let mut metadata: Vec<_> =
            opened.metadata().iter().map(|(name, value)| (hex(name), hex(value))).collect();
        metadata.sort();
        let etag = opened.metadata().get_str("ETag").unwrap().to_owned();
        let mut reader = opened.reader(ReaderOptions::default());
        let mut data = Vec::new();
        while (data.len() as u64) < reader.content_length() {
            data.extend(reader.read_chunk(data.len() as u64, u64::MAX).unwrap());
        }
        assert_eq!(reader.close(), None, "{name}");
        assert_eq!(hex(&md5(&data)), etag, "{name}");
        json!({ "metadata": metadata })
    }

    /// Suffix hashes of every partition, in order: those that are cached are those of the files.
    fn check_hashes(&self) {
        for (device, objects, manager) in self.places() {
            for partition in names(&objects) {
                let number = partition.parse().unwrap();
                let hashes = || {
                    let hashes = manager.get_hashes(device, number, &[], false).unwrap().unwrap();
                    let hashes = hashes.iter().map(|(suffix, hash)| (suffix, hash.cloned()));
                    hashes.collect::<BTreeMap<_, _>>()
                };
                let cached = hashes();
                for file in ["hashes.pkl", "hashes.invalid"] {
                    fs::remove_file(&objects.join(&partition).join(file)).unwrap();
                }
                assert_eq!(
                    cached,
                    hashes(),
                    "stale hashes of partition {partition} of {}",
                    objects.display()
                );
            }
        }
    }

    /// The datadirs of each device and policy.
    fn places(&self) -> impl Iterator<Item = (&'static str, PathBuf, &Arc<DiskFileManager>)> {
        let policies = move |device: &'static str| {
            let managers = ["objects", "objects-1"].into_iter().zip(&self.managers);
            managers.map(move |(name, manager)| (device, self.folder.join(device).join(name), manager))
        };
        ["sda1", "sda2"].into_iter().flat_map(policies)
    }

    /// Nothing lies where it would be in the way.
    fn check_names(&self) {
        for (_, objects, _) in self.places() {
            for partition in names(&objects) {
                for name in names(&objects.join(&partition)) {
                    let known = name.len() == 3
                        || ["hashes.pkl", "hashes.invalid"].contains(&&*name)
                        || name.starts_with(".lock")
                        // Swift's have another name; the replicator removes both.
                        || (name.starts_with(".hashes.pkl.") && name.ends_with(".tmp"));
                    assert!(known, "{name} in a partition");
                    for hash_dir in names(&objects.join(&partition).join(&name)) {
                        assert_eq!(hash_dir.len(), 32, "{hash_dir} in a suffix");
                        for file in names(&objects.join(&partition).join(&name).join(&hash_dir)) {
                            let known = [".data", ".meta", ".ts"].iter().any(|ext| file.ends_with(ext));
                            let of_rsync =
                                file.starts_with('.') && file.rsplit('.').next().unwrap().len() == 6;
                            assert!(known || of_rsync, "{file} in a hash dir");
                        }
                    }
                }
            }
        }
    }

    fn check_later_puts(&self) {
        for n in 0..8 {
            let diskfile = self.diskfile("sda1", PARTITION, &object(n));
            diskfile.put_small(b"later", metadata(LATER, b"later")).unwrap();
            let left: Vec<_> =
                names(diskfile.datadir()).into_iter().filter(|name| !name.starts_with('.')).collect();
            assert_eq!(left, [format!("{}.data", internal(LATER))]);
            assert_eq!(diskfile.open(None).unwrap().read_small().unwrap().data, b"later");
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a disk may hold.
struct Expected {
    scenario: &'static str,
    old: Found,
    new: Found,
}

impl Expected {
    /// Looks at one disk, of which a copy is left for Python to look at.
    fn check(&self, folder: &Path, acknowledged: bool) {
        let original = folder.with_extension("python");
        Tree::of(folder).write(&original);
        let disk = Disk::new(folder);
        disk.check_names();
        disk.check_hashes();
        let found = disk.find(self.scenario);
        let keys: BTreeSet<&String> =
            [&self.old, &self.new, &found].into_iter().flat_map(|f| f.keys()).collect();
        let mut expect = serde_json::Map::new();
        for key in keys {
            let (old, new) = (state(&self.old, key), state(&self.new, key));
            // A link into the next partition that fails is left to the relinker.
            let elsewhere = key.starts_with("sda1/") && !key.starts_with(&format!("sda1/{PARTITION}/"));
            let allowed = if acknowledged && !elsewhere { vec![new] } else { vec![old, new] };
            assert!(allowed.contains(&state(&found, key)), "{key}: {:#} of {allowed:#?}", state(&found, key));
            expect.insert(key.clone(), json!(allowed));
        }
        if self.scenario == "revert" {
            for n in 0..4 {
                let on = |device: &str| state(&found, &format!("{device}/{PARTITION}/a/c/{}", object(n)));
                assert!(!(on("sda1").is_null() && on("sda2").is_null()), "{} is nowhere", object(n));
            }
        }
        disk.check_hashes();
        disk.check_later_puts();
        disk.check_hashes();
        if !matches!(self.scenario, "quarantine" | "get_hashes") {
            assert_eq!(disk.lines.at_least(Level::Warning), Vec::<String>::new());
        }
        std::fs::write(original.join("expect.json"), Value::from(expect).to_string()).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}

fn state(found: &Found, key: &str) -> Value {
    found.get(key).cloned().unwrap_or_default()
}

/// How a child is to end.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Undisturbed,
    Killed,
    Failing,
}

fn run(scenario: &Scenario, folder: &Path) {
    let Scenario { name, armed, durable } = *scenario;
    let folder = folder.join(name);
    let template = folder.join("before");
    std::fs::create_dir_all(template.join("sda1")).unwrap();
    if name == "revert" {
        std::fs::create_dir(template.join("sda2")).unwrap();
    }
    Node::new(&template).prepare(name);
    // Nobody may be given the inodes of what was there before: they tell what is what.
    let before = Tree::of(&template);

    let undisturbed = folder.join("0");
    let (old, copy) = (folder.join("old"), folder.join("new"));
    before.write(&old);
    let child = Child::run(name, &before, &undisturbed, armed, End::Undisturbed);
    assert!(child.acknowledged, "{name} is not acknowledged undisturbed");
    child.after.write(&copy);
    let expected =
        Expected { scenario: name, old: Disk::new(&old).find(name), new: Disk::new(&copy).find(name) };
    assert_ne!(expected.old, expected.new, "{name} changes nothing");
    let mut disks = 0;
    let mut check = |child: &Child, end: End, what: &str| {
        let folder = &child.folder;
        let acknowledged = child.acknowledged;
        let check = |folder: &Path, acknowledged: bool, what: &str| {
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                expected.check(folder, acknowledged);
            }));
            if checked.is_err() {
                panic!("{name} {what}: see {}", folder.display());
            }
        };
        let cuts = if end == End::Failing { 0..0 } else { 0..POWER_CUTS };
        for seed in cuts {
            let cut = PathBuf::from(format!("{}-cut{seed}", folder.display()));
            child.power_cut(seed).write(&cut);
            check(&cut, acknowledged && durable, &format!("{what}, then a loss of power ({seed})"));
            disks += 1;
        }
        check(folder, acknowledged, what);
        disks += 1;
    };
    check(&child, End::Undisturbed, "undisturbed");

    let mut passes: HashMap<String, usize> = HashMap::new();
    let points = child.points;
    assert!(!points.is_empty(), "{name} passes no fail point");
    for (number, point) in points.iter().enumerate() {
        let pass = passes.entry(point.clone()).or_default();
        *pass += 1;
        for (end, action) in [(End::Killed, "kill"), (End::Failing, "err:EIO")] {
            let what = format!("{point}={action}@{pass}");
            // What cannot be read is quarantined, as is right; what cannot be removed is not worth a word to Swift either.
            let harmless = ["fs.read_metadata", "fs.remove_dir", "cleanup.unlink", "cleanup.rmdir"];
            let harmless = harmless.contains(&point.as_str()) || armed.starts_with(point.as_str());
            if end == End::Failing && harmless {
                continue;
            }
            let folder = folder.join(format!("{}-{end:?}", number + 1));
            let child = Child::run(name, &before, &folder, &format!("{armed},{what}"), end);
            check(&child, end, &what);
        }
    }
    println!("{name}: {} fail points, {disks} disks", points.len());
}

/// A child after its end.
struct Child {
    folder: PathBuf,
    points: Vec<String>,
    acknowledged: bool,
    before: Tree,
    after: Tree,
    /// The last state of each inode that is on disk for certain.
    synced: HashMap<u64, Inode>,
}

impl Child {
    fn run(scenario: &str, template: &Tree, folder: &Path, armed: &str, end: End) -> Self {
        template.write(folder);
        let before = Tree::of(folder);
        let journal = folder.with_extension("journal");
        std::fs::create_dir(&journal).unwrap();
        let ended = Command::new(std::env::current_exe().unwrap())
            .args([folder.as_os_str(), "act".as_ref(), scenario.as_ref()])
            .env("MARTLET_FAIL_POINT", armed)
            .env("MARTLET_FAIL_JOURNAL", &journal)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        let as_told = match end {
            End::Killed => signal == Some(9),
            End::Undisturbed | End::Failing => ended.status.success(),
        };
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(as_told, "{scenario} with {armed}: {}\n{stderr}", ended.status);
        let points = std::fs::read_to_string(journal.join("points")).unwrap_or_default();
        let synced = names(&journal).into_iter().filter_map(|name| {
            let mut parts = name.split('.').skip(1);
            let inode = parts.next()?.parse().ok()?;
            let path = journal.join(&name);
            match parts.next()? {
                "file" => Some((inode, Inode::File(Contents::of(&File::open(path).unwrap())))),
                "dir" => {
                    Some((inode, Inode::Dir(Inode::parse_entries(&std::fs::read_to_string(path).unwrap()))))
                }
                _ => None,
            }
        });
        Child {
            folder: folder.to_owned(),
            points: points.lines().map(str::to_owned).collect(),
            acknowledged: ended.stdout == b"acknowledged\n",
            after: Tree::of(folder),
            before,
            synced: synced.collect(),
        }
    }

    /// The state of an inode that no loss of power can take away.
    fn durable(&self, entry: Entry) -> Inode {
        let known = self.synced.get(&entry.inode).or_else(|| self.before.inodes.get(&entry.inode));
        known.cloned().unwrap_or_else(|| match entry.is_dir {
            true => Inode::Dir(Entries::new()),
            false => Inode::File(Contents::default()),
        })
    }

    /// The disk after a loss of power: without anything unsynced for seed 0, else with a part of it.
    fn power_cut(&self, seed: u64) -> Tree {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut happens = || {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            seed > 0 && random & 64 != 0
        };
        // All that was there at any time, as the disk has it for certain.
        let mut inodes = BTreeMap::from([(self.before.root.inode, self.durable(self.before.root))]);
        let mut todo = vec![self.before.root];
        while let Some(entry) = todo.pop() {
            let listings = [inodes.get(&entry.inode), self.after.inodes.get(&entry.inode)];
            let below: Vec<Entry> =
                listings.into_iter().flatten().flat_map(Inode::entries).map(|(_, e)| *e).collect();
            for entry in below {
                inodes.entry(entry.inode).or_insert_with(|| {
                    todo.push(entry);
                    self.durable(entry)
                });
            }
        }
        let groups = self.groups(&inodes);
        for group in groups.into_iter().filter(|_| happens()) {
            for Change { dir, name, to, .. } in group {
                let Some(Inode::Dir(entries)) = inodes.get_mut(&dir) else {
                    unreachable!("a change of an entry")
                };
                match to {
                    Some(entry) => drop(entries.insert(name, entry)),
                    None => drop(entries.remove(&name)),
                }
            }
        }
        for (number, inode) in &mut inodes {
            if let (Inode::File(_), Some(Inode::File(now))) = (&inode, self.after.inodes.get(number))
                && happens()
            {
                *inode = Inode::File(now.clone());
            }
        }
        Tree { root: self.before.root, inodes, _open: Vec::new() }
    }

    /// The changes of directories that are not on disk for certain; those of one group happen together.
    fn groups(&self, durable: &BTreeMap<u64, Inode>) -> Vec<Vec<Change>> {
        let none = Entries::new();
        let mut changes = Vec::new();
        for (&dir, inode) in durable {
            let Inode::Dir(was) = inode else { continue };
            let is = match self.after.inodes.get(&dir) {
                Some(Inode::Dir(is)) => is,
                _ => &none,
            };
            let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for name in names.into_iter().filter(|name| was.get(*name) != is.get(*name)) {
                let (from, to) = (was.get(name).copied(), is.get(name).copied());
                changes.push(Change { dir, name: name.clone(), from, to });
            }
        }
        let mut group: Vec<usize> = (0..changes.len()).collect();
        let mut join = |a: usize, b: usize| {
            let (a, b) = (group[a], group[b]);
            group.iter_mut().filter(|g| **g == a).for_each(|g| *g = b);
        };
        let inode = |entry: Option<Entry>| entry.map(|entry| entry.inode);
        for (a, one) in changes.iter().enumerate() {
            for (b, other) in changes.iter().enumerate() {
                let moved = one.from.is_some() && inode(one.from) == inode(other.to);
                // A directory is removed after its entries; an entry is moved into one after that has been made, and those
                // above it.
                let emptied = one.to.is_none() && inode(one.from) == Some(other.dir);
                let moved_into =
                    changes.iter().any(|from| inode(from.from) == inode(one.to) && one.to.is_some());
                let made =
                    moved_into && inode(other.to).is_some_and(|made| self.after.is_within(one.dir, made));
                if moved || emptied || made {
                    join(a, b);
                }
            }
        }
        let mut groups: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
        for (group, change) in group.into_iter().zip(changes) {
            groups.entry(group).or_default().push(change);
        }
        groups.into_values().collect()
    }
}

/// An entry of a directory that became another.
struct Change {
    dir: u64,
    name: String,
    from: Option<Entry>,
    to: Option<Entry>,
}

#[derive(Clone, Copy, PartialEq)]
struct Entry {
    inode: u64,
    is_dir: bool,
}

type Entries = BTreeMap<String, Entry>;

#[derive(Clone)]
enum Inode {
    Dir(Entries),
    File(Contents),
}

#[derive(Clone, Default)]
struct Contents {
    data: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Contents {
    fn of(file: &File) -> Self {
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut &*file, &mut data).unwrap();
        let mut names = vec![0; 4096];
        let length = rustix::fs::flistxattr(file, &mut names[..]).unwrap();
        let names = String::from_utf8(names[..length].to_vec()).unwrap();
        let value = |name: &str| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::fgetxattr(file, name, &mut value[..]).unwrap();
            value[..length].to_vec()
        };
        let names = names.split('\0').filter(|name| name.starts_with("user."));
        Contents { data, xattrs: names.map(|name| (name.to_owned(), value(name))).collect() }
    }

    fn write(&self, path: &Path) {
        let file = File::create(path).unwrap();
        std::io::Write::write_all(&mut &file, &self.data).unwrap();
        for (name, value) in &self.xattrs {
            rustix::fs::fsetxattr(&file, name.as_str(), value, rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
}

impl Inode {
    fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        let entries = if let Inode::Dir(entries) = self { Some(entries) } else { None };
        entries.into_iter().flatten()
    }

    /// Lines `INODE d|f NAME`.
    fn parse_entries(text: &str) -> Entries {
        let entry = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let (inode, kind) = (words.next().unwrap().parse().unwrap(), words.next().unwrap());
            (words.next().unwrap().to_owned(), Entry { inode, is_dir: kind == "d" })
        };
        text.lines().map(entry).collect()
    }
}

/// Files below a folder, by inode.
struct Tree {
    root: Entry,
    inodes: BTreeMap<u64, Inode>,
    /// So that none of the inodes is given to another file.
    _open: Vec<File>,
}

impl Tree {
    fn of(folder: &Path) -> Self {
        let root = Entry { inode: std::fs::metadata(folder).unwrap().ino(), is_dir: true };
        let mut tree = Tree { root, inodes: BTreeMap::new(), _open: Vec::new() };
        let mut todo = vec![(folder.to_owned(), root)];
        while let Some((path, entry)) = todo.pop() {
            let file = File::open(&path).unwrap();
            let inode = match entry.is_dir {
                false => Inode::File(Contents::of(&file)),
                true => {
                    let entries = std::fs::read_dir(&path).unwrap().map(|entry| {
                        let entry = entry.unwrap();
                        let is_dir = entry.file_type().unwrap().is_dir();
                        (entry.file_name().into_string().unwrap(), Entry { inode: entry.ino(), is_dir })
                    });
                    let entries: Entries = entries.collect();
                    todo.extend(entries.iter().map(|(name, entry)| (path.join(name), *entry)));
                    Inode::Dir(entries)
                }
            };
            tree._open.push(file);
            tree.inodes.insert(entry.inode, inode);
        }
        tree
    }

    /// Whether a directory is another, or lies in it.
    fn is_within(&self, dir: u64, above: u64) -> bool {
        let below = |entry: &Entry| entry.is_dir && self.is_within(dir, entry.inode);
        dir == above
            || self.inodes.get(&above).is_some_and(|above| above.entries().any(|(_, entry)| below(entry)))
    }

    /// Makes the same files and links in a folder that there is not yet.
    fn write(&self, folder: &Path) {
        let mut written: HashMap<u64, PathBuf> = HashMap::new();
        let mut todo = vec![(folder.to_owned(), self.root)];
        while let Some((path, entry)) = todo.pop() {
            if let Some(first) = written.get(&entry.inode) {
                std::fs::hard_link(first, &path).unwrap();
                continue;
            }
            match &self.inodes[&entry.inode] {
                Inode::File(contents) => {
                    contents.write(&path);
                    written.insert(entry.inode, path);
                }
                Inode::Dir(entries) => {
                    std::fs::create_dir(&path).unwrap();
                    todo.extend(entries.iter().map(|(name, entry)| (path.join(name), *entry)));
                }
            }
        }
    }
}
