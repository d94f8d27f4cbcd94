//! User-interactive authentication: proving again who one is, in stages.
//!
//! A session remembers which stages are done and for which request. Spec: client-server API,
//! "User-Interactive Authentication API".

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use http::StatusCode;
use ruma::{
    OwnedUserId, UserId,
    api::client::uiaa::{AuthData, MatrixUserIdentifier, UserIdentifier},
};
use serde_json::{Map, Value, json};

use crate::{
    accounts::passwords,
    error::{ApiError, ApiResult},
    http::{Caller, limits::Doing},
    seams::heavy,
    server::App,
};

/// How many sessions are remembered; the oldest go first.
const SESSIONS_MAX: usize = 10_000;

/// What a session has proved.
#[derive(Clone, Debug, Default)]
struct Session {
    completed: Vec<&'static str>,
    started_ms: u64,
    /// Who and what it was started for: it proves nothing for anything else.
    purpose: String,
}

/// The sessions that are open.
#[derive(Debug, Default)]
pub struct UiaSessions(Mutex<BTreeMap<String, Session>>);

/// The stages that a request needs, in flows of which one is enough.
pub type Flows = Vec<Vec<&'static str>>;

/// A proof that one flow is complete.
#[derive(Clone, Copy, Debug)]
pub struct Proven(());

impl UiaSessions {
    fn open(&self, app: &App, purpose: &str) -> String {
        let now_ms = app.clock.now_ms();
        let lifetime_ms = app.config.sessions.interactive_auth_lifetime_seconds * 1_000;
        let id = app.entropy.text(24);
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX {
            sessions.retain(|_, session| session.started_ms + lifetime_ms > now_ms);
            while sessions.len() >= SESSIONS_MAX {
                sessions.pop_first();
            }
        }
        let session = Session {
            started_ms: now_ms,
            purpose: purpose.to_owned(),
            ..Session::default()
        };
        sessions.insert(id.clone(), session);
        id
    }

    fn get(&self, app: &App, id: &str, purpose: &str) -> Option<Session> {
        let now_ms = app.clock.now_ms();
        let lifetime_ms = app.config.sessions.interactive_auth_lifetime_seconds * 1_000;
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get(id)?;
        let fits = session.purpose == purpose && session.started_ms + lifetime_ms > now_ms;
        fits.then(|| session.clone())
    }

    /// Notes that a stage of an open session is done elsewhere, such as on a fallback page.
    pub fn complete(&self, id: &str, stage: &'static str) -> bool {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(session) = sessions.get_mut(id) else {
            return false;
        };
        if !session.completed.contains(&stage) {
            session.completed.push(stage);
        }
        true
    }
}

/// Checks what a request proves, and answers 401 with what is missing.
///
/// `purpose` names who does what, so that a session is good for that alone.
///
/// # Errors
/// 401 with the flows while one is not complete; `M_FORBIDDEN` within it for a stage that failed.
pub async fn authenticate(
    app: &App,
    purpose: &str,
    flows: &Flows,
    who: Option<&Caller>,
    auth: Option<&AuthData>,
) -> ApiResult<Proven> {
    let id = auth.and_then(|auth| auth.session()).map(str::to_owned);
    let known = id.as_deref().and_then(|id| app.uia.get(app, id, purpose));
    let id = match (&known, id) {
        (Some(_), Some(id)) => id,
        (None, Some(_)) if auth.is_some_and(|auth| auth.auth_type().is_none()) => {
            return Err(challenge(&app.uia.open(app, purpose), flows, &[], None));
        }
        _ => app.uia.open(app, purpose),
    };
    let mut completed = known.map(|session| session.completed).unwrap_or_default();
    let Some(auth) = auth else {
        return Err(challenge(&id, flows, &completed, None));
    };
    if let (AuthData::Password(password), Some(caller)) = (auth, who)
        && user_of(app, &password.identifier)? != caller.user_id
    {
        return Err(ApiError::forbidden("the password must be your own"));
    }
    match stage(app, who, auth).await {
        Ok(Some(done)) => {
            app.uia.complete(&id, done);
            if !completed.contains(&done) {
                completed.push(done);
            }
        }
        Ok(None) => {}
        Err(error) => return Err(challenge(&id, flows, &completed, Some(error))),
    }
    let complete = flows
        .iter()
        .any(|flow| flow.iter().all(|stage| completed.contains(stage)));
    if complete {
        return Ok(Proven(()));
    }
    Err(challenge(&id, flows, &completed, None))
}

