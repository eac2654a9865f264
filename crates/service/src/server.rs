//! A server from its configuration: its socket, its pipeline, its limits.
//!
//! [`load`] reads a file such as object-server.conf and builds what it describes; [`Loaded::start`] serves it on
//! listening sockets in the current runtime. Processes and signals are the business of `supervisor`; `up` uses this
//! level directly.
//!
//! Swift's `workers` processes are threads of one runtime here. With `cert_file` and `key_file` any server speaks TLS, for tests:
//! what clients reach should have a TLS terminator in front, as Swift's own documentation says.
//!
//! With `servers_per_port` an object server listens on the port of each device that its rings have at `ring_ip`, or else
//! `bind_ip`, where Swift has so many processes for each. What keeps the devices apart here are their own disk threads and,
//! for each port, its own `max_clients` times `servers_per_port` connections. `workers` and `bind_port` are then ignored,
//! as in Swift, and there are as many threads as cores.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Policies;
use common::config::{ConfigError, Paste, Section};
use futures_util::future::join_all;
use ring::{RingError, Rings, is_local_device, whataremyips};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::context::{Context, Process};
use crate::http::SharedApp;
use crate::http::head::Limits;
use crate::http::serve::{self, ServeOptions, ServerHandle};
use crate::http::tls::{Acceptor, Certificate, CertificateError};
use crate::pipeline::{Registry, load_app};
use crate::trans_id::gen_trans_id;

/// A port in use is tried again after this long, until `bind_timeout`.
const BIND_RETRY: Duration = Duration::from_millis(100);
/// Swift's line, on stdout too.
pub const TLS_WARNING: &str = "WARNING: SSL should only be enabled for testing purposes. Use external SSL termination for a \
                               production deployment.";

/// The options of a server that are about its socket and its processes.
#[derive(Clone, Debug)]
pub struct ServerConf {
    pub bind_ip: String,
    pub bind_port: u16,
    pub bind_timeout: Duration,
    pub backlog: i32,
    pub keep_idle: Duration,
    /// Threads; 0 also means to serve in the first process, without a supervisor.
    pub workers: usize,
    pub max_clients: usize,
    pub client_timeout: Duration,
    pub keepalive_timeout: Option<Duration>,
    pub require_proxy_protocol: bool,
    pub stale_worker_timeout: Duration,
    /// 0 unless each device has a port of its own.
    pub servers_per_port: usize,
    /// TLS, if it is there.
    cert_file: Option<String>,
    key_file: Option<String>,
    pub ring_check_interval: Duration,
    /// Which devices of the rings are ours.
    ring_ip: String,
    pub section: Section,
}

impl ServerConf {
    /// Reads the options from the section of a server's app.
    pub fn from_section(section: &Section) -> Result<ServerConf, ConfigError> {
        // Swift: other servers have no use for it.
        let is_object_server = section.name() == "app:object-server";
        let servers_per_port = section.int("servers_per_port", 0usize)? * usize::from(is_object_server);
        let port = section.get("bind_port").unwrap_or_default();
        let bind_port = port.parse().ok().filter(|port| *port > 0).or((servers_per_port > 0).then_some(0));
        let bind_port =
            bind_port.ok_or_else(|| section.error("bind_port", "expected a port number, 1 to 65535"))?;
        let client_timeout = section.get("client_timeout").filter(|value| !value.is_empty());
        let keepalive = section.get("keepalive_timeout").filter(|value| !value.is_empty());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = section.auto_int("workers")?.filter(|_| servers_per_port == 0).unwrap_or(cores);
        let bind_ip = section.str("bind_ip", "0.0.0.0");
        Ok(ServerConf {
            servers_per_port,
            cert_file: section.get("cert_file").map(str::to_owned),
            key_file: section.get("key_file").map(str::to_owned),
            ring_check_interval: section.secs("ring_check_interval", 15.0)?,
            ring_ip: section.str("ring_ip", &bind_ip),
            bind_ip,
            bind_port,
            bind_timeout: section.secs("bind_timeout", 30.0)?,
            backlog: section.int("backlog", 4096)?,
            keep_idle: Duration::from_secs(keep_idle(section)?),
            workers,
            max_clients: section.positive_int("max_clients", 1024usize)?,
            client_timeout: match client_timeout {
                Some(_) => section.secs("client_timeout", 60.0)?,
                None => Duration::from_secs(60),
            },
            keepalive_timeout: match keepalive {
                Some(_) => Some(section.secs("keepalive_timeout", 0.0)?),
                None => None,
            },
            require_proxy_protocol: section.bool("require_proxy_protocol", false)?,
            stale_worker_timeout: section.secs("stale_worker_timeout", 86_400.0)?,
            section: section.clone(),
        })
    }

