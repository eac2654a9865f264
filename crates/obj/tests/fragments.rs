//! Random histories of objects of an EC policy 2+2: PUTs that reach only some nodes or are not committed everywhere, lost
//! fragments, nodes in trouble, passes of the reconstructor that fail at any step. At no time may there be a data file that is
//! not exactly its fragment of what was PUT; in the end each primary has its fragment of the last version, durable, and no
//! handoff has any.
//!
//! As a proxy does, a PUT commits only if enough fragments for a quorum are stored. From then on the version counts, however few
//! heard of the commit. No more is lost than a policy can bear: of the version that counts, enough fragments are left, and
//! one that is durable.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cluster::{Cluster, SEGMENT, Trouble, archives};
use common::digest::{hex, md5};
use common::fs::fail::{self, Action};
use common::{Clock, Timestamp};
use proptest::prelude::*;
use rustix::io::Errno;
use service::http::Method;

const NODES: usize = 6;
const OBJECTS: usize = 2;
const NDATA: usize = 2;
const FRAGMENTS: usize = 4;
const QUORUM: usize = 3;
const POINTS: [&str; 9] = [
    "put.write",
    "put.before_link",
    "put.before_sync_dir",
    "commit.before_rename",
    "commit.before_sync_dir",
    "keep.before_sync_dir",
    "fs.fsync",
    "fs.remove_file",
    "hashes.append_invalid",
];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Each set a bit for each fragment: what is stored at its primary, what on a handoff instead, what hears of the commit.
    Put {
        object: usize,
        at_home: u8,
        on_handoff: u8,
        committed: u8,
        large: bool,
    },
    Delete {
        object: usize,
        primaries: u8,
    },
    /// A node forgets an object, if that can be borne.
    Lose {
        object: usize,
        node: usize,
    },
    /// A node is down for the next pass, or sends half of what it should.
    Trouble {
        node: usize,
        cut: bool,
    },
    Pass {
        node: usize,
        fails: Option<(usize, usize)>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let object = || 0..OBJECTS;
    let fails = proptest::option::of((0..POINTS.len(), 0..12usize));
    prop_oneof![
        4 => (object(), 0..16u8, 0..16u8, 0..16u8, proptest::bool::weighted(0.1)).prop_map(
            |(object, at_home, on_handoff, committed, large)| {
                // Most reach most.
                Step::Put { object, at_home: at_home | 5, on_handoff, committed, large }
            }
        ),
        1 => (object(), 1..16u8).prop_map(|(object, primaries)| Step::Delete { object, primaries }),
        3 => (object(), 0..NODES).prop_map(|(object, node)| Step::Lose { object, node }),
        1 => (0..NODES, any::<bool>()).prop_map(|(node, cut)| Step::Trouble { node, cut }),
        5 => (0..NODES, fails).prop_map(|(node, fails)| Step::Pass { node, fails }),
    ]
}

/// What counts of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Winner {
    Nothing,
    Version(Timestamp),
    Deleted(Timestamp),
}

struct World {
    cluster: Cluster,
    base: Timestamp,
    /// All that was PUT, committed or not.
    bodies: BTreeMap<(usize, Timestamp), Vec<Vec<u8>>>,
    winners: [Winner; OBJECTS],
}

/// A data file or a tombstone of an object.
struct Found {
    node: usize,
    timestamp: Timestamp,
    fragment: Option<(usize, bool)>,
    data: Vec<u8>,
}

