//! DELETE: a tombstone newer than what is there.
//!
//! What there is decides the status: 204 if an object went, 404 if there was none (the tombstone is written all the
//! same: other nodes may have one), 409 if what is there is newer. The expirer deletes with X-If-Delete-At: then only an
//! object which expires at that very time goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Timestamp;
use common::fs::Step;
use common::headers::*;
use common::quote::quote_path;
use common::wsgi::from_stored;
use parking_lot::Mutex;
use service::http::{Headers, Method, Request, Response};

use crate::diskfile::{DiskFile, DiskFileError, Metadata};
use crate::put::stored_delete_at;
use crate::server::{ObjectServer, Target, Wants, valid_timestamp};
use crate::update::Origin;

/// What was there, and so the status.
#[derive(Clone)]
struct Found {
    diskfile: DiskFile,
    timestamp: Timestamp,
    metadata: Metadata,
    status: u16,
}

enum Refusal {
    Disk(DiskFileError),
    Status(u16),
    DeleteAtMismatch,
}

impl From<DiskFileError> for Refusal {
    fn from(e: DiskFileError) -> Self {
        Refusal::Disk(e)
    }
}

/// What took how long, for the log of slow requests. Clones are one.
#[derive(Clone)]
struct Steps(Arc<Mutex<Taken>>);

struct Taken {
    since: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn begin() -> Self {
        Steps(Arc::new(Mutex::new(Taken { since: Instant::now(), steps: Vec::new() })))
    }

    /// The time since the last step was this one's.
    fn record(&self, step: &'static str) {
        let mut taken = self.0.lock();
        let now = Instant::now();
        let took = now.duration_since(taken.since);
        taken.since = now;
        taken.steps.push((step, took));
    }

    fn shown(&self) -> String {
        let taken = self.0.lock();
        let shown = taken.steps.iter().map(|(step, took)| format!("{step}={:.3}s", took.as_secs_f64()));
        shown.collect::<Vec<_>>().join(", ")
    }
}

impl ObjectServer {
    pub(crate) async fn delete(self: &Arc<Self>, req: Request) -> Result<Response, Response> {
        let threshold = self.options.slow_delete_log_threshold;
        let (began, started, steps) = (self.ctx.clock.unix_secs(), Instant::now(), Steps::begin());
        let (logger, path) = (self.logger(&req.headers), req.path.clone());
        let response = self.delete_in_steps(req, &steps).await;
        let took = started.elapsed().as_secs_f64();
        if threshold != -1.0 && took > threshold {
            let status = response.as_ref().unwrap_or_else(|refusal| refusal).status.0;
            logger.warning(format_args!(
                "Slow DELETE ({took:.3}s) for {}, status {status}, start_time={began:.3}, {}",
                quote_path(path),
                steps.shown()
            ));
        }
        response
    }

