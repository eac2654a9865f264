//! GET and HEAD.
//!
//! What of a small object that is known is in memory is sent at once (`diskfile/in_memory.rs`), unless requests come in a rush.
//! Another is opened, read and checked in one job of its device's pool, and sent from memory; in a rush it is checked when the job
//! is done, with others whose jobs are. A larger one is read in batches, one job each, while it is sent; its last bytes go out
//! only when the MD5 of all has been checked. One that is a single batch, such as most fragments, is opened, read and checked in one
//! job.

use std::sync::Arc;

use bytes::Bytes;
use common::digest::{GroupedMd5, Md5Group, hex};
use common::headers::*;
use common::wsgi::from_stored;
use common::{Timestamp, headers};
use parking_lot::Mutex;
use service::disk_pool::DiskPools;
use service::http::conditional::{ConditionalOptions, Conditions, RangeSource, resolve_etag_is_at};
use service::http::{Body, BodyError, BodyStream, BoxFuture, Headers, Method, Request, Response};

use crate::diskfile::{DiskFileError, Metadata, OpenDiskFile, Reader, ReaderOptions, SMALL_OBJECT};
use crate::server::{ObjectServer, Target, Wants};

/// What one job reads of a large object: a little more than a fragment of a fourth of a MiB.
const READ_BATCH: u64 = 320 * 1024;
/// What is no larger costs the runtime's thread less to hash than a request does.
const QUICKLY_HASHED: u64 = 16 * 1024;

/// What the head of a response tells about an object.
struct Info {
    metadata: Metadata,
    timestamp: Timestamp,
    data_timestamp: Timestamp,
    durable_timestamp: Option<Timestamp>,
    fragments: Vec<(Timestamp, Vec<u32>)>,
    content_length: u64,
}

impl Info {
    /// What `opened` tells besides its metadata.
    fn of(opened: &OpenDiskFile) -> Self {
        Info {
            metadata: Metadata::new(),
            timestamp: opened.timestamp(),
            data_timestamp: opened.data_timestamp(),
            durable_timestamp: opened.durable_timestamp(),
            fragments: opened.fragments().to_vec(),
            content_length: opened.content_length(),
        }
    }

    fn has_etag(&self, md5: [u8; 16]) -> bool {
        self.metadata.get(ETAG) == Some(hex(&md5).as_bytes())
    }

    fn with_metadata(self, metadata: Metadata) -> Self {
        Info { metadata, ..self }
    }
}

enum Content {
    /// A HEAD.
    None,
    /// Unless it has been checked already, it is to be before it is sent.
    Small(Bytes, Option<GroupedMd5>),
    Large(Box<Begun>),
}

/// A large object.
struct Begun {
    reader: Reader,
    /// All of it, if it has been read.
    ahead: Option<Bytes>,
    /// Whoever has asked for it checks its ETag.
    is_unchecked: bool,
}

/// How an object is to be read.
#[derive(Clone)]
struct Reading {
    is_private: bool,
    /// A daemon reads it, as nobody else will soon.
    for_replication: bool,
    keep_cache_private: bool,
    keep_cache_slo_manifest: bool,
    verify_etag: bool,
    /// Whoever asks would check the ETag.
    reader_checks: bool,
    /// All of it is asked for.
    whole: bool,
    /// Where what is [`QUICKLY_HASHED`] may wait to be checked with others.
    company: Option<Md5Group>,
}

impl Reading {
    fn begin(self, opened: OpenDiskFile) -> Result<Begun, DiskFileError> {
        let keep_cache = self.keeps_cache(opened.metadata());
        let length = opened.content_length();
        let is_one_batch = self.whole && length <= READ_BATCH;
        let is_unchecked = self.verify_etag && self.reader_checks && is_one_batch && opened.is_one_fragment();
        let verify_etag = self.verify_etag && !is_unchecked;
        let mut reader = opened.reader(ReaderOptions { keep_cache, verify_etag, patient: false });
        if !is_one_batch {
            return Ok(Begun { reader, ahead: None, is_unchecked });
        }
        let ahead = reader.read(0, length as usize)?;
        match reader.check() {
            Some(reason) => Err(DiskFileError::Quarantined(reason)),
            None => Ok(Begun { reader, ahead: Some(ahead), is_unchecked }),
        }
    }

