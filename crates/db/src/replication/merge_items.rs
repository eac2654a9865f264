//! The body of a `merge_items` request, `["merge_items", [{"name": ..., "ROWID": ...}, ...], "ID"]`, read straight into records.
//!
//! Of what replicas send each other this is nearly all, so no tree of JSON values is made of it. What does not look as expected is no error
//! here: `rpc` then reads it as it reads any other request, and says what is wrong.

use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use crate::broker::Kind;

/// Rows of the database `source`.
pub struct MergeItems<K: Kind> {
    pub records: Vec<K::Record>,
    pub source: Option<String>,
    /// The highest ROWID among them.
    pub last: Option<i64>,
}

impl<K: Kind> MergeItems<K> {
    /// `None` if it is another request, or not as it should be.
    pub fn read(body: &[u8]) -> Option<Self> {
        let mut reader = serde_json::Deserializer::from_slice(body);
        let items = reader.deserialize_seq(RequestVisitor(PhantomData)).ok()?;
        reader.end().ok()?;
        Some(items)
    }

    /// A list of rows alone.
    pub fn read_rows(list: &[u8]) -> Option<Vec<K::Record>> {
        let mut reader = serde_json::Deserializer::from_slice(list);
        let (records, _) = Rows::<K>(PhantomData).deserialize(&mut reader).ok()?;
        reader.end().ok()?;
        Some(records)
    }
}

struct RequestVisitor<K>(PhantomData<K>);

impl<'de, K: Kind> Visitor<'de> for RequestVisitor<K> {
    type Value = MergeItems<K>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a request to merge rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<MergeItems<K>, A::Error> {
        let another = || A::Error::custom("another request");
        let op: &str = words.next_element()?.ok_or_else(another)?;
        if op != "merge_items" {
            return Err(another());
        }
        let (records, last) = words.next_element_seed(Rows::<K>(PhantomData))?.ok_or_else(another)?;
        let source: Value = words.next_element()?.ok_or_else(another)?;
        while words.next_element::<IgnoredAny>()?.is_some() {}
        Ok(MergeItems { records, source: source.as_str().map(str::to_owned), last })
    }
}

/// Reads a list of rows.
struct Rows<K>(PhantomData<K>);

impl<'de, K: Kind> DeserializeSeed<'de> for Rows<K> {
    type Value = (Vec<K::Record>, Option<i64>);

    fn deserialize<D: Deserializer<'de>>(self, list: D) -> Result<Self::Value, D::Error> {
        list.deserialize_seq(self)
    }
}

impl<'de, K: Kind> Visitor<'de> for Rows<K> {
    type Value = (Vec<K::Record>, Option<i64>);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Self::Value, A::Error> {
        let (mut records, mut last) = (Vec::new(), None);
        while let Some((record, rowid)) = rows.next_element_seed(Row::<K>(PhantomData))? {
            records.push(record);
            last = last.max(rowid);
        }
        Ok((records, last))
    }
}

/// Reads a row.
struct Row<K>(PhantomData<K>);

impl<'de, K: Kind> DeserializeSeed<'de> for Row<K> {
    type Value = (K::Record, Option<i64>);

    fn deserialize<D: Deserializer<'de>>(self, row: D) -> Result<Self::Value, D::Error> {
        K::read_json(row)
    }
}
