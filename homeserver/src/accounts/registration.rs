//! Registration: making accounts, and the tokens that allow it.
//!
//! Spec: client-server API, "Account registration", "Token-authenticated registration".

use ruma::UserId;
use serde::{Deserialize, Serialize};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Table},
};

use super::{UserRow, passwords};
use crate::{
    error::{ApiError, ApiResult},
    seams::{Seams, heavy},
    server::App,
};

const TOKENS: Table<RegistrationToken> = Table::new(Keyspace::REGISTRATION_TOKEN);

/// How long a user ID may be, in bytes.
const USER_ID_BYTES_MAX: usize = 255;

/// The longest password, in bytes: a longer one only costs time.
pub const PASSWORD_BYTES_MAX: usize = 512;

/// A token that lets people register.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegistrationToken {
    /// How often it may be used; without, always.
    pub uses_max: Option<u64>,
    /// How often it was used.
    pub used: u64,
    /// When it ends, in milliseconds since the epoch; without, never.
    pub expires_ms: Option<u64>,
    /// Whether the account becomes an admin's: the token of the first start.
    #[serde(default)]
    pub makes_admin: bool,
}

/// A registration token; `None` when it is not known.
///
/// # Errors
/// When the store cannot be read.
pub fn token(store: &Store, token: &str) -> Result<Option<RegistrationToken>, StoreError> {
    store.get(TOKENS, TOKENS.key().text(token))
}

/// Writes a registration token.
pub fn put_token(commit: &mut Commit, token: &str, row: &RegistrationToken) {
    commit.put(TOKENS, TOKENS.key().text(token), row);
}

fn first_admin_key() -> Packed {
    Packed::key(Keyspace::META).text("first admin token")
}

/// At the first start of a server, makes a token that lets one person register as its admin.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn offer_first_admin(store: &Store, seams: &Seams) -> Result<(), StoreError> {
    if store.get_raw(first_admin_key())?.is_some() {
        return Ok(());
    }
    let name = seams.entropy.text(24);
    let row = RegistrationToken {
        uses_max: Some(1),
        used: 0,
        expires_ms: None,
        makes_admin: true,
    };
    let mut commit = Commit::new();
    put_token(&mut commit, &name, &row);
    commit.put_raw(first_admin_key(), Packed::new().raw(name.as_bytes()));
    store.commit(commit).await?;
    Ok(())
}

/// The token of [`offer_first_admin`], until it is used.
///
/// # Errors
/// When the store cannot be read.
pub fn first_admin_token(store: &Store) -> Result<Option<String>, StoreError> {
    let Some(name) = store
        .get_raw(first_admin_key())?
        .and_then(|name| String::from_utf8(name).ok())
    else {
        return Ok(None);
    };
    let unused = token(store, &name)?.is_some_and(|row| row.used == 0);
    Ok(unused.then_some(name))
}

/// Whether a token would let somebody register now.
///
/// # Errors
/// When the store cannot be read.
pub fn is_valid(app: &App, name: &str) -> ApiResult<bool> {
    let Some(row) = token(&app.store, name)? else {
        return Ok(false);
    };
    let now_ms = app.clock.now_ms();
    Ok(row.uses_max.is_none_or(|most| row.used < most)
        && row.expires_ms.is_none_or(|end| end > now_ms))
}

/// That a token lets somebody register now.
///
/// # Errors
/// `M_FORBIDDEN`.
pub fn check_token(app: &App, name: &str) -> ApiResult<()> {
    if is_valid(app, name)? {
        return Ok(());
    }
    Err(ApiError::forbidden("the registration token is not valid"))
}

/// That a new local user may have this name.
///
/// # Errors
/// `M_INVALID_USERNAME`, `M_USER_IN_USE`, or `M_EXCLUSIVE` when it belongs to an application service
/// other than `service`.
pub fn check_name(app: &App, user_id: &UserId, service: Option<&str>) -> ApiResult<()> {
    let grammatical = user_id.localpart().bytes().all(
        |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'=' | b'-' | b'/' | b'+'),
    );
    if !grammatical || user_id.localpart().is_empty() || user_id.as_str().len() > USER_ID_BYTES_MAX
    {
        return Err(ApiError::invalid_username(
            "a user name is made of a-z, 0-9, and . _ = - / +, and is not too long",
        ));
    }
    if app.appservices.claims_user(user_id, service) {
        return Err(ApiError::exclusive(
            "the user name belongs to an application service",
        ));
    }
    if let Some(user) = app.store.find_user(user_id)?
        && app.accounts.user(user)?.is_some()
    {
        return Err(ApiError::user_in_use("the user name is taken"));
    }
    Ok(())
}

/// That a password is long enough and not too long.
///
/// # Errors
/// `M_WEAK_PASSWORD`, `M_INVALID_PARAM`.
pub fn check_password(app: &App, password: &str) -> ApiResult<()> {
    let least = app.config.passwords.length_min;
    if password.chars().count() < least {
        return Err(ApiError::weak_password(format!(
            "a password has at least {least} characters"
        )));
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(ApiError::invalid_param(format!(
            "a password has at most {PASSWORD_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

/// The hash of a new password.
pub async fn hash_password(app: &App, password: String) -> String {
    let (salt, cost) = (app.entropy.bytes(), app.config.password_hash_cost());
    heavy(app.seams.inline, move || {
        passwords::hash(&password, salt, cost)
    })
    .await
}

/// What a new account is like.
#[derive(Debug, Default)]
pub struct NewAccount {
    /// Its password; without one it cannot log in with a password.
    pub password: Option<String>,
    /// Whether it is a guest's.
    pub guest: bool,
    /// Whether it administers the server.
    pub admin: bool,
    /// The application service that it belongs to.
    pub service: Option<String>,
    /// The registration token that it was made with.
    pub token: Option<String>,
}

/// Makes an account whose name was checked, and waits until it is durable.
///
/// # Errors
/// `M_USER_IN_USE` when somebody was faster.
pub async fn register(
    app: &App,
    user_id: &UserId,
    new: NewAccount,
) -> ApiResult<store::keys::UserNum> {
    let password_hash = match new.password {
        Some(password) => Some(hash_password(app, password).await),
        None => None,
    };
    let _registering = app.accounts.registering.lock().await;
    let user = app.store.user_num(user_id)?;
    if app.accounts.user(user)?.is_some() {
        return Err(ApiError::user_in_use("the user name is taken"));
    }
    let mut commit = Commit::new();
    let mut admin = new.admin;
    if let Some(name) = &new.token {
        check_token(app, name)?;
        if let Some(mut row) = token(&app.store, name)? {
            row.used += 1;
            admin |= row.makes_admin;
            put_token(&mut commit, name, &row);
        }
    }
    let row = UserRow {
        password_hash,
        created_ms: app.clock.now_ms(),
        admin,
        guest: new.guest,
        service: new.service,
        ..UserRow::default()
    };
    app.accounts.put_user(&mut commit, user, &row);
    if !new.guest {
        let mut profile = serde_json::Map::new();
        profile.insert("displayname".to_owned(), user_id.localpart().into());
        app.accounts.put_profile(&mut commit, user, &profile);
    }
    app.store.commit(commit).await?;
    Ok(user)
}
