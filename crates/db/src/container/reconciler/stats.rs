//! What a pass has come to, by the names of Swift's counts, told once a minute and at its end.

use indexmap::IndexMap;
use parking_lot::Mutex;
use service::Logger;
use service::logs::Level;

/// Seconds between two lines.
const REPORT_INTERVAL: f64 = 60.0;

pub(super) struct Stats {
    logger: Logger,
    inner: Mutex<Inner>,
}

struct Inner {
    /// In the order of their first time.
    counts: IndexMap<&'static str, u64>,
    last_report: f64,
}

impl Stats {
    pub fn new(logger: Logger, now: f64) -> Self {
        Stats { logger, inner: Mutex::new(Inner { counts: IndexMap::new(), last_report: now }) }
    }

    /// Says what has happened, and counts it under its name.
    pub fn log(&self, level: Level, metric: &'static str, message: std::fmt::Arguments<'_>) {
        self.logger.log(level, format_args!("{metric}: {message}"));
        *self.inner.lock().counts.entry(metric).or_default() += 1;
    }

    pub fn debug(&self, metric: &'static str, message: std::fmt::Arguments<'_>) {
        self.log(Level::Debug, metric, message);
    }

    pub fn report_if_due(&self, now: f64) {
        if now - self.inner.lock().last_report > REPORT_INTERVAL {
            self.report(now);
        }
    }

    pub fn report(&self, now: f64) {
        let mut inner = self.inner.lock();
        inner.last_report = now;
        let counts: Vec<_> = inner.counts.iter().map(|(name, count)| format!("'{name}': {count}")).collect();
        self.logger.info(format_args!("Reconciler Stats: {{{}}}", counts.join(", ")));
    }

    pub fn clear(&self) {
        self.inner.lock().counts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_as_python_shows_them() {
        let (logger, lines) = Logger::memory();
        let stats = Stats::new(logger, 100.0);
        stats.report_if_due(160.0);
        assert!(lines.all().is_empty());
        stats.log(Level::Warning, "retry", format_args!("must be"));
        stats.debug("noop_object", format_args!("x"));
        stats.debug("retry", format_args!("y"));
        stats.report_if_due(160.5);
        stats.report_if_due(200.0);
        stats.clear();
        stats.report(200.0);
        let lines: Vec<_> =
            lines.all().into_iter().map(|(level, line)| format!("{} {line}", level.name())).collect();
        assert_eq!(
            lines,
            [
                "WARNING test: retry: must be",
                "DEBUG test: noop_object: x",
                "DEBUG test: retry: y",
                "INFO test: Reconciler Stats: {'retry': 2, 'noop_object': 1}",
                "INFO test: Reconciler Stats: {}"
            ]
        );
    }
}
