//! hashes.pkl and hashes.invalid: which suffixes of a partition differ from a peer's, without reading every hash dir.
//!
//! ```text
//! PARTITION/hashes.pkl        pickle, protocol 2: {'valid': True, SUFFIX: MD5 | None, ..., 'updated': time}
//! PARTITION/hashes.invalid    a line SUFFIX for each change since: those hashes in hashes.pkl are stale
//! PARTITION/.lock             held to append to hashes.invalid, to consolidate both, to link a file, to write
//! ```
//!
//! The one rule: **when a file of an object is visible, and its suffix has a hash in hashes.pkl that was made without
//! it, then hashes.invalid names the suffix.** Otherwise no replicator would ever carry that file anywhere. So a writer
//!
//! 1. appends its suffix under the lock;
//! 2. syncs its own file and hashes.invalid, which the disk writes side by side;
//! 3. takes the lock again, appends once more if hashes.invalid has been consolidated meanwhile, and links.
//!
//! Swift appends without a sync and links after releasing the lock: a loss of power, or a rehash in between, can leave
//! a stale hash. Between 1 and 3 a crash leaves a suffix to be rehashed for nothing.
//!
//! Consolidation (`consolidate_hashes`) writes hashes.pkl with `None` for each suffix named, then truncates
//! hashes.invalid; a crash in between leaves the names to be consolidated again. Hashing works without the lock and
//! writes its result only if hashes.pkl is still what it started from; otherwise it starts over.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::digest::Md5;
use common::fs::{self, Since, fail};
use common::{ObjHash, Suffix, Timestamp};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::files::{OnDiskFiles, Scheme};
use super::listing::{Names, list_dir, open_dir};
use super::locks::{LOCK_TIMEOUT, Lock};
use super::manager::{DiskFileManager, TimestampSet};
use super::quarantine::{quarantine_dir_or_suffix, quarantine_dir_renamer};
use super::suffix_hashes::{HashesFile, SuffixHash, SuffixHashes};
use super::{DiskFileError, Want, quarantine};

pub(super) const HASH_FILE: &str = "hashes.pkl";
pub(super) const INVALIDATIONS_FILE: &str = "hashes.invalid";
/// How often a rehash starts over because somebody else wrote hashes.pkl. Swift recurses until its stack ends.
const MAX_ATTEMPTS: usize = 100;

/// The objects that a rehash has seen, by the suffix dirs that they are in.
#[derive(Default)]
pub struct SeenObjects {
    suffixes: HashSet<Suffix>,
    objects: Vec<(Suffix, ObjHash, TimestampSet)>,
}

impl SeenObjects {
    /// Those in some suffixes; and the suffixes that have not been seen.
    pub fn of(&self, suffixes: &[Suffix]) -> (Vec<(ObjHash, TimestampSet)>, Vec<Suffix>) {
        let unseen = suffixes.iter().copied().filter(|suffix| !self.suffixes.contains(suffix)).collect();
        let suffixes: HashSet<&Suffix> = suffixes.iter().collect();
        let seen = |suffix: &Suffix| suffixes.contains(suffix) && self.suffixes.contains(suffix);
        let wanted = self.objects.iter().filter(|(suffix, ..)| seen(suffix));
        (wanted.map(|&(_, hash, timestamps)| (hash, timestamps)).collect(), unseen)
    }
}

/// Not valid if there is no hashes.pkl, or none that can be read.
fn read_hashes(partition_dir: &Path) -> HashesFile {
    let pickled = std::fs::read(partition_dir.join(HASH_FILE));
    pickled.ok().and_then(|pickled| HashesFile::from_pickle(&pickled)).unwrap_or_else(HashesFile::invalid)
}

fn write_hashes(
    partition_dir: &Path,
    file: &mut HashesFile,
    now: f64,
    durable: bool,
) -> Result<(), DiskFileError> {
    // Always later than before, whatever the clock says: by this a rehash sees that another one has changed the file under it.
    file.updated = now.max(file.updated.next_up());
    // A crash leaves the old hashes.pkl or the new one, both right, or if it is not durable perhaps one that is cut short, which
    // is as good as none.
    let path = partition_dir.join(HASH_FILE);
    fs::write_file_via(&path, partition_dir, &file.to_pickle(), durable)
        .map_err(|err| DiskFileError::write("cannot write", path, err))
}

