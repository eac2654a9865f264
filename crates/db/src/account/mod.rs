//! The account tier: databases of container rows, the server over them, their replicator and auditor, and the reaper of deleted accounts.

pub mod auditor;
pub mod broker;
mod listing;
pub mod reaper;
mod replicated;
pub mod replicator;
mod schema;
pub mod server;
