//! `symlink`: objects that stand for other objects.
//!
//! A symlink is an empty object with its target in system metadata (`X-Symlink-Target: container/object` of the client, perhaps of
//! another `X-Symlink-Target-Account`). GET and HEAD of it are those of the target, through `symloop_max` links at most;
//! with `?symlink=get` they are its own, with the target as a header. A static link names the target's ETag, too: it is
//! checked when the link is made and whenever it is followed. A POST to a link is stored with it, and answered 307.
//!
//! The row in the container has the target in the ETag's parameters, which a listing shows as members of their own.
//! What container sync brings (`SymlinkOverride`) may name a target that is yet to come.

use std::sync::Arc;

use bytes::Bytes;
use common::config::{ConfigError, Section};
use common::headers::{
    CONTENT_LENGTH, ServerType, X_BACKEND_ALLOW_RESERVED_NAMES, X_BACKEND_STORAGE_POLICY_INDEX,
    X_OBJECT_SYSMETA_CONTAINER_UPDATE_OVERRIDE_PREFIX, X_SYMLINK_TARGET, is_sys_meta,
};
use common::quote::{quote_path, unquote};
use serde_json::{Value, json};
use service::Context;
use service::http::message::split_path;
use service::http::{App, Body, BoxFuture, Headers, Method, Request, Response, SharedApp};

use super::copy::{check_account, split_path_header};
use super::large_object::without_body;
use super::pyjson;
use super::request_headers::ignore_range_if;
use crate::controllers::getter::normalize_etag;
use crate::environ::{LeaveRelativeLocation, SymlinkOverride};
use crate::subrequest::{make_pre_authed_request, make_subrequest};
use crate::swift_info::SwiftInfo;

const DEFAULT_SYMLOOP_MAX: u32 = 2;
const TARGET_ACCOUNT: &str = "X-Symlink-Target-Account";
const TARGET_ETAG: &str = "X-Symlink-Target-Etag";
const TARGET_BYTES: &str = "X-Symlink-Target-Bytes";
const SYSMETA_TARGET: &str = "X-Object-Sysmeta-Symlink-Target";
const SYSMETA_TARGET_ACCOUNT: &str = "X-Object-Sysmeta-Symlink-Target-Account";
const SYSMETA_TARGET_ETAG: &str = "X-Object-Sysmeta-Symlink-Target-Etag";
const SYSMETA_TARGET_BYTES: &str = "X-Object-Sysmeta-Symlink-Target-Bytes";
/// Of the client, and as stored.
const NAMES: [(&str, &str); 4] = [
    (X_SYMLINK_TARGET, SYSMETA_TARGET),
    (TARGET_ACCOUNT, SYSMETA_TARGET_ACCOUNT),
    (TARGET_ETAG, SYSMETA_TARGET_ETAG),
    (TARGET_BYTES, SYSMETA_TARGET_BYTES),
];
/// A link that does not count towards `symloop_max`, or leads to a reserved name.
const SYMLOOP_EXTEND: &str = "X-Object-Sysmeta-Symloop-Extend";
const ALLOW_RESERVED_NAMES: &str = "X-Object-Sysmeta-Allow-Reserved-Names";
const MD5_OF_EMPTY: &str = "d41d8cd98f00b204e9800998ecf8427e";
/// A listing is not longer than this.
const MAX_LISTING: usize = 16 << 20;
/// What a link itself answers is read up to here, before its target is asked.
const MAX_LINK: u64 = 64 << 10;

pub struct Symlink(Arc<Core>);

struct Core {
    app: SharedApp,
    symloop_max: u32,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let symloop_max = section.int("symloop_max", i64::from(DEFAULT_SYMLOOP_MAX))?;
    let symloop_max = u32::try_from(symloop_max).ok().filter(|max| *max > 0).unwrap_or(DEFAULT_SYMLOOP_MAX);
    SwiftInfo::of(ctx).register("symlink", json!({"symloop_max": symloop_max, "static_links": true}));
    Ok(Arc::new(Symlink(Arc::new(Core { app, symloop_max }))))
}

