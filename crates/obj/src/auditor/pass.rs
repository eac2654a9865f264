//! One pass of one kind over some devices: which object comes next, at what pace, and what is counted.
//!
//! Policies take turns, object by object; within a policy the devices come one after the other, in random order, so
//! that an auditor which is always restarted gets to see all of them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use service::{Mode, Progress, recon};

use super::dark_data::{DarkDataPass, Wish};
use super::tally::{SizeStats, Tally};
use super::{Auditor, NAME};
use crate::diskfile::{
    AuditWalk, Audited, AuditorType, DiskFileError, DiskFileManager, ObjectAudit, SoundObject,
};
use crate::rate_limiter::RateLimiter;

/// Seconds for which a slow stretch may be made up for.
const PACE_BUFFER: f64 = 5.0;

pub(super) struct Pass {
    auditor: Arc<Auditor>,
    auditor_type: AuditorType,
    mode: &'static str,
    /// Empty for all.
    devices: Vec<String>,
    files: RateLimiter,
    bytes: RateLimiter,
    tally: Tally,
    sizes: SizeStats,
    watchers: Vec<DarkDataPass>,
    last_logged: f64,
    progress: Progress,
}

/// What an audited object has come to.
enum Verdict {
    Passed,
    Quarantined(String),
}

impl Pass {
    /// `files_per_second` is the rate of this kind of pass; no devices means all.
    pub fn new(
        auditor: &Arc<Auditor>,
        auditor_type: AuditorType,
        files_per_second: f64,
        devices: Vec<String>,
        mode: Mode,
    ) -> Self {
        let ctx = &auditor.ctx;
        Pass {
            auditor: auditor.clone(),
            auditor_type,
            mode: if mode == Mode::Once { "once" } else { "forever" },
            files: RateLimiter::new(files_per_second, PACE_BUFFER),
            bytes: RateLimiter::new(auditor.bytes_per_second, PACE_BUFFER),
            tally: Tally::new(auditor_type, &devices, ctx.clock.unix_secs()),
            devices,
            sizes: SizeStats::new(auditor.object_sizes.clone()),
            watchers: auditor.watchers.iter().map(|watcher| watcher.start(auditor_type)).collect(),
            last_logged: 0.0,
            progress: ctx.progress(NAME),
        }
    }

    fn now(&self) -> f64 {
        self.auditor.ctx.clock.unix_secs()
    }

    /// `announced` is given how many partitions there are, before the first is looked at.
    pub async fn run(mut self, announced: impl FnOnce(usize)) {
        let logger = self.auditor.ctx.logger.clone();
        logger.debug(format_args!("{} audit watcher(s) loaded", self.watchers.len()));
        logger.info(self.tally.begin_line(self.mode));
        let devices = self.find_devices().await;
        announced(self.count_partitions(&devices).await);
        let mut walks: VecDeque<PolicyWalk> = VecDeque::new();
        for manager in &self.auditor.managers {
            let mut devices = devices.clone();
            self.auditor.ctx.rng.shuffle(&mut devices);
            walks.push_back(PolicyWalk::new(manager, devices));
        }
        while let Some(mut walk) = walks.pop_front() {
            if let Some((device, path)) = walk.next(&self).await {
                let manager = walk.manager.clone();
                walks.push_back(walk);
                self.audit(manager, device, path).await;
            }
        }
        logger.info(self.tally.end_line(self.mode, self.now()));
        self.watchers.iter().for_each(DarkDataPass::end);
        if let Some(line) = self.sizes.line() {
            logger.info(line);
        }
        self.clear_positions(&devices).await;
    }

    /// The devices of this pass.
    async fn find_devices(&self) -> Vec<String> {
        let mut devices = self.auditor.list_devices().await;
        devices.retain(|device| self.devices.is_empty() || self.devices.contains(device));
        devices
    }

    async fn count_partitions(&self, devices: &[String]) -> usize {
        let mut count = 0;
        for device in devices {
            let (managers, name, kind) = (self.auditor.managers.clone(), device.clone(), self.auditor_type);
            let counted = move || managers.iter().map(|m| m.audit_partitions(&name, kind)).sum::<usize>();
            count += self.auditor.ctx.disk_pools.run(device, counted).await;
        }
        count
    }

    /// The next pass shall begin at the beginning. Swift forgets the positions of other passes' devices as well.
    async fn clear_positions(&self, devices: &[String]) {
        for device in devices {
            let (managers, name, kind) = (self.auditor.managers.clone(), device.clone(), self.auditor_type);
            let clear = move || managers.iter().for_each(|m| m.clear_auditor_status(&name, kind));
            self.auditor.ctx.disk_pools.run(device, clear).await;
        }
    }

    async fn pause(secs: f64) {
        if secs > 0.0 {
            // No pause is longer than a day, whatever the rate.
            tokio::time::sleep(Duration::from_secs_f64(secs.min(86_400.0))).await;
        }
    }

