//! Key backup: the keys of encrypted rooms, encrypted by the client, kept for the user's next device.
//!
//! A backup is a numbered version; only the newest takes keys. Spec: client-server API, "Server-side
//! key backups".

use std::collections::BTreeMap;

use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use store::{
    Commit, Store,
    keys::{Keyspace, Packed, Table, Unpack, UserNum},
    kv::Direction,
};

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// How many keys a backup holds.
const KEYS_MAX: u64 = 500_000;

/// How many bytes the JSON of one backed-up key has at most.
const KEY_BYTES_MAX: usize = 65_536;

const BACKUPS: Table<Row> = Table::new(Keyspace::BACKUP);
const KEYS: Table<BackedUp> = Table::new(Keyspace::BACKUP_KEY);

/// A version of a user's backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    algorithm: String,
    auth_data: Box<RawValue>,
    /// How many keys it holds.
    count: u64,
    /// Grows with every change of them.
    etag: u64,
    /// The row stays, so that its number is not given again.
    deleted: bool,
}

/// What a client says of a version.
#[derive(Debug, Deserialize)]
pub struct Description {
    algorithm: String,
    auth_data: Box<RawValue>,
    version: Option<String>,
}

/// One key. Spec: `KeyBackupData`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackedUp {
    first_message_index: u64,
    forwarded_count: u64,
    is_verified: bool,
    session_data: Box<RawValue>,
}

impl BackedUp {
    /// Whether it takes the place of `old`. Spec: "Storing and retrieving keys".
    fn beats(&self, old: &Self) -> bool {
        let rank = |key: &Self| {
            (
                !key.is_verified,
                key.first_message_index,
                key.forwarded_count,
            )
        };
        rank(self) < rank(old)
    }
}

/// Keys of a room by session ID.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    /// The keys.
    pub sessions: BTreeMap<String, BackedUp>,
}

/// Keys by room.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Rooms {
    /// The rooms.
    pub rooms: BTreeMap<OwnedRoomId, Sessions>,
}

/// Which keys of a backup: all, a room's, or one.
#[derive(Clone, Copy, Debug)]
pub struct Which<'a> {
    /// Only this room's.
    pub room: Option<&'a str>,
    /// Only this session's.
    pub session: Option<&'a str>,
}

fn unknown_version() -> ApiError {
    ApiError::not_found("there is no such backup")
}

fn at(user: UserNum, version: u64) -> Packed {
    BACKUPS.key().user(user).u64(version)
}

fn keys_at(user: UserNum, version: u64, which: Which<'_>) -> Packed {
    let mut key = KEYS.key().user(user).u64(version);
    if let Some(room) = which.room {
        key = key.text(room);
        if let Some(session) = which.session {
            key = key.text(session);
        }
    }
    key
}

/// The newest version that was ever made, deleted or not.
fn last(store: &Store, user: UserNum) -> ApiResult<Option<(u64, Row)>> {
    newest(store, user, |_| true)
}

fn newest(
    store: &Store,
    user: UserNum,
    accept: impl Fn(&Row) -> bool,
) -> ApiResult<Option<(u64, Row)>> {
    let mut found = None;
    store.visit(
        &BACKUPS.key().user(user),
        Direction::Descending,
        |key, value| {
            let mut parts = Unpack::key(key);
            let version = parts.user().and(parts.u64());
            found = version.zip(serde_json::from_slice(value).ok());
            Ok(!found.as_ref().is_some_and(|(_, row)| accept(row)))
        },
    )?;
    Ok(found.filter(|(_, row)| accept(row)))
}

fn current(store: &Store, user: UserNum) -> ApiResult<Option<(u64, Row)>> {
    newest(store, user, |row| !row.deleted)
}

fn version_row(store: &Store, user: UserNum, version: &str) -> ApiResult<(u64, Row)> {
    let number: u64 = version.parse().map_err(|_| unknown_version())?;
    let row = store.get(BACKUPS, at(user, number))?;
    let row = row.filter(|row| !row.deleted).ok_or_else(unknown_version)?;
    Ok((number, row))
}

/// Begins a new version, which then is the current one.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn create(app: &App, user: UserNum, description: Description) -> ApiResult<Value> {
    let _turn = app.key_turn.lock(user).await;
    let version = last(&app.store, user)?.map_or(1, |(version, _)| version + 1);
    let row = Row {
        algorithm: description.algorithm,
        auth_data: description.auth_data,
        count: 0,
        etag: 0,
        deleted: false,
    };
    let mut commit = Commit::new();
    commit.put(BACKUPS, at(user, version), &row);
    app.store.commit(commit).await?;
    Ok(json!({ "version": version.to_string() }))
}

/// What is known of a version, or of the current one.
///
/// # Errors
/// `M_NOT_FOUND` when there is none.
pub fn describe(app: &App, user: UserNum, version: Option<&str>) -> ApiResult<Value> {
    let (number, row) = match version {
        Some(version) => version_row(&app.store, user, version)?,
        None => current(&app.store, user)?
            .ok_or_else(|| ApiError::not_found("there is no backup of your keys"))?,
    };
    Ok(json!({
        "algorithm": row.algorithm,
        "auth_data": row.auth_data,
        "count": row.count,
        "etag": row.etag.to_string(),
        "version": number.to_string(),
    }))
}