/// Brings hashes.pkl up to date with hashes.invalid.
fn consolidate_hashes(
    partition_dir: &Path,
    device_path: &Path,
    now: f64,
) -> Result<HashesFile, DiskFileError> {
    // Nothing to consolidate needs no lock: a hashes.pkl that is read later is as new as what has been taken out of
    // hashes.invalid.
    let unnamed = std::fs::metadata(partition_dir.join(INVALIDATIONS_FILE)).is_ok_and(|meta| meta.len() == 0);
    if unnamed {
        let file = read_hashes(partition_dir);
        if file.valid {
            return Ok(file);
        }
    }
    let lock = Lock::open(partition_dir, ".lock", device_path)?;
    lock.lock(LOCK_TIMEOUT)?;
    let mut file = read_hashes(partition_dir);
    let invalidations_path = partition_dir.join(INVALIDATIONS_FILE);
    let lines = match std::fs::read(&invalidations_path) {
        Ok(lines) if !lines.is_empty() => lines,
        Ok(_) => return Ok(file),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(file),
        Err(err) => return Err(DiskFileError::io("cannot read", invalidations_path, err)),
    };
    let mut stale = false;
    for line in lines.split(|&byte| byte == b'\n') {
        if let Some(suffix) = std::str::from_utf8(line).ok().and_then(|line| Suffix::parse(line.trim())) {
            file.hashes.0.insert(suffix, None);
            stale = true;
        }
    }
    if stale {
        // On disk before hashes.invalid is truncated, unless all the suffixes are to be hashed anyway: then it only tells
        // whoever hashes them meanwhile that there is more.
        let durable = file.valid;
        write_hashes(partition_dir, &mut file, now, durable)?;
    }
    // Not synced: a crash brings the names back, which costs rehashing what is right already.
    let truncated = fail::hit("hashes.truncate_invalid")
        .and_then(|()| std::fs::OpenOptions::new().write(true).truncate(true).open(&invalidations_path));
    match truncated {
        Ok(_) => Ok(file),
        Err(err) => Err(DiskFileError::io("cannot truncate", invalidations_path, err)),
    }
}

/// A suffix named in hashes.invalid, on disk; and the means to make a file visible only while it is named there.
pub(super) struct Invalidation {
    lock: Lock,
    file: std::fs::File,
    path: PathBuf,
    lines: Vec<u8>,
    /// Where our lines start.
    at: u64,
    /// Whether hashes.invalid had to be made.
    created: bool,
    /// When the file was opened, and nothing done yet.
    opened: Instant,
}

impl Invalidation {
    /// Appends the suffixes and waits until they are on disk.
    pub fn begin(
        partition_dir: &Path,
        device_path: &Path,
        suffixes: &[Suffix],
    ) -> Result<Self, DiskFileError> {
        let invalidation = Self::begin_unsynced(partition_dir, device_path, suffixes)?;
        // A crash before the sync loses the names, and with them nothing: no file is linked yet.
        invalidation.sync_begun().map_err(|err| invalidation.failed("cannot sync", err))?;
        Ok(invalidation)
    }

    /// Appends the suffixes, to be followed by [`Invalidation::sync_begun`].
    pub fn begin_unsynced(
        partition_dir: &Path,
        device_path: &Path,
        suffixes: &[Suffix],
    ) -> Result<Self, DiskFileError> {
        let lock = Lock::open(partition_dir, ".lock", device_path)?;
        lock.lock(LOCK_TIMEOUT)?;
        let path = partition_dir.join(INVALIDATIONS_FILE);
        let (file, created) = open_invalidations(&path)?;
        let opened = Instant::now();
        let lines: String = suffixes.iter().map(|suffix| format!("{suffix}\n")).collect();
        let lines = lines.into_bytes();
        let mut invalidation = Invalidation { lock, file, path, lines, at: 0, created, opened };
        invalidation.append()?;
        invalidation.lock.unlock();
        Ok(invalidation)
    }

    /// Has the disk begin with what [`Invalidation::sync_begun`] waits for: another sync may take it along meanwhile.
    pub fn begin_sync(&self) {
        fs::write_ahead(&self.file, self.at, self.lines.len() as u64);
    }

    /// Waits until the suffixes are on disk.
    pub fn sync_begun(&self) -> std::io::Result<()> {
        fs::fdatasync_shared(&self.file)?;
        if self.created { fs::fsync_dir(self.path.parent().unwrap_or(&self.path)) } else { Ok(()) }
    }

