//! What makes a process a Swift service.
//!
//! `http` is the wire; `pipeline` builds the apps of a server from its configuration and `server` runs them; `daemon`
//! runs what works in the background. Each gets a `context`: clock, logs, metrics, rings, disk pools.

pub mod access_log;
pub mod backend_ratelimit;
pub mod container_sync_realms;
pub mod context;
pub mod daemon;
pub mod daemonize;
pub mod direct_client;
mod disk_lane;
pub mod disk_pool;
pub mod handover;
pub mod healthcheck;
pub mod http;
pub mod internal_client;
pub mod log_format;
pub mod logs;
pub mod memcached;
pub mod metrics;
pub mod pipeline;
pub mod priority;
pub mod recon;
pub mod rng;
pub mod rsync;
pub mod server;
pub mod signals;
pub mod statsd;
pub mod supervisor;
pub mod trans_id;

pub use context::{Context, Process};
pub use daemon::{Daemon, DaemonArgs, Mode, Progress, Shutdown};
pub use disk_pool::DiskPools;
pub use logs::Logger;
pub use memcached::Cache;
pub use metrics::Metrics;
pub use pipeline::{Registry, load_app};
pub use rng::Rng;
pub use statsd::Statsd;
pub use trans_id::gen_trans_id;

/// The version of Swift that a service says it is.
pub const VERSION: &str = "2.38.3";
