//! The body of a GET: segments decoded from fragments, as many archives being read as are needed.
//!
//! A segment at a time is in memory, and its fragments. Of a range, segments at both ends are trimmed; of several ranges
//! the bytes follow one another, and who frames them is not known here.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use service::http::{BodyError, BodyStream, BoxFuture};

use super::EcPolicy;
use super::archive::{Archive, Sources, corrupt};
use super::ranges::Part;
use crate::environ::NonClientDisconnect;

pub struct Download {
    pub policy: Arc<EcPolicy>,
    pub sources: Arc<Sources>,
    pub archives: Vec<Archive>,
    /// Yet to come, the present one first.
    pub parts: VecDeque<Part>,
    pub object_len: u64,
    /// Where the next fragment of the present part begins, once one has been read.
    pub at: Option<u64>,
    /// Decoded, and not given out yet.
    pub decoded: VecDeque<Bytes>,
    pub disconnect: Option<NonClientDisconnect>,
    pub begun: bool,
    pub done: bool,
}

impl Download {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(piece) = self.decoded.pop_front() {
                return Ok(Some(piece));
            }
            let Some(part) = self.parts.front() else { return Ok(None) };
            let at = self.at.unwrap_or_else(|| part.first_fragment(&self.policy));
            let offset = at / self.policy.fragment_size * self.policy.segment_size;
            match part.wanted {
                Some((start, end)) if offset < end && at < part.end => {
                    let len = self.policy.segment_size.min(self.object_len.saturating_sub(offset));
                    // The last bytes of an object are asked for with a segment more than may be needed.
                    if offset + len > start {
                        self.decode(at, offset, (start, end)).await?;
                    }
                    self.at = Some(at + self.policy.fragment_size);
                }
                _ => {
                    join_all(self.archives.iter_mut().map(Archive::finish_part)).await;
                    self.parts.pop_front();
                    self.at = None;
                }
            }
        }
    }

    /// Reads the fragments of the segment at an offset of the object, and keeps what is wanted of it.
    async fn decode(&mut self, at: u64, offset: u64, (start, end): (u64, u64)) -> Result<(), BodyError> {
        let len = self.policy.fragment_len_at(offset, self.object_len) as usize;
        let reads = self.archives.iter_mut().map(|archive| archive.fragment(at, len));
        let mut fragments = try_join_all(reads).await?;
        let check = |(archive, fragment): (&Archive, &Bytes)| archive.check(fragment);
        let checks = self.archives.iter().zip(&fragments).map(check).collect();
        for place in corrupt(checks).await? {
            fragments[place] = self.archives[place].fragment_of_another(at, len).await?;
        }
        let slices = self.policy.codec.decode(&fragments).map_err(|error| {
            let path = &self.sources.ask.target.path;
            self.sources.ask.logger.error(format_args!(
                "Error decoding fragments for '{path}'. Lengths: [{len}; {}]: {error}",
                fragments.len()
            ));
            BodyError::Other(error.to_string())
        })?;
        let mut place = offset;
        for slice in slices {
            let slice_end = place + slice.len() as u64;
            let (from, to) = (start.max(place), end.min(slice_end));
            if from < to {
                self.decoded.push_back(slice.slice((from - place) as usize..(to - place) as usize));
            }
            place = slice_end;
        }
        if place != self.object_len.min(offset + self.policy.segment_size) {
            return Err(BodyError::Malformed("a segment is not as long as the object says"));
        }
        Ok(())
    }
}

impl BodyStream for Download {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            self.begun = true;
            let piece = self.next_piece().await;
            if !matches!(piece, Ok(Some(_))) {
                self.done = true;
            }
            if let Err(error) = &piece {
                let ask = &self.sources.ask;
                ask.logger.error(format_args!("Trying to send to client {}: {error}", ask.target.path));
                if let Some(disconnect) = &self.disconnect {
                    disconnect.set();
                }
            }
            piece.transpose()
        })
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Whoever frames ranges stops at the last wanted byte, and does not ask for the end.
        let next = self.at.map_or(0, |at| at / self.policy.fragment_size * self.policy.segment_size);
        let all_given = self.decoded.is_empty()
            && self.parts.iter().enumerate().all(|(i, part)| {
                part.wanted.is_none_or(|(_, end)| i == 0 && self.at.is_some() && next >= end)
            });
        if self.begun && !self.done && !all_given {
            let ask = &self.sources.ask;
            ask.logger.warning(format_args!("Client disconnected on read of EC frag '{}'", ask.target.path));
        }
    }
}
