//! The object-replicator beside Swift's: the same passes on copies of the same devices, by rsync against a real daemon and by
//! SSYNC. The comparing is done by `peer/replicator.py`, which runs in the venv of real Swift; it has a description of each
//! case.

use anyhow::Result;
use probe::peer::{self, Peer};

/// The cases on the object servers of `server`.
fn compare(server: Peer, cases: &[&str]) -> Result<()> {
    peer::compare("replicator.py", "swift-object-replicator", server, cases)
}

#[test]
fn by_rsync_both_send_the_same_to_primaries_and_empty_handoffs() -> Result<()> {
    compare(
        Peer::Python,
        &["rsync_primaries", "rsync_quiet", "rsync_handoff", "rsync_handoff_kept", "arrives"],
    )
}

#[test]
fn both_start_rsync_with_the_same_arguments_and_tell_alike_how_it_failed() -> Result<()> {
    compare(Peer::Python, &["rsync_regions", "rsync_fails", "rsync_timeout", "no_server", "stops"])
}

#[test]
fn by_ssync_both_make_the_same_requests_and_leave_the_same() -> Result<()> {
    compare(Peer::Python, &["ssync_matrix", "ssync_handoffs"])
}

#[test]
fn both_do_without_partners_that_are_down_or_unmounted() -> Result<()> {
    compare(Peer::Python, &["partners"])
}

#[test]
fn both_do_without_partners_that_fall_silent_or_talk_nonsense() -> Result<()> {
    compare(Peer::Python, &["strange_partners"])
}

#[test]
fn handoffs_go_first_and_workers_have_figures_of_their_own() -> Result<()> {
    compare(Peer::Python, &["handoffs_first", "workers", "swift_recon", "forever"])
}

#[test]
fn both_do_what_the_command_line_chooses_and_leave_alone_what_is_no_partition() -> Result<()> {
    compare(Peer::Python, &["overrides", "odd_partitions", "part_power", "ring_changes", "options"])
}

#[test]
fn each_is_kept_out_by_the_locks_of_the_other() -> Result<()> {
    compare(Peer::Python, &["locks", "receiver_locks", "holds_its_lock"])
}

#[test]
fn to_martlets_object_servers_both_replicate_alike() -> Result<()> {
    let rsync = ["rsync_primaries", "rsync_handoff", "no_server", "locks", "receiver_locks"];
    compare(Peer::Martlet, &[&rsync[..], &["ssync_matrix", "ssync_handoffs", "partners"]].concat())
}
