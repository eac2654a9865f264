//! Object rows: how a new one and the one already there become one row (swift/container/backend.py `update_new_item_from_existing`
//! and `merge_items`).
//!
//! A row answers for three things that change apart from one another: the data (size, ETag, deletion), the content type and the
//! metadata. Each has a timestamp, and all three are encoded into the column `created_at`. A row arrives from an object server
//! with any of them, in any order; what is stored has each part from its latest writer.

use std::collections::HashMap;

use common::pickle::Value;
use common::timestamp::{Timestamp, TimestampError, decode_timestamps, encode_timestamps};
use indexmap::IndexMap;
use rusqlite::{Connection, params, params_from_iter};

use super::tally::{self, Tally};
use crate::broker::lenient_int;
use crate::connections::parse_hash;
use crate::content_type::extract_swift_bytes;

/// Bound arguments of one statement; SQLite's own limit was 999 when Swift chose it.
const SQLITE_ARG_LIMIT: usize = 999;

/// An update of an object's row, as it stands in the pending file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectRecord {
    pub name: String,
    /// Timestamp of the data, or all three encoded into one string.
    pub created_at: String,
    pub size: i64,
    pub content_type: String,
    pub etag: String,
    pub deleted: bool,
    pub storage_policy_index: i64,
    pub ctype_timestamp: Option<String>,
    pub meta_timestamp: Option<String>,
}

impl ObjectRecord {
    /// The row of a deleted object.
    pub fn tombstone(name: String, created_at: String, storage_policy_index: i64) -> Self {
        Self {
            name,
            created_at,
            content_type: "application/deleted".to_owned(),
            etag: "noetag".to_owned(),
            deleted: true,
            storage_policy_index,
            ..Self::default()
        }
    }

    /// The tuple that Swift pickles into the pending file.
    pub fn to_pickle(&self) -> Value {
        let optional = |text: &Option<String>| text.clone().map_or(Value::None, Value::Str);
        Value::Tuple(vec![
            Value::Str(self.name.clone()),
            Value::Str(self.created_at.clone()),
            Value::Int(self.size),
            Value::Str(self.content_type.clone()),
            Value::Str(self.etag.clone()),
            Value::Int(i64::from(self.deleted)),
            Value::Int(self.storage_policy_index),
            optional(&self.ctype_timestamp),
            optional(&self.meta_timestamp),
        ])
    }

    /// Reads tuples of six items (before storage policies), seven, and nine.
    pub fn from_pickle(entry: Value) -> Option<Self> {
        let (Value::Tuple(items) | Value::List(items)) = entry else { return None };
        if items.len() < 6 {
            return None;
        }
        let mut items = items.into_iter();
        let mut next = || items.next().unwrap_or(Value::None);
        let record = Self {
            name: text(next())?,
            created_at: text(next())?,
            size: integer(&next())?,
            content_type: text(next())?,
            etag: text(next())?,
            deleted: integer(&next())? != 0,
            storage_policy_index: integer(&next()).unwrap_or(0),
            ctype_timestamp: text(next()),
            meta_timestamp: text(next()),
        };
        // A row whose timestamps nobody can read would fail every merge from here on.
        Timestamps::of(&record).ok()?;
        Some(record)
    }
}

impl ObjectRecord {
    /// Whether the row can be merged.
    pub fn has_readable_timestamps(&self) -> bool {
        Timestamps::of(self).is_ok()
    }

    /// The rows of an UPDATE request: a JSON list of objects with the names of the columns.
    pub fn from_json_list(list: &serde_json::Value) -> Option<Vec<Self>> {
        list.as_array()?.iter().map(Self::from_json).collect()
    }

