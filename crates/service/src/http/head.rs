//! Heads: the request line or status line, the headers, and what they say about the body and the connection.
//!
//! Pure functions over bytes. Lines are found first ([`HeadScanner`], which takes whatever has arrived and remembers how
//! far it looked), with the limits and statuses of Swift under eventlet: a request line of 8192 bytes or more is 414, a
//! header line of that length or more than 64 KiB of headers 400, more than 200 headers 431.
//!
//! Stricter than Python on purpose, because two readers of one stream must never disagree about where a request ends
//! (request smuggling): 400 for HTTP/0.9, a folded line, a line without a colon, space around a name, control bytes, a
//! Content-Length that is not digits only, differing Content-Lengths, and two Hosts. A Transfer-Encoding that is not
//! `chunked` reaches the app, which answers 501 or 400, and like one beside a Content-Length ends the connection.
//!
//! As eventlet does, headers whose names have an underscore are dropped and repeated headers are joined by a comma.

use bytes::Bytes;

use super::{Headers, Method, Status};

/// The longest lines and largest heads that are taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A first line of so many bytes, its end counted, is too long (`max_request_line`).
    pub first_line: usize,
    /// A header line of so many bytes is too long (`max_header_size`).
    pub header_line: usize,
    /// The most bytes of all header lines.
    pub total: usize,
    /// The most headers: Swift's `MAX_HEADER_COUNT` and some slack.
    pub headers: usize,
}

impl Limits {
    /// Of requests to a server with Swift's default constraints.
    pub const REQUEST: Self = Self { first_line: 8192, header_line: 8192, total: 65536, headers: 200 };
    /// Of responses to a client.
    pub const RESPONSE: Self =
        Self { first_line: 65536, header_line: 65536, total: 256 << 10, headers: 1000 };

    /// Of requests to a server with these of swift.conf's constraints.
    pub fn from_constraints(
        max_request_line: usize,
        max_header_size: usize,
        max_header_count: usize,
    ) -> Self {
        Self {
            first_line: max_request_line,
            header_line: max_header_size,
            headers: max_header_count * 8 / 5 - 1,
            ..Self::REQUEST
        }
    }
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadError {
    pub status: Status,
    pub reason: &'static str,
}

const fn refuse(status: Status, reason: &'static str) -> HeadError {
    HeadError { status, reason }
}

const fn bad(reason: &'static str) -> HeadError {
    refuse(Status::BAD_REQUEST, reason)
}

/// Finds the end of a head in bytes that arrive bit by bit, looking at each only once.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    line_start: usize,
    searched: usize,
    lines: usize,
    first_line_end: usize,
}

impl HeadScanner {
    /// The length of the head, its empty line counted, once that is there. `buf` must begin as in the call before.
    pub fn scan(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
        while let Some(found) = memchr::memchr(b'\n', &buf[self.searched..]) {
            let end = self.searched + found + 1;
            self.check_line(end - self.line_start, end, limits)?;
            let empty = matches!(&buf[self.line_start..end], b"\r\n" | b"\n");
            if self.lines == 0 {
                self.first_line_end = end;
            }
            self.lines += 1;
            self.line_start = end;
            self.searched = end;
            if empty {
                return Ok(Some(end));
            }
        }
        self.searched = buf.len();
        self.check_line(buf.len() - self.line_start, buf.len(), limits)?;
        Ok(None)
    }

    /// Where the first line ends, if it is there.
    pub fn first_line_end(&self) -> Option<usize> {
        (self.lines > 0).then_some(self.first_line_end)
    }

    fn check_line(&self, length: usize, end: usize, limits: &Limits) -> Result<(), HeadError> {
        if self.lines == 0 {
            return match length >= limits.first_line {
                true => Err(refuse(Status::REQUEST_URI_TOO_LONG, "Request URI Too Long")),
                false => Ok(()),
            };
        }
        if length >= limits.header_line {
            Err(bad("Header Line Too Long"))
        } else if end - self.first_line_end > limits.total {
            Err(bad("Headers Too Large"))
        } else if self.lines > limits.headers + 1 || (self.lines == limits.headers + 1 && length > 2) {
            Err(refuse(Status(431), "Too many headers"))
        } else {
            Ok(())
        }
    }
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// A response whose body ends with the connection.
    UntilClose,
}

