//! Drives DiskFile for tests beside Python Swift: one JSON command per line in, one JSON answer per line out.
//!
//! ```text
//! diskfile DEVICES PART_POWER [reclaim_age]      hash path suffix "endcap", policy 0, no mount_check
//! {"cmd": "put", "path": "/a/c/o", "ts": "1.0", "body": HEX, "meta": [[HEX, HEX], ...], "small": true}
//! {"cmd": "post", "path": "/a/c/o", "ts": "2.0", "meta": [...]}
//! {"cmd": "delete", "path": "/a/c/o", "ts": "3.0"}
//! {"cmd": "read", "path": "/a/c/o"}              -> {"meta", "datafile", "metafile", "body", "quarantined"}
//! {"cmd": "hashes", "part": 3, "recalculate": ["abc"], "skip_rehash": false, "do_listdir": false}
//! {"cmd": "yield_hashes", "part": 3}             -> {"HASH": {"ts_data", "ts_meta", "ts_ctype"}}
//! {"cmd": "from_hash", "part": 3, "hash": HEX}   -> {"name", "filenames"}
//! {"cmd": "async_update", "path": "/a/c/o", "ts": "1.0"}
//! {"cmd": "choose", "files": [...], "fragments": 6, "frag_index": 1, "frag_prefs": [["1.0", [0]]]}
//! ```
//!
//! An answer is `{"ok": ...}` or `{"error": NAME, "ts": ...}` with the names of Swift's exceptions.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Duration;

use common::config::SwiftConf;
use common::digest::{hex, md5, unhex};
use common::pickle::Value as Pickle;
use common::{Clock, ObjHash, Suffix, Timestamp};
use obj::diskfile::{
    DiskFile, DiskFileConf, DiskFileError, DiskFileManager, DiskFileRouter, FileInfo, FragPref, Metadata,
    ReaderOptions, Scheme, Want, get_ondisk_files,
};
use serde_json::{Map, Value, json};
use service::logs::Logger;
use service::statsd::Statsd;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, devices, part_power, rest @ ..] = args.as_slice() else {
        panic!("DEVICES PART_POWER [reclaim_age]")
    };
    let mut conf = DiskFileConf { devices: devices.into(), mount_check: false, ..DiskFileConf::default() };
    if let Some(age) = rest.first() {
        conf.reclaim_age = Duration::from_secs(age.parse().expect("reclaim_age in seconds"));
    }
    let swift_conf =
        SwiftConf::parse(b"[swift-hash]\nswift_hash_path_suffix = endcap\n", "swift.conf", "/".as_ref());
    let swift_conf = swift_conf.expect("a swift.conf");
    let logger = Logger::to_stderr("diskfile");
    let router = DiskFileRouter::new(&conf, &swift_conf, &Clock::system(), &logger, &Statsd::disabled());
    let manager = router.iter().next().expect("policy 0").clone();
    let driver = Driver { manager, part_power: part_power.parse().expect("a part power") };
    for line in std::io::stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let answer = match driver.run(&command) {
            Ok(answer) => json!({ "ok": answer }),
            Err(err) => error(&err),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).expect("somebody reads");
    }
}

struct Driver {
    manager: Arc<DiskFileManager>,
    part_power: u32,
}

impl Driver {
    fn run(&self, command: &Value) -> Result<Value, DiskFileError> {
        let part = command["part"].as_u64().unwrap_or(0) as u32;
        match text(command, "cmd") {
            "put" => self.put(command),
            "post" => self.diskfile(command)?.write_metadata(metadata(command)).map(|()| json!(null)),
            "delete" => self.diskfile(command)?.delete(timestamp(command)).map(|()| json!(null)),
            "read" => self.read(&self.diskfile(command)?),
            "hashes" => self.hashes(command, part),
            "yield_hashes" => self.yield_hashes(part),
            "from_hash" => {
                let hash = ObjHash::parse(text(command, "hash")).expect("a hash");
                let (df, filenames) = self.manager.diskfile_and_filenames_from_hash("sda", part, hash)?;
                Ok(json!({ "name": df.name(), "filenames": filenames }))
            }
            "async_update" => {
                let (account, container, obj) = split(text(command, "path"));
                let data = Pickle::Dict(vec![(Pickle::str("op"), Pickle::str("PUT"))]);
                let ts = timestamp(command);
                self.manager.pickle_async_update("sda", account, container, obj, &data, ts)?;
                Ok(json!(null))
            }
            "choose" => Ok(choose(command)),
            other => panic!("no such command: {other}"),
        }
    }

