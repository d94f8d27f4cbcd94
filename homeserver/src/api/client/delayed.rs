//! Delayed events (MSC4140).

use federation::event::Draft;
use http::Method;
use ruma::RoomId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    delayed::{self, Action},
    error::{ApiError, ApiResult},
    http::{Caller, Public, RawRequest, Routes, limits::Doing},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    let base = "/_matrix/client/unstable/org.matrix.msc4140";
    routes.raw(Method::GET, &format!("{base}/delayed_events"), list);
    routes.raw(
        Method::GET,
        &format!("{base}/delayed_events/{{delay_id}}"),
        one,
    );
    routes.raw(
        Method::POST,
        &format!("{base}/delayed_events/{{delay_id}}"),
        act_by_body,
    );
    routes.raw(
        Method::POST,
        &format!("{base}/delayed_events/{{delay_id}}/{{action}}"),
        act,
    );
    routes.raw(
        Method::PUT,
        &format!("{base}/rooms/{{room_id}}/delayed_event/{{event_type}}/{{txn_id}}"),
        schedule,
    );
}

/// The delay that a request to send asks for.
///
/// # Errors
/// `M_INVALID_PARAM` when it is not a number of milliseconds.
pub(super) fn delay(request: &RawRequest) -> ApiResult<Option<u64>> {
    let Some(text) = request.query("org.matrix.msc4140.delay") else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| ApiError::invalid_param("the delay is not a number of milliseconds"))
}

async fn list(app: App, caller: Caller, _: RawRequest) -> ApiResult<Value> {
    Ok(json!({ "delayed_events": delayed::list(&app, caller.user)? }))
}

async fn one(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    delayed::one(&app, caller.user, request.arg(0))
}

async fn act(app: App, Public(client): Public, request: RawRequest) -> ApiResult<Value> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let action = Action::named(request.arg(1))
        .ok_or_else(|| ApiError::not_found("there is no such action"))?;
    delayed::act(&app, request.arg(0), action).await?;
    Ok(json!({}))
}

async fn act_by_body(app: App, Public(client): Public, request: RawRequest) -> ApiResult<Value> {
    app.limits.address(&app, Doing::Anonymous, client.0)?;
    let body: Map<String, Value> = request.json()?;
    let action = body
        .get("action")
        .ok_or_else(|| ApiError::missing_param("`action` is missing"))?
        .as_str()
        .and_then(Action::named)
        .ok_or_else(|| ApiError::invalid_param("`action` is `cancel`, `restart` or `send`"))?;
    delayed::act(&app, request.arg(0), action).await?;
    Ok(json!({}))
}

#[derive(Deserialize)]
struct Scheduled {
    delay: u64,
    content: Box<serde_json::value::RawValue>,
    state_key: Option<String>,
}

async fn schedule(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::DelayedEvent)?;
    caller.must_not_be_suspended()?;
    let room_id =
        RoomId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a room ID"))?;
    let body: Scheduled = request.json()?;
    let draft = || {
        Ok(Draft {
            kind: request.arg(1).to_owned(),
            state_key: body.state_key,
            content: body.content,
            redacts: None,
        })
    };
    let id = delayed::schedule(
        &app,
        &caller,
        &room_id,
        body.delay,
        Some(request.arg(2)),
        draft,
    )
    .await?;
    Ok(json!({ "delay_id": id }))
}
