//! The options of `[app:proxy-server]`, each with its default, and those of `[proxy-server:policy:N]`.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use common::config::{Conf, ConfigError, NodeCount, Section};
use common::policy::{Policies, PolicyIndex};
use ring::Node;

use crate::affinity::{AffinityError, ReadAffinity, WriteAffinity};
use crate::info::{DEFAULT_RECHECK_ACCOUNT_EXISTENCE, DEFAULT_RECHECK_CONTAINER_EXISTENCE};

const DEFAULT_SWIFT_OWNER_HEADERS: &str = "x-container-read, x-container-write, x-container-sync-key, \
    x-container-sync-to, x-account-meta-temp-url-key, x-account-meta-temp-url-key-2, \
    x-container-meta-temp-url-key, x-container-meta-temp-url-key-2, x-account-access-control";
const DEFAULT_DISALLOWED_SECTIONS: &str = "swift.auto_create_account_prefix, swift.valid_api_versions";

/// Options of Swift's proxy that are taken and change nothing: pieces of bodies are as large as they come.
const WITHOUT_EFFECT: [&str; 2] = ["object_chunk_size", "client_chunk_size"];

pub struct Options {
    pub node_timeout: Duration,
    pub recoverable_node_timeout: Duration,
    pub conn_timeout: Duration,
    pub client_timeout: Duration,
    pub post_quorum_timeout: Duration,
    pub trans_id_suffix: String,
    pub error_suppression_interval: f64,
    pub error_suppression_limit: u64,
    pub recheck_account_existence: u64,
    pub recheck_container_existence: u64,
    /// How often, of 1, cached info is passed over so that it is fresh.
    pub account_existence_skip_cache: f64,
    pub container_existence_skip_cache: f64,
    /// Seconds for which the namespaces of sharded containers are cached; 0 if they are not.
    pub recheck_updating_shard_ranges: u64,
    pub recheck_listing_shard_ranges: u64,
    pub container_updating_shard_ranges_skip_cache: f64,
    pub container_listing_shard_ranges_skip_cache: f64,
    pub namespace_avg_backend_fetch_time: Duration,
    pub namespace_cache_tokens_per_session: u64,
    pub allow_account_management: bool,
    pub account_autocreate: bool,
    pub max_containers_per_account: u64,
    pub max_containers_whitelist: Vec<String>,
    pub deny_host_headers: Vec<String>,
    pub log_handoffs: bool,
    pub cors_allow_origin: Vec<String>,
    pub cors_expose_headers: Vec<String>,
    pub strict_cors_mode: bool,
    pub allow_open_expired: bool,
    pub timing_expiry: f64,
    pub request_node_count: NodeCount,
    pub swift_owner_headers: Vec<String>,
    pub expose_info: bool,
    pub disallowed_sections: Vec<String>,
    pub admin_key: Option<String>,
    default_policy: PolicyOptions,
    policies: HashMap<PolicyIndex, PolicyOptions>,
}

