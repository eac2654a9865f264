//! The object server's methods, called as a pipeline calls them, on devices in a temporary folder.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use common::config::{Paste, SwiftConf};
use common::digest::{hex, md5};
use common::{Clock, PolicyIndex, Timestamp, pickle};
use service::context::Context;
use service::disk_pool::DiskPools;
use service::http::{Body, BodyError, Method, Request, Response, SharedApp, app_fn};
use service::logs::{Lines, Logger};
use service::pipeline::{Registry, load_app};

const NOW: f64 = 1_700_000_000.0;

struct Server {
    app: SharedApp,
    devices: tempfile::TempDir,
    lines: Lines,
}

/// An answer with its body read.
struct Answer {
    status: u16,
    response: Response,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.response.headers.get_str(name).unwrap_or("(none)")
    }
}

impl Server {
    fn new() -> Self {
        Self::with_options("")
    }

    fn with_options(options: &str) -> Self {
        let devices = tempfile::tempdir().unwrap();
        std::fs::create_dir(devices.path().join("sda1")).unwrap();
        let conf = format!(
            "[DEFAULT]\ndevices = {}\nmount_check = false\nfallocate_reserve = 0\n\
             [pipeline:main]\npipeline = object-server\n[app:object-server]\nuse = egg:swift#object\n{options}\n",
            devices.path().display()
        );
        let (logger, lines) = Logger::memory();
        let swift_conf = SwiftConf::parse(
            b"[swift-hash]\nswift_hash_path_suffix = endcap\n\
              [storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n",
            "swift.conf",
            devices.path(),
        )
        .unwrap();
        let ctx = Context::builder("object-server")
            .logger(logger)
            .clock(Clock::manual(Timestamp::from_secs_f64(NOW)))
            .swift_conf(Arc::new(swift_conf))
            .disk_pools(DiskPools::inline())
            .build();
        let mut registry = Registry::new();
        obj::register(&mut registry);
        let paste = Paste::parse(&conf, "object-server.conf", "main").unwrap();
        let app = load_app(&paste, &registry, &ctx).unwrap();
        assert_eq!(paste.warnings(), Vec::<String>::new());
        Server { app, devices, lines }
    }

    async fn call(&self, req: Request) -> Answer {
        let mut response = self.app.call(req).await;
        let body = response.body.collect(64 << 20).await.unwrap().to_vec();
        Answer { status: response.status.0, response, body }
    }

    async fn get(&self, headers: &[(&str, &str)]) -> Answer {
        self.call(with(request(Method::Get, None), headers)).await
    }

    async fn put(&self, at: f64, data: impl Into<Body>, headers: &[(&str, &str)]) -> Answer {
        let req = request(Method::Put, Some(at)).with_header("Content-Type", "text/plain");
        let body: Body = data.into();
        let req = match body.content_length() {
            Some(length) => req.with_header("Content-Length", length),
            None => req.with_header("Transfer-Encoding", "chunked"),
        };
        self.call(with(req.with_body(body), headers)).await
    }

    async fn send(&self, method: Method, at: f64, headers: &[(&str, &str)]) -> Answer {
        self.call(with(request(method, Some(at)), headers)).await
    }

    /// Files below a directory of the device.
    fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut dirs = vec![self.devices.path().join("sda1").join(below)];
        let mut files = Vec::new();
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => dirs.push(path),
                    path => files.push(path),
                }
            }
        }
        files.sort();
        files
    }

    fn names(&self, below: &str, extension: &str) -> Vec<String> {
        let files = self.files(below).into_iter().filter(|f| f.extension().is_some_and(|e| e == extension));
        files.map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    fn pending(&self) -> Vec<pickle::Value> {
        let files = self.files("async_pending");
        files.iter().map(|f| pickle::loads(&std::fs::read(f).unwrap()).unwrap()).collect()
    }
}

fn request(method: Method, at: Option<f64>) -> Request {
    let req = Request::new(method, "/sda1/5/a/c/o").with_header("Host", "h:6200");
    match at {
        Some(at) => req.with_header("X-Timestamp", ts(at)),
        None => req,
    }
}

