//! Room aliases and the published directory.
//!
//! Spec: client-server API, "Room aliases", "Published room directory".

use ruma::{OwnedRoomAliasId, OwnedUserId, RoomAliasId, UserId};
use serde::{Deserialize, Serialize};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, RoomNum, Table, Unpack},
    kv::Direction,
};
use tokio::sync::OwnedMutexGuard;

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

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
/// `M_INVALID_PARAM` when it is another server's, `M_ROOM_IN_USE` when it is taken.
pub async fn reserve(app: &App, alias: &RoomAliasId) -> ApiResult<Reserved> {
    if alias.server_name() != app.server_name() {
        return Err(ApiError::invalid_param(
            "the alias is not one of this server",
        ));
    }
    let lock = app.rooms.lock_aliases().await;
    if find(&app.store, alias)?.is_some() {
        return Err(ApiError::room_in_use("the alias is taken"));
    }
    Ok(Reserved(lock))
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
