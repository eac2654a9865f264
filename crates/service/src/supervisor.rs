//! A server's processes: a supervisor that holds the socket, and a worker that serves.
//!
//! As with Swift, the process which `swift-init` starts (and whose pid it writes down) never serves: it binds, starts a
//! worker, and deals with signals. That keeps the pid over a reload and lets a crashed worker be replaced while
//! connections wait in the socket's backlog. The worker is a second run of the same program with a
//! [`Channel`](crate::handover::Channel) as its stdin; the supervisor sleeps in the kernel until something happens.
//!
//! | signal | supervisor | worker |
//! |---|---|---|
//! | TERM, INT | stops its workers and exits | stops: open requests get [`STOP_GRACE`] |
//! | USR1 | reloads in the same process | drains: accepts no more, finishes what is open, exits |
//! | HUP | under our own name as USR1; under Swift's exits at once, and `swift-init reload` starts anew | drains |
//!
//! To reload is to run the program anew with the same socket, and to tell the old worker to drain once the new one serves.
//!
//! A reload first reads the configuration and is refused, with a line in the log, when that fails: the old worker goes on.
//! No connection is lost in a reload: the listening socket is handed over, never closed.
//!
//! Signals wait while the program is run anew, and one that comes while a worker starts is acted on after that: none is lost
//! and none has its default effect.
//!
//! With `servers_per_port` there is a socket for each port that the rings give our devices. The rings are looked at every
//! `ring_check_interval`; when the ports have changed, a new worker gets the new sockets and the old one drains.
//!
//! `workers = 0` serves in the first process. A reload then drains, runs the program anew in the same process and
//! serves on; connections wait in the backlog meanwhile. There a signal which one of the disk's threads takes in the instant
//! before the exec is lost.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use common::config::ConfigError;
use ring::Rings;
use rustix::process::{Pid, Signal, WaitOptions};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

use crate::context::{Context, Process};
use crate::handover::{AsyncChannel, Channel, Message};
use crate::http::tls::Certificate;
use crate::logs::Logger;
use crate::pipeline::Registry;
use crate::server::{self, RunningServer, ServerConf, TLS_WARNING};
use crate::signals;

/// What open requests get after SIGTERM.
pub const STOP_GRACE: Duration = Duration::from_secs(2);
/// A worker that has not gone so long after SIGTERM is killed.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// A worker that died is replaced after this long, so that one which dies at once does not spin.
const RESPAWN_DELAY: Duration = Duration::from_secs(1);
/// Tells a new run of the program what its stdin is.
const ROLE: &str = "MARTLET_ROLE";

/// What to run, and how it was asked for.
#[derive(Clone, Debug)]
pub struct Launch {
    /// `object-server`
    pub name: String,
    pub conf_path: PathBuf,
    /// Log on stderr too.
    pub verbose: bool,
    /// Whether SIGHUP means what it means to Swift.
    pub swift_signals: bool,
    pub exe: PathBuf,
    /// The whole command line, with the absolute path of the configuration.
    pub argv: Vec<OsString>,
}

impl Launch {
    /// Of the running program, its path noted now: later it may have been replaced.
    pub fn new(name: &str, conf_path: &Path, verbose: bool, swift_signals: bool) -> io::Result<Launch> {
        // A new run is started from another folder.
        let is_conf = |word: &OsString| std::path::absolute(word).is_ok_and(|path| path == conf_path);
        let absolute = |word| if is_conf(&word) { conf_path.into() } else { word };
        Ok(Launch {
            name: name.to_owned(),
            conf_path: conf_path.to_owned(),
            verbose,
            swift_signals,
            exe: std::env::current_exe()?,
            argv: std::env::args_os().map(absolute).collect(),
        })
    }

    fn process(&self) -> Process {
        if self.logs_on_stderr() { Process::new().with_console() } else { Process::new() }
    }

    fn logs_on_stderr(&self) -> bool {
        self.verbose || signals::is_interactive()
    }

