//! Which controller answers a request, and what it allows.

pub mod account;
pub mod base;
pub mod container;
pub mod cors;
pub mod getter;
pub mod info;
pub mod object;
mod shards;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use common::headers::{RESERVED, X_BACKEND_STORAGE_POLICY_INDEX};
use common::policy::PolicyIndex;
use service::http::{Method, Request, Response, SharedApp};

use crate::app::{Application, ProxyApp};
use crate::controllers::account::AccountController;
use crate::controllers::container::ContainerController;
use crate::controllers::info::InfoController;
use crate::controllers::object::ObjectController;
use crate::info::{AUTO_CREATE_ACCOUNT_PREFIX, container_info, is_server_error};

const MISPLACED_OBJECTS_ACCOUNT: &str = ".misplaced_objects";

pub enum Controller {
    Info(InfoController),
    Account(AccountController),
    Container(ContainerController),
    Object(ObjectController),
}

impl Controller {
    /// The controller for the request's path, or why there is none.
    pub async fn of(app: &Arc<Application>, req: &mut Request) -> Result<Controller, Response> {
        if req.path == "/info" {
            return Ok(Controller::Info(InfoController));
        }
        let refuse = |response: Response| {
            app.ctx.statsd.increment("errors");
            Err(response)
        };
        let Ok(parts) = req.split_path(1, 4, true) else { return refuse(Response::error(404)) };
        let [version, account, container, object] = <[Option<String>; 4]>::try_from(parts)
            .unwrap_or_default()
            .map(|part| part.filter(|part| !part.is_empty()));
        let Some(account) = account else { return refuse(Response::error(412).with_body("Bad URL")) };
        let versions = &app.ctx.swift_conf.constraints.valid_api_versions;
        if version.is_none_or(|version| !versions.contains(&version)) {
            return refuse(Response::error(400));
        }
        match (container, object) {
            (None, Some(_)) => refuse(Response::error(412).with_body("Bad URL")),
            (None, None) => Ok(Controller::Account(AccountController { account })),
            (Some(container), None) => Ok(Controller::Container(ContainerController { account, container })),
            (Some(container), Some(object)) => {
                let policy = object_policy(app, req, &account, &container).await?;
                validate_internal_obj(&account, &container, &object)?;
                Ok(Controller::Object(ObjectController { account, container, object, policy }))
            }
        }
    }

    pub fn allowed_methods(&self, app: &Application) -> Vec<&'static str> {
        match self {
            Controller::Info(_) => vec!["GET", "HEAD", "OPTIONS"],
            Controller::Account(_) if !app.options.allow_account_management => {
                vec!["GET", "HEAD", "POST", "OPTIONS"]
            }
            _ => vec!["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"],
        }
    }

    /// With `private`, methods which are not for clients too.
    pub fn allows(&self, app: &Application, method: &Method, private: bool) -> bool {
        self.allowed_methods(app).contains(&method.as_str())
            || (private && matches!((self, method), (Controller::Container(_), Method::Update)))
    }

    /// Does the handler ask the authorizer itself, when it knows the ACL?
    pub fn delays_denial(&self, method: &Method) -> bool {
        match self {
            Controller::Info(_) => true,
            Controller::Account(_) => false,
            Controller::Container(_) => matches!(method, Method::Get | Method::Head),
            Controller::Object(_) => *method != Method::Options,
        }
    }

    pub async fn handle(self, app: &Arc<Application>, req: Request) -> Response {
        let answer = match self {
            Controller::Info(controller) => Ok(controller.handle(app, req)),
            // Apart, so that a request for an object does not take up what the others would.
            Controller::Account(controller) => Box::pin(controller.handle(app, req)).await,
            Controller::Container(controller) => Box::pin(controller.handle(app, req)).await,
            Controller::Object(controller) => controller.handle(app, req).await,
        };
        answer.unwrap_or_else(|refusal| refusal)
    }
}

/// Where this app's own lookups go: to itself, through the access log if the pipeline has one.
pub fn this_app(app: &Arc<Application>) -> SharedApp {
    app.ctx.pipeline.logging_app().unwrap_or_else(|| Arc::new(ProxyApp(app.clone())))
}

/// The policy of the object's container, unless the request names another.
async fn object_policy(
    app: &Arc<Application>,
    req: &mut Request,
    account: &str,
    container: &str,
) -> Result<PolicyIndex, Response> {
    let info = container_info(req, &this_app(app), account, container, "").await;
    if is_server_error(info.status) {
        return Err(Response::error(503));
    }
    let index = match req.headers.get(X_BACKEND_STORAGE_POLICY_INDEX) {
        None => info.policy_index(),
        Some(value) => {
            let parsed = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            PolicyIndex(parsed.ok_or_else(unknown_policy)?)
        }
    };
    app.policies().get(index).map(|_| index).ok_or_else(unknown_policy)
}

/// 503: the policy may be one that the next reload of the configuration brings.
pub fn unknown_policy() -> Response {
    Response::error(503).with_body("Unknown Storage Policy")
}

/// Reserved names belong in reserved containers, and users' names in users' ones.
fn validate_internal_obj(account: &str, container: &str, object: &str) -> Result<(), Response> {
    let refuse = |text: String| Err(Response::error(400).with_body(text));
    for (name, what) in [(account, "account"), (container, "container")] {
        validate_internal_name(name, what)?;
    }
    if account.starts_with(AUTO_CREATE_ACCOUNT_PREFIX) || account == MISPLACED_OBJECTS_ACCOUNT {
        return Ok(());
    }
    validate_internal_name(object, "object")?;
    match (container.starts_with(RESERVED), object.starts_with(RESERVED)) {
        (true, false) => refuse("Invalid user-namespace object in reserved-namespace container".to_owned()),
        (false, true) => refuse("Invalid reserved-namespace object in user-namespace container".to_owned()),
        _ => Ok(()),
    }
}

/// A name that has the reserved character begins with it.
fn validate_internal_name(name: &str, what: &str) -> Result<(), Response> {
    if name.contains(RESERVED) && !name.starts_with(RESERVED) {
        return Err(Response::error(400).with_body(format!("Invalid reserved-namespace {what}")));
    }
    Ok(())
}
