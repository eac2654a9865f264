//! `dlo`: dynamic large objects. An object with `X-Object-Manifest: container/prefix` stands for all objects of that
//! container whose names begin with the prefix, in the order of the listing.
//!
//! ETag and Content-Length are told when one page of the listing shows all segments; a Range is served if that
//! page decides it. Segments need not match what the listing says of them: only their names count.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use common::config::{Conf, ConfigError, Section};
use common::digest::Md5;
use common::headers::X_OBJECT_MANIFEST;
use common::quote::{quote, unquote};
use service::Context;
use service::http::range;
use service::http::{App, Body, BoxFuture, Headers, Method, Request, Response, SharedApp};

use super::conditional;
use super::large_object::{
    Fetcher, LargeObjectError, Listing, ObjectPiece, Piece, ReadLimits, SegmentRate, SegmentedBody,
    without_body,
};
use super::request_headers::ignore_range_if;
use crate::subrequest::make_subrequest;

/// A listing page with as many names as a listing may have, at their longest.
const MAX_LISTING_BYTES: usize = 64 * 1024 * 1024;
/// Manifests are usually empty; a small body is read to its end so that its connection can be used again.
const SMALL_MANIFEST: u64 = 1024;

pub struct DynamicLargeObject {
    core: Arc<Core>,
}

struct Core {
    app: SharedApp,
    ctx: Context,
    limits: ReadLimits,
    listing_limit: usize,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    Ok(Arc::new(DynamicLargeObject {
        core: Arc::new(Core {
            app,
            ctx: ctx.clone(),
            limits: read_limits(section)?,
            listing_limit: ctx.swift_conf.constraints.container_listing_limit,
        }),
    }))
}

/// The options of this section, or else those of the proxy's, where they were before this was a filter.
fn read_limits(section: &Section) -> Result<ReadLimits, ConfigError> {
    let names = ["max_get_time", "rate_limit_after_segment", "rate_limit_segments_per_sec"];
    let has_own = names.iter().any(|name| section.get(name).is_some());
    let app_section = match std::path::Path::new(section.file()) {
        path if !has_own && path.exists() => Conf::load(path)?.section("app:proxy-server"),
        _ => None,
    };
    let section = app_section.as_ref().unwrap_or(section);
    Ok(ReadLimits {
        max_get_time: Duration::from_secs(section.int("max_get_time", 86_400)?),
        rate_limit_after_segment: section.int("rate_limit_after_segment", 10)?,
        rate_limit_segments_per_sec: section.int("rate_limit_segments_per_sec", 1)?,
    })
}

impl App for DynamicLargeObject {
    fn call(&self, mut req: Request) -> BoxFuture<'_, Response> {
        let core = &self.core;
        match req.method {
            Method::Get | Method::Head if req.split_path(4, 4, true).is_ok() => {
                if !req.query.is_empty() && req.param("multipart-manifest").as_deref() == Some("get") {
                    return core.app.call(req);
                }
                ignore_range_if(&mut req.headers, X_OBJECT_MANIFEST);
                Box::pin(core.clone().get_or_head(req))
            }
            Method::Put if req.headers.contains(X_OBJECT_MANIFEST) && req.split_path(4, 4, true).is_ok() => {
                match is_valid_manifest(req.headers.get(X_OBJECT_MANIFEST).unwrap_or_default()) {
                    true => core.app.call(req),
                    false => Box::pin(async {
                        Response::html(400, "X-Object-Manifest must be in the format container/prefix")
                    }),
                }
            }
            _ => core.app.call(req),
        }
    }
}

/// `container/prefix`, without what would be a query.
fn is_valid_manifest(value: &[u8]) -> bool {
    let Some(slash) = memchr::memchr(b'/', value) else {
        return false;
    };
    let (container, prefix) = (&value[..slash], &value[slash + 1..]);
    let no_query = !value.contains(&b'?') && !value.contains(&b'&');
    !container.is_empty() && !prefix.is_empty() && no_query && !prefix.starts_with(b"/")
}

