//! Databases that a server or a replicator has read before: whatever is done to them is seen at once, and as long as nothing is they are
//! not read again. The same with Python's brokers is shown beside real Swift.

use super::replicate::{container, database, hash, object, shared};
use super::replicator::{Cluster, contents, record};
use super::*;
use crate::broker::Options;
use crate::container::broker::ContainerBroker;
use crate::replication::{Replicated, SyncPoint, Syncs};
use common::fs::{KernelTime, SETTLED, Stamp};
use rusqlite::Connection;
use serde_json::json;
use service::daemon::Mode;
use std::time::Duration;

/// A server that keeps what it knows, and one that keeps nothing, each with a copy of the same database.
struct Pair([(Node, SharedApp); 2]);

impl Pair {
    /// `is_pended`: something has been pending before.
    fn new(is_pended: bool) -> Self {
        let made = Node::new();
        let file = database(&made, "c");
        let mut broker = container(&file, &["one", "two"]);
        if is_pended {
            broker.put_object(object("three")).unwrap();
            broker.info().unwrap();
        }
        drop(broker);
        Self(["16", "0"].map(|known_databases| {
            let node = Node::new();
            let there = database(&node, "c");
            std::fs::create_dir_all(there.parent().unwrap()).unwrap();
            for name in std::fs::read_dir(file.parent().unwrap()).unwrap() {
                let from = name.unwrap().path();
                std::fs::copy(&from, there.with_file_name(from.file_name().unwrap())).unwrap();
            }
            let (ctx, _) = node.context("container-server");
            let section = node.section("app:container-server", &[("known_databases", known_databases)]);
            let server = crate::container::server::app(&section, &ctx).unwrap();
            (node, server)
        }))
    }

    /// Asks both until the first one knows its database; what they say by then.
    async fn learned(&self) -> String {
        self.ask(&theirs()).await;
        settle(&database(&self.0[0].0, "c"));
        self.ask(&theirs()).await
    }

    /// What both answer, which must be the same.
    async fn ask(&self, theirs: &serde_json::Value) -> String {
        let [known, anew] = [sync(&self.0[0], theirs).await, sync(&self.0[1], theirs).await];
        assert_eq!(known, anew, "{theirs}");
        known
    }
}

/// What a replica asks that has nothing which the database has not.
fn theirs() -> serde_json::Value {
    let put = "1700000000.00000";
    json!(["sync", -1, "0".repeat(32), "their-id", format!("{NOW}.00000"), put, "0", "", put, 0, 0])
}

async fn sync((node, server): &(Node, SharedApp), theirs: &serde_json::Value) -> String {
    let path = format!("/sda/1/{}", hash(node, "c"));
    let response = server.call(Request::new(Method::Replicate, path).with_body(theirs.to_string())).await;
    let status = response.status.0;
    format!("{status} {}", text_of(response).await)
}

fn settle(db_file: &Path) {
    let is_settled = |path: &Path| Stamp::at(path).unwrap().is_settled(KernelTime::now(), SETTLED);
    while !is_settled(db_file) || !is_settled(db_file.parent().unwrap()) {
        std::thread::yield_now();
    }
}

/// Nobody can read the database as long as this lives.
fn locked(db_file: &Path) -> Connection {
    let sqlite = Connection::open(db_file).unwrap();
    sqlite.execute_batch("BEGIN EXCLUSIVE").unwrap();
    sqlite
}

fn broker(db_file: &Path) -> ContainerBroker {
    ContainerBroker::new(&shared(), db_file, Options::default())
}

/// Written in place: nothing appears beside the file meanwhile.
fn without_journal(db_file: &Path, sql: &str) {
    let sqlite = Connection::open(db_file).unwrap();
    sqlite.execute_batch(&format!("PRAGMA journal_mode = OFF; {sql}")).unwrap();
}

#[tokio::test]
async fn a_known_database_is_not_read_again() {
    let pair = Pair::new(true);
    let told = pair.learned().await;
    assert!(told.starts_with("200 ") && told.contains("\"point\": -1"), "{told}");
    let lock = locked(&database(&pair.0[0].0, "c"));
    assert_eq!(sync(&pair.0[0], &theirs()).await, told);
    // Where somebody may be about to send a file.
    let tmp = pair.0[0].0.device().join("tmp");
    std::fs::remove_dir(&tmp).unwrap();
    assert_eq!(sync(&pair.0[0], &theirs()).await, told);
    assert!(tmp.exists());
    drop(lock);
    std::fs::remove_dir_all(pair.0[0].0.device()).unwrap();
    assert!(sync(&pair.0[0], &theirs()).await.starts_with("507"));
}

