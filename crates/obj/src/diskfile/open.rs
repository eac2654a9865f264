//! Opening an object: which files are its state, are they whole, and what is its metadata.
//!
//! System calls for an object without POSTs: open and list the hash dir (4), open the data file, two extended
//! attributes, fstat; if it is known (`known.rs`), stat of the hash dir, open, fstat. [`OpenDiskFile::read_small`] adds one
//! pread.
//!
//! What is broken is moved to quarantine at once and reported as [`DiskFileError::Quarantined`]: metadata that cannot
//! be read or fails its checksum, a size that is not Content-Length, a name that is missing or does not hash to the
//! directory, a file where the hash dir should be. Errors that say nothing about the files (no memory, no permission,
//! EIO on opening) quarantine nothing.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::fs::{KernelTime, Stamp};
use common::headers::{
    CONTENT_LENGTH, ServerType, X_OBJECT_SYSMETA_EC_ETAG, X_OBJECT_SYSMETA_EC_FRAG_INDEX, is_sys_meta,
};
use common::timestamp::UNITS_PER_SECOND;
use common::{ObjHash, Timestamp};
use rustix::fs::{CWD, FileType, OFlags, Stat, fstat};
use rustix::io::Errno;

use super::files::{OnDiskFiles, Scheme, get_ondisk_files};
use super::fragment::HeaderCheck;
use super::known::{KnownFile, KnownObject};
use super::listing::{Names, open_dir, open_unnoticed};
use super::metadata::{MetadataError, read_metadata};
use super::quarantine::{quarantine_dir_or_suffix, quarantine_dir_renamer};
use super::reader::{Reader, ReaderOptions};
use super::{DiskFile, DiskFileError, Metadata, SMALL_OBJECT};

/// An object whose data file is open; it can be read to its end whatever happens to its name.
pub struct OpenDiskFile {
    pub(super) diskfile: DiskFile,
    pub(super) file: OwnedFd,
    pub(super) data_file: PathBuf,
    datafile: Metadata,
    metafile: Option<Metadata>,
    /// The two above as one, if there is a meta file.
    merged: Option<Metadata>,
    content_length: u64,
    durable_timestamp: Option<Timestamp>,
    fragments: Vec<(Timestamp, Vec<u32>)>,
}

/// A whole small object, and whether its MD5 is its ETag.
#[derive(Debug)]
pub struct SmallRead {
    pub data: Vec<u8>,
    /// Why the object has been quarantined, if it has. Swift sends the bytes all the same: it finds out at their end.
    pub quarantined: Option<String>,
}

impl DiskFile {
    /// Opens the object. `now` decides about expiry: the time of the request, or else the clock's.
    pub fn open(&self, now: Option<Timestamp>) -> Result<OpenDiskFile, DiskFileError> {
        self.open_with(now, false)
    }

    /// As [`DiskFile::open`]; files of old writers get the metadata checksum that they lack.
    pub fn open_modernized(&self, now: Option<Timestamp>) -> Result<OpenDiskFile, DiskFileError> {
        self.open_with(now, true)
    }

    /// As [`DiskFile::open`]; what is known from an earlier time is not read again.
    pub fn open_known(&self, now: Option<Timestamp>) -> Result<OpenDiskFile, DiskFileError> {
        let known = &self.manager().known;
        if !known.is_enabled() {
            return self.open(now);
        }
        if let Some(object) = known.get(self.datadir()) {
            let mut hash_dir = HashDir::known(self, object);
            let opened = hash_dir.open_object(now);
            if !hash_dir.read.is_empty() {
                known.forget(self.datadir());
            }
            if !matches!(opened, Err(DiskFileError::StateChanged)) {
                return opened;
            }
        }
        let looked = KernelTime::now();
        let mut hash_dir = HashDir::list(self, true)?;
        let opened = hash_dir.open_object(now)?;
        if let Some(dir) = hash_dir.stamp {
            let object = KnownObject { dir, names: hash_dir.names, files: hash_dir.read };
            known.learn(self.datadir(), object, looked);
        }
        Ok(opened)
    }