#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    pub target: Bytes,
    pub http_1_0: bool,
    pub headers: Headers,
    pub framing: Framing,
    pub expect_continue: bool,
    /// Whether the client lets the connection live on.
    pub keep_alive: bool,
    /// Whether the client asked for keep-alive by name and is told so.
    pub says_keep_alive: bool,
}

#[derive(Debug)]
pub struct RequestLine<'a> {
    pub method: &'a str,
    pub target: &'a [u8],
    pub http_1_0: bool,
}

/// Parses a head whose end was found by a [`HeadScanner`].
pub fn parse_request(head: &[u8]) -> Result<RequestHead, HeadError> {
    let first = memchr::memchr(b'\n', head).map_or(head.len(), |end| end + 1);
    let line = parse_request_line(&head[..first])?;
    let mut headers = Headers::with_capacity(16, head.len() - first + 64);
    parse_headers(&head[first..], |name, value| {
        if name.contains(&b'_') {
            return Ok(());
        }
        match Single::of(name) {
            Some(Single::Content) if headers.get(name).is_some_and(|first| first != value) => {
                Err(bad("Differing Content-Lengths"))
            }
            Some(Single::Host) if headers.contains(name) => Err(bad("More than one Host")),
            Some(_) if headers.contains(name) => Ok(()),
            Some(_) => {
                headers.append(name, value);
                Ok(())
            }
            None => {
                headers.append_joined(name, value);
                Ok(())
            }
        }
    })?;
    let connection = Connection::of(&headers);
    let mut keep_alive = if line.http_1_0 { connection.keep_alive } else { true } && !connection.close;
    let framing = match (headers.get("Transfer-Encoding"), headers.get("Content-Length")) {
        (Some(coding), length) => {
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            keep_alive &= chunked && length.is_none() && !line.http_1_0;
            if let Some(length) = length {
                parse_length(length)?;
            }
            if chunked { Framing::Chunked } else { Framing::None }
        }
        (None, Some(length)) => match parse_length(length)? {
            0 => Framing::None,
            length => Framing::Length(length),
        },
        (None, None) => Framing::None,
    };
    let expects = headers.get("Expect").is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    if framing == Framing::Chunked {
        headers.remove("Content-Length");
    }
    Ok(RequestHead {
        method: Method::parse(line.method),
        target: Bytes::copy_from_slice(strip_authority(line.target)),
        http_1_0: line.http_1_0,
        framing,
        expect_continue: expects && !line.http_1_0,
        keep_alive,
        says_keep_alive: connection.keep_alive,
        headers,
    })
}

/// Parses the first line of a request, with or without its end.
pub fn parse_request_line(line: &[u8]) -> Result<RequestLine<'_>, HeadError> {
    let line = strip_line_end(line);
    let mut words = line.split(|&b| b == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(bad("Bad request syntax"));
    };
    let (Some(version), None) = (words.next(), words.next()) else {
        let version = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
        // As in Python, what stands last is looked at as a version before the words are counted.
        return Err(match line.split(|&b| b == b' ').count() {
            0..=2 => bad("Bad request syntax"),
            _ => parse_version(version).err().unwrap_or(bad("Bad request syntax")),
        });
    };
    let http_1_0 = parse_version(version)?;
    let method = match std::str::from_utf8(method) {
        Ok(method) if !method.is_empty() && method.bytes().all(|b| b.is_ascii_graphic()) => method,
        _ => return Err(bad("Bad request method")),
    };
    if target.is_empty() || target.iter().any(|&b| b < 0x20 || b == 0x7f) {
        return Err(bad("Bad request target"));
    }
    Ok(RequestLine { method, target, http_1_0 })
}

/// Whether it counts as HTTP/1.0. Swift: to eventlet that is all 1.x but what is written `HTTP/1.1`.
fn parse_version(version: &[u8]) -> Result<bool, HeadError> {
    let number = |digits: &[u8]| match digits.len() {
        1..=9 if digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).ok()?.parse::<u32>().ok()
        }
        _ => None,
    };
    let bad_version = bad("Bad request version");
    let numbers = version.strip_prefix(b"HTTP/").ok_or(bad_version)?;
    let dot = memchr::memchr(b'.', numbers).ok_or(bad_version)?;
    match (number(&numbers[..dot]), number(&numbers[dot + 1..])) {
        (Some(1), Some(_)) => Ok(version != b"HTTP/1.1"),
        (Some(major), Some(_)) if major >= 2 => {
            Err(refuse(Status::HTTP_VERSION_NOT_SUPPORTED, "Invalid HTTP version"))
        }
        _ => Err(bad_version),
    }
}

