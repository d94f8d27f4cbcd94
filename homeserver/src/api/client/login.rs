//! Logging in and out, and refreshing.
//!
//! Spec: client-server API, "Legacy API", "Login".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::client::{
        session::{get_login_types, login, logout, logout_all, refresh_token},
        uiaa::UserIdentifier,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Commit, keys::UserNum};

use super::uia;
use crate::{
    accounts::{DeviceRow, UserRow, devices::DEVICES_MAX, passwords, sessions::Lifetimes},
    appservices::Registration,
    error::{ApiError, ApiResult},
    http::{
        Caller, Public, RawRequest, Routes, auth::LockedCaller, limits::Doing, routes::parse_typed,
    },
    keys::lists::{self, What},
    seams::heavy,
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    routes.add(login_types);
    for path in ["/_matrix/client/r0/login", "/_matrix/client/v3/login"] {
        routes.raw(http::Method::POST, path, log_in);
    }
    let token = "/_matrix/client/v1/login/get_token";
    routes.raw(http::Method::POST, token, login_token);
    routes.add(refresh);
    routes.add(log_out);
    routes.add(log_out_all);
}

/// What a client gets when it has logged in or registered.
#[derive(Debug, Serialize)]
pub(super) struct LoginReply {
    user_id: OwnedUserId,
    home_server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<OwnedDeviceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
}

impl LoginReply {
    /// An account that nobody is logged in to.
    pub(super) fn without_session(app: &App, user_id: OwnedUserId) -> Self {
        Self {
            user_id,
            home_server: app.server_name().to_string(),
            access_token: None,
            device_id: None,
            refresh_token: None,
            expires_in_ms: None,
        }
    }
}

async fn login_types(
    _: App,
    _: Public,
    _: get_login_types::v3::Request,
) -> ApiResult<get_login_types::v3::Response> {
    use get_login_types::v3::{
        ApplicationServiceLoginType, LoginType, PasswordLoginType, Response, TokenLoginType,
    };
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    Ok(Response::new(vec![
        LoginType::Password(PasswordLoginType::new()),
        LoginType::Token(token),
        LoginType::ApplicationService(ApplicationServiceLoginType::new()),
    ]))
}

async fn log_in(app: App, Public(client): Public, request: RawRequest) -> ApiResult<LoginReply> {
    use login::v3::LoginInfo;
    let typed: login::v3::Request = parse_typed(&request)?;
    let by_service = matches!(typed.login_info, LoginInfo::ApplicationService(_))
        && service(&app, &request).is_ok();
    if !by_service {
        app.limits.address(&app, Doing::Login, client.0)?;
    }
    let (user, user_id) = match &typed.login_info {
        LoginInfo::Password(info) => {
            let user_id = user_named(&app, info.identifier.as_ref(), &request)?;
            with_password(&app, user_id, info.password.clone()).await?
        }
        LoginInfo::ApplicationService(info) => {
            let user_id = user_named(&app, info.identifier.as_ref(), &request)?;
            with_service(&app, &request, user_id)?
        }
        LoginInfo::Token(info) => with_token(&app, &info.token).await?,
        _ => return Err(ApiError::unknown("this type of login is not served here")),
    };
    start_session(
        &app,
        user,
        user_id,
        typed.device_id,
        typed.initial_device_display_name,
        typed.refresh_token,
    )
    .await
}

async fn with_password(
    app: &App,
    user_id: OwnedUserId,
    password: String,
) -> ApiResult<(UserNum, OwnedUserId)> {
    let wrong = || ApiError::forbidden("the user name or password is wrong");
    let user = app.store.find_user(&user_id)?;
    let account = user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten();
    if let Some(user) = user {
        app.limits.user(app, Doing::FailedLogin, user)?;
    }
    // No secret: the profile is gone, and the name stays taken.
    if let Some(account) = account.as_ref().filter(|account| account.deactivated) {
        may_log_in(account)?;
    }
    let hash = account
        .as_ref()
        .and_then(|account| account.password_hash.clone());
    let cost = app.config.password_hash_cost();
    let right = heavy(app.seams.inline, move || match hash {
        Some(hash) => passwords::verify(&password, &hash),
        None => {
            // As slow as a wrong password, so that the time does not tell who has an account.
            drop(passwords::hash(&password, [0; 16], cost));
            false
        }
    })
    .await;
    let (Some(user), Some(account), true) = (user, account, right) else {
        return Err(wrong());
    };
    may_log_in(&account)?;
    Ok((user, user_id))
}

async fn with_token(app: &App, token: &str) -> ApiResult<(UserNum, OwnedUserId)> {
    let now_ms = app.clock.now_ms();
    let user = app.accounts.take_login_token(token, now_ms).await?;
    let account = app.accounts.user(user)?;
    let account = account.ok_or_else(|| ApiError::forbidden("the login token is not valid"))?;
    may_log_in(&account)?;
    Ok((user, app.store.user_id(user)?))
}

#[derive(Deserialize)]
struct TokenRequest {
    auth: Option<uia::Auth>,
}

/// A token with which another device of the caller's logs in.
async fn login_token(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let body: TokenRequest = request.json()?;
    let purpose = format!("login token {}", caller.user_id);
    let flows = vec![vec!["m.login.password"]];
    uia::authenticate(&app, &purpose, &flows, Some(&caller), body.auth.as_ref()).await?;
    let lifetime_ms = app.config.sessions.login_token_lifetime_seconds * 1_000;
    let expires_ms = app.clock.now_ms() + lifetime_ms;
    let token = app
        .accounts
        .new_login_token(caller.user, &app.entropy, expires_ms)
        .await?;
    Ok(json!({ "login_token": token, "expires_in_ms": lifetime_ms }))
}

