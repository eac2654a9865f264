//! Buffers that go round: what a segment of an erasure coded object becomes is large enough for malloc to give its pages back each
//! time, and to get them anew costs many times what the code does. So is what is read past the page cache.
//!
//! A buffer returns to where it came from when the last [`Bytes`] that shows a part of it goes. Contents are whatever they were. Small ones are
//! left to the allocator, which keeps those itself.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Bytes of buffers that are kept for later.
const MAX_IDLE: usize = 32 << 20;
/// The least that is kept.
const LEAST: usize = 64 << 10;

#[derive(Clone, Default)]
pub struct Buffers {
    idle: Arc<Mutex<Idle>>,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last is the last.
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// One of [`Buffers`].
pub struct Buffer {
    memory: Vec<u8>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// `len` bytes of any value.
    pub fn take(&self, len: usize) -> Buffer {
        let kept = if len < LEAST { None } else { self.idle.lock().take(len) };
        Buffer { memory: kept.unwrap_or_else(|| vec![0; len]), len, home: self.clone() }
    }
}

impl Idle {
    /// One of at least so many bytes, and not of many times that.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let fits = |memory: &Vec<u8>| (len..=4 * len).contains(&memory.len());
        let memory = self.buffers.remove(self.buffers.iter().rposition(fits)?);
        self.bytes -= memory.len();
        Some(memory)
    }

    fn keep(&mut self, memory: Vec<u8>) {
        self.bytes += memory.len();
        self.buffers.push(memory);
        // What nobody has wanted for long.
        while self.bytes > MAX_IDLE {
            self.bytes -= self.buffers.remove(0).len();
        }
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
        if self.memory.len() >= LEAST {
            self.home.idle.lock().keep(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_part_goes() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(2 * LEAST);
        buffer.bytes_mut().fill(7);
        let whole = buffer.freeze();
        let part = whole.slice(2..4);
        drop(whole);
        assert_eq!(buffers.idle.lock().bytes, 0);
        assert_eq!(part, [7, 7][..]);
        drop(part);
        assert_eq!(buffers.idle.lock().bytes, 2 * LEAST);
        assert_eq!(buffers.take(LEAST).as_ref(), [7; LEAST], "the same memory");
        assert_eq!(buffers.take(3 * LEAST).as_ref().len(), 3 * LEAST);
    }

    #[test]
    fn what_is_kept_has_a_bound_and_is_not_wasted_on_little() {
        let buffers = Buffers::default();
        let many: Vec<Buffer> = (0..9).map(|_| buffers.take(MAX_IDLE / 8)).collect();
        drop(many);
        assert_eq!(buffers.idle.lock().bytes, MAX_IDLE);
        assert_eq!(buffers.take(LEAST).memory.len(), LEAST);
        drop(buffers.take(LEAST - 1));
        assert!(buffers.idle.lock().buffers.iter().all(|buffer| buffer.len() >= LEAST));
        assert!(buffers.idle.lock().bytes <= MAX_IDLE);
    }
}
