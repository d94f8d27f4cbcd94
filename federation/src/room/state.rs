//! The state of a room at one point: which event holds each (type, state key).
//!
//! A map is persistent: a clone costs nothing and shares what did not change, so that the states
//! along a timeline fit in memory together. Spec: client-server API, "Room events", "State events".

use std::sync::Arc;

use imbl::{OrdMap, ordmap::DiffItem};
use ruma::{EventId, OwnedEventId};

/// One entry that differs between two states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The event type.
    pub kind: Arc<str>,
    /// The state key.
    pub state_key: Arc<str>,
    /// What holds the entry now; `None` when the entry is gone.
    pub event_id: Option<OwnedEventId>,
}

/// Which event holds each (type, state key).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateMap {
    kinds: OrdMap<Arc<str>, OrdMap<Arc<str>, OwnedEventId>>,
}

impl StateMap {
    /// The state before a room's create event.
    pub fn new() -> Self {
        Self::default()
    }

    /// The event that holds (`kind`, `state_key`).
    pub fn get(&self, kind: &str, state_key: &str) -> Option<&OwnedEventId> {
        self.kinds.get(kind)?.get(state_key)
    }

    /// Sets an entry.
    pub fn insert(&mut self, kind: &str, state_key: &str, event_id: OwnedEventId) {
        if let Some(keys) = self.kinds.get_mut(kind) {
            keys.insert(state_key.into(), event_id);
        } else {
            self.kinds
                .insert(kind.into(), OrdMap::unit(state_key.into(), event_id));
        }
    }

    /// Removes an entry, as a state resolution may.
    pub fn remove(&mut self, kind: &str, state_key: &str) {
        if let Some(keys) = self.kinds.get_mut(kind) {
            keys.remove(state_key);
            if keys.is_empty() {
                self.kinds.remove(kind);
            }
        }
    }

    /// Applies one change.
    pub fn apply(&mut self, change: &StateChange) {
        match &change.event_id {
            Some(event_id) => self.insert(&change.kind, &change.state_key, event_id.clone()),
            None => self.remove(&change.kind, &change.state_key),
        }
    }

    /// Every entry, by type and then state key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &OwnedEventId)> {
        self.kinds.iter().flat_map(|(kind, keys)| {
            keys.iter()
                .map(move |(state_key, event_id)| (&**kind, &**state_key, event_id))
        })
    }

    /// Every entry but those of one type.
    pub fn except(&self, kind: &str) -> impl Iterator<Item = (&str, &str, &OwnedEventId)> {
        let kinds = self
            .kinds
            .iter()
            .filter(move |(other, _)| ***other != *kind);
        kinds.flat_map(|(kind, keys)| {
            keys.iter()
                .map(move |(state_key, event_id)| (&**kind, &**state_key, event_id))
        })
    }

    /// The entries of one type: state key and event.
    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = (&str, &OwnedEventId)> {
        self.kinds
            .get(kind)
            .into_iter()
            .flat_map(|keys| keys.iter().map(|(key, id)| (&**key, id)))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.kinds.values().map(OrdMap::len).sum()
    }

    /// Whether this is the state before the create event.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// What to apply to `earlier` to get `self`.
    pub fn changes_since(&self, earlier: &Self) -> Vec<StateChange> {
        let none = OrdMap::new();
        let mut changes = Vec::new();
        let change =
            |kind: &Arc<str>, key: &Arc<str>, event_id: Option<&OwnedEventId>| StateChange {
                kind: kind.clone(),
                state_key: key.clone(),
                event_id: event_id.cloned(),
            };
        let gone = earlier.kinds.keys();
        let gone = gone.filter(|kind| !self.kinds.contains_key(&***kind));
        for kind in self.kinds.keys().chain(gone) {
            let keys = self.kinds.get(kind).unwrap_or(&none);
            let before = earlier.kinds.get(kind).unwrap_or(&none);
            // What the two share is not looked at.
            changes.extend(before.diff(keys).map(|item| match item {
                DiffItem::Add(key, id) | DiffItem::Update { new: (key, id), .. } => {
                    change(kind, key, Some(id))
                }
                DiffItem::Remove(key, _) => change(kind, key, None),
            }));
        }
        changes
    }

    /// Whether `event_id` holds (`kind`, `state_key`).
    pub fn holds(&self, kind: &str, state_key: &str, event_id: &EventId) -> bool {
        self.get(kind, state_key).is_some_and(|id| id == event_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> OwnedEventId {
        text.try_into().unwrap()
    }

    #[test]
    fn the_changes_between_two_states_lead_from_one_to_the_other() {
        let mut earlier = StateMap::new();
        earlier.insert("m.room.create", "", id("$create"));
        earlier.insert("m.room.name", "", id("$name"));
        earlier.insert("m.room.member", "@a:hs1", id("$a"));
        let mut later = earlier.clone();
        later.insert("m.room.name", "", id("$renamed"));
        later.insert("m.room.topic", "", id("$topic"));
        later.remove("m.room.member", "@a:hs1");
        let changes = later.changes_since(&earlier);
        assert_eq!(changes.len(), 3);
        let mut walked = earlier.clone();
        for change in &changes {
            walked.apply(change);
        }
        assert_eq!(walked, later);
        assert_eq!(later.changes_since(&later.clone()), []);
        assert_eq!(later.len(), 3);
    }
}
