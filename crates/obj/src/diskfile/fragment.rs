//! Fragments of EC policies on disk: their names, their commit, and their removal once they are where they belong.
//!
//! [`Writer::put`](super::Writer::put) leaves a fragment that no reader is shown, as `TIMESTAMP#FRAG.data`: enough other
//! nodes may never get theirs. Its data is on disk then, its name need not be: who answers 2xx commits or keeps it, and the
//! sync of that is the name's. Once enough others have theirs, the commit makes it the object's state:
//!
//! | step | a crash just after it leaves |
//! |---|---|
//! | see to it that hashes.invalid still names the suffix, on disk | the fragment without its commit |
//! | rename to `TIMESTAMP#FRAG#d.data` | one name or the other |
//! | sync the hash dir | the new version: only now the request may succeed |
//! | unlink what it supersedes | obsolete files, which every listing ignores and every cleanup removes |
//!
//! Swift does not name the suffix in hashes.invalid again, so that a rehash between a PUT and its commit keeps a hash
//! without the commit. Which of several fragments is the object's state is told in `ec.rs`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::Timestamp;
use common::fs::{self, Since, Staged, Step, fail};
use common::headers::X_OBJECT_SYSMETA_EC_FRAG_INDEX;
use ec::HEADER_LEN;
use ec::fragment::Header;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::Errno;
use serde_json::Value;

use super::cleanup::is_file_older;
use super::files::{Ext, Scheme, get_ondisk_files, make_on_disk_filename};
use super::hashes::{Invalidation, invalidate_suffixes, invalidate_suffixes_unsynced};
use super::listing::{Names, open_dir};
use super::{DiskFile, DiskFileError, DiskFileManager, FragPref, Metadata};

/// Looks at the headers of the fragments in an archive that is read from its start, each of a segment. Their payloads
/// have no checksums: only the ETag of the whole archive tells of those.
pub(super) struct HeaderCheck {
    fragment_len: usize,
    /// How much of the archive has been seen.
    seen: u64,
    header: [u8; HEADER_LEN],
}

/// Where in an archive a fragment begins that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFragment(u64);

impl BadFragment {
    pub fn reason(&self) -> String {
        format!("Invalid EC metadata at offset {:#x}", self.0)
    }
}

impl HeaderCheck {
    pub fn new(fragment_len: usize) -> Self {
        HeaderCheck { fragment_len, seen: 0, header: [0; HEADER_LEN] }
    }

    pub fn update(&mut self, mut data: &[u8]) -> Result<(), BadFragment> {
        while !data.is_empty() {
            let at = (self.seen % self.fragment_len as u64) as usize;
            let taken = match at {
                0..HEADER_LEN => {
                    let taken = data.len().min(HEADER_LEN - at);
                    self.header[at..at + taken].copy_from_slice(&data[..taken]);
                    if at + taken == HEADER_LEN && Header::parse(&self.header).is_err() {
                        return Err(BadFragment(self.seen - at as u64));
                    }
                    taken
                }
                _ => data.len().min(self.fragment_len - at),
            };
            self.seen += taken as u64;
            data = &data[taken..];
        }
        Ok(())
    }

    /// At the end of the archive: the last fragment must have a whole header too.
    pub fn finish(&self) -> Result<(), BadFragment> {
        match self.seen % self.fragment_len as u64 {
            begun if (1..HEADER_LEN as u64).contains(&begun) => Err(BadFragment(self.seen - begun)),
            _ => Ok(()),
        }
    }
}

/// The name of a fragment.
pub fn make_fragment_filename(timestamp: Timestamp, frag_index: u32, durable: bool) -> String {
    format!("{}#{frag_index}{}.data", timestamp.internal(), if durable { "#d" } else { "" })
}

impl DiskFileManager {
    pub fn is_erasure(&self) -> bool {
        self.scheme() != Scheme::Replication
    }

    /// A fragment index as a header or metadata tell it.
    pub fn validate_fragment_index(&self, text: &str) -> Result<u32, DiskFileError> {
        let index = common::config::parse_int::<u32>(text);
        let known = |index: &u32| match self.scheme() {
            Scheme::Replication => true,
            Scheme::Erasure { fragments } => *index < fragments,
        };
        index.filter(known).ok_or_else(|| DiskFileError::io("bad fragment index", text, Errno::INVAL))
    }

    /// Fragment preferences, `[{"timestamp": TIMESTAMP, "exclude": [FRAG, ...]}, ...]`.
    pub fn validate_frag_prefs(&self, prefs: &Value) -> Result<Arc<[FragPref]>, DiskFileError> {
        let bad = || DiskFileError::io("bad fragment preferences", prefs.to_string(), Errno::INVAL);
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let pref = |pref: &Value| {
            let timestamp = Timestamp::parse(&text(pref.get("timestamp")?)?).ok()?;
            let index = |index: &Value| common::config::parse_int::<u32>(&text(index)?);
            let exclude = pref.get("exclude")?.as_array()?.iter().map(index).collect::<Option<_>>()?;
            Some(FragPref { timestamp, exclude })
        };
        prefs.as_array().ok_or_else(bad)?.iter().map(|value| pref(value).ok_or_else(bad)).collect()
    }
}

