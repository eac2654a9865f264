//! Where containers may be synced to: the targets that `container-sync-realms.conf` and `allowed_sync_hosts` allow.
//!
//! The container server checks X-Container-Sync-To when it is set, the container-sync daemon whenever it is about to use it.

use std::path::Path;

use common::config::Section;
use common::container_sync_realms::{Target, validate_sync_to};
use common::headers::X_CONTAINER_SYNC_TO;
use service::Context;
use service::container_sync_realms::RealmsConf;
use service::http::Headers;

use crate::server::{Answer, html_answer};

pub struct SyncTo {
    allowed_hosts: Vec<String>,
    realms: RealmsConf,
}

impl SyncTo {
    pub fn from_section(section: &Section, ctx: &Context) -> Self {
        let swift_dir = section.str("swift_dir", service::context::DEFAULT_SWIFT_DIR);
        Self {
            allowed_hosts: section.list("allowed_sync_hosts", "127.0.0.1"),
            realms: RealmsConf::new(Path::new(&swift_dir), ctx.clock.clone(), ctx.logger.clone()),
        }
    }

    /// What a value of X-Container-Sync-To stands for, or what is wrong with it.
    pub fn target(&self, value: &str) -> Result<Option<Target>, String> {
        validate_sync_to(value, &self.allowed_hosts, &self.realms.current())
    }

    /// 400 if a request names a target that is not allowed.
    pub fn validate(&self, headers: &Headers) -> Answer<()> {
        let Some(value) = headers.get(X_CONTAINER_SYNC_TO) else { return Ok(()) };
        self.target(&String::from_utf8_lossy(value)).map(drop).map_err(|error| html_answer(400, error))
    }
}
