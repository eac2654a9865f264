//! X-Timestamp: a time in units of 10 µs and an internal offset.
//!
//! | form | example | where |
//! |---|---|---|
//! | normal | `1402464677.04188` | headers shown to clients, `.data` names without an offset |
//! | internal | `1402464677.04188_0000000000000001` | names on disk, backend headers, database rows |
//! | short | `1402464677.04188_1` | the first part of an encoded triple |
//! | encoded | `1402464677.04188+1a-3` | `.meta` names and ssync lines: up to three times as deltas |
//!
//! Swift computes with floats and rounds at each step; every value of ten digits and five decimals survives
//! that unchanged, so here a timestamp is the integer that Swift calls `raw` and floats appear only when text
//! is read. Values outside 0 .. 9999999999.99999 are refused, as in Swift.

use std::fmt;

/// Units of 10 µs in one second.
pub const UNITS_PER_SECOND: u64 = 100_000;
const MAX_RAW: u64 = 10_000_000_000 * UNITS_PER_SECOND - 1;
const PRECISION: f64 = 1e-5;
const HEX_PART_DIGITS: usize = 16;

/// A point in time as Swift orders objects by: first the time, then the offset.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    raw: u64,
    offset: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    #[error("could not convert string to float: '{0}'")]
    NotANumber(String),
    #[error("timestamp cannot be negative: {0:?}")]
    Negative(String),
    #[error("timestamp too large: {0:?}")]
    TooLarge(String),
    #[error("invalid timestamp offset: {0:?}")]
    BadOffset(String),
    #[error("invalid timestamp delta: {0:?}")]
    BadDelta(String),
}

impl Timestamp {
    pub const ZERO: Self = Self { raw: 0, offset: 0 };
    /// The largest time that fits in ten digits.
    pub const MAX: Self = Self { raw: MAX_RAW, offset: 0 };

    /// A timestamp of `raw` units of 10 µs; larger values than the largest legal time are clamped to it.
    pub const fn from_raw(raw: u64) -> Self {
        Self::new(raw, 0)
    }

    pub const fn new(raw: u64, offset: u64) -> Self {
        let raw = if raw > MAX_RAW { MAX_RAW } else { raw };
        Self { raw, offset }
    }

    /// Rounds to the nearest 10 µs, half to even; clamps to the legal range (NaN becomes zero).
    pub fn from_secs_f64(secs: f64) -> Self {
        Self::from_raw((secs / PRECISION).round_ties_even() as u64)
    }

    /// Reads everything that Python Swift's `Timestamp(str)` reads: an integer or float, optionally with
    /// `_` and a hexadecimal offset of up to 16 digits.
    pub fn parse(s: &str) -> Result<Self, TimestampError> {
        if let Some(ts) = Self::parse_canonical(s.as_bytes()) {
            return Ok(ts);
        }
        let (time, hex) = s.split_once('_').unwrap_or((s, ""));
        let offset = if hex.is_empty() { 0 } else { parse_hex_offset(hex)? };
        let secs = parse_python_float(time).ok_or_else(|| TimestampError::NotANumber(s.to_owned()))?;
        let raw = (secs / PRECISION).round_ties_even();
        if !raw.is_finite() {
            return Err(TimestampError::NotANumber(s.to_owned()));
        }
        if raw < 0.0 {
            return Err(TimestampError::Negative(s.to_owned()));
        }
        if raw > MAX_RAW as f64 {
            return Err(TimestampError::TooLarge(s.to_owned()));
        }
        Ok(Self { raw: raw as u64, offset })
    }

