//! How fast updates are sent: so many a second in all, and so many a second for each group of containers.
//!
//! An update whose group has had its share is deferred. Deferred updates are sent when the walk has ended, as long as
//! there is time until the next pass; the queue is bounded, and what doesn't fit is skipped until that pass, the oldest
//! first: those are the likeliest to have been overtaken by newer ones.
//!
//! Times are seconds since the epoch, given by the caller.

use std::collections::VecDeque;

/// Lets `rate` things a second pass; who was idle may catch up for `buffer` seconds. A rate of 0 is no limit.
#[derive(Clone, Debug)]
pub(super) struct RateLimiter {
    rate: f64,
    buffer: f64,
    /// When the next one may pass.
    next: f64,
}

impl RateLimiter {
    pub fn new(rate: f64, buffer: f64) -> Self {
        Self { rate, buffer, next: 0.0 }
    }

    /// Whether one may pass now; counts it if so.
    pub fn is_allowed(&mut self, now: f64) -> bool {
        self.catch_up(now);
        let allowed = self.rate <= 0.0 || now >= self.next;
        if allowed {
            self.count();
        }
        allowed
    }

    /// Counts one, and says how long it has to wait.
    pub fn wait(&mut self, now: f64) -> f64 {
        self.catch_up(now);
        let wait = if self.rate <= 0.0 { 0.0 } else { (self.next - now).max(0.0) };
        self.count();
        wait
    }

    fn catch_up(&mut self, now: f64) {
        if now - self.next > self.buffer {
            self.next = now;
        }
    }

    fn count(&mut self) {
        if self.rate > 0.0 {
            self.next += 1.0 / self.rate;
        }
    }
}

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
        let group = waiting.min_by(|a, b| a.limiter.next.total_cmp(&b.limiter.next))?;
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
    fn a_rate_is_kept_and_idle_time_is_not_saved_up() {
        let mut limiter = RateLimiter::new(10.0, 0.5);
        let waits: Vec<f64> = (0..4).map(|_| limiter.wait(100.0)).collect();
        let expected = [0.0, 0.1, 0.2, 0.3];
        assert!(waits.iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-9), "{waits:?}");
        assert_eq!(limiter.wait(200.0), 0.0);
        assert!(limiter.wait(200.0) > 0.09);
        let mut unlimited = RateLimiter::new(0.0, 0.0);
        assert!((0..1000).all(|_| unlimited.is_allowed(1.0)));
    }

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
