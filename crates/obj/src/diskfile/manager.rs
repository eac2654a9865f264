//! The devices of one policy: where they are, their locks, hashes and listings, and the diskfiles on them.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::config::{ConfigError, FallocateReserve, Section, SwiftConf};
use common::pickle::{self, Value};
use common::policy::{PolicyIndex, PolicyKind, StoragePolicy, data_dir};
use common::{Clock, HashConf, ObjHash, Suffix, Timestamp, fs};
use ec::Codec;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, stat};
use rustix::io::Errno;
use service::logs::Logger;
use service::statsd::Statsd;

use super::files::{OnDiskFiles, Scheme, Want};
use super::hashes::invalidate_suffixes;
use super::known::KnownObjects;
use super::listing::{Names, open_dir};
use super::locks::{LockGuard, lock_path};
use super::metadata::{MetadataError, read_metadata};
use super::suffix_hashes::SuffixHashes;
use super::{DiskFile, DiskFileError, Place};

/// Of a replicated object, what is kept in memory until others can be hashed with it.
const HELD_OBJECT: u64 = 16 << 20;
/// The same of an archive, in fragments: an object's memory is some segments, whatever its length.
const HELD_FRAGMENTS: u64 = 16;

/// The options of an object service that concern its disks.
#[derive(Clone, Debug)]
pub struct DiskFileConf {
    pub devices: PathBuf,
    pub mount_check: bool,
    pub disk_chunk_size: usize,
    /// Objects up to this size stay in the page cache after a read that may keep them there.
    pub keep_cache_size: u64,
    /// Written data is synced, and dropped from the page cache, each time this much has come in.
    pub bytes_per_sync: u64,
    /// From how many writes that wait for a device's disk on one `syncfs` serves them all; 0: never (ours, not Swift's).
    pub syncs_together: usize,
    /// Of how many objects what a GET has read is kept (ours, not Swift's).
    pub known_objects: usize,
    pub reclaim_age: Duration,
    pub commit_window: Duration,
    /// Replications into one device at a time; 0: no limit.
    pub replication_concurrency_per_device: usize,
    pub replication_lock_timeout: Duration,
    pub fallocate_reserve: FallocateReserve,
    pub disable_fallocate: bool,
}

impl Default for DiskFileConf {
    fn default() -> Self {
        DiskFileConf {
            devices: "/srv/node".into(),
            mount_check: true,
            disk_chunk_size: 65536,
            keep_cache_size: 5_242_880,
            bytes_per_sync: 512 * 1024 * 1024,
            syncs_together: 3,
            known_objects: 16384,
            reclaim_age: Duration::from_secs(7 * 24 * 3600),
            commit_window: Duration::from_secs(60),
            replication_concurrency_per_device: 1,
            replication_lock_timeout: Duration::from_secs(15),
            fallocate_reserve: FallocateReserve::Percent(1.0),
            disable_fallocate: false,
        }
    }
}

/// Everything about the disks of one policy. Shared; all calls block.
pub struct DiskFileManager {
    pub(super) conf: DiskFileConf,
    policy: PolicyIndex,
    scheme: Scheme,
    /// Of an EC policy, and how long a fragment of a whole segment is.
    codec: Option<(Codec, usize)>,
    hash_conf: HashConf,
    clock: Clock,
    logger: Logger,
    statsd: Statsd,
    /// Cleared once a file system has refused O_TMPFILE.
    pub(super) use_linkat: AtomicBool,
    pub(super) known: KnownObjects,
}

/// What a hash dir holds, for ssync.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct TimestampSet {
    /// Of the data file or the tombstone.
    pub data: Timestamp,
    pub meta: Option<Timestamp>,
    pub ctype: Option<Timestamp>,
    /// EC only; always true under replication.
    pub durable: bool,
}

