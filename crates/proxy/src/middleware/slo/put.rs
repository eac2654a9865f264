//! PUT of a manifest: every segment is looked at (HEAD, a few at a time), compared with what the client expects, and
//! the manifest is stored with what was found. With `heartbeat=on` the client gets 202 and a space now and then while
//! that lasts, and the outcome at the end.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use common::digest::{hex, md5};
use common::headers::{CONTENT_LENGTH, LAST_MODIFIED, X_STATIC_LARGE_OBJECT};
use common::quote::quote_path;
use common::timestamp::Timestamp;
use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;
use service::http::{Body, BodyError, Headers, Method, Request, Response, Status};

use super::manifest::{self, InvalidManifest, PutSegment, SegmentHead};
use super::{Core, SYSMETA_SLO_ETAG, SYSMETA_SLO_SIZE, get};
use crate::environ::ContentTypeOverridden;
use crate::middleware::heartbeat::{ACCEPTABLE_FORMATS, Problem, Report};
use crate::middleware::large_object::unquoted_etag;
use crate::middleware::query::config_true_param;
use crate::middleware::{accept, pyjson};
use crate::subrequest::make_subrequest;

const OVERRIDE_ETAG: &str = "X-Object-Sysmeta-Container-Update-Override-Etag";
const MAX_REPORTED_BODY: usize = 64 * 1024;

pub async fn put(core: Arc<Core>, mut req: Request) -> Response {
    let segments = match read_manifest(&core, &mut req).await {
        Ok(segments) => segments,
        Err(refused) => return refused,
    };
    let format = accept::best_match(req.headers.get_str("Accept"), &ACCEPTABLE_FORMATS);
    let format = format.ok().flatten().unwrap_or("text/plain");
    if config_true_param(&req, "heartbeat") {
        return put_with_heartbeat(core, req, segments, format);
    }
    match store(core, req, segments).await {
        Outcome::Stored(resp) => resp,
        Outcome::Problems(problems) => {
            let body = Report::default().body(Some(format), &problems, "upload");
            Response::new(400).with_header("Content-Type", format).with_body(body)
        }
        Outcome::EtagMismatch => Response::error(422),
    }
}

async fn read_manifest(core: &Core, req: &mut Request) -> Result<Vec<PutSegment>, Response> {
    if req.headers.get("X-Copy-From").is_some_and(|from| !from.is_empty()) {
        return Err(Response::html(405, "Multipart Manifest PUTs cannot be COPY requests"));
    }
    let too_large = || Response::html(413, format!("Manifest File > {} bytes", core.max_manifest_size));
    match req.headers.get_int::<u64>(CONTENT_LENGTH) {
        Some(length) if length > core.max_manifest_size as u64 => return Err(too_large()),
        None if !is_chunked(&req.headers) => return Err(Response::error(411)),
        _ => (),
    }
    let body = req.body.collect(core.max_manifest_size).await.map_err(|error| match error {
        BodyError::TooLong => too_large(),
        BodyError::Timeout => Response::error(408),
        BodyError::Malformed(_) => Response::error(400),
        _ => Response::error(499),
    })?;
    let segments = manifest::parse_put(&body, &req.quoted_path()).map_err(|error| match error {
        InvalidManifest::Body(message) => Response::html(400, message),
        InvalidManifest::Entries(lines) => Response::text(400, lines),
    })?;
    let objects = segments.iter().filter(|segment| matches!(segment, PutSegment::Object(_))).count();
    if objects > core.max_manifest_segments {
        let limit = core.max_manifest_segments;
        return Err(Response::html(413, format!("Number of object-backed segments must be <= {limit}")));
    }
    Ok(segments)
}

fn is_chunked(headers: &Headers) -> bool {
    headers.get_str("Transfer-Encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"))
}

/// How a PUT ends.
enum Outcome {
    /// What the object controller answered, with the ETag of the whole.
    Stored(Response),
    Problems(Vec<Problem>),
    EtagMismatch,
}

fn put_with_heartbeat(
    core: Arc<Core>,
    req: Request,
    segments: Vec<PutSegment>,
    format: &'static str,
) -> Response {
    let every = core.yield_frequency;
    let body = Body::driven(move |tx| async move {
        let _ = tx.send(" ").await;
        let mut storing = Box::pin(store(core, req, segments));
        let outcome = loop {
            tokio::select! {
                outcome = &mut storing => break outcome,
                () = tokio::time::sleep(every) => { let _ = tx.send(" ").await; }
            }
        };
        let _ = tx.send(format!("\r\n\r\n{}", report(outcome, format).await)).await;
    });
    Response::new(202).with_header("Content-Type", format).with_body(body)
}

async fn report(outcome: Outcome, format: &str) -> String {
    let mut report = Report::default();
    let mut problems = Vec::new();
    match outcome {
        Outcome::Stored(mut resp) => {
            report.set("Response Status", resp.status.to_string());
            if resp.is_success() {
                report.set("Etag", resp.headers.get_str("ETag").unwrap_or(""));
                report.set("Last Modified", resp.headers.get_str(LAST_MODIFIED).unwrap_or(""));
            }
            let body = resp.body.collect(MAX_REPORTED_BODY).await.unwrap_or_default();
            report.set("Response Body", String::from_utf8_lossy(&body).into_owned());
        }
        Outcome::Problems(found) => {
            let status = Status::BAD_REQUEST;
            report.set("Response Status", status.to_string());
            report.set("Response Body", format!("{}\n{}", status.reason(), status.explanation()));
            problems = found;
        }
        Outcome::EtagMismatch => {
            let status = Status::UNPROCESSABLE_ENTITY;
            report.set("Response Status", status.to_string());
            report.set("Response Body", format!("{}\n{}", status.reason(), status.explanation()));
        }
    }
    report.body(Some(format), &problems, "upload")
}

