//! The account-auditor: besides being readable, an account must count as much as its storage policies do together.

use std::path::Path;
use std::sync::Arc;

use common::config::{Conf, ConfigError};
use service::{Context, Daemon, recon};

use super::broker::{AccountBroker, DATADIR};
use crate::auditor::{self, Audit, Kind};
use crate::broker::{Options, Result, Shared};

pub fn build(conf: &Conf, ctx: &Context) -> std::result::Result<Arc<dyn Daemon>, ConfigError> {
    let kind = Kind {
        name: "account-auditor",
        server_type: "account",
        datadir: DATADIR,
        recon_file: recon::ACCOUNT_FILE,
        audit,
    };
    auditor::build(kind, conf, ctx)
}

fn audit(shared: &Arc<Shared>, db_file: &Path) -> Result<Audit> {
    let mut broker = AccountBroker::new(shared, db_file.to_owned(), Options::default());
    if broker.is_deleted()? {
        return Ok(Audit::Deleted);
    }
    broker.migrate_policy_stats()?;
    let info = broker.info()?;
    let mut sums = [0; 3];
    for (_, stats) in broker.policy_stats()? {
        sums[0] += stats.container_count.unwrap_or(0);
        sums[1] += stats.object_count;
        sums[2] += stats.bytes_used;
    }
    let totals = [info.container_count, info.object_count, info.bytes_used];
    for ((key, total), sum) in ["container_count", "object_count", "bytes_used"].iter().zip(totals).zip(sums)
    {
        if total != sum {
            return Ok(Audit::Failed(format!(
                "The total {key} for the account {} ({total}) does not match the sum of {key} across policies ({sum})",
                info.account
            )));
        }
    }
    Ok(Audit::Passed)
}
