//! The object-relinker: doubles the number of partitions without copying an object.
//!
//! An operator raises the part power of an object ring in steps, and runs this program on each node in two of them:
//!
//! * `relink`, when the ring has its next part power but not yet taken it: each object of the old partitions is hard
//!   linked into its new one. Object servers do the same with what they write meanwhile.
//! * `cleanup`, when the ring has taken it: links that are still missing are made, then the old ones are removed.
//!
//! Devices are spread over workers. Swift forks a process for each; ours are threads, each under its thread id in recon
//! and in the log, so that a signal to the one process ends all.
//!
//! Swift syncs nothing but its state file. Ours syncs the file system before a partition is marked as done: a loss of power
//! cannot leave one that is marked and lacks links. It also passes over a name that is no hash, where Swift's worker dies.
//! A partition is never removed but empty, a file only if the new partition has what is needed of it.

mod location;
mod state;
mod stats;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::clock::Clock;
use common::recon::{RELINKER_FILE, dump_recon};
use common::{PolicyIndex, SwiftConf};
use service::logs::Logger;

use crate::diskfile::DiskFileConf;
use worker::Worker;

pub const EXIT_SUCCESS: u8 = 0;
pub const EXIT_ERROR: u8 = 1;
pub const EXIT_NO_APPLICABLE_POLICY: u8 = 2;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Relink,
    Cleanup,
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Step::Relink => "relink",
            Step::Cleanup => "cleanup",
        }
    }
}

/// What to work on, and how.
#[derive(Clone, Debug)]
pub struct RelinkerConf {
    pub swift_conf: Arc<SwiftConf>,
    pub diskfile: DiskFileConf,
    pub policies: Vec<PolicyIndex>,
    /// Empty for all.
    pub devices: Vec<String>,
    /// Empty for all.
    pub partitions: Vec<u32>,
    /// Hash dirs, in truth; 0 for no limit.
    pub files_per_second: f64,
    /// `None` for one for each device.
    pub workers: Option<usize>,
    pub recon_cache_path: PathBuf,
    pub stats_interval: Duration,
    pub clobber_hardlink_collisions: bool,
    pub clock: Clock,
}

/// Does one step on all devices of this node; the exit code.
pub fn run(step: Step, conf: &RelinkerConf, logger: &Logger) -> u8 {
    let clock = &conf.clock;
    let step_logger = logger.with_prefix(&format!("[step={}] ", step.name()));
    let gone = ["devices", "workers"].map(|key| (key, serde_json::json!({})));
    if let Err(err) = dump_recon(&conf.recon_cache_path.join(RELINKER_FILE), &gone) {
        step_logger.error(format_args!("Exception dumping recon cache: {err}"));
    }
    let devices = match devices(conf) {
        Ok(devices) => devices,
        Err(err) => {
            step_logger.error(format_args!("Cannot list {}: {err}", conf.diskfile.devices.display()));
            return EXIT_ERROR;
        }
    };
    let workers = conf.workers.map_or(devices.len(), |workers| workers.min(devices.len()));
    let start = clock.unix_secs();
    step_logger.info(format_args!("Starting relinker using {workers} workers: {}", time_text(start as u64)));
    let (status, complaints) = if workers == 0 || devices.len() < 2 {
        (Worker::new(step, conf, &step_logger, devices, thread_id()).run(), Vec::new())
    } else {
        run_workers(step, conf, logger, distribute_evenly(devices, workers), start)
    };
    complaints.iter().for_each(|complaint| step_logger.warning(complaint));
    let now = clock.unix_secs();
    let took = timedelta(now - start);
    step_logger.info(format_args!("Finished relinker: {} ({took} elapsed)", time_text(now as u64)));
    status
}

fn devices(conf: &RelinkerConf) -> std::io::Result<Vec<String>> {
    let mut devices = conf.devices.clone();
    if devices.is_empty() {
        for entry in std::fs::read_dir(&conf.diskfile.devices)? {
            devices.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    devices.sort();
    devices.dedup();
    Ok(devices)
}

fn distribute_evenly(devices: Vec<String>, workers: usize) -> Vec<Vec<String>> {
    let mut shares = vec![Vec::new(); workers];
    for (index, device) in devices.into_iter().enumerate() {
        shares[index % workers].push(device);
    }
    shares
}

/// The status of all, and what to say of those that had trouble.
fn run_workers(
    step: Step,
    conf: &RelinkerConf,
    logger: &Logger,
    shares: Vec<Vec<String>>,
    start: f64,
) -> (u8, Vec<String>) {
    let work = |devices: Vec<String>| {
        let (id, joined) = (thread_id(), devices.join(","));
        let logger = logger.with_prefix(&format!("[step={}, pid={id}, devs={joined}] ", step.name()));
        let status = Worker::new(step, conf, &logger, devices, id).run();
        let took = conf.clock.unix_secs() - start;
        let complaint = (status == EXIT_ERROR)
            .then(|| format!("Worker (pid={id}, devs={joined}) completed in {took:.1}s with errors"));
        (status, complaint)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = shares.into_iter().map(|devices| scope.spawn(move || work(devices))).collect();
        let (mut status, mut complaints) = (EXIT_SUCCESS, Vec::new());
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|_| (EXIT_ERROR, Some("A worker panicked".to_owned())));
            status = match (status, ended.0) {
                (_, EXIT_ERROR) => EXIT_ERROR,
                (EXIT_SUCCESS, other) => other,
                (before, _) => before,
            };
            complaints.extend(ended.1);
        }
        (status, complaints)
    })
}

/// Of the same numbers as pids, so that no two processes or threads share one.
fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_pid()
}

/// `%X %x %Z` of a time, in GMT.
fn time_text(unix: u64) -> String {
    let iso = common::Timestamp::from_secs_f64(unix as f64).isoformat();
    let (date, time) = iso.split_once('T').unwrap_or_default();
    let date: Vec<&str> = date.split('-').collect();
    let [year, month, day] = date[..] else { return iso };
    let time = time.split('.').next().unwrap_or_default();
    format!("{time} {month}/{day}/{} GMT", year.get(2..).unwrap_or_default())
}

/// As Python writes a `timedelta`.
fn timedelta(secs: f64) -> String {
    let micros = (secs.max(0.0) * 1e6).round() as u64;
    let (whole, micros) = (micros / 1_000_000, micros % 1_000_000);
    let days = match whole / 86_400 {
        0 => String::new(),
        1 => "1 day, ".to_owned(),
        days => format!("{days} days, "),
    };
    let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
    format!("{days}{}:{:02}:{:02}{fraction}", whole % 86_400 / 3600, whole % 3600 / 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_pythons() {
        assert_eq!(time_text(1_795_365_370), "16:36:10 11/22/26 GMT");
        assert_eq!(timedelta(1.5), "0:00:01.500000");
        assert_eq!(timedelta(90_061.000001), "1 day, 1:01:01.000001");
        assert_eq!(timedelta(7200.0), "2:00:00");
    }

    #[test]
    fn devices_are_dealt_out_in_turn() {
        let devices = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        assert_eq!(distribute_evenly(devices, 2), [vec!["a", "c", "e"], vec!["b", "d"]]);
    }
}