    fn open_with(&self, now: Option<Timestamp>, modernize: bool) -> Result<OpenDiskFile, DiskFileError> {
        HashDir { modernize, ..HashDir::list(self, false)? }.open_object(now)
    }

    fn quarantine_unlisted(&self, errno: Errno) -> DiskFileError {
        let path = self.datadir();
        let (quarantined, reason) = match errno {
            Errno::NOTDIR => (
                quarantine_dir_or_suffix(self.device_path(), path),
                format!("Expected directory, found file at {}", path.display()),
            ),
            Errno::NODATA | Errno::UCLEAN => (
                quarantine_dir_or_suffix(self.device_path(), path),
                format!("Failed to list directory at {}", path.display()),
            ),
            errno => return DiskFileError::io("Error listing directory", path, errno),
        };
        self.quarantined(path, reason, quarantined.map(|(_, to)| to))
    }

    /// Moves the hash dir away because of what one of its files shows.
    pub(super) fn quarantine(&self, file: &Path, reason: String) -> DiskFileError {
        self.quarantined(file, reason, quarantine_dir_renamer(self.device_path(), self.datadir()))
    }

    fn quarantined(&self, path: &Path, reason: String, to: Result<PathBuf, DiskFileError>) -> DiskFileError {
        if let Err(err) = to {
            return err;
        }
        self.logger.warning(format_args!("Quarantined object {}: {reason}", path.display()));
        self.manager().statsd().increment("quarantines");
        DiskFileError::Quarantined(reason)
    }
}

/// A listed hash dir, about to be opened.
struct HashDir<'a> {
    diskfile: &'a DiskFile,
    names: Arc<Names>,
    /// `None` if the names were known.
    dir: Option<OwnedFd>,
    known: Option<Arc<KnownObject>>,
    /// Of the directory before it was listed, if what is read is to be kept.
    stamp: Option<Stamp>,
    /// What was read, to be kept.
    read: Vec<KnownFile>,
    modernize: bool,
}

/// One of its files.
struct OpenFile {
    file: OwnedFd,
    stat: Result<Stat, Errno>,
}

impl<'a> HashDir<'a> {
    fn list(diskfile: &'a DiskFile, keep: bool) -> Result<Self, DiskFileError> {
        let mut names = Names::default();
        let listed = open_dir(CWD, diskfile.datadir()).and_then(|dir| {
            let stamp = if keep { Some(Stamp::of(&fstat(&dir)?)) } else { None };
            names.read(&dir)?;
            Ok((dir, stamp))
        });
        let (dir, stamp) = match listed {
            Ok(listed) => listed,
            Err(_) if !diskfile.device_path().is_dir() => return Err(DiskFileError::DeviceUnavailable),
            Err(Errno::NOENT) => return Err(DiskFileError::NotExist),
            Err(errno) => return Err(diskfile.quarantine_unlisted(errno)),
        };
        names.sort_descending();
        let (names, dir) = (Arc::new(names), Some(dir));
        Ok(HashDir { diskfile, names, dir, known: None, stamp, read: Vec::new(), modernize: false })
    }

    fn known(diskfile: &'a DiskFile, object: Arc<KnownObject>) -> Self {
        let (names, stamp) = (object.names.clone(), Some(object.dir));
        HashDir { diskfile, names, dir: None, known: Some(object), stamp, read: Vec::new(), modernize: false }
    }

    fn open_object(&mut self, now: Option<Timestamp>) -> Result<OpenDiskFile, DiskFileError> {
        let manager = self.diskfile.manager();
        let names = self.names.clone();
        let files = get_ondisk_files(names.iter(), manager.scheme(), self.diskfile.want());
        manager.log_unexpected(&files, &names, &|| self.diskfile.datadir().to_owned());
        match files.data {
            Some(_) => self.open_data_file(&files, now),
            None => Err(self.deleted(&files)),
        }
    }

