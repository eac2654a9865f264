//! `cargo xtask bench db`: container databases, their server and their replicator.
//!
//! ```text
//! db-pass      a pass of the container-replicator over 1,000 databases of 10 rows that are in sync with a partner: `once`, with a
//!              server that has seen them before, and of a daemon that goes on
//! db-usync     a pass over one database of 200,000 rows, of which the partner lacks the later 100,000
//! db-listing   10,000 rows out of 1,000,000, as objects and as subdirs of 100 objects each
//! db-updates   rows of objects PUT into one container by 32 connections
//! db-memory    resident memory of a server before and after 2,000 databases were listed by 16 connections
//! ```
//!
//! `db` is all of them. Passes are measured as those of `ssync` are: both ends together, the start of the program taken off. A listing is
//! told for one request of a lone connection, updates for 1,000 rows. The peers take turns, each row several times, and the median by
//! CPU is printed. Both have databases with the same rows; what they answered, stored or synced is counted.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::config::SwiftConf;
use common::fs::SETTLED;
use common::{Clock, Timestamp};
use db::broker::{Options, Shared};
use db::connections::IDLE_CONNECTIONS;
use db::container::broker::{ContainerBroker, DATADIR};
use db::container::rows::ObjectRecord;
use db::replication::Replicated;
use probe::load::{self, Until, Work};
use probe::peer::{self, Peer, Process};

use crate::Cli;
use crate::nodes::{Nodes, PART_POWER, SECRET};
use crate::pass::{Pass, print_head, print_row};

const TURNS: usize = 3;
/// Seconds between passes of a daemon.
const INTERVAL: u32 = 6;
/// Of a daemon: in these it sees databases for the first time, and changes them, or sees them too soon after they were changed.
const FIRST_PASSES: usize = 3;
const ACCOUNT: &str = "AUTH_bench";
/// Rows that are merged at a time while a database is made.
const MERGED: usize = 10_000;
/// Rows of each of many databases.
const FEW: usize = 10;
/// Objects below one name of a large container.
const BELOW: usize = 100;
const LISTED: usize = 10_000;

/// The rows of a name that `tables` may have: `db`, or `db-` and one of them.
pub async fn table(cli: &Cli, peers: &[Peer], dir: &Path, name: &str) -> Result<()> {
    let bench = Bench { cli, peers, dir, conf: SwiftConf::parse(SECRET.as_bytes(), "swift.conf", dir)? };
    print_head("container databases");
    let wanted = |row: &str| name == "db" || name == row;
    let known = ["db-pass", "db-usync", "db-listing", "db-updates", "db-memory"];
    ensure!(known.into_iter().any(wanted), "{name}: expected db, {}", known.join(", "));
    if wanted("db-pass") {
        bench.passes()?;
    }
    if wanted("db-usync") {
        bench.usync()?;
    }
    if wanted("db-listing") {
        bench.listings().await?;
    }
    if wanted("db-updates") {
        bench.updates().await?;
    }
    if wanted("db-memory") {
        bench.memory().await?;
    }
    Ok(())
}

struct Bench<'a> {
    cli: &'a Cli,
    peers: &'a [Peer],
    dir: &'a Path,
    conf: SwiftConf,
}

