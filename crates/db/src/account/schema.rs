//! The tables of an account database as 2.38.3 creates them, and the migration of older ones.
//!
//! Triggers on `container` keep the counts and the hash in `account_stat`, and the counts per storage policy in `policy_stat`. Column
//! order and types are what Swift reads and writes: they are not ours to change.

use rusqlite::{Connection, params};

use crate::broker::is_missing;

const CONTAINER: &str = "
    CREATE TABLE container (
        ROWID INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT,
        put_timestamp TEXT,
        delete_timestamp TEXT,
        object_count INTEGER,
        bytes_used INTEGER,
        deleted INTEGER DEFAULT 0,
        storage_policy_index INTEGER DEFAULT 0
    );

    CREATE INDEX ix_container_deleted_name ON container (deleted, name);

    CREATE TRIGGER container_insert AFTER INSERT ON container
    BEGIN
        UPDATE account_stat
        SET container_count = container_count + (1 - new.deleted),
            object_count = object_count + new.object_count,
            bytes_used = bytes_used + new.bytes_used,
            hash = chexor(hash, new.name, new.put_timestamp || '-' || new.delete_timestamp || '-' ||
                          new.object_count || '-' || new.bytes_used);
    END;

    CREATE TRIGGER container_update BEFORE UPDATE ON container
    BEGIN
        SELECT RAISE(FAIL, 'UPDATE not allowed; DELETE and INSERT');
    END;

    CREATE TRIGGER container_delete AFTER DELETE ON container
    BEGIN
        UPDATE account_stat
        SET container_count = container_count - (1 - old.deleted),
            object_count = object_count - old.object_count,
            bytes_used = bytes_used - old.bytes_used,
            hash = chexor(hash, old.name, old.put_timestamp || '-' || old.delete_timestamp || '-' ||
                          old.object_count || '-' || old.bytes_used);
    END;
";

const POLICY_TRIGGERS: &str = "
    CREATE TRIGGER container_insert_ps AFTER INSERT ON container
    BEGIN
        INSERT OR IGNORE INTO policy_stat (storage_policy_index, container_count, object_count, bytes_used)
            VALUES (new.storage_policy_index, 0, 0, 0);
        UPDATE policy_stat
        SET container_count = container_count + (1 - new.deleted),
            object_count = object_count + new.object_count,
            bytes_used = bytes_used + new.bytes_used
        WHERE storage_policy_index = new.storage_policy_index;
    END;

    CREATE TRIGGER container_delete_ps AFTER DELETE ON container
    BEGIN
        UPDATE policy_stat
        SET container_count = container_count - (1 - old.deleted),
            object_count = object_count - old.object_count,
            bytes_used = bytes_used - old.bytes_used
        WHERE storage_policy_index = old.storage_policy_index;
    END;
";

const ACCOUNT_STAT: &str = "
    CREATE TABLE account_stat (
        account TEXT,
        created_at TEXT,
        put_timestamp TEXT DEFAULT '0',
        delete_timestamp TEXT DEFAULT '0',
        container_count INTEGER,
        object_count INTEGER DEFAULT 0,
        bytes_used INTEGER DEFAULT 0,
        hash TEXT default '00000000000000000000000000000000',
        id TEXT,
        status TEXT DEFAULT '',
        status_changed_at TEXT DEFAULT '0',
        metadata TEXT DEFAULT ''
    );
    INSERT INTO account_stat (container_count) VALUES (0);
";

/// With the counts so far, which are those of policy 0.
const POLICY_STAT: &str = "
    CREATE TABLE policy_stat (
        storage_policy_index INTEGER PRIMARY KEY,
        container_count INTEGER DEFAULT 0,
        object_count INTEGER DEFAULT 0,
        bytes_used INTEGER DEFAULT 0
    );
    INSERT OR IGNORE INTO policy_stat (storage_policy_index, container_count, object_count, bytes_used)
    SELECT 0, container_count, object_count, bytes_used FROM account_stat WHERE container_count > 0;
";

pub fn create(
    sqlite: &Connection,
    id: &str,
    account: &str,
    created_at: &str,
    put_timestamp: &str,
) -> rusqlite::Result<()> {
    sqlite.execute_batch(&[CONTAINER, POLICY_TRIGGERS, ACCOUNT_STAT].concat())?;
    sqlite.execute(
        "UPDATE account_stat SET account = ?, created_at = ?, id = ?, put_timestamp = ?4, status_changed_at = ?4",
        params![account, created_at, id, put_timestamp],
    )?;
    sqlite.execute_batch(POLICY_STAT)
}

/// Whether `error` says that containers have no storage policy yet; if so they have one afterwards.
pub fn migrate(sqlite: &Connection, error: &rusqlite::Error) -> rusqlite::Result<bool> {
    if !is_missing(error, "no such column: storage_policy_index") {
        return Ok(false);
    }
    match sqlite.execute_batch(POLICY_STAT) {
        Err(error) if is_missing(&error, "table policy_stat already exists") => {}
        other => other?,
    }
    sqlite.execute_batch(&format!(
        "ALTER TABLE container ADD COLUMN storage_policy_index INTEGER DEFAULT 0; {POLICY_TRIGGERS}"
    ))?;
    Ok(true)
}

/// Make the statistics of policies, or let them count containers, in a database from before either.
pub fn migrate_policy_stats(sqlite: &Connection) -> rusqlite::Result<()> {
    match sqlite.prepare("SELECT container_count FROM policy_stat LIMIT 0") {
        Err(error) if is_missing(&error, "no such table: policy_stat") => sqlite.execute_batch(POLICY_STAT),
        Err(error) if is_missing(&error, "no such column: container_count") => add_container_count(sqlite),
        other => other.map(drop),
    }
}

fn add_container_count(sqlite: &Connection) -> rusqlite::Result<()> {
    let migrated = sqlite.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         DROP TRIGGER container_insert_ps;
         DROP TRIGGER container_delete_ps;
         ALTER TABLE policy_stat ADD COLUMN container_count INTEGER DEFAULT 0;
         {POLICY_TRIGGERS}
         UPDATE policy_stat SET container_count =
             (SELECT count(*) FROM container WHERE deleted = 0
              AND container.storage_policy_index = policy_stat.storage_policy_index);
         COMMIT;"
    ));
    if !sqlite.is_autocommit() {
        sqlite.execute_batch("ROLLBACK")?;
    }
    migrated
}
