//! Memory of transfers of an erasure coded object: some segments, whatever the length of the object, and whichever end of a
//! transfer is the slower one.
//!
//! What a process has taken is its peak, as the kernel knows it (`VmHWM`), beyond that of the same work for an object of two
//! segments. The object is long enough for that to tell: an archive of it alone would be beyond the bound.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ec::HEADER_LEN;
use probe::cluster::{Cluster, SERVERS};
use probe::load::{forget_peaks, peak_bytes};
use probe::peer::{self, PATIENCE, Peer, Process};

const SEGMENT: usize = 1 << 20;
const SHORT: usize = 2 * SEGMENT;
/// Archives of 9 MiB, which somebody may think of keeping whole.
const LONG: usize = 36 * SEGMENT;
/// What a long object may take beyond a short one.
const BOUND: u64 = 7 * SEGMENT as u64;
/// When nothing has moved for so long, nothing will.
const STILL: Duration = Duration::from_millis(500);

/// The byte of an object at an offset.
fn byte(at: usize) -> u8 {
    (at / 7) as u8 ^ (at / 1000) as u8 ^ (at >> 20) as u8
}

fn data(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

/// The node with the slow disk: 64 KiB take 10 ms.
fn slow_disk(conf: &Path) -> &'static [(&'static str, &'static str)] {
    match conf.to_string_lossy().contains("/node1/") {
        true => &[("MARTLET_FAIL_POINT", "put.write=sleep:10")],
        false => &[],
    }
}

struct Client {
    port: u16,
    token: String,
}

impl Client {
    fn start(cluster: &mut Cluster, dir: &Path) -> Result<Client> {
        for server in SERVERS {
            cluster.start_with(Peer::Martlet, server, slow_disk)?;
        }
        cluster.client(dir, &["post", "-H", "X-Storage-Policy: erasure", "c"])?;
        Ok(Client { port: cluster.port, token: cluster.token(dir)? })
    }

    fn request(&self, method: &str, object: &str, headers: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let token = &self.token;
        let path = format!("/v1/AUTH_test/c/{object}");
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n{headers}\r\n")?;
        Ok(stream)
    }

    fn put(&self, object: &str, len: usize) -> Result<()> {
        let mut stream = self.request("PUT", object, &format!("Content-Length: {len}\r\n"))?;
        for from in (0..len).step_by(SEGMENT) {
            stream.write_all(&data(from, SEGMENT.min(len - from)))?;
        }
        let (status, _) = head(&mut stream)?;
        ensure!(status == 201, "PUT: {status}");
        Ok(())
    }

    /// Reads a part, and the rest when all others have come to a stand.
    fn get_slowly(&self, object: &str, len: usize) -> Result<()> {
        let mut stream = self.request("GET", object, "")?;
        let (status, mut seen) = head(&mut stream)?;
        ensure!(status == 200, "GET: {status}");
        let mut piece = vec![0; SEGMENT];
        let mut at = 0;
        while at < len {
            if seen.is_empty() {
                let read = stream.read(&mut piece)?;
                ensure!(read > 0, "{at} of {len} bytes");
                seen.extend_from_slice(&piece[..read]);
            }
            ensure!(seen.iter().enumerate().all(|(i, got)| *got == byte(at + i)), "wrong bytes after {at}");
            let before = at;
            at += seen.len();
            seen.clear();
            if before < len / 8 && at >= len / 8 {
                wait_until_full(&stream)?;
            }
        }
        Ok(())
    }
}

