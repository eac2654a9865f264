//! Suffix hashes, and the two pickles of them: hashes.pkl and the answer to REPLICATE.
//!
//! ```text
//! hashes.pkl     {'valid': True, SUFFIX: MD5 | None, ..., 'updated': time}
//! the answer     {SUFFIX: MD5 | None, ...}
//! ```
//!
//! Of an EC policy there is a dict in place of an MD5: `{INDEX: MD5, ..., None: MD5}`. What a replication policy has is read and written
//! without anything built in between (`common::pickle::read_flat`).
//!
//! Not here: when a hash may be believed (`hashes.rs`).

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use common::Suffix;
use common::pickle::{self, Flat, Value};
use indexmap::IndexMap;

/// Of a suffix and its hash in a pickle.
const ENTRY_LENGTH: usize = 49;

/// The digits of an MD5. What is as long and something else differs from every MD5, as it should.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HexMd5([u8; 32]);

impl HexMd5 {
    fn parse(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().filter(|_| text.is_ascii()).map(Self)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("it is ASCII")
    }
}

impl From<[u8; 16]> for HexMd5 {
    fn from(digest: [u8; 16]) -> Self {
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        Self(std::array::from_fn(|i| digit(digest[i / 2] >> (4 * (1 - i % 2)) & 15)))
    }
}

impl fmt::Debug for HexMd5 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuffixHash {
    /// Replication.
    Whole(HexMd5),
    /// EC: a hex MD5 per fragment index, and one under `None` for all else.
    Fragments(Vec<(Option<u32>, String)>),
}

impl SuffixHash {
    pub fn to_value(&self) -> Value {
        match self {
            SuffixHash::Whole(hash) => Value::str(hash.as_str()),
            SuffixHash::Fragments(hashes) => {
                let key = |index: &Option<u32>| index.map_or(Value::None, |index| Value::Int(index.into()));
                Value::Dict(hashes.iter().map(|(i, hash)| (key(i), Value::Str(hash.clone()))).collect())
            }
        }
    }

    /// EC: of the fragments of one index, or of all else.
    pub fn of(&self, key: Option<u32>) -> Option<&str> {
        let SuffixHash::Fragments(hashes) = self else { return None };
        hashes.iter().find(|(other, _)| *other == key).map(|(_, hash)| hash.as_str())
    }

    /// EC: of nothing that counts, such as meta files alone.
    pub fn is_empty(&self) -> bool {
        matches!(self, SuffixHash::Fragments(hashes) if hashes.is_empty())
    }

    /// EC: of which indexes there are fragments.
    pub fn frag_indexes(&self) -> impl Iterator<Item = u32> {
        let hashes = match self {
            SuffixHash::Fragments(hashes) => hashes.as_slice(),
            SuffixHash::Whole(_) => &[],
        };
        hashes.iter().filter_map(|(key, _)| *key)
    }

    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Str(hash) => HexMd5::parse(&hash).map(SuffixHash::Whole),
            Value::Dict(items) if !items.is_empty() => {
                let item = |(key, value): (Value, Value)| match (key, value) {
                    (Value::None, Value::Str(hash)) => Some((None, hash)),
                    (Value::Int(index), Value::Str(hash)) => Some((Some(u32::try_from(index).ok()?), hash)),
                    _ => None,
                };
                items.into_iter().map(item).collect::<Option<Vec<_>>>().map(SuffixHash::Fragments)
            }
            _ => None,
        }
    }
}

/// Suffix to hash; `None` where hashing failed or is still to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuffixHashes(pub(super) IndexMap<Suffix, Option<SuffixHash>, BuildHasherDefault<Spread>>);

