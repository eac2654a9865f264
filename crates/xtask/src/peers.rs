//! Real Swift for the tests: a venv with the reference release and its clients, and the source distribution, which
//! holds Swift's own functional and probe tests.
//!
//! Layout: `TARGET/peers/venv`, `TARGET/peers/sdist/swift-VERSION`, `TARGET/peers/installed` (the list that was
//! installed: when it differs from the list below, everything is made again). `MARTLET_PEERS` names a folder of the same
//! layout to use instead. What cannot be installed is an error, never a skipped test.

use crate::cmd;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release that compatibility is measured against.
pub const SWIFT: &str = "2.38.3";

const PYTHON: &[&str] = &[
    "swift==2.38.3",
    "pyeclib==1.8.0",
    "python-swiftclient",
    "python-keystoneclient",
    "boto",
    "boto3",
    "awscrt",
    "anycrc",
    "pytest",
    "pytest-timeout",
    "pytest-subtests",
    "requests",
];

/// Debian package and the program by which it is recognised.
const DEBIAN: &[(&str, &str)] = &[
    ("memcached", "memcached"),
    ("rsync", "rsync"),
    ("xfsprogs", "mkfs.xfs"),
    ("e2fsprogs", "mkfs.ext4"),
    ("rsyslog", "rsyslogd"),
    ("procps", "ps"),
    ("iproute2", "ip"),
];

pub struct Peers {
    pub venv: PathBuf,
    pub sdist: PathBuf,
}

impl Peers {
    pub fn python(&self) -> PathBuf {
        self.venv.join("bin/python")
    }
}

/// Installs what is missing and says where everything is.
pub fn ensure() -> Result<Peers> {
    debian()?;
    let dir = match std::env::var_os("MARTLET_PEERS") {
        Some(dir) => PathBuf::from(dir),
        None => cmd::target_dir().join("peers"),
    };
    let peers = Peers { venv: dir.join("venv"), sdist: dir.join(format!("sdist/swift-{SWIFT}")) };
    let stamp = dir.join("installed");
    let wanted = PYTHON.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) && peers.sdist.is_dir() {
        return Ok(peers);
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    venv(&peers)?;
    sdist(&peers, &dir)?;
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(peers)
}

fn venv(peers: &Peers) -> Result<()> {
    if !cmd::succeeds(Command::new(peers.python()).arg("-V")) {
        let made = cmd::run(Command::new("python3").args(["-m", "venv"]).arg(&peers.venv));
        if made.is_err() {
            apt(&["python3", "python3-venv"])?;
            cmd::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&peers.venv))?;
        }
    }
    cmd::run(Command::new(peers.python()).args(["-m", "pip", "install", "-q"]).args(PYTHON))
}

fn sdist(peers: &Peers, dir: &Path) -> Result<()> {
    if peers.sdist.is_dir() {
        return Ok(());
    }
    let into = dir.join("sdist");
    let spec = format!("swift=={SWIFT}");
    let mut pip = Command::new(peers.python());
    pip.args([
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "swift",
        "--no-build-isolation",
        "-d",
    ]);
    // Building its metadata needs the build backend; the download itself does not, so a failure is judged by the file.
    cmd::run(Command::new(peers.python()).args([
        "-m",
        "pip",
        "install",
        "-q",
        "setuptools",
        "pbr",
        "wheel",
    ]))?;
    let downloaded = cmd::run(pip.arg(&into).arg(spec));
    let archive = into.join(format!("swift-{SWIFT}.tar.gz"));
    if !archive.is_file() {
        downloaded?;
        bail!("pip left no {}", archive.display());
    }
    cmd::run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&into))
}

fn debian() -> Result<()> {
    let on_path = |program: &&(&str, &str)| {
        let dirs = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&dirs)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|d| d.join(program.1).is_file())
    };
    let missing: Vec<&str> = DEBIAN.iter().filter(on_path).map(|p| p.0).collect();
    if missing.is_empty() { Ok(()) } else { apt(&missing) }
}

fn apt(packages: &[&str]) -> Result<()> {
    let root = cmd::output(Command::new("id").arg("-u"))?.trim() == "0";
    if !root {
        bail!("the tests need the Debian packages {}: install them, or run this as root", packages.join(" "));
    }
    cmd::run(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args([
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
    ]);
    cmd::run(install.args(packages))
}
