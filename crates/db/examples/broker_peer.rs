//! Does to databases what lines of JSON on standard input say, and answers each with a line: so that a script can hold Martlet's
//! brokers against Swift's on the same files.
//!
//! A line is `{"op": ..., "db": "/device/containers/.../HASH.db", ...}`; `db` names the file as Swift's brokers take it.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;

use common::clock::Clock;
use db::account::broker::{AccountBroker, ContainerEntry, ContainerRecord, Count};
use db::broker::{BrokerError, Options, Shared};
use db::container::broker::{ContainerBroker, ObjectEntry};
use db::container::rows::ObjectRecord;
use db::listing::Query;
use db::metadata::Metadata;
use db::replication::Replicated;
use serde_json::{Value, json};

fn main() {
    let shared = Shared::new(Clock::system(), |line| eprintln!("{line}"));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input ends between lines");
        let command: Value = serde_json::from_str(&line).expect("a line is JSON");
        let answer = run(&shared, &command).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        println!("{answer}");
        std::io::stdout().flush().expect("somebody reads the answers");
    }
}

fn run(shared: &Arc<Shared>, command: &Value) -> Result<Value, BrokerError> {
    let path = text(command, "db");
    if path.contains("/accounts/") {
        account(shared, &path, command)
    } else {
        container(shared, &path, command)
    }
}

fn container(shared: &Arc<Shared>, path: &str, command: &Value) -> Result<Value, BrokerError> {
    let mut broker = ContainerBroker::new(shared, Path::new(path), Options::default());
    match text(command, "op").as_str() {
        "create" => {
            let (account, name) = (text(command, "account"), text(command, "container"));
            broker.initialize(&account, &name, &text(command, "timestamp"), number(command, "policy"))?;
        }
        "put" => broker.put_object(record(command))?,
        "merge" => broker.merge_items(vec![record(command)])?,
        "delete_db" => broker.db.delete_db(&text(command, "timestamp"))?,
        "put_timestamp" => broker.db.update_put_timestamp(&text(command, "timestamp"))?,
        "metadata" => broker.db.update_metadata(&metadata(command), None)?,
        "policy" => {
            broker.set_storage_policy_index(number(command, "policy"), &text(command, "timestamp"))?
        }
        "reported" => {
            let info = broker.info()?;
            broker.reported(&info)?;
        }
        "shards" => {
            broker.merge_shard_range_data(&command["ranges"], "peer")?;
        }
        "info" => return container_info(&mut broker),
        "list" => {
            let mut rows = Vec::new();
            broker.list_objects(&query(command), number(command, "policy"), |entry| {
                rows.push(match entry {
                    ObjectEntry::Subdir(name) => json!([name, "0", 0, null, ""]),
                    ObjectEntry::Object { name, last_modified, size, content_type, etag } => {
                        json!([name, last_modified.internal(), size, content_type, etag])
                    }
                });
            })?;
            return Ok(json!(rows));
        }
        other => return Ok(json!({ "error": format!("unknown op {other}") })),
    }
    Ok(json!({}))
}

fn container_info(broker: &mut ContainerBroker) -> Result<Value, BrokerError> {
    let info = broker.info()?;
    let stats: Vec<Value> = broker
        .policy_stats()?
        .into_iter()
        .map(|(index, stats)| json!([index, stats.object_count, stats.bytes_used]))
        .collect();
    Ok(json!({
        "account": info.account, "container": info.container, "created_at": info.created_at,
        "put_timestamp": info.put_timestamp, "delete_timestamp": info.delete_timestamp, "status": info.status,
        "status_changed_at": info.status_changed_at, "object_count": info.object_count,
        "bytes_used": info.bytes_used, "reported_put_timestamp": info.reported_put_timestamp,
        "reported_delete_timestamp": info.reported_delete_timestamp,
        "reported_object_count": info.reported_object_count, "reported_bytes_used": info.reported_bytes_used,
        "hash": info.hash, "id": info.id, "storage_policy_index": info.storage_policy_index,
        "db_state": info.db_state.as_str(), "is_deleted": info.is_deleted(), "empty": broker.is_empty()?,
        "metadata": broker.db.metadata()?.dump(), "policy_stats": stats, "is_root": broker.is_root_container()?,
        "shard_ranges": broker.shard_range_data()?,
    }))
}