fn challenge(id: &str, flows: &Flows, completed: &[&str], failed: Option<ApiError>) -> ApiError {
    let flows: Vec<Value> = flows
        .iter()
        .map(|stages| json!({ "stages": stages }))
        .collect();
    let mut extra = Map::new();
    extra.insert("session".to_owned(), id.into());
    extra.insert("flows".to_owned(), flows.into());
    extra.insert("params".to_owned(), json!({}));
    extra.insert("completed".to_owned(), json!(completed));
    match failed {
        Some(mut error) => {
            if error.status == StatusCode::TOO_MANY_REQUESTS {
                return error;
            }
            error.status = StatusCode::UNAUTHORIZED;
            error.extra.extend(extra);
            error
        }
        None => ApiError {
            extra,
            ..ApiError::challenge()
        },
    }
}

/// Checks one stage: which one is done by `auth`.
async fn stage(
    app: &App,
    who: Option<&Caller>,
    auth: &AuthData,
) -> ApiResult<Option<&'static str>> {
    match auth {
        AuthData::Dummy(_) => Ok(Some("m.login.dummy")),
        AuthData::Password(password) => {
            let caller =
                who.ok_or_else(|| ApiError::forbidden("a password proves nothing here"))?;
            check_password(app, caller, password.password.clone()).await?;
            Ok(Some("m.login.password"))
        }
        AuthData::RegistrationToken(token) => {
            crate::accounts::registration::check_token(app, &token.token)?;
            Ok(Some("m.login.registration_token"))
        }
        _ => Ok(None),
    }
}

/// The user whom an identifier means.
///
/// # Errors
/// `M_FORBIDDEN` when it is not a local user's.
pub fn user_of(app: &App, identifier: &UserIdentifier) -> ApiResult<OwnedUserId> {
    match identifier {
        UserIdentifier::Matrix(MatrixUserIdentifier { user, .. }) => named_user(app, user),
        _ => Err(ApiError::unknown(
            "this kind of identifier is not served here",
        )),
    }
}

/// The user meant by a localpart or a user ID, whatever its case.
///
/// # Errors
/// `M_FORBIDDEN` when there can be no such user.
pub fn named_user(app: &App, name: &str) -> ApiResult<OwnedUserId> {
    let nobody = || ApiError::forbidden("the user name or password is wrong");
    let user_id = match UserId::parse(name) {
        Ok(user_id) => user_id,
        Err(_) => app.local_user_id(name).map_err(|_| nobody())?,
    };
    if !app.is_local(&user_id) {
        return Err(nobody());
    }
    // Old accounts may have capitals; new ones do not.
    if app.store.find_user(&user_id)?.is_some() {
        return Ok(user_id);
    }
    app.local_user_id(&user_id.localpart().to_lowercase())
        .map_err(|_| nobody())
}

async fn check_password(app: &App, caller: &Caller, password: String) -> ApiResult<()> {
    app.limits.user(app, Doing::FailedLogin, caller.user)?;
    let wrong = || ApiError::forbidden("the password is wrong");
    let hash = caller.account.password_hash.clone().ok_or_else(wrong)?;
    if heavy(app.seams.inline, move || {
        passwords::verify(&password, &hash)
    })
    .await
    {
        return Ok(());
    }
    Err(wrong())
}
