//! The processes of a server and its signals, as `swift-init` uses them: an account server, run by the binary under test.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // all of this is test

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use probe::ports::free_ports;
use rustix::process::{Pid, Signal, kill_process};

const MARTLET: &str = env!("CARGO_BIN_EXE_martlet");
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    child: Child,
    address: SocketAddr,
    conf: PathBuf,
    syslog: UnixDatagram,
    systemd: UnixDatagram,
    _dir: tempfile::TempDir,
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_ports(1).unwrap()[0]).into()
}

impl Server {
    /// Started as `swift-init` does: by Swift's name, its output a pipe which it closes when it is up.
    fn start(name: &str, workers: usize) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let conf = dir.path().join("account-server.conf");
        let syslog = UnixDatagram::bind(dir.path().join("log")).unwrap();
        let systemd = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        for socket in [&syslog, &systemd] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        std::fs::write(dir.path().join("swift.conf"), "[swift-hash]\nswift_hash_path_suffix = x\n").unwrap();
        std::fs::write(&conf, conf_text(dir.path(), address, workers)).unwrap();
        let mut command = Command::new(MARTLET);
        command.arg0(name).current_dir(dir.path());
        if name == "martlet" {
            command.arg("account-server");
        }
        command.arg("account-server.conf").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.env("NOTIFY_SOCKET", dir.path().join("notify")).spawn().unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
        let server = Server { child, address, conf, syslog, systemd, _dir: dir };
        server.wait_for_systemd("READY=1");
        server.healthy().unwrap();
        server
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn healthy(&self) -> std::io::Result<()> {
        healthy(self.address)
    }

    fn workers(&self) -> Vec<Pid> {
        let pid = self.pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
    }

    /// Reads the log up to a line with `words`.
    fn wait_for_line(&self, words: &str) {
        read_up_to(&self.syslog, words);
    }

    /// Waits for `READY=1` and its like.
    fn wait_for_systemd(&self, word: &str) {
        read_up_to(&self.systemd, word);
    }

    /// Reads what is there, so that the server does not wait for us to.
    fn read_all(&self) {
        for socket in [&self.syslog, &self.systemd] {
            socket.set_nonblocking(true).unwrap();
            while socket.recv(&mut [0; 4096]).is_ok() {}
            socket.set_nonblocking(false).unwrap();
        }
    }

    fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.ended() {
            self.signal(Signal::TERM);
            // Either it ends, or there is nobody left to care.
            let _ = self.child.wait();
        }
    }
}

fn read_up_to(socket: &UnixDatagram, words: &str) {
    let mut buffer = [0; 4096];
    loop {
        let n = socket.recv(&mut buffer).unwrap();
        if String::from_utf8_lossy(&buffer[..n]).contains(words) {
            return;
        }
    }
}

fn conf_text(dir: &Path, address: SocketAddr, workers: usize) -> String {
    format!(
        "[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {}\nswift_dir = {dir}\ndevices = {dir}\nuser = root\n\
         workers = {workers}\nmount_check = false\nlog_address = {dir}/log\n\
         [pipeline:main]\npipeline = healthcheck account-server\n\
         [app:account-server]\nuse = egg:swift#account\n[filter:healthcheck]\nuse = egg:swift#healthcheck\n",
        address.port(),
        dir = dir.display(),
    )
}

fn ask(stream: &mut TcpStream, close: bool) -> std::io::Result<()> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    stream.write_all(format!("GET /healthcheck HTTP/1.1\r\nHost: h\r\n{connection}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nOK") {
        let mut buffer = [0; 512];
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend(&buffer[..n]),
        }
    }
    Ok(())
}

fn healthy(address: SocketAddr) -> std::io::Result<()> {
    ask(&mut TcpStream::connect(address)?, true)
}

/// Asks over new connections until told to end; how many were answered.
fn hammer(address: SocketAddr, ends: Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let mut answered = 0;
        while !ends.load(Ordering::Relaxed) {
            healthy(address).unwrap();
            answered += 1;
        }
        answered
    })
}

fn reloads_without_a_lost_connection(name: &str, signal: Signal) {
    let server = Server::start(name, 1);
    let ends = Arc::new(AtomicBool::new(false));
    let hammering = hammer(server.address, ends.clone());
    for _ in 0..3 {
        let before = server.workers();
        server.signal(signal);
        wait_until("a new worker alone", || {
            let now = server.workers();
            now.len() == 1 && now != before
        });
    }
    ends.store(true, Ordering::Relaxed);
    assert!(hammering.join().unwrap() > 0);
}

#[test]
fn usr1_reloads_without_a_lost_connection() {
    reloads_without_a_lost_connection("swift-account-server", Signal::USR1);
}

#[test]
fn hup_reloads_too_under_our_own_name() {
    reloads_without_a_lost_connection("martlet", Signal::HUP);
}

#[test]
fn a_request_across_a_reload_is_answered_by_the_old_worker() {
    let server = Server::start("swift-account-server", 1);
    let old = server.workers();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"GET /healthcheck HTTP/1.1\r\n").unwrap();
    // The worker has the connection when it has answered one that came after it.
    server.healthy().unwrap();
    server.signal(Signal::USR1);
    wait_until("a second worker", || server.workers().len() == 2);
    server.healthy().unwrap();
    stream.write_all(b"Host: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    wait_until("the old worker to go", || server.workers().iter().all(|pid| !old.contains(pid)));
}

