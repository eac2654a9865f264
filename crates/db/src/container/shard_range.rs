//! Shard ranges: rows of `shard_range`, how replicas send them, and how two of one name become one (swift/container/backend.py
//! `merge_shards`, `sift_shard_ranges`).
//!
//! A shard range has parts that change apart from one another: its bounds (`timestamp`), its counts (`meta_timestamp`) and its state
//! (`state_timestamp`). The whole of a younger `timestamp` wins; of the same, each part from its latest writer, and of a state of the same
//! time the one that is further on.

use common::config::parse_float;
use common::timestamp::Timestamp;
use indexmap::IndexMap;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Value, json};

use crate::broker::is_missing;

pub const TABLE: &str = "shard_range";
const COLUMNS: &str = "name, timestamp, lower, upper, object_count, bytes_used, meta_timestamp, deleted, state, \
                       state_timestamp, epoch, reported, tombstones";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRange {
    pub name: String,
    pub timestamp: String,
    pub lower: String,
    pub upper: String,
    pub object_count: i64,
    pub bytes_used: i64,
    pub meta_timestamp: String,
    pub deleted: bool,
    pub state: i64,
    pub state_timestamp: String,
    pub epoch: Option<String>,
    pub reported: bool,
    pub tombstones: i64,
}

impl ShardRange {
    /// The state of a range that somebody proposes.
    pub const FOUND: i64 = 10;
    const ACTIVE: i64 = 40;

    /// The own range of a container that has none yet.
    pub fn of_all(path: &str, now: Timestamp) -> Self {
        let now = now.normal();
        Self {
            name: path.to_owned(),
            timestamp: now.clone(),
            lower: String::new(),
            upper: String::new(),
            object_count: 0,
            bytes_used: 0,
            meta_timestamp: now.clone(),
            deleted: false,
            state: Self::ACTIVE,
            state_timestamp: now,
            epoch: None,
            reported: false,
            tombstones: -1,
        }
    }

