//! What account and container databases have in common (swift/common/db.py).
//!
//! A database lives in a directory of its own:
//!
//! ```text
//! DEVICE/{accounts,containers}/PARTITION/SUFFIX/HASH/HASH.db            SQLite, rollback journal
//!                                                    HASH.db.pending    rows not yet in SQLite
//!                                                    .lock              flock of who appends or merges
//! DEVICE/quarantined/{accounts,containers}/HASH[-UUID]                  the whole directory of a corrupt database
//! ```
//!
//! **The pending file** holds `:` + base64(pickle protocol 2 of a tuple) per row, appended under the directory's lock. A row's PUT
//! costs that append and never opens the database. Who reads the database first takes the lock, merges the rows in one
//! transaction and truncates the file; a crash between the two merges the same rows again, which changes nothing. Over
//! `PENDING_CAP` bytes a PUT merges at once. As in Swift the append is not synced: after a loss of power the row is what
//! replication from the other two replicas brings back.
//!
//! **Durability.** A new database is written under a `.tmp` name with all syncs off, synced once, and renamed under the lock. Merges
//! run with `synchronous = NORMAL` as in Swift. What a client was answered for (timestamps, metadata, deletion) is committed with
//! `synchronous = EXTRA`, which is stricter than Swift: without the sync of the directory a power loss could bring the rollback
//! journal back to life.
//!
//! Not here: what only database replication uses (sync points, row ranges, reclaim: `replication`) and `db_preallocation`, which would
//! have to open the file beside SQLite (see `connections`).

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::clock::Clock;
use common::fs::{self, LockError};
use common::pickle::{self, Value};
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use serde::de::{Deserialize, Deserializer, Error};

use crate::connections::{self, ConnectError, Connections, DbConnection};
use crate::metadata::{Metadata, MetadataLimits};

/// How long a statement waits for another process' lock on the database.
pub const BROKER_TIMEOUT: Duration = Duration::from_secs(25);
/// How long an append or a merge waits for the directory's lock.
pub const PENDING_TIMEOUT: Duration = Duration::from_secs(10);
/// Size of the pending file from which on a new row merges the file.
pub const PENDING_CAP: u64 = 131_072;

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("DB connection error ({0}): DB doesn't exist")]
    NotExist(PathBuf),
    #[error("DB {0} already exists")]
    AlreadyExists(PathBuf),
    #[error("DB connection error ({0}): commits not accepted")]
    CommitsNotAccepted(PathBuf),
    #[error("timeout waiting for a lock on {0}")]
    LockTimeout(PathBuf),
    /// The metadata that a client sent is over a limit: the text of a 400.
    #[error("{0}")]
    InvalidMetadata(String),
    /// The database was moved away; the text says where and why.
    #[error("{0}")]
    Quarantined(String),
    #[error("{0}: {1}")]
    Sqlite(PathBuf, rusqlite::Error),
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
}

impl BrokerError {
    /// Whether the stat table has no row.
    pub fn is_rowless(&self) -> bool {
        matches!(self, Self::Sqlite(_, rusqlite::Error::QueryReturnedNoRows))
    }

    /// Whether the device is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io(_, error) => fs::is_no_space(error),
            Self::Sqlite(_, rusqlite::Error::SqliteFailure(cause, _)) => cause.code == ErrorCode::DiskFull,
            _ => false,
        }
    }
}

pub type Result<T> = std::result::Result<T, BrokerError>;

/// What all brokers of a process share.
pub struct Shared {
    pub connections: Connections,
    pub clock: Clock,
    /// Takes the lines for the log that concern no request: a pending entry that cannot be read, a quarantine.
    pub log_error: Box<dyn Fn(&str) + Send + Sync>,
}

impl Shared {
    pub fn new(clock: Clock, log_error: impl Fn(&str) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { connections: Connections::default(), clock, log_error: Box::new(log_error) })
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub timeout: Duration,
    pub pending_timeout: Duration,
    /// Read the database without the pending rows when they cannot be merged now.
    pub stale_reads_ok: bool,
    /// Never merge pending rows: this is the retiring database of a container that is being sharded.
    pub skip_commits: bool,
    /// Leave a corrupt file where it is: it is not in a directory of its own.
    pub never_quarantine: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: BROKER_TIMEOUT,
            pending_timeout: PENDING_TIMEOUT,
            stale_reads_ok: false,
            skip_commits: false,
            never_quarantine: false,
        }
    }
}

