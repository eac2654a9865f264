//! Limits on what clients may store, and the checks that answer 400 and its kin.
//!
//! The checks are pure: they take headers as pairs of bytes and return the status and text that Swift answers
//! with (as `text/plain`).

use crate::config::{parse_int, split_list};
use crate::headers::{RESERVED, ServerType, is_true_value, title_case_bytes};
use crate::timestamp::{Timestamp, normalize_delete_at};

/// A status and the text of its body.
pub type Refusal = (u16, String);

/// `[swift-constraints]` of swift.conf; published in `/info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraints {
    pub max_file_size: u64,
    pub max_meta_name_length: usize,
    pub max_meta_value_length: usize,
    pub max_meta_count: usize,
    pub max_meta_overall_size: usize,
    pub max_header_size: usize,
    pub max_request_line: usize,
    pub max_object_name_length: usize,
    pub container_listing_limit: usize,
    pub account_listing_limit: usize,
    pub max_account_name_length: usize,
    pub max_container_name_length: usize,
    pub valid_api_versions: Vec<String>,
    pub extra_header_count: usize,
    pub auto_create_account_prefix: String,
}

impl Default for Constraints {
    fn default() -> Self {
        Self {
            max_file_size: 5_368_709_122,
            max_meta_name_length: 128,
            max_meta_value_length: 256,
            max_meta_count: 90,
            max_meta_overall_size: 4096,
            max_header_size: 8192,
            max_request_line: 8192,
            max_object_name_length: 1024,
            container_listing_limit: 10_000,
            account_listing_limit: 10_000,
            max_account_name_length: 256,
            max_container_name_length: 256,
            valid_api_versions: vec!["v1".to_owned(), "v1.0".to_owned()],
            extra_header_count: 0,
            auto_create_account_prefix: ".".to_owned(),
        }
    }
}

