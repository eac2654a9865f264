//! Which nodes are left alone for a while because they failed too often.
//!
//! A node is limited once it has more than `error_suppression_limit` errors of which the last is less than
//! `error_suppression_interval` seconds ago; a 507 limits it at once. Kept per process, as in Swift.

use std::collections::HashMap;

use common::clock::Clock;
use parking_lot::Mutex;

pub struct ErrorLimiter {
    pub suppression_interval: f64,
    suppression_limit: u64,
    clock: Clock,
    /// By `node_to_string`. Empty in a healthy cluster, which the hot path relies on; at most one entry a device.
    stats: Mutex<HashMap<String, Stats>>,
}

struct Stats {
    errors: u64,
    last_error: f64,
}

impl ErrorLimiter {
    pub fn new(suppression_interval: f64, suppression_limit: u64, clock: Clock) -> Self {
        Self { suppression_interval, suppression_limit, clock, stats: Mutex::default() }
    }

    pub fn is_limited(&self, node: &ring::Device) -> bool {
        let mut stats = self.stats.lock();
        if stats.is_empty() {
            return false;
        }
        let key = node_to_string(node);
        let Some(found) = stats.get(&key) else { return false };
        if found.last_error < self.clock.unix_secs() - self.suppression_interval {
            stats.remove(&key);
            return false;
        }
        found.errors > self.suppression_limit
    }

    /// As if the node had failed often enough already.
    pub fn limit(&self, node: &ring::Device) {
        let stats = Stats { errors: self.suppression_limit + 1, last_error: self.clock.unix_secs() };
        self.stats.lock().insert(node_to_string(node), stats);
    }

    /// Counts an error; true when the node is limited now.
    pub fn increment(&self, node: &ring::Device) -> bool {
        let mut stats = self.stats.lock();
        let entry = stats.entry(node_to_string(node)).or_insert(Stats { errors: 0, last_error: 0.0 });
        entry.errors += 1;
        entry.last_error = self.clock.unix_secs();
        entry.errors > self.suppression_limit
    }
}

/// `IP:PORT/DEVICE`, as nodes are named in the logs.
pub fn node_to_string(node: &ring::Device) -> String {
    match node.ip.contains(':') {
        true => format!("[{}]:{}/{}", node.ip, node.port, node.device),
        false => format!("{}:{}/{}", node.ip, node.port, node.device),
    }
}
