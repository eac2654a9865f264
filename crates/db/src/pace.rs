//! Lets so many things through in a second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

pub struct Pace {
    between: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// All, with a rate of zero.
    pub fn new(per_second: f64) -> Self {
        let between =
            if per_second > 0.0 { Duration::from_secs_f64(1.0 / per_second) } else { Duration::ZERO };
        Self { between, next: Mutex::new(None) }
    }

    pub async fn wait(&self) {
        let now = Instant::now();
        let turn = {
            let mut next = self.next.lock();
            let turn = next.unwrap_or(now).max(now);
            *next = Some(turn + self.between);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}
