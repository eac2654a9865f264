//! Cross-origin requests: what a container's `X-Container-Meta-Access-Control-*` allow browsers to do.

use std::sync::Arc;

use common::config::split_list;
use service::http::{Headers, Request, Response};

use crate::app::Application;
use crate::controllers::this_app;
use crate::info::{Cors, container_info};

/// A request with an Origin to a container or an object in it.
pub struct CorsRequest {
    origin: Vec<u8>,
    cors: Cors,
}

impl CorsRequest {
    /// `None` for requests that are none of a browser's on another site.
    pub async fn of(
        app: &Arc<Application>,
        req: &mut Request,
        account: &str,
        container: &str,
    ) -> Option<Self> {
        let origin = req.headers.get("Origin").filter(|origin| !origin.is_empty())?.to_vec();
        let info = Box::pin(container_info(req, &this_app(app), account, container, "")).await;
        Some(Self { origin, cors: info.cors.clone() })
    }

    fn is_origin_allowed(&self, app: &Application) -> bool {
        let own = self.cors.allow_origin.iter().flat_map(|allowed| allowed.split(' '));
        let everywhere = app.options.cors_allow_origin.iter().map(String::as_str);
        let mut allowed = own.chain(everywhere).map(str::trim).filter(|allowed| !allowed.is_empty());
        allowed.any(|allowed| allowed == "*" || allowed.as_bytes() == self.origin)
    }

    fn allows_all_origins(&self) -> bool {
        self.cors.allow_origin.as_ref().is_some_and(|allowed| allowed.trim() == "*")
    }

    /// Tells the browser what its page may see of the response.
    pub fn finish(&self, app: &Application, resp: &mut Response) {
        if app.options.strict_cors_mode && !self.is_origin_allowed(app) {
            return;
        }
        if !resp.headers.contains("Access-Control-Expose-Headers") {
            let exposed = self.exposed_headers(app, &resp.headers).join(", ");
            resp.headers.insert("Access-Control-Expose-Headers", exposed);
        }
        if !resp.headers.contains("Access-Control-Allow-Origin") {
            self.allow_origin(&mut resp.headers);
        }
    }

    fn allow_origin(&self, headers: &mut Headers) {
        if self.allows_all_origins() {
            headers.insert("Access-Control-Allow-Origin", "*");
        } else {
            headers.insert("Access-Control-Allow-Origin", &self.origin);
            vary(headers, "Origin");
        }
    }

    fn exposed_headers(&self, app: &Application, headers: &Headers) -> Vec<String> {
        const ALWAYS: [&str; 10] = [
            "cache-control",
            "content-language",
            "content-type",
            "expires",
            "last-modified",
            "pragma",
            "etag",
            "x-timestamp",
            "x-trans-id",
            "x-openstack-request-id",
        ];
        let mut exposed: Vec<String> = ALWAYS.map(str::to_owned).into();
        let mut add = |name: String| {
            if !exposed.contains(&name) {
                exposed.push(name);
            }
        };
        for name in &app.options.cors_expose_headers {
            add(name.clone());
        }
        for (name, _) in headers.iter() {
            let name = String::from_utf8_lossy(name).to_lowercase();
            if name.starts_with("x-container-meta") || name.starts_with("x-object-meta") {
                add(name);
            }
        }
        for name in self.cors.expose_headers.iter().flat_map(|names| names.split(' ')) {
            if !name.trim().is_empty() {
                add(name.trim().to_lowercase());
            }
        }
        exposed
    }

    /// The answer to a browser which asks beforehand (OPTIONS) whether its page may send a request.
    pub fn preflight(&self, app: &Application, req: &Request, allowed_methods: &[&str]) -> Response {
        let methods = allowed_methods.join(", ");
        let method = req.headers.get_str("Access-Control-Request-Method").unwrap_or("");
        if !self.is_origin_allowed(app) || !allowed_methods.contains(&method) {
            return Response::error(401).with_header("Allow", methods);
        }
        let mut resp = Response::new(200).with_header("Allow", &methods);
        resp.headers.remove("Content-Type");
        self.allow_origin(&mut resp.headers);
        if let Some(max_age) = &self.cors.max_age {
            resp.headers.insert("Access-Control-Max-Age", max_age);
        }
        resp.headers.insert("Access-Control-Allow-Methods", methods);
        let wanted = split_list(req.headers.get_str("Access-Control-Request-Headers").unwrap_or(""));
        if !wanted.is_empty() {
            resp.headers.insert("Access-Control-Allow-Headers", wanted.join(", "));
            vary(&mut resp.headers, "Access-Control-Request-Headers");
        }
        resp
    }
}

fn vary(headers: &mut Headers, name: &str) {
    let vary = match headers.get_str("Vary") {
        Some(vary) => format!("{vary}, {name}"),
        None => name.to_owned(),
    };
    headers.insert("Vary", vary);
}