/// A file that has its name. A fragment is still to be committed.
#[must_use = "a fragment is not the object's state before its commit"]
pub struct Placed {
    diskfile: DiskFile,
    fragment: Option<(Timestamp, u32, Invalidation)>,
}

impl Placed {
    pub(super) fn whole(diskfile: DiskFile) -> Self {
        Placed { diskfile, fragment: None }
    }

    pub(super) fn fragment(
        diskfile: DiskFile,
        timestamp: Timestamp,
        index: u32,
        invalidation: Invalidation,
    ) -> Self {
        Placed { diskfile, fragment: Some((timestamp, index, invalidation)) }
    }

    /// Whether it is still to be committed or kept.
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some()
    }

    /// Makes a fragment the object's state. Of a replication policy it is that already.
    pub fn commit(self) -> Result<(), DiskFileError> {
        self.finish_staged(true).finish()
    }

    /// Leaves a fragment without its commit, durable as it is.
    pub fn keep(self) -> Result<(), DiskFileError> {
        self.finish_staged(false).finish()
    }

    /// Either of them, as a work that stops where it needs a sync.
    pub fn finish_staged(self, commits: bool) -> Step<Result<(), DiskFileError>> {
        let Placed { diskfile, fragment } = self;
        match fragment {
            None => Step::Done(Ok(())),
            Some((timestamp, index, invalidation)) if commits => {
                diskfile.commit_fragment(timestamp, index, invalidation)
            }
            Some((.., invalidation)) => match fail::hit("keep.before_sync_dir") {
                Ok(()) => Step::waits(Kept { diskfile, invalidation }),
                Err(err) => Step::Done(Err(DiskFileError::write("cannot sync", diskfile.datadir(), err))),
            },
        }
    }
}

/// A fragment whose name must be durable, but is not the object's state.
struct Kept {
    diskfile: DiskFile,
    invalidation: Invalidation,
}

impl Staged<Result<(), DiskFileError>> for Kept {
    fn since(&self) -> Since<'_> {
        self.invalidation.since()
    }

    fn together(&self) -> usize {
        self.diskfile.manager().conf().syncs_together
    }

    fn sync(&self) -> io::Result<()> {
        fs::fsync_dirs(self.diskfile.datadir(), 0)
    }

    fn go_on(self: Box<Self>, synced: io::Result<()>) -> Step<Result<(), DiskFileError>> {
        let datadir = self.diskfile.datadir();
        Step::Done(synced.map_err(|err| DiskFileError::write("cannot sync", datadir, err)))
    }
}

/// A fragment that has the name of a committed one, which must be durable.
struct Committed {
    diskfile: DiskFile,
    invalidation: Invalidation,
    dir: OwnedFd,
    /// The name it had.
    uncommitted: PathBuf,
    target: PathBuf,
}

impl Committed {
    fn clean_up(&self, synced: io::Result<()>) -> Result<(), DiskFileError> {
        let failed = |err| not_durable(&self.target, err);
        synced.map_err(failed)?;
        fail::hit("commit.before_cleanup").map_err(failed)?;
        let relinked = self.diskfile.relink_committed(&self.uncommitted, &self.target);
        self.diskfile.clean_up(self.dir.as_fd(), relinked);
        Ok(())
    }
}

impl Staged<Result<(), DiskFileError>> for Committed {
    fn since(&self) -> Since<'_> {
        self.invalidation.since()
    }

    fn together(&self) -> usize {
        self.diskfile.manager().conf().syncs_together
    }

    fn sync(&self) -> io::Result<()> {
        fs::fsync(&self.dir)
    }

    fn go_on(self: Box<Self>, synced: io::Result<()>) -> Step<Result<(), DiskFileError>> {
        Step::Done(self.clean_up(synced))
    }
}

fn not_durable(target: &Path, err: io::Error) -> DiskFileError {
    DiskFileError::write("Problem making data file durable", target, err)
}

impl DiskFile {
    /// The index of the fragment that is about to be written, which the metadata tells; none of what is no fragment.
    pub(super) fn fragment_to_write(
        &self,
        ext: Ext,
        metadata: &mut Metadata,
    ) -> Result<Option<u32>, DiskFileError> {
        if ext != Ext::Data || self.manager().scheme() == Scheme::Replication {
            return Ok(None);
        }
        let index = match (metadata.get_str(X_OBJECT_SYSMETA_EC_FRAG_INDEX), self.frag_index) {
            (Some(text), _) => self.manager().validate_fragment_index(text)?,
            (None, Some(index)) => index,
            (None, None) => {
                return Err(DiskFileError::io("no fragment index for", self.datadir(), Errno::INVAL));
            }
        };
        if !metadata.contains(X_OBJECT_SYSMETA_EC_FRAG_INDEX) {
            metadata.insert(X_OBJECT_SYSMETA_EC_FRAG_INDEX, index.to_string());
        }
        Ok(Some(index))
    }

