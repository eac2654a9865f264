//! A ring in memory: devices, the table replica -> partition -> device id, primaries and handoffs.
//!
//! The order of handoffs is part of the wire: two nodes which disagree on it look for an object in different places. It must
//! therefore be Swift's to the letter, for rings of every shape.
//!
//! A [`Ring`] only exists with a table whose every entry names a device of the ring, so that no lookup can fail. Files which
//! break that are refused by `io.rs`.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use common::digest;
use common::hash::HashConf;
use serde_json::{Map, Value};

/// One device of a ring.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    pub id: u32,
    pub region: u32,
    pub zone: u32,
    pub ip: String,
    pub port: u16,
    pub device: String,
    pub weight: f64,
    pub replication_ip: String,
    pub replication_port: u16,
    pub meta: String,
    /// Keys which this version does not know; kept so that a ring read and written again loses nothing.
    pub extra: Map<String, Value>,
}

/// A device in its role for one partition.
#[derive(Debug, Clone)]
pub struct Node {
    pub dev: Arc<Device>,
    /// Of a primary: its place among the primaries of the partition. Of a handoff: 0, see `handoff_index`.
    pub index: usize,
    /// Of a handoff: its place in the order of handoffs.
    pub handoff_index: Option<usize>,
}

impl Deref for Node {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.dev
    }
}

/// What a ring file holds, not yet checked.
#[derive(Debug, Clone, Default)]
pub struct RingData {
    pub devs: Vec<Option<Arc<Device>>>,
    /// One row per replica; the last may be shorter (a fractional replica).
    pub replica2part2dev_id: Vec<Vec<u32>>,
    pub part_power: u32,
    pub next_part_power: Option<u32>,
    pub version: Option<u64>,
    /// Bytes per device id in a file of format 2.
    pub dev_id_bytes: u8,
}

/// A ring which answers lookups. Immutable; shared by `Arc`.
#[derive(Debug)]
pub struct Ring {
    devs: Vec<Option<Arc<Device>>>,
    table: Table,
    tiers: Tiers,
    part_power: u32,
    next_part_power: Option<u32>,
    version: Option<u64>,
    pub(crate) md5: String,
    pub(crate) size: u64,
}

/// Most rings have device ids of 2 bytes: half the memory.
#[derive(Debug)]
enum Table {
    Narrow(Vec<Vec<u16>>),
    Wide(Vec<Vec<u32>>),
}

impl Table {
    fn new(rows: Vec<Vec<u32>>) -> Self {
        if rows.iter().flatten().all(|&id| id <= u32::from(u16::MAX)) {
            Self::Narrow(rows.iter().map(|row| row.iter().map(|&id| id as u16).collect()).collect())
        } else {
            Self::Wide(rows)
        }
    }

    fn replicas(&self) -> usize {
        match self {
            Self::Narrow(rows) => rows.len(),
            Self::Wide(rows) => rows.len(),
        }
    }

    fn row_len(&self, replica: usize) -> usize {
        match self {
            Self::Narrow(rows) => rows[replica].len(),
            Self::Wide(rows) => rows[replica].len(),
        }
    }

    fn get(&self, replica: usize, part: usize) -> Option<u32> {
        match self {
            Self::Narrow(rows) => rows[replica].get(part).map(|&id| u32::from(id)),
            Self::Wide(rows) => rows[replica].get(part).copied(),
        }
    }
}

/// For each device dense numbers of its region, zone and ip, and how many of each have partitions.
///
/// Swift: a tier without any partition does not count, or the search for handoffs could never stop early (ring.py,
/// `_update_bookkeeping`). A zone is a zone of its region, an ip one of its zone.
#[derive(Debug)]
struct Tiers {
    of_dev: Vec<[u32; 4]>,
    counts: [usize; 4],
}

impl Tiers {
    fn new(devs: &[Option<Arc<Device>>], table: &Table) -> Self {
        let mut assigned = vec![false; devs.len()];
        for replica in 0..table.replicas() {
            for part in 0..table.row_len(replica) {
                if let Some(id) = table.get(replica, part) {
                    assigned[id as usize] = true;
                }
            }
        }
        let mut regions = HashMap::new();
        let mut zones = HashMap::new();
        let mut ips = HashMap::new();
        let mut ids = 0;
        let mut of_dev = vec![[0; 4]; devs.len()];
        for (slot, dev) in devs.iter().enumerate() {
            let (Some(dev), true) = (dev, assigned[slot]) else { continue };
            of_dev[slot] = [
                number(&mut regions, dev.region),
                number(&mut zones, (dev.region, dev.zone)),
                number(&mut ips, (dev.region, dev.zone, dev.ip.as_str())),
                ids,
            ];
            ids += 1;
        }
        Self { of_dev, counts: [regions.len(), zones.len(), ips.len(), ids as usize] }
    }
}

