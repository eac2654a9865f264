//! What servers have said to a GET of a fragment archive, sorted. Pure.
//!
//! Archives are kept by the timestamp of their data: only such of one timestamp make an object. A server tells of one
//! archive's bytes and, by header, of all others that it has (`X-Backend-Fragments`) and of which timestamp it knows to be
//! durable. Preferred is, in this order: what is durable, what there are enough archives of, what there would be the fewest
//! lacking of if servers were asked for their other archives too, what is newest. A newer tombstone trumps all of that.
//!
//! Whatever is no archive is kept by its status.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use common::headers::{
    X_BACKEND_DATA_TIMESTAMP, X_BACKEND_DURABLE_TIMESTAMP, X_BACKEND_FRAGMENTS, X_BACKEND_TIMESTAMP,
    X_OBJECT_SYSMETA_EC_ETAG, X_OBJECT_SYSMETA_EC_FRAG_INDEX, X_TIMESTAMP,
};
use common::timestamp::Timestamp;
use ring::Node;
use serde_json::{Value, json};
use service::http::Headers;

/// How many archives there are and how many are needed.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub ndata: usize,
    pub nparity: usize,
    /// Servers of a partition.
    pub replicas: usize,
}

/// A server's answer that has an archive: `S` is how its bytes are got.
pub struct Found<S> {
    pub headers: Headers,
    pub source: S,
}

/// Archives of one timestamp.
pub struct Bucket<S> {
    pub timestamp: Timestamp,
    pub durable: bool,
    /// By fragment index, the first of each.
    found: BTreeMap<usize, Found<S>>,
    /// Servers that have others, by fragment index.
    others: BTreeMap<usize, Vec<Node>>,
}

/// Answers that have no archive, of one status.
pub struct Refusals<R> {
    /// The newest of theirs.
    timestamp: Timestamp,
    pub answers: Vec<R>,
}

/// `S` is a source of an archive, `R` an answer that has none.
pub struct Answers<S, R> {
    numbers: Numbers,
    buckets: BTreeMap<Timestamp, Bucket<S>>,
    refusals: BTreeMap<u16, Refusals<R>>,
    /// Requests made.
    asked: usize,
}

/// What is best of all answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best {
    /// Archives of this timestamp.
    Bucket(Timestamp),
    /// Refusals of this status.
    Refusals(u16),
    /// Nothing but 404s, or nothing at all.
    Nothing,
}

impl<S, R> Answers<S, R> {
    pub fn new(numbers: Numbers) -> Self {
        Self { numbers, buckets: BTreeMap::new(), refusals: BTreeMap::new(), asked: 0 }
    }

    fn bucket(&mut self, timestamp: Timestamp) -> &mut Bucket<S> {
        self.buckets.entry(timestamp).or_insert_with(|| Bucket {
            timestamp,
            durable: false,
            found: BTreeMap::new(),
            others: BTreeMap::new(),
        })
    }

    /// Files an archive. Refused, with the reason, is one that does not belong to the others of its timestamp.
    pub fn add_found(&mut self, node: &Node, headers: Headers, source: S) -> Result<(), &'static str> {
        let stated = |name| timestamp(&headers, name);
        let of_data = stated(X_BACKEND_DATA_TIMESTAMP);
        let of_object = stated(X_BACKEND_TIMESTAMP).or_else(|| stated(X_TIMESTAMP));
        let of_bucket = of_data.or(of_object).unwrap_or(Timestamp::ZERO);
        // A server that does not tell of data has no data that is not durable.
        let durable = stated(X_BACKEND_DURABLE_TIMESTAMP).or(of_object.filter(|_| of_data.is_none()));
        let index = headers.get_int::<usize>(X_OBJECT_SYSMETA_EC_FRAG_INDEX);
        let others = other_archives(&headers);

