//! The subset of Python's pickle that Swift puts on disk and on the wire, written and read.
//!
//! Written: protocol 2, byte for byte as CPython writes it, because Python Swift tells by the first bytes of
//! object metadata which Python has written it, and because checksums are taken over the bytes. Where CPython
//! refers back to an object that it has written before, so do we, for the objects that are always one and the
//! same in CPython: empty and one-character strings and bytes, the encoding name and the globals.
//!
//! Read: protocols 0 to 4 (Swift's object server and updater write pending container updates with 0). Only plain
//! values come out; of globals only those which Swift itself writes are known (`_codecs.encode`, `bytes`, `dict`,
//! `HeaderKeyDict`), and a pickle is data from a disk or a peer that may be broken or hostile, so its size, depth
//! and unpacked size are capped.

mod cursor;
mod flat;
mod pairs;
mod read;
mod write;

use std::fmt;

pub use flat::{Flat, dump_flat, read_flat};
pub use pairs::{Pairs, load_metadata};
pub use read::{MAX_DEPTH, MAX_SIZE, loads};
pub use write::{dump_metadata, dumps};

/// A plain Python value. A dict keeps the order of its items.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Str(String),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// Swift's dict of headers; pending container updates hold one. Its names are titled already.
    HeaderKeyDict(Vec<(Value, Value)>),
}

impl Value {
    pub fn str(s: impl Into<String>) -> Self {
        Value::Str(s.into())
    }

    /// Text, whether it was pickled as such or, by Python 2, as bytes.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) => Some(s),
            Value::Bytes(b) => std::str::from_utf8(b).ok(),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(i) => Some(*i),
            Value::Bool(b) => Some(i64::from(*b)),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Float(f) => Some(*f),
            other => other.as_int().map(|i| i as f64),
        }
    }

    /// The items of a dict of either kind.
    pub fn items(&self) -> Option<&[(Value, Value)]> {
        match self {
            Value::Dict(items) | Value::HeaderKeyDict(items) => Some(items),
            _ => None,
        }
    }

    /// What a dict holds under a text key; the last one if the key is there twice, as in Python.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.items()?.iter().rev().find(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v)
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        Value::Str(s.to_owned())
    }
}

impl From<String> for Value {
    fn from(s: String) -> Self {
        Value::Str(s)
    }
}

