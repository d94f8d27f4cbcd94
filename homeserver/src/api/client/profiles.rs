//! Profiles: display name, avatar, and any other field.
//!
//! A changed name or avatar reaches the caller's rooms through `crate::upkeep`.
//! Spec: client-server API, "Profiles".

use http::Method;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};
use store::{Commit, log::Change};

use super::PREFIXES;
use crate::{
    accounts::profiles,
    appservices,
    error::{ApiError, ApiResult},
    http::{Caller, Client, Guest, MaybeCaller, RawRequest, Routes, limits::Doing},
    server::App,
};

/// The longest name of a field, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// The largest profile, in bytes of JSON.
const PROFILE_BYTES_MAX: usize = 65_536;

/// The longest display name, in characters, and avatar URL, in bytes: both go into every room.
const NAME_CHARS_MAX: usize = 256;
const AVATAR_BYTES_MAX: usize = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        routes.raw(
            Method::GET,
            &format!("{prefix}/profile/{{user_id}}"),
            get_all,
        );
    }
    let unstable = "/_matrix/client/unstable/uk.tcpip.msc4133";
    for prefix in PREFIXES.into_iter().chain([unstable]) {
        let path = format!("{prefix}/profile/{{user_id}}/{{field}}");
        routes.raw(Method::GET, &path, get);
        routes.raw(Method::PUT, &path, put);
        routes.raw(Method::DELETE, &path, delete);
    }
}

fn user_id(request: &RawRequest) -> ApiResult<OwnedUserId> {
    UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))
}

/// A user's profile, asked for from their server if need be: for who is not logged in, only so often.
async fn profile(
    app: &App,
    caller: Option<&Caller>,
    request: &RawRequest,
) -> ApiResult<Map<String, Value>> {
    let user_id = user_id(request)?;
    if app.is_local(&user_id) {
        appservices::ask::user(app, &user_id).await?;
        return profiles::of_local(app, &user_id);
    }
    if caller.is_none() {
        let Client(address) = Client::of(&request.parts);
        app.limits.address(app, Doing::Anonymous, address)?;
    }
    profiles::of_remote(app, &user_id).await
}

async fn get_all(
    app: App,
    MaybeCaller(caller): MaybeCaller,
    request: RawRequest,
) -> ApiResult<Value> {
    Ok(profile(&app, caller.as_ref(), &request).await?.into())
}

async fn get(app: App, MaybeCaller(caller): MaybeCaller, request: RawRequest) -> ApiResult<Value> {
    let field = request.arg(1);
    let value = profile(&app, caller.as_ref(), &request)
        .await?
        .remove(field)
        .ok_or_else(|| ApiError::not_found("the profile has no such field"))?;
    Ok(json!({ field: value }))
}

async fn put(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let field = request.arg(1).to_owned();
    check_key(&field)?;
    let value = request.json::<Map<String, Value>>()?.remove(&field);
    let basic = matches!(&*field, "displayname" | "avatar_url");
    let value = match value {
        Some(Value::Null) | None if basic => None,
        Some(Value::String(text)) if basic && text.is_empty() => None,
        None => return Err(ApiError::missing_param(format!("`{field}` is missing"))),
        Some(value) => Some(value),
    };
    if let Some(value) = &value {
        check_value(&field, value)?;
    }
    change(&app, &caller, &user_id(&request)?, field, value).await
}

async fn delete(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let field = request.arg(1).to_owned();
    check_key(&field)?;
    change(&app, &caller, &user_id(&request)?, field, None).await
}

fn check_key(field: &str) -> ApiResult<()> {
    if field.len() > KEY_BYTES_MAX {
        return Err(ApiError::new(
            http::StatusCode::BAD_REQUEST,
            "M_KEY_TOO_LARGE",
            format!("the name of a field has at most {KEY_BYTES_MAX} bytes"),
        ));
    }
    let first = field
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase());
    let rest = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
    };
    if first && field.bytes().all(rest) {
        return Ok(());
    }
    Err(ApiError::invalid_param(
        "the name of a field is made of a-z, 0-9, and - _ .",
    ))
}

fn check_value(field: &str, value: &Value) -> ApiResult<()> {
    let text = value.as_str();
    let fits = match field {
        "displayname" => text.is_some_and(|text| text.chars().count() <= NAME_CHARS_MAX),
        "avatar_url" => text.is_some_and(|text| text.len() <= AVATAR_BYTES_MAX),
        "m.tz" => text.is_some(),
        _ => true,
    };
    if fits {
        return Ok(());
    }
    Err(ApiError::invalid_param(format!(
        "`{field}` is not a text, or too long"
    )))
}

async fn change(
    app: &App,
    caller: &Caller,
    user_id: &UserId,
    field: String,
    value: Option<Value>,
) -> ApiResult<Value> {
    caller.must_be(user_id)?;
    caller.must_not_be_suspended()?;
    caller.limit(app, Doing::Profile)?;
    let _changing = app.accounts.profiles_changing.lock().await;
    let mut profile = app.accounts.profile(caller.user)?;
    let shown_in_rooms = matches!(&*field, "displayname" | "avatar_url");
    let old = match value.clone() {
        Some(value) => profile.insert(field, value),
        None => profile.remove(&field),
    };
    if old == value {
        return Ok(json!({}));
    }
    if serde_json::to_vec(&profile).is_ok_and(|bytes| bytes.len() > PROFILE_BYTES_MAX) {
        return Err(ApiError::new(
            http::StatusCode::BAD_REQUEST,
            "M_PROFILE_TOO_LARGE",
            format!("a profile has at most {PROFILE_BYTES_MAX} bytes"),
        ));
    }
    let mut commit = Commit::new();
    app.accounts.put_profile(&mut commit, caller.user, &profile);
    commit.log(Change::Profile { user: caller.user });
    let _begun = if shown_in_rooms {
        Some(app.upkeep.begin(app, &mut commit, caller.user, false).await)
    } else {
        None
    };
    app.store.commit(commit).await?;
    Ok(json!({}))
}
