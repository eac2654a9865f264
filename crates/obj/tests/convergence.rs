//! Random histories of a few objects on nodes that exchange them over SSYNC at random: in the end all nodes have the state of
//! the model, which is that the last writer wins, by timestamp.
//!
//! A write counts in the model if its node took it. A content-type has a time of its own, as POSTs that are replicated have.
//! Not modelled: whether a POST that one node took survives a DELETE older than it, of which its node had not heard (Swift
//! leaves that to the order of the exchanges); either is right, but all nodes must agree.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::Cluster;
use common::config::SwiftConf;
use common::{Clock, Suffix, Timestamp};
use obj::diskfile::{DiskFileConf, DiskFileError, DiskFileManager, DiskFileRouter, SuffixHash};
use proptest::prelude::*;
use service::http::{Method, Request};
use service::logs::Logger;
use service::statsd::Statsd;

const NODES: usize = 3;
const OBJECTS: usize = 2;
/// Of the timestamps of a history, in its ticks; a tick has room for as many steps.
const BASE: u64 = 1_700_000_000 * 100_000;
const TICK: u64 = 1000;
/// Nothing of a history is that old.
const RECLAIM_AGE: &str = "reclaim_age = 10000000000";

#[derive(Clone, Copy, Debug)]
enum Step {
    Put {
        node: usize,
        object: usize,
        tick: u64,
        offset: u64,
    },
    /// With a content-type that is so many ticks older. Names of meta files have no room for an offset beside one.
    Post {
        node: usize,
        object: usize,
        tick: u64,
        ctype: Option<u64>,
    },
    Delete {
        node: usize,
        object: usize,
        tick: u64,
        offset: u64,
    },
    Rehash {
        node: usize,
    },
    /// What the first has and the second lacks.
    Exchange {
        from: usize,
        to: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..NODES, 0..OBJECTS, 0..12u64, prop_oneof![3 => Just(0), 1 => Just(1), 1 => Just(0x10)]);
    prop_oneof![
        3 => at().prop_map(|(node, object, tick, offset)| Step::Put { node, object, tick, offset }),
        4 => (at(), proptest::option::of(0..6u64)).prop_map(|((node, object, tick, _), ctype)| {
            Step::Post { node, object, tick, ctype }
        }),
        2 => at().prop_map(|(node, object, tick, offset)| Step::Delete { node, object, tick, offset }),
        1 => (0..NODES).prop_map(|node| Step::Rehash { node }),
        3 => (0..NODES, 1..NODES).prop_map(|(from, by)| Step::Exchange { from, to: (from + by) % NODES }),
    ]
}

/// What a node took of the writes to one object.
#[derive(Default, Debug)]
struct Written {
    puts: BTreeMap<Timestamp, usize>,
    deletes: Vec<Timestamp>,
    posts: BTreeMap<Timestamp, Posted>,
}

#[derive(Debug)]
struct Posted {
    number: usize,
    /// Of the content-type.
    ctype: Option<Timestamp>,
    /// Of the data that it was for.
    data: Timestamp,
}

/// An object as it is found on a node.
#[derive(Debug, PartialEq)]
enum State {
    Absent,
    Deleted(Timestamp),
    Object { body: Vec<u8>, metadata: BTreeMap<Vec<u8>, Vec<u8>> },
}

struct Nodes {
    cluster: Cluster,
    managers: Vec<Arc<DiskFileManager>>,
}

fn name(object: usize) -> String {
    format!("o{object}")
}

impl Nodes {
    fn new() -> Self {
        let cluster = Cluster::in_memory(NODES, &[0, 1, 2], RECLAIM_AGE);
        let swift_conf = SwiftConf::load(cluster.dir.path()).unwrap();
        let manager = |id| {
            let conf = DiskFileConf {
                devices: cluster.devices(id),
                mount_check: false,
                reclaim_age: std::time::Duration::from_secs(10_000_000_000),
                ..DiskFileConf::default()
            };
            let (clock, logger) = (Clock::system(), Logger::memory().0);
            let router = DiskFileRouter::new(&conf, &swift_conf, &clock, &logger, &Statsd::disabled());
            router.iter().next().unwrap().clone()
        };
        let managers = (0..NODES).map(manager).collect();
        Nodes { cluster, managers }
    }

