//! The filter `recon`: `GET /recon/...` tells the state of a machine and of its daemons, as `swift-recon` asks for it.
//!
//! The daemons leave their figures in `account.recon`, `container.recon`, `object.recon` (JSON, merged by
//! `common::recon`); the rest is read from /proc, from the devices and from the rings. Keys, shapes and the
//! texts of errors are Swift's. All of it runs in a disk pool of its own: a device that hangs in `statvfs` holds up
//! nothing but recon.
//!
//! Swift: with `mount_check` off its recon still reports every device that is no mount point as unmounted; so do we.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::clock::Clock;
use common::config::{ConfigError, Section};
use common::digest;
use serde_json::{Map, Value, json};

use crate::VERSION;
use crate::context::{Context, DEFAULT_RECON_CACHE_PATH, DEFAULT_SWIFT_DIR};
use crate::http::{App, BoxFuture, Request, Response, SharedApp};
use crate::logs::Logger;

pub use common::recon::{ACCOUNT_FILE, CONTAINER_FILE, DRIVE_FILE, OBJECT_FILE, RELINKER_FILE};

/// The name under which recon's blocking work is queued.
const POOL: &str = "recon";

/// Merges `entries` into the recon cache file `name` of `ctx`, in its disk pool. A failure is logged.
pub async fn dump_recon_cache(ctx: &Context, name: &str, entries: Vec<(String, Value)>) {
    let file = ctx.recon_cache_path.join(name);
    let logger = ctx.logger.clone();
    let dump = move || {
        let entries: Vec<(&str, Value)> = entries.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        if let Err(err) = common::recon::dump_recon(&file, &entries) {
            logger.error(format_args!("Exception dumping recon cache {}: {err}", file.display()));
        }
    };
    ctx.disk_pools.run(POOL, dump).await;
}

pub fn filter(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let swift_dir = PathBuf::from(section.str("swift_dir", DEFAULT_SWIFT_DIR));
    let object_rings = ctx.swift_conf.policies.iter().map(|policy| policy.object_ring_name.clone());
    let names = ["account".to_owned(), "container".to_owned()].into_iter().chain(object_rings);
    // Stands here for swift-recon-cron.
    section.get("recon_lock_path");
    let recon = Recon {
        devices: PathBuf::from(section.str("devices", "/srv/node")),
        cache: PathBuf::from(section.str("recon_cache_path", DEFAULT_RECON_CACHE_PATH)),
        rings: names.map(|name| swift_dir.join(format!("{name}.ring.gz"))).collect(),
        swift_conf: swift_dir.join("swift.conf"),
        proc: PathBuf::from("/proc"),
        clock: ctx.clock.clone(),
        logger: ctx.logger.clone(),
    };
    Ok(Arc::new(ReconFilter { app, recon: Arc::new(recon), ctx: ctx.clone() }))
}

struct ReconFilter {
    app: SharedApp,
    recon: Arc<Recon>,
    ctx: Context,
}

impl App for ReconFilter {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        if !req.path.starts_with("/recon/") {
            return self.app.call(req);
        }
        Box::pin(async move {
            let recon = Arc::clone(&self.recon);
            self.ctx.disk_pools.run(POOL, move || recon.answer(&req.path, &req.quoted_path())).await
        })
    }
}

struct Recon {
    devices: PathBuf,
    cache: PathBuf,
    rings: Vec<PathBuf>,
    swift_conf: PathBuf,
    proc: PathBuf,
    clock: Clock,
    logger: Logger,
}

/// What a `statvfs` or a mount check found.
enum Mounted {
    Yes,
    No,
    Error(String),
}

impl Recon {
    fn answer(&self, path: &str, quoted: &str) -> Response {
        let mut words = path.trim_start_matches('/').splitn(3, '/').skip(1);
        let check = words.next().unwrap_or_default();
        let kind = words.next().filter(|kind| !kind.is_empty());
        match self.content(check, kind) {
            Some(Ok(content)) => Response::new(200)
                .with_header("Content-Type", "application/json")
                .with_body(python_json(&content)),
            Some(Err(err)) => {
                self.logger.error(format_args!("Error retrieving recon data: {check}: {err}"));
                Response::text(500, "Internal server error.")
            }
            None => Response::text(404, format!("Invalid path: {quoted}")),
        }
    }

