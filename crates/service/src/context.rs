//! What every server and daemon is given: its clock, logs, metrics, rings, disk pools.
//!
//! A [`Process`] holds what the services of one process share; a [`Context`] is one service's view of it, made from
//! that service's own section of its configuration. `up` runs many services in one process: it makes a `Process` per
//! node with [`Process::for_node`], so that a node stops alone and counts alone while rings, `swift.conf` and
//! connections are shared.

use std::collections::HashMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::clock::Clock;
use common::config::{ConfigError, Section, SwiftConf};
use common::{Constraints, HashConf, Policies};
use parking_lot::{Mutex, RwLock};
use ring::Rings;

use crate::daemon::{DaemonArgs, Progress, ProgressBoard, Shutdown};
use crate::disk_pool::{self, DiskPools};
use crate::http::{Pool, SharedApp};
use crate::logs::{Logger, OpenLogs, Sink};
use crate::metrics::Metrics;
use crate::priority::Priority;
use crate::rng::Rng;
use crate::statsd::Statsd;

pub const DEFAULT_SWIFT_DIR: &str = "/etc/swift";
pub const DEFAULT_RECON_CACHE_PATH: &str = "/var/cache/swift";

/// What the services of a process share.
#[derive(Clone)]
pub struct Process {
    pub clock: Clock,
    pub rng: Rng,
    pub metrics: Metrics,
    pub progress: ProgressBoard,
    pub shutdown: Shutdown,
    /// Kept connections to other servers.
    pub pool: Pool,
    /// Which node of `up` this is; empty for a program of its own.
    pub node: String,
    pub args: DaemonArgs,
    /// What the proxy app calls itself to its backends, when it is not a proxy server's.
    pub backend_user_agent: Option<String>,
    logs: Logs,
    pub open_logs: OpenLogs,
    clusters: Arc<Mutex<HashMap<PathBuf, Cluster>>>,
}

/// Where the lines of a process go.
#[derive(Clone)]
enum Logs {
    /// As the configuration says; on stderr too with `console`.
    Configured {
        console: bool,
    },
    Sinks(Vec<Arc<dyn Sink>>),
}

#[derive(Clone)]
struct Cluster {
    swift_conf: Arc<SwiftConf>,
    rings: Arc<Rings>,
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

impl Process {
    pub fn new() -> Self {
        Process {
            clock: Clock::system(),
            rng: Rng::from_system(),
            metrics: Metrics::new(),
            progress: ProgressBoard::default(),
            shutdown: Shutdown::new(),
            pool: Pool::default(),
            node: String::new(),
            args: DaemonArgs::default(),
            backend_user_agent: None,
            logs: Logs::Configured { console: false },
            open_logs: OpenLogs::default(),
            clusters: Arc::default(),
        }
    }

    /// Logs on stderr as well as where the configuration says.
    pub fn with_console(mut self) -> Self {
        self.logs = Logs::Configured { console: true };
        self
    }

    /// Logs into `sinks` instead of where the configuration says.
    pub fn with_sinks(mut self, sinks: Vec<Arc<dyn Sink>>) -> Self {
        self.logs = Logs::Sinks(sinks);
        self
    }

    pub fn with_args(mut self, args: DaemonArgs) -> Self {
        self.args = args;
        self
    }

    /// A part of this process that counts and stops by itself.
    pub fn for_node(&self, node: &str) -> Self {
        Process { node: node.to_owned(), metrics: Metrics::new(), shutdown: Shutdown::new(), ..self.clone() }
    }

    fn cluster(&self, swift_dir: &Path) -> Result<Cluster, ConfigError> {
        let mut clusters = self.clusters.lock();
        if let Some(cluster) = clusters.get(swift_dir) {
            return Ok(cluster.clone());
        }
        let rings = Rings::with_reload(swift_dir, ring::DEFAULT_RELOAD_TIME, self.clock.clone());
        let cluster = Cluster { swift_conf: SwiftConf::load(swift_dir)?, rings: Arc::new(rings) };
        clusters.insert(swift_dir.to_owned(), cluster.clone());
        Ok(cluster)
    }

