//! What the triggers of the table of objects add to the statistics, for many rows at once.
//!
//! For each row a trigger counts it in `policy_stat` and rolls it into the hash in `container_info`, which costs more than the row. So who
//! writes many rows does it with the connection's triggers off, and writes the sums in the same transaction. Only in a database that has
//! exactly the triggers that are known here, by their text; another one keeps its own. One difference: a row without a size, which no
//! version of Swift writes, does not make the sum of bytes unknown.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params};

use super::schema;
use crate::connections::{parse_hash, row_hash};

/// Fewer rows are left to the triggers: to turn them off costs a preparation of all statements.
const WORTHWHILE: usize = 16;

/// Rows that were written, and rows that were deleted.
#[derive(Default)]
pub struct Tally {
    added: BTreeMap<i64, Sums>,
    removed: BTreeMap<i64, Sums>,
    hash: u128,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    objects: i64,
    /// The sizes are what other servers have sent.
    bytes: i128,
}

impl Sums {
    fn count(&mut self, deleted: bool, size: i64) {
        self.objects += i64::from(!deleted);
        self.bytes += i128::from(size);
    }

    /// As SQLite would add them up: past its integers in floating point.
    fn bytes(self) -> Value {
        i64::try_from(self.bytes).map_or(Value::Real(self.bytes as f64), Value::Integer)
    }
}

/// Run `write`, which writes so many rows of objects and tells the tally of each, and bring the statistics up to date. Without a tally
/// the triggers do that. Runs inside a transaction.
pub fn counted(
    sqlite: &Connection,
    rows: usize,
    write: impl FnOnce(Option<&mut Tally>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    if rows < WORTHWHILE || !has_known_triggers(sqlite)? {
        return write(None);
    }
    let mut tally = Tally::default();
    sqlite.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    let written = write(Some(&mut tally));
    // If this fails the connection is not used again, as after any error.
    sqlite.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
    written?;
    tally.store(sqlite)
}

impl Tally {
    pub fn add(&mut self, name: &str, created_at: &str, policy: i64, deleted: bool, size: i64) {
        self.added.entry(policy).or_default().count(deleted, size);
        self.hash ^= row_hash(name, created_at);
    }

    /// `hash` is that of a row as the triggers make it.
    pub fn remove(&mut self, hash: u128, policy: i64, deleted: bool, size: i64) {
        self.removed.entry(policy).or_default().count(deleted, size);
        self.hash ^= hash;
    }

    fn store(&self, sqlite: &Connection) -> rusqlite::Result<()> {
        for (policy, sums) in &self.removed {
            let sql = "UPDATE policy_stat SET object_count = object_count - ?, bytes_used = bytes_used - ? \
                       WHERE storage_policy_index = ?";
            sqlite.prepare_cached(sql)?.execute(params![sums.objects, sums.bytes(), policy])?;
        }
        for (policy, sums) in &self.added {
            let sql = "UPDATE policy_stat SET object_count = object_count + ?, bytes_used = bytes_used + ? \
                       WHERE storage_policy_index = ?";
            let values = params![sums.objects, sums.bytes(), policy];
            if sqlite.prepare_cached(sql)?.execute(values)? == 0 {
                let sql = "INSERT INTO policy_stat (object_count, bytes_used, storage_policy_index) VALUES (?, ?, ?)";
                sqlite.prepare_cached(sql)?.execute(values)?;
            }
        }
        let before: Option<String> = sqlite
            .prepare_cached("SELECT hash FROM container_info")?
            .query_row([], |row| row.get(0))
            .optional()?;
        if let Some(before) = before {
            let hash = format!("{:032x}", parse_hash(&before)? ^ self.hash);
            sqlite.prepare_cached("UPDATE container_info SET hash = ?")?.execute([hash])?;
        }
        Ok(())
    }
}

fn has_known_triggers(sqlite: &Connection) -> rusqlite::Result<bool> {
    static KNOWN: LazyLock<Vec<String>> =
        LazyLock::new(|| sorted(schema::object_triggers().map(in_one_word).collect()));
    let mut select = sqlite
        .prepare_cached("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'object'")?;
    let found = select.query_map([], |row| Ok(in_one_word(row.get_ref(0)?.as_str()?)))?;
    Ok(sorted(found.collect::<rusqlite::Result<_>>()?) == *KNOWN)
}

/// Swift and we break the lines of the same text at different places.
fn in_one_word(sql: &str) -> String {
    let sql = sql.trim().trim_end_matches(';');
    sql.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect()
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_known_by_their_words() {
        let sqlite = Connection::open_in_memory().unwrap();
        sqlite
            .execute_batch("CREATE TABLE object (name, deleted, size, storage_policy_index, created_at)")
            .unwrap();
        assert!(!has_known_triggers(&sqlite).unwrap());
        for trigger in schema::object_triggers() {
            sqlite.execute_batch(&trigger.replace('\n', "\n\t ").replace("CREATE", "create")).unwrap();
        }
        assert!(has_known_triggers(&sqlite).unwrap());
        let more = "CREATE TRIGGER more AFTER INSERT ON object BEGIN SELECT 1; END";
        sqlite.execute_batch(more).unwrap();
        assert!(!has_known_triggers(&sqlite).unwrap());
    }

    #[test]
    fn sums_past_an_integer_become_what_sqlite_makes_of_them() {
        let mut sums = Sums::default();
        sums.count(false, i64::MAX);
        assert_eq!(sums.bytes(), Value::Integer(i64::MAX));
        sums.count(true, 1);
        assert_eq!((sums.objects, sums.bytes()), (1, Value::Real(i64::MAX as f64 + 1.0)));
    }
}
