//! Stops account and container servers, and a replicator, at every step that they take, and looks at the databases that they
//! leave.
//!
//! ```text
//! database_kills FOLDER [SCENARIO]        all of it; every disk is left in FOLDER/SCENARIO/..., with expect.json for Python to look at
//! database_kills FOLDER act SCENARIO      one child: does the scenario on the disk in FOLDER
//! ```
//!
//! How, `probe::kills` tells. What SQLite itself syncs is in no journal, so that the power is cut only where a database is made,
//! moved or brought by rsync, and nothing is committed into one that was there.
//!
//! On each of all those disks: SQLite finds nothing wrong with any database; each row, sync point, timestamp and item of metadata is what it was
//! before or what it was to be, and the latter if that was acknowledged; the counts are those of the rows; a later row is taken.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::config::{Conf, Section};
use common::hash::HashConf;
use common::{Clock, ObjHash, SwiftConf, Timestamp, fs};
use db::account::broker::{AccountBroker, ContainerRecord, Count};
use db::broker::{BrokerError, DatabaseBroker, Kind, Options, PENDING_CAP, Shared};
use db::container::broker::ContainerBroker;
use db::container::rows::ObjectRecord;
use db::metadata::Metadata;
use db::replication::{Replicated, SyncPoint, Syncs};
use probe::kills::{Scenario, Tree, save_ring, stop_everywhere};
use serde_json::{Value, json};
use service::Context;
use service::daemon::DaemonArgs;
use service::http::serve::{ServeOptions, Server};
use service::http::{Method, Request, SharedApp};
use service::logs::Logger;

const PART_POWER: u32 = 2;
const SUFFIX: &str = "endcap";
/// Of what is there before, of what is done, and of what is done to see whether all is well.
const BEFORE: u64 = 1_700_000_000;
const NOW: u64 = 1_700_000_100;
const LATER: u64 = 1_700_001_000;
/// The id that a file in `tmp` has come under.
const REMOTE: &str = "remote-id";

const fn scenario(name: &'static str, power_cuts: u64) -> Scenario {
    // A disk that refuses a tidying up is told in the log.
    Scenario { name, armed: "", durable: true, power_cuts, harmless: &["fs.remove_dir", "db.remove"] }
}

const SCENARIOS: [Scenario; 20] = [
    scenario("account_put", 3),
    scenario("container_put", 3),
    scenario("container_put_with_metadata", 0),
    scenario("container_put_again", 0),
    scenario("post", 0),
    scenario("container_delete", 0),
    scenario("account_delete", 0),
    scenario("row", 0),
    scenario("row_delete", 0),
    scenario("row_of_account", 0),
    scenario("row_over_the_cap", 0),
    scenario("list", 0),
    scenario("sync", 0),
    scenario("merge_items", 0),
    scenario("merge_syncs", 0),
    // Until it has its name the file is as rsync has left it, which is not synced before.
    scenario("complete_rsync", 3),
    scenario("rsync_then_merge", 0),
    // A move that is lost is made again.
    Scenario { durable: false, ..scenario("quarantine", 3) },
    scenario("reclaim", 0),
    scenario("revert", 0),
];

fn main() {
    probe::kills::main(&SCENARIOS, run, |folder, name| {
        let node = Node::new(folder);
        fs::fail::arm_from_env().unwrap();
        node.act(name)
    });
}

fn run(scenario: &Scenario, folder: &Path) {
    let name = scenario.name;
    let folder = folder.join(name);
    let template = folder.join("before");
    for device in ["sda1", "sda2"] {
        std::fs::create_dir_all(template.join(device)).unwrap();
    }
    Node::new(&template).prepare(name);
    stop_everywhere(scenario, &folder, |old, new| {
        let expected = Expected { scenario: name, old: find(old), new: find(new) };
        // To list is to change nothing.
        assert_eq!(expected.old == expected.new, name == "list", "{name}");
        move |folder: &Path, acknowledged: bool| expected.check(folder, acknowledged)
    });
}

