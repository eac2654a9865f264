//! The object-expirer: each implementation's drains what the other one's servers have queued.

use anyhow::{Context, Result, ensure};
use probe::cluster::{Cluster, SERVERS};
use probe::peer::{Peer, script, success};

fn expirer_py(command: &str, cluster: &Cluster) -> Result<String> {
    let mut check = script("expirer.py")?;
    check.arg(command).arg(&cluster.dir).arg(cluster.port.to_string());
    success(&mut check).with_context(|| format!("expirer.py {command}"))
}

/// Objects put through the servers of one implementation, deleted by the expirer of the other.
fn drain(servers: Peer, expirer: Peer) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(dir.path())?;
    let _memcached = cluster.memcached()?;
    for server in SERVERS {
        cluster.start(servers, server)?;
    }
    expirer_py("fill", &cluster)?;
    // Old tasks of what was written anew are removed by updaters.
    cluster.once(servers, "object-updater")?;
    cluster.once(servers, "container-updater")?;
    // The second pass finds task containers empty.
    for _ in 0..2 {
        cluster.once(expirer, "object-expirer")?;
        cluster.once(servers, "container-updater")?;
    }
    println!("{}", expirer_py("check", &cluster)?);
    cluster.stop_all()
}

/// `tasks_per_second` holds for the whole pass of a process, however many tasks it does at a time.
fn keep_pace(expirer: Peer) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(dir.path())?;
    let conf = cluster.confs("object-expirer")?.remove(0);
    let text = std::fs::read_to_string(&conf)?;
    let section = "[object-expirer]\n";
    ensure!(text.contains(section), "no {section}");
    let options = format!("{section}tasks_per_second = 5\nconcurrency = 8\n");
    std::fs::write(&conf, text.replacen(section, &options, 1))?;
    let _memcached = cluster.memcached()?;
    for server in SERVERS {
        cluster.start(Peer::Martlet, server)?;
    }
    expirer_py("crowd", &cluster)?;
    // The account is told of the queue's containers.
    cluster.once(Peer::Martlet, "container-updater")?;
    cluster.once(expirer, "object-expirer")?;
    println!("{}", expirer_py("paced", &cluster)?);
    cluster.stop_all()
}

#[test]
fn martlets_expirer_keeps_its_pace() -> Result<()> {
    keep_pace(Peer::Martlet)
}

#[test]
fn swifts_expirer_keeps_the_same_pace() -> Result<()> {
    keep_pace(Peer::Python)
}

#[test]
fn martlets_expirer_drains_what_swifts_servers_have_queued() -> Result<()> {
    drain(Peer::Python, Peer::Martlet)
}

#[test]
fn swifts_expirer_drains_what_martlets_servers_have_queued() -> Result<()> {
    drain(Peer::Martlet, Peer::Python)
}
