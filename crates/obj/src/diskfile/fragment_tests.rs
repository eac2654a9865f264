//! Fragments on a real file system: PUT and commit, what is opened, crashes at any step, reclaim and purge.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use bytes::Bytes;
use common::digest::{hex, md5};
use rustix::io::Errno;

use super::tests::{Disk, NOW, at, disk_of, metadata, names};
use super::*;

const POLICY: &str = "[storage-policy:0]\nname = ec\ndefault = yes\npolicy_type = erasure_coding\n\
                      ec_type = isa_l_rs_cauchy\nec_num_data_fragments = 4\nec_num_parity_fragments = 2\n";

const SEGMENT: usize = 1 << 20;

fn disk() -> Disk {
    disk_of(DiskFileConf::default(), POLICY)
}

fn fragment(secs: u64, index: &str, body: &[u8]) -> Metadata {
    let mut metadata = metadata(secs, body);
    metadata.insert("X-Object-Sysmeta-Ec-Frag-Index", index);
    metadata
}

impl Disk {
    fn place(&self, secs: u64, index: u32, body: &[u8]) -> Placed {
        let metadata = fragment(secs, &index.to_string(), body);
        self.object("o").write_small(body).unwrap().0.put(metadata).unwrap()
    }

    fn put_fragment(&self, secs: u64, index: u32) {
        self.place(secs, index, b"").commit().unwrap();
    }

    fn opened(&self, frag_index: Option<u32>, prefs: Option<&[FragPref]>) -> Result<String, DiskFileError> {
        let opened =
            self.object("o").frag_index(frag_index).frag_prefs(prefs.map(Arc::from)).open(Some(at(NOW)))?;
        Ok(opened.data_file().file_name().unwrap().to_string_lossy().into_owned())
    }
}

#[test]
fn a_fragment_is_shown_when_it_is_committed() {
    let disk = disk();
    let placed = disk.place(10, 2, b"");
    assert_eq!(disk.files("o"), ["0000000010.00000#2.data"]);
    assert!(matches!(disk.opened(None, None), Err(DiskFileError::NotExist)));
    assert_eq!(disk.opened(None, Some(&[])).unwrap(), "0000000010.00000#2.data");
    placed.commit().unwrap();
    assert_eq!(disk.files("o"), ["0000000010.00000#2#d.data"]);
    let opened = disk.object("o").open(None).unwrap();
    assert_eq!(opened.durable_timestamp(), Some(at(10)));
    assert_eq!(opened.fragments(), [(at(10), vec![2])]);

    // A newer one leaves it in place until its own commit.
    let newer = disk.place(11, 2, b"");
    let opened = disk.object("o").frag_prefs(Some(Arc::from([]))).open(None).unwrap();
    assert_eq!((opened.data_timestamp(), opened.durable_timestamp()), (at(11), Some(at(10))));
    assert_eq!(opened.fragments(), [(at(11), vec![2]), (at(10), vec![2])]);
    assert_eq!(disk.opened(None, None).unwrap(), "0000000010.00000#2#d.data");
    newer.commit().unwrap();
    assert_eq!(disk.files("o"), ["0000000011.00000#2#d.data"]);
}

#[test]
fn several_fragments_of_one_object_may_be_here() {
    let disk = disk();
    for index in [4, 0, 2] {
        disk.put_fragment(10, index);
    }
    let pref = |exclude: &[u32]| FragPref { timestamp: at(10), exclude: exclude.to_vec() };
    assert_eq!(disk.opened(None, None).unwrap(), "0000000010.00000#4#d.data");
    assert_eq!(disk.opened(Some(0), None).unwrap(), "0000000010.00000#0#d.data");
    assert!(matches!(disk.opened(Some(3), None), Err(DiskFileError::NotExist)));
    assert_eq!(disk.opened(None, Some(&[pref(&[4])])).unwrap(), "0000000010.00000#2#d.data");
    assert_eq!(disk.opened(None, Some(&[pref(&[4, 2])])).unwrap(), "0000000010.00000#0#d.data");
    assert!(matches!(disk.opened(None, Some(&[pref(&[4, 2, 0])])), Err(DiskFileError::NotExist)));
}

#[test]
fn the_index_must_be_one_of_the_policy() {
    let disk = disk();
    for bad in ["6", "-1", "x", ""] {
        assert!(disk.object("o").put_small(b"", fragment(10, bad, b"")).is_err(), "{bad:?}");
    }
    assert!(disk.object("o").put_small(b"", metadata(10, b"")).is_err(), "no index at all");
    assert_eq!(disk.files("o"), [""; 0]);
    let object = disk.object("o").frag_index(Some(3));
    object.put_small(b"", metadata(10, b"")).unwrap();
    let opened = object.open(None).unwrap();
    assert_eq!(opened.metadata().get_str("X-Object-Sysmeta-Ec-Frag-Index"), Some("3"));
    assert!(!opened.validate_metadata(), "an ETag of the object is missing");
}

