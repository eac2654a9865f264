//! What replication reads from a database and writes into it: rows after a ROWID, sync points, its id.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use crate::broker::{DatabaseBroker, Kind, Result, Synced};
use common::json;

/// Rows of a database, as the body of `merge_items` has them.
#[derive(Debug, Default)]
pub struct Items {
    /// A JSON list of objects with the names of the columns.
    pub json: Vec<u8>,
    pub count: usize,
    /// ROWID of the last row.
    pub last: i64,
}

/// One of the two tables of sync points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    Incoming,
    Outgoing,
}

impl Syncs {
    fn table(self) -> &'static str {
        match self {
            Self::Incoming => "incoming_sync",
            Self::Outgoing => "outgoing_sync",
        }
    }
}

/// How far the rows of the database of that id have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncPoint {
    pub remote_id: String,
    pub sync_point: i64,
}

/// A sync point, and since when it is where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatedSyncPoint {
    pub point: SyncPoint,
    pub updated_at: String,
}

impl SyncPoint {
    /// Of a row that begins with `remote_id, sync_point`.
    pub(super) fn of_columns(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { remote_id: row.get(0)?, sync_point: row.get::<_, Option<i64>>(1)?.unwrap_or(-1) })
    }

    /// A list as `merge_syncs` has it.
    pub fn list_from_json(list: &Value) -> Option<Vec<Self>> {
        let point = |item: &Value| {
            Some(Self {
                remote_id: item.get("remote_id")?.as_str()?.to_owned(),
                sync_point: item.get("sync_point")?.as_i64()?,
            })
        };
        list.as_array()?.iter().map(point).collect()
    }

    pub fn list_to_json(points: &[Self]) -> Value {
        points
            .iter()
            .map(|point| serde_json::json!({"remote_id": point.remote_id, "sync_point": point.sync_point}))
            .collect()
    }
}

impl<K: Kind> DatabaseBroker<K> {
    /// At most `limit` rows after ROWID `start`, in their order. Merges what is pending first.
    pub fn items_since(&mut self, start: i64, limit: usize) -> Result<Items> {
        self.commit_puts()?;
        self.stored_items_since(start, limit)
    }

    /// The same without what is pending.
    pub fn stored_items_since(&mut self, start: i64, limit: usize) -> Result<Items> {
        let sql = format!("SELECT * FROM {} WHERE ROWID > ? ORDER BY ROWID ASC LIMIT ?", K::DB_CONTAINS_TYPE);
        self.read(|sqlite| {
            let mut statement = sqlite.prepare(&sql)?;
            let rowid = statement.column_index("ROWID").unwrap_or(0);
            // What stands before each value of a row.
            let names: Vec<Vec<u8>> = statement
                .column_names()
                .iter()
                .enumerate()
                .map(|(index, name)| {
                    let mut text = if index == 0 { b"{".to_vec() } else { b", ".to_vec() };
                    json::write_str(&mut text, name);
                    text.extend_from_slice(b": ");
                    text
                })
                .collect();
            let mut items = Items { json: b"[".to_vec(), count: 0, last: start };
            let mut rows = statement.query(params![start, i64::try_from(limit).unwrap_or(i64::MAX)])?;
            while let Some(row) = rows.next()? {
                json::separate(&mut items.json, items.count);
                for (index, name) in names.iter().enumerate() {
                    items.json.extend_from_slice(name);
                    write_column(&mut items.json, row.get_ref(index)?);
                }
                items.json.push(b'}');
                items.count += 1;
                items.last = row.get(rowid)?;
            }
            items.json.push(b']');
            Ok(items)
        })
    }

    /// Merge rows of the database `source`, whose highest ROWID is then how far we have taken its rows: it sends them in order
    /// and leaves none out.
    pub fn merge_items_from(&mut self, records: Vec<K::Record>, source: Option<(&str, i64)>) -> Result<()> {
        self.merge_items_and(records, |sqlite| match source {
            Some((remote_id, sync_point)) => {
                let point = SyncPoint { remote_id: remote_id.to_owned(), sync_point };
                merge_sync(sqlite, Syncs::Incoming, &point)
            }
            None => Ok(()),
        })
    }

    /// The sync point of a database, -1 if it has none.
    pub fn sync_point(&mut self, remote_id: &str, syncs: Syncs) -> Result<i64> {
        let sql = format!("SELECT sync_point FROM {} WHERE remote_id = ?", syncs.table());
        self.read(|sqlite| {
            let point = sqlite
                .prepare_cached(&sql)?
                .query_row([remote_id], |row| row.get::<_, Option<i64>>(0))
                .optional()?;
            Ok(point.flatten().unwrap_or(-1))
        })
    }

