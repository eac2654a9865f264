//! Requests and responses as handlers see them: what `swift.common.swob` is to Swift.
//!
//! A [`Request`] is passed down a pipeline by value; what filters tell one another in the WSGI environ travels in its
//! [`Environ`], and what an app tells the filters around it in the response's [`Extensions`].

use std::any::{Any, TypeId};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use super::{Body, Headers, Peer};

/// What Python's `quote` leaves alone, with `/` safe.
const QUOTE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'_').remove(b'.').remove(b'-').remove(b'~');

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    Head,
    Put,
    Post,
    Delete,
    Options,
    Copy,
    Replicate,
    Ssync,
    Update,
    Other(String),
}

impl Method {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Copy => "COPY",
            Self::Replicate => "REPLICATE",
            Self::Ssync => "SSYNC",
            Self::Update => "UPDATE",
            Self::Other(name) => name,
        }
    }

    /// Methods are compared with their case, as in Swift: `get` is another method than `GET`.
    pub fn parse(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "PUT" => Self::Put,
            "POST" => Self::Post,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            "COPY" => Self::Copy,
            "REPLICATE" => Self::Replicate,
            "SSYNC" => Self::Ssync,
            "UPDATE" => Self::Update,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(pub u16);

impl Status {
    pub const CONTINUE: Self = Self(100);
    pub const OK: Self = Self(200);
    pub const CREATED: Self = Self(201);
    pub const ACCEPTED: Self = Self(202);
    pub const NO_CONTENT: Self = Self(204);
    pub const PARTIAL_CONTENT: Self = Self(206);
    pub const MOVED_PERMANENTLY: Self = Self(301);
    pub const FOUND: Self = Self(302);
    pub const SEE_OTHER: Self = Self(303);
    pub const NOT_MODIFIED: Self = Self(304);
    pub const TEMPORARY_REDIRECT: Self = Self(307);
    pub const BAD_REQUEST: Self = Self(400);
    pub const UNAUTHORIZED: Self = Self(401);
    pub const FORBIDDEN: Self = Self(403);
    pub const NOT_FOUND: Self = Self(404);
    pub const METHOD_NOT_ALLOWED: Self = Self(405);
    pub const NOT_ACCEPTABLE: Self = Self(406);
    pub const REQUEST_TIMEOUT: Self = Self(408);
    pub const CONFLICT: Self = Self(409);
    pub const GONE: Self = Self(410);
    pub const LENGTH_REQUIRED: Self = Self(411);
    pub const PRECONDITION_FAILED: Self = Self(412);
    pub const REQUEST_ENTITY_TOO_LARGE: Self = Self(413);
    pub const REQUEST_URI_TOO_LONG: Self = Self(414);
    pub const UNSUPPORTED_MEDIA_TYPE: Self = Self(415);
    pub const REQUESTED_RANGE_NOT_SATISFIABLE: Self = Self(416);
    pub const EXPECTATION_FAILED: Self = Self(417);
    pub const UNPROCESSABLE_ENTITY: Self = Self(422);
    pub const CLIENT_DISCONNECT: Self = Self(499);
    pub const INTERNAL_SERVER_ERROR: Self = Self(500);
    pub const NOT_IMPLEMENTED: Self = Self(501);
    pub const BAD_GATEWAY: Self = Self(502);
    pub const SERVICE_UNAVAILABLE: Self = Self(503);
    pub const GATEWAY_TIMEOUT: Self = Self(504);
    pub const HTTP_VERSION_NOT_SUPPORTED: Self = Self(505);
    pub const INSUFFICIENT_STORAGE: Self = Self(507);
    pub const TOO_MANY_BACKEND_REQUESTS: Self = Self(529);

    /// The reason on the status line, Swift's where Swift has one.
    pub fn reason(self) -> &'static str {
        self.words().0
    }

    /// The sentence in the default body; empty if such a status has no default body.
    pub fn explanation(self) -> &'static str {
        self.words().1
    }

    pub fn is_informational(self) -> bool {
        self.0 / 100 == 1
    }

    pub fn is_success(self) -> bool {
        self.0 / 100 == 2
    }

    pub fn is_redirection(self) -> bool {
        self.0 / 100 == 3
    }

    pub fn is_client_error(self) -> bool {
        self.0 / 100 == 4
    }

    pub fn is_server_error(self) -> bool {
        self.0 / 100 == 5
    }

    /// Whether a response of this status never has a body, whatever the method.
    pub fn is_bodyless(self) -> bool {
        self.is_informational() || matches!(self.0, 204 | 304)
    }

    fn words(self) -> (&'static str, &'static str) {
        match self.0 {
            100 => ("Continue", ""),
            200 => ("OK", ""),
            201 => ("Created", ""),
            202 => ("Accepted", "The request is accepted for processing."),
            203 => ("Non-Authoritative Information", ""),
            204 => ("No Content", ""),
            205 => ("Reset Content", ""),
            206 => ("Partial Content", ""),
            301 => ("Moved Permanently", "The resource has moved permanently."),
            302 => ("Found", "The resource has moved temporarily."),
            303 => ("See Other", "The response to the request can be found under a different URI."),
            304 => ("Not Modified", ""),
            307 => ("Temporary Redirect", "The resource has moved temporarily."),
            400 => (
                "Bad Request",
                "The server could not comply with the request since it is either malformed or otherwise incorrect.",
            ),
            401 => (
                "Unauthorized",
                "This server could not verify that you are authorized to access the document you requested.",
            ),
            402 => ("Payment Required", "Access was denied for financial reasons."),
            403 => ("Forbidden", "Access was denied to this resource."),
            404 => ("Not Found", "The resource could not be found."),
            405 => ("Method Not Allowed", "The method is not allowed for this resource."),
            406 => {
                ("Not Acceptable", "The resource is not available in a format acceptable to your browser.")
            }
            408 => (
                "Request Timeout",
                "The server has waited too long for the request to be sent by the client.",
            ),
            409 => ("Conflict", "There was a conflict when trying to complete your request."),
            410 => ("Gone", "This resource is no longer available."),
            411 => ("Length Required", "Content-Length header required."),
            412 => ("Precondition Failed", "A precondition for this request was not met."),
            413 => ("Request Entity Too Large", "The body of your request was too large for this server."),
            414 => ("Request URI Too Long", "The request URI was too long for this server."),
            415 => ("Unsupported Media Type", "The request media type is not supported by this server."),
            416 => ("Requested Range Not Satisfiable", "The Range requested is not available."),
            417 => ("Expectation Failed", "Expectation failed."),
            422 => ("Unprocessable Entity", "Unable to process the contained instructions"),
            431 => ("Request Header Fields Too Large", ""),
            498 => ("Rate Limited", ""),
            499 => ("Client Disconnect", "The client was disconnected during request."),
            500 => (
                "Internal Error",
                "The server has either erred or is incapable of performing the requested operation.",
            ),
            501 => ("Not Implemented", "The requested method is not implemented by this server."),
            502 => ("Bad Gateway", "Bad gateway."),
            503 => (
                "Service Unavailable",
                "The server is currently unavailable. Please try again at a later time.",
            ),
            504 => ("Gateway Timeout", "A timeout has occurred speaking to a backend server."),
            505 => ("HTTP Version Not Supported", ""),
            507 => {
                ("Insufficient Storage", "There was not enough space to save the resource. Drive: %(drive)s")
            }
            529 => (
                "Too Many Backend Requests",
                "The server is incapable of performing the requested operation due to too many requests. Slow down.",
            ),
            _ => ("Unknown", ""),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.reason())
    }
}