/// The path of an absolute-form target.
fn strip_authority(target: &[u8]) -> &[u8] {
    let rest = target.strip_prefix(b"http://").or_else(|| target.strip_prefix(b"https://"));
    match rest.and_then(|rest| memchr::memchr(b'/', rest).map(|slash| &rest[slash..])) {
        Some(path) => path,
        None => target,
    }
}

/// Headers of which only the first counts, instead of all joined.
enum Single {
    Content,
    Host,
    Other,
}

impl Single {
    fn of(name: &[u8]) -> Option<Self> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"Host") => Some(Self::Host),
            12 if name.eq_ignore_ascii_case(b"Content-Type") => Some(Self::Other),
            14 if name.eq_ignore_ascii_case(b"Content-Length") => Some(Self::Content),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
}

impl Connection {
    fn of(headers: &Headers) -> Self {
        let mut connection = Self::default();
        for token in headers.get_all("Connection").flat_map(|value| value.split(|&b| b == b',')) {
            connection.close |= token.trim_ascii().eq_ignore_ascii_case(b"close");
            connection.keep_alive |= token.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
        }
        connection
    }
}

fn parse_length(value: &[u8]) -> Result<u64, HeadError> {
    let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or(bad("Bad Content-Length"))
}

/// Calls `add` with each header of the lines up to the empty one.
fn parse_headers(
    mut lines: &[u8],
    mut add: impl FnMut(&[u8], &[u8]) -> Result<(), HeadError>,
) -> Result<(), HeadError> {
    while let Some(end) = memchr::memchr(b'\n', lines) {
        let line = strip_line_end(&lines[..end + 1]);
        lines = &lines[end + 1..];
        if line.is_empty() {
            break;
        }
        let colon = memchr::memchr(b':', line).ok_or(bad("Header line without a colon"))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A folded line begins with a space, so it is refused here too.
        if name.is_empty() || name.iter().any(|&b| b <= b' ' || b == 0x7f) {
            return Err(bad("Bad header name"));
        }
        // A NUL is part of reserved names, which come in values too.
        if memchr::memchr(b'\r', value).is_some() {
            return Err(bad("Bad header value"));
        }
        add(name, value)?;
    }
    Ok(())
}

fn strip_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: Status,
    pub reason: String,
    pub headers: Headers,
    pub http_1_0: bool,
}

impl ResponseHead {
    /// How the body of this response to such a request is framed, and whether the connection lives on.
    pub fn framing(&self, method: &Method) -> Result<(Framing, bool), HeadError> {
        let connection = Connection::of(&self.headers);
        let keep_alive = if self.http_1_0 { connection.keep_alive } else { true } && !connection.close;
        if *method == Method::Head || self.status.is_bodyless() {
            return Ok((Framing::None, keep_alive));
        }
        if let Some(coding) = self.headers.get("Transfer-Encoding") {
            return match coding.eq_ignore_ascii_case(b"chunked") {
                true => Ok((Framing::Chunked, keep_alive && !self.headers.contains("Content-Length"))),
                false => Ok((Framing::UntilClose, false)),
            };
        }
        let mut lengths = self.headers.get_all("Content-Length");
        let Some(first) = lengths.next() else { return Ok((Framing::UntilClose, false)) };
        if lengths.any(|other| other != first) {
            return Err(bad("Differing Content-Lengths"));
        }
        match parse_length(first)? {
            0 => Ok((Framing::None, keep_alive)),
            length => Ok((Framing::Length(length), keep_alive)),
        }
    }
}

