//! Swift's statsd client: counters and timings by UDP, one datagram each.
//!
//! `log_statsd_host`, `log_statsd_port`, `log_statsd_metric_prefix`, `log_statsd_default_sample_rate` and
//! `log_statsd_sample_rate_factor` are Swift's; a metric is named `[base_prefix.][tail_prefix.]metric`, the tail being
//! the name of the service (`object-server.GET.timing`). Without a host nothing is done at all. A datagram that
//! cannot be sent at once is lost, as statsd accepts. A host name is looked up on a thread of its own, at the start and
//! then at most once a minute while metrics are sent.
//!
//! [`LabeledStatsd`] is the client of `statsd_label_mode`: metrics with labels instead of long names, in the form that
//! Graphite, DogStatsD, InfluxDB or Librato understands.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use parking_lot::Mutex;

use crate::rng::Rng;

const LOOK_UP_AGAIN: Duration = Duration::from_secs(60);

/// Clones share one socket.
#[derive(Clone)]
pub struct Statsd {
    client: Option<Arc<Client>>,
    prefix: Arc<str>,
}

struct Client {
    host: String,
    port: u16,
    base_prefix: String,
    default_sample_rate: f64,
    sample_rate_factor: f64,
    rng: Rng,
    target: Arc<Mutex<Resolved>>,
    socket_v4: Option<UdpSocket>,
    socket_v6: Option<UdpSocket>,
}

#[derive(Default)]
struct Resolved {
    address: Option<SocketAddr>,
    asked: Option<Instant>,
}

impl Statsd {
    /// Sends nothing.
    pub fn disabled() -> Self {
        Statsd { client: None, prefix: "".into() }
    }

    /// As the `log_statsd_*` options say, metrics named below `tail_prefix`.
    pub fn from_section(section: &Section, tail_prefix: &str, rng: &Rng) -> Result<Self, ConfigError> {
        Self::from_options(section, "log_statsd_", tail_prefix, rng)
    }

    /// The same for options with other names: `access_log_statsd_` of the proxy's access log.
    pub fn from_options(
        section: &Section,
        options: &str,
        tail_prefix: &str,
        rng: &Rng,
    ) -> Result<Self, ConfigError> {
        let wanted = section.bool("statsd_emit_legacy", true)?;
        let client = Client::from_options(section, options, rng, wanted)?;
        Ok(Statsd { client: client.map(Arc::new), prefix: "".into() }.with_prefix(tail_prefix))
    }

    /// The same client, metrics named below another `tail_prefix`.
    pub fn with_prefix(&self, tail_prefix: &str) -> Self {
        let base = self.client.as_ref().map_or("", |client| &client.base_prefix);
        let parts: Vec<&str> = [base, tail_prefix].into_iter().filter(|part| !part.is_empty()).collect();
        let prefix = if parts.is_empty() { String::new() } else { parts.join(".") + "." };
        Statsd { client: self.client.clone(), prefix: prefix.into() }
    }

    pub fn is_enabled(&self) -> bool {
        self.client.is_some()
    }

    pub fn increment(&self, metric: &str) {
        self.update_stats(metric, 1);
    }

    pub fn decrement(&self, metric: &str) {
        self.update_stats(metric, -1);
    }

    pub fn update_stats(&self, metric: &str, value: i64) {
        self.send(metric, value, "c", None);
    }

    pub fn update_stats_sampled(&self, metric: &str, value: i64, sample_rate: f64) {
        self.send(metric, value, "c", Some(sample_rate));
    }

    pub fn timing(&self, metric: &str, took: Duration) {
        self.timing_sampled(metric, took, None);
    }

    pub fn timing_since(&self, metric: &str, start: Instant) {
        self.timing_sampled(metric, start.elapsed(), None);
    }

    /// `sample_rate` None is the configured default rate.
    pub fn timing_sampled(&self, metric: &str, took: Duration, sample_rate: Option<f64>) {
        if self.client.is_some() {
            self.send(metric, format_ms(took.as_secs_f64() * 1000.0), "ms", sample_rate);
        }
    }