impl From<u16> for Status {
    fn from(code: u16) -> Self {
        Self(code)
    }
}

/// Values by their type: at most one of each. Cloning shares the values.
#[derive(Clone, Default)]
pub struct Extensions {
    values: Vec<(TypeId, Arc<dyn Any + Send + Sync>)>,
}

impl Extensions {
    pub fn get<T: Clone + Send + Sync + 'static>(&self) -> Option<&T> {
        let (_, value) = self.values.iter().find(|(id, _)| *id == TypeId::of::<T>())?;
        value.downcast_ref()
    }

    pub fn insert<T: Clone + Send + Sync + 'static>(&mut self, value: T) {
        let id = TypeId::of::<T>();
        match self.values.iter_mut().find(|(other, _)| *other == id) {
            Some(slot) => slot.1 = Arc::new(value),
            None => self.values.push((id, Arc::new(value))),
        }
    }

    /// Takes over a value of another request, if that has one.
    pub fn share<T: Clone + Send + Sync + 'static>(&mut self, from: &Extensions) {
        let id = TypeId::of::<T>();
        if let Some(shared) = from.values.iter().find(|(other, _)| *other == id) {
            self.values.retain(|(other, _)| *other != id);
            self.values.push(shared.clone());
        }
    }

    pub fn remove<T: Clone + Send + Sync + 'static>(&mut self) -> Option<T> {
        let index = self.values.iter().position(|(id, _)| *id == TypeId::of::<T>())?;
        self.values.swap_remove(index).1.downcast_ref().cloned()
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extensions({})", self.values.len())
    }
}

