//! The two implementations under test: our binary under Swift's program names, and real Swift from its venv.
//!
//! `cargo xtask test` sets `MARTLET_BIN` and `MARTLET_PEERS`; without them the binary beside the test's own executable and
//! the peers below the target directory are taken. Either missing is a failure that says what to run: never a skip.

use anyhow::{Context, Result, ensure};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// How long anything may take to start or stop on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Martlet,
    Python,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Peer::Martlet => "martlet",
            Peer::Python => "python",
        }
    }

    /// Starts a program such as `swift-object-server` on the swift.conf of a folder. Ours is a link of that name below
    /// `links`; Python's daemons know only /etc/swift/swift.conf, so a script of ours starts them.
    pub fn command(self, links: &Path, swift_dir: &Path, name: &str) -> Result<Command> {
        match self {
            Peer::Python => {
                let mut command = script("run_swift.py")?;
                command.arg(swift_dir).arg(name);
                Ok(command)
            }
            Peer::Martlet => {
                let link = links.join(name);
                if !link.exists() {
                    std::os::unix::fs::symlink(martlet()?, &link)
                        .with_context(|| format!("cannot link {}", link.display()))?;
                }
                Ok(Command::new(link))
            }
        }
    }
}

/// The binary under test.
pub fn martlet() -> Result<PathBuf> {
    let path = match std::env::var_os("MARTLET_BIN") {
        Some(path) => PathBuf::from(path),
        None => profile_dir()?.join("martlet"),
    };
    ensure!(path.is_file(), "{} is not built: run `cargo xtask test`", path.display());
    Ok(path)
}

/// A program built from an `examples/` file of one of the crates.
pub fn example(name: &str) -> Result<PathBuf> {
    let path = profile_dir()?.join("examples").join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo build --workspace --examples`", path.display());
    Ok(path)
}

/// The venv that holds real Swift and its clients.
pub fn venv() -> Result<PathBuf> {
    let dir = match std::env::var_os("MARTLET_PEERS") {
        Some(dir) => PathBuf::from(dir),
        None => profile_dir()?.join("../peers"),
    };
    let venv = dir.join("venv");
    ensure!(
        venv.join("bin/python").is_file(),
        "no real Swift in {}: run `cargo xtask peers`",
        venv.display()
    );
    Ok(venv)
}

/// The folder of Swift's source distribution.
pub fn sdist() -> Result<PathBuf> {
    let dir = venv()?.join("../sdist/swift-2.38.3");
    dir.canonicalize().with_context(|| format!("no {}: run `cargo xtask peers`", dir.display()))
}

/// `TARGET/debug`, from the path of the test's executable in `TARGET/debug/deps`.
fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("where am I?")?;
    Ok(exe.ancestors().nth(2).context("the test runs outside a target folder")?.to_path_buf())
}

/// Runs a Python script of `tests/peer/` in the venv.
pub fn script(name: &str) -> Result<Command> {
    let mut command = Command::new(venv()?.join("bin/python"));
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer").join(name))
        .env("PYTHONWARNINGS", "ignore")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

/// Lets a script of `tests/peer/` compare a program of Swift's with ours, in these cases, on object servers of `server`.
pub fn compare(name: &str, program: &str, server: Peer, cases: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir().context("no temporary folder")?;
    let ours = |program| Peer::Martlet.command(dir.path(), dir.path(), program);
    let mut check = script(name)?;
    check.arg(dir.path().join("scratch")).arg(ours(program)?.get_program());
    match server {
        Peer::Python => check.arg("-"),
        Peer::Martlet => check.arg(ours("swift-object-server")?.get_program()),
    };
    println!("{}", success(check.args(cases))?);
    Ok(())
}

/// What the command printed; an error with everything that it said if it failed.
pub fn success(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("cannot run {program}"))?;
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let args: Vec<_> = command.get_args().take(12).map(|a| a.to_string_lossy().into_owned()).collect();
    ensure!(status.success(), "{program} {} failed: {status}\n{out}{err}", args.join(" "));
    Ok(out.into_owned())
}

/// A server or daemon; it ends with this value, and Python's workers with it.
pub struct Process {
    pub name: String,
    child: Child,
}

impl Process {
    pub fn spawn(name: &str, command: &mut Command) -> Result<Process> {
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name: name.to_string(), child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// TERM, and the end.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait().context("wait")?.is_some() {
            return Ok(());
        }
        Command::new("kill").arg(self.child.id().to_string()).status().context("kill")?;
        let began = Instant::now();
        while self.child.try_wait().context("wait")?.is_none() {
            if began.elapsed() > PATIENCE {
                anyhow::bail!("{} does not stop on TERM", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits until it has ended by itself; an error if it failed.
    pub fn finish(&mut self) -> Result<()> {
        let status = self.child.wait().context("wait")?;
        ensure!(status.success(), "{} failed: {status}", self.name);
        Ok(())
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("wait")?.is_none())
    }

    /// An error if it ended by itself.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait().context("wait")?;
        ensure!(ended.is_none(), "{} ended: {ended:?}", self.name);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.stop().is_err() {
            // Nobody is left to hear of it.
            let _ = self.child.kill();
        }
    }
}

/// Waits until something listens there.
pub fn wait_for(addr: SocketAddr) -> Result<()> {
    let began = Instant::now();
    while TcpStream::connect(addr).is_err() {
        ensure!(began.elapsed() < PATIENCE, "nothing listens on {addr}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
