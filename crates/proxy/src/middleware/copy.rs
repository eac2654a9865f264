//! `copy`: COPY, and PUT with `X-Copy-From`, done by the proxy: the source is read and written again.
//!
//! What the new object takes over from the source: its data, or the part of it that a Range asks for; user
//! metadata (unless `X-Fresh-Metadata`) under what the request itself sets; system metadata; the content type.
//! With `?multipart-manifest=get` a manifest is copied instead of what it stands for. With `heartbeat=on` the
//! answer is 202 at once and a report at the end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::config::{ConfigError, Section};
use common::headers::{
    ServerType, X_BACKEND_STORAGE_POLICY_INDEX, X_COPIED_FROM, X_COPIED_FROM_ACCOUNT, X_NEWEST,
    X_OBJECT_MANIFEST, X_OBJECT_SYSMETA_CONTAINER_UPDATE_OVERRIDE_PREFIX, X_STATIC_LARGE_OBJECT,
    is_object_transient_sysmeta, is_sys_meta, is_sys_or_user_meta, strip_prefix_ignore_case,
};
use common::quote::{quote_path, unquote};
use service::Context;
use service::http::message::split_path;
use service::http::{App, Body, BoxFuture, Headers, Method, Request, Response, SharedApp};

use super::accept;
use super::access_log::AccessLog;
use super::heartbeat::{Problem, Report};
use super::query::{config_true_param, with_params};
use crate::environ::OrigMethod;
use crate::subrequest::make_subrequest;

const X_COPY_FROM: &str = "X-Copy-From";
const X_COPY_FROM_ACCOUNT: &str = "X-Copy-From-Account";

/// Of the source's headers these do not simply become the new object's.
const NOT_COPIED: [&str; 6] = [
    "x-static-large-object",
    "x-object-manifest",
    "etag",
    "content-type",
    "x-timestamp",
    "x-backend-timestamp",
];

pub struct Copy {
    core: Arc<Core>,
}

struct Core {
    app: SharedApp,
    yield_frequency: Duration,
    max_file_size: u64,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    Ok(Arc::new(Copy {
        core: Arc::new(Core {
            app,
            yield_frequency: Duration::from_secs(section.int("yield_frequency", 10)?),
            max_file_size: ctx.swift_conf.constraints.max_file_size,
        }),
    }))
}

impl App for Copy {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        let core = &self.core;
        let wanted = match req.method {
            Method::Put => req.headers.get(X_COPY_FROM).is_some_and(|from| !from.is_empty()),
            Method::Copy | Method::Options => true,
            _ => false,
        };
        // A path that isn't UTF-8 is for the proxy app to refuse.
        if !wanted || !req.path_is_utf8 {
            return core.app.call(req);
        }
        let Some(target) = Target::of(&req) else {
            return core.app.call(req);
        };
        Box::pin(async move {
            let copied = match req.method {
                Method::Options => Ok(core.options(req).await),
                Method::Copy => core.clone().copy(req, target).await,
                _ => core.clone().put(req, target).await,
            };
            copied.unwrap_or_else(|refused| refused)
        })
    }
}

/// An object as the path of a request names it.
struct Target {
    version: String,
    account: String,
    container: String,
    object: String,
}

impl Target {
    fn of(req: &Request) -> Option<Self> {
        let parts: [Option<String>; 4] = req.split_path(4, 4, true).ok()?.try_into().ok()?;
        let [version, account, container, object] = parts;
        Some(Self { version: version?, account: account?, container: container?, object: object? })
    }

    fn path(&self) -> String {
        format!("/{}/{}/{}/{}", self.version, self.account, self.container, self.object)
    }
}

impl Core {
    async fn options(&self, req: Request) -> Response {
        let mut resp = self.app.call(req).await;
        if resp.is_success() {
            for name in ["Allow", "Access-Control-Allow-Methods"] {
                if let Some(methods) = resp.headers.get_str(name).filter(|methods| !methods.contains("COPY"))
                {
                    let methods = format!("{methods}, COPY");
                    resp.headers.insert(name, methods);
                }
            }
        }
        resp
    }

