//! `container_sync`: lets in what the container-sync daemon of another cluster of a realm sends.
//!
//! A request with `X-Container-Sync-Auth: REALM NONCE SIGNATURE` is signed with the key of the realm (or its `key2`) and that of the
//! container; then no auth filter is asked, and `slo` and `symlink` take a
//! manifest and a static link as what they are, perhaps before what they stand for.
//! Its X-Timestamp, which `gatekeeper` has put aside, counts. A signature that is wrong is 401 whatever else the request has.
//!
//! X-Container-Sync-To is refused for a container with object versioning, and unless `allow_full_urls` if it is no
//! `//realm/cluster/account/container`. `/info` tells the realms and clusters, and which of them is this one (`current`).

use std::sync::Arc;

use common::config::{ConfigError, Section};
use common::container_sync_realms::{Realm, get_sig};
use common::headers::{X_CONTAINER_SYNC_TO, X_TIMESTAMP};
use serde_json::{Map, Value, json};
use service::Context;
use service::container_sync_realms::RealmsConf;
use service::http::{App, BoxFuture, Method, Request, Response, SharedApp};
use service::logs::Logger;

use super::is_api_version;
use crate::environ::{AuthorizeOverride, LogInfo, SloOverride, SymlinkOverride};
use crate::info::{ContainerInfo, get_container_info};
use crate::swift_info::SwiftInfo;

const INBOUND_X_TIMESTAMP: &str = "X-Backend-Inbound-X-Timestamp";

pub struct ContainerSync {
    app: SharedApp,
    logger: Logger,
    realms: RealmsConf,
    allow_full_urls: bool,
    /// Realm and cluster, in upper case.
    current: Option<(String, String)>,
    info: Arc<SwiftInfo>,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let logger = ctx.logger.clone();
    let current = section.str("current", "");
    let parsed = parse_current(&current);
    if parsed.is_none() && !current.is_empty() {
        logger.error(format_args!("Invalid current //REALM/CLUSTER ({current})"));
    }
    let filter = ContainerSync {
        app,
        realms: RealmsConf::new(&ctx.swift_conf.dir, ctx.clock.clone(), logger.clone()),
        allow_full_urls: section.bool("allow_full_urls", true)?,
        current: parsed,
        info: SwiftInfo::of(ctx),
        logger,
    };
    filter.register_info();
    Ok(Arc::new(filter))
}

/// `//realm/cluster` in upper case.
fn parse_current(current: &str) -> Option<(String, String)> {
    let (realm, cluster) = current.trim_matches('/').split_once('/')?;
    (!cluster.contains('/')).then(|| (realm.to_uppercase(), cluster.to_uppercase()))
}

impl App for ContainerSync {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        if req.path == "/info" {
            // The realms may have changed.
            self.register_info();
            return self.app.call(req);
        }
        let Ok(parts) = req.split_path(3, 4, true) else { return self.app.call(req) };
        if !parts[0].as_deref().is_some_and(is_api_version) {
            return self.app.call(req);
        }
        let has_object = parts[3].as_ref().is_some_and(|object| !object.is_empty());
        Box::pin(async move {
            match Box::pin(self.check(req, has_object)).await {
                Ok(req) => self.app.call(req).await,
                Err(refused) => refused,
            }
        })
    }
}

