//! PUT.
//!
//! 1. Checks against the object that is there, before the body is asked for: 409 if it is as new, 412, 507.
//! 2. The body goes to a file without a name, in batches: while one is written the next is received.
//! 3. Footers, if the client sends metadata after the body (a MIME document), and the ETag: 422 if it isn't the
//!    body's.
//! 4. The file is made durable and gets its name. A client that wants two phases is then asked, by a second 100
//!    Continue, to commit. That makes a fragment the object's state; under replication it is only an answer, the object
//!    is there already. One that does not commit leaves the fragment as it is.
//! 5. The container and the expirer's queue are told.
//!
//! A small body that nobody waits to be asked for (of a fragment, one that is received before anything is written; in a
//! session of SSYNC, a larger one of a single batch that has company) is received first, and everything else is one job, up to the
//! commit if there are two phases. What is left when a body ends is
//! written by the job that places the file; of a small body that is all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::constraints::message_length;
use common::digest::{Checksum, Md5Stream, hex, md5};
use common::fs::Step;
use common::headers::*;
use common::wsgi::to_stored;
use common::{Timestamp, headers};
use futures_util::future::join;
use service::http::conditional::Match;
use service::http::{Body, BodyError, Headers, Method, Request, Response};
use service::statsd::Statsd;

use crate::diskfile::{DiskFile, DiskFileError, Metadata, Placed, SMALL_OBJECT, Writer};
use crate::multipart::{Footers, MultiStage};
use crate::server::{ObjectServer, Target, Wants, valid_timestamp};
use crate::update::{Origin, apply_overrides};

/// What is received before it is handed to the disk: a little more than a fragment of a fourth of a MiB.
const WRITE_BATCH: usize = 320 * 1024;
/// What is longer goes to the disk while it comes, past the page cache, out of which it would be dropped in the end.
const LONG: u64 = 8 << 20;

/// A PUT that has passed its first checks.
struct Put {
    target: Arc<Target>,
    timestamp: Timestamp,
    wants: Wants,
    /// Whether a fragment is to become the object's state: SSYNC also brings such as are not durable where they come from.
    commits: bool,
    if_none_match: Option<Match>,
    /// What the client says about the body's length.
    size: Option<u64>,
    awaited: Option<Awaited>,
    /// The footers tell the checksum of the data besides their MD5, which is then not computed once more.
    has_checksum: bool,
}

impl Put {
    /// All of it is there before those that end with it are hashed, written and synced.
    fn waits_for_company(&self) -> bool {
        self.awaited.is_some_and(|awaited| awaited.has_company)
            && self.size.is_some_and(|size| (SMALL_OBJECT + 1..WRITE_BATCH as u64).contains(&size))
    }
}

/// Marks a request whose end a session waits for, so that the disk begins to write while it is received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Awaited {
    /// Its body ends when those of others do, so that their ETags are needed at once.
    pub has_company: bool,
}

/// The object that was there before.
#[derive(Default)]
struct Original {
    delete_at: u64,
}

/// Where the object's data comes from.
enum Input<'a> {
    Plain(&'a mut Body),
    Staged(&'a mut MultiStage),
}

impl Input<'_> {
    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        match self {
            Input::Plain(body) => body.next().await,
            Input::Staged(stages) => stages.next_piece().await,
        }
    }
}

/// Why a job of a PUT went no further.
enum Refusal {
    Disk(DiskFileError),
    Conflict(Timestamp),
    Precondition,
    BadEtag,
}

impl From<DiskFileError> for Refusal {
    fn from(e: DiskFileError) -> Self {
        match e {
            DiskFileError::WrongEtag => Refusal::BadEtag,
            e => Refusal::Disk(e),
        }
    }
}

