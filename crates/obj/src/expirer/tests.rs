//! Passes over a stand-in for the pipeline.

use super::*;
use common::clock::Clock;
use service::Logger;
use service::http::{Request, Response, SharedApp, app_fn};
use service::logs::{Level, Lines};

const NOW: f64 = 1_700_000_000.0;

/// A cluster of one queue: what is in it, and what it answers to the DELETE of an object.
#[derive(Clone, Default)]
struct Queue {
    /// Task container, tasks with their content types.
    rows: Vec<(&'static str, Vec<(&'static str, &'static str)>)>,
    status: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Queue {
    fn answer(&self, req: &Request) -> Response {
        let path = req.path.strip_prefix("/v1/").unwrap_or_default();
        let marker = req.param("marker").unwrap_or_default();
        let names: Vec<&str> = path.splitn(3, '/').collect();
        match (req.method.as_str(), &names[..]) {
            ("HEAD", [".expiring_objects"]) => Response::new(204)
                .with_header("X-Account-Container-Count", self.rows.len())
                .with_header("X-Account-Object-Count", 5),
            ("GET", [".expiring_objects"]) => {
                let after = self.rows.iter().map(|(name, _)| *name).filter(|name| *name > marker.as_str());
                listing(after.map(|name| serde_json::json!({ "name": name })).collect())
            }
            ("GET", [".expiring_objects", container]) => {
                match self.rows.iter().find(|(name, _)| name.trim_start_matches('0') == *container) {
                    None => Response::new(404),
                    Some((_, tasks)) => {
                        let after = tasks.iter().filter(|(name, _)| *name > marker.as_str());
                        let row = |(name, kind): &(&str, &str)| serde_json::json!({"name": name, "content_type": kind});
                        listing(after.map(row).collect())
                    }
                }
            }
            (method, _) => {
                let header = |name| req.headers.get_str(name).unwrap_or("-").to_owned();
                let [time, wanted] = [X_TIMESTAMP, X_IF_DELETE_AT].map(header);
                let clean = header(X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE);
                self.asked.lock().push(format!("{method} {path} {time} {wanted} {clean}"));
                Response::new(self.status)
            }
        }
    }

    fn app(&self) -> SharedApp {
        let queue = self.clone();
        app_fn(move |req| {
            let response = queue.answer(&req);
            async move { response }
        })
    }
}

fn listing(rows: Vec<Value>) -> Response {
    Response::new(200).with_body(Value::Array(rows).to_string())
}

/// One pass; what was asked besides listings, and the log.
async fn pass(queue: &Queue, options: &[(&'static str, &'static str)]) -> (Vec<String>, Lines) {
    let dir = tempfile::tempdir().unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../ring/tests/golden/saio.ring.gz");
    std::fs::copy(golden, dir.path().join("container.ring.gz")).unwrap();
    let (logger, lines) = Logger::memory();
    let clock = Clock::manual(Timestamp::from_secs_f64(NOW));
    let ctx = Context::builder(NAME).clock(clock).logger(logger).swift_dir(dir.path());
    let ctx = ctx.recon_cache_path(dir.path()).build();
    let section = Section::from_pairs(NAME, options.iter().copied());
    let client = internal_client::Options {
        user_agent: USER_AGENT.to_owned(),
        request_tries: 1,
        use_replication_network: true,
        log_name: "ic".to_owned(),
    };
    let swift = InternalClient::new(queue.app(), client, ctx.clone());
    // Of a file of its own, unless it says what only another one must.
    let said = options.iter().find(|(name, _)| *name == "dequeue_from_legacy");
    let (is_legacy, works) = (said.is_none(), said.is_none_or(|(_, value)| *value == "yes"));
    Expirer::with_client(&section, &ctx, swift, is_legacy).unwrap().run_once().await;
    let asked = std::mem::take(&mut *queue.asked.lock());
    let recon = common::recon::load_recon(&dir.path().join(recon::OBJECT_FILE)).unwrap();
    assert_eq!(recon.get("object_expiration_pass").is_some_and(|secs| secs.is_number()), works);
    (asked, lines)
}

fn queue(rows: &[(&'static str, &'static str)], status: u16) -> Queue {
    Queue { rows: vec![("1699919950", rows.to_vec())], status, ..Queue::default() }
}

#[tokio::test]
async fn what_is_due_is_deleted_as_its_task_says() {
    let rows = [
        ("1699999999-a/c/o", "text/plain"),
        ("1699999999.12345-a/c/p q", ASYNC_DELETE_TYPE),
        ("1700000001-a/c/later", "text/plain"),
    ];
    let (asked, lines) = pass(&queue(&rows, 204), &[]).await;
    assert_eq!(
        asked,
        ["DELETE a/c/o 1699999999.00000 1699999999.00000 no", "DELETE a/c/p q 1699999999.12345 - -"]
    );
    assert!(
        lines
            .contains("Pass beginning for task account .expiring_objects; 1 possible containers; 5 possible")
    );
    assert!(lines.contains("Pass completed in 0s; 2 objects expired"));
}

#[tokio::test]
async fn what_is_not_there_is_tried_again_until_it_is_old() {
    let rows = [("1699999999-a/c/o", "text/plain")];
    for status in [404, 412] {
        let (_, lines) = pass(&queue(&rows, status), &[]).await;
        let expected = format!(
            "test: Unexpected response while deleting object .expiring_objects 1699919950 1699999999-a/c/o: {status}"
        );
        assert_eq!(lines.at_least(Level::Error), [expected]);
        let (_, lines) = pass(&queue(&rows, status), &[("reclaim_age", "0")]).await;
        assert!(lines.contains("; 1 objects expired"));
    }
    // Newer than the task: nothing to do for it.
    let (_, lines) = pass(&queue(&rows, 409), &[]).await;
    assert!(lines.contains("; 1 objects expired"));
    let (_, lines) = pass(&queue(&rows, 503), &[("reclaim_age", "0")]).await;
    assert!(lines.contains("; 0 objects expired"));
    let rows = [("1699999999-a/c/o", ASYNC_DELETE_TYPE)];
    let (_, lines) = pass(&queue(&rows, 404), &[]).await;
    assert!(lines.contains("; 1 objects expired"));
}

#[tokio::test]
async fn empty_containers_go_and_odd_ones_are_told() {
    let mut queue = queue(&[("nonsense", "text/plain"), ("1699999999-a/c/o", "text/plain")], 204);
    queue.rows.push(("1699950000", Vec::new()));
    queue.rows.push(("1700001000", Vec::new()));
    queue.rows.push(("x", Vec::new()));
    let (asked, lines) = pass(&queue, &[]).await;
    assert_eq!(
        asked,
        ["DELETE .expiring_objects/1699950000 - - -", "DELETE a/c/o 1699999999.00000 1699999999.00000 no",]
    );
    assert!(lines.contains("Unexcepted error handling task \"nonsense\""));
    assert!(lines.contains("processing 2 unexpected task containers (e.g. 1699950000 1700001000)"));
}

#[tokio::test]
async fn some_stay_for_a_while_unless_they_are_to_go_anyway() {
    let rows = [
        ("1699999900-a/c/now", ASYNC_DELETE_TYPE),
        ("1699999900-a/c/o", "text/plain"),
        ("1699999900-b/c/o", ""),
    ];
    let (asked, _) = pass(&queue(&rows, 204), &[("delay_reaping_a", "200")]).await;
    let names: Vec<&str> = asked.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(names, ["a/c/now", "b/c/o"]);
}

#[tokio::test]
async fn the_file_of_an_object_server_says_whether_its_expirer_works() {
    let rows = [("1699999900-a/c/o", "text/plain")];
    let (asked, lines) = pass(&queue(&rows, 204), &[("dequeue_from_legacy", "no")]).await;
    assert!(asked.is_empty() && lines.contains("not configured to dequeue tasks from the legacy queue"));
    let (asked, _) = pass(&queue(&rows, 204), &[("dequeue_from_legacy", "yes")]).await;
    assert_eq!(asked.len(), 1);
}

#[tokio::test]
async fn processes_share_all_tasks() {
    let rows: Vec<(&str, &str)> = ["1-a/c/1", "1-a/c/2", "1-a/c/3", "1-a/c/4", "1-a/c/5", "1-a/c/6"]
        .into_iter()
        .map(|name| (name, "text/plain"))
        .collect();
    let mut all = Vec::new();
    for process in ["0", "1", "2"] {
        let (asked, _) = pass(&queue(&rows, 204), &[("processes", "3"), ("process", process)]).await;
        assert!(asked.len() < rows.len());
        all.extend(asked);
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), rows.len());
    // `hash_mod('1699919950/1-a/c/1', 3)` of Swift's expirer, for 1 to 6.
    let share =
        |name: &str| (0..3).find(|index| Share { index: *index, of: 3 }.has(task_hash("1699919950", name)));
    let shares: Vec<u64> = rows.iter().filter_map(|(name, _)| share(name)).collect();
    assert_eq!(shares, [0, 2, 2, 0, 2, 0]);
}
