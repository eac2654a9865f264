//! The container-sync daemon beside Swift's: the same passes on copies of the same databases, against a cluster that records what it is
//! sent. The comparing is done by `peer/container_sync.py`, which runs in the venv of real Swift. And both by TLS, to proxies of both.

use anyhow::{Context, Result, ensure};
use probe::cluster::{Cluster, SERVERS};
use probe::peer::{self, Peer, Process, script, success};
use probe::ports::free_ports;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, SendError, channel};

const PEERS: [Peer; 2] = [Peer::Martlet, Peer::Python];

#[test]
fn both_send_log_count_and_remember_the_same() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let daemon = Peer::Martlet.command(dir.path(), dir.path(), "swift-container-sync")?;
    let mut compare = script("container_sync.py")?;
    compare.arg(dir.path().join("scratch")).arg(daemon.get_program());
    println!("{}", success(&mut compare)?);
    Ok(())
}

/// A certificate or a key that `make.py` there has made.
fn golden(name: &str) -> String {
    format!("{}/../service/tests/golden/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A proxy that speaks TLS, of a cluster that has others.
struct TlsProxy {
    peer: Peer,
    certificate: &'static str,
    /// In the realm.
    name: String,
    port: u16,
    stdout: PathBuf,
}

impl TlsProxy {
    fn new(cluster: &Cluster, peer: Peer, certificate: &'static str) -> Result<TlsProxy> {
        let name = format!("{}-{certificate}", peer.name());
        let stdout = cluster.dir.join(format!("{name}.stdout"));
        Ok(TlsProxy { peer, certificate, name, port: free_ports(1)?[0], stdout })
    }

    fn start(&self, cluster: &Cluster) -> Result<Process> {
        let conf = self.stdout.with_extension("conf");
        let text = std::fs::read_to_string(&cluster.confs("proxy-server")?[0])?;
        let text = text.replacen(
            &format!("bind_port = {}\n", cluster.port),
            &format!(
                "bind_port = {}\ncert_file = {}\nkey_file = {}\n",
                self.port,
                golden(&format!("{}.pem", self.certificate)),
                golden("server.key")
            ),
            1,
        );
        ensure!(text.contains("cert_file"), "no bind_port in {text}");
        // Requests without a signature need their own timestamps.
        let filter = "use = egg:swift#gatekeeper\n";
        let text = text.replacen(filter, &format!("{filter}shunt_inbound_x_timestamp = false\n"), 1);
        std::fs::write(&conf, text)?;
        let mut command = cluster.command(self.peer, "swift-proxy-server")?;
        command.arg(&conf).stdin(Stdio::null()).stdout(File::create(&self.stdout)?);
        let process = Process::spawn(&self.name, &mut command)?;
        peer::wait_for(([127, 0, 0, 1], self.port).into())?;
        Ok(process)
    }
}

/// An HTTP proxy that knows CONNECT alone, and tells the heads that came.
fn connect_proxy() -> Result<(u16, Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (port, (tell, heads)) = (listener.local_addr()?.port(), channel());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || {
                if let Err(error) = pass_on(client, |head| tell.send(head)) {
                    // The test may have ended.
                    let _ = tell.send(error.to_string());
                }
            });
        }
    });
    Ok((port, heads))
}

/// Serves one client, and tells the head that it sent.
fn pass_on(mut client: TcpStream, tell: impl Fn(String) -> Result<(), SendError<String>>) -> Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?;
    let mut server = TcpStream::connect(head.split(' ').nth(1).context("no address")?)?;
    tell(head)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Write);
    });
    std::io::copy(&mut client, &mut server)?;
    server.shutdown(std::net::Shutdown::Write)?;
    Ok(())
}

/// A pass of container-sync on every node at once, by who trusts the certificate of a file alone.
fn sync(cluster: &Cluster, peer: Peer, trusted: &str, options: &str) -> Result<()> {
    let mut passes = Vec::new();
    for (node, conf) in cluster.confs("container-server")?.iter().enumerate() {
        let section = "[container-sync]\n";
        let text = std::fs::read_to_string(conf)?.replacen(section, &format!("{section}{options}"), 1);
        let conf = cluster.dir.join(format!("sync{node}.conf"));
        std::fs::write(&conf, text)?;
        let mut command = cluster.command(peer, "swift-container-sync")?;
        command.arg(conf).arg("once").stdout(Stdio::null());
        command.env("SSL_CERT_FILE", golden(trusted)).env("SSL_CERT_DIR", "/nonexistent");
        passes.push(Process::spawn(peer.name(), &mut command)?);
    }
    passes.iter_mut().try_for_each(Process::finish)
}

