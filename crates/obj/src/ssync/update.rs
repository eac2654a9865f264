//! What the sender says of a wanted object, made from what is on disk: a PUT, a POST, a DELETE, or nothing.
//!
//! Objects are prepared in batches ahead of the wire, each in one job. Small ones are read whole. So are those of a few megabytes, whose
//! ETags are then computed together (`common::digest`): one that is corrupt goes to quarantine before any of it has been sent, and is left
//! out. Where a batch has too few of them for that, they wait until there are some of other partitions ([`Unchecked`]), and are sent
//! meanwhile: the receiver, which compares ETags itself, refuses what is corrupt. Larger ones are read, and checked, as they are sent.
//!
//! What batches hold is bounded twice: for one of them, and for all sessions of a process together. Beyond the second bound objects are
//! read as they are sent.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use common::hash::ObjHash;
use common::timestamp::Timestamp;
use common::wsgi::from_stored;
use parking_lot::Mutex;
use service::http::Body;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::protocol::{Wanted, subrequest_head, subrequest_path};
use crate::diskfile::{
    DiskFileError, DiskFileManager, Metadata, OpenDiskFile, Reader, ReaderOptions, SMALL_OBJECT, Want,
};

/// A read of a large object: a little more than a fragment of a fourth of a MiB.
pub(super) const READ_SIZE: usize = 320 * 1024;
/// An archive that is rebuilt before it is sent, and held in memory until then.
pub(super) const MAX_REBUILT_AHEAD: u64 = 512 * 1024;
/// Objects of one batch.
const BATCH_OBJECTS: usize = 16;
/// A batch that holds so much takes no more objects.
const BATCH_BYTES: u64 = 48 << 20;
/// So many ETags are computed together at several times the speed of one.
const CHECKED_TOGETHER: usize = 6;
/// What all sessions may hold, in KiB.
static HELD_KIB: Semaphore = Semaphore::const_new(256 << 10);

