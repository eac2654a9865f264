//! `tempauth`: the auth system that comes with Swift. Its users stand in the configuration
//! (`user_ACCOUNT_USER = key group .. [url]`, or `user64_` with both names in base64); a token is got by
//! `GET /auth/v1.0` and lives in the shared cache, under Swift's keys and in Swift's form, so that Martlet and
//! Python proxies accept each other's tokens:
//!
//! ```text
//! AUTH_/user/test:tester   -> "AUTH_tk0123..."
//! AUTH_/token/AUTH_tk0123  -> [expires, "test,test:tester,AUTH_test"]
//! ```
//!
//! What a caller may do is decided by `authorize`, which the proxy app asks once it knows the container's ACL:
//! reseller admins and readers, the account's admins, container ACLs, account ACLs.
//!
//! Tokens that are not in the cache (`fernet_key`) are refused when the configuration is read; the parts for
//! s3api are missing until that filter is there.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::clock::Clock;
use common::config::{ConfigError, Section};
use common::headers::X_AUTH_TOKEN;
use common::quote;
use serde_json::{Value, json};
use service::Context;
use service::http::{App, BoxFuture, Method, Request, Response, SharedApp};
use service::logs::{Level, Logger};
use service::memcached::Cache;
use service::statsd::Statsd;

use super::access_log::AccessLog;
use super::acl::{self, AccountAcl, AclV1};
use crate::environ::{
    Authorize, AuthorizeOverride, Authorizer, CleanAcl, RemoteUser, ResellerRequest, SwiftCache, SwiftOwner,
    SyncKey,
};
use crate::info::get_account_info;
use crate::swift_info::SwiftInfo;

const DEFAULT_TOKEN_LIFE: u64 = 86_400;
const ACCOUNT_ACL_HEADER: &str = "X-Account-Access-Control";
const ACCOUNT_ACL_SYSMETA: &str = "X-Account-Sysmeta-Core-Access-Control";

pub struct TempAuth {
    app: SharedApp,
    core: Arc<Core>,
    authorizer: Authorizer,
    denier: Authorizer,
}

/// What the filter and its callbacks share.
struct Core {
    app: SharedApp,
    logger: Logger,
    statsd: Statsd,
    clock: Clock,
    reseller_prefixes: Vec<String>,
    require_group: HashMap<String, String>,
    auth_prefix: String,
    token_life: u64,
    allow_overrides: bool,
    storage_url_scheme: String,
    users: HashMap<String, User>,
}

#[derive(Debug, PartialEq, Eq)]
struct User {
    key: String,
    url: String,
    groups: Vec<String>,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    SwiftInfo::of(ctx).register("tempauth", json!({"account_acls": true}));
    let core = Arc::new(Core::from_section(section, ctx, app.clone())?);
    Ok(Arc::new(TempAuth {
        app,
        authorizer: Authorizer(core.clone()),
        denier: Authorizer(Arc::new(Denier(core.clone()))),
        core,
    }))
}

impl Authorize for Core {
    fn authorize<'a>(
        &'a self,
        req: &'a mut Request,
        acl: Option<&'a str>,
    ) -> BoxFuture<'a, Option<Response>> {
        Box::pin(self.denial(req, acl))
    }
}

/// Lets nothing pass.
struct Denier(Arc<Core>);

impl Authorize for Denier {
    fn authorize<'a>(
        &'a self,
        req: &'a mut Request,
        _acl: Option<&'a str>,
    ) -> BoxFuture<'a, Option<Response>> {
        let denied = self.0.denied_response(req);
        Box::pin(async move { Some(denied) })
    }
}

impl Core {
    fn from_section(section: &Section, ctx: &Context, app: SharedApp) -> Result<Self, ConfigError> {
        let (reseller_prefixes, require_group) = read_reseller_options(section);
        for (option, _) in section.iter() {
            if option.starts_with("fernet_key") || option == "active_fernet_key_id" {
                return Err(section.error(option, "Fernet tokens are not supported"));
            }
        }
        let tail = match reseller_prefixes[0].as_str() {
            "" => "tempauth.NONE".to_owned(),
            prefix => format!("tempauth.{prefix}"),
        };
        Ok(Self {
            app,
            logger: ctx.logger.clone(),
            statsd: ctx.statsd.with_prefix(&tail),
            clock: ctx.clock.clone(),
            users: read_users(section, &reseller_prefixes[0])?,
            reseller_prefixes,
            require_group,
            auth_prefix: auth_prefix(section, &ctx.logger),
            token_life: section.int("token_life", DEFAULT_TOKEN_LIFE)?,
            allow_overrides: section.bool("allow_overrides", true)?,
            storage_url_scheme: section.str("storage_url_scheme", "default"),
        })
    }

    fn reseller_prefix(&self) -> &str {
        &self.reseller_prefixes[0]
    }
}

