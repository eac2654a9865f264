//! The `metadata` column of a stat table: a JSON object of `name: [value, timestamp]`.
//!
//! An item is replaced only by a later timestamp (compared as strings, both in internal form); an empty value stands for a removed
//! item until the replicator reclaims it. The order of items is kept, because responses list headers in it.

use common::timestamp::Timestamp;
use indexmap::IndexMap;
use serde_json::Value;

use common::json;

/// Items of client metadata that an account or container may have, and their bytes (swift.conf can change both).
#[derive(Clone, Copy, Debug)]
pub struct MetadataLimits {
    pub count: usize,
    pub overall_size: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(IndexMap<String, Item>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub value: String,
    pub timestamp: String,
}

impl Metadata {
    /// Read the column; `None` when it is not the object that Swift writes.
    pub fn parse(column: &str) -> Option<Self> {
        if column.is_empty() {
            return Some(Self::default());
        }
        let Value::Object(object) = serde_json::from_str(column).ok()? else { return None };
        object
            .into_iter()
            .map(|(name, item)| Some((name, Item::parse(&item)?)))
            .collect::<Option<_>>()
            .map(Self)
    }

    /// The column, as Python's `json.dumps` writes it.
    pub fn dump(&self) -> String {
        let mut out = vec![b'{'];
        for (index, (name, item)) in self.0.iter().enumerate() {
            json::separate(&mut out, index);
            json::write_str(&mut out, name);
            out.extend_from_slice(b": [");
            json::write_str(&mut out, &item.value);
            out.extend_from_slice(b", ");
            json::write_str(&mut out, &item.timestamp);
            out.push(b']');
        }
        out.push(b'}');
        String::from_utf8(out).expect("only ASCII was written")
    }

    pub fn set(&mut self, name: String, value: String, timestamp: String) {
        self.0.insert(name, Item { value, timestamp });
    }

    /// Forget removed items from before `age`; whether there were any.
    pub fn reclaim(&mut self, age: Timestamp) -> bool {
        let before = self.0.len();
        self.0.retain(|_, item| item.removed_at().is_none_or(|at| at >= age));
        self.0.len() < before
    }

    /// Since when the item is removed that was removed first.
    pub fn first_removed(&self) -> Option<Timestamp> {
        self.0.values().filter_map(Item::removed_at).min()
    }

    pub fn get(&self, name: &str) -> Option<&Item> {
        self.0.get(name)
    }

    /// The value, if there is one that is not empty.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|item| item.value.as_str()).filter(|value| !value.is_empty())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.0.iter().map(|(name, item)| (name.as_str(), item))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether merging `updates` would change anything but a timestamp equal to what is there.
    pub fn is_changed_by(&self, updates: &Metadata) -> bool {
        updates.0.iter().any(|(name, item)| self.0.get(name).is_none_or(|old| item.timestamp > old.timestamp))
    }

    /// Take every item of `updates` that is new or later.
    pub fn merge(&mut self, updates: &Metadata) {
        for (name, item) in &updates.0 {
            if self.0.get(name).is_none_or(|old| item.timestamp > old.timestamp) {
                self.0.insert(name.clone(), item.clone());
            }
        }
    }

    /// Swift's limits on client metadata, with the message of the 400 that answers a breach.
    pub fn validate(&self, limits: MetadataLimits) -> Result<(), String> {
        let mut count = 0;
        let mut size = 0;
        for (name, item) in &self.0 {
            if name.contains('\0') || item.value.contains('\0') {
                return Err("Metadata must be valid UTF-8".to_owned());
            }
            let name = name.to_lowercase();
            let stripped =
                name.strip_prefix("x-account-meta-").or_else(|| name.strip_prefix("x-container-meta-"));
            if let (Some(stripped), false) = (stripped, item.value.is_empty()) {
                count += 1;
                // Swift: common/db.py counts characters of native strings here, not bytes.
                size += stripped.chars().count() + item.value.chars().count();
            }
        }
        if count > limits.count {
            return Err(format!("Too many metadata items; max {}", limits.count));
        }
        if size > limits.overall_size {
            return Err(format!("Total metadata too large; max {}", limits.overall_size));
        }
        Ok(())
    }
}

impl Item {
    fn removed_at(&self) -> Option<Timestamp> {
        if self.value.is_empty() { Timestamp::parse(&self.timestamp).ok() } else { None }
    }

