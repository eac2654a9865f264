//! The receiving end of SSYNC in the object server: which requests are let in, and what is on disk here.
//!
//! A session holds one of `replication_concurrency` permits of the process and, on disk, the replication locks of the
//! partition and the device, which Python's servers and replicators honour too. It waits for the locks without holding a
//! thread; those of this process that wait for one device take turns. A session gives the device up when the sender has said all, and
//! nothing but its last objects' way to the disk is left (Swift: when those are there too). Where Swift refuses a session at once because as many as
//! may run do so, as many more wait for a moment here: a refused partition is left to the sender's next pass.
//!
//! A fragment that is offered as durable, and is here without its commit, is committed: no data need be sent.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use common::policy::StoragePolicy;
use common::quote::quote;
use parking_lot::Mutex;
use service::context::Context;
use service::http::{Body, BoxFuture, Request, Response, SharedApp, Status};
use service::logs::Logger;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::error::Elapsed;

use super::input::timeout_message;
use super::protocol::{Local, Offer, Wanted, python_repr};
use super::session::{Check, FailureLimits, Refusal, Session, prefix};
use crate::diskfile::{DiskFileError, DiskFileManager, DiskFileRouter, Listed, LockGuard, Want};

/// Between tries for a lock which another replication holds.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(150);
/// For a session to end that holds a permit. Senders wait longer for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers SSYNC requests.
pub struct SsyncReceiver {
    ctx: Context,
    router: Arc<DiskFileRouter>,
    admission: Arc<Admission>,
    limits: FailureLimits,
    chunk_size: usize,
    timeout: Duration,
}

/// Where a request wants to go.
struct Placement {
    device: String,
    partition: u32,
    policy_index: u32,
    frag_index: Option<u32>,
    manager: Arc<DiskFileManager>,
}

impl SsyncReceiver {
    pub fn new(section: &Section, ctx: &Context, router: Arc<DiskFileRouter>) -> Result<Self, ConfigError> {
        let concurrency = section.int::<usize>("replication_concurrency", 4)?;
        Ok(Self {
            ctx: ctx.clone(),
            router,
            admission: Arc::new(Admission::new(concurrency)),
            limits: FailureLimits {
                threshold: section.int("replication_failure_threshold", 100)?,
                ratio: section.float("replication_failure_ratio", 1.0)?,
            },
            chunk_size: section.positive_int("network_chunk_size", 65536)?,
            timeout: section.secs("client_timeout", 60.0)?,
        })
    }

    /// Begins a session, whose body is the response's; subrequests go to `app`.
    pub async fn ssync(&self, mut req: Request, app: SharedApp) -> Response {
        let place = match self.placement(&req) {
            Ok(place) => place,
            Err(resp) => return *resp,
        };
        let (manager, device) = (place.manager.clone(), place.device.clone());
        let available =
            self.ctx.disk_pools.run(&place.device, move || manager.dev_path(&device).is_some()).await;
        if !available {
            return Response::insufficient_storage(&place.device);
        }
        let remote_addr = req.env.remote_addr.map(|addr| addr.ip().to_string()).unwrap_or_default();
        let session = Session {
            check: check(&self.ctx, &place, &remote_addr),
            partition: place.partition,
            policy_index: place.policy_index,
            frag_index: place.frag_index,
            device: place.device.clone(),
            remote_addr,
            app,
            limits: self.limits,
            logger: self.ctx.logger.with_txn(req.trans_id()),
        };
        let locks = acquire(self.ctx.clone(), self.admission.clone(), place);
        let body = std::mem::take(&mut req.body);
        let (chunk_size, timeout) = (self.chunk_size, self.timeout);
        Response::new(Status::OK)
            .with_header("X-Backend-Accept-No-Commit", "True")
            .with_body(Body::driven(move |tx| session.run(body, chunk_size, timeout, locks, tx)))
    }

