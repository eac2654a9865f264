//! The content of a large object as one body: what `SegmentedIterable` is to Swift's dlo and slo.
//!
//! A [`Listing`] says which pieces of which objects follow one another; [`SegmentedBody`] asks the rest of the
//! pipeline for them and passes their bytes on. Successive pieces of the same object become one GET of several
//! ranges. While the end of one segment (its last [`READ_AHEAD_BYTES`]) goes to the client the next one is opened;
//! never more than that one, so memory and connections stay bounded whatever the number of segments.
//!
//! A segment must have the size and ETag that the manifest knows, and the bytes that its own ETag promises. Where
//! one fails after the response has begun, the body ends with an error, which closes the connection.

use std::time::Duration;

use bytes::Bytes;
use common::clock::Clock;
use common::digest::Md5;
use common::quote::quote_path;
use service::http::mime::{MimeReader, boundary_of};
use service::http::range;
use service::http::{Body, BodyError, BodyStream, BoxFuture, Headers, Method, Request, Response, SharedApp};
use service::logs::Logger;
use tokio::task::JoinHandle;

use crate::subrequest::make_subrequest;

/// The next segment is opened when no more of the current one than this is left.
const READ_AHEAD_BYTES: u64 = 1024 * 1024;
/// How much may follow the last boundary of a multipart document.
const MAX_EPILOGUE: u64 = 1024;
/// How much of a segment's error body is looked at.
const MAX_ERROR_BODY: usize = 4096;

/// A part of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    Object(ObjectPiece),
}

/// Bytes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPiece {
    /// `/v1/account/container/object`, not quoted.
    pub path: String,
    /// The ETag and size that the whole object must have.
    pub hash: Option<String>,
    pub bytes: Option<u64>,
    pub first_byte: u64,
    /// `None`: to its end.
    pub last_byte: Option<u64>,
}

/// What goes wrong with a large object.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LargeObjectError {
    /// The manifest is at fault, or what it names: 409 if found before the response begins.
    #[error("{0}")]
    Broken(String),
    /// A segment cannot be had at the moment: 503.
    #[error("{0}")]
    Unavailable(String),
}

/// Where the pieces come from, one after another.
pub trait Listing: Send {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Piece, LargeObjectError>>>;
}

/// How segments are asked for.
#[derive(Clone)]
pub struct Fetcher {
    pub app: SharedApp,
    pub logger: Logger,
    pub clock: Clock,
    /// `SLO` or `DLO`.
    pub source: &'static str,
    /// The manifest's path, for the log.
    pub name: String,
    pub max_get_time: Duration,
}

/// The body of a response for a large object.
pub struct SegmentedBody {
    fetcher: Fetcher,
    /// `None` while the next segment is being opened, and after the last one.
    segments: Option<Segments>,
    opening: Option<JoinHandle<(Segments, Opened)>>,
    current: Option<Segment>,
    peeked: Option<Bytes>,
    /// How many bytes the response promises, if it does.
    left: Option<u64>,
    started: f64,
}

type Opened = Option<Result<Segment, LargeObjectError>>;

impl SegmentedBody {
    /// `base` is the client's request, from which subrequests are made; its body is not used.
    pub fn new(fetcher: Fetcher, base: &Request, listing: Box<dyn Listing>, length: Option<u64>) -> Self {
        let started = fetcher.clock.unix_secs();
        let segments = Segments::new(fetcher.clone(), base, listing);
        Self {
            fetcher,
            segments: Some(segments),
            opening: None,
            current: None,
            peeked: None,
            left: length,
            started,
        }
    }

    /// Fetches the first bytes: what is wrong with the first segment can still be told by a status.
    async fn validate_first_segment(&mut self) -> Result<(), LargeObjectError> {
        match self.next_chunk().await {
            Some(Ok(chunk)) => self.peeked = Some(chunk),
            Some(Err(Fault::Segment(error))) => return Err(error),
            Some(Err(Fault::Body(error))) => return Err(LargeObjectError::Unavailable(error.to_string())),
            None => (),
        }
        Ok(())
    }

