//! MD5 of large bodies, hashed together.
//!
//! A stream keeps what it is given, until that is more than its allowance; then the thread which gives it the next piece
//! hashes. It takes up to fifteen other streams along, those that have kept the most, down their chains in step
//! ([`super::kernels`]), and stops when its own stream is back within its allowance. After each [`STEP`] it takes in those
//! that have come meanwhile, whose threads wait for that: sixteen chains take a core little longer than one. So nobody waits
//! for others to come, there is no thread to hand over to, and where there are more than sixteen streams several threads
//! hash at the same time.
//!
//! The allowance grows with the number of streams: a lone stream hashes at once; more of them keep a little each, so
//! that there is something to be taken along. What is left is hashed when the digest is asked for, which must
//! therefore happen on a thread that may work for a while, as must giving pieces.
//!
//! A patient stream is one of several that will ask for their digests at the same time. It keeps what it is given, within
//! the bound for all, so that the first of them to ask takes the others along.
//!
//! Fed in turn, 16 streams hash at 9 GB/s of one core, 4 at 2.3 and one at 0.78 (`--example md5_cost`). An object server spends
//! a half to two thirds of the CPU it spent with one `md-5` for each of 16 uploads at a time, of 1 MiB or of 64 MiB.

use std::collections::{HashMap, VecDeque};
use std::sync::LazyLock;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Md5;
use super::kernels::{Block, MAX_LANES, State, compress_many};

/// What another stream adds to each one's allowance: what a PUT or GET handles at a time.
const QUANTUM: usize = 256 * 1024;
/// The most that a stream may keep.
const KEPT_BY_ONE: usize = 1024 * 1024;
/// The most that all streams may keep, but for the pieces they are about to hash.
const KEPT_BY_ALL: usize = 64 * 1024 * 1024;
/// What is so little is hashed alone.
const LITTLE: usize = 4 * 1024;
/// A thread hashes so much of its own stream before it looks who else has come.
const STEP: usize = 64 * 1024;

static POOL: LazyLock<Pool> = LazyLock::new(Pool::default);

/// The MD5 of data that arrives in pieces. It costs nothing before the first piece.
#[derive(Default)]
pub struct Md5Stream {
    id: Option<u64>,
    /// What it may keep although it is alone.
    patience: usize,
}

impl Md5Stream {
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps up to `patience` bytes for the company that will come.
    pub fn patient(patience: usize) -> Self {
        Self { id: None, patience }
    }

    pub fn update(&mut self, piece: Bytes) {
        let mut streams = POOL.streams.lock();
        let id = *self.id.get_or_insert_with(|| streams.register());
        let stream = streams.get(id);
        stream.kept += piece.len();
        stream.pieces.push_back(piece);
        let allowance = streams.allowance().max(streams.room(id, self.patience));
        drop(POOL.hash(streams, id, allowance));
    }

    /// The digest of everything so far as 32 hexadecimal digits; more data may follow.
    pub fn hexdigest(&self) -> String {
        let Some(id) = self.id else { return Md5::new().hexdigest() };
        let mut streams = POOL.hash(POOL.streams.lock(), id, 0);
        let md5 = streams.get(id).md5.clone();
        drop(streams);
        md5.expect("nobody hashes a stream without data").hexdigest()
    }
}

impl Drop for Md5Stream {
    fn drop(&mut self) {
        let stream = self.id.and_then(|id| POOL.streams.lock().by_id.remove(&id));
        // Frees its pieces without the lock.
        drop(stream);
    }
}

#[derive(Default)]
struct Pool {
    streams: Mutex<Streams>,
    /// Streams have come back.
    returned: Condvar,
}

#[derive(Default)]
struct Streams {
    by_id: HashMap<u64, Stream>,
    last_id: u64,
    /// Threads that hash and will take others in.
    runs_with_room: usize,
}

struct Stream {
    /// None while a thread hashes this stream.
    md5: Option<Md5>,
    pieces: VecDeque<Bytes>,
    /// Bytes that have not been hashed, in `pieces` or with the thread that hashes.
    kept: usize,
    /// Its owner waits until it keeps no more than that.
    awaited: Option<usize>,
}

