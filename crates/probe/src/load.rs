//! A load generator for benchmarks: keep-alive connections that send one kind of request as fast as it is answered.
//!
//! Deliberately simple and not Martlet's own client: it must cost little and the same with either peer. One thread, one
//! task a connection, requests with `Content-Length`, answers with `Content-Length` or chunked. Any status other than the
//! expected one is counted as a failure, and a row with failures is worth nothing.

use anyhow::{Context, Result, bail, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What is asked: `head` writes the request's head for the n-th object.
pub struct Work<'a> {
    pub addr: SocketAddr,
    pub head: &'a dyn Fn(usize) -> String,
    pub body: &'a [u8],
    /// HEAD answers carry a length but no body.
    pub answer_has_body: bool,
    pub expect: u16,
    pub concurrency: usize,
    pub until: Until,
}

#[derive(Clone, Copy)]
pub enum Until {
    /// Count up from object 0 until the time is over.
    Elapsed(Duration),
    /// The same, going round among so many objects.
    Around(usize, Duration),
    /// Each of so many objects once.
    Count(usize),
}

#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    pub requests: usize,
    pub failures: usize,
    pub seconds: f64,
}

/// Runs to the end; must be called on a current-thread runtime inside a `LocalSet`.
pub async fn run(work: Work<'_>) -> Result<Outcome> {
    let began = Instant::now();
    let next = Rc::new(AtomicUsize::new(0));
    let connections = (0..work.concurrency).map(|_| connection(&work, next.clone(), began));
    let mut total = Outcome::default();
    for outcome in futures_util::future::join_all(connections).await {
        let outcome = outcome?;
        total.requests += outcome.requests;
        total.failures += outcome.failures;
    }
    total.seconds = began.elapsed().as_secs_f64();
    ensure!(total.requests > 0, "no request was made");
    Ok(total)
}

async fn connection(work: &Work<'_>, next: Rc<AtomicUsize>, began: Instant) -> Result<Outcome> {
    let mut stream =
        TcpStream::connect(work.addr).await.with_context(|| format!("cannot reach {}", work.addr))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let mut outcome = Outcome::default();
    let mut buffer = Vec::with_capacity(256 * 1024);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let object = match work.until {
            Until::Elapsed(limit) if began.elapsed() >= limit => break,
            Until::Around(_, limit) if began.elapsed() >= limit => break,
            Until::Count(count) if n >= count => break,
            Until::Around(count, _) => n % count.max(1),
            _ => n,
        };
        send(&mut stream, (work.head)(object).as_bytes(), work.body).await.context("cannot send")?;
        let (status, keep) = answer(&mut stream, &mut buffer, work.answer_has_body).await?;
        outcome.requests += 1;
        outcome.failures += usize::from(status != work.expect);
        if !keep {
            stream =
                TcpStream::connect(work.addr).await.with_context(|| format!("cannot reach {}", work.addr))?;
            stream.set_nodelay(true).context("TCP_NODELAY")?;
            buffer.clear();
        }
    }
    Ok(outcome)
}

/// Writes both as one, without a copy of the body.
async fn send(stream: &mut TcpStream, head: &[u8], body: &[u8]) -> std::io::Result<()> {
    let mut parts = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut parts[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let written = stream.write_vectored(left).await?;
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

/// Reads one answer to its end: its status, and whether the connection stays.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>, has_body: bool) -> Result<(u16, bool)> {
    buffer.clear();
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        more(stream, buffer).await?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status line")?;
    let keep = !head.contains("\r\nconnection: close");
    if head.contains("\r\ntransfer-encoding: chunked") {
        while !buffer.ends_with(b"0\r\n\r\n") {
            more(stream, buffer).await?;
        }
        return Ok((status, keep));
    }
    let length =
        head.lines().find_map(|l| l.strip_prefix("content-length: ")).and_then(|v| v.trim().parse().ok());
    let length: usize = if has_body { length.unwrap_or(0) } else { 0 };
    let mut read = buffer.len() - end;
    // The body is counted, not kept.
    while read < length {
        buffer.clear();
        more(stream, buffer).await?;
        read += buffer.len();
    }
    Ok((status, keep))
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.reserve(64 * 1024);
    if stream.read_buf(buffer).await.context("cannot read the answer")? == 0 {
        bail!("the server hung up in the middle of an answer");
    }
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// User and system CPU seconds so far of a process and all its descendants, as the scheduler counts them: `/proc` has but ticks.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let clock = |pid: u32| clock_getcpuclockid(Pid::from_raw(pid as i32))?.now();
    let used = descendants(pids).into_iter().filter_map(|pid| clock(pid).ok());
    used.map(|time| Duration::from(time).as_secs_f64()).sum()
}

/// Resident memory of a process and all its descendants, in bytes.
pub fn resident_bytes(pids: &[u32]) -> u64 {
    descendants(pids).iter().filter_map(|pid| stat(*pid)).map(|s| s.resident_pages * 4096).sum()
}

/// The most memory that a process or a descendant of it has had since [`forget_peaks`], in bytes.
pub fn peak_bytes(pids: &[u32]) -> u64 {
    let peak = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    descendants(pids).iter().filter_map(peak).max().unwrap_or(0) * 1024
}

/// The peaks of memory of these processes and their descendants begin anew.
pub fn forget_peaks(pids: &[u32]) -> Result<()> {
    descendants(pids).iter().try_for_each(|pid| {
        let file = format!("/proc/{pid}/clear_refs");
        std::fs::write(&file, "5").with_context(|| format!("cannot write {file}"))
    })
}

/// How many files whose names end so a process and all its descendants have open.
pub fn open_files(pids: &[u32], suffix: &str) -> usize {
    let open = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let named = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|path| path.to_string_lossy().ends_with(suffix))
    };
    descendants(pids).iter().map(|pid| open(pid).filter(named).count()).sum()
}

struct Stat {
    parent: u32,
    resident_pages: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything; fields are counted from the last parenthesis.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
    Some(Stat { parent: number(1)? as u32, resident_pages: number(21)? })
}

fn descendants(pids: &[u32]) -> Vec<u32> {
    let everyone: Vec<u32> = std::fs::read_dir("/proc")
        .map(|dir| dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    let parents: Vec<(u32, u32)> =
        everyone.iter().filter_map(|pid| Some((*pid, stat(*pid)?.parent))).collect();
    let mut all = pids.to_vec();
    let mut at = 0;
    while at < all.len() {
        let this = all[at];
        all.extend(
            parents.iter().filter(|(pid, parent)| *parent == this && !pids.contains(pid)).map(|p| p.0),
        );
        at += 1;
    }
    all
}
