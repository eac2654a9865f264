//! A daemon as a process of its own: `swift-object-replicator CONF [once]`.
//!
//! The streams are closed and systemd told when the daemon is built, since that is what `swift-init` waits for. SIGTERM
//! and SIGINT end it, in the middle of a pass too; so do SIGHUP and SIGUSR1, as they end Swift's daemons: a daemon is
//! reloaded by starting it again. Work in a disk pool is done to its end first.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use common::config::{Conf, ConfigError, Section};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::context::{Context, Process};
use crate::daemon::{self, Daemon, DaemonArgs, Mode};
use crate::signals;

/// Builds a daemon from the whole file and the context of its section.
pub type Build = fn(&Conf, &Context) -> Result<Arc<dyn Daemon>, ConfigError>;

/// What disk work gets to finish when the daemon ends.
const END_GRACE: Duration = Duration::from_secs(2);
/// Most threads of a runtime on which a daemon computes.
const MAX_THREADS: usize = 4;

/// Which daemon to run, and how it was asked for.
#[derive(Clone, Debug)]
pub struct Launch {
    /// `object-replicator`: also the name of its section.
    pub name: String,
    pub conf_path: PathBuf,
    pub once: bool,
    pub verbose: bool,
    pub args: DaemonArgs,
    pub threads: Threads,
}

/// Threads of a daemon's runtime; the disks have others.
#[derive(Clone, Copy, Debug)]
pub enum Threads {
    /// It waits for disks and peers: on one thread nobody has to wake another for what comes.
    One,
    /// One for each worker, of which there are as many as an option says.
    Workers(&'static str),
    /// It computes.
    Cores,
}

impl Threads {
    fn count(self, section: &Section) -> Result<usize, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(match self {
            Threads::One => 1,
            Threads::Workers(option) => {
                usize::try_from(section.int::<i64>(option, 0)?).map_or(1, |n| n.clamp(1, cores))
            }
            Threads::Cores => cores.min(MAX_THREADS),
        })
    }
}

/// What can go wrong before a daemon runs.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Runs the daemon to its end. What goes wrong before it starts is one line on stderr and exit code 1.
pub fn run_daemon(launch: &Launch, build: Build) -> ExitCode {
    match run(launch, build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err}");
            ExitCode::FAILURE
        }
    }
}

fn run(launch: &Launch, build: Build) -> Result<(), StartError> {
    let conf = Conf::load(&launch.conf_path)?;
    let section = conf.require(&launch.name)?;
    let process = process_of(launch);
    let ctx = Context::new(&process, &launch.name, &section)?;
    // What only root may have stays when the program is run again.
    ctx.priority.apply(&ctx.logger);
    drop_privileges(&section)?;
    let runtime = match launch.threads.count(&section)? {
        1 => Builder::new_current_thread().enable_all().build()?,
        threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    let daemonize = section.bool("daemonize", true)?;
    let once = launch.once || !daemonize;
    runtime.block_on(async {
        let daemon = build(&conf, &ctx)?;
        for warning in section.warnings() {
            ctx.logger.warning(warning);
        }
        signals::warn_of_root(&section, &ctx.logger);
        ctx.logger.notice(format_args!("Starting {}", std::process::id()));
        signals::clean_up_daemon_hygiene();
        // Not being able to close our own streams only costs swift-init some patience.
        let _ = signals::capture_stdio(launch.verbose || signals::is_interactive());
        signals::systemd_notify(&ctx.logger, "READY=1");
        let mode = if once { Mode::Once } else { Mode::Forever };
        tokio::select! {
            () = daemon::run(daemon, &ctx, mode) => {}
            ended = until_signal(&ctx) => ended?,
        }
        signals::systemd_notify(&ctx.logger, "STOPPING=1");
        ctx.shutdown.trigger();
        Ok::<_, StartError>(())
    })?;
    runtime.shutdown_timeout(END_GRACE);
    ctx.logger.notice(format_args!("Exited {}", std::process::id()));
    Ok(())
}

fn process_of(launch: &Launch) -> Process {
    let process = Process::new().with_args(launch.args.clone());
    if launch.verbose || signals::is_interactive() { process.with_console() } else { process }
}

async fn until_signal(ctx: &Context) -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    let mut usr1 = signal(SignalKind::user_defined1())?;
    let name = tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
        _ = hup.recv() => "SIGHUP",
        _ = usr1.recv() => "SIGUSR1",
    };
    ctx.logger.notice(format_args!("{name} received ({})", std::process::id()));
    Ok(())
}

/// Started by root, the program is run again as `user`, in the same process. As with servers, a missing default user
/// means to stay root.
fn drop_privileges(section: &Section) -> Result<(), StartError> {
    let Some(user) = signals::user_to_become(section)? else { return Ok(()) };
    Err(exec_as(&user).into())
}

/// Runs the program again as `user`, in the same process; returns only if that fails.
pub fn exec_as(user: &signals::User) -> io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(err) => return err,
    };
    let mut command = Command::new(program);
    let mut argv = std::env::args_os();
    if let Some(arg0) = argv.next() {
        command.arg0(arg0);
    }
    command.args(argv).uid(user.uid).gid(user.gid).env("HOME", &user.home).exec()
}
