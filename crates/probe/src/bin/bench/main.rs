//! `cargo xtask bench`: Martlet and real Swift in turn, on the same configuration files, under the same load.
//!
//! For each peer a fresh folder of devices, one server (or one cluster of separate processes behind a proxy), and rows of
//! PUT, GET, HEAD, DELETE at two sizes and three concurrencies, and for an object server sixteen uploads at a time of objects
//! so large that MD5 is most of the work. Printed: requests a second, and the CPU seconds that all
//! server processes used for 1,000 requests, which is what to compare: machines are shared and wall time is noise. A row
//! in which any request failed is refused. The peers take turns row by row (PUT, GET and HEAD of one size and concurrency; all
//! DELETEs at the end of the table), so that a slow minute of the machine hits both. After a table that has deleted files, or
//! removed its folders, the next one waits for a minute: until then ext4 pays for them whenever it makes a file.
//!
//! Servers run with one worker, log to a socket that drops what it reads, and fsync as Swift does.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use common::clock::Clock;
use probe::cluster::{Cluster, SERVERS, listening};
use probe::load::{self, Outcome, Until, Work};
use probe::peer::{self, Peer, Process};
use probe::ports::{base_port, free_ports};
use probe::syslog::Syslog;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

mod codes;
mod db;
mod nodes;
mod pass;
mod rebuild;
mod ssync;
mod stream;

const SMALL: usize = 4096;
const MEDIUM: usize = 1024 * 1024;
const LARGE: usize = 64 * 1024 * 1024;
const CONCURRENCIES: [usize; 3] = [1, 16, 64];
/// For so long ext4 looks at inodes that have been freed before it takes new ones.
const FREED: Duration = Duration::from_secs(65);