    /// The name of a state.
    pub fn state_text(state: i64) -> Option<&'static str> {
        let at = usize::try_from(state / Self::FOUND - 1).ok().filter(|_| state % Self::FOUND == 0)?;
        STATES.get(at).copied()
    }

    /// The state that a text names or is the number of.
    pub fn resolve_state(text: &str) -> Result<i64, BadState> {
        match parse_float(text) {
            Some(number) => Self::state_of_number(number),
            None => {
                let name = text.to_lowercase();
                let at = STATES.iter().position(|state| *state == name).ok_or(BadState::Unknown)?;
                Ok(Self::FOUND * (at as i64 + 1))
            }
        }
    }

    pub fn state_of_number(number: f64) -> Result<i64, BadState> {
        if number.is_infinite() {
            return Err(BadState::Infinite);
        }
        let state = number as i64;
        let is_one = state as f64 == number && Self::state_text(state).is_some();
        if is_one { Ok(state) } else { Err(BadState::Unknown) }
    }

    /// One of a JSON body. `None` unless it has everything that a row needs.
    pub fn from_json(item: &Value) -> Option<Self> {
        let text = |name: &str| item.get(name)?.as_str().map(str::to_owned);
        let number = |name: &str| item.get(name)?.as_i64();
        let flag = |name: &str| match item.get(name)? {
            Value::Bool(flag) => Some(*flag),
            other => other.as_i64().map(|number| number != 0),
        };
        Some(Self {
            name: text("name")?,
            timestamp: text("timestamp")?,
            lower: text("lower")?,
            upper: text("upper")?,
            object_count: number("object_count")?,
            bytes_used: number("bytes_used")?,
            meta_timestamp: text("meta_timestamp")?,
            deleted: flag("deleted")?,
            state: number("state")?,
            state_timestamp: text("state_timestamp")?,
            epoch: text("epoch"),
            // Servers from before these columns do not send them.
            reported: flag("reported").unwrap_or(false),
            tombstones: number("tombstones").unwrap_or(-1),
        })
    }

    pub fn list_from_json(list: &Value) -> Option<Vec<Self>> {
        list.as_array()?.iter().map(Self::from_json).collect()
    }

    /// As replicas send it: timestamps in internal form.
    pub fn to_json(&self) -> Value {
        let internal =
            |text: &str| Timestamp::parse(text).map_or_else(|_| text.to_owned(), |at| at.internal());
        json!({
            "name": self.name,
            "timestamp": internal(&self.timestamp),
            "lower": self.lower,
            "upper": self.upper,
            "object_count": self.object_count,
            "bytes_used": self.bytes_used,
            "meta_timestamp": internal(&self.meta_timestamp),
            "deleted": i64::from(self.deleted),
            "state": self.state,
            "state_timestamp": internal(&self.state_timestamp),
            "epoch": self.epoch.as_deref().map(internal),
            "reported": i64::from(self.reported),
            "tombstones": self.tombstones,
        })
    }

    /// As a listing has it.
    pub fn to_record(&self) -> Value {
        let mut record = self.to_json();
        let created = Timestamp::parse(&self.timestamp).unwrap_or_default();
        record["last_modified"] = created.isoformat().into();
        record
    }

    /// As a listing has it for who only wants to know where names are.
    pub fn to_namespace(&self) -> Value {
        json!({"name": self.name, "lower": self.lower, "upper": self.upper})
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let text = |index| row.get::<_, Option<String>>(index);
        let number =
            |index, default| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(index)?.unwrap_or(default));
        let timestamp = text(1)?.unwrap_or_default();
        Ok(Self {
            name: text(0)?.unwrap_or_default(),
            lower: text(2)?.unwrap_or_default(),
            upper: text(3)?.unwrap_or_default(),
            object_count: number(4, 0)?,
            bytes_used: number(5, 0)?,
            meta_timestamp: text(6)?.unwrap_or_else(|| timestamp.clone()),
            deleted: number(7, 0)? != 0,
            state: number(8, Self::FOUND)?,
            state_timestamp: text(9)?.unwrap_or_else(|| timestamp.clone()),
            epoch: text(10)?,
            reported: number(11, 0)? != 0,
            tombstones: number(12, -1)?,
            timestamp,
        })
    }

    /// Take over from `existing`, of the same name, what has precedence there. False if nothing here has.
    pub fn merge(&mut self, existing: &Self) -> bool {
        if existing.timestamp < self.timestamp {
            self.reported = false;
            return true;
        }
        if existing.timestamp > self.timestamp {
            return false;
        }
        self.lower.clone_from(&existing.lower);
        self.upper.clone_from(&existing.upper);
        self.deleted = existing.deleted;
        let mut newer = false;
        if existing.meta_timestamp >= self.meta_timestamp {
            (self.object_count, self.bytes_used) = (existing.object_count, existing.bytes_used);
            self.meta_timestamp.clone_from(&existing.meta_timestamp);
            self.tombstones = existing.tombstones;
        } else {
            newer = true;
        }
        // What was reported stays reported as long as it is the same.
        if existing.reported && self.is_reported_as(existing) {
            self.reported = true;
        } else if self.reported && !existing.reported {
            newer = true;
        }
        if existing.state_timestamp == self.state_timestamp && self.state > existing.state {
            newer = true;
        } else if existing.state_timestamp >= self.state_timestamp {
            self.state = existing.state;
            self.state_timestamp.clone_from(&existing.state_timestamp);
            self.epoch.clone_from(&existing.epoch);
        } else {
            newer = true;
        }
        newer
    }

    fn is_reported_as(&self, existing: &Self) -> bool {
        existing.object_count == self.object_count
            && existing.bytes_used == self.bytes_used
            && existing.tombstones == self.tombstones
            && existing.state == self.state
            && existing.epoch == self.epoch
    }

    /// By upper bound, where none is the last.
    fn sort_key(&self) -> (bool, &str, i64, &str, &str) {
        (self.upper.is_empty(), &self.upper, self.state, &self.lower, &self.name)
    }
}

/// Why something is no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadState {
    Unknown,
    /// Swift: its check is for numbers which an integer can be made of.
    Infinite,
}

/// By their numbers, which go in steps of that of the first.
const STATES: [&str; 8] =
    ["found", "created", "cleaved", "active", "shrinking", "sharding", "sharded", "shrunk"];

/// All shard ranges of a container, its own and deleted ones too. None in a database from before there were any.
pub fn all(sqlite: &Connection) -> rusqlite::Result<Vec<ShardRange>> {
    select(sqlite, "true", &[])
}

/// Those that a condition with `parameters` holds for, in the order of their upper bounds.
pub fn select(
    sqlite: &Connection,
    condition: &str,
    parameters: &[&str],
) -> rusqlite::Result<Vec<ShardRange>> {
    let mut found = select_columns(sqlite, COLUMNS, condition, parameters)?;
    found.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    Ok(found)
}