    /// The form that we write ourselves, `dddddddddd.ddddd` with or without an offset, read without floats.
    fn parse_canonical(s: &[u8]) -> Option<Self> {
        if s.len() < 16 || s[10] != b'.' {
            return None;
        }
        let mut raw = 0u64;
        for &c in s[..10].iter().chain(&s[11..16]) {
            if !c.is_ascii_digit() {
                return None;
            }
            raw = raw * 10 + u64::from(c - b'0');
        }
        if s.len() == 16 {
            return Some(Self { raw, offset: 0 });
        }
        let hex = &s[17..];
        if s[16] != b'_' || hex.is_empty() || hex.len() > HEX_PART_DIGITS {
            return None;
        }
        let mut offset = 0u64;
        for &c in hex {
            offset = offset << 4 | u64::from((c as char).to_digit(16)?);
        }
        Some(Self { raw, offset })
    }

    pub const fn raw(&self) -> u64 {
        self.raw
    }

    pub const fn offset(&self) -> u64 {
        self.offset
    }

    pub const fn is_zero(&self) -> bool {
        self.raw == 0 && self.offset == 0
    }

    pub const fn with_offset(self, offset: u64) -> Self {
        Self { raw: self.raw, offset }
    }

    /// Moves the time by `delta` units of 10 µs and keeps the offset; stays within the legal range.
    pub const fn with_delta(self, delta: i64) -> Self {
        Self::new(self.raw.saturating_add_signed(delta), self.offset)
    }

    /// The same time without its offset, as clients see it.
    pub const fn normalized(self) -> Self {
        Self { raw: self.raw, offset: 0 }
    }

    pub fn normal(&self) -> String {
        format!("{:010}.{:05}", self.raw / UNITS_PER_SECOND, self.raw % UNITS_PER_SECOND)
    }

    pub fn internal(&self) -> String {
        if self.offset == 0 { self.normal() } else { format!("{}_{:016x}", self.normal(), self.offset) }
    }

    pub fn short(&self) -> String {
        if self.offset == 0 { self.normal() } else { format!("{}_{:x}", self.normal(), self.offset) }
    }

    pub fn as_secs_f64(&self) -> f64 {
        self.raw as f64 / UNITS_PER_SECOND as f64
    }

    /// Whole seconds, rounded down.
    pub const fn as_secs(&self) -> u64 {
        self.raw / UNITS_PER_SECOND
    }

    /// Whole seconds, rounded up: the Last-Modified of a resource.
    pub const fn ceil(&self) -> u64 {
        self.raw.div_ceil(UNITS_PER_SECOND)
    }

    /// `2014-06-10T22:47:32.054580`, the `last_modified` of listings.
    pub fn isoformat(&self) -> String {
        // Swift: BaseTimestamp.isoformat takes the microseconds from the float, whose last bit shows beyond
        // about the year 2100.
        let secs = self.as_secs_f64();
        let whole = secs.trunc();
        let mut micros = ((secs - whole) * 1e6).round_ties_even() as u64;
        let mut whole = whole as u64;
        if micros >= 1_000_000 {
            whole += 1;
            micros -= 1_000_000;
        }
        let t = CivilTime::from_unix(whole);
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{micros:06}",
            t.year, t.month, t.day, t.hour, t.minute, t.second
        )
    }

    /// Reads `isoformat` back: `%Y-%m-%dT%H:%M:%S.%f`.
    pub fn from_isoformat(s: &str) -> Option<Self> {
        let (date, time) = s.split_once('T')?;
        let mut date = date.splitn(3, '-').map(|p| p.parse::<u64>().ok());
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let (time, fraction) = time.split_once('.')?;
        let mut time = time.splitn(3, ':').map(|p| p.parse::<u64>().ok());
        let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
        if fraction.is_empty() || fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let micros = fraction.parse::<u64>().ok()? * 10u64.pow(6 - fraction.len() as u32);
        let unix = CivilTime { year, month, day, hour, minute, second }.to_unix()?;
        Some(Self::from_secs_f64(unix as f64 + micros as f64 / 1e6))
    }

    /// The Last-Modified header of a resource with this timestamp.
    pub fn http_date(&self) -> String {
        http_date(self.ceil())
    }

    /// Seconds since the epoch of an HTTP date, in any of the three forms of RFC 9110; a time zone in it is
    /// ignored, as Swift does.
    pub fn parse_http_date(value: &[u8]) -> Option<u64> {
        parse_http_date(value)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.internal())
    }
}

