//! DiskFile on a real file system: damage, hashes, space.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use bytes::Bytes;
use common::config::SwiftConf;
use common::digest::{hex, md5};
use common::pickle::{self, Value};
use common::{Clock, Suffix};
use service::logs::{Level, Lines};
use service::statsd::Statsd;

use super::*;
use rustix::io::Errno;

pub(super) struct Disk {
    pub(super) manager: Arc<DiskFileManager>,
    pub(super) lines: Lines,
    dir: tempfile::TempDir,
}

pub(super) const NOW: u64 = 1_000_000;

pub(super) fn disk() -> Disk {
    disk_with(DiskFileConf::default())
}

/// A device `sda` with policy 0, at [`NOW`].
fn disk_with(conf: DiskFileConf) -> Disk {
    disk_of(conf, "")
}

/// The same with policy 0 as swift.conf describes it.
pub(super) fn disk_of(conf: DiskFileConf, policy: &str) -> Disk {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sda")).unwrap();
    let conf = DiskFileConf { devices: dir.path().into(), mount_check: false, ..conf };
    let swift_conf = format!("[swift-hash]\nswift_hash_path_suffix = endcap\n{policy}");
    let swift_conf = SwiftConf::parse(swift_conf.as_bytes(), "swift.conf", "/".as_ref()).unwrap();
    let (logger, lines) = Logger::memory();
    let clock = Clock::manual(at(NOW));
    let router = DiskFileRouter::new(&conf, &swift_conf, &clock, &logger, &Statsd::disabled());
    Disk { manager: router.get(common::policy::PolicyIndex(0)).unwrap().clone(), lines, dir }
}

pub(super) fn at(secs: u64) -> Timestamp {
    Timestamp::from_raw(secs * 100_000)
}

impl Disk {
    pub(super) fn object(&self, name: &str) -> DiskFile {
        self.manager.diskfile("sda", 7, "a", "c", name).unwrap()
    }

    fn put(&self, name: &str, secs: u64, body: &[u8]) {
        self.object(name).put_small(body, metadata(secs, body)).unwrap();
    }

    pub(super) fn device(&self) -> PathBuf {
        self.dir.path().join("sda")
    }

    pub(super) fn partition(&self) -> PathBuf {
        self.device().join("objects/7")
    }

    pub(super) fn hashes(&self) -> SuffixHashes {
        self.manager.get_hashes("sda", 7, &[], false).unwrap().unwrap()
    }

    pub(super) fn files(&self, name: &str) -> Vec<String> {
        names(self.object(name).datadir())
    }

    pub(super) fn quarantined(&self) -> Vec<String> {
        names(&self.device().join("quarantined/objects"))
    }

    fn warnings(&self) -> usize {
        self.lines.at_least(Level::Warning).len()
    }
}

/// Whether the kernel and the file system can tell what they have in memory.
pub(super) fn has_memory(disk: &Disk) -> bool {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    use rustix::io::{ReadWriteFlags, preadv2};
    let path = disk.device().join("tested");
    fs::write(&path, "tested").unwrap();
    let opened = openat2(CWD, path, OFlags::RDONLY, Mode::empty(), ResolveFlags::CACHED);
    let mut byte = [0];
    let mut read = [std::io::IoSliceMut::new(&mut byte)];
    opened.is_ok_and(|file| preadv2(file, &mut read, 0, ReadWriteFlags::NOWAIT) == Ok(1))
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(super) fn metadata(secs: u64, body: &[u8]) -> Metadata {
    Metadata::from_iter([
        ("X-Timestamp", at(secs).internal()),
        ("Content-Type", format!("put/{secs}")),
        ("Content-Length", body.len().to_string()),
        ("ETag", hex(&md5(body))),
    ])
}

fn post(secs: u64, ctype: Option<u64>) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("X-Timestamp", at(secs).internal());
    metadata.insert("X-Object-Meta-Post", secs.to_string());
    if let Some(ctype) = ctype {
        metadata.insert("Content-Type", format!("post/{ctype}"));
        metadata.insert("Content-Type-Timestamp", at(ctype).internal());
    }
    metadata
}