    pub fn from_json(item: &serde_json::Value) -> Option<Self> {
        let text = |key: &str| item.get(key)?.as_str().map(str::to_owned);
        let number = |key: &str| match item.get(key)? {
            serde_json::Value::String(digits) => digits.trim().parse().ok(),
            other => other.as_i64(),
        };
        let record = Self {
            name: text("name")?,
            created_at: text("created_at")?,
            size: number("size")?,
            content_type: text("content_type")?,
            etag: text("etag")?,
            deleted: number("deleted")? != 0,
            storage_policy_index: number("storage_policy_index").unwrap_or(0),
            ctype_timestamp: text("ctype_timestamp"),
            meta_timestamp: text("meta_timestamp"),
        };
        Timestamps::of(&record).ok()?;
        Some(record)
    }
}

/// A row in the table, or about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRow {
    pub created_at: String,
    pub size: i64,
    pub content_type: String,
    pub etag: String,
    pub deleted: bool,
}

#[derive(Clone, Copy)]
struct Timestamps {
    data: Timestamp,
    content_type: Timestamp,
    meta: Timestamp,
}

impl Timestamps {
    fn of(record: &ObjectRecord) -> Result<Self, TimestampError> {
        let mut found = Self::decode(&record.created_at)?;
        if let Some(text) = record.ctype_timestamp.as_deref().filter(|text| !text.is_empty()) {
            found.content_type = Timestamp::parse(text)?;
            found.meta = found.content_type;
        }
        if let Some(text) = record.meta_timestamp.as_deref().filter(|text| !text.is_empty()) {
            found.meta = Timestamp::parse(text)?;
        }
        Ok(found)
    }

    fn decode(created_at: &str) -> Result<Self, TimestampError> {
        let (data, content_type, meta) = decode_timestamps(created_at, false)?;
        Ok(Self { data, content_type: content_type.unwrap_or(data), meta: meta.unwrap_or(data) })
    }

    fn encode(self) -> String {
        encode_timestamps(self.data, Some(self.content_type), Some(self.meta), false)
    }
}

/// A record on its way into the table.
struct Candidate {
    /// What the record brought, whatever it took over from other rows.
    timestamps: Timestamps,
    row: ObjectRow,
}

impl Candidate {
    fn new(record: &ObjectRecord) -> Option<Self> {
        let timestamps = Timestamps::of(record).ok()?;
        let row = ObjectRow {
            created_at: timestamps.encode(),
            size: record.size,
            content_type: record.content_type.clone(),
            etag: record.etag.clone(),
            deleted: record.deleted,
        };
        Some(Self { timestamps, row })
    }

    /// Take over from `existing` what is not older there. False if nothing here is newer.
    fn merge(&mut self, existing: &ObjectRow) -> bool {
        let Ok(theirs) = Timestamps::decode(&existing.created_at) else { return true };
        let mut merged = self.timestamps;
        let (mut content_type, mut swift_bytes) = extract_swift_bytes(&self.row.content_type);
        let (their_content_type, their_swift_bytes) = extract_swift_bytes(&existing.content_type);
        let mut newer = [true; 3];
        if theirs.data >= merged.data {
            self.row.size = existing.size;
            self.row.etag.clone_from(&existing.etag);
            self.row.deleted = existing.deleted;
            // The size of an SLO belongs to the data although it is written into the content type.
            swift_bytes = their_swift_bytes;
            merged.data = theirs.data;
            newer[0] = false;
        }
        if theirs.content_type >= merged.content_type {
            content_type = their_content_type;
            merged.content_type = theirs.content_type;
            newer[1] = false;
        }
        if theirs.meta >= merged.meta {
            merged.meta = theirs.meta;
            newer[2] = false;
        }
        if let Some(bytes) = swift_bytes.filter(|bytes| !bytes.is_empty()) {
            content_type.push_str(";swift_bytes=");
            content_type.push_str(&bytes);
        }
        self.row.content_type = content_type;
        self.row.created_at = merged.encode();
        newer.contains(&true)
    }
}

type Identity = (String, i64);

