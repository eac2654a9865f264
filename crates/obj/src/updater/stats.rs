//! What a sweep counts, and which containers have waited longest.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Timestamp;
use serde_json::{Value, json};

/// What can happen to an update; the names are those of statsd and of the log.
#[derive(Copy, Clone, Debug)]
pub(super) enum Count {
    Successes,
    Failures,
    Quarantines,
    Unlinks,
    OutdatedUnlinks,
    Errors,
    Redirects,
    Skips,
    Deferrals,
    Drains,
}

impl Count {
    const ALL: [Count; 10] = [
        Count::Successes,
        Count::Failures,
        Count::Quarantines,
        Count::Unlinks,
        Count::OutdatedUnlinks,
        Count::Errors,
        Count::Redirects,
        Count::Skips,
        Count::Deferrals,
        Count::Drains,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Count::Successes => "successes",
            Count::Failures => "failures",
            Count::Quarantines => "quarantines",
            Count::Unlinks => "unlinks",
            Count::OutdatedUnlinks => "outdated_unlinks",
            Count::Errors => "errors",
            Count::Redirects => "redirects",
            Count::Skips => "skips",
            Count::Deferrals => "deferrals",
            Count::Drains => "drains",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct SweepStats([AtomicU64; 10]);

impl SweepStats {
    pub fn add(&self, count: Count, n: u64) {
        self.0[count as usize].fetch_add(n, Ordering::Relaxed);
    }
}

impl fmt::Display for SweepStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, count) in Count::ALL.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}", self.0[count as usize].load(Ordering::Relaxed), count.name())?;
        }
        Ok(())
    }
}

/// The containers whose updates have failed, by the oldest update of each; the newest are forgotten when there are too
/// many.
#[derive(Debug)]
pub(super) struct OldestPending {
    limit: usize,
    sorted: BTreeSet<(Timestamp, (String, String))>,
    by_container: HashMap<(String, String), Timestamp>,
}

/// Roughly what one entry takes in memory, for the recon figure of that name.
const ENTRY_BYTES: usize = 256;

impl OldestPending {
    pub fn new(limit: usize) -> Self {
        Self { limit, sorted: BTreeSet::new(), by_container: HashMap::new() }
    }

    pub fn add(&mut self, container: (String, String), timestamp: Timestamp) {
        match self.by_container.get(&container) {
            Some(known) if *known <= timestamp => return,
            Some(known) => {
                self.sorted.remove(&(*known, container.clone()));
            }
            None => {}
        }
        self.sorted.insert((timestamp, container.clone()));
        self.by_container.insert(container, timestamp);
        if self.by_container.len() > self.limit
            && let Some((_, newest)) = self.sorted.pop_last()
        {
            self.by_container.remove(&newest);
        }
    }

    /// The figures for recon, in Swift's names.
    pub fn report(&self, now: f64, count: usize) -> Value {
        let oldest = self.sorted.first().map(|(t, _)| t.as_secs_f64());
        let entries: Vec<Value> = self
            .sorted
            .iter()
            .take(count)
            .map(|(t, (account, container))| {
                json!({"timestamp": t.as_secs_f64(), "account": account, "container": container})
            })
            .collect();
        json!({
            "failures_oldest_timestamp": oldest,
            "failures_oldest_timestamp_age": oldest.map(|t| now - t),
            "failures_account_container_count": self.by_container.len(),
            "failures_oldest_timestamp_account_containers":
                {"oldest_count": entries.len(), "oldest_entries": entries},
            "tracker_memory_usage": self.by_container.len() * ENTRY_BYTES,
        })
    }
}

/// The figures of all devices as one.
pub(super) fn aggregate(devices: &[Value], count: usize, workers: usize) -> Value {
    let numbers = |name: &str| devices.iter().filter_map(|d| d[name].as_f64()).collect::<Vec<_>>();
    let smallest = |name: &str| numbers(name).into_iter().reduce(f64::min);
    let largest = |name: &str| numbers(name).into_iter().reduce(f64::max);
    let mut entries: Vec<Value> = devices
        .iter()
        .filter_map(|d| d["failures_oldest_timestamp_account_containers"]["oldest_entries"].as_array())
        .flatten()
        .cloned()
        .collect();
    let timestamp = |entry: &Value| entry["timestamp"].as_f64().unwrap_or(0.0);
    entries.sort_by(|a, b| timestamp(a).total_cmp(&timestamp(b)));
    entries.truncate(count);
    let memory: f64 = numbers("tracker_memory_usage").iter().sum();
    let average = if devices.is_empty() { 0.0 } else { memory / devices.len() as f64 };
    json!({
        "failures_account_container_count": largest("failures_account_container_count").unwrap_or(0.0) as u64,
        "tracker_memory_usage": average * workers.min(devices.len()).max(1) as f64,
        "failures_oldest_timestamp": smallest("failures_oldest_timestamp"),
        "failures_oldest_timestamp_age": largest("failures_oldest_timestamp_age"),
        "failures_oldest_timestamp_account_containers":
            {"oldest_count": entries.len(), "oldest_entries": entries},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(limit: usize, updates: &[(&str, u64)]) -> OldestPending {
        let mut oldest = OldestPending::new(limit);
        for (container, secs) in updates {
            oldest.add(("a".into(), (*container).into()), Timestamp::from_raw(secs * 100_000));
        }
        oldest
    }

    #[test]
    fn the_oldest_update_of_each_container_counts() {
        let report = pending(2, &[("x", 50), ("y", 40), ("x", 30), ("x", 60), ("z", 90)]).report(100.0, 1);
        assert_eq!(report["failures_oldest_timestamp"], 30.0);
        assert_eq!(report["failures_oldest_timestamp_age"], 70.0);
        assert_eq!(report["failures_account_container_count"], 2);
        let entries = &report["failures_oldest_timestamp_account_containers"];
        assert_eq!(
            (&entries["oldest_count"], &entries["oldest_entries"][0]["container"]),
            (&json!(1), &json!("x"))
        );
    }

    #[test]
    fn devices_are_aggregated() {
        let devices = [
            pending(9, &[("x", 50)]).report(100.0, 5),
            pending(9, &[]).report(100.0, 5),
            pending(9, &[("y", 20)]).report(100.0, 5),
        ];
        let all = aggregate(&devices, 1, 2);
        assert_eq!(all["failures_oldest_timestamp"], 20.0);
        assert_eq!(all["failures_oldest_timestamp_age"], 80.0);
        assert_eq!(
            all["failures_oldest_timestamp_account_containers"]["oldest_entries"][0]["container"],
            "y"
        );
        assert_eq!(aggregate(&[], 1, 1)["failures_oldest_timestamp"], Value::Null);
    }

    #[test]
    fn counts_are_shown_as_swift_logs_them() {
        let stats = SweepStats::default();
        stats.add(Count::Unlinks, 2);
        assert!(stats.to_string().starts_with("0 successes, 0 failures, 0 quarantines, 2 unlinks, "));
    }
}
