//! `swift-account-info` and `swift-container-info`: what a database says of its account or container, and where its replicas
//! are.
//!
//! Rows that are pending are merged first, as by every reader; if they cannot be, the old counts are shown with a warning. As in Swift
//! `-d` names the folder of the rings only: hashes and policies are always those of `/etc/swift/swift.conf`.
//!
//! What it does not do: a file that is no database stays where it is. Swift's tools quarantine the folder it is in, whatever folder
//! that is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::headers::{ServerType, strip_sys_meta_prefix, strip_user_meta_prefix, title_case};
use common::repr::python_repr;
use common::{Clock, HashConf, Policies, PolicyIndex, SwiftConf, Timestamp};
use db::account::broker::{AccountBroker, AccountInfo};
use db::broker::{BrokerError, DatabaseBroker, Kind, Options, Shared};
use db::container::broker::{ContainerBroker, ContainerInfo, DbState};
use db::container::shard_range::ShardRange;
use db::metadata::Metadata;
use db::replication::{DatedSyncPoint, Syncs};
use ring::Ring;

use super::get_nodes::DIR;
use super::locations::{Item, Locations};
use super::object_info::DROP_PREFIXES;
use super::{Output, SWIFT_DIR};
use crate::cli::optparse::{HELP, Opt, Usage};

const SYNC: Opt =
    Opt { short: Some('s'), long: "sync", value: None, help: "show how far other replicas have come" };
const VERBOSE: Opt = Opt { short: Some('v'), long: "verbose", value: None, help: "show all shard ranges" };

struct Asked {
    drop_prefixes: bool,
    sync: bool,
    verbose: bool,
    swift_dir: String,
    /// Begins with `/` or `./`.
    file: String,
}

/// What the tools take from `swift.conf`.
#[derive(Default)]
struct Conf {
    hash: HashConf,
    policies: Policies,
}

/// One of the two kinds of database.
struct Type {
    server: ServerType,
    /// `account`
    name: &'static str,
    title: &'static str,
    read: fn(&Asked, Options) -> Result<Found, BrokerError>,
}

const ACCOUNT: Type =
    Type { server: ServerType::Account, name: "account", title: "Account", read: read_account };
const CONTAINER: Type =
    Type { server: ServerType::Container, name: "container", title: "Container", read: read_container };

/// What a database says.
struct Found {
    info: Info,
    metadata: Metadata,
    /// Incoming and outgoing, if asked for.
    syncs: Option<[Vec<DatedSyncPoint>; 2]>,
}

enum Info {
    Account(AccountInfo),
    Container { info: ContainerInfo, is_root: bool, shard_ranges: Vec<ShardRange> },
}

pub(super) fn run_account(prog: &str, words: &[String]) -> Output {
    let text = format!("{prog} [options] ACCOUNT_DB_FILE");
    run(&ACCOUNT, words, &Usage { prog, text, options: &[&HELP, &DIR, &DROP_PREFIXES, &SYNC] })
}

pub(super) fn run_container(prog: &str, words: &[String]) -> Output {
    let text = format!("{prog} [options] CONTAINER_DB_FILE");
    run(&CONTAINER, words, &Usage { prog, text, options: &[&HELP, &DIR, &DROP_PREFIXES, &VERBOSE, &SYNC] })
}

fn run(kind: &Type, words: &[String], usage: &Usage<'_>) -> Output {
    let (found, positional) = match usage.split(words) {
        Ok(split) => split,
        Err(ended) => return ended.into(),
    };
    let [file] = &positional[..] else {
        return Output { stdout: usage.help().into_bytes(), ..Output::default() };
    };
    let is_placed = file.starts_with('/') || file.starts_with("./");
    let mut asked = Asked {
        drop_prefixes: false,
        sync: false,
        verbose: false,
        swift_dir: SWIFT_DIR.to_owned(),
        file: if is_placed { file.clone() } else { format!("./{file}") },
    };
    for (option, value) in found {
        match option.long {
            "drop-prefixes" => asked.drop_prefixes = true,
            "sync" => asked.sync = true,
            "verbose" => asked.verbose = true,
            _ => asked.swift_dir = value,
        }
    }
    let mut out = Output::default();
    if !Path::new(&asked.file).exists() || !asked.file.ends_with(".db") {
        out.line("DB file doesn't exist");
        return out.fail("");
    }
    match show(&mut out, kind, &asked) {
        Ok(code) => Output { code, ..out },
        Err(error) => out.fail(error),
    }
}

