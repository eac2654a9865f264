//! Objects of an erasure coded policy: proxies and object servers of either implementation, in one cluster, and each on
//! the other's disks. What a client sees of any mix is what it sees of Python's alone.

use anyhow::{Context, Result, ensure};
use probe::cluster::{Cluster, SERVERS};
use probe::peer::{self, Peer};

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
fn expected() -> Result<String> {
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let _memcached = cluster.memcached()?;
    start(&mut cluster, Peer::Python, Peer::Python)?;
    client(&cluster, "write")
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
fn store_then_serve(first: (Peer, Peer), second: (Peer, Peer), expected: &str) -> Result<()> {
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

/// With a node down, two of six fragments of each object are gone, and two handoffs stand in for them.
#[test]
fn a_node_may_be_down() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let _memcached = cluster.memcached()?;
    start(&mut cluster, Peer::Martlet, Peer::Martlet)?;
    let before = client(&cluster, "write")?;
    cluster.stop_node("object-server", 1)?;
    let after = client(&cluster, "degraded")?;
    let reads = before.lines().skip_while(|line| !line.starts_with("GET /ec/object-0 []"));
    for (found, expected) in after.lines().zip(reads) {
        ensure!(found == expected, "the client sees\n{found}\nand before, with all nodes\n{expected}");
    }
    let stored = after.lines().filter(|line| line.starts_with("PUT ") && line.contains(" 201 ")).count();
    ensure!(stored == 8, "{stored} of 8 objects stored with a node down");
    Ok(())
}

/// One test, as each would ask Python first.
#[test]
fn a_client_cannot_tell_which_programs_serve_it() -> Result<()> {
    let expected = expected()?;
    let (m, p) = (Peer::Martlet, Peer::Python);
    for (first, second) in [((p, m), (p, p)), ((m, m), (p, p)), ((m, p), (m, m))] {
        let what = || format!("servers and proxy {first:?}, then {second:?}");
        store_then_serve(first, second, &expected).with_context(what)?;
    }
    Ok(())
}
