//! A PUT in stages: object data, then metadata that only the whole data tells, then a commit, as a MIME document.
//!
//! ```text
//! -> PUT, Expect: 100-continue, X-Backend-Obj-Metadata-Footer: yes, X-Backend-Obj-Multiphase-Commit: yes
//! <- 100 Continue, X-Obj-Metadata-Footer: yes, X-Obj-Multiphase-Commit: yes
//! -> document "object body", document "object metadata" (JSON, with its Content-MD5), end of the chunked body
//! <- 100 Continue: the data is durable
//! -> a second chunked body: document "put commit"
//! <- 201 Created
//! ```
//!
//! A proxy of ours announces a checksum of the data (`X-Backend-Archive-Checksum` in the head names the algorithm), and tells it in the
//! footers, beside the MD5 that it has computed: the checksum is then all that is computed of what arrives.
//!
//! A proxy that does not wait to be asked sends the documents with the head, and hears both `100 Continue` when the data
//! is durable. Proxies use the footers for EC and for encrypted objects, the commit for EC.

use bytes::Bytes;
use common::digest::{hex, md5};
use common::headers::*;
use service::http::mime::MimeReader;
use service::http::{Body, BodyError, Headers, Request, Response};

use crate::put::body_error;

/// The most bytes of footers: several times what constraints allow as metadata.
const MAX_FOOTERS: usize = 1 << 20;

/// Metadata that came after the data.
#[derive(Default)]
pub(crate) struct Footers(Headers);

impl Footers {
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.0.iter()
    }

    /// The ETag of the data, if the footers have one.
    pub fn etag(&self) -> Option<Vec<u8>> {
        self.0.get(ETAG).map(<[u8]>::to_ascii_lowercase)
    }

    /// The checksum of the data if it `is_announced`. Footers without it, or without the MD5 that need not be computed then, are refused.
    pub fn checksum(&self, is_announced: bool) -> Result<Option<String>, Response> {
        if !is_announced {
            return Ok(None);
        }
        let is_md5 =
            self.etag().is_some_and(|etag| etag.len() == 32 && etag.iter().all(u8::is_ascii_hexdigit));
        match self.0.get_str(X_BACKEND_ARCHIVE_CHECKSUM) {
            Some(checksum) if is_md5 => Ok(Some(checksum.to_owned())),
            _ => Err(Response::error(422)),
        }
    }

    /// Reads what the proxy has made by `json.dumps` of a dict.
    fn parse(json: &[u8]) -> Option<Self> {
        let json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json).ok()?;
        let mut headers = Headers::new();
        for (name, value) in json {
            // Swift: text is what WSGI makes of a header's bytes, so that each character is one byte.
            let value = match value {
                serde_json::Value::Null => continue,
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            };
            headers.insert(wire_bytes(&name), wire_bytes(&value));
        }
        if headers.get(ETAG).is_some_and(<[u8]>::is_empty) {
            headers.remove(ETAG);
        }
        Some(Footers(headers))
    }
}

fn wire_bytes(text: &str) -> Vec<u8> {
    common::wsgi::from_stored(text.as_bytes()).into_owned()
}

/// The documents of a request, read one after the other.
pub(crate) struct MultiStage {
    documents: MimeReader,
    has_footers: bool,
    has_commit: bool,
}

impl MultiStage {
    pub fn is_wanted(headers: &Headers) -> bool {
        Self::has_commit(headers) || headers.get_bool(X_BACKEND_OBJ_METADATA_FOOTER)
    }

    pub fn has_commit(headers: &Headers) -> bool {
        headers.get_bool(X_BACKEND_OBJ_MULTIPHASE_COMMIT)
    }

    /// Asks for the body, and stands at the beginning of the object's data.
    pub async fn begin(req: &mut Request) -> Result<Self, Response> {
        let has_footers = req.headers.get_bool(X_BACKEND_OBJ_METADATA_FOOTER);
        let has_commit = Self::has_commit(&req.headers);
        let mut answer = Headers::new();
        if has_commit {
            answer.append("X-Obj-Multiphase-Commit", "yes");
        }
        if has_footers {
            answer.append("X-Obj-Metadata-Footer", "yes");
        }
        let boundary = req.headers.get(X_BACKEND_OBJ_MULTIPART_MIME_BOUNDARY).unwrap_or_default();
        if boundary.is_empty() {
            return Err(Response::html(400, "no MIME boundary"));
        }
        let mut body = std::mem::replace(&mut req.body, Body::empty());
        body.set_continue_headers(answer);
        let mut documents = MimeReader::new(body, boundary);
        match documents.next_document().await {
            Ok(Some(_)) => Ok(Self { documents, has_footers, has_commit }),
            Ok(None) => Err(Response::html(400, "couldn't find object body MIME doc")),
            Err(e) => Err(body_error(&e)),
        }
    }

    /// The next piece of the object's data.
    pub async fn next_piece(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.documents.next().await
    }

    pub async fn footers(&mut self) -> Result<Footers, Response> {
        if !self.has_footers {
            return Ok(Footers::default());
        }
        let headers = match self.documents.next_document().await {
            Ok(Some(headers)) => headers,
            Ok(None) => return Err(Response::html(400, "couldn't find footer MIME doc")),
            Err(e) => return Err(body_error(&e)),
        };
        let footers = self.documents.collect(MAX_FOOTERS).await.map_err(|e| body_error(&e))?;
        match headers.get("Content-MD5") {
            None | Some(b"") => Err(Response::html(400, "no Content-MD5 in footer")),
            Some(told) if told != hex(&md5(&footers)).as_bytes() => {
                Err(Response::html(422, "footer MD5 mismatch"))
            }
            Some(_) => {
                Footers::parse(&footers).ok_or_else(|| Response::html(400, "invalid JSON for footer doc"))
            }
        }
    }

    /// Says that the data is durable, and waits for the client to commit.
    pub async fn commit(&mut self) -> Result<(), Response> {
        if !self.has_commit {
            return Ok(());
        }
        self.documents.next_chunked_body().await.map_err(|e| body_error(&e))?;
        match self.documents.next_document().await {
            Ok(Some(headers)) if headers.get("X-Document") == Some(b"put commit") => Ok(()),
            Ok(Some(_)) => Err(Response::error(500)),
            Ok(None) => Err(Response::html(400, "couldn't find PUT commit MIME doc")),
            Err(e) => Err(body_error(&e)),
        }
    }

    /// Reads what is left, which should be nothing, so that the connection can be used again.
    pub async fn drain(mut self) -> Result<(), Response> {
        loop {
            match self.documents.next_document().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(e) => return Err(body_error(&e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footers_are_headers_of_one_byte_a_character() {
        let footers =
            Footers::parse(br#"{"Etag": "ABC", "X-Object-Meta-A": "caf\u00c3\u00a9", "n": 5}"#).unwrap();
        assert_eq!(footers.etag().unwrap(), b"abc");
        let all: Vec<_> = footers.iter().collect();
        assert_eq!(all[1], (&b"X-Object-Meta-A"[..], "caf\u{e9}".as_bytes()));
        assert_eq!(all[2].1, b"5");
        assert!(Footers::parse(b"[]").is_none());
        assert!(Footers::parse(b"{").is_none());
    }
}
