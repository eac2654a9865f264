//! Requests to a container.
//!
//! What a listing is made of is asked for by the record type: `object` and `shard` are for programs of the cluster and come from the
//! container's server as they are; all others list objects, those of a sharded container by `shards`.

use std::sync::Arc;

use common::headers::{
    ServerType, X_BACKEND_CACHED_RESULTS, X_BACKEND_RECHECK_CONTAINER_EXISTENCE,
    X_BACKEND_RECORD_SHARD_FORMAT, X_BACKEND_RECORD_TYPE, X_BACKEND_STORAGE_POLICY_DEFAULT,
    X_BACKEND_STORAGE_POLICY_INDEX, X_CONTAINER_READ, X_CONTAINER_SHARDING, X_CONTAINER_WRITE,
    X_STORAGE_POLICY,
};
use ring::{Node, Ring};
use service::http::{Headers, Method, Request, Response};

use crate::app::Application;
use crate::backend::Target;
use crate::controllers::account::{check_metadata, json_query, strip_owner_headers};
use crate::controllers::base::{
    Backends, CONTAINER, autocreate_account, check_name_length, entity_path, request_headers,
};
use crate::controllers::cors::CorsRequest;
use crate::controllers::getter::get_or_head;
use crate::controllers::{shards, this_app};
use crate::environ::{Authorizer, CleanAcl, ResellerRequest, SwiftOwner};
use crate::info::{
    AUTO_CREATE_ACCOUNT_PREFIX, AccountInfo, account_info, cache_key, clear_info_cache, container_info,
    set_container_info_cache, shard_cache_key,
};
use crate::node_iter::NodeIter;

const SHARDING_SYSMETA: &str = "X-Container-Sysmeta-Sharding";

/// The largest UPDATE that is taken.
const MAX_UPDATE: usize = 32 * 1024 * 1024;

pub struct ContainerController {
    pub account: String,
    pub container: String,
}

impl ContainerController {
    pub async fn handle(self, app: &Arc<Application>, mut req: Request) -> Result<Response, Response> {
        if req.method == Method::Options {
            return Ok(self.options(app, &mut req).await);
        }
        let cors = CorsRequest::of(app, &mut req, &self.account, &self.container).await;
        let answer = match req.method {
            Method::Get | Method::Head => self.get_or_head(app, &mut req).await,
            Method::Put => self.put(app, &mut req).await,
            Method::Post => self.post(app, &mut req).await,
            Method::Update => self.update(app, &mut req).await,
            _ => self.delete(app, &mut req).await,
        };
        let mut resp = answer.unwrap_or_else(|refusal| refusal);
        if let Some(cors) = cors {
            cors.finish(app, &mut resp);
        }
        Ok(resp)
    }

    async fn options(self, app: &Arc<Application>, req: &mut Request) -> Response {
        let cors = CorsRequest::of(app, req, &self.account, &self.container).await;
        let methods = super::Controller::Container(self).allowed_methods(app);
        match cors {
            Some(cors) => cors.preflight(app, req, &methods),
            None => Response::new(200).with_header("Allow", methods.join(", ")),
        }
    }

    async fn get_or_head(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        let is_get = req.method == Method::Get;
        if is_get {
            validate_listing_params(app, req)?;
        }
        let account = self.account_info(app, req).await;
        if !self.account.starts_with(AUTO_CREATE_ACCOUNT_PREFIX) && !account.exists() {
            // The authorizer first: who may not look is not told what is missing.
            return Err(Authorizer::denial(req, None).await.unwrap_or_else(|| Response::error(404)));
        }
        let (ring, part) = self.place(app)?;
        let nodes = NodeIter::new(app, "container", &ring, part, app.options.policy(None));
        let listing = if is_get { json_query(req) } else { req.query.clone() };
        let explicit = req.headers.get_str(X_BACKEND_RECORD_TYPE).unwrap_or("");
        let is_auto = is_get && !matches!(explicit.to_lowercase().as_str(), "object" | "shard");
        let ask = |req: &Request, query: String| {
            let target = Target::new(req, req.method.clone(), part, entity_path(req)).with_query(query);
            get_or_head(app, req, ServerType::Container, nodes, target, None)
        };
        let mut resp = match is_auto {
            true => shards::listing(app, req, (&self.account, &self.container), &listing, ask).await,
            false => ask(req, listing).await,
        };
        if is_auto {
            resp.headers.remove(X_BACKEND_RECORD_TYPE);
            resp.headers.remove(X_BACKEND_RECORD_SHARD_FORMAT);
        }
        if !resp.headers.get_bool(X_BACKEND_CACHED_RESULTS) {
            let secs = app.options.recheck_container_existence;
            resp.headers.insert(X_BACKEND_RECHECK_CONTAINER_EXISTENCE, secs);
            set_container_info_cache(req, &self.account, &self.container, &resp.headers, resp.status.0).await;
        }
        let acl = resp.headers.get(X_CONTAINER_READ).map(|acl| String::from_utf8_lossy(acl).into_owned());
        if let Some(denial) = Authorizer::denial(req, acl.as_deref()).await {
            return Err(denial);
        }
        if !SwiftOwner::of(&req.env) {
            strip_owner_headers(app, &mut resp.headers);
        }
        if req.env.get::<ResellerRequest>().is_some() {
            let sharding = if resp.headers.get_bool(SHARDING_SYSMETA) { "True" } else { "False" };
            resp.headers.insert(X_CONTAINER_SHARDING, sharding);
        }
        Ok(resp)
    }