    /// The same program once more, with `stdin` as its channel.
    fn command(&self, role: &str, stdin: OwnedFd) -> Command {
        let mut command = Command::new(&self.exe);
        if let Some(arg0) = self.argv.first() {
            command.arg0(arg0);
        }
        command.args(self.argv.iter().skip(1)).env(ROLE, role).stdin(Stdio::from(stdin));
        command
    }
}

/// Runs the server until it is stopped; what goes wrong at the start is one line on stderr and exit code 1.
pub fn run_server(launch: &Launch, registry: &Registry) -> ExitCode {
    let role = std::env::var(ROLE).unwrap_or_default();
    let done = match role.as_str() {
        "worker" => work(launch, registry),
        "reload" => Channel::from_stdin().map_err(StartError::from).and_then(|channel| {
            let inherited = channel.receive()?.map(Inherited::read).unwrap_or_default();
            start(launch, registry, inherited)
        }),
        _ => start(launch, registry, Inherited::default()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Told) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("{err}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration and builds everything but the socket: `--test-config`.
pub fn test_config(launch: &Launch, registry: &Registry) -> Result<(), ConfigError> {
    let loaded = server::load(&launch.process(), registry, &launch.name, &launch.conf_path)?;
    loaded.conf.certificate().map(drop)
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Worker(String),
    /// The supervisor says it.
    #[error("")]
    Told,
}

/// What the run before this one has left.
#[derive(Default)]
struct Inherited {
    listeners: Vec<TcpListener>,
    workers: Vec<Worker>,
}

impl Inherited {
    fn read(message: Message) -> Inherited {
        let mut fds = message.fds.into_iter();
        let count = message.text["listeners"].as_u64().unwrap_or_default() as usize;
        let listeners = fds.by_ref().take(count).map(TcpListener::from).collect();
        let pids = message.text["workers"].as_array().cloned().unwrap_or_default();
        let pids = pids.iter().filter_map(|pid| Pid::from_raw(pid.as_i64()?.try_into().ok()?));
        let workers = pids.zip(fds).map(|(pid, fd)| Worker { pid, channel: Channel::from_fd(fd) }).collect();
        Inherited { listeners, workers }
    }

    /// The listener on `address`, if there is one.
    fn take_listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let is_it = |l: &TcpListener| l.local_addr().is_ok_and(|a| a == address);
        let index = self.listeners.iter().position(is_it)?;
        Some(self.listeners.swap_remove(index))
    }
}

/// The first process: binds, and supervises or serves.
fn start(launch: &Launch, registry: &Registry, inherited: Inherited) -> Result<(), StartError> {
    let (conf, _) = server::load_conf(&launch.conf_path)?;
    let ctx = Context::new(&launch.process(), &launch.name, &conf.section)?;
    // Threads and workers are to have it too.
    ctx.priority.apply(&ctx.logger);
    let runtime = match conf.workers {
        0 => serving_runtime(&conf)?,
        _ => Builder::new_current_thread().enable_all().build()?,
    };
    let done = runtime.block_on(async {
        // First of all: until then a signal has its default effect, or waits since before the exec.
        let mut signals = Signals::new()?;
        signals::Hold::end()?;
        let logger = ctx.logger.clone();
        let ports = (conf.servers_per_port > 0).then(|| DevicePorts::new(&conf, &ctx));
        // While we may be root, whose key it may be.
        let certificate = conf.certificate()?;
        if certificate.is_some() {
            // Nobody need be there to read it.
            let _ = writeln!(io::stdout(), "{TLS_WARNING}");
        }
        let (mut listeners, stale) = bind(&conf, ports.as_ref(), inherited)?;
        signals::clean_up_daemon_hygiene();
        if conf.workers == 0
            && let Some(listener) = listeners.pop()
        {
            return serve_alone(launch, registry, listener, certificate, &mut signals).await;
        }
        let user = signals::user_to_become(&conf.section)?;
        if user.is_none() {
            signals::warn_of_root(&conf.section, &logger);
        }
        let supervisor = Supervisor {
            launch,
            logger,
            user,
            listeners,
            certificate,
            ports,
            worker: None,
            stale,
            later: None,
        };
        supervisor.run(&mut signals).await
    });
    runtime.shutdown_timeout(STOP_GRACE);
    done
}

/// The inherited sockets, and new ones for other addresses; and the inherited workers.
fn bind(
    conf: &ServerConf,
    ports: Option<&DevicePorts>,
    mut inherited: Inherited,
) -> Result<(Vec<TcpListener>, Vec<Worker>), ConfigError> {
    let mut bind = |conf: &ServerConf| {
        let known = conf.address().ok().and_then(|address| inherited.take_listener(address));
        known.map_or_else(|| conf.bind(conf.bind_timeout), Ok)
    };
    let listeners = match ports {
        None => vec![bind(conf)?],
        Some(ports) => {
            let wanted = ports.wanted();
            wanted.into_iter().filter_map(|port| ports.bound(port, bind(&conf.with_port(port)))).collect()
        }
    };
    Ok((listeners, inherited.workers))
}

/// The ports of our devices, as the rings say.
struct DevicePorts {
    conf: ServerConf,
    rings: Rings,
    ctx: Context,
}

impl DevicePorts {
    fn new(conf: &ServerConf, ctx: &Context) -> DevicePorts {
        let rings = Rings::with_reload(ctx.swift_dir(), Duration::ZERO, ctx.clock.clone());
        DevicePorts { conf: conf.clone(), rings, ctx: ctx.clone() }
    }

    fn wanted(&self) -> BTreeSet<u16> {
        let policies = &self.ctx.swift_conf.policies;
        self.conf.device_ports(&self.rings, policies, |err| self.ctx.logger.error(err))
    }

    /// A port that cannot be had is no reason not to serve the others.
    fn bound(&self, port: u16, bound: Result<TcpListener, ConfigError>) -> Option<TcpListener> {
        bound
            .map_err(|err| self.ctx.logger.critical(format_args!("Unable to bind to port {port}: {err}")))
            .ok()
    }

    fn bind_now(&self, port: u16) -> Option<TcpListener> {
        self.bound(port, self.conf.with_port(port).bind(Duration::ZERO))
    }
}

fn port_of(listener: &TcpListener) -> Option<u16> {
    listener.local_addr().ok().map(|address| address.port())
}

/// A process that serves.
struct Worker {
    pid: Pid,
    channel: Channel,
}

struct Supervisor<'a> {
    launch: &'a Launch,
    logger: Logger,
    user: Option<signals::User>,
    listeners: Vec<TcpListener>,
    /// Read by us: workers may be a user who is not to read the key.
    certificate: Option<Certificate>,
    /// Which sockets there should be, if the rings say that.
    ports: Option<DevicePorts>,
    worker: Option<(Pid, AsyncChannel)>,
    /// Workers of former runs that drain, or will when ours serves.
    stale: Vec<Worker>,
    /// What came while there was something else to do.
    later: Option<Told>,
}

struct Signals {
    term: SignalStream,
    int: SignalStream,
    hup: SignalStream,
    usr1: SignalStream,
    chld: SignalStream,
}

/// What the supervisor or a worker was told to do. Of several, the last of this order is what counts.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    ChildExited,
    Usr1,
    Hup,
    Stop,
}

