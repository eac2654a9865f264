//! The chunked transfer coding, decoded by a machine that takes whatever has arrived.
//!
//! Stricter than Python, against request smuggling: a size is hexadecimal digits only, lines end in CRLF, and a
//! chunk's data is followed by CRLF and nothing else. Extensions and trailers are read, bounded, and dropped.

use bytes::{Buf, Bytes, BytesMut};

/// The longest size line, with its extensions.
const MAX_SIZE_LINE: usize = 1024;
/// The most bytes of trailers.
const MAX_TRAILERS: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers { seen: usize },
    End,
}

/// What a step of decoding gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Data(Bytes),
    NeedMore,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

#[derive(Clone, Debug)]
pub struct ChunkDecoder {
    state: State,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self { state: State::Size }
    }
}

impl ChunkDecoder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// Takes from the front of `buf` up to the next piece of data, which has at most `max` bytes.
    pub fn decode(&mut self, buf: &mut BytesMut, max: usize) -> Result<Step, Malformed> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = take_line(buf, MAX_SIZE_LINE)? else { return Ok(Step::NeedMore) };
                    self.state = match parse_size(&line)? {
                        0 => State::Trailers { seen: 0 },
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    if buf.is_empty() {
                        return Ok(Step::NeedMore);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len()).min(max);
                    let data = buf.split_to(take).freeze();
                    self.state = match left - take as u64 {
                        // Not left in the buffer if it is there, where it would look like something new.
                        0 if buf.starts_with(b"\r\n") => {
                            buf.advance(2);
                            State::Size
                        }
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                    return Ok(Step::Data(data));
                }
                State::DataEnd => {
                    let end = &buf[..buf.len().min(2)];
                    if !b"\r\n".starts_with(end) {
                        return Err(Malformed("chunk data not followed by CRLF"));
                    }
                    if end.len() < 2 {
                        return Ok(Step::NeedMore);
                    }
                    buf.advance(2);
                    self.state = State::Size;
                }
                State::Trailers { seen } => {
                    let Some(line) = take_line(buf, MAX_TRAILERS - seen)? else { return Ok(Step::NeedMore) };
                    let seen = seen + line.len() + 2;
                    if seen > MAX_TRAILERS {
                        return Err(Malformed("trailers too long"));
                    }
                    self.state = if line.is_empty() { State::End } else { State::Trailers { seen } };
                }
                State::End => return Ok(Step::End),
            }
        }
    }
}

/// A body of any framing, decoded from the bytes of a connection as they arrive.
#[derive(Clone, Debug)]
pub enum BodyDecoder {
    /// So many bytes are to come.
    Length(u64),
    Chunked(ChunkDecoder),
    /// All until the peer closes.
    UntilClose,
}

impl BodyDecoder {
    /// Takes the next piece, of at most `max` bytes, from the front of `buf`.
    pub fn decode(&mut self, buf: &mut BytesMut, max: usize) -> Result<Step, Malformed> {
        let take = match self {
            Self::Chunked(decoder) => return decoder.decode(buf, max),
            Self::Length(0) => return Ok(Step::End),
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len()).min(max);
                *left -= take as u64;
                take
            }
            Self::UntilClose => buf.len().min(max),
        };
        Ok(if take == 0 { Step::NeedMore } else { Step::Data(buf.split_to(take).freeze()) })
    }

    pub fn is_end(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.is_end(),
            Self::UntilClose => false,
        }
    }

    /// The bytes still to come, if known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(decoder) => decoder.is_end().then_some(0),
            Self::UntilClose => None,
        }
    }

    /// So many bytes of data follow what has been decoded, with nothing in between.
    pub fn data_ahead(&self) -> usize {
        let ahead = match self {
            Self::Length(left) | Self::Chunked(ChunkDecoder { state: State::Data(left) }) => *left,
            Self::Chunked(_) => 0,
            Self::UntilClose => u64::MAX,
        };
        usize::try_from(ahead).unwrap_or(usize::MAX)
    }

    /// Takes note that so many of these bytes went elsewhere.
    pub fn skip(&mut self, bytes: usize) {
        match self {
            Self::Length(left) => *left -= bytes as u64,
            Self::Chunked(ChunkDecoder { state }) => match *state {
                State::Data(left) if left == bytes as u64 => *state = State::DataEnd,
                State::Data(left) => *state = State::Data(left - bytes as u64),
                State::Size | State::DataEnd | State::Trailers { .. } | State::End => {}
            },
            Self::UntilClose => {}
        }
    }

    /// Whether the end of the stream is the end of the body.
    pub fn may_end(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// How many bytes are worth reading at once.
    pub fn room(&self, max: usize) -> usize {
        self.left().map_or(max, |left| usize::try_from(left).unwrap_or(usize::MAX).min(max))
    }
}