fn with(mut req: Request, headers: &[(&str, &str)]) -> Request {
    headers.iter().for_each(|(name, value)| req.headers.insert(*name, *value));
    req
}

fn ts(at: f64) -> String {
    Timestamp::from_secs_f64(at).internal()
}

#[tokio::test]
async fn what_is_put_is_got_with_its_metadata() {
    let server = Server::new();
    let headers = [
        ("X-Object-Meta-Colour", "caf\u{e9}"),
        ("X-Object-Sysmeta-Foo", "bar"),
        ("Content-Encoding", "gzip"),
        ("X-Not-Allowed", "x"),
    ];
    for size in [0usize, 1, 4096, 65536, 65537, 1_000_003] {
        let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let etag = hex(&md5(&data));
        let put = server.put(NOW + size as f64, data.clone(), &headers).await;
        assert_eq!((put.status, put.header("Etag")), (201, format!("\"{etag}\"").as_str()), "{size}");
        let got = server.get(&[]).await;
        assert_eq!(got.status, 200);
        assert!(got.body == data, "{size}");
        assert_eq!(got.header("Etag"), format!("\"{etag}\""));
        assert_eq!(got.header("X-Object-Meta-Colour"), "caf\u{e9}");
        assert_eq!(got.header("X-Object-Sysmeta-Foo"), "bar");
        assert_eq!(got.header("Content-Encoding"), "gzip");
        assert_eq!(got.header("X-Not-Allowed"), "(none)");
        let normal = Timestamp::from_secs_f64(NOW + size as f64).normal();
        for name in
            ["X-Timestamp", "X-Backend-Timestamp", "X-Backend-Data-Timestamp", "X-Backend-Durable-Timestamp"]
        {
            assert_eq!(got.header(name), normal, "{name}");
        }
        let head = server.call(request(Method::Head, None)).await;
        assert_eq!((head.status, head.header("Content-Length")), (200, size.to_string().as_str()));
        assert!(head.body.is_empty());
    }
    assert_eq!(server.names("objects", "data").len(), 1);
}

#[tokio::test]
async fn a_chunked_put_of_unknown_length_is_stored() {
    let server = Server::new();
    let body = Body::driven(|tx| async move {
        for piece in 0..40u8 {
            tx.send(vec![piece; 20_000]).await.unwrap();
        }
    });
    assert_eq!(server.put(NOW, body, &[]).await.status, 201);
    let got = server.get(&[("Range", "bytes=39999-40000,-3")]).await;
    assert_eq!(got.status, 206);
    let text = String::from_utf8_lossy(&got.body);
    assert!(text.contains("Content-Range: bytes 39999-40000/800000\r\n\r\n\u{1}\u{2}\r\n"), "{text}");
    assert_eq!(got.body.len().to_string(), got.header("Content-Length"));
}

#[tokio::test]
async fn ranges_and_conditions() {
    let server = Server::new();
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 256) as u8).collect();
    server.put(NOW, data.clone(), &[]).await;
    let got = server.get(&[("Range", "bytes=70000-70009")]).await;
    assert_eq!((got.status, got.body.as_slice()), (206, &data[70000..70010]));
    assert_eq!(got.header("Content-Range"), "bytes 70000-70009/200000");
    assert_eq!(server.get(&[("Range", "bytes=200000-")]).await.status, 416);
    let etag = hex(&md5(&data));
    assert_eq!(server.get(&[("If-None-Match", &etag)]).await.status, 304);
    assert_eq!(server.get(&[("If-Match", "other")]).await.status, 412);
    let since = Timestamp::from_secs_f64(NOW).http_date();
    assert_eq!(server.get(&[("If-Modified-Since", &since)]).await.status, 304);
    let ignored = [("Range", "bytes=0-1"), ("X-Backend-Ignore-Range-If-Metadata-Present", "x-foo, etag")];
    assert_eq!(server.get(&ignored).await.status, 200);
    let missing = Request::new(Method::Get, "/sda1/5/a/c/none").with_header("If-Match", "*");
    assert_eq!(server.call(missing).await.status, 412);
}

