//! What application services are for to clients: third-party networks; and their own endpoints.
//!
//! Spec: client-server API, "Third-party networks"; application service API, "Pinging".

use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::PREFIXES;
use crate::{
    appservices::ask::{self, Kind},
    error::{ApiError, ApiResult},
    http::{Guest, RawRequest, Routes, Service, limits::Doing},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    let ping = "/_matrix/client/v1/appservice/{appservice_id}/ping";
    routes.raw(Method::POST, ping, ping_service);
    for prefix in PREFIXES {
        let base = format!("{prefix}/thirdparty");
        routes.raw(Method::GET, &format!("{base}/protocols"), protocols);
        routes.raw(
            Method::GET,
            &format!("{base}/protocol/{{protocol}}"),
            protocol,
        );
        routes.raw(
            Method::GET,
            &format!("{base}/location/{{protocol}}"),
            locations,
        );
        routes.raw(Method::GET, &format!("{base}/user/{{protocol}}"), users);
        routes.raw(Method::GET, &format!("{base}/location"), locations_of);
        routes.raw(Method::GET, &format!("{base}/user"), users_of);
    }
}

#[derive(Deserialize)]
struct Ping {
    transaction_id: Option<String>,
}

async fn ping_service(
    app: App,
    Service(service): Service,
    request: RawRequest,
) -> ApiResult<Value> {
    if service.id != request.arg(0) {
        return Err(ApiError::forbidden(
            "the token is that of another application service",
        ));
    }
    let body: Ping = request.json()?;
    let took_ms = ask::ping(&app, &service, body.transaction_id.as_deref()).await?;
    Ok(json!({ "duration_ms": took_ms }))
}

async fn protocols(app: App, _: Guest, _: RawRequest) -> ApiResult<Map<String, Value>> {
    Ok(ask::protocols(&app).await)
}

async fn protocol(app: App, _: Guest, request: RawRequest) -> ApiResult<Value> {
    ask::protocol(&app, request.arg(0))
        .await
        .ok_or_else(|| ApiError::not_found("no application service speaks for this network"))
}

async fn locations(app: App, caller: Guest, request: RawRequest) -> ApiResult<Vec<Value>> {
    find(&app, &caller, &request, Kind::Location).await
}

async fn users(app: App, caller: Guest, request: RawRequest) -> ApiResult<Vec<Value>> {
    find(&app, &caller, &request, Kind::User).await
}

/// By what a network knows: the fields that it takes are its own.
async fn find(
    app: &App,
    Guest(caller): &Guest,
    request: &RawRequest,
    kind: Kind,
) -> ApiResult<Vec<Value>> {
    caller.limit(app, Doing::Search)?;
    let query = request.parts.uri.query().unwrap_or_default();
    let mut fields: Vec<(String, String)> = serde_html_form::from_str(query)
        .map_err(|error| ApiError::invalid_param(error.to_string()))?;
    // What is for this server stays here.
    fields.retain(|(key, _)| !matches!(&**key, "access_token" | "user_id" | "device_id"));
    ask::find(app, kind, Some(request.arg(0)), &fields).await
}

async fn locations_of(app: App, caller: Guest, request: RawRequest) -> ApiResult<Vec<Value>> {
    find_of(&app, &caller, &request, Kind::Location, "alias").await
}

async fn users_of(app: App, caller: Guest, request: RawRequest) -> ApiResult<Vec<Value>> {
    find_of(&app, &caller, &request, Kind::User, "userid").await
}

/// By what stands for it in Matrix.
async fn find_of(
    app: &App,
    Guest(caller): &Guest,
    request: &RawRequest,
    kind: Kind,
    key: &str,
) -> ApiResult<Vec<Value>> {
    caller.limit(app, Doing::Search)?;
    let value = request
        .query(key)
        .ok_or_else(|| ApiError::missing_param(format!("`{key}` is missing")))?;
    ask::find(app, kind, None, &[(key.to_owned(), value)]).await
}