#[test]
fn a_commit_that_comes_too_late_has_succeeded() {
    let disk = disk();
    let late = [disk.place(10, 1, b""), disk.place(10, 1, b"")];
    disk.put_fragment(11, 1);
    let [first, second] = late;
    first.commit().unwrap();
    disk.object("o").delete(at(NOW)).unwrap();
    second.commit().unwrap();
    assert_eq!(disk.files("o"), [format!("{}.ts", at(NOW).internal())]);
    // But not if what it would commit is gone for no reason.
    let lost = disk.place(NOW + 1, 1, b"");
    fs::remove_file(disk.object("o").datadir().join(make_fragment_filename(at(NOW + 1), 1, false))).unwrap();
    assert!(lost.commit().is_err());
}

#[test]
fn deletes_and_posts_need_no_commit() {
    let disk = disk();
    disk.put_fragment(10, 1);
    let mut post = Metadata::new();
    post.insert("X-Timestamp", at(11).internal());
    post.insert("X-Object-Meta-A", "b");
    disk.object("o").write_metadata(post).unwrap();
    assert_eq!(disk.files("o"), ["0000000010.00000#1#d.data", "0000000011.00000.meta"]);
    let opened = disk.object("o").open(None).unwrap();
    assert_eq!(opened.metadata().get_str("X-Object-Meta-A"), Some("b"));
    assert_eq!(opened.metadata().get_str("X-Object-Sysmeta-Ec-Frag-Index"), Some("1"));
    disk.object("o").delete(at(NOW)).unwrap();
    assert_eq!(disk.files("o"), [format!("{}.ts", at(NOW).internal())]);
}

/// A commit that fails at any step leaves the fragment as it was or committed; the hashes agree; the next one works.
#[test]
fn a_commit_that_fails_at_any_step_leaves_either_state() {
    use common::fs::fail::{Action, arm_thread};
    for (point, done) in [
        ("commit.before_rename", false),
        ("fs.rename", false),
        ("commit.before_sync_dir", true),
        ("fs.fsync", true),
        ("commit.before_cleanup", true),
    ] {
        for (errno, no_space) in [(Errno::IO, false), (Errno::NOSPC, true)] {
            let disk = disk();
            disk.put_fragment(10, 1);
            let placed = disk.place(11, 1, b"");
            // A rehash in between must not keep what is about to change.
            disk.hashes();
            let armed = arm_thread(point, Action::Error(errno));
            let failed = placed.commit().unwrap_err();
            drop(armed);
            assert_eq!(matches!(failed, DiskFileError::NoSpace), no_space, "{point}: {failed}");
            let expected = if done { "0000000011.00000#1#d.data" } else { "0000000010.00000#1#d.data" };
            assert_eq!(disk.opened(None, None).unwrap(), expected, "{point}");
            let hashes = disk.hashes();
            fs::remove_file(disk.partition().join("hashes.pkl")).unwrap();
            assert_eq!(disk.hashes(), hashes, "{point}");
            disk.object("o").commit(at(11), 1).unwrap_or_else(|err| assert!(done, "{point}: {err}"));
            disk.put_fragment(12, 1);
            assert_eq!(disk.files("o"), ["0000000012.00000#1#d.data"], "{point}");
        }
    }
}

#[test]
fn hashes_tell_a_commit_whenever_it_comes() {
    let disk = disk();
    let placed = disk.place(10, 1, b"");
    let suffix = disk.object("o").hash().suffix();
    let of = |parts: &[(Option<u32>, &str)]| {
        SuffixHash::Fragments(parts.iter().map(|(key, text)| (*key, hex(&md5(text.as_bytes())))).collect())
    };
    assert_eq!(disk.hashes().get(suffix), Some(&of(&[(Some(1), "0000000010.00000")])));
    placed.commit().unwrap();
    let durable = of(&[(Some(1), "0000000010.00000"), (None, "0000000010.00000.durable")]);
    assert_eq!(disk.hashes().get(suffix), Some(&durable));
    // The files of an old writer are the same state.
    let dir = disk.object("o").datadir().to_owned();
    common::fs::rename_present(&dir.join("0000000010.00000#1#d.data"), &dir.join("0000000010.00000#1.data"))
        .unwrap();
    fs::write(dir.join("0000000010.00000.durable"), "").unwrap();
    fs::remove_file(disk.partition().join("hashes.pkl")).unwrap();
    assert_eq!(disk.hashes().get(suffix), Some(&durable));
    assert_eq!(disk.opened(None, None).unwrap(), "0000000010.00000#1.data");
}

