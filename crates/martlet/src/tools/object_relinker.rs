//! `swift-object-relinker relink|cleanup [CONF] [options]`: the command line of `obj::relinker`.
//!
//! With a file, its section `[object-relinker]` says what the command line does not, and lines go where it says; without
//! one they go to stderr, or to `--logfile`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use common::clock::Clock;
use common::config::{Conf, ConfigError, Section, parse_float};
use common::headers::is_true_value;
use common::{PolicyIndex, SwiftConf};
use obj::diskfile::DiskFileConf;
use obj::relinker::{self, RelinkerConf, Step};
use parking_lot::Mutex;
use service::context::DEFAULT_RECON_CACHE_PATH;
use service::logs::{Level, Logger, Sink, Stderr};
use service::{daemonize, signals};

use super::{Output, SWIFT_DIR};

const NAME: &str = "object-relinker";
const DEFAULT_STATS_INTERVAL: f64 = 300.0;

#[derive(Debug, Parser)]
#[command(
    about = "Links objects into the partitions of a greater part power, and removes them from the old ones"
)]
#[command(infer_long_args = true)]
struct Asked {
    #[arg(value_enum)]
    action: Action,
    /// A file with a section [object-relinker]
    conf_file: Option<PathBuf>,
    /// Where swift.conf and the rings are
    #[arg(long)]
    swift_dir: Option<PathBuf>,
    /// A policy by name or index; may be given again (default: all)
    #[arg(long = "policy", value_name = "POLICY")]
    policies: Vec<String>,
    /// Where the devices are mounted
    #[arg(long)]
    devices: Option<PathBuf>,
    /// Who to become before anything is done
    #[arg(long)]
    user: Option<String>,
    /// A device; may be given again (default: all)
    #[arg(long = "device", value_name = "DEVICE")]
    device_list: Vec<String>,
    /// A partition; may be given again (default: all)
    #[arg(long = "partition", short = 'p', value_name = "PARTITION")]
    partitions: Vec<u32>,
    /// Do not look whether devices are mounted
    #[arg(long)]
    skip_mount_check: bool,
    /// A limit of hash dirs a second; 0 for none
    #[arg(long, value_parser = non_negative)]
    files_per_second: Option<f64>,
    /// Seconds between two writes of recon's figures (default: 300)
    #[arg(long, value_parser = non_negative)]
    stats_interval: Option<f64>,
    /// How many devices to work on at a time, or auto (default: all)
    #[arg(long, value_parser = Workers::parse)]
    workers: Option<Workers>,
    /// Where lines go without a conf_file (default: stderr)
    #[arg(long)]
    logfile: Option<PathBuf>,
    /// More lines
    #[arg(long)]
    debug: bool,
    /// Where another file already has the name in the new partition: relink moves it to quarantine, cleanup keeps it and
    /// removes the old one
    #[arg(long)]
    clobber_hardlink_collisions: bool,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    Relink,
    Cleanup,
}

/// `None` for auto.
#[derive(Copy, Clone, Debug)]
struct Workers(Option<usize>);

impl Workers {
    fn parse(text: &str) -> Result<Workers, String> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Workers(None));
        }
        text.trim()
            .parse()
            .map(|count| Workers(Some(count)))
            .map_err(|_| "expected a number or auto".to_owned())
    }
}

fn non_negative(text: &str) -> Result<f64, String> {
    parse_float(text).filter(|value| *value >= 0.0).ok_or_else(|| "expected a number, 0 or more".to_owned())
}

