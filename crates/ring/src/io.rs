//! Ring files: `NAME.ring.gz`, formats 1 and 2, as Swift 2.38.3 reads and writes them.
//!
//! Both are one gzip member. Its decompressed bytes start with `R1NG` and the format as a big-endian u16.
//!
//! Format 1:
//! ```text
//! "R1NG" 00 01
//! u32 BE   length of the JSON
//! JSON     {"byteorder", "devs", "part_shift", "replica_count", "version"?, "next_part_power"?}
//! rows     replica_count rows of u16 device ids in "byteorder", one per partition; the last row may be shorter
//! ```
//! Format 2 has named sections, each a u64 BE length and that many bytes, and an index at the end:
//! ```text
//! "R1NG" 00 02
//! swift/ring/metadata     JSON {"dev_id_bytes", "part_shift", "replica_count", "version", "next_part_power"?}
//! swift/ring/devices      JSON list
//! swift/ring/assignments  rows of u16 or u32 BE device ids
//! index                   u64 BE length, JSON {section: [compressed start, start, compressed end, end, "sha256", hex]}
//! u64 BE                  where the index starts, decompressed
//! u64 BE                  where the index starts in the file
//! ```
//! A reader of format 2 may seek in the compressed file, so every section starts at a byte boundary after a full flush, and
//! the two numbers at the end lie in stored blocks of a known size. We read the whole file, which also verifies the CRC of
//! the gzip member; the sections are found by their decompressed places, so a file which was compressed again is still read.
//!
//! Not done: reading the formats of before 2011 (pickles), and loading only the metadata.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{digest, fs};
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use serde_json::{Map, Value, json};
use sha2::Digest;

use crate::ring::{Device, Ring, RingData};

/// A decompressed ring is at most this large: 2^24 partitions with 16 replicas of 4 bytes, and room for devices.
const MAX_RAW_SIZE: u64 = 1 << 31;
/// Swift: a constant, so that equal rings are equal files (io.py).
const GZIP_MTIME: u32 = 1_300_507_380;
const MAGIC: &[u8; 4] = b"R1NG";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatVersion {
    V1,
    V2,
}

/// Why a ring file cannot be used; one line which names the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct RingError {
    pub path: PathBuf,
    pub reason: String,
    /// The file does not exist, which a caller may treat apart.
    pub missing: bool,
}

impl RingError {
    fn new(path: &Path, reason: impl Into<String>) -> Self {
        let reason = reason.into().replace(['\r', '\n'], " ");
        Self { path: path.to_path_buf(), reason, missing: false }
    }

    pub(crate) fn io(path: &Path, err: &std::io::Error) -> Self {
        let missing = err.kind() == std::io::ErrorKind::NotFound;
        Self { missing, ..Self::new(path, format!("cannot read ring: {err}")) }
    }
}

impl Ring {
    pub fn load(path: &Path) -> Result<Self, RingError> {
        let file = std::fs::read(path).map_err(|err| RingError::io(path, &err))?;
        Self::from_bytes(&file).map_err(|reason| RingError::new(path, format!("not a usable ring: {reason}")))
    }

    /// The ring in the bytes of a ring file. The error is a sentence without the file's name.
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        let mut ring = Ring::new(RingData::from_bytes(file)?)?;
        ring.md5 = digest::hex(&digest::md5(file));
        ring.size = file.len() as u64;
        Ok(ring)
    }
}

impl RingData {
    pub fn from_bytes(file: &[u8]) -> Result<Self, String> {
        let raw = decompress(file)?;
        let mut reader = Reader { rest: &raw };
        if reader.take(4, "magic")? != MAGIC {
            return Err("it does not start with R1NG".to_string());
        }
        match reader.u16("format")? {
            1 => read_v1(reader),
            2 => read_v2(&raw),
            other => Err(format!("format {other} is not known (1 and 2 are)")),
        }
    }

    pub fn to_bytes(&self, format: FormatVersion, name: &str) -> Result<Vec<u8>, String> {
        match format {
            FormatVersion::V1 => self.write_v1(name),
            FormatVersion::V2 => Ok(self.write_v2(name)),
        }
    }

