//! account-replicator and container-replicator: a pass over all databases of this machine's devices, each of which is brought together with
//! its replicas on the other primaries.
//!
//! Each node asks the next one in the ring's order first, so that a database whose replicas all differ is not waited for by all at once.
//! A database that is on none of its primaries is a handoff: it is removed once all primaries have it, if nothing has been added
//! meanwhile. One that lies in the wrong partition goes to the right one in the same way (so it is after an increase of the part power, of
//! which these replicators know nothing else). One that was deleted for `reclaim_age`, and has told the account so, is removed.
//!
//! A daemon that goes on remembers what it read of a database in the pass before (`known`), for as long as nothing in it becomes due.
//!
//! Where there is no rsync daemon, `sync_method = usync` does without: a database that is missing on a node is made there by the requests
//! that proxies make, and filled with rows like any other. Swift has no such option, but its servers understand all of it.
//!
//! Stricter than Swift: before a database is removed it is looked at once more under its lock, with what is pending; Swift may
//! remove rows that came after the last look. Its answer to `rsync_then_merge` is waited for at least `node_timeout`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{Conf, ConfigError, Section};
use futures_util::StreamExt;
use parking_lot::Mutex;
use ring::{Device, Node, Ring, is_local_device, whataremyips};
use service::daemon::{Daemon, DaemonArgs, Mode, replicator_interval};
use service::http::BoxFuture;
use service::rsync::Module;
use service::{Context, recon};

use super::conversation::{Conversation, SyncError, annotate};
use super::known::{KnownDatabases, MOST_METADATA, MOST_POINTS};
use super::reclaim::{Ages, Oldest, reclaim};
use super::stats::{NodeKey, Stats, node_key};
use super::walk::{Found, Walk, partitions_of};
use super::{Replicated, ReplicationInfo, SyncPoint, Syncs};
use crate::broker::{BrokerError, Kind, Options, Result, Shared, is_missing};
use crate::pace::Pace;

/// How long a replicator waits for the lock of who appends to a database's pending file.
const PENDING_TIMEOUT: Duration = Duration::from_secs(30);

pub struct ReplicatorConf {
    devices: PathBuf,
    mount_check: bool,
    bind_ip: String,
    port: u16,
    concurrency: usize,
    pub per_diff: usize,
    pub max_diffs: usize,
    interval: Duration,
    pub node_timeout: Duration,
    pub conn_timeout: Duration,
    pub rsync_compress: bool,
    pub rsync_module: Module,
    /// `sync_method = usync`, which Swift has not.
    pub without_rsync: bool,
    reclaim_age: Duration,
    handoffs_only: bool,
    /// How many nodes must have a handoff before it is removed; 0: all.
    handoff_delete: usize,
}

/// What one kind of database adds to a pass. All is called on the threads of a device.
pub trait PassHooks<B: Replicated>: Send + Sync {
    /// A pass begins; these are the devices of this machine.
    fn pass_begins(&self, _ring: &Arc<Ring>, _local: &[Arc<Device>]) {}

    /// Whether `replicated` is to be called of a database to which none of its replicas had anything new to tell.
    fn wants(&self, _info: &ReplicationInfo) -> bool {
        false
    }

    /// A database has been brought together with its replicas: each of `answers` says whether one of them has all of it.
    fn replicated(&self, _broker: &mut B, _info: &ReplicationInfo, _answers: &[bool]) -> Result<()> {
        Ok(())
    }

    /// A database is about to be removed. True if that has to wait until the end of the pass.
    fn removing(&self, _broker: &mut B, _info: &ReplicationInfo, _found: &Found) -> bool {
        false
    }

    /// Databases that this pass has written to: they are replicated again.
    fn written_to(&self) -> Option<Vec<Found>> {
        None
    }

    /// At the very end: the databases whose removal has waited, each with the highest row that all its replicas have.
    fn to_remove(&self) -> Vec<(Found, i64)> {
        Vec::new()
    }
}

/// The hooks of accounts.
pub struct NoHooks;

impl<B: Replicated> PassHooks<B> for NoHooks {}

