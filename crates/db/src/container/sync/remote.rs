//! Requests to the container that is synced to: HEAD, PUT and DELETE of objects, with what makes the other cluster take them.
//!
//! Within a realm a request is signed (`X-Container-Sync-Auth: REALM NONCE SIGNATURE`); otherwise it carries the container's key
//! as it is. Both need an X-Timestamp, which becomes the object's.
//!
//! A request may go through one of the HTTP proxies of `sync_proxy`: to `https` by CONNECT, whatever scheme the proxy's own URL
//! has, else as the proxy's own request, by TLS if its URL is of `https`. What Swift does by urllib and is not done
//! here: redirects, and proxies from the environment.

use std::sync::Arc;
use std::time::Duration;

use common::config::{ConfigError, Section};
use common::container_sync_realms::{Target, Url, get_sig};
use common::headers::{X_CONTAINER_SYNC_KEY, X_TIMESTAMP};
use common::quote::quote;
use service::http::tls::Connector;
use service::http::{Body, ClientError, Headers, Method, Pool, PoolOptions, Timeouts};
use service::{Context, Rng};
use thiserror::Error;

/// An answer to a HEAD, for which Swift waits as long as it takes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// So much of an answer is read, that its connection may be kept.
const MAX_ANSWER: u64 = 64 << 10;
/// Of PUT and DELETE, after the first try.
const RETRIES: u32 = 5;
const MAX_BACKOFF: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum RemoteError {
    #[error("status {0}")]
    Status(u16),
    #[error("{0}")]
    Url(String),
    #[error("{0}")]
    Client(#[from] ClientError),
}

impl RemoteError {
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(*status),
            _ => None,
        }
    }

    /// Whether another try may do better.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Status(status) => !(400..500).contains(status),
            Self::Url(_) => false,
            Self::Client(_) => true,
        }
    }
}

/// The object of a request.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    pub target: &'a Target,
    pub user_key: &'a str,
    pub name: &'a str,
}

impl Object<'_> {
    /// Path of the object, quoted; that of the container came so.
    fn path(&self) -> String {
        format!("{}/{}", Url::parse(&self.target.url).path.trim_end_matches('/'), quote(self.name, "/"))
    }

    /// Adds what proves that the request may be made.
    fn authorize(&self, method: &Method, nonce: &str, headers: &mut Headers) {
        let Some((realm, realm_key)) = &self.target.realm else {
            headers.insert(X_CONTAINER_SYNC_KEY, self.user_key);
            return;
        };
        let timestamp = headers.get_str(X_TIMESTAMP).unwrap_or("0");
        let sig = get_sig(method.as_str(), &self.path(), timestamp, nonce, realm_key, self.user_key);
        headers.insert("X-Container-Sync-Auth", format!("{realm} {nonce} {sig}"));
    }
}

/// Waits between tries.
pub struct Backoff {
    left: u32,
    next: Duration,
}

impl Backoff {
    pub fn new() -> Self {
        Backoff { left: RETRIES, next: Duration::from_secs(1) }
    }

    /// How long to wait before another try; `None` if there is none left.
    fn take(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let wait = self.next;
        self.next = (wait * 2).min(MAX_BACKOFF);
        Some(wait)
    }

    /// Waits after `error`, or gives it back if that is of no use.
    pub async fn wait(&mut self, error: RemoteError) -> Result<(), RemoteError> {
        let wait = if error.is_passing() { self.take() } else { None };
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
        Ok(())
    }
}

pub struct Remote {
    http: Pool,
    https: Pool,
    rng: Rng,
    conn_timeout: Duration,
    proxies: Vec<Proxy>,
}

/// One of `sync_proxy`.
struct Proxy {
    url: String,
    /// Connections to `https` servers behind it.
    tunnels: Option<Pool>,
}

impl Proxy {
    fn new(url: String, tls: &Connector) -> Self {
        let tunnels = address(&Url { scheme: "https".to_owned(), ..Url::parse(&url) })
            .map(|(host, port)| pool_of(tls.through(&host, port)))
            .ok();
        Proxy { url, tunnels }
    }
}

