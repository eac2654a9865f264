//! The body of a PUT of shard ranges, read as Swift's `ShardRange.from_dict` reads each of them.
//!
//! Who sends something else is told the exception that it was in Python, so the checks are those of its constructor in their order.
//! What that does not expect (a number where a text is split, one that no column holds) is a 500, here as there.

use common::config::{parse_float, parse_int};
use common::repr::{python_repr, python_repr_json};
use common::timestamp::Timestamp;
use serde_json::{Map, Value};

use super::shard_range::{BadState, ShardRange};
use crate::json_error;

#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The representation of an exception, for a 400.
    Invalid(String),
    /// An exception that nobody handles.
    Unforeseen,
}

type Read<T> = Result<T, Refused>;

/// What must be there, in the order in which it is looked for.
const REQUIRED: [&str; 11] = [
    "name",
    "timestamp",
    "lower",
    "upper",
    "object_count",
    "bytes_used",
    "meta_timestamp",
    "deleted",
    "state",
    "state_timestamp",
    "epoch",
];

pub fn read(body: &[u8]) -> Read<Vec<ShardRange>> {
    let list = json_error::parse(body).map_err(|error| Refused::Invalid(error.repr()))?;
    match &list {
        Value::Array(items) => items.iter().map(read_one).collect(),
        // Python goes over the letters of a text and the names in an object.
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::Object(members) if members.is_empty() => Ok(Vec::new()),
        Value::String(_) | Value::Object(_) => Err(type_error(STRING_INDICES)),
        other => Err(type_error(&format!("'{}' object is not iterable", type_name(other)))),
    }
}

const STRING_INDICES: &str = "string indices must be integers, not 'str'";

fn read_one(item: &Value) -> Read<ShardRange> {
    let members = match item {
        Value::Object(members) => members,
        Value::String(_) => return Err(type_error(STRING_INDICES)),
        Value::Array(_) => return Err(type_error("list indices must be integers or slices, not str")),
        other => return Err(type_error(&format!("'{}' object is not subscriptable", type_name(other)))),
    };
    if let Some(missing) = REQUIRED.into_iter().find(|name| !members.contains_key(*name)) {
        return Err(Refused::Invalid(format!("KeyError('{missing}')")));
    }
    let (lower, upper) = bounds(&members["lower"], &members["upper"])?;
    let name = name(&members["name"])?;
    let Some(timestamp) = timestamp(&members["timestamp"])? else {
        return Err(type_error("timestamp cannot be None"));
    };
    let object_count = count(members, "object_count")?;
    let bytes_used = count(members, "bytes_used")?;
    let or_created = |at: Option<String>| at.unwrap_or_else(|| timestamp.clone());
    let meta_timestamp = or_created(self::timestamp(&members["meta_timestamp"])?);
    let state = state(&members["state"])?;
    let state_timestamp = or_created(self::timestamp(&members["state_timestamp"])?);
    let epoch = self::timestamp(&members["epoch"])?;
    let tombstones = members.get("tombstones").map_or(Ok(-1), integer)?;
    Ok(ShardRange {
        name,
        lower,
        upper,
        object_count: column(object_count)?,
        bytes_used: column(bytes_used)?,
        meta_timestamp,
        deleted: is_truthy(&members["deleted"]),
        state,
        state_timestamp,
        epoch,
        reported: members.get("reported").is_some_and(is_truthy),
        tombstones: column(tombstones)?,
        timestamp,
    })
}

/// None at all is written as an empty bound.
fn bounds(lower: &Value, upper: &Value) -> Read<(String, String)> {
    let bound = |which: &str, value: &Value| match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        _ => Err(type_error(&format!("{which} must be a string type"))),
    };
    let (lower, upper) = (bound("lower", lower)?, bound("upper", upper)?);
    if !upper.is_empty() && upper < lower {
        return Err(value_error(&format!(
            "upper ({}) must be greater than or equal to lower ({})",
            python_repr(&upper),
            python_repr(&lower)
        )));
    }
    Ok((lower, upper))
}

fn name(value: &Value) -> Read<String> {
    match value {
        Value::String(name) if is_path(name) => Ok(name.clone()),
        other if matches!(other, Value::String(_)) || !is_truthy(other) => Err(value_error(&format!(
            "Name must be of the form '<account>/<container>', got {}",
            python_repr_json(other)
        ))),
        _ => Err(Refused::Unforeseen),
    }
}

fn is_path(name: &str) -> bool {
    let mut parts = name.split('/');
    let mut is_part = || parts.next().is_some_and(|part| !part.is_empty());
    is_part() && is_part() && parts.next().is_none()
}

