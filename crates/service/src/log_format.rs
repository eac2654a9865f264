//! Templates of access-log lines: `log_format` of the storage servers, `log_msg_template` of the proxy.
//!
//! The grammar is Python's `str.format`: `{field}`, `{field.attribute}`, `{field:spec}`, `{{` and `}}`. A template
//! is parsed once, at start; a line is then written field by field. As in Swift an empty, zero or missing value is
//! written as `-`.
//!
//! Of the format specs only `[[fill]align][width][.precision][f|d|s]` is known; conversions (`!r`) and nested
//! fields are refused when the template is parsed.

use std::fmt::{self, Write as _};

use common::digest;
use common::quote;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use thiserror::Error;

/// `log_format` unless the configuration has another.
pub const STORAGE_FORMAT: &str = "{remote_addr} - - [{time.d}/{time.b}/{time.Y}:{time.H}:{time.M}:{time.S} +0000] \
    \"{method} {path}\" {status} {content_length} \"{referer}\" \"{txn_id}\" \"{user_agent}\" {trans_time:.4f} \
    \"{additional_info}\" {pid} {policy_index}";

/// What is wrong with a template.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LogFormatError {
    #[error("an unbalanced '{{' or '}}'")]
    Unbalanced,
    #[error("an unknown field '{0}'")]
    UnknownField(String),
    #[error("a format '{0}' that is not supported")]
    UnsupportedSpec(String),
    #[error("an unknown attribute '{0}'")]
    UnknownAttribute(String),
    #[error("an unknown log_anonymization_method '{0}'")]
    UnknownMethod(String),
}

/// A value of one field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Missing,
    Text(&'a str),
    Owned(String),
    Int(u64),
    Float(f64),
    /// Seconds since the epoch; its attributes are `strftime` letters and `asctime`, `iso8601`, `s`, `ms`, ...
    Time(f64),
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        value.map_or(Value::Missing, Value::Text)
    }
}

/// How `{field.anonymized}` hides a text.
#[derive(Clone, Debug)]
pub struct Anonymizer {
    method: HashMethod,
    salt: String,
}

#[derive(Copy, Clone, Debug)]
enum HashMethod {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Anonymizer {
    pub fn new(method: &str, salt: &str) -> Result<Self, LogFormatError> {
        let method = match method.to_ascii_lowercase().as_str() {
            "md5" => HashMethod::Md5,
            "sha1" => HashMethod::Sha1,
            "sha224" => HashMethod::Sha224,
            "sha256" => HashMethod::Sha256,
            "sha384" => HashMethod::Sha384,
            "sha512" => HashMethod::Sha512,
            _ => return Err(LogFormatError::UnknownMethod(method.to_owned())),
        };
        Ok(Anonymizer { method, salt: salt.to_owned() })
    }

    fn apply(&self, text: &str) -> String {
        let input = [self.salt.as_bytes(), text.as_bytes()].concat();
        let (name, hash) = match self.method {
            HashMethod::Md5 => ("MD5", digest::md5(&input).to_vec()),
            HashMethod::Sha1 => ("SHA1", Sha1::digest(&input).to_vec()),
            HashMethod::Sha224 => ("SHA224", Sha224::digest(&input).to_vec()),
            HashMethod::Sha256 => ("SHA256", Sha256::digest(&input).to_vec()),
            HashMethod::Sha384 => ("SHA384", Sha384::digest(&input).to_vec()),
            HashMethod::Sha512 => ("SHA512", Sha512::digest(&input).to_vec()),
        };
        let salted = if self.salt.is_empty() { "" } else { "S" };
        format!("{{{salted}{name}}}{}", digest::hex(&hash))
    }
}

/// A parsed template.
#[derive(Clone, Debug)]
pub struct LogFormat {
    parts: Vec<Part>,
    anonymizer: Anonymizer,
    quoted: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Literal(String),
    Field { name: String, attribute: Option<String>, spec: Spec },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    width: usize,
    precision: Option<usize>,
}

impl LogFormat {
    /// Parses `template`, whose fields must be among `fields`.
    pub fn parse(template: &str, fields: &[&str], anonymizer: Anonymizer) -> Result<Self, LogFormatError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = template.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '{' if rest.next_if_eq(&'{').is_some() => literal.push('{'),
                '}' if rest.next_if_eq(&'}').is_some() => literal.push('}'),
                '{' => {
                    let mut field = String::new();
                    loop {
                        match rest.next() {
                            Some('}') => break,
                            Some('{') | None => return Err(LogFormatError::Unbalanced),
                            Some(c) => field.push(c),
                        }
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(parse_field(&field, fields)?);
                }
                '}' => return Err(LogFormatError::Unbalanced),
                c => literal.push(c),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(LogFormat { parts, anonymizer, quoted: false })
    }

