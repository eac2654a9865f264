//! The lines of an SSYNC conversation: text to values and back, without I/O.
//!
//! Not here: what a wanted object is sent as (`update.rs`) and how a subrequest is answered (`receiver.rs`).

use std::fmt::Write;

use common::hash::ObjHash;
use common::quote::{quote, unquote};
pub use common::repr::{python_repr, python_repr_bytes};
use common::timestamp::Timestamp;

pub const MISSING_CHECK_START: &str = ":MISSING_CHECK: START";
pub const MISSING_CHECK_END: &str = ":MISSING_CHECK: END";
pub const UPDATES_START: &str = ":UPDATES: START";
pub const UPDATES_END: &str = ":UPDATES: END";

/// A line which is not of the grammar; the text goes to the other end in an `:ERROR:` line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LineError(pub String);

/// An object as the sender offers it in a missing_check line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub hash: ObjHash,
    /// Of the data file or tombstone.
    pub ts_data: Timestamp,
    /// Of the newest meta file; `ts_data` when there is none.
    pub ts_meta: Timestamp,
    /// Of the Content-Type; `ts_data` unless a meta file changed it.
    pub ts_ctype: Timestamp,
    /// False of a fragment which was not committed.
    pub durable: bool,
}

impl Offer {
    /// An object without meta file.
    pub fn of_data(hash: ObjHash, ts_data: Timestamp) -> Self {
        Self { hash, ts_data, ts_meta: ts_data, ts_ctype: ts_data, durable: true }
    }

    /// `HASH TIMESTAMP [m:DELTA[,t:DELTA]][,durable:False]`, without a line end.
    ///
    /// Deltas are signed hexadecimal numbers of 10 µs from the data timestamp, followed by `__` and the offset in
    /// hexadecimal when there is one.
    pub fn encode(&self) -> String {
        let mut line = format!("{} {}", self.hash, self.ts_data.internal());
        let mut separator = ' ';
        let mut push = |line: &mut String, extra: &str| {
            line.push(std::mem::replace(&mut separator, ','));
            line.push_str(extra);
        };
        if self.ts_meta != self.ts_data {
            push(&mut line, &format!("m:{}", delta(self.ts_data, self.ts_meta)));
            // Swift: without a newer meta file the Content-Type cannot be newer (ssync_sender.py, `encode_missing`).
            if self.ts_ctype != self.ts_data {
                push(&mut line, &format!("t:{}", delta(self.ts_data, self.ts_ctype)));
            }
        }
        if !self.durable {
            push(&mut line, "durable:False");
        }
        line
    }

    /// Reads a missing_check line. Parts which it does not know are skipped: a newer sender may add some.
    pub fn decode(line: &[u8]) -> Result<Self, LineError> {
        let bad = |what: &str| LineError(format!("Invalid missing_check line ({what}): {}", printable(line)));
        let text =
            std::str::from_utf8(line).ok().filter(|text| text.is_ascii()).ok_or_else(|| bad("not ASCII"))?;
        let mut words = text.split_ascii_whitespace();
        let hash = words.next().map(|word| unquote(word.as_bytes())).unwrap_or_default();
        let hash = std::str::from_utf8(&hash).ok().and_then(ObjHash::parse).ok_or_else(|| bad("hash"))?;
        let ts_data = words.next().map(|word| unquote(word.as_bytes())).unwrap_or_default();
        let ts_data = std::str::from_utf8(&ts_data).ok().and_then(|ts| Timestamp::parse(ts).ok());
        let ts_data = ts_data.ok_or_else(|| bad("timestamp"))?;
        let mut offer = Self::of_data(hash, ts_data);
        let extra = words.next().map(|word| unquote(word.as_bytes())).unwrap_or_default();
        let extra = String::from_utf8(extra).map_err(|_| bad("not ASCII"))?;
        for item in extra.split(',') {
            let Some((key, value)) = item.split_once(':') else { continue };
            if value.contains(':') {
                return Err(bad("two colons"));
            }
            match key {
                "m" => offer.ts_meta = apply_delta(ts_data, value).ok_or_else(|| bad("delta"))?,
                "t" => offer.ts_ctype = apply_delta(ts_data, value).ok_or_else(|| bad("delta"))?,
                "durable" => offer.durable = is_true(value),
                _ => {}
            }
        }
        Ok(offer)
    }
}