impl Told {
    /// Whether it is to end the process. All else is done by the next run too: it reads the configuration anew, and looks
    /// after the children.
    fn forbids_reload(self, launch: &Launch) -> bool {
        self == Told::Stop || (self == Told::Hup && launch.swift_signals)
    }
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            chld: signal(SignalKind::child())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.hup.recv() => Told::Hup,
            _ = self.usr1.recv() => Told::Usr1,
            _ = self.chld.recv() => Told::ChildExited,
        }
    }

    /// What has come that nobody has looked at. The runtime needs a turn to hear of it.
    async fn came(&mut self) -> Option<Told> {
        let mut came = None;
        let listen = async {
            loop {
                came = came.max(Some(self.next().await));
            }
        };
        // It has no other end.
        let _: Result<(), _> = tokio::time::timeout(Duration::from_millis(1), listen).await;
        came
    }
}

impl Supervisor<'_> {
    async fn run(mut self, signals: &mut Signals) -> Result<(), StartError> {
        match self.start_worker(signals).await {
            Ok(true) => self.retire_stale(),
            Ok(false) => return self.stop(signals).await,
            Err(err) if self.stale.is_empty() => return Err(err),
            Err(err) => self.keep_old_worker(&err)?,
        }
        // Not being able to close our own streams only costs swift-init some patience.
        let _ = signals::capture_stdio(self.launch.logs_on_stderr());
        signals::systemd_notify(&self.logger, "READY=1");
        loop {
            // Whatever was told: a child may have ended while nobody heard of it.
            if self.reap() {
                tokio::time::sleep(RESPAWN_DELAY).await;
                if !self.respawn(signals).await {
                    return self.stop(signals).await;
                }
            }
            let told = match self.later.take() {
                Some(told) => told,
                None => match self.next_told(signals).await {
                    Some(told) => told,
                    None if self.follow_rings(signals).await? => continue,
                    None => return self.stop(signals).await,
                },
            };
            match told {
                Told::Stop => return self.stop(signals).await,
                Told::Hup if self.launch.swift_signals => {
                    self.leave();
                    return Ok(());
                }
                Told::Hup | Told::Usr1 => {
                    let signal = if told == Told::Hup { "SIGHUP" } else { "SIGUSR1" };
                    self.reload(signal, signals).await;
                }
                Told::ChildExited => {}
            }
        }
    }

    /// The next signal; None when it is time to look at the rings.
    async fn next_told(&self, signals: &mut Signals) -> Option<Told> {
        match &self.ports {
            None => Some(signals.next().await),
            Some(ports) => tokio::time::timeout(ports.conf.ring_check_interval, signals.next()).await.ok(),
        }
    }

    /// Listens where the rings now have our devices, with a new worker if that has changed; false when a signal to stop
    /// came first.
    async fn follow_rings(&mut self, signals: &mut Signals) -> Result<bool, StartError> {
        let Some(ports) = &self.ports else { return Ok(true) };
        let wanted = ports.wanted();
        let bound: BTreeSet<u16> = self.listeners.iter().filter_map(port_of).collect();
        let new: Vec<_> = wanted.difference(&bound).filter_map(|port| ports.bind_now(*port)).collect();
        if new.is_empty() && bound.is_subset(&wanted) {
            return Ok(true);
        }
        let is_wanted = |l: &TcpListener| port_of(l).is_some_and(|port| wanted.contains(&port));
        let (mut kept, gone): (Vec<_>, Vec<_>) = self.listeners.drain(..).partition(is_wanted);
        let known = kept.len();
        kept.extend(new);
        self.listeners = kept;
        if let Some((pid, channel)) = self.worker.take() {
            let channel = Channel::from_fd(channel.fd().try_clone_to_owned()?);
            self.stale.push(Worker { pid, channel });
        }
        match self.start_worker(signals).await {
            Ok(true) => {
                for port in gone.iter().filter_map(port_of) {
                    self.logger.notice(format_args!("Closing unnecessary sock for port {port}"));
                }
                self.retire_stale();
            }
            Ok(false) => return Ok(false),
            Err(err) => {
                // To be tried again.
                self.listeners.truncate(known);
                self.listeners.extend(gone);
                self.keep_old_worker(&err)?;
            }
        }
        Ok(true)
    }

    /// Starts a worker and waits until it serves; false when a signal to stop came first.
    async fn start_worker(&mut self, signals: &mut Signals) -> Result<bool, StartError> {
        let (ours, theirs) = Channel::pair()?;
        let listeners: Vec<_> = self.listeners.iter().map(AsFd::as_fd).collect();
        ours.send(&json!({ "listeners": listeners.len(), "certificate": self.certificate }), &listeners)?;
        let mut command = self.launch.command("worker", theirs.into_fd());
        command.env_remove("NOTIFY_SOCKET");
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid).env("HOME", &user.home);
        }
        let pid = Pid::from_child(&command.spawn()?);
        // With it goes our copy of the worker's end: its death is then the end of the channel.
        drop(command);
        self.logger.notice(format_args!("Started child {pid} from parent {}", std::process::id()));
        let channel = ours.into_async()?;
        loop {
            tokio::select! {
                answer = channel.receive() => {
                    return match answer?.map(|message| message.text) {
                        Some(Value::String(word)) if word == "ready" => {
                            self.worker = Some((pid, channel));
                            Ok(true)
                        }
                        Some(Value::Object(error)) => {
                            let text = error.get("error").and_then(Value::as_str).unwrap_or_default();
                            Err(StartError::Worker(text.to_owned()))
                        }
                        _ => Err(StartError::Worker(format!("worker {pid} did not start normally"))),
                    };
                }
                told = signals.next() => {
                    if told == Told::Stop {
                        self.worker = Some((pid, channel));
                        return Ok(false);
                    }
                    self.later = self.later.max(Some(told));
                }
            }
        }
    }

    /// Replaces a worker that died, again and again if need be and nothing else is to be done; false when a signal to stop
    /// came first.
    async fn respawn(&mut self, signals: &mut Signals) -> bool {
        loop {
            match self.start_worker(signals).await {
                Ok(serves) => return serves,
                Err(err) => self.logger.error(format_args!("Could not start a worker: {err}")),
            }
            if self.later.is_some_and(|told| told > Told::ChildExited) {
                return true;
            }
            tokio::time::sleep(RESPAWN_DELAY).await;
        }
    }

    fn retire_stale(&mut self) {
        for worker in &self.stale {
            // One that is gone already is what we want.
            let _ = rustix::process::kill_process(worker.pid, Signal::USR1);
        }
    }

    /// The new run could not serve: the old one goes on.
    fn keep_old_worker(&mut self, err: &StartError) -> Result<(), StartError> {
        self.logger.error(format_args!("Reload failed, the old worker goes on: {err}"));
        if let Some(worker) = self.stale.pop() {
            self.worker = Some((worker.pid, worker.channel.into_async()?));
        }
        Ok(())
    }

    /// Collects children that have ended; whether our worker was one of them.
    fn reap(&mut self) -> bool {
        let mut lost_worker = false;
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            let parent = std::process::id();
            if let Some(index) = self.stale.iter().position(|worker| worker.pid == pid) {
                self.stale.swap_remove(index);
                self.logger.notice(format_args!("Removing stale child {pid} from parent {parent}"));
            } else if self.worker.as_ref().is_some_and(|(worker, _)| *worker == pid) {
                self.worker = None;
                lost_worker = true;
                self.logger.error(format_args!("Removing dead child {pid} from parent {parent}"));
            }
        }
        lost_worker
    }

    fn pids(&self) -> Vec<Pid> {
        self.worker.iter().map(|(pid, _)| *pid).chain(self.stale.iter().map(|worker| worker.pid)).collect()
    }

    async fn stop(mut self, signals: &mut Signals) -> Result<(), StartError> {
        self.logger.notice(format_args!("SIGTERM received ({})", std::process::id()));
        signals::systemd_notify(&self.logger, "STOPPING=1");
        let signal_all = |pids: Vec<Pid>, signal| {
            for pid in pids {
                // One that is gone already is what we want.
                let _ = rustix::process::kill_process(pid, signal);
            }
        };
        signal_all(self.pids(), Signal::TERM);
        let gone = async {
            while !self.pids().is_empty() {
                self.reap_quietly();
                if !self.pids().is_empty() {
                    signals.next().await;
                }
            }
        };
        if tokio::time::timeout(KILL_AFTER, gone).await.is_err() {
            signal_all(self.pids(), Signal::KILL);
        }
        self.logger.notice(format_args!("Exited ({})", std::process::id()));
        Ok(())
    }

    fn reap_quietly(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, _))) => {
                    self.stale.retain(|worker| worker.pid != pid);
                    self.worker = self.worker.take().filter(|(worker, _)| *worker != pid);
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return,
                // No child is left, whatever our books say.
                Err(_) => {
                    self.stale.clear();
                    self.worker = None;
                    return;
                }
            }
        }
    }

    /// Swift: SIGHUP ends the parent; its workers drain.
    fn leave(&self) {
        self.logger.notice(format_args!("SIGHUP received ({})", std::process::id()));
        signals::systemd_notify(&self.logger, "STOPPING=1");
        for pid in self.pids() {
            // One that is gone already is what we want.
            let _ = rustix::process::kill_process(pid, Signal::HUP);
        }
        self.logger.notice(format_args!("Exited ({})", std::process::id()));
    }

    /// Runs the program anew in this process. Returns only if that could not be done, or if there is something else to do
    /// first.
    async fn reload(&mut self, signal: &str, signals: &mut Signals) {
        self.logger.notice(format_args!("{signal} received ({})", std::process::id()));
        if let Err(err) = check_conf(&self.launch.conf_path) {
            self.logger.error(format_args!("Reload refused: {err}"));
            return;
        }
        signals::systemd_notify(&self.logger, "RELOADING=1");
        let failed = match signals::Hold::begin() {
            Ok(_hold) => {
                self.later = signals.came().await.filter(|told| told.forbids_reload(self.launch));
                if self.later.is_some() {
                    return;
                }
                self.run_anew()
            }
            Err(err) => err,
        };
        self.logger.error(format_args!("Reload failed: {failed}"));
    }

    fn run_anew(&self) -> io::Error {
        let handed_over = || {
            let (ours, theirs) = Channel::pair()?;
            let worker = self.worker.iter().map(|(pid, channel)| (*pid, channel.fd()));
            let workers: Vec<_> = worker.chain(self.stale.iter().map(|w| (w.pid, w.channel.fd()))).collect();
            let pids: Vec<i32> = workers.iter().map(|(pid, _)| pid.as_raw_nonzero().get()).collect();
            let listeners = self.listeners.iter().map(AsFd::as_fd);
            let fds: Vec<_> = listeners.chain(workers.iter().map(|(_, fd)| *fd)).collect();
            ours.send(&json!({ "listeners": self.listeners.len(), "workers": pids }), &fds)?;
            Ok::<_, io::Error>(theirs.into_fd())
        };
        match handed_over() {
            Ok(channel) => exec(self.launch, &self.logger, channel),
            Err(err) => err,
        }
    }
}