    async fn audit(&mut self, manager: Arc<DiskFileManager>, device: String, path: PathBuf) {
        let ctx = self.auditor.ctx.clone();
        let (began, started) = (self.now(), Instant::now());
        match self.examine(&manager, &device, &path).await {
            Ok(verdict) => {
                self.tally.passes += 1;
                if let Verdict::Quarantined(reason) = verdict {
                    self.tally.quarantines += 1;
                    let path = path.display();
                    ctx.logger.error(format_args!(
                        "ERROR Object {path} failed audit and was quarantined: {reason}"
                    ));
                }
            }
            Err(err) => {
                self.tally.errors += 1;
                ctx.statsd.increment("errors");
                ctx.logger.error(format_args!("ERROR Trying to audit {}: {err}", path.display()));
            }
        }
        ctx.statsd.timing_since("timing", started);
        Self::pause(self.files.wait(self.now())).await;
        self.tally.files += 1;
        if self.now() - self.last_logged >= self.auditor.log_time {
            self.report().await;
        }
        self.tally.auditing += self.now() - began;
    }

    async fn report(&mut self) {
        let (ctx, now) = (self.auditor.ctx.clone(), self.now());
        ctx.logger.info(self.tally.report_line(now));
        recon::dump_recon_cache(&ctx, recon::OBJECT_FILE, vec![self.tally.recon()]).await;
        self.tally.reset(now);
        self.last_logged = now;
    }

    async fn examine(
        &mut self,
        manager: &Arc<DiskFileManager>,
        device: &str,
        path: &Path,
    ) -> Result<Verdict, DiskFileError> {
        let (diskfile, kind) = (manager.diskfile_at(device, path.to_owned()), self.auditor_type);
        let stale = self.now() - self.auditor.rsync_tempfile_timeout;
        let mut audit = self.turn(device, stale, move || ObjectAudit::begin(diskfile, kind)).await;
        if let Some(size) = audit.size {
            self.sizes.record(size);
        }
        loop {
            self.tally.bytes += audit.bytes;
            if audit.bytes > 0 {
                Self::pause(self.bytes.wait_for(audit.bytes, self.now())).await;
            }
            if audit.has_ended() {
                break;
            }
            let next = move || {
                audit.turn();
                audit
            };
            audit = self.turn(device, stale, next).await;
        }
        match audit.end() {
            Audited::Sound(object) => self.watch(device, object).await,
            Audited::Quarantined(reason) => Ok(Verdict::Quarantined(reason)),
            Audited::Absent => Ok(Verdict::Passed),
            Audited::Failed(err) => Err(err),
        }
    }

    /// A turn on the device's threads; the last one also removes what rsync has left.
    async fn turn(
        &self,
        device: &str,
        stale: f64,
        turn: impl FnOnce() -> ObjectAudit + Send + 'static,
    ) -> ObjectAudit {
        let job = move || {
            let audit = turn();
            if audit.has_ended() {
                audit.remove_rsync_tempfiles(stale);
            }
            audit
        };
        self.auditor.ctx.disk_pools.run(device, job).await
    }

    async fn watch(&mut self, device: &str, object: SoundObject) -> Result<Verdict, DiskFileError> {
        for watcher in &mut self.watchers {
            if watcher.see_object(&object).await == Wish::Quarantine {
                let reason = format!("Requested by {}", watcher.name());
                let quarantine = move || object.quarantine(reason);
                return match self.auditor.ctx.disk_pools.run(device, quarantine).await {
                    DiskFileError::Quarantined(reason) => Ok(Verdict::Quarantined(reason)),
                    err => Err(err),
                };
            }
        }
        Ok(Verdict::Passed)
    }
}

/// The walk over all devices for one policy.
struct PolicyWalk {
    manager: Arc<DiskFileManager>,
    /// Still to come.
    devices: Vec<String>,
    walk: Option<AuditWalk>,
    batch: std::vec::IntoIter<PathBuf>,
    device: String,
    partitions_done: usize,
}

impl PolicyWalk {
    fn new(manager: &Arc<DiskFileManager>, devices: Vec<String>) -> Self {
        PolicyWalk {
            manager: manager.clone(),
            devices,
            walk: None,
            batch: Vec::new().into_iter(),
            device: String::new(),
            partitions_done: 0,
        }
    }

    /// The next hash dir and its device.
    async fn next(&mut self, pass: &Pass) -> Option<(String, PathBuf)> {
        loop {
            if let Some(path) = self.batch.next() {
                return Some((self.device.clone(), path));
            }
            let pools = &pass.auditor.ctx.disk_pools;
            if let Some(mut walk) = self.walk.take() {
                let next = move || {
                    let batch = walk.next_batch();
                    (walk, batch)
                };
                let (walk, batch) = pools.run(&self.device, next).await;
                pass.progress.inc((walk.partitions_done() - self.partitions_done) as u64);
                self.partitions_done = walk.partitions_done();
                if let Some(batch) = batch {
                    self.batch = batch.into_iter();
                    self.walk = Some(walk);
                }
                continue;
            }
            self.device = self.devices.pop()?;
            self.partitions_done = 0;
            let (manager, device, kind) = (self.manager.clone(), self.device.clone(), pass.auditor_type);
            let open = move || AuditWalk::open(&manager, &device, kind);
            self.walk = pools.run(&self.device, open).await;
        }
    }
}
