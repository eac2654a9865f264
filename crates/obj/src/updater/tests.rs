//! Passes over a device, with container servers that answer as told.

use std::collections::HashMap;

use common::pickle::Value as Pickle;
use common::{Clock, HashConf, SwiftConf, pickle};
use service::disk_pool::DiskPools;
use service::http::{Request, Response, Server, ServerHandle, app_fn};
use service::logs::{Lines, Logger};

use super::*;
use crate::testing::save_container_ring;

const NOW: u64 = 1_700_000_000;

/// Three container servers on one address; what each node answers next is up to the test.
struct Cluster {
    dir: tempfile::TempDir,
    updater: Arc<Updater>,
    seen: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<HashMap<String, (u16, &'static str)>>>,
    lines: Lines,
    _server: ServerHandle,
}

impl Cluster {
    fn new(options: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("node/sda1")).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        save_container_ring(dir.path(), port);
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let answers: Arc<Mutex<HashMap<String, (u16, &'static str)>>> = Arc::default();
        let (log, told) = (seen.clone(), answers.clone());
        let app = app_fn(move |req: Request| {
            let device = req.path.split('/').nth(1).unwrap_or_default().to_owned();
            log.lock().push(format!("{} {}", req.method, req.path));
            let (status, location) = told.lock().get(&device).copied().unwrap_or((201, ""));
            async move {
                let response = Response::error(status);
                match location {
                    "" => response,
                    location => response
                        .with_header("Location", location)
                        .with_header("X-Backend-Redirect-Timestamp", "1700000001.00000"),
                }
            }
        });
        let server = Server::start(vec![listener], app, Default::default()).unwrap();
        let (logger, lines) = Logger::memory();
        let text = b"[swift-hash]\nswift_hash_path_suffix = endcap\n\
            [storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n";
        let ctx = Context::builder("object-updater")
            .logger(logger)
            .clock(Clock::manual(Timestamp::from_raw(NOW * 100_000)))
            .swift_conf(Arc::new(SwiftConf::parse(text, "swift.conf", dir.path()).unwrap()))
            .disk_pools(DiskPools::inline())
            .recon_cache_path(dir.path())
            .build();
        let devices = dir.path().join("node").display().to_string();
        let mut pairs =
            vec![("devices", devices.as_str()), ("mount_check", "false"), ("objects_per_second", "0")];
        pairs.extend(options);
        let updater = Arc::new(Updater::new(&Section::from_pairs(NAME, pairs), &ctx).unwrap());
        Cluster { dir, updater, seen, answers, lines, _server: server }
    }

    fn device(&self) -> PathBuf {
        self.dir.path().join("node/sda1")
    }

