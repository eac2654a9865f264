//! Listings of shard ranges and of namespaces (`get_shard_ranges` and `get_namespaces` of Swift's broker).
//!
//! A namespace is a shard range of which only the name and the bounds are told; both listings have the same rows. Lower bounds are
//! outside and upper bounds inside of a range, and an empty one is none, so that an empty upper bound is the last.
//!
//! Who asks for ranges to list or to update wants the whole name space covered: what lies behind the last range found is still in
//! this container, which a filler says, a copy of its own shard range for that rest. Gaps before the last one stay.

use common::timestamp::Timestamp;
use rusqlite::Connection;

use super::shard_range::{self, BadState, ShardRange};
use crate::listing_formats::Format;
use common::json;

const LISTING: [i64; 4] = [30, 40, 50, 60];
const UPDATING: [i64; 4] = [20, 30, 40, 60];
/// All but found ones, which may overlap and be unwanted.
const AUDITING: [i64; 7] = [20, 30, 40, 50, 60, 70, 80];

/// Which shard ranges, and in which order. Without states, those in any.
#[derive(Clone, Debug, Default)]
pub struct ShardQuery {
    /// Markers are empty if there is none.
    pub marker: String,
    pub end_marker: String,
    /// The one range that has this name, instead of all between the markers.
    pub includes: Option<String>,
    pub reverse: bool,
    pub states: Vec<i64>,
    pub include_deleted: bool,
    pub include_own: bool,
    pub fill_gaps: bool,
}

impl ShardQuery {
    /// The range that takes the rows of an object.
    pub fn taking(object: &str) -> Self {
        Self { includes: Some(object.to_owned()), states: UPDATING.into(), ..Self::default() }
    }

    /// Only ranges in one of these states: a list of names, numbers and aliases.
    pub fn in_states(mut self, states: &str) -> Result<Self, BadState> {
        for state in states.split(',').map(str::trim).filter(|state| !state.is_empty()) {
            match state {
                "listing" => self.states.extend(LISTING),
                "updating" => self.states.extend(UPDATING),
                "auditing" => self.states.extend(AUDITING),
                other => self.states.push(ShardRange::resolve_state(other)?),
            }
            self.fill_gaps |= matches!(state, "listing" | "updating");
            // A shard that shrinks may shrink into its root.
            self.include_own |= state == "auditing";
        }
        Ok(self)
    }

    /// All shard ranges whatever their names.
    pub fn without_names(self) -> Self {
        let Self { states, include_deleted, include_own, fill_gaps, .. } = self;
        Self { states, include_deleted, include_own, fill_gaps, ..Self::default() }
    }

    /// What the rows are selected by, and the texts in it.
    fn condition<'a>(
        &'a self,
        path: &'a str,
        marker: &'a str,
        end_marker: &'a str,
    ) -> (String, Vec<&'a str>) {
        let mut conditions = vec!["true".to_owned()];
        let mut texts = Vec::new();
        if !self.include_deleted {
            conditions.push("deleted = 0".to_owned());
        }
        if !self.states.is_empty() {
            let states: Vec<String> = self.states.iter().map(ToString::to_string).collect();
            conditions.push(format!("state IN ({})", states.join(", ")));
        }
        let mut with = |condition: &str, text: &'a str| {
            conditions.push(condition.to_owned());
            texts.push(text);
        };
        if !self.include_own {
            with("name != ?", path);
        }
        if let Some(name) = &self.includes {
            with("lower < ?", name);
            with("(upper = '' OR upper >= ?)", name);
        } else {
            if !end_marker.is_empty() {
                with("lower < ?", end_marker);
            }
            if !marker.is_empty() {
                with("(upper = '' OR upper > ?)", marker);
            }
        }
        (conditions.join(" AND "), texts)
    }
}

/// The shard ranges of the container `path` that `query` asks for.
pub fn list(
    sqlite: &Connection,
    path: &str,
    query: &ShardQuery,
    now: Timestamp,
) -> rusqlite::Result<Vec<ShardRange>> {
    let (mut marker, mut end_marker) = (query.marker.as_str(), query.end_marker.as_str());
    if query.reverse {
        std::mem::swap(&mut marker, &mut end_marker);
    }
    if !marker.is_empty() && !end_marker.is_empty() && marker >= end_marker {
        return Ok(Vec::new());
    }
    let (condition, texts) = query.condition(path, marker, end_marker);
    let mut found = shard_range::select(sqlite, &condition, &texts)?;
    if query.includes.as_ref().is_some_and(|name| !name.is_empty()) {
        found.truncate(1);
        return Ok(found);
    }
    if query.fill_gaps && found.last().is_none_or(|last| !last.upper.is_empty()) {
        let own = shard_range::select(sqlite, "name = ?", &[path])?.into_iter().next();
        let own = own.unwrap_or_else(|| ShardRange::of_all(path, now));
        found.extend(filler(found.last(), own, marker, end_marker));
    }
    if query.reverse {
        found.reverse();
    }
    Ok(found)
}

