//! `martlet demo`: a person watches SSYNC heal a cluster.
//!
//! Starts `martlet up` in a folder of its own, stores a tree of real files with the ordinary `swift` client
//! (python-swiftclient), takes a storage node away, overwrites, deletes, posts and adds objects meanwhile, brings the
//! node back, and waits until every replica of every object is identical and nothing is left on handoffs
//! (`convergence`). Part of the tree is stored with erasure coding as well. Then a device loses everything, and the demo waits until
//! its replicas, fragments and databases are whole again. At the end it compares listings and counts with what was stored,
//! downloads everything and compares SHA-256. The first thing that does not hold ends it with an error and a status other
//! than 0.
//!
//! The client is a separate program on purpose: nothing of Martlet judges Martlet here, except the reading of the disks.

use crate::convergence;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CONTAINER: &str = "tree";
/// The container with erasure coding, and its policy.
const CODED: &str = "coded-tree";
const CODED_POLICY: &str = "erasure";
/// Files of the tree that are stored there too, some of them while a node is away.
const CODED_FILES: usize = 200;
/// Objects above this size are uploaded as a static large object.
const SEGMENT_SIZE: u64 = 2 << 20;
/// How many of the stored files each kind of change touches while the node is away.
const CHANGED: usize = 200;
const POSTED: usize = 5;
/// The node that is taken away and brought back.
const NODE: &str = "3";
/// The node whose device loses everything, and the device.
const WIPED: (&str, &str) = ("2", "n2d1");
/// A cluster that has not healed by then will not.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// A folder of files to store (repeatable); without it, 2,000 small files are made
    #[arg(long)]
    tree: Vec<PathBuf>,
    /// Where the cluster and the copies of the tree go; it must not exist yet
    #[arg(long, default_value = "./martlet-demo")]
    data: PathBuf,
    /// Port of the proxy
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// First of the storage nodes' ports
    #[arg(long, default_value_t = 6200)]
    base_port: u16,
    /// The `swift` client of python-swiftclient
    #[arg(long, default_value = "swift")]
    swift: PathBuf,
    /// Leave the folder behind
    #[arg(long)]
    keep: bool,
}

/// SHA-256 by object name: what the cluster must hold.
type Expected = BTreeMap<String, [u8; 32]>;

pub fn run(options: &Options) -> Result<()> {
    ensure!(!options.data.exists(), "{} exists: name another folder with --data", options.data.display());
    let client = Client::new(options)?;
    let source = options.data.join("tree");
    let mut expected = make_tree(&options.tree, &source)?;
    println!("{} files in {}", expected.len(), source.display());

    let cluster = Cluster::start(options)?;
    let began = Instant::now();
    client.upload(CONTAINER, &source, &[".".into()], false)?;
    println!("uploaded in {:.1} s", began.elapsed().as_secs_f64());

    let coded = coded_part(&expected);
    let (before, during) = coded.split_at(coded.len() / 2);
    client.run(&["post", "-H", &format!("X-Storage-Policy: {CODED_POLICY}"), CODED])?;
    client.upload(CODED, &source, before, false)?;
    println!("{} files with erasure coding", before.len());
    // Not again when replicas of the account have been filled: Swift's reports of containers have no timestamps, and one that
    // crosses another on its way between them may stay until the container changes.
    check_account(&client)?;

    cluster.control(&["stop-node", NODE])?;
    println!("node {NODE} is away");
    client.upload(CODED, &source, during, true)?;
    let coded: Expected = coded.iter().map(|name| (name.clone(), expected[name])).collect();
    let posted = change(&client, &source, &mut expected)?;
    println!(
        "overwrote and added {} objects each, deleted {CHANGED}, posted metadata to {}",
        CHANGED,
        posted.len()
    );
    cluster.control(&["start-node", NODE])?;
    println!("node {NODE} is back");

    heal(&cluster.data)?;
    check_listing(&client, CONTAINER, &expected)?;
    check_listing(&client, CODED, &coded)?;
    cluster.wipe(WIPED.0, WIPED.1)?;
    heal(&cluster.data)?;
    check_listing(&client, CONTAINER, &expected)?;
    check_listing(&client, CODED, &coded)?;
    for name in &posted {
        let stat = client.run(&["stat", CONTAINER, name])?;
        ensure!(stat.contains("Meta Colour: red"), "the metadata posted to {name} is lost:\n{stat}");
    }
    check_download(&client, CONTAINER, &options.data.join("download"), &expected)?;
    check_download(&client, CODED, &options.data.join("download-coded"), &coded)?;
    println!(
        "every object came back as it was stored: {} objects, {} of them with erasure coding too, SHA-256 equal",
        expected.len(),
        coded.len()
    );
    cluster.stop()?;
    if !options.keep {
        std::fs::remove_dir_all(&options.data)
            .with_context(|| format!("cannot remove {}", options.data.display()))?;
    }
    Ok(())
}

