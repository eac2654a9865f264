//! Pipelines of filters around an app, built from a paste configuration.
//!
//! A [`Registry`] knows the factories by the names that configurations use (`egg:swift#healthcheck`). Each crate adds its
//! own; the filters which every server may have (`healthcheck`, `recon`, `backend_ratelimit`) are there from the start. Around the whole
//! pipeline, whatever the configuration says, stands the front: it counts requests and answers `/metrics`
//! (`expose_metrics`, on for storage servers, off for others unless set).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use common::config::{Component, ConfigError, Paste, Section};

use crate::context::Context;
use crate::http::{App, BoxFuture, Method, Request, Response, SharedApp};
use crate::{backend_ratelimit, healthcheck, recon};

pub type AppFactory = fn(&Section, &Context) -> Result<SharedApp, ConfigError>;
pub type FilterFactory = fn(&Section, &Context, SharedApp) -> Result<SharedApp, ConfigError>;
/// Lets an app change the filters before it: Swift's `modify_wsgi_pipeline`.
pub type Adjust = fn(&mut Paste, &Context);

/// The filter below which a second copy serves backend requests of other filters.
const LOGGING_FILTER: &str = "egg:swift#proxy_logging";

/// The factories of apps and filters by name.
pub struct Registry {
    apps: HashMap<&'static str, AppFactory>,
    filters: HashMap<&'static str, FilterFactory>,
    adjusts: HashMap<&'static str, Adjust>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    pub fn new() -> Self {
        let mut registry =
            Registry { apps: HashMap::new(), filters: HashMap::new(), adjusts: HashMap::new() };
        registry
            .filter("egg:swift#backend_ratelimit", backend_ratelimit::filter)
            .filter("egg:swift#healthcheck", healthcheck::filter)
            .filter("egg:swift#recon", recon::filter);
        registry
    }

    pub fn app(&mut self, uses: &'static str, factory: AppFactory) -> &mut Self {
        self.apps.insert(uses, factory);
        self
    }

    pub fn filter(&mut self, uses: &'static str, factory: FilterFactory) -> &mut Self {
        self.filters.insert(uses, factory);
        self
    }

    /// `adjust` is called with every pipeline that ends in the app `uses`.
    pub fn adjust(&mut self, uses: &'static str, adjust: Adjust) -> &mut Self {
        self.adjusts.insert(uses, adjust);
        self
    }

    /// Whether a pipeline may name this filter.
    pub fn has_filter(&self, uses: &str) -> bool {
        self.filters.contains_key(uses)
    }

    fn make_app(&self, part: &Component, ctx: &Context) -> Result<SharedApp, ConfigError> {
        let factory = self.apps.get(&*part.uses).ok_or_else(|| unknown(part, self.apps.keys()))?;
        factory(&part.section, ctx)
    }

    fn make_filter(&self, part: &Component, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
        let factory = self.filters.get(&*part.uses).ok_or_else(|| unknown(part, self.filters.keys()))?;
        factory(&part.section, ctx, app)
    }
}

fn unknown<'a>(part: &Component, known: impl Iterator<Item = &'a &'static str>) -> ConfigError {
    let mut known: Vec<&str> = known.copied().collect();
    known.sort_unstable();
    let problem = format!("expected one of {}", known.join(", "));
    ConfigError::in_option(part.section.file(), part.section.name(), "use", &*part.uses, problem)
}

/// Builds the pipeline of `paste`: the outermost filter comes first.
pub fn load_app(paste: &Paste, registry: &Registry, ctx: &Context) -> Result<SharedApp, ConfigError> {
    let mut paste = paste.clone();
    if let Some(adjust) = registry.adjusts.get(&*paste.app.uses) {
        adjust(&mut paste, ctx);
    }
    let app = load_as_it_stands(&paste, registry, ctx)?;
    let is_storage = matches!(&*ctx.name, "account-server" | "container-server" | "object-server");
    let expose_metrics = paste.app.section.bool("expose_metrics", is_storage)?;
    for warning in paste.warnings() {
        ctx.logger.warning(warning);
    }
    Ok(Arc::new(Front { app, ctx: ctx.clone(), expose_metrics }))
}

/// Builds the pipeline of `paste` without anything that its configuration does not name: for who talks to it from within
/// the process.
pub fn load_as_it_stands(
    paste: &Paste,
    registry: &Registry,
    ctx: &Context,
) -> Result<SharedApp, ConfigError> {
    let final_app = registry.make_app(&paste.app, ctx)?;
    let mut app = Arc::clone(&final_app);
    let mut logging_app = None;
    for part in paste.filters.iter().rev() {
        app = registry.make_filter(part, ctx, app)?;
        if logging_app.is_none() && part.uses == LOGGING_FILTER {
            logging_app = Some(registry.make_filter(part, ctx, Arc::clone(&final_app))?);
        }
    }
    ctx.pipeline.set(Some(final_app), logging_app);
    Ok(app)
}

