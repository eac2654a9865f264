//! Realms of container sync: which clusters trust one another, and where they are.
//!
//! `container-sync-realms.conf` has a section for each realm:
//!
//! ```text
//! [DEFAULT]
//! mtime_check_interval = 300
//! [US]
//! key = secret of the operators          # signs requests
//! key2 = the one before                  # still accepted
//! cluster_dfw1 = http://dfw1.host/v1/
//! ```
//!
//! A container says `//realm/cluster/account/container` or a URL in X-Container-Sync-To; [`validate_sync_to`] makes a
//! [`Target`] of either. Names of realms and clusters are compared in upper case. Who watches the file is
//! `service::container_sync_realms`.

use hmac::{Hmac, Mac};
use sha1::Sha1;

use crate::config::Conf;
use crate::digest::hex;
use crate::repr::python_repr;

/// All realms of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Realms(Vec<Realm>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    pub name: String,
    key: Option<String>,
    pub key2: Option<String>,
    /// Names and endpoints.
    pub clusters: Vec<(String, String)>,
}

impl Realms {
    pub fn from_conf(conf: &Conf) -> Self {
        Realms(
            conf.section_names()
                .filter_map(|name| Some(Realm::new(name, conf.section(name)?.iter())))
                .collect(),
        )
    }

    pub fn iter(&self) -> impl Iterator<Item = &Realm> {
        self.0.iter()
    }

    pub fn get(&self, name: &str) -> Option<&Realm> {
        let name = name.to_uppercase();
        // Of sections that differ only in case the last one counts.
        self.0.iter().rfind(|realm| realm.name == name)
    }
}

impl Realm {
    fn new<'a>(name: &str, options: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut realm = Realm { name: name.to_uppercase(), key: None, key2: None, clusters: Vec::new() };
        for (option, value) in options {
            let option = option.to_lowercase();
            match option.as_str() {
                "key" => realm.key = Some(value.to_owned()),
                "key2" => realm.key2 = Some(value.to_owned()),
                _ => {
                    if let Some(cluster) = option.strip_prefix("cluster_") {
                        realm.clusters.push((cluster.to_uppercase(), value.to_owned()));
                    }
                }
            }
        }
        realm
    }

    /// The key, unless there is none or it is empty.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref().filter(|key| !key.is_empty())
    }

    pub fn endpoint(&self, cluster: &str) -> Option<&str> {
        let cluster = cluster.to_uppercase();
        let endpoint =
            self.clusters.iter().find(|(name, _)| *name == cluster).map(|(_, endpoint)| endpoint.as_str());
        endpoint.filter(|endpoint| !endpoint.is_empty())
    }
}

/// What X-Container-Sync-Auth proves: that the sender of a request knows the keys of the realm and of the container. `path`
/// is quoted.
pub fn get_sig(
    method: &str,
    path: &str,
    x_timestamp: &str,
    nonce: &str,
    realm_key: &str,
    user_key: &str,
) -> String {
    let mut mac =
        Hmac::<Sha1>::new_from_slice(realm_key.as_bytes()).expect("an HMAC takes keys of any length");
    mac.update([method, path, x_timestamp, nonce, user_key].join("\n").as_bytes());
    hex(&mac.finalize().into_bytes())
}

/// Where a container is synced to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// URL of the other container.
    pub url: String,
    /// Name and key of the realm, if the container names one.
    pub realm: Option<(String, String)>,
}

/// What a value of X-Container-Sync-To stands for, `None` if it is empty; or what is wrong with it.
pub fn validate_sync_to(
    value: &str,
    allowed_sync_hosts: &[String],
    realms: &Realms,
) -> Result<Option<Target>, String> {
    let trimmed = value.trim_end_matches('/');
    if trimmed.is_empty() {
        return Ok(None);
    }
    match trimmed.strip_prefix("//") {
        Some(in_realm) => validate_realm(in_realm, value, realms).map(Some),
        None => {
            validate_url(trimmed, allowed_sync_hosts)?;
            Ok(Some(Target { url: trimmed.to_owned(), realm: None }))
        }
    }
}

