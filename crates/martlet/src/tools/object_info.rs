//! `swift-object-info`: the metadata of an object's file, whether its data is what they say, and where its replicas are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::config::parse_int;
use common::digest::Md5;
use common::headers::{
    ServerType, strip_object_transient_sysmeta_prefix, strip_sys_meta_prefix, strip_user_meta_prefix,
};
use common::policy::data_dir;
use common::quote::unquote;
use common::{HashConf, Policies, PolicyIndex, Timestamp, wsgi};
use obj::diskfile::{Metadata, MetadataError, read_metadata};
use ring::Ring;

use super::get_nodes::{DIR, POLICY_NAME};
use super::locations::{Item, Locations};
use super::{Cluster, Output, SWIFT_DIR};
use crate::cli::optparse::{HELP, Opt, Usage};

const NO_CHECK: Opt = Opt {
    short: Some('n'),
    long: "no-check-etag",
    value: None,
    help: "do not read the data to compare it with the ETag",
};
pub(super) const DROP_PREFIXES: Opt = Opt {
    short: None,
    long: "drop-prefixes",
    value: None,
    help: "show metadata without their common prefixes",
};
const BODY_CRYPTO: &[u8] = b"X-Object-Sysmeta-Crypto-Body-Meta";
const METADATA_CRYPTO: &[u8] = b"X-Object-Transient-Sysmeta-Crypto-Meta";

struct Asked {
    check_etag: bool,
    drop_prefixes: bool,
    swift_dir: String,
    policy_name: Option<String>,
    file: PathBuf,
}

pub(super) fn run(prog: &str, words: &[String]) -> Output {
    let usage = Usage {
        prog,
        text: format!("{prog} [options] OBJECT_FILE"),
        options: &[&HELP, &NO_CHECK, &DIR, &DROP_PREFIXES, &POLICY_NAME],
    };
    let (found, positional) = match usage.split(words) {
        Ok(split) => split,
        Err(ended) => return ended.into(),
    };
    let [file] = &positional[..] else {
        return Output { stdout: usage.help().into_bytes(), ..Output::default() };
    };
    let mut asked = Asked {
        check_etag: true,
        drop_prefixes: false,
        swift_dir: SWIFT_DIR.to_owned(),
        policy_name: None,
        file: file.into(),
    };
    for (option, value) in found {
        match option.long {
            "no-check-etag" => asked.check_etag = false,
            "drop-prefixes" => asked.drop_prefixes = true,
            "policy-name" => asked.policy_name = Some(value),
            _ => asked.swift_dir = value,
        }
    }
    let mut out = Output::default();
    let cluster = match Cluster::open(&asked.swift_dir) {
        Ok(cluster) => cluster,
        Err(err) => return out.fail(err),
    };
    match show(&mut out, &asked, &cluster) {
        Ok(()) => out,
        Err(err) => out.fail(err),
    }
}

/// The error is empty where it has been said on stdout.
fn show(out: &mut Output, asked: &Asked, cluster: &Cluster) -> Result<(), String> {
    if !asked.file.exists() {
        out.line("Data file doesn't exist");
        return Err(String::new());
    }
    let (policy, datadir, ring) = find_ring(out, asked, cluster)?;
    let shown = asked.file.display();
    let mut file = File::open(&asked.file).map_err(|err| format!("{shown}: {err}"))?;
    let metadata = match read_metadata(&file, false) {
        Ok(metadata) => metadata,
        Err(MetadataError::Malformed(_)) => {
            out.line("Invalid metadata");
            return Err(String::new());
        }
        Err(err) => return Err(format!("{shown}: {err}")),
    };
    let path = String::from_utf8_lossy(metadata.get("name").unwrap_or_default()).into_owned();
    let names = split_name(&path);
    print_metadata(out, &metadata, names, &cluster.conf.hash, asked.drop_prefixes)?;
    print_check(out, &mut file, &metadata, asked.check_etag).map_err(|err| format!("{shown}: {err}"))?;
    let [account, container, object] = names.ok_or_else(|| format!("{shown}: no name in the metadata"))?;
    if let Some(ring) = ring {
        let name = |name: &str| Some(name.to_owned());
        let item = Item {
            account: name(account),
            container: name(container),
            object: name(object),
            partition: None,
        };
        let locations = Locations {
            ring: &ring,
            hash_conf: &cluster.conf.hash,
            datadir: &datadir,
            policy: Some(policy),
            all_handoffs: false,
        };
        locations.print(out, &item);
    }
    Ok(())
}