/// The exit code; the error is empty where it has been said on stdout.
fn show(out: &mut Output, kind: &Type, asked: &Asked) -> Result<u8, String> {
    let conf = read_conf()?;
    let careful = Options { never_quarantine: true, ..Options::default() };
    let mut code = 0;
    let mut found = (kind.read)(asked, careful.clone());
    if found.as_ref().is_err_and(|error| !is_other_type(error) && is_operational(error)) {
        out.line("WARNING: Possibly Stale Data");
        code = 2;
        found = (kind.read)(asked, Options { stale_reads_ok: true, ..careful });
    }
    match found {
        Ok(found) => print(out, kind, asked, &conf, &found).map(|()| code),
        Err(error) if is_other_type(&error) => {
            out.line(format!("Does not appear to be a DB of type \"{}\": {}", kind.name, asked.file));
            Err(String::new())
        }
        Err(error) if is_operational(&error) => {
            out.line(format!("{} info failed: {}", kind.title, sqlite_text(&error)));
            Err(String::new())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// `swift.conf`; without one there is nothing in the hashes and only the policy that there always is.
fn read_conf() -> Result<Conf, String> {
    let dir = Path::new(SWIFT_DIR);
    if !dir.join("swift.conf").exists() {
        return Ok(Conf::default());
    }
    let conf = SwiftConf::load(dir).map_err(|error| error.to_string())?;
    Ok(Conf { hash: conf.hash.clone(), policies: conf.policies.clone() })
}

fn is_other_type(error: &BrokerError) -> bool {
    matches!(error, BrokerError::Sqlite(_, error) if db::broker::is_missing(error, "no such table"))
}

/// Whether the database may answer another time: Python's `OperationalError`, or a lock that others hold.
fn is_operational(error: &BrokerError) -> bool {
    match error {
        BrokerError::LockTimeout(_) => true,
        BrokerError::Sqlite(_, error) => !db::broker::cannot_open(error),
        _ => false,
    }
}

fn sqlite_text(error: &BrokerError) -> String {
    match error {
        BrokerError::Sqlite(_, error) => db::broker::message(error),
        // With stale reads only the database's own lock is left.
        BrokerError::LockTimeout(_) => "database is locked".to_owned(),
        other => other.to_string(),
    }
}

fn shared() -> Arc<Shared> {
    Shared::new(Clock::system(), |line: &str| eprintln!("{line}"))
}

fn read_account(asked: &Asked, options: Options) -> Result<Found, BrokerError> {
    let mut broker = AccountBroker::new(&shared(), asked.file.clone().into(), options);
    // What is pending for a database of the other type stays.
    broker.db.raw_metadata()?;
    let info = Info::Account(broker.info()?);
    Found::with(info, &mut broker.db, asked)
}

fn read_container(asked: &Asked, options: Options) -> Result<Found, BrokerError> {
    let mut broker = ContainerBroker::new(&shared(), Path::new(&asked.file), options);
    broker.path()?;
    let info = broker.info()?;
    let is_root = broker.is_root_container()?;
    let shard_ranges = broker.shard_ranges()?;
    Found::with(Info::Container { info, is_root, shard_ranges }, &mut broker.db, asked)
}

impl Found {
    fn with<K: Kind>(info: Info, db: &mut DatabaseBroker<K>, asked: &Asked) -> Result<Self, BrokerError> {
        let metadata = db.metadata()?;
        let syncs = match asked.sync {
            true => Some([db.dated_sync_points(Syncs::Incoming)?, db.dated_sync_points(Syncs::Outgoing)?]),
            false => None,
        };
        Ok(Found { info, metadata, syncs })
    }
}

fn print(out: &mut Output, kind: &Type, asked: &Asked, conf: &Conf, found: &Found) -> Result<(), String> {
    let item = match &found.info {
        Info::Account(info) => Item { account: Some(info.account.clone()), ..Item::default() },
        Info::Container { info, .. } => {
            let names = (Some(info.account.clone()), Some(info.container.clone()));
            Item { account: names.0, container: names.1, ..Item::default() }
        }
    };
    // Who cannot tell whether it is deleted, says nothing of it.
    let (delete_timestamp, put_timestamp) = match &found.info {
        Info::Account(info) => (&info.delete_timestamp, &info.put_timestamp),
        Info::Container { info, .. } => (&info.delete_timestamp, &info.put_timestamp),
    };
    isoformat(delete_timestamp).and(isoformat(put_timestamp))?;
    match &found.info {
        Info::Account(info) => print_account(out, info, conf)?,
        Info::Container { info, .. } => print_container(out, info, conf)?,
    }
    print_metadata(out, kind, &found.metadata, asked.drop_prefixes);
    if let Info::Container { info, is_root, shard_ranges } = &found.info {
        print_sharding(out, info.db_state, *is_root);
        print_shard_ranges(out, shard_ranges, asked.verbose)?;
    }
    if let Some([incoming, outgoing]) = &found.syncs {
        print_syncs(out, "Incoming Syncs:", incoming)?;
        print_syncs(out, "Outgoing Syncs:", outgoing)?;
    }
    let ring = Ring::load(&Path::new(&asked.swift_dir).join(format!("{}.ring.gz", kind.name)));
    if let Ok(ring) = ring.map(Arc::new) {
        let locations = Locations {
            ring: &ring,
            hash_conf: &conf.hash,
            datadir: &format!("{}s", kind.name),
            policy: None,
            all_handoffs: false,
        };
        locations.print(out, &item);
    }
    Ok(())
}

fn print_account(out: &mut Output, info: &AccountInfo, conf: &Conf) -> Result<(), String> {
    out.line(format!("Path: /{}", info.account));
    out.line(format!("  Account: {}", info.account));
    out.line(format!("  Deleted: {}", python_bool(info.is_deleted())));
    out.line(format!("  Account Hash: {}", conf.hash.hash_path(&info.account, None, None)));
    out.line("Metadata:");
    print_time(out, "  Created at", &info.created_at)?;
    print_time(out, "  Put Timestamp", &info.put_timestamp)?;
    print_time(out, "  Delete Timestamp", &info.delete_timestamp)?;
    print_time(out, "  Status Timestamp", &info.status_changed_at)?;
    out.line(format!("  Container Count: {}", info.container_count));
    out.line(format!("  Object Count: {}", info.object_count));
    out.line(format!("  Bytes Used: {}", info.bytes_used));
    out.line(format!("  Chexor: {}", info.hash));
    out.line(format!("  UUID: {}", info.id));
    Ok(())
}

fn print_container(out: &mut Output, info: &ContainerInfo, conf: &Conf) -> Result<(), String> {
    let (account, container) = (&info.account, &info.container);
    out.line(format!("Path: /{account}/{container}"));
    out.line(format!("  Account: {account}"));
    out.line(format!("  Container: {container}"));
    out.line(format!("  Deleted: {}", python_bool(info.is_deleted())));
    out.line(format!("  Container Hash: {}", conf.hash.hash_path(account, Some(container), None)));
    out.line("Metadata:");
    print_time(out, "  Created at", &info.created_at)?;
    print_time(out, "  Put Timestamp", &info.put_timestamp)?;
    print_time(out, "  Delete Timestamp", &info.delete_timestamp)?;
    print_time(out, "  Status Timestamp", &info.status_changed_at)?;
    out.line(format!("  Object Count: {}", info.object_count));
    out.line(format!("  Bytes Used: {}", info.bytes_used));
    let index = info.storage_policy_index;
    let policy = u32::try_from(index).ok().and_then(|index| conf.policies.get(PolicyIndex(index)));
    out.line(format!("  Storage Policy: {} ({index})", policy.map_or("Unknown", |policy| &policy.name)));
    print_time(out, "  Reported Put Timestamp", &info.reported_put_timestamp)?;
    print_time(out, "  Reported Delete Timestamp", &info.reported_delete_timestamp)?;
    out.line(format!("  Reported Object Count: {}", info.reported_object_count));
    out.line(format!("  Reported Bytes Used: {}", info.reported_bytes_used));
    out.line(format!("  Chexor: {}", info.hash));
    out.line(format!("  UUID: {}", info.id));
    out.line(format!("  X-Container-Sync-Point1: {}", info.x_container_sync_point1));
    out.line(format!("  X-Container-Sync-Point2: {}", info.x_container_sync_point2));
    Ok(())
}

fn python_bool(flag: bool) -> &'static str {
    if flag { "True" } else { "False" }
}

fn print_time(out: &mut Output, title: &str, text: &str) -> Result<(), String> {
    out.line(format!("{title}: {} ({text})", isoformat(text)?));
    Ok(())
}

fn isoformat(text: &str) -> Result<String, String> {
    Timestamp::parse(text).map(|at| at.isoformat()).map_err(|error| error.to_string())
}

fn print_metadata(out: &mut Output, kind: &Type, metadata: &Metadata, drop_prefixes: bool) {
    let (mut system, mut user) = (Vec::new(), Vec::new());
    for (name, item) in metadata.iter() {
        let shown = |short| if drop_prefixes { short } else { name };
        if let Some(short) = strip_user_meta_prefix(kind.server, name) {
            user.push((shown(short), &item.value));
        } else if let Some(short) = strip_sys_meta_prefix(kind.server, name) {
            system.push((shown(short), &item.value));
        } else {
            out.line(format!("  {}: {}", title_case(&name.replace('_', "-")), item.value));
        }
    }
    for (title, what, items) in [("System", "system", &system), ("User", "user", &user)] {
        match items.is_empty() {
            true => out.line(format!("No {what} metadata found in db file")),
            false => out.line(format!("  {title} Metadata:")),
        }
        for (name, value) in items {
            out.line(format!("    {name}: {value}"));
        }
    }
}

fn print_sharding(out: &mut Output, state: DbState, is_root: bool) {
    out.line("Sharding Metadata:");
    out.line(format!("  Type: {}", if is_root { "root" } else { "shard" }));
    out.line(format!("  State: {}", state.as_str()));
}

fn print_shard_ranges(out: &mut Output, ranges: &[ShardRange], verbose: bool) -> Result<(), String> {
    if ranges.is_empty() {
        return Ok(());
    }
    out.line(format!("Shard Ranges ({}):", ranges.len()));
    let mut states: BTreeMap<i64, usize> = BTreeMap::new();
    for range in ranges {
        *states.entry(range.state).or_default() += 1;
    }
    let state_text = |range: i64| ShardRange::state_text(range).ok_or(format!("Invalid state {range}"));
    out.line("  States:");
    for (state, count) in states {
        out.line(format!("    {:>9}: {count}", state_text(state)?));
    }
    if !verbose {
        out.line("(Use -v/--verbose to show more Shard Ranges details)");
        return Ok(());
    }
    for range in ranges {
        let internal =
            |text: &str| Timestamp::parse(text).map_or_else(|_| text.to_owned(), |at| at.internal());
        out.line(format!("  Name: {}", range.name));
        let bounds = [&range.lower, &range.upper].map(|bound| python_repr(bound));
        out.line(format!("    lower: {}, upper: {}", bounds[0], bounds[1]));
        let (objects, bytes, state) = (range.object_count, range.bytes_used, range.state);
        out.line(format!(
            "    Object Count: {objects}, Bytes Used: {bytes}, State: {} ({state})",
            state_text(state)?
        ));
        print_time(out, "    Created at", &internal(&range.timestamp))?;
        print_time(out, "    Meta Timestamp", &internal(&range.meta_timestamp))?;
    }
    Ok(())
}

/// A table whose columns are as wide as what is in them.
fn print_syncs(out: &mut Output, title: &str, points: &[DatedSyncPoint]) -> Result<(), String> {
    let widest = |title: &str, cells: &mut dyn Iterator<Item = usize>| cells.fold(title.len(), usize::max);
    let point_width =
        widest("Sync Point", &mut points.iter().map(|at| at.point.sync_point.to_string().len()));
    let id_width = widest("Remote ID", &mut points.iter().map(|at| at.point.remote_id.chars().count()));
    out.line(title);
    out.line(format!("  {:point_width$}\t{:id_width$}\tUpdated At", "Sync Point", "Remote ID"));
    for DatedSyncPoint { point, updated_at } in points {
        let (at, id) = (point.sync_point, &point.remote_id);
        let updated = isoformat(updated_at)?;
        out.line(format!("  {at:<point_width$}\t{id:id_width$}\t{updated} ({updated_at})"));
    }
    Ok(())
}
