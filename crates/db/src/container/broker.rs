//! A container's database (swift/container/backend.py `ContainerBroker`).
//!
//! The broker answers from `container_stat` (see `schema`) after merging what is pending. A container counts as deleted when it was
//! deleted after it was put *and* holds no object: a row that arrives late from an object server makes it exist again.
//! Objects of other policies than the container's own (written while two proxies created the container at once) stay in the table
//! under their own policy index, uncounted by the stat view, for the reconciler.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::pickle::Value;
use common::timestamp::Timestamp;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, params};

use super::json_row;
use super::rows::{self, ObjectRecord};
use super::schema::{self, NewContainer};
use super::shard_listing::{self, ShardQuery};
use super::shard_range::{self, ShardRange};
pub use super::shards::DbState;
use super::shards::{self, OwnShardRange};
use crate::broker::{
    BrokerError, DatabaseBroker, Kind, Options, Result, Shared, Synced, is_missing, lenient_int, zero_like,
};
use crate::listing::{self, Entry, Query, Source};
use crate::replication::max_row as max_row_of;

pub const DATADIR: &str = "containers";

/// The container side of a `DatabaseBroker`.
pub struct Container;

impl Kind for Container {
    const DB_TYPE: &'static str = "container";
    const DB_CONTAINS_TYPE: &'static str = "object";
    const DB_RECLAIM_TIMESTAMP: &'static str = "created_at";
    const DELETE_META_WHITELIST: &'static [&'static str] = &[
        "x-container-sysmeta-shard-quoted-root",
        "x-container-sysmeta-shard-root",
        "x-container-sysmeta-sharding",
    ];
    type Record = ObjectRecord;

    fn to_pickle(record: &ObjectRecord) -> Value {
        record.to_pickle()
    }

    fn from_pickle(entry: Value) -> Option<ObjectRecord> {
        ObjectRecord::from_pickle(entry)
    }

    fn from_json(item: &serde_json::Value) -> Option<ObjectRecord> {
        ObjectRecord::from_json(item)
    }

    fn read_json<'de, D: serde::Deserializer<'de>>(
        row: D,
    ) -> std::result::Result<(ObjectRecord, Option<i64>), D::Error> {
        json_row::read(row)
    }

    fn merge(sqlite: &Connection, records: Vec<ObjectRecord>) -> rusqlite::Result<()> {
        rows::merge(sqlite, records)
    }

    fn migrate(sqlite: &Connection, error: &rusqlite::Error) -> rusqlite::Result<bool> {
        schema::migrate(sqlite, error)
    }
}

#[derive(Clone, Debug)]
pub struct ContainerInfo {
    pub account: String,
    pub container: String,
    pub created_at: String,
    pub put_timestamp: String,
    pub delete_timestamp: String,
    pub status: String,
    pub status_changed_at: String,
    pub object_count: i64,
    pub bytes_used: i64,
    pub reported_put_timestamp: String,
    pub reported_delete_timestamp: String,
    pub reported_object_count: i64,
    pub reported_bytes_used: i64,
    pub hash: String,
    pub id: String,
    pub x_container_sync_point1: i64,
    pub x_container_sync_point2: i64,
    pub storage_policy_index: i64,
    pub db_state: DbState,
}

impl ContainerInfo {
    pub fn is_deleted(&self) -> bool {
        self.object_count == 0 && stamp(&self.delete_timestamp) > stamp(&self.put_timestamp)
    }
}

/// What replicas tell each other besides the statistics, and what else a replicator needs.
pub(super) struct ToReplicate {
    pub metadata: String,
    pub max_row: i64,
    pub shard_max_row: i64,
    /// Whether all rows are of one policy, and the reconciler's sync point says so.
    pub is_looked_through: bool,
}

/// What a policy's objects in one container amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyStats {
    pub object_count: i64,
    pub bytes_used: i64,
}

pub struct ContainerBroker {
    pub db: DatabaseBroker<Container>,
    /// `HASH.db`, which exists unless the container has been sharded.
    base_file: PathBuf,
    /// All database files of the container by epoch; empty as long as none was found.
    files: Vec<PathBuf>,
    shared: Arc<Shared>,
    options: Options,
}

