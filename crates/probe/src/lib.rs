//! Whole clusters under test and under load, with real Swift on the other end. Never shipped.

pub mod cluster;
pub mod kills;
pub mod load;
pub mod node;
pub mod peer;
pub mod ports;
pub mod syslog;