    async fn delete_in_steps(self: &Arc<Self>, req: Request, steps: &Steps) -> Result<Response, Response> {
        let target = Arc::new(self.target(&req)?);
        let timestamp = valid_timestamp(&req.headers)?;
        let wants = Wants::default().next_part_power(&req.headers);
        let if_delete_at = req.headers.get_str(X_IF_DELETE_AT).map(Timestamp::parse);
        let origin = Origin::of(&req, timestamp);
        let (place, told_steps) = (target.clone(), steps.clone());
        let job = move || {
            let steps = told_steps;
            let diskfile = place.diskfile(&wants);
            steps.record("diskfile_acquisition");
            let found = find(diskfile?, timestamp);
            steps.record("metadata_read");
            let mut found = found?;
            match if_delete_at {
                None => {}
                Some(Ok(at)) => found.require_delete_at(at, timestamp)?,
                Some(Err(_)) => return Err(Refusal::Status(400)),
            }
            // Nobody else to tell first: write at once.
            let told = stored_delete_at(&found.metadata) == 0;
            if !told {
                return Ok(Step::Done(Ok((found, told))));
            }
            steps.record("delete_at_update");
            let deleted = found.delete(timestamp, &steps);
            Ok(deleted.and_then(move |()| Step::Done(Ok((found, told)))))
        };
        let (found, told) = self.run_delete(&target, job).await?;
        if !told {
            let old = stored_delete_at(&found.metadata);
            self.delete_at_updates(&target, &origin, None, old, 0).await?;
            steps.record("delete_at_update");
            let (found, steps) = (found.clone(), steps.clone());
            self.run_delete(&target, move || Ok(found.delete(timestamp, &steps))).await?;
        }
        if found.timestamp < timestamp {
            let mut update = Headers::new();
            update.insert(X_TIMESTAMP, timestamp.internal());
            self.container_update(Method::Delete, &target, &origin, update).await?;
            steps.record("container_update");
        }
        let content_type = from_stored(found.metadata.get(CONTENT_TYPE).unwrap_or_default());
        Ok(Response::error(found.status)
            .with_header(X_BACKEND_TIMESTAMP, found.timestamp.max(timestamp).internal())
            .with_header(X_BACKEND_CONTENT_TYPE, &*content_type))
    }

    async fn run_delete<T, F>(&self, target: &Target, job: F) -> Result<T, Response>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<Step<Result<T, Refusal>>, Refusal> + Send + 'static,
    {
        let job = move || job().unwrap_or_else(|refusal| Step::Done(Err(refusal)));
        self.ctx.disk_pools.run_staged(&target.device, job).await.map_err(|refusal| match refusal {
            Refusal::Disk(e) => self.disk_error(e, &target.device, &Method::Delete, &target.logger),
            Refusal::Status(400) => Response::html(400, "Bad X-If-Delete-At header value"),
            Refusal::Status(status) => Response::error(status),
            Refusal::DeleteAtMismatch => Response::html(412, "X-If-Delete-At and X-Delete-At do not match"),
        })
    }
}

/// The job that looks at what is there.
fn find(diskfile: DiskFile, timestamp: Timestamp) -> Result<Found, Refusal> {
    let (there, metadata, status) = match diskfile.open(Some(timestamp)) {
        Ok(opened) => {
            let there = opened.data_timestamp();
            (there, opened.into_metadata(), if there < timestamp { 204 } else { 409 })
        }
        Err(DiskFileError::Expired { timestamp, metadata }) => (timestamp, metadata, 404),
        Err(DiskFileError::Deleted { timestamp, .. }) => (timestamp, Metadata::new(), 404),
        Err(DiskFileError::NotExist | DiskFileError::Quarantined(_)) => {
            (Timestamp::ZERO, Metadata::new(), 404)
        }
        // What was there may have had an X-Delete-At: let the client try again.
        Err(e) => return Err(e.into()),
    };
    Ok(Found { diskfile, timestamp: there, metadata, status })
}

impl Found {
    /// Writes the tombstone if it is newer than what is there.
    fn delete(&self, timestamp: Timestamp, steps: &Steps) -> Step<Result<(), Refusal>> {
        if self.timestamp >= timestamp {
            return Step::Done(Ok(()));
        }
        steps.record("tpool_scheduling");
        let steps = steps.clone();
        self.diskfile.delete_staged(timestamp).map(move |deleted| {
            steps.record("tombstone_write");
            Ok(deleted?)
        })
    }

    fn require_delete_at(&mut self, at: Timestamp, timestamp: Timestamp) -> Result<(), Refusal> {
        if self.timestamp.is_zero() {
            return Err(Refusal::Status(404));
        }
        if self.timestamp >= timestamp {
            return Err(Refusal::Status(409));
        }
        let stored = self.metadata.get_str(X_DELETE_AT).and_then(|t| Timestamp::parse(t).ok());
        if stored.unwrap_or_default() != at {
            return Err(Refusal::DeleteAtMismatch);
        }
        // Tells success from there having been nothing.
        self.status = 204;
        Ok(())
    }
}