#[test]
fn what_has_been_written_is_synced_every_so_many_bytes() {
    use common::fs::fail::{Action, arm_thread};
    let disk = disk_of(DiskFileConf { bytes_per_sync: 1000, ..DiskFileConf::default() }, "");
    let _armed = arm_thread("fs.fdatasync", Action::Error(Errno::IO));
    let mut writer = disk.object("o").writer(None).unwrap();
    writer.write(Bytes::from(vec![b'o'; 999])).unwrap();
    assert!(writer.write(Bytes::from_static(b"o")).is_err());
}

#[test]
fn streamed_and_small_puts_leave_the_same_file() {
    let disk = disk();
    let body: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    disk.put("small", 10, &body);
    let mut writer = disk.object("big").writer(Some(body.len() as u64)).unwrap();
    body.chunks(4097).for_each(|chunk| writer.write(Bytes::copy_from_slice(chunk)).unwrap());
    assert_eq!((writer.upload_size(), writer.etag()), (200_000, hex(&md5(&body))));
    writer.put(metadata(10, &body)).unwrap().commit().unwrap();
    for name in ["small", "big"] {
        assert_eq!(disk.files(name), ["0000000010.00000.data"]);
        let mut reader = disk.object(name).open(None).unwrap().reader(ReaderOptions::default());
        let mut read = Vec::new();
        loop {
            let chunk = reader.read_chunk(read.len() as u64, u64::MAX).unwrap();
            if chunk.is_empty() {
                break;
            }
            read.extend(chunk);
        }
        assert_eq!(read, body);
        assert_eq!(reader.close(), None);
        let mut reader = disk.object(name).open(None).unwrap().reader(ReaderOptions::default());
        assert_eq!(reader.read(0, body.len()).unwrap(), body);
        // Another range of it.
        assert_eq!(reader.read(5, 1000).unwrap(), body[5..1005]);
        assert_eq!(reader.close(), None);
    }
    assert_eq!(disk.warnings(), 0);
}

#[test]
fn a_writer_that_is_given_up_leaves_no_file() {
    for use_linkat in [true, false] {
        let disk = disk();
        disk.manager.use_linkat.store(use_linkat, std::sync::atomic::Ordering::Relaxed);
        let mut writer = disk.object("o").writer(None).unwrap();
        writer.write(Bytes::from_static(b"half")).unwrap();
        drop(writer);
        assert!(disk.files("o").is_empty());
        assert!(names(&disk.device().join("tmp")).is_empty());
        disk.put("o", 10, b"whole");
        assert_eq!(disk.files("o"), ["0000000010.00000.data"]);
        assert!(names(&disk.device().join("tmp")).is_empty());
    }
}

#[test]
fn the_same_timestamp_again_replaces_the_file_in_one_step() {
    let disk = disk();
    disk.put("o", 10, b"first");
    let opened = disk.object("o").open(None).unwrap();
    disk.put("o", 10, b"second");
    assert_eq!(disk.files("o"), ["0000000010.00000.data"]);
    assert_eq!(disk.object("o").open(None).unwrap().read_small().unwrap().data, b"second");
    // Who had it open goes on reading the first.
    assert_eq!(opened.read_small().unwrap().data, b"first");
}

#[test]
fn hash_dirs_removed_under_a_writer_are_made_again() {
    let disk = disk();
    let mut writer = disk.object("o").writer(None).unwrap();
    writer.write(Bytes::from_static(b"body")).unwrap();
    fs::remove_dir_all(disk.device().join("objects")).unwrap();
    writer.put(metadata(10, b"body")).unwrap().commit().unwrap();
    assert_eq!(disk.object("o").open(None).unwrap().read_small().unwrap().data, b"body");
    assert_eq!(disk.hashes().len(), 1);
}

#[test]
fn a_device_that_is_gone_is_not_made() {
    let disk = disk();
    let object = disk.object("o");
    fs::remove_dir_all(disk.device()).unwrap();
    assert!(matches!(object.open(None), Err(DiskFileError::DeviceUnavailable)));
    assert!(object.delete(at(10)).is_err());
    assert!(!disk.device().exists());
    let unseen = disk.manager.diskfile_to_open("sda", 7, "a", "c", "o").unwrap();
    assert!(matches!(unseen.open(None), Err(DiskFileError::DeviceUnavailable)));
    assert!(matches!(disk.manager.diskfile("sda", 7, "a", "c", "o"), Err(DiskFileError::DeviceUnavailable)));
    for bad in ["", ".", "..", "a/b", "s d"] {
        assert!(disk.manager.dev_path(bad).is_none(), "{bad:?}");
    }
}

