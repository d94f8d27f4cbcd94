//! A persistent event: parsed once, immutable, with its canonical JSON kept as it was signed.
//!
//! Deliberately lenient: only the fields that the room algorithm reads are parsed, so that an odd
//! `content` from another server never makes an event unreadable. What a *client* may put into an
//! event is checked where clients come in.
//! Spec: server-server API, "PDUs"; client-server API, "Size limits".

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedUserId, RoomId, UserId,
    canonical_json::{RedactedBecause, redact},
    events::TimelineEventType,
    room_version_rules::{RedactionRules, RoomVersionRules},
    signatures::reference_hash,
    state_res::Event,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{FIELD_BYTES_MAX, PDU_BYTES_MAX};

/// Why bytes are not a PDU.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not the JSON of an event.
    #[error("not an event: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON that canonical JSON cannot express: floats, integers beyond ±(2^53-1).
    #[error("not canonical JSON: {0}")]
    NotCanonical(String),
    /// See [`PDU_BYTES_MAX`].
    #[error("the event is {bytes} bytes, the limit is {PDU_BYTES_MAX}")]
    TooLarge {
        /// Length of the canonical JSON.
        bytes: usize,
    },
    /// See [`FIELD_BYTES_MAX`].
    #[error("`{field}` is {bytes} bytes, the limit is {FIELD_BYTES_MAX}")]
    FieldTooLong {
        /// Name of the field.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// The event has no room ID, and is not the create event of a version that derives it.
    #[error("the event names no room")]
    NoRoom,
}

/// An event of a room, with everything the room algorithm reads already parsed.
///
/// `json` is the canonical JSON that was hashed and signed, without `unsigned` and without
/// `event_id`; the parsed fields are read-only views of it.
#[derive(Clone, Debug)]
pub struct Pdu {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    /// Absent on the create event of version 12 and later.
    names_room: bool,
    sender: OwnedUserId,
    kind: TimelineEventType,
    state_key: Option<Box<str>>,
    content: Box<RawValue>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: u64,
    redacts: Option<OwnedEventId>,
    rejected: bool,
    json: Box<str>,
}

