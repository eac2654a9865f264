//! Databases made by Swift, damaged ones, replaced ones, and rows of several writers.

use super::*;
use crate::account::broker::{AccountBroker, ContainerEntry};
use crate::broker::{BrokerError, Options, PENDING_CAP, Shared};
use crate::container::broker::{ContainerBroker, ObjectEntry};
use crate::container::rows::ObjectRecord;
use crate::listing::Query;
use serde_json::{Value, json};

fn shared() -> Arc<Shared> {
    Shared::new(Clock::manual(Timestamp::from_secs_f64(NOW as f64)), |_| {})
}

fn database(dir: &Path, kind: &str) -> PathBuf {
    dir.join("sda").join(kind).join("1/abc/hash/hash.db")
}

/// A new container with `names` in its pending file.
fn container_with(shared: &Arc<Shared>, db_file: &Path, names: &[&str]) -> ContainerBroker {
    let mut broker = ContainerBroker::new(shared, db_file, Options::default());
    broker.initialize("a", "c", "1700000000.00000", 0).unwrap();
    for name in names {
        broker.put_object(row(name, "1700000001.00000")).unwrap();
    }
    broker
}

fn row(name: &str, created_at: &str) -> ObjectRecord {
    ObjectRecord {
        name: name.into(),
        created_at: created_at.into(),
        size: 1,
        content_type: "t".into(),
        etag: "e".into(),
        ..ObjectRecord::default()
    }
}

fn golden(dir: &Path, kind: &str, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let db_file = database(dir, kind);
    std::fs::create_dir_all(db_file.parent().unwrap()).unwrap();
    for suffix in ["db", "db.pending"] {
        std::fs::copy(source.join(format!("{name}.{suffix}")), db_file.with_extension(suffix)).unwrap();
    }
    db_file
}

fn expected(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/expected.json");
    serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap()[name].take()
}

#[test]
fn a_container_made_by_swift_reads_as_in_swift() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker =
        ContainerBroker::new(&shared(), &golden(dir.path(), "containers", "container"), Options::default());
    let info = broker.info().unwrap();
    let expected = expected("container");
    let ours = json!({
        "account": info.account, "container": info.container, "created_at": info.created_at,
        "put_timestamp": info.put_timestamp, "delete_timestamp": info.delete_timestamp, "status": info.status,
        "status_changed_at": info.status_changed_at, "object_count": info.object_count,
        "bytes_used": info.bytes_used, "reported_put_timestamp": info.reported_put_timestamp,
        "reported_delete_timestamp": info.reported_delete_timestamp,
        "reported_object_count": info.reported_object_count, "reported_bytes_used": info.reported_bytes_used,
        "hash": info.hash, "id": info.id, "storage_policy_index": info.storage_policy_index,
        "db_state": info.db_state.as_str(),
    });
    assert_eq!(ours, expected["info"]);
    assert_eq!(broker.db.metadata().unwrap().dump(), expected["metadata"].as_str().unwrap());
    let stats: Vec<_> = broker
        .policy_stats()
        .unwrap()
        .iter()
        .map(|(i, s)| json!([i, s.object_count, s.bytes_used]))
        .collect();
    assert_eq!(json!(stats), expected["policy_stats"]);
    for (name, prefix, delimiter) in [("list", None, ""), ("subdirs", Some(String::new()), "/")] {
        let query = Query { limit: 100, prefix, delimiter: delimiter.into(), ..Query::default() };
        let mut rows = Vec::new();
        broker
            .list_objects(&query, 1, |entry| {
                rows.push(match entry {
                    ObjectEntry::Subdir(name) => json!([name, "0", 0, null, ""]),
                    ObjectEntry::Object { name, last_modified, size, content_type, etag } => {
                        json!([name, last_modified.internal(), size, content_type, etag])
                    }
                });
            })
            .unwrap();
        assert_eq!(json!(rows), expected[name], "{name}");
    }
}