fn parse_hex_offset(hex: &str) -> Result<u64, TimestampError> {
    let bad = || TimestampError::BadOffset(hex.to_owned());
    if hex.len() > HEX_PART_DIGITS || hex.contains('_') {
        return Err(bad());
    }
    let digits = hex.trim();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
    if digits.starts_with('+') {
        return Err(bad());
    }
    u64::from_str_radix(digits, 16).map_err(|_| bad())
}

/// `float(s)` for text without underscores; `None` for NaN and for what Python refuses.
fn parse_python_float(s: &str) -> Option<f64> {
    let v: f64 = s.trim().parse().ok()?;
    (!v.is_nan()).then_some(v)
}

/// Encodes up to three timestamps as the first one and signed hexadecimal deltas. Deltas of zero are left
/// out unless a later one is not zero or `explicit` is set. Offsets of the second and third are lost.
pub fn encode_timestamps(
    t1: Timestamp,
    t2: Option<Timestamp>,
    t3: Option<Timestamp>,
    explicit: bool,
) -> String {
    let mut out = t1.short();
    let Some(t2) = t2 else { return out };
    let d2 = t2.raw as i64 - t1.raw as i64;
    let d3 = t3.map(|t3| t3.raw as i64 - t2.raw as i64);
    if explicit || d2 != 0 || d3.is_some_and(|d| d != 0) {
        push_delta(&mut out, d2);
        if let Some(d3) = d3 {
            push_delta(&mut out, d3);
        }
    }
    out
}

fn push_delta(out: &mut String, delta: i64) {
    use fmt::Write;
    let sign = if delta < 0 { '-' } else { '+' };
    write!(out, "{sign}{:x}", delta.unsigned_abs()).expect("a String takes every write");
}

/// Reads what `encode_timestamps` wrote. Without `explicit` a missing part equals the one before it.
pub fn decode_timestamps(
    encoded: &str,
    explicit: bool,
) -> Result<(Timestamp, Option<Timestamp>, Option<Timestamp>), TimestampError> {
    let mut parts = Vec::with_capacity(3);
    let mut start = 0;
    let mut negative = false;
    for (i, c) in encoded.char_indices().filter(|(_, c)| matches!(c, '+' | '-')) {
        parts.push((negative, &encoded[start..i]));
        negative = c == '-';
        start = i + 1;
    }
    parts.push((negative, &encoded[start..]));

    let t1 = Timestamp::parse(parts[0].1)?;
    let next = |previous: Option<Timestamp>, part: Option<&(bool, &str)>| match part {
        Some((negative, digits)) => apply_delta(previous.unwrap_or(t1), *negative, digits).map(Some),
        None if explicit => Ok(None),
        None => Ok(previous),
    };
    let t2 = next(Some(t1), parts.get(1))?;
    let t3 = next(t2, parts.get(2))?;
    Ok((t1, t2, t3))
}

/// A delta of zero keeps the base with its offset; any other drops the offset.
fn apply_delta(base: Timestamp, negative: bool, digits: &str) -> Result<Timestamp, TimestampError> {
    let bad = || TimestampError::BadDelta(digits.to_owned());
    let delta = i64::from_str_radix(digits.trim(), 16).map_err(|_| bad())?;
    if delta < 0 {
        return Err(bad());
    }
    if delta == 0 {
        return Ok(base);
    }
    let raw = base.raw as i64;
    let raw = if negative { raw.checked_sub(delta) } else { raw.checked_add(delta) }.ok_or_else(bad)?;
    match u64::try_from(raw) {
        Ok(raw) if raw <= MAX_RAW => Ok(Timestamp { raw, offset: 0 }),
        _ => Err(bad()),
    }
}

