//! The filter `backend_ratelimit`: so many requests a second for each device of a storage server.
//!
//! A request passes if its device has not had `requests_per_device_per_second` of any method, and not
//! `METHOD_requests_per_device_per_second` of its own; otherwise it is 529, which makes a proxy go to another node. A rate
//! of 0 is no limit. What was not used of a rate can be made up for by a burst of `requests_per_device_rate_buffer`
//! seconds.
//!
//! The options stand in the filter's section, and above them those of `[backend_ratelimit]` in the file
//! `backend_ratelimit_conf_path` (`backend-ratelimit.conf` beside swift.conf), which is read anew every
//! `config_reload_interval` seconds, by the first request after that. A file that cannot be read changes nothing.
//!
//! Swift's rates are those of each worker process. We have one, whose threads are Swift's workers: it lets through as much
//! as all of Swift's would.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::config::{Conf, ConfigError, Section};
use parking_lot::Mutex;

use crate::context::Context;
use crate::http::{App, BoxFuture, Method, Request, Response, SharedApp};

const SECTION: &str = "backend_ratelimit";
const FILE: &str = "backend-ratelimit.conf";
const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "DELETE", "UPDATE", "REPLICATE"];
/// Stands for all methods of a device together.
const ANY: usize = METHODS.len();
const RATE: &str = "requests_per_device_per_second";
const BUFFER: &str = "requests_per_device_rate_buffer";
/// Names of devices that are remembered: more than a node has disks.
const MAX_DEVICES: usize = 4096;

pub fn filter(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let path = section.get("backend_ratelimit_conf_path").map(PathBuf::from);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = section.auto_int("workers")?.unwrap_or(cores).max(1);
    let limits = Limits::read(section, None)?;
    let filter = BackendRateLimit {
        app,
        is_limited: AtomicBool::new(limits.is_any()),
        conf_path: path.clone().unwrap_or_else(|| ctx.swift_dir().join(FILE)),
        reload_interval: section.non_negative_float("config_reload_interval", 60.0)?,
        section: section.clone(),
        state: Mutex::new(State {
            limits,
            workers: workers as f64,
            devices: HashMap::new(),
            is_file_expected: path.is_some(),
            next_reload: 0.0,
        }),
        ctx: ctx.clone(),
    };
    filter.apply(load(&filter.conf_path));
    filter.set_next_reload();
    Ok(Arc::new(filter))
}

struct BackendRateLimit {
    app: SharedApp,
    section: Section,
    conf_path: PathBuf,
    /// Seconds; 0 for never.
    reload_interval: f64,
    is_limited: AtomicBool,
    state: Mutex<State>,
    ctx: Context,
}

struct State {
    limits: Limits,
    workers: f64,
    devices: HashMap<String, [f64; METHODS.len() + 1]>,
    is_file_expected: bool,
    next_reload: f64,
}

/// Requests a second of each method and of [`ANY`], and for how many seconds they may be made up for.
#[derive(Clone, Debug, PartialEq)]
struct Limits {
    rates: [f64; METHODS.len() + 1],
    buffer: f64,
}

impl Limits {
    /// As `file` says, else `section`.
    fn read(section: &Section, file: Option<&Section>) -> Result<Self, ConfigError> {
        let number = |name: &str, default: f64| {
            let own = section.non_negative_float(name, default)?;
            file.map_or(Ok(own), |file| file.non_negative_float(name, own))
        };
        let mut rates = [0.0; METHODS.len() + 1];
        for (method, rate) in METHODS.iter().zip(&mut rates) {
            *rate = number(&format!("{}_{RATE}", method.to_lowercase()), 0.0)?;
        }
        rates[ANY] = number(RATE, 0.0)?;
        Ok(Self { rates, buffer: number(BUFFER, 1.0)? })
    }

    fn is_any(&self) -> bool {
        self.rates.iter().any(|rate| *rate > 0.0)
    }
}

impl State {
    /// Whether a request may pass at `now`, in seconds; counts it if so. The device's limit is asked first, and counts the
    /// request even if its method's then refuses it, as in Swift.
    fn is_allowed(&mut self, device: &str, method: usize, now: f64) -> bool {
        if !self.devices.contains_key(device) {
            if self.devices.len() >= MAX_DEVICES {
                self.devices.clear();
            }
            // Without a burst at the beginning.
            self.devices.insert(device.to_owned(), [now; METHODS.len() + 1]);
        }
        let Some(next) = self.devices.get_mut(device) else { return true };
        let Limits { rates, buffer } = &self.limits;
        [ANY, method].into_iter().all(|which| {
            let rate = rates[which] * self.workers;
            rate <= 0.0 || pass(&mut next[which], rate, *buffer, now)
        })
    }
}

