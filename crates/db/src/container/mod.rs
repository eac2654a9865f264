//! The container tier: databases of object rows, the server over them, their replicator and auditor, and the daemons that
//! report their counts to accounts and sync their objects elsewhere.

mod account_update;
pub mod auditor;
pub mod broker;
mod json_row;
mod listing;
mod policy_conflict;
pub mod reconciler;
pub mod reconciler_queue;
mod replicated;
pub mod replicator;
pub mod rows;
mod schema;
pub mod server;
mod shard_body;
mod shard_listing;
pub mod shard_range;
mod shards;
pub mod sync;
mod sync_store;
mod sync_to;
mod tally;
pub mod updater;
