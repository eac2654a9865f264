//! Lays out a new ring: which device stores which replica of which partition.
//!
//! Every device gets partitions by its weight, and the replicas of a partition lie as far apart as the weights allow: first in
//! different regions, then zones, then ips, then devices.
//!
//! How: put the devices on a line, neighbours in the tree of regions, zones and ips side by side, each as long as the number
//! of replicas per partition that its weight entitles it to (never more than 1). Points at a distance of 1 on that line name
//! the devices of one partition. As no device is longer than 1, none is named twice; and a region, zone or ip of length L is
//! named floor(L) or ceil(L) times: the best dispersion that the weights allow. Many starting points, evenly spread, give each
//! device its share. The order within the tree is shuffled again for every batch of partitions, so that the replicas which a
//! device shares its partitions with are spread over all others; the lengths of each batch come from what a device still
//! lacks, so that errors of rounding do not add up.
//!
//! Not done: changing an existing ring with few moved partitions, `min_part_hours` (kept for the file of a builder), overload,
//! builder files. `rebalance` always lays out anew.

use std::path::Path;
use std::sync::Arc;

use crate::io::{FormatVersion, RingError};
use crate::ring::{Device, RingData};

/// Partitions which share one order of the devices.
const BATCH: usize = 64;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BuilderError {
    #[error("part power {0} is not in 0..32")]
    PartPower(u32),
    #[error("replica count {0} is not a number of at least 1")]
    Replicas(f64),
    #[error("device id {0} is taken")]
    DuplicateDevice(u32),
    #[error("weight {0} of device {1} is not a finite number of at least 0")]
    Weight(f64, u32),
    #[error("replica count of {replicas} requires more than {devices} devices with a weight")]
    TooFewDevices { replicas: f64, devices: usize },
    #[error("the ring has not been rebalanced")]
    NotBalanced,
}

/// Devices and, once rebalanced, their partitions.
#[derive(Debug, Clone)]
pub struct RingBuilder {
    part_power: u32,
    replicas: f64,
    min_part_hours: u32,
    devs: Vec<Option<Arc<Device>>>,
    replica2part2dev_id: Vec<Vec<u32>>,
    version: u64,
}

impl RingBuilder {
    pub fn new(part_power: u32, replicas: f64, min_part_hours: u32) -> Result<Self, BuilderError> {
        if part_power > 32 {
            return Err(BuilderError::PartPower(part_power));
        }
        if !replicas.is_finite() || replicas < 1.0 {
            return Err(BuilderError::Replicas(replicas));
        }
        Ok(Self {
            part_power,
            replicas,
            min_part_hours,
            devs: Vec::new(),
            replica2part2dev_id: Vec::new(),
            version: 0,
        })
    }

    pub fn min_part_hours(&self) -> u32 {
        self.min_part_hours
    }

    /// The id that the next device may take.
    pub fn next_dev_id(&self) -> u32 {
        self.devs.iter().position(Option::is_none).unwrap_or(self.devs.len()) as u32
    }

    pub fn add_dev(&mut self, dev: Device) -> Result<u32, BuilderError> {
        let id = dev.id;
        if !dev.weight.is_finite() || dev.weight < 0.0 {
            return Err(BuilderError::Weight(dev.weight, id));
        }
        let slot = id as usize;
        if self.devs.len() <= slot {
            self.devs.resize(slot + 1, None);
        }
        if self.devs[slot].is_some() {
            return Err(BuilderError::DuplicateDevice(id));
        }
        self.devs[slot] = Some(Arc::new(dev));
        self.version += 1;
        Ok(id)
    }

    /// Assigns every partition. The same devices and seed give the same ring.
    pub fn rebalance(&mut self, seed: u64) -> Result<(), BuilderError> {
        let mut devs: Vec<Arc<Device>> = self.devs.iter().flatten().cloned().collect();
        devs.retain(|dev| dev.weight > 0.0);
        if (devs.len() as f64) < self.replicas {
            return Err(BuilderError::TooFewDevices { replicas: self.replicas, devices: devs.len() });
        }
        let parts = 1usize << self.part_power;
        let whole = self.replicas.floor() as usize;
        let longer = (parts as f64 * self.replicas.fract()) as usize;
        let mut rows = vec![vec![0; parts]; whole];
        if longer > 0 {
            rows.push(vec![0; longer]);
        }
        let mut rng = Rng(seed);
        let weights: Vec<f64> = devs.iter().map(|dev| dev.weight).collect();
        // The first `longer` partitions have one replica more than the rest.
        for (range, replicas) in [(0..longer, whole + 1), (longer..parts, whole)] {
            let mut wanted = shares(&weights, replicas as f64);
            wanted.iter_mut().for_each(|share| *share *= range.len() as f64);
            let mut start = range.start;
            while start < range.end {
                let left = range.end - start;
                let batch = left.min(BATCH);
                let order = shuffled_tree(&devs, &mut rng);
                let lengths = shares_left(&wanted, left, replicas);
                let mut starts: Vec<usize> = (0..batch).collect();
                rng.shuffle(&mut starts);
                for (part, at) in (start..).zip(starts) {
                    let point = (at as f64 + 0.5) / batch as f64;
                    let mut chosen = choose(&order, &lengths, point, replicas);
                    rng.shuffle(&mut chosen);
                    for (row, &dev) in rows.iter_mut().zip(&chosen) {
                        row[part] = devs[dev].id;
                        wanted[dev] -= 1.0;
                    }
                }
                start += batch;
            }
        }
        self.replica2part2dev_id = rows;
        self.version += 1;
        Ok(())
    }

