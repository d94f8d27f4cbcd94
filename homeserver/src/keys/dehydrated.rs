//! Dehydrated devices: a device that receives keys while none of the user's is logged in, and that a
//! later one takes the place of. Spec: MSC3814.

use ruma::{DeviceId, OwnedDeviceId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, Table, UserNum},
};

use super::{KeysById, Upload, prepare};
use crate::{
    accounts::devices::DeviceRow,
    error::{ApiError, ApiResult},
    server::App,
    sync::Token,
    to_device,
};

/// How many bytes `device_data` has at most.
const DATA_BYTES_MAX: usize = 65_536;

const DEVICES: Table<Row> = Table::new(Keyspace::DEHYDRATED_DEVICE);

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    device_id: OwnedDeviceId,
    device_data: Box<RawValue>,
}

/// What a client uploads.
#[derive(Debug, Deserialize)]
pub struct Dehydrated {
    device_id: OwnedDeviceId,
    device_data: Box<RawValue>,
    initial_device_display_name: Option<String>,
    device_keys: Option<Map<String, Value>>,
    #[serde(default)]
    one_time_keys: KeysById,
    #[serde(default)]
    fallback_keys: KeysById,
}

fn at(user: UserNum) -> Packed {
    DEVICES.key().user(user)
}

fn none() -> ApiError {
    ApiError::not_found("there is no dehydrated device")
}

/// Keeps a dehydrated device, in the place of the one that was there.
///
/// # Errors
/// `M_BAD_JSON` without `device_keys`, `M_INVALID_PARAM` for the ID of a device that is in use, and
/// as [`super::upload`].
pub async fn put(app: &App, user: UserNum, user_id: &UserId, new: Dehydrated) -> ApiResult<Value> {
    let id = new.device_id;
    if new.device_keys.is_none() {
        return Err(ApiError::bad_json(
            "a dehydrated device needs `device_keys`",
        ));
    }
    if id.as_str().is_empty()
        || id.as_str().len() > 255
        || new.device_data.get().len() > DATA_BYTES_MAX
    {
        return Err(ApiError::invalid_param(format!(
            "a device ID has 1 to 255 bytes, `device_data` at most {DATA_BYTES_MAX}"
        )));
    }
    let _turn = app.key_turn.lock(user).await;
    let old = app.store.get(DEVICES, at(user))?;
    let is_old = old.as_ref().is_some_and(|old| old.device_id == id);
    if !is_old && app.accounts.device(user, &id)?.is_some() {
        return Err(ApiError::invalid_param(
            "another device has this `device_id`",
        ));
    }
    let mut commit = Commit::new();
    if let Some(old) = old {
        crate::api::client::account::remove_device(app, &mut commit, user, &old.device_id)?;
    }
    let row = DeviceRow {
        display_name: new.initial_device_display_name,
        last_seen_ms: app.clock.now_ms(),
        last_seen_ip: None,
    };
    app.accounts.put_device(&mut commit, user, &id, &row);
    let keys = Upload {
        device_keys: new.device_keys,
        one_time_keys: new.one_time_keys,
        fallback_keys: new.fallback_keys,
    };
    prepare(app, &mut commit, (user, user_id, &id), keys)?;
    let row = Row {
        device_id: id.clone(),
        device_data: new.device_data,
    };
    commit.put(DEVICES, at(user), &row);
    app.store.commit(commit).await?;
    Ok(json!({ "device_id": id }))
}

/// The dehydrated device of a user.
///
/// # Errors
/// `M_NOT_FOUND` when there is none.
pub fn get(app: &App, user: UserNum) -> ApiResult<Value> {
    let row = app.store.get(DEVICES, at(user))?.ok_or_else(none)?;
    Ok(json!({ "device_id": row.device_id, "device_data": row.device_data }))
}

/// Deletes the dehydrated device of a user.
///
/// # Errors
/// `M_NOT_FOUND` when there is none.
pub async fn delete(app: &App, user: UserNum) -> ApiResult<Value> {
    let _turn = app.key_turn.lock(user).await;
    let row = app.store.get(DEVICES, at(user))?.ok_or_else(none)?;
    let mut commit = Commit::new();
    crate::api::client::account::remove_device(app, &mut commit, user, &row.device_id)?;
    app.store.commit(commit).await?;
    Ok(json!({ "device_id": row.device_id }))
}

/// Forgets that `device` is dehydrated, as it is being deleted.
///
/// # Errors
/// When the store cannot be read.
pub fn forget(app: &App, commit: &mut Commit, user: UserNum, device: &DeviceId) -> ApiResult<()> {
    let row = app.store.get(DEVICES, at(user))?;
    if row.is_some_and(|row| row.device_id == *device) {
        commit.delete(at(user));
    }
    Ok(())
}

/// The messages that wait for the dehydrated device, from `next_batch` of the answer before. No
/// messages: there are no more.
///
/// # Errors
/// `M_FORBIDDEN` for another device, `M_INVALID_PARAM` for a token from elsewhere.
pub fn events(
    app: &App,
    user: UserNum,
    device: &DeviceId,
    next_batch: Option<&str>,
) -> ApiResult<Value> {
    let since = since(app, user, device, next_batch)?;
    let until = app.store.published();
    let (events, upto) = to_device::pending(&app.store, user, device, since, until)?;
    Ok(json!({ "events": events, "next_batch": Token::new(upto, 0).to_string() }))
}

/// Deletes the messages before `next_batch`.
///
/// # Errors
/// As [`events`].
pub async fn acknowledge(
    app: &App,
    user: UserNum,
    device: &DeviceId,
    next_batch: Option<&str>,
) -> ApiResult<()> {
    let since = since(app, user, device, next_batch)?;
    to_device::acknowledge(&app.store, user, device, since).await
}

fn since(
    app: &App,
    user: UserNum,
    device: &DeviceId,
    next_batch: Option<&str>,
) -> ApiResult<Position> {
    let row = app.store.get(DEVICES, at(user))?.ok_or_else(none)?;
    if row.device_id != *device {
        return Err(ApiError::forbidden("this is not your dehydrated device"));
    }
    Ok(match next_batch {
        Some(token) => Token::parse(app, token)?.position(),
        None => 0,
    })
}
