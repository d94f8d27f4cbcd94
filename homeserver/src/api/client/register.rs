//! Registration.
//!
//! Spec: client-server API, "Account registration".

use http::{Method, StatusCode};
use ruma::{
    OwnedDeviceId,
    api::client::account::{
        check_registration_token_validity, get_username_availability,
        register::{self, LoginType, RegistrationKind},
    },
};
use serde_json::{Map, Value};

use super::{login, uia};
use crate::{
    accounts::registration::{self, NewAccount},
    config::RegistrationMode,
    error::{ApiError, ApiResult},
    http::{Public, RawRequest, Routes, limits::Doing, routes::parse_typed},
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    for path in ["/_matrix/client/r0/register", "/_matrix/client/v3/register"] {
        routes.route(
            Method::POST,
            path,
            |app: App, public: Public, request: RawRequest| async move {
                let response = register(&app, public, &request).await?;
                Ok(crate::http::json_reply(StatusCode::OK, &response))
            },
        );
    }
    routes.add(available);
    routes.add(token_validity);
}

async fn register(
    app: &App,
    Public(client): Public,
    request: &RawRequest,
) -> ApiResult<login::LoginReply> {
    let (auth, request) = split_auth(request)?;
    let request = &request;
    let typed: register::v3::Request = parse_typed(request)?;
    if typed.login_type == Some(LoginType::ApplicationService) {
        return register_for_service(app, client.0, request, typed).await;
    }
    app.limits.address(app, Doing::Register, client.0)?;
    let guest = match typed.kind {
        RegistrationKind::User => false,
        RegistrationKind::Guest if app.config.registration.guests => true,
        RegistrationKind::Guest => {
            return Err(ApiError::guest_forbidden("guests may not register here"));
        }
        _ => return Err(ApiError::invalid_param("`kind` is `user` or `guest`")),
    };
    let user_id = match typed.username.as_deref().filter(|_| !guest) {
        Some(name) => app.local_user_id(&name.to_lowercase())?,
        None => app.local_user_id(&app.entropy.text(12).to_lowercase())?,
    };
    registration::check_name(app, &user_id, None)?;
    let flows = flows(app, client.0)?;
    if let Some(password) = &typed.password {
        registration::check_password(app, password)?;
    }
    let mut token = None;
    if !guest {
        let proven = uia::authenticate(app, "register", &flows, None, auth.as_ref()).await?;
        token = proven.token;
        if typed.password.is_none() {
            return Err(ApiError::missing_param("`password` is missing"));
        }
    }
    let new = NewAccount {
        password: typed.password.filter(|_| !guest),
        guest,
        token,
        ..NewAccount::default()
    };
    let user = registration::register(app, &user_id, new).await?;
    if typed.inhibit_login {
        return Ok(login::LoginReply::without_session(app, user_id));
    }
    let device: Option<OwnedDeviceId> = typed.device_id.filter(|_| !guest);
    login::start_session(
        app,
        user,
        user_id,
        device,
        typed.initial_device_display_name,
        typed.refresh_token,
    )
    .await
}

/// The `auth` of a request, and the request without it: what it may be is `uia`'s to say.
fn split_auth(request: &RawRequest) -> ApiResult<(Option<uia::Auth>, RawRequest)> {
    let mut body: Map<String, Value> = request.json()?;
    let auth = body.remove("auth").map(serde_json::from_value);
    let auth = auth
        .transpose()
        .map_err(|error| ApiError::bad_json(format!("`auth`: {error}")))?;
    let body = serde_json::to_vec(&body).map_err(|error| ApiError::internal(&error))?;
    let rest = RawRequest {
        parts: request.parts.clone(),
        path: request.path.clone(),
        body: body.into(),
    };
    Ok((auth, rest))
}

/// The stages that registration needs now, from this address. The first admin may always register
/// with the token that was printed at the first start.
fn flows(app: &App, address: std::net::IpAddr) -> ApiResult<uia::Flows> {
    let mut flows = Vec::new();
    match app.config.registration.mode {
        RegistrationMode::Open => flows.push(vec!["m.login.dummy"]),
        RegistrationMode::OpenLoopback if address.is_loopback() => {
            flows.push(vec!["m.login.dummy"]);
        }
        RegistrationMode::Token => flows.push(vec!["m.login.registration_token"]),
        RegistrationMode::OpenLoopback | RegistrationMode::Closed => {}
    }
    let first_admin = registration::first_admin_token(&app.store)?.is_some();
    if first_admin && app.config.registration.mode != RegistrationMode::Token {
        flows.push(vec!["m.login.registration_token"]);
    }
    if flows.is_empty() {
        return Err(ApiError::forbidden("registration is closed on this server"));
    }
    Ok(flows)
}

/// A bridge makes a user for each person it meets: it is not limited, only who pretends to be one.
async fn register_for_service(
    app: &App,
    address: std::net::IpAddr,
    request: &RawRequest,
    typed: register::v3::Request,
) -> ApiResult<login::LoginReply> {
    let service = login::service(app, request);
    if service.is_err() {
        app.limits.address(app, Doing::Register, address)?;
    }
    let service = service?;
    let name = typed
        .username
        .ok_or_else(|| ApiError::missing_param("`username` is missing"))?;
    let user_id = app.local_user_id(&name)?;
    registration::check_name(app, &user_id, Some(&service.id))?;
    if !service.is_interested_in_user(&user_id) {
        return Err(ApiError::exclusive(
            "the user name is not in the application service's namespaces",
        ));
    }
    let new = NewAccount {
        service: Some(service.id.clone()),
        ..NewAccount::default()
    };
    let user = registration::register(app, &user_id, new).await?;
    if typed.inhibit_login {
        return Ok(login::LoginReply::without_session(app, user_id));
    }
    login::start_session(
        app,
        user,
        user_id,
        typed.device_id,
        typed.initial_device_display_name,
        typed.refresh_token,
    )
    .await
}

async fn available(
    app: App,
    Public(client): Public,
    request: get_username_availability::v3::Request,
) -> ApiResult<get_username_availability::v3::Response> {
    app.limits.address(&app, Doing::Register, client.0)?;
    let user_id = app.local_user_id(&request.username.to_lowercase())?;
    registration::check_name(&app, &user_id, None)?;
    Ok(get_username_availability::v3::Response::new(true))
}

async fn token_validity(
    app: App,
    Public(client): Public,
    request: check_registration_token_validity::v1::Request,
) -> ApiResult<check_registration_token_validity::v1::Response> {
    app.limits.address(&app, Doing::Register, client.0)?;
    let valid = registration::is_valid(&app, &request.token)?;
    Ok(check_registration_token_validity::v1::Response::new(valid))
}
