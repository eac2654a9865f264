//! Erasure coded objects before fake storage servers: six of them for 4+2, with segments of 100,000 bytes.

use std::time::Duration;

use bytes::Bytes;
use common::digest::{hex, md5};
use ec::Codec;
use service::http::{Method, Request, Response};

use crate::environ::NonClientDisconnect;
use crate::testing::{Asked, Cluster, Ending, Fault, chunked_request, put_request};

const OBJECT: &str = "/v1/a/c/o";
const PATH: &str = "/a/c/o";
/// Two full segments and a short one.
const LEN: usize = 250_000;
const FRAGMENT: usize = 25_080;

async fn cluster(nodes: usize, options: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(nodes, options);
    assert_eq!(cluster.status(Method::Put, "/v1/a/c").await, 201);
    cluster.asked();
    cluster
}

fn data(seed: u8) -> Bytes {
    (0..LEN as u32).map(|i| (i / 7) as u8 ^ (i / 1000) as u8 ^ seed).collect()
}

/// With the policy that a container would tell of.
async fn call(cluster: &Cluster, req: Request) -> (Response, Bytes) {
    cluster.call(req.with_header("X-Backend-Storage-Policy-Index", "3")).await
}

async fn put(cluster: &Cluster, seed: u8) -> u16 {
    call(cluster, put_request(OBJECT, data(seed))).await.0.status.0
}

/// Of so few bytes that they are sent unasked.
async fn put_small(cluster: &Cluster, seed: u8) -> u16 {
    call(cluster, put_request(OBJECT, data(seed).slice(..4096))).await.0.status.0
}

async fn get(cluster: &Cluster) -> (u16, Bytes) {
    let (resp, body) = call(cluster, Request::new(Method::Get, OBJECT)).await;
    (resp.status.0, body)
}

#[tokio::test]
async fn archives_are_stored_with_their_metadata_and_committed() {
    let cluster = cluster(6, &[]).await;
    let pieces = data(1).chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let (resp, _) = call(&cluster, chunked_request(OBJECT, pieces)).await;
    let etag = hex(&md5(&data(1)));
    assert_eq!((resp.status.0, resp.headers.get_str("Etag")), (201, Some(&*etag)));

    let codec = Codec::new("isa_l_rs_vand", 4, 2).expect("a code");
    let all = data(1);
    let segments: Vec<Bytes> = (0..3).map(|i| all.slice(i * 100_000..LEN.min((i + 1) * 100_000))).collect();
    let mut archives = cluster.archives(PATH);
    archives.sort_by_key(|(_, headers, _)| headers.get_int::<usize>("X-Object-Sysmeta-Ec-Frag-Index"));
    assert_eq!(archives.len(), 6);
    for (index, (archive, headers, committed)) in archives.into_iter().enumerate() {
        let fragments = segments.iter().map(|segment| codec.encode(segment)[index].to_bytes());
        assert_eq!(archive, fragments.collect::<Vec<_>>().concat(), "archive {index}");
        assert!(committed);
        for (name, value) in [
            ("X-Object-Sysmeta-Ec-Etag", &*etag),
            ("X-Object-Sysmeta-Ec-Content-Length", "250000"),
            ("X-Object-Sysmeta-Ec-Frag-Index", &index.to_string()),
            ("X-Object-Sysmeta-Ec-Scheme", "isa_l_rs_vand 4+2"),
            ("X-Object-Sysmeta-Ec-Segment-Size", "100000"),
            ("X-Backend-Container-Update-Override-Etag", &etag),
            ("X-Backend-Container-Update-Override-Size", "250000"),
        ] {
            assert_eq!(headers.get_str(name), Some(value), "{name}");
        }
    }
    assert_eq!(get(&cluster).await, (200, data(1)));
}