    pub fn sync_points(&mut self, syncs: Syncs) -> Result<Vec<SyncPoint>> {
        // Databases of old have no column that says since when.
        let dated = self.select_sync_points(syncs, "NULL")?;
        Ok(dated.into_iter().map(|dated| dated.point).collect())
    }

    pub fn dated_sync_points(&mut self, syncs: Syncs) -> Result<Vec<DatedSyncPoint>> {
        self.select_sync_points(syncs, "updated_at")
    }

    fn select_sync_points(&mut self, syncs: Syncs, updated_at: &str) -> Result<Vec<DatedSyncPoint>> {
        let sql = format!("SELECT remote_id, sync_point, {updated_at} FROM {}", syncs.table());
        self.read(|sqlite| {
            let mut statement = sqlite.prepare_cached(&sql)?;
            let points = statement.query_map([], |row| {
                Ok(DatedSyncPoint {
                    point: SyncPoint::of_columns(row)?,
                    updated_at: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
                })
            })?;
            points.collect()
        })
    }

    /// Raise sync points; none is lowered.
    pub fn merge_syncs(&mut self, points: &[SyncPoint], syncs: Syncs) -> Result<()> {
        self.transaction(Synced::Normal, |sqlite| {
            points.iter().try_for_each(|point| merge_sync(sqlite, syncs, point))
        })
    }

    /// The highest ROWID that a row ever had, -1 if there was none. What is pending has none yet.
    pub fn max_row(&mut self) -> Result<i64> {
        self.read(|sqlite| max_row(sqlite, K::DB_CONTAINS_TYPE))
    }

    /// Make the database, which rsync has brought from `remote_id`, one of its own. All rows of the other up to `sync_point` are in it.
    pub fn new_id(
        &mut self,
        remote_id: &str,
        sync_point: i64,
        device: &str,
        more: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<()> {
        self.write(|sqlite| {
            let id = crate::broker::new_db_id(sqlite, device)?;
            sqlite.execute(&format!("UPDATE {}_stat SET id = ?", K::DB_TYPE), [id])?;
            sqlite.execute(
                "INSERT OR REPLACE INTO incoming_sync (sync_point, remote_id) VALUES (?, ?)",
                params![sync_point, remote_id],
            )?;
            more(sqlite)
        })
    }

    /// Merge timestamps; when that makes the database deleted or undeleted, `now` is when its status changed.
    pub fn merge_timestamps(
        &mut self,
        theirs: &super::Timestamps,
        now: &str,
        is_deleted: impl Fn(&Connection) -> rusqlite::Result<bool>,
    ) -> Result<()> {
        let stat = format!("{}_stat", K::DB_TYPE);
        self.write(|sqlite| {
            let was_deleted = is_deleted(sqlite)?;
            sqlite
                .prepare_cached(&format!(
                    "UPDATE {stat} SET created_at = MIN(?, created_at), \
                     put_timestamp = MAX(?, put_timestamp), delete_timestamp = MAX(?, delete_timestamp)"
                ))?
                .execute([&theirs.created_at, &theirs.put_timestamp, &theirs.delete_timestamp])?;
            if is_deleted(sqlite)? != was_deleted {
                sqlite
                    .prepare_cached(&format!(
                        "UPDATE {stat} SET status_changed_at = ?1 WHERE status_changed_at < ?1"
                    ))?
                    .execute([now])?;
            }
            Ok(())
        })
    }
}

/// The highest ROWID that `table` ever had.
pub fn max_row(sqlite: &Connection, table: &str) -> rusqlite::Result<i64> {
    let found = sqlite
        .prepare_cached("SELECT seq FROM SQLITE_SEQUENCE WHERE name = ? LIMIT 1")?
        .query_row([table], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(-1))
}

fn merge_sync(sqlite: &Connection, syncs: Syncs, point: &SyncPoint) -> rusqlite::Result<()> {
    let table = syncs.table();
    // As Swift does it: both statements fire the triggers that set `updated_at`.
    let updated = sqlite
        .prepare_cached(&format!("UPDATE {table} SET sync_point = max(?, sync_point) WHERE remote_id = ?"))?
        .execute(params![point.sync_point, point.remote_id])?;
    if updated == 0 {
        sqlite
            .prepare_cached(&format!("INSERT INTO {table} (sync_point, remote_id) VALUES (?, ?)"))?
            .execute(params![point.sync_point, point.remote_id])?;
    }
    Ok(())
}

fn write_column(out: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => out.extend_from_slice(b"null"),
        ValueRef::Integer(number) => json::write_int(out, number),
        ValueRef::Real(number) => json::write_value(out, &number.into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            json::write_str(out, &String::from_utf8_lossy(bytes));
        }
    }
}
