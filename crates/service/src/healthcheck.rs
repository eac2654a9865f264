//! The filter `healthcheck`: `GET /healthcheck` is answered `OK` without asking the app, or 503 while the file at
//! `disable_path` exists, by which an operator takes a server out of a load balancer.

use std::path::PathBuf;
use std::sync::Arc;

use common::config::{ConfigError, Section};

use crate::context::Context;
use crate::http::{App, BoxFuture, Request, Response, SharedApp};

pub fn filter(section: &Section, ctx: &Context, app: SharedApp) -> Result<SharedApp, ConfigError> {
    let disable_path = section.get("disable_path").filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok(Arc::new(HealthCheck { app, disable_path, ctx: ctx.clone() }))
}

struct HealthCheck {
    app: SharedApp,
    disable_path: Option<PathBuf>,
    ctx: Context,
}

impl App for HealthCheck {
    fn call(&self, req: Request) -> BoxFuture<'_, Response> {
        if req.path != "/healthcheck" {
            return self.app.call(req);
        }
        Box::pin(async {
            let disabled = match self.disable_path.clone() {
                Some(path) => self.ctx.disk_pools.run("healthcheck", move || path.exists()).await,
                None => false,
            };
            match disabled {
                true => Response::text(503, "DISABLED BY FILE"),
                false => Response::text(200, "OK"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Method, app_fn};

    async fn get(app: &SharedApp, path: &str) -> (u16, Vec<u8>) {
        let response = app.call(Request::new(Method::Get, path)).await;
        (response.status.0, response.body.as_bytes().unwrap_or_default().to_vec())
    }

    #[tokio::test]
    async fn answers_ok_until_the_disable_file_exists() {
        let dir = tempfile::tempdir().unwrap();
        let flag = dir.path().join("off");
        let section = Section::from_pairs("filter:healthcheck", [("disable_path", flag.to_str().unwrap())]);
        let ctx = Context::builder("object-server").build();
        let app = filter(&section, &ctx, app_fn(|_| async { Response::text(404, "app") })).unwrap();
        assert_eq!(get(&app, "/healthcheck").await, (200, b"OK".to_vec()));
        std::fs::write(&flag, "").unwrap();
        assert_eq!(get(&app, "/healthcheck").await, (503, b"DISABLED BY FILE".to_vec()));
        assert_eq!(get(&app, "/healthcheck/").await, (404, b"app".to_vec()));
    }
}