impl From<i64> for Value {
    fn from(i: i64) -> Self {
        Value::Int(i)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    #[error("pickle data was truncated")]
    Truncated,
    #[error("unsupported pickle opcode 0x{0:02x}")]
    Opcode(u8),
    #[error("pickle names a global that isn't allowed")]
    Global,
    #[error("pickle is malformed: {0}")]
    Malformed(&'static str),
    #[error("pickle exceeds a limit: {0}")]
    Limit(&'static str),
}
mod op {
    pub const PROTO: u8 = 0x80;
    pub const FRAME: u8 = 0x95;
    pub const STOP: u8 = b'.';
    pub const MARK: u8 = b'(';
    pub const POP: u8 = b'0';
    pub const POP_MARK: u8 = b'1';
    pub const NONE: u8 = b'N';
    pub const NEWTRUE: u8 = 0x88;
    pub const NEWFALSE: u8 = 0x89;
    pub const BININT: u8 = b'J';
    pub const BININT1: u8 = b'K';
    pub const BININT2: u8 = b'M';
    pub const LONG1: u8 = 0x8a;
    pub const BINFLOAT: u8 = b'G';
    pub const BINSTRING: u8 = b'T';
    pub const SHORT_BINSTRING: u8 = b'U';
    pub const BINBYTES: u8 = b'B';
    pub const SHORT_BINBYTES: u8 = b'C';
    pub const BINUNICODE: u8 = b'X';
    pub const SHORT_BINUNICODE: u8 = 0x8c;
    pub const EMPTY_LIST: u8 = b']';
    pub const APPEND: u8 = b'a';
    pub const APPENDS: u8 = b'e';
    pub const LIST: u8 = b'l';
    pub const EMPTY_TUPLE: u8 = b')';
    pub const TUPLE: u8 = b't';
    pub const TUPLE1: u8 = 0x85;
    pub const TUPLE2: u8 = 0x86;
    pub const TUPLE3: u8 = 0x87;
    pub const EMPTY_DICT: u8 = b'}';
    pub const DICT: u8 = b'd';
    pub const SETITEM: u8 = b's';
    pub const SETITEMS: u8 = b'u';
    pub const GLOBAL: u8 = b'c';
    pub const STACK_GLOBAL: u8 = 0x93;
    pub const REDUCE: u8 = b'R';
    pub const NEWOBJ: u8 = 0x81;
    pub const BINGET: u8 = b'h';
    pub const LONG_BINGET: u8 = b'j';
    pub const BINPUT: u8 = b'q';
    pub const LONG_BINPUT: u8 = b'r';
    pub const MEMOIZE: u8 = 0x94;
    // Protocol 0: the argument is a line of text.
    pub const INT: u8 = b'I';
    pub const LONG: u8 = b'L';
    pub const FLOAT: u8 = b'F';
    pub const STRING: u8 = b'S';
    pub const UNICODE: u8 = b'V';
    pub const GET: u8 = b'g';
    pub const PUT: u8 = b'p';
}
impl fmt::Display for Value {
    /// Roughly as Python shows it; for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::None => f.write_str("None"),
            Value::Bool(b) => f.write_str(if *b { "True" } else { "False" }),
            Value::Int(i) => write!(f, "{i}"),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Bytes(b) => write!(f, "b\"{}\"", b.escape_ascii()),
            Value::Str(s) => write!(f, "{s:?}"),
            Value::List(items) | Value::Tuple(items) => {
                f.debug_list().entries(items.iter().map(Shown)).finish()
            }
            Value::Dict(items) | Value::HeaderKeyDict(items) => {
                f.debug_map().entries(items.iter().map(|(k, v)| (Shown(k), Shown(v)))).finish()
            }
        }
    }
}

struct Shown<'a>(&'a Value);

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::read::UNDERFLOW;
    use super::*;
    use proptest::prelude::*;

    macro_rules! golden {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/golden/", $name, ".pickle"))
        };
    }

    #[test]
    fn what_cpython_wrote_is_written_again_byte_for_byte() {
        let files: &[(&str, &[u8])] = &[
            ("metadata_small", golden!("metadata_small")),
            ("metadata_large", golden!("metadata_large")),
            ("hashes", golden!("hashes")),
            ("hashes_ec", golden!("hashes_ec")),
            ("dict_1", golden!("dict_1")),
            ("dict_999", golden!("dict_999")),
            ("dict_1000", golden!("dict_1000")),
            ("dict_1001", golden!("dict_1001")),
            ("dict_2000", golden!("dict_2000")),
            ("list_1", golden!("list_1")),
            ("list_999", golden!("list_999")),
            ("list_1000", golden!("list_1000")),
            ("list_1001", golden!("list_1001")),
            ("list_2000", golden!("list_2000")),
            ("async_pending", golden!("async_pending")),
            ("numbers", golden!("numbers")),
        ];
        for (name, bytes) in files {
            let value = loads(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(dumps(&value) == *bytes, "{name}: {value}");
        }
    }

    #[test]
    fn metadata_is_written_as_cpython_writes_it() {
        for bytes in [&golden!("metadata_small")[..], golden!("metadata_large")] {
            let items = load_metadata(bytes).unwrap();
            assert_eq!(items.iter().next(), Some((&b"name"[..], "/a/c/\u{e9}\u{2603}".as_bytes())));
            assert_eq!(items.iter().nth(5).map(|(_, value)| value), Some(&b"caf\xe9"[..]));
            assert!(dump_metadata(&items) == bytes);
        }
    }

    #[test]
    fn metadata_of_python_2_is_latin_1_except_for_the_name() {
        let items = load_metadata(golden!("metadata_py2")).unwrap();
        let (name, value) = ("/a/c/\u{e9}".as_bytes().to_vec(), "\u{c3}\u{a9}".as_bytes().to_vec());
        assert_eq!(items, [(b"name".to_vec(), name), (b"x".to_vec(), value)].into_iter().collect());
    }

    #[test]
    fn values_are_what_was_pickled() {
        let hashes = loads(golden!("hashes")).unwrap();
        assert_eq!(hashes.get("001").unwrap().as_str(), Some("00000000000000000000000000001eef"));
        assert_eq!(hashes.get("fff"), Some(&Value::None));
        assert_eq!(hashes.get("updated").unwrap().as_f64(), Some(1402464677.04188));
        assert_eq!(hashes.get("valid"), Some(&Value::Bool(true)));
        let update = loads(golden!("async_pending")).unwrap();
        assert_eq!(update.get("headers").unwrap().get("X-Size"), Some(&Value::from("12")));
    }

    #[test]
    fn protocols_0_and_1_read_as_protocol_2() {
        let expected = loads(golden!("async_pending_2")).unwrap();
        assert_eq!(loads(golden!("async_pending_0")).unwrap(), expected);
        assert_eq!(loads(golden!("async_pending_1")).unwrap(), expected);
        assert_eq!(expected.get("obj").unwrap().as_str(), Some("o\\u \\ \n\u{2603}\u{1f600}\u{e9}"));
        assert_eq!(
            loads(b"(S'a\\x41\\n\\''\ntp0\n.").unwrap(),
            Value::Tuple(vec![Value::Bytes(b"aA\n'".to_vec())])
        );
    }

    #[test]
    fn hostile_pickles_are_refused_not_followed() {
        let nested = [&b"\x80\x02"[..], &b"]".repeat(400_000), b"."].concat();
        assert_eq!(loads(&nested), loads(b"\x80\x02].").map_err(|_| PickleError::Truncated));
        let deep = [&b"\x80\x02"[..], &b"]".repeat(1000), &b"a".repeat(999), b"."].concat();
        assert_eq!(loads(&deep), Err(PickleError::Limit("depth")));
        assert_eq!(loads(b"\x80\x02]q\x00h\x00a."), Err(PickleError::Limit("depth")));
        assert_eq!(loads(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."), Err(PickleError::Global));
        assert_eq!(loads(b"\x80\x02Nr\xff\xff\xff\xff."), Err(PickleError::Limit("memo")));
        assert_eq!(loads(b"\x80\x02X\xff\xff\xff\xffab."), Err(PickleError::Truncated));
        assert_eq!(loads(b"\x80\x02(h\x00"), Err(PickleError::Malformed("reference to nothing")));
        assert_eq!(loads(b"\x80\x02K\x01(0."), Err(UNDERFLOW));
        assert_eq!(
            loads(b"\x80\x02c_codecs\nencode\n."),
            Err(PickleError::Malformed("a global instead of a value"))
        );
        assert_eq!(loads(b""), Err(PickleError::Truncated));
        assert_eq!(loads(b"(dp0\nb."), Err(PickleError::Opcode(b'b')));
        // Ten levels of ten references each: a hundred bytes that would be ten thousand million values.
        let mut bomb = b"\x80\x02]q\x00".to_vec();
        for level in 0..10u8 {
            bomb.extend_from_slice(b"](");
            (0..10).for_each(|_| bomb.extend_from_slice(&[op::BINGET, level]));
            bomb.extend_from_slice(&[op::APPENDS, op::BINPUT, level + 1]);
        }
        bomb.push(op::STOP);
        assert_eq!(loads(&bomb), Err(PickleError::Limit("unpacked size")));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::None),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<i32>().prop_map(|i| Value::Int(i.into())),
            (-1e300..1e300f64).prop_map(Value::Float),
            any::<Vec<u8>>().prop_map(Value::Bytes),
            ".{0,3}".prop_map(Value::Str),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let pairs = || proptest::collection::vec((inner.clone(), inner.clone()), 0..5);
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::List),
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::Tuple),
                pairs().prop_map(Value::Dict),
                pairs().prop_map(Value::HeaderKeyDict),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_round_trip(value in any_value()) {
            prop_assert_eq!(loads(&dumps(&value)), Ok(value));
        }

        #[test]
        fn metadata_round_trips(items: Vec<(Vec<u8>, Vec<u8>)>) {
            // The first name tells which Python has written it; Swift's is never empty.
            let mut items = items;
            items.insert(0, (b"name".to_vec(), b"/a/c/o".to_vec()));
            let items: Pairs = items.into_iter().collect();
            prop_assert_eq!(load_metadata(&dump_metadata(&items)), Ok(items));
        }

        #[test]
        fn reading_never_panics(bytes: Vec<u8>) {
            let _ = loads(&bytes);
        }

        #[test]
        fn broken_pickles_never_panic(at in 0usize..400, with: u8) {
            let mut bytes = golden!("metadata_small").to_vec();
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = load_metadata(&bytes);
        }
    }
}
