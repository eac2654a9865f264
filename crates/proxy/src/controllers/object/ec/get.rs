//! GET and HEAD of an erasure coded object.
//!
//! As many servers are asked as there are data fragments, each for any archive that is not there yet, and more until there
//! is an answer: with what others have said, a server may send an older archive than its newest. With `concurrent_gets`,
//! `concurrent_ec_extra_requests` more are asked at once and another one after each `concurrency_timeout`.
//!
//! A HEAD is one server's answer, as that of a replicated object: all archives have the object's metadata. Conditions are
//! the object servers' to judge, by the ETag of the object; a Range is applied here again, as theirs is another one.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use common::headers::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, RANGE, ServerType, X_BACKEND_CHECKS_ETAG, X_BACKEND_DATA_TIMESTAMP,
    X_BACKEND_ETAG_UNCHECKED, X_BACKEND_FRAGMENT_PREFERENCES, X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT,
    X_BACKEND_TIMESTAMP, X_OBJECT_SYSMETA_EC_CONTENT_LENGTH, X_OBJECT_SYSMETA_EC_ETAG, X_TIMESTAMP,
};
use common::policy::PolicyIndex;
use common::timestamp::Timestamp;
use futures_util::stream::{FuturesUnordered, StreamExt};
use ring::Node;
use service::http::range::{self, Ranges};
use service::http::{Body, Headers, Request, Response};
use tokio::time::Instant;

use super::EcPolicy;
use super::answers::{Answers, Best, Bucket, Numbers, timestamp};
use super::archive::{Archive, Sources};
use super::download::Download;
use super::ranges::{Part, of_archive, parts};
use crate::app::Application;
use crate::backend::Target;
use crate::controllers::base::{
    Answer, all_request_headers, best_response, starts_with_ignore_case, update_headers,
};
use crate::controllers::getter::{self, Ask};
use crate::environ::NonClientDisconnect;
use crate::info::{is_server_error, is_success};
use crate::middleware::conditional::finish_with_ranges;
use crate::middleware::request_headers::{etag_is_at, resolve_etag_is_at};
use crate::node_iter::NodeIter;

/// What a node said, if it could be talked to.
type Said = Option<(Node, Option<Result<Response, Answer>>)>;
type Asking = Pin<Box<dyn Future<Output = Said> + Send>>;

pub async fn get_or_head(
    app: &Arc<Application>,
    req: &mut Request,
    nodes: NodeIter,
    target: Target,
    index: PolicyIndex,
    policy: Arc<EcPolicy>,
) -> Response {
    etag_is_at(&mut req.headers, X_OBJECT_SYSMETA_EC_ETAG);
    if req.is_head() {
        let resp = getter::get_or_head(app, req, ServerType::Object, nodes, target, Some(index)).await;
        return finish(resp);
    }
    let ranges = req.headers.get(RANGE).and_then(range::parse);
    let mut headers = all_request_headers(app, req);
    if let Some(ranges) = &ranges {
        headers.insert(RANGE, of_archive(ranges, &policy).to_string());
    }
    headers.insert(X_BACKEND_CHECKS_ETAG, "true");
    let node_timeout = app.options.recoverable_node_timeout;
    let logger = app.logger(req.trans_id());
    let server_type = ServerType::Object;
    let ask = Arc::new(Ask { app: app.clone(), logger, server_type, target, node_timeout });
    let replicas = nodes.num_primary_nodes;
    let numbers = Numbers { ndata: policy.ndata(), nparity: policy.codec.nparity(), replicas };
    let mut search = Search {
        ask,
        policy,
        headers,
        nodes,
        numbers,
        answers: Answers::new(numbers),
        pending: FuturesUnordered::new(),
    };
    search.run(index).await;
    match search.answers.take_good() {
        Some(bucket) => search.respond(req, ranges, bucket).await,
        None => finish(search.refuse(index)),
    }
}

