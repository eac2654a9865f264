//! Conditional requests and ranges by the rules of swob's `conditional_response`.
//!
//! The order is swob's: If-None-Match (304), If-Match (412), If-Match: * of what does not exist (412), If-Modified-Since
//! (304), If-Unmodified-Since (412); then, for a GET, Range. Headers of a 304 or 412 are those of the full response but for
//! a Content-Length of 0. A range over an empty resource is answered with all of it and 200.

use std::collections::VecDeque;

use bytes::Bytes;
use common::timestamp::Timestamp;

use super::range::{self, Ranges};
use super::{Body, BodyError, BodyStream, BoxFuture, Headers, Request, Response, Status};
use crate::rng::Rng;

/// What a request asks of the response.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    if_match: Option<Match>,
    if_none_match: Option<Match>,
    if_modified_since: Option<u64>,
    if_unmodified_since: Option<u64>,
    pub range: Option<Ranges>,
    head: bool,
}

/// The tags of an If-Match or If-None-Match header.
#[derive(Clone, Debug)]
pub struct Match(Vec<Vec<u8>>);

impl Match {
    pub fn parse(value: &[u8]) -> Self {
        let tags = value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|tag| !tag.is_empty());
        Self(tags.map(|tag| unquote(tag).to_vec()).collect())
    }

    pub fn matches(&self, etag: &[u8]) -> bool {
        self.matches_any() || self.0.iter().any(|tag| tag == unquote(etag))
    }

    /// Whether it is, or has, `*`.
    pub fn matches_any(&self) -> bool {
        self.0.iter().any(|tag| tag == b"*")
    }
}

fn unquote(tag: &[u8]) -> &[u8] {
    match tag {
        [b'"', inner @ .., b'"'] => inner,
        _ => tag,
    }
}

impl Conditions {
    pub fn of(req: &Request) -> Self {
        Self::from_headers(&req.headers, req.is_head())
    }

    pub fn from_headers(headers: &Headers, head: bool) -> Self {
        let date = |name| headers.get(name).and_then(Timestamp::parse_http_date);
        Self {
            if_match: headers.get("If-Match").map(Match::parse),
            if_none_match: headers.get("If-None-Match").map(Match::parse),
            if_modified_since: date("If-Modified-Since"),
            if_unmodified_since: date("If-Unmodified-Since"),
            range: headers.get("Range").and_then(range::parse),
            head,
        }
    }

    /// 304 or 412, or `None` if the response of this status may go out. The etag is without quotes.
    pub fn evaluate(
        &self,
        status: Status,
        etag: Option<&[u8]>,
        last_modified: Option<u64>,
    ) -> Option<Status> {
        let etag = etag.filter(|etag| !etag.is_empty());
        let matches = |tags: &Option<Match>| Some(tags.as_ref()?.matches(etag?));
        let after = |since: Option<u64>| Some(last_modified? > since?);
        if matches(&self.if_none_match) == Some(true) {
            Some(Status::NOT_MODIFIED)
        } else if matches(&self.if_match) == Some(false)
            || (status == Status::NOT_FOUND && self.if_match.as_ref().is_some_and(Match::matches_any))
        {
            Some(Status::PRECONDITION_FAILED)
        } else if after(self.if_modified_since) == Some(false) {
            Some(Status::NOT_MODIFIED)
        } else if after(self.if_unmodified_since) == Some(true) {
            Some(Status::PRECONDITION_FAILED)
        } else {
            None
        }
    }
}

/// A resource of which parts can be read.
pub trait RangeSource: Send + 'static {
    /// The bytes from `start` up to, not including, `end`.
    fn range(&mut self, start: u64, end: u64) -> Body;
}

impl RangeSource for Bytes {
    fn range(&mut self, start: u64, end: u64) -> Body {
        let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(self.len());
        self.slice(at(start)..at(end)).into()
    }
}

#[derive(Default)]
pub struct ConditionalOptions {
    /// The etag that conditions are about, if that is not the response's own (`conditional_etag`).
    pub etag: Option<String>,
    /// Gives the parts, when the body is a stream. Without it such a body is sent whole.
    pub source: Option<Box<dyn RangeSource>>,
    /// Of a `multipart/byteranges` body; random if not set.
    pub boundary: Option<String>,
}

impl ConditionalOptions {
    pub fn with_source(source: impl RangeSource) -> Self {
        Self { source: Some(Box::new(source)), ..Self::default() }
    }
}

/// The etag under the first name of X-Backend-Etag-Is-At that the metadata has.
pub fn resolve_etag_is_at<'a>(
    headers: &Headers,
    metadata: impl FnMut(&str) -> Option<&'a str>,
) -> Option<&'a str> {
    let names = headers.get_str("X-Backend-Etag-Is-At")?;
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).find_map(metadata)
}