impl App for Symlink {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        let core = &self.0;
        let Ok(parts) = req.split_path(3, 4, true) else { return core.app.call(req) };
        let has_object = parts[3].as_ref().is_some_and(|object| !object.is_empty());
        let handled: BoxFuture<'_, Result<Response, Response>> = match &req.method {
            Method::Get if !has_object => return Box::pin(core.listing(req)),
            Method::Get | Method::Head if has_object && req.param("symlink").as_deref() == Some("get") => {
                return Box::pin(core.get_link(req));
            }
            Method::Get | Method::Head if has_object => Box::pin(core.get(req)),
            Method::Put if has_object && req.headers.contains(X_SYMLINK_TARGET) => Box::pin(core.put(req)),
            Method::Post if has_object => Box::pin(core.post(req)),
            _ => return core.app.call(req),
        };
        Box::pin(async move { handled.await.unwrap_or_else(|refused| refused) })
    }
}

/// Where a link leads.
struct Target {
    /// With the version and the account, quoted.
    path: String,
    etag: Option<String>,
    /// Does not count.
    extends: bool,
    reserved: bool,
}

impl Target {
    /// Of what a GET or HEAD of `path` has answered; `None` if that is no link.
    fn of(path: &str, headers: &Headers) -> Option<Target> {
        let target = text(headers, SYSMETA_TARGET)?;
        let mut parts = split_path(path, 2, 3, true).ok()?.into_iter();
        let (version, account) = (parts.next()??, parts.next()??);
        let account = text(headers, SYSMETA_TARGET_ACCOUNT).unwrap_or_else(|| quote_path(account));
        Some(Target {
            path: format!("/{version}/{account}/{}", target.trim_start_matches('/')),
            etag: text(headers, SYSMETA_TARGET_ETAG),
            extends: headers.get_bool(SYMLOOP_EXTEND),
            reserved: headers.contains(ALLOW_RESERVED_NAMES),
        })
    }
}

fn text(headers: &Headers, name: &str) -> Option<String> {
    let value = String::from_utf8_lossy(headers.get(name)?);
    (!value.is_empty()).then(|| value.into_owned())
}

fn etag_of(headers: &Headers) -> Option<String> {
    let etag = normalize_etag(headers.get("Etag"));
    (!etag.is_empty()).then(|| String::from_utf8_lossy(&etag).into_owned())
}

fn conflict(body: String, path: Option<&str>) -> Response {
    let resp = Response::text(409, body);
    match path {
        Some(path) => resp.with_header("Content-Location", path),
        None => resp,
    }
}

impl Core {
    async fn get_link(&self, req: Request) -> Response {
        let mut resp = self.app.call(req).await;
        for (public, stored) in NAMES {
            if let Some(value) = resp.headers.remove(stored) {
                resp.headers.insert(public, value);
            }
        }
        resp
    }

    fn get(&self, mut req: Request) -> impl Future<Output = Result<Response, Response>> + Send {
        ignore_range_if(&mut req.headers, SYSMETA_TARGET);
        self.follow(req, None)
    }

    /// What a request finds at the end of the links. Of `given`, path and ETag that a static link is to have, only static links
    /// are followed.
    async fn follow(&self, mut req: Request, given: Option<(String, String)>) -> Result<Response, Response> {
        let follows_soft = given.is_none();
        let orig = without_body(&req);
        let (mut at, mut wanted) = given.unzip();
        let mut links = 0;
        // Where a link has led to, and what was sent there.
        let mut last: Option<(String, Headers)> = None;
        loop {
            let mut resp = self.app.call(req).await;
            let (path, headers) =
                last.as_ref().map_or((&orig.path, &orig.headers), |(path, headers)| (path, headers));
            let target = Target::of(path, &resp.headers);
            let Some(target) = target.filter(|target| target.etag.is_some() || follows_soft) else {
                return arrive(resp, at, wanted);
            };
            let found = target.etag.clone().or_else(|| etag_of(&resp.headers));
            // Whether all of it can be read does not matter.
            let _ = resp.body.drain(MAX_LINK).await;
            if wanted.is_some() && wanted != found {
                return Err(conflict("X-Symlink-Target-Etag headers do not match".to_owned(), at.as_deref()));
            }
            if links >= self.symloop_max {
                let max = self.symloop_max;
                let body = format!("Too many levels of symbolic links, maximum allowed is {max}");
                return Err(conflict(body, None));
            }
            links += u32::from(!target.extends);
            let mut headers = headers.clone();
            headers.remove(X_BACKEND_STORAGE_POLICY_INDEX);
            let make = if target.reserved { make_pre_authed_request } else { make_subrequest };
            if target.reserved {
                headers.insert(X_BACKEND_ALLOW_RESERVED_NAMES, "true");
            }
            let unquoted = String::from_utf8_lossy(&unquote(target.path.as_bytes())).into_owned();
            req = make(&orig, orig.method.clone(), &unquoted, &orig.query, headers, "", "SYM");
            last = Some((req.path.clone(), req.headers.clone()));
            (at, wanted) = (Some(target.path), target.etag);
        }
    }

