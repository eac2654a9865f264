//! Templates of access-log lines: `log_format` of the storage servers, `log_msg_template` of the proxy.
//!
//! The grammar is Python's `str.format`: `{field}`, `{field.attribute}`, `{field:spec}`, `{{` and `}}`. A template
//! is parsed once, at start; a line is then written field by field. As in Swift an empty, zero or missing value is
//! written as `-`.
//!
//! Of the format specs only `[[fill]align][width][.precision][f|d|s]` is known; conversions (`!r`) and nested
//! fields are refused when the template is parsed.

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
        let mut out = String::with_capacity(256);
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Field { name, attribute, spec } => {
                    match self.field_text(lookup(name), attribute.as_deref(), spec) {
                        Some(text) if self.quoted => out.push_str(&quote::quote(&text, ":/{}")),
                        Some(text) => out.push_str(&text),
                        None => out.push('-'),
                    }
                }
            }
        }
        out
    }

    fn field_text(&self, value: Value<'_>, attribute: Option<&str>, spec: &Spec) -> Option<String> {
        let text = match (value, attribute) {
            (Value::Missing, _) => return None,
            (Value::Time(seconds), attribute) => time_text(seconds, attribute),
            (Value::Int(0), _) => return None,
            (Value::Int(n), _) => match spec.precision {
                Some(precision) => format!("{n}.{:0<precision$}", ""),
                None => n.to_string(),
            },
            (Value::Float(0.0), _) => return None,
            (Value::Float(n), _) => match spec.precision {
                Some(precision) => format!("{n:.precision$}"),
                None => format!("{n:?}"),
            },
            (Value::Text(text), None) => cut(text, spec),
            (Value::Owned(text), None) => cut(&text, spec),
            (Value::Text(""), Some(_)) => return None,
            (Value::Text(text), Some(_)) => cut(&self.anonymizer.apply(text), spec),
            (Value::Owned(text), Some(_)) if text.is_empty() => return None,
            (Value::Owned(text), Some(_)) => cut(&self.anonymizer.apply(&text), spec),
        };
        (!text.is_empty()).then(|| pad(text, spec))
    }
}

fn cut(text: &str, spec: &Spec) -> String {
    match spec.precision {
        Some(most) => text.chars().take(most).collect(),
        None => text.to_owned(),
    }
}

fn pad(text: String, spec: &Spec) -> String {
    let missing = spec.width.saturating_sub(text.chars().count());
    if missing == 0 {
        return text;
    }
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
        let known =
            if is_time { time_attribute(0.0, attribute).is_some() } else { attribute == "anonymized" };
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

fn time_text(seconds: f64, attribute: Option<&str>) -> String {
    match attribute {
        None => format!("{seconds:.9}"),
        Some(attribute) => time_attribute(seconds, attribute).unwrap_or_default(),
    }
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

/// The parts of a moment in UTC.
struct Civil {
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

impl Civil {
    fn at(seconds: f64) -> Civil {
        let seconds = seconds.floor() as i64;
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
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
        Civil {
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
}

/// `Sun Nov 22 15:31:27 2026`, as Python's `time.ctime` writes it in UTC: Swift's daemons run in that zone.
pub fn ctime(seconds: f64) -> String {
    let t = Civil::at(seconds);
    let (day, month) = (&DAYS[t.weekday][..3], &MONTHS[t.month - 1][..3]);
    format!("{day} {month} {:>2} {:02}:{:02}:{:02} {}", t.day, t.hour, t.minute, t.second, t.year)
}

fn time_attribute(seconds: f64, attribute: &str) -> Option<String> {
    let t = Civil::at(seconds);
    let month = MONTHS[t.month - 1];
    let day = DAYS[t.weekday];
    let nanos = format!("{seconds:.9}");
    let fraction = nanos.split('.').nth(1).unwrap_or_default();
    let hour12 = if t.hour % 12 == 0 { 12 } else { t.hour % 12 };
    let clock = format!("{:02}:{:02}:{:02}", t.hour, t.minute, t.second);
    let sunday_week = (t.yearday + 6 - (t.weekday as i64 + 1) % 7) / 7;
    let monday_week = (t.yearday + 6 - t.weekday as i64) / 7;
    Some(match attribute {
        "a" => day[..3].to_owned(),
        "A" => day.to_owned(),
        "b" => month[..3].to_owned(),
        "B" => month.to_owned(),
        "c" | "asctime" => ctime(seconds),
        "d" => format!("{:02}", t.day),
        "H" => format!("{:02}", t.hour),
        "I" => format!("{hour12:02}"),
        "j" => format!("{:03}", t.yearday),
        "m" => format!("{:02}", t.month),
        "M" => format!("{:02}", t.minute),
        "p" => (if t.hour < 12 { "AM" } else { "PM" }).to_owned(),
        "S" => format!("{:02}", t.second),
        "U" => format!("{sunday_week:02}"),
        "w" => ((t.weekday + 1) % 7).to_string(),
        "W" => format!("{monday_week:02}"),
        "x" => format!("{:02}/{:02}/{:02}", t.month, t.day, t.year % 100),
        "X" => clock,
        "y" => format!("{:02}", t.year % 100),
        "Y" => t.year.to_string(),
        "Z" => "UTC".to_owned(),
        "datetime" => format!("{:02}/{}/{}/{}", t.day, &month[..3], t.year, clock.replace(':', "/")),
        "iso8601" => format!("{}-{:02}-{:02}T{clock}", t.year, t.month, t.day),
        "ms" => fraction[..3].to_owned(),
        "us" => fraction[..6].to_owned(),
        "ns" => fraction.to_owned(),
        "s" => nanos.split('.').next().unwrap_or_default().to_owned(),
        _ => return None,
    })
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
            let got: Vec<_> = attributes.split(' ').map(|a| time_attribute(seconds, a).unwrap()).collect();
            assert_eq!(got.join("|"), expected);
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
