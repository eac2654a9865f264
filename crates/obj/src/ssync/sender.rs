//! The sending end of SSYNC, in the object replicator and the object reconstructor.
//!
//! It offers every object of the given suffixes, reads which of them the receiver wants, and sends those with exactly the
//! metadata that they have here. An object whose data turns out shorter or longer than its Content-Length ends the session:
//! the receiver must not finish it.
//!
//! The disk is read ahead of the wire within bounds: a few objects, or one chunk of a large one.
//!
//! Of an EC policy it offers the fragments of one index. Those of the receiver's own index, which are not here, come from
//! a [`Rebuilder`]: small ones as other objects are read ahead, large ones as they are sent.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::hash::{ObjHash, Suffix};
use common::timestamp::Timestamp;
use common::wsgi::from_stored;
use futures_util::StreamExt;
use indexmap::IndexMap;
use ring::Device;
use service::context::Context;
use service::http::client::{BodyFraming, ClientConn, ClientError, Timeouts};
use service::http::{Body, BoxFuture, Headers, Method, Status};
use service::logs::Logger;

use super::input::timeout_message;
use super::protocol::{
    MISSING_CHECK_END, MISSING_CHECK_START, Offer, UPDATES_END, UPDATES_START, Wanted, printable,
    python_repr, python_repr_bytes, subrequest_head, subrequest_path,
};
use crate::diskfile::{
    DiskFileError, DiskFileManager, Metadata, OpenDiskFile, Reader, ReaderOptions, SMALL_OBJECT,
    TimestampSet, Want,
};

/// Wanted objects that are read from the disk before they are sent.
const OBJECTS_AHEAD: usize = 4;
/// Suffixes that are listed in one job.
const SUFFIXES_LISTED: usize = 64;
/// Offers that are written as one chunk.
const OFFERS_CHUNK: usize = 32 * 1024;
/// A read of a large object.
const READ_SIZE: usize = 256 * 1024;
/// A rebuilt archive that is held in memory until it is sent.
const MAX_REBUILT_AHEAD: u64 = 512 * 1024;
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
    /// Nothing is sent: only those of these objects that the receiver has are asked about.
    pub remote_check_objs: Option<&'a HashSet<ObjHash>>,
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
}

