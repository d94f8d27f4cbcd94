//! Upgrading: a room goes on in a new one of another version, all of it in one commit.
//!
//! What single users have set about the room (push rules, tags, direct chats) is carried over by a
//! reader of the log, which sees every upgrade and not only those made here.
//! Spec: client-server API, "Room Upgrades"; room version 12 for creators.

use federation::event::Draft;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId,
    room_version_rules::AuthorizationRules,
};
use serde_json::{Map, Value, json};
use store::{Commit, rooms::Membership};

use super::{
    Turn,
    aliases::{self, CANONICAL_ALIAS, split_canonical},
    create,
    members::{self, Change, To},
    turn::{Append, rules_of},
};
use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    server::App,
};

/// How many bans, and how many links of a space, go along.
const COPIED_MAX: usize = 5_000;

/// The state that the new room begins with, in the order in which it is set.
const COPIED: [&str; 8] = [
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
];

/// The level that a power level event gives where it says nothing.
const STATE_DEFAULT: i64 = 50;

/// What the new room shall be like.
#[derive(Debug)]
pub struct Upgrade {
    /// Its version.
    pub version: RoomVersionId,
    /// Who is its creator beside the caller, in versions that know more than one.
    pub additional_creators: Vec<OwnedUserId>,
}

/// Replaces a room by a new one, and returns the new one's ID once all of it is durable.
///
/// # Errors
/// `M_UNSUPPORTED_ROOM_VERSION`, `M_NOT_FOUND` when the room is not known, `M_FORBIDDEN` when the
/// caller may not send `m.room.tombstone` in it.
pub async fn upgrade(
    app: &App,
    caller: &Caller,
    old_id: &RoomId,
    wanted: Upgrade,
) -> ApiResult<OwnedRoomId> {
    let rules = rules_of(&wanted.version)?;
    let _aliases = aliases::lock(app).await;
    let old = app.rooms.turn(app, old_id).await?;
    let joined = old.head.membership(caller.user) == Membership::Join;
    let powers = old.powers()?;
    if !joined || !powers.can_send(&caller.user_id, "m.room.tombstone", Some("")) {
        return Err(ApiError::forbidden(
            "upgrading a room needs the power to send m.room.tombstone in it",
        ));
    }
    let mut create = creation_content(&old, &wanted, &caller.user_id, &rules.authorization)?;
    let provisional = Value::Object(create.clone());
    let (new, timestamp) =
        create::first_turn(app, caller, &wanted.version, rules, &provisional).await?;
    let mut creators = vec![caller.user_id.clone()];
    if rules.authorization.additional_room_creators {
        creators.extend(wanted.additional_creators);
    }
    let mut both = Both {
        app,
        caller,
        commit: Commit::new(),
        creators,
        old,
        new,
    };
    let replacement = both.new.room_id.clone();
    let tombstone = json!({
        "body": "This room has been replaced",
        "replacement_room": replacement,
    });
    let tombstone = both.in_old("m.room.tombstone", tombstone.into()).await?;
    if !rules.authorization.room_create_event_id_as_room_id
        && let Some(predecessor) = create.get_mut("predecessor").and_then(Value::as_object_mut)
    {
        predecessor.insert("event_id".to_owned(), tombstone.into());
    }
    both.fill(&create, timestamp).await?;
    both.move_aliases().await?;
    both.close_old().await?;
    let Both {
        old, new, commit, ..
    } = both;
    let pending = Turn::finish_all(&app.store, vec![old, new], commit).await?;
    pending.flushed().await?;
    Ok(replacement)
}

/// The content of the new room's create event: what may not change goes along.
fn creation_content(
    old: &Turn,
    wanted: &Upgrade,
    creator: &OwnedUserId,
    rules: &AuthorizationRules,
) -> ApiResult<Map<String, Value>> {
    let before: Map<String, Value> = content(old, "m.room.create", "")?.unwrap_or_default();
    let mut create = Map::new();
    create.insert("room_version".to_owned(), wanted.version.as_str().into());
    create.insert("predecessor".to_owned(), json!({ "room_id": old.room_id }));
    if !rules.use_room_create_sender {
        create.insert("creator".to_owned(), creator.as_str().into());
    }
    if rules.additional_room_creators && !wanted.additional_creators.is_empty() {
        create.insert(
            "additional_creators".to_owned(),
            json!(wanted.additional_creators),
        );
    }
    if before.get("m.federate") == Some(&Value::Bool(false)) {
        create.insert("m.federate".to_owned(), false.into());
    }
    if let Some(kind) = before.get("type") {
        create.insert("type".to_owned(), kind.clone());
    }
    Ok(create)
}

fn content(turn: &Turn, kind: &str, state_key: &str) -> ApiResult<Option<Map<String, Value>>> {
    let event = turn.state_event(kind, state_key)?;
    Ok(event.and_then(|event| event.content_as()))
}

