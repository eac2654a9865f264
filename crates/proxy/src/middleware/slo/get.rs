//! GET and HEAD of a static large object, or (`?multipart-manifest=get`) of its manifest.
//!
//! The object server is asked first, as for any object. If what it has is a manifest, its answer is made into one for
//! the whole: from its headers alone where they tell enough (HEAD, 304, 412), else from the manifest, which is asked
//! for once more if the answer does not hold all of it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use common::digest::{hex, md5};
use common::headers::{CONTENT_LENGTH, CONTENT_RANGE, X_BACKEND_TIMESTAMP, X_STATIC_LARGE_OBJECT};
use common::quote::quote_path;
use common::timestamp::Timestamp;
use service::http::range;
use service::http::{Body, BoxFuture, Headers, Method, Request, Response};

use super::manifest::{self, Segment, StoredObject};
use super::{Core, MAX_STORED_MANIFEST, SYSMETA_SLO_ETAG, SYSMETA_SLO_SIZE};
use crate::middleware::conditional;
use crate::middleware::large_object::{
    Fetcher, LargeObjectError, Listing, ObjectPiece, Piece, SegmentRate, SegmentedBody, shortened,
    without_body,
};
use crate::middleware::query::{utf8_param, with_params};
use crate::middleware::request_headers::{etag_is_at, ignore_range_if, resolve_etag_is_at};
use crate::subrequest::make_subrequest;

/// How deep manifests may refer to manifests.
const MAX_RECURSION_DEPTH: usize = 10;
/// How many sub-manifests are kept for the other ranges of a request.
const MAX_CACHED_MANIFESTS: usize = 20;
/// A body of this size is read rather than given up, so that its connection can be used again.
const DRAIN_LIMIT: u64 = 64 * 1024;

const AGENT: &str = "%(orig)s SLO MultipartGET";

const CONDITION_HEADERS: [&str; 5] =
    ["Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"];

pub async fn get_or_head(core: Arc<Core>, req: Request) -> Response {
    let answered = match req.query.is_empty() {
        true => get_object(core, req).await,
        false => match utf8_param(&req, "multipart-manifest") {
            Ok(Some(wanted)) if wanted == "get" => get_manifest(core, req).await,
            Ok(_) => get_object(core, req).await,
            Err(refused) => Err(refused),
        },
    };
    answered.unwrap_or_else(|refused| refused)
}

async fn get_manifest(core: Arc<Core>, req: Request) -> Result<Response, Response> {
    let raw = utf8_param(&req, "format")?.as_deref() == Some("raw");
    let client = without_body(&req);
    let mut resp = core.app.call(req).await;
    if !is_slo(&resp.headers) {
        return Ok(not_slo(&client, resp));
    }
    if raw {
        // The content type stays that of the object, so that a copy of the manifest has it.
        let body = resp.body.collect(MAX_STORED_MANIFEST).await.map_err(|_| unreadable(&core, &client))?;
        let raw = manifest::to_raw(&body).map_err(|_| unreadable(&core, &client))?;
        resp.headers.insert(CONTENT_LENGTH, raw.len().to_string());
        resp.headers.insert("ETag", hex(&md5(raw.as_bytes())));
        resp.body = Body::from(raw);
    } else {
        resp.headers.insert("Content-Type", "application/json; charset=utf-8");
    }
    let etag = resolve_etag_is_at(&client.headers, &resp.headers);
    Ok(conditional::finish(&client, resp, etag))
}

async fn get_object(core: Arc<Core>, mut req: Request) -> Result<Response, Response> {
    etag_is_at(&mut req.headers, SYSMETA_SLO_ETAG);
    ignore_range_if(&mut req.headers, X_STATIC_LARGE_OBJECT);
    let mut client = without_body(&req);
    let mut resp = core.app.call(req).await;
    if !is_slo(&resp.headers) {
        return Ok(not_slo(&client, resp));
    }
    let part_number = match part_number(&client) {
        Ok(part_number) => part_number,
        Err(refused) => {
            let _ = resp.body.drain(DRAIN_LIMIT).await;
            return Err(refused);
        }
    };
    let mut attributes = Attributes::of(&resp.headers);
    let need = Need::of(&client, &resp, &attributes, part_number.is_some());
    if need == Need::Refetch {
        let _ = resp.body.drain(DRAIN_LIMIT).await;
        resp = refetch(&core, &mut client).await;
        let before = attributes;
        attributes = Attributes::of(&resp.headers);
        if !is_slo(&resp.headers) {
            // It was a manifest in newer data than this answer knows of.
            if attributes.timestamp < before.timestamp {
                return Err(Response::error(503));
            }
            return Ok(not_slo(&client, resp));
        }
    }
    match need {
        Need::Headers => Ok(respond_by_headers(&client, resp, &attributes)),
        Need::Manifest | Need::Refetch => {
            Box::pin(respond_by_manifest(core, client, resp, attributes, part_number)).await
        }
    }
}

