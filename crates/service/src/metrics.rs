//! What a service counts, as Prometheus text at `/metrics`.
//!
//! Every server counts its requests by method and status and times them; daemons add gauges. A [`Metrics`] is a
//! handle with fixed labels on a shared registry: the servers and daemons of one node share a registry, each under
//! its own `server` label. Handles of single series ([`Counter`], [`Gauge`], [`Histogram`]) are looked up once and
//! kept; after that a count is one atomic addition.
//!
//! Names follow Prometheus (`swift_requests_total`), since Swift itself has none; its statsd names live in
//! `statsd.rs`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

/// Upper bounds of the latency histogram, in seconds.
const LATENCY_BOUNDS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// A made-up method in a request cannot grow the registry: beyond this many pairs it is counted as `OTHER`.
const MAX_REQUEST_SERIES: usize = 256;

#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    labels: Arc<str>,
    requests: Arc<RwLock<HashMap<(String, u16), RequestSeries>>>,
}

#[derive(Default)]
struct Registry {
    families: RwLock<BTreeMap<&'static str, Family>>,
}

struct Family {
    help: &'static str,
    kind: Kind,
    series: BTreeMap<String, Series>,
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone)]
enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

#[derive(Clone)]
struct RequestSeries {
    total: Counter,
    seconds: Histogram,
}

/// Only goes up.
#[derive(Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
#[derive(Clone, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often something took how long.
#[derive(Clone, Default)]
pub struct Histogram(Arc<HistogramData>);

#[derive(Default)]
struct HistogramData {
    buckets: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < seconds);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        Metrics { registry: Arc::default(), labels: "".into(), requests: Arc::default() }
    }

    /// The same registry, every series of the new handle labelled in addition.
    pub fn scoped(&self, label: &str, value: &str) -> Metrics {
        let labels = join_labels(&self.labels, &[(label, value)]);
        Metrics { registry: Arc::clone(&self.registry), labels: labels.into(), requests: Arc::default() }
    }

    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Counter {
        match self.series(name, help, Kind::Counter, labels, || Series::Counter(Counter::default())) {
            Series::Counter(counter) => counter,
            _ => Counter::default(),
        }
    }

    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        match self.series(name, help, Kind::Gauge, labels, || Series::Gauge(Gauge::default())) {
            Series::Gauge(gauge) => gauge,
            _ => Gauge::default(),
        }
    }

    pub fn histogram(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Histogram {
        match self.series(name, help, Kind::Histogram, labels, || Series::Histogram(Histogram::default())) {
            Series::Histogram(histogram) => histogram,
            _ => Histogram::default(),
        }
    }

    /// Counts one answered request.
    pub fn observe_request(&self, method: &str, status: u16, took: Duration) {
        let known = self.requests.read().get(&(method, status) as &dyn RequestKey).cloned();
        let series = known.unwrap_or_else(|| self.new_request_series(method, status));
        series.total.inc();
        series.seconds.observe(took);
    }

    fn new_request_series(&self, method: &str, status: u16) -> RequestSeries {
        let mut requests = self.requests.write();
        let method = if requests.len() < MAX_REQUEST_SERIES { method } else { "OTHER" };
        let status_text = status.to_string();
        let series = RequestSeries {
            total: self.counter(
                "swift_requests_total",
                "Requests answered, by method and status.",
                &[("method", method), ("status", &status_text)],
            ),
            seconds: self.histogram(
                "swift_request_seconds",
                "Time from a request's head to the head of its answer.",
                &[("method", method)],
            ),
        };
        requests.insert((method.to_owned(), status), series.clone());
        series
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&str, &str)],
        make: impl FnOnce() -> Series,
    ) -> Series {
        let labels = join_labels(&self.labels, labels);
        let mut families = self.registry.families.write();
        let family = families.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        debug_assert!(family.kind == kind, "{name} is of two kinds");
        family.series.entry(labels).or_insert_with(make).clone()
    }

    /// All series of the registry in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (name, family) in self.registry.families.read().iter() {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
            for (labels, series) in &family.series {
                render_series(&mut out, name, labels, series);
            }
        }
        out
    }
}

