//! Reading pickles: an arena of nodes first, because a pickle may refer to a container before it is filled; values when
//! the end is known, within the limits.

use super::{PickleError, Value, op};

/// Largest pickle read.
pub const MAX_SIZE: usize = 256 << 20;
/// Deepest nesting read.
pub const MAX_DEPTH: usize = 64;
/// References let a small pickle unpack to a large value: at most this many values for each byte of it.
const MAX_NODES_PER_BYTE: usize = 4;
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
pub(super) const UNDERFLOW: PickleError = PickleError::Malformed("stack underflow");

fn pairs(items: Vec<usize>) -> Result<Vec<(usize, usize)>, PickleError> {
    if !items.len().is_multiple_of(2) {
        return Err(PickleError::Malformed("odd number of items for a dict"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// UTF-8 text of characters up to U+00FF as one byte each.
pub(super) fn latin1(text: &[u8]) -> Result<Vec<u8>, PickleError> {
    if text.is_ascii() {
        return Ok(text.to_vec());
    }
    let bad = PickleError::Malformed("text isn't Latin-1");
    let text = std::str::from_utf8(text).map_err(|_| bad)?;
    text.chars().map(|c| u8::try_from(c).map_err(|_| bad)).collect()
}
