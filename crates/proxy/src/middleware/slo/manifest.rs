//! The SLO manifest in its two forms: as a client PUTs it, and as it is stored.
//!
//! A client sends a list of `{"path", "etag", "size_bytes", "range"}` and `{"data"}`; what is stored (and what
//! Python Swift reads) has for each object-backed segment `name`, `bytes`, `hash`, `content_type`,
//! `last_modified` and, when they apply, `range` and `sub_slo`, in this order, written by `json.dumps()`.
//! All here is pure.
//!
//! Swift: some malformed manifests (an entry that is not an object, an entry without `path` and `data`) make
//! Python answer 500 by accident; they get the 400 that was meant.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::digest::{Md5, hex, md5};
use common::headers::is_true_value;
use common::quote;
use serde_json::{Map, Value, json};
use service::http::range::{self, Ranges};

use crate::middleware::pyjson;

/// Why a manifest that a client sent is refused with 400.
#[derive(Debug, PartialEq, Eq)]
pub enum InvalidManifest {
    /// The body as a whole is not a manifest.
    Body(&'static str),
    /// One line for each entry that is wrong; sent as text/plain.
    Entries(String),
}

/// An entry of a manifest that a client PUTs.
#[derive(Debug)]
pub enum PutSegment {
    Data(Vec<u8>),
    Object(ObjectSegment),
}

/// A segment that is an object, with what the client expects of it.
#[derive(Debug)]
pub struct ObjectSegment {
    pub path: String,
    pub etag: Option<String>,
    pub size_bytes: Option<i64>,
    pub range: Option<Ranges>,
}

/// Reads a manifest as PUT; `req_path` is the quoted path of the request (`/v1/account/container/object`).
pub fn parse_put(body: &[u8], req_path: &str) -> Result<Vec<PutSegment>, InvalidManifest> {
    let Ok(parsed) = serde_json::from_slice::<Value>(body) else {
        return Err(InvalidManifest::Body("Manifest must be valid JSON.\n"));
    };
    let Value::Array(entries) = parsed else {
        return Err(InvalidManifest::Body("Manifest must be a list.\n"));
    };
    let account_path = req_path.match_indices('/').nth(2).map_or(req_path, |(end, _)| &req_path[..end]);
    let last = entries.len().saturating_sub(1);
    let only_data = !entries.is_empty() && entries.iter().all(|entry| entry.get("data").is_some());
    let mut segments = Vec::with_capacity(entries.len());
    let mut errors = String::new();
    for (index, entry) in entries.iter().enumerate() {
        match parse_entry(entry, index == last, req_path, account_path) {
            Ok(segment) => segments.push(segment),
            Err(error) => errors.push_str(&format!("Index {index}: {error}\n")),
        }
    }
    if only_data {
        errors.push_str("Inline data segments require at least one object-backed segment.\n");
    }
    match errors.is_empty() {
        true => Ok(segments),
        false => Err(InvalidManifest::Entries(errors)),
    }
}

fn parse_entry(entry: &Value, last: bool, req_path: &str, account_path: &str) -> Result<PutSegment, String> {
    let Value::Object(entry) = entry else {
        return Err("not a JSON object".to_owned());
    };
    let allowed: &[&str] = match () {
        () if entry.contains_key("data") => &["data"],
        () if entry.contains_key("path") => &["path", "range", "etag", "size_bytes"],
        () => return Err("expected keys to include one of 'data' or 'path'".to_owned()),
    };
    let mut extraneous: Vec<&str> =
        entry.keys().map(String::as_str).filter(|key| !allowed.contains(key)).collect();
    if !extraneous.is_empty() {
        extraneous.sort_unstable();
        let quoted: Vec<String> = extraneous.into_iter().map(pyjson::quoted).collect();
        return Err(format!("extraneous keys {}", quoted.join(", ")));
    }
    match entry.get("data") {
        Some(data) => parse_data(data).map(PutSegment::Data),
        None => parse_object(entry, last, req_path, account_path).map(PutSegment::Object),
    }
}

fn parse_data(data: &Value) -> Result<Vec<u8>, String> {
    let decoded = data.as_str().and_then(decode_base64).ok_or("data must be valid base64")?;
    match decoded.is_empty() {
        true => Err(TOO_SMALL.to_owned()),
        false => Ok(decoded),
    }
}

const TOO_SMALL: &str = "too small; each segment must be at least 1 byte.";

/// Base64 in one line with any number of `=` at its end but too few.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let bare = text.trim_matches('=');
    let padding = (4 - bare.len() % 4) % 4;
    if text.len() - text.trim_end_matches('=').len() < padding {
        return None;
    }
    let lenient = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true),
    );
    lenient.decode(bare).ok()
}