/// Waits until no more arrives that nobody reads.
fn wait_until_full(stream: &TcpStream) -> Result<()> {
    let mut room = vec![0; 16 * SEGMENT];
    let mut arrived = 0;
    let mut since = Instant::now();
    while since.elapsed() < STILL {
        let there = stream.peek(&mut room)?;
        if there > arrived {
            (arrived, since) = (there, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Status, and what has come behind the head.
fn head(stream: &mut TcpStream) -> Result<(u16, Vec<u8>)> {
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            let status = String::from_utf8_lossy(&seen[..end]).split(' ').nth(1).map(str::to_owned);
            return Ok((status.context("no status")?.parse()?, seen.split_off(end + 4)));
        }
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "no answer");
        seen.extend_from_slice(&piece[..read]);
    }
}

/// What processes have taken beyond what they have had before.
struct Taken {
    /// Each with its peak so far.
    processes: Vec<(u32, u64)>,
}

impl Taken {
    fn begin(pids: &[u32]) -> Result<Taken> {
        forget_peaks(pids)?;
        Ok(Taken { processes: pids.iter().map(|pid| (*pid, peak_bytes(&[*pid]))).collect() })
    }

    fn check(&self, what: &str) -> Result<()> {
        let taken = |(pid, before): &(u32, u64)| peak_bytes(&[*pid]).saturating_sub(*before);
        check(what, self.processes.iter().map(taken).max().unwrap_or(0))
    }
}

fn check(what: &str, taken: u64) -> Result<()> {
    let segments = taken as f64 / SEGMENT as f64;
    println!("{what}: {segments:.1} segments");
    ensure!(taken < BOUND, "{what} takes {segments:.1} segments");
    Ok(())
}

/// Fragment archives of an object of so many segments below a folder.
fn archives(dir: &Path, segments: usize) -> Result<Vec<PathBuf>> {
    let size = format!("{}c", segments * (SEGMENT / 4 + HEADER_LEN));
    let found = peer::success(Command::new("find").arg(dir).args(["-name", "*#d.data", "-size", &size]))?;
    Ok(found.lines().map(PathBuf::from).collect())
}

/// A pass of all reconstructors; the most memory that one of them has had.
fn reconstruct(cluster: &Cluster) -> Result<u64> {
    let mut most = 0;
    for conf in cluster.confs("object-server")? {
        let mut command = cluster.command(Peer::Martlet, "swift-object-reconstructor")?;
        command.arg(&conf).arg("once").stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Process::spawn("object-reconstructor", &mut command)?;
        // A peak can be asked for while the process is there.
        while process.runs()? {
            most = most.max(peak_bytes(&[process.pid()]));
            std::thread::sleep(Duration::from_millis(2));
        }
        process.finish()?;
    }
    Ok(most)
}

#[test]
fn uploads_downloads_and_rebuilds_take_some_segments_of_memory() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let client = Client::start(&mut cluster, temp.path())?;
    let pids = cluster.pids();
    client.put("short", SHORT)?;
    let upload = Taken::begin(&pids)?;
    client.put("long", LONG)?;
    upload.check("an upload to a slow disk")?;
    client.get_slowly("short", SHORT)?;
    let download = Taken::begin(&pids)?;
    client.get_slowly("long", LONG)?;
    download.check("a download by a slow client")?;

    // Of each object a fragment is lost where the disk is slow.
    let slow = cluster.dir.join("node1");
    let (mut peaks, mut servers) = (Vec::new(), Vec::new());
    for size in [SHORT, LONG] {
        let lost = archives(&slow, size / SEGMENT)?.pop().context("no fragment is there")?;
        let content = std::fs::read(&lost)?;
        let partition = lost.ancestors().nth(3).context("a fragment is below a partition")?;
        std::fs::remove_dir_all(partition)?;
        let rebuild = Taken::begin(&pids)?;
        peaks.push(reconstruct(&cluster)?);
        servers.push(rebuild);
        ensure!(std::fs::read(&lost).context("it is not rebuilt")? == content, "it is rebuilt otherwise");
    }
    check("a reconstructor", peaks[1].saturating_sub(peaks[0]))?;
    servers[1].check("a server of a rebuild")?;
    cluster.stop_all()
}

#[test]
fn a_segment_in_the_smallest_pieces_is_a_segment() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(temp.path())?;
    let client = Client::start(&mut cluster, temp.path())?;
    client.put("short", SHORT)?;
    let taken = Taken::begin(&cluster.pids())?;
    let mut stream = client.request("PUT", "long", "Transfer-Encoding: chunked\r\n")?;
    let mut wire: Vec<u8> =
        data(0, SEGMENT).iter().flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']).collect();
    wire.extend_from_slice(b"0\r\n\r\n");
    stream.write_all(&wire)?;
    let (status, _) = head(&mut stream)?;
    ensure!(status == 201, "PUT: {status}");
    taken.check("an upload in chunks of a byte")?;
    client.get_slowly("long", SEGMENT)?;
    cluster.stop_all()
}
