//! One connection of a server: requests in, one response for each, in order.
//!
//! The reading half lies in a box that is lent to a request's body while a handler has it, and comes back when the body is
//! dropped; a request without a body never lends it. So a handler may keep the body, hand it to the response's body
//! (SSYNC), or drop it early, and the connection knows afterwards what is left to be read:
//!
//! - nothing: the next request follows;
//! - a little: it is read and dropped ([`DRAIN`]), then the next request follows;
//! - much, or a `100 Continue` never sent, so that nobody knows whether the body comes: the connection is closed, but
//!   lingers ([`LINGER`]) so that the peer, still sending, can read the status before it is reset;
//! - unknown, because somebody still has the body: it is closed as well.
//!
//! The headers that tell of the connection and of framing are written here alone; an app's are left out, as they may be a
//! backend's. A response says `Connection: close` only if that is known when its head is written: a body that reads the request while
//! it writes must not say so, or Swift's SSYNC sender would send the rest on another connection.

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::chunked::{BodyDecoder, ChunkDecoder};
use super::head::{self, Framing, HeadError, HeadScanner, RequestHead};
use super::headers::write_title_case;
use super::serve::{Connected, ServeOptions, ServerStats};
use super::stream::{DataError, Reader, StreamError, Writer};
use super::{App, Body, BodyError, Headers, Request, Response, Status};

/// The largest piece of a body that is read at once.
const PIECE: usize = 64 << 10;
/// How long a server that stops waits for the first request of a new connection.
const LAST_CALL: Duration = Duration::from_secs(1);
/// Room for a head and a small body.
const HEAD_ROOM: usize = 8 << 10;
/// The most bytes of an unread body that are read so that the connection may live on.
const DRAIN: u64 = 1 << 20;
/// How long, and for how many bytes, a closed connection still takes what the peer sends.
const LINGER: (Duration, usize) = (Duration::from_secs(10), 256 << 20);
/// How long it waits for each piece of that.
const LINGER_IDLE: Duration = Duration::from_secs(2);
/// The longest line of the PROXY protocol.
const PROXY_LINE: usize = 8192;

/// What a connection shares with the bodies of its requests.
pub(super) struct Shared {
    writer: Writer,
    /// The head of the final response has been written: too late for a `100 Continue`.
    responding: AtomicBool,
    returned: Mutex<Option<Returned>>,
}

struct Returned {
    reader: Box<Reader>,
    rest: Rest,
}

/// What a dropped body left on the wire.
enum Rest {
    Nothing,
    Body(BodyDecoder),
    /// The client waits for a `100 Continue`; it may or may not send the body.
    Unasked,
    /// Reading failed.
    Broken,
}

/// A handle to ask whether a request's client is still there.
#[derive(Clone)]
pub struct Peer(Arc<Shared>);

impl Peer {
    /// Returns when the client has closed its connection. Only to be asked when the request's body has been read;
    /// bytes of a pipelined request, or a stream that is not TCP, hide a disconnect.
    pub async fn gone(&self) {
        self.0.writer.peer_gone().await;
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Peer")
    }
}

/// The body of a request as it comes from the connection.
pub(super) struct Incoming {
    /// Taken only by drop.
    reader: Option<Box<Reader>>,
    decoder: BodyDecoder,
    expect_continue: bool,
    /// Reading does not ask for the body.
    unasked: bool,
    broken: bool,
    pub continue_headers: Headers,
    timeout: Duration,
    shared: Arc<Shared>,
}