#[derive(Deserialize)]
struct Fields {
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    #[serde(rename = "type")]
    kind: TimelineEventType,
    state_key: Option<Box<str>>,
    content: Box<RawValue>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: u64,
    redacts: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct RedactsOnly {
    redacts: Option<OwnedEventId>,
}

impl Pdu {
    /// Parses an event from the canonical JSON that was signed, and computes its ID.
    ///
    /// # Errors
    /// When it is not an event, or over a size limit.
    pub fn from_canonical(
        object: &CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<Self, Malformed> {
        let hash = reference_hash(object, rules).map_err(not_canonical)?;
        let event_id = OwnedEventId::try_from(format!("${hash}"))
            .expect("a reference hash in base64 makes a valid event ID");
        let json = serde_json::to_string(object)?;
        Self::from_stored(event_id, json.into(), rules, false)
    }

    /// Parses an event that this server has checked and stored before.
    ///
    /// `event_id` is trusted. `rejected` says whether the event had failed checks 4 or 5.
    ///
    /// # Errors
    /// When `json` is not an event, or over a size limit.
    pub fn from_stored(
        event_id: OwnedEventId,
        json: Box<str>,
        rules: &RoomVersionRules,
        rejected: bool,
    ) -> Result<Self, Malformed> {
        if json.len() > PDU_BYTES_MAX {
            return Err(Malformed::TooLarge { bytes: json.len() });
        }
        let fields: Fields = serde_json::from_str(&json)?;
        let names_room = fields.room_id.is_some();
        let room_id = match fields.room_id {
            Some(room_id) => room_id,
            None if fields.kind == TimelineEventType::RoomCreate => room_id_of_create(&event_id),
            None => return Err(Malformed::NoRoom),
        };
        let limits = [
            ("type", &*fields.kind.to_string()),
            ("state_key", fields.state_key.as_deref().unwrap_or_default()),
            ("sender", fields.sender.as_str()),
            ("room_id", room_id.as_str()),
        ];
        for (field, text) in limits {
            // Before version 11 servers counted characters, and rooms have events that rest on that.
            let in_bytes = rules.redaction.content_field_redacts;
            let too_long = text.len() > FIELD_BYTES_MAX
                && (in_bytes || text.chars().count() > FIELD_BYTES_MAX);
            if too_long {
                let bytes = text.len();
                return Err(Malformed::FieldTooLong { field, bytes });
            }
        }
        let redacts = if fields.kind == TimelineEventType::RoomRedaction {
            if rules.redaction.content_field_redacts {
                serde_json::from_str::<RedactsOnly>(fields.content.get())
                    .ok()
                    .and_then(|c| c.redacts)
            } else {
                fields
                    .redacts
                    .and_then(|raw| serde_json::from_str(raw.get()).ok())
            }
        } else {
            None
        };
        Ok(Self {
            event_id,
            room_id,
            names_room,
            sender: fields.sender,
            kind: fields.kind,
            state_key: fields.state_key,
            content: fields.content,
            origin_server_ts: fields.origin_server_ts,
            prev_events: fields.prev_events,
            auth_events: fields.auth_events,
            depth: fields.depth,
            redacts,
            rejected,
            json,
        })
    }

    /// The event after redaction: same ID, only the protected keys of `content`.
    ///
    /// Spec: client-server API, "Redactions"; the kept keys are the room version's.
    ///
    /// # Errors
    /// When the stored JSON cannot be redacted, which a stored event never shows.
    pub fn redacted(&self, rules: &RoomVersionRules) -> Result<Self, Malformed> {
        let json = redacted_json(&self.json, &rules.redaction)?;
        Self::from_stored(self.event_id.clone(), json, rules, self.rejected)
    }

    /// The same event, marked as one that failed checks 4 or 5.
    #[must_use]
    pub fn as_rejected(&self) -> Self {
        Self {
            rejected: true,
            ..self.clone()
        }
    }

    /// The event's ID, computed from its reference hash.
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// The room; for a create event of version 12 and later it follows from the event ID.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// The user who sent it.
    pub fn sender(&self) -> &UserId {
        &self.sender
    }

    /// The event type.
    pub fn kind(&self) -> &TimelineEventType {
        &self.kind
    }

    /// Present exactly on state events.
    pub fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    /// The content as it was sent.
    pub fn content(&self) -> &RawValue {
        &self.content
    }

    /// The content parsed as `T`, or `None` when it has another shape.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_str(self.content.get()).ok()
    }

    /// When the sender's server says it was sent.
    pub fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    /// The forward extremities it was built upon.
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.prev_events
    }

    /// The events that allowed it.
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.auth_events
    }

    /// One more than the deepest of `prev_events`, as the sender's server claims.
    pub fn depth(&self) -> u64 {
        self.depth
    }

    /// What a redaction redacts, wherever the room version keeps it.
    pub fn redacts(&self) -> Option<&EventId> {
        self.redacts.as_deref()
    }

    /// Whether it had failed checks 4 or 5 on receipt.
    pub fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// The canonical JSON as signed, without `unsigned` and `event_id`.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Whether this is the state event of `kind` and `state_key`.
    pub fn is_state(&self, kind: &str, state_key: &str) -> bool {
        self.state_key() == Some(state_key) && self.kind.to_string() == kind
    }
}

/// The ID of a room of version 12 and later: its create event's ID with `!` for `$`.
fn room_id_of_create(create: &EventId) -> OwnedRoomId {
    let hash = create.as_str().trim_start_matches('$');
    OwnedRoomId::try_from(format!("!{hash}")).expect("an event ID's hash makes a valid room ID")
}

fn redacted_json(json: &str, rules: &RedactionRules) -> Result<Box<str>, Malformed> {
    let object: CanonicalJsonObject = serde_json::from_str(json)?;
    let object = redact(object, rules, None::<RedactedBecause>).map_err(not_canonical)?;
    Ok(serde_json::to_string(&object)?.into())
}

pub(super) fn not_canonical(error: impl std::fmt::Display) -> Malformed {
    Malformed::NotCanonical(error.to_string())
}

impl Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        // State resolution and authorisation want the create event of version 12 without one.
        self.names_room.then_some(&*self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}
