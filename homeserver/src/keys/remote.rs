//! Keys of users of other servers: asked for, and remembered while a room is shared.
//!
//! Who shares a room tells when something changed ([`update`], [`signing_keys`]). A change that follows the
//! one that was known last is applied; any other makes what is known *stale*, and the whole list is fetched
//! when somebody asks for it next. So a server that tells many changes makes no requests of ours, and a user
//! is asked for by one request at a time. Of who shares no room nothing is remembered, as nobody would tell
//! when it changes.
//! Spec: server-server API, "Device Management", "End-to-End Encryption".

mod ask;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ruma::{
    OwnedDeviceId, OwnedUserId, UserId,
    api::federation::{
        device::get_devices,
        transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
    },
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use store::{
    Commit, Store,
    keys::{Keyspace, Packed, Table, Unpack, UserNum},
    kv::Direction,
    rooms::Membership,
};

pub use self::ask::{ASK_TIMEOUT_DEFAULT, ASK_TIMEOUT_MAX, Found, claim, query};
use super::{
    check_device_keys,
    lists::{self, What},
    signing::{self, Key, Usage},
};
use crate::{
    error::ApiResult,
    peers::{self, PeerError},
    rooms::receive::is_resident,
    server::App,
};

/// How many devices of a user are remembered; the others do not exist here.
const DEVICES_MAX: usize = 1_000;

/// How large the keys of a device, or a cross-signing key, may be, in bytes.
const KEY_BYTES_MAX: usize = 64 << 10;

/// How long the name of a device may be, in bytes; a longer one is left out.
const NAME_BYTES_MAX: usize = 1_024;

const USERS: Table<RemoteUser> = Table::new(Keyspace::REMOTE_USER);
const DEVICES: Table<RemoteDevice> = Table::new(Keyspace::REMOTE_DEVICE);

/// What is known of a user of another server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct RemoteUser {
    /// The last change that is known, by their server's numbers.
    stream_id: u64,
    /// Something changed since that is not known.
    stale: bool,
    master_key: Option<Key>,
    self_signing_key: Option<Key>,
}

/// What is known of a device of a user of another server.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RemoteDevice {
    /// Its identity keys; a device without any is not remembered.
    keys: Map<String, Value>,
    name: Option<String>,
}

/// Whose devices are being fetched.
#[derive(Debug, Default)]
pub struct Fetching(Mutex<BTreeMap<UserNum, Arc<Flight>>>);

/// One user's devices are being fetched.
#[derive(Debug, Default)]
struct Flight {
    turn: tokio::sync::Mutex<()>,
    /// The newest change that was told meanwhile.
    told: AtomicU64,
}

impl Fetching {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<UserNum, Arc<Flight>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, user: UserNum) -> Arc<Flight> {
        self.lock().entry(user).or_default().clone()
    }

    /// Ends a flight, unless somebody else is in it.
    fn leave(&self, user: UserNum, flight: Arc<Flight>) {
        let mut flights = self.lock();
        drop(flight);
        if flights
            .get(&user)
            .is_some_and(|flight| Arc::strong_count(flight) == 1)
        {
            flights.remove(&user);
        }
    }

    fn told(&self, user: UserNum, stream_id: u64) {
        if let Some(flight) = self.lock().get(&user) {
            flight.told.fetch_max(stream_id, Ordering::Relaxed);
        }
    }
}

fn user_key(user: UserNum) -> Packed {
    USERS.key().user(user)
}

fn device_key(user: UserNum, device: &str) -> Packed {
    DEVICES.key().user(user).text(device)
}

