//! Pushers: whom to tell of a user's notifications, and how.
//!
//! A pusher belongs to the session that set it and ends with it. Which users have pushers is kept in
//! memory, one number for each, so that an event is evaluated for nobody else.
//! Spec: client-server API, "POST /pushers/set"; MSC3881 for `enabled`.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{DeviceId, OwnedDeviceId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Position, Table, Unpack, UserNum},
    kv::Direction,
    rooms::RoomView,
};

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

const PUSHERS: Table<PusherRow> = Table::new(Keyspace::PUSHER);

/// How many pushers a user may have.
pub const PUSHERS_MAX: usize = 50;

/// How many other users may have pushers with the same app ID and push key.
const SHARED_MAX: usize = 1_000;

/// A pusher.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PusherRow {
    /// What kind of app it is.
    pub app_id: String,
    /// Where the gateway finds the device.
    pub pushkey: String,
    /// The app's name, for its user.
    pub app_display_name: String,
    /// The device's name, for its user.
    pub device_display_name: String,
    /// Which rules it heeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_tag: Option<String>,
    /// The language of what it shows.
    pub lang: String,
    /// `url`, `format`, and whatever the gateway wants.
    pub data: Map<String, Value>,
    /// Whether it is told of anything (MSC3881).
    pub enabled: bool,
    /// Whose it is; an application service's has no device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<OwnedDeviceId>,
    /// When it was set, in milliseconds since the epoch.
    pub set_ms: u64,
    /// Up to where it was told of events, while the log's reader is behind that; else older.
    #[serde(default)]
    pub told: Position,
}

/// What a pusher is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PusherKey {
    /// Whose.
    pub user: UserNum,
    /// Of which app.
    pub app_id: String,
    /// For which device.
    pub pushkey: String,
}

impl PusherKey {
    /// The key of a user's pusher.
    pub fn of(user: UserNum, row: &PusherRow) -> Self {
        Self {
            user,
            app_id: row.app_id.clone(),
            pushkey: row.pushkey.clone(),
        }
    }

    fn row(&self) -> Packed {
        let device = device_hash(&self.app_id, &self.pushkey);
        PUSHERS.key().user(self.user).raw(&device)
    }

    fn index(&self) -> Packed {
        index(&self.app_id, &self.pushkey).user(self.user)
    }
}

fn index(app_id: &str, pushkey: &str) -> Packed {
    Packed::key(Keyspace::PUSHER_KEY).raw(&device_hash(app_id, pushkey))
}

/// App ID and push key as they stand in keys: together they may be longer than a key.
fn device_hash(app_id: &str, pushkey: &str) -> [u8; 32] {
    Sha256::digest(json!([app_id, pushkey]).to_string()).into()
}

/// Who has pushers.
#[derive(Debug, Default)]
pub struct Pushers {
    users: Mutex<BTreeSet<UserNum>>,
    /// Held while pushers are changed.
    changing: tokio::sync::Mutex<()>,
}

impl Pushers {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<UserNum>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads who has pushers, at the start.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn load(&self, store: &Store) -> Result<(), StoreError> {
        let mut users = self.lock();
        store.visit(&PUSHERS.key(), Direction::Ascending, |key, _| {
            users.extend(Unpack::key(key).user());
            Ok(true)
        })
    }

    /// Whether a user has pushers, or had.
    pub fn has(&self, user: UserNum) -> bool {
        self.lock().contains(&user)
    }

    /// The users with pushers who are joined to a room.
    pub fn joined(&self, view: &RoomView) -> Vec<UserNum> {
        use store::rooms::Membership::Join;
        let users = self.lock();
        let members = &view.head.members;
        if users.len() <= members.len() {
            let joined = users
                .iter()
                .filter(|user| members.get(*user) == Some(&Join));
            return joined.copied().collect();
        }
        let joined = members
            .iter()
            .filter(|(user, membership)| **membership == Join && users.contains(user));
        joined.map(|(user, _)| *user).collect()
    }

    fn forget(&self, user: UserNum) {
        self.lock().remove(&user);
    }
}

