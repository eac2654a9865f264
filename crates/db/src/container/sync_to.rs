//! Where a container says it shall be synced to (X-Container-Sync-To), and the list of containers that say so.
//!
//! The target is checked against `container-sync-realms.conf` (`//realm/cluster/account/container`) or `allowed_sync_hosts` (a URL).
//! A device lists its synced containers as symbolic links `DEVICE/sync_containers/.../HASH.db`, which the sync daemon walks. The
//! daemon itself is not here.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use common::config::{Conf, Section};
use common::headers::X_CONTAINER_SYNC_TO;
use service::http::Headers;

use super::broker::{ContainerBroker, DATADIR};
use crate::broker::{BrokerError, Result};
use crate::server::{Answer, html_answer};

const SYNC_DATADIR: &str = "sync_containers";

pub struct SyncTo {
    allowed_hosts: Vec<String>,
    realms_conf: PathBuf,
}

impl SyncTo {
    pub fn from_section(section: &Section) -> Self {
        let swift_dir = section.str("swift_dir", "/etc/swift");
        Self {
            allowed_hosts: section.list("allowed_sync_hosts", "127.0.0.1"),
            realms_conf: Path::new(&swift_dir).join("container-sync-realms.conf"),
        }
    }

    /// 400 if a request names a target that is not allowed.
    pub fn validate(&self, headers: &Headers) -> Answer<()> {
        let Some(value) = headers.get(X_CONTAINER_SYNC_TO) else { return Ok(()) };
        let value = String::from_utf8_lossy(value);
        let target = value.trim_end_matches('/');
        let checked = if target.is_empty() {
            Ok(())
        } else if let Some(in_realm) = target.strip_prefix("//") {
            self.validate_realm(in_realm, &value)
        } else {
            self.validate_url(target)
        };
        checked.map_err(|error| html_answer(400, error))
    }

    fn validate_realm(&self, target: &str, value: &str) -> std::result::Result<(), String> {
        let [realm, cluster, _account, _container] = target.split('/').collect::<Vec<_>>()[..] else {
            return Err(format!("Invalid X-Container-Sync-To format '{value}'"));
        };
        // Read when it is needed: a container gets its target once.
        let realms = Conf::load(&self.realms_conf).ok();
        let section = realms.as_ref().and_then(|conf| {
            conf.section_names()
                .find(|name| name.eq_ignore_ascii_case(realm))
                .and_then(|name| conf.section(name))
        });
        let Some(section) = section.filter(|section| section.get("key").is_some_and(|key| !key.is_empty()))
        else {
            return Err(format!("No realm key for '{realm}'"));
        };
        match section.get(&format!("cluster_{}", cluster.to_lowercase())) {
            Some(endpoint) if !endpoint.is_empty() => Ok(()),
            _ => Err(format!("No cluster endpoint for '{realm}' '{cluster}'")),
        }
    }

    fn validate_url(&self, target: &str) -> std::result::Result<(), String> {
        let (scheme, rest) = target.split_once("://").unwrap_or(("", target));
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(format!(
                "Invalid scheme '{}' in X-Container-Sync-To, must be \"//\", \"http\", or \"https\".",
                scheme.to_lowercase()
            ));
        }
        let path_at = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(path_at.min(rest.find(['?', '#']).unwrap_or(rest.len())));
        if !path.starts_with('/') {
            return Err("Path required in X-Container-Sync-To".to_owned());
        }
        if path.contains(['?', '#', ';']) {
            return Err("Params, queries, and fragments not allowed in X-Container-Sync-To".to_owned());
        }
        let host = host_name(host);
        if !self.allowed_hosts.contains(&host) {
            return Err(format!("Invalid host '{host}' in X-Container-Sync-To"));
        }
        Ok(())
    }
}

/// Keep the list of synced containers true after the container's metadata changed.
pub fn update_store(broker: &mut ContainerBroker) -> Result<()> {
    let metadata = broker.db.metadata()?;
    let (to, key) = ("X-Container-Sync-To", "X-Container-Sync-Key");
    if metadata.get(to).is_none() && metadata.get(key).is_none() {
        return Ok(()); // never was synced
    }
    let wanted = metadata.value(to).is_some() && metadata.value(key).is_some();
    let db_file = broker.db.db_file.clone();
    let Some(link) = link_path(broker.db.device_path(), &db_file) else { return Ok(()) };
    let done = if wanted && !broker.is_deleted()? { add(&link, &db_file) } else { remove(&link) };
    done.map_err(|error| BrokerError::Io(link, error))
}

/// Strike the container off the list of synced ones: its database is about to be removed.
pub fn remove_from_store(broker: &ContainerBroker) -> Result<()> {
    let Some(link) = link_path(broker.db.device_path(), &broker.db.db_file) else { return Ok(()) };
    remove(&link).map_err(|error| BrokerError::Io(link, error))
}

/// The host of `user@host:port`, in lower case.
fn host_name(authority: &str) -> String {
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let host = match host.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or(address),
        None => host.split(':').next().unwrap_or(host),
    };
    host.to_lowercase()
}

fn link_path(device: &Path, db_file: &Path) -> Option<PathBuf> {
    let below = db_file.strip_prefix(device.join(DATADIR)).ok()?;
    Some(device.join(SYNC_DATADIR).join(below))
}

fn add(link: &Path, db_file: &Path) -> std::io::Result<()> {
    if let Some(dir) = link.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::os::unix::fs::symlink(db_file, link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Remove the link and the directories that it leaves empty.
fn remove(link: &Path) -> std::io::Result<()> {
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

    fn check(value: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let realms = "[US]\nkey = k\ncluster_dfw1 = http://dfw1/v1/\n[NOKEY]\ncluster_a = http://a/v1/\n";
        std::fs::write(dir.path().join("container-sync-realms.conf"), realms).unwrap();
        let section = Section::from_pairs(
            "app:container-server",
            [("allowed_sync_hosts", "127.0.0.1, Example.com"), ("swift_dir", dir.path().to_str().unwrap())],
        );
        let mut headers = Headers::new();
        headers.insert(X_CONTAINER_SYNC_TO, value);
        let refused = SyncTo::from_section(&section).validate(&headers).err()?;
        Some(String::from_utf8(refused.body.as_bytes().unwrap().to_vec()).unwrap())
    }

    /// The messages are those of `validate_sync_to` of 2.38.3 for the same values.
    #[test]
    fn targets_are_checked_as_swift_checks_them() {
        for allowed in ["", "/", "http://127.0.0.1:8080/v1/a/c", "HTTPS://u@127.0.0.1/x/", "//us/DFW1/a/c"] {
            assert_eq!(check(allowed), None, "{allowed}");
        }
        for (refused, message) in [
            ("//us/dfw1/a", "Invalid X-Container-Sync-To format '//us/dfw1/a'"),
            ("//no/dfw1/a/c", "No realm key for 'no'"),
            ("//nokey/a/a/c", "No realm key for 'nokey'"),
            ("//us/ord/a/c", "No cluster endpoint for 'us' 'ord'"),
            (
                "ftp://127.0.0.1/a",
                "Invalid scheme 'ftp' in X-Container-Sync-To, must be \"//\", \"http\", or \"https\".",
            ),
            ("http://127.0.0.1", "Path required in X-Container-Sync-To"),
            ("http://127.0.0.1/a?b", "Params, queries, and fragments not allowed in X-Container-Sync-To"),
            ("http://other/a", "Invalid host 'other' in X-Container-Sync-To"),
        ] {
            assert_eq!(check(refused).as_deref(), Some(message), "{refused}");
        }
    }
}