    /// COPY is a PUT to the destination from this path.
    async fn copy(self: Arc<Self>, mut req: Request, source: Target) -> Result<Response, Response> {
        req.env.insert(OrigMethod(Method::Copy));
        if req.headers.get("Destination").is_none_or(<[u8]>::is_empty) {
            return Err(Response::html(412, "Destination header required"));
        }
        let mut account = source.account.clone();
        if let Some(header) = req.headers.remove("Destination-Account") {
            account = check_account(&header)?;
            req.headers.insert(X_COPY_FROM_ACCOUNT, quote_path(&source.account));
        }
        let destination = req.headers.remove("Destination").unwrap_or_default();
        let (container, object) = split_path_header("Destination", &destination)?;
        let from = format!("/{}/{}", source.container, source.object);
        let target = Target { version: source.version, account, container, object };
        req.method = Method::Put;
        req.set_path(target.path());
        req.headers.insert("Content-Length", "0");
        req.headers.insert(X_COPY_FROM, quote_path(&from));
        AccessLog::note_target(&req);
        self.put(req, target).await
    }

    async fn put(self: Arc<Self>, req: Request, target: Target) -> Result<Response, Response> {
        if req.headers.get_int::<u64>("Content-Length").is_some_and(|length| length > 0) {
            return Err(Response::text(400, "Copy requests require a zero byte body"));
        }
        let source = self.source_of(&req, target)?;
        let source_req = source_request(&req, &source);
        let mut source_resp = self.app.call(source_req).await;
        match source_resp.content_length() {
            Some(length) if length <= self.max_file_size => (),
            _ => return Err(Response::error(413)),
        }
        if source_resp.status.0 >= 300 {
            return Ok(source_resp);
        }
        let body = std::mem::take(&mut source_resp.body);
        let sink = sink_request(req, &source_resp, body);
        let told = response_headers(&source, &source_resp, &sink);
        match config_true_param(&sink, "heartbeat") {
            true => Ok(self.put_with_heartbeat(sink, told)),
            false => {
                let mut resp = self.app.call(sink).await;
                if resp.is_success() {
                    for (name, value) in told.iter() {
                        resp.headers.append(name, value);
                    }
                }
                Ok(resp)
            }
        }
    }

    fn source_of(&self, req: &Request, target: Target) -> Result<Target, Response> {
        let account = match req.headers.get(X_COPY_FROM_ACCOUNT).filter(|account| !account.is_empty()) {
            Some(account) => check_account(account)?,
            None => target.account,
        };
        let from = req.headers.get(X_COPY_FROM).unwrap_or_default();
        let (container, object) = split_path_header(X_COPY_FROM, from)?;
        Ok(Target { version: target.version, account, container, object })
    }

    /// Says 202 at once, then a space every now and then, then how it went.
    fn put_with_heartbeat(self: Arc<Self>, sink: Request, told: Headers) -> Response {
        let format = accept::best_match(sink.headers.get_str("Accept"), &["text/plain", "application/json"]);
        let format = format.ok().flatten().unwrap_or("text/plain");
        let report = move |mut resp: Response, body: Bytes| {
            let mut report = Report::default();
            report.set("Response Status", resp.status.to_string());
            report.set("Response Body", String::from_utf8_lossy(&body).into_owned());
            let mut problems: Vec<Problem> = Vec::new();
            if !resp.is_success() {
                let from = told.get_str(X_COPIED_FROM).unwrap_or("");
                problems.push((quote_path(from), resp.status.to_string()));
            }
            let mut headers = Headers::new();
            for (name, value) in told.iter().chain(resp.headers.iter()) {
                headers.insert(name, value);
                if name.eq_ignore_ascii_case(b"Content-Type") {
                    headers.insert_default("Content-Length", body.len());
                }
            }
            resp.headers = headers;
            for (name, value) in resp.headers.iter() {
                let name = String::from_utf8_lossy(name);
                let private = ["x-object-sysmeta-", "x-backend"];
                if !private.iter().any(|prefix| strip_prefix_ignore_case(&name, prefix).is_some()) {
                    report.set(&name, String::from_utf8_lossy(value).into_owned());
                }
            }
            report.body(Some(format), &problems, "copy")
        };
        let every = self.yield_frequency;
        let body = Body::driven(move |tx| async move {
            let _ = tx.send(" ").await;
            let mut call = self.app.call(sink);
            let mut resp = loop {
                tokio::select! {
                    resp = &mut call => break resp,
                    () = tokio::time::sleep(every) => { let _ = tx.send(" ").await; }
                }
            };
            let body = resp.body.collect(MAX_REPORTED_BODY).await.unwrap_or_default();
            let _ = tx.send(report(resp, body)).await;
        });
        Response::new(202).with_header("Content-Type", format).with_body(body)
    }
}