    fn path(&self, index: usize) -> PathBuf {
        self.diskfile.datadir().join(self.names.lossy(index))
    }

    /// Opens a file; one that is gone, or became so, has been superseded since the listing.
    fn open(&self, index: usize) -> Result<OpenFile, DiskFileError> {
        let opened = match &self.dir {
            Some(dir) => open_unnoticed(dir, self.names.c_str(index), OFlags::NONBLOCK),
            None => open_unnoticed(CWD, self.path(index), OFlags::NONBLOCK),
        };
        match opened {
            Ok(file) => Ok(OpenFile { stat: fstat(&file), file }),
            Err(Errno::NOENT) => Err(DiskFileError::StateChanged),
            Err(errno @ (Errno::NODATA | Errno::UCLEAN)) => {
                let path = self.path(index);
                Err(self.diskfile.quarantine(&path, format!("Failed to open {}: {errno}", path.display())))
            }
            Err(errno) => Err(DiskFileError::io("Error opening", self.path(index), errno)),
        }
    }

    fn read_metadata(&mut self, opened: &OpenFile, index: usize) -> Result<Metadata, DiskFileError> {
        let stamp = self.stamp.and_then(|_| opened.stat.as_ref().ok()).map(Stamp::of);
        if let (Some(stamp), Some(known)) = (stamp, &self.known)
            && let Some(metadata) = known.metadata(index, stamp)
        {
            return Ok(metadata.clone());
        }
        match read_metadata(&opened.file, self.modernize) {
            Ok(metadata) => {
                if let Some(stamp) = stamp {
                    self.read.push(KnownFile { index, stamp, metadata: metadata.clone() });
                }
                Ok(metadata)
            }
            Err(MetadataError::NotSupported) => Err(DiskFileError::XattrNotSupported),
            Err(MetadataError::Io(errno)) => {
                Err(DiskFileError::io("Error reading metadata of", self.path(index), errno))
            }
            Err(err) => Err(self.diskfile.quarantine(&self.path(index), err.to_string())),
        }
    }

    /// There is no data file: deleted if there is a tombstone that can be read.
    fn deleted(&mut self, files: &OnDiskFiles) -> DiskFileError {
        let Some(tombstone) = files.tombstone else { return DiskFileError::NotExist };
        let metadata = self.open(tombstone.index).and_then(|file| self.read_metadata(&file, tombstone.index));
        match metadata {
            Ok(metadata) => {
                DiskFileError::Deleted { timestamp: timestamp_of(&metadata).unwrap_or_default(), metadata }
            }
            Err(DiskFileError::Quarantined(_) | DiskFileError::StateChanged) => DiskFileError::NotExist,
            Err(err) => err,
        }
    }

    fn open_data_file(
        &mut self,
        files: &OnDiskFiles,
        now: Option<Timestamp>,
    ) -> Result<OpenDiskFile, DiskFileError> {
        let Some(data) = files.data else { return Err(DiskFileError::NotExist) };
        let file = self.open(data.index)?;
        let datafile = self.read_metadata(&file, data.index)?;
        let (metafile, merged) = match files.meta {
            None => (None, None),
            Some(meta) => {
                let mut metafile = self.read_metadata(&self.open(meta.index)?, meta.index)?;
                if let Some(ctype) = files.ctype.filter(|ctype| ctype.index != meta.index) {
                    let ctypefile = self.read_metadata(&self.open(ctype.index)?, ctype.index)?;
                    merge_content_type(&mut metafile, &ctypefile, timestamp_of(&datafile));
                }
                let merged = merge(&datafile, &metafile);
                metafile.remove("name");
                (Some(metafile), Some(merged))
            }
        };
        let mut opened = OpenDiskFile {
            diskfile: self.diskfile.clone(),
            file: file.file,
            data_file: self.path(data.index),
            datafile,
            metafile,
            merged,
            content_length: 0,
            durable_timestamp: None,
            fragments: Vec::new(),
        };
        opened.tell_fragments(files);
        opened.verify_name()?;
        opened.verify_not_expired(now)?;
        opened.content_length = opened.verify_size(file.stat)?;
        Ok(opened)
    }
}