/// The two rooms of an upgrade, both in their turn, and the commit that changes them.
struct Both<'a> {
    app: &'a App,
    caller: &'a Caller,
    commit: Commit,
    /// Who creates the new room.
    creators: Vec<OwnedUserId>,
    old: Turn,
    new: Turn,
}

impl Both<'_> {
    fn append(
        &self,
        kind: &str,
        state_key: &str,
        content: &Map<String, Value>,
        timestamp: MilliSecondsSinceUnixEpoch,
    ) -> ApiResult<Append> {
        let content =
            serde_json::value::to_raw_value(content).map_err(|error| ApiError::internal(&error))?;
        Ok(Append {
            sender: self.caller.user_id.clone(),
            draft: Draft::state(kind, state_key, content),
            origin_server_ts: timestamp,
            txn: None,
        })
    }

    async fn in_old(&mut self, kind: &str, content: Object) -> ApiResult<String> {
        let append = self.append(kind, "", &content.0, self.app.clock.now())?;
        let pdu = self.old.append(&mut self.commit, append).await?;
        Ok(pdu.event_id().to_string())
    }

    async fn in_new(
        &mut self,
        kind: &str,
        key: &str,
        content: &Map<String, Value>,
    ) -> ApiResult<()> {
        let append = self.append(kind, key, content, self.app.clock.now())?;
        self.new.append(&mut self.commit, append).await.map(drop)
    }

    /// Fills the new room with what the old one is.
    async fn fill(
        &mut self,
        create: &Map<String, Value>,
        timestamp: MilliSecondsSinceUnixEpoch,
    ) -> ApiResult<()> {
        let append = self.append("m.room.create", "", create, timestamp)?;
        self.new.append(&mut self.commit, append).await?;
        let join = Change::plain(self.caller.user_id.clone(), To::Join);
        members::append(self.app, &mut self.new, &mut self.commit, self.caller, join).await?;
        let levels = self.levels()?;
        let at_first = self.levels_to_copy_with(&levels);
        self.in_new("m.room.power_levels", "", &at_first).await?;
        for kind in COPIED {
            if let Some(content) = content(&self.old, kind, "")? {
                self.copy(kind, "", content).await?;
            }
        }
        let space = content(&self.old, "m.room.create", "")?
            .is_some_and(|create| create.get("type").and_then(Value::as_str) == Some("m.space"));
        let links = ["m.space.parent", "m.space.child"];
        for kind in links.iter().take(if space { 2 } else { 1 }) {
            let state = self.old.head.state.clone();
            for (key, _) in state.of_kind(kind).take(COPIED_MAX) {
                // An empty link is one that was taken back.
                let link = content(&self.old, kind, key)?.filter(|content| !content.is_empty());
                if let Some(link) = link {
                    self.copy(kind, key, link).await?;
                }
            }
        }
        self.copy_bans().await?;
        if at_first != levels {
            self.in_new("m.room.power_levels", "", &levels).await?;
        }
        Ok(())
    }

    /// Sets in the new room what the old one has; what its version does not allow stays behind.
    async fn copy(&mut self, kind: &str, key: &str, content: Map<String, Value>) -> ApiResult<()> {
        match self.in_new(kind, key, &content).await {
            Err(error) if !error.status.is_server_error() => {
                tracing::warn!(kind, reason = %error.message, "a room's state was not upgraded");
                Ok(())
            }
            done => done,
        }
    }

    async fn copy_bans(&mut self) -> ApiResult<()> {
        let members = self.old.head.members.clone();
        let banned = members
            .iter()
            .filter(|(_, membership)| **membership == Membership::Ban);
        for (user, _) in banned.take(COPIED_MAX) {
            let user_id = self.app.store.user_id(*user)?;
            if let Some(ban) = content(&self.old, "m.room.member", user_id.as_str())? {
                self.copy("m.room.member", user_id.as_str(), ban).await?;
            }
        }
        Ok(())
    }

    /// The power levels of the new room: the old ones, in the shape that its version asks for.
    fn levels(&self) -> ApiResult<Map<String, Value>> {
        let before = content(&self.old, "m.room.power_levels", "")?.unwrap_or_default();
        let mut levels = integers(before);
        let stands_above = self
            .new
            .rules
            .authorization
            .explicitly_privilege_room_creators;
        let highest = highest_needed(&levels);
        let users = object_in(&mut levels, "users");
        if stands_above {
            for creator in &self.creators {
                users.remove(creator.as_str());
            }
        } else {
            // Who stood above all levels as a creator must not end below them.
            let powers = self.old.powers()?;
            let unlisted = self
                .old
                .rules
                .authorization
                .explicitly_privilege_room_creators
                || self.old.head.state.get("m.room.power_levels", "").is_none();
            if unlisted {
                for creator in powers.creators() {
                    users.insert(creator.to_string(), highest.max(100).into());
                }
            }
        }
        Ok(levels)
    }

    /// The same with as much for the caller as copying the room needs.
    fn levels_to_copy_with(&self, levels: &Map<String, Value>) -> Map<String, Value> {
        let mut levels = levels.clone();
        if self
            .new
            .rules
            .authorization
            .explicitly_privilege_room_creators
        {
            return levels;
        }
        let needed = highest_needed(&levels);
        let default = level(&levels, "users_default", 0);
        let users = object_in(&mut levels, "users");
        if level(users, self.caller.user_id.as_str(), default) < needed {
            users.insert(self.caller.user_id.to_string(), needed.into());
        }
        levels
    }

    /// Moves the aliases of this server, and the canonical alias with them.
    async fn move_aliases(&mut self) -> ApiResult<()> {
        let app = self.app;
        aliases::move_all(&app.store, &mut self.commit, self.old.room, self.new.room)?;
        let Some(before) = content(&self.old, CANONICAL_ALIAS, "")? else {
            return Ok(());
        };
        let here = format!(":{}", app.server_name());
        let (moved, left) = split_canonical(&before, |alias| alias.ends_with(&here));
        if moved.is_empty() {
            return Ok(());
        }
        match self.in_old(CANONICAL_ALIAS, Object(left)).await {
            Err(error) if error.status.is_server_error() => return Err(error),
            // The aliases lead to the new room all the same.
            _ => {}
        }
        self.copy(CANONICAL_ALIAS, "", moved).await
    }

    /// Raises what speaking and inviting need in the old room, if the caller may.
    async fn close_old(&mut self) -> ApiResult<()> {
        let Some(before) = content(&self.old, "m.room.power_levels", "")? else {
            return Ok(());
        };
        let before = integers(before);
        let mut levels = before.clone();
        let closed = level(&levels, "users_default", 0)
            .saturating_add(1)
            .max(STATE_DEFAULT);
        for key in ["invite", "events_default"] {
            if level(&levels, key, 0) < closed {
                levels.insert(key.to_owned(), closed.into());
            }
        }
        if levels == before {
            return Ok(());
        }
        match self.in_old("m.room.power_levels", Object(levels)).await {
            Err(error) if error.status.is_server_error() => Err(error),
            _ => Ok(()),
        }
    }
}

