//! `cargo xtask suites`: Swift's own functional, S3 and probe tests against a four-node cluster on loopback, in which any
//! of Swift's programs can be Martlet's.
//!
//! The cluster is made by the scripts in `lab/`, in network, mount and process namespaces of its own (root is needed),
//! with Python Swift from `peers`. A program is replaced by a link of its name to our binary, earlier in PATH. What is
//! known to fail stands with its reason in `lab/expected-failures`; both an unlisted failure and a listed test that
//! passes are errors, so that the list only shrinks.

use crate::{cmd, peers};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every program of Swift that Martlet can stand in for today.
const PROGRAMS: &[&str] = &[
    "object-server",
    "object-replicator",
    "object-reconstructor",
    "object-updater",
    "object-auditor",
    "object-expirer",
    "object-relinker",
    "container-server",
    "container-replicator",
    "container-auditor",
    "container-updater",
    "container-reconciler",
    "container-sync",
    "account-server",
    "account-replicator",
    "account-auditor",
    "account-reaper",
    "proxy-server",
];

/// The filters that our proxy has, in the order of Swift's all-in-one guide.
const PIPELINE: &str = "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats container_sync tempauth \
                        copy slo dlo symlink proxy-logging proxy-server";

#[derive(clap::Args)]
pub struct Options {
    /// Which suites: functional, s3, probe
    #[arg(long, value_delimiter = ',', default_value = "functional")]
    suite: Vec<String>,
    /// Which programs are ours ("object-server,proxy-server"); "all" or "none"
    #[arg(long, value_delimiter = ',', default_value = "all")]
    ours: Vec<String>,
    /// Start those of them that are daemons too, where the suite does not do so itself
    #[arg(long)]
    daemons: bool,
    /// Passed on to pytest: paths below the sdist, `-k`, ...
    #[arg(last = true)]
    pytest: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let peers = peers::ensure()?;
    cmd::run(cmd::cargo().args(["build", "-q", "--release", "-p", "martlet"]))?;
    run_suites(options, &peers, &cmd::target_dir().join("release/martlet"))
}

/// The part that the test command runs: Swift's functional tests, with every program ours.
pub fn guard(peers: &peers::Peers, martlet: &Path) -> Result<()> {
    if cmd::output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!(
            "Swift's functional tests need root (namespaces, a loop mount): run as root, or run a part by a filter"
        );
    }
    let options = Options {
        suite: vec!["functional".into()],
        ours: vec!["all".into()],
        daemons: false,
        pytest: Vec::new(),
    };
    run_suites(&options, peers, martlet)
}

fn run_suites(options: &Options, peers: &peers::Peers, martlet: &Path) -> Result<()> {
    let ours = programs(&options.ours)?;
    let lab = cmd::target_dir().join("lab");
    let bin = lab.join("bin");
    link_programs(&bin, martlet, &ours)?;
    let mut surprises = Vec::new();
    for suite in &options.suite {
        let out = lab.join("out").join(suite);
        if out.exists() {
            std::fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
        }
        std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
        let mut command = suite_command(suite, &ours, options.daemons)?;
        command.args(&options.pytest);
        command.env("LAB_VENV", &peers.venv).env("LAB_SDIST", peers.sdist.parent().unwrap_or(&peers.sdist));
        command.env("LAB_BIN", &bin).env("LAB_RUN", lab.join("run")).env("LAB_ISO_OUT", &out);
        // The tests' own status is judged below, against the list of expected failures.
        let _ = cmd::run(&mut command);
        surprises.extend(judge(&out, &expected()?, options.pytest.is_empty())?);
    }
    for surprise in &surprises {
        eprintln!("suites: {surprise}");
    }
    if surprises.is_empty() { Ok(()) } else { bail!("suites: {} surprises", surprises.len()) }
}

fn suite_command(suite: &str, ours: &[String], daemons: bool) -> Result<Command> {
    let script = match suite {
        "functional" => "$LAB_DIR/up.sh main $LAB_DAEMONS && $LAB_DIR/functional.sh \"$@\"",
        "s3" => "$LAB_DIR/up.sh main $LAB_DAEMONS && $LAB_DIR/s3.sh \"$@\"",
        "probe" => "$LAB_DIR/probe.sh \"$@\"",
        other => bail!("--suite {other}: expected functional, s3 or probe"),
    };
    let mut command = Command::new(cmd::root().join("lab/isolated.sh"));
    command.args([suite, "bash", "-c", script, "bash"]);
    if ours.iter().any(|p| p == "proxy-server") {
        command.env("LAB_PIPELINE", PIPELINE);
    }
    // Of the suites only the probe tests ask for an erasure-coded policy.
    if !ours.is_empty() && suite != "probe" {
        command.env("LAB_REPLICATION_ONLY", "yes");
    }
    let started = ours.iter().filter(|program| daemons && is_daemon(program));
    command.env("LAB_DAEMONS", started.cloned().collect::<Vec<_>>().join(" "));
    Ok(command)
}

