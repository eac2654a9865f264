//! What the names in a hash dir mean: which files are the object's state and which are obsolete.
//!
//! ```text
//! TIMESTAMP.data                  the object as PUT (replication policies)
//! TIMESTAMP#FRAG.data             a fragment archive, not yet durable (EC policies)
//! TIMESTAMP#FRAG#d.data           a durable fragment archive
//! TIMESTAMP.meta                  metadata of a POST
//! TIMESTAMP+DELTA.meta            the same, with the timestamp of its content-type: hex, signed, in 10 µs
//! TIMESTAMP.ts                    a tombstone
//! TIMESTAMP.durable               durability marker of old EC writers
//! ```
//!
//! The names alone decide: no file is opened to choose between versions, so that a listing is enough for hashing,
//! cleaning up and ssync. Everything here is a pure function of names; [`super::cleanup`] removes what is obsolete.
//!
//! Order of the rules (Swift: `BaseDiskFileManager.get_ondisk_files`): the newest tombstone hides what is not newer
//! than itself; of the meta files the newest stays, and a second one if its content-type is newer; the policy chooses
//! the data file and drops what it supersedes. A meta file counts only beside a data file, a tombstone only without.

use common::timestamp::{Timestamp, decode_timestamps, encode_timestamps};

use super::ec;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Ext {
    Data,
    Meta,
    Tombstone,
    Durable,
    /// A well-formed timestamp with another extension: nobody's state, but obsolete once it is old enough.
    Other,
}

impl Ext {
    pub fn as_str(self) -> &'static str {
        match self {
            Ext::Data => ".data",
            Ext::Meta => ".meta",
            Ext::Tombstone => ".ts",
            Ext::Durable => ".durable",
            Ext::Other => "",
        }
    }
}

/// One parsed name; `index` is its place in the listing it came from.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    pub index: usize,
    pub timestamp: Timestamp,
    pub ext: Ext,
    pub ctype_timestamp: Option<Timestamp>,
    pub frag_index: Option<u32>,
    /// EC data files only: marked durable, by name or by an old `.durable` file. Others: always true.
    pub durable: bool,
}

/// How the policy reads data file names.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    Replication,
    /// `fragments` = data + parity; a greater index in a name makes the file unexpected.
    Erasure {
        fragments: u32,
    },
}

/// At `timestamp`, any fragment but those in `exclude`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragPref {
    pub timestamp: Timestamp,
    pub exclude: Vec<u32>,
}

/// Which fragment an EC diskfile asks for; ignored under replication.
#[derive(Copy, Clone, Debug, Default)]
pub struct Want<'a> {
    pub frag_index: Option<u32>,
    /// `Some`, even if empty: a data file need not be durable to be chosen.
    pub frag_prefs: Option<&'a [FragPref]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnDiskFiles {
    pub data: Option<FileInfo>,
    pub meta: Option<FileInfo>,
    pub tombstone: Option<FileInfo>,
    /// The meta file with the newest content-type, if that is newer than the data file; may equal `meta`.
    pub ctype: Option<FileInfo>,
    pub obsolete: Vec<FileInfo>,
    /// To be removed once older than reclaim_age (and, for fragments, than commit_window).
    pub possible_reclaim: Vec<FileInfo>,
    /// Listing places of names that are no file of ours.
    pub unexpected: Vec<usize>,
    /// EC: all fragments, newest timestamp first, each set by ascending fragment index.
    pub frag_sets: Vec<Vec<FileInfo>>,
    /// EC: place of the durable set and of the chosen set in `frag_sets`; set only when a fragment was chosen.
    pub durable_frag_set: Option<usize>,
    pub chosen_frag_set: Option<usize>,
}

impl OnDiskFiles {
    /// EC: of the newest durable fragments, as far as one was chosen.
    pub fn durable_timestamp(&self) -> Option<Timestamp> {
        self.durable_frag_set.map(|set| self.frag_sets[set][0].timestamp)
    }

    /// EC: the indexes of all fragments by timestamp, newest first.
    pub fn fragments(&self) -> Vec<(Timestamp, Vec<u32>)> {
        let indexes = |set: &Vec<FileInfo>| set.iter().filter_map(|info| info.frag_index).collect();
        self.frag_sets.iter().map(|set| (set[0].timestamp, indexes(set))).collect()
    }
}

