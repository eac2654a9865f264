//! The object-relinker beside Swift's.

use anyhow::Result;
use probe::peer::{Peer, script, success};

#[test]
fn both_relinkers_leave_the_same_and_go_on_where_the_other_was_killed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut check = script("relinker.py")?;
    let program = Peer::Martlet.command(dir.path(), dir.path(), "swift-object-relinker")?;
    check.arg(dir.path().join("scratch")).arg(program.get_program());
    println!("{}", success(&mut check)?);
    Ok(())
}