#[test]
fn mount_check_wants_a_mount_point_or_its_stub() {
    let disk = disk_with(DiskFileConf::default());
    let conf = DiskFileConf { mount_check: true, ..disk.manager.conf().clone() };
    let checked = DiskFileManager::new(
        conf,
        <common::policy::Policies as Default>::default().legacy(),
        Default::default(),
        Clock::system(),
        Logger::memory().0,
        Statsd::disabled(),
    );
    assert_eq!(checked.dev_path("sda"), None);
    fs::write(disk.device().join(".ismount"), "").unwrap();
    assert_eq!(checked.dev_path("sda"), Some(disk.device()));
}

#[test]
fn full_devices_refuse_puts_and_posts_but_not_deletes() {
    let reserve = common::config::FallocateReserve::Percent(99.999);
    let disk = disk_with(DiskFileConf { fallocate_reserve: reserve, ..DiskFileConf::default() });
    for size in [None, Some(0), Some(1), Some(1 << 20)] {
        assert!(matches!(disk.object("o").writer(size), Err(DiskFileError::NoSpace)), "{size:?}");
    }
    assert!(matches!(disk.object("o").write_metadata(post(10, None)), Err(DiskFileError::NoSpace)));
    disk.object("o").delete(at(10)).unwrap();
}

#[test]
fn objects_expire_at_the_second() {
    let disk = disk();
    let mut metadata = metadata(10, b"x");
    metadata.insert("X-Delete-At", "2000");
    disk.object("o").put_small(b"x", metadata).unwrap();
    assert!(disk.object("o").open(Some(at(1999))).is_ok());
    match disk.object("o").open(Some(at(2000))) {
        Err(DiskFileError::Expired { timestamp, metadata }) => {
            assert_eq!(timestamp, at(10));
            assert_eq!(metadata.get_str("X-Delete-At"), Some("2000"));
        }
        _ => panic!("not expired"),
    }
    assert!(disk.object("o").open_expired(true).open(None).is_ok());
}

#[test]
fn old_tombstones_are_reclaimed_with_their_directories() {
    let disk = disk();
    let age = disk.manager.conf().reclaim_age.as_secs();
    disk.object("o").delete(at(NOW - age)).unwrap();
    assert_eq!(disk.hashes().len(), 1);
    disk.manager.clock().advance(std::time::Duration::from_secs(1));
    disk.manager.invalidate_hash("sda", 7, disk.object("o").hash().suffix()).unwrap();
    assert!(disk.hashes().is_empty());
    assert_eq!(names(&disk.partition()), [".lock", "hashes.invalid", "hashes.pkl"]);
}

#[test]
fn metadata_of_a_post_stays_without_data_until_reclaim() {
    let disk = disk();
    disk.object("o").write_metadata(post(NOW, None)).unwrap();
    assert!(matches!(disk.object("o").open(None), Err(DiskFileError::NotExist)));
    assert_eq!(disk.files("o").len(), 1);
    disk.manager.clock().advance(disk.manager.conf().reclaim_age + std::time::Duration::from_secs(1));
    assert_eq!(disk.manager.yield_hashes("sda", 7, None, Want::default()).unwrap().count(), 0);
    assert!(disk.files("o").is_empty());
}

/// One damaged object: it goes to quarantine with one log line, its neighbour stays, and the suffix is rehashed.
#[track_caller]
fn check_damage(damage: impl Fn(&Path), expected: &str) {
    let disk = disk();
    disk.put("good", 10, b"good");
    disk.put("bad", 10, b"0123456789");
    let before = disk.hashes();
    damage(disk.object("bad").datadir());
    match disk.object("bad").open(None) {
        Err(DiskFileError::Quarantined(reason)) => assert!(reason.contains(expected), "{reason}"),
        Err(err) => panic!("{err}"),
        Ok(opened) => {
            let reason = opened.read_small().unwrap().quarantined.unwrap();
            assert!(reason.contains(expected), "{reason}");
        }
    }
    assert_eq!(disk.quarantined(), [disk.object("bad").hash().to_string()]);
    assert_eq!(disk.warnings(), 1);
    assert!(matches!(disk.object("bad").open(None), Err(DiskFileError::NotExist)));
    assert!(disk.object("good").open(None).is_ok());
    let after = disk.hashes();
    assert_eq!((before.len(), after.len()), (2, 1));
    assert!(after.get(disk.object("good").hash().suffix()).is_some());
    disk.put("bad", 11, b"good again");
    assert_eq!(disk.warnings(), 1);
}