impl ContainerSync {
    /// The request as it may go on, or its refusal.
    async fn check(&self, mut req: Request, has_object: bool) -> Result<Request, Response> {
        let info = get_container_info(&mut req, &self.app, "CS").await;
        if let Some(sync_to) = req.headers.get(X_CONTAINER_SYNC_TO).filter(|sync_to| !sync_to.is_empty()) {
            let sets_metadata = !has_object && matches!(req.method, Method::Put | Method::Post);
            if sets_metadata && info.sysmeta.get("versions-container").is_some_and(|name| !name.is_empty()) {
                return Err(Response::html(
                    400,
                    "Cannot configure container sync on a container with object versioning configured.",
                ));
            }
            if !self.allow_full_urls && !sync_to.starts_with(b"//") {
                return Err(Response::html(
                    400,
                    "Full URLs are not allowed for X-Container-Sync-To values. Only realm values of the format \
                     //realm/cluster/account/container are allowed.\n",
                ));
            }
        }
        let auth = req.headers.get_str("X-Container-Sync-Auth").unwrap_or_default().to_owned();
        if auth.is_empty() {
            return Ok(req);
        }
        let verdict = self.verify(&mut req, &auth, &info);
        LogInfo::of(&mut req.env).append(verdict);
        if verdict != VALID {
            return Err(refusal(&req));
        }
        req.env.insert(AuthorizeOverride);
        req.env.insert(SloOverride);
        req.env.insert(SymlinkOverride);
        Ok(req)
    }

    /// What the access log says of a request's signature.
    fn verify(&self, req: &mut Request, auth: &str, info: &ContainerInfo) -> &'static str {
        let [realm, nonce, sig] = auth.split_whitespace().collect::<Vec<_>>()[..] else {
            return "cs:not-3-args";
        };
        let realms = self.realms.current();
        let Some((realm, realm_key)) = realms.get(realm).and_then(|realm| Some((realm, realm.key()?))) else {
            return "cs:no-local-realm-key";
        };
        let Some(user_key) = info.sync_key.as_deref().filter(|key| !key.is_empty()) else {
            return "cs:no-local-user-key";
        };
        if let Some(timestamp) = req.headers.remove(INBOUND_X_TIMESTAMP) {
            req.headers.insert(X_TIMESTAMP, timestamp);
        }
        let timestamp = req.headers.get_str(X_TIMESTAMP).unwrap_or("0");
        let path = req.quoted_path();
        let signs = |realm_key| {
            let expected = get_sig(req.method.as_str(), &path, timestamp, nonce, realm_key, user_key);
            is_same_secret(sig.as_bytes(), expected.as_bytes())
        };
        let old_key = realm.key2.as_deref().filter(|key| !key.is_empty());
        if signs(realm_key) || old_key.is_some_and(signs) { VALID } else { "cs:invalid-sig" }
    }

    fn register_info(&self) {
        let (realms, is_known) = info_of(self.realms.current().iter(), self.current.as_ref());
        if let Some((realm, cluster)) = self.current.as_ref().filter(|_| !is_known) {
            self.logger.error(format_args!("Unknown current //REALM/CLUSTER (//{realm}/{cluster})"));
        }
        self.info.register("container_sync", json!({"realms": realms}));
    }
}

const VALID: &str = "cs:valid";

/// The realms that have clusters; and whether the current one is among them.
fn info_of<'a>(
    realms: impl Iterator<Item = &'a Realm>,
    current: Option<&(String, String)>,
) -> (Map<String, Value>, bool) {
    let mut told = Map::new();
    let mut is_known = false;
    for realm in realms.filter(|realm| !realm.clusters.is_empty()) {
        let mut clusters = Map::new();
        for (name, _) in &realm.clusters {
            let is_current =
                current.is_some_and(|(realm_name, cluster)| (realm_name, cluster) == (&realm.name, name));
            is_known |= is_current;
            clusters.insert(name.clone(), if is_current { json!({"current": true}) } else { json!({}) });
        }
        told.insert(realm.name.clone(), json!({"clusters": clusters}));
    }
    (told, is_known)
}

fn refusal(req: &Request) -> Response {
    let realm = Response::unauthorized(req).headers.get_str("Www-Authenticate").map(str::to_owned);
    let realm = realm.unwrap_or_default().replacen("Swift ", "SwiftContainerSync ", 1);
    Response::text(401, "X-Container-Sync-Auth header not valid; contact cluster operator for support.")
        .with_header("Www-Authenticate", realm)
}