pub struct Replicator<B> {
    pub ctx: Context,
    pub conf: ReplicatorConf,
    pub stats: Mutex<Stats>,
    shared: Arc<Shared>,
    known: KnownDatabases<Prepared>,
    pace: Pace,
    hooks: Box<dyn PassHooks<B>>,
}

struct DatabaseReplicator<B>(Arc<Replicator<B>>);

/// The daemon of a configuration file.
pub fn build<B: Replicated>(
    conf: &Conf,
    ctx: &Context,
    hooks: impl FnOnce(
        &Section,
        &Context,
        &Arc<Shared>,
    ) -> std::result::Result<Box<dyn PassHooks<B>>, ConfigError>,
) -> std::result::Result<Arc<dyn Daemon>, ConfigError> {
    let section = conf.section_or_default(B::REPLICATOR);
    let logger = ctx.logger.clone();
    let shared = Shared::new(ctx.clock.clone(), move |line: &str| logger.error(line));
    let replicator = Replicator {
        conf: ReplicatorConf::from_section::<B>(&section, ctx)?,
        stats: Mutex::default(),
        pace: Pace::new(section.non_negative_float("databases_per_second", 50.0)?),
        hooks: hooks(&section, ctx, &shared)?,
        known: KnownDatabases::from_section(&section)?,
        shared,
        ctx: ctx.clone(),
    };
    Ok(Arc::new(DatabaseReplicator(Arc::new(replicator))))
}

impl ReplicatorConf {
    fn from_section<B: Replicated>(
        section: &Section,
        ctx: &Context,
    ) -> std::result::Result<Self, ConfigError> {
        // Both concern how Swift's own broker works.
        section.bool("db_preallocation", false)?;
        section.bool("db_query_logging", false)?;
        let mut handoff_delete = section.auto_int::<usize>("handoff_delete")?.unwrap_or(0);
        let replicas = B::ring(ctx).map_or(usize::MAX, |ring| ring.replica_count());
        if handoff_delete >= replicas {
            ctx.logger.warning(format_args!(
                "handoff_delete={handoff_delete} is too high to have an effect on a ring with replica count {replicas}. \
                 Disabling."
            ));
            handoff_delete = 0;
        }
        let without_rsync = match section.get("sync_method").filter(|method| !method.is_empty()) {
            None | Some("rsync") => false,
            Some("usync") => true,
            Some(_) => return Err(section.error("sync_method", "expected rsync or usync")),
        };
        Ok(Self {
            without_rsync,
            devices: section.str("devices", "/srv/node").into(),
            mount_check: section.bool("mount_check", true)?,
            bind_ip: section.str("bind_ip", "0.0.0.0"),
            port: section.int("bind_port", B::DEFAULT_PORT)?,
            concurrency: section.positive_int("concurrency", 8)?,
            per_diff: section.positive_int("per_diff", 1000)?,
            max_diffs: section.positive_int("max_diffs", 100)?,
            interval: replicator_interval(section, &ctx.logger, B::REPLICATOR)?,
            node_timeout: section.secs("node_timeout", 10.0)?,
            conn_timeout: section.secs("conn_timeout", 0.5)?,
            rsync_compress: section.bool("rsync_compress", false)?,
            rsync_module: Module::from_section(section, B::Kind::DB_TYPE)?,
            reclaim_age: section.secs("reclaim_age", 604_800.0)?,
            handoffs_only: section.bool("handoffs_only", false)?,
            handoff_delete,
        })
    }
}

impl<B: Replicated> Daemon for DatabaseReplicator<B> {
    fn name(&self) -> &'static str {
        B::REPLICATOR
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        self.run_pass(Mode::Once)
    }

    fn run_pass(&self, mode: Mode) -> BoxFuture<'_, ()> {
        // A command line chooses devices and partitions only `once`.
        let args = match mode {
            Mode::Once => self.0.ctx.args.clone(),
            Mode::Forever => DaemonArgs::default(),
        };
        Box::pin(self.0.clone().pass(mode, args))
    }

    fn interval(&self) -> Duration {
        self.0.conf.interval
    }
}

