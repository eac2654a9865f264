//! The account- and container-replicators and -auditors beside Swift's: the same passes on copies of the same devices, by usync and by rsync against a
//! real daemon. Every second node has Swift's servers. The comparing is done by `peer/db_replicator.py`, which runs in the venv of
//! real Swift; it has a description of each case.

use anyhow::Result;
use probe::peer::{Peer, script, success};

fn compare(cases: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin)?;
    for tier in ["account", "container"] {
        for program in ["server", "replicator", "auditor"] {
            Peer::Martlet.command(&bin, dir.path(), &format!("swift-{tier}-{program}"))?;
        }
    }
    let mut check = script("db_replicator.py")?;
    check.arg(dir.path().join("scratch")).arg(&bin).arg("mixed").args(cases);
    println!("{}", success(&mut check)?);
    Ok(())
}

#[test]
fn rows_metadata_and_timestamps_come_to_be_the_same() -> Result<()> {
    compare(&["in_sync", "usync"])
}

#[test]
fn whole_databases_travel_by_rsync() -> Result<()> {
    compare(&["missing", "merged_by_rsync", "damaged"])
}

#[test]
fn what_is_not_where_it_belongs_is_moved() -> Result<()> {
    compare(&["handoffs", "misplaced"])
}

#[test]
fn what_was_deleted_long_ago_goes_and_partners_may_be_away() -> Result<()> {
    compare(&["reclaimed", "partners"])
}

#[test]
fn both_do_what_the_command_line_chooses() -> Result<()> {
    compare(&["overrides", "elsewhere"])
}

#[test]
fn containers_agree_on_policies_and_shard_ranges() -> Result<()> {
    compare(&["policies", "sharded", "synced"])
}

#[test]
fn auditors_find_the_same() -> Result<()> {
    compare(&["audited"])
}

#[test]
fn databases_of_old_releases_are_replicated_as_they_are_by_swift() -> Result<()> {
    compare(&["old_schemas"])
}
