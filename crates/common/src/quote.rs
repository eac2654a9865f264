//! Percent-encoding as Python's `urllib.parse` does it.

/// `urllib.parse.quote(value, safe)`: letters, digits, `_.-~` and the characters of `safe` stay as they are.
pub fn quote(value: impl AsRef<[u8]>, safe: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let value = value.as_ref();
    if let Ok(text) = std::str::from_utf8(value)
        && is_plain(value, safe)
    {
        return text.to_owned();
    }
    let mut out = String::with_capacity(value.len() + value.len() / 4);
    for &b in value {
        if is_plain_byte(b, safe) {
            out.push(b as char);
        } else {
            out.push('%');
            out.push(DIGITS[usize::from(b >> 4)] as char);
            out.push(DIGITS[usize::from(b & 15)] as char);
        }
    }
    out
}

/// Whether `quote` would change nothing.
pub fn is_plain(value: impl AsRef<[u8]>, safe: &str) -> bool {
    value.as_ref().iter().all(|&b| is_plain_byte(b, safe))
}

fn is_plain_byte(b: u8, safe: &str) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(b, b'_' | b'.' | b'-' | b'~')
        || (b.is_ascii() && safe.as_bytes().contains(&b))
}

/// The path of a backend request: Swift's `quote(path)`.
pub fn quote_path(path: impl AsRef<[u8]>) -> String {
    quote(path, "/")
}

/// `urllib.parse.unquote_to_bytes`: a `%` without two hexadecimal digits stays.
pub fn unquote(value: &[u8]) -> Vec<u8> {
    if memchr::memchr(b'%', value).is_none() {
        return value.to_vec();
    }
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let mut out = Vec::with_capacity(value.len());
    let mut i = 0;
    while i < value.len() {
        if value[i] == b'%'
            && let Some(&[high, low]) = value.get(i + 1..i + 3)
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            out.push(high << 4 | low);
            i += 3;
        } else {
            out.push(value[i]);
            i += 1;
        }
    }
    out
}

/// `parse_qsl(query, keep_blank_values=True)` with every name and value as bytes.
pub fn parse_query_bytes(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decode = |s: &str| unquote(s.replace('+', " ").as_bytes());
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// `parse_query_bytes` as text; invalid UTF-8 becomes U+FFFD.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    let text = |b: Vec<u8>| {
        String::from_utf8(b).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    };
    parse_query_bytes(query).into_iter().map(|(name, value)| (text(name), text(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by `tests/golden/make.py`: bytes (hexadecimal), safe, quoted.
    #[test]
    fn quoting_equals_python() {
        for line in include_str!("../tests/golden/quoted.txt").lines() {
            let f: Vec<&str> = line.split('|').collect();
            let bytes = crate::digest::unhex(f[0].as_bytes()).unwrap();
            assert_eq!(quote(&bytes, f[1]), f[2], "{line}");
            assert_eq!(unquote(f[2].as_bytes()), bytes);
        }
    }

    #[test]
    fn a_lone_percent_sign_stays() {
        assert_eq!(unquote(b"100%"), b"100%");
        assert_eq!(unquote(b"%zz%2"), b"%zz%2");
        assert_eq!(unquote(b"a%2Fb%2fc"), b"a/b/c");
    }

    #[test]
    fn queries_keep_blank_values_and_order() {
        let pairs = parse_query("format=json&marker=a%20b+c&&reverse&x==1");
        let expected = [("format", "json"), ("marker", "a b c"), ("reverse", ""), ("x", "=1")];
        assert_eq!(pairs, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    proptest! {
        #[test]
        fn quoting_round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(unquote(quote(&bytes, "/").as_bytes()), bytes);
        }
    }
}