impl Options {
    /// For a file that rsync has brought into `tmp`.
    pub fn received() -> Self {
        Self { never_quarantine: true, ..Self::default() }
    }

    /// For GET and HEAD, which rather answer with old statistics than wait.
    pub fn reading() -> Self {
        Self { pending_timeout: Duration::from_millis(100), stale_reads_ok: true, ..Self::default() }
    }
}

/// What differs between the two kinds of database.
pub trait Kind {
    /// `account` or `container`: the stat table is `<DB_TYPE>_stat`.
    const DB_TYPE: &'static str;
    /// `container` or `object`: the table of rows.
    const DB_CONTAINS_TYPE: &'static str;
    /// The column of a deleted row that says since when it may be forgotten.
    const DB_RECLAIM_TIMESTAMP: &'static str;
    /// Metadata (lower case) that outlives the deletion of the database.
    const DELETE_META_WHITELIST: &'static [&'static str];
    type Record: Clone;
    fn to_pickle(record: &Self::Record) -> Value;
    fn from_pickle(entry: Value) -> Option<Self::Record>;
    /// A row of a JSON body: an object with the names of the columns.
    fn from_json(item: &serde_json::Value) -> Option<Self::Record>;
    /// The same from the text, with the ROWID. May refuse what `from_json` takes.
    fn read_json<'de, D: Deserializer<'de>>(
        row: D,
    ) -> std::result::Result<(Self::Record, Option<i64>), D::Error> {
        let item = serde_json::Value::deserialize(row)?;
        let record = Self::from_json(&item).ok_or_else(|| D::Error::custom("not a row"))?;
        Ok((record, item.get("ROWID").and_then(serde_json::Value::as_i64)))
    }
    /// Merge rows; runs inside a transaction.
    fn merge(sqlite: &Connection, records: Vec<Self::Record>) -> rusqlite::Result<()>;
    /// Bring an old schema up to what `merge` needs, if `error` says that it lacks it. Runs outside a transaction.
    fn migrate(sqlite: &Connection, error: &rusqlite::Error) -> rusqlite::Result<bool>;
}

pub struct DatabaseBroker<K: Kind> {
    pub shared: Arc<Shared>,
    pub options: Options,
    /// The file that connections open.
    pub db_file: PathBuf,
    pending_file: PathBuf,
    connection: Option<DbConnection>,
    kind: std::marker::PhantomData<K>,
}

/// When a commit is on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// As in Swift: but for the deletion of the journal.
    Normal,
    Extra,
}

impl<K: Kind> DatabaseBroker<K> {
    /// `base_file` is the path without an epoch (`HASH.db`): the pending file is named after it.
    pub fn new(shared: &Arc<Shared>, db_file: PathBuf, base_file: &Path, options: Options) -> Self {
        Self {
            shared: shared.clone(),
            options,
            db_file,
            pending_file: pending_file(base_file),
            connection: None,
            kind: std::marker::PhantomData,
        }
    }

    pub fn db_dir(&self) -> &Path {
        self.db_file.parent().unwrap_or(Path::new("."))
    }

    /// Four levels above the directory: DEVICE/containers/PARTITION/SUFFIX/HASH.
    pub fn device_path(&self) -> &Path {
        self.db_dir().ancestors().nth(4).unwrap_or(Path::new("."))
    }

    pub fn exists(&self) -> bool {
        self.db_file.exists()
    }

    /// Use another file of the same directory from now on.
    pub fn switch_to(&mut self, db_file: PathBuf) {
        if db_file != self.db_file {
            self.release();
            self.db_file = db_file;
        }
    }

    // --- statements ---

    pub fn read<T>(&mut self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let result = f(&self.connect()?.sqlite);
        result.map_err(|error| self.fail(error))
    }

    /// Run `f` in a transaction whose commit survives a loss of power.
    pub fn write<T>(&mut self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.transaction(Synced::Extra, f)
    }

    pub fn transaction<T>(
        &mut self,
        sync: Synced,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let result = in_transaction(&self.connect()?.sqlite, sync, f);
        result.map_err(|error| self.fail(error))
    }