fn hash(container: Option<&str>) -> ObjHash {
    let conf = HashConf { prefix: Vec::new(), suffix: SUFFIX.into() };
    conf.hash_path("a", container, None)
}

/// Below a device.
fn db_file(container: Option<&str>) -> PathBuf {
    let hash = hash(container);
    let (kind, partition) =
        (if container.is_some() { "containers" } else { "accounts" }, hash.partition(PART_POWER));
    format!("{kind}/{partition}/{}/{hash}/{hash}.db", hash.suffix()).into()
}

fn stamp(secs: u64) -> String {
    format!("{secs:010}.00000")
}

fn row(name: &str, secs: u64) -> ObjectRecord {
    ObjectRecord {
        name: name.into(),
        created_at: stamp(secs),
        size: 10,
        content_type: "text/plain".into(),
        etag: "e".into(),
        ..ObjectRecord::default()
    }
}

fn metadata(items: &[(&str, &str)], secs: u64) -> Metadata {
    let mut metadata = Metadata::default();
    items.iter().for_each(|(name, value)| metadata.set((*name).into(), (*value).into(), stamp(secs)));
    metadata
}

fn shared() -> Arc<Shared> {
    Shared::new(Clock::manual(Timestamp::from_secs_f64(NOW as f64)), |line| eprintln!("{line}"))
}

fn container(file: &Path) -> ContainerBroker {
    ContainerBroker::new(&shared(), file, Options { never_quarantine: true, ..Options::default() })
}

fn account(file: &Path) -> AccountBroker {
    AccountBroker::new(&shared(), file.into(), Options { never_quarantine: true, ..Options::default() })
}

/// An account and a container server with devices sda1 and sda2 in its folder.
struct Node {
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
    apps: [SharedApp; 2],
    listener: TcpListener,
}