#[test]
fn an_account_made_by_swift_reads_as_in_swift() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker =
        AccountBroker::new(&shared(), golden(dir.path(), "accounts", "account"), Options::default());
    let info = broker.info().unwrap();
    let expected = expected("account");
    let ours = json!({
        "account": info.account, "created_at": info.created_at, "put_timestamp": info.put_timestamp,
        "delete_timestamp": info.delete_timestamp, "status_changed_at": info.status_changed_at,
        "container_count": info.container_count, "object_count": info.object_count,
        "bytes_used": info.bytes_used, "hash": info.hash, "id": info.id,
    });
    assert_eq!(ours, expected["info"]);
    assert_eq!(broker.db.metadata().unwrap().dump(), expected["metadata"].as_str().unwrap());
    let stats: Vec<_> = broker
        .policy_stats()
        .unwrap()
        .iter()
        .map(|(i, s)| json!([i, s.container_count, s.object_count, s.bytes_used]))
        .collect();
    assert_eq!(json!(stats), expected["policy_stats"]);
    for (name, prefix, delimiter, reverse) in
        [("list", None, "", false), ("subdirs", Some("c".into()), "/", true)]
    {
        let query = Query { limit: 100, prefix, delimiter: delimiter.into(), reverse, ..Query::default() };
        let mut rows = Vec::new();
        broker
            .list_containers(&query, |entry| {
                rows.push(match entry {
                    ContainerEntry::Subdir(name) => json!([name, 0, 0, "0", -1, 1]),
                    ContainerEntry::Container {
                        name,
                        object_count,
                        bytes_used,
                        put_timestamp,
                        storage_policy_index,
                    } => {
                        json!([name, object_count, bytes_used, put_timestamp, storage_policy_index, 0])
                    }
                });
            })
            .unwrap();
        assert_eq!(json!(rows), expected[name], "{name}");
    }
}

/// The bytes are those of tests/golden/container.db.pending, by Swift.
#[test]
fn pending_rows_are_swifts_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    let mut broker = container_with(&shared(), &db_file, &[]);
    let mut merged = row("merged", "1700000009.00000");
    (merged.size, merged.content_type, merged.etag, merged.storage_policy_index) =
        (11, "text/x".into(), "e9".into(), 1);
    let mut new = row("dir/new", "1700000009.00000");
    (new.size, new.content_type, new.etag, new.storage_policy_index) = (30, "a/b".into(), "e8".into(), 1);
    new.meta_timestamp = Some("1700000010.00000".into());
    broker.put_object(merged).unwrap();
    broker.put_object(new).unwrap();
    broker.put_object(ObjectRecord::tombstone("dir/é".into(), "1700000009.5".into(), 1)).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/container.db.pending");
    assert_eq!(std::fs::read(db_file.with_extension("db.pending")).unwrap(), std::fs::read(golden).unwrap());
}

#[test]
fn a_full_pending_file_is_merged_by_the_next_row() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    let mut broker = container_with(&shared(), &db_file, &["first"]);
    let pending = db_file.with_extension("db.pending");
    let line = std::fs::read(&pending).unwrap();
    let copies = line.repeat(PENDING_CAP as usize / line.len() + 1);
    std::fs::write(&pending, copies).unwrap();
    broker.put_object(row("last", "1700000002.00000")).unwrap();
    assert_eq!(std::fs::metadata(&pending).unwrap().len(), 0);
    assert_eq!(broker.info().unwrap().object_count, 2);
}

#[test]
fn what_is_no_row_in_the_pending_file_is_logged_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    let lines = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = lines.clone();
    let shared = Shared::new(Clock::system(), move |line: &str| log.lock().push(line.to_owned()));
    let mut broker = container_with(&shared, &db_file, &["good"]);
    let pending = db_file.with_extension("db.pending");
    let mut content = b":not base64!:AAAA".to_vec();
    content.extend(std::fs::read(&pending).unwrap());
    // A row that was cut short by a crash, and one whose timestamp nobody can read.
    content.extend(std::fs::read(&pending).unwrap().iter().take(40));
    std::fs::write(&pending, content).unwrap();
    broker.put_object(row("bad time", "nonsense")).unwrap();
    broker.put_object(row("good too", "1700000002.00000")).unwrap();
    assert_eq!(broker.info().unwrap().object_count, 2);
    assert_eq!(lines.lock().iter().filter(|line| line.starts_with("Invalid pending entry")).count(), 4);
    assert_eq!(std::fs::metadata(&pending).unwrap().len(), 0);
}

#[test]
fn a_corrupt_database_is_quarantined() {
    for (damage, reason) in [(0..16, "corrupted database"), (100..3000, "malformed database")] {
        let dir = tempfile::tempdir().unwrap();
        let db_file = database(dir.path(), "containers");
        drop(container_with(&shared(), &db_file, &["o"]));
        let mut bytes = std::fs::read(&db_file).unwrap();
        bytes[damage].fill(0xff);
        std::fs::write(&db_file, bytes).unwrap();
        let mut broker = ContainerBroker::new(&shared(), &db_file, Options::default());
        let Err(BrokerError::Quarantined(detail)) = broker.info() else { panic!("{reason}") };
        assert!(detail.ends_with(reason), "{detail}");
        assert!(!db_file.exists());
        assert!(dir.path().join("sda/quarantined/containers/hash/hash.db").exists());
        // A second one of the same hash gets a name of its own.
        drop(container_with(&shared(), &db_file, &[]));
        let mut broker = ContainerBroker::new(&shared(), &db_file, Options::default());
        broker.db.quarantine("a test");
        assert_eq!(std::fs::read_dir(dir.path().join("sda/quarantined/containers")).unwrap().count(), 2);
    }
}

