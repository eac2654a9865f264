//! Requests to an object: GET and HEAD up to where policies differ, POST and DELETE.
//!
//! Backend requests which change an object name the container servers (and for an object with a time to be
//! deleted, the servers of the expirer's queue) that the object servers shall update, so that every one of these
//! is told by somebody. Of a sharded container that is the shard which has the object's name.

pub mod ec;
pub mod headers;
pub mod put;
pub mod putter;
pub mod replicated;

use std::sync::Arc;

use common::config::parse_int;
use common::constraints::check_delete_headers;
use common::headers::{
    CONTENT_TYPE, ServerType, X_BACKEND_NEXT_PART_POWER, X_BACKEND_OPEN_EXPIRED,
    X_BACKEND_STORAGE_POLICY_INDEX, X_DELETE_AFTER, X_DELETE_AT,
};
use common::policy::{PolicyIndex, StoragePolicy};
use common::timestamp::normalize_delete_at;
use ring::{Node, Ring};
use service::http::{Headers, Method, Request, Response};

use crate::app::Application;
use crate::backend::Target;
use crate::controllers::account::check_metadata;
use crate::controllers::base::{Answer, Backends, all_request_headers, best_response, entity_path};
use crate::controllers::cors::CorsRequest;
use crate::controllers::getter::get_or_head;
use crate::controllers::object::headers::{DeleteAt, Updates};
use crate::controllers::shards;
use crate::controllers::{this_app, unknown_policy};
use crate::environ::{Authorizer, LogInfo, SyncKey};
use crate::error_limiter::node_to_string;
use crate::info::{ContainerInfo, container_info};
use crate::middleware::access_log::AccessLog;
use crate::node_iter::NodeIter;
use crate::quorum::quorum_size;

pub struct ObjectController {
    pub account: String,
    pub container: String,
    pub object: String,
    pub policy: PolicyIndex,
}

/// Where an object lives.
pub struct Place {
    pub ring: Arc<Ring>,
    pub part: u32,
    pub nodes: Vec<Node>,
}

impl ObjectController {
    pub async fn handle(self, app: &Arc<Application>, mut req: Request) -> Result<Response, Response> {
        let cors = CorsRequest::of(app, &mut req, &self.account, &self.container).await;
        if req.method == Method::Options {
            let methods = super::Controller::Object(self).allowed_methods(app);
            return Ok(match cors {
                Some(cors) => cors.preflight(app, &req, &methods),
                None => Response::new(200).with_header("Allow", methods.join(", ")),
            });
        }
        let answer = match req.method {
            Method::Get | Method::Head => Box::pin(self.get_or_head(app, &mut req)).await,
            Method::Post => Box::pin(self.post(app, &mut req)).await,
            Method::Put => Box::pin(self.put(app, &mut req)).await,
            _ => Box::pin(self.delete(app, &mut req)).await,
        };
        let mut resp = answer.unwrap_or_else(|refusal| refusal);
        if let Some(cors) = cors {
            cors.finish(app, &mut resp);
        }
        Ok(resp)
    }

