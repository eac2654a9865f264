//! The object-reconstructor beside Swift's: the same passes on copies of the same devices. The comparing is done by
//! `peer/handoffs.py`, which runs in the venv of real Swift; it has a description of each case.

use anyhow::Result;
use probe::peer::{self, Peer};

/// The cases on object servers of `server`.
fn compare(server: Peer, cases: &[&str]) -> Result<()> {
    peer::compare("handoffs.py", "swift-object-reconstructor", server, cases)
}

#[test]
fn handoffs_of_every_kind_are_left_as_swifts_reconstructor_leaves_them() -> Result<()> {
    compare(Peer::Python, &["matrix", "tombstones", "meta_alone"])
}

#[test]
fn passes_on_all_nodes_leave_the_same_everywhere() -> Result<()> {
    compare(Peer::Python, &["matrix_healed"])
}

#[test]
fn both_do_without_primaries_that_are_down_or_unmounted() -> Result<()> {
    compare(Peer::Python, &["partners", "rebuild_handoffs"])
}

#[test]
fn both_restrict_a_pass_alike() -> Result<()> {
    compare(Peer::Python, &["modes", "limits"])
}

#[test]
fn on_martlets_object_servers_both_leave_the_same() -> Result<()> {
    compare(Peer::Martlet, &["matrix", "partners", "rebuild_handoffs"])
}
