//! account-auditor and container-auditor (swift/common/db_auditor.py): open every database of this machine's devices and read what it says
//! of itself. One that SQLite cannot read is quarantined, as whenever it is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{Conf, ConfigError};
use parking_lot::Mutex;
use serde_json::Value;
use service::daemon::{Daemon, Mode};
use service::http::BoxFuture;
use service::{Context, recon};

use crate::broker::{Result, Shared};
use crate::locations::{Locations, database_files};
use crate::pace::Pace;

/// Between two reports of a long pass.
const LOGGING_INTERVAL: Duration = Duration::from_secs(3600);

/// Which databases are audited, and how.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub server_type: &'static str,
    pub datadir: &'static str,
    pub recon_file: &'static str,
    pub audit: fn(&Arc<Shared>, &Path) -> Result<Audit>,
}

/// What has come of one database.
pub enum Audit {
    Passed,
    /// Nobody asks what a deleted database says.
    Deleted,
    /// It is readable and wrong: how.
    Failed(String),
}

struct Auditor {
    ctx: Context,
    kind: Kind,
    shared: Arc<Shared>,
    locations: Locations,
    interval: Duration,
    pace: Pace,
    tally: Mutex<Option<Tally>>,
}

/// Since the last report.
struct Tally {
    since: f64,
    began: Instant,
    passes: u64,
    failures: u64,
}

impl Tally {
    fn new(ctx: &Context) -> Self {
        Self { since: ctx.clock.unix_secs(), began: Instant::now(), passes: 0, failures: 0 }
    }
}

pub fn build(kind: Kind, conf: &Conf, ctx: &Context) -> std::result::Result<Arc<dyn Daemon>, ConfigError> {
    let section = conf.section_or_default(kind.name);
    // It concerns how Swift's own broker works.
    section.bool("db_preallocation", false)?;
    let logger = ctx.logger.clone();
    let per_second = format!("{}s_per_second", kind.server_type);
    Ok(Arc::new(Auditor {
        shared: Shared::new(ctx.clock.clone(), move |line: &str| logger.error(line)),
        locations: Locations {
            devices: section.str("devices", "/srv/node").into(),
            mount_check: section.bool("mount_check", true)?,
            datadir: kind.datadir,
        },
        interval: section.secs("interval", 1800.0)?,
        pace: Pace::new(section.non_negative_float(&per_second, 200.0)?),
        tally: Mutex::default(),
        ctx: ctx.clone(),
        kind,
    }))
}

impl Daemon for Auditor {
    fn name(&self) -> &'static str {
        self.kind.name
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        self.run_pass(Mode::Once)
    }

    fn run_pass(&self, mode: Mode) -> BoxFuture<'_, ()> {
        Box::pin(self.pass(mode))
    }

    fn interval(&self) -> Duration {
        self.interval
    }
}

impl Auditor {
    async fn pass(&self, mode: Mode) {
        let server_type = self.kind.server_type;
        let pass = if mode == Mode::Once { "audit \"once\" mode" } else { "audit pass" };
        let dot = if mode == Mode::Once { "" } else { "." };
        self.ctx.logger.info(format_args!("Begin {server_type} {pass}{dot}"));
        let begin = Instant::now();
        self.tally.lock().get_or_insert_with(|| Tally::new(&self.ctx));
        match self.locations.devices(&self.ctx).await {
            Ok(devices) => {
                for device in devices {
                    self.audit_device(&device).await;
                }
            }
            Err(error) => {
                self.ctx.statsd.increment("errors");
                self.ctx.logger.error(format_args!("ERROR auditing: {error}"));
            }
        }
        self.shared.connections.close_all();
        let elapsed = begin.elapsed().as_secs_f64();
        let title = format!("{}{}", server_type[..1].to_uppercase(), &server_type[1..]);
        self.ctx.logger.info(format_args!("{title} {pass} completed: {elapsed:.2}s"));
        self.dump(vec![("auditor_pass_completed", elapsed.into())]).await;
    }

    async fn audit_device(&self, device: &str) {
        let partitions = self.locations.partitions(&self.ctx, device).await;
        let progress = self.ctx.progress(self.kind.name);
        progress.note(device);
        for partition in partitions {
            let files = self.ctx.disk_pools.run(device, move || database_files(&partition)).await;
            for file in files {
                self.audit(device, file).await;
                progress.inc(1);
                self.report_now_and_then().await;
                self.pace.wait().await;
            }
        }
    }

    async fn audit(&self, device: &str, file: PathBuf) {
        let start = Instant::now();
        let (audit, shared, path) = (self.kind.audit, self.shared.clone(), file.clone());
        let audited = self.ctx.disk_pools.run(device, move || audit(&shared, &path)).await;
        let passed = match audited {
            Ok(Audit::Deleted) => None,
            Ok(Audit::Passed) => Some(true),
            Ok(Audit::Failed(problem)) => {
                self.ctx.logger.error(format_args!("Audit Failed for {}: {problem}", file.display()));
                Some(false)
            }
            Err(error) => {
                let server_type = self.kind.server_type;
                let path = file.display();
                self.ctx.logger.error(format_args!("ERROR Could not get {server_type} info {path}: {error}"));
                Some(false)
            }
        };
        if let (Some(passed), Some(tally)) = (passed, &mut *self.tally.lock()) {
            let count = if passed { &mut tally.passes } else { &mut tally.failures };
            *count += 1;
            self.ctx.statsd.increment(if passed { "passes" } else { "failures" });
        }
        if passed == Some(true) {
            self.ctx.logger.debug(format_args!("Audit passed for {}", file.display()));
        }
        self.ctx.statsd.timing_since("timing", start);
    }

    async fn report_now_and_then(&self) {
        let report = {
            let mut tally = self.tally.lock();
            let is_due = tally.as_ref().is_some_and(|tally| tally.began.elapsed() >= LOGGING_INTERVAL);
            if is_due { tally.replace(Tally::new(&self.ctx)) } else { None }
        };
        let Some(Tally { since, passes, failures, .. }) = report else { return };
        let when = common::timestamp::http_date(since as u64);
        self.ctx.logger.info(format_args!(
            "Since {when}: {} audits: {passes} passed audit, {failures} failed audit",
            self.kind.server_type
        ));
        self.dump(vec![
            ("audits_since", since.into()),
            ("audits_passed", passes.into()),
            ("audits_failed", failures.into()),
        ])
        .await;
    }

    async fn dump(&self, entries: Vec<(&str, Value)>) {
        let named = |(name, value)| (format!("{}_{name}", self.kind.server_type), value);
        recon::dump_recon_cache(&self.ctx, self.kind.recon_file, entries.into_iter().map(named).collect())
            .await;
    }
}