    async fn put(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        clean_acls(req)?;
        check_metadata(app, req, ServerType::Container)?;
        let policy_index = policy_index_of(app, req)?;
        restrict_to_callers_rights(app, req);
        let limit = app.ctx.swift_conf.constraints.max_container_name_length;
        check_name_length(ServerType::Container, &self.account, &self.container, limit)?;
        let mut account = self.account_info(app, req).await;
        if !account.exists() && app.options.account_autocreate {
            if !autocreate_account(app, req, &self.account).await? {
                return Err(Response::error(503));
            }
            account = self.account_info(app, req).await;
        }
        if !account.exists() {
            return Err(Response::error(404));
        }
        self.check_container_count(app, req, &account).await?;
        let backends = self.backends(app, req, Some(policy_index))?;
        let resp = backends.best_response(&[]).await;
        self.clear_cache(req).await;
        Ok(resp)
    }

    async fn post(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        clean_acls(req)?;
        check_metadata(app, req, ServerType::Container)?;
        restrict_to_callers_rights(app, req);
        if !self.account_info(app, req).await.exists() {
            return Err(Response::error(404));
        }
        let (ring, part) = self.place(app)?;
        let headers = request_headers(app, req, &Headers::new(), Some(&CONTAINER));
        self.clear_cache(req).await;
        let target = Target::new(req, Method::Post, part, entity_path(req));
        Ok(Backends::new(app, req, ServerType::Container, &ring, target, headers).best_response(&[]).await)
    }

    async fn delete(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        if !self.account_info(app, req).await.exists() {
            return Err(Response::error(404));
        }
        let backends = self.backends(app, req, Some(None))?;
        self.clear_cache(req).await;
        let resp = backends.best_response(&[]).await;
        // No server had it.
        if resp.status.0 == 202 {
            return Err(Response::error(404));
        }
        Ok(resp)
    }

    /// Rows from a filter or daemon of Swift's own, to be merged into the database; not for clients.
    async fn update(self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        let body = match req.body.collect(MAX_UPDATE).await {
            Ok(body) => body,
            Err(_) => return Err(Response::error(499)),
        };
        let mut backends = self.backends(app, req, None)?;
        backends.body = body;
        Ok(backends.best_response(&[]).await)
    }

    async fn account_info(&self, app: &Arc<Application>, req: &mut Request) -> Arc<AccountInfo> {
        account_info(req, &this_app(app), &self.account, "").await
    }

    fn place(&self, app: &Application) -> Result<(Arc<Ring>, u32), Response> {
        let ring = app.container_ring()?;
        let part = ring.get_part(&app.ctx.swift_conf.hash, &self.account, Some(&self.container), None);
        Ok((ring, part))
    }

    /// A request to each container server, each told of an account server that it shall update. A policy of
    /// `None` leaves the index in the request's headers and names no account servers.
    fn backends(
        &self,
        app: &Arc<Application>,
        req: &Request,
        policy_index: Option<Option<u32>>,
    ) -> Result<Backends, Response> {
        let (ring, part) = self.place(app)?;
        let additional = match policy_index {
            None => Headers::new(),
            Some(None) => {
                Headers::from([(X_BACKEND_STORAGE_POLICY_DEFAULT, app.policies().default().index.0)])
            }
            Some(Some(index)) => Headers::from([(X_BACKEND_STORAGE_POLICY_INDEX, index)]),
        };
        let headers = request_headers(app, req, &additional, Some(&CONTAINER));
        let target = Target::new(req, req.method.clone(), part, entity_path(req));
        let mut backends = Backends::new(app, req, ServerType::Container, &ring, target, headers);
        if policy_index.is_some() {
            let ring = app.account_ring()?;
            let part = ring.get_part(&app.ctx.swift_conf.hash, &self.account, None, None);
            name_account_servers(&mut backends.headers, part, &ring.get_part_nodes(part));
        }
        Ok(backends)
    }

