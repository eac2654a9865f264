//! The proxy before fake storage servers: what it asks them, and what it makes of their answers.

use bytes::Bytes;
use service::http::{BodyError, BoxFuture, Headers, Method, Request, Response};

use crate::environ::{Authorize, Authorizer, SwiftOwner, UpdateFooters};
use crate::testing::{Cluster, Fault, chunked_request, put_request};

const OBJECT: &str = "/v1/a/c/o";

async fn cluster_with_container(nodes: usize, options: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(nodes, options);
    assert_eq!(cluster.status(Method::Put, "/v1/a/c").await, 201);
    assert_eq!(cluster.status(Method::Head, "/v1/a/c").await, 204);
    cluster.asked();
    cluster
}

fn values(asked: &[crate::testing::Asked], name: &str) -> Vec<String> {
    let mut values: Vec<String> =
        asked.iter().map(|asked| asked.headers.get_str(name).unwrap_or("-").to_owned()).collect();
    values.sort_unstable();
    values
}

fn large(seed: u8) -> Bytes {
    (0..300_000u32).map(|i| (i / 7) as u8 ^ seed).collect()
}

#[tokio::test]
async fn small_object_goes_to_three_nodes_which_share_the_container_updates() {
    let cluster = cluster_with_container(4, &[]).await;
    let (resp, _) = cluster.call(put_request(OBJECT, "hello".into())).await;
    assert_eq!(resp.status.0, 201);
    assert_eq!(resp.headers.get_str("Etag"), Some("5d41402abc4b2a76b9719d911017c592"));
    assert!(resp.headers.contains("Last-Modified"));
    assert_eq!(cluster.holders("/a/c/o", b"hello").len(), 3);
    let asked = cluster.asked();
    assert_eq!(asked.len(), 3, "container and account info come from the cache");
    assert!(asked.iter().all(|asked| asked.path == "/a/c/o"));
    let nodes: Vec<usize> = asked.iter().map(|asked| asked.node).collect();
    assert!(nodes.iter().all(|node| cluster.holders("/a/c/o", b"hello").contains(node)));
    let devices = values(&asked, "X-Container-Device");
    assert!(devices.windows(2).all(|pair| pair[0] != pair[1]), "{devices:?}");
    assert_eq!(values(&asked, "X-Backend-Storage-Policy-Index"), ["0", "0", "0"]);
    assert_eq!(values(&asked, "Content-Type"), vec!["application/octet-stream"; 3]);
    assert_eq!(values(&asked, "Expect"), ["-", "-", "-"], "one write, no waiting");
}

#[tokio::test]
async fn large_and_chunked_objects_are_streamed_after_continue() {
    let cluster = cluster_with_container(3, &[]).await;
    assert_eq!(cluster.put(OBJECT, large(1)).await, 201);
    assert_eq!(cluster.holders("/a/c/o", &large(1)), [0, 1, 2]);
    let asked = cluster.asked();
    assert_eq!(values(&asked, "Expect"), vec!["100-continue"; 3]);
    assert_eq!(values(&asked, "Content-Length"), vec!["300000"; 3]);

    let pieces = vec![Ok(Bytes::from("one ")), Ok(Bytes::from("two"))];
    let (resp, _) = cluster.call(chunked_request("/v1/a/c/p", pieces)).await;
    assert_eq!(resp.status.0, 201);
    assert_eq!(cluster.holders("/a/c/p", b"one two"), [0, 1, 2]);
}

#[tokio::test]
async fn handoffs_stand_in_for_nodes_that_are_down() {
    let mut cluster = cluster_with_container(5, &[]).await;
    cluster.stop(0).await;
    cluster.fail(1, Fault::Status(507));
    for (name, data) in [("s", Bytes::from("small")), ("l", large(2))] {
        let path = format!("/v1/a/c/{name}");
        assert_eq!(cluster.put(&path, data.clone()).await, 201);
        assert_eq!(cluster.holders(&format!("/a/c/{name}"), &data), [2, 3, 4]);
        let (resp, body) = cluster.call(Request::new(Method::Get, path)).await;
        assert_eq!((resp.status.0, body), (200, data));
    }
}

#[tokio::test]
async fn put_fails_without_a_quorum() {
    let mut cluster = cluster_with_container(3, &[]).await;
    cluster.stop(0).await;
    assert_eq!(cluster.put(OBJECT, "x").await, 201, "two of three are a quorum");
    cluster.stop(1).await;
    assert_eq!(cluster.put("/v1/a/c/p", "x").await, 503);
    assert_eq!(cluster.put("/v1/a/c/p", large(3)).await, 503);
    assert!(cluster.lines.contains("1/2 required connections"));
}

