//! What replication does to a container's database: besides rows, timestamps and metadata, replicas agree on the storage policy and
//! exchange their shard ranges.

use std::path::Path;
use std::sync::Arc;

use common::timestamp::Timestamp;
use ring::{Ring, RingError};
use rusqlite::Connection;
use serde_json::{Value, json};
use service::{Context, recon};

use super::broker::{Container, ContainerBroker, ContainerInfo, DATADIR, DbState, ToReplicate};
use super::policy_conflict::{PolicyInfo, is_theirs_right};
use super::shard_range::{self, ShardRange};
use crate::broker::{DatabaseBroker, Options, Result, Shared, Synced};
use crate::replication::{RemoteInfo, Replicated, ReplicationInfo, Timestamps};

impl Replicated for ContainerBroker {
    type Kind = Container;
    const DATADIR: &'static str = DATADIR;
    const REPLICATOR: &'static str = "container-replicator";
    const DEFAULT_PORT: u16 = 6201;
    const RECON_FILE: &'static str = recon::CONTAINER_FILE;

    fn ring(ctx: &Context) -> std::result::Result<Arc<Ring>, RingError> {
        ctx.rings.container()
    }

    fn open(shared: &Arc<Shared>, db_file: &Path, options: Options) -> Result<Self> {
        let mut broker = Self::new(shared, db_file, options);
        // Of a container that is being sharded, rows must not get into the retiring database.
        broker.find_files()?;
        Ok(broker)
    }

    fn of_file(shared: &Arc<Shared>, file: &Path) -> Self {
        ContainerBroker::of_file(shared, file)
    }

    fn db(&mut self) -> &mut DatabaseBroker<Container> {
        &mut self.db
    }

    fn exists(&mut self) -> Result<bool> {
        ContainerBroker::exists(self)
    }

    fn replication_info(&mut self) -> Result<ReplicationInfo> {
        let (info, more) = self.info_to_replicate()?;
        Ok(replication_info(info, more))
    }

    fn merge_timestamps(&mut self, theirs: &Timestamps) -> Result<()> {
        let now = self.db.shared.clock.now().normal();
        let info = self.info()?;
        // Where the objects are elsewhere, their count does not change with the timestamps.
        let elsewhere =
            matches!(info.db_state, DbState::Sharding | DbState::Sharded).then_some(info.object_count);
        self.db.merge_timestamps(theirs, &now, |sqlite| is_deleted(sqlite, elsewhere))
    }

    fn is_reclaimable(&mut self, _info: &ReplicationInfo) -> Result<bool> {
        let path = self.path()?;
        if self.is_root_container()?
            && (self.has_other_shard_ranges(&path)? || self.db_state(&path)? == DbState::Sharding)
        {
            return Ok(false);
        }
        self.is_empty()
    }

    fn reclaim_more(&mut self, info: &ReplicationInfo, age: &str) -> Result<bool> {
        if info.shard_max_row.is_none_or(|highest| highest < 0) {
            return Ok(false);
        }
        let path = self.path()?;
        let deleted = self.db.transaction(Synced::Normal, |sqlite| {
            let sql = "DELETE FROM shard_range WHERE deleted = 1 AND timestamp < ? AND name != ?";
            sqlite.prepare_cached(sql)?.execute([age, &path])
        })?;
        Ok(deleted > 0)
    }

    fn better_policy(ours: &ReplicationInfo, theirs: &RemoteInfo) -> Option<i64> {
        let policy = theirs.policy.as_ref()?;
        let ours = PolicyInfo {
            storage_policy_index: ours.storage_policy_index?,
            put_timestamp: &ours.timestamps.put_timestamp,
            delete_timestamp: &ours.timestamps.delete_timestamp,
            status_changed_at: &ours.status_changed_at,
            count: ours.count,
        };
        let theirs = PolicyInfo {
            storage_policy_index: policy.storage_policy_index,
            put_timestamp: &theirs.timestamps.put_timestamp,
            delete_timestamp: &theirs.timestamps.delete_timestamp,
            status_changed_at: &policy.status_changed_at,
            count: policy.count,
        };
        is_theirs_right(&ours, &theirs).then_some(theirs.storage_policy_index)
    }

    fn take_policy(&mut self, policy_index: i64) -> Result<()> {
        let now = self.db.shared.clock.now().normal();
        self.set_storage_policy_index(policy_index, &now)
    }

    fn new_id_resets(sqlite: &Connection) -> rusqlite::Result<()> {
        let sql = "UPDATE container_stat SET reported_put_timestamp = 0, reported_delete_timestamp = 0, \
                   reported_object_count = 0, reported_bytes_used = 0";
        sqlite.execute(sql, []).map(drop)
    }

    fn take_answer(&mut self, ours: &ReplicationInfo, theirs: &RemoteInfo) -> Result<()> {
        if let Some(policy_index) = Self::better_policy(ours, theirs) {
            self.take_policy(policy_index)?;
        }
        if ours.timestamps != theirs.timestamps {
            self.merge_timestamps(&theirs.timestamps)?;
        }
        Ok(())
    }

