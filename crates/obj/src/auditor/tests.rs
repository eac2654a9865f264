//! Passes over devices with sound, broken and odd objects.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use common::config::SwiftConf;
use common::{PolicyIndex, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};
use service::daemon::DaemonArgs;
use service::http::{Request, Response, Server, ServerHandle, app_fn};
use service::logs::{Level, Lines, Logger};

use super::*;
use crate::diskfile::Metadata;
use crate::testing::save_container_ring;

const OLD: f64 = 1_700_000_000.0;

/// A node with the devices sda and sdb.
struct Node {
    dir: tempfile::TempDir,
    ctx: Context,
    lines: Lines,
}

impl Node {
    fn new() -> Self {
        Self::with_args(DaemonArgs::default())
    }

    fn with_args(args: DaemonArgs) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for device in ["sda", "sdb"] {
            fs::create_dir_all(dir.path().join("node").join(device)).unwrap();
        }
        let text = b"[swift-hash]\nswift_hash_path_suffix = endcap\n\
            [storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n\
            [storage-policy:2]\nname = coded\npolicy_type = erasure_coding\nec_type = liberasurecode_rs_vand\n\
            ec_num_data_fragments = 2\nec_num_parity_fragments = 1\n";
        let (logger, lines) = Logger::memory();
        let ctx = Context::builder(NAME)
            .logger(logger)
            .swift_conf(Arc::new(SwiftConf::parse(text, "swift.conf", dir.path()).unwrap()))
            .recon_cache_path(dir.path())
            .args(args)
            .build();
        Node { dir, ctx, lines }
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("node/sda")
    }

    fn auditor(&self, options: &str) -> Result<Arc<Auditor>, ConfigError> {
        let devices = self.dir.path().join("node");
        // What the options do not set is without limit.
        let text = format!(
            "[DEFAULT]\ndevices = {}\nmount_check = no\nfiles_per_second = 0\nbytes_per_second = 0\n\
             zero_byte_files_per_second = 0\n[object-auditor]\n{options}\n",
            devices.display()
        );
        Auditor::new(&Conf::parse(&text, "object-server.conf").unwrap(), &self.ctx).map(Arc::new)
    }

    async fn audit(&self, options: &str) {
        self.auditor(options).unwrap().audit(Mode::Once).await;
    }

    fn diskfile(&self, policy: u32, partition: u32, name: &str) -> crate::diskfile::DiskFile {
        // A tombstone is not to be removed at once.
        let auditor = self.auditor("reclaim_age = 10000000000").unwrap();
        let manager = auditor.managers.iter().find(|m| m.policy() == PolicyIndex(policy)).unwrap();
        manager.diskfile("sda", partition, "a", "c", name).unwrap()
    }

    /// Puts an object with the ETag of `etag_of`; returns its data file.
    fn put(&self, policy: u32, partition: u32, name: &str, body: &[u8], etag_of: &[u8]) -> PathBuf {
        let mut metadata = Metadata::new();
        metadata.insert("X-Timestamp", Timestamp::from_secs_f64(OLD).internal());
        metadata.insert("Content-Length", body.len().to_string());
        metadata.insert("ETag", common::digest::hex(&common::digest::md5(etag_of)));
        let diskfile = self.diskfile(policy, partition, name);
        diskfile.put_small(body, metadata).unwrap();
        diskfile.datadir().join(format!("{}.data", Timestamp::from_secs_f64(OLD).internal()))
    }

    fn quarantined(&self, datadir: &str) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.device().join("quarantined").join(datadir)) else {
            return BTreeSet::new();
        };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn recon(&self) -> Value {
        Value::Object(common::recon::load_recon(&self.dir.path().join("object.recon")).unwrap())
    }

    fn status(&self, text: &str) -> PathBuf {
        let path = self.device().join("objects/auditor_status_ALL.json");
        fs::write(&path, text).unwrap();
        path
    }

    fn ended(&self) -> String {
        let lines = self.lines.all().into_iter().map(|(_, line)| line);
        lines.filter(|line| line.contains("mode completed")).collect::<Vec<_>>().join("\n")
    }
}