/// What is stored with erasure coding: all the odd files, and others from all over the tree.
fn coded_part(expected: &Expected) -> Vec<String> {
    let (odd, others): (Vec<&String>, Vec<&String>) =
        expected.keys().partition(|name| name.starts_with("odd/"));
    let stride = (others.len() / CODED_FILES).max(1);
    others.into_iter().step_by(stride).take(CODED_FILES).chain(odd).cloned().collect()
}

/// What happens while the node is away; returns the names that got metadata.
fn change(client: &Client, source: &Path, expected: &mut Expected) -> Result<Vec<String>> {
    let names: Vec<String> = expected.keys().filter(|n| !n.starts_with("odd/")).cloned().collect();
    ensure!(
        names.len() >= 3 * CHANGED,
        "the tree has {} files: at least {} are needed",
        names.len(),
        3 * CHANGED
    );
    let stride = names.len() / CHANGED;
    let pick = |offset: usize| -> Vec<String> {
        names.iter().skip(offset).step_by(stride).take(CHANGED).cloned().collect()
    };
    let (overwritten, deleted) = (pick(0), pick(1));
    let mut uploads = Vec::new();
    for name in &overwritten {
        expected.insert(
            name.clone(),
            write_file(&source.join(name), format!("overwritten {name}\n").as_bytes())?,
        );
        uploads.push(name.clone());
    }
    for i in 0..CHANGED {
        let name = format!("added/{i:03}");
        expected.insert(name.clone(), write_file(&source.join(&name), name.repeat(i).as_bytes())?);
        uploads.push(name);
    }
    client.upload(CONTAINER, source, &uploads, true)?;
    let mut delete = vec!["delete", CONTAINER];
    delete.extend(deleted.iter().map(String::as_str));
    client.run(&delete)?;
    for name in &deleted {
        expected.remove(name);
    }
    let posted: Vec<String> = pick(2).into_iter().filter(|n| expected.contains_key(n)).take(POSTED).collect();
    for name in &posted {
        client.run(&["post", "-m", "Colour:red", CONTAINER, name])?;
    }
    Ok(posted)
}

