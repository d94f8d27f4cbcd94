//! What the admins of the server may do with its accounts.
//!
//! Spec: client-server API, "Server Administration"; MSC4323 for the unstable names.

use http::Method;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};
use store::keys::UserNum;

use super::PREFIXES;
use crate::{
    accounts::UserRow,
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        routes.raw(
            Method::GET,
            &format!("{prefix}/admin/whois/{{user_id}}"),
            who_is,
        );
    }
    for prefix in ["v1", "unstable/uk.timedout.msc4323"] {
        let lock = format!("/_matrix/client/{prefix}/admin/lock/{{user_id}}");
        routes.raw(Method::GET, &lock, |app, caller, request| async move {
            read(&app, &caller, &request, "locked", |row| row.locked)
        });
        routes.raw(Method::PUT, &lock, |app, caller, request| async move {
            write(&app, &caller, &request, "locked", |row, on| row.locked = on).await
        });
        let suspend = format!("/_matrix/client/{prefix}/admin/suspend/{{user_id}}");
        routes.raw(Method::GET, &suspend, |app, caller, request| async move {
            read(&app, &caller, &request, "suspended", |row| row.suspended)
        });
        routes.raw(Method::PUT, &suspend, |app, caller, request| async move {
            write(&app, &caller, &request, "suspended", |row, on| {
                row.suspended = on;
            })
            .await
        });
    }
}

fn named(request: &RawRequest) -> ApiResult<OwnedUserId> {
    UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))
}

async fn who_is(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let user_id = named(&request)?;
    if user_id != caller.user_id {
        caller.must_be_admin()?;
    }
    let (user, _) = target(&app, &user_id)?;
    let mut devices = Map::new();
    for (id, row) in app.accounts.devices(user)? {
        let connections: Vec<Value> = row
            .last_seen_ip
            .map(|ip| json!({ "ip": ip, "last_seen": row.last_seen_ms }))
            .into_iter()
            .collect();
        devices.insert(
            id.to_string(),
            json!({ "sessions": [{ "connections": connections }] }),
        );
    }
    Ok(json!({ "user_id": user_id, "devices": devices }))
}

fn target(app: &App, user_id: &UserId) -> ApiResult<(UserNum, std::sync::Arc<UserRow>)> {
    if !app.is_local(user_id) {
        return Err(ApiError::invalid_param(
            "the user is not one of this server",
        ));
    }
    let user = app.store.find_user(user_id)?;
    let account = user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten();
    user.zip(account.filter(|account| !account.deactivated))
        .ok_or_else(|| ApiError::not_found("there is no such user"))
}

fn read(
    app: &App,
    caller: &Caller,
    request: &RawRequest,
    what: &str,
    of: fn(&UserRow) -> bool,
) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let (_, account) = target(app, &named(request)?)?;
    Ok(json!({ what: of(&account) }))
}

async fn write(
    app: &App,
    caller: &Caller,
    request: &RawRequest,
    what: &str,
    set: fn(&mut UserRow, bool),
) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let (user, account) = target(app, &named(request)?)?;
    if account.admin {
        return Err(ApiError::forbidden("admins do not do this to admins"));
    }
    let on = request
        .json::<Map<String, Value>>()?
        .get(what)
        .ok_or_else(|| ApiError::missing_param(format!("`{what}` is missing")))?
        .as_bool()
        .ok_or_else(|| ApiError::bad_json(format!("`{what}` is not true or false")))?;
    app.accounts.change_user(user, |row| set(row, on)).await?;
    Ok(json!({ what: on }))
}