impl ObjectServer {
    pub(crate) async fn put(self: &Arc<Self>, mut req: Request) -> Result<Response, Response> {
        let target = Arc::new(self.target(&req)?);
        let timestamp = valid_timestamp(&req.headers)?;
        let constraints = &self.ctx.swift_conf.constraints;
        let delete_at = constraints.check_object_creation(req.headers.iter(), &target.obj).map_err(refuse)?;
        if let Some(delete_at) = delete_at {
            req.headers.remove(X_DELETE_AFTER);
            req.headers.insert(X_DELETE_AT, delete_at);
        }
        let put = Put {
            target,
            timestamp,
            wants: Wants::default().next_part_power(&req.headers).frag_index(&req.headers),
            commits: !req.headers.get_bool(X_BACKEND_NO_COMMIT),
            if_none_match: req.headers.get(IF_NONE_MATCH).map(Match::parse),
            size: body_size(&req.headers)?,
            awaited: req.env.get::<Awaited>().copied(),
            has_checksum: MultiStage::is_wanted(&req.headers)
                && req.headers.get_str(X_BACKEND_ARCHIVE_CHECKSUM) == Some(Checksum::ALGORITHM),
        };
        let origin = Origin::of(&req, timestamp);
        let is_small = put.size.is_some_and(|size| size <= SMALL_OBJECT);
        let (original, metadata, footers) = if MultiStage::is_wanted(&req.headers) {
            let is_one_batch = put.size.is_some_and(|size| size < WRITE_BATCH as u64);
            match is_one_batch && MultiStage::has_commit(&req.headers) && req.body.take_unasked() {
                true => self.put_unasked(&put, req).await?,
                false => self.put_multi_stage(&put, req).await?,
            }
        } else if put.waits_for_company() {
            let (original, metadata) = self.put_held(&put, req).await?;
            (original, metadata, Footers::default())
        } else if is_small && req.body.content_length().is_some() {
            let (original, metadata) = self.put_small(&put, req).await?;
            (original, metadata, Footers::default())
        } else {
            let (original, metadata) = self.put_large(&put, req).await?;
            (original, metadata, Footers::default())
        };
        self.tell_containers(&put.target, &origin, &original, &metadata, &footers).await?;
        let etag = metadata.get(ETAG).unwrap_or_default();
        Ok(Response::error(201).with_header(ETAG, [b"\"", etag, b"\""].concat()))
    }

    /// One job, or two if the client waits for 100 Continue: then the checks come before the body.
    async fn put_small(&self, put: &Put, mut req: Request) -> Result<(Original, Metadata), Response> {
        let waits = req.headers.get_str(EXPECT).is_some_and(|e| e.eq_ignore_ascii_case("100-continue"));
        let checked = match waits {
            true => Some(self.check(put).await?),
            false => None,
        };
        let deadline = self.upload_deadline();
        let data = match req.body.collect(SMALL_OBJECT as usize).await {
            Ok(data) => data,
            Err(e) => return Err(body_error(&e)),
        };
        self.check_upload_time(deadline)?;
        if put.size != Some(data.len() as u64) {
            return Err(Response::error(499));
        }
        let wanted_etag = request_etag(&req.headers);
        let metadata = self.request_metadata(&req.headers, put.timestamp, data.len() as u64);
        let (target, wants, timestamp) = (put.target.clone(), put.wants.clone(), put.timestamp);
        let (if_none_match, commits) = (put.if_none_match.clone(), put.commits);
        let rate = self.rate(put);
        let job = move || {
            let diskfile = target.diskfile(&wants)?;
            let original = match checked {
                Some(original) => original,
                None => check(&diskfile, timestamp, if_none_match.as_ref())?,
            };
            let (writer, metadata) = write_small(&diskfile, &data, metadata, &wanted_etag, &rate)?;
            let placed = writer.put_staged(metadata.clone());
            let finished = placed.and_then(move |placed| placed.finish_staged(commits));
            Ok(finished.and_then(|()| Step::Done(Ok((original, metadata)))))
        };
        self.run_staged(put, job).await
    }

    /// One job for what is a single batch and ends when others do: it is hashed, written and synced with them.
    async fn put_held(&self, put: &Put, mut req: Request) -> Result<(Original, Metadata), Response> {
        let deadline = self.upload_deadline();
        let length = put.size.unwrap_or_default();
        let (mut data, mut md5) = (Vec::new(), Md5Stream::patient(length as usize));
        while let Some(piece) = req.body.next().await {
            let piece = piece.map_err(|e| body_error(&e))?;
            md5.update(piece.clone());
            data.push(piece);
        }
        self.check_upload_time(deadline)?;
        if length != length_of(&data) {
            return Err(Response::error(499));
        }
        let wanted_etag = request_etag(&req.headers);
        let metadata = self.request_metadata(&req.headers, put.timestamp, length);
        let (target, wants, timestamp) = (put.target.clone(), put.wants.clone(), put.timestamp);
        let (if_none_match, commits) = (put.if_none_match.clone(), put.commits);
        let rate = self.rate(put);
        let job = move || {
            let diskfile = target.diskfile(&wants)?;
            let original = check(&diskfile, timestamp, if_none_match.as_ref())?;
            let writer = diskfile.writer(Some(length))?.hashed_by(md5, length).syncs_with_others();
            let (writer, metadata) = write_last(writer, data, metadata, &wanted_etag, &rate)?;
            let placed = writer.put_staged(metadata.clone());
            let finished = placed.and_then(move |placed| placed.finish_staged(commits));
            Ok(finished.and_then(|()| Step::Done(Ok((original, metadata)))))
        };
        self.run_staged(put, job).await
    }

