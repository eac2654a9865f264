//! Reads, piece by piece, what a pickler has written that memoizes everything and counts, as CPython does. Each piece is what is
//! expected or `None`: then the general reader has to find out.

use super::op;

pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    /// Of the memo.
    next: u32,
}

impl<'a> Cursor<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Cursor { rest: data, next: 0 }
    }

    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn skip(&mut self, expected: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    pub fn text(&mut self) -> Option<&'a [u8]> {
        let len = match self.take(1)? {
            [op::BINUNICODE] => self.take(4)?.try_into().ok().map(u32::from_le_bytes)? as usize,
            [op::SHORT_BINUNICODE] => usize::from(self.take(1)?[0]),
            _ => return None,
        };
        self.take(len)
    }

    pub fn memo_put(&mut self) -> Option<u32> {
        let index = self.next;
        self.next += 1;
        match self.peek() {
            Some(op::MEMOIZE) => self.skip(&[op::MEMOIZE])?,
            _ => self.memo(op::BINPUT, op::LONG_BINPUT, index)?,
        }
        Some(index)
    }

    pub fn memo_get(&mut self, index: u32) -> Option<()> {
        self.memo(op::BINGET, op::LONG_BINGET, index)
    }

    fn memo(&mut self, short: u8, long: u8, index: u32) -> Option<()> {
        match u8::try_from(index) {
            Ok(index) => self.skip(&[short, index]),
            Err(_) => {
                self.skip(&[long])?;
                self.skip(&index.to_le_bytes())
            }
        }
    }
}
