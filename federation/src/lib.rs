//! What Matrix servers must agree on: events, who may send them, and the state they add up to.
//!
//! No I/O, no clock, no randomness: a caller hands in every event, key and time. `homeserver` is
//! the process around it.
//!
//! Reading order: [`event::Pdu`] (an event, parsed once) → [`event::Draft`] (how one of ours is
//! made) → [`room::StateMap`] → [`room::auth`] (the authorisation rules) → [`room::visibility`]; beside them
//! [`wire`]: how two servers talk.
//!
//! # Checks on receipt of a PDU
//!
//! Server-server API, "Checks performed on receipt of a PDU", and which function answers each:
//!
//! | Check | Function | A failure means |
//! |---|---|---|
//! | 1: is an event | [`event::verify`], [`event::Pdu`] | dropped |
//! | 2: is signed by all who must | [`event::verify`] | dropped |
//! | 3: has the content hash it names | [`event::verify`] | redacted |
//! | 4: passes by its auth events | [`room::auth::allowed_by_auth_events`] | rejected |
//! | 5: passes by the state before it | [`room::auth::allowed_by_state`] | rejected |
//! | 6: passes by the current state | [`room::auth::allowed_by_state`] | soft-failed |

pub mod event;
pub mod room;
pub mod wire;
