//! The container-sync daemon (swift/container/sync.py): sends the objects of containers to where their X-Container-Sync-To says.
//!
//! A pass walks the list of synced containers (`sync_store`). All primaries of a container do the same work, and share it so that
//! none of it is missed when one is down: two sync points in each database say up to which row every row of the node's own
//! *share* has been tried (point 1), and up to which row all rows have been sent (point 2). A pass
//!
//! 1. sends all rows after point 2 up to point 1: most of them are there already, sent by their primary, and cost a HEAD. Point 2
//!    stops before the first that failed;
//! 2. sends its share of the rows after point 1, whatever comes of it: the next pass looks again.
//!
//! Rows are read in batches and sent `sync_row_concurrency` at a time, in step 1 too, where Swift sends them one by one; a point is
//! stored after each batch, and never beyond a row that failed. A daemon that is killed sends a batch again. After
//! `container_time` seconds it is the next container's turn.
//!
//! `row` is what becomes of one row, `remote` the requests to the other cluster. The objects come through a proxy's pipeline in
//! this process, that of `internal_client_conf_path`.

mod remote;
mod row;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{Conf, ConfigError, Paste, Section};
use common::container_sync_realms::Target;
use common::timestamp::http_date;
use futures_util::StreamExt;
use parking_lot::Mutex;
use ring::{is_local_device, whataremyips};
use service::daemon::Mode;
use service::http::BoxFuture;
use service::internal_client::{self, InternalClient};
use service::{Context, Daemon, Registry};

use super::broker::{ContainerBroker, ContainerInfo};
use super::rows::ObjectRecord;
use super::sync_store::{self, SYNC_DATADIR};
use super::sync_to::SyncTo;
use crate::broker::{BrokerError, Options, Shared};
use crate::locations::{Locations, database_files};
use remote::Remote;

const NAME: &str = "container-sync";
const USER_AGENT: &str = "Swift Container Sync";
/// Rows that are read at once, and sent before a sync point is stored.
const BATCH: usize = 100;
/// Between two reports of the log.
const REPORT_INTERVAL: f64 = 3600.0;
const SYNC_TO: &str = "X-Container-Sync-To";
const SYNC_KEY: &str = "X-Container-Sync-Key";
const VERSIONS_CONTAINER: &str = "X-Container-Sysmeta-Versions-Container";

/// Makes the daemon from a container server's file. `registry` has the apps of its pipeline.
pub fn build(conf: &Conf, ctx: &Context, registry: &Registry) -> Result<Arc<dyn Daemon>, ConfigError> {
    let section = conf.section_or_default(NAME);
    with_client(&section, ctx, load_internal_client(&section, ctx, registry)?)
}

/// Makes the daemon whose objects come through `swift`.
pub(crate) fn with_client(
    section: &Section,
    ctx: &Context,
    swift: InternalClient,
) -> Result<Arc<dyn Daemon>, ConfigError> {
    Ok(Arc::new(ContainerSync(Arc::new(Syncer::new(section, ctx, swift)?))))
}

struct ContainerSync(Arc<Syncer>);

struct Syncer {
    ctx: Context,
    shared: Arc<Shared>,
    store: Locations,
    interval: Duration,
    /// Seconds for one container.
    container_time: f64,
    concurrency: usize,
    my_ips: Vec<IpAddr>,
    my_port: u16,
    sync_to: SyncTo,
    swift: InternalClient,
    remote: Remote,
    stats: Mutex<Stats>,
}

/// Since the last report.
#[derive(Debug, Default)]
struct Stats {
    /// Seconds since the epoch.
    since: f64,
    syncs: u64,
    deletes: u64,
    puts: u64,
    skips: u64,
    failures: u64,
    container: ContainerStats,
}

/// What was sent of one container. In `once` mode, as in Swift, of all of the pass so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ContainerStats {
    puts: u64,
    deletes: u64,
    bytes: i64,
}

/// A container whose rows are to be sent.
struct Job {
    device: String,
    file: PathBuf,
    info: ContainerInfo,
    /// The value that `target` was made of.
    sync_to: String,
    target: Target,
    user_key: String,
    share: Share,
}