impl Streams {
    fn register(&mut self) -> u64 {
        self.last_id += 1;
        let stream = Stream { md5: Some(Md5::new()), pieces: VecDeque::new(), kept: 0, awaited: None };
        self.by_id.insert(self.last_id, stream);
        self.last_id
    }

    fn get(&mut self, id: u64) -> &mut Stream {
        self.by_id.get_mut(&id).expect("a stream is there until it is dropped or its hashing has panicked")
    }

    fn allowance(&self) -> usize {
        let count = self.by_id.len().max(1);
        ((count - 1).saturating_mul(QUANTUM)).min(KEPT_BY_ONE).min(KEPT_BY_ALL / count)
    }

    /// How much of its patience a stream may use up, so that all together stay within their bound.
    fn room(&self, id: u64, patience: usize) -> usize {
        let by_others =
            || self.by_id.iter().filter(|(other, _)| **other != id).map(|(_, stream)| stream.kept).sum();
        if patience == 0 { 0 } else { patience.min(KEPT_BY_ALL.saturating_sub(by_others())) }
    }

    fn lend(&mut self, id: u64) -> Option<Lane> {
        let stream = self.get(id);
        let md5 = stream.md5.take()?;
        Some(Lane { id, md5, pieces: std::mem::take(&mut stream.pieces), kept: stream.kept })
    }

    /// Those that have kept the most, but for one.
    fn company(&self, of: u64) -> Vec<u64> {
        let waits = |stream: &Stream| stream.md5.is_some() && stream.kept > 0;
        let others = self.by_id.iter().filter(|(id, stream)| **id != of && waits(stream));
        let mut company: Vec<_> = others.map(|(id, stream)| (stream.kept, *id)).collect();
        company.sort_unstable_by(|a, b| b.cmp(a));
        company.truncate(MAX_LANES - 1);
        company.into_iter().map(|(_, id)| id).collect()
    }
}

impl Pool {
    /// Waits until a stream keeps no more than `allowance`: another thread has hashed it, or this one does.
    fn hash<'a>(
        &'a self,
        mut streams: MutexGuard<'a, Streams>,
        id: u64,
        allowance: usize,
    ) -> MutexGuard<'a, Streams> {
        loop {
            let has_room = streams.runs_with_room > 0;
            let stream = streams.get(id);
            if stream.kept <= allowance {
                stream.awaited = None;
                return streams;
            }
            if stream.md5.is_none() || (has_room && stream.kept > LITTLE) {
                stream.awaited = Some(allowance);
                self.returned.wait(&mut streams);
            } else {
                streams = self.run(streams, id, allowance);
            }
        }
    }

    /// Hashes until a stream keeps no more than `allowance`, and others along.
    fn run<'a>(
        &'a self,
        mut streams: MutexGuard<'a, Streams>,
        id: u64,
        allowance: usize,
    ) -> MutexGuard<'a, Streams> {
        while let Some(own) = streams.lend(id) {
            let is_little = own.kept <= LITTLE;
            let mut lanes = vec![own];
            if !is_little {
                let company = streams.company(id);
                lanes.extend(company.into_iter().filter_map(|other| streams.lend(other)));
            }
            let has_room = !is_little && lanes.len() < MAX_LANES;
            streams.runs_with_room += usize::from(has_room);
            drop(streams);
            if lanes.len() == MAX_LANES {
                // Who has waited for this one and is not among them may begin another.
                self.returned.notify_all();
            }
            let mut lent = Lent { pool: self, lanes, has_room, is_over: true };
            lent.is_over =
                hash_together(&mut lent.lanes, allowance, if has_room { STEP } else { usize::MAX });
            let is_over = lent.is_over;
            drop(lent);
            streams = self.streams.lock();
            if is_over {
                break;
            }
        }
        streams
    }
}

/// Streams that a thread hashes; they go back after each step. If it panics they are gone, and their owners panic too.
struct Lent<'a> {
    pool: &'a Pool,
    lanes: Vec<Lane>,
    has_room: bool,
    /// There is no other step to come.
    is_over: bool,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut streams = self.pool.streams.lock();
        streams.runs_with_room -= usize::from(self.has_room);
        let mut is_awaited = self.is_over;
        for lane in self.lanes.drain(..) {
            if std::thread::panicking() {
                streams.by_id.remove(&lane.id);
            } else if let Some(stream) = streams.by_id.get_mut(&lane.id) {
                let arrived = std::mem::replace(&mut stream.pieces, lane.pieces);
                stream.kept = lane.kept + arrived.iter().map(Bytes::len).sum::<usize>();
                stream.pieces.extend(arrived);
                stream.md5 = Some(lane.md5);
                is_awaited |= stream.awaited.is_some_and(|allowance| stream.kept <= allowance);
            }
        }
        drop(streams);
        if is_awaited {
            self.pool.returned.notify_all();
        }
    }
}