    fn connect(&mut self) -> Result<&DbConnection> {
        if self.connection.is_none() {
            let connected = self.shared.connections.connect(&self.db_file, self.options.timeout);
            self.connection = Some(connected.map_err(|error| match error {
                ConnectError::NotExist => BrokerError::NotExist(self.db_file.clone()),
                ConnectError::Io(error) => BrokerError::Io(self.db_file.clone(), error),
                ConnectError::Sqlite(error) => self.fail(error),
            })?);
        }
        Ok(self.connection.as_ref().expect("connected above"))
    }

    /// Keep everybody from writing into the file until the result is dropped; reading goes on.
    pub fn lock_database(&mut self) -> Result<LockedDatabase> {
        self.read(|sqlite| sqlite.execute_batch("BEGIN IMMEDIATE"))?;
        Ok(LockedDatabase { _connection: self.connection.take() })
    }

    /// Sync the file, whoever wrote it, and close it.
    pub fn sync(&mut self) -> Result<()> {
        self.close();
        let failed = |error| BrokerError::Io(self.db_file.clone(), error);
        // No connection to the file is left, so closing this descriptor drops nobody's lock.
        File::open(&self.db_file).and_then(fs::fsync).map_err(failed)
    }

    /// Close the connection instead of keeping it: the file is about to get another name, or to go.
    pub fn close(&mut self) {
        self.connection = None;
        self.shared.connections.close(&self.db_file);
    }

