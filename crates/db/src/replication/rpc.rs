//! The REPLICATE verb of the account and container servers: `REPLICATE /DEVICE/PARTITION/HASH` with a JSON list `[op, args...]`.
//!
//! ```text
//! sync MAX_ROW HASH ID CREATED_AT PUT_TIMESTAMP DELETE_TIMESTAMP METADATA [STATUS_CHANGED_AT COUNT POLICY]
//!                              merge what is told; 200 with our replication info and `point`, 404 if there is no database
//! merge_items ROWS ID          merge rows of the database ID
//! merge_syncs POINTS           take over how far the sender has come with others
//! complete_rsync ID [NAME]     the file DEVICE/tmp/ID becomes the database, unless there is one
//! rsync_then_merge ID          our rows are merged into DEVICE/tmp/ID, which then replaces our database
//! get_shard_ranges             200 with a JSON list
//! merge_shard_ranges RANGES ID
//! ```
//!
//! Stricter than Swift: a file that rsync brought is synced before it gets its name, and never quarantined with the directory it lies in; rows that come
//! while `rsync_then_merge` works are not lost with the file that it replaces; and its sync point for the sender is the highest
//! row which the sender has sent, where Swift takes the highest row after its own have been merged on top, and so may skip
//! as many of the sender's next.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::fs;
use serde_json::Value;
use service::http::{Request, Response};
use service::{Context, logs::Logger};

use super::known::{KnownDatabases, MOST_METADATA, MOST_POINTS};
use super::{Items, MergeItems, RemoteInfo, Replicated, ReplicationInfo, SyncPoint, Syncs};
use crate::broker::{BrokerError, Kind, Options, Shared, is_missing};
use crate::metadata::Metadata;
use crate::server::{Answer, Databases, Devices, Target, broker_failure, html_answer, text_answer};
use common::json;

/// The body of a request: rows, as many as a `per_diff` of 10,000 has of the longest names.
pub const MAX_BODY: usize = 256 << 20;
/// Rows that are merged at a time while a database is copied into another.
const MERGE_AT_A_TIME: usize = 1000;

/// A database as it answers those who ask to sync with it.
pub struct KnownReplica {
    info: ReplicationInfo,
    metadata: Metadata,
    incoming: Vec<SyncPoint>,
}

impl KnownReplica {
    /// The answer to a request that changes nothing; `None` if it may change something.
    fn answer<B: Replicated>(&self, theirs: &RemoteInfo) -> Option<Response> {
        let info = &self.info;
        let news = B::better_policy(info, theirs).is_some()
            || info.timestamps != theirs.timestamps
            || Metadata::parse(&theirs.metadata)
                .is_none_or(|metadata| self.metadata.is_changed_by(&metadata));
        let found = self.incoming.iter().find(|point| point.remote_id == theirs.id);
        let point = found.map_or(-1, |point| point.sync_point);
        let reaches_further = theirs.hash == info.hash && point < theirs.point;
        if news || reaches_further { None } else { Some(told(info, point)) }
    }
}

/// The answer to `sync`.
fn told(info: &ReplicationInfo, point: i64) -> Response {
    html_answer(200, format!("{}, \"point\": {point}}}", info.told))
}

/// Answers a request, on a thread of its device.
pub fn answer<B: Replicated>(
    ctx: &Context,
    databases: &Databases,
    devices: &Devices,
    req: &Request,
    body: &[u8],
) -> Answer<Response> {
    let target = Target::of(req, 3, 3, false)?;
    let device = devices.check_drive_and_space(&target.drive)?;
    if let Some(items) = MergeItems::read(body) {
        let db_file = hash_file(&device, B::DATADIR, &target)?;
        return open::<B>(&databases.shared, &device, &db_file)
            .and_then(|broker| merge(broker, items))
            .map_err(|failure| failure.answer(ctx, req, &target.drive));
    }
    let args: Value = serde_json::from_slice(body).map_err(|error| text_answer(400, error.to_string()))?;
    let (Value::Array(_) | Value::Object(_)) = &args else {
        return Err(html_answer(400, "Invalid object type"));
    };
    let Some((op, args)) = args.as_array().and_then(|args| args.split_first()) else { return Err(bad()) };
    let rpc = Rpc::<B> {
        shared: &databases.shared,
        known: &databases.known,
        logger: &ctx.logger,
        db_file: hash_file(&device, B::DATADIR, &target)?,
        device,
        drive: &target.drive,
        kind: PhantomData,
    };
    rpc.dispatch(op, args).map_err(|failure| failure.answer(ctx, req, &target.drive))
}