    /// A logger as `section` says, whose lines go where the process's go.
    pub fn logger(&self, section: &Section, name: &str) -> Result<Logger, ConfigError> {
        match &self.logs {
            Logs::Configured { console } => {
                let logger = Logger::from_section(section, name, *console)?;
                self.open_logs.add(&logger);
                Ok(logger)
            }
            Logs::Sinks(sinks) => Logger::with_sinks(section, name, sinks.clone()),
        }
    }
}

/// One service's surroundings. Clones are one.
#[derive(Clone)]
pub struct Context(Arc<ContextData>);

pub struct ContextData {
    /// The program's name without `swift-`: `object-server`.
    pub name: String,
    pub conf_path: PathBuf,
    pub clock: Clock,
    pub rng: Rng,
    pub logger: Logger,
    pub priority: Priority,
    pub statsd: Statsd,
    pub metrics: Metrics,
    pub swift_conf: Arc<SwiftConf>,
    pub rings: Arc<Rings>,
    pub disk_pools: DiskPools,
    pub pool: Pool,
    pub recon_cache_path: PathBuf,
    pub shutdown: Shutdown,
    pub args: DaemonArgs,
    pub process: Process,
    /// The apps of the pipeline which its filters may call from the side.
    pub pipeline: PipelineApps,
}

/// Set when the pipeline stands; filters read them while they serve.
#[derive(Default)]
pub struct PipelineApps {
    final_app: RwLock<Option<SharedApp>>,
    logging_app: RwLock<Option<SharedApp>>,
}

impl PipelineApps {
    /// The app at the end of the pipeline.
    pub fn final_app(&self) -> Option<SharedApp> {
        self.final_app.read().clone()
    }

    /// The final app below an access log of its own: where filters send backend requests of theirs.
    pub fn logging_app(&self) -> Option<SharedApp> {
        self.logging_app.read().clone().or_else(|| self.final_app())
    }

    /// Forgets the apps, which know the context that holds them.
    pub fn clear(&self) {
        self.set(None, None);
    }

    pub(crate) fn set(&self, final_app: Option<SharedApp>, logging_app: Option<SharedApp>) {
        *self.final_app.write() = final_app;
        *self.logging_app.write() = logging_app;
    }
}

/// What names in a proxy's statsd begin with, whatever its `log_name` is.
const PROXY: &str = "proxy-server";

impl Deref for Context {
    type Target = ContextData;

    fn deref(&self) -> &ContextData {
        &self.0
    }
}

impl Context {
    /// The context of service `name` as its own `section` (with DEFAULT) says.
    pub fn new(process: &Process, name: &str, section: &Section) -> Result<Context, ConfigError> {
        Self::with_statsd_prefix(process, name, section, if name == PROXY { Some(PROXY) } else { None })
    }

    /// The same for a pipeline of another service that ends in a proxy.
    pub fn of_proxy(process: &Process, name: &str, section: &Section) -> Result<Context, ConfigError> {
        Self::with_statsd_prefix(process, name, section, Some(PROXY))
    }

    /// Without a prefix the name in the log is that in statsd, too.
    fn with_statsd_prefix(
        process: &Process,
        name: &str,
        section: &Section,
        prefix: Option<&str>,
    ) -> Result<Context, ConfigError> {
        let swift_dir = PathBuf::from(section.str("swift_dir", DEFAULT_SWIFT_DIR));
        let cluster = process.cluster(&swift_dir)?;
        let threads = section.positive_int("threads_per_disk", disk_pool::DEFAULT_THREADS)?;
        let logger = process.logger(section, name)?;
        // For the process, which applies it if it is the service's own.
        let priority = Priority::of(section);
        let statsd = Statsd::from_section(section, prefix.unwrap_or(logger.name()), &process.rng)?;
        report_rings(&cluster.rings, &logger);
        Ok(Context(Arc::new(ContextData {
            name: name.to_owned(),
            conf_path: PathBuf::from(section.file()),
            clock: process.clock.clone(),
            rng: process.rng.clone(),
            statsd,
            logger,
            priority,
            metrics: process.metrics.scoped("server", name),
            swift_conf: cluster.swift_conf,
            rings: cluster.rings,
            disk_pools: DiskPools::new(threads),
            pool: process.pool.clone(),
            recon_cache_path: PathBuf::from(section.str("recon_cache_path", DEFAULT_RECON_CACHE_PATH)),
            shutdown: process.shutdown.clone(),
            args: process.args.clone(),
            process: process.clone(),
            pipeline: PipelineApps::default(),
        })))
    }

    /// A context without configuration: for tests.
    pub fn builder(name: &str) -> ContextBuilder {
        let logger = Logger::to_stderr(name);
        let swift_dir = PathBuf::from(DEFAULT_SWIFT_DIR);
        ContextBuilder {
            name: name.to_owned(),
            process: Process::new(),
            logger,
            statsd: Statsd::disabled(),
            swift_conf: None,
            swift_dir,
            disk_pools: DiskPools::inline(),
            recon_cache_path: PathBuf::from(DEFAULT_RECON_CACHE_PATH),
        }
    }