    /// The number of the step is in all that it writes.
    async fn take(&self, number: usize, step: Step, written: &mut [Written]) {
        match step {
            Step::Put { node, object, tick, offset } => {
                let at = timestamp(number, tick, offset);
                let request = self.request(Method::Put, node, object, at, number);
                let request = request.with_header("Content-Type", format!("put/{number}"));
                if self.call(node, request.with_body(format!("body {number}"))).await == 201 {
                    written[object].puts.insert(at, number);
                }
            }
            Step::Post { node, object, tick, ctype } => {
                let at = timestamp(number, tick, 0);
                let data = self.data_timestamp(node, object);
                let ctype = ctype.map(|earlier| Timestamp::from_raw(at.raw() - earlier * TICK));
                let mut request = self.request(Method::Post, node, object, at, number);
                if let Some(ctype) = ctype {
                    request = request
                        .with_header("Content-Type", format!("post/{number}"))
                        .with_header("Content-Type-Timestamp", ctype.internal());
                }
                if self.call(node, request).await == 202 {
                    written[object].posts.insert(at, Posted { number, ctype, data: data.unwrap() });
                }
            }
            Step::Delete { node, object, tick, offset } => {
                let at = timestamp(number, tick, offset);
                // A tombstone is written of what is not there, too.
                if self.call(node, self.request(Method::Delete, node, object, at, number)).await != 409 {
                    written[object].deletes.push(at);
                }
            }
            Step::Rehash { node } => drop(self.hashes(node)),
            Step::Exchange { from, to } => {
                self.cluster.ring(&[from.min(to), from.max(to)]);
                self.cluster.replicate_with(from, RECLAIM_AGE, Default::default()).await;
            }
        }
    }

    fn request(&self, method: Method, node: usize, object: usize, at: Timestamp, number: usize) -> Request {
        let name = name(object);
        Request::new(method, format!("/sd{node}/{}/a/c/{name}", self.cluster.part(&name)))
            .with_header("X-Timestamp", at.internal())
            .with_header(format!("X-Object-Meta-Step-{}", number % 3), number)
    }

    async fn call(&self, node: usize, request: Request) -> u16 {
        let length = request.body.as_bytes().map_or(0, <[u8]>::len);
        self.cluster.nodes[node].app.call(request.with_header("Content-Length", length)).await.status.0
    }

    fn data_timestamp(&self, node: usize, object: usize) -> Option<Timestamp> {
        let part = self.cluster.part(&name(object));
        let found = self.managers[node].diskfile(&format!("sd{node}"), part, "a", "c", &name(object));
        found.unwrap().open(None).ok().map(|opened| opened.data_timestamp())
    }

    fn state(&self, node: usize, object: usize) -> State {
        let part = self.cluster.part(&name(object));
        let found = self.managers[node].diskfile(&format!("sd{node}"), part, "a", "c", &name(object));
        match found.unwrap().open(None) {
            Ok(opened) => State::Object {
                metadata: opened.metadata().iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
                body: opened.read_small().unwrap().data,
            },
            Err(DiskFileError::Deleted { timestamp, .. }) => State::Deleted(timestamp),
            Err(DiskFileError::NotExist) => State::Absent,
            Err(err) => panic!("{err}"),
        }
    }

    /// Of all partitions, as a node tells another.
    fn hashes(&self, node: usize) -> BTreeMap<(String, Suffix), Option<SuffixHash>> {
        let mut all = BTreeMap::new();
        for part in self.cluster.partitions(node) {
            let device = format!("sd{node}");
            let hashes = self.managers[node].get_hashes(&device, part.parse().unwrap(), &[], false);
            let hashes = hashes.unwrap().unwrap();
            all.extend(hashes.iter().map(|(suffix, hash)| ((part.clone(), suffix), hash.cloned())));
        }
        all
    }

    fn forget_hashes(&self, node: usize) {
        for part in self.cluster.partitions(node) {
            for file in ["hashes.pkl", "hashes.invalid"] {
                let path = self.cluster.partition(node, part.parse().unwrap()).join(file);
                common::fs::remove_file(&path).unwrap();
            }
        }
    }
}

fn timestamp(number: usize, tick: u64, offset: u64) -> Timestamp {
    Timestamp::from_raw(BASE + tick * TICK + number as u64).with_offset(offset)
}

