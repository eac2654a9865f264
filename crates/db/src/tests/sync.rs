//! The container-sync daemon between a pipeline that has objects and another cluster that records what it is sent.

use std::collections::HashMap;

use super::*;
use crate::broker::{Options, Shared};
use crate::container::broker::ContainerBroker;
use parking_lot::Mutex;
use service::Daemon;
use service::http::app_fn;
use service::internal_client::{self, InternalClient};

const REALMS: &str = "[US]\nkey = realm_key\ncluster_there = http://127.0.0.1:PORT/v1/\n";

/// The other cluster: what it is sent, and what it answers (404 to a HEAD and 201 to the rest unless told otherwise).
#[derive(Clone, Default)]
struct There {
    seen: Arc<Mutex<Vec<(String, Request)>>>,
    answers: Arc<Mutex<HashMap<String, u16>>>,
}

impl There {
    fn app(&self) -> SharedApp {
        let there = self.clone();
        app_fn(move |mut req: Request| {
            let there = there.clone();
            async move {
                let what = format!("{} {}", req.method, req.path_qs());
                let told = there.answers.lock().get(&what).copied();
                let body = req.body.collect(1 << 20).await.unwrap();
                let is_head = req.is_head();
                let newest = format!("{:010}.00000", NOW + 100);
                there.seen.lock().push((what, req.with_body(body)));
                let status = told.unwrap_or(if is_head { 404 } else { 201 });
                Response::new(status).with_header("X-Timestamp", newest)
            }
        })
    }

    /// The requests since the last call.
    fn take(&self) -> Vec<(String, Request)> {
        let mut seen = std::mem::take(&mut *self.seen.lock());
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        seen
    }

    fn take_names(&self) -> Vec<String> {
        self.take().into_iter().map(|(what, _)| what).collect()
    }

    fn answer(&self, what: &str, status: u16) {
        self.answers.lock().insert(what.to_owned(), status);
    }
}

/// Every object is there, made at the second of its name.
fn here() -> InternalClient {
    let app = app_fn(|req: Request| async move {
        let name = req.path.rsplit('/').next().unwrap().to_owned();
        let Ok(second) = name.parse::<u64>() else { return Response::error(404) };
        assert_eq!(req.path_qs(), format!("/v1/a/c/{name}?symlink=get"));
        assert_eq!(req.headers.get_str("X-Newest"), Some("True"));
        Response::new(200)
            .with_header("X-Timestamp", format!("{:010}.00000", NOW + second))
            .with_header("Etag", "\"e\"")
            .with_header("X-Object-Meta-Second", second)
            .with_header("X-Static-Large-Object", "True")
            .with_body(format!("body of {name}"))
    });
    let options = internal_client::Options {
        user_agent: "test".to_owned(),
        request_tries: 1,
        use_replication_network: true,
        log_name: "test-ic".to_owned(),
    };
    InternalClient::new(app, options, Context::builder("test-ic").build())
}

/// A node with the synced container `a/c`, the cluster it is synced to, and the daemon.
struct Synced {
    node: Node,
    containers: SharedApp,
    there: There,
    server: ServerHandle,
    daemon: Arc<dyn Daemon>,
    lines: Lines,
}

impl Synced {
    async fn new(sync_to: &str) -> Self {
        let (node, there) = (Node::new(), There::default());
        let server = serve(there.app());
        let port = server.addrs()[0].port();
        save_ring(&node, "container", 6201);
        std::fs::write(
            node.dir.path().join("container-sync-realms.conf"),
            REALMS.replace("PORT", &port.to_string()),
        )
        .unwrap();
        let swift_dir = node.dir.path().to_str().unwrap().to_owned();
        let swift_dir = [("swift_dir", swift_dir.as_str())];
        let (ctx, _) = node.context("container-server");
        let containers =
            crate::container::server::app(&node.section("app:container-server", &swift_dir), &ctx).unwrap();
        let put = request(Method::Put, "/sda/1/a/c", 0)
            .with_header("X-Container-Sync-Key", "user_key")
            .with_header("X-Container-Sync-To", sync_to.replace("PORT", &port.to_string()));
        assert_eq!(containers.call(put).await.status.0, 201);
        let (ctx, lines) = node.context("container-sync");
        let section = node.section("container-sync", &swift_dir);
        let daemon = crate::container::sync::with_client(&section, &ctx, here()).unwrap();
        Self { node, containers, there, server, daemon, lines }
    }