/// One entry of an object listing.
pub enum ObjectEntry<'a> {
    Object {
        name: &'a str,
        /// When the object or its metadata last changed.
        last_modified: Timestamp,
        size: Option<i64>,
        content_type: &'a str,
        etag: Option<&'a str>,
    },
    Subdir(&'a str),
}

impl ContainerBroker {
    /// `db_file` is a database file of the container, with or without epoch; it need not exist.
    pub fn new(shared: &Arc<Shared>, db_file: &Path, options: Options) -> Self {
        let base_file = without_epoch(db_file);
        let db = DatabaseBroker::new(shared, base_file.clone(), &base_file, options.clone());
        Self { db, base_file, files: Vec::new(), shared: shared.clone(), options }
    }

    /// Of this very file, whatever else is in its directory.
    pub fn of_file(shared: &Arc<Shared>, file: &Path) -> Self {
        let options = Options::received();
        let db = DatabaseBroker::new(shared, file.to_owned(), file, options.clone());
        let (base_file, files) = (file.to_owned(), vec![file.to_owned()]);
        Self { db, base_file, files, shared: shared.clone(), options }
    }

    /// Whether the container has a database here.
    pub fn exists(&mut self) -> Result<bool> {
        self.find_files()?;
        Ok(!self.files.is_empty())
    }

    /// The quick look: true for any container that was never sharded.
    pub fn has_base_file(&self) -> bool {
        self.base_file.exists()
    }

    /// Store an object's row. Never looks into the database, so that it costs an append.
    pub fn put_object(&mut self, record: ObjectRecord) -> Result<()> {
        match self.db.put_record(&record) {
            // The database of a sharded container has another name, and its pending file has not.
            Err(BrokerError::NotExist(_)) if self.exists()? => self.db.put_record(&record),
            other => other,
        }
    }

    pub fn merge_items(&mut self, records: Vec<ObjectRecord>) -> Result<()> {
        self.find_files()?;
        self.db.merge_items(records)
    }

    pub fn initialize(
        &mut self,
        account: &str,
        container: &str,
        put_timestamp: &str,
        storage_policy_index: i64,
    ) -> Result<()> {
        let created_at = self.shared.clock.now().normal();
        let new = NewContainer { account, container, created_at, put_timestamp, storage_policy_index };
        self.db.initialize(|sqlite, id| schema::create(sqlite, id, &new))?;
        self.find_files()
    }

    pub fn info(&mut self) -> Result<ContainerInfo> {
        self.find_files()?;
        self.db.commit_puts()?;
        let mut info = self.read_info()?;
        self.add_shard_stats(&mut info)?;
        Ok(info)
    }

    /// The statistics with all else that replicas tell each other. Merges what is pending; then it is one statement, as most of what a
    /// statement costs is its preparation, and a replicator asks each database once.
    pub(super) fn info_to_replicate(&mut self) -> Result<(ContainerInfo, ToReplicate)> {
        self.find_files()?;
        self.db.commit_puts()?;
        let (mut info, more) = match self.db.read(query_to_replicate) {
            Err(BrokerError::Sqlite(_, error)) if is_missing(&error, "no such ") => self.read_old_info()?,
            other => other?,
        };
        self.add_shard_stats(&mut info)?;
        Ok((info, more))
    }

    /// The same from a database that lacks tables or columns.
    fn read_old_info(&mut self) -> Result<(ContainerInfo, ToReplicate)> {
        let info = self.read_info()?;
        let (metadata, max_row) = (self.db.raw_metadata()?, self.db.max_row()?);
        let shard_max_row = self.db.read(|sqlite| max_row_of(sqlite, shard_range::TABLE))?;
        let is_looked_through = !self.has_multiple_policies()? && self.reconciler_sync()? == max_row;
        Ok((info, ToReplicate { metadata, max_row, shard_max_row, is_looked_through }))
    }

    /// A container without a database is deleted, too.
    pub fn is_deleted(&mut self) -> Result<bool> {
        if !self.exists()? {
            return Ok(true);
        }
        Ok(self.info()?.is_deleted())
    }

