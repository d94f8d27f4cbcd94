//! Who makes a request: the only makers of [`Caller`].
//!
//! Spec: client-server API, "Client Authentication", "Using access tokens"; application service API,
//! "Identity assertion".

use std::{future::Future, net::IpAddr, sync::Arc};

use http::{StatusCode, header, request::Parts};
use ruma::{DeviceId, OwnedDeviceId, OwnedServerName, OwnedUserId, UserId};
use store::keys::UserNum;

use super::{limits::Doing, query};
use crate::{
    accounts::{Session, users::UserRow},
    appservices::Registration,
    config::Who,
    error::{ApiError, ApiResult},
    server::App,
};

/// How a handler wants its request authenticated.
pub trait Auth: Sized + Send + 'static {
    /// Whether a request without an access token gets as far as the handler.
    const PUBLIC: bool;

    /// Whether who makes the request is only known with its whole body: such a handler cannot read the body itself.
    const SIGNS_BODY: bool = false;

    /// Finds out who makes the request.
    fn authenticate(app: &App, parts: &mut Parts) -> impl Future<Output = ApiResult<Self>> + Send;

    /// Checks what can only be checked with the whole body: a signature over it.
    fn authenticate_body(
        &self,
        _app: &App,
        _parts: &Parts,
        _body: &[u8],
    ) -> impl Future<Output = ApiResult<()>> + Send {
        std::future::ready(Ok(()))
    }
}

/// The address that a request came from, as the listener or a trusted proxy says.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub IpAddr);

impl Client {
    /// The address of a request; the loopback address where there was no socket.
    pub fn of(parts: &Parts) -> Self {
        parts
            .extensions
            .get::<Self>()
            .copied()
            .unwrap_or(Self(IpAddr::from([127, 0, 0, 1])))
    }
}

/// Anybody; the token is not even looked at.
#[derive(Clone, Copy, Debug)]
pub struct Public(pub Client);

/// A local user who is logged in, and no guest.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user's short number.
    pub user: UserNum,
    /// The user.
    pub user_id: OwnedUserId,
    /// The device; absent only for application services.
    pub device: Option<OwnedDeviceId>,
    /// The session, unless an application service makes the request.
    pub session: Option<Arc<Session>>,
    /// The application service that makes the request in the user's name.
    pub service: Option<Arc<Registration>>,
    /// The account.
    pub account: Arc<UserRow>,
    /// Where the request came from.
    pub address: IpAddr,
}

impl Caller {
    /// The device.
    ///
    /// # Errors
    /// `M_UNKNOWN` for an application service that names none.
    pub fn device(&self) -> ApiResult<&DeviceId> {
        self.device
            .as_deref()
            .ok_or_else(|| ApiError::unknown("this needs a device: name one with `device_id`"))
    }

    /// That `user_id` is the caller.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when it is somebody else.
    pub fn must_be(&self, user_id: &UserId) -> ApiResult<()> {
        if self.user_id == user_id {
            return Ok(());
        }
        Err(ApiError::forbidden("this belongs to another user"))
    }

    /// That the caller administers this server.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when not.
    pub fn must_be_admin(&self) -> ApiResult<()> {
        if self.account.admin {
            return Ok(());
        }
        Err(ApiError::forbidden(
            "only an admin of this server may do this",
        ))
    }

    /// That a setting lets the caller do what the error then names. Application services are the admins'.
    ///
    /// # Errors
    /// `M_FORBIDDEN`.
    pub fn must_be_among(&self, who: Who, doing: &str) -> ApiResult<()> {
        if who == Who::Anyone || self.account.admin || self.service.is_some() {
            return Ok(());
        }
        Err(ApiError::forbidden(format!(
            "only admins of this server may {doing}"
        )))
    }

    /// That the caller is not suspended. Spec: client-server API, "Account suspension".
    ///
    /// # Errors
    /// `M_USER_SUSPENDED`.
    pub fn must_not_be_suspended(&self) -> ApiResult<()> {
        if !self.account.suspended {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "M_USER_SUSPENDED",
            "the account is suspended",
        ))
    }

    /// That the caller may do `doing` once more now.
    ///
    /// # Errors
    /// `M_LIMIT_EXCEEDED`.
    pub fn limit(&self, app: &App, doing: Doing) -> ApiResult<()> {
        let exempt = self.service.as_ref().is_some_and(|service| {
            !service.rate_limited.unwrap_or(true)
                || service.sender_localpart == self.user_id.localpart()
        });
        if exempt {
            return Ok(());
        }
        app.limits.user(app, doing, self.user)
    }
}

/// A local user who is logged in, perhaps as a guest.
#[derive(Clone, Debug)]
pub struct Guest(pub Caller);

/// Anybody, known if they sent a token.
#[derive(Clone, Debug)]
pub struct MaybeCaller(pub Option<Caller>);

/// A caller whose account may be locked: for logging out.
#[derive(Clone, Debug)]
pub struct LockedCaller(pub Caller);

/// Another server, by the signature of its request.
///
/// Spec: server-server API, "Request Authentication".
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its name.
    pub name: OwnedServerName,
}

impl Auth for Origin {
    const PUBLIC: bool = false;
    const SIGNS_BODY: bool = true;

    async fn authenticate(app: &App, parts: &mut Parts) -> ApiResult<Self> {
        crate::peers::origin::parse(app, parts)
    }

    async fn authenticate_body(&self, app: &App, parts: &Parts, body: &[u8]) -> ApiResult<()> {
        crate::peers::origin::verify(app, self, parts, body).await?;
        app.outgoing.heard(&self.name);
        Ok(())
    }
}

