//! A JSON listing of an account or container as plain text or XML, in the very bytes of Python's ElementTree.

use serde_json::{Map, Value};

/// The listing lacks a member that its new form needs: it was not made by Swift's servers.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAListing;

pub type Record = Map<String, Value>;

/// One name a line.
pub fn to_text(listing: &[Record]) -> Result<String, NotAListing> {
    let mut out = String::new();
    for record in listing {
        let name = record.get("name").or_else(|| record.get("subdir"));
        out.push_str(name.and_then(Value::as_str).ok_or(NotAListing)?);
        out.push('\n');
    }
    Ok(out)
}

/// The same, of a listing as it came: only the names are looked at.
pub fn body_to_text(body: &[u8]) -> Result<String, NotAListing> {
    #[derive(serde::Deserialize)]
    struct Names {
        name: Option<String>,
        subdir: Option<String>,
    }
    let listing: Vec<Names> = serde_json::from_slice(body).map_err(|_| NotAListing)?;
    let mut out = String::new();
    for names in listing {
        out.push_str(&names.name.or(names.subdir).ok_or(NotAListing)?);
        out.push('\n');
    }
    Ok(out)
}

pub fn account_to_xml(listing: &[Record], account: &str) -> Result<String, NotAListing> {
    let mut out = String::from(DECLARATION);
    out.push_str("<account name=\"");
    push_attribute(&mut out, account);
    out.push_str("\">\n");
    for record in listing {
        match record.get("subdir") {
            Some(subdir) => {
                out.push_str("<subdir name=\"");
                push_attribute(&mut out, subdir.as_str().ok_or(NotAListing)?);
                out.push_str("\" />\n");
            }
            None => {
                out.push_str("<container>");
                for field in ["name", "count", "bytes", "last_modified"] {
                    push_element(&mut out, field, record.get(field).ok_or(NotAListing)?);
                }
                if let Some(policy) = record.get("storage_policy") {
                    push_element(&mut out, "storage_policy", policy);
                }
                out.push_str("</container>\n");
            }
        }
    }
    out.push_str("</account>");
    Ok(out)
}

pub fn container_to_xml(listing: &[Record], container: &str) -> Result<String, NotAListing> {
    let mut out = String::from(DECLARATION);
    out.push_str("<container name=\"");
    push_attribute(&mut out, container);
    if listing.is_empty() {
        out.push_str("\" />");
        return Ok(out);
    }
    out.push_str("\">");
    for record in listing {
        match record.get("subdir") {
            Some(subdir) => {
                out.push_str("<subdir name=\"");
                push_attribute(&mut out, subdir.as_str().ok_or(NotAListing)?);
                out.push_str("\">");
                push_element(&mut out, "name", subdir);
                out.push_str("</subdir>");
            }
            None => {
                out.push_str("<object>");
                for field in ["name", "hash", "bytes", "content_type", "last_modified"] {
                    push_element(&mut out, field, record.get(field).ok_or(NotAListing)?);
                }
                out.push_str("</object>");
            }
        }
    }
    out.push_str("</container>");
    Ok(out)
}

const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

fn push_element(out: &mut String, tag: &str, value: &Value) {
    let number;
    let text = match value {
        Value::String(text) => text.as_str(),
        Value::Null => "None",
        Value::Bool(true) => "True",
        Value::Bool(false) => "False",
        other => {
            number = super::super::pyjson::dumps(other);
            &number
        }
    };
    out.push('<');
    out.push_str(tag);
    if text.is_empty() {
        out.push_str(" />");
        return;
    }
    out.push('>');
    push_escaped(out, text, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        _ => None,
    });
    out.push_str("</");
    out.push_str(tag);
    out.push('>');
}

fn push_attribute(out: &mut String, text: &str) {
    push_escaped(out, text, |c| match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '"' => Some("&quot;"),
        '\r' => Some("&#13;"),
        '\n' => Some("&#10;"),
        '\t' => Some("&#09;"),
        _ => None,
    });
}

fn push_escaped(out: &mut String, text: &str, entity: impl Fn(char) -> Option<&'static str>) {
    for c in text.chars() {
        match entity(c) {
            Some(entity) => out.push_str(entity),
            None => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        kind: String,
        title: String,
        listing: Vec<Record>,
        xml: String,
        plain: String,
        json: String,
    }

    /// `golden/listings.json`: what Swift makes of the listings in it (see golden/README.md).
    #[test]
    fn listings_have_the_bytes_of_swifts() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../golden/listings.json")).unwrap();
        for case in golden {
            let xml = match case.kind.as_str() {
                "account" => account_to_xml(&case.listing, &case.title),
                _ => container_to_xml(&case.listing, &case.title),
            };
            assert_eq!(xml, Ok(case.xml));
            assert_eq!(to_text(&case.listing), Ok(case.plain.clone()));
            assert_eq!(body_to_text(case.json.as_bytes()), Ok(case.plain));
            let listing = case.listing.into_iter().map(Value::Object).collect();
            assert_eq!(super::super::super::pyjson::dumps(&Value::Array(listing)), case.json);
        }
    }

    #[test]
    fn records_of_another_shape_are_refused() {
        let listing: Vec<Record> = serde_json::from_str("[{\"name\": \"x\"}]").unwrap();
        assert_eq!(account_to_xml(&listing, "a"), Err(NotAListing));
        assert_eq!(container_to_xml(&listing, "c"), Err(NotAListing));
        let listing: Vec<Record> = serde_json::from_str("[{}]").unwrap();
        assert_eq!(to_text(&listing), Err(NotAListing));
        assert_eq!(body_to_text(b"[{}]"), Err(NotAListing));
        assert_eq!(body_to_text(b"{}"), Err(NotAListing));
    }
}
