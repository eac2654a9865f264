//! Conditions and ranges of a client, applied to a response that a filter has made.
//!
//! Storage servers apply them by themselves; a filter which makes one object of several must do it again. The rules
//! are `service::http::conditional`'s; here is what is particular to large objects: their body is one stream that
//! already holds the wanted ranges alone, one after another.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use service::http::conditional::{ConditionalOptions, RangeSource};
use service::http::{Body, BodyError, BodyStream, BoxFuture, Request, Response};

/// Applies conditions and Range. The body must be the bytes of the ranges, while Content-Length tells the size of the
/// whole. `etag` is what the conditions are about, if not the response's own.
pub fn finish_with_ranges(client: &Request, mut resp: Response, etag: Option<String>) -> Response {
    let body = std::mem::take(&mut resp.body);
    let rest = Bytes::new();
    let source = Sequence(Arc::new(Mutex::new(Some(Stream { body, rest }))));
    let stream = source.0.clone();
    resp.make_conditional(
        client,
        ConditionalOptions { etag, source: Some(Box::new(source)), boundary: None },
    );
    let untouched = resp.status.0 == 200 && !client.is_head();
    if untouched && let Some(stream) = stream.lock().take() {
        resp.body = stream.body;
    }
    resp
}

/// Applies the conditions to a response whose body cannot be taken apart.
pub fn finish(client: &Request, mut resp: Response, etag: Option<String>) -> Response {
    resp.make_conditional(client, ConditionalOptions { etag, ..Default::default() });
    if client.is_head() {
        resp.body = Body::empty();
    }
    resp
}

/// A body that is read range by range, in order.
struct Sequence(Arc<Mutex<Option<Stream>>>);

struct Stream {
    body: Body,
    /// Bytes that belong to a later range.
    rest: Bytes,
}

impl RangeSource for Sequence {
    fn range(&mut self, start: u64, end: u64) -> Body {
        let left = end - start;
        Body::stream(RangeOfStream { shared: self.0.clone(), stream: None, left }).with_length(left)
    }
}

/// One range: holds the stream while it is read, and hands it on to the next.
struct RangeOfStream {
    shared: Arc<Mutex<Option<Stream>>>,
    stream: Option<Stream>,
    left: u64,
}

impl RangeOfStream {
    async fn next_chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.stream.is_none() {
            self.stream = self.shared.lock().take();
        }
        let stream = self.stream.as_mut()?;
        if self.left == 0 {
            *self.shared.lock() = self.stream.take();
            return None;
        }
        if stream.rest.is_empty() {
            match stream.body.next().await? {
                Ok(chunk) => stream.rest = chunk,
                Err(error) => return Some(Err(error)),
            }
        }
        let taken = (stream.rest.len() as u64).min(self.left);
        self.left -= taken;
        Some(Ok(stream.rest.split_to(taken as usize)))
    }
}

impl BodyStream for RangeOfStream {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(self.next_chunk())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::http::Method;

    fn object(pieces: &'static [&'static str]) -> Response {
        let body = Body::driven(move |tx| async move {
            for piece in pieces {
                tx.send(*piece).await.unwrap();
            }
        });
        Response::new(200)
            .with_header("ETag", "\"abc\"")
            .with_header("Content-Type", "text/x")
            .with_header("Content-Length", 10u64)
            .with_body(body)
    }

    fn client(headers: &[(&str, &str)]) -> Request {
        let mut req = Request::new(Method::Get, "/v1/a/c/o");
        for (name, value) in headers {
            req.headers.insert(name, *value);
        }
        req
    }

    async fn text(mut resp: Response) -> String {
        String::from_utf8(resp.body.collect(1000).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn whole_object_passes() {
        let resp = finish_with_ranges(&client(&[]), object(&["01234", "56789"]), None);
        assert_eq!((resp.status.0, text(resp).await.as_str()), (200, "0123456789"));
    }

    #[tokio::test]
    async fn one_range_is_told_by_headers() {
        let req = client(&[("Range", "bytes=2-4")]);
        let resp = finish_with_ranges(&req, object(&["2", "34"]), None);
        assert_eq!(resp.headers.get_str("Content-Range"), Some("bytes 2-4/10"));
        assert_eq!((resp.content_length(), resp.status.0), (Some(3), 206));
        assert_eq!(text(resp).await, "234");
    }

    #[tokio::test]
    async fn several_ranges_become_a_multipart_document() {
        let req = client(&[("Range", "bytes=0-1,5-6")]);
        let resp = finish_with_ranges(&req, object(&["015", "6"]), None);
        let content_type = resp.headers.get_str("Content-Type").unwrap().to_owned();
        let boundary = content_type.strip_prefix("multipart/byteranges;boundary=").unwrap();
        let length = resp.headers.get_int::<usize>("Content-Length").unwrap();
        let body = text(resp).await;
        let expected = format!(
            "--{boundary}\r\nContent-Type: text/x\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n\
             --{boundary}\r\nContent-Type: text/x\r\nContent-Range: bytes 5-6/10\r\n\r\n56\r\n--{boundary}--"
        );
        assert_eq!((body.as_str(), body.len()), (expected.as_str(), length));
    }

    #[tokio::test]
    async fn conditions_may_be_about_another_etag() {
        let req = client(&[("If-None-Match", "other")]);
        let resp = finish_with_ranges(&req, object(&["0"]), Some("other".to_owned()));
        assert_eq!((resp.status.0, text(resp).await.as_str()), (304, ""));
    }

    #[tokio::test]
    async fn unsatisfiable_range_is_416_with_the_size() {
        let req = client(&[("Range", "bytes=10-")]);
        for resp in [finish_with_ranges(&req, object(&[]), None), finish(&req, object(&[]), None)] {
            assert_eq!(resp.status.0, 416);
            assert_eq!(resp.headers.get_str("Content-Range"), Some("bytes */10"));
        }
    }
}