    /// Whether there are no objects of any policy (stricter than what `is_deleted` asks).
    pub fn is_empty(&mut self) -> Result<bool> {
        self.find_files()?;
        if let Some(mut retiring) = self.retiring_broker()
            && !retiring.has_no_objects()?
        {
            return Ok(false);
        }
        if !self.has_no_objects()? {
            return Ok(false);
        }
        let path = self.path()?;
        let (own, objects) = self.db.read(|sqlite| {
            let others = shards::has_others(sqlite, &path)?;
            let objects = if others { shards::usage(sqlite, &path)?.0 } else { 0 };
            Ok((shards::own_shard_range(sqlite, &path)?, objects))
        })?;
        let sharding = objects > 0 && own.is_some_and(|own| own.is_cleaving());
        Ok(!sharding || !self.is_root_container()?)
    }

    /// Whether the container is nobody's shard.
    pub fn is_root_container(&mut self) -> Result<bool> {
        self.find_files()?;
        let path = self.path()?;
        if let Some(root) = self.root_path()? {
            return Ok(root == path);
        }
        // A shard that shrank has lost its sysmeta, and its own shard range is deleted; a root's never is.
        let own = self.own_shard_range(&path)?;
        Ok(own.is_none_or(|own| !own.deleted))
    }

    /// Account and container of the root: of itself, if it is nobody's shard.
    pub fn root_names(&mut self) -> Result<(String, String)> {
        let path = self.path()?;
        let root = self.root_path()?.unwrap_or(path);
        let (account, container) = root.split_once('/').unwrap_or((&root, ""));
        Ok((account.to_owned(), container.to_owned()))
    }

    /// What the sysmeta of a shard says of its root.
    fn root_path(&mut self) -> Result<Option<String>> {
        let metadata = self.db.metadata()?;
        if let Some(quoted) = metadata.value("X-Container-Sysmeta-Shard-Quoted-Root") {
            let root = common::quote::unquote(quoted.as_bytes());
            return Ok(Some(String::from_utf8_lossy(&root).into_owned()));
        }
        Ok(metadata.value("X-Container-Sysmeta-Shard-Root").map(str::to_owned))
    }

    pub fn storage_policy_index(&mut self) -> Result<i64> {
        Ok(self.info()?.storage_policy_index)
    }

    pub fn policy_stats(&mut self) -> Result<Vec<(i64, PolicyStats)>> {
        self.find_files()?;
        self.db.read(|sqlite| {
            match query_policy_stats(
                sqlite,
                "storage_policy_index, object_count, bytes_used FROM policy_stat",
            ) {
                Err(error) if is_before_policies(&error) => {
                    query_policy_stats(sqlite, "0, object_count, bytes_used FROM container_stat")
                }
                other => other,
            }
        })
    }

    /// Give a container that is created anew the policy it was asked for.
    pub fn set_storage_policy_index(&mut self, policy_index: i64, timestamp: &str) -> Result<()> {
        let set = |sqlite: &Connection| {
            sqlite
                .prepare_cached("INSERT OR IGNORE INTO policy_stat (storage_policy_index) VALUES (?)")?
                .execute([policy_index])?;
            sqlite
                .prepare_cached(
                    "UPDATE container_stat SET storage_policy_index = ?1, \
                     status_changed_at = MAX(?2, status_changed_at) WHERE storage_policy_index <> ?1",
                )?
                .execute(params![policy_index, timestamp])
                .map(drop)
        };
        self.migrate_if_old()?;
        self.db.write(set)
    }

    /// Whether there were ever objects of more than one policy.
    pub fn has_multiple_policies(&mut self) -> Result<bool> {
        let counted = self.db.read(|sqlite| {
            sqlite
                .prepare_cached("SELECT count(storage_policy_index) FROM policy_stat")?
                .query_row([], |row| row.get::<_, i64>(0))
        });
        match counted {
            Err(BrokerError::Sqlite(_, error)) if is_before_policies(&error) => Ok(false),
            other => Ok(other? > 1),
        }
    }

    /// Up to which row objects in the wrong policy have been told to the reconciler.
    pub fn reconciler_sync(&mut self) -> Result<i64> {
        let point = self.db.read(|sqlite| {
            sqlite
                .prepare_cached("SELECT reconciler_sync_point FROM container_stat")?
                .query_row([], |row| row.get::<_, Option<i64>>(0))
        });
        match point {
            Err(BrokerError::Sqlite(_, error))
                if is_missing(&error, "no such column: reconciler_sync_point") =>
            {
                Ok(-1)
            }
            other => Ok(other?.unwrap_or(-1)),
        }
    }