    async fn put_large(&self, put: &Put, mut req: Request) -> Result<(Original, Metadata), Response> {
        let (original, writer) = self.open_writer(put).await?;
        let mut writer = Some(writer);
        let received = self.receive(put, &mut writer, Input::Plain(&mut req.body)).await;
        let (last, writer) = self.or_discard(put, received, writer).await?;
        let wanted_etag = request_etag(&req.headers);
        let uploaded = writer.upload_size() + length_of(&last);
        let metadata = self.request_metadata(&req.headers, put.timestamp, uploaded);
        let (commits, rate) = (put.commits, self.rate(put));
        let job = move || {
            let (placed, metadata) = place(writer, last, metadata, &wanted_etag, &rate)?;
            finish(placed, commits)?;
            Ok((original, metadata))
        };
        self.run(put, job).await
    }

    async fn put_multi_stage(
        &self,
        put: &Put,
        mut req: Request,
    ) -> Result<(Original, Metadata, Footers), Response> {
        let (original, writer) = self.open_writer(put).await?;
        let mut stages = MultiStage::begin(&mut req).await?;
        let mut writer = Some(writer);
        let received = self.receive(put, &mut writer, Input::Staged(&mut stages)).await;
        let received = match received {
            Ok(last) => match stages.footers().await {
                Ok(footers) => Ok((last, footers)),
                Err(refusal) => {
                    // The data has come all the same.
                    let (took, written) = writer
                        .as_ref()
                        .map_or_else(Default::default, |writer| (writer.write_time(), writer.upload_size()));
                    self.rate(put).tell(took, written + length_of(&last));
                    Err(refusal)
                }
            },
            Err(refusal) => Err(refusal),
        };
        let received = received.and_then(|(last, footers)| {
            let checksum = footers.checksum(put.has_checksum)?;
            Ok((last, footers, checksum))
        });
        let ((last, footers, checksum), writer) = self.or_discard(put, received, writer).await?;
        let writer = match checksum {
            Some(checksum) => writer.expecting_checksum(checksum),
            None => writer,
        };
        let uploaded = writer.upload_size() + length_of(&last);
        let (metadata, wanted_etag) = self.metadata_with_footers(&req.headers, &footers, put, uploaded);
        let rate = self.rate(put);
        let job = move || {
            let (placed, metadata) = place(writer, last, metadata, &wanted_etag, &rate)?;
            Ok((original, metadata, placed))
        };
        let (original, metadata, placed) = self.run(put, job).await?;
        self.commit(put, stages, placed).await?;
        Ok((original, metadata, footers))
    }

