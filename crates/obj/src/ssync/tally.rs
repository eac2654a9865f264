//! How many subrequests of a session have failed, and how many may.

use std::collections::BTreeMap;

/// How many subrequests may fail before the rest is not worth the time.
#[derive(Debug, Clone, Copy)]
pub struct FailureLimits {
    pub threshold: u64,
    pub ratio: f64,
}

impl FailureLimits {
    fn exceeded(&self, failures: u64, successes: u64) -> bool {
        failures >= self.threshold && (successes == 0 || failures as f64 / successes as f64 > self.ratio)
    }
}

/// How subrequests ended, in the order in which they came: several are at work at a time, and Swift, which has one, gives up
/// when so many have failed of those before.
#[derive(Default)]
pub(super) struct Tally {
    successes: u64,
    failures: u64,
    /// Subrequests that have been read.
    begun: u64,
    /// Those that ended before one that came before them: whether they succeeded.
    ahead: BTreeMap<u64, bool>,
}

impl Tally {
    /// The number of the next subrequest.
    pub(super) fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun - 1
    }

    /// Counts one, and those that waited for it; no more once there were too many failures.
    pub(super) fn end(&mut self, number: u64, succeeded: bool, limits: &FailureLimits) {
        self.ahead.insert(number, succeeded);
        while !limits.exceeded(self.failures, self.successes)
            && let Some(succeeded) = self.ahead.remove(&(self.successes + self.failures))
        {
            *(if succeeded { &mut self.successes } else { &mut self.failures }) += 1;
        }
    }

    /// What is to be said of failures, if there were any.
    pub(super) fn verdict(&self) -> Result<(), String> {
        match self.failures {
            0 => Ok(()),
            failures => {
                Err(format!("ERROR: With :UPDATES: {failures} failures to {} successes", self.successes))
            }
        }
    }

    /// Fails when the rest is not worth the time.
    pub(super) fn check(&self, limits: &FailureLimits) -> Result<(), String> {
        match limits.exceeded(self.failures, self.successes) {
            true => Err(format!("Too many {} failures to {} successes", self.failures, self.successes)),
            false => Ok(()),
        }
    }
}
