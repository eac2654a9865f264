//! The nouns of Swift and the bytes they become: pure, synchronous, no tokio.

pub mod buffers;
pub mod clock;
pub mod config;
pub mod constraints;
pub mod container_sync_realms;
pub mod digest;
pub mod expirer;
pub mod fs;
pub mod hash;
pub mod headers;
pub mod json;
pub mod pickle;
pub mod policy;
pub mod quote;
pub mod recon;
pub mod repr;
pub mod timestamp;
pub mod used_lately;
pub mod wsgi;

pub use clock::Clock;
pub use config::{Conf, ConfigError, Paste, Section, SwiftConf};
pub use constraints::Constraints;
pub use hash::{HashConf, ObjHash, Suffix};
pub use policy::{Policies, PolicyIndex, PolicyKind, StoragePolicy};
pub use timestamp::Timestamp;
