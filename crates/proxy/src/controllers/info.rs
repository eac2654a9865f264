//! `/info`: what the cluster can do. Admins see more, by a signed request.

use hmac::{Hmac, Mac};
use service::http::{Method, Request, Response, Status};
use sha1::Sha1;

use crate::app::Application;

pub struct InfoController;

impl InfoController {
    pub fn handle(self, app: &Application, req: Request) -> Response {
        match req.method {
            Method::Options => Response::new(Status::OK).with_header("Allow", "HEAD, GET, OPTIONS"),
            _ => self.get_or_head(app, &req).unwrap_or_else(Response::error),
        }
    }

    fn get_or_head(self, app: &Application, req: &Request) -> Result<Response, Status> {
        if !app.options.expose_info {
            return Err(Status::FORBIDDEN);
        }
        let admin = is_admin(app, req)?;
        let info = app.swift_info.get(admin, &app.options.disallowed_sections);
        let mut resp = Response::new(Status::OK)
            .with_header("Content-Type", "application/json; charset=UTF-8")
            .with_body(to_ascii_json(&info));
        if let Some(origin) = req.headers.get("Origin") {
            resp.headers.insert("Access-Control-Allow-Origin", origin);
            resp.headers.insert("Access-Control-Expose-Headers", "x-trans-id");
        }
        Ok(resp)
    }
}

/// Is the request signed with the admin key? One that is wrongly so is refused.
fn is_admin(app: &Application, req: &Request) -> Result<bool, Status> {
    let sig = req.param("swiftinfo_sig").unwrap_or_default();
    let expires = req.param("swiftinfo_expires").unwrap_or_default();
    if sig.is_empty() && expires.is_empty() {
        return Ok(false);
    }
    let key = app.options.admin_key.as_deref().filter(|key| !key.is_empty()).ok_or(Status::FORBIDDEN)?;
    let expires: i64 = expires.trim().parse().map_err(|_| Status::UNAUTHORIZED)?;
    if (expires as f64) < app.ctx.clock.unix_secs() {
        return Err(Status::UNAUTHORIZED);
    }
    let sig = common::digest::unhex(sig.as_bytes()).ok_or(Status::UNAUTHORIZED)?;
    // Who may GET may HEAD too.
    let methods: &[&str] = if req.is_head() { &["HEAD", "GET"] } else { &["GET"] };
    let valid = methods.iter().any(|method| {
        let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(key.as_bytes()) else { return false };
        mac.update(format!("{method}\n{expires}\n/info").as_bytes());
        mac.verify_slice(&sig).is_ok()
    });
    if valid { Ok(true) } else { Err(Status::UNAUTHORIZED) }
}

/// JSON as Python's `json.dumps` writes it: ASCII, a space after each comma and colon.
pub fn to_ascii_json(value: &serde_json::Value) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    // Writing a Value into memory cannot fail.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    escape_non_ascii(&String::from_utf8_lossy(&out))
}

/// As `to_ascii_json`, without the spaces.
pub fn to_compact_json(value: &serde_json::Value) -> String {
    escape_non_ascii(&value.to_string())
}

fn escape_non_ascii(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            ascii.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = serde_json::json!({"a": [1, 2.5, null, true], "é": "☃\u{1f954}\"\n", "o": {}});
        let want = r#"{"a": [1, 2.5, null, true], "\u00e9": "\u2603\ud83e\udd54\"\n", "o": {}}"#;
        assert_eq!(to_ascii_json(&value), want);
    }
}
