//! What the client does, with our server and with servers that misbehave.

use super::*;
use crate::http::stream::Stream;
use crate::http::{BodyFraming, ClientConn, PoolOptions, Status};

async fn get(pool: &Pool, addr: SocketAddr, path: &str) -> Result<(Status, String), ClientError> {
    request(pool, addr, Method::Get, path, Body::empty()).await
}

async fn request(
    pool: &Pool,
    addr: SocketAddr,
    method: Method,
    path: &str,
    body: Body,
) -> Result<(Status, String), ClientError> {
    let host = addr.ip().to_string();
    let headers = Headers::from([("X-Timestamp", "1")]);
    let mut resp = pool.request((&host, addr.port()), method, path, &headers, body, TIMEOUTS).await?;
    let text = resp.body.collect(1 << 24).await.unwrap();
    Ok((resp.status, String::from_utf8(text.to_vec()).unwrap()))
}

/// A server that plays one scripted connection after another: for each, what it reads up to and what it answers.
async fn scripted(
    connections: Vec<Vec<(&'static str, &'static str)>>,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        for connection in connections {
            let (mut tcp, _) = listener.accept().await.unwrap();
            for (until, answer) in connection {
                read_until(&mut tcp, until).await;
                tcp.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    (addr, task)
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let (server, addr) = start(echo());
    let pool = Pool::default();
    for i in 0..5 {
        let (status, text) =
            request(&pool, addr, Method::Put, "/p", format!("body {i}").into()).await.unwrap();
        assert_eq!((status, text), (Status::OK, format!("body {i}")));
        assert_eq!(pool.idle(), 1);
    }
    assert_eq!(server.stats().accepted.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn streams_go_both_ways_without_a_known_length() {
    let (_server, addr) = start(app_fn(|mut req| async move {
        Response::new(200).with_body(Body::driven(move |tx| async move {
            while let Some(piece) = req.body.next().await {
                tx.send(piece.unwrap()).await.unwrap();
            }
        }))
    }));
    let pool = Pool::default();
    let body = Body::driven(|tx| async move {
        for i in 0..1000 {
            tx.send(format!("{i},")).await.unwrap();
        }
    });
    // The response comes while the request is being sent, so the rest of it is not sent: what came is a prefix.
    let (status, text) = request(&pool, addr, Method::Put, "/", body).await.unwrap();
    let all: String = (0..1000).map(|i| format!("{i},")).collect();
    assert_eq!(status, Status::OK);
    assert!(all.starts_with(&text));
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    let (_server, addr) = start(echo());
    let pool = Pool::default();
    let text: String = (0..300_000).map(|i| format!("{i:06}")).collect();
    let (_, back) = request(&pool, addr, Method::Put, "/", text.clone().into()).await.unwrap();
    assert!(back == text);
    let source = text.clone();
    let body = Body::driven(|tx| async move {
        for piece in source.as_bytes().chunks(70_001) {
            tx.send(piece.to_vec()).await.unwrap();
        }
    });
    let (_, back) = request(&pool, addr, Method::Put, "/", body).await.unwrap();
    assert!(back == text);
}

#[tokio::test]
async fn bodies_end_by_length_chunks_or_close() {
    let (addr, task) = scripted(vec![vec![
        ("\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"),
        ("\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"),
        ("\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nthree"),
    ]])
    .await;
    let pool = Pool::default();
    for want in ["one", "two", "", "three"] {
        assert_eq!(get(&pool, addr, "/").await.unwrap().1, want);
    }
    assert_eq!(pool.idle(), 0);
    task.await.unwrap();
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (addr, task) = scripted(vec![vec![("\r\n\r\n", ok)], vec![("\r\n\r\n", ok)]]).await;
    let pool = Pool::default();
    assert_eq!(get(&pool, addr, "/").await.unwrap().1, "ok");
    assert_eq!(get(&pool, addr, "/").await.unwrap().1, "ok");
    task.await.unwrap();
}

#[tokio::test]
async fn a_request_that_was_not_heard_is_sent_once_more_if_that_is_safe() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    // The first connection reads the second request and closes without a word.
    let script = || vec![vec![("\r\n\r\n", ok), ("\r\n\r\n", "")], vec![("\r\n\r\n", ok)]];
    let (addr, task) = scripted(script()).await;
    let pool = Pool::default();
    get(&pool, addr, "/").await.unwrap();
    assert_eq!(get(&pool, addr, "/").await.unwrap().1, "ok");
    task.await.unwrap();

    let (addr, task) = scripted(vec![vec![("\r\n\r\n", ok), ("\r\n\r\n", "HTTP/1.1 200")], vec![]]).await;
    let pool = Pool::default();
    get(&pool, addr, "/").await.unwrap();
    assert!(matches!(get(&pool, addr, "/").await, Err(ClientError::Closed)));
    let _ = TcpStream::connect(addr).await;
    task.await.unwrap();
}

#[tokio::test]
async fn a_stream_is_not_sent_over_a_kept_connection() {
    let (server, addr) = start(echo());
    let pool = Pool::default();
    get(&pool, addr, "/").await.unwrap();
    let body = Body::driven(|tx| async move { tx.send("x").await.unwrap() });
    assert_eq!(request(&pool, addr, Method::Put, "/", body).await.unwrap().1, "x");
    assert_eq!(server.stats().accepted.load(std::sync::atomic::Ordering::Relaxed), 2);
    assert_eq!(pool.idle(), 2);
}

#[tokio::test]
async fn an_early_answer_ends_the_sending() {
    let (_server, addr) = start(app_fn(|_| async { Response::error(507) }));
    let pool = Pool::default();
    let body = Body::driven(|tx| async move { while tx.send(vec![0u8; 65536]).await.is_ok() {} });
    let (status, text) = request(&pool, addr, Method::Put, "/", body).await.unwrap();
    assert_eq!(status, Status::INSUFFICIENT_STORAGE);
    assert!(text.contains("Drive: unknown"));
    assert_eq!(pool.idle(), 0);
}

#[tokio::test]
async fn idle_connections_are_bounded_and_time_out() {
    let (_server, addr) = start(app_fn(|_| async { Response::new(200).with_body("x") }));
    let pool = Pool::new(PoolOptions { idle_per_addr: 2, ..PoolOptions::default() });
    let host = addr.ip().to_string();
    let mut responses = Vec::new();
    for _ in 0..4 {
        let headers = Headers::new();
        let request = pool.request((&host, addr.port()), Method::Get, "/", &headers, Body::empty(), TIMEOUTS);
        responses.push(request.await.unwrap());
    }
    for mut resp in responses {
        resp.body.collect(10).await.unwrap();
    }
    assert_eq!(pool.idle(), 2);
    let pool = Pool::new(PoolOptions { idle_timeout: Duration::ZERO, ..PoolOptions::default() });
    get(&pool, addr, "/").await.unwrap();
    let conn = pool.checkout((&host, addr.port()), TIMEOUTS).await.unwrap();
    assert_eq!(pool.idle(), 0);
    pool.checkin(conn);
}

/// The whole of an EC PUT by Swift's putter, and a request after it on the same connection.
#[tokio::test]
async fn the_phases_of_a_put_are_a_sequence_of_calls() {
    let (_server, addr) = start(app_fn(|mut req| async move {
        req.body.set_continue_headers(Headers::from([("X-Obj-Multiphase-Commit", "yes")]));
        let data = req.body.collect(100).await.unwrap();
        req.body.next_chunked_body().await.unwrap();
        let commit = req.body.collect(100).await.unwrap();
        Response::text(201, format!("{}+{}", data.len(), commit.len()))
    }));
    let host = addr.ip().to_string();
    let mut conn = ClientConn::connect((&host, addr.port()), TIMEOUTS).await.unwrap();
    let headers = Headers::from([("Expect", "100-continue")]);
    for _ in 0..2 {
        conn.send_request_head(&Method::Put, "/sda/0/a/c/o", &headers, BodyFraming::Chunked).await.unwrap();
        let interim = conn.read_response_head(true).await.unwrap();
        assert_eq!(interim.status, Status::CONTINUE);
        assert!(interim.headers.get_bool("x-obj-multiphase-commit"));
        conn.write_body("1234").await.unwrap();
        conn.write_body("567").await.unwrap();
        conn.finish_body().await.unwrap();
        assert_eq!(conn.read_response_head(true).await.unwrap().status, Status::CONTINUE);
        conn.start_next_chunked_body();
        conn.write_body("commit").await.unwrap();
        conn.finish_body().await.unwrap();
        assert_eq!(conn.read_response_head(true).await.unwrap().status, Status::CREATED);
        assert_eq!(conn.next_body().await.unwrap().unwrap(), "7+6");
        assert!(conn.next_body().await.is_none());
        assert!(conn.reusable());
    }
}

/// A PUT that does not wait to be asked for its data: it sees both answers when the data is stored, or is refused.
#[tokio::test]
async fn a_body_may_be_sent_unasked() {
    let (_server, addr) = start(app_fn(|mut req| async move {
        assert!(req.body.take_unasked());
        let data = req.body.collect(100).await.unwrap();
        if data == "refuse" {
            return Response::error(409);
        }
        req.body.next_chunked_body().await.unwrap();
        let commit = req.body.collect(100).await.unwrap();
        Response::text(201, format!("{}+{}", data.len(), commit.len()))
    }));
    let host = addr.ip().to_string();
    let mut conn = ClientConn::connect((&host, addr.port()), TIMEOUTS).await.unwrap();
    let headers = Headers::from([("Expect", "100-continue")]);
    for (data, status) in [("1234", 201), ("1234567", 201), ("refuse", 409)] {
        conn.hold_request_head(&Method::Put, "/sda/0/a/c/o", &headers, BodyFraming::Chunked).unwrap();
        conn.hold_body(&[data.as_bytes()]);
        conn.finish_body().await.unwrap();
        if status == 201 {
            for _ in 0..2 {
                assert_eq!(conn.read_response_head(true).await.unwrap().status, Status::CONTINUE);
            }
            conn.start_next_chunked_body();
            conn.hold_body(&[b"commit"]);
            conn.finish_body().await.unwrap();
        }
        assert_eq!(conn.read_response_head(true).await.unwrap().status.0, status);
        while conn.next_body().await.transpose().unwrap().is_some() {}
        // What the server has not asked for may lie before its next request.
        assert_eq!(conn.reusable(), status == 201);
    }
}

/// A server that refuses a body which is sent unasked, and neither reads it nor hangs up, or does so at once; and one that
/// asks for it late.
#[tokio::test]
async fn the_answer_to_an_unasked_body_is_heard_while_it_is_sent() {
    let headers = Headers::from([("Expect", "100-continue")]);
    let body = vec![7; 300_000];
    let refusal = "HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 4\r\n\r\nFull";
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    for (answers, stays, reads, expected) in [
        (vec![refusal], true, false, Some(507)),
        (vec![refusal], false, false, Some(507)),
        (vec!["HTTP/1.1 ", "507 Full\r\n\r\n"], true, false, Some(507)),
        (vec!["HTTP/1.1 ", "100 Continue\r\n\r\n"], true, true, Some(100)),
        (vec![interim, refusal], false, false, Some(507)),
        (vec![interim], false, false, None),
        (vec![], false, false, None),
    ] {
        let (mut server, ours) = tokio::io::duplex(1000);
        let mut conn = ClientConn::over(Stream::other(ours), ("peer", 1), TIMEOUTS.node);
        conn.hold_request_head(&Method::Put, "/sda/0/a/c/o", &headers, BodyFraming::Chunked).unwrap();
        let serve = async {
            // All but what no buffer holds.
            server.read_exact(&mut [0; 500]).await.unwrap();
            for answer in &answers {
                server.write_all(answer.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
            if reads {
                let mut all = Vec::new();
                while !all.ends_with(b"\r\n0\r\n\r\n") {
                    server.read_buf(&mut all).await.unwrap();
                }
                assert!(all.len() > body.len() - 500);
            }
            stays.then_some(server)
        };
        let ask = async {
            let all_sent = conn.finish_body_unless_refused(&[&body[..1], &body[1..]]).await.unwrap();
            assert_eq!(all_sent, reads, "{answers:?}");
            conn.read_response_head(all_sent).await.ok().map(|head| head.status.0)
        };
        let (_server, status) = tokio::join!(serve, ask);
        assert_eq!(status, expected, "{answers:?}");
        assert!(!conn.reusable());
    }
}

/// The sender's side of SSYNC.
#[tokio::test]
async fn a_response_is_read_while_the_request_goes_on() {
    let (_server, addr) = start(app_fn(|req| async move {
        let mut body = req.body;
        Response::new(200).with_body(Body::driven(move |tx| async move {
            while let Some(Ok(piece)) = body.next().await {
                tx.send(piece.to_ascii_uppercase()).await.unwrap();
            }
        }))
    }));
    let host = addr.ip().to_string();
    let mut conn = ClientConn::connect((&host, addr.port()), TIMEOUTS).await.unwrap();
    conn.send_request_head(&Method::Ssync, "/sda/0", &Headers::new(), BodyFraming::Chunked).await.unwrap();
    assert_eq!(conn.read_response_head(false).await.unwrap().status, Status::OK);
    for word in ["one", "two", "three"] {
        assert!(!conn.response_ready());
        conn.write_body(word).await.unwrap();
        assert_eq!(conn.next_body().await.unwrap().unwrap(), word.to_uppercase());
    }
    conn.finish_body().await.unwrap();
    assert!(conn.next_body().await.is_none());
    assert!(conn.reusable());
}

#[tokio::test]
async fn silence_and_refusal_are_told_apart() {
    let (addr, _task) = scripted(vec![vec![("never", "")]]).await;
    let host = addr.ip().to_string();
    let timeouts = Timeouts { node: Duration::from_millis(30), ..TIMEOUTS };
    let mut conn = ClientConn::connect((&host, addr.port()), timeouts).await.unwrap();
    conn.send_request_head(&Method::Get, "/", &Headers::new(), BodyFraming::None).await.unwrap();
    assert!(matches!(conn.read_response_head(false).await, Err(ClientError::Timeout)));
    assert!(!conn.reusable());

    // A port of the system's, which no test listens on.
    let refused = ClientConn::connect((&host, 1), TIMEOUTS).await;
    assert!(matches!(refused, Err(ClientError::Connect(_))));
}

#[tokio::test]
async fn what_would_split_a_head_is_refused() {
    let (addr, _task) = scripted(vec![vec![]]).await;
    let host = addr.ip().to_string();
    let mut conn = ClientConn::connect((&host, addr.port()), TIMEOUTS).await.unwrap();
    for target in ["/a b", "/a\r\nX: y", ""] {
        let sent = conn.send_request_head(&Method::Get, target, &Headers::new(), BodyFraming::None).await;
        assert!(matches!(sent, Err(ClientError::Malformed(_))), "{target:?}");
    }
}

#[tokio::test]
async fn a_cut_response_is_an_error() {
    let (addr, task) =
        scripted(vec![vec![("\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\npart")]]).await;
    let host = addr.ip().to_string();
    let pool = Pool::default();
    let headers = Headers::new();
    let request = pool.request((&host, addr.port()), Method::Get, "/", &headers, Body::empty(), TIMEOUTS);
    let mut resp = request.await.unwrap();
    assert_eq!(resp.body.content_length(), Some(30));
    assert!(matches!(resp.body.collect(100).await, Err(crate::http::BodyError::Disconnected)));
    task.await.unwrap();
}

#[tokio::test]
async fn our_app_can_be_called_without_a_wire() {
    let resp = echo().call(Request::new(Method::Put, "/x").with_body("y")).await;
    assert_eq!(resp.body.as_bytes(), Some(&b"y"[..]));
}

/// Many clients at once, bodies of all sizes and framings, read or not: every answer belongs to its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answers_belong_to_their_requests() {
    let (server, addr) = start(app_fn(|mut req| async move {
        let path = req.path.clone();
        if path.ends_with('0') {
            return Response::text(409, path);
        }
        if path.ends_with('1') {
            let body = Body::driven(move |tx| async move {
                while let Some(Ok(piece)) = req.body.next().await {
                    tx.send(piece).await.unwrap();
                }
            });
            return Response::new(200).with_body(body);
        }
        let all = req.body.collect(1 << 24).await.unwrap();
        Response::new(200).with_body(all)
    }));
    let pool = Pool::default();
    let clients = (0..16usize).map(|client| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for i in 0..60usize {
                let number = client * 60 + i;
                let path = format!("/{number}");
                let text = format!("{number:06}").repeat((number * 37) % 3000);
                // A body that is echoed while it is sent has to be known in advance: the sender stops at an answer.
                let streamed = number.is_multiple_of(3) && number % 10 != 1;
                let sent = text.clone();
                let body = match streamed {
                    true => Body::driven(move |tx| async move {
                        for piece in sent.as_bytes().chunks(1000) {
                            // The server may have answered by now.
                            if tx.send(piece.to_vec()).await.is_err() {
                                return;
                            }
                        }
                    }),
                    false => Body::from(sent),
                };
                let (status, answer) = request(&pool, addr, Method::Put, &path, body).await.unwrap();
                match number % 10 {
                    0 => assert_eq!((status, answer), (Status::CONFLICT, path)),
                    _ => assert!(status == Status::OK && answer == text, "{path}"),
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert!(server.stop(Duration::from_secs(5)).await);
}
