//! The queue of the container-reconciler: objects whose rows are in another storage policy than their container.
//!
//! The queue is the account `.misplaced_objects`. Its containers are named by the hour in which an object last changed, and an entry is a
//! row `POLICY:/ACCOUNT/CONTAINER/OBJECT` whose content type says what was done to the object and whose ETag when.

use common::HashConf;
use common::config::parse_int;
use common::headers::{X_BACKEND_USE_REPLICATION_NETWORK, X_TIMESTAMP};
use common::policy::majority_size;
use common::timestamp::{Timestamp, TimestampError, decode_timestamps};
use futures_util::future::join_all;
use ring::Ring;
use serde_json::Value;
use service::direct_client::{DirectClient, Target};
use service::http::{Headers, split_path};
use thiserror::Error;

use super::rows::ObjectRecord;
use crate::server::MISPLACED_OBJECTS_ACCOUNT;

/// Seconds that share a container.
const DIVISOR: u64 = 3600;

/// What was done to an object in the wrong policy.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put,
    Delete,
}

impl Op {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Op::Put => "application/x-put",
            Op::Delete => "application/x-delete",
        }
    }
}

/// An entry of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueEntry {
    /// Where the object is, if it is there: of any policy, or of none.
    pub policy_index: i64,
    pub account: String,
    pub container: String,
    pub object: String,
    pub op: Op,
    pub timestamp: Timestamp,
    /// When the entry was written, which is later if an operator has put it there once more.
    pub recorded: Timestamp,
}

/// Why an entry is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum BadEntry {
    #[error("invalid name")]
    Name,
    #[error("invalid operation type {0}")]
    Op(Value),
    #[error(transparent)]
    Timestamp(#[from] TimestampError),
    #[error("no time or an invalid one")]
    Time,
}

impl QueueEntry {
    /// From its row of a listing.
    pub(super) fn from_listing(row: &Value) -> Result<Self, BadEntry> {
        let (policy, path) =
            row["name"].as_str().and_then(|name| name.split_once(':')).ok_or(BadEntry::Name)?;
        let policy_index = parse_int(policy).ok_or(BadEntry::Name)?;
        let names = split_path(path, 3, 3, true).map_err(|()| BadEntry::Name)?;
        let [Some(account), Some(container), Some(object)] =
            <[_; 3]>::try_from(names).map_err(|_| BadEntry::Name)?
        else {
            return Err(BadEntry::Name);
        };
        let op = [Op::Put, Op::Delete].into_iter().find(|op| row["content_type"] == op.content_type());
        let op = op.ok_or_else(|| BadEntry::Op(row["content_type"].clone()))?;
        let (timestamp, ..) = decode_timestamps(row["hash"].as_str().ok_or(BadEntry::Time)?, false)?;
        let recorded =
            row["last_modified"].as_str().and_then(Timestamp::from_isoformat).ok_or(BadEntry::Time)?;
        Ok(QueueEntry { policy_index, account, container, object, op, timestamp, recorded })
    }

    pub(super) fn path(&self) -> String {
        format!("/{}/{}/{}", self.account, self.container, self.object)
    }
}

/// The container for an object of that `created_at`.
pub(super) fn container_name(created_at: &str) -> String {
    let changed = decode_timestamps(created_at, false)
        .map_or(Timestamp::ZERO, |(data, content_type, meta)| meta.or(content_type).unwrap_or(data));
    (changed.as_secs() / DIVISOR * DIVISOR).to_string()
}

fn entry_name(policy_index: i64, [account, container, object]: [&str; 3]) -> String {
    format!("{policy_index}:/{account}/{container}/{object}")
}

/// The entry for a row of the container `account/container`.
pub(super) fn entry(row: &ObjectRecord, account: &str, container: &str) -> ObjectRecord {
    let op = if row.deleted { Op::Delete } else { Op::Put };
    ObjectRecord {
        name: entry_name(row.storage_policy_index, [account, container, &row.name]),
        created_at: row.created_at.clone(),
        etag: row.created_at.clone(),
        content_type: op.content_type().to_owned(),
        ..ObjectRecord::default()
    }
}

/// What an operator puts into the queue.
pub struct ToEnqueue<'a> {
    pub names: [&'a str; 3],
    pub policy_index: i64,
    /// Of the object, as it is written.
    pub timestamp: &'a str,
    pub op: Op,
    /// When the entry is written, if not at the object's own time: replaces one that is newer than that.
    pub recorded: Option<Timestamp>,
}