#[tokio::test]
async fn wrong_etag_is_422_and_nothing_is_stored() {
    let cluster = cluster_with_container(3, &[]).await;
    for data in [Bytes::from("x"), large(4)] {
        let req = put_request(OBJECT, data).with_header("Etag", "5d41402abc4b2a76b9719d911017c592");
        assert_eq!(cluster.call(req).await.0.status.0, 422);
    }
    assert!(cluster.holders("/a/c/o", b"").is_empty());
}

#[tokio::test]
async fn conditional_put_leaves_all_nodes_alone_when_one_has_the_object() {
    let cluster = cluster_with_container(3, &[]).await;
    assert_eq!(cluster.put(OBJECT, "old").await, 201);
    cluster.forget(0, "/a/c/o");
    let req = put_request(OBJECT, "new".into()).with_header("If-None-Match", "*");
    assert_eq!(cluster.call(req).await.0.status.0, 412);
    assert_eq!(cluster.holders("/a/c/o", b"old"), [1, 2]);
    let req = put_request("/v1/a/c/p", "new".into()).with_header("If-None-Match", "*");
    assert_eq!(cluster.call(req).await.0.status.0, 201);
}

#[tokio::test]
async fn conflict_with_a_newer_object_is_202() {
    let cluster = cluster_with_container(3, &[]).await;
    for node in 0..3 {
        cluster.fail(node, Fault::Status(409));
    }
    assert_eq!(cluster.put(OBJECT, "x").await, 202);
    assert_eq!(cluster.put(OBJECT, large(5)).await, 202);
}

#[tokio::test]
async fn client_that_breaks_off_is_499_and_nothing_is_stored() {
    let cluster = cluster_with_container(3, &[]).await;
    let pieces = vec![Ok(large(6)), Err(BodyError::Disconnected)];
    let (resp, _) = cluster.call(chunked_request(OBJECT, pieces)).await;
    assert_eq!(resp.status.0, 499);
    let (resp, _) = cluster.call(chunked_request(OBJECT, vec![Err(BodyError::Timeout)])).await;
    assert_eq!(resp.status.0, 408);
    assert!(cluster.holders("/a/c/o", b"").is_empty());
}

#[tokio::test]
async fn footers_follow_the_data() {
    let cluster = cluster_with_container(3, &[]).await;
    let mut req = put_request(OBJECT, "hello".into());
    let footers = |footers: &mut Headers| footers.insert("X-Object-Sysmeta-A", "b");
    req.env.insert(UpdateFooters(std::sync::Arc::new(footers)));
    assert_eq!(cluster.call(req).await.0.status.0, 201);
    let asked = cluster.asked();
    assert_eq!(values(&asked, "X-Backend-Obj-Metadata-Footer"), vec!["yes"; 3]);
    assert_eq!(values(&asked, "X-Backend-Obj-Content-Length"), vec!["5"; 3]);
    let boundary = asked[0].headers.get_str("X-Backend-Obj-Multipart-Mime-Boundary").unwrap();
    let want = format!(
        "--{boundary}\r\nX-Document: object body\r\n\r\nhello\r\n--{boundary}\r\nX-Document: object metadata\r\n\
         Content-MD5: 0d7e4b8f8ef1a8f1a0b5d6c6d2e1f7a2\r\n\r\n{{\"X-Object-Sysmeta-A\": \"b\"}}\r\n--{boundary}--\r\n"
    );
    let digest = common::digest::hex(&common::digest::md5(b"{\"X-Object-Sysmeta-A\": \"b\"}"));
    assert_eq!(asked[0].body, want.replace("0d7e4b8f8ef1a8f1a0b5d6c6d2e1f7a2", &digest));
}