    /// For [`fs::sync_with_others`].
    pub fn since(&self) -> Since<'_> {
        Since { file: self.file.as_fd(), opened: self.opened }
    }

    /// Calls `link`, which makes a file visible, at a moment when the suffix is named in hashes.invalid and nobody can
    /// take it out of there.
    pub fn publish(mut self, link: impl FnOnce() -> Result<(), DiskFileError>) -> Result<(), DiskFileError> {
        self.publish_one(link)
    }

    /// The same for one of several files.
    pub fn publish_one<T, E: From<DiskFileError>>(
        &mut self,
        link: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.lock.lock(LOCK_TIMEOUT)?;
        let mut there = [0; 4];
        let first_line = rustix::io::pread(&self.file, &mut there, self.at);
        if first_line != Ok(4) || !self.lines.starts_with(&there) {
            // Consolidated meanwhile, and perhaps rehashed without our file.
            self.append()?;
            fs::fdatasync_shared(&self.file).map_err(|err| self.failed("cannot sync", err))?;
        }
        let linked = link();
        // An error before this keeps the lock until `self` goes.
        self.lock.unlock();
        linked
    }

    fn append(&mut self) -> Result<(), DiskFileError> {
        let written = fail::hit("hashes.append_invalid").and_then(|()| self.file.write_all(&self.lines));
        let written = written.and_then(|()| self.file.stream_position());
        let end = written.map_err(|source| self.failed("cannot append to", source))?;
        self.at = end - self.lines.len() as u64;
        Ok(())
    }

    fn failed(&self, what: &'static str, source: std::io::Error) -> DiskFileError {
        DiskFileError::write(what, &self.path, source)
    }
}

/// Opens hashes.invalid for appending; tells whether it had to be made.
fn open_invalidations(path: &Path) -> Result<(std::fs::File, bool), DiskFileError> {
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
    let (fd, created) = match openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let hit = fail::hit("hashes.create_invalid");
            hit.map_err(|err| DiskFileError::write("cannot create", path, err))?;
            (openat(CWD, path, flags | OFlags::CREATE, Mode::from_raw_mode(0o644)), true)
        }
        result => (result, false),
    };
    let fd = fd.map_err(|errno| DiskFileError::write("cannot open", path, errno))?;
    Ok((fd.into(), created))
}

/// Marks suffixes to be rehashed.
pub(super) fn invalidate_suffixes(
    partition_dir: &Path,
    device_path: &Path,
    suffixes: &[Suffix],
) -> Result<(), DiskFileError> {
    Invalidation::begin(partition_dir, device_path, suffixes).map(drop)
}

/// The same for who has only removed files: a crash may leave a hash of what is gone, which replicators see through.
pub(super) fn invalidate_suffixes_unsynced(
    partition_dir: &Path,
    device_path: &Path,
    suffixes: &[Suffix],
) -> Result<(), DiskFileError> {
    Invalidation::begin_unsynced(partition_dir, device_path, suffixes).map(drop)
}

impl DiskFileManager {
    /// The hashes of all suffixes of a partition: from hashes.pkl, rehashing what is stale or in `recalculate`.
    /// `do_listdir` also looks for suffixes that hashes.pkl does not know. Also returns how many were hashed.
    pub fn rehash(
        &self,
        device_path: &Path,
        partition: u32,
        recalculate: &[Suffix],
        do_listdir: bool,
    ) -> Result<(usize, SuffixHashes), DiskFileError> {
        self.rehash_noting(device_path, partition, recalculate, do_listdir, &mut None)
    }

    /// Hashes `suffixes` anew, and lists what is in them as [`DiskFileManager::yield_hashes`] would right after.
    pub fn rehash_and_list(
        &self,
        device_path: &Path,
        partition: u32,
        suffixes: &[Suffix],
    ) -> Result<(usize, (SuffixHashes, SeenObjects)), DiskFileError> {
        let mut seen = Some(SeenObjects::default());
        let (hashed, hashes) = self.rehash_noting(device_path, partition, suffixes, false, &mut seen)?;
        Ok((hashed, (hashes, seen.unwrap_or_default())))
    }