    /// A PUT in two phases whose data has come with the head: one job, and one for the commit.
    async fn put_unasked(
        &self,
        put: &Put,
        mut req: Request,
    ) -> Result<(Original, Metadata, Footers), Response> {
        let deadline = self.upload_deadline();
        let mut stages = MultiStage::begin(&mut req).await?;
        let data = receive_batch(&mut Input::Staged(&mut stages)).await.map_err(|e| body_error(&e))?;
        self.check_upload_time(deadline)?;
        let length = length_of(&data);
        if put.size != Some(length) {
            return Err(Response::error(499));
        }
        let rate = self.rate(put);
        let footers = stages.footers().await.inspect_err(|_| rate.tell(Duration::ZERO, length))?;
        let (metadata, wanted_etag) = self.metadata_with_footers(&req.headers, &footers, put, length);
        let (target, wants, timestamp) = (put.target.clone(), put.wants.clone(), put.timestamp);
        let if_none_match = put.if_none_match.clone();
        let checked = move || {
            let diskfile = target.diskfile(&wants)?;
            let original = check(&diskfile, timestamp, if_none_match.as_ref())?;
            Ok::<_, Refusal>((diskfile, original))
        };
        let (original, metadata, placed) = if length <= SMALL_OBJECT {
            let data = joined(data);
            let job = move || {
                let (diskfile, original) = checked()?;
                let (writer, metadata) = write_small(&diskfile, &data, metadata, &wanted_etag, &rate)?;
                let placed = writer.put_staged(metadata.clone());
                Ok(placed.and_then(move |placed| Step::Done(Ok((original, metadata, placed)))))
            };
            self.run_staged(put, job).await?
        } else {
            let checksum = footers.checksum(put.has_checksum)?;
            let job = move || {
                let (diskfile, original) = checked()?;
                let writer = diskfile.writer(Some(length))?;
                let writer = match checksum {
                    Some(checksum) => writer.with_checksum().expecting_checksum(checksum),
                    None => writer.patient(length),
                };
                let (placed, metadata) = place(writer, data, metadata, &wanted_etag, &rate)?;
                Ok((original, metadata, placed))
            };
            self.run(put, job).await?
        };
        self.commit(put, stages, placed).await?;
        Ok((original, metadata, footers))
    }

    /// The second phase.
    async fn commit(&self, put: &Put, mut stages: MultiStage, placed: Placed) -> Result<(), Response> {
        stages.commit().await?;
        if placed.is_fragment() {
            let commits = put.commits;
            let job = move || Ok(placed.finish_staged(commits).and_then(|()| Step::Done(Ok(()))));
            self.run_staged(put, job).await?;
        }
        stages.drain().await
    }

    async fn check(&self, put: &Put) -> Result<Original, Response> {
        let (target, wants, timestamp) = (put.target.clone(), put.wants.clone(), put.timestamp);
        let if_none_match = put.if_none_match.clone();
        self.run(put, move || check(&target.diskfile(&wants)?, timestamp, if_none_match.as_ref())).await
    }

    async fn open_writer(&self, put: &Put) -> Result<(Original, Writer), Response> {
        let (target, wants) = (put.target.clone(), put.wants.clone());
        let (timestamp, size) = (put.timestamp, put.size);
        let if_none_match = put.if_none_match.clone();
        let has_company = put.awaited.is_some_and(|awaited| awaited.has_company);
        let patience = size.filter(|size| has_company || *size < WRITE_BATCH as u64);
        // Of an unknown length most are short, and many.
        let is_known_long = size.is_some_and(|size| size > LONG);
        let writes_early = put.awaited.is_some() || patience.is_some() || is_known_long || size.is_none();
        let has_checksum = put.has_checksum;
        let job = move || {
            let diskfile = target.diskfile(&wants)?;
            let original = check(&diskfile, timestamp, if_none_match.as_ref())?;
            let (writer, most_held) = (diskfile.writer(size)?, diskfile.manager().most_held());
            let writer = match patience.filter(|size| *size <= most_held) {
                _ if has_checksum => writer.with_checksum(),
                Some(size) => writer.patient(size),
                None => writer,
            };
            let writer = if is_known_long { writer.writes_direct() } else { writer };
            Ok((original, if writes_early { writer.writes_early() } else { writer }))
        };
        self.run(put, job).await
    }

    /// Receives the body and writes it, but for the last batch, which is given back: who places the file writes that too.
    /// The writer is gone if writing failed.
    async fn receive(
        &self,
        put: &Put,
        writer: &mut Option<Writer>,
        mut input: Input<'_>,
    ) -> Result<Vec<Bytes>, Response> {
        let deadline = self.upload_deadline();
        let mut batch: Vec<Bytes> = Vec::new();
        loop {
            let write = self.write(put, std::mem::take(&mut batch), writer.take());
            let (wrote, received) = join(write, receive_batch(&mut input)).await;
            *writer = wrote?;
            match received {
                Ok(received) => batch = received,
                // Swift takes what isn't chunked as it should be for the end of the connection.
                Err(BodyError::Malformed(_)) if matches!(input, Input::Plain(_)) => {
                    return Err(Response::error(499));
                }
                Err(e) => return Err(body_error(&e)),
            }
            if !batch.is_empty() {
                self.check_upload_time(deadline)?;
            }
            let length = length_of(&batch);
            if length < WRITE_BATCH as u64 {
                let uploaded = writer.as_ref().map_or(0, Writer::upload_size) + length;
                if put.size.is_some_and(|size| size != uploaded) {
                    return Err(Response::error(499));
                }
                if let Some(writer) = writer.as_mut().filter(|_| put.size == Some(length)) {
                    // All of it waits for its turn on the disk now: meanwhile it is company.
                    writer.hash_ahead(&batch);
                }
                return Ok(batch);
            }
        }
    }