    /// Leaves an update as an object server does.
    fn leave(&self, policy: u32, obj: &str, at: u64) -> PathBuf {
        let hash =
            HashConf { prefix: vec![], suffix: b"endcap".to_vec() }.hash_path("a", Some("c"), Some(obj));
        let dir =
            self.device().join(data_dir(ASYNC_BASE, PolicyIndex(policy))).join(hash.suffix().to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let timestamp = Timestamp::from_raw(at * 100_000).internal();
        let headers = vec![("X-Timestamp".into(), timestamp.as_str().into()), ("X-Size".into(), "5".into())];
        let items: Vec<(Pickle, Pickle)> = vec![
            ("op".into(), "PUT".into()),
            ("account".into(), "a".into()),
            ("container".into(), "c".into()),
            ("obj".into(), obj.into()),
            ("headers".into(), Pickle::HeaderKeyDict(headers)),
        ];
        let path = dir.join(format!("{hash}-{timestamp}"));
        std::fs::write(&path, pickle::dumps(&Pickle::Dict(items))).unwrap();
        path
    }

    async fn pass(&self) -> Vec<String> {
        self.seen.lock().clear();
        self.updater.clone().sweep_all().await;
        let mut seen = self.seen.lock().clone();
        seen.sort();
        seen
    }

    fn answer(&self, device: &str, status: u16, location: &'static str) {
        self.answers.lock().insert(device.to_owned(), (status, location));
    }

    fn recon(&self) -> serde_json::Map<String, Value> {
        common::recon::load_recon(&self.dir.path().join("object.recon")).unwrap()
    }
}

fn devices(seen: &[String]) -> Vec<&str> {
    seen.iter().filter_map(|line| line.split('/').nth(1)).collect()
}

#[tokio::test]
async fn updates_of_all_policies_are_sent_to_all_nodes_and_removed() {
    let cluster = Cluster::new(&[]);
    let paths = [cluster.leave(0, "o", NOW), cluster.leave(1, "p \u{e9}", NOW)];
    let seen = cluster.pass().await;
    assert_eq!(seen.len(), 6);
    assert!(seen[0].starts_with("PUT /c0/") && seen[0].ends_with("/a/c/o"), "{seen:?}");
    assert!(seen[1].ends_with("/a/c/p \u{e9}"), "{seen:?}");
    for path in paths {
        assert!(!path.exists());
        assert!(!path.parent().unwrap().exists());
    }
    assert!(cluster.lines.contains("2 successes, 0 failures, 0 quarantines, 2 unlinks, 0 outdated_unlinks"));
    assert!(cluster.pass().await.is_empty());
    assert_eq!(cluster.recon()["object_updater_stats"]["failures_account_container_count"], 0);
}

#[tokio::test]
async fn only_the_newest_update_of_an_object_is_sent() {
    let cluster = Cluster::new(&[]);
    let (old, new) = (cluster.leave(0, "o", NOW), cluster.leave(0, "o", NOW + 1));
    cluster.answer("c0", 503, "");
    cluster.pass().await;
    assert!(!old.exists());
    assert!(new.exists());
    assert!(cluster.lines.contains("1 outdated_unlinks"));
}

#[tokio::test]
async fn nodes_that_have_it_are_not_told_again() {
    let cluster = Cluster::new(&[]);
    let path = cluster.leave(0, "o", NOW - 60);
    cluster.answer("c1", 507, "");
    assert_eq!(devices(&cluster.pass().await), ["c0", "c1", "c2"]);
    let update = pickle::loads(&std::fs::read(&path).unwrap()).unwrap();
    let Some(Pickle::List(ids)) = update.get("successes") else { panic!("{update}") };
    let mut ids: Vec<i64> = ids.iter().filter_map(Pickle::as_int).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 2]);
    let stats = &cluster.recon()["object_updater_stats"];
    assert_eq!(stats["failures_oldest_timestamp"], (NOW - 60) as f64);
    assert_eq!(stats["failures_oldest_timestamp_age"], 60.0);
    assert_eq!(cluster.recon()["object_updater_per_device"]["sda1"]["failures_account_container_count"], 1);
    assert_eq!(devices(&cluster.pass().await), ["c1"]);
    cluster.answer("c1", 201, "");
    assert_eq!(devices(&cluster.pass().await), ["c1"]);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_redirected_update_goes_to_the_shard_at_once() {
    let cluster = Cluster::new(&[]);
    let path = cluster.leave(0, "o", NOW);
    for device in ["c0", "c1", "c2"] {
        cluster.answer(device, 301, "/.shards_a/c-1/o");
    }
    let seen = cluster.pass().await;
    let of = |container: &str| seen.iter().filter(|line| line.contains(container)).count();
    assert_eq!((of("/a/c/o"), of("/.shards_a/c-1/o")), (3, 3));
    // The shard sends it to itself: back to the root.
    let update = PendingUpdate::parse(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(update.destination(), ("a".into(), "c".into()));
}

#[tokio::test]
async fn junk_is_quarantined_or_left_and_never_stops_a_pass() {
    let cluster = Cluster::new(&[]);
    let path = cluster.leave(0, "o", NOW);
    let bad = cluster.leave(0, "bad", NOW);
    std::fs::write(&bad, b"\x80\x02garbage").unwrap();
    std::fs::write(path.with_file_name("junk"), "").unwrap();
    std::fs::write(cluster.device().join("async_pending/file"), "").unwrap();
    std::fs::create_dir(cluster.device().join("async_pending-9")).unwrap();
    assert_eq!(cluster.pass().await.len(), 3);
    assert!(cluster.device().join("quarantined/objects").join(bad.file_name().unwrap()).exists());
    assert!(path.with_file_name("junk").exists());
    assert!(cluster.lines.contains("ERROR Pickle problem unpickling, quarantining"));
    assert!(cluster.lines.contains("ERROR async pending file with unexpected name"));
    assert!(cluster.lines.contains("Directory 'async_pending-9' does not map to a valid policy"));
    assert!(cluster.lines.contains("1 successes, 0 failures, 1 quarantines"));
}

#[tokio::test]
async fn a_busy_container_does_not_take_all_there_is() {
    let options = [("max_objects_per_container_per_second", "1"), ("max_deferred_updates", "0")];
    let cluster = Cluster::new(&options);
    for i in 0..5 {
        cluster.leave(0, &format!("o{i}"), NOW);
    }
    assert_eq!(cluster.pass().await.len(), 3);
    assert!(cluster.lines.contains("4 skips, 4 deferrals, 0 drains"));
}

#[tokio::test]
async fn an_unmounted_device_is_skipped() {
    let cluster = Cluster::new(&[("mount_check", "true")]);
    cluster.leave(0, "o", NOW);
    assert!(cluster.pass().await.is_empty());
    assert!(cluster.lines.contains("is not mounted"));
}