    async fn put(&self, mut req: Request) -> Result<Response, Response> {
        if has_body(&mut req).await {
            return Err(Response::text(400, "Symlink requests require a zero byte body"));
        }
        let (target_path, etag) = validate(&mut req)?;
        if let Some(etag) = etag {
            self.check_target(&mut req, &target_path, &etag).await?;
        }
        for (public, stored) in &NAMES[..2] {
            if let Some(value) = req.headers.remove(public) {
                req.headers.insert(stored, value);
            }
        }
        let shown = format!("{X_OBJECT_SYSMETA_CONTAINER_UPDATE_OVERRIDE_PREFIX}Etag");
        let mut row = text(&req.headers, &shown).unwrap_or_else(|| MD5_OF_EMPTY.to_owned());
        for (parameter, stored) in
            ["symlink_target", "symlink_target_account", "symlink_target_etag", "symlink_target_bytes"]
                .into_iter()
                .zip(NAMES.map(|(_, stored)| stored))
        {
            if let Some(value) = text(&req.headers, stored) {
                row += &format!("; {parameter}={value}");
            }
        }
        req.headers.insert(shown, row);
        Ok(self.app.call(req).await)
    }

    /// Makes a link static, if the target is what it says.
    async fn check_target(&self, req: &mut Request, target_path: &str, etag: &str) -> Result<(), Response> {
        if req.env.get::<SymlinkOverride>().is_some()
            && let Some(bytes) = text(&req.headers, TARGET_BYTES)
        {
            req.headers.insert(SYSMETA_TARGET_ETAG, etag);
            req.headers.insert(SYSMETA_TARGET_BYTES, bytes);
            return Ok(());
        }
        let mut head = make_subrequest(req, Method::Head, target_path, &req.query, Headers::new(), "", "SYM");
        if req.headers.get_bool(X_BACKEND_ALLOW_RESERVED_NAMES) {
            head.headers.insert(X_BACKEND_ALLOW_RESERVED_NAMES, "true");
        }
        let at = quote_path(target_path);
        let found = self.follow(head, Some((at.clone(), etag.to_owned()))).await?;
        match found.status.0 {
            404 => return Err(conflict("X-Symlink-Target does not exist".to_owned(), Some(&at))),
            200..=299 => {}
            status => return Err(Response::error(status)),
        }
        let shown = format!("{X_OBJECT_SYSMETA_CONTAINER_UPDATE_OVERRIDE_PREFIX}Etag");
        if !req.headers.contains(&shown) {
            if let Some(parameters) = text(&found.headers, &shown) {
                let parameters = parameters.find(';').map_or("", |from| &parameters[from..]);
                req.headers.insert(&shown, format!("{MD5_OF_EMPTY}{parameters}"));
            } else if let Some(slo_etag) = text(&found.headers, "X-Object-Sysmeta-Slo-Etag") {
                req.headers.insert(&shown, format!("{MD5_OF_EMPTY}; slo_etag={slo_etag}"));
            }
        }
        let bytes = text(&found.headers, "X-Object-Sysmeta-Slo-Size")
            .or_else(|| found.content_length().map(|length| length.to_string()));
        req.headers.insert(SYSMETA_TARGET_BYTES, bytes.unwrap_or_else(|| "0".to_owned()));
        req.headers.insert(SYSMETA_TARGET_ETAG, etag);
        if let (None, Some(content_type)) =
            (text(&req.headers, "Content-Type"), found.headers.get("Content-Type"))
        {
            req.headers.insert("Content-Type", content_type);
        }
        Ok(())
    }