fn timestamp_of(metadata: &Metadata) -> Option<Timestamp> {
    header_timestamp(metadata, "X-Timestamp")
}

fn header_timestamp(metadata: &Metadata, name: &str) -> Option<Timestamp> {
    Timestamp::parse(metadata.get_str(name)?).ok()
}

/// Takes the content-type of an older meta file into the newest one, if it is the newer content-type.
fn merge_content_type(metafile: &mut Metadata, ctypefile: &Metadata, data_timestamp: Option<Timestamp>) {
    let ctype = header_timestamp(ctypefile, "Content-Type-Timestamp");
    if ctype <= header_timestamp(metafile, "Content-Type-Timestamp") || ctype <= data_timestamp {
        return;
    }
    let (Some(content_type), Some(timestamp)) =
        (ctypefile.get("Content-Type"), ctypefile.get("Content-Type-Timestamp"))
    else {
        return;
    };
    metafile.insert("Content-Type", content_type);
    metafile.insert("Content-Type-Timestamp", timestamp);
}

/// The meta file's headers, with those of the data file that a POST cannot change.
fn merge(datafile: &Metadata, metafile: &Metadata) -> Metadata {
    let mut merged = metafile.clone();
    for (name, value) in datafile.iter().filter(|(name, _)| is_fixed_by_put(name)) {
        merged.insert(name, value);
    }
    if let Some(content_type) = datafile.get("Content-Type")
        && header_timestamp(metafile, "Content-Type-Timestamp") < timestamp_of(datafile)
    {
        merged.insert("Content-Type", content_type);
        merged.remove("Content-Type-Timestamp");
    }
    merged
}

fn is_fixed_by_put(name: &[u8]) -> bool {
    const FIXED: [&[u8]; 4] = [b"content-length", b"deleted", b"etag", b"x-static-large-object"];
    FIXED.iter().any(|fixed| name.eq_ignore_ascii_case(fixed))
        || std::str::from_utf8(name).is_ok_and(|name| is_sys_meta(ServerType::Object, name))
}

