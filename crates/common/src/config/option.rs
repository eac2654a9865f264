//! A section of a configuration and the typed readers of its options.
//!
//! A section remembers what was asked of it. An option that was set but never asked for is unknown: a misspelling,
//! or something that Martlet doesn't have. Clones share that memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::ConfigError;
use super::ini::{DEFAULT_SECTION, Options};

/// Options of a section over those of DEFAULT.
#[derive(Clone, Debug)]
pub struct Section(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: String,
    name: String,
    values: Options,
    /// Names that this section sets itself.
    own: BTreeSet<String>,
    /// Set here, but DEFAULT sets them too and wins (see `paste`).
    shadowed: Vec<String>,
    /// Options that another section sets.
    elsewhere: BTreeMap<String, Place>,
    asked: Asked,
}

/// Where an option stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub file: String,
    pub section: String,
}

/// Names of options that somebody has read, whether they were set or not.
type Asked = Arc<Mutex<BTreeSet<String>>>;

/// `fallocate_reserve`: how much of a filesystem stays free.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum FallocateReserve {
    Bytes(u64),
    /// 0 to 100
    Percent(f64),
}

impl FallocateReserve {
    /// Swift reads "1%" as a percentage and "10485760" as bytes; zero switches the check off.
    pub fn parse(value: &str) -> Option<Self> {
        match value.strip_suffix('%') {
            Some(percent) => parse_float(percent).filter(|p| *p >= 0.0).map(Self::Percent),
            None => parse_int::<i64>(value).map(|bytes| Self::Bytes(bytes.max(0) as u64)),
        }
    }

    pub fn is_zero(&self) -> bool {
        matches!(self, Self::Bytes(0)) || matches!(self, Self::Percent(p) if *p == 0.0)
    }
}

