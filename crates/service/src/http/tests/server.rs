//! What a server writes for what it reads, byte by byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::http::{BodyError, Stream};

#[tokio::test]
async fn a_response_is_headers_then_length_date_and_connection() {
    let (_server, addr) = start(echo());
    let text = raw(addr, "GET /a%20b HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert!(text.contains("\r\nDate: "), "{text}");
    assert_eq!(
        undated(&text),
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Method: GET\r\nX-Path: /a b\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
}

#[tokio::test]
async fn names_are_written_in_title_case_unless_preserved() {
    let (_server, addr) = start(app_fn(|req| async move {
        let mut resp = Response::new(200).with_header("ETag", "x").with_header("x-object-meta-é1a", "y");
        resp.preserve_header_case = req.path == "/s3";
        resp
    }));
    let title = raw(addr, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(title.contains("\r\nEtag: x\r\nX-Object-Meta-é1A: y\r\n"), "{title}");
    let kept = raw(addr, "GET /s3 HTTP/1.0\r\n\r\n").await;
    assert!(kept.contains("\r\nETag: x\r\nx-object-meta-é1a: y\r\n"), "{kept}");
}

#[tokio::test]
async fn a_value_that_would_split_the_head_is_left_out() {
    let (_server, addr) = start(app_fn(|_| async {
        Response::new(200)
            .with_header("X-A", "1\r\nX-Evil: 2")
            .with_header("X-B\n", "3")
            .with_header("X-C", "4")
    }));
    let text = raw(addr, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(
        !text.contains("X-A") && !text.contains("X-Evil") && !text.contains("X-B") && text.contains("X-C: 4")
    );
}

#[tokio::test]
async fn an_apps_word_on_connection_and_framing_does_not_count() {
    let (_server, addr) = start(app_fn(|_| async {
        let resp =
            Response::new(200).with_header("Connection", "close").with_header("Transfer-Encoding", "chunked");
        resp.with_header("Content-Length", "many").with_body("body")
    }));
    let text = undated(&raw(addr, "GET / HTTP/1.1\r\n\r\n").await);
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=UTF-8\r\nContent-Length: 4\r\n\r\nbody"
    );
}

#[tokio::test]
async fn requests_may_be_pipelined() {
    let (_server, addr) = start(echo());
    let text = raw(
        addr,
        "PUT /1 HTTP/1.1\r\nContent-Length: 3\r\n\r\nonePUT /2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\ntwo\r\n0\r\n\r\nGET /3 HTTP/1.1\r\n\r\n",
    )
    .await;
    let found: Vec<usize> =
        ["\r\n\r\none", "\r\n\r\ntwo", "X-Path: /3"].iter().map(|t| text.find(t).unwrap()).collect();
    assert!(found.is_sorted(), "{text}");
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3);
}

#[tokio::test]
async fn a_body_nobody_read_is_drained_when_it_is_small() {
    let (server, addr) = start(app_fn(|_| async { Response::error(409) }));
    let text = raw(
        addr,
        "PUT /1 HTTP/1.1\r\nContent-Length: 3\r\n\r\noneGET /2 HTTP/1.1\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(text.matches("HTTP/1.1 409 Conflict").count(), 2, "{text}");
    assert_eq!(server.stats().requests.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_large_body_nobody_reads_does_not_hide_the_status() {
    let (_server, addr) = start(app_fn(|_| async { Response::error(413) }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"PUT /1 HTTP/1.1\r\nContent-Length: 50000000\r\n\r\n").await.unwrap();
    // The server has answered and closed long before all of it is sent; it must not reset us.
    for _ in 0..50_000_000 / 65536 {
        tcp.write_all(&[0u8; 65536]).await.unwrap();
    }
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("Connection: close\r\n"), "{text}");
}

#[tokio::test]
async fn http_1_0_gets_no_chunks_and_is_closed() {
    let (_server, addr) = start(app_fn(|_| async {
        Response::text(200, Body::driven(|tx| async move { tx.send("streamed").await.unwrap() }))
    }));
    let text = undated(&raw(addr, "GET / HTTP/1.0\r\n\r\n").await);
    assert_eq!(text, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nstreamed");
    let text = undated(&raw(addr, "GET / HTTP/1.1\r\n\r\n").await);
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nstreamed\r\n0\r\n\r\n"
    );
}

#[tokio::test]
async fn http_1_0_may_ask_for_keep_alive() {
    let (_server, addr) = start(echo());
    let text = raw(addr, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2);
    assert_eq!(text.matches("Connection: keep-alive").count(), 1);
}

#[tokio::test]
async fn head_and_304_have_no_body() {
    let (_server, addr) = start(app_fn(|req| async move {
        match &*req.path {
            "/304" => Response::new(304).with_body("no"),
            "/404" => Response::error(404),
            _ => Response::new(200).with_header("Content-Length", 10).with_body("0123456789"),
        }
    }));
    let head = |text: String| undated(&text).replace("Content-Type: text/html; charset=UTF-8\r\n", "");
    let text = head(raw(addr, "HEAD / HTTP/1.1\r\n\r\n").await);
    assert_eq!(text, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
    let text = head(raw(addr, "HEAD /404 HTTP/1.1\r\n\r\n").await);
    assert_eq!(text, "HTTP/1.1 404 Not Found\r\n\r\n");
    let text = head(raw(addr, "GET /304 HTTP/1.1\r\n\r\n").await);
    assert_eq!(text, "HTTP/1.1 304 Not Modified\r\n\r\n");
}

#[tokio::test]
async fn continue_goes_out_on_the_first_read_with_its_headers() {
    let (_server, addr) = start(app_fn(|mut req| async move {
        req.body.set_continue_headers(Headers::from([("X-Obj-Metadata-Footer", "yes")]));
        Response::text(201, req.body.collect(100).await.unwrap())
    }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n").await.unwrap();
    let head = read_until(&mut tcp, "\r\n\r\n").await;
    assert_eq!(head, "HTTP/1.1 100 Continue\r\nX-Obj-Metadata-Footer: yes\r\n\r\n");
    tcp.write_all(b"abc").await.unwrap();
    let text = read_until(&mut tcp, "abc").await;
    assert!(text.starts_with("HTTP/1.1 201 Created\r\n") && !text.contains("Connection"), "{text}");
}

#[tokio::test]
async fn an_empty_body_is_asked_for_as_well() {
    let (_server, addr) = start(echo());
    let text = raw(
        addr,
        "PUT / HTTP/1.1\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    )
    .await;
    let statuses: Vec<_> = text.lines().filter(|line| line.starts_with("HTTP/1.1")).collect();
    assert_eq!(statuses, ["HTTP/1.1 100 Continue", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK"]);
}

#[tokio::test]
async fn a_body_kept_beyond_the_response_ends_the_connection() {
    let kept = Arc::new(parking_lot::Mutex::new(None));
    let keep = kept.clone();
    let (_server, addr) = start(app_fn(move |req| {
        *keep.lock() = Some(req.body);
        async { Response::new(200) }
    }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!(kept.lock().is_some());
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_where_it_should_have_ended() {
    let (_server, addr) = start(app_fn(|_| async {
        let body = Body::driven(|tx| async move { while tx.send("endless").await.is_ok() {} });
        Response::new(200).with_body(body.with_length(10))
    }));
    let text = raw(addr, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(text.ends_with("\r\n\r\nendlessend"), "{text}");
}

#[tokio::test]
async fn no_continue_closes_the_connection() {
    let (_server, addr) = start(app_fn(|_| async { Response::error(507) }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 507 ") && text.contains("\r\nConnection: close\r\n"), "{text}");
}

#[tokio::test]
async fn a_second_chunked_body_follows_a_second_continue() {
    let (_server, addr) = start(app_fn(|mut req| async move {
        req.body.set_continue_headers(Headers::from([("x-obj-multiphase-commit", "yes")]));
        let data = req.body.collect(100).await.unwrap();
        req.body.next_chunked_body().await.unwrap();
        let commit = req.body.collect(100).await.unwrap();
        Response::text(201, format!("{data:?} {commit:?}"))
    }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    let interim = "HTTP/1.1 100 Continue\r\nX-Obj-Multiphase-Commit: yes\r\n\r\n";
    assert_eq!(read_until(&mut tcp, "\r\n\r\n").await, interim);
    tcp.write_all(b"4\r\ndata\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut tcp, "\r\n\r\n").await, interim);
    tcp.write_all(b"6\r\ncommit\r\n0\r\n\r\n").await.unwrap();
    let text = read_until(&mut tcp, "b\"data\" b\"commit\"").await;
    assert!(text.starts_with("HTTP/1.1 201 Created\r\n") && !text.contains("Connection"), "{text}");
    // And the connection is still in step.
    tcp.write_all(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut tcp, "\r\n\r\n").await, interim);
}

/// SSYNC: the 200 goes out before anything of the body is there, says nothing of closing, and both ways stay open.
#[tokio::test]
async fn an_early_response_reads_the_request_while_it_writes() {
    let (_server, addr) = start(app_fn(|req| async move {
        let mut body = req.body;
        Response::new(200).with_body(Body::driven(move |tx| async move {
            while let Some(Ok(piece)) = body.next().await {
                tx.send(piece.to_ascii_uppercase()).await.unwrap();
            }
        }))
    }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"SSYNC / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let head = read_until(&mut tcp, "\r\n\r\n").await;
    assert!(head.contains("Transfer-Encoding: chunked") && !head.contains("Connection"), "{head}");
    for word in ["one", "two"] {
        tcp.write_all(format!("3\r\n{word}\r\n").as_bytes()).await.unwrap();
        let piece = format!("3\r\n{}\r\n", word.to_uppercase());
        assert_eq!(read_until(&mut tcp, &piece).await, piece);
    }
    tcp.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut tcp, "\r\n\r\n").await, "0\r\n\r\n");
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(read_until(&mut tcp, "\r\n\r\n").await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_stalled_body_times_out_and_a_cut_one_is_a_disconnect() {
    let (_server, addr) = start_with(
        ServeOptions { client_timeout: Duration::from_millis(50), ..options() },
        app_fn(|mut req| async move {
            match req.body.collect(100).await {
                Err(BodyError::Timeout) => Response::error(408),
                Err(BodyError::Disconnected) => Response::error(499),
                Err(BodyError::Malformed(_)) => Response::error(400),
                other => panic!("{other:?}"),
            }
        }),
    );
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\na").await.unwrap();
    assert!(read_until(&mut tcp, "</html>").await.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    let text = raw(addr, "PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\na").await;
    assert!(text.starts_with("HTTP/1.1 499 Client Disconnect\r\n"), "{text}");
    let text = raw(addr, "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").await;
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("Connection: close"), "{text}");
}

#[tokio::test]
async fn a_handler_runs_to_its_end_when_the_client_goes() {
    let done = Arc::new(tokio::sync::Notify::new());
    let (entered, flag) = (Arc::new(tokio::sync::Notify::new()), done.clone());
    let app = {
        let entered = entered.clone();
        app_fn(move |req| {
            let (entered, flag) = (entered.clone(), flag.clone());
            async move {
                entered.notify_one();
                req.env.peer.as_ref().unwrap().gone().await;
                flag.notify_one();
                Response::new(200)
            }
        })
    };
    let (_server, addr) = start(app);
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    entered.notified().await;
    drop(tcp);
    tokio::time::timeout(Duration::from_secs(5), done.notified()).await.unwrap();
}

#[tokio::test]
async fn a_driven_body_runs_to_its_end_when_the_client_goes() {
    let done = Arc::new(tokio::sync::Notify::new());
    let flag = done.clone();
    let (_server, addr) = start(app_fn(move |_| {
        let flag = flag.clone();
        async move {
            Response::new(200).with_body(Body::driven(move |tx| async move {
                while tx.send(vec![0u8; 65536]).await.is_ok() {}
                flag.notify_one();
            }))
        }
    }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    tcp.read_exact(&mut [0u8; 1000]).await.unwrap();
    drop(tcp);
    tokio::time::timeout(Duration::from_secs(5), done.notified()).await.unwrap();
}

#[tokio::test]
async fn a_body_that_fails_or_ends_early_cuts_the_connection() {
    let (_server, addr) = start(app_fn(|req| async move {
        let fails = req.path == "/fails";
        let body = Body::driven(move |tx| async move {
            tx.send("half").await.unwrap();
            if fails {
                tx.fail(BodyError::Other("disk".into())).await;
            }
        });
        match &*req.path {
            "/short" => Response::new(200).with_body(body.with_length(8)),
            "/long" => Response::new(200).with_body(body.with_length(2)),
            _ => Response::new(200).with_body(body),
        }
    }));
    let text = raw(addr, "GET /fails HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n").await;
    assert!(text.ends_with("\r\n\r\n4\r\nhalf\r\n"), "{text}");
    let text = raw(addr, "GET /short HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n").await;
    assert!(text.ends_with("\r\n\r\nhalf"), "{text}");
    let text = raw(addr, "GET /long HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert!(text.ends_with("\r\n\r\nha"), "{text}");
}

#[tokio::test]
async fn a_panic_is_a_500() {
    let (server, addr) = start(app_fn(|_| async { panic!("on purpose") }));
    let text = raw(addr, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 500 Internal Error\r\n"), "{text}");
    assert_eq!(server.stats().panics.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_lets_requests_finish() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (entered, app_gate) = (Arc::new(AtomicBool::new(false)), gate.clone());
    let app_entered = entered.clone();
    let (server, addr) = start(app_fn(move |_| {
        let (entered, gate) = (app_entered.clone(), app_gate.clone());
        async move {
            entered.store(true, Ordering::Relaxed);
            let _permit = gate.acquire().await.unwrap();
            Response::new(200).with_body("done")
        }
    }));
    let mut idle = TcpStream::connect(addr).await.unwrap();
    let mut busy = TcpStream::connect(addr).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    while !entered.load(Ordering::Relaxed) || server.stats().open.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    let (stopped, _) = tokio::join!(server.stop(Duration::from_secs(5)), async {
        assert_eq!(idle.read(&mut [0u8; 1]).await.unwrap(), 0);
        gate.add_permits(1);
    });
    assert!(stopped);
    let text = read_until(&mut busy, "done").await;
    assert!(text.contains("Connection: close\r\n"), "{text}");
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_stop_aborts_what_does_not_finish() {
    let (server, addr) = start(app_fn(|_| async { std::future::pending().await }));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    while server.stats().requests.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!server.stop(Duration::from_millis(10)).await);
    assert_eq!(tcp.read(&mut [0u8; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn no_more_clients_than_allowed_are_served() {
    let (_server, addr) = start_with(ServeOptions { max_clients: 1, ..options() }, echo());
    let mut first = TcpStream::connect(addr).await.unwrap();
    let mut second = TcpStream::connect(addr).await.unwrap();
    first.write_all(b"GET /1 HTTP/1.1\r\n\r\n").await.unwrap();
    read_until(&mut first, "\r\n\r\n").await;
    second.write_all(b"GET /2 HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), second.read(&mut [0u8; 1])).await.is_err());
    drop(first);
    assert!(read_until(&mut second, "\r\n\r\n").await.contains("X-Path: /2"));
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client() {
    let app = app_fn(|req| async move {
        Response::text(200, format!("{} {:?}", req.env.remote_addr.unwrap(), req.host_url()))
    });
    let (_server, addr) = start_with(ServeOptions { proxy_protocol: true, ..options() }, app);
    let text = raw(addr, "PROXY TCP4 1.2.3.4 5.6.7.8 1000 443\r\nGET / HTTP/1.0\r\n\r\n").await;
    assert!(text.ends_with("\r\n\r\n1.2.3.4:1000 \"https://5.6.7.8\""), "{text}");
    let text = raw(addr, "PROXY UNKNOWN whatever\r\nGET / HTTP/1.0\r\n\r\n").await;
    assert!(text.contains(" 200 OK\r\n"), "{text}");
    let text = raw(addr, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
}

#[tokio::test]
async fn refused_heads_are_told_to_the_hook_and_answered_with_its_id() {
    let hook: crate::http::serve::RefusedHook = Arc::new(|status, _| Some(format!("tx-{}", status.0)));
    let (server, addr) = start_with(ServeOptions { on_refused: Some(hook), ..options() }, echo());
    let text = raw(addr, "GET / HTTP/2.0\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 505 ") && text.contains("\r\nX-Trans-Id: tx-505\r\n"), "{text}");
    assert_eq!(server.stats().refused.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn any_stream_can_be_served() {
    let server = Server::without_listeners(echo(), options());
    let (client, theirs) = tokio::io::duplex(64);
    server.connect(Stream::other(theirs));
    let mut conn = crate::http::ClientConn::over(Stream::other(client), ("test", 1), Duration::from_secs(5));
    conn.send_request_head(&Method::Put, "/x", &Headers::new(), crate::http::BodyFraming::Chunked)
        .await
        .unwrap();
    conn.write_body([7u8; 1000]).await.unwrap();
    conn.finish_body().await.unwrap();
    assert_eq!(conn.read_response_head(false).await.unwrap().status.0, 200);
    assert_eq!(conn.into_body().collect(2000).await.unwrap(), vec![7u8; 1000]);
}