    fn diskfile(&self, command: &Value) -> Result<DiskFile, DiskFileError> {
        let (account, container, obj) = split(text(command, "path"));
        let hash = self.manager.hash_conf().hash_path(account, Some(container), Some(obj));
        self.manager.diskfile("sda", hash.partition(self.part_power), account, container, obj)
    }

    fn put(&self, command: &Value) -> Result<Value, DiskFileError> {
        let body = unhex(text(command, "body").as_bytes()).expect("hex");
        let diskfile = self.diskfile(command)?;
        let mut metadata = metadata(command);
        metadata.insert("Content-Length", body.len().to_string());
        metadata.insert("ETag", hex(&md5(&body)));
        if command["small"].as_bool().unwrap_or(false) {
            diskfile.put_small(&body, metadata)?;
        } else {
            let mut writer = diskfile.writer(None)?;
            for chunk in body.chunks(1000) {
                writer.write(bytes::Bytes::copy_from_slice(chunk))?;
            }
            assert_eq!(writer.etag(), hex(&md5(&body)));
            writer.put(metadata)?.commit()?;
        }
        Ok(json!(null))
    }

    fn read(&self, diskfile: &DiskFile) -> Result<Value, DiskFileError> {
        let opened = diskfile.open(None)?;
        let mut answer = json!({
            "meta": pairs(opened.metadata()),
            "datafile": pairs(opened.datafile_metadata()),
            "metafile": opened.metafile_metadata().map(pairs),
            "ts": opened.timestamp().internal(),
            "data_ts": opened.data_timestamp().internal(),
            "ctype_ts": opened.content_type_timestamp().internal(),
        });
        let (data, quarantined) = if opened.content_length() <= obj::diskfile::SMALL_OBJECT {
            let read = opened.read_small()?;
            (read.data, read.quarantined)
        } else {
            let mut reader = opened.reader(ReaderOptions::default());
            let mut data = Vec::new();
            while (data.len() as u64) < reader.content_length() {
                let chunk = reader.read_chunk(data.len() as u64, u64::MAX)?;
                if chunk.is_empty() {
                    break;
                }
                data.extend(chunk);
            }
            (data, reader.close())
        };
        answer["body"] = hex(&data).into();
        answer["quarantined"] = quarantined.into();
        Ok(answer)
    }

    fn hashes(&self, command: &Value, part: u32) -> Result<Value, DiskFileError> {
        let recalculate = command["recalculate"].as_array().cloned().unwrap_or_default();
        let suffixes: Vec<Suffix> = recalculate.iter().filter_map(|s| Suffix::parse(s.as_str()?)).collect();
        let hashes = if command["do_listdir"].as_bool().unwrap_or(false) {
            let device_path = self.manager.construct_dev_path("sda");
            Some(self.manager.rehash(&device_path, part, &suffixes, true)?.1)
        } else {
            let skip_rehash = command["skip_rehash"].as_bool().unwrap_or(false);
            self.manager.get_hashes("sda", part, &suffixes, skip_rehash)?
        };
        let Some(hashes) = hashes else { return Ok(json!(null)) };
        let item = |(suffix, hash): (Suffix, Option<&obj::diskfile::SuffixHash>)| {
            let hash = hash.map(|hash| match hash {
                obj::diskfile::SuffixHash::Whole(hash) => hash.as_str().to_owned(),
                other => format!("{other:?}"),
            });
            (suffix.to_string(), json!(hash))
        };
        Ok(Value::Object(hashes.iter().map(item).collect::<Map<_, _>>()))
    }