/// `reseller_prefix`, and `require_group` by prefix: `PREFIX_require_group` before the plain one.
fn read_reseller_options(section: &Section) -> (Vec<String>, HashMap<String, String>) {
    let mut prefixes: Vec<String> = Vec::new();
    for prefix in section.list("reseller_prefix", "AUTH") {
        let prefix = match prefix.as_str() {
            "''" => String::new(),
            prefix if prefix.ends_with('_') => prefix.to_owned(),
            prefix => format!("{prefix}_"),
        };
        if !prefixes.contains(&prefix) {
            prefixes.push(prefix);
        }
    }
    if prefixes.is_empty() {
        prefixes.push(String::new());
    }
    let plain = section.str("require_group", "");
    let required = |prefix: &String| {
        let name = if prefix.is_empty() { "''" } else { prefix };
        let own = section.str(&format!("{name}require_group"), "");
        let group = if own.is_empty() { &plain } else { &own };
        (prefix.clone(), group.trim().to_owned())
    };
    let required = prefixes.iter().map(required).collect();
    (prefixes, required)
}

fn auth_prefix(section: &Section, logger: &Logger) -> String {
    let configured = section.str("auth_prefix", "/auth/");
    match configured.trim_matches('/') {
        "" => {
            logger.warning(format_args!(
                "Rewriting invalid auth prefix \"{configured}\" to \"/auth/\" \
                 (Non-empty auth prefix path is required)"
            ));
            "/auth/".to_owned()
        }
        _ => {
            let start = if configured.starts_with('/') { "" } else { "/" };
            let end = if configured.ends_with('/') { "" } else { "/" };
            format!("{start}{configured}{end}")
        }
    }
}

fn read_users(section: &Section, reseller_prefix: &str) -> Result<HashMap<String, User>, ConfigError> {
    let mut users = HashMap::new();
    let options: Vec<&str> = section.iter().map(|(option, _)| option).collect();
    for option in options {
        let is_user64 = option.starts_with("user64_");
        let Some(names) = option.strip_prefix("user64_").or_else(|| option.strip_prefix("user_")) else {
            continue;
        };
        let invalid = || section.error(option, "expected user_ACCOUNT_USER or user64_ACCOUNT64_USER64");
        let (account, user) =
            names.split_once('_').filter(|(_, user)| !user.contains('_')).ok_or_else(invalid)?;
        let (account, user) = match is_user64 {
            true => {
                let decoded = unpadded_base64(account).zip(unpadded_base64(user));
                decoded.ok_or_else(|| section.error(option, "expected account and user in base64"))?
            }
            false => (account.to_owned(), user.to_owned()),
        };
        let value = section.str(option, "");
        let mut words: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            return Err(section.error(option, "expected a key"));
        }
        let key = words.remove(0);
        let url = match words.pop_if(|last| last.contains("://") || last.contains("$HOST")) {
            Some(url) => url,
            None => format!("$HOST/v1/{reseller_prefix}{}", quote::quote_path(&account)),
        };
        let groups = words;
        users.insert(format!("{account}:{user}"), User { key, url, groups });
    }
    Ok(users)
}

/// Option names cannot hold `=`.
fn unpadded_base64(text: &str) -> Option<String> {
    let padded = format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
    String::from_utf8(BASE64.decode(padded).ok()?).ok()
}

impl App for TempAuth {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        let core = &self.core;
        if core.allow_overrides && req.env.get::<AuthorizeOverride>().is_some() {
            return self.app.call(req);
        }
        if req.path.starts_with(&core.auth_prefix) {
            return Box::pin(async move { core.handle_auth(req).await });
        }
        let token = req.headers.get_str(X_AUTH_TOKEN).or_else(|| req.headers.get_str("X-Storage-Token"));
        match token {
            Some(token) if !token.is_empty() && token.starts_with(core.reseller_prefix()) => {
                let token = token.to_owned();
                Box::pin(async move { self.call_with_token(req, &token).await })
            }
            _ => self.call_anonymously(req),
        }
    }
}

impl TempAuth {
    /// An empty reseller prefix takes every token for its own.
    async fn call_with_token(&self, mut req: Request, token: &str) -> Response {
        let core = &self.core;
        let Some(cache) = req.env.get::<SwiftCache>().map(|cache| cache.0.clone()) else {
            return no_cache(&core.logger, &req);
        };
        let mut groups = core.groups_of_token(&cache, token).await;
        if let Some(service_token) = req.headers.get_str("X-Service-Token").map(str::to_owned)
            && let Some(service_groups) = core.groups_of_token(&cache, &service_token).await
            && let Some(groups) = &mut groups
        {
            groups.push(',');
            groups.push_str(&service_groups);
        }
        let Some(groups) = groups else {
            return self.call_unauthorized(req).await;
        };
        let user = groups.split(',').nth(1).unwrap_or(&groups);
        if core.logger.enabled(Level::Debug) {
            let trans_id = &req.env.trans_id;
            core.logger.debug(format_args!("User: {user} uses token {token} (trans_id {trans_id})"));
        }
        AccessLog::set_user(&req.env, user);
        if groups.contains(".reseller_admin") {
            req.env.insert(ResellerRequest);
        }
        req.env.insert(RemoteUser(groups.into()));
        req.env.insert(self.authorizer.clone());
        req.env.insert(CleanAcl(acl::clean_acl));
        self.app.call(req).await
    }

