//! TLS 1.2 and 1.3: what a server shows (`cert_file` and `key_file`), and connections to servers whose certificates are checked.
//!
//! Swift has it by OpenSSL, for tests at a proxy and for container-sync's requests. Here it is rustls, whose stream is one of
//! [`Stream::other`]: plain TCP knows nothing of it. A client trusts what Python's `ssl` trusts by default: the certificates of
//! SSL_CERT_FILE and of the directories in SSL_CERT_DIR, and for whichever of both is not set, those of the system. They are read
//! once, with the first connection. Stricter than OpenSSL, the server's name must be among its certificate's subjectAltNames, whatever
//! the common name is, and that certificate must not be one that may sign others (CA:TRUE).
//!
//! Not here: certificates of clients, and keys with a passphrase.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::head::{self, HeadScanner, Limits};
use super::pool::Connect;
use super::{BoxFuture, Status, Stream};

/// What a server shows, in PEM: the text of its `cert_file` and of its `key_file`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Certificate {
    /// The server's certificate, and those that lead to a root.
    pub chain: String,
    pub key: String,
}

/// What is wrong with a certificate, by the file that it is in.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("{0}")]
    Chain(String),
    #[error("{0}")]
    Key(String),
}

impl Certificate {
    pub fn acceptor(&self) -> Result<Acceptor, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| CertificateError::Chain(format!("not PEM: {error}")))?;
        if chain.is_empty() {
            return Err(CertificateError::Chain("no certificate in PEM".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| match error {
            pem::Error::NoItemsFound if self.key.contains("ENCRYPTED PRIVATE KEY") => {
                CertificateError::Key("keys with a passphrase are not read".to_owned())
            }
            pem::Error::NoItemsFound => CertificateError::Key("no private key in PEM".to_owned()),
            error => CertificateError::Key(format!("not PEM: {error}")),
        })?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
        let config = config.map_err(|error| match error {
            rustls::Error::InvalidCertificate(_) => CertificateError::Chain(error.to_string()),
            rustls::Error::InconsistentKeys(_) => {
                CertificateError::Key("not the key of the certificate in cert_file".to_owned())
            }
            error => CertificateError::Key(error.to_string()),
        })?;
        Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The server's side of TLS.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// Shakes hands; what is not TCP is taken as it is.
    pub(super) async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        match stream {
            Stream::Tcp(tcp) => Ok(Stream::other(self.0.accept(tcp).await?)),
            other => Ok(other),
        }
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}

/// Connects to servers by TLS, perhaps through an HTTP proxy.
#[derive(Clone, Default)]
pub struct Connector {
    config: Arc<OnceCell<Arc<ClientConfig>>>,
    proxy: Option<(String, u16)>,
}

impl Connector {
    /// With nothing read yet: what is trusted, all clones share.
    pub fn new() -> Self {
        Self::default()
    }

    /// By way of an HTTP proxy that is asked to CONNECT, and hears no more than the server's name.
    pub fn through(&self, host: &str, port: u16) -> Self {
        Self { proxy: Some((host.to_owned(), port)), ..self.clone() }
    }

    async fn connect_to(&self, host: &str, port: u16) -> io::Result<Stream> {
        let config = self.config.get_or_try_init(read_roots).await?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let tcp = match &self.proxy {
            None => TcpStream::connect((host, port)).await?,
            Some((proxy, proxy_port)) => {
                tunnel(TcpStream::connect((proxy.as_str(), *proxy_port)).await?, host, port).await?
            }
        };
        tcp.set_nodelay(true)?;
        Ok(Stream::other(TlsConnector::from(config.clone()).connect(name, tcp).await?))
    }
}

impl Connect for Connector {
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(self.connect_to(host, port))
    }
}