/// Merge records into the table; runs inside a transaction.
pub fn merge(sqlite: &Connection, records: Vec<ObjectRecord>) -> rusqlite::Result<()> {
    let existing = existing_rows(sqlite, &records)?;
    let mut replaced = Vec::new();
    let mut adding: IndexMap<Identity, Candidate> = IndexMap::new();
    for record in records {
        let Some(mut candidate) = Candidate::new(&record) else { continue };
        let identity = (record.name, record.storage_policy_index);
        if let Some(row) = existing.get(&identity) {
            if !candidate.merge(row) {
                continue;
            }
            if !adding.contains_key(&identity) {
                replaced.push(identity.clone());
            }
        }
        if let Some(earlier) = adding.get(&identity) {
            candidate.merge(&earlier.row);
        }
        adding.insert(identity, candidate);
    }
    tally::counted(sqlite, adding.len(), |mut tally| {
        delete(sqlite, &replaced, tally.as_deref_mut())?;
        insert(sqlite, &adding, tally)
    })
}

fn delete(sqlite: &Connection, rows: &[Identity], mut tally: Option<&mut Tally>) -> rusqlite::Result<()> {
    let sql = "DELETE FROM object WHERE deleted IN (0, 1) AND name = ? AND storage_policy_index = ?";
    let Some(tally) = &mut tally else {
        let mut delete = sqlite.prepare_cached(sql)?;
        return rows.iter().try_for_each(|(name, policy)| delete.execute(params![name, policy]).map(drop));
    };
    let sql = format!("{sql} RETURNING chexor('0', name, created_at), deleted, size");
    let mut delete = sqlite.prepare_cached(&sql)?;
    for (name, policy) in rows {
        let mut deleted = delete.query(params![name, policy])?;
        while let Some(row) = deleted.next()? {
            let hash = parse_hash(row.get_ref(0)?.as_str()?)?;
            let is_deleted = lenient_int(row, 1)? == Some(1);
            tally.remove(hash, *policy, is_deleted, lenient_int(row, 2)?.unwrap_or(0));
        }
    }
    Ok(())
}