    async fn post(&self, req: Request) -> Result<Response, Response> {
        if req.headers.contains(X_SYMLINK_TARGET) {
            return Err(Response::text(400, "A PUT request is required to set a symlink target"));
        }
        let path = req.path.clone();
        let resp = self.app.call(req).await;
        let Some(target) = Target::of(&path, &resp.headers).filter(|_| resp.is_success()) else {
            return Ok(resp);
        };
        let mut redirect = Response::html(
            307,
            "The requested POST was applied to a symlink. POST directly to the target to apply requested metadata.",
        );
        redirect.headers.insert("Location", target.path);
        if let Some(etag) = target.etag {
            redirect.headers.insert(TARGET_ETAG, etag);
        }
        for (name, value) in resp.headers.iter() {
            if std::str::from_utf8(name).is_ok_and(|name| is_sys_meta(ServerType::Object, name)) {
                redirect.headers.insert(name, value);
            }
        }
        redirect.ext.insert(LeaveRelativeLocation);
        Err(redirect)
    }

    async fn listing(&self, req: Request) -> Response {
        let path = req.path.clone();
        let mut resp = self.app.call(req).await;
        let content_type = resp.headers.get_str("Content-Type").unwrap_or("");
        if !resp.is_success() || content_type.split(';').next() != Some("application/json") {
            return resp;
        }
        let Ok(body) = resp.body.collect(MAX_LISTING).await else { return Response::error(503) };
        match with_targets(&body, &path) {
            Some(listing) => {
                resp.headers.insert(CONTENT_LENGTH, listing.len().to_string());
                resp.with_body(listing)
            }
            None => resp.with_body(body),
        }
    }
}

/// The end of the links: is it what the last static one has promised?
fn arrive(mut resp: Response, at: Option<String>, wanted: Option<String>) -> Result<Response, Response> {
    if let (Some(wanted), Some(found)) = (&wanted, etag_of(&resp.headers))
        && *wanted != found
    {
        let body = format!("Object Etag '{found}' does not match X-Symlink-Target-Etag header '{wanted}'");
        return Err(conflict(body, at.as_deref()));
    }
    if let Some(at) = at {
        resp.headers.insert("Content-Location", at);
    }
    Ok(resp)
}

/// Whether a client sends any data. What was read to know that is put back.
async fn has_body(req: &mut Request) -> bool {
    if let Some(length) = req.body.content_length() {
        return length > 0;
    }
    loop {
        match req.body.next().await {
            Some(Ok(piece)) if piece.is_empty() => {}
            Some(_) => return true,
            None => break,
        }
    }
    req.headers.remove("Transfer-Encoding");
    req.body = Body::empty();
    false
}

/// Brings the headers of a link into form. The path of the target, and the ETag that it is to have.
fn validate(req: &mut Request) -> Result<(String, Option<String>), Response> {
    let target = req.headers.get(X_SYMLINK_TARGET).unwrap_or_default();
    if unquote(target).starts_with(b"/") {
        return Err(Response::text(
            412,
            "X-Symlink-Target header must be of the form <container name>/<object name>",
        ));
    }
    let (container, object) = split_path_header(X_SYMLINK_TARGET, target)?;
    let account = req.headers.get(TARGET_ACCOUNT).map(check_account).transpose()?;
    req.headers.insert(X_SYMLINK_TARGET, quote_path(format!("{container}/{object}")));
    if let Some(account) = &account {
        req.headers.insert(TARGET_ACCOUNT, quote_path(account));
    }
    let own = req.split_path(4, 4, true).ok().and_then(|parts| parts.into_iter().nth(1).flatten());
    let account = account.or(own).unwrap_or_default();
    // Whatever the version of the API is called.
    let path = format!("{account}/{container}/{object}");
    if req.path.trim_start_matches('/').split_once('/').is_some_and(|(_, own)| own == path) {
        return Err(Response::text(400, "Symlink cannot target itself"));
    }
    let etag = normalize_etag(req.headers.get(TARGET_ETAG));
    let etag = String::from_utf8_lossy(&etag).into_owned();
    if etag.contains([';', '"', '\\']) {
        return Err(Response::text(400, format!("Bad {TARGET_ETAG} format")));
    }
    if etag.is_empty() && text(&req.headers, "Content-Type").is_none() {
        req.headers.insert("Content-Type", "application/symlink");
    }
    Ok((format!("/v1/{path}"), (!etag.is_empty()).then_some(etag)))
}