    /// This body if its first segment is good; else the response that says what is wrong.
    pub async fn validated(mut self) -> Result<Self, Response> {
        match self.validate_first_segment().await {
            Ok(()) => Ok(self),
            Err(LargeObjectError::Broken(_)) => Err(Response::error(409)),
            Err(LargeObjectError::Unavailable(_)) => {
                Err(Response::error(503).with_header("Content-Type", "text/plain"))
            }
        }
    }

    async fn next_chunk(&mut self) -> Option<Result<Bytes, Fault>> {
        loop {
            let Some(segment) = &mut self.current else {
                match self.open_next().await? {
                    Ok(segment) => self.current = Some(segment),
                    Err(error) => return Some(Err(self.fail(error))),
                }
                continue;
            };
            match segment.next_chunk().await {
                Some(Ok(chunk)) => {
                    self.read_ahead();
                    return Some(Ok(chunk));
                }
                Some(Err(Fault::Segment(error))) => return Some(Err(self.fail(error))),
                Some(Err(error)) => {
                    self.current = None;
                    self.segments = None;
                    return Some(Err(error));
                }
                None => self.current = None,
            }
        }
    }

    /// An error ends the body.
    fn fail(&mut self, error: LargeObjectError) -> Fault {
        self.fetcher.logger.error(&error);
        self.current = None;
        self.segments = None;
        self.cancel_opening();
        Fault::Segment(error)
    }

    async fn open_next(&mut self) -> Opened {
        let (segments, opened) = match self.opening.take() {
            Some(opening) => match opening.await {
                Ok(opened) => opened,
                Err(error) => return Some(Err(LargeObjectError::Unavailable(error.to_string()))),
            },
            None => {
                let mut segments = self.segments.take()?;
                let opened = segments.open_next().await;
                (segments, opened)
            }
        };
        if opened.is_some() {
            self.segments = Some(segments);
        }
        opened
    }

    fn read_ahead(&mut self) {
        let left = self.current.as_ref().and_then(Segment::left);
        if self.opening.is_none()
            && left.is_some_and(|left| left <= READ_AHEAD_BYTES)
            && let Some(mut segments) = self.segments.take()
        {
            self.opening = Some(tokio::spawn(async move {
                let opened = segments.open_next().await;
                (segments, opened)
            }));
        }
    }

    fn cancel_opening(&mut self) {
        if let Some(opening) = self.opening.take() {
            opening.abort();
        }
    }

    /// Holds the body to the promised length and to the longest time that it may take.
    async fn next_checked(&mut self) -> Option<Result<Bytes, BodyError>> {
        if let Some(peeked) = self.peeked.take() {
            return Some(self.count(peeked));
        }
        let waited = self.fetcher.clock.unix_secs() - self.started;
        if waited > self.fetcher.max_get_time.as_secs_f64() {
            let (name, limit) = (&self.fetcher.name, self.fetcher.max_get_time.as_secs());
            let error = format!("While processing manifest {name}, max LO GET time of {limit}s exceeded");
            return Some(Err(self.fail(LargeObjectError::Broken(error)).into()));
        }
        match self.next_chunk().await {
            Some(Ok(chunk)) => Some(self.count(chunk)),
            Some(Err(error)) => Some(Err(error.into())),
            None => {
                let missing = self.left.filter(|left| *left > 0)?;
                let name = &self.fetcher.name;
                let error = format!("Expected another {missing} bytes for {name}; closing connection");
                Some(Err(self.fail(LargeObjectError::Broken(error)).into()))
            }
        }
    }

