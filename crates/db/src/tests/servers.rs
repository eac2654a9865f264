//! The servers through their apps. That the answers are Swift's is held by the comparison with Swift's servers.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

#[tokio::test]
async fn a_container_lives_and_dies() {
    let node = Node::new();
    let app = node.container_server();
    let path = "/sda/1/a/c";
    assert_eq!(app.call(request(Method::Get, path, 0)).await.status.0, 404);
    let created =
        app.call(request(Method::Put, path, 1).with_header("X-Container-Meta-Colour", "blue")).await;
    assert_eq!(created.status.0, 201);
    assert_eq!(created.headers.get_str("X-Backend-Storage-Policy-Index"), Some("0"));
    assert_eq!(app.call(request(Method::Put, path, 2)).await.status.0, 202);
    assert_eq!(app.call(object_row("/sda/1/a/c/o", 3, 10)).await.status.0, 201);
    let head = app.call(request(Method::Head, path, 4)).await;
    assert_eq!(head.headers.get_str("X-Container-Object-Count"), Some("1"));
    assert_eq!(head.headers.get_str("X-Container-Meta-Colour"), Some("blue"));
    assert_eq!(text_of(app.call(request(Method::Get, path, 4)).await).await, "o\n");
    assert_eq!(app.call(request(Method::Delete, path, 5)).await.status.0, 409);
    assert_eq!(app.call(request(Method::Delete, "/sda/1/a/c/o", 6)).await.status.0, 204);
    assert_eq!(app.call(request(Method::Delete, path, 7)).await.status.0, 204);
    let gone = app.call(request(Method::Get, path, 8)).await;
    assert_eq!(gone.status.0, 404);
    assert_eq!(gone.headers.get_str("X-Backend-Delete-Timestamp"), Some("1700000107.00000"));
    assert_eq!(app.call(request(Method::Put, path, 9)).await.status.0, 201);
}

#[tokio::test]
async fn an_object_row_does_not_open_the_database() {
    let node = Node::new();
    let app = node.container_server();
    app.call(request(Method::Put, "/sda/1/a/c", 1)).await;
    let database =
        files_below(&node.device()).into_iter().find(|path| path.extension().is_some_and(|e| e == "db"));
    let database = database.unwrap();
    let whole = std::fs::read(&database).unwrap();
    std::fs::write(&database, "not a database").unwrap();
    assert_eq!(app.call(object_row("/sda/1/a/c/o", 2, 10)).await.status.0, 201);
    assert_eq!(app.call(request(Method::Delete, "/sda/1/a/c/p", 2)).await.status.0, 204);
    std::fs::write(&database, whole).unwrap();
    assert_eq!(text_of(app.call(request(Method::Get, "/sda/1/a/c", 3)).await).await, "o\n");
}

/// Databases below a folder that this process has open.
fn open_databases(dir: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = open.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    targets.filter(|path| path.starts_with(dir) && path.extension().is_some_and(|e| e == "db")).count()
}

#[tokio::test]
async fn two_thousand_databases_are_never_open_together() {
    const THREADS: usize = 4;
    const DATABASES: usize = 2000;
    let node = Node::new();
    let app = node.container_server();
    app.call(request(Method::Put, "/sda/1/a/c", 1)).await;
    let template =
        files_below(&node.device()).into_iter().find(|path| path.extension().is_some_and(|e| e == "db"));
    let names: Vec<String> = (0..DATABASES).map(|n| format!("c{n}")).collect();
    for name in &names {
        let hash = node.swift_conf.hash.hash_path("a", Some(name), None);
        let path = crate::server::db_path(&node.device(), "containers", "1", &hash);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(template.as_ref().unwrap(), path).unwrap();
    }
    let (ctx, _) = node.context_with("container-server", DiskPools::new(THREADS));
    let app = crate::container::server::app(&node.section("app:container-server", &[]), &ctx).unwrap();
    let most = AtomicUsize::new(0);
    let ask = async |name: &String| {
        // Some are written to.
        let method = if name.ends_with(['0', '5']) { Method::Post } else { Method::Get };
        let asked = request(method, &format!("/sda/1/a/{name}"), 2).with_header("X-Container-Meta-A", "b");
        assert_eq!(app.call(asked).await.status.0, 204);
        most.fetch_max(open_databases(node.dir.path()), Ordering::Relaxed);
    };
    for at_once in names.chunks(40) {
        futures_util::future::join_all(at_once.iter().map(&ask)).await;
    }
    let most = most.into_inner();
    let limit = crate::connections::IDLE_CONNECTIONS;
    // The descriptors are not listed at one moment: one that is closed meanwhile is counted beside the next.
    assert!(most <= limit + 2 * THREADS, "{most} open");
    assert!(most >= limit / 2, "only {most} were kept");
}

#[tokio::test]
async fn what_is_not_served_yet_is_refused() {
    let node = Node::new();
    for app in [node.account_server(), node.container_server()] {
        assert_eq!(app.call(request(Method::Ssync, "/sda/1/a/c", 1)).await.status.0, 405);
    }
}