/// A database as a pass finds it.
struct Prepared {
    info: ReplicationInfo,
    /// How far others have taken its rows.
    outgoing: Vec<SyncPoint>,
    /// Of a container that is being sharded, the newer file.
    db_file: PathBuf,
    is_reclaimable: bool,
    /// Of what will be reclaimed; `None` if that is to be asked again.
    oldest: Option<Oldest>,
}

impl Prepared {
    /// Whether another look would find the same in the same database.
    fn holds(&self, ages: &Ages) -> bool {
        !self.info.was_deleted_before(ages.deleted)
            && self.oldest.as_ref().is_some_and(|oldest| !oldest.is_due(ages))
    }

    fn is_small(&self) -> bool {
        self.info.metadata.len() <= MOST_METADATA && self.outgoing.len() <= MOST_POINTS
    }
}

/// Which database is removed.
enum Remove {
    Handoff(ReplicationInfo),
    Reclaimed(ReplicationInfo),
    /// One that had to wait for the end of the pass.
    AtLast,
}

/// What has come of the removal of a database.
enum Removal {
    Done,
    /// There is more in it than was replicated.
    Kept(String),
    Later,
}

impl<B: Replicated> Replicator<B> {
    async fn pass(self: Arc<Self>, mode: Mode, args: DaemonArgs) {
        let (start, began) = (self.ctx.clock.unix_secs(), Instant::now());
        *self.stats.lock() = Stats::default();
        let ring = match B::ring(&self.ctx) {
            Ok(ring) => ring,
            Err(error) => {
                self.ctx.logger.error(format_args!("ERROR trying to replicate: {error}"));
                return;
            }
        };
        self.warn_of_handoff_modes(
            "Starting replication pass with handoffs_only and/or handoffs_delete enabled. These modes are not intended for \
             normal operation; use these options with care.",
        );
        let progress = self.ctx.progress(B::REPLICATOR);
        let (walk, partitions) = self.walk(&ring, &args).await;
        progress.set(partitions);
        self.ctx.logger.info("Beginning replication run");
        let databases = futures_util::stream::unfold(walk, |mut walk| async {
            let found = walk.next().await?;
            self.pace.wait().await;
            Some((found, walk))
        });
        databases
            .for_each_concurrent(self.conf.concurrency, |found| async {
                progress.note(format!("{}/{}", found.device.device, found.partition));
                self.replicate(&ring, mode, found).await;
            })
            .await;
        self.ctx.logger.info("Replication run OVER");
        self.warn_of_handoff_modes(
            "Finished replication pass with handoffs_only and/or handoffs_delete enabled. If these are no longer required, \
             disable them.",
        );
        self.report(start, began).await;
        self.replicate_written(&ring, mode).await;
        self.shared.connections.close_all();
    }

    fn warn_of_handoff_modes(&self, warning: &str) {
        if self.conf.handoffs_only || self.conf.handoff_delete > 0 {
            self.ctx.logger.warning(warning);
        }
    }