    fn count(&mut self, mut chunk: Bytes) -> Result<Bytes, BodyError> {
        let Some(left) = &mut self.left else {
            return Ok(chunk);
        };
        let surplus = (chunk.len() as u64).saturating_sub(*left);
        if surplus == 0 {
            *left -= chunk.len() as u64;
            return Ok(chunk);
        }
        chunk.truncate(*left as usize);
        *left = 0;
        let name = &self.fetcher.name;
        let error = format!("Too many bytes for {name}; truncating with {surplus} bytes left");
        let error = self.fail(LargeObjectError::Broken(error));
        match chunk.is_empty() {
            true => Err(error.into()),
            false => Ok(chunk),
        }
    }
}

impl BodyStream for SegmentedBody {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(self.next_checked())
    }

    fn content_length(&self) -> Option<u64> {
        self.left
    }
}

impl Drop for SegmentedBody {
    fn drop(&mut self) {
        self.cancel_opening();
    }
}

/// A copy of a request's head, to look at when the request itself has gone down the pipeline.
pub fn without_body(req: &Request) -> Request {
    Request {
        method: req.method.clone(),
        path: req.path.clone(),
        path_is_utf8: req.path_is_utf8,
        raw_target: req.raw_target.clone(),
        query: req.query.clone(),
        http_1_0: req.http_1_0,
        headers: req.headers.clone(),
        body: Body::empty(),
        env: req.env.clone(),
    }
}

/// Why there is no next chunk.
enum Fault {
    Segment(LargeObjectError),
    /// The response of a segment broke off.
    Body(BodyError),
}

impl From<Fault> for BodyError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Segment(error) => BodyError::Other(error.to_string()),
            Fault::Body(error) => error,
        }
    }
}

/// Pieces of the listing as requests, adjacent ones of the same object in one.
struct Segments {
    fetcher: Fetcher,
    base: Request,
    agent: String,
    listing: Box<dyn Listing>,
    pending: Option<PendingGet>,
    /// Found while looking for pieces to join to the pending one.
    after_pending: Option<Result<Piece, LargeObjectError>>,
    listed_all: bool,
}

/// A GET that further pieces may join.
#[derive(Debug, PartialEq, Eq)]
struct PendingGet {
    path: String,
    hash: Option<String>,
    bytes: Option<u64>,
    /// The value of Range without `bytes=`; `None` for the whole object.
    range: Option<String>,
}

impl PendingGet {
    fn new(piece: ObjectPiece) -> Self {
        let to_end = match (piece.last_byte, piece.bytes) {
            (None, _) => true,
            (Some(last), Some(bytes)) => last + 1 == bytes,
            (Some(_), None) => false,
        };
        let range = (piece.first_byte != 0 || !to_end).then(|| match piece.last_byte.filter(|_| !to_end) {
            Some(last) => format!("{}-{last}", piece.first_byte),
            None => format!("{}-", piece.first_byte),
        });
        Self { path: piece.path, hash: piece.hash, bytes: piece.bytes, range }
    }

    /// Joins another GET if it is of the same object and a server will take all the ranges together.
    fn join(&mut self, other: PendingGet) -> Result<(), PendingGet> {
        let Some(size) = other.bytes.filter(|_| self.path == other.path) else {
            return Err(other);
        };
        let whole = || format!("0-{}", size.saturating_sub(1));
        let mine = self.range.clone().unwrap_or_else(whole);
        let joined = format!("{mine},{}", other.range.clone().unwrap_or_else(whole));
        let ranges = range::parse(format!("bytes={joined}").as_bytes());
        match ranges.is_some_and(|ranges| !ranges.resolve(size).is_empty()) {
            true => {
                self.range = Some(joined);
                Ok(())
            }
            false => Err(other),
        }
    }
}

impl Segments {
    fn new(fetcher: Fetcher, base: &Request, listing: Box<dyn Listing>) -> Self {
        // Swift: the agent's own part begins with a space, so there are two.
        let agent = format!("%(orig)s  {} MultipartGET", fetcher.source);
        Self {
            fetcher,
            base: without_body(base),
            agent,
            listing,
            pending: None,
            after_pending: None,
            listed_all: false,
        }
    }

