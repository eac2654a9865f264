//! Swift's log lines: `name: message (txn: tx...) (client_ip: ...)`, on syslog and, when interactive, on stderr.
//!
//! A line is one datagram `<priority>name: message\0` to `log_address` (default /dev/log) or, with `log_udp_host`
//! or without such a socket, by UDP. A newline in a message is written `#012`. Requests never wait for the syslog daemon; one
//! that stands still for longer than [`PATIENCE`] costs lines, which are counted.
//!
//! Lines up to INFO, such as one for each request, wait up to [`LINGER`] and go out together from a thread of their own, many in
//! one system call: to wake the syslog daemon for each of them costs more than to write them. Anything more urgent goes
//! out at once, after those that wait.
//!
//! A [`Logger`] is a cheap clone: `with_txn` and `with_prefix` make one that marks its lines. `log_custom_handlers`
//! names Python code and is not supported.

use std::fmt::{self, Display, Write as _};
use std::io::{IoSlice, Write as _};
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

const SYSLOG_UDP_PORT: u16 = 514;
/// A lost syslog socket is opened again at most this often.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long a line that is not urgent waits for others.
const LINGER: Duration = Duration::from_millis(10);
/// How long the thread that sends waits for a daemon that takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_micros(200);
/// Lines that go out in one system call.
const AT_ONCE: usize = 64;
/// Lines beyond this many bytes that wait are dropped.
const OUTBOX_LIMIT: usize = 1 << 20;
/// The thread that sends ends after this long without a line.
const SENDER_IDLE: Duration = Duration::from_secs(5);
const SENDER_STACK: usize = 128 * 1024;

/// In syslog's order of urgency; NOTICE is Swift's level between INFO and WARNING.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
}

impl Level {
    fn syslog_severity(self) -> u8 {
        match self {
            Level::Debug => 7,
            Level::Info => 6,
            Level::Notice => 5,
            Level::Warning => 4,
            Level::Error => 3,
            Level::Critical => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Notice => "NOTICE",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
            Level::Critical => "CRITICAL",
        }
    }

    /// Swift: logs.get_swift_logger takes a level that it does not know for INFO.
    fn from_option(name: &str) -> Level {
        match name.to_ascii_uppercase().as_str() {
            "DEBUG" | "NOTSET" => Level::Debug,
            "WARNING" | "WARN" => Level::Warning,
            "ERROR" => Level::Error,
            "CRITICAL" | "FATAL" => Level::Critical,
            _ => Level::Info,
        }
    }
}

/// Receives every line that passes the level: `up` shows them, tests look at them.
pub trait Sink: Send + Sync {
    fn line(&self, level: Level, line: &str);

    /// Returns when every line has gone out.
    fn flush(&self) {}
}

#[derive(Clone)]
pub struct Logger {
    shared: Arc<Shared>,
    name: Arc<str>,
    prefix: Arc<str>,
    txn: Option<Arc<str>>,
    client_ip: Option<Arc<str>>,
}

struct Shared {
    level: Level,
    max_line_length: usize,
    sinks: Vec<Arc<dyn Sink>>,
}

impl Logger {
    /// A logger as the options `log_*` of `section` say. `name` is used unless `log_name` is set.
    pub fn from_section(section: &Section, name: &str, console: bool) -> Result<Logger, ConfigError> {
        let mut sinks: Vec<Arc<dyn Sink>> = vec![Arc::new(Syslog::from_section(section)?)];
        if console {
            sinks.push(Arc::new(Stderr));
        }
        Self::with_sinks(section, name, sinks)
    }

    /// The same, into the given sinks.
    pub fn with_sinks(
        section: &Section,
        name: &str,
        sinks: Vec<Arc<dyn Sink>>,
    ) -> Result<Logger, ConfigError> {
        let shared = Shared {
            level: Level::from_option(&section.str("log_level", "INFO")),
            max_line_length: section.int("log_max_line_length", 0usize)?,
            sinks,
        };
        Ok(Self::build(shared, &section.str("log_name", name)))
    }

    /// Every line into one sink: for tests and for programs without a configuration.
    pub fn to_sink(name: &str, level: Level, sink: Arc<dyn Sink>) -> Logger {
        Self::build(Shared { level, max_line_length: 0, sinks: vec![sink] }, name)
    }

    pub fn to_stderr(name: &str) -> Logger {
        Self::to_sink(name, Level::Info, Arc::new(Stderr))
    }

    /// A logger and the lines which it has written: for tests.
    pub fn memory() -> (Logger, Lines) {
        let lines = Lines::default();
        (Self::to_sink("test", Level::Debug, Arc::new(lines.clone())), lines)
    }