fn number<K: std::hash::Hash + Eq>(seen: &mut HashMap<K, u32>, key: K) -> u32 {
    let next = seen.len() as u32;
    *seen.entry(key).or_insert(next)
}

impl Ring {
    /// Checks `data` and makes it answer lookups. The error is a sentence without the file's name.
    pub fn new(data: RingData) -> Result<Self, String> {
        check(&data)?;
        let table = Table::new(data.replica2part2dev_id);
        let tiers = Tiers::new(&data.devs, &table);
        Ok(Self {
            devs: data.devs,
            table,
            tiers,
            part_power: data.part_power,
            next_part_power: data.next_part_power,
            version: data.version,
            md5: String::new(),
            size: 0,
        })
    }

    pub fn part_power(&self) -> u32 {
        self.part_power
    }

    pub fn part_count(&self) -> usize {
        1 << self.part_power
    }

    /// Replicas, a fractional one counted whole: the number of primaries that a partition can have at most.
    pub fn replica_count(&self) -> usize {
        self.table.replicas()
    }

    /// Replicas as configured, such as 3.25.
    pub fn replicas(&self) -> f64 {
        let last = self.table.replicas() - 1;
        last as f64 + self.table.row_len(last) as f64 / self.part_count() as f64
    }

    /// Devices by id; `None` where a device was removed.
    pub fn devs(&self) -> &[Option<Arc<Device>>] {
        &self.devs
    }

    /// Set while the part power is being increased.
    pub fn next_part_power(&self) -> Option<u32> {
        self.next_part_power
    }

    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// MD5 of the file, in hex; empty for a ring that was not read from a file.
    pub fn md5(&self) -> &str {
        &self.md5
    }

    /// Size of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn get_part(
        &self,
        conf: &HashConf,
        account: &str,
        container: Option<&str>,
        object: Option<&str>,
    ) -> u32 {
        let hash = conf.hash_path(account, container, object);
        self.part_of(&hash.0)
    }

    fn part_of(&self, digest: &[u8; 16]) -> u32 {
        let head = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        // A part power of 0 would shift by the whole width.
        (u64::from(head) >> (32 - self.part_power)) as u32
    }

    /// The primaries of `part`. A device which has several replicas of the partition appears once. Empty when there is no such
    /// partition.
    pub fn get_part_nodes(&self, part: u32) -> Vec<Node> {
        let mut nodes: Vec<Node> = Vec::with_capacity(self.table.replicas());
        for id in self.primary_ids(part) {
            if let Some(dev) = &self.devs[id as usize]
                && nodes.iter().all(|node| node.id != id)
            {
                nodes.push(Node { dev: dev.clone(), index: nodes.len(), handoff_index: None });
            }
        }
        nodes
    }

    fn primary_ids(&self, part: u32) -> impl Iterator<Item = u32> {
        (0..self.table.replicas()).filter_map(move |replica| self.table.get(replica, part as usize))
    }

    pub fn get_nodes(
        &self,
        conf: &HashConf,
        account: &str,
        container: Option<&str>,
        object: Option<&str>,
    ) -> (u32, Vec<Node>) {
        let part = self.get_part(conf, account, container, object);
        (part, self.get_part_nodes(part))
    }

    /// The handoffs of `part` in Swift's order, until every device with a partition has been named once.
    pub fn get_more_nodes(self: &Arc<Self>, part: u32) -> MoreNodes {
        MoreNodes::new(self.clone(), part)
    }

    pub fn data(&self) -> RingData {
        let rows = (0..self.table.replicas()).map(|replica| {
            (0..self.table.row_len(replica)).filter_map(|part| self.table.get(replica, part)).collect()
        });
        RingData {
            devs: self.devs.clone(),
            replica2part2dev_id: rows.collect(),
            part_power: self.part_power,
            next_part_power: self.next_part_power,
            version: self.version,
            dev_id_bytes: match self.table {
                Table::Narrow(_) => 2,
                Table::Wide(_) => 4,
            },
        }
    }
}

/// Each way in which a table could make a lookup fail.
fn check(data: &RingData) -> Result<(), String> {
    if data.part_power > 32 {
        return Err(format!("part power {} is not in 0..32", data.part_power));
    }
    for (slot, dev) in data.devs.iter().enumerate() {
        if let Some(dev) = dev
            && dev.id as usize != slot
        {
            return Err(format!("device {} stands at position {slot} of devs", dev.id));
        }
    }
    let parts = 1usize << data.part_power;
    let Some((last, whole)) = data.replica2part2dev_id.split_last() else {
        return Err("no partition is assigned (was the ring ever rebalanced?)".to_string());
    };
    for (replica, row) in whole.iter().enumerate() {
        if row.len() != parts {
            return Err(format!("replica {replica} has {} of {parts} partitions", row.len()));
        }
    }
    if last.is_empty() || last.len() > parts {
        return Err(format!("replica {} has {} of {parts} partitions", whole.len(), last.len()));
    }
    if whole.is_empty() && last.len() != parts {
        return Err(format!("its only replica has {} of {parts} partitions", last.len()));
    }
    for (replica, row) in data.replica2part2dev_id.iter().enumerate() {
        for (part, &id) in row.iter().enumerate() {
            if !matches!(data.devs.get(id as usize), Some(Some(_))) {
                return Err(format!(
                    "partition {part} replica {replica} is assigned to device {id}, which is not in devs"
                ));
            }
        }
    }
    Ok(())
}

