//! What each filter adds to a request: `cargo run --release --example filter_cost`.
//!
//! A GET of a small object through one filter at a time over an app that answers at once, in nanoseconds per request
//! beyond those of the app alone.

use std::error::Error;
use std::time::Instant;

use common::config::Section;
use service::http::{App, Method, Request, Response, SharedApp, app_fn};
use service::memcached::Cache;
use service::pipeline::FilterFactory;
use service::{Context, Process};

use proxy::environ::SwiftCache;
use proxy::middleware as filters;

const REQUESTS: u32 = 200_000;

fn main() -> Result<(), Box<dyn Error>> {
    let ctx = Context::builder("proxy-server").process(Process::new().with_sinks(Vec::new())).build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let app = app_fn(|_| async {
        Response::new(200)
            .with_header("ETag", "781e5e245d69b566979b86e28d23f2c7")
            .with_header("Last-Modified", "Tue, 10 Jun 2014 22:47:33 GMT")
            .with_header("X-Timestamp", "1402440452.05458")
            .with_header("X-Object-Meta-Colour", "blue")
            .with_header("Content-Length", "10")
            .with_body("0123456789")
    });
    let alone = runtime.block_on(measure(&app, &ctx));
    println!("{:<16} {alone:>6.0} ns", "app alone");
    let factories: [(&str, FilterFactory); 9] = [
        ("catch_errors", filters::catch_errors::factory),
        ("gatekeeper", filters::gatekeeper::factory),
        ("proxy-logging", filters::proxy_logging::factory),
        ("cache", filters::memcache::factory),
        ("listing_formats", filters::listing_formats::factory),
        ("tempauth", filters::tempauth::factory),
        ("copy", filters::copy::factory),
        ("slo", filters::slo::factory),
        ("dlo", filters::dlo::factory),
    ];
    let section = Section::from_pairs("filter:x", [("embedded_cache", "true"), ("user_a_b", "c .admin")]);
    for (name, factory) in factories {
        let filter = factory(&section, &ctx, app.clone())?;
        println!("{name:<16} {:>6.0} ns", runtime.block_on(measure(&filter, &ctx)) - alone);
    }
    Ok(())
}

async fn measure(app: &SharedApp, ctx: &Context) -> f64 {
    let cache = SwiftCache(Cache::local(&ctx.clock));
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..REQUESTS / 5 {
            let mut req = Request::new(Method::Get, "/v1/AUTH_a/container/object")
                .with_header("Host", "127.0.0.1:8080")
                .with_header("User-Agent", "python-swiftclient-4.11.0")
                .with_header("Accept", "*/*")
                .with_header("X-Trans-Id-Extra", "");
            req.env.insert(cache.clone());
            let mut resp = app.call(req).await;
            while let Some(Ok(chunk)) = resp.body.next().await {
                std::hint::black_box(chunk);
            }
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(REQUESTS / 5));
    }
    best
}
