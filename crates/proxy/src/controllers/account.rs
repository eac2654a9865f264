//! Requests to an account: GET and HEAD; POST; PUT and DELETE where `allow_account_management` is on.
//!
//! With `account_autocreate` an account that does not exist looks like an empty one, until something is written to
//! it; `X-Backend-Fake-Account-Listing` tells the proxy that it only looks so.

use std::sync::Arc;

use common::headers::{
    ServerType, X_ACCOUNT_BYTES_USED, X_ACCOUNT_CONTAINER_COUNT, X_ACCOUNT_OBJECT_COUNT, X_ACCOUNT_STATUS,
    X_BACKEND_RECHECK_ACCOUNT_EXISTENCE, X_PUT_TIMESTAMP, X_TIMESTAMP,
};
use ring::Ring;
use serde_json::Value;
use service::http::{Headers, Method, Request, Response};

use crate::app::Application;
use crate::backend::Target;
use crate::controllers::base::{
    ACCOUNT, Backends, autocreate_account, check_name_length, entity_path, request_headers,
};
use crate::controllers::getter::get_or_head;
use crate::environ::SwiftOwner;
use crate::info::{cache_key, clear_info_cache, set_account_info_cache};
use crate::node_iter::NodeIter;

const ACCESS_CONTROL_SYSMETA: &str = "X-Account-Sysmeta-Core-Access-Control";
const ACCESS_CONTROL: &str = "X-Account-Access-Control";

pub struct AccountController {
    pub account: String,
}

impl AccountController {
    pub async fn handle(self, app: &Arc<Application>, mut req: Request) -> Result<Response, Response> {
        match req.method {
            Method::Get | Method::Head => self.get_or_head(app, &mut req).await,
            Method::Put => self.put(app, &mut req).await,
            Method::Post => self.post(app, &mut req).await,
            Method::Delete => self.delete(app, &mut req).await,
            _ => {
                let methods = super::Controller::Account(self).allowed_methods(app).join(", ");
                Ok(Response::new(200).with_header("Allow", methods))
            }
        }
    }

    async fn get_or_head(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        self.check_name(app)?;
        let (ring, part) = self.place(app)?;
        let nodes = NodeIter::new(app, "account", &ring, part, app.options.policy(None));
        let query = json_query(req);
        let target = Target::new(req, req.method.clone(), part, entity_path(req).trim_end_matches('/'));
        let mut resp =
            get_or_head(app, req, ServerType::Account, nodes, target.with_query(query), None).await;
        if resp.status.0 == 404 {
            let status = resp.headers.get_str(X_ACCOUNT_STATUS).unwrap_or("");
            if status.eq_ignore_ascii_case("deleted") {
                resp = gone(resp);
            } else if app.options.account_autocreate {
                resp = fake_listing(app);
            }
        }
        resp.headers.insert(X_BACKEND_RECHECK_ACCOUNT_EXISTENCE, app.options.recheck_account_existence);
        let policies = Some(app.policies());
        set_account_info_cache(req, policies, &self.account, &resp.headers, resp.status.0).await;
        if SwiftOwner::of(&req.env) {
            add_acls_from_sys_metadata(&mut resp);
        } else {
            strip_owner_headers(app, &mut resp.headers);
        }
        Ok(resp)
    }

    async fn put(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        check_metadata(app, req, ServerType::Account)?;
        self.check_name(app)?;
        let mut resp = self.ask_all(app, req).await?;
        add_acls_from_sys_metadata(&mut resp);
        Ok(resp)
    }

    async fn post(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        self.check_name(app)?;
        check_metadata(app, req, ServerType::Account)?;
        let mut resp = self.ask_all(app, req).await?;
        if resp.status.0 == 404 && app.options.account_autocreate {
            autocreate_account(app, req, &self.account).await?;
            resp = self.ask_all(app, req).await?;
        }
        add_acls_from_sys_metadata(&mut resp);
        Ok(resp)
    }

    async fn delete(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        // A query that was meant for a filter must not end here: it deletes the account.
        if !req.query.is_empty() {
            return Err(Response::error(400));
        }
        self.ask_all(app, req).await
    }

    async fn ask_all(&self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        let (ring, part) = self.place(app)?;
        let transfer = (req.method != Method::Delete).then_some(&ACCOUNT);
        let headers = request_headers(app, req, &Headers::new(), transfer);
        clear_info_cache(req, &cache_key(&self.account, None)).await;
        let target = Target::new(req, req.method.clone(), part, entity_path(req));
        let backends = Backends::new(app, req, ServerType::Account, &ring, target, headers);
        Ok(backends.best_response(&[]).await)
    }

    fn place(&self, app: &Application) -> Result<(Arc<Ring>, u32), Response> {
        let ring = app.account_ring()?;
        let part = ring.get_part(&app.ctx.swift_conf.hash, &self.account, None, None);
        Ok((ring, part))
    }

    fn check_name(&self, app: &Application) -> Result<(), Response> {
        let limit = app.ctx.swift_conf.constraints.max_account_name_length;
        check_name_length(ServerType::Account, &self.account, &self.account, limit)
    }
}

/// The query with `format=json`: clients get their format from the `listing_formats` filter.
pub fn json_query(req: &Request) -> String {
    let others = req
        .query
        .split('&')
        .filter(|pair| !pair.is_empty() && *pair != "format" && !pair.starts_with("format="));
    others.chain(["format=json"]).collect::<Vec<_>>().join("&")
}

pub fn strip_owner_headers(app: &Application, headers: &mut Headers) {
    headers.retain(|name, _| {
        !app.options.swift_owner_headers.iter().any(|owners| name.eq_ignore_ascii_case(owners.as_bytes()))
    });
}

/// Refuses metadata that breaks a limit.
pub fn check_metadata(app: &Application, req: &Request, server_type: ServerType) -> Result<(), Response> {
    let limits = &app.ctx.swift_conf.constraints;
    limits
        .check_metadata(req.headers.iter(), server_type)
        .map_err(|(status, text)| Response::text(status, text))
}

fn gone(resp: Response) -> Response {
    let headers = resp.headers;
    let mut resp = Response { headers, ..Response::error(410) };
    if !resp.headers.contains("Content-Type") {
        resp.headers.insert("Content-Type", "text/html; charset=UTF-8");
    }
    resp
}

/// What an account server says of an account that was created just now.
fn fake_listing(app: &Application) -> Response {
    let now = app.ctx.clock.now().normal();
    Response::new(200)
        .with_header("Content-Type", "application/json; charset=utf-8")
        .with_header(X_ACCOUNT_CONTAINER_COUNT, "0")
        .with_header(X_ACCOUNT_OBJECT_COUNT, "0")
        .with_header(X_ACCOUNT_BYTES_USED, "0")
        .with_header(X_TIMESTAMP, &now)
        .with_header(X_PUT_TIMESTAMP, &now)
        .with_header("X-Backend-Fake-Account-Listing", "yes")
        .with_body("[]")
}

/// Shows the owner the account's ACL, in the header by which it is set.
fn add_acls_from_sys_metadata(resp: &mut Response) {
    let Some(acl) = resp.headers.remove(ACCESS_CONTROL_SYSMETA) else { return };
    let Ok(Value::Object(acl)) = serde_json::from_slice::<Value>(&acl) else { return };
    if !acl.is_empty() {
        let sorted: std::collections::BTreeMap<String, Value> = acl.into_iter().collect();
        resp.headers.insert(ACCESS_CONTROL, super::info::to_compact_json(&serde_json::json!(sorted)));
    }
}
