//! The container-sync daemon beside Swift's: the same passes on copies of the same databases, against a cluster that records what it is
//! sent. The comparing is done by `peer/container_sync.py`, which runs in the venv of real Swift.

use anyhow::Result;
use probe::peer::{Peer, script, success};

#[test]
fn both_send_log_count_and_remember_the_same() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let daemon = Peer::Martlet.command(dir.path(), dir.path(), "swift-container-sync")?;
    let mut compare = script("container_sync.py")?;
    compare.arg(dir.path().join("scratch")).arg(daemon.get_program());
    println!("{}", success(&mut compare)?);
    Ok(())
}