impl Bench<'_> {
    fn scaled(&self, count: usize) -> usize {
        ((count as f64 * self.cli.scale) as usize).max(FEW)
    }

    fn nodes(&self) -> Result<Vec<Nodes>> {
        let options = |_: &[u16]| {
            format!(
                "databases_per_second = 0\nmax_diffs = 100000\nnode_timeout = 120\ninterval = {INTERVAL}\n"
            )
        };
        self.peers.iter().map(|peer| Nodes::new(*peer, self.dir, "container", options)).collect()
    }

    /// `DEVICE/containers/PARTITION/SUFFIX/HASH/HASH.db`, and the path of a request to it.
    fn place(&self, device: &Path, container: &str) -> (PathBuf, String) {
        let hash = self.conf.hash.hash_path(ACCOUNT, Some(container), None);
        let (partition, name) = (hash.partition(PART_POWER), hash.to_string());
        let below = format!("{DATADIR}/{partition}/{}/{name}/{name}.db", &name[name.len() - 3..]);
        let drive = device.file_name().unwrap_or_default().to_string_lossy();
        (device.join(below), format!("/{drive}/{partition}/{ACCOUNT}/{container}"))
    }

    fn broker(&self, device: &Path, container: &str) -> ContainerBroker {
        let shared = Shared::new(Clock::system(), |line| eprintln!("{line}"));
        ContainerBroker::new(&shared, &self.place(device, container).0, Options::default())
    }

    /// A new container with so many rows.
    fn container(&self, device: &Path, name: &str, rows: usize) -> Result<ContainerBroker> {
        let mut broker = self.broker(device, name);
        broker.initialize(ACCOUNT, name, &put_at(0), 0)?;
        add_rows(&mut broker, 0, rows)?;
        Ok(broker)
    }

    fn passes(&self) -> Result<()> {
        let (nodes, count) = (self.nodes()?, self.scaled(1000));
        let starts = starts(&nodes)?;
        for n in 0..count {
            for node in 0..2 {
                self.container(&nodes[0].device(node), &format!("c{n}"), FEW)?;
            }
        }
        share(&nodes)?;
        let measured = turns(&nodes, |at, nodes| {
            let server = nodes.server(1)?;
            // The first pass merges timestamps, and remembers that all hashes are equal; in the second the server sees so.
            for _ in 0..2 {
                nodes.pass(&server)?;
                std::thread::sleep(SETTLED);
            }
            Ok(nodes.pass(&server)?.without(starts[at]))
        })?;
        print_row(&format!("a pass over {count} databases in sync, once"), &measured);
        let mut passes = Vec::new();
        for nodes in &nodes {
            passes.push(nodes.passes(&nodes.server(1)?, FIRST_PASSES, TURNS)?);
        }
        let turns = (0..TURNS).map(|turn| passes.iter().map(|passes| passes[turn]).collect()).collect();
        print_row(&format!("a pass over {count} databases in sync, of a daemon"), &median(turns));
        remove(&nodes)
    }

    fn usync(&self) -> Result<()> {
        let (nodes, count) = (self.nodes()?, self.scaled(100_000));
        let starts = starts(&nodes)?;
        let mut turn = 0;
        let measured = turns(&nodes, |at, nodes| {
            let name = format!("c{turn}");
            turn += 1;
            let mut sender = self.container(&nodes.device(0), &name, count)?;
            let mut receiver = self.container(&nodes.device(1), &name, count)?;
            let server = nodes.server(1)?;
            // Both learn that they are alike so far.
            nodes.pass(&server)?;
            add_rows(&mut sender, count, 2 * count)?;
            settle()?;
            let measured = nodes.pass(&server)?.without(starts[at]);
            let (sent, got) = (sender.info()?, receiver.info()?);
            let same = got.hash == sent.hash && got.object_count == 2 * count as i64;
            ensure!(same, "{}: {} of {} rows", nodes.peer.name(), got.object_count, 2 * count);
            Ok(measured)
        })?;
        print_row(&format!("usync of {count} rows"), &measured);
        remove(&nodes)
    }

    async fn listings(&self) -> Result<()> {
        let (nodes, count) = (self.nodes()?, self.scaled(1_000_000));
        self.container(&nodes[0].device(0), "c", count)?;
        share(&nodes)?;
        let servers = nodes.iter().map(|nodes| nodes.server(0)).collect::<Result<Vec<_>>>()?;
        let listed = LISTED.min(count / BELOW);
        for (title, query) in [("rows", ""), ("subdirs", "&delimiter=/")] {
            // Markers go round, so that a listing begins anywhere; with a delimiter everything is one listing.
            let markers: Vec<String> = match query {
                "" => (0..7).map(|n| name_of(n * (count - listed) / 7)).collect(),
                _ => vec![String::new()],
            };
            let mut measured = Vec::new();
            for _ in 0..TURNS {
                let mut turn = Vec::new();
                for (nodes, server) in nodes.iter().zip(&servers) {
                    let path = self.place(&nodes.device(0), "c").1;
                    let head = |n: usize| {
                        let marker = &markers[n % markers.len()];
                        let query = format!("format=json&limit={listed}&marker={marker}{query}");
                        format!("GET {path}?{query} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n")
                    };
                    let until = Until::Elapsed(std::time::Duration::from_secs_f64(self.cli.seconds));
                    turn.push(requests(nodes, server, 0, 1, until, &head, 200).await?.each(1));
                }
                measured.push(turn);
            }
            print_row(&format!("a listing of {listed} {title} out of {count}"), &median(measured));
        }
        drop(servers);
        remove(&nodes)
    }

    async fn updates(&self) -> Result<()> {
        let nodes = self.nodes()?;
        let mut servers = Vec::new();
        for nodes in &nodes {
            self.container(&nodes.device(0), "c", 0)?;
            servers.push(nodes.server(0)?);
        }
        let clock = Clock::system();
        let mut measured = Vec::new();
        let mut stored = vec![0; nodes.len()];
        for _ in 0..TURNS {
            let mut turn = Vec::new();
            for (at, (nodes, server)) in nodes.iter().zip(&servers).enumerate() {
                let path = self.place(&nodes.device(0), "c").1;
                let first = stored[at];
                let head = |n: usize| {
                    format!(
                        "PUT {path}/{} HTTP/1.1\r\nHost: bench\r\nX-Timestamp: {}\r\nX-Size: 4096\r\n\
                         X-Content-Type: application/octet-stream\r\nX-Etag: 0123456789abcdef0123456789abcdef\r\n\
                         X-Backend-Storage-Policy-Index: 0\r\nContent-Length: 0\r\n\r\n",
                        name_of(first + n),
                        clock.now().internal()
                    )
                };
                let until = Until::Elapsed(std::time::Duration::from_secs_f64(self.cli.seconds));
                let load = requests(nodes, server, 0, 32, until, &head, 201).await?;
                stored[at] += load.requests;
                turn.push(load.each(1000));
            }
            measured.push(turn);
        }
        for (nodes, stored) in nodes.iter().zip(stored) {
            let count = self.broker(&nodes.device(0), "c").info()?.object_count;
            ensure!(count == stored as i64, "{}: {count} of {stored} rows", nodes.peer.name());
        }
        print_row("1000 rows PUT into one container, concurrency 32", &median(measured));
        drop(servers);
        remove(&nodes)
    }

    async fn memory(&self) -> Result<()> {
        let (nodes, count) = (self.nodes()?, self.scaled(2000));
        for n in 0..count {
            self.container(&nodes[0].device(0), &format!("c{n}"), FEW)?;
        }
        share(&nodes)?;
        for nodes in &nodes {
            let paths: Vec<String> =
                (0..count).map(|n| self.place(&nodes.device(0), &format!("c{n}")).1).collect();
            let server = nodes.server(0)?;
            let head = |n: usize| {
                format!(
                    "GET {}?format=json HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n",
                    paths[n % count]
                )
            };
            requests(nodes, &server, 0, 16, Until::Count(FEW), &head, 200).await?;
            let before = load::resident_bytes(&[server.pid()]) as f64 / 1e6;
            requests(nodes, &server, 0, 16, Until::Count(2 * count), &head, 200).await?;
            let after = load::resident_bytes(&[server.pid()]) as f64 / 1e6;
            let open = load::open_files(&[server.pid()], ".db");
            println!(
                "{:>8}: {after:.1} MB after requests for {count} databases, {before:.1} MB before; {open} files open \
                 (ours keeps {IDLE_CONNECTIONS})",
                nodes.peer.name()
            );
        }
        remove(&nodes)
    }
}

