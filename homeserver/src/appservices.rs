//! Application services: bridges and bots that run beside the server, who they are and what is theirs.
//!
//! An admin names their registration files in the configuration ([`load`]). What happens in their rooms is
//! sent to them by a reader of the log each ([`transactions`]), which decides by [`interest`]; what a client
//! wants to know of them is asked while it waits ([`ask`]).
//! Spec: application service API, "Registration".

pub mod ask;
pub mod interest;
pub mod load;
mod transaction;
pub mod transactions;

use std::{collections::BTreeMap, sync::Arc};

use regex::Regex;
use ruma::UserId;
use serde::{Deserialize, Deserializer};
use tokio::sync::{Notify, Semaphore};

use crate::{
    accounts::registration::{self, NewAccount},
    error::{ApiError, ApiResult},
    media::outward::Outward,
    server::App,
};

/// A registration file, as an admin got it from a bridge.
#[derive(Debug, Deserialize)]
pub struct Registration {
    /// Unique name of the application service.
    pub id: String,
    /// Where it listens, without a slash at the end; without, it only makes requests and is told nothing.
    #[serde(default)]
    pub url: Option<String>,
    /// What it authenticates with here.
    pub as_token: String,
    /// What this server authenticates with there.
    pub hs_token: String,
    /// The localpart of its own user.
    pub sender_localpart: String,
    /// What it is interested in.
    pub namespaces: Namespaces,
    /// Whether its users are subject to rate limits; `None` counts as yes. Its own user never is.
    #[serde(default)]
    pub rate_limited: Option<bool>,
    /// Third-party networks it speaks for.
    #[serde(default, deserialize_with = "or_empty")]
    pub protocols: Vec<String>,
    /// Whether it wants typing, receipts, presence, and messages to the devices of its users.
    #[serde(default)]
    pub receive_ephemeral: bool,
    /// The same, by the name it had before (MSC2409): what is sent has the old name then, too.
    #[serde(default, rename = "de.sorunome.msc2409.push_ephemeral")]
    pub push_ephemeral: bool,
    /// Whether it wants device list changes and key counts (MSC3202).
    #[serde(default, rename = "org.matrix.msc3202", alias = "msc3202")]
    pub encryption: bool,
}

/// What an application service is interested in.
#[derive(Debug, Default, Deserialize)]
pub struct Namespaces {
    /// Users.
    #[serde(default, deserialize_with = "or_empty")]
    pub users: Vec<Namespace>,
    /// Room aliases.
    #[serde(default, deserialize_with = "or_empty")]
    pub aliases: Vec<Namespace>,
    /// Room IDs.
    #[serde(default, deserialize_with = "or_empty")]
    pub rooms: Vec<Namespace>,
}

/// Names that match a pattern.
#[derive(Debug, Deserialize)]
pub struct Namespace {
    /// Whether nobody else may take such a name.
    #[serde(default)]
    pub exclusive: bool,
    /// What matches: anchored at the start, as bridges expect it.
    #[serde(deserialize_with = "pattern")]
    pub regex: Regex,
}

/// The largest compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// How many clients may wait for one service's answers at a time; others wait for their turn, within the
/// same time.
const QUESTIONS_MAX: usize = 32;

fn pattern<'de, D: Deserializer<'de>>(from: D) -> Result<Regex, D::Error> {
    let text = String::deserialize(from)?;
    regex::RegexBuilder::new(&format!("^(?:{text})"))
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|error| {
            // The parser draws its message over several lines; the last one says what is wrong.
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default();
            let reason = reason.trim_start_matches("error: ");
            serde::de::Error::custom(format!("the pattern `{text}` cannot be used: {reason}"))
        })
}

/// Generators of registration files write `null` for an empty list.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Registration {
    /// Whether a local user is in its namespaces.
    pub fn is_interested_in_user(&self, user_id: &UserId) -> bool {
        matches(&self.namespaces.users, user_id.as_str())
    }

    /// Whether it may act as a local user: its own, or one in its namespaces.
    pub fn acts_as(&self, user_id: &UserId) -> bool {
        user_id.localpart() == self.sender_localpart || self.is_interested_in_user(user_id)
    }

    /// Whether a room alias is in its namespaces.
    pub fn is_interested_in_alias(&self, alias: &str) -> bool {
        matches(&self.namespaces.aliases, alias)
    }

    /// Whether a room ID is in its namespaces.
    pub fn is_interested_in_room(&self, room_id: &str) -> bool {
        matches(&self.namespaces.rooms, room_id)
    }

    /// Whether it is told what is true only for a moment, and messages to devices.
    pub fn wants_ephemeral(&self) -> bool {
        self.receive_ephemeral || self.push_ephemeral
    }
}

