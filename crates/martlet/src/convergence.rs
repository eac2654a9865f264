//! Whether a cluster has converged: every object's files are the same, byte for byte, on all of its primaries, every account
//! and container has a database on each of its primaries, and nothing is anywhere else.
//!
//! Reads the devices of a cluster directly, below the servers: for each hash dir the file names, the metadata xattr and
//! the MD5 of the contents. Two replicas are identical if and only if these are, which covers data, metadata, timestamps
//! and tombstones. Of an erasure coded policy each primary must have the durable fragment of its own place in the ring, and
//! whatever is not a fragment alike. It takes no locks, so on a cluster at work the answer is a snapshot: ask again until it is
//! clean.
//!
//! It does not judge what the objects should be, nor what is in a database; whoever wrote them compares that through the
//! proxy.

use anyhow::{Context, Result};
use common::config::SwiftConf;
use common::digest::Md5;
use common::policy::data_dir;
use ring::{Device, Ring};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

/// How many differences of a kind are spelled out.
const EXAMPLES: usize = 5;

/// What is wrong with a cluster; all empty when it has converged.
#[derive(Default)]
pub struct Report {
    /// Hash dirs seen at all.
    pub objects: usize,
    pub missing: Vec<String>,
    pub different: Vec<String>,
    pub on_handoffs: Vec<String>,
    pub async_pending: usize,
}

impl Report {
    pub fn converged(&self) -> bool {
        self.missing.is_empty()
            && self.different.is_empty()
            && self.on_handoffs.is_empty()
            && self.async_pending == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} objects: {} replicas missing, {} objects differ, {} on handoffs, {} async_pending",
            self.objects,
            self.missing.len(),
            self.different.len(),
            self.on_handoffs.len(),
            self.async_pending
        )?;
        for (what, list) in
            [("missing", &self.missing), ("different", &self.different), ("handoff", &self.on_handoffs)]
        {
            for line in list.iter().take(EXAMPLES) {
                write!(f, "\n  {what}: {line}")?;
            }
        }
        Ok(())
    }
}

/// One file of a hash dir, as far as replicas must agree.
#[derive(PartialEq, Eq, Debug)]
struct Replica(Vec<(String, Vec<u8>, [u8; 16])>);

impl Replica {
    /// Makes durable fragments of the primary with that index look alike on all primaries.
    fn forget_own_fragment(&mut self, index: usize) {
        let own = format!("#{index}#d.data");
        for (name, metadata, md5) in &mut self.0 {
            if let Some(timestamp) = name.strip_suffix(&own) {
                *name = format!("{timestamp}#own#d.data");
                metadata.clear();
                *md5 = [0; 16];
            }
        }
    }
}

type DeviceId = u32;

/// Reads all devices of all policies of a cluster of `up`.
pub fn check(data: &Path) -> Result<Report> {
    let etc = data.join("etc");
    let swift_conf = SwiftConf::load(&etc)?;
    let mut report = Report::default();
    for policy in swift_conf.policies.iter() {
        let ring = Ring::load(&etc.join(format!("{}.ring.gz", policy.object_ring_name)))?;
        let mut found: BTreeMap<(u32, String), BTreeMap<DeviceId, Replica>> = BTreeMap::new();
        for device in ring.devs().iter().flatten() {
            let path = device_path(data, device)?;
            report.async_pending += files_below(&path.join(data_dir("async_pending", policy.index)))?;
            for (part, hash, dir) in hash_dirs(&path.join(data_dir("objects", policy.index)))? {
                if let Some(replica) = read_replica(&dir)? {
                    found.entry((part, hash)).or_default().insert(device.id, replica);
                }
            }
        }
        report.objects += found.len();
        for ((part, hash), replicas) in &mut found {
            judge(&mut report, &ring, policy.is_erasure(), *part, hash, replicas);
        }
    }
    for server in ["account", "container"] {
        check_databases(&mut report, data, &Ring::load(&etc.join(format!("{server}.ring.gz")))?, server)?;
    }
    Ok(report)
}

