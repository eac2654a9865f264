//! Writing a container listing as text, JSON or XML.

use common::timestamp::Timestamp;
use common::{Policies, PolicyIndex};

use super::broker::ContainerEntry;
use crate::listing_formats::{Format, XML_DECLARATION, write_attribute, write_element};
use common::json;

/// A listing on its way into a body.
pub struct ContainerListing<'a> {
    format: Format,
    policies: &'a Policies,
    out: Vec<u8>,
    empty: bool,
}

impl<'a> ContainerListing<'a> {
    pub fn new(format: Format, account: &str, policies: &'a Policies) -> Self {
        let mut out = Vec::new();
        match format {
            Format::Text => {}
            Format::Json => out.push(b'['),
            Format::Xml => {
                out.extend_from_slice(XML_DECLARATION.as_bytes());
                out.extend_from_slice(b"<account");
                write_attribute(&mut out, "name", account);
                out.extend_from_slice(b">\n");
            }
        }
        Self { format, policies, out, empty: true }
    }

    pub fn push(&mut self, entry: &ContainerEntry<'_>) {
        let first = std::mem::replace(&mut self.empty, false);
        match self.format {
            Format::Text => {
                let (ContainerEntry::Subdir(name) | ContainerEntry::Container { name, .. }) = entry;
                self.out.extend_from_slice(name.as_bytes());
                self.out.push(b'\n');
            }
            Format::Json => {
                self.out.extend_from_slice(if first { b"" } else { b", " });
                self.push_json(entry);
            }
            Format::Xml => self.push_xml(entry),
        }
    }

    /// Only a text listing can be without a byte.
    pub fn finish(mut self) -> Vec<u8> {
        match self.format {
            Format::Text => {}
            Format::Json => self.out.push(b']'),
            Format::Xml => self.out.extend_from_slice(b"</account>"),
        }
        self.out
    }

    fn push_json(&mut self, entry: &ContainerEntry<'_>) {
        let out = &mut self.out;
        let ContainerEntry::Container { name, object_count, bytes_used, put_timestamp, storage_policy_index } =
            entry
        else {
            let ContainerEntry::Subdir(name) = entry else { return };
            out.extend_from_slice(b"{\"subdir\": ");
            json::write_str(out, name);
            out.push(b'}');
            return;
        };
        out.extend_from_slice(b"{\"name\": ");
        json::write_str(out, name);
        for (key, count) in [(&b", \"count\": "[..], object_count), (b", \"bytes\": ", bytes_used)] {
            out.extend_from_slice(key);
            match count {
                Some(count) => json::write_int(out, *count),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(b", \"last_modified\": ");
        json::write_str(out, &last_modified(put_timestamp));
        if let Some(policy) = policy_name(self.policies, *storage_policy_index) {
            out.extend_from_slice(b", \"storage_policy\": ");
            json::write_str(out, policy);
        }
        out.push(b'}');
    }

    fn push_xml(&mut self, entry: &ContainerEntry<'_>) {
        let out = &mut self.out;
        let ContainerEntry::Container { name, object_count, bytes_used, put_timestamp, storage_policy_index } =
            entry
        else {
            let ContainerEntry::Subdir(name) = entry else { return };
            out.extend_from_slice(b"<subdir");
            write_attribute(out, "name", name);
            out.extend_from_slice(b" />\n");
            return;
        };
        let count = |count: &Option<i64>| count.map_or("None".to_owned(), |count| count.to_string());
        out.extend_from_slice(b"<container>");
        write_element(out, "name", name);
        write_element(out, "count", &count(object_count));
        write_element(out, "bytes", &count(bytes_used));
        write_element(out, "last_modified", &last_modified(put_timestamp));
        if let Some(policy) = policy_name(self.policies, *storage_policy_index) {
            write_element(out, "storage_policy", policy);
        }
        out.extend_from_slice(b"</container>\n");
    }
}

fn last_modified(put_timestamp: &str) -> String {
    Timestamp::parse(put_timestamp).unwrap_or_default().isoformat()
}

/// A policy that swift.conf does not have is left out of listings.
fn policy_name(policies: &Policies, index: i64) -> Option<&str> {
    let index = u32::try_from(index).ok()?;
    policies.get(PolicyIndex(index)).map(|policy| policy.name.as_str())
}
