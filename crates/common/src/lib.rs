//! The nouns of Swift and the bytes they become: pure, synchronous, no tokio.

pub mod clock;
pub mod digest;
pub mod hash;
pub mod headers;
pub mod quote;
pub mod timestamp;

pub use clock::Clock;
pub use hash::{HashConf, ObjHash, Suffix};
pub use timestamp::Timestamp;