fn select_columns(
    sqlite: &Connection,
    columns: &str,
    condition: &str,
    parameters: &[&str],
) -> rusqlite::Result<Vec<ShardRange>> {
    let sql = format!("SELECT {columns} FROM {TABLE} WHERE {condition}");
    let selected = sqlite.prepare_cached(&sql).and_then(|mut statement| {
        let rows = statement.query_map(rusqlite::params_from_iter(parameters), ShardRange::from_row)?;
        rows.collect()
    });
    match selected {
        Err(error) if is_missing(&error, "no such table: shard_range") => Ok(Vec::new()),
        Err(error) => match without_missing(columns, &error) {
            Some(columns) => select_columns(sqlite, &columns, condition, parameters),
            None => Err(error),
        },
        Ok(found) => Ok(found),
    }
}

/// The columns with a default in place of the one that `error` does not find.
fn without_missing(columns: &str, error: &rusqlite::Error) -> Option<String> {
    let (column, default) = [("reported", "0"), ("tombstones", "-1")]
        .into_iter()
        .find(|(column, _)| is_missing(error, &format!("no such column: {column}")))?;
    let known: Vec<&str> = columns.split(", ").map(str::trim).collect();
    known.contains(&column).then(|| {
        let replaced: Vec<&str> =
            known.iter().map(|name| if *name == column { default } else { *name }).collect();
        replaced.join(", ")
    })
}

