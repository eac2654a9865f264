//! Every header name that servers exchange, once, and the rules by which names are metadata.
//!
//! Names are written as Swift's `HeaderKeyDict` titles them, which is how they appear on the wire and in
//! pickles; look-ups ignore case. `ETag` alone keeps its own spelling: a client must see `Etag` where Swift
//! titles it, and that is done where the header is written.

pub const X_TIMESTAMP: &str = "X-Timestamp";
pub const X_PUT_TIMESTAMP: &str = "X-Put-Timestamp";
pub const X_DELETE_TIMESTAMP: &str = "X-Delete-Timestamp";
pub const X_DELETE_AT: &str = "X-Delete-At";
pub const X_DELETE_AFTER: &str = "X-Delete-After";
pub const X_TRANS_ID: &str = "X-Trans-Id";
pub const X_TRANS_ID_EXTRA: &str = "X-Trans-Id-Extra";
pub const X_OPENSTACK_REQUEST_ID: &str = "X-Openstack-Request-Id";
pub const X_STATIC_LARGE_OBJECT: &str = "X-Static-Large-Object";
pub const X_OBJECT_MANIFEST: &str = "X-Object-Manifest";
pub const X_SYMLINK_TARGET: &str = "X-Symlink-Target";
pub const CONTENT_TYPE: &str = "Content-Type";
pub const CONTENT_LENGTH: &str = "Content-Length";
pub const CONTENT_ENCODING: &str = "Content-Encoding";
pub const CONTENT_DISPOSITION: &str = "Content-Disposition";
pub const CONTENT_LANGUAGE: &str = "Content-Language";
pub const ETAG: &str = "ETag";
pub const LAST_MODIFIED: &str = "Last-Modified";
pub const X_ROBOTS_TAG: &str = "X-Robots-Tag";
pub const CACHE_CONTROL: &str = "Cache-Control";
pub const EXPIRES: &str = "Expires";
pub const ACCEPT_RANGES: &str = "Accept-Ranges";
pub const CONTENT_RANGE: &str = "Content-Range";
pub const USER_AGENT: &str = "User-Agent";
pub const REFERER: &str = "Referer";
pub const HOST: &str = "Host";
pub const DATE: &str = "Date";
pub const TRANSFER_ENCODING: &str = "Transfer-Encoding";
pub const EXPECT: &str = "Expect";
pub const RANGE: &str = "Range";
pub const IF_MATCH: &str = "If-Match";
pub const IF_NONE_MATCH: &str = "If-None-Match";
pub const IF_MODIFIED_SINCE: &str = "If-Modified-Since";
pub const IF_UNMODIFIED_SINCE: &str = "If-Unmodified-Since";
pub const CONNECTION: &str = "Connection";
pub const X_FORCE_AUTH: &str = "X-Force-Auth";
pub const X_AUTH_TOKEN: &str = "X-Auth-Token";
pub const X_STORAGE_TOKEN: &str = "X-Storage-Token";
pub const X_COPIED_FROM: &str = "X-Copied-From";
pub const X_COPIED_FROM_ACCOUNT: &str = "X-Copied-From-Account";
pub const X_NEWEST: &str = "X-Newest";
pub const X_IF_DELETE_AT: &str = "X-If-Delete-At";
pub const X_ACCOUNT_DEVICE: &str = "X-Account-Device";
pub const X_ACCOUNT_HOST: &str = "X-Account-Host";
pub const X_ACCOUNT_PARTITION: &str = "X-Account-Partition";
pub const X_ACCOUNT_OVERRIDE_DELETED: &str = "X-Account-Override-Deleted";
pub const X_ACCOUNT_BYTES_USED: &str = "X-Account-Bytes-Used";
pub const X_ACCOUNT_CONTAINER_COUNT: &str = "X-Account-Container-Count";
pub const X_ACCOUNT_OBJECT_COUNT: &str = "X-Account-Object-Count";
pub const X_ACCOUNT_STATUS: &str = "X-Account-Status";
pub const X_CONTAINER_DEVICE: &str = "X-Container-Device";
pub const X_CONTAINER_HOST: &str = "X-Container-Host";
pub const X_CONTAINER_PARTITION: &str = "X-Container-Partition";
pub const X_CONTAINER_BYTES_USED: &str = "X-Container-Bytes-Used";
pub const X_CONTAINER_OBJECT_COUNT: &str = "X-Container-Object-Count";
pub const X_CONTAINER_TIMESTAMP: &str = "X-Container-Timestamp";
pub const X_CONTAINER_ROOT_DB_STATE: &str = "X-Container-Root-Db-State";
pub const X_CONTAINER_READ: &str = "X-Container-Read";
pub const X_CONTAINER_WRITE: &str = "X-Container-Write";
pub const X_CONTAINER_SYNC_TO: &str = "X-Container-Sync-To";
pub const X_CONTAINER_SYNC_KEY: &str = "X-Container-Sync-Key";
pub const X_CONTAINER_SHARDING: &str = "X-Container-Sharding";
pub const X_OBJECT_COUNT: &str = "X-Object-Count";
pub const X_BYTES_USED: &str = "X-Bytes-Used";
pub const X_CONTENT_TYPE: &str = "X-Content-Type";
pub const X_CONTENT_TYPE_TIMESTAMP: &str = "X-Content-Type-Timestamp";
pub const X_META_TIMESTAMP: &str = "X-Meta-Timestamp";
pub const X_SIZE: &str = "X-Size";
pub const X_ETAG: &str = "X-Etag";
pub const X_DELETE_AT_HOST: &str = "X-Delete-At-Host";
pub const X_DELETE_AT_DEVICE: &str = "X-Delete-At-Device";
pub const X_DELETE_AT_PARTITION: &str = "X-Delete-At-Partition";
pub const X_DELETE_AT_CONTAINER: &str = "X-Delete-At-Container";
pub const X_STORAGE_POLICY: &str = "X-Storage-Policy";
pub const X_VERSIONS_LOCATION: &str = "X-Versions-Location";
pub const X_HISTORY_LOCATION: &str = "X-History-Location";
pub const X_BACKEND_ACCEPT_NO_COMMIT: &str = "X-Backend-Accept-No-Commit";
pub const X_BACKEND_ACCEPT_QUOTED_LOCATION: &str = "X-Backend-Accept-Quoted-Location";
pub const X_BACKEND_ACCEPT_REDIRECT: &str = "X-Backend-Accept-Redirect";
pub const X_BACKEND_ALLOW_PRIVATE_METHODS: &str = "X-Backend-Allow-Private-Methods";
pub const X_BACKEND_ALLOW_RESERVED_NAMES: &str = "X-Backend-Allow-Reserved-Names";
/// Not Swift's, whose servers don't know it: a proxy announces by it the checksum of the archive, and tells it in the footer of that name.
pub const X_BACKEND_ARCHIVE_CHECKSUM: &str = "X-Backend-Archive-Checksum";
pub const X_BACKEND_AUTO_CREATE: &str = "X-Backend-Auto-Create";
pub const X_BACKEND_CACHED_RESULTS: &str = "X-Backend-Cached-Results";
/// Not Swift's, whose servers don't know it: who asks for a whole fragment archive would check its ETag itself, together with others.
pub const X_BACKEND_CHECKS_ETAG: &str = "X-Backend-Checks-Etag";
pub const X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE: &str = "X-Backend-Clean-Expiring-Object-Queue";
pub const X_BACKEND_CONTAINER_PATH: &str = "X-Backend-Container-Path";
pub const X_BACKEND_CONTAINER_UPDATE_OVERRIDE_ETAG: &str = "X-Backend-Container-Update-Override-Etag";
pub const X_BACKEND_CONTAINER_UPDATE_OVERRIDE_SIZE: &str = "X-Backend-Container-Update-Override-Size";
pub const X_BACKEND_CONTENT_GENERATOR: &str = "X-Backend-Content-Generator";
pub const X_BACKEND_CONTENT_TYPE: &str = "X-Backend-Content-Type";
pub const X_BACKEND_DATA_TIMESTAMP: &str = "X-Backend-Data-Timestamp";
pub const X_BACKEND_DELETE_TIMESTAMP: &str = "X-Backend-Delete-Timestamp";
pub const X_BACKEND_DURABLE_TIMESTAMP: &str = "X-Backend-Durable-Timestamp";
pub const X_BACKEND_ETAG_IS_AT: &str = "X-Backend-Etag-Is-At";
/// The answer to [`X_BACKEND_CHECKS_ETAG`]: nobody else has checked it.
pub const X_BACKEND_ETAG_UNCHECKED: &str = "X-Backend-Etag-Unchecked";
pub const X_BACKEND_FRAGMENT_PREFERENCES: &str = "X-Backend-Fragment-Preferences";
pub const X_BACKEND_FRAGMENTS: &str = "X-Backend-Fragments";
pub const X_BACKEND_IGNORE_RANGE_IF_METADATA_PRESENT: &str = "X-Backend-Ignore-Range-If-Metadata-Present";
pub const X_BACKEND_INCLUDE_DELETED: &str = "X-Backend-Include-Deleted";
pub const X_BACKEND_LOCATION_IS_QUOTED: &str = "X-Backend-Location-Is-Quoted";
pub const X_BACKEND_NEXT_PART_POWER: &str = "X-Backend-Next-Part-Power";
pub const X_BACKEND_NO_COMMIT: &str = "X-Backend-No-Commit";
pub const X_BACKEND_NO_TIMESTAMP_UPDATE: &str = "X-Backend-No-Timestamp-Update";
pub const X_BACKEND_OBJ_CONTENT_LENGTH: &str = "X-Backend-Obj-Content-Length";
pub const X_BACKEND_OBJ_METADATA_FOOTER: &str = "X-Backend-Obj-Metadata-Footer";
pub const X_BACKEND_OBJ_MULTIPART_MIME_BOUNDARY: &str = "X-Backend-Obj-Multipart-Mime-Boundary";
pub const X_BACKEND_OBJ_MULTIPHASE_COMMIT: &str = "X-Backend-Obj-Multiphase-Commit";
pub const X_BACKEND_OPEN_EXPIRED: &str = "X-Backend-Open-Expired";
pub const X_BACKEND_OVERRIDE_DELETED: &str = "X-Backend-Override-Deleted";
pub const X_BACKEND_OVERRIDE_SHARD_NAME_FILTER: &str = "X-Backend-Override-Shard-Name-Filter";
pub const X_BACKEND_PUT_TIMESTAMP: &str = "X-Backend-Put-Timestamp";
pub const X_BACKEND_QUOTED_CONTAINER_PATH: &str = "X-Backend-Quoted-Container-Path";
pub const X_BACKEND_RECHECK_ACCOUNT_EXISTENCE: &str = "X-Backend-Recheck-Account-Existence";
pub const X_BACKEND_RECHECK_CONTAINER_EXISTENCE: &str = "X-Backend-Recheck-Container-Existence";
pub const X_BACKEND_RECORD_SHARD_FORMAT: &str = "X-Backend-Record-Shard-Format";
pub const X_BACKEND_RECORD_STORAGE_POLICY_INDEX: &str = "X-Backend-Record-Storage-Policy-Index";
pub const X_BACKEND_RECORD_TYPE: &str = "X-Backend-Record-Type";
pub const X_BACKEND_REDIRECT_TIMESTAMP: &str = "X-Backend-Redirect-Timestamp";
pub const X_BACKEND_REPLICATION: &str = "X-Backend-Replication";
pub const X_BACKEND_REPLICATION_HEADERS: &str = "X-Backend-Replication-Headers";
pub const X_BACKEND_SHARDING_STATE: &str = "X-Backend-Sharding-State";
pub const X_BACKEND_SSYNC_FRAG_INDEX: &str = "X-Backend-Ssync-Frag-Index";
pub const X_BACKEND_SSYNC_NODE_INDEX: &str = "X-Backend-Ssync-Node-Index";
pub const X_BACKEND_STATUS_CHANGED_AT: &str = "X-Backend-Status-Changed-At";
pub const X_BACKEND_STORAGE_POLICY_DEFAULT: &str = "X-Backend-Storage-Policy-Default";
pub const X_BACKEND_STORAGE_POLICY_INDEX: &str = "X-Backend-Storage-Policy-Index";
pub const X_BACKEND_TIMESTAMP: &str = "X-Backend-Timestamp";
pub const X_BACKEND_USE_REPLICATION_NETWORK: &str = "X-Backend-Use-Replication-Network";
pub const X_OBJECT_SYSMETA_EC_CONTENT_LENGTH: &str = "X-Object-Sysmeta-Ec-Content-Length";
pub const X_OBJECT_SYSMETA_EC_ETAG: &str = "X-Object-Sysmeta-Ec-Etag";
pub const X_OBJECT_SYSMETA_EC_FRAG_INDEX: &str = "X-Object-Sysmeta-Ec-Frag-Index";
pub const X_OBJECT_SYSMETA_EC_SCHEME: &str = "X-Object-Sysmeta-Ec-Scheme";
pub const X_OBJECT_SYSMETA_EC_SEGMENT_SIZE: &str = "X-Object-Sysmeta-Ec-Segment-Size";