    fn upload_deadline(&self) -> Instant {
        Instant::now() + self.options.max_upload_time.min(Duration::from_secs(1 << 32))
    }

    fn check_upload_time(&self, deadline: Instant) -> Result<(), Response> {
        if Instant::now() <= deadline {
            return Ok(());
        }
        self.ctx.statsd.increment("PUT.timeouts");
        Err(Response::error(408))
    }

    fn rate(&self, put: &Put) -> Rate {
        let statsd = Some(&self.ctx.statsd).filter(|statsd| statsd.is_enabled());
        Rate(statsd.map(|statsd| (statsd.clone(), format!("PUT.{}.timing", put.target.device))))
    }

    async fn write(
        &self,
        put: &Put,
        batch: Vec<Bytes>,
        writer: Option<Writer>,
    ) -> Result<Option<Writer>, Response> {
        let Some(mut writer) = writer else { return Ok(None) };
        if batch.is_empty() {
            return Ok(Some(writer));
        }
        let job = move || {
            batch.into_iter().try_for_each(|piece| writer.write(piece))?;
            Ok(Some(writer))
        };
        self.run(put, job).await
    }

    /// What was received last and the writer; or what was written of an upload that failed is closed, where closing may take its time.
    async fn or_discard<T>(
        &self,
        put: &Put,
        received: Result<T, Response>,
        writer: Option<Writer>,
    ) -> Result<(T, Writer), Response> {
        match (received, writer) {
            (Ok(received), Some(writer)) => Ok((received, writer)),
            (Ok(_), None) => Err(Response::error(500)),
            (Err(refusal), None) => Err(refusal),
            (Err(refusal), Some(writer)) => {
                self.ctx.disk_pools.run(&put.target.device, move || drop(writer)).await;
                Err(refusal)
            }
        }
    }

    async fn run<T, F>(&self, put: &Put, job: F) -> Result<T, Response>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Refusal> + Send + 'static,
    {
        self.ctx.disk_pools.run(&put.target.device, job).await.map_err(|refusal| self.refused(put, refusal))
    }

    /// The same for what is small, and stops where it needs a sync.
    async fn run_staged<T, F>(&self, put: &Put, job: F) -> Result<T, Response>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<Step<Result<T, Refusal>>, Refusal> + Send + 'static,
    {
        let job = move || job().unwrap_or_else(|refusal| Step::Done(Err(refusal)));
        let done = self.ctx.disk_pools.run_staged(&put.target.device, job).await;
        done.map_err(|refusal| self.refused(put, refusal))
    }

    fn refused(&self, put: &Put, refusal: Refusal) -> Response {
        let target = &put.target;
        match refusal {
            Refusal::Disk(e) => self.disk_error(e, &target.device, &Method::Put, &target.logger),
            Refusal::Conflict(timestamp) => {
                Response::error(409).with_header(X_BACKEND_TIMESTAMP, timestamp.internal())
            }
            Refusal::Precondition => Response::error(412),
            Refusal::BadEtag => Response::error(422),
        }
    }

