//! Kept connections to servers, and whole requests over them.
//!
//! A connection is kept when its response was read to the end, at most so many for an address and in all, and not longer
//! than the idle time, which must be shorter than what servers allow (`keepalive_timeout`, 60 s by default). One that the
//! server has closed meanwhile is seen when it is taken. If the server closes it just then, before it says anything, the
//! request is sent once more over a new connection, provided that it can be: its body is in memory, and repeating it does
//! no harm (by its method, or because Swift orders it by its X-Timestamp).

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::client::{BodyFraming, ClientConn, ClientError, Timeouts};
use super::stream::Stream;
use super::{Body, BoxFuture, Headers, Method, Response};

/// Makes streams to servers: TCP, or what a simulation has instead.
pub trait Connect: Send + Sync + 'static {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Stream>>;
}

#[derive(Clone)]
pub struct PoolOptions {
    pub idle_per_addr: usize,
    pub idle_total: usize,
    pub idle_timeout: Duration,
    /// Plain TCP if not set.
    pub connector: Option<Arc<dyn Connect>>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        let idle_timeout = Duration::from_secs(20);
        Self { idle_per_addr: 32, idle_total: 1024, idle_timeout, connector: None }
    }
}

type Key = (String, u16);

struct Inner {
    options: PoolOptions,
    idle: Mutex<Idle>,
}

struct Idle {
    conns: HashMap<Key, Vec<Kept>>,
    total: usize,
    swept: Instant,
}

struct Kept {
    conn: ClientConn,
    since: Instant,
}

/// Where a connection goes back to.
#[derive(Clone)]
pub(super) struct Home {
    pool: Weak<Inner>,
    key: Arc<Key>,
}

impl Home {
    pub fn check_in(self, conn: ClientConn) {
        if let Some(pool) = self.pool.upgrade() {
            pool.keep(&self.key, conn);
        }
    }
}

/// Cloning shares the connections.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(PoolOptions::default())
    }
}

impl Pool {
    pub fn new(options: PoolOptions) -> Self {
        let idle = Idle { conns: HashMap::new(), total: 0, swept: Instant::now() };
        Self { inner: Arc::new(Inner { options, idle: Mutex::new(idle) }) }
    }

    /// Connections that are kept now.
    pub fn idle(&self) -> usize {
        self.inner.idle.lock().total
    }

    /// A kept connection, or a new one. It comes back by itself with the end of [`ClientConn::into_body`], or by
    /// [`Pool::checkin`].
    pub async fn checkout(&self, addr: (&str, u16), timeouts: Timeouts) -> Result<ClientConn, ClientError> {
        match self.take_kept(addr, timeouts) {
            Some(conn) => Ok(conn),
            None => self.connect(addr, timeouts).await,
        }
    }

    /// A new connection, which is kept after use.
    pub async fn connect(&self, addr: (&str, u16), timeouts: Timeouts) -> Result<ClientConn, ClientError> {
        let mut conn = match &self.inner.options.connector {
            None => ClientConn::connect(addr, timeouts).await?,
            Some(connector) => {
                let stream = tokio::time::timeout(timeouts.conn, connector.connect(addr.0, addr.1))
                    .await
                    .map_err(|_| ClientError::ConnTimeout)?
                    .map_err(ClientError::Connect)?;
                ClientConn::over(stream, addr, timeouts.node)
            }
        };
        let key = Arc::new((addr.0.to_owned(), addr.1));
        conn.home = Some(Home { pool: Arc::downgrade(&self.inner), key });
        Ok(conn)
    }

    /// Gives a connection back; it is closed if it cannot serve another request.
    pub fn checkin(&self, conn: ClientConn) {
        conn.go_home();
    }

    /// A kept connection, if there is one. Its server may close it at any time.
    pub fn take_kept(&self, addr: (&str, u16), timeouts: Timeouts) -> Option<ClientConn> {
        let mut idle = self.inner.idle.lock();
        let Idle { conns, total, .. } = &mut *idle;
        let kept = conns.get_mut(&(addr.0.to_owned(), addr.1))?;
        while let Some(Kept { mut conn, since }) = kept.pop() {
            *total -= 1;
            if since.elapsed() < self.inner.options.idle_timeout && !conn.is_stale() {
                conn.set_timeout(timeouts.node);
                return Some(conn);
            }
        }
        None
    }

