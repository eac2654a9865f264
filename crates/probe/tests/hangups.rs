//! SSYNC with a partner that hangs up or falls silent, in every phase and at either end.
//!
//! A scripted peer speaks raw TCP. What it meets must answer as Swift's program does in the same place, keep what it was
//! given whole and nothing else, let go of locks, files, tasks and sockets, and get on well with the next peer.

use anyhow::{Context, Result, ensure};
use common::{HashConf, ObjHash};
use probe::node::{object_server, swift_dir, write_conf};
use probe::peer::{PATIENCE, Peer, script};
use probe::ports::free_ports;
use ring::{Device, FormatVersion, RingBuilder};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn hash(object: &str) -> ObjHash {
    HashConf { prefix: b"p".to_vec(), suffix: b"s".to_vec() }.hash_path("a", Some("c"), Some(object))
}

fn chunk(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

/// Descriptors of this process that are open below `dir`.
fn open_below(dir: &Path) -> Vec<PathBuf> {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).filter(|path| path.starts_with(dir)).collect()
}

/// Files below `dir`, by their names.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![dir.to_owned()];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files
}

/// Nobody holds the lock.
fn assert_free(dir: &Path, name: Option<&str>, when: &str) {
    if dir.is_dir() {
        let lock = common::fs::lock_path(dir, Duration::ZERO, name);
        assert!(lock.is_ok(), "{when}: {} is locked", dir.display());
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// What a sender says next, and what it is after that.
struct Step {
    after: &'static str,
    says: Vec<u8>,
    /// The last thing that it has been answered by then.
    answer: &'static str,
    /// No chunk is begun.
    between_chunks: bool,
}

const LARGE: usize = 200_000;

/// A sender's whole conversation: a small object, a large one, a tombstone.
fn conversation(partition: usize, at: u64) -> Vec<Step> {
    let small = hash("small");
    let line = format!("{small} {at}.00000\r\n");
    let (line_begins, line_ends) = line.split_at(20);
    let others = format!("{} {at}.00000\r\n{} {at}.00000\r\n", hash("large"), hash("gone"));
    let end = chunk(":MISSING_CHECK: END\r\n");
    let (end_begins, end_ends) = end.split_at(10);
    let body = chunk(vec![b'x'; LARGE / 2]);
    let (body_begins, body_ends) = body.split_at(LARGE / 4);
    let put = |name: &str, len: usize| {
        format!(
            "PUT /a/c/{name}\r\nContent-Length: {len}\r\nContent-Type: x/y\r\nX-Timestamp: {at}.00000\r\n\r\n"
        )
    };
    let small_head = put("small", 5);
    let (small_line, small_headers) = small_head.split_at("PUT /a/c/small\r\n".len());
    let (headers_begin, headers_end) = small_headers.split_at(25);
    let step = |after, says: &[u8], answer, between_chunks| Step {
        after,
        says: says.into(),
        answer,
        between_chunks,
    };
    let said = |after, text: &str, answer| step(after, &chunk(text), answer, true);
    const HEAD: &str = "HTTP/1.1 200 OK";
    const WANTED: &str = ":MISSING_CHECK: END";
    vec![
        step("the request line", format!("SSYNC /sda1/{partition} HTTP/1.1\r\n").as_bytes(), "", false),
        step("half a header", b"Host: x\r\nTransfer-Enc", "", false),
        step("the head", b"oding: chunked\r\nX-Backend-Storage-Policy-Index: 0\r\n\r\n", HEAD, true),
        said("the start of missing_check", ":MISSING_CHECK: START\r\n", HEAD),
        said("half a line of missing_check", line_begins, HEAD),
        said("a line of missing_check", &format!("{line_ends}{others}"), HEAD),
        step("half a chunk", end_begins, HEAD, false),
        step("the end of missing_check", end_ends, WANTED, true),
        said("the start of updates", ":UPDATES: START\r\n", WANTED),
        said("a subrequest's first line", small_line, WANTED),
        said("half a subrequest's header", headers_begin, WANTED),
        said("a subrequest's head", headers_end, WANTED),
        said("half a small body", "sm", WANTED),
        said("a small body", "all", WANTED),
        said("a large one's head", &put("large", LARGE), WANTED),
        step("half a large body", &chunk(vec![b'x'; LARGE / 2]), WANTED, true),
        step("half a chunk of a body", body_begins, WANTED, false),
        step("a large body", body_ends, WANTED, true),
        said("a DELETE", &format!("DELETE /a/c/gone\r\nX-Timestamp: {at}.00000\r\n\r\n"), WANTED),
        said("the end of updates", ":UPDATES: END\r\n", ":UPDATES: END"),
        step("everything", b"0\r\n\r\n", ":UPDATES: END", false),
    ]
}

/// How a sender ends before its time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ending {
    /// Its side of the connection is closed; it still listens.
    Closes,
    /// It ends its request.
    Terminates,
    /// It has its answer and is gone.
    Leaves,
    Stalls,
}

const ENDINGS: [Ending; 4] = [Ending::Closes, Ending::Terminates, Ending::Leaves, Ending::Stalls];

/// What a sender has heard.
#[derive(Debug, PartialEq, Eq, Default)]
struct Heard {
    status: Option<u16>,
    text: String,
    /// The last chunk has come.
    whole: bool,
}

impl Heard {
    fn parse(answer: &[u8]) -> Heard {
        let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Heard::default();
        };
        let status =
            String::from_utf8_lossy(&answer[..head]).split(' ').nth(1).and_then(|status| status.parse().ok());
        let (mut heard, mut rest) = (Heard { status, ..Heard::default() }, &answer[head + 4..]);
        while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
            let size =
                std::str::from_utf8(&rest[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
            match size {
                Some(0) => {
                    heard.whole = true;
                    return heard;
                }
                Some(size) if rest.len() >= end + 4 + size => {
                    heard.text.push_str(&String::from_utf8_lossy(&rest[end + 2..end + 2 + size]));
                    rest = &rest[end + 4 + size..];
                }
                _ => return heard,
            }
        }
        heard
    }
}

/// Says the steps, ends as told, and listens to the end.
fn talk(port: u16, steps: &[Step], ending: Ending) -> Heard {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut says = steps.iter().flat_map(|step| step.says.clone()).collect::<Vec<u8>>();
    if ending == Ending::Terminates {
        says.extend_from_slice(b"0\r\n\r\n");
    }
    // In one piece: no phase takes longer than the receiver may wait.
    stream.write_all(&says).expect("the server reads");
    let mut answer = Vec::new();
    match ending {
        Ending::Closes | Ending::Terminates => stream.shutdown(Shutdown::Write).expect("a shutdown"),
        Ending::Leaves => {
            let last = steps.last().map_or("", |step| step.answer).as_bytes();
            let mut buffer = [0; 4096];
            while !last.is_empty() && !answer.windows(last.len()).any(|window| window == last) {
                let n = stream.read(&mut buffer).expect("an answer");
                assert_ne!(n, 0, "{}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&buffer[..n]);
            }
            return Heard::default();
        }
        Ending::Stalls => {}
    }
    // A reset is an end too.
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..n]);
    }
    Heard::parse(&answer)
}

