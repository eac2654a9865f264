//! The container-updater, and the container server's own account updates, against account servers on sockets.

use super::*;
use common::Conf;
use service::Daemon;
use service::http::app_fn;

fn updater(node: &Node) -> (Arc<dyn Daemon>, service::logs::Lines) {
    let (ctx, lines) = node.context("container-updater");
    let devices = node.dir.path().join("devices");
    let conf = format!("[container-updater]\ndevices = {}\nmount_check = false\n", devices.display());
    let conf = Conf::parse(&conf, "container-server.conf").unwrap();
    (crate::container::updater::build(&conf, &ctx).unwrap(), lines)
}

fn account_partition(node: &Node) -> u32 {
    node.swift_conf.hash.hash_path("a", None, None).partition(4)
}

#[tokio::test]
async fn the_updater_tells_the_account_once() {
    let node = Node::new();
    let accounts = node.account_server();
    let server = serve(accounts.clone());
    save_ring(&node, "account", server.addrs()[0].port());
    let account = format!("/sda/{}/a", account_partition(&node));
    accounts.call(request(Method::Put, &account, 0)).await;
    let containers = node.container_server();
    containers.call(request(Method::Put, "/sda/1/a/c", 1)).await;
    containers.call(object_row("/sda/1/a/c/o", 2, 77)).await;
    let (updater, lines) = updater(&node);
    updater.run_once().await;
    assert!(lines.contains("1 successes, 0 failures, 0 with no changes"), "{:?}", lines.all());
    let listing =
        text_of(accounts.call(request(Method::Get, &account, 3).with_query("format=json")).await).await;
    assert!(listing.starts_with(r#"[{"name": "c", "count": 1, "bytes": 77, "#), "{listing}");
    updater.run_once().await;
    assert!(lines.contains("0 successes, 0 failures, 1 with no changes"), "{:?}", lines.all());
    containers.call(object_row("/sda/1/a/c/p", 2, 3)).await;
    updater.run_once().await;
    let head = accounts.call(request(Method::Head, &account, 3)).await;
    assert_eq!(head.headers.get_str("X-Account-Bytes-Used"), Some("80"));
    let recon = std::fs::read_to_string(node.dir.path().join("container.recon")).unwrap();
    assert!(recon.contains("container_updater_sweep"), "{recon}");
    server.stop(std::time::Duration::ZERO).await;
}

#[tokio::test]
async fn a_container_of_no_account_is_quarantined() {
    let node = Node::new();
    let server = serve(node.account_server());
    save_ring(&node, "account", server.addrs()[0].port());
    node.container_server().call(request(Method::Put, "/sda/1/a/c", 1)).await;
    updater(&node).0.run_once().await;
    assert!(node.device().join("quarantined/containers").exists());
    assert!(files_below(&node.device().join("containers")).is_empty());
    server.stop(std::time::Duration::ZERO).await;
}

#[tokio::test]
async fn an_account_that_cannot_be_told_is_left_alone_for_a_while() {
    let node = Node::new();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = asked.clone();
    let server = serve(app_fn(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async { Response::error(503) }
    }));
    save_ring(&node, "account", server.addrs()[0].port());
    let containers = node.container_server();
    for container in ["c", "d", "e"] {
        containers.call(request(Method::Put, &format!("/sda/1/a/{container}"), 1)).await;
    }
    let (updater, _) = updater(&node);
    updater.run_once().await;
    updater.run_once().await;
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    server.stop(std::time::Duration::ZERO).await;
}

#[tokio::test]
async fn the_container_server_tells_the_accounts_it_is_given() {
    let node = Node::new();
    let accounts = node.account_server();
    let server = serve(accounts.clone());
    let port = server.addrs()[0].port();
    let containers = node.container_server();
    let told = |method, at, hosts: &str, devices: &str| {
        request(method, "/sda/1/a/c", at)
            .with_header("X-Account-Host", hosts)
            .with_header("X-Account-Device", devices)
            .with_header("X-Account-Partition", "5")
    };
    let host = format!("127.0.0.1:{port}");
    assert_eq!(containers.call(told(Method::Put, 1, &host, "sda")).await.status.0, 404);
    accounts.call(request(Method::Put, "/sda/5/a", 0)).await;
    assert_eq!(containers.call(told(Method::Put, 2, &host, "sda")).await.status.0, 202);
    assert_eq!(text_of(accounts.call(request(Method::Get, "/sda/5/a", 3)).await).await, "c\n");
    assert_eq!(containers.call(told(Method::Put, 3, &host, "sda,sdb")).await.status.0, 400);
    // One server that cannot be reached is the updater's concern.
    assert_eq!(
        containers.call(told(Method::Put, 4, &format!("127.0.0.1:1,{host}"), "sda,sda")).await.status.0,
        202
    );
    assert_eq!(containers.call(told(Method::Delete, 5, &host, "sda")).await.status.0, 204);
    assert_eq!(text_of(accounts.call(request(Method::Get, "/sda/5/a", 6)).await).await, "");
    server.stop(std::time::Duration::ZERO).await;
}