/// An application service, by its own token.
#[derive(Clone, Debug)]
pub struct Service(pub Arc<Registration>);

impl Auth for Public {
    const PUBLIC: bool = true;

    async fn authenticate(_: &App, parts: &mut Parts) -> ApiResult<Self> {
        Ok(Self(Client::of(parts)))
    }
}

impl Auth for Caller {
    const PUBLIC: bool = false;

    async fn authenticate(app: &App, parts: &mut Parts) -> ApiResult<Self> {
        let Guest(caller) = Guest::authenticate(app, parts).await?;
        if caller.account.guest {
            return Err(ApiError::guest_forbidden("guests may not do this"));
        }
        Ok(caller)
    }
}

impl Auth for Guest {
    const PUBLIC: bool = false;

    async fn authenticate(app: &App, parts: &mut Parts) -> ApiResult<Self> {
        let LockedCaller(caller) = LockedCaller::authenticate(app, parts).await?;
        if caller.account.locked {
            return Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "M_USER_LOCKED",
                "the account is locked",
            )
            .with("soft_logout", true));
        }
        Ok(Self(caller))
    }
}

impl Auth for LockedCaller {
    const PUBLIC: bool = false;

    async fn authenticate(app: &App, parts: &mut Parts) -> ApiResult<Self> {
        let token = token(app, parts)?.ok_or_else(|| ApiError::missing_token("no access token"))?;
        let caller = caller(app, parts, &token)?;
        if let Some(session) = &caller.session {
            app.accounts.first_use(session).await?;
        }
        // What a bridge does in the name of others does not mean that they are there.
        if parts.method != http::Method::GET && caller.service.is_none() {
            app.presence.active(caller.user, app.clock.now_ms());
        }
        Ok(Self(caller))
    }
}

impl Auth for MaybeCaller {
    const PUBLIC: bool = true;

    async fn authenticate(app: &App, parts: &mut Parts) -> ApiResult<Self> {
        if token(app, parts)?.is_none() {
            return Ok(Self(None));
        }
        let Guest(caller) = Guest::authenticate(app, parts).await?;
        Ok(Self(Some(caller)))
    }
}

impl Auth for Service {
    const PUBLIC: bool = false;

    async fn authenticate(app: &App, parts: &mut Parts) -> ApiResult<Self> {
        let token = token(app, parts)?.ok_or_else(|| ApiError::missing_token("no access token"))?;
        if let Some(service) = app.appservices.by_token(&token) {
            return Ok(Self(service));
        }
        app.accounts.session(&token, app.clock.now_ms())?;
        Err(ApiError::forbidden(
            "this is for application services, with their own token",
        ))
    }
}

/// The access token of a request, from its header or, where allowed, its query.
///
/// # Errors
/// `M_MISSING_TOKEN` when the header is not a bearer token.
pub fn token(app: &App, parts: &Parts) -> ApiResult<Option<String>> {
    if let Some(header) = parts.headers.get(header::AUTHORIZATION) {
        let bearer = header.to_str().ok().and_then(|header| {
            let (scheme, token) = header.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| token.trim().to_owned())
        });
        return bearer
            .map(Some)
            .ok_or_else(|| ApiError::missing_token("the authorization is not a bearer token"));
    }
    if app.config.testing.access_token_in_query {
        return Ok(query(parts, "access_token"));
    }
    Ok(None)
}

fn caller(app: &App, parts: &Parts, token: &str) -> ApiResult<Caller> {
    let Client(address) = Client::of(parts);
    if let Some(service) = app.appservices.by_token(token) {
        return masquerade(app, parts, service, address);
    }
    let session = app.accounts.session(token, app.clock.now_ms())?;
    let account = app
        .accounts
        .user(session.user)?
        .ok_or_else(|| ApiError::unknown_token(false))?;
    if account.deactivated {
        return Err(ApiError::unknown_token(false));
    }
    app.accounts.saw(&session, address, app.clock.now_ms());
    Ok(Caller {
        user: session.user,
        user_id: session.user_id.clone(),
        device: Some(session.device.clone()),
        session: Some(session),
        service: None,
        account,
        address,
    })
}

/// An application service acts as its sender, or as the user and device that it names.
fn masquerade(
    app: &App,
    parts: &Parts,
    service: Arc<Registration>,
    address: IpAddr,
) -> ApiResult<Caller> {
    let user_id = match query(parts, "user_id") {
        Some(text) => UserId::parse(&*text)
            .map_err(|_| ApiError::invalid_param("`user_id` is not a user ID"))?,
        None => app.local_user_id(&service.sender_localpart)?,
    };
    if !app.is_local(&user_id) || !service.acts_as(&user_id) {
        return Err(ApiError::forbidden(
            "the user is not in the application service's namespaces",
        ));
    }
    let user = app.store.find_user(&user_id)?;
    let account = user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten();
    let (user, account) = user
        .zip(account)
        .ok_or_else(|| ApiError::forbidden("the user is not registered"))?;
    if account.deactivated {
        return Err(ApiError::user_deactivated("the account is deactivated"));
    }
    let device = query(parts, "device_id")
        .or_else(|| query(parts, "org.matrix.msc3202.device_id"))
        .map(OwnedDeviceId::from);
    if let Some(device) = &device
        && app.accounts.device(user, device)?.is_none()
    {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "M_UNKNOWN_DEVICE",
            "the user has no such device",
        ));
    }
    Ok(Caller {
        user,
        user_id,
        device,
        session: None,
        service: Some(service),
        account,
        address,
    })
}
