//! The account of a user.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use store::{
    Commit,
    keys::{Packed, UserNum},
};

use super::{Accounts, USERS, user_key};
use crate::error::ApiResult;

/// A local account.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, each with a row of its own to set"
)]
pub struct UserRow {
    /// The password's hash in PHC form; without one nobody can log in with a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// When it was made, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Whether it may administer this server.
    #[serde(default)]
    pub admin: bool,
    /// Whether it is a guest account.
    #[serde(default)]
    pub guest: bool,
    /// Whether it is gone for good.
    #[serde(default)]
    pub deactivated: bool,
    /// Whether it may do nothing but log out. Spec: client-server API, "Account locking".
    #[serde(default)]
    pub locked: bool,
    /// Whether it may only read. Spec: client-server API, "Account suspension".
    #[serde(default)]
    pub suspended: bool,
    /// Whether its user asked, when it was deactivated, that their messages be forgotten.
    #[serde(default)]
    pub erased: bool,
    /// The application service that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

impl Accounts {
    /// Writes an account.
    pub fn put_user(&self, commit: &mut Commit, user: UserNum, row: &UserRow) {
        commit.put(USERS, user_key(user), row);
    }

    /// Changes an account and waits until the change is durable.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn change_user(
        &self,
        user: UserNum,
        change: impl FnOnce(&mut UserRow),
    ) -> ApiResult<()> {
        self.change_user_and(user, Commit::new(), change).await
    }

    /// Changes an account in one commit with something else.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn change_user_and(
        &self,
        user: UserNum,
        mut commit: Commit,
        change: impl FnOnce(&mut UserRow),
    ) -> ApiResult<()> {
        let mut row = self
            .user(user)?
            .map(|row| UserRow::clone(&row))
            .unwrap_or_default();
        change(&mut row);
        self.put_user(&mut commit, user, &row);
        self.store.commit(commit).await?;
        let mut changed = self.users_changed();
        *changed += 1;
        self.users.insert(user, Arc::new(row));
        Ok(())
    }

    /// Every local account, by number, from the one after `after`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn users_after(
        &self,
        after: Option<UserNum>,
        limit: usize,
    ) -> ApiResult<Vec<(UserNum, UserRow)>> {
        let first = after.map_or(0, |user| user.0 + 1);
        let mut users = Vec::new();
        let (from, to) = (
            USERS.key().u64(first).into_bytes(),
            USERS.key().end_of_prefix(),
        );
        self.store
            .visit_range(&from, &to, store::kv::Direction::Ascending, |key, value| {
                if users.len() == limit {
                    return Ok(false);
                }
                let user = store::keys::Unpack::key(key).user();
                users.extend(user.zip(serde_json::from_slice(value).ok()));
                Ok(true)
            })?;
        Ok(users)
    }

    /// Whether there is any local account yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_empty(&self) -> ApiResult<bool> {
        let mut empty = true;
        let prefix: Packed = USERS.key();
        self.store
            .visit(&prefix, store::kv::Direction::Ascending, |_, _| {
                empty = false;
                Ok(false)
            })?;
        Ok(empty)
    }
}
