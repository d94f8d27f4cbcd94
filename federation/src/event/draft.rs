//! From what a user wants to say to a signed event.
//!
//! Building only: whether the event is allowed is [`crate::room::auth`]'s question.
//! Spec: server-server API, "Signing events", "Calculating the content hash for an event".

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedEventId,
    OwnedServerName, RoomId, UserId,
    canonical_json::try_from_json_map,
    room_version_rules::RoomVersionRules,
    signatures::{Ed25519KeyPair, hash_and_sign_event},
};
use serde::Deserialize as _;
use serde_json::value::RawValue;

use super::{CONTENT_DEPTH_MAX, Malformed, Pdu, pdu::not_canonical};

/// This server's name and the key that signs for it.
#[derive(Debug)]
pub struct ServerKey {
    server_name: OwnedServerName,
    key_pair: Ed25519KeyPair,
}

impl ServerKey {
    /// The key of `server_name` from its 32-byte seed; `version` is what follows `ed25519:`.
    pub fn from_seed(server_name: OwnedServerName, seed: &[u8; 32], version: &str) -> Self {
        // A PKCS#8 v1 document of an Ed25519 key: a fixed header, then the seed (RFC 8410, 7).
        let header = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        let document: Vec<u8> = header.iter().chain(seed).copied().collect();
        let key_pair = Ed25519KeyPair::from_der(&document, version.to_owned())
            .expect("every 32 bytes are an Ed25519 seed, and the header is fixed");
        Self {
            server_name,
            key_pair,
        }
    }

    /// The server that the key speaks for.
    pub fn server_name(&self) -> &ruma::ServerName {
        &self.server_name
    }

    /// The key pair, for signing JSON that is not an event.
    pub fn key_pair(&self) -> &Ed25519KeyPair {
        &self.key_pair
    }
}

/// An event before it has a place in a room.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The event type.
    pub kind: String,
    /// Present exactly on state events.
    pub state_key: Option<String>,
    /// The content; must be a JSON object.
    pub content: Box<RawValue>,
    /// For `m.room.redaction` of room versions before 11: what it redacts, outside `content`.
    pub redacts: Option<OwnedEventId>,
}

/// The place of a draft in its room.
#[derive(Debug)]
pub struct DraftContext<'a> {
    /// Absent for the create event of a version that derives the room's ID from it.
    pub room_id: Option<&'a RoomId>,
    /// Who sends it.
    pub sender: &'a UserId,
    /// The time it is sent.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The forward extremities of the room.
    pub prev_events: &'a [OwnedEventId],
    /// The state events that allow it, as `ruma::state_res::auth_types_for_event` selects them.
    pub auth_events: &'a [OwnedEventId],
    /// One more than the deepest of `prev_events`.
    pub depth: u64,
    /// The room version's rules.
    pub rules: &'a RoomVersionRules,
}

/// Why a draft cannot become an event.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// The content is not a JSON object, or holds what canonical JSON cannot express.
    #[error("the content is not canonical JSON: {0}")]
    Content(String),
    /// The content nests deeper than [`CONTENT_DEPTH_MAX`].
    #[error("the content nests deeper than {CONTENT_DEPTH_MAX} levels")]
    TooDeep,
    /// The finished event is over a limit.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Draft {
    /// A draft of a state event.
    pub fn state(
        kind: impl Into<String>,
        state_key: impl Into<String>,
        content: Box<RawValue>,
    ) -> Self {
        Self {
            kind: kind.into(),
            state_key: Some(state_key.into()),
            content,
            redacts: None,
        }
    }

    /// A draft of an event that is not state.
    pub fn message(kind: impl Into<String>, content: Box<RawValue>) -> Self {
        Self {
            kind: kind.into(),
            state_key: None,
            content,
            redacts: None,
        }
    }

    /// Hashes and signs the event.
    ///
    /// # Errors
    /// When the content is no canonical JSON object, too deep, or the event too large.
    pub fn sign(self, context: &DraftContext<'_>, key: &ServerKey) -> Result<Pdu, DraftError> {
        let content = canonical_content(&self.content)?;
        let mut event = CanonicalJsonObject::new();
        let mut set = |name: &str, value: CanonicalJsonValue| {
            event.insert(name.to_owned(), value);
        };
        set("type", self.kind.into());
        if let Some(state_key) = self.state_key {
            set("state_key", state_key.into());
        }
        set("content", content.into());
        if let Some(room_id) = context.room_id {
            set("room_id", room_id.as_str().into());
        }
        if let Some(redacts) = self.redacts {
            set("redacts", redacts.as_str().into());
        }
        set("sender", context.sender.as_str().into());
        set(
            "origin_server_ts",
            CanonicalJsonValue::Integer(
                i64::from(context.origin_server_ts.get())
                    .try_into()
                    .map_err(not_canonical)?,
            ),
        );
        set(
            "depth",
            CanonicalJsonValue::Integer(
                i64::try_from(context.depth)
                    .map_err(not_canonical)?
                    .try_into()
                    .map_err(not_canonical)?,
            ),
        );
        set("prev_events", ids(context.prev_events));
        set("auth_events", ids(context.auth_events));
        hash_and_sign_event(
            key.server_name.as_str(),
            &key.key_pair,
            &mut event,
            &context.rules.redaction,
        )
        .map_err(|error| too_large_or_else(&event, error))?;
        Ok(Pdu::from_canonical(&event, context.rules)?)
    }
}

/// ruma refuses one byte below the limit of the specification while it hashes; name the size.
fn too_large_or_else(event: &CanonicalJsonObject, error: impl std::fmt::Display) -> Malformed {
    match serde_json::to_string(event) {
        Ok(json) if json.len() >= super::PDU_BYTES_MAX => Malformed::TooLarge { bytes: json.len() },
        _ => not_canonical(error),
    }
}

fn ids(ids: &[OwnedEventId]) -> CanonicalJsonValue {
    CanonicalJsonValue::Array(ids.iter().map(|id| id.as_str().into()).collect())
}

/// The content as canonical JSON.
///
/// # Errors
/// When it is not an object, holds floats or integers beyond ±(2^53-1), or nests too deep.
fn canonical_content(content: &RawValue) -> Result<CanonicalJsonObject, DraftError> {
    if nesting(content.get()) > CONTENT_DEPTH_MAX {
        return Err(DraftError::TooDeep);
    }
    let map = serde_json::Map::deserialize(content)
        .map_err(|error| DraftError::Content(error.to_string()))?;
    try_from_json_map(map).map_err(|error| DraftError::Content(error.to_string()))
}

/// The deepest nesting of arrays and objects in valid JSON.
pub(super) fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
