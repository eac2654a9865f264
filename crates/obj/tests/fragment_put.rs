//! A fragment's PUT whose documents come with its head: one job stores it, both answers follow, and who is refused sees none.

#![allow(clippy::unwrap_used)]

mod cluster;

use cluster::Cluster;
use common::digest::{Checksum, hex, md5};
use service::http::client::{BodyFraming, ClientConn, Timeouts};
use service::http::{Headers, Method};

const DATA: &str = "a fragment";

struct Put {
    at: u32,
    data: Vec<u8>,
    etag: String,
    length: usize,
    commits: bool,
    /// An algorithm.
    announces: Option<&'static str>,
    checksum: Option<String>,
}

impl Put {
    fn right(at: u32) -> Self {
        Put::of(at, DATA.as_bytes().to_vec())
    }

    fn of(at: u32, data: Vec<u8>) -> Self {
        let (etag, length) = (hex(&md5(&data)), data.len());
        Put { at, data, etag, length, commits: true, announces: None, checksum: None }
    }

    fn with_checksum(at: u32, data: &[u8], checksum_of: &[u8]) -> Self {
        let mut checksum = Checksum::default();
        checksum.update(checksum_of);
        Put {
            announces: Some(Checksum::ALGORITHM),
            checksum: Some(checksum.hexdigest()),
            ..Put::of(at, data.to_vec())
        }
    }