    pub fn to_ring_data(&self) -> Result<RingData, BuilderError> {
        if self.replica2part2dev_id.is_empty() {
            return Err(BuilderError::NotBalanced);
        }
        Ok(RingData {
            devs: self.devs.clone(),
            replica2part2dev_id: self.replica2part2dev_id.clone(),
            part_power: self.part_power,
            next_part_power: None,
            version: Some(self.version),
            dev_id_bytes: if self.devs.len() > usize::from(u16::MAX) { 4 } else { 2 },
        })
    }

    pub fn save_ring(&self, path: &Path, format: FormatVersion) -> Result<(), RingError> {
        let data = self.to_ring_data().map_err(|err| RingError {
            path: path.to_path_buf(),
            reason: err.to_string(),
            missing: false,
        })?;
        data.save(path, format)
    }
}

/// Splits `total` by weight into shares of at most 1; what a capped device cannot take goes to the others by weight.
fn shares(weights: &[f64], total: f64) -> Vec<f64> {
    let mut shares = vec![0.0; weights.len()];
    let mut capped = vec![false; weights.len()];
    loop {
        let free: f64 = weights.iter().zip(&capped).filter(|(_, capped)| !**capped).map(|(w, _)| w).sum();
        let left = total - capped.iter().filter(|capped| **capped).count() as f64;
        let mut again = false;
        for (dev, weight) in weights.iter().enumerate().filter(|(dev, _)| !capped[*dev]).collect::<Vec<_>>() {
            shares[dev] = if free > 0.0 { weight / free * left } else { 0.0 };
            if shares[dev] >= 1.0 {
                shares[dev] = 1.0;
                capped[dev] = true;
                again = true;
            }
        }
        if !again {
            return shares;
        }
    }
}

/// The lengths of the devices for the next batch: what they still want per partition that is left.
fn shares_left(wanted: &[f64], left: usize, replicas: usize) -> Vec<f64> {
    // A device that has got all it wanted keeps a sliver, so that the caps of the others always leave room.
    let wanted: Vec<f64> = wanted.iter().map(|n| (n / left as f64).max(1e-9)).collect();
    shares(&wanted, replicas as f64)
}

/// The devices (as indexes), neighbours of the tree together, regions, zones, ips and devices in a random order.
fn shuffled_tree(devs: &[Arc<Device>], rng: &mut Rng) -> Vec<usize> {
    let salt = rng.next();
    let mut order: Vec<usize> = (0..devs.len()).collect();
    order.sort_by_cached_key(|&at| {
        let dev = &devs[at];
        let region = mix(salt ^ u64::from(dev.region));
        let zone = mix(region ^ u64::from(dev.zone));
        let ip = dev.ip.bytes().fold(zone, |key, byte| mix(key ^ u64::from(byte)));
        (region, zone, ip, mix(ip ^ u64::from(dev.id)))
    });
    order
}

/// The devices under the points `point`, `point + 1`, ... of the line.
fn choose(order: &[usize], lengths: &[f64], point: f64, replicas: usize) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(replicas);
    let mut end = 0.0;
    let mut target = point;
    for &dev in order {
        end += lengths[dev];
        if target < end && chosen.len() < replicas {
            chosen.push(dev);
            target += 1.0;
        }
    }
    // Sums of floats may end just short of the last point.
    for &dev in order.iter().rev() {
        if chosen.len() < replicas && !chosen.contains(&dev) {
            chosen.push(dev);
        }
    }
    chosen
}

/// SplitMix64: enough for a layout, and the same on every machine.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
    }
}

fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Ring;
    use std::collections::{HashMap, HashSet};

    fn dev(id: u32, region: u32, zone: u32, ip: &str, weight: f64) -> Device {
        Device {
            id,
            region,
            zone,
            ip: ip.to_string(),
            port: 6200,
            device: format!("d{id}"),
            weight,
            replication_ip: ip.to_string(),
            replication_port: 6200,
            meta: String::new(),
            extra: Default::default(),
        }
    }

    fn build(part_power: u32, replicas: f64, devs: Vec<Device>) -> (Ring, HashMap<u32, usize>) {
        let mut builder = RingBuilder::new(part_power, replicas, 1).unwrap();
        for dev in devs {
            builder.add_dev(dev).unwrap();
        }
        builder.rebalance(7).unwrap();
        let data = builder.to_ring_data().unwrap();
        let mut counts = HashMap::new();
        for &id in data.replica2part2dev_id.iter().flatten() {
            *counts.entry(id).or_default() += 1;
        }
        (Ring::new(data).unwrap(), counts)
    }

    #[test]
    fn equal_devices_get_equal_shares_and_zones_never_repeat() {
        let devs = (0..8).map(|n| dev(n, 1, n / 2 + 1, &format!("10.0.0.{}", n / 2), 100.0)).collect();
        let (ring, counts) = build(10, 3.0, devs);
        for (id, count) in counts {
            assert!(count.abs_diff(384) <= 2, "device {id} has {count}");
        }
        for part in 0..1024 {
            let zones: HashSet<u32> = ring.get_part_nodes(part).iter().map(|node| node.zone).collect();
            assert_eq!(zones.len(), 3, "partition {part}");
        }
    }

    #[test]
    fn weights_decide_and_no_device_has_a_partition_twice() {
        let weights = [100.0, 100.0, 200.0, 50.0, 150.0, 1000.0];
        let devs =
            weights.iter().enumerate().map(|(n, w)| dev(n as u32, 1, n as u32, "10.0.0.1", *w)).collect();
        let (ring, counts) = build(9, 3.0, devs);
        // The heavy one is capped at one replica of every partition, the rest shares 2 replicas by weight.
        assert_eq!(counts[&5], 512);
        for (n, weight) in weights[..5].iter().enumerate() {
            let fair = weight / 600.0 * 1024.0;
            assert!((counts[&(n as u32)] as f64 - fair).abs() <= 3.0, "device {n}: {counts:?}");
        }
        for part in 0..512 {
            assert_eq!(ring.get_part_nodes(part).len(), 3);
        }
    }

    #[test]
    fn fractional_replicas_fill_a_part_of_the_last_row() {
        let devs = (0..5).map(|n| dev(n, 1 + n % 2, n, &format!("10.0.0.{n}"), 1.0 + f64::from(n))).collect();
        let (ring, _) = build(8, 2.25, devs);
        assert_eq!(ring.replica_count(), 3);
        assert_eq!(ring.replicas(), 2.25);
        assert_eq!((ring.get_part_nodes(63).len(), ring.get_part_nodes(64).len()), (3, 2));
    }

    #[test]
    fn every_region_has_a_replica_and_partners_vary() {
        let devs =
            (0..12).map(|n| dev(n, 1 + n % 3, n % 2, &format!("10.0.{}.{}", n % 3, n), 10.0)).collect();
        let (ring, _) = build(9, 3.0, devs);
        let mut partners = HashSet::new();
        for part in 0..512 {
            let nodes = ring.get_part_nodes(part);
            assert_eq!(nodes.iter().map(|node| node.region).collect::<HashSet<_>>().len(), 3);
            if nodes.iter().any(|node| node.id == 0) {
                partners.extend(nodes.iter().map(|node| node.id));
            }
        }
        assert_eq!(partners.len(), 9, "all devices of the other regions, and itself");
    }

    #[test]
    fn devices_without_weight_get_nothing_and_too_few_devices_are_an_error() {
        let mut builder = RingBuilder::new(4, 2.0, 1).unwrap();
        builder.add_dev(dev(0, 1, 1, "10.0.0.1", 1.0)).unwrap();
        builder.add_dev(dev(3, 1, 2, "10.0.0.2", 0.0)).unwrap();
        assert_eq!(builder.rebalance(1), Err(BuilderError::TooFewDevices { replicas: 2.0, devices: 1 }));
        assert_eq!(builder.next_dev_id(), 1);
        builder.add_dev(dev(1, 1, 2, "10.0.0.2", 1.0)).unwrap();
        assert!(builder.save_ring(Path::new("/nonexistent"), FormatVersion::V1).is_err());
        builder.rebalance(1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object.ring.gz");
        builder.save_ring(&path, FormatVersion::V1).unwrap();
        assert_eq!(Ring::load(&path).unwrap().part_count(), 16);
        let data = builder.to_ring_data().unwrap();
        assert!(data.replica2part2dev_id.iter().flatten().all(|&id| id != 3));
        assert_eq!(builder.add_dev(dev(1, 1, 1, "10.0.0.9", 1.0)), Err(BuilderError::DuplicateDevice(1)));
    }
}
