//! One fragment archive on its way from a server, or several in turn, read fragment by fragment.
//!
//! What comes is the parts that were asked for, in their order: one as the body itself, several as a
//! `multipart/byteranges` document. When the server fails, or sends what is no fragment, another one is asked for the rest,
//! from the beginning of the fragment that failed. It may have another archive of the same object: each segment is decoded
//! by itself. It must be one that is not read already.
//!
//! Servers that can (ours) leave it to the proxy to check the ETag of an archive of a single fragment: hashed together, all archives of
//! an object cost little more than one does at its server.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use common::digest::Md5Stream;
use common::headers::{
    CONTENT_TYPE, ETAG, RANGE, X_BACKEND_DATA_TIMESTAMP, X_BACKEND_ETAG_UNCHECKED,
    X_BACKEND_FRAGMENT_PREFERENCES, X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT, X_OBJECT_SYSMETA_EC_ETAG,
    X_OBJECT_SYSMETA_EC_FRAG_INDEX,
};
use common::timestamp::Timestamp;
use ec::Codec;
use ec::fragment::Header;
use parking_lot::Mutex;
use ring::Node;
use serde_json::Value;
use service::http::mime::{MimeReader, boundary_of};
use service::http::range::{Ranges, parse_content_range};
use service::http::{Body, BodyError, Headers, Response};

use super::answers::{preference, timestamp};
use crate::controllers::getter::Ask;
use crate::node_iter::NodeIter;

/// What all archives of a download have in common.
pub struct Sources {
    pub ask: Arc<Ask>,
    codec: Codec,
    /// Of a request for an archive.
    pub headers: Headers,
    pub timestamp: Timestamp,
    pub etag: Option<Vec<u8>>,
    state: Mutex<State>,
}

struct State {
    nodes: NodeIter,
    /// Servers that are known to have archives of this timestamp, by fragment index.
    others: HashMap<usize, Vec<Node>>,
    /// Fragment indexes that are being read.
    used: Vec<usize>,
}

impl Sources {
    pub fn new(
        ask: Arc<Ask>,
        codec: Codec,
        headers: Headers,
        (timestamp, etag): (Timestamp, Option<Vec<u8>>),
        nodes: NodeIter,
        others: HashMap<usize, Vec<Node>>,
        used: Vec<usize>,
    ) -> Self {
        Self { ask, codec, headers, timestamp, etag, state: Mutex::new(State { nodes, others, used }) }
    }

    fn next_node(&self) -> Option<Node> {
        let mut state = self.state.lock();
        let State { nodes, others, used } = &mut *state;
        let known = others.iter_mut().filter(|(index, nodes)| !used.contains(index) && !nodes.is_empty());
        match known.min_by_key(|(index, _)| **index) {
            Some((_, nodes)) => Some(nodes.remove(0)),
            None => nodes.next(&self.ask.app),
        }
    }
}

pub struct Archive {
    sources: Arc<Sources>,
    pub index: usize,
    node: Node,
    /// Parts that are still to come, the present one first, from where it is read: start and end.
    parts: VecDeque<(u64, u64)>,
    body: Arriving,
    /// Of the archive.
    etag: String,
    /// Its server has left it to us to check that: it is a single fragment.
    is_unchecked: bool,
    /// Of the whole object, from the first part.
    pub content_type: Option<Bytes>,
}

/// What a server sends.
enum Arriving {
    One(Body),
    /// Whether a part has begun.
    Many(Box<MimeReader>, bool),
    /// Not what was asked for.
    Wrong,
}

impl Archive {
    /// The archive that a server has answered with, which was asked for these parts.
    pub fn new(
        sources: &Arc<Sources>,
        index: usize,
        (node, resp): (Node, Response),
        parts: impl Iterator<Item = (u64, u64)>,
    ) -> Self {
        let mut archive = Self {
            sources: sources.clone(),
            index,
            node,
            parts: parts.collect(),
            body: Arriving::Wrong,
            etag: String::new(),
            is_unchecked: false,
            content_type: None,
        };
        archive.set_body(resp);
        archive
    }

