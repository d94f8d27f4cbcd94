//! Local accounts: users, passwords, devices, access tokens.
//!
//! Accounts know nothing of rooms. What must happen in both (deactivating an account leaves its
//! rooms) is written in the API, one level up.

pub mod devices;
pub mod login_tokens;
pub mod openid;
pub mod passwords;
pub mod profiles;
pub mod registration;
pub mod sessions;
pub mod users;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Counts changes of accounts, so that a row read before one is not kept after it.
    users_changed: Mutex<u64>,
    sessions: Cache<TokenHash, Arc<Session>>,
    ending: sessions::Ending,
    seen: devices::LastSeen,
    /// Held while tokens are exchanged or end because newer ones are used.
    refreshing: tokio::sync::Mutex<()>,
    /// Held while an account is made: names and tokens are given once.
    pub(crate) registering: tokio::sync::Mutex<()>,
    /// Held while a profile is changed: fields are changed one at a time.
    pub(crate) profiles_changing: tokio::sync::Mutex<()>,
}

const USERS: Table<UserRow> = Table::new(Keyspace::USER);

impl Accounts {
    /// The accounts in `store`.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            users: Cache::new(USERS_CACHED_MAX),
            users_changed: Mutex::default(),
            ending: sessions::Ending::default(),
            sessions: Cache::new(SESSIONS_CACHED_MAX),
            seen: devices::LastSeen::default(),
            refreshing: tokio::sync::Mutex::default(),
            registering: tokio::sync::Mutex::default(),
            profiles_changing: tokio::sync::Mutex::default(),
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
        let before = *self.users_changed();
        let Some(row) = self.store.get(USERS, user_key(user))? else {
            return Ok(None);
        };
        let row = Arc::new(row);
        let changed = self.users_changed();
        if *changed == before {
            self.users.insert(user, row.clone());
        }
        Ok(Some(row))
    }

    /// How many accounts, and how many sessions, are in memory.
    pub fn loaded(&self) -> (usize, usize) {
        (self.users.len(), self.sessions.len())
    }

    fn users_changed(&self) -> MutexGuard<'_, u64> {
        self.users_changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn user_key(user: UserNum) -> Packed {
    USERS.key().user(user)
}

/// How often it is written down when devices were seen, and expired tokens are removed.
const HOUSEKEEPING_EVERY: std::time::Duration = std::time::Duration::from_mins(1);

/// What is done about accounts once a minute, for ever.
pub async fn keep_house(app: crate::server::App) {
    loop {
        tokio::time::sleep(HOUSEKEEPING_EVERY).await;
        let now_ms = app.clock.now_ms();
        for done in [
            app.accounts.write_seen().await,
            app.accounts.clean_tokens(now_ms).await,
        ] {
            if let Err(error) = done {
                tracing::warn!(error = %error.message, "accounts were not tidied up; trying again in a minute");
            }
        }
    }
}