    /// Give the connection back for the next broker.
    fn release(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.shared.connections.put_back(connection);
        }
    }

    /// What an SQLite error means for the database. The connection is not used again.
    fn fail(&mut self, error: rusqlite::Error) -> BrokerError {
        self.connection = None;
        let rusqlite::Error::SqliteFailure(cause, _) = &error else {
            return BrokerError::Sqlite(self.db_file.clone(), error);
        };
        let reason = match cause.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                return BrokerError::LockTimeout(self.db_file.clone());
            }
            ErrorCode::DatabaseCorrupt => "malformed database",
            ErrorCode::NotADatabase => "corrupted database",
            ErrorCode::SystemIoFailure => "disk error while accessing database",
            _ => return BrokerError::Sqlite(self.db_file.clone(), error),
        };
        self.quarantine(reason)
    }

    /// Move the database's directory to `quarantined/` on its device; the result says so.
    pub fn quarantine(&mut self, reason: &str) -> BrokerError {
        self.connection = None;
        if self.options.never_quarantine {
            return BrokerError::Quarantined(format!("{}: {reason}", self.db_file.display()));
        }
        let db_dir = self.db_dir().to_owned();
        let name = db_dir.file_name().unwrap_or_default();
        let place = self.device_path().join("quarantined").join(format!("{}s", K::DB_TYPE));
        let mut target = place.join(name);
        let mut moved = fs::rename_durable(&db_dir, &target);
        if moved.as_ref().is_err_and(is_taken) {
            let mut unique = name.to_owned();
            unique.push(format!("-{}", uuid_hex()));
            target = place.join(unique);
            moved = fs::rename_durable(&db_dir, &target);
        }
        if let Err(error) = moved {
            return BrokerError::Io(db_dir, error);
        }
        let detail = format!("Quarantined {} to {} due to {reason}", db_dir.display(), target.display());
        (self.shared.log_error)(&detail);
        BrokerError::Quarantined(detail)
    }

    // --- the pending file ---

    /// Store a row: into the pending file while that is small, else into the database with all that is pending.
    pub fn put_record(&mut self, record: &K::Record) -> Result<()> {
        if self.options.skip_commits {
            return Err(BrokerError::CommitsNotAccepted(self.db_file.clone()));
        }
        let entry = pickle::dumps(&K::to_pickle(record));
        let mut line = String::with_capacity(entry.len() * 4 / 3 + 5);
        line.push(':');
        BASE64.encode_string(&entry, &mut line);
        if !self.exists() {
            return Err(BrokerError::NotExist(self.db_file.clone()));
        }
        let _lock = self.lock()?;
        // A replicator may have removed this copy while we waited: then nobody would ever read the entry.
        if !self.exists() {
            return Err(BrokerError::NotExist(self.db_file.clone()));
        }
        let mut pending = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.pending_file)
            .map_err(|error| self.pending_error(error))?;
        let size = pending.metadata().map_err(|error| self.pending_error(error))?.len();
        if size > PENDING_CAP {
            drop(pending);
            return self.merge_pending(Some(record.clone()));
        }
        fs::fail::hit("db.pending.append").map_err(|error| self.pending_error(error))?;
        // A crash before leaves no row, one after it a row that nobody was answered for.
        pending.write_all(line.as_bytes()).map_err(|error| {
            // What a full disk took of the entry is no entry.
            let _ = pending.set_len(size);
            self.pending_error(error)
        })
    }

    /// Merge what is pending before a read. When that fails and stale reads are fine, read without it.
    pub fn commit_puts(&mut self) -> Result<()> {
        if self.options.skip_commits || !self.has_pending() {
            return Ok(());
        }
        let merged = self.lock().and_then(|_lock| self.merge_pending(None));
        match merged {
            // Locked, or the disk is full: what is in the database can still be read.
            Err(BrokerError::LockTimeout(_) | BrokerError::Sqlite(..)) if self.options.stale_reads_ok => {
                Ok(())
            }
            other => other,
        }
    }

    /// Merge rows at once, past the pending file.
    pub fn merge_items(&mut self, records: Vec<K::Record>) -> Result<()> {
        self.merge_items_and(records, |_| Ok(()))
    }

    /// The same, with `more` in the same transaction.
    pub fn merge_items_and(
        &mut self,
        records: Vec<K::Record>,
        more: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let sqlite = &self.connect()?.sqlite;
        let merge = |sqlite: &Connection| K::merge(sqlite, records).and_then(|()| more(sqlite));
        let result = migrate_if_old::<K>(sqlite).and_then(|()| in_transaction(sqlite, Synced::Normal, merge));
        result.map_err(|error| self.fail(error))
    }

    /// Whether rows wait in the pending file.
    pub fn has_pending(&self) -> bool {
        std::fs::metadata(&self.pending_file).is_ok_and(|pending| pending.len() > 0)
    }

    /// The lock of who appends to the pending file, merges it, or replaces the database.
    pub fn lock(&self) -> Result<fs::PathLock> {
        fs::lock_path(self.db_dir(), self.options.pending_timeout, None).map_err(|error| match error {
            LockError::Timeout(_, path) => BrokerError::LockTimeout(path),
            LockError::Io(error) => BrokerError::Io(self.db_dir().to_owned(), error),
        })
    }

    /// Merge the pending rows and `extra`, then empty the file. The lock is held.
    pub fn merge_pending(&mut self, extra: Option<K::Record>) -> Result<()> {
        let mut file = match OpenOptions::new().read(true).write(true).open(&self.pending_file) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.pending_error(error)),
        };
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(|error| self.pending_error(error))?;
        let mut records: Vec<K::Record> = extra.into_iter().collect();
        for entry in content.split(|byte| *byte == b':').filter(|entry| !entry.is_empty()) {
            match read_entry::<K>(entry) {
                Some(record) => records.push(record),
                None => (self.shared.log_error)(&format!(
                    "Invalid pending entry {}: {}",
                    self.pending_file.display(),
                    String::from_utf8_lossy(entry)
                )),
            }
        }
        if !records.is_empty() {
            self.merge_items(records)?;
        }
        fs::fail::hit("db.pending.merged").map_err(|error| self.pending_error(error))?;
        // A crash before this line leaves rows that will be merged once more, to no effect.
        file.rewind().and_then(|()| file.set_len(0)).map_err(|error| self.pending_error(error))
    }

    fn pending_error(&self, error: std::io::Error) -> BrokerError {
        BrokerError::Io(self.pending_file.clone(), error)
    }

    // --- creation ---

    /// Create the database: `tables` fills it, given the id that it shall have.
    pub fn initialize(
        &mut self,
        tables: impl FnOnce(&Connection, &str) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let db_dir = self.db_dir().to_owned();
        fs::mkdirs(&db_dir).map_err(|error| BrokerError::Io(db_dir.clone(), error))?;
        let temporary = temporary_file(&db_dir).map_err(|error| BrokerError::Io(db_dir.clone(), error))?;
        let failed = |error| BrokerError::Io(db_dir.clone(), error);
        let created = fs::fail::hit("db.fill")
            .map_err(failed)
            .and_then(|()| self.fill(&temporary, tables))
            .and_then(|()| self.publish(&temporary));
        if created.is_err() {
            // Best effort: what stays is a `.tmp` file that nobody reads.
            let _ = std::fs::remove_file(&temporary);
        }
        created
    }

    fn fill(
        &self,
        temporary: &Path,
        tables: impl FnOnce(&Connection, &str) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let failed = |error| BrokerError::Sqlite(temporary.to_owned(), error);
        let sqlite = connections::create(temporary).map_err(failed)?;
        let device = connections::device_name(self.device_path()).to_string_lossy();
        let id = new_db_id(&sqlite, &device).map_err(failed)?;
        let filled = sqlite.execute_batch("BEGIN").and_then(|()| {
            sqlite.execute_batch(SYNC_TABLES)?;
            tables(&sqlite, &id)?;
            sqlite.execute_batch("COMMIT")
        });
        filled.map_err(failed)?;
        sqlite.close().map_err(|(_, error)| failed(error))
    }

    /// Sync the finished file and give it its name, unless another process was faster.
    fn publish(&self, temporary: &Path) -> Result<()> {
        let failed = |error| BrokerError::Io(temporary.to_owned(), error);
        // No connection to the file is left, so closing this descriptor drops nobody's lock.
        File::open(temporary).and_then(fs::fsync).map_err(failed)?;
        let _lock = self.lock()?;
        if self.exists() {
            return Err(BrokerError::AlreadyExists(self.db_file.clone()));
        }
        fs::fail::hit("db.before_rename").map_err(failed)?;
        // Before: no database, a `.tmp` file. After: a whole, synced database.
        fs::rename_durable(temporary, &self.db_file).map_err(failed)
    }

    // --- the stat table ---

    /// The column as it stands.
    pub fn raw_metadata(&mut self) -> Result<String> {
        let sql = format!("SELECT metadata FROM {}_stat", K::DB_TYPE);
        let column = self.read(|sqlite| match metadata_column(sqlite, &sql) {
            Err(error) if is_missing(&error, "no such column: metadata") => Ok(Some(String::new())),
            other => other,
        })?;
        column.ok_or_else(|| self.quarantine_rowless())
    }

    /// A database whose stat table is empty goes to quarantine when its metadata are wanted or it is reclaimed; as in Swift its statistics are
    /// only an error.
    pub fn quarantine_rowless(&mut self) -> BrokerError {
        self.quarantine(&format!("missing row in {}_stat table", K::DB_TYPE))
    }

    pub fn metadata(&mut self) -> Result<Metadata> {
        let column = self.raw_metadata()?;
        Metadata::parse(&column).ok_or_else(|| {
            let what = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "metadata is not a JSON object of pairs",
            );
            BrokerError::Io(self.db_file.clone(), what)
        })
    }

    /// Merge metadata by timestamp; with `limits`, refuse what would then exceed them.
    pub fn update_metadata(&mut self, updates: &Metadata, limits: Option<MetadataLimits>) -> Result<()> {
        if !self.metadata()?.is_changed_by(updates) {
            return Ok(());
        }
        let mut refused = None;
        self.write(|sqlite| {
            let merged = merge_metadata::<K>(sqlite, updates)?;
            if let Some(Err(reason)) = limits.map(|limits| merged.validate(limits)) {
                refused = Some(reason);
                return Ok(());
            }
            write_metadata::<K>(sqlite, &merged)
        })?;
        refused.map_or(Ok(()), |reason| Err(BrokerError::InvalidMetadata(reason)))
    }

    /// Mark the database as deleted at `timestamp` (internal form) and empty its metadata. Stricter than Swift: both or neither.
    pub fn delete_db(&mut self, timestamp: &str) -> Result<()> {
        let mut cleared = Metadata::default();
        for (name, _) in self.metadata()?.iter() {
            if !K::DELETE_META_WHITELIST.contains(&name.to_lowercase().as_str()) {
                cleared.set(name.to_owned(), String::new(), timestamp.to_owned());
            }
        }
        self.write(|sqlite| {
            if !cleared.is_empty() {
                let merged = merge_metadata::<K>(sqlite, &cleared)?;
                write_metadata::<K>(sqlite, &merged)?;
            }
            let sql = format!(
                "UPDATE {}_stat SET delete_timestamp = ?1, status = 'DELETED', status_changed_at = ?1 \
                 WHERE delete_timestamp < ?1",
                K::DB_TYPE
            );
            sqlite.prepare_cached(&sql)?.execute([timestamp]).map(drop)
        })
    }

    pub fn update_put_timestamp(&mut self, timestamp: &str) -> Result<()> {
        self.raise("put_timestamp", timestamp)
    }

    pub fn update_status_changed_at(&mut self, timestamp: &str) -> Result<()> {
        self.raise("status_changed_at", timestamp)
    }

    /// Set a timestamp column of the stat table unless it is as late already.
    fn raise(&mut self, column: &str, timestamp: &str) -> Result<()> {
        self.write(|sqlite| {
            let sql = format!("UPDATE {}_stat SET {column} = ?1 WHERE {column} < ?1", K::DB_TYPE);
            sqlite.prepare_cached(&sql)?.execute([timestamp]).map(drop)
        })
    }
}

