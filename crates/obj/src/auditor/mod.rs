//! The object-auditor: reads every object of this node, slowly, and quarantines what has gone bad.
//!
//! Two kinds of pass run side by side: `ALL` reads all data and compares its MD5 with the ETag, `ZBF` only compares
//! sizes, much faster, and finds soon what a crash has left empty. Passes of `ZBF` follow each other while one of
//! `ALL` runs. With `concurrency` above 1 each pass of `ALL` is for one device, and so many run at a time.
//!
//! On the way it removes temporary files that rsync has left, marks suffixes with old tombstones to be hashed (which removes these),
//! and shows sound objects to the `watchers`; of these there is one, `dark_data`.
//!
//! Of an EC policy the durable fragment is audited, of several in one place one: its ETag, the headers of its fragments, and that
//! it tells what its object is.

mod dark_data;
mod pass;
mod tally;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::config::{Conf, ConfigError, Section, parse_int};
use futures_util::StreamExt;
use service::http::BoxFuture;
use service::{Context, Daemon, Mode, Progress, recon};
use tokio::sync::Notify;

use crate::diskfile::{AuditorType, DiskFileConf, DiskFileManager, DiskFileRouter};
use dark_data::{DarkData, is_dark_data};
use pass::Pass;

const NAME: &str = "object-auditor";
/// Seconds that an rsync may take by default; after that the replicator ends it.
const RSYNC_TIMEOUT: u64 = 900;
/// Seconds that the sender of a temporary file may need beyond that to notice.
const RSYNC_GRACE: u64 = 900;
/// The age of a temporary file that is stale, where nothing is known of the replicator.
const RSYNC_TEMPFILE_AGE: u64 = 86_400;

/// Makes the daemon from the file of an object server.
pub fn build(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    Ok(Arc::new(ObjectAuditor(Arc::new(Auditor::new(conf, ctx)?))))
}

struct ObjectAuditor(Arc<Auditor>);

impl Daemon for ObjectAuditor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        self.run_pass(Mode::Once)
    }

    fn run_pass(&self, mode: Mode) -> BoxFuture<'_, ()> {
        Box::pin(self.0.clone().audit(mode))
    }

    fn interval(&self) -> Duration {
        self.0.interval
    }

    fn delays_first_pass(&self) -> bool {
        false
    }

    fn sleeps_whole_interval(&self) -> bool {
        true
    }
}

struct Auditor {
    ctx: Context,
    devices: PathBuf,
    /// Of the policies that are audited.
    managers: Vec<Arc<DiskFileManager>>,
    interval: Duration,
    /// Passes of `ALL` at a time.
    concurrency: usize,
    files_per_second: f64,
    bytes_per_second: f64,
    /// 0: no passes of `ZBF`.
    zero_byte_files_per_second: f64,
    /// Seconds.
    log_time: f64,
    object_sizes: Vec<i64>,
    rsync_tempfile_timeout: f64,
    watchers: Vec<DarkData>,
}

impl Auditor {
    fn new(conf: &Conf, ctx: &Context) -> Result<Self, ConfigError> {
        let section = conf.section_or_default(NAME);
        let replicator = conf.section("object-replicator");
        let mut diskfile = DiskFileConf::from_section(&section, &ctx.logger)?;
        if let Some(replicator) = replicator.as_ref().filter(|_| section.get("reclaim_age").is_none()) {
            diskfile.reclaim_age = replicator.secs("reclaim_age", diskfile.reclaim_age.as_secs_f64())?;
        }
        let object_sizes = section.list("object_size_stats", "").into_iter().map(|size| {
            parse_int(&size).ok_or_else(|| section.error("object_size_stats", "expected a list of numbers"))
        });
        Ok(Self {
            devices: diskfile.devices.clone(),
            managers: managers(&diskfile, ctx),
            interval: section.secs("interval", 30.0)?,
            concurrency: section.positive_int("concurrency", 1)?,
            files_per_second: section.float("files_per_second", 20.0)?,
            bytes_per_second: section.float("bytes_per_second", 10_000_000.0)?,
            zero_byte_files_per_second: section.int::<u32>("zero_byte_files_per_second", 50)?.into(),
            log_time: section.int::<i64>("log_time", 3600)? as f64,
            object_sizes: object_sizes.collect::<Result<_, _>>()?,
            rsync_tempfile_timeout: rsync_tempfile_timeout(&section, replicator.as_ref())? as f64,
            watchers: watchers(conf, &section, ctx)?,
            ctx: ctx.clone(),
        })
    }

