//! Objects of an erasure coded policy: proxies and object servers of either implementation, in one cluster, and each on
//! the other's disks. What a client sees of any mix is what it sees of Python's alone.

use anyhow::{Context, Result, ensure};
use probe::cluster::{Cluster, SERVERS};
use probe::peer::{self, Peer};
use std::sync::OnceLock;

fn client(cluster: &Cluster, step: &str) -> Result<String> {
    let mut script = peer::script("ec_client.py")?;
    peer::success(script.args([&cluster.port.to_string(), step]))
}

fn start(cluster: &mut Cluster, storage: Peer, proxy: Peer) -> Result<()> {
    for server in SERVERS {
        cluster.start(if server == "proxy-server" { proxy } else { storage }, server)?;
    }
    Ok(())
}

/// What a client sees of a cluster that is all Python's.
fn expected() -> Result<&'static str> {
    static EXPECTED: OnceLock<String> = OnceLock::new();
    if let Some(known) = EXPECTED.get() {
        return Ok(known);
    }
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let _memcached = cluster.memcached()?;
    start(&mut cluster, Peer::Python, Peer::Python)?;
    let seen = client(&cluster, "write")?;
    Ok(EXPECTED.get_or_init(|| seen))
}

/// The first line that differs.
fn compare(found: &str, expected: &str) -> Result<()> {
    for (found, expected) in found.lines().zip(expected.lines()) {
        ensure!(found == expected, "the client sees\n{found}\nand with Python\n{expected}");
    }
    let (found, expected) = (found.lines().count(), expected.lines().count());
    ensure!(found == expected, "{found} answers, and {expected} with Python");
    Ok(())
}

/// Stores and reads with some programs, then reads with others on the same disks.
fn store_then_serve(first: (Peer, Peer), second: (Peer, Peer)) -> Result<()> {
    let expected = expected()?;
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let _memcached = cluster.memcached()?;
    start(&mut cluster, first.0, first.1)?;
    compare(&client(&cluster, "write")?, expected)?;
    cluster.stop_all()?;
    start(&mut cluster, second.0, second.1)?;
    let reads = expected.lines().skip_while(|line| !line.starts_with("GET /ec/object-0 []"));
    let reads: String = reads.map(|line| format!("{line}\n")).collect();
    compare(&client(&cluster, "read")?, &reads).context("on disks that others have written")?;
    cluster.stop_all()?;
    let errors = cluster.syslog.errors();
    ensure!(errors.is_empty(), "errors were logged:\n{}", errors.join("\n"));
    Ok(())
}

#[test]
fn a_martlet_proxy_works_with_python_servers_and_a_python_proxy_on_their_disks() -> Result<()> {
    store_then_serve((Peer::Python, Peer::Martlet), (Peer::Python, Peer::Python))
}

#[test]
fn martlet_works_alone_and_python_on_its_disks() -> Result<()> {
    store_then_serve((Peer::Martlet, Peer::Martlet), (Peer::Python, Peer::Python))
}

#[test]
fn a_python_proxy_works_with_martlet_servers_and_a_martlet_proxy_on_their_disks() -> Result<()> {
    store_then_serve((Peer::Martlet, Peer::Python), (Peer::Martlet, Peer::Martlet))
}