/// Replaces this process by a new run of its program.
fn exec(launch: &Launch, logger: &Logger, channel: OwnedFd) -> io::Error {
    let pid = std::process::id();
    logger.info(format_args!("Old server PID={pid} re'execing as: {:?}", launch.argv));
    logger.flush();
    launch.command("reload", channel).exec()
}

fn serving_runtime(conf: &ServerConf) -> io::Result<Runtime> {
    match conf.threads() {
        // Waking a runtime of one thread from a disk thread costs one system call less.
        0 | 1 => Builder::new_current_thread().enable_all().build(),
        threads => {
            Builder::new_multi_thread().worker_threads(threads).thread_name("serve").enable_all().build()
        }
    }
}

/// As many files as the system lets us have: sockets and disks together.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // The soft limit stays where it is if this fails.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The worker: serves the supervisor's socket.
fn work(launch: &Launch, registry: &Registry) -> Result<(), StartError> {
    let channel = Channel::from_stdin()?;
    let message = channel.receive()?.ok_or(StartError::Told)?;
    let certificate: Option<Certificate> = serde_json::from_value(message.text["certificate"].clone())
        .map_err(|err| StartError::Worker(err.to_string()))?;
    let listeners: Vec<TcpListener> = message.fds.into_iter().map(TcpListener::from).collect();
    raise_file_limit();
    let (conf, _) = server::load_conf(&launch.conf_path)?;
    let runtime = serving_runtime(&conf)?;
    let done = runtime.block_on(async {
        let started = server::load(&launch.process(), registry, &launch.name, &launch.conf_path)
            .map_err(StartError::from)
            .and_then(|loaded| Ok((Signals::new()?, loaded.start(listeners, certificate.as_ref())?)));
        let (mut signals, server) = match started {
            Ok(started) => started,
            Err(err) => {
                channel.send(&json!({ "error": err.to_string() }), &[])?;
                return Err(StartError::Told);
            }
        };
        // Not being able to close our own streams only costs swift-init some patience.
        let _ = signals::capture_stdio(launch.logs_on_stderr());
        channel.send(&json!("ready"), &[])?;
        let channel = channel.into_async()?;
        serve_until_told(&server, &conf, &mut signals, Some(&channel)).await;
        Ok(())
    });
    // Disk work that is still going on finishes by itself.
    runtime.shutdown_timeout(STOP_GRACE);
    done
}