/// Replaces the `auth_data` of a version.
///
/// # Errors
/// `M_NOT_FOUND` for an unknown version, `M_INVALID_PARAM` for another algorithm or version in the body.
pub async fn update(
    app: &App,
    user: UserNum,
    version: &str,
    description: Description,
) -> ApiResult<()> {
    let _turn = app.key_turn.lock(user).await;
    let (number, mut row) = version_row(&app.store, user, version)?;
    if description.algorithm != row.algorithm {
        return Err(ApiError::invalid_param("a backup keeps its `algorithm`"));
    }
    if description.version.is_some_and(|named| named != version) {
        return Err(ApiError::invalid_param("`version` is not that in the path"));
    }
    row.auth_data = description.auth_data;
    let mut commit = Commit::new();
    commit.put(BACKUPS, at(user, number), &row);
    app.store.commit(commit).await?;
    Ok(())
}

/// Deletes a version with its keys.
///
/// # Errors
/// `M_NOT_FOUND` for an unknown version.
pub async fn delete(app: &App, user: UserNum, version: &str) -> ApiResult<()> {
    let _turn = app.key_turn.lock(user).await;
    let (number, mut row) = version_row(&app.store, user, version)?;
    row.deleted = true;
    row.count = 0;
    let mut commit = Commit::new();
    let all = Which {
        room: None,
        session: None,
    };
    app.store.visit(
        &keys_at(user, number, all),
        Direction::Ascending,
        |key, _| {
            commit.delete(Packed::new().raw(key));
            Ok(true)
        },
    )?;
    commit.put(BACKUPS, at(user, number), &row);
    app.store.commit(commit).await?;
    Ok(())
}

/// Keeps keys in the current version: each where there is none that is better.
///
/// # Errors
/// `M_WRONG_ROOM_KEYS_VERSION` when `version` is not the current one, `M_NOT_FOUND` when it is
/// unknown, `M_TOO_LARGE` for too many or too large keys.
pub async fn put_keys(app: &App, user: UserNum, version: &str, rooms: Rooms) -> ApiResult<Value> {
    let _turn = app.key_turn.lock(user).await;
    let (number, mut row) = version_row(&app.store, user, version)?;
    let newest = current(&app.store, user)?.map_or(number, |(newest, _)| newest);
    if newest != number {
        return Err(ApiError::new(
            http::StatusCode::FORBIDDEN,
            "M_WRONG_ROOM_KEYS_VERSION",
            "keys go to the current version of the backup only",
        )
        .with("current_version", newest.to_string()));
    }
    let mut commit = Commit::new();
    for (room, keys) in rooms.rooms {
        for (session, key) in keys.sessions {
            let which = Which {
                room: Some(room.as_str()),
                session: Some(&session),
            };
            if key.session_data.get().len() > KEY_BYTES_MAX || session.len() > 255 {
                return Err(ApiError::too_large(format!(
                    "a backed-up key has at most {KEY_BYTES_MAX} bytes, its ID 255"
                )));
            }
            let place = keys_at(user, number, which);
            let old = app.store.get(KEYS, place.clone())?;
            row.count += u64::from(old.is_none());
            if old.is_none_or(|old| key.beats(&old)) {
                row.etag += 1;
                commit.put(KEYS, place, &key);
            }
        }
    }
    if row.count > KEYS_MAX {
        return Err(ApiError::too_large(format!(
            "a backup holds at most {KEYS_MAX} keys"
        )));
    }
    if !commit.is_empty() {
        commit.put(BACKUPS, at(user, number), &row);
        app.store.commit(commit).await?;
    }
    Ok(json!({ "etag": row.etag.to_string(), "count": row.count }))
}

/// Keys of a version.
///
/// # Errors
/// `M_NOT_FOUND` for an unknown version.
pub fn keys(app: &App, user: UserNum, version: &str, which: Which<'_>) -> ApiResult<Rooms> {
    let (number, _) = version_row(&app.store, user, version)?;
    let mut rooms = Rooms::default();
    app.store.visit(
        &keys_at(user, number, which),
        Direction::Ascending,
        |key, value| {
            let mut parts = Unpack::key(key);
            let room = parts.user().and(parts.u64()).and(parts.text());
            if let (Some(Ok(room)), Some(session), Ok(key)) = (
                room.map(OwnedRoomId::try_from),
                parts.text(),
                serde_json::from_slice(value),
            ) {
                let of_room = rooms.rooms.entry(room).or_default();
                of_room.sessions.insert(session, key);
            }
            Ok(true)
        },
    )?;
    Ok(rooms)
}

/// Deletes keys of a version.
///
/// # Errors
/// `M_NOT_FOUND` for an unknown version.
pub async fn delete_keys(
    app: &App,
    user: UserNum,
    version: &str,
    which: Which<'_>,
) -> ApiResult<Value> {
    let _turn = app.key_turn.lock(user).await;
    let (number, mut row) = version_row(&app.store, user, version)?;
    let mut commit = Commit::new();
    let mut gone = 0;
    app.store.visit(
        &keys_at(user, number, which),
        Direction::Ascending,
        |key, _| {
            commit.delete(Packed::new().raw(key));
            gone += 1;
            Ok(true)
        },
    )?;
    if gone > 0 {
        row.count = row.count.saturating_sub(gone);
        row.etag += 1;
        commit.put(BACKUPS, at(user, number), &row);
        app.store.commit(commit).await?;
    }
    Ok(json!({ "etag": row.etag.to_string(), "count": row.count }))
}