fn insert(
    sqlite: &Connection,
    rows: &IndexMap<Identity, Candidate>,
    mut tally: Option<&mut Tally>,
) -> rusqlite::Result<()> {
    let mut insert = sqlite.prepare_cached(
        "INSERT INTO object (name, created_at, size, content_type, etag, deleted, storage_policy_index) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?;
    for ((name, policy), Candidate { row, .. }) in rows {
        let ObjectRow { created_at, size, content_type, etag, deleted } = row;
        insert.execute(params![name, created_at, size, content_type, etag, deleted, policy])?;
        if let Some(tally) = &mut tally {
            tally.add(name, created_at, *policy, *deleted, *size);
        }
    }
    Ok(())
}

fn existing_rows(
    sqlite: &Connection,
    records: &[ObjectRecord],
) -> rusqlite::Result<HashMap<Identity, ObjectRow>> {
    let mut found = HashMap::new();
    for chunk in records.chunks(SQLITE_ARG_LIMIT) {
        let marks = vec!["?"; chunk.len()].join(",");
        let sql = format!(
            "SELECT name, storage_policy_index, created_at, size, content_type, etag, deleted \
             FROM object WHERE deleted IN (0, 1) AND name IN ({marks})"
        );
        let mut statement = sqlite.prepare(&sql)?;
        let mut rows = statement.query(params_from_iter(chunk.iter().map(|record| record.name.as_str())))?;
        while let Some(row) = rows.next()? {
            let stored = ObjectRow {
                created_at: row.get(2)?,
                size: row.get::<_, Option<i64>>(3)?.unwrap_or(0),
                content_type: row.get::<_, Option<String>>(4)?.unwrap_or_default(),
                etag: row.get::<_, Option<String>>(5)?.unwrap_or_default(),
                deleted: row.get::<_, i64>(6)? != 0,
            };
            found.insert((row.get(0)?, row.get(1)?), stored);
        }
    }
    Ok(found)
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::Str(text) => Some(text),
        // What Python 2 wrote.
        Value::Bytes(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::Str(digits) => digits.trim().parse().ok(),
        Value::Bytes(digits) => std::str::from_utf8(digits).ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// When an object of a row last changed: the time of its metadata.
pub fn last_modified(created_at: &str) -> Timestamp {
    Timestamps::decode(created_at).map_or(Timestamp::ZERO, |timestamps| timestamps.meta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn database() -> Connection {
        let sqlite = Connection::open_in_memory().unwrap();
        sqlite
            .execute_batch(
                "CREATE TABLE object (ROWID INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, created_at TEXT, size INTEGER, \
                 content_type TEXT, etag TEXT, deleted INTEGER, storage_policy_index INTEGER)",
            )
            .unwrap();
        sqlite
    }

    type Stored = (String, String, i64, String, String, i64, i64);

    fn rows(sqlite: &Connection) -> Vec<Stored> {
        let sql = "SELECT name, created_at, size, content_type, etag, deleted, storage_policy_index FROM object ORDER BY 1, 7";
        let mut statement = sqlite.prepare(sql).unwrap();
        let get = |row: &rusqlite::Row<'_>| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
        };
        statement.query_map([], get).unwrap().map(Result::unwrap).collect()
    }

    fn stamp(second: u64) -> String {
        Timestamp::from_secs_f64(1_700_000_000.0 + second as f64).internal()
    }

    fn record(name: &str, data: u64, content_type: &str) -> ObjectRecord {
        ObjectRecord {
            name: name.into(),
            created_at: stamp(data),
            size: data as i64,
            content_type: content_type.into(),
            etag: format!("e{data}"),
            ..ObjectRecord::default()
        }
    }

    #[test]
    fn each_part_of_a_row_comes_from_its_latest_writer() {
        let sqlite = database();
        merge(&sqlite, vec![record("o", 1, "old;swift_bytes=10")]).unwrap();
        let post = ObjectRecord { ctype_timestamp: Some(stamp(5)), ..record("o", 1, "posted") };
        merge(&sqlite, vec![post]).unwrap();
        merge(&sqlite, vec![record("o", 3, "put;swift_bytes=30")]).unwrap();
        let row = &rows(&sqlite)[0];
        // The content type is the POST's, the size of the manifest the later PUT's.
        assert_eq!((row.2, row.3.as_str(), row.4.as_str()), (3, "posted;swift_bytes=30", "e3"));
        assert_eq!(last_modified(&row.1), Timestamp::parse(&stamp(5)).unwrap());
    }

    #[test]
    fn pending_entries_of_older_versions_are_read() {
        let six = || {
            let text = |text: &str| Value::Str(text.into());
            vec![
                text("o"),
                text("1700000001.00000"),
                Value::Int(3),
                text("t"),
                Value::Bytes(b"e".to_vec()),
                Value::Int(0),
            ]
        };
        let expected = ObjectRecord { size: 3, etag: "e".into(), ..record("o", 1, "t") };
        assert_eq!(ObjectRecord::from_pickle(Value::Tuple(six())), Some(expected.clone()));
        let mut seven = six();
        seven.push(Value::Int(2));
        let expected = ObjectRecord { storage_policy_index: 2, ..expected };
        assert_eq!(ObjectRecord::from_pickle(Value::List(seven)), Some(expected));
        assert_eq!(ObjectRecord::from_pickle(Value::Tuple(six()[..5].to_vec())), None);
        assert_eq!(ObjectRecord::from_pickle(Value::Str("o".into())), None);
    }

    #[test]
    fn policies_have_rows_of_their_own() {
        let sqlite = database();
        let other = ObjectRecord { storage_policy_index: 1, ..record("o", 1, "t") };
        merge(&sqlite, vec![record("o", 2, "t"), other]).unwrap();
        assert_eq!(rows(&sqlite).len(), 2);
    }

    #[test]
    fn more_rows_than_a_statement_takes_arguments_are_merged() {
        let sqlite = database();
        let many = |data| (0..2500).map(|n| record(&format!("{n:04}"), data, "t")).collect::<Vec<_>>();
        merge(&sqlite, many(1)).unwrap();
        merge(&sqlite, many(2)).unwrap();
        let rows = rows(&sqlite);
        assert_eq!(rows.len(), 2500);
        assert!(rows.iter().all(|row| row.2 == 2));
    }

    /// Updates of two objects whose timestamps are all different.
    fn updates() -> impl Strategy<Value = Vec<ObjectRecord>> {
        let update =
            ("[ab]", proptest::option::of(0u64..9), proptest::option::of(0u64..9), any::<bool>(), 0u64..3);
        proptest::collection::vec(update, 1..8).prop_map(|updates| {
            let make = |(at, (name, ctype, meta, deleted, data)): (usize, (String, _, _, bool, u64))| {
                let unique = |coarse: u64| coarse * 100 + at as u64;
                let later =
                    |extra: Option<u64>, shift| extra.map(|extra| stamp(unique(data + extra) + shift));
                let made = record(&name, unique(data), &format!("type{at};swift_bytes={at}"));
                ObjectRecord {
                    deleted,
                    ctype_timestamp: later(ctype, 20),
                    meta_timestamp: later(meta, 40),
                    ..made
                }
            };
            updates.into_iter().enumerate().map(make).collect()
        })
    }

    /// A database as it is made for a container; with a trigger too many, rows are not counted past the triggers.
    fn counting(more: &str) -> Connection {
        use crate::container::schema::{NewContainer, create};
        let sqlite = Connection::open_in_memory().unwrap();
        crate::connections::add_chexor(&sqlite).unwrap();
        let new = NewContainer {
            account: "a",
            container: "c",
            created_at: stamp(0),
            put_timestamp: "0",
            storage_policy_index: 0,
        };
        create(&sqlite, "id", &new).unwrap();
        sqlite.execute_batch(more).unwrap();
        sqlite
    }

    type Counted = (String, Vec<(i64, i64, i64)>);

    fn counts(sqlite: &Connection) -> Counted {
        let hash = sqlite.query_row("SELECT hash FROM container_info", [], |row| row.get(0)).unwrap();
        let sql = "SELECT storage_policy_index, object_count, bytes_used FROM policy_stat ORDER BY 1";
        let mut statement = sqlite.prepare(sql).unwrap();
        let stats = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        (hash, stats.map(Result::unwrap).collect())
    }

    proptest! {
        #[test]
        fn many_rows_count_as_the_triggers_count_them(
            batches in proptest::collection::vec(proptest::collection::vec((0u8..40, 1u64..9, any::<bool>(), 0i64..3), 0..60), 1..4),
        ) {
            let summed = counting("");
            let triggered = counting("CREATE TRIGGER more AFTER INSERT ON object BEGIN SELECT 1; END");
            for batch in batches {
                let records: Vec<ObjectRecord> = batch.into_iter().map(|(name, data, deleted, storage_policy_index)| {
                    ObjectRecord { deleted, storage_policy_index, ..record(&name.to_string(), data, "t") }
                }).collect();
                merge(&summed, records.clone()).unwrap();
                merge(&triggered, records).unwrap();
                prop_assert_eq!(counts(&summed), counts(&triggered));
            }
            prop_assert_eq!(rows(&summed), rows(&triggered));
        }

        #[test]
        fn every_record_survives_the_pending_file(name in ".*", size: i64, kind in ".*", deleted: bool, meta in proptest::option::of(1u64..9)) {
            let meta_timestamp = meta.map(stamp);
            let record = ObjectRecord { size, deleted, meta_timestamp, ..record(&name, 1, &kind) };
            let read = common::pickle::loads(&common::pickle::dumps(&record.to_pickle())).unwrap();
            prop_assert_eq!(ObjectRecord::from_pickle(read), Some(record));
        }

        #[test]
        fn rows_do_not_depend_on_the_order_or_batches_of_updates(
            (updates, shuffled) in updates().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            batch in 1usize..4,
        ) {
            let (one, other) = (database(), database());
            merge(&one, updates).unwrap();
            for batch in shuffled.chunks(batch) {
                merge(&other, batch.to_vec()).unwrap();
                merge(&other, batch.to_vec()).unwrap(); // as after a crash before the pending file was emptied
            }
            prop_assert_eq!(rows(&one), rows(&other));
        }
    }
}