fn data_file(dir: &Path) -> fs::File {
    let name = names(dir).into_iter().find(|name| name.ends_with(".data")).unwrap();
    fs::File::options().read(true).write(true).open(dir.join(name)).unwrap()
}

fn rewrite(dir: &Path, change: impl Fn(&mut Metadata)) {
    let file = data_file(dir);
    let mut metadata = read_metadata(&file, false).unwrap();
    change(&mut metadata);
    write_metadata(&file, &metadata).unwrap();
}

#[test]
fn corrupt_data_is_quarantined() {
    check_damage(
        |dir| data_file(dir).set_len(3).unwrap(),
        "metadata content-length 10 does not match actual",
    );
    check_damage(|dir| rustix::io::pwrite(data_file(dir), b"X", 4).map(drop).unwrap(), "do not match");
}

#[test]
fn corrupt_metadata_is_quarantined() {
    let set = |dir: &Path, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(data_file(dir), "user.swift.metadata", value, flags).unwrap();
    };
    check_damage(|dir| set(dir, b"\x80\x02}q\x00"), "Metadata checksum mismatch");
    check_damage(|dir| rewrite(dir, |m| drop(m.remove("name"))), "missing name metadata");
    check_damage(|dir| rewrite(dir, |m| drop(m.remove("Content-Length"))), "missing content-length");
    check_damage(
        |dir| rewrite(dir, |m| m.insert("Content-Length", "ten")),
        "bad metadata content-length value ten",
    );
    check_damage(
        |dir| rewrite(dir, |m| m.insert("X-Delete-At", "soon")),
        "bad metadata x-delete-at value soon",
    );
    let remove = |dir: &Path| rustix::fs::fremovexattr(data_file(dir), "user.swift.metadata").unwrap();
    check_damage(remove, "Metadata checksum mismatch");
}

#[test]
fn files_where_directories_should_be_are_quarantined() {
    let replace = |dir: &Path| {
        fs::remove_dir_all(dir).unwrap();
        fs::write(dir, "").unwrap();
    };
    check_damage(replace, "Expected directory, found file");
    let directory_as_data_file = |dir: &Path| {
        let name = names(dir).remove(0);
        fs::remove_file(dir.join(&name)).unwrap();
        fs::create_dir(dir.join(&name)).unwrap();
    };
    check_damage(directory_as_data_file, "Exception reading metadata");
}

#[test]
fn a_second_quarantine_of_the_same_object_gets_a_name_of_its_own() {
    let disk = disk();
    for secs in 10..13 {
        disk.put("o", secs, b"body");
        data_file(disk.object("o").datadir()).set_len(1).unwrap();
        assert!(matches!(disk.object("o").open(None), Err(DiskFileError::Quarantined(_))));
    }
    let hash = disk.object("o").hash().to_string();
    assert_eq!(disk.quarantined().len(), 3);
    assert!(disk.quarantined().iter().all(|name| name.starts_with(&hash)));
}

#[test]
fn a_full_read_that_finds_other_bytes_quarantines_on_close_and_ranges_do_not() {
    let disk = disk();
    let body = vec![7; 100_000];
    disk.put("o", 10, &body);
    rewrite(disk.object("o").datadir(), |m| m.insert("ETag", "bad"));
    let open = || disk.object("o").open(None).unwrap().reader(ReaderOptions::default());
    let mut range = open();
    assert_eq!(range.read_chunk(5, 10).unwrap().len(), 5);
    assert_eq!(range.read_chunk(99_999, u64::MAX).unwrap().len(), 1);
    assert_eq!(range.close(), None);
    let mut full = open();
    assert_eq!(full.read_chunk(0, 50_000).unwrap().len(), 50_000);
    assert_eq!(full.read_chunk(50_000, 100_000).unwrap().len(), 50_000);
    assert!(full.close().unwrap().contains("do not match"));
    assert!(matches!(disk.object("o").open(None), Err(DiskFileError::NotExist)));
}