impl Constraints {
    /// The options of `[swift-constraints]`, in the order of `/info`.
    pub const NAMES: &[&str] = &[
        "max_file_size",
        "max_meta_name_length",
        "max_meta_value_length",
        "max_meta_count",
        "max_meta_overall_size",
        "max_header_size",
        "max_request_line",
        "max_object_name_length",
        "container_listing_limit",
        "account_listing_limit",
        "max_account_name_length",
        "max_container_name_length",
        "valid_api_versions",
        "extra_header_count",
        "auto_create_account_prefix",
    ];

    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        let number = || parse_int::<i64>(value).ok_or("expected an integer");
        let size = || number().map(|n| n.max(0) as usize);
        match name {
            "max_file_size" => self.max_file_size = number()?.max(0) as u64,
            "max_meta_name_length" => self.max_meta_name_length = size()?,
            "max_meta_value_length" => self.max_meta_value_length = size()?,
            "max_meta_count" => self.max_meta_count = size()?,
            "max_meta_overall_size" => self.max_meta_overall_size = size()?,
            "max_header_size" => self.max_header_size = size()?,
            "max_request_line" => self.max_request_line = size()?,
            "max_object_name_length" => self.max_object_name_length = size()?,
            "container_listing_limit" => self.container_listing_limit = size()?,
            "account_listing_limit" => self.account_listing_limit = size()?,
            "max_account_name_length" => self.max_account_name_length = size()?,
            "max_container_name_length" => self.max_container_name_length = size()?,
            "valid_api_versions" => self.valid_api_versions = split_list(value),
            "extra_header_count" => self.extra_header_count = size()?,
            "auto_create_account_prefix" => self.auto_create_account_prefix = value.to_owned(),
            _ => return Err("unknown option"),
        }
        Ok(())
    }

    /// Headers that a request may have: the metadata and 36 others.
    pub fn max_header_count(&self) -> usize {
        self.max_meta_count + 36 + self.extra_header_count
    }

    /// Checks the user metadata among the headers of a request.
    pub fn check_metadata<'a>(
        &self,
        headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        target: ServerType,
    ) -> Result<(), Refusal> {
        let prefix = target.user_meta_prefix();
        let refuse = |text: String| Err((400, text));
        let (mut count, mut size) = (0, 0);
        for (name, value) in headers {
            if value.len() > self.max_header_size {
                let name = &name[..name.len().min(self.max_meta_name_length)];
                return refuse(format!("Header value too long: {}", titled(name)));
            }
            if name.len() < prefix.len() || !name[..prefix.len()].eq_ignore_ascii_case(prefix.as_bytes()) {
                continue;
            }
            let full_name = name;
            let name = &name[prefix.len()..];
            if name.is_empty() {
                return refuse("Metadata name cannot be empty".to_owned());
            }
            let valid = check_utf8(name, false) && (value.is_empty() || check_utf8(value, false));
            if !valid && target != ServerType::Object {
                return refuse("Metadata must be valid UTF-8".to_owned());
            }
            count += 1;
            size += name.len() + value.len();
            if name.len() > self.max_meta_name_length {
                return refuse(format!(
                    "Metadata name too long: {prefix}{}",
                    &titled(full_name)[prefix.len()..]
                ));
            }
            if value.len() > self.max_meta_value_length {
                let limit = self.max_meta_value_length;
                return refuse(format!(
                    "Metadata value longer than {limit}: {prefix}{}",
                    &titled(full_name)[prefix.len()..]
                ));
            }
            if count > self.max_meta_count {
                return refuse(format!("Too many metadata items; max {}", self.max_meta_count));
            }
            if size > self.max_meta_overall_size {
                return refuse(format!("Total metadata too large; max {}", self.max_meta_overall_size));
            }
        }
        Ok(())
    }

    /// Checks a PUT of an object. Returns the X-Delete-At that X-Delete-After amounts to, if that header is there:
    /// the caller then replaces one by the other.
    pub fn check_object_creation<'a, H>(
        &self,
        headers: H,
        object_name: &str,
    ) -> Result<Option<String>, Refusal>
    where
        H: IntoIterator<Item = (&'a [u8], &'a [u8])> + Clone,
    {
        let get = |name: &str| find(headers.clone(), name);
        let length = message_length(get("transfer-encoding"), get("content-length"))?;
        if length.is_some_and(|length| length > self.max_file_size as i64) {
            return Err((413, "Your request is too large.".to_owned()));
        }
        if get("content-length").is_none() && get("transfer-encoding") != Some(b"chunked") {
            return Err((411, "Missing Content-Length header.".to_owned()));
        }
        let name_length = object_name.chars().count();
        if name_length > self.max_object_name_length {
            let limit = self.max_object_name_length;
            return Err((400, format!("Object name length of {name_length} longer than {limit}")));
        }
        // Swift has an answer of its own for a missing header, but its HTTP server sets an empty one.
        let content_type = get("content-type").unwrap_or_default();
        let delete_at = check_delete_headers(headers.clone())?;
        if !check_utf8(content_type, false) {
            return Err((400, "Invalid Content-Type".to_owned()));
        }
        self.check_metadata(headers, ServerType::Object)?;
        Ok(delete_at)
    }
}