#[tokio::test]
async fn every_change_of_a_known_database_is_seen() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 14] = [
        ("rows", |file| broker(file).merge_items(vec![object("new")]).unwrap()),
        ("a row that waits", |file| broker(file).put_object(object("new")).unwrap()),
        ("metadata", |file| {
            let mut metadata = crate::metadata::Metadata::default();
            metadata.set("X-Container-Meta-A".into(), "a".into(), format!("{NOW}.00000"));
            broker(file).db().update_metadata(&metadata, None).unwrap();
        }),
        ("deleted", |file| broker(file).db().delete_db(&format!("{NOW}.00000")).unwrap()),
        ("another policy", |file| {
            broker(file).set_storage_policy_index(1, &format!("{NOW}.00000")).unwrap();
        }),
        ("a sync point", |file| {
            let point = SyncPoint { remote_id: "their-id".into(), sync_point: 7 };
            broker(file).db().merge_syncs(&[point], Syncs::Incoming).unwrap();
        }),
        ("what the account was told", |file| {
            let told = broker(file).info().unwrap();
            broker(file).reported(&told).unwrap();
        }),
        ("another program", |file| {
            let sql = "UPDATE container_info SET put_timestamp = '1700000001.00000'";
            Connection::open(file).unwrap().execute_batch(sql).unwrap();
        }),
        ("without a journal", |file| without_journal(file, "UPDATE container_info SET id = 'x'")),
        ("another epoch", |file| {
            let newer = file.with_file_name(format!("{}_1700000005.00000.db", stem(file)));
            std::fs::copy(file, &newer).unwrap();
            without_journal(&newer, "UPDATE container_info SET id = 'newer'");
        }),
        ("another file of that name", |file| {
            let other = file.with_extension("other");
            std::fs::copy(file, &other).unwrap();
            without_journal(&other, "UPDATE container_info SET id = 'other'");
            common::fs::rename_durable(&other, file).unwrap();
        }),
        ("another hash dir of that name", |file| {
            let (dir, other) = (file.parent().unwrap(), file.parent().unwrap().with_extension("other"));
            std::fs::create_dir(&other).unwrap();
            let copy = other.join(file.file_name().unwrap());
            std::fs::copy(file, &copy).unwrap();
            without_journal(&copy, "UPDATE container_info SET id = 'moved'");
            common::fs::rename_durable(dir, &dir.with_extension("away")).unwrap();
            common::fs::rename_durable(&other, dir).unwrap();
        }),
        ("moved away", |file| {
            let dir = file.parent().unwrap();
            common::fs::rename_durable(dir, &dir.with_extension("away")).unwrap();
        }),
        ("unlinked", |file| common::fs::remove_file(file).unwrap()),
    ];
    for is_pended in [false, true] {
        for (name, change) in changes {
            let pair = Pair::new(is_pended);
            let before = pair.learned().await;
            for (node, _) in &pair.0 {
                change(&database(node, "c"));
            }
            assert_ne!(pair.ask(&theirs()).await, before, "{name}");
        }
    }
}

/// A request that tells something new is not answered out of memory.
#[tokio::test]
async fn what_a_replica_tells_is_merged_into_a_known_database() {
    let metadata = json!({"X-Container-Meta-A": ["a", format!("{NOW}.00000")]}).to_string();
    let hash =
        container(&tempfile::tempdir().unwrap().path().join("d/containers/1/abc/h/h.db"), &["one", "two"])
            .info()
            .unwrap()
            .hash;
    let news: [&[(usize, serde_json::Value)]; 6] = [
        &[(5, json!("1700000003.00000"))],
        &[(6, json!("1700000003.00000"))],
        &[(4, json!("1600000000.00000"))],
        &[(7, json!(metadata))],
        &[(1, json!(7)), (2, json!(hash))],
        // It had its policy before ours, so it is right.
        &[(8, json!("1600000000.00000")), (10, json!(1))],
    ];
    for told in news {
        let pair = Pair::new(false);
        let before = pair.learned().await;
        let mut request = theirs();
        told.iter().for_each(|(at, word)| request[*at] = word.clone());
        pair.ask(&request).await;
        assert_ne!(pair.ask(&theirs()).await, before, "{told:?}");
    }
    let pair = Pair::new(false);
    pair.learned().await;
    for bad in [json!(["sync"]), json!(["sync", "x"])] {
        assert!(pair.ask(&bad).await.starts_with("500"));
    }
}

#[tokio::test]
async fn of_a_container_with_epochs_nothing_is_known() {
    let pair = Pair::new(false);
    let newer = |node: &Node| {
        let file = database(node, "c");
        file.with_file_name(format!("{}_1700000005.00000.db", stem(&file)))
    };
    for (node, _) in &pair.0 {
        std::fs::copy(database(node, "c"), newer(node)).unwrap();
    }
    let before = pair.learned().await;
    for (node, _) in &pair.0 {
        without_journal(&newer(node), "UPDATE container_info SET id = 'x'");
    }
    assert_ne!(pair.ask(&theirs()).await, before);
}