    /// Milliseconds per kB, as Swift's `transfer_rate`.
    pub fn transfer_rate(&self, metric: &str, took: Duration, bytes: u64, sample_rate: Option<f64>) {
        if bytes > 0 && self.client.is_some() {
            let value = took.as_secs_f64() * 1000.0 / bytes as f64 * 1000.0;
            self.send(metric, format_ms(value), "ms", sample_rate);
        }
    }

    fn send(&self, metric: &str, value: impl std::fmt::Display, kind: &str, sample_rate: Option<f64>) {
        let Some(client) = &self.client else { return };
        if let Some(rate) = client.sampled(sample_rate) {
            client.send(line(&format!("{}{metric}", self.prefix), value, kind, rate).as_bytes());
        }
    }
}

fn line(metric: &str, value: impl std::fmt::Display, kind: &str, rate: f64) -> String {
    let mut line = format!("{metric}:{value}|{kind}");
    if rate < 1.0 {
        line.push_str(&format!("|@{rate:?}"));
    }
    line
}

/// Metrics with labels.
#[derive(Clone)]
pub struct LabeledStatsd {
    client: Option<Arc<Client>>,
    mode: LabelMode,
    /// What `statsd_user_label_NAME` says, as `user_NAME`.
    user_labels: Arc<[(String, String)]>,
}

#[derive(Copy, Clone, Debug, PartialEq)]
enum LabelMode {
    Disabled,
    DogStatsd,
    Graphite,
    InfluxDb,
    Librato,
}

const LABEL_MODES: [(&str, LabelMode); 5] = [
    ("disabled", LabelMode::Disabled),
    ("librato", LabelMode::Librato),
    ("influxdb", LabelMode::InfluxDb),
    ("graphite", LabelMode::Graphite),
    ("dogstatsd", LabelMode::DogStatsd),
];
const USER_LABEL: &str = "statsd_user_label_";

impl LabeledStatsd {
    pub fn from_section(section: &Section, rng: &Rng) -> Result<Self, ConfigError> {
        let name = section.str("statsd_label_mode", "disabled").to_lowercase();
        let mode = LABEL_MODES.iter().find(|(known, _)| *known == name).map(|(_, mode)| *mode);
        let mode = mode.ok_or_else(|| {
            let names: Vec<_> = LABEL_MODES.iter().map(|(name, _)| *name).collect();
            section.error("statsd_label_mode", format!("expected one of {}", names.join(", ")))
        })?;
        let mut user_labels = Vec::new();
        let options: Vec<String> = section.iter().map(|(option, _)| option.to_owned()).collect();
        for option in options {
            let Some(label) = option.strip_prefix(USER_LABEL) else { continue };
            let value = section.str(&option, "");
            let is_word = |text: &str, more: &str| {
                text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || more.contains(c))
            };
            if !is_word(label, "") || !is_word(&value, ".") {
                let problem = "expected letters, digits and _ alone; in the value also .";
                return Err(section.error(&option, problem));
            }
            user_labels.push((format!("user_{label}"), value));
        }
        let client = Client::from_options(section, "log_statsd_", rng, mode != LabelMode::Disabled)?;
        Ok(Self { client: client.map(Arc::new), mode, user_labels: user_labels.into() })
    }

    pub fn is_enabled(&self) -> bool {
        self.client.is_some()
    }

    pub fn timing(&self, metric: &str, took: Duration, labels: &[(&str, String)]) {
        self.send(metric, &format_ms(took.as_secs_f64() * 1000.0), "ms", labels);
    }

    pub fn increment(&self, metric: &str, labels: &[(&str, String)]) {
        self.send(metric, "1", "c", labels);
    }

    fn send(&self, metric: &str, value: &str, kind: &str, labels: &[(&str, String)]) {
        let Some(client) = &self.client else { return };
        let Some(rate) = client.sampled(None) else { return };
        let user = self.user_labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut all: BTreeMap<&str, &str> = user.collect();
        all.extend(labels.iter().map(|(name, value)| (*name, value.as_str())));
        let line = self.mode.line(metric, value, kind, rate, &all);
        client.send(line.as_bytes());
    }
}