/// Which rows a primary sends before the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    ordinal: usize,
    nodes: usize,
}

impl Share {
    /// By the first 32 bits of the hash of the object's path.
    fn has(self, hash: [u8; 16]) -> bool {
        let [a, b, c, d, ..] = hash;
        u32::from_be_bytes([a, b, c, d]) as usize % self.nodes.max(1) == self.ordinal
    }
}

/// How far all rows have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resent {
    reached: i64,
    /// The last row before the first that failed.
    failed_after: Option<i64>,
}

impl Resent {
    /// After these rows, in their order, and whether they were sent.
    fn after(mut self, rows: &[(i64, bool)]) -> Self {
        for (rowid, is_sent) in rows {
            if !is_sent {
                self.failed_after.get_or_insert(self.reached);
            }
            self.reached = *rowid;
        }
        self
    }

    /// What sync point 2 may be.
    fn point(self) -> i64 {
        self.failed_after.unwrap_or(self.reached)
    }
}

/// What a database says of being synced.
struct Found {
    info: ContainerInfo,
    is_deleted: bool,
    is_versioned: bool,
    sync_to: Option<String>,
    user_key: Option<String>,
}

impl Daemon for ContainerSync {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run_once(&self) -> BoxFuture<'_, ()> {
        self.run_pass(Mode::Once)
    }

    fn run_pass(&self, mode: Mode) -> BoxFuture<'_, ()> {
        Box::pin(self.0.clone().pass(mode))
    }

    fn interval(&self) -> Duration {
        self.0.interval
    }
}

impl Syncer {
    fn new(section: &Section, ctx: &Context, swift: InternalClient) -> Result<Self, ConfigError> {
        // It concerns how Swift's own broker works.
        section.bool("db_preallocation", false)?;
        let logger = ctx.logger.clone();
        Ok(Self {
            shared: Shared::new(ctx.clock.clone(), move |line: &str| logger.error(line)),
            store: Locations {
                devices: section.str("devices", "/srv/node").into(),
                mount_check: section.bool("mount_check", true)?,
                datadir: SYNC_DATADIR,
            },
            interval: section.secs("interval", 300.0)?,
            container_time: section.int::<u32>("container_time", 60)?.into(),
            concurrency: section.positive_int("sync_row_concurrency", 8)?,
            my_ips: whataremyips(&section.str("bind_ip", "0.0.0.0")),
            my_port: section.int("bind_port", 6201)?,
            sync_to: SyncTo::from_section(section, ctx),
            swift,
            remote: Remote::from_section(section, ctx)?,
            stats: Mutex::new(Stats { since: ctx.clock.unix_secs(), ..Stats::default() }),
            ctx: ctx.clone(),
        })
    }

    async fn pass(self: Arc<Self>, mode: Mode) {
        if mode == Mode::Once {
            self.ctx.logger.info("Begin container sync \"once\" mode");
        }
        let begin = Instant::now();
        match self.store.devices(&self.ctx).await {
            Ok(devices) => {
                for device in devices {
                    self.pass_device(&device, mode).await;
                }
            }
            Err(error) => {
                let devices = self.store.devices.display();
                self.ctx.logger.error(format_args!("ERROR listing {devices}: {error}"));
            }
        }
        self.shared.connections.close_all();
        if mode == Mode::Once {
            self.report();
            let elapsed = begin.elapsed().as_secs_f64();
            self.ctx.logger.info(format_args!("Container sync \"once\" mode completed: {elapsed:.2}s"));
        }
    }

    async fn pass_device(self: &Arc<Self>, device: &str, mode: Mode) {
        let path = self.store.devices.join(device);
        let progress = self.ctx.progress(NAME);
        progress.note(device);
        for partition in self.store.partitions(&self.ctx, device).await {
            let links = self.ctx.disk_pools.run(device, move || database_files(&partition)).await;
            for file in links.iter().filter_map(|link| sync_store::database_of(&path, link)) {
                if mode == Mode::Forever {
                    self.stats.lock().container = ContainerStats::default();
                }
                self.container_sync(device, file).await;
                progress.inc(1);
                if self.ctx.clock.unix_secs() - self.stats.lock().since >= REPORT_INTERVAL {
                    self.report();
                }
            }
        }
    }

