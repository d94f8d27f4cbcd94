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
    api::client::uiaa::{MatrixUserIdentifier, UserIdentifier},
};
use serde::Deserialize;
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

/// What a client sends as `auth`: a stage, a session, both, or, in `{}`, neither.
///
/// The session may be left out where one stage is all that is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Auth {
    #[serde(rename = "type")]
    kind: Option<String>,
    session: Option<String>,
    identifier: Option<UserIdentifier>,
    /// What stood for `identifier` before version 0.4 of the specification.
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
}

/// What a session has proved.
#[derive(Clone, Debug, Default)]
struct Session {
    completed: Vec<&'static str>,
    started_ms: u64,
    /// Who and what it was started for: it proves nothing for anything else.
    purpose: String,
    /// The registration token that was given.
    token: Option<String>,
}

/// The sessions that are open.
#[derive(Debug, Default)]
pub struct UiaSessions(Mutex<BTreeMap<String, Session>>);

/// The stages that a request needs, in flows of which one is enough.
pub type Flows = Vec<Vec<&'static str>>;

/// A proof that one flow is complete. Its session is over.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The registration token that was part of it.
    pub token: Option<String>,
}

/// A stage that is done.
#[derive(Clone, Debug)]
pub struct Done {
    stage: &'static str,
    token: Option<String>,
}

impl UiaSessions {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, app: &App, purpose: &str) -> String {
        let id = app.entropy.text(24);
        let mut sessions = self.lock();
        if sessions.len() >= SESSIONS_MAX {
            sessions.retain(|_, session| session.is_alive(app));
            while sessions.len() >= SESSIONS_MAX {
                sessions.pop_first();
            }
        }
        let session = Session {
            started_ms: app.clock.now_ms(),
            purpose: purpose.to_owned(),
            ..Session::default()
        };
        sessions.insert(id.clone(), session);
        id
    }

    fn get(&self, app: &App, id: &str, purpose: &str) -> Option<Session> {
        let sessions = self.lock();
        let session = sessions.get(id)?;
        (session.purpose == purpose && session.is_alive(app)).then(|| session.clone())
    }

    /// Whether a session is open, whatever it is for.
    pub fn is_open(&self, app: &App, id: &str) -> bool {
        self.lock()
            .get(id)
            .is_some_and(|session| session.is_alive(app))
    }

    /// Notes that a stage of an open session is done. `false`: there is no such session.
    pub fn complete(&self, app: &App, id: &str, done: Done) -> bool {
        let mut sessions = self.lock();
        let Some(session) = sessions.get_mut(id).filter(|session| session.is_alive(app)) else {
            return false;
        };
        session.add(done);
        true
    }

    fn close(&self, id: &str) {
        self.lock().remove(id);
    }
}

impl Session {
    fn is_alive(&self, app: &App) -> bool {
        let lifetime_ms = app.config.sessions.interactive_auth_lifetime_seconds * 1_000;
        self.started_ms + lifetime_ms > app.clock.now_ms()
    }

    fn add(&mut self, done: Done) {
        if !self.completed.contains(&done.stage) {
            self.completed.push(done.stage);
        }
        self.token = done.token.or(self.token.take());
    }
}

/// Checks what a request proves, and answers 401 with what is missing.
///
/// `purpose` names who does what, so that a session is good for that alone. A session ends when it has
/// proved something: one proof is good for one request.
///
/// # Errors
/// 401 with the flows while one is not complete; within it an errcode for a stage that failed
/// (`M_FORBIDDEN`, `M_MISSING_PARAM`), that is not served (`M_UNRECOGNIZED`), or for a session that is
/// not known or not for this (`M_UNKNOWN`).
pub async fn authenticate(
    app: &App,
    purpose: &str,
    flows: &Flows,
    who: Option<&Caller>,
    auth: Option<&Auth>,
) -> ApiResult<Proven> {
    let named = auth.and_then(|auth| auth.session.as_deref());
    let known = named.and_then(|id| app.uia.get(app, id, purpose));
    let (id, mut session) = match (named, known) {
        (Some(id), Some(session)) => (id.to_owned(), session),
        (Some(_), None) => {
            let id = app.uia.open(app, purpose);
            let unknown = ApiError::unknown("the session is not known, or was for something else");
            return Err(challenge(&id, flows, &[], Some(unknown)));
        }
        (None, _) => (app.uia.open(app, purpose), Session::default()),
    };
    if let Some(auth) = auth.filter(|auth| auth.kind.is_some()) {
        match stage(app, who, auth).await {
            Ok(done) => {
                app.uia.complete(app, &id, done.clone());
                session.add(done);
            }
            // Not a failed stage: nobody proves with one user's password that they are another.
            Err(error) if error.status == StatusCode::FORBIDDEN && is_foreign(app, who, auth) => {
                return Err(error);
            }
            Err(error) => return Err(challenge(&id, flows, &session.completed, Some(error))),
        }
    }
    let complete = flows
        .iter()
        .any(|flow| flow.iter().all(|stage| session.completed.contains(stage)));
    if complete {
        app.uia.close(&id);
        return Ok(Proven {
            token: session.token,
        });
    }
    Err(challenge(&id, flows, &session.completed, None))
}

/// Whether a password is said to be of somebody other than the caller.
fn is_foreign(app: &App, who: Option<&Caller>, auth: &Auth) -> bool {
    who.is_some_and(|caller| !matches!(auth.user(app), Ok(user_id) if user_id == caller.user_id))
}

impl Auth {
    /// The user who is said to authenticate.
    fn user(&self, app: &App) -> ApiResult<OwnedUserId> {
        match (&self.identifier, &self.user) {
            (Some(identifier), _) => user_of(app, identifier),
            (None, Some(user)) => named_user(app, user),
            (None, None) => Err(ApiError::missing_param("`identifier` is missing")),
        }
    }
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

/// Checks the one stage that `auth` is about.
async fn stage(app: &App, who: Option<&Caller>, auth: &Auth) -> ApiResult<Done> {
    match auth.kind.as_deref() {
        Some("m.login.dummy") => Ok(dummy()),
        Some("m.login.password") => {
            let caller =
                who.ok_or_else(|| ApiError::forbidden("a password proves nothing here"))?;
            if auth.user(app)? != caller.user_id {
                return Err(ApiError::forbidden("the password must be your own"));
            }
            let password = auth.password.clone();
            let password =
                password.ok_or_else(|| ApiError::missing_param("`password` is missing"))?;
            check_password(app, caller, password).await?;
            Ok(Done {
                stage: "m.login.password",
                token: None,
            })
        }
        Some("m.login.registration_token") => {
            let token = auth.token.as_deref();
            registration_token(
                app,
                token.ok_or_else(|| ApiError::missing_param("`token` is missing"))?,
            )
        }
        _ => Err(ApiError::unrecognized("this stage is not served here")),
    }
}

/// The stage `m.login.dummy`, which is done by asking for it.
pub fn dummy() -> Done {
    Done {
        stage: "m.login.dummy",
        token: None,
    }
}

/// The stage `m.login.registration_token`, if the token is valid.
///
/// # Errors
/// `M_FORBIDDEN` when it is not.
pub fn registration_token(app: &App, token: &str) -> ApiResult<Done> {
    crate::accounts::registration::check_token(app, token)?;
    Ok(Done {
        stage: "m.login.registration_token",
        token: Some(token.to_owned()),
    })
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