    /// Whether an object may stay in the page cache, if it is not too large.
    fn keeps_cache(&self, metadata: &Metadata) -> bool {
        let is_manifest = metadata.get_str(X_STATIC_LARGE_OBJECT).is_some_and(is_true_value);
        let is_kept = self.keep_cache_private || !self.is_private;
        !self.for_replication && (is_kept || (self.keep_cache_slo_manifest && is_manifest))
    }
}

impl ObjectServer {
    /// GET and HEAD. `labeled` is set to the status before conditions where Swift's labeled timings have that one.
    pub(crate) async fn get(
        self: &Arc<Self>,
        mut req: Request,
        labeled: &mut Option<u16>,
    ) -> Result<Response, Response> {
        let target = self.target(&req)?;
        let now = self.ensure_timestamp(&req.headers)?;
        let (wants, head, method) =
            (Wants::expired(&req.headers).frag_prefs(&req.headers), req.is_head(), req.method.clone());
        let device = target.device.clone();
        let logger = target.logger.clone();
        let reading = (!head).then(|| self.reading(&req.headers));
        let calm = self.rush.is_calm();
        let opened = match calm.then(|| open_in_memory(&target, &wants, head)).flatten() {
            Some(opened) => Ok(opened),
            None => {
                let company = (!calm).then(|| self.small_gets.clone());
                let job = {
                    let reading = reading.clone().map(|reading| Reading { company, ..reading });
                    move || open(&target, wants, now, reading)
                };
                self.ctx.disk_pools.run(&device, job).await
            }
        };
        let opened = match opened {
            Ok((info, Content::Small(_, Some(md5)))) if !info.has_etag(md5.digest()) => {
                // Once more, to be quarantined if it is so.
                let target = self.target(&req)?;
                let wants = Wants::expired(&req.headers).frag_prefs(&req.headers);
                self.ctx.disk_pools.run(&device, move || open(&target, wants, now, reading)).await
            }
            opened => opened,
        };
        let (info, content) = match opened {
            Ok(opened) => opened,
            Err(e) => return Ok(self.not_opened(e, &device, &method, &logger, &req, labeled)),
        };
        if has_ignored_range(&req.headers, &info.metadata) {
            req.headers.remove(RANGE);
        }
        let mut response = self.head_of(&info);
        let etag = resolve_etag_is_at(&req.headers, |name| info.metadata.get_str(headers::title_case(name)));
        let mut options = ConditionalOptions { etag: etag.map(str::to_owned), ..Default::default() };
        match content {
            Content::None => response.headers.insert(CONTENT_LENGTH, info.content_length),
            Content::Small(data, _) => response.body = data.into(),
            Content::Large(begun) => {
                let Begun { reader, ahead, is_unchecked } = *begun;
                if is_unchecked {
                    response.headers.insert(X_BACKEND_ETAG_UNCHECKED, "true");
                }
                let reader = Arc::new(Mutex::new(Some(reader)));
                let file = DiskBody { reader, ahead, pools: self.ctx.disk_pools.clone(), device };
                response.body = file.stream(0, info.content_length);
                options.source = Some(Box::new(file));
            }
        }
        *labeled = head.then_some(response.status.0);
        response.apply_conditions(&Conditions::of(&req), options);
        Ok(response)
    }

    fn not_opened(
        &self,
        e: DiskFileError,
        device: &str,
        method: &Method,
        logger: &service::logs::Logger,
        req: &Request,
        labeled: &mut Option<u16>,
    ) -> Response {
        let mut response = self.disk_error(e, device, method, logger);
        *labeled = Some(response.status.0);
        if response.status.0 == 404 {
            // If-Match: * of what isn't there is 412.
            response.apply_conditions(&Conditions::of(req), ConditionalOptions::default());
        }
        response
    }

    /// The time of a request that need not have one.
    fn ensure_timestamp(&self, headers: &Headers) -> Result<Timestamp, Response> {
        let Some(value) = headers.get(X_TIMESTAMP) else { return Ok(self.ctx.clock.now()) };
        let value = String::from_utf8_lossy(value);
        Timestamp::parse(&value).map_err(|_| {
            let text = format!("X-Timestamp should be a UNIX timestamp float value; was '{value}'");
            Response::text(400, text)
        })
    }