    /// The partitions of the local devices that the pass is about, and how many they are.
    async fn walk(&self, ring: &Arc<Ring>, args: &DaemonArgs) -> (Walk, u64) {
        let ips = whataremyips(&self.conf.bind_ip);
        let (mut walk, mut count) = (Walk::new(&self.ctx), 0);
        let is_local = |device: &&Arc<Device>| {
            is_local_device(&ips, Some(self.conf.port), &device.replication_ip, device.replication_port)
        };
        let local: Vec<Arc<Device>> = ring.devs().iter().flatten().filter(is_local).cloned().collect();
        if local.is_empty() {
            let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
            self.ctx.logger.error(format_args!(
                "Can't find itself {} with port {} in ring file, not replicating",
                ips.join(", "),
                self.conf.port
            ));
        }
        let mut used = Vec::new();
        for device in local {
            let (root, mount_check, name) =
                (self.conf.devices.clone(), self.conf.mount_check, device.device.clone());
            let check = move || common::fs::check_drive(&root, &name, mount_check);
            let Some(path) = self.ctx.disk_pools.run(&device.device, check).await else {
                self.stats.lock().add_failures(&self.all_devices(ring));
                let what = if self.conf.mount_check { "mounted" } else { "a directory" };
                self.ctx.logger.warning(format_args!(
                    "Skipping: {} is not {what}",
                    self.conf.devices.join(&device.device).display()
                ));
                continue;
            };
            if !args.devices.is_empty() && !args.devices.contains(&device.device) {
                self.ctx
                    .logger
                    .debug(format_args!("Skipping device {} due to given arguments", device.device));
                continue;
            }
            let oldest = self.ctx.clock.since_epoch().saturating_sub(self.conf.reclaim_age);
            let list = move || {
                common::fs::remove_older_than(&path.join("tmp"), oldest, "");
                let datadir = path.join(B::DATADIR);
                (partitions_of(&datadir), datadir)
            };
            let (partitions, datadir) = self.ctx.disk_pools.run(&device.device, list).await;
            let partitions = match partitions {
                Ok(partitions) => partitions,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.ctx.logger.error(format_args!("ERROR listing {}: {error}", datadir.display()));
                    continue;
                }
            };
            let is_wanted = |partition: &u32| {
                (args.partitions.is_empty() || args.partitions.contains(partition))
                    && !(self.conf.handoffs_only
                        && ring.get_part_nodes(*partition).iter().any(|node| node.id == device.id))
            };
            let partitions: Vec<u32> = partitions.into_iter().filter(is_wanted).collect();
            count += partitions.len() as u64;
            used.push(device.clone());
            walk.add(device, datadir, partitions);
        }
        self.hooks.pass_begins(ring, &used);
        (walk, count)
    }

    fn all_devices(&self, ring: &Ring) -> Vec<NodeKey> {
        ring.devs().iter().flatten().map(|device| node_key(device)).collect()
    }

    async fn report(&self, start: f64, began: Instant) {
        let secs = began.elapsed().as_secs_f64();
        let (lines, stats) = {
            let stats = self.stats.lock();
            (stats.lines(secs), stats.to_recon(start))
        };
        let [attempted, removed, successes, others] = lines;
        for line in [attempted, removed, successes] {
            self.ctx.logger.info(line);
        }
        let entries = [
            ("replication_stats", stats),
            ("replication_time", secs.into()),
            ("replication_last", self.ctx.clock.unix_secs().into()),
        ];
        let entries = entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        recon::dump_recon_cache(&self.ctx, B::RECON_FILE, entries).await;
        self.ctx.logger.info(others);
    }

    /// Replicate once more what the pass itself has written to, then remove what had to wait for it.
    async fn replicate_written(self: &Arc<Self>, ring: &Arc<Ring>, mode: Mode) {
        let Some(written) = self.hooks.written_to() else { return };
        self.ctx.logger.info(format_args!("Replicating {} reconciler containers", written.len()));
        futures_util::stream::iter(written)
            .for_each_concurrent(self.conf.concurrency, |found| async {
                self.replicate(ring, mode, found).await;
            })
            .await;
        let removing = self.hooks.to_remove();
        self.ctx.logger.info(format_args!("Cleaning up {} reconciler containers", removing.len()));
        for (found, max_row) in removing {
            let file = found.db_file.clone();
            if let Err(error) = self.remove(&found, max_row, Remove::AtLast).await {
                self.ctx.logger.error(format_args!("ERROR removing {}: {error}", file.display()));
            }
        }
        self.ctx.logger.info("Finished reconciler replication");
    }

    // --- one database ---

    async fn replicate(self: &Arc<Self>, ring: &Arc<Ring>, mode: Mode, mut found: Found) {
        let start = Instant::now();
        self.ctx.logger.debug(format_args!("Replicating db {}", found.db_file.display()));
        self.stats.lock().attempted += 1;
        self.ctx.statsd.increment("attempts");
        let prepared = match self.prepare(&found, mode).await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.cannot_read(&found, error).await;
                let nodes = ring.get_part_nodes(found.partition);
                self.stats.lock().add_failures(&nodes.iter().map(|node| node_key(node)).collect::<Vec<_>>());
                self.ctx.statsd.increment("failures");
                return;
            }
        };
        let info = &prepared.info;
        found.db_file.clone_from(&prepared.db_file);
        if prepared.is_reclaimable {
            if info.is_reported
                && let Err(error) = self.remove(&found, info.max_row, Remove::Reclaimed(info.clone())).await
            {
                let problem = format_args!("ERROR removing db: {error}");
                self.ctx.logger.error(annotate(problem, Some(info), &found.db_file));
            }
        } else {
            self.replicate_to_nodes(ring, &found, info, &prepared.outgoing).await;
        }
        self.ctx.statsd.timing_since("timing", start);
    }

    async fn prepare(self: &Arc<Self>, found: &Found, mode: Mode) -> Result<Arc<Prepared>> {
        let (replicator, db_file) = (self.clone(), found.db_file.clone());
        let prepare = move || {
            let now = replicator.ctx.clock.since_epoch();
            let ages = Ages::at(now, replicator.conf.reclaim_age);
            if let Some(known) = replicator.known.get(&db_file).filter(|known| known.holds(&ages)) {
                return Ok(known);
            }
            // After the only pass of a program nobody asks any more.
            let look = match mode {
                Mode::Once => None,
                Mode::Forever => replicator.known.look(&db_file),
            };
            let mut broker = open::<B>(&replicator.shared, &db_file)?;
            let oldest = now.saturating_sub(replicator.conf.reclaim_age);
            common::fs::remove_older_than(broker.db().db_dir(), oldest, ".tmp");
            let prepared = prepare_database(&mut broker, &ages)?;
            Ok(match look.filter(|_| prepared.holds(&ages) && prepared.is_small()) {
                Some(look) => replicator.known.learn(look, prepared),
                None => Arc::new(prepared),
            })
        };
        self.ctx.disk_pools.run(&found.device.device, prepare).await
    }

    /// A file without the tables of a database is none, and goes to quarantine; so did a corrupt one already.
    async fn cannot_read(self: &Arc<Self>, found: &Found, error: BrokerError) {
        let is_none = matches!(&error, BrokerError::Sqlite(_, error) if is_missing(error, "no such table"));
        if !is_none {
            let problem = format_args!("ERROR reading db: {error}");
            self.ctx.logger.error(annotate(problem, None, &found.db_file));
            return;
        }
        self.ctx.logger.error(annotate(format_args!("Quarantining DB"), None, &found.db_file));
        let quarantine = move |broker: &mut B| {
            broker.db().quarantine(&error.to_string());
            Ok(())
        };
        if let Err(error) = self.on_disk(&found.device.device, &found.db_file, quarantine).await {
            self.ctx.logger.error(annotate(format_args!("{error}"), None, &found.db_file));
        }
    }

    async fn replicate_to_nodes(
        self: &Arc<Self>,
        ring: &Arc<Ring>,
        found: &Found,
        info: &ReplicationInfo,
        outgoing: &[SyncPoint],
    ) {
        let hash_conf = &self.ctx.swift_conf.hash;
        let partition = ring.get_part(hash_conf, &info.account, info.container.as_deref(), None);
        let primaries = ring.get_part_nodes(partition);
        let mut belongs_here = primaries.iter().any(|node| node.id == found.device.id);
        if partition != found.partition {
            belongs_here = false;
            let problem = format_args!(
                "Found db that should be on partition {partition}; will replicate out and remove"
            );
            self.ctx.logger.error(annotate(problem, Some(info), &found.db_file));
        }
        let mut nodes = partners(&primaries, found.device.id);
        let mut handoffs = ring.get_more_nodes(partition);
        let mut answers = Vec::new();
        let mut failed: HashSet<NodeKey> = HashSet::new();
        let mut learned = false;
        let mut next = 0;
        while let Some(node) = nodes.get(next).cloned() {
            next += 1;
            let mut conversation = Conversation {
                replicator: self,
                node: &node,
                partition,
                device: &found.device.device,
                db_file: &found.db_file,
                info,
                outgoing,
                different_region: found.device.region != node.region,
                learned: false,
            };
            let answer = conversation.replicate().await;
            learned |= conversation.learned;
            let success = matches!(answer, Ok(true));
            if let Err(error) = answer {
                self.cannot_sync(&error, &node, info, found);
                if matches!(error, SyncError::NotMounted) {
                    match handoffs.next() {
                        Some(handoff) => nodes.push(handoff),
                        None => self.ctx.logger.error(annotate(
                            format_args!(
                                "ERROR There are not enough handoff nodes to reach replica count for partition {partition}"
                            ),
                            Some(info),
                            &found.db_file,
                        )),
                    }
                }
            }
            if !success {
                failed.insert(node_key(&node));
            }
            self.ctx.statsd.increment(if success { "successes" } else { "failures" });
            answers.push(success);
        }
        if learned || self.hooks.wants(info) {
            self.after_nodes(found, info, &answers).await;
        }
        let targets: HashSet<NodeKey> = nodes.iter().map(|node| node_key(node)).collect();
        if !belongs_here && !self.remove_handoff(found, info, &answers).await {
            failed.extend(targets.iter().cloned());
        }
        let mut stats = self.stats.lock();
        stats.success += targets.difference(&failed).count() as u64;
        stats.add_failures(&failed);
    }

    fn cannot_sync(&self, error: &SyncError, node: &Node, info: &ReplicationInfo, found: &Found) {
        let place = format!("{}:{}/{}", node.replication_ip, node.replication_port, node.device);
        let problem = match error {
            SyncError::NotMounted => format!("ERROR Remote drive not mounted {place}"),
            error => format!("ERROR syncing with {place}: {error}"),
        };
        self.ctx.logger.error(annotate(format_args!("{problem}"), Some(info), &found.db_file));
    }

    async fn after_nodes(self: &Arc<Self>, found: &Found, info: &ReplicationInfo, answers: &[bool]) {
        let (replicator, about, answers) = (self.clone(), info.clone(), answers.to_vec());
        let hook = move |broker: &mut B| replicator.hooks.replicated(broker, &about, &answers);
        if let Err(error) = self.on_disk(&found.device.device, &found.db_file, hook).await {
            let problem = format_args!("UNHANDLED EXCEPTION: in post replicate hook: {error}");
            self.ctx.logger.error(annotate(problem, Some(info), &found.db_file));
        }
    }

    /// Remove a handoff that is everywhere it belongs. False if that was to be and failed.
    async fn remove_handoff(
        self: &Arc<Self>,
        found: &Found,
        info: &ReplicationInfo,
        answers: &[bool],
    ) -> bool {
        let successes = answers.iter().filter(|success| **success).count();
        let enough = match self.conf.handoff_delete {
            0 => successes > 0 && successes == answers.len(),
            wanted => successes >= wanted,
        };
        if !enough {
            let reason = format_args!("Not deleting db ({successes}/{} success)", answers.len());
            self.ctx.logger.debug(annotate(reason, Some(info), &found.db_file));
            return true;
        }
        let about = |message: std::fmt::Arguments<'_>| annotate(message, Some(info), &found.db_file);
        match self.remove(found, info.max_row, Remove::Handoff(info.clone())).await {
            Ok(Removal::Done | Removal::Later) => {
                self.ctx.logger.debug(about(format_args!("Successfully deleted db")));
                true
            }
            Ok(Removal::Kept(reason)) => {
                self.ctx.logger.debug(about(format_args!("Not deleting db ({reason})")));
                true
            }
            Err(error) => {
                self.ctx.logger.error(about(format_args!("Failed to delete db: {error}")));
                false
            }
        }
    }

    /// Remove a database with its directory, unless there is more in it than the rows up to `max_row`.
    async fn remove(self: &Arc<Self>, found: &Found, max_row: i64, what: Remove) -> Result<Removal> {
        let (replicator, about) = (self.clone(), found.clone());
        let remove = move |broker: &mut B| {
            if matches!(what, Remove::Handoff(_))
                && let Some(reason) = broker.must_stay()?
            {
                return Ok(Removal::Kept(reason));
            }
            if let Remove::Handoff(info) | Remove::Reclaimed(info) = &what
                && replicator.hooks.removing(broker, info, &about)
            {
                return Ok(Removal::Later);
            }
            let db = broker.db();
            let _lock = db.lock()?;
            let new_rows = db.max_row()? - max_row;
            if new_rows != 0 {
                return Ok(Removal::Kept(format!("{new_rows} new rows")));
            }
            if db.has_pending() {
                return Ok(Removal::Kept("pending rows".to_owned()));
            }
            db.close();
            let dir = db.db_dir().to_owned();
            remove_hash_dir(&dir).map_err(|error| BrokerError::Io(dir, error))?;
            Ok(Removal::Done)
        };
        let removal = self.on_disk(&found.device.device, &found.db_file, remove).await?;
        if matches!(removal, Removal::Done) {
            self.stats.lock().remove += 1;
            self.ctx.statsd.increment(&format!("removes.{}", found.device.device));
        }
        Ok(removal)
    }

    /// Do something with a database on a thread of its device.
    pub async fn on_disk<T: Send + 'static>(
        &self,
        device: &str,
        db_file: &Path,
        job: impl FnOnce(&mut B) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (shared, db_file) = (self.shared.clone(), db_file.to_owned());
        self.ctx.disk_pools.run(device, move || job(&mut open(&shared, &db_file)?)).await
    }
}

