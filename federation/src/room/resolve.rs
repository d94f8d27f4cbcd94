//! State resolution: which state follows from several that disagree.
//!
//! The algorithm is ruma's; this module finds what it asks for: auth chains and, since version 12, the
//! conflicted state subgraph. Spec: room versions 2 and 12, "State resolution".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::RoomVersionRules,
    state_res::{self, StateMap as Entries, utils::event_id_set::EventIdSet},
};

use super::{StateMap, join_rules::Read};
use crate::event::Pdu;

/// How many events of auth chains one resolution looks at, at most.
///
/// A room with this many membership and power changes is far beyond what is known to exist; a chain that is
/// longer was made to cost memory.
pub const CHAIN_EVENTS_MAX: usize = 500_000;

/// Why a state could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Unresolvable {
    /// More than [`CHAIN_EVENTS_MAX`] events.
    #[error("the auth chains are longer than {CHAIN_EVENTS_MAX} events")]
    TooLong,
    /// The algorithm gave up: an event that it needs is missing or malformed.
    #[error("state resolution failed: {0}")]
    Failed(String),
}

/// Resolves states; `event` gives any event of the room that is known.
///
/// The order of `states` does not matter. No state at all makes an empty one.
///
/// # Errors
/// See [`Unresolvable`].
pub fn resolve(
    rules: &RoomVersionRules,
    states: &[StateMap],
    event: impl Fn(&EventId) -> Option<Arc<Pdu>>,
) -> Result<StateMap, Unresolvable> {
    let Some((first, others)) = states.split_first() else {
        return Ok(StateMap::new());
    };
    if others
        .iter()
        .all(|other| other.changes_since(first).is_empty())
    {
        return Ok(first.clone());
    }
    let v2 = rules
        .state_res
        .v2_rules()
        .ok_or_else(|| Unresolvable::Failed("the room version has another algorithm".to_owned()))?;
    let known = Known::new(&event);
    let entries: Vec<Entries<OwnedEventId>> = states.iter().map(entries_of).collect();
    let mut chains = Vec::with_capacity(states.len());
    for state in states {
        chains.push(known.chain(state.iter().map(|(_, _, id)| id.clone()))?);
    }
    let resolved = state_res::resolve(
        &rules.authorization,
        v2,
        &entries,
        chains,
        |id| Read::by_id(id, |id| known.event(id)),
        |conflicted| known.subgraph(conflicted.values().flatten()),
    )
    .map_err(|error| Unresolvable::Failed(error.to_string()))?;
    // Built upon one of them, so that what did not change is shared.
    let mut state = first.clone();
    for (kind, key, id) in first.iter() {
        let entry = (StateEventType::from(kind), key.to_owned());
        match resolved.get(&entry) {
            Some(new) if new == id => {}
            Some(new) => state.insert(kind, key, new.clone()),
            None => state.remove(kind, key),
        }
    }
    for ((kind, key), id) in &resolved {
        let kind = kind.to_string();
        if state.get(&kind, key).is_none() {
            state.insert(&kind, key, id.clone());
        }
    }
    Ok(state)
}

fn entries_of(state: &StateMap) -> Entries<OwnedEventId> {
    state
        .iter()
        .map(|(kind, key, id)| ((StateEventType::from(kind), key.to_owned()), id.clone()))
        .collect()
}

/// Events that were looked up once.
struct Known<F> {
    fetch: F,
    events: std::cell::RefCell<BTreeMap<OwnedEventId, Option<Arc<Pdu>>>>,
}

impl<F: Fn(&EventId) -> Option<Arc<Pdu>>> Known<F> {
    fn new(fetch: F) -> Self {
        Self {
            fetch,
            events: std::cell::RefCell::default(),
        }
    }

    fn event(&self, id: &EventId) -> Option<Arc<Pdu>> {
        if let Some(event) = self.events.borrow().get(id) {
            return event.clone();
        }
        let event = (self.fetch)(id);
        self.events
            .borrow_mut()
            .insert(id.to_owned(), event.clone());
        event
    }

    /// The events themselves, and all that their `auth_events` lead to.
    fn chain(
        &self,
        from: impl Iterator<Item = OwnedEventId>,
    ) -> Result<EventIdSet<OwnedEventId>, Unresolvable> {
        let mut todo: Vec<OwnedEventId> = from.collect();
        let mut chain = EventIdSet::new();
        while let Some(id) = todo.pop() {
            if chain.contains(&id) {
                continue;
            }
            if let Some(event) = self.event(&id) {
                todo.extend(event.auth_events().iter().cloned());
            }
            chain.insert(id);
            if chain.len() > CHAIN_EVENTS_MAX {
                return Err(Unresolvable::TooLong);
            }
        }
        Ok(chain)
    }

    /// The events that lie on a path along `auth_events` from one conflicted event to another, those included.
    ///
    /// Spec: room version 12, "Conflicted state subgraph".
    fn subgraph<'a>(
        &self,
        conflicted: impl Iterator<Item = &'a OwnedEventId>,
    ) -> Option<EventIdSet<OwnedEventId>> {
        let conflicted: BTreeSet<&OwnedEventId> = conflicted.collect();
        let all = self.chain(conflicted.iter().map(|&id| id.clone())).ok()?;
        // From each event to those that name it: what leads to a conflicted one is found going up.
        let mut named_by: BTreeMap<OwnedEventId, Vec<&OwnedEventId>> = BTreeMap::new();
        for id in &all {
            for auth in self.event(id).iter().flat_map(|event| event.auth_events()) {
                named_by.entry(auth.clone()).or_default().push(id);
            }
        }
        let mut leads: EventIdSet<OwnedEventId> = EventIdSet::new();
        let mut todo: Vec<&OwnedEventId> = conflicted.into_iter().collect();
        while let Some(id) = todo.pop() {
            if leads.insert(id.clone()) {
                todo.extend(named_by.get(id).into_iter().flatten());
            }
        }
        Some(leads)
    }
}
