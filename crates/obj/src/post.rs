//! POST: new metadata for an object that is there, in a file of its own beside the data.
//!
//! A POST may be newer than the object's metadata, or than its content-type, or than both; what is older is kept. The
//! expirer's queue is told first: an object whose new time to expire is not in the queue would never go.

use std::sync::Arc;

use common::Timestamp;
use common::headers::*;
use common::wsgi::{from_stored, to_stored};
use service::http::{Headers, Method, Request, Response};

use crate::diskfile::{DiskFile, DiskFileError, Metadata, OpenDiskFile};
use crate::put::{refuse, stored_delete_at};
use crate::server::{ObjectServer, Target, Wants, valid_timestamp};
use crate::update::{Origin, apply_overrides};

/// What the request brings.
struct Post {
    timestamp: Timestamp,
    /// Zero if the request has no Content-Type.
    ctype_timestamp: Timestamp,
    content_type: Vec<u8>,
    delete_at: u64,
    /// In stored form.
    metadata: Metadata,
}

/// What is to be written and told, once the object has been looked at.
struct Plan {
    diskfile: DiskFile,
    metadata: Metadata,
    original: Metadata,
    datafile: Metadata,
    data_timestamp: Timestamp,
    /// On the wire.
    content_type: Vec<u8>,
    ctype_timestamp: Timestamp,
    /// Old and new time to expire, if the queue is to be told.
    queue: Option<(u64, u64)>,
}

enum Refusal {
    Disk(DiskFileError),
    Conflict(Timestamp),
}

impl From<DiskFileError> for Refusal {
    fn from(e: DiskFileError) -> Self {
        Refusal::Disk(e)
    }
}

impl ObjectServer {
    pub(crate) async fn post(self: &Arc<Self>, req: Request) -> Result<Response, Response> {
        let target = Arc::new(self.target(&req)?);
        let post = self.read_post(&req.headers)?;
        let wants = Wants::expired(&req.headers).next_part_power(&req.headers);
        let origin = Origin::of(&req, post.timestamp);
        let place = target.clone();
        let job = move || {
            let diskfile = place.diskfile(&wants)?;
            let plan = plan(diskfile.open(Some(post.timestamp))?, diskfile, post)?;
            // Nobody else to tell first: write at once.
            let written = !plan.tells_queue();
            if written {
                plan.diskfile.write_metadata(plan.metadata.clone())?;
            }
            Ok::<_, Refusal>((plan, written))
        };
        let (plan, written) = self.run_post(&target, job).await?;
        if !written {
            let (old, new) = plan.queue.unwrap_or_default();
            self.delete_at_updates(&target, &origin, Some(&plan.datafile), old, new).await?;
            let (diskfile, metadata) = (plan.diskfile.clone(), plan.metadata.clone());
            self.run_post(&target, move || Ok(diskfile.write_metadata(metadata)?)).await?;
        }
        let content_type = plan.told_content_type();
        self.container_update(Method::Put, &target, &origin, plan.container_headers(&content_type)).await?;
        let mut response = Response::error(202).with_header(X_BACKEND_CONTENT_TYPE, &content_type);
        for (name, value) in plan.original.iter() {
            if std::str::from_utf8(name).is_ok_and(|name| is_sys_meta(ServerType::Object, name)) {
                response.headers.insert(from_stored(name), &*from_stored(value));
            }
        }
        Ok(response)
    }

    async fn run_post<T, F>(&self, target: &Target, job: F) -> Result<T, Response>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Refusal> + Send + 'static,
    {
        self.ctx.disk_pools.run(&target.device, job).await.map_err(|refusal| match refusal {
            Refusal::Conflict(timestamp) => {
                Response::error(409).with_header(X_BACKEND_TIMESTAMP, timestamp.internal())
            }
            // Without the time of the tombstone, unlike GET.
            Refusal::Disk(DiskFileError::Deleted { .. } | DiskFileError::Expired { .. }) => {
                Response::error(404)
            }
            Refusal::Disk(e) => self.disk_error(e, &target.device, &Method::Post, &target.logger),
        })
    }