/// The application service that makes a request.
///
/// # Errors
/// `M_MISSING_TOKEN`, `M_UNKNOWN_TOKEN`.
pub(super) fn service(app: &App, request: &RawRequest) -> ApiResult<Arc<Registration>> {
    let token = crate::http::auth::token(app, &request.parts)?
        .ok_or_else(|| ApiError::missing_token("no access token"))?;
    app.appservices
        .by_token(&token)
        .ok_or_else(|| ApiError::unknown_token(false))
}

fn with_service(
    app: &App,
    request: &RawRequest,
    user_id: OwnedUserId,
) -> ApiResult<(UserNum, OwnedUserId)> {
    let service = service(app, request)?;
    if !app.is_local(&user_id) || !service.acts_as(&user_id) {
        return Err(ApiError::exclusive(
            "the user is not in the application service's namespaces",
        ));
    }
    let user = app.store.find_user(&user_id)?;
    let account = user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten();
    let (Some(user), Some(account)) = (user, account) else {
        return Err(ApiError::forbidden("the user is not registered"));
    };
    may_log_in(&account)?;
    Ok((user, user_id))
}

fn may_log_in(account: &UserRow) -> ApiResult<()> {
    if account.deactivated {
        return Err(ApiError::user_deactivated("the account is deactivated"));
    }
    if account.locked {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "M_USER_LOCKED",
            "the account is locked",
        )
        .with("soft_logout", true));
    }
    Ok(())
}

/// Who logs in: by `identifier`, or by `user`, which clients still send though it is deprecated.
fn user_named(
    app: &App,
    identifier: Option<&UserIdentifier>,
    request: &RawRequest,
) -> ApiResult<OwnedUserId> {
    #[derive(Deserialize)]
    struct Old {
        user: Option<String>,
    }
    match (identifier, request.json::<Old>()?.user) {
        (Some(identifier), _) => uia::user_of(app, identifier),
        (None, Some(user)) => uia::named_user(app, &user),
        (None, None) => Err(ApiError::missing_param("`identifier` is missing")),
    }
}

/// Logs a device in: a new one, or a known one again, whose old tokens end.
///
/// # Errors
/// `M_INVALID_PARAM` for a device ID that cannot be, `M_UNKNOWN` when there are too many devices.
pub(super) async fn start_session(
    app: &App,
    user: UserNum,
    user_id: OwnedUserId,
    device: Option<OwnedDeviceId>,
    display_name: Option<String>,
    can_refresh: bool,
) -> ApiResult<LoginReply> {
    let device = device.unwrap_or_else(|| app.entropy.text(10).to_uppercase().into());
    if device.as_str().is_empty() || device.as_str().len() > 255 {
        return Err(ApiError::invalid_param("a device ID has 1 to 255 bytes"));
    }
    let now_ms = app.clock.now_ms();
    let mut commit = Commit::new();
    match app.accounts.device(user, &device)? {
        Some(_) => app.accounts.end_session(&mut commit, user, &device)?,
        None => {
            if app.accounts.devices(user)?.len() >= DEVICES_MAX {
                return Err(ApiError::unknown(
                    "the account has too many devices; log some of them out",
                ));
            }
            let row = DeviceRow {
                display_name,
                last_seen_ms: now_ms,
                last_seen_ip: None,
            };
            app.accounts.put_device(&mut commit, user, &device, &row);
            let what = What::Device(&device);
            lists::note(&app.store, &mut commit, user, what)?;
        }
    }
    let lifetimes = can_refresh.then(|| lifetimes(app));
    let tokens =
        app.accounts
            .issue_tokens(&mut commit, user, &device, &app.entropy, now_ms, lifetimes);
    app.store.commit(commit).await?;
    Ok(LoginReply {
        user_id,
        home_server: app.server_name().to_string(),
        access_token: Some(tokens.access_token),
        device_id: Some(device),
        refresh_token: tokens.refresh_token,
        expires_in_ms: tokens.expires_in_ms,
    })
}

fn lifetimes(app: &App) -> Lifetimes {
    let sessions = &app.config.sessions;
    Lifetimes {
        access_ms: sessions.access_token_lifetime_seconds * 1_000,
        refresh_ms: sessions
            .refresh_token_lifetime_seconds
            .map(|seconds| seconds * 1_000),
    }
}

async fn refresh(
    app: App,
    Public(client): Public,
    request: refresh_token::v3::Request,
) -> ApiResult<refresh_token::v3::Response> {
    app.limits.address(&app, Doing::Login, client.0)?;
    let now_ms = app.clock.now_ms();
    let new = app
        .accounts
        .refresh(
            &request.refresh_token,
            &app.entropy,
            now_ms,
            lifetimes(&app),
        )
        .await?;
    let mut response = refresh_token::v3::Response::new(new.access_token);
    response.refresh_token = new.refresh_token;
    response.expires_in_ms = new.expires_in_ms.map(std::time::Duration::from_millis);
    Ok(response)
}

async fn log_out(
    app: App,
    LockedCaller(caller): LockedCaller,
    _: logout::v3::Request,
) -> ApiResult<logout::v3::Response> {
    let device = caller.device()?;
    let mut commit = Commit::new();
    super::account::remove_device(&app, &mut commit, caller.user, device)?;
    app.store.commit(commit).await?;
    Ok(logout::v3::Response::new())
}

async fn log_out_all(
    app: App,
    LockedCaller(caller): LockedCaller,
    _: logout_all::v3::Request,
) -> ApiResult<logout_all::v3::Response> {
    let mut commit = Commit::new();
    for (device, _) in app.accounts.devices(caller.user)? {
        super::account::remove_device(&app, &mut commit, caller.user, &device)?;
    }
    app.store.commit(commit).await?;
    Ok(logout_all::v3::Response::new())
}
