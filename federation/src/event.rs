//! An event by itself: parsing, building, room versions.

mod draft;
mod pdu;
mod verify;
mod version;

#[cfg(test)]
mod tests;

pub use self::{
    draft::{Draft, DraftContext, DraftError, ServerKey},
    pdu::{Malformed, Pdu},
    verify::{Required, Unverified, required, verify},
    version::{DEFAULT_ROOM_VERSION, SERVED_ROOM_VERSIONS, is_served, rules_of},
};

/// The largest PDU, in bytes of canonical JSON with signatures and without `unsigned`.
///
/// Exactly this many bytes pass, one more does not. Spec: client-server API, "Size limits".
pub const PDU_BYTES_MAX: usize = 65_536;

/// The longest `type`, `state_key`, `sender`, `room_id` or event ID, in bytes.
///
/// Spec: client-server API, "Size limits".
pub const FIELD_BYTES_MAX: usize = 255;

/// The deepest nesting of arrays and objects in an event's `content`.
///
/// Spec: none. Parsers of other servers give up between 100 and 1,000 levels, so a deeper event
/// would split a room between those who can read it and those who cannot.
pub const CONTENT_DEPTH_MAX: usize = 100;
