//! Keys of devices, for end-to-end encryption: what clients publish, look up and claim.
//!
//! Nothing here is secret. Device keys are not checked cryptographically: clients verify what they get.
//! [`lists`] tells who has to look again, [`signing`] keeps who vouches for what, [`backup`] and
//! [`dehydrated`] carry keys over to a user's next device, [`remote`] asks other servers for the keys of their users.
//! Spec: client-server API, "Key management API".

pub mod backup;
pub mod dehydrated;
pub mod lists;
pub mod remote;
pub mod signing;

use std::collections::{BTreeMap, BTreeSet};

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use store::{
    Commit, Store,
    keys::{Keyspace, Packed, Table, Unpack, UserNum},
    kv::Direction,
    log::Change,
};

use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// How many one-time keys of one algorithm a device may have waiting.
const ONE_TIME_KEYS_MAX: usize = 1_000;

/// How many devices one request may look up or claim keys of.
const DEVICES_ASKED_MAX: usize = 20_000;

/// The algorithm whose count is told even when it is zero: clients make new keys on seeing it.
const SIGNED_CURVE25519: &str = "signed_curve25519";

const DEVICE_KEYS: Table<Map<String, Value>> = Table::new(Keyspace::DEVICE_KEYS);
const ONE_TIME_KEYS: Table<KeyRow> = Table::new(Keyspace::ONE_TIME_KEY);
const FALLBACK_KEYS: Table<FallbackRow> = Table::new(Keyspace::FALLBACK_KEY);

/// Keys by their ID, `algorithm:name`.
pub type KeysById = BTreeMap<String, Box<RawValue>>;

/// How many locks stand for all users.
const SHARDS: usize = 64;

/// Held while the keys of a user change: a one-time key is given to one claimer only.
#[derive(Debug)]
pub struct KeyTurn([tokio::sync::Mutex<()>; SHARDS]);

impl Default for KeyTurn {
    fn default() -> Self {
        Self(std::array::from_fn(|_| tokio::sync::Mutex::default()))
    }
}

/// Some locks, until dropped.
type Turns<'a> = Vec<tokio::sync::MutexGuard<'a, ()>>;

impl KeyTurn {
    /// Waits for the turn of one user.
    pub async fn lock(&self, user: UserNum) -> Turns<'_> {
        self.lock_all(std::iter::once(user)).await
    }

    /// Waits for the turns of several users, in an order that is the same for everyone.
    pub async fn lock_all(&self, users: impl IntoIterator<Item = UserNum>) -> Turns<'_> {
        let shard = |user: UserNum| usize::try_from(user.0 % SHARDS as u64).unwrap_or(0);
        let shards: BTreeSet<usize> = users.into_iter().map(shard).collect();
        let mut turns = Vec::new();
        for lock in shards.into_iter().filter_map(|shard| self.0.get(shard)) {
            turns.push(lock.lock().await);
        }
        turns
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct KeyRow {
    id: String,
    key: Box<RawValue>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FallbackRow {
    id: String,
    key: Box<RawValue>,
    /// Whether it was ever claimed.
    used: bool,
}

/// What a device publishes.
#[derive(Debug, Default, Deserialize)]
pub struct Upload {
    /// Its identity keys.
    #[serde(default)]
    pub device_keys: Option<Map<String, Value>>,
    /// Keys that are each given out once.
    #[serde(default)]
    pub one_time_keys: KeysById,
    /// Keys that are given out when there is no other.
    #[serde(default, alias = "org.matrix.msc2732.fallback_keys")]
    pub fallback_keys: KeysById,
}

/// What a device has left for others to claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// One-time keys, by algorithm.
    pub one_time: BTreeMap<String, u64>,
    /// The algorithms whose fallback key was not claimed yet.
    pub unused_fallback: Vec<String>,
}

fn of_device(keyspace: Keyspace, user: UserNum, device: &DeviceId) -> Packed {
    Packed::key(keyspace).user(user).text(device.as_str())
}

fn algorithm_of(id: &str) -> ApiResult<&str> {
    match id.split_once(':') {
        Some((algorithm, name)) if !algorithm.is_empty() && !name.is_empty() => Ok(algorithm),
        _ => Err(ApiError::bad_json("a key ID is `algorithm:name`")),
    }
}

