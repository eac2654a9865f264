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

use std::collections::HashMap;
use std::fmt;

/// Largest pickle read.
pub const MAX_SIZE: usize = 256 << 20;
/// Deepest nesting read.
pub const MAX_DEPTH: usize = 64;
/// References let a small pickle unpack to a large value: at most this many values for each byte of it.
const MAX_NODES_PER_BYTE: usize = 4;
/// CPython writes the items of a dict or list in groups of this many.
const BATCH: usize = 1000;

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

const CODECS_ENCODE: &[u8] = b"c_codecs\nencode\n";
const BYTES_TYPE: &[u8] = b"c__builtin__\nbytes\n";
const HEADER_KEY_DICT: &[u8] = b"cswift.common.header_key_dict\nHeaderKeyDict\n";

/// Pickles a value with protocol 2.
pub fn dumps(value: &Value) -> Vec<u8> {
    let mut writer = Writer::new(256);
    writer.save(value);
    writer.finish()
}

/// Pickles object metadata: a dict of bytes to bytes.
pub fn dump_metadata<N: AsRef<[u8]>, V: AsRef<[u8]>>(items: &[(N, V)]) -> Vec<u8> {
    let size: usize = items.iter().map(|(n, v)| n.as_ref().len() + v.as_ref().len() + 48).sum();
    let mut writer = Writer::new(size + 64);
    writer.out.push(op::EMPTY_DICT);
    writer.memoize();
    writer.batches(items, true, |w, (name, value)| {
        w.save_bytes(name.as_ref());
        w.save_bytes(value.as_ref());
    });
    writer.finish()
}

/// What CPython would have in its memo by now.
struct Writer {
    out: Vec<u8>,
    next: u32,
    codecs_encode: Option<u32>,
    latin1: Option<u32>,
    bytes_type: Option<u32>,
    header_key_dict: Option<u32>,
    empty_str: Option<u32>,
    empty_bytes: Option<u32>,
    /// One-character strings up to U+00FF and one-byte bytes, by their value.
    one_char: HashMap<u8, u32>,
    one_byte: HashMap<u8, u32>,
}

