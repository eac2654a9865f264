//! What makes a process a Swift service.