/// What follows names an item of the container update that replaces the one computed from the object.
pub const X_BACKEND_CONTAINER_UPDATE_OVERRIDE_PREFIX: &str = "X-Backend-Container-Update-Override-";
pub const X_OBJECT_SYSMETA_CONTAINER_UPDATE_OVERRIDE_PREFIX: &str =
    "X-Object-Sysmeta-Container-Update-Override-";
/// Sysmeta that a POST replaces, like user metadata.
pub const OBJECT_TRANSIENT_SYSMETA_PREFIX: &str = "X-Object-Transient-Sysmeta-";
/// Used by servers to separate the parts of internal names; clients may not send it.
pub const RESERVED: char = '\0';

/// Whose metadata a name may be.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ServerType {
    Account,
    Container,
    Object,
}

impl ServerType {
    pub const fn as_str(self) -> &'static str {
        match self {
            ServerType::Account => "account",
            ServerType::Container => "container",
            ServerType::Object => "object",
        }
    }

    pub const fn user_meta_prefix(self) -> &'static str {
        match self {
            ServerType::Account => "x-account-meta-",
            ServerType::Container => "x-container-meta-",
            ServerType::Object => "x-object-meta-",
        }
    }

    pub const fn sys_meta_prefix(self) -> &'static str {
        match self {
            ServerType::Account => "x-account-sysmeta-",
            ServerType::Container => "x-container-sysmeta-",
            ServerType::Object => "x-object-sysmeta-",
        }
    }
}

