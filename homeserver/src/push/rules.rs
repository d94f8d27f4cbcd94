//! Push rules as they are kept: the user's own over the server's defaults.
//!
//! They are the account data `m.push_rules`, so a change wakes `/sync` like any other; a user who
//! never changed any has none stored. Spec: client-server API, "Push Rules".

use ruma::{UserId, push::Ruleset};
use serde::{Deserialize, Serialize};
use store::{Commit, Store, StoreError, keys::UserNum};

use crate::account_data;

const PUSH_RULES: &str = "m.push_rules";

/// The content of `m.push_rules`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushRules {
    /// The only scope there is.
    pub global: Ruleset,
}

/// The rules of a user: what is stored, with the defaults of this version of the server.
///
/// # Errors
/// When the store cannot be read.
pub fn of_user(store: &Store, user: UserNum, user_id: &UserId) -> Result<PushRules, StoreError> {
    let defaults = Ruleset::server_default(user_id);
    let stored: Option<PushRules> = account_data::get_as(store, user, None, PUSH_RULES)?;
    let global = match stored {
        Some(PushRules { mut global }) => {
            global.update_with_server_default(defaults);
            global
        }
        None => defaults,
    };
    Ok(PushRules { global })
}

/// Stores the rules of a user.
///
/// # Errors
/// When the store cannot be read.
pub fn put(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    rules: &PushRules,
) -> Result<(), StoreError> {
    let content = serde_json::value::to_raw_value(rules).expect("rules have string keys");
    account_data::put(store, commit, user, None, PUSH_RULES, &content)
}