/// X-Delete-At as stored and used as a name: ten digits, clamped to 0 .. 9999999999.
pub fn normalize_delete_at(secs: f64) -> String {
    format!("{:010}", secs.clamp(0.0, 9_999_999_999.999_99) as u64)
}

/// `Tue, 10 Jun 2014 22:47:33 GMT`.
pub fn http_date(unix: u64) -> String {
    let t = CivilTime::from_unix(unix);
    // 1970-01-01 was a Thursday.
    let weekday = WEEKDAYS[((unix / 86_400 + 3) % 7) as usize];
    format!(
        "{weekday}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
        t.day,
        MONTHS[t.month as usize - 1],
        t.year,
        t.hour,
        t.minute,
        t.second
    )
}

const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn parse_http_date(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let text = match text.split_once(',') {
        Some((_, rest)) => rest.replace('-', " "),
        None => text.to_owned(),
    };
    let mut words: Vec<&str> = text.split_whitespace().collect();
    if words
        .first()
        .is_some_and(|w| WEEKDAYS.iter().any(|d| w.to_ascii_lowercase().starts_with(&d.to_ascii_lowercase())))
    {
        words.remove(0);
    }
    // asctime has the month first and the year last.
    let month_first = words.first().is_some_and(|w| month_number(w).is_some());
    let (day, month, year, time) = match (words.as_slice(), month_first) {
        ([month, day, time, year, ..], true) => (day, month, year, time),
        ([day, month, year, time, ..], false) => (day, month, year, time),
        _ => return None,
    };
    let month = month_number(month)?;
    let day: u64 = day.parse().ok()?;
    let mut year_number: u64 = year.parse().ok()?;
    if year.len() <= 2 {
        year_number += if year_number > 68 { 1900 } else { 2000 };
    }
    let mut clock = time.split(':').map(|p| p.parse::<u64>().ok());
    let (hour, minute) = (clock.next()??, clock.next()??);
    let second = clock.next().unwrap_or(Some(0))?;
    CivilTime { year: year_number, month, day, hour, minute, second }.to_unix()
}

fn month_number(word: &str) -> Option<u64> {
    let prefix = word.get(..3)?;
    let found = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(prefix))?;
    Some(found as u64 + 1)
}

