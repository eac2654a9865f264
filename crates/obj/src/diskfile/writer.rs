//! Writing an object file: PUT (`.data`), POST (`.meta`) and DELETE (`.ts`) take the same steps.
//!
//! | step | a crash just after it leaves |
//! |---|---|
//! | make the hash dir, open a file without a name in it (O_TMPFILE) | an empty hash dir, which the next rehash removes |
//! | write data and metadata | the same: a file without a name is gone |
//! | name the suffix in hashes.invalid | the same, or a suffix to be rehashed for nothing |
//! | sync the file, hashes.invalid, and the parent of each directory made; compare the MD5 or checksum | the same |
//! | link it under its name, while the suffix is named in hashes.invalid | the old version or the new one, whole |
//! | sync the hash dir | the new version: only now the request may succeed |
//! | unlink what it supersedes | obsolete files, which every listing ignores and every cleanup removes |
//!
//! A fragment of an EC policy is not what readers see before its commit (`fragment.rs`), which does the last two steps.
//!
//! Long data goes past the page cache, out of which it would be dropped in the end, where the file system can (`DirectWrites`).
//!
//! Where several writes wait for a disk (`syncs_together`), one `syncfs` stands for the syncs before the link, and one for those
//! after it: `common::fs` tells when.
//!
//! Swift syncs no parents of new directories and hashes.invalid neither. Where the file system has no O_TMPFILE, the
//! file is made in `tmp[-N]` and renamed; a crash leaves it there.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::Timestamp;
use common::config::FallocateReserve;
use common::digest::{Checksum, Md5Stream};
use common::fs::{self, DirectWrites, Since, Staged, Step, TmpFile, fail};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::CWD;
use rustix::io::Errno;

use super::files::{Ext, make_on_disk_filename};
use super::fragment::{Placed, make_fragment_filename};
use super::hashes::Invalidation;
use super::listing::open_dir;
use super::metadata::write_metadata;
use super::{DiskFile, DiskFileError, Metadata, SMALL_OBJECT};

/// Of a file that waits for its company before it is synced, the disk begins to write such pieces at once.
const WRITTEN_EARLY: u64 = 2 << 20;

/// A file being written. Nobody sees it before [`Writer::put`]; dropping it leaves nothing behind.
pub struct Writer {
    diskfile: DiskFile,
    file: TmpFile,
    ext: Ext,
    md5: Option<Md5Stream>,
    /// What the MD5 must be for the file to get its name.
    expected_etag: Option<String>,
    /// In the place of the MD5, and what it must be.
    checksum: Option<(Checksum, String)>,
    /// How far the MD5 has got ahead of what is written.
    hashed: u64,
    upload_size: u64,
    last_sync: u64,
    /// Up to where the kernel has been told to write; `None`: that is left to the sync.
    written_early: Option<u64>,
    /// Past the page cache.
    direct: Option<DirectWrites>,
    /// Others wait for the same sync, and all for each other.
    has_company: bool,
    write_time: Duration,
}

impl Writer {
    pub(super) fn open(diskfile: &DiskFile, size: Option<u64>, ext: Ext) -> Result<Self, DiskFileError> {
        let manager = diskfile.manager();
        let datadir = diskfile.datadir();
        let use_linkat = manager.use_linkat.load(Ordering::Relaxed);
        let tmp_dir = manager.tmp_dir(diskfile.device_path());
        let file = TmpFile::create_below(diskfile.device_path(), datadir, &tmp_dir, use_linkat)
            .map_err(|err| DiskFileError::write("cannot make a file in", datadir, err))?;
        if use_linkat && file.is_named() {
            manager.logger().debug(format_args!("No O_TMPFILE in {}: using named files", datadir.display()));
            manager.use_linkat.store(false, Ordering::Relaxed);
        }
        let writer = Writer {
            diskfile: diskfile.clone(),
            file,
            ext,
            md5: Some(Md5Stream::new()),
            expected_etag: None,
            checksum: None,
            hashed: 0,
            upload_size: 0,
            last_sync: 0,
            written_early: None,
            direct: None,
            has_company: false,
            write_time: Duration::ZERO,
        };
        // Deletes are always possible: they are what makes room.
        if ext != Ext::Tombstone {
            writer.reserve(size.unwrap_or(0))?;
        }
        Ok(writer)
    }

    /// Leaves computing the MD5 to the caller.
    pub fn without_etag(mut self) -> Self {
        self.md5 = None;
        self
    }

    /// Leaves the MD5 to whoever sends the data, and says what their checksum is ([`Writer::expecting_checksum`]).
    pub fn with_checksum(mut self) -> Self {
        self.md5 = None;
        self.checksum = Some((Checksum::default(), String::new()));
        self
    }