    async fn next_piece(&mut self) -> Option<Result<Piece, LargeObjectError>> {
        if let Some(piece) = self.after_pending.take() {
            return Some(piece);
        }
        if self.listed_all {
            return None;
        }
        let piece = self.listing.next().await;
        self.listed_all = !matches!(piece, Some(Ok(_)));
        piece
    }

    async fn open_next(&mut self) -> Opened {
        loop {
            match self.next_piece().await {
                Some(Ok(Piece::Object(piece))) => {
                    let get = PendingGet::new(piece);
                    let Some(pending) = &mut self.pending else {
                        self.pending = Some(get);
                        continue;
                    };
                    if let Err(get) = pending.join(get) {
                        let ready = self.pending.replace(get);
                        return Some(self.fetch(ready?).await);
                    }
                }
                other => {
                    if let Some(pending) = self.pending.take() {
                        self.after_pending = other;
                        return Some(self.fetch(pending).await);
                    }
                    return match other? {
                        Ok(Piece::Data(data)) => Some(Ok(Segment::of_data(data))),
                        Ok(Piece::Object(_)) => None,
                        Err(error) => Some(Err(error)),
                    };
                }
            }
        }
    }

    async fn fetch(&mut self, get: PendingGet) -> Result<Segment, LargeObjectError> {
        let req = self.request(&get);
        let resp = self.fetcher.app.call(req).await;
        self.checked(get, resp).await
    }

    /// `multipart-manifest=get`: a segment is a plain object whose ETag is the MD5 of its bytes.
    fn request(&self, get: &PendingGet) -> Request {
        let mut headers = Headers::new();
        for name in ["X-Auth-Token", "X-Open-Expired"] {
            if let Some(value) = self.base.headers.get(name) {
                headers.insert(name, value);
            }
        }
        if let Some(range) = &get.range {
            headers.insert("Range", format!("bytes={range}"));
        }
        let source = self.fetcher.source;
        let query = "multipart-manifest=get";
        make_subrequest(&self.base, Method::Get, &get.path, query, headers, &self.agent, source)
    }

    async fn checked(&mut self, get: PendingGet, mut resp: Response) -> Result<Segment, LargeObjectError> {
        let path = quote_path(&get.path);
        if !resp.is_success() {
            let body = resp.body.collect(MAX_ERROR_BODY).await.unwrap_or_default();
            let body = shortened(&String::from_utf8_lossy(&body));
            let message = format!(
                "While processing manifest {}, got {} ({body}) while retrieving {path}",
                self.fetcher.name, resp.status.0
            );
            return Err(match resp.status.is_server_error() {
                true => LargeObjectError::Unavailable(message),
                false => LargeObjectError::Broken(message),
            });
        }
        let etag = unquoted_etag(&resp);
        let length = resp.content_length();
        let other_etag =
            get.hash.as_ref().is_some_and(|hash| !hash.is_empty() && etag.as_ref() != Some(hash));
        // Without the check of the size one could put a tiny object under a large one's ETag and have the proxy
        // ask for it again and again.
        let other_size =
            get.range.is_none() && get.bytes.is_some_and(|bytes| bytes > 0 && length != Some(bytes));
        if other_etag || other_size {
            let text = |etag: &Option<String>| etag.clone().unwrap_or_else(|| "None".to_owned());
            let number = |size: Option<u64>| size.map_or("None".to_owned(), |size| size.to_string());
            return Err(LargeObjectError::Broken(format!(
                "Object segment no longer valid: {path} etag: {} != {} or {} != {}.",
                text(&etag),
                text(&get.hash),
                number(length),
                number(get.bytes)
            )));
        }
        let body = std::mem::take(&mut resp.body);
        let content_type = resp.headers.get("Content-Type").unwrap_or_default();
        let boundary =
            boundary_of(content_type).filter(|_| content_type.starts_with(b"multipart/byteranges"));
        Ok(Segment {
            path,
            name: self.fetcher.name.clone(),
            content: match boundary {
                Some(boundary) => Content::Documents(Box::new(MimeReader::new(body, boundary))),
                None => Content::Plain(body),
            },
            check: etag.filter(|etag| get.range.is_none() && !etag.is_empty()).map(|etag| BodyCheck {
                md5: Md5::new(),
                seen: 0,
                etag,
                length,
            }),
        })
    }
}

