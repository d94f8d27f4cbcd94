//! States of a room on disk: mostly "like that other state, but for these entries".
//!
//! State `n` is written as its difference from `n - 1`; every 64th as its difference from the one
//! 64 before; every 4,096th in full. So a state costs a constant amount to write however many
//! members a room has, and reading one walks at most 63 + 63 differences.

use std::sync::Arc;

use federation::room::{StateChange, StateMap};
use ruma::OwnedEventId;

use crate::{
    Store, StoreError,
    keys::{Keyspace, Packed, RoomNum, StateId, Unpack},
    kv::{Direction, Row},
};

/// States between two that are written as larger differences.
const BLOCK_STATES: u64 = 64;

/// States between two that are written in full.
const FULL_STATES: u64 = 4_096;

/// Entries in one row of a difference or a full state.
const ROW_CHANGES_MAX: usize = 500;

/// What changed since the last state whose number is a multiple of 64.
#[derive(Clone, Debug, Default)]
pub struct StateBlock {
    changes: Arc<Vec<StateChange>>,
}

impl StateBlock {
    /// Notes the changes that made state `id`, and returns the rows that keep it.
    pub(crate) fn step(
        &mut self,
        room: RoomNum,
        id: StateId,
        changes: &[StateChange],
        state: &StateMap,
    ) -> Vec<Row> {
        Arc::make_mut(&mut self.changes).extend_from_slice(changes);
        if !id.0.is_multiple_of(BLOCK_STATES) {
            return rows(room, id, Some(StateId(id.0 - 1)), changes);
        }
        let block = std::mem::take(&mut self.changes);
        if !id.0.is_multiple_of(FULL_STATES) {
            return rows(room, id, Some(StateId(id.0 - BLOCK_STATES)), &block);
        }
        let full: Vec<StateChange> = state
            .iter()
            .map(|(kind, state_key, event_id)| StateChange {
                kind: kind.into(),
                state_key: state_key.into(),
                event_id: Some(event_id.clone()),
            })
            .collect();
        rows(room, id, None, &full)
    }
}

fn rows(room: RoomNum, id: StateId, parent: Option<StateId>, changes: &[StateChange]) -> Vec<Row> {
    let parent = parent.map_or(u64::MAX, |parent| parent.0);
    let row = |(part, changes): (usize, &[StateChange])| {
        let key = Packed::key(Keyspace::STATE)
            .room(room)
            .u64(id.0)
            .u64(part as u64);
        let json = changes_to_json(changes);
        (
            key.into_bytes(),
            Some(Packed::new().u64(parent).raw(&json).into_bytes()),
        )
    };
    if changes.is_empty() {
        return vec![row((0, changes))];
    }
    changes
        .chunks(ROW_CHANGES_MAX)
        .enumerate()
        .map(row)
        .collect()
}

type ChangeJson = (Arc<str>, Arc<str>, Option<OwnedEventId>);

pub(super) fn changes_to_json(changes: &[StateChange]) -> Vec<u8> {
    let plain: Vec<(&str, &str, Option<&OwnedEventId>)> = changes
        .iter()
        .map(|change| (&*change.kind, &*change.state_key, change.event_id.as_ref()))
        .collect();
    serde_json::to_vec(&plain).expect("strings always serialise")
}

pub(super) fn changes_from_json(json: &[u8]) -> Option<Vec<StateChange>> {
    let plain: Vec<ChangeJson> = serde_json::from_slice(json).ok()?;
    Some(
        plain
            .into_iter()
            .map(|(kind, state_key, event_id)| StateChange {
                kind,
                state_key,
                event_id,
            })
            .collect(),
    )
}

impl Store {
    /// The state with number `id`, from the cache or by walking differences.
    ///
    /// # Errors
    /// When the store cannot be read, or a state that an event names is missing.
    pub fn state(&self, room: RoomNum, id: StateId) -> Result<StateMap, StoreError> {
        let mut steps = Vec::new();
        let mut at = id;
        let mut state = loop {
            if at.0 == 0 {
                break StateMap::new();
            }
            if let Some(state) = self.inner.states.get(&(room, at)) {
                break state;
            }
            let (parent, changes) = self.state_row(room, at)?;
            steps.push(changes);
            match parent {
                Some(parent) => at = parent,
                None => break StateMap::new(),
            }
        };
        for change in steps.iter().rev().flatten() {
            state.apply(change);
        }
        if !steps.is_empty() {
            self.inner.states.insert((room, id), state.clone());
        }
        Ok(state)
    }

    /// The block of changes that leads to state `id`.
    pub(super) fn state_block(&self, room: RoomNum, id: StateId) -> Result<StateBlock, StoreError> {
        let mut changes = Vec::new();
        let first = id.0 - id.0 % BLOCK_STATES + 1;
        for step in first..=id.0 {
            changes.extend(self.state_row(room, StateId(step))?.1);
        }
        Ok(StateBlock {
            changes: Arc::new(changes),
        })
    }

    fn state_row(
        &self,
        room: RoomNum,
        id: StateId,
    ) -> Result<(Option<StateId>, Vec<StateChange>), StoreError> {
        let prefix = Packed::key(Keyspace::STATE).room(room).u64(id.0);
        let corrupt = || StoreError::corrupt(Keyspace::STATE, &prefix.bytes);
        let mut parent = None;
        let mut changes = Vec::new();
        let mut parts = 0;
        self.visit(&prefix, Direction::Ascending, |_, value| {
            let mut value = Unpack(value);
            parts += 1;
            let number = value.u64().ok_or_else(corrupt)?;
            parent = (number != u64::MAX).then_some(StateId(number));
            changes.extend(changes_from_json(value.0).ok_or_else(corrupt)?);
            Ok(true)
        })?;
        if parts == 0 {
            return Err(corrupt());
        }
        Ok((parent, changes))
    }
}
