//! The container server (swift/container/server.py).
//!
//! A request is one job in the pool of its device, from the first check of the device to the response; only a PUT or DELETE of a
//! container goes on afterwards, to tell the account servers that the proxy named. An object row's PUT or DELETE appends to the
//! pending file and opens no database.
//!
//! A sharded container's rows are in other containers, of which this one has the shard ranges: it takes and lists them for who asks for
//! records of type `shard`, and sends on who updates a row and says that it can be sent. The sharder, which cuts containers up, is
//! not here.
//!
//! REPLICATE is `replication::rpc`'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::PolicyIndex;
use common::config::{ConfigError, Section};
use common::headers::{self as names, ServerType, is_true_value};
use common::quote::quote_path;
use common::timestamp::Timestamp;
use service::access_log;
use service::http::{App, BoxFuture, Headers, Method, Request, Response, SharedApp, Status};
use service::{Context, access_log::ServerType as LoggedType};

use super::account_update::{self, Report};
use super::broker::{ContainerBroker, ContainerInfo, DATADIR, DbState};
use super::listing::{self, ObjectListing};
use super::rows::ObjectRecord;
use super::shard_body::{self, Refused};
use super::shard_listing::{self, ShardQuery};
use super::shard_range::BadState;
use super::sync_store;
use super::sync_to::SyncTo;
use crate::broker::{BrokerError, Options};
use crate::json_error;
use crate::listing::Query;
use crate::listing_formats::{ListingType, listing_response};
use crate::metadata::Metadata;
use crate::replication::rpc;
use crate::server::{
    Answer, Databases, Devices, Target, broker_failure, db_path, header_is_true, html_answer, internal,
    listing_query, metadata_limits, metadata_of, normal, options, param, policy_index, replicate_body,
    text_answer, time_step, valid_timestamp,
};

const ALLOWED: [&str; 7] = ["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "UPDATE"];
/// The body of an UPDATE, rows that the proxy merges, or of a PUT of shard ranges.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The app factory of `egg:swift#container`.
pub fn app(section: &Section, ctx: &Context) -> Result<SharedApp, ConfigError> {
    let server = ContainerServer(Arc::new(Server::new(section, ctx)?));
    access_log::wrap(LoggedType::Container, section, ctx, Arc::new(server))
}

struct ContainerServer(Arc<Server>);

struct Server {
    ctx: Context,
    devices: Devices,
    databases: Databases,
    sync_to: SyncTo,
    /// Headers besides metadata that are kept with a container, in lower case.
    save_headers: Vec<&'static str>,
    replication_server: bool,
    node_timeout: Duration,
    conn_timeout: Duration,
    shards_account_prefix: String,
}

/// What a job in the device's pool came to.
enum Outcome {
    Done(Response),
    /// Tell the accounts about the container, then answer.
    Report(Box<ContainerInfo>, Response),
}

impl From<Response> for Outcome {
    fn from(response: Response) -> Self {
        Self::Done(response)
    }
}

impl App for ContainerServer {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        Box::pin(self.0.clone().respond(req))
    }
}

impl Server {
    fn new(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let mut save_headers =
            vec!["x-container-read", "x-container-write", "x-container-sync-key", "x-container-sync-to"];
        if section.bool("allow_versions", false)? {
            save_headers.push("x-versions-location");
        }
        Ok(Self {
            devices: Devices::from_section(section)?,
            databases: Databases::from_section(section, ctx)?,
            sync_to: SyncTo::from_section(section, ctx),
            save_headers,
            replication_server: section.bool("replication_server", true)?,
            node_timeout: section.secs("node_timeout", 3.0)?,
            conn_timeout: section.secs("conn_timeout", 0.5)?,
            shards_account_prefix: format!(
                "{}shards_",
                ctx.swift_conf.constraints.auto_create_account_prefix
            ),
            ctx: ctx.clone(),
        })
    }