/// A UTC date and time of day in the proleptic Gregorian calendar, years 1970 to 9999.
struct CivilTime {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl CivilTime {
    fn from_unix(unix: u64) -> Self {
        // Days are counted from 0000-03-01, so that a leap day ends a year (Howard Hinnant's algorithm).
        let (days, seconds) = (unix / 86_400 + 719_468, unix % 86_400);
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_index + 2) / 5 + 1,
            hour: seconds / 3600,
            minute: seconds % 3600 / 60,
            second: seconds % 60,
        }
    }

    fn to_unix(&self) -> Option<u64> {
        let leap =
            self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        let month_days = match self.month {
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            1..=12 => 31,
            _ => return None,
        };
        if !(1970..=9999).contains(&self.year) || self.day == 0 || self.day > month_days {
            return None;
        }
        if self.hour > 23 || self.minute > 59 || self.second > 59 {
            return None;
        }
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let (era, year_of_era) = (year / 400, year % 400);
        let month_index = (self.month + 9) % 12;
        let day_of_year = (153 * month_index + 2) / 5 + self.day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        Some(days * 86_400 + self.hour * 3600 + self.minute * 60 + self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ts(s: &str) -> Timestamp {
        Timestamp::parse(s).unwrap()
    }

    /// Written by `tests/golden/make.py` with Python Swift: input, normal, internal, short, ceil, isoformat.
    #[test]
    fn forms_equal_those_of_python_swift() {
        let mut lines = 0;
        for line in include_str!("../tests/golden/timestamps.txt").lines() {
            let f: Vec<&str> = line.split('|').collect();
            if f[1] == "error" {
                assert!(Timestamp::parse(f[0]).is_err(), "{line}");
            } else {
                let t = ts(f[0]);
                let ours = [
                    t.normal(),
                    t.internal(),
                    t.short(),
                    t.ceil().to_string(),
                    t.isoformat(),
                    t.raw().to_string(),
                ];
                assert_eq!(ours.join("|"), f[1..].join("|"), "{}", f[0]);
            }
            lines += 1;
        }
        assert!(lines > 40);
    }

    #[test]
    fn encoded_triples_equal_those_of_python_swift() {
        for line in include_str!("../tests/golden/encoded_timestamps.txt").lines() {
            let f: Vec<&str> = line.split('|').collect();
            let opt = |s: &str| (!s.is_empty()).then(|| ts(s));
            let explicit = f[3] == "True";
            let encoded = encode_timestamps(ts(f[0]), opt(f[1]), opt(f[2]), explicit);
            assert_eq!(encoded, f[4], "{line}");
            let (a, b, c) = decode_timestamps(&encoded, explicit).unwrap();
            let show = |t: Option<Timestamp>| t.map_or(String::new(), |t| t.internal());
            assert_eq!([a.internal(), show(b), show(c)].join("|"), f[5..].join("|"), "{line}");
        }
    }

    #[test]
    fn bad_deltas_are_refused() {
        for bad in ["", "+1", "1-", "1.0+zz", "0000000001.00000-ffffffff", "1++2", "9999999999.99999+1"] {
            assert!(decode_timestamps(bad, false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn http_dates_read_in_three_forms() {
        let t = 784_111_777;
        assert_eq!(http_date(t), "Sun, 06 Nov 1994 08:49:37 GMT");
        for form in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse_http_date(form.as_bytes()), Some(t), "{form}");
        }
        for bad in
            ["", "yesterday", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Nov 1994 28:49:37 GMT", "1234567890"]
        {
            assert_eq!(parse_http_date(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn delete_at_is_clamped_to_ten_digits() {
        assert_eq!(normalize_delete_at(-5.0), "0000000000");
        assert_eq!(normalize_delete_at(1_402_464_677.9), "1402464677");
        assert_eq!(normalize_delete_at(1e12), "9999999999");
    }

    proptest! {
        #[test]
        fn internal_form_round_trips_and_sorts(a in 0..=MAX_RAW, b in 0..=MAX_RAW, x in any::<u64>(), y in any::<u64>()) {
            let (t, u) = (Timestamp::new(a, x), Timestamp::new(b, y));
            prop_assert_eq!(ts(&t.internal()), t);
            prop_assert_eq!(ts(&t.short()), t);
            prop_assert_eq!(t.internal().cmp(&u.internal()), t.cmp(&u));
            prop_assert_eq!(Timestamp::from_secs_f64(t.as_secs_f64()).raw(), a);
        }

        #[test]
        fn encoded_triples_round_trip(a in 0..=MAX_RAW, b in 0..=MAX_RAW, c in 0..=MAX_RAW, offset in 0u64..3, explicit: bool) {
            let (t1, t2, t3) = (Timestamp::new(a, offset), Timestamp::from_raw(b), Timestamp::from_raw(c));
            let (d1, d2, d3) = decode_timestamps(&encode_timestamps(t1, Some(t2), Some(t3), explicit), explicit).unwrap();
            prop_assert_eq!(d1, t1);
            prop_assert_eq!(d2.unwrap().raw(), b);
            prop_assert_eq!(d3.unwrap().raw(), c);
        }

        #[test]
        fn civil_time_round_trips(unix in 0u64..253_402_300_799) {
            prop_assert_eq!(CivilTime::from_unix(unix).to_unix(), Some(unix));
            prop_assert_eq!(parse_http_date(http_date(unix).as_bytes()), Some(unix));
        }

        #[test]
        fn parsing_never_panics(s in "\\PC*") {
            let _ = Timestamp::parse(&s);
            let _ = decode_timestamps(&s, false);
            let _ = Timestamp::from_isoformat(&s);
            let _ = parse_http_date(s.as_bytes());
        }
    }
}
