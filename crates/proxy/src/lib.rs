//! The proxy: controllers and the filters of its pipeline.

pub mod environ;
pub mod subrequest;