fn hash_name(data_file: &Path) -> String {
    data_file.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

fn age(path: &Path, secs: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let now = SystemTime::UNIX_EPOCH + common::Clock::system().since_epoch();
    file.set_modified(now - Duration::from_secs(secs)).unwrap();
}

fn truncate(path: &Path) {
    fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
}

#[tokio::test]
async fn what_is_broken_is_quarantined_and_counted() {
    let node = Node::new();
    node.put(0, 1, "sound", b"body", b"body");
    node.put(0, 1, "empty", b"", b"");
    node.put(1, 1, "silver", b"body", b"body");
    let wrong = node.put(0, 2, "wrong", b"body", b"else");
    let silver = node.put(1, 2, "silver wrong", b"body", b"else");
    let cut = node.put(0, 3, "cut", b"body", b"body");
    truncate(&cut);
    node.diskfile(0, 4, "gone").delete(Timestamp::from_secs_f64(OLD)).unwrap();
    let junk = node.device().join("objects/4/abc");
    fs::create_dir_all(&junk).unwrap();
    fs::write(junk.join("junk"), "x").unwrap();
    node.audit("log_time = 0\nobject_size_stats = 1, 10").await;
    let expected = [hash_name(&wrong), hash_name(&cut), "junk".to_owned()];
    assert_eq!(node.quarantined("objects"), BTreeSet::from(expected));
    assert_eq!(node.quarantined("objects-1"), BTreeSet::from([hash_name(&silver)]));
    assert!(node.ended().contains("Total quarantined: 4, Total errors: 0"), "{}", node.ended());
    assert!(node.lines.contains(r#"Object audit stats: {"1": 1, "10": 4, "OVER": 0}"#));
    let line =
        format!("ERROR Object {} failed audit and was quarantined: ETag", wrong.parent().unwrap().display());
    assert!(node.lines.contains(&line));
    assert_eq!(node.recon()["object_auditor_stats_ALL"]["errors"], 0);
    assert!(!node.device().join("objects/auditor_status_ALL.json").exists());
}

#[tokio::test]
async fn the_other_kind_of_pass_looks_at_sizes_only() {
    let node = Node::new();
    node.put(0, 2, "wrong", b"body", b"else");
    let cut = node.put(0, 3, "cut", b"body", b"body");
    truncate(&cut);
    let args = DaemonArgs { zero_byte_fps: Some(0.0), ..DaemonArgs::default() };
    let ctx = Context::builder(NAME)
        .logger(node.ctx.logger.clone())
        .swift_conf(node.ctx.swift_conf.clone())
        .recon_cache_path(node.dir.path())
        .args(args)
        .build();
    let node = Node { ctx, ..node };
    node.audit("").await;
    assert_eq!(node.quarantined("objects"), BTreeSet::from([hash_name(&cut)]));
    assert!(node.ended().contains("Object audit (ZBF) \"once\" mode completed"));
    assert!(!node.lines.contains("(ALL)"));
}

#[tokio::test]
async fn both_kinds_run_side_by_side() {
    let node = Node::new();
    node.put(0, 2, "o", b"body", b"body");
    node.audit("zero_byte_files_per_second = 1000").await;
    let recon = node.recon();
    for key in ["object_auditor_stats_ALL", "object_auditor_stats_ZBF"] {
        assert_eq!(recon[key]["passes"], 1, "{recon}");
    }
    assert_eq!(recon["object_auditor_stats_ALL"]["bytes_processed"], 4);
    assert_eq!(recon["object_auditor_stats_ZBF"]["bytes_processed"], 0);
}

#[tokio::test]
async fn large_objects_are_read_to_their_end() {
    let node = Node::new();
    let body = vec![7; 3 * 1024 * 1024 + 5];
    node.put(0, 1, "sound", &body, &body);
    let wrong = node.put(0, 2, "wrong", &body, &body[1..]);
    node.audit("disk_chunk_size = 4096").await;
    assert_eq!(node.quarantined("objects"), BTreeSet::from([hash_name(&wrong)]));
}

#[tokio::test]
async fn a_pass_goes_on_where_the_last_one_was_cut_off() {
    let node = Node::new();
    let [first, second] = [1, 2].map(|part| node.put(0, part, &format!("o{part}"), b"body", b"else"));
    let status = node.status(r#"{"partitions": ["2", "auditor_status_ALL.json"]}"#);
    node.audit("").await;
    assert_eq!(node.quarantined("objects"), BTreeSet::from([hash_name(&second)]));
    assert!(!status.exists(), "a new pass begins at the beginning");
    node.audit("").await;
    assert_eq!(node.quarantined("objects"), BTreeSet::from([hash_name(&first), hash_name(&second)]));
}

#[tokio::test]
async fn a_position_that_cannot_be_read_is_no_position() {
    for broken in ["{\"partitions\": [", "[]", "{\"partitions\": [\"../../sdb\"]}"] {
        let node = Node::new();
        let wrong = node.put(0, 1, "o", b"body", b"else");
        node.status(broken);
        node.audit("").await;
        assert_eq!(node.quarantined("objects"), BTreeSet::from([hash_name(&wrong)]), "{broken}");
        assert!(node.lines.at_least(Level::Warning).iter().any(|line| line.contains("Loading JSON from")));
    }
}

#[tokio::test]
async fn a_walk_writes_its_position() {
    let node = Node::new();
    node.put(0, 1, "o", b"body", b"body");
    let manager = node.auditor("").unwrap().managers[0].clone();
    let mut walk = crate::diskfile::AuditWalk::open(&manager, "sda", AuditorType::All).unwrap();
    let status = node.device().join("objects/auditor_status_ALL.json");
    assert_eq!(walk.next_batch().map(|batch| batch.len()), Some(1));
    assert_eq!(fs::read_to_string(&status).unwrap(), r#"{"partitions": ["1"]}"#);
    assert_eq!(manager.audit_partitions("sda", AuditorType::All), 1);
    assert!(walk.next_batch().is_none());
    assert_eq!(fs::read_to_string(&status).unwrap(), r#"{"partitions": []}"#);
    assert_eq!(walk.partitions_done(), 1);
}

#[tokio::test]
async fn only_stale_files_of_rsync_are_removed() {
    let node = Node::new();
    let data = node.put(0, 1, "o", b"body", b"body");
    let beside = |name: &str| {
        let path = data.with_file_name(name);
        fs::write(&path, "half").unwrap();
        path
    };
    let (stale, fresh) = (beside(".1700000001.00000.data.Xy095a"), beside(".1700000001.00000.data.Xy095b"));
    let other = beside(".1700000001.00000.data.toolong7");
    [&stale, &other].into_iter().for_each(|path| age(path, 2000));
    node.audit("[object-replicator]\nrsync_timeout = 1200").await;
    assert!(stale.exists(), "the replicator may still be at it");
    node.audit("[object-replicator]").await;
    assert!(!stale.exists() && fresh.exists() && other.exists());
}

#[test]
fn the_age_of_stale_files_follows_the_replicator() {
    let node = Node::new();
    let timeout = |options| node.auditor(options).map(|auditor| auditor.rsync_tempfile_timeout);
    assert_eq!(timeout("").unwrap(), 86_400.0);
    assert_eq!(timeout("[object-replicator]").unwrap(), 1800.0);
    assert_eq!(
        timeout("rsync_tempfile_timeout = AUTO\n[object-replicator]\nrsync_timeout = 60").unwrap(),
        960.0
    );
    assert_eq!(timeout("rsync_tempfile_timeout = 7\n[object-replicator]").unwrap(), 7.0);
    assert!(timeout("rsync_tempfile_timeout = soon").is_err());
}

#[tokio::test]
async fn suffixes_of_old_tombstones_are_marked() {
    let node = Node::new();
    let diskfile = node.diskfile(0, 1, "gone");
    diskfile.delete(Timestamp::from_secs_f64(OLD)).unwrap();
    let invalid = node.device().join("objects/1/hashes.invalid");
    let clear = || fs::write(&invalid, "").unwrap();
    let marked = || !fs::read(&invalid).unwrap().is_empty();
    clear();
    node.audit("reclaim_age = 10000000000").await;
    assert!(!marked());
    node.audit("[object-replicator]\nreclaim_age = 10000000000").await;
    assert!(!marked(), "the replicator's reclaim_age counts without one of the auditor's own");
    node.audit("").await;
    assert!(marked());
}

#[tokio::test]
async fn devices_in_parallel_have_figures_of_their_own() {
    let node = Node::new();
    node.put(0, 1, "o", b"body", b"body");
    node.audit("concurrency = 2").await;
    assert_eq!(node.recon()["object_auditor_stats_ALL"]["sda"]["passes"], 1);
    assert!(node.ended().contains("(ALL - parallel, sdb)"), "{}", node.ended());
}

#[tokio::test]
async fn the_command_line_chooses_devices() {
    let node =
        Node::with_args(DaemonArgs { devices: vec!["sdb".into(), "sdx".into()], ..DaemonArgs::default() });
    node.put(0, 1, "o", b"body", b"else");
    node.audit("").await;
    assert!(node.quarantined("objects").is_empty());
    assert!(node.ended().contains("(ALL - parallel, sdb)"));
}

#[test]
fn watchers_must_exist() {
    let node = Node::new();
    let err = node.auditor("watchers = swift#dark_matter").err().unwrap().to_string();
    assert!(err.contains("[object-auditor] watchers = swift#dark_matter: there is no watcher"), "{err}");
    let auditor = node.auditor("watchers = swift#dark_data").unwrap();
    assert_eq!((auditor.managers.len(), auditor.watchers.len()), (3, 1));
}

#[tokio::test]
async fn fragments_must_tell_what_they_are_of() {
    let node = Node::new();
    let put = |name: &str, etag: &str| {
        let mut metadata = Metadata::new();
        metadata.insert("X-Timestamp", Timestamp::from_secs_f64(OLD).internal());
        metadata.insert("Content-Length", "0");
        metadata.insert("ETag", common::digest::hex(&common::digest::md5(b"")));
        metadata.insert("X-Object-Sysmeta-Ec-Frag-Index", "1");
        metadata.insert("X-Object-Sysmeta-Ec-Etag", etag);
        let diskfile = node.diskfile(2, 1, name);
        diskfile.put_small(b"", metadata).unwrap();
        diskfile.hash().to_string()
    };
    put("sound", "etag");
    let bad = put("bad", "");
    node.audit("").await;
    assert_eq!(node.quarantined("objects-2"), BTreeSet::from([bad]));
    assert!(node.lines.contains("Metadata failed validation"));
}

/// Three container servers on one address, of which each answers as told.
struct Containers {
    _server: ServerHandle,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Containers {
    /// `answer` is given the device and the container.
    fn start(
        node: &Node,
        answer: impl Fn(&str, &str) -> (u16, &'static str, Value) + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        save_container_ring(node.dir.path(), port);
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = asked.clone();
        let app = app_fn(move |req: Request| {
            seen.lock().push(req.path_qs());
            let parts: Vec<&str> = req.path.split('/').collect();
            let (status, record_type, listing) = answer(parts[1], parts[4]);
            async move {
                Response::new(status)
                    .with_header("X-Backend-Record-Type", record_type)
                    .with_body(listing.to_string())
            }
        });
        Containers { _server: Server::start(vec![listener], app, Default::default()).unwrap(), asked }
    }
}

const DELETE: &str = "watchers = swift#dark_data\n[object-auditor:watcher:swift#dark_data]\naction = delete";

#[tokio::test]
async fn an_object_that_no_server_lists_is_dark() {
    let node = Node::new();
    let dark = node.put(0, 1, "a o", b"body", b"body");
    let listed = node.put(0, 2, "z", b"body", b"body");
    let containers = Containers::start(&node, |_, _| (200, "object", json!([{"name": "z"}])));
    node.audit(DELETE).await;
    assert!(!dark.parent().unwrap().exists() && listed.exists());
    assert!(node.lines.contains("[audit-watcher swift#dark_data] total unknown 0 ok 1 dark 1"));
    let asked = containers.asked.lock().join("\n");
    assert!(asked.contains("format=json&limit=1&prefix=a%20o&includes=a%20o&states=listing"), "{asked}");
}

#[tokio::test]
async fn dark_objects_are_quarantined_or_only_reported() {
    let node = Node::new();
    let dark = node.put(0, 1, "o", b"body", b"body");
    let _containers = Containers::start(&node, |_, _| (200, "object", json!([])));
    node.audit("watchers = dark_data\naction = burn").await;
    assert!(dark.exists() && node.lines.contains("reporting dark data /a/c/o"));
    assert!(node.lines.contains("Dark data action 'burn' unknown, defaults to action = 'log'"));
    node.audit("watchers = dark_data\naction = quarantine\ngrace_age = 10000000000").await;
    assert!(dark.exists(), "it may still be listed");
    node.audit("watchers = dark_data\naction = quarantine").await;
    assert_eq!(node.quarantined("objects"), BTreeSet::from([hash_name(&dark)]));
    assert!(node.lines.contains("failed audit and was quarantined: Requested by dark_data"));
}

#[tokio::test]
async fn without_every_answer_nothing_is_dark() {
    let node = Node::new();
    let object = node.put(0, 1, "o", b"body", b"body");
    let _containers = Containers::start(&node, |device, _| match device {
        "c1" => (404, "object", json!([])),
        _ => (200, "object", json!([])),
    });
    node.audit(DELETE).await;
    assert!(object.exists());
    assert!(node.lines.contains("total unknown 1 ok 0 dark 0"));
}

#[tokio::test]
async fn shards_are_asked_even_if_they_point_back() {
    let node = Node::new();
    let object = node.put(0, 1, "o", b"body", b"body");
    let shard = |name: &str| (200, "shard", json!([{"name": name, "lower": "", "upper": ""}]));
    let _containers = Containers::start(&node, move |device, container| match (device, container) {
        ("c0", "c") => shard("a/s1"),
        (_, "c") => shard("a/s2"),
        (_, "s2") => (200, "object", json!([{"name": "o"}])),
        _ => (200, "object", json!([])),
    });
    node.audit(DELETE).await;
    assert!(object.exists());
    let circle = Node::new();
    let object = circle.put(0, 1, "o", b"body", b"body");
    let _containers = Containers::start(&circle, move |_, _| shard("a/c"));
    circle.audit(DELETE).await;
    assert!(object.exists());
    assert!(circle.lines.contains("total unknown 1 ok 0 dark 0"));
}

#[tokio::test]
async fn passes_of_zero_byte_files_follow_each_other_while_the_other_kind_runs() {
    let node = Node::new();
    (0..4).for_each(|n| {
        node.put(0, n, &format!("o{n}"), b"body", b"body");
    });
    let auditor =
        node.auditor("files_per_second = 20\nzero_byte_files_per_second = 100000\ninterval = 0.001");
    auditor.unwrap().audit(Mode::Forever).await;
    let lines = node.lines.all();
    let begun = lines.iter().filter(|(_, line)| line.contains("Begin object audit \"forever\" mode (ZBF)"));
    assert!(begun.count() > 1);
}