/// Serves until a signal or the end of the supervisor, then stops or drains. What it was told, in the end: a drain may
/// become a stop.
async fn serve_until_told(
    server: &RunningServer,
    conf: &ServerConf,
    signals: &mut Signals,
    supervisor: Option<&AsyncChannel>,
) -> Told {
    let gone = async {
        match supervisor {
            // No message comes; the end of the channel does.
            Some(channel) => while matches!(channel.receive().await, Ok(Some(_))) {},
            None => std::future::pending().await,
        }
    };
    let told = tokio::select! {
        told = next_to_obey(server, signals, supervisor.is_none()) => told,
        () = gone => Told::Usr1,
    };
    if told != Told::Stop {
        tokio::select! {
            biased;
            () = until_stop(signals) => {}
            _ = server.stop(conf.stale_worker_timeout) => {
                server.ctx.logger.notice(format_args!("Child {} exiting normally", std::process::id()));
                return told;
            }
        }
    }
    server.stop(STOP_GRACE).await;
    server.ctx.shutdown.trigger();
    Told::Stop
}

/// Reads what another run of the program would read before it listens.
fn check_conf(path: &Path) -> Result<(), ConfigError> {
    let (conf, _) = server::load_conf(path)?;
    conf.certificate().map(drop)
}

/// The next signal to act on. A process without a supervisor refuses to reload a configuration that cannot be read.
async fn next_to_obey(server: &RunningServer, signals: &mut Signals, alone: bool) -> Told {
    loop {
        let told = signals.next().await;
        match check_conf(&server.ctx.conf_path) {
            _ if told == Told::ChildExited => {}
            Err(err) if alone && told != Told::Stop => {
                server.ctx.logger.error(format_args!("Reload refused: {err}"));
            }
            _ => return told,
        }
    }
}