pub(super) fn run(prog: &str, words: &[String]) -> Output {
    let words = [prog.to_owned()].into_iter().chain(words.iter().cloned());
    let asked = match Asked::try_parse_from(words) {
        Ok(asked) => asked,
        Err(err) if err.use_stderr() => {
            return Output { code: 2, stdout: Vec::new(), stderr: err.to_string() };
        }
        Err(err) => return Output { code: 0, stdout: err.to_string().into_bytes(), stderr: String::new() },
    };
    match asked.work() {
        Ok(code) => Output { code, ..Output::default() },
        Err(Refusal::Usage(problem)) => {
            Output { code: 2, stdout: Vec::new(), stderr: format!("{prog}: error: {problem}\n") }
        }
        Err(Refusal::Failed(problem)) => Output::default().fail(problem),
    }
}

enum Refusal {
    Usage(String),
    Failed(String),
}

impl From<ConfigError> for Refusal {
    fn from(err: ConfigError) -> Self {
        Refusal::Failed(err.to_string())
    }
}

impl Asked {
    /// The exit code.
    fn work(&self) -> Result<u8, Refusal> {
        let section = match &self.conf_file {
            Some(file) => Conf::load(file)?.require(NAME)?,
            None => Section::from_pairs(NAME, []),
        };
        self.become_user(&section)?;
        let logger = self.logger(&section)?;
        let conf = self.conf(&section, &logger)?;
        for warning in section.warnings() {
            logger.warning(warning);
        }
        let step = match self.action {
            Action::Relink => Step::Relink,
            Action::Cleanup => Step::Cleanup,
        };
        let code = relinker::run(step, &conf, &logger);
        logger.flush();
        Ok(code)
    }

    fn become_user(&self, section: &Section) -> Result<(), Refusal> {
        let Some(user) = self.user.as_deref().or(section.get("user")).filter(|user| !user.is_empty()) else {
            return Ok(());
        };
        match signals::user_to_become(&Section::from_pairs(NAME, [("user", user)]))? {
            Some(user) => Err(Refusal::Failed(daemonize::exec_as(&user).to_string())),
            None => Ok(()),
        }
    }

    fn logger(&self, section: &Section) -> Result<Logger, Refusal> {
        let level = if self.debug { Level::Debug } else { Level::Info };
        match (&self.conf_file, &self.logfile) {
            (Some(_), _) if self.debug => {
                let options =
                    section.iter().filter(|(name, _)| name.starts_with("log_") && *name != "log_level");
                let options: Vec<_> = options.chain([("log_level", "DEBUG")]).collect();
                Ok(Logger::from_section(&Section::from_pairs(NAME, options), NAME, false)?)
            }
            (Some(_), _) => Ok(Logger::from_section(section, NAME, false)?),
            (None, Some(path)) => {
                let file = File::options().append(true).create(true).open(path);
                let file = file.map_err(|err| Refusal::Failed(format!("{}: {err}", path.display())))?;
                Ok(Logger::to_sink(NAME, level, Arc::new(Bare(Mutex::new(file)))))
            }
            (None, None) => Ok(Logger::to_sink(NAME, level, Arc::new(BareStderr))),
        }
    }

    fn conf(&self, section: &Section, logger: &Logger) -> Result<RelinkerConf, Refusal> {
        let swift_dir = self.swift_dir.clone().unwrap_or_else(|| section.str("swift_dir", SWIFT_DIR).into());
        let swift_conf = SwiftConf::load(&swift_dir)?;
        let mut diskfile = DiskFileConf::from_section(section, logger)?;
        if let Some(devices) = &self.devices {
            diskfile.devices = devices.clone();
        }
        diskfile.mount_check &= !self.skip_mount_check;
        // As in Swift, 0 on the command line says nothing.
        let stats_interval = self.stats_interval.filter(|secs| *secs > 0.0);
        let stats_interval = match stats_interval {
            Some(secs) => secs,
            None => section.non_negative_float("stats_interval", DEFAULT_STATS_INTERVAL)?,
        };
        let files_per_second = match self.files_per_second {
            Some(rate) => rate,
            None => section.non_negative_float("files_per_second", 0.0)?,
        };
        let workers = match self.workers {
            Some(Workers(workers)) => workers,
            None => section.auto_int("workers")?,
        };
        let clobber = section.get("clobber_hardlink_collisions").is_some_and(is_true_value);
        Ok(RelinkerConf {
            policies: policies(&self.policies, &swift_conf)?,
            swift_conf,
            diskfile,
            devices: self.device_list.clone(),
            partitions: self.partitions.clone(),
            files_per_second,
            workers,
            recon_cache_path: section.str("recon_cache_path", DEFAULT_RECON_CACHE_PATH).into(),
            stats_interval: Duration::from_secs_f64(stats_interval.min(1e9)),
            clobber_hardlink_collisions: self.clobber_hardlink_collisions || clobber,
            clock: Clock::system(),
        })
    }
}