/// Files by extension, each list newest first.
#[derive(Default)]
pub(super) struct ByExt {
    pub data: Vec<FileInfo>,
    pub meta: Vec<FileInfo>,
    pub tombstone: Vec<FileInfo>,
    pub durable: Vec<FileInfo>,
    pub other: Vec<FileInfo>,
}

impl ByExt {
    fn list(&mut self, ext: Ext) -> &mut Vec<FileInfo> {
        match ext {
            Ext::Data => &mut self.data,
            Ext::Meta => &mut self.meta,
            Ext::Tombstone => &mut self.tombstone,
            Ext::Durable => &mut self.durable,
            Ext::Other => &mut self.other,
        }
    }

    pub fn lists(&mut self) -> [&mut Vec<FileInfo>; 5] {
        [&mut self.data, &mut self.meta, &mut self.tombstone, &mut self.durable, &mut self.other]
    }
}

/// Chooses among `names`, the listing of one hash dir. Equal timestamps keep the listing's order, so that a listing
/// in descending order of names gives the same choice everywhere.
pub fn get_ondisk_files<'n>(
    names: impl Iterator<Item = &'n [u8]>,
    scheme: Scheme,
    want: Want<'_>,
) -> OnDiskFiles {
    let mut results = OnDiskFiles::default();
    let mut exts = ByExt::default();
    for (index, name) in names.enumerate() {
        match parse_on_disk_filename(index, name, scheme) {
            Some(info) => exts.list(info.ext).push(info),
            None => results.unexpected.push(index),
        }
    }
    for list in exts.lists() {
        list.sort_by_key(|info| std::cmp::Reverse(info.timestamp));
    }
    hide_behind_tombstone(&mut exts, &mut results.obsolete);
    retain_newest_meta(&mut exts.meta, &mut results.obsolete);
    match scheme {
        Scheme::Replication => choose_replicated(&mut exts, &mut results),
        Scheme::Erasure { .. } => ec::choose_fragment(&mut exts, &mut results, want),
    }
    if let Some(data) = results.data {
        if let (Some(&meta), Some(&ctype)) = (exts.meta.first(), exts.meta.last()) {
            results.meta = Some(meta);
            results.ctype = Some(ctype).filter(|info| info.ctype_timestamp > Some(data.timestamp));
        }
    } else {
        results.tombstone = exts.tombstone.first().copied();
    }
    results
}

fn hide_behind_tombstone(exts: &mut ByExt, obsolete: &mut Vec<FileInfo>) {
    let Some(newest) = exts.tombstone.first().map(|info| info.timestamp) else { return };
    obsolete.extend(exts.tombstone.drain(1..));
    for list in [&mut exts.data, &mut exts.meta, &mut exts.durable, &mut exts.other] {
        split_off(list, obsolete, |info| info.timestamp > newest);
    }
}

fn retain_newest_meta(meta: &mut Vec<FileInfo>, obsolete: &mut Vec<FileInfo>) {
    if meta.len() < 2 {
        return;
    }
    let ctype = |info: &FileInfo| info.ctype_timestamp.unwrap_or(Timestamp::ZERO);
    meta[1..].sort_by_key(|info| std::cmp::Reverse(ctype(info)));
    let mut retain = 1;
    if ctype(&meta[1]) > ctype(&meta[0]) {
        if meta[1].timestamp == meta[0].timestamp {
            meta.swap(0, 1);
        } else {
            retain = 2; // the first has the newest metadata, the second the newest content-type
        }
    }
    obsolete.extend(meta.drain(retain..));
}

fn choose_replicated(exts: &mut ByExt, results: &mut OnDiskFiles) {
    let Some(data) = exts.data.first().copied() else {
        results.possible_reclaim.extend(exts.meta.iter().copied());
        return;
    };
    split_off(&mut exts.data, &mut results.obsolete, |info| info.timestamp >= data.timestamp);
    for list in [&mut exts.meta, &mut exts.tombstone, &mut exts.durable, &mut exts.other] {
        split_off(list, &mut results.obsolete, |info| info.timestamp > data.timestamp);
    }
    results.data = Some(data);
}