    /// Replaces the file at `path` in one step: a crash leaves the old ring or the new one.
    pub fn save(&self, path: &Path, format: FormatVersion) -> Result<(), RingError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let bytes = self.to_bytes(format, &name).map_err(|reason| RingError::new(path, reason))?;
        write_file(path, &bytes).map_err(|err| RingError::new(path, format!("cannot write ring: {err}")))
    }

    fn write_v1(&self, name: &str) -> Result<Vec<u8>, String> {
        let wide = self.replica2part2dev_id.iter().flatten().any(|&id| id >= u32::from(u16::MAX));
        if wide || self.dev_id_bytes > 2 {
            return Err("format 1 has room for device ids of 2 bytes only".to_string());
        }
        let mut text = Map::new();
        text.insert("byteorder".into(), json!("little"));
        text.insert("devs".into(), self.devs_json());
        if let Some(next) = self.next_part_power {
            text.insert("next_part_power".into(), json!(next));
        }
        text.insert("part_shift".into(), json!(32 - self.part_power));
        text.insert("replica_count".into(), json!(self.replica2part2dev_id.len()));
        if let Some(version) = self.version {
            text.insert("version".into(), json!(version));
        }
        let text = python_json(&Value::Object(text));
        let mut body = Vec::with_capacity(text.len() + 4);
        body.extend_from_slice(&(text.len() as u32).to_be_bytes());
        body.extend_from_slice(text.as_bytes());
        for &id in self.replica2part2dev_id.iter().flatten() {
            body.extend_from_slice(&(id as u16).to_le_bytes());
        }
        let mut out = GzipWriter::new(name);
        out.stored(&[&MAGIC[..], &[0, 1]].concat());
        out.deflated(&body);
        Ok(out.finish())
    }

    fn write_v2(&self, name: &str) -> Vec<u8> {
        let dev_id_bytes = usize::from(self.dev_id_bytes.max(2));
        let parts = self.replica2part2dev_id.first().map_or(1, Vec::len);
        let last = self.replica2part2dev_id.last().map_or(0, Vec::len);
        let replicas = self.replica2part2dev_id.len().saturating_sub(1) as f64 + last as f64 / parts as f64;
        let mut metadata = Map::new();
        metadata.insert("dev_id_bytes".into(), json!(dev_id_bytes));
        if let Some(next) = self.next_part_power {
            metadata.insert("next_part_power".into(), json!(next));
        }
        metadata.insert("part_shift".into(), json!(32 - self.part_power));
        metadata.insert("replica_count".into(), json!(replicas));
        metadata.insert("version".into(), json!(self.version));
        let mut assignments = Vec::new();
        for &id in self.replica2part2dev_id.iter().flatten() {
            assignments.extend_from_slice(&id.to_be_bytes()[4 - dev_id_bytes..]);
        }
        let mut out = GzipWriter::new(name);
        out.stored(&[&MAGIC[..], &[0, 2]].concat());
        let mut index = Map::new();
        for (section, data) in [
            ("swift/ring/metadata", python_json(&Value::Object(metadata)).into_bytes()),
            ("swift/ring/devices", python_json(&self.devs_json()).into_bytes()),
            ("swift/ring/assignments", assignments),
        ] {
            let data = blob(&data);
            let (start, raw_start) = (out.file.len(), out.raw_len);
            out.deflated(&data);
            let sha256 = digest::hex(&sha2::Sha256::digest(&data));
            index.insert(
                section.into(),
                json!([start, raw_start, out.file.len(), out.raw_len, "sha256", sha256]),
            );
        }
        let (start, raw_start) = (out.file.len() as u64, out.raw_len);
        out.deflated(&blob(python_json(&Value::Object(index)).as_bytes()));
        out.stored(&raw_start.to_be_bytes());
        out.stored(&start.to_be_bytes());
        out.finish()
    }

    fn devs_json(&self) -> Value {
        Value::Array(
            self.devs.iter().map(|dev| dev.as_ref().map_or(Value::Null, |dev| dev.to_json())).collect(),
        )
    }
}

/// Readable for everyone: servers run as another user than who makes rings. A crash leaves the old file or the new one.
fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = fs::TmpFile::create(dir, dir, false)?;
    file.file_mut().write_all(bytes)?;
    file.file().set_permissions(Permissions::from_mode(0o644))?;
    fs::fsync(file.file())?;
    let made = file.link(path)?;
    fs::fsync_dirs(dir, made)
}

fn blob(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u64).to_be_bytes()[..], data].concat()
}

fn decompress(file: &[u8]) -> Result<Vec<u8>, String> {
    let mut raw = Vec::new();
    flate2::read::MultiGzDecoder::new(file).take(MAX_RAW_SIZE + 1).read_to_end(&mut raw).map_err(|err| {
        match err.kind() {
            std::io::ErrorKind::UnexpectedEof => "the gzip data is truncated".to_string(),
            _ => format!("bad gzip data: {err}"),
        }
    })?;
    if raw.len() as u64 > MAX_RAW_SIZE {
        return Err(format!("larger than {MAX_RAW_SIZE} bytes decompressed"));
    }
    Ok(raw)
}

