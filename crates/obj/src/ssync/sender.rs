//! The sending end of SSYNC, in the object replicator and the object reconstructor.
//!
//! It offers every object of the given suffixes, reads which of them the receiver wants, and sends those with exactly the
//! metadata that they have here. An object whose data turns out shorter or longer than its Content-Length ends the session:
//! the receiver must not finish it.
//!
//! The disk is read ahead of the wire within bounds: a batch of objects (`update.rs`), or one chunk of a large one. Small objects and
//! heads are written together.
//!
//! A connection on which a session has come to its proper end serves the next one.
//!
//! Of an EC policy it offers the fragments of one index. Those of the receiver's own index, which are not here, come from
//! a [`Rebuilder`]: small ones as other objects are read ahead, large ones as they are sent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::config::{ConfigError, Section};
use common::hash::{ObjHash, Suffix};
use futures_util::{Stream, StreamExt};
use indexmap::IndexMap;
use ring::Device;
use service::context::Context;
use service::http::client::{BodyFraming, ClientConn, ClientError, Timeouts};
use service::http::head::ResponseHead;
use service::http::{Body, BoxFuture, Headers, Method, Status};
use service::logs::Logger;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::foreseen::{Foreseen, MOST_FORESEEN};
use super::input::timeout_message;
use super::protocol::{
    MISSING_CHECK_END, MISSING_CHECK_START, Offer, UPDATES_END, UPDATES_START, Wanted, printable,
    python_repr, python_repr_bytes,
};
pub use super::update::LocalArchive;
use super::update::{Batch, Batches, Data, MAX_REBUILT_AHEAD, Put, READ_SIZE, Unchecked, Update, put_head};
use crate::diskfile::{DiskFileError, DiskFileManager, Metadata, Reader, SeenObjects, TimestampSet, Want};

/// Archives that are rebuilt before they are sent.
const REBUILT_AHEAD: usize = 4;
/// Suffixes that are listed in one job.
const SUFFIXES_LISTED: usize = 64;
/// Offers that are written as one chunk.
const OFFERS_CHUNK: usize = 32 * 1024;
/// Subrequests that are written as one chunk.
const UPDATES_CHUNK: usize = 128 * 1024;
/// The part of a refusal that is logged.
const MAX_REASON: usize = 1024;

/// For what a receiver that has hung up said before.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The options of a daemon that sends.
#[derive(Debug, Clone, Copy)]
pub struct SenderConf {
    pub conn_timeout: Duration,
    pub node_timeout: Duration,
    pub http_timeout: Duration,
    pub network_chunk_size: usize,
}

impl SenderConf {
    pub fn from_section(section: &Section) -> Result<Self, ConfigError> {
        Ok(Self {
            conn_timeout: section.secs("conn_timeout", 0.5)?,
            node_timeout: section.secs("node_timeout", 10.0)?,
            http_timeout: section.secs("http_timeout", 60.0)?,
            network_chunk_size: section.positive_int("network_chunk_size", 65536)?,
        })
    }
}

/// One partition's suffixes on their way to one node.
pub struct Sender<'a> {
    pub ctx: &'a Context,
    pub logger: &'a Logger,
    pub conf: SenderConf,
    pub manager: &'a Arc<DiskFileManager>,
    pub device: &'a str,
    pub partition: u32,
    pub node: &'a Device,
    pub suffixes: &'a [Suffix],
    /// What has just been seen of them, so that it need not be listed again; not of an EC policy.
    pub seen: Option<&'a SeenObjects>,
    /// Nothing is sent: only those of these objects that the receiver has are asked about.
    pub remote_check_objs: Option<&'a HashSet<ObjHash>>,
    /// Where objects wait for their check; the caller has the last of them checked. `None`: each is checked by itself.
    pub unchecked: Option<&'a Arc<Unchecked>>,
    /// Of an EC policy.
    pub fragments: Option<Fragments<'a>>,
}

/// Which fragments of a partition a session is about.
pub struct Fragments<'a> {
    /// Of those here; `None`: only tombstones are left.
    pub frag_index: Option<u32>,
    /// Of those that belong to the receiver.
    pub backend_index: u32,
    /// Also such as have no commit; the receiver gets them without one.
    pub include_non_durable: bool,
    /// Objects of the session; 0: no limit.
    pub max_objects: usize,
    /// Makes the receiver's fragments of others'; without it, those here are sent as they are.
    pub rebuilder: Option<&'a dyn Rebuilder>,
    /// Suffixes in which the receiver has none of its fragments.
    pub lacked: &'a [Suffix],
}

