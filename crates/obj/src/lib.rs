//! The object tier: DiskFile, object server, SSYNC and the object daemons.

pub mod auditor;
mod delete;
pub mod diskfile;
pub mod expirer;
mod get;
mod multipart;
mod post;
mod put;
mod rate_limiter;
pub mod reconstructor;
pub mod relinker;
pub mod replicator;
mod rush;
pub mod server;
pub mod ssync;
#[cfg(test)]
mod testing;
mod update;
pub mod updater;

use service::pipeline::Registry;

/// Tells a registry what this crate has for pipelines.
pub fn register(registry: &mut Registry) {
    registry.app("egg:swift#object", server::app);
}