#[tokio::test]
async fn download_goes_on_from_another_node() {
    let cluster = cluster_with_container(4, &[]).await;
    assert_eq!(cluster.put(OBJECT, large(7)).await, 201);
    for node in cluster.holders("/a/c/o", &large(7)).into_iter().skip(1) {
        cluster.fail(node, Fault::CutBody(100_000));
    }
    cluster.asked();
    let (resp, body) = cluster.call(Request::new(Method::Get, OBJECT)).await;
    assert_eq!(resp.status.0, 200);
    assert_eq!(body, large(7));
    assert_eq!(resp.headers.get_str("Content-Type"), Some("a/b"), "swift_bytes is for listings alone");
    let ranges = values(&cluster.asked(), "Range");
    let resumed: Vec<&str> =
        ["bytes=100000-299999", "bytes=200000-299999"].into_iter().take(ranges.len() - 1).collect();
    assert_eq!(&ranges[1..], resumed, "{ranges:?}");

    let req = Request::new(Method::Get, OBJECT).with_header("Range", "bytes=50000-250000");
    let (resp, body) = cluster.call(req).await;
    assert_eq!((resp.status.0, body), (206, large(7).slice(50_000..=250_000)));
}

#[tokio::test]
async fn download_is_not_continued_from_another_version() {
    let cluster = cluster_with_container(3, &[]).await;
    assert_eq!(cluster.put(OBJECT, large(8)).await, 201);
    cluster.fail(0, Fault::Status(503));
    assert_eq!(cluster.put(OBJECT, large(9)).await, 201);
    // Version 8 is on one node, 9 on two: none of these can be put together of pieces of 100,000 bytes.
    for node in 0..3 {
        cluster.fail(node, Fault::CutBody(100_000));
    }
    let mut req = Request::new(Method::Get, OBJECT);
    req.env.insert(crate::environ::NonClientDisconnect::default());
    let disconnect = req.env.get::<crate::environ::NonClientDisconnect>().cloned().unwrap();
    let (resp, body) = cluster.call(req).await;
    assert_eq!((resp.status.0, body.len()), (200, 0), "it breaks off: no node has the rest");
    assert!(disconnect.get());
    assert!(cluster.lines.contains("Trying to read object during GET (retrying)"));
}

#[tokio::test]
async fn missing_object_is_404_after_all_nodes_were_asked() {
    let cluster = cluster_with_container(4, &[]).await;
    assert_eq!(cluster.status(Method::Get, OBJECT).await, 404);
    assert_eq!(cluster.asked().len(), 4);
    assert_eq!(cluster.status(Method::Post, OBJECT).await, 404);
    assert_eq!(cluster.status(Method::Delete, OBJECT).await, 404);
}

#[tokio::test]
async fn delete_and_post_make_do_with_one_missing_node() {
    let mut cluster = cluster_with_container(3, &[]).await;
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    cluster.forget(0, "/a/c/o");
    assert_eq!(cluster.status(Method::Post, OBJECT).await, 202);
    cluster.stop(1).await;
    assert_eq!(cluster.status(Method::Delete, OBJECT).await, 204, "204, 404 and none: the 404 counts as 204");
}

#[tokio::test]
async fn post_finds_the_object_on_a_handoff() {
    let cluster = cluster_with_container(4, &[]).await;
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    let holders = cluster.holders("/a/c/o", b"x");
    cluster.forget(holders[0], "/a/c/o");
    cluster.forget(holders[1], "/a/c/o");
    assert_eq!(cluster.status(Method::Post, OBJECT).await, 503, "one of three has it: neither 202 nor 404");
    assert_eq!(cluster.asked_with(&Method::Post).len(), 4, "one handoff is all that there is");
}

#[tokio::test]
async fn hanging_node_costs_a_timeout_and_is_then_left_alone() {
    let cluster = cluster_with_container(3, &[("error_suppression_limit", "0")]).await;
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    for node in 1..3 {
        cluster.fail(node, Fault::Hang);
    }
    assert_eq!(cluster.status(Method::Get, OBJECT).await, 200);
    cluster.asked();
    assert_eq!(cluster.status(Method::Get, OBJECT).await, 200);
    assert_eq!(cluster.status(Method::Get, OBJECT).await, 200);
    assert!(cluster.asked().len() <= 4, "each of the two may have been asked once more, at most");
}

#[tokio::test]
async fn concurrent_gets_do_not_wait_for_a_hanging_node() {
    let options = [("concurrent_gets", "yes"), ("concurrency_timeout", "0.01"), ("node_timeout", "30")];
    let cluster = cluster_with_container(3, &options).await;
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    cluster.fail(0, Fault::Hang);
    cluster.fail(1, Fault::Hang);
    for _ in 0..3 {
        let (resp, body) = cluster.call(Request::new(Method::Get, OBJECT)).await;
        assert_eq!((resp.status.0, &body[..]), (200, &b"x"[..]));
    }
}

