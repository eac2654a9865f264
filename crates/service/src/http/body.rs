//! Bodies: streams of byte pieces whose length may be known.
//!
//! A piece is at most about 64 KiB and is asked for one at a time, so a body of any size takes bounded memory. The body of
//! a request on a server stands for the connection's reading half: see [`Body::send_continue`] and
//! [`Body::next_chunked_body`], which do nothing on bodies made in memory and on
//! what wraps another body.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::conn::Incoming;
use super::{BoxFuture, Headers};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The peer closed before the end: 499 to a client's request.
    #[error("disconnected")]
    Disconnected,
    /// No byte came within the timeout: 408 to a client's request.
    #[error("timeout")]
    Timeout,
    #[error("body is too long")]
    TooLong,
    /// The chunked framing or the MIME document is not well-formed: 400.
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Other(String),
}

/// A source of pieces. `None` is the end; after an error or the end it is not asked again.
pub trait BodyStream: Send {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>>;

    /// Reads as [`Body::read`], for a stream that can put bytes where they are wanted; others have only pieces.
    fn read<'a>(&'a mut self, _to: &'a mut [u8]) -> Option<BoxFuture<'a, Result<usize, BodyError>>> {
        None
    }

    /// The number of bytes that are still to come, if known.
    fn content_length(&self) -> Option<u64> {
        None
    }

    /// Called when nobody will read on. What it returns is run to its end.
    fn abandon(self: Box<Self>) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

#[derive(Default)]
enum Inner {
    #[default]
    Empty,
    Full(Bytes),
    Stream(Box<dyn BodyStream>),
    /// The body of a request on a connection. It stays after its end: another one may follow.
    Incoming(Box<Incoming>),
}

/// The body of a request or of a response.
#[derive(Default)]
pub struct Body {
    /// Of a piece that was not read to its end.
    rest: Bytes,
    inner: Inner,
    /// Of what `inner` has still to give.
    length: Option<u64>,
}

impl Body {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn stream(stream: impl BodyStream + 'static) -> Self {
        Self::of(Inner::Stream(Box::new(stream)))
    }

    pub(super) fn incoming(incoming: Incoming) -> Self {
        Self::of(Inner::Incoming(Box::new(incoming)))
    }

    fn of(inner: Inner) -> Self {
        Self { rest: Bytes::new(), inner, length: None }
    }

    /// A body fed from elsewhere through a queue of `bound` pieces. It ends when the sender is dropped.
    pub fn channel(bound: usize) -> (BodySender, Self) {
        let (sender, receiver) = mpsc::channel(bound.max(1));
        (BodySender { sender }, Self::stream(Channel { receiver }))
    }

    /// A body written by a future that runs when, and only when, the body is read: one task does both, so the order
    /// of the program is the order on the wire. It may own the request's body and read it. If the reader goes away the
    /// future's sends fail, and it is run to its end.
    pub fn driven<F, R>(write: F) -> Self
    where
        F: FnOnce(BodySender) -> R,
        R: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(1);
        Self::stream(Driven { receiver, writer: Some(Box::pin(write(BodySender { sender }))) })
    }

    /// Says how long the body is, for a stream that does not know.
    pub fn with_length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// The number of bytes still to come, if known.
    pub fn content_length(&self) -> Option<u64> {
        let length = match &self.inner {
            Inner::Empty => Some(0),
            Inner::Full(bytes) => Some(bytes.len() as u64),
            Inner::Stream(stream) => self.length.or_else(|| stream.content_length()),
            Inner::Incoming(incoming) => incoming.content_length(),
        };
        length.map(|length| length + self.rest.len() as u64)
    }

    /// Whether it is known to be without bytes.
    pub fn is_empty(&self) -> bool {
        self.content_length() == Some(0)
    }

