//! What becomes of one row: nothing, if the other container has the object as new; a PUT of the object as it is here; or a DELETE.
//!
//! An object goes with all its headers, so that it has the same timestamp, ETag and metadata there. A manifest of SLO goes as
//! the manifest it is, a symlink as a symlink, as far as the internal client's pipeline lets them through (`symlink=get`). Time of
//! an object is that of its last POST, so that new metadata is a PUT of the whole object.

use std::time::Instant;

use common::headers::{X_BACKEND_STORAGE_POLICY_INDEX, X_NEWEST, X_TIMESTAMP};
use common::quote::quote;
use common::repr::python_repr;
use common::timestamp::{Timestamp, TimestampError, decode_timestamps};
use service::http::{Body, Headers, Method, Response};
use service::internal_client::{UnexpectedResponse, is_success};
use thiserror::Error;

use super::remote::{Backoff, Object, RemoteError};
use super::{Job, Syncer};
use crate::container::rows::ObjectRecord;

const VERSIONS_SYMLINK: &str = "X-Object-Sysmeta-Versions-Symlink";

#[derive(Debug, Error)]
enum RowError {
    #[error("{0}")]
    Remote(#[from] RemoteError),
    #[error("{0}")]
    Source(#[from] UnexpectedResponse),
    /// What is here is older than the row says.
    #[error("Unknown exception trying to GET: {0}")]
    Stale(String),
    #[error("{0}")]
    Timestamp(#[from] TimestampError),
}

impl Syncer {
    /// Sends the update of a row. False if that failed.
    pub(super) async fn sync_row(&self, job: &Job, rowid: i64, row: &ObjectRecord) -> bool {
        let sent = self.send_row(job, row).await;
        let Err(error) = sent else { return true };
        let status = match &error {
            RowError::Remote(error) => error.status(),
            _ => None,
        };
        let from =
            python_repr(&format!("{}/{}", quote(&job.info.account, "/"), quote(&job.info.container, "/")));
        let to = python_repr(&job.target.url);
        match status {
            Some(401) => self.ctx.logger.info(format_args!("Unauth {from} => {to}")),
            Some(404) => {
                let name = python_repr(&row.name);
                self.ctx.logger.info(format_args!("Not found {from} => {to} - object {name}"));
            }
            _ => {
                let (file, row) = (job.file.display(), row_repr(rowid, row));
                self.ctx.logger.error(format_args!("ERROR Syncing {file} {row}: {error}"));
            }
        }
        self.count_failure();
        false
    }

    async fn send_row(&self, job: &Job, row: &ObjectRecord) -> Result<(), RowError> {
        let start = Instant::now();
        let (data, _, meta) = decode_timestamps(&row.created_at, false)?;
        let object = Object { target: &job.target, user_key: &job.user_key, name: &row.name };
        if row.deleted {
            match self.remote.delete(object, stamped(data)).await {
                // It is not there, or newer.
                Err(RemoteError::Status(404 | 409)) => {}
                deleted => deleted?,
            }
            let mut stats = self.stats.lock();
            stats.deletes += 1;
            stats.container.deletes += 1;
            drop(stats);
            self.ctx.statsd.increment("deletes");
            self.ctx.statsd.timing_since("deletes.timing", start);
        } else if self.put(job, object, meta.unwrap_or(data)).await? {
            let mut stats = self.stats.lock();
            stats.puts += 1;
            stats.container.puts += 1;
            stats.container.bytes += row.size;
            drop(stats);
            self.ctx.statsd.increment("puts");
            self.ctx.statsd.timing_since("puts.timing", start);
        }
        Ok(())
    }

    /// Sends an object that was last changed at `stamp`; false if there is no need.
    async fn put(&self, job: &Job, object: Object<'_>, stamp: Timestamp) -> Result<bool, RowError> {
        if self.is_in_remote(object, stamp).await? {
            return Ok(false);
        }
        let mut backoff = Backoff::new();
        loop {
            let Some((headers, body)) = self.source(job, object.name, stamp).await? else { return Ok(false) };
            match self.remote.put(object, headers, body).await {
                Ok(()) => return Ok(true),
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    /// Whether the other container has the object, as of `stamp` or later.
    async fn is_in_remote(&self, object: Object<'_>, stamp: Timestamp) -> Result<bool, RowError> {
        match self.remote.head(object, stamped(stamp)).await {
            Ok(headers) => Ok(stamp <= timestamp_of(&headers)),
            Err(RemoteError::Status(404)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The object here: what to send, and its data. `None` for a link of object versioning.
    async fn source(
        &self,
        job: &Job,
        name: &str,
        stamp: Timestamp,
    ) -> Result<Option<(Headers, Body)>, RowError> {
        let (account, container) = (&*job.info.account, &*job.info.container);
        let mut headers = Headers::new();
        headers.insert(X_NEWEST, "True");
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, job.info.storage_policy_index);
        let wanted = |status| is_success(status) || (400..500).contains(&status);
        let names = [account, container, name];
        let found = self.swift.request(Method::Get, &names, "symlink=get", &headers, wanted).await?;
        if found.headers.get(VERSIONS_SYMLINK).is_some_and(|value| !value.is_empty()) {
            self.ctx.logger.info(format_args!("Skipping versioning symlink {account}/{container}/{name} "));
            return Ok(None);
        }
        // What is not there has no time.
        if !found.is_success() || timestamp_of(&found.headers) < stamp {
            let [account, container, name] = names.map(python_repr);
            return Err(RowError::Stale(format!("{account} {container} {name}")));
        }
        Ok(Some(as_put(found)))
    }
}

fn stamped(stamp: Timestamp) -> Headers {
    let mut headers = Headers::new();
    headers.insert(X_TIMESTAMP, stamp.internal());
    headers
}

fn timestamp_of(headers: &Headers) -> Timestamp {
    headers.get_str(X_TIMESTAMP).and_then(|text| Timestamp::parse(text).ok()).unwrap_or_default()
}

/// What a GET has found, as headers and body of a PUT.
fn as_put(found: Response) -> (Headers, Body) {
    let mut headers = found.headers;
    for name in ["Date", "Last-Modified", "Connection", "Transfer-Encoding", "Content-Length"] {
        headers.remove(name);
    }
    if let Some(etag) = headers.get_str("Etag") {
        let bare = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag).to_owned();
        headers.insert("Etag", bare);
    }
    if let Some(content_type) = headers.get_str("Content-Type") {
        let clean = clean_content_type(content_type).to_owned();
        headers.insert("Content-Type", clean);
    }
    (headers, found.body)
}

/// Without the size that a listing has of a manifest.
fn clean_content_type(content_type: &str) -> &str {
    match content_type.rsplit_once(';') {
        Some((clean, last)) if last.trim_start().starts_with("swift_bytes=") => clean,
        _ => content_type,
    }
}

/// A row as Python prints its dict.
fn row_repr(rowid: i64, row: &ObjectRecord) -> String {
    format!(
        "{{'ROWID': {rowid}, 'name': {}, 'created_at': {}, 'size': {}, 'content_type': {}, 'etag': {}, 'deleted': {}}}",
        python_repr(&row.name),
        python_repr(&row.created_at),
        row.size,
        python_repr(&row.content_type),
        python_repr(&row.etag),
        u8::from(row.deleted)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_put_with_its_headers_but_those_of_the_answer() {
        let found = Response::new(200)
            .with_header("Date", "now")
            .with_header("Last-Modified", "then")
            .with_header("Etag", "\"abc\"")
            .with_header("Content-Type", "text/plain; a=b; swift_bytes=5")
            .with_header("X-Timestamp", "0000000001.00000")
            .with_header("X-Static-Large-Object", "True")
            .with_header("X-Object-Meta-A", "b")
            .with_body("body");
        let (headers, body) = as_put(found);
        let mut told: Vec<_> = headers
            .iter()
            .map(|(name, value)| [name, value].map(String::from_utf8_lossy).join(": ").to_lowercase())
            .collect();
        told.sort();
        assert_eq!(
            told,
            [
                "content-type: text/plain; a=b",
                "etag: abc",
                "x-object-meta-a: b",
                "x-static-large-object: true",
                "x-timestamp: 0000000001.00000"
            ]
        );
        assert_eq!(body.content_length(), Some(4));
    }

    #[test]
    fn only_the_size_of_a_manifest_goes_from_a_content_type() {
        for (told, clean) in [
            ("text/plain", "text/plain"),
            ("text/plain;charset=x", "text/plain;charset=x"),
            ("text/plain;charset=x;swift_bytes=1", "text/plain;charset=x"),
            ("a; swift_bytes=1", "a"),
        ] {
            assert_eq!(clean_content_type(told), clean);
        }
    }
}