/// What travels with a request besides HTTP: what WSGI environ keys are in Swift.
#[derive(Clone, Debug, Default)]
pub struct Environ {
    pub trans_id: String,
    pub remote_addr: Option<SocketAddr>,
    pub local_addr: Option<SocketAddr>,
    pub start: Option<Instant>,
    /// `swift.source`: which filter made a subrequest, for the log.
    pub source: Option<&'static str>,
    /// Whether the client spoke TLS, to us or to a terminator that told us by the PROXY protocol.
    pub https: bool,
    /// The connection it came on, to see whether the client is still there.
    pub peer: Option<Peer>,
    ext: Extensions,
}

impl Environ {
    pub fn get<T: Clone + Send + Sync + 'static>(&self) -> Option<&T> {
        self.ext.get()
    }

    pub fn insert<T: Clone + Send + Sync + 'static>(&mut self, value: T) {
        self.ext.insert(value);
    }

    pub fn remove<T: Clone + Send + Sync + 'static>(&mut self) -> Option<T> {
        self.ext.remove()
    }

    /// Takes over a value of another request, if that has one.
    pub fn share<T: Clone + Send + Sync + 'static>(&mut self, from: &Environ) {
        self.ext.share::<T>(&from.ext);
    }
}

#[derive(Debug)]
pub struct Request {
    pub method: Method,
    /// Percent-decoded; lossy when `path_is_utf8` is false.
    pub path: String,
    pub path_is_utf8: bool,
    /// The target as it came: path and query, undecoded.
    pub raw_target: Bytes,
    /// What follows the first `?`, undecoded.
    pub query: String,
    pub http_1_0: bool,
    pub headers: Headers,
    pub body: Body,
    pub env: Environ,
}

