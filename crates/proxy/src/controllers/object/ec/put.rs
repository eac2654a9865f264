//! PUT of an erasure coded object.
//!
//! Heads go out to as many servers as there are archives, and enough of them must want the data: `ec_ndata + 1` for each
//! duplicate. While the client sends a segment, the fragments of the one before it are sent on, and hashed by another thread, so
//! that memory holds a few segments whatever the object's length. After the data follow footers: the archive's own ETag, and the object's.
//! When enough servers say that they have stored that (the second `100 Continue`), all of these are told to commit, and
//! enough of them must have made it durable before the client hears 201. Until then a GET does not see the object.
//!
//! A primary stores the fragment of its place in the ring; a handoff that of a primary which is missing. So what a primary is to
//! store of an object of one segment is known before it is asked, and goes out with the head, footers and all, unless the
//! object must not exist: a client that sends its data without being asked is served in two rounds instead of three.

use std::sync::Arc;

use bytes::Bytes;
use common::digest::{Checksum, Md5Stream};
use common::headers::{
    ETAG, EXPECT, IF_NONE_MATCH, X_BACKEND_ARCHIVE_CHECKSUM, X_OBJECT_SYSMETA_EC_CONTENT_LENGTH,
    X_OBJECT_SYSMETA_EC_ETAG, X_OBJECT_SYSMETA_EC_FRAG_INDEX, X_OBJECT_SYSMETA_EC_SCHEME,
    X_OBJECT_SYSMETA_EC_SEGMENT_SIZE,
};
use common::policy::PolicyIndex;
use ec::Fragment;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use ring::Node;
use service::http::{Headers, Request, Response};
use tokio::task::{JoinError, JoinHandle};

use super::EcPolicy;
use crate::controllers::base::{Answer, best_response, starts_with_ignore_case};
use crate::controllers::getter::normalize_etag;
use crate::controllers::object::put::{Put, check_failures, pad};
use crate::controllers::object::putter::{Putter, Wanted, Whole};
use crate::environ::UpdateFooters;
use crate::info::is_success;
use crate::quorum::have_quorum;

/// So many bytes are hashed on the spot; more, on a thread that may work for a while.
const LITTLE: usize = 64 * 1024;
/// The longest archive that is sent unasked: an object server receives that much before it writes.
const UNASKED_ARCHIVE: u64 = 300 * 1024;

impl Put {
    pub async fn store_erasure(
        self: &Arc<Self>,
        req: &mut Request,
        mut headers: Vec<Headers>,
        length: Option<u64>,
        policy: PolicyIndex,
    ) -> Result<Response, Response> {
        let policy = self.app.ec_policy(policy)?;
        let count = headers.len();
        let min = (policy.ndata() + 1) * policy.duplication;
        // The ETag that the client has sent is of other bytes than those the servers get.
        headers.iter_mut().for_each(|headers| drop(headers.remove(ETAG)));
        let archive_len = length.filter(|length| *length > 0).map(|length| policy.archive_len(length));
        // Of what is little the MD5 costs nothing.
        let has_checksum = archive_len.is_none_or(|length| length > LITTLE as u64);
        if has_checksum {
            headers
                .iter_mut()
                .for_each(|headers| headers.insert(X_BACKEND_ARCHIVE_CHECKSUM, Checksum::ALGORITHM));
        }
        let conditional = req.headers.contains(IF_NONE_MATCH);
        let wanted = Wanted { length: archive_len, conditional, footers: true, commit: true };
        let is_one_segment = length.is_some_and(|length| (1..=policy.segment_size).contains(&length))
            && archive_len.is_some_and(|length| length <= UNASKED_ARCHIVE);
        let prepared = match is_one_segment && !conditional && !req.headers.contains(EXPECT) {
            true => Some(self.prepare(req, Encoder::patient(policy.clone(), has_checksum), length).await?),
            false => None,
        };
        let ahead = |node: &Node| prepared.as_ref().and_then(|prepared| prepared.whole(&policy, node));
        let connecting = headers.into_iter().map(|headers| self.clone().connect(headers, wanted, &ahead));
        let putters: Vec<Putter> = join_all(connecting).await.into_iter().flatten().collect();
        check_failures(&putters, conditional)?;
        self.check_connections(putters.len(), min)?;

        let mut archives = archives_of(putters, &policy);
        let Prepared { encoded, footers, fragments } = match prepared {
            Some(prepared) => prepared,
            None => {
                let encoder = Encoder::new(policy.clone(), has_checksum);
                let encoded = self.transfer_segments(req, encoder, &mut archives, min, length).await?;
                let footers = checked_footers(req, &encoded)?;
                Prepared { encoded, footers, fragments: None }
            }
        };
        // To those who have nothing yet: handoffs of an object that was sent unasked.
        self.send_segment(&mut archives, fragments.as_deref()).await;
        let ends = archives.iter_mut().map(|archive| {
            let trailer = encoded.trailer(&policy, archive.index, &footers);
            async move { archive.putter.end_of_object_data(self, &trailer).await }
        });
        join_all(ends).await;
        self.commit(&mut archives, min).await?;

        let mut pending: FuturesUnordered<_> = archives
            .into_iter()
            .filter(|archive| !archive.putter.failed)
            .map(|archive| archive.putter.response(self.clone()))
            .collect();
        let successes = |statuses: &[u16]| statuses.iter().filter(|status| is_success(**status)).count();
        let answers = self.gather(&mut pending, |statuses| successes(statuses) >= min).await;
        // Swift: the client sees no header of the backends.
        let mut answers: Vec<Answer> =
            answers.into_iter().map(|answer| Answer { headers: Headers::new(), ..answer }).collect();
        pad(&mut answers, count);
        let mut resp = best_response(&self.logger, &answers, "Object PUT", &[], Some(min));
        if resp.status.0 != 503 {
            resp.headers.insert(ETAG, encoded.etag);
        }
        Ok(resp)
    }