/// How far apart a handoff must be from everything named before, from strict to lax. A pass over all partitions each.
const PASSES: usize = 4;

/// Iterator over handoffs; owns its ring, so that it may outlive a reload.
pub struct MoreNodes {
    ring: Arc<Ring>,
    /// The primaries' and handoffs' regions, zones, ips and devices so far.
    used: [Seen; PASSES],
    pass: usize,
    walk: Walk,
    replica: usize,
    found: usize,
}

/// A bit per dense number, and how many are set.
#[derive(Clone, Default)]
struct Seen {
    bits: Vec<u64>,
    count: usize,
}

impl Seen {
    fn with_capacity(n: usize) -> Self {
        Self { bits: vec![0; n.div_ceil(64)], count: 0 }
    }

    fn contains(&self, n: u32) -> bool {
        self.bits[n as usize / 64] & (1 << (n % 64)) != 0
    }

    fn insert(&mut self, n: u32) {
        if !self.contains(n) {
            self.bits[n as usize / 64] |= 1 << (n % 64);
            self.count += 1;
        }
    }
}

/// The partitions whose devices are tried, in order: from a start which depends on the partition to the end in steps of
/// `inc`, then from the point where that would have wrapped round up to the start.
#[derive(Clone, Copy)]
struct Walk {
    start: usize,
    parts: usize,
    inc: usize,
    at: usize,
    wrapped: bool,
}

impl Walk {
    fn new(ring: &Ring, part: u32) -> Self {
        let start = ring.part_of(&digest::md5(part.to_string().as_bytes())) as usize;
        let parts = ring.part_count();
        Self { start, parts, inc: (parts / 65536).max(1), at: start, wrapped: false }
    }

    fn rewind(&mut self) {
        self.at = self.start;
        self.wrapped = false;
    }

    fn current(&self) -> Option<usize> {
        let end = if self.wrapped { self.start } else { self.parts };
        (self.at < end).then_some(self.at)
    }

    fn step(&mut self) {
        self.at += self.inc;
        if !self.wrapped && self.at >= self.parts {
            self.wrapped = true;
            // Swift: not `at - parts`: when the last step ends exactly at the table's end this is `inc`, not 0, so that with
            // steps of 1 the partition 0 is never tried again (ring.py, `get_more_nodes`).
            self.at = self.inc - (self.parts - self.start) % self.inc;
        }
    }
}

impl MoreNodes {
    fn new(ring: Arc<Ring>, part: u32) -> Self {
        let mut used = ring.tiers.counts.map(Seen::with_capacity);
        for id in ring.primary_ids(part) {
            let tiers = ring.tiers.of_dev[id as usize];
            for (seen, tier) in used.iter_mut().zip(tiers) {
                seen.insert(tier);
            }
        }
        let walk = Walk::new(&ring, part);
        Self { ring, used, pass: 0, walk, replica: 0, found: 0 }
    }

    /// The device id of the next entry of the table in this pass.
    fn next_entry(&mut self) -> Option<u32> {
        while let Some(part) = self.walk.current() {
            while self.replica < self.ring.table.replicas() {
                self.replica += 1;
                if let Some(id) = self.ring.table.get(self.replica - 1, part) {
                    return Some(id);
                }
            }
            self.replica = 0;
            self.walk.step();
        }
        None
    }

    fn next_pass(&mut self) {
        self.pass += 1;
        self.replica = 0;
        self.walk.rewind();
    }
}

impl Iterator for MoreNodes {
    type Item = Node;

    fn next(&mut self) -> Option<Node> {
        while self.pass < PASSES {
            if self.used[self.pass].count == self.ring.tiers.counts[self.pass] {
                self.next_pass();
                continue;
            }
            let Some(id) = self.next_entry() else {
                self.next_pass();
                continue;
            };
            let tiers = self.ring.tiers.of_dev[id as usize];
            if self.used[self.pass].contains(tiers[self.pass]) {
                continue;
            }
            for (seen, tier) in self.used.iter_mut().zip(tiers) {
                seen.insert(tier);
            }
            let Some(dev) = self.ring.devs[id as usize].clone() else { continue };
            self.found += 1;
            return Some(Node { dev, index: 0, handoff_index: Some(self.found - 1) });
        }
        None
    }
}
