//! Forgetting what has been deleted for long: tombstones of rows, sync points of databases that are gone, removed metadata.

use rusqlite::{Connection, OptionalExtension, params};

use common::timestamp::Timestamp;

use super::{Replicated, ReplicationInfo};
use crate::broker::{DatabaseBroker, Kind, Result, Synced, is_missing};
use crate::metadata::Metadata;

/// Tombstones that one transaction looks at: a server waits for it no longer than that takes.
const PAGE: i64 = 10_000;

/// Reclaim rows and metadata that were deleted before `age`, and sync points not touched since `sync_age` (both in seconds since the
/// epoch). Says whether there was anything. Most databases have nothing to reclaim: that is seen without a transaction.
pub fn reclaim<B: Replicated>(
    broker: &mut B,
    info: &ReplicationInfo,
    age: f64,
    sync_age: f64,
) -> Result<bool> {
    let (age, sync_age) = (Timestamp::from_secs_f64(age), Timestamp::from_secs_f64(sync_age).normal());
    let mut found = broker.db().reclaimable(&age.normal(), &sync_age)?;
    found.others |= Metadata::parse(&info.metadata).is_some_and(|mut metadata| metadata.reclaim(age));
    if found.rows {
        broker.db().reclaim_rows(&age.normal())?;
    }
    if found.others {
        broker.db().reclaim_others(age, &sync_age)?;
    }
    Ok(broker.reclaim_more(info, &sync_age)? || found.rows || found.others)
}

/// What there is to reclaim.
struct Reclaimable {
    rows: bool,
    others: bool,
}

impl<K: Kind> DatabaseBroker<K> {
    fn reclaimable(&mut self, age: &str, sync_age: &str) -> Result<Reclaimable> {
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM {} WHERE deleted = 1 AND {} < ?1), \
             EXISTS (SELECT 1 FROM outgoing_sync WHERE updated_at < ?2) OR \
             EXISTS (SELECT 1 FROM incoming_sync WHERE updated_at < ?2)",
            K::DB_CONTAINS_TYPE,
            K::DB_RECLAIM_TIMESTAMP
        );
        self.read(|sqlite| {
            let found = sqlite.prepare_cached(&sql).and_then(|mut select| {
                select.query_row([age, sync_age], |row| {
                    Ok(Reclaimable { rows: row.get(0)?, others: row.get(1)? })
                })
            });
            match found {
                // Databases from before the column.
                Err(error) if is_missing(&error, "no such column: updated_at") => {
                    Ok(Reclaimable { rows: true, others: false })
                }
                other => other,
            }
        })
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