/// What follows `prefix` in `name`, if anything does. Case is ignored.
pub fn strip_prefix_ignore_case<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let head = name.as_bytes().get(..prefix.len())?;
    (name.len() > prefix.len() && head.eq_ignore_ascii_case(prefix.as_bytes())).then(|| &name[prefix.len()..])
}

pub fn is_user_meta(server_type: ServerType, name: &str) -> bool {
    strip_user_meta_prefix(server_type, name).is_some()
}

pub fn is_sys_meta(server_type: ServerType, name: &str) -> bool {
    strip_sys_meta_prefix(server_type, name).is_some()
}

pub fn is_sys_or_user_meta(server_type: ServerType, name: &str) -> bool {
    is_user_meta(server_type, name) || is_sys_meta(server_type, name)
}

pub fn is_object_transient_sysmeta(name: &str) -> bool {
    strip_object_transient_sysmeta_prefix(name).is_some()
}

pub fn strip_user_meta_prefix(server_type: ServerType, name: &str) -> Option<&str> {
    strip_prefix_ignore_case(name, server_type.user_meta_prefix())
}

pub fn strip_sys_meta_prefix(server_type: ServerType, name: &str) -> Option<&str> {
    strip_prefix_ignore_case(name, server_type.sys_meta_prefix())
}