impl Writer {
    fn new(capacity: usize) -> Self {
        let mut out = Vec::with_capacity(capacity);
        out.extend_from_slice(&[op::PROTO, 2]);
        Self {
            out,
            next: 0,
            codecs_encode: None,
            latin1: None,
            bytes_type: None,
            header_key_dict: None,
            empty_str: None,
            empty_bytes: None,
            one_char: HashMap::new(),
            one_byte: HashMap::new(),
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.out.push(op::STOP);
        self.out
    }

    fn memoize(&mut self) -> u32 {
        let index = self.next;
        self.next += 1;
        match u8::try_from(index) {
            Ok(short) => self.out.extend_from_slice(&[op::BINPUT, short]),
            Err(_) => {
                self.out.push(op::LONG_BINPUT);
                self.out.extend_from_slice(&index.to_le_bytes());
            }
        }
        index
    }

    fn get(&mut self, index: u32) {
        match u8::try_from(index) {
            Ok(short) => self.out.extend_from_slice(&[op::BINGET, short]),
            Err(_) => {
                self.out.push(op::LONG_BINGET);
                self.out.extend_from_slice(&index.to_le_bytes());
            }
        }
    }

    fn global(&mut self, known: Option<u32>, name: &[u8]) -> Option<u32> {
        if let Some(index) = known {
            self.get(index);
            return known;
        }
        self.out.extend_from_slice(name);
        Some(self.memoize())
    }

    fn save(&mut self, value: &Value) {
        match value {
            Value::None => self.out.push(op::NONE),
            Value::Bool(true) => self.out.push(op::NEWTRUE),
            Value::Bool(false) => self.out.push(op::NEWFALSE),
            Value::Int(i) => self.save_int(*i),
            Value::Float(f) => {
                self.out.push(op::BINFLOAT);
                self.out.extend_from_slice(&f.to_be_bytes());
            }
            Value::Bytes(b) => self.save_bytes(b),
            Value::Str(s) => self.save_str(s),
            Value::List(items) => {
                self.out.push(op::EMPTY_LIST);
                self.memoize();
                self.save_list_items(items);
            }
            Value::Tuple(items) => self.save_tuple(items),
            Value::Dict(items) => {
                self.out.push(op::EMPTY_DICT);
                self.memoize();
                self.batches(items, true, |w, (k, v)| {
                    w.save(k);
                    w.save(v);
                });
            }
            Value::HeaderKeyDict(items) => {
                self.header_key_dict = self.global(self.header_key_dict, HEADER_KEY_DICT);
                self.out.extend_from_slice(&[op::EMPTY_TUPLE, op::NEWOBJ]);
                self.memoize();
                self.batches(items, false, |w, (k, v)| {
                    w.save(k);
                    w.save(v);
                });
            }
        }
    }

    /// Items of a dict in CPython's groups. A plain dict whose size is a multiple of the group's size ends with an
    /// empty group; what is pickled by iterating doesn't.
    fn batches<T>(&mut self, items: &[T], plain: bool, save: impl Fn(&mut Self, &T)) {
        let full = items.len().is_multiple_of(BATCH) && !items.is_empty();
        let mut groups = items.chunks(BATCH).peekable();
        while let Some(group) = groups.next() {
            if group.len() == 1 && (items.len() == 1 || !plain) {
                save(self, &group[0]);
                self.out.push(op::SETITEM);
                continue;
            }
            self.out.push(op::MARK);
            group.iter().for_each(|item| save(self, item));
            self.out.push(op::SETITEMS);
            if full && plain && groups.peek().is_none() {
                self.out.extend_from_slice(&[op::MARK, op::SETITEMS]);
            }
        }
    }

    fn save_list_items(&mut self, items: &[Value]) {
        if let [item] = items {
            self.save(item);
            self.out.push(op::APPEND);
            return;
        }
        for group in items.chunks(BATCH) {
            self.out.push(op::MARK);
            group.iter().for_each(|item| self.save(item));
            self.out.push(op::APPENDS);
        }
    }

    fn save_tuple(&mut self, items: &[Value]) {
        let short = match items.len() {
            0 => {
                self.out.push(op::EMPTY_TUPLE);
                return;
            }
            1 => Some(op::TUPLE1),
            2 => Some(op::TUPLE2),
            3 => Some(op::TUPLE3),
            _ => {
                self.out.push(op::MARK);
                None
            }
        };
        items.iter().for_each(|item| self.save(item));
        self.out.push(short.unwrap_or(op::TUPLE));
        self.memoize();
    }

    fn save_int(&mut self, i: i64) {
        if let Ok(byte) = u8::try_from(i) {
            self.out.extend_from_slice(&[op::BININT1, byte]);
        } else if let Ok(short) = u16::try_from(i) {
            self.out.push(op::BININT2);
            self.out.extend_from_slice(&short.to_le_bytes());
        } else if let Ok(int) = i32::try_from(i) {
            self.out.push(op::BININT);
            self.out.extend_from_slice(&int.to_le_bytes());
        } else {
            // The shortest two's complement in which the sign still shows.
            let bytes = i.to_le_bytes();
            let sign = if i < 0 { 0xff } else { 0 };
            let mut len = bytes.len();
            while len > 1 && bytes[len - 1] == sign && (bytes[len - 2] ^ sign) & 0x80 == 0 {
                len -= 1;
            }
            self.out.extend_from_slice(&[op::LONG1, len as u8]);
            self.out.extend_from_slice(&bytes[..len]);
        }
    }

    fn save_str(&mut self, s: &str) {
        let mut chars = s.chars();
        let shared = match (chars.next(), chars.next()) {
            (None, _) => self.empty_str,
            (Some(c), None) => u8::try_from(c).ok().and_then(|c| self.one_char.get(&c).copied()),
            _ => None,
        };
        if let Some(index) = shared {
            self.get(index);
            return;
        }
        let index = self.put_str(s.len(), |out| out.extend_from_slice(s.as_bytes()));
        let mut chars = s.chars();
        match (chars.next(), chars.next()) {
            (None, _) => self.empty_str = Some(index),
            (Some(c), None) => {
                if let Ok(c) = u8::try_from(c) {
                    self.one_char.insert(c, index);
                }
            }
            _ => {}
        }
    }

    fn put_str(&mut self, utf8_len: usize, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        self.out.push(op::BINUNICODE);
        self.out.extend_from_slice(&(utf8_len as u32).to_le_bytes());
        write(&mut self.out);
        self.memoize()
    }

    /// Protocol 2 has no bytes: they are written as `_codecs.encode(TEXT, 'latin1')`, empty ones as `bytes()`.
    fn save_bytes(&mut self, bytes: &[u8]) {
        let shared = match bytes {
            [] => self.empty_bytes,
            [b] => self.one_byte.get(b).copied(),
            _ => None,
        };
        if let Some(index) = shared {
            self.get(index);
            return;
        }
        if bytes.is_empty() {
            self.bytes_type = self.global(self.bytes_type, BYTES_TYPE);
            self.out.extend_from_slice(&[op::EMPTY_TUPLE, op::REDUCE]);
            self.empty_bytes = Some(self.memoize());
            return;
        }
        self.codecs_encode = self.global(self.codecs_encode, CODECS_ENCODE);
        self.save_latin1_text(bytes);
        match self.latin1 {
            Some(index) => self.get(index),
            None => self.latin1 = Some(self.put_str(6, |out| out.extend_from_slice(b"latin1"))),
        }
        self.out.push(op::TUPLE2);
        self.memoize();
        self.out.push(op::REDUCE);
        let index = self.memoize();
        if let [b] = bytes {
            self.one_byte.insert(*b, index);
        }
    }

    fn save_latin1_text(&mut self, bytes: &[u8]) {
        if let [b] = bytes
            && let Some(&index) = self.one_char.get(b)
        {
            self.get(index);
            return;
        }
        let high = bytes.iter().filter(|b| !b.is_ascii()).count();
        let index = self.put_str(bytes.len() + high, |out| {
            if high == 0 {
                out.extend_from_slice(bytes);
                return;
            }
            for &b in bytes {
                match b {
                    0..0x80 => out.push(b),
                    _ => out.extend_from_slice(&[0xc0 | b >> 6, 0x80 | b & 0x3f]),
                }
            }
        });
        if let [b] = bytes {
            self.one_char.insert(*b, index);
        }
    }
}

/// Reads a pickle. What follows its end is ignored, as Python does.
pub fn loads(data: &[u8]) -> Result<Value, PickleError> {
    if data.len() > MAX_SIZE {
        return Err(PickleError::Limit("size"));
    }
    let mut reader =
        Reader { data, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
    let root = reader.run()?;
    let mut budget = data.len().saturating_mul(MAX_NODES_PER_BYTE).saturating_add(64);
    reader.build(root, 0, &mut budget)
}

/// Names and values of object metadata, in the order of the pickle.
pub type MetadataItems = Vec<(Vec<u8>, Vec<u8>)>;

/// Object metadata as bytes to bytes: names and values are UTF-8 with arbitrary bytes in between, as
/// Python 3 Swift stores them. What Python 2 wrote as Latin-1 (all but the value of `name`) is turned into that.
pub fn load_metadata(data: &[u8]) -> Result<MetadataItems, PickleError> {
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
    items
        .into_iter()
        .map(|(name, value)| {
            let is_name = name.as_str() == Some("name");
            Ok((text(name, false)?, text(value, is_name)?))
        })
        .collect()
}

/// The globals that Swift's own reader allows.
#[derive(Copy, Clone, Debug)]
enum Global {
    Encode,
    Bytes,
    Dict,
    HeaderKeyDict,
    /// How protocols 0 and 1 make an object: of a class, a base class and the base's value.
    Reconstructor,
}

/// A value while it is read. Containers refer to nodes, because a pickle may refer to a dict before it is filled.
#[derive(Clone, Debug)]
enum Node<'a> {
    Plain(Value),
    Text(&'a [u8]),
    RawBytes(&'a [u8]),
    /// `_codecs.encode(text, 'latin1')`
    Latin1(&'a [u8]),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    HeaderKeyDict(Vec<(usize, usize)>),
    Global(Global),
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: Vec<Option<usize>>,
}

impl<'a> Reader<'a> {
    fn run(&mut self) -> Result<usize, PickleError> {
        loop {
            let opcode = self.byte()?;
            if opcode == op::STOP {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::PROTO => {
                if self.byte()? > 4 {
                    return Err(PickleError::Malformed("unknown protocol"));
                }
            }
            op::FRAME => {
                self.take(8)?;
            }
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => {
                self.pop()?;
            }
            op::POP_MARK => {
                self.pop_mark()?;
            }
            op::NONE => self.push(Node::Plain(Value::None)),
            op::NEWTRUE => self.push(Node::Plain(Value::Bool(true))),
            op::NEWFALSE => self.push(Node::Plain(Value::Bool(false))),
            op::BININT1 | op::BININT2 | op::BININT | op::LONG1 => {
                let int = self.int(opcode)?;
                self.push(Node::Plain(Value::Int(int)));
            }
            op::BINFLOAT => {
                let float = f64::from_be_bytes(self.array()?);
                self.push(Node::Plain(Value::Float(float)));
            }
            op::SHORT_BINSTRING | op::SHORT_BINBYTES => {
                let bytes = self.short_bytes()?;
                self.push(Node::RawBytes(bytes));
            }
            op::BINSTRING | op::BINBYTES => {
                let bytes = self.long_bytes()?;
                self.push(Node::RawBytes(bytes));
            }
            op::SHORT_BINUNICODE => {
                let text = self.short_bytes()?;
                self.push(Node::Text(text));
            }
            op::BINUNICODE => {
                let text = self.long_bytes()?;
                self.push(Node::Text(text));
            }
            op::BINGET | op::LONG_BINGET | op::GET => self.memo_get(opcode)?,
            op::BINPUT | op::LONG_BINPUT | op::PUT | op::MEMOIZE => self.memo_put(opcode)?,
            op::INT | op::LONG | op::FLOAT | op::STRING | op::UNICODE => {
                let value = text_value(opcode, self.text_line()?)?;
                self.push(Node::Plain(value));
            }
            op::GLOBAL | op::STACK_GLOBAL => {
                let global = self.global(opcode)?;
                self.push(Node::Global(global));
            }
            op::REDUCE | op::NEWOBJ => self.call()?,
            _ => self.container(opcode)?,
        }
        Ok(())
    }

    fn container(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::EMPTY_LIST => self.push(Node::List(Vec::new())),
            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::LIST => {
                let items = self.pop_mark()?;
                self.push(Node::List(items));
            }
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            op::DICT => {
                let items = pairs(self.pop_mark()?)?;
                self.push(Node::Dict(items));
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let count = usize::from(opcode - op::TUPLE1) + 1;
                let from = self.stack.len().checked_sub(count).filter(|from| *from >= self.floor());
                let items = self.stack.split_off(from.ok_or(UNDERFLOW)?);
                self.push(Node::Tuple(items));
            }
            op::APPEND => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            op::APPENDS => {
                let items = self.pop_mark()?;
                self.list()?.extend(items);
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.dict()?.push((key, value));
            }
            op::SETITEMS => {
                let items = pairs(self.pop_mark()?)?;
                self.dict()?.extend(items);
            }
            _ => return Err(PickleError::Opcode(opcode)),
        }
        Ok(())
    }

    fn memo_get(&mut self, opcode: u8) -> Result<(), PickleError> {
        let index = match opcode {
            op::BINGET => usize::from(self.byte()?),
            op::GET => self.text_index()?,
            _ => u32::from_le_bytes(self.array()?) as usize,
        };
        let node = self.memo.get(index).copied().flatten();
        self.stack.push(node.ok_or(PickleError::Malformed("reference to nothing"))?);
        Ok(())
    }

    fn memo_put(&mut self, opcode: u8) -> Result<(), PickleError> {
        let index = match opcode {
            op::BINPUT => usize::from(self.byte()?),
            op::MEMOIZE => self.memo.len(),
            op::PUT => self.text_index()?,
            _ => u32::from_le_bytes(self.array()?) as usize,
        };
        // A pickle memoizes at most one value for each of its bytes.
        if index > self.data.len() {
            return Err(PickleError::Limit("memo"));
        }
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(self.top()?);
        Ok(())
    }

    fn int(&mut self, opcode: u8) -> Result<i64, PickleError> {
        Ok(match opcode {
            op::BININT1 => i64::from(self.byte()?),
            op::BININT2 => i64::from(u16::from_le_bytes(self.array()?)),
            op::BININT => i64::from(i32::from_le_bytes(self.array()?)),
            _ => {
                let bytes = self.short_bytes()?;
                if bytes.len() > 8 {
                    let sign = if bytes[7] & 0x80 == 0 { 0 } else { 0xff };
                    if bytes[8..].iter().any(|b| *b != sign) {
                        return Err(PickleError::Limit("integer"));
                    }
                }
                let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                let mut wide = if negative { [0xff; 8] } else { [0; 8] };
                let len = bytes.len().min(8);
                wide[..len].copy_from_slice(&bytes[..len]);
                i64::from_le_bytes(wide)
            }
        })
    }

    fn global(&mut self, opcode: u8) -> Result<Global, PickleError> {
        let (module, name): (&[u8], &[u8]) = if opcode == op::GLOBAL {
            (self.text_line()?, self.text_line()?)
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            match (&self.nodes[module], &self.nodes[name]) {
                (Node::Text(module), Node::Text(name)) => (module, name),
                _ => return Err(PickleError::Global),
            }
        };
        match (module, name) {
            (b"_codecs", b"encode") => Ok(Global::Encode),
            (b"__builtin__" | b"builtins", b"bytes") => Ok(Global::Bytes),
            (b"__builtin__" | b"builtins", b"dict") => Ok(Global::Dict),
            (b"swift.common.header_key_dict", b"HeaderKeyDict") => Ok(Global::HeaderKeyDict),
            (b"copy_reg" | b"copyreg", b"_reconstructor") => Ok(Global::Reconstructor),
            _ => Err(PickleError::Global),
        }
    }

    /// Calls a global with a tuple of arguments.
    fn call(&mut self) -> Result<(), PickleError> {
        let args = self.pop()?;
        let callee = self.pop()?;
        let (Node::Global(callee), Node::Tuple(args)) = (&self.nodes[callee], &self.nodes[args]) else {
            return Err(PickleError::Malformed("call of something that isn't a global"));
        };
        let args: Vec<&Node<'a>> = args.iter().take(4).map(|a| &self.nodes[*a]).collect();
        let is_latin1 = |node: &Node<'_>| match node {
            Node::Text(text) => matches!(*text, b"latin1" | b"latin-1"),
            Node::Plain(Value::Str(text)) => text == "latin1" || text == "latin-1",
            _ => false,
        };
        let result = match (callee, args.as_slice()) {
            (Global::Encode, [Node::Text(text), encoding]) if is_latin1(encoding) => Node::Latin1(text),
            (Global::Encode, [Node::Plain(Value::Str(text)), encoding]) if is_latin1(encoding) => {
                Node::Plain(Value::Bytes(latin1(text.as_bytes())?))
            }
            (Global::Bytes, []) => Node::RawBytes(b""),
            (Global::Dict, []) => Node::Dict(Vec::new()),
            (Global::HeaderKeyDict, []) => Node::HeaderKeyDict(Vec::new()),
            (
                Global::Reconstructor,
                [Node::Global(Global::HeaderKeyDict), Node::Global(Global::Dict), Node::Dict(items)],
            ) => Node::HeaderKeyDict(items.clone()),
            _ => return Err(PickleError::Malformed("call with unknown arguments")),
        };
        self.push(result);
        Ok(())
    }

    /// Turns a node into a value. Depth bounds the recursion, also of a value that contains itself; the budget
    /// bounds the size.
    fn build(&self, node: usize, depth: usize, budget: &mut usize) -> Result<Value, PickleError> {
        if depth > MAX_DEPTH {
            return Err(PickleError::Limit("depth"));
        }
        let spend = |budget: &mut usize, cost: usize| match budget.checked_sub(cost + 1) {
            Some(rest) => {
                *budget = rest;
                Ok(())
            }
            None => Err(PickleError::Limit("unpacked size")),
        };
        let build_all = |items: &[usize], budget: &mut usize| {
            items.iter().map(|n| self.build(*n, depth + 1, budget)).collect::<Result<Vec<_>, _>>()
        };
        let build_pairs = |items: &[(usize, usize)], budget: &mut usize| {
            items
                .iter()
                .map(|(k, v)| Ok((self.build(*k, depth + 1, budget)?, self.build(*v, depth + 1, budget)?)))
                .collect::<Result<Vec<_>, PickleError>>()
        };
        match &self.nodes[node] {
            Node::Plain(value) => {
                spend(budget, value.as_str().map_or(0, str::len))?;
                Ok(value.clone())
            }
            Node::Text(text) => {
                spend(budget, text.len())?;
                let text =
                    std::str::from_utf8(text).map_err(|_| PickleError::Malformed("text isn't UTF-8"))?;
                Ok(Value::Str(text.to_owned()))
            }
            Node::RawBytes(bytes) => {
                spend(budget, bytes.len())?;
                Ok(Value::Bytes(bytes.to_vec()))
            }
            Node::Latin1(text) => {
                spend(budget, text.len())?;
                latin1(text).map(Value::Bytes)
            }
            Node::List(items) => {
                spend(budget, 0)?;
                build_all(items, budget).map(Value::List)
            }
            Node::Tuple(items) => {
                spend(budget, 0)?;
                build_all(items, budget).map(Value::Tuple)
            }
            Node::Dict(items) => {
                spend(budget, 0)?;
                build_pairs(items, budget).map(Value::Dict)
            }
            Node::HeaderKeyDict(items) => {
                spend(budget, 0)?;
                build_pairs(items, budget).map(Value::HeaderKeyDict)
            }
            Node::Global(_) => Err(PickleError::Malformed("a global instead of a value")),
        }
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// Below this the stack belongs to an open mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<usize, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<usize, PickleError> {
        if self.stack.len() <= self.floor() {
            return Err(UNDERFLOW);
        }
        self.stack.last().copied().ok_or(UNDERFLOW)
    }

    fn pop_mark(&mut self) -> Result<Vec<usize>, PickleError> {
        let from = self.marks.pop().ok_or(PickleError::Malformed("no mark"))?;
        Ok(self.stack.split_off(from))
    }

    fn list(&mut self) -> Result<&mut Vec<usize>, PickleError> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::List(items) => Ok(items),
            _ => Err(PickleError::Malformed("append to something that isn't a list")),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(usize, usize)>, PickleError> {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::Dict(items) | Node::HeaderKeyDict(items) => Ok(items),
            _ => Err(PickleError::Malformed("item of something that isn't a dict")),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.data.len());
        let bytes = &self.data[self.at..end.ok_or(PickleError::Truncated)?];
        self.at += len;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn short_bytes(&mut self) -> Result<&'a [u8], PickleError> {
        let len = usize::from(self.byte()?);
        self.take(len)
    }

    fn long_bytes(&mut self) -> Result<&'a [u8], PickleError> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        self.take(len)
    }

    fn text_index(&mut self) -> Result<usize, PickleError> {
        let line = std::str::from_utf8(self.text_line()?).ok();
        line.and_then(|l| l.parse().ok()).ok_or(PickleError::Malformed("bad memo index"))
    }

    fn text_line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = &self.data[self.at..];
        let end = memchr::memchr(b'\n', rest).ok_or(PickleError::Truncated)?;
        self.at += end + 1;
        Ok(&rest[..end])
    }
}

