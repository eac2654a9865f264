//! The filters of the proxy's pipeline, one file for each of Swift's, and what they share.
//!
//! | file | Swift's name | in a configuration |
//! |---|---|---|
//! | `catch_errors.rs` | `swift.common.middleware.catch_errors` | `egg:swift#catch_errors` |
//! | `gatekeeper.rs` | `gatekeeper` | `egg:swift#gatekeeper` |
//! | `proxy_logging.rs` | `proxy_logging` | `egg:swift#proxy_logging` |
//! | `memcache.rs` | `memcache` | `egg:swift#memcache` |
//! | `tempauth.rs` | `tempauth` | `egg:swift#tempauth` |
//! | `listing_formats/` | `listing_formats` | `egg:swift#listing_formats` |
//! | `container_sync.rs` | `container_sync` | `egg:swift#container_sync` |
//! | `copy.rs` | `copy` | `egg:swift#copy` |
//! | `dlo.rs` | `dlo` | `egg:swift#dlo` |
//! | `symlink.rs` | `symlink` | `egg:swift#symlink` |
//! | `slo/` | `slo` | `egg:swift#slo` |
//!
//! `healthcheck` is in `service`, as storage servers have it too. Shared: `acl.rs` (ACLs), `accept.rs` (content
//! negotiation), `access_log.rs` (what others tell the access log), `bulk.rs` (many deletes in one request),
//! `conditional.rs`, `heartbeat.rs`, `large_object.rs` (dlo's and slo's content), `pyjson.rs`, `query.rs`,
//! `request_headers.rs`.

pub mod accept;
pub mod access_log;
pub mod acl;
pub mod bulk;
pub mod catch_errors;
pub mod conditional;
pub mod container_sync;
pub mod copy;
pub mod dlo;
pub mod gatekeeper;
pub mod heartbeat;
pub mod large_object;
pub mod listing_formats;
pub mod memcache;
pub mod proxy_logging;
pub mod pyjson;
pub mod query;
pub mod request_headers;
pub mod slo;
pub mod symlink;
pub mod tempauth;
#[cfg(test)]
mod testing;

use service::pipeline::Registry;

/// Makes the filters known under the names that configurations use.
pub fn register(registry: &mut Registry) {
    registry
        .filter("egg:swift#catch_errors", catch_errors::factory)
        .filter("egg:swift#container_sync", container_sync::factory)
        .filter("egg:swift#copy", copy::factory)
        .filter("egg:swift#dlo", dlo::factory)
        .filter("egg:swift#gatekeeper", gatekeeper::factory)
        .filter("egg:swift#listing_formats", listing_formats::factory)
        .filter("egg:swift#memcache", memcache::factory)
        .filter("egg:swift#proxy_logging", proxy_logging::factory)
        .filter("egg:swift#slo", slo::factory)
        .filter("egg:swift#symlink", symlink::factory)
        .filter("egg:swift#tempauth", tempauth::factory);
}

/// Whether the first element of a path is a version of the API that we speak.
fn is_api_version(version: &str) -> bool {
    matches!(version, "v1" | "v1.0")
}