#[test]
fn hup_under_swifts_name_ends_the_parent_at_once_and_lets_the_worker_finish() {
    let mut server = Server::start("swift-account-server", 1);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"GET /healthcheck HTTP/1.1\r\n").unwrap();
    server.healthy().unwrap();
    server.signal(Signal::HUP);
    wait_until("the parent to go", || server.ended());
    wait_until("the port to be free", || TcpStream::connect(server.address).is_err());
    stream.write_all(b"Host: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn a_dead_worker_is_replaced_while_connections_wait() {
    let server = Server::start("swift-account-server", 1);
    let old = server.workers();
    kill_process(old[0], Signal::KILL).unwrap();
    server.healthy().unwrap();
    assert_ne!(server.workers(), old);
}

#[test]
fn a_bad_configuration_refuses_the_reload() {
    let server = Server::start("swift-account-server", 1);
    let old = server.workers();
    let good = std::fs::read_to_string(&server.conf).unwrap();
    for (text, line) in [
        (good.replace("workers = 1", "workers = many"), "Reload refused: "),
        (good.replace("egg:swift#account", "egg:swift#acount"), "Reload failed, the old worker goes on: "),
    ] {
        std::fs::write(&server.conf, text).unwrap();
        server.signal(Signal::USR1);
        server.wait_for_line(line);
        server.healthy().unwrap();
        assert!(server.workers().contains(&old[0]));
    }
    std::fs::write(&server.conf, good).unwrap();
    server.signal(Signal::USR1);
    wait_until("a new worker alone", || {
        let now = server.workers();
        now.len() == 1 && now != old
    });
    server.healthy().unwrap();
}

/// Delays from nothing to what a reload takes, so that a second signal meets every stage of it.
fn delays() -> impl Iterator<Item = Duration> {
    (0..24).map(|n| Duration::from_micros(n * 700))
}

/// A second reload with another configuration is not lost, whatever the first one is about to do.
#[test]
fn a_reload_is_not_lost_during_a_reload() {
    let mut server = Server::start("swift-account-server", 1);
    let old = std::fs::read_to_string(&server.conf).unwrap();
    for delay in delays() {
        let address = free_address();
        server.signal(Signal::USR1);
        std::thread::sleep(delay);
        let port = |port: u16| format!("bind_port = {port}\n");
        let new = old.replace(&port(server.address.port()), &port(address.port()));
        assert_ne!(new, old);
        // No reload is to read half a file.
        let written = server.conf.with_extension("new");
        std::fs::write(&written, new).unwrap();
        std::fs::rename(&written, &server.conf).unwrap();
        server.signal(Signal::USR1);
        wait_until("the new port", || {
            server.read_all();
            assert!(!server.ended(), "ended after {delay:?}");
            healthy(address).is_ok()
        });
    }
}

#[test]
fn a_stop_is_not_lost_during_a_reload() {
    for (delay, signal) in delays().zip([Signal::TERM, Signal::HUP].into_iter().cycle()) {
        let mut server = Server::start("swift-account-server", 1);
        server.signal(Signal::USR1);
        std::thread::sleep(delay);
        server.signal(signal);
        wait_until("the server to stop", || server.ended());
        assert_eq!(server.child.wait().unwrap().code(), Some(0), "{signal:?} after {delay:?}");
        wait_until("the port to be free", || TcpStream::connect(server.address).is_err());
    }
}

#[test]
fn without_workers_one_process_serves_and_reloads() {
    let mut server = Server::start("swift-account-server", 0);
    assert!(server.workers().is_empty());
    let ends = Arc::new(AtomicBool::new(false));
    let hammering = hammer(server.address, ends.clone());
    server.signal(Signal::USR1);
    server.wait_for_systemd("RELOADING=1");
    server.wait_for_systemd("READY=1");
    server.healthy().unwrap();
    ends.store(true, Ordering::Relaxed);
    assert!(hammering.join().unwrap() > 0);
    server.signal(Signal::TERM);
    wait_until("the server to stop", || server.ended());
}

#[test]
fn term_stops_parent_and_worker() {
    let mut server = Server::start("swift-account-server", 1);
    let worker = server.workers()[0];
    server.signal(Signal::TERM);
    server.wait_for_systemd("STOPPING=1");
    wait_until("the server to stop", || server.ended());
    assert!(rustix::process::test_kill_process(worker).is_err());
    assert!(server.healthy().is_err());
}

#[test]
fn mistakes_are_one_line_and_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        let conf = dir.path().join("account-server.conf");
        std::fs::write(&conf, text).unwrap();
        let out = Command::new(MARTLET).arg("account-server").arg(&conf).output().unwrap();
        (
            out.status.code(),
            String::from_utf8(out.stderr).unwrap().replace(&conf.display().to_string(), "CONF"),
        )
    };
    let address = "127.0.0.1:1".parse().unwrap();
    let good = conf_text(dir.path(), address, 1);
    std::fs::write(dir.path().join("swift.conf"), "[swift-hash]\nswift_hash_path_suffix = x\n").unwrap();
    for (text, expected) in [
        (good.replace("bind_port = 1\n", ""), "CONF: [app:account-server] bind_port"),
        (good.replace("workers = 1", "workers = many"), "CONF: [DEFAULT] workers = many: "),
        (
            good.replace("egg:swift#account", "egg:swift#acount"),
            "CONF: [app:account-server] use = egg:swift#acount: ",
        ),
        (
            good.replace("pipeline = healthcheck", "pipeline = healthchek"),
            "CONF: [filter:healthchek]: no such section",
        ),
        (good.replace("bind_ip = 127.0.0.1", "bind_ip = 192.0.2.1"), "CONF: [DEFAULT] bind_ip = 192.0.2.1: "),
    ] {
        let (code, said) = run(&text);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.starts_with(expected) && said.trim_end().lines().count() == 1, "{expected}: {said}");
    }
    std::fs::remove_file(dir.path().join("swift.conf")).unwrap();
    let (code, said) = run(&good);
    assert!(code == Some(1) && said.contains("swift.conf") && said.trim_end().lines().count() == 1, "{said}");
}
