//! Room aliases and the published directory.
//!
//! Spec: client-server API, "Room aliases", "Published room directory".

use federation::event::Draft;
use http::StatusCode;
use ruma::{OwnedRoomAliasId, OwnedUserId, RoomAliasId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, RoomNum, Table, Unpack},
    kv::Direction,
    rooms::Membership,
};
use tokio::sync::OwnedMutexGuard;

use super::{Turn, read::known_room, turn::Append};
use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    server::App,
};

/// How many aliases of this server a room may have.
const ROOM_ALIASES_MAX: usize = 1_000;

const ALIASES: Table<AliasRow> = Table::new(Keyspace::ALIAS);

/// Where an alias of this server leads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AliasRow {
    /// The room.
    pub room: RoomNum,
    /// Who made it.
    pub creator: OwnedUserId,
}

/// The right to make one alias, or to remove one.
#[derive(Debug)]
pub struct Reserved(#[expect(dead_code, reason = "held, not read")] OwnedMutexGuard<()>);

/// Reserves an alias of this server that is not taken, until the result is dropped.
///
/// # Errors
/// `M_INVALID_PARAM` when it is another server's or has white space in it, `M_EXCLUSIVE` when the
/// caller may not have such an alias, `M_ROOM_IN_USE` when it is taken.
pub async fn reserve(app: &App, caller: &Caller, alias: &RoomAliasId) -> ApiResult<Reserved> {
    must_be_of_this_server(app, alias)?;
    if alias.alias().contains(char::is_whitespace) {
        return Err(ApiError::invalid_param("an alias has no white space"));
    }
    app.appservices
        .check_alias(alias.as_str(), caller.service.as_deref())?;
    let lock = app.rooms.lock_aliases().await;
    if find(&app.store, alias)?.is_some() {
        return Err(ApiError::room_in_use("the alias is taken"));
    }
    Ok(Reserved(lock))
}

fn must_be_of_this_server(app: &App, alias: &RoomAliasId) -> ApiResult<()> {
    if alias.server_name() == app.server_name() {
        return Ok(());
    }
    Err(ApiError::invalid_param(
        "the alias is not one of this server",
    ))
}

/// Makes an alias of a room that the caller is joined to; application services and admins of this
/// server need not be.
///
/// # Errors
/// As [`reserve`]; `M_NOT_FOUND` when the room is not known, `M_FORBIDDEN` when the caller is not in
/// it, `M_INVALID_PARAM` when it has as many aliases as a room can have.
pub async fn create(
    app: &App,
    caller: &Caller,
    alias: &RoomAliasId,
    room_id: &RoomId,
) -> ApiResult<()> {
    let _reserved = reserve(app, caller, alias).await?;
    let (room, view) = known_room(app, room_id)?;
    let joined = view.head.membership(caller.user) == Membership::Join;
    if !joined && caller.service.is_none() && !caller.account.admin {
        return Err(ApiError::forbidden(
            "only who is in a room makes an alias of it",
        ));
    }
    if of_room(&app.store, room)?.len() >= ROOM_ALIASES_MAX {
        return Err(ApiError::invalid_param(format!(
            "a room has at most {ROOM_ALIASES_MAX} aliases of one server"
        )));
    }
    let mut commit = Commit::new();
    put(&mut commit, alias, room, &caller.user_id);
    app.store.commit(commit).await?;
    Ok(())
}

/// Removes an alias: its maker may, an admin of this server, an application service in whose
/// namespaces it is, and whoever has the power to change the room's canonical alias.
///
/// An `m.room.canonical_alias` that names it is updated in the caller's name, if they may.
///
/// # Errors
/// `M_NOT_FOUND` when there is no such alias, `M_FORBIDDEN` when the caller may not, `M_EXCLUSIVE`
/// when it is reserved.
pub async fn delete(app: &App, caller: &Caller, alias: &RoomAliasId) -> ApiResult<()> {
    must_be_of_this_server(app, alias)?;
    let _lock = app.rooms.lock_aliases().await;
    let row =
        find(&app.store, alias)?.ok_or_else(|| ApiError::not_found("there is no such alias"))?;
    app.appservices
        .check_alias(alias.as_str(), caller.service.as_deref())?;
    let mut commit = Commit::new();
    remove(&mut commit, alias, row.room);
    let turn = match app.store.room_id(row.room)? {
        Some(room_id) => match app.rooms.turn(app, &room_id).await {
            Ok(turn) => Some(turn),
            Err(error) if error.status == StatusCode::NOT_FOUND => None,
            Err(error) => return Err(error),
        },
        None => None,
    };
    let entitled =
        row.creator == caller.user_id || caller.account.admin || caller.service.is_some();
    let Some(mut turn) = turn else {
        if !entitled {
            return Err(may_not_delete());
        }
        app.store.commit(commit).await?;
        return Ok(());
    };
    if !entitled && !may_list(&turn, caller)? {
        return Err(may_not_delete());
    }
    forget_canonical(app, &mut turn, &mut commit, caller, alias).await?;
    turn.finish(commit).await?.flushed().await?;
    Ok(())
}

fn may_not_delete() -> ApiError {
    ApiError::forbidden("an alias is removed by its maker or by who may set the canonical alias")
}

/// Whether the caller is joined and has the power to set the canonical alias, which is what the
/// published directory asks for too.
///
/// # Errors
/// When the store cannot be read.
pub fn may_list(turn: &Turn, caller: &Caller) -> ApiResult<bool> {
    Ok(turn.head.membership(caller.user) == Membership::Join
        && turn
            .powers()?
            .can_send(&caller.user_id, CANONICAL_ALIAS, Some("")))
}

/// The event type that names a room's main alias.
pub const CANONICAL_ALIAS: &str = "m.room.canonical_alias";

/// Takes an alias out of the canonical alias event, if it is in there and the caller may.
async fn forget_canonical(
    app: &App,
    turn: &mut Turn,
    commit: &mut Commit,
    caller: &Caller,
    alias: &RoomAliasId,
) -> ApiResult<()> {
    let present = turn.state_event(CANONICAL_ALIAS, "")?;
    let content: Option<Map<String, Value>> = present.and_then(|event| event.content_as());
    let Some(content) = content else {
        return Ok(());
    };
    let (_, left) = split_canonical(&content, |other| other == alias.as_str());
    if left == content {
        return Ok(());
    }
    let content =
        serde_json::value::to_raw_value(&left).map_err(|error| ApiError::internal(&error))?;
    let append = Append {
        sender: caller.user_id.clone(),
        draft: Draft::state(CANONICAL_ALIAS, "", content),
        origin_server_ts: app.clock.now(),
        txn: None,
    };
    match turn.append(commit, append).await {
        Ok(_) => Ok(()),
        // The alias goes all the same: its maker may have no power in the room.
        Err(error) if error.status == StatusCode::FORBIDDEN => Ok(()),
        Err(error) => Err(error),
    }
}

/// Splits the content of a canonical alias event into the aliases that are `taken` and the rest.
///
/// What has another shape than it should stays in the rest.
pub fn split_canonical(
    content: &Map<String, Value>,
    taken: impl Fn(&str) -> bool,
) -> (Map<String, Value>, Map<String, Value>) {
    let (mut of_taken, mut rest) = (Map::new(), content.clone());
    let is_taken = |alias: &Value| alias.as_str().is_some_and(&taken);
    if let Some(alias) = content.get("alias").filter(|alias| is_taken(alias)) {
        of_taken.insert("alias".to_owned(), alias.clone());
        rest.remove("alias");
    }
    if let Some(Value::Array(alt)) = content.get("alt_aliases") {
        let (gone, left): (Vec<Value>, Vec<Value>) = alt.iter().cloned().partition(is_taken);
        if !gone.is_empty() {
            of_taken.insert("alt_aliases".to_owned(), gone.into());
            rest.remove("alt_aliases");
            if !left.is_empty() {
                rest.insert("alt_aliases".to_owned(), left.into());
            }
        }
    }
    (of_taken, rest)
}

/// Moves every alias of this server, and the place in the published directory, to another room.
///
/// The caller holds [`lock`].
///
/// # Errors
/// When the store cannot be read.
pub fn move_all(
    store: &Store,
    commit: &mut Commit,
    from: RoomNum,
    to: RoomNum,
) -> Result<(), StoreError> {
    for alias in of_room(store, from)? {
        if let Some(row) = find(store, &alias)? {
            remove(commit, &alias, from);
            put(commit, &alias, to, &row.creator);
        }
    }
    if is_published(store, from)? {
        unpublish(commit, from);
        publish(commit, to);
    }
    Ok(())
}

/// Waits for the right to change any alias. Taken before the turn of a room, never within one.
pub async fn lock(app: &App) -> Reserved {
    Reserved(app.rooms.lock_aliases().await)
}

/// Where an alias of this server leads.
///
/// # Errors
/// When the store cannot be read.
pub fn find(store: &Store, alias: &RoomAliasId) -> Result<Option<AliasRow>, StoreError> {
    store.get(ALIASES, ALIASES.key().text(alias.as_str()))
}

/// Makes an alias.
pub fn put(commit: &mut Commit, alias: &RoomAliasId, room: RoomNum, creator: &UserId) {
    let row = AliasRow {
        room,
        creator: creator.to_owned(),
    };
    commit.put(ALIASES, ALIASES.key().text(alias.as_str()), &row);
    commit.put_raw(room_alias_key(room).text(alias.as_str()), Packed::new());
}

/// Removes an alias.
pub fn remove(commit: &mut Commit, alias: &RoomAliasId, room: RoomNum) {
    commit.delete(ALIASES.key().text(alias.as_str()));
    commit.delete(room_alias_key(room).text(alias.as_str()));
}

/// The aliases of this server that lead to a room, sorted.
///
/// # Errors
/// When the store cannot be read.
pub fn of_room(store: &Store, room: RoomNum) -> Result<Vec<OwnedRoomAliasId>, StoreError> {
    let mut aliases = Vec::new();
    store.visit(&room_alias_key(room), Direction::Ascending, |key, _| {
        let mut parts = Unpack::key(key);
        let alias = parts
            .room()
            .and_then(|_| parts.text())
            .and_then(|text| text.try_into().ok());
        aliases.extend(alias);
        Ok(true)
    })?;
    Ok(aliases)
}

fn room_alias_key(room: RoomNum) -> Packed {
    Packed::key(Keyspace::ROOM_ALIAS).room(room)
}

/// Puts a room into the published directory.
pub fn publish(commit: &mut Commit, room: RoomNum) {
    commit.put_raw(Packed::key(Keyspace::PUBLISHED).room(room), Packed::new());
}

/// Takes a room out of the published directory.
pub fn unpublish(commit: &mut Commit, room: RoomNum) {
    commit.delete(Packed::key(Keyspace::PUBLISHED).room(room));
}

/// Whether a room is in the published directory.
///
/// # Errors
/// When the store cannot be read.
pub fn is_published(store: &Store, room: RoomNum) -> Result<bool, StoreError> {
    Ok(store
        .get_raw(Packed::key(Keyspace::PUBLISHED).room(room))?
        .is_some())
}

/// Every room in the published directory, at most `limit`.
///
/// # Errors
/// When the store cannot be read.
pub fn published(store: &Store, limit: usize) -> Result<Vec<RoomNum>, StoreError> {
    let mut rooms = Vec::new();
    store.visit(
        &Packed::key(Keyspace::PUBLISHED),
        Direction::Ascending,
        |key, _| {
            rooms.extend(Unpack::key(key).room());
            Ok(rooms.len() < limit)
        },
    )?;
    Ok(rooms)
}