/// Checks the segments and stores the manifest.
async fn store(core: Arc<Core>, mut req: Request, segments: Vec<PutSegment>) -> Outcome {
    let heads = look_at_segments(&core, &mut req, &segments).await;
    let mut stored = Vec::with_capacity(segments.len());
    let mut problems: Vec<Problem> = Vec::new();
    let mut size = 0;
    for (index, segment) in segments.iter().enumerate() {
        match segment {
            PutSegment::Data(data) => {
                size += data.len() as u64;
                stored.push(manifest::stored_data(data));
            }
            PutSegment::Object(object) => match &heads[&object.path] {
                Ok(head) => {
                    let last = index + 1 == segments.len();
                    let (checked, wrong) = manifest::check_segment(object, head, last);
                    problems
                        .extend(wrong.into_iter().map(|what| (quote_path(&object.path), what.to_owned())));
                    size += checked.length;
                    stored.push(checked.stored);
                }
                Err(status) => problems.push((quote_path(&object.path), status.to_string())),
            },
        }
    }
    if !problems.is_empty() {
        return Outcome::Problems(problems);
    }
    let slo_etag = manifest::slo_etag(&stored);
    let client_etag = req.headers.get_str("ETag").unwrap_or("");
    let client_etag =
        client_etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(client_etag);
    if !client_etag.is_empty() && client_etag != slo_etag {
        return Outcome::EtagMismatch;
    }
    into_manifest(&core, &mut req, pyjson::dumps(&Value::Array(stored)), &slo_etag, size);
    let mut resp = core.app.call(req).await;
    if resp.is_success() {
        resp.headers.insert("ETag", format!("\"{slo_etag}\""));
    }
    Outcome::Stored(resp)
}

/// Makes the client's request the PUT of the manifest as it is stored.
fn into_manifest(core: &Core, req: &mut Request, json: String, slo_etag: &str, size: u64) {
    let etag = hex(&md5(json.as_bytes()));
    // Listings show both ETags; what a filter further left wants them to show goes first.
    let shown = req.headers.get_str(OVERRIDE_ETAG).unwrap_or("").to_owned();
    let (shown, parameters) = match shown.split_once(';') {
        Some((shown, parameters)) => (shown.to_owned(), format!(";{parameters}")),
        None => (shown, String::new()),
    };
    let shown = if shown.is_empty() { &etag } else { &shown };
    let shown = format!("{shown}{parameters}; slo_etag={slo_etag}");
    req.headers.insert(OVERRIDE_ETAG, shown);
    let content_type =
        match req.headers.get_str("Content-Type").filter(|content_type| !content_type.is_empty()) {
            Some(content_type) => content_type.to_owned(),
            None => core.mime_types.guess_type(&req.path).unwrap_or("application/octet-stream").to_owned(),
        };
    req.headers.insert("Content-Type", format!("{content_type};swift_bytes={size}"));
    req.env.insert(ContentTypeOverridden);
    req.headers.insert(SYSMETA_SLO_ETAG, slo_etag);
    req.headers.insert(SYSMETA_SLO_SIZE, size.to_string());
    req.headers.insert(X_STATIC_LARGE_OBJECT, "True");
    req.headers.insert("ETag", etag);
    req.headers.remove("Transfer-Encoding");
    req.headers.insert(CONTENT_LENGTH, json.len().to_string());
    req.body = Body::from(Bytes::from(json));
}

type Heads = HashMap<String, Result<SegmentHead, Status>>;

/// A HEAD of each object, through this filter: a segment may itself be a static large object.
async fn look_at_segments(core: &Arc<Core>, req: &mut Request, segments: &[PutSegment]) -> Heads {
    let mut parts = req.split_path(2, 3, true).unwrap_or_default().into_iter().flatten();
    let account_path = format!("/{}/{}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut paths: Vec<&str> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for segment in segments {
        if let PutSegment::Object(object) = segment
            && seen.insert(object.path.as_str())
        {
            paths.push(&object.path);
        }
    }
    let mut headers = Headers::new();
    if let Some(token) = req.headers.get("X-Auth-Token") {
        headers.insert("X-Auth-Token", token);
    }
    let mut requests = Vec::with_capacity(paths.len());
    for path in paths {
        let full = format!("{account_path}/{}", path.trim_start_matches('/'));
        let agent = "%(orig)s SLO MultipartPUT";
        let head = make_subrequest(req, Method::Head, &full, "", headers.clone(), agent, "SLO");
        requests.push((path.to_owned(), head));
    }
    let looks = requests.into_iter().map(|(path, head)| {
        let core = core.clone();
        async move { (path, seen_as(get::get_or_head(core, head).await)) }
    });
    stream::iter(looks).buffered(core.concurrency.max(1)).collect().await
}

fn seen_as(resp: Response) -> Result<SegmentHead, Status> {
    if !resp.is_success() {
        return Err(resp.status);
    }
    let modified = resp.headers.get(LAST_MODIFIED).and_then(Timestamp::parse_http_date).unwrap_or(0);
    let content_type = resp.headers.get_str("Content-Type").unwrap_or("");
    Ok(SegmentHead {
        content_length: resp.content_length().unwrap_or(0),
        etag: unquoted_etag(&resp).unwrap_or_default(),
        content_type: content_type.split(';').next().unwrap_or("").to_owned(),
        last_modified: Timestamp::new(modified * 100_000, 0).isoformat(),
        is_slo: resp.headers.get_bool(X_STATIC_LARGE_OBJECT),
    })
}
