//! What a pass has done, for its lines in the log and for recon.

use std::collections::BTreeMap;

use ring::Device;
use serde_json::{Map, Value, json};

/// A node's device as the figures know it: its replication address and its name.
pub type NodeKey = (String, String);

pub fn node_key(device: &Device) -> NodeKey {
    (device.replication_ip.clone(), device.device.clone())
}

/// `ts_repl` and `empty` have counted nothing for long, in Swift neither.
#[derive(Debug, Default)]
pub struct Stats {
    pub attempted: u64,
    pub success: u64,
    pub failure: u64,
    pub no_change: u64,
    pub hashmatch: u64,
    pub rsync: u64,
    pub diff: u64,
    pub remove: u64,
    pub remote_merge: u64,
    pub diff_capped: u64,
    pub deferred: u64,
    failure_nodes: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Stats {
    pub fn add_failures<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeKey>) {
        for (ip, device) in nodes {
            self.failure += 1;
            *self.failure_nodes.entry(ip.clone()).or_default().entry(device.clone()).or_default() += 1;
        }
    }

    /// The lines at the end of a pass.
    pub fn lines(&self, secs: f64) -> [String; 4] {
        let rate = self.attempted as f64 / (secs + 0.000_000_1);
        [
            format!("Attempted to replicate {} dbs in {secs:.5} seconds ({rate:.5}/s)", self.attempted),
            format!("Removed {} dbs", self.remove),
            format!("{} successes, {} failures", self.success, self.failure),
            format!(
                "diff:{} diff_capped:{} empty:0 hashmatch:{} no_change:{} remote_merge:{} rsync:{} ts_repl:0",
                self.diff, self.diff_capped, self.hashmatch, self.no_change, self.remote_merge, self.rsync
            ),
        ]
    }

    pub fn to_recon(&self, start: f64) -> Value {
        let failure_nodes: Map<String, Value> =
            self.failure_nodes.iter().map(|(ip, devices)| (ip.clone(), json!(devices))).collect();
        json!({
            "attempted": self.attempted,
            "success": self.success,
            "failure": self.failure,
            "ts_repl": 0,
            "no_change": self.no_change,
            "hashmatch": self.hashmatch,
            "rsync": self.rsync,
            "diff": self.diff,
            "remove": self.remove,
            "empty": 0,
            "remote_merge": self.remote_merge,
            "start": start,
            "diff_capped": self.diff_capped,
            "deferred": self.deferred,
            "failure_nodes": failure_nodes,
        })
    }
}