    /// Leaves computing the MD5 to when it is asked for, or to others that are asked before.
    pub fn patient(mut self, size: u64) -> Self {
        self.md5 = Some(Md5Stream::patient(usize::try_from(size).unwrap_or(usize::MAX)));
        self
    }

    /// Of data all of which the MD5 has been given already.
    pub fn hashed_by(mut self, md5: Md5Stream, size: u64) -> Self {
        self.md5 = Some(md5);
        self.hashed = size;
        self
    }

    /// Is synced together with others that wait for that, though it may not be small.
    pub fn syncs_with_others(mut self) -> Self {
        self.has_company = true;
        self
    }

    /// Has the disk begin to write before the sync.
    pub fn writes_early(mut self) -> Self {
        self.written_early = Some(0);
        self
    }

    /// Writes past the page cache, where the file system can.
    pub fn writes_direct(mut self) -> Self {
        self.direct = DirectWrites::begin(self.file.file());
        self
    }

    /// Sees to it that there is room, and that enough stays free. Without a size Swift takes just the reserve for
    /// enough; with one it does not.
    fn reserve(&self, size: u64) -> Result<(), DiskFileError> {
        let conf = self.diskfile.manager().conf();
        let reserve = conf.fallocate_reserve;
        let file = self.file.file();
        let reserved = match size {
            0 => fs::check_reserve(file, 0, just_enough(reserve)),
            _ if conf.disable_fallocate => Ok(()),
            // What is written at once is allocated at once.
            1..=SMALL_OBJECT => fs::check_reserve(file, size, reserve),
            _ => fs::fallocate(file, size, reserve),
        };
        reserved.map_err(|err| self.failed("cannot reserve space in", err))
    }

    /// Gives what is about to be written to the MD5, which keeps it if it is patient: until somebody asks for the digest, others
    /// that hash can take this stream along.
    pub fn hash_ahead(&mut self, chunks: &[Bytes]) {
        if let Some(md5) = &mut self.md5 {
            chunks.iter().for_each(|chunk| md5.update(chunk.clone()));
        }
        self.hashed = self.upload_size + chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    }

    pub fn write(&mut self, chunk: Bytes) -> Result<(), DiskFileError> {
        let began = Instant::now();
        if let Some(md5) = self.md5.as_mut().filter(|_| self.upload_size >= self.hashed) {
            md5.update(chunk.clone());
        }
        if let Some((checksum, _)) = &mut self.checksum {
            checksum.update(&chunk);
        }
        let appended = self.append(&chunk);
        self.write_time += began.elapsed();
        appended
    }

    /// Writes without computing the MD5.
    pub(super) fn append(&mut self, chunk: &[u8]) -> Result<(), DiskFileError> {
        let written = fail::hit("put.write").and_then(|()| match &mut self.direct {
            Some(direct) => direct.write(self.file.file(), chunk),
            None => self.file.file_mut().write_all(chunk),
        });
        written.map_err(|err| self.failed("cannot write to", err))?;
        self.upload_size += chunk.len() as u64;
        if self.direct.is_some() {
            return Ok(());
        }
        let unsynced = self.upload_size - self.last_sync;
        if unsynced > 0 && unsynced >= self.diskfile.manager().conf().bytes_per_sync {
            fs::fdatasync(self.file.file()).map_err(|err| self.failed("cannot sync", err))?;
            fs::drop_cache(self.file.file(), self.last_sync, unsynced);
            self.last_sync = self.upload_size;
        }
        if let Some(from) = self.written_early.filter(|from| self.upload_size - from >= WRITTEN_EARLY) {
            fs::write_ahead(self.file.file(), from, self.upload_size - from);
            self.written_early = Some(self.upload_size);
        }
        Ok(())
    }

    /// Has the disk begin with all that is written, for who has an MD5 to compute before the sync.
    pub fn begin_sync(&self) {
        if self.direct.is_some() {
            return;
        }
        let unsynced = self.upload_size - self.last_sync;
        if unsynced > SMALL_OBJECT {
            fs::write_ahead(self.file.file(), self.last_sync, unsynced);
        }
    }

    fn syncs_together(&self) -> usize {
        self.diskfile.manager().conf().syncs_together
    }

    /// The names of directories that were made, so many from the hash dir upwards.
    fn sync_suffix_dir(&self, made: usize) -> io::Result<()> {
        fs::fsync_dirs(self.diskfile.place.suffix_dir(), made - 1)
    }

    /// `None` if it is gone.
    fn open_datadir(&self) -> Result<Option<OwnedFd>, DiskFileError> {
        match open_dir(CWD, self.diskfile.datadir()) {
            Ok(dir) => Ok(Some(dir)),
            // Somebody wrote a newer version, and it is gone too: we "succeeded" before that.
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(DiskFileError::io("cannot open", self.diskfile.datadir(), errno)),
        }
    }