    /// The ports of the devices here in the object rings; a ring that cannot be read is told to `report` and left out.
    pub fn device_ports(
        &self,
        rings: &Rings,
        policies: &Policies,
        report: impl Fn(&RingError),
    ) -> BTreeSet<u16> {
        let my_ips = whataremyips(&self.ring_ip);
        let mut ports = BTreeSet::new();
        for policy in policies.iter() {
            match rings.object(policy.index, policies) {
                Ok(ring) => {
                    let devices = ring.devs().iter().flatten();
                    let ours = devices.filter(|dev| is_local_device(&my_ips, None, &dev.ip, dev.port));
                    ports.extend(ours.map(|dev| dev.port));
                }
                Err(err) if err.missing => {}
                Err(err) => report(&err),
            }
        }
        ports
    }

    /// The same server on another port.
    pub fn with_port(&self, bind_port: u16) -> ServerConf {
        ServerConf { bind_port, ..self.clone() }
    }

    /// The socket of the server. A port in use is waited for up to `wait`.
    pub fn bind(&self, wait: Duration) -> Result<TcpListener, ConfigError> {
        let deadline = Instant::now() + wait;
        loop {
            match self.bind_now() {
                Ok(listener) => return Ok(listener),
                Err(err) if err.kind() == ErrorKind::AddrInUse && Instant::now() + BIND_RETRY < deadline => {
                    std::thread::sleep(BIND_RETRY);
                }
                Err(err) => return Err(self.bind_error(&err, wait)),
            }
        }
    }

    fn bind_error(&self, err: &io::Error, wait: Duration) -> ConfigError {
        let (ip, port) = (&self.bind_ip, self.bind_port);
        if err.kind() != ErrorKind::AddrInUse {
            return self.section.error("bind_ip", format!("could not bind to {ip}:{port}: {err}"));
        }
        let waited =
            if wait.is_zero() { String::new() } else { format!(" after {} seconds", wait.as_secs()) };
        self.section.error("bind_port", format!("{ip}:{port} is still in use by another process{waited}"))
    }

    fn bind_now(&self) -> io::Result<TcpListener> {
        let address = self.address()?;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(self.backlog)?;
        // Accepted sockets inherit both.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(self.keep_idle))?;
        Ok(socket.into())
    }

    /// The address of `bind_ip` and `bind_port`.
    pub fn address(&self) -> io::Result<SocketAddr> {
        let mut addresses = (self.bind_ip.as_str(), self.bind_port).to_socket_addrs()?;
        addresses.next().ok_or_else(|| io::Error::from(ErrorKind::AddrNotAvailable))
    }

    /// Threads of the runtime that serves.
    pub fn threads(&self) -> usize {
        self.workers.max(1)
    }

    /// What `cert_file` and `key_file` hold; `None` if connections are plain.
    pub fn certificate(&self) -> Result<Option<Certificate>, ConfigError> {
        let Some(cert_file) = &self.cert_file else { return Ok(None) };
        let Some(key_file) = &self.key_file else {
            return Err(self.section.error("key_file", "expected the file with the key to cert_file"));
        };
        let read = |option, file: &str| {
            let text = std::fs::read_to_string(file);
            text.map_err(|err| self.section.error(option, format!("could not be read: {err}")))
        };
        let certificate =
            Certificate { chain: read("cert_file", cert_file)?, key: read("key_file", key_file)? };
        self.acceptor(&certificate)?;
        Ok(Some(certificate))
    }

    fn acceptor(&self, certificate: &Certificate) -> Result<Acceptor, ConfigError> {
        certificate.acceptor().map_err(|err| match err {
            CertificateError::Chain(problem) => self.section.error("cert_file", problem),
            CertificateError::Key(problem) => self.section.error("key_file", problem),
        })
    }

