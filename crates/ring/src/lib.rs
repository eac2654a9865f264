//! Rings: which devices store a partition, and where its handoffs go.
//!
//! `ring.rs` holds the ring itself and the order of handoffs, `io.rs` the `.ring.gz` files of formats 1 and 2, `file.rs` the
//! reloading of a ring that changes on disk and the set of rings of a Swift directory, `local.rs` which devices are on this
//! machine, `builder.rs` a small builder of new
//! rings. All of it is synchronous and free of any service.

mod builder;
mod file;
mod io;
mod local;
mod ring;

pub use builder::{BuilderError, RingBuilder};
pub use file::{DEFAULT_RELOAD_TIME, RingFile, Rings};
pub use io::{FormatVersion, RingError};
pub use local::{is_local_device, whataremyips};
pub use ring::{Device, MoreNodes, Node, Ring, RingData};