impl LabelMode {
    fn line(self, metric: &str, value: &str, kind: &str, rate: f64, labels: &BTreeMap<&str, &str>) -> String {
        let joined = |equals: &str, comma: &str| {
            labels
                .iter()
                .map(|(name, value)| format!("{name}{equals}{value}"))
                .collect::<Vec<_>>()
                .join(comma)
        };
        let named = |metric: String| line(&metric, value, kind, rate);
        match self {
            _ if labels.is_empty() => named(metric.to_owned()),
            LabelMode::Disabled => String::new(),
            LabelMode::DogStatsd => format!("{}|#{}", named(metric.to_owned()), joined(":", ",")),
            LabelMode::Graphite => named(format!("{metric};{}", joined("=", ";"))),
            LabelMode::InfluxDb => named(format!("{metric},{}", joined("=", ","))),
            LabelMode::Librato => named(format!("{metric}#{}", joined("=", ","))),
        }
    }
}

impl Client {
    /// `None` without a host, or if nothing is to be sent.
    fn from_options(
        section: &Section,
        options: &str,
        rng: &Rng,
        wanted: bool,
    ) -> Result<Option<Self>, ConfigError> {
        let client = Client {
            host: section.str(&format!("{options}host"), ""),
            port: section.int(&format!("{options}port"), 8125u16)?,
            base_prefix: section.str(&format!("{options}metric_prefix"), ""),
            default_sample_rate: section.float(&format!("{options}default_sample_rate"), 1.0)?,
            sample_rate_factor: section.float(&format!("{options}sample_rate_factor"), 1.0)?,
            rng: rng.clone(),
            target: Arc::default(),
            socket_v4: None,
            socket_v6: None,
        };
        if client.host.is_empty() || !wanted {
            return Ok(None);
        }
        client.target();
        let (socket_v4, socket_v6) = (datagram_socket("0.0.0.0:0"), datagram_socket("[::]:0"));
        Ok(Some(Client { socket_v4, socket_v6, ..client }))
    }

    /// The rate to send a metric at; `None` if this one is left out.
    fn sampled(&self, sample_rate: Option<f64>) -> Option<f64> {
        let rate = sample_rate.unwrap_or(self.default_sample_rate) * self.sample_rate_factor;
        (rate >= 1.0 || self.rng.next_f64() < rate).then_some(rate)
    }

    fn send(&self, datagram: &[u8]) {
        let Some(target) = self.target() else { return };
        let socket = if target.is_ipv4() { &self.socket_v4 } else { &self.socket_v6 };
        if let Some(socket) = socket {
            // A lost metric is a lost metric.
            let _ = socket.send_to(datagram, target);
        }
    }

    fn target(&self) -> Option<SocketAddr> {
        let mut target = self.target.lock();
        if let (None, Ok(ip)) = (target.address, self.host.parse::<IpAddr>()) {
            target.address = Some(SocketAddr::new(ip, self.port));
        }
        let is_name = self.host.parse::<IpAddr>().is_err();
        if is_name && target.asked.is_none_or(|at| at.elapsed() >= LOOK_UP_AGAIN) {
            target.asked = Some(Instant::now());
            self.look_up();
        }
        target.address
    }

    /// Swift: statsd_client prefers IPv4.
    fn look_up(&self) {
        let (host, port, target) = (self.host.clone(), self.port, Arc::clone(&self.target));
        let looked_up = move || {
            let addresses: Vec<_> = (host.as_str(), port).to_socket_addrs().into_iter().flatten().collect();
            let best = addresses.iter().find(|a| a.is_ipv4()).or(addresses.first()).copied();
            if best.is_some() {
                target.lock().address = best;
            }
        };
        // Without a thread the next minute tries again.
        let _ = std::thread::Builder::new().name("statsd-dns".to_owned()).spawn(looked_up);
    }
}

