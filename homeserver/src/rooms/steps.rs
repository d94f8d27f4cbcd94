//! What an event does to the state of its room: upon the head, or upon something else.
//!
//! Spec: server-server API, "Room State Resolution".

use std::sync::Arc;

use federation::{
    event::Pdu,
    room::{StateChange, StateMap, resolve::resolve},
};
use ruma::OwnedEventId;
use store::{Commit, keys::StateId, rooms::GapRow};

use super::Turn;
use crate::{
    error::{ApiError, ApiResult},
    seams::heavy_here,
};

/// How many events a room has that nothing is built upon, at most; the oldest are given up beyond that.
///
/// As many as an event may name as its `prev_events`. Spec: room version 1, "Event format".
const EXTREMITIES_MAX: usize = 20;

/// Where an event stands that is not built upon the whole head.
#[derive(Debug)]
pub(super) struct Place {
    /// The state before it.
    pub(super) before: StateMap,
    /// Whether it takes the place of all that nothing is built upon yet: the join to a room that goes on
    /// elsewhere.
    pub(super) alone: bool,
    /// What is missing right before it, where that is this server's own time in the room.
    pub(super) gap: Option<GapRow>,
}

/// What an event does to the room.
pub(super) struct Step {
    pub(super) state_before: StateId,
    pub(super) after: StateMap,
    pub(super) state_after: StateId,
    pub(super) replaces: Option<OwnedEventId>,
    pub(super) states: Vec<(StateId, StateMap)>,
    pub(super) changes: Vec<StateChange>,
}

impl Turn {
    /// The event is built upon the head.
    pub(super) fn step(&mut self, commit: &mut Commit, pdu: &Pdu) -> Step {
        let state_before = self.head.state_id;
        let replaces = replaced(&self.head.state, pdu);
        let (mut states, mut changes) = (Vec::new(), Vec::new());
        if let Some(state_key) = pdu.state_key() {
            changes.push(StateChange {
                kind: pdu.kind().to_string().into(),
                state_key: state_key.into(),
                event_id: Some(pdu.event_id().to_owned()),
            });
            self.head.step(commit, self.room, &changes);
            states.push((self.head.state_id, self.head.state.clone()));
        }
        self.head.extremities = vec![pdu.event_id().to_owned()];
        self.head.depth = pdu.depth();
        Step {
            state_before,
            after: self.head.state.clone(),
            state_after: self.head.state_id,
            replaces,
            states,
            changes,
        }
    }

    /// The event stands somewhere else.
    pub(super) fn step_aside(
        &mut self,
        commit: &mut Commit,
        pdu: &Arc<Pdu>,
        place: Place,
    ) -> ApiResult<Step> {
        let room = self.room;
        let state_before = self.head.number(commit, room, &place.before);
        let after = state_after(&place.before, pdu);
        let replaces = replaced(&place.before, pdu);
        let state_after = self.head.number(commit, room, &after);
        let extremities = &mut self.head.extremities;
        if place.alone {
            extremities.clear();
            self.head.entered_depth = pdu.depth();
        }
        extremities.retain(|id| !pdu.prev_events().contains(id));
        extremities.push(pdu.event_id().to_owned());
        let surplus = extremities.len().saturating_sub(EXTREMITIES_MAX);
        extremities.drain(..surplus);
        let current = match &*self.head.extremities.clone() {
            [_] => after.clone(),
            several => {
                let mut states = vec![after.clone()];
                for id in several.iter().filter(|id| *id != pdu.event_id()) {
                    let placed = self.placed(id)?;
                    states.extend(placed.and_then(|placed| placed.after));
                }
                self.resolve(&states, Some(pdu))?
            }
        };
        self.head.depth = match &*self.head.extremities {
            [_] => pdu.depth(),
            _ => self.head.depth.max(pdu.depth()),
        };
        let changes = current.changes_since(&self.head.state);
        let state_id = self.head.number(commit, room, &current);
        self.head.state = current.clone();
        self.head.state_id = state_id;
        let mut states = vec![
            (state_before, place.before),
            (state_after, after.clone()),
            (state_id, current),
        ];
        states.dedup_by_key(|(id, _)| *id);
        Ok(Step {
            state_before,
            after,
            state_after,
            replaces,
            states,
            changes,
        })
    }

    /// Resolves states of this room; `new` is an event that is not placed yet.
    ///
    /// # Errors
    /// When the algorithm cannot go on, which leaves the room as it was.
    pub(super) fn resolve(
        &self,
        states: &[StateMap],
        new: Option<&Arc<Pdu>>,
    ) -> ApiResult<StateMap> {
        let resolved = || {
            resolve(self.rules, states, |id| match new {
                Some(pdu) if pdu.event_id() == id => Some(pdu.clone()),
                // An event that cannot be read counts as one that is not known.
                _ => self.pdu(id).ok().flatten(),
            })
        };
        let differ = states.split_first().is_some_and(|(first, others)| {
            let mut others = others.iter();
            others.any(|other| !other.changes_since(first).is_empty())
        });
        let resolved = if differ {
            heavy_here(self.app.seams.inline, resolved)
        } else {
            resolved()
        };
        resolved.map_err(|error| ApiError::internal(&error))
    }
}

/// The state after an event, from that before it.
pub(super) fn state_after(before: &StateMap, pdu: &Pdu) -> StateMap {
    let mut after = before.clone();
    if let Some(state_key) = pdu.state_key() {
        after.insert(
            &pdu.kind().to_string(),
            state_key,
            pdu.event_id().to_owned(),
        );
    }
    after
}

/// The state event whose place an event takes.
pub(super) fn replaced(before: &StateMap, pdu: &Pdu) -> Option<OwnedEventId> {
    let state_key = pdu.state_key()?;
    before.get(&pdu.kind().to_string(), state_key).cloned()
}