    /// The token is not valid.
    async fn call_unauthorized(&self, mut req: Request) -> Response {
        if !self.core.reseller_prefix().is_empty() {
            // Nobody else answers for a token with this prefix.
            self.core.statsd.increment("unauthorized");
            let realm = match req.split_path(2, 3, true).map(|parts| parts.into_iter().nth(1)) {
                Ok(Some(Some(realm))) => realm,
                _ => "unknown".to_owned(),
            };
            return unauthorized_in(&realm);
        }
        if req.env.get::<Authorizer>().is_none() {
            req.env.insert(self.denier.clone());
        }
        self.app.call(req).await
    }

    fn call_anonymously(&self, mut req: Request) -> BoxFuture<'_, Response> {
        if self.core.is_definitive_auth(&req) {
            req.env.insert(self.authorizer.clone());
            req.env.insert(CleanAcl(acl::clean_acl));
        } else if req.env.get::<Authorizer>().is_none() {
            // Perhaps another auth filter answers for it; if none does, this is the last word.
            if self.core.reseller_prefix().is_empty() {
                req.env.insert(self.authorizer.clone());
                req.env.insert(CleanAcl(acl::clean_acl));
            } else {
                req.env.insert(self.denier.clone());
            }
        }
        self.app.call(req)
    }
}

fn no_cache(logger: &Logger, req: &Request) -> Response {
    logger.with_txn(&req.env.trans_id).error("Memcache required: tempauth needs the cache filter left of it");
    Response::text(500, "An error occurred")
}

fn unauthorized_in(realm: &str) -> Response {
    Response::error(401).with_header("Www-Authenticate", format!("Swift realm=\"{realm}\""))
}

impl Core {
    /// The groups that a token stands for, first the one that names the user.
    async fn groups_of_token(&self, cache: &Cache, token: &str) -> Option<String> {
        let prefix = self.reseller_prefix();
        if !token.strip_prefix(prefix)?.starts_with("tk") {
            return None;
        }
        let (expires, groups) = token_data(&*cache.get(&format!("{prefix}/token/{token}")).await?)?;
        (expires >= self.clock.unix_secs() && !groups.is_empty()).then_some(groups)
    }

    /// Whether the account of the path is ours for certain.
    fn is_definitive_auth(&self, req: &Request) -> bool {
        let Ok(parts) = req.split_path(1, 3, true) else {
            return false;
        };
        let account = parts.get(1).and_then(Option::as_deref).unwrap_or("");
        self.account_prefix(account).is_some_and(|prefix| !prefix.is_empty())
    }

    /// The reseller prefix of an account; the empty one fits every account that no other fits.
    fn account_prefix(&self, account: &str) -> Option<&str> {
        let named = self.reseller_prefixes.iter().filter(|prefix| !prefix.is_empty());
        let mut fitting = named.filter(|prefix| account.starts_with(prefix.as_str()));
        fitting
            .next()
            .map(String::as_str)
            .or_else(|| self.reseller_prefixes.iter().any(String::is_empty).then_some(""))
    }

    /// Whether the account is one that Swift made for itself.
    fn is_dot_account(&self, account: &str) -> bool {
        self.account_prefix(account).is_some_and(|prefix| account[prefix.len()..].starts_with('.'))
    }

    /// `account,account:user,group,..`; `.admin` becomes the names of the user's accounts.
    fn user_groups(&self, account: &str, account_user: &str, account_id: &str) -> String {
        let mut groups = vec![account.to_owned(), account_user.to_owned()];
        groups.extend(self.users.get(account_user).into_iter().flat_map(|user| user.groups.iter().cloned()));
        if let Some(admin) = groups.iter().position(|group| group == ".admin") {
            groups.remove(admin);
            let named = self.reseller_prefixes.iter().filter(|prefix| !prefix.is_empty());
            groups.extend(named.map(|prefix| format!("{prefix}{account}")));
            if !groups.iter().any(|group| group == account_id) {
                groups.push(account_id.to_owned());
            }
        }
        groups.join(",")
    }

