//! The REPLICATE verb where it is stricter than Swift's; that it answers as Swift's is shown beside real Swift.

use super::*;
use crate::broker::{Options, Shared};
use crate::container::broker::ContainerBroker;
use crate::container::rows::ObjectRecord;
use crate::replication::{Replicated, Syncs};
use common::fs::fail;
use serde_json::json;

pub(super) fn shared() -> Arc<Shared> {
    Shared::new(Clock::manual(Timestamp::from_secs_f64(NOW as f64)), |_| {})
}

pub(super) fn hash(node: &Node, container: &str) -> String {
    node.swift_conf.hash.hash_path("a", Some(container), None).to_string()
}

pub(super) fn database(node: &Node, container: &str) -> PathBuf {
    let hash = hash(node, container);
    node.device().join(format!("containers/1/{}/{hash}/{hash}.db", &hash[29..]))
}

pub(super) fn object(name: &str) -> ObjectRecord {
    let created_at = format!("{NOW}.00000");
    ObjectRecord {
        name: name.into(),
        created_at,
        size: 1,
        content_type: "t".into(),
        etag: "e".into(),
        ..Default::default()
    }
}

/// A database with these objects, merged in this order.
pub(super) fn container(db_file: &Path, names: &[&str]) -> ContainerBroker {
    let mut broker = ContainerBroker::new(&shared(), db_file, Options::default());
    broker.initialize("a", "c", "1700000000.00000", 0).unwrap();
    broker.merge_items(names.iter().map(|name| object(name)).collect()).unwrap();
    broker
}

async fn replicate(server: &SharedApp, node: &Node, words: serde_json::Value) -> u16 {
    let path = format!("/sda/1/{}", hash(node, "c"));
    let response = server.call(Request::new(Method::Replicate, path).with_body(words.to_string())).await;
    response.status.0
}

fn names(node: &Node) -> Vec<String> {
    let mut broker = ContainerBroker::new(&shared(), &database(node, "c"), Options::default());
    let items = broker.db().items_since(-1, 100).unwrap();
    let rows: serde_json::Value = serde_json::from_slice(&items.json).unwrap();
    rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

/// What rsync would have brought of a container elsewhere.
fn received(node: &Node, id: &str, objects: &[&str]) {
    let elsewhere = node.dir.path().join("elsewhere").join(id).join("sda/containers/1/abc/hash/hash.db");
    drop(container(&elsewhere, objects));
    std::fs::create_dir_all(node.device().join("tmp")).unwrap();
    std::fs::copy(&elsewhere, node.device().join("tmp").join(id)).unwrap();
}

#[tokio::test]
async fn a_merged_database_is_in_sync_with_its_sender_no_further_than_what_was_sent() {
    let node = Node::new();
    drop(container(&database(&node, "c"), &["ours1", "ours2"]));
    received(&node, "their-id", &["a", "b", "c"]);
    let server = node.container_server();
    assert_eq!(replicate(&server, &node, json!(["rsync_then_merge", "their-id"])).await, 204);
    assert_eq!(names(&node), ["a", "b", "c", "ours1", "ours2"]);
    let mut broker = ContainerBroker::new(&shared(), &database(&node, "c"), Options::default());
    assert_eq!(broker.db().sync_point("their-id", Syncs::Incoming).unwrap(), 3);
    assert_ne!(broker.info().unwrap().id, "their-id");
}

#[tokio::test]
async fn rows_that_are_pending_survive_the_exchange_of_their_database() {
    let node = Node::new();
    let mut broker = container(&database(&node, "c"), &["merged"]);
    broker.put_object(object("pending")).unwrap();
    received(&node, "their-id", &["a"]);
    let server = node.container_server();
    assert_eq!(replicate(&server, &node, json!(["rsync_then_merge", "their-id"])).await, 204);
    // A broker of before must not write into the file that is gone.
    broker.put_object(object("later")).unwrap();
    assert_eq!(names(&node), ["a", "merged", "pending", "later"]);
}

#[tokio::test]
async fn a_crash_before_the_exchange_leaves_the_database_of_before() {
    let node = Node::new();
    drop(container(&database(&node, "c"), &["ours"]));
    received(&node, "their-id", &["a"]);
    let server = node.container_server();
    let crash = fail::arm_thread("db.before_rename", fail::Action::Error(rustix::io::Errno::IO));
    assert_eq!(replicate(&server, &node, json!(["rsync_then_merge", "their-id"])).await, 500);
    drop(crash);
    assert_eq!(names(&node), ["ours"]);
    assert_eq!(replicate(&server, &node, json!(["rsync_then_merge", "their-id"])).await, 204);
    assert_eq!(names(&node), ["a", "ours"]);
}

#[tokio::test]
async fn a_file_that_is_no_database_stays_in_tmp_and_the_tmp_where_it_is() {
    let node = Node::new();
    let tmp = node.device().join("tmp");
    std::fs::create_dir_all(&tmp).unwrap();
    std::fs::write(tmp.join("their-id"), "x".repeat(5000)).unwrap();
    let server = node.container_server();
    assert_eq!(replicate(&server, &node, json!(["complete_rsync", "their-id"])).await, 500);
    drop(container(&database(&node, "c"), &["ours"]));
    assert_eq!(replicate(&server, &node, json!(["rsync_then_merge", "their-id"])).await, 500);
    assert!(tmp.join("their-id").exists());
    assert_eq!(names(&node), ["ours"]);
}

#[tokio::test]
async fn names_lead_nowhere_but_into_tmp_and_the_hash_dir() {
    let node = Node::new();
    received(&node, "their-id", &["a"]);
    std::fs::write(node.device().join("secret"), "").unwrap();
    let server = node.container_server();
    for words in [
        json!(["complete_rsync", "../secret"]),
        json!(["complete_rsync", ".."]),
        json!(["complete_rsync", "their-id", "../x.db"]),
        json!(["complete_rsync", "their-id", "x.db"]),
        json!(["rsync_then_merge", "../secret"]),
    ] {
        assert_eq!(replicate(&server, &node, words.clone()).await, 404, "{words}");
    }
    let epoch = format!("{}_1700000000.00000.db", hash(&node, "c"));
    assert_eq!(replicate(&server, &node, json!(["complete_rsync", "their-id", epoch])).await, 204);
    assert!(database(&node, "c").with_file_name(epoch).exists());
}

#[test]
fn sync_points_without_dates_are_told_too() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = dir.path().join("sda/containers/1/abc/hash/hash.db");
    drop(container(&db_file, &["o"]));
    let sqlite = rusqlite::Connection::open(&db_file).unwrap();
    sqlite
        .execute_batch(
            "DROP TRIGGER incoming_sync_insert; DROP TRIGGER incoming_sync_update;
             ALTER TABLE incoming_sync DROP COLUMN updated_at; INSERT INTO incoming_sync VALUES ('there', 7);",
        )
        .unwrap();
    drop(sqlite);
    let mut broker = ContainerBroker::new(&shared(), &db_file, Options::default());
    let points = broker.db().sync_points(Syncs::Incoming).unwrap();
    assert_eq!((points.len(), points[0].remote_id.as_str(), points[0].sync_point), (1, "there", 7));
}
