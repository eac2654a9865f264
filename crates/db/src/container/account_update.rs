//! What a container tells its account: the PUT of its row on the account servers.
//!
//! The container server sends it after a PUT or DELETE of the container to the account servers that the proxy named; the
//! container-updater to those of the ring, when the counts have changed.

use std::time::Duration;

use common::headers::{self as names, X_ACCOUNT_DEVICE, X_ACCOUNT_HOST, X_ACCOUNT_PARTITION};
use common::quote::quote_path;
use futures_util::future::join_all;
use service::Context;
use service::http::client::{ClientError, Timeouts};
use service::http::{Body, Headers, Method, Status};

use super::broker::ContainerInfo;

/// The most that is read of an account server's answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

pub struct Report {
    pub account: String,
    pub container: String,
    pub put_timestamp: String,
    pub delete_timestamp: String,
    pub object_count: i64,
    pub bytes_used: i64,
    pub storage_policy_index: i64,
    /// Store the row in a deleted account, too.
    pub override_deleted: bool,
    pub trans_id: Option<String>,
    pub referer: Option<String>,
    pub user_agent: String,
}

impl Report {
    pub fn of(info: &ContainerInfo) -> Self {
        Self {
            account: info.account.clone(),
            container: info.container.clone(),
            put_timestamp: info.put_timestamp.clone(),
            delete_timestamp: info.delete_timestamp.clone(),
            object_count: info.object_count,
            bytes_used: info.bytes_used,
            storage_policy_index: info.storage_policy_index,
            override_deleted: false,
            trans_id: None,
            referer: None,
            user_agent: String::new(),
        }
    }

    fn headers(&self) -> Headers {
        let mut headers = Headers::new();
        headers.insert(names::X_PUT_TIMESTAMP, &self.put_timestamp);
        headers.insert(names::X_DELETE_TIMESTAMP, &self.delete_timestamp);
        headers.insert(names::X_OBJECT_COUNT, self.object_count);
        headers.insert(names::X_BYTES_USED, self.bytes_used);
        if self.override_deleted {
            headers.insert(names::X_ACCOUNT_OVERRIDE_DELETED, "yes");
        }
        if let Some(trans_id) = &self.trans_id {
            headers.insert(names::X_TRANS_ID, trans_id);
        }
        headers.insert(names::X_BACKEND_STORAGE_POLICY_INDEX, self.storage_policy_index);
        headers.insert(names::USER_AGENT, &self.user_agent);
        if let Some(referer) = &self.referer {
            headers.insert(names::REFERER, referer);
        }
        headers
    }
}

/// An account server's device.
pub struct Place<'a> {
    pub ip: &'a str,
    pub port: u16,
    pub device: &'a str,
    pub partition: &'a str,
}

pub fn timeouts(conn: Duration, node: Duration) -> Timeouts {
    Timeouts { conn, node }
}

/// Send a report to one account server.
pub async fn send(
    ctx: &Context,
    place: &Place<'_>,
    report: &Report,
    timeouts: Timeouts,
) -> Result<Status, ClientError> {
    let Place { ip, port, device, partition } = place;
    let path = quote_path(format!("/{device}/{partition}/{}/{}", report.account, report.container));
    let sent =
        ctx.pool.request((ip, *port), Method::Put, &path, &report.headers(), Body::empty(), timeouts).await?;
    let status = sent.status;
    // What the body says does not matter, but the connection is only free once it has been read.
    let mut body = sent.body;
    let _ = body.collect(MAX_ANSWER_BYTES).await;
    Ok(status)
}

/// Send a report to the account servers that a request names. `Err` has the status of the request's own answer: 404 if every
/// one of them has no such account, 400 if the names make no sense. Whatever else goes wrong, the updater will repair.
pub async fn to_request_hosts(
    ctx: &Context,
    headers: &Headers,
    report: &Report,
    timeouts: Timeouts,
) -> Result<(), u16> {
    let header = |name| headers.get_str(name).unwrap_or_default();
    let hosts: Vec<&str> = header(X_ACCOUNT_HOST).split(',').map(str::trim).collect();
    let devices: Vec<&str> = header(X_ACCOUNT_DEVICE).split(',').map(str::trim).collect();
    let partition = header(X_ACCOUNT_PARTITION);
    if hosts.len() != devices.len() {
        ctx.logger.error(format_args!(
            "ERROR Account update failed: different  numbers of hosts and devices in request: \"{}\" vs \"{}\"",
            header(X_ACCOUNT_HOST),
            header(X_ACCOUNT_DEVICE)
        ));
        return Err(400);
    }
    if partition.is_empty() {
        return Ok(());
    }
    let updates = hosts
        .iter()
        .zip(&devices)
        .map(|(host, device)| update_host(ctx, host, device, partition, report, timeouts));
    let answers = join_all(updates).await;
    let nowhere = answers.iter().all(|status| *status == Some(Status::NOT_FOUND));
    if nowhere { Err(404) } else { Ok(()) }
}

/// The status of one account server's answer; what went wrong is logged.
async fn update_host(
    ctx: &Context,
    host: &str,
    device: &str,
    partition: &str,
    report: &Report,
    timeouts: Timeouts,
) -> Option<Status> {
    let address = host.rsplit_once(':').and_then(|(ip, port)| Some((ip, port.parse().ok()?)));
    let Some((ip, port)) = address else {
        ctx.logger.error(format_args!("ERROR account update failed with {host}/{device}: not an address"));
        return None;
    };
    match send(ctx, &Place { ip, port, device, partition }, report, timeouts).await {
        Ok(status) => {
            if !status.is_success() && status != Status::NOT_FOUND {
                ctx.logger.error(format_args!(
                    "ERROR Account update failed with {ip}:{port}/{device} (will retry later): Response {status}"
                ));
            }
            Some(status)
        }
        Err(error) => {
            ctx.logger.error(format_args!(
                "ERROR account update failed with {ip}:{port}/{device} (will retry later): {error}"
            ));
            None
        }
    }
}