/// What is sent for one wanted object.
#[derive(Default)]
pub(super) struct Update {
    /// It could not be opened: corrupt, or gone since it was offered. Swift counts it as sent.
    pub skipped: bool,
    /// The archive of which the receiver's is to be made.
    pub rebuild_from: Option<Box<LocalArchive>>,
    pub put: Option<Put>,
    /// A POST or DELETE: its method in lower case, and its head.
    pub then: Option<(&'static str, Vec<u8>)>,
}

pub(super) struct Put {
    pub head: Vec<u8>,
    pub data: Data,
    pub content_length: u64,
}

pub(super) enum Data {
    Small(Bytes),
    Held(Held),
    Reader(Box<Reader>),
    Rebuilt(Body),
}

/// The archive that is here, of which another one is made.
pub struct LocalArchive {
    pub reader: Reader,
    /// All of it, if it is held: checked, unless it is one fragment, which whoever rebuilds checks with those of others.
    pub whole: Option<(Bytes, SemaphorePermit<'static>)>,
}

impl LocalArchive {
    pub fn is_one_fragment(&self) -> bool {
        self.reader.opened().is_one_fragment()
    }
}

/// An object in memory.
pub(super) struct Held {
    pub pieces: Vec<Bytes>,
    /// While nobody has seen to it that its ETag is checked.
    reader: Option<Box<Reader>>,
    permit: Arc<SemaphorePermit<'static>>,
}

/// Objects that are sent although their ETags have yet to be checked, together with those of others. A corrupt one goes to
/// quarantine then.
#[derive(Default)]
pub struct Unchecked(Mutex<Vec<(Box<Reader>, Arc<SemaphorePermit<'static>>)>>);

impl Unchecked {
    /// Also checks all of them when they have become enough.
    fn add(&self, held: &mut Held) {
        let Some(reader) = held.reader.take() else { return };
        let mut waiting = self.0.lock();
        waiting.push((reader, held.permit.clone()));
        if waiting.len() >= CHECKED_TOGETHER {
            drop(waiting);
            self.check();
        }
    }

    /// Checks those that are left.
    pub fn check(&self) {
        let waiting = std::mem::take(&mut *self.0.lock());
        for (reader, _permit) in waiting {
            // Says so in the log if it is corrupt.
            reader.close();
        }
    }
}

impl Update {
    pub(super) fn skipped() -> Self {
        Self { skipped: true, ..Self::default() }
    }

    fn held(&mut self) -> Option<&mut Held> {
        match &mut self.put {
            Some(Put { data: Data::Held(held), .. }) => Some(held),
            _ => None,
        }
    }

    /// Waits for all of what is rebuilt. What is not whole is not sent.
    pub(super) async fn read_rebuilt(&mut self) {
        let Some(Put { data, content_length, .. }) = &mut self.put else { return };
        let Data::Rebuilt(body) = data else { return };
        match body.collect(*content_length as usize).await {
            Ok(whole) if whole.len() as u64 == *content_length => *data = Data::Small(whole),
            _ => *self = Self::skipped(),
        }
    }
}

/// Wanted objects of one partition.
pub(super) struct Batches {
    pub manager: Arc<DiskFileManager>,
    pub device: String,
    pub partition: u32,
    pub want: Want<'static>,
    /// Data is not sent as it is, but rebuilt from.
    pub rebuilds: bool,
    pub unchecked: Option<Arc<Unchecked>>,
    pub wanted: VecDeque<(ObjHash, Wanted)>,
}

pub(super) type Batch = Vec<(ObjHash, Update)>;

impl Batches {
    /// The next objects; none when there are no more.
    pub(super) fn next(&mut self) -> Result<Batch, DiskFileError> {
        let (mut batch, mut bytes) = (Batch::new(), 0);
        while batch.len() < BATCH_OBJECTS
            && bytes < BATCH_BYTES
            && let Some((hash, wanted)) = self.wanted.pop_front()
        {
            let mut update = self.prepare(hash, wanted)?;
            if update.held().is_some() {
                bytes += update.put.as_ref().map_or(0, |put| put.content_length);
            }
            batch.push((hash, update));
        }
        let mut held: Vec<&mut Held> = batch.iter_mut().filter_map(|(_, update)| update.held()).collect();
        // What is rebuilt from is checked before.
        let later = self.unchecked.as_ref().filter(|_| !self.rebuilds && held.len() < CHECKED_TOGETHER);
        if let Some(unchecked) = later {
            held.iter_mut().for_each(|held| unchecked.add(held));
            return Ok(batch);
        }
        // With the first ETag those of the others are computed.
        for (_, update) in &mut batch {
            let archive = update.rebuild_from.as_mut();
            let archive = archive.filter(|archive| archive.whole.is_some() && !archive.is_one_fragment());
            if archive.is_some_and(|archive| archive.reader.check().is_some()) {
                *update = Update::skipped();
            }
            let reader = update.held().and_then(|held| held.reader.take());
            if reader.is_some_and(|reader| reader.close().is_some()) {
                *update = Update::skipped();
            }
        }
        Ok(batch)
    }

    /// Opens an object and reads it if it is small. One that cannot be opened is left out: nothing has been sent of it.
    fn prepare(&self, hash: ObjHash, wanted: Wanted) -> Result<Update, DiskFileError> {
        let mut update = Update::default();
        let diskfile = self.manager.diskfile_of_hash(&self.device, self.partition, hash)?;
        let prefs = self.want.frag_prefs.map(Arc::from);
        let diskfile = diskfile.open_expired(true).frag_index(self.want.frag_index).frag_prefs(prefs);
        let opened = match diskfile.open(None) {
            Ok(opened) => opened,
            Err(DiskFileError::Deleted { timestamp, metadata }) => {
                if wanted.data {
                    update.then =
                        metadata.get_str("name").map(|name| ("delete", delete_head(name, timestamp)));
                }
                return Ok(update);
            }
            Err(err) if err.is_not_exist() => return Ok(Update::skipped()),
            Err(err) => return Err(err),
        };
        if wanted.meta && opened.data_timestamp() != opened.timestamp() {
            update.then = post_head(&opened).map(|head| ("post", head));
        }
        match wanted.data {
            true if self.rebuilds => match local_archive(opened, self.manager.most_held()) {
                Ok(archive) => update.rebuild_from = Some(Box::new(archive)),
                Err(err) if err.is_not_exist() => return Ok(Update::skipped()),
                Err(err) => return Err(err),
            },
            true => match put(opened, self.manager.most_held())? {
                Some(put) => update.put = Some(put),
                None => return Ok(Update::skipped()),
            },
            false => {}
        }
        Ok(update)
    }
}

/// `None` if it was corrupt, and is in quarantine now.
fn put(opened: OpenDiskFile, most_held: u64) -> Result<Option<Put>, DiskFileError> {
    let content_length = opened.content_length();
    let durable = opened.durable_timestamp() == Some(opened.data_timestamp());
    let head = put_head(opened.name(), opened.datafile_metadata(), content_length, durable);
    if content_length <= SMALL_OBJECT {
        let read = opened.read_small()?;
        let small = || Put { head, data: Data::Small(read.data.into()), content_length };
        return Ok(read.quarantined.is_none().then(small));
    }
    let kib = content_length.div_ceil(1024) as u32;
    let permit = (content_length <= most_held).then(|| HELD_KIB.try_acquire_many(kib).ok()).flatten();
    let reader = opened.reader(ReaderOptions { patient: permit.is_some(), ..ReaderOptions::default() });
    let data = match permit {
        Some(permit) => match hold(reader, permit) {
            Ok(held) => Data::Held(held),
            Err(err) if err.is_not_exist() => return Ok(None),
            Err(err) => return Err(err),
        },
        None => Data::Reader(Box::new(reader)),
    };
    Ok(Some(Put { head, data, content_length }))
}

/// Reads an archive if it is to be held; its ETag is still to be checked.
fn local_archive(opened: OpenDiskFile, most_held: u64) -> Result<LocalArchive, DiskFileError> {
    let length = opened.content_length();
    let kib = length.div_ceil(1024) as u32;
    let is_held = (1..=MAX_REBUILT_AHEAD).contains(&length);
    let permit = is_held.then(|| HELD_KIB.try_acquire_many(kib).ok()).flatten();
    let patient = permit.is_some() || length <= most_held;
    let mut reader = opened.reader(ReaderOptions { patient, ..ReaderOptions::default() });
    let whole = match permit {
        Some(permit) => Some((reader.read(0, length as usize)?, permit)),
        None => None,
    };
    Ok(LocalArchive { reader, whole })
}

fn hold(mut reader: Reader, permit: SemaphorePermit<'static>) -> Result<Held, DiskFileError> {
    let (mut pieces, mut offset) = (Vec::new(), 0);
    loop {
        let piece = reader.read(offset, READ_SIZE)?;
        if piece.is_empty() {
            return Ok(Held { pieces, reader: Some(Box::new(reader)), permit: Arc::new(permit) });
        }
        offset += piece.len() as u64;
        pieces.push(piece);
    }
}

/// The headers of a PUT are the data file's metadata as it stands; what a POST has changed since is sent by a POST.
pub(super) fn put_head(name: &str, datafile: &Metadata, content_length: u64, durable: bool) -> Vec<u8> {
    let content_length = content_length.to_string();
    let no_commit = (!durable).then_some((&b"X-Backend-No-Commit"[..], &b"True"[..]));
    let metadata = wire(datafile);
    let metadata = metadata.iter().filter(|(name, _)| **name != *b"name" && **name != *b"Content-Length");
    let headers = [(&b"Content-Length"[..], content_length.as_bytes())].into_iter().chain(no_commit);
    let headers = headers.chain(metadata.map(|(name, value)| (&**name, &**value)));
    subrequest_head("PUT", &path_of(name), headers)
}

fn post_head(opened: &OpenDiskFile) -> Option<Vec<u8>> {
    let metadata = wire(opened.metafile_metadata()?);
    let headers = metadata.iter().map(|(name, value)| (&**name, &**value));
    Some(subrequest_head("POST", &path_of(opened.name()), headers))
}

type Text<'a> = Cow<'a, [u8]>;

/// Names and values as they were in the request that stored them.
fn wire(metadata: &Metadata) -> Vec<(Text<'_>, Text<'_>)> {
    metadata.iter().map(|(name, value)| (from_stored(name), from_stored(value))).collect()
}

fn delete_head(name: &str, timestamp: Timestamp) -> Vec<u8> {
    let timestamp = timestamp.internal();
    subrequest_head("DELETE", &path_of(name), [(&b"X-Timestamp"[..], timestamp.as_bytes())])
}

/// `name` is `/account/container/object`.
fn path_of(name: &str) -> String {
    let mut parts = name.trim_start_matches('/').splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default();
    let (account, container, object) = (part(), part(), part());
    subrequest_path(account, container, object)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use common::Clock;
    use common::config::SwiftConf;
    use common::digest::{hex, md5};
    use common::policy::PolicyIndex;
    use service::logs::Logger;
    use service::statsd::Statsd;

    use super::*;
    use crate::diskfile::{DiskFileConf, DiskFileRouter};

    fn manager(devices: &Path) -> Arc<DiskFileManager> {
        std::fs::create_dir(devices.join("sda")).unwrap();
        let conf = DiskFileConf { devices: devices.into(), mount_check: false, ..DiskFileConf::default() };
        let swift_conf =
            SwiftConf::parse(b"[swift-hash]\nswift_hash_path_suffix = s\n", "swift.conf", devices);
        let (logger, _) = Logger::memory();
        let statsd = Statsd::disabled();
        let router = DiskFileRouter::new(&conf, &swift_conf.unwrap(), &Clock::system(), &logger, &statsd);
        router.get(PolicyIndex(0)).unwrap().clone()
    }

    /// Makes an object that is held in memory, and a batch that wants it.
    fn batch_of(
        manager: &Arc<DiskFileManager>,
        name: &str,
        etag_of: &[u8],
        unchecked: &Unchecking,
    ) -> Batches {
        let hash = manager.hash_conf().hash_path("a", Some("c"), Some(name));
        let metadata = Metadata::from_iter([
            ("X-Timestamp", "0000000001.00000".to_owned()),
            ("ETag", hex(&md5(etag_of))),
            ("Content-Length", BODY.len().to_string()),
        ]);
        manager.diskfile("sda", 7, "a", "c", name).unwrap().put_small(BODY, metadata).unwrap();
        Batches {
            manager: manager.clone(),
            device: "sda".to_owned(),
            partition: 7,
            want: Want::default(),
            rebuilds: false,
            unchecked: unchecked.clone(),
            wanted: [(hash, Wanted { data: true, meta: true })].into(),
        }
    }

    type Unchecking = Option<Arc<Unchecked>>;
    const BODY: &[u8] = &[7; SMALL_OBJECT as usize + 1];

    fn is_there(manager: &Arc<DiskFileManager>, name: &str) -> bool {
        manager.diskfile("sda", 7, "a", "c", name).unwrap().open(None).is_ok()
    }

    #[test]
    fn objects_that_are_sent_unchecked_are_checked_together_or_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path());
        let unchecked = Arc::new(Unchecked::default());
        let send = |name: &str, etag_of: &[u8]| {
            let batch = batch_of(&manager, name, etag_of, &Some(unchecked.clone())).next().unwrap();
            assert!(matches!(&batch[..], [(_, Update { put: Some(_), skipped: false, .. })]), "{name}");
        };
        send("corrupt", b"another");
        for n in 2..CHECKED_TOGETHER {
            send(&n.to_string(), BODY);
        }
        assert!(is_there(&manager, "corrupt"));
        send("last", BODY);
        assert!(!is_there(&manager, "corrupt"));
        assert!(is_there(&manager, "last"));
        send("too late", b"another");
        assert!(is_there(&manager, "too late"));
        unchecked.check();
        assert!(!is_there(&manager, "too late"));
    }

    #[test]
    fn a_device_that_goes_meanwhile_ends_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path());
        let mut batch = batch_of(&manager, "o", BODY, &None);
        std::fs::remove_dir_all(dir.path().join("sda")).unwrap();
        assert!(matches!(batch.next(), Err(DiskFileError::DeviceUnavailable)));
    }

    #[test]
    fn a_corrupt_object_is_not_sent_if_nobody_checks_it_later() {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path());
        let batch = batch_of(&manager, "o", b"another", &None).next().unwrap();
        assert!(matches!(&batch[..], [(_, Update { put: None, skipped: true, .. })]));
        assert!(!is_there(&manager, "o"));
    }
}
