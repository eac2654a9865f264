//! The container-auditor: a container must be readable.

use std::path::Path;
use std::sync::Arc;

use common::config::{Conf, ConfigError};
use service::{Context, Daemon, recon};

use super::broker::{ContainerBroker, DATADIR};
use crate::auditor::{self, Audit, Kind};
use crate::broker::{Options, Result, Shared};

pub fn build(conf: &Conf, ctx: &Context) -> std::result::Result<Arc<dyn Daemon>, ConfigError> {
    let kind = Kind {
        name: "container-auditor",
        server_type: "container",
        datadir: DATADIR,
        recon_file: recon::CONTAINER_FILE,
        audit,
    };
    auditor::build(kind, conf, ctx)
}

fn audit(shared: &Arc<Shared>, db_file: &Path) -> Result<Audit> {
    let mut broker = ContainerBroker::new(shared, db_file, Options::default());
    Ok(if broker.is_deleted()? { Audit::Deleted } else { Audit::Passed })
}
