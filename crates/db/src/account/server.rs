//! The account server (swift/account/server.py).
//!
//! A request is one job in the pool of its device. The row of a container, which container servers and updaters PUT here, is an append
//! to the pending file after a look whether the account is deleted. REPLICATE is `replication::rpc`'s.

use std::sync::Arc;

use common::PolicyIndex;
use common::config::{ConfigError, Section};
use common::headers::{self as names, ServerType};
use common::timestamp::Timestamp;
use service::access_log;
use service::http::{App, BoxFuture, Headers, Method, Request, Response, SharedApp};
use service::{Context, access_log::ServerType as LoggedType};

use super::broker::{AccountBroker, AccountInfo, ContainerRecord, Count, DATADIR};
use super::listing::ContainerListing;
use crate::broker::{BrokerError, Options};
use crate::listing_formats::{ListingType, listing_response};
use crate::replication::rpc;
use crate::server::{
    Answer, Databases, Devices, Target, broker_failure, db_path, has_invalid_metadata, html_answer,
    listing_query, metadata_limits, metadata_of, normal, options, replicate_body, valid_timestamp,
};

const ALLOWED: [&str; 6] = ["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"];

/// The app factory of `egg:swift#account`.
pub fn app(section: &Section, ctx: &Context) -> Result<SharedApp, ConfigError> {
    let server = AccountServer(Arc::new(Server {
        devices: Devices::from_section(section)?,
        databases: Databases::from_section(section, ctx)?,
        replication_server: section.bool("replication_server", true)?,
        ctx: ctx.clone(),
    }));
    access_log::wrap(LoggedType::Account, section, ctx, Arc::new(server))
}

struct AccountServer(Arc<Server>);

struct Server {
    ctx: Context,
    devices: Devices,
    databases: Databases,
    replication_server: bool,
}

impl App for AccountServer {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        Box::pin(self.0.clone().respond(req))
    }
}

impl Server {
    async fn respond(self: Arc<Self>, mut req: Request) -> Response {
        if !req.path_is_utf8 {
            return html_answer(412, "Invalid UTF8");
        }
        match &req.method {
            Method::Options => return options("account-server", &ALLOWED),
            Method::Replicate if self.replication_server => {}
            Method::Get | Method::Head | Method::Put | Method::Post | Method::Delete => {}
            _ => return Response::error(405),
        }
        let body = match replicate_body(&mut req).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let drive = req.path.split('/').nth(1).unwrap_or_default().to_owned();
        let server = self.clone();
        let job = move || server.handle(&req, &body).unwrap_or_else(|refused| refused);
        let response = self.ctx.disk_pools.run(&drive, job).await;
        self.databases.close_idle_later();
        response
    }

    fn handle(&self, req: &Request, body: &[u8]) -> Answer<Response> {
        if req.method == Method::Replicate {
            return rpc::answer::<AccountBroker>(&self.ctx, &self.databases, &self.devices, req, body);
        }
        let most = if req.method == Method::Put { 4 } else { 3 };
        let target = Target::of(req, 3, most, false)?;
        target.validate_reserved(&self.ctx.swift_conf.constraints.auto_create_account_prefix)?;
        let request = AccountRequest { server: self, req, target };
        match &req.method {
            Method::Get => request.get(),
            Method::Head => request.head(),
            Method::Put => request.put(),
            Method::Post => request.post(),
            _ => request.delete(),
        }
    }
}

/// A request on its way through a device's pool.
struct AccountRequest<'a> {
    server: &'a Server,
    req: &'a Request,
    target: Target,
}