fn same_json(one: &RawValue, other: &RawValue) -> bool {
    let parse = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).ok();
    one.get() == other.get() || (parse(one).is_some() && parse(one) == parse(other))
}

/// Publishes keys of a device, and tells what it has left then.
///
/// # Errors
/// `M_BAD_JSON` for keys of another shape or of another device, `M_UNKNOWN` for a one-time key whose
/// ID stands for another key, `M_TOO_LARGE` for too many.
pub async fn upload(
    app: &App,
    user: UserNum,
    user_id: &UserId,
    device: &DeviceId,
    upload: Upload,
) -> ApiResult<Counts> {
    let _turn = app.key_turn.lock(user).await;
    let mut commit = Commit::new();
    prepare(app, &mut commit, (user, user_id, device), upload)?;
    if !commit.is_empty() {
        app.store.commit(commit).await?;
    }
    counts(&app.store, user, device)
}

/// What publishing keys of a device changes. The caller has the user's turn.
fn prepare(
    app: &App,
    commit: &mut Commit,
    (user, user_id, device): (UserNum, &UserId, &DeviceId),
    upload: Upload,
) -> ApiResult<()> {
    if let Some(keys) = &upload.device_keys {
        check_device_keys(keys, user_id, device)?;
        let key = of_device(Keyspace::DEVICE_KEYS, user, device);
        if app.store.get(DEVICE_KEYS, key.clone())?.as_ref() != Some(keys) {
            signing::forget_signatures(&app.store, commit, user, Some(device.as_str()))?;
            commit.put(DEVICE_KEYS, key, keys);
            lists::note(&app.store, commit, user, lists::What::Device(device))?;
        }
    }
    let present = one_time_keys(&app.store, user, device)?;
    let mut fresh: Vec<KeyRow> = Vec::new();
    for (id, key) in upload.one_time_keys {
        let known = present.get(&id);
        if known.is_some_and(|known| !same_json(known, &key)) {
            return Err(ApiError::unknown(format!(
                "the one-time key {id} exists already, with another value"
            )));
        }
        if known.is_none() {
            algorithm_of(&id)?;
            fresh.push(KeyRow { id, key });
        }
    }
    if present.len() + fresh.len() > ONE_TIME_KEYS_MAX {
        return Err(ApiError::too_large(format!(
            "a device has at most {ONE_TIME_KEYS_MAX} one-time keys"
        )));
    }
    if !fresh.is_empty() || !upload.fallback_keys.is_empty() {
        let entry = commit.log(Change::KeyCounts {
            user,
            device: device.to_owned(),
        });
        for (index, row) in (0_u64..).zip(&fresh) {
            let key = of_device(Keyspace::ONE_TIME_KEY, user, device)
                .text(algorithm_of(&row.id)?)
                .position()
                .u64(index);
            commit.put_at(ONE_TIME_KEYS, entry, key, row);
        }
        for (id, key) in upload.fallback_keys {
            let at = of_device(Keyspace::FALLBACK_KEY, user, device).text(algorithm_of(&id)?);
            let old = app.store.get(FALLBACK_KEYS, at.clone())?;
            let same = old.filter(|old| old.id == id && same_json(&old.key, &key));
            let used = same.is_some_and(|old| old.used);
            commit.put(FALLBACK_KEYS, at, &FallbackRow { id, key, used });
        }
    }
    Ok(())
}

fn check_device_keys(keys: &Map<String, Value>, user: &UserId, device: &DeviceId) -> ApiResult<()> {
    let text = |name: &str| keys.get(name).and_then(Value::as_str);
    if text("user_id") != Some(user.as_str()) || text("device_id") != Some(device.as_str()) {
        return Err(ApiError::bad_json("`device_keys` are of another device"));
    }
    let object = |name: &str| keys.get(name).is_some_and(Value::is_object);
    let lists = keys.get("algorithms").is_some_and(Value::is_array);
    if !lists || !object("keys") || !object("signatures") {
        return Err(ApiError::bad_json(
            "`device_keys` need `algorithms`, `keys` and `signatures`",
        ));
    }
    Ok(())
}