fn name(object: usize) -> String {
    format!("o{object}")
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::of_fragments(NODES, (NDATA, FRAGMENTS - NDATA), "commit_window = 0");
        // Younger than anything that is reclaimed.
        let base = Timestamp::from_secs_f64((Clock::system().unix_secs() - 10_000.0).floor());
        World { cluster, base, bodies: BTreeMap::new(), winners: [Winner::Nothing; OBJECTS] }
    }

    async fn take(&mut self, number: usize, step: Step) {
        let at = self.base.with_delta(number as i64 * 100_000);
        match step {
            Step::Put { object, at_home, on_handoff, committed, large } => {
                let length = if large { SEGMENT + 1000 * number + 7 } else { number * 97 };
                let body: Vec<u8> = (0..length).map(|n| (n * 31 + number) as u8).collect();
                self.put(object, at, &body, [at_home, on_handoff, committed]).await;
            }
            Step::Delete { object, primaries } => {
                let homes = self.cluster.homes(&name(object));
                for (index, &node) in homes[..FRAGMENTS].iter().enumerate() {
                    if primaries & (1 << index) != 0 {
                        self.call(node, Method::Delete, object, at, None).await;
                        self.winners[object] = Winner::Deleted(at);
                    }
                }
            }
            Step::Lose { object, node } => self.lose(object, node),
            Step::Trouble { node, cut } => {
                let trouble = if cut { Trouble::Cut(200) } else { Trouble::Unmounted };
                *self.cluster.nodes[node].trouble.lock() = trouble;
            }
            Step::Pass { node, fails } => {
                let armed = fails
                    .map(|(point, after)| fail::arm_after(POINTS[point], Action::Error(Errno::IO), after));
                self.cluster.reconstruct(node, "commit_window = 0").await;
                drop(armed);
                self.cluster.nodes.iter().for_each(|node| *node.trouble.lock() = Trouble::None);
            }
        }
    }

    async fn put(
        &mut self,
        object: usize,
        at: Timestamp,
        body: &[u8],
        [at_home, on_handoff, committed]: [u8; 3],
    ) {
        let homes = self.cluster.homes(&name(object));
        let has = |set: u8, index: usize| set & (1 << index) != 0;
        let archives = archives(body);
        self.bodies.insert((object, at), archives.clone());
        let mut placed = Vec::new();
        for (index, archive) in archives.iter().enumerate() {
            let node = match (has(at_home, index), has(on_handoff, index)) {
                (true, _) => homes[index],
                (false, true) => homes[FRAGMENTS + index % (NODES - FRAGMENTS)],
                (false, false) => continue,
            };
            let fragment = (index, archive.as_slice(), hex(&md5(body)));
            assert_eq!(self.call(node, Method::Put, object, at, Some(fragment)).await, 201);
            placed.push((index, node));
        }
        if placed.len() < QUORUM {
            return;
        }
        for (index, node) in placed {
            if has(committed, index) {
                // By its name, as the second phase of a PUT does.
                self.commit(node, object, at, index).await;
                self.winners[object] = Winner::Version(at);
            }
        }
    }

    async fn call(
        &self,
        node: usize,
        method: Method,
        object: usize,
        at: Timestamp,
        fragment: Option<(usize, &[u8], String)>,
    ) -> u16 {
        let mut request = self.cluster.request(node, method, &name(object), 0.0);
        request.headers.insert("X-Timestamp", at.internal());
        let data = fragment.as_ref().map_or(Vec::new(), |(_, archive, _)| archive.to_vec());
        if let Some((index, _, etag)) = fragment {
            request = request
                .with_header("X-Backend-No-Commit", "True")
                .with_header("X-Backend-Ssync-Frag-Index", index)
                .with_header("X-Object-Sysmeta-Ec-Frag-Index", index)
                .with_header("X-Object-Sysmeta-Ec-Etag", etag);
        }
        let request = request.with_header("Content-Length", data.len()).with_body(data);
        self.cluster.nodes[node].app.call(request).await.status.0
    }

    /// Offers the node what it has, as durable.
    async fn commit(&self, node: usize, object: usize, at: Timestamp, index: usize) {
        let hash = self.cluster.hash(&name(object));
        let part = self.cluster.part(&name(object));
        let body = format!(
            ":MISSING_CHECK: START\r\n{hash} {}\r\n:MISSING_CHECK: END\r\n:UPDATES: START\r\n:UPDATES: END\r\n",
            at.internal()
        );
        let request = service::http::Request::new(Method::Ssync, format!("/sd{node}/{part}"))
            .with_header("X-Backend-Ssync-Frag-Index", index)
            .with_body(body);
        let mut answer = self.cluster.nodes[node].app.call(request).await;
        let said = answer.body.collect(1 << 16).await.unwrap();
        assert!(
            said.ends_with(b":UPDATES: END\r\n") && !said.windows(3).any(|line| line == b" dm"),
            "{said:?}"
        );
    }

    fn found(&self, object: usize) -> Vec<Found> {
        let hash = self.cluster.hash(&name(object)).to_string();
        let mut all = Vec::new();
        for node in 0..NODES {
            for (path, (_, data)) in self.cluster.files(node) {
                if !path.to_string_lossy().contains(&hash) {
                    continue;
                }
                let file = path.file_name().unwrap().to_string_lossy().into_owned();
                let (stem, _) = file.rsplit_once('.').unwrap();
                let mut parts = stem.split('#');
                let timestamp = Timestamp::parse(parts.next().unwrap()).unwrap();
                let index = parts.next().map(|index| index.parse().unwrap());
                let fragment = index.map(|index| (index, parts.next() == Some("d")));
                all.push(Found { node, timestamp, fragment, data });
            }
        }
        all
    }

    fn lose(&self, object: usize, node: usize) {
        let left: Vec<Found> = self.found(object).into_iter().filter(|found| found.node != node).collect();
        let bearable = match self.winners[object] {
            Winner::Nothing => true,
            Winner::Deleted(at) => left.iter().any(|found| found.timestamp == at && found.fragment.is_none()),
            Winner::Version(at) => {
                let fragments =
                    || left.iter().filter(|found| found.timestamp == at).filter_map(|found| found.fragment);
                let indexes: BTreeSet<usize> = fragments().map(|(index, _)| index).collect();
                indexes.len() >= NDATA && fragments().any(|(_, durable)| durable)
            }
        };
        let hash = self.cluster.hash(&name(object));
        let part = self.cluster.partition(node, self.cluster.part(&name(object)));
        let dir = part.join(hash.suffix().to_string()).join(hash.to_string());
        if bearable && dir.exists() {
            std::fs::remove_dir_all(&dir).unwrap();
            forget_hashes(&part);
        }
    }

    /// No data file is anything but its fragment.
    fn check_data(&self) -> Result<(), TestCaseError> {
        for object in 0..OBJECTS {
            for Found { node, timestamp, fragment, data } in self.found(object) {
                if let Some((index, _)) = fragment {
                    let archives = self.bodies.get(&(object, timestamp));
                    let right = archives.is_some_and(|archives| archives[index] == data);
                    prop_assert!(
                        right,
                        "node {node}: {timestamp:?}#{index} of {} bytes is wrong",
                        data.len()
                    );
                }
            }
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), TestCaseError> {
        for (object, &winner) in self.winners.iter().enumerate() {
            let homes = self.cluster.homes(&name(object));
            let (at, deleted) = match winner {
                Winner::Nothing => continue,
                Winner::Version(at) => (at, false),
                Winner::Deleted(at) => (at, true),
            };
            // What is newer was never committed.
            let found: Vec<Found> =
                self.found(object).into_iter().filter(|found| found.timestamp <= at).collect();
            let mut told: Vec<_> = found.iter().map(|f| (f.node, f.timestamp == at, f.fragment)).collect();
            told.sort();
            let fragment = |index: usize| (!deleted).then_some((index, true));
            let mut expected: Vec<_> = homes[..FRAGMENTS]
                .iter()
                .enumerate()
                .map(|(index, &node)| (node, true, fragment(index)))
                .collect();
            expected.sort();
            prop_assert_eq!(told, expected, "{} of {:?}, homes {:?}", name(object), winner, homes);
        }
        Ok(())
    }
}

/// What is lost behind the server's back is not in the hashes.
fn forget_hashes(partition: &Path) {
    for file in ["hashes.pkl", "hashes.invalid"] {
        common::fs::remove_file(&partition.join(file)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_primary_gets_its_fragment_of_the_last_version(
        history in proptest::collection::vec(step(), 4..20)
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(heal(history))?;
    }
}

/// A few, or as many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(12)
}

async fn heal(history: Vec<Step>) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for (number, step) in history.into_iter().enumerate() {
        world.take(number, step).await;
        world.check_data()?;
    }
    world.cluster.nodes.iter().for_each(|node| *node.trouble.lock() = Trouble::None);
    // A handoff gives away one version of a fragment in each pass, the newest first.
    for _ in 0..3 + world.bodies.len() {
        for node in 0..NODES {
            world.cluster.reconstruct(node, "commit_window = 0").await;
        }
        world.check_data()?;
        if world.check_end().is_ok() {
            break;
        }
    }
    world.check_end()
}