/// What `[proxy-server:policy:N]` may set otherwise for a policy.
#[derive(Clone)]
pub struct PolicyOptions {
    pub sorting_method: SortingMethod,
    pub read_affinity: ReadAffinity,
    pub write_affinity: WriteAffinity,
    pub write_affinity_node_count: NodeCount,
    /// `None`: as many as there are primaries elsewhere.
    pub write_affinity_handoff_delete_count: Option<usize>,
    pub rebalance_missing_suppression_count: usize,
    pub concurrent_gets: bool,
    pub concurrency_timeout: Duration,
    /// With `concurrent_gets`, requests for fragments beyond those that are needed.
    pub concurrent_ec_extra_requests: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortingMethod {
    Shuffle,
    Timing,
    Affinity,
}

impl Options {
    /// `section` is the app's; the policies' sections are in the same file.
    pub fn load(section: &Section, policies: &Policies) -> Result<Self, ConfigError> {
        let node_timeout = section.secs("node_timeout", 10.0)?;
        let conn_timeout = section.secs("conn_timeout", 0.5)?;
        let default_policy = PolicyOptions::load(section, None, conn_timeout)?;
        for known in WITHOUT_EFFECT {
            section.float(known, 0.0)?;
        }
        Ok(Self {
            node_timeout,
            recoverable_node_timeout: section.secs("recoverable_node_timeout", node_timeout.as_secs_f64())?,
            conn_timeout,
            client_timeout: section.secs("client_timeout", 60.0)?,
            post_quorum_timeout: section.secs("post_quorum_timeout", 0.5)?,
            trans_id_suffix: section.str("trans_id_suffix", ""),
            error_suppression_interval: section.float("error_suppression_interval", 60.0)?,
            error_suppression_limit: section.int("error_suppression_limit", 10)?,
            recheck_account_existence: section
                .int("recheck_account_existence", DEFAULT_RECHECK_ACCOUNT_EXISTENCE)?,
            recheck_container_existence: section
                .int("recheck_container_existence", DEFAULT_RECHECK_CONTAINER_EXISTENCE)?,
            account_existence_skip_cache: section.percent("account_existence_skip_cache_pct", 0.0)?,
            container_existence_skip_cache: section.percent("container_existence_skip_cache_pct", 0.0)?,
            recheck_updating_shard_ranges: section.int("recheck_updating_shard_ranges", 3600)?,
            recheck_listing_shard_ranges: section.int("recheck_listing_shard_ranges", 600)?,
            container_updating_shard_ranges_skip_cache: section
                .percent("container_updating_shard_ranges_skip_cache_pct", 0.0)?,
            container_listing_shard_ranges_skip_cache: section
                .percent("container_listing_shard_ranges_skip_cache_pct", 0.0)?,
            namespace_avg_backend_fetch_time: Duration::from_secs_f64(
                section.positive_float("namespace_avg_backend_fetch_time", 0.3)?,
            ),
            namespace_cache_tokens_per_session: section.int("namespace_cache_tokens_per_session", 3)?,
            allow_account_management: section.bool("allow_account_management", false)?,
            account_autocreate: section.bool("account_autocreate", false)?,
            max_containers_per_account: section.int("max_containers_per_account", 0)?,
            max_containers_whitelist: section.list("max_containers_whitelist", ""),
            deny_host_headers: section.list("deny_host_headers", ""),
            log_handoffs: section.bool("log_handoffs", true)?,
            cors_allow_origin: section.list("cors_allow_origin", ""),
            cors_expose_headers: section.list("cors_expose_headers", ""),
            strict_cors_mode: section.bool("strict_cors_mode", true)?,
            allow_open_expired: section.bool("allow_open_expired", false)?,
            timing_expiry: section.float("timing_expiry", 300.0)?,
            request_node_count: node_count(section, "request_node_count")?,
            swift_owner_headers: section.list("swift_owner_headers", DEFAULT_SWIFT_OWNER_HEADERS),
            expose_info: section.bool("expose_info", true)?,
            disallowed_sections: section.list("disallowed_sections", DEFAULT_DISALLOWED_SECTIONS),
            admin_key: section.get("admin_key").map(str::to_owned),
            policies: policy_overrides(section, policies, conn_timeout)?,
            default_policy,
        })
    }

    pub fn policy(&self, index: Option<PolicyIndex>) -> &PolicyOptions {
        index.and_then(|index| self.policies.get(&index)).unwrap_or(&self.default_policy)
    }

    pub fn sorts_by_timing(&self) -> bool {
        let all = self.policies.values().chain([&self.default_policy]);
        all.into_iter().any(|options| options.sorting_method == SortingMethod::Timing)
    }

