//! What the auditor walks over, and how it looks at one object.
//!
//! ```text
//! DEVICE/objects[-N]/auditor_status_ALL.json      {"partitions": ["5", "17"]}
//!                    auditor_status_ZBF.json
//! ```
//!
//! The status names the partitions that a walk over the device has still to see, the one it is in included; none at
//! all when it is through. It is written at most once a minute, and removed when the whole pass has ended. A walk that
//! was cut off, be it Swift's or ours, is taken up there. A status that cannot be read is worth a warning, no
//! more: the walk starts afresh.
//!
//! A walk yields whatever lies where hash dirs do, of any name: opening it quarantines what is none.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::policy::data_dir;
use common::{ObjHash, Suffix, fs};
use rustix::fs::stat;
use rustix::io::Errno;
use serde_json::Value;

use super::files::is_rsync_tempfile;
use super::hashes::invalidate_suffixes;
use super::listing::{Names, list_dir};
use super::{
    DiskFile, DiskFileError, DiskFileManager, Metadata, OpenDiskFile, Place, Reader, ReaderOptions,
    SMALL_OBJECT,
};

/// Seconds for which a written position is good enough.
const POSITION_AGE: f64 = 60.0;
/// Enough hash dirs for one step of a walk.
const BATCH: usize = 100;
/// Read of an object in one turn.
const TURN_BYTES: u64 = 1024 * 1024;

/// Which of the two walks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AuditorType {
    /// Whole objects.
    All,
    /// Sizes and metadata only, which finds files that a crash has left empty.
    ZeroByte,
}

impl AuditorType {
    /// As in the log, in recon and in file names.
    pub fn name(self) -> &'static str {
        match self {
            AuditorType::All => "ALL",
            AuditorType::ZeroByte => "ZBF",
        }
    }
}

