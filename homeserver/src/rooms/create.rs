//! Creating rooms: presets, initial state, invites, all in one commit.
//!
//! Spec: client-server API, "Creation", "POST /createRoom"; room version 12 for creators.

use std::collections::BTreeSet;

use federation::event::{Draft, DraftContext};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId,
    RoomVersionId, UserId, room_version_rules::RoomVersionRules,
};
use serde_json::{Map, Value, json, value::RawValue};
use store::Commit;

use super::{
    Turn,
    members::{self, Change, To},
    turn::{Append, rules_of},
};
use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    server::App,
};

/// How many invites a new room may come with.
pub const INVITES_MAX: usize = 100;

/// How many initial state events a new room may come with.
const INITIAL_STATE_MAX: usize = 500;

/// What a new room shall be like.
#[derive(Debug, Default)]
pub struct NewRoom {
    /// The version; the server's default without.
    pub version: Option<RoomVersionId>,
    /// Further keys of the create event.
    pub creation_content: Map<String, Value>,
    /// Join rule, history visibility, guest access.
    pub preset: Preset,
    /// State events: type, state key, content.
    pub initial_state: Vec<(String, String, Box<RawValue>)>,
    /// Top-level keys of the power levels that replace the preset's.
    pub power_levels: Map<String, Value>,
    /// Its name.
    pub name: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Its first and canonical alias.
    pub alias: Option<OwnedRoomAliasId>,
    /// Who is invited.
    pub invite: Vec<OwnedUserId>,
    /// Whether the invites say that it is a direct chat.
    pub is_direct: bool,
    /// Whether it goes into the published directory.
    pub published: bool,
}

/// The presets of the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Invited users only.
    #[default]
    PrivateChat,
    /// Invited users only, with the power of the creator.
    TrustedPrivateChat,
    /// Anybody.
    PublicChat,
}

/// Creates a room and returns its ID once all of it is durable.
///
/// # Errors
/// `M_FORBIDDEN`, `M_UNSUPPORTED_ROOM_VERSION`, `M_ROOM_IN_USE`, `M_INVALID_ROOM_STATE`, `M_BAD_JSON`.
pub async fn create(app: &App, caller: &Caller, mut room: NewRoom) -> ApiResult<OwnedRoomId> {
    let settings = &app.config.rooms;
    caller.must_be_among(settings.create, "create rooms")?;
    if room.published && !app.config.testing.publish_any_room {
        caller.must_be_among(settings.publish, "publish rooms")?;
    }
    if room.invite.len() > INVITES_MAX || room.initial_state.len() > INITIAL_STATE_MAX {
        return Err(ApiError::invalid_param(format!(
            "a new room takes at most {INVITES_MAX} invites and {INITIAL_STATE_MAX} state events"
        )));
    }
    let version = room
        .version
        .clone()
        .unwrap_or_else(|| app.default_room_version());
    let rules = rules_of(&version)?;
    if room.preset == Preset::TrustedPrivateChat && rules.authorization.additional_room_creators {
        add_creators(&mut room)?;
    }
    let _alias = match &room.alias {
        Some(alias) => Some(super::aliases::reserve(app, caller, alias).await?),
        None => None,
    };
    let create = create_content(&room.creation_content, &version, &caller.user_id, rules)?;
    let (mut turn, timestamp) = first_turn(app, caller, &version, rules, &create).await?;
    let mut commit = Commit::new();
    let mut add = Adding {
        app,
        caller,
        turn: &mut turn,
        commit: &mut commit,
        timestamp,
        alias: room.alias.as_deref(),
    };
    add.event("m.room.create", "", &create).await?;
    let join = Change::plain(caller.user_id.clone(), To::Join);
    members::append(app, add.turn, add.commit, caller, join).await?;
    let levels = power_levels(&room, &caller.user_id, rules);
    add.event("m.room.power_levels", "", &levels)
        .await
        .map_err(invalid_state)?;
    if let Some(alias) = &room.alias {
        add.event("m.room.canonical_alias", "", &json!({ "alias": alias }))
            .await?;
    }
    for (kind, content) in preset_events(&room) {
        add.event(kind, "", &content).await?;
    }
    for (kind, state_key, content) in std::mem::take(&mut room.initial_state) {
        let named = (kind == "m.room.name" && room.name.is_some())
            || (kind == "m.room.topic" && room.topic.is_some());
        if !named {
            add.raw(kind, state_key, content)
                .await
                .map_err(invalid_state)?;
        }
    }
    if let Some(name) = &room.name {
        add.event("m.room.name", "", &json!({ "name": name }))
            .await?;
    }
    if let Some(topic) = &room.topic {
        let rich = json!({ "m.text": [{ "body": topic }] });
        add.event(
            "m.room.topic",
            "",
            &json!({ "topic": topic, "m.topic": rich }),
        )
        .await?;
    }
    let invited = std::mem::take(&mut room.invite);
    let (here, elsewhere): (Vec<_>, Vec<_>) = invited
        .into_iter()
        .partition(|user_id| app.is_local(user_id));
    for user_id in here {
        let mut invite = Change::plain(user_id, To::Invite);
        if room.is_direct {
            invite.extra.insert("is_direct".to_owned(), true.into());
        }
        members::append(app, add.turn, add.commit, caller, invite).await?;
    }
    let room_id = turn.room_id.clone();
    if let Some(alias) = &room.alias {
        super::aliases::put(&mut commit, alias, turn.room, &caller.user_id);
    }
    if room.published {
        super::aliases::publish(&mut commit, turn.room);
    }
    turn.finish(commit).await?.flushed().await?;
    // Their servers are asked only now: there is a room to be in.
    for user_id in elsewhere {
        let mut invite = Change::plain(user_id, To::Invite);
        if room.is_direct {
            invite.extra.insert("is_direct".to_owned(), true.into());
        }
        members::change(app, caller, &room_id, invite).await?;
    }
    Ok(room_id)
}

