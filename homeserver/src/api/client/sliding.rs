//! Sliding sync: the endpoint that clients use today, and the accepted one.
//!
//! Spec: MSC4186.

use http::Method;
use serde_json::Value;

use crate::{
    error::{ApiError, ApiResult},
    http::{Guest, RawRequest, Routes},
    server::App,
    sync::sliding::{Response, parse, request::Form, sync},
};

/// The presences that a client may ask for. Spec: client-server API, `GET /sync`, `set_presence`.
const PRESENCES: [&str; 3] = ["offline", "online", "unavailable"];

pub(super) fn routes(routes: &mut Routes) {
    routes.raw(
        Method::POST,
        "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
        unstable,
    );
    routes.raw(Method::POST, "/_matrix/client/v4/sync", accepted);
}

async fn unstable(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Response> {
    let timeout = request
        .query("timeout")
        .map(|text| text.parse())
        .transpose()
        .map_err(|_| ApiError::invalid_param("`timeout` is not a number of milliseconds"))?;
    known_presence(request.query("set_presence").as_deref())?;
    let (pos, body) = (request.query("pos"), request.json()?);
    let request = parse(Form::Unstable, body, pos, timeout, &caller)?;
    sync(&app, &caller, &request).await
}

async fn accepted(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Response> {
    let body: Value = request.json()?;
    known_presence(body.get("set_presence").and_then(Value::as_str))?;
    let request = parse(Form::Accepted, body, None, None, &caller)?;
    sync(&app, &caller, &request).await
}

fn known_presence(presence: Option<&str>) -> ApiResult<()> {
    if presence.is_none_or(|presence| PRESENCES.contains(&presence)) {
        return Ok(());
    }
    Err(ApiError::invalid_param("`set_presence` is not a presence"))
}