    /// `None`: the request may go on.
    async fn denial(&self, req: &mut Request, container_acl: Option<&str>) -> Option<Response> {
        let Ok(parts) = req.split_path(1, 4, true) else {
            self.statsd.increment("errors");
            return Some(Response::error(404));
        };
        let mut parts = parts.into_iter().skip(1);
        let account = parts.next().flatten().unwrap_or_default();
        let has_container = parts.next().flatten().is_some_and(|container| !container.is_empty());
        let has_object = parts.next().flatten().is_some_and(|object| !object.is_empty());
        let Some(prefix) = self.account_prefix(&account).map(str::to_owned) else {
            return Some(self.denied_response(req));
        };
        if let Err(refused) = self.take_account_acl(req) {
            return Some(refused);
        }
        let groups = req.env.get::<RemoteUser>().map_or_else(|| Arc::from(""), |user| user.0.clone());
        let groups: Vec<&str> = groups.split(',').collect();
        if self.is_reseller_authorized(req, &account, &groups)
            || self.is_account_admin(req, &account, &prefix, has_container, &groups)
            || is_container_sync(req)
            || req.method == Method::Options
            || is_in_container_acl(req, container_acl, has_object, &groups)
            || self.is_in_account_acl(req, has_container, &groups).await
        {
            return None;
        }
        Some(self.denied_response(req))
    }

    /// Checks an account ACL that the client sends, and passes it on as system metadata.
    fn take_account_acl(&self, req: &mut Request) -> Result<(), Response> {
        let Some(header) = req.headers.get(ACCOUNT_ACL_HEADER).map(<[u8]>::to_vec) else {
            return Ok(());
        };
        let data = String::from_utf8_lossy(&header);
        if let Some(error) = acl::account_acl_error(&data) {
            let latin1: String = header.iter().copied().map(char::from).collect();
            let body = format!("X-Account-Access-Control invalid: {error}\n\nInput: {latin1}\n");
            let refused = Response::text(400, body);
            return Err(refused.with_header("Content-Type", "text/plain; charset=UTF-8"));
        }
        req.headers.remove(ACCOUNT_ACL_HEADER);
        req.headers.insert(ACCOUNT_ACL_SYSMETA, header);
        Ok(())
    }

    fn is_reseller_authorized(&self, req: &mut Request, account: &str, groups: &[&str]) -> bool {
        if self.reseller_prefixes.iter().any(|prefix| prefix == account) || self.is_dot_account(account) {
            return false;
        }
        if groups.contains(&".reseller_admin") {
            req.env.insert(SwiftOwner(true));
            return true;
        }
        groups.contains(&".reseller_reader") && matches!(req.method, Method::Get | Method::Head)
    }

    /// An admin of an account does all but create and delete it.
    fn is_account_admin(
        &self,
        req: &mut Request,
        account: &str,
        prefix: &str,
        has_container: bool,
        groups: &[&str],
    ) -> bool {
        if !groups.contains(&account)
            || (!has_container && matches!(req.method, Method::Delete | Method::Put))
        {
            return false;
        }
        let required = self.require_group.get(prefix).map_or("", String::as_str);
        if !required.is_empty() && !groups.contains(&required) {
            return false;
        }
        req.env.insert(SwiftOwner(true));
        true
    }

    async fn is_in_account_acl(&self, req: &mut Request, has_container: bool, groups: &[&str]) -> bool {
        let info = get_account_info(req, &self.app, "TA").await;
        let acl = AccountAcl::from_sysmeta(info.sysmeta.get("core-access-control").map(String::as_str));
        let Some(acl) = acl else {
            return false;
        };
        let granted = |members: &[String]| members.iter().any(|member| groups.contains(&member.as_str()));
        let reads = matches!(req.method, Method::Get | Method::Head);
        if granted(&acl.admin) {
            req.env.insert(SwiftOwner(true));
            return true;
        }
        (granted(&acl.read_write) && (has_container || reads)) || (granted(&acl.read_only) && reads)
    }

    /// 403 for a known user, 401 for an unknown one.
    fn denied_response(&self, req: &Request) -> Response {
        match req.env.get::<RemoteUser>().is_some_and(|user| !user.0.is_empty()) {
            true => {
                self.statsd.increment("forbidden");
                Response::error(403)
            }
            false => {
                self.statsd.increment("unauthorized");
                Response::unauthorized(req)
            }
        }
    }
}

fn is_container_sync(req: &Request) -> bool {
    let Some(SyncKey(key)) = req.env.get::<SyncKey>() else {
        return false;
    };
    !key.is_empty()
        && req.headers.get("X-Container-Sync-Key") == Some(key.as_bytes())
        && req.headers.contains("X-Timestamp")
}

fn is_in_container_acl(
    req: &Request,
    container_acl: Option<&str>,
    has_object: bool,
    groups: &[&str],
) -> bool {
    let acl = AclV1::parse(container_acl);
    if acl.referrer_allowed(req.headers.get_str("Referer")) && (has_object || acl.has_group(".rlistings")) {
        return true;
    }
    groups.iter().any(|group| acl.has_group(group))
}

/// `[expires, groups]` as cached.
fn token_data(value: &Value) -> Option<(f64, String)> {
    let pair = value.as_array()?;
    Some((pair.first()?.as_f64()?, pair.get(1)?.as_str()?.to_owned()))
}