        let bucket = self.bucket(of_bucket);
        let etag = |headers: &Headers| headers.get(X_OBJECT_SYSMETA_EC_ETAG).map(<[u8]>::to_vec);
        if bucket.found.values().next().is_some_and(|first| etag(&first.headers) != etag(&headers)) {
            return Err("ETag mismatch");
        }
        let index = index.ok_or("no fragment index")?;
        bucket.found.entry(index).or_insert(Found { headers, source });
        for (timestamp, indexes) in others {
            let others = &mut self.bucket(timestamp).others;
            indexes.into_iter().for_each(|index| others.entry(index).or_default().push(node.clone()));
        }
        if let Some(durable) = durable {
            self.bucket(durable).durable = true;
        }
        Ok(())
    }

    /// Files an answer without an archive; one that could not be had at all has status 500.
    pub fn add_refusal(&mut self, status: u16, headers: &Headers, answer: R) {
        let of_answer = timestamp(headers, X_BACKEND_TIMESTAMP).or_else(|| timestamp(headers, X_TIMESTAMP));
        let empty = || Refusals { timestamp: Timestamp::ZERO, answers: Vec::new() };
        let refusals = self.refusals.entry(status).or_insert_with(empty);
        refusals.timestamp = refusals.timestamp.max(of_answer.unwrap_or(Timestamp::ZERO));
        refusals.answers.push(answer);
    }

    /// Buckets in the order of preference.
    fn sorted(&self) -> Vec<&Bucket<S>> {
        let numbers = self.numbers;
        let mut sorted: Vec<&Bucket<S>> = self.buckets.values().collect();
        sorted.sort_by_key(|bucket| {
            Reverse((
                bucket.durable,
                bucket.shortfall(numbers) == 0,
                Reverse(bucket.shortfall_with_others(numbers)),
                bucket.timestamp,
            ))
        });
        sorted
    }

    pub fn best(&self) -> Best {
        let tombstone = self.refusals.get(&404).map_or(Timestamp::ZERO, |refusals| refusals.timestamp);
        let good = self.sorted().into_iter().find(|bucket| bucket.timestamp >= tombstone);
        good.map_or_else(|| self.least_bad(), |bucket| Best::Bucket(bucket.timestamp))
    }

    fn least_bad(&self) -> Best {
        let others = self.refusals.iter().filter(|(status, _)| **status != 404);
        let least =
            others.min_by_key(|(status, refusals)| (self.refusal_shortfall(**status, refusals), **status));
        least.map_or(Best::Nothing, |(status, _)| Best::Refusals(*status))
    }

    fn refusal_shortfall(&self, status: u16, refusals: &Refusals<R>) -> usize {
        let count = refusals.answers.len();
        match status {
            // Enough of these need no more requests.
            416 => self.numbers.ndata.saturating_sub(count),
            _ => self.numbers.undecided(count),
        }
    }

    fn shortfall_of(&self, best: Best) -> usize {
        match best {
            Best::Bucket(timestamp) => self.buckets[&timestamp].shortfall(self.numbers),
            Best::Refusals(status) => self.refusal_shortfall(status, &self.refusals[&status]),
            Best::Nothing => self.numbers.undecided(0),
        }
    }

    /// How many answers are lacking before something can be said.
    pub fn shortfall(&self) -> usize {
        self.shortfall_of(self.best()).min(self.shortfall_of(self.least_bad()))
    }

    /// The fragment indexes of the best archives, if there are enough of them and they are durable.
    pub fn good(&self) -> Option<Vec<usize>> {
        let bucket = &self.buckets[&self.good_timestamp()?];
        Some(bucket.found.keys().copied().collect())
    }

    fn good_timestamp(&self) -> Option<Timestamp> {
        match self.best() {
            Best::Bucket(timestamp) => {
                let bucket = &self.buckets[&timestamp];
                (bucket.durable && bucket.shortfall(self.numbers) == 0).then_some(timestamp)
            }
            Best::Refusals(_) | Best::Nothing => None,
        }
    }

    /// What [`Answers::good`] has told of.
    pub fn take_good(&mut self) -> Option<Bucket<S>> {
        self.buckets.remove(&self.good_timestamp()?)
    }

    pub fn get(&self, timestamp: Timestamp) -> Option<&Bucket<S>> {
        self.buckets.get(&timestamp)
    }

    /// All refusals by their status.
    pub fn into_refusals(self) -> impl Iterator<Item = R> {
        self.refusals.into_values().flat_map(|refusals| refusals.answers)
    }

    /// `X-Backend-Fragment-Preferences`: the timestamps that are liked best, and what is not needed again of them.
    pub fn preferences(&self) -> String {
        let of = |bucket: &Bucket<S>| preference(bucket.timestamp, bucket.found.keys());
        let known = self.sorted().into_iter().filter(|bucket| !bucket.timestamp.is_zero());
        Value::Array(known.map(of).collect()).to_string()
    }

    /// Counts a request, and says whether it should go to a server that is known to have an archive which lacks, rather than
    /// to the next one. `pick` chooses of so many. For the first requests there is no such server: archives on different
    /// servers are better.
    pub fn next_other(&mut self, pick: impl FnOnce(usize) -> usize) -> Option<Node> {
        self.asked += 1;
        let (timestamp, index) = self.lacking(pick)?;
        let nodes = self.buckets.get_mut(&timestamp)?.others.get_mut(&index)?;
        Some(nodes.remove(0))
    }

    pub fn has_other(&self) -> bool {
        self.lacking(|_| 0).is_some()
    }

    fn lacking(&self, pick: impl FnOnce(usize) -> usize) -> Option<(Timestamp, usize)> {
        if self.asked <= self.numbers.ndata {
            return None;
        }
        let Best::Bucket(timestamp) = self.best() else { return None };
        let bucket = &self.buckets[&timestamp];
        if bucket.shortfall(self.numbers) == 0 || !bucket.durable {
            return None;
        }
        let lacking: Vec<usize> = bucket
            .others
            .iter()
            .filter(|(index, nodes)| !bucket.found.contains_key(index) && !nodes.is_empty())
            .map(|(index, _)| *index)
            .collect();
        (!lacking.is_empty()).then(|| (timestamp, lacking[pick(lacking.len()) % lacking.len()]))
    }
}