/// Makes a fragment that is nowhere of those elsewhere.
pub trait Rebuilder: Send + Sync {
    /// Begins to rebuild the receiver's fragment of an object that is open here. An error before any of it is sent leaves
    /// the object out.
    fn rebuild(&self, archive: LocalArchive) -> BoxFuture<'_, Result<Rebuilt, DiskFileError>>;
}

/// A fragment archive in the making. A body that ends early, well or not, must not be taken for the whole archive.
pub struct Rebuilt {
    pub metadata: Metadata,
    pub content_length: u64,
    pub body: Body,
}

/// What a session has come to.
pub struct Sent {
    /// `None` if it failed, which has been logged.
    pub in_sync: Option<InSync>,
    /// There was more to offer than `max_objects`.
    pub limited: bool,
}

/// Objects that the receiver has in the state of this side, so that they may be deleted from a handoff.
pub type InSync = HashMap<ObjHash, TimestampSet>;

/// What is to be offered.
struct Listed {
    objects: Vec<(ObjHash, TimestampSet)>,
    /// Suffixes that are still to be listed.
    rest: Vec<Suffix>,
}

/// Why a session has failed.
#[derive(Debug)]
enum SendError {
    /// Known to happen; says what.
    Expected(String),
    Unexpected(String),
}

impl From<DiskFileError> for SendError {
    fn from(err: DiskFileError) -> Self {
        Self::Unexpected(err.to_string())
    }
}

/// `ip:port/device`, as Swift's log lines name a node by its replication address.
pub fn node_to_string(node: &Device) -> String {
    let (ip, port, device) = (&node.replication_ip, node.replication_port, &node.device);
    if ip.contains(':') { format!("[{ip}]:{port}/{device}") } else { format!("{ip}:{port}/{device}") }
}