impl Incoming {
    pub fn content_length(&self) -> Option<u64> {
        self.decoder.left()
    }

    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        if self.broken {
            return Ok(None);
        }
        let piece = self.next_piece().await;
        self.broken = piece.is_err();
        piece
    }

    async fn next_piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        self.ask().await?;
        let reader = self.reader.as_mut().expect("only drop takes the reader");
        Ok(reader.next_piece(&mut self.decoder, PIECE, self.timeout).await?)
    }

    /// As [`Body::read`].
    pub async fn read(&mut self, to: &mut [u8]) -> Result<usize, BodyError> {
        if self.broken {
            return Ok(0);
        }
        let read = self.read_once(to).await;
        self.broken = read.is_err();
        read
    }

    async fn read_once(&mut self, to: &mut [u8]) -> Result<usize, BodyError> {
        self.ask().await?;
        let reader = self.reader.as_mut().expect("only drop takes the reader");
        Ok(reader.read_body(&mut self.decoder, to, self.timeout).await?)
    }

    /// Sees to it that the client sends.
    async fn ask(&mut self) -> Result<(), BodyError> {
        if self.unasked { Ok(()) } else { self.send_expected_continue().await }
    }

    /// Whether the client sends what it was not asked for; then it will not be, as long as it is read.
    pub fn take_unasked(&mut self) -> bool {
        let sends = self.reader.as_ref().is_some_and(|reader| !reader.buf.is_empty());
        self.unasked = self.expect_continue && sends;
        self.unasked
    }

    pub async fn send_expected_continue(&mut self) -> Result<(), BodyError> {
        if !std::mem::take(&mut self.expect_continue) || self.shared.responding.load(Ordering::Acquire) {
            return Ok(());
        }
        self.write_continues(1).await
    }

    pub async fn next_chunked_body(&mut self) -> Result<(), BodyError> {
        let mut dropped = 0;
        while let Some(piece) = self.next().await? {
            dropped += piece.len() as u64;
            if dropped > DRAIN {
                return Err(BodyError::TooLong);
            }
        }
        if self.broken {
            return Err(BodyError::Disconnected);
        }
        self.decoder = BodyDecoder::Chunked(ChunkDecoder::new());
        // The client is owed the first one too if it was not asked.
        let owed = 1 + usize::from(std::mem::take(&mut self.expect_continue));
        self.write_continues(owed).await
    }

    async fn write_continues(&mut self, count: usize) -> Result<(), BodyError> {
        let mut head = b"HTTP/1.1 100 Continue\r\n".to_vec();
        write_headers(&mut head, &self.continue_headers, true, |_| true);
        head.extend_from_slice(b"\r\n");
        let mut heads = [IoSlice::new(&head); 2];
        Ok(self.shared.writer.write_all(&mut heads[..count], self.timeout).await?)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        let rest = match &self.decoder {
            _ if self.broken => Rest::Broken,
            _ if self.expect_continue => Rest::Unasked,
            decoder if decoder.is_end() => Rest::Nothing,
            decoder => Rest::Body(decoder.clone()),
        };
        *self.shared.returned.lock() = Some(Returned { reader, rest });
    }
}

impl From<StreamError> for BodyError {
    fn from(error: StreamError) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match error {
            StreamError::Timeout => Self::Timeout,
            StreamError::Io(error)
                if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset) =>
            {
                Self::Disconnected
            }
            StreamError::Io(error) => Self::Io(error),
        }
    }
}

impl From<DataError> for BodyError {
    fn from(error: DataError) -> Self {
        match error {
            DataError::Malformed(malformed) => Self::Malformed(malformed.0),
            DataError::Stream(error) => error.into(),
            DataError::Closed => Self::Disconnected,
        }
    }
}

/// Why the loop over a connection's requests ends.
enum End {
    /// The client has closed, or is not owed anything.
    Close,
    /// The client may still be sending.
    Linger(Box<Reader>),
}

