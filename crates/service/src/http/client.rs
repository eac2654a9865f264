//! The client's side of a connection, step by step: what Swift's proxy and daemons do with `BufferedHTTPConnection`.
//!
//! The caller's program order is the order on the wire: head, pieces of the body, interim and final responses, pieces of
//! the response, in whatever order the protocol wants. So the two phases of an EC PUT and the two directions of SSYNC are
//! plain sequences of calls. A head is held back until something follows it or an answer is wanted, so that a small request
//! is one write.
//!
//! What it does not do: retry, redirect, or read and write at once; [`super::pool::Pool::request`] watches for an early
//! response while it sends.

use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::chunked::{BodyDecoder, ChunkDecoder};
use super::conn::write_headers;
use super::head::{self, Framing, HeadScanner, Limits, ResponseHead};
use super::pool::Home;
use super::stream::{DataError, Reader, Stream, StreamError, Writer};
use super::{Body, BodyError, BodyStream, BoxFuture, Headers, Method};

/// The largest piece of a body that is read at once.
const PIECE: usize = 64 << 10;
/// Room for a head and a small body.
const HEAD_ROOM: usize = 16 << 10;
/// Where something else limits a wait.
const UNLIMITED: Duration = Duration::from_secs(86400);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To connect (`conn_timeout`).
    pub conn: Duration,
    /// Each wait for the other side to take or give something (`node_timeout`).
    pub node: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { conn: Duration::from_millis(500), node: Duration::from_secs(10) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    #[error("connect: timeout")]
    ConnTimeout,
    #[error("timeout")]
    Timeout,
    #[error("connection closed")]
    Closed,
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The body that was to be sent failed.
    #[error("request body: {0}")]
    Body(#[source] BodyError),
}

impl From<StreamError> for ClientError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Timeout => Self::Timeout,
            // Whatever the system calls it, the connection is gone.
            StreamError::Io(_) => Self::Closed,
        }
    }
}

impl From<DataError> for ClientError {
    fn from(error: DataError) -> Self {
        match error {
            DataError::Malformed(malformed) => Self::Malformed(malformed.0),
            DataError::Stream(error) => error.into(),
            DataError::Closed => Self::Closed,
        }
    }
}

impl From<ClientError> for BodyError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Timeout | ClientError::ConnTimeout => Self::Timeout,
            ClientError::Closed => Self::Disconnected,
            ClientError::Malformed(what) => Self::Malformed(what),
            ClientError::Connect(error) => Self::Io(error),
            ClientError::Body(error) => error,
        }
    }
}

/// How the body of a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    None,
    Length(u64),
    Chunked,
}

enum Sending {
    Length(u64),
    Chunked,
    Done,
}

enum Receiving {
    /// The final head has not come yet.
    Head(HeadScanner),
    Body(BodyDecoder),
    Done,
    Failed,
}

impl Receiving {
    /// Decodes the body; `None` after its end.
    fn body(&mut self) -> Result<Option<&mut BodyDecoder>, ClientError> {
        match self {
            Self::Body(decoder) => Ok(Some(decoder)),
            Self::Done | Self::Failed => Ok(None),
            Self::Head(_) => Err(ClientError::Malformed("body read before the head")),
        }
    }
}

/// One connection to a server.
pub struct ClientConn {
    reader: Reader,
    writer: Writer,
    /// What a Host header says.
    host: String,
    timeout: Duration,
    /// What waits for company: a head, or small pieces of a chunked body.
    held: Vec<u8>,
    method: Method,
    sending: Sending,
    receiving: Receiving,
    keep_alive: bool,
    /// Something of a response to the present request has come.
    heard: bool,
    /// The server was to say whether it wants the body, and has not.
    unasked: bool,
    pub(super) home: Option<Home>,
}

impl ClientConn {
    /// Connects by TCP. The name is an address or a host name.
    pub async fn connect((host, port): (&str, u16), timeouts: Timeouts) -> Result<Self, ClientError> {
        let connect = async {
            let tcp = match host.parse::<std::net::IpAddr>() {
                Ok(ip) => tokio::net::TcpStream::connect((ip, port)).await?,
                Err(_) => tokio::net::TcpStream::connect((host, port)).await?,
            };
            Stream::tcp(tcp)
        };
        let stream = tokio::time::timeout(timeouts.conn, connect)
            .await
            .map_err(|_| ClientError::ConnTimeout)?
            .map_err(ClientError::Connect)?;
        Ok(Self::over(stream, (host, port), timeouts.node))
    }

    /// Speaks over a stream that is connected already.
    pub fn over(stream: Stream, (host, port): (&str, u16), timeout: Duration) -> Self {
        let (reader, writer) = stream.split();
        let host = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Self {
            reader,
            writer,
            host,
            timeout,
            held: Vec::new(),
            method: Method::Get,
            sending: Sending::Done,
            receiving: Receiving::Done,
            keep_alive: true,
            heard: false,
            unasked: false,
            home: None,
        }
    }