impl TimestampSet {
    /// None if there is neither an object nor a tombstone.
    pub(super) fn of(info: &OnDiskFiles) -> Option<Self> {
        let data = info.data.or(info.tombstone)?;
        Some(TimestampSet {
            data: data.timestamp,
            meta: info.meta.map(|info| info.timestamp),
            ctype: info.ctype.and_then(|info| info.ctype_timestamp),
            durable: data.durable,
        })
    }
}

/// An object or a tombstone, as the names of its files show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub timestamps: Option<TimestampSet>,
    pub is_tombstone: bool,
    /// EC: of the newest durable fragments, if the wanted one is among those.
    pub durable_timestamp: Option<Timestamp>,
    /// EC: the indexes of all fragments, by timestamp.
    pub fragments: Vec<(Timestamp, Vec<u32>)>,
}

impl Listed {
    fn of(info: &OnDiskFiles) -> Self {
        Listed {
            timestamps: TimestampSet::of(info),
            is_tombstone: info.data.is_none(),
            durable_timestamp: info.durable_timestamp(),
            fragments: info.fragments(),
        }
    }

    /// EC: whether a fragment is here that is newer than anything durable.
    pub fn has_uncommitted(&self, timestamp: Timestamp, frag_index: u32) -> bool {
        self.durable_timestamp < Some(timestamp)
            && self.fragments.iter().any(|(at, indexes)| *at == timestamp && indexes.contains(&frag_index))
    }
}

impl DiskFileManager {
    pub fn new(
        conf: DiskFileConf,
        policy: &StoragePolicy,
        hash_conf: HashConf,
        clock: Clock,
        logger: Logger,
        statsd: Statsd,
    ) -> Arc<Self> {
        let scheme = scheme_of(&policy.kind);
        let codec = match &policy.kind {
            PolicyKind::Replication => None,
            PolicyKind::Erasure { segment_size, .. } => Codec::of(&policy.kind)
                .map(|codec| (codec.clone(), codec.fragment_len(*segment_size as usize)))
                .inspect_err(|err| {
                    logger.error(format_args!("Fragments of {} are not checked: {err}", policy.name))
                })
                .ok(),
        };
        let use_linkat = AtomicBool::new(true);
        let known = KnownObjects::new(conf.known_objects);
        Arc::new(Self {
            conf,
            policy: policy.index,
            scheme,
            codec,
            hash_conf,
            clock,
            logger,
            statsd,
            use_linkat,
            known,
        })
    }

    pub fn conf(&self) -> &DiskFileConf {
        &self.conf
    }

