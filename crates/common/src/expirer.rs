//! The queue of objects that are to be deleted at a time: its account, its containers, and what its entries are called.
//!
//! ```text
//! /.expiring_objects/1699919925/1700000000-ACCOUNT/CONTAINER/OBJECT
//!                    task container  task: when, and what
//! ```
//!
//! Proxies and object servers put entries there, the object-expirer takes them out. Each day (`expiring_objects_container_divisor`)
//! has a hundred task containers, so that an object lands in one of them by its hash: they are called by the seconds just
//! before that day.

use crate::config::{ConfigError, Section};
use crate::timestamp::normalize_delete_at;
use crate::{HashConf, Timestamp};

/// The Content-Type of entries for objects that are to be deleted whatever their X-Delete-At says.
pub const ASYNC_DELETE_TYPE: &str = "application/async-deleted";

const ACCOUNT: &str = "expiring_objects";
const DIVISOR: u64 = 86_400;
const TASK_CONTAINERS: u64 = 100;
const DIVISOR_OPTION: &str = "expiring_objects_container_divisor";
const ACCOUNT_OPTION: &str = "expiring_objects_account_name";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpirerConfig {
    pub account_name: String,
    divisor: u64,
}

impl ExpirerConfig {
    pub fn from_section(section: &Section, auto_create_account_prefix: &str) -> Result<Self, ConfigError> {
        let account = section.str(ACCOUNT_OPTION, ACCOUNT);
        let config = ExpirerConfig {
            account_name: format!("{auto_create_account_prefix}{account}"),
            divisor: section.positive_int(DIVISOR_OPTION, DIVISOR)?,
        };
        if config.divisor <= TASK_CONTAINERS {
            return Err(section.error(DIVISOR_OPTION, "expected an integer greater than 100"));
        }
        Ok(config)
    }

    /// What is to be said of old options.
    pub fn warnings(section: &Section) -> Vec<String> {
        let mut warnings = Vec::new();
        if section.get(DIVISOR_OPTION).is_some() {
            warnings.push(format!("{DIVISOR_OPTION} is deprecated"));
        }
        if section.get(ACCOUNT_OPTION).is_some() {
            warnings.push(format!(
                "{ACCOUNT_OPTION} is deprecated; you need to migrate to the standard .expiring_objects account"
            ));
        }
        warnings
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
        let shard = (u128::from_be_bytes(hash.0) % u128::from(TASK_CONTAINERS)) as u64;
        let start = delete_at / self.divisor * self.divisor;
        normalize_delete_at(start.saturating_sub(shard) as f64)
    }

    /// Whether the task container of that name would be chosen today: not if the options have changed.
    pub fn is_expected_task_container(&self, name: u64) -> bool {
        let before = (i128::from(name) - 1).rem_euclid(i128::from(self.divisor));
        i128::from(self.divisor) - before <= i128::from(TASK_CONTAINERS)
    }
}

/// An entry of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub delete_at: Timestamp,
    pub account: String,
    pub container: String,
    pub object: String,
}

impl Task {
    /// `None` for a name that no queue gives.
    pub fn parse(name: &str) -> Option<Task> {
        let (timestamp, path) = name.split_once('-')?;
        let mut parts = path.splitn(3, '/');
        let mut part = || parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        Some(Task {
            delete_at: Timestamp::parse(timestamp).ok()?,
            account: part()?,
            container: part()?,
            object: part()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(options: &[(&str, &str)]) -> Result<ExpirerConfig, ConfigError> {
        ExpirerConfig::from_section(&Section::from_pairs("app", options.iter().copied()), ".")
    }

    /// By `swift.obj.expirer.ExpirerConfig({}).get_expirer_container(...)` with the prefix `pre` and suffix `suf`.
    #[test]
    fn task_containers_are_swifts() {
        let config = config(&[]).unwrap();
        let hash = HashConf { prefix: b"pre".to_vec(), suffix: b"suf".to_vec() };
        let container = |at, object| config.container(&hash, at, "a", "c", object);
        assert_eq!(config.account_name, ".expiring_objects");
        assert_eq!(container(1700000000, "o"), "1699919925");
        assert_eq!(container(1700000000, "p q"), "1699919926");
        assert_eq!(container(1700086400, "o"), "1700006325");
        assert_eq!(container(5, "o"), "0000000000");
        assert_eq!(container(9999999999, "é"), "9999935960");
    }

    #[test]
    fn a_divisor_must_leave_room_for_the_task_containers() {
        let divisor = |value| config(&[("expiring_objects_container_divisor", value)]);
        assert!(divisor("100").is_err() && divisor("x").is_err() && divisor("101").is_ok());
        let named = Section::from_pairs("app", [("expiring_objects_account_name", "exp")]);
        assert_eq!(ExpirerConfig::from_section(&named, ".").unwrap().account_name, ".exp");
        assert_eq!(ExpirerConfig::warnings(&named).len(), 1);
    }

    #[test]
    fn task_containers_of_other_options_are_not_expected() {
        let config = config(&[]).unwrap();
        for expected in [1_699_920_000, 1_699_919_999, 1_699_919_901, 0] {
            assert!(config.is_expected_task_container(expected), "{expected}");
        }
        for other in [1_699_919_900, 1_699_920_001, 1_699_950_000] {
            assert!(!config.is_expected_task_container(other), "{other}");
        }
    }

    #[test]
    fn tasks_are_read_from_their_names() {
        let task = Task::parse("1700000000-AUTH_a-b/c/o/p-q").unwrap();
        assert_eq!(task.delete_at, Timestamp::from_secs_f64(1_700_000_000.0));
        assert_eq!(
            (task.account.as_str(), task.container.as_str(), task.object.as_str()),
            ("AUTH_a-b", "c", "o/p-q")
        );
        assert_eq!(Task::parse("1700000000.12345-a/c/o").unwrap().delete_at.normal(), "1700000000.12345");
        for bad in ["", "5", "x-a/c/o", "5-a/c", "5-a/c/", "5-a//o", "5-/c/o"] {
            assert_eq!(Task::parse(bad), None, "{bad}");
        }
    }
}
