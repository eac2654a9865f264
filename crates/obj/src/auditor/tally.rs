//! What a pass counts, and how it says so: log lines and recon figures in Swift's words.

use serde_json::{Map, Value, json};

use service::log_format::ctime;

use crate::diskfile::AuditorType;

/// A pass that took no time has been that fast.
const SHORTEST: f64 = 0.000_001;

/// Counts since the last report and of the whole pass. Times are seconds since the epoch.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    auditor_type: AuditorType,
    /// Of the devices that this pass is for, or empty.
    description: String,
    /// The devices' names in one word, if the pass is for some only.
    recon_key: String,
    begin: f64,
    reported: f64,
    pub passes: u64,
    pub quarantines: u64,
    pub errors: u64,
    pub bytes: u64,
    pub files: u64,
    /// Seconds spent on objects, pauses to keep the rates included.
    pub auditing: f64,
    total_bytes: u64,
    total_quarantines: u64,
    total_errors: u64,
}

impl Tally {
    pub fn new(auditor_type: AuditorType, devices: &[String], now: f64) -> Self {
        let mut sorted: Vec<&str> = devices.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        let parallel = if auditor_type == AuditorType::All { " - parallel, " } else { " - " };
        Tally {
            auditor_type,
            description: if sorted.is_empty() {
                String::new()
            } else {
                parallel.to_owned() + &sorted.join(",")
            },
            recon_key: sorted.concat(),
            begin: now,
            reported: now,
            passes: 0,
            quarantines: 0,
            errors: 0,
            bytes: 0,
            files: 0,
            auditing: 0.0,
            total_bytes: 0,
            total_quarantines: 0,
            total_errors: 0,
        }
    }

    fn shown_type(&self) -> String {
        format!("{}{}", self.auditor_type.name(), self.description)
    }

    pub fn begin_line(&self, mode: &str) -> String {
        format!("Begin object audit \"{mode}\" mode ({})", self.shown_type())
    }

    /// What was found since the last report.
    pub fn report_line(&self, now: f64) -> String {
        let since = (now - self.reported).max(SHORTEST);
        let total = (now - self.begin).max(SHORTEST);
        format!(
            "Object audit ({}). Since {}: Locally: {} passed, {} quarantined, {} errors, files/sec: {:.2}, \
             bytes/sec: {:.2}, Total time: {:.2}, Auditing time: {:.2}, Rate: {:.2}",
            self.shown_type(),
            ctime(self.reported),
            self.passes,
            self.quarantines,
            self.errors,
            self.passes as f64 / since,
            self.bytes as f64 / since,
            now - self.begin,
            self.auditing,
            self.auditing / total
        )
    }

    /// The same for recon: its key and value.
    pub fn recon(&self) -> (String, Value) {
        let figures = json!({
            "errors": self.errors,
            "passes": self.passes,
            "quarantined": self.quarantines,
            "bytes_processed": self.bytes,
            "start_time": self.reported,
            "audit_time": self.auditing,
        });
        let value = match self.recon_key.as_str() {
            "" => figures,
            devices => json!({ devices: figures }),
        };
        (recon_key(self.auditor_type), value)
    }

    /// Begins counting anew, once reported.
    pub fn reset(&mut self, now: f64) {
        self.total_bytes += std::mem::take(&mut self.bytes);
        self.total_quarantines += std::mem::take(&mut self.quarantines);
        self.total_errors += std::mem::take(&mut self.errors);
        self.passes = 0;
        self.reported = now;
    }

    pub fn end_line(&self, mode: &str, now: f64) -> String {
        let elapsed = (now - self.begin).max(SHORTEST);
        format!(
            "Object audit ({}) \"{mode}\" mode completed: {elapsed:.2}s. Total quarantined: {}, Total errors: {}, \
             Total files/sec: {:.2}, Total bytes/sec: {:.2}, Auditing time: {:.2}, Rate: {:.2}",
            self.shown_type(),
            self.total_quarantines + self.quarantines,
            self.total_errors + self.errors,
            self.files as f64 / elapsed,
            (self.total_bytes + self.bytes) as f64 / elapsed,
            self.auditing,
            self.auditing / elapsed
        )
    }
}