struct Rpc<'a, B> {
    shared: &'a Arc<Shared>,
    known: &'a KnownDatabases<KnownReplica>,
    logger: &'a Logger,
    device: PathBuf,
    drive: &'a str,
    /// Where the database is or would be.
    db_file: PathBuf,
    kind: PhantomData<B>,
}

enum Failure {
    Answer(Response),
    Broker(BrokerError),
}

impl Failure {
    fn answer(self, ctx: &Context, req: &Request, drive: &str) -> Response {
        match self {
            Self::Answer(response) => response,
            Self::Broker(error) => broker_failure(ctx, req, drive, &error),
        }
    }
}

impl From<Response> for Failure {
    fn from(response: Response) -> Self {
        Self::Answer(response)
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

type Outcome = Result<Response, Failure>;

/// Words that a request of this kind has not, for which Swift has only a traceback.
fn bad() -> Response {
    Response::error(500)
}

/// Not there.
fn not_found() -> Failure {
    Failure::Answer(Response::error(404))
}

fn accepted() -> Outcome {
    Ok(Response::error(202))
}

/// The database of a hash; what is no hash is no database.
fn hash_file(device: &Path, datadir: &str, target: &Target) -> Answer<PathBuf> {
    let Some(hash) = common::ObjHash::parse(&target.account) else { return Err(Response::error(404)) };
    Ok(crate::server::db_path(device, datadir, &target.partition, &hash))
}

/// A word that is the name of a file.
fn file_name(word: Option<&Value>) -> Result<&str, Failure> {
    let name = word.and_then(Value::as_str).ok_or_else(bad)?;
    let is_name = !name.is_empty() && !name.contains('/') && !matches!(name, "." | "..");
    if is_name { Ok(name) } else { Err(not_found()) }
}

impl<B: Replicated> Rpc<'_, B> {
    fn dispatch(&self, op: &Value, args: &[Value]) -> Outcome {
        match op.as_str() {
            Some("complete_rsync") => return self.complete_rsync(args),
            Some("rsync_then_merge") => return self.rsync_then_merge(args),
            Some("sync") => return self.sync(args),
            _ => {}
        }
        let mut broker = open::<B>(self.shared, &self.device, &self.db_file)?;
        match op.as_str() {
            Some("merge_items") => {
                let [Value::Array(items), source, ..] = args else { return Err(bad().into()) };
                let items = MergeItems::<B::Kind> {
                    records: items
                        .iter()
                        .map(<B::Kind as Kind>::from_json)
                        .collect::<Option<_>>()
                        .ok_or_else(bad)?,
                    source: source.as_str().map(str::to_owned),
                    last: items.iter().filter_map(|item| item.get("ROWID")?.as_i64()).max(),
                };
                merge(broker, items)
            }
            Some("merge_syncs") => {
                let points = args.first().and_then(SyncPoint::list_from_json).ok_or_else(bad)?;
                broker.db().merge_syncs(&points, Syncs::Incoming)?;
                accepted()
            }
            Some("get_shard_ranges") => match broker.shard_range_data()? {
                Some(ranges) => Ok(Response::new(200)
                    .with_header("Content-Type", "application/json")
                    .with_body(dump(&ranges))),
                None => Err(bad().into()),
            },
            Some("merge_shard_ranges") => {
                let merged = match args.first() {
                    Some(ranges) => broker.merge_shard_range_data(ranges, "repl_req")?,
                    None => false,
                };
                if merged { accepted() } else { Err(bad().into()) }
            }
            _ => Err(bad().into()),
        }
    }

    fn sync(&self, args: &[Value]) -> Outcome {
        make_tmp(&self.device)?;
        let theirs = RemoteInfo::from_sync_args(args);
        let known = theirs.as_ref().zip(self.known.get(&self.db_file));
        if let Some(answer) = known.and_then(|(theirs, known)| known.answer::<B>(theirs)) {
            return Ok(answer);
        }
        let look = self.known.look(&self.db_file);
        let mut broker = existing::<B>(self.shared, &self.db_file)?;
        let theirs = theirs.ok_or_else(bad)?;
        let mut info = match broker.replication_info() {
            Err(BrokerError::Sqlite(_, error)) if is_missing(&error, "no such table") => {
                self.logger.error(format_args!("Quarantining DB, db: {}", broker.db().db_file.display()));
                broker.db().quarantine(&error.to_string());
                return Err(not_found());
            }
            other => other?,
        };
        if let Some(policy_index) = B::better_policy(&info, &theirs) {
            broker.take_policy(policy_index)?;
            info = broker.replication_info()?;
        }
        let ours = Metadata::parse(&info.metadata);
        match Metadata::parse(&theirs.metadata) {
            Some(metadata) if ours.as_ref().is_some_and(|ours| !ours.is_changed_by(&metadata)) => {}
            Some(metadata) => broker.db().update_metadata(&metadata, None)?,
            None => self.logger.error(format_args!("Unable to decode remote metadata {:?}", theirs.metadata)),
        }
        if info.timestamps != theirs.timestamps {
            broker.merge_timestamps(&theirs.timestamps)?;
        }
        let mut point = broker.db().sync_point(&theirs.id, Syncs::Incoming)?;
        if theirs.hash == info.hash && point < theirs.point {
            let reached = SyncPoint { remote_id: theirs.id, sync_point: theirs.point };
            broker.db().merge_syncs(&[reached], Syncs::Incoming)?;
            point = theirs.point;
        }
        let answer = told(&info, point);
        if let (Some(look), Some(metadata)) = (look, ours) {
            let incoming = broker.db().sync_points(Syncs::Incoming)?;
            if info.metadata.len() <= MOST_METADATA && incoming.len() <= MOST_POINTS {
                self.known.learn(look, KnownReplica { info, metadata, incoming });
            }
        }
        Ok(answer)
    }

    fn complete_rsync(&self, args: &[Value]) -> Outcome {
        let (id, received) = self.received(args)?;
        let db_file = match args.get(1) {
            Some(_) => self.db_file.with_file_name(file_name(args.get(1))?),
            None => self.db_file.clone(),
        };
        let hash = self.db_file.file_stem().unwrap_or_default().as_encoded_bytes();
        let name = db_file.file_name().unwrap_or_default().as_encoded_bytes();
        if !name.starts_with(hash) || !name.ends_with(b".db") {
            return Err(not_found());
        }
        if db_file.exists() || !received.exists() {
            return Err(not_found());
        }
        let mut broker = B::of_file(self.shared, &received);
        let sync_point = highest_row::<B>(&mut broker)?;
        broker.db().new_id(id, sync_point, self.drive, B::new_id_resets)?;
        broker.db().sync()?;
        publish(&received, &db_file)
    }

    fn rsync_then_merge(&self, args: &[Value]) -> Outcome {
        let (id, received) = self.received(args)?;
        let mut ours = self.merge_partner(&received)?;
        let mut theirs = B::of_file(self.shared, &received);
        let sync_point = highest_row::<B>(&mut theirs)?;
        ours.db().commit_puts()?;
        let last = copy_rows(&mut ours, &mut theirs, -1)?;
        theirs.db().merge_syncs(&ours.db().sync_points(Syncs::Incoming)?, Syncs::Incoming)?;
        if let Some(ranges) = ours.shard_range_data()? {
            theirs.merge_shard_range_data(&ranges, "rsync")?;
        }
        theirs.db().new_id(id, sync_point, self.drive, B::new_id_resets)?;
        // From here on rows wait in the pending file, which outlives the database.
        let lock = ours.db().lock()?;
        ours.db().merge_pending(None)?;
        copy_rows(&mut ours, &mut theirs, last)?;
        theirs.db().update_metadata(&ours.db().metadata()?, None)?;
        self.merge_partner(&received)?;
        theirs.db().sync()?;
        let db_file = ours.db().db_file.clone();
        ours.db().close();
        fs::fail::hit("db.before_rename").map_err(|error| BrokerError::Io(received.clone(), error))?;
        fs::rename_durable(&received, &db_file).map_err(|error| BrokerError::Io(received, error))?;
        drop(lock);
        Ok(Response::new(204))
    }

    /// The id that a file was sent under, and the file.
    fn received<'r>(&self, args: &'r [Value]) -> Result<(&'r str, PathBuf), Failure> {
        let id = file_name(args.first())?;
        Ok((id, self.device.join("tmp").join(id)))
    }