#[test]
fn both_send_by_tls_to_proxies_of_both_if_they_can_trust_them() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let _memcached = cluster.memcached()?;
    let mut proxies = Vec::new();
    for peer in PEERS {
        for certificate in ["server", "elsewhere"] {
            proxies.push(TlsProxy::new(&cluster, peer, certificate)?);
        }
    }
    let clusters: String = proxies
        .iter()
        .map(|proxy| format!("cluster_{} = https://localhost:{}/v1/\n", proxy.name, proxy.port))
        .collect();
    std::fs::write(
        cluster.dir.join("etc/container-sync-realms.conf"),
        format!("[tls]\nkey = k\n{clusters}"),
    )?;
    for server in SERVERS {
        cluster.start(Peer::Martlet, server)?;
    }
    let running = proxies.iter().map(|proxy| proxy.start(&cluster)).collect::<Result<Vec<_>>>()?;
    for peer in PEERS {
        send(&cluster, &proxies, peer, temp.path())?;
    }
    for proxy in &proxies {
        let said = std::fs::read_to_string(&proxy.stdout)?;
        ensure!(
            said.starts_with("WARNING: SSL should only be enabled for testing"),
            "{}: {said}",
            proxy.name
        );
    }
    drop(running);
    Ok(())
}

/// Lets the daemon of one peer send to all proxies.
fn send(cluster: &Cluster, proxies: &[TlsProxy], peer: Peer, dir: &Path) -> Result<()> {
    let body = "some megabytes ".repeat(100_000);
    std::fs::write(dir.join("o"), &body)?;
    std::fs::write(dir.join("p"), &body)?;
    let mut containers = Vec::new();
    for proxy in proxies {
        // By a realm to the peer's own proxies, else by a URL. Any HEAD must be allowed that is not signed.
        let (host, to) = match proxy.peer == peer {
            true => ("localhost", format!("//tls/{}/AUTH_test", proxy.name)),
            false => ("127.0.0.1", format!("https://127.0.0.1:{}/v1/AUTH_test", proxy.port)),
        };
        let here = format!("{}-{}", peer.name(), proxy.name);
        let there = format!("{here}-there");
        cluster.client(dir, &["post", "-k", "key", "-r", ".r:*", &there])?;
        cluster.client(dir, &["post", "-k", "key", "-t", &format!("{to}/{there}"), &here])?;
        cluster.client(dir, &["upload", "-q", &here, "o"])?;
        containers.push((here, there, proxy, host));
    }
    let arrived = |object: &str| -> Result<Vec<bool>> {
        let mut found = Vec::new();
        for (_, there, ..) in &containers {
            let listing = cluster.client(dir, &["list", there])?;
            found.push(listing.lines().any(|line| line == object));
            if found.ends_with(&[true]) {
                let got = cluster.client(dir, &["download", "-o", "-", there, object])?;
                ensure!(got == body, "{there}: {object} came as {} bytes", got.len());
            }
        }
        Ok(found)
    };
    let none = vec![false; containers.len()];
    let trusted: Vec<bool> =
        containers.iter().map(|(_, _, proxy, _)| proxy.certificate == "server").collect();
    sync(cluster, peer, "elsewhere.pem", "")?;
    ensure!(arrived("o")? == none, "{}: objects were sent to who is not trusted", peer.name());
    sync(cluster, peer, "root.pem", "")?;
    let found = arrived("o")?;
    ensure!(found == trusted, "{}: {found:?} have come, not {trusted:?}", peer.name());

    let (port, heads) = connect_proxy()?;
    for (here, ..) in &containers {
        cluster.client(dir, &["upload", "-q", here, "p"])?;
    }
    sync(cluster, peer, "root.pem", &format!("sync_proxy = http://127.0.0.1:{port}\n"))?;
    let found = arrived("p")?;
    ensure!(found == trusted, "{}: {found:?} have come through a proxy, not {trusted:?}", peer.name());
    let heads: Vec<String> = heads.try_iter().collect();
    for (_, _, proxy, host) in &containers {
        let asked = format!("CONNECT {host}:{} HTTP/1.", proxy.port);
        ensure!(
            heads.iter().any(|head| head.starts_with(&asked)),
            "{}: no {asked} in {heads:?}",
            peer.name()
        );
    }
    Ok(())
}
