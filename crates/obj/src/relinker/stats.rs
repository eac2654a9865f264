//! What a relinker has done, as recon tells it.
//!
//! ```text
//! relinker.recon  {"devices": {DEVICE: {figures of the device, "policies": {INDEX: {figures}}}},
//!                  "workers": {PID: {"devices": [...], "timestamp": ..., "return_code": ...}}}
//! ```
//!
//! A device's figures are the sums of its policies'. The keys are Swift's.

use std::collections::BTreeMap;

use common::policy::PolicyIndex;
use serde_json::{Map, Value, json};

/// What was counted; `unmounted` and `unlistable_partitions` are told only where there are any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    pub hash_dirs: u64,
    pub files: u64,
    pub linked: u64,
    pub removed: u64,
    pub errors: u64,
    pub unmounted: u64,
    pub unlistable_partitions: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Stats) {
        self.hash_dirs += other.hash_dirs;
        self.files += other.files;
        self.linked += other.linked;
        self.removed += other.removed;
        self.errors += other.errors;
        self.unmounted += other.unmounted;
        self.unlistable_partitions += other.unlistable_partitions;
    }

    /// What makes a run fail.
    pub fn all_errors(&self) -> u64 {
        self.errors + self.unmounted + self.unlistable_partitions
    }

    fn to_json(&self) -> Value {
        let Stats { hash_dirs, files, linked, removed, errors, .. } = self;
        let mut json = json!({
            "hash_dirs": hash_dirs, "files": files, "linked": linked, "removed": removed, "errors": errors,
        });
        if self.unmounted > 0 {
            json["unmounted"] = self.unmounted.into();
        }
        if self.unlistable_partitions > 0 {
            json["unlistable_partitions"] = self.unlistable_partitions.into();
        }
        json
    }
}

/// The figures of one policy on one device. Of a device that could not be begun there are only stats.
#[derive(Clone, Debug, Default)]
pub(super) struct PolicyFigures {
    pub stats: Stats,
    pub begun: Option<Begun>,
    pub progress: Option<Progress>,
    pub total_time: Option<f64>,
}

#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub start_time: f64,
    pub part_power: u32,
    pub next_part_power: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub step: &'static str,
    pub parts_done: usize,
    pub total_parts: usize,
    pub timestamp: f64,
}

impl PolicyFigures {
    fn to_json(&self) -> Value {
        let mut json = json!({ "stats": self.stats.to_json() });
        if let Some(Begun { start_time, part_power, next_part_power }) = &self.begun {
            json["start_time"] = (*start_time).into();
            json["part_power"] = (*part_power).into();
            json["next_part_power"] = (*next_part_power).into();
        }
        if let Some(Progress { step, parts_done, total_parts, timestamp }) = &self.progress {
            json["step"] = (*step).into();
            json["parts_done"] = (*parts_done).into();
            json["total_parts"] = (*total_parts).into();
            json["timestamp"] = (*timestamp).into();
        }
        if let Some(total_time) = self.total_time {
            json["total_time"] = total_time.into();
        }
        json
    }
}

/// The figures of a worker's devices.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures(BTreeMap<String, BTreeMap<PolicyIndex, PolicyFigures>>);

impl Figures {
    pub fn policy(&mut self, device: &str, policy: PolicyIndex) -> &mut PolicyFigures {
        self.0.entry(device.to_owned()).or_default().entry(policy).or_default()
    }

    pub fn total(&self) -> Stats {
        let mut total = Stats::default();
        self.0.values().flat_map(BTreeMap::values).for_each(|policy| total.add(&policy.stats));
        total
    }

    /// The value of `devices`.
    pub fn to_json(&self) -> Value {
        let devices = self.0.iter().map(|(device, policies)| (device.clone(), device_json(policies)));
        Value::Object(devices.collect())
    }
}

fn device_json(policies: &BTreeMap<PolicyIndex, PolicyFigures>) -> Value {
    let mut stats = Stats::default();
    policies.values().for_each(|policy| stats.add(&policy.stats));
    let parts = |count: fn(&Progress) -> usize| -> usize {
        policies.values().filter_map(|policy| policy.progress.as_ref()).map(count).sum()
    };
    let total_time = policies.values().filter_map(|policy| policy.total_time).reduce(f64::max);
    let mut json = json!({
        "parts_done": parts(|progress| progress.parts_done),
        "total_parts": parts(|progress| progress.total_parts),
        "total_time": total_time.map_or(Value::from(0), Value::from),
        "stats": stats.to_json(),
    });
    let begun = policies.values().filter_map(|policy| Some(policy.begun.as_ref()?.start_time));
    if let Some(first) = begun.reduce(f64::min) {
        json["start_time"] = first.into();
    }
    let seen = policies.values().filter_map(|policy| Some(policy.progress.as_ref()?.timestamp));
    if let Some(last) = seen.reduce(f64::max) {
        json["timestamp"] = last.into();
    }
    let policies: Map<String, Value> =
        policies.iter().map(|(index, policy)| (index.0.to_string(), policy.to_json())).collect();
    json["policies"] = Value::Object(policies);
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_tells_the_sums_of_its_policies() {
        let mut figures = Figures::default();
        for (index, done) in [(0, 1), (1, 2)] {
            let policy = figures.policy("sda1", PolicyIndex(index));
            policy.stats = Stats { linked: done, errors: 1, ..Stats::default() };
            let start_time = 10.0 - done as f64;
            policy.begun = Some(Begun { start_time, part_power: 8, next_part_power: 9 });
            let timestamp = 20.0 + done as f64;
            policy.progress =
                Some(Progress { step: "relink", parts_done: done as usize, total_parts: 4, timestamp });
            policy.total_time = Some(done as f64);
        }
        figures.policy("sdb1", PolicyIndex(0)).stats.unmounted = 1;
        assert_eq!(figures.total().all_errors(), 3);
        let json = figures.to_json();
        let sda1 = &json["sda1"];
        assert_eq!((&sda1["parts_done"], &sda1["total_parts"]), (&json!(3), &json!(8)));
        assert_eq!((&sda1["start_time"], &sda1["timestamp"]), (&json!(8.0), &json!(22.0)));
        assert_eq!((&sda1["total_time"], &sda1["stats"]["linked"]), (&json!(2.0), &json!(3)));
        assert_eq!(sda1["policies"]["1"]["step"], "relink");
        assert_eq!(json["sdb1"]["stats"]["unmounted"], 1);
        assert!(json["sdb1"].get("timestamp").is_none() && sda1["stats"].get("unmounted").is_none());
    }
}
