//! The caller's own account: who it is, its password, its end.
//!
//! Third-party identifiers are not kept, as this server sends no e-mail: the list is empty, to prove one
//! is denied, none leads to an account, and the endpoints to add or remove one are not served.
//! Spec: client-server API, "Account management", "Current account information", `OpenID`.

use http::Method;
use ruma::{DeviceId, api::client::account::whoami};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use store::{Commit, keys::UserNum};

use super::{PREFIXES, uia};
use crate::{
    account_data,
    accounts::registration,
    error::{ApiError, ApiResult},
    http::{Caller, Guest, Public, RawRequest, Routes},
    keys::lists::{self, What},
    push::pushers,
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    routes.add(who_am_i);
    for prefix in PREFIXES {
        routes.raw(
            Method::POST,
            &format!("{prefix}/account/password"),
            change_password,
        );
        routes.raw(
            Method::POST,
            &format!("{prefix}/account/deactivate"),
            deactivate,
        );
        routes.raw(
            Method::GET,
            &format!("{prefix}/account/3pid"),
            third_party_ids,
        );
        for medium in ["email", "msisdn"] {
            for purpose in ["account/3pid", "register"] {
                let path = format!("{prefix}/{purpose}/{medium}/requestToken");
                routes.raw(Method::POST, &path, deny_third_party_id);
            }
            let path = format!("{prefix}/account/password/{medium}/requestToken");
            routes.raw(Method::POST, &path, find_third_party_id);
        }
        routes.raw(
            Method::POST,
            &format!("{prefix}/user/{{user_id}}/openid/request_token"),
            openid_token,
        );
    }
}

async fn who_am_i(
    _: App,
    Guest(caller): Guest,
    _: whoami::v3::Request,
) -> ApiResult<whoami::v3::Response> {
    let mut response = whoami::v3::Response::new(caller.user_id.clone(), caller.account.guest);
    response.device_id.clone_from(&caller.device);
    Ok(response)
}

fn with_password() -> uia::Flows {
    vec![vec!["m.login.password"]]
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct PasswordChange {
    new_password: Option<String>,
    #[serde(default = "yes")]
    logout_devices: bool,
    auth: Option<uia::Auth>,
}

async fn change_password(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: PasswordChange = request.json()?;
    if let Some(password) = &body.new_password {
        registration::check_password(&app, password)?;
    }
    let purpose = format!("change password {}", caller.user_id);
    uia::authenticate(
        &app,
        &purpose,
        &with_password(),
        Some(&caller),
        body.auth.as_ref(),
    )
    .await?;
    let password = body
        .new_password
        .ok_or_else(|| ApiError::missing_param("`new_password` is missing"))?;
    let hash = registration::hash_password(&app, password).await;
    let mut commit = Commit::new();
    if body.logout_devices {
        for (device, _) in app.accounts.devices(caller.user)? {
            if Some(&device) != caller.device.as_ref() {
                remove_device(&app, &mut commit, caller.user, &device)?;
            }
        }
    }
    let change = |row: &mut crate::accounts::UserRow| row.password_hash = Some(hash);
    app.accounts
        .change_user_and(caller.user, commit, change)
        .await?;
    Ok(json!({}))
}

#[derive(Deserialize)]
struct Deactivation {
    #[serde(default)]
    erase: bool,
    auth: Option<uia::Auth>,
}

async fn deactivate(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: Deactivation = request.json()?;
    if caller.service.is_none() {
        let purpose = format!("deactivate {}", caller.user_id);
        uia::authenticate(
            &app,
            &purpose,
            &with_password(),
            Some(&caller),
            body.auth.as_ref(),
        )
        .await?;
    }
    let mut commit = Commit::new();
    for (device, _) in app.accounts.devices(caller.user)? {
        remove_device(&app, &mut commit, caller.user, &device)?;
    }
    pushers::end_user(&app.store, &mut commit, caller.user)?;
    app.accounts
        .put_profile(&mut commit, caller.user, &Map::new());
    let _begun = app.upkeep.begin(&app, &mut commit, caller.user, true).await;
    let change = |row: &mut crate::accounts::UserRow| {
        row.deactivated = true;
        row.password_hash = None;
        row.erased = body.erase;
    };
    app.accounts
        .change_user_and(caller.user, commit, change)
        .await?;
    Ok(json!({ "id_server_unbind_result": "no-support" }))
}

async fn third_party_ids(_: App, _: Guest, _: RawRequest) -> ApiResult<Value> {
    Ok(json!({ "threepids": [] }))
}

async fn deny_third_party_id(_: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    Err(ApiError::threepid_denied(
        "this server keeps no e-mail addresses and no phone numbers",
    ))
}

async fn find_third_party_id(_: App, _: Public, _: RawRequest) -> ApiResult<Value> {
    Err(ApiError::threepid_not_found(
        "no account has this e-mail address or phone number: ask an admin for a new password",
    ))
}

async fn openid_token(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let user_id = ruma::UserId::parse(request.arg(0))
        .map_err(|_| ApiError::invalid_param("not a user ID"))?;
    caller.must_be(&user_id)?;
    let seconds = app.config.sessions.openid_token_lifetime_seconds;
    let expires_ms = app.clock.now_ms() + seconds * 1_000;
    let token = app
        .accounts
        .new_openid_token(caller.user, &app.entropy, expires_ms)
        .await?;
    Ok(json!({
        "access_token": token,
        "token_type": "Bearer",
        "matrix_server_name": app.server_name(),
        "expires_in": seconds,
    }))
}

/// Removes a device with everything that is its own.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn remove_device(
    app: &App,
    commit: &mut Commit,
    user: UserNum,
    device: &DeviceId,
) -> ApiResult<()> {
    app.accounts.end_session(commit, user, device)?;
    app.accounts.delete_device(commit, user, device);
    crate::keys::delete(app, commit, user, device)?;
    pushers::end_device(&app.store, commit, user, device)?;
    // MSC3890: what a device wants to be notified of goes with it.
    let settings = format!("org.matrix.msc3890.local_notification_settings.{device}");
    if account_data::get(&app.store, user, None, &settings)?.is_some() {
        let empty = RawValue::from_string("{}".to_owned()).expect("an empty object is JSON");
        account_data::put(&app.store, commit, user, None, &settings, &empty)?;
    }
    lists::note(&app.store, commit, user, What::Device(device))
}