    async fn get_or_head(&self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        let info = self.container_info(app, req).await;
        AccessLog::note_policy(&req.env, self.policy);
        req.headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, self.policy.0);
        open_expired(app, req);
        if let Some(denial) = Authorizer::denial(req, info.read_acl.as_deref()).await {
            return Err(denial);
        }
        let ring = app.object_ring(self.policy)?;
        let part = self.part(app, &ring);
        let nodes = NodeIter::new(app, "object", &ring, part, app.options.policy(Some(self.policy)));
        let query = req.query.clone();
        let target = Target::new(req, req.method.clone(), part, entity_path(req)).with_query(query);
        let mut resp = match app.ec_policy(self.policy) {
            Ok(policy) => Box::pin(ec::get::get_or_head(app, req, nodes, target, self.policy, policy)).await,
            Err(_) => get_or_head(app, req, ServerType::Object, nodes, target, Some(self.policy)).await,
        };
        clean_content_type(&mut resp.headers);
        Ok(resp)
    }

    async fn post(&self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        let info = self.container_info(app, req).await;
        open_expired(app, req);
        if let Some(denial) = Authorizer::denial(req, info.write_acl.as_deref()).await {
            return Err(denial);
        }
        if !info.is_success() {
            return Err(Response::error(404));
        }
        check_metadata(app, req, ServerType::Object)?;
        let delete_at = self.config_expiration(app, req)?;
        let place = self.place_for_change(app, req)?;
        let headers = self.backend_headers(app, req, place.nodes.len(), delete_at).await?;
        self.post_object(app, req, &place, headers).await
    }

    async fn delete(&self, app: &Arc<Application>, req: &mut Request) -> Result<Response, Response> {
        let place = self.place_of_allowed_change(app, req).await?;
        let options = app.options.policy(Some(self.policy));
        // With write affinity the object may lie on local handoffs as well.
        let mut count = place.nodes.len();
        if !options.write_affinity.is_empty() {
            count += options.local_handoff_count(&place.nodes);
        }
        let headers = self.backend_headers(app, req, count, None).await?;
        let nodes = NodeIter::local_first(app, &place.ring, place.part, options, true);
        let backends = self.backends(app, req, &place, nodes, headers);
        Ok(backends.best_response(&[(404, 204)]).await)
    }

    fn backends(
        &self,
        app: &Arc<Application>,
        req: &Request,
        place: &Place,
        nodes: NodeIter,
        headers: Vec<Headers>,
    ) -> Backends {
        Backends {
            app: app.clone(),
            server_type: ServerType::Object,
            target: Target::new(req, req.method.clone(), place.part, entity_path(req)),
            nodes,
            node_count: headers.len(),
            headers,
            body: bytes::Bytes::new(),
            trans_id: req.trans_id().to_owned(),
        }
    }

    /// POSTs to the primaries. When some have the object and others not, as many handoffs are asked as there were
    /// primaries without: the object may lie there.
    async fn post_object(
        &self,
        app: &Arc<Application>,
        req: &mut Request,
        place: &Place,
        headers: Vec<Headers>,
    ) -> Result<Response, Response> {
        let logger = app.logger(req.trans_id());
        let nodes = NodeIter::new(app, "object", &place.ring, place.part, app.options.policy(None));
        let (mut answers, mut nodes) = self.backends(app, req, place, nodes, headers.clone()).ask().await;
        let with_status =
            |answers: &[Answer], status: u16| answers.iter().filter(|a| a.status == status).count();
        let mut quorum = quorum_size(answers.len());
        let found = with_status(&answers, 202);
        if found > 0 && found < quorum {
            quorum = quorum_size(place.ring.replica_count());
            let missing: Vec<Headers> =
                headers.into_iter().zip(&answers).filter(|(_, a)| a.status != 202).map(|(h, _)| h).collect();
            let handoffs = nodes.take_handoffs(with_status(&answers, 404));
            let names: Vec<String> = handoffs.iter().map(|node| node_to_string(node)).collect();
            logger.debug(format_args!(
                "Primary nodes returned mixed results on POST, trying handoffs: {names:?}"
            ));
            if !handoffs.is_empty() {
                let missing = missing.into_iter().take(handoffs.len()).collect();
                let count = handoffs.len();
                let nodes = NodeIter::with_nodes(app, "object", count, handoffs, app.options.policy(None));
                let mut more = self.backends(app, req, place, nodes, missing);
                more.node_count = count;
                answers.extend(more.ask().await.0);
            }
        }
        let resp = best_response(&logger, &answers, "Object POST", &[], Some(quorum));
        // Somebody has it: a 404 would be a lie.
        if resp.status.0 == 404 && found > 0 {
            return Err(Response::error(503));
        }
        Ok(resp)
    }

    async fn container_info(&self, app: &Arc<Application>, req: &mut Request) -> Arc<ContainerInfo> {
        container_info(req, &this_app(app), &self.account, &self.container, "").await
    }

    pub fn storage_policy<'a>(&self, app: &'a Application) -> Result<&'a StoragePolicy, Response> {
        app.policies().get(self.policy).ok_or_else(unknown_policy)
    }

    fn part(&self, app: &Application, ring: &Ring) -> u32 {
        ring.get_part(&app.ctx.swift_conf.hash, &self.account, Some(&self.container), Some(&self.object))
    }

    /// Where a PUT or DELETE goes, if it may be made and there is a container.
    async fn place_of_allowed_change(
        &self,
        app: &Arc<Application>,
        req: &mut Request,
    ) -> Result<Place, Response> {
        let info = self.container_info(app, req).await;
        let place = self.place_for_change(app, req)?;
        set_sync_key(req, &info);
        if let Some(denial) = Authorizer::denial(req, info.write_acl.as_deref()).await {
            return Err(denial);
        }
        if info.is_success() { Ok(place) } else { Err(Response::error(404)) }
    }

    /// Where the object is to be changed; tells the backends the policy.
    fn place_for_change(&self, app: &Application, req: &mut Request) -> Result<Place, Response> {
        let ring = app.object_ring(self.policy)?;
        AccessLog::note_policy(&req.env, self.policy);
        req.headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, self.policy.0);
        if let Some(power) = ring.next_part_power() {
            req.headers.insert(X_BACKEND_NEXT_PART_POWER, power);
        }
        let part = self.part(app, &ring);
        let nodes = ring.get_part_nodes(part);
        Ok(Place { ring, part, nodes })
    }

    /// Makes `X-Delete-After` an `X-Delete-At`, and says where that is queued. Refuses what is not a time to come.
    pub fn config_expiration(
        &self,
        app: &Application,
        req: &mut Request,
    ) -> Result<Option<DeleteAt>, Response> {
        if !req.headers.contains(X_DELETE_AT) && !req.headers.contains(X_DELETE_AFTER) {
            return Ok(None);
        }
        let computed = check_delete_headers(req.headers.iter())
            .map_err(|(status, text)| Response::text(status, text))?;
        if let Some(at) = computed {
            req.headers.insert(X_DELETE_AT, at);
            req.headers.remove(X_DELETE_AFTER);
        }
        let at = req.headers.get_str(X_DELETE_AT).and_then(parse_int::<f64>).unwrap_or(0.0);
        let normal = normalize_delete_at(at);
        let at: u64 = normal.parse().unwrap_or(0);
        req.headers.insert(X_DELETE_AT, &normal);
        LogInfo::of(&mut req.env).append(format!("x-delete-at:{at}"));
        let hash = &app.ctx.swift_conf.hash;
        let container = app.expirer.container(hash, at, &self.account, &self.container, &self.object);
        let ring = app.container_ring()?;
        let (part, nodes) = ring.get_nodes(hash, &app.expirer.account_name, Some(&container), None);
        Ok(Some(DeleteAt { container, part, nodes }))
    }

    /// Headers for `count` backend requests.
    pub async fn backend_headers(
        &self,
        app: &Arc<Application>,
        req: &mut Request,
        count: usize,
        delete_at: Option<DeleteAt>,
    ) -> Result<Vec<Headers>, Response> {
        let ring = app.container_ring()?;
        let hash = &app.ctx.swift_conf.hash;
        let db_state = crate::info::InfoCache::in_env(&req.env)
            .and_then(|cache| cache.container(&crate::info::cache_key(&self.account, Some(&self.container))))
            .map_or_else(|| "unsharded".to_owned(), |info| info.sharding_state.clone());
        let shard = match db_state.as_str() {
            "sharding" | "sharded" => {
                shards::keeper(app, req, (&self.account, &self.container), &self.object).await
            }
            _ => None,
        };
        let (account, container) = match &shard {
            Some((account, container)) => (account, container),
            None => (&self.account, &self.container),
        };
        let (part, nodes) = ring.get_nodes(hash, account, Some(container), None);
        let container_path = shard.as_ref().map(|_| format!("{account}/{container}"));
        let updates = Updates {
            use_replication: req.headers.get_bool("X-Backend-Use-Replication-Network"),
            container_part: part,
            containers: &nodes,
            container_path: container_path.as_deref(),
            db_state: &db_state,
            delete_at: delete_at.as_ref(),
            object_quorum: self.storage_policy(app)?.quorum(count),
        };
        Ok(updates.headers(&all_request_headers(app, req), count))
    }
}

/// Lets the caller see an object that has expired but was not deleted yet, where that is allowed.
fn open_expired(app: &Application, req: &mut Request) {
    if app.options.allow_open_expired && req.headers.get_bool("X-Open-Expired") {
        req.headers.insert(X_BACKEND_OPEN_EXPIRED, "true");
    }
}

fn set_sync_key(req: &mut Request, info: &ContainerInfo) {
    if let Some(key) = &info.sync_key {
        req.env.insert(SyncKey(key.clone()));
    }
}

/// Drops the `swift_bytes` parameter by which a container listing knows a large object's size.
fn clean_content_type(headers: &mut Headers) {
    let Some(value) = headers.get_str(CONTENT_TYPE) else { return };
    let Some((left, right)) = value.rsplit_once(';') else { return };
    if right.trim_start().starts_with("swift_bytes=") {
        let left = left.to_owned();
        headers.insert(CONTENT_TYPE, left);
    }
}