impl Section {
    /// A section made of `pairs` alone: for programs and tests that configure without a file.
    pub fn from_pairs<'a>(name: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let values: Options = pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let own = values.keys().cloned().collect();
        Self::new("(none)", name, values, own, Vec::new(), BTreeMap::new())
    }

    pub(super) fn new(
        file: &str,
        name: &str,
        values: Options,
        own: BTreeSet<String>,
        shadowed: Vec<String>,
        elsewhere: BTreeMap<String, Place>,
    ) -> Self {
        let (file, name, asked) = (file.to_owned(), name.to_owned(), Asked::default());
        Self(Arc::new(Inner { file, name, values, own, shadowed, elsewhere, asked }))
    }

    /// A section whose options are all DEFAULT's.
    pub(super) fn inherited(file: &str, name: &str, values: Options) -> Self {
        Self::layered(file, name, values, |_| false)
    }

    /// A section over DEFAULT.
    pub(super) fn layered(file: &str, name: &str, values: Options, is_own: impl Fn(&str) -> bool) -> Self {
        let (own, defaults): (BTreeSet<_>, BTreeSet<_>) = values.keys().cloned().partition(|o| is_own(o));
        let place = Place { file: file.to_owned(), section: DEFAULT_SECTION.to_owned() };
        let elsewhere = defaults.into_iter().map(|option| (option, place.clone())).collect();
        Self::new(file, name, values, own, Vec::new(), elsewhere)
    }

    pub(super) fn renamed(&self, name: &str) -> Self {
        Self::inherited(&self.0.file, name, self.0.values.clone())
    }

    /// The same with another value of one option. What is asked of either is known to both.
    pub fn with(&self, option: &str, value: &str) -> Self {
        let Inner { file, name, values, own, shadowed, elsewhere, asked } = &*self.0;
        let (file, name, mut values, asked) = (file.clone(), name.clone(), values.clone(), asked.clone());
        values.insert(option.to_owned(), value.to_owned());
        let (own, shadowed, elsewhere) = (own.clone(), shadowed.clone(), elsewhere.clone());
        Self(Arc::new(Inner { file, name, values, own, shadowed, elsewhere, asked }))
    }

    pub fn file(&self) -> &str {
        &self.0.file
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn get(&self, option: &str) -> Option<&str> {
        self.note(option);
        self.0.values.get(option).map(String::as_str)
    }

    /// Every option with its value, in the order of the file, the section's own first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.values.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub fn str(&self, option: &str, default: &str) -> String {
        self.get(option).unwrap_or(default).to_owned()
    }

    /// Swift takes anything that isn't a true value for false; words that are neither are refused here, because
    /// they are typing errors.
    pub fn bool(&self, option: &str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.get(option) else { return Ok(default) };
        if crate::headers::is_true_value(value) {
            return Ok(true);
        }
        let no = ["false", "0", "no", "off", "f", "n", "none", ""];
        if no.iter().any(|n| value.eq_ignore_ascii_case(n)) {
            return Ok(false);
        }
        Err(self.error(option, "expected true or false"))
    }

    /// An integer as Python's `int()` reads it, within the range of `T`.
    pub fn int<T>(&self, option: &str, default: T) -> Result<T, ConfigError>
    where
        T: FromStr + Bounds,
    {
        let Some(value) = self.get(option) else { return Ok(default) };
        parse_int(value).ok_or_else(|| {
            let expected = match parse_int::<i128>(value) {
                Some(_) => format!("expected an integer from {} to {}", T::MIN, T::MAX),
                None => "expected an integer".to_owned(),
            };
            self.error(option, expected)
        })
    }

    pub fn positive_int<T>(&self, option: &str, default: T) -> Result<T, ConfigError>
    where
        T: FromStr + Bounds + PartialOrd + Default,
    {
        let value = self.int(option, default);
        match value {
            Ok(v) if self.get(option).is_none() || v > T::default() => Ok(v),
            _ => Err(self.error(option, "expected an integer greater than 0")),
        }
    }

    /// `auto` or an integer; `None` for auto and when it isn't set.
    pub fn auto_int<T>(&self, option: &str) -> Result<Option<T>, ConfigError>
    where
        T: FromStr + Bounds,
    {
        match self.get(option) {
            None => Ok(None),
            Some(value) if value.eq_ignore_ascii_case("auto") => Ok(None),
            Some(value) => parse_int(value)
                .map(Some)
                .ok_or_else(|| self.error(option, "expected an integer or the word auto")),
        }
    }

    pub fn float(&self, option: &str, default: f64) -> Result<f64, ConfigError> {
        self.float_where(option, default, "expected a number", |_| true)
    }

    pub fn non_negative_float(&self, option: &str, default: f64) -> Result<f64, ConfigError> {
        self.float_where(option, default, "expected a number that isn't negative", |v| v >= 0.0)
    }

    pub fn positive_float(&self, option: &str, default: f64) -> Result<f64, ConfigError> {
        self.float_where(option, default, "expected a number greater than 0", |v| v > 0.0)
    }

    /// 0 to 100 as a fraction of 1.
    pub fn percent(&self, option: &str, default: f64) -> Result<f64, ConfigError> {
        let expected = "expected a number from 0 to 100";
        Ok(self.float_where(option, default, expected, |v| (0.0..=100.0).contains(&v))? / 100.0)
    }

    fn float_where(
        &self,
        option: &str,
        default: f64,
        expected: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<f64, ConfigError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => match parse_float(value) {
                Some(v) if accept(v) => Ok(v),
                _ => Err(self.error(option, expected)),
            },
        }
    }

    /// Seconds, possibly with a fraction.
    pub fn secs(&self, option: &str, default: f64) -> Result<Duration, ConfigError> {
        let expected = "expected a number of seconds";
        let secs = self.float_where(option, default, expected, |v| v >= 0.0)?;
        // Longer than this is for ever; Duration cannot hold every float.
        Ok(Duration::from_secs_f64(secs.min(1e15)))
    }

    /// Comma-separated words; an empty value is an empty list.
    pub fn list(&self, option: &str, default: &str) -> Vec<String> {
        split_list(self.get(option).unwrap_or(default))
    }

    /// A size in bytes, or of the filesystem with `%`.
    pub fn percent_or_bytes(&self, option: &str, default: &str) -> Result<FallocateReserve, ConfigError> {
        FallocateReserve::parse(self.get(option).unwrap_or(default))
            .ok_or_else(|| self.error(option, "expected a number of bytes, or a percentage such as 1%"))
    }

    /// One of `choices`; the first is the default.
    pub fn one_of(&self, option: &str, choices: &[&'static str]) -> Result<&'static str, ConfigError> {
        let value = self.get(option).unwrap_or(choices[0]);
        choices
            .iter()
            .find(|c| **c == value)
            .copied()
            .ok_or_else(|| self.error(option, format!("expected one of {}", choices.join(", "))))
    }

    /// An error over the value of `option`, for checks that no reader here makes. It names the section that sets the
    /// option; this one, if none does.
    pub fn error(&self, option: &str, problem: impl Into<String>) -> ConfigError {
        let value = self.0.values.get(option).map(String::as_str);
        let Place { file, section } = self.place(option);
        ConfigError::in_section(file, section, problem).of_option(option, value)
    }

    pub(super) fn place(&self, option: &str) -> Place {
        let here = || Place { file: self.0.file.clone(), section: self.0.name.clone() };
        self.0.elsewhere.get(option).cloned().unwrap_or_else(here)
    }

    fn note(&self, option: &str) {
        let mut asked = self.0.asked.lock();
        if !asked.contains(option) {
            asked.insert(option.to_owned());
        }
    }

    /// Options which this section sets and nobody has asked for, each with the nearest name that was asked for.
    pub fn unknown_options(&self) -> Vec<(String, Option<String>)> {
        let asked = self.0.asked.lock();
        let unknown = self.0.own.iter().filter(|o| !asked.contains(*o));
        unknown.map(|o| (o.clone(), nearest(o, asked.iter().map(String::as_str)))).collect()
    }

    /// One line for each unknown option and each option that DEFAULT shadows, for the log.
    pub fn warnings(&self) -> Vec<String> {
        let (file, name) = (self.file(), self.name());
        let unknown = self.unknown_options().into_iter().map(|(option, near)| match near {
            Some(near) => format!("{file}: [{name}] {option}: unknown option; did you mean {near}?"),
            None => format!("{file}: [{name}] {option}: unknown option"),
        });
        let shadowed = self.0.shadowed.iter().map(|option| {
            format!("{file}: [{name}] {option}: [DEFAULT] sets it too and wins; write \"set {option}\" to override")
        });
        unknown.chain(shadowed).collect()
    }
}

/// Comma-separated words without the empty ones.
pub fn split_list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned).collect()
}

