//! One conversation of the receiving end of SSYNC, from the first line to the last.
//!
//! The 200 and an empty line go out at once; everything after that, errors too, is said in the body (see the module's
//! grammar). So a sender learns only there that another replication holds the lock.
//!
//! Work overlaps within bounds: offers are compared in batches while further lines are read, and small objects are written
//! several at a time while the next ones are read; subrequests for the same object keep their order. A subrequest once
//! begun is finished, whatever happens to the session.
//!
//! Objects of a few megabytes are held together: the bodies of several are received, one after the other, before any of them
//! ends, so that their ETags are computed together (`common::digest`). Larger ones, and one that is alone in its session, are
//! hashed and written as they come, each while the one before it is on its way to the disk.
//!
//! Not here: what is on disk (a [`Check`]) and how subrequests are answered (the app), see `receiver.rs`.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use service::http::{
    Body, BodyError, BodySender, BodyStream, BoxFuture, Method, Request, Response, SharedApp, Status,
};
use service::logs::Logger;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tokio::task::{JoinError, JoinSet};

use crate::put::Awaited;

use super::input::{Input, InputError};
use super::protocol::{
    LineError, MISSING_CHECK_END, MISSING_CHECK_START, Offer, UPDATES_END, UPDATES_START, Wanted, error_line,
    parse_header_line, parse_subrequest_line, printable, python_repr, python_repr_bytes,
};
pub use super::tally::FailureLimits;
use super::tally::Tally;

/// Offers which are compared with the disk in one job, and jobs at a time.
const OFFERS_PER_CHECK: usize = 64;
const CHECKS_IN_FLIGHT: usize = 4;
/// A PUT of at most this size is taken into memory, so that others may follow while it is written.
const SMALL_PUT: u64 = 64 * 1024;
const SMALL_PUTS_IN_FLIGHT: usize = 16;
/// A larger PUT of at most this size is held until there are so many, or so many bytes, or nothing follows.
const HELD_PUT: u64 = 16 << 20;
const HELD_PUTS: usize = 8;
const HELD_BYTES: u64 = 48 << 20;
/// The part of a failed subrequest's answer that is logged.
const MAX_LOGGED_BODY: usize = 4096;
/// Pieces in which the list of wanted objects is written.
const REPLY_CHUNK: usize = 64 * 1024;

/// Compares offers with what is on disk; the result has an entry per offer, or the error ends the session.
pub type Check = Arc<dyn Fn(Vec<Offer>) -> BoxFuture<'static, Result<Vec<Wanted>, String>> + Send + Sync>;

/// Why a session ends early.
#[derive(Debug)]
enum Failure {
    /// The sender is gone.
    Disconnected,
    LockTimeout(String),
    Timeout(String),
    Read(String),
    Http(Status, Bytes),
    Other(String),
}

impl From<InputError> for Failure {
    fn from(err: InputError) -> Self {
        match err {
            InputError::Timeout(message) => Self::Timeout(message),
            InputError::Read(message) => Self::Read(message),
        }
    }
}

impl From<LineError> for Failure {
    fn from(err: LineError) -> Self {
        Self::Other(err.0)
    }
}

impl From<BodyError> for Failure {
    fn from(_: BodyError) -> Self {
        Self::Disconnected
    }
}

/// One SSYNC request that has passed the first checks.
pub struct Session {
    pub device: String,
    pub partition: u32,
    pub policy_index: u32,
    pub frag_index: Option<u32>,
    pub remote_addr: String,
    pub app: SharedApp,
    pub check: Check,
    pub limits: FailureLimits,
    pub logger: Logger,
}

impl Session {
    /// The conversation from its first line to its last. `locks` are what must be held meanwhile: its turn until the sender has
    /// had its last word, and the others until what it said is done.
    pub async fn run<T, L>(
        self,
        body: Body,
        chunk_size: usize,
        timeout: Duration,
        locks: impl Future<Output = Result<(T, L), Refusal>>,
        reply: BodySender,
    ) {
        if let Err(failure) = self.converse(Input::new(body, chunk_size, timeout), locks, &reply).await {
            self.report(failure, reply).await;
        }
    }