    fn serve_options(&self, ctx: &Context) -> ServeOptions {
        let constraints = &ctx.swift_conf.constraints;
        let refused = ctx.clone();
        ServeOptions {
            client_timeout: self.client_timeout,
            keepalive_timeout: self.keepalive_timeout,
            max_clients: self.max_clients * self.servers_per_port.max(1),
            limits: Limits::from_constraints(
                constraints.max_request_line,
                constraints.max_header_size,
                constraints.max_header_count(),
            ),
            proxy_protocol: self.require_proxy_protocol,
            clock: ctx.clock.clone(),
            on_refused: Some(Arc::new(move |status, reason| {
                let txn = gen_trans_id(&refused.rng, refused.clock.unix_secs(), "");
                let logger = refused.logger.with_txn(&txn);
                logger.error(format_args!("ERROR WSGI: code {}, message {reason}", status.0));
                Some(txn)
            })),
            ..ServeOptions::default()
        }
    }
}

/// Swift: wsgi.get_socket refuses what TCP_KEEPIDLE cannot hold.
fn keep_idle(section: &Section) -> Result<u64, ConfigError> {
    let seconds = section.int("keep_idle", 600u64)?;
    if (1..(1 << 15) - 1).contains(&seconds) {
        return Ok(seconds);
    }
    Err(section.error("keep_idle", "expected 1 to 32766 seconds"))
}

/// A server that is ready to serve.
pub struct Loaded {
    pub conf: ServerConf,
    pub ctx: Context,
    app: SharedApp,
}

/// Reads the configuration of the server `name` at `path` and builds its pipeline.
pub fn load(process: &Process, registry: &Registry, name: &str, path: &Path) -> Result<Loaded, ConfigError> {
    let paste = Paste::load(path, "main")?;
    let conf = ServerConf::from_section(&paste.app.section)?;
    let ctx = Context::new(process, name, &paste.app.section)?;
    let app = load_app(&paste, registry, &ctx)?;
    Ok(Loaded { conf, ctx, app })
}

/// The options of the server at `path` without building its pipeline, and where they stand.
pub fn load_conf(path: &Path) -> Result<(ServerConf, PathBuf), ConfigError> {
    let paste = Paste::load(path, "main")?;
    Ok((ServerConf::from_section(&paste.app.section)?, paste.file))
}

impl Loaded {
    /// Serves on `listeners` in the current runtime, by TLS if there is a certificate.
    pub fn start(
        self,
        listeners: Vec<TcpListener>,
        certificate: Option<&Certificate>,
    ) -> Result<RunningServer, ConfigError> {
        let tls = certificate.map(|certificate| self.conf.acceptor(certificate)).transpose()?;
        if tls.is_some() {
            self.ctx.logger.warning(TLS_WARNING);
        }
        let start = |listeners| {
            let options = ServeOptions { tls: tls.clone(), ..self.conf.serve_options(&self.ctx) };
            serve::Server::start(listeners, self.app.clone(), options)
        };
        let handles = match self.conf.servers_per_port {
            0 => start(listeners).map(|handle| vec![handle]),
            // Clients of one device do not take the places of another's.
            _ => listeners.into_iter().map(|listener| start(vec![listener])).collect(),
        };
        let handles = handles.map_err(|err| self.conf.bind_error(&err, Duration::ZERO))?;
        Ok(RunningServer { handles, ctx: self.ctx })
    }

    /// Binds the configured address at once and serves there.
    pub fn bind_and_start(self) -> Result<RunningServer, ConfigError> {
        let certificate = self.conf.certificate()?;
        let listener = self.conf.bind(Duration::ZERO)?;
        self.start(vec![listener], certificate.as_ref())
    }
}

/// A server that serves. Dropping it does not stop it.
pub struct RunningServer {
    handles: Vec<ServerHandle>,
    pub ctx: Context,
}

