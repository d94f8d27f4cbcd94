//! What this server asks of its own users' events beyond the authorisation rules: shapes and promises
//! that other servers would let pass.
//!
//! Nothing here applies to events of other servers. Spec: client-server API, "Room aliases",
//! "Server Access Control Lists (ACLs) for rooms", "Threading"; room version 12, "Power levels".

use federation::event::Draft;
use ruma::{
    OwnedUserId, RoomAliasId, ServerName, UserId,
    events::room::server_acl::RoomServerAclEventContent, room_version_rules::AuthorizationRules,
};
use serde_json::{Map, Value, value::RawValue};

use super::{
    Turn,
    aliases::{self, CANONICAL_ALIAS},
    relations::Relation,
};
use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// The levels of a power level event that stand by themselves.
const LEVELS: [&str; 7] = [
    "users_default",
    "events_default",
    "state_default",
    "ban",
    "kick",
    "redact",
    "invite",
];

/// How long the `key` of an annotation may be, in bytes, as elsewhere.
const ANNOTATION_KEY_BYTES_MAX: usize = 500;

/// That a user of this server may send what a draft says, as far as this server is concerned.
///
/// `new_alias` is an alias that the commit of this very turn makes.
///
/// # Errors
/// `M_BAD_JSON`, `M_INVALID_PARAM`, `M_BAD_ALIAS` or `M_UNKNOWN`, by the rule that is broken.
pub fn check(
    app: &App,
    turn: &Turn,
    draft: &Draft,
    new_alias: Option<&RoomAliasId>,
) -> ApiResult<()> {
    let content = || -> ApiResult<Map<String, Value>> {
        serde_json::from_str(draft.content.get())
            .map_err(|error| ApiError::bad_json(error.to_string()))
    };
    if draft.state_key.as_deref() == Some("") {
        match &*draft.kind {
            "m.room.create" if !turn.head.state.is_empty() => {
                return Err(ApiError::bad_json("a room is created only once"));
            }
            CANONICAL_ALIAS => canonical_alias(app, turn, &content()?, new_alias)?,
            "m.room.power_levels" => {
                power_levels(&content()?, &turn.rules.authorization)?;
                if turn.rules.authorization.explicitly_privilege_room_creators {
                    no_creators(&content()?, turn.powers()?.creators())?;
                }
            }
            "m.room.server_acl" => server_acl(&draft.content, app.server_name())?,
            "m.room.encryption" if !content()?.get("algorithm").is_some_and(Value::is_string) => {
                return Err(ApiError::bad_json(
                    "m.room.encryption names an `algorithm`: encryption cannot be taken back",
                ));
            }
            "m.room.tombstone"
                if content()?.get("replacement_room").and_then(Value::as_str)
                    == Some(turn.room_id.as_str()) =>
            {
                return Err(ApiError::bad_json("a room cannot replace itself"));
            }
            _ => {}
        }
    }
    match Relation::in_content(&draft.content) {
        Some(relation) => relates(turn, &relation),
        None => Ok(()),
    }
}

/// Aliases that are new in a canonical alias event must lead to the room.
///
/// What the present event names may stay, though it leads nowhere any more.
fn canonical_alias(
    app: &App,
    turn: &Turn,
    content: &Map<String, Value>,
    new_alias: Option<&RoomAliasId>,
) -> ApiResult<()> {
    let present = turn.state_event(CANONICAL_ALIAS, "")?;
    let present: Map<String, Value> = present
        .and_then(|event| event.content_as())
        .unwrap_or_default();
    let present = named_aliases(&present).unwrap_or_default();
    for alias in named_aliases(content)? {
        if present.contains(&alias) {
            continue;
        }
        let alias = RoomAliasId::parse(alias)
            .map_err(|_| ApiError::invalid_param(format!("`{alias}` is not a room alias")))?;
        if new_alias == Some(&*alias) {
            continue;
        }
        let row = aliases::find(&app.store, &alias)?;
        if row.is_none_or(|row| row.room != turn.room) {
            return Err(ApiError::bad_alias(format!(
                "the alias {alias} does not lead to this room"
            )));
        }
    }
    Ok(())
}

