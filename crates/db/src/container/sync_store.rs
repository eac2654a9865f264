//! Which containers of a device are synced elsewhere: the list that the container-sync daemon walks.
//!
//! Each is a symbolic link `DEVICE/sync_containers/PARTITION/SUFFIX/HASH/HASH.db` to the database of the same place below
//! `containers`. Container servers and replicators keep it when metadata changes or a database goes; the daemon strikes off
//! links whose database is gone.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::broker::{ContainerBroker, DATADIR};
use crate::broker::{BrokerError, Result};

pub const SYNC_DATADIR: &str = "sync_containers";

/// Keep the list of synced containers true after the container's metadata changed.
pub fn update(broker: &mut ContainerBroker) -> Result<()> {
    let metadata = broker.db.metadata()?;
    let (to, key) = ("X-Container-Sync-To", "X-Container-Sync-Key");
    if metadata.get(to).is_none() && metadata.get(key).is_none() {
        return Ok(()); // never was synced
    }
    let wanted = metadata.value(to).is_some() && metadata.value(key).is_some();
    let db_file = broker.db.db_file.clone();
    let Some(link) = link_path(broker.db.device_path(), &db_file) else { return Ok(()) };
    let done = if wanted && !broker.is_deleted()? { link_to(&link, &db_file) } else { unlink(&link) };
    done.map_err(|error| BrokerError::Io(link, error))
}

/// Whether the metadata of a container, as it is stored, says that it is or was synced.
pub fn is_mentioned(metadata: &str) -> bool {
    metadata.to_ascii_lowercase().contains("x-container-sync-")
}

/// Strike the container off the list of synced ones: its database is about to be removed.
pub fn remove(broker: &ContainerBroker) -> Result<()> {
    let Some(link) = link_path(broker.db.device_path(), &broker.db.db_file) else { return Ok(()) };
    unlink(&link).map_err(|error| BrokerError::Io(link, error))
}

/// The database that a link on `device` stands for, wherever it points.
pub fn database_of(device: &Path, link: &Path) -> Option<PathBuf> {
    Some(device.join(DATADIR).join(link.strip_prefix(device.join(SYNC_DATADIR)).ok()?))
}

fn link_path(device: &Path, db_file: &Path) -> Option<PathBuf> {
    let below = db_file.strip_prefix(device.join(DATADIR)).ok()?;
    Some(device.join(SYNC_DATADIR).join(below))
}

fn link_to(link: &Path, db_file: &Path) -> std::io::Result<()> {
    if let Some(dir) = link.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::os::unix::fs::symlink(db_file, link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Remove the link and the directories that it leaves empty.
fn unlink(link: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(link) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    for dir in link.ancestors().skip(1) {
        if std::fs::remove_dir(dir).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_and_its_database_are_at_the_same_place() {
        let (device, db) = (Path::new("/srv/node/sda1"), Path::new("/srv/node/sda1/containers/7/abc/h/h.db"));
        let link = link_path(device, db).unwrap();
        assert_eq!(link, Path::new("/srv/node/sda1/sync_containers/7/abc/h/h.db"));
        assert_eq!(database_of(device, &link).as_deref(), Some(db));
        assert_eq!(database_of(device, db), None);
    }
}
