//! Whether requests come in a rush.
//!
//! What is in memory can be had on the spot or by a thread of the device. Where requests come now and then, the thread would have to
//! be woken for each. In a rush it is awake, and to do many of the same kind one after the other costs less than to go
//! through all of the server for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::Clock;

/// A thread is asleep again after less than this without work, on the whole.
const CALM: Duration = Duration::from_micros(150);
/// A longer pause says no more.
const LONGEST: Duration = Duration::from_millis(1);
/// Of the mean, one part in so many is the last gap.
const PARTS: u64 = 8;

pub(crate) struct Rush {
    clock: Clock,
    /// When the last request came, in nanoseconds.
    last: AtomicU64,
    /// The mean gap between requests, in nanoseconds.
    gap: AtomicU64,
}

impl Rush {
    pub fn new(clock: Clock) -> Self {
        let last = nanos(clock.since_epoch());
        Rush { clock, last: AtomicU64::new(last), gap: AtomicU64::new(nanos(LONGEST)) }
    }

    /// A request comes: whether there is no rush.
    pub fn is_calm(&self) -> bool {
        let now = nanos(self.clock.since_epoch());
        // Two at a time may each miss the other's, and a clock may be set: it is an estimate.
        let gap = now.saturating_sub(self.last.swap(now, Ordering::Relaxed));
        let mean = mean_with(self.gap.load(Ordering::Relaxed), gap);
        self.gap.store(mean, Ordering::Relaxed);
        mean >= nanos(CALM)
    }
}

fn mean_with(mean: u64, gap: u64) -> u64 {
    (mean * (PARTS - 1) + gap.min(nanos(LONGEST))) / PARTS
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_requests_at_once_are_a_rush_and_a_pause_ends_it() {
        let after = |mean: u64, gap: Duration, times: usize| {
            (0..times).fold(mean, |mean, _| mean_with(mean, nanos(gap)))
        };
        let calm = nanos(LONGEST);
        assert!(after(calm, Duration::from_micros(50), 4) >= nanos(CALM), "a few are none");
        let rush = after(calm, Duration::from_micros(50), 30);
        assert!(rush < nanos(CALM));
        assert!(after(rush, Duration::from_secs(1), 2) >= nanos(CALM));
    }
}
