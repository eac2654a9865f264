//! Where databases are: `DEVICES/DEVICE/{accounts,containers}/PARTITION/SUFFIX/HASH/*.db`.

use std::path::{Path, PathBuf};

use service::Context;

/// The directories of one kind on all devices of this machine, for daemons that walk them in any order.
pub struct Locations {
    pub devices: PathBuf,
    pub mount_check: bool,
    /// On each device.
    pub datadir: &'static str,
}

impl Locations {
    /// The names of the devices.
    pub async fn devices(&self, ctx: &Context) -> std::io::Result<Vec<String>> {
        let root = self.devices.clone();
        let mut devices = ctx.disk_pools.run(&ctx.name, move || names_in(&root)).await?;
        ctx.rng.shuffle(&mut devices);
        Ok(devices)
    }

    /// The partitions of a device, if it can be used.
    pub async fn partitions(&self, ctx: &Context, device: &str) -> Vec<PathBuf> {
        let (root, name, mount_check) = (self.devices.clone(), device.to_owned(), self.mount_check);
        let datadir = self.datadir;
        let list = move || {
            let path = common::fs::check_drive(&root, &name, mount_check)?.join(datadir);
            // No such directory is no such databases.
            let names = names_in(&path).unwrap_or_default();
            Some(names.into_iter().map(|name| path.join(name)).collect::<Vec<_>>())
        };
        let Some(mut partitions) = ctx.disk_pools.run(device, list).await else {
            if mount_check {
                ctx.logger.warning(format_args!("Skipping {device} as it is not mounted"));
            }
            return Vec::new();
        };
        ctx.rng.shuffle(&mut partitions);
        partitions
    }
}

/// The names in a directory.
pub fn names_in(dir: &Path) -> std::io::Result<Vec<String>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// The databases of a partition: `PARTITION/SUFFIX/HASH/*.db`.
pub fn database_files(partition: &Path) -> Vec<PathBuf> {
    let below = |dir: PathBuf| {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let hashes = below(partition.to_owned()).into_iter().flat_map(below);
    hashes
        .flat_map(below)
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect()
}