/// A user's pushers.
///
/// # Errors
/// When the store cannot be read.
pub fn of_user(store: &Store, user: UserNum) -> Result<Vec<PusherRow>, StoreError> {
    let rows = store.rows(PUSHERS, &PUSHERS.key().user(user), PUSHERS_MAX)?;
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// The pushers that an event is to be evaluated for. Who has none is not asked for again.
///
/// # Errors
/// When the store cannot be read.
pub fn to_tell(app: &App, user: UserNum) -> Result<Vec<PusherRow>, StoreError> {
    let pushers = of_user(&app.store, user)?;
    if pushers.is_empty()
        && let Ok(_changing) = app.push.pushers.changing.try_lock()
        && of_user(&app.store, user)?.is_empty()
    {
        app.push.pushers.forget(user);
    }
    Ok(pushers)
}

/// One pusher.
///
/// # Errors
/// When the store cannot be read.
pub fn get(store: &Store, key: &PusherKey) -> Result<Option<PusherRow>, StoreError> {
    store.get(PUSHERS, key.row())
}

/// Sets a pusher. Unless `append`, those of other users with the same app ID and push key go: the
/// device has changed hands.
///
/// # Errors
/// `M_UNKNOWN` when the user has too many.
pub async fn set(app: &App, user: UserNum, row: PusherRow, append: bool) -> ApiResult<()> {
    let _changing = app.push.pushers.changing.lock().await;
    let key = PusherKey::of(user, &row);
    let others = of_user(&app.store, user)?;
    let others = others
        .iter()
        .filter(|other| PusherKey::of(user, other) != key);
    if others.count() >= PUSHERS_MAX {
        let message = format!("a user has at most {PUSHERS_MAX} pushers");
        return Err(ApiError::unknown(message));
    }
    let mut commit = Commit::new();
    if !append {
        let mut users = Vec::new();
        let prefix = index(&row.app_id, &row.pushkey);
        let length = prefix.clone().into_bytes().len();
        app.store.visit(&prefix, Direction::Ascending, |key, _| {
            users.extend(key.get(length..).and_then(|rest| Unpack(rest).user()));
            Ok(users.len() < SHARED_MAX)
        })?;
        for other in users.into_iter().filter(|other| *other != user) {
            let other = PusherKey {
                user: other,
                ..key.clone()
            };
            delete_in(&mut commit, &other);
        }
    }
    commit.put(PUSHERS, key.row(), &row);
    commit.put_raw(key.index(), Packed::new());
    app.push.pushers.lock().insert(user);
    app.store.commit(commit).await?;
    Ok(())
}

/// Deletes a pusher, if there is one.
///
/// # Errors
/// When the store cannot be written.
pub async fn delete(app: &App, key: &PusherKey) -> ApiResult<()> {
    let _changing = app.push.pushers.changing.lock().await;
    if get(&app.store, key)?.is_some() {
        let mut commit = Commit::new();
        delete_in(&mut commit, key);
        app.store.commit(commit).await?;
    }
    Ok(())
}

fn delete_in(commit: &mut Commit, key: &PusherKey) {
    commit.delete(key.row());
    commit.delete(key.index());
}

/// Deletes the pushers of a device that ends.
///
/// # Errors
/// When the store cannot be read.
pub fn end_device(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    device: &DeviceId,
) -> Result<(), StoreError> {
    for row in of_user(store, user)? {
        if row.device.as_deref() == Some(device) {
            delete_in(commit, &PusherKey::of(user, &row));
        }
    }
    Ok(())
}

/// Deletes every pusher of a user whose account ends.
///
/// # Errors
/// When the store cannot be read.
pub fn end_user(store: &Store, commit: &mut Commit, user: UserNum) -> Result<(), StoreError> {
    for row in of_user(store, user)? {
        delete_in(commit, &PusherKey::of(user, &row));
    }
    Ok(())
}

/// Notes up to where pushers were told, where the reader of the log is behind that.
///
/// # Errors
/// When the store cannot be read.
pub fn note_told(
    app: &App,
    commit: &mut Commit,
    told: impl IntoIterator<Item = (PusherKey, Position)>,
) -> ApiResult<()> {
    for (key, told) in told {
        if let Some(mut row) = get(&app.store, &key)? {
            row.told = row.told.max(told);
            commit.put(PUSHERS, key.row(), &row);
        }
    }
    Ok(())
}

impl Pushers {
    /// Held while pushers are changed.
    pub async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }
}
