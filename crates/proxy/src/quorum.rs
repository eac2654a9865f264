//! What several backend servers' answers mean together. Pure.
//!
//! A quorum is a number of answers of one kind (2xx, 3xx, 4xx); of these the highest status is passed on.
//! Without one, statuses may be overridden (a DELETE's 404 counts as 204), and without one still it is a 503.

pub use common::policy::quorum_size;

/// Is there a quorum already, whatever the others say?
pub fn have_quorum(statuses: &[u16], quorum: usize) -> bool {
    statuses.len() >= quorum
        && [100, 200, 300, 400].into_iter().any(|hundred| in_hundred(statuses, hundred).count() >= quorum)
}

/// Which answer speaks for all: its index in `statuses`, or `None` without a quorum (which is a 503).
///
/// `overrides` are statuses which, lacking a quorum, count as others; an overridden answer is never the one
/// passed on.
pub fn best(statuses: &[u16], quorum: usize, overrides: &[(u16, u16)]) -> Option<usize> {
    let overridden = |status: u16| overrides.iter().find(|(from, _)| *from == status).map(|(_, to)| *to);
    quorum_answer(statuses, quorum, |_| false).or_else(|| {
        let changed: Vec<u16> = statuses.iter().map(|s| overridden(*s).unwrap_or(*s)).collect();
        quorum_answer(&changed, quorum, |index| overridden(statuses[index]).is_some())
    })
}

fn quorum_answer(statuses: &[u16], quorum: usize, avoid: impl Fn(usize) -> bool) -> Option<usize> {
    for hundred in [200, 300, 400] {
        let agree: Vec<(usize, u16)> = in_hundred(statuses, hundred).collect();
        if statuses.is_empty() || agree.len() < quorum {
            continue;
        }
        let mut best: Option<(usize, u16)> = None;
        for (index, status) in agree.into_iter().filter(|(index, _)| !avoid(*index)) {
            if best.is_none_or(|(_, highest)| status > highest) {
                best = Some((index, status));
            }
        }
        if let Some((index, _)) = best {
            return Some(index);
        }
    }
    None
}

fn in_hundred(statuses: &[u16], hundred: u16) -> impl Iterator<Item = (usize, u16)> + '_ {
    statuses.iter().copied().enumerate().filter(move |(_, status)| (hundred..hundred + 100).contains(status))
}

/// How many container updates the object servers are given: enough that, when all but a quorum of the
/// object PUTs fail, a quorum of container servers is still told; and at least one for each of those.
pub fn num_container_updates(
    container_replicas: usize,
    object_replicas: usize,
    object_quorum: usize,
) -> usize {
    let container_quorum = quorum_size(container_replicas);
    (container_quorum + object_replicas).saturating_sub(object_quorum).max(container_replicas)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status passed on, as Swift's `best_response` gives it.
    fn best_status(statuses: &[u16], overrides: &[(u16, u16)]) -> u16 {
        best(statuses, quorum_size(statuses.len()), overrides).map_or(503, |index| statuses[index])
    }

    #[test]
    fn quorum_is_half_rounded_up() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(quorum_size), [0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn highest_of_the_agreeing_kind_is_passed_on() {
        assert_eq!(best_status(&[201, 201, 503], &[]), 201);
        assert_eq!(best_status(&[201, 202, 404], &[]), 202);
        assert_eq!(best_status(&[404, 409, 201], &[]), 409);
        assert_eq!(best_status(&[201, 404, 503], &[]), 503);
        assert_eq!(best_status(&[200, 404], &[]), 200);
        assert_eq!(best_status(&[304, 304, 200], &[]), 304);
        assert_eq!(best_status(&[503, 503, 503], &[]), 503);
        assert_eq!(best_status(&[], &[]), 503);
    }

    #[test]
    fn overrides_only_matter_without_a_quorum() {
        let delete = [(404, 204)];
        assert_eq!(best_status(&[204, 404, 503], &delete), 204);
        assert_eq!(best_status(&[404, 404, 503], &delete), 404);
        assert_eq!(best_status(&[404, 503, 503], &delete), 503);
        assert_eq!(best_status(&[204, 404, 404], &delete), 404);
    }

    #[test]
    fn quorum_is_known_before_all_have_answered() {
        assert!(!have_quorum(&[201], 2));
        assert!(have_quorum(&[201, 201], 2));
        assert!(!have_quorum(&[201, 404], 2));
        assert!(have_quorum(&[100, 100], 2));
        assert!(!have_quorum(&[503, 503], 2));
        assert!(have_quorum(&[], 0));
    }

    #[test]
    fn container_updates_survive_failed_object_puts() {
        assert_eq!(num_container_updates(3, 3, 2), 3);
        assert_eq!(num_container_updates(3, 2, 1), 3);
        assert_eq!(num_container_updates(3, 6, 5), 3);
        assert_eq!(num_container_updates(3, 12, 8), 6);
        assert_eq!(num_container_updates(1, 5, 3), 3);
    }
}