    fn failed(&self, what: &'static str, err: io::Error) -> DiskFileError {
        DiskFileError::write(what, self.diskfile.datadir(), err)
    }

    pub fn upload_size(&self) -> u64 {
        self.upload_size
    }

    /// How long writing has taken so far.
    pub fn write_time(&self) -> Duration {
        self.write_time
    }

    /// The MD5 of what has been written so far, in hex; may have to compute it. Empty after [`Writer::without_etag`] and
    /// [`Writer::with_checksum`].
    pub fn etag(&self) -> String {
        self.md5.as_ref().map_or(String::new(), Md5Stream::hexdigest)
    }

    /// Has [`Writer::put`] compare the MD5 with what the metadata is to say. It does so when the file is on disk: who has waited
    /// for the disk meanwhile has data to be hashed together.
    pub fn expect_etag(&mut self, etag: &str) {
        self.expected_etag = Some(etag.to_owned());
    }

    /// What the checksum must be for the file to get its name.
    pub fn expecting_checksum(mut self, expected: String) -> Self {
        self.checksum = self.checksum.map(|(checksum, _)| (checksum, expected));
        self
    }

    fn is_as_expected(&self) -> bool {
        match &self.checksum {
            Some((checksum, expected)) => checksum.hexdigest() == *expected,
            None => self.expected_etag.as_ref().is_none_or(|expected| *expected == self.etag()),
        }
    }

    /// Makes the file durable and visible under the name that the metadata's `X-Timestamp` says (for a POST, its
    /// `Content-Type-Timestamp` too), and removes what it supersedes, but for a fragment: there the name is not durable yet,
    /// and all else is left to [`Placed::commit`]. `name` is added to the metadata.
    pub fn put(self, metadata: Metadata) -> Result<Placed, DiskFileError> {
        self.put_staged(metadata).finish()
    }

    /// The same as a work that stops where it needs a sync.
    pub fn put_staged(self, metadata: Metadata) -> Step<Result<Placed, DiskFileError>> {
        match self.write_metadata(metadata) {
            Ok(unlinked) => Step::waits(unlinked),
            Err(err) => Step::Done(Err(err)),
        }
    }

    fn write_metadata(mut self, mut metadata: Metadata) -> Result<Unlinked, DiskFileError> {
        if let Some(direct) = self.direct.take() {
            direct.finish(self.file.file()).map_err(|err| self.failed("cannot write to", err))?;
        }
        let (timestamp, ctype) = self.timestamps(&metadata)?;
        let frag_index = self.diskfile.fragment_to_write(self.ext, &mut metadata)?;
        let filename = match frag_index {
            Some(index) => make_fragment_filename(timestamp, index, false),
            None => make_on_disk_filename(timestamp, self.ext, ctype),
        };
        if let Some(name) = self.diskfile.name() {
            metadata.insert("name", name);
        }
        let target = self.diskfile.datadir().join(filename);
        write_metadata(self.file.file(), &metadata).map_err(|err| match Errno::from_io_error(&err) {
            Some(Errno::OPNOTSUPP) => DiskFileError::XattrNotSupported,
            _ => self.failed("cannot write metadata in", err),
        })?;
        let place = &self.diskfile.place;
        let suffixes = [place.hash.suffix()];
        let invalidation =
            Invalidation::begin_unsynced(place.partition_dir(), &place.device_path, &suffixes)?;
        let fragment = frag_index.map(|index| (timestamp, index));
        Ok(Unlinked { writer: self, target, fragment, invalidation })
    }

    /// Of the write, and of its content-type.
    fn timestamps(&self, metadata: &Metadata) -> Result<(Timestamp, Option<Timestamp>), DiskFileError> {
        let timestamp = |name| metadata.get_str(name).map(Timestamp::parse);
        let bad =
            || DiskFileError::io("bad timestamp in metadata for", self.diskfile.datadir(), Errno::INVAL);
        let Some(Ok(put)) = timestamp("X-Timestamp") else { return Err(bad()) };
        Ok((put, timestamp("Content-Type-Timestamp").transpose().map_err(|_| bad())?))
    }
}

fn is_gone(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(err) }
}

/// Data, metadata and the suffix in hashes.invalid are written. They must be durable before there is a name.
struct Unlinked {
    writer: Writer,
    target: PathBuf,
    /// Its timestamp and index, if it is one.
    fragment: Option<(Timestamp, u32)>,
    invalidation: Invalidation,
}