    async fn respond(self: Arc<Self>, mut req: Request) -> Response {
        if !req.path_is_utf8 {
            return html_answer(412, "Invalid UTF8 or contains NULL");
        }
        match &req.method {
            Method::Options => return options("container-server", &ALLOWED),
            Method::Replicate if self.replication_server => {}
            Method::Get | Method::Head | Method::Put | Method::Post | Method::Delete | Method::Update => {}
            _ => return Response::error(405),
        }
        let takes_body = match req.method {
            Method::Update => true,
            Method::Put => record_type(&req) == "shard",
            _ => false,
        };
        let body = if takes_body {
            req.body.collect(MAX_BODY_BYTES).await.map_err(|error| text_answer(400, error.to_string()))
        } else {
            replicate_body(&mut req).await
        };
        let body = match body {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let drive = req.path.split('/').nth(1).unwrap_or_default().to_owned();
        let server = self.clone();
        let job = move || {
            let outcome = server.handle(&req, &body).unwrap_or_else(Outcome::Done);
            (req, outcome)
        };
        let (req, outcome) = self.ctx.disk_pools.run(&drive, job).await;
        self.databases.close_idle_later();
        match outcome {
            Outcome::Done(response) => response,
            Outcome::Report(info, response) => self.report(req, &info, response).await,
        }
    }

    /// The whole request as far as it concerns the disk.
    fn handle(&self, req: &Request, body: &[u8]) -> Answer<Outcome> {
        if req.method == Method::Replicate {
            let answered =
                rpc::answer::<ContainerBroker>(&self.ctx, &self.databases, &self.devices, req, body);
            return answered.map(Outcome::Done);
        }
        let whole_path = !matches!(req.method, Method::Post | Method::Update);
        let target = if whole_path { Target::of(req, 4, 5, true)? } else { Target::of(req, 4, 4, false)? };
        target.validate_reserved(&self.ctx.swift_conf.constraints.auto_create_account_prefix)?;
        let request = ContainerRequest { server: self, req, target };
        match &req.method {
            Method::Get => request.get(),
            Method::Head => request.head(),
            Method::Put => request.put(body),
            Method::Post => request.post(),
            Method::Update => request.update(body),
            _ => request.delete(),
        }
    }

    /// Tell the account servers of the request about the container; if none of them has the account, neither have we.
    async fn report(&self, req: Request, info: &ContainerInfo, response: Response) -> Response {
        let report = Report {
            override_deleted: req
                .headers
                .get_str(names::X_ACCOUNT_OVERRIDE_DELETED)
                .is_some_and(|v| v.eq_ignore_ascii_case("yes")),
            trans_id: Some(req.headers.get_str(names::X_TRANS_ID).unwrap_or("-").to_owned()),
            referer: Some(req.as_referer()),
            user_agent: format!("container-server {}", std::process::id()),
            ..Report::of(info)
        };
        let timeouts = account_update::timeouts(self.conn_timeout, self.node_timeout);
        match account_update::to_request_hosts(&self.ctx, &req.headers, &report, timeouts).await {
            Ok(()) => response,
            Err(status) => Response::error(status),
        }
    }

    fn is_saved(&self, lower_name: &str) -> bool {
        self.save_headers.contains(&lower_name)
    }

    /// Whether an object row may create its container.
    fn should_autocreate(&self, account: &str, headers: &Headers) -> bool {
        match headers.get_str(names::X_BACKEND_AUTO_CREATE).filter(|value| !value.is_empty()) {
            Some(asked) => is_true_value(asked),
            // Only the sharder creates shards, and it says so.
            None if account.starts_with(&self.shards_account_prefix) => false,
            None => account.starts_with(&self.ctx.swift_conf.constraints.auto_create_account_prefix),
        }
    }
}

/// A request on its way through a device's pool.
struct ContainerRequest<'a> {
    server: &'a Server,
    req: &'a Request,
    target: Target,
}