    async fn converse<T, L>(
        &self,
        input: Input,
        locks: impl Future<Output = Result<(T, L), Refusal>>,
        reply: &BodySender,
    ) -> Result<(), Failure> {
        reply.send("\r\n").await?;
        let (turn, _locks) = locks.await.map_err(Failure::from)?;
        let mut input = input;
        let wanted_data = self.missing_check(&mut input, reply).await?;
        let mut updates = Updates {
            session: self,
            has_company: wanted_data > 1,
            shared: Arc::new(Mutex::new(SubrequestInput { input, left: 0, context: String::new() })),
            tally: Tally::default(),
            in_flight: JoinSet::new(),
            paths: HashSet::new(),
            held: Held::default(),
        };
        let outcome = updates.receive().await;
        // What is left waits for the disk, mostly, and the next session has a while to talk before it does.
        drop(turn);
        // Before the other locks go, and also when the session has failed: what was begun is finished.
        updates.release();
        while updates.in_flight_done().await {}
        updates.check_failures()?;
        outcome?;
        let verdict = updates.tally.verdict();
        verdict.map_err(|message| Failure::Http(Status::INTERNAL_SERVER_ERROR, message.into()))?;
        reply.send(format!("{UPDATES_START}\r\n{UPDATES_END}\r\n")).await?;
        Ok(())
    }

    /// Of how many objects the data is wanted.
    async fn missing_check(&self, input: &mut Input, reply: &BodySender) -> Result<usize, Failure> {
        expect_line(input, "missing_check start", MISSING_CHECK_START).await?;
        let mut wanted = BytesMut::from(format!("{MISSING_CHECK_START}\r\n").as_bytes());
        let mut wanted_data = 0;
        let mut checks = FuturesOrdered::new();
        let mut more = true;
        while more {
            let mut offers = Vec::new();
            let mut line = input.read_line("missing_check line").await?;
            loop {
                let trimmed = line.trim_ascii();
                if line.is_empty() || trimmed == MISSING_CHECK_END.as_bytes() {
                    more = false;
                    break;
                }
                offers.push(Offer::decode(trimmed)?);
                if offers.len() == OFFERS_PER_CHECK {
                    break;
                }
                match input.take_buffered_line() {
                    Some(next) => line = next,
                    None => break,
                }
            }
            if !offers.is_empty() {
                checks.push_back(tokio::spawn(check_offers(self.check.clone(), offers)));
            }
            while checks.len() >= CHECKS_IN_FLIGHT || (!more && !checks.is_empty()) {
                if let Some(lines) = checks.next().await {
                    let (lines, data) = lines.unwrap_or_else(|err| Err(Failure::Other(err.to_string())))?;
                    wanted.extend_from_slice(lines.as_bytes());
                    wanted_data += data;
                }
            }
        }
        // Swift: an empty list is an empty line.
        let empty = if wanted.len() == MISSING_CHECK_START.len() + 2 { "\r\n" } else { "" };
        wanted.extend_from_slice(format!("{empty}{MISSING_CHECK_END}\r\n").as_bytes());
        let mut wanted = wanted.freeze();
        while !wanted.is_empty() {
            reply.send(wanted.split_to(wanted.len().min(REPLY_CHUNK))).await?;
        }
        Ok(wanted_data)
    }

    /// Logs a failure, tells the sender, and closes the connection: the sender must not go on talking to nobody.
    async fn report(&self, failure: Failure, reply: BodySender) {
        let prefix = prefix(&self.remote_addr, &self.device, self.partition);
        let prefix = prefix.trim_end();
        let line = match failure {
            Failure::Disconnected => {
                self.logger.error(format_args!("{prefix} client disconnected"));
                None
            }
            Failure::LockTimeout(message) => {
                self.logger.debug(format_args!("{prefix} LOCK TIMEOUT: {message}"));
                Some(error_line(0, &python_repr(&message)))
            }
            Failure::Timeout(message) => {
                self.logger.error(format_args!("{prefix} TIMEOUT: {message}"));
                Some(error_line(408, &python_repr(&message)))
            }
            Failure::Read(message) => {
                // The sender has hung up: nobody is there to be told.
                self.logger.error(format_args!("{prefix} read failed: {message}"));
                None
            }
            Failure::Http(status, body) => Some(error_line(status.0, &python_repr_bytes(&body))),
            Failure::Other(message) => {
                self.logger.error(format_args!("{prefix} EXCEPTION: {message}"));
                Some(error_line(0, &python_repr(&message)))
            }
        };
        if let Some(line) = line {
            // If it cannot be told it is gone.
            let _ = reply.send(line).await;
        }
        reply.fail(BodyError::Disconnected).await;
    }
}

/// What log lines of a session begin with.
pub fn prefix(remote_addr: &str, device: &str, partition: u32) -> String {
    format!("ssync receiver (remote_addr: {remote_addr}, path: {device}/{partition}) ")
}

/// Why the session may not begin.
#[derive(Debug)]
pub enum Refusal {
    /// `replication_concurrency` sessions run already.
    TooMany,
    LockTimeout(String),
    Other(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooMany => {
                let resp = Response::error(Status::SERVICE_UNAVAILABLE);
                let body = Bytes::copy_from_slice(resp.body.as_bytes().unwrap_or_default());
                Self::Http(resp.status, body)
            }
            Refusal::LockTimeout(message) => Self::LockTimeout(message),
            Refusal::Other(message) => Self::Other(message),
        }
    }
}

