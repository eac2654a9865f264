//! Lines and counted bytes out of a body: what both ends of SSYNC read from.
//!
//! Once a read has failed every later one fails alike: the place in the conversation is lost, and whoever shares the input
//! (the receiver and the PUT that it has dispatched) must not go on from it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use service::http::{Body, BodyError};
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Nothing came for the given time; the text says while what.
    #[error("{0}")]
    Timeout(String),
    /// The body ended in the middle, or is not well-formed.
    #[error("{0}")]
    Read(String),
}

pub struct Input {
    body: Body,
    buffer: Bytes,
    ended: bool,
    /// The longest line, and the largest piece handed out.
    chunk_size: usize,
    timeout: Duration,
    failed: Option<InputError>,
}

impl Input {
    pub fn new(body: Body, chunk_size: usize, timeout: Duration) -> Self {
        Self { body, buffer: Bytes::new(), ended: false, chunk_size, timeout, failed: None }
    }

    /// The next line with its line end; empty at the end of the body.
    pub async fn read_line(&mut self, context: &str) -> Result<Bytes, InputError> {
        self.check()?;
        let mut searched = 0;
        // For the whole line, as in Swift: a sender which trickles must not hold the locks.
        let mut deadline = None;
        loop {
            if let Some(line) = self.buffered_line(&mut searched) {
                return Ok(line);
            }
            if self.buffer.len() >= self.chunk_size || (self.ended && !self.buffer.is_empty()) {
                return self.fail(InputError::Read(format!("{context}: missing newline")));
            }
            if self.ended {
                return Ok(Bytes::new());
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.timeout);
            self.fill(context, deadline).await?;
        }
    }

    /// A line that can be had without waiting.
    pub fn take_buffered_line(&mut self) -> Option<Bytes> {
        if self.failed.is_some() {
            return None;
        }
        self.buffered_line(&mut 0)
    }

    fn buffered_line(&mut self, searched: &mut usize) -> Option<Bytes> {
        let reach = self.buffer.len().min(self.chunk_size);
        match memchr::memchr(b'\n', &self.buffer[*searched..reach]) {
            Some(at) => Some(self.buffer.split_to(*searched + at + 1)),
            None => {
                *searched = reach;
                None
            }
        }
    }

    /// Between 1 and `limit` bytes; the end of the body is an error.
    pub async fn read_chunk(&mut self, context: &str, limit: usize) -> Result<Bytes, InputError> {
        self.check()?;
        while self.buffer.is_empty() {
            if self.ended {
                return self.fail(InputError::Read(format!("Early termination for {context}")));
            }
            self.fill(context, Instant::now() + self.timeout).await?;
        }
        let len = self.buffer.len().min(limit).min(self.chunk_size);
        Ok(self.buffer.split_to(len))
    }

    async fn fill(&mut self, context: &str, deadline: Instant) -> Result<(), InputError> {
        let piece = match tokio::time::timeout_at(deadline, self.body.next()).await {
            Err(_) | Ok(Some(Err(BodyError::Timeout))) => {
                return self.fail(InputError::Timeout(timeout_message(self.timeout, context)));
            }
            Ok(Some(Err(err))) => return self.fail(InputError::Read(format!("{context}: {err}"))),
            Ok(piece) => piece,
        };
        match piece.transpose() {
            // A piece that comes into an empty buffer is not copied.
            Ok(Some(piece)) if self.buffer.is_empty() => self.buffer = piece,
            Ok(Some(piece)) => self.append(&piece),
            Ok(None) | Err(_) => self.ended = true,
        }
        Ok(())
    }

    fn append(&mut self, piece: &[u8]) {
        let buffered = std::mem::take(&mut self.buffer);
        let mut buffered = buffered.try_into_mut().unwrap_or_else(|shared| {
            let mut copy = BytesMut::with_capacity(shared.len() + piece.len());
            copy.extend_from_slice(&shared);
            copy
        });
        buffered.extend_from_slice(piece);
        self.buffer = buffered.freeze();
    }

    fn check(&self) -> Result<(), InputError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn fail<T>(&mut self, error: InputError) -> Result<T, InputError> {
        self.failed = Some(error.clone());
        self.buffer.clear();
        self.ended = true;
        Err(error)
    }
}

/// What Swift's MessageTimeout says.
pub fn timeout_message(timeout: Duration, context: &str) -> String {
    let secs = timeout.as_secs_f64();
    let plural = if secs == 1.0 { "" } else { "s" };
    format!("{secs:?} second{plural}: {context}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn input(pieces: &[&'static str]) -> Input {
        let pieces: Vec<Bytes> = pieces.iter().map(|piece| Bytes::from_static(piece.as_bytes())).collect();
        let body = Body::driven(|tx| async move {
            for piece in pieces {
                let _ = tx.send(piece).await;
            }
        });
        Input::new(body, 16, TIMEOUT)
    }

    #[tokio::test]
    async fn lines_and_counted_bytes_alternate_over_any_pieces() {
        let mut input = input(&["one\r", "\ntwo\nab", "cdef", "ghi\nlast\n"]);
        assert_eq!(input.read_line("x").await.unwrap(), "one\r\n");
        assert_eq!(input.take_buffered_line().unwrap(), "two\n");
        assert_eq!(input.take_buffered_line(), None);
        let mut counted = Vec::new();
        while counted.len() < 9 {
            counted.extend_from_slice(&input.read_chunk("x", 9 - counted.len()).await.unwrap());
        }
        assert_eq!(counted, b"abcdefghi");
        assert_eq!(input.read_line("x").await.unwrap(), "\n");
        assert_eq!(input.read_line("x").await.unwrap(), "last\n");
        assert_eq!(input.read_line("x").await.unwrap(), "");
        assert_eq!(input.read_line("x").await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_line_without_end_is_an_error_for_good() {
        for pieces in [&["no end"][..], &["more than 16 bytes\n"], &["0123456789", "0123456789\n"]] {
            let mut input = input(pieces);
            let error = input.read_line("updates line").await.unwrap_err();
            assert_eq!(error, InputError::Read("updates line: missing newline".into()), "{pieces:?}");
            assert_eq!(input.read_line("later").await, Err(error));
            assert!(input.take_buffered_line().is_none());
        }
    }

    #[tokio::test]
    async fn a_body_too_short_for_its_bytes_is_an_error_for_good() {
        let mut input = input(&["ab"]);
        assert_eq!(input.read_chunk("PUT /a/c/o", 5).await.unwrap(), "ab");
        let error = InputError::Read("Early termination for PUT /a/c/o".into());
        assert_eq!(input.read_chunk("PUT /a/c/o", 3).await, Err(error));
    }

    #[tokio::test]
    async fn silence_is_a_timeout_and_then_always() {
        let (_tx, body) = Body::channel(1);
        let mut input = Input::new(body, 16, Duration::from_millis(20));
        let want = InputError::Timeout("0.02 seconds: missing_check start".into());
        assert_eq!(input.read_line("missing_check start").await, Err(want.clone()));
        assert_eq!(input.read_chunk("later", 1).await, Err(want));
    }
}
