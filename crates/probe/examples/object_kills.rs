//! Stops an object server, or one of its daemons, at every step that it takes, and looks at the disk that it leaves.
//!
//! ```text
//! object_kills FOLDER [SCENARIO]        all of it; every disk is left in FOLDER/SCENARIO/..., with expect.json for Python to look at
//! object_kills FOLDER act SCENARIO      one child: does the scenario on the disk in FOLDER
//! ```
//!
//! How, `probe::kills` tells.
//!
//! On each of all those disks: every object is what it was before or what it was to be, whole; what was acknowledged is
//! there; hashes.pkl tells what a hash of the files does; nothing lies about that Swift would not leave; a later PUT works.
//! An update of a container is gone only if all nodes have it; a session or a daemon that begins anew comes to its end.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::config::{Conf, Paste, SwiftConf};
use common::digest::{hex, md5};
use common::hash::HashConf;
use common::{Clock, ObjHash, Timestamp, fs};
use obj::diskfile::{
    DiskFile, DiskFileConf, DiskFileError, DiskFileManager, DiskFileRouter, Metadata, Placed, ReaderOptions,
};
use obj::relinker::{self, RelinkerConf, Step};
use probe::kills::{Scenario, Tree, device, names, save_ring, stop_everywhere};
use ring::{FormatVersion, RingBuilder};
use serde_json::{Value, json};
use service::context::Context;
use service::daemon::DaemonArgs;
use service::http::serve::{ServeOptions, Server};
use service::http::{Method, Request, Response, SharedApp};
use service::logs::{Level, Logger};
use service::pipeline::{Registry, load_app};
use service::statsd::Statsd;

const PART_POWER: u32 = 2;
const NEXT_POWER: u32 = PART_POWER + 1;
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

/// What cannot be read is quarantined, as is right; what cannot be removed is not worth a word to Swift either.
const HARMLESS: &[&str] = &["fs.read_metadata", "fs.remove_dir", "cleanup.unlink", "cleanup.rmdir"];
/// At the end of a scenario's name: one `syncfs` serves what several syncs do otherwise.
const TOGETHER: &str = "_together";

const fn scenario(name: &'static str, durable: bool) -> Scenario {
    Scenario { name, armed: "", durable, power_cuts: POWER_CUTS, harmless: HARMLESS }
}

const SCENARIOS: [Scenario; 23] = [
    scenario("put", true),
    scenario("put_new", true),
    scenario("put_again", true),
    Scenario { armed: "fs.open_tmpfile=err:ENOTSUP", ..scenario("put_named", true) },
    scenario("put_large", true),
    scenario("put_relinked", true),
    scenario("post", true),
    scenario("delete", true),
    scenario("ssync", true),
    scenario("put_fragment", true),
    scenario("put_new_together", true),
    scenario("delete_together", true),
    scenario("ssync_together", true),
    scenario("put_fragment_together", true),
    scenario("purge", false),
    scenario("revert", false),
    scenario("get_hashes", false),
    scenario("quarantine", false),
    scenario("rebuild", true),
    scenario("updater", false),
    scenario("auditor", false),
    scenario("relink", true),
    scenario("cleanup", false),
];

fn main() {
    probe::kills::main(&SCENARIOS, run, |folder, name| {
        let (name, together) = split(name);
        let node = Node::new(folder, name, together);
        fs::fail::arm_from_env().unwrap();
        node.act(name)
    });
}

/// What a scenario does, and how many writes its server wants for one `syncfs`.
fn split(scenario: &str) -> (&str, usize) {
    scenario.strip_suffix(TOGETHER).map_or((scenario, 0), |name| (name, 1))
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
    together: usize,
    runtime: tokio::runtime::Runtime,
    app: SharedApp,
    listener: TcpListener,
}