/// The value of an opcode of protocol 0 and its line.
fn text_value(opcode: u8, line: &[u8]) -> Result<Value, PickleError> {
    let bad = PickleError::Malformed("a line of text that isn't a value");
    if opcode == op::UNICODE {
        return raw_unicode_escape(line).map(Value::Str).ok_or(bad);
    }
    let text = std::str::from_utf8(line).map_err(|_| bad)?;
    match opcode {
        op::STRING => unquote_string(text.trim()).map(Value::Bytes).ok_or(bad),
        op::FLOAT => text.trim().parse().map(Value::Float).map_err(|_| bad),
        op::INT if text == "00" || text == "01" => Ok(Value::Bool(text == "01")),
        _ => text.trim().trim_end_matches('L').parse().map(Value::Int).map_err(|_| bad),
    }
}

/// Latin-1 bytes with `\uXXXX` and `\UXXXXXXXX`; any other backslash stands for itself.
fn raw_unicode_escape(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let [first, tail @ ..] = rest {
        let digits = match (first, tail.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(*first));
                rest = tail;
                continue;
            }
        };
        let hex = std::str::from_utf8(tail.get(1..=digits)?).ok()?;
        text.push(char::from_u32(u32::from_str_radix(hex, 16).ok()?)?);
        rest = &tail[1 + digits..];
    }
    Some(text)
}

