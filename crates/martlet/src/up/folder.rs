//! The data folder of `up`.
//!
//! ```text
//! martlet-up.json              what this folder is: {"martlet-up": 1, "settings": {...}}
//! lock, pid, control.sock      of the process that runs it
//! martlet.log                  the lines of all services; the run before is martlet.log.old
//! etc/swift.conf               and the rings, proxy-server.conf, object-expirer.conf and container-reconciler.conf
//! etc/container-sync-realms.conf, internal-client.conf
//! etc/node1/object-server.conf, container-server.conf, account-server.conf
//! node1/n1d1, node1/n1d2       the devices of node 1
//! cache/node1                  what its daemons leave for recon; cache/proxy is for those of the whole cluster
//! ```
//!
//! A new folder gets its marker first, and `etc` appears in one rename when it is complete: a kill at any moment
//! leaves a folder that the next start understands. A folder with anything in it but without the marker is not touched.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ring::{Device, FormatVersion, RingBuilder};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::conf::{self, Places};
use super::settings::{Settings, Wished};
use crate::programs::PROGRAMS;

const MARKER: &str = "martlet-up.json";
/// Of the layout above; another one is refused.
const VERSION: u64 = 1;
/// In an etc that is being written.
const NEW_ETC: &str = ".etc.new";
const REALMS: &str = "container-sync-realms.conf";

/// A data folder that is ours until the value is dropped.
pub struct Folder {
    pub path: PathBuf,
    pub settings: Settings,
    _lock: File,
}

impl Folder {
    /// Opens the folder, or makes a new cluster there.
    pub fn open(path: &Path, wished: &Wished) -> Result<Folder> {
        let existing = read_marker(path)?;
        let settings = match existing {
            Some(there) => wished.for_existing(there),
            None => wished.for_new(),
        };
        let settings = settings.map_err(anyhow::Error::msg)?;
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        let path = fs::canonicalize(path).with_context(|| format!("cannot open {}", path.display()))?;
        let lock = lock(&path)?;
        check_ports(&settings)?;
        let folder = Folder { path, settings, _lock: lock };
        folder.prepare()?;
        Ok(folder)
    }

    pub fn etc(&self) -> PathBuf {
        self.path.join("etc")
    }

    pub fn proxy_conf(&self) -> PathBuf {
        self.etc().join("proxy-server.conf")
    }

    /// The file of a daemon that works on the whole cluster.
    pub fn daemon_conf(&self, name: &str) -> PathBuf {
        self.etc().join(format!("{name}.conf"))
    }

    /// The file of `object-server` and its like on a node.
    pub fn node_conf(&self, node: u16, server: &str) -> PathBuf {
        self.etc().join(format!("node{node}/{server}.conf"))
    }

