//! The queue of the container-reconciler: objects whose rows are in another storage policy than their container.
//!
//! The queue is the account `.misplaced_objects`. Its containers are named by the hour in which an object last changed, and an entry is a
//! row `POLICY:/ACCOUNT/CONTAINER/OBJECT` whose content type says what was done to the object and whose ETag when.

use common::timestamp::{Timestamp, decode_timestamps};

use super::rows::ObjectRecord;

/// Seconds that share a container.
const DIVISOR: u64 = 3600;

/// The container for an object of that `created_at`.
pub fn container_name(created_at: &str) -> String {
    let changed = decode_timestamps(created_at, false)
        .map_or(Timestamp::ZERO, |(data, content_type, meta)| meta.or(content_type).unwrap_or(data));
    (changed.as_secs() / DIVISOR * DIVISOR).to_string()
}

/// The entry for a row of the container `account/container`.
pub fn entry(row: &ObjectRecord, account: &str, container: &str) -> ObjectRecord {
    ObjectRecord {
        name: format!("{}:/{account}/{container}/{}", row.storage_policy_index, row.name),
        created_at: row.created_at.clone(),
        etag: row.created_at.clone(),
        content_type: if row.deleted { "application/x-delete" } else { "application/x-put" }.to_owned(),
        ..ObjectRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `get_reconciler_container_name` and `get_row_to_q_entry_translator` of 2.38.3.
    #[test]
    fn entries_are_swifts() {
        assert_eq!(container_name("1700000000.12345"), "1699999200");
        // Data, then 2000 s to the content type, then 4000 s to the metadata, in units of 10 microseconds.
        assert_eq!(container_name("1700000000.00000+bebc200+17d78400"), "1700002800");
        let row = ObjectRecord {
            name: "o/é".into(),
            created_at: "1700000000.12345".into(),
            size: 7,
            storage_policy_index: 2,
            ..ObjectRecord::default()
        };
        let queued = entry(&row, "a", "c");
        assert_eq!((queued.name.as_str(), queued.content_type.as_str()), ("2:/a/c/o/é", "application/x-put"));
        assert_eq!(
            (queued.size, queued.etag.as_str(), queued.storage_policy_index),
            (0, "1700000000.12345", 0)
        );
        assert_eq!(
            entry(&ObjectRecord { deleted: true, ..row }, "a", "c").content_type,
            "application/x-delete"
        );
    }
}
