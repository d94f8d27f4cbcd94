//! Events outside every timeline: known, but never shown to clients as something that happened.

use std::sync::Arc;

use federation::event::Pdu;
use ruma::{EventId, OwnedEventId, RoomVersionId};
use serde::{Deserialize, Serialize};

use super::TimelineEvent;
use crate::{
    Store, StoreError,
    commit::Commit,
    keys::{Keyspace, Packed, RoomNum, StateId, Unpack},
};

/// The order of an event that has no place in a timeline.
pub const OUTSIDE: i64 = i64::MIN;

/// Why an event is in no timeline. Spec: server-server API, "Checks performed on receipt of a PDU".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is part of an auth chain or of a state, and its place in the room is not known.
    Outlier,
    /// It failed the authorisation rules by its auth events or by the state before it.
    Rejected,
    /// It failed them by the state of the room when it came.
    SoftFailed,
}

/// An event outside every timeline.
#[derive(Clone, Debug)]
pub struct AsideEvent {
    /// The room.
    pub room: RoomNum,
    /// The event.
    pub pdu: Arc<Pdu>,
    /// Why it is here.
    pub standing: Standing,
    /// The state before it; unknown for outliers.
    pub state_before: Option<StateId>,
    /// The state after it; unknown for outliers.
    pub state_after: Option<StateId>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "e")]
    event_id: OwnedEventId,
    #[serde(rename = "v")]
    version: RoomVersionId,
    #[serde(rename = "s")]
    standing: Standing,
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    state_before: Option<StateId>,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    state_after: Option<StateId>,
}

fn key(event_id: &EventId) -> Packed {
    Packed::key(Keyspace::ASIDE).event(event_id)
}

impl Commit {
    /// Keeps an event outside the timelines; `version` is its room's.
    pub fn put_aside(&mut self, event: AsideEvent, version: &RoomVersionId) {
        let header = serde_json::to_vec(&Header {
            event_id: event.pdu.event_id().to_owned(),
            version: version.clone(),
            standing: event.standing,
            state_before: event.state_before,
            state_after: event.state_after,
        })
        .expect("strings and numbers always serialise");
        let value = Packed::new()
            .room(event.room)
            .u64(header.len() as u64)
            .raw(&header)
            .raw(event.pdu.json().as_bytes());
        self.put_raw(key(event.pdu.event_id()), value);
        self.asides.push(Arc::new(event));
    }

    /// Forgets that an event was outside the timelines: it has a place in one now.
    pub fn delete_aside(&mut self, event_id: &EventId) {
        self.delete(key(event_id));
    }
}

impl Store {
    /// An event outside the timelines.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn aside(&self, event_id: &EventId) -> Result<Option<Arc<AsideEvent>>, StoreError> {
        if let Some(event) = self.inner.asides.get(event_id) {
            return Ok(Some(event));
        }
        let key = key(event_id);
        let Some(value) = self.inner.kv.get(&key.bytes)? else {
            return Ok(None);
        };
        let corrupt = || StoreError::corrupt(Keyspace::ASIDE, &key.bytes);
        let mut parts = Unpack(&value);
        let room = parts.room().ok_or_else(corrupt)?;
        let length = parts.u64().and_then(|length| usize::try_from(length).ok());
        let split = length.and_then(|length| parts.0.split_at_checked(length));
        let (header, json) = split.ok_or_else(corrupt)?;
        let header: Header = serde_json::from_slice(header).map_err(|_| corrupt())?;
        let rules = crate::rules_of(&header.version).ok_or_else(corrupt)?;
        let json = std::str::from_utf8(json).map_err(|_| corrupt())?;
        let rejected = header.standing == Standing::Rejected;
        let pdu = Pdu::from_stored(header.event_id.clone(), json.into(), rules, rejected)
            .map_err(|_| corrupt())?;
        let event = Arc::new(AsideEvent {
            room,
            pdu: Arc::new(pdu),
            standing: header.standing,
            state_before: header.state_before,
            state_after: header.state_after,
        });
        self.inner.asides.insert(header.event_id, event.clone());
        Ok(Some(event))
    }

    /// An event that is part of a state, wherever it is kept: one outside the timelines comes with
    /// [`OUTSIDE`] for its order.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn state_event(
        &self,
        event_id: &EventId,
    ) -> Result<Option<Arc<TimelineEvent>>, StoreError> {
        if let Some(event) = self.event(event_id)? {
            return Ok(Some(event));
        }
        let Some(aside) = self.aside(event_id)? else {
            return Ok(None);
        };
        Ok(Some(Arc::new(TimelineEvent {
            room: aside.room,
            order: OUTSIDE,
            pdu: aside.pdu.clone(),
            state_before: StateId(0),
            state_after: StateId(0),
            replaces: None,
            redacted_by: None,
            txn: None,
        })))
    }

    /// An event, wherever it is kept.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn pdu(&self, event_id: &EventId) -> Result<Option<Arc<Pdu>>, StoreError> {
        if let Some(event) = self.event(event_id)? {
            return Ok(Some(event.pdu.clone()));
        }
        Ok(self.aside(event_id)?.map(|event| event.pdu.clone()))
    }
}
