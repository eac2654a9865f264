//! CPU and wall time of DiskFile's paths: `diskfile_bench DEVICES [objects] [threads]`; DEVICES/sda must be there.
//!
//! Prints microseconds per operation: PUT of 4 KiB into new hash dirs, overwrite, GET, POST, DELETE, and the hash of all
//! suffixes. CPU is of the whole process, system time included. ROUNDS in the environment repeats the GETs.

use std::sync::Arc;
use std::time::Instant;

use common::config::SwiftConf;
use common::digest::{hex, md5};
use common::{Clock, Timestamp};
use obj::diskfile::{DiskFileConf, DiskFileManager, DiskFileRouter, Metadata};
use service::logs::Logger;
use service::statsd::Statsd;

const BODY: [u8; 4096] = [7; 4096];

fn main() {
    let mut args = std::env::args().skip(1);
    let devices = args.next().expect("DEVICES");
    let mut number = |default: usize| args.next().map_or(default, |arg| arg.parse().expect("a number"));
    let (objects, threads) = (number(2000), number(1));
    let conf = DiskFileConf { devices: devices.into(), mount_check: false, ..DiskFileConf::default() };
    let swift_conf =
        SwiftConf::parse(b"[swift-hash]\nswift_hash_path_suffix = e\n", "swift.conf", "/".as_ref());
    let swift_conf = swift_conf.expect("a swift.conf");
    let logger = Logger::to_stderr("bench");
    let router = DiskFileRouter::new(&conf, &swift_conf, &Clock::system(), &logger, &Statsd::disabled());
    let manager = router.iter().next().expect("policy 0").clone();
    let base = Timestamp::from_raw(Clock::system().now().raw() - 100_000_000);

    let run = |what: &str, job: &(dyn Fn(&Arc<DiskFileManager>, usize) + Sync)| {
        let (cpu, wall) = (cpu_micros(), Instant::now());
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let manager = &manager;
                scope.spawn(move || (thread..objects).step_by(threads).for_each(|i| job(manager, i)));
            }
        });
        report(what, objects, cpu_micros() - cpu, wall.elapsed().as_secs_f64() * 1e6);
    };
    let object = |manager: &Arc<DiskFileManager>, i: usize| {
        let name = format!("object-{i}");
        let hash = manager.hash_conf().hash_path("AUTH_test", Some("bench"), Some(&name));
        manager.diskfile("sda", hash.partition(4), "AUTH_test", "bench", &name).expect("a device")
    };
    let put = |manager: &Arc<DiskFileManager>, i: usize, delta: i64| {
        let diskfile = object(manager, i);
        let _ = diskfile.open(None);
        diskfile.put_small(&BODY, metadata(base.with_delta(delta))).expect("put");
    };
    run("PUT new", &|manager, i| put(manager, i, 0));
    run("PUT over", &|manager, i| put(manager, i, 1));
    let rounds: usize = std::env::var("ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number"));
    for _ in 1..rounds {
        run("GET", &|manager, i| {
            drop(object(manager, i).open(None).expect("open").read_small().expect("read"))
        });
    }
    run("GET", &|manager, i| {
        let opened = object(manager, i).open(None).expect("open");
        assert_eq!(opened.read_small().expect("read").data.len(), BODY.len());
    });
    run("HEAD", &|manager, i| drop(object(manager, i).open(None).expect("open")));
    run("POST", &|manager, i| {
        let mut metadata = metadata(base.with_delta(2));
        metadata.remove("ETag");
        object(manager, i).write_metadata(metadata).expect("post");
    });
    let hash = |what: &str| {
        let (cpu, wall) = (cpu_micros(), Instant::now());
        for partition in 0..16 {
            manager.get_hashes("sda", partition, &[], false).expect("hashes");
        }
        report(what, objects, cpu_micros() - cpu, wall.elapsed().as_secs_f64() * 1e6);
    };
    hash("hash all");
    hash("hash none");
    run("DELETE", &|manager, i| object(manager, i).delete(base.with_delta(3)).expect("delete"));
}

fn report(what: &str, objects: usize, cpu: f64, wall: f64) {
    let objects = objects as f64;
    println!(
        "{what:10} {:8.1} us CPU/op {:9.1} us wall/op {:9.0} /s",
        cpu / objects,
        wall / objects,
        1e6 * objects / wall
    );
}

fn metadata(timestamp: Timestamp) -> Metadata {
    Metadata::from_iter([
        ("X-Timestamp", timestamp.internal()),
        ("Content-Type", "application/octet-stream".into()),
        ("Content-Length", BODY.len().to_string()),
        ("ETag", hex(&md5(&BODY))),
        ("X-Object-Meta-Color", "blue".into()),
    ])
}

fn cpu_micros() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