    /// The metadata that a request's headers make; the ETag comes when the body is known.
    fn request_metadata(&self, headers: &Headers, timestamp: Timestamp, length: u64) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert(X_TIMESTAMP, timestamp.internal());
        metadata.insert(CONTENT_TYPE, to_stored(headers.get(CONTENT_TYPE).unwrap_or_default()));
        metadata.insert(CONTENT_LENGTH, length.to_string());
        metadata.insert(ETAG, "");
        for (name, value) in headers.iter().filter(|(name, _)| is_object_meta(name)) {
            metadata.insert(to_stored(&headers::title_case_bytes(name)), to_stored(value));
        }
        self.copy_allowed_headers(headers, &mut metadata);
        metadata
    }

    /// The same with what the footers say; and the ETag that the client expects.
    fn metadata_with_footers(
        &self,
        headers: &Headers,
        footers: &Footers,
        put: &Put,
        length: u64,
    ) -> (Metadata, Vec<u8>) {
        let mut metadata = self.request_metadata(headers, put.timestamp, length);
        for (name, value) in footers.iter().filter(|(name, _)| is_object_meta(name)) {
            metadata.insert(to_stored(&headers::title_case_bytes(name)), to_stored(value));
        }
        let wanted_etag = footers.etag().map_or_else(|| request_etag(headers), |etag| unquote_etag(&etag));
        (metadata, wanted_etag)
    }

    /// Copies the headers that are metadata without a prefix: those allowed, and those that replication names.
    pub(crate) fn copy_allowed_headers(&self, headers: &Headers, metadata: &mut Metadata) {
        let replicated = headers.get_str(X_BACKEND_REPLICATION_HEADERS).unwrap_or_default();
        for (name, value) in headers.iter() {
            let named =
                || replicated.split_whitespace().any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
            if self.is_allowed_header(name) || named() {
                metadata.insert(to_stored(&headers::title_case_bytes(name)), to_stored(value));
            }
        }
    }

    async fn tell_containers(
        self: &Arc<Self>,
        target: &Arc<Target>,
        origin: &Origin,
        original: &Original,
        metadata: &Metadata,
        footers: &Footers,
    ) -> Result<(), Response> {
        let delete_at = delete_at_of(&origin.headers);
        self.delete_at_updates(target, origin, Some(metadata), original.delete_at, delete_at).await?;
        let mut update = Headers::new();
        update.insert("X-Size", metadata.get(CONTENT_LENGTH).unwrap_or_default());
        update.insert("X-Content-Type", origin.headers.get(CONTENT_TYPE).unwrap_or_default());
        update.insert(X_TIMESTAMP, origin.timestamp.internal());
        update.insert("X-Etag", metadata.get(ETAG).unwrap_or_default());
        apply_overrides(&mut update, origin.headers.iter(), footers.iter());
        self.container_update(Method::Put, target, origin, update).await
    }
}

/// Who is told how fast a device takes data; nobody, without statsd.
struct Rate(Option<(Statsd, String)>);

impl Rate {
    fn tell(&self, took: Duration, uploaded: u64) {
        if let Some((statsd, metric)) = &self.0 {
            statsd.transfer_rate(metric, took, uploaded, None);
        }
    }
}

/// The job that looks at what is there.
fn check(
    diskfile: &DiskFile,
    timestamp: Timestamp,
    if_none_match: Option<&Match>,
) -> Result<Original, Refusal> {
    let (original, there) = match diskfile.open(Some(timestamp)) {
        Ok(opened) => {
            let etag = opened.etag();
            if if_none_match.is_some_and(|tags| tags.matches(etag)) {
                return Err(Refusal::Precondition);
            }
            let delete_at = stored_delete_at(opened.metadata());
            (Original { delete_at }, opened.data_timestamp())
        }
        Err(DiskFileError::Deleted { timestamp, .. } | DiskFileError::Expired { timestamp, .. }) => {
            (Original::default(), timestamp)
        }
        Err(DiskFileError::NotExist | DiskFileError::Quarantined(_) | DiskFileError::StateChanged) => {
            (Original::default(), Timestamp::ZERO)
        }
        Err(e) => return Err(e.into()),
    };
    if there >= timestamp { Err(Refusal::Conflict(there)) } else { Ok(original) }
}

/// Writes what is left, and places the file.
fn place(
    writer: Writer,
    last: Vec<Bytes>,
    metadata: Metadata,
    wanted_etag: &[u8],
    rate: &Rate,
) -> Result<(Placed, Metadata), Refusal> {
    let (writer, metadata) = write_last(writer, last, metadata, wanted_etag, rate)?;
    Ok((writer.put(metadata.clone())?, metadata))
}

/// Writes what is left. The metadata with the ETag, which must be the one that was wanted.
fn write_last(
    mut writer: Writer,
    last: Vec<Bytes>,
    metadata: Metadata,
    wanted_etag: &[u8],
    rate: &Rate,
) -> Result<(Writer, Metadata), Refusal> {
    last.into_iter().try_for_each(|piece| writer.write(piece))?;
    rate.tell(writer.write_time(), writer.upload_size());
    let metadata = match std::str::from_utf8(wanted_etag) {
        // Whether it is the data's is found out while others wait for the disk, together with theirs.
        Ok(expected) if expected.len() == 32 => {
            writer.expect_etag(expected);
            with_etag(metadata, expected.to_owned(), wanted_etag)?
        }
        _ => {
            writer.begin_sync();
            with_etag(metadata, writer.etag(), wanted_etag)?
        }
    };
    Ok((writer, metadata))
}