/// More of a response's body than this is not told in a report.
const MAX_REPORTED_BODY: usize = 64 * 1024;

/// An account named by a header.
pub(super) fn check_account(header: &[u8]) -> Result<String, Response> {
    let account = String::from_utf8(unquote(header)).map_err(|_| not_utf8())?;
    if account.is_empty() {
        return Err(Response::html(412, "Account name cannot be empty"));
    }
    if account.contains('/') {
        return Err(Response::html(412, "Account name cannot contain slashes"));
    }
    Ok(account)
}

/// `[/]container/object` in a header, quoted.
pub(super) fn split_path_header(name: &str, value: &[u8]) -> Result<(String, String), Response> {
    let path = String::from_utf8(unquote(value)).map_err(|_| not_utf8())?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let parts = split_path(&format!("{slash}{path}"), 2, 2, true).map(<[_; 2]>::try_from);
    match parts {
        Ok(Ok([Some(container), Some(object)])) => Ok((container, object)),
        _ => Err(Response::html(
            412,
            format!("{name} header must be of the form <container name>/<object name>"),
        )),
    }
}

fn not_utf8() -> Response {
    Response::html(412, "Invalid UTF8 or contains NULL")
}

fn source_request(req: &Request, source: &Target) -> Request {
    let mut headers = req.headers.clone();
    headers.remove(X_BACKEND_STORAGE_POLICY_INDEX);
    headers.insert("Content-Length", "0");
    headers.insert(X_NEWEST, "true");
    let query = match req.param("multipart-manifest").as_deref() {
        Some("get") => with_params(req, |params| {
            params.retain(|(name, _)| name != "format");
            params.push(("format".to_owned(), "raw".to_owned()));
        }),
        _ => req.query.clone(),
    };
    let path = source.path();
    make_subrequest(req, Method::Get, &path, &query, headers, "Swift", "SSC")
}

/// The request that writes the copy, made of the client's.
fn sink_request(mut req: Request, source: &Response, body: Body) -> Request {
    let manifest_get = req.param("multipart-manifest").as_deref() == Some("get");
    let own_content_type =
        req.headers.get("Content-Type").is_some_and(|content_type| !content_type.is_empty());
    let fresh = req.headers.get_bool("X-Fresh-Metadata");
    for (name, value) in source.headers.iter() {
        let text = String::from_utf8_lossy(name);
        let taken = match fresh {
            true => is_sys_meta(ServerType::Object, &text),
            false => !NOT_COPIED.iter().any(|excluded| text.eq_ignore_ascii_case(excluded)),
        };
        if taken {
            req.headers.insert_default(name, value);
        }
    }
    let is_slo = source.headers.contains(X_STATIC_LARGE_OBJECT);
    let dlo = source.headers.get(X_OBJECT_MANIFEST).map(<[u8]>::to_vec);
    let query = with_params(&req, |params| {
        if manifest_get && is_slo {
            params.iter_mut().filter(|(name, _)| name == "multipart-manifest").for_each(|(_, value)| {
                "put".clone_into(value);
            });
        }
        if manifest_get && dlo.is_some() {
            params.retain(|(name, _)| name != "multipart-manifest");
        }
        params.retain(|(name, _)| name != "version-id");
    });
    // The copy's ETag is checked where the source's is the MD5 of the very bytes that are written.
    let is_dlo = dlo.is_some();
    if let Some(dlo) = dlo.filter(|_| manifest_get) {
        req.headers.insert(X_OBJECT_MANIFEST, dlo);
    }
    if source.status.0 == 200 && !is_slo && (!is_dlo || manifest_get) {
        let etag = source.headers.get("ETag").unwrap_or_default();
        let etag: Vec<u8> = etag.iter().copied().filter(|&b| b != b'"').collect();
        req.headers.insert("ETag", etag);
    } else {
        let prefix = X_OBJECT_SYSMETA_CONTAINER_UPDATE_OVERRIDE_PREFIX.as_bytes();
        req.headers.retain(|name, _| {
            !name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        });
    }
    req.headers.remove(X_COPY_FROM);
    req.headers.remove(X_COPY_FROM_ACCOUNT);
    if !own_content_type && let Some(content_type) = source.headers.get("Content-Type") {
        req.headers.insert("Content-Type", content_type);
    }
    req.headers.remove("Transfer-Encoding");
    req.headers.insert("Content-Length", source.content_length().unwrap_or(0).to_string());
    req.env.source = Some("SSC");
    req.body = body;
    match query == req.query {
        true => req,
        false => req.with_query(query),
    }
}