#[tokio::test]
async fn a_daemon_reads_a_database_in_sync_once_and_sees_what_waits() {
    let mut cluster = Cluster::new(2, 2);
    let mut broker = cluster.container(0);
    broker.initialize("a", "c", "1700000000.00000", 0).unwrap();
    broker.merge_items(vec![record("one", 1, false)]).unwrap();
    drop(broker);
    let daemon = cluster.daemon(0, 1);
    // Made there; known there to be in sync; seen here, and by the server, after it has settled.
    for _ in 0..4 {
        daemon.run_pass(Mode::Forever).await;
        (0..2).for_each(|node| settle(&cluster.container(node).db().db_file));
    }
    let locks = [0, 1].map(|node| locked(&cluster.container(node).db().db_file));
    daemon.run_pass(Mode::Forever).await;
    assert_eq!(cluster.errors(), Vec::<String>::new());
    let recon = std::fs::read_to_string(cluster.dir().join(service::recon::CONTAINER_FILE)).unwrap();
    let recon: serde_json::Value = serde_json::from_str(&recon).unwrap();
    let stats = &recon["replication_stats"];
    assert_eq!(
        (&stats["attempted"], &stats["success"], &stats["no_change"]),
        (&json!(1), &json!(1), &json!(1))
    );
    drop(locks);
    cluster.container(0).put_object(record("two", 2, false)).unwrap();
    daemon.run_pass(Mode::Forever).await;
    let [here, there] = [0, 1].map(|node| contents(&mut cluster.container(node)));
    assert_eq!((here.1, &here), (2, &there));
}

/// What a daemon has seen that nothing touches, until the time comes to reclaim something of it.
#[tokio::test]
async fn what_becomes_due_in_a_known_database_is_reclaimed() {
    type Make = fn(&mut ContainerBroker);
    let left = |sql: &'static str| {
        move |broker: &mut ContainerBroker| {
            broker.db().read(|sqlite| sqlite.query_row(sql, [], |row| row.get::<_, i64>(0))).unwrap()
        }
    };
    let far = Duration::from_secs(100 * 365 * 86400);
    let cases: [(&str, Make, &str); 3] = [
        (
            "a tombstone",
            |broker| broker.merge_items(vec![record("gone", 1, true)]).unwrap(),
            "SELECT count(*) FROM object",
        ),
        (
            "metadata",
            |broker| {
                let mut removed = crate::metadata::Metadata::default();
                removed.set("X-Container-Meta-A".into(), String::new(), format!("{NOW}.00000"));
                broker.db().update_metadata(&removed, None).unwrap();
            },
            "SELECT count(*) FROM container_info WHERE metadata LIKE '%Meta-A%'",
        ),
        (
            "a sync point",
            |broker| {
                let point = SyncPoint { remote_id: "gone".into(), sync_point: 1 };
                broker.db().merge_syncs(&[point], Syncs::Incoming).unwrap();
            },
            "SELECT count(*) FROM incoming_sync WHERE remote_id = 'gone'",
        ),
    ];
    for (name, make, sql) in cases {
        let mut cluster = Cluster::new(1, 1);
        let mut broker = cluster.container(0);
        broker.initialize("a", "c", "1700000000.00000", 0).unwrap();
        make(&mut broker);
        drop(broker);
        let daemon = cluster.daemon(0, 1);
        for _ in 0..3 {
            settle(&cluster.container(0).db().db_file);
            daemon.run_pass(Mode::Forever).await;
        }
        assert_eq!(left(sql)(&mut cluster.container(0)), 1, "{name}");
        cluster.clock().advance(far);
        daemon.run_pass(Mode::Forever).await;
        assert_eq!(left(sql)(&mut cluster.container(0)), 0, "{name}");
    }
}

#[tokio::test]
async fn a_known_database_is_removed_when_it_has_been_deleted_for_long() {
    let mut cluster = Cluster::new(1, 1);
    let mut broker = cluster.container(0);
    broker.initialize("a", "c", "1700000000.00000", 0).unwrap();
    broker.db().delete_db(&format!("{}.00000", NOW - 10)).unwrap();
    let told = broker.info().unwrap();
    broker.reported(&told).unwrap();
    let file = broker.db().db_file.clone();
    drop(broker);
    let daemon = cluster.daemon(0, 1);
    for _ in 0..3 {
        settle(&file);
        daemon.run_pass(Mode::Forever).await;
    }
    assert!(file.exists());
    cluster.clock().advance(Duration::from_secs(700_000));
    daemon.run_pass(Mode::Forever).await;
    assert!(!file.exists());
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap().to_string_lossy().into_owned()
}