    /// The statuses, each with whether it says that a commit is possible.
    async fn statuses(self, cluster: &Cluster) -> Vec<(u16, bool)> {
        let port = cluster.nodes[0].port;
        let mut conn = ClientConn::connect(("127.0.0.1", port), Timeouts::default()).await.unwrap();
        let mut headers = Headers::from([
            ("Expect", "100-continue"),
            ("X-Timestamp", &format!("{:010}.00000", self.at)),
            ("Content-Type", "text/plain"),
            ("X-Backend-Storage-Policy-Index", "0"),
            ("X-Backend-Obj-Content-Length", &self.length.to_string()),
            ("X-Backend-Obj-Metadata-Footer", "yes"),
            ("X-Backend-Obj-Multiphase-Commit", "yes"),
            ("X-Backend-Obj-Multipart-Mime-Boundary", "b"),
        ]);
        if let Some(algorithm) = self.announces {
            headers.insert("X-Backend-Archive-Checksum", algorithm);
        }
        let checksum = self
            .checksum
            .map_or(String::new(), |checksum| format!(r#""X-Backend-Archive-Checksum": "{checksum}", "#));
        let footers =
            format!(r#"{{{checksum}"X-Object-Sysmeta-Ec-Frag-Index": "1", "Etag": "{}"}}"#, self.etag);
        let digest = hex(&md5(footers.as_bytes()));
        conn.hold_request_head(&Method::Put, "/sd0/3/a/c/o", &headers, BodyFraming::Chunked).unwrap();
        conn.hold_body(&[
            b"--b\r\nX-Document: object body\r\n\r\n",
            &self.data,
            format!("\r\n--b\r\nX-Document: object metadata\r\nContent-MD5: {digest}\r\n\r\n").as_bytes(),
            footers.as_bytes(),
            b"\r\n--b\r\n",
        ]);
        conn.finish_body().await.unwrap();
        let mut statuses = Vec::new();
        loop {
            let head = conn.read_response_head(true).await.unwrap();
            statuses.push((head.status.0, head.headers.get_bool("X-Obj-Multiphase-Commit")));
            if !head.status.is_informational() {
                break;
            }
            if statuses.len() == 2 {
                if !self.commits {
                    return statuses;
                }
                conn.start_next_chunked_body();
                conn.hold_body(&[b"X-Document: put commit\r\n\r\nput_commit_confirmation\r\n--b--"]);
                conn.finish_body().await.unwrap();
            }
        }
        while conn.next_body().await.transpose().unwrap().is_some() {}
        assert!(self.announces.is_some() || conn.reusable() == (statuses.len() == 3));
        statuses
    }
}

fn names(cluster: &Cluster) -> Vec<String> {
    let (mut found, mut dirs) = (Vec::new(), vec![cluster.partition(0, 3)]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => dirs.push(path),
                path if path.extension().is_some_and(|ext| ext == "data") => {
                    found.push(entry.file_name().into_string().unwrap());
                }
                _ => {}
            }
        }
    }
    found
}

#[tokio::test]
async fn a_fragment_that_comes_with_its_head_is_stored_or_refused() {
    let cluster = Cluster::of_fragments(3, (2, 1), "");
    let stored = [(100, true), (100, true), (201, false)];
    assert_eq!(Put::right(10).statuses(&cluster).await, stored);
    assert_eq!(names(&cluster), ["0000000010.00000#1#d.data"]);
    assert_eq!(Put::right(9).statuses(&cluster).await, [(409, false)]);
    let wrong = Put { etag: hex(&md5(b"others")), ..Put::right(11) };
    assert_eq!(wrong.statuses(&cluster).await, [(422, false)]);
    let short = Put { length: DATA.len() + 1, ..Put::right(11) };
    assert_eq!(short.statuses(&cluster).await, [(499, false)]);
    assert_eq!(names(&cluster), ["0000000010.00000#1#d.data"]);
    assert_eq!(Put::right(12).statuses(&cluster).await, stored);
    assert_eq!(names(&cluster), ["0000000012.00000#1#d.data"]);
}

#[tokio::test]
async fn it_is_nobodys_object_before_its_commit() {
    let cluster = Cluster::of_fragments(3, (2, 1), "");
    let uncommitted = Put { commits: false, ..Put::right(10) };
    assert_eq!(uncommitted.statuses(&cluster).await, [(100, true), (100, true)]);
    assert_eq!(names(&cluster), ["0000000010.00000#1.data"]);
}

/// Both in one batch and in several.
#[tokio::test]
async fn a_checksum_stands_for_the_md5_that_the_proxy_has_computed() {
    for length in [100_000, 1_000_000] {
        let cluster = Cluster::of_fragments(3, (2, 1), "");
        // Only a fragment's head is looked at.
        let fragment = cluster::archives(&vec![7; 2 * length])[1].clone();
        let stored = [(100, true), (100, true), (201, false)];
        assert_eq!(Put::with_checksum(10, &fragment, &fragment).statuses(&cluster).await, stored);
        assert_eq!(names(&cluster), ["0000000010.00000#1#d.data"]);
        let other = Put::with_checksum(11, &fragment, b"other");
        let unannounced = Put { announces: None, ..Put::with_checksum(11, &fragment, b"other") };
        let unknown = Put { announces: Some("other"), ..Put::with_checksum(12, &fragment, b"other") };
        let lacking = Put { checksum: None, ..Put::with_checksum(11, &fragment, &fragment) };
        let no_md5 = Put { etag: String::new(), ..Put::with_checksum(11, &fragment, &fragment) };
        for (put, statuses) in [(other, [422]), (lacking, [422]), (no_md5, [422])] {
            let got: Vec<u16> = put.statuses(&cluster).await.into_iter().map(|(status, _)| status).collect();
            assert_eq!(got.last(), statuses.last());
            assert_eq!(names(&cluster), ["0000000010.00000#1#d.data"]);
        }
        for put in [unannounced, unknown] {
            assert_eq!(put.statuses(&cluster).await.last(), Some(&(201, false)), "its MD5 is right");
        }
        // What is stored says the MD5.
        let mut request = cluster.request(0, Method::Get, "o", 13.0);
        request.path = "/sd0/3/a/c/o".into();
        let mut response = cluster.nodes[0].app.call(request).await;
        assert_eq!(response.headers.get_str("Etag"), Some(&*format!("\"{}\"", hex(&md5(&fragment)))));
        assert!(response.body.collect(1 << 22).await.unwrap() == fragment);
    }
}
