//! What the access log says of a request that only code right of `proxy-logging` in the pipeline knows.
//!
//! In Swift all filters share one environ, so the log line shows what they left there: `COPY` logs the path of
//! the destination, a listing has `format=json` in its query. Here the leftmost `proxy-logging` puts an
//! [`AccessLog`] into the request's environ; whoever changes what is to be logged tells it. Subrequests do not
//! inherit it: they are logged by themselves.

use std::sync::Arc;

use common::policy::PolicyIndex;
use parking_lot::Mutex;
use service::http::{Environ, Request};

/// Shared by all who handle one request.
#[derive(Clone, Default)]
pub struct AccessLog(Arc<Mutex<Record>>);

/// What is known by the end of the request; `None` is what the request came with.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Quoted path and query.
    pub path_qs: Option<String>,
    /// `swift.access_logging`: who asked.
    pub user_id: Option<String>,
    /// `swift.proxy_logging_status`: logged instead of the status of the response.
    pub status: Option<u16>,
    pub policy_index: Option<PolicyIndex>,
}

impl AccessLog {
    fn update(env: &Environ, change: impl FnOnce(&mut Record)) {
        if let Some(log) = env.get::<AccessLog>() {
            change(&mut log.0.lock());
        }
    }

    /// The request goes on to another path or query than it came with.
    pub fn note_target(req: &Request) {
        Self::update(&req.env, |record| record.path_qs = Some(req.path_qs()));
    }

    /// The first to know the user is right.
    pub fn note_user(env: &Environ, user_id: &str) {
        Self::update(env, |record| {
            record.user_id.get_or_insert_with(|| user_id.to_owned());
        });
    }

    pub fn set_user(env: &Environ, user_id: &str) {
        Self::update(env, |record| record.user_id = Some(user_id.to_owned()));
    }

    pub fn note_status(env: &Environ, status: u16) {
        Self::update(env, |record| record.status = Some(status));
    }

    pub fn note_policy(env: &Environ, index: PolicyIndex) {
        Self::update(env, |record| record.policy_index = Some(index));
    }

    pub fn take(&self) -> Record {
        std::mem::take(&mut *self.0.lock())
    }
}
