//! `nice_priority`, `ionice_class` and `ionice_priority`: how the scheduler and the disks treat a process.
//!
//! Set at the start, before threads are made and before root's privileges are given up; threads, workers and later runs
//! of the program inherit it. As in Swift a value that cannot be had is a line in the log, and the process goes on as it was.
//! In `up`, where all servers are one process, the options do nothing.

// The one system call that no library has a safe function for. It takes and returns plain numbers.
#![allow(unsafe_code)]

use std::io;

use common::config::{Section, parse_int};

use crate::logs::Logger;

const NICE: &str = "nice_priority";
const IO_CLASS: &str = "ionice_class";
const IO_PRIORITY: &str = "ionice_priority";
const IO_CLASSES: [&str; 3] = ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"];
/// `IOPRIO_WHO_PROCESS`
const WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_SHIFT`
const CLASS_SHIFT: libc::c_int = 13;

/// What a section asks for, in its own words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Priority {
    nice: Option<String>,
    io_class: Option<String>,
    io_priority: Option<String>,
}

impl Priority {
    pub fn of(section: &Section) -> Priority {
        let text = |name: &str| section.get(name).map(str::to_owned);
        Priority { nice: text(NICE), io_class: text(IO_CLASS), io_priority: text(IO_PRIORITY) }
    }

    /// Gives it to this process.
    pub fn apply(&self, logger: &Logger) {
        if let Some(nice) = &self.nice {
            match set_nice(nice) {
                Ok(()) => logger.debug(format_args!("set nice priority to {nice}")),
                Err(err) => {
                    logger.error(format_args!("Unable to modify nice priority: {NICE} = {nice}: {err}"));
                }
            }
        }
        if let Some(class) = &self.io_class {
            let priority = self.io_priority.as_deref().unwrap_or("0");
            match io_value(class, priority).and_then(set_io) {
                Ok(()) => logger.debug(format_args!("set ionice class {class} priority {priority}")),
                Err(err) => logger.error(format_args!(
                    "Unable to modify ionice priority: {IO_CLASS} = {class}, {IO_PRIORITY} = {priority}: {err}"
                )),
            }
        }
    }
}

fn not_a_number() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "expected an integer")
}

fn set_nice(nice: &str) -> io::Result<()> {
    let nice: i32 = parse_int(nice).ok_or_else(not_a_number)?;
    Ok(rustix::process::setpriority_process(None, nice)?)
}

/// `IOPRIO_PRIO_VALUE` of a class and a priority in it.
fn io_value(class: &str, priority: &str) -> io::Result<libc::c_int> {
    let class = IO_CLASSES.iter().position(|name| *name == class).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("expected one of {}", IO_CLASSES.join(", ")))
    })?;
    let priority: libc::c_int = parse_int(priority).ok_or_else(not_a_number)?;
    Ok(((class as libc::c_int + 1) << CLASS_SHIFT) | priority)
}

fn set_io(value: libc::c_int) -> io::Result<()> {
    if get_io().is_ok_and(|now| now == value) {
        // A run of the program that is no longer root may keep what only root may set.
        return Ok(());
    }
    // SAFETY: ioprio_set(2) takes three integers and no pointers; 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn get_io() -> io::Result<libc::c_int> {
    // SAFETY: ioprio_get(2) takes two integers and no pointers; 0 is the calling thread.
    match unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0) } {
        value @ 0.. => Ok(value as libc::c_int),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{Level, Logger};

    fn apply(options: &[(&str, &str)]) -> Vec<String> {
        let (logger, lines) = Logger::memory();
        Priority::of(&Section::from_pairs("app:object-server", options.iter().copied())).apply(&logger);
        lines.at_least(Level::Error)
    }

    #[test]
    fn a_thread_gets_what_is_asked_for() {
        // A thread of its own, as the others are to stay as they are.
        let thread = std::thread::spawn(|| {
            let nice = rustix::process::getpriority_process(None).unwrap() + 1;
            let nice_text = nice.to_string();
            let options = [(NICE, nice_text.as_str()), (IO_CLASS, "IOPRIO_CLASS_BE"), (IO_PRIORITY, "6")];
            assert_eq!(apply(&options), [""; 0]);
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), nice);
            assert_eq!(get_io().unwrap(), (2 << CLASS_SHIFT) | 6);
            assert_eq!(apply(&options), [""; 0]);
        });
        thread.join().unwrap();
    }

    #[test]
    fn what_cannot_be_had_is_a_line_in_the_log() {
        assert_eq!(apply(&[]), [""; 0]);
        assert!(apply(&[(NICE, "x")])[0].contains("nice_priority = x: expected an integer"));
        assert!(apply(&[(IO_CLASS, "BE")])[0].contains("expected one of IOPRIO_CLASS_RT"));
        assert!(
            apply(&[(IO_CLASS, "IOPRIO_CLASS_BE"), (IO_PRIORITY, "-1")])[0].contains("ionice_priority = -1")
        );
    }
}
