//! Access control lists: the two grammars that auth filters read, `swift.common.middleware.acl`.
//!
//! Version 1 is the comma separated value of `X-Container-Read` and `X-Container-Write`: groups, referrer
//! designations (`.r:[-]host`) and `.rlistings`. Version 2 is the JSON object of `X-Account-Access-Control`
//! with the keys `admin`, `read-write` and `read-only`.
//!
//! Swift: `str.strip()` of a header there also takes the bytes 0x85 and 0xa0 off its ends, which cuts UTF-8
//! names such as `bob,là` in two. Only ASCII white space is stripped here.

use common::quote;
use serde_json::{Map, Value};

use super::pyjson;

/// Brings the value of an ACL header into its stored form, or says (in Swift's words) what is wrong with it.
pub fn clean_acl(name: &str, value: &str) -> Result<String, String> {
    let for_write = name.to_ascii_lowercase().contains("write");
    let mut cleaned: Vec<String> = Vec::new();
    for item in value.split(',').map(str::trim_ascii).filter(|item| !item.is_empty()) {
        cleaned.push(clean_item(item, for_write)?);
    }
    Ok(cleaned.join(","))
}

fn clean_item(item: &str, for_write: bool) -> Result<String, String> {
    let Some((designator, host)) = item.split_once(':') else {
        return Ok(item.to_owned());
    };
    let (designator, mut host) = (designator.trim_ascii(), host.trim_ascii());
    if !designator.starts_with('.') {
        return Ok(item.to_owned());
    }
    if !matches!(designator, ".r" | ".ref" | ".referer" | ".referrer") {
        let (designator, item) = (wsgi_repr(designator), wsgi_repr(item));
        return Err(format!("Unknown designator {designator} in ACL: {item}"));
    }
    if for_write {
        return Err(format!("Referrers not allowed in write ACL: {}", wsgi_repr(item)));
    }
    let mut sign = "";
    if let Some(rest) = host.strip_prefix('-') {
        sign = "-";
        host = rest.trim_ascii();
    }
    if host != "*"
        && let Some(domain) = host.strip_prefix('*')
    {
        host = domain.trim_ascii();
    }
    if host.is_empty() || host == "." {
        let item = wsgi_repr(item);
        return Err(format!("No host/domain value after referrer designation in ACL: {item}"));
    }
    Ok(format!(".r:{sign}{host}"))
}

/// A version 1 ACL, ready to be asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AclV1 {
    /// Without the leading `.r:`, in the order of the header: later ones win.
    pub referrers: Vec<String>,
    /// Percent-decoded.
    pub groups: Vec<String>,
}

impl AclV1 {
    pub fn parse(acl: Option<&str>) -> Self {
        let mut parsed = Self::default();
        for item in acl.filter(|acl| !acl.is_empty()).into_iter().flat_map(|acl| acl.split(',')) {
            match item.strip_prefix(".r:") {
                Some(referrer) => parsed.referrers.push(referrer.to_owned()),
                None if item.contains('%') => {
                    let group = quote::unquote(item.as_bytes());
                    parsed.groups.push(String::from_utf8_lossy(&group).into_owned());
                }
                None => parsed.groups.push(item.to_owned()),
            }
        }
        parsed
    }

    pub fn has_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Whether a request that came from the page `referrer` is let in by the referrer designations.
    pub fn referrer_allowed(&self, referrer: Option<&str>) -> bool {
        if self.referrers.is_empty() {
            return false;
        }
        let host = referrer.and_then(url_hostname).unwrap_or_else(|| "unknown".to_owned());
        let mut allowed = false;
        for designation in &self.referrers {
            match designation.strip_prefix('-') {
                Some(denied) if host_matches(denied, &host) => allowed = false,
                Some(_) => (),
                None if designation == "*" || host_matches(designation, &host) => allowed = true,
                None => (),
            }
        }
        allowed
    }
}

fn host_matches(designation: &str, host: &str) -> bool {
    designation == host || (designation.starts_with('.') && host.ends_with(designation))
}

/// The host of a URL in lower case, as Python's `urlparse(url).hostname` finds it.
fn url_hostname(url: &str) -> Option<String> {
    let url = url.trim_start_matches(|c: char| c <= ' ');
    let after_scheme = match url.split_once(':') {
        Some((scheme, rest)) if is_url_scheme(scheme) => rest,
        _ => url,
    };
    let netloc = after_scheme.strip_prefix("//")?;
    let netloc = netloc.split(['/', '?', '#']).next().unwrap_or("");
    let host_port = netloc.rsplit_once('@').map_or(netloc, |(_, host_port)| host_port);
    let host = match host_port.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or(""),
        None => host_port.split(':').next().unwrap_or(""),
    };
    (!host.is_empty()).then(|| host.to_lowercase())
}