fn account(shared: &Arc<Shared>, path: &str, command: &Value) -> Result<Value, BrokerError> {
    let mut broker = AccountBroker::new(shared, path.into(), Options::default());
    match text(command, "op").as_str() {
        "create" => broker.initialize(&text(command, "account"), &text(command, "timestamp"))?,
        "put" => broker.put_container(ContainerRecord::new(
            text(command, "name"),
            text(command, "put_timestamp"),
            text(command, "delete_timestamp"),
            count(command, "object_count"),
            count(command, "bytes_used"),
            count(command, "policy"),
        ))?,
        "delete_db" => broker.db.delete_db(&text(command, "timestamp"))?,
        "put_timestamp" => broker.db.update_put_timestamp(&text(command, "timestamp"))?,
        "metadata" => broker.db.update_metadata(&metadata(command), None)?,
        "info" => return account_info(&mut broker),
        "list" => {
            let mut rows = Vec::new();
            broker.list_containers(&query(command), |entry| {
                rows.push(match entry {
                    ContainerEntry::Subdir(name) => json!([name, 0, 0, "0", -1, 1]),
                    ContainerEntry::Container {
                        name,
                        object_count,
                        bytes_used,
                        put_timestamp,
                        storage_policy_index,
                    } => json!([name, object_count, bytes_used, put_timestamp, storage_policy_index, 0]),
                });
            })?;
            return Ok(json!(rows));
        }
        other => return Ok(json!({ "error": format!("unknown op {other}") })),
    }
    Ok(json!({}))
}

fn account_info(broker: &mut AccountBroker) -> Result<Value, BrokerError> {
    let info = broker.info()?;
    let stats: Vec<Value> = broker
        .policy_stats()?
        .into_iter()
        .map(|(index, stats)| json!([index, stats.container_count, stats.object_count, stats.bytes_used]))
        .collect();
    Ok(json!({
        "account": info.account, "created_at": info.created_at, "put_timestamp": info.put_timestamp,
        "delete_timestamp": info.delete_timestamp, "status_changed_at": info.status_changed_at,
        "container_count": info.container_count, "object_count": info.object_count,
        "bytes_used": info.bytes_used, "hash": info.hash, "id": info.id, "is_deleted": info.is_deleted(),
        "is_status_deleted": info.is_status_deleted(), "metadata": broker.db.metadata()?.dump(),
        "policy_stats": stats,
    }))
}

fn record(command: &Value) -> ObjectRecord {
    ObjectRecord {
        name: text(command, "name"),
        created_at: text(command, "created_at"),
        size: number(command, "size"),
        content_type: text(command, "content_type"),
        etag: text(command, "etag"),
        deleted: number(command, "deleted") != 0,
        storage_policy_index: number(command, "policy"),
        ctype_timestamp: optional(command, "ctype_timestamp"),
        meta_timestamp: optional(command, "meta_timestamp"),
    }
}

fn query(command: &Value) -> Query {
    Query {
        limit: usize::try_from(number(command, "limit")).unwrap_or(0),
        marker: text(command, "marker"),
        end_marker: text(command, "end_marker"),
        prefix: optional(command, "prefix"),
        delimiter: text(command, "delimiter"),
        path: optional(command, "path"),
        reverse: command["reverse"] == json!(true),
        allow_reserved: command["allow_reserved"] == json!(true),
    }
}

fn metadata(command: &Value) -> Metadata {
    let mut metadata = Metadata::default();
    for (name, item) in command["metadata"].as_object().into_iter().flatten() {
        let part = |index: usize| item[index].as_str().unwrap_or_default().to_owned();
        metadata.set(name.clone(), part(0), part(1));
    }
    metadata
}

fn text(command: &Value, key: &str) -> String {
    optional(command, key).unwrap_or_default()
}

fn optional(command: &Value, key: &str) -> Option<String> {
    command[key].as_str().map(str::to_owned)
}

fn number(command: &Value, key: &str) -> i64 {
    command[key].as_i64().unwrap_or(0)
}

fn count(command: &Value, key: &str) -> Count {
    match &command[key] {
        Value::String(text) => Count::Text(text.clone()),
        Value::Number(number) => Count::Number(number.as_i64().unwrap_or(0)),
        _ => Count::Unknown,
    }
}
