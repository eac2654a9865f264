//! SQLite connections to account and container databases: how they are opened, and the idle ones kept for the next request.
//!
//! Opening a database costs a file, four pragmas and a parse of its schema; Swift pays that on every request. Here a connection
//! goes back to a small cache when its broker is done. Other processes may rename, replace or remove the file at any time (a
//! replicator that got a whole copy, quarantine, a Python server), so a cached connection is taken again only while the path still
//! names the same device and inode; an inode cannot be reused while the connection holds it open. What other processes write *into*
//! the file SQLite notices itself, by its own locks and change counter.
//!
//! However many databases a server is asked for, it has at most `IDLE_CONNECTIONS` open that nobody uses, over all devices, and those
//! that the threads of its devices use at the moment. Each takes two or three descriptors and a page cache of `PAGE_CACHE_KIB`: a server
//! of ten devices with eight threads each stays below 30 MiB. A connection idle for `IDLE_LIMIT` is closed, so that a device can be
//! unmounted.
//!
//! One rule for everybody in this process: never open and close a `.db` file with plain file calls while connections to it may exist.
//! Closing any descriptor of a file drops all POSIX locks that the process holds on it, SQLite's included.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::digest;
use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// Idle connections kept, over all devices.
pub const IDLE_CONNECTIONS: usize = 32;
/// After this long unused a connection is closed.
pub const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// SQLite's page cache of one connection, in KiB; its default of 2 MiB is too much times `IDLE_CONNECTIONS`.
const PAGE_CACHE_KIB: i64 = 256;
/// Statements kept prepared in one connection.
const STATEMENTS: usize = 32;

/// The idle connections of a process. Clones of an `Arc` of it are in every broker.
#[derive(Default)]
pub struct Connections {
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: DbConnection,
    since: std::time::Instant,
}

/// A connection and which file it has open.
pub struct DbConnection {
    pub sqlite: Connection,
    path: PathBuf,
    /// `None` when the file changed while it was being opened: such a connection is not kept.
    file: Option<FileIdentity>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

/// Why there is no connection.
pub enum ConnectError {
    NotExist,
    Io(std::io::Error),
    Sqlite(rusqlite::Error),
}

impl Connections {
    /// A connection to `path`: a cached one if it still fits, else a new one. Never creates the file.
    pub fn connect(&self, path: &Path, timeout: Duration) -> Result<DbConnection, ConnectError> {
        let file = identity(path).map_err(ConnectError::Io)?.ok_or(ConnectError::NotExist)?;
        if let Some(connection) = self.take(path, file) {
            connection.sqlite.busy_timeout(timeout).map_err(ConnectError::Sqlite)?;
            return Ok(connection);
        }
        let sqlite = open(path, timeout).map_err(ConnectError::Sqlite)?;
        let unchanged = identity(path).is_ok_and(|now| now == Some(file));
        Ok(DbConnection { sqlite, path: path.to_owned(), file: unchanged.then_some(file) })
    }

    /// Keep a healthy connection (outside any transaction) for the next request.
    pub fn put_back(&self, connection: DbConnection) {
        if connection.file.is_none() || !connection.sqlite.is_autocommit() {
            return;
        }
        let mut idle = self.idle.lock();
        let surplus = if idle.len() >= IDLE_CONNECTIONS { Some(idle.remove(0)) } else { None };
        idle.push(Idle { connection, since: std::time::Instant::now() });
        drop(idle);
        drop(surplus); // closes outside the lock
    }

    /// Close the idle connections to one file.
    pub fn close(&self, path: &Path) {
        let mut idle = self.idle.lock();
        let (closing, staying) = idle.drain(..).partition::<Vec<_>, _>(|entry| entry.connection.path == path);
        *idle = staying;
        drop(idle);
        drop(closing); // outside the lock
    }

    /// Close all idle connections.
    pub fn close_all(&self) {
        let closing = std::mem::take(&mut *self.idle.lock());
        drop(closing); // outside the lock
    }

