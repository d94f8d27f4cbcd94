//! Login tokens: with one, a device that is logged in lets another one log in, once.
//!
//! Spec: client-server API, `POST /login/get_token`, "Token-based login".

use serde::{Deserialize, Serialize};
use store::{
    Commit,
    keys::{Keyspace, Table, UserNum},
};

use super::{Accounts, sessions::hash};
use crate::{
    error::{ApiError, ApiResult},
    seams::Entropy,
};

const TOKENS: Table<LoginTokenRow> = Table::new(Keyspace::LOGIN_TOKEN);

/// How many expired tokens one cleaning removes.
const CLEANED_MAX: usize = 10_000;

#[derive(Debug, Serialize, Deserialize)]
struct LoginTokenRow {
    user: UserNum,
    expires_ms: u64,
}

impl Accounts {
    /// A new login token of a user.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn new_login_token(
        &self,
        user: UserNum,
        entropy: &Entropy,
        expires_ms: u64,
    ) -> ApiResult<String> {
        let token = format!("ghl_{}", entropy.text(40));
        let mut commit = Commit::new();
        let row = LoginTokenRow { user, expires_ms };
        commit.put(TOKENS, TOKENS.key().raw(&hash(&token)), &row);
        self.store.commit(commit).await?;
        Ok(token)
    }

    /// Uses up a login token.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when it is not known, used, or expired.
    pub async fn take_login_token(&self, token: &str, now_ms: u64) -> ApiResult<UserNum> {
        let wrong = || ApiError::forbidden("the login token is not valid");
        let _taking = self.registering.lock().await;
        let key = || TOKENS.key().raw(&hash(token));
        let row = self.store.get(TOKENS, key())?.ok_or_else(wrong)?;
        let mut commit = Commit::new();
        commit.delete(key());
        self.store.commit(commit).await?;
        if row.expires_ms <= now_ms {
            return Err(wrong());
        }
        Ok(row.user)
    }

    /// Removes login and `OpenID` tokens that have expired.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn clean_tokens(&self, now_ms: u64) -> ApiResult<()> {
        let mut commit = Commit::new();
        for (key, row) in self.store.rows(TOKENS, &TOKENS.key(), CLEANED_MAX)? {
            if row.expires_ms <= now_ms {
                commit.delete(TOKENS.key().raw(&key));
            }
        }
        self.clean_openid_tokens(&mut commit, now_ms, CLEANED_MAX)?;
        if !commit.is_empty() {
            self.store.commit(commit).await?;
        }
        Ok(())
    }
}