    async fn container_sync(self: &Arc<Self>, device: &str, file: PathBuf) {
        let name = file.display().to_string();
        let synced = match self.find_job(device, file).await {
            Ok(Some(job)) => self.sync_rows(&job).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = synced {
            self.count_failure();
            self.ctx.logger.error(format_args!("ERROR Syncing {name}: {error}"));
        }
    }

    /// What is to be done for the container of a database, unless that is nothing.
    async fn find_job(self: &Arc<Self>, device: &str, file: PathBuf) -> Result<Option<Job>, String> {
        let Found { info, is_deleted, is_versioned, sync_to, user_key } =
            self.on_disk(device, &file, read).await?;
        let ring = self.ctx.rings.container().map_err(|error| error.to_string())?;
        let hash_conf = &self.ctx.swift_conf.hash;
        let (_, nodes) = ring.get_nodes(hash_conf, &info.account, Some(&info.container), None);
        let is_here =
            |node: &ring::Node| is_local_device(&self.my_ips, Some(self.my_port), &node.ip, node.port);
        let Some(ordinal) = nodes.iter().position(is_here) else { return Ok(None) };
        if is_versioned {
            self.count_skip();
            self.ctx.logger.warning(format_args!(
                "Skipping container {}/{} with object versioning configured",
                info.account, info.container
            ));
            return Ok(None);
        }
        if is_deleted {
            return Ok(None);
        }
        let (Some(sync_to), Some(user_key)) = (sync_to, user_key) else {
            self.count_skip();
            return Ok(None);
        };
        let target = match self.sync_to.target(&sync_to) {
            Ok(Some(target)) => target,
            // Nothing but slashes.
            Ok(None) => {
                self.count_skip();
                return Ok(None);
            }
            Err(refused) => {
                self.ctx.logger.info(format_args!("ERROR {}: {refused}", file.display()));
                self.count_failure();
                return Ok(None);
            }
        };
        let share = Share { ordinal, nodes: nodes.len() };
        Ok(Some(Job { device: device.to_owned(), file, info, sync_to, target, user_key, share }))
    }

    async fn sync_rows(self: &Arc<Self>, job: &Job) -> Result<(), String> {
        let start_at = self.ctx.clock.unix_secs();
        let stop_at = start_at + self.container_time;
        let (mut end_at, mut point1) = (start_at, job.info.x_container_sync_point1);
        let mut resent = Resent { reached: job.info.x_container_sync_point2, failed_after: None };
        let mut synced = self.resend(job, point1, &mut resent, stop_at).await;
        if synced.is_ok() {
            end_at = self.ctx.clock.unix_secs();
            synced = self.send_share(job, &mut point1, &mut end_at, stop_at).await;
        }
        if synced.is_ok() {
            self.stats.lock().syncs += 1;
            self.ctx.statsd.increment("syncs");
        }
        let max_row = self.on_disk(&job.device, &job.file, |broker| broker.db.max_row()).await?;
        let ContainerStats { puts, deletes, bytes } = self.stats.lock().container.clone();
        self.ctx.logger.info(format_args!(
            "Container sync report: {}/{}, time window start: {start_at:?}, time window end: {end_at:?}, puts: {puts}, \
             posts: 0, deletes: {deletes}, bytes: {bytes}, sync_point1: {point1}, sync_point2: {}, total_rows: {max_row}",
            job.info.account,
            job.info.container,
            resent.point()
        ));
        synced
    }

    /// Sends all rows up to `point1`.
    async fn resend(
        self: &Arc<Self>,
        job: &Job,
        point1: i64,
        resent: &mut Resent,
        stop_at: f64,
    ) -> Result<(), String> {
        while self.ctx.clock.unix_secs() < stop_at && resent.reached < point1 {
            let mut rows = self.rows_since(job, resent.reached).await?;
            rows.retain(|(rowid, _)| *rowid <= point1);
            if rows.is_empty() {
                break;
            }
            *resent = resent.after(&self.sync_batch(job, rows, None, stop_at).await);
            self.store_points(job, None, Some(resent.point())).await?;
        }
        Ok(())
    }

    /// Sends the node's share of the rows after `point1`.
    async fn send_share(
        self: &Arc<Self>,
        job: &Job,
        point1: &mut i64,
        end_at: &mut f64,
        stop_at: f64,
    ) -> Result<(), String> {
        while *end_at < stop_at {
            let rows = self.rows_since(job, *point1).await?;
            if rows.is_empty() {
                break;
            }
            let tried = self.sync_batch(job, rows, Some(job.share), stop_at).await;
            *end_at = self.ctx.clock.unix_secs();
            let Some((last, _)) = tried.last() else { break };
            *point1 = *last;
            self.store_points(job, Some(*point1), None).await?;
        }
        Ok(())
    }

    /// Which of the rows were sent, as far as the time reached; those of others' shares count as sent.
    async fn sync_batch(
        &self,
        job: &Job,
        rows: Vec<(i64, ObjectRecord)>,
        share: Option<Share>,
        stop_at: f64,
    ) -> Vec<(i64, bool)> {
        let ContainerInfo { account, container, .. } = &job.info;
        let hash = |name: &str| self.ctx.swift_conf.hash.hash_path(account, Some(container), Some(name)).0;
        futures_util::stream::iter(rows)
            .take_while(|_| std::future::ready(self.ctx.clock.unix_secs() < stop_at))
            .map(|(rowid, row)| async move {
                let is_ours = share.is_none_or(|share| share.has(hash(&row.name)));
                (rowid, !is_ours || self.sync_row(job, rowid, &row).await)
            })
            .buffered(self.concurrency)
            .collect()
            .await
    }

    async fn rows_since(self: &Arc<Self>, job: &Job, start: i64) -> Result<Vec<(i64, ObjectRecord)>, String> {
        self.on_disk(&job.device, &job.file, move |broker| broker.rows_since(start, BATCH)).await
    }

    /// Not if the container has got another target meanwhile, for which its rows begin anew.
    async fn store_points(
        self: &Arc<Self>,
        job: &Job,
        point1: Option<i64>,
        point2: Option<i64>,
    ) -> Result<(), String> {
        let sync_to = job.sync_to.clone();
        let store = move |broker: &mut ContainerBroker| {
            let is_same = broker.db.metadata()?.value(SYNC_TO) == Some(&sync_to);
            if is_same {
                broker.set_x_container_sync_points(point1, point2)?;
            }
            Ok(is_same)
        };
        match self.on_disk(&job.device, &job.file, store).await? {
            true => Ok(()),
            false => Err(format!("{SYNC_TO} is not {} any more", job.sync_to)),
        }
    }

    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        device: &str,
        file: &Path,
        what: impl FnOnce(&mut ContainerBroker) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, String> {
        let (shared, file) = (self.shared.clone(), file.to_owned());
        let run = move || what(&mut ContainerBroker::new(&shared, &file, Options::default()));
        self.ctx.disk_pools.run(device, run).await.map_err(|error| error.to_string())
    }

    fn report(&self) {
        let now = self.ctx.clock.unix_secs();
        let mut stats = self.stats.lock();
        let container = stats.container.clone();
        let told = std::mem::replace(&mut *stats, Stats { since: now, container, ..Stats::default() });
        drop(stats);
        self.ctx.logger.info(format_args!(
            "Since {}: {} synced [{} deletes, {} puts], {} skipped, {} failed",
            http_date(told.since as u64),
            told.syncs,
            told.deletes,
            told.puts,
            told.skips,
            told.failures
        ));
    }

    fn count_skip(&self) {
        self.stats.lock().skips += 1;
        self.ctx.statsd.increment("skips");
    }

    fn count_failure(&self) {
        self.stats.lock().failures += 1;
        self.ctx.statsd.increment("failures");
    }
}

/// A link whose database is gone goes too.
fn read(broker: &mut ContainerBroker) -> Result<Found, BrokerError> {
    let info = match broker.info() {
        Err(error @ BrokerError::NotExist(_)) => {
            sync_store::remove(broker)?;
            return Err(error);
        }
        other => other?,
    };
    let metadata = broker.db.metadata()?;
    let value = |name| metadata.value(name).map(str::to_owned);
    Ok(Found {
        is_versioned: metadata.value(VERSIONS_CONTAINER).is_some(),
        sync_to: value(SYNC_TO),
        user_key: value(SYNC_KEY),
        is_deleted: info.is_deleted(),
        info,
    })
}

/// The pipeline that the objects come through: of the file that is named, or is there, or Swift's default one.
fn load_internal_client(
    section: &Section,
    ctx: &Context,
    registry: &Registry,
) -> Result<InternalClient, ConfigError> {
    let options = internal_client::Options {
        user_agent: USER_AGENT.to_owned(),
        request_tries: section.positive_int("request_tries", 3)?,
        use_replication_network: true,
        log_name: format!("{}-ic", section.str("log_name", NAME)),
    };
    let path = section.str("internal_client_conf_path", "");
    if !path.is_empty() {
        return InternalClient::load(Path::new(&path), options, registry, &ctx.process);
    }
    let path = ctx.swift_dir().join("internal-client.conf");
    if path.exists() {
        ctx.logger.warning(format_args!(
            "Configuration option internal_client_conf_path not set, but {} exists and will be used.",
            path.display()
        ));
        return InternalClient::load(&path, options, registry, &ctx.process);
    }
    ctx.logger.warning(
        "Configuration option internal_client_conf_path not defined. In a future release, this will be an error. Using \
         default configuration, See internal-client.conf-sample for options",
    );
    let text = default_pipeline(ctx.swift_dir());
    InternalClient::from_paste(Paste::parse(&text, NAME, "main")?, options, registry, &ctx.process)
}

/// Swift's default pipeline, with rings from the daemon's own `swift_dir`.
fn default_pipeline(swift_dir: &Path) -> String {
    let mut text = format!(
        "[DEFAULT]\nswift_dir = {}\n[pipeline:main]\npipeline = catch_errors proxy-logging cache symlink proxy-server\n\
         [app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n",
        swift_dir.display()
    );
    for (name, egg) in [
        ("catch_errors", "catch_errors"),
        ("proxy-logging", "proxy_logging"),
        ("cache", "memcache"),
        ("symlink", "symlink"),
    ] {
        text += &format!("[filter:{name}]\nuse = egg:swift#{egg}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct.unpack_from('>I', hash_path(..., raw_digest=True))[0] % len(nodes)`
    #[test]
    fn each_row_is_in_one_share() {
        let hash = [0, 0, 1, 2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        let has: Vec<bool> = (0..5).map(|ordinal| Share { ordinal, nodes: 5 }.has(hash)).collect();
        assert_eq!(has, [false, false, false, true, false]);
        assert!(Share { ordinal: 0, nodes: 1 }.has(hash));
    }

    #[test]
    fn the_point_stays_before_the_first_row_that_failed() {
        let start = Resent { reached: -1, failed_after: None };
        assert_eq!((start.point(), start.after(&[(1, true), (4, true)]).point()), (-1, 4));
        let failed = start.after(&[(1, true), (4, false), (5, true), (6, false)]);
        assert_eq!((failed.point(), failed.reached), (1, 6));
        assert_eq!(failed.after(&[(7, true)]).point(), 1);
        assert_eq!(start.after(&[(1, false)]).after(&[(2, false)]).point(), -1);
    }

    #[test]
    fn the_default_pipeline_can_be_read() {
        let paste = Paste::parse(&default_pipeline(Path::new("/d")), NAME, "main").unwrap();
        assert_eq!((paste.filters.len(), paste.app.section.get("swift_dir")), (4, Some("/d")));
    }
}