fn parse_object(
    entry: &Map<String, Value>,
    last: bool,
    req_path: &str,
    account_path: &str,
) -> Result<ObjectSegment, String> {
    let path = entry["path"].as_str().ok_or("\"path\" must be a string")?;
    let etag = match entry.get("etag") {
        None | Some(Value::Null) => None,
        Some(Value::String(etag)) => Some(etag.clone()),
        Some(_) => return Err("\"etag\" must be a string or null (if provided)".to_owned()),
    };
    if !path.trim_matches('/').contains('/') {
        return Err(
            "path does not refer to an object. Path must be of the form /container/object.".to_owned()
        );
    }
    let size_bytes = match entry.get("size_bytes") {
        None | Some(Value::Null) => None,
        Some(value) => Some(python_int(value).ok_or("invalid size_bytes")?),
    };
    if size_bytes.is_some_and(|size| size < 1) && !last {
        return Err(TOO_SMALL.to_owned());
    }
    let quoted = quote::quote_path(path.trim_start_matches('/'));
    if req_path.strip_prefix(account_path).and_then(|rest| rest.strip_prefix('/')) == Some(quoted.as_str()) {
        return Err("manifest must not include itself as a segment".to_owned());
    }
    let range = parse_range(entry.get("range"), size_bytes)?;
    Ok(ObjectSegment { path: path.to_owned(), etag, size_bytes, range })
}

fn parse_range(range: Option<&Value>, size_bytes: Option<i64>) -> Result<Option<Ranges>, String> {
    let text = match range {
        None | Some(Value::Null | Value::Bool(false)) => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) => text,
        Some(_) => return Err("invalid range".to_owned()),
    };
    let ranges = range::parse(format!("bytes={text}").as_bytes()).ok_or("invalid range")?;
    if ranges.specs().len() > 1 {
        return Err("multiple ranges (only one allowed)".to_owned());
    }
    // A client which lied about the size is found out when the segment is looked at.
    if let Some(size) = size_bytes
        && ranges.resolve(u64::try_from(size).unwrap_or(0)).len() != 1
    {
        return Err("unsatisfiable range".to_owned());
    }
    Ok(Some(ranges))
}