/// Says the steps, and then a letter now and then until the server hangs up: what it has said.
fn trickle(port: u16, steps: &[Step]) -> Heard {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
    let says = steps.iter().flat_map(|step| step.says.clone()).collect::<Vec<u8>>();
    stream.write_all(&says).expect("the server reads");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let (began, mut answer, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => answer.extend_from_slice(&buffer[..n]),
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(began.elapsed() < PATIENCE, "the server hangs up");
                // If it has hung up, the next read says so.
                let _ = stream.write_all(&chunk("5"));
            }
            Ok(0) | Err(_) => return Heard::parse(&answer),
        }
    }
}

/// A partition's objects, by their names, and all whole.
fn objects(devices: &Path, partition: usize) -> BTreeSet<String> {
    let dir = devices.join("sda1/objects").join(partition.to_string());
    let mut found = BTreeSet::new();
    for file in files_below(&dir) {
        let name = ["small", "large", "gone"].into_iter().find(|name| {
            file.parent().and_then(Path::file_name).is_some_and(|dir| dir == hash(name).to_string().as_str())
        });
        let Some(name) = name else { continue };
        let len = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
        let is = file.extension().unwrap_or_default().to_string_lossy().into_owned();
        assert!(
            matches!(
                (name, len, &*is),
                ("small", 5, "data") | ("large", 200_000, "data") | ("gone", 0, "ts")
            ),
            "{file:?}"
        );
        found.insert(name.to_owned());
    }
    found
}