    /// None for a path that recon does not know.
    fn content(&self, check: &str, kind: Option<&str>) -> Option<std::io::Result<Value>> {
        const REPLICATION: [&str; 3] = ["replication_time", "replication_stats", "replication_last"];
        const OBJECT_REPLICATION: [&str; 5] = [
            "replication_time",
            "replication_stats",
            "replication_last",
            "object_replication_time",
            "object_replication_last",
        ];
        let cached = |keys: &[&str], file: &str| Some(Ok(self.cached(keys, file, false)));
        match (check, kind) {
            ("mem", _) => Some(self.mem()),
            ("load", _) => Some(self.load()),
            ("async", _) => cached(&["async_pending", "async_pending_last"], OBJECT_FILE),
            ("replication", Some("account")) => cached(&REPLICATION, ACCOUNT_FILE),
            ("replication", Some("container")) => cached(&REPLICATION, CONTAINER_FILE),
            ("replication", Some("object") | None) => cached(&OBJECT_REPLICATION, OBJECT_FILE),
            ("devices", _) => Some(Ok(self.device_names())),
            ("updater", Some("container")) => cached(&["container_updater_sweep"], CONTAINER_FILE),
            ("updater", Some("object")) => {
                cached(&["object_updater_sweep", "object_updater_stats", "object_updater_last"], OBJECT_FILE)
            }
            ("auditor", Some("account")) => cached(&auditor_keys("account"), ACCOUNT_FILE),
            ("auditor", Some("container")) => cached(&auditor_keys("container"), CONTAINER_FILE),
            ("auditor", Some("object")) => {
                cached(&["object_auditor_stats_ALL", "object_auditor_stats_ZBF"], OBJECT_FILE)
            }
            ("expirer", Some("object")) => {
                cached(&["object_expiration_pass", "expired_last_pass"], OBJECT_FILE)
            }
            ("mounted", _) => Some(self.mounts()),
            ("unmounted", _) => Some(self.unmounted()),
            ("diskusage", _) => Some(self.disk_usage()),
            ("ringmd5", _) => Some(Ok(self.ring_md5())),
            ("swiftconfmd5", _) => Some(Ok(self.swift_conf_md5())),
            ("quarantined", _) => Some(self.quarantined()),
            ("sockstat", _) => Some(self.sockstat()),
            ("version", _) => Some(Ok(json!({ "version": VERSION }))),
            ("driveaudit", _) => cached(&["drive_audit_errors"], DRIVE_FILE),
            ("time", _) => Some(Ok(json!(self.clock.unix_secs()))),
            ("sharding", _) => cached(&["sharding_stats", "sharding_time", "sharding_last"], CONTAINER_FILE),
            ("relinker", _) => Some(Ok(self.cached(&["devices", "workers"], RELINKER_FILE, true))),
            ("reconstruction", Some("object")) => {
                cached(&["object_reconstruction_last", "object_reconstruction_time"], OBJECT_FILE)
            }
            _ => None,
        }
    }

