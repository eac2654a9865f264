//! Dicts of text to plain values, such as hashes.pkl and the answer to REPLICATE: they have thousands of items, are read far more often than
//! changed, and go in and out without anything built in between.
//!
//! Written as [`super::dumps`] writes them. Read is what CPython writes, of protocol 2 and of protocol 4; whatever else is
//! the general reader's, such as values that are themselves dicts.

use super::cursor::Cursor;
use super::op;
use super::write::Writer;

/// A plain value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flat<'a> {
    None,
    Bool(bool),
    Float(f64),
    Str(&'a str),
}

/// Gives each item to `item`, in order; one key may come twice, and the last one counts. `None` for what only the general reader
/// understands, of which some may have been given.
pub fn read_flat<'a>(data: &'a [u8], mut item: impl FnMut(&'a str, Flat<'a>)) -> Option<()> {
    let mut reader = FlatReader(Cursor::new(data));
    reader.0.skip(&[op::PROTO])?;
    reader.0.take(1).filter(|protocol| matches!(protocol, [2..=4]))?;
    reader.expect(op::EMPTY_DICT)?;
    reader.0.memo_put()?;
    loop {
        match reader.ahead()? {
            op::STOP => return Some(()),
            op::MARK => {
                reader.0.take(1)?;
                while reader.ahead()? != op::SETITEMS {
                    let (key, value) = (reader.text()?, reader.value()?);
                    item(key, value);
                }
                reader.0.take(1)?;
            }
            _ => {
                let (key, value) = (reader.text()?, reader.value()?);
                reader.expect(op::SETITEM)?;
                item(key, value);
            }
        }
    }
}

struct FlatReader<'a>(Cursor<'a>);

impl<'a> FlatReader<'a> {
    /// The next opcode, with which a frame may begin.
    fn ahead(&mut self) -> Option<u8> {
        while self.0.peek()? == op::FRAME {
            self.0.take(9)?;
        }
        self.0.peek()
    }

    fn expect(&mut self, opcode: u8) -> Option<()> {
        self.ahead()?;
        self.0.skip(&[opcode])
    }

    fn text(&mut self) -> Option<&'a str> {
        self.ahead()?;
        let text = self.0.text()?;
        self.0.memo_put()?;
        std::str::from_utf8(text).ok()
    }

    fn value(&mut self) -> Option<Flat<'a>> {
        let value = match self.ahead()? {
            op::NONE => Flat::None,
            op::NEWTRUE => Flat::Bool(true),
            op::NEWFALSE => Flat::Bool(false),
            op::BINFLOAT => {
                let bytes = self.0.take(9)?[1..].try_into().ok()?;
                return Some(Flat::Float(f64::from_be_bytes(bytes)));
            }
            _ => return self.text().map(Flat::Str),
        };
        self.0.take(1)?;
        Some(value)
    }
}

/// Pickles a dict with protocol 2.
pub fn dump_flat<K: AsRef<str>>(items: &[(K, Flat<'_>)]) -> Vec<u8> {
    let size: usize = items.iter().map(|(key, value)| key.as_ref().len() + value.len() + 20).sum();
    let mut writer = Writer::new(size + 16);
    writer.save_dict(items, |w, (key, value)| {
        w.save_str(key.as_ref());
        w.save_flat(*value);
    });
    writer.finish()
}

impl Flat<'_> {
    fn len(&self) -> usize {
        if let Flat::Str(text) = self { text.len() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Value, dumps, loads};
    use super::*;
    use proptest::prelude::*;

    fn read(data: &[u8]) -> Option<Value> {
        let mut items = Vec::new();
        read_flat(data, |key, value| items.push((Value::str(key), general(value))))?;
        Some(Value::Dict(items))
    }

    fn general(value: Flat<'_>) -> Value {
        match value {
            Flat::None => Value::None,
            Flat::Bool(is) => Value::Bool(is),
            Flat::Float(float) => Value::Float(float),
            Flat::Str(text) => Value::str(text),
        }
    }

    fn any_flat() -> impl Strategy<Value = Flat<'static>> {
        let text =
            || prop::sample::select(vec!["", "0", "00000000000000000000000000001eef", "\u{e9}\u{2603}"]);
        prop_oneof![
            1 => Just(Flat::None),
            1 => any::<bool>().prop_map(Flat::Bool),
            1 => (-1e300..1e300f64).prop_map(Flat::Float),
            5 => text().prop_map(Flat::Str),
        ]
    }

    #[test]
    fn what_python_has_written_is_read_here() {
        let hashes = include_bytes!("../../tests/golden/hashes.pickle");
        assert_eq!(read(hashes), Some(loads(hashes).unwrap()));
        // `python3 -c "import pickle; print(pickle.dumps({'abc': 'x' * 32, 'fff': None}))"`
        let answer = b"\x80\x04\x955\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x03abc\x94\x8c xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\x94\x8c\x03fff\x94Nu.";
        let items = [(Value::str("abc"), Value::str("x".repeat(32))), (Value::str("fff"), Value::None)];
        assert_eq!(read(answer), Some(Value::Dict(items.to_vec())));
    }

    #[test]
    fn dicts_in_dicts_are_left_to_the_general_reader() {
        assert_eq!(read(include_bytes!("../../tests/golden/hashes_ec.pickle")), None);
    }

    proptest! {
        /// Also with as many items as CPython writes in two groups.
        #[test]
        fn it_is_written_and_read_as_by_the_general_ones(
            items in prop::collection::vec(("[0-9a-f]{0,3}", any_flat()), 0..9),
            more in prop::sample::select(vec![0, 1, 300, 999, 1000, 1001, 2000]),
        ) {
            let more = (0..more).map(|n| (format!("{n:04x}"), Flat::Str("hash")));
            let items: Vec<_> = items.into_iter().chain(more).collect();
            let value = Value::Dict(items.iter().map(|(k, v)| (Value::str(k), general(*v))).collect());
            let pickled = dump_flat(&items);
            prop_assert!(pickled == dumps(&value));
            // What is there a second time is a reference to the first, which only the general reader follows.
            if let Some(read) = read(&pickled) {
                prop_assert!(read == value);
            }
        }

        /// It may give up on anything, but never read something else.
        #[test]
        fn it_never_reads_something_else(
            items in prop::collection::vec(("[0-9a-f]{3}", any_flat()), 0..9),
            at: prop::sample::Index, with: u8, cut: prop::sample::Index,
        ) {
            let mut bytes = dump_flat(&items);
            let at = at.index(bytes.len());
            bytes[at] = with;
            // A damaged number may be none, which is not equal to itself.
            if let Some(value) = read(&bytes) {
                prop_assert_eq!(format!("{value:?}"), format!("{:?}", loads(&bytes).unwrap()));
            }
            bytes.truncate(cut.index(bytes.len()));
            if let Some(value) = read(&bytes) {
                prop_assert_eq!(format!("{value:?}"), format!("{:?}", loads(&bytes).unwrap()));
            }
        }

        #[test]
        fn any_bytes_are_read_as_by_the_general_one_or_not(bytes: Vec<u8>) {
            if let Some(value) = read(&bytes) {
                prop_assert_eq!(format!("{value:?}"), format!("{:?}", loads(&bytes).unwrap()));
            }
        }
    }
}