impl Node {
    fn new(folder: &Path, scenario: &str, together: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (part_power, next_part_power) = match scenario {
            "relink" => (PART_POWER, Some(NEXT_POWER)),
            "cleanup" => (NEXT_POWER, Some(NEXT_POWER)),
            _ => (PART_POWER, None),
        };
        save_ring(&folder.join("object.ring.gz"), part_power, next_part_power, port);
        save_container_ring(folder, port);
        let mut registry = Registry::new();
        obj::register(&mut registry);
        let app = load_app(
            &Paste::parse(&conf(folder, together), "object-server.conf", "main").unwrap(),
            &registry,
            &context(folder),
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Node { folder: folder.to_owned(), together, runtime, app: app.unwrap(), listener }
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
        if HAVE_FRAGMENTS.contains(&scenario) {
            let disk = Disk::new(&self.folder);
            (0..2).for_each(|n| put_fragment(&disk, n, BEFORE).unwrap());
            if scenario == "rebuild" {
                // Which only lacks its commit.
                let _uncommitted = place(&disk.fragment(2), metadata(NOW, b"")).unwrap();
            }
            disk.check_hashes(None);
        }
        if scenario == "cleanup" {
            self.relink_in_part();
        }
        if scenario == "updater" {
            for (n, at) in [(0, BEFORE + 2.0), (0, BEFORE + 3.0), (1, BEFORE + 2.0)] {
                assert_eq!(self.send(Method::Put, n, at, &CONTAINER, "newer"), 201);
            }
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
        if matches!(scenario, "quarantine" | "auditor") {
            std::fs::write(self.hash_dir(2).join(format!("{}.data", internal(BEFORE))), "cut off").unwrap();
        }
        if scenario == "auditor" {
            // Left by an rsync long ago.
            let left =
                File::create(self.hash_dir(0).join(format!(".{}.data.Xy12Zw", internal(BEFORE)))).unwrap();
            left.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
        }
    }

    /// Object 0 is linked into its next partition; 1 too, where there is a newer one by now; of 3 its newer metadata are not; 2 is not at all.
    fn relink_in_part(&self) {
        let power = NEXT_POWER.to_string();
        let next = [("X-Backend-Next-Part-Power", &*power)];
        for n in [0, 1, 3] {
            assert_eq!(self.send(Method::Put, n, BEFORE + 2.0, &next, "linked"), 201);
        }
        let partition = hash(&object(1)).partition(NEXT_POWER);
        let newer = Disk::new(&self.folder).diskfile("sda1", partition, &object(1));
        newer.put_small(b"newer", metadata(BEFORE + 3.0, b"newer")).unwrap();
        assert_eq!(self.send(Method::Post, 3, BEFORE + 3.0, &[], ""), 202);
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
                let power = NEXT_POWER.to_string();
                put(0, NOW, &[("X-Backend-Next-Part-Power", &power)], "new")
            }
            "post" => self.send(Method::Post, 0, NOW, &CONTAINER, "") == 202,
            "delete" => self.send(Method::Delete, 2, NOW, &CONTAINER, "") == 204,
            "put_fragment" => put_fragment(&Disk::with(&self.folder, self.together), 0, NOW).is_ok(),
            "purge" => {
                let at = Timestamp::from_secs_f64(BEFORE);
                Disk::new(&self.folder).fragment(0).purge(at, Some(3), Duration::ZERO, None).is_ok()
            }
            "ssync" => self.ssync(),
            "rebuild" => self.rebuild(),
            "updater" => self.update(),
            "auditor" => {
                self.daemon(obj::auditor::build, self.app.clone());
                names(&self.hash_dir(2)).is_empty()
            }
            "relink" => self.relink(Step::Relink),
            "cleanup" => self.relink(Step::Cleanup),
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

    /// What a reconstructor's sessions bring: a commit; then, if they are still wanted, a fragment in place of an older one and
    /// one of a new object.
    fn rebuild(&self) -> bool {
        let codec = ec::Codec::new("isa_l_rs_cauchy", 4, 2).unwrap();
        let archive = codec.encode(&bytes::Bytes::from_static(REBUILT))[3].to_bytes();
        let session = |updates: &[u8]| {
            let offers = [0, 2, 5].map(|n| format!("{} {}\r\n", hash(&object(n)), internal(NOW))).concat();
            let head = format!(":MISSING_CHECK: START\r\n{offers}:MISSING_CHECK: END\r\n:UPDATES: START\r\n");
            let said = [head.as_bytes(), updates, b":UPDATES: END\r\n"].concat();
            let request = Request::new(Method::Ssync, format!("/sda1/{PARTITION}"))
                .with_header("X-Backend-Storage-Policy-Index", 1)
                .with_header("X-Backend-Ssync-Frag-Index", 3);
            let (_, answer) = self.call(request.with_body(said));
            answer
                .ends_with(b":UPDATES: START\r\n:UPDATES: END\r\n")
                .then(|| String::from_utf8(answer).unwrap())
        };
        let Some(wanted) = session(b"") else { return false };
        let mut updates = Vec::new();
        for n in [0, 5].into_iter().filter(|n| wanted.contains(&hash(&object(*n)).to_string())) {
            let head = format!(
                "PUT /a/c/{}\r\nX-Timestamp: {}\r\nContent-Length: {}\r\nContent-Type: x/y\r\n\
                 X-Object-Sysmeta-Ec-Frag-Index: 3\r\nX-Object-Sysmeta-Ec-Etag: {}\r\n\r\n",
                object(n),
                internal(NOW),
                archive.len(),
                hex(&md5(REBUILT))
            );
            updates.extend(head.into_bytes());
            updates.extend_from_slice(&archive);
        }
        session(&updates).is_some()
    }

    /// A pass of a daemon, with a server at the port of the rings.
    fn daemon(&self, build: service::daemonize::Build, app: SharedApp) {
        let port = self.listener.local_addr().unwrap().port();
        self.runtime.block_on(async {
            let listeners = vec![self.listener.try_clone().unwrap()];
            let server = Server::start(listeners, app, ServeOptions::default()).unwrap();
            let conf = conf(&self.folder, self.together)
                .replace("bind_port = 1\n", &format!("bind_port = {port}\n"));
            let conf = Conf::parse(&conf, "object-server.conf").unwrap();
            build(&conf, &context(&self.folder)).unwrap().run_once().await;
            server.stop(Duration::ZERO).await;
        });
    }

    /// A pass of the replicator, in which the partition is a handoff on sda1 and goes to sda2.
    fn revert(&self) -> bool {
        self.daemon(obj::replicator::build, self.app.clone());
        !self.folder.join(format!("sda1/objects/{PARTITION}")).exists()
    }

    /// A pass of the updater. Of two container servers one does not take object 1's update. What they took is beside the
    /// folder, as it is not on its disks.
    fn update(&self) -> bool {
        let took = took(&self.folder);
        std::fs::create_dir_all(&took).unwrap();
        let refused = format!("/sdc2/{}/a/c/{}", container_partition(), object(1));
        let servers = service::http::app_fn(move |request| {
            let (took, refused) = (took.clone(), refused.clone());
            async move {
                let path = request.path.to_string();
                if path == refused {
                    return Response::error(503);
                }
                File::create(took.join(path.replace('/', " "))).unwrap();
                Response::new(201)
            }
        });
        self.daemon(obj::updater::build, servers);
        let left = Disk::new(&self.folder).updates();
        left.len() == 1 && left.values().all(|update| update[3] != json!([]))
    }

    fn relink(&self, step: Step) -> bool {
        let conf = RelinkerConf {
            swift_conf: context(&self.folder).swift_conf.clone(),
            diskfile: disk_conf(&self.folder, 0),
            policies: vec![common::PolicyIndex(0)],
            devices: vec!["sda1".into()],
            partitions: Vec::new(),
            files_per_second: 0.0,
            workers: None,
            recon_cache_path: self.folder.clone(),
            stats_interval: Duration::from_secs(300),
            clobber_hardlink_collisions: false,
            clock: Clock::system(),
        };
        relinker::run(step, &conf, &Logger::memory().0) == relinker::EXIT_SUCCESS
    }
}

/// sdc1 and sdc2 have the containers.
fn save_container_ring(folder: &Path, port: u16) {
    let mut builder = RingBuilder::new(PART_POWER, 2.0, 1).unwrap();
    for id in 1..3 {
        builder.add_dev(device(id, &format!("sdc{id}"), port)).unwrap();
    }
    builder.rebalance(1).unwrap();
    builder.save_ring(&folder.join("container.ring.gz"), FormatVersion::V1).unwrap();
}

/// Where the container servers note what they took.
fn took(folder: &Path) -> PathBuf {
    folder.with_extension("took")
}

fn container_partition() -> u32 {
    let conf = HashConf { prefix: Vec::new(), suffix: SUFFIX.into() };
    conf.hash_path("a", Some("c"), None).partition(PART_POWER)
}

/// What a rebuilt fragment is of.
const REBUILT: &[u8] = b"rebuilt of the fragments of others";
/// Scenarios with an erasure coded policy.
const HAVE_FRAGMENTS: [&str; 3] = ["put_fragment", "purge", "rebuild"];
/// Those that are begun anew in the end.
const RESTARTED: [&str; 5] = ["rebuild", "updater", "auditor", "relink", "cleanup"];

fn place(fragment: &DiskFile, metadata: Metadata) -> Result<Placed, DiskFileError> {
    fragment.write_small(b"")?.0.put(metadata)
}

/// Places a fragment and commits it.
fn put_fragment(disk: &Disk, n: usize, at: f64) -> Result<(), DiskFileError> {
    place(&disk.fragment(n), metadata(at, b""))?.commit()
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

fn conf(folder: &Path, together: usize) -> String {
    format!(
        "[DEFAULT]\ndevices = {}\nmount_check = false\nfallocate_reserve = 0\nbind_ip = 127.0.0.1\nbind_port = 1\n\
         reclaim_age = {RECLAIM_AGE}\n[pipeline:main]\npipeline = object-server\n[app:object-server]\n\
         use = egg:swift#object\nreplication_concurrency_per_device = 2\nsyncs_together = {together}\n\
         [object-replicator]\nsync_method = ssync\nreplication_concurrency_per_device = 2\n\
         [object-updater]\nconcurrency = 1\n\
         [object-auditor]\nzero_byte_files_per_second = 0\nfiles_per_second = 0\n",
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

fn disk_conf(folder: &Path, syncs_together: usize) -> DiskFileConf {
    DiskFileConf {
        syncs_together,
        devices: folder.into(),
        mount_check: false,
        reclaim_age: Duration::from_secs(RECLAIM_AGE),
        ..DiskFileConf::default()
    }
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
        Self::with(folder, 0)
    }

    fn with(folder: &Path, syncs_together: usize) -> Self {
        let (logger, lines) = Logger::memory();
        let (conf, clock) = (disk_conf(folder, syncs_together), Clock::system());
        let router = DiskFileRouter::new(&conf, &swift_conf(), &clock, &logger, &Statsd::disabled());
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
        if matches!(scenario, "quarantine" | "auditor") {
            let mut files = names(&in_partition(2));
            files.extend(names(&quarantined.join(hash(&object(2)).to_string())));
            found.insert("files of the damaged".into(), json!(files));
        }
        if scenario == "get_hashes" {
            let places = [in_partition(0).with_file_name(stray()), quarantined.join(stray())];
            found.insert("strays".into(), json!(places.iter().filter(|path| path.exists()).count()));
        }
        if HAVE_FRAGMENTS.contains(&scenario) {
            for n in 0..6 {
                let state = match self.fragment(n).open(None) {
                    Ok(opened) => {
                        let data = opened.read_small().unwrap().data;
                        json!([opened.data_timestamp().internal(), hex(&data)])
                    }
                    Err(DiskFileError::NotExist) => Value::Null,
                    Err(err) => panic!("fragment {n}: {err}"),
                };
                found.insert(format!("fragment {n}"), state);
            }
        }
        for device in ["sda1", "sda2"].into_iter().filter(|device| self.folder.join(device).exists()) {
            for n in 0..8 {
                let name = object(n);
                for power in [PART_POWER, NEXT_POWER] {
                    let partition = hash(&name).partition(power);
                    found.insert(
                        format!("{device}/{partition}/a/c/{name}"),
                        self.read(device, partition, &name),
                    );
                }
            }
        }
        found.extend(self.updates());
        found
    }

    /// The pending ones of containers, and who has them already.
    fn updates(&self) -> Found {
        let mut found = Found::new();
        let pending = self.folder.join("sda1/async_pending");
        for suffix in names(&pending) {
            for file in names(&pending.join(&suffix)) {
                let update = std::fs::read(pending.join(&suffix).join(&file)).unwrap();
                let update = common::pickle::loads(&update).unwrap_or_else(|err| panic!("{file}: {err}"));
                let item = |key: &str| update.get(key).and_then(|value| value.as_str()).unwrap().to_owned();
                let successes = match update.get("successes") {
                    Some(common::pickle::Value::List(ids)) => {
                        ids.iter().filter_map(|id| id.as_int()).collect()
                    }
                    _ => Vec::new(),
                };
                let told = json!([item("op"), item("container"), item("obj"), successes]);
                found.insert(format!("update {file}"), told);
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

    /// Suffix hashes of every partition, in order: those that are cached are those of the files. Not in a partition from which
    /// files are only removed: who does that does not wait for what says so, nor does Swift.
    fn check_hashes(&self, emptied: Option<u32>) {
        for (device, objects, manager) in self.places() {
            for partition in names(&objects) {
                // The auditor's position is beside the partitions.
                let Some(number) = partition.parse().ok().filter(|number| Some(*number) != emptied) else {
                    continue;
                };
                let hashes = || {
                    let hashes = manager.get_hashes(device, number, &[], false).unwrap().unwrap();
                    let hashes = hashes.iter().map(|(suffix, hash)| (suffix, hash.cloned()));
                    hashes.collect::<BTreeMap<_, _>>()
                };
                let cached = hashes();
                for file in ["hashes.pkl", "hashes.invalid"] {
                    fs::remove_file(&objects.join(&partition).join(file)).unwrap();
                }
                let anew = hashes();
                assert_eq!(cached, anew, "stale hashes of partition {partition} of {}", objects.display());
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

/// What a disk may hold.
struct Expected {
    scenario: &'static str,
    old: Found,
    new: Found,
}

impl Expected {
    /// Looks at one disk, of which a copy is left for Python to look at.
    fn check(&self, folder: &Path, acknowledged: bool) {
        // What the child gave them, whatever a loss of power has made of its disk.
        let name = folder.file_name().unwrap().to_str().unwrap();
        let took = names(&took(&folder.with_file_name(name.split("-cut").next().unwrap_or(name))));
        let original = folder.with_extension("python");
        Tree::of(folder).write(&original);
        let disk = Disk::new(folder);
        let emptied = (self.scenario == "cleanup").then_some(PARTITION);
        disk.check_names();
        disk.check_hashes(emptied);
        let found = disk.find(self.scenario);
        let keys: BTreeSet<&String> =
            [&self.old, &self.new, &found].into_iter().flat_map(|f| f.keys()).collect();
        let mut expect = serde_json::Map::new();
        // Where nobody looks any more; what has not been emptied yet is in the new place by then, see below.
        let emptied_keys = emptied.map(|partition| format!("sda1/{partition}/"));
        let is_looked_for =
            |key: &&&String| !emptied_keys.as_ref().is_some_and(|emptied| key.starts_with(emptied));
        for key in keys.iter().filter(is_looked_for) {
            let (old, new) = (state(&self.old, key), state(&self.new, key));
            // A link into the next partition that fails is left to the relinker.
            let elsewhere = key.starts_with("sda1/")
                && !key.starts_with(&format!("sda1/{PARTITION}/"))
                && !matches!(self.scenario, "relink" | "cleanup");
            let allowed = if acknowledged && !elsewhere { vec![new] } else { vec![old, new] };
            assert!(allowed.contains(&state(&found, key)), "{key}: {:#} of {allowed:#?}", state(&found, key));
            expect.insert(key.to_string(), json!(allowed));
        }
        if self.scenario == "revert" {
            for n in 0..4 {
                let on = |device: &str| state(&found, &format!("{device}/{PARTITION}/a/c/{}", object(n)));
                assert!(!(on("sda1").is_null() && on("sda2").is_null()), "{} is nowhere", object(n));
            }
        }
        if matches!(self.scenario, "relink" | "cleanup") {
            for n in 0..4 {
                let name = object(n);
                let place = |power| format!("sda1/{}/a/c/{name}", hash(&name).partition(power));
                let newest = state(&self.new, &place(NEXT_POWER));
                let is_newest = |power| state(&found, &place(power)) == newest;
                assert!([PART_POWER, NEXT_POWER].into_iter().any(is_newest), "{name} is nowhere");
            }
        }
        self.check_updates(&found, &took);
        disk.check_hashes(emptied);
        if RESTARTED.contains(&self.scenario) {
            assert!(
                Node::new(folder, self.scenario, 0).act(self.scenario),
                "begun anew, it does not end well"
            );
            assert_eq!(Disk::new(folder).find(self.scenario), self.new, "begun anew");
            disk.check_hashes(emptied);
        }
        disk.check_later_puts();
        disk.check_hashes(emptied);
        if !matches!(self.scenario, "quarantine" | "get_hashes" | "auditor") {
            assert_eq!(disk.lines.at_least(Level::Warning), Vec::<String>::new());
        }
        std::fs::write(original.join("expect.json"), Value::from(expect).to_string()).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// An update is gone only if all have it, or a newer one is there.
    fn check_updates(&self, found: &Found, took: &[String]) {
        if self.scenario != "updater" {
            return;
        }
        for (key, update) in self.old.iter().filter(|(key, _)| key.starts_with("update ")) {
            let name = update[2].as_str().unwrap();
            let told = format!("{} a c {name}", container_partition());
            let all_have = ["sdc1", "sdc2"].iter().all(|device| took.contains(&format!(" {device} {told}")));
            let here = |(other, there): (&String, &Value)| other >= key && there[2] == name;
            assert!(all_have || found.iter().any(here), "{key} of {name} is lost; {took:?}");
        }
    }
}

fn state(found: &Found, key: &str) -> Value {
    found.get(key).cloned().unwrap_or_default()
}

fn run(scenario: &Scenario, folder: &Path) {
    let name = scenario.name;
    let folder = folder.join(name);
    let template = folder.join("before");
    std::fs::create_dir_all(template.join("sda1")).unwrap();
    if name == "revert" {
        std::fs::create_dir(template.join("sda2")).unwrap();
    }
    let (base, _) = split(name);
    Node::new(&template, base, 0).prepare(base);
    stop_everywhere(scenario, &folder, |old, new| {
        let expected =
            Expected { scenario: base, old: Disk::new(old).find(base), new: Disk::new(new).find(base) };
        assert_ne!(expected.old, expected.new, "{name} changes nothing");
        move |folder: &Path, acknowledged: bool| expected.check(folder, acknowledged)
    });
}