/// The search for enough archives.
struct Search {
    ask: Arc<Ask>,
    policy: Arc<EcPolicy>,
    /// Of all requests.
    headers: Headers,
    nodes: NodeIter,
    numbers: Numbers,
    answers: Answers<(Node, Response), Option<Answer>>,
    pending: FuturesUnordered<Asking>,
}

impl Search {
    async fn run(&mut self, index: PolicyIndex) {
        let options = self.ask.app.options.policy(Some(index)).clone();
        let extra = if options.concurrent_gets { options.concurrent_ec_extra_requests } else { 0 };
        for _ in 0..self.numbers.ndata + extra {
            self.ask_next();
        }
        // Should servers answer with what nobody wants, this ends it.
        let mut extra_left = (2 * self.numbers.replicas).saturating_sub(self.numbers.ndata);
        let mut next_turn = Instant::now() + options.concurrency_timeout;
        loop {
            let said = if options.concurrent_gets && self.nodes.has_primaries() {
                match tokio::time::timeout_at(next_turn, self.pending.next()).await {
                    Ok(said) => said,
                    Err(_) => {
                        self.ask_next();
                        next_turn += options.concurrency_timeout;
                        continue;
                    }
                }
            } else {
                self.pending.next().await
            };
            let Some(said) = said else { return };
            let good_source = self.judge(said);
            let enough = self.answers.good().map(|indexes| self.policy.codec.can_decode(indexes));
            if enough == Some(true) {
                return;
            }
            let available = extra_left > 0 && (self.nodes.may_go_on() || self.answers.has_other());
            let lacking = self.answers.shortfall() > self.pending.len() || enough == Some(false);
            if available && (lacking || !good_source) {
                extra_left -= 1;
                self.ask_next();
            }
        }
    }

    fn ask_next(&mut self) {
        let app = self.ask.app.clone();
        let node = self.answers.next_other(|count| app.rng.below(count)).or_else(|| self.nodes.next(&app));
        let Some(node) = node else {
            self.pending.push(Box::pin(ready(None)));
            return;
        };
        let mut headers = self.headers.clone();
        headers.insert(X_BACKEND_FRAGMENT_PREFERENCES, self.answers.preferences());
        let asking = self.ask.clone().ask(node, Arc::new(headers));
        self.pending.push(Box::pin(async move { Some(asking.await) }));
    }

    /// Files what a node said; whether it was one to have asked.
    fn judge(&mut self, said: Said) -> bool {
        let nothing = Headers::new();
        match said {
            Some((node, Some(Ok(resp)))) if is_success(resp.status.0) => {
                let headers = resp.headers.clone();
                if let Err(reason) = self.answers.add_found(&node.clone(), headers, (node, resp)) {
                    self.ask.logger.error(format_args!("Problem with fragment response: {reason}"));
                }
                true
            }
            Some((_, Some(Ok(resp)))) => {
                let answer =
                    Answer { status: resp.status.0, headers: resp.headers, body: Bytes::new(), node: None };
                self.answers.add_refusal(answer.status, &answer.headers.clone(), Some(answer));
                true
            }
            Some((node, Some(Err(answer)))) => {
                let status = answer.status;
                let known = timestamp(&answer.headers, X_BACKEND_TIMESTAMP).is_some_and(|ts| !ts.is_zero());
                // A handoff that has nothing says nothing.
                if node.handoff_index.is_some() && !known && (status == 404 || is_server_error(status)) {
                    self.answers.add_refusal(500, &nothing, None);
                    return false;
                }
                let Ask { app, logger, target, .. } = &*self.ask;
                app.check_response(logger, &node, "Object", status, target, &answer.body);
                self.answers.add_refusal(status, &answer.headers.clone(), Some(answer));
                false
            }
            Some((_, None)) | None => {
                self.answers.add_refusal(500, &nothing, None);
                false
            }
        }
    }