impl Sender<'_> {
    /// Runs the session; `None` if it failed, which has been logged.
    pub async fn run(&self) -> Option<InSync> {
        self.run_limited().await.in_sync
    }

    /// The same, which also tells whether the limit of objects was reached.
    pub async fn run_limited(&self) -> Sent {
        let mut limited = false;
        let in_sync = self.run_session(&mut limited).await;
        Sent { in_sync, limited }
    }

    async fn run_session(&self, limited: &mut bool) -> Option<InSync> {
        if self.suffixes.is_empty() {
            return Some(InSync::new());
        }
        let (node, partition) = (node_to_string(self.node), self.partition);
        match self.converse(limited).await {
            Ok(in_sync) => Some(in_sync),
            Err(SendError::Expected(message)) => {
                self.logger.error(format_args!("{node}/{partition} {message}"));
                None
            }
            Err(SendError::Unexpected(message)) => {
                self.logger.error(format_args!("{node}/{partition} EXCEPTION in ssync.Sender: {message}"));
                None
            }
        }
    }

    async fn converse(&self, limited: &mut bool) -> Result<InSync, SendError> {
        let listed = self.list_first().await?;
        let lacked = self.lacked(&listed.objects);
        let mut foreseen = Foreseen::new(lacked.clone(), self.foresee(lacked));
        let mut link = foreseen.beside(self.connect()).await?;
        let result = self.exchange(&mut link, listed, foreseen, limited).await;
        // Best effort: the receiver sees the end of the connection too.
        let finished = link.conn.finish_body().await;
        if result.is_ok() && finished.is_ok() && link.is_at_end().await {
            self.ctx.pool.checkin(link.conn);
        }
        result
    }

    async fn exchange(
        &self,
        link: &mut Link,
        listed: Listed,
        mut foreseen: Foreseen<'_>,
        limited: &mut bool,
    ) -> Result<InSync, SendError> {
        let mut available = foreseen.beside(self.offer(link, listed, limited)).await?;
        let mut wanted = foreseen.beside(link.read_wanted()).await?;
        let sent = wanted.len();
        let offered = available.len();
        if self.remote_check_objs.is_none() {
            let foreseen = foreseen.take(&mut wanted).await;
            for skipped in self.updates(link, foreseen, wanted).await? {
                available.remove(&skipped);
            }
        } else {
            available.retain(|hash, _| !wanted.contains_key(hash));
        }
        self.logger.debug(format_args!(
            "ssync completed ok: dev: {}, part: {}, policy: {}, num suffixes: {}, available: {offered}, sent: {sent}, \
             deletable: {}",
            self.device,
            self.partition,
            self.manager.policy().0,
            self.suffixes.len(),
            available.len(),
        ));
        Ok(available)
    }

    async fn connect(&self) -> Result<Link, SendError> {
        let addr = (self.node.replication_ip.as_str(), self.node.replication_port);
        let conf = self.conf;
        let timeouts = Timeouts { conn: conf.conn_timeout, node: conf.node_timeout };
        let mut headers = Headers::new();
        headers.insert("X-Backend-Storage-Policy-Index", self.manager.policy().0.to_string());
        if let Some(fragments) = &self.fragments {
            headers.insert("X-Backend-Ssync-Frag-Index", fragments.backend_index);
            // For servers of Swift 2.4 to 2.20.
            headers.insert("X-Backend-Ssync-Node-Index", fragments.backend_index);
        }
        let target = format!("/{}/{}", self.node.device, self.partition);
        let pool = &self.ctx.pool;
        let mut begun = Err(Unbegun::Closed);
        if let Some(kept) = pool.take_kept(addr, timeouts) {
            begun = self.begin(Ok(kept), &target, &headers).await;
        }
        // Also for one that the server closed just now: it has not seen the request.
        if matches!(begun, Err(Unbegun::Closed)) {
            begun = self.begin(pool.connect(addr, timeouts).await, &target, &headers).await;
        }
        let (mut link, head) = begun.map_err(|unbegun| match unbegun {
            Unbegun::Closed => SendError::Expected("Early disconnect".to_string()),
            Unbegun::Failed(err) => err,
        })?;
        if head.status != Status::OK {
            let mut reason = Vec::new();
            while let Some(Ok(piece)) = link.conn.next_body().await {
                reason.extend_from_slice(&piece);
                if reason.len() > MAX_REASON {
                    break;
                }
            }
            let more = if reason.len() > MAX_REASON { "..." } else { "" };
            reason.truncate(MAX_REASON);
            reason.extend_from_slice(more.as_bytes());
            let reason = python_repr_bytes(&reason);
            return Err(SendError::Expected(format!(
                "Expected status 200; got {} ({reason})",
                head.status.0
            )));
        }
        link.want = self.want(head.headers.get_bool("X-Backend-Accept-No-Commit"));
        Ok(link)
    }

    /// Sends the request's head, and waits for the response's.
    async fn begin(
        &self,
        conn: Result<ClientConn, ClientError>,
        target: &str,
        headers: &Headers,
    ) -> Result<(Link, ResponseHead), Unbegun> {
        let conf = self.conf;
        let conn = conn.map_err(|err| match err {
            ClientError::ConnTimeout => {
                SendError::Expected(timeout_message(conf.conn_timeout, "connect send"))
            }
            err => SendError::Unexpected(err.to_string()),
        });
        let mut link =
            Link { conn: conn?, conf, buffer: BytesMut::new(), ended: false, want: Want::default() };
        let unbegun = |link: &Link, err, context| match err {
            ClientError::Closed => Unbegun::Closed,
            err => Unbegun::Failed(link.error(err, conf.node_timeout, context)),
        };
        let sent = link.conn.send_request_head(&Method::Ssync, target, headers, BodyFraming::Chunked).await;
        sent.map_err(|err| unbegun(&link, err, "connect send"))?;
        let head = link.conn.read_response_head(false).await;
        let head = head.map_err(|err| unbegun(&link, err, "connect receive"))?;
        Ok((link, head))
    }

    /// The fragments of the session, as far as the receiver takes such without a commit.
    fn want(&self, accepts_no_commit: bool) -> Want<'static> {
        let Some(fragments) = &self.fragments else { return Want::default() };
        if fragments.include_non_durable && !accepts_no_commit {
            self.logger.warning(format_args!(
                "ssync receiver {}:{} does not accept non-durable fragments",
                self.node.replication_ip, self.node.replication_port
            ));
        }
        let non_durable = fragments.include_non_durable && accepts_no_commit;
        Want { frag_index: fragments.frag_index, frag_prefs: non_durable.then_some(&[]) }
    }

    /// What is known of the objects before there is a connection.
    async fn list_first(&self) -> Result<Listed, DiskFileError> {
        if let Some(seen) = self.seen {
            let (objects, rest) = seen.of(self.suffixes);
            return Ok(Listed { objects, rest });
        }
        // Unless it is for the receiver to say what there is to offer.
        let is_sync = self.fragments.as_ref().is_some_and(|fragments| fragments.rebuilder.is_some());
        let (first, rest) =
            self.suffixes.split_at(if is_sync { self.suffixes.len().min(SUFFIXES_LISTED) } else { 0 });
        let objects = if first.is_empty() { Vec::new() } else { self.list(first, self.want(true)).await? };
        Ok(Listed { objects, rest: rest.to_vec() })
    }

    /// Objects of which the receiver lacks its fragment, as many as are worth preparing.
    fn lacked(&self, objects: &[(ObjHash, TimestampSet)]) -> Vec<ObjHash> {
        let Some(fragments) = &self.fragments else { return Vec::new() };
        let is_lacked = |hash: &ObjHash| fragments.lacked.contains(&hash.suffix());
        objects.iter().map(|(hash, _)| *hash).filter(is_lacked).take(MOST_FORESEEN).collect()
    }

    /// Rebuilds those that are small, and opens the others.
    async fn foresee(&self, objects: Vec<ObjHash>) -> Batch {
        let all = Wanted { data: true, meta: true };
        let batches = self.batches(self.want(true), objects.into_iter().map(|hash| (hash, all)).collect());
        // What has failed is tried again when it is wanted, and the error is told then.
        let Ok(Ok((batch, _))) = self.prepare(batches).await else { return Batch::new() };
        self.rebuild_small(batch).collect().await
    }

    /// Offers what is here, and returns it.
    async fn offer(&self, link: &mut Link, listed: Listed, limited: &mut bool) -> Result<InSync, SendError> {
        let (mut available, mut last, mut sent, mut bytes_sent) = (InSync::new(), None, 0, 0);
        let max_objects = self.fragments.as_ref().map_or(0, |fragments| fragments.max_objects);
        let mut chunk = format!("{MISSING_CHECK_START}\r\n");
        let Listed { mut objects, rest } = listed;
        let mut rest = rest.chunks(SUFFIXES_LISTED);
        'suffixes: loop {
            for (hash, timestamps) in objects {
                if self.remote_check_objs.is_some_and(|objs| !objs.contains(&hash)) {
                    continue;
                }
                if max_objects > 0 && available.len() >= max_objects {
                    *limited = true;
                    self.logger.info(format_args!(
                        "ssync missing_check truncated after {max_objects} objects: device: {}, part: {}, policy: {}, \
                         last object hash: {}",
                        self.device,
                        self.partition,
                        self.manager.policy().0,
                        last.map_or(String::new(), |hash: ObjHash| hash.to_string())
                    ));
                    break 'suffixes;
                }
                chunk.push_str(&offer_of(hash, &timestamps).encode());
                chunk.push_str("\r\n");
                available.insert(hash, timestamps);
                last = Some(hash);
                if chunk.len() >= OFFERS_CHUNK {
                    let context = format!("missing_check send line: {sent} lines ({bytes_sent} bytes) sent");
                    link.write(&chunk, &context).await?;
                    sent = available.len();
                    bytes_sent += chunk.len();
                    chunk.clear();
                }
            }
            let Some(suffixes) = rest.next() else { break };
            objects = self.list(suffixes, link.want).await?;
        }
        chunk.push_str(MISSING_CHECK_END);
        chunk.push_str("\r\n");
        link.write(&chunk, "missing_check end").await?;
        Ok(available)
    }

    async fn list(
        &self,
        suffixes: &[Suffix],
        want: Want<'static>,
    ) -> Result<Vec<(ObjHash, TimestampSet)>, DiskFileError> {
        let (manager, device, partition) = (self.manager.clone(), self.device.to_string(), self.partition);
        let suffixes = suffixes.to_vec();
        let list = move || Ok(manager.yield_hashes(&device, partition, Some(&suffixes), want)?.collect());
        self.ctx.disk_pools.run(self.device, list).await
    }

    /// Sends what is wanted; the objects that could not be opened, and so were not sent.
    async fn updates(
        &self,
        link: &mut Link,
        foreseen: Batch,
        wanted: IndexMap<ObjHash, Wanted>,
    ) -> Result<Vec<ObjHash>, SendError> {
        let mut skipped = Vec::new();
        let mut out = format!("{UPDATES_START}\r\n").into_bytes();
        let mut ahead = None;
        let mut batch = foreseen;
        if !wanted.is_empty() {
            ahead = Some(self.prepare(self.batches(link.want, wanted.into_iter().collect())));
        }
        loop {
            let mut rebuilt = std::pin::pin!(self.rebuild_small(batch));
            while let Some((hash, mut update)) = rebuilt.next().await {
                if let Some(archive) = update.rebuild_from.take() {
                    update = self.rebuild(*archive, update).await;
                }
                if update.skipped {
                    skipped.push(hash);
                }
                if let Some(put) = update.put {
                    self.send_put(link, put, &mut out).await?;
                }
                if let Some((method, head)) = update.then {
                    out.extend_from_slice(&head);
                    link.write_beyond(UPDATES_CHUNK, &mut out, &format!("send_{method}")).await?;
                }
            }
            let Some(prepared) = ahead.take() else { break };
            link.write_beyond(0, &mut out, "send_put").await?;
            let batches;
            (batch, batches) = prepared.await.map_err(|err| SendError::Unexpected(err.to_string()))??;
            if !batches.wanted.is_empty() {
                ahead = Some(self.prepare(batches));
            }
        }
        out.extend_from_slice(format!("{UPDATES_END}\r\n").as_bytes());
        link.write(out, "updates end").await?;
        link.read_updates_reply().await?;
        Ok(skipped)
    }

    fn batches(&self, want: Want<'static>, wanted: VecDeque<(ObjHash, Wanted)>) -> Batches {
        Batches {
            manager: self.manager.clone(),
            device: self.device.to_string(),
            partition: self.partition,
            want,
            rebuilds: self.fragments.as_ref().is_some_and(|fragments| fragments.rebuilder.is_some()),
            unchecked: self.unchecked.cloned(),
            wanted,
        }
    }

    /// Starts to prepare a batch; a task of its own, so that the disk works while the last one is on its way.
    fn prepare(&self, mut batches: Batches) -> JoinHandle<Result<(Batch, Batches), DiskFileError>> {
        let next = move || batches.next().map(|batch| (batch, batches));
        tokio::spawn(self.ctx.disk_pools.run(self.device, next))
    }

    /// Those of a batch, some ahead; what is small is whole.
    fn rebuild_small(&self, batch: Batch) -> impl Stream<Item = (ObjHash, Update)> + Send {
        futures_util::stream::iter(batch)
            .map(move |(hash, update)| async move { (hash, self.rebuild_if_small(update).await) })
            .buffered(REBUILT_AHEAD)
    }

    async fn rebuild_if_small(&self, mut update: Update) -> Update {
        let is_small = |archive: &mut Box<LocalArchive>| archive.reader.content_length() <= MAX_REBUILT_AHEAD;
        if let Some(archive) = update.rebuild_from.take_if(is_small) {
            update = self.rebuild(*archive, update).await;
            update.read_rebuilt().await;
        }
        update
    }

    /// Begins to rebuild what is to be sent; if that cannot be, nothing is sent of the object.
    async fn rebuild(&self, archive: LocalArchive, update: Update) -> Update {
        let Some(rebuilder) = self.fragments.as_ref().and_then(|fragments| fragments.rebuilder) else {
            return update;
        };
        let opened = archive.reader.opened();
        let durable = opened.durable_timestamp() == Some(opened.data_timestamp());
        let name = opened.name().to_string();
        match rebuilder.rebuild(archive).await {
            Ok(Rebuilt { metadata, content_length, body }) => {
                let head = put_head(&name, &metadata, content_length, durable);
                Update { put: Some(Put { head, data: Data::Rebuilt(body), content_length }), ..update }
            }
            // Which says what it is in the log.
            Err(_) => Update::skipped(),
        }
    }

    async fn send_put(&self, link: &mut Link, put: Put, out: &mut Vec<u8>) -> Result<(), SendError> {
        out.extend_from_slice(&put.head);
        match put.data {
            // The receiver reads lines and counted bytes, whatever the chunks.
            Data::Small(data) if data.len() < UPDATES_CHUNK => {
                out.extend_from_slice(&data);
                link.write_beyond(UPDATES_CHUNK, out, "send_put").await
            }
            Data::Small(data) => {
                link.write_pieces(&[out, &data], "send_put").await?;
                out.clear();
                Ok(())
            }
            Data::Held(held) => {
                link.write_beyond(0, out, "send_put").await?;
                for piece in &held.pieces {
                    link.write(piece, "send_put chunk").await?;
                }
                Ok(())
            }
            Data::Reader(reader) => {
                link.write_beyond(0, out, "send_put").await?;
                self.send_read(link, *reader, put.content_length).await
            }
            Data::Rebuilt(body) => {
                link.write_beyond(0, out, "send_put").await?;
                send_rebuilt(link, body, put.content_length).await
            }
        }
    }

    async fn send_read(&self, link: &mut Link, reader: Reader, content_length: u64) -> Result<(), SendError> {
        let mut offset = 0;
        let mut next = self.read(reader, offset);
        loop {
            let (reader, data) = next.await.map_err(|err| SendError::Unexpected(err.to_string()))??;
            if data.is_empty() {
                // Ends the reading, which may put a corrupt object into quarantine. The receiver finds out by itself.
                self.ctx.disk_pools.run(self.device, move || reader.close()).await;
                break;
            }
            offset += data.len() as u64;
            next = self.read(reader, offset);
            link.write(&data, "send_put chunk").await?;
        }
        if offset == content_length { Ok(()) } else { Err(wrong_length()) }
    }

    /// Starts to read; a task of its own, so that the disk works while the last chunk is on its way.
    fn read(&self, mut reader: Reader, offset: u64) -> JoinHandle<Result<(Reader, Bytes), DiskFileError>> {
        let read = move || reader.read(offset, READ_SIZE).map(|data| (reader, data));
        tokio::spawn(self.ctx.disk_pools.run(self.device, read))
    }
}