fn validate_realm(target: &str, value: &str, realms: &Realms) -> Result<Target, String> {
    let [realm_name, cluster, account, container] = target.split('/').collect::<Vec<_>>()[..] else {
        return Err(format!("Invalid X-Container-Sync-To format {}", python_repr(value)));
    };
    let realm = realms.get(realm_name);
    let Some((realm, key)) = realm.and_then(|realm| Some((realm, realm.key()?))) else {
        return Err(format!("No realm key for {}", python_repr(realm_name)));
    };
    let Some(endpoint) = realm.endpoint(cluster) else {
        let (realm, cluster) = (python_repr(realm_name), python_repr(cluster));
        return Err(format!("No cluster endpoint for {realm} {cluster}"));
    };
    let url = format!("{}/{account}/{container}", endpoint.trim_end_matches('/'));
    Ok(Target { url, realm: Some((realm.name.clone(), key.to_owned())) })
}

fn validate_url(target: &str, allowed_sync_hosts: &[String]) -> Result<(), String> {
    let url = Url::parse(target);
    if !matches!(&*url.scheme, "http" | "https") {
        return Err(format!(
            "Invalid scheme {} in X-Container-Sync-To, must be \"//\", \"http\", or \"https\".",
            python_repr(&url.scheme)
        ));
    }
    let (path, rest) = url.path.split_at(url.path.find(['?', '#']).unwrap_or(url.path.len()));
    if path.is_empty() {
        return Err("Path required in X-Container-Sync-To".to_owned());
    }
    let last = path.rsplit('/').next().unwrap_or(path);
    if last.contains(';') || !matches!(rest, "" | "?" | "#") {
        return Err("Params, queries, and fragments not allowed in X-Container-Sync-To".to_owned());
    }
    let host = url.host();
    if host.as_ref().is_none_or(|host| !allowed_sync_hosts.contains(host)) {
        let host = host.map_or("None".to_owned(), |host| python_repr(&host));
        return Err(format!("Invalid host {host} in X-Container-Sync-To"));
    }
    Ok(())
}

/// A URL in parts, which may be empty; as Python's `urlparse` tells them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url<'a> {
    /// In lower case.
    pub scheme: String,
    /// `user@host:port`
    pub authority: &'a str,
    /// With query and fragment.
    pub path: &'a str,
}

