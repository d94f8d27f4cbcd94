//! Profiles of local users: display name, avatar, and any other field.
//!
//! Spec: client-server API, "Profiles".

use serde_json::{Map, Value};
use store::{
    Commit,
    keys::{Keyspace, Table, UserNum},
};

use super::Accounts;
use crate::error::ApiResult;

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