pub fn strip_object_transient_sysmeta_prefix(name: &str) -> Option<&str> {
    strip_prefix_ignore_case(name, OBJECT_TRANSIENT_SYSMETA_PREFIX)
}

/// Titles a name as `HeaderKeyDict` does: a letter after anything but a letter is upper case, every other
/// letter lower case; bytes beyond ASCII stay.
pub fn title_case_bytes(name: &[u8]) -> Vec<u8> {
    let mut previous_is_letter = false;
    name.iter()
        .map(|&b| {
            let titled = if previous_is_letter { b.to_ascii_lowercase() } else { b.to_ascii_uppercase() };
            previous_is_letter = b.is_ascii_alphabetic();
            titled
        })
        .collect()
}

/// `title_case_bytes` of text.
pub fn title_case(name: &str) -> String {
    let mut previous_is_letter = false;
    name.chars()
        .map(|c| {
            let titled = if previous_is_letter { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
            previous_is_letter = c.is_ascii_alphabetic();
            titled
        })
        .collect()
}

/// `config_true_value`: how Swift reads booleans in options and headers.
pub fn is_true_value(value: &str) -> bool {
    ["true", "1", "yes", "on", "t", "y"].iter().any(|t| value.eq_ignore_ascii_case(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_equal_those_of_header_key_dict() {
        let pairs = [
            ("x-object-meta-s3api-tag", "X-Object-Meta-S3Api-Tag"),
            ("ETAG", "Etag"),
            ("x_under_score", "X_Under_Score"),
            ("x-meta-caf\u{e9}x", "X-Meta-Caf\u{e9}X"),
        ];
        for (name, titled) in pairs {
            assert_eq!(title_case(name), titled);
            assert_eq!(title_case_bytes(name.as_bytes()), titled.as_bytes());
        }
    }

    #[test]
    fn a_bare_prefix_is_not_metadata() {
        use ServerType::*;
        assert!(!is_user_meta(Object, "X-Object-Meta-"));
        assert!(is_user_meta(Object, "X-OBJECT-Meta-a"));
        assert!(!is_user_meta(Container, "X-Object-Meta-a"));
        assert!(is_sys_meta(Account, "x-account-sysmeta-Foo"));
        assert!(!is_sys_meta(Object, "X-Object-Transient-Sysmeta-a"));
        assert!(is_object_transient_sysmeta("x-object-transient-sysmeta-a"));
        assert_eq!(strip_user_meta_prefix(Object, "X-Object-Meta-Colour"), Some("Colour"));
        assert!(is_sys_or_user_meta(Container, "X-Container-Sysmeta-x"));
    }

    #[test]
    fn multibyte_names_do_not_split_a_character() {
        assert_eq!(strip_prefix_ignore_case("x-object-met\u{e9}-", "x-object-meta-"), None);
    }
}
