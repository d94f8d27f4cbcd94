//! What the rules read where a room has no join rule: `invite`.
//!
//! A room can lose its `m.room.join_rules` to a state resolution, and some were made with an empty one. No text names
//! a default, but all other servers agree on this one, as the editors of the specification say (matrix-spec issue 657);
//! ruma lets nobody join, not even those who are joined change their names. So ruma is shown events as they stand here.
//!
//! Spec: room versions, "Authorization rules", `join_rule`; client-server API, `m.room.join_rules`.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::Event,
};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::event::Pdu;

/// The join rules of a room that has none. The ID is no hash, so that no event of any room has it.
static INVITE: LazyLock<Arc<Pdu>> = LazyLock::new(|| {
    let json = r#"{"auth_events":[],"content":{"join_rule":"invite"},"depth":0,"origin_server_ts":0,"prev_events":[],"room_id":"!implied","sender":"@implied:implied.invalid","state_key":"","type":"m.room.join_rules"}"#;
    let id = OwnedEventId::try_from("$implied-join-rules").expect("a short text is an event ID");
    Arc::new(
        Pdu::from_stored(id, json.into(), &RoomVersionRules::V12, false)
            .expect("the JSON above is an event"),
    )
});

/// An event as the authorization rules read it.
#[derive(Clone, Debug)]
pub(super) struct Read(Arc<Pdu>);

impl From<Arc<Pdu>> for Read {
    fn from(pdu: Arc<Pdu>) -> Self {
        Self(pdu)
    }
}

impl Read {
    /// What a state has for a key, if `event` is what it holds there.
    pub(super) fn of_state(kind: &StateEventType, event: Option<Arc<Pdu>>) -> Option<Self> {
        let implied = || (*kind == StateEventType::RoomJoinRules).then(|| INVITE.clone());
        event.or_else(implied).map(Self)
    }

    /// What stands for an event ID among the auth events of [`Read`]; `fetch` gives events of the room.
    pub(super) fn by_id(
        id: &EventId,
        fetch: impl FnOnce(&EventId) -> Option<Arc<Pdu>>,
    ) -> Option<Self> {
        if id == INVITE.event_id() {
            return Some(Self(INVITE.clone()));
        }
        fetch(id).map(Self)
    }
}

impl Event for Read {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        Event::event_id(&self.0)
    }

    fn room_id(&self) -> Option<&RoomId> {
        Event::room_id(&self.0)
    }

    fn sender(&self) -> &UserId {
        self.0.sender()
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.0.origin_server_ts()
    }

    fn event_type(&self) -> &TimelineEventType {
        self.0.kind()
    }

    fn content(&self) -> &RawValue {
        let names_none = |content: BTreeMap<String, IgnoredAny>| !content.contains_key("join_rule");
        if *self.0.kind() == TimelineEventType::RoomJoinRules
            && self.0.content_as().is_some_and(names_none)
        {
            return INVITE.content();
        }
        self.0.content()
    }

    fn state_key(&self) -> Option<&str> {
        self.0.state_key()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Event::prev_events(&self.0)
    }

    /// A later one takes the place of an earlier one when a state is resolved: these join rules are those of an event
    /// that names none.
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        let is_member = *self.0.kind() == TimelineEventType::RoomMember;
        let implied = is_member.then(|| Event::event_id(&*INVITE));
        Box::new(implied.into_iter().chain(Event::auth_events(&self.0)))
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        Event::redacts(&self.0)
    }

    fn rejected(&self) -> bool {
        self.0.is_rejected()
    }
}

#[cfg(test)]
mod tests;
