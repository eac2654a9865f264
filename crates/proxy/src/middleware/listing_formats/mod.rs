//! `listing_formats`: container and account servers always answer with JSON; this filter makes of it what the client
//! wants (`format=` or Accept): JSON, XML or plain names. Filters right of it need to know JSON alone.
//!
//! Names with the reserved byte are left out unless the request may see them. A listing too long to be one of Swift's
//! own passes as it is.
//!
//! Swift: JSON for a client is parsed and written again. Here it passes unread when it is ASCII without a reserved
//! name, which comes to the same bytes.

mod convert;

use std::sync::Arc;

use bytes::Bytes;
use common::config::{ConfigError, Section};
use common::headers::{CONTENT_LENGTH, CONTENT_TYPE, RESERVED, X_BACKEND_ALLOW_RESERVED_NAMES};
use common::quote::quote_path;
use serde_json::Value;
use service::Context;
use service::http::{App, Body, BoxFuture, Method, Request, Response, SharedApp};
use service::logs::Logger;

use self::convert::{NotAListing, Record};
use super::access_log::AccessLog;
use super::query::{utf8_param, with_params};
use super::{accept, is_api_version, pyjson};
use crate::environ::FormatListing;

/// Longer than the longest listing that a container server makes.
pub const MAX_CONTAINER_LISTING_CONTENT_LENGTH: u64 = 1024 * 10_000 * 2;
const FORMATS: [&str; 4] = ["text/plain", "application/json", "application/xml", "text/xml"];

pub struct ListingFormats {
    app: SharedApp,
    logger: Logger,
}

pub fn factory(_section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    Ok(Arc::new(ListingFormats { app, logger: ctx.logger.clone() }))
}

impl App for ListingFormats {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        if !matches!(req.method, Method::Get | Method::Head) {
            return self.app.call(req);
        }
        match Place::of(&req) {
            Some(place) => Box::pin(self.listing(req, place)),
            None => self.app.call(req),
        }
    }
}

/// What is listed.
struct Place {
    account: String,
    container: Option<String>,
}

impl Place {
    fn of(req: &Request) -> Option<Self> {
        let mut parts = req.split_path(2, 3, false).ok()?.into_iter();
        let version = parts.next()??;
        is_api_version(&version).then_some(())?;
        Some(Self {
            account: parts.next()??,
            container: parts.next()?.filter(|container| !container.is_empty()),
        })
    }
}

impl ListingFormats {
    async fn listing(&self, mut req: Request, place: Place) -> Response {
        let format = match wanted_format(&req) {
            Ok(format) => format,
            Err(refused) => return refused,
        };
        let query = with_params(&req, |params| match params.iter_mut().find(|(name, _)| name == "format") {
            Some(format) => "json".clone_into(&mut format.1),
            None => params.push(("format".to_owned(), "json".to_owned())),
        });
        let can_vary = req.param("format").is_none();
        if query != req.query {
            req = req.with_query(query);
            AccessLog::note_target(&req);
        }
        if req.env.get::<FormatListing>().is_none() {
            req.env.insert(FormatListing(true));
        }
        let left_alone = req.env.get::<FormatListing>() == Some(&FormatListing(false));
        let is_head = req.is_head();
        let allow_reserved = req.headers.get_bool(X_BACKEND_ALLOW_RESERVED_NAMES);
        let resp = self.app.call(req).await;
        if left_alone
            || resp.ext.get::<FormatListing>() == Some(&FormatListing(false))
            || !matches!(resp.status.0, 200 | 204)
        {
            return resp;
        }
        self.formatted(resp, &place, format, can_vary, is_head, allow_reserved).await
    }

    async fn formatted(
        &self,
        mut resp: Response,
        place: &Place,
        format: &'static str,
        can_vary: bool,
        is_head: bool,
        allow_reserved: bool,
    ) -> Response {
        if can_vary {
            add_vary_accept(&mut resp);
        }
        let content_type = resp.headers.get_str(CONTENT_TYPE).unwrap_or("");
        if content_type.split(';').next() != Some("application/json") {
            return resp;
        }
        if is_head {
            resp.headers.insert(CONTENT_TYPE, format!("{format}; charset=utf-8"));
            resp.headers.insert(CONTENT_LENGTH, "0");
            resp.body = Body::empty();
            return resp;
        }
        if resp.content_length().is_none_or(|length| length > MAX_CONTAINER_LISTING_CONTENT_LENGTH) {
            return resp;
        }
        let body = match resp.body.collect(MAX_CONTAINER_LISTING_CONTENT_LENGTH as usize).await {
            Ok(body) => body,
            Err(_) => return Response::error(503),
        };
        match self.converted(&body, place, format, allow_reserved) {
            Some(converted) => {
                if converted.is_empty() {
                    resp.status = 204.into();
                }
                resp.headers.insert(CONTENT_TYPE, format!("{format}; charset=utf-8"));
                resp.headers.insert(CONTENT_LENGTH, converted.len().to_string());
                resp.with_body(converted)
            }
            None => resp.with_body(body),
        }
    }