/// The policy that the path tells, and its ring if there is one; the policy named on the command line only stands in for a
/// missing ring.
fn find_ring(
    out: &mut Output,
    asked: &Asked,
    cluster: &Cluster,
) -> Result<(PolicyIndex, String, Option<Arc<Ring>>), String> {
    let full_path = std::path::absolute(&asked.file).unwrap_or_else(|_| asked.file.clone());
    let policies = &cluster.conf.policies;
    let policy = policy_of_path(&full_path, policies).unwrap_or(PolicyIndex::LEGACY);
    let mut datadir = data_dir("objects", policy);
    let mut ring = match cluster.ring(&data_dir("object", policy)) {
        Ok(ring) => Some(ring),
        Err(err) if err.missing => None,
        Err(err) => return Err(err.to_string()),
    };
    if let Some(named) = asked.policy_name.as_deref().and_then(|name| policies.by_name(name)) {
        if named.index != policy {
            out.line("WARNING: Ring does not match policy!");
            out.line("Double check your policy name!");
        }
        if ring.is_none() && named.index != PolicyIndex::LEGACY {
            ring = Some(cluster.ring(&named.object_ring_name).map_err(|err| err.to_string())?);
            datadir = data_dir("objects", named.index);
        }
    }
    Ok((policy, datadir, ring))
}

/// By the last folder of the path whose name has `objects` in it.
fn policy_of_path(path: &Path, policies: &Policies) -> Option<PolicyIndex> {
    let path = path.to_string_lossy();
    let (folder, _) = path[path.rfind("objects")?..].split_once('/')?;
    let (_, number) = folder.rsplit_once('-')?;
    let index = PolicyIndex(number.parse().ok()?);
    policies.get(index).filter(|_| index.to_string() == number).map(|policy| policy.index)
}

/// Account, container and object.
fn split_name(path: &str) -> Option<[&str; 3]> {
    let (_, rest) = path.split_once('/')?;
    let (account, rest) = rest.split_once('/')?;
    let (container, object) = rest.split_once('/')?;
    Some([account, container, object])
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Headers of one kind, by name.
type Headers = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct Kinds {
    system: Headers,
    transient: Headers,
    user: Headers,
    other: Headers,
}

impl Kinds {
    fn of(metadata: &Metadata, drop_prefixes: bool) -> Self {
        let mut kinds = Kinds::default();
        for (name, value) in metadata.iter() {
            if matches!(name, b"name" | b"Content-Type" | b"X-Timestamp" | b"ETag" | b"Content-Length") {
                continue;
            }
            let name = wsgi::from_stored(name).into_owned();
            let (kind, short) = kinds.kind_of(&name);
            let shown = short.filter(|_| drop_prefixes).unwrap_or(name);
            kind.insert(shown, wsgi::from_stored(value).into_owned());
        }
        kinds
    }

    /// The kind of a header, and its name without the prefix.
    fn kind_of(&mut self, name: &[u8]) -> (&mut Headers, Option<Vec<u8>>) {
        // Prefixes are ASCII; so a name with other bytes can be looked at as Latin-1, byte for byte.
        let latin1: String =
            name.iter().map(|&byte| if byte.is_ascii() { char::from(byte) } else { '?' }).collect();
        let rest = |short: &str| Some(name[name.len() - short.len()..].to_vec());
        if let Some(short) = strip_user_meta_prefix(ServerType::Object, &latin1) {
            (&mut self.user, rest(short))
        } else if let Some(short) = strip_sys_meta_prefix(ServerType::Object, &latin1) {
            (&mut self.system, rest(short))
        } else if let Some(short) = strip_object_transient_sysmeta_prefix(&latin1) {
            (&mut self.transient, rest(short))
        } else {
            (&mut self.other, None)
        }
    }
}

fn print_metadata(
    out: &mut Output,
    metadata: &Metadata,
    names: Option<[&str; 3]>,
    hash_conf: &HashConf,
    drop_prefixes: bool,
) -> Result<(), String> {
    let timestamp = match metadata.get_str("X-Timestamp") {
        Some(text) => Timestamp::parse(text).map_err(|err| err.to_string())?,
        None => Timestamp::ZERO,
    };
    let path = metadata.get("name").unwrap_or_default();
    match names {
        _ if path.is_empty() => out.line("Path: Not found in metadata"),
        None => return Err(format!("Path is invalid for object {}", String::from_utf8_lossy(path))),
        Some([account, container, object]) => {
            out.line(joined(&[b"Path: ", path]));
            out.line(format!("  Account: {account}"));
            out.line(format!("  Container: {container}"));
            let raw_object = path.splitn(4, |&byte| byte == b'/').nth(3).unwrap_or_default();
            out.line(joined(&[b"  Object: ", raw_object]));
            let hash = hash_conf.hash_path(account, Some(container), Some(object));
            out.line(format!("  Object hash: {hash}"));
        }
    }
    match metadata.get("Content-Type").map(wsgi::from_stored).filter(|value| !value.is_empty()) {
        Some(value) => out.line(joined(&[b"Content-Type: ", &value])),
        None => out.line("Content-Type: Not found in metadata"),
    }
    match timestamp.is_zero() {
        true => out.line("Timestamp: Not found in metadata"),
        false => out.line(format!("Timestamp: {} ({})", timestamp.isoformat(), timestamp.internal())),
    }
    let kinds = Kinds::of(metadata, drop_prefixes);
    print_kind(out, "System Metadata:", &kinds.system);
    print_kind(out, "Transient System Metadata:", &kinds.transient);
    print_kind(out, "User Metadata:", &kinds.user);
    print_kind(out, "Other Metadata:", &kinds.other);
    print_crypto(out, "Data crypto details", kinds.system.get(BODY_CRYPTO))?;
    print_crypto(out, "Metadata crypto details", kinds.transient.get(METADATA_CRYPTO))
}

fn print_kind(out: &mut Output, title: &str, headers: &Headers) {
    out.line(title);
    if headers.is_empty() {
        out.line("  No metadata found");
    }
    for (name, value) in headers {
        out.line(joined(&[b"  ", name, b": ", value]));
    }
}

/// What encrypts an object: a quoted JSON dict.
fn print_crypto(out: &mut Output, title: &str, value: Option<&Vec<u8>>) -> Result<(), String> {
    let Some(value) = value else { return Ok(()) };
    let spaced: Vec<u8> = value.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&unquote(&spaced)).ok();
    let Some(mut parsed) = parsed.filter(serde_json::Value::is_object) else {
        return Err(format!("Bad crypto meta {}", String::from_utf8_lossy(value)));
    };
    parsed.sort_all_objects();
    out.line(format!("{title}: {parsed:#}"));
    Ok(())
}