#[test]
fn a_suffix_that_is_a_file_goes_to_quarantine() {
    let disk = disk();
    let suffix_dir = disk.object("o").place.suffix_dir().to_owned();
    fs::create_dir_all(disk.partition()).unwrap();
    fs::write(&suffix_dir, "").unwrap();
    assert!(matches!(disk.object("o").open(None), Err(DiskFileError::Quarantined(_))));
    disk.put("o", 10, b"body");
    assert!(disk.object("o").open(None).is_ok());
    assert_eq!(disk.quarantined().len(), 1);
}

#[test]
fn broken_hashes_pkl_is_made_anew() {
    let disk = disk();
    disk.put("o", 10, b"body");
    let hashes = disk.hashes();
    for junk in [&b""[..], b"junk", b"\x80\x02]q\x00.", b"\x80\x02}q\x00X\x03\x00\x00\x00zzzq\x01Ns."] {
        fs::write(disk.partition().join("hashes.pkl"), junk).unwrap();
        assert_eq!(disk.hashes(), hashes);
    }
    fs::write(disk.partition().join("hashes.invalid"), "junk\n\u{fffd}\n\nabcd\n").unwrap();
    assert_eq!(disk.hashes(), hashes);
    assert_eq!(fs::metadata(disk.partition().join("hashes.invalid")).unwrap().len(), 0);
    assert_eq!(disk.warnings(), 0);
}

#[test]
fn hashes_that_are_up_to_date_are_not_written_again() {
    let disk = disk();
    disk.put("o", 10, b"body");
    let hashes = disk.hashes();
    let inode = || fs::metadata(disk.partition().join("hashes.pkl")).unwrap().ino();
    let before = inode();
    assert_eq!(disk.hashes(), hashes);
    assert_eq!(inode(), before);
    let suffix = disk.object("o").hash().suffix();
    assert_eq!(disk.manager.get_hashes("sda", 7, &[suffix], true).unwrap(), None);
    assert_eq!(disk.manager.rehash(&disk.device(), 7, &[], false).unwrap(), (1, hashes));
    assert!(disk.manager.get_hashes("sda", 8, &[], false).unwrap().unwrap().is_empty());
    assert!(!disk.device().join("objects/8").exists());
}

#[test]
fn what_a_rehash_has_seen_is_what_a_listing_tells() {
    let disk = disk();
    for n in 0..8 {
        disk.put(&format!("o{n}"), 10 + n, b"body");
    }
    disk.object("o3").delete(disk.manager.clock().now()).unwrap();
    let all = disk.manager.yield_suffixes("sda", 7).unwrap();
    let (anew, left_out) = all.split_at(all.len() - 2);
    disk.hashes();
    let (hashed, (hashes, seen)) = disk.manager.rehash_and_list(&disk.device(), 7, anew).unwrap();
    assert_eq!((hashed, &hashes), (anew.len(), &disk.hashes()));
    let listed = |suffixes: &[Suffix]| {
        let list = disk.manager.yield_hashes("sda", 7, Some(suffixes), Want::default()).unwrap();
        list.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (objects, unseen) = seen.of(&all);
    assert_eq!(objects.into_iter().collect::<std::collections::BTreeMap<_, _>>(), listed(anew));
    assert_eq!(unseen, left_out);
    let (objects, unseen) = seen.of(&all[..1]);
    assert_eq!((objects.len(), unseen.len()), (listed(&all[..1]).len(), 0));
}

/// Swift loses the new file here until its suffix changes again.
#[test]
fn a_rehash_between_invalidation_and_link_does_not_hide_the_new_file() {
    let disk = disk();
    disk.put("o", 10, b"body");
    let old = disk.hashes();
    let suffix = disk.object("o").hash().suffix();
    let invalidation = hashes::Invalidation::begin(&disk.partition(), &disk.device(), &[suffix]).unwrap();
    assert_eq!(disk.hashes(), old);
    invalidation
        .publish(|| {
            fs::write(disk.object("o").datadir().join(format!("{}.ts", at(11).internal())), "").unwrap();
            Ok(())
        })
        .unwrap();
    assert_ne!(disk.hashes().get(suffix), old.get(suffix));
}

#[test]
fn concurrent_writers_and_rehashes_lose_nothing() {
    let disk = disk();
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let disk = &disk;
            scope.spawn(move || {
                for secs in 0..8 {
                    disk.put("shared", 100 + secs * 4 + writer, b"shared");
                    disk.put(&format!("own-{writer}-{secs}"), 10, b"own");
                    disk.hashes();
                }
            });
        }
    });
    assert_eq!(disk.files("shared"), ["0000000131.00000.data"]);
    let incremental = disk.hashes();
    fs::remove_file(disk.partition().join("hashes.pkl")).unwrap();
    let mut anew: Vec<_> = disk.hashes().iter().map(|(s, h)| (s, h.cloned())).collect();
    let mut incremental: Vec<_> = incremental.iter().map(|(s, h)| (s, h.cloned())).collect();
    anew.sort_by_key(|(suffix, _)| *suffix);
    incremental.sort_by_key(|(suffix, _)| *suffix);
    assert_eq!(incremental, anew);
    assert_eq!(disk.manager.yield_hashes("sda", 7, None, Want::default()).unwrap().count(), 33);
    assert_eq!(disk.lines.at_least(Level::Warning), Vec::<String>::new());
}