async fn expect_line(input: &mut Input, context: &str, want: &str) -> Result<(), Failure> {
    let line = input.read_line(context).await?;
    if line.is_empty() {
        return Err(Failure::Disconnected);
    }
    if line.trim_ascii() != want.as_bytes() {
        return Err(Failure::Other(format!("Looking for {want} got {}", printable(&line))));
    }
    Ok(())
}

/// The lines of the wanted ones among `offers`, joined by line ends as the reply has them, and of how many the data is wanted.
async fn check_offers(check: Check, offers: Vec<Offer>) -> Result<(String, usize), Failure> {
    let wanted = check(offers.clone()).await.map_err(Failure::Other)?;
    let (mut lines, mut data) = (String::new(), 0);
    for (offer, wanted) in offers.iter().zip(wanted).filter(|(_, wanted)| !wanted.is_nothing()) {
        lines.push_str(&wanted.encode(&offer.hash));
        lines.push_str("\r\n");
        data += usize::from(wanted.data);
    }
    Ok((lines, data))
}

/// The session's input while a subrequest reads its body from it.
struct SubrequestInput {
    input: Input,
    /// Bytes of the subrequest's body still to come.
    left: u64,
    context: String,
}

impl SubrequestInput {
    async fn next(&mut self) -> Result<Option<Bytes>, InputError> {
        if self.left == 0 {
            return Ok(None);
        }
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX);
        let chunk = self.input.read_chunk(&self.context, limit).await?;
        self.left -= chunk.len() as u64;
        Ok(Some(chunk))
    }
}

/// The body of a subrequest, which keeps the input from the session until its last byte, or until nobody wants it.
struct SubrequestBody {
    input: Option<OwnedMutexGuard<SubrequestInput>>,
    /// Closed when a held body may end.
    end: Option<Arc<Semaphore>>,
}

impl BodyStream for SubrequestBody {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async {
            if let Some(input) = &mut self.input {
                match input.next().await {
                    Ok(Some(chunk)) => {
                        if input.left == 0 {
                            self.input = None;
                        }
                        return Some(Ok(chunk));
                    }
                    Ok(None) => self.input = None,
                    Err(InputError::Timeout(_)) => return Some(Err(BodyError::Timeout)),
                    Err(InputError::Read(_)) => return Some(Err(BodyError::Disconnected)),
                }
            }
            if let Some(end) = self.end.take() {
                let _closed = end.acquire().await;
            }
            None
        })
    }
}

/// PUTs whose bodies have come, or are coming, and have not ended.
struct Held {
    paths: HashSet<Bytes>,
    bytes: u64,
    end: Arc<Semaphore>,
}

impl Default for Held {
    fn default() -> Self {
        Self { paths: HashSet::new(), bytes: 0, end: Arc::new(Semaphore::new(0)) }
    }
}

impl Held {
    fn is_full(&self) -> bool {
        self.paths.len() >= HELD_PUTS || self.bytes >= HELD_BYTES
    }
}

/// The UPDATES phase.
struct Updates<'a> {
    session: &'a Session,
    /// The data of more than one object is to come.
    has_company: bool,
    shared: Arc<Mutex<SubrequestInput>>,
    tally: Tally,
    in_flight: JoinSet<Outcome>,
    /// Of the subrequests in flight.
    paths: HashSet<Bytes>,
    /// Those in flight that wait for each other.
    held: Held,
}

struct Subrequest {
    number: u64,
    /// The head's first line, for messages.
    context: String,
    path: Bytes,
    request: Request,
    content_length: u64,
}

struct Outcome {
    number: u64,
    context: String,
    path: Bytes,
    status: Status,
    /// Of a failure.
    body: Bytes,
}