/// The wanted ones' lines are some 37 bytes each; a socket takes up to 4 MiB.
const OFFERS: usize = 200_000;
/// Nobody who is only held up by other work on the machine is silent for so long.
const SHORT: &str = "1.5";
const TIMEOUT: &str = "client_timeout = 1.5\nreplication_concurrency = 1\n";
const NO_TIMEOUT: &str = "client_timeout = 120\nreplication_concurrency = 1\n";

/// Every conversation that is cut short: the number of its steps, and its end.
fn cuts() -> Vec<(usize, Ending)> {
    let mut cuts = Vec::new();
    for (n, step) in conversation(0, 0).iter().enumerate() {
        let possible = |ending: &Ending| *ending != Ending::Terminates || step.between_chunks;
        cuts.extend(ENDINGS.into_iter().filter(possible).map(|ending| (n + 1, ending)));
    }
    cuts
}

/// What a sender hears from us, where one has heard that from Swift.
fn expected(swifts: &Heard, last: &Step, ending: Ending) -> Heard {
    let mut heard = Heard { text: swifts.text.clone(), ..*swifts };
    let object = match (ending, last.after) {
        // Swift takes the end of the connection for the end of the head, and the half for a request.
        (Ending::Closes, _) if last.answer.is_empty() => return Heard::default(),
        (Ending::Stalls, "a subrequest's head" | "half a small body") => "small",
        (Ending::Stalls, "a large one's head" | "half a large body" | "half a chunk of a body") => "large",
        _ => return heard,
    };
    // Two timers of Swift's wait for a body; when the PUT's is the one that goes off, nobody tells the sender.
    if !heard.text.contains(":ERROR:") {
        heard.text.push_str(&format!(":ERROR: 408 '{SHORT} seconds: PUT /a/c/{object}'\n"));
    }
    heard
}

#[test]
fn a_receiver_ends_as_swifts_however_its_sender_ends() -> Result<()> {
    let dir = swift_dir()?;
    let dir = dir.path();
    let ports = free_ports(4)?;
    let now = common::Clock::system().unix_secs() as u64;
    let _python = object_server(Peer::Python, dir, "python", ports[0], NO_TIMEOUT)?;
    let _impatient = object_server(Peer::Python, dir, "impatient-python", ports[1], TIMEOUT)?;
    let runtime = runtime();
    let _inside = runtime.enter();
    let mut registry = service::Registry::new();
    obj::register(&mut registry);
    let mut servers = Vec::new();
    for (name, port, options) in [("ours", ports[2], NO_TIMEOUT), ("impatient-ours", ports[3], TIMEOUT)] {
        let conf = write_conf(dir, name, &dir.join(name), port, options)?;
        servers.push(
            service::server::load(&service::Process::new(), &registry, "object-server", &conf)?
                .bind_and_start()?,
        );
    }
    let tasks = || runtime.metrics().num_alive_tasks();
    let idle = tasks();
    for (partition, (cut, ending)) in cuts().into_iter().enumerate() {
        let steps = conversation(partition, now);
        let steps = &steps[..cut];
        let when = format!("{ending:?} after {}", steps[cut - 1].after);
        let (swifts, ours) = match ending {
            Ending::Stalls => (("impatient-python", ports[1]), ("impatient-ours", ports[3])),
            _ => (("python", ports[0]), ("ours", ports[2])),
        };
        let devices = dir.join(ours.0);
        let told = std::thread::scope(|scope| {
            let swifts = scope.spawn(|| talk(swifts.1, steps, ending));
            [talk(ours.1, steps, ending), swifts.join().expect("a conversation")]
        });
        let partition_dir = devices.join("sda1/objects").join(partition.to_string());
        if ending != Ending::Leaves {
            // The server has hung up: nothing is held by then.
            assert_free(&partition_dir, Some("replication"), &when);
            assert_free(&devices.join("sda1"), None, &when);
        }
        wait_until(&when, || tasks() == idle && open_below(&devices).is_empty());
        assert_eq!(files_below(&devices.join("sda1/tmp")), Vec::<PathBuf>::new(), "{when}");
        let there = || [swifts, ours].map(|(name, _)| objects(&dir.join(name), partition));
        if ending == Ending::Leaves {
            wait_until(&when, || there()[0] == there()[1]);
        }
        assert_eq!(there()[1], there()[0], "{when}");
        assert_eq!(told[0], expected(&told[1], &steps[cut - 1], ending), "{when}");
        // The next pass, which has something newer of each.
        let whole = talk(ours.1, &conversation(partition, now + 1), Ending::Closes);
        assert!(
            whole.whole && whole.text.ends_with(":UPDATES: START\r\n:UPDATES: END\r\n"),
            "{when}: {whole:?}"
        );
        assert_eq!(objects(&devices, partition).len(), 3, "{when}");
    }
    wait_until("tasks end", || tasks() == idle);
    drop(servers);
    Ok(())
}

