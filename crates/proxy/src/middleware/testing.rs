//! A small Swift in memory for tests of filters: containers, objects, listings, ranges and conditions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::digest::{hex, md5};
use common::headers::{ServerType, is_sys_or_user_meta};
use parking_lot::Mutex;
use serde_json::json;
use service::http::conditional::{ConditionalOptions, resolve_etag_is_at};
use service::http::{App, BoxFuture, Headers, Method, Request, Response, SharedApp};

use super::pyjson;

#[derive(Clone, Default)]
pub struct FakeSwift(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Headers, Bytes)>,
    /// `METHOD path_qs`, with Range if there was one, in the order in which they came.
    seen: Vec<String>,
    /// Answers that override the object's.
    failing: BTreeMap<String, u16>,
}

impl FakeSwift {
    pub fn app(&self) -> SharedApp {
        Arc::new(self.clone())
    }

    pub fn put(&self, path: &str, body: impl Into<Bytes>, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| (*name, *value)).collect();
        self.store(path, headers, body.into());
    }

    /// Every request for this path gets this status.
    pub fn fail(&self, path: &str, status: u16) {
        self.0.lock().failing.insert(path.to_owned(), status);
    }

    pub fn body(&self, path: &str) -> Option<String> {
        let state = self.0.lock();
        let (_, body) = state.objects.get(path)?;
        Some(String::from_utf8_lossy(body).into_owned())
    }

    pub fn header(&self, path: &str, name: &str) -> Option<String> {
        self.0.lock().objects.get(path)?.0.get_str(name).map(str::to_owned)
    }

    pub fn paths(&self) -> Vec<String> {
        self.0.lock().objects.keys().cloned().collect()
    }

    pub fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().seen)
    }

    fn store(&self, path: &str, mut headers: Headers, body: Bytes) {
        headers.insert_default("Content-Type", "application/octet-stream");
        headers.insert("ETag", format!("\"{}\"", hex(&md5(&body))));
        headers.insert("Last-Modified", "Tue, 10 Jun 2014 22:47:32 GMT");
        headers.insert("X-Backend-Timestamp", "1402440452.00000");
        headers.insert("Content-Length", body.len());
        self.0.lock().objects.insert(path.to_owned(), (headers, body));
    }

    async fn answer(&self, mut req: Request) -> Response {
        let mut line = format!("{} {}", req.method, req.path_qs());
        if let Some(range) = req.headers.get_str("Range") {
            line.push_str(&format!(" {range}"));
        }
        self.0.lock().seen.push(line);
        if let Some(status) = self.0.lock().failing.get(&req.path) {
            return Response::error(*status);
        }
        match req.method {
            Method::Get | Method::Head if req.split_path(4, 4, true).is_err() => self.listing(&req),
            Method::Get | Method::Head => self.get(&req),
            Method::Put => {
                let Ok(body) = req.body.collect(1 << 20).await else {
                    return Response::error(499);
                };
                let etag = hex(&md5(&body));
                if req.headers.get_str("ETag").is_some_and(|wanted| wanted != etag) {
                    return Response::error(422);
                }
                let headers = req.headers.iter().filter(|(name, _)| is_stored(name)).collect();
                self.store(&req.path, headers, body);
                Response::new(201).with_header("ETag", etag).with_header("Last-Modified", "now")
            }
            Method::Delete => match self.0.lock().objects.remove(&req.path) {
                Some(_) => Response::new(204),
                None => Response::error(404),
            },
            Method::Options => Response::new(200).with_header("Allow", "GET, PUT"),
            _ => Response::error(405),
        }
    }

    fn get(&self, req: &Request) -> Response {
        let Some((headers, body)) = self.0.lock().objects.get(&req.path).cloned() else {
            return Response::error(404);
        };
        let mut client = Request::new(req.method.clone(), req.path.clone());
        client.headers = req.headers.clone();
        let ignored = req.headers.get_str("X-Backend-Ignore-Range-If-Metadata-Present").unwrap_or("");
        if ignored.split(',').any(|name| headers.contains(name)) {
            client.headers.remove("Range");
        }
        let etag = resolve_etag_is_at(&req.headers, |name| headers.get_str(name)).map(str::to_owned);
        let mut resp = Response::new(200).with_body(body);
        resp.headers = headers;
        resp.make_conditional(&client, ConditionalOptions { etag, ..Default::default() });
        resp
    }

    fn listing(&self, req: &Request) -> Response {
        let prefix = format!("{}/{}", req.path, req.param("prefix").unwrap_or_default());
        let marker = format!("{}/{}", req.path, req.param("marker").unwrap_or_default());
        let state = self.0.lock();
        let rows = state.objects.iter().filter(|(path, _)| path.starts_with(&prefix) && **path > marker);
        let rows: Vec<_> = rows
            .take(LISTING_LIMIT)
            .map(|(path, (headers, body))| {
                json!({
                    "name": path[req.path.len() + 1..],
                    "bytes": body.len(),
                    "hash": headers.get_str("ETag").unwrap_or("").trim_matches('"'),
                    "content_type": "x/y",
                    "last_modified": "2014-06-10T22:47:32.054580",
                })
            })
            .collect();
        let listing = pyjson::dumps(&json!(rows));
        Response::new(200)
            .with_header("Content-Type", "application/json; charset=utf-8")
            .with_header("Content-Length", listing.len())
            .with_body(listing)
    }
}

/// A page of a listing, small so that tests see several.
pub const LISTING_LIMIT: usize = 4;

fn is_stored(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_lowercase();
    is_sys_or_user_meta(ServerType::Object, &name)
        || matches!(name.as_str(), "content-type" | "x-static-large-object" | "x-object-manifest")
}

impl App for FakeSwift {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        Box::pin(self.answer(req))
    }
}

/// Sends a request through `app` and gives what a client sees: status, headers, body (an error as its message).
pub async fn send(app: &SharedApp, req: Request) -> (u16, Headers, String) {
    let is_head = req.is_head();
    let mut resp = app.call(req).await;
    let mut body = String::new();
    loop {
        match resp.body.next().await {
            Some(Ok(chunk)) => body.push_str(&String::from_utf8_lossy(&chunk)),
            Some(Err(error)) => body.push_str(&format!("[{error}]")),
            None => break,
        }
    }
    if is_head {
        body.clear();
    }
    (resp.status.0, resp.headers, body)
}

/// A request without body to a target as on the wire.
pub fn request(method: Method, target: &str, headers: &[(&str, &str)]) -> Request {
    let mut req = Request::from_target(method, target.to_owned().into());
    for (name, value) in headers {
        req.headers.insert(*name, *value);
    }
    req
}