fn pool_of(connector: Connector) -> Pool {
    Pool::new(PoolOptions { connector: Some(Arc::new(connector)), ..PoolOptions::default() })
}

impl Remote {
    pub fn from_section(section: &Section, ctx: &Context) -> Result<Self, ConfigError> {
        let tls = Connector::new();
        let proxies = section.list("sync_proxy", "");
        Ok(Remote {
            http: ctx.pool.clone(),
            https: pool_of(tls.clone()),
            rng: ctx.rng.clone(),
            conn_timeout: section.secs("conn_timeout", 5.0)?,
            proxies: proxies.into_iter().map(|url| Proxy::new(url, &tls)).collect(),
        })
    }

    /// The headers of the object there.
    pub async fn head(&self, object: Object<'_>, headers: Headers) -> Result<Headers, RemoteError> {
        self.request(Method::Head, object, headers, Body::empty(), HEAD_TIMEOUT).await
    }

    pub async fn delete(&self, object: Object<'_>, headers: Headers) -> Result<(), RemoteError> {
        let mut backoff = Backoff::new();
        loop {
            let sent =
                self.request(Method::Delete, object, headers.clone(), Body::empty(), self.conn_timeout);
            match sent.await {
                Ok(_) => return Ok(()),
                Err(error) => backoff.wait(error).await?,
            }
        }
    }

    /// Once: a body cannot be sent again.
    pub async fn put(&self, object: Object<'_>, headers: Headers, body: Body) -> Result<(), RemoteError> {
        self.request(Method::Put, object, headers, body, self.conn_timeout).await.map(drop)
    }

    /// How a request to `path` of the server of `url` goes.
    fn route<'a>(
        &'a self,
        url: &Url<'_>,
        proxy: Option<&'a Proxy>,
        path: String,
    ) -> Result<Route<'a>, RemoteError> {
        let (host, port) = address(url)?;
        let pool = |url: &Url<'_>| if url.scheme == "https" { &self.https } else { &self.http };
        let Some(proxy) = proxy else { return Ok(Route { pool: pool(url), host, port, path }) };
        if url.scheme == "https" {
            let no_address = || RemoteError::Url(format!("no address in {}", proxy.url));
            let pool = proxy.tunnels.as_ref().ok_or_else(no_address)?;
            return Ok(Route { pool, host, port, path });
        }
        let path = format!("http://{}{path}", url.host_and_port());
        let url = Url::parse(&proxy.url);
        let (host, port) = address(&url)?;
        Ok(Route { pool: pool(&url), host, port, path })
    }

    async fn request(
        &self,
        method: Method,
        object: Object<'_>,
        mut headers: Headers,
        body: Body,
        timeout: Duration,
    ) -> Result<Headers, RemoteError> {
        let url = Url::parse(&object.target.url);
        let proxy = match self.proxies.len() {
            0 => None,
            count => Some(&self.proxies[self.rng.below(count)]),
        };
        let Route { pool, host, port, path } = self.route(&url, proxy, object.path())?;
        headers.insert("Host", url.host_and_port());
        headers.insert("User-Agent", super::USER_AGENT);
        let nonce = format!("{:016x}{:016x}", self.rng.next_u64(), self.rng.next_u64());
        object.authorize(&method, &nonce, &mut headers);
        let timeouts = Timeouts { conn: self.conn_timeout, node: timeout };
        let sent = pool.request((&host, port), method, &path, &headers, body, timeouts).await;
        let mut response = sent?;
        // Whether all of it can be read does not matter.
        let _ = response.body.drain(MAX_ANSWER).await;
        match response.is_success() {
            true => Ok(response.headers),
            false => Err(RemoteError::Status(response.status.0)),
        }
    }
}

/// How a request goes.
struct Route<'a> {
    pool: &'a Pool,
    host: String,
    port: u16,
    /// The request's target.
    path: String,
}