fn one_time_keys(store: &Store, user: UserNum, device: &DeviceId) -> ApiResult<KeysById> {
    let prefix = of_device(Keyspace::ONE_TIME_KEY, user, device);
    let rows = store.rows(ONE_TIME_KEYS, &prefix, ONE_TIME_KEYS_MAX)?;
    Ok(rows.into_iter().map(|(_, row)| (row.id, row.key)).collect())
}

/// What a device has left for others to claim.
///
/// # Errors
/// When the store cannot be read.
pub fn counts(store: &Store, user: UserNum, device: &DeviceId) -> ApiResult<Counts> {
    let mut counts = Counts::default();
    counts.one_time.insert(SIGNED_CURVE25519.to_owned(), 0);
    let algorithm = |key: &[u8]| {
        let mut parts = Unpack::key(key);
        parts.user()?;
        parts.text()?;
        parts.text()
    };
    let prefix = of_device(Keyspace::ONE_TIME_KEY, user, device);
    store.visit(&prefix, Direction::Ascending, |key, _| {
        if let Some(algorithm) = algorithm(key) {
            *counts.one_time.entry(algorithm).or_default() += 1;
        }
        Ok(true)
    })?;
    let prefix = of_device(Keyspace::FALLBACK_KEY, user, device);
    store.visit(&prefix, Direction::Ascending, |key, value| {
        let used = serde_json::from_slice(value).is_ok_and(|row: FallbackRow| row.used);
        counts
            .unused_fallback
            .extend(algorithm(key).filter(|_| !used));
        Ok(true)
    })?;
    Ok(counts)
}

/// The identity keys of a device of a local user, with all of the user's signatures.
///
/// # Errors
/// When the store cannot be read.
pub fn device_keys(
    app: &App,
    user: UserNum,
    device: &DeviceId,
) -> ApiResult<Option<Map<String, Value>>> {
    let key = of_device(Keyspace::DEVICE_KEYS, user, device);
    let Some(mut keys) = app.store.get(DEVICE_KEYS, key)? else {
        return Ok(None);
    };
    // Only its user's server says what is beside the signed part.
    keys.remove("unsigned");
    signing::add_signatures(app, &mut keys, (user, device.as_str()), None)?;
    Ok(Some(keys))
}

/// Identity keys by user and device, with the devices' names.
pub type DeviceKeys = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Map<String, Value>>>;

/// The identity keys of devices of local users; all of a user's where none is named.
///
/// # Errors
/// `M_TOO_LARGE` when too many are asked for.
pub fn query(
    app: &App,
    asked: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
) -> ApiResult<DeviceKeys> {
    must_be_few(asked.values().map(|devices| devices.len().max(1)).sum())?;
    let mut found = DeviceKeys::new();
    for (user_id, devices) in asked.iter().filter(|(user_id, _)| app.is_local(user_id)) {
        let of_user = found.entry(user_id.clone()).or_default();
        let Some(user) = app.store.find_user(user_id)? else {
            continue;
        };
        for (device, row) in app.accounts.devices(user)? {
            if !devices.is_empty() && !devices.contains(&device) {
                continue;
            }
            let Some(mut keys) = device_keys(app, user, &device)? else {
                continue;
            };
            if let Some(name) = row.display_name {
                let unsigned = serde_json::json!({ "device_display_name": name });
                keys.insert("unsigned".to_owned(), unsigned);
            }
            of_user.insert(device, keys);
        }
    }
    Ok(found)
}

/// As [`query`], for other servers: the names of devices only if the configuration shares them, and no signatures
/// but the user's own.
///
/// # Errors
/// As [`query`].
pub fn query_from_outside(
    app: &App,
    asked: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
) -> ApiResult<DeviceKeys> {
    let mut found = query(app, asked)?;
    for (user_id, devices) in &mut found {
        for keys in devices.values_mut() {
            signing::keep_own_signatures(keys, user_id);
            if !app.config.federation.share_device_names {
                keys.remove("unsigned");
            }
        }
    }
    Ok(found)
}

/// A device as other servers are told of it.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// Which.
    pub device_id: OwnedDeviceId,
    /// Its identity keys.
    pub keys: Map<String, Value>,
    /// Its name, if the configuration shares names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_display_name: Option<String>,
}

