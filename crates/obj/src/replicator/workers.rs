//! `replicator_workers`: the devices of this machine are dealt out to workers, each with a pass, a `concurrency` and log lines
//! of its own, so that a slow disk holds up only the worker that has it.
//!
//! Recon, `object.recon`: each worker leaves figures under `object_replication_per_disk`, by device; those of the whole machine
//! are added up from them, as soon as every device has some. `swift-recon` looks at the latter.
//!
//! Swift's workers are processes which go round each at its own pace, and the whole is added up every `stats_interval`. Ours
//! are parts of one process that begin a pass together, and the whole is added up at its end; so devices that come or go with
//! the ring are dealt out anew by each pass, and there is nothing to kill for it.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use common::policy::StoragePolicy;
use common::recon::load_recon;
use futures_util::future::join_all;
use ring::whataremyips;
use serde_json::{Map, Value, json};
use service::context::Context;
use service::recon;

use super::job::{Overrides, local_devices};
use super::stats::Stats;
use super::{Begun, Done, ObjectReplicator, times};

const PER_DISK: &str = "object_replication_per_disk";
/// Disk work of recon is queued under this name.
const RECON_POOL: &str = "recon";

impl ObjectReplicator {
    /// The devices of each worker; no shares if there are no workers, or nothing for them to do.
    pub(super) fn shares(&self, overrides: &Overrides) -> Vec<Vec<String>> {
        if self.conf.workers == 0 {
            return Vec::new();
        }
        let devices: Vec<String> =
            self.all_local_devices().into_iter().filter(|device| overrides.takes_device(device)).collect();
        distribute_evenly(devices, self.conf.workers)
    }

    fn all_local_devices(&self) -> BTreeSet<String> {
        let is_replicated = |policy: &StoragePolicy| !policy.is_erasure();
        all_local_devices(&self.ctx, &self.conf.ring_ip, self.conf.port, is_replicated)
    }

    /// A pass of all workers.
    pub(super) async fn run_workers(&self, begun: Begun, overrides: &Overrides, shares: Vec<Vec<String>>) {
        let planned = AtomicU64::new(0);
        let count = shares.len();
        let pid = std::process::id();
        let worker = async |(index, devices): (usize, Vec<String>)| {
            let prefix = format!("[worker {}/{count} pid={pid}] ", index + 1);
            let share = Overrides { devices: devices.clone(), ..overrides.clone() };
            let replicator = self.replicator(self.ctx.logger.with_prefix(&prefix), share);
            let done = replicator.pass(begun, &planned).await;
            if !overrides.any() {
                self.dump(vec![(PER_DISK.to_string(), per_disk(&done, &devices))]).await;
            }
            replicator.log_sleep(begun.mode);
        };
        join_all(shares.into_iter().enumerate().map(worker)).await;
        self.add_up().await;
    }

    async fn add_up(&self) {
        let file = self.ctx.recon_cache_path.join(recon::OBJECT_FILE);
        let loaded = self.ctx.disk_pools.run(RECON_POOL, move || load_recon(&file)).await;
        match loaded {
            Ok(cache) => self.dump(aggregate(&cache, &self.all_local_devices())).await,
            Err(err) => self.ctx.logger.error(format_args!("cannot read the recon cache: {err}")),
        }
    }

    async fn dump(&self, entries: Vec<(String, Value)>) {
        if !entries.is_empty() {
            recon::dump_recon_cache(&self.ctx, recon::OBJECT_FILE, entries).await;
        }
    }
}

/// Deals items out in turn, to no more buckets than there are items.
pub fn distribute_evenly(items: Vec<String>, buckets: usize) -> Vec<Vec<String>> {
    let mut out = vec![Vec::new(); buckets.min(items.len())];
    let count = out.len();
    for (index, item) in items.into_iter().enumerate() {
        out[index % count].push(item);
    }
    out
}

