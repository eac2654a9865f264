//! How long nodes took to accept a connection, for `sorting_method = timing`. Kept per process.

use std::collections::HashMap;
use std::time::Duration;

use common::clock::Clock;
use parking_lot::Mutex;
use ring::Node;

pub struct NodeTimings {
    clock: Clock,
    expiry: f64,
    /// By IP: whole milliseconds, and until when that holds.
    timings: Mutex<HashMap<String, (u64, f64)>>,
}

impl NodeTimings {
    pub fn new(clock: Clock, expiry: f64) -> Self {
        Self { clock, expiry, timings: Mutex::default() }
    }

    pub fn set(&self, node: &Node, took: Duration) {
        let until = self.clock.unix_secs() + self.expiry;
        let millis = (took.as_secs_f64() * 1000.0).round() as u64;
        self.timings.lock().insert(node.ip.clone(), (millis, until));
    }

    /// The quickest first, before them those of which nothing is known.
    pub fn sort(&self, nodes: &mut [Node]) {
        let now = self.clock.unix_secs();
        let timings = self.timings.lock();
        nodes.sort_by_key(|node| {
            timings.get(&node.ip).filter(|(_, until)| *until > now).map(|(millis, _)| *millis)
        });
    }
}