/// A time without offset, in the form in which it is stored.
fn timestamp(value: &Value) -> Read<Option<String>> {
    let secs = match value {
        Value::Null => return Ok(None),
        Value::Bool(flag) => f64::from(u8::from(*flag)),
        Value::Number(number) => number.as_f64().ok_or(Refused::Unforeseen)?,
        Value::String(text) => text_as_secs(text)?,
        other => text_as_secs(&python_repr_json(other))?,
    };
    if secs.is_infinite() {
        return Err(Refused::Unforeseen);
    }
    // Swift counts in units of 10 µs, of which there may be too many.
    let units = (secs * 1e5).round_ties_even();
    if units < 0.0 {
        return Err(value_error("timestamp cannot be negative"));
    }
    if units >= 1e15 {
        return Err(value_error("timestamp too large"));
    }
    Ok(Some(Timestamp::from_secs_f64(secs).internal()))
}

fn text_as_secs(text: &str) -> Read<f64> {
    if text.contains('_') {
        return Err(value_error("timestamp must not contain \"_\""));
    }
    if is_nan(text) {
        return Err(value_error("cannot convert float NaN to integer"));
    }
    parse_float(text)
        .ok_or_else(|| value_error(&format!("could not convert string to float: {}", python_repr(text))))
}

fn is_nan(text: &str) -> bool {
    text.trim().trim_start_matches(['+', '-']).eq_ignore_ascii_case("nan")
}

fn count(members: &Map<String, Value>, name: &str) -> Read<i128> {
    let count = integer(&members[name])?;
    if count < 0 {
        return Err(value_error(&format!("{name} cannot be < 0")));
    }
    Ok(count)
}

/// `int(value)` of Python.
fn integer(value: &Value) -> Read<i128> {
    match value {
        Value::Bool(flag) => Ok(i128::from(*flag)),
        Value::Number(number) => match (number.as_i128(), number.as_f64()) {
            (Some(integer), _) => Ok(integer),
            (None, Some(float)) => Ok(float as i128),
            _ => Err(Refused::Unforeseen),
        },
        Value::String(text) => parse_int(text).ok_or_else(|| {
            value_error(&format!("invalid literal for int() with base 10: {}", python_repr(text)))
        }),
        other => Err(type_error(&format!(
            "int() argument must be a string, a bytes-like object or a real number, not '{}'",
            type_name(other)
        ))),
    }
}

fn column(number: i128) -> Read<i64> {
    i64::try_from(number).map_err(|_| Refused::Unforeseen)
}

fn state(value: &Value) -> Read<i64> {
    let resolved = match value {
        Value::Null => return Ok(ShardRange::FOUND),
        Value::Bool(flag) => ShardRange::state_of_number(f64::from(u8::from(*flag))),
        Value::Number(number) => ShardRange::state_of_number(number.as_f64().unwrap_or(f64::INFINITY)),
        Value::String(text) => ShardRange::resolve_state(text),
        _ => Err(BadState::Unknown),
    };
    resolved.map_err(|bad| match bad {
        // A text is looked for among the names last, which are small letters.
        BadState::Unknown => value_error(&format!("Invalid state {}", python_repr_json(value))),
        BadState::Infinite => Refused::Unforeseen,
    })
}

fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

fn type_error(message: &str) -> Refused {
    Refused::Invalid(format!("TypeError({})", python_repr(message)))
}

fn value_error(message: &str) -> Refused {
    Refused::Invalid(format!("ValueError({})", python_repr(message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn whole() -> Value {
        json!({"name": "a/c", "timestamp": "1700000000.00000", "lower": "", "upper": "m", "object_count": 1,
               "bytes_used": 2, "meta_timestamp": null, "deleted": 0, "state": "active", "state_timestamp": null,
               "epoch": null})
    }

    fn read_with(name: &str, value: Value) -> Read<ShardRange> {
        let mut one = whole();
        one[name] = value;
        read(json!([one]).to_string().as_bytes()).map(|mut all| all.remove(0))
    }

    #[test]
    fn times_that_are_not_given_are_that_of_the_creation() {
        let range = read_with("name", json!("a/c")).unwrap();
        assert_eq!([&range.meta_timestamp, &range.state_timestamp], ["1700000000.00000"; 2]);
        assert_eq!((range.state, range.tombstones, range.reported, range.epoch), (40, -1, false, None));
    }

    #[test]
    fn what_python_makes_of_a_value_is_stored() {
        assert_eq!(read_with("object_count", json!(" 1_0 ")).unwrap().object_count, 10);
        assert_eq!(read_with("object_count", json!(2.9)).unwrap().object_count, 2);
        assert_eq!(read_with("timestamp", json!(1.5)).unwrap().meta_timestamp, "0000000001.50000");
        assert!(read_with("deleted", json!("no")).unwrap().deleted);
        assert_eq!(read_with("lower", Value::Null).unwrap().lower, "");
        assert_eq!(read_with("state", json!("60")).unwrap().state, 60);
        assert_eq!(read_with("tombstones", json!("7")).unwrap().tombstones, 7);
    }

    #[test]
    fn what_nobody_foresaw_is_not_the_senders_fault() {
        for (name, value) in [
            ("name", json!(5)),
            ("name", json!(["a/c"])),
            ("timestamp", json!("inf")),
            ("state", json!("inf")),
            ("bytes_used", json!(u64::MAX)),
        ] {
            assert_eq!(read_with(name, value), Err(Refused::Unforeseen), "{name}");
        }
    }
}
