//! The body that ends a long running request (SLO PUT, bulk delete, copy with `heartbeat=on`), which tells in
//! text, JSON or XML what its status line could not: `request_helpers.get_heartbeat_response_body`.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::pyjson;

/// Types that a client may ask for with Accept, in Swift's order of preference.
pub const ACCEPTABLE_FORMATS: [&str; 4] = ["text/plain", "application/json", "application/xml", "text/xml"];

/// What failed: a quoted name and a status or reason.
pub type Problem = (String, String);

/// What is reported, in the order in which JSON shows it.
#[derive(Debug, Default)]
pub struct Report {
    entries: Map<String, Value>,
}

impl Report {
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.entries.insert(key.to_owned(), value.into());
    }

    /// The body in `format`; anything but JSON and XML is text. `root` names the XML element around it.
    pub fn body(mut self, format: Option<&str>, problems: &[Problem], root: &str) -> String {
        match format {
            Some("application/json") => {
                let pairs = problems.iter().map(|(name, status)| json!([name, status])).collect();
                self.entries.insert("Errors".to_owned(), Value::Array(pairs));
                pyjson::dumps(&Value::Object(self.entries))
            }
            Some(format) if format.ends_with("/xml") => self.xml(problems, root),
            _ => self.text(problems),
        }
    }

    fn sorted(&self) -> Vec<(&String, String)> {
        let mut sorted: Vec<_> = self.entries.iter().map(|(key, value)| (key, plain(value))).collect();
        sorted.sort();
        sorted
    }

    fn xml(&self, problems: &[Problem], root: &str) -> String {
        let mut out = format!("<{root}>\n");
        for (key, value) in self.sorted() {
            let tag = key.replace(' ', "_").to_lowercase();
            let _ = writeln!(out, "<{tag}>{}</{tag}>", escape(&value));
        }
        out.push_str("<errors>\n");
        for (name, status) in problems {
            let (name, status) = (escape(name), escape(status));
            let _ = writeln!(out, "<object><name>{name}</name><status>{status}</status></object>");
        }
        let _ = writeln!(out, "</errors>\n</{root}>");
        out
    }

    fn text(&self, problems: &[Problem]) -> String {
        let mut out = String::new();
        for (key, value) in self.sorted() {
            let _ = writeln!(out, "{key}: {value}");
        }
        out.push_str("Errors:\n");
        for (name, status) in problems {
            let _ = writeln!(out, "{name}, {status}");
        }
        out
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_written_as_swift_writes_them() {
        type Case = (Option<String>, Vec<(String, Value)>, Vec<Problem>, String);
        let golden: Vec<Case> = serde_json::from_str(include_str!("golden/heartbeat.json")).unwrap();
        for (format, entries, problems, expected) in golden {
            let mut report = Report::default();
            for (key, value) in entries {
                report.set(&key, value);
            }
            assert_eq!(report.body(format.as_deref(), &problems, "delete"), expected);
        }
    }
}
