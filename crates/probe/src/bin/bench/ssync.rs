//! `cargo xtask bench ssync`: one pass of an object-replicator that has a partner, both ends of one implementation.
//!
//! Two nodes of one device each hold every partition. A pass of the first node's replicator (`once`, ssync, one worker,
//! concurrency 1) has to fill an empty partner, to find that nothing is missing although all suffix hashes differ, to hash
//! everything anew, or to do nothing. CPU is that of the replicator and of the partner's object server; a pass over an empty
//! device, which is the start of the program, is taken off it, and off the wall time. The last rows let Python push the same
//! objects by rsync, which does not fsync.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::config::SwiftConf;
use common::digest::{hex, md5};
use common::pickle::{self, Value};
use common::{Clock, Timestamp};
use obj::diskfile::{DiskFileConf, DiskFileRouter, Metadata};
use probe::peer::{self, Peer, Process};
use service::logs::Logger;
use service::statsd::Statsd;

use crate::nodes::{Nodes, PART_POWER, SECRET};
use crate::pass::{Pass, print_head, print_row};

const MIB: usize = 1 << 20;

/// A row: its title, the objects that it needs, and what the partner has of them.
struct Case {
    title: &'static str,
    objects: usize,
    size: usize,
    partner: Partner,
    sync_method: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Partner {
    Empty,
    /// The same objects, under suffix hashes that are not theirs.
    Differs,
    /// The same objects; neither side has any hashes.
    Unhashed,
    /// The same objects and the right hashes.
    Same,
}

const fn case(title: &'static str, objects: usize, size: usize, partner: Partner) -> Case {
    Case { title, objects, size, partner, sync_method: "ssync" }
}

const CASES: [Case; 5] = [
    case("2,000 objects of 4 KiB to an empty node", 2_000, 4096, Partner::Empty),
    case("50 objects of 10 MiB to an empty node", 50, 10 * MIB, Partner::Empty),
    case("20,000 objects in sync, all hashes differ", 20_000, 64, Partner::Differs),
    case("20,000 objects on each side hashed anew", 20_000, 64, Partner::Unhashed),
    case("20,000 objects, all hashes valid", 20_000, 64, Partner::Same),
];

pub fn table(peers: &[Peer], rows: &str, dir: &Path) -> Result<()> {
    print_head("one replicator pass with a partner, start of the program taken off");
    // In memory, if it takes metadata: nothing of what makes them is measured.
    let takes_metadata = |dir: &tempfile::TempDir| {
        let file = std::fs::File::create(dir.path().join("file"));
        file.and_then(|file| common::fs::write_metadata_xattrs(file, b"pickle", 6)).is_ok()
    };
    let memory = tempfile::tempdir_in("/dev/shm").ok().filter(takes_metadata);
    let trees_dir = memory.as_ref().map_or(dir, |memory| memory.path()).join("trees");
    let mut trees = Trees { dir: trees_dir, made: Vec::new() };
    let idle = case("", 0, 0, Partner::Empty);
    let starts = peers.iter().map(|peer| run(*peer, &idle, dir, &mut trees)).collect::<Result<Vec<_>>>()?;
    for case in CASES.iter().filter(|case| case.title.contains(rows)) {
        let passes: Vec<Pass> = peers
            .iter()
            .zip(&starts)
            .map(|(peer, start)| run(*peer, case, dir, &mut trees).map(|pass| pass.without(*start)))
            .collect::<Result<_>>()?;
        print_row(case.title, &passes);
    }
    if peers.contains(&Peer::Python) {
        let by_rsync = |case: &&Case| case.partner == Partner::Empty && case.title.contains(rows);
        for case in CASES.iter().filter(by_rsync) {
            let case = Case { sync_method: "rsync", ..*case };
            let pass = run(Peer::Python, &case, dir, &mut trees)?.without(starts[1]);
            println!("{:<58} {:>19} | {:8.4} {:8.4} | by rsync", case.title, "", pass.cpu, pass.wall);
        }
    }
    Ok(())
}

fn run(peer: Peer, case: &Case, dir: &Path, trees: &mut Trees) -> Result<Pass> {
    // Swift names no port of an rsync daemon, so its module does.
    let options = |ports: &[u16]| {
        format!(
            "sync_method = {}\nrsync_module = rsync://127.0.0.1:{}/object\nrsync_timeout = 300\nhttp_timeout = 120\n",
            case.sync_method, ports[2]
        )
    };
    let nodes = Nodes::new(peer, dir, "object", options)?;
    fill(&nodes, case, trees)?;
    let server = nodes.server(1)?;
    let _rsyncd = (case.sync_method == "rsync").then(|| rsyncd(&nodes)).transpose()?;
    let pass = nodes.pass(&server)?;
    let there = objects(&nodes, 1)?;
    ensure!(there == case.objects, "{}: the partner has {there} of {} objects", peer.name(), case.objects);
    Ok(pass)
}

/// Both devices as the case wants them.
fn fill(nodes: &Nodes, case: &Case, trees: &mut Trees) -> Result<()> {
    for node in 0..2 {
        std::fs::remove_dir_all(nodes.device(node)).context("cannot empty a device")?;
        // rsync makes partitions only.
        std::fs::create_dir_all(nodes.device(node).join("objects")).context("cannot create a device")?;
    }
    if case.objects == 0 {
        return Ok(());
    }
    let tree = trees.get(case.objects, case.size)?;
    copy(&tree, &nodes.device(0))?;
    if case.partner != Partner::Empty {
        copy(&tree, &nodes.device(1))?;
    }
    match case.partner {
        Partner::Differs => partitions(&nodes.device(1))?.iter().try_for_each(|p| write_foreign_hashes(p))?,
        Partner::Unhashed => {
            for node in 0..2 {
                partitions(&nodes.device(node))?.iter().try_for_each(|p| remove_hashes(p))?;
            }
        }
        Partner::Empty | Partner::Same => {}
    }
    // What has been copied is written back now, not during the pass.
    peer::success(&mut Command::new("sync"))?;
    Ok(())
}

fn objects(nodes: &Nodes, node: usize) -> Result<usize> {
    let find = peer::success(Command::new("find").arg(nodes.device(node)).args(["-name", "*.data"]))?;
    Ok(find.lines().count())
}

/// An rsync daemon with the module of the second node.
fn rsyncd(nodes: &Nodes) -> Result<Process> {
    let path = nodes.dir.join("rsyncd.conf");
    let port = nodes.ports[2];
    let conf = format!(
        "address = 127.0.0.1\nport = {port}\nuse chroot = no\nuid = {user}\ngid = root\n[object]\npath = {path}\n\
         read only = false\n",
        user = crate::user(),
        path = nodes.dir.join("node1").display()
    );
    std::fs::write(&path, conf).context("cannot write rsyncd.conf")?;
    let mut command = Command::new("rsync");
    command.args(["--daemon", "--no-detach", "--config"]).arg(&path).stdin(Stdio::null());
    let daemon = Process::spawn("rsync", &mut command)?;
    peer::wait_for(([127, 0, 0, 1], port).into())?;
    Ok(daemon)
}

/// Device trees, made once and copied for each row.
struct Trees {
    dir: PathBuf,
    made: Vec<(usize, usize)>,
}

impl Trees {
    fn get(&mut self, objects: usize, size: usize) -> Result<PathBuf> {
        let path = self.dir.join(format!("{objects}-{size}"));
        if !self.made.contains(&(objects, size)) {
            make_tree(&path, objects, size)?;
            self.made.push((objects, size));
        }
        Ok(path.join("sda"))
    }
}

/// Objects as PUT a day ago, all hashed.
fn make_tree(devices: &Path, objects: usize, size: usize) -> Result<()> {
    std::fs::create_dir_all(devices.join("sda")).context("cannot create a tree")?;
    let conf = DiskFileConf { devices: devices.to_owned(), mount_check: false, ..DiskFileConf::default() };
    let swift_conf = SwiftConf::parse(SECRET.as_bytes(), "swift.conf", devices)?;
    let clock = Clock::system();
    let logger = Logger::to_stderr("bench");
    let router = DiskFileRouter::new(&conf, &swift_conf, &clock, &logger, &Statsd::disabled());
    let manager = router.iter().next().context("no policy")?.clone();
    let body: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let etag = hex(&md5(&body));
    let put_at = clock.now().raw() - Timestamp::from_secs_f64(86_400.0).raw();
    for n in 0..objects {
        let name = format!("o{n}");
        let hash = manager.hash_conf().hash_path("AUTH_bench", Some("c"), Some(&name));
        let diskfile = manager.diskfile("sda", hash.partition(PART_POWER), "AUTH_bench", "c", &name)?;
        let metadata = Metadata::from_iter([
            ("X-Timestamp", Timestamp::from_raw(put_at + n as u64).internal()),
            ("Content-Type", "application/octet-stream".to_owned()),
            ("ETag", etag.clone()),
            ("Content-Length", size.to_string()),
        ]);
        diskfile.put_small(&body, metadata)?;
    }
    for partition in 0..1 << PART_POWER {
        manager.rehash(&devices.join("sda"), partition, &[], true)?;
    }
    Ok(())
}

fn partitions(device: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(device.join("objects")).context("cannot list the partitions")?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>();
    Ok(paths.context("cannot list the partitions")?.into_iter().filter(|path| path.is_dir()).collect())
}

fn remove_hashes(partition: &Path) -> Result<()> {
    for name in ["hashes.pkl", "hashes.invalid"] {
        let path = partition.join(name);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Hashes of the partition's suffixes that no object has: a partner that asks for them finds that all differ.
fn write_foreign_hashes(partition: &Path) -> Result<()> {
    remove_hashes(partition)?;
    let mut hashes = vec![(Value::str("valid"), Value::Bool(true))];
    hashes.push((Value::str("updated"), Value::Float(Clock::system().unix_secs())));
    for entry in std::fs::read_dir(partition).context("cannot list a partition")? {
        let name = entry.context("cannot list a partition")?.file_name().to_string_lossy().into_owned();
        if name.len() == 3 {
            hashes.push((Value::str(name), Value::str("0".repeat(32))));
        }
    }
    std::fs::write(partition.join("hashes.pkl"), pickle::dumps(&Value::Dict(hashes)))
        .context("cannot write hashes.pkl")?;
    std::fs::write(partition.join("hashes.invalid"), b"").context("cannot write hashes.invalid")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    peer::success(Command::new("cp").args(["-a", "--"]).arg(from.join("objects/.")).arg(to.join("objects")))
        .map(drop)
}