impl Numbers {
    /// What is lacking if it isn't even known to be durable: as many requests as might show that it is.
    fn undecided(self, count: usize) -> usize {
        let more = self.replicas.saturating_sub(count).min(self.nparity);
        self.ndata.saturating_sub(count).max(more).max(1)
    }
}

impl<S> Bucket<S> {
    fn shortfall(&self, numbers: Numbers) -> usize {
        if self.durable {
            numbers.ndata.saturating_sub(self.found.len())
        } else {
            numbers.undecided(self.found.len())
        }
    }

    fn shortfall_with_others(&self, numbers: Numbers) -> usize {
        let others = self.others.keys().filter(|index| !self.found.contains_key(index)).count();
        numbers.ndata.saturating_sub(self.found.len() + others)
    }

    pub fn has_archives(&self) -> bool {
        !self.found.is_empty()
    }

    /// Archives by their fragment index, and the servers of others.
    pub fn into_parts(self) -> (BTreeMap<usize, Found<S>>, HashMap<usize, Vec<Node>>) {
        (self.found, self.others.into_iter().collect())
    }
}

/// One timestamp and the fragment indexes that are not wanted.
pub fn preference<'a>(timestamp: Timestamp, exclude: impl Iterator<Item = &'a usize>) -> Value {
    json!({"timestamp": timestamp.internal(), "exclude": exclude.collect::<Vec<_>>()})
}

pub fn timestamp(headers: &Headers, name: &str) -> Option<Timestamp> {
    headers.get_str(name).filter(|text| !text.is_empty()).and_then(|text| Timestamp::parse(text).ok())
}

