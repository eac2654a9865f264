//! What a replication pass has done: counts by device, as recon and the log tell them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// Replication address and device of a node.
pub type NodeKey = (String, String);

/// Counts of one device, named as in recon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub attempted: u64,
    pub failure: u64,
    pub hashmatch: u64,
    pub remove: u64,
    /// Syncs begun, by whatever method.
    pub rsync: u64,
    pub success: u64,
    pub suffix_count: u64,
    pub suffix_hash: u64,
    pub suffix_sync: u64,
    /// Failures by address and device.
    pub failure_nodes: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Stats {
    pub fn add_failure_stats<'a>(&mut self, failures: impl IntoIterator<Item = &'a NodeKey>) {
        for (ip, device) in failures {
            self.failure += 1;
            *self.failure_nodes.entry(ip.clone()).or_default().entry(device.clone()).or_default() += 1;
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.attempted += other.attempted;
        self.failure += other.failure;
        self.hashmatch += other.hashmatch;
        self.remove += other.remove;
        self.rsync += other.rsync;
        self.success += other.success;
        self.suffix_count += other.suffix_count;
        self.suffix_hash += other.suffix_hash;
        self.suffix_sync += other.suffix_sync;
        for (ip, devices) in &other.failure_nodes {
            let mine = self.failure_nodes.entry(ip.clone()).or_default();
            for (device, count) in devices {
                *mine.entry(device.clone()).or_default() += count;
            }
        }
    }

    /// What [`Stats::to_recon`] has written, here or in Swift; what is missing is 0.
    pub fn from_recon(value: &Value) -> Self {
        let count = |key: &str| value[key].as_u64().unwrap_or(0);
        let mut failure_nodes: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (ip, devices) in value["failure_nodes"].as_object().into_iter().flatten() {
            let devices = devices.as_object().into_iter().flatten();
            let devices = devices.map(|(device, count)| (device.clone(), count.as_u64().unwrap_or(0)));
            failure_nodes.insert(ip.clone(), devices.collect());
        }
        Self {
            attempted: count("attempted"),
            failure: count("failure"),
            hashmatch: count("hashmatch"),
            remove: count("remove"),
            rsync: count("rsync"),
            success: count("success"),
            suffix_count: count("suffix_count"),
            suffix_hash: count("suffix_hash"),
            suffix_sync: count("suffix_sync"),
            failure_nodes,
        }
    }

    pub fn to_recon(&self) -> Value {
        let mut map = Map::new();
        for (key, value) in [
            ("attempted", self.attempted),
            ("failure", self.failure),
            ("hashmatch", self.hashmatch),
            ("remove", self.remove),
            ("rsync", self.rsync),
            ("success", self.success),
            ("suffix_count", self.suffix_count),
            ("suffix_hash", self.suffix_hash),
            ("suffix_sync", self.suffix_sync),
        ] {
            map.insert(key.to_string(), json!(value));
        }
        map.insert("failure_nodes".to_string(), json!(self.failure_nodes));
        Value::Object(map)
    }
}

/// The lines that tell how far a pass is.
pub fn stats_lines(stats: &Stats, total: u64, elapsed: Duration, times: &[Duration]) -> Vec<String> {
    let done = stats.attempted;
    let secs = elapsed.as_secs_f64();
    let rate = done as f64 / secs.max(0.000_001);
    let mut lines = vec![
        format!(
            "{done}/{total} ({:.2}%) partitions replicated in {secs:.2}s ({rate:.2}/sec, {} remaining)",
            done as f64 * 100.0 / total.max(1) as f64,
            compute_eta(secs, done, total),
        ),
        format!("{} successes, {} failures", stats.success, stats.failure),
    ];
    lines.extend(suffix_lines([stats.suffix_count, stats.suffix_hash, stats.suffix_sync], times));
    lines
}

/// Of suffixes checked, hashed and synced, if any were, and of the times that partitions took.
pub fn suffix_lines([checked, hashed, synced]: [u64; 3], times: &[Duration]) -> Vec<String> {
    if checked == 0 {
        return Vec::new();
    }
    let percent = |n: u64| n as f64 * 100.0 / checked as f64;
    let (hashed, synced) = (percent(hashed), percent(synced));
    let mut lines = vec![format!("{checked} suffixes checked - {hashed:.2}% hashed, {synced:.2}% synced")];
    let mut times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    times.sort_by(f64::total_cmp);
    if let (Some(min), Some(max)) = (times.first(), times.last()) {
        let med = times[times.len() / 2];
        lines.push(format!("Partition times: max {max:.4}s, min {min:.4}s, med {med:.4}s"));
    }
    lines
}

/// The time left, in whole hours, minutes or seconds.
pub fn compute_eta(elapsed: f64, done: u64, total: u64) -> String {
    let completion = (done as f64 / total.max(1) as f64).max(0.000_01);
    let mut left = elapsed / completion - elapsed;
    let mut unit = 's';
    for larger in ['m', 'h'] {
        if left > 60.0 {
            left /= 60.0;
            unit = larger;
        } else {
            break;
        }
    }
    format!("{}{unit}", left as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_node_and_added_up() {
        let node = |ip: &str, device: &str| (ip.to_string(), device.to_string());
        let mut stats = Stats { attempted: 2, ..Stats::default() };
        stats.add_failure_stats(&[node("10.0.0.1", "sda"), node("10.0.0.2", "sdb")]);
        let mut total = Stats { attempted: 1, success: 4, ..Stats::default() };
        total.add_failure_stats(&[node("10.0.0.1", "sda")]);
        total.add(&stats);
        assert_eq!((total.attempted, total.failure, total.success), (3, 3, 4));
        assert_eq!(Stats::from_recon(&total.to_recon()), total);
        assert_eq!(
            total.to_recon(),
            json!({
                "attempted": 3, "failure": 3, "hashmatch": 0, "remove": 0, "rsync": 0, "success": 4,
                "suffix_count": 0, "suffix_hash": 0, "suffix_sync": 0,
                "failure_nodes": {"10.0.0.1": {"sda": 2}, "10.0.0.2": {"sdb": 1}},
            })
        );
    }

    #[test]
    fn the_lines_are_swifts() {
        let stats = Stats {
            attempted: 3,
            success: 5,
            failure: 1,
            suffix_count: 40,
            suffix_hash: 10,
            suffix_sync: 1,
            ..Stats::default()
        };
        let times = [0.5, 0.25, 1.0].map(Duration::from_secs_f64);
        assert_eq!(
            stats_lines(&stats, 12, Duration::from_secs(60), &times),
            [
                "3/12 (25.00%) partitions replicated in 60.00s (0.05/sec, 3m remaining)",
                "5 successes, 1 failures",
                "40 suffixes checked - 25.00% hashed, 2.50% synced",
                "Partition times: max 1.0000s, min 0.2500s, med 0.5000s",
            ]
        );
        assert_eq!(compute_eta(10.0, 5, 10), "10s");
        assert_eq!(compute_eta(36000.0, 5, 10), "10h");
    }
}