/// Moves the tail of `list` from the first entry which is not to be kept into `dropped`.
pub(super) fn split_off(
    list: &mut Vec<FileInfo>,
    dropped: &mut Vec<FileInfo>,
    keep: impl Fn(&FileInfo) -> bool,
) {
    let kept = list.iter().position(|info| !keep(info)).unwrap_or(list.len());
    dropped.extend(list.drain(kept..));
}

pub fn parse_on_disk_filename(index: usize, name: &[u8], scheme: Scheme) -> Option<FileInfo> {
    let name = std::str::from_utf8(name).ok()?;
    let (stem, ext) = splitext(name);
    let ext = match ext {
        ".data" => Ext::Data,
        ".meta" => Ext::Meta,
        ".ts" => Ext::Tombstone,
        ".durable" => Ext::Durable,
        _ => Ext::Other,
    };
    let mut info = FileInfo {
        index,
        timestamp: Timestamp::ZERO,
        ext,
        ctype_timestamp: None,
        frag_index: None,
        durable: true,
    };
    match (ext, scheme) {
        (Ext::Meta, _) => (info.timestamp, info.ctype_timestamp, _) = decode_timestamps(stem, true).ok()?,
        (Ext::Data, Scheme::Erasure { fragments }) => {
            let mut parts = stem.split('#');
            info.timestamp = Timestamp::parse(parts.next()?).ok()?;
            info.frag_index = Some(parts.next()?.trim().parse().ok().filter(|&frag: &u32| frag < fragments)?);
            info.durable = parts.next() == Some("d");
        }
        _ => info.timestamp = Timestamp::parse(stem).ok()?,
    }
    Some(info)
}

/// As Python's: leading dots belong to the stem, the extension keeps its dot.
fn splitext(name: &str) -> (&str, &str) {
    let lead = name.len() - name.trim_start_matches('.').len();
    match name.rfind('.') {
        Some(dot) if dot >= lead && lead < name.len() => name.split_at(dot),
        _ => (name, ""),
    }
}

/// A temp file of rsync or ours, like `.TIMESTAMP.data.Xy095a`: it may be there at any time and is no reason to warn.
pub fn is_rsync_tempfile(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|&byte| byte == b'.') else { return false };
    let tail = &name[dot + 1..];
    dot > 0
        && name[0] == b'.'
        && tail.len() == 6
        && tail.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The name of a file of a replication policy.
