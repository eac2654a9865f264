//! Header values as Python 3 Swift stores them.
//!
//! On the wire a header is bytes. WSGI hands them to Swift as text of which every character is one byte (Latin-1), and
//! Swift stores that text as UTF-8: the two bytes of `é` become four in an object's metadata, in pending
//! container updates and in the JSON of databases. Names of objects, which come from the path, are stored as they
//! are. ASCII is the same in both.

use std::borrow::Cow;

/// The stored form of a header's bytes.
pub fn to_stored(wire: &[u8]) -> Cow<'_, [u8]> {
    if wire.is_ascii() {
        return Cow::Borrowed(wire);
    }
    Cow::Owned(wire.iter().map(|&b| char::from(b)).collect::<String>().into_bytes())
}

/// The same as text.
pub fn to_stored_str(wire: &[u8]) -> String {
    wire.iter().map(|&b| char::from(b)).collect()
}

/// A header's bytes from their stored form. What was never a header (characters beyond U+00FF, invalid
/// UTF-8) is handed out as it is stored; Swift fails on it.
pub fn from_stored(stored: &[u8]) -> Cow<'_, [u8]> {
    if stored.is_ascii() {
        return Cow::Borrowed(stored);
    }
    let wire = std::str::from_utf8(stored)
        .ok()
        .and_then(|text| text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<Vec<u8>>>());
    wire.map_or(Cow::Borrowed(stored), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_string_round_trips() {
        let wire: Vec<u8> = (0..=255).collect();
        let stored = to_stored(&wire);
        assert_eq!(stored.len(), 128 + 2 * 128);
        assert_eq!(from_stored(&stored), wire);
        assert_eq!(to_stored(b"ascii"), &b"ascii"[..]);
    }

    #[test]
    fn what_no_header_can_be_stays() {
        assert_eq!(from_stored("\u{2603}".as_bytes()), "\u{2603}".as_bytes());
        assert_eq!(from_stored(b"\xff"), &b"\xff"[..]);
    }
}