#[test]
fn yield_hashes_tells_all_timestamps_and_skips_junk() {
    let disk = disk();
    disk.put("o", 10, b"body");
    disk.object("o").write_metadata(post(12, Some(11))).unwrap();
    disk.object("gone").delete(at(NOW)).unwrap();
    let junk = disk.object("o").place.suffix_dir().join("junk");
    fs::write(&junk, "").unwrap();
    fs::create_dir_all(disk.partition().join("fff")).unwrap();
    let found: BTreeMap<_, _> = disk.manager.yield_hashes("sda", 7, None, Want::default()).unwrap().collect();
    assert_eq!(found.len(), 2);
    let object = found[&disk.object("o").hash()];
    assert_eq!((object.data, object.meta, object.ctype), (at(10), Some(at(12)), Some(at(11))));
    assert_eq!(found[&disk.object("gone").hash()].data, at(NOW));
    assert!(!junk.exists());
    assert_eq!(disk.warnings(), 1);
    // The empty suffix was invalidated, and is removed by the rehash.
    disk.hashes();
    assert!(!disk.partition().join("fff").exists());
    assert_eq!(disk.manager.yield_hashes("sda", 7, Some(&[]), Want::default()).unwrap().count(), 0);
}

#[test]
fn a_hash_alone_leads_to_the_object_or_its_tombstone() {
    let disk = disk();
    disk.put("a/b", 10, b"body");
    disk.object("gone").delete(at(NOW)).unwrap();
    for name in ["a/b", "gone"] {
        let hash = disk.object(name).hash();
        let (diskfile, filenames) = disk.manager.diskfile_and_filenames_from_hash("sda", 7, hash).unwrap();
        assert_eq!(diskfile.name(), Some(format!("/a/c/{name}").as_str()));
        assert_eq!(filenames, disk.files(name));
        let found = disk.manager.diskfile_at("sda", disk.object(name).datadir().to_owned()).open(None);
        assert_eq!(found.is_ok(), name == "a/b");
    }
    let unknown = disk.object("unknown").hash();
    assert!(matches!(
        disk.manager.diskfile_and_filenames_from_hash("sda", 7, unknown),
        Err(DiskFileError::NotExist)
    ));
}

#[test]
fn an_object_in_the_hash_dir_of_another_is_refused() {
    let disk = disk();
    disk.put("o", 10, b"body");
    let other = disk.object("other");
    fs::create_dir_all(other.place.suffix_dir()).unwrap();
    common::fs::rename(disk.object("o").datadir(), other.datadir()).unwrap();
    assert!(matches!(other.open(None), Err(DiskFileError::Collision)));
    let by_hash = disk.manager.diskfile_at("sda", other.datadir().to_owned());
    assert!(matches!(by_hash.open(None), Err(DiskFileError::Quarantined(_))));
}