impl Updates<'_> {
    async fn receive(&mut self) -> Result<(), Failure> {
        let shared = self.shared.clone();
        expect_line(&mut shared.lock().await.input, "updates start", UPDATES_START).await?;
        loop {
            let mut input = shared.clone().lock_owned().await;
            if input.left > 0 {
                // An app which has failed has not read all: the next subrequest starts after the end of the last.
                while input.next().await?.is_some() {}
                self.in_flight_done().await;
            }
            self.check_failures()?;
            if self.held.is_full() {
                self.release();
            }
            let line = input.input.read_line("updates line").await?;
            if line.is_empty() || line.trim_ascii() == UPDATES_END.as_bytes() {
                return Ok(());
            }
            let number = self.tally.begin();
            let subrequest = self.session.read_head(&mut input.input, line.trim_ascii(), number).await?;
            input.left = subrequest.content_length;
            input.context.clone_from(&subrequest.context);
            if self.held.paths.contains(&subrequest.path) {
                self.release();
            }
            while self.paths.contains(&subrequest.path) || self.running() >= SMALL_PUTS_IN_FLIGHT {
                self.in_flight_done().await;
            }
            match subrequest.content_length {
                0..=SMALL_PUT => {
                    let body = read_small(&mut input).await?;
                    self.start(subrequest, Body::from(body));
                }
                length @ ..=HELD_PUT if self.has_company => self.start_held(subrequest, length, input),
                length => self.start_long(subrequest, length, input, None),
            }
        }
    }

    fn check_failures(&mut self) -> Result<(), Failure> {
        while let Some(done) = self.in_flight.try_join_next() {
            self.record(done);
        }
        self.tally.check(&self.session.limits).map_err(Failure::Other)
    }

    fn start(&mut self, subrequest: Subrequest, body: Body) {
        self.paths.insert(subrequest.path.clone());
        self.in_flight.spawn(call(self.session.app.clone(), subrequest, body));
    }

    fn start_held(&mut self, subrequest: Subrequest, length: u64, input: OwnedMutexGuard<SubrequestInput>) {
        self.held.paths.insert(subrequest.path.clone());
        self.held.bytes += length;
        let end = self.held.end.clone();
        self.start_long(subrequest, length, input, Some(end));
    }

    /// The next line is read when all of the body has been, which ends when `end` is closed, if it waits for others.
    fn start_long(
        &mut self,
        mut subrequest: Subrequest,
        length: u64,
        input: OwnedMutexGuard<SubrequestInput>,
        end: Option<Arc<Semaphore>>,
    ) {
        subrequest.request.env.insert(Awaited { has_company: end.is_some() });
        let body = SubrequestBody { input: Some(input), end };
        self.start(subrequest, Body::stream(body).with_length(length));
    }

    /// Lets the held bodies end.
    fn release(&mut self) {
        std::mem::take(&mut self.held).end.close();
    }

    /// Subrequests in flight that wait for nothing.
    fn running(&self) -> usize {
        self.in_flight.len().saturating_sub(self.held.paths.len())
    }

    /// Waits for one subrequest in flight; false when there is none.
    async fn in_flight_done(&mut self) -> bool {
        if self.running() == 0 {
            self.release();
        }
        let Some(done) = self.in_flight.join_next().await else { return false };
        self.record(done);
        true
    }

    fn record(&mut self, done: Result<Outcome, JoinError>) {
        // One that was given up: the runtime ends.
        let Ok(outcome) = done else { return };
        self.paths.remove(&outcome.path);
        self.held.paths.remove(&outcome.path);
        let session = self.session;
        let succeeded = outcome.status.is_success() || outcome.status == Status::NOT_FOUND;
        self.tally.end(outcome.number, succeeded, &session.limits);
        if !succeeded {
            session.logger.warning(format_args!(
                "{}subrequest failed with {}: {} ({})",
                prefix(&session.remote_addr, &session.device, session.partition),
                outcome.status.0,
                outcome.context,
                python_repr_bytes(&outcome.body),
            ));
        }
    }
}