/// The part of the container's `own` range that is behind the last one found.
fn filler(last: Option<&ShardRange>, own: ShardRange, marker: &str, end_marker: &str) -> Option<ShardRange> {
    let lower = match last {
        Some(last) => last.upper.clone(),
        None => own.lower.clone().max(marker.to_owned()),
    };
    let end_comes_first = !end_marker.is_empty() && (own.upper.is_empty() || end_marker < own.upper.as_str());
    let upper = if end_comes_first { end_marker.to_owned() } else { own.upper.clone() };
    (upper.is_empty() || upper > lower).then_some(ShardRange { lower, upper, ..own })
}

/// A listing in a format, of namespaces or with all that a shard range has. `None`: there is no XML of what is neither object nor
/// subdir.
pub fn write(ranges: &[ShardRange], format: Format, namespaces: bool) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match format {
        Format::Text => ranges.iter().for_each(|range| {
            out.extend_from_slice(range.name.as_bytes());
            out.push(b'\n');
        }),
        Format::Json => {
            let record = if namespaces { ShardRange::to_namespace } else { ShardRange::to_record };
            json::write_value(&mut out, &ranges.iter().map(record).collect());
        }
        Format::Xml => return None,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(name: &str, lower: &str, upper: &str, state: i64) -> ShardRange {
        let (lower, upper) = (lower.to_owned(), upper.to_owned());
        ShardRange { lower, upper, state, ..ShardRange::of_all(name, Timestamp::from_raw(1)) }
    }

    fn database(ranges: Vec<ShardRange>) -> Connection {
        let sqlite = Connection::open_in_memory().unwrap();
        sqlite.execute_batch(super::super::schema::SHARD_RANGE).unwrap();
        shard_range::merge(&sqlite, ranges).unwrap();
        sqlite
    }

    fn listed(sqlite: &Connection, query: &ShardQuery) -> Vec<(String, String, String)> {
        let found = list(sqlite, "a/c", query, Timestamp::ZERO).unwrap();
        found.into_iter().map(|range| (range.name, range.lower, range.upper)).collect()
    }

    #[test]
    fn the_rest_of_the_names_is_the_containers_own() {
        let sqlite = database(vec![range("s/1", "", "f", 40), range("s/2", "f", "m", 10)]);
        let query = || ShardQuery::default().in_states("listing").unwrap();
        let named =
            |name: &str, lower: &str, upper: &str| (name.to_owned(), lower.to_owned(), upper.to_owned());
        assert_eq!(listed(&sqlite, &query()), [named("s/1", "", "f"), named("a/c", "f", "")]);
        let to_k = ShardQuery { end_marker: "k".into(), ..query() };
        assert_eq!(listed(&sqlite, &to_k), [named("s/1", "", "f"), named("a/c", "f", "k")]);
        let from_h = ShardQuery { marker: "h".into(), ..query() };
        assert_eq!(listed(&sqlite, &from_h), [named("a/c", "h", "")]);
        let to_f = ShardQuery { end_marker: "f".into(), ..query() };
        assert_eq!(listed(&sqlite, &to_f), [named("s/1", "", "f")]);
        let back = ShardQuery { reverse: true, marker: "k".into(), ..query() };
        assert_eq!(listed(&sqlite, &back), [named("a/c", "f", "k"), named("s/1", "", "f")]);
        assert_eq!(listed(&sqlite, &ShardQuery::taking("g")), []);
        assert_eq!(listed(&sqlite, &ShardQuery::taking("f")), [named("s/1", "", "f")]);
    }

    #[test]
    fn there_is_no_xml_of_shard_ranges() {
        let ranges = [range("s/1", "", "é", 40)];
        assert_eq!(write(&ranges, Format::Xml, false), None);
        assert_eq!(write(&ranges, Format::Text, true).unwrap(), b"s/1\n");
        let namespaces = br#"[{"name": "s/1", "lower": "", "upper": "\u00e9"}]"#;
        assert_eq!(write(&ranges, Format::Json, true).unwrap(), namespaces);
    }

    proptest! {
        /// Whatever ranges there are, someone who lists or updates is told of a range for each name.
        #[test]
        fn ranges_that_follow_each_other_are_filled_up(
            bounds in proptest::collection::btree_set("[a-f]{1,2}", 0..5),
            marker in "[a-f]{0,2}", end_marker in "[a-f]{0,2}", reverse: bool, name in "[a-g]{1,3}",
        ) {
            let uppers: Vec<String> = bounds.into_iter().collect();
            let lowers = std::iter::once(String::new()).chain(uppers.clone());
            let ranges = lowers.zip(&uppers).map(|(lower, upper)| range(&format!("s/{upper}"), &lower, upper, 40));
            let sqlite = database(ranges.collect());
            let query = ShardQuery { marker: marker.clone(), end_marker: end_marker.clone(), reverse, ..ShardQuery::default() };
            let (first, end) = if reverse { (end_marker, marker) } else { (marker, end_marker) };
            let mut found = listed(&sqlite, &query.in_states("updating").unwrap());
            if reverse {
                found.reverse();
            }
            prop_assert!(found.windows(2).all(|pair| pair[0].2 == pair[1].1), "{:?}", found);
            let within = name > first && (end.is_empty() || name < end);
            let covers = |range: &(String, String, String)| name > range.1 && (range.2.is_empty() || name <= range.2);
            prop_assert!(!within || found.iter().any(covers), "{:?}", found);
        }
    }
}
