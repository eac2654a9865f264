//! Listening sockets, the limit on clients, counters, and an orderly stop.
//!
//! A connection is one task. When as many connections are open as `max_clients` says, no more are accepted: they wait in
//! the sockets' backlog, as with Swift's green pool. A stop closes the listeners, ends idle connections, lets open requests
//! finish (their responses say `Connection: close`), and aborts what is left when the time is up.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::clock::Clock;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;

use super::head::Limits;
use super::tls::Acceptor;
use super::{SharedApp, Status, Stream, conn};

/// Called with the status and reason of a head that was refused, to log it; gives the transaction id of the answer.
pub type RefusedHook = Arc<dyn Fn(Status, &str) -> Option<String> + Send + Sync>;

#[derive(Clone)]
pub struct ServeOptions {
    /// How long a read or write on a connection may take (`client_timeout`), and a whole head.
    pub client_timeout: Duration,
    /// How long a connection may wait for its next request; `client_timeout` if not set, and zero is no keep-alive.
    pub keepalive_timeout: Option<Duration>,
    pub max_clients: usize,
    pub limits: Limits,
    /// `require_proxy_protocol`.
    pub proxy_protocol: bool,
    /// Makes what is accepted TLS.
    pub tls: Option<Acceptor>,
    pub clock: Clock,
    pub on_refused: Option<RefusedHook>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            client_timeout: Duration::from_secs(60),
            keepalive_timeout: None,
            max_clients: 1024,
            limits: Limits::REQUEST,
            proxy_protocol: false,
            tls: None,
            clock: Clock::system(),
            on_refused: None,
        }
    }
}

/// What a server counts.
#[derive(Debug, Default)]
pub struct ServerStats {
    pub accepted: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    pub requests: AtomicU64,
    /// Heads that were no requests.
    pub refused: AtomicU64,
    /// Clients that stalled in a head or while a response was written.
    pub timeouts: AtomicU64,
    /// Responses whose body failed after the head.
    pub aborted: AtomicU64,
    /// Handlers that panicked.
    pub panics: AtomicU64,
}

/// A connection as the server takes it.
pub(super) struct Connected {
    pub stream: Stream,
    pub remote_addr: Option<SocketAddr>,
    pub local_addr: Option<SocketAddr>,
    pub draining: watch::Receiver<bool>,
}

pub struct Server {
    app: SharedApp,
    options: ServeOptions,
    stats: Arc<ServerStats>,
    clients: Arc<Semaphore>,
    draining: watch::Sender<bool>,
    open: Mutex<Open>,
    changed: Notify,
}

/// The tasks of open connections.
#[derive(Default)]
struct Open {
    next: u64,
    tasks: HashMap<u64, Option<AbortHandle>>,
}

impl Open {
    fn enter(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        self.tasks.insert(id, None);
        id
    }
}

impl Server {
    /// Serves the listeners until stopped. Must be called within a tokio runtime.
    pub fn start(
        listeners: Vec<TcpListener>,
        app: SharedApp,
        options: ServeOptions,
    ) -> io::Result<ServerHandle> {
        let handle = Self::without_listeners(app, options);
        for listener in listeners {
            handle.listen(listener)?;
        }
        Ok(handle)
    }

    /// A server to whom connections are given by [`ServerHandle::connect`] alone.
    pub fn without_listeners(app: SharedApp, options: ServeOptions) -> ServerHandle {
        let server = Arc::new(Self {
            app,
            stats: Arc::default(),
            clients: Arc::new(Semaphore::new(options.max_clients.min(Semaphore::MAX_PERMITS))),
            draining: watch::Sender::new(false),
            open: Mutex::default(),
            changed: Notify::new(),
            options,
        });
        ServerHandle { server, addrs: Mutex::default() }
    }

    async fn accept(self: Arc<Self>, listener: tokio::net::TcpListener) {
        let mut draining = self.draining.subscribe();
        loop {
            let next = async {
                let permit = self.clients.clone().acquire_owned().await.ok();
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                _ = draining.wait_for(|draining| *draining) => return,
                next = next => next,
            };
            match accepted.and_then(|(tcp, addr)| Ok((Stream::tcp(tcp)?, addr))) {
                Ok((stream, addr)) => self.spawn(stream, Some(addr), permit),
                // Out of file descriptors, or a client gone before it was accepted: neither is worth more than a pause.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn spawn(
        self: &Arc<Self>,
        stream: Stream,
        remote_addr: Option<SocketAddr>,
        permit: Option<tokio::sync::OwnedSemaphorePermit>,
    ) {
        self.stats.accepted.fetch_add(1, Ordering::Relaxed);
        self.stats.open.fetch_add(1, Ordering::Relaxed);
        let connected = Connected {
            local_addr: stream.local_addr(),
            stream,
            remote_addr,
            draining: self.draining.subscribe(),
        };
        let id = self.open.lock().enter();
        let closing = Closing { server: self.clone(), id };
        let task = tokio::spawn(async move {
            let _permit = permit;
            let server = &closing.server;
            conn::serve(connected, &*server.app, &server.options, &server.stats).await;
        });
        // The task may have ended already.
        if let Some(entry) = self.open.lock().tasks.get_mut(&id) {
            *entry = Some(task.abort_handle());
        }
    }
}

/// Takes a connection off the books, however it ends.
struct Closing {
    server: Arc<Server>,
    id: u64,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.server.stats.open.fetch_sub(1, Ordering::Relaxed);
        let mut open = self.server.open.lock();
        open.tasks.remove(&self.id);
        if open.tasks.is_empty() {
            self.server.changed.notify_waiters();
        }
    }
}

/// A running server. Dropping the handle leaves it running.
pub struct ServerHandle {
    server: Arc<Server>,
    addrs: Mutex<Vec<SocketAddr>>,
}

impl ServerHandle {
    /// Takes another listener.
    pub fn listen(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        self.addrs.lock().push(listener.local_addr()?);
        tokio::spawn(self.server.clone().accept(listener));
        Ok(())
    }

    /// Serves a stream that was connected elsewhere; `max_clients` does not count it.
    pub fn connect(&self, stream: Stream) {
        let remote_addr = stream.peer_addr();
        self.server.spawn(stream, remote_addr, None);
    }

    /// The addresses of the listeners, in their order.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.addrs.lock().clone()
    }

    pub fn stats(&self) -> Arc<ServerStats> {
        self.server.stats.clone()
    }

    /// Stops: whether all requests had finished within the time; those that had not are aborted.
    pub async fn stop(&self, graceful: Duration) -> bool {
        self.server.draining.send_replace(true);
        let finished = async {
            loop {
                let changed = self.server.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.server.open.lock().tasks.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        let finished = tokio::time::timeout(graceful, finished).await.is_ok();
        let left: Vec<_> = self.server.open.lock().tasks.values().flatten().cloned().collect();
        left.iter().for_each(AbortHandle::abort);
        finished
    }
}