    fn placement(&self, req: &Request) -> Result<Placement, Box<Response>> {
        let index = req.headers.get_str("X-Backend-Storage-Policy-Index");
        let policy = self.ctx.swift_conf.policies.parse_header(index).map_err(|_| {
            let index = index.unwrap_or("None");
            Box::new(Response::text(Status::SERVICE_UNAVAILABLE, format!("No policy with index {index}")))
        })?;
        self.placement_in(req, policy)
    }

    fn placement_in(&self, req: &Request, policy: &StoragePolicy) -> Result<Placement, Box<Response>> {
        let bad = |what: &str, value: &str| {
            Box::new(Response::text(Status::BAD_REQUEST, format!("Invalid {what}: {}", quote(value, "/"))))
        };
        let mut parts = req.split_path(2, 2, false).map_err(|()| bad("path", &req.path))?.into_iter();
        let device = parts.next().flatten().unwrap_or_default();
        let partition = parts.next().flatten().unwrap_or_default();
        if matches!(device.as_str(), "." | "..") {
            return Err(bad("device", &device));
        }
        // Swift: takes any name; every partition that a ring has is a number.
        let partition = partition.parse().map_err(|_| bad("partition", &partition))?;
        let frag_index = match req.headers.get_str("X-Backend-Ssync-Frag-Index") {
            None | Some("") => None,
            Some(index) => Some(index.trim().parse().map_err(|_| {
                let message = format!("Invalid X-Backend-Ssync-Frag-Index {}", python_repr(index));
                Box::new(Response::html(Status::BAD_REQUEST, message))
            })?),
        };
        let manager = self.router.get(policy.index).cloned().ok_or_else(|| bad("policy", &policy.name))?;
        Ok(Placement { device, partition, policy_index: policy.index.0, frag_index, manager })
    }
}

/// Who may run, and who may wait for that.
struct Admission {
    /// `None` without a limit.
    running: Option<Arc<Semaphore>>,
    waiting: Semaphore,
    /// Of each device with a limit of its own.
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Admission {
    /// 0 is no limit.
    fn new(concurrency: usize) -> Self {
        let running = (concurrency > 0).then(|| Arc::new(Semaphore::new(concurrency)));
        Self { running, waiting: Semaphore::new(concurrency), turns: Mutex::default() }
    }

    async fn permit(&self) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        let Some(running) = self.running.clone() else { return Ok(None) };
        if let Ok(permit) = running.clone().try_acquire_owned() {
            return Ok(Some(permit));
        }
        let _waits = self.waiting.try_acquire().map_err(|_| Refusal::TooMany)?;
        let permit = tokio::time::timeout(PATIENCE, running.acquire_owned()).await;
        permit.ok().and_then(Result::ok).map(Some).ok_or(Refusal::TooMany)
    }