#[derive(Parser, Clone)]
struct Cli {
    /// What to measure
    #[arg(value_delimiter = ',', default_value = "ec,object,proxy,ec-proxy,ec-stream,ssync,rebuild,db,idle")]
    tables: Vec<String>,
    /// Seconds of load for a cell
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// [default: 1,16,64; for objects of 64 MiB 16]
    #[arg(long, value_delimiter = ',')]
    concurrency: Option<Vec<usize>>,
    /// [default: 4096,1048576; for an object server also 67108864]
    #[arg(long, value_delimiter = ',')]
    sizes: Option<Vec<usize>>,
    /// Where devices and configuration go: a real disk, or the fsyncs cost nothing
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// How much of the databases, rows and objects that `db` has
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Objects of 1 MiB in the cluster that loses a device
    #[arg(long, default_value_t = 500)]
    objects: usize,
    /// Of the cluster that loses a device: 10 as in Swift's all-in-one, where eight devices share 1,024 partitions
    #[arg(long, default_value_t = 10)]
    part_power: u32,
    /// Martlet's proxy shares memcached, too, instead of the cache within itself that `up` configures
    #[arg(long)]
    memcached: bool,
    /// Only Martlet's side (for profiling)
    #[arg(long)]
    alone: bool,
    /// Only those rows of `ssync` that have this in their title
    #[arg(long, default_value = "")]
    rows: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    println!(
        "peer: Python Swift 2.38.3, one worker a server, same configuration files, same load; CPU is user + system of all servers"
    );
    for (n, table) in cli.tables.iter().enumerate() {
        if n > 0 {
            std::thread::sleep(FREED);
        }
        let dir = cli.dir.join(format!("{table}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot resolve {}", dir.display()))?;
        match table.as_str() {
            "ec" => codes::table(cli.alone)?,
            "object" => runtime.block_on(object_table(&cli, &dir))?,
            "proxy" => runtime.block_on(proxy_table(&cli, &dir, "standard"))?,
            "ec-proxy" => runtime.block_on(proxy_table(&cli, &dir, "erasure"))?,
            "ec-stream" => runtime.block_on(stream::table(&cli, &dir))?,
            "ssync" => ssync::table(&peers(&cli), &cli.rows, &dir)?,
            "rebuild" => runtime.block_on(rebuild::table(&peers(&cli), cli.objects, cli.part_power, &dir))?,
            "idle" => idle_table(&cli, &dir)?,
            name if name.starts_with("db") => runtime.block_on(db::table(&cli, &peers(&cli), &dir, name))?,
            other => {
                bail!("{other}: expected ec, object, proxy, ec-proxy, ec-stream, ssync, rebuild, db or idle")
            }
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// One side of a table: where it listens, whose CPU counts, and how a request's head is written.
struct Side {
    peer: Peer,
    addr: SocketAddr,
    servers: Servers,
    head: Head,
}

/// Verb, size of the body, number of the object, tag of the row: the request's head.
type Head = Box<dyn Fn(&str, usize, usize, &str) -> String>;

enum Servers {
    One(Process),
    Cluster { cluster: Box<Cluster>, _memcached: Process },
}

impl Servers {
    /// Whose CPU counts. Python's proxy also needs its memcached, but that is not Swift: it does not count.
    fn pids(&self) -> Vec<u32> {
        match self {
            Servers::One(process) => vec![process.pid()],
            Servers::Cluster { cluster, .. } => cluster.pids(),
        }
    }
}

struct Cell {
    outcome: Outcome,
    cpu: f64,
}

impl Cell {
    fn rate(&self) -> f64 {
        self.outcome.requests as f64 / self.outcome.seconds
    }

    /// CPU seconds for 1,000 requests.
    fn cost(&self) -> f64 {
        self.cpu * 1000.0 / self.outcome.requests as f64
    }
}

async fn object_table(cli: &Cli, dir: &Path) -> Result<()> {
    println!("\nobject server, one device, fsync on");
    let sides = peers(cli).into_iter().map(|peer| object_side(peer, dir)).collect::<Result<Vec<_>>>()?;
    rows(cli, &sides, &[(SMALL, &CONCURRENCIES), (MEDIUM, &CONCURRENCIES), (LARGE, &[16])]).await
}

fn peers(cli: &Cli) -> Vec<Peer> {
    if cli.alone { vec![Peer::Martlet] } else { vec![Peer::Martlet, Peer::Python] }
}

fn object_side(peer: Peer, dir: &Path) -> Result<Side> {
    let dir = dir.join(peer.name());
    let port = free_ports(1)?[0];
    std::fs::create_dir_all(dir.join("devices/sda")).context("cannot create the device")?;
    Syslog::listen(&dir.join("log"))?;
    let swift_conf =
        "[swift-hash]\nswift_hash_path_suffix = bench\n[storage-policy:0]\nname = gold\ndefault = yes\n";
    std::fs::write(dir.join("swift.conf"), swift_conf).context("cannot write swift.conf")?;
    let conf = format!(
        "[DEFAULT]\nswift_dir = {dir}\ndevices = {dir}/devices\nmount_check = false\nbind_ip = 127.0.0.1\nbind_port = {port}\n\
         workers = 1\nlog_address = {dir}/log\nuser = {user}\n[pipeline:main]\npipeline = object-server\n\
         [app:object-server]\nuse = egg:swift#object\n",
        dir = dir.display(),
        user = user()
    );
    let path = dir.join("object-server.conf");
    std::fs::write(&path, conf).context("cannot write object-server.conf")?;
    let mut command = peer.command(&dir, &dir, "swift-object-server")?;
    let server = Process::spawn(peer.name(), command.arg(&path).stdin(Stdio::null()).stdout(Stdio::null()))?;
    let addr = listening(&path)?;
    peer::wait_for(addr)?;
    let clock = Clock::system();
    let head = move |verb: &str, size: usize, n: usize, tag: &str| {
        let length = if verb == "PUT" { size } else { 0 };
        format!(
            "{verb} /sda/{}/AUTH_bench/c/{tag}-{n} HTTP/1.1\r\nHost: bench\r\nX-Timestamp: {}\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n",
            n % 64,
            clock.now().internal()
        )
    };
    Ok(Side { peer, addr, servers: Servers::One(server), head: Box::new(head) })
}

fn user() -> String {
    std::env::var("USER").unwrap_or_else(|_| "root".into())
}

async fn proxy_table(cli: &Cli, dir: &Path, policy: &str) -> Result<()> {
    let stored = if policy == "erasure" { "erasure coded 4+2" } else { "three replicas" };
    let cache =
        if cli.memcached { "caches in memcached" } else { "ours caches in itself, Python's in memcached" };
    println!(
        "\nproxy, four storage nodes of separate processes, {stored}, fsync on; {cache}; CPU of all servers together"
    );
    let mut sides = Vec::new();
    for peer in peers(cli) {
        sides.push(proxy_side(cli, peer, dir, policy).await?);
    }
    rows(cli, &sides, &[(SMALL, &CONCURRENCIES), (MEDIUM, &CONCURRENCIES)]).await
}

async fn proxy_side(cli: &Cli, peer: Peer, dir: &Path, policy: &str) -> Result<Side> {
    let dir = dir.join(peer.name());
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let cluster = Cluster::prepare(&dir)?;
    let memcached = cluster.memcached()?;
    if cli.memcached {
        share_memcached(&cluster)?;
    }
    let cluster = with_servers(cluster, peer)?;
    let addr = listening(&cluster.confs("proxy-server")?[0])?;
    cluster.client(&dir, &["post", "-H", &format!("X-Storage-Policy: {policy}"), "bench"])?;
    let token = cluster.token(&dir)?;
    let head = move |verb: &str, size: usize, n: usize, tag: &str| {
        let length = if verb == "PUT" { size } else { 0 };
        format!(
            "{verb} /v1/AUTH_test/bench/{tag}-{n} HTTP/1.1\r\nHost: bench\r\nX-Auth-Token: {token}\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    let servers = Servers::Cluster { cluster: Box::new(cluster), _memcached: memcached };
    Ok(Side { peer, addr, servers, head: Box::new(head) })
}

/// Before the proxy starts.
fn share_memcached(cluster: &Cluster) -> Result<()> {
    for conf in cluster.confs("proxy-server")? {
        let text =
            std::fs::read_to_string(&conf).with_context(|| format!("cannot read {}", conf.display()))?;
        let shared = text.replace("embedded_cache = true\n", "");
        ensure!(shared != text, "{}: no embedded_cache", conf.display());
        std::fs::write(&conf, shared).with_context(|| format!("cannot write {}", conf.display()))?;
    }
    Ok(())
}

fn start_cluster(peer: Peer, dir: &Path) -> Result<Cluster> {
    with_servers(Cluster::prepare(dir)?, peer)
}

fn with_servers(mut cluster: Cluster, peer: Peer) -> Result<Cluster> {
    for server in SERVERS {
        cluster.start(peer, server)?;
    }
    Ok(cluster)
}

/// A cluster that nobody uses: memory and CPU a minute. Ours is `up` in one process with all its daemons.
fn idle_table(cli: &Cli, dir: &Path) -> Result<()> {
    println!("\nidle for a minute: CPU seconds and resident memory");
    let ports = free_ports(1)?;
    let mut up = Command::new(peer::martlet()?);
    up.args(["up", "--data"]).arg(dir.join("up")).args(["--port", &ports[0].to_string()]);
    up.args(["--base-port", &base_port()?.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let process = Process::spawn("martlet up", &mut up)?;
    peer::wait_for(SocketAddr::from(([127, 0, 0, 1], ports[0])))?;
    idle("martlet up: 13 servers and all daemons, one process", &[process.pid()]);
    drop(process);
    for peer in peers(cli) {
        let dir = dir.join(peer.name());
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let cluster = start_cluster(peer, &dir)?;
        idle(&format!("{}: 13 servers without daemons, separate processes", peer.name()), &cluster.pids());
    }
    Ok(())
}

fn idle(what: &str, pids: &[u32]) {
    // Start-up work must not count.
    std::thread::sleep(Duration::from_secs(10));
    let before = load::cpu_seconds(pids);
    std::thread::sleep(Duration::from_secs(60));
    let cpu = load::cpu_seconds(pids) - before;
    println!("{cpu:8.2} s {:8.1} MB  {what}", load::resident_bytes(pids) as f64 / 1e6);
}

/// What the cells of a row write and read again.
struct Row<'a> {
    body: &'a [u8],
    concurrency: usize,
    /// Objects that each side has stored.
    stored: Vec<usize>,
}

impl Row<'_> {
    fn tag(&self) -> String {
        format!("{}-{}", self.body.len(), self.concurrency)
    }
}

/// All rows of a table: sizes and their concurrencies, unless the command line chooses others. Deletes come last.
async fn rows(cli: &Cli, sides: &[Side], cells: &[(usize, &[usize])]) -> Result<()> {
    println!("    verb     bytes  conc  req/s and CPU s/1000: martlet | python | ratio of CPU");
    let chosen: Vec<(usize, &[usize])> = match &cli.sizes {
        Some(sizes) => sizes.iter().map(|size| (*size, &CONCURRENCIES[..])).collect(),
        None => cells.to_vec(),
    };
    let bodies: Vec<(Vec<u8>, &[usize])> =
        chosen.iter().map(|(size, levels)| (vec![0x5a_u8; *size], *levels)).collect();
    let mut written = Vec::new();
    for (body, levels) in &bodies {
        for &concurrency in cli.concurrency.as_deref().unwrap_or(levels) {
            let mut row = Row { body, concurrency, stored: vec![0; sides.len()] };
            let mut verbs: Vec<Vec<Cell>> = Vec::new();
            for (n, side) in sides.iter().enumerate() {
                let mut cells = Vec::new();
                for verb in ["PUT", "GET", "HEAD"] {
                    let cell = cell(cli, side, &row, n, verb).await?;
                    if verb == "PUT" {
                        row.stored[n] = cell.outcome.requests;
                    }
                    cells.push(cell);
                }
                verbs.push(cells);
            }
            for (i, verb) in ["PUT", "GET", "HEAD"].iter().enumerate() {
                print_row(verb, &row, &verbs.iter().map(|cells| &cells[i]).collect::<Vec<_>>());
            }
            written.push(row);
        }
    }
    for row in &written {
        let mut cells = Vec::new();
        for (n, side) in sides.iter().enumerate() {
            cells.push(cell(cli, side, row, n, "DELETE").await?);
        }
        print_row("DELETE", row, &cells.iter().collect::<Vec<_>>());
    }
    Ok(())
}

fn print_row(verb: &str, row: &Row<'_>, cells: &[&Cell]) {
    let ours = cells[0];
    let mut line = format!(
        "{verb:>8} {:>9} {:>5}  {:9.0} {:8.3}",
        row.body.len(),
        row.concurrency,
        ours.rate(),
        ours.cost()
    );
    if let Some(python) = cells.get(1) {
        let ratio = python.cost() / ours.cost();
        line += &format!(" | {:7.0} {:8.3} | {ratio:6.1}", python.rate(), python.cost());
    }
    println!("{line}");
}

/// One verb on the `n`-th side.
async fn cell(cli: &Cli, side: &Side, row: &Row<'_>, n: usize, verb: &'static str) -> Result<Cell> {
    let limit = Duration::from_secs_f64(cli.seconds);
    let (tag, stored) = (row.tag(), row.stored[n]);
    let (until, expect) = match verb {
        "PUT" => (Until::Elapsed(limit), 201),
        "DELETE" => (Until::Count(stored), 204),
        _ => (Until::Around(stored, limit), 200),
    };
    let work = Work {
        addr: side.addr,
        head: &|n| (side.head)(verb, row.body.len(), n, &tag),
        body: if verb == "PUT" { row.body } else { b"" },
        answer_has_body: verb != "HEAD",
        expect,
        concurrency: row.concurrency,
        until,
    };
    let before = load::cpu_seconds(&side.servers.pids());
    let outcome = load::run(work).await.with_context(|| format!("{} {verb}", side.peer.name()))?;
    let cpu = load::cpu_seconds(&side.servers.pids()) - before;
    let (peer, failures) = (side.peer.name(), outcome.failures);
    ensure!(failures == 0, "{peer} {verb}: {failures} of {} failed", outcome.requests);
    Ok(Cell { outcome, cpu })
}
