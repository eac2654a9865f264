//! Replication of databases (swift/common/db_replicator.py, swift/container/replicator.py).
//!
//! Every database has an id, and every row a ROWID that only grows: a changed row is deleted and inserted anew. A database is in sync
//! with another when the other has taken all rows up to its highest ROWID; how far that went is kept in two tables, by the id of
//! the other database:
//!
//! ```text
//! incoming_sync    how far I have taken the other's rows: what the other has said itself
//! outgoing_sync    how far the other has taken mine
//! ```
//!
//! A replicator asks `sync` of each primary of a database, with its own highest row, hash, timestamps and metadata; the other merges
//! the latter and answers with its own. If neither sync point nor hash say that both are equal, rows are sent in chunks
//! (`merge_items`, then `merge_syncs`: "usync"); a database that is missing is sent as a file by rsync (`complete_rsync`), and one that
//! lacks more than half as well, to be merged there (`rsync_then_merge`).
//!
//! `rpc` answers these requests in the servers, `replicator` makes them in the daemons (`walk` finds the databases, a `conversation` is one of them with
//! one node), `sync_points` and `reclaim` are what is done to a
//! database. What is `known` of one that has not changed since is not read again at either end.

mod conversation;
pub mod known;
mod merge_items;
mod reclaim;
pub mod replicator;
pub mod rpc;
mod stats;
mod sync_points;
mod walk;

use std::path::Path;
use std::sync::Arc;

use common::timestamp::Timestamp;
use ring::{Ring, RingError};
use serde_json::{Value, json};
use service::Context;

use crate::broker::{DatabaseBroker, Kind, Options, Result, Shared};
use common::json;
pub use merge_items::MergeItems;
pub use sync_points::{DatedSyncPoint, Items, SyncPoint, Syncs, max_row};
pub use walk::Found;

/// A broker whose database is replicated.
pub trait Replicated: Sized + Send + 'static {
    type Kind: Kind;
    /// The directory of a device that has such databases.
    const DATADIR: &'static str;
    /// The name of the replicator's program.
    const REPLICATOR: &'static str;
    /// The port of a server that does not say which.
    const DEFAULT_PORT: u16;
    const RECON_FILE: &'static str;

    /// Who has which database.
    fn ring(ctx: &Context) -> std::result::Result<Arc<Ring>, RingError>;

    /// `db_file` is the database or what it is called without an epoch; it need not exist.
    fn open(shared: &Arc<Shared>, db_file: &Path, options: Options) -> Result<Self>;

    /// Of exactly this file, whatever lies beside it: one that rsync has brought.
    fn of_file(shared: &Arc<Shared>, file: &Path) -> Self;

    fn db(&mut self) -> &mut DatabaseBroker<Self::Kind>;

    /// Whether there is a database, under whatever name.
    fn exists(&mut self) -> Result<bool>;

    /// What replicas tell each other about a database; merges what is pending.
    fn replication_info(&mut self) -> Result<ReplicationInfo>;

    /// Take the earliest creation and the latest of the other timestamps.
    fn merge_timestamps(&mut self, theirs: &Timestamps) -> Result<()>;

    /// Whether nobody needs the database any more, which was deleted long ago: it is empty.
    fn is_reclaimable(&mut self, info: &ReplicationInfo) -> Result<bool>;

    /// What reclaiming deletes besides rows, sync points and metadata; nothing where there are no shard ranges. `age` is in normal form.
    /// Says whether that was anything.
    fn reclaim_more(&mut self, _info: &ReplicationInfo, _age: &str) -> Result<bool> {
        Ok(false)
    }

    /// The other's storage policy, if it is the better one.
    fn better_policy(_ours: &ReplicationInfo, _theirs: &RemoteInfo) -> Option<i64> {
        None
    }

    fn take_policy(&mut self, _policy_index: i64) -> Result<()> {
        Ok(())
    }

    /// Forget what the id of another database was told.
    fn new_id_resets(_sqlite: &rusqlite::Connection) -> rusqlite::Result<()> {
        Ok(())
    }

    /// Take from the answer to our `sync` what there is besides metadata.
    fn take_answer(&mut self, _ours: &ReplicationInfo, _theirs: &RemoteInfo) -> Result<()> {
        Ok(())
    }

    /// Why a handoff is not to be removed yet although all primaries have it.
    fn must_stay(&mut self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Whether the rows are on their way to other databases, and must not be replicated as they are.
    fn sharding_initiated(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// All shard ranges as JSON; `None` where there is no such thing.
    fn shard_range_data(&mut self) -> Result<Option<Value>> {
        Ok(None)
    }

    /// Merge shard ranges that `source` has sent. False where there is no such thing, or it is not a list of shard ranges.
    fn merge_shard_range_data(&mut self, _shards: &Value, _source: &str) -> Result<bool> {
        Ok(false)
    }
}

/// The timestamps that replicas merge, in internal form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timestamps {
    pub created_at: String,
    pub put_timestamp: String,
    pub delete_timestamp: String,
}

