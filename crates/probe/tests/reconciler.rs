//! The container-reconciler beside Swift's, on the same queue before the same servers. The comparing is done by `peer/reconciler.py`,
//! which runs in the venv of real Swift and has all the cases.

use anyhow::Result;
use probe::peer::{Peer, script, success};

fn compare(cases: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    Peer::Martlet.command(dir.path(), dir.path(), "swift-container-reconciler")?;
    let mut check = script("reconciler.py")?;
    check.arg(dir.path()).arg(dir.path().join("swift-container-reconciler")).arg(cases);
    println!("{}", success(&mut check)?);
    Ok(())
}

#[test]
fn objects_are_moved_left_and_waited_for_alike() -> Result<()> {
    compare("all_cases")
}

#[test]
fn queues_that_cannot_be_read_are_alike() -> Result<()> {
    compare("broken")
}

#[test]
fn processes_share_the_work_alike() -> Result<()> {
    compare("shares")
}

#[test]
fn what_fails_is_tried_again_alike() -> Result<()> {
    compare("retries")
}