/// Checks X-Delete-After and X-Delete-At against the X-Timestamp of a request. Returns the X-Delete-At that
/// replaces X-Delete-After.
pub fn check_delete_headers<'a, H>(headers: H) -> Result<Option<String>, Refusal>
where
    H: IntoIterator<Item = (&'a [u8], &'a [u8])> + Clone,
{
    let get = |name: &str| find(headers.clone(), name);
    let now = request_timestamp(get("x-timestamp"))?.as_secs_f64();
    // Any number of digits, as Python's integers: what is too large is clamped.
    let number = |value: &[u8]| std::str::from_utf8(value).ok().and_then(parse_int::<f64>);
    let mut computed = None;
    if let Some(after) = get("x-delete-after") {
        let after = number(after).ok_or((400, "Non-integer X-Delete-After".to_owned()))?;
        let at = normalize_delete_at(now + after);
        if at.parse::<f64>().is_ok_and(|at| at <= now) {
            return Err((400, "X-Delete-After in past".to_owned()));
        }
        computed = Some(at);
    }
    if let Some(at) = computed.as_deref().map(str::as_bytes).or(get("x-delete-at")) {
        let at = number(at).ok_or((400, "Non-integer X-Delete-At".to_owned()))?;
        let at = at.clamp(0.0, 9_999_999_999.0);
        let replication = get("x-backend-replication").and_then(|v| std::str::from_utf8(v).ok());
        if at <= now && !replication.is_some_and(is_true_value) {
            return Err((400, "X-Delete-At in past".to_owned()));
        }
    }
    Ok(computed)
}

/// X-Timestamp of a request that must have one.
pub fn request_timestamp(value: Option<&[u8]>) -> Result<Timestamp, Refusal> {
    let value = value.ok_or((400, "Missing X-Timestamp header".to_owned()))?;
    std::str::from_utf8(value)
        .ok()
        .and_then(|v| Timestamp::parse(v).ok())
        .ok_or((400, "Invalid X-Timestamp header".to_owned()))
}

/// The length of a body as its headers tell it; `None` for chunked bodies and when they don't.
pub fn message_length(
    transfer_encoding: Option<&[u8]>,
    content_length: Option<&[u8]>,
) -> Result<Option<i64>, Refusal> {
    match transfer_encoding {
        None | Some(b"") => {}
        Some(encodings) if encodings.contains(&b',') => {
            return Err((
                501,
                "Unsupported Transfer-Coding header value specified in Transfer-Encoding header".to_owned(),
            ));
        }
        Some(encoding) if encoding.eq_ignore_ascii_case(b"chunked") => return Ok(None),
        Some(_) => return Err((400, "Invalid Transfer-Encoding header value".to_owned())),
    }
    content_length
        .map(|length| {
            std::str::from_utf8(length)
                .ok()
                .and_then(parse_int)
                .ok_or((400, "Invalid Content-Length header value".to_owned()))
        })
        .transpose()
}

/// True for a name that isn't empty, is UTF-8 and, unless it is `internal`, has no reserved character.
pub fn check_utf8(name: &[u8], internal: bool) -> bool {
    !name.is_empty() && std::str::from_utf8(name).is_ok() && (internal || !name.contains(&(RESERVED as u8)))
}

fn find<'a>(headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>, name: &str) -> Option<&'a [u8]> {
    headers.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
}