impl ContainerRequest<'_> {
    fn get(&self) -> Answer<Outcome> {
        let most = self.server.ctx.swift_conf.constraints.container_listing_limit;
        let query = listing_query(self.req, most)?;
        listing::validates(self.req)?;
        let listing_type = ListingType::of(self.req)?;
        let mut broker = self.broker(Options::reading())?;
        let info = self.info(&mut broker)?;
        if self.asks_for_shards(info.as_ref()) {
            return self.get_shard_ranges(&mut broker, info, &query, listing_type);
        }
        let start = Instant::now();
        let policy = policy_index(self.req, &self.server.ctx.swift_conf.policies)?;
        let Some(info) = info.filter(|info| !info.is_deleted()) else {
            return Err(self.not_found_with_timestamps(&mut broker));
        };
        let policy = policy.unwrap_or(info.storage_policy_index);
        let mut listing = ObjectListing::new(listing_type.format, self.container());
        self.run(broker.list_objects(&query, policy, |entry| listing.push(&entry)))?;
        let mut response = container_listing(listing_type, listing.finish());
        add_info_headers(&mut response.headers, &info);
        response.headers.insert(names::X_BACKEND_RECORD_TYPE, "object");
        response.headers.insert(names::X_BACKEND_RECORD_STORAGE_POLICY_INDEX, policy);
        self.add_metadata_headers(&mut response.headers, &self.run(broker.db.metadata())?);
        add_last_modified(&mut response.headers, &info);
        time_step(&self.server.ctx, "GET_object", start, &response);
        Ok(response.into())
    }

    fn get_shard_ranges(
        &self,
        broker: &mut ContainerBroker,
        info: Option<ContainerInfo>,
        query: &Query,
        listing_type: ListingType,
    ) -> Answer<Outcome> {
        let start = Instant::now();
        let headers = &self.req.headers;
        let override_deleted = header_is_true(headers, names::X_BACKEND_OVERRIDE_DELETED);
        let Some(info) = info.filter(|info| override_deleted || !info.is_deleted()) else {
            return Err(self.not_found_with_timestamps(broker));
        };
        let unfiltered = headers
            .get_str(names::X_BACKEND_OVERRIDE_SHARD_NAME_FILTER)
            .is_some_and(|state| state.eq_ignore_ascii_case("sharded") && info.db_state == DbState::Sharded);
        let namespaces = headers
            .get_str(names::X_BACKEND_RECORD_SHARD_FORMAT)
            .is_some_and(|format| format.eq_ignore_ascii_case("namespace"));
        let mut asked = self.shard_query(query)?;
        if unfiltered {
            asked = asked.without_names();
        }
        if namespaces && asked.include_deleted {
            return Err(html_answer(400, "No include_deleted for namespace GET"));
        }
        if namespaces && asked.include_own {
            return Err(html_answer(400, "No auditing state for namespace GET"));
        }
        let ranges = self.run(broker.list_shard_ranges(&asked))?;
        let body = match ranges.is_empty() {
            true => Some(ObjectListing::new(listing_type.format, self.container()).finish()),
            false => shard_listing::write(&ranges, listing_type.format, namespaces),
        };
        let Some(body) = body else {
            return Err(Response::error(500));
        };
        let mut response = container_listing(listing_type, body);
        add_info_headers(&mut response.headers, &info);
        response.headers.insert(names::X_BACKEND_RECORD_TYPE, "shard");
        if unfiltered {
            response.headers.insert(names::X_BACKEND_OVERRIDE_SHARD_NAME_FILTER, "true");
        }
        let format = if namespaces { "namespace" } else { "full" };
        response.headers.insert(names::X_BACKEND_RECORD_SHARD_FORMAT, format);
        self.add_metadata_headers(&mut response.headers, &self.run(broker.db.metadata())?);
        add_last_modified(&mut response.headers, &info);
        time_step(&self.server.ctx, "GET_shard", start, &response);
        Ok(response.into())
    }

    fn shard_query(&self, query: &Query) -> Answer<ShardQuery> {
        let all = ShardQuery {
            marker: query.marker.clone(),
            end_marker: query.end_marker.clone(),
            includes: param(self.req, "includes")?,
            reverse: query.reverse,
            include_deleted: header_is_true(&self.req.headers, names::X_BACKEND_INCLUDE_DELETED),
            ..ShardQuery::default()
        };
        all.in_states(&param(self.req, "states")?.unwrap_or_default()).map_err(|bad| match bad {
            BadState::Unknown => html_answer(400, "Bad state"),
            BadState::Infinite => Response::error(500),
        })
    }

    fn head(&self) -> Answer<Outcome> {
        let listing_type = ListingType::of(self.req)?;
        let mut broker = self.broker(Options::reading())?;
        let Some(info) = self.info(&mut broker)?.filter(|info| !info.is_deleted()) else {
            return Err(self.not_found_with_timestamps(&mut broker));
        };
        let mut response = Response::new(204);
        response.headers.insert("Content-Type", listing_type.header());
        add_info_headers(&mut response.headers, &info);
        self.add_metadata_headers(&mut response.headers, &self.run(broker.db.metadata())?);
        response.headers.insert("Content-Length", 0u32);
        add_last_modified(&mut response.headers, &info);
        Ok(response.into())
    }

    fn put(&self, body: &[u8]) -> Answer<Outcome> {
        let timestamp = valid_timestamp(self.req)?;
        self.server.sync_to.validate(&self.req.headers)?;
        let mut broker = self.broker_with_space()?;
        let start = Instant::now();
        let (step, outcome) = if let Some(object) = &self.target.object {
            ("PUT_object", self.put_object(&mut broker, object, timestamp))
        } else if record_type(self.req) == "shard" {
            ("PUT_shard", self.put_shard_ranges(&mut broker, body, timestamp))
        } else {
            ("PUT_container", self.put_container(&mut broker, timestamp))
        };
        let (Ok(Outcome::Done(response) | Outcome::Report(_, response)) | Err(response)) = &outcome;
        time_step(&self.server.ctx, step, start, response);
        outcome
    }

    /// The policy that a row is for; its container is made if it is one of those that need not be there before.
    fn policy_of_row(&self, broker: &mut ContainerBroker, timestamp: Timestamp) -> Answer<i64> {
        let policy = policy_index(self.req, &self.server.ctx.swift_conf.policies)?.unwrap_or(0);
        self.maybe_autocreate(broker, timestamp, Some(policy))?;
        Ok(policy)
    }

    fn put_object(
        &self,
        broker: &mut ContainerBroker,
        object: &str,
        timestamp: Timestamp,
    ) -> Answer<Outcome> {
        let policy = self.policy_of_row(broker, timestamp)?;
        self.redirect_to_shard(broker, object)?;
        let header =
            |name| self.req.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
        let size = header(names::X_SIZE).and_then(|size| common::config::parse_int(&size));
        let (Some(size), Some(content_type), Some(etag)) =
            (size, header(names::X_CONTENT_TYPE), header(names::X_ETAG))
        else {
            // Swift: a missing header is a KeyError there, and so a 500.
            return Err(Response::error(500));
        };
        let record = ObjectRecord {
            name: object.to_owned(),
            created_at: timestamp.internal(),
            size,
            content_type,
            etag,
            deleted: false,
            storage_policy_index: policy,
            ctype_timestamp: header(names::X_CONTENT_TYPE_TIMESTAMP),
            meta_timestamp: header(names::X_META_TIMESTAMP),
        };
        self.store_row(broker, record)?;
        Ok(Response::error(201).into())
    }

    /// Refuse a row that is another container's to keep, if the sender can find it: an object-updater can, and an object server, whose
    /// requests are more and must be quick, does not ask.
    fn redirect_to_shard(&self, broker: &mut ContainerBroker, object: &str) -> Answer<()> {
        let headers = &self.req.headers;
        if !header_is_true(headers, names::X_BACKEND_ACCEPT_REDIRECT) || !self.run(broker.exists())? {
            return Ok(());
        }
        let found = self.run(broker.list_shard_ranges(&ShardQuery::taking(object)))?;
        let Some(range) = found.first() else { return Ok(()) };
        let location = format!("/{}/{object}", range.name);
        let quoted = quote_path(&location);
        // Who does not know of quoting leaves the row here, for a sharder to move.
        if quoted != location && !header_is_true(headers, names::X_BACKEND_ACCEPT_QUOTED_LOCATION) {
            return Ok(());
        }
        Err(Response::error(301)
            .with_header("Location", quoted)
            .with_header(names::X_BACKEND_LOCATION_IS_QUOTED, "true")
            .with_header(names::X_BACKEND_REDIRECT_TIMESTAMP, internal(&range.timestamp)))
    }

    fn put_shard_ranges(
        &self,
        broker: &mut ContainerBroker,
        body: &[u8],
        timestamp: Timestamp,
    ) -> Answer<Outcome> {
        let policy = policy_index(self.req, &self.server.ctx.swift_conf.policies)?;
        let ranges = shard_body::read(body).map_err(|refused| match refused {
            Refused::Invalid(exception) => html_answer(400, format!("Invalid body: {exception}")),
            Refused::Unforeseen => Response::error(500),
        })?;
        let created = self.maybe_autocreate(broker, timestamp, policy)?;
        if !self.run(broker.exists())? {
            return Err(Response::error(404));
        }
        self.update_metadata(broker, timestamp)?;
        if !ranges.is_empty() {
            self.run(broker.merge_shard_ranges(ranges))?;
        }
        let policy = self.run(broker.storage_policy_index())?;
        Ok(Self::stored(created, policy).into())
    }

    fn stored(created: bool, policy: i64) -> Response {
        Response::error(if created { 201 } else { 202 })
            .with_header(names::X_BACKEND_STORAGE_POLICY_INDEX, policy)
    }

    fn put_container(&self, broker: &mut ContainerBroker, timestamp: Timestamp) -> Answer<Outcome> {
        let policies = &self.server.ctx.swift_conf.policies;
        let requested = policy_index(self.req, policies)?;
        let default = || {
            let from_proxy = self.req.headers.get_str(names::X_BACKEND_STORAGE_POLICY_DEFAULT);
            from_proxy.and_then(common::config::parse_int).unwrap_or(i64::from(policies.default().index.0))
        };
        let created =
            self.update_or_create(broker, timestamp, requested.unwrap_or_else(default), requested)?;
        self.update_metadata(broker, timestamp)?;
        let info = self.run(broker.info())?;
        let response = Self::stored(created, info.storage_policy_index);
        Ok(Outcome::Report(Box::new(info), response))
    }

    /// True if the container did not exist, or was deleted.
    fn update_or_create(
        &self,
        broker: &mut ContainerBroker,
        timestamp: Timestamp,
        new_policy: i64,
        requested: Option<i64>,
    ) -> Answer<bool> {
        let timestamp = timestamp.internal();
        if !self.run(broker.exists())? && self.create(broker, &timestamp, new_policy)? {
            return Ok(true);
        }
        let before = self.run(broker.info())?;
        let recreated = before.is_deleted();
        if recreated {
            // Only a deleted container changes its policy.
            self.run(broker.set_storage_policy_index(new_policy, &timestamp))?;
        } else if requested.is_some_and(|requested| requested != before.storage_policy_index) {
            return Err(Response::error(409)
                .with_header(names::X_BACKEND_STORAGE_POLICY_INDEX, before.storage_policy_index));
        }
        self.run(broker.db.update_put_timestamp(&timestamp))?;
        if self.run(broker.is_deleted())? {
            return Err(Response::error(409));
        }
        if recreated {
            self.run(broker.db.update_status_changed_at(&timestamp))?;
        }
        Ok(recreated)
    }

    fn post(&self) -> Answer<Outcome> {
        let timestamp = valid_timestamp(self.req)?;
        self.server.sync_to.validate(&self.req.headers)?;
        let mut broker = self.broker_with_space()?;
        if self.run(broker.is_deleted())? {
            return Err(Response::error(404));
        }
        if !header_is_true(&self.req.headers, names::X_BACKEND_NO_TIMESTAMP_UPDATE) {
            self.run(broker.db.update_put_timestamp(&timestamp.internal()))?;
        }
        self.update_metadata(&mut broker, timestamp)?;
        Ok(Response::new(204).into())
    }

    fn delete(&self) -> Answer<Outcome> {
        let timestamp = valid_timestamp(self.req)?;
        let mut broker = self.broker(Options::default())?;
        match &self.target.object {
            Some(object) => self.delete_object(&mut broker, object, timestamp),
            None => self.delete_container(&mut broker, timestamp),
        }
    }

    fn delete_object(
        &self,
        broker: &mut ContainerBroker,
        object: &str,
        timestamp: Timestamp,
    ) -> Answer<Outcome> {
        let policy = self.policy_of_row(broker, timestamp)?;
        self.redirect_to_shard(broker, object)?;
        // Swift: the timestamp goes into the row as the client wrote it; merging normalises it.
        let as_sent = self.req.headers.get_str(names::X_TIMESTAMP).unwrap_or_default().to_owned();
        self.store_row(broker, ObjectRecord::tombstone(object.to_owned(), as_sent, policy))?;
        Ok(Response::new(204).into())
    }

    fn delete_container(&self, broker: &mut ContainerBroker, timestamp: Timestamp) -> Answer<Outcome> {
        if !self.run(broker.exists())? {
            return Err(Response::error(404));
        }
        if !self.run(broker.is_empty())? {
            return Err(Response::error(409));
        }
        let before = self.run(broker.info())?;
        let was_put = Timestamp::parse(&before.put_timestamp).is_ok_and(|put| !put.is_zero());
        let existed = was_put && !before.is_deleted();
        self.run(broker.db.delete_db(&timestamp.internal()))?;
        let info = self.run(broker.info())?;
        if !info.is_deleted() {
            return Err(Response::error(409));
        }
        self.update_sync_store(broker);
        let response = if existed { Response::new(204) } else { Response::error(404) };
        Ok(Outcome::Report(Box::new(info), response))
    }

    fn update(&self, body: &[u8]) -> Answer<Outcome> {
        let timestamp = valid_timestamp(self.req)?;
        let mut broker = self.broker_with_space()?;
        let policy = policy_index(self.req, &self.server.ctx.swift_conf.policies)?;
        self.maybe_autocreate(&mut broker, timestamp, policy)?;
        let records = json_error::parse(body).map_err(|error| text_answer(400, error.to_string()))?;
        let Some(records) = ObjectRecord::from_json_list(&records) else {
            return Err(Response::error(500));
        };
        if !self.run(broker.exists())? {
            return Err(Response::error(404));
        }
        self.run(broker.merge_items(records))?;
        Ok(Response::error(202).into())
    }

    // --- steps ---

    /// True if the container did not exist.
    fn maybe_autocreate(
        &self,
        broker: &mut ContainerBroker,
        timestamp: Timestamp,
        policy: Option<i64>,
    ) -> Answer<bool> {
        if !self.server.should_autocreate(&self.target.account, &self.req.headers) {
            return Ok(false); // storing the row will tell whether there is a database
        }
        if !broker.has_base_file() && !self.run(broker.exists())? {
            let Some(policy) = policy else {
                return Err(html_answer(400, "X-Backend-Storage-Policy-Index header is required"));
            };
            // A row's timestamp may have an offset, a container's has none.
            return self.create(broker, &timestamp.normal(), policy);
        }
        Ok(false)
    }

    /// False if another request was faster.
    fn create(&self, broker: &mut ContainerBroker, timestamp: &str, policy: i64) -> Answer<bool> {
        match broker.initialize(&self.target.account, self.container(), timestamp, policy) {
            Err(BrokerError::AlreadyExists(_)) => Ok(false),
            other => self.run(other).map(|()| true),
        }
    }

    fn store_row(&self, broker: &mut ContainerBroker, record: ObjectRecord) -> Answer<()> {
        match broker.put_object(record) {
            // Gone since it was looked for.
            Err(BrokerError::NotExist(_)) => Err(Response::error(404)),
            other => self.run(other),
        }
    }

    fn update_metadata(&self, broker: &mut ContainerBroker, timestamp: Timestamp) -> Answer<()> {
        let saved = |name: &str| self.server.is_saved(name);
        if crate::server::has_invalid_metadata(&self.req.headers, ServerType::Container, saved) {
            return Err(html_answer(400, "Metadata must be valid UTF-8"));
        }
        let updates = metadata_of(&self.req.headers, ServerType::Container, saved, timestamp);
        if updates.is_empty() {
            return Ok(());
        }
        if let Some(new) = updates.get("X-Container-Sync-To") {
            let old = self.run(broker.db.metadata())?;
            if old.get("X-Container-Sync-To").is_none_or(|old| old.value != new.value) {
                self.run(broker.set_x_container_sync_points(Some(-1), Some(-1)))?;
            }
        }
        self.run(broker.db.update_metadata(&updates, Some(metadata_limits(&self.server.ctx.swift_conf))))?;
        self.update_sync_store(broker);
        Ok(())
    }

    fn update_sync_store(&self, broker: &mut ContainerBroker) {
        if let Err(error) = sync_store::update(broker) {
            self.server.ctx.logger.error(format_args!(
                "Failed to update sync_store {} during {}: {error}",
                broker.db.db_file.display(),
                self.req.method
            ));
        }
    }

    // --- around the broker ---

    fn container(&self) -> &str {
        self.target.container.as_deref().unwrap_or_default()
    }

    fn broker(&self, options: Options) -> Answer<ContainerBroker> {
        let device = self.server.devices.check_drive(&self.target.drive)?;
        Ok(self.broker_on(&device, options))
    }

    fn broker_with_space(&self) -> Answer<ContainerBroker> {
        let device = self.server.devices.check_drive_and_space(&self.target.drive)?;
        Ok(self.broker_on(&device, Options::default()))
    }

    fn broker_on(&self, device: &std::path::Path, options: Options) -> ContainerBroker {
        let hash =
            self.server.ctx.swift_conf.hash.hash_path(&self.target.account, Some(self.container()), None);
        let db_file = db_path(device, DATADIR, &self.target.partition, &hash);
        ContainerBroker::new(&self.server.databases.shared, &db_file, options)
    }

    /// `None` if there is no database.
    fn info(&self, broker: &mut ContainerBroker) -> Answer<Option<ContainerInfo>> {
        match broker.info() {
            Err(BrokerError::NotExist(_)) => Ok(None),
            other => self.run(other).map(Some),
        }
    }

    fn run<T>(&self, result: Result<T, BrokerError>) -> Answer<T> {
        result.map_err(|error| broker_failure(&self.server.ctx, self.req, &self.target.drive, &error))
    }

    fn asks_for_shards(&self, info: Option<&ContainerInfo>) -> bool {
        let sharded = info.is_some_and(|info| matches!(info.db_state, DbState::Sharding | DbState::Sharded));
        match record_type(self.req).as_str() {
            "shard" => true,
            "auto" => sharded,
            _ => false,
        }
    }

    /// 404 with the timestamps of the deleted container, for whoever compares replicas.
    fn not_found_with_timestamps(&self, broker: &mut ContainerBroker) -> Response {
        let mut response = Response::error(404);
        match broker.info() {
            Ok(info) => add_backend_headers(&mut response.headers, &info),
            Err(_) => {
                for name in TIMESTAMP_HEADERS {
                    response.headers.insert(name, Timestamp::ZERO.internal());
                }
                response.headers.insert(names::X_BACKEND_STORAGE_POLICY_INDEX, PolicyIndex::LEGACY.0);
            }
        }
        response
    }

    fn add_metadata_headers(&self, headers: &mut Headers, metadata: &Metadata) {
        for (name, item) in metadata.iter().filter(|(_, item)| !item.value.is_empty()) {
            let saved = self.server.is_saved(&name.to_ascii_lowercase());
            if saved || names::is_sys_or_user_meta(ServerType::Container, name) {
                headers.insert(name, item.value.as_str());
            }
        }
    }
}