/// Who asks for a token, and how.
struct Credentials {
    account: String,
    user: String,
    key: String,
}

impl Core {
    /// Requests below `auth_prefix`.
    async fn handle_auth(&self, mut req: Request) -> Response {
        if req.method != Method::Get {
            return Response::error(405);
        }
        // The first element of the path is the auth prefix's, however long that is.
        let path =
            req.path.get(1..).and_then(|path| path.find('/')).map_or("", |slash| &req.path[slash + 1..]);
        let Ok(parts) = service::http::message::split_path(path, 1, 4, true) else {
            self.statsd.increment("errors");
            return Response::error(404);
        };
        if !matches!(parts[0].as_deref(), Some("v1" | "v1.0" | "auth")) {
            self.statsd.increment("errors");
            return Response::error(400);
        }
        let Ok(parts) = service::http::message::split_path(path, 1, 3, true) else {
            self.statsd.increment("errors");
            return Response::error(404);
        };
        match credentials(&req, &parts) {
            Ok(credentials) => self.get_token(&mut req, credentials).await,
            Err(refused) => {
                if refused.status.0 == 401 {
                    self.statsd.increment("token_denied");
                }
                refused
            }
        }
    }

    async fn get_token(&self, req: &mut Request, credentials: Credentials) -> Response {
        let Credentials { account, user, key } = credentials;
        let denied = |realm: &str| {
            self.statsd.increment("token_denied");
            unauthorized_in(if realm.is_empty() { "unknown" } else { realm })
        };
        if account.is_empty() || user.is_empty() || key.is_empty() {
            return denied(&account);
        }
        let account_user = format!("{account}:{user}");
        AccessLog::note_user(&req.env, &account_user);
        let Some(known) = self.users.get(&account_user).filter(|known| same_secret(&known.key, &key)) else {
            return denied(&account);
        };
        let Some(cache) = req.env.get::<SwiftCache>().map(|cache| cache.0.clone()) else {
            return no_cache(&self.logger, req);
        };
        let account_id = known.url.rsplit('/').next().unwrap_or("");
        let groups = self.user_groups(&account, &account_user, account_id);
        let (token, expires) = match self.existing_token(&cache, &account_user, &groups).await {
            Some(existing) => existing,
            None => match self.new_token(&cache, &account_user, &groups).await {
                Some(new) => new,
                None => return Response::error(503),
            },
        };
        let mut url = known.url.replace("$HOST", &req.host_url());
        if self.storage_url_scheme != "default" {
            let rest = url.split_once(':').map_or("", |(_, rest)| rest);
            url = format!("{}:{rest}", self.storage_url_scheme);
        }
        let lives = (expires - self.clock.unix_secs()) as i64;
        Response::new(200)
            .with_header("X-Auth-Token", token.as_str())
            .with_header("X-Storage-Token", token.as_str())
            .with_header("X-Auth-Token-Expires", lives.to_string())
            .with_header("X-Storage-Url", url)
    }

    /// The user's token, if it still lives and stands for the same groups.
    async fn existing_token(&self, cache: &Cache, account_user: &str, groups: &str) -> Option<(String, f64)> {
        let prefix = self.reseller_prefix();
        let token = cache.get(&format!("{prefix}/user/{account_user}")).await?;
        let token = token.as_str()?;
        let (expires, old_groups) = token_data(&*cache.get(&format!("{prefix}/token/{token}")).await?)?;
        let set =
            |groups: &str| groups.split(',').map(str::to_owned).collect::<std::collections::HashSet<_>>();
        let valid = expires > self.clock.unix_secs() && set(&old_groups) == set(groups);
        valid.then(|| (token.to_owned(), expires))
    }

    /// A fresh token, if the cache took it.
    async fn new_token(&self, cache: &Cache, account_user: &str, groups: &str) -> Option<(String, f64)> {
        let prefix = self.reseller_prefix();
        let token = format!("{prefix}tk{}", random_uuid_hex()?);
        let expires = self.clock.unix_secs() + self.token_life as f64;
        let data = json!([expires, groups]);
        cache.try_set(&format!("{prefix}/token/{token}"), &data, self.token_life).await.ok()?;
        let user_key = format!("{prefix}/user/{account_user}");
        cache.try_set(&user_key, &Value::String(token.clone()), self.token_life).await.ok()?;
        Some((token, expires))
    }
}

