//! Object metadata as it is pickled: a dict of bytes to bytes.
//!
//! [`Pairs`] keeps all names and values in one buffer, because metadata is read for each request and seldom changed.
//! What Python 3 Swift writes is read by a reader of its own in one go; whatever else is a pickle of a dict of text
//! goes through the general one, with the same result.

use super::cursor::Cursor;
use super::read::{latin1, loads};
use super::{PickleError, Value, op};

/// Names and values in order. Nothing is said about names that occur twice.
#[derive(Clone, Default)]
pub struct Pairs {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

/// Offsets of a name, of the value that follows it, and of the value's end.
#[derive(Clone, Copy)]
pub(super) struct Item {
    name: u32,
    value: u32,
    end: u32,
}

impl Pairs {
    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.items.iter().map(|item| self.item(*item))
    }

    pub fn position(&self, name: &[u8]) -> Option<usize> {
        self.iter().position(|(other, _)| other == name)
    }

    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let item = self.append(name, value);
        self.items.push(item);
    }

    /// Changes the pair at `index`. The old one's bytes stay in the buffer.
    pub fn set(&mut self, index: usize, name: &[u8], value: &[u8]) {
        self.items[index] = self.append(name, value);
    }

    pub fn remove(&mut self, index: usize) {
        self.items.remove(index);
    }

    fn append(&mut self, name: &[u8], value: &[u8]) -> Item {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        // Pickles beyond 256 MiB are refused, and nobody makes such metadata.
        let offset = |at: usize| u32::try_from(at).expect("metadata is smaller than 4 GiB");
        Item { name: offset(start), value: offset(start + name.len()), end: offset(self.bytes.len()) }
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(super) fn item(&self, item: Item) -> (&[u8], &[u8]) {
        let Item { name, value, end } = item;
        (&self.bytes[name as usize..value as usize], &self.bytes[value as usize..end as usize])
    }
}

impl PartialEq for Pairs {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Pairs {}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Pairs {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(items: T) -> Self {
        let mut pairs = Pairs::default();
        for (name, value) in items {
            pairs.push(name.as_ref(), value.as_ref());
        }
        pairs
    }
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lossy = |bytes| String::from_utf8_lossy(bytes);
        f.debug_map().entries(self.iter().map(|(name, value)| (lossy(name), lossy(value)))).finish()
    }
}

/// Object metadata as bytes to bytes: names and values are UTF-8 with arbitrary bytes in between, as
/// Python 3 Swift stores them. What Python 2 wrote as Latin-1 (all but the value of `name`) is turned into that.
pub fn load_metadata(data: &[u8]) -> Result<Pairs, PickleError> {
    match Usual::read(data) {
        Some(pairs) => Ok(pairs),
        None => load_any(data),
    }
}

fn load_any(data: &[u8]) -> Result<Pairs, PickleError> {
    // Swift: `_codecs.encode` among the first bytes tells that Python 3 has written them.
    let head = &data[..data.len().min(32)];
    let by_python3 = memchr::memmem::find(head, b"_codecs\nencode").is_some();
    let Value::Dict(items) = loads(data)? else {
        return Err(PickleError::Malformed("metadata isn't a dict"));
    };
    let text = |value: Value, is_name: bool| match value {
        Value::Bytes(b) if by_python3 || is_name => Ok(b),
        Value::Bytes(b) => Ok(b.iter().map(|&b| char::from(b)).collect::<String>().into_bytes()),
        Value::Str(s) => Ok(s.into_bytes()),
        _ => Err(PickleError::Malformed("metadata holds something that isn't text")),
    };
    let mut pairs = Pairs::default();
    for (name, value) in items {
        let is_name = name.as_str() == Some("name");
        pairs.push(&text(name, false)?, &text(value, is_name)?);
    }
    Ok(pairs)
}

/// Reads the pickle of a dict of 2 to 999 items, protocol 2, each name and value of which is
/// `_codecs.encode(TEXT, 'latin1')`. Gives up at anything else, such as empty bytes.
struct Usual<'a> {
    cursor: Cursor<'a>,
    /// Where the memo has `_codecs.encode` and `'latin1'`.
    encode: Option<u32>,
    latin1: Option<u32>,
}