pub fn make_on_disk_filename(timestamp: Timestamp, ext: Ext, ctype_timestamp: Option<Timestamp>) -> String {
    match (ext, ctype_timestamp) {
        (Ext::Meta, Some(ctype)) => format!("{}.meta", encode_timestamps(timestamp, Some(ctype), None, true)),
        _ => format!("{}{}", timestamp.internal(), ext.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by `tests/golden/make_ondisk_files.py`.
    #[test]
    fn choice_equals_that_of_python_swift() {
        let mut cases = 0;
        for line in include_str!("../../tests/golden/ondisk_files.txt").lines() {
            let fields: Vec<&str> = line.split('|').collect();
            let scheme = match fields[0] {
                "e" => Scheme::Erasure { fragments: 6 },
                _ => Scheme::Replication,
            };
            let prefs = (fields[2] != "-").then(|| list(fields[2]).map(frag_pref).collect::<Vec<_>>());
            let want = Want { frag_index: fields[1].parse().ok(), frag_prefs: prefs.as_deref() };
            let names: Vec<&str> = list(fields[3]).collect();
            let chosen = get_ondisk_files(names.iter().map(|name| name.as_bytes()), scheme, want);
            assert_eq!(describe(&chosen, &names), fields[4..].join("|"), "{line}");
            cases += 1;
        }
        assert!(cases > 400);
    }

    fn list(text: &str) -> impl Iterator<Item = &str> {
        text.split(',').filter(|item| !item.is_empty())
    }

    fn frag_pref(text: &str) -> FragPref {
        let (timestamp, exclude) = text.split_once(':').unwrap();
        let exclude = exclude.split('+').filter_map(|index| index.parse().ok()).collect();
        FragPref { timestamp: Timestamp::parse(timestamp).unwrap(), exclude }
    }

    fn describe(chosen: &OnDiskFiles, names: &[&str]) -> String {
        let one = |info: &Option<FileInfo>| info.map_or("", |info| names[info.index]);
        let all = |indexes: Vec<usize>| {
            let mut found: Vec<&str> = indexes.into_iter().map(|index| names[index]).collect();
            found.sort();
            found.dedup();
            found.join(",")
        };
        let indexes = |infos: &[FileInfo]| all(infos.iter().map(|info| info.index).collect());
        format!(
            "data={}|meta={}|ts={}|ctype={}|obsolete={}|possible_reclaim={}|unexpected={}",
            one(&chosen.data),
            one(&chosen.meta),
            one(&chosen.tombstone),
            one(&chosen.ctype),
            indexes(&chosen.obsolete),
            indexes(&chosen.possible_reclaim),
            all(chosen.unexpected.clone())
        )
    }

    #[test]
    fn temp_files_of_rsync_are_told_from_junk() {
        assert!(is_rsync_tempfile(b".1234567890.12345.data.Xy_95a"));
        for name in [
            &b"1234567890.12345.data.Xy095a"[..],
            b".1234567890.12345.data",
            b".Xy095a",
            b"",
            b".data.Xy-95a",
        ] {
            assert!(!is_rsync_tempfile(name), "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn names_of_meta_files_carry_the_time_of_their_content_type() {
        let (post, ctype) = (Timestamp::from_raw(200_000), Timestamp::from_raw(199_999));
        assert_eq!(make_on_disk_filename(post, Ext::Meta, None), "0000000002.00000.meta");
        assert_eq!(make_on_disk_filename(post, Ext::Meta, Some(ctype)), "0000000002.00000-1.meta");
        assert_eq!(make_on_disk_filename(post, Ext::Meta, Some(post)), "0000000002.00000+0.meta");
        assert_eq!(make_on_disk_filename(post.with_offset(1), Ext::Data, Some(ctype)).len(), 16 + 17 + 5);
    }

    fn any_name() -> impl Strategy<Value = String> {
        let stem = prop_oneof![
            4 => (0..4u64, 0..3u64).prop_map(|(at, offset)| Timestamp::from_raw(at).with_offset(offset).internal()),
            1 => "[0-9._#d+-]{0,20}",
        ];
        let mark = prop_oneof![2 => Just(""), 2 => Just("#0"), 2 => Just("#3#d"), 1 => Just("#9"), 1 => Just("+1"), 1 => Just("#1#x")];
        let ext = prop_oneof![4 => Just(".data"), 2 => Just(".meta"), 1 => Just(".ts"), 1 => Just(".durable"), 1 => Just(".x")];
        (stem, mark, ext).prop_map(|(stem, mark, ext)| format!("{stem}{mark}{ext}"))
    }

    proptest! {
        /// Whatever lies in a hash dir, a choice is made; what is chosen is not to be removed, and nothing is chosen that is.
        #[test]
        fn any_names_are_chosen_from(
            names in proptest::collection::vec(any_name(), 0..8),
            erasure: bool,
            frag_index in proptest::option::of(0..6u32),
            prefs in proptest::option::of(proptest::collection::vec((0..4u64, proptest::collection::vec(0..5u32, 0..3)), 0..3)),
        ) {
            let pref = |(at, exclude)| FragPref { timestamp: Timestamp::from_raw(at), exclude };
            let prefs = prefs.map(|prefs| prefs.into_iter().map(pref).collect::<Vec<_>>());
            let scheme = if erasure { Scheme::Erasure { fragments: 6 } } else { Scheme::Replication };
            let want = Want { frag_index, frag_prefs: prefs.as_deref() };
            let mut names = names;
            names.sort();
            names.reverse();
            let files = get_ondisk_files(names.iter().map(|name| name.as_bytes()), scheme, want);
            let chosen = [files.data, files.meta, files.tombstone, files.ctype].into_iter().flatten();
            // With preferences Swift, too, chooses what would go when it is old, or beside an old `.durable` of something newer.
            for info in chosen.filter(|_| prefs.is_none()) {
                prop_assert!(!files.obsolete.iter().chain(&files.possible_reclaim).any(|gone| gone.index == info.index));
                prop_assert!(!files.unexpected.contains(&info.index));
            }
            prop_assert!(files.data.is_none() || files.tombstone.is_none());
            if let (true, Some(data), Some(index)) = (erasure && prefs.is_none(), files.data, frag_index) {
                prop_assert_eq!(data.frag_index, Some(index));
                prop_assert!(data.durable);
            }
        }
    }
}
