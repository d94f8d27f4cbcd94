//! Publishing, looking up and claiming the keys of devices.
//!
//! Spec: client-server API, "Key management API".

use std::{collections::BTreeMap, time::Duration};

use http::Method;
use ruma::{OwnedDeviceId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{PREFIXES, uia};
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, Guest, RawRequest, Routes},
    keys::{
        self, lists, remote,
        signing::{self, SigningKeys},
    },
    server::App,
    sync::Token,
    to_device,
};

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        routes.raw(
            Method::PUT,
            &format!("{prefix}/sendToDevice/{{type}}/{{txn_id}}"),
            send,
        );
        routes.raw(Method::POST, &format!("{prefix}/keys/upload"), upload);
        routes.raw(Method::POST, &format!("{prefix}/keys/query"), query);
        routes.raw(Method::POST, &format!("{prefix}/keys/claim"), claim);
        routes.raw(Method::GET, &format!("{prefix}/keys/changes"), changes);
        routes.raw(
            Method::POST,
            &format!("{prefix}/keys/device_signing/upload"),
            upload_signing_keys,
        );
        routes.raw(
            Method::POST,
            &format!("{prefix}/keys/signatures/upload"),
            upload_signatures,
        );
    }
}

async fn changes(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let point = |name: &str| {
        let token = request
            .query(name)
            .ok_or_else(|| ApiError::missing_param(format!("`{name}` is missing")))?;
        Token::parse(&app, &token)
    };
    let (from, to) = (point("from")?, point("to")?);
    let until = to.position().min(app.store.published());
    let lists = lists::between(&app, caller.user, from.position(), until, None, true)?;
    Ok(json!(lists))
}

#[derive(Deserialize)]
struct SigningUpload {
    #[serde(flatten)]
    keys: SigningKeys,
    auth: Option<uia::Auth>,
}

async fn upload_signing_keys(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: SigningUpload = request.json()?;
    if caller.service.is_none() && signing::replaces(&app.store, caller.user, &body.keys)? {
        let purpose = format!("cross-signing keys {}", caller.user_id);
        let flows = vec![vec!["m.login.password"]];
        uia::authenticate(&app, &purpose, &flows, Some(&caller), body.auth.as_ref()).await?;
    }
    signing::upload(&app, caller.user, &caller.user_id, &body.keys).await?;
    Ok(json!({}))
}

async fn upload_signatures(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: signing::Signed = request.json()?;
    let failures = signing::sign(&app, caller.user, &caller.user_id, &body).await?;
    Ok(json!({ "failures": failures }))
}

async fn upload(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let device = caller.device()?;
    let uploaded: keys::Upload = request.json()?;
    let counts = keys::upload(&app, caller.user, &caller.user_id, device, uploaded).await?;
    Ok(json!({ "one_time_key_counts": counts.one_time }))
}

#[derive(Deserialize)]
struct Send {
    messages: to_device::Messages,
}

async fn send(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let body: Send = request.json()?;
    let (kind, txn_id) = (request.arg(0), request.arg(1));
    to_device::send(&app, &caller, kind, txn_id, &body.messages).await?;
    Ok(json!({}))
}

#[derive(Deserialize)]
struct Query {
    device_keys: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    timeout: Option<u64>,
}

async fn query(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let asked: Query = request.json()?;
    let mut devices = keys::query(&app, &asked.device_keys)?;
    let mut signing = signing::query(&app, asked.device_keys.keys(), Some(caller.user))?;
    let timeout = remote_timeout(asked.timeout);
    let mut remote = remote::query(&app, &asked.device_keys, caller.user, timeout).await?;
    devices.append(&mut remote.devices);
    signing.master.append(&mut remote.master);
    signing.own.append(&mut remote.own);
    let mut answer = json!(signing);
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("device_keys".to_owned(), json!(devices));
        answer.insert("failures".to_owned(), remote.failures.into());
    }
    Ok(answer)
}

#[derive(Deserialize)]
struct Claim {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    timeout: Option<u64>,
}

async fn claim(app: App, Guest(_): Guest, request: RawRequest) -> ApiResult<Value> {
    let asked: Claim = request.json()?;
    let mut claimed = keys::claim(&app, &asked.one_time_keys).await?;
    let timeout = remote_timeout(asked.timeout);
    let (mut remote, failures) = remote::claim(&app, &asked.one_time_keys, timeout).await;
    claimed.append(&mut remote);
    Ok(json!({ "one_time_keys": claimed, "failures": failures }))
}

/// How long to wait for other servers, as the client wants it in milliseconds.
fn remote_timeout(timeout_ms: Option<u64>) -> Duration {
    timeout_ms
        .map_or(remote::ASK_TIMEOUT_DEFAULT, Duration::from_millis)
        .min(remote::ASK_TIMEOUT_MAX)
}