fn is_url_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// Python's `repr()` of a WSGI string: every byte of the header is one Latin-1 character there.
fn wsgi_repr(value: &str) -> String {
    let latin1: String = value.bytes().map(char::from).collect();
    pyjson::repr(&latin1)
}

/// Parses a version 2 ACL: `None` if absent, not JSON, or not an object; empty if the value is empty.
pub fn parse_v2(data: Option<&str>) -> Option<Map<String, Value>> {
    match data? {
        "" => Some(Map::new()),
        data => match serde_json::from_str(data) {
            Ok(Value::Object(acl)) => Some(acl),
            _ => None,
        },
    }
}

/// Keys of an account ACL that the auth filters know.
pub const ACCOUNT_ACL_KEYS: [&str; 3] = ["admin", "read-write", "read-only"];

/// Who may do what in an account, from its `X-Account-Sysmeta-Core-Access-Control`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AccountAcl {
    pub admin: Vec<String>,
    pub read_write: Vec<String>,
    pub read_only: Vec<String>,
}

impl AccountAcl {
    /// `None` when nobody is granted anything.
    pub fn from_sysmeta(data: Option<&str>) -> Option<Self> {
        let acl = parse_v2(data)?;
        let list = |key: &str| -> Vec<String> {
            let members = acl.get(key).and_then(Value::as_array);
            members.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let parsed =
            Self { admin: list("admin"), read_write: list("read-write"), read_only: list("read-only") };
        (parsed != Self::default()).then_some(parsed)
    }
}

/// What is wrong with an account ACL that a client sends; `None` if it is good.
pub fn account_acl_error(data: &str) -> Option<String> {
    let Some(acl) = parse_v2(Some(data)) else {
        return Some(format!("Syntax error in input ({})", pyjson::repr(data)));
    };
    if let Some(key) = acl.keys().find(|key| !ACCOUNT_ACL_KEYS.contains(&key.as_str())) {
        return Some(format!("Key {} not recognized", pyjson::quoted(key)));
    }
    for key in ACCOUNT_ACL_KEYS {
        let Some(value) = acl.get(key) else { continue };
        let Some(grantees) = value.as_array() else {
            return Some(format!("Value for key {} must be a list", pyjson::quoted(key)));
        };
        if !grantees.iter().all(Value::is_string) {
            return Some(format!("Elements of {} list must be strings", pyjson::quoted(key)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/acl.json`: what Swift's own functions answer (see golden/README.md).
    #[derive(serde::Deserialize)]
    struct Golden {
        clean: Vec<(String, String, Option<String>, Option<String>)>,
        referrer: Vec<(String, String, bool)>,
        account: Vec<(String, Option<String>)>,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("golden/acl.json")).unwrap()
    }

    #[test]
    fn container_acls_are_cleaned_as_swift_cleans_them() {
        for (name, value, cleaned, error) in golden().clean {
            let expected = match (cleaned, error) {
                (Some(cleaned), _) => Ok(cleaned),
                (None, error) => Err(error.unwrap()),
            };
            assert_eq!(clean_acl(&name, &value), expected, "{name}: {value:?}");
        }
    }

    #[test]
    fn referrers_are_allowed_as_swift_allows_them() {
        for (referrer, acl, allowed) in golden().referrer {
            let parsed = AclV1::parse(Some(&acl));
            assert_eq!(parsed.referrer_allowed(Some(&referrer)), allowed, "{referrer:?} in {acl:?}");
        }
        assert!(!AclV1::parse(None).referrer_allowed(None));
        assert!(AclV1::parse(Some(".r:*")).referrer_allowed(None));
    }

    #[test]
    fn account_acls_are_refused_in_swifts_words() {
        for (data, error) in golden().account {
            assert_eq!(account_acl_error(&data), error, "{data:?}");
        }
    }

    #[test]
    fn groups_are_percent_decoded() {
        let acl = AclV1::parse(Some("a%20b,.rlistings,c"));
        assert_eq!(acl.groups, ["a b", ".rlistings", "c"]);
        assert!(acl.has_group(".rlistings"));
    }

    #[test]
    fn account_acl_without_members_grants_nothing() {
        assert_eq!(AccountAcl::from_sysmeta(None), None);
        assert_eq!(AccountAcl::from_sysmeta(Some("{\"admin\":[]}")), None);
        let acl = AccountAcl::from_sysmeta(Some("{\"read-only\":[\"bob\"]}")).unwrap();
        assert_eq!(acl.read_only, ["bob"]);
    }
}