#[test]
fn a_receiver_waits_for_a_whole_line_and_for_one_who_listens() -> Result<()> {
    let dir = swift_dir()?;
    let dir = dir.path();
    let ports = free_ports(2)?;
    let _python = object_server(Peer::Python, dir, "python", ports[0], TIMEOUT)?;
    let runtime = runtime();
    let _inside = runtime.enter();
    let mut registry = service::Registry::new();
    obj::register(&mut registry);
    let conf = write_conf(dir, "ours", &dir.join("ours"), ports[1], TIMEOUT)?;
    let _server = service::server::load(&service::Process::new(), &registry, "object-server", &conf)?
        .bind_and_start()?;
    let tasks = || runtime.metrics().num_alive_tasks();
    let idle = tasks();
    let device = dir.join("ours/sda1");
    let is_let_go = |partition: usize, when: &str| {
        wait_until(when, || tasks() == idle && open_below(&device).is_empty());
        assert_free(&device.join("objects").join(partition.to_string()), Some("replication"), when);
        assert_free(&device, None, when);
    };
    for (partition, after) in
        ["half a line of missing_check", "half a subrequest's header"].into_iter().enumerate()
    {
        let steps = conversation(partition, 1_700_000_000);
        let steps = steps.split_inclusive(|step| step.after == after).next().unwrap_or_default();
        let told = [ports[0], ports[1]].map(|port| trickle(port, steps));
        let timed_out = format!(":ERROR: 408 '{SHORT} seconds: ");
        assert!(told[1].text.contains(&timed_out), "{after}: {told:?}");
        assert_eq!(told[1], told[0], "{after}");
        is_let_go(partition, after);
    }
    // More answers than the sockets hold, to a sender that does not read them.
    let mut offers = ":MISSING_CHECK: START\r\n".to_owned();
    for n in 0..OFFERS {
        offers.push_str(&format!("{} 1700000000.00000\r\n", hash(&n.to_string())));
    }
    offers.push_str(":MISSING_CHECK: END\r\n");
    let head = "SSYNC /sda1/7 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let says = [head.as_bytes(), &chunk(&offers)].concat();
    let mut stream = TcpStream::connect(("127.0.0.1", ports[1]))?;
    stream.write_all(&says)?;
    is_let_go(7, "many answers");
    let mut answer = Vec::new();
    // It ends with a reset.
    let _ = stream.read_to_end(&mut answer);
    let heard = Heard::parse(&answer);
    assert!(
        heard.text.len() > 1 << 16 && !heard.text.contains(":MISSING_CHECK: END"),
        "{}",
        heard.text.len()
    );
    Ok(())
}

