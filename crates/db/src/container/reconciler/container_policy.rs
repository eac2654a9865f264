//! Which policy a container has, by its primaries: asked straight, since a proxy may remember what was so before.

use common::policy::majority_size;
use common::{Clock, HashConf};
use futures_util::future::join_all;
use indexmap::IndexMap;
use parking_lot::Mutex;
use ring::Ring;
use service::direct_client::{DirectClient, DirectError, Target};
use service::http::Headers;

use super::super::policy_conflict::{PolicyInfo, best_policy_index};
use super::Unhandled;
use common::headers::X_BACKEND_USE_REPLICATION_NETWORK;

/// Seconds for which an answer is true.
const TTL: f64 = 30.0;
/// Answers beyond this many push out the one that was not needed for longest.
const MAX_KNOWN: usize = 1000;

/// What containers said lately.
pub(super) struct ContainerPolicies {
    client: DirectClient,
    clock: Clock,
    /// By account and container; the last used is last.
    known: Mutex<IndexMap<(String, String), Answer>>,
}

struct Answer {
    at: f64,
    /// None if too few of the servers told it.
    policy: Option<i64>,
}

impl ContainerPolicies {
    pub fn new(client: DirectClient, clock: Clock) -> Self {
        ContainerPolicies { client, clock, known: Mutex::default() }
    }

    /// `None` if too few of the primaries can be asked.
    pub async fn get(
        &self,
        ring: &Ring,
        hash_conf: &HashConf,
        account: &str,
        container: &str,
    ) -> Result<Option<i64>, Unhandled> {
        let key = (account.to_owned(), container.to_owned());
        if let Some(policy) = self.recall(&key) {
            return Ok(policy);
        }
        let (part, nodes) = ring.get_nodes(hash_conf, account, Some(container), None);
        let names = [account, container];
        let targets: Vec<_> = nodes.iter().map(|node| Target { node, part, names: &names }).collect();
        let answers = join_all(targets.iter().map(|target| self.ask(target))).await;
        let answers: Vec<Headers> = answers.into_iter().flatten().collect();
        let policy = if answers.len() < majority_size(nodes.len()) {
            None
        } else {
            let infos: Option<Vec<_>> = answers.iter().map(PolicyInfo::from_headers).collect();
            best_policy_index(&infos.ok_or(Unhandled::NoPolicy)?)
        };
        self.remember(key, policy);
        Ok(policy)
    }

    /// What a replica knows of itself, even if it is not there.
    async fn ask(&self, target: &Target<'_>) -> Option<Headers> {
        let mut headers = Headers::new();
        headers.insert(X_BACKEND_USE_REPLICATION_NETWORK, "true");
        match self.client.head(target, headers).await {
            Ok(headers) => Some(headers),
            Err(DirectError::Status { status: 404, headers, .. }) => Some(headers),
            Err(_) => None,
        }
    }

    fn recall(&self, key: &(String, String)) -> Option<Option<i64>> {
        let mut known = self.known.lock();
        let answer = known.shift_remove(key)?;
        if answer.at + TTL < self.clock.unix_secs() {
            return None;
        }
        let policy = answer.policy;
        known.insert(key.clone(), answer);
        Some(policy)
    }

    fn remember(&self, key: (String, String), policy: Option<i64>) {
        let mut known = self.known.lock();
        known.shift_remove(&key);
        while known.len() >= MAX_KNOWN {
            known.shift_remove_index(0);
        }
        known.insert(key, Answer { at: self.clock.unix_secs(), policy });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::Timestamp;
    use service::http::Pool;
    use std::time::Duration;

    #[test]
    fn answers_are_remembered_for_a_while_and_not_too_many() {
        let clock = Clock::manual(Timestamp::from_secs_f64(1000.0));
        let policies =
            ContainerPolicies::new(DirectClient::new(Pool::default(), clock.clone()), clock.clone());
        let key = |n: usize| ("a".to_owned(), n.to_string());
        for n in 0..MAX_KNOWN {
            policies.remember(key(n), Some(n as i64));
        }
        policies.remember(key(1), None);
        assert_eq!((policies.recall(&key(0)), policies.recall(&key(1))), (Some(Some(0)), Some(None)));
        policies.remember(key(MAX_KNOWN), Some(7));
        assert_eq!(policies.recall(&key(2)), None, "0 and 1 were needed later");
        assert_eq!(policies.recall(&key(0)), Some(Some(0)));
        clock.advance(Duration::from_secs(29));
        assert_eq!(policies.recall(&key(0)), Some(Some(0)));
        clock.advance(Duration::from_secs(2));
        assert_eq!(policies.recall(&key(0)), None, "however often it was asked for");
        assert_eq!(policies.known.lock().len(), MAX_KNOWN - 1);
    }
}
