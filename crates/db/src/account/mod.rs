//! The account tier: databases of container rows, and the server over them.

pub mod broker;
mod listing;
mod replicated;
mod schema;
pub mod server;
