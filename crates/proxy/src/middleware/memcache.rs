//! `cache` (Swift's `egg:swift#memcache`): gives every request the cache that all proxies share.

use std::path::Path;
use std::sync::Arc;

use common::config::{ConfigError, Section};
use service::Context;
use service::http::{App, BoxFuture, Request, Response, SharedApp};
use service::memcached::Cache;

use crate::environ::SwiftCache;

pub struct Memcache {
    app: SharedApp,
    cache: Cache,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let swift_dir: &Path = &ctx.swift_conf.dir;
    let cache = Cache::from_section(section, swift_dir, &ctx.clock, &ctx.logger, &ctx.statsd)?;
    Ok(Arc::new(Memcache { app, cache }))
}

impl App for Memcache {
    fn call(&self, mut req: Request) -> BoxFuture<'_, Response> {
        req.env.insert(SwiftCache(self.cache.clone()));
        self.app.call(req)
    }
}
