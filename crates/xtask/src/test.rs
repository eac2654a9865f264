//! `cargo xtask test`: everything that must hold on every commit, cheapest first, and `cargo xtask bench`.
//!
//! The tests against real Swift find it through the environment: `MARTLET_PEERS` (see peers.rs) and `MARTLET_BIN`, the
//! binary under test.

use crate::{cmd, peers, suites, tidy};
use anyhow::{Context, Result};
use std::path::Path;

pub fn run(args: &[String]) -> Result<()> {
    tidy::run()?;
    cmd::run(cmd::cargo().args(["fmt", "--all", "--check"]))?;
    cmd::run(cmd::cargo().args(["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    cmd::run(
        cmd::cargo()
            .args(["check", "-q", "--manifest-path", "fuzz/Cargo.toml"])
            .env("CARGO_TARGET_DIR", fuzz_dir()),
    )?;
    let peers = peers::ensure()?;
    cmd::run(cmd::cargo().args(["build", "-q", "--workspace", "--bins", "--examples"]))?;
    let martlet = cmd::target_dir().join("debug/martlet");
    if args.is_empty() {
        suites::guard(&peers, &martlet)?;
    }
    let mut tests = cmd::cargo();
    if cmd::succeeds(cmd::cargo().args(["nextest", "--version"])) {
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        tests.args(["test", "--workspace", "--no-fail-fast"]);
    }
    tests.env("MARTLET_BIN", &martlet);
    cmd::run(with_peers(tests.args(args), &peers)?)
}

pub fn bench(args: &[String]) -> Result<()> {
    let peers = peers::ensure()?;
    cmd::run(cmd::cargo().args(["build", "-q", "--release", "-p", "martlet", "-p", "martlet-probe"]))?;
    let release = cmd::target_dir().join("release");
    let mut bench = std::process::Command::new(release.join("bench"));
    bench.env("MARTLET_BIN", release.join("martlet")).args(args);
    cmd::run(with_peers(&mut bench, &peers)?)
}

fn with_peers<'a>(
    command: &'a mut std::process::Command,
    peers: &peers::Peers,
) -> Result<&'a mut std::process::Command> {
    let dir = peers.venv.parent().map(Path::to_path_buf).context("the venv has no parent folder")?;
    Ok(command.env("MARTLET_PEERS", dir))
}

fn fuzz_dir() -> std::path::PathBuf {
    cmd::target_dir().join("fuzz")
}
