//! Forgetting what has been deleted for long: tombstones of rows, sync points of databases that are gone, removed metadata.

use std::time::Duration;

use common::timestamp::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Replicated, ReplicationInfo, SyncPoint, Syncs};
use crate::broker::{DatabaseBroker, Kind, Result, Synced, is_missing};
use crate::metadata::Metadata;

/// Tombstones that one transaction looks at: a server waits for it no longer than that takes.
const PAGE: i64 = 10_000;

/// From before when things are reclaimed.
pub struct Ages {
    /// Rows and metadata that were deleted.
    pub deleted: Timestamp,
    /// Sync points that were not touched since, in normal form.
    pub untouched: String,
}

impl Ages {
    pub fn at(now: Duration, reclaim_age: Duration) -> Self {
        let ago = |age: Duration| Timestamp::from_secs_f64(now.saturating_sub(age).as_secs_f64());
        Self { deleted: ago(reclaim_age), untouched: ago(reclaim_age * 2).normal() }
    }
}

/// The oldest of what is reclaimed one day, as the columns have it: what is compared there as text is so here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oldest {
    row: Option<String>,
    sync_point: Option<String>,
    metadata: Option<Timestamp>,
}

impl Oldest {
    fn has_rows(&self, ages: &Ages) -> bool {
        self.row.as_ref().is_some_and(|row| *row < ages.deleted.normal())
    }

    fn has_others(&self, ages: &Ages) -> bool {
        self.sync_point.as_ref().is_some_and(|since| *since < ages.untouched)
            || self.metadata.is_some_and(|since| since < ages.deleted)
    }

    /// Whether there is anything to reclaim.
    pub fn is_due(&self, ages: &Ages) -> bool {
        self.has_rows(ages) || self.has_others(ages)
    }
}

/// Reclaim what there is; most databases have nothing, and that is seen without a transaction. Then the answer is what comes first:
/// `oldest`, with the metadata.
pub fn reclaim<B: Replicated>(
    broker: &mut B,
    info: &ReplicationInfo,
    mut oldest: Oldest,
    ages: &Ages,
) -> Result<Option<Oldest>> {
    oldest.metadata = Metadata::parse(&info.metadata).and_then(|metadata| metadata.first_removed());
    if oldest.has_rows(ages) {
        broker.db().reclaim_rows(&ages.deleted.normal())?;
    }
    if oldest.has_others(ages) {
        broker.db().reclaim_others(ages.deleted, &ages.untouched)?;
    }
    let more = broker.reclaim_more(info, &ages.untouched)?;
    Ok(if more || oldest.is_due(ages) { None } else { Some(oldest) })
}

impl<K: Kind> DatabaseBroker<K> {
    /// The oldest of tombstones and sync points, and how far others have taken our rows: one statement, as each costs a lock and its
    /// preparation.
    pub fn oldest(&mut self) -> Result<(Oldest, Vec<SyncPoint>)> {
        let sql = format!(
            "SELECT NULL, (SELECT MIN({}) FROM {} WHERE deleted = 1), (SELECT MIN(updated_at) FROM incoming_sync), 1 \
             UNION ALL SELECT remote_id, sync_point, updated_at, 0 FROM outgoing_sync",
            K::DB_RECLAIM_TIMESTAMP,
            K::DB_CONTAINS_TYPE,
        );
        let found = self.read(|sqlite| {
            let mut statement = match sqlite.prepare_cached(&sql) {
                Err(error) if is_missing(&error, "no such column: updated_at") => return Ok(None),
                other => other?,
            };
            let (mut oldest, mut outgoing) = (Oldest::default(), Vec::new());
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                if row.get(3)? {
                    oldest.row = column_as_text(row.get_ref(1)?);
                } else {
                    outgoing.push(SyncPoint::of_columns(row)?);
                }
                let since = column_as_text(row.get_ref(2)?);
                oldest.sync_point = [oldest.sync_point, since].into_iter().flatten().min();
            }
            Ok(Some((oldest, outgoing)))
        })?;
        match found {
            Some(found) => Ok(found),
            // Databases from before the column: their rows are looked through whenever anybody asks.
            None => {
                let oldest = Oldest { row: Some(String::new()), ..Oldest::default() };
                Ok((oldest, self.sync_points(Syncs::Outgoing)?))
            }
        }
    }

    fn reclaim_rows(&mut self, age: &str) -> Result<()> {
        let mut marker = Some(String::new());
        while let Some(from) = marker {
            marker = self.transaction(Synced::Normal, |sqlite| reclaim_page::<K>(sqlite, &from, age))?;
        }
        Ok(())
    }

    fn reclaim_others(&mut self, age: Timestamp, sync_age: &str) -> Result<()> {
        let stat = format!("{}_stat", K::DB_TYPE);
        self.transaction(Synced::Normal, |sqlite| {
            for table in ["outgoing_sync", "incoming_sync"] {
                let sql = format!("DELETE FROM {table} WHERE updated_at < ?");
                match sqlite.prepare_cached(&sql).and_then(|mut delete| delete.execute([sync_age])) {
                    // Databases from before the column.
                    Err(error) if is_missing(&error, "no such column: updated_at") => break,
                    other => other?,
                };
            }
            let column =
                sqlite.prepare_cached(&format!("SELECT metadata FROM {stat}")).and_then(|mut select| {
                    select.query_row([], |row| row.get::<_, Option<String>>(0)).optional()
                });
            let column = match column {
                Err(error) if is_missing(&error, "no such column: metadata") => None,
                other => other?.flatten(),
            };
            let metadata = column.and_then(|column| Metadata::parse(&column));
            if let Some(mut metadata) = metadata
                && metadata.reclaim(age)
            {
                sqlite
                    .prepare_cached(&format!("UPDATE {stat} SET metadata = ?"))?
                    .execute([metadata.dump()])?;
            }
            Ok(())
        })
    }
}

/// When a row was changed last. What is no text comes before any text, or is never reclaimed.
fn column_as_text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Integer(_) | ValueRef::Real(_) => Some(String::new()),
        ValueRef::Null | ValueRef::Blob(_) => None,
    }
}

/// One transaction's share of the tombstones, by name from `from` on; where the next one begins, if there are more.
fn reclaim_page<K: Kind>(sqlite: &Connection, from: &str, age: &str) -> rusqlite::Result<Option<String>> {
    let table = K::DB_CONTAINS_TYPE;
    let end: Option<String> = sqlite
        .prepare_cached(&format!(
            "SELECT name FROM {table} WHERE deleted = 1 AND name >= ? ORDER BY name LIMIT 1 OFFSET ?"
        ))?
        .query_row(params![from, PAGE], |row| row.get(0))
        .optional()?;
    let end = end.filter(|end| !end.is_empty() && end != from);
    let delete =
        format!("DELETE FROM {table} WHERE deleted = 1 AND name >= ? AND {} < ?", K::DB_RECLAIM_TIMESTAMP);
    match &end {
        Some(end) => sqlite.prepare_cached(&format!("{delete} AND name < ?"))?.execute([from, age, end])?,
        None => sqlite.prepare_cached(&delete)?.execute([from, age])?,
    };
    Ok(end)
}