    async fn put(&self, second: u64) {
        let path = format!("/sda/1/a/c/{second}");
        assert_eq!(self.containers.call(object_row(&path, second, 5)).await.status.0, 201);
    }

    fn points(&self) -> (i64, i64) {
        let shared = Shared::new(Clock::system(), |line: &str| panic!("{line}"));
        let files = files_below(&self.node.device().join("containers"));
        let file = files.iter().find(|path| path.extension().is_some_and(|end| end == "db")).unwrap();
        let info = ContainerBroker::new(&shared, file, Options::default()).info().unwrap();
        (info.x_container_sync_point1, info.x_container_sync_point2)
    }

    async fn stop(self) {
        self.server.stop(std::time::Duration::ZERO).await;
    }
}

#[tokio::test]
async fn rows_are_sent_once_and_looked_at_once_more() {
    let synced = Synced::new("//us/There/a2/c2").await;
    synced.put(1).await;
    synced.put(2).await;
    let delete = request(Method::Delete, "/sda/1/a/c/2", 3);
    assert_eq!(synced.containers.call(delete).await.status.0, 204);
    synced.daemon.run_once().await;
    let seen = synced.there.take();
    let names: Vec<_> = seen.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(names, ["DELETE /v1/a2/c2/2", "HEAD /v1/a2/c2/1", "PUT /v1/a2/c2/1"]);
    for ((_, req), second) in seen.iter().zip([3, 1, 1]) {
        let stamp = format!("{:010}.00000", NOW + second);
        assert_eq!(req.headers.get_str("X-Timestamp"), Some(stamp.as_str()));
        let auth: Vec<_> = req.headers.get_str("X-Container-Sync-Auth").unwrap().split(' ').collect();
        let sig = common::container_sync_realms::get_sig(
            req.method.as_str(),
            &req.path_qs(),
            &stamp,
            auth[1],
            "realm_key",
            "user_key",
        );
        assert_eq!(auth, ["US", auth[1], &sig]);
    }
    let put = &seen[2].1;
    assert_eq!(put.body.as_bytes(), Some(&b"body of 1"[..]));
    for (name, value) in [("Etag", "e"), ("X-Object-Meta-Second", "1"), ("X-Static-Large-Object", "True")] {
        assert_eq!(put.headers.get_str(name), Some(value));
    }
    let (point1, point2) = synced.points();
    assert_eq!(point2, -1);
    assert!(synced.lines.contains("1 synced [1 deletes, 1 puts], 0 skipped, 0 failed"));
    assert!(synced.lines.contains("puts: 1, posts: 0, deletes: 1, bytes: 5, sync_point1: "));
    synced.there.answer("HEAD /v1/a2/c2/1", 200);
    synced.daemon.run_once().await;
    assert_eq!(synced.there.take_names(), ["DELETE /v1/a2/c2/2", "HEAD /v1/a2/c2/1"]);
    assert_eq!(synced.points(), (point1, point1));
    synced.daemon.run_once().await;
    assert_eq!(synced.there.take_names(), [""; 0]);
    synced.stop().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_and_keeps_no_other_row_back() {
    let synced = Synced::new("http://127.0.0.1:PORT/v1/a2/c2").await;
    for second in [1, 2, 3] {
        synced.put(second).await;
    }
    synced.there.answer("PUT /v1/a2/c2/2", 401);
    synced.daemon.run_once().await;
    let seen = synced.there.take();
    assert_eq!(seen.len(), 6);
    assert!(seen.iter().all(|(_, req)| req.headers.get_str("X-Container-Sync-Key") == Some("user_key")));
    assert_eq!(synced.points(), (3, -1));
    assert!(synced.lines.contains("Unauth 'a/c' => 'http://127.0.0.1:"), "{:?}", synced.lines.all());
    synced.daemon.run_once().await;
    assert_eq!(synced.points(), (3, 1));
    synced.there.answer("PUT /v1/a2/c2/2", 404);
    synced.daemon.run_once().await;
    assert!(synced.lines.contains(" - object '2'"), "{:?}", synced.lines.all());
    assert_eq!(synced.points(), (3, 1));
    synced.there.answer("PUT /v1/a2/c2/2", 201);
    synced.there.take();
    synced.daemon.run_once().await;
    assert_eq!(
        synced.there.take_names(),
        ["HEAD /v1/a2/c2/2", "HEAD /v1/a2/c2/3", "PUT /v1/a2/c2/2", "PUT /v1/a2/c2/3"]
    );
    assert_eq!(synced.points(), (3, 3));
    synced.stop().await;
}

#[tokio::test]
async fn an_object_that_is_older_here_than_its_row_is_not_sent() {
    let synced = Synced::new("//us/there/a2/c2").await;
    // The object that is found was made at second 7.
    assert_eq!(synced.containers.call(object_row("/sda/1/a/c/7", 9, 5)).await.status.0, 201);
    assert_eq!(synced.containers.call(object_row("/sda/1/a/c/gone", 9, 5)).await.status.0, 201);
    synced.daemon.run_once().await;
    assert_eq!(synced.there.take_names(), ["HEAD /v1/a2/c2/7", "HEAD /v1/a2/c2/gone"]);
    assert!(
        synced.lines.contains("Unknown exception trying to GET: 'a' 'c' 'gone'"),
        "{:?}",
        synced.lines.all()
    );
    assert!(synced.lines.contains("1 synced [0 deletes, 0 puts], 0 skipped, 2 failed"));
    synced.stop().await;
}

#[tokio::test]
async fn a_container_that_is_not_to_be_synced_is_left_alone() {
    let synced = Synced::new("//us/there/a2/c2").await;
    synced.put(1).await;
    let links = || files_below(&synced.node.device().join("sync_containers"));
    // The realm is gone since.
    std::fs::write(synced.node.dir.path().join("container-sync-realms.conf"), "").unwrap();
    let (ctx, lines) = synced.node.context("container-sync");
    let swift_dir = synced.node.dir.path().to_str().unwrap();
    let section = synced.node.section("container-sync", &[("swift_dir", swift_dir)]);
    let daemon = crate::container::sync::with_client(&section, &ctx, here()).unwrap();
    daemon.run_once().await;
    assert!(lines.contains(".db: No realm key for 'us'"), "{:?}", lines.all());
    assert!(lines.contains("0 synced [0 deletes, 0 puts], 0 skipped, 1 failed"));
    // Versioned: what it has are links.
    let post =
        request(Method::Post, "/sda/1/a/c", 2).with_header("X-Container-Sysmeta-Versions-Container", "v");
    assert_eq!(synced.containers.call(post).await.status.0, 204);
    synced.daemon.run_once().await;
    assert!(synced.lines.contains("Skipping container a/c with object versioning configured"));
    assert!(synced.lines.contains("0 synced [0 deletes, 0 puts], 1 skipped, 0 failed"));
    assert_eq!((synced.there.take_names().len(), links().len(), synced.points()), (0, 1, (-1, -1)));
    // A link that leads nowhere goes.
    std::fs::remove_dir_all(synced.node.device().join("containers")).unwrap();
    synced.daemon.run_once().await;
    assert_eq!(links().len(), 0);
    assert!(synced.lines.contains("DB doesn't exist"), "{:?}", synced.lines.all());
    synced.stop().await;
}

#[tokio::test]
async fn a_new_target_gets_all_rows_anew() {
    let synced = Synced::new("//us/there/a2/c2").await;
    synced.put(1).await;
    synced.daemon.run_once().await;
    assert_eq!(synced.points().0, 1);
    let post = request(Method::Post, "/sda/1/a/c", 2)
        .with_header("X-Container-Sync-Key", "user_key")
        .with_header("X-Container-Sync-To", "//us/there/a2/c3");
    assert_eq!(synced.containers.call(post).await.status.0, 204);
    assert_eq!(synced.points(), (-1, -1));
    synced.there.take();
    synced.daemon.run_once().await;
    assert_eq!(synced.there.take_names(), ["HEAD /v1/a2/c3/1", "PUT /v1/a2/c3/1"]);
    synced.stop().await;
}
