//! The command line of Swift's servers and daemons: `CONFIG [once] [options]`, as Python's `optparse` reads it.
//!
//! Options may stand anywhere, long ones may be shortened, and a word after CONFIG that names an option turns it on:
//! that is how `swift-init` asks for `once` and `verbose`. Usage goes to stdout with exit code 1 for a missing CONFIG, and
//! to stderr with 2 for a bad option.

use std::path::{Path, PathBuf};

use service::DaemonArgs;

use super::optparse::{Ended, HELP, Opt, Usage};

const VERBOSE: Opt = Opt { short: Some('v'), long: "verbose", value: None, help: "log to console" };
const ONCE: Opt = Opt { short: Some('o'), long: "once", value: None, help: "only run one pass of daemon" };
const TEST_CONFIG: Opt = Opt {
    short: Some('t'),
    long: "test-config",
    value: None,
    help: "exit after loading and validating config; do not run the daemon",
};
const DEVICES: Opt = Opt {
    short: Some('d'),
    long: "devices",
    value: Some("DEVICES"),
    help: "only given devices. Comma-separated list. Only has effect if --once is used.",
};
const PARTITIONS: Opt = Opt {
    short: Some('p'),
    long: "partitions",
    value: Some("PARTITIONS"),
    help: "only given partitions. Comma-separated list. Only has effect if --once is used.",
};
const POLICIES: Opt = Opt {
    short: Some('i'),
    long: "policies",
    value: Some("POLICIES"),
    help: "only given policy indices. Comma-separated list. Only has effect if --once is used.",
};
const ZERO_BYTE_FPS: Opt = Opt {
    short: Some('z'),
    long: "zero_byte_fps",
    value: Some("ZERO_BYTE_FPS"),
    help: "only look at the sizes of files, so many a second",
};

const PROCESSES: Opt = Opt {
    short: None,
    long: "processes",
    value: Some("PROCESSES"),
    help: "how many processes share the work; 0 if it is all done by this one",
};
const PROCESS: Opt = Opt {
    short: None,
    long: "process",
    value: Some("PROCESS"),
    help: "which of the processes this is, from 0",
};

/// Which options a program takes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Takes {
    Server,
    Daemon,
    /// A daemon whose pass can be narrowed to devices, partitions and policies.
    Replicator,
    /// The same without policies: the reconstructor, the replicators of databases.
    WithoutPolicies,
    ObjectAuditor,
    ObjectExpirer,
}

impl Takes {
    fn options(self) -> &'static [&'static Opt] {
        match self {
            Takes::Server => &[&HELP, &VERBOSE, &TEST_CONFIG],
            Takes::Daemon => &[&HELP, &VERBOSE, &ONCE],
            Takes::ObjectAuditor => &[&HELP, &ZERO_BYTE_FPS, &DEVICES, &VERBOSE, &ONCE],
            Takes::ObjectExpirer => &[&HELP, &PROCESSES, &PROCESS, &VERBOSE, &ONCE],
            Takes::WithoutPolicies => &[&HELP, &DEVICES, &PARTITIONS, &VERBOSE, &ONCE],
            Takes::Replicator => &[&HELP, &DEVICES, &PARTITIONS, &POLICIES, &VERBOSE, &ONCE],
        }
    }
}

/// What a command line asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    pub conf_path: PathBuf,
    pub verbose: bool,
    pub once: bool,
    pub test_config: bool,
    pub args: DaemonArgs,
}

/// Reads the words after the program's name. `exists` says whether there is a file at a path.
pub fn parse(
    prog: &str,
    takes: Takes,
    words: &[String],
    exists: impl Fn(&Path) -> bool,
) -> Result<Asked, Ended> {
    let usage = Usage { prog, text: format!("{prog} CONFIG [options]"), options: takes.options() };
    let (found, positional) = usage.split(words)?;
    let mut asked = Asked::default();
    for (option, value) in found {
        apply(&usage, &mut asked, option, &value)?;
    }
    if positional.is_empty() {
        return Err(missing(&usage, "missing config path argument"));
    }
    let conf_path = std::path::absolute(&positional[0]).unwrap_or_else(|_| PathBuf::from(&positional[0]));
    if !exists(&conf_path) {
        return Err(missing(&usage, &format!("unable to locate {}", conf_path.display())));
    }
    for word in &positional[1..] {
        let named = takes.options().iter().find(|o| o.long.replace('-', "_") == *word && o.value.is_none());
        if let Some(option) = named.filter(|o| o.long != "help") {
            apply(&usage, &mut asked, option, "")?;
        }
    }
    Ok(Asked { conf_path, ..asked })
}

fn missing(usage: &Usage<'_>, error: &str) -> Ended {
    Ended { code: 1, stdout: format!("Usage: {}\n\nError: {error}\n", usage.text), stderr: String::new() }
}