#[test]
fn locks_keep_others_out_until_dropped() {
    let timeout = std::time::Duration::from_millis(30);
    let conf = DiskFileConf { replication_lock_timeout: timeout, ..DiskFileConf::default() };
    let disk = disk_with(conf);
    let held = disk.manager.replication_lock("sda", 7, None).unwrap();
    let refused = |partition| {
        matches!(disk.manager.replication_lock("sda", partition, None), Err(DiskFileError::LockTimeout(_)))
    };
    assert!(refused(7), "the partition is locked");
    assert!(refused(8), "the device takes one at a time");
    assert!(disk.manager.partition_lock("sda", 7, None, None).is_ok(), "another lock of the partition");
    drop(held);
    assert!(disk.manager.replication_lock("sda", 8, None).is_ok());
    assert!(disk.device().join("objects/7/.lock-replication").exists());
}

#[test]
fn container_updates_are_left_for_the_updater() {
    let disk = disk();
    let update = common::pickle::Value::Dict(vec![]);
    disk.manager.pickle_async_update("sda", "a", "c", "o", &update, at(10)).unwrap();
    let hash = disk.object("o").hash();
    let path = disk.device().join(format!("async_pending/{}/{hash}-{}", hash.suffix(), at(10).internal()));
    assert_eq!(common::pickle::loads(&fs::read(path).unwrap()).unwrap(), update);
    assert!(names(&disk.device().join("tmp")).is_empty());
}

#[test]
fn writes_follow_into_the_next_partition() {
    let disk = disk();
    let hash = disk.object("o").hash();
    let (part_power, suffix) = (5, hash.suffix().to_string());
    let object = |power| {
        let partition = hash.partition(power);
        disk.manager.diskfile("sda", partition, "a", "c", "o").unwrap().next_part_power(Some(part_power + 1))
    };
    let body = b"body";
    let dir = |power: u32| disk.device().join(format!("objects/{}/{suffix}/{hash}", hash.partition(power)));
    assert_ne!(dir(part_power), dir(part_power + 1), "the name was chosen for this");
    object(part_power).put_small(body, metadata(10, body)).unwrap();
    object(part_power).put_small(body, metadata(11, body)).unwrap();
    for power in [part_power, part_power + 1] {
        assert_eq!(names(&dir(power)), ["0000000011.00000.data"]);
    }
    // After the increase: written in the new partition; the old one keeps what only the relinker may remove.
    object(part_power + 1).delete(at(NOW)).unwrap();
    assert_eq!(names(&dir(part_power + 1)), [format!("{}.ts", at(NOW).internal())]);
    assert_eq!(names(&dir(part_power)), ["0000000011.00000.data"]);
}

#[test]
fn suffixes_are_hashed_as_swift_does() {
    let disk = disk();
    disk.put("o", 10, b"body");
    disk.object("o").write_metadata(post(13, None)).unwrap();
    disk.object("o").write_metadata(post(12, Some(11))).unwrap();
    let expected = "0000000013.00000.meta0000000010.00000.data0000000011.00000_ctype";
    let hash = SuffixHash::Whole(md5(expected.as_bytes()).into());
    assert_eq!(disk.hashes().get(disk.object("o").hash().suffix()), Some(&hash));
    assert_eq!(SuffixHashes::from_answer(&disk.hashes().to_answer()), Some(disk.hashes()));
    assert_eq!(Suffix::parse("zzz"), None);
}