/// What the response to a copy says besides that of a PUT.
fn response_headers(source: &Target, source_resp: &Response, sink: &Request) -> Headers {
    let mut told = Headers::new();
    told.insert(X_COPIED_FROM_ACCOUNT, quote_path(&source.account));
    told.insert(X_COPIED_FROM, quote_path(format!("{}/{}", source.container, source.object)));
    if let Some(last_modified) = source_resp.headers.get("Last-Modified") {
        told.insert("X-Copied-From-Last-Modified", last_modified);
    }
    if let Some(version_id) = source_resp.headers.get("X-Object-Version-Id") {
        told.insert("X-Copied-From-Version-Id", version_id);
    }
    for (name, value) in sink.headers.iter() {
        let text = String::from_utf8_lossy(name);
        if is_sys_or_user_meta(ServerType::Object, &text)
            || is_object_transient_sysmeta(&text)
            || text.eq_ignore_ascii_case("x-delete-at")
        {
            told.insert(name, value);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{FakeSwift, request, send};

    fn filter(swift: &FakeSwift) -> SharedApp {
        let yield_frequency = Duration::from_secs(10);
        let core = Core { app: swift.app(), yield_frequency, max_file_size: 1000 };
        Arc::new(Copy { core: Arc::new(core) })
    }

    fn with_source() -> FakeSwift {
        let swift = FakeSwift::default();
        let headers =
            [("X-Object-Meta-Old", "1"), ("X-Object-Sysmeta-S", "2"), ("Content-Type", "text/source")];
        swift.put("/v1/a/c/s o", "0123456789", &headers);
        swift
    }

    #[tokio::test]
    async fn put_from_another_object_takes_its_data_and_metadata() {
        let swift = with_source();
        let headers = [("X-Copy-From", "c/s%20o"), ("X-Object-Meta-New", "3"), ("Content-Length", "0")];
        let (status, headers, _) = send(&filter(&swift), request(Method::Put, "/v1/a/d/o", &headers)).await;
        assert_eq!(status, 201);
        assert_eq!(swift.body("/v1/a/d/o").as_deref(), Some("0123456789"));
        for (name, value) in [
            ("X-Object-Meta-Old", "1"),
            ("X-Object-Meta-New", "3"),
            ("X-Object-Sysmeta-S", "2"),
            ("Content-Type", "text/source"),
        ] {
            assert_eq!(swift.header("/v1/a/d/o", name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(headers.get_str("X-Copied-From"), Some("c/s%20o"));
        assert_eq!(headers.get_str("X-Copied-From-Account"), Some("a"));
        assert_eq!(headers.get_str("X-Copied-From-Last-Modified"), Some("Tue, 10 Jun 2014 22:47:32 GMT"));
        assert_eq!(headers.get_str("X-Object-Meta-Old"), Some("1"));
    }

    #[tokio::test]
    async fn copy_goes_to_the_destination_also_in_another_account() {
        let swift = with_source();
        let headers = [("Destination", "/d/%C3%A9"), ("Destination-Account", "b")];
        let (status, headers, _) =
            send(&filter(&swift), request(Method::Copy, "/v1/a/c/s%20o", &headers)).await;
        assert_eq!((status, headers.get_str("X-Copied-From-Account")), (201, Some("a")));
        assert_eq!(swift.body("/v1/b/d/é").as_deref(), Some("0123456789"));
    }

    #[tokio::test]
    async fn fresh_metadata_leaves_the_old_behind() {
        let swift = with_source();
        let headers = [("X-Copy-From", "/c/s o"), ("X-Fresh-Metadata", "true")];
        send(&filter(&swift), request(Method::Put, "/v1/a/d/o", &headers)).await;
        assert_eq!(swift.header("/v1/a/d/o", "X-Object-Meta-Old"), None);
        assert_eq!(swift.header("/v1/a/d/o", "X-Object-Sysmeta-S").as_deref(), Some("2"));
        assert_eq!(swift.header("/v1/a/d/o", "Content-Type").as_deref(), Some("text/source"));
    }

    #[tokio::test]
    async fn part_of_an_object_may_be_copied() {
        let swift = with_source();
        let headers = [("X-Copy-From", "/c/s o"), ("Range", "bytes=2-4")];
        let (status, ..) = send(&filter(&swift), request(Method::Put, "/v1/a/d/o", &headers)).await;
        assert_eq!((status, swift.body("/v1/a/d/o").as_deref()), (201, Some("234")));
    }

    #[tokio::test]
    async fn malformed_copies_are_refused() {
        let swift = with_source();
        type Case<'a> = (Method, &'a [(&'a str, &'a str)], u16, &'a str);
        let cases: [Case; 6] = [
            (Method::Copy, &[], 412, "Destination header required"),
            (
                Method::Copy,
                &[("Destination", "c")],
                412,
                "Destination header must be of the form <container name>/<object name>",
            ),
            (
                Method::Copy,
                &[("Destination", "c/o"), ("Destination-Account", "a/b")],
                412,
                "Account name cannot contain slashes",
            ),
            (
                Method::Put,
                &[("X-Copy-From", "c")],
                412,
                "X-Copy-From header must be of the form <container name>/<object name>",
            ),
            (
                Method::Put,
                &[("X-Copy-From", "c/o"), ("Content-Length", "1")],
                400,
                "Copy requests require a zero byte body",
            ),
            (
                Method::Put,
                &[("X-Copy-From", "c/o"), ("X-Copy-From-Account", "%2f")],
                412,
                "Account name cannot contain slashes",
            ),
        ];
        for (method, headers, status, body) in cases {
            let answer = send(&filter(&swift), request(method, "/v1/a/c/s%20o", headers)).await;
            assert_eq!((answer.0, answer.2.as_str()), (status, body));
        }
    }

    #[tokio::test]
    async fn source_that_fails_or_is_too_large_is_not_copied() {
        let swift = with_source();
        let from = |path| [("X-Copy-From", path)];
        let (status, ..) = send(&filter(&swift), request(Method::Put, "/v1/a/d/o", &from("c/none"))).await;
        assert_eq!(status, 404);
        swift.put("/v1/a/c/large", "x".repeat(1001), &[]);
        let (status, ..) = send(&filter(&swift), request(Method::Put, "/v1/a/d/o", &from("c/large"))).await;
        assert_eq!((status, swift.body("/v1/a/d/o")), (413, None));
    }

    #[tokio::test]
    async fn heartbeat_ends_with_a_report() {
        let swift = with_source();
        let req = request(Method::Put, "/v1/a/d/o?heartbeat=on", &[("X-Copy-From", "c/s o")]);
        let (status, _, body) = send(&filter(&swift), req).await;
        assert_eq!(status, 202);
        assert!(body.starts_with(" ") && body.contains("Response Status: 201 Created\n"), "{body}");
        assert!(body.contains("X-Copied-From: c/s%20o\n") && !body.contains("Sysmeta"), "{body}");
    }

    #[tokio::test]
    async fn options_tell_of_copy() {
        let swift = FakeSwift::default();
        let (_, headers, _) = send(&filter(&swift), request(Method::Options, "/v1/a/c/o", &[])).await;
        assert_eq!(headers.get_str("Allow"), Some("GET, PUT, COPY"));
    }
}
