//! Buffers that go round: what a segment becomes is large enough for malloc to give its pages back each time, and to
//! get them anew costs many times what the code does.
//!
//! A buffer returns to its pool when the last [`Bytes`] that shows a part of it goes. Contents are whatever they were.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers that are kept for later.
const MAX_IDLE: usize = 16;

#[derive(Clone, Default)]
pub struct Pool {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer of a pool.
pub struct Buffer {
    memory: Vec<u8>,
    len: usize,
    home: Pool,
}

impl Pool {
    /// `len` bytes of any value.
    pub fn take(&self, len: usize) -> Buffer {
        let mut memory = self.idle.lock().pop().unwrap_or_default();
        if memory.len() < len {
            memory = vec![0; len];
        }
        Buffer { memory, len, home: self.clone() }
    }
}

impl Buffer {
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.home.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_part_goes() {
        let pool = Pool::default();
        let mut buffer = pool.take(10);
        buffer.bytes_mut().fill(7);
        let whole = buffer.freeze();
        let part = whole.slice(2..4);
        drop(whole);
        assert_eq!(pool.idle.lock().len(), 0);
        assert_eq!(part, [7, 7][..]);
        drop(part);
        assert_eq!(pool.idle.lock().len(), 1);
        assert_eq!(pool.take(5).as_ref(), [7; 5], "the same memory");
        assert_eq!(pool.take(20).as_ref().len(), 20);
    }
}
