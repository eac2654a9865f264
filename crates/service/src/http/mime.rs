//! Multipart documents: the three of an EC PUT (object body, footers, commit), the parts of a `multipart/byteranges`
//! response, the fields of a form.
//!
//! ```text
//! --BOUNDARY CRLF headers CRLF CRLF bytes CRLF --BOUNDARY CRLF headers CRLF CRLF bytes CRLF --BOUNDARY--
//! ```
//!
//! As `iter_multipart_mime_documents` in Swift: empty lines may stand before the first boundary, nothing else; the two bytes
//! after a boundary are `--` at the last one and otherwise dropped unseen; a document also ends with the stream; what follows
//! the last boundary is not looked at. Stricter than Swift: a document's headers are bounded and must have colons.
//!
//! [`MimeDecoder`] is the grammar, fed with whatever arrives; [`MimeReader`] runs it over a [`Body`]. Data is passed on
//! without a copy unless a boundary might lie across two pieces.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem::Finder;

use super::{Body, BodyError, Headers};

/// The most bytes of one document's headers.
const MAX_HEADERS: usize = 64 << 10;
/// The most bytes of empty lines before the first boundary.
const MAX_PREAMBLE: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Preamble,
    Headers,
    Data,
    /// Behind a boundary; the two bytes after it are not there yet.
    Boundary,
    /// Between two documents.
    Between,
    Done,
}

/// What a step of decoding gave.
#[derive(Debug, PartialEq)]
pub enum Event {
    NeedMore,
    /// A document begins.
    Headers(Headers),
    Data(Bytes),
    EndOfDocument,
    /// There are no more documents.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

pub struct MimeDecoder {
    /// CRLF, two dashes, the boundary.
    delimiter: Vec<u8>,
    finder: Finder<'static>,
    state: State,
    buf: Bytes,
    /// No more will be fed.
    ended: bool,
}

impl MimeDecoder {
    pub fn new(boundary: &[u8]) -> Self {
        let delimiter = [b"\r\n--", boundary].concat();
        let finder = Finder::new(&delimiter).into_owned();
        Self { delimiter, finder, state: State::Preamble, buf: Bytes::new(), ended: false }
    }

    /// More of the stream. What was fed before should have been decoded up to [`Event::NeedMore`].
    pub fn feed(&mut self, bytes: Bytes) {
        self.ended = false;
        if self.buf.is_empty() {
            self.buf = bytes;
            return;
        }
        let mut joined = BytesMut::with_capacity(self.buf.len() + bytes.len());
        joined.extend_from_slice(&self.buf);
        joined.extend_from_slice(&bytes);
        self.buf = joined.freeze();
    }

    /// The stream has ended.
    pub fn end(&mut self) {
        self.ended = true;
    }

    pub fn decode(&mut self) -> Result<Event, Malformed> {
        loop {
            match self.state {
                State::Preamble => match self.find_first_boundary()? {
                    true => self.state = State::Headers,
                    false => return Ok(Event::NeedMore),
                },
                State::Between => self.state = State::Headers,
                State::Headers => return self.decode_headers(),
                State::Data => {
                    if let Some(event) = self.decode_data() {
                        return Ok(event);
                    }
                }
                State::Boundary => {
                    if self.buf.len() < 2 && !self.ended {
                        return Ok(Event::NeedMore);
                    }
                    self.state = if self.buf.starts_with(b"--") { State::Done } else { State::Between };
                    self.buf.advance(self.buf.len().min(2));
                    return Ok(Event::EndOfDocument);
                }
                State::Done => {
                    self.buf.clear();
                    return Ok(Event::Done);
                }
            }
        }
    }

    /// Whether the first boundary was there, and is behind us.
    fn find_first_boundary(&mut self) -> Result<bool, Malformed> {
        const BAD: Malformed = Malformed("invalid starting boundary");
        let mut start = 0;
        while self.buf[start..].starts_with(b"\r\n") {
            start += 2;
        }
        if start > MAX_PREAMBLE {
            return Err(BAD);
        }
        let boundary = &self.delimiter[2..];
        let rest = &self.buf[start..];
        // A line, or as much of it as there might be of the boundary's. Swift strips it before comparing.
        let limit = boundary.len() + 2;
        let newline = memchr::memchr(b'\n', &rest[..rest.len().min(limit)]).map(|at| at + 1);
        let end = newline.unwrap_or(rest.len().min(limit));
        if newline.is_none() && rest.len() < limit && !self.ended {
            let seen = rest.trim_ascii_start();
            let possible = boundary.starts_with(&seen[..seen.len().min(boundary.len())]);
            return if possible { Ok(false) } else { Err(BAD) };
        }
        if rest[..end].trim_ascii() != boundary {
            return Err(BAD);
        }
        self.buf.advance(start + end);
        Ok(true)
    }