/// One name of the segments' listing.
#[derive(Debug, serde::Deserialize)]
struct ListedSegment {
    name: String,
    bytes: u64,
    #[serde(default)]
    hash: String,
}

impl Core {
    async fn get_or_head(self: Arc<Self>, req: Request) -> Response {
        let client = without_body(&req);
        let mut resp = self.app.call(req).await;
        let Some(manifest) = resp.headers.get(X_OBJECT_MANIFEST) else {
            return resp;
        };
        let Some(segments) = Segments::of(&client, &String::from_utf8_lossy(&unquote(manifest))) else {
            return Response::error(500);
        };
        if resp.headers.get_int::<u64>("Content-Length").is_some_and(|length| length < SMALL_MANIFEST) {
            let _ = resp.body.drain(SMALL_MANIFEST).await;
        }
        let headers = std::mem::take(&mut resp.headers);
        drop(resp);
        Box::pin(self.respond(client, headers, segments)).await
    }

    async fn respond(self: Arc<Self>, mut client: Request, headers: Headers, segments: Segments) -> Response {
        let first_page = match self.list(&mut client, &segments, None).await {
            Ok(page) => page,
            Err(mut error) => {
                if client.is_head() {
                    error.body = Body::empty();
                }
                return error;
            }
        };
        let complete = first_page.len() < self.listing_limit;
        let listed: u64 = first_page.iter().map(|segment| segment.bytes).sum();
        let mut resp = Response::new(200);
        resp.headers = headers;
        resp.headers.remove("Content-Length");
        resp.headers.remove("Content-Range");
        let range = match served_range(&client.headers, listed, complete) {
            ServedRange::Unsatisfiable => {
                let mut resp = Response::error(416).with_header("Accept-Ranges", "bytes");
                if complete {
                    resp.headers.insert("Content-Range", format!("bytes */{listed}"));
                }
                return resp;
            }
            ServedRange::Part(first, last) => {
                resp.headers.insert("Content-Length", listed.to_string());
                Some((first, last))
            }
            ServedRange::Whole => {
                client.headers.remove("Range");
                if complete {
                    resp.headers.insert("Content-Length", listed.to_string());
                }
                None
            }
        };
        if complete {
            resp.headers.insert("ETag", format!("\"{}\"", etag_of(&first_page)));
        }
        if client.method == Method::Get {
            let length = match range {
                Some((first, last)) => Some(last - first + 1),
                None => complete.then_some(listed),
            };
            let body = self.body(&client, segments, first_page, range, length);
            match body.validated().await {
                Ok(body) => resp.body = Body::stream(body),
                Err(refused) => return refused,
            }
        }
        conditional::finish_with_ranges(&client, resp, None)
    }

    fn body(
        self: &Arc<Self>,
        client: &Request,
        segments: Segments,
        first_page: Vec<ListedSegment>,
        range: Option<(u64, u64)>,
        length: Option<u64>,
    ) -> SegmentedBody {
        let fetcher = Fetcher {
            app: self.app.clone(),
            logger: self.ctx.logger.with_txn(&client.env.trans_id),
            clock: self.ctx.clock.clone(),
            source: "DLO",
            name: client.quoted_path(),
            max_get_time: self.limits.max_get_time,
        };
        let (first, last) = range.unwrap_or((0, u64::MAX));
        let listing = Box::new(SegmentListing {
            rate: SegmentRate::new(
                self.ctx.clock.clone(),
                self.limits.rate_limit_segments_per_sec,
                self.limits.rate_limit_after_segment,
            ),
            core: self.clone(),
            client: without_body(client),
            segments,
            page_is_full: first_page.len() >= self.listing_limit,
            page: first_page.into(),
            marker: None,
            position: 0,
            first,
            last,
        });
        SegmentedBody::new(fetcher, client, listing, length)
    }