impl Unlinked {
    fn link(mut self, synced: io::Result<()>) -> Result<Linked, DiskFileError> {
        let Unlinked { mut writer, target, .. } = self;
        synced.map_err(|err| writer.failed("cannot sync a file in", err))?;
        writer.file.dirs_are_durable();
        if !writer.is_as_expected() {
            return Err(DiskFileError::WrongEtag);
        }
        // A page of a small object costs less to keep than to read again.
        if writer.upload_size > SMALL_OBJECT {
            fs::drop_cache(writer.file.file(), 0, writer.upload_size);
        }
        let dirs_created = self.invalidation.publish_one(|| {
            let linked = fail::hit("put.before_link").and_then(|()| writer.file.link(&target));
            linked.map_err(|err| DiskFileError::write("cannot link", &target, err))
        })?;
        let dir = match self.fragment {
            // Its name is made durable by its commit, or by `Placed::keep`, which look after the rest too.
            Some(_) => None,
            None => writer.open_datadir()?,
        };
        if dir.is_some() || dirs_created > 0 {
            let hit = fail::hit("put.before_sync_dir");
            hit.map_err(|err| writer.failed("cannot sync the directories of", err))?;
        }
        let placed = match self.fragment {
            Some((timestamp, index)) => {
                Placed::fragment(writer.diskfile.clone(), timestamp, index, self.invalidation)
            }
            None => Placed::whole(writer.diskfile.clone()),
        };
        Ok(Linked { writer, target, dir, dirs_created, placed })
    }
}

impl Staged<Result<Placed, DiskFileError>> for Unlinked {
    fn since(&self) -> Since<'_> {
        self.writer.file.since()
    }

    fn together(&self) -> usize {
        // Nobody else is to wait for the pages of a large object.
        let alone = self.writer.upload_size > SMALL_OBJECT && !self.writer.has_company;
        if alone { 0 } else { self.writer.syncs_together() }
    }

    fn sync(&self) -> io::Result<()> {
        // Written beside the file, it is mostly in the journal that the file's sync waits for: one wait instead of two.
        self.invalidation.begin_sync();
        fs::fsync(self.writer.file.file())?;
        self.invalidation.sync_begun()?;
        match self.writer.file.dirs_created() {
            0 => Ok(()),
            // Those that a rehash has removed meanwhile, being empty, are made again by the link, and synced after it.
            made => self.writer.sync_suffix_dir(made).or_else(is_gone),
        }
    }

    fn go_on(self: Box<Self>, synced: io::Result<()>) -> Step<Result<Placed, DiskFileError>> {
        match self.link(synced) {
            Ok(linked) if linked.needs_sync() => Step::waits(linked),
            Ok(linked) => Step::Done(linked.clean_up(Ok(()))),
            Err(err) => Step::Done(Err(err)),
        }
    }
}

/// The file has its name, which must be durable before anybody is told.
struct Linked {
    writer: Writer,
    target: PathBuf,
    /// The hash dir, unless somebody has removed it; not of a fragment.
    dir: Option<OwnedFd>,
    /// That the link had to make again, from the hash dir upwards.
    dirs_created: usize,
    placed: Placed,
}

impl Linked {
    fn needs_sync(&self) -> bool {
        self.dir.is_some() || self.dirs_created > 0
    }

    fn clean_up(self, synced: io::Result<()>) -> Result<Placed, DiskFileError> {
        let writer = &self.writer;
        synced.map_err(|err| writer.failed("cannot sync the directories of", err))?;
        if self.dir.is_none() && !self.placed.is_fragment() {
            return Ok(self.placed);
        }
        fail::hit("put.before_cleanup").map_err(|err| writer.failed("cannot clean up", err))?;
        let relinked = writer.diskfile.relink(&self.target);
        if let Some(dir) = self.dir {
            writer.diskfile.clean_up(dir.as_fd(), relinked);
        }
        Ok(self.placed)
    }
}

impl Staged<Result<Placed, DiskFileError>> for Linked {
    fn since(&self) -> Since<'_> {
        self.writer.file.since()
    }

    fn together(&self) -> usize {
        self.writer.syncs_together()
    }

    fn sync(&self) -> io::Result<()> {
        if let Some(dir) = &self.dir {
            fs::fsync(dir)?;
        }
        match self.dirs_created {
            0 => Ok(()),
            made => self.writer.sync_suffix_dir(made),
        }
    }

    fn go_on(self: Box<Self>, synced: io::Result<()>) -> Step<Result<Placed, DiskFileError>> {
        Step::Done(self.clean_up(synced))
    }
}

/// The reserve that refuses only what Swift's `fs_has_free_space` refuses: less than the reserve, not just as much.
fn just_enough(reserve: FallocateReserve) -> FallocateReserve {
    match reserve {
        FallocateReserve::Bytes(bytes) => FallocateReserve::Bytes(bytes.saturating_sub(1)),
        FallocateReserve::Percent(percent) => FallocateReserve::Percent(percent.next_down().max(0.0)),
    }
}
