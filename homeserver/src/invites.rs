//! Which invites a user takes, by their account data: all, none, or by who sends them.
//!
//! A blocked invite is refused; an ignored one is sent, and its target does not learn of it.
//! Spec: client-server API, "Invite permissions"; MSC4155 for the lists.

use ruma::UserId;
use serde::Deserialize;
use serde_json::Value;
use store::{Store, StoreError, keys::UserNum};

use crate::{
    account_data,
    error::{ApiError, ApiResult},
    server::App,
};

/// How many patterns of a list are looked at.
const PATTERNS_MAX: usize = 1_000;

/// How long a pattern is at most, in bytes; a longer one matches nothing. As long as a user ID may be.
const PATTERN_BYTES_MAX: usize = 255;

/// Where users say it; the first that says something of a sender counts.
const KINDS: [&str; 2] = [
    "org.matrix.msc4155.invite_permission_config",
    "m.invite_permission_config",
];

/// What becomes of an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It arrives.
    Allow,
    /// It is sent, and not shown to its target.
    Ignore,
    /// It cannot be sent.
    Block,
}

/// The content of the account data. Anything of another shape says nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    default_action: Value,
    allowed_users: Value,
    ignored_users: Value,
    blocked_users: Value,
    allowed_servers: Value,
    ignored_servers: Value,
    blocked_servers: Value,
}

impl Config {
    /// What the lists say of a sender: users before servers, allowing before ignoring before blocking.
    fn listed(&self, sender: &UserId) -> Option<Rule> {
        let (user, server) = (sender.as_str(), sender.server_name().as_str());
        let lists = [
            (&self.allowed_users, user, Rule::Allow),
            (&self.ignored_users, user, Rule::Ignore),
            (&self.blocked_users, user, Rule::Block),
            (&self.allowed_servers, server, Rule::Allow),
            (&self.ignored_servers, server, Rule::Ignore),
            (&self.blocked_servers, server, Rule::Block),
        ];
        let found = lists.into_iter().find(|(list, name, _)| {
            let patterns = list.as_array().into_iter().flatten().take(PATTERNS_MAX);
            patterns
                .filter_map(Value::as_str)
                .any(|pattern| matches(pattern, name))
        });
        found.map(|(_, _, rule)| rule)
    }
}

/// What becomes of invites of `user` by `sender`.
///
/// # Errors
/// When the store cannot be read.
pub fn rule(store: &Store, user: UserNum, sender: &UserId) -> Result<Rule, StoreError> {
    let mut default = Rule::Allow;
    for kind in KINDS {
        let config: Option<Config> = account_data::get_as(store, user, None, kind)?;
        let Some(config) = config else {
            continue;
        };
        if let Some(rule) = config.listed(sender) {
            return Ok(rule);
        }
        if config.default_action == "block" {
            default = Rule::Block;
        }
    }
    Ok(default)
}

/// Whether `user` is not shown invites by `sender`.
///
/// # Errors
/// When the store cannot be read.
pub fn is_ignored(store: &Store, user: UserNum, sender: &UserId) -> Result<bool, StoreError> {
    Ok(rule(store, user, sender)? == Rule::Ignore)
}

/// That `target`, if local, can be invited by `sender`.
///
/// # Errors
/// `M_INVITE_BLOCKED`; when the store cannot be read.
pub fn check_allowed(app: &App, sender: &UserId, target: &UserId) -> ApiResult<()> {
    let user = app.store.find_user(target)?;
    let Some(user) = user.filter(|_| app.is_local(target) && sender != target) else {
        return Ok(());
    };
    if rule(&app.store, user, sender)? == Rule::Block {
        return Err(ApiError::invite_blocked("the user does not take invites"));
    }
    Ok(())
}

/// Whether `pattern` matches all of `text`: `*` stands for anything, `?` for one character.
///
/// Spec: appendices, "Glob-style matching".
fn matches(pattern: &str, text: &str) -> bool {
    if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX {
        return false;
    }
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    // Where to go on when what follows the last star does not fit: one character later.
    let mut again = None;
    loop {
        let (rest, here) = (pattern.clone(), text.clone());
        let fits = match (pattern.next(), text.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                text = here;
                again = Some((pattern.clone(), text.clone()));
                continue;
            }
            (Some('?'), Some(_)) => true,
            (Some(one), Some(other)) => one.eq_ignore_ascii_case(&other),
            // The text ended: only stars may be left.
            (Some(_), None) => return rest.clone().all(|one| one == '*'),
            (None, Some(_)) => false,
        };
        if fits {
            continue;
        }
        let Some((after_star, mut from)) = again.take() else {
            return false;
        };
        from.next();
        again = Some((after_star.clone(), from.clone()));
        (pattern, text) = (after_star, from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Appendices, "Glob-style matching"
    fn a_pattern_matches_all_of_a_text_or_nothing() {
        for (pattern, text) in [
            ("hs1", "hs1"),
            ("HS1", "hs1"),
            ("hs?", "hs1"),
            ("*", "hs1"),
            ("**s*1*", "hs1"),
            ("*.example.org", "a.example.org.example.org"),
            ("@user-?*", "@user-12:hs1"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "hs1"),
            ("hs", "hs1"),
            ("s1", "hs1"),
            ("hs1?", "hs1"),
            ("*.example.org", "example.org"),
            ("@user-?*", "@user-"),
            ("a*b*c", "aXbX"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        assert!(matches(&"a".repeat(255), &"a".repeat(255)));
        assert!(!matches(&"a".repeat(256), &"a".repeat(256)));
        assert!(!matches(&"*a".repeat(127), &"a".repeat(126)));
    }
}
