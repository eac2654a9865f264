//! In which format a listing is written, and how XML is.
//!
//! The format comes from the query (`format=json`) or else from Accept, whose grammar and preferences are those of swob (a quality of
//! zero excludes nothing there). XML is what Python's ElementTree writes: the bytes are compared.

use common::config::parse_float;
use service::http::{Request, Response};

use crate::content_type::{quoted_len, token_len};
use crate::server::{Answer, html_answer, param};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    Xml,
}

/// A format and the content type that the client knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListingType {
    pub format: Format,
    pub content_type: &'static str,
}

/// What can be had, in the order of our own preference.
const OFFERED: [ListingType; 4] = [
    ListingType { format: Format::Text, content_type: "text/plain" },
    ListingType { format: Format::Json, content_type: "application/json" },
    ListingType { format: Format::Xml, content_type: "application/xml" },
    ListingType { format: Format::Xml, content_type: "text/xml" },
];

impl ListingType {
    /// What a request asks for: 400 if it cannot be read, 406 if it cannot be had.
    pub fn of(req: &Request) -> Answer<Self> {
        if let Some(format) = param(req, "format")?.filter(|format| !format.is_empty()) {
            return Ok(match format.to_lowercase().as_str() {
                "json" => OFFERED[1],
                "xml" => OFFERED[2],
                _ => OFFERED[0],
            });
        }
        let accept: Vec<&[u8]> = req.headers.get_all("Accept").collect();
        let accept = String::from_utf8_lossy(&accept.join(&b","[..])).into_owned();
        match best_match(&accept) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(Response::error(406)),
            Err(Malformed) => Err(html_answer(400, "Invalid Accept header")),
        }
    }

    /// The header of the listing.
    pub fn header(self) -> String {
        format!("{}; charset=utf-8", self.content_type)
    }
}

/// The response of a listing, without what is known of the account or container. Only text can be empty, which is a 204.
pub fn listing_response(listing_type: ListingType, body: Vec<u8>) -> Response {
    let mut response = Response::new(if body.is_empty() { 204 } else { 200 });
    response.headers.insert("Content-Type", listing_type.header());
    if !body.is_empty() {
        response.headers.insert("Content-Length", body.len());
    }
    response.with_body(body)
}

#[derive(Debug, PartialEq, Eq)]
struct Malformed;

struct Accepted<'a> {
    kind: &'a str,
    subkind: &'a str,
    quality: f64,
}

impl Accepted<'_> {
    fn is_exact(&self) -> bool {
        self.kind != "*" && self.subkind != "*"
    }

    fn matches(&self, offered: &str) -> bool {
        let (kind, subkind) = offered.split_once('/').unwrap_or((offered, ""));
        (self.kind == "*" || self.kind == kind) && (self.subkind == "*" || self.subkind == subkind)
    }
}

/// The offer that an Accept header likes best.
fn best_match(accept: &str) -> Result<Option<ListingType>, Malformed> {
    if accept.is_empty() {
        return Ok(Some(OFFERED[0]));
    }
    let mut accepted = accept.split(',').map(parse_media_range).collect::<Result<Vec<_>, _>>()?;
    // A stable sort: among equals the first named wins.
    accepted.sort_by(|a, b| {
        let by_quality = b.quality.partial_cmp(&a.quality).unwrap_or(std::cmp::Ordering::Equal);
        by_quality.then(b.is_exact().cmp(&a.is_exact()))
    });
    Ok(accepted
        .iter()
        .find_map(|range| OFFERED.into_iter().find(|offered| range.matches(offered.content_type))))
}

