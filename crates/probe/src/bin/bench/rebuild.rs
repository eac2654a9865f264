//! `cargo xtask bench rebuild`: passes of the object-reconstructors of a cluster that has lost a device.
//!
//! Four nodes of two devices hold objects of 1 MiB, erasure coded 4+2. The fragments of one device are removed; then each
//! node's reconstructor makes a pass (`once`), all at the same time, and again until every fragment is where it was: a server
//! turns sessions away when it has several. The passes after that find nothing to do. Both implementations work on the same
//! disks, with object servers of their own. CPU is that of the reconstructors and of all object servers; passes over no
//! device, which are the start of the programs, are taken off it, and off the wall time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use probe::cluster::{Cluster, SERVERS, listening};
use probe::load::{self, Until, Work};
use probe::peer::{self, Peer, Process};

use crate::MEDIUM;
use crate::pass::{Pass, children_cpu, print_head, print_row};

/// Quiet passes; the median counts.
const QUIET: usize = 3;
/// After so many something is wrong.
const MAX_PASSES: usize = 6;

pub async fn table(peers: &[Peer], objects: usize, part_power: u32, dir: &Path) -> Result<()> {
    print_head(&format!(
        "reconstructors of four nodes, erasure coded 4+2, part power {part_power}, start of the programs taken off"
    ));
    let mut cluster = Cluster::prepare_with(dir, &["--part-power", &part_power.to_string()])?;
    store(&mut cluster, objects, dir).await?;
    let whole = fragments(&cluster.dir)?;
    ensure!(whole.len() == 6 * objects, "{} fragments of {objects} objects", whole.len());
    let device = device_of(whole.first().context("no object is stored")?)?;
    let lost = whole.iter().filter(|path| path.starts_with(&device)).count();
    let (mut rebuilds, mut quiets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for &peer in peers {
        cluster.start(peer, "object-server")?;
        let start = pass(&cluster, peer, &["--devices=none"])?;
        // What has been stored is hashed: a device that fails has mostly been in use for long.
        pass(&cluster, peer, &[])?;
        std::fs::remove_dir_all(&device).with_context(|| format!("cannot remove {}", device.display()))?;
        // What has been written is written back now, not during the pass.
        peer::success(&mut Command::new("sync"))?;
        let (mut rebuild, mut passes) = (Pass { wall: 0.0, cpu: 0.0 }, 0);
        loop {
            rebuild = rebuild.and(pass(&cluster, peer, &[])?.without(start));
            passes += 1;
            let missing = whole.difference(&fragments(&cluster.dir)?).count();
            if missing == 0 {
                break;
            }
            let errors = || cluster.syslog.errors().join("\n");
            let name = peer.name();
            ensure!(
                passes < MAX_PASSES,
                "{name}: {missing} of {lost} fragments are not rebuilt\n{}",
                errors()
            );
        }
        rebuilds.push(rebuild);
        counts.push(passes.to_string());
        let mut quiet = (0..QUIET).map(|_| pass(&cluster, peer, &[])).collect::<Result<Vec<_>>>()?;
        quiet.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        quiets.push(quiet[QUIET / 2].without(start));
        cluster.stop_all()?;
    }
    let title = format!("{lost} of {objects} objects of 1 MiB lack a fragment");
    print_row(&title, &rebuilds);
    println!("passes that it took: {}", counts.join(" | "));
    print_row("nothing to rebuild", &quiets);
    Ok(())
}

/// Puts the objects through a proxy, and stops everything.
async fn store(cluster: &mut Cluster, objects: usize, dir: &Path) -> Result<()> {
    for server in SERVERS {
        cluster.start(Peer::Martlet, server)?;
    }
    cluster.client(dir, &["post", "-H", "X-Storage-Policy: erasure", "bench"])?;
    let token = cluster.token(dir)?;
    let body: Vec<u8> = (0..MEDIUM).map(|n| (n % 251) as u8).collect();
    let work = Work {
        addr: listening(&cluster.confs("proxy-server")?[0])?,
        head: &|n| {
            format!(
                "PUT /v1/AUTH_test/bench/o{n} HTTP/1.1\r\nHost: bench\r\nX-Auth-Token: {token}\r\n\
                 Content-Length: {MEDIUM}\r\n\r\n"
            )
        },
        body: &body,
        answer_has_body: true,
        expect: 201,
        concurrency: 4,
        until: Until::Count(objects),
    };
    let outcome = load::run(work).await.context("cannot store the objects")?;
    ensure!(outcome.failures == 0, "{} PUTs failed", outcome.failures);
    cluster.stop_all()
}

/// One pass on all nodes at the same time.
fn pass(cluster: &Cluster, peer: Peer, args: &[&str]) -> Result<Pass> {
    let (servers, children) = (load::cpu_seconds(&cluster.pids()), children_cpu()?);
    let start = Instant::now();
    let mut running = Vec::new();
    for conf in cluster.confs("object-server")? {
        let mut command = cluster.command(peer, "swift-object-reconstructor")?;
        command.arg(&conf).arg("once").args(args).stdin(Stdio::null()).stdout(Stdio::null());
        running.push(Process::spawn(&format!("{} {}", peer.name(), conf.display()), &mut command)?);
    }
    for process in &mut running {
        process.finish()?;
    }
    let wall = start.elapsed().as_secs_f64();
    let cpu = load::cpu_seconds(&cluster.pids()) - servers + children_cpu()? - children;
    Ok(Pass { wall, cpu })
}

/// All durable fragments.
fn fragments(data: &Path) -> Result<BTreeSet<PathBuf>> {
    let found = peer::success(Command::new("find").arg(data).args(["-name", "*#d.data"]))?;
    Ok(found.lines().map(PathBuf::from).collect())
}

/// The folder that has a device's fragments.
fn device_of(fragment: &Path) -> Result<PathBuf> {
    let device = fragment.ancestors().nth(4).context("a fragment is below a partition")?;
    Ok(device.to_owned())
}
