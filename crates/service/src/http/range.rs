//! The Range header by the rules of `swift.common.swob`, and the frame of a `multipart/byteranges` body.
//!
//! A syntax error anywhere makes the whole header be ignored. Well-formed ranges that cannot be satisfied are left out; if
//! none is left, or there are too many, too many overlap, or many come out of order, the answer is 416.
//!
//! `If-Range` is not looked at: Swift does not know it.

use std::fmt;

/// More ranges than this are 416.
const MAX_RANGES: usize = 50;
/// More pairs of overlapping ranges than this are 416.
const MAX_OVERLAPS: usize = 2;
/// So many ranges that are not in ascending order are 416.
const MAX_NONASCENDING: usize = 8;

/// The ranges of a well-formed header: first and last byte, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<(Option<u64>, Option<u64>)>);

/// The ranges of a header, or `None` if it is to be ignored.
pub fn parse(value: &[u8]) -> Option<Ranges> {
    let text: String = value.iter().filter(|&&b| b != b' ').map(|&b| b as char).collect();
    let (unit, specs) = text.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case("bytes=") {
        return None;
    }
    let parse_one = |spec: &str| {
        let (first, last) = spec.split_once('-')?;
        let first = if first.is_empty() { None } else { Some(python_int(first)?) };
        let last = match last {
            "" if first.is_none() => return None,
            "" => None,
            digits => Some(parse_digits(digits)?),
        };
        match (first, last) {
            (Some(first), Some(last)) if last < first => None,
            range => Some(range),
        }
    };
    specs.split(',').map(parse_one).collect::<Option<_>>().map(Ranges)
}

/// Swift: swob gives the first byte to `int()`, which takes a sign, surrounding white space and underscores between digits.
fn python_int(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.strip_prefix('+').unwrap_or(text);
    let grouped = digits.split('_').all(|group| !group.is_empty());
    if grouped { parse_digits(&digits.replace('_', "")) } else { None }
}

/// Digits of any number; what is too large for any object is as large as can be.
fn parse_digits(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

impl Ranges {
    pub fn from_specs(specs: Vec<(Option<u64>, Option<u64>)>) -> Self {
        Self(specs)
    }

    /// First and last byte of each range, as written.
    pub fn specs(&self) -> &[(Option<u64>, Option<u64>)] {
        &self.0
    }

    /// The ranges of a resource of that length as start and end, the end not included. None is 416.
    pub fn resolve(&self, length: u64) -> Vec<(u64, u64)> {
        let ranges: Vec<_> = self.0.iter().filter_map(|&spec| resolve_one(spec, length)).collect();
        if ranges.len() > MAX_RANGES || overlaps_too_much(&ranges) {
            return Vec::new();
        }
        if !ranges.is_sorted() && ranges.len() >= MAX_NONASCENDING {
            return Vec::new();
        }
        ranges
    }
}

fn resolve_one(spec: (Option<u64>, Option<u64>), length: u64) -> Option<(u64, u64)> {
    match spec {
        (None, None | Some(0)) => None,
        (None, Some(suffix)) => Some((length.saturating_sub(suffix), length)),
        (Some(first), _) if first >= length => None,
        (Some(first), None) => Some((first, length)),
        (Some(first), Some(last)) => Some((first, last.saturating_add(1).min(length))),
    }
}

fn overlaps_too_much(ranges: &[(u64, u64)]) -> bool {
    let overlap = |(start1, end1): (u64, u64), (start2, end2): (u64, u64)| {
        let within = |low, x, high| low < x && x < high;
        within(start1, start2, end1)
            || within(start1, end2, end1)
            || within(start2, start1, end2)
            || within(start2, end1, end2)
    };
    let pairs = ranges.iter().enumerate().flat_map(|(i, &a)| ranges[i + 1..].iter().map(move |&b| (a, b)));
    pairs.filter(|&(a, b)| overlap(a, b)).nth(MAX_OVERLAPS).is_some()
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes=")?;
        for (i, (first, last)) in self.0.iter().enumerate() {
            f.write_str(if i > 0 { "," } else { "" })?;
            if let Some(first) = first {
                write!(f, "{first}")?;
            }
            f.write_str("-")?;
            if let Some(last) = last {
                write!(f, "{last}")?;
            }
        }
        Ok(())
    }
}

/// The value of a Content-Range header; the end is not included.
pub fn content_range(start: u64, end: u64, size: u64) -> String {
    format!("bytes {start}-{}/{size}", end.saturating_sub(1))
}

/// First byte, last byte and size of a Content-Range header.
pub fn parse_content_range(value: &[u8]) -> Option<(u64, u64, u64)> {
    let rest = std::str::from_utf8(value).ok()?.strip_prefix("bytes ")?;
    let (range, size) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?;
    Some((number(first)?, number(last)?, number(size)?))
}

/// What stands before the bytes of one part of a `multipart/byteranges` body. A CRLF follows those.
pub fn part_head(boundary: &str, content_type: &[u8], start: u64, end: u64, size: u64) -> Vec<u8> {
    let mut head = format!("--{boundary}\r\nContent-Type: ").into_bytes();
    head.extend_from_slice(content_type);
    head.extend_from_slice(
        format!("\r\nContent-Range: {}\r\n\r\n", content_range(start, end, size)).as_bytes(),
    );
    head
}

/// What ends a `multipart/byteranges` body.
pub fn multipart_end(boundary: &str) -> String {
    format!("--{boundary}--")
}

/// The length of a `multipart/byteranges` body.
pub fn multipart_length(boundary: &str, content_type: &[u8], ranges: &[(u64, u64)], size: u64) -> u64 {
    let part = |&(start, end): &(u64, u64)| {
        part_head(boundary, content_type, start, end, size).len() as u64 + (end - start) + 2
    };
    ranges.iter().map(part).sum::<u64>() + multipart_end(boundary).len() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each line: the header, a length, and what swob makes of them (`ignored`, or pairs of start and end).
    #[test]
    fn ranges_are_swobs() {
        let golden = include_str!("../../tests/golden/http/ranges.tsv");
        let mut seen = 0;
        for line in golden.lines() {
            let [value, length, want] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let resolved = parse(value.as_bytes()).map(|ranges| ranges.resolve(length.parse().unwrap()));
            let got = match resolved {
                None => "ignored".to_owned(),
                Some(list) => list.iter().map(|(s, e)| format!("{s}-{e}")).collect::<Vec<_>>().join(" "),
            };
            assert_eq!(got, want, "{value:?} of {length}");
            seen += 1;
        }
        assert!(seen > 500);
    }

    #[test]
    fn ranges_are_written_as_they_came() {
        let ranges = parse(b"Bytes= 0-5, -3 ,7-").unwrap();
        assert_eq!(ranges.to_string(), "bytes=0-5,-3,7-");
    }

    #[test]
    fn content_ranges_are_read_back() {
        assert_eq!(content_range(2, 5, 10), "bytes 2-4/10");
        assert_eq!(parse_content_range(b"bytes 2-4/10"), Some((2, 4, 10)));
        for bad in ["bytes */10", "2-4/10", "bytes 2-4/*", "bytes -4/10", "bytes 2-+4/10"] {
            assert_eq!(parse_content_range(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_header_resolves_within_the_length(value in "[bytes=0-9, _+]{0,30}", length in 0u64..50) {
            if let Some(ranges) = parse(value.as_bytes()).or_else(|| parse(format!("bytes={value}").as_bytes())) {
                for (start, end) in ranges.resolve(length) {
                    prop_assert!(start <= end && end <= length);
                }
            }
        }
    }
}
