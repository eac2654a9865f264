//! Servers and clients of this layer with one another, and with raw bytes, over loopback.

mod client;
mod golden;
mod server;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::serve::{ServeOptions, Server, ServerHandle};
use super::{App, Body, ClientError, Headers, Method, Pool, Request, Response, SharedApp, Timeouts, app_fn};

const TIMEOUTS: Timeouts = Timeouts { conn: Duration::from_secs(5), node: Duration::from_secs(5) };

pub fn options() -> ServeOptions {
    ServeOptions { client_timeout: Duration::from_secs(5), ..ServeOptions::default() }
}

pub fn start_with(options: ServeOptions, app: SharedApp) -> (ServerHandle, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = Server::start(vec![listener], app, options).unwrap();
    let addr = handle.addrs()[0];
    (handle, addr)
}

fn start(app: SharedApp) -> (ServerHandle, SocketAddr) {
    start_with(options(), app)
}

/// Answers with what it was asked.
pub fn echo() -> SharedApp {
    app_fn(|mut req: Request| async move {
        match req.body.collect(1 << 24).await {
            Ok(body) => Response::text(200, body)
                .with_header("X-Method", req.method.as_str())
                .with_header("X-Path", &req.path),
            Err(error) => Response::text(400, error.to_string()),
        }
    })
}

/// Sends the bytes and reads until the server closes.
async fn raw(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_all(bytes.as_ref()).await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut all = Vec::new();
    tcp.read_to_end(&mut all).await.unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until the text ends with `end`.
pub async fn read_until(tcp: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        let read = tokio::time::timeout(Duration::from_secs(5), tcp.read_buf(&mut all)).await;
        let read = read.unwrap_or_else(|_| panic!("only came: {:?}", String::from_utf8_lossy(&all))).unwrap();
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&all));
    }
    String::from_utf8(all).unwrap()
}

/// A head without its Date.
fn undated(text: &str) -> String {
    text.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect()
}
