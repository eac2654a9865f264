//! The file `container-sync-realms.conf`, read again when it has changed.
//!
//! Whether it has is looked at once in `mtime_check_interval` seconds, an option of the file itself. A file that cannot be
//! read leaves the realms of before in force; none at all is no realms.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::clock::Clock;
use common::config::{Conf, ConfigError};
use common::container_sync_realms::Realms;
use parking_lot::Mutex;

use crate::logs::Logger;

const FILE: &str = "container-sync-realms.conf";
const MTIME_CHECK_INTERVAL: f64 = 300.0;

pub struct RealmsConf {
    path: PathBuf,
    clock: Clock,
    logger: Logger,
    state: Mutex<State>,
}

struct State {
    realms: Arc<Realms>,
    mtime: Option<SystemTime>,
    interval: f64,
    /// Seconds since the epoch.
    next_check: f64,
}

impl RealmsConf {
    pub fn new(swift_dir: &Path, clock: Clock, logger: Logger) -> Self {
        let state = State {
            realms: Arc::default(),
            mtime: None,
            interval: MTIME_CHECK_INTERVAL,
            next_check: f64::NEG_INFINITY,
        };
        let conf = Self { path: swift_dir.join(FILE), clock, logger, state: Mutex::new(state) };
        conf.current();
        conf
    }

    /// The realms of now.
    pub fn current(&self) -> Arc<Realms> {
        let mut state = self.state.lock();
        let now = self.clock.unix_secs();
        if now >= state.next_check {
            state.next_check = now + state.interval;
            self.reload(&mut state, now);
        }
        state.realms.clone()
    }

    fn reload(&self, state: &mut State, now: f64) {
        let mtime = match std::fs::metadata(&self.path).and_then(|metadata| metadata.modified()) {
            Ok(mtime) => mtime,
            Err(error) => {
                let line = self.cannot_load(&error);
                return match error.kind() {
                    ErrorKind::NotFound => self.logger.debug(line),
                    _ => self.logger.error(line),
                };
            }
        };
        if state.mtime == Some(mtime) {
            return;
        }
        state.mtime = Some(mtime);
        let conf = match Conf::load(&self.path) {
            Ok(conf) => conf,
            Err(error) => return self.logger.error(self.cannot_load(&error)),
        };
        match interval_of(&conf) {
            Ok(interval) => {
                state.interval = interval.as_secs_f64();
                state.next_check = now + state.interval;
            }
            Err(error) => self
                .logger
                .error(format_args!("Error in '{}' with mtime_check_interval: {error}", self.path.display())),
        }
        state.realms = Arc::new(Realms::from_conf(&conf));
    }

    fn cannot_load(&self, error: &dyn std::fmt::Display) -> String {
        format!("Could not load '{}': {error}", self.path.display())
    }
}

fn interval_of(conf: &Conf) -> Result<Duration, ConfigError> {
    conf.defaults().secs("mtime_check_interval", MTIME_CHECK_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Level;
    use common::timestamp::Timestamp;

    #[test]
    fn a_changed_file_is_read_after_its_interval_and_a_broken_one_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut mtime = SystemTime::UNIX_EPOCH;
        let mut write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            mtime += Duration::from_secs(10);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(mtime).unwrap();
        };
        let clock = Clock::manual(Timestamp::from_secs_f64(1000.0));
        let (logger, lines) = Logger::memory();
        let conf = RealmsConf::new(dir.path(), clock.clone(), logger);
        let names = || conf.current().iter().map(|realm| realm.name.clone()).collect::<Vec<_>>();
        assert!(names().is_empty());
        assert!(lines.at_least(Level::Info).is_empty(), "{:?}", lines.all());
        write("[DEFAULT]\nmtime_check_interval = 5\n[a]\nkey = k\n");
        clock.advance(Duration::from_secs(299));
        assert!(names().is_empty());
        clock.advance(Duration::from_secs(2));
        assert_eq!(names(), ["A"]);
        write("[DEFAULT]\nmtime_check_interval = soon\n[a]\n[b]\n");
        clock.advance(Duration::from_secs(4));
        assert_eq!(names(), ["A"]);
        clock.advance(Duration::from_secs(2));
        assert_eq!(names(), ["A", "B"]);
        assert!(lines.contains("with mtime_check_interval: "), "{:?}", lines.all());
        write("no section");
        for _ in 0..3 {
            clock.advance(Duration::from_secs(6));
            assert_eq!(names(), ["A", "B"]);
        }
        let errors = lines.at_least(Level::Error);
        assert_eq!(errors.iter().filter(|line| line.contains("Could not load")).count(), 1, "{errors:?}");
    }
}