#[tokio::test]
async fn newest_version_is_found_among_all() {
    let cluster = cluster_with_container(3, &[]).await;
    let put = |data: &'static str, timestamp| {
        put_request(OBJECT, data.into()).with_header("X-Timestamp", timestamp)
    };
    assert_eq!(cluster.call(put("old", "1")).await.0.status.0, 201);
    cluster.fail(0, Fault::Status(503));
    cluster.fail(1, Fault::Status(503));
    assert_eq!(cluster.call(put("new", "2")).await.0.status.0, 503, "no quorum, but one node has it");
    cluster.heal();
    // A fresh proxy would not have the two error limited; ten errors are needed for that.
    let req = Request::new(Method::Get, OBJECT).with_header("X-Newest", "true");
    let (resp, body) = cluster.call(req).await;
    assert_eq!((resp.status.0, &body[..]), (200, &b"new"[..]));
}

#[tokio::test]
async fn object_to_be_deleted_is_queued_by_all_three() {
    let cluster = cluster_with_container(3, &[]).await;
    let req = put_request(OBJECT, "x".into()).with_header("X-Delete-At", "4000000000");
    assert_eq!(cluster.call(req).await.0.status.0, 201);
    let asked = cluster.asked();
    assert_eq!(values(&asked, "X-Delete-At"), vec!["4000000000"; 3]);
    assert_eq!(values(&asked, "X-Backend-Clean-Expiring-Object-Queue"), ["f", "t", "t"]);
    assert!(values(&asked, "X-Delete-At-Container").iter().all(|container| container.starts_with("39999")));
    let devices = values(&asked, "X-Delete-At-Device");
    assert!(devices.windows(2).all(|pair| pair[0] != pair[1]), "{devices:?}");
}

#[tokio::test]
async fn container_put_chooses_a_policy_and_names_account_servers() {
    let cluster = Cluster::start(3, &[]);
    let put = |policy: &str| Request::new(Method::Put, "/v1/a/c").with_header("X-Storage-Policy", policy);
    let (resp, body) = cluster.call(put("none")).await;
    assert_eq!((resp.status.0, &body[..]), (400, &b"Invalid X-Storage-Policy 'none'"[..]));
    let (resp, body) = cluster.call(put("OLD")).await;
    assert_eq!((resp.status.0, &body[..]), (400, &b"Storage Policy 'old' is deprecated"[..]));
    cluster.asked();
    assert_eq!(cluster.call(put("Silver")).await.0.status.0, 201);
    let asked = cluster.asked_with(&Method::Put);
    assert_eq!(values(&asked, "X-Backend-Storage-Policy-Index"), ["1", "1", "1"]);
    let devices = values(&asked, "X-Account-Device");
    assert!(devices.windows(2).all(|pair| pair[0] != pair[1]), "{devices:?}");
}

#[tokio::test]
async fn container_info_is_asked_once_and_cached_as_swift_caches_it() {
    let cluster = Cluster::start(3, &[]);
    assert_eq!(cluster.status(Method::Put, "/v1/a/c").await, 201);
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    let heads = cluster.asked_with(&Method::Head);
    assert_eq!(heads.len(), 2, "account and container once each");
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    assert!(cluster.asked_with(&Method::Head).is_empty());
    let info = cluster.cache.get("container/a/c").await.unwrap();
    assert_eq!(info["status"], 204);
    assert_eq!(info["storage_policy"], "0");
    assert_eq!(info["sharding_state"], "unsharded");
    assert_eq!(info["cors"]["max_age"], serde_json::Value::Null);
    let info = cluster.cache.get("account/a").await.unwrap();
    assert_eq!((&info["container_count"], &info["account_really_exists"]), (&"1".into(), &true.into()));
    assert_eq!(info["storage_policies"]["1"]["bytes"], 0);
}