/// As much of an error's body as is logged.
pub fn shortened(body: &str) -> String {
    match body.chars().count() > 60 {
        true => body.chars().take(57).chain("...".chars()).collect(),
        false => body.to_owned(),
    }
}

/// The ETag of a response without its quotes.
pub fn unquoted_etag(resp: &Response) -> Option<String> {
    Some(resp.headers.get_str("ETag")?.replace('"', ""))
}

/// A segment that is being read.
struct Segment {
    path: String,
    name: String,
    content: Content,
    check: Option<BodyCheck>,
}

enum Content {
    Plain(Body),
    /// The ranges in the parts of a multipart document.
    Documents(Box<MimeReader>),
}

/// What the bytes of a whole segment must amount to.
struct BodyCheck {
    md5: Md5,
    seen: u64,
    etag: String,
    length: Option<u64>,
}

impl Segment {
    fn of_data(data: Bytes) -> Self {
        Self {
            path: "data segment".to_owned(),
            name: String::new(),
            content: Content::Plain(Body::from(data)),
            check: None,
        }
    }

    fn left(&self) -> Option<u64> {
        match &self.content {
            Content::Plain(body) => body.content_length(),
            Content::Documents(_) => None,
        }
    }

    async fn next_chunk(&mut self) -> Option<Result<Bytes, Fault>> {
        let next = match &mut self.content {
            Content::Plain(body) => body.next().await,
            Content::Documents(documents) => next_of_documents(documents).await,
        };
        match next {
            Some(Ok(chunk)) => {
                if let Some(check) = &mut self.check {
                    check.md5.update(&chunk);
                    check.seen += chunk.len() as u64;
                }
                match self.is_all_read() {
                    true => self.finish().await.err().map(Err).or(Some(Ok(chunk))),
                    false => Some(Ok(chunk)),
                }
            }
            Some(Err(error)) => Some(Err(Fault::Body(error))),
            None => self.verify().err().map(|error| Err(Fault::Segment(error))),
        }
    }

    /// Whether the piece in hand is the last one.
    fn is_all_read(&self) -> bool {
        match (&self.content, &self.check) {
            (_, Some(check)) => check.length == Some(check.seen),
            (Content::Plain(body), None) => body.content_length() == Some(0),
            (Content::Documents(_), None) => false,
        }
    }