/// The archives that a server has: fragment indexes by timestamp. What cannot be read is nothing.
fn other_archives(headers: &Headers) -> Vec<(Timestamp, Vec<usize>)> {
    let text = headers.get_str(X_BACKEND_FRAGMENTS).unwrap_or_default();
    let Ok(Value::Object(sets)) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let indexes = |set: &Value| -> Vec<usize> {
        let indexes = set.as_array().into_iter().flatten().filter_map(Value::as_u64);
        indexes.map(|index| index as usize).collect()
    };
    sets.iter().filter_map(|(text, set)| Some((Timestamp::parse(text).ok()?, indexes(set)))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ring::Device;

    use super::*;

    const NUMBERS: Numbers = Numbers { ndata: 2, nparity: 1, replicas: 3 };
    const OLD: &str = "1700000000.00000";
    const NEW: &str = "1700000001.00000";

    fn node(id: u32) -> Node {
        let dev = Device {
            id,
            region: 1,
            zone: 1,
            ip: "127.0.0.1".to_owned(),
            port: 6200,
            device: format!("sd{id}"),
            weight: 1.0,
            replication_ip: "127.0.0.1".to_owned(),
            replication_port: 6200,
            meta: String::new(),
            extra: Default::default(),
        };
        Node { dev: Arc::new(dev), index: id as usize, handoff_index: None }
    }

    /// A server's headers: the archive that it sends, the durable timestamp, and all that it has.
    fn archive(data: &str, index: usize, durable: Option<&str>, all: &str) -> Headers {
        let mut headers = Headers::from([
            (X_BACKEND_DATA_TIMESTAMP, data),
            (X_OBJECT_SYSMETA_EC_FRAG_INDEX, &index.to_string()),
            (X_OBJECT_SYSMETA_EC_ETAG, data),
            (X_BACKEND_FRAGMENTS, all),
        ]);
        if let Some(durable) = durable {
            headers.insert(X_BACKEND_DURABLE_TIMESTAMP, durable);
        }
        headers
    }

    fn ts(text: &str) -> Timestamp {
        Timestamp::parse(text).expect("a timestamp")
    }

    type Plain = Answers<(), u16>;

    #[test]
    fn enough_durable_archives_are_good() {
        let mut answers = Plain::new(NUMBERS);
        answers.add_found(&node(0), archive(OLD, 0, Some(OLD), "{}"), ()).expect("fits");
        assert_eq!((answers.shortfall(), answers.good().is_some()), (1, false));
        // The same archive again adds nothing.
        answers.add_found(&node(1), archive(OLD, 0, Some(OLD), "{}"), ()).expect("fits");
        assert!(answers.good().is_none());
        answers.add_found(&node(2), archive(OLD, 2, None, "{}"), ()).expect("fits");
        assert!(answers.good().is_some());
        let (found, _) = answers.take_good().expect("enough").into_parts();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn what_is_not_durable_needs_more_answers() {
        let mut answers = Plain::new(NUMBERS);
        for index in 0..2 {
            answers.add_found(&node(index), archive(OLD, index as usize, None, "{}"), ()).expect("fits");
        }
        assert_eq!((answers.shortfall(), answers.good().is_some()), (1, false));
        assert_eq!(answers.best(), Best::Bucket(ts(OLD)));
        // Only the third knows.
        answers.add_found(&node(2), archive(OLD, 2, Some(OLD), "{}"), ()).expect("fits");
        assert!(answers.good().is_some());
    }

    #[test]
    fn durable_beats_newer_and_other_archives_count() {
        let mut answers = Plain::new(NUMBERS);
        let all = format!("{{\"{OLD}\": [0], \"{NEW}\": [1]}}");
        answers.add_found(&node(0), archive(NEW, 1, Some(OLD), &all), ()).expect("fits");
        answers.add_found(&node(1), archive(NEW, 2, None, "{}"), ()).expect("fits");
        assert_eq!(answers.best(), Best::Bucket(ts(OLD)));
        assert_eq!(
            serde_json::from_str::<Value>(&answers.preferences()).expect("JSON"),
            json!([{"timestamp": OLD, "exclude": []}, {"timestamp": NEW, "exclude": [1, 2]}])
        );
        // Servers known to have what lacks are asked after as many others as there are data fragments.
        for _ in 0..2 {
            assert!(answers.next_other(|_| 0).is_none());
        }
        assert!(!answers.has_other());
        assert_eq!(answers.next_other(|_| 0).map(|node| node.id), Some(0));
        assert_eq!(answers.next_other(|_| 0).map(|node| node.id), None, "only once");
    }

    #[test]
    fn a_newer_tombstone_trumps() {
        let mut answers = Plain::new(NUMBERS);
        for index in 0..2 {
            answers.add_found(&node(index), archive(OLD, index as usize, Some(OLD), "{}"), ()).expect("fits");
        }
        answers.add_refusal(404, &Headers::new(), 404);
        assert!(answers.good().is_some(), "nothing was there: no tombstone");
        answers.add_refusal(404, &Headers::from([(X_BACKEND_TIMESTAMP, NEW)]), 404);
        assert_eq!((answers.best(), answers.good().is_some()), (Best::Nothing, false));
    }

    #[test]
    fn archives_of_another_etag_are_refused() {
        let mut answers = Plain::new(NUMBERS);
        answers.add_found(&node(0), archive(OLD, 0, Some(OLD), "{}"), ()).expect("fits");
        let mut other = archive(OLD, 1, Some(OLD), "{}");
        other.insert(X_OBJECT_SYSMETA_EC_ETAG, "other");
        assert!(answers.add_found(&node(1), other, ()).is_err());
    }

    #[test]
    fn refusals_are_digged_through_unless_they_are_416() {
        let mut answers = Plain::new(NUMBERS);
        assert_eq!(answers.shortfall(), 2);
        for _ in 0..3 {
            answers.add_refusal(404, &Headers::new(), 404);
        }
        assert_eq!((answers.best(), answers.shortfall()), (Best::Nothing, 2));
        answers.add_refusal(416, &Headers::new(), 416);
        assert_eq!((answers.best(), answers.shortfall()), (Best::Refusals(416), 1));
        answers.add_refusal(416, &Headers::new(), 416);
        assert_eq!(answers.shortfall(), 0);
    }
}
