//! A room in outline: what somebody outside may be told of it before they join.
//!
//! Shared by the published directory, the space hierarchy and the room summary.
//! Spec: client-server API, "Published room directory", "Spaces", "Room summary".

use ruma::{
    OwnedRoomId, ServerName,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use store::{
    keys::UserNum,
    rooms::{Membership, RoomView},
};

use super::{members::is_joined, read, served};
use crate::{error::ApiResult, server::App};

/// What outsiders may know of a room, and what decides whether they may.
#[derive(Clone, Debug)]
pub struct Outline {
    /// The keys of the specification's room summary.
    pub fields: Map<String, Value>,
    /// How many are joined.
    pub joined: u64,
    /// The join rule.
    pub join_rule: String,
    /// Whether anybody may read what is said.
    pub world_readable: bool,
    /// The rooms whose members may join, of a restricted room.
    pub allowed: Vec<OwnedRoomId>,
}

#[derive(Deserialize)]
struct Text {
    name: Option<String>,
    topic: Option<String>,
    url: Option<String>,
    alias: Option<String>,
    algorithm: Option<String>,
    guest_access: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Outline {
    /// The outline of a room as it is now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of(app: &App, view: &RoomView) -> ApiResult<Self> {
        let state = &view.head.state;
        let text = |kind: &str| read::state_content::<Text>(&app.store, state, kind, "");
        let mut fields = Map::new();
        fields.insert("room_id".to_owned(), view.room_id.as_str().into());
        let mut put = |key: &str, value: Option<String>| {
            let value = value.filter(|value| !value.is_empty());
            fields.extend(value.map(|value| (key.to_owned(), value.into())));
        };
        put("name", text("m.room.name")?.and_then(|text| text.name));
        put("topic", text("m.room.topic")?.and_then(|text| text.topic));
        put(
            "avatar_url",
            text("m.room.avatar")?.and_then(|text| text.url),
        );
        let alias = text("m.room.canonical_alias")?.and_then(|text| text.alias);
        put("canonical_alias", alias);
        put(
            "room_type",
            text("m.room.create")?.and_then(|text| text.kind),
        );
        let encryption = text("m.room.encryption")?.and_then(|text| text.algorithm);
        put("encryption", encryption);
        put("room_version", Some(view.head.version.to_string()));
        let rules: Option<Map<String, Value>> =
            read::state_content(&app.store, state, "m.room.join_rules", "")?;
        let rules = rules.unwrap_or_default();
        let join_rule = rules
            .get("join_rule")
            .and_then(Value::as_str)
            .unwrap_or("invite")
            .to_owned();
        let allowed = if matches!(&*join_rule, "restricted" | "knock_restricted") {
            allowed_rooms(&rules)
        } else {
            Vec::new()
        };
        let guests = text("m.room.guest_access")?.and_then(|text| text.guest_access);
        let world_readable =
            read::history_visibility(app, state)? == HistoryVisibility::WorldReadable;
        let joined = view.head.joined_count;
        fields.insert("join_rule".to_owned(), join_rule.clone().into());
        fields.insert("num_joined_members".to_owned(), joined.into());
        fields.insert("world_readable".to_owned(), world_readable.into());
        fields.insert(
            "guest_can_join".to_owned(),
            (guests.as_deref() == Some("can_join")).into(),
        );
        if !allowed.is_empty() {
            fields.insert("allowed_room_ids".to_owned(), serde_json::json!(allowed));
        }
        Ok(Self {
            fields,
            joined,
            join_rule,
            world_readable,
            allowed,
        })
    }

    /// Whether a user, or somebody unknown, may know of the room.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn may_be_told(
        &self,
        app: &App,
        view: &RoomView,
        user: Option<UserNum>,
    ) -> ApiResult<bool> {
        if self.is_open(view) {
            return Ok(true);
        }
        let Some(user) = user else {
            return Ok(false);
        };
        if matches!(
            view.head.membership(user),
            Membership::Join | Membership::Invite
        ) {
            return Ok(true);
        }
        for room_id in &self.allowed {
            if is_joined(app, user, room_id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a server may know of the room: anybody may, or one of its users.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn may_be_told_to(
        &self,
        app: &App,
        view: &RoomView,
        server: &ServerName,
    ) -> ApiResult<bool> {
        let members = [Membership::Join, Membership::Invite];
        if self.is_open(view) || served::has_member(app, &view.head, server, &members)? {
            return Ok(true);
        }
        for room_id in &self.allowed {
            let room = app.store.find_room(room_id)?;
            let view = room.map(|room| app.store.room(room)).transpose()?.flatten();
            if let Some(view) = view
                && served::is_joined(app, &view.head, server)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether anybody may read the room, join it, or ask to be let in.
    fn is_open(&self, view: &RoomView) -> bool {
        // Each join rule means something only in the versions that know it.
        let rules = &view.rules.authorization;
        self.world_readable
            || match &*self.join_rule {
                "public" => true,
                "knock" => rules.knocking,
                "knock_restricted" => rules.knock_restricted_join_rule,
                _ => false,
            }
    }

    /// A user's membership, for the summary of a room.
    pub fn membership(view: &RoomView, user: UserNum) -> Option<MembershipState> {
        view.head.members.get(&user).map(|row| row.state())
    }
}

/// The rooms in the `allow` of a restricted join rule; anything malformed allows nobody.
fn allowed_rooms(rules: &Map<String, Value>) -> Vec<OwnedRoomId> {
    let allow = rules.get("allow").and_then(Value::as_array);
    allow
        .into_iter()
        .flatten()
        .filter(|rule| rule.get("type").and_then(Value::as_str) == Some("m.room_membership"))
        .filter_map(|rule| rule.get("room_id")?.as_str()?.try_into().ok())
        .collect()
}