async fn read_small(input: &mut SubrequestInput) -> Result<Bytes, InputError> {
    let Some(first) = input.next().await? else { return Ok(Bytes::new()) };
    if input.left == 0 {
        return Ok(first);
    }
    let mut body = BytesMut::with_capacity(first.len() + input.left as usize);
    body.extend_from_slice(&first);
    while let Some(chunk) = input.next().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

async fn call(app: SharedApp, subrequest: Subrequest, body: Body) -> Outcome {
    let Subrequest { number, context, path, mut request, .. } = subrequest;
    request.body = body;
    let answered = AssertUnwindSafe(async {
        let mut resp = app.call(request).await;
        let mut body = Bytes::new();
        if !resp.status.is_success() {
            // Only for the log: whatever cannot be had is left out.
            body = resp.body.collect(MAX_LOGGED_BODY).await.unwrap_or_default();
        }
        resp.body.abandon().await;
        (resp.status, body)
    });
    let panicked = |_| (Status::INTERNAL_SERVER_ERROR, Bytes::from_static(b"panicked"));
    let (status, body) = answered.catch_unwind().await.unwrap_or_else(panicked);
    Outcome { number, context, path, status, body }
}

impl Session {
    /// Reads the header lines of a subrequest whose first line is `line`.
    async fn read_head(&self, input: &mut Input, line: &[u8], number: u64) -> Result<Subrequest, Failure> {
        let context = String::from_utf8_lossy(line).into_owned();
        let (method, path) = parse_subrequest_line(line)?;
        let path = Bytes::copy_from_slice(path);
        let mut target = format!("/{}/{}", self.device, self.partition).into_bytes();
        target.extend_from_slice(&path);
        let mut request = Request::from_target(Method::parse(method), target.into());
        let mut content_length = None;
        let mut replication_headers = Vec::new();
        loop {
            let line = input.read_line("updates line").await?;
            if line.is_empty() {
                return Err(Failure::Other(format!("Got no headers for {context}")));
            }
            let line = line.trim_ascii();
            if line.is_empty() {
                break;
            }
            let (name, value) = parse_header_line(line)?;
            if name == b"content-length" {
                let length = std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok());
                let bad =
                    || Failure::Other(format!("Invalid content-length for {context}: {}", printable(value)));
                content_length = Some(length.ok_or_else(bad)?);
            }
            // Swift: the object server writes all headers of this list as metadata; these two are not metadata
            // (ssync_receiver.py, `updates`).
            if name != b"etag" && name != b"x-backend-no-commit" {
                if !replication_headers.is_empty() {
                    replication_headers.push(b' ');
                }
                replication_headers.extend_from_slice(&name);
            }
            request.headers.insert(&name, value);
        }
        match (&request.method, content_length) {
            (Method::Delete | Method::Post, None | Some(0)) | (Method::Put, Some(_)) => {}
            (Method::Delete | Method::Post, Some(_)) => {
                let path = String::from_utf8_lossy(&path);
                return Err(Failure::Other(format!("{method} subrequest with content-length {path}")));
            }
            (Method::Put, None) => {
                return Err(Failure::Other(format!("No content-length sent for {context}")));
            }
            _ => return Err(Failure::Other(format!("Invalid subrequest method {method}"))),
        }
        let headers = &mut request.headers;
        headers.insert("X-Backend-Storage-Policy-Index", self.policy_index.to_string());
        headers.insert("X-Backend-Replication", "True");
        if let Some(frag_index) = self.frag_index {
            // A primary must not refuse a fragment which is another primary's.
            headers.insert("X-Backend-Ssync-Frag-Index", frag_index.to_string());
        }
        if !replication_headers.is_empty() {
            headers.insert("X-Backend-Replication-Headers", replication_headers);
        }
        Ok(Subrequest { number, context, path, request, content_length: content_length.unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::hash::ObjHash;
    use common::timestamp::Timestamp;
    use service::http::app_fn;
    use tokio::sync::OwnedSemaphorePermit;

    type Seen = Arc<parking_lot::Mutex<Vec<(String, String, Vec<u8>)>>>;

    /// Answers every subrequest by the status in its X-Fail header, else 201, having read the body.
    fn app(seen: &Seen) -> SharedApp {
        let seen = seen.clone();
        app_fn(move |mut req| {
            let seen = seen.clone();
            async move {
                assert!(!req.headers.contains("X-Panic"), "as asked");
                if let Some(status) = req.headers.get_int::<u16>("X-Fail") {
                    return Response::error(status);
                }
                let headers = req.headers.iter().map(|(name, value)| {
                    format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
                });
                let headers = headers.collect::<Vec<_>>().join("\n");
                let body = match req.body.collect(1 << 20).await {
                    Ok(body) => body,
                    Err(_) => return Response::error(499),
                };
                seen.lock().push((format!("{} {}", req.method, req.path), headers, body.to_vec()));
                Response::new(201)
            }
        })
    }

    /// Wants what is newer than 1000.
    fn check() -> Check {
        Arc::new(|offers| {
            Box::pin(async move {
                let old = Timestamp::from_secs_f64(1000.0);
                let wanted = |offer: &Offer| Wanted { data: offer.ts_data > old, meta: offer.ts_meta > old };
                Ok(offers.iter().map(wanted).collect())
            })
        })
    }

    type Locks = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

    async fn converse(request: String, seen: &Seen) -> (String, bool) {
        converse_with(request, app(seen), async { Ok((None, None)) }).await
    }

    /// What the receiver says, and whether its body ends well.
    async fn converse_with(
        request: String,
        app: SharedApp,
        locks: impl Future<Output = Result<Locks, Refusal>> + Send + 'static,
    ) -> (String, bool) {
        let session = Session {
            device: "sda1".into(),
            partition: 9,
            policy_index: 1,
            frag_index: None,
            remote_addr: "127.0.0.1".into(),
            app,
            check: check(),
            limits: FailureLimits { threshold: 2, ratio: 1.5 },
            logger: Logger::memory().0,
        };
        let body = Body::from(request);
        let timeout = Duration::from_secs(5);
        let mut body = Body::driven(|tx| session.run(body, 65536, timeout, locks, tx));
        let mut text = Vec::new();
        loop {
            match body.next().await {
                Some(Ok(piece)) => text.extend_from_slice(&piece),
                Some(Err(_)) => return (String::from_utf8(text).unwrap(), false),
                None => return (String::from_utf8(text).unwrap(), true),
            }
        }
    }

    fn hash(n: u8) -> ObjHash {
        ObjHash([n; 16])
    }

    const NOTHING_MISSING: &str = ":MISSING_CHECK: START\r\n:MISSING_CHECK: END\r\n";
    const NOTHING_WANTED: &str = "\r\n:MISSING_CHECK: START\r\n\r\n:MISSING_CHECK: END\r\n";

    /// A `missing_check` of so many objects that are wanted.
    fn missing(count: usize) -> String {
        let offers: String = (0..count).map(|n| format!("{} 1001.00000\r\n", hash(n as u8))).collect();
        format!(":MISSING_CHECK: START\r\n{offers}:MISSING_CHECK: END\r\n")
    }

    #[tokio::test]
    async fn wanted_objects_are_named_in_the_order_of_the_offers() {
        let seen = Seen::default();
        let mut request = ":MISSING_CHECK: START\r\n".to_string();
        let mut want = "\r\n:MISSING_CHECK: START\r\n".to_string();
        for n in 0..250 {
            let secs = if n % 3 == 0 { 999 } else { 1001 };
            request += &format!("{} {secs}.00000\r\n", hash(n));
            if n % 3 != 0 {
                want += &format!("{} dm\r\n", hash(n));
            }
        }
        request += ":MISSING_CHECK: END\r\n:UPDATES: START\r\n:UPDATES: END\r\n";
        want += ":MISSING_CHECK: END\r\n:UPDATES: START\r\n:UPDATES: END\r\n";
        assert_eq!(converse(request, &seen).await, (want, true));
    }

    #[tokio::test]
    async fn subrequests_reach_the_app_with_all_that_was_sent() {
        let seen = Seen::default();
        let big = "x".repeat(200_000);
        let request = format!(
            "{NOTHING_MISSING}:UPDATES: START\r\n\
             PUT /a/c/o%20o\r\nContent-Length: 3\r\nETag: e\r\nX-Object-Meta-Ü: v\r\nX-Timestamp: 1.00000\r\n\r\nabc\
             PUT /a/c/big\r\nContent-Length: 200000\r\nX-Timestamp: 1.00000\r\n\r\n{big}\
             DELETE /a/c/gone\r\nX-Timestamp: 2.00000\r\n\r\n\
             POST /a/c/o%20o\r\nX-Timestamp: 3.00000\r\n\r\n\
             :UPDATES: END\r\n"
        );
        let (reply, whole) = converse(request, &seen).await;
        assert_eq!(reply, format!("{NOTHING_WANTED}:UPDATES: START\r\n:UPDATES: END\r\n"));
        assert!(whole);
        let mut seen = seen.lock().clone();
        let posted = seen.iter().position(|(what, ..)| what.starts_with("POST")).unwrap();
        let put = seen.iter().position(|(what, ..)| what == "PUT /sda1/9/a/c/o o").unwrap();
        assert!(put < posted, "the same object's subrequests keep their order");
        let (_, headers, body) = seen.remove(put);
        assert_eq!(body, b"abc");
        let added = "X-Backend-Storage-Policy-Index: 1\nX-Backend-Replication: True\n\
                     X-Backend-Replication-Headers: content-length x-object-meta-Ü x-timestamp";
        let sent = "content-length: 3\netag: e\nx-object-meta-Ü: v\nx-timestamp: 1.00000\n";
        assert_eq!(headers, format!("{sent}{added}"));
        let big = seen.iter().find(|(what, ..)| what == "PUT /sda1/9/a/c/big").unwrap();
        assert_eq!(big.2.len(), 200_000);
    }

    #[tokio::test]
    async fn medium_bodies_are_received_before_any_of_them_ends() {
        const LENGTH: usize = 70_000;
        let all_received = Arc::new(tokio::sync::Barrier::new(HELD_PUTS));
        let app = app_fn(move |mut req| {
            let all_received = all_received.clone();
            async move {
                let mut left = LENGTH;
                while left > 0 {
                    left -= req.body.next().await.unwrap().unwrap().len();
                }
                all_received.wait().await;
                assert!(req.body.next().await.is_none());
                Response::new(201)
            }
        });
        let mut request = format!("{}:UPDATES: START\r\n", missing(2 * HELD_PUTS));
        for n in 0..2 * HELD_PUTS {
            request += &format!("PUT /a/c/{n}\r\nContent-Length: {LENGTH}\r\n\r\n{}", "z".repeat(LENGTH));
        }
        let conversation = converse_with(request + ":UPDATES: END\r\n", app, async { Ok((None, None)) });
        let (reply, whole) = tokio::time::timeout(Duration::from_secs(20), conversation).await.unwrap();
        assert!(whole, "{reply}");
    }

    #[tokio::test]
    async fn only_what_has_company_waits_for_it() {
        for count in [1, 2] {
            let app = app_fn(move |mut req| async move {
                assert_eq!(req.env.get::<Awaited>().map(|awaited| awaited.has_company), Some(count > 1));
                while req.body.next().await.is_some() {}
                Response::new(201)
            });
            let mut request = format!("{}:UPDATES: START\r\n", missing(count));
            for n in 0..count {
                request += &format!("PUT /a/c/{n}\r\nContent-Length: 70000\r\n\r\n{}", "z".repeat(70_000));
            }
            let (reply, whole) =
                converse_with(request + ":UPDATES: END\r\n", app, async { Ok((None, None)) }).await;
            assert!(whole, "{count}: {reply}");
        }
    }

    #[tokio::test]
    async fn the_turn_ends_with_the_senders_last_word_and_the_other_locks_with_the_last_object() {
        for length in [10, 70_000, 20 << 20] {
            let (turn, lock) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
            let (next_turn, held_lock) = (turn.clone(), lock.clone());
            let app = app_fn(move |mut req| {
                let (next_turn, held_lock) = (next_turn.clone(), held_lock.clone());
                async move {
                    while req.body.next().await.is_some() {}
                    let _next = next_turn.acquire().await;
                    assert_eq!(held_lock.available_permits(), 0);
                    Response::new(201)
                }
            });
            let put = format!("PUT /a/c/o\r\nContent-Length: {length}\r\n\r\n{}", "z".repeat(length));
            let request = format!("{}:UPDATES: START\r\n{put}:UPDATES: END\r\n", missing(1));
            let locks = async { Ok((turn.acquire_owned().await.ok(), lock.acquire_owned().await.ok())) };
            let conversation = converse_with(request, app, locks);
            let (reply, whole) = tokio::time::timeout(Duration::from_secs(20), conversation).await.unwrap();
            assert!(whole, "{reply}");
        }
    }

    #[tokio::test]
    async fn a_held_body_ends_before_another_one_of_its_object_begins() {
        let seen = Seen::default();
        let mut request = format!("{}:UPDATES: START\r\n", missing(3));
        for n in 0..3 {
            request += &format!("PUT /a/c/o\r\nX-Timestamp: {n}\r\nContent-Length: 70000\r\n\r\n");
            request += &"z".repeat(70_000);
        }
        let (reply, whole) = converse(request + ":UPDATES: END\r\n", &seen).await;
        assert!(whole, "{reply}");
        let order: Vec<bool> = seen
            .lock()
            .iter()
            .enumerate()
            .map(|(n, put)| put.1.contains(&format!("timestamp: {n}")))
            .collect();
        assert_eq!(order, [true; 3]);
    }

    #[tokio::test]
    async fn failures_are_told_at_the_end_and_404_is_none() {
        let seen = Seen::default();
        let request = format!(
            "{NOTHING_MISSING}:UPDATES: START\r\n\
             POST /a/c/o\r\nX-Fail: 404\r\n\r\n\
             PUT /a/c/p\r\nX-Fail: 507\r\nContent-Length: 100000\r\n\r\n{}\
             DELETE /a/c/q\r\nX-Timestamp: 1.00000\r\n\r\n:UPDATES: END\r\n",
            "y".repeat(100_000)
        );
        let (reply, whole) = converse(request, &seen).await;
        let error = ":ERROR: 500 b'ERROR: With :UPDATES: 1 failures to 2 successes'\n";
        assert_eq!(reply, format!("{NOTHING_WANTED}{error}"));
        assert!(!whole, "the connection is closed");
    }

    #[tokio::test]
    async fn too_many_failures_end_the_session() {
        let seen = Seen::default();
        let mut request = format!("{NOTHING_MISSING}:UPDATES: START\r\n");
        for n in 0..20 {
            request += &format!("PUT /a/c/{n}\r\nX-Fail: 500\r\nContent-Length: 70000\r\n\r\n");
            request += &"z".repeat(70_000);
        }
        let (reply, whole) = converse(request, &seen).await;
        assert_eq!(reply, format!("{NOTHING_WANTED}:ERROR: 0 'Too many 2 failures to 0 successes'\n"));
        assert!(!whole);
    }

    #[tokio::test]
    async fn a_panicking_app_is_a_failure() {
        let seen = Seen::default();
        let request = format!(
            "{NOTHING_MISSING}:UPDATES: START\r\nDELETE /a/c/o\r\nX-Panic: yes\r\n\r\n\
             DELETE /a/c/o\r\nX-Timestamp: 1\r\n\r\n:UPDATES: END\r\n"
        );
        let (reply, _) = converse(request, &seen).await;
        let error = ":ERROR: 500 b'ERROR: With :UPDATES: 1 failures to 1 successes'\n";
        assert_eq!(reply, format!("{NOTHING_WANTED}{error}"));
    }

    #[tokio::test]
    async fn nonsense_is_answered_with_an_error_and_a_close() {
        let seen = Seen::default();
        let updates = format!("{NOTHING_MISSING}:UPDATES: START\r\n");
        for (request, error) in [
            ("hello\r\n".to_string(), r#""Looking for :MISSING_CHECK: START got b'hello\\r\\n'""#),
            (
                ":MISSING_CHECK: START\r\nhello\r\n".to_string(),
                r#""Invalid missing_check line (hash): b'hello'""#,
            ),
            (format!("{NOTHING_MISSING}hello\r\n"), r#""Looking for :UPDATES: START got b'hello\\r\\n'""#),
            (format!("{updates}hello\r\n"), r#""Invalid subrequest line: b'hello'""#),
            (format!("{updates}GET /a/c/o\r\n\r\n"), "'Invalid subrequest method GET'"),
            (format!("{updates}PUT /a/c/o\r\n\r\n"), "'No content-length sent for PUT /a/c/o'"),
            (
                format!("{updates}PUT /a/c/o\r\nContent-Length: x\r\n\r\n"),
                r#""Invalid content-length for PUT /a/c/o: b'x'""#,
            ),
            (
                format!("{updates}POST /a/c/o\r\nContent-Length: 1\r\n\r\n"),
                "'POST subrequest with content-length /a/c/o'",
            ),
            (format!("{updates}PUT /a/c/o\r\n"), "'Got no headers for PUT /a/c/o'"),
            (format!("{updates}PUT /a/c/o\r\nnope\r\n\r\n"), r#""Invalid subrequest header: b'nope'""#),
        ] {
            let (reply, whole) = converse(request, &seen).await;
            let line = reply.trim_end().rsplit("\n").next().unwrap();
            assert_eq!(line, format!(":ERROR: 0 {error}"));
            assert!(!whole);
        }
    }

    #[tokio::test]
    async fn a_cut_session_is_closed_without_a_word() {
        let seen = Seen::default();
        for request in [
            String::new(),
            NOTHING_MISSING.to_string(),
            format!("{NOTHING_MISSING}:UPDATES: START\r\nPUT /a/c/o\r\nContent-Length: 5\r\n\r\nab"),
            format!("{NOTHING_MISSING}:UPDATES: START\r\nPUT /a/c/o\r\nContent-Length: 100000\r\n\r\nab"),
            ":MISSING_CHECK: STA".to_string(),
        ] {
            let (reply, whole) = converse(request.clone(), &seen).await;
            assert!(!reply.contains(":ERROR:") && !whole, "{request}: {reply}");
        }
        assert!(seen.lock().is_empty(), "a PUT that was cut off is not a PUT");
    }

    #[tokio::test]
    async fn refusals_are_told_in_the_body() {
        let seen = Seen::default();
        let (reply, _) = converse_with(String::new(), app(&seen), async { Err(Refusal::TooMany) }).await;
        assert_eq!(
            reply,
            "\r\n:ERROR: 503 b'<html><h1>Service Unavailable</h1><p>The server is currently unavailable. \
             Please try again at a later time.</p></html>'\n"
        );
        let timeout = "15.0 seconds: /srv/node/sda1/.lock".to_string();
        let refused = async { Err(Refusal::LockTimeout(timeout)) };
        let (reply, _) = converse_with(String::new(), app(&seen), refused).await;
        assert_eq!(reply, "\r\n:ERROR: 0 '15.0 seconds: /srv/node/sda1/.lock'\n");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

        /// Whatever a sender says, the receiver comes to an end, and says `:UPDATES: END` only after all went well.
        #[test]
        fn any_conversation_ends(pieces in proptest::collection::vec(piece(), 0..12)) {
            let seen = Seen::default();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (reply, whole) = runtime.block_on(converse(pieces.concat(), &seen));
            proptest::prop_assert_eq!(whole, reply.ends_with(":UPDATES: END\r\n"), "{}", reply);
        }
    }

    fn piece() -> impl proptest::strategy::Strategy<Value = String> {
        use proptest::prelude::*;
        prop_oneof![
            4 => Just(format!("{NOTHING_MISSING}:UPDATES: START\r\n")),
            1 => Just(":MISSING_CHECK: START\r\n".to_string()),
            1 => Just(format!("{} 1500.00000\r\n", hash(7))),
            1 => Just(":MISSING_CHECK: END\r\n".to_string()),
            2 => Just(":UPDATES: END\r\n".to_string()),
            2 => Just("DELETE /a/c/o\r\nX-Timestamp: 1\r\n\r\n".to_string()),
            2 => (0usize..5, 0usize..5)
                .prop_map(|(says, has)| format!("PUT /a/c/o\r\nContent-Length: {says}\r\n\r\n{}", "x".repeat(has))),
            1 => "[ -~\r\n]{0,20}",
        ]
    }
}
