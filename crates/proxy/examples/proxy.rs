//! Serves the pipeline of a proxy-server.conf in the foreground: `cargo run --example proxy CONF`.
//!
//! It knows a filter more, `egg:example#owner`: whoever sends `X-Owner: 1` owns the account, without any token.

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;

use common::config::Paste;
use proxy::environ::SwiftOwner;
use service::http::{App, Request, ServeOptions, Server, app_fn};
use service::{Context, Process, Registry, load_app};

fn main() -> Result<(), Box<dyn Error>> {
    let conf = std::env::args().nth(1).ok_or("which proxy-server.conf?")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    runtime.block_on(serve(Path::new(&conf)))
}

async fn serve(conf: &Path) -> Result<(), Box<dyn Error>> {
    let paste = Paste::load(conf, "main")?;
    let section = &paste.app.section;
    let ctx = Context::new(&Process::new().with_console(), "proxy-server", section)?;
    let mut registry = Registry::new();
    proxy::register(&mut registry);
    registry.filter("egg:example#owner", |_, _, app| {
        Ok(app_fn(move |mut req: Request| {
            let app = app.clone();
            req.env.insert(SwiftOwner(req.headers.get_str("X-Owner") == Some("1")));
            async move { app.call(req).await }
        }))
    });
    let app = load_app(&paste, &registry, &ctx)?;
    let address = (section.str("bind_ip", "127.0.0.1"), section.int("bind_port", 8080u16)?);
    let listener = TcpListener::bind((address.0.as_str(), address.1))?;
    let server = Server::start(vec![listener], app, ServeOptions::default())?;
    println!("serving on {:?}", server.addrs());
    std::future::pending::<()>().await;
    Ok(())
}