    fn yield_hashes(&self, part: u32) -> Result<Value, DiskFileError> {
        let mut answer = Map::new();
        for (hash, timestamps) in self.manager.yield_hashes("sda", part, None, Want::default())? {
            let mut item = Map::new();
            item.insert("ts_data".into(), timestamps.data.internal().into());
            for (key, value) in [("ts_meta", timestamps.meta), ("ts_ctype", timestamps.ctype)] {
                if let Some(value) = value {
                    item.insert(key.into(), value.internal().into());
                }
            }
            answer.insert(hash.to_string(), item.into());
        }
        Ok(answer.into())
    }
}

fn choose(command: &Value) -> Value {
    let files: Vec<&str> =
        command["files"].as_array().expect("files").iter().filter_map(Value::as_str).collect();
    let scheme = match command["fragments"].as_u64() {
        Some(fragments) => Scheme::Erasure { fragments: fragments as u32 },
        None => Scheme::Replication,
    };
    let prefs: Option<Vec<FragPref>> = command["frag_prefs"].as_array().map(|prefs| {
        let pref = |pref: &Value| FragPref {
            timestamp: Timestamp::parse(pref[0].as_str().expect("a timestamp")).expect("a timestamp"),
            exclude: pref[1]
                .as_array()
                .expect("indexes")
                .iter()
                .map(|i| i.as_u64().expect("an index") as u32)
                .collect(),
        };
        prefs.iter().map(pref).collect()
    });
    let want =
        Want { frag_index: command["frag_index"].as_u64().map(|i| i as u32), frag_prefs: prefs.as_deref() };
    let chosen = get_ondisk_files(files.iter().map(|name| name.as_bytes()), scheme, want);
    let name = |info: &FileInfo| files[info.index];
    let sorted = |infos: &[FileInfo]| {
        let mut names: Vec<&str> = infos.iter().map(name).collect();
        names.sort();
        names
    };
    json!({
        "data": chosen.data.as_ref().map(name),
        "meta": chosen.meta.as_ref().map(name),
        "ts": chosen.tombstone.as_ref().map(name),
        "ctype": chosen.ctype.as_ref().map(name),
        "obsolete": sorted(&chosen.obsolete),
        "possible_reclaim": sorted(&chosen.possible_reclaim),
        "unexpected": chosen.unexpected.iter().map(|&index| files[index]).collect::<Vec<_>>(),
    })
}

fn error(err: &DiskFileError) -> Value {
    match err {
        DiskFileError::NotExist => json!({ "error": "DiskFileNotExist" }),
        DiskFileError::Deleted { timestamp, .. } => {
            json!({ "error": "DiskFileDeleted", "ts": timestamp.internal() })
        }
        DiskFileError::Expired { timestamp, .. } => {
            json!({ "error": "DiskFileExpired", "ts": timestamp.internal() })
        }
        DiskFileError::Quarantined(reason) => json!({ "error": "DiskFileQuarantined", "reason": reason }),
        DiskFileError::Collision => json!({ "error": "DiskFileCollision" }),
        DiskFileError::NoSpace => json!({ "error": "DiskFileNoSpace" }),
        other => json!({ "error": other.to_string() }),
    }
}

fn text<'a>(command: &'a Value, key: &str) -> &'a str {
    command[key].as_str().unwrap_or_else(|| panic!("{key} is missing"))
}

fn timestamp(command: &Value) -> Timestamp {
    Timestamp::parse(text(command, "ts")).expect("a timestamp")
}

fn split(path: &str) -> (&str, &str, &str) {
    let mut parts = path.splitn(4, '/').skip(1);
    let mut next = || parts.next().expect("/account/container/object");
    (next(), next(), next())
}

fn metadata(command: &Value) -> Metadata {
    let bytes = |value: &Value| unhex(value.as_str().expect("hex").as_bytes()).expect("hex");
    let items = command["meta"].as_array().cloned().unwrap_or_default();
    let mut metadata: Metadata = items.iter().map(|item| (bytes(&item[0]), bytes(&item[1]))).collect();
    metadata.insert("X-Timestamp", timestamp(command).internal());
    metadata
}

fn pairs(metadata: &Metadata) -> Value {
    let mut pairs: Vec<[String; 2]> = metadata.iter().map(|(name, value)| [hex(name), hex(value)]).collect();
    pairs.sort();
    json!(pairs)
}
