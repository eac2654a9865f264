//! What a broker must know of sharding to answer truthfully for a container that Python's sharder has worked on.
//!
//! A container being sharded has two database files, `HASH.db` (retiring) and `HASH_EPOCH.db` (fresh); one that was sharded has
//! only the latter, and its objects are in other containers, named by rows of `shard_range`. A shard container names its root in
//! its sysmeta. The records themselves, which replicas exchange, are `shard_range`'s, and `shard_listing` selects among them. Not here:
//! the sharder.

use common::timestamp::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use crate::broker::is_missing;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbState {
    NotFound,
    Unsharded,
    Sharding,
    Sharded,
    Collapsed,
}

impl DbState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Unsharded => "unsharded",
            Self::Sharding => "sharding",
            Self::Sharded => "sharded",
            Self::Collapsed => "collapsed",
        }
    }
}

/// The row of `shard_range` that describes the container itself.
pub struct OwnShardRange {
    pub deleted: bool,
    pub state: i64,
    pub epoch: Option<Timestamp>,
}

impl OwnShardRange {
    /// Whether its objects are on the way to other containers, or there.
    pub fn is_cleaving(&self) -> bool {
        // ShardRange.SHRINKING, SHARDING, SHARDED, SHRUNK
        matches!(self.state, 50 | 60 | 70 | 80)
    }
}

pub fn own_shard_range(sqlite: &Connection, path: &str) -> rusqlite::Result<Option<OwnShardRange>> {
    if_table(
        sqlite
            .prepare_cached("SELECT deleted, state, epoch FROM shard_range WHERE name = ? LIMIT 1")
            .and_then(|mut statement| {
                statement
                    .query_row([path], |row| {
                        let epoch: Option<String> = row.get(2)?;
                        Ok(OwnShardRange {
                            deleted: row.get::<_, i64>(0)? != 0,
                            state: row.get::<_, Option<i64>>(1)?.unwrap_or(0),
                            epoch: epoch.and_then(|epoch| Timestamp::parse(&epoch).ok()),
                        })
                    })
                    .optional()
            }),
        None,
    )
}

/// Whether there is a shard range of another container that is not deleted.
pub fn has_others(sqlite: &Connection, path: &str) -> rusqlite::Result<bool> {
    if_table(
        sqlite
            .prepare_cached("SELECT 1 FROM shard_range WHERE deleted = 0 AND name != ? LIMIT 1")
            .and_then(|mut statement| statement.exists([path])),
        false,
    )
}

/// Objects and bytes in the shards that count: active, shrinking and sharding ones.
pub fn usage(sqlite: &Connection, path: &str) -> rusqlite::Result<(i64, i64)> {
    sqlite
        .prepare_cached(
            "SELECT COALESCE(SUM(object_count), 0), COALESCE(SUM(bytes_used), 0) FROM shard_range \
             WHERE state IN (40, 50, 60) AND deleted = 0 AND name != ?",
        )?
        .query_row(params![path], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Databases from before sharding have no such table.
fn if_table<T>(result: rusqlite::Result<T>, without: T) -> rusqlite::Result<T> {
    match result {
        Err(error) if is_missing(&error, "no such table: shard_range") => Ok(without),
        other => other,
    }
}
