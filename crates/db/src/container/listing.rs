//! Writing an object listing as text, JSON or XML.

use service::http::Request;

use super::broker::ObjectEntry;
use crate::content_type::extract_swift_bytes;
use crate::listing_formats::{Format, XML_DECLARATION, write_attribute, write_element};
use common::json;

/// A listing on its way into a body.
pub struct ObjectListing {
    format: Format,
    out: Vec<u8>,
    empty: bool,
}

impl ObjectListing {
    pub fn new(format: Format, container: &str) -> Self {
        let mut out = Vec::new();
        match format {
            Format::Text => {}
            Format::Json => out.push(b'['),
            Format::Xml => {
                out.extend_from_slice(XML_DECLARATION.as_bytes());
                out.extend_from_slice(b"<container");
                write_attribute(&mut out, "name", container);
            }
        }
        Self { format, out, empty: true }
    }

    pub fn push(&mut self, entry: &ObjectEntry<'_>) {
        let first = std::mem::replace(&mut self.empty, false);
        match self.format {
            Format::Text => {
                let (ObjectEntry::Subdir(name) | ObjectEntry::Object { name, .. }) = entry;
                self.out.extend_from_slice(name.as_bytes());
                self.out.push(b'\n');
            }
            Format::Json => {
                self.out.extend_from_slice(if first { b"" } else { b", " });
                self.push_json(entry);
            }
            Format::Xml => {
                self.out.extend_from_slice(if first { b">" } else { b"" });
                self.push_xml(entry);
            }
        }
    }

    pub fn finish(mut self) -> Vec<u8> {
        match (self.format, self.empty) {
            (Format::Text, _) => {}
            (Format::Json, _) => self.out.push(b']'),
            (Format::Xml, true) => self.out.extend_from_slice(b" />"),
            (Format::Xml, false) => self.out.extend_from_slice(b"</container>"),
        }
        self.out
    }

    fn push_json(&mut self, entry: &ObjectEntry<'_>) {
        let out = &mut self.out;
        let ObjectEntry::Object { name, last_modified, size, content_type, etag } = entry else {
            let ObjectEntry::Subdir(name) = entry else { return };
            out.extend_from_slice(b"{\"subdir\": ");
            json::write_str(out, name);
            out.push(b'}');
            return;
        };
        let (content_type, size) = split_size(content_type, *size);
        out.extend_from_slice(b"{\"bytes\": ");
        match size {
            Some(size) => json::write_int(out, size),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b", \"hash\": ");
        json::write_opt_str(out, *etag);
        out.extend_from_slice(b", \"name\": ");
        json::write_str(out, name);
        out.extend_from_slice(b", \"content_type\": ");
        json::write_str(out, &content_type);
        out.extend_from_slice(b", \"last_modified\": ");
        json::write_str(out, &last_modified.isoformat());
        out.push(b'}');
    }

    fn push_xml(&mut self, entry: &ObjectEntry<'_>) {
        let out = &mut self.out;
        let ObjectEntry::Object { name, last_modified, size, content_type, etag } = entry else {
            let ObjectEntry::Subdir(name) = entry else { return };
            out.extend_from_slice(b"<subdir");
            write_attribute(out, "name", name);
            out.push(b'>');
            write_element(out, "name", name);
            out.extend_from_slice(b"</subdir>");
            return;
        };
        let (content_type, size) = split_size(content_type, *size);
        out.extend_from_slice(b"<object>");
        write_element(out, "name", name);
        write_element(out, "hash", etag.unwrap_or("None"));
        write_element(out, "bytes", &size.map_or("None".to_owned(), |size| size.to_string()));
        write_element(out, "content_type", &content_type);
        write_element(out, "last_modified", &last_modified.isoformat());
        out.extend_from_slice(b"</object>");
    }
}

/// The size to show is the one in the content type, if it has one.
fn split_size(content_type: &str, size: Option<i64>) -> (String, Option<i64>) {
    let (content_type, swift_bytes) = extract_swift_bytes(content_type);
    let shown = swift_bytes.and_then(|bytes| common::config::parse_int(&bytes)).or(size);
    (content_type, shown)
}

/// The reader of a request's listing parameters that no object listing has.
pub fn validates(req: &Request) -> crate::server::Answer<()> {
    for name in ["states", "includes"] {
        crate::server::param(req, name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::timestamp::Timestamp;

    fn listing(format: Format, entries: &[ObjectEntry<'_>]) -> String {
        let mut listing = ObjectListing::new(format, "c&\"é");
        entries.iter().for_each(|entry| listing.push(entry));
        String::from_utf8(listing.finish()).unwrap()
    }

    /// From `ContainerController.update_object_record`, `json.dumps` and `container_to_xml` of 2.38.3.
    #[test]
    fn listings_are_swifts_bytes() {
        let entries = [
            ObjectEntry::Object {
                name: "é<1>",
                last_modified: Timestamp::parse("1401379842.93615").unwrap(),
                size: Some(3),
                content_type: "text/plain; charset=utf-8;swift_bytes=77",
                etag: Some("etag"),
            },
            ObjectEntry::Subdir("p&/"),
        ];
        assert_eq!(listing(Format::Text, &entries), "é<1>\np&/\n");
        assert_eq!(
            listing(Format::Json, &entries),
            r#"[{"bytes": 77, "hash": "etag", "name": "\u00e9<1>", "content_type": "text/plain;charset=utf-8", "last_modified": "2014-05-29T16:10:42.936150"}, {"subdir": "p&/"}]"#
        );
        assert_eq!(
            listing(Format::Xml, &entries),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<container name=\"c&amp;&quot;é\"><object><name>é&lt;1&gt;</name>\
             <hash>etag</hash><bytes>77</bytes><content_type>text/plain;charset=utf-8</content_type>\
             <last_modified>2014-05-29T16:10:42.936150</last_modified></object>\
             <subdir name=\"p&amp;/\"><name>p&amp;/</name></subdir></container>"
        );
    }

    #[test]
    fn an_empty_listing_has_a_form_of_its_own() {
        assert_eq!(listing(Format::Text, &[]), "");
        assert_eq!(listing(Format::Json, &[]), "[]");
        assert!(listing(Format::Xml, &[]).ends_with("?>\n<container name=\"c&amp;&quot;é\" />"));
    }
}