    /// Changes how long each following wait may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Begins a request. The target is a quoted path with its query. Host, and the header that tells of the framing, are
    /// added unless they are there. With `Expect: 100-continue` the head goes out at once.
    pub async fn send_request_head(
        &mut self,
        method: &Method,
        target: &str,
        headers: &Headers,
        framing: BodyFraming,
    ) -> Result<(), ClientError> {
        self.hold_request_head(method, target, headers, framing)?;
        if self.unasked || matches!(self.sending, Sending::Done) {
            self.flush().await?;
        }
        Ok(())
    }

    /// The same for who sends the body without being asked for it: nothing goes out yet. A server that answers and has not
    /// asked may take the body for the next request: such a connection is not used again.
    pub fn hold_request_head(
        &mut self,
        method: &Method,
        target: &str,
        headers: &Headers,
        framing: BodyFraming,
    ) -> Result<(), ClientError> {
        let graphic = |text: &str| !text.is_empty() && !text.bytes().any(|b| b <= b' ' || b == 0x7f);
        if !graphic(method.as_str()) || !graphic(target) {
            return Err(ClientError::Malformed("request line"));
        }
        let head = &mut self.held;
        head.clear();
        for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
        if !headers.contains("Host") {
            for part in ["Host: ", &self.host, "\r\n"] {
                head.extend_from_slice(part.as_bytes());
            }
        }
        write_headers(head, headers, true, |name| {
            !name.eq_ignore_ascii_case(b"Transfer-Encoding") && !name.eq_ignore_ascii_case(b"Content-Length")
        });
        match framing {
            // A PUT of nothing says so: Swift's servers want a length.
            BodyFraming::None
                if !matches!(method, Method::Put | Method::Post) && !headers.contains("Content-Length") => {}
            BodyFraming::None => head.extend_from_slice(b"Content-Length: 0\r\n"),
            BodyFraming::Length(length) => {
                head.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
            }
            BodyFraming::Chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        head.extend_from_slice(b"\r\n");
        self.method = method.clone();
        self.receiving = Receiving::Head(HeadScanner::default());
        self.heard = false;
        self.sending = match framing {
            BodyFraming::Chunked => Sending::Chunked,
            BodyFraming::Length(length) if length > 0 => Sending::Length(length),
            BodyFraming::None | BodyFraming::Length(_) => Sending::Done,
        };
        self.keep_alive = !headers.get("Connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close"));
        self.unasked = headers.contains("Expect");
        Ok(())
    }

    /// Sends a piece of the body; the framing is ours. An empty piece does nothing.
    pub async fn write_body(&mut self, piece: impl AsRef<[u8]>) -> Result<(), ClientError> {
        self.write_body_pieces(&[piece.as_ref()]).await
    }

