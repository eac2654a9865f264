//! Command lines: Swift's own for programs called by Swift's names, clap's for the rest.

pub mod optparse;
pub mod swift;