fn render_series(out: &mut String, name: &str, labels: &str, series: &Series) {
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _ = match series {
        Series::Counter(counter) => writeln!(out, "{name}{braced} {}", counter.get()),
        Series::Gauge(gauge) => writeln!(out, "{name}{braced} {}", gauge.get()),
        Series::Histogram(histogram) => {
            let mut sum = 0;
            for (index, bucket) in histogram.0.buckets.iter().enumerate() {
                sum += bucket.load(Ordering::Relaxed);
                let bound = LATENCY_BOUNDS.get(index).map_or("+Inf".to_owned(), f64::to_string);
                let labels = join_labels(labels, &[("le", &bound)]);
                let _ = writeln!(out, "{name}_bucket{{{labels}}} {sum}");
            }
            let seconds = histogram.0.nanos.load(Ordering::Relaxed) as f64 / 1e9;
            writeln!(out, "{name}_sum{braced} {seconds}\n{name}_count{braced} {sum}")
        }
    };
}

fn join_labels(base: &str, labels: &[(&str, &str)]) -> String {
    let mut out = base.to_owned();
    for (label, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{label}=\"{value}\"");
    }
    out
}

/// Looks up `(String, u16)` by `(&str, u16)` without making a `String` on every request.
trait RequestKey {
    fn key(&self) -> (&str, u16);
}

impl RequestKey for (String, u16) {
    fn key(&self) -> (&str, u16) {
        (&self.0, self.1)
    }
}

impl RequestKey for (&str, u16) {
    fn key(&self) -> (&str, u16) {
        *self
    }
}

impl<'a> std::borrow::Borrow<dyn RequestKey + 'a> for (String, u16) {
    fn borrow(&self) -> &(dyn RequestKey + 'a) {
        self
    }
}

impl std::hash::Hash for dyn RequestKey + '_ {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialEq for dyn RequestKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for dyn RequestKey + '_ {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_server_method_and_status() {
        let node = Metrics::new();
        let object = node.scoped("server", "object-server");
        let account = node.scoped("server", "account-server");
        object.observe_request("GET", 200, Duration::from_millis(3));
        object.observe_request("GET", 200, Duration::from_micros(100));
        object.observe_request("PUT", 201, Duration::from_millis(3));
        account.observe_request("GET", 404, Duration::ZERO);
        let text = node.render();
        for line in [
            "# TYPE swift_requests_total counter",
            "swift_requests_total{server=\"object-server\",method=\"GET\",status=\"200\"} 2",
            "swift_requests_total{server=\"object-server\",method=\"PUT\",status=\"201\"} 1",
            "swift_requests_total{server=\"account-server\",method=\"GET\",status=\"404\"} 1",
            "swift_request_seconds_bucket{server=\"object-server\",method=\"GET\",le=\"0.0002\"} 1",
            "swift_request_seconds_bucket{server=\"object-server\",method=\"GET\",le=\"0.005\"} 2",
            "swift_request_seconds_bucket{server=\"object-server\",method=\"GET\",le=\"+Inf\"} 2",
            "swift_request_seconds_sum{server=\"object-server\",method=\"GET\"} 0.0031",
            "swift_request_seconds_count{server=\"object-server\",method=\"GET\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn a_gauge_shows_its_last_value_and_labels_are_escaped() {
        let metrics = Metrics::new();
        let gauge = metrics.gauge("swift_daemon_progress", "Done.", &[("daemon", "a\"b\\")]);
        gauge.set(5);
        gauge.add(-7);
        assert!(metrics.render().contains("swift_daemon_progress{daemon=\"a\\\"b\\\\\"} -2\n"));
    }

    #[test]
    fn made_up_methods_do_not_grow_the_registry_without_bound() {
        let metrics = Metrics::new();
        for n in 0..MAX_REQUEST_SERIES + 50 {
            metrics.observe_request(&format!("M{n}"), 405, Duration::ZERO);
        }
        assert!(metrics.requests.read().len() <= MAX_REQUEST_SERIES + 1);
        assert!(metrics.render().contains("method=\"OTHER\""));
    }
}
