//! Mixed clusters and each other's disks: whatever one implementation stored, the other serves, and neither finds fault.

use anyhow::{Context, Result, ensure};
use probe::cluster::{Cluster, SERVERS};
use probe::peer::{self, Peer};
use std::path::Path;

/// Relative names and contents: empty, non-ASCII, and one above the segment size used below.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> =
        (0..60).map(|i| (format!("dir-{}/file {i}", i % 3), vec![i as u8; i * 101])).collect();
    files.push(("räksmörgås/日本語".into(), b"non-ASCII".to_vec()));
    files.push(("empty".into(), Vec::new()));
    files.push((
        "large".into(),
        (0..1_500_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
    ));
    files
}

fn write_files(dir: &Path) -> Result<()> {
    for (name, contents) in files() {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        std::fs::write(path, contents)?;
    }
    Ok(())
}

/// Uploads everything, overwrites, deletes and posts something.
fn store(cluster: &Cluster, dir: &Path) -> Result<()> {
    write_files(dir)?;
    cluster.client(dir, &["upload", "-q", "--segment-size", "1000000", "c", "."])?;
    std::fs::write(dir.join("dir-0/file 0"), b"overwritten")?;
    cluster.client(dir, &["upload", "-q", "c", "dir-0/file 0"])?;
    cluster.client(dir, &["delete", "c", "dir-1/file 1"])?;
    std::fs::remove_file(dir.join("dir-1/file 1"))?;
    cluster.client(dir, &["post", "-m", "Colour:röd", "c", "dir-2/file 2"])?;
    Ok(())
}

/// Lists and downloads everything and compares with what was stored.
fn read_back(cluster: &Cluster, dir: &Path, into: &Path) -> Result<()> {
    let mut names: Vec<String> = files().into_iter().map(|f| f.0).filter(|n| n != "dir-1/file 1").collect();
    names.sort();
    let listing = cluster.client(dir, &["list", "c"])?;
    ensure!(listing.lines().eq(names.iter().map(String::as_str)), "the listing is wrong:\n{listing}");
    let stat = cluster.client(dir, &["stat", "c", "dir-2/file 2"])?;
    ensure!(stat.contains("Meta Colour: röd"), "posted metadata is lost:\n{stat}");
    std::fs::create_dir_all(into)?;
    cluster.client(dir, &["download", "-q", "-D", &into.to_string_lossy(), "c"])?;
    for name in &names {
        let (stored, read) = (std::fs::read(dir.join(name))?, std::fs::read(into.join(name)));
        ensure!(
            read.as_ref().is_ok_and(|r| *r == stored),
            "{name} came back changed: {:?}",
            read.map(|r| r.len())
        );
    }
    Ok(())
}

fn start_servers(cluster: &mut Cluster, storage: Peer, proxy: Peer) -> Result<()> {
    for server in SERVERS {
        cluster.start(if server == "proxy-server" { proxy } else { storage }, server)?;
    }
    Ok(())
}

/// Stores with one set of programs, stops them all, and reads back with another on the same disks.
fn store_then_serve(first: (Peer, Peer), second: (Peer, Peer)) -> Result<()> {
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let _memcached = cluster.memcached()?;
    let source = temp.path().join("source");
    start_servers(&mut cluster, first.0, first.1)?;
    store(&cluster, &source)?;
    read_back(&cluster, &source, &temp.path().join("first"))?;
    run_daemons(&cluster, first.0)?;
    cluster.stop_all()?;
    compare_hashes(&cluster)?;
    start_servers(&mut cluster, second.0, second.1)?;
    read_back(&cluster, &source, &temp.path().join("second"))?;
    run_daemons(&cluster, second.0)?;
    cluster.stop_all()?;
    compare_hashes(&cluster)?;
    let errors = cluster.syslog.errors();
    ensure!(errors.is_empty(), "errors were logged:\n{}", errors.join("\n"));
    Ok(())
}

/// One pass of every daemon, against the servers of the same implementation.
fn run_daemons(cluster: &Cluster, peer: Peer) -> Result<()> {
    for daemon in ["object-updater", "container-updater", "object-replicator"] {
        cluster.once(peer, daemon)?;
    }
    Ok(())
}

/// Python's get_hashes must equal what the disks say already, and find nothing to quarantine.
fn compare_hashes(cluster: &Cluster) -> Result<()> {
    for conf in cluster.confs("object-server")? {
        println!("{}", peer::success(peer::script("hashes.py")?.arg(&conf))?);
    }
    Ok(())
}

#[test]
fn python_serves_the_disks_that_martlet_wrote() -> Result<()> {
    store_then_serve((Peer::Martlet, Peer::Martlet), (Peer::Python, Peer::Python))
}

#[test]
fn martlet_serves_the_disks_that_python_wrote() -> Result<()> {
    store_then_serve((Peer::Python, Peer::Python), (Peer::Martlet, Peer::Martlet))
}

#[test]
fn a_python_proxy_works_with_martlet_servers_and_the_other_way_around() -> Result<()> {
    store_then_serve((Peer::Martlet, Peer::Python), (Peer::Python, Peer::Martlet))
}

/// Two nodes of each implementation, of which one is killed and returns; `peer/mixed_nodes.py` has a description.
fn four_nodes_heal(method: &str, killed: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut check = peer::script("mixed_nodes.py")?;
    check.args([method, killed, "1"]);
    for program in ["swift-object-server", "swift-object-replicator"] {
        check.arg(Peer::Martlet.command(dir.path(), dir.path(), program)?.get_program());
    }
    println!("{}", peer::success(&mut check)?);
    Ok(())
}

#[test]
fn two_nodes_of_each_heal_by_ssync_after_one_of_martlets_was_killed() -> Result<()> {
    four_nodes_heal("ssync", "3")
}

#[test]
fn two_nodes_of_each_heal_by_ssync_after_one_of_swifts_was_killed() -> Result<()> {
    four_nodes_heal("ssync", "0")
}

#[test]
fn two_nodes_of_each_heal_by_rsync_after_one_was_killed() -> Result<()> {
    four_nodes_heal("rsync", "2")
}