/// Waits until the disks have converged, and says how long that took.
fn heal(data: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        let report = convergence::check(data)?;
        if report.converged() {
            println!("healed in {:.1} s: {report}", began.elapsed().as_secs_f64());
            return Ok(());
        }
        let so_far = report_line(&report);
        if began.elapsed() > PATIENCE {
            bail!("not healed after {} s: {report}", PATIENCE.as_secs());
        }
        println!("{:6.1} s  {so_far}", began.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn report_line(report: &convergence::Report) -> String {
    report.to_string().lines().next().unwrap_or_default().to_string()
}

/// The listing must name exactly the objects, and the count of the container must follow.
fn check_listing(client: &Client, container: &str, expected: &Expected) -> Result<()> {
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    eventually(&format!("listing and count of {container}"), || {
        let listing = client.run(&["list", container])?;
        let listed: Vec<&str> = listing.lines().collect();
        let count = client.count(&[container])?;
        Ok(match listed == names && count == names.len() {
            true => None,
            false => {
                Some(format!("{} objects stored, {} listed, {count} counted", names.len(), listed.len()))
            }
        })
    })
}

/// The account must count what its containers do.
fn check_account(client: &Client) -> Result<()> {
    eventually("count of the account", || {
        let containers = client.run(&["list"])?;
        let mut sum = 0;
        for container in containers.lines() {
            sum += client.count(&[container])?;
        }
        let account = client.count(&[])?;
        Ok((account != sum).then(|| format!("the containers have {sum} objects, the account says {account}")))
    })
}

/// Asks until the answer is that nothing is wrong.
fn eventually(what: &str, mut wrong: impl FnMut() -> Result<Option<String>>) -> Result<()> {
    let began = Instant::now();
    while let Some(wrong) = wrong()? {
        ensure!(began.elapsed() < PATIENCE, "{what}: {wrong}");
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("{what} right after {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn stat_number(stat: &str, key: &str) -> Option<usize> {
    stat.lines().find_map(|line| line.trim().strip_prefix(key)?.trim().parse().ok())
}

fn check_download(client: &Client, container: &str, into: &Path, expected: &Expected) -> Result<()> {
    std::fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    client.run(&["download", "-q", "-D", &into.to_string_lossy(), container])?;
    let mut found = Expected::new();
    hash_tree(into, into, &mut found)?;
    for (name, sha) in expected {
        ensure!(found.get(name) == Some(sha), "{name} did not come back as it was stored");
    }
    ensure!(found.len() == expected.len(), "{} files came back, {} were stored", found.len(), expected.len());
    Ok(())
}

/// The `swift` client, logged in as the first user of `up`.
struct Client {
    program: PathBuf,
    auth: String,
}

impl Client {
    fn new(options: &Options) -> Result<Client> {
        let program = options.swift.clone();
        let version = Command::new(&program).arg("--version").output();
        if !version.is_ok_and(|o| o.status.success()) {
            bail!(
                "{} does not run: install python-swiftclient, or name its `swift` with --swift",
                program.display()
            );
        }
        Ok(Client { program, auth: format!("http://127.0.0.1:{}/auth/v1.0", options.port) })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-A", &self.auth, "-U", "test:tester", "-K", "testing"]).args(args);
        command.env("PYTHONWARNINGS", "ignore").env("LC_ALL", "C.UTF-8");
        command
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        self.output(self.command(args), args)
    }

    /// The objects of a container, or of the account.
    fn count(&self, container: &[&str]) -> Result<usize> {
        let stat = self.run(&[&["stat"], container].concat())?;
        stat_number(&stat, "Objects:").with_context(|| format!("no count of objects in\n{stat}"))
    }

    fn output(&self, mut command: Command, args: &[&str]) -> Result<String> {
        let out = command.output().with_context(|| format!("cannot run {}", self.program.display()))?;
        if !out.status.success() {
            let shown = args.iter().take(4).copied().collect::<Vec<_>>().join(" ");
            bail!(
                "swift {shown} failed: {}{}",
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            );
        }
        String::from_utf8(out.stdout).context("the client's answer is not UTF-8")
    }

    /// `skip`: without a PUT of the container. While a primary of its is away, that PUT makes an empty database on a
    /// handoff, which reports no objects to the account, and only database replication would bring that to an end.
    fn upload(&self, container: &str, source: &Path, names: &[String], skip: bool) -> Result<()> {
        let segment = SEGMENT_SIZE.to_string();
        // The command line of a process is bounded.
        for names in names.chunks(500) {
            let mut args = vec!["upload", "-q", "--segment-size", &segment];
            args.extend(skip.then_some("--skip-container-put"));
            args.push(container);
            args.extend(names.iter().map(String::as_str));
            let mut command = self.command(&args);
            command.current_dir(source);
            self.output(command, &args)?;
        }
        Ok(())
    }
}

/// `martlet up` as a child process.
struct Cluster {
    child: Child,
    data: PathBuf,
}

impl Cluster {
    fn start(options: &Options) -> Result<Cluster> {
        let data = options.data.join("cluster");
        let began = Instant::now();
        let mut command = Command::new(std::env::current_exe().context("where am I?")?);
        command.args(["up", "--data"]).arg(&data).args(["--port", &options.port.to_string()]);
        command.args(["--base-port", &options.base_port.to_string()]);
        let said = options.data.join("up.out");
        let out =
            std::fs::File::create(&said).with_context(|| format!("cannot create {}", said.display()))?;
        let err = out.try_clone().context("cannot share a file")?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command.spawn().context("cannot start `martlet up`")?;
        let mut cluster = Cluster { child, data };
        while std::net::TcpStream::connect(("127.0.0.1", options.port)).is_err() {
            if let Some(status) = cluster.child.try_wait().context("cannot wait for `martlet up`")? {
                let said = std::fs::read_to_string(&said).unwrap_or_default();
                bail!("`martlet up` ended: {status}\n{said}");
            }
            ensure!(began.elapsed() < PATIENCE, "`martlet up` does not answer on port {}", options.port);
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("cluster up after {:.2} s", began.elapsed().as_secs_f64());
        Ok(cluster)
    }

    fn control(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new(std::env::current_exe().context("where am I?")?);
        let status = command
            .arg("up")
            .args(words)
            .arg("--data")
            .arg(&self.data)
            .stdout(Stdio::null())
            .status()
            .context("cannot run `martlet up`")?;
        ensure!(status.success(), "`martlet up {}` failed: {status}", words.join(" "));
        Ok(())
    }

    /// A device loses everything, as one that was replaced.
    fn wipe(&self, node: &str, device: &str) -> Result<()> {
        self.control(&["stop-node", node])?;
        let device = self.data.join(format!("node{node}")).join(device);
        std::fs::remove_dir_all(&device).with_context(|| format!("cannot empty {}", device.display()))?;
        std::fs::create_dir(&device).with_context(|| format!("cannot make {}", device.display()))?;
        println!("{} was replaced by an empty one", device.display());
        self.control(&["start-node", node])
    }

    fn stop(mut self) -> Result<()> {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )
        .context("cannot stop `martlet up`")?;
        let status = self.child.wait().context("cannot wait for `martlet up`")?;
        ensure!(status.success(), "`martlet up` ended with {status}");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Already gone after stop(); on an error path nobody is left to report to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies the trees (or makes one) to `into`, adds files of odd names and sizes, and says what is there.
fn make_tree(trees: &[PathBuf], into: &Path) -> Result<Expected> {
    let mut expected = Expected::new();
    for tree in trees {
        let name = tree.file_name().with_context(|| format!("{} has no name", tree.display()))?;
        copy_tree(tree, &into.join(name))?;
    }
    if trees.is_empty() {
        for i in 0..2000_usize {
            write_file(
                &into.join(format!("dir-{:02}/file-{i:04}", i % 40)),
                format!("{i}\n").repeat(i % 500).as_bytes(),
            )?;
        }
    }
    for name in ["räksmörgås", "ключ", "日本語.txt", "a b+c%20&d=e;f", "quo\"te'd", "x".repeat(200).as_str()]
    {
        write_file(&into.join("odd").join(name), name.as_bytes())?;
    }
    write_file(&into.join("odd/empty"), b"")?;
    let large: Vec<u8> = (0..5_000_000_u32)
        .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[..1].to_vec())
        .collect();
    write_file(&into.join("odd/large"), &large)?;
    hash_tree(into, into, &mut expected)?;
    Ok(expected)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot stat {}", entry.path().display()))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&from, &to)?;
        } else if kind.is_file() {
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn write_file(path: &Path, contents: &[u8]) -> Result<[u8; 32]> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    std::fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Sha256::digest(contents).into())
}

/// Names relative to `base`, as the client stores them.
fn hash_tree(base: &Path, dir: &Path, into: &mut Expected) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.is_dir() {
            hash_tree(base, &path, into)?;
            continue;
        }
        let contents = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned();
        into.insert(name, Sha256::digest(&contents).into());
    }
    Ok(())
}
