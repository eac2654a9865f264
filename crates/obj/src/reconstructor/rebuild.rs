//! Rebuilding one fragment archive of those on other nodes, while it is sent to where it is missing.
//!
//! The archive that is here is one source; a small one has been read and checked with those of the same batch. As many other
//! primaries as are needed are asked for a fragment of the object's timestamp, be it durable or not, and all the rest once
//! one has failed, has another one, or is late; their answers are sorted by timestamp. As soon as one has enough
//! different fragments (not of other data, as Swift allows: the metadata are those of the archive here), those are read, a fragment of
//! one segment each at a time, and the wanted fragment of that segment is made of them: memory does not depend on the object's size.
//! When a source ends early, so does the archive, and the byte count of the PUT keeps the receiver from taking it for whole.
//! Archives of one fragment are read as a whole, and servers that can (ours) are asked to leave the check of their ETags to us: hashed
//! together all of them cost little more than one does at its server. Of one that is corrupt its server is asked again, so that it
//! checks and quarantines it, and so are all others.
//! (Swift asks all at once, itself too, and drops the answers that come last, with their connections.)
//!
//! A fragment of which nobody has any others can never become an object again. With `quarantine_threshold` such a one goes
//! to quarantine: when it is older than `quarantine_age`, all primaries and as many handoffs as `request_node_count` says
//! answer 404, and there are no more than that many fragments.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::Timestamp;
use common::digest::Md5Stream;
use common::headers::{
    ETAG, X_BACKEND_CHECKS_ETAG, X_BACKEND_DATA_TIMESTAMP, X_BACKEND_DURABLE_TIMESTAMP,
    X_BACKEND_ETAG_UNCHECKED, X_BACKEND_FRAGMENT_PREFERENCES, X_BACKEND_REPLICATION,
    X_BACKEND_STORAGE_POLICY_INDEX, X_BACKEND_TIMESTAMP, X_OBJECT_SYSMETA_EC_ETAG,
    X_OBJECT_SYSMETA_EC_FRAG_INDEX,
};
use common::quote::quote_path;
use ec::Codec;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use ring::Node;
use service::context::Context;
use service::disk_pool::DiskPools;
use service::http::client::Timeouts;
use service::http::{Body, BodyError, BodyStream, BoxFuture, Headers, Method, Response};
use service::logs::Logger;
use tokio::sync::SemaphorePermit;

use super::job::Part;
use super::{ReconstructorConf, full_path};
use crate::diskfile::{DiskFileError, OpenDiskFile, Reader};
use crate::ssync::sender::{LocalArchive, Rebuilder, Rebuilt};

/// Stands for an answer that did not come, or that says nothing.
const UNKNOWN: u16 = 0;

const COULD_NOT: &str = "Unable to reconstruct EC archive of";

/// For so long nobody else is asked.
const LATE: Duration = Duration::from_millis(500);

/// Rebuilds the fragment of one node of a partition.
pub struct FragmentRebuilder<'a> {
    pub ctx: &'a Context,
    pub logger: &'a Logger,
    pub conf: &'a ReconstructorConf,
    pub part: &'a Arc<Part>,
    /// Where the fragment is missing, and which one that is.
    pub node: &'a Node,
    pub wanted: u32,
    /// The fragment that is here.
    pub local: u32,
}

/// Where a fragment archive comes from.
enum Found {
    Here,
    There(There),
}

/// The archive of another server.
struct There {
    node: Node,
    body: Body,
    /// Its ETag, if it is for us to check that.
    unchecked: Option<String>,
}

/// Answers of one timestamp.
#[derive(Default)]
struct Bucket {
    num_responses: usize,
    /// One of each fragment but the wanted one.
    useful: Vec<(u32, Found)>,
    durable: bool,
    etag: Option<String>,
}

/// All answers so far.
#[derive(Default)]
struct Answers {
    buckets: BTreeMap<Timestamp, Bucket>,
    /// How many of each status.
    errors: BTreeMap<u16, usize>,
}

impl Answers {
    /// Different fragments of a timestamp.
    fn useful(&self, timestamp: Timestamp) -> usize {
        self.buckets.get(&timestamp).map_or(0, |bucket| bucket.useful.len())
    }

    /// Whether fragments of one timestamp may go with the metadata of the other.
    fn have_same_data(&self, one: Timestamp, other: Timestamp) -> bool {
        let etag = |timestamp| self.buckets.get(&timestamp).and_then(|bucket| bucket.etag.as_ref());
        one == other || (etag(one).is_some() && etag(one) == etag(other))
    }