fn apply(usage: &Usage<'_>, asked: &mut Asked, option: &Opt, value: &str) -> Result<(), Ended> {
    let words = || value.split(',').map(str::trim).filter(|v| !v.is_empty());
    let numbers = || {
        let parsed: Result<Vec<u32>, _> = words().map(str::parse).collect();
        let error = format!("option --{}: expected a comma-separated list of numbers", option.long);
        parsed.map_err(|_| usage.bad_option(&error))
    };
    let number = || {
        let error = format!("option --{}: expected a number, 0 or more", option.long);
        common::config::parse_int(value).ok_or_else(|| usage.bad_option(&error))
    };
    match option.long {
        "verbose" => asked.verbose = true,
        "once" => asked.once = true,
        "test-config" => asked.test_config = true,
        "devices" => asked.args.devices = words().map(str::to_owned).collect(),
        "partitions" => asked.args.partitions = numbers()?,
        "policies" => asked.args.policies = numbers()?,
        "zero_byte_fps" => {
            let rate = common::config::parse_float(value).filter(|rate| *rate >= 0.0);
            let error = format!("option --{}: expected a number", option.long);
            asked.args.zero_byte_fps = Some(rate.ok_or_else(|| usage.bad_option(&error))?);
        }
        "processes" => asked.args.processes = Some(number()?),
        "process" => asked.args.process = Some(number()?),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(takes: Takes, line: &str) -> Result<Asked, Ended> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse("swift-object-replicator", takes, &words, |path| path == Path::new("/etc/swift/o.conf"))
    }

    #[test]
    fn words_after_the_configuration_turn_options_on() {
        let asked = read(Takes::Replicator, "/etc/swift/o.conf once verbose nonsense").unwrap();
        assert!(asked.once && asked.verbose);
        assert!(!read(Takes::Server, "/etc/swift/o.conf once").unwrap().once);
        assert!(read(Takes::Server, "/etc/swift/o.conf test_config").unwrap().test_config);
    }

    #[test]
    fn the_expirer_takes_a_share() {
        let asked = read(Takes::ObjectExpirer, "/etc/swift/o.conf once --processes 3 --process=1").unwrap();
        assert_eq!((asked.once, asked.args.processes, asked.args.process), (true, Some(3), Some(1)));
        assert_eq!(read(Takes::ObjectExpirer, "/etc/swift/o.conf --processes -1").unwrap_err().code, 2);
    }

    #[test]
    fn options_stand_anywhere_and_may_be_shortened() {
        let line = "-v /etc/swift/o.conf --dev=sda1,sdb1 -p1,5 -i 0 -o";
        let asked = read(Takes::Replicator, line).unwrap();
        assert_eq!(asked.conf_path, Path::new("/etc/swift/o.conf"));
        let args = DaemonArgs {
            devices: vec!["sda1".into(), "sdb1".into()],
            partitions: vec![1, 5],
            policies: vec![0],
            zero_byte_fps: None,
            ..DaemonArgs::default()
        };
        assert_eq!((asked.args, asked.once, asked.verbose), (args, true, true));
        assert!(read(Takes::Replicator, "-vo /etc/swift/o.conf").unwrap().once);
    }

    #[test]
    fn the_auditor_takes_a_rate() {
        let asked = read(Takes::ObjectAuditor, "/etc/swift/o.conf -z 50 -d sdb1 --once").unwrap();
        assert_eq!((asked.args.zero_byte_fps, asked.args.devices), (Some(50.0), vec!["sdb1".to_owned()]));
        assert_eq!(read(Takes::ObjectAuditor, "/etc/swift/o.conf -z fast").unwrap_err().code, 2);
    }

    // The texts are those of swift-object-server and swift-object-replicator.
    #[test]
    fn mistakes_end_with_pythons_words_and_codes() {
        let missing = read(Takes::Daemon, "").unwrap_err();
        let usage = "Usage: swift-object-replicator CONFIG [options]\n\n";
        assert_eq!(
            (missing.code, missing.stdout),
            (1, format!("{usage}Error: missing config path argument\n"))
        );
        let lost = read(Takes::Daemon, "/nope").unwrap_err();
        assert_eq!((lost.code, lost.stdout), (1, format!("{usage}Error: unable to locate /nope\n")));
        for (line, error) in [
            ("--bogus", "no such option: --bogus"),
            ("-x", "no such option: -x"),
            ("-d", "-d option requires 1 argument"),
            ("--once=1", "--once option does not take a value"),
            ("--p=1", "ambiguous option: --p (--partitions, --policies?)"),
        ] {
            let ended = read(Takes::Replicator, line).unwrap_err();
            let expected = format!("{usage}swift-object-replicator: error: {error}\n");
            assert_eq!((ended.code, ended.stderr), (2, expected));
        }
        let bad = read(Takes::Replicator, "/etc/swift/o.conf -p x").unwrap_err();
        assert_eq!(bad.code, 2);
    }

    #[test]
    fn help_lists_the_options() {
        let ended = read(Takes::Replicator, "--help").unwrap_err();
        assert_eq!(ended.code, 0);
        assert!(ended.stdout.contains("-p PARTITIONS, --partitions=PARTITIONS"), "{}", ended.stdout);
    }
}
