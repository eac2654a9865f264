//! The object reconstructor and the object server, as they meet between the nodes of a [`Cluster`] with an EC policy 2+2.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use cluster::{Cluster, SEGMENT, Trouble, archives};
use common::Timestamp;
use common::digest::{hex, md5};
use service::http::Method;
use service::logs::Level;

const OLD: f64 = 1_600_000_000.0;

struct Fragments(Cluster);

impl Fragments {
    fn new(nodes: usize) -> Self {
        Fragments(Cluster::of_fragments(nodes, (2, 2), ""))
    }

    /// Puts one fragment on a node, as SSYNC would.
    async fn put(&self, node: usize, object: &str, index: usize, body: &[u8], at: f64, commit: bool) {
        let archive = archives(body)[index].clone();
        let request = self.0.request(node, Method::Put, object, at);
        let request = request
            .with_header("Content-Length", archive.len())
            .with_header("X-Backend-Ssync-Frag-Index", index)
            .with_header("X-Object-Sysmeta-Ec-Frag-Index", index)
            .with_header("X-Object-Sysmeta-Ec-Etag", hex(&md5(body)))
            .with_header("X-Backend-No-Commit", if commit { "False" } else { "True" });
        let status = self.0.nodes[node].app.call(request.with_body(archive)).await.status;
        assert_eq!(status.0, 201);
    }

    /// Puts the fragments of these primaries; returns the nodes of the object.
    async fn store(&self, object: &str, body: &[u8], indexes: &[usize]) -> Vec<usize> {
        let homes = self.0.homes(object);
        for &index in indexes {
            self.put(homes[index], object, index, body, OLD, true).await;
        }
        homes
    }

    /// The files of an object on a node.
    fn files(&self, node: usize, object: &str) -> Vec<String> {
        let hash = self.0.hash(object).to_string();
        let is_its = |path: &&PathBuf| path.to_string_lossy().contains(&hash);
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        self.0.files(node).keys().filter(is_its).map(name).collect()
    }

    fn data(&self, node: usize, object: &str) -> Vec<u8> {
        let hash = self.0.hash(object).to_string();
        let mut files =
            self.0.files(node).into_iter().filter(|(path, _)| path.to_string_lossy().contains(&hash));
        files.next().unwrap().1.1
    }

    async fn pass(&self, options: &str) {
        for node in 0..self.0.nodes.len() {
            self.0.reconstruct(node, options).await;
        }
    }
}

fn durable(index: usize) -> Vec<String> {
    vec![format!("{}#{index}#d.data", Timestamp::from_secs_f64(OLD).internal())]
}

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_fragments_are_rebuilt_byte_for_byte() {
    let cluster = Fragments::new(5);
    for (name, length) in [("empty", 0), ("small", 1000), ("segment", SEGMENT), ("large", 2 * SEGMENT + 7)] {
        let homes = cluster.store(name, &body(length), &[0, 3]).await;
        cluster.pass("").await;
        for (index, archive) in archives(&body(length)).into_iter().enumerate() {
            assert_eq!(cluster.files(homes[index], name), durable(index), "{name}");
            assert_eq!(cluster.data(homes[index], name), archive, "{name}");
        }
        assert!(cluster.files(homes[4], name).is_empty());
    }
    // Nothing is left to do.
    let before: Vec<_> = (0..5).map(|node| cluster.0.files(node)).collect();
    let lines = cluster.0.reconstruct(0, "").await;
    assert_eq!(lines.at_least(Level::Warning), Vec::<String>::new());
    assert_eq!((0..5).map(|node| cluster.0.files(node)).collect::<Vec<_>>(), before);
}

/// What a source does not have to its end must not become an archive, whether it is sent at once or as it is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_runs_dry_leaves_nothing() {
    for (length, cut) in [(1000, 500), (2 * SEGMENT + 7, 100_000), (3 * SEGMENT, SEGMENT / 2 + 80)] {
        let cluster = Fragments::new(4);
        let homes = cluster.store("o", &body(length), &[0, 2]).await;
        let sound = cluster.store("sound", &body(10), &[0, 1, 2, 3]).await;
        *cluster.0.nodes[homes[2]].trouble.lock() = Trouble::Cut(cut);
        let lines = cluster.0.reconstruct(homes[0], "").await;
        assert!(cluster.files(homes[1], "o").is_empty() && cluster.files(homes[3], "o").is_empty());
        assert!(lines.contains("Error trying to rebuild /a/c/o policy#0 frag#1"), "{:?}", lines.all());
        *cluster.0.nodes[homes[2]].trouble.lock() = Trouble::None;
        cluster.pass("").await;
        for index in 0..4 {
            assert_eq!(cluster.data(homes[index], "o"), archives(&body(length))[index]);
            assert_eq!(cluster.files(sound[index], "sound"), durable(index));
        }
    }
}

