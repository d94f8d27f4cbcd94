//! Power levels: who may do what, asked outside the authorisation rules.
//!
//! The rules check an event that exists; this answers "could this user?", for room upgrades,
//! aliases, redactions, push rules.
//! Spec: client-server API, "Permissions"; room version 12 for creators.

use std::sync::Arc;

use ruma::{
    Int, OwnedUserId, UserId,
    events::{TimelineEventType, room::power_levels::UserPowerLevel},
    room_version_rules::AuthorizationRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField as Field},
};

use crate::event::Pdu;

/// Who may do what in one state of a room.
pub struct Powers<'a> {
    rules: &'a AuthorizationRules,
    creators: Vec<OwnedUserId>,
    levels: Option<RoomPowerLevelsEvent<Arc<Pdu>>>,
}

impl<'a> Powers<'a> {
    /// From a room's create event and its power levels, if it has any.
    pub fn new(rules: &'a AuthorizationRules, create: Arc<Pdu>, levels: Option<Arc<Pdu>>) -> Self {
        let creators = RoomCreateEvent::new(create)
            .creators(rules)
            .unwrap_or_default();
        Self {
            rules,
            creators: creators.into_iter().collect(),
            levels: levels.map(RoomPowerLevelsEvent::new),
        }
    }

    /// Who created the room; since version 12 they stand above all levels.
    pub fn creators(&self) -> &[OwnedUserId] {
        &self.creators
    }

    /// The level of a user.
    pub fn of(&self, user_id: &UserId) -> UserPowerLevel {
        let created = self.creators.iter().any(|creator| creator == user_id);
        if created && self.rules.explicitly_privilege_room_creators {
            return UserPowerLevel::Infinite;
        }
        match &self.levels {
            Some(levels) => levels
                .user_power_level(user_id, self.rules)
                .map_or(UserPowerLevel::Int(Int::from(0)), UserPowerLevel::Int),
            None => UserPowerLevel::Int(Int::from(if created { 100 } else { 0 })),
        }
    }

    /// The level that sending an event of `kind` needs.
    pub fn to_send(&self, kind: &str, state_key: Option<&str>) -> Int {
        let kind = TimelineEventType::from(kind);
        match &self.levels {
            Some(levels) => levels
                .event_power_level(&kind, state_key, self.rules)
                .unwrap_or_else(|_| Int::from(50)),
            None => Int::from(0),
        }
    }

    /// Whether a user may send an event of `kind`, as far as levels go.
    pub fn can_send(&self, user_id: &UserId, kind: &str, state_key: Option<&str>) -> bool {
        self.of(user_id) >= UserPowerLevel::Int(self.to_send(kind, state_key))
    }

    /// Whether a user may invite.
    pub fn can_invite(&self, user_id: &UserId) -> bool {
        self.of(user_id) >= self.field(Field::Invite)
    }

    /// Whether a user may kick, as far as their own level goes.
    pub fn can_kick(&self, user_id: &UserId) -> bool {
        self.of(user_id) >= self.field(Field::Kick)
    }

    /// Whether a user may redact events of others.
    pub fn can_redact(&self, user_id: &UserId) -> bool {
        self.of(user_id) >= self.field(Field::Redact)
    }

    fn field(&self, field: Field) -> UserPowerLevel {
        let level = match &self.levels {
            Some(levels) => levels
                .get_as_int_or_default(field, self.rules)
                .unwrap_or_else(|_| field.default_value()),
            None => field.default_value(),
        };
        UserPowerLevel::Int(level)
    }
}

impl std::fmt::Debug for Powers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Powers")
            .field("creators", &self.creators)
            .finish_non_exhaustive()
    }
}
