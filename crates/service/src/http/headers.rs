//! The header list of a request or a response: ordered, case kept, looked up without regard to case.
//!
//! Names and values are bytes, because Swift's wire carries non-ASCII names (`X-Object-Meta-<UTF-8>`). All of a list's
//! bytes lie in one buffer and an entry is four offsets, so that a list of any length costs two allocations and a
//! parsed head one copy. Removing an entry leaves its bytes behind: a list lives as long as one message.
//!
//! What it does not do: refuse names or values. Bytes that could split a head are refused where heads are written.

use std::fmt;

use bytes::Bytes;

#[derive(Clone, Copy)]
struct Entry {
    name: (u32, u32),
    value: (u32, u32),
}

/// An ordered list of names and values.
#[derive(Clone, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// What can be written as a header's value.
pub trait HeaderValue {
    fn write_to(&self, out: &mut Vec<u8>);
}

macro_rules! value_from_bytes {
    ($($type:ty),*) => { $(impl HeaderValue for $type {
        fn write_to(&self, out: &mut Vec<u8>) {
            let bytes: &[u8] = self.as_ref();
            out.extend_from_slice(bytes);
        }
    })* };
}

macro_rules! value_from_display {
    ($($type:ty),*) => { $(impl HeaderValue for $type {
        fn write_to(&self, out: &mut Vec<u8>) {
            use std::io::Write;
            write!(out, "{self}").expect("writing to a Vec cannot fail");
        }
    })* };
}

value_from_bytes!(str, String, [u8], Vec<u8>, Bytes);
value_from_display!(u16, u32, u64, usize, i32, i64, bool, fmt::Arguments<'_>, std::borrow::Cow<'_, str>);

impl<const N: usize> HeaderValue for [u8; N] {
    fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

impl<T: HeaderValue + ?Sized> HeaderValue for &T {
    fn write_to(&self, out: &mut Vec<u8>) {
        (**self).write_to(out);
    }
}

impl Headers {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_capacity(headers: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), entries: Vec::with_capacity(headers) }
    }

    /// The first value of that name.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        let name = name.as_ref();
        self.entries
            .iter()
            .find(|e| self.slice(e.name).eq_ignore_ascii_case(name))
            .map(|e| self.slice(e.value))
    }

    /// The first value of that name, if it is UTF-8.
    pub fn get_str(&self, name: impl AsRef<[u8]>) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// The first value of that name as an integer: digits only, no sign, no spaces.
    pub fn get_int<T: std::str::FromStr>(&self, name: impl AsRef<[u8]>) -> Option<T> {
        let value = self.get_str(name)?;
        value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse().ok())?
    }

    /// Whether the value is one of the words Swift takes for true: `true`, `1`, `yes`, `on`, `t`, `y`.
    pub fn get_bool(&self, name: impl AsRef<[u8]>) -> bool {
        let words = ["true", "1", "yes", "on", "t", "y"];
        self.get_str(name).is_some_and(|value| words.iter().any(|word| value.eq_ignore_ascii_case(word)))
    }

    pub fn get_all<'a>(
        &'a self,
        name: &'a (impl AsRef<[u8]> + ?Sized),
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let name = name.as_ref();
        self.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn contains(&self, name: impl AsRef<[u8]>) -> bool {
        self.get(name).is_some()
    }

    /// Sets the value of a name: it keeps the place of the first entry of that name, others go.
    pub fn insert(&mut self, name: impl AsRef<[u8]>, value: impl HeaderValue) {
        let name = name.as_ref();
        let Some(first) = self.position(name) else { return self.append(name, value) };
        let value = self.store_value(value);
        self.entries[first].value = value;
        let bytes = &self.bytes;
        let mut index = 0;
        self.entries.retain(|e| {
            index += 1;
            index <= first + 1 || !slice_of(bytes, e.name).eq_ignore_ascii_case(name)
        });
    }

    /// Sets the value of a name only if there is none.
    pub fn insert_default(&mut self, name: impl AsRef<[u8]>, value: impl HeaderValue) {
        if !self.contains(&name) {
            self.append(name, value);
        }
    }

    /// Adds an entry at the end.
    pub fn append(&mut self, name: impl AsRef<[u8]>, value: impl HeaderValue) {
        let start = offset(self.bytes.len());
        self.bytes.extend_from_slice(name.as_ref());
        let name = (start, offset(self.bytes.len()));
        let value = self.store_value(value);
        self.entries.push(Entry { name, value });
    }

    /// Appends to the first value of that name after a comma, as WSGI servers join repeated request headers.
    pub fn append_joined(&mut self, name: impl AsRef<[u8]>, value: impl HeaderValue) {
        let name = name.as_ref();
        let Some(first) = self.position(name) else { return self.append(name, value) };
        let (start, end) = self.entries[first].value;
        let joined = offset(self.bytes.len());
        self.bytes.extend_from_within(start as usize..end as usize);
        self.bytes.push(b',');
        value.write_to(&mut self.bytes);
        self.entries[first].value = (joined, offset(self.bytes.len()));
    }

    /// Removes every entry of that name and gives back the first value.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) -> Option<Bytes> {
        let name = name.as_ref();
        let first = self.get(name).map(Bytes::copy_from_slice)?;
        self.retain(|other, _| !other.eq_ignore_ascii_case(name));
        Some(first)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let bytes = &self.bytes;
        self.entries.retain(|e| keep(slice_of(bytes, e.name), slice_of(bytes, e.value)));
    }

    /// Sets every header of `other` here, as a dict's `update`.
    pub fn update(&mut self, other: &Headers) {
        for (name, value) in other.iter() {
            self.insert(name, value);
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> + DoubleEndedIterator + Clone {
        self.entries.iter().map(|e| (self.slice(e.name), self.slice(e.value)))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries.iter().position(|e| self.slice(e.name).eq_ignore_ascii_case(name))
    }

    fn store_value(&mut self, value: impl HeaderValue) -> (u32, u32) {
        let start = offset(self.bytes.len());
        value.write_to(&mut self.bytes);
        (start, offset(self.bytes.len()))
    }

    fn slice(&self, range: (u32, u32)) -> &[u8] {
        slice_of(&self.bytes, range)
    }
}

fn slice_of(bytes: &[u8], (start, end): (u32, u32)) -> &[u8] {
    &bytes[start as usize..end as usize]
}

fn offset(len: usize) -> u32 {
    u32::try_from(len).expect("the headers of one message are far below 4 GiB")
}

/// Writes a name as Swift's `HeaderKeyDict` keeps it: a letter after a non-letter in upper case, all others in lower.
pub fn write_title_case(name: &[u8], out: &mut impl Extend<u8>) {
    let mut after_letter = false;
    out.extend(name.iter().map(|byte| {
        let byte = if after_letter { byte.to_ascii_lowercase() } else { byte.to_ascii_uppercase() };
        after_letter = byte.is_ascii_alphabetic();
        byte
    }));
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        f.debug_map().entries(self.iter().map(|(name, value)| (text(name), text(value)))).finish()
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().zip(other.iter()).all(|(a, b)| a.0.eq_ignore_ascii_case(b.0) && a.1 == b.1)
    }
}