/// Merge shard ranges into the table; runs inside a transaction.
pub fn merge(sqlite: &Connection, ranges: Vec<ShardRange>) -> rusqlite::Result<()> {
    let mut select = sqlite
        .prepare_cached(&format!("SELECT {COLUMNS} FROM {TABLE} WHERE deleted IN (0, 1) AND name = ?"))?;
    let mut adding: IndexMap<String, (ShardRange, bool)> = IndexMap::new();
    for mut range in ranges {
        let existing = select.query_row([&range.name], ShardRange::from_row).optional()?;
        let is_there = existing.is_some();
        if existing.is_some_and(|existing| !range.merge(&existing)) {
            continue;
        }
        if adding.get(&range.name).is_none_or(|(earlier, _)| range.merge(earlier)) {
            adding.insert(range.name.clone(), (range, is_there));
        }
    }
    let mut delete =
        sqlite.prepare_cached(&format!("DELETE FROM {TABLE} WHERE deleted IN (0, 1) AND name = ?"))?;
    let mut insert = sqlite.prepare_cached(&format!(
        "INSERT INTO {TABLE} ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    ))?;
    for (range, is_there) in adding.values() {
        if *is_there {
            delete.execute([&range.name])?;
        }
        insert.execute(params![
            range.name,
            range.timestamp,
            range.lower,
            range.upper,
            range.object_count,
            range.bytes_used,
            range.meta_timestamp,
            range.deleted,
            range.state,
            range.state_timestamp,
            range.epoch,
            range.reported,
            range.tombstones,
        ])?;
    }
    Ok(())
}

/// Bring an old table up to what `merge` needs. Runs outside a transaction.
pub fn migrate(sqlite: &Connection) -> rusqlite::Result<()> {
    let columns = |sqlite: &Connection| {
        let mut statement = sqlite.prepare(&format!("SELECT name FROM pragma_table_info('{TABLE}')"))?;
        let names = statement.query_map([], |row| row.get::<_, String>(0))?;
        names.collect::<rusqlite::Result<Vec<_>>>()
    };
    let there = columns(sqlite)?;
    if there.is_empty() {
        return sqlite.execute_batch(super::schema::SHARD_RANGE);
    }
    for (column, default) in [("reported", 0), ("tombstones", -1)] {
        if !there.iter().any(|name| name == column) {
            sqlite.execute_batch(&format!(
                "ALTER TABLE {TABLE} ADD COLUMN {column} INTEGER DEFAULT {default}"
            ))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(name: &str) -> ShardRange {
        let at = Timestamp::from_secs_f64(1_700_000_000.0).internal();
        ShardRange {
            name: name.into(),
            timestamp: at.clone(),
            lower: String::new(),
            upper: "m".into(),
            object_count: 1,
            bytes_used: 2,
            meta_timestamp: at.clone(),
            deleted: false,
            state: 40,
            state_timestamp: at,
            epoch: None,
            reported: false,
            tombstones: -1,
        }
    }

    fn database(old: bool) -> Connection {
        let sqlite = Connection::open_in_memory().unwrap();
        let mut script = super::super::schema::SHARD_RANGE.to_owned();
        if old {
            script = script
                .replace("epoch TEXT,", "epoch TEXT")
                .replace("reported INTEGER DEFAULT 0,", "")
                .replace("tombstones INTEGER DEFAULT -1", "");
        }
        sqlite.execute_batch(&script).unwrap();
        sqlite
    }

    #[test]
    fn old_tables_are_read_and_migrated() {
        for sqlite in [Connection::open_in_memory().unwrap(), database(true)] {
            assert_eq!(all(&sqlite).unwrap(), []);
            migrate(&sqlite).unwrap();
            merge(&sqlite, vec![range("a/c")]).unwrap();
            assert_eq!(all(&sqlite).unwrap(), [range("a/c")]);
        }
        let sqlite = database(true);
        sqlite
            .execute_batch("INSERT INTO shard_range (name, timestamp, state) VALUES ('a/c', '1', 40)")
            .unwrap();
        let found = all(&sqlite).unwrap();
        assert_eq!((found[0].tombstones, found[0].meta_timestamp.as_str()), (-1, "1"));
    }

    /// From `ShardRange.resolve_state` of 2.38.3.
    #[test]
    fn states_have_names_and_numbers() {
        for (text, state) in [
            ("found", Ok(10)),
            ("SHRUNK", Ok(80)),
            ("40", Ok(40)),
            (" 4e1 ", Ok(40)),
            ("60.0", Ok(60)),
            ("60.5", Err(BadState::Unknown)),
            ("45", Err(BadState::Unknown)),
            ("0", Err(BadState::Unknown)),
            ("-10", Err(BadState::Unknown)),
            ("90", Err(BadState::Unknown)),
            ("nan", Err(BadState::Unknown)),
            ("listing", Err(BadState::Unknown)),
            ("-inf", Err(BadState::Infinite)),
        ] {
            assert_eq!(ShardRange::resolve_state(text), state, "{text}");
        }
    }

    #[test]
    fn they_are_told_in_the_order_of_their_upper_bounds() {
        let sqlite = database(false);
        let with = |name: &str, upper: &str| ShardRange { upper: upper.into(), ..range(name) };
        merge(&sqlite, vec![with("last", ""), with("second", "z"), with("first", "b")]).unwrap();
        let names: Vec<_> = all(&sqlite).unwrap().into_iter().map(|range| range.name).collect();
        assert_eq!(names, ["first", "second", "last"]);
    }

    fn ranges() -> impl Strategy<Value = Vec<ShardRange>> {
        // Each writer writes other times: what two write at the same time is not ordered in Swift either.
        let one = (0u64..2, 0u64..4, 0u64..4, any::<bool>());
        proptest::collection::vec(one, 1..6).prop_map(|all| {
            let at = |coarse: u64, fine: usize| {
                Timestamp::from_secs_f64(1_700_000_000.0 + (coarse * 10) as f64 + fine as f64).internal()
            };
            let make =
                |(index, (created, meta, state, deleted)): (usize, (u64, u64, u64, bool))| ShardRange {
                    timestamp: at(created, 0),
                    lower: created.to_string(),
                    deleted: deleted && created == 1,
                    meta_timestamp: at(meta, index),
                    object_count: index as i64,
                    state_timestamp: at(state, index),
                    state: 10 * index as i64,
                    epoch: (state > 1).then(|| at(state, index)),
                    ..range("a/c")
                };
            let mut made: Vec<ShardRange> = all.into_iter().enumerate().map(make).collect();
            // One `timestamp` stands for one creation: bounds and deletion are the same in all of its copies.
            let deleted = made.iter().any(|range| range.deleted);
            made.iter_mut().filter(|range| range.lower == "1").for_each(|range| range.deleted = deleted);
            made
        })
    }

    proptest! {
        #[test]
        fn every_shard_range_survives_the_wire(name in ".*", object_count in 0i64.., deleted: bool, epoch: bool) {
            let epoch = epoch.then(|| range("").timestamp);
            let sent = ShardRange { object_count, deleted, epoch, ..range(&name) };
            prop_assert_eq!(ShardRange::from_json(&sent.to_json()), Some(sent));
        }

        #[test]
        fn the_order_in_which_they_come_does_not_matter(
            (ranges, shuffled) in ranges().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            batch in 1usize..4,
        ) {
            let (one, other) = (database(false), database(false));
            merge(&one, ranges).unwrap();
            for batch in shuffled.chunks(batch) {
                merge(&other, batch.to_vec()).unwrap();
                merge(&other, batch.to_vec()).unwrap();
            }
            prop_assert_eq!(all(&one).unwrap(), all(&other).unwrap());
        }
    }
}