fn check_databases(report: &mut Report, data: &Path, ring: &Ring, server: &str) -> Result<()> {
    let mut found: BTreeMap<(u32, String), BTreeSet<DeviceId>> = BTreeMap::new();
    for device in ring.devs().iter().flatten() {
        for (part, hash, dir) in hash_dirs(&device_path(data, device)?.join(format!("{server}s")))? {
            if dir.join(format!("{hash}.db")).exists() {
                found.entry((part, hash)).or_default().insert(device.id);
            }
        }
    }
    for ((part, hash), there) in found {
        judge_places(report, ring, part, &format!("{server} {hash}"), &there);
    }
    Ok(())
}

/// Devices of `up` have names of their own, each in the folder of its node.
fn device_path(data: &Path, device: &Device) -> Result<PathBuf> {
    let nodes = entries(data)?.into_iter().filter(|(name, _)| name.starts_with("node"));
    let found = nodes.map(|(_, node)| node.join(&device.device)).find(|path| path.is_dir());
    found.with_context(|| format!("{}: no device {}", data.display(), device.device))
}

fn judge(
    report: &mut Report,
    ring: &Ring,
    is_erasure: bool,
    part: u32,
    hash: &str,
    replicas: &mut BTreeMap<DeviceId, Replica>,
) {
    if is_erasure {
        for (index, node) in ring.get_part_nodes(part).iter().enumerate() {
            if let Some(replica) = replicas.get_mut(&node.id) {
                replica.forget_own_fragment(index);
            }
        }
    }
    judge_places(report, ring, part, hash, &replicas.keys().copied().collect());
    let mut values = replicas.values();
    let first = values.next();
    if values.any(|other| Some(other) != first) {
        let names = |r: &Replica| r.0.iter().map(|f| f.0.clone()).collect::<Vec<_>>().join("+");
        let each: Vec<String> = replicas.iter().map(|(id, r)| format!("device {id}: {}", names(r))).collect();
        report.different.push(format!("{part}/{hash}: {}", each.join(", ")));
    }
}

fn judge_places(report: &mut Report, ring: &Ring, part: u32, what: &str, there: &BTreeSet<DeviceId>) {
    let primaries: BTreeSet<DeviceId> = ring.get_part_nodes(part).iter().map(|node| node.id).collect();
    let told = |id: &DeviceId| format!("{part}/{what} on device {id}");
    report.missing.extend(primaries.difference(there).map(told));
    report.on_handoffs.extend(there.difference(&primaries).map(told));
}

/// `(partition, hash, path)` of every hash dir below an `objects` folder.
fn hash_dirs(objects: &Path) -> Result<Vec<(u32, String, PathBuf)>> {
    let mut dirs = Vec::new();
    for (part, path) in entries(objects)? {
        let Ok(part) = part.parse::<u32>() else { continue };
        for (suffix, path) in entries(&path)? {
            if suffix.len() != 3 {
                continue;
            }
            dirs.extend(entries(&path)?.into_iter().map(|(hash, path)| (part, hash, path)));
        }
    }
    Ok(dirs)
}

/// None if the hash dir vanished or is empty: a replica that is not there.
fn read_replica(dir: &Path) -> Result<Option<Replica>> {
    let mut files = Vec::new();
    for (name, path) in entries(dir)? {
        // A file may go between the listing and the reading: the next look sees the new state.
        let Ok(contents) = std::fs::File::open(&path) else { return Ok(None) };
        let metadata = common::fs::read_metadata_xattrs(&contents).map(|m| m.pickle).unwrap_or_default();
        let mut md5 = Md5::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut reader = &contents;
        loop {
            let n = std::io::Read::read(&mut reader, &mut buffer)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if n == 0 {
                break;
            }
            md5.update(&buffer[..n]);
        }
        files.push((name, metadata, md5.finalize()));
    }
    files.sort();
    Ok((!files.is_empty()).then_some(Replica(files)))
}

fn files_below(dir: &Path) -> Result<usize> {
    let mut count = 0;
    for (_, path) in entries(dir)? {
        count += if path.is_dir() { files_below(&path)? } else { 1 };
    }
    Ok(count)
}

/// Name and path of what a folder holds, sorted; nothing if it is not there or is a file.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(e).with_context(|| format!("cannot list {}", dir.display())),
    };
    let mut entries: Vec<(String, PathBuf)> =
        listing.flatten().map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).collect();
    entries.sort();
    Ok(entries)
}