/// The three ways in which clients have asked for tokens; an error is the answer to a malformed request.
fn credentials(req: &Request, path: &[Option<String>]) -> Result<Credentials, Response> {
    let header = |name: &str| req.headers.get_str(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let part = |index: usize| path.get(index).and_then(Option::as_deref);
    if part(0) == Some("v1") && part(2) == Some("auth") {
        let account = part(1).unwrap_or("").to_owned();
        let user = match header("X-Storage-User") {
            Some(user) => user,
            None => match header("X-Auth-User").as_deref().and_then(|user| user.split_once(':')) {
                Some((user_account, user)) if user_account == account => user.to_owned(),
                _ => return Err(unauthorized_in(&account)),
            },
        };
        let key = header("X-Storage-Pass").or_else(|| header("X-Auth-Key")).unwrap_or_default();
        return Ok(Credentials { account, user, key });
    }
    if !matches!(part(0), Some("auth" | "v1.0")) {
        return Err(Response::error(400));
    }
    let user = header("X-Auth-User").or_else(|| header("X-Storage-User")).unwrap_or_default();
    let Some((account, user)) = user.split_once(':') else {
        return Err(unauthorized_in("unknown"));
    };
    Ok(Credentials {
        account: account.to_owned(),
        user: user.to_owned(),
        key: header("X-Auth-Key").or_else(|| header("X-Storage-Pass")).unwrap_or_default(),
    })
}

/// Compares without telling by its time how much was right.
fn same_secret(known: &str, given: &str) -> bool {
    let difference = known.bytes().zip(given.bytes()).fold(0, |difference, (a, b)| difference | (a ^ b));
    known.len() == given.len() && difference == 0
}

/// The hex digits of a random (version 4) UUID from the system's secure source.
fn random_uuid_hex() -> Option<String> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
    if filled != bytes.len() {
        return None;
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Some(common::digest::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{FakeSwift, request, send};
    use common::timestamp::Timestamp;
    use service::http::{Headers, app_fn};
    use std::time::Duration;

    const USERS: [(&str, &str); 5] = [
        ("user_admin_admin", "admin .admin .reseller_admin"),
        ("user_test_tester", "testing .admin"),
        ("user_test_tester3", "testing3 group3"),
        ("user_read_er", "reading .reseller_reader"),
        ("user_other_url", "key .admin https://swift.example.com/v1/AUTH_elsewhere"),
    ];

    /// A filter over an app that asks for authorization as the proxy app does, with the ACL in X-Test-Acl.
    fn filter(options: &[(&str, &str)], clock: &Clock) -> SharedApp {
        let app = app_fn(|mut req: Request| async move {
            let acl = req.headers.get_str("X-Test-Acl").map(str::to_owned);
            if let Some(denied) = Authorizer::denial(&mut req, acl.as_deref()).await {
                return denied;
            }
            let owner = SwiftOwner::of(&req.env);
            Response::text(200, format!("owner={owner}"))
        });
        with_cache(build(options, clock, app).unwrap(), Cache::local(clock))
    }

    fn build(options: &[(&str, &str)], clock: &Clock, app: SharedApp) -> Result<SharedApp, ConfigError> {
        let pairs = USERS.iter().chain(options).copied();
        let section = Section::from_pairs("filter:tempauth", pairs);
        let ctx = Context::builder("proxy-server").clock(clock.clone()).build();
        factory(&section, &ctx, app)
    }

    fn with_cache(app: SharedApp, cache: Cache) -> SharedApp {
        app_fn(move |mut req: Request| {
            req.env.insert(SwiftCache(cache.clone()));
            let app = app.clone();
            async move { app.call(req).await }
        })
    }

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_secs_f64(1_400_000_000.0))
    }

    async fn token(app: &SharedApp, user: &str, key: &str) -> Headers {
        let headers = [("X-Auth-User", user), ("X-Auth-Key", key), ("Host", "h:8080")];
        send(app, request(Method::Get, "/auth/v1.0", &headers)).await.1
    }

    async fn status(app: &SharedApp, user: &str, key: &str, method: Method, path: &str, acl: &str) -> u16 {
        let mut req = request(method, path, &[("X-Test-Acl", acl)]);
        if !user.is_empty() {
            req.headers.insert("X-Auth-Token", token(app, user, key).await.get("X-Auth-Token").unwrap());
        }
        send(app, req).await.0
    }

    #[tokio::test]
    async fn token_is_given_for_user_and_key_and_kept_while_it_lives() {
        let clock = clock();
        let app = filter(&[], &clock);
        let first = token(&app, "test:tester", "testing").await;
        let text = first.get_str("X-Auth-Token").unwrap();
        assert!(text.len() == 39 && text.starts_with("AUTH_tk"), "{text}");
        assert_eq!(first.get_str("X-Storage-Token"), Some(text));
        assert_eq!(first.get_str("X-Storage-Url"), Some("http://h:8080/v1/AUTH_test"));
        assert_eq!(first.get_str("X-Auth-Token-Expires"), Some("86400"));
        clock.advance(Duration::from_secs(400));
        let second = token(&app, "test:tester", "testing").await;
        assert_eq!(second.get_str("X-Auth-Token"), Some(text));
        assert_eq!(second.get_str("X-Auth-Token-Expires"), Some("86000"));
        clock.advance(Duration::from_secs(86_400));
        assert_ne!(token(&app, "test:tester", "testing").await.get_str("X-Auth-Token"), Some(text));
        let elsewhere = token(&app, "other:url", "key").await;
        assert_eq!(elsewhere.get_str("X-Storage-Url"), Some("https://swift.example.com/v1/AUTH_elsewhere"));
    }

    #[tokio::test]
    async fn token_stands_in_the_cache_as_python_puts_it() {
        let clock = clock();
        let cache = Cache::local(&clock);
        let app = build(&[], &clock, app_fn(|_| async { Response::new(200) })).unwrap();
        let app = with_cache(app, cache.clone());
        let token = token(&app, "test:tester", "testing").await;
        let token = token.get_str("X-Auth-Token").unwrap();
        assert_eq!(cache.get("AUTH_/user/test:tester").await.as_deref(), Some(&json!(token)));
        let stored = cache.get(&format!("AUTH_/token/{token}")).await;
        assert_eq!(stored.as_deref(), Some(&json!([1_400_086_400.0, "test,test:tester,AUTH_test"])));
    }

    #[tokio::test]
    async fn wrong_credentials_get_401_with_the_realm() {
        let app = filter(&[], &clock());
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16, &'a str);
        let cases: [Case; 7] = [
            ("/auth/v1.0", &[], 401, "Swift realm=\"unknown\""),
            ("/auth/v1.0", &[("X-Auth-User", "test:x"), ("X-Auth-Key", "y")], 401, "Swift realm=\"test\""),
            (
                "/auth/v1.0",
                &[("X-Auth-User", "test:tester"), ("X-Auth-Key", "y")],
                401,
                "Swift realm=\"test\"",
            ),
            ("/auth/v1/acc/auth", &[("X-Auth-User", "test:tester")], 401, "Swift realm=\"acc\""),
            ("/auth/v1/test/auth", &[("X-Storage-User", "tester"), ("X-Storage-Pass", "testing")], 200, ""),
            ("/auth/other", &[], 400, ""),
            ("/auth/", &[], 404, ""),
        ];
        for (path, headers, status, realm) in cases {
            let answer = send(&app, request(Method::Get, path, headers)).await;
            assert_eq!(answer.0, status, "{path} {headers:?}");
            assert_eq!(answer.1.get_str("Www-Authenticate").unwrap_or(""), realm, "{path}");
        }
        assert_eq!(send(&app, request(Method::Post, "/auth/v1.0", &[])).await.0, 405);
    }

    #[tokio::test]
    async fn unknown_tokens_and_anonymous_requests_are_told_apart() {
        let app = filter(&[], &clock());
        let bogus = [("X-Auth-Token", "AUTH_tkbogus")];
        let (status, headers, _) = send(&app, request(Method::Get, "/v1/AUTH_test/c", &bogus)).await;
        assert_eq!((status, headers.get_str("Www-Authenticate")), (401, Some("Swift realm=\"AUTH_test\"")));
        assert_eq!(send(&app, request(Method::Get, "/v1/AUTH_test", &[])).await.0, 401);
        assert_eq!(send(&app, request(Method::Get, "/v1/OTHER_test", &[])).await.0, 401);
        assert_eq!(send(&app, request(Method::Options, "/v1/AUTH_test/c", &[])).await.0, 200);
    }

    #[tokio::test]
    async fn who_may_do_what_follows_from_groups_and_acls() {
        let app = filter(&[], &clock());
        let cases = [
            ("test:tester", "testing", Method::Put, "/v1/AUTH_test/c", "", 200),
            ("test:tester", "testing", Method::Put, "/v1/AUTH_test", "", 403),
            ("test:tester", "testing", Method::Get, "/v1/AUTH_other", "", 403),
            ("admin:admin", "admin", Method::Delete, "/v1/AUTH_other", "", 200),
            ("admin:admin", "admin", Method::Get, "/v1/AUTH_.hidden", "", 403),
            ("admin:admin", "admin", Method::Get, "/v1/AUTH_", "", 403),
            ("read:er", "reading", Method::Get, "/v1/AUTH_other/c/o", "", 200),
            ("read:er", "reading", Method::Put, "/v1/AUTH_other/c/o", "", 403),
            ("test:tester3", "testing3", Method::Get, "/v1/AUTH_test/c/o", "", 403),
            ("test:tester3", "testing3", Method::Get, "/v1/AUTH_test/c/o", "test:tester3", 200),
            ("test:tester3", "testing3", Method::Get, "/v1/AUTH_test/c/o", "test", 200),
            ("test:tester3", "testing3", Method::Get, "/v1/AUTH_test/c/o", "group3", 200),
            ("", "", Method::Get, "/v1/AUTH_test/c/o", ".r:*", 200),
            ("", "", Method::Get, "/v1/AUTH_test/c", ".r:*", 401),
            ("", "", Method::Get, "/v1/AUTH_test/c", ".r:*,.rlistings", 200),
            ("", "", Method::Get, "/v1/AUTH_test/c/o", ".r:.example.com", 401),
        ];
        for (user, key, method, path, acl, expected) in cases {
            let got = status(&app, user, key, method.clone(), path, acl).await;
            assert_eq!(got, expected, "{user} {method} {path} {acl}");
        }
    }

    #[tokio::test]
    async fn group_may_be_required_of_a_prefix() {
        let options = [("reseller_prefix", "AUTH, SERVICE"), ("SERVICE_require_group", ".service")];
        let with_service = [options[0], options[1], ("user_test_svc", "svc .service")];
        let app = filter(&with_service, &clock());
        assert_eq!(status(&app, "test:tester", "testing", Method::Get, "/v1/AUTH_test/c", "").await, 200);
        assert_eq!(status(&app, "test:tester", "testing", Method::Get, "/v1/SERVICE_test/c", "").await, 403);
        let mut req = request(Method::Get, "/v1/SERVICE_test/c", &[]);
        req.headers
            .insert("X-Auth-Token", token(&app, "test:tester", "testing").await.get("X-Auth-Token").unwrap());
        req.headers
            .insert("X-Service-Token", token(&app, "test:svc", "svc").await.get("X-Auth-Token").unwrap());
        let (status, _, body) = send(&app, req).await;
        assert_eq!((status, body.as_str()), (200, "owner=true"));
    }

    #[tokio::test]
    async fn account_acl_is_checked_and_becomes_system_metadata() {
        let clock = clock();
        let seen = app_fn(|mut req: Request| async move {
            match Authorizer::denial(&mut req, None).await {
                Some(denied) => denied,
                None => {
                    Response::text(200, req.headers.get_str(ACCOUNT_ACL_SYSMETA).unwrap_or("").to_owned())
                }
            }
        });
        let app = with_cache(build(&[], &clock, seen).unwrap(), Cache::local(&clock));
        let token = token(&app, "test:tester", "testing").await;
        let token = token.get_str("X-Auth-Token").unwrap();
        let post = |acl| {
            request(Method::Post, "/v1/AUTH_test", &[("X-Auth-Token", token), (ACCOUNT_ACL_HEADER, acl)])
        };
        let (status, _, body) = send(&app, post("{\"admin\":[\"bob\"]}")).await;
        assert_eq!((status, body.as_str()), (200, "{\"admin\":[\"bob\"]}"));
        let (status, _, body) = send(&app, post("{\"x\":[]}")).await;
        assert_eq!(status, 400);
        assert_eq!(body, "X-Account-Access-Control invalid: Key \"x\" not recognized\n\nInput: {\"x\":[]}\n");
    }

    #[tokio::test]
    async fn vouched_for_requests_pass() {
        let app = filter(&[], &clock());
        let mut req = request(Method::Get, "/v1/AUTH_test/c", &[]);
        req.env.insert(AuthorizeOverride);
        assert_eq!(send(&app, req).await.0, 200);
        let app = filter(&[("allow_overrides", "false")], &clock());
        let mut req = request(Method::Get, "/v1/AUTH_test/c", &[]);
        req.env.insert(AuthorizeOverride);
        assert_eq!(send(&app, req).await.0, 401);
    }

    #[tokio::test]
    async fn a_containers_sync_key_and_a_timestamp_are_enough() {
        let app = filter(&[], &clock());
        let with = |stored: &str, headers: &[(&str, &str)]| {
            let mut req = request(Method::Put, "/v1/AUTH_test/c/o", headers);
            req.env.insert(SyncKey(stored.to_owned()));
            req
        };
        let (key, timestamp) = (("X-Container-Sync-Key", "k"), ("X-Timestamp", "1"));
        assert_eq!(send(&app, with("k", &[key, timestamp])).await.0, 200);
        for refused in [
            with("k", &[key]),
            with("other", &[key, timestamp]),
            with("", &[("X-Container-Sync-Key", ""), timestamp]),
            with("k", &[timestamp]),
        ] {
            assert_eq!(send(&app, refused).await.0, 401);
        }
    }

    #[test]
    fn users_are_read_from_options() {
        let pairs = [("user64_dMOpaXN0_dQ", "key g1 $HOST/v1/x"), ("user_a_b", "k")];
        let users = read_users(&Section::from_pairs("tempauth", pairs), "AUTH_").unwrap();
        assert_eq!(users["téist:u"].groups, ["g1"]);
        assert_eq!(users["a:b"].url, "$HOST/v1/AUTH_a");
        for bad in [("user_a", "k"), ("user_a_b_c", "k"), ("user_a_b", ""), ("user64_?_?", "k")] {
            assert!(read_users(&Section::from_pairs("tempauth", [bad]), "AUTH_").is_err(), "{bad:?}");
        }
        let swift = FakeSwift::default();
        assert!(build(&[("fernet_key_1", "x")], &clock(), swift.app()).is_err());
    }
}
