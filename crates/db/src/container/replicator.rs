//! The container-replicator: besides replicating it keeps the list of synced containers, and puts objects that are in the wrong storage
//! policy into the reconciler's queue.
//!
//! The queue's containers are filled in local databases, on whatever device, and replicated at the end of the pass; those which do not
//! belong here are removed only then. How far a container's rows have been looked through is remembered in its database once most of
//! its replicas have the rows as well.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use common::config::{Conf, ConfigError, Section};
use common::policy::majority_size;
use parking_lot::Mutex;
use ring::{Device, Ring};
use service::{Context, Daemon};

use super::broker::{ContainerBroker, DATADIR};
use super::rows::ObjectRecord;
use super::{reconciler_queue, sync_store};
use crate::broker::{BrokerError, Options, Result, Shared};
use crate::replication::replicator::{self, PassHooks};
use crate::replication::{Found, Replicated, ReplicationInfo};
use crate::server::{MISPLACED_OBJECTS_ACCOUNT, db_path};

pub fn build(conf: &Conf, ctx: &Context) -> std::result::Result<Arc<dyn Daemon>, ConfigError> {
    replicator::build::<ContainerBroker>(conf, ctx, |section, ctx, shared| {
        Ok(Box::new(ContainerHooks::new(section, ctx, shared)?))
    })
}

struct ContainerHooks {
    ctx: Context,
    shared: Arc<Shared>,
    devices: PathBuf,
    per_diff: usize,
    pass: Mutex<Pass>,
}

/// What one pass knows.
#[derive(Default)]
struct Pass {
    ring: Option<Arc<Ring>>,
    local: Vec<Arc<Device>>,
    /// The queue's containers that were written to.
    queues: HashMap<String, Found>,
    /// The queue's containers that do not belong where they are, each with the highest row that all of its replicas have.
    leaving: HashMap<PathBuf, (Found, i64)>,
}

impl ContainerHooks {
    fn new(section: &Section, ctx: &Context, shared: &Arc<Shared>) -> std::result::Result<Self, ConfigError> {
        Ok(Self {
            ctx: ctx.clone(),
            shared: shared.clone(),
            devices: section.str("devices", "/srv/node").into(),
            per_diff: section.positive_int("per_diff", 1000)?,
            pass: Mutex::default(),
        })
    }

    /// Queue what is misplaced after row `point`. The row up to which everything is in the queue then.
    fn queue_misplaced(&self, broker: &mut ContainerBroker, point: i64) -> Result<i64> {
        let max_row = broker.db().max_row()?;
        let mut misplaced = broker.misplaced_since(point, self.per_diff)?;
        if misplaced.is_empty() {
            return Ok(max_row);
        }
        let (account, container) = broker.root_names()?;
        let (mut queued, mut failed) = (point, false);
        while let Some((last, _)) = misplaced.last() {
            let point = *last;
            let mut queues: BTreeMap<String, Vec<ObjectRecord>> = BTreeMap::new();
            for (_, row) in &misplaced {
                let queue = reconciler_queue::container_name(&row.created_at);
                queues.entry(queue).or_default().push(reconciler_queue::entry(row, &account, &container));
            }
            for (queue, entries) in queues {
                failed |= !self.feed(&queue, entries);
            }
            if !failed {
                queued = point;
            }
            misplaced = broker.misplaced_since(point, self.per_diff)?;
        }
        Ok(queued)
    }

    /// Whether the entries are in the queue.
    fn feed(&self, queue: &str, entries: Vec<ObjectRecord>) -> bool {
        let logger = &self.ctx.logger;
        let found = match self.queue_database(queue) {
            Ok(found) => found,
            Err(error) => {
                logger.error(format_args!("Failed to get reconciler broker for container {queue}: {error}"));
                return false;
            }
        };
        let (count, db_file) = (entries.len(), found.db_file.display());
        logger.debug(format_args!("Adding {count} objects to the reconciler at {db_file}"));
        let mut broker = ContainerBroker::new(&self.shared, &found.db_file, Options::default());
        let merged = broker.merge_items(entries);
        if let Err(error) = &merged {
            logger.error(format_args!(
                "UNHANDLED EXCEPTION: trying to merge {count} items to reconciler container {db_file}: {error}"
            ));
        }
        merged.is_ok()
    }