    /// The response that archives make.
    async fn respond(
        self,
        req: &mut Request,
        ranges: Option<Ranges>,
        bucket: Bucket<(Node, Response)>,
    ) -> Response {
        let data_timestamp = bucket.timestamp;
        let (found, mut others) = bucket.into_parts();
        // Of metadata the newest; any archive has it.
        let newest = found.values().max_by_key(|found| timestamp(&found.headers, X_BACKEND_TIMESTAMP));
        let Some(headers) = newest.map(|found| found.headers.clone()) else { return Response::error(503) };
        let Some(object_len) = headers.get_int::<u64>(X_OBJECT_SYSMETA_EC_CONTENT_LENGTH) else {
            self.ask.logger.error("Object servers do not tell the object's length");
            return Response::error(503);
        };
        let used = self.choose(found.keys().copied().collect());
        let mut chosen = Vec::with_capacity(used.len());
        for (index, found) in found {
            match used.contains(&index) {
                true => chosen.push((index, found.source)),
                false => others.entry(index).or_default().push(found.source.0),
            }
        }

        let ignored = ignores_range(&req.headers, &headers);
        let none_satisfiable = ranges.as_ref().is_some_and(|ranges| is_unsatisfiable(ranges, object_len));
        let whole = chosen.iter().all(|(_, (_, resp))| resp.status.0 == 200);
        let ranges = ranges.filter(|_| !ignored && !whole);
        let plan = match &ranges {
            _ if object_len == 0 => Vec::new(),
            Some(ranges) => parts(ranges, object_len, &self.policy),
            None => vec![Part::whole(object_len, &self.policy)],
        };
        let etag = headers.get(X_OBJECT_SYSMETA_EC_ETAG).map(<[u8]>::to_vec);
        let mut base = self.headers;
        base.remove(RANGE);
        // Who is asked from now on checks it.
        base.remove(X_BACKEND_CHECKS_ETAG);
        let of_object = (data_timestamp, etag);
        let (ask, codec) = (self.ask.clone(), self.policy.codec.clone());
        let sources = Arc::new(Sources::new(ask, codec, base, of_object, self.nodes, others, used));
        let mut archives: Vec<Archive> = chosen
            .into_iter()
            .map(|(index, source)| {
                Archive::new(&sources, index, source, plan.iter().map(|part| (part.start, part.end)))
            })
            .collect();
        let mut content_type = None;
        for archive in &mut archives {
            // Of several ranges the first part's head says it; who fails now is replaced when it is read.
            if archive.open().await.is_ok() && archive.content_type.is_some() {
                content_type = archive.content_type.clone();
                break;
            }
        }

        let mut resp = Response::new(200);
        update_headers(&mut resp.headers, &headers);
        resp.headers.remove("Content-Range");
        resp.headers.remove(X_BACKEND_ETAG_UNCHECKED);
        let content_type = content_type.as_deref().or_else(|| headers.get(CONTENT_TYPE));
        if let Some(content_type) = content_type {
            resp.headers.insert(CONTENT_TYPE, content_type);
        }
        let length: u64 = plan.iter().filter_map(|part| part.wanted).map(|(start, end)| end - start).sum();
        if length > 0 {
            let download = Download {
                policy: self.policy,
                sources,
                archives,
                parts: plan.into(),
                object_len,
                at: None,
                decoded: Default::default(),
                disconnect: req.env.get::<NonClientDisconnect>().cloned(),
                begun: false,
                done: false,
            };
            resp.body = Body::stream(download).with_length(length);
        }
        let etag = resolve_etag_is_at(&req.headers, &resp.headers);
        let resp = finish(resp);
        let range = if ignored || (whole && !none_satisfiable) { req.headers.remove(RANGE) } else { None };
        let mut resp = finish_with_ranges(req, resp, etag);
        // Swift: an error's own type, but not if ranges overlap too much.
        if resp.status.0 == 416 && none_satisfiable {
            resp.headers.insert(CONTENT_TYPE, "text/html; charset=UTF-8");
        }
        if let Some(range) = range {
            req.headers.insert(RANGE, range);
        }
        resp
    }