/// Adds state events of a new room, one after the other.
struct Adding<'a> {
    app: &'a App,
    caller: &'a Caller,
    turn: &'a mut Turn,
    commit: &'a mut Commit,
    timestamp: MilliSecondsSinceUnixEpoch,
    /// The alias that is made with the room.
    alias: Option<&'a RoomAliasId>,
}

impl Adding<'_> {
    async fn event(&mut self, kind: &str, state_key: &str, content: &Value) -> ApiResult<()> {
        let content =
            serde_json::value::to_raw_value(content).map_err(|error| ApiError::internal(&error))?;
        self.raw(kind.to_owned(), state_key.to_owned(), content)
            .await
    }

    async fn raw(
        &mut self,
        kind: String,
        state_key: String,
        content: Box<RawValue>,
    ) -> ApiResult<()> {
        if kind == "m.room.member" {
            return Err(ApiError::invalid_param(
                "a new room's members are invited, not set",
            ));
        }
        let timestamp = if kind == "m.room.create" {
            self.timestamp
        } else {
            self.app.clock.now()
        };
        let draft = Draft::state(kind, state_key, content);
        super::rules::check(self.app, self.turn, &draft, self.alias)?;
        let append = Append {
            sender: self.caller.user_id.clone(),
            draft,
            origin_server_ts: timestamp,
            txn: None,
        };
        self.turn.append(self.commit, append).await.map(drop)
    }
}

/// What the creator asked for is not a state that a room can be in.
fn invalid_state(error: ApiError) -> ApiError {
    if error.status == http::StatusCode::FORBIDDEN {
        return ApiError::invalid_room_state(error.message);
    }
    error
}

/// In a trusted private chat of version 12, those invited are creators too.
fn add_creators(room: &mut NewRoom) -> ApiResult<()> {
    if room.invite.is_empty() {
        return Ok(());
    }
    let named = room
        .creation_content
        .remove("additional_creators")
        .unwrap_or(json!([]));
    let Value::Array(named) = named else {
        return Err(ApiError::invalid_param(
            "`additional_creators` is not a list",
        ));
    };
    let mut creators: BTreeSet<String> = room.invite.iter().map(ToString::to_string).collect();
    for creator in named {
        let creator = creator
            .as_str()
            .ok_or_else(|| ApiError::invalid_param("an additional creator is not a user ID"))?;
        creators.insert(creator.to_owned());
    }
    room.creation_content
        .insert("additional_creators".to_owned(), json!(creators));
    Ok(())
}

fn create_content(
    asked: &Map<String, Value>,
    version: &RoomVersionId,
    creator: &UserId,
    rules: &RoomVersionRules,
) -> ApiResult<Value> {
    let mut content = asked.clone();
    content.insert("room_version".to_owned(), version.as_str().into());
    if rules.authorization.use_room_create_sender {
        content.remove("creator");
    } else {
        content.insert("creator".to_owned(), creator.as_str().into());
    }
    if rules.authorization.additional_room_creators {
        check_creators(&content)?;
    } else {
        content.remove("additional_creators");
    }
    Ok(Value::Object(content))
}

