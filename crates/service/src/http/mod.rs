//! Swift's dialect of HTTP/1.1: one request, one response, streaming bodies; both roles.
//!
//! A handler is an [`App`]: it takes a [`Request`] and gives a [`Response`]. What is not plain HTTP works through the
//! [`Body`]: the body of a request can send `100 Continue` with headers and a second one that re-arms the chunk decoder
//! (the two phases of an EC PUT), and the body of a response may be a future that reads the request's body while it
//! writes (the SSYNC receiver).

pub mod body;
pub mod chunked;
pub mod client;
pub mod conditional;
mod conn;
pub mod head;
pub mod headers;
pub mod message;
pub mod mime;
pub mod pool;
pub mod range;
pub mod serve;
pub mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tls;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use body::{Body, BodyError, BodySender, BodyStream};
pub use client::{BodyFraming, ClientConn, ClientError, Timeouts};
pub use conditional::{ConditionalOptions, Conditions, RangeSource};
pub use conn::Peer;
pub use headers::{HeaderValue, Headers};
pub use message::{Environ, Extensions, Method, Request, Response, Status, split_path};

pub use pool::{Pool, PoolOptions};
pub use serve::{ServeOptions, Server, ServerHandle, ServerStats};
pub use stream::Stream;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A WSGI app or filter. A call runs to its end, also when the client has gone.
pub trait App: Send + Sync + 'static {
    fn call(&self, req: Request) -> BoxFuture<'_, Response>;
}

pub type SharedApp = Arc<dyn App>;

impl App for SharedApp {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        (**self).call(req)
    }
}

/// An app made of a function.
pub fn app_fn<F, R>(function: F) -> SharedApp
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    struct FnApp<F>(F);
    impl<F, R> App for FnApp<F>
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output = Response> + Send + 'static,
    {
        fn call(&self, req: Request) -> BoxFuture<'_, Response> {
            Box::pin((self.0)(req))
        }
    }
    Arc::new(FnApp(function))
}