#[tokio::test]
async fn rows_of_a_sharded_container_go_to_the_shard_that_has_the_name() {
    let cluster = Cluster::start(3, &[]);
    let sharded = Request::new(Method::Put, "/v1/a/c").with_header("X-Container-Meta-Shard", ".shards_a/c 1");
    assert_eq!(cluster.call(sharded).await.0.status.0, 201);
    assert_eq!(cluster.status(Method::Put, "/v1/a/whole").await, 201);
    for (path, quoted, state) in
        [("/v1/a/c/o é", ".shards_a/c%201", "sharded"), ("/v1/a/whole/o", "-", "unsharded")]
    {
        assert_eq!(cluster.put(path, "x").await, 201);
        let asked = cluster.asked();
        let (puts, others): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|asked| asked.method == Method::Put);
        let puts: Vec<_> = puts.into_iter().filter(|put| put.path.matches('/').count() > 2).collect();
        assert_eq!(values(&puts, "X-Backend-Quoted-Container-Path"), [quoted; 3]);
        assert_eq!(values(&puts, "X-Container-Root-Db-State"), [state; 3]);
        let shard_lists = others.iter().filter(|asked| asked.headers.contains("X-Backend-Record-Type"));
        assert_eq!(shard_lists.count(), usize::from(state == "sharded"));
        assert_eq!(cluster.status(Method::Delete, path).await, 204);
        let deletes = cluster.asked_with(&Method::Delete);
        assert_eq!(values(&deletes, "X-Backend-Quoted-Container-Path"), [quoted; 3]);
    }
}

#[tokio::test]
async fn object_in_a_container_that_is_not_there_is_404() {
    let cluster = Cluster::start(3, &[]);
    for method in [Method::Get, Method::Put, Method::Post, Method::Delete] {
        assert_eq!(cluster.status(method, OBJECT).await, 404);
    }
    assert_eq!(cluster.put(OBJECT, "x").await, 404);
}

#[tokio::test]
async fn info_is_public_and_more_of_it_is_for_admins() {
    let cluster = Cluster::start(3, &[("admin_key", "secret")]);
    let info = async |method: Method, query: &str| {
        let (resp, body) = cluster.call(Request::new(method, "/info").with_query(query)).await;
        (resp.status.0, serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default())
    };
    let (status, public) = info(Method::Get, "").await;
    assert_eq!((status, &public["swift"]["version"]), (200, &"2.38.3".into()));
    assert_eq!(
        public["swift"]["policies"][0],
        serde_json::json!({"name": "gold", "aliases": "gold", "default": true})
    );
    assert_eq!(public["swift"]["policies"].as_array().unwrap().len(), 5, "deprecated ones are not offered");
    assert_eq!(public["swift"].get("valid_api_versions"), None);
    assert_eq!(public.get("admin"), None);
    // swift.common.digest.get_hmac('GET', '/info', 4000000000, 'secret'), and the same for HEAD
    let get = "swiftinfo_expires=4000000000&swiftinfo_sig=8aa317041af70d481899192fb1b23fb1c7e9d7ea";
    let head = "swiftinfo_expires=4000000000&swiftinfo_sig=ab0e752a2d2bde21438d229ce5916a6f2e3ced1a";
    let (status, admin) = info(Method::Get, get).await;
    assert_eq!(status, 200);
    assert_eq!(admin["admin"]["disallowed_sections"][1], "swift.valid_api_versions");
    assert_eq!(info(Method::Head, get).await.0, 200);
    assert_eq!(info(Method::Head, head).await.0, 200);
    assert_eq!(info(Method::Get, head).await.0, 401);
    assert_eq!(info(Method::Get, &get.replace("4000000000", "1")).await.0, 401);
    assert_eq!(info(Method::Get, "swiftinfo_sig=x").await.0, 401);
}

#[tokio::test]
async fn bad_requests_are_refused_before_anybody_is_asked() {
    let cluster = Cluster::start(3, &[("deny_host_headers", "evil.example.com")]);
    let cases = [
        (Method::Get, "/v2/a", 400),
        (Method::Get, "/v1", 412),
        (Method::Get, "//", 404),
        (Method::Get, "/v1/a/c\0", 412),
        (Method::Other("FOO".to_owned()), "/v1/a", 405),
        (Method::Put, "/v1/a", 405),
        (Method::Update, "/v1/a/c", 405),
    ];
    for (method, path, status) in cases {
        assert_eq!(cluster.status(method, path).await, status, "{path}");
    }
    let denied = Request::new(Method::Get, "/v1/a").with_header("Host", "evil.example.com:8080");
    assert_eq!(cluster.call(denied).await.0.status.0, 403);
    let timestamp = Request::new(Method::Get, "/v1/a").with_header("X-Timestamp", "soon");
    assert_eq!(cluster.call(timestamp).await.0.status.0, 400);
    assert!(cluster.asked().is_empty());
}