/// Swift: config_true_value.
fn is_true(value: &str) -> bool {
    ["true", "1", "yes", "on", "t", "y"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn delta(from: Timestamp, to: Timestamp) -> String {
    let delta = to.raw() as i64 - from.raw() as i64;
    let mut text = String::new();
    if delta < 0 {
        text.push('-');
    }
    // Writing to a String does not fail.
    let _ = write!(text, "{:x}", delta.unsigned_abs());
    if to.offset() != 0 {
        let _ = write!(text, "__{:x}", to.offset());
    }
    text
}

/// Swift: the base's own offset is ignored (ssync_receiver.py, `decode_missing`).
fn apply_delta(base: Timestamp, text: &str) -> Option<Timestamp> {
    let (delta, offset) = text.split_once("__").unwrap_or((text, ""));
    let delta = i64::from_str_radix(delta, 16).ok()?;
    let offset = if offset.is_empty() { 0 } else { u64::from_str_radix(offset, 16).ok()? };
    let raw = base.raw().checked_add_signed(delta)?;
    (raw <= Timestamp::MAX.raw()).then(|| Timestamp::new(raw, offset))
}

/// What the receiver has of an offered object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Local {
    /// Of the data file or tombstone.
    pub ts_data: Option<Timestamp>,
    /// Of the newest meta file or else the data file; none of a tombstone.
    pub ts_meta: Option<Timestamp>,
    pub ts_ctype: Option<Timestamp>,
}

/// Which parts of an object the receiver asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub data: bool,
    pub meta: bool,
}

impl Wanted {
    /// What of the offer is newer than what is here.
    pub fn compare(remote: &Offer, local: &Local) -> Self {
        let Some(ts_data) = local.ts_data else { return Self { data: true, meta: true } };
        let newer_meta = local.ts_meta.is_some_and(|ts_meta| remote.ts_meta > ts_meta);
        let newer_ctype = local.ts_ctype.is_some_and(|ts_ctype| remote.ts_ctype > ts_ctype);
        Self {
            data: remote.ts_data > ts_data,
            meta: newer_meta || (newer_ctype && remote.ts_ctype > remote.ts_data),
        }
    }

    pub fn is_nothing(&self) -> bool {
        !self.data && !self.meta
    }

    /// `HASH d`, `HASH m` or `HASH dm`, without a line end.
    pub fn encode(&self, hash: &ObjHash) -> String {
        format!("{hash} {}{}", if self.data { "d" } else { "" }, if self.meta { "m" } else { "" })
    }

    /// Reads a line of the receiver's list; `None` for an empty one.
    ///
    /// A receiver of before POST subrequests names no parts: it takes the data.
    pub fn decode(line: &[u8]) -> Result<Option<(ObjHash, Self)>, LineError> {
        let bad = || {
            LineError(format!("Unexpected response: {}", python_repr(&String::from_utf8_lossy(capped(line)))))
        };
        let text = std::str::from_utf8(line).map_err(|_| bad())?;
        let mut words = text.split_ascii_whitespace();
        let Some(hash) = words.next() else { return Ok(None) };
        let hash = unquote(hash.as_bytes());
        let hash = std::str::from_utf8(&hash).ok().and_then(ObjHash::parse).ok_or_else(bad)?;
        let parts = words.next().unwrap_or_default();
        let wanted = Self { data: parts.contains('d'), meta: parts.contains('m') };
        Ok(Some((hash, if wanted.is_nothing() { Self { data: true, meta: false } } else { wanted })))
    }
}

