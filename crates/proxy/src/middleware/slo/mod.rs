//! `slo`: static large objects. A manifest, PUT with `?multipart-manifest=put`, names segments and what they must be;
//! a GET of it answers with their content, one after another.
//!
//! The manifest is an object with `X-Static-Large-Object: True`, its JSON as data, and the ETag and size of the whole
//! in system metadata, so that conditions of a GET can be decided by object servers (`X-Backend-Etag-Is-At`).
//!
//! - [`manifest`]: the two forms of a manifest, and all checks; pure
//! - `get`: GET and HEAD of the object or of its manifest
//! - `put`: PUT, with or without heartbeat
//! - `delete`: DELETE with all segments
//!
//! `?async=yes` of a DELETE is not offered (`/info` says so) and is ignored, as by a Swift with
//! `allow_async_delete = no`.

mod delete;
mod get;
pub mod manifest;
mod put;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::config::{ConfigError, Section};
use common::headers::{CONTENT_LENGTH, X_STATIC_LARGE_OBJECT};
use serde_json::{Value, json};
use service::Context;
use service::http::{App, BoxFuture, Method, Request, Response, SharedApp};

use super::large_object::ReadLimits;
use super::listing_formats::MAX_CONTAINER_LISTING_CONTENT_LENGTH;
use super::pyjson;
use crate::environ::SloOverride;
use crate::mime_types::MimeTypes;
use crate::swift_info::SwiftInfo;

const SYSMETA_SLO_ETAG: &str = "X-Object-Sysmeta-Slo-Etag";
const SYSMETA_SLO_SIZE: &str = "X-Object-Sysmeta-Slo-Size";
/// Manifests may have been stored when `max_manifest_size` was larger.
const MAX_STORED_MANIFEST: usize = 128 * 1024 * 1024;

pub struct StaticLargeObject {
    core: Arc<Core>,
}

struct Core {
    app: SharedApp,
    ctx: Context,
    mime_types: MimeTypes,
    limits: ReadLimits,
    /// Only smaller segments are rate limited.
    rate_limit_under_size: u64,
    max_manifest_segments: usize,
    max_manifest_size: usize,
    yield_frequency: Duration,
    /// How many segments are looked at at a time.
    concurrency: usize,
    delete_concurrency: usize,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let concurrency = section.int("concurrency", 2usize)?.min(1000);
    let yield_frequency = section.int("yield_frequency", 10)?;
    section.bool("allow_async_delete", true)?;
    let core = Core {
        app,
        ctx: ctx.clone(),
        mime_types: MimeTypes::load(&ctx.swift_conf.dir),
        limits: ReadLimits {
            max_get_time: Duration::from_secs(section.int("max_get_time", 86_400)?),
            rate_limit_after_segment: section.int("rate_limit_after_segment", 10)?,
            rate_limit_segments_per_sec: section.int("rate_limit_segments_per_sec", 1)?,
        },
        rate_limit_under_size: section.int("rate_limit_under_size", 1024 * 1024)?,
        max_manifest_segments: section.int("max_manifest_segments", 1000)?,
        max_manifest_size: section.int("max_manifest_size", 8 * 1024 * 1024)?,
        yield_frequency: Duration::from_secs(yield_frequency),
        concurrency,
        delete_concurrency: section.int("delete_concurrency", concurrency)?,
    };
    let capabilities = json!({
        "max_manifest_segments": core.max_manifest_segments,
        "max_manifest_size": core.max_manifest_size,
        "yield_frequency": yield_frequency,
        // No longer an option, but clients may look for it.
        "min_segment_size": 1,
        "allow_async_delete": false,
    });
    SwiftInfo::of(ctx).register("slo", capabilities);
    Ok(Arc::new(StaticLargeObject { core: Arc::new(core) }))
}

impl App for StaticLargeObject {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        let core = &self.core;
        if req.env.get::<SloOverride>().is_some() {
            return core.app.call(req);
        }
        let Ok(parts) = req.split_path(3, 4, true) else {
            return core.app.call(req);
        };
        if parts[3].as_ref().is_none_or(String::is_empty) {
            return match req.method {
                Method::Get => Box::pin(core.container_listing(req)),
                _ => core.app.call(req),
            };
        }
        let manifest = |wanted: &str| {
            !req.query.is_empty() && req.param("multipart-manifest").as_deref() == Some(wanted)
        };
        match req.method {
            Method::Get | Method::Head => Box::pin(get::get_or_head(core.clone(), req)),
            Method::Put if manifest("put") => Box::pin(put::put(core.clone(), req)),
            Method::Delete if manifest("delete") => Box::pin(delete::delete(core.clone(), req)),
            _ if req.headers.contains(X_STATIC_LARGE_OBJECT) => Box::pin(async { reserved_header() }),
            _ => core.app.call(req),
        }
    }
}