    /// Encodes an object of one segment.
    async fn prepare(
        &self,
        req: &mut Request,
        encoder: Encoder,
        length: Option<u64>,
    ) -> Result<Prepared, Response> {
        let mut source = Source { length, transferred: 0 };
        let segment = self.next_segment(req, &encoder.policy, &mut source).await?;
        self.check_length(&source)?;
        let fragments = segment.map(|segment| encoder.encode_now(segment));
        let encoded = encoder.finish(source.transferred).await.map_err(|error| self.stuck(&error))?;
        let footers = checked_footers(req, &encoded)?;
        Ok(Prepared { encoded, footers, fragments })
    }

    fn check_length(&self, source: &Source) -> Result<(), Response> {
        match source.length.is_some_and(|length| source.transferred < length) {
            true => Err(self.client_disconnected("Client disconnected without sending enough data")),
            false => Ok(()),
        }
    }

    /// Encodes what the client sends, and passes it on.
    async fn transfer_segments(
        &self,
        req: &mut Request,
        mut encoder: Encoder,
        archives: &mut Vec<Archive>,
        min: usize,
        length: Option<u64>,
    ) -> Result<Encoded, Response> {
        let policy = encoder.policy.clone();
        let mut source = Source { length, transferred: 0 };
        let mut ready: Option<Vec<Fragment>> = None;
        loop {
            let next = async {
                match self.next_segment(req, &policy, &mut source).await? {
                    Some(segment) => encoder.encode(segment).await.map(Some).map_err(|e| self.stuck(&e)),
                    None => Ok(None),
                }
            };
            let (next, ()) = tokio::join!(next, self.send_segment(archives, ready.as_deref()));
            archives.retain(|archive| !archive.putter.failed);
            if archives.len() < min {
                self.logger.error(format_args!(
                    "Object PUT exceptions during send, {}/{min} required connections",
                    archives.len()
                ));
                return Err(Response::error(503));
            }
            ready = next?;
            if ready.is_none() {
                break;
            }
        }
        self.check_length(&source)?;
        encoder.finish(source.transferred).await.map_err(|error| self.stuck(&error))
    }

    fn stuck(&self, error: &JoinError) -> Response {
        self.logger.error(format_args!("Object PUT cannot encode: {error}"));
        Response::error(500)
    }

    /// A full segment of the client's data, or the last one.
    async fn next_segment(
        &self,
        req: &mut Request,
        policy: &EcPolicy,
        source: &mut Source,
    ) -> Result<Option<Bytes>, Response> {
        let limit = self.app.ctx.swift_conf.constraints.max_file_size;
        let size = source.left().min(policy.segment_size) as usize;
        let mut segment = policy.codec.buffer(size);
        let mut filled = 0;
        while filled < size {
            let read = self.read(req, &mut segment.bytes_mut()[filled..]).await?;
            if read == 0 {
                break;
            }
            filled += read;
            source.transferred += read as u64;
            if source.transferred > limit {
                return Err(Response::error(413));
            }
        }
        Ok((filled > 0).then(|| segment.freeze().slice(..filled)))
    }

    async fn send_segment(&self, archives: &mut [Archive], fragments: Option<&[Fragment]>) {
        let Some(fragments) = fragments else { return };
        let sends = archives.iter_mut().map(|archive| {
            let fragment = &fragments[archive.index];
            async move { archive.putter.send_chunks(self, &[&fragment.header, &fragment.payload]).await }
        });
        join_all(sends).await;
    }