impl Request {
    /// A request to a decoded path; a query is set with [`Request::with_query`].
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        let path = path.into();
        let raw_target = Bytes::from(quote(&path));
        Self {
            method,
            path,
            path_is_utf8: true,
            raw_target,
            query: String::new(),
            http_1_0: false,
            headers: Headers::new(),
            body: Body::empty(),
            env: Environ::default(),
        }
    }

    /// A request to a target as it stands on the wire: quoted path and query.
    pub fn from_target(method: Method, target: Bytes) -> Self {
        let (path, query) = match memchr::memchr(b'?', &target) {
            Some(mark) => (&target[..mark], &target[mark + 1..]),
            None => (&target[..], &[][..]),
        };
        let (path, path_is_utf8) = match String::from_utf8(percent_decode(path).collect()) {
            Ok(path) => (path, true),
            Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), false),
        };
        let query = String::from_utf8_lossy(query).into_owned();
        Self { path, path_is_utf8, query, raw_target: target, ..Self::new(method, String::new()) }
    }

    pub fn with_header(mut self, name: impl AsRef<[u8]>, value: impl super::HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub fn with_body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub fn with_query(mut self, query: impl Into<String>) -> Self {
        self.query = query.into();
        self.raw_target = Bytes::from(self.path_qs());
        self
    }

    /// Another decoded path for this request; the query stays.
    pub fn set_path(&mut self, path: impl Into<String>) {
        self.path = path.into();
        self.path_is_utf8 = true;
        self.raw_target = Bytes::from(self.path_qs());
    }

    /// A request of our own on behalf of this one: same environ, no headers, no body.
    pub fn subrequest(&self, method: Method, path: impl Into<String>) -> Self {
        Self { env: self.env.clone(), ..Self::new(method, path) }
    }

    /// The query's parameters, decoded, in their order. What is not UTF-8 is replaced.
    pub fn params(&self) -> Vec<(String, String)> {
        let text = |bytes: Vec<u8>| match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        self.params_raw().map(|(name, value)| (text(name), text(value))).collect()
    }

    /// A parameter of the query, decoded; the last one if it is repeated.
    pub fn param(&self, name: &str) -> Option<String> {
        let value = self.param_bytes(name)?;
        Some(String::from_utf8(value).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// As [`Request::param`], for who must refuse what is not UTF-8.
    pub fn param_bytes(&self, name: &str) -> Option<Vec<u8>> {
        if self.query.is_empty() {
            return None;
        }
        self.params_raw().filter(|(other, _)| other == name.as_bytes()).last().map(|(_, value)| value)
    }

    fn params_raw(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + '_ {
        // The raw target, not the lossy `query`: the bytes matter.
        let query = match memchr::memchr(b'?', &self.raw_target) {
            Some(mark) if !self.query.is_empty() => &self.raw_target[mark + 1..],
            _ => self.query.as_bytes(),
        };
        query.split(|&b| b == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
            let mut halves = pair.splitn(2, |&b| b == b'=');
            let mut half = || unquote_plus(halves.next().unwrap_or_default());
            (half(), half())
        })
    }

    /// Splits the path into at most `max` segments of which at least `min` exist and are not empty, by the rules of
    /// Swift's `split_path`. With `rest_with_last` the last segment takes all that follows it, slashes included.
    #[allow(clippy::result_unit_err)]
    pub fn split_path(
        &self,
        min: usize,
        max: usize,
        rest_with_last: bool,
    ) -> Result<Vec<Option<String>>, ()> {
        split_path(&self.path, min, max, rest_with_last)
    }

    /// The path as Swift quotes it.
    pub fn quoted_path(&self) -> String {
        if self.path_is_utf8 {
            return quote(&self.path);
        }
        let raw = self.raw_target.split(|&b| b == b'?').next().unwrap_or_default();
        percent_encoding::percent_encode(&percent_decode(raw).collect::<Vec<u8>>(), QUOTE).to_string()
    }

    /// The quoted path and the query.
    pub fn path_qs(&self) -> String {
        let mut target = self.quoted_path();
        if !self.query.is_empty() {
            target.push('?');
            target.push_str(&self.query);
        }
        target
    }

    pub fn trans_id(&self) -> &str {
        &self.env.trans_id
    }

    /// `scheme://host[:port]` as the client named us, the default port left out.
    pub fn host_url(&self) -> String {
        let (scheme, port) = if self.env.https { ("https", ":443") } else { ("http", ":80") };
        let host = match (self.headers.get_str("Host"), self.env.local_addr) {
            (Some(host), _) => host.to_owned(),
            (None, Some(addr)) => addr.to_string(),
            (None, None) => "localhost".to_owned(),
        };
        format!("{scheme}://{}", host.strip_suffix(port).unwrap_or(&host))
    }

    /// `METHOD url`, what Swift sends as the Referer of backend requests.
    pub fn as_referer(&self) -> String {
        format!("{} {}{}", self.method, self.host_url(), self.path_qs())
    }

    pub fn is_head(&self) -> bool {
        self.method == Method::Head
    }
}

/// See [`Request::split_path`].
#[allow(clippy::result_unit_err)]
pub fn split_path(
    path: &str,
    min: usize,
    max: usize,
    rest_with_last: bool,
) -> Result<Vec<Option<String>>, ()> {
    let max = max.max(min);
    // One more field when nothing may follow, to see a trailing slash.
    let fields: Vec<&str> = path.splitn(max + if rest_with_last { 1 } else { 2 }, '/').collect();
    let (first, segments) = fields.split_first().ok_or(())?;
    let trailing = segments.get(max).is_some_and(|rest| !rest.is_empty());
    if !first.is_empty() || segments.len() < min || trailing || segments[..min].contains(&"") {
        return Err(());
    }
    let segments = &segments[..segments.len().min(max)];
    let inner = segments.len().saturating_sub(1);
    if segments[..inner].contains(&"") {
        return Err(());
    }
    let mut split: Vec<_> = segments.iter().map(|&segment| Some(segment.to_owned())).collect();
    split.resize(max, None);
    Ok(split)
}

fn quote(path: &str) -> String {
    utf8_percent_encode(path, QUOTE).to_string()
}

fn unquote_plus(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text.iter().map(|&b| if b == b'+' { b' ' } else { b }).collect();
    percent_decode(&spaced).collect()
}

#[derive(Debug)]
pub struct Response {
    pub status: Status,
    pub headers: Headers,
    pub body: Body,
    /// Close the connection after this response.
    pub close: bool,
    /// Write header names as they stand instead of in title case (s3api: clients want `ETag`).
    pub preserve_header_case: bool,
    /// What the app tells the filters around it.
    pub ext: Extensions,
}

impl Response {
    const HTML: &'static str = "text/html; charset=UTF-8";

    /// An empty response with the Content-Type that swob gives by default. Drop or replace the header as needed.
    pub fn new(status: impl Into<Status>) -> Self {
        let mut headers = Headers::with_capacity(12, 512);
        headers.append("Content-Type", Self::HTML);
        Self {
            status: status.into(),
            headers,
            body: Body::empty(),
            close: false,
            preserve_header_case: false,
            ext: Extensions::default(),
        }
    }

    /// A `text/plain` body.
    pub fn text(status: impl Into<Status>, body: impl Into<Body>) -> Self {
        Self::new(status).with_header("Content-Type", "text/plain").with_body(body)
    }

    /// A body of swob's default Content-Type, `text/html; charset=UTF-8`.
    pub fn html(status: impl Into<Status>, body: impl Into<Body>) -> Self {
        Self::new(status).with_body(body)
    }

    /// A response with Swift's default body for its status, if it has one.
    pub fn error(status: impl Into<Status>) -> Self {
        let status = status.into();
        match status.explanation() {
            "" => Self::new(status),
            text => Self::html(status, default_body(status, &text.replace("%(drive)s", "unknown"))),
        }
    }

    /// 507 naming the drive.
    pub fn insufficient_storage(drive: &str) -> Self {
        let status = Status::INSUFFICIENT_STORAGE;
        Self::html(status, default_body(status, &status.explanation().replace("%(drive)s", drive)))
    }

    /// 401 whose realm is the account of the path, as swob sets it.
    pub fn unauthorized(req: &Request) -> Self {
        let realm = match split_path(&req.path, 2, 3, true).map(|parts| parts.into_iter().nth(1)) {
            Ok(Some(Some(realm))) if realm != "v1.0" && realm != "auth" => quote(&realm),
            _ => "unknown".to_owned(),
        };
        Self::error(401).with_header("Www-Authenticate", format!("Swift realm=\"{realm}\""))
    }

    pub fn with_header(mut self, name: impl AsRef<[u8]>, value: impl super::HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub fn with_body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// The Content-Length header if there is one (a HEAD has it without a body), else the body's length.
    pub fn content_length(&self) -> Option<u64> {
        self.headers.get_int("Content-Length").or_else(|| self.body.content_length())
    }

    /// Makes a Location that begins with `/` absolute, as swob does unless told to leave it.
    pub fn make_location_absolute(&mut self, host_url: &str) {
        if let Some(location) = self.headers.get_str("Location").filter(|location| location.starts_with('/'))
        {
            let absolute = format!("{host_url}{location}");
            self.headers.insert("Location", absolute);
        }
    }
}

fn default_body(status: Status, explanation: &str) -> String {
    format!("<html><h1>{}</h1><p>{explanation}</p></html>", status.reason())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(path: &str, min: usize, max: usize, rest: bool) -> Option<String> {
        let parts = split_path(path, min, max, rest).ok()?;
        Some(parts.iter().map(|p| p.as_deref().unwrap_or("None")).collect::<Vec<_>>().join("|"))
    }

    /// Every expectation is the answer of `swift.common.utils.split_path` to the same arguments.
    #[test]
    fn split_path_follows_swift() {
        let cases: &[(&str, usize, usize, bool, Option<&str>)] = &[
            ("/a", 1, 1, false, Some("a")),
            ("/a", 1, 2, false, Some("a|None")),
            ("/a/c", 1, 2, false, Some("a|c")),
            ("/a/c/o/r", 1, 3, true, Some("a|c|o/r")),
            ("/a/c/o/r", 1, 3, false, None),
            ("", 1, 1, false, None),
            ("/", 1, 1, false, None),
            ("//", 1, 1, false, None),
            ("/a/", 1, 1, false, Some("a")),
            ("/a/", 1, 2, false, Some("a|")),
            ("/a/c/", 1, 2, false, Some("a|c")),
            ("/a/c//", 1, 2, false, None),
            ("//a", 1, 1, false, None),
            ("/a//o", 1, 3, true, None),
            ("/a//o", 3, 3, true, None),
            ("/a/c/", 2, 3, true, Some("a|c|")),
            ("/a/c//o", 2, 3, true, Some("a|c|/o")),
            ("/a/c/o/", 3, 3, true, Some("a|c|o/")),
            ("/a", 2, 3, true, None),
            ("/a/", 2, 3, true, None),
            ("a/b", 1, 2, false, None),
        ];
        for &(path, min, max, rest, want) in cases {
            assert_eq!(split(path, min, max, rest).as_deref(), want, "{path} {min} {max} {rest}");
        }
    }

    #[test]
    fn a_target_is_decoded_and_kept() {
        let req = Request::from_target(Method::Get, Bytes::from_static(b"/v1/a%20b/%C3%A9?x=1&y"));
        assert_eq!(req.path, "/v1/a b/é");
        assert!(req.path_is_utf8);
        assert_eq!(req.query, "x=1&y");
        assert_eq!(req.path_qs(), "/v1/a%20b/%C3%A9?x=1&y");
        assert_eq!(&req.raw_target[..], b"/v1/a%20b/%C3%A9?x=1&y");
    }

    #[test]
    fn a_latin_1_path_is_quoted_as_it_came() {
        let req = Request::from_target(Method::Get, Bytes::from_static(b"/a/\xe9%ff"));
        assert!(!req.path_is_utf8);
        assert_eq!(req.quoted_path(), "/a/%E9%FF");
    }

    #[test]
    fn parameters_are_decoded_and_the_last_wins() {
        let req = Request::new(Method::Get, "/a").with_query("p=1&q=a+b%2Fc&p=2&flag&&x=%FF");
        assert_eq!(req.param("p").as_deref(), Some("2"));
        assert_eq!(req.param("q").as_deref(), Some("a b/c"));
        assert_eq!(req.param("flag").as_deref(), Some(""));
        assert_eq!(req.param("none"), None);
        assert_eq!(req.param_bytes("x"), Some(vec![0xff]));
        assert_eq!(req.params().len(), 5);
    }

    #[test]
    fn default_bodies_are_swifts() {
        let resp = Response::error(404);
        let body = "<html><h1>Not Found</h1><p>The resource could not be found.</p></html>";
        assert_eq!(resp.body.as_bytes(), Some(body.as_bytes()));
        assert_eq!(resp.headers.get_str("Content-Type"), Some("text/html; charset=UTF-8"));
        assert!(Response::error(204).body.is_empty());
        assert!(
            Response::insufficient_storage("sda")
                .body
                .as_bytes()
                .unwrap()
                .ends_with(b"Drive: sda</p></html>")
        );
    }

    #[test]
    fn unauthorized_names_the_account() {
        let realm = |path: &str| {
            let resp = Response::unauthorized(&Request::new(Method::Get, path));
            resp.headers.get_str("www-authenticate").unwrap().to_owned()
        };
        assert_eq!(realm("/v1/AUTH_a b/c/o"), "Swift realm=\"AUTH_a%20b\"");
        assert_eq!(realm("/auth/v1.0"), "Swift realm=\"unknown\"");
        assert_eq!(realm("/"), "Swift realm=\"unknown\"");
    }

    #[test]
    fn a_relative_location_becomes_absolute() {
        let req = Request::new(Method::Get, "/a").with_header("Host", "swift.example.com:80");
        let mut resp = Response::new(301).with_header("Location", "/v1/a/");
        resp.make_location_absolute(&req.host_url());
        assert_eq!(resp.headers.get_str("location"), Some("http://swift.example.com/v1/a/"));
    }

    #[test]
    fn extensions_hold_one_value_of_a_type() {
        #[derive(Clone, PartialEq, Debug)]
        struct Owner(bool);
        let mut env = Environ::default();
        env.insert(Owner(false));
        env.insert(Owner(true));
        let copy = env.clone();
        assert_eq!(copy.get::<Owner>(), Some(&Owner(true)));
        assert_eq!(env.remove::<Owner>(), Some(Owner(true)));
        assert_eq!(env.get::<Owner>(), None);
    }
}
