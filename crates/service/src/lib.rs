//! What makes a process a Swift service.

pub mod http;
