//! This server's version and signing key.
//!
//! Spec: server-server API, "Server implementation", "Retrieving server keys".

use axum::response::Response;
use http::{Method, StatusCode};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, canonical_json::try_from_json_map,
    signatures::sign_json,
};
use serde_json::{Map, Value, json};

use crate::{
    error::{ApiError, ApiResult},
    http::{Public, RawRequest, Routes, bytes_reply},
    server::App,
};

/// How long others may go by an answer before they ask again, in milliseconds: a day.
const VALID_MS: u64 = 24 * 60 * 60 * 1_000;

pub(super) fn routes(routes: &mut Routes) {
    routes.raw(Method::GET, "/_matrix/federation/v1/version", version);
    routes.route(Method::GET, "/_matrix/key/v2/server", own_keys);
    routes.route(
        Method::GET,
        "/_matrix/key/v2/query/{server_name}",
        known_keys,
    );
    routes.route(Method::POST, "/_matrix/key/v2/query", query_keys);
}

async fn version(_: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    Ok(json!({ "server": { "name": "Guildhall", "version": env!("CARGO_PKG_VERSION") } }))
}

/// This server's keys, signed. Peers check the signature over the bytes, so they are canonical JSON.
fn signed_keys(app: &App) -> ApiResult<CanonicalJsonObject> {
    let key_pair = app.key.key_pair();
    let public =
        ruma::serde::Base64::<ruma::serde::base64::Standard, _>::new(key_pair.public_key());
    let key_id = format!("ed25519:{}", key_pair.version());
    let object = json!({
        "server_name": app.server_name(),
        "valid_until_ts": app.clock.now_ms() + VALID_MS,
        "verify_keys": { key_id: { "key": public.encode() } },
        "old_verify_keys": {},
    });
    let object: Map<String, Value> =
        serde_json::from_value(object).map_err(|error| ApiError::internal(&error))?;
    let mut object = try_from_json_map(object).map_err(|error| ApiError::internal(&error))?;
    sign_json(app.server_name().as_str(), key_pair, &mut object)
        .map_err(|error| ApiError::internal(&error))?;
    Ok(object)
}

fn canonical(object: &CanonicalJsonObject) -> ApiResult<Response> {
    let bytes = serde_json::to_vec(object).map_err(|error| ApiError::internal(&error))?;
    Ok(bytes_reply(StatusCode::OK, "application/json", bytes))
}

async fn own_keys(app: App, _: Public, _: RawRequest) -> ApiResult<Response> {
    canonical(&signed_keys(&app)?)
}

async fn known_keys(app: App, _: Public, request: RawRequest) -> ApiResult<Response> {
    known(&app, &[request.arg(0)])
}

async fn query_keys(app: App, _: Public, request: RawRequest) -> ApiResult<Response> {
    let body: Map<String, Value> = request.json()?;
    let asked = body.get("server_keys").and_then(Value::as_object);
    let asked = asked.ok_or_else(|| ApiError::bad_json("`server_keys` is not an object"))?;
    let names: Vec<&str> = asked.keys().map(String::as_str).collect();
    known(&app, &names)
}

/// The keys of those of the named servers that this server knows: so far its own.
fn known(app: &App, names: &[&str]) -> ApiResult<Response> {
    let mut keys = Vec::new();
    if names.contains(&app.server_name().as_str()) {
        keys.push(CanonicalJsonValue::Object(signed_keys(app)?));
    }
    canonical(&CanonicalJsonObject::from([(
        "server_keys".to_owned(),
        keys.into(),
    )]))
}