/// Whether a state is that of the last writer.
fn is_right(state: &State, written: &Written) -> Result<(), String> {
    let put = written.puts.last_key_value();
    let delete = written.deletes.iter().max().copied();
    let (data, number) = match (put, delete) {
        (None, None) => return if *state == State::Absent { Ok(()) } else { Err("not absent".into()) },
        (Some((data, number)), delete) if Some(*data) > delete => (*data, *number),
        (_, delete) => {
            let deleted = State::Deleted(delete.unwrap_or_default());
            return if *state == deleted { Ok(()) } else { Err(format!("not {deleted:?}")) };
        }
    };
    let State::Object { body, metadata } = state else { return Err("no object".into()) };
    let text =
        |name: &str| metadata.get(name.as_bytes()).map(|value| String::from_utf8_lossy(value).into_owned());
    if *body != format!("body {number}").into_bytes() {
        return Err(format!("not the body of {number}"));
    }
    let posts = || written.posts.iter().filter(|(at, _)| **at > data);
    let survives = |at: &Timestamp, posted: &Posted| {
        !written.deletes.iter().any(|delete| (posted.data..*at).contains(delete))
    };
    // Of the metadata: the last POST, or another if that may be gone.
    let certain = posts().rfind(|(at, posted)| survives(at, posted));
    let found = Timestamp::parse(&text("X-Timestamp").unwrap_or_default()).unwrap_or_default();
    let last = posts().find(|(at, _)| **at == found).map(|(at, posted)| (*at, posted.number));
    let (at, writer) = last.unwrap_or((data, number));
    if found != at || certain.is_some_and(|(certain, _)| *certain > at) {
        return Err(format!("metadata of {found:?}, not of {certain:?}"));
    }
    let steps: Vec<_> = (0..3).filter_map(|n| text(&format!("X-Object-Meta-Step-{n}"))).collect();
    if steps != [writer.to_string()] {
        return Err(format!("metadata of {steps:?}, not of {writer}"));
    }
    // Of the content-type, in the same way.
    let typed =
        || posts().filter_map(|(at, posted)| Some((posted.ctype?, at, posted))).filter(|t| t.0 > data);
    let certain = typed().filter(|(_, at, posted)| survives(at, posted)).map(|(ctype, ..)| ctype).max();
    let content_type = text("Content-Type").unwrap_or_default();
    let of_post = typed().find(|(_, _, posted)| content_type == format!("post/{}", posted.number));
    let right = match of_post {
        Some((ctype, ..)) => certain <= Some(ctype),
        None => content_type == format!("put/{number}") && certain.is_none(),
    };
    if right { Ok(()) } else { Err(format!("content-type {content_type}, not of {certain:?}")) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn nodes_that_exchange_their_objects_converge_to_the_last_writers_state(
        history in proptest::collection::vec(step(), 4..24)
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(converge(history))?;
    }
}

async fn converge(history: Vec<Step>) -> Result<(), TestCaseError> {
    let nodes = Nodes::new();
    let mut written: [Written; OBJECTS] = Default::default();
    for (number, step) in history.into_iter().enumerate() {
        nodes.take(number, step, &mut written).await;
    }
    nodes.cluster.ring(&[0, 1, 2]);
    // Each gives what it has to all: then all have all, and the second round has nothing to do.
    for _ in 0..2 {
        for node in 0..NODES {
            nodes.cluster.replicate_with(node, RECLAIM_AGE, Default::default()).await;
        }
    }
    for (object, written) in written.iter().enumerate() {
        let state = nodes.state(0, object);
        if let Err(why) = is_right(&state, written) {
            return Err(TestCaseError::fail(format!("{}: {why}: {state:?}\n{written:?}", name(object))));
        }
        for node in 1..NODES {
            prop_assert_eq!(&nodes.state(node, object), &state, "node {}", node);
        }
    }
    let hashes = nodes.hashes(0);
    for node in 0..NODES {
        prop_assert_eq!(&nodes.hashes(node), &hashes, "node {}", node);
        nodes.forget_hashes(node);
        prop_assert_eq!(&nodes.hashes(node), &hashes, "node {} anew", node);
    }
    nodes.cluster.assert_quiet();
    Ok(())
}