fn matches(namespaces: &[Namespace], name: &str) -> bool {
    namespaces
        .iter()
        .any(|namespace| namespace.regex.is_match(name))
}

fn claims(namespaces: &[Namespace], name: &str) -> bool {
    namespaces
        .iter()
        .any(|namespace| namespace.exclusive && namespace.regex.is_match(name))
}

/// What is shared between the parts that deal with one service.
#[derive(Debug)]
struct Contact {
    /// It is there again: no need to wait any longer.
    back: Notify,
    /// Bounds the clients that wait for it at [`QUESTIONS_MAX`].
    questions: Semaphore,
}

/// Every registered application service.
#[derive(Debug)]
pub struct Appservices {
    list: Vec<Arc<Registration>>,
    contacts: BTreeMap<String, Contact>,
    outward: Outward,
}

impl Appservices {
    /// These and no others; `outward` leads to them. Admins name their addresses, so it may lead anywhere.
    pub fn new(list: Vec<Registration>, outward: Outward) -> Self {
        let list: Vec<_> = list.into_iter().map(Arc::new).collect();
        let contact = |service: &Arc<Registration>| {
            let contact = Contact {
                back: Notify::new(),
                questions: Semaphore::new(QUESTIONS_MAX),
            };
            (service.id.clone(), contact)
        };
        Self {
            contacts: list.iter().map(contact).collect(),
            list,
            outward,
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Registration>> {
        self.list.iter()
    }

    /// The one that authenticates with `token`.
    pub fn by_token(&self, token: &str) -> Option<Arc<Registration>> {
        self.list
            .iter()
            .find(|service| same_secret(&service.as_token, token))
            .cloned()
    }

    /// Whether a user name belongs to a service other than `except`.
    pub fn claims_user(&self, user_id: &UserId, except: Option<&str>) -> bool {
        self.list.iter().any(|service| {
            except != Some(&*service.id)
                && (claims(&service.namespaces.users, user_id.as_str())
                    || service.sender_localpart == user_id.localpart())
        })
    }

    /// That somebody, who may be the service `maker`, may make or remove a room alias.
    ///
    /// # Errors
    /// `M_EXCLUSIVE` when it belongs to another service, or `maker` is a service and it is not in its
    /// namespaces.
    pub fn check_alias(&self, alias: &str, maker: Option<&Registration>) -> ApiResult<()> {
        let claimed = self.list.iter().any(|service| {
            maker.is_none_or(|maker| maker.id != service.id)
                && claims(&service.namespaces.aliases, alias)
        });
        if claimed {
            return Err(ApiError::exclusive(
                "the alias belongs to an application service",
            ));
        }
        if maker.is_some_and(|maker| !maker.is_interested_in_alias(alias)) {
            return Err(ApiError::exclusive(
                "the alias is not in the application service's namespaces",
            ));
        }
        Ok(())
    }
}

/// Whether two secrets are the same, without telling by the time it takes where they differ.
fn same_secret(one: &str, other: &str) -> bool {
    let differ = one
        .bytes()
        .zip(other.bytes())
        .fold(0, |differ, (one, other)| differ | (one ^ other));
    one.len() == other.len() && differ == 0
}

/// Makes the user of each service, if there is none yet.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn register_senders(app: &App) -> ApiResult<()> {
    for service in app.appservices.iter() {
        let user_id = app.local_user_id(&service.sender_localpart)?;
        let user = app.store.find_user(&user_id)?;
        let account = user
            .map(|user| app.accounts.user(user))
            .transpose()?
            .flatten();
        match account {
            None => {
                let new = NewAccount {
                    service: Some(service.id.clone()),
                    ..NewAccount::default()
                };
                registration::register(app, &user_id, new).await?;
            }
            Some(account) if account.service.as_deref() != Some(&*service.id) => {
                tracing::warn!(
                    service = service.id, %user_id,
                    "the application service acts as a user who had an account before"
                );
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same_secret("secret", "secret"));
        assert!(!same_secret("secret", "secreT"));
        assert!(!same_secret("secret", "secret2"));
        assert!(!same_secret("secret", ""));
    }
}