/// Requests of one kind, and what they cost the server.
struct Load {
    requests: usize,
    pass: Pass,
}

impl Load {
    /// For so many requests.
    fn each(&self, count: usize) -> Pass {
        let share = count as f64 / self.requests as f64;
        Pass { wall: self.pass.wall * share, cpu: self.pass.cpu * share }
    }
}

async fn requests(
    nodes: &Nodes,
    server: &Process,
    node: usize,
    concurrency: usize,
    until: Until,
    head: &dyn Fn(usize) -> String,
    expect: u16,
) -> Result<Load> {
    let addr = nodes.addr(node);
    let work = Work { addr, head, body: b"", answer_has_body: true, expect, concurrency, until };
    let before = load::cpu_seconds(&[server.pid()]);
    let outcome = load::run(work).await.with_context(|| nodes.peer.name())?;
    let cpu = load::cpu_seconds(&[server.pid()]) - before;
    ensure!(
        outcome.failures == 0,
        "{}: {} of {} failed",
        nodes.peer.name(),
        outcome.failures,
        outcome.requests
    );
    Ok(Load { requests: outcome.requests, pass: Pass { wall: outcome.seconds, cpu } })
}

fn put_at(n: usize) -> String {
    Timestamp::from_secs_f64(1_700_000_000.0 + n as f64 / 100.0).internal()
}