    /// Lets all servers commit that have stored their archive, if these are enough.
    async fn commit(&self, archives: &mut [Archive], min: usize) -> Result<(), Response> {
        let stored = join_all(archives.iter_mut().map(|archive| archive.putter.stored(self))).await;
        let statuses: Vec<u16> = stored.into_iter().flatten().collect();
        let continues = statuses.iter().filter(|status| (100..200).contains(*status)).count();
        if !have_quorum(&statuses, min) {
            self.logger.error(format_args!("Not enough object servers ack'ed (got {continues})"));
            return Err(Response::error(503));
        }
        if continues < min {
            let answers: Vec<Answer> = statuses.into_iter().map(Answer::nothing).collect();
            let resp = best_response(&self.logger, &answers, "Object PUT", &[], Some(min));
            // A refusal now is a mistake of ours or the servers', not of the client.
            return Err(if resp.status.is_client_error() { Response::error(503) } else { resp });
        }
        join_all(archives.iter_mut().map(|archive| archive.putter.send_commit(self))).await;
        Ok(())
    }
}

/// What follows an object's data; and its fragments, if they are there before the servers are asked.
struct Prepared {
    encoded: Encoded,
    footers: Headers,
    fragments: Option<Vec<Fragment>>,
}

impl Prepared {
    /// What a primary is to store.
    fn whole(&self, policy: &EcPolicy, node: &Node) -> Option<Whole> {
        let fragments = self.fragments.as_ref().filter(|_| node.handoff_index.is_none())?;
        let index = node.index % policy.archives();
        let Fragment { header, payload } = &fragments[index];
        let data = [header.clone(), payload.clone()];
        Some(Whole { data, footers: self.encoded.trailer(policy, index, &self.footers) })
    }
}

/// What filters add to the metadata at the end, when the ETag that the client has sent is right.
fn checked_footers(req: &Request, encoded: &Encoded) -> Result<Headers, Response> {
    let mut footers = Headers::new();
    if let Some(update) = req.env.get::<UpdateFooters>().cloned() {
        (update.0)(&mut footers);
    }
    let received = normalize_etag(footers.get(ETAG).or_else(|| req.headers.get(ETAG)));
    if !received.is_empty() && received != encoded.etag.as_bytes() {
        return Err(Response::error(422));
    }
    footers.retain(|name, _| !starts_with_ignore_case(name, "x-object-sysmeta-ec-"));
    Ok(footers)
}

/// The client's data.
struct Source {
    /// What the client says.
    length: Option<u64>,
    transferred: u64,
}

impl Source {
    fn left(&self) -> u64 {
        self.length.map_or(u64::MAX, |length| length.saturating_sub(self.transferred))
    }
}

/// What becomes of the object: its fragments, and the MD5 of itself and of each archive.
struct Encoder {
    policy: Arc<EcPolicy>,
    digests: Arc<Mutex<Digests>>,
    /// Of the segment before.
    hashing: Option<JoinHandle<()>>,
}

/// The MD5 of an object and of its archives.
struct Digests {
    etag: Md5Stream,
    archives: Vec<Md5Stream>,
    /// Of the archives too, if their servers are to have them.
    checksums: Vec<Checksum>,
}

/// What is known of the object at its end.
struct Encoded {
    etag: String,
    /// The ETags of the archives.
    archives: Vec<String>,
    /// If the servers are to have them.
    checksums: Vec<String>,
    len: u64,
}

impl Encoder {
    fn new(policy: Arc<EcPolicy>, has_checksum: bool) -> Self {
        Self::hashing_with(policy, has_checksum, Md5Stream::new)
    }

    /// Hashes at the end, together with others: for a single segment.
    fn patient(policy: Arc<EcPolicy>, has_checksum: bool) -> Self {
        let size = policy.segment_size as usize;
        Self::hashing_with(policy, has_checksum, || Md5Stream::patient(size))
    }

    fn hashing_with(policy: Arc<EcPolicy>, has_checksum: bool, stream: impl Fn() -> Md5Stream) -> Self {
        let archives = (0..policy.archives()).map(|_| stream()).collect();
        let checksums =
            (0..if has_checksum { policy.archives() } else { 0 }).map(|_| Checksum::default()).collect();
        let digests = Arc::new(Mutex::new(Digests { etag: stream(), archives, checksums }));
        Self { policy, digests, hashing: None }
    }

    /// The fragments of the next segment; they are hashed while they are sent.
    async fn encode(&mut self, segment: Bytes) -> Result<Vec<Fragment>, JoinError> {
        if segment.len() <= LITTLE && self.hashing.is_none() {
            return Ok(self.encode_now(segment));
        }
        let fragments = self.policy.codec.encode(&segment);
        self.hashed().await?;
        let (digests, hashed) = (self.digests.clone(), fragments.clone());
        let hash = move || digests.lock().update(segment, &hashed);
        self.hashing = Some(tokio::task::spawn_blocking(hash));
        Ok(fragments)
    }