fn is_slo(headers: &Headers) -> bool {
    headers.get_bool(X_STATIC_LARGE_OBJECT)
}

/// Any other object: the object server has done all, unless what we asked for at last was more than the client did.
fn not_slo(client: &Request, resp: Response) -> Response {
    if resp.status.0 != 200 || !CONDITION_HEADERS.iter().any(|name| client.headers.contains(name)) {
        return resp;
    }
    let etag = resolve_etag_is_at(&client.headers, &resp.headers);
    conditional::finish(client, resp, etag)
}

/// `part-number` of the query.
fn part_number(client: &Request) -> Result<Option<usize>, Response> {
    if client.query.is_empty() {
        return Ok(None);
    }
    let Some(number) = utf8_param(client, "part-number")? else {
        return Ok(None);
    };
    let invalid = || Response::html(400, "Part number must be an integer greater than 0");
    let number: usize = number.trim().parse().ok().filter(|number| *number > 0).ok_or_else(invalid)?;
    match client.headers.get("Range").and_then(range::parse) {
        Some(_) => Err(Response::html(400, "Range requests are not supported with part number queries")),
        None => Ok(Some(number)),
    }
}

/// What the headers of a manifest tell of the whole.
struct Attributes {
    timestamp: Timestamp,
    /// ETag of the manifest itself.
    json_md5: String,
    /// Size and ETag of the whole; manifests of old have neither.
    size_and_etag: Option<(u64, String)>,
}

impl Attributes {
    fn of(headers: &Headers) -> Self {
        let text = |name: &str| headers.get_str(name).unwrap_or("").to_owned();
        let etag = Some(text(SYSMETA_SLO_ETAG)).filter(|etag| !etag.is_empty());
        let size = headers.get_int::<u64>(SYSMETA_SLO_SIZE);
        Self {
            timestamp: Timestamp::parse(&text(X_BACKEND_TIMESTAMP)).unwrap_or_default(),
            json_md5: text("ETag"),
            size_and_etag: size.zip(etag),
        }
    }
}

/// What it takes to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Headers,
    /// The manifest, which is this answer's body.
    Manifest,
    /// The manifest, which this answer does not have.
    Refetch,
}

impl Need {
    fn of(client: &Request, resp: &Response, attributes: &Attributes, has_part_number: bool) -> Self {
        let legacy = attributes.size_and_etag.is_none();
        if client.is_head() {
            return if legacy || has_part_number { Need::Refetch } else { Need::Headers };
        }
        match resp.status.0 {
            // The object server knew the ETag of the whole, if anybody did.
            304 | 412 => {
                if legacy {
                    Need::Refetch
                } else {
                    Need::Headers
                }
            }
            416 => Need::Refetch,
            206 => {
                if is_complete(&resp.headers) {
                    Need::Manifest
                } else {
                    Need::Refetch
                }
            }
            _ => Need::Manifest,
        }
    }
}

