//! The authorisation rules: may this event be in this room?
//!
//! The rules themselves are ruma's; this module selects what they read and names the outcome.
//! Spec: room versions, "Authorization rules"; server-server API, "Auth events selection".

use std::sync::Arc;

use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::{AuthorizationRules, RoomVersionRules},
    state_res::{
        auth_types_for_event, check_state_dependent_auth_rules, check_state_independent_auth_rules,
    },
};

use super::{StateMap, join_rules::Read};
use crate::event::{Draft, Pdu};

/// Why the authorisation rules do not allow an event.
#[derive(Debug, thiserror::Error)]
#[error("{rule}")]
pub struct AuthRejection {
    /// The rule that failed, in words that may be shown to the sender.
    pub rule: String,
}

impl From<String> for AuthRejection {
    fn from(rule: String) -> Self {
        Self { rule }
    }
}

/// What the checks on receipt say of an event.
///
/// Spec: server-server API, "Checks performed on receipt of a PDU", "Rejection", "Soft failure".
#[derive(Debug)]
pub enum Verdict {
    /// It is part of the room.
    Accepted,
    /// It is not shown and nothing is built upon it, but it takes part in state resolution.
    SoftFailed(AuthRejection),
    /// It is never shown and does not change the state.
    Rejected(AuthRejection),
}

/// Checks 4 to 6: by its auth events, by the state before it, by the current state.
///
/// `fetch_event` gives any known event of the room.
pub fn judge(
    pdu: &Pdu,
    rules: &AuthorizationRules,
    before: &StateMap,
    current: &StateMap,
    fetch_event: impl Fn(&EventId) -> Option<Arc<Pdu>>,
) -> Verdict {
    if let Err(rejection) = allowed_by_auth_events(pdu, rules, &fetch_event) {
        return Verdict::Rejected(rejection);
    }
    let by = |state: &StateMap| {
        let entry = |kind: &str, key: &str| state.get(kind, key).and_then(|id| fetch_event(id));
        allowed_by_state(pdu, rules, entry)
    };
    match (by(before), by(current)) {
        (Err(rejection), _) => Verdict::Rejected(rejection),
        (Ok(()), Err(rejection)) => Verdict::SoftFailed(rejection),
        (Ok(()), Ok(())) => Verdict::Accepted,
    }
}

/// The state events that a draft must name as its `auth_events`.
///
/// The create event is left out where the room version implies it.
///
/// # Errors
/// When the draft's content does not have the shape that the selection reads, such as an
/// `m.room.member` event without a membership.
pub fn select_auth_events(
    draft: &Draft,
    sender: &ruma::UserId,
    state: &StateMap,
    rules: &RoomVersionRules,
) -> Result<Vec<OwnedEventId>, AuthRejection> {
    let types = auth_types_for_event(
        &draft.kind.as_str().into(),
        sender,
        draft.state_key.as_deref(),
        &draft.content,
        &rules.authorization,
    )?;
    Ok(types
        .iter()
        .filter(|(kind, _)| {
            !rules.authorization.room_create_event_id_as_room_id
                || *kind != StateEventType::RoomCreate
        })
        .filter_map(|(kind, key)| state.get(&kind.to_string(), key).cloned())
        .collect())
}

/// Check 4 on receipt: does the event pass by the auth events it names?
///
/// # Errors
/// The rule that failed; the event is then *rejected* (stored, never shown, never built upon).
pub fn allowed_by_auth_events(
    pdu: &Pdu,
    rules: &AuthorizationRules,
    fetch_event: impl Fn(&EventId) -> Option<Arc<Pdu>>,
) -> Result<(), AuthRejection> {
    check_state_independent_auth_rules(rules, pdu, &fetch_event)?;
    let auth_events: Vec<Arc<Pdu>> = pdu
        .auth_events()
        .iter()
        .filter_map(|id| fetch_event(id))
        .collect();
    let create = rules
        .room_create_event_id_as_room_id
        .then(|| {
            EventId::parse(format!(
                "${}",
                pdu.room_id().as_str().trim_start_matches('!')
            ))
            .ok()
        })
        .flatten()
        .and_then(|id| fetch_event(&id));
    check_state_dependent_auth_rules(rules, pdu, |kind, key| {
        if *kind == StateEventType::RoomCreate && create.is_some() {
            return create.clone().map(Read::from);
        }
        let found = auth_events
            .iter()
            .find(|event| event.is_state(&kind.to_string(), key));
        Read::of_state(kind, found.cloned())
    })?;
    Ok(())
}

/// Checks 5 and 6 on receipt, and the check of our own events: does it pass by this state?
///
/// # Errors
/// The rule that failed. By the state before the event it is then *rejected*, by the current state
/// of the room *soft-failed*; an event of our own is refused.
pub fn allowed_by_state(
    pdu: &Pdu,
    rules: &AuthorizationRules,
    fetch_state: impl Fn(&str, &str) -> Option<Arc<Pdu>>,
) -> Result<(), AuthRejection> {
    check_state_dependent_auth_rules(rules, pdu, |kind, key| {
        Read::of_state(kind, fetch_state(&kind.to_string(), key))
    })?;
    Ok(())
}