fn check_creators(content: &Map<String, Value>) -> ApiResult<()> {
    let Some(creators) = content.get("additional_creators") else {
        return Ok(());
    };
    let valid = creators.as_array().is_some_and(|creators| {
        creators.iter().all(|creator| {
            creator.as_str().is_some_and(|creator| {
                UserId::parse(creator).is_ok_and(|user_id| {
                    user_id.validate_strict().is_ok() || user_id.validate_historical().is_ok()
                })
            })
        })
    });
    if valid {
        return Ok(());
    }
    Err(ApiError::invalid_param(
        "`additional_creators` is not a list of user IDs",
    ))
}

/// The first turn of the new room. In versions that derive its ID from the create event, two rooms
/// that differ in nothing else differ in their time.
pub(super) async fn first_turn(
    app: &App,
    caller: &Caller,
    version: &RoomVersionId,
    rules: &'static RoomVersionRules,
    create: &Value,
) -> ApiResult<(Turn, MilliSecondsSinceUnixEpoch)> {
    let mut timestamp = app.clock.now();
    loop {
        let room_id = if rules.authorization.room_create_event_id_as_room_id {
            derived_room_id(app, caller, rules, create, timestamp)?
        } else {
            RoomId::parse(format!("!{}:{}", app.entropy.text(18), app.server_name()))
                .expect("letters, digits and a server name make a room ID")
        };
        if let Some(turn) = app.rooms.first_turn(app, room_id, version.clone()).await? {
            return Ok((turn, timestamp));
        }
        timestamp = MilliSecondsSinceUnixEpoch(timestamp.get() + ruma::uint!(1));
    }
}

fn derived_room_id(
    app: &App,
    caller: &Caller,
    rules: &RoomVersionRules,
    create: &Value,
    timestamp: MilliSecondsSinceUnixEpoch,
) -> ApiResult<OwnedRoomId> {
    let content =
        serde_json::value::to_raw_value(create).map_err(|error| ApiError::internal(&error))?;
    let context = DraftContext {
        room_id: None,
        sender: &caller.user_id,
        origin_server_ts: timestamp,
        prev_events: &[],
        auth_events: &[],
        depth: 1,
        rules,
    };
    let pdu = Draft::state("m.room.create", "", content).sign(&context, &app.key)?;
    Ok(pdu.room_id().to_owned())
}

/// The preset's power levels, with the keys that the creator replaces.
fn power_levels(room: &NewRoom, creator: &UserId, rules: &RoomVersionRules) -> Value {
    let creators_stand_above = rules.authorization.explicitly_privilege_room_creators;
    let mut users = Map::new();
    if !creators_stand_above {
        users.insert(creator.to_string(), 100.into());
        if room.preset == Preset::TrustedPrivateChat {
            users.extend(
                room.invite
                    .iter()
                    .map(|user_id| (user_id.to_string(), 100.into())),
            );
        }
    }
    let tombstone = if creators_stand_above { 150 } else { 100 };
    let mut levels = json!({
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": if room.preset == Preset::PublicChat { 50 } else { 0 },
        "users_default": 0,
        "events_default": 0,
        "state_default": 50,
        "users": users,
        "events": {
            "m.room.name": 50,
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.topic": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.encryption": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": tombstone,
        },
        "notifications": { "room": 50 },
    });
    if let Some(levels) = levels.as_object_mut() {
        levels.extend(room.power_levels.clone());
    }
    levels
}

fn preset_events(room: &NewRoom) -> Vec<(&'static str, Value)> {
    let join_rule = match room.preset {
        Preset::PublicChat => "public",
        Preset::PrivateChat | Preset::TrustedPrivateChat => "invite",
    };
    let mut events = vec![
        ("m.room.join_rules", json!({ "join_rule": join_rule })),
        (
            "m.room.history_visibility",
            json!({ "history_visibility": "shared" }),
        ),
    ];
    // Where nothing is said, guests are kept out.
    if !matches!(room.preset, Preset::PublicChat) {
        events.push(("m.room.guest_access", json!({ "guest_access": "can_join" })));
    }
    events.retain(|(kind, _)| {
        let mut given = room.initial_state.iter();
        !given.any(|(other, key, _)| other == kind && key.is_empty())
    });
    events
}