/// Reads the file of a server and builds its pipeline.
pub fn load_app_from(path: &Path, registry: &Registry, ctx: &Context) -> Result<SharedApp, ConfigError> {
    load_app(&Paste::load(path, "main")?, registry, ctx)
}

/// Before every pipeline: counts, and tells the counts.
struct Front {
    app: SharedApp,
    ctx: Context,
    expose_metrics: bool,
}

impl App for Front {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        if self.expose_metrics && req.method == Method::Get && req.path == "/metrics" {
            let text = self.ctx.metrics.render();
            return Box::pin(async move {
                Response::new(200).with_header("Content-Type", "text/plain; version=0.0.4").with_body(text)
            });
        }
        Box::pin(async move {
            let (start, method) = (Instant::now(), req.method.clone());
            let response = self.app.call(req).await;
            self.ctx.metrics.observe_request(method.as_str(), response.status.0, start.elapsed());
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::app_fn;

    const CONF: &str = "\
[pipeline:main]
pipeline = healthcheck mark-a mark-b object-server
[app:object-server]
use = egg:swift#object
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:mark-a]
use = egg:swift#mark
mark = a
[filter:mark-b]
use = egg:swift#mark
mark = b
";

    /// Appends its mark to the response's header `Marks`.
    fn mark(section: &Section, _: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
        let mark = section.str("mark", "?");
        Ok(app_fn(move |req| {
            let (app, mark) = (Arc::clone(&app), mark.clone());
            async move {
                let mut response = app.call(req).await;
                let marks = format!("{}{mark}", response.headers.get_str("Marks").unwrap_or_default());
                response.headers.insert("Marks", marks);
                response
            }
        }))
    }

    fn registry() -> Registry {
        let mut registry = Registry::new();
        registry.app("egg:swift#object", |_, _| Ok(app_fn(|_| async { Response::text(200, "app") })));
        registry.filter("egg:swift#mark", mark);
        registry
    }

    fn load(text: &str, name: &str) -> Result<SharedApp, ConfigError> {
        let ctx = Context::builder(name).build();
        load_app(&Paste::parse(text, "object-server.conf", "main")?, &registry(), &ctx)
    }

    #[tokio::test]
    async fn filters_stand_around_the_app_in_the_order_of_the_pipeline() {
        let app = load(CONF, "object-server").unwrap();
        let response = app.call(Request::new(Method::Get, "/x")).await;
        assert_eq!(response.headers.get_str("Marks"), Some("ba"));
        let response = app.call(Request::new(Method::Get, "/healthcheck")).await;
        assert_eq!((response.headers.get_str("Marks"), response.body.as_bytes()), (None, Some(&b"OK"[..])));
    }

    #[tokio::test]
    async fn metrics_are_told_by_storage_servers_alone_unless_asked_for() {
        let app = load(CONF, "object-server").unwrap();
        app.call(Request::new(Method::Get, "/x")).await;
        let response = app.call(Request::new(Method::Get, "/metrics")).await;
        let text = String::from_utf8(response.body.as_bytes().unwrap().to_vec()).unwrap();
        let line = "swift_requests_total{server=\"object-server\",method=\"GET\",status=\"200\"} 1";
        assert!(text.contains(line), "{text}");
        let app = load(CONF, "proxy-server").unwrap();
        let response = app.call(Request::new(Method::Get, "/metrics")).await;
        assert_eq!(response.body.as_bytes(), Some(&b"app"[..]));
    }

    #[test]
    fn an_unknown_factory_is_one_line_that_names_those_there_are() {
        let err = load(&CONF.replace("swift#mark", "swift#marc"), "object-server").err().unwrap().to_string();
        assert_eq!(
            err,
            "object-server.conf: [filter:mark-b] use = egg:swift#marc: expected one of \
             egg:swift#backend_ratelimit, egg:swift#healthcheck, egg:swift#mark, egg:swift#recon"
        );
    }

    #[test]
    fn an_app_may_change_the_filters_before_it() {
        let mut registry = registry();
        registry.adjust("egg:swift#object", |paste, _| paste.filters.clear());
        let ctx = Context::builder("object-server").build();
        let paste = Paste::parse(CONF, "object-server.conf", "main").unwrap();
        load_app(&paste, &registry, &ctx).unwrap();
        assert!(ctx.pipeline.final_app().is_some());
    }
}