    /// Values of a recon cache file; null for what is not there.
    fn cached(&self, keys: &[&str], file: &str, missing_is_normal: bool) -> Value {
        let path = self.cache.join(file);
        let cache: Map<String, Value> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|err| {
                self.logger.error(format_args!("Error parsing recon cache file {}: {err}", path.display()));
                Map::new()
            }),
            Err(err) if err.kind() == ErrorKind::NotFound && missing_is_normal => Map::new(),
            Err(err) => {
                self.logger.error(format_args!("Error reading recon cache file {}: {err}", path.display()));
                Map::new()
            }
        };
        let value = |key: &str| cache.get(key).cloned().unwrap_or(Value::Null);
        Value::Object(keys.iter().map(|key| ((*key).to_owned(), value(key))).collect())
    }

    fn mem(&self) -> std::io::Result<Value> {
        let text = std::fs::read_to_string(self.proc.join("meminfo"))?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(Value::Object(pairs.map(|(name, value)| (name.to_owned(), value.trim().into())).collect()))
    }

    fn load(&self) -> std::io::Result<Value> {
        let text = std::fs::read_to_string(self.proc.join("loadavg"))?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let [one, five, fifteen, tasks, processes] = words[..] else {
            return Err(std::io::Error::new(ErrorKind::InvalidData, "loadavg has another form"));
        };
        let number = |word: &str| word.parse::<f64>().unwrap_or_default();
        let processes: u64 = processes.parse().unwrap_or_default();
        Ok(json!({
            "1m": number(one), "5m": number(five), "15m": number(fifteen), "tasks": tasks, "processes": processes,
        }))
    }

    fn mounts(&self) -> std::io::Result<Value> {
        let text = std::fs::read_to_string(self.proc.join("mounts"))?;
        let mount = |line: &str| {
            let mut words = line.split_whitespace();
            Some(json!({ "device": words.next()?, "path": words.next()? }))
        };
        Ok(text.lines().filter_map(mount).collect())
    }

    /// Swift: the key is the folder of the devices.
    fn device_names(&self) -> Value {
        let names = names_in(&self.devices).map(Value::from).unwrap_or_else(|err| {
            self.logger.error(format_args!("Error listing devices: {err}"));
            Value::Null
        });
        json!({ self.devices.display().to_string(): names })
    }

    fn unmounted(&self) -> std::io::Result<Value> {
        let mut list = Vec::new();
        for (device, path) in self.device_dirs()? {
            match mounted(&path) {
                Mounted::Yes => {}
                Mounted::No => list.push(json!({ "device": device, "mounted": false })),
                Mounted::Error(err) => list.push(json!({ "device": device, "mounted": err })),
            }
        }
        Ok(Value::Array(list))
    }

    fn disk_usage(&self) -> std::io::Result<Value> {
        let unknown = |device: String, mounted: Value| json!({ "device": device, "mounted": mounted, "size": "", "used": "", "avail": "" });
        let mut list = Vec::new();
        for (device, path) in self.device_dirs()? {
            list.push(match mounted(&path) {
                Mounted::Yes => {
                    let disk = rustix::fs::statvfs(&path)?;
                    let (size, used) =
                        (disk.f_bsize * disk.f_blocks, disk.f_bsize * (disk.f_blocks - disk.f_bavail));
                    let avail = disk.f_bsize * disk.f_bavail;
                    json!({ "device": device, "mounted": true, "size": size, "used": used, "avail": avail })
                }
                Mounted::No => unknown(device, false.into()),
                Mounted::Error(err) => unknown(device, err.into()),
            });
        }
        Ok(Value::Array(list))
    }

    /// The folders which may be devices, by name.
    fn device_dirs(&self) -> std::io::Result<Vec<(String, PathBuf)>> {
        let all = names_in(&self.devices)?.into_iter().map(|name| {
            let path = self.devices.join(&name);
            (name, path)
        });
        Ok(all.filter(|(_, path)| path.is_dir()).collect())
    }

    fn ring_md5(&self) -> Value {
        let there = self.rings.iter().filter(|ring| ring.exists());
        Value::Object(there.map(|ring| (ring.display().to_string(), self.file_md5(ring))).collect())
    }

    fn swift_conf_md5(&self) -> Value {
        json!({ self.swift_conf.display().to_string(): self.file_md5(&self.swift_conf) })
    }

    fn file_md5(&self, path: &Path) -> Value {
        match std::fs::read(path) {
            Ok(bytes) => digest::hex(&digest::md5(&bytes)).into(),
            Err(err) => {
                if err.kind() != ErrorKind::NotFound {
                    self.logger.error(format_args!("Error reading {}: {err}", path.display()));
                }
                Value::Null
            }
        }
    }

    /// Swift: counts links of the quarantine folders, each of whose entries is a folder.
    fn quarantined(&self) -> std::io::Result<Value> {
        let mut counts: BTreeMap<&str, u64> = [("objects", 0), ("containers", 0), ("accounts", 0)].into();
        let mut policies: Map<String, Value> = Map::new();
        for device in names_in(&self.devices)? {
            let quarantine = self.devices.join(device).join("quarantined");
            let Ok(kinds) = names_in(&quarantine) else { continue };
            for kind in kinds {
                let links = std::fs::symlink_metadata(quarantine.join(&kind))?.nlink().saturating_sub(2);
                if links == 0 {
                    continue;
                }
                if let Some(policy) = kind.strip_prefix("objects") {
                    let policy = policy.strip_prefix('-').unwrap_or("0").to_owned();
                    let count = policies.entry(policy).or_insert_with(|| json!({ "objects": 0 }));
                    count["objects"] = (count["objects"].as_u64().unwrap_or_default() + links).into();
                    *counts.entry("objects").or_default() += links;
                } else if let Some(count) = counts.get_mut(kind.as_str()) {
                    *count += links;
                }
            }
        }
        Ok(json!({
            "objects": counts["objects"], "containers": counts["containers"], "accounts": counts["accounts"],
            "policies": policies,
        }))
    }

    fn sockstat(&self) -> std::io::Result<Value> {
        let mut stat = Map::new();
        let page = rustix::param::page_size() as u64;
        let mut put = |name: &str, line: &str, word: usize, factor: u64| {
            let value =
                line.split_whitespace().nth(word).and_then(|w| w.parse::<u64>().ok()).unwrap_or_default();
            stat.insert(name.to_owned(), (value * factor).into());
        };
        let text = text_if_there(&self.proc.join("net/sockstat"))?;
        for line in text.lines().filter(|line| line.starts_with("TCP: inuse")) {
            put("tcp_in_use", line, 2, 1);
            put("orphan", line, 4, 1);
            put("time_wait", line, 6, 1);
            put("tcp_mem_allocated_bytes", line, 10, page);
        }
        let text = text_if_there(&self.proc.join("net/sockstat6"))?;
        for line in text.lines().filter(|line| line.starts_with("TCP6: inuse")) {
            put("tcp6_in_use", line, 2, 1);
        }
        Ok(Value::Object(stat))
    }
}

