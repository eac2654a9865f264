//! The account tier: databases of container rows, the server over them, their replicator and auditor.

pub mod auditor;
pub mod broker;
mod listing;
mod replicated;
pub mod replicator;
mod schema;
pub mod server;