#[tokio::test]
async fn a_range_may_follow_one_that_goes_to_the_end() {
    let server = Server::new();
    server.put(NOW, vec![7; 200_000], &[]).await;
    let got = server.get(&[("Range", "bytes=100000-199999,0-9,199990-199999")]).await;
    assert_eq!(got.status, 206);
    assert_eq!(got.body.len() as u64, got.header("Content-Length").parse().unwrap_or(got.body.len() as u64));
    assert!(got.body.iter().filter(|byte| **byte == 7).count() == 100_020, "{} bytes", got.body.len());
}

#[tokio::test]
async fn an_etag_of_another_name_is_what_conditions_are_about() {
    let server = Server::new();
    server.put(NOW, "x", &[("X-Object-Sysmeta-Crypto-Etag", "secret")]).await;
    let at = ("X-Backend-Etag-Is-At", "x-object-sysmeta-none, x-object-sysmeta-crypto-etag");
    assert_eq!(server.get(&[at, ("If-Match", "secret")]).await.status, 200);
    assert_eq!(server.get(&[at, ("If-None-Match", "secret")]).await.status, 304);
}

#[tokio::test]
async fn older_and_mismatched_puts_are_refused_and_leave_no_debris() {
    let server = Server::new();
    assert_eq!(server.put(NOW, "first", &[]).await.status, 201);
    for at in [NOW, NOW - 1.0] {
        let refused = server.put(at, "second", &[]).await;
        assert_eq!((refused.status, refused.header("X-Backend-Timestamp")), (409, ts(NOW).as_str()));
    }
    let large = vec![7u8; 100_000];
    for data in [b"second".to_vec(), large] {
        for wrong in ["d41d8", "5d41402abc4b2a76b9719d911017c592"] {
            assert_eq!(server.put(NOW + 1.0, data.clone(), &[("ETag", wrong)]).await.status, 422);
        }
        assert_eq!(server.put(NOW + 1.0, data.clone(), &[("If-None-Match", "*")]).await.status, 412);
        let longer = (data.len() + 1).to_string();
        assert_eq!(server.put(NOW + 1.0, data, &[("Content-Length", &longer)]).await.status, 499);
    }
    let broken = |error: fn() -> BodyError| {
        Body::driven(move |tx| async move {
            tx.send(vec![1; 300_000]).await.unwrap();
            tx.fail(error()).await;
        })
    };
    assert_eq!(server.put(NOW + 1.0, broken(|| BodyError::Timeout), &[]).await.status, 408);
    assert_eq!(server.put(NOW + 1.0, broken(|| BodyError::Disconnected), &[]).await.status, 499);
    assert_eq!(server.get(&[]).await.body, b"first");
    assert_eq!(server.names("objects", "data"), [format!("{}.data", ts(NOW))]);
    assert_eq!(server.files("tmp"), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_tombstone_hides_what_is_older() {
    let server = Server::new();
    server.put(NOW, "x", &[("Content-Type", "a/b")]).await;
    let stale = server.send(Method::Delete, NOW - 1.0, &[]).await;
    assert_eq!((stale.status, stale.header("X-Backend-Timestamp")), (409, ts(NOW).as_str()));
    let gone = server.send(Method::Delete, NOW + 1.0, &[]).await;
    assert_eq!((gone.status, gone.header("X-Backend-Content-Type")), (204, "a/b"));
    let got = server.get(&[]).await;
    assert_eq!((got.status, got.header("X-Backend-Timestamp")), (404, ts(NOW + 1.0).as_str()));
    let again = server.send(Method::Delete, NOW + 0.5, &[]).await;
    assert_eq!((again.status, again.header("X-Backend-Timestamp")), (404, ts(NOW + 1.0).as_str()));
    assert_eq!(server.names("objects", "ts"), [format!("{}.ts", ts(NOW + 1.0))]);
    assert_eq!(server.put(NOW + 0.5, "y", &[]).await.status, 409);
}

#[tokio::test]
async fn post_replaces_user_metadata_and_keeps_system_metadata() {
    let server = Server::new();
    server.put(NOW, "x", &[("X-Object-Meta-A", "1"), ("X-Object-Sysmeta-S", "s")]).await;
    let post =
        server.send(Method::Post, NOW + 1.0, &[("X-Object-Meta-B", "2"), ("X-Object-Sysmeta-S", "t")]).await;
    assert_eq!((post.status, post.header("X-Object-Sysmeta-S")), (202, "s"));
    assert_eq!(post.header("X-Backend-Content-Type"), "text/plain");
    let got = server.get(&[]).await;
    let seen = ["X-Object-Meta-A", "X-Object-Meta-B", "X-Object-Sysmeta-S"].map(|n| got.header(n).to_owned());
    assert_eq!(seen, ["(none)", "2", "s"]);
    assert_eq!(
        (got.header("X-Timestamp"), got.header("X-Backend-Data-Timestamp")),
        (&*ts(NOW + 1.0), &*ts(NOW))
    );
    assert_eq!(server.send(Method::Post, NOW + 1.0, &[]).await.status, 409);
    let typed = server.send(Method::Post, NOW + 2.0, &[("Content-Type", "c/d")]).await;
    assert_eq!((typed.status, typed.header("X-Backend-Content-Type")), (202, "c/d"));
    assert_eq!(server.get(&[]).await.header("Content-Type"), "c/d");
    // An older POST without a content-type leaves the newer one alone.
    assert_eq!(server.send(Method::Post, NOW + 1.5, &[]).await.status, 409);
    let missing = Request::new(Method::Post, "/sda1/5/a/c/none").with_header("X-Timestamp", ts(NOW));
    assert_eq!(server.call(missing).await.status, 404);
}

#[tokio::test]
async fn bad_requests_get_the_statuses_of_swift() {
    let server = Server::new();
    let get = |path: &str| Request::new(Method::Get, path);
    let timestamp = ts(NOW);
    let table: Vec<(Request, u16, &str)> = vec![
        (get("/sda1/5/a/c"), 400, "Invalid path: /sda1/5/a/c"),
        (get("/./5/a/c/o"), 400, "Invalid device: ."),
        (get("/sda1/../a/c/o"), 400, "Invalid partition: .."),
        (get("/sda1/p/a/c/o"), 400, "Invalid partition: p"),
        (get("/sda1/5/a/c/a\0b"), 400, "Invalid reserved-namespace object"),
        (
            get("/sda1/5/a/c/o").with_header("X-Backend-Storage-Policy-Index", "9"),
            503,
            "No policy with index 9",
        ),
        (
            get("/nope/5/a/c/o"),
            507,
            "<html><h1>Insufficient Storage</h1><p>There was not enough space to save the resource. Drive: nope</p></html>",
        ),
        (
            Request::new(Method::Other("FOO".into()), "/sda1/5/a/c/o"),
            405,
            "<html><h1>Method Not Allowed</h1><p>The method is not allowed for this resource.</p></html>",
        ),
        (request(Method::Put, Some(NOW)), 411, "Missing Content-Length header."),
        (request(Method::Put, Some(NOW)).with_header("Content-Length", 0), 400, "Invalid Content-Type"),
        (Request::new(Method::Delete, "/sda1/5/a/c/o"), 400, "Missing X-Timestamp header"),
        (with(request(Method::Post, Some(NOW)), &[("X-Delete-At", "x")]), 400, "Non-integer X-Delete-At"),
        (with(request(Method::Post, Some(NOW)), &[("X-Delete-At", "5")]), 400, "X-Delete-At in past"),
        (
            with(request(Method::Delete, None), &[("X-Timestamp", &timestamp), ("X-If-Delete-At", "x")]),
            400,
            "Bad X-If-Delete-At header value",
        ),
        (Request::from_target(Method::Get, "/sda1/5/a/c/%ff".into()), 412, "Invalid UTF8 or contains NULL"),
    ];
    for (req, status, body) in table {
        let what = format!("{} {}", req.method, req.path);
        let answer = server.call(req).await;
        assert_eq!((answer.status, String::from_utf8_lossy(&answer.body).as_ref()), (status, body), "{what}");
    }
}

#[tokio::test]
async fn expired_objects_are_only_there_for_who_asks_for_them() {
    let server = Server::new();
    let at = (NOW as u64 + 100).to_string();
    assert_eq!(server.put(NOW, "x", &[("X-Delete-At", &at)]).await.status, 201);
    let later = ts(NOW + 200.0);
    let got = server.get(&[("X-Timestamp", &later)]).await;
    assert_eq!((got.status, got.header("X-Backend-Timestamp")), (404, ts(NOW).as_str()));
    assert_eq!(server.get(&[("X-Timestamp", &later), ("X-Backend-Open-Expired", "true")]).await.status, 200);
    let conditional = |at: &str| [("X-If-Delete-At", at.to_owned())];
    for (if_at, status) in [("17", 412), (at.as_str(), 204), (at.as_str(), 409)] {
        let headers = conditional(if_at);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(server.send(Method::Delete, NOW + 200.0, &headers).await.status, status);
    }
    // Its entry in the expirer's queue is to be removed.
    let pending = server.pending();
    assert_eq!(pending[0].get("account").unwrap().as_str(), Some(".expiring_objects"));
    assert_eq!(pending[0].get("op").unwrap().as_str(), Some("DELETE"));
    assert_eq!(pending[0].get("obj").unwrap().as_str(), Some(format!("{at}-a/c/o").as_str()));
}

#[tokio::test]
async fn an_update_that_cannot_be_sent_is_left_for_the_updater() {
    let server = Server::new();
    // Nobody listens on port 1.
    let headers = [
        ("X-Container-Host", "127.0.0.1:1"),
        ("X-Container-Device", "sdb1"),
        ("X-Container-Partition", "7"),
        ("X-Trans-Id", "tx1"),
        ("X-Backend-Container-Update-Override-Etag", "other"),
        ("X-Backend-Container-Update-Override-Content-Type", "text/html"),
        ("X-Object-Meta-X", "y"),
    ];
    assert_eq!(server.put(NOW, "hello", &headers).await.status, 201);
    let pending = server.pending();
    let [update] = pending.as_slice() else { panic!("{pending:?}") };
    let text = |name: &str| update.get(name).and_then(|v| v.as_str()).unwrap_or("(none)").to_owned();
    assert_eq!([text("op"), text("account"), text("container"), text("obj")], ["PUT", "a", "c", "o"]);
    let sent = update.get("headers").unwrap();
    let header = |name: &str| sent.get(name).and_then(|v| v.as_str()).unwrap_or("(none)").to_owned();
    assert_eq!([header("X-Size"), header("X-Etag"), header("X-Content-Type")], ["5", "other", "text/html"]);
    assert_eq!([header("X-Timestamp"), header("X-Trans-Id")], [ts(NOW), "tx1".to_owned()]);
    assert_eq!(header("Referer"), "PUT http://h:6200/sda1/5/a/c/o");
    assert_eq!(header("X-Backend-Storage-Policy-Index"), "0");
    assert!(server.lines.contains("saving for async update later"));
}

#[tokio::test]
async fn a_container_server_that_takes_the_update_is_all_it_needs() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    let container_server = app_fn(move |req: Request| {
        let line = format!("{} {} {}", req.method, req.path, req.headers.get_str("X-Size").unwrap_or("-"));
        log.lock().unwrap().push(line);
        async { Response::new(201) }
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let running = service::http::Server::start(vec![listener], container_server, Default::default()).unwrap();
    let server = Server::new();
    let headers =
        [("X-Container-Host", &*host), ("X-Container-Device", "sdb1"), ("X-Container-Partition", "7")];
    assert_eq!(server.put(NOW, "hello", &headers).await.status, 201);
    assert_eq!(server.send(Method::Post, NOW + 1.0, &headers).await.status, 202);
    assert_eq!(server.send(Method::Delete, NOW + 2.0, &headers).await.status, 204);
    let expected = ["PUT /sdb1/7/a/c/o 5", "PUT /sdb1/7/a/c/o 5", "DELETE /sdb1/7/a/c/o -"];
    assert_eq!(*seen.lock().unwrap(), expected);
    assert!(server.pending().is_empty());
    running.stop(std::time::Duration::from_secs(1)).await;
}

#[tokio::test]
async fn footers_after_the_data_are_metadata() {
    let server = Server::new();
    let footers = r#"{"X-Object-Sysmeta-F": "1", "Etag": "5d41402abc4b2a76b9719d911017c592"}"#;
    let document = |footers: &str, digest: &str| {
        format!(
            "--b\r\nX-Document: object body\r\n\r\nhello\r\n--b\r\nX-Document: object metadata\r\n\
             Content-MD5: {digest}\r\n\r\n{footers}\r\n--b--"
        )
    };
    let headers = [
        ("X-Backend-Obj-Metadata-Footer", "yes"),
        ("X-Backend-Obj-Multipart-Mime-Boundary", "b"),
        ("X-Backend-Obj-Content-Length", "5"),
    ];
    let digest = hex(&md5(footers.as_bytes()));
    let put = |at: f64, text: String| {
        let body = Body::driven(|tx| async move {
            let _ = tx.send(text).await;
        });
        server.put(at, body, &headers)
    };
    assert_eq!(put(NOW, document(footers, "bad")).await.status, 422);
    let put_ok = put(NOW, document(footers, &digest)).await;
    assert_eq!(put_ok.status, 201, "{}", String::from_utf8_lossy(&put_ok.body));
    let got = server.get(&[]).await;
    assert_eq!((got.body.as_slice(), got.header("X-Object-Sysmeta-F")), (&b"hello"[..], "1"));
    let wrong = r#"{"Etag": "00000000000000000000000000000000"}"#;
    assert_eq!(put(NOW + 1.0, document(wrong, &hex(&md5(wrong.as_bytes())))).await.status, 422);
    assert_eq!(put(NOW + 1.0, "--b\r\n\r\nhello\r\n--b--".to_owned()).await.status, 400);
}

#[tokio::test]
async fn hashes_of_a_partition_are_pickled() {
    let server = Server::new();
    server.put(NOW, "x", &[]).await;
    let answer = server.call(Request::new(Method::Replicate, "/sda1/5")).await;
    let hashes = pickle::loads(&answer.body).unwrap();
    assert_eq!((answer.status, hashes.items().unwrap().len()), (200, 1));
    let suffix = hashes.items().unwrap()[0].0.as_str().unwrap().to_owned();
    let answer = server.call(Request::new(Method::Replicate, format!("/sda1/5/{suffix}-abc"))).await;
    assert_eq!(pickle::loads(&answer.body).unwrap(), pickle::Value::None);
    let answer = server.call(Request::new(Method::Replicate, "/sda1/6")).await;
    assert_eq!(pickle::loads(&answer.body).unwrap(), pickle::Value::Dict(vec![]));
}

#[tokio::test]
async fn policies_have_their_own_directories() {
    let server = Server::new();
    let policy = ("X-Backend-Storage-Policy-Index", "1");
    server.put(NOW, "x", &[policy]).await;
    assert_eq!(server.get(&[]).await.status, 404);
    assert_eq!(server.get(&[policy]).await.status, 200);
    let dir = common::policy::data_dir("objects", PolicyIndex(1));
    assert_eq!(server.names(&dir, "data").len(), 1);
}

/// Changes a byte in the middle of the object's data, in place, so that its metadata stays.
fn decay(server: &Server) {
    let path = server.files("objects").into_iter().find(|p| p.extension().is_some_and(|e| e == "data"));
    let file = std::fs::OpenOptions::new().write(true).open(path.unwrap()).unwrap();
    file.write_all_at(b"x", 500).unwrap();
}

#[tokio::test]
async fn corrupt_objects_are_not_handed_out() {
    let server = Server::new();
    for (at, data) in [(NOW, vec![1u8; 1000]), (NOW + 1.0, vec![2u8; 700_000])] {
        server.put(at, data.clone(), &[]).await;
        decay(&server);
        let mut response = server.app.call(request(Method::Get, None)).await;
        match data.len() {
            1000 => assert_eq!(response.status.0, 404),
            _ => assert!(response.body.collect(1 << 20).await.is_err()),
        }
        assert_eq!(server.get(&[]).await.status, 404);
        assert!(!server.files("quarantined").is_empty());
    }
}

#[tokio::test]
async fn what_goes_past_the_page_cache_is_what_was_sent() {
    let server = Server::new();
    const LONG: usize = 8 << 20;
    for (n, length) in
        [LONG, LONG + 1, LONG + 4095, LONG + 4096, LONG + (3 << 20) + 5].into_iter().enumerate()
    {
        let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let at = NOW + 2.0 * n as f64;
        let put = server.put(at, data.clone(), &[]).await;
        assert_eq!(
            (put.status, put.header("ETag")),
            (201, &*format!("\"{}\"", hex(&md5(&data)))),
            "{length}"
        );
        let longer = (length + 1).to_string();
        let cut = server.put(at + 1.0, data.clone(), &[("Content-Length", &longer)]).await;
        assert_eq!(cut.status, 499, "{length}");
        let got = server.get(&[]).await;
        assert!((got.status, got.body) == (200, data), "{length}");
    }
    assert_eq!(server.names("objects", "data").len(), 1);
}

#[tokio::test]
async fn corrupt_objects_are_not_handed_out_in_a_rush() {
    let server = Server::new();
    let other = || Request::new(Method::Get, "/sda1/5/a/c/other").with_header("Host", "h:6200");
    // The server's clock stands still: there is no rush like that.
    for _ in 0..50 {
        assert_eq!(server.call(other()).await.status, 404);
    }
    server.put(NOW, vec![1u8; 1000], &[]).await;
    let good = server.get(&[]).await;
    assert_eq!((good.status, good.body), (200, vec![1u8; 1000]));
    decay(&server);
    assert_eq!(server.get(&[]).await.status, 404);
    assert!(!server.files("quarantined").is_empty());
}

#[tokio::test]
async fn nobody_checks_etags_of_which_none_are_to_be_checked() {
    let server = Server::with_options("etag_validate_pct = 0");
    for (at, length) in [(NOW, 1000), (NOW + 1.0, 700_000)] {
        server.put(at, vec![1u8; length], &[]).await;
        decay(&server);
        for _ in 0..2 {
            let mut response = server.app.call(request(Method::Get, None)).await;
            let body = response.body.collect(1 << 20).await.unwrap();
            assert_eq!((response.status.0, body.len(), body[500]), (200, length, b'x'));
        }
        assert!(server.files("quarantined").is_empty());
    }
}

#[tokio::test]
async fn a_server_that_is_not_for_replication_says_so() {
    let server = Server::with_options("replication_server = false");
    let options = server.call(Request::new(Method::Options, "/sda1/5/a/c/o")).await;
    assert_eq!(options.header("Allow"), "DELETE, GET, HEAD, OPTIONS, POST, PUT");
    assert_eq!(server.call(Request::new(Method::Replicate, "/sda1/5")).await.status, 405);
    let options = Server::new().call(Request::new(Method::Options, "/")).await;
    assert_eq!(options.header("Allow"), "DELETE, GET, HEAD, OPTIONS, POST, PUT, REPLICATE, SSYNC");
    assert_eq!(options.header("Server"), "object-server/2.38.3");
}