/// Looks at every byte, so that the time it takes tells nothing.
fn is_same_secret(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::clock::Clock;
    use common::timestamp::Timestamp;
    use service::http::app_fn;
    use service::logs::Lines;

    use super::super::testing::{request, send};
    use super::*;

    const REALMS: &str = "[US]\nkey = 9ff3b71c\nkey2 = old\ncluster_dfw1 = http://dfw1/v1/\ncluster_ord1 = http://ord1/v1/\n\
                          [NOKEY]\ncluster_a = http://a/v1/\n[EMPTY]\n";

    struct Setup {
        dir: tempfile::TempDir,
        clock: Clock,
        ctx: Context,
        lines: Lines,
        app: SharedApp,
    }

    /// The filter before an app where the container `c` has the key `abc`, `versioned` has versions, and an object answers
    /// with what the filter has made of the request.
    fn setup(options: &[(&str, &str)]) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("container-sync-realms.conf"), REALMS).unwrap();
        let clock = Clock::manual(Timestamp::from_secs_f64(1000.0));
        let (logger, lines) = Logger::memory();
        let ctx = Context::builder("proxy-server")
            .clock(clock.clone())
            .logger(logger)
            .swift_dir(dir.path())
            .build();
        let inner = app_fn(|req: Request| async move {
            let resp = Response::new(200);
            match (&req.method, req.path.as_str()) {
                (Method::Head, "/v1/a/c") => resp.with_header("X-Container-Sync-Key", "abc"),
                (Method::Head, "/v1/a/versioned") => resp
                    .with_header("X-Container-Sysmeta-Versions-Container", "v")
                    .with_header("X-Container-Sync-Key", "abc"),
                (Method::Head, _) => resp,
                _ => {
                    let overrides = req.env.get::<AuthorizeOverride>().is_some() as u8
                        + req.env.get::<SloOverride>().is_some() as u8;
                    let timestamp = req.headers.get_str(X_TIMESTAMP).unwrap_or("-").to_owned();
                    resp.with_body(format!("{overrides} {timestamp}"))
                }
            }
        });
        let app =
            factory(&Section::from_pairs("container_sync", options.iter().copied()), &ctx, inner).unwrap();
        Setup { dir, clock, ctx, lines, app }
    }

    /// A PUT of `target` as the daemon of another cluster sends it, behind `gatekeeper`.
    fn signed(target: &str, realm: &str, realm_key: &str, user_key: &str) -> Request {
        let sig = get_sig("PUT", target, "1455221706.72699", "nonce", realm_key, user_key);
        request(
            Method::Put,
            target,
            &[
                ("X-Container-Sync-Auth", &format!("{realm} nonce {sig}")),
                (INBOUND_X_TIMESTAMP, "1455221706.72699"),
            ],
        )
    }

    async fn notes_of(app: &SharedApp, mut req: Request) -> (u16, Vec<String>) {
        let log = LogInfo::of(&mut req.env);
        (send(app, req).await.0, log.notes())
    }

    #[tokio::test]
    async fn what_is_signed_passes_with_its_timestamp() {
        let app = setup(&[]).app;
        for (realm, key) in [("US", "9ff3b71c"), ("us", "old")] {
            let (status, _, body) = send(&app, signed("/v1/a/c/o%3A%20x%C3%BC", realm, key, "abc")).await;
            assert_eq!((status, body.as_str()), (200, "2 1455221706.72699"), "{key}");
        }
        // ContainerSyncRealms(...).get_sig('GET', '/v1/a/c', '0', 'nonce', '9ff3b71c', 'abc')
        let auth = ("X-Container-Sync-Auth", "US nonce f9914853c5ed7b7f4ab1ebbadeeced5a92ec4ba9");
        assert_eq!(send(&app, request(Method::Get, "/v1/a/c", &[auth])).await.2, "2 -");
        let (status, _, body) = send(&app, request(Method::Put, "/v1/a/c/o", &[])).await;
        assert_eq!((status, body.as_str()), (200, "0 -"));
    }

    #[tokio::test]
    async fn what_is_signed_wrongly_is_refused_and_noted() {
        let app = setup(&[]).app;
        let (status, headers, body) = send(&app, signed("/v1/a/c/o", "US", "9ff3b71c", "abd")).await;
        assert_eq!(
            (status, body.as_str()),
            (401, "X-Container-Sync-Auth header not valid; contact cluster operator for support.")
        );
        assert_eq!(headers.get_str("Www-Authenticate"), Some("SwiftContainerSync realm=\"a\""));
        assert_eq!(headers.get_str("Content-Type"), Some("text/plain"));
        for (req, note) in [
            (request(Method::Put, "/v1/a/c/o", &[("X-Container-Sync-Auth", "a")]), "cs:not-3-args"),
            (signed("/v1/a/c/o", "other", "9ff3b71c", "abc"), "cs:no-local-realm-key"),
            (signed("/v1/a/c/o", "EMPTY", "", "abc"), "cs:no-local-realm-key"),
            (signed("/v1/a/other/o", "US", "9ff3b71c", ""), "cs:no-local-user-key"),
            (signed("/v1/a/c/o", "US", "", "abc"), "cs:invalid-sig"),
        ] {
            assert_eq!(notes_of(&app, req).await, (401, vec![note.to_owned()]));
        }
        assert_eq!(
            notes_of(&app, signed("/v1/a/c/o", "US", "9ff3b71c", "abc")).await,
            (200, vec!["cs:valid".to_owned()])
        );
    }

    #[tokio::test]
    async fn targets_are_checked_where_they_are_set() {
        let to = |to: &'static str| [("X-Container-Sync-To", to)];
        let app = setup(&[("allow_full_urls", "false")]).app;
        let (status, _, body) = send(&app, request(Method::Post, "/v1/a/c", &to("http://host/v1/a/c"))).await;
        assert!(status == 400 && body.starts_with("Full URLs are not allowed"), "{body}");
        assert_eq!(send(&app, request(Method::Post, "/v1/a/c", &to("//us/ord1/a/c"))).await.0, 200);
        let app = setup(&[]).app;
        assert_eq!(send(&app, request(Method::Post, "/v1/a/c", &to("http://host/v1/a/c"))).await.0, 200);
        let (status, _, body) =
            send(&app, request(Method::Post, "/v1/a/versioned", &to("//us/ord1/a/c"))).await;
        assert!(status == 400 && body.contains("object versioning configured"), "{body}");
        assert_eq!(send(&app, request(Method::Post, "/v1/a/versioned", &to(""))).await.0, 200);
    }

    #[tokio::test]
    async fn info_tells_the_realms_of_now_and_the_current_cluster() {
        let Setup { dir, clock, ctx, lines, app } = setup(&[("current", "//us/DFW1")]);
        let told = || SwiftInfo::of(&ctx).get(false, &[])["container_sync"].clone();
        assert_eq!(
            told(),
            json!({"realms": {
                "US": {"clusters": {"DFW1": {"current": true}, "ORD1": {}}},
                "NOKEY": {"clusters": {"A": {}}}
            }})
        );
        std::fs::write(dir.path().join("container-sync-realms.conf"), "[b]\ncluster_c = http://c/v1\n")
            .unwrap();
        clock.advance(Duration::from_secs(301));
        send(&app, request(Method::Get, "/info", &[])).await;
        assert_eq!(told(), json!({"realms": {"B": {"clusters": {"C": {}}}}}));
        assert!(lines.contains("Unknown current //REALM/CLUSTER (//US/DFW1)"), "{:?}", lines.all());
        let lines = setup(&[("current", "//a/b/c")]).lines;
        assert!(lines.contains("Invalid current //REALM/CLUSTER (//a/b/c)"), "{:?}", lines.all());
    }
}