/// Takes what is asked for or says what was cut off.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], String> {
        if n > self.rest.len() as u64 {
            return Err(format!("truncated: {what} needs {n} bytes, {} are left", self.rest.len()));
        }
        let (taken, rest) = self.rest.split_at(n as usize);
        self.rest = rest;
        Ok(taken)
    }

    fn u16(&mut self, what: &str) -> Result<u16, String> {
        let bytes = self.take(2, what)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        let high = self.u32(what)?;
        Ok(u64::from(high) << 32 | u64::from(self.u32(what)?))
    }
}

fn read_v1(mut reader: Reader<'_>) -> Result<RingData, String> {
    let len = reader.u32("length of the header")?;
    let header = object(reader.take(u64::from(len), "header")?, "header")?;
    let part_power = part_power(&header)?;
    let replicas = integer(&header, "replica_count")?.ok_or("replica_count is missing")?;
    let big_endian = match header.get("byteorder").and_then(Value::as_str) {
        Some("big") => true,
        // Written by a machine of the reader's own order: rings older than the key come from little-endian machines.
        Some("little") | None => false,
        Some(other) => return Err(format!("byteorder {other:?} is neither little nor big")),
    };
    let row_len = 2u64 << part_power;
    let mut rows = Vec::new();
    for replica in 0..replicas {
        let len = row_len.min(reader.rest.len() as u64);
        if len == 0 || (len < row_len && replica + 1 < replicas) {
            return Err(format!("truncated: the table ends in replica {replica} of {replicas}"));
        }
        let row = reader.take(len, "row")?;
        rows.push(ids(row, 2, big_endian)?);
    }
    Ok(RingData {
        devs: devices(header.get("devs").ok_or("devs is missing")?)?,
        replica2part2dev_id: rows,
        part_power,
        next_part_power: next_part_power(&header)?,
        version: integer(&header, "version")?,
        dev_id_bytes: 2,
    })
}

fn read_v2(raw: &[u8]) -> Result<RingData, String> {
    let tail = raw.len().checked_sub(16).ok_or("truncated: no index")?;
    let index_start = Reader { rest: &raw[tail..] }.u64("place of the index")?;
    let index = raw
        .get(usize::try_from(index_start).unwrap_or(usize::MAX)..tail)
        .ok_or_else(|| format!("the index is said to start at {index_start} of {} bytes", raw.len()))?;
    let mut reader = Reader { rest: index };
    let len = reader.u64("length of the index")?;
    let index = object(reader.take(len, "index")?, "index")?;
    let metadata = object(section(raw, &index, "swift/ring/metadata")?, "swift/ring/metadata")?;
    let devs = json(section(raw, &index, "swift/ring/devices")?, "swift/ring/devices")?;
    let table = section(raw, &index, "swift/ring/assignments")?;
    let part_power = part_power(&metadata)?;
    let width = match integer(&metadata, "dev_id_bytes")? {
        Some(2) => 2,
        Some(4) => 4,
        other => return Err(format!("dev_id_bytes is {other:?}, expected 2 or 4")),
    };
    let row_len = width << part_power;
    Ok(RingData {
        devs: devices(&devs)?,
        replica2part2dev_id: table
            .chunks(row_len)
            .map(|row| ids(row, width, true))
            .collect::<Result<_, _>>()?,
        part_power,
        next_part_power: next_part_power(&metadata)?,
        version: integer(&metadata, "version")?,
        dev_id_bytes: width as u8,
    })
}

/// The data of a section, its checksum verified.
fn section<'a>(raw: &'a [u8], index: &Map<String, Value>, name: &str) -> Result<&'a [u8], String> {
    let entry = index.get(name).ok_or_else(|| format!("section {name} is missing"))?;
    let place = |at: usize| entry.get(at).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let text = |at: usize| entry.get(at).and_then(Value::as_str);
    let (Some(start), Some(end), Some(method), Some(expected)) = (place(1), place(3), text(4), text(5))
    else {
        return Err(format!("the index has no usable entry for section {name}"));
    };
    let bytes = raw.get(start..end).ok_or_else(|| format!("section {name} lies outside of the file"))?;
    let found = match method {
        "md5" => digest::hex(&digest::md5(bytes)),
        "sha1" => digest::hex(&sha1::Sha1::digest(bytes)),
        "sha256" => digest::hex(&sha2::Sha256::digest(bytes)),
        "sha512" => digest::hex(&sha2::Sha512::digest(bytes)),
        other => return Err(format!("section {name} has a checksum of the unknown kind {other:?}")),
    };
    if found != expected {
        return Err(format!("the {method} of section {name} is {found}, expected {expected}"));
    }
    let mut reader = Reader { rest: bytes };
    if reader.u64("length of a section")? != reader.rest.len() as u64 {
        return Err(format!("section {name} differs in length from its index entry"));
    }
    Ok(reader.rest)
}