#[tokio::test]
async fn the_length_of_an_archive_is_said_if_that_of_the_object_is_known() {
    let cluster = cluster(6, &[]).await;
    assert_eq!(put(&cluster, 1).await, 201);
    let asked = cluster.asked_with(&Method::Put);
    let length = |headers: &service::http::Headers| headers.get_int::<usize>("X-Backend-Obj-Content-Length");
    assert!(asked.iter().all(|asked| length(&asked.headers) == Some(2 * FRAGMENT + 12_580)));
    assert!(asked.iter().all(|asked| !asked.headers.contains("Etag")));
}

#[tokio::test]
async fn two_of_six_servers_may_be_without_it() {
    let cluster = cluster(6, &[]).await;
    assert_eq!(put(&cluster, 2).await, 201);
    for (a, b) in [(0, 1), (2, 5), (4, 3)] {
        for node in 0..6 {
            cluster.fail(node, if node == a || node == b { Fault::Status(404) } else { Fault::CutBody(LEN) });
        }
        assert_eq!(get(&cluster).await, (200, data(2)), "without {a} and {b}");
    }
    cluster.fail(0, Fault::Status(404));
    // Three of six: good data is known to be somewhere, so this is no 404.
    assert_eq!(get(&cluster).await.0, 503);
}

#[tokio::test]
async fn a_server_that_fails_on_the_way_is_replaced_from_the_fragment_on() {
    let cluster = cluster(6, &[]).await;
    assert_eq!(put(&cluster, 3).await, 201);
    cluster.asked();
    // Within the second fragment of two servers, whichever they are asked as.
    cluster.fail(cluster.holder_without_fault(PATH, 0), Fault::CutBody(FRAGMENT + 1000));
    cluster.fail(cluster.holder_without_fault(PATH, 3), Fault::CutBody(FRAGMENT + 1000));
    assert_eq!(get(&cluster).await, (200, data(3)));
    let asked = cluster.asked_with(&Method::Get);
    let ranges: Vec<&str> = asked.iter().filter_map(|asked| asked.headers.get_str("Range")).collect();
    assert!(!ranges.is_empty());
    for range in ranges {
        let (start, end) =
            range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range");
        let start: usize = start.parse().expect("a number");
        assert!(start > 0 && start.is_multiple_of(FRAGMENT), "{range}");
        assert_eq!(end, "62739");
    }

    let req = Request::new(Method::Get, OBJECT).with_header("Range", "bytes=120000-210000");
    let (resp, body) = call(&cluster, req).await;
    assert_eq!((resp.status.0, body), (206, data(3).slice(120_000..=210_000)));
    assert_eq!(resp.headers.get_str("Content-Range"), Some("bytes 120000-210000/250000"));
}

#[tokio::test]
async fn what_is_no_fragment_is_not_decoded() {
    let cluster = cluster(6, &[]).await;
    assert_eq!(put(&cluster, 4).await, 201);
    // In the header of the second fragment; the index, for one, which no server may lie about.
    cluster.fail(cluster.holder_without_fault(PATH, 1), Fault::Spoil(FRAGMENT));
    cluster.fail(cluster.holder_without_fault(PATH, 2), Fault::Spoil(FRAGMENT + 60));
    for _ in 0..10 {
        assert_eq!(get(&cluster).await, (200, data(4)));
    }
    assert!(cluster.lines.contains("Trying to read EC fragment during GET (retrying)"));
}

