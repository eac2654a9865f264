//! A bound on how many things a second a daemon does: updates sent, files and bytes audited.
//!
//! Times are seconds since the epoch, given by the caller, who also does the waiting.

/// Lets `rate` things a second pass; who was idle may catch up for `buffer` seconds. A rate of 0 is no limit.
#[derive(Clone, Debug)]
pub(crate) struct RateLimiter {
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
            self.count(1);
        }
        allowed
    }

    /// Counts one, and says how long it has to wait.
    pub fn wait(&mut self, now: f64) -> f64 {
        self.wait_for(1, now)
    }

    /// The same for `n` at once, such as the bytes of a chunk.
    pub fn wait_for(&mut self, n: u64, now: f64) -> f64 {
        self.catch_up(now);
        let wait = if self.rate <= 0.0 { 0.0 } else { (self.next - now).max(0.0) };
        self.count(n);
        wait
    }

    /// When the next one may pass.
    pub fn next(&self) -> f64 {
        self.next
    }

    fn catch_up(&mut self, now: f64) {
        if now - self.next > self.buffer {
            self.next = now;
        }
    }

    fn count(&mut self, n: u64) {
        if self.rate > 0.0 {
            self.next += n as f64 / self.rate;
        }
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
    fn bytes_count_as_many_as_they_are() {
        let mut limiter = RateLimiter::new(1000.0, 5.0);
        assert_eq!(limiter.wait_for(500, 100.0), 0.0);
        assert_eq!(limiter.wait_for(2000, 100.0), 0.5);
        assert_eq!(limiter.wait_for(1, 100.0), 2.5);
    }
}