    fn build(shared: Shared, name: &str) -> Logger {
        Logger { shared: Arc::new(shared), name: name.into(), prefix: "".into(), txn: None, client_ip: None }
    }

    /// The `server` of the lines: `object-server`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Marks the lines with a transaction.
    pub fn with_txn(&self, trans_id: &str) -> Logger {
        let txn = (!trans_id.is_empty()).then(|| trans_id.into());
        Logger { txn, ..self.clone() }
    }

    /// Marks the lines (other than INFO) with the address of a client.
    pub fn with_client_ip(&self, client_ip: &str) -> Logger {
        let client_ip = (!client_ip.is_empty()).then(|| client_ip.into());
        Logger { client_ip, ..self.clone() }
    }

    /// Puts `prefix` before every message.
    pub fn with_prefix(&self, prefix: &str) -> Logger {
        Logger { prefix: prefix.into(), ..self.clone() }
    }

    /// Whether a line of `level` would be written; lets a caller spare the work of making it.
    pub fn enabled(&self, level: Level) -> bool {
        level >= self.shared.level
    }

    pub fn debug(&self, message: impl Display) {
        self.log(Level::Debug, message);
    }

    pub fn info(&self, message: impl Display) {
        self.log(Level::Info, message);
    }

    pub fn notice(&self, message: impl Display) {
        self.log(Level::Notice, message);
    }

    pub fn warning(&self, message: impl Display) {
        self.log(Level::Warning, message);
    }

    pub fn error(&self, message: impl Display) {
        self.log(Level::Error, message);
    }

    pub fn critical(&self, message: impl Display) {
        self.log(Level::Critical, message);
    }

    pub fn log(&self, level: Level, message: impl Display) {
        if !self.enabled(level) {
            return;
        }
        let line = self.format(level, message);
        for sink in &self.shared.sinks {
            sink.line(level, &line);
        }
    }

    /// Sends what still waits; to be called before the process ends.
    pub fn flush(&self) {
        self.shared.sinks.iter().for_each(|sink| sink.flush());
    }

    fn format(&self, level: Level, message: impl Display) -> String {
        let mut line = String::with_capacity(384);
        // Writing to a String cannot fail.
        let _ = write!(line, "{}: {}{message}", self.name, self.prefix);
        if line.contains('\n') {
            line = line.replace('\n', "#012");
        }
        if let Some(txn) = &self.txn
            && !line.contains(&**txn)
        {
            let _ = write!(line, " (txn: {txn})");
        }
        if let Some(client_ip) = &self.client_ip
            && level != Level::Info
            && !line.contains(&**client_ip)
        {
            let _ = write!(line, " (client_ip: {client_ip})");
        }
        shorten(line, self.shared.max_line_length)
    }
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logger").field("name", &self.name).field("txn", &self.txn).finish()
    }
}

/// The loggers of a process, to be flushed together before it ends.
#[derive(Clone, Default)]
pub struct OpenLogs(Arc<Mutex<Vec<Logger>>>);

impl OpenLogs {
    pub fn add(&self, logger: &Logger) {
        self.0.lock().push(logger.clone());
    }

    pub fn flush(&self) {
        self.0.lock().iter().for_each(Logger::flush);
    }
}

/// Cuts the middle out of a line of more than `max` characters; 0 keeps every line.
fn shorten(line: String, max: usize) -> String {
    if max == 0 || line.chars().count() <= max {
        return line;
    }
    let chars: Vec<char> = line.chars().collect();
    if max < 7 {
        return chars[..max].iter().collect();
    }
    let half = (max - 5) / 2;
    let head: String = chars[..half].iter().collect();
    let tail: String = chars[chars.len() - half..].iter().collect();
    format!("{head} ... {tail}")
}

/// Lines kept in memory.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    pub fn all(&self) -> Vec<(Level, String)> {
        self.0.lock().clone()
    }

    /// The lines of at least `level`.
    pub fn at_least(&self, level: Level) -> Vec<String> {
        self.0.lock().iter().filter(|(l, _)| *l >= level).map(|(_, line)| line.clone()).collect()
    }

    pub fn contains(&self, text: &str) -> bool {
        self.0.lock().iter().any(|(_, line)| line.contains(text))
    }
}

impl Sink for Lines {
    fn line(&self, level: Level, line: &str) {
        self.0.lock().push((level, line.to_owned()));
    }
}

/// `swift-init` and a person at a terminal read the lines here.
pub struct Stderr;