/// The partitions that a status names, or what is wrong with it.
pub fn parse_auditor_status(text: &[u8]) -> Result<Vec<String>, String> {
    let status: Value = serde_json::from_slice(text).map_err(|err| err.to_string())?;
    let partitions = status.get("partitions").and_then(Value::as_array).ok_or("no list of partitions")?;
    let name = |value: &Value| value.as_str().filter(|name| is_file_name(name)).map(str::to_owned);
    partitions.iter().map(|value| name(value).ok_or_else(|| format!("{value} is no partition"))).collect()
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// The status, byte for byte as Swift writes it.
fn auditor_status(partitions: &[String]) -> String {
    let quoted: Vec<String> = partitions.iter().map(|name| Value::from(name.as_str()).to_string()).collect();
    format!("{{\"partitions\": [{}]}}", quoted.join(", "))
}

/// Whether the position is to be written: always at the end.
fn is_due(partitions_left: usize, written: f64, now: f64) -> bool {
    partitions_left == 0 || written + POSITION_AGE <= now
}

impl DiskFileManager {
    fn audit_datadir(&self, device: &str) -> PathBuf {
        self.construct_dev_path(device).join(data_dir("objects", self.policy()))
    }

    /// How many partitions a walk over a device would have to see.
    pub fn audit_partitions(&self, device: &str, auditor_type: AuditorType) -> usize {
        if self.dev_path(device).is_none() {
            return 0;
        }
        let datadir = self.audit_datadir(device);
        let status = std::fs::read(status_file(&datadir, auditor_type));
        match status.ok().and_then(|text| parse_auditor_status(&text).ok()) {
            Some(partitions) => partitions.len(),
            None => list_dir(&datadir).map_or(0, |names| names.len()),
        }
    }

    /// Forgets a position: the next walk starts afresh.
    pub fn clear_auditor_status(&self, device: &str, auditor_type: AuditorType) {
        let path = status_file(&self.audit_datadir(device), auditor_type);
        if let Err(err) = fs::remove_file(&path)
            && err.kind() != io::ErrorKind::NotADirectory
        {
            self.logger().warning(format_args!("Cannot remove {} ({err})", path.display()));
        }
    }

    /// The diskfile of whatever lies at `path`, where a hash dir should be.
    pub fn diskfile_at(self: &Arc<Self>, device: &str, path: PathBuf) -> DiskFile {
        let hash = path.file_name().and_then(OsStr::to_str).and_then(ObjHash::parse);
        let partition = path.ancestors().nth(2).and_then(Path::file_name).and_then(OsStr::to_str);
        let place = Place {
            manager: self.clone(),
            device_path: self.construct_dev_path(device),
            partition: partition.and_then(|name| name.parse().ok()).unwrap_or_default(),
            // No name hashes to zeros, so that a directory that is no hash is the wrong one for every object.
            hash: hash.unwrap_or(ObjHash([0; 16])),
            datadir: path,
            name: None,
        };
        DiskFile {
            place: Arc::new(place),
            logger: self.logger().clone(),
            open_expired: false,
            next_part_power: None,
            frag_index: None,
            frag_prefs: None,
        }
    }
}

fn status_file(datadir: &Path, auditor_type: AuditorType) -> PathBuf {
    datadir.join(format!("auditor_status_{}.json", auditor_type.name()))
}

/// A walk over one device and policy, from where the last one was cut off.
pub struct AuditWalk {
    manager: Arc<DiskFileManager>,
    device: String,
    datadir: PathBuf,
    auditor_type: AuditorType,
    partitions: Vec<String>,
    /// Partitions begun.
    begun: usize,
    partition_dir: PathBuf,
    suffixes: Names,
    next_suffix: usize,
}

impl AuditWalk {
    /// `None` if the device is not there, or has nothing of this policy.
    pub fn open(manager: &Arc<DiskFileManager>, device: &str, auditor_type: AuditorType) -> Option<Self> {
        if manager.dev_path(device).is_none() {
            let path = manager.construct_dev_path(device);
            let what = if manager.conf().mount_check { "mounted" } else { "a directory" };
            manager.logger().debug(format_args!("Skipping: {} is not {what}", path.display()));
            return None;
        }
        let datadir = manager.audit_datadir(device);
        stat(&datadir).ok()?;
        let mut walk = AuditWalk {
            manager: manager.clone(),
            device: device.to_owned(),
            datadir,
            auditor_type,
            partitions: Vec::new(),
            begun: 0,
            partition_dir: PathBuf::new(),
            suffixes: Names::default(),
            next_suffix: 0,
        };
        walk.partitions = walk.position().unwrap_or_else(|| walk.all_partitions());
        Some(walk)
    }

    pub fn manager(&self) -> &Arc<DiskFileManager> {
        &self.manager
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// Partitions of which everything has been handed out.
    pub fn partitions_done(&self) -> usize {
        if self.next_suffix < self.suffixes.len() { self.begun.saturating_sub(1) } else { self.begun }
    }

    /// Where the last walk was cut off, if it was.
    fn position(&self) -> Option<Vec<String>> {
        let path = status_file(&self.datadir, self.auditor_type);
        let (logger, shown) = (self.manager.logger(), path.display());
        match std::fs::read(&path) {
            Ok(text) => parse_auditor_status(&text)
                .inspect_err(|err| {
                    logger.warning(format_args!("Loading JSON from {shown} failed ({err})"));
                })
                .ok(),
            Err(err) => {
                if err.kind() != io::ErrorKind::NotFound {
                    logger.warning(format_args!("Cannot read {shown} ({err})"));
                }
                None
            }
        }
    }

    fn all_partitions(&self) -> Vec<String> {
        let names = self.list(&self.datadir);
        names.iter().filter_map(|name| std::str::from_utf8(name).ok().map(str::to_owned)).collect()
    }

    /// Names in a directory; none if there is no directory. Swift ends its pass at other errors.
    fn list(&self, path: &Path) -> Names {
        list_dir(path).unwrap_or_else(|errno| {
            if !matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::NODATA | Errno::UCLEAN) {
                let path = path.display();
                self.manager.logger().error(format_args!("ERROR: Unable to audit {path}: {errno}"));
            }
            Names::default()
        })
    }

    fn save_position(&self) {
        let left = &self.partitions[self.begun..];
        let path = status_file(&self.datadir, self.auditor_type);
        let written = stat(&path).map_or(0.0, |stat| stat.st_mtime as f64 + stat.st_mtime_nsec as f64 / 1e9);
        if !is_due(left.len(), written, self.manager.clock().unix_secs()) {
            return;
        }
        let tmp_dir = self.manager.tmp_dir(&self.manager.construct_dev_path(&self.device));
        // A crash leaves the old position, which only means to look at some objects once more.
        if let Err(err) = fs::write_file_via(&path, &tmp_dir, auditor_status(left).as_bytes(), false) {
            self.manager.logger().warning(format_args!("Cannot write {} ({err})", path.display()));
        }
    }

    /// The next hash dirs, all of one partition: when the position moves on, they have been dealt with. `None` at the
    /// end.
    pub fn next_batch(&mut self) -> Option<Vec<PathBuf>> {
        let mut batch = Vec::new();
        loop {
            while self.next_suffix < self.suffixes.len() && batch.len() < BATCH {
                let suffix = OsStr::from_bytes(self.suffixes.get(self.next_suffix));
                let suffix_dir = self.partition_dir.join(suffix);
                self.next_suffix += 1;
                let hashes = self.list(&suffix_dir);
                batch.extend(hashes.iter().map(|name| suffix_dir.join(OsStr::from_bytes(name))));
            }
            if !batch.is_empty() {
                return Some(batch);
            }
            self.save_position();
            let partition = self.partitions.get(self.begun)?;
            self.partition_dir = self.datadir.join(partition);
            self.begun += 1;
            self.suffixes = self.list(&self.partition_dir);
            self.next_suffix = 0;
        }
    }
}

/// What an audit has found.
pub enum Audited {
    Sound(SoundObject),
    /// It was corrupt and lies in quarantine now.
    Quarantined(String),
    /// Nothing to audit: deleted, expired, or gone by now.
    Absent,
    /// Nothing can be said.
    Failed(DiskFileError),
}

/// An object that has passed.
#[derive(Clone)]
pub struct SoundObject {
    pub diskfile: DiskFile,
    pub metadata: Metadata,
    pub data_file: PathBuf,
}

impl SoundObject {
    /// Quarantines it all the same.
    pub fn quarantine(&self, reason: String) -> DiskFileError {
        self.diskfile.quarantine(&self.data_file, reason)
    }

    /// Removes its hash dir. The suffix is marked first: a crash before the end leaves an object to be hashed again.
    pub fn remove(&self) -> Result<(), DiskFileError> {
        let dir = self.diskfile.datadir();
        self.diskfile.invalidate_suffix()?;
        let io = |source| DiskFileError::io("cannot remove", dir, source);
        for entry in std::fs::read_dir(dir).map_err(io)? {
            fs::remove_file(&entry.map_err(io)?.path()).map_err(io)?;
        }
        fs::remove_empty_dir(dir).map(drop).map_err(io)
    }
}

/// An object under audit. Its data is read in turns, so that the reader can be held to a rate between them.
pub struct ObjectAudit {
    diskfile: DiskFile,
    state: State,
    /// How much data the last turn has read.
    pub bytes: u64,
    /// The object's length, if it could be opened.
    pub size: Option<u64>,
}

enum State {
    Reading { reader: Box<Reader>, sound: SoundObject, offset: u64, chunk: usize },
    Ended(Audited),
}

impl ObjectAudit {
    /// Opens the object and, if it is to be read, takes the first turn.
    pub fn begin(diskfile: DiskFile, auditor_type: AuditorType) -> Self {
        let mut audit = match diskfile.open_modernized(None) {
            Ok(opened) => Self::opened(opened, auditor_type),
            Err(err) => {
                let found = diskfile.audit_failed_open(err, auditor_type);
                ObjectAudit { diskfile, state: State::Ended(found), bytes: 0, size: None }
            }
        };
        audit.turn();
        audit
    }

    fn opened(opened: OpenDiskFile, auditor_type: AuditorType) -> Self {
        let (diskfile, size) = (opened.diskfile().clone(), opened.content_length());
        if diskfile.manager().is_erasure() && !opened.validate_metadata() {
            // Swift does, but neither logs nor counts it.
            let found = match opened.quarantine("Metadata failed validation".to_owned()) {
                DiskFileError::Quarantined(reason) => Audited::Quarantined(reason),
                err => Audited::Failed(err),
            };
            return ObjectAudit { diskfile, state: State::Ended(found), bytes: 0, size: Some(size) };
        }
        let sound = SoundObject {
            diskfile: diskfile.clone(),
            metadata: opened.metadata().clone(),
            data_file: opened.data_file().to_owned(),
        };
        let state = if size == 0 || auditor_type == AuditorType::ZeroByte {
            State::Ended(Audited::Sound(sound))
        } else {
            let chunk = diskfile.manager().conf().disk_chunk_size.max(1) as u64;
            let chunk = size.min(chunk) as usize;
            let reader = Box::new(opened.reader(ReaderOptions::default()));
            State::Reading { reader, sound, offset: 0, chunk }
        };
        ObjectAudit { diskfile, state, bytes: 0, size: Some(size) }
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Reads on, unless it has ended.
    pub fn turn(&mut self) {
        self.bytes = 0;
        let State::Reading { reader, sound, offset, chunk } = &mut self.state else { return };
        while self.bytes < TURN_BYTES {
            match reader.read(*offset, *chunk) {
                Ok(data) => {
                    *offset += data.len() as u64;
                    self.bytes += data.len() as u64;
                    if !data.is_empty() && *offset < reader.content_length() {
                        continue;
                    }
                    drop_small_from_cache(reader.opened());
                    self.state = State::Ended(match reader.check() {
                        Some(reason) => Audited::Quarantined(reason),
                        None => Audited::Sound(sound.clone()),
                    });
                }
                Err(DiskFileError::Quarantined(reason)) => {
                    self.state = State::Ended(Audited::Quarantined(reason));
                }
                Err(err) => self.state = State::Ended(Audited::Failed(err)),
            }
            return;
        }
    }

    /// Removes what rsync has left half-written in the hash dir before `mtime` (seconds since the epoch).
    pub fn remove_rsync_tempfiles(&self, mtime: f64) {
        let dir = self.diskfile.datadir();
        // Quarantined by now, or no directory: nothing to remove.
        let Ok(names) = list_dir(dir) else { return };
        for name in names.iter().filter(|name| is_rsync_tempfile(name)) {
            let path = dir.join(OsStr::from_bytes(name));
            let old = |stat: rustix::fs::Stat| stat.st_mtime as f64 + stat.st_mtime_nsec as f64 / 1e9 < mtime;
            if stat(&path).is_ok_and(old) {
                // Whoever keeps us from it, the next pass tries again.
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// What it has come to; still reading is no verdict.
    pub fn end(self) -> Audited {
        match self.state {
            State::Ended(found) => found,
            State::Reading { .. } => Audited::Absent,
        }
    }
}

/// The reader keeps small objects in the page cache for clients; nobody has asked for these.
fn drop_small_from_cache(opened: &OpenDiskFile) {
    if opened.content_length() <= SMALL_OBJECT {
        fs::drop_cache(&opened.file, 0, opened.content_length());
    }
}

impl DiskFile {
    fn audit_failed_open(&self, err: DiskFileError, auditor_type: AuditorType) -> Audited {
        match err {
            DiskFileError::Quarantined(reason) => Audited::Quarantined(reason),
            DiskFileError::Deleted { timestamp, .. } if auditor_type == AuditorType::All => {
                let age = self.manager().clock().unix_secs() - timestamp.as_secs_f64();
                // Nobody else looks at a tombstone's age until its suffix is hashed.
                if age > self.manager().conf().reclaim_age.as_secs_f64()
                    && let Err(err) = self.invalidate_suffix()
                {
                    return Audited::Failed(err);
                }
                Audited::Absent
            }
            err if err.is_not_exist() => Audited::Absent,
            err => Audited::Failed(err),
        }
    }

    fn invalidate_suffix(&self) -> Result<(), DiskFileError> {
        let suffix = self.place.suffix_dir().file_name().and_then(OsStr::to_str).and_then(Suffix::parse);
        let Some(suffix) = suffix else { return Ok(()) };
        invalidate_suffixes(self.place.partition_dir(), self.device_path(), &[suffix])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // The second is what `json.dumps({'partitions': ['5', '17']})` gives.
    #[test]
    fn a_status_is_written_as_swift_does() {
        assert_eq!(auditor_status(&[]), r#"{"partitions": []}"#);
        assert_eq!(auditor_status(&["5".into(), "17".into()]), r#"{"partitions": ["5", "17"]}"#);
    }

    #[test]
    fn only_names_are_partitions() {
        for broken in
            ["", "[]", "{}", "{\"partitions\": 5}", "{\"partitions\": [5]}", "{\"partitions\": [\"../x\"]}"]
        {
            assert!(parse_auditor_status(broken.as_bytes()).is_err(), "{broken}");
        }
        assert_eq!(parse_auditor_status(br#"{"partitions":["5","x"]}"#).unwrap(), ["5", "x"]);
    }

    #[test]
    fn a_position_is_written_once_a_minute_and_at_the_end() {
        assert!(is_due(3, 0.0, 1000.0) && is_due(3, 940.0, 1000.0) && is_due(0, 999.0, 1000.0));
        assert!(!is_due(3, 940.1, 1000.0));
    }

    proptest! {
        #[test]
        fn any_status_is_read_without_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_auditor_status(&text);
        }

        #[test]
        fn what_is_written_is_read(names in prop::collection::vec("[0-9a-z\"\\\\\u{e9}]{1,8}", 0..20)) {
            prop_assert_eq!(parse_auditor_status(auditor_status(&names).as_bytes()).unwrap(), names);
        }
    }
}
