//! The tables of a container database as 2.38.3 creates them, and the migration of databases from before storage policies.
//!
//! `container_stat` was a table with `object_count` and `bytes_used`; since storage policies the counts live in `policy_stat` and
//! everything else in `container_info`, and a view of the old name (with a trigger, so that it can be updated) joins the two for
//! the container's own policy. Triggers on `object` keep counts and hash. Column order and types are what Swift reads and writes:
//! they are not ours to change.

use rusqlite::{Connection, params};

use crate::broker::is_missing;

const POLICY_STAT: &str = "
    CREATE TABLE policy_stat (
        storage_policy_index INTEGER PRIMARY KEY,
        object_count INTEGER DEFAULT 0,
        bytes_used INTEGER DEFAULT 0
    );
";

const OBJECT: &str = "
    CREATE TABLE object (
        ROWID INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT,
        created_at TEXT,
        size INTEGER,
        content_type TEXT,
        etag TEXT,
        deleted INTEGER DEFAULT 0,
        storage_policy_index INTEGER DEFAULT 0
    );

    CREATE INDEX ix_object_deleted_name ON object (deleted, name);

    CREATE TRIGGER object_update BEFORE UPDATE ON object
    BEGIN
        SELECT RAISE(FAIL, 'UPDATE not allowed; DELETE and INSERT');
    END;
";

const OBJECT_TRIGGERS: &str = "
    CREATE TRIGGER object_insert_policy_stat AFTER INSERT ON object
    BEGIN
        UPDATE policy_stat
        SET object_count = object_count + (1 - new.deleted), bytes_used = bytes_used + new.size
        WHERE storage_policy_index = new.storage_policy_index;
        INSERT INTO policy_stat (storage_policy_index, object_count, bytes_used)
        SELECT new.storage_policy_index, (1 - new.deleted), new.size
        WHERE NOT EXISTS (SELECT changes() AS change FROM policy_stat WHERE change <> 0);
        UPDATE container_info SET hash = chexor(hash, new.name, new.created_at);
    END;

    CREATE TRIGGER object_delete_policy_stat AFTER DELETE ON object
    BEGIN
        UPDATE policy_stat
        SET object_count = object_count - (1 - old.deleted), bytes_used = bytes_used - old.size
        WHERE storage_policy_index = old.storage_policy_index;
        UPDATE container_info SET hash = chexor(hash, old.name, old.created_at);
    END;
";

const CONTAINER_INFO: &str = "
    CREATE TABLE container_info (
        account TEXT,
        container TEXT,
        created_at TEXT,
        put_timestamp TEXT DEFAULT '0',
        delete_timestamp TEXT DEFAULT '0',
        reported_put_timestamp TEXT DEFAULT '0',
        reported_delete_timestamp TEXT DEFAULT '0',
        reported_object_count INTEGER DEFAULT 0,
        reported_bytes_used INTEGER DEFAULT 0,
        hash TEXT default '00000000000000000000000000000000',
        id TEXT,
        status TEXT DEFAULT '',
        status_changed_at TEXT DEFAULT '0',
        metadata TEXT DEFAULT '',
        x_container_sync_point1 INTEGER DEFAULT -1,
        x_container_sync_point2 INTEGER DEFAULT -1,
        storage_policy_index INTEGER DEFAULT 0,
        reconciler_sync_point INTEGER DEFAULT -1
    );
";

const CONTAINER_STAT: &str = "
    CREATE VIEW container_stat
    AS SELECT ci.account, ci.container, ci.created_at,
        ci.put_timestamp, ci.delete_timestamp,
        ci.reported_put_timestamp, ci.reported_delete_timestamp,
        ci.reported_object_count, ci.reported_bytes_used, ci.hash,
        ci.id, ci.status, ci.status_changed_at, ci.metadata,
        ci.x_container_sync_point1, ci.x_container_sync_point2,
        ci.reconciler_sync_point, ci.storage_policy_index,
        coalesce(ps.object_count, 0) AS object_count,
        coalesce(ps.bytes_used, 0) AS bytes_used
    FROM container_info ci LEFT JOIN policy_stat ps
    ON ci.storage_policy_index = ps.storage_policy_index;

    CREATE TRIGGER container_stat_update INSTEAD OF UPDATE ON container_stat
    BEGIN
        UPDATE container_info
        SET account = NEW.account,
            container = NEW.container,
            created_at = NEW.created_at,
            put_timestamp = NEW.put_timestamp,
            delete_timestamp = NEW.delete_timestamp,
            reported_put_timestamp = NEW.reported_put_timestamp,
            reported_delete_timestamp = NEW.reported_delete_timestamp,
            reported_object_count = NEW.reported_object_count,
            reported_bytes_used = NEW.reported_bytes_used,
            hash = NEW.hash,
            id = NEW.id,
            status = NEW.status,
            status_changed_at = NEW.status_changed_at,
            metadata = NEW.metadata,
            x_container_sync_point1 = NEW.x_container_sync_point1,
            x_container_sync_point2 = NEW.x_container_sync_point2,
            storage_policy_index = NEW.storage_policy_index,
            reconciler_sync_point = NEW.reconciler_sync_point;
    END;