impl Sink for Stderr {
    fn line(&self, _level: Level, line: &str) {
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// The syslog daemon at a local socket or at a UDP address.
pub struct Syslog {
    facility: u8,
    outbox: Arc<Outbox>,
}

/// Datagrams on their way to the daemon.
struct Outbox {
    waiting: Mutex<Waiting>,
    work: Condvar,
    /// Held while datagrams are sent, so that they keep their order.
    socket: Mutex<SocketState>,
    target: Target,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    datagrams: Datagrams,
    sender: Sender,
}

/// Datagrams one after the other, and where each ends.
#[derive(Default)]
struct Datagrams {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// What the thread that sends does.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Sender {
    #[default]
    None,
    Idle,
    /// It will look at what waits, after a while.
    Lingers,
}

enum Target {
    Local(PathBuf),
    Udp(String, u16),
}

enum Socket {
    Local(UnixDatagram),
    Udp(UdpSocket),
}

#[derive(Default)]
struct SocketState {
    socket: Option<Socket>,
    failed_at: Option<Instant>,
}

impl Syslog {
    fn from_section(section: &Section) -> Result<Syslog, ConfigError> {
        let facility = facility_number(&section.str("log_facility", "LOG_LOCAL0"));
        let address = PathBuf::from(section.str("log_address", "/dev/log"));
        let port = section.int("log_udp_port", SYSLOG_UDP_PORT)?;
        let target = match section.get("log_udp_host").filter(|host| !host.is_empty()) {
            Some(host) => Target::Udp(host.to_owned(), port),
            None if is_socket(&address) => Target::Local(address),
            None => Target::Udp("localhost".to_owned(), SYSLOG_UDP_PORT),
        };
        Ok(Syslog { facility, outbox: Arc::new(Outbox::new(target)) })
    }

    /// Lines which could not be delivered.
    pub fn dropped(&self) -> u64 {
        self.outbox.dropped.load(Ordering::Relaxed)
    }
}

impl Sink for Syslog {
    fn line(&self, level: Level, line: &str) {
        let priority = (self.facility << 3) | level.syslog_severity();
        let mut waiting = self.outbox.waiting.lock();
        if waiting.datagrams.bytes.len() > OUTBOX_LIMIT {
            self.outbox.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.datagrams.push(format_args!("<{priority}>{line}\0"));
        if level > Level::Info {
            drop(waiting);
            self.outbox.send_waiting(Duration::ZERO);
            waiting = self.outbox.waiting.lock();
        }
        if !waiting.datagrams.ends.is_empty() && waiting.sender != Sender::Lingers {
            Outbox::call_sender(&self.outbox, waiting);
        }
    }

    fn flush(&self) {
        self.outbox.send_waiting(PATIENCE);
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        self.outbox.send_waiting(PATIENCE);
    }
}

impl Datagrams {
    fn push(&mut self, datagram: fmt::Arguments<'_>) {
        // Writing to a Vec cannot fail.
        let _ = self.bytes.write_fmt(datagram);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    /// Takes those from the `n`-th on, and then `later` ones.
    fn rest(&self, n: usize, later: &Datagrams) -> Datagrams {
        let mut rest = Datagrams::default();
        for datagram in self.iter().skip(n).chain(later.iter()) {
            rest.bytes.extend_from_slice(datagram);
            rest.ends.push(rest.bytes.len());
        }
        rest
    }
}

impl Outbox {
    fn new(target: Target) -> Outbox {
        Outbox {
            waiting: Mutex::default(),
            work: Condvar::new(),
            socket: Mutex::default(),
            target,
            dropped: AtomicU64::new(0),
        }
    }

    /// Sees to it that what waits is sent after a while.
    fn call_sender(outbox: &Arc<Outbox>, mut waiting: MutexGuard<'_, Waiting>) {
        let idle = waiting.sender == Sender::Idle;
        waiting.sender = Sender::Lingers;
        drop(waiting);
        if idle {
            outbox.work.notify_one();
            return;
        }
        let sender = outbox.clone();
        let thread = std::thread::Builder::new().name("syslog".to_owned()).stack_size(SENDER_STACK);
        if thread.spawn(move || sender.send_until_idle()).is_err() {
            outbox.waiting.lock().sender = Sender::None;
            outbox.send_waiting(Duration::ZERO);
        }
    }

    /// The life of the thread that sends: it ends when there is nothing to send for a while.
    fn send_until_idle(&self) {
        loop {
            std::thread::sleep(LINGER);
            self.send_waiting(PATIENCE);
            let mut waiting = self.waiting.lock();
            if !waiting.datagrams.ends.is_empty() {
                continue;
            }
            waiting.sender = Sender::Idle;
            while waiting.sender == Sender::Idle {
                if self.work.wait_for(&mut waiting, SENDER_IDLE).timed_out() && waiting.sender == Sender::Idle
                {
                    waiting.sender = Sender::None;
                    return;
                }
            }
        }
    }

    /// Sends what waits. Of a daemon that takes nothing for as long as `patience` the rest is dropped; without any patience
    /// it goes on waiting, also if somebody is sending already.
    fn send_waiting(&self, patience: Duration) {
        let socket = match patience.is_zero() {
            true => self.socket.try_lock(),
            false => Some(self.socket.lock()),
        };
        let Some(mut socket) = socket else { return };
        let datagrams = std::mem::take(&mut self.waiting.lock().datagrams);
        let each: Vec<&[u8]> = datagrams.iter().collect();
        let mut n = 0;
        let mut progress = Instant::now();
        while n < each.len() {
            match socket.send(&self.target, &each[n..each.len().min(n + AT_ONCE)]) {
                Sent::Some(sent) => {
                    n += sent;
                    progress = Instant::now();
                }
                Sent::Full if patience.is_zero() => {
                    let mut waiting = self.waiting.lock();
                    waiting.datagrams = datagrams.rest(n, &waiting.datagrams);
                    return;
                }
                Sent::Full if progress.elapsed() < patience => std::thread::sleep(RETRY),
                Sent::Full | Sent::Lost => {
                    n += 1;
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// What became of datagrams.
enum Sent {
    /// So many of them went out, at least one.
    Some(usize),
    /// The daemon has to read first.
    Full,
    /// The first is.
    Lost,
}

impl Target {
    fn open(&self) -> std::io::Result<Socket> {
        match self {
            Target::Local(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Local(socket))
            }
            Target::Udp(host, port) => {
                let address = (host.as_str(), *port)
                    .to_socket_addrs()?
                    .next()
                    .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
                let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(local)?;
                socket.connect(address)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Udp(socket))
            }
        }
    }
}

impl SocketState {
    /// Sends what the daemon takes of `datagrams` at once.
    fn send(&mut self, target: &Target, datagrams: &[&[u8]]) -> Sent {
        if self.socket.is_none() {
            if self.failed_at.is_some_and(|at| at.elapsed() < RECONNECT) {
                return Sent::Lost;
            }
            match target.open() {
                Ok(socket) => *self = SocketState { socket: Some(socket), failed_at: None },
                Err(_) => {
                    self.failed_at = Some(Instant::now());
                    return Sent::Lost;
                }
            }
        }
        let Some(socket) = &self.socket else { return Sent::Lost };
        let sent = match socket {
            Socket::Local(_) => send_together(socket.as_fd(), datagrams),
            // A refused datagram only says that nobody listened to the one before.
            Socket::Udp(_) => {
                send_together(socket.as_fd(), datagrams).or_else(|_| send_together(socket.as_fd(), datagrams))
            }
        };
        match sent {
            Ok(sent) => Sent::Some(sent),
            Err(Errno::AGAIN) => Sent::Full,
            Err(_) => {
                *self = SocketState { socket: None, failed_at: Some(Instant::now()) };
                Sent::Lost
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Local(socket) => socket.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }
}

/// How many of `datagrams` went out; an error if the first did not.
fn send_together(socket: BorrowedFd<'_>, datagrams: &[&[u8]]) -> rustix::io::Result<usize> {
    let parts: Vec<[IoSlice<'_>; 1]> = datagrams.iter().map(|datagram| [IoSlice::new(datagram)]).collect();
    let mut no_control: Vec<_> = parts.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<_> =
        parts.iter().zip(&mut no_control).map(|(part, control)| MMsgHdr::new(part, control)).collect();
    sendmmsg(socket, &mut messages, SendFlags::empty())
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.metadata().is_ok_and(|m| m.file_type().is_socket())
}

/// Swift: logs.get_swift_logger takes a facility that it does not know for LOG_LOCAL0.
fn facility_number(name: &str) -> u8 {
    const LOCAL0: u8 = 16;
    const NAMES: [&str; 12] = [
        "KERN", "USER", "MAIL", "DAEMON", "AUTH", "SYSLOG", "LPR", "NEWS", "UUCP", "CRON", "AUTHPRIV", "FTP",
    ];
    let Some(name) = name.strip_prefix("LOG_") else { return LOCAL0 };
    if let Some(local) = name.strip_prefix("LOCAL").and_then(|n| n.parse::<u8>().ok()).filter(|n| *n < 8) {
        return LOCAL0 + local;
    }
    NAMES.iter().position(|n| *n == name).map_or(LOCAL0, |n| n as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::Conf;

    fn section(text: &str) -> Section {
        Conf::parse(&format!("[s]\n{text}"), "test.conf").unwrap().section("s").unwrap()
    }

    #[test]
    fn a_line_names_server_transaction_and_client_once() {
        let (logger, lines) = Logger::memory();
        let logger = logger.with_txn("tx1").with_client_ip("10.0.0.1");
        logger.info("served");
        logger.error("failed\nbadly");
        logger.error("tx1 from 10.0.0.1 failed");
        logger.with_prefix("ssync: ").notice("done");
        let lines: Vec<String> = lines.all().into_iter().map(|(_, line)| line).collect();
        assert_eq!(
            lines,
            [
                "test: served (txn: tx1)",
                "test: failed#012badly (txn: tx1) (client_ip: 10.0.0.1)",
                "test: tx1 from 10.0.0.1 failed",
                "test: ssync: done (txn: tx1) (client_ip: 10.0.0.1)",
            ]
        );
    }

    #[test]
    fn lines_below_the_level_are_not_written() {
        let lines = Lines::default();
        let conf = section("log_level = warning\nlog_name = swift\n");
        let logger = Logger::with_sinks(&conf, "object-server", vec![Arc::new(lines.clone())]).unwrap();
        logger.notice("no");
        logger.warning("yes");
        assert_eq!(lines.all(), [(Level::Warning, "swift: yes".to_owned())]);
        assert!(!logger.enabled(Level::Notice));
    }

    #[test]
    fn long_lines_lose_their_middle() {
        assert_eq!(shorten("0123456789".into(), 0), "0123456789");
        assert_eq!(shorten("0123456789".into(), 9), "01 ... 89");
        assert_eq!(shorten("0123456789".into(), 5), "01234");
    }

    #[test]
    fn a_datagram_carries_facility_and_severity_as_swifts_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let conf = section(&format!("log_address = {}\nlog_facility = LOG_LOCAL2\n", path.display()));
        let logger = Logger::from_section(&conf, "object-server", false).unwrap();
        logger.notice("Started child 2 from parent 1");
        let mut buffer = [0; 256];
        let n = daemon.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"<149>object-server: Started child 2 from parent 1\0");
    }

    #[test]
    fn lines_of_requests_wait_for_each_other_and_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let conf = section(&format!("log_address = {}\n", path.display()));
        let logger = Logger::from_section(&conf, "s", false).unwrap();
        let mut buffer = [0; 256];
        let mut next =
            || daemon.recv(&mut buffer).map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned());
        for round in 0..3 {
            logger.info(round);
            logger.info("served");
            logger.warning("now");
            logger.info("later");
            let lines: Vec<String> = (0..4).map(|_| next().unwrap()).collect();
            let first = format!("<134>s: {round}\0");
            assert_eq!(lines, [&first, "<134>s: served\0", "<132>s: now\0", "<134>s: later\0"]);
        }
        logger.info("last");
        drop(logger);
        assert_eq!(next().unwrap(), "<134>s: last\0");
    }

    #[test]
    fn a_daemon_that_is_slow_gets_every_line_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let conf = section(&format!("log_address = {}\n", path.display()));
        let logger = Logger::from_section(&conf, "s", false).unwrap();
        // More than a socket takes.
        for n in 0..2000 {
            logger.log(if n % 3 == 0 { Level::Error } else { Level::Info }, n);
        }
        let mut buffer = [0; 256];
        for n in 0..2000 {
            let length = daemon.recv(&mut buffer).unwrap();
            assert!(buffer[..length].ends_with(format!("s: {n}\0").as_bytes()));
        }
    }

    #[test]
    fn lines_go_by_udp_when_a_host_is_given() {
        let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = daemon.local_addr().unwrap().port();
        let conf = section(&format!("log_udp_host = 127.0.0.1\nlog_udp_port = {port}\n"));
        Logger::from_section(&conf, "proxy-server", false).unwrap().error("ouch");
        let mut buffer = [0; 256];
        let n = daemon.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"<131>proxy-server: ouch\0");
    }

    #[test]
    fn facilities_are_known_by_name() {
        assert_eq!(facility_number("LOG_LOCAL0"), 16);
        assert_eq!(facility_number("LOG_LOCAL7"), 23);
        assert_eq!(facility_number("LOG_DAEMON"), 3);
        assert_eq!(facility_number("nonsense"), 16);
    }
}
