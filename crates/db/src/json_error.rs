//! Reading JSON that may be none, with the words in which Python's `json.loads` says so: Swift's servers answer them.
//!
//! A body is read by serde_json; only for one that it refuses a scanner looks for the place where Python's would have stopped. What
//! Python takes and serde_json does not (`NaN`, halves of surrogate pairs, more than 128 levels) is refused where it begins.

use std::fmt;

use common::repr::{python_repr, python_repr_bytes};
use serde_json::Value;

/// More levels than these serde_json does not read.
const MAX_DEPTH: usize = 128;

#[derive(Debug, PartialEq, Eq)]
pub enum JsonError {
    Syntax { message: &'static str, line: usize, column: usize, position: usize },
    Utf8 { body: Vec<u8>, start: usize, end: usize, reason: &'static str },
}

impl JsonError {
    /// As Python shows the exception itself.
    pub fn repr(&self) -> String {
        match self {
            Self::Syntax { .. } => format!("JSONDecodeError({})", python_repr(&self.to_string())),
            Self::Utf8 { body, start, end, reason } => {
                format!(
                    "UnicodeDecodeError('utf-8', {}, {start}, {end}, '{reason}')",
                    python_repr_bytes(body)
                )
            }
        }
    }

    fn at(text: &str, Stop(message, at): Stop) -> Self {
        let before = &text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self::Syntax {
            message,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            position: before.chars().count(),
        }
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { message, line, column, position } => {
                write!(f, "{message}: line {line} column {column} (char {position})")
            }
            Self::Utf8 { body, start, end, reason } if end - start == 1 => {
                write!(
                    f,
                    "'utf-8' codec can't decode byte 0x{:02x} in position {start}: {reason}",
                    body[*start]
                )
            }
            Self::Utf8 { start, end, reason, .. } => {
                write!(f, "'utf-8' codec can't decode bytes in position {start}-{}: {reason}", end - 1)
            }
        }
    }
}

pub fn parse(body: &[u8]) -> Result<Value, JsonError> {
    let text = std::str::from_utf8(body).map_err(|error| not_utf8(body, error))?;
    serde_json::from_str(text).map_err(|_| JsonError::at(text, Scanner { text, at: 0 }.document()))
}

fn not_utf8(body: &[u8], error: std::str::Utf8Error) -> JsonError {
    let start = error.valid_up_to();
    let (end, reason) = match error.error_len() {
        None => (body.len(), "unexpected end of data"),
        Some(len) if matches!(body[start], 0x80..=0xc1 | 0xf5..) => (start + len, "invalid start byte"),
        Some(len) => (start + len, "invalid continuation byte"),
    };
    JsonError::Utf8 { body: body.to_vec(), start, end, reason }
}

/// What is wrong, and at which byte.
struct Stop(&'static str, usize);

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    /// The first fault of a text that has one.
    fn document(&mut self) -> Stop {
        self.skip_space();
        match self.value(0) {
            Err(stop) => stop,
            Ok(()) => {
                self.skip_space();
                let is_all = self.at == self.text.len();
                if is_all { Stop("Expecting value", 0) } else { Stop("Extra data", self.at) }
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), Stop> {
        let start = self.at;
        match self.peek() {
            _ if depth > MAX_DEPTH => Err(Stop("Expecting value", start)),
            Some(b'"') => self.string(),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            _ => {
                let words = ["null", "true", "false"];
                let word = words.into_iter().find(|word| self.text[start..].starts_with(word));
                let len = word.map_or_else(|| number_len(&self.text.as_bytes()[start..]), str::len);
                self.at += len;
                if len > 0 { Ok(()) } else { Err(Stop("Expecting value", start)) }
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), Stop> {
        self.next_token();
        if self.takes(b'}') {
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(Stop("Expecting property name enclosed in double quotes", self.at));
            }
            self.string()?;
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(Stop("Expecting ':' delimiter", self.at));
            }
            self.next_token();
            self.value(depth + 1)?;
            if self.ends(b'}')? {
                return Ok(());
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Stop> {
        self.next_token();
        if self.takes(b']') {
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            if self.ends(b']')? {
                return Ok(());
            }
        }
    }

    /// Past an item: whether all end here, or where the next begins.
    fn ends(&mut self, end: u8) -> Result<bool, Stop> {
        self.skip_space();
        if self.takes(end) {
            return Ok(true);
        }
        if self.peek() != Some(b',') {
            return Err(Stop("Expecting ',' delimiter", self.at));
        }
        self.next_token();
        Ok(false)
    }

    fn string(&mut self) -> Result<(), Stop> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        self.at += 1;
        loop {
            match self.peek() {
                None => return Err(Stop("Unterminated string starting at", start)),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(0..0x20) => return Err(Stop("Invalid control character at", self.at)),
                Some(b'\\') => match bytes.get(self.at + 1) {
                    None => return Err(Stop("Unterminated string starting at", start)),
                    Some(b'u') => {
                        let digits = self.at + 2;
                        // Something must follow the digits.
                        let has_digits = bytes
                            .get(digits..digits + 4)
                            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
                        if !has_digits || digits + 4 == bytes.len() {
                            return Err(Stop("Invalid \\uXXXX escape", digits - 1));
                        }
                        self.at = digits + 4;
                    }
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
                    Some(_) => return Err(Stop("Invalid \\escape", self.at)),
                },
                Some(_) => self.at += 1,
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn takes(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    /// Past the byte here and the space behind it.
    fn next_token(&mut self) {
        self.at += 1;
        self.skip_space();
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
}

/// The length of the number that begins here, 0 if none does. Of `01` it is 1.
fn number_len(bytes: &[u8]) -> usize {
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let sign = usize::from(bytes.first() == Some(&b'-'));
    let integer = if bytes.get(sign) == Some(&b'0') { 1 } else { digits(sign) };
    if integer == 0 {
        return 0;
    }
    let mut len = sign + integer;
    if bytes.get(len) == Some(&b'.') && digits(len + 1) > 0 {
        len += 1 + digits(len + 1);
    }
    if matches!(bytes.get(len), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(len + 1), Some(b'+' | b'-')));
        let exponent = if len + 1 + sign <= bytes.len() { digits(len + 1 + sign) } else { 0 };
        len += if exponent > 0 { 1 + sign + exponent } else { 0 };
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `json.loads` of Python 3.11.
    #[test]
    fn faults_are_told_as_python_tells_them() {
        for (body, said) in [
            (b"".as_slice(), "Expecting value: line 1 column 1 (char 0)"),
            (b" \n".as_slice(), "Expecting value: line 2 column 1 (char 2)"),
            (b"[".as_slice(), "Expecting value: line 1 column 2 (char 1)"),
            (b"[1".as_slice(), "Expecting ',' delimiter: line 1 column 3 (char 2)"),
            (b"[1,".as_slice(), "Expecting value: line 1 column 4 (char 3)"),
            (b"[1,]".as_slice(), "Expecting value: line 1 column 4 (char 3)"),
            (b"[1 2]".as_slice(), "Expecting ',' delimiter: line 1 column 4 (char 3)"),
            (b"{".as_slice(), "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
            (b"{1".as_slice(), "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
            (b"{\"a\"".as_slice(), "Expecting ':' delimiter: line 1 column 5 (char 4)"),
            (b"{\"a\":".as_slice(), "Expecting value: line 1 column 6 (char 5)"),
            (b"{\"a\":}".as_slice(), "Expecting value: line 1 column 6 (char 5)"),
            (b"{\"a\":1".as_slice(), "Expecting ',' delimiter: line 1 column 7 (char 6)"),
            (
                b"{\"a\":1,".as_slice(),
                "Expecting property name enclosed in double quotes: line 1 column 8 (char 7)",
            ),
            (
                b"{\"a\":1,}".as_slice(),
                "Expecting property name enclosed in double quotes: line 1 column 8 (char 7)",
            ),
            (b"{\"a\" 1}".as_slice(), "Expecting ':' delimiter: line 1 column 6 (char 5)"),
            (b"\"abc".as_slice(), "Unterminated string starting at: line 1 column 1 (char 0)"),
            (b"\"a\nb\"".as_slice(), "Invalid control character at: line 1 column 3 (char 2)"),
            (b"\"a\\".as_slice(), "Unterminated string starting at: line 1 column 1 (char 0)"),
            (b"\"\\x\"".as_slice(), "Invalid \\escape: line 1 column 2 (char 1)"),
            (b"\"\\u12\"".as_slice(), "Invalid \\uXXXX escape: line 1 column 3 (char 2)"),
            (b"\"\\u12g4\"".as_slice(), "Invalid \\uXXXX escape: line 1 column 3 (char 2)"),
            (b"\"\\u123".as_slice(), "Invalid \\uXXXX escape: line 1 column 3 (char 2)"),
            (b"01".as_slice(), "Extra data: line 1 column 2 (char 1)"),
            (b"-".as_slice(), "Expecting value: line 1 column 1 (char 0)"),
            (b"-a".as_slice(), "Expecting value: line 1 column 1 (char 0)"),
            (b"1.".as_slice(), "Extra data: line 1 column 2 (char 1)"),
            (b"1e".as_slice(), "Extra data: line 1 column 2 (char 1)"),
            (b"1e+".as_slice(), "Extra data: line 1 column 2 (char 1)"),
            (b"[] []".as_slice(), "Extra data: line 1 column 4 (char 3)"),
            (b"nul".as_slice(), "Expecting value: line 1 column 1 (char 0)"),
            (b"\n\n  [1,\n \"\xc3\xa9\" x]".as_slice(), "Expecting ',' delimiter: line 4 column 6 (char 13)"),
            (b"\xff".as_slice(), "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
            (
                b"\"\xc3\"".as_slice(),
                "'utf-8' codec can't decode byte 0xc3 in position 1: invalid continuation byte",
            ),
            (
                b"\"\xe2\x82\"".as_slice(),
                "'utf-8' codec can't decode bytes in position 1-2: invalid continuation byte",
            ),
            (
                b"\"\xe2\x82".as_slice(),
                "'utf-8' codec can't decode bytes in position 1-2: unexpected end of data",
            ),
            (
                b"\"\xf0\x9f\x98".as_slice(),
                "'utf-8' codec can't decode bytes in position 1-3: unexpected end of data",
            ),
            (b"{\"a\": [1, {\"b\": tru}]}".as_slice(), "Expecting value: line 1 column 17 (char 16)"),
            (b"x".as_slice(), "Expecting value: line 1 column 1 (char 0)"),
        ] {
            assert_eq!(parse(body).unwrap_err().to_string(), said, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn the_exception_shows_its_parts() {
        assert_eq!(
            parse(b"[1 2]").unwrap_err().repr(),
            "JSONDecodeError(\"Expecting ',' delimiter: line 1 column 4 (char 3)\")"
        );
        assert_eq!(
            parse(b"\"a\xff\"").unwrap_err().repr(),
            "UnicodeDecodeError('utf-8', b'\"a\\xff\"', 2, 3, 'invalid start byte')"
        );
    }

    #[test]
    fn deep_nesting_is_refused_on_a_small_stack() {
        let deep = "[".repeat(10_000_000);
        assert!(parse(deep.as_bytes()).is_err());
    }
}
