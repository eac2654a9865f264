//! An account's database (swift/account/backend.py `AccountBroker`).
//!
//! Its rows are containers with the counts that container servers and the container-updater report. Reports arrive in any order: a
//! row keeps the latest of each timestamp, and the counts of the last report. The account is deleted when its status says so
//! (a DELETE: the reaper will empty it), or when it holds no container and was deleted after it was put.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::pickle::Value;
use common::timestamp::Timestamp;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, params};

use super::schema;
use crate::broker::{
    BrokerError, DatabaseBroker, Kind, Options, Result, Shared, is_missing, lenient_int, zero_like,
};
use crate::listing::{self, Entry, Query, Source};

pub const DATADIR: &str = "accounts";

/// The account side of a `DatabaseBroker`.
pub struct Account;

impl Kind for Account {
    const DB_TYPE: &'static str = "account";
    const DB_CONTAINS_TYPE: &'static str = "container";
    const DB_RECLAIM_TIMESTAMP: &'static str = "delete_timestamp";
    const DELETE_META_WHITELIST: &'static [&'static str] = &[];
    type Record = ContainerRecord;

    fn to_pickle(record: &ContainerRecord) -> Value {
        record.to_pickle()
    }

    fn from_pickle(entry: Value) -> Option<ContainerRecord> {
        ContainerRecord::from_pickle(entry)
    }

    fn from_json(item: &serde_json::Value) -> Option<ContainerRecord> {
        ContainerRecord::from_json(item)
    }

    fn merge(sqlite: &Connection, records: Vec<ContainerRecord>) -> rusqlite::Result<()> {
        records.into_iter().try_for_each(|record| merge(sqlite, record))
    }

    fn migrate(sqlite: &Connection, error: &rusqlite::Error) -> rusqlite::Result<bool> {
        schema::migrate(sqlite, error)
    }
}

/// A report on a container. Counts are kept as they came: Swift's server passes the header's text on, and SQLite makes it a number.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerRecord {
    pub name: String,
    pub put_timestamp: String,
    pub delete_timestamp: String,
    pub object_count: Count,
    pub bytes_used: Count,
    pub deleted: bool,
    pub storage_policy_index: Count,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    Unknown,
    Number(i64),
    Text(String),
}

impl Count {
    fn from_json(value: &serde_json::Value) -> Option<Self> {
        match value {
            serde_json::Value::Null => Some(Self::Unknown),
            serde_json::Value::String(text) => Some(Self::Text(text.clone())),
            other => other.as_i64().map(Self::Number),
        }
    }

    fn to_pickle(&self) -> Value {
        match self {
            Self::Unknown => Value::None,
            Self::Number(number) => Value::Int(*number),
            Self::Text(text) => Value::Str(text.clone()),
        }
    }

    fn from_pickle(value: Value) -> Option<Self> {
        Some(match value {
            Value::None => Self::Unknown,
            Value::Int(number) => Self::Number(number),
            Value::Bool(flag) => Self::Number(i64::from(flag)),
            Value::Str(text) => Self::Text(text),
            Value::Bytes(bytes) => Self::Text(String::from_utf8(bytes).ok()?),
            _ => return None,
        })
    }

    /// As a storage policy's index. One that is no number would make SQLite refuse the row, and with it every merge to come.
    fn to_policy(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            Self::Text(digits) => common::config::parse_int(digits).unwrap_or(0),
            Self::Unknown => 0,
        }
    }

    fn to_sql(&self) -> Sql {
        match self {
            Self::Unknown => Sql::Null,
            Self::Number(number) => Sql::Integer(*number),
            Self::Text(text) => Sql::Text(text.clone()),
        }
    }
}