    /// Every value is written URL-quoted, as the proxy's access log does.
    pub fn quoted(mut self) -> Self {
        self.quoted = true;
        self
    }

    /// The line for the values that `lookup` knows by field name.
    pub fn line<'a>(&self, lookup: impl Fn(&str) -> Value<'a>) -> String {
        let mut out = String::with_capacity(384);
        // One line has one time.
        let mut moment = None;
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Field { name, attribute, spec } => {
                    let start = out.len();
                    self.write_field(&mut out, lookup(name), attribute.as_deref(), spec, &mut moment);
                    finish_field(&mut out, start, spec, self.quoted);
                }
            }
        }
        out
    }

    /// Writes a value; nothing if it is missing, empty or zero.
    fn write_field(
        &self,
        out: &mut String,
        value: Value<'_>,
        attribute: Option<&str>,
        spec: &Spec,
        moment: &mut Option<Moment>,
    ) {
        match (value, attribute) {
            (Value::Missing | Value::Int(0) | Value::Float(0.0) | Value::Text(""), _) => {}
            (Value::Time(seconds), None) => write_to(out, format_args!("{seconds:.9}")),
            (Value::Time(seconds), Some(attribute)) => {
                // A line of the proxy has two times.
                let known = moment.take().filter(|moment| moment.seconds == seconds);
                moment.insert(known.unwrap_or_else(|| Moment::at(seconds))).write(out, attribute);
            }
            (Value::Int(n), _) => match spec.precision {
                Some(precision) => write_to(out, format_args!("{n}.{:0<precision$}", "")),
                None => write_to(out, format_args!("{n}")),
            },
            (Value::Float(n), _) => match spec.precision {
                Some(precision) => write_float(out, n, precision),
                None => write_to(out, format_args!("{n:?}")),
            },
            (Value::Text(text), None) => cut(out, text, spec),
            (Value::Owned(text), None) => cut(out, &text, spec),
            (Value::Owned(text), Some(_)) if text.is_empty() => {}
            (Value::Text(text), Some(_)) => cut(out, &self.anonymizer.apply(text), spec),
            (Value::Owned(text), Some(_)) => cut(out, &self.anonymizer.apply(&text), spec),
        }
    }
}

/// Makes of what has been written from `start` on what the line shows.
fn finish_field(out: &mut String, start: usize, spec: &Spec, quoted: bool) {
    if out.len() == start {
        out.push('-');
        return;
    }
    if spec.width > 0 {
        let text = pad(&out[start..], spec);
        out.replace_range(start.., &text);
    }
    const PLAIN: &str = ":/{}";
    if quoted && !quote::is_plain(&out[start..], PLAIN) {
        let text = quote::quote(&out[start..], PLAIN);
        out.replace_range(start.., &text);
    }
}

fn write_to(out: &mut String, args: fmt::Arguments<'_>) {
    out.write_fmt(args).expect("writing to a String cannot fail");
}

/// A short number with a few digits after the point costs no arithmetic of long numbers.
fn write_float(out: &mut String, n: f64, precision: usize) {
    const MOST: usize = 6;
    if precision == 0 || precision > MOST || !(0.0..1e9).contains(&n) {
        write_to(out, format_args!("{n:.precision$}"));
        return;
    }
    let scale = 10u64.pow(precision as u32);
    let scaled = (n * scale as f64).round() as u64;
    write_to(out, format_args!("{}.{:0precision$}", scaled / scale, scaled % scale));
}