fn ids(row: &[u8], width: usize, big_endian: bool) -> Result<Vec<u32>, String> {
    if !row.len().is_multiple_of(width) {
        return Err("truncated: the table ends inside of a device id".to_string());
    }
    let fold = |id: u32, &byte: &u8| id << 8 | u32::from(byte);
    let id = |chunk: &[u8]| match big_endian {
        true => chunk.iter().fold(0, fold),
        false => chunk.iter().rev().fold(0, fold),
    };
    Ok(row.chunks_exact(width).map(id).collect())
}

fn json(text: &[u8], what: &str) -> Result<Value, String> {
    serde_json::from_slice(text).map_err(|err| format!("{what} is not JSON: {err}"))
}

fn object(text: &[u8], what: &str) -> Result<Map<String, Value>, String> {
    match json(text, what)? {
        Value::Object(map) => Ok(map),
        _ => Err(format!("{what} is not a JSON object")),
    }
}

fn integer(map: &Map<String, Value>, key: &str) -> Result<Option<u64>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            // Python's JSON has floats wherever an operator's script put one.
            let whole = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n));
            let n = value.as_u64().or(whole.map(|n| n as u64));
            n.map(Some).ok_or_else(|| format!("{key} is {value}, expected a whole number"))
        }
    }
}

fn part_power(map: &Map<String, Value>) -> Result<u32, String> {
    match integer(map, "part_shift")? {
        Some(shift @ 0..=32) => Ok(32 - shift as u32),
        Some(other) => Err(format!("part_shift is {other}, expected 0 to 32")),
        None => Err("part_shift is missing".to_string()),
    }
}

fn next_part_power(map: &Map<String, Value>) -> Result<Option<u32>, String> {
    match integer(map, "next_part_power")? {
        Some(power @ 0..=32) => Ok(Some(power as u32)),
        Some(other) => Err(format!("next_part_power is {other}, expected 0 to 32")),
        None => Ok(None),
    }
}

fn devices(value: &Value) -> Result<Vec<Option<Arc<Device>>>, String> {
    let list = value.as_array().ok_or("devs is not a list")?;
    list.iter()
        .enumerate()
        .map(|(slot, value)| match value {
            Value::Null => Ok(None),
            Value::Object(map) => Device::from_json(map)
                .map(|dev| Some(Arc::new(dev)))
                .map_err(|reason| format!("device {slot}: {reason}")),
            _ => Err(format!("device {slot} is not a JSON object")),
        })
        .collect()
}

impl Device {
    fn from_json(map: &Map<String, Value>) -> Result<Self, String> {
        let mut extra = map.clone();
        let mut take = |key: &str| extra.remove(key).filter(|value| !value.is_null());
        let text = |key: &str, value: Option<Value>| match value {
            Some(Value::String(text)) => Ok(Some(text)),
            None => Ok(None),
            Some(other) => Err(format!("{key} is {other}, expected a string")),
        };
        let number = |key: &str, value: Option<Value>, max: u64| {
            let Some(value) = value else { return Ok(None) };
            let map = Map::from_iter([(key.to_string(), value)]);
            match integer(&map, key)? {
                Some(n) if n > max => Err(format!("{key} is {n}, expected at most {max}")),
                n => Ok(n),
            }
        };
        let ip = text("ip", take("ip"))?.ok_or("ip is missing")?;
        let port = number("port", take("port"), 65535)?.ok_or("port is missing")? as u16;
        let id = number("id", take("id"), u64::from(u32::MAX))?.ok_or("id is missing")? as u32;
        let region = number("region", take("region"), u64::from(u32::MAX))?;
        let zone = number("zone", take("zone"), u64::from(u32::MAX))?.ok_or("zone is missing")?;
        let weight = match take("weight") {
            None => 0.0,
            Some(value) => value.as_f64().ok_or_else(|| format!("weight is {value}, expected a number"))?,
        };
        Ok(Self {
            id,
            // Rings of before regions: everything is in region 1.
            region: region.unwrap_or(1) as u32,
            zone: zone as u32,
            device: text("device", take("device"))?.ok_or("device is missing")?,
            weight,
            replication_ip: text("replication_ip", take("replication_ip"))?.unwrap_or_else(|| ip.clone()),
            replication_port: number("replication_port", take("replication_port"), 65535)?
                .map_or(port, |port| port as u16),
            meta: text("meta", take("meta"))?.unwrap_or_default(),
            ip,
            port,
            extra,
        })
    }