/// Updates of which some are refused: a good one for `+`, one without a time for `-`.
fn updates(partition: usize, outcomes: &str) -> Vec<Step> {
    let mut says =
        format!("SSYNC /sda1/{partition} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    says.extend(chunk(":MISSING_CHECK: START\r\n:MISSING_CHECK: END\r\n:UPDATES: START\r\n"));
    for (n, outcome) in outcomes.chars().enumerate() {
        let timestamp = if outcome == '+' { "1700000000.00000" } else { "none" };
        says.extend(chunk(format!(
            "PUT /a/c/{n}\r\nContent-Length: 5\r\nContent-Type: x/y\r\nX-Timestamp: {timestamp}\r\n\r\nsmall"
        )));
    }
    says.extend(chunk(":UPDATES: END\r\n"));
    vec![Step { after: "updates", says, answer: "", between_chunks: true }]
}

#[test]
fn a_receiver_gives_up_after_as_many_failures_as_swifts() -> Result<()> {
    let dir = swift_dir()?;
    let dir = dir.path();
    let ports = free_ports(2)?;
    let options = "replication_failure_threshold = 3\nreplication_failure_ratio = 1.5\n";
    let _python = object_server(Peer::Python, dir, "python", ports[0], options)?;
    let _martlet = object_server(Peer::Martlet, dir, "ours", ports[1], options)?;
    for (partition, (outcomes, told)) in [
        ("---++", "Too many 3 failures to 0 successes"),
        ("+---+", "Too many 3 failures to 1 successes"),
        // Not more than one and a half times as many, and then more.
        ("++---+", "With :UPDATES: 3 failures to 3 successes"),
        ("++----+", "Too many 4 failures to 2 successes"),
        ("-+-", "With :UPDATES: 2 failures to 1 successes"),
        ("+++", ":UPDATES: END"),
    ]
    .into_iter()
    .enumerate()
    {
        let heard = ports.iter().map(|port| talk(*port, &updates(partition, outcomes), Ending::Terminates));
        let heard: Vec<Heard> = heard.collect();
        assert!(heard[0].text.contains(told), "{outcomes}: {:?}", heard[0]);
        assert_eq!(heard[1], heard[0], "{outcomes}");
    }
    Ok(())
}

/// What a receiver does next.
enum Act {
    /// Reads until the sender has said this.
    Hear(&'static str),
    Say(&'static str),
    /// As a chunk, with the objects' hashes for `LARGE` and `SMALL`.
    Chunk(&'static str),
    /// Reads until the sender hangs up.
    Wait,
    /// Says a letter now and then until the sender hangs up.
    Trickle,
    /// Reads nothing until the sender has given up.
    Stall,
}

/// A receiver's part, after which it hangs up.
struct Part {
    when: &'static str,
    acts: Vec<Act>,
    /// The sender's timeout that ends it.
    short: &'static str,
}

fn parts() -> Vec<Part> {
    use Act::{Chunk, Hear, Say, Stall, Trickle, Wait};
    const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    const WANTED: &str = "\r\n:MISSING_CHECK: START\r\nLARGE dm\r\nSMALL dm\r\n:MISSING_CHECK: END\r\n";
    let mut parts = Vec::new();
    let mut part = |when, short, acts| parts.push(Part { when, acts, short });
    let head = || Hear("\r\n\r\n");
    part("silent from the first", "node", vec![Wait]);
    part("gone before a status", "", vec![head()]);
    part("gone within the status", "", vec![head(), Say("HTTP/1.1 2")]);
    part("silent within the status", "node", vec![head(), Say("HTTP/1.1 2"), Wait]);
    part("silent within its headers", "node", vec![head(), Say("HTTP/1.1 200 OK\r\nTransfer-"), Wait]);
    for (when, refusal) in [
        ("400", "HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nabc"),
        ("503", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nabc"),
        (
            "507",
            "HTTP/1.1 507 Insufficient Storage\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
    ] {
        part(when, "", vec![head(), Say(refusal)]);
    }
    part("gone after its head", "", vec![head(), Say(HEAD)]);
    let offered = || vec![head(), Say(HEAD), Hear(":MISSING_CHECK: END\r\n")];
    let mut after_offers = |when, acts: Vec<Act>| part(when, "", offered().into_iter().chain(acts).collect());
    after_offers("gone after the offers", vec![]);
    after_offers("gone within a chunk", vec![Say("40\r\n\r\n:MISSING_CH")]);
    after_offers("an error for an answer", vec![Chunk("\r\n:ERROR: 503 b'busy'\n")]);
    after_offers("nonsense for an answer", vec![Chunk("\r\n\u{fc}\r\n")]);
    after_offers("an answer that is none", vec![Chunk("\r\n"), Say("0\r\n\r\n")]);
    after_offers("gone after the answer's start", vec![Chunk("\r\n:MISSING_CHECK: START\r\n")]);
    let half = || Chunk("\r\n:MISSING_CHECK: START\r\nLARGE dm\r\n01234");
    after_offers("gone in the middle of a wanted line", vec![half()]);
    after_offers("an end in the middle of a wanted line", vec![half(), Say("0\r\n\r\n")]);
    after_offers("gone before the answer's end", vec![Chunk("\r\n:MISSING_CHECK: START\r\nLARGE dm\r\n")]);
    let wanted = || offered().into_iter().chain([Chunk(WANTED), Hear(":UPDATES: START\r\n")]);
    let mut updating = |when, short, acts: Vec<Act>| part(when, short, wanted().chain(acts).collect());
    updating("gone as updates start", "", vec![]);
    updating("gone as a body comes", "", vec![Hear("PUT /a/c/large")]);
    updating("silent as a body comes", "node", vec![Hear("PUT /a/c/large"), Stall]);
    updating(
        "an error as a body comes",
        "",
        vec![Hear("PUT /a/c/large"), Chunk(":ERROR: 0 'Too many'\n"), Wait],
    );
    let mut updated = |when, acts: Vec<Act>| {
        part(when, "", wanted().chain([Hear(":UPDATES: END\r\n")]).chain(acts).collect());
    };
    updated("gone after the updates", vec![]);
    updated("an error after the updates", vec![Chunk(":ERROR: 500 b'ERROR: With :UPDATES: 1 failures'\n")]);
    updated("gone before it says the end", vec![Chunk(":UPDATES: START\r\n")]);
    updated("an end within its last line", vec![Chunk(":UPDATES: START\r\n:UPDATES: E"), Say("0\r\n\r\n")]);
    updated("gone before its last chunk", vec![Chunk(":UPDATES: START\r\n:UPDATES: END\r\n")]);
    // What comes before the silence is there when it is waited for, however slow we are.
    let mut silent = |when, acts: Vec<Act>| {
        part(when, "http", [head(), Say(HEAD)].into_iter().chain(acts).chain([Wait]).collect());
    };
    silent("silent after the offers", vec![]);
    silent("silent within a chunk", vec![Say("40\r\n\r\n:MISSING_CH")]);
    silent("silent in the middle of a wanted line", vec![half()]);
    silent("silent after the updates", vec![Chunk(WANTED)]);
    silent("silent before it says the end", vec![Chunk(WANTED), Chunk(":UPDATES: START\r\n")]);
    part("a line without an end", "http", vec![head(), Say(HEAD), half(), Trickle]);
    parts
}

/// Plays a part to the next sender, until `over`. Swift's sender `forgets` to hang up where it gave up before the exchange.
fn play(listener: &TcpListener, acts: &[Act], names: [&str; 2], over: mpsc::Receiver<()>, forgets: bool) {
    let (mut stream, _) = listener.accept().expect("a sender");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut heard = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    // Goes out at once.
    let mut says = Vec::new();
    for act in acts {
        if !matches!(act, Act::Say(_) | Act::Chunk(_)) {
            stream.write_all(&std::mem::take(&mut says)).expect("a sender that listens");
        }
        match act {
            Act::Hear(text) => {
                while !heard.windows(text.len()).any(|window| window == text.as_bytes()) {
                    let n = stream.read(&mut buffer).expect("a sender that goes on");
                    assert_ne!(n, 0, "{text}");
                    // The end may be all that is looked for.
                    heard.drain(..heard.len().saturating_sub(1024));
                    heard.extend_from_slice(&buffer[..n]);
                }
            }
            Act::Wait => {
                let patience = if forgets { Duration::from_millis(20) } else { PATIENCE };
                stream.set_read_timeout(Some(patience)).expect("a timeout");
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(err) if err.kind() == ErrorKind::ConnectionReset => break,
                        Err(_) => {
                            assert!(forgets, "the sender does not hang up");
                            if over.try_recv().is_ok() {
                                break;
                            }
                        }
                    }
                }
            }
            Act::Trickle => {
                // The pause is what makes it a trickle; what ends it is the sender.
                while stream.write_all(&chunk("5")).is_ok() && over.try_recv().is_err() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            Act::Stall => {
                over.recv_timeout(PATIENCE).expect("the sender gives up");
            }
            Act::Say(text) => says.extend_from_slice(text.as_bytes()),
            Act::Chunk(text) => {
                let hashes = names.map(|name| hash(name).to_string());
                says.extend(chunk(text.replace("LARGE", &hashes[0]).replace("SMALL", &hashes[1])));
            }
        }
    }
    stream.write_all(&says).expect("a sender that listens");
}

/// Swift's sender, in a process of its own.
struct PythonSender {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl PythonSender {
    fn start(dir: &Path, devices: &Path) -> Result<PythonSender> {
        let mut command = script("ssync_sender.py")?;
        let mut child = command.arg(dir).arg(devices).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("its stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("its stdout")?);
        Ok(PythonSender { child, stdin, stdout })
    }

    /// Whether it succeeded, and what it logged.
    fn send(&mut self, port: u16, short: &str) -> Result<String> {
        writeln!(self.stdin, "send {port} {short}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it has ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for PythonSender {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How we end where Swift has ended so.
fn expected_of_sender(swifts: &str, when: &str) -> String {
    match when {
        "refused" => {
            "failed EXCEPTION in ssync.Sender: connect: Connection refused (os error 111)".to_owned()
        }
        // Swift takes half a hash for one that it does not have.
        "an end in the middle of a wanted line" => "failed Unexpected response: '01234'".to_owned(),
        // Swift logs a traceback when a receiver goes while it is spoken to.
        _ if swifts.starts_with("failed EXCEPTION in ssync.Sender: ") => "failed Early disconnect".to_owned(),
        _ => swifts.to_owned(),
    }
}

/// One node: a source that is a handoff of partition 0, whose primary is wherever the ring says.
struct Source {
    dir: PathBuf,
}

const PARTITION: &str = "sda1/objects/0";

impl Source {
    fn device(id: u32, device: &str, port: u16, weight: f64) -> Device {
        let ip = "127.0.0.1".to_owned();
        let (replication_ip, device) = (ip.clone(), device.to_owned());
        let (region, zone, replication_port) = (1, id, port);
        let (meta, extra) = (String::new(), serde_json::Map::new());
        Device { id, region, zone, ip, port, device, weight, replication_ip, replication_port, meta, extra }
    }

    /// One pass with the primary at `port`: what was logged of it.
    fn pass(&self, runtime: &Runtime, port: u16, short: &str) -> Result<Vec<String>> {
        let mut builder = RingBuilder::new(1, 1.0, 0)?;
        builder.add_dev(Self::device(1, "sda1", port, 1.0))?;
        builder.rebalance(1)?;
        let mut data = builder.to_ring_data()?;
        data.devs[0] = Some(Arc::new(Self::device(0, "sda1", 1, 0.0)));
        data.save(&self.dir.join("object.ring.gz"), FormatVersion::V1)?;
        let timeout = |name: &str| if name == short { SHORT } else { "120" };
        let conf = format!(
            "[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = 1\nswift_dir = {dir}\ndevices = {dir}/source\nmount_check = no\n\
             recon_cache_path = {dir}\n[object-replicator]\nsync_method = ssync\nconn_timeout = {}\nnode_timeout = {}\n\
             http_timeout = {}\n",
            timeout("conn"),
            timeout("node"),
            timeout("http"),
            dir = self.dir.display(),
        );
        let conf = common::config::Conf::parse(&conf, "object-server.conf")?;
        let lines = service::logs::Lines::default();
        let process = service::Process::new().with_sinks(vec![Arc::new(lines.clone())]);
        let ctx = service::Context::new(
            &process,
            "object-replicator",
            &conf.section_or_default("object-replicator"),
        )?;
        runtime.block_on(obj::replicator::build(&conf, &ctx)?.run_once());
        let of_it = format!("127.0.0.1:{port}/sda1/0 ");
        Ok(lines
            .all()
            .iter()
            .filter_map(|(_, line)| line.split_once(&of_it))
            .map(|(_, said)| said.to_owned())
            .collect())
    }

    /// The objects here, and of a partner: as files below their device.
    fn files(&self, node: &str) -> Vec<PathBuf> {
        let device = self.dir.join(node).join("sda1");
        let below = |path: &PathBuf| path.strip_prefix(&device).expect("below the device").to_owned();
        let mut files: Vec<_> = files_below(&device.join("objects")).iter().map(below).collect();
        files.retain(|path| path.extension().is_some_and(|is| is == "data"));
        files.sort();
        files
    }

    /// Gives a node the objects of at least this size; the same inodes.
    fn fill(&self, node: &str, size: u64) -> Result<()> {
        let template = self.dir.join("template");
        for file in files_below(&template.join(PARTITION)) {
            if std::fs::metadata(&file)?.len() < size || file.extension().is_none_or(|is| is != "data") {
                continue;
            }
            let target = self.dir.join(node).join(file.strip_prefix(&template)?);
            std::fs::create_dir_all(target.parent().context("a parent")?)?;
            if !target.exists() {
                std::fs::hard_link(file, target)?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_sender_ends_as_swifts_however_its_receiver_ends() -> Result<()> {
    let temp = swift_dir()?;
    let source = Source { dir: temp.path().to_owned() };
    let in_0 = |kind: &str| (0..).map(|n| format!("{kind}{n}")).find(|name| hash(name).partition(1) == 0);
    let names = [in_0("large"), in_0("small")].map(|name| name.expect("half of all names"));
    let mut swifts = PythonSender::start(temp.path(), &temp.path().join("template"))?;
    writeln!(swifts.stdin, "put {} {}", names[0], names[1])?;
    swifts.answer()?;
    let runtime = runtime();
    let _inside = runtime.enter();
    let mut registry = service::Registry::new();
    obj::register(&mut registry);
    let there = free_ports(1)?[0];
    let conf = write_conf(temp.path(), "there", &temp.path().join("there"), there, "")?;
    let _server = service::server::load(&service::Process::new(), &registry, "object-server", &conf)?
        .bind_and_start()?;
    source.fill("source", 0)?;
    let whole = source.files("source");
    assert_eq!(whole.len(), 2);
    let idle = || runtime.metrics().num_alive_tasks();
    let tasks = idle();
    let names = [&*names[0], &*names[1]];

    // `None` is a sender's own trouble: nobody listens, or nobody accepts.
    let mut cases: Vec<(&str, &str, Option<Vec<Act>>)> =
        vec![("refused", "", None), ("not accepted", "conn", None)];
    cases.extend(parts().into_iter().map(|part| (part.when, part.short, Some(part.acts))));
    let mut succeeded = 0;
    for (when, short, acts) in &cases {
        let mut listener = TcpListener::bind("127.0.0.1:0")?;
        let mut port = listener.local_addr()?.port();
        let mut waiting = Vec::new();
        if acts.is_none() {
            if short.is_empty() {
                (listener, port) = (TcpListener::bind("127.0.0.1:0")?, port);
            } else {
                // Until the kernel takes no more.
                let addr = listener.local_addr()?;
                while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(100)) {
                    waiting.push(stream);
                }
            }
        }
        let with_partner = |forgets, send: &mut dyn FnMut() -> Result<String>| {
            let Some(acts) = acts else { return send() };
            let (over, is_over) = mpsc::channel();
            std::thread::scope(|scope| {
                let listener = &listener;
                let receiver = scope.spawn(move || play(listener, acts, names, is_over, forgets));
                let sent = send();
                // It listens to that only in a part with Stall.
                let _ = over.send(());
                receiver.join().expect("the receiver's part");
                sent
            })
        };
        let swift_said = with_partner(true, &mut || swifts.send(port, short))?;
        let mut said = Vec::new();
        with_partner(false, &mut || {
            said = source.pass(&runtime, port, short)?;
            Ok(String::new())
        })?;
        let partition = source.dir.join("source").join(PARTITION);
        assert_free(&partition, Some("replication"), when);
        assert_free(&partition, None, when);
        wait_until(when, || idle() == tasks && open_below(&source.dir.join("source")).is_empty());
        let is_whole = source.files("source") == whole;
        let ours = format!("{} {}", if is_whole { "failed" } else { "done" }, said.join("; "));
        let ours = ours.trim_end();
        assert_eq!(ours, expected_of_sender(&swift_said, when), "{when}");
        succeeded += usize::from(!is_whole);
        // The next pass, to one that does its part, and has the large one, which takes time.
        source.fill("source", 0)?;
        source.fill("there", 6)?;
        let said = source.pass(&runtime, there, "")?;
        assert_eq!(said, Vec::<String>::new(), "{when}");
        assert_eq!((source.files("source"), source.files("there")), (vec![], whole.clone()), "{when}");
        wait_until(when, || idle() <= tasks + 1);
        std::fs::remove_dir_all(source.dir.join("there/sda1/objects"))?;
        source.fill("source", 0)?;
    }
    assert_eq!(succeeded, 1);
    Ok(())
}
