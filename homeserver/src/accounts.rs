//! Local accounts: users, passwords, devices, access tokens.
//!
//! Accounts know nothing of rooms. What must happen in both (deactivating an account leaves its
//! rooms) is written in the API, one level up.

pub mod devices;
pub mod passwords;
pub mod profiles;
pub mod registration;
pub mod sessions;
pub mod users;

use std::sync::Arc;

use quick_cache::sync::Cache;
use store::{
    Store,
    keys::{Keyspace, Packed, Table, UserNum},
};

pub use self::{
    devices::DeviceRow,
    sessions::{NewSession, Session, TokenHash},
    users::UserRow,
};
use crate::error::ApiResult;

/// Accounts in memory at a time.
const USERS_CACHED_MAX: usize = 4_096;

/// Sessions in memory at a time.
const SESSIONS_CACHED_MAX: usize = 8_192;

/// Local accounts.
#[derive(Debug)]
pub struct Accounts {
    store: Store,
    users: Cache<UserNum, Arc<UserRow>>,
    sessions: Cache<TokenHash, Arc<Session>>,
    seen: devices::LastSeen,
    /// Held while an account is made: names and tokens are given once.
    pub(crate) registering: tokio::sync::Mutex<()>,
}

const USERS: Table<UserRow> = Table::new(Keyspace::USER);

impl Accounts {
    /// The accounts in `store`.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            users: Cache::new(USERS_CACHED_MAX),
            sessions: Cache::new(SESSIONS_CACHED_MAX),
            seen: devices::LastSeen::default(),
            registering: tokio::sync::Mutex::default(),
        }
    }

    /// The account of a user; `None` when there is no such local account.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn user(&self, user: UserNum) -> ApiResult<Option<Arc<UserRow>>> {
        if let Some(row) = self.users.get(&user) {
            return Ok(Some(row));
        }
        let Some(row) = self.store.get(USERS, user_key(user))? else {
            return Ok(None);
        };
        let row = Arc::new(row);
        self.users.insert(user, row.clone());
        Ok(Some(row))
    }
}

fn user_key(user: UserNum) -> Packed {
    USERS.key().user(user)
}
