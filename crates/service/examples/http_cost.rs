//! CPU time that a request costs in the HTTP layer alone, over loopback and one kept connection.
//!
//!     cargo run --release --package martlet-service --example http_cost
//!
//! The server has a thread of its own and its time is read there, so the client's is not counted; on a busy machine the
//! figures hold, rates would not. The handler has 8 headers and a body in memory.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use service::http::{Headers, Method, Request, Response, ServeOptions, Server, app_fn};

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || serve(listener));
    for round in 0..3 {
        println!("round {round}");
        let get = b"GET /sda1/123/AUTH_test/container/object HTTP/1.1\r\nHost: 127.0.0.1:6200\r\nX-Timestamp: 1700000000.00000\r\n\
            X-Trans-Id: tx0123456789abcdef01234-0123456789\r\nReferer: GET http://127.0.0.1:8080/v1/AUTH_test/container/object\r\n\
            User-Agent: proxy-server 1234\r\nX-Backend-Storage-Policy-Index: 0\r\n\r\n";
        measure(addr, "GET 4 KiB", get, 50_000)?;
        let put = [get.as_slice(), &[0u8; 4096]].concat();
        let put = String::from_utf8_lossy(&put).replace("GET /sda1", "PUT /sda1");
        let put = put.replace("Index: 0\r\n", "Index: 0\r\nContent-Length: 4096\r\n");
        measure(addr, "PUT 4 KiB", put.as_bytes(), 50_000)?;
        measure(addr, "GET 64 MiB", b"GET /large HTTP/1.1\r\n\r\n", 20)?;
    }
    Ok(())
}

fn serve(listener: TcpListener) {
    let small = Bytes::from(vec![b'x'; 4096]);
    let large = Bytes::from(vec![b'x'; 64 << 20]);
    let app = app_fn(move |req| handle(req, small.clone(), large.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be built");
    runtime.block_on(async {
        let _server = Server::start(vec![listener], app, ServeOptions::default());
        std::future::pending::<()>().await;
    });
}

async fn handle(mut req: Request, small: Bytes, large: Bytes) -> Response {
    match (&req.method, &*req.path) {
        (_, "/cpu") => {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            return Response::text(200, format!("{:020}", time.tv_sec * 1_000_000_000 + time.tv_nsec));
        }
        (_, "/large") => return Response::new(200).with_body(pieces(large)),
        (Method::Put, _) => {
            while let Some(Ok(piece)) = req.body.next().await {
                std::hint::black_box(&piece);
            }
            return Response::new(201);
        }
        _ => {}
    }
    let mut resp = Response::new(200).with_body(small);
    resp.headers = Headers::with_capacity(12, 512);
    for (name, value) in [
        ("Content-Type", "application/octet-stream"),
        ("Etag", "\"d41d8cd98f00b204e9800998ecf8427e\""),
        ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("X-Timestamp", "1700000000.00000"),
        ("X-Backend-Timestamp", "1700000000.00000"),
        ("X-Backend-Data-Timestamp", "1700000000.00000"),
        ("X-Backend-Durable-Timestamp", "1700000000.00000"),
        ("X-Trans-Id", "tx0123456789abcdef01234-0123456789"),
    ] {
        resp.headers.append(name, value);
    }
    resp
}

fn pieces(mut all: Bytes) -> service::http::Body {
    let length = all.len() as u64;
    let body = service::http::Body::driven(|tx| async move {
        while !all.is_empty() && tx.send(all.split_to(all.len().min(64 << 10))).await.is_ok() {}
    });
    body.with_length(length)
}

fn measure(addr: SocketAddr, name: &str, request: &[u8], count: u64) -> std::io::Result<()> {
    let mut tcp = TcpStream::connect(addr)?;
    tcp.set_nodelay(true)?;
    let mut buf = vec![0u8; 256 << 10];
    let cpu = |tcp: &mut TcpStream, buf: &mut [u8]| {
        let text = exchange(tcp, b"GET /cpu HTTP/1.1\r\n\r\n", buf)?;
        Ok::<u64, std::io::Error>(text.parse().unwrap_or_default())
    };
    exchange(&mut tcp, request, &mut buf)?;
    let before = cpu(&mut tcp, &mut buf)?;
    let start = std::time::Instant::now();
    for _ in 0..count {
        exchange(&mut tcp, request, &mut buf)?;
    }
    let wall = start.elapsed().as_secs_f64() / count as f64 * 1e6;
    let spent = (cpu(&mut tcp, &mut buf)? - before) as f64 / count as f64 / 1e3;
    println!("{name:12} {spent:10.2} us CPU  {wall:10.2} us wall");
    Ok(())
}

/// Sends a request and reads its response; the last 20 bytes of a short one.
fn exchange(tcp: &mut TcpStream, request: &[u8], buf: &mut [u8]) -> std::io::Result<String> {
    tcp.write_all(request)?;
    let mut filled = 0;
    let head = loop {
        filled += tcp.read(&mut buf[filled..])?;
        if let Some(end) = memchr::memmem::find(&buf[..filled], b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&buf[..head]);
    let length = text.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
    let length: usize = length.parse().unwrap_or(0);
    let mut body = filled - head;
    while body < length {
        body += tcp.read(&mut buf[head..])?;
    }
    let tail = &buf[head..(head + length).min(buf.len())];
    Ok(String::from_utf8_lossy(&tail[..tail.len().min(20)]).into_owned())
}
