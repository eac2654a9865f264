//! `gatekeeper`: keeps headers that only Swift's own parts may send from coming in, and from going out.
//!
//! System metadata, `X-Backend-*` and the old update headers (`X-Account-Host`...) are removed from requests and
//! responses. A client's `X-Timestamp` moves to `X-Backend-Inbound-X-Timestamp` unless
//! `shunt_inbound_x_timestamp` is off; with `allow_reserved_names_header` a client may reach reserved names.

use std::sync::Arc;

use common::config::{ConfigError, Section};
use common::headers::{X_BACKEND_ALLOW_RESERVED_NAMES, X_TIMESTAMP};
use service::Context;
use service::http::{App, BoxFuture, Headers, Request, Response, SharedApp};
use service::logs::{Level, Logger};

use crate::environ::LeaveRelativeLocation;

pub struct Gatekeeper {
    app: SharedApp,
    logger: Logger,
    shunt_x_timestamp: bool,
    allow_reserved_names_header: bool,
}

pub fn factory(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    Ok(Arc::new(Gatekeeper {
        app,
        logger: ctx.logger.clone(),
        shunt_x_timestamp: section.bool("shunt_inbound_x_timestamp", true)?,
        allow_reserved_names_header: section.bool("allow_reserved_names_header", false)?,
    }))
}

impl App for Gatekeeper {
    fn call(&self, mut req: Request) -> BoxFuture<'_, Response> {
        self.clean_request(&mut req);
        let relative_location = req.env.get::<LeaveRelativeLocation>().is_some();
        let trans_id = self.logger.enabled(Level::Debug).then(|| req.env.trans_id.clone());
        Box::pin(async move {
            let mut resp = self.app.call(req).await;
            self.remove_private(&mut resp.headers, "response", trans_id.as_deref());
            let told = resp.ext.get::<LeaveRelativeLocation>().is_some();
            if relative_location || told {
                make_location_relative(&mut resp.headers);
            }
            resp
        })
    }
}

impl Gatekeeper {
    fn clean_request(&self, req: &mut Request) {
        self.remove_private(&mut req.headers, "request", Some(&req.env.trans_id));
        if self.shunt_x_timestamp
            && let Some(timestamp) = req.headers.remove(X_TIMESTAMP)
        {
            req.headers.insert("X-Backend-Inbound-X-Timestamp", timestamp);
        }
        if self.allow_reserved_names_header
            && let Some(allow) = req.headers.remove("X-Allow-Reserved-Names")
        {
            req.headers.insert(X_BACKEND_ALLOW_RESERVED_NAMES, allow);
        }
    }

    fn remove_private(&self, headers: &mut Headers, what: &str, trans_id: Option<&str>) {
        if !headers.iter().any(|(name, _)| is_private(name)) {
            return;
        }
        if self.logger.enabled(Level::Debug) {
            let names: Vec<_> =
                headers.iter().map(|(name, _)| name).filter(|name| is_private(name)).collect();
            let names: Vec<_> = names.into_iter().map(String::from_utf8_lossy).collect();
            let logger = self.logger.with_txn(trans_id.unwrap_or(""));
            logger.debug(format_args!("removed {what} headers: {}", names.join(", ")));
        }
        headers.retain(|name, _| !is_private(name));
    }
}

/// Names beginning so are private.
const PRIVATE_PREFIXES: [&[u8]; 5] = [
    b"x-backend",
    b"x-account-sysmeta-",
    b"x-container-sysmeta-",
    b"x-object-sysmeta-",
    b"x-object-transient-sysmeta-",
];

/// From before there was `X-Backend-`.
const PRIVATE_NAMES: [&[u8]; 11] = [
    b"x-account-host",
    b"x-account-device",
    b"x-account-partition",
    b"x-container-host",
    b"x-container-device",
    b"x-container-partition",
    b"x-container-root-db-state",
    b"x-delete-at-host",
    b"x-delete-at-device",
    b"x-delete-at-partition",
    b"x-delete-at-container",
];

/// Whether a header is for Swift's own parts only.
pub fn is_private(name: &[u8]) -> bool {
    // Most headers are told apart by their first bytes.
    match name {
        [b'x' | b'X', b'-', b'a' | b'A' | b'b' | b'B' | b'c' | b'C' | b'd' | b'D' | b'o' | b'O', ..] => (),
        _ => return false,
    }
    PRIVATE_PREFIXES
        .iter()
        .any(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
        || PRIVATE_NAMES.iter().any(|private| name.eq_ignore_ascii_case(private))
}

/// Takes scheme and host off the Location.
fn make_location_relative(headers: &mut Headers) {
    let Some(location) = headers.get_str("Location") else {
        return;
    };
    let Some((_, rest)) = location.split_once("://") else {
        return;
    };
    let path = rest.find(['/', '?', '#']).map_or("", |start| &rest[start..]).to_owned();
    headers.insert("Location", path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_headers_are_told_from_public_ones() {
        for name in [
            "X-Backend-Foo",
            "x-backend",
            "X-Account-Sysmeta-A",
            "X-OBJECT-TRANSIENT-SYSMETA-X",
            "x-object-sysmeta-",
            "X-Container-Root-Db-State",
            "X-Delete-At-Container",
        ] {
            assert!(is_private(name.as_bytes()), "{name}");
        }
        for name in [
            "X-Account-Meta-A",
            "X-Delete-At",
            "X-Container-Hosts",
            "X-Object-Sysmeta",
            "X-Auth-Token",
            "Content-Type",
            "x",
            "",
        ] {
            assert!(!is_private(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn location_loses_scheme_and_host() {
        for (absolute, relative) in
            [("http://h:80/v1/a?x=y#z", "/v1/a?x=y#z"), ("https://h", ""), ("/v1/a", "/v1/a")]
        {
            let mut headers = Headers::new();
            headers.insert("Location", absolute);
            make_location_relative(&mut headers);
            assert_eq!(headers.get_str("Location"), Some(relative));
        }
    }
}