    fn to_json(&self) -> Value {
        let mut map = self.extra.clone();
        for (key, value) in [
            ("id", json!(self.id)),
            ("region", json!(self.region)),
            ("zone", json!(self.zone)),
            ("ip", json!(self.ip)),
            ("port", json!(self.port)),
            ("device", json!(self.device)),
            ("weight", json!(self.weight)),
            ("replication_ip", json!(self.replication_ip)),
            ("replication_port", json!(self.replication_port)),
            ("meta", json!(self.meta)),
        ] {
            map.insert(key.to_string(), value);
        }
        Value::Object(map)
    }
}

/// JSON as Python's `json.dumps(value, sort_keys=True)` spaces and escapes it.
fn python_json(value: &Value) -> String {
    fn write(out: &mut String, value: &Value) {
        match value {
            Value::Object(map) => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort();
                out.push('{');
                for (n, key) in keys.into_iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { ", " });
                    quote(out, key);
                    out.push_str(": ");
                    write(out, &map[key]);
                }
                out.push('}');
            }
            Value::Array(list) => {
                out.push('[');
                for (n, value) in list.iter().enumerate() {
                    out.push_str(if n == 0 { "" } else { ", " });
                    write(out, value);
                }
                out.push(']');
            }
            Value::String(text) => quote(out, text),
            plain => out.push_str(&plain.to_string()),
        }
    }
    fn quote(out: &mut String, text: &str) {
        for ch in Value::from(text).to_string().chars() {
            if ch.is_ascii() && ch != '\x7f' {
                out.push(ch);
            } else {
                for unit in ch.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    let mut out = String::new();
    write(&mut out, value);
    out
}

/// Writes one gzip member from pieces which each start at a byte boundary and need nothing of what precedes them.
struct GzipWriter {
    file: Vec<u8>,
    crc: Crc,
    raw_len: u64,
}

impl GzipWriter {
    fn new(name: &str) -> Self {
        // Flag 8: the name follows. Then the mtime, 2 for the best compression, 255 for an unknown system.
        let mut file = vec![0x1f, 0x8b, 8, 8];
        file.extend_from_slice(&GZIP_MTIME.to_le_bytes());
        file.extend_from_slice(&[2, 255]);
        let name: Vec<u8> = name.strip_suffix(".gz").unwrap_or(name).bytes().filter(|&b| b != 0).collect();
        file.extend_from_slice(&name);
        file.push(0);
        Self { file, crc: Crc::new(), raw_len: 0 }
    }

    /// One stored block and the empty one of a flush: 10 bytes more than the data. `data` is short.
    fn stored(&mut self, data: &[u8]) {
        debug_assert!(data.len() <= usize::from(u16::MAX));
        let len = data.len() as u16;
        self.file.push(0);
        self.file.extend_from_slice(&len.to_le_bytes());
        self.file.extend_from_slice(&(!len).to_le_bytes());
        self.file.extend_from_slice(data);
        self.file.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        self.count(data);
    }

    fn deflated(&mut self, data: &[u8]) {
        let mut deflate = Compress::new(Compression::best(), false);
        let mut fed = 0;
        loop {
            self.file.reserve(64 * 1024);
            let before = self.file.len();
            let room = self.file.capacity() - before;
            let status = deflate.compress_vec(&data[fed..], &mut self.file, FlushCompress::Full);
            fed = deflate.total_in() as usize;
            let full = self.file.len() - before == room;
            // A flush is complete when it leaves room in the output.
            if !matches!(status, Ok(Status::Ok)) || (fed == data.len() && !full) {
                break;
            }
        }
        self.count(data);
    }

    fn count(&mut self, data: &[u8]) {
        self.crc.update(data);
        self.raw_len += data.len() as u64;
    }

    fn finish(mut self) -> Vec<u8> {
        self.file.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
        self.file.extend_from_slice(&self.crc.sum().to_le_bytes());
        self.file.extend_from_slice(&(self.raw_len as u32).to_le_bytes());
        self.file
    }
}