fn policies(asked: &[String], conf: &SwiftConf) -> Result<Vec<PolicyIndex>, Refusal> {
    let find = |asked: &String| {
        let by_index = || asked.trim().parse().ok().and_then(|index| conf.policies.get(PolicyIndex(index)));
        let found = conf.policies.by_name(asked).or_else(by_index);
        found
            .map(|policy| policy.index)
            .ok_or_else(|| Refusal::Usage(format!("argument --policy: invalid policy value: '{asked}'")))
    };
    if asked.is_empty() {
        return Ok(conf.policies.iter().map(|policy| policy.index).collect());
    }
    asked.iter().map(find).collect()
}

/// Lines without the program's name.
struct Bare(Mutex<File>);

impl Sink for Bare {
    fn line(&self, _level: Level, line: &str) {
        // A full disk costs lines, not links.
        let _ = writeln!(self.0.lock(), "{}", bare(line));
    }
}

struct BareStderr;

impl Sink for BareStderr {
    fn line(&self, level: Level, line: &str) {
        Stderr.line(level, bare(line));
    }
}

fn bare(line: &str) -> &str {
    line.strip_prefix(NAME).and_then(|line| line.strip_prefix(": ")).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn asked(line: &str) -> Result<Asked, clap::Error> {
        Asked::try_parse_from([NAME].into_iter().chain(line.split_whitespace()))
    }

    #[test]
    fn options_stand_anywhere_and_may_be_shortened() {
        let asked = asked("--skip relink -p 3 --part 5 --dev=sda1 --device sdb1 /etc/x.conf --workers auto")
            .unwrap_err();
        // --dev is --device or --devices.
        assert_eq!(asked.exit_code(), 2);
        let asked =
            super::tests::asked("--skip relink -p 3 --part 5 --device sdb1 /etc/x.conf --workers 2").unwrap();
        assert_eq!((asked.action, asked.partitions), (Action::Relink, vec![3, 5]));
        assert_eq!(
            (asked.device_list, asked.conf_file),
            (vec!["sdb1".to_owned()], Some("/etc/x.conf".into()))
        );
        assert!(asked.skip_mount_check && asked.workers.is_some_and(|Workers(count)| count == Some(2)));
    }

    #[test]
    fn what_is_no_option_ends_with_two() {
        for line in
            ["", "undo", "relink --workers few", "relink --partition -1", "relink --files-per-second -1"]
        {
            assert_eq!(asked(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn policies_are_found_by_name_and_by_index() {
        let text = b"[swift-hash]\nswift_hash_path_suffix = s\n[storage-policy:0]\nname = gold\n\
                     default = yes\n[storage-policy:3]\nname = silver\n";
        let conf = SwiftConf::parse(text, "swift.conf", Path::new("/")).unwrap();
        let find = |name: &str| policies(&[name.to_owned()], &conf).ok();
        assert_eq!(find("Silver"), Some(vec![PolicyIndex(3)]));
        assert_eq!(find("0"), Some(vec![PolicyIndex(0)]));
        assert_eq!((find("1"), find("bronze")), (None, None));
        assert_eq!(policies(&[], &conf).ok().map(|all| all.len()), Some(2));
    }
}