    /// Options that have no effect as they are set.
    pub fn warnings(&self) -> Vec<String> {
        let policies = self.policies.iter().map(|(index, options)| (format!("policy {}", index.0), options));
        let all = policies.chain([("(default)".to_owned(), &self.default_policy)]);
        all.filter(|(_, options)| {
            !options.read_affinity.is_empty() && options.sorting_method != SortingMethod::Affinity
        })
        .map(|(label, _)| {
            format!("sorting_method is not 'affinity'; {label} read_affinity setting will have no effect.")
        })
        .collect()
    }
}

fn policy_overrides(
    section: &Section,
    policies: &Policies,
    conn_timeout: Duration,
) -> Result<HashMap<PolicyIndex, PolicyOptions>, ConfigError> {
    let mut overrides = HashMap::new();
    let path = Path::new(section.file());
    if !path.exists() {
        return Ok(overrides); // a section made in memory
    }
    let conf = Conf::load(path)?;
    let app = section.name().rsplit(':').next().unwrap_or_default();
    let prefix = format!("{app}:policy:");
    for name in conf.section_names() {
        let Some(index) = name.strip_prefix(&prefix) else { continue };
        let unknown = || ConfigError::in_section(section.file(), name, "expected the index of a policy");
        let index = PolicyIndex(index.trim().parse().map_err(|_| unknown())?);
        policies.get(index).ok_or_else(unknown)?;
        let own = conf.section_or_default(name);
        overrides.insert(index, PolicyOptions::load(section, Some(&own), conn_timeout)?);
    }
    Ok(overrides)
}

fn node_count(section: &Section, option: &str) -> Result<NodeCount, ConfigError> {
    NodeCount::parse(&section.str(option, "2 * replicas"))
        .ok_or_else(|| section.error(option, "expected a number, or a number * replicas"))
}

impl PolicyOptions {
    /// What `own` does not set is taken from the app's `section`.
    fn load(section: &Section, own: Option<&Section>, conn_timeout: Duration) -> Result<Self, ConfigError> {
        let of = |option: &str| own.filter(|own| own.get(option).is_some()).unwrap_or(section);
        let sorting = of("sorting_method");
        let sorting_method = match sorting.str("sorting_method", "shuffle").to_lowercase().as_str() {
            "shuffle" => SortingMethod::Shuffle,
            "timing" => SortingMethod::Timing,
            "affinity" => SortingMethod::Affinity,
            _ => return Err(sorting.error("sorting_method", "expected shuffle, timing or affinity")),
        };
        let affinity_error =
            |option: &str, error: AffinityError| of(option).error(option, format!("expected {error}"));
        let affinity = |option: &str| of(option).str(option, "");
        Ok(Self {
            sorting_method,
            read_affinity: ReadAffinity::parse(&affinity("read_affinity"))
                .map_err(|error| affinity_error("read_affinity", error))?,
            write_affinity: WriteAffinity::parse(&affinity("write_affinity"))
                .map_err(|error| affinity_error("write_affinity", error))?,
            write_affinity_node_count: node_count(
                of("write_affinity_node_count"),
                "write_affinity_node_count",
            )?,
            write_affinity_handoff_delete_count: of("write_affinity_handoff_delete_count")
                .auto_int("write_affinity_handoff_delete_count")?,
            rebalance_missing_suppression_count: of("rebalance_missing_suppression_count")
                .int("rebalance_missing_suppression_count", 1)?,
            concurrent_gets: of("concurrent_gets").bool("concurrent_gets", false)?,
            concurrency_timeout: of("concurrency_timeout")
                .secs("concurrency_timeout", conn_timeout.as_secs_f64())?,
            concurrent_ec_extra_requests: of("concurrent_ec_extra_requests")
                .int("concurrent_ec_extra_requests", 0)?,
        })
    }

    /// How many local handoffs a DELETE goes to besides the primaries.
    pub fn local_handoff_count(&self, primaries: &[Node]) -> usize {
        self.write_affinity_handoff_delete_count
            .unwrap_or_else(|| primaries.iter().filter(|node| !self.write_affinity.is_local(node)).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_counts_are_numbers_or_multiples_of_replicas() {
        assert_eq!(NodeCount::parse("2 * replicas").map(|count| count.of(3)), Some(6));
        assert_eq!(NodeCount::parse("5").map(|count| count.of(3)), Some(5));
        assert_eq!(NodeCount::parse("2 * Replicas"), Some(NodeCount::PerReplica(2)));
        for bad in ["", "x", "2*replicas", "2 + replicas", "replicas", "2 * 3"] {
            assert_eq!(NodeCount::parse(bad), None, "{bad}");
        }
    }
}