    fn prepare(&self) -> Result<()> {
        let marker = json!({ "martlet-up": VERSION, "settings": self.settings.to_json() });
        let written = format!("{marker}\n");
        let path = self.path.join(MARKER);
        if fs::read_to_string(&path).ok().as_deref() != Some(&written) {
            // Before anything else: what follows is then known to be ours.
            common::fs::write_file_durable(&path, written.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        for node in 1..=self.settings.nodes {
            let cache = self.path.join(format!("cache/node{node}"));
            let devices = (1..=self.settings.devices)
                .map(|device| self.path.join(format!("node{node}")).join(Settings::device(node, device)));
            for dir in devices.chain([cache]) {
                fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            }
        }
        let cache = self.path.join("cache/proxy");
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        match self.etc().exists() {
            true => self.update_proxy_address().and_then(|()| self.add_daemon_confs()),
            false => self.write_etc().with_context(|| format!("cannot write {}", self.etc().display())),
        }
    }

    fn write_etc(&self) -> Result<()> {
        let new = self.path.join(NEW_ETC);
        if new.exists() {
            // Of a run that was killed while it wrote; nothing has used it yet.
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir_all(&new)?;
        let user = user_name();
        let places = Places { settings: &self.settings, data: &self.path, user: &user };
        write(&new, "swift.conf", &conf::swift_conf(&self.settings, &random_hex()?, &random_hex()?))?;
        write(&new, "proxy-server.conf", &places.proxy_server())?;
        for name in cluster_daemons() {
            write(&new, &format!("{name}.conf"), &places.cluster_daemon(name))?;
        }
        write(&new, "internal-client.conf", &places.internal_client())?;
        write(&new, REALMS, &places.container_sync_realms(&random_hex()?))?;
        for node in 1..=self.settings.nodes {
            let dir = new.join(format!("node{node}"));
            fs::create_dir(&dir)?;
            write(&dir, "object-server.conf", &places.object_server(node))?;
            write(&dir, "container-server.conf", &places.container_server(node))?;
            write(&dir, "account-server.conf", &places.account_server(node))?;
            common::fs::fsync_dir(&dir)?;
        }
        self.write_rings(&new)?;
        common::fs::fsync_dir(&new)?;
        // Before: no etc, and the next start writes one. After: all of it.
        common::fs::rename_durable(&new, &self.etc())?;
        Ok(())
    }

    fn write_rings(&self, dir: &Path) -> Result<()> {
        let replicas = self.settings.replicas;
        let mut rings = vec![
            ("account".to_owned(), Settings::account_port as fn(&Settings, u16) -> u16, replicas),
            ("container".to_owned(), Settings::container_port, replicas),
        ];
        for policy in conf::policies(&self.settings) {
            rings.push((policy.ring_name(), Settings::object_port, policy.replicas));
        }
        for (seed, (name, port, replicas)) in rings.into_iter().enumerate() {
            let mut builder = RingBuilder::new(self.settings.part_power, replicas.into(), 1)?;
            for node in 1..=self.settings.nodes {
                for device in 1..=self.settings.devices {
                    builder.add_dev(self.device(node, device, port(&self.settings, node)))?;
                }
            }
            builder.rebalance(seed as u64 + 1)?;
            builder.save_ring(&dir.join(format!("{name}.ring.gz")), FormatVersion::V1)?;
        }
        Ok(())
    }

    fn device(&self, node: u16, device: u16, port: u16) -> Device {
        let ip = "127.0.0.1".to_owned();
        Device {
            id: u32::from((node - 1) * self.settings.devices + device - 1),
            region: 1,
            zone: node.into(),
            ip: ip.clone(),
            port,
            device: Settings::device(node, device),
            weight: 100.0,
            replication_ip: ip,
            replication_port: port,
            meta: String::new(),
            extra: Default::default(),
        }
    }

    /// A folder from before there was one of the daemons gets its file.
    fn add_daemon_confs(&self) -> Result<()> {
        let user = user_name();
        let places = Places { settings: &self.settings, data: &self.path, user: &user };
        for name in cluster_daemons() {
            let path = self.daemon_conf(name);
            if !path.exists() {
                common::fs::write_file_durable(&path, places.cluster_daemon(name).as_bytes())
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn update_proxy_address(&self) -> Result<()> {
        self.rewrite(&self.proxy_conf(), conf::with_address)?;
        let realms = self.etc().join(REALMS);
        // A folder from before there was container-sync has none.
        if realms.exists() { self.rewrite(&realms, conf::with_endpoint) } else { Ok(()) }
    }

    /// Changes a file to the proxy's address of now.
    fn rewrite(&self, path: &Path, change: fn(&str, &str, u16) -> String) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let wanted = change(&text, &self.settings.ip, self.settings.port);
        if wanted != text {
            common::fs::write_file_durable(path, wanted.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// The settings of the cluster in a folder; None for a folder that is empty or not there.
pub fn read_marker(path: &Path) -> Result<Option<Settings>> {
    let marker = path.join(MARKER);
    let text = match fs::read_to_string(&marker) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            ensure!(
                is_empty(path)?,
                "{} holds files but no {MARKER}: it is no folder of `martlet up`; choose another --data",
                path.display()
            );
            return Ok(None);
        }
        Err(err) => return Err(err).with_context(|| format!("cannot read {}", marker.display())),
    };
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not readable", marker.display()))?;
    match value["martlet-up"].as_u64() {
        Some(VERSION) => {}
        Some(other) => bail!(
            "{} is of version {other}; this martlet understands version {VERSION}: use the martlet that wrote it",
            marker.display()
        ),
        None => bail!("{} was not written by `martlet up`; choose another --data", marker.display()),
    }
    let settings = Settings::from_json(&value["settings"]);
    settings.map(Some).with_context(|| format!("{} has no readable settings", marker.display()))
}

/// Whether nothing is there but what a start that was refused has left.
fn is_empty(path: &Path) -> Result<bool> {
    let is_ours = |name: std::ffi::OsString| name == "lock" || name == "pid";
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.all(|entry| entry.is_ok_and(|entry| is_ours(entry.file_name())))),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(err) => Err(err).with_context(|| format!("cannot open {}", path.display())),
    }
}

/// One process at a time.
fn lock(path: &Path) -> Result<File> {
    let file = path.join("lock");
    let lock = File::create(&file).with_context(|| format!("cannot write in {}", path.display()))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        let pid = fs::read_to_string(path.join("pid")).unwrap_or_default();
        bail!("a cluster already runs on {} (pid {})", path.display(), pid.trim());
    }
    let pid = format!("{}\n", std::process::id());
    fs::write(path.join("pid"), pid).with_context(|| format!("cannot write in {}", path.display()))?;
    Ok(lock)
}

/// A port in use is told before anything is written or started.
fn check_ports(settings: &Settings) -> Result<()> {
    let free = |ip: &str, port: u16| {
        // As the servers bind: a port that is only in TIME_WAIT is free.
        TcpListener::bind((ip, port)).map(drop)
    };
    if let Err(err) = free(&settings.ip, settings.port) {
        bail!("cannot listen on {}:{}: {err}; choose another with --port", settings.ip, settings.port);
    }
    for port in settings.node_ports() {
        if let Err(err) = free("127.0.0.1", port) {
            bail!(
                "cannot listen on 127.0.0.1:{port}, a port of a storage node: {err}; stop what listens there, or for a \
                 new cluster choose other ports with --base-port"
            );
        }
    }
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text)?;
    common::fs::fsync(File::open(&path)?)?;
    Ok(())
}

fn random_hex() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(common::digest::hex(&bytes))
}

/// Who runs this, by /etc/passwd; the bare number where there is no name.
fn user_name() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2) == Some(&uid.as_str())).then(|| fields[0].to_owned())
    });
    name.unwrap_or(uid)
}