    async fn check_container_count(
        &self,
        app: &Arc<Application>,
        req: &mut Request,
        account: &AccountInfo,
    ) -> Result<(), Response> {
        let max = app.options.max_containers_per_account;
        if max == 0
            || account.container_count < max
            || app.options.max_containers_whitelist.contains(&self.account)
        {
            return Ok(());
        }
        let info = container_info(req, &this_app(app), &self.account, &self.container, "").await;
        if info.is_success() {
            return Ok(());
        }
        Err(Response::error(403).with_body(format!("Reached container limit of {max}")))
    }

    async fn clear_cache(&self, req: &mut Request) {
        clear_info_cache(req, &cache_key(&self.account, Some(&self.container))).await;
        clear_info_cache(req, &shard_cache_key("listing", &self.account, &self.container)).await;
    }
}

fn name_account_servers(headers: &mut [Headers], part: u32, accounts: &[Node]) {
    let count = headers.len();
    for (index, account) in accounts.iter().enumerate() {
        let headers = &mut headers[index % count];
        headers.insert("X-Account-Partition", part);
        headers.append_joined("X-Account-Host", format!("{}:{}", account.ip, account.port));
        headers.append_joined("X-Account-Device", &account.device);
    }
}

/// The index of the policy that the client names, if it names one; 400 if that cannot be chosen.
fn policy_index_of(app: &Application, req: &Request) -> Result<Option<u32>, Response> {
    let Some(name) = req.headers.get(X_STORAGE_POLICY).filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let name = String::from_utf8_lossy(name);
    match app.policies().by_name(&name) {
        None => Err(Response::text(400, format!("Invalid X-Storage-Policy '{name}'"))),
        Some(policy) if policy.is_deprecated => {
            Err(Response::error(400).with_body(format!("Storage Policy '{}' is deprecated", policy.name)))
        }
        Some(policy) => Ok(Some(policy.index.0)),
    }
}

/// Lets the auth filter write ACLs in its own form.
fn clean_acls(req: &mut Request) -> Result<(), Response> {
    let Some(CleanAcl(clean)) = req.env.get::<CleanAcl>().copied() else { return Ok(()) };
    for name in [X_CONTAINER_READ, X_CONTAINER_WRITE] {
        let Some(value) = req.headers.get(name) else { continue };
        let value = String::from_utf8_lossy(value).into_owned();
        let cleaned =
            clean(&name.to_lowercase(), &value).map_err(|error| Response::error(400).with_body(error))?;
        req.headers.insert(name, cleaned);
    }
    Ok(())
}

/// Drops what only owners may set; lets reseller admins switch sharding on and off.
fn restrict_to_callers_rights(app: &Application, req: &mut Request) {
    if !SwiftOwner::of(&req.env) {
        strip_owner_headers(app, &mut req.headers);
    }
    if req.env.get::<ResellerRequest>().is_some() && req.headers.contains(X_CONTAINER_SHARDING) {
        let sharding = if req.headers.get_bool(X_CONTAINER_SHARDING) { "True" } else { "False" };
        req.headers.insert(SHARDING_SYSMETA, sharding);
    }
}

/// 400 for text that is not UTF-8, 412 for a limit that is too high.
fn validate_listing_params(app: &Application, req: &Request) -> Result<(), Response> {
    for name in ["marker", "end_marker", "prefix", "delimiter", "path", "format"] {
        if req.param_bytes(name).is_some_and(|value| std::str::from_utf8(&value).is_err()) {
            return Err(Response::text(400, format!("\"{name}\" parameter not valid UTF-8")));
        }
    }
    let max = app.ctx.swift_conf.constraints.container_listing_limit;
    let limit =
        req.param("limit").filter(|limit| !limit.is_empty() && limit.bytes().all(|b| b.is_ascii_digit()));
    if limit.is_some_and(|limit| limit.parse::<u64>().is_ok_and(|limit| limit <= max as u64).eq(&false)) {
        return Err(Response::error(412).with_body(format!("Maximum limit is {max}")));
    }
    Ok(())
}