    /// Swift sends the last piece before it compares the checksum. Here a segment that is not what it should be is not
    /// completed.
    async fn finish(&mut self) -> Result<(), Fault> {
        self.verify().map_err(Fault::Segment)?;
        if let Content::Plain(body) = &mut self.content
            && let Some(more) = body.next().await
        {
            more.map_err(Fault::Body)?;
            let (path, name) = (&self.path, &self.name);
            let error =
                format!("Bad response length for {path} as part of {name}: more than its headers had");
            return Err(Fault::Segment(LargeObjectError::Broken(error)));
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<(), LargeObjectError> {
        let Some(check) = self.check.take() else {
            return Ok(());
        };
        let (path, name) = (&self.path, &self.name);
        if check.length != Some(check.seen) {
            return Err(LargeObjectError::Broken(format!(
                "Bad response length for {path} as part of {name}: headers had {}, but response length was \
                 actually {}",
                check.length.map_or("None".to_owned(), |length| length.to_string()),
                check.seen
            )));
        }
        let actual = check.md5.hexdigest();
        if actual != check.etag {
            return Err(LargeObjectError::Broken(format!(
                "Bad MD5 checksum for {path} as part of {name}: headers had {}, but object MD5 was actually \
                 {actual}",
                check.etag
            )));
        }
        Ok(())
    }
}

/// The data of one document after the other.
async fn next_of_documents(documents: &mut MimeReader) -> Option<Result<Bytes, BodyError>> {
    loop {
        if let Some(next) = documents.next().await {
            return Some(next);
        }
        match documents.next_document().await {
            Ok(Some(_)) => (),
            Ok(None) => {
                // What follows the last boundary; not to read it would look as if we had gone away.
                let _ = documents.body_mut().drain(MAX_EPILOGUE).await;
                return None;
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Lets so many elements pass per second once the first ones have passed: Swift's `RateLimitedIterator`.
pub struct SegmentRate {
    clock: Clock,
    /// 0 is without limit.
    per_second: u64,
    free: u64,
    running: f64,
}

impl SegmentRate {
    /// What was not used within this time is lost.
    const BUFFER: f64 = 5.0;

    pub fn new(clock: Clock, per_second: u64, limit_after: u64) -> Self {
        Self { clock, per_second, free: limit_after, running: 0.0 }
    }

    pub async fn wait(&mut self) {
        if let Some(pause) = self.pause(self.clock.unix_secs()) {
            tokio::time::sleep(pause).await;
        }
    }

    fn pause(&mut self, now: f64) -> Option<Duration> {
        if self.free > 0 {
            self.free -= 1;
            return None;
        }
        if self.per_second == 0 {
            return None;
        }
        if now - self.running > Self::BUFFER {
            self.running = now;
        }
        let pause = (now < self.running).then(|| Duration::from_secs_f64(self.running - now));
        self.running += 1.0 / self.per_second as f64;
        pause
    }
}

/// The options of dlo and slo that concern reading.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    pub max_get_time: Duration,
    pub rate_limit_after_segment: u64,
    pub rate_limit_segments_per_sec: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(path: &str, bytes: Option<u64>, first_byte: u64, last_byte: Option<u64>) -> PendingGet {
        PendingGet::new(ObjectPiece { path: path.to_owned(), hash: None, bytes, first_byte, last_byte })
    }

    #[test]
    fn whole_objects_are_asked_for_without_range() {
        assert_eq!(piece("/a", Some(10), 0, None).range, None);
        assert_eq!(piece("/a", Some(10), 0, Some(9)).range, None);
        assert_eq!(piece("/a", None, 0, Some(9)).range.as_deref(), Some("0-9"));
        assert_eq!(piece("/a", Some(10), 3, Some(9)).range.as_deref(), Some("3-"));
        assert_eq!(piece("/a", Some(10), 3, Some(5)).range.as_deref(), Some("3-5"));
    }

    #[test]
    fn pieces_of_one_object_are_joined() {
        let mut get = piece("/a", Some(10), 0, None);
        get.join(piece("/a", Some(10), 3, Some(5))).unwrap();
        assert_eq!(get.range.as_deref(), Some("0-9,3-5"));
        assert!(get.join(piece("/b", Some(10), 0, None)).is_err());
        assert!(get.join(piece("/a", None, 0, None)).is_err());
    }

    #[test]
    fn too_many_overlaps_are_not_joined() {
        let mut get = piece("/a", Some(10), 0, Some(5));
        let overlapping = |first| piece("/a", Some(10), first, Some(first + 5));
        let joined = (1..5).take_while(|&first| get.join(overlapping(first)).is_ok()).count();
        assert!(joined < 4, "{joined}");
    }

    #[test]
    fn rate_is_limited_after_the_first_segments() {
        let mut rate = SegmentRate::new(Clock::system(), 2, 2);
        assert_eq!(rate.pause(100.0), None);
        assert_eq!(rate.pause(100.0), None);
        assert_eq!(rate.pause(100.0), None);
        assert_eq!(rate.pause(100.0), Some(Duration::from_millis(500)));
        assert_eq!(rate.pause(100.75), Some(Duration::from_millis(250)));
        assert_eq!(rate.pause(110.0), None);
        let mut free = SegmentRate::new(Clock::system(), 0, 0);
        assert!((0..100).all(|_| free.pause(1.0).is_none()));
    }
}