fn cut(out: &mut String, text: &str, spec: &Spec) {
    match spec.precision {
        Some(most) => out.extend(text.chars().take(most)),
        None => out.push_str(text),
    }
}

fn pad(text: &str, spec: &Spec) -> String {
    let missing = spec.width.saturating_sub(text.chars().count());
    let left = match spec.align {
        Some('>') => missing,
        Some('^') => missing / 2,
        _ => 0,
    };
    let fill = |n: usize| std::iter::repeat_n(spec.fill.unwrap_or(' '), n).collect::<String>();
    format!("{}{text}{}", fill(left), fill(missing - left))
}

fn parse_field(field: &str, known: &[&str]) -> Result<Part, LogFormatError> {
    let (path, spec) = field.split_once(':').unwrap_or((field, ""));
    if path.contains(['!', '[']) {
        return Err(LogFormatError::UnsupportedSpec(field.to_owned()));
    }
    let (name, attribute) = match path.split_once('.') {
        Some((name, attribute)) => (name, Some(attribute.to_owned())),
        None => (path, None),
    };
    if !known.contains(&name) {
        return Err(LogFormatError::UnknownField(name.to_owned()));
    }
    if let Some(attribute) = &attribute {
        let is_time = name.ends_with("time");
        let known = if is_time {
            Moment::at(0.0).write(&mut String::new(), attribute)
        } else {
            attribute == "anonymized"
        };
        if !known {
            return Err(LogFormatError::UnknownAttribute(path.to_owned()));
        }
    }
    Ok(Part::Field { name: name.to_owned(), attribute, spec: parse_spec(spec)? })
}

fn parse_spec(text: &str) -> Result<Spec, LogFormatError> {
    let bad = || LogFormatError::UnsupportedSpec(text.to_owned());
    let mut spec = Spec::default();
    let mut rest: Vec<char> = text.chars().collect();
    let is_align = |c: Option<&char>| matches!(c, Some('<' | '>' | '^'));
    if is_align(rest.get(1)) {
        spec.fill = Some(rest.remove(0));
    }
    if is_align(rest.first()) {
        spec.align = Some(rest.remove(0));
    }
    let rest: String = rest.into_iter().collect();
    let rest = rest.strip_suffix(['f', 'd', 's']).unwrap_or(&rest);
    let (width, precision) = match rest.split_once('.') {
        Some((width, precision)) => (width, Some(precision)),
        None => (rest, None),
    };
    if !width.is_empty() {
        spec.width = width.parse().map_err(|_| bad())?;
    }
    if let Some(precision) = precision {
        spec.precision = Some(precision.parse().map_err(|_| bad())?);
    }
    Ok(spec)
}