#[tokio::test]
async fn a_broken_database_is_a_500_and_then_a_404() {
    let node = Node::new();
    let (ctx, lines) = node.context("container-server");
    let app = crate::container::server::app(&node.section("app:container-server", &[]), &ctx).unwrap();
    app.call(request(Method::Put, "/sda/1/a/c", 1)).await;
    let database =
        files_below(&node.device()).into_iter().find(|path| path.extension().is_some_and(|e| e == "db"));
    std::fs::write(database.unwrap(), "x".repeat(8192)).unwrap();
    assert_eq!(app.call(request(Method::Head, "/sda/1/a/c", 2)).await.status.0, 500);
    assert!(lines.contains("due to corrupted database"), "{:?}", lines.all());
    assert_eq!(app.call(request(Method::Head, "/sda/1/a/c", 3)).await.status.0, 404);
}

#[tokio::test]
async fn a_device_that_is_not_there_is_507() {
    let node = Node::new();
    for (app, path) in [(node.account_server(), "/sdb/1/a"), (node.container_server(), "/sdb/1/a/c")] {
        for method in [Method::Get, Method::Head, Method::Put, Method::Post, Method::Delete] {
            assert_eq!(app.call(request(method, path, 1)).await.status.0, 507);
        }
    }
    let full = [("fallocate_reserve", "100%")];
    let (ctx, _) = node.context("container-server");
    let devices = node.dir.path().join("devices");
    let section = Section::from_pairs(
        "app:container-server",
        [("devices", devices.to_str().unwrap()), ("mount_check", "false")].into_iter().chain(full),
    );
    let app = crate::container::server::app(&section, &ctx).unwrap();
    assert_eq!(app.call(request(Method::Put, "/sda/1/a/c", 1)).await.status.0, 507);
    assert_eq!(app.call(request(Method::Get, "/sda/1/a/c", 1)).await.status.0, 404);
    assert_eq!(files_below(&node.device()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_synced_container_is_listed_on_its_device() {
    let node = Node::new();
    let app = node.container_server();
    let links = || files_below(&node.device().join("sync_containers"));
    let sync = |key: &'static str, to: &'static str, at| {
        request(Method::Post, "/sda/1/a/c", at)
            .with_header("X-Container-Sync-Key", key)
            .with_header("X-Container-Sync-To", to)
    };
    app.call(request(Method::Put, "/sda/1/a/c", 1)).await;
    assert_eq!(app.call(sync("k", "http://127.0.0.1/v1/a/d", 2)).await.status.0, 204);
    assert_eq!(links().len(), 1);
    assert!(
        links()[0]
            .canonicalize()
            .unwrap()
            .starts_with(node.device().canonicalize().unwrap().join("containers"))
    );
    assert_eq!(app.call(sync("", "", 3)).await.status.0, 204);
    assert_eq!(links().len(), 0);
    assert_eq!(app.call(sync("k", "http://elsewhere/v1/a/d", 4)).await.status.0, 400);
}

#[tokio::test]
async fn an_account_keeps_counts_per_policy() {
    let node = Node::new();
    let app = node.account_server();
    let report = |path: &'static str, at, objects: u64, policy: u64| {
        request(Method::Put, path, at)
            .with_header("X-Put-Timestamp", format!("{:010}.00000", NOW + at))
            .with_header("X-Delete-Timestamp", "0")
            .with_header("X-Object-Count", objects)
            .with_header("X-Bytes-Used", objects * 10)
            .with_header("X-Backend-Storage-Policy-Index", policy)
    };
    assert_eq!(app.call(report("/sda/1/a/c", 1, 1, 0)).await.status.0, 404);
    assert_eq!(app.call(request(Method::Put, "/sda/1/a", 1)).await.status.0, 201);
    assert_eq!(app.call(report("/sda/1/a/c", 2, 3, 0)).await.status.0, 201);
    assert_eq!(app.call(report("/sda/1/a/d", 2, 4, 1)).await.status.0, 201);
    let pending =
        files_below(&node.device()).into_iter().find(|path| path.extension().is_some_and(|e| e == "pending"));
    let entries = std::fs::read_to_string(pending.unwrap()).unwrap().matches(':').count();
    assert_eq!(entries, 2, "reports are merged when somebody asks for the counts");
    let head = app.call(request(Method::Head, "/sda/1/a", 3)).await;
    for (name, value) in [
        ("X-Account-Container-Count", "2"),
        ("X-Account-Object-Count", "7"),
        ("X-Account-Storage-Policy-Gold-Bytes-Used", "30"),
        ("X-Account-Storage-Policy-Silver-Container-Count", "1"),
    ] {
        assert_eq!(head.headers.get_str(name), Some(value), "{name}");
    }
    assert_eq!(app.call(request(Method::Delete, "/sda/1/a", 4)).await.status.0, 204);
    let gone = app.call(request(Method::Head, "/sda/1/a", 5)).await;
    assert_eq!((gone.status.0, gone.headers.get_str("X-Account-Status")), (404, Some("Deleted")));
    assert_eq!(app.call(request(Method::Put, "/sda/1/a", 6)).await.status.0, 403);
}