/// `int(value)` of Python: spaces around it, a sign, single underscores between digits.
pub fn parse_int<T: FromStr>(value: &str) -> Option<T> {
    let digits = value.trim();
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let well_formed =
        unsigned.split('_').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if !well_formed {
        return None;
    }
    digits.replace('_', "").parse().ok()
}

/// `float(value)` of Python, except for NaN.
pub fn parse_float(value: &str) -> Option<f64> {
    let text = value.trim();
    let is_digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let separates = |at: usize| at > 0 && is_digit(at - 1) && is_digit(at + 1);
    if !text.match_indices('_').all(|(at, _)| separates(at)) {
        return None;
    }
    text.replace('_', "").parse().ok().filter(|v: &f64| !v.is_nan())
}

/// The range of an integer type, for messages.
pub trait Bounds {
    const MIN: i128;
    const MAX: i128;
}

macro_rules! bounds {
    ($($t:ty)*) => { $(impl Bounds for $t {
        const MIN: i128 = <$t>::MIN as i128;
        const MAX: i128 = <$t>::MAX as i128;
    })* };
}
bounds!(u8 u16 u32 u64 usize i32 i64);

/// The candidate that is the fewest edits from `name`, if that is few for its length.
pub(super) fn nearest<'a, D: Display>(
    name: &str,
    candidates: impl Iterator<Item = D> + 'a,
) -> Option<String> {
    let limit = (name.chars().count() / 3).clamp(1, 4);
    candidates
        .map(|c| c.to_string())
        .map(|c| (edit_distance(name, &c), c))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// `N` or `N * replicas`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeCount {
    Fixed(usize),
    PerReplica(usize),
}

