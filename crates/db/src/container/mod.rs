//! The container tier: databases of object rows, the server over them, their replicator and auditor, and the daemon that reports their counts to accounts.

mod account_update;
pub mod auditor;
pub mod broker;
mod listing;
mod policy_conflict;
mod reconciler_queue;
mod replicated;
pub mod replicator;
pub mod rows;
mod schema;
pub mod server;
mod shard_range;
mod shards;
mod sync_to;
pub mod updater;
