//! Application services: who they are and what they are interested in.
//!
//! Spec: application service API, "Registration".

use std::sync::Arc;

use regex::Regex;
use ruma::UserId;
use serde::Deserialize;

/// A registration file, as an admin got it from a bridge.
#[derive(Debug, Deserialize)]
pub struct Registration {
    /// Unique name of the application service.
    pub id: String,
    /// Where it listens; without, it only makes requests and is told nothing.
    pub url: Option<String>,
    /// What it authenticates with here.
    pub as_token: String,
    /// What this server authenticates with there.
    pub hs_token: String,
    /// The localpart of its own user.
    pub sender_localpart: String,
    /// What it is interested in.
    pub namespaces: Namespaces,
    /// Whether its users are subject to rate limits; `None` counts as yes.
    pub rate_limited: Option<bool>,
    /// Third-party networks it speaks for.
    #[serde(default)]
    pub protocols: Vec<String>,
    /// Whether it wants typing, receipts and presence.
    #[serde(default, alias = "de.sorunome.msc2409.push_ephemeral")]
    pub receive_ephemeral: bool,
    /// Whether it wants device list changes and key counts (MSC3202).
    #[serde(default, rename = "org.matrix.msc3202", alias = "msc3202")]
    pub encryption: bool,
}

/// What an application service is interested in.
#[derive(Debug, Default, Deserialize)]
pub struct Namespaces {
    /// Users.
    #[serde(default)]
    pub users: Vec<Namespace>,
    /// Room aliases.
    #[serde(default)]
    pub aliases: Vec<Namespace>,
    /// Room IDs.
    #[serde(default)]
    pub rooms: Vec<Namespace>,
}

/// Names that match a pattern.
#[derive(Debug, Deserialize)]
pub struct Namespace {
    /// Whether nobody else may take such a name.
    #[serde(default)]
    pub exclusive: bool,
    /// What matches: anchored at the start.
    #[serde(deserialize_with = "pattern")]
    pub regex: Regex,
}

/// The largest compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

fn pattern<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Regex, D::Error> {
    let text = String::deserialize(from)?;
    regex::RegexBuilder::new(&format!("^(?:{text})"))
        .size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(serde::de::Error::custom)
}

impl Registration {
    /// Whether a user is in its namespaces.
    pub fn is_interested_in_user(&self, user_id: &UserId) -> bool {
        matches(&self.namespaces.users, user_id.as_str())
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

/// Every registered application service.
#[derive(Debug, Default)]
pub struct Appservices {
    list: Vec<Arc<Registration>>,
}

impl Appservices {
    /// These and no others.
    pub fn new(list: Vec<Registration>) -> Self {
        Self {
            list: list.into_iter().map(Arc::new).collect(),
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
            .find(|service| service.as_token == token)
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

    /// Whether an alias belongs to a service other than `except`.
    pub fn claims_alias(&self, alias: &str, except: Option<&str>) -> bool {
        self.list.iter().any(|service| {
            except != Some(&*service.id) && claims(&service.namespaces.aliases, alias)
        })
    }
}