impl Response {
    /// Turns this full response into what the request's conditions and ranges make of it. The length of the whole
    /// must be known: a Content-Length, or the body's own.
    pub fn make_conditional(&mut self, req: &Request, options: ConditionalOptions) {
        self.apply_conditions(&Conditions::of(req), options);
    }

    /// As [`Response::make_conditional`], when the request is gone already.
    pub fn apply_conditions(&mut self, conditions: &Conditions, options: ConditionalOptions) {
        let own_etag = || {
            let etag = self.headers.get("Etag")?;
            Some(etag.iter().copied().filter(|&b| b != b'"').collect())
        };
        let etag: Option<Vec<u8>> = options.etag.clone().map(String::into_bytes).or_else(own_etag);
        let last_modified = self.headers.get("Last-Modified").and_then(Timestamp::parse_http_date);
        if let Some(status) = conditions.evaluate(self.status, etag.as_deref(), last_modified) {
            self.status = status;
            self.headers.insert("Content-Length", 0u64);
            self.body = Body::empty();
            return;
        }
        let Some(ranges) = &conditions.range else { return };
        let whole = self.is_success() && !self.headers.contains("Content-Range");
        if let Some(length) = self.content_length()
            && whole
            && !conditions.head
        {
            self.apply_ranges(&ranges.resolve(length), length, options);
        }
    }

    fn apply_ranges(&mut self, ranges: &[(u64, u64)], length: u64, options: ConditionalOptions) {
        if ranges.is_empty() {
            let error = Self::error(416);
            self.status = error.status;
            self.headers.insert("Content-Range", format_args!("bytes */{length}"));
            self.headers.insert("Content-Length", error.body.content_length().unwrap_or_default());
            self.body = error.body;
            return;
        }
        let source = match (options.source, self.body.as_bytes()) {
            (Some(source), _) => source,
            (None, Some(bytes)) => Box::new(Bytes::copy_from_slice(bytes)) as Box<dyn RangeSource>,
            (None, None) => return,
        };
        if length == 0 {
            return;
        }
        self.status = Status::PARTIAL_CONTENT;
        match *ranges {
            [(start, end)] => self.set_one_range(source, start, end, length),
            _ => {
                let boundary = options.boundary.unwrap_or_else(random_boundary);
                self.set_many_ranges(source, ranges, length, &boundary);
            }
        }
    }

    fn set_one_range(&mut self, mut source: Box<dyn RangeSource>, start: u64, end: u64, length: u64) {
        self.headers.insert("Content-Range", range::content_range(start, end, length));
        self.headers.insert("Content-Length", end - start);
        self.body = source.range(start, end);
    }

    fn set_many_ranges(
        &mut self,
        source: Box<dyn RangeSource>,
        ranges: &[(u64, u64)],
        size: u64,
        boundary: &str,
    ) {
        let content_type = Bytes::copy_from_slice(self.headers.get("Content-Type").unwrap_or_default());
        let length = range::multipart_length(boundary, &content_type, ranges, size);
        self.headers.insert("Content-Type", format_args!("multipart/byteranges;boundary={boundary}"));
        self.headers.insert("Content-Length", length);
        self.headers.remove("Content-Range");
        let parts = Multipart {
            source,
            content_type,
            boundary: boundary.to_owned(),
            ranges: ranges.iter().copied().collect(),
            size,
            part: None,
            ended: false,
        };
        self.body = Body::stream(parts).with_length(length);
    }
}

fn random_boundary() -> String {
    let rng = Rng::from_system();
    format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64())
}

/// The body of a response of several ranges: one part after the other.
struct Multipart {
    source: Box<dyn RangeSource>,
    content_type: Bytes,
    boundary: String,
    ranges: VecDeque<(u64, u64)>,
    size: u64,
    /// The part that is being read and the bytes it still owes.
    part: Option<(Body, u64)>,
    ended: bool,
}

impl Multipart {
    async fn next_piece(&mut self) -> Result<Option<Bytes>, BodyError> {
        if let Some((body, left)) = &mut self.part {
            if let Some(piece) = body.next().await.transpose()? {
                *left = left.checked_sub(piece.len() as u64).ok_or(BodyError::TooLong)?;
                return Ok(Some(piece));
            }
            if *left > 0 {
                return Err(BodyError::Other("a range is shorter than promised".to_owned()));
            }
            self.part = None;
            return Ok(Some(Bytes::from_static(b"\r\n")));
        }
        if let Some((start, end)) = self.ranges.pop_front() {
            self.part = Some((self.source.range(start, end), end - start));
            return Ok(Some(
                range::part_head(&self.boundary, &self.content_type, start, end, self.size).into(),
            ));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Ok(None);
        }
        Ok(Some(range::multipart_end(&self.boundary).into()))
    }
}