/// Parses a response's head whose end was found by a [`HeadScanner`].
pub fn parse_response(head: &[u8]) -> Result<ResponseHead, HeadError> {
    let first = memchr::memchr(b'\n', head).map_or(head.len(), |end| end + 1);
    let line = strip_line_end(&head[..first]);
    let mut words = line.splitn(3, |&b| b == b' ');
    let http_1_0 = parse_version(words.next().unwrap_or_default())?;
    let code = words.next().filter(|code| code.len() == 3 && code.iter().all(u8::is_ascii_digit));
    let code =
        code.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok()).ok_or(bad("Bad status line"))?;
    let reason = String::from_utf8_lossy(words.next().unwrap_or_default()).trim().to_owned();
    let mut headers = Headers::with_capacity(16, head.len() - first);
    parse_headers(&head[first..], |name, value| {
        headers.append(name, value);
        Ok(())
    })?;
    Ok(ResponseHead { status: Status(code), reason, headers, http_1_0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<RequestHead, u16> {
        parse_bytes(text.as_bytes())
    }

    fn parse_bytes(bytes: &[u8]) -> Result<RequestHead, u16> {
        let end = HeadScanner::default().scan(bytes, &Limits::REQUEST).map_err(|e| e.status.0)?;
        parse_request(&bytes[..end.expect("a whole head")]).map_err(|e| e.status.0)
    }

    #[test]
    fn a_request_of_swifts_proxy() {
        let head = parse(
            "PUT /sda1/9/AUTH_a/c/o%20o HTTP/1.1\r\nHost: 127.0.0.1:6200\r\nX-Timestamp: 1.5\r\n\
             Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        );
        let head = head.unwrap();
        assert_eq!(head.method, Method::Put);
        assert_eq!(&head.target[..], b"/sda1/9/AUTH_a/c/o%20o");
        assert_eq!(head.headers.get_str("x-timestamp"), Some("1.5"));
        assert!(head.expect_continue && head.keep_alive && !head.says_keep_alive);
        assert_eq!(head.framing, Framing::Chunked);
    }

    #[test]
    fn lines_may_end_in_a_bare_newline() {
        let head = parse("GET / HTTP/1.0\nHost: a\n\n").unwrap();
        assert_eq!(head.headers.get_str("host"), Some("a"));
        assert!(head.http_1_0 && !head.keep_alive);
    }

    #[test]
    fn names_may_be_utf_8_or_latin_1() {
        let head = parse_bytes(b"GET / HTTP/1.1\r\nX-Object-Meta-\xc3\xa9\xff: \xe9\r\n\r\n").unwrap();
        assert_eq!(head.headers.get(b"x-object-meta-\xc3\xa9\xff"), Some(&b"\xe9"[..]));
    }

    #[test]
    fn a_value_may_be_a_reserved_name_and_a_name_may_not() {
        let head = parse("GET / HTTP/1.1\r\nX-Symlink-Target: \0versions\0c/\0o\0\r\n\r\n").unwrap();
        assert_eq!(head.headers.get_str("x-symlink-target"), Some("\0versions\0c/\0o\0"));
        let mut out = Vec::new();
        super::super::conn::write_headers(&mut out, &head.headers, true, |_| true);
        assert_eq!(out, b"X-Symlink-Target: \0versions\0c/\0o\0\r\n");
        assert_eq!(parse("GET / HTTP/1.1\r\nX-\0: a\r\n\r\n").unwrap_err(), 400);
    }

    #[test]
    fn absolute_targets_lose_their_authority() {
        let target = |target: &str| {
            let head = parse(&format!("GET {target} HTTP/1.1\r\n\r\n")).unwrap();
            String::from_utf8(head.target.to_vec()).unwrap()
        };
        assert_eq!(target("http://host:80/v1/a?q"), "/v1/a?q");
        assert_eq!(target("https://host/"), "/");
        assert_eq!(target("http://host"), "http://host");
        assert_eq!(target("*"), "*");
    }

    #[test]
    fn repeated_headers_are_joined_and_underscores_dropped() {
        let head =
            parse("GET / HTTP/1.1\r\nA: 1\r\na: 2\r\nX_Y: 3\r\nContent-Type: t\r\nContent-Type: u\r\n\r\n");
        let head = head.unwrap();
        assert_eq!(head.headers.get_str("a"), Some("1,2"));
        assert_eq!(head.headers.get_str("content-type"), Some("t"));
        assert_eq!(head.headers.len(), 2);
    }

    #[test]
    fn connection_headers_decide_over_the_version() {
        let alive = |version: &str, connection: &str| {
            parse(&format!("GET / HTTP/{version}\r\nConnection: {connection}\r\n\r\n")).unwrap().keep_alive
        };
        assert!(alive("1.1", "foo") && alive("1.1", "keep-alive") && alive("1.0", "Keep-Alive, foo"));
        assert!(!alive("1.1", "foo, Close") && !alive("1.0", "foo") && !alive("1.0", "keep-alive, close"));
    }

    #[test]
    fn a_length_beside_a_coding_ends_the_connection() {
        let head =
            parse("PUT / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        assert_eq!((head.framing, head.keep_alive), (Framing::Chunked, false));
        assert!(!head.headers.contains("content-length"));
        let head = parse("PUT / HTTP/1.1\r\nTransfer-Encoding: gzip,chunked\r\n\r\n").unwrap();
        assert_eq!((head.framing, head.keep_alive), (Framing::None, false));
        assert_eq!(head.headers.get_str("transfer-encoding"), Some("gzip,chunked"));
    }

    #[test]
    fn limits_are_eventlets() {
        let target = |n: usize| format!("/{}", "x".repeat(n - 1));
        // "GET " + target + " HTTP/1.1\r\n" of 8191 and 8192 bytes.
        assert!(parse(&format!("GET {} HTTP/1.1\r\n\r\n", target(8191 - 15))).is_ok());
        assert_eq!(parse(&format!("GET {} HTTP/1.1\r\n\r\n", target(8192 - 15))).unwrap_err(), 414);
        let header = |n: usize| format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(n - 5));
        assert!(parse(&header(8191)).is_ok());
        assert_eq!(parse(&header(8192)).unwrap_err(), 400);
        let headers = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(n));
        assert!(parse(&headers(200)).is_ok());
        assert_eq!(parse(&headers(201)).unwrap_err(), 431);
        let wide = format!("GET / HTTP/1.1\r\n{}\r\n", format!("X: {}\r\n", "y".repeat(8000)).repeat(9));
        assert_eq!(parse(&wide).unwrap_err(), 400);
    }

    #[test]
    fn an_endless_line_is_refused_before_its_end() {
        let mut scanner = HeadScanner::default();
        assert_eq!(scanner.scan(&[b'x'; 8191], &Limits::REQUEST), Ok(None));
        assert_eq!(scanner.scan(&[b'x'; 8192], &Limits::REQUEST).unwrap_err().status.0, 414);
    }

    #[test]
    fn responses_are_parsed_and_framed() {
        let head = |text: &str| parse_response(text.as_bytes()).unwrap();
        let get = |text: &str| head(text).framing(&Method::Get).unwrap();
        assert_eq!(get("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), (Framing::Length(3), true));
        assert_eq!(get("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), (Framing::Chunked, true));
        assert_eq!(get("HTTP/1.0 200 OK\r\n\r\n"), (Framing::UntilClose, false));
        assert_eq!(get("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"), (Framing::None, false));
        let length = head("HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n");
        assert_eq!(length.framing(&Method::Head).unwrap(), (Framing::None, true));
        assert!(
            head("HTTP/1.1 200\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n")
                .framing(&Method::Get)
                .is_err()
        );
        assert_eq!(head("HTTP/1.1 507 Insufficient Storage\r\n\r\n").reason, "Insufficient Storage");
        assert!(parse_response(b"HTTP/1.1 20 OK\r\n\r\n").is_err());
        assert!(parse_response(b"ICY 200 OK\r\n\r\n").is_err());
    }

    proptest! {
        #[test]
        fn any_split_finds_the_same_end(
            lines in proptest::collection::vec("[a-z:\r ]{0,20}", 0..10),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let text = lines.join("\n");
            let whole = HeadScanner::default().scan(text.as_bytes(), &Limits::REQUEST);
            let mut scanner = HeadScanner::default();
            let mut seen = 0;
            let mut found = Ok(None);
            for piece in super::super::testing::split_at(text.as_bytes(), &cuts) {
                seen += piece.len();
                found = scanner.scan(&text.as_bytes()[..seen], &Limits::REQUEST);
                if found != Ok(None) {
                    break;
                }
            }
            prop_assert_eq!(found, whole);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(prop_oneof![
            3 => prop::sample::select(b"GET /HTP1.0:\r\n \t,chunked".to_vec()), 1 => any::<u8>()], 0..300)) {
            let head = [b"GET / HTTP/1.1\r\n".to_vec(), noise.clone()].concat();
            for bytes in [&noise, &head] {
                if let Ok(Some(end)) = HeadScanner::default().scan(bytes, &Limits::REQUEST) {
                    let _ = parse_request(&bytes[..end]);
                    let _ = parse_response(&bytes[..end]);
                }
            }
        }
    }
}