    /// Sends several pieces of the body as if they were one.
    pub async fn write_body_pieces(&mut self, pieces: &[&[u8]]) -> Result<(), ClientError> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        if len == 0 {
            return Ok(());
        }
        let mut parts: Vec<&[u8]> = Vec::with_capacity(pieces.len() + 2);
        let size;
        match &mut self.sending {
            Sending::Chunked => {
                size = format!("{len:x}\r\n");
                parts.push(size.as_bytes());
                parts.extend_from_slice(pieces);
                parts.push(b"\r\n");
            }
            Sending::Length(left) => {
                *left = left.checked_sub(len as u64).ok_or(ClientError::Malformed("body too long"))?;
                parts.extend_from_slice(pieces);
            }
            Sending::Done => return Err(ClientError::Malformed("body after its end")),
        }
        self.write(&parts).await
    }

    /// Small pieces of a chunked body, as if they were one, that go out with whatever is sent next.
    pub fn hold_body(&mut self, pieces: &[&[u8]]) {
        debug_assert!(matches!(self.sending, Sending::Chunked));
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.held.extend_from_slice(format!("{len:x}\r\n").as_bytes());
        pieces.iter().for_each(|piece| self.held.extend_from_slice(piece));
        self.held.extend_from_slice(b"\r\n");
    }

    /// Sends the last pieces of a chunked body, as if they were one, and its end: whether all was sent. A server that refuses
    /// them may not read them, and hang up: its answer, or its end, ends the sending, and shows when it is read.
    pub async fn finish_body_unless_refused(&mut self, pieces: &[&[u8]]) -> Result<bool, ClientError> {
        debug_assert!(matches!(self.sending, Sending::Chunked));
        self.sending = Sending::Done;
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let size = format!("{len:x}\r\n");
        let parts = [&[&self.held, size.as_bytes()], pieces, &[b"\r\n0\r\n\r\n"]].concat();
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written = {
            let mut write = std::pin::pin!(self.writer.write_all(&mut slices, self.timeout));
            loop {
                // Of the first answer: one that begins with 1 asks for the body.
                let class = self.reader.buf.get(b"HTTP/1.1 ".len());
                tokio::select! {
                    biased;
                    written = write.as_mut() => break written.map(|()| true),
                    read = self.reader.fill(HEAD_ROOM, UNLIMITED), if class.is_none() => match read {
                        Ok(1..) if matches!(self.reader.buf.get(b"HTTP/1.1 ".len()), None | Some(b'1')) => {}
                        Ok(_) | Err(_) => break Ok(false),
                    },
                }
            }
        };
        self.held.clear();
        self.keep_alive &= matches!(written, Ok(true));
        match written {
            Err(StreamError::Io(_)) => Ok(false),
            written => Ok(written?),
        }
    }

    /// Ends the body.
    pub async fn finish_body(&mut self) -> Result<(), ClientError> {
        match std::mem::replace(&mut self.sending, Sending::Done) {
            Sending::Chunked => self.write(&[b"0\r\n\r\n"]).await,
            Sending::Length(0) | Sending::Done => self.flush().await,
            Sending::Length(_) => {
                self.keep_alive = false;
                Err(ClientError::Malformed("body too short"))
            }
        }
    }

    /// Begins another chunked body on the same request, after the server's second `100 Continue`.
    pub fn start_next_chunked_body(&mut self) {
        self.sending = Sending::Chunked;
    }

    /// Sends what is held back.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        if self.held.is_empty() { Ok(()) } else { self.write(&[]).await }
    }

    /// The next response's head. With `expect_interim` it may be a 1xx, otherwise those are passed over.
    pub async fn read_response_head(&mut self, expect_interim: bool) -> Result<ResponseHead, ClientError> {
        self.flush().await?;
        let read = self.read_head(expect_interim).await;
        if read.is_err() {
            self.receiving = Receiving::Failed;
        }
        read
    }

    async fn read_head(&mut self, expect_interim: bool) -> Result<ResponseHead, ClientError> {
        let Receiving::Head(scanner) = &mut self.receiving else {
            return Err(ClientError::Malformed("response already read"));
        };
        loop {
            let malformed = |error: head::HeadError| ClientError::Malformed(error.reason);
            let Some(end) = scanner.scan(&self.reader.buf, &Limits::RESPONSE).map_err(malformed)? else {
                match self.reader.fill(HEAD_ROOM, self.timeout).await? {
                    0 => return Err(ClientError::Closed),
                    _ => self.heard = true,
                }
                continue;
            };
            let head = head::parse_response(&self.reader.buf[..end]).map_err(malformed)?;
            self.reader.buf.advance(end);
            *scanner = HeadScanner::default();
            if head.status.is_informational() {
                self.unasked = false;
                if expect_interim {
                    return Ok(head);
                }
                continue;
            }
            let (framing, keep_alive) = head.framing(&self.method).map_err(malformed)?;
            self.keep_alive &= keep_alive;
            self.receiving = match framing {
                Framing::None => Receiving::Done,
                Framing::Length(length) => Receiving::Body(BodyDecoder::Length(length)),
                Framing::Chunked => Receiving::Body(BodyDecoder::Chunked(ChunkDecoder::new())),
                Framing::UntilClose => Receiving::Body(BodyDecoder::UntilClose),
            };
            return Ok(head);
        }
    }

    /// The next piece of the response's body; `None` at its end.
    pub async fn next_body(&mut self) -> Option<Result<Bytes, ClientError>> {
        if let Err(error) = self.flush().await {
            return Some(Err(error));
        }
        let piece = match self.receiving.body() {
            Ok(Some(decoder)) => {
                self.reader.next_piece(decoder, PIECE, self.timeout).await.map_err(ClientError::from)
            }
            Ok(None) => return None,
            Err(error) => Err(error),
        };
        self.note_body(piece.as_ref().map(Option::is_none).map_err(|_| ()));
        piece.transpose()
    }

    /// Reads the response's body once, to where its bytes are wanted; zero at its end.
    async fn read_body(&mut self, to: &mut [u8]) -> Result<usize, ClientError> {
        self.flush().await?;
        let read = match self.receiving.body() {
            Ok(Some(decoder)) => {
                self.reader.read_body(decoder, to, self.timeout).await.map_err(ClientError::from)
            }
            Ok(None) => return Ok(0),
            Err(error) => Err(error),
        };
        self.note_body(read.as_ref().map(|read| *read == 0).map_err(|_| ()));
        read
    }

    /// What reading the body has come to: whether it was the end, or a failure.
    fn note_body(&mut self, ended: Result<bool, ()>) {
        match (ended, &self.receiving) {
            (Err(()), _) => self.receiving = Receiving::Failed,
            // The end may have arrived with the last bytes: then the connection is free already.
            (Ok(true), _) | (_, Receiving::Body(BodyDecoder::Length(0))) => self.receiving = Receiving::Done,
            (Ok(false), _) => {}
        }
    }

    /// The rest of the response as a body. A connection from a pool goes back there at its end.
    pub fn into_body(self) -> Body {
        let length = match &self.receiving {
            Receiving::Body(decoder) => decoder.left(),
            Receiving::Head(_) | Receiving::Done | Receiving::Failed => Some(0),
        };
        if length == Some(0) {
            self.go_home();
            return Body::empty();
        }
        let body = Body::stream(ResponseBody { conn: Some(Box::new(self)) });
        match length {
            Some(length) => body.with_length(length),
            None => body,
        }
    }

    /// Whether the server has sent something, or has closed, without waiting for it.
    pub fn response_ready(&mut self) -> bool {
        !self.reader.buf.is_empty() || self.reader.try_fill(HEAD_ROOM)
    }

    /// Whether another request may follow on this connection.
    pub fn reusable(&self) -> bool {
        self.keep_alive
            && !self.unasked
            && matches!(self.receiving, Receiving::Done)
            && matches!(self.sending, Sending::Done | Sending::Length(0))
            && self.held.is_empty()
            && self.reader.buf.is_empty()
    }

    pub(super) fn heard(&self) -> bool {
        self.heard || !self.reader.buf.is_empty()
    }

    pub(super) fn is_stale(&mut self) -> bool {
        self.reader.is_stale()
    }

    /// Sends a piece and watches for a response meanwhile: whether there is one.
    pub(super) async fn write_body_watching(&mut self, piece: &[u8]) -> Result<bool, ClientError> {
        if !self.reader.buf.is_empty() {
            return Ok(true);
        }
        let size = format!("{:x}\r\n", piece.len());
        let parts: &[&[u8]] = match &mut self.sending {
            Sending::Chunked => &[size.as_bytes(), piece, b"\r\n"],
            Sending::Length(left) => {
                *left =
                    left.checked_sub(piece.len() as u64).ok_or(ClientError::Malformed("body too long"))?;
                &[piece]
            }
            Sending::Done => return Err(ClientError::Malformed("body after its end")),
        };
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(4);
        slices.push(IoSlice::new(&self.held));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        tokio::select! {
            biased;
            written = self.writer.write_all(&mut slices, self.timeout) => written?,
            // Not the answer but its presence is of interest: an end or an error shows when it is read.
            _ = self.reader.fill(HEAD_ROOM, UNLIMITED) => {
                self.keep_alive = false;
                return Ok(true);
            }
        }
        self.held.clear();
        Ok(false)
    }

    /// Waits until the server says something, or closes.
    pub(super) async fn wait_response(&mut self) {
        if self.reader.buf.is_empty() {
            // What it was is seen when the head is read.
            let _ = self.reader.fill(HEAD_ROOM, UNLIMITED).await;
        }
    }

    /// The request will not be finished: the connection serves no other.
    pub(super) fn give_up_sending(&mut self) {
        if !matches!(self.sending, Sending::Done | Sending::Length(0)) {
            self.sending = Sending::Done;
            self.keep_alive = false;
        }
        self.held.clear();
    }

    /// Back to the pool, if it came from one and can serve again.
    pub(super) fn go_home(self) {
        if self.reusable()
            && let Some(home) = self.home.clone()
        {
            home.check_in(self);
        }
    }

    async fn write(&mut self, parts: &[&[u8]]) -> Result<(), ClientError> {
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(1 + parts.len());
        slices.push(IoSlice::new(&self.held));
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        let written = self.writer.write_all(&mut slices, self.timeout).await;
        self.held.clear();
        if written.is_err() {
            self.keep_alive = false;
        }
        Ok(written?)
    }
}

/// The body of a response that owns its connection.
struct ResponseBody {
    conn: Option<Box<ClientConn>>,
}

impl ResponseBody {
    fn leave_at_end(&mut self) {
        let ended =
            |conn: &mut Box<ClientConn>| matches!(conn.receiving, Receiving::Done | Receiving::Failed);
        if let Some(conn) = self.conn.take_if(ended) {
            conn.go_home();
        }
    }
}

impl BodyStream for ResponseBody {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            let piece = self.conn.as_mut()?.next_body().await;
            self.leave_at_end();
            piece.map(|piece| piece.map_err(BodyError::from))
        })
    }

    fn read<'a>(&'a mut self, to: &'a mut [u8]) -> Option<BoxFuture<'a, Result<usize, BodyError>>> {
        Some(Box::pin(async move {
            let Some(conn) = &mut self.conn else { return Ok(0) };
            let read = conn.read_body(to).await;
            self.leave_at_end();
            Ok(read?)
        }))
    }
}