/// Serves the requests of one connection until it ends.
pub(super) async fn serve(connected: Connected, app: &dyn App, options: &ServeOptions, stats: &ServerStats) {
    let Connected { mut stream, remote_addr, local_addr, mut draining } = connected;
    if let Some(tls) = &options.tls {
        // In a box: a plain connection need not have room for it.
        let handshake = tokio::time::timeout(options.client_timeout, Box::pin(tls.accept(stream)));
        let last_call = async {
            // The server has gone away: that is a stop, too.
            let _ = draining.wait_for(|draining| *draining).await;
            tokio::time::sleep(LAST_CALL).await;
        };
        stream = tokio::select! {
            biased;
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(_)) => return,
                Err(_) => {
                    stats.timeouts.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            },
            () = last_call => return,
        };
    }
    let (reader, writer) = stream.split();
    let shared = Arc::new(Shared { writer, responding: AtomicBool::new(false), returned: Mutex::new(None) });
    let mut conn = Conn {
        shared: shared.clone(),
        options,
        stats,
        draining,
        served: false,
        out: Vec::with_capacity(1024),
        date: Date::default(),
    };
    let mut origin = Origin { remote_addr, local_addr, https: options.tls.is_some() };
    let mut reader = Box::new(reader);
    if options.proxy_protocol {
        match conn.read_proxy_line(&mut reader, &mut origin).await {
            Ok(()) => {}
            Err(error) => return conn.refuse(reader, error).await,
        }
    }
    loop {
        reader = match conn.serve_one(reader, app, &origin).await {
            Ok(reader) => reader,
            // Explicitly, as a body or a Peer that somebody still holds keeps the socket open.
            Err(End::Close) => return shared.writer.shutdown().await,
            Err(End::Linger(reader)) => return linger(&shared.writer, reader).await,
        };
    }
}

struct Origin {
    remote_addr: Option<std::net::SocketAddr>,
    local_addr: Option<std::net::SocketAddr>,
    https: bool,
}

struct Conn<'a> {
    shared: Arc<Shared>,
    options: &'a ServeOptions,
    stats: &'a ServerStats,
    draining: watch::Receiver<bool>,
    /// A request has been read.
    served: bool,
    out: Vec<u8>,
    date: Date,
}

/// What of a request its response depends on.
struct Terms {
    bodyless: bool,
    http_1_0: bool,
    keep_alive: bool,
    says_keep_alive: bool,
}

