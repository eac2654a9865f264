//! What replication does to an account's database.

use std::path::Path;
use std::sync::Arc;

use ring::{Ring, RingError};
use serde_json::json;
use service::{Context, recon};

use super::broker::{self, Account, AccountBroker, AccountInfo, DATADIR};
use crate::broker::{DatabaseBroker, Options, Result, Shared};
use crate::replication::{Replicated, ReplicationInfo, Timestamps};

impl Replicated for AccountBroker {
    type Kind = Account;
    const DATADIR: &'static str = DATADIR;
    const REPLICATOR: &'static str = "account-replicator";
    const DEFAULT_PORT: u16 = 6202;
    const RECON_FILE: &'static str = recon::ACCOUNT_FILE;

    fn ring(ctx: &Context) -> std::result::Result<Arc<Ring>, RingError> {
        ctx.rings.account()
    }

    fn open(shared: &Arc<Shared>, db_file: &Path, options: Options) -> Result<Self> {
        Ok(Self::new(shared, db_file.to_owned(), options))
    }

    fn of_file(shared: &Arc<Shared>, file: &Path) -> Self {
        Self::new(shared, file.to_owned(), Options::received())
    }

    fn db(&mut self) -> &mut DatabaseBroker<Account> {
        &mut self.db
    }

    fn exists(&mut self) -> Result<bool> {
        Ok(self.db.exists())
    }

    fn replication_info(&mut self) -> Result<ReplicationInfo> {
        let info = self.info()?;
        let (metadata, max_row) = (self.db.raw_metadata()?, self.db.max_row()?);
        Ok(replication_info(info, metadata, max_row))
    }

    fn merge_timestamps(&mut self, theirs: &Timestamps) -> Result<()> {
        let now = self.db.shared.clock.now().normal();
        self.db.merge_timestamps(theirs, &now, broker::is_deleted)
    }

    fn is_reclaimable(&mut self, info: &ReplicationInfo) -> Result<bool> {
        Ok(info.count == 0)
    }
}

fn replication_info(info: AccountInfo, metadata: String, max_row: i64) -> ReplicationInfo {
    let told = ReplicationInfo::tell(&json!({
        "account": info.account,
        "created_at": info.created_at,
        "put_timestamp": info.put_timestamp,
        "delete_timestamp": info.delete_timestamp,
        "status_changed_at": info.status_changed_at,
        "object_count": info.object_count,
        "bytes_used": info.bytes_used,
        "hash": info.hash,
        "id": info.id,
        "count": info.container_count,
        "metadata": metadata,
        "max_row": max_row,
    }));
    ReplicationInfo {
        account: info.account,
        container: None,
        timestamps: Timestamps {
            created_at: info.created_at,
            put_timestamp: info.put_timestamp,
            delete_timestamp: info.delete_timestamp,
        },
        status_changed_at: info.status_changed_at,
        count: info.container_count,
        hash: info.hash,
        id: info.id,
        metadata,
        max_row,
        storage_policy_index: None,
        shard_max_row: None,
        is_looked_through: true,
        is_status_deleted: info.status == "DELETED",
        is_reported: true,
        is_sharded: false,
        told,
    }
}