    async fn list_devices(&self) -> Vec<String> {
        let path = self.devices.clone();
        match self.ctx.disk_pools.run("devices", move || list_names(&path)).await {
            Ok(names) => names,
            Err(err) => {
                let path = self.devices.display();
                self.ctx.logger.error(format_args!("ERROR auditing: cannot list {path}: {err}"));
                Vec::new()
            }
        }
    }

    /// All passes of one round.
    async fn audit(self: Arc<Self>, mode: Mode) {
        for auditor_type in [AuditorType::All, AuditorType::ZeroByte] {
            let entries = vec![(tally::recon_key(auditor_type), tally::cleared())];
            recon::dump_recon_cache(&self.ctx, recon::OBJECT_FILE, entries).await;
        }
        let total = Total { progress: self.ctx.progress(NAME), partitions: AtomicU64::new(0) };
        let chosen = self.chosen_devices(mode).await;
        if let Some(rate) = self.ctx.args.zero_byte_fps {
            let pass = Pass::new(&self, AuditorType::ZeroByte, rate, chosen, mode);
            return pass.run(|partitions| total.add(partitions)).await;
        }
        let (all_done, wake) = (AtomicBool::new(false), Notify::new());
        let all = async {
            self.audit_all(&chosen, mode, &total).await;
            all_done.store(true, Ordering::Relaxed);
            wake.notify_one();
        };
        let rate = self.zero_byte_files_per_second;
        let zero_byte = async {
            let mut wanted = rate > 0.0;
            while wanted {
                let pass = Pass::new(&self, AuditorType::ZeroByte, rate, chosen.clone(), mode);
                pass.run(|partitions| total.add(partitions)).await;
                let last = mode == Mode::Once || all_done.load(Ordering::Relaxed);
                // A time-out means that the other kind still runs: once more.
                wanted = !last && tokio::time::timeout(self.interval, wake.notified()).await.is_err();
            }
        };
        tokio::join!(all, zero_byte);
    }

    async fn audit_all(self: &Arc<Self>, chosen: &[String], mode: Mode, total: &Total) {
        let pass = |devices| Pass::new(self, AuditorType::All, self.files_per_second, devices, mode);
        if self.concurrency == 1 {
            return pass(chosen.to_vec()).run(|partitions| total.add(partitions)).await;
        }
        let mut devices = if chosen.is_empty() { self.list_devices().await } else { chosen.to_vec() };
        self.ctx.rng.shuffle(&mut devices);
        futures_util::stream::iter(devices)
            .for_each_concurrent(self.concurrency, |device| {
                pass(vec![device]).run(|partitions| total.add(partitions))
            })
            .await;
    }

    /// The devices that the command line names, as far as they exist; none means all. As with Swift they only count
    /// with `once`, and names that are all wrong choose all.
    async fn chosen_devices(&self, mode: Mode) -> Vec<String> {
        let wanted = &self.ctx.args.devices;
        if mode == Mode::Forever || wanted.is_empty() {
            return Vec::new();
        }
        let mut devices = self.list_devices().await;
        devices.retain(|device| wanted.contains(device));
        devices
    }
}

/// How many partitions all passes of a round have.
struct Total {
    progress: Progress,
    partitions: AtomicU64,
}

impl Total {
    fn add(&self, partitions: usize) {
        let before = self.partitions.fetch_add(partitions as u64, Ordering::Relaxed);
        self.progress.set(before + partitions as u64);
    }
}

fn managers(conf: &DiskFileConf, ctx: &Context) -> Vec<Arc<DiskFileManager>> {
    let router = DiskFileRouter::new(conf, &ctx.swift_conf, &ctx.clock, &ctx.logger, &ctx.statsd);
    router.iter().cloned().collect()
}

/// `auto` follows the replicator's own time-out.
fn rsync_tempfile_timeout(section: &Section, replicator: Option<&Section>) -> Result<u64, ConfigError> {
    if let Some(timeout) = section.auto_int("rsync_tempfile_timeout")? {
        return Ok(timeout);
    }
    match replicator {
        None => Ok(RSYNC_TEMPFILE_AGE),
        Some(replicator) => Ok(replicator.int("rsync_timeout", RSYNC_TIMEOUT)?.saturating_add(RSYNC_GRACE)),
    }
}

fn watchers(conf: &Conf, section: &Section, ctx: &Context) -> Result<Vec<DarkData>, ConfigError> {
    let mut names = section.list("watchers", "");
    names.sort();
    names.dedup();
    if let Some(unknown) = names.iter().find(|name| !is_dark_data(name)) {
        let problem = format!("there is no watcher {unknown}, only swift#dark_data");
        return Err(section.error("watchers", problem));
    }
    names.iter().map(|name| DarkData::new(conf, section, name, ctx)).collect()
}

fn list_names(dir: &std::path::Path) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    Ok(names.collect::<std::io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