/// Tells all primaries of the queue's container; its name if most of them took the entry.
pub async fn enqueue(
    client: &DirectClient,
    ring: &Ring,
    hash_conf: &HashConf,
    wanted: &ToEnqueue<'_>,
) -> Option<String> {
    let queue = container_name(wanted.timestamp);
    let name = entry_name(wanted.policy_index, wanted.names);
    let mut headers = Headers::new();
    headers.insert("X-Size", 0);
    headers.insert("X-Etag", wanted.timestamp);
    headers.insert("X-Content-Type", wanted.op.content_type());
    let recorded = wanted.recorded.map_or_else(|| wanted.timestamp.to_owned(), |at| at.internal());
    headers.insert(X_TIMESTAMP, recorded);
    headers.insert(X_BACKEND_USE_REPLICATION_NETWORK, "true");
    let (part, nodes) = ring.get_nodes(hash_conf, MISPLACED_OBJECTS_ACCOUNT, Some(&queue), None);
    let names = [MISPLACED_OBJECTS_ACCOUNT, &queue, &name];
    let targets: Vec<_> = nodes.iter().map(|node| Target { node, part, names: &names }).collect();
    let told = join_all(targets.iter().map(|target| client.put(target, headers.clone(), ""))).await;
    let taken = told.iter().filter(|told| told.is_ok()).count();
    (taken >= majority_size(nodes.len())).then_some(queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `get_reconciler_container_name` and `get_row_to_q_entry_translator` of 2.38.3.
    #[test]
    fn entries_are_swifts() {
        assert_eq!(container_name("1700000000.12345"), "1699999200");
        // Data, then 2000 s to the content type, then 4000 s to the metadata, in units of 10 microseconds.
        assert_eq!(container_name("1700000000.00000+bebc200+17d78400"), "1700002800");
        let row = ObjectRecord {
            name: "o/é".into(),
            created_at: "1700000000.12345".into(),
            size: 7,
            storage_policy_index: 2,
            ..ObjectRecord::default()
        };
        let queued = entry(&row, "a", "c");
        assert_eq!((queued.name.as_str(), queued.content_type.as_str()), ("2:/a/c/o/é", "application/x-put"));
        assert_eq!(
            (queued.size, queued.etag.as_str(), queued.storage_policy_index),
            (0, "1700000000.12345", 0)
        );
        assert_eq!(
            entry(&ObjectRecord { deleted: true, ..row }, "a", "c").content_type,
            "application/x-delete"
        );
    }

    fn row(name: &str, kind: &str, hash: &str, modified: &str) -> Value {
        serde_json::json!({"name": name, "content_type": kind, "hash": hash, "last_modified": modified, "bytes": 0})
    }

    /// From `parse_raw_obj` of 2.38.3.
    #[test]
    fn entries_are_read_as_swift_reads_them() {
        let (put, hash, modified) = ("application/x-put", "1700000000.12345", "2023-11-14T22:13:21.500000");
        let read = QueueEntry::from_listing(&row("12:/a/c/o/\u{e9}:x", put, hash, modified)).unwrap();
        let expected = QueueEntry {
            policy_index: 12,
            account: "a".into(),
            container: "c".into(),
            object: "o/\u{e9}:x".into(),
            op: Op::Put,
            timestamp: Timestamp::parse(hash).unwrap(),
            recorded: Timestamp::parse("1700000001.50000").unwrap(),
        };
        assert_eq!((read.path().as_str(), &read), ("/a/c/o/\u{e9}:x", &expected));
        let delete =
            row(" -1 :/a/c/o", "application/x-delete", "1700000000.12345_0000000000000002+1-2", modified);
        let read = QueueEntry::from_listing(&delete).unwrap();
        assert_eq!((read.policy_index, read.op, read.timestamp.offset()), (-1, Op::Delete, 2));
        for (bad, expected) in [
            (row("a/c/o", put, hash, modified), BadEntry::Name),
            (row("x:/a/c/o", put, hash, modified), BadEntry::Name),
            (row("1:a/c/o", put, hash, modified), BadEntry::Name),
            (row("1:/a/c", put, hash, modified), BadEntry::Name),
            (row("1:/a//o", put, hash, modified), BadEntry::Name),
            (row("1:/a/c/o", "text/plain", hash, modified), BadEntry::Op("text/plain".into())),
            (row("1:/a/c/o", put, "x", modified), TimestampError::NotANumber("x".into()).into()),
            (row("1:/a/c/o", put, hash, "2023-11-14"), BadEntry::Time),
            (serde_json::json!({"subdir": "x"}), BadEntry::Name),
        ] {
            assert_eq!(QueueEntry::from_listing(&bad).unwrap_err(), expected, "{bad}");
        }
    }
}