    fn rehash_noting(
        &self,
        device_path: &Path,
        partition: u32,
        recalculate: &[Suffix],
        do_listdir: bool,
        seen: &mut Option<SeenObjects>,
    ) -> Result<(usize, SuffixHashes), DiskFileError> {
        let partition_dir = self.partition_dir(device_path, partition);
        let mut hashed = 0;
        for _ in 0..MAX_ATTEMPTS {
            if let Some(seen) = seen {
                *seen = SeenObjects::default();
            }
            let original = match consolidate_hashes(&partition_dir, device_path, self.clock().unix_secs()) {
                Ok(file) => file,
                Err(err) => {
                    self.logger().warning(format_args!(
                        "Unable to read {}: {err}",
                        partition_dir.join(HASH_FILE).display()
                    ));
                    read_hashes(&partition_dir)
                }
            };
            if original.is_settled() && recalculate.is_empty() && !do_listdir {
                return Ok((hashed, original.hashes));
            }
            let mut file = match original.valid {
                true => original.clone(),
                false => HashesFile { valid: true, ..HashesFile::invalid() },
            };
            let do_listdir = do_listdir || !original.valid;
            hashed += self.hash_stale(&partition_dir, &mut file, recalculate, do_listdir, seen)?;
            // Swift writes the same again after each rehash or listing.
            if original.valid && file.hashes == original.hashes {
                return Ok((hashed, file.hashes));
            }
            let lock = Lock::open(&partition_dir, ".lock", device_path)?;
            lock.lock(LOCK_TIMEOUT)?;
            if read_hashes(&partition_dir) == original {
                // Where hashes have only been added a crash costs the hashing, and no more. Swift syncs that too.
                let durable = original.valid && original.hashes.is_corrected_by(&file.hashes);
                write_hashes(&partition_dir, &mut file, self.clock().unix_secs(), durable)?;
                return Ok((hashed, file.hashes));
            }
        }
        Err(DiskFileError::io("hashes.pkl keeps changing in", partition_dir, Errno::BUSY))
    }

    fn hash_stale(
        &self,
        partition_dir: &Path,
        file: &mut HashesFile,
        recalculate: &[Suffix],
        do_listdir: bool,
        seen: &mut Option<SeenObjects>,
    ) -> Result<usize, DiskFileError> {
        let mut hashed = 0;
        let hashes = &mut file.hashes.0;
        if do_listdir {
            let names = list_dir(partition_dir)
                .map_err(|errno| DiskFileError::io("cannot list", partition_dir, errno))?;
            for suffix in names.iter().filter_map(|name| Suffix::parse(std::str::from_utf8(name).ok()?)) {
                hashes.entry(suffix).or_insert(None);
            }
        }
        for &suffix in recalculate {
            hashes.insert(suffix, None);
        }
        let mut gone = Vec::new();
        if hashes.values().all(Option::is_some) {
            return Ok(hashed);
        }
        // Paths from here on are short: each is looked up many thousand times.
        let partition_fd = match open_dir(CWD, partition_dir) {
            Ok(fd) => Some(fd),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(DiskFileError::io("cannot open", partition_dir, errno)),
        };
        for (&suffix, hash) in hashes.iter_mut().filter(|(_, hash)| hash.is_none()) {
            match self.hash_suffix(partition_fd.as_ref(), partition_dir, suffix, seen.as_mut()) {
                Ok(Some(new)) => {
                    *hash = Some(new);
                    hashed += 1;
                }
                Ok(None) => gone.push(suffix),
                Err(err) => self.logger().error(format_args!("Error hashing suffix: {err}")),
            }
        }
        for suffix in gone {
            hashes.shift_remove(&suffix);
        }
        Ok(hashed)
    }