fn record_type(req: &Request) -> String {
    req.headers.get_str(names::X_BACKEND_RECORD_TYPE).unwrap_or_default().to_ascii_lowercase()
}

/// A listing without what is known of the container. An empty one has a length here.
fn container_listing(listing_type: ListingType, body: Vec<u8>) -> Response {
    let mut response = listing_response(listing_type, body);
    if response.status == Status::NO_CONTENT {
        response.headers.insert("Content-Length", 0u32);
    }
    response
}

const TIMESTAMP_HEADERS: [&str; 4] = [
    names::X_BACKEND_TIMESTAMP,
    names::X_BACKEND_PUT_TIMESTAMP,
    names::X_BACKEND_DELETE_TIMESTAMP,
    names::X_BACKEND_STATUS_CHANGED_AT,
];

/// What proxies and daemons may always know.
fn add_backend_headers(headers: &mut Headers, info: &ContainerInfo) {
    let columns = [&info.created_at, &info.put_timestamp, &info.delete_timestamp, &info.status_changed_at];
    for (name, column) in TIMESTAMP_HEADERS.into_iter().zip(columns) {
        headers.insert(name, internal(column));
    }
    headers.insert(names::X_BACKEND_STORAGE_POLICY_INDEX, info.storage_policy_index);
}

/// All that is told of a container which is not deleted.
fn add_info_headers(headers: &mut Headers, info: &ContainerInfo) {
    add_backend_headers(headers, info);
    headers.insert(names::X_CONTAINER_OBJECT_COUNT, info.object_count);
    headers.insert(names::X_CONTAINER_BYTES_USED, info.bytes_used);
    headers.insert(names::X_TIMESTAMP, normal(&info.created_at));
    headers.insert(names::X_PUT_TIMESTAMP, normal(&info.put_timestamp));
    headers.insert(names::X_BACKEND_SHARDING_STATE, info.db_state.as_str());
}

fn add_last_modified(headers: &mut Headers, info: &ContainerInfo) {
    let put = Timestamp::parse(&normal(&info.put_timestamp)).unwrap_or_default();
    headers.insert(names::LAST_MODIFIED, put.http_date());
}
