//! The account and container tier on SQLite.
//!
//! `broker` is what both kinds of database share, `connections` how they are opened; `account` and `container` hold a broker and a
//! server each, and `container` the container-updater, container-sync and the container-reconciler. `listing` walks names for both,
//! `listing_formats` writes them, `json_error` tells what is none. `replication` keeps the replicas of a
//! database alike, `auditor` reads all of them now and then.
//!
//! Not here yet: the sharder.

pub mod account;
mod auditor;
pub mod broker;
pub mod connections;
pub mod container;
mod content_type;
mod json_error;
pub mod listing;
mod listing_formats;
mod locations;
pub mod metadata;
mod pace;
pub mod replication;
mod server;
#[cfg(test)]
mod tests;

use service::Registry;

/// Add the apps of this crate to what configurations may name.
pub fn register(registry: &mut Registry) {
    registry.app("egg:swift#account", account::server::app);
    registry.app("egg:swift#container", container::server::app);
}