/// Every device of a local user that has keys, as other servers are told of them.
///
/// # Errors
/// When the store cannot be read.
pub fn told(app: &App, user: UserNum, user_id: &UserId) -> ApiResult<Vec<Told>> {
    let mut told = Vec::new();
    for (device_id, row) in app.accounts.devices(user)? {
        if let Some(mut keys) = device_keys(app, user, &device_id)? {
            signing::keep_own_signatures(&mut keys, user_id);
            let shared = app.config.federation.share_device_names;
            told.push(Told {
                device_id,
                keys,
                device_display_name: row.display_name.filter(|_| shared),
            });
        }
    }
    Ok(told)
}

/// That one request does not look up or claim keys of too many devices.
///
/// # Errors
/// `M_TOO_LARGE`.
fn must_be_few(devices: usize) -> ApiResult<()> {
    if devices > DEVICES_ASKED_MAX {
        return Err(ApiError::too_large(format!(
            "one request asks for at most {DEVICES_ASKED_MAX} devices"
        )));
    }
    Ok(())
}

/// Claimed keys, by user and device.
pub type Claimed = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, KeysById>>;

/// Claims one key of each device: the one uploaded first, or else the fallback key.
///
/// # Errors
/// `M_TOO_LARGE` when too many are asked for.
pub async fn claim(
    app: &App,
    asked: &BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
) -> ApiResult<Claimed> {
    must_be_few(asked.values().map(BTreeMap::len).sum())?;
    let mut users = Vec::new();
    for user_id in asked.keys().filter(|user_id| app.is_local(user_id)) {
        users.extend(app.store.find_user(user_id)?);
    }
    let _turns = app.key_turn.lock_all(users).await;
    let mut commit = Commit::new();
    let mut claimed = Claimed::new();
    for (user_id, devices) in asked.iter().filter(|(user_id, _)| app.is_local(user_id)) {
        let Some(user) = app.store.find_user(user_id)? else {
            continue;
        };
        for (device, algorithm) in devices {
            if let Some((id, key)) = claim_one(&app.store, &mut commit, user, device, algorithm)? {
                let of_user = claimed.entry(user_id.clone()).or_default();
                of_user.entry(device.clone()).or_default().insert(id, key);
            }
        }
    }
    if !commit.is_empty() {
        app.store.commit(commit).await?;
    }
    Ok(claimed)
}

fn claim_one(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    device: &DeviceId,
    algorithm: &str,
) -> ApiResult<Option<(String, Box<RawValue>)>> {
    let changed = || Change::KeyCounts {
        user,
        device: device.to_owned(),
    };
    let prefix = of_device(Keyspace::ONE_TIME_KEY, user, device).text(algorithm);
    if let Some((key, row)) = store.rows(ONE_TIME_KEYS, &prefix, 1)?.pop() {
        commit.delete(ONE_TIME_KEYS.key().raw(&key));
        commit.log(changed());
        return Ok(Some((row.id, row.key)));
    }
    let at = of_device(Keyspace::FALLBACK_KEY, user, device).text(algorithm);
    let Some(mut row) = store.get(FALLBACK_KEYS, at.clone())? else {
        return Ok(None);
    };
    if !row.used {
        row.used = true;
        commit.put(FALLBACK_KEYS, at, &row);
        commit.log(changed());
    }
    Ok(Some((row.id, row.key)))
}

/// Deletes every key of a device, the messages that wait for it, and what was signed of it.
///
/// # Errors
/// When the store cannot be read.
pub fn delete(app: &App, commit: &mut Commit, user: UserNum, device: &DeviceId) -> ApiResult<()> {
    let store = &app.store;
    signing::forget_signatures(store, commit, user, Some(device.as_str()))?;
    dehydrated::forget(app, commit, user, device)?;
    for keyspace in [
        Keyspace::DEVICE_KEYS,
        Keyspace::ONE_TIME_KEY,
        Keyspace::FALLBACK_KEY,
        Keyspace::TO_DEVICE,
    ] {
        store.visit(
            &of_device(keyspace, user, device),
            Direction::Ascending,
            |key, _| {
                commit.delete(Packed::new().raw(key));
                Ok(true)
            },
        )?;
    }
    Ok(())
}