/// Python's `int()` of a JSON value.
fn python_int(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(value) => Some(i64::from(*value)),
        Value::Number(number) => {
            number.as_i64().or_else(|| number.as_f64().map(|float| float.trunc() as i64))
        }
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// What a HEAD of a segment told.
#[derive(Debug, Clone, Default)]
pub struct SegmentHead {
    pub content_length: u64,
    /// Without quotes.
    pub etag: String,
    pub content_type: String,
    /// Seconds since the epoch, formatted as listings do.
    pub last_modified: String,
    pub is_slo: bool,
}

/// A segment as it will be stored.
#[derive(Debug)]
pub struct CheckedSegment {
    pub stored: Value,
    /// How many bytes it contributes.
    pub length: u64,
}

/// Compares a segment with what the client expects of it: what to store, and all that is wrong with it.
pub fn check_segment(
    segment: &ObjectSegment,
    head: &SegmentHead,
    last: bool,
) -> (CheckedSegment, Vec<&'static str>) {
    let mut problems = Vec::new();
    let mut length = head.content_length;
    let mut range = None;
    if let Some(wanted) = &segment.range {
        match wanted.resolve(head.content_length).first() {
            None => problems.push("Unsatisfiable Range"),
            Some(&(0, end)) if end == head.content_length => (),
            Some(&(start, end)) => {
                range = Some(format!("{start}-{}", end - 1));
                length = end - start;
            }
        }
    }
    if length < 1 && !last {
        problems.push("Too small; each segment must be at least 1 byte.");
    }
    if segment.size_bytes.is_some_and(|size| u64::try_from(size) != Ok(head.content_length)) {
        problems.push("Size Mismatch");
    }
    if segment.etag.as_ref().is_some_and(|etag| *etag != head.etag) {
        problems.push("Etag Mismatch");
    }
    let mut stored = json!({
        "name": format!("/{}", segment.path.trim_start_matches('/')),
        "bytes": head.content_length,
        "hash": head.etag,
        "content_type": head.content_type,
        "last_modified": head.last_modified,
    });
    if let Some(range) = range {
        stored["range"] = Value::String(range);
    }
    if head.is_slo {
        stored["sub_slo"] = Value::Bool(true);
    }
    (CheckedSegment { stored, length }, problems)
}

/// A data segment as it is stored.
pub fn stored_data(data: &[u8]) -> Value {
    json!({ "data": BASE64.encode(data) })
}

/// The ETag of the whole: the MD5 of its segments' ETags, with their ranges.
pub fn slo_etag(stored: &[Value]) -> String {
    let mut etag = Md5::new();
    for segment in stored {
        match segment.get("data").and_then(Value::as_str) {
            Some(data) => etag.update(hex(&md5(&decode_base64(data).unwrap_or_default())).as_bytes()),
            None => {
                let hash = segment["hash"].as_str().unwrap_or("");
                let range = segment.get("range").and_then(Value::as_str);
                update_slo_etag(&mut etag, hash, range);
            }
        }
    }
    etag.hexdigest()
}

fn update_slo_etag(etag: &mut Md5, hash: &str, range: Option<&str>) {
    etag.update(hash.as_bytes());
    if let Some(range) = range.filter(|range| !range.is_empty()) {
        etag.update(b":");
        etag.update(range.as_bytes());
        etag.update(b";");
    }
}

/// A segment of a stored manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Data(bytes::Bytes),
    Object(StoredObject),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// `/container/object`.
    pub name: String,
    /// Of the whole object, not only of its range; for a sub-SLO what its segments add up to.
    pub bytes: u64,
    pub hash: String,
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    pub sub_slo: bool,
}

impl Segment {
    /// How many bytes it contributes.
    pub fn length(&self) -> u64 {
        match self {
            Segment::Data(data) => data.len() as u64,
            Segment::Object(StoredObject { range: Some((first, last)), .. }) => last - first + 1,
            Segment::Object(object) => object.bytes,
        }
    }
}

/// The stored manifest cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Reads a stored manifest.
pub fn parse_stored(body: &[u8]) -> Result<Vec<Segment>, Unreadable> {
    let entries: Vec<Map<String, Value>> = serde_json::from_slice(body).map_err(|_| Unreadable)?;
    entries.iter().map(|entry| parse_stored_entry(entry).ok_or(Unreadable)).collect()
}

fn parse_stored_entry(entry: &Map<String, Value>) -> Option<Segment> {
    if let Some(data) = entry.get("data") {
        return Some(Segment::Data(decode_base64(data.as_str()?)?.into()));
    }
    let sub_slo = match entry.get("sub_slo") {
        Some(Value::Bool(sub_slo)) => *sub_slo,
        Some(Value::String(sub_slo)) => is_true_value(sub_slo),
        _ => false,
    };
    let mut bytes = entry.get("bytes").and_then(python_int);
    if sub_slo {
        // Old manifests have the size of the sub-manifest there; the true one is in the content type.
        let content_type = entry.get("content_type").and_then(Value::as_str).unwrap_or("");
        bytes = swift_bytes(content_type).or(bytes);
    }
    let range = match entry.get("range") {
        None | Some(Value::Null) => None,
        Some(range) => {
            let (first, last) = range.as_str()?.split_once('-')?;
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some(())?;
            Some((first, last))
        }
    };
    Some(Segment::Object(StoredObject {
        name: entry.get("name")?.as_str()?.to_owned(),
        bytes: u64::try_from(bytes?).ok()?,
        hash: entry.get("hash").and_then(Value::as_str).unwrap_or("").to_owned(),
        range,
        sub_slo,
    }))
}