    fn encode_now(&self, segment: Bytes) -> Vec<Fragment> {
        let fragments = self.policy.codec.encode(&segment);
        self.digests.lock().update(segment, &fragments);
        fragments
    }

    /// Waits until the segment before has been hashed.
    async fn hashed(&mut self) -> Result<(), JoinError> {
        match self.hashing.take() {
            Some(hashing) => hashing.await,
            None => Ok(()),
        }
    }

    /// Streams of MD5 keep data for company: there may be much to hash yet.
    async fn finish(mut self, len: u64) -> Result<Encoded, JoinError> {
        self.hashed().await?;
        let hash = move || {
            let digests = self.digests.lock();
            // The longest first: it takes others of its length along.
            let etag = digests.etag.hexdigest();
            let archives = digests.archives.iter().map(Md5Stream::hexdigest).collect();
            let checksums = digests.checksums.iter().map(Checksum::hexdigest).collect();
            Encoded { etag, archives, checksums, len }
        };
        if len <= LITTLE as u64 { Ok(hash()) } else { tokio::task::spawn_blocking(hash).await }
    }
}

impl Digests {
    fn update(&mut self, segment: Bytes, fragments: &[Fragment]) {
        for (archive, fragment) in self.archives.iter_mut().zip(fragments) {
            archive.update(fragment.header.clone());
            archive.update(fragment.payload.clone());
        }
        for (checksum, fragment) in self.checksums.iter_mut().zip(fragments) {
            checksum.update(&fragment.header);
            checksum.update(&fragment.payload);
        }
        self.etag.update(segment);
    }
}

impl Encoded {
    /// The footers of an archive.
    fn trailer(&self, policy: &EcPolicy, index: usize, footers: &Headers) -> Headers {
        let mut trailer = self.metadata(policy, index);
        trailer.update(footers);
        trailer.insert("Etag", &self.archives[index]);
        if let Some(checksum) = self.checksums.get(index) {
            trailer.insert(X_BACKEND_ARCHIVE_CHECKSUM, checksum);
        }
        trailer
    }

    /// What a fragment archive's metadata says of the object.
    fn metadata(&self, policy: &EcPolicy, index: usize) -> Headers {
        let length = self.len.to_string();
        Headers::from([
            (X_OBJECT_SYSMETA_EC_ETAG, &*self.etag),
            (X_OBJECT_SYSMETA_EC_CONTENT_LENGTH, &length),
            // The container is to list the object, not the archive.
            ("X-Backend-Container-Update-Override-Etag", &self.etag),
            ("X-Backend-Container-Update-Override-Size", &length),
            (X_OBJECT_SYSMETA_EC_FRAG_INDEX, &index.to_string()),
            (X_OBJECT_SYSMETA_EC_SCHEME, &policy.description),
            (X_OBJECT_SYSMETA_EC_SEGMENT_SIZE, &policy.segment_size.to_string()),
        ])
    }
}

/// A putter with the index of the fragments that it is sent.
struct Archive {
    putter: Putter,
    index: usize,
}

fn archives_of(putters: Vec<Putter>, policy: &EcPolicy) -> Vec<Archive> {
    let places: Vec<Option<usize>> = putters
        .iter()
        .map(|putter| putter.node.handoff_index.is_none().then_some(putter.node.index))
        .collect();
    let indexes = destinations(&places, policy.archives(), policy.duplication);
    let pairs = putters.into_iter().zip(indexes);
    pairs.filter_map(|(putter, index)| index.map(|index| Archive { putter, index })).collect()
}

/// The fragment index of each server: of a primary, of which the place in the ring is given, that of its place; of a
/// handoff one that is missing, those first of which most duplicates are.
fn destinations(places: &[Option<usize>], archives: usize, duplication: usize) -> Vec<Option<usize>> {
    let of_primaries: Vec<usize> = places.iter().flatten().map(|place| place % archives).collect();
    let missing = |index: usize| {
        let there = of_primaries.iter().filter(|of_primary| **of_primary == index).count();
        duplication.saturating_sub(there)
    };
    let tiers = (0..duplication).rev();
    let mut holes =
        tiers.flat_map(|tier| (0..archives).filter(move |index| missing(*index) > tier).collect::<Vec<_>>());
    places.iter().map(|place| place.map(|place| place % archives).or_else(|| holes.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handoffs_stand_in_for_missing_primaries() {
        let found = destinations(&[Some(0), None, Some(2), Some(3), None, Some(5)], 6, 1);
        assert_eq!(found, [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5)]);
        // More holes than handoffs.
        assert_eq!(destinations(&[Some(1), None], 3, 1), [Some(1), Some(0)]);
        // Both of index 1 are missing, and one of index 0 and 2 each.
        let found = destinations(&[Some(0), Some(5), None, None, None, None], 3, 2);
        assert_eq!(found, [Some(0), Some(2), Some(1), Some(0), Some(1), Some(2)]);
    }
}
