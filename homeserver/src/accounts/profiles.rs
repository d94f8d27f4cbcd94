//! Profiles: display name, avatar, and any other field. Those of local users are kept; other servers are asked for
//! those of theirs.
//!
//! Spec: client-server API, "Profiles"; server-server API, `GET /query/profile`.

use std::{sync::Arc, time::Duration};

use ruma::{UserId, api::federation::query::get_profile_information};
use serde_json::{Map, Value};
use store::{
    Commit,
    keys::{Keyspace, Table, UserNum},
};

use super::Accounts;
use crate::{
    asked,
    error::{ApiError, ApiResult},
    server::App,
};

/// For how long the profile of another server's user is gone by, in milliseconds: five minutes.
const REMEMBERED_MS: u64 = 5 * 60 * 1_000;

/// How long another server may take to tell a profile.
const WAIT: Duration = Duration::from_secs(10);

const PROFILES: Table<Map<String, Value>> = Table::new(Keyspace::PROFILE);

impl Accounts {
    /// The fields of a user's profile; empty for a user without one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn profile(&self, user: UserNum) -> ApiResult<Map<String, Value>> {
        Ok(self
            .store
            .get(PROFILES, PROFILES.key().user(user))?
            .unwrap_or_default())
    }

    /// Writes a user's profile.
    pub fn put_profile(&self, commit: &mut Commit, user: UserNum, profile: &Map<String, Value>) {
        commit.put(PROFILES, PROFILES.key().user(user), profile);
    }
}

fn no_such_user() -> ApiError {
    ApiError::not_found("there is no such user")
}

/// The profile of a local user who exists.
///
/// # Errors
/// `M_NOT_FOUND`.
pub fn of_local(app: &App, user_id: &UserId) -> ApiResult<Map<String, Value>> {
    let user = app
        .store
        .find_user(user_id)?
        .filter(|_| app.is_local(user_id));
    let account = user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten();
    match user.zip(account) {
        Some((user, account)) if !account.deactivated => app.accounts.profile(user),
        _ => Err(no_such_user()),
    }
}

/// The profile of another server's user, as their server told it at most five minutes ago.
///
/// # Errors
/// `M_NOT_FOUND`, `M_FORBIDDEN` when their server will not tell, 502 when it does not answer.
pub async fn of_remote(app: &App, user_id: &UserId) -> ApiResult<Map<String, Value>> {
    let ask = async {
        let request = get_profile_information::v1::Request::new(user_id.to_owned());
        match asked::ask(app, user_id.server_name(), request, WAIT).await {
            Ok(answer) => Ok(Some(Arc::new(answer.into_iter().collect()))),
            Err(error) if asked::is_not_found(&error) => Ok(None),
            Err(error) => Err(asked::relayed(&error)),
        }
    };
    let now_ms = app.clock.now_ms();
    let profiles = &app.asked.profiles;
    let profile = profiles.get(now_ms, user_id.as_str(), REMEMBERED_MS, ask);
    let profile = profile.await?.ok_or_else(no_such_user)?;
    Ok(Map::clone(&profile))
}
