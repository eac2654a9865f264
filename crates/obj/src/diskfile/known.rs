//! What is known of objects that have been opened lately: the names in their hash dirs, and the metadata of the files that
//! were opened. It saves a GET listing, attributes, their checksum and their pickle: half of its system calls.
//!
//! Nothing is believed that the disk does not confirm. A directory into which anything was linked, or out of which anything
//! was taken, by whatever process, has another change time; so has a file whose attributes, data or links are not what
//! they were. Each use asks for both, and each must be the same inode. Data are never kept: they are read, and checked.
//!
//! What has changed within the last [`SETTLED`] is not kept (`common::fs::Stamp` says why).
//!
//! What is bounded: the number of objects (`known_objects`, an option of the object server that Swift does not have; 0 for
//! none), and what one of them takes up.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::fs::{KernelTime, SETTLED, Stamp};
use common::used_lately::UsedLately;

use super::Metadata;
use super::listing::Names;

/// Objects with more names, or larger metadata, are not kept.
const MOST_NAMES: usize = 16;
const MOST_METADATA: usize = 4096;

/// One of an object's files.
pub(super) struct KnownFile {
    /// In the names.
    pub index: usize,
    pub stamp: Stamp,
    pub metadata: Metadata,
}

/// A hash dir and those of its files that were opened.
pub(super) struct KnownObject {
    pub dir: Stamp,
    pub names: Arc<Names>,
    pub files: Vec<KnownFile>,
}

impl KnownObject {
    /// The metadata of a file that is what it was.
    pub fn metadata(&self, index: usize, stamp: Stamp) -> Option<&Metadata> {
        self.files.iter().find(|file| file.index == index && file.stamp == stamp).map(|file| &file.metadata)
    }

    fn is_small(&self) -> bool {
        let metadata: usize =
            self.files.iter().flat_map(|file| file.metadata.iter()).map(|(n, v)| n.len() + v.len()).sum();
        self.names.len() <= MOST_NAMES && metadata <= MOST_METADATA
    }

    fn is_settled(&self, looked: KernelTime, settled: Duration) -> bool {
        let mut stamps = self.files.iter().map(|file| &file.stamp).chain([&self.dir]);
        stamps.all(|stamp| stamp.is_settled(looked, settled))
    }
}

/// The objects of one policy, by hash dir.
pub(super) struct KnownObjects {
    /// By the path's bytes: a `Path` hashes by its components.
    objects: UsedLately<OsString, Arc<KnownObject>>,
    settled: Duration,
}

impl KnownObjects {
    pub fn new(capacity: usize) -> Self {
        KnownObjects { objects: UsedLately::new(capacity), settled: SETTLED }
    }

    /// Whether there is any room.
    pub fn is_enabled(&self) -> bool {
        self.objects.is_enabled()
    }

    /// What is known of a hash dir, which may have changed since.
    pub fn look_up(&self, datadir: &Path) -> Option<Arc<KnownObject>> {
        self.objects.get(datadir.as_os_str())
    }

    /// What is known of a hash dir that is what it was.
    pub fn get(&self, datadir: &Path) -> Option<Arc<KnownObject>> {
        let known = self.look_up(datadir)?;
        if Stamp::at(datadir).is_ok_and(|stamp| stamp == known.dir) {
            return Some(known);
        }
        self.forget(datadir);
        None
    }

    pub fn forget(&self, datadir: &Path) {
        self.objects.remove(datadir.as_os_str());
    }