    fn must_stay(&mut self) -> Result<Option<String>> {
        if !self.sharding_required()? {
            return Ok(None);
        }
        let path = self.path()?;
        Ok(Some(format!("requires sharding, state {}", self.db_state(&path)?.as_str())))
    }

    fn sharding_initiated(&mut self) -> Result<bool> {
        ContainerBroker::sharding_initiated(self)
    }

    fn shard_range_data(&mut self) -> Result<Option<Value>> {
        let ranges = self.db.read(shard_range::all)?;
        Ok(Some(ranges.iter().map(ShardRange::to_json).collect()))
    }

    fn merge_shard_range_data(&mut self, shards: &Value, source: &str) -> Result<bool> {
        let Some(theirs) = ShardRange::list_from_json(shards) else { return Ok(false) };
        let path = self.path()?;
        let own = self.db.read(shard_range::all)?.into_iter().find(|range| range.name == path);
        let theirs = self.without_unfinished_own(theirs, own.as_ref(), source);
        if theirs.is_empty() {
            return Ok(true);
        }
        self.merge_shard_ranges(theirs)?;
        Ok(true)
    }
}

impl ContainerBroker {
    /// A container that has begun to be sharded has an epoch in its own shard range. One without from a replica that knows nothing
    /// of it would undo that, however young (https://bugs.launchpad.net/swift/+bug/1980451).
    fn without_unfinished_own(
        &self,
        theirs: Vec<ShardRange>,
        own: Option<&ShardRange>,
        source: &str,
    ) -> Vec<ShardRange> {
        let Some(own) = own.filter(|own| own.epoch.is_some()) else { return theirs };
        let is_unfinished = |range: &ShardRange| {
            range.name == own.name && range.epoch.as_deref().unwrap_or_default().is_empty()
        };
        let (unfinished, kept): (Vec<_>, Vec<_>) = theirs.into_iter().partition(is_unfinished);
        for range in unfinished {
            let mut merged = range.clone();
            if merged.merge(own) && merged.epoch.is_none() {
                (self.db.shared.log_error)(&format!(
                    "Ignoring remote osr w/o epoch, own_sr: {}, remote_sr: {}, source: {source}",
                    own.to_json(),
                    range.to_json()
                ));
            }
        }
        kept
    }
}

/// Whether the stat table says that the container is deleted; `elsewhere` counts objects that are in other databases.
fn is_deleted(sqlite: &Connection, elsewhere: Option<i64>) -> rusqlite::Result<bool> {
    sqlite
        .prepare_cached("SELECT put_timestamp, delete_timestamp, object_count FROM container_stat")?
        .query_row([], |row| {
            let at = |index| {
                let text: Option<String> = row.get(index)?;
                Ok::<_, rusqlite::Error>(Timestamp::parse(&text.unwrap_or_default()).unwrap_or_default())
            };
            let count = match elsewhere {
                Some(count) => count,
                None => crate::broker::lenient_int(row, 2)?.unwrap_or(0),
            };
            Ok(count == 0 && at(1)? > at(0)?)
        })
}

fn replication_info(info: ContainerInfo, more: ToReplicate) -> ReplicationInfo {
    let ToReplicate { metadata, max_row, shard_max_row, is_looked_through } = more;
    let told = ReplicationInfo::tell(&json!({
        "account": info.account,
        "container": info.container,
        "created_at": info.created_at,
        "put_timestamp": info.put_timestamp,
        "delete_timestamp": info.delete_timestamp,
        "status": info.status,
        "status_changed_at": info.status_changed_at,
        "bytes_used": info.bytes_used,
        "reported_put_timestamp": info.reported_put_timestamp,
        "reported_delete_timestamp": info.reported_delete_timestamp,
        "reported_object_count": info.reported_object_count,
        "reported_bytes_used": info.reported_bytes_used,
        "hash": info.hash,
        "id": info.id,
        "x_container_sync_point1": info.x_container_sync_point1,
        "x_container_sync_point2": info.x_container_sync_point2,
        "storage_policy_index": info.storage_policy_index,
        "db_state": info.db_state.as_str(),
        "count": info.object_count,
        "metadata": metadata,
        "max_row": max_row,
        "shard_max_row": shard_max_row,
    }));
    let is_reported = info.reported_put_timestamp == info.put_timestamp
        && info.reported_delete_timestamp == info.delete_timestamp
        && info.reported_bytes_used == info.bytes_used
        && info.reported_object_count == info.object_count;
    ReplicationInfo {
        account: info.account,
        container: Some(info.container),
        timestamps: Timestamps {
            created_at: info.created_at,
            put_timestamp: info.put_timestamp,
            delete_timestamp: info.delete_timestamp,
        },
        status_changed_at: info.status_changed_at,
        count: info.object_count,
        hash: info.hash,
        id: info.id,
        metadata,
        max_row,
        storage_policy_index: Some(info.storage_policy_index),
        shard_max_row: Some(shard_max_row),
        is_looked_through,
        is_status_deleted: info.status == "DELETED",
        is_reported,
        is_sharded: info.db_state == DbState::Sharded,
        told,
    }
}