/// A line without its CRLF, if it is all there.
fn take_line(buf: &mut BytesMut, max: usize) -> Result<Option<BytesMut>, Malformed> {
    match memchr::memchr(b'\n', &buf[..buf.len().min(max + 2)]) {
        Some(0) => Err(Malformed("line of the chunked coding without CR")),
        Some(end) if buf[end - 1] != b'\r' => Err(Malformed("line of the chunked coding without CR")),
        Some(end) => {
            let mut line = buf.split_to(end + 1);
            line.truncate(end - 1);
            Ok(Some(line))
        }
        None if buf.len() > max => Err(Malformed("line of the chunked coding too long")),
        None => Ok(None),
    }
}

fn parse_size(line: &[u8]) -> Result<u64, Malformed> {
    let size = line.split(|&b| b == b';').next().unwrap_or_default().trim_ascii_end();
    if size.is_empty() || size.len() > 15 {
        return Err(Malformed("chunk size"));
    }
    size.iter().try_fold(0u64, |size, &digit| {
        let digit = (digit as char).to_digit(16).ok_or(Malformed("chunk size"))?;
        Ok(size << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All data and whether the end was seen.
    type Decoded = Result<(Vec<u8>, bool), Malformed>;

    /// Feeds the pieces one by one; all data, or the first error, and the rest of the input.
    fn decode_all(pieces: &[&[u8]], max: usize) -> (Decoded, Vec<u8>) {
        let mut decoder = ChunkDecoder::new();
        let mut buf = BytesMut::new();
        let mut data = Vec::new();
        for piece in pieces {
            buf.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buf, max) {
                    Ok(Step::Data(bytes)) => data.extend_from_slice(&bytes),
                    Ok(Step::NeedMore | Step::End) => break,
                    Err(error) => return (Err(error), buf.to_vec()),
                }
            }
        }
        (Ok((data, decoder.is_end())), buf.to_vec())
    }

    fn decode(input: &[u8]) -> Decoded {
        decode_all(&[input], usize::MAX).0
    }

    #[test]
    fn chunks_extensions_and_trailers() {
        assert_eq!(
            decode(b"3\r\nabc\r\n0a;x=y\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n"),
            Ok((b"abc0123456789".to_vec(), true))
        );
        assert_eq!(decode(b"3\r\nab"), Ok((b"ab".to_vec(), false)));
    }

    #[test]
    fn what_follows_the_end_is_left() {
        let (result, rest) = decode_all(&[b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n"], usize::MAX);
        assert_eq!(result, Ok((b"x".to_vec(), true)));
        assert_eq!(rest, b"GET / HTTP/1.1\r\n");
    }

    #[test]
    fn what_python_would_take_and_an_intermediary_might_read_otherwise_is_refused() {
        let inputs: &[&[u8]] = &[
            b"3\nabc\r\n0\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"+3\r\nabc\r\n0\r\n\r\n",
            b"-3\r\n",
            b" 3\r\nabc\r\n0\r\n\r\n",
            b"1_0\r\n",
            b"\r\n",
            b"3\r\nabcX\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"0\r\n\n",
            b"ffffffffffffffff\r\n",
        ];
        for input in inputs {
            assert!(decode(input).is_err(), "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn lines_and_trailers_are_bounded() {
        let long = [b"1;".to_vec(), vec![b'x'; 2 * MAX_SIZE_LINE]].concat();
        assert!(decode(&long).is_err());
        let trailers = [b"0\r\n".to_vec(), b"X: y\r\n".repeat(4000)].concat();
        assert!(decode(&trailers).is_err());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            max in 1usize..50,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let pieces = super::super::testing::split_at(&wire, &cuts);
            prop_assert_eq!(decode_all(&pieces, max).0, Ok((chunks.concat(), true)));
        }

        #[test]
        fn noise_never_panics_and_splits_alike(
            wire in proptest::collection::vec(prop_oneof![
                3 => prop::sample::select(b"0123aF;\r\n \t-".to_vec()), 1 => any::<u8>()], 0..200),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let pieces = super::super::testing::split_at(&wire, &cuts);
            prop_assert_eq!(decode_all(&pieces, usize::MAX).0, decode(&wire));
        }
    }
}