/// `next` is when the next one may pass.
fn pass(next: &mut f64, rate: f64, buffer: f64, now: f64) -> bool {
    *next = next.max(now - buffer);
    let passes = now >= *next;
    if passes {
        *next += 1.0 / rate;
    }
    passes
}

impl App for BackendRateLimit {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            if self.is_reload_due() {
                let path = self.conf_path.clone();
                let read = self.ctx.disk_pools.run("backend_ratelimit", move || load(&path)).await;
                self.apply(read);
            }
            if self.is_limited.load(Ordering::Relaxed) && !self.is_allowed(&req) {
                self.ctx.statsd.increment("backend.ratelimit");
                return Response::error(529);
            }
            self.app.call(req).await
        })
    }
}

impl BackendRateLimit {
    fn is_allowed(&self, req: &Request) -> bool {
        let Some(method) = method_index(&req.method) else { return true };
        let Some(device) = device_of(&req.path) else { return true };
        self.state.lock().is_allowed(device, method, self.ctx.clock.unix_secs())
    }

    /// True once for each interval.
    fn is_reload_due(&self) -> bool {
        if self.reload_interval == 0.0 {
            return false;
        }
        let mut state = self.state.lock();
        let now = self.ctx.clock.unix_secs();
        let is_due = now >= state.next_reload;
        if is_due {
            state.next_reload = now + self.reload_interval;
        }
        is_due
    }

    fn set_next_reload(&self) {
        self.state.lock().next_reload = self.ctx.clock.unix_secs() + self.reload_interval;
    }

    /// Takes over what the file says. What it no longer says is again as the section says.
    fn apply(&self, read: Result<Section, Unusable>) {
        let (logger, path) = (&self.ctx.logger, self.conf_path.display());
        let read = read.and_then(|file| {
            let limits = Limits::read(&self.section, Some(&file)).map_err(Unusable::Invalid)?;
            Ok((limits, file.warnings()))
        });
        let mut state = self.state.lock();
        match read {
            Ok((limits, warnings)) => {
                if limits != state.limits {
                    self.is_limited.store(limits.is_any(), Ordering::Relaxed);
                    state.limits = limits;
                    warnings.into_iter().for_each(|warning| logger.warning(warning));
                    logger.info(format_args!("Loaded config file {path}, config changed"));
                } else if !state.is_file_expected {
                    logger.info(format_args!("Loaded new config file {path}, config unchanged"));
                } else {
                    logger.debug(format_args!("Loaded existing config file {path}, config unchanged"));
                }
                state.is_file_expected = true;
            }
            Err(Unusable::Invalid(err)) => {
                logger.warning(format_args!("Invalid config file {path}, config unchanged: {err}"));
            }
            Err(Unusable::Unreadable(err)) => {
                if state.is_file_expected {
                    logger.warning(format_args!("Failed to load config file, config unchanged: {err}"));
                }
                state.is_file_expected = false;
            }
        }
    }
}

/// Why a file has nothing to say.
enum Unusable {
    Unreadable(ConfigError),
    Invalid(ConfigError),
}

fn load(path: &Path) -> Result<Section, Unusable> {
    let unusable = match std::fs::metadata(path) {
        Ok(_) => Unusable::Invalid,
        Err(_) => Unusable::Unreadable,
    };
    Conf::load(path).and_then(|conf| conf.require(SECTION)).map_err(unusable)
}

fn method_index(method: &Method) -> Option<usize> {
    METHODS.iter().position(|name| *name == method.as_str())
}