impl<'a> Usual<'a> {
    fn read(data: &'a [u8]) -> Option<Pairs> {
        let mut reader = Usual { cursor: Cursor::new(data), encode: None, latin1: None };
        reader.cursor.skip(&[op::PROTO, 2, op::EMPTY_DICT])?;
        reader.cursor.memo_put()?;
        reader.cursor.skip(&[op::MARK])?;
        let mut pairs =
            Pairs { bytes: Vec::with_capacity(data.len()), items: Vec::with_capacity(data.len() / 64) };
        while reader.cursor.peek() != Some(op::SETITEMS) {
            let name = reader.bytes()?;
            let value = reader.bytes()?;
            match (name.is_ascii(), value.is_ascii()) {
                (true, true) => pairs.push(name, value),
                _ => pairs.push(&latin1(name).ok()?, &latin1(value).ok()?),
            }
        }
        reader.cursor.skip(&[op::SETITEMS, op::STOP])?;
        Some(pairs)
    }

    /// The text of one `_codecs.encode(TEXT, 'latin1')`.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let cursor = &mut self.cursor;
        match self.encode {
            None => {
                cursor.skip(b"c_codecs\nencode\n")?;
                self.encode = Some(cursor.memo_put()?);
            }
            Some(index) => cursor.memo_get(index)?,
        }
        let text = cursor.text()?;
        cursor.memo_put()?;
        match self.latin1 {
            None => {
                cursor.text().filter(|encoding| *encoding == b"latin1")?;
                self.latin1 = Some(cursor.memo_put()?);
            }
            Some(index) => cursor.memo_get(index)?,
        }
        cursor.skip(&[op::TUPLE2])?;
        cursor.memo_put()?;
        cursor.skip(&[op::REDUCE])?;
        cursor.memo_put()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::dump_metadata;
    use super::*;
    use proptest::prelude::*;

    const WITH_EMPTY: &[u8] = include_bytes!("../../tests/golden/metadata_small.pickle");

    fn sample() -> Pairs {
        let value = |name: &str| name.bytes().cycle().take(40).collect::<Vec<u8>>();
        ["name", "ETag", "Content-Type", "X-Timestamp", "caf\u{e9}"].iter().map(|n| (n, value(n))).collect()
    }

    #[test]
    fn the_usual_reader_gives_up_at_empty_values() {
        assert_eq!(Usual::read(WITH_EMPTY), None);
        assert_eq!(load_metadata(WITH_EMPTY).unwrap().get(b"X-Object-Meta-Empty"), Some(&b""[..]));
    }

    #[test]
    fn pairs_change_in_place() {
        let mut pairs = Pairs::from_iter([("a", "1"), ("b", "2"), ("c", "3")]);
        pairs.set(1, b"b", b"two");
        pairs.remove(0);
        assert_eq!(pairs, Pairs::from_iter([("b", "two"), ("c", "3")]));
        assert_eq!((pairs.get(b"b"), pairs.get(b"a"), pairs.len()), (Some(&b"two"[..]), None, 2));
    }

    proptest! {
        #[test]
        fn the_usual_reader_agrees_with_the_general_one(
            items in prop::collection::hash_map(any::<[u8; 3]>(), prop::collection::vec(any::<u8>(), 2..9), 2..90),
        ) {
            let pickle = dump_metadata(&items.iter().collect());
            prop_assert_eq!(Usual::read(&pickle), Some(load_any(&pickle).unwrap()));
        }

        /// It may give up on anything, but never read something else.
        #[test]
        fn the_usual_reader_never_reads_something_else(at: prop::sample::Index, with: u8, cut: prop::sample::Index) {
            let mut bytes = dump_metadata(&sample());
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Some(pairs) = Usual::read(&bytes) {
                prop_assert_eq!(Ok(pairs), load_any(&bytes));
            }
            bytes.truncate(cut.index(bytes.len()));
            prop_assert_eq!(Usual::read(&bytes), None);
        }
    }
}