/// `object_auditor_stats_ALL`, `object_auditor_stats_ZBF`.
pub(super) fn recon_key(auditor_type: AuditorType) -> String {
    format!("object_auditor_stats_{}", auditor_type.name())
}

/// How many objects are no larger than each of `object_size_stats`.
#[derive(Clone, Debug)]
pub(super) struct SizeStats {
    /// Ascending.
    buckets: Vec<(i64, u64)>,
    over: u64,
}

impl SizeStats {
    pub fn new(mut sizes: Vec<i64>) -> Self {
        sizes.sort_unstable();
        sizes.dedup();
        SizeStats { buckets: sizes.into_iter().map(|size| (size, 0)).collect(), over: 0 }
    }

    pub fn record(&mut self, size: u64) {
        let bucket = self.buckets.iter_mut().find(|(limit, _)| i128::from(size) <= i128::from(*limit));
        *bucket.map_or(&mut self.over, |(_, count)| count) += 1;
    }

    /// As Python's `json.dumps` puts it; `None` without any sizes.
    pub fn line(&self) -> Option<String> {
        if self.buckets.is_empty() {
            return None;
        }
        let counts = self.buckets.iter().map(|(size, count)| format!("\"{size}\": {count}, "));
        Some(format!("Object audit stats: {{{}\"OVER\": {}}}", counts.collect::<String>(), self.over))
    }
}

/// What removes a key from the recon cache.
pub(super) fn cleared() -> Value {
    Value::Object(Map::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    // The lines are those that swift-object-auditor logs for the same figures.
    #[test]
    fn lines_are_swifts() {
        let mut tally = Tally::new(AuditorType::All, &[], 1_795_361_487.0);
        assert_eq!(tally.begin_line("once"), "Begin object audit \"once\" mode (ALL)");
        (tally.passes, tally.quarantines, tally.bytes, tally.files) = (10, 2, 500, 10);
        tally.auditing = 1.5;
        assert_eq!(
            tally.report_line(1_795_361_492.0),
            "Object audit (ALL). Since Sun Nov 22 15:31:27 2026: Locally: 10 passed, 2 quarantined, 0 errors, \
             files/sec: 2.00, bytes/sec: 100.00, Total time: 5.00, Auditing time: 1.50, Rate: 0.30"
        );
        tally.reset(1_795_361_492.0);
        tally.errors = 1;
        assert_eq!(
            tally.end_line("once", 1_795_361_497.0),
            "Object audit (ALL) \"once\" mode completed: 10.00s. Total quarantined: 2, Total errors: 1, \
             Total files/sec: 1.00, Total bytes/sec: 50.00, Auditing time: 1.50, Rate: 0.15"
        );
    }

    #[test]
    fn devices_are_told_in_the_line_and_in_recon() {
        let devices = ["sdb".to_owned(), "sda".to_owned()];
        let tally = Tally::new(AuditorType::All, &devices, 0.0);
        assert!(tally.begin_line("forever").ends_with("(ALL - parallel, sda,sdb)"));
        let (key, value) = tally.recon();
        assert_eq!((key.as_str(), &value["sdasdb"]["passes"]), ("object_auditor_stats_ALL", &json!(0)));
        let zero_byte = Tally::new(AuditorType::ZeroByte, &devices, 0.0);
        assert!(zero_byte.begin_line("forever").ends_with("(ZBF - sda,sdb)"));
        assert_eq!(Tally::new(AuditorType::ZeroByte, &[], 0.0).recon().1["errors"], 0);
    }

    #[test]
    fn sizes_fall_into_the_smallest_bucket_that_holds_them() {
        let mut stats = SizeStats::new(vec![1024, 10, 100]);
        [5, 20, 10_000].into_iter().for_each(|size| stats.record(size));
        let line = r#"Object audit stats: {"10": 1, "100": 1, "1024": 0, "OVER": 1}"#;
        assert_eq!(stats.line().as_deref(), Some(line));
        assert_eq!(SizeStats::new(Vec::new()).line(), None);
    }
}
