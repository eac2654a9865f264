//! Comparison with a running Swift object server: its answers to odd requests, and an EC PUT by Swift's own putter.

use super::*;
use crate::http::mime::MimeReader;
use crate::http::{BodyError, Status};

/// Where we answer otherwise than Python, on purpose: name, statuses, what becomes of the connection, and why.
const OTHERWISE: &[(&str, &str, &str, &str)] = &[
    ("close in a list", "404", "closed", "RFC 9110: Connection is a list, and close is one of it"),
    ("http/0.9", "400", "closed", "not spoken: without a head an answer cannot be told from a body"),
    ("http/0.9 with its version", "400", "closed", "not spoken"),
    ("version with a sign", "400", "closed", "digits only: others would refuse it"),
    ("method not ascii", "400", "closed", "not a token"),
    ("nul in target", "400", "closed", "refused by the wire instead of the app"),
    ("tab in target", "400", "closed", "control bytes are white space to some readers"),
    ("endless header", "400", "closed", "the answer is known before the client has sent all of it"),
    ("folded header", "400", "closed", "smuggling: RFC 9112 5.2"),
    ("space before colon", "400", "closed", "smuggling: RFC 9112 5.1"),
    ("space in name", "400", "closed", "smuggling: Python's parser takes such a line for the body's first"),
    ("space before first name", "400", "closed", "smuggling: RFC 9112 2.2"),
    ("no colon", "400", "closed", "smuggling: Python's parser takes such a line for the body's first"),
    ("no name", "400", "closed", "smuggling: Python's parser takes such a line for the body's first"),
    ("return in value", "400", "closed", "smuggling: Python's parser takes it for the end of the line"),
    ("two hosts", "400", "closed", "RFC 9112 3.2"),
    ("length with a sign", "400", "closed", "smuggling: digits only"),
    ("length with underscore", "400", "closed", "smuggling: digits only"),
    ("lengths differ", "400", "closed", "smuggling: RFC 9112 6.3"),
    ("chunked and length", "201", "closed", "smuggling: nothing may follow a request with both"),
    ("gzip, chunked", "501", "closed", "where the body ends is not known"),
    ("gzip", "400", "closed", "where the body ends is not known"),
    ("chunked twice", "501", "closed", "where the body ends is not known; Python reads it as a request"),
    ("coding with vertical tab", "400", "closed", "where the body ends is not known"),
    ("chunk size of no number", "499", "closed", "where the body ends is not known"),
    ("chunk size with 0x", "499", "closed", "smuggling: digits only"),
    ("chunk size negative", "499", "closed", "smuggling: digits only; Python waits for more"),
    ("chunk longer than said", "499", "closed", "smuggling: CRLF must follow the data"),
    ("chunk with bare newlines", "499", "closed", "smuggling: CRLF must end the lines"),
    ("stalled body", "408", "closed", "the rest of the body would be taken for a request"),
];

/// Refuses what Swift's object server refuses by itself, in its order.
async fn object_server(mut req: Request) -> Response {
    if !req.path_is_utf8 {
        return Response::error(412);
    }
    if !req.path.starts_with('/') {
        return Response::error(400);
    }
    match req.method {
        Method::Get => return Response::error(404),
        Method::Put => {}
        _ => return Response::error(405),
    }
    if !req.headers.contains("X-Timestamp") {
        return Response::text(400, "Missing X-Timestamp header");
    }
    match req.headers.get_str("Transfer-Encoding") {
        None | Some("chunked") => {}
        Some("CHUNKED") => return Response::error(411),
        Some(list) if list.contains(',') => return Response::error(501),
        Some(_) => return Response::error(400),
    }
    if !req.headers.contains("Content-Length") && !req.headers.contains("Transfer-Encoding") {
        return Response::error(411);
    }
    match req.body.collect(1 << 20).await {
        Ok(_) => Response::new(201),
        Err(BodyError::Timeout) => Response::error(408),
        Err(_) => Response::error(499),
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (escaped, length) = match tail[0] {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b't' => (b'\t', 1),
            b'x' => (u8::from_str_radix(std::str::from_utf8(&tail[1..3]).unwrap(), 16).unwrap(), 3),
            other => (other, 1),
        };
        out.push(escaped);
        rest = &tail[length..];
    }
    out
}

/// `<text*count>` is that text so many times.
fn expand(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        let (what, after) = after.split_once('>').unwrap();
        let (what, count) = what.rsplit_once('*').unwrap();
        out.extend(unescape(before));
        out.extend(unescape(what).repeat(count.parse().unwrap()));
        rest = after;
    }
    out.extend(unescape(rest));
    out
}

