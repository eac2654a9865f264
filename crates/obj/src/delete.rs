//! DELETE: a tombstone newer than what is there.
//!
//! What there is decides the status: 204 if an object went, 404 if there was none (the tombstone is written all the
//! same: other nodes may have one), 409 if what is there is newer. The expirer deletes with X-If-Delete-At: then only an
//! object which expires at that very time goes.

use std::sync::Arc;
use std::time::Instant;

use common::Timestamp;
use common::headers::*;
use common::wsgi::from_stored;
use service::http::{Headers, Method, Request, Response};

use crate::diskfile::{DiskFile, DiskFileError, Metadata};
use crate::put::stored_delete_at;
use crate::server::{ObjectServer, Target, Wants, valid_timestamp};
use crate::update::Origin;

/// What was there, and so the status.
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

impl ObjectServer {
    pub(crate) async fn delete(self: &Arc<Self>, req: Request) -> Result<Response, Response> {
        let started = Instant::now();
        let target = Arc::new(self.target(&req)?);
        let timestamp = valid_timestamp(&req.headers)?;
        let wants = Wants::default().next_part_power(&req.headers);
        let if_delete_at = req.headers.get_str(X_IF_DELETE_AT).map(Timestamp::parse);
        let origin = Origin::of(&req, timestamp);
        let place = target.clone();
        let job = move || {
            let mut found = find(place.diskfile(&wants)?, timestamp)?;
            match if_delete_at {
                None => {}
                Some(Ok(at)) => found.require_delete_at(at, timestamp)?,
                Some(Err(_)) => return Err(Refusal::Status(400)),
            }
            // Nobody else to tell first: write at once.
            let told = stored_delete_at(&found.metadata) == 0;
            if told && found.timestamp < timestamp {
                found.diskfile.delete(timestamp)?;
            }
            Ok((found, told))
        };
        let (found, told) = self.run_delete(&target, job).await?;
        if !told {
            let old = stored_delete_at(&found.metadata);
            self.delete_at_updates(&target, &origin, None, old, 0).await;
            if found.timestamp < timestamp {
                let diskfile = found.diskfile.clone();
                self.run_delete(&target, move || Ok(diskfile.delete(timestamp)?)).await?;
            }
        }
        if found.timestamp < timestamp {
            let mut update = Headers::new();
            update.insert(X_TIMESTAMP, timestamp.internal());
            self.container_update(Method::Delete, &target, &origin, update).await;
        }
        self.log_if_slow(&req, &target, found.status, started);
        let content_type = from_stored(found.metadata.get(CONTENT_TYPE).unwrap_or_default());
        Ok(Response::error(found.status)
            .with_header(X_BACKEND_TIMESTAMP, found.timestamp.max(timestamp).internal())
            .with_header(X_BACKEND_CONTENT_TYPE, &*content_type))
    }

    async fn run_delete<T, F>(&self, target: &Target, job: F) -> Result<T, Response>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Refusal> + Send + 'static,
    {
        self.ctx.disk_pools.run(&target.device, job).await.map_err(|refusal| match refusal {
            Refusal::Disk(e) => self.disk_error(e, &target.device, &Method::Delete, &target.logger),
            Refusal::Status(400) => Response::html(400, "Bad X-If-Delete-At header value"),
            Refusal::Status(status) => Response::error(status),
            Refusal::DeleteAtMismatch => Response::html(412, "X-If-Delete-At and X-Delete-At do not match"),
        })
    }

    fn log_if_slow(&self, req: &Request, target: &Target, status: u16, started: Instant) {
        let (took, threshold) = (started.elapsed().as_secs_f64(), self.options.slow_delete_log_threshold);
        if threshold != -1.0 && took > threshold {
            let path = req.quoted_path();
            let text = format_args!("Slow DELETE ({took:.3}s) for {path}, status {status}");
            target.logger.warning(text);
        }
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
