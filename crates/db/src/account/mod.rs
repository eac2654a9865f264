//! The account tier: databases of container rows, the server over them, and their replicator.

pub mod broker;
mod listing;
mod replicated;
pub mod replicator;
mod schema;
pub mod server;