    /// The hash of one suffix dir, cleaning up its hash dirs on the way; `None` if it is no directory, or was empty and
    /// has been removed.
    fn hash_suffix(
        &self,
        partition_fd: Option<&OwnedFd>,
        partition_dir: &Path,
        suffix: Suffix,
        mut seen: Option<&mut SeenObjects>,
    ) -> Result<Option<SuffixHash>, DiskFileError> {
        let suffix_dir = &partition_dir.join(suffix.to_string());
        let Some(partition_fd) = partition_fd else { return Ok(None) };
        let dir = match open_dir(partition_fd, suffix.to_string()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(DiskFileError::io("cannot open", suffix_dir, errno)),
        };
        let mut hash_dirs = Names::default();
        match hash_dirs.read(&dir) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.map_err(|errno| DiskFileError::io("cannot list", suffix_dir, errno))?,
        }
        hash_dirs.sort();
        let now = self.clock().now();
        let mut hasher = SuffixHasher::new(self.scheme());
        let mut files = Names::default();
        let mut any_files = false;
        for index in 0..hash_dirs.len() {
            match self.cleanup_at(&dir, hash_dirs.c_str(index), suffix_dir, &mut files, now, Want::default())
            {
                Ok(cleaned) => {
                    any_files |= cleaned.removed.len() < files.len();
                    hasher.update(&cleaned.info);
                    if let Some(seen) = &mut seen
                        && let Some(timestamps) = TimestampSet::of(&cleaned.info)
                        && let Some(hash) = ObjHash::parse(&hash_dirs.lossy(index))
                    {
                        seen.objects.push((suffix, hash, timestamps));
                    }
                }
                Err(errno) => {
                    let path = suffix_dir.join(OsStr::new(&hash_dirs.lossy(index)));
                    self.quarantine_unlistable(&path, errno)?;
                }
            }
        }
        // Swift: tries to remove the suffix dir in any case; it goes only if it is empty.
        if !any_files && fs::remove_empty_dir(suffix_dir).is_ok_and(|removed| removed) {
            return Ok(None);
        }
        if let Some(seen) = seen {
            seen.suffixes.insert(suffix);
        }
        Ok(Some(hasher.finish()))
    }

    /// Quarantines an entry of a suffix dir which could not be listed as a hash dir, or passes the error on.
    pub(super) fn quarantine_unlistable(&self, path: &Path, errno: Errno) -> Result<(), DiskFileError> {
        // DEVICE/objects/PARTITION/SUFFIX/HASH
        let Some(device_path) = path.ancestors().nth(4) else {
            return Err(DiskFileError::io("cannot list", path, errno));
        };
        let (from, to, why) = match errno {
            Errno::NOTDIR => {
                (path.to_owned(), quarantine_dir_renamer(device_path, path)?, "it is not a directory")
            }
            // Bad sectors show like this; they may lie below the hash dir or below the suffix.
            Errno::NODATA | Errno::UCLEAN => {
                let (from, to) = quarantine_dir_or_suffix(device_path, path)?;
                (from, to, "it could not be listed")
            }
            errno => return Err(DiskFileError::io("cannot list", path, errno)),
        };
        self.logger().error(quarantine::message(&from, &to, why));
        Ok(())
    }
}

/// Swift: `_update_suffix_hashes`. The order of the updates within an object is part of the format.
enum SuffixHasher {
    Whole(Md5),
    Fragments(Vec<(Option<u32>, Md5)>),
}

impl SuffixHasher {
    fn new(scheme: Scheme) -> Self {
        match scheme {
            Scheme::Replication => SuffixHasher::Whole(Md5::new()),
            Scheme::Erasure { .. } => SuffixHasher::Fragments(Vec::new()),
        }
    }

    fn update(&mut self, files: &OnDiskFiles) {
        for info in [&files.meta, &files.tombstone].into_iter().flatten() {
            self.add(None, info.timestamp, info.ext.as_str());
        }
        match self {
            SuffixHasher::Whole(_) => {
                if let Some(data) = &files.data {
                    self.add(None, data.timestamp, data.ext.as_str());
                }
            }
            SuffixHasher::Fragments(_) => {
                for info in files.frag_sets.iter().flatten() {
                    self.add(info.frag_index, info.timestamp, "");
                }
                if let Some(durable) = files.durable_frag_set {
                    self.add(None, files.frag_sets[durable][0].timestamp, ".durable");
                }
            }
        }
        if let Some(ctype) = files.ctype.and_then(|info| info.ctype_timestamp) {
            self.add(None, ctype, "_ctype");
        }
    }

    fn add(&mut self, key: Option<u32>, timestamp: Timestamp, ext: &str) {
        let md5 = match self {
            SuffixHasher::Whole(md5) => md5,
            SuffixHasher::Fragments(hashers) => {
                let at = hashers.iter().position(|(index, _)| *index == key).unwrap_or_else(|| {
                    hashers.push((key, Md5::new()));
                    hashers.len() - 1
                });
                &mut hashers[at].1
            }
        };
        md5.update(timestamp.internal().as_bytes());
        md5.update(ext.as_bytes());
    }

    fn finish(self) -> SuffixHash {
        match self {
            SuffixHasher::Whole(md5) => SuffixHash::Whole(md5.finalize().into()),
            SuffixHasher::Fragments(hashers) => SuffixHash::Fragments(
                hashers.into_iter().map(|(index, md5)| (index, md5.hexdigest())).collect(),
            ),
        }
    }
}
