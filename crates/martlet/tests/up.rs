//! `martlet up` as a person uses it: a cluster of the binary under test, asked over plain HTTP.

#![allow(clippy::unwrap_used)] // all of this is test

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use probe::ports::{base_port, free_ports};

const MARTLET: &str = env!("CARGO_BIN_EXE_martlet");
const PATIENCE: Duration = Duration::from_secs(60);

struct Up {
    child: Child,
    data: PathBuf,
    port: u16,
}

impl Up {
    fn start(data: &Path, options: &[&str]) -> Up {
        let mut command = Command::new(MARTLET);
        command.args(["up", "--data"]).arg(data).args(options).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let auth = lines.find_map(|line| Some(line.unwrap().split_once("http://127.0.0.1:")?.1.to_owned()));
        let auth = auth.expect("the welcome says how to reach the cluster");
        let port = auth.split('/').next().unwrap().parse().unwrap();
        Up { child, data: data.to_owned(), port }
    }

    fn ask(&self, words: &[&str]) -> Output {
        Command::new(MARTLET).arg("up").args(words).arg("--data").arg(&self.data).output().unwrap()
    }

    fn told(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        http(self.port, method, path, headers, body).unwrap()
    }

    fn token(&self) -> String {
        let user = [("X-Auth-User", "test:tester"), ("X-Auth-Key", "testing")];
        let (status, answer) = self.http("GET", "/auth/v1.0", &user, "");
        assert_eq!(status, 200, "{answer}");
        let token = answer.lines().find_map(|line| line.strip_prefix("X-Auth-Token: "));
        token.unwrap().trim().to_owned()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Gone already, or ended by this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status and the whole answer.
fn http(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok((status, answer))
}

#[test]
fn a_cluster_stores_loses_a_node_is_killed_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let base = base_port().unwrap();
    let port = free_ports(1).unwrap()[0];
    let up = Up::start(&data, &["--port", &port.to_string(), "--base-port", &base.to_string()]);
    assert_eq!(up.port, port);
    let token = up.token();
    let auth = [("X-Auth-Token", token.as_str())];
    assert_eq!(up.http("PUT", "/v1/AUTH_test/c", &auth, "").0, 201);
    let archive = [auth[0], ("X-Storage-Policy", "archive")];
    assert_eq!(up.http("PUT", "/v1/AUTH_test/a", &archive, "").0, 201);
    assert_eq!(up.http("PUT", "/v1/AUTH_test/c/o", &auth, "first").0, 201);

    let object_port = base + 30;
    assert_eq!(http(object_port, "GET", "/healthcheck", &[], "").unwrap().0, 200);
    assert_eq!(up.told(&["stop-node", "3"]), "node 3 is stopped\n");
    assert!(TcpStream::connect(("127.0.0.1", object_port)).is_err());
    assert!(up.told(&["status"]).lines().any(|line| line.starts_with("node 3") && line.ends_with("stopped")));
    assert_eq!(up.http("PUT", "/v1/AUTH_test/c/o", &auth, "second").0, 201);
    assert_eq!(up.http("PUT", "/v1/AUTH_test/a/o", &auth, "archived").0, 201);
    assert_eq!(up.told(&["start-node", "3"]), "node 3 is started\n");
    assert_eq!(up.told(&["start-node", "3"]), "node 3 runs already\n");
    assert_eq!(http(object_port, "GET", "/healthcheck", &[], "").unwrap().0, 200);
    assert!(http(object_port, "GET", "/metrics", &[], "").unwrap().1.contains("swift_requests_total"));
    let wrong = up.ask(&["stop-node", "9"]);
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("there is no node 9: expected 1 to 4"));

    up.kill();
    let up = Up::start(&data, &[]);
    assert_eq!(up.port, port);
    let token = up.token();
    let auth = [("X-Auth-Token", token.as_str())];
    let (status, answer) = up.http("GET", "/v1/AUTH_test/c/o", &auth, "");
    assert!(status == 200 && answer.ends_with("\r\n\r\nsecond"), "{answer}");
    let (status, answer) = up.http("GET", "/v1/AUTH_test/a/o", &auth, "");
    assert!(status == 200 && answer.ends_with("\r\n\r\narchived"), "{answer}");
}

#[test]
fn term_ends_a_cluster_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_ports(1).unwrap()[0].to_string();
    let base = base_port().unwrap().to_string();
    let options =
        ["--port", &port, "--base-port", &base, "--nodes", "1", "--devices", "1", "--replicas", "1"];
    let mut up = Up::start(dir.path(), &options);
    let second = Command::new(MARTLET).args(["up", "--data"]).arg(dir.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&second.stderr).contains("a cluster already runs on"));
    let pid = rustix::process::Pid::from_child(&up.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let began = Instant::now();
    while up.child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "it does not stop");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(up.child.wait().unwrap().success());
    let nobody = up.ask(&["status"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no cluster runs on"));
}

#[test]
fn what_expires_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_ports(1).unwrap()[0].to_string();
    let base = base_port().unwrap().to_string();
    let mut prepare = Command::new(MARTLET);
    prepare.args(["up", "--prepare", "--port", &port, "--base-port", &base, "--data"]).arg(dir.path());
    prepare.args(["--nodes", "1", "--devices", "1", "--replicas", "1"]);
    assert!(prepare.output().unwrap().status.success());
    for conf in ["object-expirer.conf", "node1/container-server.conf"] {
        let conf = dir.path().join("etc").join(conf);
        let text = std::fs::read_to_string(&conf).unwrap();
        std::fs::write(&conf, text.replace("\ninterval = 10\n", "\ninterval = 0.2\n")).unwrap();
    }
    let up = Up::start(dir.path(), &[]);
    let token = up.token();
    let auth = [("X-Auth-Token", token.as_str())];
    assert_eq!(up.http("PUT", "/v1/AUTH_test/c", &auth, "").0, 201);
    assert_eq!(up.http("PUT", "/v1/AUTH_test/c/stays", &auth, "x").0, 201);
    let expires = [auth[0], ("X-Delete-After", "1")];
    assert_eq!(up.http("PUT", "/v1/AUTH_test/c/o", &expires, "x").0, 201);
    let began = Instant::now();
    // Its row goes only with a DELETE.
    while !up.http("GET", "/v1/AUTH_test/c", &auth, "").1.ends_with("\r\n\r\nstays\n") {
        assert!(began.elapsed() < PATIENCE, "it is still listed");
        std::thread::sleep(Duration::from_millis(20));
    }
}
