//! SSYNC: how an object replicator brings one partition of another node up to date over a single request.
//!
//! One `SSYNC /DEVICE/PARTITION` request carries a conversation in its two chunked bodies:
//! ```text
//! sender                                         receiver
//!                                                200 at once, and an empty line
//! :MISSING_CHECK: START
//! HASH TIMESTAMP [m:DELTA[,t:DELTA]][,durable:False]     one line per object
//! :MISSING_CHECK: END
//!                                                :MISSING_CHECK: START
//!                                                HASH d|m|dm             one line per wanted object
//!                                                :MISSING_CHECK: END
//! :UPDATES: START
//! PUT|POST|DELETE /account/container/object      a head, an empty line and, of a PUT, Content-Length bytes
//! :UPDATES: END
//!                                                :UPDATES: START
//!                                                :UPDATES: END
//! ```
//! or, at any point, `:ERROR: STATUS 'reason'` from the receiver, which then closes.
//!
//! `protocol.rs` is the grammar, `sender.rs` with `update.rs` and `foreseen.rs` the end in the replicator, `receiver.rs`
//! and `session.rs` with `tally.rs` the end in the object server.

mod foreseen;
mod input;
pub mod protocol;
pub mod receiver;
pub mod sender;
pub mod session;
mod tally;
mod update;

pub use receiver::SsyncReceiver;
pub use update::Unchecked;
