//! Walking the names of a database in order: prefix, delimiter, markers, path and reverse.
//!
//! Accounts list containers and containers list objects by the same rules (swift/container/backend.py `list_objects_iter`,
//! swift/account/backend.py `list_containers_iter`). Rows come from SQLite in name order; when a name shows a delimiter past the
//! prefix, everything below it becomes one subdir, and a new query starts behind the subdir, so that a directory of a million
//! objects costs one step. All comparisons are by code point, which for UTF-8 is by byte, in SQLite and here.

use rusqlite::types::Value;
use rusqlite::{CachedStatement, Connection, Row, Transaction};

/// What a client may ask of a listing. An empty marker is none; an empty `prefix` or `path` is not none.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub limit: usize,
    pub marker: String,
    pub end_marker: String,
    pub prefix: Option<String>,
    pub delimiter: String,
    pub path: Option<String>,
    pub reverse: bool,
    /// Show names that begin with the reserved byte (NUL).
    pub allow_reserved: bool,
}

/// Where the rows come from: `SELECT name, <columns> FROM <table> WHERE <filter> ...`.
pub struct Source<'a> {
    pub columns: &'a str,
    pub table: &'a str,
    pub filter: &'a str,
}

pub enum Entry<'a> {
    /// A row, and its name (column 0).
    Row(&'a str, &'a Row<'a>),
    Subdir(&'a str),
}

/// What the names of a query are compared by, each with an argument: a limit to the end, one to the start, the reserved byte.
type Conditions = [Option<&'static str>; 3];

/// Names above the reserved byte.
const FIRST_UNRESERVED: &str = "\u{1}";

/// Call `emit` for up to `query.limit` entries in order. Where names are split, all queries are one transaction, which locks the file once
/// and not for each subdir.
pub fn walk(
    sqlite: &Connection,
    source: &Source<'_>,
    query: &Query,
    emit: impl FnMut(Entry<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let walk = Walk::new(query);
    let transaction = walk.delimiter.map(|_| sqlite.unchecked_transaction()).transpose()?;
    step_through(sqlite, source, walk, emit)?;
    transaction.map_or(Ok(()), Transaction::commit)
}

fn step_through(
    sqlite: &Connection,
    source: &Source<'_>,
    mut walk: Walk<'_>,
    mut emit: impl FnMut(Entry<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let query = walk.query;
    let mut prepared: Option<(Conditions, CachedStatement<'_>)> = None;
    while walk.emitted < query.limit && !walk.finished {
        let (conditions, arguments) = walk.conditions();
        // From one subdir to the next only the arguments change.
        let statement = match &mut prepared {
            Some((last, statement)) if *last == conditions => statement,
            stale => {
                let statement = sqlite.prepare_cached(&walk.sql(source, &conditions))?;
                &mut stale.insert((conditions, statement)).1
            }
        };
        let mut rows = statement.query(rusqlite::params_from_iter(arguments.into_iter().flatten()))?;
        let wanted = query.limit - walk.emitted;
        let mut seen = 0;
        let mut jumped = false;
        while let Some(row) = rows.next()? {
            seen += 1;
            let bytes = row.get_ref(0)?.as_bytes_or_null()?.unwrap_or_default();
            let name = String::from_utf8_lossy(bytes);
            match walk.step(&name) {
                Step::Row => emit(Entry::Row(&name, row))?,
                Step::Skip => {}
                Step::Jump(subdir) => {
                    if let Some(subdir) = subdir {
                        emit(Entry::Subdir(subdir))?;
                    }
                    jumped = true;
                    break;
                }
            }
        }
        // Fewer rows than asked for: there is nothing behind them.
        if !jumped && (seen < wanted || walk.delimiter.is_none()) {
            break;
        }
    }
    Ok(())
}

struct Walk<'a> {
    query: &'a Query,
    prefix: Option<String>,
    /// The delimiter, if it splits names here.
    delimiter: Option<&'a str>,
    path: Option<String>,
    end_prefix: Option<String>,
    marker: String,
    end_marker: String,
    /// The marker as given: a subdir of that very name has been listed already.
    given_marker: String,
    /// The marker is the first name behind a subdir and itself included.
    marker_included: bool,
    /// No name can lie behind the last subdir.
    finished: bool,
    emitted: usize,
}

enum Step<'n> {
    Row,
    Skip,
    /// Start a new query behind a subdir, which is listed if it is given.
    Jump(Option<&'n str>),
}

impl<'a> Walk<'a> {
    fn new(query: &'a Query) -> Self {
        let (marker, end_marker) = if query.reverse {
            (&query.end_marker, &query.marker)
        } else {
            (&query.marker, &query.end_marker)
        };
        let mut prefix = query.prefix.clone();
        let mut delimiter = query.delimiter.as_str();
        let mut path = None;
        if let Some(given) = &query.path {
            let base =
                if given.is_empty() { String::new() } else { format!("{}/", given.trim_end_matches('/')) };
            prefix = Some(base.clone());
            path = Some(base);
            delimiter = "/";
        } else if !delimiter.is_empty() && prefix.is_none() {
            prefix = Some(String::new());
        }
        let splits = prefix.is_some() && !delimiter.is_empty();
        Self {
            query,
            end_prefix: prefix.as_deref().filter(|prefix| !prefix.is_empty()).and_then(after_all),
            prefix,
            delimiter: splits.then_some(delimiter),
            path,
            marker: marker.clone(),
            end_marker: end_marker.clone(),
            given_marker: marker.clone(),
            marker_included: false,
            finished: false,
            emitted: 0,
        }
    }

    /// The conditions of the next query, and its arguments in their order, the limit last.
    fn conditions(&mut self) -> (Conditions, [Option<Value>; 4]) {
        let prefix = self.prefix.as_deref().filter(|prefix| !prefix.is_empty());
        let end_marker = Some(&self.end_marker).filter(|marker| !marker.is_empty());
        let end = match (end_marker, &self.end_prefix) {
            (Some(marker), Some(end)) => Some(marker.min(end)),
            (marker, end) => marker.or(end.as_ref()),
        };
        let start = if std::mem::take(&mut self.marker_included) {
            Some(("name >= ?", self.marker.as_str()))
        } else if !self.marker.is_empty() && prefix.is_none_or(|prefix| *self.marker >= *prefix) {
            Some(("name > ?", self.marker.as_str()))
        } else {
            prefix.map(|prefix| ("name >= ?", prefix))
        };
        let unreserved = (!self.query.allow_reserved).then_some("name >= ?");
        let left = self.query.limit - self.emitted;
        let text = |value: &str| Value::Text(value.to_owned());
        let arguments = [
            end.map(|end| text(end)),
            start.map(|(_, value)| text(value)),
            unreserved.map(|_| text(FIRST_UNRESERVED)),
            Some(Value::Integer(i64::try_from(left).unwrap_or(i64::MAX))),
        ];
        ([end.map(|_| "name < ?"), start.map(|(comparison, _)| comparison), unreserved], arguments)
    }

    fn sql(&self, source: &Source<'_>, conditions: &Conditions) -> String {
        let mut sql = format!("SELECT name, {} FROM {} WHERE ", source.columns, source.table);
        for comparison in conditions.iter().flatten() {
            sql.push_str(comparison);
            sql.push_str(" AND ");
        }
        sql.push_str(source.filter);
        sql.push_str(if self.query.reverse {
            " ORDER BY name DESC LIMIT ?"
        } else {
            " ORDER BY name LIMIT ?"
        });
        sql
    }

    /// What a name means, and where the next query would start.
    fn step<'n>(&mut self, name: &'n str) -> Step<'n> {
        let Some(delimiter) = self.delimiter else {
            self.emitted += 1;
            return Step::Row;
        };
        let from = self.prefix.as_ref().map_or(0, String::len).min(name.len());
        let at = name.get(from..).and_then(|rest| rest.find(delimiter)).map(|found| found + from);
        if self.path.as_deref() == Some(name) {
            self.continue_after(name);
            return Step::Skip;
        }
        match at {
            Some(at) if self.path.is_none() => {
                let subdir = &name[..at + delimiter.len()];
                self.jump_behind(name, at, delimiter);
                self.marker_included = !self.query.reverse;
                let listed = subdir != self.given_marker;
                self.emitted += usize::from(listed);
                Step::Jump(listed.then_some(subdir))
            }
            // Swift: container/backend.py excludes the name right behind the directory here ("dir0" after "dir/..."), unlike above.
            Some(at) if name.len() > at + delimiter.len() => {
                self.jump_behind(name, at, delimiter);
                Step::Jump(None)
            }
            _ => {
                self.continue_after(name);
                self.emitted += 1;
                Step::Row
            }
        }
    }

    fn jump_behind(&mut self, name: &str, at: usize, delimiter: &str) {
        let subdir = &name[..at + delimiter.len()];
        if self.query.reverse {
            set(&mut self.end_marker, subdir);
        } else {
            match after_all(subdir) {
                Some(behind) => self.marker = behind,
                None => self.finished = true,
            }
        }
    }

    fn continue_after(&mut self, name: &str) {
        set(if self.query.reverse { &mut self.end_marker } else { &mut self.marker }, name);
    }
}

fn set(text: &mut String, value: &str) {
    text.clear();
    text.push_str(value);
}

/// The first name behind all that begin with `prefix`: its last character replaced by the next one. (Where Swift's arithmetic leaves
/// Unicode - the surrogates, and behind the last code point - it fails; here the next character that exists is taken.)
fn after_all(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            other => char::from_u32(other as u32 + 1),
        };
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn database(names: &BTreeSet<String>) -> Connection {
        let sqlite = Connection::open_in_memory().unwrap();
        sqlite.execute_batch("CREATE TABLE t (name TEXT, deleted INTEGER DEFAULT 0)").unwrap();
        for name in names {
            sqlite.execute("INSERT INTO t (name) VALUES (?)", [name]).unwrap();
        }
        sqlite
    }

    fn list(names: &BTreeSet<String>, query: &Query) -> Vec<String> {
        let mut found = Vec::new();
        let source = Source { columns: "deleted", table: "t", filter: "deleted = 0" };
        walk(&database(names), &source, query, |entry| {
            found.push(match entry {
                Entry::Row(name, _) => name.to_owned(),
                Entry::Subdir(name) => format!("<{name}>"),
            });
            Ok(())
        })
        .unwrap();
        found
    }

    fn set_of(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn all() -> Query {
        Query { limit: 10_000, ..Query::default() }
    }

    #[test]
    fn a_subdir_stands_for_all_names_below_it() {
        let names = set_of(&["a", "a/1", "a/2", "a/", "a0", "b/x/y", "c"]);
        let query = Query { delimiter: "/".into(), ..all() };
        assert_eq!(list(&names, &query), ["a", "<a/>", "a0", "<b/>", "c"]);
        let query = Query { reverse: true, ..query };
        assert_eq!(list(&names, &query), ["c", "<b/>", "a0", "<a/>", "a"]);
    }

    #[test]
    fn a_subdir_equal_to_the_marker_is_not_repeated() {
        let names = set_of(&["a/1", "b/1", "c"]);
        let query = Query { delimiter: "/".into(), marker: "a/".into(), ..all() };
        assert_eq!(list(&names, &query), ["<b/>", "c"]);
    }

    #[test]
    fn path_shows_one_level_without_subdirs() {
        let names = set_of(&["a", "a/1", "a/2/3", "a/4/", "b/1", "c"]);
        assert_eq!(list(&names, &Query { path: Some(String::new()), ..all() }), ["a", "c"]);
        assert_eq!(list(&names, &Query { path: Some("a".into()), ..all() }), ["a/1", "a/4/"]);
    }

    #[test]
    fn names_with_the_reserved_byte_are_hidden() {
        let names = set_of(&["\0hidden", "seen"]);
        assert_eq!(list(&names, &all()), ["seen"]);
        assert_eq!(list(&names, &Query { allow_reserved: true, ..all() }), ["\0hidden", "seen"]);
    }

    #[test]
    fn the_end_of_unicode_is_no_end_of_a_listing() {
        let names = set_of(&["\u{d7ff}x", "\u{d7ff}/y", "\u{10ffff}/z", "\u{10ffff}\u{10ffff}"]);
        let query = Query { prefix: Some("\u{d7ff}".into()), ..all() };
        assert_eq!(list(&names, &query).len(), 2);
        let query = Query { prefix: Some("\u{10ffff}".into()), ..all() };
        assert_eq!(list(&names, &query), ["\u{10ffff}/z", "\u{10ffff}\u{10ffff}"]);
    }

    /// The meaning of a listing with prefix, delimiter and markers, said without queries.
    fn model(names: &BTreeSet<String>, query: &Query) -> Vec<String> {
        let prefix = query.prefix.clone().unwrap_or_default();
        let (marker, end) = if query.reverse {
            (&query.end_marker, &query.marker)
        } else {
            (&query.marker, &query.end_marker)
        };
        let mut entries = Vec::new();
        for name in names.iter().filter(|name| name.starts_with(&prefix)) {
            let inside = (marker.is_empty() || name > marker) && (end.is_empty() || name < end);
            if !inside {
                continue;
            }
            let split = name[prefix.len()..].find(&query.delimiter).filter(|_| !query.delimiter.is_empty());
            match split.map(|at| name[..prefix.len() + at + query.delimiter.len()].to_owned()) {
                Some(subdir) if subdir == *marker => {}
                Some(subdir) => entries.push(format!("<{subdir}>")),
                None => entries.push(name.clone()),
            }
        }
        if query.reverse {
            entries.reverse();
        }
        entries.dedup();
        entries.truncate(query.limit);
        entries
    }

    fn name() -> impl Strategy<Value = String> {
        "[ab/é]{1,5}"
    }

    proptest! {
        #[test]
        fn equals_the_model(
            names in proptest::collection::btree_set(name(), 0..25),
            marker in proptest::option::of(name()), end_marker in proptest::option::of(name()),
            prefix in proptest::option::of("[ab/]{0,2}"), delimiter in "(|/|b|a/|é)", reverse: bool, limit in 0usize..12,
        ) {
            let query = Query {
                limit, reverse, delimiter, prefix, path: None, allow_reserved: false,
                marker: marker.unwrap_or_default(), end_marker: end_marker.unwrap_or_default(),
            };
            prop_assert_eq!(list(&names, &query), model(&names, &query));
        }
    }
}