    /// For the turn of a session on its device.
    async fn turn(
        &self,
        place: &Placement,
        limit: Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, Elapsed> {
        let conf = place.manager.conf();
        if conf.replication_concurrency_per_device == 0 {
            return Ok(None);
        }
        let new = || Arc::new(Semaphore::new(conf.replication_concurrency_per_device));
        let turns = self.turns.lock().entry(place.device.clone()).or_insert_with(new).clone();
        Ok(tokio::time::timeout(limit, turns.acquire_owned()).await?.ok())
    }
}

/// What lets a session talk: the device's lock, and its turn among those of this process.
type Turn = (Option<LockGuard>, Option<OwnedSemaphorePermit>);
/// What a session holds to its end: the partition's lock, and its permit.
type Locks = (LockGuard, Option<OwnedSemaphorePermit>);

async fn acquire(
    ctx: Context,
    admission: Arc<Admission>,
    place: Placement,
) -> Result<(Turn, Locks), Refusal> {
    let permit = admission.permit().await?;
    let conf = place.manager.conf();
    let timeout = conf.replication_lock_timeout;
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let turn = admission.turn(&place, timeout.saturating_sub(started.elapsed())).await.map_err(|_| {
            let path = conf.devices.join(&place.device).join(".lock");
            Refusal::LockTimeout(lock_message(timeout, &path))
        })?;
        let (manager, device, partition) = (place.manager.clone(), place.device.clone(), place.partition);
        let lock = move || manager.replication_lock(&device, partition, Some(Duration::ZERO));
        match ctx.disk_pools.run(&place.device, lock).await {
            Ok((partition, device)) => return Ok(((device, turn), (partition, permit))),
            Err(DiskFileError::LockTimeout(path)) if started.elapsed() >= timeout => {
                return Err(Refusal::LockTimeout(lock_message(timeout, &path)));
            }
            Err(DiskFileError::LockTimeout(_)) => {
                // It may be the partition's that another process holds.
                drop(turn);
                tokio::time::sleep(pause).await;
            }
            Err(err) => return Err(Refusal::Other(err.to_string())),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn lock_message(timeout: Duration, path: &Path) -> String {
    timeout_message(timeout, &path.display().to_string())
}

/// Compares with the disk, in the device's pool.
fn check(ctx: &Context, place: &Placement, remote_addr: &str) -> Check {
    let pools = ctx.disk_pools.clone();
    let comparer = Arc::new(Comparer {
        manager: place.manager.clone(),
        device: place.device.clone(),
        partition: place.partition,
        frag_index: place.frag_index,
        logger: ctx.logger.with_prefix(&prefix(remote_addr, &place.device, place.partition)),
    });
    Arc::new(move |offers: Vec<Offer>| {
        let (device, comparer) = (comparer.device.clone(), comparer.clone());
        let compared = pools.run(&device, move || comparer.compare(&offers));
        Box::pin(async move { compared.await.map_err(|err| err.to_string()) }) as BoxFuture<'static, _>
    })
}

/// Knows what is on disk.
struct Comparer {
    manager: Arc<DiskFileManager>,
    device: String,
    partition: u32,
    frag_index: Option<u32>,
    logger: Logger,
}

impl Comparer {
    fn compare(&self, offers: &[Offer]) -> Result<Vec<Wanted>, DiskFileError> {
        let compare_one = |(offer, listed)| Ok(Wanted::compare(offer, &self.local(offer, listed)?));
        offers.iter().zip(self.list(offers)?).map(compare_one).collect()
    }

    fn list(&self, offers: &[Offer]) -> Result<Vec<Listed>, DiskFileError> {
        let want = Want { frag_index: self.frag_index, frag_prefs: None };
        let hashes = offers.iter().map(|offer| offer.hash);
        self.manager.list_objects(&self.device, self.partition, want, hashes)
    }

    /// What is here of an offered object, by the names of its files. (Swift opens each, and so finds a corrupt one a pass
    /// of the auditor earlier.)
    fn local(&self, offer: &Offer, mut listed: Listed) -> Result<Local, DiskFileError> {
        let uncommitted = self.frag_index.filter(|index| listed.has_uncommitted(offer.ts_data, *index));
        let Some(frag_index) = uncommitted else { return Ok(local(&listed)) };
        if !offer.durable {
            // It is here; that something older is durable is no reason to want it again.
            return Ok(Local { ts_data: Some(offer.ts_data), ..local(&listed) });
        }
        let (device, partition) = (&self.device, self.partition);
        match self.manager.commit_fragment(device, partition, offer.hash, offer.ts_data, frag_index) {
            Ok(()) => listed = self.list(std::slice::from_ref(offer))?.pop().unwrap_or_default(),
            // Then all of it is wanted.
            Err(err) => self.logger.error(format_args!("EXCEPTION while attempting commit: {err}")),
        }
        Ok(local(&listed))
    }
}

fn local(listed: &Listed) -> Local {
    let Some(timestamps) = listed.timestamps else { return Local::default() };
    let ts_data = timestamps.data;
    if listed.is_tombstone {
        return Local { ts_data: Some(ts_data), ..Local::default() };
    }
    Local {
        ts_data: Some(ts_data),
        ts_meta: Some(timestamps.meta.unwrap_or(ts_data)),
        ts_ctype: Some(timestamps.ctype.map_or(ts_data, |ctype| ctype.max(ts_data))),
    }
}
