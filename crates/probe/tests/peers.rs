//! Both implementations on the same files, below the servers: rings, DiskFile, brokers. The comparing is done by scripts in
//! `peer/`, which run in the venv of real Swift and drive an example program of the crate in question.

use anyhow::Result;
use probe::peer::{example, script, success};

#[test]
fn python_reads_the_rings_that_martlet_writes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    success(std::process::Command::new(example("write_rings")?).arg(dir.path()))?;
    println!("{}", success(script("rings.py")?.arg(dir.path()))?);
    Ok(())
}

#[test]
fn diskfiles_of_both_implementations_agree_on_each_others_files() -> Result<()> {
    let dir = tempfile::tempdir()?;
    println!(
        "{}",
        success(script("diskfile_peer.py")?.arg(example("diskfile")?).arg(dir.path()).args(["3", "1"]))?
    );
    Ok(())
}

#[test]
fn brokers_of_both_implementations_agree_on_each_others_databases() -> Result<()> {
    println!("{}", success(script("db_brokers.py")?.arg(example("broker_peer")?).args(["1", "3"]))?);
    Ok(())
}

/// One pass of a replicator among three nodes, then the reverts of a handoff; `ours` are the ends that are not Swift's.
fn ssync(ours: &[&str]) -> Result<()> {
    let program = example("object_peer")?;
    let mut check = script("ssync.py")?;
    for end in ours {
        check.arg(format!("--{end}")).arg(format!("{} object-{end} {{conf}}", program.display()));
    }
    println!("{}", success(&mut check)?);
    Ok(())
}

#[test]
fn swifts_replicator_syncs_to_martlets_object_server() -> Result<()> {
    ssync(&["server"])
}

#[test]
fn martlets_replicator_syncs_to_swifts_object_server() -> Result<()> {
    ssync(&["replicator"])
}

#[test]
fn martlets_replicator_syncs_to_martlets_object_server_on_swifts_files() -> Result<()> {
    ssync(&["server", "replicator"])
}
