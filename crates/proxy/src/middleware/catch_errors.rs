//! `catch_errors`: leftmost in the pipeline. Gives every request its transaction id, answers 500 where the rest of
//! the pipeline panics, and holds an app to the Content-Length that it promised.
//!
//! Too few bytes would leave the client waiting, too many would be taken for the next response: in both cases
//! the body ends with an error, which makes the server close the connection.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use common::config::{ConfigError, Section};
use common::headers::{X_OPENSTACK_REQUEST_ID, X_TRANS_ID, X_TRANS_ID_EXTRA};
use futures_util::FutureExt as _;
use service::Context;
use service::http::{App, Body, BodyError, BodyStream, BoxFuture, Request, Response, SharedApp};
use service::trans_id::gen_trans_id;

use crate::environ::ProxyContext;

/// How much of a client's `X-Trans-Id-Extra` becomes part of the transaction id.
const MAX_TRANS_ID_EXTRA: usize = 32;

pub struct CatchErrors {
    app: SharedApp,
    ctx: Context,
    trans_id_suffix: String,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    Ok(Arc::new(CatchErrors { app, ctx: ctx.clone(), trans_id_suffix: section.str("trans_id_suffix", "") }))
}

impl App for CatchErrors {
    fn call(&self, mut req: Request) -> BoxFuture<'_, Response> {
        let trans_id = self.new_trans_id(&req);
        req.env.trans_id.clone_from(&trans_id);
        req.env.insert(ProxyContext(self.ctx.clone()));
        let is_head = req.is_head();
        Box::pin(async move {
            let mut resp = match AssertUnwindSafe(self.app.call(req)).catch_unwind().await {
                Ok(resp) => resp,
                Err(panic) => {
                    let logger = self.ctx.logger.with_txn(&trans_id);
                    logger.error(format_args!("Error: An error occurred: {}", panic_message(&*panic)));
                    Response::text(500, "An error occurred")
                }
            };
            if !is_head {
                enforce_content_length(&mut resp);
            }
            resp.headers.insert(X_TRANS_ID, trans_id.as_str());
            resp.headers.insert(X_OPENSTACK_REQUEST_ID, trans_id.as_str());
            resp
        })
    }
}

impl CatchErrors {
    fn new_trans_id(&self, req: &Request) -> String {
        let now = self.ctx.clock.unix_secs();
        match req.headers.get_str(X_TRANS_ID_EXTRA).filter(|extra| !extra.is_empty()) {
            None => gen_trans_id(&self.ctx.rng, now, &self.trans_id_suffix),
            Some(extra) => {
                let extra: String = extra.chars().take(MAX_TRANS_ID_EXTRA).collect();
                gen_trans_id(&self.ctx.rng, now, &format!("{}-{extra}", self.trans_id_suffix))
            }
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message,
        _ => "panic",
    }
}

fn enforce_content_length(resp: &mut Response) {
    let Some(promised) = resp.headers.get_int::<u64>("Content-Length") else {
        return;
    };
    if resp.body.as_bytes().is_some_and(|bytes| bytes.len() as u64 == promised) || resp.status.is_bodyless() {
        return;
    }
    let inner = std::mem::take(&mut resp.body);
    resp.body = Body::stream(ByteEnforcer { inner, left: promised, surplus: false }).with_length(promised);
}

/// A body of exactly `left` more bytes.
struct ByteEnforcer {
    inner: Body,
    left: u64,
    /// A piece had to be cut.
    surplus: bool,
}

impl BodyStream for ByteEnforcer {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            if self.surplus {
                return Some(Err(BodyError::TooLong));
            }
            match self.inner.next().await {
                Some(Ok(chunk)) if chunk.len() as u64 <= self.left => {
                    self.left -= chunk.len() as u64;
                    Some(Ok(chunk))
                }
                Some(Ok(mut chunk)) if self.left > 0 => {
                    chunk.truncate(self.left as usize);
                    self.left = 0;
                    self.surplus = true;
                    Some(Ok(chunk))
                }
                Some(Ok(_)) => Some(Err(BodyError::TooLong)),
                None if self.left > 0 => {
                    Some(Err(BodyError::Other(format!("Expected another {} bytes", self.left))))
                }
                other => other,
            }
        })
    }

    fn content_length(&self) -> Option<u64> {
        Some(self.left)
    }

    fn abandon(self: Box<Self>) -> Option<BoxFuture<'static, ()>> {
        Some(Box::pin(self.inner.abandon()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::http::{Method, app_fn};

    fn filter(app: SharedApp) -> CatchErrors {
        CatchErrors { app, ctx: Context::builder("proxy-server").build(), trans_id_suffix: "-eu".to_owned() }
    }

    async fn body_of(promised: &'static str, pieces: &'static [&'static str]) -> (String, Option<String>) {
        let filter = filter(app_fn(move |_| async move {
            let (tx, body) = Body::channel(8);
            for piece in pieces {
                tx.send(*piece).await.unwrap();
            }
            Response::new(200).with_header("Content-Length", promised).with_body(body)
        }));
        let mut resp = filter.call(Request::new(Method::Get, "/")).await;
        let mut seen = String::new();
        loop {
            match resp.body.next().await {
                Some(Ok(chunk)) => seen.push_str(std::str::from_utf8(&chunk).unwrap()),
                Some(Err(error)) => return (seen, Some(error.to_string())),
                None => return (seen, None),
            }
        }
    }

    #[tokio::test]
    async fn body_of_the_promised_length_passes() {
        assert_eq!(body_of("5", &["abc", "de"]).await, ("abcde".to_owned(), None));
    }

    #[tokio::test]
    async fn short_body_ends_with_an_error() {
        let (seen, error) = body_of("7", &["abc", "de"]).await;
        assert_eq!((seen.as_str(), error.as_deref()), ("abcde", Some("Expected another 2 bytes")));
    }

    #[tokio::test]
    async fn long_body_is_cut_and_ends_with_an_error() {
        let (seen, error) = body_of("4", &["abc", "de"]).await;
        assert_eq!(seen, "abcd");
        assert!(error.is_some());
    }

    #[tokio::test]
    async fn panic_becomes_500_with_a_transaction_id() {
        let filter = filter(app_fn(|_| async { panic!("boom") }));
        let req = Request::new(Method::Get, "/").with_header("X-Trans-Id-Extra", "a".repeat(40));
        let mut resp = filter.call(req).await;
        assert_eq!(resp.status.0, 500);
        assert_eq!(resp.body.collect(100).await.unwrap(), "An error occurred");
        let trans_id = resp.headers.get_str("X-Trans-Id").unwrap();
        assert!(
            trans_id.starts_with("tx") && trans_id.ends_with(&format!("-eu-{}", "a".repeat(32))),
            "{trans_id}"
        );
        assert_eq!(resp.headers.get_str("X-Openstack-Request-Id"), Some(trans_id));
    }
}
