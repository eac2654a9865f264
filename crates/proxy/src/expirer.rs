//! Where an object that is to be deleted at a time is queued: the container of `.expiring_objects` which the
//! object-expirer will look at, as `X-Delete-At-*` tell the object servers.
//!
//! Each day has 100 task containers, so that an object lands in one by its hash.

use common::config::{ConfigError, Section};
use common::hash::HashConf;
use common::timestamp::normalize_delete_at;

const ACCOUNT_NAME: &str = ".expiring_objects";
const CONTAINER_DIVISOR: u64 = 86400;
const CONTAINERS_PER_DIVISOR: u64 = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpirerConfig {
    pub account_name: String,
    divisor: u64,
}

impl ExpirerConfig {
    pub fn load(section: &Section) -> Result<Self, ConfigError> {
        let divisor = section.positive_int("expiring_objects_container_divisor", CONTAINER_DIVISOR)?;
        if divisor <= CONTAINERS_PER_DIVISOR {
            let option = "expiring_objects_container_divisor";
            return Err(section.error(option, "expected an integer greater than 100"));
        }
        let account_name = match section.get("expiring_objects_account_name") {
            Some(name) => format!(".{name}"),
            None => ACCOUNT_NAME.to_owned(),
        };
        Ok(Self { account_name, divisor })
    }

    /// The task container of an object which is to be deleted at that second.
    pub fn container(
        &self,
        hash: &HashConf,
        delete_at: u64,
        account: &str,
        container: &str,
        object: &str,
    ) -> String {
        let hash = hash.hash_path(account, Some(container), Some(object));
        let shard = (u128::from_be_bytes(hash.0) % u128::from(CONTAINERS_PER_DIVISOR)) as u64;
        let start = delete_at / self.divisor * self.divisor;
        normalize_delete_at(start.saturating_sub(shard) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `swift.obj.expirer.ExpirerConfig({}).get_expirer_container(...)` with the prefix `pre` and suffix `suf`.
    #[test]
    fn task_containers_are_swifts() {
        let config = ExpirerConfig::load(&Section::from_pairs("app", [])).unwrap();
        let hash = HashConf { prefix: b"pre".to_vec(), suffix: b"suf".to_vec() };
        let container = |at, object| config.container(&hash, at, "a", "c", object);
        assert_eq!(config.account_name, ".expiring_objects");
        assert_eq!(container(1700000000, "o"), "1699919925");
        assert_eq!(container(1700000000, "p q"), "1699919926");
        assert_eq!(container(1700086400, "o"), "1700006325");
        assert_eq!(container(5, "o"), "0000000000");
        assert_eq!(container(9999999999, "é"), "9999935960");
    }
}