impl<K: Kind> Drop for DatabaseBroker<K> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Where the rows wait of a database that is called `base_file` without an epoch.
pub fn pending_file(base_file: &Path) -> PathBuf {
    let mut path = base_file.as_os_str().to_owned();
    path.push(".pending");
    path.into()
}

/// A database that nobody writes into. The lock is SQLite's, and ends with the connection.
pub struct LockedDatabase {
    _connection: Option<DbConnection>,
}

/// Tables that replication keeps its progress in; empty until then.
const SYNC_TABLES: &str = "
    CREATE TABLE outgoing_sync (remote_id TEXT UNIQUE, sync_point INTEGER, updated_at TEXT DEFAULT 0);
    CREATE TABLE incoming_sync (remote_id TEXT UNIQUE, sync_point INTEGER, updated_at TEXT DEFAULT 0);
    CREATE TRIGGER outgoing_sync_insert AFTER INSERT ON outgoing_sync BEGIN
        UPDATE outgoing_sync SET updated_at = STRFTIME('%s', 'NOW') WHERE ROWID = new.ROWID; END;
    CREATE TRIGGER outgoing_sync_update AFTER UPDATE ON outgoing_sync BEGIN
        UPDATE outgoing_sync SET updated_at = STRFTIME('%s', 'NOW') WHERE ROWID = new.ROWID; END;
    CREATE TRIGGER incoming_sync_insert AFTER INSERT ON incoming_sync BEGIN
        UPDATE incoming_sync SET updated_at = STRFTIME('%s', 'NOW') WHERE ROWID = new.ROWID; END;
    CREATE TRIGGER incoming_sync_update AFTER UPDATE ON incoming_sync BEGIN
        UPDATE incoming_sync SET updated_at = STRFTIME('%s', 'NOW') WHERE ROWID = new.ROWID; END;
