//! The byte stream under a connection: TCP, or anything else that reads and writes (TLS, a pipe in memory).
//!
//! The reading half moves with whoever reads - the connection, then the body of its request - while the writing half is
//! shared by reference, because reading a body may have to write `100 Continue`. For TCP both halves work without a lock.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::chunked::{BodyDecoder, Malformed, Step};

/// How long a stream that is not TCP may take to say that it ends.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// Room for what stands between the chunks of a body.
const FRAMING_ROOM: usize = 4 << 10;

/// What a stream that is not TCP must be able to do.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type SharedIo = Arc<Mutex<Box<dyn Io>>>;

/// A connected byte stream.
pub enum Stream {
    Tcp(TcpStream),
    Other(Box<dyn Io>),
}

impl Stream {
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    pub fn other(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::Other(Box::new(io))
    }

    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok(),
            Self::Other(_) => None,
        }
    }

    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok(),
            Self::Other(_) => None,
        }
    }

    pub(super) fn split(self) -> (Reader, Writer) {
        match self {
            Self::Tcp(tcp) => {
                let (read, write) = tcp.into_split();
                (Reader::new(ReadHalf::Tcp(read)), Writer::Tcp(write))
            }
            Self::Other(io) => {
                let shared = Arc::new(Mutex::new(io));
                (Reader::new(ReadHalf::Shared(shared.clone())), Writer::Shared(shared))
            }
        }
    }
}

enum ReadHalf {
    Tcp(OwnedReadHalf),
    Shared(SharedIo),
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Shared(io) => Pin::new(&mut **io.lock()).poll_read(cx, buf),
        }
    }
}

/// How long one wait after another may take. The runtime's timer is not moved for each of them, as that costs a lock, a
/// place in its wheel, and often a wake-up of the runtime: it stays until it fires, and then goes to where it should be.
struct Limit {
    until: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    /// What stands for never.
    const FAR: Duration = Duration::from_secs(86_400 * 365);

    fn new() -> Self {
        Limit { until: Instant::now(), timer: None }
    }

    /// Begins a wait.
    fn start(&mut self, limit: Duration) {
        self.until = Instant::now() + limit.min(Self::FAR);
    }