/// In place: the metadata stays.
fn spoil(cluster: &Fragments, node: usize) {
    let path = cluster.0.files(node).into_keys().next().unwrap();
    let path = cluster.0.device(node).join(path);
    let mut archive = std::fs::read(&path).unwrap();
    let last = archive.len() - 1;
    archive[last] ^= 1;
    std::io::Write::write_all(&mut std::fs::File::options().write(true).open(&path).unwrap(), &archive)
        .unwrap();
}

/// Small archives are checked by their servers, some larger ones by whoever rebuilds, long ones by both in their way.
const LENGTHS: [usize; 3] = [1000, SEGMENT / 4, 2 * SEGMENT + 7];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_source_is_quarantined_and_all_is_rebuilt_without_it() {
    for length in LENGTHS {
        let cluster = Fragments::new(4);
        let homes = cluster.store("o", &body(length), &[0, 1, 2]).await;
        spoil(&cluster, homes[1]);
        cluster.pass("").await;
        cluster.pass("").await;
        for (archive, &node) in archives(&body(length)).iter().zip(&homes) {
            assert_eq!(cluster.data(node, "o"), *archive);
        }
        assert!(cluster.0.device(homes[1]).join("quarantined/objects").exists(), "{length}");
    }
}

/// The reconstructor of the first primary asks the third, the only other one, for what the fourth lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_made_of_a_corrupt_archive() {
    for length in LENGTHS {
        for corrupt in [0, 2] {
            let cluster = Fragments::new(4);
            let homes = cluster.store("o", &body(length), &[0, 2]).await;
            spoil(&cluster, homes[corrupt]);
            cluster.0.reconstruct(homes[0], "").await;
            assert!(cluster.files(homes[1], "o").is_empty() && cluster.files(homes[3], "o").is_empty());
            let quarantined = cluster.0.device(homes[corrupt]).join("quarantined/objects");
            assert!(quarantined.exists(), "{length}, {corrupt}");
            assert!(cluster.files(homes[corrupt], "o").is_empty());
        }
    }
}