impl NodeCount {
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        match parts.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [count] => Some(NodeCount::Fixed(count.parse().ok()?)),
            [count, "*", "replicas"] => Some(NodeCount::PerReplica(count.parse().ok()?)),
            _ => None,
        }
    }

    pub fn of(&self, replicas: usize) -> usize {
        match self {
            NodeCount::Fixed(count) => *count,
            NodeCount::PerReplica(count) => count * replicas,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(pairs: &[(&str, &str)]) -> Section {
        Section::from_pairs("app:object-server", pairs.iter().copied())
    }

    #[test]
    fn typed_readers_take_what_python_takes() {
        let s = section(&[
            ("i", " 1_000 "),
            ("neg", "-3"),
            ("f", "1e3"),
            ("yes", "Yes"),
            ("off", "off"),
            ("l", " a, b ,,c"),
            ("empty", ""),
            ("p", "1.5%"),
            ("b", "10485760"),
            ("auto", "Auto"),
        ]);
        assert_eq!(s.int("i", 0u32).unwrap(), 1000);
        assert_eq!(s.int("neg", 0i64).unwrap(), -3);
        assert_eq!(s.int("unset", 7usize).unwrap(), 7);
        assert_eq!(s.float("f", 0.0).unwrap(), 1000.0);
        assert_eq!(s.secs("f", 0.0).unwrap(), Duration::from_secs(1000));
        assert!(s.bool("yes", false).unwrap());
        assert!(!s.bool("off", true).unwrap());
        assert!(s.bool("unset", true).unwrap());
        assert_eq!(s.list("l", ""), ["a", "b", "c"]);
        assert!(s.list("empty", "x").is_empty());
        assert_eq!(s.list("unset", "x, y"), ["x", "y"]);
        assert_eq!(s.percent_or_bytes("p", "0").unwrap(), FallocateReserve::Percent(1.5));
        assert_eq!(s.percent_or_bytes("b", "0").unwrap(), FallocateReserve::Bytes(10_485_760));
        assert_eq!(s.auto_int::<u32>("auto").unwrap(), None);
        assert_eq!(s.positive_int("unset", 0u32).unwrap(), 0);
        assert_eq!(s.one_of("unset", &["rsync", "ssync"]).unwrap(), "rsync");
    }

    /// From `float` of Python 3.11.
    #[test]
    fn digits_of_numbers_may_be_separated() {
        assert_eq!(parse_float(" 4_0.5_0e1_0 "), Some(40.5e10));
        for bad in ["_4", "4_", "4__0", "4_.5", "4._5", "_", "1e_5", "inf_"] {
            assert_eq!(parse_float(bad), None, "{bad}");
        }
    }

    #[test]
    fn bad_values_name_file_section_option_and_expectation() {
        let s = section(&[("workers", "many"), ("port", "70000"), ("mount_check", "ture"), ("slow", "-1")]);
        let expect = |r: Result<(), ConfigError>, text: &str| {
            assert_eq!(r.unwrap_err().to_string(), format!("(none): [app:object-server] {text}"));
        };
        expect(s.int("workers", 1u32).map(drop), "workers = many: expected an integer");
        expect(s.int("port", 1u16).map(drop), "port = 70000: expected an integer from 0 to 65535");
        expect(s.bool("mount_check", true).map(drop), "mount_check = ture: expected true or false");
        expect(
            s.non_negative_float("slow", 0.0).map(drop),
            "slow = -1: expected a number that isn't negative",
        );
        expect(s.secs("slow", 0.0).map(drop), "slow = -1: expected a number of seconds");
        expect(
            s.positive_int("workers", 1u32).map(drop),
            "workers = many: expected an integer greater than 0",
        );
        expect(
            s.one_of("workers", &["auto", "none"]).map(drop),
            "workers = many: expected one of auto, none",
        );
    }

    #[test]
    fn options_nobody_asks_for_are_unknown_and_the_nearest_name_is_offered() {
        let s = section(&[("mount_chek", "true"), ("zzz", "1"), ("devices", "/srv")]);
        let other = s.clone();
        other.get("mount_check");
        other.get("devices");
        let unknown = s.unknown_options();
        assert_eq!(unknown, [("mount_chek".into(), Some("mount_check".into())), ("zzz".into(), None)]);
        assert_eq!(
            s.warnings()[0],
            "(none): [app:object-server] mount_chek: unknown option; did you mean mount_check?"
        );
    }

    #[test]
    fn edit_distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
