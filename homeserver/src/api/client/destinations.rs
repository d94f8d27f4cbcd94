//! Which other servers this one sends to, as its admins see them.
//!
//! Spec: Synapse's admin API, "Federation API".

use std::cmp::Ordering;

use http::Method;
use ruma::{OwnedServerName, ServerName};
use serde_json::{Value, json};

use super::members::number;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    peers::sender::Destination,
    server::App,
};

/// How many destinations a page has if the request does not say.
const PAGE_DEFAULT: u64 = 100;

/// How many destinations a page has at most.
const PAGE_MAX: u64 = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    let path = "/_synapse/admin/v1/federation/destinations";
    routes.raw(Method::GET, path, list);
    let one = format!("{path}/{{server_name}}");
    routes.raw(Method::GET, &one, details);
    routes.raw(Method::POST, &format!("{one}/reset_connection"), reset);
}

fn shown(destination: &Destination) -> Value {
    json!({
        "destination": destination.server,
        "retry_last_ts": destination.failed_ms,
        "retry_interval": destination.wait_ms,
        "failure_ts": destination.failing_since_ms,
        "last_successful_stream_ordering": Some(destination.acknowledged).filter(|last| *last > 0),
    })
}

/// The order of two destinations by the key of this name.
fn order(name: &str) -> ApiResult<fn(&Destination, &Destination) -> Ordering> {
    Ok(match name {
        "destination" => |one, other| one.server.cmp(&other.server),
        "retry_last_ts" => |one, other| one.failed_ms.cmp(&other.failed_ms),
        "retry_interval" => |one, other| one.wait_ms.cmp(&other.wait_ms),
        "failure_ts" => |one, other| one.failing_since_ms.cmp(&other.failing_since_ms),
        "last_successful_stream_ordering" => |one, other| one.acknowledged.cmp(&other.acknowledged),
        _ => {
            return Err(ApiError::invalid_param(
                "`order_by` is one of destination, retry_last_ts, retry_interval, failure_ts, \
                 last_successful_stream_ordering",
            ));
        }
    })
}

async fn list(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let from = number(&request, "from")?.unwrap_or(0);
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let limit = number(&request, "limit")?.unwrap_or(PAGE_DEFAULT);
    let limit = usize::try_from(limit.clamp(1, PAGE_MAX)).unwrap_or(1);
    let by = request.query("order_by");
    let order = order(by.as_deref().unwrap_or("destination"))?;
    let mut all = app.outgoing.destinations(&app.store)?;
    if let Some(part) = request.query("destination") {
        let part = part.to_lowercase();
        all.retain(|destination| destination.server.as_str().to_lowercase().contains(&part));
    }
    // The names are in order, and stay so among equals.
    all.sort_by(order);
    match request.query("dir").as_deref() {
        None | Some("f") => {}
        Some("b") => all.reverse(),
        Some(_) => return Err(ApiError::invalid_param("`dir` is either f or b")),
    }
    let page: Vec<Value> = all.iter().skip(from).take(limit).map(shown).collect();
    let end = from.saturating_add(page.len());
    let mut reply = json!({ "destinations": page, "total": all.len() });
    if let (Some(reply), true) = (reply.as_object_mut(), end < all.len()) {
        reply.insert("next_token".to_owned(), end.to_string().into());
    }
    Ok(reply)
}

fn named(app: &App, request: &RawRequest) -> ApiResult<(OwnedServerName, Destination)> {
    let unknown = || ApiError::not_found("nothing was ever sent to this server");
    let server = ServerName::parse(request.arg(0)).map_err(|_| unknown())?;
    let destination = app.outgoing.destination(&app.store, &server)?;
    Ok((server, destination.ok_or_else(unknown)?))
}

async fn details(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let (_, destination) = named(&app, &request)?;
    Ok(shown(&destination))
}

async fn reset(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let (server, _) = named(&app, &request)?;
    if app.outgoing.heard(&server) {
        return Ok(json!({}));
    }
    let message = "the server takes what it is sent, there is nothing to reset";
    Err(ApiError::unknown(message))
}