/// Takes one response with a Content-Length, or an interim one, from the front; its status.
fn take_response(data: &mut Vec<u8>) -> Option<String> {
    let end = memchr::memmem::find(data, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&data[..end]).into_owned();
    let length =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().unwrap());
    if data.len() < end + length {
        return None;
    }
    data.drain(..end + length);
    Some(head.split(' ').nth(1).unwrap().to_owned())
}

/// The statuses of the answers, and whether a further request is answered.
async fn ask(addr: SocketAddr, request: Vec<u8>, answers: usize) -> (String, &'static str) {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(&request).await.unwrap();
    let (mut data, mut statuses, mut probed) = (Vec::new(), Vec::new(), false);
    let end = loop {
        while let Some(status) = take_response(&mut data) {
            statuses.push(status);
        }
        if statuses.len() > answers && probed {
            statuses.pop();
            break "open";
        }
        if statuses.len() >= answers && !std::mem::replace(&mut probed, true) {
            // On a closed connection this fails or does nothing.
            let _ = tcp.write_all(b"GET /probe HTTP/1.1\r\n\r\n").await;
        }
        match tokio::time::timeout(Duration::from_secs(5), tcp.read_buf(&mut data)).await.expect("silence") {
            Ok(0) | Err(_) => break "closed",
            Ok(_) => {}
        }
    };
    (statuses.join(" "), end)
}

#[tokio::test]
async fn odd_requests_are_answered_as_by_swift_but_for_what_is_listed() {
    let options = ServeOptions { client_timeout: Duration::from_millis(200), ..options() };
    let (_server, addr) = start_with(options, app_fn(object_server));
    let golden = include_str!("../../../tests/golden/http/requests.tsv");
    let mut used = 0;
    let asked = golden.lines().map(|line| {
        let [name, request, statuses, end] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let otherwise = OTHERWISE.iter().find(|(other, ..)| *other == name);
        used += usize::from(otherwise.is_some());
        let want = otherwise.map_or((statuses, end), |&(_, statuses, end, _)| (statuses, end));
        assert!(otherwise.is_none() || want != (statuses, end), "{name}: not otherwise");
        async move {
            let got = ask(addr, expand(request), want.0.split(' ').count()).await;
            ((got.0.as_str(), got.1) != want).then(|| format!("{name}: {got:?} instead of {want:?}"))
        }
    });
    let wrong: Vec<_> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(used, OTHERWISE.len());
}

/// What the object server does in a PUT of two phases.
async fn two_phase_put(mut req: Request) -> Response {
    if req.method == Method::Get {
        return Response::new(200).with_body("gotten");
    }
    let continue_headers = [("X-Obj-Multiphase-Commit", "yes"), ("X-Obj-Metadata-Footer", "yes")];
    req.body.set_continue_headers(Headers::from(continue_headers));
    let boundary = req.headers.get("X-Backend-Obj-Multipart-Mime-Boundary").unwrap();
    let mut documents = MimeReader::new(req.body, boundary);
    let document = |headers: &Headers| headers.get_str("X-Document").unwrap().to_owned();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let headers = documents.next_document().await.unwrap().unwrap();
        seen.push((document(&headers), documents.collect(1 << 20).await.unwrap()));
    }
    documents.next_chunked_body().await.unwrap();
    let headers = documents.next_document().await.unwrap().unwrap();
    seen.push((document(&headers), documents.collect(1 << 20).await.unwrap()));
    assert!(documents.next_document().await.unwrap().is_none());
    assert_eq!(seen[0], ("object body".into(), "fragment \r\n--archive".repeat(5).into()));
    assert_eq!(seen[1].0, "object metadata");
    assert!(seen[1].1.starts_with(b"{\"Etag\": ") && seen[1].1.ends_with(b"}"));
    assert_eq!(seen[2], ("put commit".into(), "put_commit_confirmation".into()));
    Response::new(Status::CREATED).with_header("Etag", "\"f0489c8b70be9f1304d36d43f5f50770\"")
}

#[tokio::test]
async fn an_ec_put_of_swifts_putter_gets_the_bytes_of_swifts_object_server() {
    let (_server, addr) = start(app_fn(two_phase_put));
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let golden = include_str!("../../../tests/golden/http/ec_put.txt");
    let mut exchanges = 0;
    for line in golden.lines() {
        let (who, text) = line.split_once(' ').unwrap();
        let bytes = unescape(text);
        if who == "C" {
            tcp.write_all(&bytes).await.unwrap();
            continue;
        }
        exchanges += 1;
        if exchanges == 4 {
            assert!(read_until(&mut tcp, "gotten").await.starts_with("HTTP/1.1 200 OK\r\n"));
            break;
        }
        let got = read_until(&mut tcp, "\r\n\r\n").await;
        assert_eq!(undated(&got), undated(std::str::from_utf8(&bytes).unwrap()));
    }
    assert_eq!(exchanges, 4);
}