    /// Close what nobody asked for during `IDLE_LIMIT`; says whether connections remain.
    pub fn close_idle(&self) -> bool {
        let mut closing = Vec::new();
        let mut idle = self.idle.lock();
        while idle.first().is_some_and(|oldest| oldest.since.elapsed() >= IDLE_LIMIT) {
            closing.push(idle.remove(0));
        }
        let remain = !idle.is_empty();
        drop(idle);
        drop(closing);
        remain
    }

    fn take(&self, path: &Path, file: FileIdentity) -> Option<DbConnection> {
        let mut idle = self.idle.lock();
        // Newest first: its page cache is warmest.
        let at = idle.iter().rposition(|entry| entry.connection.path == path)?;
        let entry = idle.remove(at);
        drop(idle);
        (entry.connection.file == Some(file)).then_some(entry.connection)
    }
}

/// Which file `path` names now.
fn identity(path: &Path) -> std::io::Result<Option<FileIdentity>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(FileIdentity { device: found.dev(), inode: found.ino() })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Open an existing database with the settings of swift/common/db.py `get_db_connection`.
fn open(path: &Path, timeout: Duration) -> rusqlite::Result<Connection> {
    let sqlite = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    sqlite.busy_timeout(timeout)?;
    sqlite.set_prepared_statement_cache_capacity(STATEMENTS);
    sqlite.execute_batch(&format!(
        "PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -{PAGE_CACHE_KIB};"
    ))?;
    sqlite.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    // Otherwise a statement is prepared once more whenever its LIMIT gets a value.
    sqlite.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    add_chexor(&sqlite)?;
    Ok(sqlite)
}

/// Open the empty file that a new database is written into. Nothing is synced: the caller syncs the finished file once.
pub fn create(path: &Path) -> rusqlite::Result<Connection> {
    let sqlite = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    sqlite.execute_batch("PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY;")?;
    sqlite.query_row("PRAGMA journal_mode = MEMORY", [], |_| Ok(()))?;
    add_chexor(&sqlite)?;
    Ok(sqlite)
}

/// The SQL function that the triggers call to roll a row into the database's hash.
pub fn add_chexor(sqlite: &Connection) -> rusqlite::Result<()> {
    sqlite.create_scalar_function(
        "chexor",
        3,
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS,
        |call| {
            let old = text_argument(call, 0)?;
            let name = text_argument(call, 1)?;
            // Python formats a NULL as the word.
            let timestamp = text_argument(call, 2)?;
            match (old, name) {
                (Some(old), Some(name)) => chexor(&old, &name, timestamp.as_deref().unwrap_or("None")),
                _ => Err(rusqlite::Error::UserFunctionError("name is None!".into())),
            }
        },
    )
}

fn text_argument(call: &Context<'_>, index: usize) -> rusqlite::Result<Option<String>> {
    Ok(match call.get_raw(index) {
        ValueRef::Null => None,
        ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
    })
}

/// Swift's order-independent hash of a database's rows: each row's MD5 is XORed in when it is inserted and out when it is deleted.
pub fn chexor(old: &str, name: &str, timestamp: &str) -> rusqlite::Result<String> {
    Ok(format!("{:032x}", parse_hash(old)? ^ row_hash(name, timestamp)))
}

/// The share of a row in the hash of its database.
pub fn row_hash(name: &str, timestamp: &str) -> u128 {
    u128::from_be_bytes(digest::md5(format!("{name}-{timestamp}").as_bytes()))
}

/// Read a hash as `chexor` reads it.
pub fn parse_hash(hash: &str) -> rusqlite::Result<u128> {
    u128::from_str_radix(hash, 16)
        .map_err(|_| rusqlite::Error::UserFunctionError("hash is not hexadecimal".into()))
}

/// The last part of the path of a device, for a database's id.
pub fn device_name(device_path: &Path) -> &OsStr {
    device_path.file_name().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `swift.common.db.chexor` of 2.38.3.
    #[test]
    fn chexor_is_swifts() {
        let zero = "0".repeat(32);
        let once = chexor(&zero, "name", "0000000001.00000").unwrap();
        assert_eq!(once, "9f4db26c81466cd7f3ddb3d7e0d01667");
        assert_eq!(chexor(&once, "name", "0000000001.00000").unwrap(), zero);
        assert!(chexor("not hex", "name", "1").is_err());
    }
}