impl<N: AsRef<[u8]>, V: HeaderValue> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(iter: I) -> Self {
        let mut headers = Self::new();
        headers.extend(iter);
        headers
    }
}

impl<N: AsRef<[u8]>, V: HeaderValue> Extend<(N, V)> for Headers {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, iter: I) {
        for (name, value) in iter {
            self.append(name, value);
        }
    }
}

impl<N: AsRef<[u8]>, V: HeaderValue, const L: usize> From<[(N, V); L]> for Headers {
    fn from(list: [(N, V); L]) -> Self {
        list.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(headers: &Headers) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        headers.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn names_are_found_without_regard_to_case_and_keep_their_own() {
        let headers = Headers::from([("X-Timestamp", "1"), ("ETag", "e")]);
        assert_eq!(headers.get("x-TIMESTAMP"), Some(&b"1"[..]));
        assert_eq!(headers.get("etag"), Some(&b"e"[..]));
        assert_eq!(headers.get("x-timestam"), None);
        assert_eq!(values(&headers), [pair("X-Timestamp", "1"), pair("ETag", "e")]);
    }

    #[test]
    fn insert_replaces_in_place_and_drops_repetitions() {
        let mut headers = Headers::from([("A", "1"), ("B", "2"), ("a", "3"), ("C", "4")]);
        headers.insert("a", 9u64);
        assert_eq!(values(&headers), [pair("A", "9"), pair("B", "2"), pair("C", "4")]);
    }

    #[test]
    fn remove_takes_all_of_a_name() {
        let mut headers = Headers::from([("A", "1"), ("B", "2"), ("a", "3")]);
        assert_eq!(headers.remove("A").as_deref(), Some(&b"1"[..]));
        assert_eq!(headers.remove("A"), None);
        assert_eq!(values(&headers), [pair("B", "2")]);
    }

    #[test]
    fn repeated_headers_are_joined_by_a_comma() {
        let mut headers = Headers::new();
        headers.append_joined("A", "1");
        headers.append_joined("B", "x");
        headers.append_joined("a", "2");
        assert_eq!(values(&headers), [pair("A", "1,2"), pair("B", "x")]);
    }

    #[test]
    fn integers_are_digits_only() {
        let headers = Headers::from([("A", "12"), ("B", "+12"), ("C", " 12"), ("D", ""), ("E", "1_2")]);
        assert_eq!(headers.get_int::<u64>("A"), Some(12));
        for name in ["B", "C", "D", "E", "F"] {
            assert_eq!(headers.get_int::<u64>(name), None, "{name}");
        }
    }

    #[test]
    fn title_case_follows_a_non_letter() {
        // python: b'x-object-meta-foo2bar_baz\xc3\xa9x'.title()
        let mut out = Vec::new();
        write_title_case(b"x-object-META-foo2bar_baz\xc3\xa9x", &mut out);
        assert_eq!(out, b"X-Object-Meta-Foo2Bar_Baz\xc3\xa9X");
    }
}