/// Sends what is rebuilt meanwhile. Once its head is out, nothing but the end of the session keeps the receiver from
/// taking a short archive for the whole one.
async fn send_rebuilt(link: &mut Link, mut body: Body, content_length: u64) -> Result<(), SendError> {
    let mut sent = 0;
    while let Some(Ok(piece)) = body.next().await {
        sent += piece.len() as u64;
        if sent > content_length {
            break;
        }
        link.write(&piece, "send_put chunk").await?;
    }
    if sent == content_length { Ok(()) } else { Err(wrong_length()) }
}

fn wrong_length() -> SendError {
    SendError::Expected("Sent data length does not match content-length".to_string())
}

fn offer_of(hash: ObjHash, timestamps: &TimestampSet) -> Offer {
    let data = timestamps.data;
    Offer {
        hash,
        ts_data: data,
        ts_meta: timestamps.meta.unwrap_or(data),
        ts_ctype: timestamps.ctype.unwrap_or(data),
        durable: timestamps.durable,
    }
}

/// Why no session has begun.
enum Unbegun {
    /// The connection was closed before anything was said.
    Closed,
    Failed(SendError),
}

impl From<SendError> for Unbegun {
    fn from(err: SendError) -> Self {
        Unbegun::Failed(err)
    }
}

/// The connection to the receiver.
struct Link {
    conn: ClientConn,
    conf: SenderConf,
    /// What has come of the response and is not yet read.
    buffer: BytesMut,
    ended: bool,
    /// The objects of the session.
    want: Want<'static>,
}