    /// Our database, if it can be merged into the one received.
    fn merge_partner(&self, received: &Path) -> Result<B, Failure> {
        let mut ours = B::open(self.shared, &self.db_file, Options::default())?;
        if !ours.exists()? || !received.exists() || ours.sharding_initiated()? {
            return Err(not_found());
        }
        Ok(ours)
    }
}

/// Give a finished database its name.
fn publish(received: &Path, db_file: &Path) -> Outcome {
    let failed = |error| BrokerError::Io(received.to_owned(), error);
    let dir = db_file.parent().unwrap_or(Path::new("."));
    fs::mkdirs(dir).map_err(failed)?;
    fs::fail::hit("db.before_rename").map_err(failed)?;
    // A database that was created meanwhile stays.
    match fs::rename_noreplace(received, db_file) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(not_found()),
        other => other.map_err(failed)?,
    }
    fs::fsync_dir(dir).map_err(failed)?;
    Ok(Response::new(204))
}

/// Somebody may be about to send a database there.
fn make_tmp(device: &Path) -> Result<(), BrokerError> {
    let tmp = device.join("tmp");
    fs::mkdirs(&tmp).map_err(|error| BrokerError::Io(tmp, error))
}

/// The database that a request is for.
fn open<B: Replicated>(shared: &Arc<Shared>, device: &Path, db_file: &Path) -> Result<B, Failure> {
    make_tmp(device)?;
    existing(shared, db_file)
}

