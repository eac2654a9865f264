//! The object tier: DiskFile, object server, SSYNC and the object daemons.

pub mod diskfile;
pub mod ssync;