impl Node {
    fn new(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        save_ring(&folder.join("container.ring.gz"), PART_POWER, None, listener.local_addr().unwrap().port());
        let options =
            [("devices", folder.to_str().unwrap()), ("mount_check", "false"), ("fallocate_reserve", "0")];
        let ctx = context(folder);
        let section = |name: &str| Section::from_pairs(name, options);
        let apps = [
            db::account::server::app(&section("app:account-server"), &ctx).unwrap(),
            db::container::server::app(&section("app:container-server"), &ctx).unwrap(),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Node { folder: folder.to_owned(), runtime, apps, listener }
    }

    fn call(&self, container: Option<&str>, req: Request) -> u16 {
        self.runtime.block_on(async {
            let mut response = self.apps[usize::from(container.is_some())].call(req).await;
            let _ = response.body.collect(1 << 24).await;
            response.status.0
        })
    }

    /// A request of a server of sda1 about its account or container, or an entry of it.
    fn send(&self, method: Method, path: &str, secs: u64, headers: &[(&str, &str)]) -> u16 {
        let mut names = path.splitn(3, '/').skip(1);
        let container = names.next();
        let entry_of_account = names.next().is_none() && path.ends_with('!');
        let path = path.trim_end_matches('!');
        let base = if entry_of_account { None } else { container };
        let partition = hash(base).partition(PART_POWER);
        let mut req =
            Request::new(method, format!("/sda1/{partition}/{path}")).with_header("X-Timestamp", stamp(secs));
        for (name, value) in headers {
            req = req.with_header(name, *value);
        }
        self.call(base, req)
    }

    fn replicate(&self, words: Value) -> u16 {
        let hash = hash(Some("c"));
        let path = format!("/sda1/{}/{hash}", hash.partition(PART_POWER));
        self.call(Some("c"), Request::new(Method::Replicate, path).with_body(words.to_string()))
    }

    fn container(&self, device: &str, name: &str) -> ContainerBroker {
        container(&self.folder.join(device).join(db_file(Some(name))))
    }

    /// What is on the disk before.
    fn prepare(&self, scenario: &str) {
        let mut whole = account(&self.folder.join("sda1").join(db_file(None)));
        whole.initialize("a", &stamp(BEFORE)).unwrap();
        whole.db.update_metadata(&metadata(&[("X-Account-Meta-Color", "blue")], BEFORE), None).unwrap();
        drop(whole);
        for name in ["c", "empty"] {
            let mut broker = self.container("sda1", name);
            broker.initialize("a", name, &stamp(BEFORE), 0).unwrap();
            let items = [("X-Container-Meta-Color", "blue"), ("X-Container-Read", ".r:*")];
            broker.db.update_metadata(&metadata(&items, BEFORE), None).unwrap();
        }
        let mut broker = self.container("sda1", "c");
        broker.merge_items((0..4).map(|n| row(&format!("o{n}"), BEFORE)).collect()).unwrap();
        let point = |id: &str| SyncPoint { remote_id: id.into(), sync_point: 2 };
        broker.db.merge_syncs(&[point("first")], Syncs::Incoming).unwrap();
        // Some rows are pending.
        broker.put_object(row("pending", BEFORE)).unwrap();
        broker.put_object(ObjectRecord::tombstone("o3".into(), stamp(BEFORE + 1), 0)).unwrap();
        match scenario {
            "account_put" => {
                std::fs::remove_dir_all(self.folder.join("sda1/accounts")).unwrap();
            }
            "account_delete" => {
                assert_eq!(self.send(Method::Put, "a/gone!", BEFORE, &REPORT), 201);
            }
            "row_over_the_cap" => {
                let pending = broker.db.db_file.with_extension("db.pending");
                for n in 0.. {
                    if std::fs::metadata(&pending).unwrap().len() > PENDING_CAP {
                        break;
                    }
                    broker.put_object(row(&format!("{n:01000}"), BEFORE)).unwrap();
                }
            }
            "complete_rsync" | "rsync_then_merge" => {
                let received = self.folder.join("sda1/tmp").join(REMOTE);
                let mut theirs = container(&received.with_file_name("made/1/2/3/made.db"));
                theirs.initialize("a", "c", &stamp(BEFORE + 5), 0).unwrap();
                theirs.merge_items((2..9).map(|n| row(&format!("o{n}"), BEFORE + 2)).collect()).unwrap();
                theirs.db.sync().unwrap();
                fs::rename(&theirs.db.db_file, &received).unwrap();
                std::fs::remove_dir_all(received.with_file_name("made")).unwrap();
                if scenario == "complete_rsync" {
                    broker.db.close();
                    std::fs::remove_dir_all(broker.db.db_dir()).unwrap();
                }
            }
            "quarantine" => {
                broker.db.close();
                std::fs::write(&broker.db.db_file, "no database at all ".repeat(1000)).unwrap();
            }
            "reclaim" => {
                // Everything that the pass finds was deleted for long; it is the primary itself.
                let mut theirs = self.container("sda2", "c");
                theirs.initialize("a", "c", &stamp(BEFORE), 0).unwrap();
                let ancient = (0..3).map(|n| ObjectRecord::tombstone(format!("t{n}"), stamp(10), 0));
                theirs.merge_items(ancient.chain([row("o", BEFORE)]).collect()).unwrap();
                let gone = [("X-Container-Meta-Gone", ""), ("X-Container-Meta-Color", "blue")];
                theirs.db.update_metadata(&metadata(&gone, 10), None).unwrap();
                let mut theirs = self.container("sda2", "empty");
                theirs.initialize("a", "empty", &stamp(5), 0).unwrap();
                theirs.db.delete_db(&stamp(10)).unwrap();
                let told = theirs.info().unwrap();
                theirs.reported(&told).unwrap();
                std::fs::remove_dir_all(self.folder.join("sda1/containers")).unwrap();
            }
            "revert" => {
                for name in ["c", "empty"] {
                    let mut theirs = self.container("sda2", name);
                    theirs.initialize("a", name, &stamp(BEFORE), 0).unwrap();
                    theirs.merge_items(vec![row("o1", BEFORE + 5), row("theirs", BEFORE)]).unwrap();
                }
            }
            _ => {}
        }
    }

    /// What is done; whether it was acknowledged.
    fn act(&self, scenario: &str) -> bool {
        let object = [("X-Size", "5"), ("X-Content-Type", "a/b"), ("X-Etag", "new")];
        let color = [("X-Container-Meta-Color", "red"), ("X-Container-Meta-Shape", "round")];
        match scenario {
            // Metadata would be one more commit.
            "account_put" => self.send(Method::Put, "a", NOW, &[]) == 201,
            "container_put" => self.send(Method::Put, "a/new", NOW, &[]) == 201,
            "container_put_with_metadata" => self.send(Method::Put, "a/new", NOW, &color) == 201,
            "container_put_again" => self.send(Method::Put, "a/c", NOW, &color) == 202,
            "post" => self.send(Method::Post, "a/c", NOW, &color) == 204,
            "container_delete" => self.send(Method::Delete, "a/empty", NOW, &[]) == 204,
            "account_delete" => self.send(Method::Delete, "a", NOW, &[]) == 204,
            "row" | "row_over_the_cap" => self.send(Method::Put, "a/c/o1", NOW, &object) == 201,
            "row_delete" => self.send(Method::Delete, "a/c/o1", NOW, &[]) == 204,
            "row_of_account" => self.send(Method::Put, "a/new!", NOW, &REPORT) == 201,
            "list" => self.send(Method::Get, "a/c", NOW, &[]) == 200,
            "sync" => {
                let told = metadata(&[("X-Container-Meta-Color", "red")], NOW).dump();
                let (put, delete) = (stamp(NOW), stamp(BEFORE - 5));
                let words = json!(["sync", 7, "0".repeat(32), REMOTE, stamp(BEFORE - 1), put, delete, told]);
                self.replicate(words) == 200
            }
            "merge_items" => {
                let item = |n: i64, deleted: i64| {
                    json!({"ROWID": n, "name": format!("o{n}"), "created_at": stamp(NOW), "size": 7, "content_type": "t",
                           "etag": "f", "deleted": deleted, "storage_policy_index": 0})
                };
                self.replicate(json!(["merge_items", [item(1, 0), item(2, 1), item(8, 0)], REMOTE])) == 202
            }
            "merge_syncs" => {
                let points =
                    [("first", 3), ("second", 9)].map(|(id, at)| json!({"remote_id": id, "sync_point": at}));
                self.replicate(json!(["merge_syncs", points])) == 202
            }
            "complete_rsync" | "rsync_then_merge" => self.replicate(json!([scenario, REMOTE])) == 204,
            "quarantine" => {
                self.send(Method::Get, "a/c", NOW, &[]);
                self.folder.join("sda1/quarantined/containers").exists()
            }
            "reclaim" => {
                self.pass();
                !self.folder.join("sda2").join(db_file(Some("empty"))).exists()
            }
            "revert" => {
                self.pass();
                probe::kills::names(&self.folder.join("sda1/containers")).is_empty()
            }
            _ => panic!("{scenario}"),
        }
    }

    /// A pass of the replicator of containers, for which those of sda1 are handoffs of sda2.
    fn pass(&self) {
        let port = self.listener.local_addr().unwrap().port();
        self.runtime.block_on(async {
            let listeners = vec![self.listener.try_clone().unwrap()];
            let server = Server::start(listeners, self.apps[1].clone(), ServeOptions::default()).unwrap();
            let conf = format!(
                "[container-replicator]\ndevices = {}\nmount_check = false\nbind_ip = 127.0.0.1\nbind_port = {port}\nconcurrency = 1\n\
                 databases_per_second = 0\n",
                self.folder.display()
            );
            let conf = Conf::parse(&conf, "container-server.conf").unwrap();
            db::container::replicator::build(&conf, &context(&self.folder)).unwrap().run_once().await;
            server.stop(Duration::ZERO).await;
        });
    }
}

/// Of a container, to its account.
const REPORT: [(&str, &str); 5] = [
    ("X-Put-Timestamp", "1700000050.00000"),
    ("X-Delete-Timestamp", "0"),
    ("X-Object-Count", "0"),
    ("X-Bytes-Used", "0"),
    ("X-Backend-Storage-Policy-Index", "0"),
];

fn context(folder: &Path) -> Context {
    let text = format!(
        "[swift-hash]\nswift_hash_path_suffix = {SUFFIX}\n[storage-policy:0]\nname = gold\ndefault = yes\n"
    );
    Context::builder("container-server")
        .logger(Logger::memory().0)
        .clock(Clock::manual(Timestamp::from_secs_f64(NOW as f64)))
        .swift_conf(Arc::new(SwiftConf::parse(text.as_bytes(), "swift.conf", folder).unwrap()))
        .swift_dir(folder)
        .disk_pools(service::DiskPools::inline())
        .args(DaemonArgs::default())
        .recon_cache_path(folder)
        .build()
}

/// What the databases of a disk say: a file's name -> what -> a state.
type Found = BTreeMap<String, BTreeMap<String, Value>>;

/// Looks as those who come next: rows that are pending are merged.
fn find(folder: &Path) -> Found {
    let mut found = Found::new();
    for device in ["sda1", "sda2"] {
        for name in [None, Some("c"), Some("empty"), Some("new")] {
            let file = Path::new(device).join(db_file(name));
            let path = folder.join(&file);
            let said = match name {
                _ if !path.exists() => continue,
                None => says(&mut account(&path)),
                Some(_) => says(&mut container(&path)),
            };
            // One that nobody can read waits to be quarantined.
            let said = said.unwrap_or_else(|error| match error {
                BrokerError::Quarantined(_) => BTreeMap::from([("readable".into(), false.into())]),
                other => panic!("{}: {other}", file.display()),
            });
            found.insert(file.to_str().unwrap().to_owned(), said);
        }
        let place = folder.join(device).join("quarantined/containers");
        for name in probe::kills::names(&place) {
            let files = probe::kills::names(&place.join(&name));
            let files = files.into_iter().filter(|file| file.ends_with(".db") || file.ends_with(".pending"));
            let files = files.map(|file| (file, true.into())).collect();
            found.insert(format!("{device}/quarantined/containers/{name}"), files);
        }
    }
    found
}

fn says<B: Replicated>(broker: &mut B) -> Result<BTreeMap<String, Value>, BrokerError> {
    let info = broker.replication_info()?;
    let mut said = BTreeMap::new();
    let at = &info.timestamps;
    for (key, timestamp) in [
        ("created_at", &at.created_at),
        ("put_timestamp", &at.put_timestamp),
        ("delete_timestamp", &at.delete_timestamp),
    ] {
        said.insert(key.to_owned(), json!(timestamp));
    }
    said.insert("status".into(), info.is_status_deleted.into());
    for (name, item) in broker.db().metadata()?.iter() {
        said.insert(format!("metadata {name}"), json!([item.value, item.timestamp]));
    }
    for point in broker.db().sync_points(Syncs::Incoming)? {
        said.insert(format!("incoming {}", point.remote_id), point.sync_point.into());
    }
    let items = broker.db().items_since(-1, 1_000_000)?;
    let rows: Vec<Value> = serde_json::from_slice(&items.json).unwrap();
    let is_live = |row: &&Value| row["deleted"] == 0;
    assert_eq!(info.count, rows.iter().filter(is_live).count() as i64, "counted, and there");
    for mut row in rows {
        row.as_object_mut().unwrap().remove("ROWID");
        let name = format!("row {}", row["name"].as_str().unwrap());
        assert_eq!(said.insert(name.clone(), row), None, "{name} is there twice");
    }
    check_integrity(broker.db())?;
    Ok(said)
}

fn check_integrity<K: Kind>(db: &mut DatabaseBroker<K>) -> Result<(), BrokerError> {
    let verdict: String =
        db.read(|sqlite| sqlite.query_row("PRAGMA integrity_check", [], |row| row.get(0)))?;
    assert_eq!(verdict, "ok", "{}", db.db_file.display());
    Ok(())
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
        // A pass that meets an error goes on with the next database.
        let acknowledged = acknowledged && self.scenario != "reclaim";
        let original = folder.with_extension("python");
        Tree::of(folder).write(&original);
        let found = find(folder);
        let sides = [&self.old, &self.new, &found];
        let files: BTreeSet<&String> = sides.iter().flat_map(|found| found.keys()).collect();
        let mut expect = serde_json::Map::new();
        for file in files {
            let keys: BTreeSet<&String> =
                sides.iter().filter_map(|found| found.get(file)).flat_map(|said| said.keys()).collect();
            let mut allowed_of_file = serde_json::Map::new();
            for key in keys {
                let state = |found: &Found| found.get(file).and_then(|said| said.get(key)).cloned();
                let (old, new, is) = (state(&self.old), state(&self.new), state(&found));
                let mut allowed = if acknowledged { vec![new] } else { vec![old, new] };
                // Rows travel one lot after the other. The only primary is its own partner, before the handoff's turn or after it.
                if self.scenario == "revert" && key.starts_with("incoming ") {
                    let point = |state: &Value| state.as_i64().unwrap_or(-1);
                    let points =
                        [&self.old, &self.new].into_iter().filter_map(|found| found.get(file)).flatten();
                    let points =
                        points.filter(|(key, _)| key.starts_with("incoming ")).map(|(_, state)| point(state));
                    assert!(
                        is.as_ref().map_or(-1, point) <= points.max().unwrap_or(-1),
                        "{file}: {key}: {is:?}"
                    );
                    allowed.push(is.clone());
                }
                assert!(allowed.contains(&is), "{file}: {key}: {is:?}, not one of {allowed:?}");
                allowed_of_file.insert(key.clone(), json!(allowed));
            }
            expect.insert(file.clone(), allowed_of_file.into());
        }
        if self.scenario == "revert" {
            self.check_reverted(&found);
        }
        self.check_later_rows(folder, &found);
        std::fs::write(original.join("expect.json"), Value::from(expect).to_string()).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// No row is on neither device.
    fn check_reverted(&self, found: &Found) {
        for name in ["c", "empty"] {
            let on = |found: &Found, device: &str| {
                let file = Path::new(device).join(db_file(Some(name)));
                let said = found.get(file.to_str().unwrap()).cloned().unwrap_or_default();
                said.into_keys().filter(|key| key.starts_with("row ")).collect::<BTreeSet<_>>()
            };
            let before = &on(&self.old, "sda1") | &on(&self.old, "sda2");
            assert_eq!(before, &on(found, "sda1") | &on(found, "sda2"), "{name}");
        }
    }

    fn check_later_rows(&self, folder: &Path, found: &Found) {
        for (file, said) in found.iter().filter(|(_, said)| said.contains_key("put_timestamp")) {
            let path = folder.join(file);
            let later = if file.contains("/accounts/") {
                let mut broker = account(&path);
                let (put, zero) = (stamp(LATER), || Count::Number(0));
                let record = ContainerRecord::new("later".into(), put, "0".into(), zero(), zero(), zero());
                broker.put_container(record).unwrap();
                says(&mut broker)
            } else {
                let mut broker = container(&path);
                broker.put_object(row("later", LATER)).unwrap();
                says(&mut broker)
            };
            let mut later = later.unwrap();
            assert!(later.remove("row later").is_some(), "{file}");
            assert_eq!(&later, said, "{file}");
        }
    }
}