    fn decode_headers(&mut self) -> Result<Event, Malformed> {
        let mut headers = Headers::new();
        let mut at = 0;
        loop {
            let Some(newline) = memchr::memmem::find(&self.buf[at..], b"\r\n").map(|found| at + found) else {
                return match self.ended {
                    true => {
                        add_header(&mut headers, &self.buf[at..])?;
                        self.buf.clear();
                        self.state = State::Data;
                        Ok(Event::Headers(headers))
                    }
                    false if self.buf.len() > MAX_HEADERS => Err(Malformed("headers too long")),
                    false => Ok(Event::NeedMore),
                };
            };
            let rest = &self.buf[newline..];
            if rest.len() < self.delimiter.len() && self.delimiter.starts_with(rest) && !self.ended {
                return Ok(Event::NeedMore);
            }
            if newline > MAX_HEADERS {
                return Err(Malformed("headers too long"));
            }
            let blank = newline == at;
            add_header(&mut headers, &self.buf[at..newline])?;
            if rest.starts_with(&self.delimiter) || blank {
                // A document may end within its headers: its boundary is then found as if in its data.
                let past = if rest.starts_with(&self.delimiter) { newline } else { newline + 2 };
                self.buf.advance(past);
                self.state = State::Data;
                return Ok(Event::Headers(headers));
            }
            at = newline + 2;
        }
    }

    /// The next piece of data; `None` behind a boundary.
    fn decode_data(&mut self) -> Option<Event> {
        if let Some(found) = self.finder.find(&self.buf) {
            if found > 0 {
                return Some(Event::Data(self.buf.split_to(found)));
            }
            self.buf.advance(self.delimiter.len());
            self.state = State::Boundary;
            return None;
        }
        let held = if self.ended { 0 } else { self.possible_delimiter_at_end() };
        match self.buf.len() - held {
            0 if self.ended => {
                self.state = State::Done;
                Some(Event::EndOfDocument)
            }
            0 => Some(Event::NeedMore),
            sure => Some(Event::Data(self.buf.split_to(sure))),
        }
    }

    /// How many bytes at the end may be the beginning of a delimiter.
    fn possible_delimiter_at_end(&self) -> usize {
        let tail = &self.buf[self.buf.len().saturating_sub(self.delimiter.len() - 1)..];
        memchr::memchr_iter(b'\r', tail)
            .map(|at| &tail[at..])
            .find(|end| self.delimiter.starts_with(end))
            .map_or(0, <[u8]>::len)
    }
}

/// Of repeated headers the first counts.
fn add_header(headers: &mut Headers, line: &[u8]) -> Result<(), Malformed> {
    if line.is_empty() {
        return Ok(());
    }
    let colon = memchr::memchr(b':', line).ok_or(Malformed("header line without a colon"))?;
    let name = line[..colon].trim_ascii();
    if name.is_empty() {
        return Err(Malformed("header without a name"));
    }
    headers.insert_default(name, line[colon + 1..].trim_ascii());
    Ok(())
}

/// Reads the documents of a body one after the other.
pub struct MimeReader {
    body: Body,
    decoder: MimeDecoder,
    in_document: bool,
    /// Of the present document, what is decoded and was not read.
    rest: Bytes,
}

impl MimeReader {
    pub fn new(body: Body, boundary: &[u8]) -> Self {
        Self { body, decoder: MimeDecoder::new(boundary), in_document: false, rest: Bytes::new() }
    }

    /// The headers of the next document; what is left of the one before is skipped. `None` if there is none.
    pub async fn next_document(&mut self) -> Result<Option<Headers>, BodyError> {
        self.rest.clear();
        loop {
            match self.next_event().await? {
                Event::Headers(headers) => {
                    self.in_document = true;
                    return Ok(Some(headers));
                }
                Event::Done => return Ok(None),
                Event::EndOfDocument => self.in_document = false,
                Event::Data(_) | Event::NeedMore => {}
            }
        }
    }