    pub fn policy(&self) -> PolicyIndex {
        self.policy
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The code of an EC policy.
    pub fn codec(&self) -> Option<&Codec> {
        self.codec.as_ref().map(|(codec, _)| codec)
    }

    /// The length of a fragment of a whole segment. Swift: `fragment_size`.
    pub fn fragment_len(&self) -> Option<usize> {
        self.codec.as_ref().map(|(_, length)| *length)
    }

    /// The largest object that is kept in memory until others can be hashed with it: of an archive some segments.
    pub fn most_held(&self) -> u64 {
        self.fragment_len().map_or(HELD_OBJECT, |length| HELD_FRAGMENTS * length as u64)
    }

    pub fn hash_conf(&self) -> &HashConf {
        &self.hash_conf
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn logger(&self) -> &Logger {
        &self.logger
    }

    pub fn statsd(&self) -> &Statsd {
        &self.statsd
    }

    /// The path of a device, whether or not it is there.
    pub fn construct_dev_path(&self, device: &str) -> PathBuf {
        self.conf.devices.join(device)
    }

    /// The path of a device; `None` if it is no mount point (no directory, without `mount_check`).
    pub fn dev_path(&self, device: &str) -> Option<PathBuf> {
        fs::check_drive(&self.conf.devices, device, self.conf.mount_check)
    }

    fn available(&self, device: &str) -> Result<PathBuf, DiskFileError> {
        self.dev_path(device).ok_or(DiskFileError::DeviceUnavailable)
    }

    pub(super) fn partition_dir(&self, device_path: &Path, partition: u32) -> PathBuf {
        let mut path = device_path.join(data_dir("objects", self.policy));
        path.push(partition.to_string());
        path
    }

    /// The partition's directory on a device.
    pub fn partition_path(&self, device: &str, partition: u32) -> Result<PathBuf, DiskFileError> {
        Ok(self.partition_dir(&self.available(device)?, partition))
    }

    pub(super) fn tmp_dir(&self, device_path: &Path) -> PathBuf {
        device_path.join(data_dir("tmp", self.policy))
    }

    pub fn diskfile(
        self: &Arc<Self>,
        device: &str,
        partition: u32,
        account: &str,
        container: &str,
        obj: &str,
    ) -> Result<DiskFile, DiskFileError> {
        let device_path = self.available(device)?;
        Ok(self.named(device_path, partition, account, container, obj))
    }

    /// As [`DiskFileManager::diskfile`], for who only wants to open it: without `mount_check` the device is not looked
    /// at before opening has failed. (What is under a mount point that has lost its device must not be served.)
    pub fn diskfile_to_open(
        self: &Arc<Self>,
        device: &str,
        partition: u32,
        account: &str,
        container: &str,
        obj: &str,
    ) -> Result<DiskFile, DiskFileError> {
        let device_path = match self.conf.mount_check {
            true => self.dev_path(device),
            false => fs::drive_path(&self.conf.devices, device),
        };
        let device_path = device_path.ok_or(DiskFileError::DeviceUnavailable)?;
        Ok(self.named(device_path, partition, account, container, obj))
    }

    /// Where a device is, without a look at it; for [`DiskFile::open_in_memory`], and `None` if no object is known.
    pub fn device_path_in_memory(&self, device: &str) -> Option<PathBuf> {
        fs::drive_path(&self.conf.devices, device).filter(|_| self.known.is_enabled())
    }

    /// The diskfile of an object on a device that has been looked at, or need not be.
    pub fn named(
        self: &Arc<Self>,
        device_path: PathBuf,
        partition: u32,
        account: &str,
        container: &str,
        obj: &str,
    ) -> DiskFile {
        let hash = self.hash_conf.hash_path(account, Some(container), Some(obj));
        let name = ["/", account, "/", container, "/", obj].concat();
        self.place(device_path, partition, hash, Some(name))
    }

    fn place(
        self: &Arc<Self>,
        device_path: PathBuf,
        partition: u32,
        hash: ObjHash,
        name: Option<String>,
    ) -> DiskFile {
        let mut datadir = self.partition_dir(&device_path, partition);
        datadir.push(hash.suffix().to_string());
        datadir.push(hash.to_string());
        let place = Place { manager: self.clone(), device_path, partition, hash, datadir, name };
        DiskFile {
            place: Arc::new(place),
            logger: self.logger.clone(),
            open_expired: false,
            next_part_power: None,
            frag_index: None,
            frag_prefs: None,
        }
    }

    /// The diskfile of a hash whose object is only known when it is opened.
    pub fn diskfile_of_hash(
        self: &Arc<Self>,
        device: &str,
        partition: u32,
        hash: ObjHash,
    ) -> Result<DiskFile, DiskFileError> {
        Ok(self.place(self.available(device)?, partition, hash, None))
    }

    /// The diskfile of a hash, cleaned up, be it an object or a tombstone, with the names in its hash dir in descending
    /// order; [`DiskFileError::NotExist`] if there is neither.
    pub fn diskfile_and_filenames_from_hash(
        self: &Arc<Self>,
        device: &str,
        partition: u32,
        hash: ObjHash,
    ) -> Result<(DiskFile, Vec<String>), DiskFileError> {
        let mut diskfile = self.place(self.available(device)?, partition, hash, None);
        let datadir = diskfile.datadir().to_owned();
        let mut names = Names::default();
        let cleaned = match self.cleanup_ondisk_files(&datadir, &mut names) {
            Ok(cleaned) => cleaned,
            Err(errno) => {
                self.quarantine_unlistable(&datadir, errno)?;
                return Err(DiskFileError::NotExist);
            }
        };
        let kept = (0..names.len()).filter(|index| !cleaned.removed.contains(index));
        let filenames: Vec<String> = kept.map(|index| names.lossy(index)).collect();
        // Any file's metadata has the name; Swift takes the one that sorts lowest.
        let Some(oldest) = filenames.last() else { return Err(DiskFileError::NotExist) };
        let path = datadir.join(oldest);
        let metadata = match std::fs::File::open(&path).map(|file| read_metadata(&file, false)) {
            Ok(Ok(metadata)) => metadata,
            Ok(Err(MetadataError::NotSupported)) => return Err(DiskFileError::XattrNotSupported),
            Ok(Err(MetadataError::Io(errno))) => {
                return Err(DiskFileError::io("cannot read metadata of", path, errno));
            }
            // Corrupt: opening the object will quarantine it.
            Ok(Err(_)) | Err(_) => return Err(DiskFileError::NotExist),
        };
        let name = metadata.get_str("name").filter(|name| is_object_path(name));
        let name = name.ok_or(DiskFileError::NotExist)?.to_owned();
        let place = Arc::get_mut(&mut diskfile.place).expect("nobody else has seen the new diskfile");
        place.name = Some(name);
        Ok((diskfile, filenames))
    }

    /// Hashes of all suffixes of a partition, those in `suffixes` made anew. With `skip_rehash` they are only marked
    /// to be made anew, and the answer is `None`.
    pub fn get_hashes(
        &self,
        device: &str,
        partition: u32,
        suffixes: &[Suffix],
        skip_rehash: bool,
    ) -> Result<Option<SuffixHashes>, DiskFileError> {
        let device_path = self.available(device)?;
        let partition_dir = self.partition_dir(&device_path, partition);
        if skip_rehash {
            if !suffixes.is_empty() {
                invalidate_suffixes(&partition_dir, &device_path, suffixes)?;
            }
            return Ok(None);
        }
        if stat(&partition_dir).is_err() {
            return Ok(Some(SuffixHashes::default()));
        }
        self.rehash(&device_path, partition, suffixes, false).map(|(_, hashes)| Some(hashes))
    }

    /// Marks a suffix to be rehashed.
    pub fn invalidate_hash(&self, device: &str, partition: u32, suffix: Suffix) -> Result<(), DiskFileError> {
        let device_path = self.construct_dev_path(device);
        invalidate_suffixes(&self.partition_dir(&device_path, partition), &device_path, &[suffix])
    }

    /// Moves a hash dir or a suffix dir to quarantine; returns where it is now.
    pub fn quarantine(&self, device: &str, from: &Path) -> Result<PathBuf, DiskFileError> {
        super::quarantine_dir_renamer(&self.construct_dev_path(device), from)
    }

    /// The suffixes that have a directory in a partition, in ascending order.
    pub fn yield_suffixes(&self, device: &str, partition: u32) -> Result<Vec<Suffix>, DiskFileError> {
        let partition_dir = self.partition_path(device, partition)?;
        let names = self.listdir(&partition_dir);
        let mut suffixes: Vec<Suffix> =
            names.iter().filter_map(|name| Suffix::parse(std::str::from_utf8(name).ok()?)).collect();
        suffixes.sort();
        Ok(suffixes)
    }

    /// Every object and tombstone of a partition (of the given suffixes), with its timestamps; cleans up on the way.
    /// Of EC objects those that have the wanted fragment.
    pub fn yield_hashes(
        self: &Arc<Self>,
        device: &str,
        partition: u32,
        suffixes: Option<&[Suffix]>,
        want: Want<'static>,
    ) -> Result<HashesIter, DiskFileError> {
        let device_path = self.available(device)?;
        let partition_dir = self.partition_dir(&device_path, partition);
        let mut suffixes = match suffixes {
            Some(suffixes) => suffixes.to_vec(),
            None => self.yield_suffixes(device, partition)?,
        };
        suffixes.reverse();
        let (current, now, names) = (None, self.clock.now(), Names::default());
        Ok(HashesIter {
            manager: self.clone(),
            device_path,
            partition_dir,
            suffixes,
            want,
            current,
            now,
            names,
        })
    }

    /// Names in a directory; none, and a log line, if it cannot be listed.
    fn listdir(&self, path: &Path) -> Names {
        self.open_listed(path).map(|(_, names)| names).unwrap_or_default()
    }

    fn open_listed(&self, path: &Path) -> Option<(OwnedFd, Names)> {
        let mut names = Names::default();
        match open_dir(CWD, path).and_then(|dir| names.read(&dir).map(|()| dir)) {
            Ok(dir) => return Some((dir, names)),
            Err(Errno::NOENT) => {}
            Err(errno) => {
                let path = path.display();
                self.logger
                    .error(format_args!("ERROR: Skipping {path} due to error with listdir attempt: {errno}"));
            }
        }
        None
    }

    /// What the names of files say of each object of a partition; cleans up on the way. Nothing is opened, so what is
    /// corrupt looks like any other.
    pub fn list_objects(
        &self,
        device: &str,
        partition: u32,
        want: Want<'_>,
        hashes: impl Iterator<Item = ObjHash>,
    ) -> Result<Vec<Listed>, DiskFileError> {
        let partition_dir = self.partition_path(device, partition)?;
        let dir = match open_dir(CWD, &partition_dir) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(hashes.map(|_| Listed::default()).collect()),
            Err(errno) => return Err(DiskFileError::io("cannot open", partition_dir, errno)),
        };
        let (mut names, now) = (Names::default(), self.clock.now());
        let list = |hash: ObjHash| {
            let place = format!("{}/{hash}\0", hash.suffix());
            let path = CStr::from_bytes_with_nul(place.as_bytes()).expect("a hash has no NUL");
            match self.cleanup_at(&dir, path, &partition_dir, &mut names, now, want) {
                Ok(cleaned) => Ok(Listed::of(&cleaned.info)),
                Err(errno) => {
                    let path = partition_dir.join(place.trim_end_matches('\0'));
                    self.quarantine_unlistable(&path, errno).map(|()| Listed::default())
                }
            }
        };
        hashes.map(list).collect()
    }

    /// Commits a fragment which is here; it need not be known what object it is of.
    pub fn commit_fragment(
        self: &Arc<Self>,
        device: &str,
        partition: u32,
        hash: ObjHash,
        timestamp: Timestamp,
        frag_index: u32,
    ) -> Result<(), DiskFileError> {
        self.place(self.available(device)?, partition, hash, None).commit(timestamp, frag_index)
    }

    /// Keeps other replications out of the partition and, as far as configured, out of the device.
    pub fn replication_lock(
        &self,
        device: &str,
        partition: u32,
        timeout: Option<Duration>,
    ) -> Result<(LockGuard, Option<LockGuard>), DiskFileError> {
        let timeout = timeout.unwrap_or(self.conf.replication_lock_timeout);
        let started = Instant::now();
        let partition_lock = self.partition_lock(device, partition, Some("replication"), Some(timeout))?;
        let limit = self.conf.replication_concurrency_per_device;
        if limit == 0 {
            return Ok((partition_lock, None));
        }
        let device_path = self.available(device)?;
        let rest = timeout.saturating_sub(started.elapsed());
        let device_lock = lock_path(&device_path, &device_path, None, limit, rest)?;
        Ok((partition_lock, Some(device_lock)))
    }

    /// Locks `.lock` or `.lock-NAME` in the partition; waits for replication_lock_timeout unless told otherwise.
    pub fn partition_lock(
        &self,
        device: &str,
        partition: u32,
        name: Option<&str>,
        timeout: Option<Duration>,
    ) -> Result<LockGuard, DiskFileError> {
        let device_path = self.available(device)?;
        let timeout = timeout.unwrap_or(self.conf.replication_lock_timeout);
        lock_path(&self.partition_dir(&device_path, partition), &device_path, name, 1, timeout)
    }

    /// Leaves an update of a container for the updater to send.
    pub fn pickle_async_update(
        &self,
        device: &str,
        account: &str,
        container: &str,
        obj: &str,
        data: &Value,
        timestamp: Timestamp,
    ) -> Result<(), DiskFileError> {
        let device_path = self.construct_dev_path(device);
        let hash = self.hash_conf.hash_path(account, Some(container), Some(obj));
        let async_dir =
            device_path.join(data_dir("async_pending", self.policy)).join(hash.suffix().to_string());
        let tmp_dir = self.tmp_dir(&device_path);
        let target = async_dir.join(format!("{hash}-{}", timestamp.internal()));
        let written = (|| {
            fs::mkdirs_below(&device_path, &tmp_dir)?;
            let created = fs::mkdirs_below(&device_path, &async_dir)?;
            // A crash before this returns loses the update, and the request that waits for it has not been answered.
            fs::write_file_via(&target, &tmp_dir, &pickle::dumps(data), true)?;
            fs::fsync_dirs(&async_dir, created)
        })();
        written.map_err(|err| DiskFileError::write("cannot write", target, err))?;
        self.statsd.increment("async_pendings");
        Ok(())
    }
}

fn scheme_of(kind: &PolicyKind) -> Scheme {
    match kind {
        PolicyKind::Replication => Scheme::Replication,
        PolicyKind::Erasure { ndata, nparity, .. } => Scheme::Erasure { fragments: (ndata + nparity) as u32 },
    }
}

fn is_object_path(name: &str) -> bool {
    let mut parts = name.splitn(4, '/');
    parts.next() == Some("") && (0..3).all(|_| parts.next().is_some_and(|part| !part.is_empty()))
}

/// See [`DiskFileManager::yield_hashes`]. Lists one suffix at a time.
pub struct HashesIter {
    manager: Arc<DiskFileManager>,
    device_path: PathBuf,
    partition_dir: PathBuf,
    /// Still to come; the next one last.
    suffixes: Vec<Suffix>,
    want: Want<'static>,
    current: Option<OpenSuffix>,
    now: Timestamp,
    /// Of the hash dir that is looked at.
    names: Names,
}

struct OpenSuffix {
    suffix: Suffix,
    path: PathBuf,
    dir: OwnedFd,
    hash_dirs: Names,
    next: usize,
    found_files: bool,
}

impl HashesIter {
    fn open_next(&mut self) -> Option<OpenSuffix> {
        loop {
            let suffix = self.suffixes.pop()?;
            let path = self.partition_dir.join(suffix.to_string());
            if let Some((dir, mut hash_dirs)) = self.manager.open_listed(&path) {
                hash_dirs.sort();
                return Some(OpenSuffix { suffix, path, dir, hash_dirs, next: 0, found_files: false });
            }
            self.invalidate(suffix);
        }
    }