impl ContainerRecord {
    pub fn new(
        name: String,
        put_timestamp: String,
        delete_timestamp: String,
        object_count: Count,
        bytes_used: Count,
        storage_policy_index: Count,
    ) -> Self {
        let deleted = is_later(&delete_timestamp, &put_timestamp) && zero_like(&object_count.to_sql());
        Self {
            name,
            put_timestamp,
            delete_timestamp,
            object_count,
            bytes_used,
            deleted,
            storage_policy_index,
        }
    }

    /// A row as another replica sends it.
    fn from_json(item: &serde_json::Value) -> Option<Self> {
        let text = |name: &str| item.get(name)?.as_str().map(str::to_owned);
        let count = |name: &str| Count::from_json(item.get(name)?);
        let record = Self {
            name: text("name")?,
            put_timestamp: text("put_timestamp")?,
            delete_timestamp: text("delete_timestamp")?,
            object_count: count("object_count")?,
            bytes_used: count("bytes_used")?,
            deleted: item.get("deleted")?.as_i64()? != 0,
            storage_policy_index: count("storage_policy_index").unwrap_or(Count::Number(0)),
        };
        Timestamp::parse(&record.put_timestamp).and(Timestamp::parse(&record.delete_timestamp)).ok()?;
        Some(record)
    }

    fn to_pickle(&self) -> Value {
        Value::Tuple(vec![
            Value::Str(self.name.clone()),
            Value::Str(self.put_timestamp.clone()),
            Value::Str(self.delete_timestamp.clone()),
            self.object_count.to_pickle(),
            self.bytes_used.to_pickle(),
            Value::Int(i64::from(self.deleted)),
            self.storage_policy_index.to_pickle(),
        ])
    }

    /// Reads tuples of six items (before storage policies) and seven.
    fn from_pickle(entry: Value) -> Option<Self> {
        let (Value::Tuple(items) | Value::List(items)) = entry else { return None };
        if items.len() < 6 {
            return None;
        }
        let mut items = items.into_iter();
        let mut next = || items.next();
        let text = |value: Option<Value>| match value {
            Some(Value::Str(text)) => Some(text),
            Some(Value::Bytes(bytes)) => String::from_utf8(bytes).ok(),
            _ => None,
        };
        let (name, put_timestamp, delete_timestamp) = (text(next())?, text(next())?, text(next())?);
        let (object_count, bytes_used) = (Count::from_pickle(next()?)?, Count::from_pickle(next()?)?);
        let deleted = matches!(next()?, Value::Int(1) | Value::Bool(true));
        let storage_policy_index = next().map_or(Some(Count::Number(0)), Count::from_pickle)?;
        // A row whose timestamps nobody can read would fail every merge from here on.
        Timestamp::parse(&put_timestamp).and(Timestamp::parse(&delete_timestamp)).ok()?;
        let record =
            Self::new(name, put_timestamp, delete_timestamp, object_count, bytes_used, storage_policy_index);
        Some(Self { deleted, ..record })
    }
}

#[derive(Clone, Debug)]
pub struct AccountInfo {
    pub account: String,
    pub created_at: String,
    pub put_timestamp: String,
    pub delete_timestamp: String,
    pub status: String,
    pub status_changed_at: String,
    pub container_count: i64,
    pub object_count: i64,
    pub bytes_used: i64,
    pub hash: String,
    pub id: String,
}

impl AccountInfo {
    pub fn is_deleted(&self) -> bool {
        self.status == "DELETED"
            || self.container_count == 0 && is_later(&self.delete_timestamp, &self.put_timestamp)
    }

    /// Deleted by a client, and not put since.
    pub fn is_status_deleted(&self) -> bool {
        self.status == "DELETED" || self.delete_timestamp > self.put_timestamp
    }
}

/// What a policy's containers in an account amount to. The count of containers is younger than the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyStats {
    pub container_count: Option<i64>,
    pub object_count: i64,
    pub bytes_used: i64,
}

/// One entry of a container listing.
pub enum ContainerEntry<'a> {
    Container {
        name: &'a str,
        object_count: Option<i64>,
        bytes_used: Option<i64>,
        put_timestamp: &'a str,
        storage_policy_index: i64,
    },
    Subdir(&'a str),
}