#[test]
fn a_database_without_its_stat_row_is_quarantined_when_its_metadata_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    drop(container_with(&shared(), &db_file, &[]));
    rusqlite::Connection::open(&db_file).unwrap().execute_batch("DELETE FROM container_info").unwrap();
    let mut broker = ContainerBroker::new(&shared(), &db_file, Options::default());
    assert!(broker.info().is_err_and(|error| error.is_rowless()));
    assert!(db_file.exists());
    assert!(matches!(broker.db.metadata(), Err(BrokerError::Quarantined(_))));
}

#[test]
fn a_cached_connection_does_not_outlive_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (shared, db_file, other) =
        (shared(), database(dir.path(), "containers"), database(&dir.path().join("other"), "containers"));
    let mut broker = container_with(&shared, &db_file, &["old"]);
    assert_eq!(broker.info().unwrap().object_count, 1);
    drop(broker);
    let mut replacement = container_with(&shared, &other, &["new 1", "new 2"]);
    replacement.info().unwrap();
    drop(replacement);
    common::fs::rename_durable(&other, &db_file).unwrap();
    let mut broker = ContainerBroker::new(&shared, &db_file, Options::default());
    assert_eq!(broker.info().unwrap().object_count, 2);
    drop(broker);
    std::fs::remove_file(&db_file).unwrap();
    let mut broker = ContainerBroker::new(&shared, &db_file, Options::default());
    assert!(matches!(broker.info(), Err(BrokerError::NotExist(_))));
    assert!(matches!(broker.put_object(row("o", "1700000002.00000")), Err(BrokerError::NotExist(_))));
}

#[test]
fn another_process_writing_into_the_file_is_seen_through_a_cached_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (shared, db_file) = (shared(), database(dir.path(), "containers"));
    let mut broker = container_with(&shared, &db_file, &["o"]);
    assert_eq!(broker.info().unwrap().object_count, 1);
    drop(broker);
    let others = ContainerBroker::new(&self::shared(), &db_file, Options::default())
        .merge_items(vec![row("p", "1700000002.00000")]);
    others.unwrap();
    let mut broker = ContainerBroker::new(&shared, &db_file, Options::default());
    assert_eq!(broker.info().unwrap().object_count, 2);
}

#[test]
fn reads_do_without_pending_rows_while_the_lock_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (shared, db_file) = (shared(), database(dir.path(), "containers"));
    drop(container_with(&shared, &db_file, &["o"]));
    let lock = common::fs::lock_path(db_file.parent().unwrap(), std::time::Duration::ZERO, None).unwrap();
    let mut reader = ContainerBroker::new(&shared, &db_file, Options::reading());
    assert_eq!(reader.info().unwrap().object_count, 0);
    let impatient = Options { stale_reads_ok: false, ..Options::reading() };
    let mut strict = ContainerBroker::new(&shared, &db_file, impatient);
    assert!(matches!(strict.info(), Err(BrokerError::LockTimeout(_))));
    drop(lock);
    assert_eq!(reader.info().unwrap().object_count, 1);
}

#[test]
fn rows_of_many_writers_all_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    drop(container_with(&shared(), &db_file, &[]));
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let db_file = &db_file;
            scope.spawn(move || {
                // A cache of its own: as another process.
                let shared = shared();
                for number in 0..50 {
                    let mut broker = ContainerBroker::new(&shared, db_file, Options::default());
                    broker.put_object(row(&format!("{writer}/{number}"), "1700000001.00000")).unwrap();
                    if number % 10 == writer {
                        broker.info().unwrap();
                    }
                }
            });
        }
    });
    let mut broker = ContainerBroker::new(&shared(), &db_file, Options::default());
    assert_eq!(broker.info().unwrap().object_count, 200);
}

#[test]
fn a_late_row_makes_a_deleted_container_exist_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = container_with(&shared(), &database(dir.path(), "containers"), &[]);
    broker.db.delete_db("1700000005.00000").unwrap();
    assert!(broker.is_deleted().unwrap());
    broker.put_object(row("late", "1700000001.00000")).unwrap();
    assert!(!broker.is_deleted().unwrap());
    broker.put_object(ObjectRecord::tombstone("late".into(), "1700000002.00000".into(), 0)).unwrap();
    assert!(broker.is_deleted().unwrap());
}