    /// There is nothing in the suffix: the next rehash removes it.
    fn invalidate(&self, suffix: Suffix) {
        if let Err(err) = invalidate_suffixes(&self.partition_dir, &self.device_path, &[suffix]) {
            self.manager.logger.error(err);
        }
    }

    fn examine(&mut self, current: &mut OpenSuffix, index: usize) -> Option<(ObjHash, TimestampSet)> {
        let name = current.hash_dirs.c_str(index);
        let cleaned = match self.manager.cleanup_at(
            &current.dir,
            name,
            &current.path,
            &mut self.names,
            self.now,
            self.want,
        ) {
            Ok(cleaned) => cleaned,
            Err(errno) => {
                // Its neighbours are still of use: Swift gives up on the partition here.
                let path = current.path.join(OsStr::from_bytes(current.hash_dirs.get(index)));
                if let Err(err) = self.manager.quarantine_unlistable(&path, errno) {
                    self.manager.logger.error(err);
                }
                return None;
            }
        };
        current.found_files |= cleaned.removed.len() < self.names.len();
        let timestamps = TimestampSet::of(&cleaned.info)?;
        let hash = ObjHash::parse(std::str::from_utf8(current.hash_dirs.get(index)).ok()?)?;
        Some((hash, timestamps))
    }
}

impl Iterator for HashesIter {
    type Item = (ObjHash, TimestampSet);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut current = match self.current.take() {
                Some(current) => current,
                None => self.open_next()?,
            };
            while current.next < current.hash_dirs.len() {
                current.next += 1;
                let index = current.next - 1;
                if let Some(found) = self.examine(&mut current, index) {
                    self.current = Some(current);
                    return Some(found);
                }
            }
            if !current.found_files {
                self.invalidate(current.suffix);
            }
        }
    }
}