/// The path of a subrequest as the sender writes it.
pub fn subrequest_path(account: &str, container: &str, object: &str) -> String {
    quote(format!("/{account}/{container}/{object}").as_bytes(), "/")
}

/// The head of a subrequest: `METHOD PATH`, headers sorted by name, an empty line.
///
/// Swift's sender sorts names as text of code points, which is the order of their bytes.
pub fn subrequest_head<'a>(
    method: &str,
    path: &str,
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Vec<u8> {
    let mut headers: Vec<_> = headers.into_iter().collect();
    headers.sort();
    let mut head = format!("{method} {path}\r\n").into_bytes();
    for (name, value) in headers {
        head.extend_from_slice(name);
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// `METHOD PATH` of a subrequest. The path still is as it was on the wire.
pub fn parse_subrequest_line(line: &[u8]) -> Result<(&str, &[u8]), LineError> {
    let space = line.iter().position(|&b| b == b' ');
    let parsed = space.and_then(|at| Some((std::str::from_utf8(&line[..at]).ok()?, &line[at + 1..])));
    parsed.ok_or_else(|| LineError(format!("Invalid subrequest line: {}", printable(line))))
}

/// `Name: value` of a subrequest; the name in lower case.
pub fn parse_header_line(line: &[u8]) -> Result<(Vec<u8>, &[u8]), LineError> {
    let colon = line.iter().position(|&b| b == b':');
    let colon = colon.ok_or_else(|| LineError(format!("Invalid subrequest header: {}", printable(line))))?;
    Ok((line[..colon].trim_ascii().to_ascii_lowercase(), line[colon + 1..].trim_ascii()))
}

/// `:ERROR: STATUS REASON`, where the reason is what Python's `%r` makes of it.
pub fn error_line(status: u16, reason: &str) -> String {
    format!(":ERROR: {status} {reason}\n")
}

/// The part of a line that goes into a message.
const MAX_QUOTED: usize = 1024;

fn capped(line: &[u8]) -> &[u8] {
    &line[..line.len().min(MAX_QUOTED)]
}

pub fn printable(line: &[u8]) -> String {
    let mut text = python_repr_bytes(capped(line));
    if line.len() > MAX_QUOTED {
        text.insert_str(text.len() - 1, "...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "9d41d8cd98f00b204e9800998ecf0abc";

    fn ts(raw: u64, offset: u64) -> Timestamp {
        Timestamp::new(raw, offset)
    }

    fn offer() -> Offer {
        Offer::of_data(ObjHash::parse(HASH).unwrap(), Timestamp::parse("1416345190.12345").unwrap())
    }

    /// What Swift's `encode_missing` writes for these timestamps.
    #[test]
    fn missing_check_lines_are_swifts() {
        let base = offer();
        let at = |delta: i64, offset| base.ts_data.with_delta(delta).with_offset(offset);
        for (offer, want) in [
            (base, ""),
            (Offer { durable: false, ..base }, " durable:False"),
            (Offer { ts_meta: at(1_000_000, 0), ..base }, " m:f4240"),
            (Offer { ts_meta: at(1_000_000, 0), ts_ctype: at(60, 0), ..base }, " m:f4240,t:3c"),
            (Offer { ts_meta: at(0, 15), ..base }, " m:0__f"),
            (Offer { ts_meta: at(-1, 0), ts_ctype: at(-2, 16), ..base }, " m:-1,t:-2__10"),
            (Offer { ts_ctype: at(60, 0), ..base }, ""),
            (Offer { ts_meta: at(16, 1), durable: false, ..base }, " m:10__1,durable:False"),
        ] {
            assert_eq!(offer.encode(), format!("{HASH} 1416345190.12345{want}"));
        }
        let offset = Offer { ts_data: ts(5, 3), ts_meta: ts(5, 3), ts_ctype: ts(5, 3), ..base };
        assert_eq!(offset.encode(), format!("{HASH} 0000000000.00005_0000000000000003"));
    }

    #[test]
    fn decoding_skips_what_it_does_not_know_and_unquotes() {
        let want = Offer { ts_meta: offer().ts_data.with_delta(0x3c), ..offer() };
        for line in [
            format!("{HASH} 1416345190.12345 m:3c"),
            format!("{HASH}  1416345190.12345\tm:3c,x:1,plain\r\n"),
            format!("{HASH} 1416345190%2E12345 m%3A3c,durable:yes extra words"),
        ] {
            assert_eq!(Offer::decode(line.as_bytes()).unwrap(), want, "{line}");
        }
        assert!(!Offer::decode(format!("{HASH} 1 durable:0").as_bytes()).unwrap().durable);
        // The offset of the data timestamp is not that of the others.
        let line = format!("{HASH} 0000000001.00000_0000000000000007 m:1");
        assert_eq!(Offer::decode(line.as_bytes()).unwrap().ts_meta, ts(100_001, 0));
    }

    #[test]
    fn lines_which_are_not_offers_are_refused() {
        for line in ["", "junk", HASH, "../../etc 1", ":MISSING_CHECK: START"] {
            assert!(Offer::decode(line.as_bytes()).is_err(), "{line}");
        }
        for extra in ["m:zz", "m:", "m:1:2", "t:1__g", "m:-ffffffffffffff", "m:7fffffffffffffff"] {
            assert!(Offer::decode(format!("{HASH} 1 {extra}").as_bytes()).is_err(), "{extra}");
        }
        assert!(Offer::decode(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn what_is_newer_is_wanted() {
        let remote = Offer { ts_meta: offer().ts_data.with_delta(10), ..offer() };
        let local = |data: i64, meta: i64| Local {
            ts_data: Some(remote.ts_data.with_delta(data)),
            ts_meta: Some(remote.ts_data.with_delta(meta)),
            ts_ctype: Some(remote.ts_data.with_delta(data)),
        };
        let both = Wanted { data: true, meta: true };
        assert_eq!(Wanted::compare(&remote, &Local::default()), both);
        assert_eq!(Wanted::compare(&remote, &local(-1, -1)), both);
        assert_eq!(Wanted::compare(&remote, &local(0, 0)), Wanted { data: false, meta: true });
        assert_eq!(Wanted::compare(&remote, &local(-1, 20)), Wanted { data: true, meta: false });
        assert!(Wanted::compare(&remote, &local(0, 10)).is_nothing());
        assert!(Wanted::compare(&remote, &local(5, 10)).is_nothing());
        let tombstone = Local { ts_data: Some(remote.ts_data.with_delta(5)), ..Local::default() };
        assert!(Wanted::compare(&remote, &tombstone).is_nothing());
    }

    #[test]
    fn a_newer_content_type_alone_is_wanted_as_meta() {
        let remote = Offer {
            ts_meta: offer().ts_data.with_delta(10),
            ts_ctype: offer().ts_data.with_delta(5),
            ..offer()
        };
        let local = Local {
            ts_data: Some(remote.ts_data),
            ts_meta: Some(remote.ts_data.with_delta(20)),
            ts_ctype: Some(remote.ts_data),
        };
        assert_eq!(Wanted::compare(&remote, &local), Wanted { data: false, meta: true });
        // A Content-Type that came with the data does not ask for a meta file.
        let plain = Offer { ts_ctype: remote.ts_data, ..remote };
        let older = Local { ts_ctype: Some(remote.ts_data.with_delta(-5)), ..local };
        assert!(Wanted::compare(&plain, &older).is_nothing());
    }

    #[test]
    fn wanted_lines() {
        let hash = ObjHash::parse(HASH).unwrap();
        for (line, data, meta) in [("dm", true, true), ("d", true, false), ("m", false, true)] {
            let line = format!("{HASH} {line}");
            let wanted = Wanted { data, meta };
            assert_eq!(wanted.encode(&hash), line);
            assert_eq!(Wanted::decode(line.as_bytes()), Ok(Some((hash, wanted))));
        }
        let legacy = Wanted { data: true, meta: false };
        for line in [HASH.to_string(), format!("{HASH}\r\n"), format!("{HASH} xyz")] {
            assert_eq!(Wanted::decode(line.as_bytes()), Ok(Some((hash, legacy))));
        }
        assert_eq!(Wanted::decode(b"\r\n"), Ok(None));
        assert!(Wanted::decode(b":ERROR: 500 'why'").is_err());
    }

    #[test]
    fn heads_of_subrequests() {
        let headers: [(&[u8], &[u8]); 3] = [
            (b"X-Timestamp", b"1.00000"),
            (b"Content-Length", b"3"),
            ("X-Object-Meta-Ü".as_bytes(), "ü".as_bytes()),
        ];
        let path = subrequest_path("AUTH_a", "c c", "o/ü?");
        let head = subrequest_head("PUT", &path, headers);
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "PUT /AUTH_a/c%20c/o/%C3%BC%3F\r\nContent-Length: 3\r\nX-Object-Meta-Ü: ü\r\nX-Timestamp: 1.00000\r\n\r\n"
        );
        assert_eq!(parse_subrequest_line(b"PUT /a/c/o o").unwrap(), ("PUT", &b"/a/c/o o"[..]));
        assert!(parse_subrequest_line(b"PUT").is_err());
        assert_eq!(
            parse_header_line("X-Meta-Ü :  a:b ".as_bytes()).unwrap(),
            ("x-meta-Ü".into(), &b"a:b"[..])
        );
        assert!(parse_header_line(b"no colon").is_err());
    }

    #[test]
    fn an_error_has_pythons_repr_of_its_reason() {
        assert_eq!(error_line(0, &python_repr("why")), ":ERROR: 0 'why'\n");
    }

    fn any_timestamp() -> impl Strategy<Value = Timestamp> {
        (0..=Timestamp::MAX.raw(), prop_oneof![Just(0), any::<u64>()])
            .prop_map(|(raw, offset)| ts(raw, offset))
    }

    proptest! {
        #[test]
        fn offers_survive_the_line(
            hash: [u8; 16], ts_data in any_timestamp(), ts_meta in any_timestamp(), ts_ctype in any_timestamp(), durable: bool,
        ) {
            let offer = Offer { hash: ObjHash(hash), ts_data, ts_meta, ts_ctype, durable };
            // Without a meta file there is no other Content-Type.
            let want = if ts_meta == ts_data { Offer { ts_ctype: ts_data, ..offer } } else { offer };
            prop_assert_eq!(Offer::decode(offer.encode().as_bytes()).unwrap(), want);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(line: Vec<u8>) {
            let _ = (Offer::decode(&line), Wanted::decode(&line), printable(&line));
            let _ = (parse_subrequest_line(&line), parse_header_line(&line));
        }

        #[test]
        fn any_extra_is_decoded_or_refused(extra in "[mtdurable:,_%0-9a-f-]{0,24}") {
            let _ = Offer::decode(format!("{HASH} 1416345190.12345 {extra}").as_bytes());
        }

        #[test]
        fn after_a_sync_nothing_is_wanted(
            hash: [u8; 16], ts_data in any_timestamp(), ts_meta in any_timestamp(), ts_ctype in any_timestamp(),
        ) {
            let offer = Offer { hash: ObjHash(hash), ts_data, ts_meta, ts_ctype, durable: true };
            let local = Local { ts_data: Some(ts_data), ts_meta: Some(ts_meta), ts_ctype: Some(ts_ctype) };
            prop_assert!(Wanted::compare(&offer, &local).is_nothing());
        }
    }
}