    /// As few of these archives as make an object, data first.
    fn choose(&self, indexes: Vec<usize>) -> Vec<usize> {
        let codec = &self.policy.codec;
        let enough =
            (codec.ndata()..=indexes.len()).find(|count| codec.can_decode(indexes[..*count].iter().copied()));
        indexes[..enough.unwrap_or(indexes.len())].to_vec()
    }

    /// The response when there are not enough archives.
    fn refuse(self, index: PolicyIndex) -> Response {
        let best = match self.answers.best() {
            Best::Bucket(timestamp) => self.answers.get(timestamp),
            Best::Refusals(_) | Best::Nothing => None,
        };
        let durable = best.filter(|bucket| bucket.durable).map(|bucket| bucket.timestamp);
        let only_not_durable = best.is_some_and(|bucket| !bucket.durable && bucket.has_archives());
        let options = self.ask.app.options.policy(Some(index));
        let mut suppressed =
            options.rebalance_missing_suppression_count.min(self.numbers.replicas.saturating_sub(1));
        let mut answers = Vec::new();
        for answer in self.answers.into_refusals().flatten() {
            let of_object = timestamp(&answer.headers, X_BACKEND_TIMESTAMP)
                .or_else(|| timestamp(&answer.headers, X_TIMESTAMP))
                .unwrap_or(Timestamp::ZERO);
            let of_data = timestamp(&answer.headers, X_BACKEND_DATA_TIMESTAMP).unwrap_or(of_object);
            // There is good data somewhere, only it cannot be had now.
            if durable.is_some_and(|durable| of_data <= durable) {
                continue;
            }
            if answer.status == 404 && of_object.is_zero() && suppressed > 0 {
                suppressed -= 1;
                continue;
            }
            answers.push(answer);
        }
        if answers.is_empty() && only_not_durable {
            answers.push(Answer::nothing(404));
        }
        let mut resp = best_response(&self.ask.logger, &answers, "Object GET", &[], None);
        if resp.body.is_empty() {
            resp.body = Response::error(resp.status).body;
        }
        resp
    }
}

/// Headers of the object in the place of an archive's.
fn finish(mut resp: Response) -> Response {
    let object_len = resp.headers.get_int::<u64>(X_OBJECT_SYSMETA_EC_CONTENT_LENGTH);
    match resp.headers.get(X_OBJECT_SYSMETA_EC_ETAG).map(<[u8]>::to_vec) {
        Some(etag) => resp.headers.insert(ETAG, etag),
        None => drop(resp.headers.remove(ETAG)),
    }
    let status = resp.status;
    if status.is_success() || status.is_redirection() || status.0 == 416 {
        resp.headers.insert("Accept-Ranges", "bytes");
    }
    match object_len {
        Some(len) if status.is_success() => resp.headers.insert(CONTENT_LENGTH, len),
        Some(len) if status.0 == 416 => resp.headers.insert("Content-Range", format_args!("bytes */{len}")),
        _ => {}
    }
    resp.headers.retain(|name, _| !starts_with_ignore_case(name, "x-object-sysmeta-ec-"));
    resp
}

/// Whether each of the ranges by itself is of nothing.
fn is_unsatisfiable(ranges: &Ranges, object_len: u64) -> bool {
    ranges.specs().iter().all(|spec| Ranges::from_specs(vec![*spec]).resolve(object_len).is_empty())
}

/// Whether object servers have sent everything because of the metadata that the object has.
fn ignores_range(request: &Headers, response: &Headers) -> bool {
    let names = request.get_str(X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT).unwrap_or_default();
    names.split(',').map(str::trim).any(|name| !name.is_empty() && response.contains(name))
}