impl Timestamps {
    pub fn from_json(info: &Value) -> Option<Self> {
        let text = |name: &str| info.get(name)?.as_str().map(str::to_owned);
        Some(Self {
            created_at: text("created_at")?,
            put_timestamp: text("put_timestamp")?,
            delete_timestamp: text("delete_timestamp")?,
        })
    }
}

/// A database as it presents itself to its replicas.
#[derive(Clone, Debug)]
pub struct ReplicationInfo {
    pub account: String,
    pub container: Option<String>,
    pub timestamps: Timestamps,
    pub status_changed_at: String,
    pub count: i64,
    pub hash: String,
    pub id: String,
    pub metadata: String,
    pub max_row: i64,
    /// Of a container.
    pub storage_policy_index: Option<i64>,
    /// Of a container: the highest row that a shard range ever had, -1 if there was none.
    pub shard_max_row: Option<i64>,
    /// Whether there is no row that the reconciler might have to be told of.
    pub is_looked_through: bool,
    /// Whether a client has deleted it.
    pub is_status_deleted: bool,
    /// Whether all that would be told to the account has been told. True for an account.
    pub is_reported: bool,
    /// Whether its rows have gone to other databases.
    pub is_sharded: bool,
    /// What Swift calls its replication info, in the order of Swift's keys: a JSON object, which lacks its end for what else is told.
    pub told: Box<str>,
}

impl ReplicationInfo {
    /// `told` of all members.
    pub fn tell(members: &Value) -> Box<str> {
        let mut text = Vec::new();
        json::write_value(&mut text, members);
        text.pop();
        String::from_utf8(text).expect("only ASCII was written").into()
    }

    /// Whether it was deleted, by whatever it holds, before `age`.
    fn was_deleted_before(&self, age: Timestamp) -> bool {
        let at = |text: &str| Timestamp::parse(text).unwrap_or_default();
        let (put, delete) = (at(&self.timestamps.put_timestamp), at(&self.timestamps.delete_timestamp));
        age > delete && delete > put
    }

    /// The words of a `sync` request.
    pub fn sync_args(&self, with_policy: bool) -> Value {
        let Timestamps { created_at, put_timestamp, delete_timestamp } = &self.timestamps;
        let mut args = vec![
            json!("sync"),
            json!(self.max_row),
            json!(self.hash),
            json!(self.id),
            json!(created_at),
            json!(put_timestamp),
            json!(delete_timestamp),
            json!(self.metadata),
        ];
        if let (true, Some(policy)) = (with_policy, self.storage_policy_index) {
            args.extend([json!(self.status_changed_at), json!(self.count), json!(policy)]);
        }
        Value::Array(args)
    }
}

/// A replica elsewhere, as its `sync` request or the answer to ours tells it.
#[derive(Clone, Debug, Default)]
pub struct RemoteInfo {
    /// Of a request: the highest row there. Of an answer: how far it has taken our rows.
    pub point: i64,
    pub hash: String,
    pub id: String,
    pub timestamps: Timestamps,
    /// As it came: the text of a JSON object.
    pub metadata: String,
    /// Of an answer.
    pub max_row: i64,
    /// Of an answer: -1 without shard ranges, `None` from servers that know nothing of them.
    pub shard_max_row: Option<i64>,
    pub policy: Option<RemotePolicy>,
}

#[derive(Clone, Debug, Default)]
pub struct RemotePolicy {
    pub status_changed_at: String,
    pub count: i64,
    pub storage_policy_index: i64,
}

impl RemoteInfo {
    /// The words after `sync` of a request.
    pub fn from_sync_args(args: &[Value]) -> Option<Self> {
        let text = |at: usize| args.get(at)?.as_str().map(str::to_owned);
        let policy = if args.len() > 9 {
            Some(RemotePolicy {
                status_changed_at: text(7)?,
                count: args[8].as_i64()?,
                storage_policy_index: args[9].as_i64()?,
            })
        } else {
            None
        };
        Some(Self {
            point: args.first()?.as_i64()?,
            hash: text(1)?,
            id: text(2)?,
            timestamps: Timestamps {
                created_at: text(3)?,
                put_timestamp: text(4)?,
                delete_timestamp: text(5)?,
            },
            metadata: args.get(6)?.as_str().unwrap_or_default().to_owned(),
            policy,
            ..Self::default()
        })
    }

    /// The body of an answer.
    pub fn from_answer(body: &[u8]) -> Option<Self> {
        let info: Value = serde_json::from_slice(body).ok()?;
        let text = |name: &str| info.get(name)?.as_str().map(str::to_owned);
        let number = |name: &str| info.get(name)?.as_i64();
        let policy = number("storage_policy_index").and_then(|storage_policy_index| {
            Some(RemotePolicy {
                status_changed_at: text("status_changed_at")?,
                count: number("count").or(number("object_count")).unwrap_or(0),
                storage_policy_index,
            })
        });
        Some(Self {
            point: number("point")?,
            hash: text("hash")?,
            id: text("id")?,
            timestamps: Timestamps::from_json(&info)?,
            metadata: text("metadata").unwrap_or_default(),
            max_row: number("max_row")?,
            shard_max_row: number("shard_max_row"),
            policy,
        })
    }
}