impl AccountRequest<'_> {
    fn get(&self) -> Answer<Response> {
        let query = crate::listing::Query {
            path: None, // accounts know no such parameter
            ..listing_query(self.req, self.server.ctx.swift_conf.constraints.account_listing_limit)?
        };
        let listing_type = ListingType::of(self.req)?;
        let mut broker = self.broker(Options::reading())?;
        let info = self.existing(&mut broker, 404, "")?;
        let policies = &self.server.ctx.swift_conf.policies;
        let mut listing = ContainerListing::new(listing_type.format, &self.target.account, policies);
        self.run(broker.list_containers(&query, |entry| listing.push(&entry)))?;
        let mut response = listing_response(listing_type, listing.finish());
        self.add_headers(&mut response.headers, &mut broker, &info)?;
        Ok(response)
    }

    fn head(&self) -> Answer<Response> {
        let listing_type = ListingType::of(self.req)?;
        let mut broker = self.broker(Options::reading())?;
        let info = self.existing(&mut broker, 404, "")?;
        let mut response = Response::new(204);
        response.headers.insert("Content-Type", listing_type.header());
        self.add_headers(&mut response.headers, &mut broker, &info)?;
        response.headers.insert("Content-Length", 0u32);
        Ok(response)
    }

    fn put(&self) -> Answer<Response> {
        let device = self.server.devices.check_drive_and_space(&self.target.drive)?;
        match &self.target.container {
            Some(container) => self.put_container(&device, container),
            None => self.put_account(&device),
        }
    }

    fn put_container(&self, device: &std::path::Path, container: &str) -> Answer<Response> {
        let header = |name| self.req.headers.get_str(name).map(str::to_owned);
        let timestamp = match self.req.headers.contains(names::X_TIMESTAMP) {
            true => valid_timestamp(self.req)?,
            false => self.server.ctx.clock.now(),
        };
        let mut options = Options::default();
        if self.req.headers.contains(names::X_TRANS_ID) {
            // A request that somebody waits for.
            options.pending_timeout = std::time::Duration::from_secs(3);
        }
        let mut broker = self.broker_on(device, options);
        let account = &self.target.account;
        if account.starts_with(&self.server.ctx.swift_conf.constraints.auto_create_account_prefix)
            && !broker.db.exists()
        {
            self.create(&mut broker, timestamp)?;
        }
        let override_deleted =
            header(names::X_ACCOUNT_OVERRIDE_DELETED).is_some_and(|value| value.eq_ignore_ascii_case("yes"));
        if !broker.db.exists() || !override_deleted && self.run(broker.is_deleted())? {
            return Err(Response::error(404));
        }
        let (Some(put), Some(delete), Some(objects), Some(bytes)) = (
            header(names::X_PUT_TIMESTAMP),
            header(names::X_DELETE_TIMESTAMP),
            header(names::X_OBJECT_COUNT),
            header(names::X_BYTES_USED),
        ) else {
            // Swift: a missing header is a KeyError there, and so a 500.
            return Err(Response::error(500));
        };
        if Timestamp::parse(&put).is_err() || Timestamp::parse(&delete).is_err() {
            return Err(Response::error(500));
        }
        let deletes = delete > put;
        let policy = header(names::X_BACKEND_STORAGE_POLICY_INDEX).map_or(Count::Number(0), Count::Text);
        let record = ContainerRecord::new(
            container.to_owned(),
            put,
            delete,
            Count::Text(objects),
            Count::Text(bytes),
            policy,
        );
        self.run(broker.put_container(record))?;
        Ok(if deletes { Response::new(204) } else { Response::error(201) })
    }

    fn put_account(&self, device: &std::path::Path) -> Answer<Response> {
        let timestamp = valid_timestamp(self.req)?;
        let mut broker = self.broker_on(device, Options::default());
        let created = if !broker.db.exists() {
            self.create(&mut broker, timestamp)?
        } else {
            let before = self.run(broker.info())?;
            if before.is_status_deleted() {
                return Err(self.deleted_response(403, true, "Recently deleted"));
            }
            self.run(broker.db.update_put_timestamp(&timestamp.internal()))?;
            if self.run(broker.is_deleted())? {
                return Err(Response::error(409));
            }
            before.is_deleted()
        };
        self.update_metadata(&mut broker, timestamp)?;
        Ok(Response::error(if created { 201 } else { 202 }))
    }

    fn post(&self) -> Answer<Response> {
        let timestamp = valid_timestamp(self.req)?;
        let device = self.server.devices.check_drive_and_space(&self.target.drive)?;
        let mut broker = self.broker_on(&device, Options::default());
        self.existing(&mut broker, 404, "")?;
        self.update_metadata(&mut broker, timestamp)?;
        Ok(Response::new(204))
    }

    fn delete(&self) -> Answer<Response> {
        let mut broker = self.broker(Options::default())?;
        let timestamp = valid_timestamp(self.req)?;
        self.existing(&mut broker, 404, "")?;
        self.run(broker.db.delete_db(&timestamp.internal()))?;
        let deleted = self.run(broker.info())?.is_status_deleted();
        Ok(self.deleted_response(204, deleted, ""))
    }

    // --- steps ---

    /// False if another request was faster.
    fn create(&self, broker: &mut AccountBroker, timestamp: Timestamp) -> Answer<bool> {
        match broker.initialize(&self.target.account, &timestamp.internal()) {
            Err(BrokerError::AlreadyExists(_)) => Ok(false),
            other => self.run(other).map(|()| true),
        }
    }

    /// The account's statistics; if it is deleted or never was, a response that says which.
    fn existing(&self, broker: &mut AccountBroker, status: u16, body: &'static str) -> Answer<AccountInfo> {
        match broker.info() {
            Err(BrokerError::NotExist(_)) => Err(self.deleted_response(status, false, body)),
            Ok(info) if info.is_deleted() => {
                Err(self.deleted_response(status, info.is_status_deleted(), body))
            }
            other => self.run(other),
        }
    }

    fn deleted_response(&self, status: u16, status_deleted: bool, body: &'static str) -> Response {
        let mut response = html_answer(status, body).with_header("Content-Type", "text/html; charset=utf-8");
        if status_deleted {
            response.headers.insert(names::X_ACCOUNT_STATUS, "Deleted");
        }
        response
    }

    fn update_metadata(&self, broker: &mut AccountBroker, timestamp: Timestamp) -> Answer<()> {
        let headers = &self.req.headers;
        if has_invalid_metadata(headers, ServerType::Account, |_| false) {
            return Err(html_answer(400, "Metadata must be valid UTF-8"));
        }
        let updates = metadata_of(headers, ServerType::Account, |_| false, timestamp);
        if updates.is_empty() {
            return Ok(());
        }
        self.run(broker.db.update_metadata(&updates, Some(metadata_limits(&self.server.ctx.swift_conf))))
    }

    fn add_headers(
        &self,
        headers: &mut Headers,
        broker: &mut AccountBroker,
        info: &AccountInfo,
    ) -> Answer<()> {
        headers.insert(names::X_ACCOUNT_CONTAINER_COUNT, info.container_count);
        headers.insert(names::X_ACCOUNT_OBJECT_COUNT, info.object_count);
        headers.insert(names::X_ACCOUNT_BYTES_USED, info.bytes_used);
        headers.insert(names::X_TIMESTAMP, normal(&info.created_at));
        headers.insert(names::X_PUT_TIMESTAMP, normal(&info.put_timestamp));
        for (index, stats) in self.run(broker.policy_stats())? {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let Some(policy) = self.server.ctx.swift_conf.policies.get(PolicyIndex(index)) else { continue };
            let name = |what: &str| format!("X-Account-Storage-Policy-{}-{what}", policy.name);
            if let Some(count) = stats.container_count {
                headers.insert(name("Container-Count"), count);
            }
            headers.insert(name("Object-Count"), stats.object_count);
            headers.insert(name("Bytes-Used"), stats.bytes_used);
        }
        for (name, item) in self.run(broker.db.metadata())?.iter() {
            if !item.value.is_empty() {
                headers.insert(name, item.value.as_str());
            }
        }
        Ok(())
    }

    // --- around the broker ---

    fn broker(&self, options: Options) -> Answer<AccountBroker> {
        let device = self.server.devices.check_drive(&self.target.drive)?;
        Ok(self.broker_on(&device, options))
    }

    fn broker_on(&self, device: &std::path::Path, options: Options) -> AccountBroker {
        let hash = self.server.ctx.swift_conf.hash.hash_path(&self.target.account, None, None);
        let db_file = db_path(device, DATADIR, &self.target.partition, &hash);
        AccountBroker::new(&self.server.databases.shared, db_file, options)
    }

    fn run<T>(&self, result: Result<T, BrokerError>) -> Answer<T> {
        result.map_err(|error| broker_failure(&self.server.ctx, self.req, &self.target.drive, &error))
    }
}