/// The `swift_bytes` parameter of a content type.
fn swift_bytes(content_type: &str) -> Option<i64> {
    let mut parameters = content_type.split(';').skip(1);
    parameters.find_map(|parameter| parameter.trim().strip_prefix("swift_bytes="))?.trim().parse().ok()
}

/// Size and ETag of the whole, computed as for manifests stored before they were kept in sysmeta.
pub fn size_and_etag(segments: &[Segment]) -> (u64, String) {
    let mut etag = Md5::new();
    for segment in segments {
        match segment {
            Segment::Data(data) => etag.update(hex(&md5(data)).as_bytes()),
            Segment::Object(object) => {
                let range = object.range.map(|(first, last)| format!("{first}-{last}"));
                update_slo_etag(&mut etag, &object.hash, range.as_deref());
            }
        }
    }
    (segments.iter().map(Segment::length).sum(), etag.hexdigest())
}

/// The stored manifest in the form in which it can be PUT again: `multipart-manifest=get&format=raw`.
pub fn to_raw(body: &[u8]) -> Result<String, Unreadable> {
    let mut entries: Vec<Map<String, Value>> = serde_json::from_slice(body).map_err(|_| Unreadable)?;
    for entry in entries.iter_mut().filter(|entry| !entry.contains_key("data")) {
        for dropped in ["content_type", "last_modified", "sub_slo"] {
            entry.shift_remove(dropped);
        }
        for (from, to) in [("name", "path"), ("bytes", "size_bytes"), ("hash", "etag")] {
            let value = entry.shift_remove(from).unwrap_or(Value::Null);
            entry.insert(to.to_owned(), value);
        }
    }
    Ok(pyjson::dumps_sorted(&Value::Array(entries.into_iter().map(Value::Object).collect())))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Golden = (String, Option<Vec<Map<String, Value>>>, Option<String>, Option<String>);

    /// `golden/manifests.json`: what Swift makes of the manifests in it (see golden/README.md).
    #[test]
    fn manifests_are_checked_as_swift_checks_them() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../golden/manifests.json")).unwrap();
        for (text, parsed, error, content_type) in golden {
            let ours = parse_put(text.as_bytes(), "/v1/AUTH_test/c/m%C3%A9");
            match (ours, parsed) {
                (Ok(ours), Some(parsed)) => {
                    assert_eq!(ours.len(), parsed.len(), "{text}");
                    for (ours, parsed) in ours.iter().zip(&parsed) {
                        assert_same(ours, parsed, &text);
                    }
                }
                (Err(InvalidManifest::Body(ours)), None) => {
                    assert_eq!(Some(ours), error.as_deref(), "{text}");
                    assert_eq!(content_type.as_deref(), Some("text/html; charset=UTF-8"));
                }
                (Err(InvalidManifest::Entries(ours)), None) => {
                    assert_eq!(Some(ours), error, "{text}");
                    assert_eq!(content_type.as_deref(), Some("text/plain"));
                }
                (ours, parsed) => panic!("{text}: {ours:?} is not {parsed:?}"),
            }
        }
    }

    fn assert_same(ours: &PutSegment, parsed: &Map<String, Value>, text: &str) {
        match ours {
            PutSegment::Data(data) => assert_eq!(stored_data(data)["data"], parsed["data"], "{text}"),
            PutSegment::Object(object) => {
                assert_eq!(Some(object.path.as_str()), parsed["path"].as_str(), "{text}");
                assert_eq!(object.size_bytes, parsed.get("size_bytes").and_then(Value::as_i64), "{text}");
                assert_eq!(object.etag.as_deref(), parsed.get("etag").and_then(Value::as_str), "{text}");
                let range = parsed.get("range").and_then(Value::as_str).filter(|range| !range.is_empty());
                assert_eq!(object.range.is_some(), range.is_some(), "{text}");
            }
        }
    }

    #[test]
    fn entries_that_are_no_segments_are_refused() {
        let error = parse_put(b"[7, {\"x\": 1}]", "/v1/a/c/o").unwrap_err();
        let lines = "Index 0: not a JSON object\nIndex 1: expected keys to include one of 'data' or 'path'\n";
        assert_eq!(error, InvalidManifest::Entries(lines.to_owned()));
    }

    fn object_segment(range: &str) -> ObjectSegment {
        ObjectSegment {
            path: "c/o".to_owned(),
            etag: None,
            size_bytes: None,
            range: range::parse(range.as_bytes()),
        }
    }

    fn head(content_length: u64) -> SegmentHead {
        SegmentHead {
            content_length,
            etag: "e".to_owned(),
            content_type: "text/plain".to_owned(),
            last_modified: "2014-06-10T22:47:32.000000".to_owned(),
            is_slo: false,
        }
    }

    #[test]
    fn stored_segments_have_swifts_members_in_swifts_order() {
        let (checked, problems) = check_segment(&object_segment("bytes=-3"), &head(10), true);
        assert_eq!(problems, Vec::<&str>::new());
        assert_eq!(checked.length, 3);
        assert_eq!(
            pyjson::dumps(&checked.stored),
            "{\"name\": \"/c/o\", \"bytes\": 10, \"hash\": \"e\", \"content_type\": \"text/plain\", \
             \"last_modified\": \"2014-06-10T22:47:32.000000\", \"range\": \"7-9\"}"
        );
    }

    #[test]
    fn range_of_the_whole_object_is_dropped() {
        let (checked, problems) = check_segment(&object_segment("bytes=0-99"), &head(10), false);
        assert_eq!((checked.length, problems.len()), (10, 0));
        assert_eq!(checked.stored.get("range"), None);
    }

    #[test]
    fn every_mismatch_of_a_segment_is_told() {
        let mut segment = object_segment("bytes=5-");
        segment.etag = Some("other".to_owned());
        segment.size_bytes = Some(3);
        let (_, problems) = check_segment(&segment, &head(0), false);
        assert_eq!(
            problems,
            [
                "Unsatisfiable Range",
                "Too small; each segment must be at least 1 byte.",
                "Size Mismatch",
                "Etag Mismatch"
            ]
        );
    }

    #[test]
    fn stored_manifest_is_read_back_and_turned_raw() {
        let (ranged, _) = check_segment(&object_segment("bytes=1-2"), &head(10), true);
        let stored = vec![ranged.stored, stored_data(b"hi")];
        let body = pyjson::dumps(&Value::Array(stored.clone()));
        let segments = parse_stored(body.as_bytes()).unwrap();
        assert_eq!(segments.iter().map(Segment::length).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(size_and_etag(&segments), (4, slo_etag(&stored)));
        assert_eq!(
            to_raw(body.as_bytes()).unwrap(),
            "[{\"etag\": \"e\", \"path\": \"/c/o\", \"range\": \"1-2\", \"size_bytes\": 10}, {\"data\": \"aGk=\"}]"
        );
    }

    #[test]
    fn old_sub_manifests_take_their_size_from_the_content_type() {
        let body = br#"[{"name": "/c/o", "bytes": 7, "hash": "e", "sub_slo": true,
            "content_type": "a/b;swift_bytes=100", "last_modified": "x"}]"#;
        assert_eq!(parse_stored(body).unwrap()[0].length(), 100);
    }

    #[test]
    fn broken_stored_manifests_are_unreadable() {
        for body in [&b"x"[..], b"{}", b"[7]", b"[{\"name\": \"/c/o\"}]", b"[{\"data\": \"?\"}]"] {
            assert_eq!(parse_stored(body), Err(Unreadable), "{body:?}");
        }
    }
}