    pub fn update_reconciler_sync(&mut self, point: i64) -> Result<()> {
        self.migrate_if_old()?;
        self.db.transaction(Synced::Normal, |sqlite| {
            sqlite
                .prepare_cached("UPDATE container_stat SET reconciler_sync_point = ?")?
                .execute([point])
                .map(drop)
        })
    }

    /// Rows after `start` of objects in another policy than the container's, with their ROWIDs. Merges what is pending.
    pub fn misplaced_since(&mut self, start: i64, limit: usize) -> Result<Vec<(i64, ObjectRecord)>> {
        self.find_files()?;
        self.db.commit_puts()?;
        let rows = self.db.read(|sqlite| {
            let mut statement = sqlite.prepare_cached(
                "SELECT ROWID, name, created_at, deleted, storage_policy_index FROM object \
                 WHERE ROWID > ? AND storage_policy_index != \
                 (SELECT storage_policy_index FROM container_stat LIMIT 1) ORDER BY ROWID ASC LIMIT ?",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map([start, limit], |row| {
                let record = ObjectRecord {
                    name: row.get(1)?,
                    created_at: row.get(2)?,
                    deleted: row.get::<_, i64>(3)? != 0,
                    storage_policy_index: row.get(4)?,
                    ..ObjectRecord::default()
                };
                Ok((row.get(0)?, record))
            })?;
            rows.collect()
        });
        match rows {
            Err(BrokerError::Sqlite(_, error)) if is_before_policies(&error) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Up to which row objects have been synced elsewhere: by their share of the primaries, and by all of them. A point that is not
    /// given stays.
    pub fn set_x_container_sync_points(&mut self, point1: Option<i64>, point2: Option<i64>) -> Result<()> {
        self.migrate_if_old()?;
        self.db.write(|sqlite| {
            sqlite
                .prepare_cached(
                    "UPDATE container_stat SET x_container_sync_point1 = IFNULL(?, x_container_sync_point1), \
                     x_container_sync_point2 = IFNULL(?, x_container_sync_point2)",
                )?
                .execute([point1, point2])
                .map(drop)
        })
    }

    /// Rows after `start` in their order, of any policy, with their ROWIDs. Merges what is pending.
    pub fn rows_since(&mut self, start: i64, limit: usize) -> Result<Vec<(i64, ObjectRecord)>> {
        self.find_files()?;
        self.db.commit_puts()?;
        self.db.read(|sqlite| {
            let mut statement = sqlite.prepare_cached(
                "SELECT ROWID, name, created_at, size, content_type, etag, deleted FROM object \
                 WHERE ROWID > ? ORDER BY ROWID ASC LIMIT ?",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let text = |row: &rusqlite::Row<'_>, at| {
                Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(at)?.unwrap_or_default())
            };
            let rows = statement.query_map([start, limit], |row| {
                let record = ObjectRecord {
                    name: row.get(1)?,
                    created_at: row.get(2)?,
                    size: lenient_int(row, 3)?.unwrap_or(0),
                    content_type: text(row, 4)?,
                    etag: text(row, 5)?,
                    deleted: lenient_int(row, 6)?.unwrap_or(0) != 0,
                    ..ObjectRecord::default()
                };
                Ok((row.get(0)?, record))
            })?;
            rows.collect()
        })
    }

    /// Remember what the account has been told.
    pub fn reported(&mut self, told: &ContainerInfo) -> Result<()> {
        self.db.write(|sqlite| {
            sqlite
                .prepare_cached(
                    "UPDATE container_stat SET reported_put_timestamp = ?, reported_delete_timestamp = ?, \
                     reported_object_count = ?, reported_bytes_used = ?",
                )?
                .execute(params![
                    told.put_timestamp,
                    told.delete_timestamp,
                    told.object_count,
                    told.bytes_used
                ])
                .map(drop)
        })
    }

    /// Call `emit` for each object or subdir of a listing of one policy's objects.
    pub fn list_objects(
        &mut self,
        query: &Query,
        storage_policy_index: i64,
        mut emit: impl FnMut(ObjectEntry<'_>),
    ) -> Result<()> {
        self.find_files()?;
        // While a container is being sharded the retiring database is still the whole one.
        let mut retiring = self.retiring_broker();
        let db = retiring.as_mut().map_or(&mut self.db, |retiring| &mut retiring.db);
        db.commit_puts()?;
        let filter = format!("deleted = 0 AND storage_policy_index = {storage_policy_index}");
        let columns = "created_at, size, content_type, etag";
        let source = Source { columns, table: "object", filter: &filter };
        let legacy = Source { filter: "deleted = 0", ..source };
        let mut row = |entry: Entry<'_>| emit_object(entry, &mut emit);
        db.read(|sqlite| match listing::walk(sqlite, &source, query, &mut row) {
            Err(error) if is_before_policies(&error) => listing::walk(sqlite, &legacy, query, &mut row),
            other => other,
        })
    }

    /// Whether its own shard range says that its objects go to other containers, and there are such.
    pub fn sharding_initiated(&mut self) -> Result<bool> {
        let path = self.path()?;
        let cleaving = self.own_shard_range(&path)?.is_some_and(|own| own.is_cleaving());
        Ok(cleaving && self.has_other_shard_ranges(&path)?)
    }

    /// Whether sharding has begun, or is to begin, and is not done.
    pub fn sharding_required(&mut self) -> Result<bool> {
        self.find_files()?;
        let path = self.path()?;
        Ok(match self.db_state(&path)? {
            DbState::Sharding => true,
            DbState::Unsharded => self.sharding_initiated()?,
            _ => false,
        })
    }

    pub fn has_other_shard_ranges(&mut self, path: &str) -> Result<bool> {
        self.db.read(|sqlite| shards::has_others(sqlite, path))
    }

    /// Those of other containers that are not deleted.
    pub fn shard_ranges(&mut self) -> Result<Vec<ShardRange>> {
        self.list_shard_ranges(&ShardQuery::default())
    }

    pub(super) fn list_shard_ranges(&mut self, query: &ShardQuery) -> Result<Vec<ShardRange>> {
        let path = self.path()?;
        let now = self.shared.clock.now();
        self.db.read(|sqlite| shard_listing::list(sqlite, &path, query, now))
    }

    pub(super) fn merge_shard_ranges(&mut self, ranges: Vec<ShardRange>) -> Result<()> {
        self.find_files()?;
        self.db.read(shard_range::migrate)?;
        self.db.write(|sqlite| shard_range::merge(sqlite, ranges))
    }

    /// The broker of the older of two database files. What is pending belongs to the newer.
    fn retiring_broker(&self) -> Option<ContainerBroker> {
        let file = self.files.len().checked_sub(2).and_then(|at| self.files.get(at))?;
        let options = Options { skip_commits: true, ..self.options.clone() };
        let db = DatabaseBroker::new(&self.shared, file.clone(), &self.base_file, options.clone());
        let (base_file, shared) = (self.base_file.clone(), self.shared.clone());
        Some(ContainerBroker { db, base_file, files: vec![file.clone()], shared, options })
    }

    fn has_no_objects(&mut self) -> Result<bool> {
        self.db.commit_puts()?;
        let count: Sql = self.db.read(|sqlite| {
            let largest = |sql: &str| sqlite.query_row(sql, [], |row| row.get(0));
            match largest("SELECT max(object_count) FROM policy_stat") {
                Err(error) if is_before_policies(&error) => {
                    largest("SELECT object_count FROM container_stat")
                }
                other => other,
            }
        })?;
        Ok(zero_like(&count))
    }

    fn read_info(&mut self) -> Result<ContainerInfo> {
        self.db.read(|sqlite| match query_info(sqlite, "storage_policy_index") {
            Err(error) if is_before_policies(&error) => query_info(sqlite, "0"),
            other => other,
        })
    }

    /// Where the objects are elsewhere, so are their counts.
    fn add_shard_stats(&mut self, info: &mut ContainerInfo) -> Result<()> {
        let path = format!("{}/{}", info.account, info.container);
        info.db_state = self.db_state(&path)?;
        match info.db_state {
            DbState::Sharding => {
                if let Some(mut retiring) = self.retiring_broker() {
                    let other = retiring.read_info()?;
                    (info.object_count, info.bytes_used) = (other.object_count, other.bytes_used);
                }
            }
            DbState::Sharded if self.is_root_container()? => {
                (info.object_count, info.bytes_used) = self.db.read(|sqlite| shards::usage(sqlite, &path))?;
            }
            _ => {}
        }
        Ok(())
    }

    pub fn db_state(&mut self, path: &str) -> Result<DbState> {
        if self.files.len() > 1 {
            return Ok(DbState::Sharding);
        }
        let Some(file) = self.files.first() else { return Ok(DbState::NotFound) };
        let Some(epoch) = epoch_of(file) else { return Ok(DbState::Unsharded) };
        let own = self.own_shard_range(path)?;
        if own.and_then(|own| own.epoch) != Some(epoch) {
            return Ok(DbState::Unsharded);
        }
        let others = self.has_other_shard_ranges(path)?;
        Ok(if others { DbState::Sharded } else { DbState::Collapsed })
    }

    fn own_shard_range(&mut self, path: &str) -> Result<Option<OwnShardRange>> {
        self.db.read(|sqlite| shards::own_shard_range(sqlite, path))
    }

    /// `account/container`, as the database has it.
    pub fn path(&mut self) -> Result<String> {
        self.find_files()?;
        self.db.read(|sqlite| {
            sqlite
                .prepare_cached("SELECT account || '/' || container FROM container_stat")?
                .query_row([], |row| row.get(0))
        })
    }

    /// Bring the schema up to storage policies, before something of theirs is written.
    pub(super) fn migrate_if_old(&mut self) -> Result<()> {
        self.find_files()?;
        self.db.read(|sqlite| {
            match sqlite.prepare_cached("SELECT storage_policy_index FROM container_stat LIMIT 0") {
                Ok(_) => Ok(()),
                Err(error) => schema::migrate(sqlite, &error).map(drop),
            }
        })
    }

    /// Look which database files there are, unless some are known.
    pub(super) fn find_files(&mut self) -> Result<()> {
        if self.files.is_empty() {
            self.files =
                db_files(&self.base_file).map_err(|error| BrokerError::Io(self.base_file.clone(), error))?;
            if let Some(newest) = self.files.last() {
                self.db.switch_to(newest.clone());
            }
        }
        Ok(())
    }
}

fn emit_object(entry: Entry<'_>, emit: &mut impl FnMut(ObjectEntry<'_>)) -> rusqlite::Result<()> {
    let (name, row) = match entry {
        Entry::Subdir(name) => {
            emit(ObjectEntry::Subdir(name));
            return Ok(());
        }
        Entry::Row(name, row) => (name, row),
    };
    let created_at = row.get_ref(1)?.as_str_or_null()?.unwrap_or_default();
    let size = lenient_int(row, 2)?;
    let content_type = row.get_ref(3)?.as_bytes_or_null()?.map(String::from_utf8_lossy);
    let etag = row.get_ref(4)?.as_bytes_or_null()?.map(String::from_utf8_lossy);
    match content_type {
        // A listing tells subdirs from objects by the content type.
        None => emit(ObjectEntry::Subdir(name)),
        Some(content_type) => emit(ObjectEntry::Object {
            name,
            last_modified: rows::last_modified(created_at),
            size,
            content_type: &content_type,
            etag: etag.as_deref(),
        }),
    }
    Ok(())
}

fn query_policy_stats(sqlite: &Connection, what: &str) -> rusqlite::Result<Vec<(i64, PolicyStats)>> {
    let mut statement = sqlite.prepare_cached(&format!("SELECT {what}"))?;
    let rows = statement.query_map([], |row| {
        Ok((row.get(0)?, PolicyStats { object_count: row.get(1)?, bytes_used: row.get(2)? }))
    })?;
    rows.collect()
}

fn query_info(sqlite: &Connection, policy_column: &str) -> rusqlite::Result<ContainerInfo> {
    query_info_and(sqlite, policy_column, "", "container_stat", |_, _| Ok(())).map(|(info, ())| info)
}

fn query_to_replicate(sqlite: &Connection) -> rusqlite::Result<(ContainerInfo, ToReplicate)> {
    let more = ", metadata, reconciler_sync_point, (SELECT count(*) FROM policy_stat), \
                (SELECT seq FROM SQLITE_SEQUENCE WHERE name = 'object'), \
                (SELECT seq FROM SQLITE_SEQUENCE WHERE name = 'shard_range')";
    // What the view `container_stat` is made of, which would have to be made first.
    let from = "container_info LEFT JOIN policy_stat USING (storage_policy_index)";
    query_info_and(sqlite, "storage_policy_index", more, from, |row, first| {
        let number =
            |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(first + at)?.unwrap_or(-1));
        let max_row = number(3)?;
        Ok(ToReplicate {
            metadata: row.get::<_, Option<String>>(first)?.unwrap_or_default(),
            max_row,
            shard_max_row: number(4)?,
            is_looked_through: number(2)? <= 1 && number(1)? == max_row,
        })
    })
}

/// The statistics `from` a table of them, and what `read` makes of `more` columns, the first of which it is told.
fn query_info_and<T>(
    sqlite: &Connection,
    policy_column: &str,
    more: &str,
    from: &str,
    read: impl FnOnce(&rusqlite::Row<'_>, usize) -> rusqlite::Result<T>,
) -> rusqlite::Result<(ContainerInfo, T)> {
    let sql = |sync_columns: &str| {
        format!(
            "SELECT account, container, created_at, put_timestamp, delete_timestamp, status, status_changed_at, \
             object_count, bytes_used, reported_put_timestamp, reported_delete_timestamp, reported_object_count, \
             reported_bytes_used, hash, id, {policy_column}, {sync_columns}{more} FROM {from}"
        )
    };
    let statement = match sqlite.prepare_cached(&sql("x_container_sync_point1, x_container_sync_point2")) {
        Err(error) if is_missing(&error, "no such column: x_container_sync_point") => {
            sqlite.prepare_cached(&sql("-1, -1"))
        }
        other => other,
    };
    statement?.query_row([], |row| {
        let text = |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(index)?.unwrap_or_default());
        let count = |index| Ok::<_, rusqlite::Error>(lenient_int(row, index)?.unwrap_or(0));
        let info = ContainerInfo {
            account: text(0)?,
            container: text(1)?,
            created_at: text(2)?,
            put_timestamp: text(3)?,
            delete_timestamp: text(4)?,
            status: text(5)?,
            status_changed_at: text(6)?,
            object_count: count(7)?,
            bytes_used: count(8)?,
            reported_put_timestamp: text(9)?,
            reported_delete_timestamp: text(10)?,
            reported_object_count: count(11)?,
            reported_bytes_used: count(12)?,
            hash: text(13)?,
            id: text(14)?,
            storage_policy_index: count(15)?,
            x_container_sync_point1: count(16)?,
            x_container_sync_point2: count(17)?,
            db_state: DbState::Unsharded,
        };
        Ok((info, read(row, 18)?))
    })
}

fn is_before_policies(error: &rusqlite::Error) -> bool {
    is_missing(error, "no such column: storage_policy_index")
        || is_missing(error, "no such table: policy_stat")
}

fn stamp(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap_or_default()
}

/// `HASH_EPOCH.db` is `HASH.db` here.
fn without_epoch(db_file: &Path) -> PathBuf {
    let name = db_file.file_name().unwrap_or_default().to_string_lossy();
    let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
    let hash = stem.split('_').next().unwrap_or(stem);
    db_file.with_file_name(format!("{hash}.{extension}"))
}

fn epoch_of(db_file: &Path) -> Option<Timestamp> {
    let stem = db_file.file_stem()?.to_str()?;
    Timestamp::parse(stem.split('_').nth(1)?).ok()
}

/// The database files of a container, oldest epoch first.
pub fn db_files(base_file: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(hash)) = (base_file.parent(), base_file.file_stem()) else { return Ok(Vec::new()) };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_database = path.extension().is_some_and(|extension| extension == "db");
        if is_database && without_epoch(&path).file_stem() == Some(hash) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