fn existing<B: Replicated>(shared: &Arc<Shared>, db_file: &Path) -> Result<B, Failure> {
    let mut broker = B::open(shared, db_file, Options::default())?;
    if broker.exists()? { Ok(broker) } else { Err(not_found()) }
}

fn merge<B: Replicated>(mut broker: B, items: MergeItems<B::Kind>) -> Outcome {
    let source = items.source.as_deref().zip(items.last);
    broker.db().merge_items_from(items.records, source)?;
    accepted()
}

/// The rows of a list, if each is one.
fn rows_of<B: Replicated>(list: &[u8]) -> Option<Vec<<B::Kind as Kind>::Record>> {
    MergeItems::<B::Kind>::read_rows(list).or_else(|| {
        let rows: Vec<Value> = serde_json::from_slice(list).ok()?;
        rows.iter().map(<B::Kind as Kind>::from_json).collect()
    })
}

/// Merge the rows of `from` after ROWID `start` into another database; the last ROWID that was copied.
fn copy_rows<B: Replicated>(from: &mut B, into: &mut B, start: i64) -> Result<i64, Failure> {
    let mut point = start;
    loop {
        let Items { json, count, last } = from.db().stored_items_since(point, MERGE_AT_A_TIME)?;
        if count == 0 {
            return Ok(point);
        }
        into.db().merge_items(rows_of::<B>(&json).ok_or_else(bad)?)?;
        point = last;
    }
}

/// The highest row that is there now.
fn highest_row<B: Replicated>(broker: &mut B) -> Result<i64, BrokerError> {
    let sql = format!("SELECT max(ROWID) FROM {}", <B::Kind as Kind>::DB_CONTAINS_TYPE);
    let highest =
        broker.db().read(|sqlite| sqlite.query_row(&sql, [], |row| row.get::<_, Option<i64>>(0)))?;
    Ok(highest.unwrap_or(-1))
}

fn dump(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    json::write_value(&mut out, value);
    out
}