/// Whether a user is in any room that a user of this server is in.
///
/// # Errors
/// When the store cannot be read.
pub fn is_met(app: &App, user: UserNum) -> ApiResult<bool> {
    for (room, row) in app.store.user_rooms(user)? {
        if row.membership != Membership::Join {
            continue;
        }
        // What was left stands as it was then.
        if let Some(view) = app.store.room(room)?
            && is_resident(app, &view)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The master key of a user of another server, if it is known.
///
/// # Errors
/// When the store cannot be read.
pub fn master_key(store: &Store, user: UserNum) -> ApiResult<Option<Key>> {
    Ok(store
        .get(USERS, user_key(user))?
        .and_then(|row| row.master_key))
}

/// A device of a user of another server changed: their server says so, and the user is in a room here.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn update(app: &App, user: UserNum, content: &DeviceListUpdateContent) -> ApiResult<()> {
    let _turn = app.key_turn.lock(user).await;
    let stream_id = u64::from(content.stream_id);
    app.fetching.told(user, stream_id);
    let mut commit = Commit::new();
    let known = app.store.get(USERS, user_key(user))?;
    // Told of a device without keys, nobody whose server has never looked need look.
    if known.is_none() && content.keys.is_none() && content.deleted != Some(true) {
        return Ok(());
    }
    if let Some(mut row) = known {
        if !row.stale && row.stream_id == stream_id {
            return Ok(());
        }
        let known = row.stream_id;
        let follows = content.prev_id.iter().any(|id| u64::from(*id) == known);
        if !row.stale && follows && stream_id > known {
            row.stream_id = stream_id;
            put_device(app, &mut commit, user, content)?;
        } else {
            row.stale = true;
        }
        commit.put(USERS, user_key(user), &row);
    }
    lists::note(&app.store, &mut commit, user, What::Anything)?;
    app.store.commit(commit).await?;
    Ok(())
}

fn put_device(
    app: &App,
    commit: &mut Commit,
    user: UserNum,
    content: &DeviceListUpdateContent,
) -> ApiResult<()> {
    let key = device_key(user, content.device_id.as_str());
    if content.deleted == Some(true) {
        commit.delete(key);
        return Ok(());
    }
    let keys = content.keys.as_ref().and_then(object);
    let keys = match keys {
        Some(keys) => device_keys(keys, &content.user_id, &content.device_id),
        // Only its name is told.
        None => app.store.get(DEVICES, key.clone())?.map(|row| row.keys),
    };
    let known = app.store.get(DEVICES, key.clone())?.is_some();
    match keys {
        Some(keys) if known || devices(&app.store, user)?.len() < DEVICES_MAX => {
            let name = name(content.device_display_name.as_deref());
            commit.put(DEVICES, key, &RemoteDevice { keys, name });
        }
        _ => {}
    }
    Ok(())
}

/// Cross-signing keys of a user of another server changed: their server says so, and the user is in a room
/// here.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn signing_keys(
    app: &App,
    user: UserNum,
    content: &SigningKeyUpdateContent,
) -> ApiResult<()> {
    let _turn = app.key_turn.lock(user).await;
    let mut commit = Commit::new();
    if let Some(mut row) = app.store.get(USERS, user_key(user))? {
        let read = |raw: &Option<Raw<_>>, usage| {
            let key = raw.as_ref().and_then(object)?;
            signing_key(key, &content.user_id, usage)
        };
        row.master_key = read(&content.master_key, Usage::Master).or(row.master_key);
        row.self_signing_key =
            read(&content.self_signing_key, Usage::SelfSigning).or(row.self_signing_key);
        commit.put(USERS, user_key(user), &row);
    }
    lists::note(&app.store, &mut commit, user, What::Anything)?;
    app.store.commit(commit).await?;
    Ok(())
}

/// A user of another server left a room, or this server did: what is known of them is forgotten with the last one. Who is still,
/// or again, in a room may have changed something in between.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn left(app: &App, user: UserNum) -> ApiResult<()> {
    let Some(mut row) = app.store.get(USERS, user_key(user))? else {
        return Ok(());
    };
    let mut commit = Commit::new();
    if is_met(app, user)? {
        row.stale = true;
        commit.put(USERS, user_key(user), &row);
    } else {
        commit.delete(user_key(user));
        forget_devices(app, &mut commit, user)?;
    }
    app.store.commit(commit).await?;
    Ok(())
}

fn forget_devices(app: &App, commit: &mut Commit, user: UserNum) -> ApiResult<()> {
    let prefix = DEVICES.key().user(user);
    app.store.visit(&prefix, Direction::Ascending, |key, _| {
        commit.delete(Packed::new().raw(key));
        Ok(true)
    })?;
    Ok(())
}

fn devices(store: &Store, user: UserNum) -> ApiResult<BTreeMap<OwnedDeviceId, RemoteDevice>> {
    let rows = store.rows(DEVICES, &DEVICES.key().user(user), DEVICES_MAX)?;
    let devices = rows.into_iter().filter_map(|(key, row)| {
        let mut parts = Unpack(&key);
        let id = parts.user().and(parts.text())?;
        Some((id.into(), row))
    });
    Ok(devices.collect())
}