    /// Keeps what has been read, if that is safe and worth it. The reading, and the stamps before it, began at `looked`.
    pub fn learn(&self, datadir: &Path, object: KnownObject, looked: KernelTime) {
        if object.is_small() && object.is_settled(looked, self.settled) {
            self.objects.insert(datadir.as_os_str().to_owned(), Arc::new(object));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use super::super::tests::{Disk, at, disk_of, has_memory, metadata};
    use super::super::{DiskFileConf, DiskFileError, OpenDiskFile};
    use super::*;

    /// Longer than a tick of any kernel's clock.
    const TICKS: Duration = Duration::from_millis(20);

    fn disk(known_objects: usize) -> Disk {
        let conf = DiskFileConf { known_objects, ..Default::default() };
        let mut disk = disk_of(conf, "");
        Arc::get_mut(&mut disk.manager).unwrap().known.settled = TICKS;
        disk
    }

    fn settle(disk: &Disk) {
        let datadir = disk.object("o").datadir().to_owned();
        let paths =
            || fs::read_dir(&datadir).unwrap().map(|entry| entry.unwrap().path()).chain([datadir.clone()]);
        let is_settled = |path: PathBuf| Stamp::at(&path).unwrap().is_settled(KernelTime::now(), TICKS);
        while !paths().all(is_settled) {
            std::thread::yield_now();
        }
    }

    /// What a client would see.
    fn seen(opened: Result<OpenDiskFile, DiskFileError>) -> String {
        match opened {
            Ok(opened) => {
                let read = opened.read_small().unwrap();
                format!(
                    "{:?} {:?} {:?} {read:?}",
                    opened.timestamp(),
                    opened.metadata(),
                    opened.data_timestamp()
                )
            }
            Err(err) => format!("{err:?}"),
        }
    }

    fn put(disk: &Disk, secs: u64, body: &[u8]) {
        disk.object("o").put_small(body, metadata(secs, body)).unwrap();
    }

    fn post(disk: &Disk, secs: u64) {
        let posted = [("X-Timestamp", at(secs).internal()), ("X-Object-Meta-Colour", "red".into())];
        disk.object("o").write_metadata(Metadata::from_iter(posted)).unwrap();
    }

    /// Whether it can be opened without reading anything but data.
    fn is_known(disk: &Disk) -> bool {
        disk.manager.known.get(disk.object("o").datadir()).is_some()
    }

    /// Without the disk.
    fn in_memory(disk: &Disk) -> Option<Vec<u8>> {
        disk.object("o").open_in_memory()?.read_in_memory()
    }

    #[test]
    fn an_object_is_known_once_it_has_been_opened_and_has_settled() {
        let disk = disk(8);
        put(&disk, 1, b"one");
        disk.object("o").open_known(None).unwrap();
        settle(&disk);
        let first = seen(disk.object("o").open_known(None));
        assert!(is_known(&disk));
        assert_eq!(seen(disk.object("o").open_known(None)), first);
        assert_eq!(seen(disk.object("o").open(None)), first);
    }

    #[test]
    fn what_was_changed_a_moment_ago_is_not_kept() {
        let mut disk = disk(8);
        Arc::get_mut(&mut disk.manager).unwrap().known.settled = Duration::from_secs(3600);
        put(&disk, 1, b"one");
        disk.object("o").open_known(None).unwrap();
        assert!(!is_known(&disk));
    }

    #[test]
    fn what_may_expire_or_is_large_is_left_to_the_disk() {
        for (name, value, size) in [("X-Delete-At", "9", 3), ("X-Object-Meta-Colour", "red", 16 * 1024 + 1)] {
            let (disk, body) = (disk(8), vec![b'o'; size]);
            let mut metadata = metadata(1, &body);
            metadata.insert(name, value);
            disk.object("o").put_small(&body, metadata).unwrap();
            settle(&disk);
            disk.object("o").open_known(Some(at(2))).unwrap();
            assert!(is_known(&disk), "{name}");
            assert_eq!(in_memory(&disk), None, "{name}");
        }
    }

    #[test]
    fn nothing_is_kept_without_room() {
        let disk = disk(0);
        put(&disk, 1, b"one");
        settle(&disk);
        disk.object("o").open_known(None).unwrap();
        assert!(!is_known(&disk));
    }

    /// Each of these is done to an object that is known; it must be seen as it is at once.
    #[test]
    fn every_change_is_seen() {
        type Change = fn(&Disk, &Path, &Path);
        let changes: [(&str, Change); 9] = [
            ("PUT", |disk, _, _| put(disk, 3, b"two")),
            ("POST", |disk, _, _| post(disk, 4)),
            ("DELETE", |disk, _, _| disk.object("o").delete(at(5)).unwrap()),
            ("another's file", |_, dir, _| fs::write(dir.join("0000000009.00000.ts"), "").unwrap()),
            ("attributes", |_, _, data| {
                let file = fs::File::options().write(true).open(data).unwrap();
                let key = common::fs::METADATA_KEY;
                rustix::fs::fsetxattr(&file, key, b"junk", rustix::fs::XattrFlags::empty()).unwrap();
            }),
            ("bytes", |_, _, data| {
                fs::File::options().write(true).open(data).unwrap().write_all_at(b"O", 0).unwrap();
            }),
            ("length", |_, _, data| fs::File::options().write(true).open(data).unwrap().set_len(1).unwrap()),
            ("unlinked", |_, _, data| common::fs::remove_file(data).unwrap()),
            ("moved away", |_, dir, _| fs::remove_dir_all(dir).unwrap()),
        ];
        for posted in [false, true] {
            for (name, change) in changes {
                let (disk, twin) = (disk(8), disk(0));
                for disk in [&disk, &twin] {
                    put(disk, 1, b"one");
                    if posted {
                        post(disk, 2);
                    }
                }
                settle(&disk);
                disk.object("o").open_known(None).unwrap();
                assert!(is_known(&disk), "{name}");
                assert_eq!(in_memory(&disk), (!posted && has_memory(&disk)).then(|| b"one".to_vec()));
                for disk in [&disk, &twin] {
                    let datadir = disk.object("o").datadir().to_owned();
                    let data = datadir.join(format!("{}.data", at(1).internal()));
                    change(disk, &datadir, &data);
                }
                assert_eq!(in_memory(&disk), None, "{name}, posted: {posted}");
                let paths = |seen: String, disk: &Disk| seen.replace(disk.device().to_str().unwrap(), "");
                let anew = paths(seen(twin.object("o").open(None)), &twin);
                assert_eq!(
                    paths(seen(disk.object("o").open_known(None)), &disk),
                    anew,
                    "{name}, posted: {posted}"
                );
            }
        }
    }
}
