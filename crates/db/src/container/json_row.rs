//! A row of objects as other replicas send it, read without a tree of JSON values. What `ObjectRecord::from_json` takes in other
//! forms too, such as a number for a string, is refused here: it does not come from a replica.

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::rows::ObjectRecord;

/// The row, and its ROWID.
pub fn read<'de, D: Deserializer<'de>>(row: D) -> Result<(ObjectRecord, Option<i64>), D::Error> {
    row.deserialize_map(RowVisitor)
}

/// The names of the columns that count.
enum Column {
    RowId,
    Name,
    CreatedAt,
    Size,
    ContentType,
    Etag,
    Deleted,
    StoragePolicyIndex,
    ContentTypeTimestamp,
    MetaTimestamp,
    Other,
}

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(name: D) -> Result<Self, D::Error> {
        name.deserialize_identifier(ColumnVisitor)
    }
}

struct ColumnVisitor;

impl Visitor<'_> for ColumnVisitor {
    type Value = Column;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Column, E> {
        Ok(match name {
            "ROWID" => Column::RowId,
            "name" => Column::Name,
            "created_at" => Column::CreatedAt,
            "size" => Column::Size,
            "content_type" => Column::ContentType,
            "etag" => Column::Etag,
            "deleted" => Column::Deleted,
            "storage_policy_index" => Column::StoragePolicyIndex,
            "ctype_timestamp" => Column::ContentTypeTimestamp,
            "meta_timestamp" => Column::MetaTimestamp,
            _ => Column::Other,
        })
    }
}

struct RowVisitor;

impl<'de> Visitor<'de> for RowVisitor {
    type Value = (ObjectRecord, Option<i64>);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a row of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut row: A) -> Result<Self::Value, A::Error> {
        let mut record = ObjectRecord::default();
        let (mut rowid, mut needed) = (None, 0_u8);
        while let Some(column) = row.next_key()? {
            match column {
                Column::RowId => rowid = row.next_value()?,
                Column::Name => record.name = row.next_value()?,
                Column::CreatedAt => record.created_at = row.next_value()?,
                Column::Size => record.size = row.next_value()?,
                Column::ContentType => record.content_type = row.next_value()?,
                Column::Etag => record.etag = row.next_value()?,
                Column::Deleted => record.deleted = row.next_value::<i64>()? != 0,
                Column::StoragePolicyIndex => record.storage_policy_index = row.next_value()?,
                Column::ContentTypeTimestamp => record.ctype_timestamp = row.next_value()?,
                Column::MetaTimestamp => record.meta_timestamp = row.next_value()?,
                Column::Other => drop(row.next_value::<IgnoredAny>()?),
            }
            needed |= match column {
                Column::Name => 1,
                Column::CreatedAt => 2,
                Column::Size => 4,
                Column::ContentType => 8,
                Column::Etag => 16,
                Column::Deleted => 32,
                _ => 0,
            };
        }
        if needed == 63 && record.has_readable_timestamps() {
            Ok((record, rowid))
        } else {
            Err(A::Error::custom("not a row of objects"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::broker::Container;
    use crate::replication::MergeItems;

    const ROW: &str = r#"{"ROWID": 7, "name": "o\u00e9\"", "created_at": "0000000001.00000", "size": 3, "content_type": "t",
        "etag": "e", "deleted": 1, "storage_policy_index": 2, "more": [{}]}"#;

    #[test]
    fn a_row_is_read_as_from_a_tree_of_values() {
        let read = MergeItems::<Container>::read_rows(format!("[{ROW}]").as_bytes()).unwrap();
        let tree = serde_json::from_str(ROW).unwrap();
        assert_eq!(read, [ObjectRecord::from_json(&tree).unwrap()]);
    }

    #[test]
    fn a_request_says_whose_rows_it_has() {
        let other = ROW.replace("7", "9");
        let read = |body: String| MergeItems::<Container>::read(body.as_bytes());
        let items = read(format!(r#"["merge_items", [{other}, {ROW}], "id", 5]"#)).unwrap();
        assert_eq!((items.records.len(), items.source.as_deref(), items.last), (2, Some("id"), Some(9)));
        assert!(read(format!(r#"["merge_items", [{ROW}], null]"#)).unwrap().source.is_none());
        for wrong in ["deleted\": 1", "\"etag\": \"e\",", "\"size\": 3", "0000000001.00000"] {
            assert!(
                read(format!(r#"["merge_items", [{}], "id"]"#, ROW.replace(wrong, ""))).is_none(),
                "{wrong}"
            );
        }
        assert!(read(format!(r#"["merge_syncs", [{ROW}], "id"]"#)).is_none());
        assert!(read(format!(r#"["merge_items", [{ROW}], "id"]."#)).is_none());
    }
}