/// Writes data that is there as a whole.
fn write_small(
    diskfile: &DiskFile,
    data: &[u8],
    metadata: Metadata,
    wanted_etag: &[u8],
    rate: &Rate,
) -> Result<(Writer, Metadata), Refusal> {
    let began = Instant::now();
    let etag = hex(&md5(data));
    let mut took = began.elapsed();
    let written = with_etag(metadata, etag, wanted_etag).and_then(|metadata| {
        let (writer, writing) = diskfile.write_small(data)?;
        took += writing;
        Ok((writer, metadata))
    });
    rate.tell(took, data.len() as u64);
    written
}

fn finish(placed: Placed, commits: bool) -> Result<(), DiskFileError> {
    if commits { placed.commit() } else { placed.keep() }
}

/// One piece of all, which are few and small.
fn joined(mut batch: Vec<Bytes>) -> Bytes {
    match batch.len() {
        1 => batch.remove(0),
        _ => batch.concat().into(),
    }
}

fn length_of(batch: &[Bytes]) -> u64 {
    batch.iter().map(|piece| piece.len() as u64).sum()
}

/// Receives until a batch is full; less at the end of the body.
async fn receive_batch(input: &mut Input<'_>) -> Result<Vec<Bytes>, BodyError> {
    let (mut batch, mut length) = (Vec::new(), 0);
    while length < WRITE_BATCH {
        match input.next().await {
            Some(piece) => {
                let piece = piece?;
                length += piece.len();
                batch.push(piece);
            }
            None => break,
        }
    }
    Ok(batch)
}

fn with_etag(mut metadata: Metadata, etag: String, wanted: &[u8]) -> Result<Metadata, Refusal> {
    if !wanted.is_empty() && wanted != etag.as_bytes() {
        return Err(Refusal::BadEtag);
    }
    metadata.insert(ETAG, etag);
    Ok(metadata)
}

fn is_object_meta(name: &[u8]) -> bool {
    std::str::from_utf8(name)
        .is_ok_and(|name| is_sys_or_user_meta(ServerType::Object, name) || is_object_transient_sysmeta(name))
}

/// The length of the body as the headers tell it, or as a proxy that sends it in pieces does.
fn body_size(headers: &Headers) -> Result<Option<u64>, Response> {
    let length =
        message_length(headers.get(TRANSFER_ENCODING), headers.get(CONTENT_LENGTH)).map_err(refuse)?;
    if let Some(length) = length {
        return Ok(Some(length.max(0) as u64));
    }
    let Some(told) = headers.get_str(X_BACKEND_OBJ_CONTENT_LENGTH) else { return Ok(None) };
    common::config::parse_int(told)
        .map(Some)
        .ok_or_else(|| Response::text(400, format!("invalid literal for int() with base 10: '{told}'")))
}

/// The ETag that the client expects, without quotes; empty if it expects none.
fn request_etag(headers: &Headers) -> Vec<u8> {
    unquote_etag(headers.get(ETAG).unwrap_or_default())
}

fn unquote_etag(etag: &[u8]) -> Vec<u8> {
    match etag {
        [b'"', inner @ .., b'"'] => inner.to_vec(),
        _ => etag.to_vec(),
    }
}

/// X-Delete-At of a request that has been checked; 0 for none.
pub(crate) fn delete_at_of(headers: &Headers) -> u64 {
    headers.get_str(X_DELETE_AT).and_then(common::config::parse_int).unwrap_or(0)
}

/// X-Delete-At of an object; 0 for none.
pub(crate) fn stored_delete_at(metadata: &Metadata) -> u64 {
    metadata.get_str(X_DELETE_AT).and_then(common::config::parse_float).map_or(0, |at| at.max(0.0) as u64)
}

pub(crate) fn refuse((status, text): (u16, String)) -> Response {
    Response::text(status, text)
}

/// The answer when a body ends before its end.
pub(crate) fn body_error(e: &BodyError) -> Response {
    match e {
        BodyError::Timeout => Response::error(408),
        BodyError::Malformed(text) => Response::text(400, text.to_string()),
        _ => Response::error(499),
    }
}
