//! Devices and keys of local users, for other servers.
//!
//! Spec: server-server API, "Device Management", "End-to-End Encryption".

use std::collections::BTreeMap;

use http::Method;
use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    error::{ApiError, ApiResult},
    http::{Origin, RawRequest, Routes},
    keys::{self, lists, signing},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    let prefix = "/_matrix/federation/v1/user";
    routes.raw(
        Method::GET,
        &format!("{prefix}/devices/{{user_id}}"),
        devices,
    );
    routes.raw(Method::POST, &format!("{prefix}/keys/query"), query);
    routes.raw(Method::POST, &format!("{prefix}/keys/claim"), claim);
}

/// Every device of a user that has keys. The position is read first: what is read after it can be newer, never older.
async fn devices(app: App, _: Origin, request: RawRequest) -> ApiResult<Map<String, Value>> {
    let user_id =
        UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    let user = app
        .store
        .find_user(&user_id)?
        .filter(|_| app.is_local(&user_id));
    let account = user.map(|user| app.accounts.user(user)).transpose()?;
    let (Some(user), Some(Some(_))) = (user, account) else {
        return Err(ApiError::not_found("there is no such user here"));
    };
    let stream_id = lists::stream_id(&app.store, user)?;
    let devices = keys::told(&app, user, &user_id)?;
    let (master, own) = signing::told(&app, &user_id)?;
    let mut reply = Map::new();
    reply.insert("user_id".to_owned(), user_id.as_str().into());
    reply.insert("stream_id".to_owned(), stream_id.into());
    reply.insert("devices".to_owned(), json!(devices));
    reply.extend(master.map(|key| ("master_key".to_owned(), key.into())));
    reply.extend(own.map(|key| ("self_signing_key".to_owned(), key.into())));
    Ok(reply)
}

#[derive(Deserialize)]
struct Query {
    device_keys: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
}

async fn query(app: App, _: Origin, request: RawRequest) -> ApiResult<Value> {
    let asked: Query = request.json()?;
    let found = keys::query_from_outside(&app, &asked.device_keys)?;
    let mut signing = signing::query(&app, asked.device_keys.keys(), None)?;
    for (user_id, key) in signing.master.iter_mut().chain(&mut signing.own) {
        signing::keep_own_signatures(key, user_id);
    }
    Ok(json!({
        "device_keys": found,
        "master_keys": signing.master,
        "self_signing_keys": signing.own,
    }))
}

#[derive(Deserialize)]
struct Claim {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
}

async fn claim(app: App, _: Origin, request: RawRequest) -> ApiResult<Value> {
    let asked: Claim = request.json()?;
    let claimed = keys::claim(&app, &asked.one_time_keys).await?;
    Ok(json!({ "one_time_keys": claimed }))
}