    fn set_body(&mut self, mut resp: Response) {
        let content_type = resp.headers.get(CONTENT_TYPE).map(Bytes::copy_from_slice);
        let body = std::mem::take(&mut resp.body);
        self.etag = resp.headers.get_str(ETAG).unwrap_or_default().trim_matches('"').to_owned();
        self.is_unchecked = resp.headers.get_bool(X_BACKEND_ETAG_UNCHECKED);
        let one = match (resp.status.0, self.parts.front()) {
            (200, Some(part)) => {
                self.parts.len() == 1 && resp.content_length() == Some(part.1) && part.0 == 0
            }
            (206, Some(part)) => begins_and_ends(&resp.headers, *part),
            _ => false,
        };
        let boundary = content_type.as_deref().and_then(boundary_of);
        self.body = match boundary {
            _ if one => {
                self.content_type = content_type;
                Arriving::One(body)
            }
            Some(boundary) if resp.status.0 == 206 && self.parts.len() > 1 => {
                Arriving::Many(Box::new(MimeReader::new(body, boundary)), false)
            }
            _ => Arriving::Wrong,
        };
    }

    /// Reads up to where the present part begins.
    pub async fn open(&mut self) -> Result<(), BodyError> {
        match &mut self.body {
            Arriving::Many(reader, begun) if !*begun => {
                let expected = *self.parts.front().ok_or(BodyError::Malformed("a part too many"))?;
                let headers = reader.next_document().await?.ok_or(BodyError::Malformed("a part lacks"))?;
                if !begins_and_ends(&headers, expected) {
                    return Err(BodyError::Malformed("another part than expected"));
                }
                *begun = true;
                self.content_type = headers.get(CONTENT_TYPE).map(Bytes::copy_from_slice);
                Ok(())
            }
            Arriving::Wrong => Err(BodyError::Malformed("another range than expected")),
            Arriving::One(_) | Arriving::Many(..) => Ok(()),
        }
    }

    /// The fragment at an offset of the present part, which is not before the one that was read last.
    pub async fn fragment(&mut self, at: u64, len: usize) -> Result<Bytes, BodyError> {
        loop {
            let error = match self.read(at, len).await {
                Ok(fragment) => match Header::parse(&fragment) {
                    Ok(_) => return Ok(fragment),
                    Err(error) => BodyError::Other(error.to_string()),
                },
                Err(error) => error,
            };
            if !self.replace(at, &error).await {
                return Err(error);
            }
        }
    }

    /// The check of this fragment, which is all of the archive, if that is left to us.
    pub fn check(&self, fragment: &Bytes) -> Option<Check> {
        self.is_unchecked.then(|| Check::new(fragment, &self.etag))
    }

    /// The fragment at an offset of another archive, as this one has turned out corrupt. Its server finds that out when it reads it once
    /// more, and sees to it.
    pub async fn fragment_of_another(&mut self, at: u64, len: usize) -> Result<Bytes, BodyError> {
        loop {
            let (ask, node) = (self.sources.ask.clone(), self.node.clone());
            let headers = Arc::new(self.sources.headers.clone());
            tokio::spawn(async move {
                if let (_, Some(Ok(mut resp))) = ask.ask(node, headers).await {
                    while let Some(Ok(_)) = resp.body.next().await {}
                }
            });
            let error = BodyError::Malformed("an archive is not what its ETag says");
            if !self.replace(at, &error).await {
                return Err(error);
            }
            let fragment = self.fragment(at, len).await?;
            // Of a range, as it is here, no server of Swift checks the ETag.
            let check = Check::new(&fragment, &self.etag);
            if corrupt(vec![Some(check)]).await?.is_empty() {
                return Ok(fragment);
            }
        }
    }

    /// The present part is done with.
    pub async fn finish_part(&mut self) {
        // One that nobody wants must be passed over, too. A failure shows again when the next one is read.
        let opened = self.open().await;
        self.parts.pop_front();
        match &mut self.body {
            body if opened.is_err() => *body = Arriving::Wrong,
            Arriving::Many(_, begun) => *begun = false,
            // Reading up to the end frees the connection; whether there is one does not matter now.
            Arriving::One(body) => {
                drop(tokio::time::timeout(self.sources.ask.node_timeout, body.next()).await)
            }
            Arriving::Wrong => {}
        }
    }