    /// A database of a container of the queue, on a device of this machine.
    fn queue_database(&self, queue: &str) -> Result<Found> {
        let mut pass = self.pass.lock();
        if let Some(found) = pass.queues.get(queue) {
            return Ok(found.clone());
        }
        let hash = self.ctx.swift_conf.hash.hash_path(MISPLACED_OBJECTS_ACCOUNT, Some(queue), None);
        let (partition, device) = self.place_of_queue(&pass, queue).ok_or_else(|| {
            let problem = std::io::Error::other("Cannot find local handoff; no local devices");
            BrokerError::Io(self.devices.clone(), problem)
        })?;
        let device_path = self.devices.join(&device.device);
        let db_file = db_path(&device_path, DATADIR, &partition.to_string(), &hash);
        let mut broker = ContainerBroker::new(&self.shared, &db_file, Options::default());
        let created = !broker.exists()? && {
            match broker.initialize(MISPLACED_OBJECTS_ACCOUNT, queue, queue, 0) {
                Err(BrokerError::AlreadyExists(_)) => false,
                other => other.map(|()| true)?,
            }
        };
        self.ctx.statsd.increment(if created { "reconciler_db_created" } else { "reconciler_db_exists" });
        let found = Found { device, partition, db_file };
        pass.queues.insert(queue.to_owned(), found.clone());
        Ok(found)
    }

    /// A primary of the queue if one is on this machine, else any device with a weight, else any.
    fn place_of_queue(&self, pass: &Pass, queue: &str) -> Option<(u32, Arc<Device>)> {
        let ring = pass.ring.as_ref()?;
        let hash_conf = &self.ctx.swift_conf.hash;
        let (partition, primaries) = ring.get_nodes(hash_conf, MISPLACED_OBJECTS_ACCOUNT, Some(queue), None);
        let is_local = |id: u32| pass.local.iter().find(|device| device.id == id);
        if let Some(device) = primaries.iter().find_map(|node| is_local(node.id)) {
            return Some((partition, device.clone()));
        }
        let weighty: Vec<_> = pass.local.iter().filter(|device| device.weight > 0.0).collect();
        if !weighty.is_empty() {
            return Some((partition, weighty[self.ctx.rng.below(weighty.len())].clone()));
        }
        let device = pass.local.get(self.ctx.rng.below(pass.local.len()))?.clone();
        self.ctx.logger.warning(format_args!(
            "Could not find a non-zero weight device for handoff partition {partition}, falling back device {}",
            device.device
        ));
        Some((partition, device))
    }
}

impl PassHooks<ContainerBroker> for ContainerHooks {
    fn pass_begins(&self, ring: &Arc<Ring>, local: &[Arc<Device>]) {
        *self.pass.lock() = Pass { ring: Some(ring.clone()), local: local.to_vec(), ..Pass::default() };
    }

    fn wants(&self, info: &ReplicationInfo) -> bool {
        !info.is_looked_through || sync_store::is_mentioned(&info.metadata)
    }

    fn replicated(
        &self,
        broker: &mut ContainerBroker,
        info: &ReplicationInfo,
        answers: &[bool],
    ) -> Result<()> {
        if info.account == MISPLACED_OBJECTS_ACCOUNT {
            return Ok(());
        }
        if let Err(error) = sync_store::update(broker) {
            self.ctx.logger.error(format_args!(
                "Failed to update sync_store, db: {}: {error}",
                broker.db.db_file.display()
            ));
        }
        let point = broker.reconciler_sync()?;
        if !broker.has_multiple_policies()? {
            if info.max_row != point {
                broker.update_reconciler_sync(info.max_row)?;
            }
            return Ok(());
        }
        let queued = self.queue_misplaced(broker, point)?;
        let successes = answers.iter().filter(|success| **success).count();
        if queued > point && successes >= majority_size(answers.len()) {
            broker.update_reconciler_sync(queued)?;
        }
        Ok(())
    }

    fn removing(&self, broker: &mut ContainerBroker, info: &ReplicationInfo, found: &Found) -> bool {
        if info.account == MISPLACED_OBJECTS_ACCOUNT {
            self.pass.lock().leaving.insert(found.db_file.clone(), (found.clone(), info.max_row));
            return true;
        }
        if let Err(error) = sync_store::remove(broker) {
            self.ctx.logger.error(format_args!(
                "Failed to remove sync_store entry, db: {}: {error}",
                broker.db.db_file.display()
            ));
        }
        false
    }

    fn written_to(&self) -> Option<Vec<Found>> {
        let pass = self.pass.lock();
        let any = !pass.queues.is_empty() || !pass.leaving.is_empty();
        any.then(|| pass.queues.values().cloned().collect())
    }

    fn to_remove(&self) -> Vec<(Found, i64)> {
        std::mem::take(&mut *self.pass.lock()).leaving.into_values().collect()
    }
}