/// Asks a proxy to pass on what follows. As Swift does, by HTTP/1.0 and without a header.
async fn tunnel(mut tcp: TcpStream, host: &str, port: u16) -> io::Result<TcpStream> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    tcp.write_all(format!("CONNECT {host}:{port} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let (mut answer, mut scanner) = (Vec::new(), HeadScanner::default());
    let refused = |what: &str| io::Error::other(format!("tunnel connection failed: {what}"));
    let end = loop {
        match scanner.scan(&answer, &Limits::RESPONSE).map_err(|error| refused(error.reason))? {
            Some(end) => break end,
            None if tcp.read_buf(&mut answer).await? == 0 => return Err(refused("the proxy has closed")),
            None => {}
        }
    };
    let head = head::parse_response(&answer[..end]).map_err(|error| refused(error.reason))?;
    if head.status != Status::OK {
        return Err(refused(&format!("{} {}", head.status.0, head.reason)));
    }
    // It is the client who speaks first.
    if answer.len() > end { Err(refused("bytes that nobody asked for")) } else { Ok(tcp) }
}

/// What a client trusts.
async fn read_roots() -> io::Result<Arc<ClientConfig>> {
    let read = tokio::task::spawn_blocking(|| {
        let file = env::var_os("SSL_CERT_FILE");
        let dirs = env::var_os("SSL_CERT_DIR");
        let roots = trusted(file.as_deref(), dirs.as_deref());
        let looked_at = "no certificate to trust: set SSL_CERT_FILE or SSL_CERT_DIR";
        if roots.is_empty() { Err(io::Error::new(ErrorKind::NotFound, looked_at)) } else { client(roots) }
    });
    read.await?
}

/// The certificates of the file and the directories, or of the system. Like OpenSSL, without a word on what cannot be read.
fn trusted(file: Option<&OsStr>, dirs: Option<&OsStr>) -> RootCertStore {
    let system = openssl_probe::probe();
    let file = file.map(PathBuf::from).or(system.cert_file);
    let dirs: Vec<_> = dirs.map_or(system.cert_dir, |dirs| env::split_paths(dirs).collect());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_certs_from_paths(file.as_deref(), None).certs);
    for dir in dirs {
        roots.add_parsable_certificates(rustls_native_certs::load_certs_from_paths(None, Some(&dir)).certs);
    }
    roots
}