/// Every alias that a canonical alias event names; an empty or null `alias` is none.
fn named_aliases(content: &Map<String, Value>) -> ApiResult<Vec<&str>> {
    let mut named = Vec::new();
    match content.get("alias") {
        None | Some(Value::Null) => {}
        Some(Value::String(alias)) if alias.is_empty() => {}
        Some(Value::String(alias)) => named.push(alias.as_str()),
        Some(_) => return Err(ApiError::invalid_param("`alias` is not a string")),
    }
    match content.get("alt_aliases") {
        None | Some(Value::Null) => {}
        Some(Value::Array(alt)) => {
            for alias in alt {
                named.push(alias.as_str().ok_or_else(|| {
                    ApiError::invalid_param("an alias in `alt_aliases` is not a string")
                })?);
            }
        }
        Some(_) => return Err(ApiError::invalid_param("`alt_aliases` is not a list")),
    }
    Ok(named)
}

/// The shape of power levels: integers, or what an old room version reads as one; user IDs.
fn power_levels(content: &Map<String, Value>, rules: &AuthorizationRules) -> ApiResult<()> {
    let is_level = |level: &Value| {
        level.is_i64()
            || (!rules.integer_power_levels
                && level
                    .as_str()
                    .is_some_and(|text| text.trim().parse::<i64>().is_ok()))
    };
    for key in LEVELS {
        if content.get(key).is_some_and(|level| !is_level(level)) {
            return Err(ApiError::bad_json(format!("`{key}` is not an integer")));
        }
    }
    for key in ["events", "users", "notifications"] {
        let Some(levels) = content.get(key) else {
            continue;
        };
        let levels = levels
            .as_object()
            .ok_or_else(|| ApiError::bad_json(format!("`{key}` is not an object")))?;
        if let Some((name, _)) = levels.iter().find(|(_, level)| !is_level(level)) {
            return Err(ApiError::bad_json(format!(
                "the level of `{name}` in `{key}` is not an integer"
            )));
        }
        if key == "users"
            && let Some(name) = levels.keys().find(|name| UserId::parse(name).is_err())
        {
            return Err(ApiError::bad_json(format!(
                "`{name}` in `users` is not a user ID"
            )));
        }
    }
    Ok(())
}

/// Creators stand above all levels, and so have none.
fn no_creators(content: &Map<String, Value>, creators: &[OwnedUserId]) -> ApiResult<()> {
    let named = |creator: &&OwnedUserId| {
        let users = content.get("users").and_then(Value::as_object);
        users.is_some_and(|users| users.contains_key(creator.as_str()))
    };
    match creators.iter().find(named) {
        Some(creator) => Err(ApiError::bad_json(format!(
            "{creator} is a creator of the room, whom `users` cannot name"
        ))),
        None => Ok(()),
    }
}

/// An ACL that shuts out this server would shut out its sender.
fn server_acl(content: &RawValue, server_name: &ServerName) -> ApiResult<()> {
    let acl: RoomServerAclEventContent = serde_json::from_str(content.get())
        .map_err(|error| ApiError::bad_json(error.to_string()))?;
    if acl.is_allowed(server_name) {
        return Ok(());
    }
    Err(ApiError::invalid_param(format!(
        "the ACL shuts out this server, {server_name}"
    )))
}

/// What an event relates to is in the same room, and a thread does not begin within another.
fn relates(turn: &Turn, relation: &Relation) -> ApiResult<()> {
    if relation.rel_type == "m.annotation" {
        let key = relation.key.as_deref();
        let key = key.ok_or_else(|| ApiError::bad_json("an annotation has a `key`"))?;
        if key.len() > ANNOTATION_KEY_BYTES_MAX {
            return Err(ApiError::bad_json(format!(
                "the `key` of an annotation has at most {ANNOTATION_KEY_BYTES_MAX} bytes"
            )));
        }
    }
    // An event that is not known here may be known to the sender: history can be incomplete.
    let Some(target) = turn.pdu(&relation.target)? else {
        return Ok(());
    };
    if target.room_id() != turn.room_id {
        return Err(ApiError::unknown(
            "what an event relates to is in the same room",
        ));
    }
    if relation.rel_type == "m.thread" && Relation::of(&target).is_some() {
        return Err(ApiError::unknown(
            "a thread does not begin at an event that relates to another",
        ));
    }
    Ok(())
}
