//! Random histories of two objects, against a model: the last writer wins, by timestamp.

use std::collections::BTreeSet;

use common::Suffix;
use proptest::prelude::*;

use super::tests::{Disk, NOW, at, disk, metadata};
use super::*;

/// Of one of the objects.
#[derive(Copy, Clone, Debug)]
enum Step {
    Put(Timestamp),
    /// At, and with a content-type of another time.
    Post(Timestamp, Option<Timestamp>),
    Delete(Timestamp),
    Rehash,
}

type History = Vec<(&'static str, Step)>;

const NAMES: [&str; 2] = ["o", "p"];

fn apply(disk: &Disk, name: &str, step: Step) {
    let object = disk.object(name);
    match step {
        Step::Put(at) => {
            let body = body(at);
            let mut metadata = metadata(0, &body);
            metadata.insert("X-Timestamp", at.internal());
            metadata.insert("Content-Type", content_type("put", at));
            object.put_small(&body, metadata).unwrap();
        }
        Step::Post(at, ctype) => {
            let mut metadata = Metadata::new();
            metadata.insert("X-Timestamp", at.internal());
            metadata.insert("X-Object-Meta-Post", at.internal());
            if let Some(ctype) = ctype {
                metadata.insert("Content-Type", content_type("post", ctype));
                metadata.insert("Content-Type-Timestamp", ctype.internal());
            }
            object.write_metadata(metadata).unwrap();
        }
        Step::Delete(at) => object.delete(at).unwrap(),
        Step::Rehash => {
            let cached = hashes(disk);
            assert_eq!(cached, hashes_anew(disk));
        }
    }
}

fn body(at: Timestamp) -> Vec<u8> {
    format!("body {}", at.internal()).into_bytes()
}

fn content_type(of: &str, at: Timestamp) -> String {
    format!("{of}/{}", at.internal())
}

fn hashes(disk: &Disk) -> BTreeSet<(Suffix, Option<String>)> {
    let hashes = disk.hashes();
    hashes.iter().map(|(suffix, hash)| (suffix, hash.map(|hash| format!("{hash:?}")))).collect()
}

fn hashes_anew(disk: &Disk) -> BTreeSet<(Suffix, Option<String>)> {
    for name in ["hashes.pkl", "hashes.invalid"] {
        common::fs::remove_file(&disk.partition().join(name)).unwrap();
    }
    hashes(disk)
}

/// What must be found: the body's time, the last POST's, and the content-type.
#[derive(Debug, PartialEq)]
enum State {
    Object { put: Timestamp, post: Option<Timestamp>, content_type: String },
    Deleted(Timestamp),
    Absent,
}

/// After these steps of one object, in any order.
fn model(steps: impl Iterator<Item = Step> + Clone) -> State {
    let last = |at: fn(Step) -> Option<Timestamp>| steps.clone().filter_map(at).max();
    let put = last(|step| if let Step::Put(at) = step { Some(at) } else { None });
    let delete = last(|step| if let Step::Delete(at) = step { Some(at) } else { None });
    let put = match (put, delete) {
        (None, None) => return State::Absent,
        (Some(put), delete) if Some(put) > delete => put,
        (_, delete) => return State::Deleted(delete.unwrap_or_default()),
    };
    let posts =
        steps.filter_map(|step| if let Step::Post(at, ctype) = step { Some((at, ctype)) } else { None });
    let posts: Vec<_> = posts.filter(|(at, _)| *at > put).collect();
    let ctype = posts.iter().filter_map(|(_, ctype)| *ctype).max().filter(|ctype| *ctype > put);
    let content_type = ctype.map_or(content_type("put", put), |ctype| content_type("post", ctype));
    State::Object { put, post: posts.iter().map(|(at, _)| *at).max(), content_type }
}

fn found(disk: &Disk, name: &str) -> State {
    match disk.object(name).open(None) {
        Ok(opened) => {
            let put = opened.data_timestamp();
            assert_eq!(opened.read_small().unwrap().data, body(put));
            let post =
                opened.metadata().get_str("X-Object-Meta-Post").map(|at| Timestamp::parse(at).unwrap());
            assert_eq!(opened.timestamp(), post.unwrap_or(put));
            let content_type = String::from_utf8(opened.content_type().unwrap().to_vec()).unwrap();
            State::Object { put, post, content_type }
        }
        Err(DiskFileError::Deleted { timestamp, .. }) => State::Deleted(timestamp),
        Err(DiskFileError::NotExist) => State::Absent,
        Err(err) => panic!("{err}"),
    }
}

fn check(disk: &Disk, history: &[(&str, Step)]) -> Result<(), TestCaseError> {
    for name in NAMES {
        let steps = history.iter().filter(|(of, _)| *of == name).map(|(_, step)| *step);
        prop_assert_eq!(found(disk, name), model(steps), "{} after {:?}", name, history);
        // Nothing is left of what was superseded: a data file, a meta file, and one for its content-type.
        prop_assert!(disk.files(name).len() <= 3, "{:?}", disk.files(name));
    }
    Ok(())
}

/// Timestamps meet, but no two POSTs of an object have the same (they may overwrite one another), and one with a
/// content-type has no offset, for which the names of meta files have no room beside it.
fn step() -> impl Strategy<Value = (usize, u8, u64, u64, Option<u64>)> {
    (0..NAMES.len(), 0..7u8, 0..8u64, 0..3u64, proptest::option::of(0..6u64))
}

fn history(steps: Vec<(usize, u8, u64, u64, Option<u64>)>) -> History {
    let mut posts = 0;
    let steps = steps.into_iter().map(|(name, kind, tick, offset, earlier)| {
        let time = at(NOW - 1000 + tick * 10);
        let step = match kind {
            0 | 1 => Step::Put(time.with_offset(offset)),
            2 | 3 => {
                posts += 1;
                match earlier {
                    // In the same tick as PUTs and DELETEs, after some of them.
                    None => Step::Post(time.with_offset(2 + posts), None),
                    Some(earlier) => {
                        let time = time.with_delta(posts as i64);
                        Step::Post(time, Some(time.with_delta(-(earlier as i64) * 1_000_000)))
                    }
                }
            }
            4 | 5 => Step::Delete(time.with_offset(offset)),
            _ => Step::Rehash,
        };
        (NAMES[name], step)
    });
    steps.collect()
}

fn histories() -> impl Strategy<Value = History> {
    proptest::collection::vec(step(), 1..14).prop_map(history)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn after_each_step_the_last_writer_has_won(history in histories()) {
        let disk = disk();
        for (done, &(name, step)) in history.iter().enumerate() {
            apply(&disk, name, step);
            check(&disk, &history[..=done])?;
        }
        apply(&disk, "o", Step::Rehash);
        prop_assert_eq!(disk.lines.at_least(service::logs::Level::Warning), Vec::<String>::new());
    }

    #[test]
    fn histories_converge_in_any_order(
        (first, second) in histories().prop_flat_map(|steps| (Just(steps.clone()), Just(steps).prop_shuffle()))
    ) {
        let (one, other) = (disk(), disk());
        for (disk, history) in [(&one, &first), (&other, &second)] {
            history.iter().for_each(|&(name, step)| apply(disk, name, step));
            check(disk, history)?;
        }
        prop_assert_eq!(hashes(&one), hashes(&other));
    }
}