/// The listing with what the ETags of links say as members of their own; `None` if there is nothing to change.
fn with_targets(body: &Bytes, path: &str) -> Option<String> {
    memchr::memmem::find(body, b"symlink_target")?;
    let mut listing: Value = serde_json::from_slice(body).ok()?;
    let mut parts = split_path(path, 2, 3, true).ok()?.into_iter();
    let (version, own) = (parts.next()??, quote_path(parts.next()??));
    for item in listing.as_array_mut()?.iter_mut().filter_map(Value::as_object_mut) {
        let Some(hash) = item.get("hash").and_then(Value::as_str).map(str::to_owned) else { continue };
        let mut parameters = hash.split(';').map(str::trim);
        let mut bare = parameters.next().unwrap_or("").to_owned();
        let (mut target, mut account) = (None, own.clone());
        for parameter in parameters {
            match parameter.split_once('=') {
                Some(("symlink_target", value)) => target = Some(value.to_owned()),
                Some(("symlink_target_account", value)) => value.clone_into(&mut account),
                Some(("symlink_target_etag", value)) => {
                    item.insert("symlink_etag".to_owned(), value.into());
                }
                Some(("symlink_target_bytes", value)) => {
                    item.insert("symlink_bytes".to_owned(), value.parse::<u64>().unwrap_or(0).into());
                }
                _ => bare += &format!("; {parameter}"),
            }
        }
        item.insert("hash".to_owned(), bare.into());
        if let Some(target) = target {
            item.insert("symlink_path".to_owned(), format!("/{version}/{account}/{target}").into());
        }
    }
    Some(pyjson::dumps(&listing))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeSwift, request, send};
    use super::*;
    use common::digest::{hex, md5};

    /// `/v1/a/c/o`, and a filter before it.
    fn filter() -> (FakeSwift, SharedApp) {
        let swift = FakeSwift::default();
        swift.put("/v1/a/c/o \u{e9}", "data", &[("X-Object-Meta-A", "b")]);
        let section = Section::from_pairs("symlink", []);
        let app = factory(&section, &Context::builder("proxy-server").build(), swift.app()).unwrap();
        (swift, app)
    }

    async fn put(app: &SharedApp, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let (status, _, body) = send(app, request(Method::Put, path, headers)).await;
        (status, body)
    }

    #[tokio::test]
    async fn a_link_is_its_target_unless_it_is_asked_for_itself() {
        let (swift, app) = filter();
        assert_eq!(put(&app, "/v1/a/d/l", &[("X-Symlink-Target", "c/o%20%C3%A9")]).await.0, 201);
        assert_eq!(swift.header("/v1/a/d/l", "Content-Type").as_deref(), Some("application/symlink"));
        let shown = swift.header("/v1/a/d/l", "X-Object-Sysmeta-Container-Update-Override-Etag").unwrap();
        assert_eq!(shown, format!("{MD5_OF_EMPTY}; symlink_target=c/o%20%C3%A9"));
        let (status, headers, body) = send(&app, request(Method::Get, "/v1/a/d/l", &[])).await;
        assert_eq!((status, body.as_str()), (200, "data"));
        assert_eq!(headers.get_str("Content-Location"), Some("/v1/a/c/o%20%C3%A9"));
        assert_eq!(headers.get_str("X-Object-Meta-A"), Some("b"));
        let (_, headers, body) = send(&app, request(Method::Get, "/v1/a/d/l?symlink=get", &[])).await;
        assert_eq!((headers.get_str("X-Symlink-Target"), body.as_str()), (Some("c/o%20%C3%A9"), ""));
        assert!(!headers.contains(SYSMETA_TARGET));
    }

    #[tokio::test]
    async fn links_are_followed_so_far_and_no_further() {
        let (_, app) = filter();
        for (link, target) in
            [("1", "c/o%20%C3%A9"), ("2", "d/1"), ("3", "d/2"), ("loop", "d/loop2"), ("loop2", "d/loop")]
        {
            assert_eq!(put(&app, &format!("/v1/a/d/{link}"), &[("X-Symlink-Target", target)]).await.0, 201);
        }
        let get = |link: &str| request(Method::Get, &format!("/v1/a/d/{link}"), &[]);
        assert_eq!(send(&app, get("2")).await.2, "data");
        for link in ["3", "loop"] {
            let (status, _, body) = send(&app, get(link)).await;
            assert_eq!(
                (status, body.as_str()),
                (409, "Too many levels of symbolic links, maximum allowed is 2")
            );
        }
    }

    #[tokio::test]
    async fn a_static_link_holds_its_target_to_its_etag() {
        let (swift, app) = filter();
        let etag = hex(&md5(b"data"));
        let as_put = |target: &str, etag: &str| {
            request(
                Method::Put,
                "/v1/a/d/l",
                &[("X-Symlink-Target", target), ("X-Symlink-Target-Etag", etag)],
            )
        };
        let (status, headers, body) = send(&app, as_put("c/o%20%C3%A9", "other")).await;
        assert_eq!((status, headers.get_str("Content-Location")), (409, Some("/v1/a/c/o%20%C3%A9")));
        assert_eq!(body, format!("Object Etag '{etag}' does not match X-Symlink-Target-Etag header 'other'"));
        let (status, _, body) = send(&app, as_put("c/none", &etag)).await;
        assert_eq!((status, body.as_str()), (409, "X-Symlink-Target does not exist"));
        // Of container sync, before its target.
        let mut early = as_put("c/none", &etag);
        early.headers.insert(TARGET_BYTES, "4");
        early.env.insert(SymlinkOverride);
        assert_eq!(send(&app, early).await.0, 201);
        assert_eq!(swift.header("/v1/a/d/l", SYSMETA_TARGET_BYTES).as_deref(), Some("4"));
        assert_eq!(send(&app, as_put("c/o%20%C3%A9", &etag)).await.0, 201);
        assert_eq!(swift.header("/v1/a/d/l", SYSMETA_TARGET_BYTES).as_deref(), Some("4"));
        assert_eq!(send(&app, request(Method::Get, "/v1/a/d/l", &[])).await.2, "data");
        swift.put("/v1/a/c/o \u{e9}", "changed", &[]);
        assert_eq!(send(&app, request(Method::Get, "/v1/a/d/l", &[])).await.0, 409);
    }

    #[tokio::test]
    async fn malformed_links_are_refused() {
        let (_, app) = filter();
        let form = "X-Symlink-Target header must be of the form <container name>/<object name>";
        for (headers, status, told) in [
            (&[("X-Symlink-Target", "/c/o")][..], 412, form),
            (&[("X-Symlink-Target", "c")], 412, form),
            (&[("X-Symlink-Target", "d/l")], 400, "Symlink cannot target itself"),
            (
                &[("X-Symlink-Target", "c/o"), ("X-Symlink-Target-Etag", "a;b")],
                400,
                "Bad X-Symlink-Target-Etag format",
            ),
            (
                &[("X-Symlink-Target", "c/o"), ("X-Symlink-Target-Account", "a/b")],
                412,
                "Account name cannot contain slashes",
            ),
        ] {
            assert_eq!(put(&app, "/v1/a/d/l", headers).await, (status, told.to_owned()));
        }
        let req = request(Method::Put, "/v1/a/d/l", &[("X-Symlink-Target", "c/o")]).with_body("data");
        assert_eq!(send(&app, req).await.2, "Symlink requests require a zero byte body");
        let post = request(Method::Post, "/v1/a/d/l", &[("X-Symlink-Target", "c/o")]);
        assert_eq!(send(&app, post).await.0, 400);
    }

    #[test]
    fn a_listing_shows_where_links_lead() {
        let listing = br#"[{"hash": "e; a=b; symlink_target=c/o; symlink_target_etag=t; symlink_target_bytes=4"}, {"hash": "x"}, {"subdir": "s"}]"#;
        assert_eq!(
            with_targets(&Bytes::from_static(listing), "/v1/a/c").unwrap(),
            r#"[{"hash": "e; a=b", "symlink_etag": "t", "symlink_bytes": 4, "symlink_path": "/v1/a/c/o"}, {"hash": "x"}, {"subdir": "s"}]"#
        );
        assert_eq!(with_targets(&Bytes::from_static(b"[]"), "/v1/a/c"), None);
    }
}
