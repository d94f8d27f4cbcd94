//! The caller's devices.
//!
//! Spec: client-server API, "Device Management"; application service API, "Device management".

use axum::response::Response;
use http::{Method, StatusCode};
use ruma::OwnedDeviceId;
use serde::Deserialize;
use serde_json::{Value, json};
use store::Commit;

use super::{PREFIXES, account::remove_device, uia};
use crate::{
    accounts::{DeviceRow, devices::DEVICES_MAX},
    error::{ApiError, ApiResult},
    http::{Caller, Guest, RawRequest, Routes, json_reply},
    keys::lists::{self, What},
    server::App,
};

/// The longest name of a device, in bytes.
const NAME_BYTES_MAX: usize = 256;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        routes.raw(Method::GET, &format!("{prefix}/devices"), list);
        let one = format!("{prefix}/devices/{{device_id}}");
        routes.raw(Method::GET, &one, get);
        routes.route(Method::PUT, &one, put);
        routes.raw(Method::DELETE, &one, delete);
        routes.raw(
            Method::POST,
            &format!("{prefix}/delete_devices"),
            delete_some,
        );
    }
}

fn unknown() -> ApiError {
    ApiError::not_found("you have no such device")
}

fn shown(id: &OwnedDeviceId, row: &DeviceRow) -> Value {
    // What is not known is null and not left out: some clients want every key to be there.
    json!({
        "device_id": id,
        "display_name": row.display_name,
        "last_seen_ip": row.last_seen_ip,
        "last_seen_ts": (row.last_seen_ms > 0).then_some(row.last_seen_ms),
    })
}

async fn list(app: App, Guest(caller): Guest, _: RawRequest) -> ApiResult<Value> {
    let devices = app.accounts.devices(caller.user)?;
    let devices: Vec<Value> = devices.iter().map(|(id, row)| shown(id, row)).collect();
    Ok(json!({ "devices": devices }))
}

async fn get(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let id: OwnedDeviceId = request.arg(0).into();
    let row = app.accounts.device(caller.user, &id)?.ok_or_else(unknown)?;
    Ok(shown(&id, &row))
}

#[derive(Deserialize)]
struct Rename {
    display_name: Option<String>,
}

async fn put(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Response> {
    let body: Rename = request.json()?;
    if body
        .display_name
        .as_ref()
        .is_some_and(|name| name.len() > NAME_BYTES_MAX)
    {
        return Err(ApiError::invalid_param(format!(
            "the name of a device has at most {NAME_BYTES_MAX} bytes"
        )));
    }
    let id: OwnedDeviceId = request.arg(0).into();
    let (mut row, status) = match app.accounts.device(caller.user, &id)? {
        Some(row) => (row, StatusCode::OK),
        // An application service makes devices without logging in.
        None if caller.service.is_some()
            && app.accounts.devices(caller.user)?.len() < DEVICES_MAX =>
        {
            (DeviceRow::default(), StatusCode::CREATED)
        }
        None => return Err(unknown()),
    };
    if body.display_name.is_some() || status == StatusCode::CREATED {
        row.display_name = body.display_name;
        let mut commit = Commit::new();
        app.accounts.put_device(&mut commit, caller.user, &id, &row);
        let what = What::Device(&id);
        lists::note(&app.store, &mut commit, caller.user, what)?;
        app.store.commit(commit).await?;
    }
    Ok(json_reply(status, &json!({})))
}

#[derive(Deserialize)]
struct Deletion {
    #[serde(default)]
    devices: Option<Vec<OwnedDeviceId>>,
    auth: Option<uia::Auth>,
}

async fn delete(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: Deletion = request.json()?;
    let id: OwnedDeviceId = request.arg(0).into();
    remove(&app, &caller, &[id], body.auth.as_ref()).await
}

async fn delete_some(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: Deletion = request.json()?;
    let devices = body
        .devices
        .ok_or_else(|| ApiError::missing_param("`devices` is missing"))?;
    remove(&app, &caller, &devices, body.auth.as_ref()).await
}

/// Removes those of `devices` that the caller has.
async fn remove(
    app: &App,
    caller: &Caller,
    devices: &[OwnedDeviceId],
    auth: Option<&uia::Auth>,
) -> ApiResult<Value> {
    if caller.service.is_none() {
        let purpose = format!("delete devices {} {devices:?}", caller.user_id);
        let flows = vec![vec!["m.login.password"]];
        uia::authenticate(app, &purpose, &flows, Some(caller), auth).await?;
    }
    let mut commit = Commit::new();
    for (id, _) in app.accounts.devices(caller.user)? {
        if devices.contains(&id) {
            remove_device(app, &mut commit, caller.user, &id)?;
        }
    }
    if !commit.is_empty() {
        app.store.commit(commit).await?;
    }
    Ok(json!({}))
}