/// A string as Python 2's `repr` wrote it.
fn unquote_string(text: &str) -> Option<Vec<u8>> {
    let quote = text.chars().next().filter(|q| matches!(q, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?.as_bytes();
    let mut bytes = Vec::with_capacity(inner.len());
    let mut i = 0;
    while i < inner.len() {
        if inner[i] != b'\\' {
            bytes.push(inner[i]);
            i += 1;
            continue;
        }
        let (byte, len) = match inner.get(i + 1)? {
            b'n' => (b'\n', 2),
            b'r' => (b'\r', 2),
            b't' => (b'\t', 2),
            b'x' => (crate::digest::unhex(inner.get(i + 2..i + 4)?)?[0], 4),
            other @ (b'\\' | b'\'' | b'"') => (*other, 2),
            _ => return None,
        };
        bytes.push(byte);
        i += len;
    }
    Some(bytes)
}

const UNDERFLOW: PickleError = PickleError::Malformed("stack underflow");

fn pairs(items: Vec<usize>) -> Result<Vec<(usize, usize)>, PickleError> {
    if !items.len().is_multiple_of(2) {
        return Err(PickleError::Malformed("odd number of items for a dict"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// UTF-8 text of characters up to U+00FF as one byte each.
fn latin1(text: &[u8]) -> Result<Vec<u8>, PickleError> {
    if text.is_ascii() {
        return Ok(text.to_vec());
    }
    let bad = PickleError::Malformed("text isn't Latin-1");
    let text = std::str::from_utf8(text).map_err(|_| bad)?;
    text.chars().map(|c| u8::try_from(c).map_err(|_| bad)).collect()
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
    use super::*;
    use proptest::prelude::*;

    macro_rules! golden {
        ($name:literal) => {
            include_bytes!(concat!("../tests/golden/", $name, ".pickle"))
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
            assert_eq!(items[0], (b"name".to_vec(), "/a/c/\u{e9}\u{2603}".as_bytes().to_vec()));
            assert_eq!(items[5].1, b"caf\xe9");
            assert!(dump_metadata(&items) == bytes);
        }
    }

    #[test]
    fn metadata_of_python_2_is_latin_1_except_for_the_name() {
        let items = load_metadata(golden!("metadata_py2")).unwrap();
        let (name, value) = ("/a/c/\u{e9}".as_bytes().to_vec(), "\u{c3}\u{a9}".as_bytes().to_vec());
        assert_eq!(items, [(b"name".to_vec(), name), (b"x".to_vec(), value)]);
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
