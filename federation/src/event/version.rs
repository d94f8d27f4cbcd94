//! Which room versions this server takes part in, and where their rules come from.
//!
//! Rules are data from ruma; nothing here or elsewhere asks "is this version 11?".
//! Spec: room versions.

use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};

/// The version of a new room when its creator names none.
pub const DEFAULT_ROOM_VERSION: RoomVersionId = RoomVersionId::V12;

/// Every version this server creates, joins and serves, oldest first.
pub const SERVED_ROOM_VERSIONS: [RoomVersionId; 7] = [
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

/// Whether rooms of `version` can exist here.
pub fn is_served(version: &RoomVersionId) -> bool {
    SERVED_ROOM_VERSIONS.contains(version)
}

/// The rules of `version`, or `None` when it is not one of [`SERVED_ROOM_VERSIONS`].
pub fn rules_of(version: &RoomVersionId) -> Option<RoomVersionRules> {
    is_served(version).then(|| version.rules()).flatten()
}