/// Whether a partial response happens to hold everything.
fn is_complete(headers: &Headers) -> bool {
    let range = headers.get_str(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
    let Some(((first, last), total)) = range.and_then(|range| {
        let (range, total) = range.split_once('/')?;
        Some((range.split_once('-')?, total))
    }) else {
        return false;
    };
    let number = |text: &str| text.parse::<u64>().ok();
    number(first) == Some(0) && number(last).and_then(|last| last.checked_add(1)) == number(total)
}

/// Asks once more, for all of it.
async fn refetch(core: &Core, client: &mut Request) -> Response {
    let mut headers = Headers::new();
    for name in ["X-Auth-Token", "X-Open-Expired"] {
        if let Some(value) = client.headers.get(name) {
            headers.insert(name, value);
        }
    }
    let req = make_subrequest(client, Method::Get, &client.path, &client.query, headers, AGENT, "SLO");
    core.app.call(req).await
}

fn unreadable(core: &Core, client: &Request) -> Response {
    let logger = core.ctx.logger.with_txn(&client.env.trans_id);
    logger.error(format_args!("Unable to load SLO manifest: {}", client.quoted_path()));
    Response::html(500, "Unable to load SLO manifest")
}

fn set_whole(resp: &mut Response, attributes: &Attributes, size: u64, etag: &str) {
    resp.headers.insert("ETag", format!("\"{etag}\""));
    resp.headers.insert("X-Manifest-Etag", attributes.json_md5.as_str());
    resp.headers.insert(CONTENT_LENGTH, size.to_string());
    resp.headers.remove(CONTENT_RANGE);
}

fn respond_by_headers(client: &Request, mut resp: Response, attributes: &Attributes) -> Response {
    let (size, etag) = attributes.size_and_etag.clone().unwrap_or_default();
    set_whole(&mut resp, attributes, size, &etag);
    resp.body = Body::empty();
    let etag = resolve_etag_is_at(&client.headers, &resp.headers);
    conditional::finish(client, resp, etag)
}

async fn respond_by_manifest(
    core: Arc<Core>,
    mut client: Request,
    mut resp: Response,
    attributes: Attributes,
    part_number: Option<usize>,
) -> Result<Response, Response> {
    let body = resp.body.collect(MAX_STORED_MANIFEST).await;
    let body = body.map_err(|_| unreadable(&core, &client))?;
    let segments = manifest::parse_stored(&body).map_err(|_| unreadable(&core, &client))?;
    let (size, etag) = attributes.size_and_etag.clone().unwrap_or_else(|| manifest::size_and_etag(&segments));
    set_whole(&mut resp, &attributes, size, &etag);
    if let Some(number) = part_number {
        resp.headers.insert("X-Parts-Count", segments.len().to_string());
        let Some((first, last)) = byte_range_of_part(&segments, number) else {
            return Ok(no_such_part(&client, resp, size));
        };
        if client.is_head() {
            // Content-Length is that of the part, so this is one of the few HEADs with 206.
            resp.status = 206.into();
            resp.headers.insert(CONTENT_LENGTH, (last - first + 1).to_string());
            resp.headers.insert(CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
        } else {
            client.headers.insert("Range", format!("bytes={first}-{last}"));
        }
    }
    if !client.is_head() {
        resp.body = Body::stream(content(&core, &client, segments, size).validated().await?);
    }
    let etag = resolve_etag_is_at(&client.headers, &resp.headers);
    Ok(conditional::finish_with_ranges(&client, resp, etag))
}

/// First and last byte of a part, counted from 1.
fn byte_range_of_part(segments: &[Segment], number: usize) -> Option<(i64, i64)> {
    let part = segments.get(number - 1)?;
    let start: u64 = segments[..number - 1].iter().map(Segment::length).sum();
    let (start, length) = (i64::try_from(start).ok()?, i64::try_from(part.length()).ok()?);
    Some((start, start + length - 1))
}

fn no_such_part(client: &Request, mut resp: Response, size: u64) -> Response {
    let body = if client.is_head() { "" } else { "The requested part number is not satisfiable" };
    resp.status = 416.into();
    resp.headers.insert(CONTENT_LENGTH, body.len().to_string());
    resp.headers.insert(CONTENT_RANGE, format!("bytes */{size}"));
    resp.body = Body::from(body);
    let etag = resolve_etag_is_at(&client.headers, &resp.headers);
    conditional::finish(client, resp, etag)
}

/// The content, or that part of it which the client wants.
fn content(core: &Arc<Core>, client: &Request, segments: Vec<Segment>, size: u64) -> SegmentedBody {
    let byte_ranges = match client.headers.get("Range").and_then(range::parse) {
        Some(ranges) => {
            ranges.resolve(size).into_iter().map(|(start, end)| (start as i64, end as i64 - 1)).collect()
        }
        None => VecDeque::from([(0, size as i64 - 1)]),
    };
    let mut parts = client.split_path(3, 3, true).unwrap_or_default().into_iter().flatten();
    let fetcher = Fetcher {
        app: core.app.clone(),
        logger: core.ctx.logger.with_txn(&client.env.trans_id),
        clock: core.ctx.clock.clone(),
        source: "SLO",
        name: client.quoted_path(),
        max_get_time: core.limits.max_get_time,
    };
    let listing = Box::new(SegmentListing {
        rate: SegmentRate::new(
            core.ctx.clock.clone(),
            core.limits.rate_limit_segments_per_sec,
            core.limits.rate_limit_after_segment,
        ),
        core: core.clone(),
        client: without_body(client),
        version: parts.next().unwrap_or_default(),
        account: parts.next().unwrap_or_default(),
        segments: Arc::new(segments),
        byte_ranges,
        frames: Vec::new(),
        cache: ManifestCache::default(),
    });
    SegmentedBody::new(fetcher, client, listing, None)
}

/// Walks manifests and their sub-manifests for the pieces that make up the wanted ranges.
struct SegmentListing {
    core: Arc<Core>,
    client: Request,
    rate: SegmentRate,
    version: String,
    account: String,
    segments: Arc<Vec<Segment>>,
    /// First and last byte of each range that is still to come.
    byte_ranges: VecDeque<(i64, i64)>,
    /// The manifest in hand, below it those that refer to it.
    frames: Vec<Frame>,
    cache: ManifestCache,
}

/// A manifest on the way through it.
struct Frame {
    segments: Arc<Vec<Segment>>,
    next: usize,
    /// The wanted bytes, counted from the next segment's first.
    first: i64,
    last: i64,
}

/// What a step through a manifest finds.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Data(bytes::Bytes),
    /// First and last byte of the object.
    Object(StoredObject, i64, i64),
    /// First and last byte of what the sub-manifest stands for.
    SubManifest(StoredObject, i64, i64),
    End,
}

impl Frame {
    fn step(&mut self) -> Step {
        while let Some(segment) = self.segments.get(self.next) {
            let length = i64::try_from(segment.length()).unwrap_or(i64::MAX);
            let (first, last) = (self.first, self.last);
            if first < length && last < 0 {
                return Step::End;
            }
            self.next += 1;
            self.first -= length;
            self.last -= length;
            if first >= length {
                continue;
            }
            return match segment {
                Segment::Data(data) => {
                    Step::Data(data.slice(first.max(0) as usize..=last.min(length - 1) as usize))
                }
                Segment::Object(object) => {
                    let (start, end) = match object.range {
                        Some((start, end)) => (start as i64, end as i64),
                        None => (0, length - 1),
                    };
                    let (first, last) = (first.max(0) + start, end.min(start + last));
                    match object.sub_slo {
                        true => Step::SubManifest(object.clone(), first, last),
                        false => Step::Object(object.clone(), first, last),
                    }
                }
            };
        }
        Step::End
    }
}

impl SegmentListing {
    async fn next_piece(&mut self) -> Option<Result<Piece, LargeObjectError>> {
        loop {
            let Some(frame) = self.frames.last_mut() else {
                let (first, last) = self.byte_ranges.pop_front()?;
                let segments = self.segments.clone();
                self.frames.push(Frame { segments, next: 0, first, last });
                continue;
            };
            match frame.step() {
                Step::End => {
                    self.frames.pop();
                }
                Step::Data(data) => return Some(Ok(Piece::Data(data))),
                Step::Object(object, first, last) => return Some(Ok(self.piece(object, first, last).await)),
                Step::SubManifest(object, first, last) => match self.sub_manifest(&object.name).await {
                    Ok(segments) => self.frames.push(Frame { segments, next: 0, first, last }),
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }

    async fn piece(&mut self, object: StoredObject, first: i64, last: i64) -> Piece {
        if object.bytes < self.core.rate_limit_under_size {
            self.rate.wait().await;
        }
        Piece::Object(ObjectPiece {
            path: self.path_of(&object.name),
            hash: Some(object.hash),
            bytes: Some(object.bytes),
            first_byte: first as u64,
            last_byte: Some(last as u64),
        })
    }

    fn path_of(&self, name: &str) -> String {
        format!("/{}/{}/{}", self.version, self.account, name.trim_start_matches('/'))
    }

    async fn sub_manifest(&mut self, name: &str) -> Result<Arc<Vec<Segment>>, LargeObjectError> {
        let manifest = self.client.quoted_path();
        if self.frames.len() >= MAX_RECURSION_DEPTH {
            let error = format!("While processing manifest '{manifest}', max recursion depth was exceeded");
            return Err(LargeObjectError::Broken(error));
        }
        if let Some(segments) = self.cache.get(name) {
            return Ok(segments);
        }
        let path = self.path_of(name);
        let mut headers = Headers::new();
        if let Some(token) = self.client.headers.get("X-Auth-Token") {
            headers.insert("X-Auth-Token", token);
        }
        let query = with_params(&self.client, |params| params.retain(|(name, _)| name != "part-number"));
        let req = make_subrequest(&self.client, Method::Get, &path, &query, headers, AGENT, "SLO");
        let mut resp = self.core.app.call(req).await;
        let body = resp.body.collect(MAX_STORED_MANIFEST).await.unwrap_or_default();
        if !resp.is_success() {
            return Err(LargeObjectError::Broken(format!(
                "while fetching {manifest}, GET of submanifest {} failed with status {} ({})",
                quote_path(&path),
                resp.status.0,
                shortened(&String::from_utf8_lossy(&body))
            )));
        }
        let segments = manifest::parse_stored(&body).map_err(|_| {
            LargeObjectError::Broken(format!(
                "while fetching {manifest}, JSON-decoding of submanifest {} failed",
                quote_path(&path)
            ))
        })?;
        Ok(self.cache.insert(name, segments))
    }
}

impl Listing for SegmentListing {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Piece, LargeObjectError>>> {
        Box::pin(self.next_piece())
    }
}

/// The sub-manifests read last.
#[derive(Default)]
struct ManifestCache {
    manifests: HashMap<String, Arc<Vec<Segment>>>,
    /// Least recently used first.
    order: VecDeque<String>,
}

impl ManifestCache {
    fn get(&mut self, name: &str) -> Option<Arc<Vec<Segment>>> {
        let segments = self.manifests.get(name)?.clone();
        self.order.retain(|other| other != name);
        self.order.push_back(name.to_owned());
        Some(segments)
    }

    fn insert(&mut self, name: &str, segments: Vec<Segment>) -> Arc<Vec<Segment>> {
        if self.order.len() >= MAX_CACHED_MANIFESTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.manifests.remove(&oldest);
        }
        let segments = Arc::new(segments);
        self.manifests.insert(name.to_owned(), segments.clone());
        self.order.push_back(name.to_owned());
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, bytes: u64, range: Option<(u64, u64)>, sub_slo: bool) -> Segment {
        Segment::Object(StoredObject { name: name.to_owned(), bytes, hash: "h".to_owned(), range, sub_slo })
    }

    fn steps(segments: Vec<Segment>, first: i64, last: i64) -> Vec<String> {
        let mut frame = Frame { segments: Arc::new(segments), next: 0, first, last };
        let mut steps = Vec::new();
        loop {
            match frame.step() {
                Step::End => return steps,
                Step::Data(data) => steps.push(String::from_utf8_lossy(&data).into_owned()),
                Step::Object(object, first, last) => steps.push(format!("{}:{first}-{last}", object.name)),
                Step::SubManifest(object, first, last) => {
                    steps.push(format!("{}/{first}-{last}", object.name))
                }
            }
        }
    }

    #[test]
    fn steps_cover_the_wanted_bytes_alone() {
        let segments = || {
            vec![
                object("a", 10, None, false),
                Segment::Data("hello".into()),
                object("b", 100, Some((20, 29)), false),
                object("c", 100, Some((50, 59)), true),
            ]
        };
        assert_eq!(steps(segments(), 0, 34), ["a:0-9", "hello", "b:20-29", "c/50-59"]);
        assert_eq!(steps(segments(), 3, 5), ["a:3-5"]);
        assert_eq!(steps(segments(), 9, 10), ["a:9-9", "h"]);
        assert_eq!(steps(segments(), 14, 16), ["o", "b:20-21"]);
        assert_eq!(steps(segments(), 27, 99), ["c/52-59"]);
        assert_eq!(steps(segments(), 0, -1), Vec::<String>::new());
    }

    #[test]
    fn content_range_tells_whether_a_manifest_is_complete() {
        let complete = |range: &str| {
            let mut headers = Headers::new();
            headers.insert(CONTENT_RANGE, range);
            is_complete(&headers)
        };
        assert!(complete("bytes 0-9/10"));
        for partial in ["bytes 0-8/10", "bytes 1-9/10", "bytes 0-9/*", "bytes */10", "0-9/10", ""] {
            assert!(!complete(partial), "{partial}");
        }
        assert!(!is_complete(&Headers::new()));
    }

    #[test]
    fn parts_are_counted_from_one() {
        let segments = vec![object("a", 10, None, false), object("b", 100, Some((5, 9)), false)];
        assert_eq!(byte_range_of_part(&segments, 1), Some((0, 9)));
        assert_eq!(byte_range_of_part(&segments, 2), Some((10, 14)));
        assert_eq!(byte_range_of_part(&segments, 3), None);
    }

    #[test]
    fn cache_forgets_the_manifest_that_was_not_used_longest() {
        let mut cache = ManifestCache::default();
        for i in 0..MAX_CACHED_MANIFESTS {
            cache.insert(&i.to_string(), Vec::new());
        }
        assert!(cache.get("0").is_some());
        cache.insert("new", Vec::new());
        assert!(cache.get("0").is_some() && cache.get("1").is_none() && cache.get("new").is_some());
    }
}