    /// The progress of the daemon `name`, as the whole process sees it.
    pub fn progress(&self, name: &str) -> Progress {
        self.process.progress.get(&self.process.node, name)
    }

    pub fn swift_dir(&self) -> &Path {
        self.rings.dir()
    }
}

/// A ring that has become unreadable is a line in the log; the one of before stays in use.
fn report_rings(rings: &Rings, logger: &Logger) {
    let logger = logger.clone();
    rings.report_to(move |err| logger.error(format_args!("{err}; the ring of before stays in use")));
}

/// Makes a [`Context`] by hand. Without more: system clock, lines on stderr, inline disk jobs, the policies of an empty
/// `swift.conf`.
pub struct ContextBuilder {
    name: String,
    process: Process,
    logger: Logger,
    statsd: Statsd,
    swift_conf: Option<Arc<SwiftConf>>,
    swift_dir: PathBuf,
    disk_pools: DiskPools,
    recon_cache_path: PathBuf,
}

impl ContextBuilder {
    pub fn clock(mut self, clock: Clock) -> Self {
        self.process.clock = clock;
        self
    }

    pub fn rng(mut self, rng: Rng) -> Self {
        self.process.rng = rng;
        self
    }

    pub fn logger(mut self, logger: Logger) -> Self {
        self.logger = logger;
        self
    }

    pub fn statsd(mut self, statsd: Statsd) -> Self {
        self.statsd = statsd;
        self
    }

    pub fn swift_conf(mut self, swift_conf: Arc<SwiftConf>) -> Self {
        self.swift_dir = swift_conf.dir.clone();
        self.swift_conf = Some(swift_conf);
        self
    }

    /// Where the rings are.
    pub fn swift_dir(mut self, swift_dir: impl Into<PathBuf>) -> Self {
        self.swift_dir = swift_dir.into();
        self
    }

    pub fn disk_pools(mut self, disk_pools: DiskPools) -> Self {
        self.disk_pools = disk_pools;
        self
    }

    pub fn recon_cache_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.recon_cache_path = path.into();
        self
    }

    pub fn args(mut self, args: DaemonArgs) -> Self {
        self.process.args = args;
        self
    }

    pub fn process(mut self, process: Process) -> Self {
        self.process = process;
        self
    }

    pub fn build(self) -> Context {
        let process = self.process;
        let swift_conf = self.swift_conf.unwrap_or_else(|| {
            Arc::new(SwiftConf {
                hash: HashConf { prefix: Vec::new(), suffix: b"endcap".to_vec() },
                policies: <Policies as Default>::default(),
                constraints: Constraints::default(),
                dir: self.swift_dir.clone(),
            })
        });
        let rings = Rings::with_reload(self.swift_dir, ring::DEFAULT_RELOAD_TIME, process.clock.clone());
        report_rings(&rings, &self.logger);
        Context(Arc::new(ContextData {
            conf_path: PathBuf::new(),
            clock: process.clock.clone(),
            rng: process.rng.clone(),
            statsd: self.statsd,
            logger: self.logger,
            priority: Priority::default(),
            metrics: process.metrics.scoped("server", &self.name),
            name: self.name,
            swift_conf,
            rings: Arc::new(rings),
            disk_pools: self.disk_pools,
            pool: process.pool.clone(),
            recon_cache_path: self.recon_cache_path,
            shutdown: process.shutdown.clone(),
            args: process.args.clone(),
            process,
            pipeline: PipelineApps::default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Level;
    use common::timestamp::Timestamp;
    use std::time::Duration;

    #[test]
    fn a_ring_that_becomes_unreadable_is_one_line_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../ring/tests/golden/saio.ring.gz");
        let path = dir.path().join("container.ring.gz");
        std::fs::copy(golden, &path).unwrap();
        let clock = Clock::manual(Timestamp::from_secs_f64(1000.0));
        let (logger, lines) = Logger::memory();
        let ctx = Context::builder("object-updater")
            .clock(clock.clone())
            .logger(logger)
            .swift_dir(dir.path())
            .build();
        let ring = ctx.rings.container().unwrap();
        std::fs::write(&path, "junk").unwrap();
        for _ in 0..3 {
            clock.advance(ring::DEFAULT_RELOAD_TIME + Duration::from_secs(1));
            assert!(Arc::ptr_eq(&ring, &ctx.rings.container().unwrap()));
        }
        let lines = lines.at_least(Level::Debug);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("container.ring.gz: not a usable ring: "), "{lines:?}");
    }
}