fn client(roots: RootCertStore) -> io::Result<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(io::Error::other)?.with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client::Timeouts;
    use crate::http::tests::{echo, options, read_until, start_with};
    use crate::http::{Body, ClientError, Headers, Method, Pool, PoolOptions, ServeOptions};
    use std::net::SocketAddr;
    use std::path::Path;
    use std::time::Duration;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tls").join(name)
    }

    fn certificate(name: &str) -> Certificate {
        let read = |name| std::fs::read_to_string(golden(name)).unwrap();
        Certificate { chain: read(name), key: read("server.key") }
    }

    fn serving(name: &str) -> ServeOptions {
        ServeOptions { tls: Some(certificate(name).acceptor().unwrap()), ..options() }
    }

    /// Trusts the certificates of a file, and no others.
    fn trusting(name: &str) -> Connector {
        let roots = trusted(Some(golden(name).as_os_str()), Some(OsStr::new("")));
        Connector { config: Arc::new(OnceCell::new_with(Some(client(roots).unwrap()))), proxy: None }
    }

    fn pool(connector: Connector) -> Pool {
        Pool::new(PoolOptions { connector: Some(Arc::new(connector)), ..PoolOptions::default() })
    }

    async fn put(pool: &Pool, host: &str, addr: SocketAddr, body: Body) -> Result<Vec<u8>, ClientError> {
        let timeouts = Timeouts { conn: Duration::from_secs(5), node: Duration::from_secs(5) };
        let headers = Headers::from([("X-Timestamp", "1")]);
        let sent = pool.request((host, addr.port()), Method::Put, "/p", &headers, body, timeouts).await;
        Ok(sent?.body.collect(1 << 24).await.unwrap().to_vec())
    }

    async fn refusal(connector: Connector, host: &str, addr: SocketAddr) -> String {
        put(&pool(connector), host, addr, "x".into()).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn bodies_of_any_size_go_both_ways_over_one_connection() {
        let (server, addr) = start_with(serving("server.pem"), echo());
        let pool = pool(trusting("root.pem"));
        for len in [0, 1, 16 << 10, 3_000_001] {
            let body: Vec<u8> = (0..len).map(|i: u32| i as u8).collect();
            assert!(put(&pool, "localhost", addr, body.clone().into()).await.unwrap() == body);
        }
        assert_eq!((server.stats().accepted.load(std::sync::atomic::Ordering::Relaxed), pool.idle()), (1, 1));
        assert!(server.stop(Duration::from_secs(5)).await);
        // The server has said that it closes: the kept connection is seen not to be one.
        assert!(put(&pool, "localhost", addr, "x".into()).await.is_err());
        assert_eq!(pool.idle(), 0);
    }

    #[tokio::test]
    async fn names_and_chains_are_verified() {
        let (_server, addr) = start_with(serving("server.pem"), echo());
        assert_eq!(put(&pool(trusting("root.pem")), "127.0.0.1", addr, "x".into()).await.unwrap(), b"x");
        let unknown = refusal(trusting("elsewhere.pem"), "localhost", addr).await;
        assert!(unknown.contains("UnknownIssuer"), "{unknown}");
        let (_server, addr) = start_with(serving("elsewhere.pem"), echo());
        let other_name = refusal(trusting("root.pem"), "localhost", addr).await;
        assert!(other_name.contains("not valid for name \"localhost\""), "{other_name}");
    }

    #[tokio::test]
    async fn neither_side_takes_plain_http_for_tls() {
        let (_server, addr) = start_with(serving("server.pem"), echo());
        let plain = put(&Pool::default(), "127.0.0.1", addr, "x".into()).await;
        assert!(matches!(plain, Err(ClientError::Closed | ClientError::Malformed(_))), "{plain:?}");
        let (_server, addr) = start_with(options(), echo());
        assert!(refusal(trusting("root.pem"), "localhost", addr).await.starts_with("connect: "));
    }

    #[tokio::test]
    async fn a_client_that_does_not_shake_hands_holds_no_server_up() {
        let (server, addr) = start_with(serving("server.pem"), echo());
        let _silent = TcpStream::connect(addr).await.unwrap();
        assert_eq!(put(&pool(trusting("root.pem")), "localhost", addr, "x".into()).await.unwrap(), b"x");
        assert!(server.stop(Duration::from_secs(5)).await);
    }

    /// A proxy that answers so, and then passes on what comes.
    async fn proxy(
        answer: &'static str,
        server: SocketAddr,
    ) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let asked = read_until(&mut client, "\r\n\r\n").await;
            client.write_all(answer.as_bytes()).await.unwrap();
            let mut server = TcpStream::connect(server).await.unwrap();
            // It ends with either of them.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            asked
        });
        (addr, task)
    }

    #[tokio::test]
    async fn a_proxy_passes_on_what_it_cannot_read() {
        let (_server, addr) = start_with(serving("server.pem"), echo());
        let (proxy_addr, task) = proxy("HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n", addr).await;
        let pool = pool(trusting("root.pem").through("127.0.0.1", proxy_addr.port()));
        assert_eq!(put(&pool, "localhost", addr, "through".into()).await.unwrap(), b"through");
        drop(pool);
        assert_eq!(task.await.unwrap(), format!("CONNECT localhost:{} HTTP/1.0\r\n\r\n", addr.port()));
        for (answer, error) in [
            ("HTTP/1.0 403 Forbidden\r\n\r\n", "connect: tunnel connection failed: 403 Forbidden"),
            ("HTTP/1.0 200 OK\r\n\r\nmore", "connect: tunnel connection failed: bytes that nobody asked for"),
        ] {
            let (proxy_addr, _task) = proxy(answer, addr).await;
            let connector = trusting("root.pem").through("127.0.0.1", proxy_addr.port());
            assert_eq!(refusal(connector, "localhost", addr).await, error);
        }
    }

    #[test]
    fn what_is_no_certificate_is_told_by_its_file() {
        let error = |chain: &str, key: &str| {
            let certificate = Certificate { chain: chain.to_owned(), key: key.to_owned() };
            match certificate.acceptor().unwrap_err() {
                CertificateError::Chain(problem) => ("chain", problem),
                CertificateError::Key(problem) => ("key", problem),
            }
        };
        let Certificate { chain, key } = certificate("server.pem");
        assert_eq!(error("", &key), ("chain", "no certificate in PEM".to_owned()));
        assert_eq!(error(&chain.replace("-----END", "----"), &key).0, "chain");
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(error(nonsense, &key).0, "chain");
        assert_eq!(error(&chain, &chain), ("key", "no private key in PEM".to_owned()));
        let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert_eq!(error(&chain, &encrypted), ("key", "keys with a passphrase are not read".to_owned()));
        let root = std::fs::read_to_string(golden("root.pem")).unwrap();
        assert_eq!(error(&root, &key), ("key", "not the key of the certificate in cert_file".to_owned()));
    }
}
