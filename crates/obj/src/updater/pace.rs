//! How fast updates of one group of containers are sent: so many a second.
//!
//! An update whose group has had its share is deferred. Deferred updates are sent when the walk has ended, as long as
//! there is time until the next pass; the queue is bounded, and what doesn't fit is skipped until that pass, the oldest
//! first: those are the likeliest to have been overtaken by newer ones.
//!
//! Times are seconds since the epoch, given by the caller.

use std::collections::VecDeque;

use crate::rate_limiter::RateLimiter;

/// What became of an update that was offered.
#[derive(Debug, PartialEq)]
pub(super) enum Offered<T> {
    Send(T),
    /// It waits; whether another one had to make room for it.
    Deferred {
        skipped: bool,
    },
    /// There is no room.
    Skipped,
}

/// Updates by groups of containers.
#[derive(Debug)]
pub(super) struct Deferrals<T> {
    groups: Vec<Group<T>>,
    /// The groups of the deferred updates, from the oldest to the newest.
    order: VecDeque<usize>,
    limit: usize,
}

#[derive(Debug)]
struct Group<T> {
    limiter: RateLimiter,
    deferred: VecDeque<T>,
}

impl<T> Deferrals<T> {
    pub fn new(groups: usize, rate: f64, limit: usize) -> Self {
        let group = || Group { limiter: RateLimiter::new(rate, 0.0), deferred: VecDeque::new() };
        Self { groups: (0..groups.max(1)).map(|_| group()).collect(), order: VecDeque::new(), limit }
    }

    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    pub fn offer(&mut self, group: usize, update: T, now: f64) -> Offered<T> {
        if self.groups[group].limiter.is_allowed(now) {
            return Offered::Send(update);
        }
        if self.limit == 0 {
            return Offered::Skipped;
        }
        let mut skipped = false;
        if self.order.len() >= self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.groups[oldest].deferred.pop_front();
            skipped = true;
        }
        self.groups[group].deferred.push_back(update);
        self.order.push_back(group);
        Offered::Deferred { skipped }
    }

    /// The next deferred update and how long it has to wait: the newest of the group that is ready first. `None` if
    /// there is none.
    pub fn drain(&mut self, now: f64) -> Option<(T, f64)> {
        let waiting = self.groups.iter_mut().filter(|g| !g.deferred.is_empty());
        let group = waiting.min_by(|a, b| a.limiter.next().total_cmp(&b.limiter.next()))?;
        let update = group.deferred.pop_back()?;
        self.order.pop_back();
        Some((update, group.limiter.wait(now)))
    }

    /// How many are still deferred.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|g| g.deferred.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_of_a_busy_container_are_deferred_and_the_oldest_skipped() {
        let mut deferrals = Deferrals::new(2, 1.0, 2);
        assert_eq!(deferrals.offer(0, "a", 10.0), Offered::Send("a"));
        assert_eq!(deferrals.offer(1, "b", 10.0), Offered::Send("b"));
        assert_eq!(deferrals.offer(0, "c", 10.0), Offered::Deferred { skipped: false });
        assert_eq!(deferrals.offer(1, "d", 10.0), Offered::Deferred { skipped: false });
        assert_eq!(deferrals.offer(0, "e", 10.0), Offered::Deferred { skipped: true });
        assert_eq!(deferrals.len(), 2);
        let mut drained: Vec<&str> = std::iter::from_fn(|| deferrals.drain(10.5)).map(|(u, _)| u).collect();
        drained.sort_unstable();
        assert_eq!(drained, ["d", "e"]);
        assert_eq!(deferrals.drain(10.5), None);
    }

    #[test]
    fn without_a_queue_they_are_skipped() {
        let mut deferrals = Deferrals::new(1, 1.0, 0);
        assert_eq!(deferrals.offer(0, 1, 5.0), Offered::Send(1));
        assert_eq!(deferrals.offer(0, 2, 5.0), Offered::Skipped);
    }
}
