//! The recon cache: JSON files in which daemons leave figures for `swift-recon`.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::fs::{self, LockError};

pub const DEFAULT_CACHE_PATH: &str = "/var/cache/swift";
pub const ACCOUNT_FILE: &str = "account.recon";
pub const CONTAINER_FILE: &str = "container.recon";
pub const OBJECT_FILE: &str = "object.recon";
pub const DRIVE_FILE: &str = "drive.recon";
pub const RELINKER_FILE: &str = "relinker.recon";

const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Merges entries into a cache file under its lock and replaces it by a rename. As in Swift, a value that
/// is a dict is merged one level deep; an empty dict removes the key, on either level. The figures are not
/// worth an fsync.
pub fn dump_recon(file: &Path, entries: &[(&str, Value)]) -> io::Result<()> {
    let mut locked = fs::lock_file(file, LOCK_TIMEOUT, false).map_err(|e| match e {
        LockError::Io(e) => e,
        timeout => io::Error::new(io::ErrorKind::TimedOut, timeout.to_string()),
    })?;
    let mut text = String::new();
    // Swift: a file without a valid entry is made anew.
    let _ = locked.file.read_to_string(&mut text);
    let first_line = text.lines().next().unwrap_or_default();
    let mut cache: Map<String, Value> = serde_json::from_str(first_line).unwrap_or_default();
    for (key, value) in entries {
        put_entry(&mut cache, key, value);
    }
    sort_keys(&mut cache);
    let mut json = escape_non_ascii(&Value::Object(cache).to_string());
    json.push('\n');
    let dir = file.parent().unwrap_or(Path::new("."));
    fs::write_file_via(file, dir, json.as_bytes(), false)
}

/// The contents of a cache file; empty if it is missing or broken.
pub fn load_recon(file: &Path) -> io::Result<Map<String, Value>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
        Err(e) => Err(e),
    }
}

fn put_entry(cache: &mut Map<String, Value>, key: &str, value: &Value) {
    let Value::Object(items) = value else {
        cache.insert(key.to_owned(), value.clone());
        return;
    };
    if items.is_empty() {
        cache.remove(key);
        return;
    }
    let entry = cache.entry(key).or_insert(Value::Null);
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    let Value::Object(entry) = entry else { return };
    for (k, v) in items {
        if v.as_object().is_some_and(Map::is_empty) {
            entry.remove(k);
        } else {
            entry.insert(k.clone(), v.clone());
        }
    }
}

fn sort_keys(map: &mut Map<String, Value>) {
    map.sort_keys();
    for value in map.values_mut() {
        sort_value(value);
    }
}

fn sort_value(value: &mut Value) {
    match value {
        Value::Object(map) => sort_keys(map),
        Value::Array(items) => items.iter_mut().for_each(sort_value),
        _ => {}
    }
}

/// Characters beyond ASCII as `\uXXXX`, in UTF-16: JSON as `ensure_ascii` of Python writes it.
fn escape_non_ascii(json: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a String takes every write");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_are_merged_one_level_deep_and_empty_ones_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(OBJECT_FILE);
        dump_recon(&file, &[("b", json!(1.5)), ("a", json!({"x": 1, "y": 2})), ("gone", json!(true))])
            .unwrap();
        dump_recon(&file, &[("a", json!({"y": {}, "z": "\u{e9}"})), ("gone", json!({}))]).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, "{\"a\":{\"x\":1,\"z\":\"\\u00e9\"},\"b\":1.5}\n");
        assert_eq!(load_recon(&file).unwrap()["b"], 1.5);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(OBJECT_FILE);
        std::fs::write(&file, b"\xff{").unwrap();
        assert!(load_recon(&file).unwrap().is_empty());
        dump_recon(&file, &[("a", json!(null))]).unwrap();
        assert_eq!(load_recon(&file).unwrap()["a"], Value::Null);
        assert!(load_recon(&dir.path().join("none")).unwrap().is_empty());
    }
}