/// The names of the daemons of which one is enough.
fn cluster_daemons() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().filter(|program| program.build_on_cluster().is_some()).map(|program| program.name)
}

#[cfg(test)]
mod tests {
    use probe::ports::{base_port, free_ports};

    use super::*;

    /// Ports that are free now, for a cluster that is written but not started.
    fn wished() -> Wished {
        let port = free_ports(1).unwrap()[0];
        let base = base_port().unwrap();
        Wished { port: Some(port), base_port: Some(base), ..Wished::default() }
    }

    #[test]
    fn a_new_folder_is_complete_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let folder = Folder::open(&data, &wished()).unwrap();
        let settings = folder.settings.clone();
        let swift_conf = fs::read_to_string(folder.etc().join("swift.conf")).unwrap();
        for ring in ["account", "container", "object", "object-1"] {
            let ring = ring::Ring::load(&folder.etc().join(format!("{ring}.ring.gz"))).unwrap();
            assert_eq!((ring.replica_count(), ring.part_count()), (3, 64));
            let zones: std::collections::HashSet<_> = ring.get_part_nodes(5).iter().map(|n| n.zone).collect();
            assert_eq!(zones.len(), 3);
        }
        assert!(folder.path.join("node4/n4d2").is_dir());
        let err = Folder::open(&data, &Wished::default()).err().unwrap().to_string();
        assert!(err.contains("already runs") && err.contains(&std::process::id().to_string()), "{err}");
        drop(folder);
        let again = Folder::open(&data, &Wished::default()).unwrap();
        assert_eq!(again.settings, settings);
        assert_eq!(fs::read_to_string(again.etc().join("swift.conf")).unwrap(), swift_conf);
    }

    #[test]
    fn a_folder_of_something_else_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let err = Folder::open(dir.path(), &wished()).err().unwrap().to_string();
        assert!(err.contains("no folder of `martlet up`"), "{err}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MARKER), "{\"martlet-up\": 2}").unwrap();
        let err = Folder::open(dir.path(), &wished()).err().unwrap().to_string();
        assert!(err.contains("is of version 2; this martlet understands version 1"), "{err}");
    }

    #[test]
    fn a_start_that_was_killed_is_finished_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let wished = wished();
        let folder = Folder::open(&data, &wished).unwrap();
        let daemons = ["object-expirer", "container-reconciler"].map(|name| folder.daemon_conf(name));
        daemons.iter().for_each(|conf| fs::remove_file(conf).unwrap());
        drop(folder);
        let folder = Folder::open(&data, &wished).unwrap();
        assert!(daemons.iter().all(|conf| conf.exists()));
        fs::create_dir(folder.path.join(NEW_ETC)).unwrap();
        fs::remove_dir_all(folder.etc()).unwrap();
        drop(folder);
        let folder = Folder::open(&data, &wished).unwrap();
        assert!(folder.etc().join("object-1.ring.gz").exists() && !folder.path.join(NEW_ETC).exists());
    }

    #[test]
    fn a_port_in_use_is_told_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let wished = Wished { port: Some(port), ..wished() };
        let err = Folder::open(&dir.path().join("data"), &wished).err().unwrap().to_string();
        assert!(err.contains(&format!("127.0.0.1:{port}")) && err.contains("--port"), "{err}");
        assert!(!dir.path().join("data").join(MARKER).exists());
    }
}