/// Whom to connect to.
fn address(url: &Url<'_>) -> Result<(String, u16), RemoteError> {
    if !matches!(&*url.scheme, "http" | "https") {
        return Err(RemoteError::Url(format!("no requests to {}:// are made", url.scheme)));
    }
    url.host().zip(url.port()).ok_or_else(|| RemoteError::Url(format!("no address in {}", url.authority)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(realm: Option<(&str, &str)>) -> Target {
        let realm = realm.map(|(name, key)| (name.to_owned(), key.to_owned()));
        Target { url: "http://h:8080/v1/a/c%20d".to_owned(), realm }
    }

    #[test]
    fn requests_of_a_realm_are_signed_and_others_carry_the_key() {
        let mut headers = Headers::new();
        headers.insert("X-Timestamp", "1387212345.67890");
        let plain = target(None);
        let object = Object { target: &plain, user_key: "user_key", name: "o ü/x" };
        assert_eq!(object.path(), "/v1/a/c%20d/o%20%C3%BC/x");
        object.authorize(&Method::Put, "nonce", &mut headers);
        assert_eq!(headers.get_str("X-Container-Sync-Key"), Some("user_key"));
        assert!(!headers.contains("X-Container-Sync-Auth"));
        headers.remove("X-Container-Sync-Key");
        let signed = target(Some(("US", "realm_key")));
        Object { target: &signed, ..object }.authorize(&Method::Put, "nonce", &mut headers);
        let sig = get_sig("PUT", &object.path(), "1387212345.67890", "nonce", "realm_key", "user_key");
        assert_eq!(headers.get_str("X-Container-Sync-Auth"), Some(&*format!("US nonce {sig}")));
        assert!(!headers.contains("X-Container-Sync-Key"));
    }

    #[test]
    fn the_way_is_that_of_urllib() {
        let ctx = Context::builder("container-sync").build();
        let remote = |proxies: &str| {
            let section = Section::from_pairs("container-sync", [("sync_proxy", proxies)]);
            Remote::from_section(&section, &ctx).unwrap()
        };
        let way = |url: &str, proxy: &str| {
            let remote = remote(proxy);
            let route = remote.route(&Url::parse(url), remote.proxies.first(), "/v1/a".to_owned());
            let Route { pool, host, port, path } = route.map_err(|error| error.to_string())?;
            let pools = [("http", Some(&remote.http)), ("https", Some(&remote.https))];
            let tunnels = remote.proxies.iter().map(|proxy| ("tunnel", proxy.tunnels.as_ref()));
            let mut pools = pools.into_iter().chain(tunnels);
            let kind = pools.find(|(_, one)| one.is_some_and(|one| std::ptr::eq(one, pool))).unwrap().0;
            Ok::<_, String>(format!("{kind} {host}:{port} {path}"))
        };
        let way_of = |url, proxy| way(url, proxy).unwrap();
        assert_eq!(way_of("http://h/x", ""), "http h:80 /v1/a");
        assert_eq!(way_of("https://h/x", ""), "https h:443 /v1/a");
        assert_eq!(way_of("https://h:8443/x", ""), "https h:8443 /v1/a");
        assert_eq!(way_of("http://h:8080/x", "http://p:3128"), "http p:3128 http://h:8080/v1/a");
        assert_eq!(way_of("http://h/x", "https://p"), "https p:443 http://h/v1/a");
        assert_eq!(way_of("https://h/x", "http://p:3128"), "tunnel h:443 /v1/a");
        assert_eq!(way("ftp://h/x", "").unwrap_err(), "no requests to ftp:// are made");
        assert_eq!(way("https://h/x", "p").unwrap_err(), "no address in p");
    }

    #[test]
    fn tries_are_bound_and_wait_longer_up_to_a_limit() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = std::iter::from_fn(|| backoff.take()).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
    }

    #[tokio::test]
    async fn a_refusal_is_not_tried_again() {
        let error = Backoff::new().wait(RemoteError::Status(404)).await.unwrap_err();
        assert_eq!(error.status(), Some(404));
        assert!(RemoteError::Status(302).is_passing() && RemoteError::Status(503).is_passing());
        assert!(
            !RemoteError::Url(String::new()).is_passing()
                && RemoteError::Client(ClientError::Timeout).is_passing()
        );
    }
}