";

fn in_transaction<T>(
    sqlite: &Connection,
    sync: Synced,
    f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    if sync == Synced::Extra {
        sqlite.execute_batch("PRAGMA synchronous = EXTRA")?;
    }
    let result = sqlite.prepare_cached("BEGIN IMMEDIATE")?.execute([]).and_then(|_| {
        let done = f(sqlite)?;
        // A crash before the commit, or within it, leaves what was there before, and perhaps a journal that tells SQLite so.
        step("db.commit")?;
        sqlite.prepare_cached("COMMIT")?.execute([])?;
        step("db.committed")?;
        Ok(done)
    });
    if !sqlite.is_autocommit() {
        // The error of `f` is what counts; SQLite drops the transaction with the connection at the latest.
        let _ = sqlite.execute_batch("ROLLBACK");
    }
    if sync == Synced::Extra {
        sqlite.execute_batch("PRAGMA synchronous = NORMAL")?;
    }
    result
}

/// A fail point among statements.
fn step(name: &'static str) -> rusqlite::Result<()> {
    fs::fail::hit(name).map_err(|error| rusqlite::Error::UserFunctionError(error.into()))
}

/// Migrate the schema, if it is an old one, before rows are merged.
fn migrate_if_old<K: Kind>(sqlite: &Connection) -> rusqlite::Result<()> {
    match sqlite.prepare_cached(&format!("SELECT storage_policy_index FROM {} LIMIT 0", K::DB_CONTAINS_TYPE))
    {
        Ok(_) => Ok(()),
        Err(error) if K::migrate(sqlite, &error)? => Ok(()),
        Err(error) => Err(error),
    }
}

