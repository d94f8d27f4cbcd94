//! Account data: what clients keep on the server for their user, and what of it the server heeds.
//!
//! Spec: client-server API, "Client Config", "Ignoring Users".

use ruma::events::ignored_user_list::IgnoredUserListEventContent;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    kv::Direction,
    log::Change,
};

/// How many users' changes can be in progress without one waiting for another, at best.
const TURNS: usize = 64;

/// Held while a piece of account data is read, changed and written: tags, push rules.
///
/// A user's changes come one after the other; two users who share a turn wait for each other, too.
#[derive(Debug)]
pub struct Turns([tokio::sync::Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| tokio::sync::Mutex::default()))
    }
}

impl Turns {
    /// Waits for a user's turn. Hold it until the change is committed.
    pub async fn of(&self, user: UserNum) -> tokio::sync::MutexGuard<'_, ()> {
        let place = usize::try_from(user.0 % TURNS as u64).unwrap_or(0);
        let turn = self.0.get(place).expect("a remainder is below its divisor");
        turn.lock().await
    }
}

/// Account data with the position at which it was set.
#[derive(Debug)]
pub struct AccountData {
    /// The room, for what belongs to one.
    pub room: Option<RoomNum>,
    /// The type.
    pub kind: String,
    /// The content; `None` for what was deleted.
    pub content: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    content: Box<RawValue>,
}

fn key(user: UserNum, room: Option<RoomNum>, kind: &str) -> Packed {
    Packed::key(Keyspace::ACCOUNT_DATA)
        .user(user)
        .u64(room.map_or(0, |room| room.0))
        .text(kind)
}

fn change_key(user: UserNum) -> Packed {
    Packed::key(Keyspace::ACCOUNT_DATA_CHANGE).user(user)
}

/// One piece of account data; `None` when it was never set, or deleted.
///
/// # Errors
/// When the store cannot be read.
pub fn get(
    store: &Store,
    user: UserNum,
    room: Option<RoomNum>,
    kind: &str,
) -> Result<Option<Box<RawValue>>, StoreError> {
    Ok(get_row(store, user, room, kind)?.map(|(_, content)| content))
}

/// One piece of account data as `T`; `None` also when it has another shape.
///
/// # Errors
/// When the store cannot be read.
pub fn get_as<T: serde::de::DeserializeOwned>(
    store: &Store,
    user: UserNum,
    room: Option<RoomNum>,
    kind: &str,
) -> Result<Option<T>, StoreError> {
    Ok(get(store, user, room, kind)?.and_then(|content| serde_json::from_str(content.get()).ok()))
}

/// The position at which a piece of account data was last set; 0 if it never was.
///
/// # Errors
/// When the store cannot be read.
pub fn set_at(
    store: &Store,
    user: UserNum,
    room: Option<RoomNum>,
    kind: &str,
) -> Result<Position, StoreError> {
    let value = store.get_raw(key(user, room, kind))?;
    Ok(value
        .and_then(|value| Unpack(&value).position())
        .unwrap_or(0))
}

fn get_row(
    store: &Store,
    user: UserNum,
    room: Option<RoomNum>,
    kind: &str,
) -> Result<Option<(Position, Box<RawValue>)>, StoreError> {
    let Some(value) = store.get_raw(key(user, room, kind))? else {
        return Ok(None);
    };
    let mut parts = Unpack(&value);
    let Some(position) = parts.position() else {
        return Ok(None);
    };
    let row: Option<Row> = serde_json::from_slice(parts.0).ok();
    Ok(row.map(|row| (position, row.content)))
}

/// Sets a piece of account data. An empty object is what remains of a deleted one (MSC3391).
///
/// # Errors
/// When the store cannot be read.
pub fn put(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    room: Option<RoomNum>,
    kind: &str,
    content: &RawValue,
) -> Result<(), StoreError> {
    if let Some((position, _)) = get_row(store, user, room, kind)? {
        let order = i64::try_from(position).unwrap_or(i64::MAX);
        commit.delete(change_key(user).i64(order));
    }
    let entry = commit.log(Change::AccountData { user, room });
    let row = serde_json::to_vec(&Row {
        content: content.to_owned(),
    })
    .expect("raw JSON always serialises");
    commit.put_raw_at(
        entry,
        key(user, room, kind),
        Packed::new().position().raw(&row),
    );
    let changed = Packed::new().u64(room.map_or(0, |room| room.0)).text(kind);
    commit.put_raw_at(entry, change_key(user).position(), changed);
    Ok(())
}

/// What changed for a user in `since < position <= until`, each piece once.
///
/// # Errors
/// When the store cannot be read.
pub fn changed(
    store: &Store,
    user: UserNum,
    since: Position,
    until: Position,
) -> Result<Vec<AccountData>, StoreError> {
    let bound = |position: Position| {
        change_key(user)
            .i64(i64::try_from(position).unwrap_or(i64::MAX))
            .into_bytes()
    };
    let mut named = Vec::new();
    store.visit_range(
        &bound(since + 1),
        &bound(until + 1),
        Direction::Ascending,
        |_, value| {
            let mut parts = Unpack(value);
            named.extend(parts.u64().zip(parts.text()));
            Ok(true)
        },
    )?;
    let mut out = Vec::new();
    for (room, kind) in named {
        let room = (room != 0).then_some(RoomNum(room));
        if let Some(content) = get(store, user, room, &kind)? {
            out.push(AccountData {
                room,
                kind,
                content,
            });
        }
    }
    Ok(out)
}

/// All account data of a user that is not deleted: global and of every room.
///
/// # Errors
/// When the store cannot be read.
pub fn all(store: &Store, user: UserNum) -> Result<Vec<AccountData>, StoreError> {
    all_behind(store, &Packed::key(Keyspace::ACCOUNT_DATA).user(user))
}

fn all_behind(store: &Store, prefix: &Packed) -> Result<Vec<AccountData>, StoreError> {
    let mut out = Vec::new();
    store.visit(prefix, Direction::Ascending, |key, value| {
        let mut parts = Unpack::key(key);
        let named = parts.user().and_then(|_| parts.u64()).zip(parts.text());
        let mut value = Unpack(value);
        let row: Option<Row> = value
            .position()
            .and_then(|_| serde_json::from_slice(value.0).ok());
        if let (Some((room, kind)), Some(row)) = (named, row)
            && row.content.get() != "{}"
        {
            let room = (room != 0).then_some(RoomNum(room));
            out.push(AccountData {
                room,
                kind,
                content: row.content,
            });
        }
        Ok(true)
    })?;
    Ok(out)
}

/// The account data of a user in one room that is not deleted.
///
/// # Errors
/// When the store cannot be read.
pub fn of_room(
    store: &Store,
    user: UserNum,
    room: RoomNum,
) -> Result<Vec<AccountData>, StoreError> {
    all_behind(
        store,
        &Packed::key(Keyspace::ACCOUNT_DATA).user(user).room(room),
    )
}

/// Whether `user` ignores `sender`. Spec: client-server API, "Ignoring Users".
///
/// # Errors
/// When the store cannot be read.
pub fn ignored_by(store: &Store, user: UserNum) -> Result<Vec<ruma::OwnedUserId>, StoreError> {
    let list: Option<IgnoredUserListEventContent> =
        get_as(store, user, None, "m.ignored_user_list")?;
    Ok(list
        .map(|list| list.ignored_users.into_keys().collect())
        .unwrap_or_default())
}
