//! Erasure coding: which fragment archive of a hash dir is the object's state.
//!
//! A hash dir of an EC policy may hold several fragments, of one timestamp (a handoff takes what comes) or of several
//! (a PUT that has not become durable leaves the older, durable one in place). Durable is what carries `#d` in its
//! name, or has an old `.durable` file of its timestamp beside it. Swift: `ECDiskFileManager._process_ondisk_files`.
//!
//! This file holds the choice by names only; `fragment.rs` commits fragments.

use super::files::{ByExt, FileInfo, OnDiskFiles, Want, split_off};
use common::timestamp::Timestamp;

pub(super) fn choose_fragment(exts: &mut ByExt, results: &mut OnDiskFiles, want: Want<'_>) {
    let mut durable_timestamp = exts.durable.first().map(|info| info.timestamp);
    let (mut frag_sets, durable_set) = split_into_sets(&exts.data, &mut durable_timestamp);
    let (chosen_set, frag_index) = match want.frag_prefs {
        Some(_) => choose_set(&frag_sets, want),
        None => (durable_set, want.frag_index),
    };
    let chosen = chosen_set.and_then(|set| match frag_index {
        Some(wanted) => frag_sets[set].iter().find(|info| info.frag_index == Some(wanted)),
        None => frag_sets[set].last(),
    });
    if let Some(&chosen) = chosen {
        results.data = Some(chosen);
        results.durable_frag_set = durable_set;
        results.chosen_frag_set = chosen_set;
        if chosen_set != durable_set {
            // Meta files between the durable and the chosen data file are of use to neither, yet not obsolete.
            exts.meta.retain(|info| info.timestamp > chosen.timestamp);
        }
    }
    if let Some(durable) = durable_timestamp {
        for list in exts.lists() {
            split_off(list, &mut results.obsolete, |info| info.timestamp >= durable);
        }
    }
    if durable_set.is_none() {
        results.obsolete.append(&mut exts.durable);
    }
    for (set, frags) in frag_sets.iter().enumerate() {
        if Some(set) != durable_set && Some(set) != chosen_set {
            results.possible_reclaim.extend(frags);
        }
    }
    if durable_set.is_none() {
        results.possible_reclaim.extend(&exts.meta);
    }
    results.frag_sets = std::mem::take(&mut frag_sets);
}

/// Sets of equal timestamp, newest first, down to the durable one: what is older than that is obsolete anyway.
fn split_into_sets(
    data: &[FileInfo],
    durable_timestamp: &mut Option<Timestamp>,
) -> (Vec<Vec<FileInfo>>, Option<usize>) {
    let mut sets = Vec::new();
    for frags in data.chunk_by(|a, b| a.timestamp == b.timestamp) {
        let mut frags = frags.to_vec();
        frags.sort_by_key(|info| info.frag_index);
        let timestamp = frags[0].timestamp;
        if frags.iter().any(|info| info.durable) && *durable_timestamp < Some(timestamp) {
            *durable_timestamp = Some(timestamp);
        }
        let is_durable = *durable_timestamp == Some(timestamp);
        if is_durable {
            // With a `.durable` file the names carry no `#d`.
            frags.iter_mut().for_each(|info| info.durable = true);
        }
        sets.push(frags);
        if is_durable {
            let durable_set = sets.len() - 1;
            return (sets, Some(durable_set));
        }
    }
    (sets, None)
}

/// The set, and the fragment index in it, that the preferences ask for; else the newest set they did not rule out.
fn choose_set(sets: &[Vec<FileInfo>], want: Want<'_>) -> (Option<usize>, Option<u32>) {
    let mut ruled_out = Vec::new();
    for pref in want.frag_prefs.unwrap_or_default() {
        let Some(set) = sets.iter().position(|frags| frags[0].timestamp == pref.timestamp) else { continue };
        if ruled_out.contains(&set) {
            continue;
        }
        let mut indexes = sets[set].iter().filter_map(|info| info.frag_index);
        match indexes.rfind(|index| !pref.exclude.contains(index)) {
            Some(index) => return (Some(set), Some(index)),
            None => ruled_out.push(set),
        }
    }
    ((0..sets.len()).find(|set| !ruled_out.contains(set)), want.frag_index)
}