    fn error(&mut self, status: u16) {
        *self.errors.entry(status).or_default() += 1;
    }
}

impl Rebuilder for FragmentRebuilder<'_> {
    fn rebuild(&self, archive: LocalArchive) -> BoxFuture<'_, Result<Rebuilt, DiskFileError>> {
        Box::pin(self.rebuild_fragment(archive))
    }
}

impl FragmentRebuilder<'_> {
    async fn rebuild_fragment(&self, mut archive: LocalArchive) -> Result<Rebuilt, DiskFileError> {
        let opened = archive.reader.opened();
        if !opened.validate_metadata() {
            return Err(self.quarantine(archive, format!("Invalid fragment #{}", self.local)).await);
        }
        let manager = &self.part.manager;
        let (Some(codec), Some(fragment_len)) = (manager.codec(), manager.fragment_len()) else {
            return Err(cannot(opened, "no code for"));
        };
        let mut metadata = opened.datafile_metadata().clone();
        // The receiver computes its own.
        metadata.remove("ETag");
        metadata.remove("Etag");
        metadata.insert(X_OBJECT_SYSMETA_EC_FRAG_INDEX, self.wanted.to_string());
        let content_length = opened.content_length();
        let name = format!("{} policy#{}", opened.name(), manager.policy().0);
        if archive.whole.is_some() && archive.is_one_fragment() {
            // Of one that is not what its ETag says the server is told, and checks the next time.
            for we_check in [true, false] {
                let sources;
                (archive, sources) = self.sources(archive, we_check).await?;
                let fragments;
                (archive, fragments) = self.read_and_check(archive, codec, sources, &name).await?;
                let Some(fragments) = fragments else { continue };
                return match codec.reconstruct(&fragments, self.wanted as usize) {
                    Ok(fragment) => Ok(Rebuilt { metadata, content_length, body: Body::from(fragment) }),
                    Err(err) => {
                        self.log_error(&name, &err.to_string());
                        Err(cannot(archive.reader.opened(), COULD_NOT))
                    }
                };
            }
            return Err(cannot(archive.reader.opened(), COULD_NOT));
        }
        let (archive, sources) = self.sources(archive, false).await?;
        let mut here = Some(archive);
        let sources = sources.into_iter().filter_map(|(_, found)| match found {
            Found::There(there) => Some(Source::There(there.body)),
            Found::Here => {
                here.take().map(|archive| Source::Here(Box::new(self.read(archive, fragment_len))))
            }
        });
        let archive = Archive {
            sources: sources.collect(),
            codec: codec.clone(),
            fragment_len,
            wanted: self.wanted,
            name,
            logger: self.logger.clone(),
        };
        Ok(Rebuilt { metadata, content_length, body: Body::stream(archive) })
    }

    /// As many archives as are needed, by their fragment indexes.
    async fn sources(
        &self,
        archive: LocalArchive,
        we_check: bool,
    ) -> Result<(LocalArchive, Vec<(u32, Found)>), DiskFileError> {
        let opened = archive.reader.opened();
        let mut answers = Answers::default();
        let Some(timestamp) = self.ask(opened, we_check, &mut answers).await else {
            self.log_failure(opened, &answers);
            if self.is_quarantine_candidate(&answers, opened.data_timestamp()) {
                return Err(self.quarantine(archive, format!("Solitary fragment #{}", self.local)).await);
            }
            return Err(cannot(opened, COULD_NOT));
        };
        let mut sources = answers.buckets.remove(&timestamp).unwrap_or_default().useful;
        sources.truncate(self.part.scheme.ndata);
        self.logger.debug(format_args!(
            "Reconstruct frag #{} with frag indexes {:?}",
            self.wanted,
            sources.iter().map(|(index, _)| index).collect::<Vec<_>>()
        ));
        Ok((archive, sources))
    }

    /// Archives of one fragment, which are all that is read of each of them. Those whose ETags nobody has checked, and the one that
    /// is here, are hashed together. None if another one is not what its ETag says, or shorter.
    async fn read_and_check(
        &self,
        archive: LocalArchive,
        codec: &Codec,
        sources: Vec<(u32, Found)>,
        name: &str,
    ) -> Result<(LocalArchive, Option<Vec<Bytes>>), DiskFileError> {
        let len = archive.reader.content_length() as usize;
        let here = archive.whole.as_ref().map(|(whole, _)| whole.clone()).unwrap_or_default();
        let read = join_all(sources.into_iter().map(|(index, found)| {
            let here = here.clone();
            async move {
                match found {
                    Found::Here => Ok((here, None)),
                    Found::There(mut there) => {
                        let read = read_whole(&mut there.body, codec, len).await;
                        read.map_err(|err| (index, err)).map(|read| (read, Some((index, there))))
                    }
                }
            }
        }));
        let mut fragments = Vec::new();
        let mut unchecked = Vec::new();
        for read in read.await {
            let (fragment, there) = match read {
                Ok(read) => read,
                Err((index, err)) => {
                    self.log_error(name, &format!("frag #{index}: {err}"));
                    return Ok((archive, None));
                }
            };
            if let Some((index, There { unchecked: Some(etag), node, .. })) = there {
                let mut md5 = Md5Stream::patient(len);
                md5.update(fragment.clone());
                unchecked.push((index, node, etag, md5));
            }
            fragments.push(fragment);
        }
        let check = move || {
            let mut archive = archive;
            unchecked.retain(|(_, _, etag, md5)| *etag != md5.hexdigest());
            match archive.reader.check() {
                Some(reason) => Err(DiskFileError::Quarantined(reason)),
                None => Ok((archive, unchecked)),
            }
        };
        let (archive, corrupt) = self.ctx.disk_pools.run(&self.part.dev.device, check).await?;
        let path = archive.reader.opened().name().to_owned();
        let headers = self.headers(archive.reader.opened().data_timestamp(), false);
        let are_sound = corrupt.is_empty();
        for (index, node, ..) in corrupt {
            let shown = full_path(&node, self.part, &path);
            self.logger.error(format_args!("Frag #{index} from {shown} is not what its ETag says"));
            // Its server finds that out when it reads it, and sees to it.
            if let (_, Some(mut response)) = self.get(node, &path, &headers).await {
                drop(response.body.collect(len).await);
            }
        }
        Ok((archive, are_sound.then_some(fragments)))
    }

    fn log_error(&self, name: &str, err: &str) {
        self.logger.error(format_args!("Error trying to rebuild {name} frag#{}: {err}", self.wanted));
    }

    /// The archive that is here.
    fn read(&self, archive: LocalArchive, fragment_len: usize) -> Here {
        let LocalArchive { reader, whole } = archive;
        let length = reader.content_length();
        let (pools, device) = (self.ctx.disk_pools.clone(), self.part.dev.device.clone());
        Here { reader: Some(reader), whole, offset: 0, length, fragment_len, pools, device }
    }

    async fn quarantine(&self, archive: LocalArchive, reason: String) -> DiskFileError {
        let job = move || archive.reader.opened().quarantine(reason);
        self.ctx.disk_pools.run(&self.part.dev.device, job).await
    }

    /// Asks other primaries and, if all of that looks like a fragment without any others, handoffs. The timestamp that has
    /// enough.
    async fn ask(&self, opened: &OpenDiskFile, we_check: bool, answers: &mut Answers) -> Option<Timestamp> {
        let Part { ring, partition, .. } = &**self.part;
        let primaries = ring.get_part_nodes(*partition);
        let count = primaries.len();
        let concurrency = primaries.iter().filter(|node| node.id != self.node.id).count();
        let mut others = self.in_order(primaries);
        let local = opened.data_timestamp();
        let headers = self.headers(local, we_check);
        let path = opened.name();
        if let Some(timestamp) = self.take_own(opened, answers) {
            return Some(timestamp);
        }
        let needed = self.part.scheme.ndata;
        let missing = needed.saturating_sub(answers.useful(local)).min(others.len());
        let mut pile: FuturesUnordered<_> =
            others.drain(..missing).map(|node| self.get(node, path, &headers)).collect();
        let mut late = std::pin::pin!(tokio::time::sleep(LATE));
        loop {
            if answers.useful(local) + pile.len() < needed || late.is_elapsed() {
                pile.extend(others.drain(..).map(|node| self.get(node, path, &headers)));
            }
            tokio::select! {
                answer = pile.next() => match answer {
                    Some((node, response)) => {
                        let enough = self.sort(&node, path, response, answers);
                        if enough.is_some_and(|timestamp| answers.have_same_data(timestamp, local)) {
                            return enough;
                        }
                    }
                    None => break,
                },
                () = &mut late, if !others.is_empty() => {}
            }
        }
        if !self.is_quarantine_candidate(answers, local) {
            return None;
        }
        let more = self.conf.request_node_count.of(count).saturating_sub(count);
        let mut handoffs = ring.get_more_nodes(*partition).take(more);
        pile.extend(handoffs.by_ref().take(concurrency).map(|node| self.get(node, path, &headers)));
        while let Some((node, response)) = pile.next().await {
            let enough = self.sort(&node, path, response, answers);
            if enough.is_some_and(|timestamp| answers.have_same_data(timestamp, local)) {
                return enough;
            }
            if self.is_quarantine_candidate(answers, local)
                && let Some(node) = handoffs.next()
            {
                pile.push(self.get(node, path, &headers));
            }
        }
        None
    }

    /// The other primaries, those first that should have fragments which are not here and not each other's.
    fn in_order(&self, primaries: Vec<Node>) -> Vec<Node> {
        let mut others: Vec<Node> = primaries
            .into_iter()
            .filter(|node| node.id != self.node.id && node.id != self.part.dev.id)
            .collect();
        self.ctx.rng.shuffle(&mut others);
        let mut seen = vec![self.wanted, self.local];
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for node in others {
            let index = self.part.scheme.backend_index(node.index);
            if seen.contains(&index) {
                rest.push(node);
            } else {
                seen.push(index);
                first.push(node);
            }
        }
        first.extend(rest);
        first
    }

    /// The archive that is here, as if its server had answered.
    fn take_own(&self, opened: &OpenDiskFile, answers: &mut Answers) -> Option<Timestamp> {
        let bucket = answers.buckets.entry(opened.data_timestamp()).or_default();
        bucket.num_responses += 1;
        bucket.etag = opened.metadata().get_str(X_OBJECT_SYSMETA_EC_ETAG).map(str::to_owned);
        if self.local != self.wanted {
            bucket.useful.push((self.local, Found::Here));
        }
        let enough = bucket.useful.len() >= self.part.scheme.ndata;
        if let Some(durable) = opened.durable_timestamp() {
            answers.buckets.entry(durable).or_default().durable = true;
        }
        enough.then_some(opened.data_timestamp())
    }

    fn headers(&self, timestamp: Timestamp, we_check: bool) -> Headers {
        let mut headers = Headers::new();
        if we_check {
            headers.insert(X_BACKEND_CHECKS_ETAG, "true");
        }
        headers.insert("User-Agent", format!("obj-reconstructor {}", std::process::id()));
        headers.insert(X_BACKEND_STORAGE_POLICY_INDEX, self.part.manager.policy().0);
        headers.insert(X_BACKEND_REPLICATION, "True");
        let prefs = format!("[{{\"timestamp\": \"{}\", \"exclude\": []}}]", timestamp.internal());
        headers.insert(X_BACKEND_FRAGMENT_PREFERENCES, prefs);
        headers
    }

    async fn get(&self, node: Node, path: &str, headers: &Headers) -> (Node, Option<Response>) {
        let sender = &self.conf.sender;
        let timeouts = Timeouts { conn: sender.conn_timeout, node: sender.node_timeout };
        let target = quote_path(format!("/{}/{}{path}", node.device, self.part.partition));
        let addr = (node.replication_ip.as_str(), node.replication_port);
        let asked = self.ctx.pool.request(addr, Method::Get, &target, headers, Body::empty(), timeouts).await;
        let response = asked.inspect_err(|err| {
            let path = full_path(&node, self.part, path);
            self.logger.error(format_args!("Trying to GET {path}: {err}"));
        });
        (node, response.ok())
    }

    /// Puts an answer where it belongs. The timestamp that has enough fragments with it.
    fn sort(
        &self,
        node: &Node,
        path: &str,
        response: Option<Response>,
        answers: &mut Answers,
    ) -> Option<Timestamp> {
        let full_path = || full_path(node, self.part, path);
        let Some(response) = response else {
            answers.error(UNKNOWN);
            return None;
        };
        let status = response.status.0;
        if status != 200 {
            if status != 404 {
                self.logger.warning(format_args!("Invalid response {status} from {}", full_path()));
            }
            answers.error(status);
            return None;
        }
        let headers = &response.headers;
        let told = headers.get_str(X_OBJECT_SYSMETA_EC_FRAG_INDEX);
        let Some(index) = told.and_then(common::config::parse_int::<u32>) else {
            self.logger.warning(format_args!(
                "Invalid resp from {} (invalid {X_OBJECT_SYSMETA_EC_FRAG_INDEX}: {told:?})",
                full_path()
            ));
            answers.error(UNKNOWN);
            return None;
        };
        let timestamp = |name| headers.get_str(name).and_then(|value| Timestamp::parse(value).ok());
        let data = timestamp(X_BACKEND_DATA_TIMESTAMP).or_else(|| timestamp(X_BACKEND_TIMESTAMP));
        let etag = headers.get_str(X_OBJECT_SYSMETA_EC_ETAG).filter(|etag| !etag.is_empty());
        let (Some(data), Some(etag)) = (data, etag) else {
            let missing = match data {
                None => "X-Backend-Data-Timestamp and X-Backend-Timestamp",
                Some(_) => "Etag",
            };
            self.logger.warning(format_args!(
                "Invalid resp from {}, frag index {index} (missing {missing})",
                full_path()
            ));
            answers.error(UNKNOWN);
            return None;
        };
        let bucket = answers.buckets.entry(data).or_default();
        bucket.num_responses += 1;
        let expected = bucket.etag.get_or_insert_with(|| etag.to_owned());
        if expected != etag {
            let wanted = self.wanted;
            self.logger
                .error(format_args!("Mixed Etag ({etag}, {expected}) for {} frag#{wanted}", full_path()));
            return None;
        }
        let durable = timestamp(X_BACKEND_DURABLE_TIMESTAMP);
        if index == self.wanted {
            self.logger.debug(format_args!(
                "Found existing frag #{index} at {} while rebuilding to {}",
                full_path(),
                super::full_path(self.node, self.part, path)
            ));
        } else if bucket.useful.iter().all(|(other, _)| *other != index) {
            let etag = || headers.get_str(ETAG).map(|etag| etag.trim_matches('"').to_owned());
            let unchecked = headers.get_bool(X_BACKEND_ETAG_UNCHECKED).then(|| etag().unwrap_or_default());
            let there = There { node: node.clone(), body: response.body, unchecked };
            bucket.useful.push((index, Found::There(there)));
        }
        let enough = bucket.useful.len() >= self.part.scheme.ndata;
        if let Some(durable) = durable {
            answers.buckets.entry(durable).or_default().durable = true;
        }
        enough.then_some(data)
    }

    /// Strict, because it decides whether more requests are made, and in the end whether the fragment goes.
    fn is_quarantine_candidate(&self, answers: &Answers, local: Timestamp) -> bool {
        if !answers.errors.keys().eq([&404]) || !answers.buckets.keys().eq([&local]) {
            return false;
        }
        let age = self.ctx.clock.unix_secs() - local.as_secs_f64();
        let Some(bucket) = answers.buckets.get(&local) else { return false };
        age > self.conf.quarantine_age.as_secs_f64()
            && bucket.num_responses <= self.conf.quarantine_threshold
            && bucket.num_responses < self.part.scheme.ndata
            && bucket.useful.iter().any(|(index, _)| *index == self.local)
    }

    fn log_failure(&self, opened: &OpenDiskFile, answers: &Answers) {
        let path = full_path(self.node, self.part, opened.name());
        let (wanted, ndata) = (self.wanted, self.part.scheme.ndata);
        let durable = |bucket: &Bucket| if bucket.durable { "durable" } else { "non-durable" };
        for (timestamp, bucket) in &answers.buckets {
            self.logger.error(format_args!(
                "Unable to get enough responses ({}/{ndata} from {} ok responses) to reconstruct {} {path} frag#{wanted} \
                 with ETag {} and timestamp {}",
                bucket.useful.len(),
                bucket.num_responses,
                durable(bucket),
                bucket.etag.as_deref().unwrap_or("None"),
                timestamp.internal()
            ));
        }
        if answers.errors.is_empty() {
            return;
        }
        let status = |status: &u16| match *status {
            UNKNOWN => "unknown".to_owned(),
            status => status.to_string(),
        };
        let errors: Vec<String> =
            answers.errors.iter().map(|(code, count)| format!("{count} x {}", status(code))).collect();
        let local = answers.buckets.get(&opened.data_timestamp()).map_or("non-durable", durable);
        self.logger.error(format_args!(
            "Unable to get enough responses ({} error responses) to reconstruct {local} {path} frag#{wanted}",
            errors.join(", ")
        ));
    }
}

