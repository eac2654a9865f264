//! The query of a request, as the filters read and change it.

use common::headers::is_true_value;
use common::quote::quote;
use service::http::{Request, Response};

/// Whether a parameter is one of Swift's words for true.
pub fn config_true_param(req: &Request, name: &str) -> bool {
    req.param(name).is_some_and(|value| is_true_value(&value))
}

/// A parameter that must be UTF-8; else 400.
pub fn utf8_param(req: &Request, name: &str) -> Result<Option<String>, Response> {
    let Some(value) = req.param_bytes(name) else {
        return Ok(None);
    };
    let invalid = || Response::text(400, format!("\"{name}\" parameter not valid UTF-8"));
    String::from_utf8(value).map(Some).map_err(|_| invalid())
}

/// The query after a change of its parameters; unchanged ones keep their spelling as long as none changes.
///
/// Swift: the parameters are a dict, so of a repeated one only the last value remains.
pub fn with_params(req: &Request, change: impl FnOnce(&mut Vec<(String, String)>)) -> String {
    let mut params: Vec<(String, String)> = Vec::new();
    for (name, value) in req.params() {
        match params.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => params.push((name, value)),
        }
    }
    let before = params.clone();
    change(&mut params);
    if params == before {
        return req.query.clone();
    }
    urlencode(&params)
}

/// Python's `urlencode`.
fn urlencode(params: &[(String, String)]) -> String {
    let plus = |text: &str| quote(text, " ").replace(' ', "+");
    let pairs: Vec<String> =
        params.iter().map(|(name, value)| format!("{}={}", plus(name), plus(value))).collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::http::Method;

    #[test]
    fn changed_parameters_are_encoded_as_python_encodes_them() {
        let req = Request::new(Method::Get, "/v1/a").with_query("prefix=a%20b/c&x=1&x=2&flag");
        let query = with_params(&req, |params| params.push(("format".to_owned(), "json".to_owned())));
        assert_eq!(query, "prefix=a+b%2Fc&x=2&flag=&format=json");
    }

    #[test]
    fn unchanged_query_keeps_its_spelling() {
        let req = Request::new(Method::Get, "/v1/a").with_query("prefix=a%20b/c&x");
        assert_eq!(with_params(&req, |_| ()), "prefix=a%20b/c&x");
    }

    #[test]
    fn parameters_which_are_not_utf8_are_refused() {
        let req = Request::new(Method::Get, "/v1/a").with_query("format=%ff");
        assert_eq!(utf8_param(&req, "format").unwrap_err().status.0, 400);
        assert_eq!(utf8_param(&req, "other").unwrap(), None);
    }
}