    async fn read(&mut self, at: u64, len: usize) -> Result<Bytes, BodyError> {
        self.open().await?;
        let mut fragment = self.sources.codec.buffer(len);
        let mut filled = 0;
        while filled < len {
            let start = *self.position()?;
            // What stands before the fragment is read over.
            let room = match usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX) {
                0 => &mut fragment.bytes_mut()[filled..],
                skipped => &mut fragment.bytes_mut()[..skipped.min(len)],
            };
            let read = match &mut self.body {
                Arriving::One(body) => body.read(room).await?,
                Arriving::Many(reader, _) => reader.read(room).await?,
                Arriving::Wrong => 0,
            };
            if read == 0 {
                return Err(BodyError::Disconnected);
            }
            if start >= at {
                filled += read;
            }
            *self.position()? += read as u64;
        }
        Ok(fragment.freeze())
    }

    /// Where the next byte that was not given out stands in the archive.
    fn position(&mut self) -> Result<&mut u64, BodyError> {
        self.parts.front_mut().map(|part| &mut part.0).ok_or(BodyError::Malformed("a part too many"))
    }

    /// Goes on from another server; false if there is none.
    async fn replace(&mut self, at: u64, error: &BodyError) -> bool {
        let sources = self.sources.clone();
        let Sources { ask, .. } = &*sources;
        self.body = Arriving::Wrong;
        let message = format!("Trying to read EC fragment during GET (retrying): {error}");
        ask.app.error_occurred(&ask.logger, &self.node, &message);
        if let Some(part) = self.parts.front_mut() {
            part.0 = at;
        }
        sources.state.lock().used.retain(|index| *index != self.index);
        while let Some(node) = sources.next_node() {
            let headers = Arc::new(self.headers_for_rest());
            let (node, Some(Ok(resp))) = ask.clone().ask(node, headers).await else { continue };
            let Some(index) = self.usable(&resp) else { continue };
            {
                let mut state = sources.state.lock();
                if state.used.contains(&index) {
                    continue; // another archive's replacement was faster
                }
                state.used.push(index);
            }
            (self.node, self.index) = (node, index);
            self.set_body(resp);
            if !matches!(self.body, Arriving::Wrong) {
                return true;
            }
            sources.state.lock().used.retain(|used| *used != index);
        }
        false
    }

    fn headers_for_rest(&self) -> Headers {
        let mut headers = self.sources.headers.clone();
        headers.remove(X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT);
        let specs = self.parts.iter().map(|(start, end)| (Some(*start), Some(end.saturating_sub(1))));
        headers.insert(RANGE, Ranges::from_specs(specs.collect()).to_string());
        let state = self.sources.state.lock();
        let wanted = Value::Array(vec![preference(self.sources.timestamp, state.used.iter())]);
        headers.insert(X_BACKEND_FRAGMENT_PREFERENCES, wanted.to_string());
        headers
    }

    /// The fragment index of an answer, if it is of the same object.
    fn usable(&self, resp: &Response) -> Option<usize> {
        let same = resp.status.0 == 206
            && timestamp(&resp.headers, X_BACKEND_DATA_TIMESTAMP) == Some(self.sources.timestamp)
            && resp.headers.get(X_OBJECT_SYSMETA_EC_ETAG) == self.sources.etag.as_deref();
        let index = resp.headers.get_int(X_OBJECT_SYSMETA_EC_FRAG_INDEX)?;
        same.then_some(index)
    }
}

fn begins_and_ends(headers: &Headers, (start, end): (u64, u64)) -> bool {
    let range = headers.get("Content-Range").and_then(parse_content_range);
    range.is_some_and(|(first, last, _)| first == start && last + 1 == end)
}

/// The MD5 of a fragment that is all of its archive, and what it is to be.
pub struct Check {
    md5: Md5Stream,
    etag: String,
}

impl Check {
    fn new(fragment: &Bytes, etag: &str) -> Self {
        let mut md5 = Md5Stream::patient(fragment.len());
        md5.update(fragment.clone());
        Check { md5, etag: etag.to_owned() }
    }
}

/// Which archives are corrupt, of those that are to be checked; they are hashed together.
pub async fn corrupt(checks: Vec<Option<Check>>) -> Result<Vec<usize>, BodyError> {
    if checks.iter().all(Option::is_none) {
        return Ok(Vec::new());
    }
    let is_corrupt =
        |check: &Option<Check>| check.as_ref().is_some_and(|check| check.md5.hexdigest() != check.etag);
    let hash = move || (0..checks.len()).filter(|place| is_corrupt(&checks[*place])).collect();
    tokio::task::spawn_blocking(hash).await.map_err(|err| BodyError::Other(err.to_string()))
}