    /// The headers that an object's metadata becomes.
    fn head_of(&self, info: &Info) -> Response {
        let mut response = Response::new(200);
        let out = &mut response.headers;
        let content_type = info.metadata.get(CONTENT_TYPE).unwrap_or(b"application/octet-stream");
        out.insert(CONTENT_TYPE, &*from_stored(content_type));
        for (name, value) in info.metadata.iter() {
            if self.is_shown(name) {
                out.insert(from_stored(name), &*from_stored(value));
            }
        }
        out.insert(ETAG, [b"\"", info.metadata.get(ETAG).unwrap_or_default(), b"\""].concat());
        out.insert(LAST_MODIFIED, info.timestamp.http_date());
        if let Some(encoding) = info.metadata.get(CONTENT_ENCODING) {
            out.insert(CONTENT_ENCODING, &*from_stored(encoding));
        }
        out.insert(X_TIMESTAMP, info.timestamp.normal());
        out.insert(X_BACKEND_TIMESTAMP, info.timestamp.internal());
        out.insert(X_BACKEND_DATA_TIMESTAMP, info.data_timestamp.internal());
        if let Some(durable) = info.durable_timestamp {
            out.insert(X_BACKEND_DURABLE_TIMESTAMP, durable.internal());
        }
        if !info.fragments.is_empty() {
            out.insert(X_BACKEND_FRAGMENTS, fragments_header(&info.fragments));
        }
        response
    }

    fn is_shown(&self, name: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(name) else { return false };
        is_sys_or_user_meta(ServerType::Object, text)
            || is_object_transient_sysmeta(text)
            || self.is_allowed_header(name)
    }

    fn reading(&self, headers: &Headers) -> Reading {
        let frac = self.options.etag_validate_frac;
        Reading {
            is_private: headers.contains(X_AUTH_TOKEN) || headers.contains(X_STORAGE_TOKEN),
            for_replication: headers.get_bool(X_BACKEND_REPLICATION),
            keep_cache_private: self.options.keep_cache_private,
            keep_cache_slo_manifest: self.options.keep_cache_slo_manifest,
            verify_etag: frac >= 1.0 || self.ctx.rng.next_f64() < frac,
            reader_checks: headers.get_bool(X_BACKEND_CHECKS_ETAG),
            whole: !headers.contains(RANGE),
            company: None,
        }
    }
}

/// What `open` would do, if that needs no disk.
fn open_in_memory(target: &Target, wants: &Wants, head: bool) -> Option<(Info, Content)> {
    let opened = target.open_in_memory(wants)?;
    let content = if head { Content::None } else { Content::Small(opened.read_in_memory()?.into(), None) };
    Some((Info::of(&opened).with_metadata(opened.into_metadata()), content))
}

/// The job that opens an object, and unless that is all, reads it if it is small.
fn open(
    target: &Target,
    wants: Wants,
    now: Timestamp,
    reading: Option<Reading>,
) -> Result<(Info, Content), DiskFileError> {
    let opened = target.diskfile_to_open(&wants)?.open_known(Some(now))?;
    let info = Info::of(&opened);
    let Some(reading) = reading else {
        return Ok((info.with_metadata(opened.into_metadata()), Content::None));
    };
    if opened.content_length() > SMALL_OBJECT {
        let info = info.with_metadata(opened.metadata().clone());
        return Ok((info, Content::Large(Box::new(reading.begin(opened)?))));
    }
    let company = reading.company.filter(|_| reading.verify_etag && info.content_length <= QUICKLY_HASHED);
    let read = opened.read_small_with(reading.verify_etag && company.is_none())?;
    if let Some(reason) = read.quarantined {
        return Err(DiskFileError::Quarantined(reason));
    }
    let data = Bytes::from(read.data);
    let md5 = company.map(|company| company.add(data.clone()));
    Ok((info.with_metadata(opened.into_metadata()), Content::Small(data, md5)))
}