async fn until_stop(signals: &mut Signals) {
    while signals.next().await != Told::Stop {}
}

/// `workers = 0`: one process. A reload drains and then runs the program anew in the same process.
async fn serve_alone(
    launch: &Launch,
    registry: &Registry,
    listener: TcpListener,
    certificate: Option<Certificate>,
    signals: &mut Signals,
) -> Result<(), StartError> {
    raise_file_limit();
    let loaded = server::load(&launch.process(), registry, &launch.name, &launch.conf_path)?;
    let (conf, logger) = (loaded.conf.clone(), loaded.ctx.logger.clone());
    let kept = listener.try_clone()?;
    let server = loaded.start(vec![listener], certificate.as_ref())?;
    // Not being able to close our own streams only costs swift-init some patience.
    let _ = signals::capture_stdio(launch.logs_on_stderr());
    signals::systemd_notify(&logger, "READY=1");
    let told = serve_until_told(&server, &conf, signals, None).await;
    if told == Told::Usr1 || (told == Told::Hup && !launch.swift_signals) {
        signals::systemd_notify(&logger, "RELOADING=1");
        let (ours, theirs) = Channel::pair()?;
        ours.send(&json!({ "listeners": 1, "workers": [] }), &[kept.as_fd()])?;
        drop(ours);
        let _hold = signals::Hold::begin()?;
        if !signals.came().await.is_some_and(|told| told.forbids_reload(launch)) {
            return Err(exec(launch, &logger, theirs.into_fd()).into());
        }
    }
    signals::systemd_notify(&logger, "STOPPING=1");
    Ok(())
}
