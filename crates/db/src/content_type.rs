//! The `swift_bytes` parameter that object rows carry at the end of their content type.
//!
//! An SLO manifest is a small object that stands for many bytes: the proxy sends its logical size as a content type parameter
//! (`text/plain;swift_bytes=1234`), the row keeps it there, listings show it as the size. Taking the parameter out rewrites the
//! others as `;key=value` with no blanks around them; that form is what ends up in rows and listings, so the grammar is Swift's
//! (swift/common/utils `parse_content_type`, strict) down to what it skips over.

/// The content type without `swift_bytes`, and the value of that parameter.
pub fn extract_swift_bytes(content_type: &str) -> (String, Option<String>) {
    let Some((kind, parameters)) = content_type.split_once(';') else {
        return (content_type.to_owned(), None);
    };
    let mut rest = kind.to_owned();
    let mut swift_bytes = None;
    // The grammar wants each parameter's own semicolon in front of it.
    for (key, value) in Parameters(&content_type[content_type.len() - parameters.len() - 1..]) {
        if key == "swift_bytes" {
            swift_bytes = Some(value.to_owned());
        } else {
            rest.push(';');
            rest.push_str(key);
            rest.push('=');
            rest.push_str(value);
        }
    }
    (rest, swift_bytes)
}

/// Walks `;key[=value]` items and, as a regular expression search does, skips what does not fit.
struct Parameters<'a>(&'a str);

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = self.0.find(';')?;
            self.0 = &self.0[at + 1..];
            let key_text = self.0.trim_start();
            let key_len = token_len(key_text);
            if key_len == 0 {
                continue;
            }
            let key = &key_text[..key_len];
            let after_key = &key_text[key_len..];
            self.0 = after_key;
            let Some(value_text) = after_key.trim_start().strip_prefix('=') else {
                return Some((key, ""));
            };
            let value_text = value_text.trim_start();
            let value_len = match token_len(value_text) {
                0 => quoted_len(value_text),
                len => len,
            };
            if value_len > 0 {
                self.0 = &value_text[value_len..];
            }
            return Some((key, &value_text[..value_len]));
        }
    }
}

/// The length of the token at the start of `text`.
pub fn token_len(text: &str) -> usize {
    text.find(|c: char| c <= ' ' || c == '\u{7f}' || "()<>@,;:\"/[]?={}".contains(c)).unwrap_or(text.len())
}

/// The length of a quoted string at the start of `text`, 0 if there is none or it does not end.
pub fn quoted_len(text: &str) -> usize {
    if !text.starts_with('"') {
        return 0;
    }
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match (escaped, character) {
            // A dot in Python's expression does not match a newline.
            (true, '\n') => return 0,
            (true, _) => escaped = false,
            (false, '\\') => escaped = true,
            (false, '"') => return at + 1,
            (false, _) => {}
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `swift.common.utils.extract_swift_bytes` of 2.38.3, for each of these.
    #[test]
    fn takes_swift_bytes_out_as_swift_does() {
        let table: &[(&str, &str, Option<&str>)] = &[
            ("text/plain", "text/plain", None),
            ("text/plain;swift_bytes=12", "text/plain", Some("12")),
            ("text/plain; charset=utf-8", "text/plain;charset=utf-8", None),
            ("text/plain ; a = b ;swift_bytes=1; c=\"d;e\"", "text/plain ;a=b;c=\"d;e\"", Some("1")),
            ("a/b;", "a/b", None),
            ("a/b;flag", "a/b;flag=", None),
            ("a/b;x=a/b;y=1", "a/b;x=a;y=1", None),
            ("a/b;x=\"unclosed;y=1", "a/b;x=;y=1", None),
            ("a/b;;swift_bytes=3;swift_bytes=4", "a/b", Some("4")),
            ("a/b;x=\"q\\\"r\";swift_bytes=9", "a/b;x=\"q\\\"r\"", Some("9")),
        ];
        for (given, rest, bytes) in table {
            assert_eq!(extract_swift_bytes(given), ((*rest).to_owned(), bytes.map(str::to_owned)), "{given}");
        }
    }
}