    /// Commits a fragment that a PUT of long ago has left.
    pub fn commit(&self, timestamp: Timestamp, frag_index: u32) -> Result<(), DiskFileError> {
        let place = &self.place;
        let suffix = place.hash.suffix();
        let invalidation = Invalidation::begin(place.partition_dir(), &place.device_path, &[suffix])?;
        self.clone().commit_fragment(timestamp, frag_index, invalidation).finish()
    }

    fn commit_fragment(
        self,
        timestamp: Timestamp,
        frag_index: u32,
        invalidation: Invalidation,
    ) -> Step<Result<(), DiskFileError>> {
        match self.rename_to_committed(timestamp, frag_index, invalidation) {
            Ok(Some(committed)) => Step::waits(committed),
            Ok(None) => Step::Done(Ok(())),
            Err(err) => Step::Done(Err(err)),
        }
    }

    /// `None` if it has been superseded.
    fn rename_to_committed(
        self,
        timestamp: Timestamp,
        frag_index: u32,
        mut invalidation: Invalidation,
    ) -> Result<Option<Committed>, DiskFileError> {
        let datadir = self.datadir();
        let uncommitted = datadir.join(make_fragment_filename(timestamp, frag_index, false));
        let target = datadir.join(make_fragment_filename(timestamp, frag_index, true));
        let renamed = invalidation.publish_one(|| {
            fail::hit("commit.before_rename")
                .and_then(|()| fs::rename_present(&uncommitted, &target))
                .map_err(|err| not_durable(&target, err))
        });
        match renamed {
            Err(DiskFileError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && self.is_superseded(timestamp) =>
            {
                return Ok(None);
            }
            renamed => renamed?,
        }
        let dir = match open_dir(CWD, datadir) {
            Ok(dir) => dir,
            // Somebody wrote a newer version, and it is gone too: we "succeeded" before that.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(DiskFileError::io("cannot open", datadir, errno)),
        };
        fail::hit("commit.before_sync_dir").map_err(|err| not_durable(&target, err))?;
        Ok(Some(Committed { diskfile: self, invalidation, dir, uncommitted, target }))
    }

    /// Whether a fragment is gone because something as new or newer is durable.
    fn is_superseded(&self, timestamp: Timestamp) -> bool {
        let mut names = Names::default();
        if open_dir(CWD, self.datadir()).and_then(|dir| names.read(dir)).is_err() {
            return false;
        }
        names.sort_descending();
        let files = get_ondisk_files(names.iter(), self.manager().scheme(), self.want());
        files.tombstone.is_some_and(|tombstone| tombstone.timestamp > timestamp)
            || files.durable_timestamp().is_some_and(|durable| durable >= timestamp)
    }

    /// Removes what has been reverted to where it belongs: the tombstone of `timestamp` or the fragment, and the meta
    /// file. A fragment without a commit stays until it is older than `nondurable_purge_delay`: its PUT may go on.
    ///
    /// The suffix is marked before, on disk: a node that is stopped in between and has the partition back later must not
    /// take itself for in sync. It is marked afterwards, too: somebody may have hashed it meanwhile.
    pub fn purge(
        &self,
        timestamp: Timestamp,
        frag_index: Option<u32>,
        nondurable_purge_delay: Duration,
        meta_timestamp: Option<Timestamp>,
    ) -> Result<(), DiskFileError> {
        let (place, datadir) = (&self.place, self.datadir());
        let suffixes = [place.hash.suffix()];
        invalidate_suffixes(place.partition_dir(), &place.device_path, &suffixes)?;
        let remove = |name: String| {
            let path = datadir.join(name);
            fs::remove_file(&path).map_err(|err| DiskFileError::io("cannot remove", path, err))
        };
        remove(make_on_disk_filename(timestamp, Ext::Tombstone, None))?;
        if let Some(meta) = meta_timestamp {
            remove(make_on_disk_filename(meta, Ext::Meta, None))?;
        }
        if let Some(index) = frag_index {
            let uncommitted = make_fragment_filename(timestamp, index, false);
            let now = self.manager().clock().now();
            if is_file_older(CWD, datadir.join(&uncommitted), now, nondurable_purge_delay) {
                remove(uncommitted)?;
            }
            remove(make_fragment_filename(timestamp, index, true))?;
            fs::remove_empty_dir(datadir).map_err(|err| DiskFileError::io("cannot remove", datadir, err))?;
        }
        invalidate_suffixes_unsynced(place.partition_dir(), &place.device_path, &suffixes)
    }
}