fn open<B: Replicated>(shared: &Arc<Shared>, db_file: &Path) -> Result<B> {
    B::open(shared, db_file, Options { pending_timeout: PENDING_TIMEOUT, ..Options::default() })
}

/// Reclaim what there is to reclaim in a database, and read what a pass wants to know of it.
fn prepare_database<B: Replicated>(broker: &mut B, ages: &Ages) -> Result<Prepared> {
    let mut info = broker.replication_info().map_err(|error| match error.is_rowless() {
        true => broker.db().quarantine_rowless(),
        false => error,
    })?;
    let (oldest, mut outgoing) = broker.db().oldest()?;
    let mut oldest = reclaim(broker, &info, oldest, ages)?;
    if oldest.is_none() {
        info = broker.replication_info()?;
        outgoing = broker.db().sync_points(Syncs::Outgoing)?;
    }
    // Shard ranges are reclaimed, too, and nobody keeps account of when.
    oldest = oldest.filter(|_| info.shard_max_row.is_none_or(|highest| highest < 0));
    let is_reclaimable = info.was_deleted_before(ages.deleted) && broker.is_reclaimable(&info)?;
    Ok(Prepared { info, outgoing, db_file: broker.db().db_file.clone(), is_reclaimable, oldest })
}

/// The primaries that a device replicates to: those after it in the ring's order, then those before. Where there is but one, that.
fn partners(primaries: &[Node], device: u32) -> Vec<Node> {
    if primaries.len() <= 1 {
        return primaries.to_vec();
    }
    let own = primaries.iter().position(|node| node.id == device);
    let (before, after) = match own {
        Some(at) => (&primaries[..at], &primaries[at + 1..]),
        None => (primaries, &[][..]),
    };
    [after, before].concat()
}

/// Remove the directory of a database, and its parents if they are empty then.
fn remove_hash_dir(hash_dir: &Path) -> std::io::Result<()> {
    common::fs::fail::hit("db.remove")?;
    // A crash in the middle leaves a part of what all primaries have, and the next pass removes or replicates that.
    std::fs::remove_dir_all(hash_dir)?;
    for parent in hash_dir.ancestors().skip(1).take(2) {
        if !common::fs::remove_empty_dir(parent)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_begins_with_the_next_one() {
        let node = |id: u32| Node {
            dev: Arc::new(Device { id, ..crate::tests::device(0) }),
            index: id as usize,
            handoff_index: None,
        };
        let ids = |nodes: Vec<Node>| nodes.iter().map(|node| node.id).collect::<Vec<_>>();
        let primaries = [node(0), node(1), node(2)];
        assert_eq!(ids(partners(&primaries, 0)), [1, 2]);
        assert_eq!(ids(partners(&primaries, 1)), [2, 0]);
        assert_eq!(ids(partners(&primaries, 2)), [0, 1]);
        assert_eq!(ids(partners(&primaries, 9)), [0, 1, 2]);
        assert_eq!(ids(partners(&primaries[..1], 0)), [0]);
    }
}