/// The JSON of a dict of lists, as Python writes it.
fn fragments_header(fragments: &[(Timestamp, Vec<u32>)]) -> String {
    let set = |(timestamp, indexes): &(Timestamp, Vec<u32>)| {
        let indexes: Vec<String> = indexes.iter().map(u32::to_string).collect();
        format!("\"{}\": [{}]", timestamp.internal(), indexes.join(", "))
    };
    format!("{{{}}}", fragments.iter().map(set).collect::<Vec<_>>().join(", "))
}

/// Whether the metadata has one of the names for which a range is ignored.
fn has_ignored_range(headers: &Headers, metadata: &Metadata) -> bool {
    let names = headers.get_str(X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT).unwrap_or_default();
    names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .any(|name| metadata.iter().any(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes())))
}

/// A large object that is being read. The reader travels to the device's threads and back.
struct DiskBody {
    reader: Arc<Mutex<Option<Reader>>>,
    /// All of it, if it has been read.
    ahead: Option<Bytes>,
    pools: DiskPools,
    device: String,
}

impl DiskBody {
    fn stream(&self, offset: u64, end: u64) -> Body {
        let stream = DiskStream {
            reader: self.reader.clone(),
            ahead: self.ahead.clone().filter(|_| offset == 0),
            pools: self.pools.clone(),
            device: self.device.clone(),
            offset,
            end,
        };
        Body::stream(stream).with_length(end - offset)
    }
}

impl RangeSource for DiskBody {
    fn range(&mut self, start: u64, end: u64) -> Body {
        self.stream(start, end)
    }
}

struct DiskStream {
    reader: Arc<Mutex<Option<Reader>>>,
    ahead: Option<Bytes>,
    pools: DiskPools,
    device: String,
    offset: u64,
    end: u64,
}

impl DiskStream {
    async fn next_batch(&mut self) -> Result<Bytes, BodyError> {
        // Only one body of an object is read at a time: its ranges come one after the other.
        let taken = self.reader.lock().take();
        let mut reader = taken.ok_or_else(|| BodyError::Other("the object is not open".to_owned()))?;
        let (offset, end) = (self.offset, self.end);
        let whole = end == reader.content_length();
        // Nobody gets the last bytes of an object that isn't what its ETag says.
        let check = move |reader: &mut Reader, read: usize| match whole && offset + read as u64 >= end {
            true => reader.check().map_or(Ok(()), |reason| Err(DiskFileError::Quarantined(reason))),
            false => Ok(()),
        };
        let read: Result<_, DiskFileError> = match self.ahead.take().filter(|_| whole) {
            Some(batch) => Ok((batch, reader)),
            None => {
                let job = move || {
                    let batch = reader.read(offset, (end - offset).min(READ_BATCH) as usize)?;
                    check(&mut reader, batch.len())?;
                    // Another range may follow.
                    Ok((batch, reader))
                };
                self.pools.run(&self.device, job).await
            }
        };
        let (batch, reader) = read.map_err(|e| BodyError::Other(e.to_string()))?;
        *self.reader.lock() = Some(reader);
        if batch.is_empty() {
            return Err(BodyError::Other("the object is shorter than its metadata says".to_owned()));
        }
        self.offset += batch.len() as u64;
        Ok(batch)
    }
}

impl BodyStream for DiskStream {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            match self.offset < self.end {
                true => Some(self.next_batch().await),
                false => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_page_cache() {
        let reading = |is_private, keep_cache_private, keep_cache_slo_manifest| Reading {
            is_private,
            for_replication: false,
            keep_cache_private,
            keep_cache_slo_manifest,
            verify_etag: true,
            reader_checks: false,
            whole: true,
            company: None,
        };
        let plain = Metadata::new();
        let manifest = Metadata::from_iter([(X_STATIC_LARGE_OBJECT, "True")]);
        let keeps = |reading: Reading| (reading.keeps_cache(&plain), reading.keeps_cache(&manifest));
        assert_eq!(keeps(reading(false, false, false)), (true, true));
        assert_eq!(keeps(reading(true, false, false)), (false, false));
        assert_eq!(keeps(reading(true, false, true)), (false, true));
        assert_eq!(keeps(reading(true, true, false)), (true, true));
        assert_eq!(keeps(Reading { for_replication: true, ..reading(false, true, true) }), (false, false));
    }
}