/// The relinker is run by hand.
fn is_daemon(program: &str) -> bool {
    !program.ends_with("-server") && program != "object-relinker"
}

fn programs(names: &[String]) -> Result<Vec<String>> {
    match names {
        [one] if one == "all" => Ok(PROGRAMS.iter().map(|p| p.to_string()).collect()),
        [one] if one == "none" => Ok(Vec::new()),
        names => {
            if let Some(unknown) = names.iter().find(|n| !PROGRAMS.contains(&n.as_str())) {
                bail!("--ours {unknown}: expected some of {}", PROGRAMS.join(","));
            }
            Ok(names.to_vec())
        }
    }
}

fn link_programs(bin: &Path, martlet: &Path, ours: &[String]) -> Result<()> {
    if bin.exists() {
        std::fs::remove_dir_all(bin).with_context(|| format!("cannot empty {}", bin.display()))?;
    }
    std::fs::create_dir_all(bin).with_context(|| format!("cannot create {}", bin.display()))?;
    for program in ours {
        let link = bin.join(format!("swift-{program}"));
        std::os::unix::fs::symlink(martlet, &link)
            .with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

/// Test name (`test.functional.test_object.TestObject::test_copy`) to the reason why it fails.
fn expected() -> Result<BTreeMap<String, String>> {
    let path = cmd::root().join("lab/expected-failures");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    lines
        .map(|line| {
            let (test, reason) =
                line.split_once("  ").with_context(|| format!("{}: no reason: {line}", path.display()))?;
            Ok((test.to_string(), reason.trim().to_string()))
        })
        .collect()
}

/// Compares the JUnit files below `out` with the list. `complete` runs also notice listed tests that pass.
fn judge(out: &Path, expected: &BTreeMap<String, String>, complete: bool) -> Result<Vec<String>> {
    let mut surprises = Vec::new();
    let mut seen = 0;
    for file in xml_files(out)? {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (test, failed) in test_cases(&text) {
            seen += 1;
            match (failed, expected.contains_key(&test)) {
                (true, false) => surprises.push(format!("{test} failed and is not listed")),
                (false, true) if complete => surprises.push(format!("{test} passes: take it off the list")),
                _ => {}
            }
        }
    }
    if seen == 0 {
        surprises.push(format!("no test ran: see {}", out.display()));
    }
    Ok(surprises)
}

fn xml_files(out: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(out).with_context(|| format!("cannot list {}", out.display()))?;
    let paths = entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "xml")).collect())
}

/// `(classname::name, failed)` of each test case of a JUnit file as pytest writes it; skipped tests are left out.
fn test_cases(xml: &str) -> Vec<(String, bool)> {
    let mut cases = Vec::new();
    for piece in xml.split("<testcase ").skip(1) {
        let tag = piece.split('>').next().unwrap_or_default();
        let inner =
            if tag.ends_with('/') { "" } else { piece.split("</testcase>").next().unwrap_or_default() };
        let attribute =
            |name: &str| tag.split(&format!("{name}=\"")).nth(1).and_then(|v| v.split('"').next());
        let (Some(class), Some(name)) =
            (attribute("classname"), attribute(" name").or_else(|| attribute("name")))
        else {
            continue;
        };
        if !inner.contains("<skipped") {
            cases.push((format!("{class}::{name}"), inner.contains("<failure") || inner.contains("<error")));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_cases_are_read_from_a_junit_file() {
        let xml = r#"<testsuite><testcase classname="a.B" name="one" time="0.1" /><testcase classname="a.B" name="two"
            ><failure message="x">y</failure></testcase><testcase classname="a.B" name="three"><skipped/></testcase>"#;
        assert_eq!(test_cases(xml), [("a.B::one".to_string(), false), ("a.B::two".to_string(), true)]);
    }

    #[test]
    fn an_unknown_program_is_named() {
        assert!(programs(&["object-severe".into()]).unwrap_err().to_string().contains("object-severe"));
        assert_eq!(programs(&["all".into()]).unwrap().len(), PROGRAMS.len());
    }
}
