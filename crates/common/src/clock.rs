//! The only place that reads wall time. A manual clock stands still until a test moves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::timestamp::Timestamp;

/// Where services take the time from; clones of a manual clock move together.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Microseconds since the epoch.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub fn system() -> Self {
        Self(Source::System)
    }

    pub fn manual(now: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(now.raw() * 10))))
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_secs_f64(self.unix_secs())
    }

    /// Seconds since the epoch; zero if the system's clock stands before it.
    pub fn unix_secs(&self) -> f64 {
        self.since_epoch().as_secs_f64()
    }

    #[allow(clippy::disallowed_methods)] // the one reader of the system's clock
    pub fn since_epoch(&self) -> Duration {
        match &self.0 {
            Source::System => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Source::Manual(micros) => Duration::from_micros(micros.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock. A system clock isn't ours to move: it stays.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(micros) = &self.0 {
            micros.fetch_add(by.as_micros() as u64, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_when_told() {
        let clock = Clock::manual(Timestamp::from_raw(100_000));
        let other = clock.clone();
        assert_eq!(clock.now().normal(), "0000000001.00000");
        other.advance(Duration::from_millis(1500));
        assert_eq!(clock.now().normal(), "0000000002.50000");
        assert_eq!(clock.unix_secs(), 2.5);
    }

    #[test]
    fn system_clock_stands_after_2020() {
        assert!(Clock::system().now().as_secs() > 1_577_836_800);
    }
}