fn per_disk(done: &Done, devices: &[String]) -> Value {
    let nothing = Stats::default();
    let figures = |device: &String| Value::Object(done.recon(done.stats.get(device).unwrap_or(&nothing)));
    Value::Object(devices.iter().map(|device| (device.clone(), figures(device))).collect())
}

/// The names of this machine's devices in any of the rings of some policies.
pub fn all_local_devices(
    ctx: &Context,
    ring_ip: &str,
    port: Option<u16>,
    wanted: impl Fn(&StoragePolicy) -> bool,
) -> BTreeSet<String> {
    let policies = &ctx.swift_conf.policies;
    let ips = whataremyips(ring_ip);
    let mut names = BTreeSet::new();
    for policy in policies.iter().filter(|policy| wanted(policy)) {
        // A ring that cannot be loaded is logged by the passes.
        let Ok(ring) = ctx.rings.object(policy.index, policies) else { continue };
        let local = local_devices(&ring, &ips, port, &Overrides::default());
        names.extend(local.into_iter().map(|dev| dev.device.clone()));
    }
    names
}

/// The entry of recon which removes the figures of devices that this machine has no more.
pub fn gone(key: &str, per_disk: &Map<String, Value>, local: &BTreeSet<String>) -> Option<(String, Value)> {
    let gone = per_disk.keys().filter(|device| !local.contains(*device));
    let gone: Map<String, Value> = gone.map(|device| (device.clone(), json!({}))).collect();
    (!gone.is_empty()).then(|| (key.to_string(), Value::Object(gone)))
}

/// What the figures by device say of the machine, and that those of devices which are gone are to be removed.
fn aggregate(cache: &Map<String, Value>, local: &BTreeSet<String>) -> Vec<(String, Value)> {
    let none = Map::new();
    let per_disk = cache.get(PER_DISK).and_then(Value::as_object).unwrap_or(&none);
    let mut entries = Vec::new();
    if !per_disk.is_empty() && local.iter().all(|device| per_disk.contains_key(device)) {
        let mut sum = Stats::default();
        per_disk.values().for_each(|figures| sum.add(&Stats::from_recon(&figures["replication_stats"])));
        let least = |key: &str| {
            let values = per_disk.values().filter_map(|figures| figures[key].as_f64());
            values.fold(f64::INFINITY, f64::min)
        };
        entries.push(("replication_stats".to_string(), sum.to_recon()));
        entries.extend(times(least("object_replication_time"), least("object_replication_last")));
    }
    entries.extend(gone(PER_DISK, per_disk, local));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn devices_are_dealt_out_in_turn_to_no_more_workers_than_devices() {
        assert_eq!(distribute_evenly(names("a b c d e"), 2), [names("a c e"), names("b d")],);
        assert_eq!(distribute_evenly(names("a b"), 5), [names("a"), names("b")]);
        assert!(distribute_evenly(Vec::new(), 5).is_empty());
    }

    #[test]
    fn the_machine_is_told_of_when_every_device_is() {
        let figures = |attempted: u64, time: f64, last: f64| {
            json!({
                "replication_stats": Stats { attempted, ..Stats::default() }.to_recon(),
                "replication_time": time, "replication_last": last,
                "object_replication_time": time, "object_replication_last": last,
            })
        };
        let per_disk =
            json!({"sda": figures(2, 5.0, 70.0), "sdb": figures(3, 4.0, 80.0), "old": figures(1, 9.0, 90.0)});
        let cache = Map::from_iter([(PER_DISK.to_string(), per_disk)]);
        let told = aggregate(&cache, &BTreeSet::from(["sda", "sdb"].map(str::to_string)));
        let told: Map<String, Value> = told.into_iter().collect();
        assert_eq!(told["replication_stats"]["attempted"], 6);
        assert_eq!(
            (&told["replication_time"], &told["object_replication_last"]),
            (&json!(4.0), &json!(70.0))
        );
        assert_eq!(told[PER_DISK], json!({"old": {}}));
        let told = aggregate(&cache, &BTreeSet::from(["sda", "sdc", "old", "sdb"].map(str::to_string)));
        assert_eq!(told, []);
    }
}