/// Names in their order, a hundred below each directory.
fn name_of(n: usize) -> String {
    format!("d{:06}/o{:02}", n / BELOW, n % BELOW)
}

fn add_rows(broker: &mut ContainerBroker, from: usize, to: usize) -> Result<()> {
    let record = |n: usize| ObjectRecord {
        name: name_of(n),
        created_at: put_at(n),
        size: n as i64,
        content_type: "application/octet-stream".into(),
        etag: format!("{n:032x}"),
        ..ObjectRecord::default()
    };
    for first in (from..to).step_by(MERGED) {
        broker.merge_items((first..to.min(first + MERGED)).map(record).collect())?;
    }
    broker.db().close();
    Ok(())
}

/// Give all nodes the databases that the first peer's have.
fn share(nodes: &[Nodes]) -> Result<()> {
    for other in &nodes[1..] {
        for node in 0..2 {
            let (from, to) = (nodes[0].device(node).join("."), other.device(node));
            peer::success(Command::new("cp").args(["-a", "--"]).args([from, to]))?;
        }
    }
    settle()
}

/// What has been made is written back now, not while something is measured.
fn settle() -> Result<()> {
    peer::success(&mut Command::new("sync")).map(drop)
}

/// What a pass costs each that finds no database.
fn starts(nodes: &[Nodes]) -> Result<Vec<Pass>> {
    nodes.iter().map(|nodes| nodes.pass(&nodes.server(1)?)).collect()
}

fn remove(nodes: &[Nodes]) -> Result<()> {
    nodes.iter().try_for_each(|nodes| {
        std::fs::remove_dir_all(&nodes.dir).with_context(|| format!("cannot remove {}", nodes.dir.display()))
    })
}

/// Every peer in turn, several times.
fn turns(nodes: &[Nodes], mut measure: impl FnMut(usize, &Nodes) -> Result<Pass>) -> Result<Vec<Pass>> {
    let mut measured = Vec::new();
    for _ in 0..TURNS {
        measured.push(nodes.iter().enumerate().map(|(at, n)| measure(at, n)).collect::<Result<Vec<_>>>()?);
    }
    Ok(median(measured))
}

/// Of each peer the pass in the middle by CPU.
fn median(turns: Vec<Vec<Pass>>) -> Vec<Pass> {
    let peers = turns.first().map_or(0, Vec::len);
    let middle = |at: usize| {
        let mut passes: Vec<Pass> = turns.iter().map(|turn| turn[at]).collect();
        passes.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        passes[passes.len() / 2]
    };
    (0..peers).map(middle).collect()
}