pub struct AccountBroker {
    pub db: DatabaseBroker<Account>,
    shared: Arc<Shared>,
}

impl AccountBroker {
    /// `db_file` need not exist.
    pub fn new(shared: &Arc<Shared>, db_file: PathBuf, options: Options) -> Self {
        let base_file: &Path = &db_file.clone();
        Self { db: DatabaseBroker::new(shared, db_file, base_file, options), shared: shared.clone() }
    }

    pub fn initialize(&mut self, account: &str, put_timestamp: &str) -> Result<()> {
        let created_at = self.shared.clock.now().normal();
        self.db.initialize(|sqlite, id| schema::create(sqlite, id, account, &created_at, put_timestamp))
    }

    pub fn put_container(&mut self, record: ContainerRecord) -> Result<()> {
        self.db.put_record(&record)
    }

    pub fn info(&mut self) -> Result<AccountInfo> {
        self.db.commit_puts()?;
        self.stored_info()
    }

    /// An account without a database is deleted, too. As long as the timestamps say that the account lives, no pending row can make
    /// it deleted, and none is merged: every report of a container asks this.
    pub fn is_deleted(&mut self) -> Result<bool> {
        let stored = match self.stored_info() {
            Err(BrokerError::NotExist(_)) => return Ok(true),
            other => other?,
        };
        if stored.status != "DELETED" && !is_later(&stored.delete_timestamp, &stored.put_timestamp) {
            return Ok(false);
        }
        Ok(self.info()?.is_deleted())
    }

    /// The statistics without what is pending.
    fn stored_info(&mut self) -> Result<AccountInfo> {
        self.db.read(query_info)
    }

    /// Bring statistics of before they counted containers up to date.
    pub fn migrate_policy_stats(&mut self) -> Result<()> {
        self.db.commit_puts()?;
        self.db.read(schema::migrate_policy_stats)
    }

    pub fn policy_stats(&mut self) -> Result<Vec<(i64, PolicyStats)>> {
        self.db.commit_puts()?;
        self.db.read(|sqlite| match query_policy_stats(sqlite, "container_count") {
            Err(error) if is_missing(&error, "no such column: container_count") => {
                query_policy_stats(sqlite, "NULL")
            }
            Err(error) if is_missing(&error, "no such table: policy_stat") => Ok(Vec::new()),
            other => other,
        })
    }

    /// Call `emit` for each container or subdir of a listing.
    pub fn list_containers(&mut self, query: &Query, mut emit: impl FnMut(ContainerEntry<'_>)) -> Result<()> {
        self.db.commit_puts()?;
        let columns = "object_count, bytes_used, put_timestamp, storage_policy_index";
        let source = Source { columns, table: "container", filter: "deleted = 0" };
        let legacy = Source { columns: "object_count, bytes_used, put_timestamp, 0", ..source };
        let mut row = |entry: Entry<'_>| emit_container(entry, &mut emit);
        self.db.read(|sqlite| match listing::walk(sqlite, &source, query, &mut row) {
            Err(error) if is_missing(&error, "no such column: storage_policy_index") => {
                listing::walk(sqlite, &legacy, query, &mut row)
            }
            other => other,
        })
    }
}

fn emit_container(entry: Entry<'_>, emit: &mut impl FnMut(ContainerEntry<'_>)) -> rusqlite::Result<()> {
    match entry {
        Entry::Subdir(name) => emit(ContainerEntry::Subdir(name)),
        Entry::Row(name, row) => emit(ContainerEntry::Container {
            name,
            object_count: lenient_int(row, 1)?,
            bytes_used: lenient_int(row, 2)?,
            put_timestamp: row.get_ref(3)?.as_str_or_null()?.unwrap_or("0"),
            storage_policy_index: lenient_int(row, 4)?.unwrap_or(-1),
        }),
    }
    Ok(())
}