impl BodyStream for Multipart {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move { self.next_piece().await.transpose() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Method;

    const BOUNDARY: &str = "0123456789abcdef0123456789abcdef";
    const BODY: &[u8] = b"0123456789abcdefghij";

    fn full(path: &str) -> Response {
        match path {
            "/404" => Response::error(404),
            "/empty" => Response::new(200).with_header("Etag", "\"e\"").with_header("Content-Length", 0),
            _ => Response::new(200)
                .with_header("Content-Type", "text/x")
                .with_header("Etag", "\"abc\"")
                .with_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
                .with_body(BODY),
        }
    }

    async fn show(mut resp: Response, head: bool) -> String {
        let mut lines = vec![resp.status.0.to_string()];
        for name in ["Content-Type", "Content-Length", "Content-Range"] {
            let value = match (name, resp.headers.get_str(name)) {
                ("Content-Length", None) if !head => resp.body.content_length().unwrap().to_string(),
                (_, value) => value.unwrap_or("-").to_owned(),
            };
            lines.push(value);
        }
        let body = if head { Bytes::new() } else { resp.body.collect(1 << 20).await.unwrap() };
        lines.push(String::from_utf8(body.to_vec()).unwrap().replace("\r\n", "~"));
        lines.join("|")
    }

    /// Each line: method, path, headers joined by `|`, and what swob answers: status, three headers, body (`~` is CRLF).
    async fn check(source: bool) {
        let golden = include_str!("../../tests/golden/http/conditional.tsv");
        let mut seen = 0;
        for line in golden.lines() {
            let [method, path, headers, want] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let mut req = Request::new(Method::parse(method), path);
            for (name, value) in headers.split('|').filter_map(|header| header.split_once(": ")) {
                req.headers.append(name, value);
            }
            let mut resp = full(path);
            let mut options =
                ConditionalOptions { boundary: Some(BOUNDARY.to_owned()), ..Default::default() };
            if source && path == "/o" {
                resp.headers.insert("Content-Length", BODY.len());
                resp.body = Body::driven(|tx| async move { tx.send(BODY).await.unwrap() });
                options.source = Some(Box::new(Bytes::from_static(BODY)));
            }
            resp.make_conditional(&req, options);
            let got = show(resp, req.is_head()).await;
            let (got, want) = match req.is_head() {
                // Before the head is written a HEAD's length may be the body's.
                true => {
                    (got.split('|').next().unwrap().to_owned(), want.split('|').next().unwrap().to_owned())
                }
                false => (got, want.to_owned()),
            };
            assert_eq!(got, want, "{line}");
            seen += 1;
        }
        assert!(seen > 30);
    }

    #[tokio::test]
    async fn bodies_in_memory_answer_as_swob() {
        check(false).await;
    }

    #[tokio::test]
    async fn streams_answer_as_swob() {
        check(true).await;
    }

    #[test]
    fn the_etag_of_conditions_may_be_another() {
        let req = Request::new(Method::Get, "/o").with_header("If-Match", "\"client\"");
        let mut resp = full("/o");
        resp.make_conditional(&req, ConditionalOptions { etag: Some("client".into()), ..Default::default() });
        assert_eq!(resp.status, Status::OK);
        let mut resp = full("/o");
        resp.make_conditional(&req, ConditionalOptions::default());
        assert_eq!(resp.status, Status::PRECONDITION_FAILED);
    }

    #[test]
    fn the_leftmost_etag_that_exists_is_the_one() {
        let headers = Headers::from([("X-Backend-Etag-Is-At", "X-A, X-B,X-C")]);
        let find = |name: &str| match name {
            "X-B" => Some("b"),
            "X-C" => Some("c"),
            _ => None,
        };
        assert_eq!(resolve_etag_is_at(&headers, find), Some("b"));
        assert_eq!(resolve_etag_is_at(&Headers::new(), find), None);
    }

    #[tokio::test]
    async fn a_range_that_is_cut_short_is_an_error() {
        struct Short;
        impl RangeSource for Short {
            fn range(&mut self, _start: u64, _end: u64) -> Body {
                Body::from("x")
            }
        }
        let req = Request::new(Method::Get, "/o").with_header("Range", "bytes=0-3,6-8");
        let mut resp = full("/o");
        resp.make_conditional(&req, ConditionalOptions::with_source(Short));
        assert!(resp.body.collect(1000).await.is_err());
    }
}