struct Lane {
    id: u64,
    md5: Md5,
    pieces: VecDeque<Bytes>,
    kept: usize,
}

impl Lane {
    /// Goes on to where whole blocks follow in one piece, or to the end.
    fn align(&mut self) {
        while let Some(piece) = self.pieces.front_mut() {
            let filled = self.md5.filled();
            if filled == 0 && piece.len() >= size_of::<Block>() {
                break;
            }
            let head = piece.split_to(piece.len().min(size_of::<Block>() - filled));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            self.md5.update(&head);
            self.kept -= head.len();
        }
    }

    fn blocks(&self) -> &[Block] {
        self.pieces.front().map_or(&[], |piece| piece.as_chunks().0)
    }

    /// Takes note that so many blocks have been hashed.
    fn advance(&mut self, state: State, blocks: usize) {
        let bytes = blocks * size_of::<Block>();
        self.md5.state = state;
        self.md5.length = self.md5.length.wrapping_add(bytes as u64);
        self.kept -= bytes;
        if let Some(piece) = self.pieces.front_mut() {
            let _ = piece.split_to(bytes);
        }
    }
}

/// Hashes until the first lane keeps no more than its allowance, which is told, or until it has hashed `most` bytes of it.
fn hash_together(lanes: &mut [Lane], allowance: usize, most: usize) -> bool {
    let enough = lanes[0].kept.saturating_sub(most);
    loop {
        lanes.iter_mut().for_each(Lane::align);
        if lanes[0].kept <= allowance {
            return true;
        }
        if lanes[0].kept <= enough {
            return false;
        }
        let live = || lanes.iter().filter(|lane| !lane.blocks().is_empty());
        let data: Vec<&[Block]> = live().map(Lane::blocks).collect();
        let mut states: Vec<State> = live().map(|lane| lane.md5.state).collect();
        let blocks = data.iter().map(|blocks| blocks.len()).min().unwrap_or(0).min(most / size_of::<Block>());
        compress_many(&mut states, &data, blocks);
        let live = lanes.iter_mut().filter(|lane| !lane.blocks().is_empty());
        for (lane, state) in live.zip(states) {
            lane.advance(state, blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use md5::Digest;
    use proptest::prelude::*;

    fn data(stream: usize, length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 + i / 251 + stream * 97) as u8).collect()
    }

    /// Whoever hashes takes others along: tests that look at what is kept must not meet.
    static ALONE: Mutex<()> = Mutex::new(());

    fn expected(data: &[u8]) -> String {
        super::super::hex(&md5::Md5::digest(data))
    }

    fn lane(stream: usize, data: &[u8], cuts: &[usize]) -> Lane {
        let mut rest = Bytes::copy_from_slice(data);
        let mut pieces = VecDeque::new();
        for cut in cuts {
            pieces.push_back(rest.split_to((*cut).min(rest.len())));
        }
        pieces.push_back(rest);
        Lane { id: stream as u64, md5: Md5::new(), pieces, kept: data.len() }
    }

    proptest! {
        #[test]
        fn streams_of_any_lengths_and_pieces_hashed_together(
            shapes in proptest::collection::vec(
                (0..3000usize, proptest::collection::vec(0..400usize, 0..6)), 1..=MAX_LANES),
            allowance in 0..2000usize,
            most in prop_oneof![Just(usize::MAX), 64..1000usize],
        ) {
            let bodies: Vec<Vec<u8>> = shapes.iter().enumerate().map(|(i, (length, _))| data(i, *length)).collect();
            let mut lanes: Vec<Lane> =
                shapes.iter().zip(&bodies).enumerate().map(|(i, ((_, cuts), body))| lane(i, body, cuts)).collect();
            while !hash_together(&mut lanes, allowance, most) {}
            prop_assert!(lanes[0].kept <= allowance);
            for (lane, body) in lanes.into_iter().zip(&bodies) {
                let mut md5 = lane.md5;
                prop_assert_eq!(md5.length as usize + lane.kept, body.len());
                lane.pieces.iter().for_each(|piece| md5.update(piece));
                prop_assert_eq!(md5.hexdigest(), expected(body));
            }
        }
    }

    #[test]
    fn streams_of_many_threads() {
        let _alone = ALONE.lock();
        let threads: Vec<_> = (0..12)
            .map(|i| {
                std::thread::spawn(move || {
                    let body = data(i, 400_000 * (1 + i % 4) + i);
                    let mut stream = Md5Stream::new();
                    let mut rest = Bytes::from(body.clone());
                    while !rest.is_empty() {
                        stream.update(rest.split_to(rest.len().min(65_536 - i)));
                    }
                    assert_eq!(stream.hexdigest(), expected(&body), "stream {i}");
                    stream.update(Bytes::from_static(b"more"));
                    assert_eq!(stream.hexdigest(), expected(&[&body[..], b"more"].concat()));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn patient_streams_are_hashed_by_the_first_that_is_asked() {
        let _alone = ALONE.lock();
        let bodies: Vec<Vec<u8>> = (0..4).map(|i| data(i, 3 << 20)).collect();
        let mut streams: Vec<Md5Stream> = bodies.iter().map(|body| Md5Stream::patient(body.len())).collect();
        for (stream, body) in streams.iter_mut().zip(&bodies) {
            stream.update(Bytes::copy_from_slice(body));
        }
        let kept = |stream: &Md5Stream| POOL.streams.lock().get(stream.id.unwrap()).kept;
        assert_eq!(kept(&streams[3]), 3 << 20);
        assert_eq!(streams[0].hexdigest(), expected(&bodies[0]));
        assert_eq!(kept(&streams[3]), 0);
        for (stream, body) in streams.iter().zip(&bodies) {
            assert_eq!(stream.hexdigest(), expected(body));
        }
    }

    #[test]
    fn who_comes_while_another_hashes_is_taken_along_at_the_next_step() {
        let pool = Pool::default();
        let bodies = [data(0, 3 * STEP), data(1, 2 * STEP)];
        let ids = bodies.each_ref().map(|body| {
            let mut streams = pool.streams.lock();
            let id = streams.register();
            let stream = streams.get(id);
            stream.kept = body.len();
            stream.pieces.push_back(Bytes::copy_from_slice(body));
            id
        });
        // As if one were hashing all the time, so that the second never begins itself.
        pool.streams.lock().runs_with_room = 1;
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(pool.hash(pool.streams.lock(), ids[1], 0)));
            while pool.streams.lock().get(ids[1]).awaited.is_none() {
                std::thread::yield_now();
            }
            drop(pool.run(pool.streams.lock(), ids[0], 0));
            second.join().unwrap();
        });
        let mut streams = pool.streams.lock();
        assert_eq!(streams.runs_with_room, 1);
        for (id, body) in ids.into_iter().zip(&bodies) {
            assert_eq!(streams.get(id).md5.clone().unwrap().hexdigest(), expected(body));
        }
    }

    #[test]
    fn patience_ends_at_the_bound_for_all() {
        let _alone = ALONE.lock();
        let piece = Bytes::from(vec![0; 8 << 20]);
        let mut streams: Vec<Md5Stream> = (0..9).map(|_| Md5Stream::patient(usize::MAX)).collect();
        for stream in &mut streams {
            stream.update(piece.clone());
        }
        let ids: Vec<u64> = streams.iter().filter_map(|stream| stream.id).collect();
        let kept: usize = ids.iter().map(|id| POOL.streams.lock().get(*id).kept).sum();
        assert!(kept <= KEPT_BY_ALL, "{kept}");
    }

    #[test]
    fn a_stream_given_up_while_others_hash() {
        let body = data(0, 3 << 20);
        let mut kept = Md5Stream::new();
        for chunk in body.chunks(100_000) {
            let mut given_up = Md5Stream::new();
            given_up.update(Bytes::copy_from_slice(chunk));
            kept.update(Bytes::copy_from_slice(chunk));
        }
        assert_eq!(kept.hexdigest(), expected(&body));
        assert_eq!(Md5Stream::new().hexdigest(), expected(b""));
    }
}
