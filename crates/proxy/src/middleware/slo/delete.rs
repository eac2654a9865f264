//! DELETE of a manifest with all its segments, sub-manifests included: segments first, each manifest after its own.

use std::collections::VecDeque;
use std::sync::Arc;

use common::headers::X_STATIC_LARGE_OBJECT;
use common::quote::quote;
use serde_json::{Map, Value};
use service::http::{Body, BoxFuture, Method, Request, Response};

use super::{Core, MAX_STORED_MANIFEST};
use crate::middleware::accept;
use crate::middleware::bulk::{Deleter, Target, Targets};
use crate::middleware::heartbeat::ACCEPTABLE_FORMATS;
use crate::middleware::large_object::without_body;
use crate::middleware::request_headers::ignore_range_if;

/// The list of what is still to be deleted may be as much longer than a manifest.
const MAX_BUFFERED_MANIFESTS: usize = 10;
const DRAIN_LIMIT: u64 = 64 * 1024;

pub async fn delete(core: Arc<Core>, mut req: Request) -> Response {
    req.headers.remove("Content-Type");
    let format = accept::best_match(req.headers.get_str("Accept"), &ACCEPTABLE_FORMATS).ok().flatten();
    let deleter = Deleter {
        app: core.app.clone(),
        concurrency: core.delete_concurrency.clamp(1, 1000),
        user_agent: "MultipartDELETE",
        source: "SLO",
    };
    let targets = Box::new(SegmentsToDelete { core, client: without_body(&req), queue: None });
    deleter.respond(without_body(&req), format, targets).await
}

/// Every object that a manifest leads to.
struct SegmentsToDelete {
    core: Arc<Core>,
    client: Request,
    /// `None` before the manifest itself is in it.
    queue: Option<VecDeque<Queued>>,
}

struct Queued {
    target: Target,
    /// Its segments are still to be put in the queue.
    is_manifest: bool,
}

impl SegmentsToDelete {
    async fn next_target(&mut self) -> Option<Result<Target, Response>> {
        let mut queue = match self.queue.take() {
            Some(queue) => queue,
            None => match self.manifest() {
                Ok(manifest) => VecDeque::from([manifest]),
                Err(refused) => return Some(Err(refused)),
            },
        };
        let found = loop {
            if queue.len() > self.core.max_manifest_segments * MAX_BUFFERED_MANIFESTS {
                break Some(Err(Response::html(400, "Too many buffered slo segments to delete.")));
            }
            let Some(mut queued) = queue.pop_front() else {
                break None;
            };
            if !queued.is_manifest {
                break Some(Ok(queued.target));
            }
            match self.segments_of(&queued.target.name).await {
                Ok(segments) => queue.extend(segments),
                Err((status, message)) => queued.target.error = Some((status, message.to_owned())),
            }
            // The manifest goes when its segments have gone.
            queued.is_manifest = false;
            queue.push_back(queued);
        };
        self.queue = Some(queue);
        found
    }

    /// The object of the request.
    fn manifest(&self) -> Result<Queued, Response> {
        if !self.client.path_is_utf8 || self.client.path.contains('\0') {
            return Err(Response::html(412, "Invalid UTF8 or contains NULL"));
        }
        let parts = self.client.split_path(4, 4, true).map_err(|()| Response::error(404))?;
        let mut names = parts.into_iter().skip(2).flatten();
        let (container, object) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let target = Target {
            name: format!("/{container}/{object}"),
            version_id: self.client.param("version-id"),
            error: None,
        };
        Ok(Queued { target, is_manifest: true })
    }

    async fn segments_of(&mut self, name: &str) -> Result<Vec<Queued>, (u16, &'static str)> {
        let mut resp = self.core.app.call(self.manifest_request(name)).await;
        match resp.status.0 {
            200..300 if resp.headers.get_bool(X_STATIC_LARGE_OBJECT) => {
                const UNREADABLE: (u16, &str) = (500, "Unable to load SLO manifest");
                let body = resp.body.collect(MAX_STORED_MANIFEST).await.map_err(|_| UNREADABLE)?;
                let entries: Vec<Map<String, Value>> =
                    serde_json::from_slice(&body).map_err(|_| UNREADABLE)?;
                Ok(entries.iter().filter_map(queued).collect())
            }
            200..300 => {
                let _ = resp.body.drain(DRAIN_LIMIT).await;
                Err((400, "Not an SLO manifest"))
            }
            404 => Err((404, "SLO manifest not found")),
            401 => Err((401, "401 Unauthorized")),
            _ => Err((500, "Unable to load SLO manifest or segment.")),
        }
    }

    /// Of what turns out to be no manifest only the last byte is wanted.
    fn manifest_request(&self, name: &str) -> Request {
        let mut req = without_body(&self.client);
        let parts = self.client.split_path(2, 3, true).unwrap_or_default();
        let mut parts = parts.into_iter().flatten();
        let (version, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let mut query = "multipart-manifest=get".to_owned();
        if let Some(version_id) = self.client.param("version-id") {
            query.push_str(&format!("&version-id={}", quote(version_id, "")));
        }
        let agent = self.client.headers.get_str("User-Agent").unwrap_or("None");
        let agent = format!("{agent} MultipartDELETE");
        req.method = Method::Get;
        req.body = Body::empty();
        req.headers.insert("Content-Length", "0");
        req.headers.insert("User-Agent", agent);
        req.headers.insert("Range", "bytes=-1");
        ignore_range_if(&mut req.headers, X_STATIC_LARGE_OBJECT);
        req.env.source = Some("SLO");
        req.set_path(format!("/{version}/{account}/{}", name.trim_start_matches('/')));
        req.with_query(query)
    }
}

/// An entry of a stored manifest; data segments are nothing to delete.
fn queued(entry: &Map<String, Value>) -> Option<Queued> {
    let name = entry.get("name")?.as_str()?.to_owned();
    let is_manifest = entry.get("sub_slo").is_some_and(|sub_slo| *sub_slo == Value::Bool(true));
    let target = Target { name, ..Target::default() };
    Some(Queued { target, is_manifest })
}

impl Targets for SegmentsToDelete {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Target, Response>>> {
        Box::pin(self.next_target())
    }
}