/// Python's `int()` of a header value.
pub(super) fn parse_int(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

impl OpenDiskFile {
    /// An object without a POST, of which all has been checked.
    pub(super) fn plain(
        diskfile: &DiskFile,
        file: OwnedFd,
        data_file: PathBuf,
        metadata: Metadata,
        content_length: u64,
        files: &OnDiskFiles,
    ) -> Self {
        let mut opened = OpenDiskFile {
            diskfile: diskfile.clone(),
            file,
            data_file,
            datafile: metadata,
            metafile: None,
            merged: None,
            content_length,
            durable_timestamp: None,
            fragments: Vec::new(),
        };
        opened.tell_fragments(files);
        opened
    }

    /// Moves the hash dir away.
    pub fn quarantine(&self, reason: String) -> DiskFileError {
        self.diskfile.quarantine(&self.data_file, reason)
    }

    fn tell_fragments(&mut self, files: &OnDiskFiles) {
        if self.diskfile.manager().scheme() == Scheme::Replication {
            self.durable_timestamp = timestamp_of(&self.datafile);
            return;
        }
        self.durable_timestamp = files.durable_timestamp();
        self.fragments = files.fragments();
    }

    /// The name in the metadata must be the one asked for; if only the hash was, it must have that hash.
    fn verify_name(&self) -> Result<(), DiskFileError> {
        let Some(stored) = self.metadata().get_str("name") else {
            return Err(self.quarantine("missing name metadata".into()));
        };
        match self.diskfile.name() {
            Some(name) if name == stored => {}
            Some(name) => {
                self.diskfile.logger.error(format_args!(
                    "Client path {name} does not match path stored in object metadata {stored}"
                ));
                return Err(DiskFileError::Collision);
            }
            None if self.hash_of(stored) == Some(self.diskfile.hash()) => {}
            None => {
                return Err(self.quarantine("Hash of name in metadata does not match directory name".into()));
            }
        }
        Ok(())
    }

    fn hash_of(&self, name: &str) -> Option<ObjHash> {
        let (account, rest) = name.trim_start_matches('/').split_once('/')?;
        let (container, obj) = rest.split_once('/')?;
        Some(self.diskfile.manager().hash_conf().hash_path(account, Some(container), Some(obj)))
    }

    fn verify_not_expired(&self, now: Option<Timestamp>) -> Result<(), DiskFileError> {
        let Some(value) = self.metadata().get("X-Delete-At") else { return Ok(()) };
        let Some(delete_at) = parse_int(value) else {
            let value = String::from_utf8_lossy(value);
            return Err(self.quarantine(format!("bad metadata x-delete-at value {value}")));
        };
        let now = now.unwrap_or_else(|| self.diskfile.manager().clock().now());
        let expired = i128::from(delete_at) * i128::from(UNITS_PER_SECOND) <= i128::from(now.raw());
        if !expired || self.diskfile.open_expired {
            return Ok(());
        }
        let metadata = self.metadata().clone();
        Err(DiskFileError::Expired { timestamp: timestamp_of(&metadata).unwrap_or_default(), metadata })
    }

    fn verify_size(&self, stat: Result<Stat, Errno>) -> Result<u64, DiskFileError> {
        let Some(value) = self.metadata().get("Content-Length") else {
            return Err(self.quarantine("missing content-length in metadata".into()));
        };
        let Some(content_length) = parse_int(value) else {
            let value = String::from_utf8_lossy(value);
            return Err(self.quarantine(format!("bad metadata content-length value {value}")));
        };
        let stat = match stat {
            Ok(stat) => stat,
            Err(errno) => return Err(self.quarantine(format!("not stat-able: {errno}"))),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.quarantine("not a regular file".into()));
        }
        if stat.st_size != content_length {
            return Err(self.quarantine(format!(
                "metadata content-length {content_length} does not match actual object size {}",
                stat.st_size
            )));
        }
        Ok(content_length as u64)
    }

    pub fn diskfile(&self) -> &DiskFile {
        &self.diskfile
    }

    /// `/account/container/object`.
    pub fn name(&self) -> &str {
        self.metadata().get_str("name").unwrap_or_default()
    }

    /// The data file's path.
    pub fn data_file(&self) -> &Path {
        &self.data_file
    }

    /// The object's metadata: of the PUT, and of the last POST if there was one.
    pub fn metadata(&self) -> &Metadata {
        self.merged.as_ref().unwrap_or(&self.datafile)
    }

    pub fn into_metadata(self) -> Metadata {
        self.merged.unwrap_or(self.datafile)
    }

    /// As PUT.
    pub fn datafile_metadata(&self) -> &Metadata {
        &self.datafile
    }

    /// As POSTed, without the name; `None` without a meta file.
    pub fn metafile_metadata(&self) -> Option<&Metadata> {
        self.metafile.as_ref()
    }

    /// Of the last PUT or POST.
    pub fn timestamp(&self) -> Timestamp {
        timestamp_of(self.metadata()).unwrap_or_default()
    }

    /// Of the PUT.
    pub fn data_timestamp(&self) -> Timestamp {
        timestamp_of(&self.datafile).unwrap_or_default()
    }

    /// Of the newest durable data file: always [`OpenDiskFile::data_timestamp`] under replication.
    pub fn durable_timestamp(&self) -> Option<Timestamp> {
        self.durable_timestamp
    }

    /// EC: the indexes of all fragments that are here, by timestamp, newest first.
    pub fn fragments(&self) -> &[(Timestamp, Vec<u32>)] {
        &self.fragments
    }

    /// EC: whether the metadata tell what a reader of fragments must know.
    pub fn validate_metadata(&self) -> bool {
        let needed = [CONTENT_LENGTH, X_OBJECT_SYSMETA_EC_FRAG_INDEX, X_OBJECT_SYSMETA_EC_ETAG];
        needed.iter().all(|name| self.datafile.get(*name).is_some_and(|value| !value.is_empty()))
    }

    pub fn content_type(&self) -> Option<&[u8]> {
        self.metadata().get("Content-Type")
    }

    pub fn content_type_timestamp(&self) -> Timestamp {
        header_timestamp(self.metadata(), "Content-Type-Timestamp").unwrap_or_else(|| self.data_timestamp())
    }

    pub fn content_length(&self) -> u64 {
        self.content_length
    }

    /// Of a fragment archive: whether it is of an object of one segment.
    pub fn is_one_fragment(&self) -> bool {
        self.diskfile.manager().fragment_len().is_some_and(|length| self.content_length <= length as u64)
    }

    /// The ETag in the metadata: the MD5 of the data.
    pub fn etag(&self) -> &[u8] {
        self.metadata().get("ETag").unwrap_or_default()
    }

    /// Reads data from here on; what remains to be asked of the metadata must be asked before.
    pub fn reader(self, options: ReaderOptions) -> Reader {
        Reader::new(self, options)
    }

    /// The whole data of an object of at most [`SMALL_OBJECT`] bytes, checked against its ETag and length; an object
    /// that fails is quarantined. Metadata can still be asked for afterwards. The page cache keeps the data.
    pub fn read_small(&self) -> Result<SmallRead, DiskFileError> {
        self.read_small_with(true)
    }

    /// The same, checked against its ETag only if asked.
    pub fn read_small_with(&self, verify_etag: bool) -> Result<SmallRead, DiskFileError> {
        let too_large = || DiskFileError::io("too large to be read at once", &self.data_file, Errno::FBIG);
        if self.content_length > SMALL_OBJECT {
            return Err(too_large());
        }
        let mut data = vec![0; self.content_length as usize];
        let mut length = 0;
        while length < data.len() {
            match rustix::io::pread(&self.file, &mut data[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(Errno::INTR) => {}
                Err(Errno::IO) => return Err(self.quarantine(Errno::IO.to_string())),
                Err(errno) => return Err(DiskFileError::io("cannot read", &self.data_file, errno)),
            }
        }
        data.truncate(length);
        let quarantined = match self.what_is_wrong(&data, verify_etag) {
            None => None,
            Some(reason) => match self.quarantine(reason) {
                DiskFileError::Quarantined(reason) => Some(reason),
                err => return Err(err),
            },
        };
        Ok(SmallRead { data, quarantined })
    }

    /// What is wrong with these data, which should be all of the object's.
    pub(super) fn what_is_wrong(&self, data: &[u8], verify_etag: bool) -> Option<String> {
        let bad_fragment = self.diskfile.manager().fragment_len().and_then(|fragment_len| {
            let mut headers = HeaderCheck::new(fragment_len);
            headers.update(data).and_then(|()| headers.finish()).err()
        });
        match bad_fragment {
            Some(bad) => Some(bad.reason()),
            None => {
                let md5 = verify_etag.then(|| common::digest::hex(&common::digest::md5(data)));
                self.verdict(data.len() as u64, md5)
            }
        }
    }

    /// What is wrong with data that has been read from start to end.
    pub(super) fn verdict(&self, bytes_read: u64, md5: Option<String>) -> Option<String> {
        if bytes_read != self.content_length {
            return Some(format!(
                "Bytes read: {bytes_read}, does not match metadata: {}",
                self.content_length
            ));
        }
        let md5 = md5.filter(|md5| md5.as_bytes() != self.etag())?;
        let etag = String::from_utf8_lossy(self.etag());
        Some(format!("ETag {etag} and file's md5 {md5} do not match"))
    }
}
