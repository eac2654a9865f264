//! JSON as Python's `json.dumps` writes it by default: `", "` and `": "` between items, everything outside ASCII as `\uXXXX`.
//!
//! Listings, the `metadata` column of the databases and what is cached are compared byte for byte with Swift's, so the format is fixed here
//! instead of being left to a library. Reading is serde_json's.

use serde_json::Value;

/// Append `text` as a JSON string with Python's `ensure_ascii` escapes.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut plain_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if plain(byte) || at < plain_from {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[plain_from..at]);
        // `at` is a character's first byte: bytes inside a character lie below `plain_from` by now.
        let Some(character) = text[at..].chars().next() else { break };
        write_escape(out, character);
        plain_from = at + character.len_utf8();
    }
    out.extend_from_slice(&text.as_bytes()[plain_from..]);
    out.push(b'"');
}

/// Append a string, or `null`.
pub fn write_opt_str(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => write_str(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

pub fn write_int(out: &mut Vec<u8>, value: i64) {
    use std::io::Write;
    write!(out, "{value}").expect("writing to a Vec cannot fail");
}

/// Append any value; the members of an object in their order.
pub fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
        Value::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::String(text) => write_str(out, text),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                separate(out, index);
                write_value(out, item);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            out.push(b'{');
            for (index, (name, member)) in members.iter().enumerate() {
                separate(out, index);
                write_str(out, name);
                out.extend_from_slice(b": ");
                write_value(out, member);
            }
            out.push(b'}');
        }
    }
}

/// What comes before the item at `index`.
pub fn separate(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.extend_from_slice(b", ");
    }
}

fn plain(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'
}

fn write_escape(out: &mut Vec<u8>, character: char) {
    let short = match character {
        '"' => b'"',
        '\\' => b'\\',
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        '\u{8}' => b'b',
        '\u{c}' => b'f',
        _ => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
            }
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dumps(text: &str) -> String {
        let mut out = Vec::new();
        write_str(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    /// python3 -c 'import json; print(json.dumps("a\"b\\\n\r\t\b\f\x00\x7f/é€😀z"))'
    #[test]
    fn escapes_as_python_does() {
        assert_eq!(
            dumps("a\"b\\\n\r\t\u{8}\u{c}\0\u{7f}/é€😀z"),
            r#""a\"b\\\n\r\t\b\f\u0000\u007f/\u00e9\u20ac\ud83d\ude00z""#
        );
    }

    /// python3 -c 'import json; print(json.dumps([1, -2.5, None, True, False, {"a": [], "b": {}, "é": "x"}]))'
    #[test]
    fn values_are_spaced_as_python_does() {
        let mut out = Vec::new();
        write_value(&mut out, &serde_json::json!([1, -2.5, null, true, false, {"a": [], "b": {}, "é": "x"}]));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"[1, -2.5, null, true, false, {"a": [], "b": {}, "\u00e9": "x"}]"#
        );
    }

    proptest! {
        #[test]
        fn every_string_reads_back(text in any::<String>()) {
            let json = dumps(&text);
            prop_assert!(json.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