/// Makes a fragment that is nowhere of those elsewhere.
pub trait Rebuilder: Send + Sync {
    /// Begins to rebuild the receiver's fragment of an object that is open here. An error before any of it is sent leaves
    /// the object out.
    fn rebuild(&self, opened: OpenDiskFile) -> BoxFuture<'_, Result<Rebuilt, DiskFileError>>;
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
        let mut link = self.connect().await?;
        let result = self.exchange(&mut link, limited).await;
        // Best effort: the receiver sees the end of the connection too.
        let _ = link.conn.finish_body().await;
        result
    }

    async fn exchange(&self, link: &mut Link, limited: &mut bool) -> Result<InSync, SendError> {
        let mut available = self.offer(link, limited).await?;
        let wanted = link.read_wanted().await?;
        let sent = wanted.len();
        let offered = available.len();
        if self.remote_check_objs.is_none() {
            for skipped in self.updates(link, wanted).await? {
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
        let conn = match ClientConn::connect(addr, timeouts).await {
            Err(ClientError::ConnTimeout) => {
                return Err(SendError::Expected(timeout_message(conf.conn_timeout, "connect send")));
            }
            conn => conn.map_err(|err| SendError::Unexpected(err.to_string()))?,
        };
        let mut link = Link { conn, conf, buffer: BytesMut::new(), ended: false, want: Want::default() };
        let mut headers = Headers::new();
        headers.insert("X-Backend-Storage-Policy-Index", self.manager.policy().0.to_string());
        if let Some(fragments) = &self.fragments {
            headers.insert("X-Backend-Ssync-Frag-Index", fragments.backend_index);
            // For servers of Swift 2.4 to 2.20.
            headers.insert("X-Backend-Ssync-Node-Index", fragments.backend_index);
        }
        let target = format!("/{}/{}", self.node.device, self.partition);
        let sent = link.conn.send_request_head(&Method::Ssync, &target, &headers, BodyFraming::Chunked).await;
        sent.map_err(|err| link.error(err, conf.node_timeout, "connect send"))?;
        let head = link.conn.read_response_head(false).await;
        let head = head.map_err(|err| link.error(err, conf.node_timeout, "connect receive"))?;
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

    /// Offers what is here, and returns it.
    async fn offer(&self, link: &mut Link, limited: &mut bool) -> Result<InSync, SendError> {
        let mut available = InSync::new();
        let max_objects = self.fragments.as_ref().map_or(0, |fragments| fragments.max_objects);
        let mut chunk = format!("{MISSING_CHECK_START}\r\n");
        'suffixes: for suffixes in self.suffixes.chunks(SUFFIXES_LISTED) {
            for (hash, timestamps) in self.list(suffixes, link.want).await? {
                if self.remote_check_objs.is_some_and(|objs| !objs.contains(&hash)) {
                    continue;
                }
                if max_objects > 0 && available.len() >= max_objects {
                    *limited = true;
                    self.logger.info(format_args!(
                        "ssync missing_check truncated after {max_objects} objects: device: {}, part: {}, policy: {}",
                        self.device,
                        self.partition,
                        self.manager.policy().0
                    ));
                    break 'suffixes;
                }
                chunk.push_str(&offer_of(hash, &timestamps).encode());
                chunk.push_str("\r\n");
                available.insert(hash, timestamps);
                if chunk.len() >= OFFERS_CHUNK {
                    link.write(&chunk, "missing_check send line").await?;
                    chunk.clear();
                }
            }
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
        wanted: IndexMap<ObjHash, Wanted>,
    ) -> Result<Vec<ObjHash>, SendError> {
        let mut skipped = Vec::new();
        link.write(format!("{UPDATES_START}\r\n"), "updates start").await?;
        let want = link.want;
        let prepared = futures_util::stream::iter(wanted).map(|(hash, wanted)| async move {
            let update = self.prepare(hash, wanted, want).await?;
            Ok::<_, SendError>((hash, update))
        });
        let mut prepared = std::pin::pin!(prepared.buffered(OBJECTS_AHEAD));
        while let Some(update) = prepared.next().await {
            let (hash, mut update) = update?;
            if let Some(opened) = update.rebuild_from.take() {
                update = self.rebuild(*opened, update).await;
            }
            if update.skipped {
                skipped.push(hash);
            }
            if let Some(put) = update.put {
                self.send_put(link, put).await?;
            }
            if let Some((method, head)) = update.then {
                link.write(head, &format!("send_{method}")).await?;
            }
        }
        link.write(format!("{UPDATES_END}\r\n"), "updates end").await?;
        link.read_updates_reply().await?;
        Ok(skipped)
    }

    async fn prepare(&self, hash: ObjHash, wanted: Wanted, want: Want<'static>) -> Result<Update, SendError> {
        let (manager, device, partition) = (self.manager.clone(), self.device.to_string(), self.partition);
        let rebuilds = self.fragments.as_ref().is_some_and(|fragments| fragments.rebuilder.is_some());
        let prepare = move || prepare(&manager, &device, partition, hash, (wanted, want), rebuilds);
        let mut update = self.ctx.disk_pools.run(self.device, prepare).await?;
        let is_small = |opened: &mut Box<OpenDiskFile>| opened.content_length() <= MAX_REBUILT_AHEAD;
        if let Some(opened) = update.rebuild_from.take_if(is_small) {
            update = self.rebuild(*opened, update).await;
            update.read_rebuilt().await;
        }
        Ok(update)
    }

    /// Begins to rebuild what is to be sent; if that cannot be, nothing is sent of the object.
    async fn rebuild(&self, opened: OpenDiskFile, update: Update) -> Update {
        let Some(rebuilder) = self.fragments.as_ref().and_then(|fragments| fragments.rebuilder) else {
            return update;
        };
        let durable = opened.durable_timestamp() == Some(opened.data_timestamp());
        let name = opened.name().to_string();
        match rebuilder.rebuild(opened).await {
            Ok(Rebuilt { metadata, content_length, body }) => {
                let head = put_head(&name, &metadata, content_length, durable);
                Update { put: Some(Put { head, data: Data::Rebuilt(body), content_length }), ..update }
            }
            // Which says what it is in the log.
            Err(_) => Update { skipped: true, ..Update::default() },
        }
    }

    async fn send_put(&self, link: &mut Link, put: Put) -> Result<(), SendError> {
        let reader = match put.data {
            Data::Whole(data) => {
                // One chunk: the receiver reads lines and counted bytes, whatever the chunks.
                let message = [&put.head[..], &data[..]].concat();
                return link.write(message, "send_put").await;
            }
            Data::Rebuilt(body) => return send_rebuilt(link, put.head, body, put.content_length).await,
            Data::Reader(reader) => reader,
        };
        link.write(put.head, "send_put").await?;
        let mut offset = 0;
        let mut next = self.read(*reader, offset);
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
        if offset != put.content_length {
            return Err(wrong_length());
        }
        Ok(())
    }

    /// Starts to read; a task of its own, so that the disk works while the last chunk is on its way.
    fn read(
        &self,
        mut reader: Reader,
        offset: u64,
    ) -> tokio::task::JoinHandle<Result<(Reader, Bytes), DiskFileError>> {
        let read = move || reader.read(offset, READ_SIZE).map(|data| (reader, data));
        tokio::spawn(self.ctx.disk_pools.run(self.device, read))
    }
}

/// Sends what is rebuilt meanwhile. Once its head is out, nothing but the end of the session keeps the receiver from
/// taking a short archive for the whole one.
async fn send_rebuilt(
    link: &mut Link,
    head: Vec<u8>,
    mut body: Body,
    content_length: u64,
) -> Result<(), SendError> {
    link.write(head, "send_put").await?;
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

/// What is sent for one wanted object.
#[derive(Default)]
struct Update {
    /// It could not be opened: corrupt, or gone since it was offered. Swift counts it as sent.
    skipped: bool,
    /// The object of which the receiver's fragment is to be made.
    rebuild_from: Option<Box<OpenDiskFile>>,
    put: Option<Put>,
    /// A POST or DELETE: its method in lower case, and its head.
    then: Option<(&'static str, Vec<u8>)>,
}

struct Put {
    head: Vec<u8>,
    data: Data,
    content_length: u64,
}

enum Data {
    Whole(Vec<u8>),
    Reader(Box<Reader>),
    Rebuilt(Body),
}

impl Update {
    /// Waits for all of what is rebuilt. What is not whole is not sent.
    async fn read_rebuilt(&mut self) {
        let Some(Put { data, content_length, .. }) = &mut self.put else { return };
        let Data::Rebuilt(body) = data else { return };
        match body.collect(*content_length as usize).await {
            Ok(whole) if whole.len() as u64 == *content_length => *data = Data::Whole(whole.into()),
            _ => *self = Update { skipped: true, ..Update::default() },
        }
    }
}

/// Opens an object and reads it if it is small. An object that cannot be opened is left out: nothing has been sent of it.
fn prepare(
    manager: &Arc<DiskFileManager>,
    device: &str,
    partition: u32,
    hash: ObjHash,
    (wanted, want): (Wanted, Want<'static>),
    rebuilds: bool,
) -> Result<Update, SendError> {
    let mut update = Update::default();
    let diskfile = match manager.diskfile_from_hash(device, partition, hash) {
        Ok(diskfile) => {
            let prefs = want.frag_prefs.map(Arc::from);
            diskfile.open_expired(true).frag_index(want.frag_index).frag_prefs(prefs)
        }
        Err(DiskFileError::NotExist) => return Ok(Update { skipped: true, ..update }),
        Err(err) => return Err(err.into()),
    };
    let opened = match diskfile.open(None) {
        Ok(opened) => opened,
        Err(DiskFileError::Deleted { timestamp, .. }) => {
            if wanted.data {
                update.then = diskfile.name().map(|name| ("delete", delete_head(name, timestamp)));
            }
            return Ok(update);
        }
        Err(err) if err.is_not_exist() || matches!(err, DiskFileError::Collision) => {
            return Ok(Update { skipped: true, ..update });
        }
        Err(err) => return Err(err.into()),
    };
    if wanted.meta && opened.data_timestamp() != opened.timestamp() {
        update.then = post_head(&opened).map(|head| ("post", head));
    }
    match wanted.data {
        true if rebuilds => update.rebuild_from = Some(Box::new(opened)),
        true => match put(opened)? {
            Some(put) => update.put = Some(put),
            None => return Ok(Update { skipped: true, ..Update::default() }),
        },
        false => {}
    }
    Ok(update)
}

/// `None` if it was corrupt, and is in quarantine now.
fn put(opened: OpenDiskFile) -> Result<Option<Put>, SendError> {
    let content_length = opened.content_length();
    let durable = opened.durable_timestamp() == Some(opened.data_timestamp());
    let head = put_head(opened.name(), opened.datafile_metadata(), content_length, durable);
    if content_length > SMALL_OBJECT {
        let reader = Box::new(opened.reader(ReaderOptions::default()));
        return Ok(Some(Put { head, data: Data::Reader(reader), content_length }));
    }
    let read = opened.read_small()?;
    let whole = || Put { head, data: Data::Whole(read.data), content_length };
    Ok(read.quarantined.is_none().then(whole))
}

/// The headers of a PUT are the data file's metadata as it stands; what a POST has changed since is sent by a POST.
fn put_head(name: &str, datafile: &Metadata, content_length: u64, durable: bool) -> Vec<u8> {
    let content_length = content_length.to_string();
    let no_commit = (!durable).then_some((&b"X-Backend-No-Commit"[..], &b"True"[..]));
    let metadata = wire(datafile);
    let metadata = metadata.iter().filter(|(name, _)| **name != *b"name" && **name != *b"Content-Length");
    let headers = [(&b"Content-Length"[..], content_length.as_bytes())].into_iter().chain(no_commit);
    let headers = headers.chain(metadata.map(|(name, value)| (&**name, &**value)));
    subrequest_head("PUT", &path_of(name), headers)
}

fn post_head(opened: &OpenDiskFile) -> Option<Vec<u8>> {
    let metadata = wire(opened.metafile_metadata()?);
    let headers = metadata.iter().map(|(name, value)| (&**name, &**value));
    Some(subrequest_head("POST", &path_of(opened.name()), headers))
}

type Text<'a> = Cow<'a, [u8]>;

/// Names and values as they were in the request that stored them.
fn wire(metadata: &Metadata) -> Vec<(Text<'_>, Text<'_>)> {
    metadata.iter().map(|(name, value)| (from_stored(name), from_stored(value))).collect()
}

fn delete_head(name: &str, timestamp: Timestamp) -> Vec<u8> {
    let timestamp = timestamp.internal();
    subrequest_head("DELETE", &path_of(name), [(&b"X-Timestamp"[..], timestamp.as_bytes())])
}

/// `name` is `/account/container/object`.
fn path_of(name: &str) -> String {
    let mut parts = name.trim_start_matches('/').splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default();
    let (account, container, object) = (part(), part(), part());
    subrequest_path(account, container, object)
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
        self.conn.set_timeout(self.conf.node_timeout);
        match self.conn.write_body(message).await {
            Ok(()) => Ok(()),
            Err(ClientError::Closed) => Err(self.why_closed().await),
            Err(err) => Err(self.error(err, self.conf.node_timeout, context)),
        }
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

    /// The next line without its line end.
    async fn read_line(&mut self, context: &str) -> Result<Bytes, SendError> {
        let timeout = self.conf.http_timeout;
        self.conn.set_timeout(timeout);
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
            match self.conn.next_body().await {
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