/// A JSON object.
struct Object(Map<String, Value>);

impl From<Value> for Object {
    fn from(value: Value) -> Self {
        match value {
            Value::Object(map) => Self(map),
            _ => Self(Map::new()),
        }
    }
}

/// The object behind `key`, put there if there is none.
fn object_in<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = map.entry(key).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("it was just made one")
}

fn level(levels: &Map<String, Value>, key: &str, default: i64) -> i64 {
    levels.get(key).and_then(Value::as_i64).unwrap_or(default)
}

/// The highest level that setting some state, or banning, needs.
fn highest_needed(levels: &Map<String, Value>) -> i64 {
    let events = levels.get("events").and_then(Value::as_object);
    let events = events.into_iter().flat_map(Map::values);
    let events = events.filter_map(Value::as_i64).max().unwrap_or(0);
    level(levels, "state_default", STATE_DEFAULT)
        .max(level(levels, "ban", STATE_DEFAULT))
        .max(events)
}

/// Power levels as later versions ask for them: old ones took strings for integers, and let pass what
/// is neither.
fn integers(levels: Map<String, Value>) -> Map<String, Value> {
    let integer = |value: &Value| match value {
        Value::String(text) => text.trim().parse::<i64>().ok(),
        other => other.as_i64(),
    };
    let fixed = levels.into_iter().filter_map(|(key, value)| match value {
        Value::Object(inner) => {
            let inner: Map<String, Value> = inner
                .into_iter()
                .filter_map(|(name, value)| Some((name, integer(&value)?.into())))
                .collect();
            Some((key, inner.into()))
        }
        Value::String(_) | Value::Number(_) => {
            let level = integer(&value)?;
            Some((key, level.into()))
        }
        _ => None,
    });
    fixed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        Object::from(value).0
    }

    #[test]
    fn strings_become_integers_and_other_things_go() {
        let before = object(json!({
            "ban": " 50", "kick": 10, "redact": 1.5, "invite": "many", "odd": null,
            "users": { "@a:hs1": "100", "@b:hs1": [] },
        }));
        let after = json!({ "ban": 50, "kick": 10, "users": { "@a:hs1": 100 } });
        assert_eq!(integers(before), object(after));
    }

    #[test]
    fn what_copying_needs_is_the_highest_of_events_bans_and_state() {
        assert_eq!(highest_needed(&Map::new()), 50);
        let levels = json!({ "state_default": 10, "ban": 20, "events": { "m.room.name": 120 } });
        assert_eq!(highest_needed(&object(levels)), 120);
        let levels = json!({ "state_default": 10, "ban": 70 });
        assert_eq!(highest_needed(&object(levels)), 70);
    }
}
