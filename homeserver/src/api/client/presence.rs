//! Who is online, as clients say and ask it.
//!
//! Spec: client-server API, "Presence".

use http::Method;
use ruma::UserId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::PREFIXES;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    presence::State,
    rooms::members::share_a_room,
    server::App,
};

/// The longest status, in bytes.
const STATUS_BYTES_MAX: usize = 1_024;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        let path = format!("{prefix}/presence/{{user_id}}/status");
        routes.raw(Method::GET, &path, get);
        routes.raw(Method::PUT, &path, put);
    }
}

#[derive(Deserialize)]
struct Body {
    presence: String,
    status_msg: Option<String>,
}

async fn put(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let user_id =
        UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    caller.must_be(&user_id)?;
    let body: Body = request.json()?;
    let state = State::named(&body.presence)
        .ok_or_else(|| ApiError::invalid_param("`presence` is not a state of presence"))?;
    if body
        .status_msg
        .as_ref()
        .is_some_and(|status| status.len() > STATUS_BYTES_MAX)
    {
        return Err(ApiError::invalid_param(format!(
            "a status has at most {STATUS_BYTES_MAX} bytes"
        )));
    }
    if app.config.presence.enabled {
        let who = (
            caller.user,
            caller.device.clone().unwrap_or_else(|| "".into()),
        );
        let (status, now_ms) = (Some(body.status_msg), app.clock.now_ms());
        if app.presence.say(&app.moments, who, state, status, now_ms) {
            app.wakeups.wake_contacts(&app, caller.user);
        }
    }
    Ok(json!({}))
}

async fn get(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let user_id =
        UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    let user = app.store.find_user(&user_id)?;
    let user = match user {
        Some(user) if user == caller.user || share_a_room(&app, caller.user, user)? => user,
        _ => return Err(ApiError::forbidden("you share no room with this user")),
    };
    Ok(app.presence.content(user, app.clock.now_ms()))
}