    /// A page of the segments' names after `marker`, or the response that refused it.
    async fn list(
        &self,
        client: &mut Request,
        segments: &Segments,
        marker: Option<&str>,
    ) -> Result<Vec<ListedSegment>, Response> {
        let mut query = format!("prefix={}", quote(&segments.prefix, "/"));
        if let Some(marker) = marker {
            query.push_str(&format!("&marker={}", quote(marker, "/")));
        }
        let mut headers = Headers::new();
        if let Some(token) = client.headers.get("X-Auth-Token") {
            headers.insert("X-Auth-Token", token);
        }
        let path = format!("/{}/{}/{}", segments.version, segments.account, segments.container);
        let agent = "%(orig)s DLO MultipartGET";
        let req = make_subrequest(client, Method::Get, &path, &query, headers, agent, "DLO");
        let mut resp = self.app.call(req).await;
        if !resp.is_success() {
            return Err(resp);
        }
        let body = resp.body.collect(MAX_LISTING_BYTES).await.map_err(|_| Response::error(503))?;
        if body.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&body).map_err(|_| Response::error(500))
    }
}

/// Which objects are the segments.
struct Segments {
    version: String,
    account: String,
    container: String,
    prefix: String,
}

impl Segments {
    fn of(client: &Request, manifest: &str) -> Option<Self> {
        let (container, prefix) = manifest.split_once('/')?;
        let mut parts = client.split_path(2, 3, true).ok()?.into_iter();
        Some(Self {
            version: parts.next()??,
            account: parts.next()??,
            container: container.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

/// What of the object a request gets.
#[derive(Debug, PartialEq, Eq)]
enum ServedRange {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Unsatisfiable,
}

/// `listed` is the size of the segments on the first page, which are all if it is `complete`. More pages are not
/// fetched to find out whether a range can be satisfied: then the whole object is sent.
fn served_range(headers: &Headers, listed: u64, complete: bool) -> ServedRange {
    let Some(ranges) = headers.get("Range").and_then(range::parse).filter(|ranges| ranges.specs().len() == 1)
    else {
        return ServedRange::Whole;
    };
    let resolved = ranges.resolve(listed);
    // A range that ends within the page means the same in any longer object.
    let fixed = |&(_, end): &(u64, u64)| {
        ranges.resolve(u64::MAX).first().is_some_and(|&(_, e)| e == end && e < listed)
    };
    match resolved.first() {
        Some(&(first, end)) if complete || resolved.first().is_some_and(fixed) => {
            ServedRange::Part(first, end - 1)
        }
        None if complete => ServedRange::Unsatisfiable,
        _ => ServedRange::Whole,
    }
}

fn etag_of(segments: &[ListedSegment]) -> String {
    let mut etag = Md5::new();
    for segment in segments {
        let hash = segment.hash.as_str();
        let bare = hash.strip_prefix('"').and_then(|hash| hash.strip_suffix('"')).unwrap_or(hash);
        etag.update(bare.as_bytes());
    }
    etag.hexdigest()
}

/// The segments page by page, as far as the range goes.
struct SegmentListing {
    core: Arc<Core>,
    client: Request,
    rate: SegmentRate,
    segments: Segments,
    page: VecDeque<ListedSegment>,
    page_is_full: bool,
    /// The last name of a full page whose segments are all handed out.
    marker: Option<String>,
    /// Where the next segment begins.
    position: u64,
    first: u64,
    last: u64,
}

impl SegmentListing {
    async fn next_piece(&mut self) -> Option<Result<Piece, LargeObjectError>> {
        loop {
            if self.position > self.last {
                return None;
            }
            let Some(segment) = self.page.pop_front() else {
                let marker = self.marker.take()?;
                if let Err(error) = self.next_page(&marker).await {
                    return Some(Err(error));
                }
                continue;
            };
            if self.page.is_empty() && self.page_is_full {
                self.marker = Some(segment.name.clone());
            }
            let begin = self.position;
            self.position += segment.bytes;
            if self.first >= self.position {
                continue;
            }
            let first_byte = self.first.saturating_sub(begin);
            let last_byte = (self.last < self.position - 1).then(|| self.last - begin);
            let Segments { version, account, container, .. } = &self.segments;
            self.rate.wait().await;
            return Some(Ok(Piece::Object(ObjectPiece {
                path: format!("/{version}/{account}/{container}/{}", segment.name),
                // Neither is checked: the objects may have changed since they were listed.
                hash: None,
                bytes: None,
                first_byte,
                last_byte,
            })));
        }
    }

    async fn next_page(&mut self, marker: &str) -> Result<(), LargeObjectError> {
        match self.core.list(&mut self.client, &self.segments, Some(marker)).await {
            Ok(page) => {
                self.page_is_full = page.len() >= self.core.listing_limit;
                self.page = page.into();
                Ok(())
            }
            Err(resp) => Err(LargeObjectError::Broken(format!(
                "Got status {} listing container /{}/{}",
                resp.status.0, self.segments.account, self.segments.container
            ))),
        }
    }
}

impl Listing for SegmentListing {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Piece, LargeObjectError>>> {
        Box::pin(self.next_piece())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_name_a_container_and_a_prefix() {
        for good in ["c/p", "c/p/q", "c/%20"] {
            assert!(is_valid_manifest(good.as_bytes()), "{good}");
        }
        for bad in ["", "c", "c/", "/p", "c//p", "c/p?x", "c/p&x", "/c/p"] {
            assert!(!is_valid_manifest(bad.as_bytes()), "{bad}");
        }
    }

    fn range(value: &str, listed: u64, complete: bool) -> ServedRange {
        let mut headers = Headers::new();
        headers.insert("Range", value);
        served_range(&headers, listed, complete)
    }

    #[test]
    fn range_is_served_when_the_first_page_decides_it() {
        assert_eq!(range("bytes=2-5", 10, true), ServedRange::Part(2, 5));
        assert_eq!(range("bytes=2-50", 10, true), ServedRange::Part(2, 9));
        assert_eq!(range("bytes=-3", 10, true), ServedRange::Part(7, 9));
        assert_eq!(range("bytes=10-", 10, true), ServedRange::Unsatisfiable);
        assert_eq!(range("bytes=2-5", 10, false), ServedRange::Part(2, 5));
        assert_eq!(range("bytes=2-50", 10, false), ServedRange::Whole);
        assert_eq!(range("bytes=-3", 10, false), ServedRange::Whole);
        assert_eq!(range("bytes=20-30", 10, false), ServedRange::Whole);
        assert_eq!(range("bytes=1-2,4-5", 10, true), ServedRange::Whole);
        assert_eq!(served_range(&Headers::new(), 10, true), ServedRange::Whole);
    }

    use crate::middleware::testing::{FakeSwift, LISTING_LIMIT, request, send};

    fn filter(swift: &FakeSwift) -> SharedApp {
        Arc::new(DynamicLargeObject {
            core: Arc::new(Core {
                app: swift.app(),
                ctx: Context::builder("proxy-server").build(),
                limits: ReadLimits {
                    max_get_time: Duration::from_secs(60),
                    rate_limit_after_segment: 100,
                    rate_limit_segments_per_sec: 1,
                },
                listing_limit: LISTING_LIMIT,
            }),
        })
    }

    fn large_object(segments: usize) -> FakeSwift {
        let swift = FakeSwift::default();
        for i in 0..segments {
            swift.put(&format!("/v1/a/c/seg{i}"), format!("<{i}>"), &[]);
        }
        swift.put("/v1/a/m/o", "", &[("X-Object-Manifest", "c/s%65g"), ("Content-Type", "text/x")]);
        swift
    }

    #[tokio::test]
    async fn segments_follow_one_another() {
        let swift = large_object(3);
        let (status, headers, body) = send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &[])).await;
        assert_eq!((status, body.as_str()), (200, "<0><1><2>"));
        assert_eq!(headers.get_str("Content-Length"), Some("9"));
        assert_eq!(headers.get_str("Content-Type"), Some("text/x"));
        let hashes: String = ["<0>", "<1>", "<2>"]
            .iter()
            .map(|segment| common::digest::hex(&common::digest::md5(segment.as_bytes())))
            .collect();
        let etag = common::digest::hex(&common::digest::md5(hashes.as_bytes()));
        assert_eq!(headers.get_str("ETag"), Some(format!("\"{etag}\"").as_str()));
        let get = "GET /v1/a/c/seg0?multipart-manifest=get";
        assert!(swift.take_seen().iter().any(|seen| seen == get));
    }

    #[tokio::test]
    async fn long_listings_are_read_page_by_page_and_give_no_etag() {
        let swift = large_object(LISTING_LIMIT * 2 + 1);
        let (status, headers, body) = send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &[])).await;
        assert_eq!((status, body.as_str()), (200, "<0><1><2><3><4><5><6><7><8>"));
        assert_eq!(headers.get_str("Content-Length"), None);
    }

    #[tokio::test]
    async fn range_reads_only_the_segments_it_needs() {
        let swift = large_object(3);
        let range = [("Range", "bytes=4-6")];
        let (status, headers, body) = send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &range)).await;
        assert_eq!((status, body.as_str()), (206, "1><"));
        assert_eq!(headers.get_str("Content-Range"), Some("bytes 4-6/9"));
        let seen = swift.take_seen().join("\n");
        assert!(!seen.contains("seg0") && seen.contains("seg1?multipart-manifest=get bytes=1-"), "{seen}");
        assert!(seen.contains("seg2?multipart-manifest=get bytes=0-0"), "{seen}");
    }

    #[tokio::test]
    async fn head_and_conditions_know_the_whole() {
        let swift = large_object(2);
        let (status, headers, _) = send(&filter(&swift), request(Method::Head, "/v1/a/m/o", &[])).await;
        assert_eq!((status, headers.get_str("Content-Length")), (200, Some("6")));
        let etag = headers.get_str("ETag").unwrap().to_owned();
        let condition = [("If-None-Match", etag.as_str())];
        let (status, _, body) = send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &condition)).await;
        assert_eq!((status, body.as_str()), (304, ""));
    }

    #[tokio::test]
    async fn unsatisfiable_range_is_refused_before_anything_is_read() {
        let swift = large_object(2);
        let range = [("Range", "bytes=6-")];
        let (status, headers, _) = send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &range)).await;
        assert_eq!((status, headers.get_str("Content-Range")), (416, Some("bytes */6")));
    }

    #[tokio::test]
    async fn failure_of_the_first_segment_is_told_by_the_status() {
        let swift = large_object(2);
        swift.fail("/v1/a/c/seg0", 404);
        assert_eq!(send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &[])).await.0, 409);
        swift.fail("/v1/a/c/seg0", 503);
        assert_eq!(send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &[])).await.0, 503);
    }

    #[tokio::test]
    async fn failure_of_a_later_segment_breaks_the_body_off() {
        let swift = large_object(2);
        swift.fail("/v1/a/c/seg1", 404);
        let (status, _, body) = send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &[])).await;
        assert_eq!(status, 200);
        assert!(body.starts_with("<0>[While processing manifest /v1/a/m/o, got 404"), "{body}");
    }

    #[tokio::test]
    async fn empty_prefix_is_an_empty_object() {
        let swift = large_object(0);
        let (status, headers, body) = send(&filter(&swift), request(Method::Get, "/v1/a/m/o", &[])).await;
        assert_eq!((status, headers.get_str("Content-Length"), body.as_str()), (200, Some("0"), ""));
    }

    #[tokio::test]
    async fn manifest_itself_is_given_when_asked_for() {
        let swift = large_object(1);
        let req = request(Method::Get, "/v1/a/m/o?multipart-manifest=get", &[]);
        let (status, headers, body) = send(&filter(&swift), req).await;
        assert_eq!((status, headers.contains("X-Object-Manifest"), body.as_str()), (200, true, ""));
    }

    #[tokio::test]
    async fn bad_manifest_header_is_refused() {
        let swift = FakeSwift::default();
        let req = request(Method::Put, "/v1/a/m/o", &[("X-Object-Manifest", "c//p")]);
        let (status, _, body) = send(&filter(&swift), req).await;
        assert_eq!(
            (status, body.as_str()),
            (400, "X-Object-Manifest must be in the format container/prefix")
        );
    }
}
