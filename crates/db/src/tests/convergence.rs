//! Random histories of one container on three primaries and a handoff, with passes of replicators between them and steps that
//! fail: in the end all three have what the model has, which is that the last writer wins, by timestamp, and the handoff is gone.
//!
//! Each update arrives at some of the nodes, twice, in any order. Any of that may be cut short at any fail point, on either side of
//! a pass; what a node did not take is delivered once more when all is well again, as an updater would. What a process that is killed
//! there leaves on its disk, `database_kills` shows.

use super::replicator::{Cluster, contents, record};
use super::*;
use crate::container::broker::ContainerBroker;
use crate::metadata::Metadata;
use crate::replication::Replicated;
use common::fs::fail;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use std::collections::{BTreeMap, BTreeSet};

const PRIMARIES: usize = 3;
/// One of them is a handoff.
const NODES: usize = 4;
/// Every step of brokers, servers and replicators.
const POINTS: [&str; 12] = [
    "db.pending.append",
    "db.pending.merged",
    "db.commit",
    "db.committed",
    "db.fill",
    "db.before_rename",
    "db.remove",
    "fs.mkdir",
    "fs.rename",
    "fs.fsync",
    "fs.fsync_dir",
    "fs.remove_dir",
];

#[derive(Clone, Debug)]
enum Change {
    Put(&'static str),
    Delete(&'static str),
    Metadata(&'static str, &'static str),
}

/// A change, and a bit for each node that it goes to. Each goes to one of them at least.
#[derive(Clone, Debug)]
struct Update {
    change: Change,
    nodes: u8,
}

/// A point that fails after it was passed so many times.
#[derive(Clone, Debug)]
struct Crash {
    point: &'static str,
    after: usize,
}

#[derive(Clone, Debug)]
struct History {
    updates: Vec<Update>,
    order: u64,
    /// A node's replicator, before which delivery.
    passes: Vec<(usize, usize)>,
    /// What fails while the step of that number is done.
    crashes: Vec<Option<Crash>>,
}

fn histories() -> impl Strategy<Value = History> {
    let name = || proptest::sample::select(vec!["a", "b", "c", "d"]);
    let change = prop_oneof![
        3 => name().prop_map(Change::Put),
        2 => name().prop_map(Change::Delete),
        1 => (name(), proptest::sample::select(vec!["", "blue", "red"])).prop_map(|(name, value)| Change::Metadata(name, value)),
    ];
    let update = (change, 1u8..1 << NODES).prop_map(|(change, nodes)| Update { change, nodes });
    let crash = (proptest::sample::select(POINTS.to_vec()), prop_oneof![3 => Just(0), 1 => 1usize..5])
        .prop_map(|(point, after)| Crash { point, after });
    (
        proptest::collection::vec(update, 1..16),
        any::<u64>(),
        proptest::collection::vec((0..NODES, 0usize..30), 2..8),
        proptest::collection::vec(proptest::option::weighted(0.6, crash), 50),
    )
        .prop_map(|(updates, order, passes, crashes)| History { updates, order, passes, crashes })
}

enum Step {
    Deliver { node: usize, update: usize },
    Pass(usize),
}

impl History {
    fn steps(&self) -> Vec<Step> {
        let mut deliveries = Vec::new();
        for (update, Update { nodes, .. }) in self.updates.iter().enumerate() {
            for node in (0..NODES).filter(|node| nodes & (1 << node) != 0) {
                deliveries.extend([(node, update), (node, update)]);
            }
        }
        service::Rng::seeded(self.order).shuffle(&mut deliveries);
        let mut steps = Vec::new();
        for (at, (node, update)) in deliveries.into_iter().enumerate() {
            let passing = self.passes.iter().filter(|(_, when)| *when == at);
            steps.extend(passing.map(|(node, _)| Step::Pass(*node)));
            steps.push(Step::Deliver { node, update });
        }
        steps
    }

    /// Whether the node took it. A container that the node has not is made, as for any first update of a handoff.
    fn deliver(&self, cluster: &Cluster, node: usize, update: usize) -> crate::broker::Result<()> {
        let mut broker = cluster.container(node);
        if !broker.exists()? {
            let created = Timestamp::from_secs_f64((NOW - 2000 + node as u64) as f64).internal();
            broker.initialize("a", "c", &created, 0)?;
        }
        match self.updates[update].change {
            Change::Put(name) => broker.put_object(record(name, update as u64, false)),
            Change::Delete(name) => broker.put_object(record(name, update as u64, true)),
            Change::Metadata(name, value) => {
                let mut metadata = Metadata::default();
                metadata.set(meta_name(name), value.into(), record(name, update as u64, false).created_at);
                broker.db.update_metadata(&metadata, None)
            }
        }
    }

    /// The last of all changes of each name: its number, and what it made of it.
    fn model(&self) -> BTreeMap<String, String> {
        let mut model = BTreeMap::new();
        for (at, Update { change, .. }) in self.updates.iter().enumerate() {
            let at = |name: &str| record(name, at as u64, false).created_at;
            match change {
                Change::Put(name) => model.insert((*name).to_owned(), format!("{} 0", at(name))),
                Change::Delete(name) => model.insert((*name).to_owned(), format!("{} 1", at(name))),
                Change::Metadata(name, value) => {
                    model.insert(meta_name(name), format!("{} {value}", at(name)))
                }
            };
        }
        model
    }

    /// Runs it; which of the points failed.
    async fn run(&self) -> BTreeSet<&'static str> {
        let mut cluster = Cluster::new(NODES, PRIMARIES);
        let mut fired = BTreeSet::new();
        let mut refused = Vec::new();
        for (number, step) in self.steps().into_iter().enumerate() {
            let crash = self.crashes.get(number).and_then(Option::as_ref);
            let armed = crash.map(|crash| {
                let action = fail::Action::Error(rustix::io::Errno::IO);
                (crash.point, fail::arm_thread_after(crash.point, action, crash.after))
            });
            match step {
                Step::Pass(node) => cluster.pass(node, 1).await,
                Step::Deliver { node, update } => {
                    if self.deliver(&cluster, node, update).is_err() {
                        assert!(armed.is_some(), "refused, and nothing failed");
                        refused.push((node, update));
                    }
                }
            }
            fired.extend(armed.filter(|(_, guard)| guard.has_fired()).map(|(point, _)| point));
        }
        let errors = cluster.errors().len();
        for (node, update) in refused {
            self.deliver(&cluster, node, update).unwrap();
        }
        for node in [3, 0, 1, 2, 0, 1, 2] {
            cluster.pass(node, 1).await;
        }
        let since: Vec<String> = cluster.errors().into_iter().skip(errors).collect();
        assert_eq!(since, Vec::<String>::new(), "errors when nothing fails");
        assert!(!cluster.container(3).exists().unwrap(), "the handoff is still there");
        let first = contents(&mut cluster.container(0));
        for node in 0..PRIMARIES {
            let mut broker = cluster.container(node);
            assert_eq!(contents(&mut broker), first, "node {node}");
            assert_eq!(held(&mut broker), self.model(), "node {node}");
        }
        fired
    }
}

fn meta_name(name: &str) -> String {
    format!("X-Container-Meta-{name}")
}

/// What a container has, as the model says it.
fn held(broker: &mut ContainerBroker) -> BTreeMap<String, String> {
    let items = broker.db().items_since(-1, 1000).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&items.json).unwrap();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows =
        rows.iter().map(|row| (text(row, "name"), format!("{} {}", text(row, "created_at"), row["deleted"])));
    let metadata = broker.db.metadata().unwrap();
    let items =
        metadata.iter().map(|(name, item)| (name.to_owned(), format!("{} {}", item.timestamp, item.value)));
    rows.chain(items).collect()
}

#[test]
fn three_replicas_come_to_hold_what_the_model_holds_whatever_failed() {
    let config = ProptestConfig {
        cases: 50,
        rng_seed: RngSeed::Fixed(5),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let fired = parking_lot::Mutex::new(BTreeSet::new());
    // All of it on this thread, where the points are armed.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let verdict = TestRunner::new(config).run(&histories(), |history| {
        fired.lock().extend(runtime.block_on(history.run()));
        Ok(())
    });
    verdict.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(fired.into_inner(), BTreeSet::from(POINTS), "points that failed");
}