/// The device of a path `/DEVICE/PARTITION...` whose partition is a number.
fn device_of(path: &str) -> Option<&str> {
    let mut parts = path.strip_prefix('/')?.splitn(3, '/');
    let (device, partition) = (parts.next()?, parts.next()?);
    let is_device = !matches!(device, "" | "." | "..");
    common::config::parse_int::<i64>(partition).filter(|_| is_device).map(|_| device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::app_fn;
    use crate::logs::{Level, Lines, Logger};
    use common::Timestamp;
    use common::clock::Clock;
    use std::time::Duration;

    struct Fixture {
        app: SharedApp,
        clock: Clock,
        lines: Lines,
        file: PathBuf,
        _dir: tempfile::TempDir,
    }

    fn fixture(options: &[(&str, &str)], file: Option<&str>) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let (logger, lines) = Logger::memory();
        let clock = Clock::manual(Timestamp::from_secs_f64(1_000_000.0));
        let ctx = Context::builder("object-server")
            .logger(logger)
            .clock(clock.clone())
            .swift_dir(dir.path())
            .build();
        let pairs = options.iter().copied().chain([("workers", "0")]);
        let section = Section::from_pairs("filter:backend_ratelimit", pairs);
        let app = filter(&section, &ctx, app_fn(|_| async { Response::new(200) })).unwrap();
        Fixture { app, clock, lines, file: path, _dir: dir }
    }

    impl Fixture {
        async fn ask(&self, method: Method, path: &str) -> u16 {
            self.app.call(Request::new(method, path)).await.status.0
        }

        /// How many of `n` GETs for a device pass.
        async fn passing(&self, n: usize, path: &str) -> usize {
            let mut passing = 0;
            for _ in 0..n {
                passing += usize::from(self.ask(Method::Get, path).await == 200);
            }
            passing
        }
    }

    #[tokio::test]
    async fn a_rate_holds_for_each_device_and_may_be_made_up_for() {
        let f = fixture(&[(RATE, "10"), (BUFFER, "2")], None);
        assert_eq!(f.passing(9, "/sda/1/a").await, 1);
        assert_eq!(f.passing(9, "/sdb/1").await, 1);
        f.clock.advance(Duration::from_millis(1050));
        assert_eq!(f.passing(30, "/sda/1/a/c/o").await, 10);
        f.clock.advance(Duration::from_secs(1000));
        assert_eq!(f.passing(50, "/sda/1").await, 21);
        for path in ["/healthcheck", "/sda", "/sda/", "/sda/x/a", "//1/a", "/../1/a", "/recon/mem"] {
            assert_eq!(f.passing(5, path).await, 5, "{path}");
        }
        assert_eq!(f.ask(Method::Ssync, "/sda/1").await, 200);
        assert_eq!(f.ask(Method::Options, "/sda/1").await, 200);
        assert_eq!(f.ask(Method::Replicate, "/sda/1").await, 529);
    }

    #[tokio::test]
    async fn a_methods_rate_holds_besides_the_devices() {
        let f = fixture(&[("put_requests_per_device_per_second", "0.1")], None);
        assert_eq!(f.ask(Method::Put, "/sda/1/a/c/o").await, 200);
        assert_eq!(f.ask(Method::Put, "/sda/1/a/c/o").await, 529);
        assert_eq!(f.passing(50, "/sda/1/a/c/o").await, 50);
    }

    #[tokio::test]
    async fn a_file_is_read_anew_and_stands_above_the_section() {
        let text = |rate: &str| format!("[backend_ratelimit]\nput_{RATE} = {rate}\n");
        let f = fixture(&[(RATE, "100"), ("config_reload_interval", "10")], Some(&text("0.001")));
        assert_eq!(f.ask(Method::Put, "/sda/1").await, 200);
        f.clock.advance(Duration::from_secs(1));
        assert_eq!(f.ask(Method::Put, "/sda/1").await, 529);
        std::fs::write(&f.file, "[backend_ratelimit]\nput_requests_per_device = 1\n").unwrap();
        f.clock.advance(Duration::from_secs(8));
        assert_eq!(f.ask(Method::Put, "/sda/1").await, 529);
        f.clock.advance(Duration::from_secs(1));
        assert_eq!(f.ask(Method::Put, "/sda/1").await, 200);
        assert!(f.lines.at_least(Level::Warning)[0].contains("unknown option"));
        // What cannot be read, or says nonsense, changes nothing.
        for text in [text("x"), text("-1"), "[other]\n".to_owned()] {
            std::fs::write(&f.file, text).unwrap();
            f.clock.advance(Duration::from_secs(10));
            assert_eq!(f.ask(Method::Put, "/sda/1").await, 200);
            assert!(f.lines.at_least(Level::Warning).last().unwrap().contains("Invalid config file"));
        }
        std::fs::remove_file(&f.file).unwrap();
        for _ in 0..2 {
            f.clock.advance(Duration::from_secs(10));
            assert_eq!(f.ask(Method::Put, "/sda/1").await, 200);
        }
        let lines = f.lines.at_least(Level::Warning);
        assert_eq!(lines.iter().filter(|line| line.contains("Failed to load config file")).count(), 1);
    }

    #[test]
    fn a_bad_option_of_the_section_is_an_error() {
        let ctx = Context::builder("object-server").build();
        let section = Section::from_pairs("filter:backend_ratelimit", [(RATE, "-1")]);
        assert!(filter(&section, &ctx, app_fn(|_| async { Response::new(200) })).is_err());
    }
}