impl<'a> Url<'a> {
    pub fn parse(url: &'a str) -> Self {
        let is_scheme = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        };
        let (scheme, rest) = url.split_once(':').filter(|(scheme, _)| is_scheme(scheme)).unwrap_or(("", url));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
            None => ("", rest),
        };
        Url { scheme: scheme.to_lowercase(), authority, path }
    }

    /// Without user and port, in lower case.
    pub fn host(&self) -> Option<String> {
        let host = self.host_and_port();
        let host = match host.strip_prefix('[') {
            Some(address) => address.split(']').next().unwrap_or(address),
            None => host.split(':').next().unwrap_or(host),
        };
        Some(host.to_lowercase()).filter(|host| !host.is_empty())
    }

    /// The port, or that of the scheme; `None` if it is not a number.
    pub fn port(&self) -> Option<u16> {
        let after_address = self.host_and_port().rsplit(']').next().unwrap_or_default();
        match after_address.split_once(':') {
            Some((_, port)) if !port.is_empty() => port.parse().ok(),
            _ if self.scheme == "https" => Some(443),
            _ => Some(80),
        }
    }

    /// What a Host header says.
    pub fn host_and_port(&self) -> &'a str {
        self.authority.rsplit('@').next().unwrap_or(self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "[DEFAULT]\nmtime_check_interval = 5\ncluster_all = http://all/v1\n\
                        [us]\nkey = 9ff3b71c849749dbaec4ccdd3cbab62b\nKEY2 = old\ncluster_dfw1 = http://dfw1/v1/\n\
                        [NOKEY]\ncluster_a = http://a/v1/\n[EMPTY]\nkey =\n";

    fn realms() -> Realms {
        Realms::from_conf(&Conf::parse(CONF, "container-sync-realms.conf").unwrap())
    }

    #[test]
    fn realms_and_clusters_are_found_in_any_case() {
        let realms = realms();
        let names: Vec<_> = realms.iter().map(|realm| realm.name.as_str()).collect();
        assert_eq!(names, ["US", "NOKEY", "EMPTY"]);
        let us = realms.get("Us").unwrap();
        assert_eq!((us.key(), us.key2.as_deref()), (Some("9ff3b71c849749dbaec4ccdd3cbab62b"), Some("old")));
        assert_eq!(
            (us.endpoint("Dfw1"), us.endpoint("ALL")),
            (Some("http://dfw1/v1/"), Some("http://all/v1"))
        );
        assert_eq!(us.endpoint("ord"), None);
        assert!(realms.get("other").is_none());
        assert!(realms.get("nokey").unwrap().key().is_none() && realms.get("empty").unwrap().key().is_none());
    }

    /// ContainerSyncRealms(...).get_sig('GET', '/some/path', '1387212345.67890', 'my_nonce', 'realm_key', 'user_key'), and
    /// with ü in the user's key and an empty realm key.
    #[test]
    fn signatures_are_those_of_swift() {
        let sig = |realm_key, user_key| {
            get_sig("GET", "/some/path", "1387212345.67890", "my_nonce", realm_key, user_key)
        };
        assert_eq!(sig("realm_key", "user_key"), "5a6eb486eb7b44ae1b1f014187a94529c3f9c8f9");
        assert_eq!(sig("", "ü"), "ee025a4cf65bf8b439b54dd34c551b8cf72c51b3");
    }

    fn check(value: &str) -> Result<Option<Target>, String> {
        validate_sync_to(
            value,
            &["127.0.0.1".to_owned(), "example.com".to_owned(), "::1".to_owned()],
            &realms(),
        )
    }

    #[test]
    fn targets_that_are_allowed() {
        for empty in ["", "/", "///"] {
            assert_eq!(check(empty), Ok(None), "{empty}");
        }
        for (value, url) in [
            ("http://127.0.0.1:8080/v1/a/c/", "http://127.0.0.1:8080/v1/a/c"),
            ("HTTPS://u@Example.com/x", "HTTPS://u@Example.com/x"),
            ("http://[::1]:80/v1/a;b/c", "http://[::1]:80/v1/a;b/c"),
        ] {
            assert_eq!(check(value), Ok(Some(Target { url: url.to_owned(), realm: None })), "{value}");
        }
        let realm = Some(("US".to_owned(), "9ff3b71c849749dbaec4ccdd3cbab62b".to_owned()));
        assert_eq!(check("//us/DFW1/a/c"), Ok(Some(Target { url: "http://dfw1/v1/a/c".to_owned(), realm })));
    }

    /// The messages are those of `validate_sync_to` of 2.38.3 for the same values.
    #[test]
    fn targets_that_are_refused() {
        for (refused, message) in [
            ("//us/dfw1/a", "Invalid X-Container-Sync-To format '//us/dfw1/a'"),
            ("//no/dfw1/a/c", "No realm key for 'no'"),
            ("//nokey/a/a/c", "No realm key for 'nokey'"),
            ("//us/ord/a/c", "No cluster endpoint for 'us' 'ord'"),
            (
                "ftp://127.0.0.1/a",
                "Invalid scheme 'ftp' in X-Container-Sync-To, must be \"//\", \"http\", or \"https\".",
            ),
            ("a/c", "Invalid scheme '' in X-Container-Sync-To, must be \"//\", \"http\", or \"https\"."),
            ("http://127.0.0.1", "Path required in X-Container-Sync-To"),
            ("http://127.0.0.1?a", "Path required in X-Container-Sync-To"),
            ("http://127.0.0.1/a?b", "Params, queries, and fragments not allowed in X-Container-Sync-To"),
            ("http://127.0.0.1/a;b", "Params, queries, and fragments not allowed in X-Container-Sync-To"),
            ("http://other/a", "Invalid host 'other' in X-Container-Sync-To"),
            ("http:///a", "Invalid host None in X-Container-Sync-To"),
        ] {
            assert_eq!(check(refused).unwrap_err(), message, "{refused}");
        }
    }

    #[test]
    fn urls_have_ports() {
        for (url, host, port) in [
            ("http://h/x", "h", Some(80)),
            ("https://u:p@H/x", "h", Some(443)),
            ("http://[::1]:8080/", "::1", Some(8080)),
            ("http://h:/x", "h", Some(80)),
            ("http://h:99999/x", "h", None),
        ] {
            let url = Url::parse(url);
            assert_eq!((url.host().as_deref(), url.port()), (Some(host), port), "{url:?}");
        }
    }
}