impl RunningServer {
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.handles.iter().flat_map(ServerHandle::addrs).collect()
    }

    /// Accepts no more connections, gives open requests `graceful` to finish and ends the rest. Whether all finished.
    pub async fn stop(&self, graceful: Duration) -> bool {
        let finished = join_all(self.handles.iter().map(|handle| handle.stop(graceful))).await;
        let finished = finished.into_iter().all(|finished| finished);
        // The apps of a pipeline know the context and the context knows them: cut the circle.
        self.ctx.pipeline.clear();
        self.ctx.process.open_logs.flush();
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Response, app_fn};
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn section(options: &[(&str, &str)]) -> Section {
        Section::from_pairs("app:object-server", options.iter().copied())
    }

    fn error(options: &[(&str, &str)]) -> String {
        ServerConf::from_section(&section(options)).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_swifts() {
        let conf = ServerConf::from_section(&section(&[("bind_port", "6200")])).unwrap();
        assert_eq!((conf.bind_ip.as_str(), conf.bind_port, conf.backlog), ("0.0.0.0", 6200, 4096));
        assert_eq!((conf.max_clients, conf.client_timeout), (1024, Duration::from_secs(60)));
        assert_eq!((conf.keepalive_timeout, conf.bind_timeout), (None, Duration::from_secs(30)));
        assert!(conf.workers >= 1);
    }

    #[test]
    fn bad_options_are_named() {
        assert!(error(&[]).contains("bind_port"));
        assert!(error(&[("bind_port", "65536")]).contains("expected a port number, 1 to 65535"));
        assert!(error(&[("bind_port", "1"), ("keep_idle", "32767")]).contains("keep_idle"));
        assert!(error(&[("bind_port", "1"), ("workers", "-1")]).contains("workers"));
    }

    #[test]
    fn a_certificate_that_cannot_be_used_is_told_by_its_option() {
        let golden = |name| format!("{}/tests/golden/tls/{name}", env!("CARGO_MANIFEST_DIR"));
        let (chain, key) = (golden("server.pem"), golden("server.key"));
        let certificate = |options: &[(&str, &str)]| {
            let options = [&[("bind_port", "1")], options].concat();
            let conf = ServerConf::from_section(&section(&options)).unwrap();
            conf.certificate().map(|certificate| certificate.is_some()).map_err(|err| err.to_string())
        };
        assert_eq!(certificate(&[("key_file", "/nonexistent")]), Ok(false));
        assert_eq!(certificate(&[("cert_file", &chain), ("key_file", &key)]), Ok(true));
        let error = |options: &[(&str, &str)]| certificate(options).unwrap_err();
        assert!(
            error(&[("cert_file", &chain)])
                .ends_with("key_file: expected the file with the key to cert_file")
        );
        let missing = error(&[("cert_file", "/nonexistent"), ("key_file", &key)]);
        assert!(
            missing.contains("[app:object-server] cert_file = /nonexistent: could not be read: No such"),
            "{missing}"
        );
        let no_pem = error(&[("cert_file", &golden("make.py")), ("key_file", &key)]);
        assert!(no_pem.contains("make.py: no certificate in PEM"), "{no_pem}");
        let other = error(&[("cert_file", &golden("root.pem")), ("key_file", &key)]);
        assert!(other.contains("key_file = ") && other.contains("not the key of"), "{other}");
    }

    #[test]
    fn a_port_in_use_is_a_clear_error() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let conf =
            ServerConf::from_section(&section(&[("bind_ip", "127.0.0.1"), ("bind_port", &port)])).unwrap();
        let err = conf.bind(Duration::ZERO).unwrap_err().to_string();
        assert!(err.contains(&format!("127.0.0.1:{port} is still in use by another process")), "{err}");
        drop(taken);
        assert_eq!(conf.bind(Duration::ZERO).unwrap().local_addr().unwrap().port().to_string(), port);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_configuration_becomes_a_server_that_stops() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("swift.conf"), "[swift-hash]\nswift_hash_path_suffix = x\n").unwrap();
        let path = dir.path().join("object-server.conf");
        let text = format!(
            "[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = 1\nswift_dir = {}\n[pipeline:main]\n\
             pipeline = healthcheck object-server\n[app:object-server]\nuse = egg:swift#object\n\
             [filter:healthcheck]\nuse = egg:swift#healthcheck\n",
            dir.path().display()
        );
        std::fs::write(&path, text).unwrap();
        let mut registry = Registry::new();
        registry.app("egg:swift#object", |_, _| Ok(app_fn(|_| async { Response::text(200, "app") })));
        let loaded = load(&Process::new(), &registry, "object-server", &path).unwrap();
        let server = loaded.start(vec![TcpListener::bind("127.0.0.1:0").unwrap()], None).unwrap();
        let address = server.addrs()[0];
        let get = move || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, io::Error>(answer)
        };
        let answer = tokio::task::spawn_blocking(get).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nOK"), "{answer}");
        assert!(server.stop(Duration::from_secs(1)).await);
        assert!(tokio::task::spawn_blocking(get).await.unwrap().is_err());
    }
}
