//! All databases of this machine's devices, in turns: one of each device after the other, so that all disks are busy. The partitions of
//! a device come in a random order and are listed one by one. Empty directories on the way are removed.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::Device;
use service::{Context, Logger};

/// A database, and whose it is.
#[derive(Clone, Debug)]
pub struct Found {
    pub device: Arc<Device>,
    pub partition: u32,
    pub db_file: PathBuf,
}

/// The partitions of a device that are still to come, and the databases of one of them.
struct DeviceWalk {
    device: Arc<Device>,
    datadir: PathBuf,
    partitions: Vec<u32>,
    found: VecDeque<Found>,
}

pub struct Walk {
    ctx: Context,
    devices: VecDeque<DeviceWalk>,
}

impl Walk {
    pub fn new(ctx: &Context) -> Self {
        Self { ctx: ctx.clone(), devices: VecDeque::new() }
    }

    /// Also walk these partitions of a device, below its directory of databases.
    pub fn add(&mut self, device: Arc<Device>, datadir: PathBuf, mut partitions: Vec<u32>) {
        self.ctx.rng.shuffle(&mut partitions);
        self.devices.push_back(DeviceWalk { device, datadir, partitions, found: VecDeque::new() });
    }

    pub async fn next(&mut self) -> Option<Found> {
        while let Some(mut walk) = self.devices.pop_front() {
            if let Some(found) = walk.found.pop_front() {
                self.devices.push_back(walk);
                return Some(found);
            }
            let Some(partition) = walk.partitions.pop() else { continue };
            let path = walk.datadir.join(partition.to_string());
            let logger = self.ctx.logger.clone();
            let list = move || databases_of(&path, &logger);
            let files = self.ctx.disk_pools.run(&walk.device.device, list).await;
            let found = |db_file| Found { device: walk.device.clone(), partition, db_file };
            walk.found = files.into_iter().map(found).collect();
            self.devices.push_front(walk);
        }
        None
    }
}

/// The partitions below a directory of databases.
pub fn partitions_of(datadir: &Path) -> std::io::Result<Vec<u32>> {
    Ok(entries(datadir)?.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect())
}

/// The databases of a partition: of each hash dir `HASH.db`, or the latest of a container that was sharded.
fn databases_of(partition: &Path, logger: &Logger) -> Vec<PathBuf> {
    let below = |dir: &Path| match entries(dir) {
        Ok(below) if below.is_empty() => {
            remove_empty(dir, logger);
            Vec::new()
        }
        Ok(below) => below.into_iter().filter(|path| path.is_dir()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Vec::new(),
        Err(error) => {
            logger.error(format_args!("ERROR listing {}: {error}", dir.display()));
            Vec::new()
        }
    };
    let hash_dirs = below(partition).into_iter().flat_map(|suffix| below(&suffix));
    hash_dirs.filter_map(|hash_dir| database_of(&hash_dir, logger)).collect()
}

fn database_of(hash_dir: &Path, logger: &Logger) -> Option<PathBuf> {
    let base_file = hash_dir.join(hash_dir.file_name()?).with_extension("db");
    if base_file.exists() {
        return Some(base_file);
    }
    match crate::container::broker::db_files(&base_file) {
        Ok(files) if files.is_empty() => {
            remove_empty(hash_dir, logger);
            None
        }
        Ok(mut files) => files.pop(),
        Err(error) => {
            logger.error(format_args!("ERROR listing {}: {error}", hash_dir.display()));
            None
        }
    }
}

fn remove_empty(dir: &Path, logger: &Logger) {
    if let Err(error) = common::fs::remove_empty_dir(dir) {
        logger.error(format_args!("ERROR removing {}: {error}", dir.display()));
    }
}

fn entries(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn devices_take_turns_and_empty_directories_go() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        for path in
            ["sda/1/abc/h1/h1.db", "sda/1/abd/h2/h2_1.db", "sda/1/abd/h2/h2_2.db", "sdb/7/abc/h3/h3.db"]
        {
            make(path);
        }
        make("sda/1/abc/h4/h4.db.pending");
        make("sda/2/file");
        for empty in ["sda/1/abc/h5", "sda/1/abe", "sda/9"] {
            std::fs::create_dir_all(dir.path().join(empty)).unwrap();
        }
        let ctx = Context::builder("account-replicator").build();
        let mut walk = Walk::new(&ctx);
        for (id, name) in [(0, "sda"), (1, "sdb")] {
            let datadir = dir.path().join(name);
            let device = Device { id, device: name.into(), ..crate::tests::device(0) };
            let mut partitions = partitions_of(&datadir).unwrap();
            partitions.sort_unstable();
            assert_eq!(partitions, if id == 0 { vec![1, 2, 9] } else { vec![7] });
            walk.add(Arc::new(device), datadir, partitions);
        }
        let mut found = Vec::new();
        while let Some(next) = walk.next().await {
            found.push((
                next.device.device.clone(),
                next.partition,
                next.db_file.file_name().unwrap().to_owned(),
            ));
        }
        let devices: Vec<_> = found.iter().map(|(device, ..)| device.as_str()).collect();
        assert!(
            devices.contains(&"sdb") && devices.len() == 3 && devices[..2].contains(&"sdb"),
            "{devices:?}"
        );
        found.sort();
        assert_eq!(
            found.iter().map(|(_, partition, file)| (*partition, file.to_str().unwrap())).collect::<Vec<_>>(),
            [(1, "h1.db"), (1, "h2_2.db"), (7, "h3.db")]
        );
        assert!(!dir.path().join("sda/1/abc/h5").exists() && !dir.path().join("sda/9").exists());
        assert!(dir.path().join("sda/1/abc/h4").exists());
    }
}