fn parse_media_range(text: &str) -> Result<Accepted<'_>, Malformed> {
    let (kind, rest) = take_token(text.trim_start())?;
    let (subkind, mut rest) = take_token(rest.strip_prefix('/').ok_or(Malformed)?)?;
    let mut quality = None;
    while !rest.trim_start().is_empty() {
        let parameter = rest.trim_start().strip_prefix(';').ok_or(Malformed)?;
        let (name, after) = take_token(parameter.trim_start())?;
        let value_text = after.trim_start().strip_prefix('=').ok_or(Malformed)?.trim_start();
        let value_len = token_len(value_text).max(quoted_len(value_text));
        if value_len == 0 {
            return Err(Malformed);
        }
        let (value, after) = value_text.split_at(value_len);
        // Swift: swob splits parameters at every ";" and "=" again, those inside a quoted string too.
        if value.contains([';', '=']) {
            return Err(Malformed);
        }
        if name == "q" {
            if quality.is_some() {
                return Err(Malformed);
            }
            quality = Some(parse_float(value).ok_or(Malformed)?);
        }
        rest = after;
    }
    Ok(Accepted { kind, subkind, quality: quality.unwrap_or(1.0) })
}

fn take_token(text: &str) -> Result<(&str, &str), Malformed> {
    match token_len(text) {
        0 => Err(Malformed),
        len => Ok(text.split_at(len)),
    }
}

pub const XML_DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// `<name>text</name>`, or `<name />` for an empty text.
pub fn write_element(out: &mut Vec<u8>, name: &str, text: &str) {
    out.push(b'<');
    out.extend_from_slice(name.as_bytes());
    if text.is_empty() {
        out.extend_from_slice(b" />");
        return;
    }
    out.push(b'>');
    escape(out, text, |byte| match byte {
        b'&' => "&amp;",
        b'<' => "&lt;",
        b'>' => "&gt;",
        _ => "",
    });
    out.extend_from_slice(b"</");
    out.extend_from_slice(name.as_bytes());
    out.push(b'>');
}

/// ` name="value"`.
pub fn write_attribute(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"=\"");
    escape(out, value, |byte| match byte {
        b'&' => "&amp;",
        b'<' => "&lt;",
        b'>' => "&gt;",
        b'"' => "&quot;",
        b'\r' => "&#13;",
        b'\n' => "&#10;",
        b'\t' => "&#09;",
        _ => "",
    });
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, text: &str, replacement: impl Fn(u8) -> &'static str) {
    for byte in text.bytes() {
        match replacement(byte) {
            "" => out.push(byte),
            escaped => out.extend_from_slice(escaped.as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `Accept(header).best_match([...])` of swift.common.swob 2.38.3; "-" is None, "!" a ValueError.
    #[test]
    fn negotiates_as_swob_does() {
        for (accept, expected) in [
            ("", "text/plain"),
            ("*/*", "text/plain"),
            ("application/*", "application/json"),
            ("text/xml", "text/xml"),
            ("application/xml;q=0.5, application/json;q=0.4", "application/xml"),
            ("text/*;q=0.3, application/json;q=0.3", "application/json"),
            ("application/json;q=0", "application/json"),
            ("image/png", "-"),
            ("application/json; a=\"b\" ; q=1", "application/json"),
            ("json", "!"),
            ("application/json;q=x", "!"),
            ("application/json;q=1;q=1", "!"),
            ("application/json,", "!"),
            ("text/plain;a=\"b;c\"", "!"),
            (" text/xml ", "text/xml"),
        ] {
            let found = match best_match(accept) {
                Ok(Some(found)) => found.content_type,
                Ok(None) => "-",
                Err(Malformed) => "!",
            };
            assert_eq!(found, expected, "{accept}");
        }
    }

    /// From xml.etree.ElementTree of Python 3.11.
    #[test]
    fn writes_xml_as_elementtree_does() {
        let mut out = Vec::new();
        write_attribute(&mut out, "name", "a&b<c>\"d'\r\n\té");
        write_element(&mut out, "x", "a&b<c>\"d'\r\n\té");
        write_element(&mut out, "y", "");
        let expected =
            " name=\"a&amp;b&lt;c&gt;&quot;d'&#13;&#10;&#09;é\"<x>a&amp;b&lt;c&gt;\"d'\r\n\té</x><y />";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
