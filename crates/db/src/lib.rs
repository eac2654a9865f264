//! The account and container tier on SQLite.