#[test]
fn a_failed_creation_leaves_no_debris() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    drop(container_with(&shared(), &db_file, &[]));
    let mut second = ContainerBroker::new(&shared(), &db_file, Options::default());
    let again = second.initialize("a", "c", "1700000001.00000", 0);
    assert!(matches!(again, Err(BrokerError::AlreadyExists(_))));
    let names: Vec<_> =
        files_below(dir.path()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert!(names.iter().all(|name| name == "hash.db" || name == ".lock"), "{names:?}");
}

#[test]
fn a_sharded_container_has_the_counts_of_its_shards() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    drop(container_with(&shared(), &db_file, &["o"]));
    let fresh = db_file.with_file_name("hash_1700000003.00000.db");
    std::fs::copy(&db_file, &fresh).unwrap();
    let sqlite = rusqlite::Connection::open(&fresh).unwrap();
    sqlite
        .execute_batch(
            "INSERT INTO shard_range (name, timestamp, lower, upper, object_count, bytes_used, state, epoch) VALUES \
             ('a/c', '1', '', '', 0, 0, 70, '1700000003.00000'), \
             ('.shards_a/c-1', '1', '', 'm', 5, 50, 40, NULL), ('.shards_a/c-2', '1', 'm', '', 2, 20, 20, NULL)",
        )
        .unwrap();
    drop(sqlite);
    let mut sharding = ContainerBroker::new(&shared(), &db_file, Options::default());
    let info = sharding.info().unwrap();
    // The row that was pending went into the fresh database; the retiring one counts until the shards have all.
    assert_eq!((info.db_state.as_str(), info.object_count), ("sharding", 0));
    std::fs::remove_file(&db_file).unwrap();
    let mut sharded = ContainerBroker::new(&shared(), &db_file, Options::default());
    let info = sharded.info().unwrap();
    assert_eq!((info.db_state.as_str(), info.object_count, info.bytes_used), ("sharded", 5, 50));
    assert!(!sharded.is_empty().unwrap());
    assert!(sharded.is_root_container().unwrap());
}

#[test]
fn merging_twice_after_a_crash_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    let mut broker = container_with(&shared(), &db_file, &["o", "p"]);
    {
        let _armed = common::fs::fail::arm_thread(
            "db.pending.merged",
            common::fs::fail::Action::Error(rustix::io::Errno::IO),
        );
        assert!(broker.info().is_err());
    }
    assert!(std::fs::metadata(db_file.with_extension("db.pending")).unwrap().len() > 0);
    let once =
        ContainerBroker::new(&shared(), &db_file, Options { skip_commits: true, ..Options::default() })
            .info();
    let twice = broker.info().unwrap();
    assert_eq!((once.unwrap().hash, 2), (twice.hash, twice.object_count));
}

#[test]
fn a_creation_that_fails_before_the_rename_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db_file = database(dir.path(), "containers");
    let mut broker = ContainerBroker::new(&shared(), &db_file, Options::default());
    let _armed = common::fs::fail::arm_thread(
        "db.before_rename",
        common::fs::fail::Action::Error(rustix::io::Errno::NOSPC),
    );
    assert!(broker.initialize("a", "c", "1700000001.00000", 0).is_err());
    let names: Vec<_> =
        files_below(dir.path()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, [".lock"]);
}

#[test]
fn a_report_with_odd_counts_does_not_spoil_the_listing() {
    use crate::account::broker::{ContainerRecord, Count};
    let dir = tempfile::tempdir().unwrap();
    let mut broker = AccountBroker::new(&shared(), database(dir.path(), "accounts"), Options::default());
    broker.initialize("a", "1700000000.00000").unwrap();
    let odd = |text: &str| Count::Text(text.into());
    let record = ContainerRecord::new("c".into(), "1".into(), "0".into(), odd("many"), odd(""), odd("gold"));
    broker.put_container(record).unwrap();
    let mut names = Vec::new();
    let query = Query { limit: 10, ..Query::default() };
    broker
        .list_containers(&query, |entry| {
            if let ContainerEntry::Container { name, object_count, .. } = entry {
                names.push((name.to_owned(), object_count));
            }
        })
        .unwrap();
    assert_eq!(names, [("c".to_owned(), None)]);
    assert_eq!(broker.info().unwrap().container_count, 1);
}