    /// The bytes of a body in memory.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match &self.inner {
            Inner::Empty => Some(&self.rest),
            Inner::Full(bytes) => Some(bytes),
            Inner::Stream(_) | Inner::Incoming(_) => None,
        }
    }

    /// The next piece, never an empty one; `None` at the end and after an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if !self.rest.is_empty() {
            return Some(Ok(std::mem::take(&mut self.rest)));
        }
        loop {
            let stream = match &mut self.inner {
                Inner::Stream(stream) => stream,
                Inner::Full(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.inner = Inner::Empty;
                    return (!bytes.is_empty()).then_some(Ok(bytes));
                }
                Inner::Empty => return None,
                Inner::Incoming(incoming) => return incoming.next().await.transpose(),
            };
            match stream.next().await {
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => {
                    self.length = self.length.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Some(Ok(bytes));
                }
                Some(Err(error)) => {
                    self.inner = Inner::Empty;
                    return Some(Err(error));
                }
                None => {
                    self.inner = Inner::Empty;
                    return None;
                }
            }
        }
    }

    /// Reads once, to where the bytes are wanted: at least one, or none at the end and after an error. What comes from a connection is
    /// not copied.
    pub async fn read(&mut self, to: &mut [u8]) -> Result<usize, BodyError> {
        if self.rest.is_empty() {
            let read = match &mut self.inner {
                Inner::Incoming(incoming) => return incoming.read(to).await,
                Inner::Stream(stream) => match stream.read(to) {
                    Some(read) => Some(read.await),
                    None => None,
                },
                Inner::Empty | Inner::Full(_) => None,
            };
            if let Some(read) = read {
                if !matches!(read, Ok(1..)) {
                    self.inner = Inner::Empty;
                }
                let bytes = read?;
                self.length = self.length.map(|left| left.saturating_sub(bytes as u64));
                return Ok(bytes);
            }
            self.rest = self.next().await.transpose()?.unwrap_or_default();
        }
        let piece = self.rest.split_to(self.rest.len().min(to.len()));
        to[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }

    /// All of the body, or [`BodyError::TooLong`] if that is more than `limit` bytes.
    pub async fn collect(&mut self, limit: usize) -> Result<Bytes, BodyError> {
        let Some(first) = self.next().await.transpose()? else { return Ok(Bytes::new()) };
        let mut all = BytesMut::new();
        let mut piece = first;
        loop {
            if all.len() + piece.len() > limit {
                return Err(BodyError::TooLong);
            }
            match self.next().await.transpose()? {
                None if all.is_empty() => return Ok(piece),
                next => {
                    all.extend_from_slice(&piece);
                    match next {
                        Some(next) => piece = next,
                        None => return Ok(all.freeze()),
                    }
                }
            }
        }
    }

    /// Reads and drops up to `limit` bytes; whether the end was reached.
    pub async fn drain(&mut self, limit: u64) -> Result<bool, BodyError> {
        let mut seen = 0;
        while let Some(piece) = self.next().await.transpose()? {
            seen += piece.len() as u64;
            if seen > limit {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The headers that the `100 Continue` carries.
    pub fn set_continue_headers(&mut self, headers: Headers) {
        if let Inner::Incoming(incoming) = &mut self.inner {
            incoming.continue_headers = headers;
        }
    }

    /// Sends `100 Continue` now if the request expects it and none was sent. Reading does this by itself.
    pub async fn send_continue(&mut self) -> Result<(), BodyError> {
        match &mut self.inner {
            Inner::Incoming(incoming) => incoming.send_expected_continue().await,
            _ => Ok(()),
        }
    }

    /// Whether the client sends without waiting for the `100 Continue` that it expects. Then reading sends none, and
    /// [`Body::next_chunked_body`] sends both: a client that is refused meanwhile has not seen any.
    pub fn take_unasked(&mut self) -> bool {
        match &mut self.inner {
            Inner::Incoming(incoming) => incoming.take_unasked(),
            _ => false,
        }
    }

    /// Sends another `100 Continue` and expects another chunked body on the same request: Swift's two-phase PUT. What is
    /// left of the body before, which should be no more than its end, is dropped.
    pub async fn next_chunked_body(&mut self) -> Result<(), BodyError> {
        match &mut self.inner {
            Inner::Incoming(incoming) => incoming.next_chunked_body().await,
            _ => Ok(()),
        }
    }

    /// Gives up the rest: what a stream has to do at its end is run.
    pub async fn abandon(mut self) {
        if let Inner::Stream(stream) = std::mem::take(&mut self.inner)
            && let Some(rest) = stream.abandon()
        {
            rest.await;
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::of(if bytes.is_empty() { Inner::Empty } else { Inner::Full(bytes) })
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.content_length() {
            Some(length) => write!(f, "Body({length} bytes)"),
            None => write!(f, "Body(stream)"),
        }
    }
}

/// The writing end of [`Body::channel`] and [`Body::driven`].
#[derive(Clone, Debug)]
pub struct BodySender {
    sender: mpsc::Sender<Result<Bytes, BodyError>>,
}

impl BodySender {
    /// Waits for room; fails with [`BodyError::Disconnected`] if nobody reads any more.
    pub async fn send(&self, piece: impl Into<Bytes>) -> Result<(), BodyError> {
        self.sender.send(Ok(piece.into())).await.map_err(|_| BodyError::Disconnected)
    }

    /// Ends the body with an error: the connection is closed without a proper end.
    pub async fn fail(self, error: BodyError) {
        // The reader's going away is the same as its having seen the error.
        let _ = self.sender.send(Err(error)).await;
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

struct Channel {
    receiver: mpsc::Receiver<Result<Bytes, BodyError>>,
}

impl BodyStream for Channel {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(self.receiver.recv())
    }
}

struct Driven {
    receiver: mpsc::Receiver<Result<Bytes, BodyError>>,
    writer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl BodyStream for Driven {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(std::future::poll_fn(move |cx| {
            loop {
                if let Poll::Ready(piece) = self.receiver.poll_recv(cx) {
                    return Poll::Ready(piece);
                }
                let Some(writer) = &mut self.writer else { return Poll::Pending };
                match writer.as_mut().poll(cx) {
                    Poll::Ready(()) => self.writer = None,
                    Poll::Pending => return self.receiver.poll_recv(cx),
                }
            }
        }))
    }

    fn abandon(self: Box<Self>) -> Option<BoxFuture<'static, ()>> {
        let Self { receiver, writer } = *self;
        drop(receiver);
        writer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    async fn text(mut body: Body) -> String {
        String::from_utf8(body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn bodies_in_memory_know_their_length() {
        assert!(Body::empty().is_empty());
        let body = Body::from("four");
        assert_eq!(body.content_length(), Some(4));
        assert_eq!(text(body).await, "four");
        assert!(Body::from(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn collect_refuses_what_is_too_long() {
        assert!(matches!(Body::from("four").collect(3).await, Err(BodyError::TooLong)));
        let body = Body::driven(|tx| async move { while tx.send("xx").await.is_ok() {} });
        let mut body = body;
        assert!(matches!(body.collect(9).await, Err(BodyError::TooLong)));
    }

    #[tokio::test]
    async fn a_channel_ends_with_its_sender() {
        let (tx, body) = Body::channel(2);
        tx.send("a").await.unwrap();
        tx.send("b").await.unwrap();
        drop(tx);
        assert_eq!(text(body).await, "ab");
    }

    #[tokio::test]
    async fn a_driven_body_may_read_another_while_it_writes() {
        let (tx, mut source) = Body::channel(1);
        let mut echo = Body::driven(move |out| async move {
            while let Some(Ok(piece)) = source.next().await {
                out.send(piece).await.unwrap();
                out.send("!").await.unwrap();
            }
        });
        for word in ["one", "two"] {
            tx.send(word).await.unwrap();
            assert_eq!(echo.next().await.unwrap().unwrap(), word);
            assert_eq!(echo.next().await.unwrap().unwrap(), "!");
        }
        drop(tx);
        assert!(echo.next().await.is_none());
    }

    #[tokio::test]
    async fn an_abandoned_driven_body_runs_to_its_end() {
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        let mut body = Body::driven(move |out| async move {
            while out.send("x").await.is_ok() {}
            tokio::task::yield_now().await;
            flag.store(true, Ordering::Relaxed);
        });
        body.next().await.unwrap().unwrap();
        body.abandon().await;
        assert!(done.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_is_read_of_a_piece_leaves_the_rest() {
        let (tx, body) = Body::channel(2);
        let mut body = body.with_length(7);
        tx.send("four").await.unwrap();
        tx.send("two").await.unwrap();
        drop(tx);
        let mut to = [0; 3];
        assert_eq!((body.read(&mut to).await.unwrap(), &to), (3, b"fou"));
        assert_eq!(body.content_length(), Some(4));
        assert_eq!(body.next().await.unwrap().unwrap(), "r");
        assert_eq!(body.read(&mut to).await.unwrap(), 3);
        assert_eq!(body.read(&mut to).await.unwrap(), 0);
        assert_eq!(body.read(&mut to).await.unwrap(), 0);
        let mut body = Body::from("four");
        assert_eq!(body.read(&mut to).await.unwrap(), 3);
        assert_eq!(body.as_bytes(), Some(&b"r"[..]));
    }

    #[tokio::test]
    async fn an_error_ends_a_body() {
        let (tx, mut body) = Body::channel(2);
        tx.fail(BodyError::Timeout).await;
        assert!(matches!(body.next().await, Some(Err(BodyError::Timeout))));
        assert!(body.next().await.is_none());
    }
}
