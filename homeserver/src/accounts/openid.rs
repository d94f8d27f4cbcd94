//! `OpenID` tokens: with one, a third party asks this server who its bearer is.
//!
//! Spec: client-server API, `OpenID`; server-server API, `OpenID`.

use ruma::OwnedUserId;
use serde::{Deserialize, Serialize};
use store::{
    Commit,
    keys::{Keyspace, Table, UserNum},
};

use super::{Accounts, sessions::hash};
use crate::{error::ApiResult, seams::Entropy};

const TOKENS: Table<OpenIdRow> = Table::new(Keyspace::OPENID_TOKEN);

#[derive(Debug, Serialize, Deserialize)]
struct OpenIdRow {
    user: UserNum,
    expires_ms: u64,
}

impl Accounts {
    /// A new `OpenID` token of a user.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn new_openid_token(
        &self,
        user: UserNum,
        entropy: &Entropy,
        expires_ms: u64,
    ) -> ApiResult<String> {
        let token = format!("gho_{}", entropy.text(40));
        let mut commit = Commit::new();
        let row = OpenIdRow { user, expires_ms };
        commit.put(TOKENS, TOKENS.key().raw(&hash(&token)), &row);
        self.store.commit(commit).await?;
        Ok(token)
    }

    /// Whose an `OpenID` token is, if it is valid and its user still has an account.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn openid_user(&self, token: &str, now_ms: u64) -> ApiResult<Option<OwnedUserId>> {
        let row = self.store.get(TOKENS, TOKENS.key().raw(&hash(token)))?;
        let Some(row) = row.filter(|row| row.expires_ms > now_ms) else {
            return Ok(None);
        };
        if self
            .user(row.user)?
            .is_none_or(|account| account.deactivated)
        {
            return Ok(None);
        }
        Ok(Some(self.store.user_id(row.user)?))
    }

    /// Adds to `commit` the removal of `OpenID` tokens that have expired, at most `most`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn clean_openid_tokens(
        &self,
        commit: &mut Commit,
        now_ms: u64,
        most: usize,
    ) -> ApiResult<()> {
        for (key, row) in self.store.rows(TOKENS, &TOKENS.key(), most)? {
            if row.expires_ms <= now_ms {
                commit.delete(TOKENS.key().raw(&key));
            }
        }
        Ok(())
    }
}
