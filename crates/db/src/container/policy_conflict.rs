//! Which of two replicas of a container has the right storage policy (swift/container/reconciler.py `cmp_policy_info`).
//!
//! Two proxies that create a container at once may give it two policies. The replica that was created first is right; but one that was
//! deleted and created anew is righter than one that was not, and of two of those the one that knows the latest deletion. Objects
//! that are in the other policy by then are moved by the container-reconciler.

use std::cmp::Ordering;

use common::config::parse_int;
use common::headers::{
    X_BACKEND_DELETE_TIMESTAMP, X_BACKEND_PUT_TIMESTAMP, X_BACKEND_STATUS_CHANGED_AT,
    X_BACKEND_STORAGE_POLICY_INDEX,
};
use service::http::Headers;

/// Internal form of what a server does not tell.
const NEVER: &str = "0000000000.00000";

/// What a replica knows of itself; timestamps in internal form, which compare as text.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyInfo<'a> {
    pub storage_policy_index: i64,
    pub put_timestamp: &'a str,
    pub delete_timestamp: &'a str,
    pub status_changed_at: &'a str,
    pub count: i64,
}

impl<'a> PolicyInfo<'a> {
    /// What a container server says of its replica, be there one or not; `None` if it does not say its policy.
    pub fn from_headers(headers: &'a Headers) -> Option<Self> {
        let timestamp = |name: &str| headers.get_str(name).unwrap_or(NEVER);
        Some(PolicyInfo {
            storage_policy_index: headers.get_str(X_BACKEND_STORAGE_POLICY_INDEX).and_then(parse_int)?,
            put_timestamp: timestamp(X_BACKEND_PUT_TIMESTAMP),
            delete_timestamp: timestamp(X_BACKEND_DELETE_TIMESTAMP),
            status_changed_at: timestamp(X_BACKEND_STATUS_CHANGED_AT),
            count: 0,
        })
    }
}

impl PolicyInfo<'_> {
    fn is_deleted(&self) -> bool {
        self.delete_timestamp > self.put_timestamp && self.count == 0
    }

    fn is_recreated(&self) -> bool {
        self.put_timestamp > self.delete_timestamp
            && common::Timestamp::parse(self.delete_timestamp).is_ok_and(|at| !at.is_zero())
    }
}

/// Whether the policy of `theirs` is to be used in place of ours.
pub fn is_theirs_right(ours: &PolicyInfo<'_>, theirs: &PolicyInfo<'_>) -> bool {
    ours.storage_policy_index != theirs.storage_policy_index && compare(ours, theirs) == Ordering::Greater
}

/// The policy of the best replica, of equal ones the first.
pub fn best_policy_index(replicas: &[PolicyInfo<'_>]) -> Option<i64> {
    let better = |best, other| if compare(best, other) == Ordering::Greater { other } else { best };
    replicas.iter().reduce(better).map(|best| best.storage_policy_index)
}

/// `Greater` if `theirs` is the better one.
fn compare(ours: &PolicyInfo<'_>, theirs: &PolicyInfo<'_>) -> Ordering {
    match (ours.is_deleted(), theirs.is_deleted()) {
        (false, true) => return Ordering::Less,
        (true, false) => return Ordering::Greater,
        (true, true) => return theirs.status_changed_at.cmp(ours.status_changed_at),
        (false, false) => {}
    }
    match (ours.is_recreated(), theirs.is_recreated()) {
        (false, true) => return Ordering::Greater,
        (true, false) => return Ordering::Less,
        (true, true) => {
            let latest_delete = ours.delete_timestamp.max(theirs.delete_timestamp);
            if ours.put_timestamp < latest_delete {
                return Ordering::Greater;
            }
            if theirs.put_timestamp < latest_delete {
                return Ordering::Less;
            }
        }
        (false, false) => {}
    }
    ours.status_changed_at.cmp(theirs.status_changed_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info<'a>(put: &'a str, delete: &'a str, changed: &'a str, count: i64) -> PolicyInfo<'a> {
        PolicyInfo {
            put_timestamp: put,
            delete_timestamp: delete,
            status_changed_at: changed,
            count,
            ..PolicyInfo::default()
        }
    }

    /// What `cmp_policy_info` of 2.38.3 says to the same.
    #[test]
    fn replicas_are_preferred_as_swift_prefers_them() {
        let created_first = info("1", "0", "1", 0);
        let created_later = info("2", "0", "2", 0);
        let deleted = info("1", "3", "3", 0);
        let deleted_with_rows = info("1", "3", "1", 5);
        let recreated = info("5", "3", "5", 0);
        let recreated_again = info("9", "8", "9", 0);
        for (ours, theirs, expected) in [
            (created_first, created_later, Ordering::Less),
            (created_later, created_first, Ordering::Greater),
            (created_first, created_first, Ordering::Equal),
            (deleted, created_later, Ordering::Greater),
            (created_later, deleted, Ordering::Less),
            (deleted, info("1", "4", "4", 0), Ordering::Greater),
            (deleted_with_rows, created_later, Ordering::Less),
            (created_first, recreated, Ordering::Greater),
            (recreated, created_first, Ordering::Less),
            (recreated, recreated_again, Ordering::Greater),
            (recreated_again, recreated, Ordering::Less),
        ] {
            assert_eq!(compare(&ours, &theirs), expected, "{ours:?} {theirs:?}");
        }
        let other = PolicyInfo { storage_policy_index: 1, ..created_first };
        assert!(is_theirs_right(&created_later, &other));
        assert!(!is_theirs_right(&created_later, &created_first));
    }

    /// As `best_policy_index` of 2.38.3.
    #[test]
    fn the_best_of_many_replicas_says_the_policy() {
        let headers = |policy: &str, put: &str, delete: &str, changed: &str| {
            let mut headers = Headers::new();
            for (name, value) in [
                (X_BACKEND_STORAGE_POLICY_INDEX, policy),
                (X_BACKEND_PUT_TIMESTAMP, put),
                (X_BACKEND_DELETE_TIMESTAMP, delete),
                (X_BACKEND_STATUS_CHANGED_AT, changed),
            ] {
                if !value.is_empty() {
                    headers.insert(name, value);
                }
            }
            headers
        };
        let best = |replicas: &[Headers]| {
            let infos: Vec<_> =
                replicas.iter().map(|headers| PolicyInfo::from_headers(headers).unwrap()).collect();
            best_policy_index(&infos)
        };
        let older = headers("1", "0000000001.00000", "", "0000000001.00000");
        let newer = headers("2", "0000000002.00000", "", "0000000002.00000");
        let deleted = headers("3", "0000000001.00000", "0000000003.00000", "0000000003.00000");
        let recreated = headers("4", "0000000005.00000", "0000000003.00000", "0000000005.00000");
        for (replicas, expected) in [
            (vec![&newer, &older], 1),
            (vec![&older, &newer], 1),
            (vec![&deleted, &newer], 2),
            (vec![&newer, &deleted, &recreated], 4),
            // What has never been there says 0 and nothing else.
            (vec![&newer, &headers("0", "", "", "")], 0),
            (vec![&headers("7", "", "", ""), &headers("8", "", "", "")], 7),
        ] {
            let replicas: Vec<Headers> = replicas.into_iter().cloned().collect();
            assert_eq!(best(&replicas), Some(expected), "{replicas:?}");
        }
        assert_eq!(best(&[]), None);
        assert!(PolicyInfo::from_headers(&headers("", "1", "", "")).is_none());
    }
}