impl Conn<'_> {
    /// One request and its response; the reader if another may follow.
    async fn serve_one(
        &mut self,
        mut reader: Box<Reader>,
        app: &dyn App,
        origin: &Origin,
    ) -> Result<Box<Reader>, End> {
        let head = match self.read_head(&mut reader).await? {
            Ok(head) => head,
            Err(error) => {
                self.refuse(reader, error).await;
                return Err(End::Close);
            }
        };
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        let terms = Terms {
            bodyless: head.method == super::Method::Head,
            http_1_0: head.http_1_0,
            keep_alive: head.keep_alive,
            says_keep_alive: head.says_keep_alive,
        };
        let (req, mut reader) = self.make_request(head, reader, origin);
        self.shared.responding.store(false, Ordering::Release);
        let resp = match AssertUnwindSafe(app.call(req)).catch_unwind().await {
            Ok(resp) => resp,
            Err(_) => {
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
                let mut resp = Response::error(500);
                resp.close = true;
                resp
            }
        };
        let mut rest = self.recover(&mut reader, Rest::Nothing);
        let early_rest = reader.is_some().then_some(&rest);
        let written = self.respond(resp, terms, early_rest).await;
        if reader.is_none() {
            rest = self.recover(&mut reader, Rest::Broken);
        }
        let Some(reader) = reader else { return Err(End::Close) };
        match written {
            Err(_) => Err(End::Close),
            Ok(Alive::No) if matches!(rest, Rest::Nothing) && reader.buf.is_empty() => Err(End::Close),
            Ok(Alive::No) => Err(End::Linger(reader)),
            Ok(Alive::Yes) => self.drain(reader, rest).await,
        }
    }

    fn make_request(
        &self,
        head: RequestHead,
        reader: Box<Reader>,
        origin: &Origin,
    ) -> (Request, Option<Box<Reader>>) {
        let mut req = Request::from_target(head.method, head.target);
        req.headers = head.headers;
        req.http_1_0 = head.http_1_0;
        req.env.remote_addr = origin.remote_addr;
        req.env.local_addr = origin.local_addr;
        req.env.https = origin.https;
        req.env.start = Some(Instant::now());
        req.env.peer = Some(Peer(self.shared.clone()));
        let decoder = match head.framing {
            // Also a body of no bytes is asked for by a client that expects it.
            Framing::None if head.expect_continue => BodyDecoder::Length(0),
            Framing::None | Framing::UntilClose => return (req, Some(reader)),
            Framing::Length(length) => BodyDecoder::Length(length),
            Framing::Chunked => BodyDecoder::Chunked(ChunkDecoder::new()),
        };
        req.body = Body::incoming(Incoming {
            reader: Some(reader),
            decoder,
            expect_continue: head.expect_continue,
            unasked: false,
            broken: false,
            continue_headers: Headers::new(),
            timeout: self.options.client_timeout,
            shared: self.shared.clone(),
        });
        (req, None)
    }

    /// Takes the reader back from the request's body, if that has been dropped.
    fn recover(&self, reader: &mut Option<Box<Reader>>, otherwise: Rest) -> Rest {
        match self.shared.returned.lock().take() {
            Some(returned) => {
                *reader = Some(returned.reader);
                returned.rest
            }
            None => otherwise,
        }
    }

    async fn read_head(&mut self, reader: &mut Reader) -> Result<Result<RequestHead, HeadError>, End> {
        let options = self.options;
        if reader.buf.is_empty() {
            let idle = options.keepalive_timeout.unwrap_or(options.client_timeout);
            let filled = tokio::select! {
                biased;
                filled = reader.fill(HEAD_ROOM, idle) => Some(filled),
                _ = self.draining.wait_for(|draining| *draining) => None,
            };
            let filled = match filled {
                Some(filled) => filled,
                None if self.served => return Err(End::Close),
                // Whoever has just connected is about to ask, and is not to be turned away by a reload.
                None => reader.fill(HEAD_ROOM, idle.min(LAST_CALL)).await,
            };
            if !matches!(filled, Ok(1..)) {
                return Err(End::Close);
            }
        }
        let mut scanner = HeadScanner::default();
        let mut deadline = None;
        loop {
            match scanner.scan(&reader.buf, &options.limits) {
                Err(error) => return Ok(Err(error)),
                Ok(Some(end)) => {
                    let head = head::parse_request(&reader.buf[..end]);
                    reader.buf.advance(end);
                    self.served = true;
                    return Ok(head);
                }
                Ok(None) => {}
            }
            // A client that speaks another version may send no more than this line before it waits.
            if let Some(end) = scanner.first_line_end()
                && let Err(error) = head::parse_request_line(&reader.buf[..end])
            {
                return Ok(Err(error));
            }
            let now = tokio::time::Instant::now();
            let deadline = *deadline.get_or_insert(now + options.client_timeout);
            match reader.fill(HEAD_ROOM, deadline.saturating_duration_since(now)).await {
                Ok(1..) => {}
                Ok(0) | Err(StreamError::Io(_)) => return Err(End::Close),
                Err(StreamError::Timeout) => {
                    self.stats.timeouts.fetch_add(1, Ordering::Relaxed);
                    return Err(End::Close);
                }
            }
        }
    }

    /// Answers a head that is no request, and closes.
    async fn refuse(&mut self, reader: Box<Reader>, error: HeadError) {
        self.stats.refused.fetch_add(1, Ordering::Relaxed);
        let HeadError { status, reason } = error;
        let trans_id = self.options.on_refused.as_ref().and_then(|hook| hook(status, reason));
        let body = format!("<html><h1>{}</h1><p>{reason}</p></html>", status.reason());
        self.out.clear();
        write_fmt(&mut self.out, format_args!("HTTP/1.1 {} {reason}\r\n", status.0));
        write_fmt(&mut self.out, format_args!("Content-Type: text/html; charset=UTF-8\r\n"));
        write_fmt(&mut self.out, format_args!("Content-Length: {}\r\n", body.len()));
        if let Some(id) = trans_id {
            write_fmt(&mut self.out, format_args!("X-Trans-Id: {id}\r\nX-Openstack-Request-Id: {id}\r\n"));
        }
        write_fmt(&mut self.out, format_args!("Date: {}\r\n", self.date.now(&self.options.clock)));
        write_fmt(&mut self.out, format_args!("Connection: close\r\n\r\n{body}"));
        let written =
            self.shared.writer.write_all(&mut [IoSlice::new(&self.out)], self.options.client_timeout).await;
        if written.is_ok() {
            linger(&self.shared.writer, reader).await;
        }
    }

    /// Writes the response. `rest` is what is left of the request if its body is no longer in use.
    async fn respond(
        &mut self,
        resp: Response,
        terms: Terms,
        rest: Option<&Rest>,
    ) -> Result<Alive, StreamError> {
        let bodyless = terms.bodyless || resp.status.is_bodyless();
        let stated = resp.headers.get_int::<u64>("Content-Length");
        let length = stated.or_else(|| resp.body.content_length());
        let out = match length {
            _ if bodyless => Out::Length(0),
            Some(length) => Out::Length(length),
            None if terms.http_1_0 => Out::UntilClose,
            None => Out::Chunked,
        };
        let rest_closes = match rest {
            None | Some(Rest::Nothing) => false,
            Some(Rest::Body(decoder)) => decoder.left().is_some_and(|left| left > DRAIN),
            Some(Rest::Unasked | Rest::Broken) => true,
        };
        let close = !terms.keep_alive
            || resp.close
            || rest_closes
            || matches!(out, Out::UntilClose)
            || self.options.keepalive_timeout == Some(Duration::ZERO)
            || *self.draining.borrow();
        let added_length = if stated.is_none() && !bodyless { length } else { None };
        self.write_head(&resp, &out, added_length, close, &terms);
        let alive = if bodyless {
            self.shared.responding.store(true, Ordering::Release);
            let limit = self.options.client_timeout;
            let written = self.shared.writer.write_all(&mut [IoSlice::new(&self.out)], limit).await;
            resp.body.abandon().await;
            written.map(|()| Alive::Yes)?
        } else {
            self.write_body(resp.body, out).await?
        };
        Ok(if close { Alive::No } else { alive })
    }

    fn write_head(&mut self, resp: &Response, out: &Out, length: Option<u64>, close: bool, terms: &Terms) {
        let head = &mut self.out;
        head.clear();
        write_fmt(head, format_args!("HTTP/1.1 {} {}\r\n", resp.status.0, resp.status.reason()));
        let unreadable_length = resp.headers.get_int::<u64>("Content-Length").is_none();
        write_headers(head, &resp.headers, !resp.preserve_header_case, |name| {
            !(name.eq_ignore_ascii_case(b"Connection")
                || name.eq_ignore_ascii_case(b"Keep-Alive")
                || name.eq_ignore_ascii_case(b"Transfer-Encoding")
                || (unreadable_length && name.eq_ignore_ascii_case(b"Content-Length")))
        });
        if let Some(length) = length {
            write_fmt(head, format_args!("Content-Length: {length}\r\n"));
        }
        if !resp.headers.contains("Date") {
            head.extend_from_slice(b"Date: ");
            head.extend_from_slice(self.date.now(&self.options.clock).as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        if matches!(out, Out::Chunked) {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if close {
            head.extend_from_slice(b"Connection: close\r\n");
        } else if terms.says_keep_alive {
            head.extend_from_slice(b"Connection: keep-alive\r\n");
            if let Some(seconds) = self.options.keepalive_timeout.map(|t| t.as_secs()).filter(|s| *s > 0) {
                write_fmt(head, format_args!("Keep-Alive: timeout={seconds}\r\n"));
            }
        }
        head.extend_from_slice(b"\r\n");
    }

    /// Writes the head in `self.out` together with the first piece of the body if that is there at once, then the rest.
    /// On failure the body is run to its end.
    async fn write_body(&mut self, mut body: Body, mut out: Out) -> Result<Alive, StreamError> {
        let (shared, limit) = (self.shared.clone(), self.options.client_timeout);
        let head = std::mem::take(&mut self.out);
        let mut head_written = false;
        let mut piece = {
            let mut next = pin!(body.next());
            match futures_util::poll!(next.as_mut()) {
                Poll::Ready(piece) => Ok(piece),
                Poll::Pending => {
                    shared.responding.store(true, Ordering::Release);
                    head_written = true;
                    match shared.writer.write_all(&mut [IoSlice::new(&head)], limit).await {
                        Ok(()) => Ok(next.await),
                        Err(error) => Err(error),
                    }
                }
            }
        };
        shared.responding.store(true, Ordering::Release);
        let result = loop {
            let bytes = match piece {
                Err(error) => break Err(error),
                Ok(None) => {
                    let last: &[u8] = if matches!(out, Out::Chunked) { b"0\r\n\r\n" } else { b"" };
                    let prefix: &[u8] = if head_written { b"" } else { &head };
                    let bufs = &mut [IoSlice::new(prefix), IoSlice::new(last)];
                    break shared.writer.write_all(bufs, limit).await.map(|()| out.end());
                }
                Ok(Some(Err(_))) => {
                    self.stats.aborted.fetch_add(1, Ordering::Relaxed);
                    // The head tells the client how much is missing; without it, it hears nothing.
                    break Err(StreamError::Io(io::Error::other("the body failed")));
                }
                Ok(Some(Ok(bytes))) => bytes,
            };
            if matches!(out, Out::Length(0)) && head_written {
                break Err(StreamError::Io(io::Error::other("the body is longer than was said")));
            }
            let prefix: &[u8] = if head_written { b"" } else { &head };
            head_written = true;
            if let Err(error) = out.write(&shared.writer, prefix, &bytes, limit).await {
                break Err(error);
            }
            if let Out::Length(0) = out
                && body.as_bytes().is_some()
            {
                break Ok(Alive::Yes);
            }
            piece = Ok(body.next().await);
        };
        self.out = head;
        if matches!(result, Err(StreamError::Timeout)) {
            self.stats.timeouts.fetch_add(1, Ordering::Relaxed);
        }
        match result {
            Ok(alive) => Ok(alive),
            Err(error) => {
                body.abandon().await;
                Err(error)
            }
        }
    }

    /// Reads what is left of a request's body, if that is little enough.
    async fn drain(&mut self, reader: Box<Reader>, rest: Rest) -> Result<Box<Reader>, End> {
        let decoder = match rest {
            Rest::Nothing => return Ok(reader),
            Rest::Body(decoder) if decoder.left().is_none_or(|left| left <= DRAIN) => decoder,
            Rest::Body(_) | Rest::Unasked | Rest::Broken => return Err(End::Linger(reader)),
        };
        let mut incoming = Incoming {
            reader: Some(reader),
            decoder,
            expect_continue: false,
            unasked: false,
            broken: false,
            continue_headers: Headers::new(),
            timeout: self.options.client_timeout,
            shared: self.shared.clone(),
        };
        let mut dropped = 0;
        loop {
            match incoming.next().await {
                Ok(Some(piece)) => dropped += piece.len() as u64,
                Ok(None) => return incoming.reader.take().ok_or(End::Close),
                Err(BodyError::Malformed(_)) => dropped = u64::MAX,
                Err(_) => return Err(End::Close),
            }
            if dropped > DRAIN {
                return Err(incoming.reader.take().map_or(End::Close, End::Linger));
            }
        }
    }

    /// The line that a TLS terminator puts before everything else: `PROXY TCP4 client server cport sport`.
    async fn read_proxy_line(&mut self, reader: &mut Reader, origin: &mut Origin) -> Result<(), HeadError> {
        const BAD: HeadError = HeadError { status: Status::BAD_REQUEST, reason: "Invalid PROXY line" };
        let end = loop {
            if let Some(end) = memchr::memchr(b'\n', &reader.buf) {
                break end + 1;
            }
            if reader.buf.len() > PROXY_LINE {
                return Err(BAD);
            }
            if !matches!(reader.fill(HEAD_ROOM, self.options.client_timeout).await, Ok(1..)) {
                return Err(BAD);
            }
        };
        let line = reader.buf.split_to(end);
        let line = std::str::from_utf8(&line).map_err(|_| BAD)?.trim_end_matches(['\r', '\n']);
        let parts: Vec<&str> = line.split(' ').collect();
        match parts[..] {
            ["PROXY", unknown, ..] if unknown.starts_with("UNKNOWN") => {}
            ["PROXY", "TCP4" | "TCP6", client, server, client_port, server_port] => {
                let addr = |ip: &str, port: &str| {
                    let addr = std::net::SocketAddr::new(ip.parse().ok()?, port.parse().ok()?);
                    Some(addr)
                };
                origin.remote_addr = Some(addr(client, client_port).ok_or(BAD)?);
                origin.local_addr = Some(addr(server, server_port).ok_or(BAD)?);
                origin.https |= server_port == "443";
            }
            _ => return Err(BAD),
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Alive {
    Yes,
    No,
}

/// How the body of a response is framed.
enum Out {
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    UntilClose,
}

impl Out {
    /// Writes a piece, and what stands before it, at once.
    async fn write(
        &mut self,
        writer: &Writer,
        prefix: &[u8],
        mut piece: &[u8],
        limit: Duration,
    ) -> Result<(), StreamError> {
        match self {
            Self::Chunked => {
                let size = format!("{:x}\r\n", piece.len());
                let size = size.as_bytes();
                let bufs = &mut [
                    IoSlice::new(prefix),
                    IoSlice::new(size),
                    IoSlice::new(piece),
                    IoSlice::new(b"\r\n"),
                ];
                return writer.write_all(bufs, limit).await;
            }
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                if take < piece.len() {
                    piece = &piece[..take];
                }
                *left -= take as u64;
            }
            Self::UntilClose => {}
        }
        writer.write_all(&mut [IoSlice::new(prefix), IoSlice::new(piece)], limit).await
    }

    /// Whether the connection can live on after the end of the body: not if the client still waits for bytes.
    fn end(&self) -> Alive {
        match self {
            Self::Length(0) | Self::Chunked => Alive::Yes,
            Self::Length(_) | Self::UntilClose => Alive::No,
        }
    }
}

/// Closes for writing and takes what the peer still sends for a while.
async fn linger(writer: &Writer, mut reader: Box<Reader>) {
    writer.shutdown().await;
    let (total, bytes) = LINGER;
    reader.discard(bytes, total, LINGER_IDLE).await;
}

/// Writes header lines. A value that would split the head is left out.
pub(super) fn write_headers(out: &mut Vec<u8>, headers: &Headers, title: bool, keep: impl Fn(&[u8]) -> bool) {
    for (name, value) in headers.iter() {
        let splits = |bytes: &[u8]| memchr::memchr2(b'\r', b'\n', bytes).is_some();
        let is_name = !name.is_empty() && !splits(name) && memchr::memchr2(b'\0', b':', name).is_none();
        if !keep(name) || !is_name || splits(value) {
            continue;
        }
        if title {
            write_title_case(name, out);
        } else {
            out.extend_from_slice(name);
        }
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

fn write_fmt(out: &mut Vec<u8>, args: fmt::Arguments<'_>) {
    out.write_fmt(args).expect("writing to a Vec cannot fail");
}

/// The text of the Date header, made once a second.
#[derive(Default)]
struct Date {
    secs: u64,
    text: String,
}

impl Date {
    fn now(&mut self, clock: &common::clock::Clock) -> &str {
        let secs = clock.since_epoch().as_secs();
        if secs != self.secs || self.text.is_empty() {
            self.secs = secs;
            self.text = common::timestamp::http_date(secs);
        }
        &self.text
    }
}