    fn parse(item: &Value) -> Option<Self> {
        let [value, timestamp] = item.as_array()?.as_slice() else { return None };
        Some(Self { value: plain_text(value), timestamp: plain_text(timestamp) })
    }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MetadataLimits = MetadataLimits { count: 2, overall_size: 20 };

    fn metadata(items: &[(&str, &str, &str)]) -> Metadata {
        let mut metadata = Metadata::default();
        for (name, value, timestamp) in items {
            metadata.set((*name).into(), (*value).into(), (*timestamp).into());
        }
        metadata
    }

    /// python3 -c 'import json; print(json.dumps({"X-B": ("é\"", "2"), "X-A": ["", "1"]}))'
    #[test]
    fn writes_the_column_as_python_does() {
        let column = r#"{"X-B": ["\u00e9\"", "2"], "X-A": ["", "1"]}"#;
        let parsed = Metadata::parse(column).unwrap();
        assert_eq!(parsed, metadata(&[("X-B", "é\"", "2"), ("X-A", "", "1")]));
        assert_eq!(parsed.dump(), column);
        assert_eq!(Metadata::default().dump(), "{}");
        assert_eq!(Metadata::parse(""), Some(Metadata::default()));
    }

    #[test]
    fn refuses_what_is_not_an_object_of_pairs() {
        for column in ["[]", "{\"a\": 1}", "{\"a\": [\"b\"]}", "{", "null"] {
            assert_eq!(Metadata::parse(column), None, "{column}");
        }
    }

    #[test]
    fn only_a_later_timestamp_replaces_an_item() {
        let mut stored = metadata(&[("A", "old", "2"), ("B", "old", "2")]);
        assert!(!stored.is_changed_by(&metadata(&[("A", "x", "1"), ("B", "x", "2")])));
        let updates = metadata(&[("A", "x", "1"), ("B", "new", "3"), ("C", "new", "1")]);
        assert!(stored.is_changed_by(&updates));
        stored.merge(&updates);
        assert_eq!(stored, metadata(&[("A", "old", "2"), ("B", "new", "3"), ("C", "new", "1")]));
    }

    #[test]
    fn only_old_removed_items_are_forgotten() {
        let mut stored =
            metadata(&[("A", "", "0000000001.00000"), ("B", "", "0000000003.00000"), ("C", "c", "1")]);
        assert!(stored.reclaim(Timestamp::from_secs_f64(2.0)));
        assert_eq!(stored, metadata(&[("B", "", "0000000003.00000"), ("C", "c", "1")]));
        assert!(!stored.reclaim(Timestamp::from_secs_f64(2.0)));
    }

    #[test]
    fn limits_count_client_items_with_a_value() {
        let sysmeta = ("X-Container-Sysmeta-X", "a long value which does not count", "1");
        let full = metadata(&[sysmeta, ("X-Container-Meta-A", "é", "1"), ("X-Account-Meta-B", "b", "1")]);
        assert_eq!(full.validate(LIMITS), Ok(()));
        let mut many = full.clone();
        many.set("X-Container-Meta-C".into(), String::new(), "1".into());
        assert_eq!(many.validate(LIMITS), Ok(()));
        many.set("X-Container-Meta-C".into(), "c".into(), "1".into());
        assert_eq!(many.validate(LIMITS), Err("Too many metadata items; max 2".into()));
        let large = metadata(&[("X-Container-Meta-A", &"é".repeat(20), "1")]);
        assert_eq!(large.validate(LIMITS), Err("Total metadata too large; max 20".into()));
    }
}
