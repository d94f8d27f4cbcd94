//! Notifications: which events a user wants to hear of, how many they have not read, and telling
//! push gateways.
//!
//! Reading order: [`rules`] (what a user wants) → [`evaluate`] (one event, one user) → [`unread`] (how
//! many) → [`badge`] (over all rooms) → [`pushers`] (whom to tell) → [`outbox`] (what is to be sent, and
//! when) → [`notice`] (what is said) → [`deliver`] (the reader of the log that sends it) → [`history`]
//! (what was said before).
//!
//! Nothing of this happens when an event is sent. A count is made when its user asks for it, and
//! gateways are told by a reader of the log.
//! Spec: client-server API, "Push Notifications"; push gateway API.

pub mod badge;
pub mod deliver;
pub mod evaluate;
pub mod history;
pub mod loud;
pub mod notice;
pub mod outbox;
pub mod pushers;
pub mod rules;
pub mod unread;

/// What of all this is in memory.
#[derive(Debug, Default)]
pub struct Push {
    /// Rules, events and power levels as they are compared.
    pub evaluating: evaluate::Evaluating,
    /// Counts.
    pub unread: unread::Counting,
    /// Which events they need not look at.
    pub loud: loud::Loud,
    /// Counts over all rooms of users with pushers.
    pub badges: badge::Badges,
    /// Who has pushers.
    pub pushers: pushers::Pushers,
}