/// There are so few suffixes that nobody can choose such as collide.
#[derive(Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u16(u16::from(*byte)));
    }

    fn write_u16(&mut self, value: u16) {
        // The golden ratio, of which high bits and low bits are used.
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl SuffixHashes {
    pub fn get(&self, suffix: Suffix) -> Option<&SuffixHash> {
        self.0.get(&suffix).and_then(Option::as_ref)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Suffix, Option<&SuffixHash>)> {
        self.0.iter().map(|(suffix, hash)| (*suffix, hash.as_ref()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the others say something else of a suffix that has a hash here.
    pub(super) fn is_corrected_by(&self, others: &Self) -> bool {
        self.iter().any(|(suffix, hash)| hash.is_some() && hash != others.get(suffix))
    }

    /// The pickle that a REPLICATE request is answered with.
    pub fn to_answer(&self) -> Vec<u8> {
        self.pickle_between(None, None)
    }

    /// Reads a peer's answer to REPLICATE; entries that are no suffix are left out.
    pub fn from_answer(pickled: &[u8]) -> Option<Self> {
        read_dict(
            pickled,
            || Self::with_room_for(pickled),
            |hashes, key, field| {
                hashes.take(key, field);
            },
        )
    }

    fn with_room_for(pickled: &[u8]) -> Self {
        Self(IndexMap::with_capacity_and_hasher(pickled.len() / ENTRY_LENGTH, Default::default()))
    }

    /// `None` if the key is no suffix.
    fn take(&mut self, key: &str, field: Field) -> Option<()> {
        let hash = if let Field::Hash(hash) = field { Some(hash) } else { None };
        self.0.insert(Suffix::parse(key)?, hash);
        Some(())
    }

    /// A dict of the suffixes, and of what hashes.pkl has before and after them.
    fn pickle_between(&self, valid: Option<bool>, updated: Option<f64>) -> Vec<u8> {
        if self.0.values().flatten().any(|hash| matches!(hash, SuffixHash::Fragments(_))) {
            let mut items = Vec::with_capacity(self.len() + 2);
            items.extend(valid.map(|valid| (Value::str("valid"), Value::Bool(valid))));
            let value = |hash: Option<&SuffixHash>| hash.map_or(Value::None, SuffixHash::to_value);
            items.extend(self.iter().map(|(suffix, hash)| (Value::Str(suffix.to_string()), value(hash))));
            items.extend(updated.map(|updated| (Value::str("updated"), Value::Float(updated))));
            return pickle::dumps(&Value::Dict(items));
        }
        let mut items = Vec::with_capacity(self.len() + 2);
        items.extend(valid.map(|valid| (Key::Name("valid"), Flat::Bool(valid))));
        items.extend(self.iter().map(|(suffix, hash)| match hash {
            Some(SuffixHash::Whole(hash)) => (Key::Suffix(suffix.digits()), Flat::Str(hash.as_str())),
            _ => (Key::Suffix(suffix.digits()), Flat::None),
        }));
        items.extend(updated.map(|updated| (Key::Name("updated"), Flat::Float(updated))));
        pickle::dump_flat(&items)
    }
}

/// Of an item of hashes.pkl.
enum Key {
    Name(&'static str),
    Suffix([u8; 3]),
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        match self {
            Key::Name(name) => name,
            Key::Suffix(digits) => std::str::from_utf8(digits).expect("digits are ASCII"),
        }
    }
}

/// What an item of hashes.pkl may say.
enum Field {
    Flag(bool),
    Number(f64),
    Hash(SuffixHash),
    /// Of a suffix that has no hash.
    Nothing,
}

impl From<Flat<'_>> for Field {
    fn from(flat: Flat<'_>) -> Self {
        match flat {
            Flat::None => Field::Nothing,
            Flat::Bool(flag) => Field::Flag(flag),
            Flat::Float(number) => Field::Number(number),
            Flat::Str(hash) => {
                HexMd5::parse(hash).map_or(Field::Nothing, |hash| Field::Hash(SuffixHash::Whole(hash)))
            }
        }
    }
}

impl From<Value> for Field {
    fn from(value: Value) -> Self {
        match value {
            Value::Bool(flag) => Field::Flag(flag),
            Value::Int(number) => Field::Number(number as f64),
            Value::Float(number) => Field::Number(number),
            hash => SuffixHash::from_value(hash).map_or(Field::Nothing, Field::Hash),
        }
    }
}

/// Begins a dict anew, and has each item added to it, however the pickle was written; `None` if it is none of a dict.
fn read_dict<T>(pickled: &[u8], begin: impl Fn() -> T, add: impl Fn(&mut T, &str, Field)) -> Option<T> {
    let mut dict = begin();
    if pickle::read_flat(pickled, |key, value| add(&mut dict, key, value.into())).is_some() {
        return Some(dict);
    }
    let Value::Dict(items) = pickle::loads(pickled).ok()? else { return None };
    let mut dict = begin();
    for (key, value) in items {
        // What no text names is none of Swift's.
        add(&mut dict, key.as_str().unwrap_or_default(), value.into());
    }
    Some(dict)
}

/// The contents of hashes.pkl.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HashesFile {
    pub valid: bool,
    /// When it was written; before any time for files of old writers, which do not say.
    pub updated: f64,
    pub hashes: SuffixHashes,
}

impl HashesFile {
    pub fn invalid() -> Self {
        HashesFile { valid: false, updated: -1.0, hashes: SuffixHashes::default() }
    }

    pub fn from_pickle(pickled: &[u8]) -> Option<Self> {
        let hashes = || SuffixHashes::with_room_for(pickled);
        let begin = || Some(HashesFile { valid: true, hashes: hashes(), ..HashesFile::invalid() });
        let add = |file: &mut Option<Self>, key: &str, field: Field| {
            let Some(known) = file else { return };
            match (key, field) {
                ("valid", field) => known.valid = matches!(field, Field::Flag(true) | Field::Number(1.0)),
                ("updated", Field::Number(updated)) => known.updated = updated,
                ("updated", _) => {}
                (suffix, field) => {
                    if known.hashes.take(suffix, field).is_none() {
                        *file = None;
                    }
                }
            }
        };
        read_dict(pickled, begin, add)?
    }

    /// Whether there is nothing to hash, as far as the file knows.
    pub fn is_settled(&self) -> bool {
        self.valid && self.hashes.0.values().all(Option::is_some)
    }

    pub fn to_pickle(&self) -> Vec<u8> {
        self.hashes.pickle_between(Some(self.valid), Some(self.updated))
    }
}

/// What a hashes.pkl of these bytes says; `None` if it is not valid.
pub fn parse_hashes(pickled: &[u8]) -> Option<SuffixHashes> {
    HashesFile::from_pickle(pickled).filter(|file| file.valid).map(|file| file.hashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::digest::md5;
    use proptest::prelude::*;

    fn whole(of: &str) -> SuffixHash {
        SuffixHash::Whole(md5(of.as_bytes()).into())
    }

    fn suffix_hashes(of: &[(&str, Option<SuffixHash>)]) -> SuffixHashes {
        let entry =
            |(suffix, hash): &(&str, Option<SuffixHash>)| (Suffix::parse(suffix).unwrap(), hash.clone());
        SuffixHashes(of.iter().map(entry).collect())
    }

    /// As Swift writes it: of a replication policy, or of one of erasure coding.
    fn pickled(erasure: bool) -> Vec<u8> {
        let fragments = vec![(None, "a".repeat(32)), (Some(3), "b".repeat(32))];
        let second = if erasure { SuffixHash::Fragments(fragments) } else { whole("d") };
        let hashes = suffix_hashes(&[("07b", Some(whole("c"))), ("fff", Some(second)), ("000", None)]);
        HashesFile { valid: true, updated: 1.5, hashes }.to_pickle()
    }

    /// By the general reader alone.
    fn read_generally(pickled: &[u8]) -> Option<SuffixHashes> {
        let Value::Dict(items) = pickle::loads(pickled).ok()? else { return None };
        let mut hashes = SuffixHashes::default();
        for (key, value) in items {
            hashes.take(key.as_str().unwrap_or_default(), value.into());
        }
        Some(hashes)
    }

    fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
        prop_assert_eq!(SuffixHashes::from_answer(bytes), read_generally(bytes));
        if let Some(hashes) = parse_hashes(bytes) {
            prop_assert_eq!(SuffixHashes::from_answer(bytes), Some(hashes.clone()));
            prop_assert_eq!(SuffixHashes::from_answer(&hashes.to_answer()), Some(hashes));
        }
        Ok(())
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        for erasure in [false, true] {
            assert_eq!(parse_hashes(&pickled(erasure)).unwrap().len(), 3);
            assert_eq!(HashesFile::from_pickle(&pickled(erasure)).unwrap().to_pickle(), pickled(erasure));
        }
        assert_eq!(parse_hashes(b""), None);
    }

    #[test]
    fn an_answer_has_the_bytes_of_swifts() {
        let golden = include_bytes!("../../../common/tests/golden/hashes.pickle");
        let file = HashesFile::from_pickle(golden).unwrap();
        assert!(file.valid);
        let Value::Dict(items) = pickle::loads(golden).unwrap() else { panic!("it is a dict") };
        let suffixes = items.iter().filter(|(key, _)| Suffix::parse(key.as_str().unwrap()).is_some());
        let answer = pickle::dumps(&Value::Dict(suffixes.cloned().collect()));
        assert!(file.hashes.to_answer() == answer);
    }

    #[test]
    fn a_file_that_names_something_else_is_none() {
        let item = |key: &str| (Value::str(key), Value::str("0".repeat(32)));
        let file = |key: &str| pickle::dumps(&Value::Dict(vec![item("abc"), item(key)]));
        assert!(HashesFile::from_pickle(&file("abd")).is_some());
        for key in ["", "abcd", "xyz"] {
            assert_eq!(HashesFile::from_pickle(&file(key)), None, "{key}");
            assert_eq!(SuffixHashes::from_answer(&file(key)).map(|hashes| hashes.len()), Some(1), "{key}");
        }
    }

    #[test]
    fn what_is_no_md5_is_no_hash() {
        let (suffix, hash) = (Suffix::parse("abc").unwrap(), whole("x"));
        for (text, expected) in [(hash_text(&hash).as_str(), Some(&hash)), ("", None), ("abc", None)] {
            let items = vec![(Value::str("abc"), Value::str(text))];
            let read = SuffixHashes::from_answer(&pickle::dumps(&Value::Dict(items))).unwrap();
            assert_eq!((read.len(), read.get(suffix)), (1, expected));
        }
        assert_eq!(hash_text(&hash), common::digest::hex(&md5(b"x")));
    }

    fn hash_text(hash: &SuffixHash) -> String {
        let SuffixHash::Whole(hash) = hash else { panic!("{hash:?}") };
        hash.as_str().to_owned()
    }

    #[test]
    fn no_two_suffixes_are_taken_for_one() {
        let hashes = SuffixHashes((0..Suffix::COUNT).map(|n| (Suffix::new(n).unwrap(), None)).collect());
        let read = SuffixHashes::from_answer(&hashes.to_answer()).unwrap();
        assert_eq!((read.len(), read), (Suffix::COUNT.into(), hashes));
    }

    proptest! {
        #[test]
        fn any_bytes_are_hashes_or_none(bytes: Vec<u8>) {
            check(&bytes)?;
        }

        #[test]
        fn damaged_files_are_hashes_or_none(
            erasure: bool, at: prop::sample::Index, with: u8, length: prop::sample::Index,
        ) {
            let mut bytes = pickled(erasure);
            let at = at.index(bytes.len());
            bytes[at] = with;
            check(&bytes)?;
            check(&bytes[..length.index(bytes.len())])?;
        }
    }
}