/// Fetches the devices of a user who is in a room here, unless somebody else just did.
///
/// # Errors
/// When their server does not tell, or the store cannot be read or written.
async fn fetch(app: &App, user: UserNum, user_id: &UserId) -> ApiResult<Result<(), PeerError>> {
    let flight = app.fetching.join(user);
    let fetched = {
        let _turn = flight.turn.lock().await;
        fetch_in_turn(app, user, user_id, &flight).await
    };
    app.fetching.leave(user, flight);
    fetched
}

async fn fetch_in_turn(
    app: &App,
    user: UserNum,
    user_id: &UserId,
    flight: &Flight,
) -> ApiResult<Result<(), PeerError>> {
    let known = app.store.get(USERS, user_key(user))?;
    if known.is_some_and(|row| !row.stale) {
        return Ok(Ok(()));
    }
    flight.told.store(0, Ordering::Relaxed);
    let request = get_devices::v1::Request::new(user_id.to_owned());
    let answer = match peers::ask(app, user_id.server_name(), request).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let _turn = app.key_turn.lock(user).await;
    let stream_id = u64::from(answer.stream_id);
    let read = |raw: &Option<Raw<_>>, usage| {
        let key = raw.as_ref().and_then(object)?;
        signing_key(key, user_id, usage)
    };
    let row = RemoteUser {
        stream_id,
        stale: flight.told.load(Ordering::Relaxed) > stream_id,
        master_key: read(&answer.master_key, Usage::Master),
        self_signing_key: read(&answer.self_signing_key, Usage::SelfSigning),
    };
    let mut commit = Commit::new();
    forget_devices(app, &mut commit, user)?;
    for device in answer.devices.iter().take(DEVICES_MAX) {
        let keys = object(&device.keys);
        let keys = keys.and_then(|keys| device_keys(keys, user_id, &device.device_id));
        if let Some(keys) = keys {
            let name = name(device.device_display_name.as_deref());
            let key = device_key(user, device.device_id.as_str());
            commit.put(DEVICES, key, &RemoteDevice { keys, name });
        }
    }
    commit.put(USERS, user_key(user), &row);
    app.store.commit(commit).await?;
    Ok(Ok(()))
}

/// What is remembered of a user's devices and keys, into `found`. Whether it is all of it, and up to date.
fn recall(
    app: &App,
    found: &mut Found,
    user: UserNum,
    user_id: &OwnedUserId,
    asked: &[OwnedDeviceId],
) -> ApiResult<bool> {
    let Some(row) = app.store.get(USERS, user_key(user))? else {
        return Ok(false);
    };
    let mut of_user = BTreeMap::new();
    for (device, row) in devices(&app.store, user)? {
        if asked.is_empty() || asked.contains(&device) {
            of_user.insert(device, with_name(row.keys, row.name));
        }
    }
    found.devices.insert(user_id.clone(), of_user);
    found.put_signing_keys(user_id, row.master_key, row.self_signing_key);
    Ok(!row.stale)
}

fn with_name(mut keys: Map<String, Value>, name: Option<String>) -> Map<String, Value> {
    keys.remove("unsigned");
    if let Some(name) = name {
        let unsigned = json!({ "device_display_name": name });
        keys.insert("unsigned".to_owned(), unsigned);
    }
    keys
}

fn name(name: Option<&str>) -> Option<String> {
    name.filter(|name| name.len() <= NAME_BYTES_MAX)
        .map(ToOwned::to_owned)
}

fn object<T>(raw: &Raw<T>) -> Option<Map<String, Value>> {
    let json = raw.json().get();
    (json.len() <= KEY_BYTES_MAX)
        .then(|| serde_json::from_str(json).ok())
        .flatten()
}

/// Keys of a device as they are remembered: of the right device, with signatures of its user only.
fn device_keys(
    mut keys: Map<String, Value>,
    user_id: &UserId,
    device: &ruma::DeviceId,
) -> Option<Map<String, Value>> {
    check_device_keys(&keys, user_id, device).ok()?;
    signing::keep_own_signatures(&mut keys, user_id);
    Some(keys)
}

/// A cross-signing key as it is remembered: of the right user and usage, with signatures of its user only.
fn signing_key(mut key: Key, user_id: &UserId, usage: Usage) -> Option<Key> {
    let of_user = key.get("user_id").and_then(Value::as_str) == Some(user_id.as_str());
    let usages = key.get("usage").and_then(Value::as_array);
    let is_for = usages.is_some_and(|usages| usages.contains(&usage.as_str().into()));
    let has_key = signing::public_key(&key).is_some();
    (of_user && is_for && has_key).then(|| {
        signing::keep_own_signatures(&mut key, user_id);
        key
    })
}
