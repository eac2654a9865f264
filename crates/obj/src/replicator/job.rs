//! Which partitions are on this machine's devices, and where they belong.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::policy::{PolicyIndex, StoragePolicy, data_dir};
use ring::{Device, Node, Ring, is_local_device};
use service::context::Context;
use service::daemon::DaemonArgs;
use service::logs::Logger;

use super::stats::NodeKey;
use crate::diskfile::DiskFileManager;

/// One partition on one device.
pub struct Job {
    pub manager: Arc<DiskFileManager>,
    pub ring: Arc<Ring>,
    pub device: String,
    pub region: u32,
    pub partition: u32,
    /// The partition's directory.
    pub path: PathBuf,
    /// Its primaries other than this device.
    pub nodes: Vec<Node>,
    /// This device is none of its primaries: the partition is to be moved there.
    pub delete: bool,
}

pub fn node_key(dev: &Device) -> NodeKey {
    (dev.replication_ip.clone(), dev.device.clone())
}

impl Job {
    pub fn node_keys(&self) -> Vec<NodeKey> {
        self.nodes.iter().map(|node| node_key(node)).collect()
    }
}

/// What of a pass its command line asks for; empty is all.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub devices: Vec<String>,
    pub partitions: Vec<u32>,
    pub policies: Vec<u32>,
}

impl Overrides {
    pub fn of(args: &DaemonArgs) -> Self {
        let (devices, partitions) = (args.devices.clone(), args.partitions.clone());
        Self { devices, partitions, policies: args.policies.clone() }
    }

    pub fn any(&self) -> bool {
        !self.devices.is_empty() || !self.partitions.is_empty() || !self.policies.is_empty()
    }

    pub fn takes_device(&self, device: &str) -> bool {
        self.devices.is_empty() || self.devices.iter().any(|name| name == device)
    }

    pub fn takes_partition(&self, partition: u32) -> bool {
        self.partitions.is_empty() || self.partitions.contains(&partition)
    }

    pub fn takes_policy(&self, policy: u32) -> bool {
        self.policies.is_empty() || self.policies.contains(&policy)
    }
}

/// The devices of a ring which are on this machine.
pub fn local_devices(
    ring: &Ring,
    ips: &[IpAddr],
    port: Option<u16>,
    overrides: &Overrides,
) -> Vec<Arc<Device>> {
    let local = |dev: &&Arc<Device>| {
        is_local_device(ips, port, &dev.replication_ip, dev.replication_port)
            && overrides.takes_device(&dev.device)
    };
    ring.devs().iter().flatten().filter(local).cloned().collect()
}

/// The ring of a policy; `None` if there is none or nothing is to be synced now, which is logged.
pub fn ring_to_sync(ctx: &Context, policy: &StoragePolicy, logger: &Logger) -> Option<Arc<Ring>> {
    let ring = ctx.rings.object(policy.index, &ctx.swift_conf.policies);
    let ring = ring.inspect_err(|err| logger.error(err)).ok()?;
    // While the part power is being increased every object has two names here, and would be copied twice.
    if ring.next_part_power().is_some() {
        logger.warning(format_args!("next_part_power set in policy '{}'. Skipping", policy.name));
        return None;
    }
    Some(ring)
}

/// Whether a policy has another ring by now.
pub fn ring_changed(ctx: &Context, policy: PolicyIndex, ring: &Arc<Ring>) -> bool {
    let Some(policy) = ctx.swift_conf.policies.get(policy) else { return true };
    match ctx.rings.file(&policy.object_ring_name) {
        Ok(file) => file.has_changed() || !Arc::ptr_eq(&file.get(), ring),
        Err(_) => false,
    }
}

/// What a look at one device has found.
pub enum DeviceJobs {
    /// Not there; says why.
    Unavailable(String),
    /// The jobs, and the names among the partitions that are none.
    Found(Vec<Job>, usize),
}

/// Lists the partitions of one device. Blocks.
pub fn jobs_of_device(
    manager: &Arc<DiskFileManager>,
    ring: &Arc<Ring>,
    dev: &Device,
    overrides: &Overrides,
    logger: &Logger,
) -> DeviceJobs {
    let Some(dev_path) = manager.dev_path(&dev.device) else {
        return DeviceJobs::Unavailable(not_available(manager, &dev.device));
    };
    sweep_tmp(&dev_path.join(data_dir("tmp", manager.policy())), manager);
    let obj_path = dev_path.join(data_dir("objects", manager.policy()));
    let entries = match std::fs::read_dir(&obj_path) {
        Ok(entries) => entries,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            if let Err(err) = common::fs::mkdirs(&obj_path) {
                logger.error(format_args!("ERROR creating {}: {err}", obj_path.display()));
            }
            return DeviceJobs::Found(Vec::new(), 0);
        }
        Err(err) => return DeviceJobs::Unavailable(format!("cannot list {}: {err}", obj_path.display())),
    };
    let mut jobs = Vec::new();
    let mut strange = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("auditor_status_") && name.ends_with(".json") {
            continue;
        }
        let Ok(partition) = name.parse::<u32>() else {
            strange += 1;
            continue;
        };
        if !overrides.takes_partition(partition) {
            continue;
        }
        match job(manager, ring, dev, partition, entry.path()) {
            Some(job) => jobs.push(job),
            None => {
                // Swift takes it for a handoff whose every primary has it, and removes it (replicator.py, `revert`).
                logger.error(format_args!(
                    "Partition {} is not in the ring, skipping it",
                    entry.path().display()
                ));
                strange += 1;
            }
        }
    }
    DeviceJobs::Found(jobs, strange)
}

pub fn not_available(manager: &DiskFileManager, device: &str) -> String {
    let path = manager.construct_dev_path(device);
    let what = if manager.conf().mount_check { "mounted" } else { "a directory" };
    format!("{} is not {what}", path.display())
}

fn job(
    manager: &Arc<DiskFileManager>,
    ring: &Arc<Ring>,
    dev: &Device,
    partition: u32,
    path: PathBuf,
) -> Option<Job> {
    let mut nodes = ring.get_part_nodes(partition);
    if nodes.is_empty() {
        return None;
    }
    let primaries = nodes.len();
    nodes.retain(|node| node.id != dev.id);
    Some(Job {
        manager: manager.clone(),
        ring: ring.clone(),
        device: dev.device.clone(),
        region: dev.region,
        partition,
        path,
        delete: nodes.len() == primaries,
        nodes,
    })
}

/// Removes what writers that died have left, once it is older than reclaim_age.
pub fn sweep_tmp(tmp: &Path, manager: &DiskFileManager) {
    let now = manager.clock().since_epoch();
    common::fs::remove_older_than(tmp, now.saturating_sub(manager.conf().reclaim_age), "");
}