fn cannot(opened: &OpenDiskFile, what: &'static str) -> DiskFileError {
    let source = std::io::Error::from(std::io::ErrorKind::Other);
    DiskFileError::Io { what, path: opened.data_file().to_owned(), source }
}

/// One archive that is read.
enum Source {
    Here(Box<Here>),
    There(Body),
}

impl Source {
    /// The next `len` bytes, or what is left.
    async fn take(&mut self, codec: &Codec, len: usize) -> Result<Bytes, BodyError> {
        match self {
            Source::Here(here) => here.next_fragment().await,
            Source::There(body) => read_fragment(body, codec, len).await,
        }
    }
}

/// The next `len` bytes, or what is left.
async fn read_fragment(body: &mut Body, codec: &Codec, len: usize) -> Result<Bytes, BodyError> {
    let (mut fragment, mut filled) = (codec.buffer(len), 0);
    while filled < len {
        match body.read(&mut fragment.bytes_mut()[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(fragment.freeze().slice(..filled))
}

/// A body of so many bytes, to its end, which frees its connection.
async fn read_whole(body: &mut Body, codec: &Codec, len: usize) -> Result<Bytes, BodyError> {
    let fragment = read_fragment(body, codec, len).await?;
    match body.next().await {
        None if fragment.len() == len => Ok(fragment),
        None => Err(BodyError::Disconnected),
        Some(more) => more.and(Err(BodyError::Malformed("an archive is longer than the others"))),
    }
}

/// The archive that is here, read as an object server does: nobody gets the last bytes of one that is not what its ETag says.
struct Here {
    /// None after an error.
    reader: Option<Reader>,
    /// All of it, if it has been read and checked.
    whole: Option<(Bytes, SemaphorePermit<'static>)>,
    offset: u64,
    length: u64,
    fragment_len: usize,
    pools: DiskPools,
    device: String,
}

impl Here {
    /// Empty at the end.
    async fn next_fragment(&mut self) -> Result<Bytes, BodyError> {
        let (offset, length) = (self.offset, self.length);
        let wanted = (length - offset).min(self.fragment_len as u64) as usize;
        if let Some((whole, _)) = &self.whole {
            self.offset += wanted as u64;
            return Ok(whole.slice(offset as usize..offset as usize + wanted));
        }
        let Some(mut reader) = self.reader.take().filter(|_| wanted > 0) else { return Ok(Bytes::new()) };
        let job = move || reader.read(offset, wanted).map(|data| (reader, data));
        let mut read = self.pools.run(&self.device, job).await;
        if let Ok((_, data)) = &read
            && offset + data.len() as u64 == length
        {
            // A job of its own: the archives that others have read meanwhile are hashed along.
            let check = move || {
                let (mut reader, data) = read?;
                let reason = reader.check();
                reason.map_or(Ok((reader, data)), |reason| Err(DiskFileError::Quarantined(reason)))
            };
            read = self.pools.run(&self.device, check).await;
        }
        let (reader, data) = read.map_err(|err| BodyError::Other(err.to_string()))?;
        if data.is_empty() {
            return Err(BodyError::Disconnected);
        }
        self.reader = Some(reader);
        self.offset += data.len() as u64;
        Ok(data)
    }
}

/// The archive that is made, a fragment at a time.
struct Archive {
    sources: Vec<Source>,
    codec: Codec,
    fragment_len: usize,
    wanted: u32,
    name: String,
    logger: Logger,
}

impl Archive {
    async fn next_fragment(&mut self) -> Result<Option<Bytes>, String> {
        let len = self.fragment_len;
        let codec = &self.codec;
        let read = join_all(self.sources.iter_mut().map(|source| source.take(codec, len))).await;
        let fragments = read.into_iter().collect::<Result<Vec<_>, _>>().map_err(|err| err.to_string())?;
        if fragments.iter().any(Bytes::is_empty) {
            return Ok(None);
        }
        self.codec.reconstruct(&fragments, self.wanted as usize).map(Some).map_err(|err| err.to_string())
    }
}

impl BodyStream for Archive {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, BodyError>>> {
        Box::pin(async move {
            match self.next_fragment().await {
                Ok(fragment) => fragment.map(Ok),
                Err(err) => {
                    let Self { name, wanted, .. } = self;
                    self.logger.error(format_args!("Error trying to rebuild {name} frag#{wanted}: {err}"));
                    Some(Err(BodyError::Other(err)))
                }
            }
        })
    }
}
