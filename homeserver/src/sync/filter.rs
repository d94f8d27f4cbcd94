//! Filters: what of everything a client wants to hear.
//!
//! Spec: client-server API, "Filtering". Unknown keys are ignored, as the specification grows.

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// A whole filter, as `/sync` takes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// For what is not of a room.
    #[serde(skip_serializing_if = "is_default")]
    pub account_data: EventFilter,
    /// For presence.
    #[serde(skip_serializing_if = "is_default")]
    pub presence: EventFilter,
    /// For rooms.
    #[serde(skip_serializing_if = "is_default")]
    pub room: RoomFilter,
    /// The keys of events that are wanted, with dots between nested ones; all of them without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_fields: Option<Vec<String>>,
    /// `client` or `federation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_format: Option<EventFormat>,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// As clients know them.
    Client,
    /// As servers exchange them.
    Federation,
}

/// The part of a filter that is about rooms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoomFilter {
    /// Only these rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rooms: Option<Vec<OwnedRoomId>>,
    /// Not these rooms.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_rooms: Vec<OwnedRoomId>,
    /// Whether rooms that were left are told of in an initial sync.
    #[serde(skip_serializing_if = "is_default")]
    pub include_leave: bool,
    /// For the timeline.
    #[serde(skip_serializing_if = "is_default")]
    pub timeline: EventFilter,
    /// For state.
    #[serde(skip_serializing_if = "is_default")]
    pub state: EventFilter,
    /// For receipts and typing.
    #[serde(skip_serializing_if = "is_default")]
    pub ephemeral: EventFilter,
    /// For account data of rooms.
    #[serde(skip_serializing_if = "is_default")]
    pub account_data: EventFilter,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventFilter {
    /// At most this many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Only of these senders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub senders: Option<Vec<OwnedUserId>>,
    /// Not of these senders.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_senders: Vec<OwnedUserId>,
    /// Only of these types; `*` stands for anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<Vec<String>>,
    /// Not of these types.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_types: Vec<String>,
    /// Only in these rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rooms: Option<Vec<OwnedRoomId>>,
    /// Not in these rooms.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_rooms: Vec<OwnedRoomId>,
    /// Only with, or without, a `url` in their content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains_url: Option<bool>,
    /// Only these kinds of relation (MSC3874).
    #[serde(
        rename = "org.matrix.msc3874.rel_types",
        alias = "rel_types",
        skip_serializing_if = "Option::is_none"
    )]
    pub rel_types: Option<Vec<String>>,
    /// Not these kinds of relation (MSC3874).
    #[serde(
        rename = "org.matrix.msc3874.not_rel_types",
        alias = "not_rel_types",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub not_rel_types: Vec<String>,
    /// Only what something relates to in one of these ways. Heeded where a timeline is paged through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub related_by_rel_types: Option<Vec<String>>,
    /// Only what something of one of these senders relates to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub related_by_senders: Option<Vec<OwnedUserId>>,
    /// Only the members who matter for the events that are told.
    #[serde(skip_serializing_if = "is_default")]
    pub lazy_load_members: bool,
    /// Tell of those members again.
    #[serde(skip_serializing_if = "is_default")]
    pub include_redundant_members: bool,
    /// Count unread messages by thread.
    #[serde(skip_serializing_if = "is_default")]
    pub unread_thread_notifications: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl RoomFilter {
    /// Whether a room is wanted at all.
    pub fn wants_room(&self, room_id: &RoomId) -> bool {
        wants(self.rooms.as_deref(), &self.not_rooms, room_id)
    }
}

impl EventFilter {
    /// Whether anything of a room is wanted.
    pub fn wants_room(&self, room_id: &RoomId) -> bool {
        wants(self.rooms.as_deref(), &self.not_rooms, room_id)
    }

    /// Whether events of a type are wanted.
    pub fn wants_type(&self, kind: &str) -> bool {
        let matches = |pattern: &String| type_matches(pattern, kind);
        self.types
            .as_ref()
            .is_none_or(|types| types.iter().any(matches))
            && !self.not_types.iter().any(matches)
    }

    /// Whether events of a sender are wanted.
    pub fn wants_sender(&self, sender: &UserId) -> bool {
        wants(self.senders.as_deref(), &self.not_senders, sender)
    }

    /// Whether an event is wanted.
    pub fn wants(&self, kind: &str, sender: &UserId, content: &RawValue) -> bool {
        self.wants_type(kind)
            && self.wants_sender(sender)
            && self
                .contains_url
                .is_none_or(|wanted| has_url(content) == wanted)
            && self.wants_relation(content)
    }

    /// Whether what relates to an event decides about it.
    pub fn asks_what_relates(&self) -> bool {
        self.related_by_rel_types.is_some() || self.related_by_senders.is_some()
    }

    /// Whether an event is wanted because of one that relates to it, in such a way and of such a sender.
    pub fn wants_for(&self, rel_type: &str, sender: &UserId) -> bool {
        self.related_by_rel_types
            .as_ref()
            .is_none_or(|types| types.iter().any(|wanted| wanted == rel_type))
            && self
                .related_by_senders
                .as_ref()
                .is_none_or(|senders| senders.iter().any(|wanted| wanted == sender))
    }

    fn wants_relation(&self, content: &RawValue) -> bool {
        if self.rel_types.is_none() && self.not_rel_types.is_empty() {
            return true;
        }
        let content: Option<Value> = serde_json::from_str(content.get()).ok();
        let rel_type = content
            .as_ref()
            .and_then(|content| content.get("m.relates_to")?.get("rel_type")?.as_str());
        let is = |wanted: &String| rel_type == Some(wanted);
        self.rel_types
            .as_ref()
            .is_none_or(|types| types.iter().any(is))
            && !self.not_rel_types.iter().any(is)
    }

    /// At most how many, by the filter or `default`, and never more than `most`.
    pub fn limit_or(&self, default: usize, most: usize) -> usize {
        self.limit
            .map_or(default, |limit| usize::try_from(limit).unwrap_or(most))
            .min(most)
    }
}

fn wants<O: AsRef<T>, T: PartialEq + ?Sized>(only: Option<&[O]>, not: &[O], it: &T) -> bool {
    only.is_none_or(|only| only.iter().any(|one| one.as_ref() == it))
        && !not.iter().any(|one| one.as_ref() == it)
}

fn has_url(content: &RawValue) -> bool {
    serde_json::from_str::<Value>(content.get()).is_ok_and(|content| content.get("url").is_some())
}

/// Whether a type is meant by a pattern, in which each `*` stands for anything.
fn type_matches(pattern: &str, kind: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| kind.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_type_stands_for_anything() {
        for (pattern, kind, matches) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.message", true),
            ("*", "anything", true),
            ("*.message", "m.room.message", true),
            ("m.*.name", "m.room.name", true),
            ("m.*.name", "m.name", false),
            ("", "m", false),
        ] {
            assert_eq!(type_matches(pattern, kind), matches, "{pattern} {kind}");
        }
    }
}