#[test]
fn fragments_without_a_commit_are_reclaimed_when_both_name_and_file_are_old() {
    let conf = DiskFileConf { reclaim_age: Duration::from_secs(1000), ..DiskFileConf::default() };
    let disk = disk_of(conf, POLICY);
    let clean_up = || disk.manager.cleanup_hash_dir(disk.object("o").datadir()).unwrap().len();
    let set_age = |name: &str, age: u64| {
        let file = fs::File::options().write(true).open(disk.object("o").datadir().join(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW - age)).unwrap();
        assert_eq!(file.metadata().unwrap().mtime() as u64, NOW - age);
    };
    drop(disk.place(NOW - 2000, 1, b""));
    let old = format!("{}#1.data", at(NOW - 2000).internal());
    set_age(&old, 30);
    assert_eq!(clean_up(), 1, "its PUT may still be under way");
    set_age(&old, 61);
    assert_eq!(clean_up(), 0);
    drop(disk.place(NOW - 900, 1, b""));
    set_age(&format!("{}#1.data", at(NOW - 900).internal()), 900);
    assert_eq!(clean_up(), 1, "not old enough");
}

#[test]
fn what_has_been_reverted_is_purged_and_nothing_else() {
    let disk = disk();
    disk.put_fragment(10, 1);
    disk.put_fragment(10, 4);
    let object = disk.object("o");
    let purge = |secs, index, delay| object.purge(at(secs), index, Duration::from_secs(delay), None).unwrap();
    disk.hashes();
    purge(10, Some(3), 0);
    purge(9, Some(1), 0);
    assert_eq!(disk.files("o").len(), 2);
    purge(10, Some(1), 0);
    assert_eq!(disk.files("o"), ["0000000010.00000#4#d.data"]);
    let durable = fs::read_to_string(disk.partition().join("hashes.invalid")).unwrap();
    assert_eq!(durable, format!("{}\n", object.hash().suffix()).repeat(6));

    drop(disk.place(11, 1, b""));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    let young = object.datadir().join("0000000011.00000#1.data");
    fs::File::options().write(true).open(&young).unwrap().set_modified(now).unwrap();
    purge(11, Some(1), 60);
    assert!(young.exists());
    purge(11, Some(1), 0);
    purge(10, Some(4), 60);
    assert!(!object.datadir().exists());

    object.delete(at(NOW)).unwrap();
    purge(NOW, None, 60);
    assert_eq!(names(object.datadir()), [""; 0]);
}

#[test]
fn commits_follow_into_the_next_partition() {
    let disk = disk();
    let hash = disk.object("o").hash();
    let (old, new) = (hash.partition(5), hash.partition(6));
    let object = disk.manager.diskfile("sda", old, "a", "c", "o").unwrap().next_part_power(Some(6));
    let files = |partition| names(disk.manager.diskfile("sda", partition, "a", "c", "o").unwrap().datadir());
    assert_ne!(old, new);
    object.put_small(b"", fragment(9, "1", b"")).unwrap();
    let placed = object.write_small(b"").unwrap().0.put(fragment(10, "1", b"")).unwrap();
    assert_eq!(files(new), ["0000000009.00000#1#d.data", "0000000010.00000#1.data"]);
    placed.commit().unwrap();
    assert_eq!(files(old), ["0000000010.00000#1#d.data"]);
    assert_eq!(files(new), files(old));
}

/// An archive of fragment 1 of an object of `length` bytes.
fn archive(disk: &Disk, length: usize) -> Vec<u8> {
    let codec = disk.manager.codec().unwrap();
    let body: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
    let fragment = |segment: &[u8]| codec.encode(&Bytes::copy_from_slice(segment))[1].to_bytes();
    body.chunks(SEGMENT).flat_map(fragment).collect()
}