#[test]
fn hashes_are_had_from_memory_while_there_is_nothing_to_hash() {
    let disk = disk();
    let in_memory = || disk.manager.hashes_in_memory("sda", 7);
    assert_eq!(in_memory(), None, "no partition");
    disk.put("o", 10, b"body");
    assert_eq!(in_memory(), None, "never hashed");
    let hashes = disk.hashes();
    let there = || has_memory(&disk).then(|| disk.hashes());
    assert_eq!(in_memory(), there());
    disk.put("p", 11, b"body");
    assert_eq!(in_memory(), None, "a PUT");
    assert_ne!(disk.hashes(), hashes);
    assert_eq!(in_memory(), there());
    let (pickle, invalid) = (disk.partition().join("hashes.pkl"), disk.partition().join("hashes.invalid"));
    // As another process does.
    fs::write(&invalid, "abc\n").unwrap();
    assert_eq!(in_memory(), None, "an invalidation");
    disk.hashes();
    assert_eq!(in_memory(), there());
    let written = fs::read(&pickle).unwrap();
    for broken in [&b""[..], b"\x80\x02N.", &written[..written.len() - 1]] {
        fs::write(&pickle, broken).unwrap();
        assert_eq!(in_memory(), None, "{broken:?}");
    }
    let suffix = disk.object("o").hash().suffix().to_string();
    for (key, value) in [("valid", Value::Bool(false)), (&suffix, Value::None)] {
        let Ok(Value::Dict(mut items)) = pickle::loads(&written) else { panic!("it is a dict") };
        items.iter_mut().filter(|item| item.0.as_str() == Some(key)).for_each(|item| item.1 = value.clone());
        fs::write(&pickle, pickle::dumps(&Value::Dict(items))).unwrap();
        assert_eq!(in_memory(), None, "{key}");
    }
    fs::write(&pickle, &written).unwrap();
    assert_eq!(in_memory(), there());
    fs::remove_file(&invalid).unwrap();
    assert_eq!(in_memory(), None, "nobody knows what was invalidated");
}

#[test]
fn hashes_below_a_mount_point_without_its_device_are_not_had_from_memory() {
    let mut disk = disk();
    disk.put("o", 10, b"body");
    disk.hashes();
    Arc::get_mut(&mut disk.manager).unwrap().conf.mount_check = true;
    assert_eq!(disk.manager.hashes_in_memory("sda", 7), None);
}

/// A put that fails at any step leaves the old version or the new one, whole; the hashes agree; the next put works.
#[test]
fn a_put_that_fails_at_any_step_leaves_the_old_version_or_the_new() {
    use common::fs::fail::{Action, arm_thread};
    let before_link = [
        "fs.create",
        "fs.fallocate",
        "put.write",
        "fs.write_metadata",
        "hashes.append_invalid",
        "fs.fdatasync",
        "fs.fsync",
        "put.before_link",
        "fs.link",
    ];
    let after_link = ["put.before_sync_dir", "put.before_cleanup"];
    for point in before_link.into_iter().chain(after_link) {
        for (errno, no_space) in [(Errno::IO, false), (Errno::NOSPC, true)] {
            let disk = disk();
            disk.put("o", 10, b"old");
            disk.hashes();
            let armed = arm_thread(point, Action::Error(errno));
            let failed = disk.object("o").put_small(b"new", metadata(11, b"new")).unwrap_err();
            drop(armed);
            assert_eq!(matches!(failed, DiskFileError::NoSpace), no_space, "{point}: {failed}");
            let expected: &[u8] = if after_link.contains(&point) { b"new" } else { b"old" };
            assert_eq!(disk.object("o").open(None).unwrap().read_small().unwrap().data, expected, "{point}");
            let hashes = disk.hashes();
            fs::remove_file(disk.partition().join("hashes.pkl")).unwrap();
            assert_eq!(disk.hashes(), hashes, "{point}");
            assert_eq!(disk.files("o").len(), 1, "{point}");
            disk.put("o", 12, b"newer");
            assert_eq!(disk.files("o"), ["0000000012.00000.data"]);
            assert!(names(&disk.device().join("tmp")).is_empty());
        }
    }
}

#[test]
fn hashes_survive_a_consolidation_that_stops_half_way() {
    use common::fs::fail::{Action, arm_thread};
    let disk = disk();
    disk.put("o", 10, b"old");
    disk.hashes();
    disk.put("o", 11, b"new");
    let armed = arm_thread("hashes.truncate_invalid", Action::Error(Errno::IO));
    // As in Swift: a partition that cannot be consolidated is hashed from what there is.
    let hashes = disk.hashes();
    drop(armed);
    assert_eq!(disk.warnings(), 1);
    assert_eq!(disk.hashes(), hashes);
    fs::remove_file(disk.partition().join("hashes.pkl")).unwrap();
    assert_eq!(disk.hashes(), hashes);
}