/// A name as Swift's headers have it.
fn titled(name: &[u8]) -> String {
    String::from_utf8_lossy(&title_case_bytes(name)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<'a>(pairs: &'a [(&'a str, &'a str)]) -> Vec<(&'a [u8], &'a [u8])> {
        pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect()
    }

    fn creation(pairs: &[(&str, &str)]) -> Result<Option<String>, Refusal> {
        let mut all = vec![("X-Timestamp", "1000.5"), ("Content-Type", "a/b"), ("Content-Length", "1")];
        all.retain(|(n, _)| !pairs.iter().any(|(m, _)| m.eq_ignore_ascii_case(n)));
        all.extend(pairs.iter().filter(|(_, v)| *v != "(none)"));
        Constraints::default().check_object_creation(headers(&all), "o")
    }

    fn refused(pairs: &[(&str, &str)]) -> String {
        let (status, text) = creation(pairs).unwrap_err();
        format!("{status} {text}")
    }

    #[test]
    fn object_creation_is_refused_as_swift_refuses_it() {
        assert_eq!(creation(&[]), Ok(None));
        assert_eq!(creation(&[("Content-Length", "(none)"), ("Transfer-Encoding", "chunked")]), Ok(None));
        let table: &[(&[(&str, &str)], &str)] = &[
            (&[("Content-Length", "(none)")], "411 Missing Content-Length header."),
            (&[("Content-Length", "x")], "400 Invalid Content-Length header value"),
            (&[("Content-Length", "5368709123")], "413 Your request is too large."),
            (&[("Transfer-Encoding", "gzip")], "400 Invalid Transfer-Encoding header value"),
            (
                &[("Transfer-Encoding", "gzip,chunked")],
                "501 Unsupported Transfer-Coding header value specified in Transfer-Encoding header",
            ),
            (&[("Content-Type", "(none)")], "400 Invalid Content-Type"),
            (&[("X-Timestamp", "(none)")], "400 Missing X-Timestamp header"),
            (&[("X-Timestamp", "soon")], "400 Invalid X-Timestamp header"),
            (&[("X-Delete-After", "x")], "400 Non-integer X-Delete-After"),
            (&[("X-Delete-After", "-1")], "400 X-Delete-After in past"),
            (&[("X-Delete-At", "1.5")], "400 Non-integer X-Delete-At"),
            (&[("X-Delete-At", "1000")], "400 X-Delete-At in past"),
            (&[("X-Object-Meta-", "v")], "400 Metadata name cannot be empty"),
        ];
        for (pairs, expected) in table {
            assert_eq!(refused(pairs), *expected, "{pairs:?}");
        }
        assert_eq!(creation(&[("X-Delete-After", "60")]), Ok(Some("0000001060".to_owned())));
        assert_eq!(creation(&[("X-Delete-At", "1"), ("X-Backend-Replication", "True")]), Ok(None));
    }

    #[test]
    fn long_names_and_metadata_are_refused() {
        let constraints = Constraints::default();
        let check = |pairs: &[(&str, &str)], target| {
            constraints.check_metadata(headers(pairs), target).map_err(|(_, text)| text)
        };
        use ServerType::*;
        let long = "v".repeat(257);
        assert_eq!(
            check(&[("X-Object-Meta-A", &long)], Object),
            Err("Metadata value longer than 256: x-object-meta-A".to_owned())
        );
        assert_eq!(check(&[("X-Container-Meta-A", &long)], Object), Ok(()));
        assert_eq!(check(&[("X", &"v".repeat(8193))], Account), Err("Header value too long: X".to_owned()));
        let many: Vec<String> = (0..91).map(|i| format!("X-Account-Meta-{i}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|n| (n.as_str(), "")).collect();
        assert_eq!(check(&many[..90], Account), Ok(()));
        assert_eq!(check(&many, Account), Err("Too many metadata items; max 90".to_owned()));
        let heavy: Vec<String> = (0..17).map(|i| format!("X-Object-Meta-{i}")).collect();
        let value = "v".repeat(250);
        let heavy: Vec<(&str, &str)> = heavy.iter().map(|n| (n.as_str(), value.as_str())).collect();
        assert_eq!(check(&heavy, Object), Err("Total metadata too large; max 4096".to_owned()));
        let bad: [(&[u8], &[u8]); 1] = [(b"X-Container-Meta-A", b"\xff")];
        assert!(constraints.check_metadata(bad, Container).is_err());
        assert_eq!(
            constraints.check_object_creation(
                headers(&[("X-Timestamp", "1"), ("Content-Type", "a"), ("Content-Length", "1")]),
                &"\u{e9}".repeat(1025)
            ),
            Err((400, "Object name length of 1025 longer than 1024".to_owned()))
        );
    }

    #[test]
    fn reserved_characters_are_internal() {
        assert!(check_utf8("\u{e9}".as_bytes(), false));
        assert!(!check_utf8(b"", false));
        assert!(!check_utf8(b"\xff", false));
        assert!(!check_utf8(b"a\0b", false));
        assert!(check_utf8(b"a\0b", true));
        assert!(!check_utf8(b"\xed\xa0\x80", false));
    }
}