#[test]
fn archives_with_bad_fragments_go_to_quarantine_before_they_are_handed_out() {
    // Of 21 KiB in 1 MiB segments, and of two whole segments and a bit.
    for (length, damaged) in
        [(21 * 1024, 0), (2 * SEGMENT + 5, 0), (2 * SEGMENT + 5, 1), (2 * SEGMENT + 5, 2)]
    {
        let disk = disk();
        let mut archive = archive(&disk, length);
        let offset = damaged * disk.manager.fragment_len().unwrap();
        let read = |disk: &Disk| {
            let opened = disk.object("o").open(None).unwrap();
            let length = opened.content_length();
            if length <= SMALL_OBJECT {
                return opened.read_small().unwrap().quarantined.map_or(Ok(length), Err);
            }
            let mut reader = opened.reader(ReaderOptions::default());
            let mut offset = 0;
            while offset < length {
                match reader.read(offset, 50_000) {
                    Ok(data) => offset += data.len() as u64,
                    Err(DiskFileError::Quarantined(reason)) => return Err(reason),
                    Err(err) => panic!("{err}"),
                }
            }
            reader.close().map_or(Ok(offset), Err)
        };
        disk.place(10, 1, &archive).commit().unwrap();
        assert_eq!(read(&disk), Ok(archive.len() as u64));
        // In the checksum of the header; the ETag is that of the damaged archive.
        archive[offset + 70] ^= 1;
        disk.place(11, 1, &archive).commit().unwrap();
        assert_eq!(read(&disk), Err(format!("Invalid EC metadata at offset {offset:#x}")));
        assert_eq!(disk.quarantined().len(), 1);
        assert!(matches!(disk.opened(None, None), Err(DiskFileError::NotExist)));
    }
}

#[test]
fn an_archive_that_ends_in_a_header_is_bad() {
    let disk = disk();
    let whole = archive(&disk, SEGMENT);
    for (length, bad) in [(whole.len(), false), (whole.len() + 79, true), (79, true), (0, false)] {
        let archive = &[whole.as_slice(), whole.as_slice()].concat()[..length];
        disk.place(10, 1, archive).commit().unwrap();
        let opened = disk.object("o").open(None).unwrap();
        let mut reader = opened.reader(ReaderOptions::default());
        reader.read(0, length + 1).unwrap();
        assert_eq!(reader.close().is_some(), bad, "{length}");
    }
}

#[test]
fn ranges_of_an_archive_are_not_checked() {
    let disk = disk();
    let mut archive = archive(&disk, SEGMENT + 5);
    let second = disk.manager.fragment_len().unwrap();
    archive[second] ^= 1;
    disk.place(10, 1, &archive).commit().unwrap();
    let mut reader = disk.object("o").open(None).unwrap().reader(ReaderOptions::default());
    assert_eq!(reader.read(second as u64, 100).unwrap(), archive[second..second + 82]);
    assert_eq!(reader.close(), None);
}

/// What is removed for its age, and of fragments that are still to be committed, when they were written: the judge is Swift
/// (`tests/golden/make_reclaimed.py`).
#[test]
fn what_is_old_is_removed_as_by_swift() {
    const CLEANED: Duration = Duration::from_millis(1_500_000_000_250);
    let mut checked = 0;
    for line in include_str!("../../tests/golden/reclaimed.txt").lines() {
        let [window, _, name, gone, kept] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let conf = DiskFileConf {
            commit_window: Duration::from_secs_f64(window.parse().unwrap()),
            reclaim_age: Duration::from_secs(100),
            ..DiskFileConf::default()
        };
        let disk = disk_of(conf, POLICY);
        disk.manager.clock().advance(CLEANED - Duration::from_secs(NOW));
        let dir = disk.object("o").datadir().to_owned();
        for (times, stays) in [(gone, false), (kept, true)] {
            for ago in times.split(',').filter(|ago| !ago.is_empty()) {
                fs::create_dir_all(&dir).unwrap();
                let file = fs::File::create(dir.join(name)).unwrap();
                let written = CLEANED - Duration::from_millis(ago.parse().unwrap());
                file.set_modified(SystemTime::UNIX_EPOCH + written).unwrap();
                disk.manager.cleanup_ondisk_files(&dir, &mut Default::default()).unwrap();
                assert_eq!(dir.join(name).exists(), stays, "{name}, window {window}, written {ago} ms ago");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 120 * 17);
}

/// As in Swift, whose commit then fails too: with a window of nothing a fragment of long ago may be reclaimed before its commit, and
/// the PUT, which is a rebuild or a revert, is not acknowledged and comes again.
#[test]
fn a_commit_fails_when_the_fragment_was_reclaimed_before() {
    for (window, lost) in [(0, true), (60, false)] {
        let conf = DiskFileConf { commit_window: Duration::from_secs(window), ..DiskFileConf::default() };
        let reclaim_age = conf.reclaim_age;
        let disk = disk_of(conf, POLICY);
        let placed = disk.place(10, 2, b"");
        // Files are written by the kernel's clock.
        let since_written = Duration::from_secs_f64(common::Clock::system().unix_secs() - NOW as f64);
        disk.manager.clock().advance(since_written.max(reclaim_age));
        disk.hashes();
        assert_eq!(disk.files("o").is_empty(), lost, "{:?}", disk.files("o"));
        assert_eq!(placed.commit().is_err(), lost);
    }
}