/// Whether data and metadata agree.
fn print_check(
    out: &mut Output,
    file: &mut File,
    metadata: &Metadata,
    check_etag: bool,
) -> std::io::Result<()> {
    let etag = metadata.get("ETag").unwrap_or_default();
    let length = if check_etag {
        let (length, md5) = read_all(file)?;
        match etag {
            b"" => out.line("ETag: Not found in metadata"),
            etag if etag == md5.as_bytes() => out.line(joined(&[b"ETag: ", etag, b" (valid)"])),
            etag => {
                let hash = format!(" doesn't match file hash of {md5}!");
                out.line(joined(&[b"ETag: ", etag, hash.as_bytes()]));
            }
        }
        length
    } else {
        out.line(joined(&[b"ETag: ", etag, b" (not checked)"]));
        file.metadata()?.len()
    };
    let told = metadata.get_str("Content-Length").filter(|told| !told.is_empty());
    match told {
        None => out.line("Content-Length: Not found in metadata"),
        Some(told) if parse_int(told) == Some(length) => out.line(format!("Content-Length: {told} (valid)")),
        Some(told) => out.line(format!("Content-Length: {told} doesn't match file length of {length}")),
    }
    Ok(())
}

fn read_all(file: &mut File) -> std::io::Result<(u64, String)> {
    let (mut md5, mut length) = (Md5::new(), 0);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((length, md5.hexdigest()));
        }
        md5.update(&buffer[..read]);
        length += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_the_policy() {
        let policies = <Policies as Default>::default();
        let of = |path: &str| policy_of_path(Path::new(path), &policies);
        assert_eq!(of("/srv/node/sda/objects-0/1/abc/x/1.data"), Some(PolicyIndex(0)));
        assert_eq!(of("/srv/node/sda/objects/1/abc/x/1.data"), None);
        assert_eq!(of("/srv/node/sda/objects-1/1/abc/x/1.data"), None, "there is no such policy");
        assert_eq!(of("/srv/objects-00/x"), None);
    }

    #[test]
    fn headers_are_sorted_by_kind() {
        let metadata = Metadata::from_iter([
            ("X-Object-Sysmeta-A", "1"),
            ("X-Object-Transient-Sysmeta-B", "2"),
            ("X-Object-Meta-Caf\u{c3}\u{a9}", "3"),
            ("X-Delete-At", "4"),
            ("ETag", "5"),
        ]);
        let kinds = Kinds::of(&metadata, true);
        let names = |headers: &Headers| headers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&kinds.system), [b"A"]);
        assert_eq!(names(&kinds.transient), [b"B"]);
        assert_eq!(names(&kinds.user), ["Caf\u{e9}".as_bytes()]);
        assert_eq!(names(&kinds.other), [b"X-Delete-At"]);
    }
}