impl Link {
    async fn write(&mut self, message: impl AsRef<[u8]>, context: &str) -> Result<(), SendError> {
        self.write_pieces(&[message.as_ref()], context).await
    }

    /// Writes several pieces as one.
    async fn write_pieces(&mut self, pieces: &[&[u8]], context: &str) -> Result<(), SendError> {
        self.conn.set_timeout(self.conf.node_timeout);
        match self.conn.write_body_pieces(pieces).await {
            Ok(()) => Ok(()),
            Err(ClientError::Closed) => Err(self.why_closed().await),
            Err(err) => Err(self.error(err, self.conf.node_timeout, context)),
        }
    }

    /// Writes what has been gathered, if it is more than `limit`.
    async fn write_beyond(
        &mut self,
        limit: usize,
        out: &mut Vec<u8>,
        context: &str,
    ) -> Result<(), SendError> {
        if out.len() > limit {
            self.write(&out, context).await?;
            out.clear();
        }
        Ok(())
    }

    /// The receiver hangs up when it has had enough; what it said before that may be why.
    async fn why_closed(&mut self) -> SendError {
        let last_words = async {
            loop {
                let line = self.read_line("last words").await?;
                if line.starts_with(b":ERROR:") {
                    return Err::<(), _>(unexpected(line.trim_ascii()));
                }
            }
        };
        match tokio::time::timeout(LAST_WORDS, last_words).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => SendError::Expected("Early disconnect".to_string()),
        }
    }

    fn error(&self, err: ClientError, timeout: Duration, context: &str) -> SendError {
        match err {
            ClientError::Timeout | ClientError::ConnTimeout => {
                SendError::Expected(timeout_message(timeout, context))
            }
            ClientError::Closed => SendError::Expected("Early disconnect".to_string()),
            err => SendError::Unexpected(format!("{context}: {err}")),
        }
    }

    /// The next line without its line end; all of it within the time, however it trickles.
    async fn read_line(&mut self, context: &str) -> Result<Bytes, SendError> {
        let timeout = self.conf.http_timeout;
        self.conn.set_timeout(timeout);
        let mut deadline = None;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer) {
                return Ok(self.buffer.split_to(at + 1).freeze());
            }
            if self.buffer.len() >= self.conf.network_chunk_size {
                return Err(unexpected(&self.buffer));
            }
            if self.ended {
                return match self.buffer.is_empty() {
                    true => Err(SendError::Expected("Early disconnect".to_string())),
                    false => Ok(self.buffer.split().freeze()),
                };
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + timeout);
            let piece = tokio::time::timeout_at(deadline, self.conn.next_body()).await;
            match piece.unwrap_or(Some(Err(ClientError::Timeout))) {
                Some(Ok(piece)) => self.buffer.extend_from_slice(&piece),
                None => self.ended = true,
                // A part of a line may say why.
                Some(Err(ClientError::Closed)) if self.buffer.starts_with(b":ERROR:") => self.ended = true,
                Some(Err(err)) => return Err(self.error(err, timeout, context)),
            }
        }
    }

    /// Skips empty lines up to `want`.
    async fn expect_line(&mut self, context: &str, want: &str) -> Result<(), SendError> {
        loop {
            let line = self.read_line(context).await?;
            match line.trim_ascii() {
                b"" => {}
                line if line == want.as_bytes() => return Ok(()),
                line => return Err(unexpected(line)),
            }
        }
    }

    async fn read_wanted(&mut self) -> Result<IndexMap<ObjHash, Wanted>, SendError> {
        self.expect_line("missing_check start wait", MISSING_CHECK_START).await?;
        let mut wanted = IndexMap::new();
        loop {
            let line = self.read_line("missing_check line wait").await?;
            let line = line.trim_ascii();
            if line == MISSING_CHECK_END.as_bytes() {
                return Ok(wanted);
            }
            match Wanted::decode(line) {
                Ok(None) => {}
                Ok(Some((hash, parts))) => {
                    wanted.insert(hash, parts);
                }
                Err(err) => return Err(SendError::Expected(err.0)),
            }
        }
    }

    /// Whether the response ends here, so that the connection can be used again.
    async fn is_at_end(&mut self) -> bool {
        self.buffer.is_empty()
            && (self.ended
                || tokio::time::timeout(LAST_WORDS, self.conn.next_body())
                    .await
                    .is_ok_and(|end| end.is_none()))
    }

    async fn read_updates_reply(&mut self) -> Result<(), SendError> {
        self.expect_line("updates start wait", UPDATES_START).await?;
        self.expect_line("updates line wait", UPDATES_END).await
    }
}

fn unexpected(line: &[u8]) -> SendError {
    let line = match std::str::from_utf8(&line[..line.len().min(MAX_REASON)]) {
        Ok(text) if text.is_ascii() => python_repr(text),
        Ok(_) | Err(_) => printable(line),
    };
    SendError::Expected(format!("Unexpected response: {line}"))
}