    fn read_post(&self, headers: &Headers) -> Result<Post, Response> {
        let timestamp = valid_timestamp(headers)?;
        let delete_at = match headers.get_str(X_DELETE_AT).unwrap_or_default() {
            "" => 0,
            value => common::config::parse_int::<i64>(value)
                .ok_or_else(|| Response::text(400, "Non-integer X-Delete-At"))?,
        };
        if delete_at != 0 && (delete_at as f64) < timestamp.as_secs_f64() {
            return Err(Response::text(400, "X-Delete-At in past"));
        }
        let constraints = &self.ctx.swift_conf.constraints;
        constraints.check_metadata(headers.iter(), ServerType::Object).map_err(refuse)?;
        let content_type = headers.get(CONTENT_TYPE).unwrap_or_default().to_vec();
        let ctype_timestamp = match (content_type.is_empty(), headers.get_str("Content-Type-Timestamp")) {
            (true, _) => Timestamp::ZERO,
            (false, None) => timestamp,
            (false, Some(value)) => {
                Timestamp::parse(value).map_err(|e| Response::text(400, e.to_string()))?
            }
        };
        let mut metadata = Metadata::new();
        metadata.insert(X_TIMESTAMP, timestamp.internal());
        for (name, value) in headers.iter() {
            let text = std::str::from_utf8(name).unwrap_or_default();
            if is_user_meta(ServerType::Object, text) || is_object_transient_sysmeta(text) {
                metadata.insert(to_stored(&title_case_bytes(name)), to_stored(value));
            }
        }
        self.copy_allowed_headers(headers, &mut metadata);
        Ok(Post { timestamp, ctype_timestamp, content_type, delete_at: delete_at.max(0) as u64, metadata })
    }
}

/// Decides what of the request is newer than what is there.
fn plan(opened: OpenDiskFile, diskfile: DiskFile, post: Post) -> Result<Plan, Refusal> {
    let (timestamp, ctype_timestamp) = (opened.timestamp(), opened.content_type_timestamp());
    if timestamp >= post.timestamp && ctype_timestamp >= post.ctype_timestamp {
        return Err(Refusal::Conflict(timestamp));
    }
    let data_timestamp = opened.data_timestamp();
    let is_newer = post.timestamp > timestamp;
    let mut metadata = match is_newer {
        true => post.metadata,
        false => opened.metafile_metadata().cloned().unwrap_or_default(),
    };
    if !metadata.contains(X_TIMESTAMP) {
        metadata.insert(X_TIMESTAMP, timestamp.internal());
    }
    let queue = is_newer.then(|| (stored_delete_at(opened.metadata()), post.delete_at));
    let (content_type, told_timestamp) = if post.ctype_timestamp > ctype_timestamp {
        (post.content_type, post.ctype_timestamp)
    } else {
        (from_stored(opened.content_type().unwrap_or_default()).into_owned(), ctype_timestamp)
    };
    // A content-type that is the data file's own stays there.
    if post.ctype_timestamp > ctype_timestamp || ctype_timestamp != data_timestamp {
        metadata.insert(CONTENT_TYPE, to_stored(&content_type));
        metadata.insert("Content-Type-Timestamp", told_timestamp.internal());
    }
    Ok(Plan {
        diskfile,
        metadata,
        datafile: opened.datafile_metadata().clone(),
        original: opened.into_metadata(),
        data_timestamp,
        content_type,
        ctype_timestamp: told_timestamp,
        queue,
    })
}

impl Plan {
    fn tells_queue(&self) -> bool {
        self.queue.is_some_and(|(old, new)| old != 0 || new != 0)
    }

    /// The container's listing goes on showing the size that SLO has put into the data file's content-type.
    fn told_content_type(&self) -> Vec<u8> {
        let mut content_type = self.content_type.clone();
        if self.ctype_timestamp != self.data_timestamp {
            let of_data = self.datafile.get_str(CONTENT_TYPE).unwrap_or_default();
            if let Some(bytes) = swift_bytes(of_data) {
                content_type.extend_from_slice(format!(";swift_bytes={bytes}").as_bytes());
            }
        }
        content_type
    }

    fn container_headers(&self, content_type: &[u8]) -> Headers {
        let mut update = Headers::new();
        let of_original = |name: &str| self.original.get(name);
        // What the proxy of an EC object told the container with its PUT.
        let size = of_original(X_OBJECT_SYSMETA_EC_CONTENT_LENGTH).or(of_original(CONTENT_LENGTH));
        let etag = of_original(X_OBJECT_SYSMETA_EC_ETAG).or(of_original(ETAG));
        update.insert("X-Size", size.unwrap_or_default());
        update.insert("X-Content-Type", content_type);
        update.insert(X_TIMESTAMP, self.data_timestamp.internal());
        update.insert("X-Content-Type-Timestamp", self.ctype_timestamp.internal());
        update.insert("X-Meta-Timestamp", self.metadata.get(X_TIMESTAMP).unwrap_or_default());
        update.insert("X-Etag", etag.unwrap_or_default());
        let wire: Vec<(Vec<u8>, Vec<u8>)> =
            self.original.iter().map(|(n, v)| (from_stored(n).into(), from_stored(v).into())).collect();
        let wire = wire.iter().map(|(n, v)| (n.as_slice(), v.as_slice()));
        apply_overrides(&mut update, wire, std::iter::empty());
        update
    }
}

/// The parameter `swift_bytes` of a content-type.
fn swift_bytes(content_type: &str) -> Option<&str> {
    let (_, params) = content_type.split_once(';')?;
    let mut named =
        params.rsplit(';').filter_map(|p| p.split_once('=')).filter(|(k, _)| k.trim() == "swift_bytes");
    named.next().map(|(_, value)| value.trim())
}