/// Where all others have a newer version, which is enough to rebuild, the older one's metadata must not go with it. Swift's do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_of_another_version_are_not_rebuilt_from() {
    for length in LENGTHS {
        let cluster = Fragments::new(4);
        let homes = cluster.store("o", &body(length), &[0]).await;
        let newer: Vec<u8> = body(length).into_iter().rev().collect();
        for index in [2, 3] {
            cluster.put(homes[index], "o", index, &newer, OLD + 100.0, true).await;
        }
        cluster.0.reconstruct(homes[0], "").await;
        assert!(cluster.files(homes[1], "o").is_empty(), "{length}");
        cluster.pass("").await;
        for (archive, &node) in archives(&newer).iter().zip(&homes) {
            assert_eq!(cluster.data(node, "o"), *archive);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_is_asked_in_the_stead_of_a_corrupt_one_in_the_same_pass() {
    let cluster = Fragments::new(4);
    let homes = cluster.store("o", &body(SEGMENT / 4), &[0, 1, 2]).await;
    spoil(&cluster, homes[1]);
    cluster.0.reconstruct(homes[0], "").await;
    assert_eq!(cluster.data(homes[3], "o"), archives(&body(SEGMENT / 4))[3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_of_an_etag_is_left_to_the_reader_of_one_whole_fragment() {
    let cluster = Fragments::new(4);
    let told = async |length: usize, headers: &[(&str, &str)]| {
        let object = format!("o{length}");
        let homes = cluster.store(&object, &body(length), &[0]).await;
        let mut request = cluster.0.request(homes[0], Method::Get, &object, OLD + 1.0);
        headers.iter().for_each(|(name, value)| request.headers.insert(name, value));
        let mut response = cluster.0.nodes[homes[0]].app.call(request).await;
        assert!(response.status.is_success(), "{}", response.status.0);
        let archive = archives(&body(length))[0].clone();
        let whole = response.body.collect(1 << 22).await.unwrap() == archive;
        let etag = format!("\"{}\"", hex(&md5(&archive)));
        assert_eq!(response.headers.get_str("Etag"), Some(&*etag));
        (whole, response.headers.get_bool("X-Backend-Etag-Unchecked"))
    };
    let checks = ("X-Backend-Checks-Etag", "true");
    assert_eq!(told(SEGMENT / 4, &[checks]).await, (true, true));
    assert_eq!(told(SEGMENT / 4 + 1, &[]).await, (true, false));
    assert_eq!(told(SEGMENT / 4 + 2, &[checks, ("Range", "bytes=0-9")]).await, (false, false));
    assert_eq!(told(1000, &[checks]).await, (true, false), "it costs nothing");
    assert_eq!(told(SEGMENT, &[checks]).await, (true, false), "larger than a batch");
    assert_eq!(told(SEGMENT + 1, &[checks]).await, (true, false), "two fragments");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_lacks_its_commit_is_committed_and_not_sent() {
    let cluster = Fragments::new(4);
    let homes = cluster.store("o", &body(1000), &[0, 1, 2]).await;
    let now = common::Clock::system().unix_secs();
    for (index, &node) in homes.iter().enumerate() {
        cluster.put(node, "o", index, &body(500), now, index != 3).await;
    }
    let file = |node: usize| {
        let path = cluster.0.files(node).into_keys().next().unwrap();
        (
            path.file_name().unwrap().to_os_string(),
            std::fs::metadata(cluster.0.device(node).join(&path)).unwrap().ino(),
        )
    };
    let (name, inode) = file(homes[3]);
    assert!(!name.to_string_lossy().contains("#d"));
    cluster.0.reconstruct(homes[0], "").await;
    cluster.0.reconstruct(homes[2], "").await;
    let (name, committed) = file(homes[3]);
    assert!(name.to_string_lossy().ends_with("#3#d.data"));
    assert_eq!(committed, inode, "no data was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmounted_primary_is_replaced_by_its_handoff_until_it_is_back() {
    let cluster = Fragments::new(5);
    let homes = cluster.store("o", &body(1000), &[1, 2, 3]).await;
    // The first handoff stands in for fragment 0, and only for that.
    *cluster.0.nodes[homes[0]].trouble.lock() = Trouble::Unmounted;
    let lines = cluster.0.reconstruct(homes[1], "rebuild_handoff_node_count = 0").await;
    assert!(lines.contains("responded as unmounted"));
    assert!(cluster.files(homes[4], "o").is_empty());
    cluster.0.reconstruct(homes[1], "").await;
    assert_eq!(cluster.files(homes[4], "o"), durable(0));
    *cluster.0.nodes[homes[0]].trouble.lock() = Trouble::None;
    cluster.0.reconstruct(homes[4], "").await;
    assert_eq!((cluster.files(homes[4], "o"), cluster.files(homes[0], "o")), (vec![], durable(0)));
    assert_eq!(cluster.0.partitions(homes[4]).len(), 1);
    cluster.0.reconstruct(homes[4], "").await;
    assert!(cluster.0.partitions(homes[4]).is_empty(), "an empty partition is removed by the next pass");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fragment_alone_in_the_world_is_quarantined_if_so_configured() {
    let quarantined =
        |cluster: &Fragments, node: usize| cluster.0.device(node).join("quarantined/objects").exists();
    let options = "quarantine_threshold = 1";
    for (trouble, young, options, goes) in [
        (Trouble::None, false, options, true),
        (Trouble::None, false, "", false),
        (Trouble::None, true, options, false),
        (Trouble::Unmounted, false, options, false),
    ] {
        let cluster = Fragments::new(5);
        let homes = cluster.0.homes("o");
        let at = if young { common::Clock::system().unix_secs() } else { OLD };
        cluster.put(homes[0], "o", 0, &body(10), at, true).await;
        *cluster.0.nodes[homes[4]].trouble.lock() = trouble;
        let lines = cluster.0.reconstruct(homes[0], options).await;
        assert!(
            lines.contains("Unable to get enough responses (1/2 from 1 ok responses)"),
            "{:?}",
            lines.all()
        );
        assert_eq!(quarantined(&cluster, homes[0]), goes, "{options} {young}");
    }
    // Two of them, one on the handoff, are too many.
    let cluster = Fragments::new(5);
    let homes = cluster.0.homes("o");
    cluster.put(homes[0], "o", 0, &body(10), OLD, true).await;
    cluster.put(homes[4], "o", 2, &body(10), OLD, true).await;
    cluster.0.reconstruct(homes[0], options).await;
    assert!(!quarantined(&cluster, homes[0]));
    assert_eq!(cluster.files(homes[1], "o"), durable(1), "and enough to rebuild the others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_stops_at_its_limit_and_goes_on_in_the_next_pass() {
    let cluster = Fragments::new(5);
    let part = cluster.0.part("o0");
    let names: Vec<String> =
        (0..).map(|n| format!("o{n}")).filter(|name| cluster.0.part(name) == part).take(3).collect();
    let homes = cluster.0.homes("o0");
    for name in &names {
        cluster.put(homes[4], name, 1, &body(100), OLD, true).await;
    }
    let options = "max_objects_per_revert = 2\nhandoffs_only = yes";
    let lines = cluster.0.reconstruct(homes[4], options).await;
    assert!(lines.contains("ssync missing_check truncated after 2 objects"));
    assert!(lines.contains("Handoffs only mode still has handoffs remaining."));
    assert_eq!((cluster.0.files(homes[4]).len(), cluster.0.files(homes[1]).len()), (1, 2));
    let lines = cluster.0.reconstruct(homes[4], options).await;
    assert!(lines.contains("Handoffs only mode found no handoffs remaining."));
    assert_eq!((cluster.0.files(homes[4]).len(), cluster.0.files(homes[1]).len()), (0, 3));
    // In that mode a primary does nothing.
    cluster.0.reconstruct(homes[1], options).await;
    assert!(cluster.0.files(homes[2]).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handoff_keeps_what_its_primary_has_not_taken() {
    let mut cluster = Fragments::new(5);
    let homes = cluster.0.homes("o");
    cluster.put(homes[4], "o", 1, &body(100), OLD, true).await;
    let now = common::Clock::system().unix_secs();
    cluster.put(homes[4], "o", 2, &body(100), now, false).await;
    cluster.0.stop(homes[1]).await;
    cluster.0.reconstruct(homes[4], "").await;
    // Without its commit it is sent, but not yet removed: its PUT may go on.
    let uncommitted = format!("{}#2.data", Timestamp::from_secs_f64(now).internal());
    assert_eq!(cluster.files(homes[2], "o"), std::slice::from_ref(&uncommitted));
    assert_eq!(cluster.files(homes[4], "o"), [durable(1), vec![uncommitted.clone()]].concat());
    cluster.0.reconstruct(homes[4], "commit_window = 0").await;
    assert_eq!(cluster.files(homes[4], "o"), durable(1));
    // While the partition receives, it is left alone.
    let dir = cluster.0.partition(homes[4], cluster.0.part("o"));
    let _lock = common::fs::lock_path(&dir, std::time::Duration::ZERO, Some("replication")).unwrap();
    let lines = cluster.0.reconstruct(homes[4], "").await;
    assert!(lines.contains("Unable to lock handoff partition"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_in_which_nothing_ends_any_more_is_given_up() {
    let cluster = Fragments::new(4);
    let homes = cluster.store("o", &body(1000), &[0, 1, 2]).await;
    for node in &homes[1..] {
        *cluster.0.nodes[*node].trouble.lock() = Trouble::Silent;
    }
    let options = "lockup_timeout = 1\nnode_timeout = 600\nhttp_timeout = 600";
    let lines = cluster.0.reconstruct(homes[0], options).await;
    assert!(lines.contains("Lockup detected.. killing live coros."), "{:?}", lines.all());
    for node in &homes[1..] {
        *cluster.0.nodes[*node].trouble.lock() = Trouble::None;
    }
    cluster.pass("").await;
    assert_eq!(cluster.files(homes[3], "o"), durable(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_tell_recon_of_their_devices_and_the_whole() {
    let cluster = Fragments::new(4);
    cluster.store("o", &body(10), &[0, 1, 2, 3]).await;
    let lines = cluster.0.reconstruct(0, "reconstructor_workers = 3").await;
    assert!(lines.contains("[worker 1/1 pid="), "no more workers than devices");
    let recon = cluster.0.recon();
    assert!(recon["object_reconstruction_per_disk"]["sd0"]["object_reconstruction_last"].is_number());
    assert!(recon["object_reconstruction_time"].is_number());
    cluster.0.reconstruct(0, "").await;
    let recon = cluster.0.recon();
    assert!(recon["object_reconstruction_last"].is_number());
    assert!(recon.get("object_reconstruction_per_disk").is_none());
}