";

pub const SHARD_RANGE: &str = "
    CREATE TABLE shard_range (
        ROWID INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT,
        timestamp TEXT,
        lower TEXT,
        upper TEXT,
        object_count INTEGER DEFAULT 0,
        bytes_used INTEGER DEFAULT 0,
        meta_timestamp TEXT,
        deleted INTEGER DEFAULT 0,
        state INTEGER,
        state_timestamp TEXT,
        epoch TEXT,
        reported INTEGER DEFAULT 0,
        tombstones INTEGER DEFAULT -1
    );

    CREATE TRIGGER shard_range_update BEFORE UPDATE ON shard_range
    BEGIN
        SELECT RAISE(FAIL, 'UPDATE not allowed; DELETE and INSERT');
    END;
";

/// All triggers of the table of objects, each by its text.
pub fn object_triggers() -> impl Iterator<Item = &'static str> {
    [OBJECT, OBJECT_TRIGGERS].into_iter().flat_map(|script| {
        let starts = script.match_indices("CREATE TRIGGER").map(|(at, _)| at);
        starts.map(move |at| {
            let trigger = &script[at..];
            trigger.find("END;").map_or(trigger, |end| &trigger[..end + "END;".len()])
        })
    })
}

/// The one row of `container_info` of a new container.
pub struct NewContainer<'a> {
    pub account: &'a str,
    pub container: &'a str,
    pub created_at: String,
    pub put_timestamp: &'a str,
    pub storage_policy_index: i64,
}

pub fn create(sqlite: &Connection, id: &str, new: &NewContainer<'_>) -> rusqlite::Result<()> {
    sqlite.execute_batch(&[OBJECT, OBJECT_TRIGGERS, POLICY_STAT].concat())?;
    sqlite
        .execute("INSERT INTO policy_stat (storage_policy_index) VALUES (?)", [new.storage_policy_index])?;
    sqlite.execute_batch(&[CONTAINER_INFO, CONTAINER_STAT].concat())?;
    sqlite.execute(
        "INSERT INTO container_info \
             (account, container, created_at, id, put_timestamp, status_changed_at, storage_policy_index) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)",
        params![new.account, new.container, new.created_at, id, new.put_timestamp, new.storage_policy_index],
    )?;
    sqlite.execute_batch(SHARD_RANGE)
}

/// Whether `error` says that the database is from before storage policies; if so it is one of today afterwards.
pub fn migrate(sqlite: &Connection, error: &rusqlite::Error) -> rusqlite::Result<bool> {
    let old = is_missing(error, "no such column: storage_policy_index")
        || is_missing(error, "no such table: policy_stat")
        || is_missing(error, "no such column: reconciler_sync_point");
    if old {
        add_storage_policy(sqlite)?;
    }
    Ok(old)
}

fn add_storage_policy(sqlite: &Connection) -> rusqlite::Result<()> {
    for column in [
        "x_container_sync_point1 INTEGER DEFAULT -1",
        "x_container_sync_point2 INTEGER DEFAULT -1",
        "metadata TEXT DEFAULT ''",
    ] {
        match sqlite.execute_batch(&format!("ALTER TABLE container_stat ADD COLUMN {column}")) {
            Err(error) if is_missing(&error, "duplicate column") => {}
            other => other?,
        }
    }
    // Swift: container/backend.py leaves out reported_delete_timestamp when it copies.
    let columns = "account, container, created_at, put_timestamp, delete_timestamp, reported_put_timestamp, \
                   reported_object_count, reported_bytes_used, hash, id, status, status_changed_at, metadata, \
                   x_container_sync_point1, x_container_sync_point2";
    let migrated = sqlite.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         {POLICY_STAT}
         INSERT INTO policy_stat (storage_policy_index, object_count, bytes_used)
         SELECT 0, object_count, bytes_used FROM container_stat;
         ALTER TABLE object ADD COLUMN storage_policy_index INTEGER DEFAULT 0;
         DROP TRIGGER object_insert;
         DROP TRIGGER object_delete;
         {OBJECT_TRIGGERS}
         {CONTAINER_INFO}
         INSERT INTO container_info ({columns}) SELECT {columns} FROM container_stat;
         DROP TABLE IF EXISTS container_stat;
         {CONTAINER_STAT}
         COMMIT;"
    ));
    if !sqlite.is_autocommit() {
        sqlite.execute_batch("ROLLBACK")?;
    }
    migrated
}