#[tokio::test]
async fn a_corrupt_archive_that_nobody_else_has_checked_is_replaced_and_its_server_told() {
    let cluster = cluster(6, &[]).await;
    assert_eq!(put_small(&cluster, 6).await, 201);
    // In the payload, of which only the ETag tells.
    let corrupt = [cluster.holder_without_fault(PATH, 0), cluster.holder_without_fault(PATH, 3)];
    for node in corrupt {
        cluster.fail(node, Fault::Spoil(100));
    }
    for _ in 0..10 {
        assert!(get(&cluster).await == (200, data(6).slice(..4096)));
    }
    assert!(cluster.lines.contains("an archive is not what its ETag says"));
    let is_told = |asked: &Asked| {
        let checks = asked.headers.get_bool("X-Backend-Checks-Etag") || asked.headers.contains("Range");
        corrupt.contains(&asked.node) && asked.path == PATH && asked.method == Method::Get && !checks
    };
    while !cluster.asked().iter().any(is_told) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn checksums_of_archives_are_announced_unless_they_are_little() {
    let cluster = cluster(6, &[]).await;
    let announced = |cluster: &Cluster| {
        let asked = cluster.asked_with(&Method::Put);
        let of_object: Vec<bool> = asked
            .iter()
            .filter(|asked| asked.path == PATH)
            .map(|asked| asked.headers.contains("X-Backend-Archive-Checksum"))
            .collect();
        assert_eq!(of_object.len(), 6);
        of_object[0]
    };
    let pieces = |len: usize| vec![Ok(data(1).slice(..len))];
    assert_eq!(call(&cluster, chunked_request(OBJECT, pieces(9))).await.0.status.0, 201);
    assert!(announced(&cluster), "of any length");
    assert_eq!(put_small(&cluster, 2).await, 201);
    assert!(!announced(&cluster));
    let large = Bytes::from(vec![7; 400_000]);
    assert_eq!(call(&cluster, put_request(OBJECT, large.clone())).await.0.status.0, 201);
    assert!(announced(&cluster));
    assert!(get(&cluster).await == (200, large));
}

#[tokio::test]
async fn too_many_failures_on_the_way_break_the_download_off() {
    let cluster = cluster(6, &[]).await;
    assert_eq!(put(&cluster, 5).await, 201);
    for node in 0..6 {
        cluster.fail(node, Fault::CutBody(FRAGMENT + 10));
    }
    let mut req = Request::new(Method::Get, OBJECT);
    let disconnect = NonClientDisconnect::default();
    req.env.insert(disconnect.clone());
    let (resp, body) = call(&cluster, req).await;
    assert_eq!((resp.status.0, body.len()), (200, 0), "an error, and not a short object");
    assert!(disconnect.get());
}

#[tokio::test]
async fn a_put_needs_five_of_six_servers_in_each_phase() {
    for (fault, one, two) in [
        (Fault::Status(503), 201, 503),
        (Fault::StatusAfterData(503), 201, 503),
        (Fault::StatusAfterData(422), 201, 503),
        (Fault::NoCommit, 201, 503),
    ] {
        let cluster = cluster(6, &[]).await;
        cluster.fail(0, fault.clone());
        assert_eq!(put(&cluster, 6).await, one, "one server: {fault:?}");
        assert_eq!(put_small(&cluster, 6).await, one, "one server, small: {fault:?}");
        cluster.fail(1, fault.clone());
        assert_eq!(put(&cluster, 7).await, two, "two servers: {fault:?}");
        assert_eq!(put_small(&cluster, 7).await, two, "two servers, small: {fault:?}");
    }
}

#[tokio::test]
async fn what_was_not_committed_is_not_shown() {
    let cluster = cluster(6, &[]).await;
    for node in 0..2 {
        cluster.fail(node, Fault::StatusAfterData(503));
    }
    assert_eq!(put(&cluster, 8).await, 503);
    cluster.heal();
    assert_eq!(cluster.archives(PATH).iter().filter(|(_, _, committed)| *committed).count(), 0);
    assert_eq!(cluster.archives(PATH).len(), 4, "enough to decode");
    assert_eq!(get(&cluster).await.0, 404);
}

#[tokio::test]
async fn one_durable_archive_makes_the_others_count() {
    let cluster = cluster(6, &[]).await;
    for node in 0..5 {
        cluster.fail(node, Fault::NoCommit);
    }
    assert_eq!(put(&cluster, 9).await, 503);
    cluster.heal();
    assert_eq!(cluster.archives(PATH).iter().filter(|(_, _, committed)| *committed).count(), 1);
    for _ in 0..5 {
        assert_eq!(get(&cluster).await, (200, data(9)));
    }
}

#[tokio::test]
async fn a_wrong_etag_is_refused_before_anything_is_committed() {
    let cluster = cluster(6, &[]).await;
    let req = put_request(OBJECT, data(1)).with_header("Etag", "5d41402abc4b2a76b9719d911017c592");
    assert_eq!(call(&cluster, req).await.0.status.0, 422);
    assert!(cluster.archives(PATH).iter().all(|(_, _, committed)| !committed));
    assert_eq!(get(&cluster).await.0, 404);
}

#[tokio::test]
async fn handoffs_stand_in_for_servers_that_refuse() {
    let cluster = cluster(8, &[]).await;
    let refusing = [2, 5];
    refusing.iter().for_each(|node| cluster.fail(*node, Fault::Status(507)));
    assert_eq!(put(&cluster, 1).await, 201);
    assert_eq!(committed(&cluster, &data(1)), [0, 1, 2, 3, 4, 5]);
    assert_eq!(get(&cluster).await, (200, data(1)));
    // Handoffs of a small object are asked first: nobody knows yet which fragment each is to store.
    assert_eq!(put_small(&cluster, 2).await, 201);
    assert_eq!(get(&cluster).await, (200, data(2).slice(..4096)));
}

/// The fragment indexes of an object's archives that are durable.
fn committed(cluster: &Cluster, object: &[u8]) -> Vec<usize> {
    let etag = hex(&md5(object));
    let archives = cluster.archives(PATH).into_iter();
    let mut indexes: Vec<usize> = archives
        .filter(|(_, headers, durable)| {
            *durable && headers.get_str("X-Object-Sysmeta-Ec-Etag") == Some(&etag)
        })
        .filter_map(|(_, headers, _)| headers.get_int("X-Object-Sysmeta-Ec-Frag-Index"))
        .collect();
    indexes.sort_unstable();
    indexes
}

/// Whether an object goes out unasked, or the servers are asked first, does not matter to what comes of their refusing it, nor
/// does how they end what they have not read: a handoff stands in after an error of the server's, what the client is to
/// blame for counts against the quorum, and a newer object wins.
#[tokio::test]
async fn servers_may_refuse_what_they_have_not_read() {
    let refusals: [(u16, [u16; 2], &str); 7] = [
        (507, [201, 201], "ERROR Insufficient Storage"),
        (409, [202, 202], ""),
        (422, [201, 503], ""),
        (503, [201, 201], "ERROR 503 Expect: 100-continue From Object Server"),
        (400, [201, 503], ""),
        (408, [201, 503], ""),
        (413, [201, 503], ""),
    ];
    let million: Bytes = data(0).repeat(4).into();
    // The last one is more than one segment: the servers are asked.
    let objects = [(3, data(0).slice(..4096)), (5, million), (3, data(0))];
    for (status, expected, said) in refusals {
        let objects = &objects[..if [507, 409, 422].contains(&status) { 3 } else { 1 }];
        for ending in [Ending::Closes, Ending::ClosesUnread, Ending::Resets, Ending::Stays] {
            for (policy, object) in objects {
                let mut cluster = cluster(8, &[("node_timeout", "60")]).await;
                let put = async |cluster: &Cluster, object: Bytes| {
                    let req =
                        put_request(OBJECT, object).with_header("X-Backend-Storage-Policy-Index", policy);
                    cluster.call(req).await.0.status.0
                };
                // With it the proxy knows the container, and asks for it no more.
                assert_eq!(put(&cluster, object.slice(1..)).await, 201);
                let places: Vec<usize> = (0..6).map(|i| cluster.holder_without_fault(PATH, i)).collect();
                for (place, expected, seed) in [(1, expected[0], 2), (4, expected[1], 3)] {
                    let what = format!("{status}, {ending:?}, {} bytes, place {place}", object.len());
                    cluster.refuse(places[place], status, ending).await;
                    let object = object.slice(seed..);
                    assert_eq!(put(&cluster, object.clone()).await, expected, "{what}");
                    assert!(said.is_empty() || cluster.lines.contains(said), "{what}");
                    let indexes = match (expected, status) {
                        (201, 500..) => vec![0, 1, 2, 3, 4, 5],
                        (201, _) => vec![0, 2, 3, 4, 5],
                        _ => vec![],
                    };
                    assert_eq!(committed(&cluster, &object), indexes, "{what}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_small_object_that_is_refused_or_cut_short_is_not_shown() {
    let cluster = cluster(6, &[]).await;
    let small = data(1).slice(..4096);
    let wrong = put_request(OBJECT, small.clone()).with_header("Etag", "5d41402abc4b2a76b9719d911017c592");
    assert_eq!(call(&cluster, wrong).await.0.status.0, 422);
    let short = put_request(OBJECT, small.clone()).with_header("Content-Length", "4097");
    assert_eq!(call(&cluster, short).await.0.status.0, 499);
    assert_eq!(cluster.archives(PATH).len(), 0, "it is read before anybody is asked");
    cluster.fail(3, Fault::Status(409));
    assert_eq!(put_small(&cluster, 1).await, 202);
    assert!(cluster.archives(PATH).iter().all(|(_, _, committed)| !committed));
    cluster.heal();
    assert_eq!(get(&cluster).await.0, 404);
    (0..6).for_each(|node| cluster.forget(node, PATH));
    let asked = put_request(OBJECT, small.clone()).with_header("If-None-Match", "*");
    assert_eq!(call(&cluster, asked).await.0.status.0, 201);
    assert_eq!(get(&cluster).await, (200, small));
}

#[tokio::test]
async fn with_concurrent_gets_slow_servers_are_passed_by() {
    let options = [("concurrent_gets", "yes"), ("concurrency_timeout", "0.02"), ("node_timeout", "60")];
    let cluster = cluster(6, &options).await;
    assert_eq!(put(&cluster, 1).await, 201);
    cluster.fail(1, Fault::Hang);
    cluster.fail(4, Fault::Hang);
    let patient = tokio::time::timeout(Duration::from_secs(30), get(&cluster));
    assert_eq!(patient.await.expect("does not wait for node_timeout"), (200, data(1)));
}

/// 2+1, each archive on two of six servers.
#[tokio::test]
async fn duplicates_stand_in_for_each_other() {
    let cluster = cluster(6, &[]).await;
    let with_policy = |req: Request| cluster.call(req.with_header("X-Backend-Storage-Policy-Index", "4"));
    assert_eq!(with_policy(put_request(OBJECT, data(1))).await.0.status.0, 201);
    let archives = cluster.archives(PATH).into_iter();
    let index = |headers: &service::http::Headers| headers.get_int("X-Object-Sysmeta-Ec-Frag-Index");
    let mut indexes: Vec<usize> = archives.filter_map(|(_, headers, _)| index(&headers)).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, [0, 0, 1, 1, 2, 2]);
    // Any two different archives make the object: three servers may be gone if these are not all the others'.
    for lost in [[0, 0, 1], [0, 0, 2], [1, 1, 0], [2, 2, 1], [0, 1, 2]] {
        for index in lost {
            cluster.fail(cluster.holder_without_fault(PATH, index), Fault::Status(503));
        }
        let (resp, body) = with_policy(Request::new(Method::Get, OBJECT)).await;
        assert_eq!((resp.status.0, body), (200, data(1)), "without {lost:?}");
        cluster.heal();
    }
    // A PUT needs three different ones, twice.
    cluster.fail(0, Fault::Status(503));
    assert_eq!(with_policy(put_request(OBJECT, data(2))).await.0.status.0, 503);
}

#[tokio::test]
async fn a_head_and_a_get_show_the_object_not_the_archive() {
    let cluster = cluster(6, &[]).await;
    assert_eq!(put(&cluster, 1).await, 201);
    for method in [Method::Head, Method::Get] {
        let (resp, _) = call(&cluster, Request::new(method, OBJECT)).await;
        assert_eq!((resp.status.0, resp.content_length()), (200, Some(LEN as u64)));
        assert_eq!(resp.headers.get_str("Etag"), Some(&*hex(&md5(&data(1)))));
        let shown = resp
            .headers
            .iter()
            .any(|(name, _)| name.to_ascii_lowercase().starts_with(b"x-object-sysmeta-ec"));
        assert!(!shown);
    }
}
