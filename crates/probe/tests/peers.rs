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