fn reserved_header() -> Response {
    Response::html(
        400,
        "X-Static-Large-Object is a reserved header. To create a static large object add query param \
         multipart-manifest=put.",
    )
}

impl Core {
    /// The listing shows the ETag of a manifest and, from the same member of a row, that of the whole.
    async fn container_listing(&self, req: Request) -> Response {
        let mut resp = self.app.call(req).await;
        let content_type = resp.headers.get_str("Content-Type").unwrap_or("");
        let is_json = content_type.split(';').next() == Some("application/json");
        let length = resp.content_length().filter(|length| *length <= MAX_CONTAINER_LISTING_CONTENT_LENGTH);
        if !resp.is_success() || !is_json || length.is_none() {
            return resp;
        }
        let Ok(body) = resp.body.collect(MAX_CONTAINER_LISTING_CONTENT_LENGTH as usize).await else {
            return Response::error(503);
        };
        match with_slo_etags(&body) {
            Some(listing) => {
                resp.headers.insert(CONTENT_LENGTH, listing.len().to_string());
                resp.with_body(listing)
            }
            None => resp.with_body(body),
        }
    }
}

/// The listing with `slo_etag` as a member of its own; `None` if there is nothing to change.
fn with_slo_etags(body: &Bytes) -> Option<String> {
    memchr::memmem::find(body, b"slo_etag=")?;
    let mut listing: Value = serde_json::from_slice(body).ok()?;
    for item in listing.as_array_mut()?.iter_mut().filter_map(Value::as_object_mut) {
        let Some(hash) = item.get("hash").and_then(Value::as_str) else {
            continue;
        };
        let mut parameters = hash.split(';').map(str::trim);
        let mut bare = parameters.next().unwrap_or("").to_owned();
        let mut slo_etag = None;
        for parameter in parameters {
            match parameter.strip_prefix("slo_etag=") {
                Some(etag) => slo_etag = Some(format!("\"{etag}\"")),
                None => bare.push_str(&format!("; {parameter}")),
            }
        }
        if let Some(slo_etag) = slo_etag {
            item.insert("slo_etag".to_owned(), Value::String(slo_etag));
            item.insert("hash".to_owned(), Value::String(bare));
        }
    }
    Some(pyjson::dumps(&listing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_shows_both_etags_of_a_manifest() {
        let listing = Bytes::from(
            r#"[{"name": "é", "hash": "abc; slo_etag=def; x=y", "bytes": 1}, {"subdir": "a"}, {"hash": "z"}]"#,
        );
        assert_eq!(
            with_slo_etags(&listing).unwrap(),
            "[{\"name\": \"\\u00e9\", \"hash\": \"abc; x=y\", \"bytes\": 1, \"slo_etag\": \"\\\"def\\\"\"}, \
             {\"subdir\": \"a\"}, {\"hash\": \"z\"}]"
        );
        assert_eq!(with_slo_etags(&Bytes::from("[{\"hash\": \"z\"}]")), None);
    }

    use crate::middleware::testing::{FakeSwift, request, send};

    fn filter(swift: &FakeSwift) -> SharedApp {
        Arc::new(StaticLargeObject {
            core: Arc::new(Core {
                app: swift.app(),
                ctx: Context::builder("proxy-server").build(),
                mime_types: MimeTypes::builtin(),
                limits: ReadLimits {
                    max_get_time: Duration::from_secs(60),
                    rate_limit_after_segment: 100,
                    rate_limit_segments_per_sec: 1,
                },
                rate_limit_under_size: 10,
                max_manifest_segments: 5,
                max_manifest_size: 2000,
                yield_frequency: Duration::from_secs(10),
                concurrency: 2,
                delete_concurrency: 2,
            }),
        })
    }

    async fn put(swift: &FakeSwift, target: &str, manifest: &str) -> (u16, service::http::Headers, String) {
        let mut req = request(Method::Put, target, &[("Content-Type", "text/x")]);
        req.headers.insert("Content-Length", manifest.len());
        req.body = service::http::Body::from(manifest.to_owned());
        send(&filter(swift), req).await
    }

    const PUT: &str = "/v1/a/m/o?multipart-manifest=put";
    const MANIFEST: &str = r#"[{"path": "/c/a"}, {"data": "LS0="}, {"path": "c/b", "range": "1-2"}]"#;

    async fn large_object() -> FakeSwift {
        let swift = FakeSwift::default();
        swift.put("/v1/a/c/a", "aaaa", &[]);
        swift.put("/v1/a/c/b", "bBBb", &[]);
        let (status, ..) = put(&swift, PUT, MANIFEST).await;
        assert_eq!(status, 201);
        swift
    }

    async fn get(
        swift: &FakeSwift,
        target: &str,
        headers: &[(&str, &str)],
    ) -> (u16, service::http::Headers, String) {
        send(&filter(swift), request(Method::Get, target, headers)).await
    }

    #[tokio::test]
    async fn manifest_is_stored_with_what_its_segments_are() {
        let swift = large_object().await;
        assert_eq!(swift.header("/v1/a/m/o", "X-Object-Sysmeta-Slo-Size").as_deref(), Some("8"));
        assert_eq!(swift.header("/v1/a/m/o", "X-Static-Large-Object").as_deref(), Some("True"));
        assert_eq!(swift.header("/v1/a/m/o", "Content-Type").as_deref(), Some("text/x;swift_bytes=8"));
        let stored = swift.body("/v1/a/m/o").unwrap();
        let hash = |data: &[u8]| common::digest::hex(&common::digest::md5(data));
        assert_eq!(
            stored,
            format!(
                "[{{\"name\": \"/c/a\", \"bytes\": 4, \"hash\": \"{}\", \"content_type\": \
                 \"application/octet-stream\", \"last_modified\": \"2014-06-10T22:47:32.000000\"}}, \
                 {{\"data\": \"LS0=\"}}, {{\"name\": \"/c/b\", \"bytes\": 4, \"hash\": \"{}\", \
                 \"content_type\": \"application/octet-stream\", \"last_modified\": \
                 \"2014-06-10T22:47:32.000000\", \"range\": \"1-2\"}}]",
                hash(b"aaaa"),
                hash(b"bBBb")
            )
        );
        let slo_etag = swift.header("/v1/a/m/o", SYSMETA_SLO_ETAG).unwrap();
        let expected = hash(format!("{}{}{}:1-2;", hash(b"aaaa"), hash(b"--"), hash(b"bBBb")).as_bytes());
        assert_eq!(slo_etag, expected);
        let shown = swift.header("/v1/a/m/o", "X-Object-Sysmeta-Container-Update-Override-Etag").unwrap();
        assert_eq!(shown, format!("{}; slo_etag={slo_etag}", hash(stored.as_bytes())));
    }

    #[tokio::test]
    async fn content_is_that_of_the_segments() {
        let swift = large_object().await;
        let (status, headers, body) = get(&swift, "/v1/a/m/o", &[]).await;
        assert_eq!((status, body.as_str()), (200, "aaaa--BB"));
        assert_eq!(headers.get_str("Content-Length"), Some("8"));
        assert!(headers.contains("X-Manifest-Etag"));
        let (status, headers, _) = send(&filter(&swift), request(Method::Head, "/v1/a/m/o", &[])).await;
        assert_eq!((status, headers.get_str("Content-Length")), (200, Some("8")));
    }

    #[tokio::test]
    async fn ranges_are_of_the_whole() {
        let swift = large_object().await;
        let (status, headers, body) = get(&swift, "/v1/a/m/o", &[("Range", "bytes=3-6")]).await;
        assert_eq!((status, body.as_str()), (206, "a--B"));
        assert_eq!(headers.get_str("Content-Range"), Some("bytes 3-6/8"));
        let (status, headers, body) = get(&swift, "/v1/a/m/o", &[("Range", "bytes=0-0,7-7")]).await;
        assert_eq!(status, 206);
        assert!(headers.get_str("Content-Type").unwrap().starts_with("multipart/byteranges;boundary="));
        assert!(
            body.contains("bytes 0-0/8\r\n\r\na\r\n") && body.contains("bytes 7-7/8\r\n\r\nB\r\n"),
            "{body}"
        );
        assert_eq!(get(&swift, "/v1/a/m/o", &[("Range", "bytes=8-")]).await.0, 416);
    }

    #[tokio::test]
    async fn conditions_are_about_the_etag_of_the_whole() {
        let swift = large_object().await;
        let etag = swift.header("/v1/a/m/o", SYSMETA_SLO_ETAG).unwrap();
        assert_eq!(get(&swift, "/v1/a/m/o", &[("If-None-Match", &etag)]).await.0, 304);
        assert_eq!(get(&swift, "/v1/a/m/o", &[("If-Match", &etag)]).await.0, 200);
        let (status, headers, _) = get(&swift, "/v1/a/m/o", &[("If-Match", "x")]).await;
        assert_eq!((status, headers.get_str("ETag")), (412, Some(format!("\"{etag}\"").as_str())));
    }

    #[tokio::test]
    async fn manifest_is_given_as_stored_or_as_it_was_put() {
        let swift = large_object().await;
        let (_, headers, body) = get(&swift, "/v1/a/m/o?multipart-manifest=get", &[]).await;
        assert_eq!(headers.get_str("Content-Type"), Some("application/json; charset=utf-8"));
        assert_eq!(Some(body), swift.body("/v1/a/m/o"));
        let (_, headers, body) = get(&swift, "/v1/a/m/o?multipart-manifest=get&format=raw", &[]).await;
        assert_eq!(headers.get_str("Content-Type"), Some("text/x;swift_bytes=8"));
        assert!(body.contains("\"path\": \"/c/b\", \"range\": \"1-2\", \"size_bytes\": 4}"), "{body}");
        assert_eq!(put(&swift, "/v1/a/m/again?multipart-manifest=put", &body).await.0, 201);
        assert_eq!(get(&swift, "/v1/a/m/again", &[]).await.2, "aaaa--BB");
    }

    #[tokio::test]
    async fn parts_can_be_read_by_number() {
        let swift = large_object().await;
        let (status, headers, body) = get(&swift, "/v1/a/m/o?part-number=3", &[]).await;
        assert_eq!((status, body.as_str()), (206, "BB"));
        assert_eq!(headers.get_str("X-Parts-Count"), Some("3"));
        assert_eq!(headers.get_str("Content-Range"), Some("bytes 6-7/8"));
        let (status, headers, _) =
            send(&filter(&swift), request(Method::Head, "/v1/a/m/o?part-number=1", &[])).await;
        assert_eq!((status, headers.get_str("Content-Length")), (206, Some("4")));
        assert_eq!(headers.get_str("Content-Range"), Some("bytes 0-3/8"));
        assert_eq!(get(&swift, "/v1/a/m/o?part-number=4", &[]).await.0, 416);
        assert_eq!(get(&swift, "/v1/a/m/o?part-number=0", &[]).await.0, 400);
        assert_eq!(get(&swift, "/v1/a/m/o?part-number=1", &[("Range", "bytes=0-1")]).await.0, 400);
    }

    #[tokio::test]
    async fn changed_segment_is_a_conflict() {
        let swift = large_object().await;
        swift.put("/v1/a/c/a", "AAAA", &[]);
        assert_eq!(get(&swift, "/v1/a/m/o", &[]).await.0, 409);
        let swift = large_object().await;
        swift.put("/v1/a/c/b", "xxxx", &[]);
        let (status, _, body) = get(&swift, "/v1/a/m/o", &[]).await;
        assert_eq!(status, 200);
        assert!(body.starts_with("aaaa--[Object segment no longer valid: /v1/a/c/b"), "{body}");
    }

    #[tokio::test]
    async fn manifests_may_name_manifests() {
        let swift = large_object().await;
        let outer = r#"[{"path": "/m/o", "range": "2-5"}, {"path": "/m/o"}]"#;
        assert_eq!(put(&swift, "/v1/a/m/outer?multipart-manifest=put", outer).await.0, 201);
        assert!(swift.body("/v1/a/m/outer").unwrap().contains("\"sub_slo\": true"));
        swift.take_seen();
        let (status, headers, body) = get(&swift, "/v1/a/m/outer", &[]).await;
        assert_eq!((status, headers.get_str("Content-Length")), (200, Some("12")));
        assert_eq!(body, "aa--aaaa--BB");
        let submanifests = swift.take_seen().iter().filter(|seen| seen.as_str() == "GET /v1/a/m/o").count();
        assert_eq!(submanifests, 1);
    }

    #[tokio::test]
    async fn recursion_ends_at_ten() {
        let swift = large_object().await;
        for depth in 0..11 {
            let inner = if depth == 0 { "o".to_owned() } else { format!("d{}", depth - 1) };
            let manifest = format!("[{{\"path\": \"/m/{inner}\"}}]");
            let target = format!("/v1/a/m/d{depth}?multipart-manifest=put");
            assert_eq!(put(&swift, &target, &manifest).await.0, 201);
        }
        assert_eq!(get(&swift, "/v1/a/m/d8", &[]).await.2, "aaaa--BB");
        assert_eq!(get(&swift, "/v1/a/m/d9", &[]).await.0, 409);
    }

    #[tokio::test]
    async fn problems_are_told_by_segment() {
        let swift = FakeSwift::default();
        swift.put("/v1/a/c/a", "aaaa", &[]);
        let manifest =
            r#"[{"path": "/c/a", "size_bytes": 5}, {"path": "/c/none"}, {"path": "/c/a", "etag": "x"}]"#;
        let (status, _, body) = put(&swift, PUT, manifest).await;
        assert_eq!(status, 400);
        assert_eq!(body, "Errors:\n/c/a, Size Mismatch\n/c/none, 404 Not Found\n/c/a, Etag Mismatch\n");
        let (status, ..) = put(&swift, PUT, &format!("[{}{{}}]", "{\"path\": \"/c/a\"}, ".repeat(6))).await;
        assert_eq!(status, 400);
        let (status, ..) =
            put(&swift, PUT, &format!("[{}{{\"path\": \"/c/a\"}}]", "{\"path\": \"/c/a\"},".repeat(6))).await;
        assert_eq!(status, 413);
        assert_eq!(put(&swift, PUT, &" ".repeat(2001)).await.0, 413);
    }

    #[tokio::test]
    async fn heartbeat_ends_with_a_report() {
        let swift = large_object().await;
        let target = format!("{PUT}&heartbeat=on");
        let (status, _, body) = put(&swift, &target, MANIFEST).await;
        assert_eq!(status, 202);
        let etag = swift.header("/v1/a/m/o", SYSMETA_SLO_ETAG).unwrap();
        assert_eq!(
            body,
            format!(
                " \r\n\r\nEtag: \"{etag}\"\nLast Modified: now\nResponse Body: \nResponse Status: 201 Created\nErrors:\n"
            )
        );
        let (_, _, body) = put(&swift, &target, r#"[{"path": "/c/none"}]"#).await;
        assert!(
            body.ends_with("Response Status: 400 Bad Request\nErrors:\n/c/none, 404 Not Found\n"),
            "{body}"
        );
    }

    #[tokio::test]
    async fn delete_takes_segments_and_manifests_along() {
        let swift = large_object().await;
        put(&swift, "/v1/a/m/outer?multipart-manifest=put", r#"[{"path": "/m/o"}]"#).await;
        let accept = [("Accept", "application/json")];
        let req = request(Method::Delete, "/v1/a/m/outer?multipart-manifest=delete", &accept);
        let (status, _, body) = send(&filter(&swift), req).await;
        assert_eq!(status, 200);
        let report: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(report["Number Deleted"], 4, "{body}");
        assert_eq!(report["Response Status"], "200 OK");
        assert_eq!(swift.paths(), Vec::<String>::new());
        let req = request(Method::Delete, "/v1/a/m/outer?multipart-manifest=delete", &accept);
        let (_, _, body) = send(&filter(&swift), req).await;
        assert!(body.contains("\"Number Not Found\": 1"), "{body}");
    }

    #[tokio::test]
    async fn delete_of_what_is_no_manifest_is_an_error_in_the_report() {
        let swift = large_object().await;
        let req = request(Method::Delete, "/v1/a/c/a?multipart-manifest=delete", &[]);
        let (status, _, body) = send(&filter(&swift), req).await;
        assert_eq!(status, 200);
        assert!(body.contains("Errors:\n/c/a, Not an SLO manifest\n"), "{body}");
        assert!(swift.body("/v1/a/c/a").is_some());
    }

    #[tokio::test]
    async fn other_objects_pass_untouched() {
        let swift = large_object().await;
        let (status, headers, body) = get(&swift, "/v1/a/c/b", &[("Range", "bytes=1-2")]).await;
        assert_eq!(
            (status, headers.get_str("Content-Range"), body.as_str()),
            (206, Some("bytes 1-2/4"), "BB")
        );
        let req = request(Method::Post, "/v1/a/c/b", &[("X-Static-Large-Object", "True")]);
        assert_eq!(send(&filter(&swift), req).await.0, 400);
    }
}
