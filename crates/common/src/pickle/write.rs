//! Writing pickles: protocol 2, byte for byte as CPython's.

use std::collections::HashMap;

use super::flat::Flat;
use super::pairs::Pairs;
use super::{Value, op};

/// CPython writes the items of a dict or list in groups of this many.
const BATCH: usize = 1000;
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
pub fn dump_metadata(pairs: &Pairs) -> Vec<u8> {
    let size: usize = pairs.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
    let mut writer = Writer::new(size + 64);
    writer.save_dict(pairs.items(), |w, item| {
        let (name, value) = pairs.item(*item);
        w.save_bytes(name);
        w.save_bytes(value);
    });
    writer.finish()
}

/// What CPython would have in its memo by now.
pub(super) struct Writer {
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
    pub fn new(capacity: usize) -> Self {
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

    pub fn finish(mut self) -> Vec<u8> {
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
            Value::None => self.save_flat(Flat::None),
            Value::Bool(is) => self.save_flat(Flat::Bool(*is)),
            Value::Int(i) => self.save_int(*i),
            Value::Float(f) => self.save_flat(Flat::Float(*f)),
            Value::Bytes(b) => self.save_bytes(b),
            Value::Str(s) => self.save_flat(Flat::Str(s)),
            Value::List(items) => {
                self.out.push(op::EMPTY_LIST);
                self.memoize();
                self.save_list_items(items);
            }
            Value::Tuple(items) => self.save_tuple(items),
            Value::Dict(items) => self.save_dict(items, |w, (k, v)| {
                w.save(k);
                w.save(v);
            }),
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

    pub fn save_flat(&mut self, value: Flat<'_>) {
        match value {
            Flat::None => self.out.push(op::NONE),
            Flat::Bool(true) => self.out.push(op::NEWTRUE),
            Flat::Bool(false) => self.out.push(op::NEWFALSE),
            Flat::Float(float) => {
                self.out.push(op::BINFLOAT);
                self.out.extend_from_slice(&float.to_be_bytes());
            }
            Flat::Str(text) => self.save_str(text),
        }
    }

    pub fn save_dict<T>(&mut self, items: &[T], save: impl Fn(&mut Self, &T)) {
        self.out.push(op::EMPTY_DICT);
        self.memoize();
        self.batches(items, true, save);
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

    pub fn save_str(&mut self, s: &str) {
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