    /// The next piece of the present document; `None` at its end. By then the boundary behind it has been read.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if !self.rest.is_empty() {
            return Some(Ok(std::mem::take(&mut self.rest)));
        }
        if !self.in_document {
            return None;
        }
        match self.next_event().await {
            Ok(Event::Data(bytes)) => Some(Ok(bytes)),
            Ok(_) => {
                self.in_document = false;
                None
            }
            Err(error) => {
                self.in_document = false;
                Some(Err(error))
            }
        }
    }

    /// Reads the present document once, to where its bytes are wanted; zero at its end.
    pub async fn read(&mut self, to: &mut [u8]) -> Result<usize, BodyError> {
        let mut piece = self.next().await.transpose()?.unwrap_or_default();
        self.rest = piece.split_off(piece.len().min(to.len()));
        to[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }

    /// All of the present document.
    pub async fn collect(&mut self, limit: usize) -> Result<Bytes, BodyError> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.next().await.transpose()? {
            if all.len() + piece.len() > limit {
                return Err(BodyError::TooLong);
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// The body underneath, to set the headers of its `100 Continue`.
    pub fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    /// As [`Body::next_chunked_body`]: the documents go on in another chunked body.
    pub async fn next_chunked_body(&mut self) -> Result<(), BodyError> {
        self.body.next_chunked_body().await?;
        self.decoder.ended = false;
        Ok(())
    }

    /// The rest of the body: what follows the last boundary, if it was reached.
    pub fn into_body(self) -> Body {
        self.body
    }

    /// Anything but [`Event::NeedMore`].
    async fn next_event(&mut self) -> Result<Event, BodyError> {
        loop {
            match self.decoder.decode() {
                Ok(Event::NeedMore) => {}
                Ok(event) => return Ok(event),
                Err(malformed) => return Err(BodyError::Malformed(malformed.0)),
            }
            match self.body.next().await.transpose()? {
                Some(bytes) => self.decoder.feed(bytes),
                None => self.decoder.end(),
            }
        }
    }
}

/// The value of the `boundary` parameter of a multipart Content-Type.
pub fn boundary_of(content_type: &[u8]) -> Option<&[u8]> {
    content_type.split(|&b| b == b';').skip(1).find_map(|parameter| {
        let equals = memchr::memchr(b'=', parameter)?;
        let (name, value) = (parameter[..equals].trim_ascii(), parameter[equals + 1..].trim_ascii());
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        (name.eq_ignore_ascii_case(b"boundary") && !value.is_empty()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::split_at;
    use super::*;

    type Documents = Vec<(Vec<(String, String)>, Vec<u8>)>;

    fn decode(pieces: &[&[u8]], boundary: &[u8]) -> Result<Documents, Malformed> {
        let mut decoder = MimeDecoder::new(boundary);
        let mut documents: Documents = Vec::new();
        let mut pieces = pieces.iter();
        loop {
            match decoder.decode()? {
                Event::NeedMore => match pieces.next() {
                    Some(piece) => decoder.feed(Bytes::copy_from_slice(piece)),
                    None => decoder.end(),
                },
                Event::Headers(headers) => {
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    documents.push((headers.iter().map(|(n, v)| (text(n), text(v))).collect(), Vec::new()));
                }
                Event::Data(bytes) => documents.last_mut().unwrap().1.extend_from_slice(&bytes),
                Event::EndOfDocument => {}
                Event::Done => return Ok(documents),
            }
        }
    }

    fn bodies(text: &str) -> Result<Vec<String>, Malformed> {
        let documents = decode(&[text.as_bytes()], b"b")?;
        Ok(documents.into_iter().map(|(_, body)| String::from_utf8(body).unwrap()).collect())
    }

    #[test]
    fn documents_have_headers_and_bytes() {
        let text = b"--xx\r\nX-Document: object body\r\n\r\none\r\n--xx\r\nX-Document: put commit\r\nA:b\r\n\r\n\r\ntwo\r\n\r\n--xx--\r\n";
        let documents = decode(&[text], b"xx").unwrap();
        assert_eq!(documents[0].0, [("X-Document".to_owned(), "object body".to_owned())]);
        assert_eq!(documents[0].1, b"one");
        assert_eq!(documents[1].0.len(), 2);
        assert_eq!(documents[1].1, b"\r\ntwo\r\n");
    }

    /// The answers are those of `mime_to_document_iters` with a boundary of `b`.
    #[test]
    fn oddities_are_read_as_swift_reads_them() {
        let ok = |text: &str| bodies(text).unwrap();
        assert_eq!(ok("\r\n\r\n--b\r\n\r\nx\r\n--b--"), ["x"]);
        assert_eq!(ok("--b\r\n\r\nx"), ["x"]);
        assert_eq!(ok("--b\r\n\r\n\r\n--b--"), [""]);
        assert_eq!(ok("--b\r\n\r\n--b--"), [""]);
        assert_eq!(ok("--b\r\nA: 1\r\n--b--"), [""]);
        assert_eq!(ok("--b\r\n\r\nx\r\n--bXYA: 1\r\n\r\ny\r\n--b--"), ["x", "y"]);
        assert_eq!(ok("--b\r\n\r\nx\r\n--b--\r\n\r\ny\r\n--b--"), ["x"]);
        assert_eq!(ok("--b\r\n\r\nx\r\n--b"), ["x", ""]);
        assert_eq!(ok("--b\r\n\r\nx\r\n--b\r\n"), ["x", ""]);
        assert_eq!(ok("\x0c--b\rA: 1\r\n\r\nx"), ["x"]);
        assert_eq!(ok("--b\nA: 1\r\n\r\nx"), ["x"]);
        for bad in ["", "x--b\r\n", "--b--\r\n\r\nx", "--c\r\n\r\nx", "\n--b\r\n\r\nx", "\n--b"] {
            assert!(bodies(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn headers_are_bounded() {
        let long = format!("--b\r\nX: {}", "y".repeat(MAX_HEADERS + 10));
        assert_eq!(bodies(&long), Err(Malformed("headers too long")));
        assert!(decode(&[&b"\r\n".repeat(600)], b"b").is_err());
    }

    #[test]
    fn data_without_a_possible_boundary_is_passed_on_at_once() {
        let mut decoder = MimeDecoder::new(b"b");
        decoder.feed(Bytes::from_static(b"--b\r\n\r\nsome\r\n-"));
        assert!(matches!(decoder.decode(), Ok(Event::Headers(_))));
        assert_eq!(decoder.decode(), Ok(Event::Data(Bytes::from_static(b"some"))));
        assert_eq!(decoder.decode(), Ok(Event::NeedMore));
        decoder.feed(Bytes::from_static(b"more"));
        assert_eq!(decoder.decode(), Ok(Event::Data(Bytes::from_static(b"\r\n-more"))));
    }

    #[test]
    fn boundaries_are_found_in_content_types() {
        assert_eq!(boundary_of(b"multipart/byteranges;boundary=abc"), Some(&b"abc"[..]));
        assert_eq!(boundary_of(b"multipart/form-data; x=y; Boundary=\"a b\""), Some(&b"a b"[..]));
        assert_eq!(boundary_of(b"text/plain"), None);
    }

    #[tokio::test]
    async fn a_reader_skips_what_was_not_read() {
        let body = Body::from("--b\r\nN: 1\r\n\r\none\r\n--b\r\nN: 2\r\n\r\ntwo\r\n--b--\r\n");
        let mut reader = MimeReader::new(body, b"b");
        assert_eq!(reader.next_document().await.unwrap().unwrap().get_str("N"), Some("1"));
        assert_eq!(reader.next_document().await.unwrap().unwrap().get_str("N"), Some("2"));
        assert_eq!(reader.collect(10).await.unwrap(), "two");
        assert!(reader.next().await.is_none());
        assert!(reader.next_document().await.unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            documents in proptest::collection::vec(
                ("[a-z]{0,5}", "(\r\n|-|b|x|\r|\n){0,20}"), 1..4),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut wire = Vec::new();
            for (value, data) in &documents {
                wire.extend_from_slice(format!("--bb\r\nX: {value}\r\n\r\n{data}\r\n").as_bytes());
            }
            wire.extend_from_slice(b"--bb--\r\n");
            let whole = decode(&[&wire], b"bb");
            prop_assert_eq!(decode(&split_at(&wire, &cuts), b"bb"), whole.clone());
            if documents.iter().all(|(_, data)| !data.contains("--bb") ) {
                let read: Vec<_> = whole.unwrap().into_iter().map(|(_, data)| data).collect();
                let sent: Vec<_> = documents.iter().map(|(_, data)| data.clone().into_bytes()).collect();
                prop_assert_eq!(read, sent);
            }
        }

        #[test]
        fn noise_never_panics_and_splits_alike(
            wire in proptest::collection::vec(prop_oneof![
                4 => prop::sample::select(b"\r\n-b: ".to_vec()), 1 => any::<u8>()], 0..200),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            for start in [&b"--b\r\n"[..], b"\x0c--b\r", b""] {
                let wire = [start, &wire].concat();
                prop_assert_eq!(decode(&split_at(&wire, &cuts), b"b"), decode(&[&wire], b"b"));
            }
        }
    }
}