/// The managers of all policies.
pub struct DiskFileRouter(BTreeMap<PolicyIndex, Arc<DiskFileManager>>);

impl DiskFileRouter {
    pub fn new(
        conf: &DiskFileConf,
        swift_conf: &SwiftConf,
        clock: &Clock,
        logger: &Logger,
        statsd: &Statsd,
    ) -> Self {
        let manager = |policy: &StoragePolicy| {
            let hash = swift_conf.hash.clone();
            let manager = DiskFileManager::new(
                conf.clone(),
                policy,
                hash,
                clock.clone(),
                logger.clone(),
                statsd.clone(),
            );
            (policy.index, manager)
        };
        DiskFileRouter(swift_conf.policies.iter().map(manager).collect())
    }

    pub fn get(&self, policy: PolicyIndex) -> Option<&Arc<DiskFileManager>> {
        self.0.get(&policy)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<DiskFileManager>> {
        self.0.values()
    }
}

impl DiskFileConf {
    /// Reads the options from the section of an object service.
    pub fn from_section(section: &Section, logger: &Logger) -> Result<Self, ConfigError> {
        let defaults = DiskFileConf::default();
        Ok(DiskFileConf {
            devices: section.str("devices", "/srv/node").into(),
            mount_check: section.bool("mount_check", true)?,
            disk_chunk_size: section.int("disk_chunk_size", defaults.disk_chunk_size)?,
            keep_cache_size: section.int("keep_cache_size", defaults.keep_cache_size)?,
            bytes_per_sync: section.int::<u64>("mb_per_sync", 512)? * 1024 * 1024,
            syncs_together: section.int("syncs_together", defaults.syncs_together)?,
            known_objects: section.int("known_objects", defaults.known_objects)?,
            reclaim_age: section.secs("reclaim_age", defaults.reclaim_age.as_secs_f64())?,
            commit_window: section.secs("commit_window", 60.0)?,
            replication_concurrency_per_device: replication_concurrency(section, logger)?,
            replication_lock_timeout: section.secs("replication_lock_timeout", 15.0)?,
            fallocate_reserve: section.percent_or_bytes("fallocate_reserve", "1%")?,
            disable_fallocate: section.bool("disable_fallocate", false)?,
        })
    }
}

fn replication_concurrency(section: &Section, logger: &Logger) -> Result<usize, ConfigError> {
    let concurrency = section.get("replication_concurrency_per_device").is_some();
    let one_per_device = section.get("replication_one_per_device").is_some();
    match (concurrency, one_per_device) {
        (false, true) => {
            logger.warning(
                "Option replication_one_per_device is deprecated and will be removed in a future version. \
                 Update your configuration to use option replication_concurrency_per_device.",
            );
            Ok(usize::from(section.bool("replication_one_per_device", true)?))
        }
        (concurrency, one_per_device) => {
            if concurrency && one_per_device {
                logger.warning(
                    "Option replication_one_per_device ignored as replication_concurrency_per_device is defined.",
                );
            }
            section.int("replication_concurrency_per_device", 1)
        }
    }
}
