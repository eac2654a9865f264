//! Passes over a stand-in for the pipeline, with container servers that tell a policy.

use std::collections::BTreeMap;

use common::Clock;
use parking_lot::Mutex;
use ring::{Device, FormatVersion, RingBuilder};
use serde_json::json;
use service::Logger;
use service::http::{Request, Response, ServeOptions, Server, ServerHandle, SharedApp, app_fn};
use service::logs::Lines;

use super::super::reconciler_queue::{ToEnqueue, enqueue};
use super::*;

const NOW: f64 = 1_700_000_000.0;
const HOUR: &str = "1699999200";
const AT: &str = "1699999300.00000";

/// Names of entries, and their content types.
type Rows = Vec<(&'static str, &'static str)>;
/// Method and policy.
type Asked = (&'static str, &'static str);
/// The status, and when the object was written.
type Found = (u16, &'static str);

/// What a cluster has, and what it was asked.
#[derive(Clone, Default)]
struct Cloud {
    /// Containers of the queue.
    queue: Vec<(&'static str, Rows)>,
    objects: BTreeMap<Asked, Found>,
    /// The policy of every container; none if its servers are down.
    policy: Option<&'static str>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Cloud {
    /// A misplaced object of policy 1 in a container of policy 0.
    fn new(kind: &'static str, objects: &[(Asked, Found)]) -> Self {
        let queue = vec![(HOUR, vec![("1:/a/c/o", kind)])];
        Cloud { queue, objects: objects.iter().copied().collect(), policy: Some("0"), ..Cloud::default() }
    }

    fn note(&self, req: &Request, names: &[&str]) {
        let header = |name: &str| req.headers.get_str(name).unwrap_or("-").to_owned();
        let [policy, time, meta] =
            [X_BACKEND_STORAGE_POLICY_INDEX, X_TIMESTAMP, "X-Object-Meta-A"].map(header);
        self.asked.lock().push(format!("{} {} {policy} {time} {meta}", req.method, names.join("/")));
    }

    /// The proxy's pipeline.
    fn app(&self) -> SharedApp {
        let cloud = self.clone();
        app_fn(move |mut req| {
            let cloud = cloud.clone();
            async move {
                let path = req.path.strip_prefix("/v1/").unwrap_or_default().to_owned();
                let marker = req.param("marker").unwrap_or_default();
                let names: Vec<&str> = path.splitn(3, '/').collect();
                let rows =
                    |name: &str| cloud.queue.iter().find(|(queue, _)| *queue == name).map(|(_, rows)| rows);
                match (req.method.as_str(), &names[..]) {
                    ("GET", [QUEUE]) => {
                        let after = cloud.queue.iter().filter(|(name, _)| *name > marker.as_str());
                        listing(after.map(|(name, _)| json!({ "name": name })).collect())
                    }
                    ("GET", [QUEUE, container]) => {
                        let row = |(name, kind): &(&str, &str)| {
                            let modified = "2023-11-14T22:01:40.000000";
                            json!({"name": name, "content_type": kind, "hash": AT, "last_modified": modified})
                        };
                        let rows = rows(container).into_iter().flatten();
                        listing(rows.filter(|(name, _)| *name > marker.as_str()).map(row).collect())
                    }
                    (method, _) => {
                        cloud.note(&req, &names);
                        let _ = req.body.drain(1000).await;
                        let policy = req.headers.get_str(X_BACKEND_STORAGE_POLICY_INDEX).unwrap_or_default();
                        let found = cloud.objects.iter().find(|(key, _)| **key == (method, policy));
                        let (status, time) = found.map_or((404, ""), |(_, found)| *found);
                        let response = Response::new(status).with_header("X-Object-Meta-A", "b");
                        if time.is_empty() {
                            response
                        } else {
                            response.with_header(X_BACKEND_TIMESTAMP, time)
                        }
                    }
                }
            }
        })
    }

    /// The container servers, which are all one.
    fn serve(&self) -> (ServerHandle, u16) {
        let cloud = self.clone();
        let app = app_fn(move |req: Request| {
            let names: Vec<String> = req.path.splitn(5, '/').skip(3).map(str::to_owned).collect();
            cloud.note(&req, &names.iter().map(String::as_str).collect::<Vec<_>>());
            let response = match cloud.policy {
                Some(policy) => Response::new(204).with_header(X_BACKEND_STORAGE_POLICY_INDEX, policy),
                None => Response::new(503),
            };
            async move { response }
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (Server::start(vec![listener], app, ServeOptions::default()).unwrap(), port)
    }
}

fn listing(rows: Vec<Value>) -> Response {
    Response::new(200).with_body(Value::Array(rows).to_string())
}

/// A ring with a device on each port, and a replica on each device.
fn ring(dir: &Path, name: &str, ports: &[u16]) {
    let ip = "127.0.0.1".to_owned();
    let mut builder = RingBuilder::new(1, ports.len() as f64, 1).unwrap();
    for (id, &port) in (0..).zip(ports) {
        let device = Device {
            id,
            region: 1,
            zone: id,
            ip: ip.clone(),
            port,
            device: "d".into(),
            weight: 1.0,
            replication_ip: ip.clone(),
            replication_port: port,
            meta: String::new(),
            extra: Default::default(),
        };
        builder.add_dev(device).unwrap();
    }
    builder.rebalance(1).unwrap();
    builder.save_ring(&dir.join(format!("{name}.ring.gz")), FormatVersion::V1).unwrap();
}

/// One pass; what was asked besides listings, and the log.
async fn pass(cloud: &Cloud, options: &[(&'static str, &'static str)]) -> (Vec<String>, Lines) {
    let dir = tempfile::tempdir().unwrap();
    let (_server, port) = cloud.serve();
    for name in ["container", "object", "object-1"] {
        ring(dir.path(), name, &[port]);
    }
    let text = "[swift-hash]\nswift_hash_path_suffix = s\n[storage-policy:0]\nname = zero\ndefault = yes\n\
                [storage-policy:1]\nname = one\n";
    let conf = common::SwiftConf::parse(text.as_bytes(), "swift.conf", dir.path()).unwrap();
    let (logger, lines) = Logger::memory();
    let clock = Clock::manual(Timestamp::from_secs_f64(NOW));
    let ctx = Context::builder(NAME).clock(clock).logger(logger).swift_conf(Arc::new(conf)).build();
    let client = internal_client::Options {
        user_agent: USER_AGENT.to_owned(),
        request_tries: 1,
        use_replication_network: true,
        log_name: "ic".to_owned(),
    };
    let swift = InternalClient::new(cloud.app(), client, ctx.clone());
    let section = Section::from_pairs(NAME, options.iter().copied());
    Reconciler::new(&section, &ctx, swift).unwrap().run_once().await;
    (std::mem::take(&mut *cloud.asked.lock()), lines)
}

const PUT: &str = "application/x-put";
const DELETE: &str = "application/x-delete";
const HEAD_CONTAINER: &str = "HEAD a/c - 1700000000.00000 -";
const HEAD: &str = "HEAD a/c/o 0 - -";
const GET: &str = "GET a/c/o 1 - -";
const CLEANUP: &str = "DELETE a/c/o 1 1699999300.00000_0000000000000001 -";
const POP: &str = "DELETE .misplaced_objects/1699999200/1:/a/c/o - 1699999300.00000_0000000000000002 -";

#[tokio::test]
async fn what_is_misplaced_is_copied_with_its_headers_and_goes_from_where_it_was() {
    let found = [(("GET", "1"), (200, AT)), (("PUT", "0"), (201, "")), (("DELETE", "1"), (204, ""))];
    let (asked, lines) = pass(&Cloud::new(PUT, &found), &[]).await;
    let copy = "PUT a/c/o 0 1699999300.00000_0000000000000003 b";
    assert_eq!(asked, [HEAD_CONTAINER, HEAD, GET, copy, CLEANUP, POP]);
    assert!(lines.contains(
        "Reconciler Stats: {'misplaced_object': 1, 'copy_attempt': 1, 'copy_success': 1, 'cleanup_attempt': 1, \
         'cleanup_success': 1, 'success': 1, 'pop_queue': 1}"
    ));
}

#[tokio::test]
async fn a_misplaced_tombstone_is_one_in_the_right_policy() {
    let found = [(("DELETE", "0"), (204, "")), (("DELETE", "1"), (404, ""))];
    let (asked, _) = pass(&Cloud::new(DELETE, &found), &[]).await;
    let delete = "DELETE a/c/o 0 1699999300.00000_0000000000000003 -";
    assert_eq!(asked, [HEAD_CONTAINER, HEAD, GET, delete, CLEANUP, POP]);
}

#[tokio::test]
async fn what_the_right_policy_has_already_only_goes_from_the_wrong_one() {
    for status in [200, 404] {
        let found = [(("HEAD", "0"), (status, AT)), (("DELETE", "1"), (204, ""))];
        let (asked, lines) = pass(&Cloud::new(PUT, &found), &[]).await;
        assert_eq!(asked, [HEAD_CONTAINER, HEAD, CLEANUP, POP]);
        assert!(lines.contains(
            "found_object: '/a/c/o' (1699999300.000000) in policy_index 0 is newer than queue (1699999300.000000)"
        ));
    }
}

#[tokio::test]
async fn an_entry_stays_while_anything_fails() {
    let source = (("GET", "1"), (200, AT));
    let all = [source, (("PUT", "0"), (201, "")), (("DELETE", "1"), (204, ""))];
    for (failing, line) in [
        (("HEAD", "0"), "unavailable_destination: '/a/c/o' (1699999300.000000) unable to determine"),
        (("GET", "1"), "in policy_index 1 responded 503 (0000000000.00000)"),
        (
            ("PUT", "0"),
            "copy_failed: upload '/a/c/o' (1699999300.000000) from policy_index 1 to policy_index 0",
        ),
        (("DELETE", "1"), "was not cleaned up in storage_policy 1 (Unexpected response: 503"),
    ] {
        let mut cloud = Cloud::new(PUT, &all);
        cloud.objects.insert(failing, (503, ""));
        let (asked, lines) = pass(&cloud, &[]).await;
        assert!(!asked.contains(&POP.to_owned()), "{asked:?}");
        assert!(lines.contains(line) && lines.contains("must be retried"), "{:?}", lines.all());
    }
    let mut cloud = Cloud::new(DELETE, &[(("DELETE", "0"), (503, ""))]);
    let (asked, lines) = pass(&cloud, &[]).await;
    assert!(lines.contains("delete_failed: delete '/a/c/o' (0.000000) from policy_index 0"));
    assert!(!asked.contains(&CLEANUP.to_owned()));
    cloud = Cloud { policy: None, ..Cloud::new(PUT, &all) };
    let (asked, lines) = pass(&cloud, &[]).await;
    assert_eq!(asked, [HEAD_CONTAINER]);
    assert!(lines.contains("unavailable_container: "));
}

#[tokio::test]
async fn entries_that_are_none_and_policies_that_are_none_are_told() {
    let mut cloud = Cloud::new(PUT, &[]);
    cloud.queue = vec![(HOUR, vec![("1:a", PUT), ("7:/a/c/o", PUT), ("0:/a/c/p", PUT)])];
    let (asked, lines) = pass(&cloud, &[("reclaim_age", "1")]).await;
    assert!(lines.contains(
        "invalid_record: invalid queue record: {'name': '1:a', 'content_type': 'application/x-put', "
    ));
    assert!(lines.contains("ppi_skip: Source policy (7) in the middle of a part power increase (PPI)"));
    assert!(lines.contains("noop_object: '/a/c/p' (1699999300.000000) container policy_index 0 matches"));
    assert_eq!(asked.len(), 2, "one question for the container, and what was right already goes: {asked:?}");
}

#[tokio::test]
async fn old_containers_without_entries_go_and_odd_ones_end_the_pass() {
    let mut cloud = Cloud::new(PUT, &[]);
    cloud.queue = vec![("1600000000", vec![]), ("1699999200", vec![]), ("x", vec![])];
    let (asked, lines) = pass(&cloud, &[]).await;
    assert!(
        lines.contains("Unhandled Exception trying to reconcile: could not convert string to float: 'x'")
    );
    assert!(asked.is_empty(), "of a page the last one is the first");
    cloud.queue.pop();
    let (asked, _) = pass(&cloud, &[]).await;
    assert_eq!(asked, ["DELETE .misplaced_objects/1600000000 - - -"]);
}

#[tokio::test]
async fn processes_share_all_entries() {
    let names = ["0:/a/c/1", "0:/a/c/2", "0:/a/c/3", "0:/a/c/4", "0:/a/c/5"];
    let mut cloud = Cloud::new(PUT, &[]);
    cloud.queue = vec![(HOUR, names.map(|name| (name, PUT)).to_vec())];
    let mut all = Vec::new();
    for process in ["0", "1", "2"] {
        let (asked, _) = pass(&cloud, &[("processes", "3"), ("process", process)]).await;
        all.extend(asked.into_iter().filter(|line| line.starts_with("DELETE")));
    }
    all.sort();
    assert_eq!(all.len(), names.len());
    all.dedup();
    assert_eq!(all.len(), names.len());
}

#[test]
fn steps_are_swifts() {
    let at = |text: &str| Timestamp::parse(text).unwrap();
    let entry = |op| QueueEntry {
        policy_index: 1,
        account: "a".into(),
        container: "c".into(),
        object: "o".into(),
        op,
        timestamp: at("0000000100.00000_0000000000000001"),
        recorded: at("0000000100.00000"),
    };
    let (young, old) = (at("0000000099.00000"), at("0000000101.00000"));
    let (older, newer) = (at("0000000100.00000"), at("0000000100.00000_0000000000000005"));
    let copied = Step::Copy(at("0000000100.00000_0000000000000008"));
    let deleted = Step::Delete(at("0000000100.00000_0000000000000004"));
    for (op, status, source, expired_before, expected) in [
        (Op::Put, 200, newer, young, copied),
        (Op::Put, 200, older, young, Step::Wait),
        (Op::Put, 200, older, old, Step::GiveUp),
        (Op::Put, 404, newer, young, Step::Wait),
        (Op::Put, 503, Timestamp::ZERO, old, Step::GiveUp),
        (Op::Delete, 404, Timestamp::ZERO, old, deleted),
        (Op::Delete, 503, Timestamp::ZERO, young, Step::Wait),
    ] {
        assert_eq!(
            Step::of(&entry(op), status, source, expired_before),
            expected,
            "{op:?} {status} {source:?}"
        );
    }
}

#[tokio::test]
async fn most_of_the_primaries_must_take_what_is_enqueued() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let servers: Vec<_> = [201, 503, 202]
        .into_iter()
        .map(|status| {
            let told = asked.clone();
            let app = app_fn(move |req: Request| {
                let names =
                    ["X-Size", "X-Etag", "X-Content-Type", X_TIMESTAMP, "X-Backend-Use-Replication-Network"];
                let headers = names.map(|name| req.headers.get_str(name).unwrap_or("-").to_owned());
                let path = req.path.splitn(4, '/').last().unwrap_or_default().to_owned();
                told.lock().push(format!("{} {path} {}", req.method, headers.join(" ")));
                async move { Response::new(status) }
            });
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            (Server::start(vec![listener], app, ServeOptions::default()).unwrap(), port)
        })
        .collect();
    let ports: Vec<u16> = servers.iter().map(|(_, port)| *port).collect();
    ring(dir.path(), "container", &ports);
    ring(dir.path(), "half", &[ports[0], ports[1]]);
    let clock = Clock::manual(Timestamp::from_secs_f64(NOW));
    let client = DirectClient::new(Default::default(), clock.clone()).over_replication_network();
    let rings = Rings::with_reload(dir.path(), Duration::MAX, clock.clone());
    let conf = common::HashConf::default();
    let mut wanted = ToEnqueue {
        names: ["a", "c", "o/p"],
        policy_index: 3,
        timestamp: AT,
        op: Op::Delete,
        recorded: None,
    };
    let queue = enqueue(&client, &rings.container().unwrap(), &conf, &wanted).await;
    assert_eq!(queue.as_deref(), Some(HOUR));
    let entry =
        |at: &str, kind: &str| format!("PUT .misplaced_objects/{HOUR}/3:/a/c/o/p 0 {AT} {kind} {at} true");
    assert_eq!(*asked.lock(), vec![entry(AT, DELETE); 3]);
    wanted = ToEnqueue { op: Op::Put, recorded: Some(clock.now()), ..wanted };
    asked.lock().clear();
    let queue = enqueue(&client, &rings.file("half").unwrap().get(), &conf, &wanted).await;
    assert_eq!(queue, None, "one of two is not most of them");
    assert_eq!(*asked.lock(), vec![entry("1700000000.00000", PUT); 2]);
}
