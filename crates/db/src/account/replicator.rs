//! The account-replicator.

use std::sync::Arc;

use common::config::{Conf, ConfigError};
use service::{Context, Daemon};

use super::broker::AccountBroker;
use crate::replication::replicator::{self, NoHooks};

pub fn build(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    replicator::build::<AccountBroker>(conf, ctx, |_, _, _| Ok(Box::new(NoHooks)))
}
