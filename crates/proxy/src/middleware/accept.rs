//! The `Accept` header: which of the types on offer suits the client best, `swift.common.swob.Accept`.

/// The header cannot be parsed; each caller has its own answer to that.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidAccept;

struct MediaRange<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: f64,
    exact: bool,
}

/// The best of `options`; the first one if the client has no preference; `None` if it wants none of them.
pub fn best_match<'o>(header: Option<&str>, options: &[&'o str]) -> Result<Option<&'o str>, InvalidAccept> {
    let header = header.unwrap_or("");
    if header.is_empty() {
        return Ok(options.first().copied());
    }
    let mut ranges = header.split(',').map(parse_media_range).collect::<Result<Vec<_>, _>>()?;
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality).then(b.exact.cmp(&a.exact)));
    Ok(ranges.iter().find_map(|range| options.iter().copied().find(|option| range.matches(option))))
}

impl MediaRange<'_> {
    fn matches(&self, option: &str) -> bool {
        let Some((kind, subtype)) = option.split_once('/') else {
            return false;
        };
        (self.kind == "*" || self.kind == kind) && (self.subtype == "*" || self.subtype == subtype)
    }
}

/// `type/subtype` followed by `; name=value` parameters, of which only `q` counts.
fn parse_media_range(text: &str) -> Result<MediaRange<'_>, InvalidAccept> {
    let (kind, rest) = take_token(text.trim_start_matches(is_space)).ok_or(InvalidAccept)?;
    let (subtype, parameters) = rest.strip_prefix('/').and_then(take_token).ok_or(InvalidAccept)?;
    check_parameters(parameters)?;
    let mut quality = None;
    for parameter in parameters.split(';').map(|p| p.trim_matches(is_space)).filter(|p| !p.is_empty()) {
        let (name, value) = parameter.split_once('=').ok_or(InvalidAccept)?;
        if value.contains('=') {
            return Err(InvalidAccept);
        }
        if name.trim_matches(is_space) == "q" {
            let value = value.trim_matches(is_space).parse::<f64>().map_err(|_| InvalidAccept)?;
            if quality.replace(value).is_some() {
                return Err(InvalidAccept);
            }
        }
    }
    Ok(MediaRange { kind, subtype, quality: quality.unwrap_or(1.0), exact: kind != "*" && subtype != "*" })
}

/// The grammar of the parameters; their values are looked at separately, as Swift does.
fn check_parameters(mut rest: &str) -> Result<(), InvalidAccept> {
    loop {
        rest = rest.trim_start_matches(is_space);
        if rest.is_empty() {
            return Ok(());
        }
        rest = rest.strip_prefix(';').ok_or(InvalidAccept)?.trim_start_matches(is_space);
        let (_name, after_name) = take_token(rest).ok_or(InvalidAccept)?;
        let value = after_name.trim_start_matches(is_space).strip_prefix('=').ok_or(InvalidAccept)?;
        let value = value.trim_start_matches(is_space);
        rest = match value.strip_prefix('"') {
            Some(quoted) => after_quoted_string(quoted).ok_or(InvalidAccept)?,
            None => take_token(value).ok_or(InvalidAccept)?.1,
        };
    }
}

fn after_quoted_string(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(&text[i + 1..]),
            _ => (),
        }
    }
    None
}

fn take_token(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c| !is_token_char(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn is_token_char(c: char) -> bool {
    !matches!(c, '\0'..=' ' | '\x7f' | '(' | ')' | '<' | '>' | '@' | ',' | ';' | ':' | '"' | '/' | '[' | ']')
        && !matches!(c, '?' | '=' | '{' | '}')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/accept.json`: (header, best match or null, raised ValueError), see golden/README.md.
    #[test]
    fn preferences_are_weighed_as_swift_weighs_them() {
        let golden: Vec<(String, Option<String>, bool)> =
            serde_json::from_str(include_str!("golden/accept.json")).unwrap();
        let options = ["text/plain", "application/json", "application/xml", "text/xml"];
        for (header, expected, invalid) in golden {
            let found = best_match(Some(&header), &options);
            match invalid {
                true => assert_eq!(found, Err(InvalidAccept), "{header:?}"),
                false => assert_eq!(found, Ok(expected.as_deref()), "{header:?}"),
            }
        }
        assert_eq!(best_match(None, &options), Ok(Some("text/plain")));
    }
}
