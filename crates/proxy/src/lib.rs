//! The proxy: the app with its controllers, and the filters of its pipeline.
//!
//! `app` takes a request to its controller (`controllers`), which asks the storage servers (`backend`) of the nodes
//! that `node_iter` names and makes one response of their answers (`quorum`). `info` is what is known, and cached, of
//! accounts and containers. What filters share with the app stands in `environ`, `subrequest` and `swift_info`;
//! the filters themselves are in `middleware`.

pub mod affinity;
pub mod app;
pub mod backend;
pub mod controllers;
pub mod environ;
pub mod error_limiter;
pub mod info;
pub mod middleware;
pub mod mime_types;
pub mod namespaces;
pub mod node_iter;
pub mod options;
pub mod quorum;
pub mod required_filters;
pub mod subrequest;
pub mod swift_info;
#[cfg(test)]
mod testing;
pub mod timings;

use service::Registry;

/// Makes the proxy's app and filters known to pipelines.
pub fn register(registry: &mut Registry) {
    registry.app("egg:swift#proxy", app::app_factory);
    registry.adjust("egg:swift#proxy", required_filters::adjust);
    middleware::register(registry);
}