/// `Sun Nov 22 15:31:27 2026`, as Python's `time.ctime` writes it in UTC: Swift's daemons run in that zone.
pub fn ctime(seconds: f64) -> String {
    let mut text = String::new();
    Moment::at(seconds).write(&mut text, "asctime");
    text
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment in UTC, and its parts.
struct Moment {
    seconds: f64,
    year: i64,
    month: usize,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    /// Monday is 0.
    weekday: usize,
    yearday: i64,
}

impl Moment {
    fn at(seconds: f64) -> Moment {
        let whole = seconds.floor() as i64;
        let (days, of_day) = (whole.div_euclid(86_400), whole.rem_euclid(86_400));
        // Days since 0000-03-01, in eras of 400 years: leap days then end each year.
        let z = days + 719_468;
        let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let yearday = if month <= 2 { doy - 305 } else { doy + 60 + i64::from(leap) };
        Moment {
            seconds,
            year,
            month: month as usize,
            day: doy - (153 * mp + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            weekday: (days + 3).rem_euclid(7) as usize,
            yearday,
        }
    }

    /// Writes one attribute; false if there is none of that name.
    fn write(&self, out: &mut String, attribute: &str) -> bool {
        let (month, day) = (MONTHS[self.month - 1], DAYS[self.weekday]);
        let Moment { year, hour, minute, second, .. } = *self;
        match attribute {
            "a" => out.push_str(&day[..3]),
            "A" => out.push_str(day),
            "b" => out.push_str(&month[..3]),
            "B" => out.push_str(month),
            "c" | "asctime" => {
                let (day, month) = (&day[..3], &month[..3]);
                let clock = format_args!("{hour:02}:{minute:02}:{second:02}");
                write_to(out, format_args!("{day} {month} {:>2} {clock} {year}", self.day));
            }
            "d" => write_to(out, format_args!("{:02}", self.day)),
            "H" => write_to(out, format_args!("{hour:02}")),
            "I" => write_to(out, format_args!("{:02}", if hour % 12 == 0 { 12 } else { hour % 12 })),
            "j" => write_to(out, format_args!("{:03}", self.yearday)),
            "m" => write_to(out, format_args!("{:02}", self.month)),
            "M" => write_to(out, format_args!("{minute:02}")),
            "p" => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            "S" => write_to(out, format_args!("{second:02}")),
            "U" => {
                let week = (self.yearday + 6 - (self.weekday as i64 + 1) % 7) / 7;
                write_to(out, format_args!("{week:02}"));
            }
            "w" => write_to(out, format_args!("{}", (self.weekday + 1) % 7)),
            "W" => {
                let week = (self.yearday + 6 - self.weekday as i64) / 7;
                write_to(out, format_args!("{week:02}"));
            }
            "x" => write_to(out, format_args!("{:02}/{:02}/{:02}", self.month, self.day, year % 100)),
            "X" => write_to(out, format_args!("{hour:02}:{minute:02}:{second:02}")),
            "y" => write_to(out, format_args!("{:02}", year % 100)),
            "Y" => write_to(out, format_args!("{year}")),
            "Z" => out.push_str("UTC"),
            "datetime" => {
                let month = &month[..3];
                let clock = format_args!("{hour:02}/{minute:02}/{second:02}");
                write_to(out, format_args!("{:02}/{month}/{year}/{clock}", self.day));
            }
            "iso8601" => {
                let clock = format_args!("{hour:02}:{minute:02}:{second:02}");
                write_to(out, format_args!("{year}-{:02}-{:02}T{clock}", self.month, self.day));
            }
            "ms" | "us" | "ns" | "s" => {
                let nanos = format!("{:.9}", self.seconds);
                let (seconds, fraction) = nanos.split_once('.').unwrap_or((&nanos, ""));
                out.push_str(match attribute {
                    "ms" => &fraction[..3],
                    "us" => &fraction[..6],
                    "ns" => fraction,
                    _ => seconds,
                });
            }
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(template: &str) -> Result<LogFormat, LogFormatError> {
        LogFormat::parse(template, &["method", "path", "time", "n", "f"], Anonymizer::new("MD5", "").unwrap())
    }

    fn line(template: &str) -> String {
        parse(template).unwrap().line(|field| match field {
            "method" => Value::Text("GET"),
            "path" => Value::Owned("/a/c".to_owned()),
            "time" => Value::Time(1_402_437_365.875_67),
            "n" => Value::Int(42),
            "f" => Value::Float(1.5),
            _ => Value::Missing,
        })
    }

    // Made by swift.common.utils.logs.StrFormatTime, its attributes in the order below joined by '|'.
    const TIMES: [(f64, &str); 4] = [
        (
            0.0,
            "Thu|Thursday|Jan|January|Thu Jan  1 00:00:00 1970|01|00|12|001|01|00|AM|00|00|4|00|01/01/70|00:00:00|70|1970|UTC|Thu Jan  1 00:00:00 1970|01/Jan/1970/00/00/00|1970-01-01T00:00:00|000|000000|000000000|0",
        ),
        (
            951782400.25,
            "Tue|Tuesday|Feb|February|Tue Feb 29 00:00:00 2000|29|00|12|060|02|00|AM|00|09|2|09|02/29/00|00:00:00|00|2000|UTC|Tue Feb 29 00:00:00 2000|29/Feb/2000/00/00/00|2000-02-29T00:00:00|250|250000|250000000|951782400",
        ),
        (
            1402437365.87567,
            "Tue|Tuesday|Jun|June|Tue Jun 10 21:56:05 2014|10|21|09|161|06|56|PM|05|23|2|23|06/10/14|21:56:05|14|2014|UTC|Tue Jun 10 21:56:05 2014|10/Jun/2014/21/56/05|2014-06-10T21:56:05|875|875669|875669956|1402437365",
        ),
        (
            1735689599.5,
            "Tue|Tuesday|Dec|December|Tue Dec 31 23:59:59 2024|31|23|11|366|12|59|PM|59|52|2|53|12/31/24|23:59:59|24|2024|UTC|Tue Dec 31 23:59:59 2024|31/Dec/2024/23/59/59|2024-12-31T23:59:59|500|500000|500000000|1735689599",
        ),
    ];

    #[test]
    fn times_are_written_as_swift_writes_them() {
        let attributes = "a A b B c d H I j m M p S U w W x X y Y Z asctime datetime iso8601 ms us ns s";
        for (seconds, expected) in TIMES {
            let moment = Moment::at(seconds);
            let mut got = String::new();
            for attribute in attributes.split(' ') {
                assert!(moment.write(&mut got, attribute), "{attribute}");
                got.push('|');
            }
            assert_eq!(got.trim_end_matches('|'), expected);
        }
    }

    #[test]
    fn short_numbers_are_written_as_exact_ones() {
        for n in [0.0001, 0.00123, 1.5, 0.99996, 12.0, 1e9, 3.25e12] {
            for precision in [0, 1, 4, 6, 9] {
                let mut out = String::new();
                write_float(&mut out, n, precision);
                assert_eq!(out, format!("{n:.precision$}"));
            }
        }
    }

    #[test]
    fn fields_are_filled_in_and_braces_are_kept() {
        assert_eq!(line("{{{method}}} {path} {n} {f:.4f} {time.d}/{time.b}"), "{GET} /a/c 42 1.5000 10/Jun");
        assert_eq!(line("{method:>5}|{method:*<5}|{method:^5}|{path:.2}"), "  GET|GET**| GET |/a");
    }

    #[test]
    fn empty_and_zero_values_become_a_dash() {
        let format = parse("{method} {path} {n} {f:.4f} {time}").unwrap();
        let line = format.line(|field| match field {
            "path" => Value::Text(""),
            "n" => Value::Int(0),
            "f" => Value::Float(0.0),
            _ => Value::Missing,
        });
        assert_eq!(line, "- - - - -");
    }

    // Made by swift.common.utils.logs.StrAnonymizer.
    #[test]
    fn anonymized_values_equal_swifts() {
        assert_eq!(line("{path.anonymized}"), "{MD5}cedd7c00e3b24d551b38f13c8cd2e791");
        let salted = Anonymizer::new("SHA256", "pepper").unwrap();
        assert_eq!(
            salted.apply("/a/c"),
            "{SSHA256}1f6faf30498bba5cfa67f61adb5f63b212fdb8de2e7a726b221737b8ffd5b231"
        );
    }

    #[test]
    fn a_bad_template_is_refused_at_once() {
        assert_eq!(parse("{method").unwrap_err(), LogFormatError::Unbalanced);
        assert_eq!(parse("method}").unwrap_err(), LogFormatError::Unbalanced);
        assert_eq!(parse("{metod}").unwrap_err(), LogFormatError::UnknownField("metod".into()));
        assert_eq!(parse("{time.q}").unwrap_err(), LogFormatError::UnknownAttribute("time.q".into()));
        assert_eq!(parse("{n:x}").unwrap_err(), LogFormatError::UnsupportedSpec("x".into()));
        assert!(Anonymizer::new("rot13", "").is_err());
    }

    #[test]
    fn quoted_lines_quote_each_value() {
        let format = parse("{path} {method}").unwrap().quoted();
        assert_eq!(format.line(|_| Value::Text("a b/ü")), "a%20b/%C3%BC a%20b/%C3%BC");
    }
}