    /// The listing in another format; `None` if it is not one.
    fn converted(&self, body: &Bytes, place: &Place, format: &str, allow_reserved: bool) -> Option<Bytes> {
        let may_hide = !allow_reserved && memchr::memmem::find(body, b"\\u0000").is_some();
        if format == "application/json" && body.is_ascii() && body.starts_with(b"[") && !may_hide {
            return Some(body.clone());
        }
        if format == "text/plain" && !may_hide {
            return convert::body_to_text(body).ok().map(Bytes::from);
        }
        let mut listing: Vec<Record> = serde_json::from_slice(body).ok()?;
        if may_hide {
            listing.retain(|record| !self.is_reserved(record, place));
        }
        let converted = match (format, &place.container) {
            ("application/json", _) => {
                let records = listing.into_iter().map(Value::Object).collect();
                Ok(pyjson::dumps(&Value::Array(records)))
            }
            ("text/plain", _) => convert::to_text(&listing),
            (_, Some(container)) => convert::container_to_xml(&listing, container),
            (_, None) => convert::account_to_xml(&listing, &place.account),
        };
        converted.map_err(|NotAListing| ()).ok().map(Bytes::from)
    }

    fn is_reserved(&self, record: &Record, place: &Place) -> bool {
        let names = ["name", "subdir"].into_iter().filter_map(|key| Some((key, record.get(key)?.as_str()?)));
        let Some((key, name)) = names.into_iter().find(|(_, name)| name.contains(RESERVED)) else {
            return false;
        };
        let account = quote_path(&place.account);
        let name = pyjson::repr(name);
        match &place.container {
            Some(container) => self.logger.warning(format_args!(
                "Container listing for {account}/{} had reserved byte in {key}: {name}",
                quote_path(container)
            )),
            None => self
                .logger
                .warning(format_args!("Account listing for {account} had reserved byte in {key}: {name}")),
        }
        true
    }
}

/// The content type that the client wants.
fn wanted_format(req: &Request) -> Result<&'static str, Response> {
    let format = utf8_param(req, "format")?.filter(|format| !format.is_empty());
    if let Some(format) = format {
        return Ok(match format.to_lowercase().as_str() {
            "json" => "application/json",
            "xml" => "application/xml",
            _ => "text/plain",
        });
    }
    match accept::best_match(req.headers.get_str("Accept"), &FORMATS) {
        Ok(Some(format)) => Ok(format),
        Ok(None) => Err(Response::error(406)),
        Err(accept::InvalidAccept) => Err(Response::html(400, "Invalid Accept header")),
    }
}

fn add_vary_accept(resp: &mut Response) {
    let vary = match resp.headers.get_str("Vary") {
        None => "Accept".to_owned(),
        Some(vary) if vary.split(',').any(|name| name.trim_ascii().eq_ignore_ascii_case("accept")) => return,
        Some(vary) => format!("{vary}, Accept"),
    };
    resp.headers.insert("Vary", vary);
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::http::app_fn;

    const LISTING: &str = r#"[{"name": "\u00e9"}, {"subdir": "a/"}, {"name": "x\u0000y"}]"#;

    async fn get(target: &str, accept: &str) -> (u16, String, String, String) {
        let app = app_fn(|req: Request| async move {
            assert_eq!(req.param("format").as_deref(), Some("json"));
            let length = LISTING.len().to_string();
            let resp = Response::new(200).with_header("Content-Type", "application/json; charset=utf-8");
            resp.with_header("Content-Length", length).with_body(LISTING)
        });
        let filter = ListingFormats { app, logger: Logger::memory().0 };
        let mut req = Request::from_target(Method::Get, target.to_owned().into());
        if !accept.is_empty() {
            req.headers.insert("Accept", accept);
        }
        let mut resp = filter.call(req).await;
        let body = resp.body.collect(1000).await.unwrap();
        let header = |name: &str| resp.headers.get_str(name).unwrap_or("").to_owned();
        (resp.status.0, header("Content-Type"), header("Vary"), String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn plain_listing_has_a_name_a_line_and_hides_reserved_names() {
        let (status, content_type, vary, body) = get("/v1/a/c", "").await;
        assert_eq!((status, body.as_str()), (200, "é\na/\n"));
        assert_eq!((content_type.as_str(), vary.as_str()), ("text/plain; charset=utf-8", "Accept"));
    }

    #[tokio::test]
    async fn format_in_the_query_wins_over_accept() {
        let (_, content_type, vary, body) = get("/v1/a/c?format=json", "text/plain").await;
        assert_eq!(body, "[{\"name\": \"\\u00e9\"}, {\"subdir\": \"a/\"}]");
        assert_eq!((content_type.as_str(), vary.as_str()), ("application/json; charset=utf-8", ""));
    }

    #[tokio::test]
    async fn unacceptable_formats_are_refused() {
        assert_eq!(get("/v1/a/c", "image/png").await.0, 406);
        assert_eq!(get("/v1/a/c", "nonsense").await.0, 400);
        assert_eq!(get("/v1/a/c?format=%ff", "").await.0, 400);
    }

    #[tokio::test]
    async fn listing_without_the_members_for_xml_passes_as_it_is() {
        let (_, content_type, _, body) = get("/v1/a/c?format=xml", "").await;
        assert_eq!((content_type.as_str(), body.as_str()), ("application/json; charset=utf-8", LISTING));
    }

    #[tokio::test]
    async fn objects_pass() {
        let app = app_fn(|req: Request| async move { Response::text(200, req.query) });
        let filter = ListingFormats { app, logger: Logger::memory().0 };
        let mut resp = filter.call(Request::new(Method::Get, "/v1/a/c/o")).await;
        assert!(resp.body.collect(100).await.unwrap().is_empty());
    }
}
