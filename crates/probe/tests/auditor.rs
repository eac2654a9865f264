//! The object-auditor and the tools beside Swift's. The comparing is done by scripts in `peer/`, which run in the venv of
//! real Swift.

use anyhow::Result;
use probe::peer::{Peer, script, success};

fn compare(name: &str, programs: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut check = script(name)?;
    check.arg(dir.path().join("scratch"));
    for program in programs {
        check.arg(Peer::Martlet.command(dir.path(), dir.path(), program)?.get_program());
    }
    println!("{}", success(&mut check)?);
    Ok(())
}

#[test]
fn both_auditors_find_the_same_and_go_on_where_the_other_was_killed() -> Result<()> {
    compare("auditor.py", &["swift-object-auditor"])
}

#[test]
fn the_tools_print_the_same_to_the_byte() -> Result<()> {
    compare(
        "tools.py",
        &["swift-object-info", "swift-get-nodes", "swift-account-info", "swift-container-info"],
    )
}