/// Merge one report into the table; runs inside a transaction.
fn merge(sqlite: &Connection, mut record: ContainerRecord) -> rusqlite::Result<()> {
    let existing = sqlite
        .prepare_cached(
            "SELECT put_timestamp, delete_timestamp, object_count, bytes_used FROM container \
             WHERE name = ? AND deleted IN (0, 1)",
        )?
        .query_row([&record.name], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, Sql>(2)?,
                row.get::<_, Sql>(3)?,
            ))
        })
        .optional()?;
    let (mut object_count, mut bytes_used) = (record.object_count.to_sql(), record.bytes_used.to_sql());
    if let Some((put_timestamp, delete_timestamp, old_count, old_bytes)) = existing {
        if object_count == Sql::Null {
            object_count = old_count;
        }
        if bytes_used == Sql::Null {
            bytes_used = old_bytes;
        }
        if is_later(&put_timestamp, &record.put_timestamp) {
            record.put_timestamp = put_timestamp;
        }
        if is_later(&delete_timestamp, &record.delete_timestamp) {
            record.delete_timestamp = delete_timestamp;
        }
        record.deleted =
            is_later(&record.delete_timestamp, &record.put_timestamp) && zero_like(&object_count);
    }
    sqlite
        .prepare_cached("DELETE FROM container WHERE name = ? AND deleted IN (0, 1)")?
        .execute([&record.name])?;
    sqlite
        .prepare_cached(
            "INSERT INTO container (name, put_timestamp, delete_timestamp, object_count, bytes_used, deleted, \
             storage_policy_index) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            record.name,
            record.put_timestamp,
            record.delete_timestamp,
            object_count,
            bytes_used,
            record.deleted,
            record.storage_policy_index.to_policy(),
        ])?;
    Ok(())
}

/// Whether the stat table says that the account is deleted, without what is pending.
pub(super) fn is_deleted(sqlite: &Connection) -> rusqlite::Result<bool> {
    Ok(query_info(sqlite)?.is_deleted())
}

fn query_info(sqlite: &Connection) -> rusqlite::Result<AccountInfo> {
    let sql = "SELECT account, created_at, put_timestamp, delete_timestamp, status, status_changed_at, \
               container_count, object_count, bytes_used, hash, id FROM account_stat";
    sqlite.prepare_cached(sql)?.query_row([], |row| {
        let text = |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(index)?.unwrap_or_default());
        let count = |index| Ok::<_, rusqlite::Error>(lenient_int(row, index)?.unwrap_or(0));
        Ok(AccountInfo {
            account: text(0)?,
            created_at: text(1)?,
            put_timestamp: text(2)?,
            delete_timestamp: text(3)?,
            status: text(4)?,
            status_changed_at: text(5)?,
            container_count: count(6)?,
            object_count: count(7)?,
            bytes_used: count(8)?,
            hash: text(9)?,
            id: text(10)?,
        })
    })
}

fn query_policy_stats(
    sqlite: &Connection,
    container_count: &str,
) -> rusqlite::Result<Vec<(i64, PolicyStats)>> {
    let sql =
        format!("SELECT storage_policy_index, {container_count}, object_count, bytes_used FROM policy_stat");
    let mut statement = sqlite.prepare_cached(&sql)?;
    let rows = statement.query_map([], |row| {
        let stats = PolicyStats {
            container_count: lenient_int(row, 1)?,
            object_count: lenient_int(row, 2)?.unwrap_or(0),
            bytes_used: lenient_int(row, 3)?.unwrap_or(0),
        };
        Ok((lenient_int(row, 0)?.unwrap_or(-1), stats))
    })?;
    rows.collect()
}

fn is_later(one: &str, other: &str) -> bool {
    let stamp = |text: &str| Timestamp::parse(text).unwrap_or_default();
    stamp(one) > stamp(other)
}
