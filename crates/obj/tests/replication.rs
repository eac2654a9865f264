//! The object replicator and the object server, as they meet over SSYNC between the nodes of a [`Cluster`].

#![allow(clippy::unwrap_used)]

mod cluster;

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, Files, PART_POWER};
use parking_lot::Mutex;
use ring::{Device, FormatVersion, RingBuilder};
use service::daemon::DaemonArgs;
use service::http::{Method, Request, Response, app_fn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_makes_the_primaries_alike_and_the_next_has_nothing_to_do() {
    let cluster = Cluster::new(3, &[0, 1, 2]);
    for n in 0..30 {
        cluster.put(0, &format!("small{n}"), 1_700_000_000.0 + f64::from(n), &"x".repeat(n as usize)).await;
    }
    cluster.put(0, "large", 1_700_000_000.0, &"0123456789".repeat(100_000)).await;
    cluster.put(0, "posted", 1_700_000_000.0, "data").await;
    assert_eq!(cluster.call(0, Method::Post, "posted", 1_700_000_001.0, "").await, 202);
    cluster.put(0, "deleted", 1_700_000_000.0, "data").await;
    cluster.put(1, "deleted", 1_700_000_000.0, "data").await;
    let now = common::Clock::system().unix_secs();
    assert_eq!(cluster.call(0, Method::Delete, "deleted", now, "").await, 204);
    let source = cluster.files(0);
    assert_eq!(source.len(), 34);

    cluster.replicate(0).await;
    assert_eq!(cluster.files(0), source);
    assert_eq!(cluster.files(1), source);
    assert_eq!(cluster.files(2), source);
    let stats = &cluster.recon()["replication_stats"];
    assert_eq!((stats["attempted"].as_u64(), stats["failure"].as_u64()), (Some(4), Some(0)));
    assert_eq!(stats["rsync"].as_u64(), Some(8));

    for id in 0..3 {
        cluster.replicate(id).await;
        let stats = &cluster.recon()["replication_stats"];
        assert_eq!((stats["rsync"].as_u64(), stats["hashmatch"].as_u64()), (Some(0), Some(8)), "node {id}");
    }
    cluster.assert_quiet();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_serves_all_sessions_with_a_partner() {
    let cluster = Cluster::new(2, &[0, 1]);
    for n in 0..30 {
        cluster.put(0, &format!("o{n}"), 1_700_000_000.0, "data").await;
    }
    cluster.replicate_with(0, "concurrency = 1", DaemonArgs::default()).await;
    assert_eq!(cluster.files(1), cluster.files(0));
    assert_eq!(cluster.recon()["replication_stats"]["rsync"].as_u64(), Some(4), "sessions");
    assert_eq!(cluster.nodes[1].clients.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_newer_on_the_other_side_is_not_overwritten() {
    let cluster = Cluster::new(2, &[0, 1]);
    cluster.put(0, "o", 1_700_000_000.0, "old").await;
    cluster.put(1, "o", 1_700_000_001.0, "new").await;
    let newer = cluster.files(1);
    cluster.replicate(0).await;
    assert_eq!(cluster.files(1), newer);
    cluster.replicate(1).await;
    assert_eq!(cluster.files(0), newer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handoff_gives_its_partitions_away() {
    let cluster = Cluster::new(3, &[1, 2]);
    for n in 0..10 {
        cluster.put(0, &format!("o{n}"), 1_700_000_000.0, "data").await;
    }
    let source = cluster.files(0);
    let lines = cluster.replicate(0).await;
    assert_eq!(cluster.partitions(0), Vec::<String>::new());
    assert_eq!(cluster.files(1), source);
    assert_eq!(cluster.files(2), source);
    assert!(lines.contains("Removing partition: "));
    assert_eq!(cluster.recon()["replication_stats"]["remove"].as_u64(), Some(4));
    cluster.assert_quiet();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handoff_keeps_what_one_primary_lacks() {
    let mut cluster = Cluster::new(3, &[1, 2]);
    cluster.put(0, "o", 1_700_000_000.0, "data").await;
    let source = cluster.files(0);
    cluster.stop(2).await;
    let lines = cluster.replicate(0).await;
    assert_eq!((cluster.files(0), cluster.files(1)), (source.clone(), source.clone()));
    let failed = format!("127.0.0.1:{}/sd2/{}", cluster.nodes[2].port, cluster.part("o"));
    assert!(lines.contains(&failed), "{:?}", lines.all());
    assert_eq!(cluster.recon()["replication_stats"]["failure_nodes"]["127.0.0.1"]["sd2"].as_u64(), Some(1));
    // With handoff_delete one is enough.
    cluster.replicate_with(0, "handoff_delete = 1", DaemonArgs::default()).await;
    assert_eq!(cluster.files(0), Files::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_arrives_during_the_revert_stays() {
    let cluster = Cluster::new(2, &[1]);
    let names: Vec<String> =
        (0..40).map(|n| format!("o{n}")).filter(|name| cluster.part(name) == 0).collect();
    cluster.put(0, &names[0], 1_700_000_000.0, "moved").await;
    cluster.put(0, &names[1], 1_700_000_000.0, "overwritten").await;
    let (app, late, overwritten) = (cluster.nodes[0].app.clone(), names[2].clone(), names[1].clone());
    let requests = Mutex::new(Some([
        cluster.request(0, Method::Put, &late, 1_700_000_002.0),
        cluster.request(0, Method::Put, &overwritten, 1_700_000_002.0),
    ]));
    let write = app_fn(move |_| {
        let (app, requests) = (app.clone(), requests.lock().take());
        async move {
            for req in requests.into_iter().flatten() {
                let req = req.with_header("Content-Length", 4).with_body("late");
                assert_eq!(app.call(req).await.status.0, 201);
            }
            Response::new(200)
        }
    });
    *cluster.nodes[1].after_updates.lock() = Some(write);
    cluster.replicate(0).await;
    let left = cluster.files(0);
    let mut names_left: Vec<&str> = Vec::new();
    for (path, (_, data)) in &left {
        assert_eq!(data, b"late");
        names_left.extend(path.parent().and_then(Path::file_name).and_then(|name| name.to_str()));
    }
    let mut want = [cluster.hash(&late).to_string(), cluster.hash(&overwritten).to_string()];
    names_left.sort_unstable();
    want.sort();
    assert_eq!(names_left, want);
    *cluster.nodes[1].after_updates.lock() = None;
    cluster.replicate(0).await;
    assert_eq!(cluster.partitions(0), Vec::<String>::new());
    assert_eq!(cluster.files(1).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_region_gets_the_data_once_and_keeps_the_handoff_until_it_is_spread_there() {
    let cluster = Cluster::new(3, &[1, 2]);
    cluster.set_region(1, 2);
    cluster.set_region(2, 2);
    cluster.put(0, "o", 1_700_000_000.0, "data").await;
    let source = cluster.files(0);
    cluster.replicate(0).await;
    assert_eq!(cluster.files(0), source);
    assert_eq!(cluster.files(1).len() + cluster.files(2).len(), 1, "only one of them was sent the data");
    cluster.replicate(if cluster.files(1).is_empty() { 2 } else { 1 }).await;
    assert_eq!((cluster.files(1), cluster.files(2)), (source.clone(), source));
    cluster.replicate(0).await;
    assert_eq!(cluster.partitions(0), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_up_is_quoted() {
    use std::io::{Read, Write};
    let cluster = Cluster::new(2, &[0, 1]);
    cluster.put(0, "large", 1_700_000_000.0, &"x".repeat(8 << 20)).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let path = cluster.dir.path().join("object.ring.gz");
    let mut data = ring::Ring::load(&path).unwrap().data();
    data.devs[1] = Some(Arc::new(Device { replication_port: port, ..cluster.dev(1, 1.0) }));
    data.save(&path, FormatVersion::V1).unwrap();
    let wanted = format!("{} dm\r\n", cluster.hash("large"));
    let peer = std::thread::spawn(move || {
        let until = |stream: &mut std::net::TcpStream, end: &str| {
            let mut seen = Vec::new();
            let mut byte = [0];
            while !seen.ends_with(end.as_bytes()) {
                stream.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
        };
        let (mut stream, _) = listener.accept().unwrap();
        until(&mut stream, "\r\n\r\n");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n\x80\x02}.")
            .unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        until(&mut stream, "\r\n\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        until(&mut stream, ":MISSING_CHECK: END\r\n");
        let say = |stream: &mut std::net::TcpStream, text: &str| {
            stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).unwrap()
        };
        say(&mut stream, &format!("\r\n:MISSING_CHECK: START\r\n{wanted}:MISSING_CHECK: END\r\n"));
        until(&mut stream, "PUT /a/c/large");
        say(&mut stream, ":ERROR: 0 'Too many 100 failures to 0 successes'\n");
    });
    let lines = cluster.replicate(0).await;
    peer.join().unwrap();
    assert!(
        lines.contains("Unexpected response: \":ERROR: 0 'Too many 100 failures to 0 successes'\""),
        "{:?}",
        lines.all()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmounted_primary_is_made_up_for_by_a_handoff() {
    let cluster = Cluster::new(3, &[0, 1]);
    // The third device has a share, so that it is a handoff.
    let mut builder = RingBuilder::new(PART_POWER, 2.0, 1).unwrap();
    for id in 0..3 {
        builder.add_dev(cluster.dev(id, 1.0)).unwrap();
    }
    builder.rebalance(3).unwrap();
    let data = builder.to_ring_data().unwrap();
    let rows = &data.replica2part2dev_id;
    let part = (0..4).find(|&part| rows[0][part] + rows[1][part] == 1).unwrap() as u32;
    builder.save_ring(&cluster.dir.path().join("object.ring.gz"), FormatVersion::V2).unwrap();
    let name = (0..).map(|n| format!("o{n}")).find(|name| cluster.part(name) == part).unwrap();
    cluster.put(0, &name, 1_700_000_000.0, "data").await;
    std::fs::remove_dir_all(cluster.device(1)).unwrap();
    let lines = cluster.replicate(0).await;
    assert!(lines.contains("/sd1 responded as unmounted"), "{:?}", lines.all());
    assert_eq!(cluster.files(2), cluster.files(0));
    assert!(!cluster.device(1).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_which_is_being_received_is_not_reverted() {
    let cluster = Cluster::new(2, &[1]);
    cluster.put(0, "o", 1_700_000_000.0, "data").await;
    let dir = cluster.partition(0, cluster.part("o"));
    let lock = common::fs::lock_path(&dir, Duration::ZERO, Some("replication")).unwrap();
    let lines = cluster.replicate(0).await;
    assert!(lines.contains("Unable to lock handoff partition"));
    assert_eq!((cluster.files(0).len(), cluster.files(1).len()), (1, 0));
    drop(lock);
    cluster.replicate(0).await;
    assert_eq!((cluster.files(0).len(), cluster.files(1).len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_whose_lock_is_held_says_so() {
    let cluster = Cluster::with_options(2, &[0, 1], "replication_lock_timeout = 0.2");
    cluster.put(0, "o", 1_700_000_000.0, "data").await;
    let dir = cluster.partition(1, cluster.part("o"));
    std::fs::create_dir_all(&dir).unwrap();
    let _lock = common::fs::lock_path(&dir, Duration::ZERO, Some("replication")).unwrap();
    let lines = cluster.replicate(0).await;
    let said =
        format!("Unexpected response: \":ERROR: 0 '0.2 seconds: {}/.lock-replication'\"", dir.display());
    assert!(lines.contains(&said), "{:?}", lines.all());
    assert!(cluster.files(1).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_object_does_not_travel_and_its_neighbours_do() {
    let cluster = Cluster::new(2, &[0, 1]);
    let names: Vec<String> =
        (0..40).map(|n| format!("o{n}")).filter(|name| cluster.part(name) == 0).collect();
    for name in &names {
        cluster.put(0, name, 1_700_000_000.0, &format!("data of {name}")).await;
    }
    let path = cluster.files(0).into_keys().next().unwrap();
    std::fs::write(cluster.device(0).join(&path), "shorter").unwrap();
    // It is found when it is opened: the rest of the session goes on without it.
    cluster.replicate(0).await;
    let mut want = cluster.files(0);
    assert_eq!(want.len(), names.len() - 1);
    assert_eq!(cluster.files(1), want);
    assert_eq!(std::fs::read_dir(cluster.device(0).join("quarantined/objects")).unwrap().count(), 1);
    want.remove(&path);
    assert_eq!(cluster.files(1), want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotten_bytes_of_medium_objects_are_found_before_they_are_sent() {
    let cluster = Cluster::new(2, &[0, 1]);
    let names: Vec<String> =
        (0..60).map(|n| format!("o{n}")).filter(|name| cluster.part(name) == 0).take(6).collect();
    assert_eq!(names.len(), 6);
    let lengths = [0, 1, 65_536, 65_537, 300_000, 400_000];
    for (name, length) in names.iter().zip(lengths) {
        cluster.put(0, name, 1_700_000_000.0, &"x".repeat(length)).await;
    }
    cluster.replicate(0).await;
    assert!(cluster.files(1) == cluster.files(0));
    let mut left = cluster.files(0);
    let rotten = left.iter().find(|(_, (_, data))| data.len() == 300_000).unwrap().0.clone();
    let path = cluster.device(0).join(&rotten);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"y", 1 << 18).unwrap();
    std::fs::remove_dir_all(cluster.device(1).join("objects")).unwrap();
    let lines = cluster.replicate(0).await;
    left.remove(&rotten);
    assert!(cluster.files(0) == left && cluster.files(1) == left, "{:?}", lines.all());
    assert_eq!(std::fs::read_dir(cluster.device(0).join("quarantined/objects")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_beyond_the_ring_and_strange_names_are_left_alone() {
    let cluster = Cluster::new(2, &[1]);
    for name in ["4", "99", "strange"] {
        std::fs::create_dir_all(cluster.device(0).join("objects").join(name)).unwrap();
    }
    std::fs::write(cluster.device(0).join("objects/auditor_status_ALL.json"), "{}").unwrap();
    std::fs::write(cluster.partition(0, 2), "").unwrap();
    let lines = cluster.replicate(0).await;
    let mut left = cluster.partitions(0);
    left.sort();
    assert_eq!(left, ["4", "99", "auditor_status_ALL.json", "strange"]);
    assert!(lines.contains("Removing partition directory which was a file: "));
    assert!(lines.contains("is not in the ring"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overrides_choose_devices_partitions_and_policies() {
    let cluster = Cluster::new(2, &[0, 1]);
    for n in 0..20 {
        cluster.put(0, &format!("o{n}"), 1_700_000_000.0, "data").await;
    }
    let args = |devices: &[&str], partitions: &[u32], policies: &[u32]| DaemonArgs {
        devices: devices.iter().map(|&device| device.to_owned()).collect(),
        partitions: partitions.to_vec(),
        policies: policies.to_vec(),
        ..DaemonArgs::default()
    };
    cluster.replicate_with(0, "", args(&["sdx"], &[], &[])).await;
    cluster.replicate_with(0, "", args(&[], &[], &[1])).await;
    assert!(cluster.files(1).is_empty());
    cluster.replicate_with(0, "", args(&["sd0"], &[1, 3], &[0])).await;
    let parts = cluster.files(1).into_keys().map(|path| path.iter().nth(1).unwrap().to_owned());
    assert_eq!(parts.collect::<std::collections::BTreeSet<_>>(), ["1", "3"].map(Into::into).into());
    // Such passes say nothing on how replication is doing.
    assert!(!cluster.dir.path().join("object.recon").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handoffs_first_leaves_primaries_for_a_later_pass() {
    let mut cluster = Cluster::new(3, &[0, 1, 2]);
    cluster.put(0, "o", 1_700_000_000.0, "data").await;
    cluster.ring(&[1, 2]);
    // A ring in which node 0 is primary of one partition only.
    let mut builder = RingBuilder::new(PART_POWER, 2.0, 1).unwrap();
    for id in 0..3 {
        builder.add_dev(cluster.dev(id, 1.0)).unwrap();
    }
    builder.rebalance(3).unwrap();
    let rows = builder.to_ring_data().unwrap().replica2part2dev_id;
    builder.save_ring(&cluster.dir.path().join("object.ring.gz"), FormatVersion::V1).unwrap();
    let on_0 = |part: u32| rows.iter().any(|row| row[part as usize] == 0);
    let name = |primary: bool| {
        (0..).map(|n| format!("p{n}")).find(|name| on_0(cluster.part(name)) == primary).unwrap()
    };
    let (mine, handoff) = (name(true), name(false));
    cluster.put(0, &mine, 1_700_000_000.0, "mine").await;
    cluster.put(0, &handoff, 1_700_000_000.0, "handoff").await;
    cluster.stop(1).await;
    cluster.stop(2).await;
    let lines = cluster.replicate_with(0, "handoffs_first = yes", DaemonArgs::default()).await;
    assert!(lines.contains("Handoffs first mode still has handoffs remaining."), "{:?}", lines.all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_cut_off_in_the_middle_of_an_object_leaves_no_part_of_it() {
    use std::io::Write;
    let cluster = Cluster::new(1, &[0]);
    let part = cluster.part("o");
    let body = "x".repeat(200_000);
    let head = format!(
        ":MISSING_CHECK: START\r\n:MISSING_CHECK: END\r\n:UPDATES: START\r\nPUT /a/c/o\r\nContent-Length: 300000\r\n\
         Content-Type: text/plain\r\nX-Timestamp: 1700000000.00000\r\n\r\n{body}"
    );
    let port = cluster.nodes[0].port;
    tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "SSYNC /sd0/{part} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap();
        write!(stream, "{:x}\r\n{head}\r\n", head.len()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(!answer.contains(":UPDATES: END") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    })
    .await
    .unwrap();
    // The server has finished with the session when the lock is free.
    let dir = cluster.partition(0, part);
    common::fs::lock_path(&dir, Duration::from_secs(10), Some("replication")).unwrap();
    assert!(cluster.files(0).is_empty());
}

#[tokio::test]
async fn statuses_before_the_exchange() {
    let cluster = Cluster::new(1, &[0]);
    let answer = |path: &'static str, header: Option<(&'static str, &'static str)>| {
        let app = cluster.nodes[0].app.clone();
        async move {
            let mut req = Request::new(Method::Ssync, path);
            if let Some((name, value)) = header {
                req = req.with_header(name, value);
            }
            let mut resp = app.call(req).await;
            let body = resp.body.collect(1 << 16).await.unwrap_or_default();
            (resp.status.0, String::from_utf8(body.to_vec()).unwrap())
        }
    };
    let policy = |index| Some(("X-Backend-Storage-Policy-Index", index));
    assert_eq!(answer("/sd0/1", policy("9")).await, (503, "No policy with index 9".into()));
    assert_eq!(answer("/sd0", None).await, (400, "Invalid path: /sd0".into()));
    assert_eq!(answer("/sd0/1/a/c/o", None).await.0, 400);
    let frag = Some(("X-Backend-Ssync-Frag-Index", "No"));
    assert_eq!(answer("/sd0/1", frag).await, (400, "Invalid X-Backend-Ssync-Frag-Index 'No'".into()));
    let (status, body) = answer("/sdx/1", None).await;
    assert_eq!((status, body.contains("Drive: sdx")), (507, true), "{body}");
}