fn datagram_socket(local: &str) -> Option<UdpSocket> {
    let socket = UdpSocket::bind(local).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// As Python prints `round(ms, 4)`.
fn format_ms(ms: f64) -> String {
    format!("{:?}", (ms * 10_000.0).round() / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::Conf;

    fn daemon(options: &str) -> (Statsd, UdpSocket) {
        let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = daemon.local_addr().unwrap().port();
        let text = format!("[s]\nlog_statsd_host = 127.0.0.1\nlog_statsd_port = {port}\n{options}");
        let section = Conf::parse(&text, "test.conf").unwrap().section("s").unwrap();
        (Statsd::from_section(&section, "object-server", &Rng::seeded(1)).unwrap(), daemon)
    }

    fn received(daemon: &UdpSocket) -> String {
        let mut buffer = [0; 512];
        let n = daemon.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn metrics_carry_prefix_value_and_kind() {
        let (statsd, daemon) = daemon("log_statsd_metric_prefix = sto1\n");
        statsd.increment("async_pendings");
        assert_eq!(received(&daemon), "sto1.object-server.async_pendings:1|c");
        statsd.decrement("x");
        assert_eq!(received(&daemon), "sto1.object-server.x:-1|c");
        statsd.timing("GET.timing", Duration::from_nanos(12_345_678));
        assert_eq!(received(&daemon), "sto1.object-server.GET.timing:12.3457|ms");
        statsd.with_prefix("").timing("GET.timing", Duration::from_millis(5));
        assert_eq!(received(&daemon), "sto1.GET.timing:5.0|ms");
        statsd.transfer_rate("rate", Duration::from_millis(5), 2000, None);
        assert_eq!(received(&daemon), "sto1.object-server.rate:2.5|ms");
    }

    #[test]
    fn a_sample_rate_is_said_and_kept() {
        let (statsd, daemon) = daemon("log_statsd_sample_rate_factor = 0.5\n");
        daemon.set_nonblocking(true).unwrap();
        let mut count = 0;
        let mut buffer = [0; 512];
        for _ in 0..1000 {
            statsd.timing_sampled("HEAD.timing", Duration::from_millis(1), Some(0.8));
            while let Ok(n) = daemon.recv(&mut buffer) {
                assert_eq!(&buffer[..n], b"object-server.HEAD.timing:1.0|ms|@0.4");
                count += 1;
            }
        }
        assert!((300..500).contains(&count), "{count} of 1000 at a rate of 0.4");
    }

    #[test]
    fn labels_are_written_as_each_collector_reads_them() {
        for (mode, expected) in [
            ("DogStatsD", "m:5.0|ms|#account:a,status:200,user_x:y.1"),
            ("graphite", "m;account=a;status=200;user_x=y.1:5.0|ms"),
            ("influxdb", "m,account=a,status=200,user_x=y.1:5.0|ms"),
            ("librato", "m#account=a,status=200,user_x=y.1:5.0|ms"),
        ] {
            let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
            let port = daemon.local_addr().unwrap().port().to_string();
            let options = [
                ("log_statsd_host", "127.0.0.1"),
                ("log_statsd_port", &port),
                ("statsd_label_mode", mode),
                ("statsd_emit_legacy", "no"),
                ("statsd_user_label_x", "y.1"),
            ];
            let section = Section::from_pairs("app:object-server", options);
            let labeled = LabeledStatsd::from_section(&section, &Rng::seeded(1)).unwrap();
            let labels = [("status", "200".to_owned()), ("account", "a".to_owned())];
            labeled.timing("m", Duration::from_millis(5), &labels);
            assert_eq!(received(&daemon), expected);
        }
        for bad in
            [("statsd_label_mode", "x"), ("statsd_user_label_a-b", "x"), ("statsd_user_label_a", "x y")]
        {
            let section = Section::from_pairs("app:object-server", [bad]);
            assert!(LabeledStatsd::from_section(&section, &Rng::seeded(1)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn without_a_host_nothing_is_sent() {
        let section = Conf::parse("[s]\n", "test.conf").unwrap().section("s").unwrap();
        let statsd = Statsd::from_section(&section, "object-server", &Rng::seeded(1)).unwrap();
        assert!(!statsd.is_enabled());
        statsd.increment("nothing");
    }
}