    /// Ready when the wait has taken too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if until < timer.deadline() {
            timer.as_mut().reset(until);
        }
        loop {
            std::task::ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

/// The reading half with what has been read and not yet consumed.
pub(super) struct Reader {
    half: ReadHalf,
    pub buf: BytesMut,
    limit: Limit,
}

impl Reader {
    fn new(half: ReadHalf) -> Self {
        Self { half, buf: BytesMut::new(), limit: Limit::new() }
    }

    /// Reads once, with room for about `room` bytes. Zero means that the peer sends no more.
    pub async fn fill(&mut self, room: usize, limit: Duration) -> Result<usize, StreamError> {
        self.reserve(room);
        self.limit.start(limit);
        let mut read = std::pin::pin!(self.half.read_buf(&mut self.buf));
        std::future::poll_fn(|cx| match read.as_mut().poll(cx) {
            Poll::Ready(read) => Poll::Ready(read.map_err(StreamError::from)),
            Poll::Pending => self.limit.poll(cx).map(|()| Err(StreamError::Timeout)),
        })
        .await
    }

    /// A piece of the buffer that somebody keeps keeps all of it: of a peer that sends little at a time each piece would be as large as a
    /// buffer, if there were a new one for each.
    fn reserve(&mut self, room: usize) {
        if self.buf.capacity() - self.buf.len() < room.div_ceil(2) {
            self.buf.reserve(room);
        }
    }

    /// Reads once, to where the bytes are wanted; nothing may be left of what was read before. Zero as with [`Reader::fill`].
    async fn read(&mut self, to: &mut [u8], limit: Duration) -> Result<usize, StreamError> {
        self.limit.start(limit);
        let mut to = ReadBuf::new(to);
        std::future::poll_fn(|cx| match Pin::new(&mut self.half).poll_read(cx, &mut to) {
            Poll::Ready(read) => Poll::Ready(read.map_err(StreamError::from)),
            Poll::Pending => self.limit.poll(cx).map(|()| Err(StreamError::Timeout)),
        })
        .await?;
        Ok(to.filled().len())
    }

    /// The next piece of a body, of at most `max` bytes; `None` at its end.
    pub async fn next_piece(
        &mut self,
        decoder: &mut BodyDecoder,
        max: usize,
        limit: Duration,
    ) -> Result<Option<Bytes>, DataError> {
        loop {
            match decoder.decode(&mut self.buf, max).map_err(DataError::Malformed)? {
                Step::Data(piece) => return Ok(Some(piece)),
                Step::End => return Ok(None),
                Step::NeedMore => {}
            }
            if self.fill(decoder.room(max), limit).await? == 0 {
                return decoder.may_end().then_some(None).ok_or(DataError::Closed);
            }
        }
    }

    /// Reads a body once, to where its bytes are wanted; zero at its end. Only what has come with something else is copied.
    pub async fn read_body(
        &mut self,
        decoder: &mut BodyDecoder,
        to: &mut [u8],
        limit: Duration,
    ) -> Result<usize, DataError> {
        loop {
            match decoder.decode(&mut self.buf, to.len()).map_err(DataError::Malformed)? {
                Step::Data(piece) => {
                    to[..piece.len()].copy_from_slice(&piece);
                    return Ok(piece.len());
                }
                Step::End => return Ok(0),
                Step::NeedMore => {}
            }
            let data = decoder.data_ahead().min(to.len());
            let read = if data > 0 {
                let read = self.read(&mut to[..data], limit).await?;
                decoder.skip(read);
                read
            } else {
                self.fill(FRAMING_ROOM, limit).await?
            };
            match read {
                0 => return decoder.may_end().then_some(0).ok_or(DataError::Closed),
                read if data > 0 => return Ok(read),
                _ => {}
            }
        }
    }

    /// Reads and forgets up to `bytes` within `total` time, so that the peer is not reset while it still sends.
    pub async fn discard(&mut self, bytes: usize, total: Duration, idle: Duration) {
        let discard = async {
            let mut seen = self.buf.len();
            while seen <= bytes {
                self.buf.clear();
                match self.fill(16 << 10, idle).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => seen += read,
                }
            }
        };
        // Running out of time ends it as well as the end of the stream.
        let _ = tokio::time::timeout(total, discard).await;
    }

    /// Reads what is there without waiting: whether there was anything, be it the end.
    pub fn try_fill(&mut self, room: usize) -> bool {
        self.reserve(room);
        let read = std::pin::pin!(self.half.read_buf(&mut self.buf));
        read.poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    /// Whether the stream is ended or has bytes nobody asked for: not fit for another request.
    pub fn is_stale(&mut self) -> bool {
        if !self.buf.is_empty() {
            return true;
        }
        let mut byte = [0u8; 1];
        let mut buf = ReadBuf::new(&mut byte);
        let waker = std::task::Waker::noop();
        Pin::new(&mut self.half).poll_read(&mut Context::from_waker(waker), &mut buf).is_ready()
    }
}

/// The writing half. Only one task writes at any time.
pub(super) enum Writer {
    Tcp(OwnedWriteHalf),
    Shared(SharedIo),
}

impl Writer {
    /// Writes all of the slices; each step of progress restarts the time limit.
    pub async fn write_all(&self, mut bufs: &mut [IoSlice<'_>], limit: Duration) -> Result<(), StreamError> {
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            let write = std::future::poll_fn(|cx| self.poll_write(cx, bufs));
            match tokio::time::timeout(limit, write).await {
                Err(_) => return Err(StreamError::Timeout),
                Ok(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => IoSlice::advance_slices(&mut bufs, written?),
            }
        }
        if let Self::Shared(io) = self {
            let flush = std::future::poll_fn(|cx| Pin::new(&mut **io.lock()).poll_flush(cx));
            tokio::time::timeout(limit, flush).await.map_err(|_| StreamError::Timeout)??;
        }
        Ok(())
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let tcp: &TcpStream = match self {
            Self::Tcp(tcp) => tcp.as_ref(),
            Self::Shared(io) => return Pin::new(&mut **io.lock()).poll_write_vectored(cx, bufs),
        };
        loop {
            std::task::ready!(tcp.poll_write_ready(cx))?;
            match tcp.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                written => return Poll::Ready(written),
            }
        }
    }

    /// Says that nothing more will be written.
    pub async fn shutdown(&self) {
        // A failure means that the stream is down already.
        match self {
            Self::Tcp(tcp) => {
                let tcp: &TcpStream = tcp.as_ref();
                let _ = socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Write);
            }
            Self::Shared(io) => {
                let shutdown = std::future::poll_fn(|cx| Pin::new(&mut **io.lock()).poll_shutdown(cx));
                let _ = tokio::time::timeout(SHUTDOWN, shutdown).await;
            }
        }
    }

    /// Waits until the peer has closed, while nobody reads; never returns if it sends something or is not TCP.
    pub async fn peer_gone(&self) {
        if let Self::Tcp(tcp) = self {
            let tcp: &TcpStream = tcp.as_ref();
            match tcp.peek(&mut [0u8; 1]).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        std::future::pending().await
    }
}

/// Why there is no more of a body.
pub(super) enum DataError {
    Malformed(Malformed),
    Stream(StreamError),
    /// Before its end.
    Closed,
}

impl From<StreamError> for DataError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

#[derive(Debug)]
pub(super) enum StreamError {
    Timeout,
    Io(io::Error),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::super::chunked::ChunkDecoder;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn kept_pieces_of_a_trickle_share_buffers() {
        let (mut peer, ours) = tokio::io::duplex(100);
        let (mut reader, _) = Stream::other(ours).split();
        let mut decoder = BodyDecoder::Length(100_000);
        let mut pieces: Vec<Bytes> = Vec::new();
        for _ in 0..1000 {
            peer.write_all(&[7; 100]).await.unwrap();
            pieces.extend(reader.next_piece(&mut decoder, 65_536, LIMIT).await.ok().flatten());
        }
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 100_000);
        let follows = |pair: &[Bytes]| pair[0].as_ptr().wrapping_add(pair[0].len()) == pair[1].as_ptr();
        let buffers = 1 + pieces.windows(2).filter(|pair| !follows(pair)).count();
        assert!(buffers <= 4, "{buffers} buffers of 64 KiB");
    }

    #[tokio::test]
    async fn bodies_are_read_to_where_they_are_wanted() {
        let data: Vec<u8> = (0..50_000u32).map(|i| (i / 3) as u8).collect();
        let mut chunked = Vec::new();
        for chunk in [&data[..1], &data[1..30_000], &data[30_000..]] {
            chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        let framings = [
            (BodyDecoder::Length(50_000), data.clone()),
            (BodyDecoder::Chunked(ChunkDecoder::new()), chunked),
        ];
        for (mut decoder, wire) in framings {
            let wire = [&wire[..], b"GET"].concat();
            let (mut peer, ours) = tokio::io::duplex(wire.len());
            peer.write_all(&wire).await.unwrap();
            let (mut reader, _) = Stream::other(ours).split();
            // As with a head.
            assert!(reader.fill(7, LIMIT).await.is_ok());
            let mut got = vec![0; data.len() + 1];
            let mut at = 0;
            for room in [1, 3, 20_000].into_iter().cycle() {
                let end = got.len().min(at + room);
                match reader.read_body(&mut decoder, &mut got[at..end], LIMIT).await {
                    Ok(0) => break,
                    Ok(read) => at += read,
                    Err(_) => panic!("after {at} bytes"),
                }
            }
            assert_eq!(&got[..at], data);
            if reader.buf.is_empty() {
                reader.fill(10, LIMIT).await.unwrap();
            }
            assert_eq!(reader.buf, "GET");
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_too_early_is_no_body() {
        let (mut peer, ours) = tokio::io::duplex(100);
        peer.write_all(b"four").await.unwrap();
        drop(peer);
        let (mut reader, _) = Stream::other(ours).split();
        let mut decoder = BodyDecoder::Length(5);
        let mut room = [0; 10];
        assert!(matches!(reader.read_body(&mut decoder, &mut room, LIMIT).await, Ok(4)));
        assert!(matches!(reader.read_body(&mut decoder, &mut room, LIMIT).await, Err(DataError::Closed)));
    }
}