#[tokio::test]
async fn headers_of_owners_are_hidden_from_others_and_dropped_from_what_they_send() {
    let cluster = Cluster::start(3, &[]);
    let put = |owner| {
        let mut req = Request::new(Method::Put, "/v1/a/c").with_header("X-Container-Write", "w");
        req.env.insert(SwiftOwner(owner));
        req
    };
    assert_eq!(cluster.call(put(false)).await.0.status.0, 201);
    assert_eq!(values(&cluster.asked_with(&Method::Put), "X-Container-Write"), ["-", "-", "-"]);
    assert_eq!(cluster.call(put(true)).await.0.status.0, 202);
    let head = |owner| {
        let mut req = Request::new(Method::Head, "/v1/a/c");
        req.env.insert(SwiftOwner(owner));
        req
    };
    assert_eq!(cluster.call(head(true)).await.0.headers.get_str("X-Container-Write"), Some("w"));
    assert_eq!(cluster.call(head(false)).await.0.headers.get("X-Container-Write"), None);
}

#[tokio::test]
async fn browsers_are_told_what_the_container_allows() {
    let cluster = Cluster::start(3, &[("cors_allow_origin", "http://everywhere")]);
    let put = Request::new(Method::Put, "/v1/a/c")
        .with_header("X-Container-Meta-Access-Control-Allow-Origin", "http://one http://two")
        .with_header("X-Container-Meta-Access-Control-Max-Age", "5");
    assert_eq!(cluster.call(put).await.0.status.0, 201);
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    let get = |origin: &str| Request::new(Method::Get, OBJECT).with_header("Origin", origin);
    for origin in ["http://two", "http://everywhere"] {
        let (resp, _) = cluster.call(get(origin)).await;
        assert_eq!(resp.headers.get_str("Access-Control-Allow-Origin"), Some(origin));
        assert_eq!(resp.headers.get_str("Vary"), Some("Origin"));
        assert!(resp.headers.get_str("Access-Control-Expose-Headers").unwrap().contains("etag"));
    }
    let (resp, _) = cluster.call(get("http://other")).await;
    assert_eq!((resp.status.0, resp.headers.get("Access-Control-Allow-Origin")), (200, None));

    let preflight = |origin: &str, method: &str| {
        Request::new(Method::Options, OBJECT)
            .with_header("Origin", origin)
            .with_header("Access-Control-Request-Method", method)
            .with_header("Access-Control-Request-Headers", "x-a, x-b")
    };
    let (resp, _) = cluster.call(preflight("http://one", "PUT")).await;
    assert_eq!(resp.status.0, 200);
    assert_eq!(resp.headers.get_str("Access-Control-Max-Age"), Some("5"));
    assert_eq!(resp.headers.get_str("Access-Control-Allow-Headers"), Some("x-a, x-b"));
    assert_eq!(resp.headers.get_str("Vary"), Some("Origin, Access-Control-Request-Headers"));
    assert_eq!(cluster.call(preflight("http://other", "PUT")).await.0.status.0, 401);
    assert_eq!(cluster.call(preflight("http://one", "COPY")).await.0.status.0, 401);
}

struct Deny;

impl Authorize for Deny {
    fn authorize<'a>(&'a self, _: &'a mut Request, acl: Option<&'a str>) -> BoxFuture<'a, Option<Response>> {
        Box::pin(async move { (acl != Some("friends")).then(|| Response::error(403)) })
    }
}

#[tokio::test]
async fn authorizer_decides_once_the_acl_is_known() {
    let cluster = Cluster::start(3, &[]);
    let mut put = Request::new(Method::Put, "/v1/a/c").with_header("X-Container-Read", "friends");
    put.env.insert(SwiftOwner(true));
    assert_eq!(cluster.call(put).await.0.status.0, 201);
    assert_eq!(cluster.put(OBJECT, "x").await, 201);
    let status = async |method: Method, path: &str| {
        let mut req = Request::new(method, path);
        req.env.insert(Authorizer(std::sync::Arc::new(Deny)));
        cluster.call(req).await.0.status.0
    };
    assert_eq!(status(Method::Get, OBJECT).await, 200);
    assert_eq!(status(Method::Head, "/v1/a/c").await, 204);
    for (method, path) in [
        (Method::Put, OBJECT),
        (Method::Post, OBJECT),
        (Method::Delete, OBJECT),
        (Method::Get, "/v1/a"),
        (Method::Delete, "/v1/a/c"),
        (Method::Get, "/v1/a/none/o"),
    ] {
        assert_eq!(status(method.clone(), path).await, 403, "{method} {path}");
    }
}