fn read_entry<K: Kind>(entry: &[u8]) -> Option<K::Record> {
    let pickled = BASE64.decode(entry).ok()?;
    K::from_pickle(pickle::loads(&pickled).ok()?)
}

fn metadata_column(sqlite: &Connection, sql: &str) -> rusqlite::Result<Option<String>> {
    let row = sqlite.prepare_cached(sql)?.query_row([], |row| row.get::<_, Option<String>>(0)).optional()?;
    Ok(row.map(Option::unwrap_or_default))
}

/// The metadata of the database with `updates`; a database that is too old for any can have some afterwards.
fn merge_metadata<K: Kind>(sqlite: &Connection, updates: &Metadata) -> rusqlite::Result<Metadata> {
    let stat = format!("{}_stat", K::DB_TYPE);
    let column = match metadata_column(sqlite, &format!("SELECT metadata FROM {stat}")) {
        Err(error) if is_missing(&error, "no such column: metadata") => {
            sqlite.execute_batch(&format!("ALTER TABLE {stat} ADD COLUMN metadata TEXT DEFAULT ''"))?;
            String::new()
        }
        other => other?.unwrap_or_default(),
    };
    let mut merged = Metadata::parse(&column).unwrap_or_default();
    merged.merge(updates);
    Ok(merged)
}

fn write_metadata<K: Kind>(sqlite: &Connection, metadata: &Metadata) -> rusqlite::Result<()> {
    let sql = format!("UPDATE {}_stat SET metadata = ?", K::DB_TYPE);
    sqlite.prepare_cached(&sql)?.execute([metadata.dump()]).map(drop)
}

/// Whether an error says that a table or column is not there; Swift recognises old schemas by these texts too.
pub fn is_missing(error: &rusqlite::Error, text: &str) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(_, Some(message)) | rusqlite::Error::SqlInputError { msg: message, .. }
        if message.contains(text))
}

/// Whether SQLite could not even open the file.
pub fn cannot_open(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::CannotOpen)
}

/// What SQLite says of an error, without anything around it.
pub fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message))
        | rusqlite::Error::SqlInputError { msg: message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// Swift's tolerance for counts in old databases: nothing, '' and '0' are zero.
pub fn zero_like(count: &rusqlite::types::Value) -> bool {
    use rusqlite::types::Value as Sql;
    match count {
        Sql::Null => true,
        Sql::Integer(number) => *number == 0,
        Sql::Real(number) => *number == 0.0,
        Sql::Text(text) => text.is_empty() || text == "0",
        Sql::Blob(_) => false,
    }
}

/// A column that holds an integer, as it should; other producers have been seen to store digits, or nothing.
pub fn lenient_int(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Option<i64>> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(index)? {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Real(number) => Some(number as i64),
        ValueRef::Text(digits) => std::str::from_utf8(digits).ok().and_then(common::config::parse_int),
        ValueRef::Null | ValueRef::Blob(_) => None,
    })
}

fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::DirectoryNotEmpty)
}

/// An empty file of a name nobody else has, as `mkstemp` would make it.
fn temporary_file(dir: &Path) -> std::io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("tmp{:x}_{number:x}.tmp", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// An id that no other database has: a UUID and the device's name.
pub fn new_db_id(sqlite: &Connection, device: &str) -> rusqlite::Result<String> {
    let random: Vec<u8> = sqlite.query_row("SELECT randomblob(16)", [], |row| row.get(0))?;
    Ok(format!("{}-{device}", uuid4(&random)))
}

/// The text form of a random UUID (version 4) made of 16 random bytes.
fn uuid4(random: &[u8]) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&random[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = common::digest::hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A UUID's digits for a directory name that must not collide.
fn uuid_hex() -> String {
    let random: Option<Vec<u8>> = Connection::open_in_memory()
        .and_then(|c| c.query_row("SELECT randomblob(16)", [], |row| row.get(0)))
        .ok();
    random.map(|bytes| common::digest::hex(&bytes)).unwrap_or_default()
}