    /// A whole request. The response's body holds the connection until it has been read. A server that answers while
    /// the body is still being sent ends the sending. An Expect header is not sent: there would be nobody to wait.
    pub async fn request(
        &self,
        addr: (&str, u16),
        method: Method,
        path_qs: &str,
        headers: &Headers,
        body: Body,
        timeouts: Timeouts,
    ) -> Result<Response, ClientError> {
        let mut without_expect = Headers::new();
        let headers = if headers.contains("Expect") {
            without_expect.update(headers);
            without_expect.remove("Expect");
            &without_expect
        } else {
            headers
        };
        let request = Outgoing { method: &method, path_qs, headers };
        let replay = match body.as_bytes() {
            Some(bytes) if request.is_repeatable() => Some(Bytes::copy_from_slice(bytes)),
            _ => None,
        };
        let Some(replay) = replay else {
            // A kept connection might turn out to be closed, and there is no second try.
            return request.send(&mut None, self.connect(addr, timeouts).await?, body).await;
        };
        if let Some(conn) = self.take_kept(addr, timeouts) {
            let mut unheard = None;
            match request.send(&mut unheard, conn, body).await {
                Err(ClientError::Closed) if unheard.is_some() => {}
                sent => return sent,
            }
        }
        request.send(&mut None, self.connect(addr, timeouts).await?, replay.into()).await
    }
}

/// The server closed before it said anything.
struct Unheard;

struct Outgoing<'a> {
    method: &'a Method,
    path_qs: &'a str,
    headers: &'a Headers,
}

impl Outgoing<'_> {
    fn is_repeatable(&self) -> bool {
        match self.method {
            Method::Get | Method::Head | Method::Options | Method::Replicate => true,
            Method::Put | Method::Post | Method::Delete | Method::Update | Method::Copy => {
                self.headers.contains("X-Timestamp")
            }
            Method::Ssync | Method::Other(_) => false,
        }
    }

    async fn send(
        &self,
        unheard: &mut Option<Unheard>,
        mut conn: ClientConn,
        body: Body,
    ) -> Result<Response, ClientError> {
        let sent = self.exchange(&mut conn, body).await;
        let head = match sent {
            Ok(head) => head,
            Err(error) => {
                *unheard = (!conn.heard()).then_some(Unheard);
                return Err(error);
            }
        };
        let mut resp = Response::new(head.status);
        resp.headers = head.headers;
        resp.body = conn.into_body();
        Ok(resp)
    }

    async fn exchange(
        &self,
        conn: &mut ClientConn,
        mut body: Body,
    ) -> Result<super::head::ResponseHead, ClientError> {
        let framing = match body.content_length() {
            Some(0) => BodyFraming::None,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::Chunked,
        };
        conn.send_request_head(self.method, self.path_qs, self.headers, framing).await?;
        if framing == BodyFraming::None {
            return conn.read_response_head(false).await;
        }
        loop {
            let early = tokio::select! {
                biased;
                piece = body.next() => match piece {
                    Some(Ok(piece)) => conn.write_body_watching(&piece).await,
                    Some(Err(error)) => return Err(ClientError::Body(error)),
                    None => {
                        conn.finish_body().await?;
                        return conn.read_response_head(false).await;
                    }
                },
                () = conn.wait_response() => Ok(true),
            };
            match early {
                Ok(false) => {}
                // The server may have answered before it closed.
                Ok(true) | Err(ClientError::Closed) => {
                    conn.give_up_sending();
                    return conn.read_response_head(false).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Inner {
    fn keep(&self, key: &Key, mut conn: ClientConn) {
        if conn.is_stale() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.idle.lock();
        if now.duration_since(idle.swept) > self.options.idle_timeout {
            idle.sweep(now, self.options.idle_timeout);
        }
        if idle.total >= self.options.idle_total {
            return;
        }
        let kept = match idle.conns.get_mut(key) {
            Some(kept) => kept,
            None => idle.conns.entry(key.clone()).or_default(),
        };
        if kept.len() < self.options.idle_per_addr {
            kept.push(Kept { conn, since: now });
            idle.total += 1;
        }
    }
}

impl Idle {
    /// Drops what has been idle too long, also of addresses nobody asks for any more.
    fn sweep(&mut self, now: Instant, timeout: Duration) {
        self.swept = now;
        self.conns.retain(|_, kept| {
            kept.retain(|kept| now.duration_since(kept.since) < timeout);
            !kept.is_empty()
        });
        self.total = self.conns.values().map(Vec::len).sum();
    }
}
