//! Python's repr of values, which lines of Swift's log and answers of its servers have.

use serde_json::Value;

/// Python's repr of a `str`.
pub fn python_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for ch in text.chars() {
        match ch {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ch if ch == quote => out.extend(['\\', ch]),
            ch if (ch as u32) < 0x20 || (0x7f..0xa0).contains(&(ch as u32)) => {
                out.push_str(&format!("\\x{:02x}", ch as u32));
            }
            ch => out.push(ch),
        }
    }
    out.push(quote);
    out
}

/// Python's repr of `bytes`.
pub fn python_repr_bytes(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { b'"' } else { b'\'' };
    let mut out = format!("b{}", quote as char);
    for &byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte if byte == quote => out.extend(['\\', byte as char]),
            0x20..=0x7e => out.push(byte as char),
            byte => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push(quote as char);
    out
}

/// As Python shows what `json.loads` has made.
pub fn python_repr_json(value: &Value) -> String {
    let joined = |items: Vec<String>| items.join(", ");
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => python_repr(text),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(python_repr_json).collect())),
        Value::Object(items) => {
            let item = |(name, value): (&String, &Value)| {
                format!("{}: {}", python_repr(name), python_repr_json(value))
            };
            format!("{{{}}}", joined(items.iter().map(item).collect()))
        }
    }
}

/// As Python shows a list of strings.
pub fn python_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| python_repr(item)).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reprs_are_pythons() {
        assert_eq!(python_repr("it's"), r#""it's""#);
        assert_eq!(python_repr("a'b\"c\\\n\x01é"), "'a\\'b\"c\\\\\\n\\x01é'");
        assert_eq!(python_repr_bytes(b"<html>it's\xff\r\n"), "b\"<html>it's\\xff\\r\\n\"");
        let row = serde_json::json!({"name": "it's", "hash": null, "bytes": [0, 1.5, true, false]});
        assert_eq!(
            python_repr_json(&row),
            r#"{'name': "it's", 'hash': None, 'bytes': [0, 1.5, True, False]}"#
        );
        assert_eq!(python_list(&["a".into(), "b'".into()]), r#"['a', "b'"]"#);
    }
}