fn auditor_keys(kind: &str) -> [&'static str; 4] {
    match kind {
        "account" => [
            "account_audits_passed",
            "account_auditor_pass_completed",
            "account_audits_since",
            "account_audits_failed",
        ],
        _ => [
            "container_audits_passed",
            "container_auditor_pass_completed",
            "container_audits_since",
            "container_audits_failed",
        ],
    }
}

fn text_if_there(path: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

fn names_in(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether `path` is the root of a filesystem, as Python's `ismount` decides.
fn mounted(path: &Path) -> Mounted {
    let look = || -> std::io::Result<bool> {
        let (own, parent) = (std::fs::symlink_metadata(path)?, std::fs::symlink_metadata(path.join(".."))?);
        Ok(!own.file_type().is_symlink() && (own.dev() != parent.dev() || own.ino() == parent.ino()))
    };
    match look() {
        Ok(true) => Mounted::Yes,
        // An operator marks a folder on purpose: swift.common.utils.ismount_raw.
        Ok(false) if path.join(".ismount").is_file() => Mounted::Yes,
        Ok(false) => Mounted::No,
        Err(err) if err.kind() == ErrorKind::NotFound => Mounted::No,
        Err(err) => Mounted::Error(err.to_string()),
    }
}

/// JSON with the spaces of Python's `json.dumps`, so that a body is byte for byte Swift's.
fn python_json(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let members = map.iter().map(|(k, v)| format!("{}: {}", Value::from(k.as_str()), python_json(v)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(python_json).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Method, app_fn};
    use std::fs;

    struct Machine {
        dir: tempfile::TempDir,
        app: SharedApp,
    }

    fn machine() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["devices/sda1", "devices/sdb1", "cache", "swift"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        fs::write(dir.path().join("devices/sdb1/.ismount"), "").unwrap();
        let text = |sub: &str| dir.path().join(sub).display().to_string();
        let options =
            [("devices", text("devices")), ("recon_cache_path", text("cache")), ("swift_dir", text("swift"))];
        let section = Section::from_pairs("filter:recon", options.iter().map(|(k, v)| (*k, v.as_str())));
        let ctx = Context::builder("object-server").logger(Logger::memory().0).build();
        let app = filter(&section, &ctx, app_fn(|_| async { Response::text(200, "app") })).unwrap();
        Machine { dir, app }
    }

    impl Machine {
        async fn get(&self, path: &str) -> (u16, String) {
            let response = self.app.call(Request::new(Method::Get, path)).await;
            (response.status.0, String::from_utf8(response.body.as_bytes().unwrap().to_vec()).unwrap())
        }

        async fn json(&self, path: &str) -> Value {
            let (status, body) = self.get(path).await;
            assert_eq!(status, 200, "{path}: {body}");
            serde_json::from_str(&body).unwrap()
        }
    }

    #[tokio::test]
    async fn other_paths_reach_the_app_and_unknown_checks_are_404() {
        let machine = machine();
        assert_eq!(machine.get("/sda1/1/a").await, (200, "app".to_owned()));
        assert_eq!(machine.get("/recon/nonsense").await, (404, "Invalid path: /recon/nonsense".to_owned()));
        assert_eq!(machine.get("/recon/updater/account").await.0, 404);
        assert_eq!(machine.get("/recon/").await.0, 404);
    }

    #[tokio::test]
    async fn what_daemons_left_in_the_cache_is_told() {
        let machine = machine();
        fs::write(machine.dir.path().join("cache/object.recon"), r#"{"replication_time": 0.5, "x": 1}"#)
            .unwrap();
        let expected = "{\"replication_time\": 0.5, \"replication_stats\": null, \"replication_last\": null, \
                        \"object_replication_time\": null, \"object_replication_last\": null}";
        for path in ["/recon/replication/object", "/recon/replication"] {
            assert_eq!(machine.get(path).await, (200, expected.to_owned()));
        }
        let nothing = json!({"async_pending": null, "async_pending_last": null});
        assert_eq!(machine.json("/recon/async").await, nothing);
        fs::write(machine.dir.path().join("cache/container.recon"), "junk").unwrap();
        assert_eq!(machine.json("/recon/updater/container").await, json!({"container_updater_sweep": null}));
        assert_eq!(machine.json("/recon/relinker").await, json!({"devices": null, "workers": null}));
    }

    #[tokio::test]
    async fn devices_are_told_with_their_mounts() {
        let machine = machine();
        let devices = machine.dir.path().join("devices").display().to_string();
        assert_eq!(machine.json("/recon/devices").await, json!({ devices: ["sda1", "sdb1"] }));
        assert_eq!(machine.json("/recon/unmounted").await, json!([{"device": "sda1", "mounted": false}]));
        let usage = machine.json("/recon/diskusage").await;
        let unknown = json!({"device": "sda1", "mounted": false, "size": "", "used": "", "avail": ""});
        assert_eq!(usage[0], unknown);
        assert_eq!((&usage[1]["device"], &usage[1]["mounted"]), (&json!("sdb1"), &json!(true)));
        assert!(usage[1]["size"].as_u64().unwrap() >= usage[1]["used"].as_u64().unwrap());
    }

    #[tokio::test]
    async fn quarantined_objects_are_counted_by_policy() {
        let machine = machine();
        for sub in [
            "sda1/quarantined/objects/h1",
            "sda1/quarantined/objects-1/h2",
            "sdb1/quarantined/objects-1/h3",
            "sdb1/quarantined/containers/c1",
        ] {
            fs::create_dir_all(machine.dir.path().join("devices").join(sub)).unwrap();
        }
        assert_eq!(
            machine.json("/recon/quarantined").await,
            json!({"objects": 3, "containers": 1, "accounts": 0,
                   "policies": {"0": {"objects": 1}, "1": {"objects": 2}}})
        );
    }

    #[tokio::test]
    async fn rings_and_swift_conf_are_told_by_their_md5() {
        let machine = machine();
        let swift = machine.dir.path().join("swift");
        fs::write(swift.join("account.ring.gz"), "ring").unwrap();
        let ring = swift.join("account.ring.gz").display().to_string();
        assert_eq!(digest::hex(&digest::md5(b"ring")), machine.json("/recon/ringmd5").await[&ring]);
        let conf = swift.join("swift.conf").display().to_string();
        assert_eq!(machine.json("/recon/swiftconfmd5").await, json!({ conf: null }));
    }

    #[tokio::test]
    async fn the_machine_tells_of_itself() {
        let machine = machine();
        assert_eq!(machine.get("/recon/version").await.1, "{\"version\": \"2.38.3\"}");
        assert!(machine.json("/recon/mem").await["MemTotal"].as_str().unwrap().ends_with("kB"));
        assert!(machine.json("/recon/load").await["1m"].is_f64());
        assert!(machine.json("/recon/mounted").await[0]["path"].is_string());
        assert!(machine.json("/recon/sockstat").await["tcp_in_use"].is_u64());
        assert!(machine.json("/recon/time").await.as_f64().unwrap() > 1.6e9);
    }
}
