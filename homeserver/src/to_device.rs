//! Messages to devices: kept until the device has acknowledged them by syncing on.
//!
//! Spec: client-server API, "Send-to-Device messaging".

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use serde_json::{json, value::RawValue};
use sha2::{Digest as _, Sha256};
use store::{
    Commit, Store,
    keys::{Keyspace, Packed, Position, Unpack, UserNum},
    kv::Direction,
    log::Change,
};

use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    peers::sender,
    server::App,
};

/// How many messages one answer of `/sync` delivers.
pub const BATCH_MAX: usize = 100;

/// How many devices one request may send to.
const RECIPIENTS_MAX: usize = 20_000;

/// Contents by user and device; the device `*` stands for all of the user's.
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Box<RawValue>>>;

fn of_device(user: UserNum, device: &DeviceId) -> Packed {
    Packed::key(Keyspace::TO_DEVICE)
        .user(user)
        .text(device.as_str())
}

fn before(user: UserNum, device: &DeviceId, position: Position) -> Vec<u8> {
    of_device(user, device)
        .i64(i64::try_from(position).unwrap_or(i64::MAX))
        .into_bytes()
}

/// Sends messages to devices, once for each transaction ID. Those for users of other servers wait for these.
///
/// # Errors
/// `M_TOO_LARGE` when they are too many.
pub async fn send(
    app: &App,
    caller: &Caller,
    kind: &str,
    txn_id: &str,
    messages: &Messages,
) -> ApiResult<()> {
    let txn = Packed::key(Keyspace::TXN)
        .user(caller.user)
        .raw(&Sha256::digest(caller.device()?.as_bytes()))
        // No room has the number 0.
        .u64(0)
        .raw(&Sha256::digest(format!("{kind}\0{txn_id}")));
    let _turn = app.key_turn.lock(caller.user).await;
    if app.store.get_raw(txn.clone())?.is_some() {
        return Ok(());
    }
    let mut commit = Commit::new();
    commit.put_raw(txn, Packed::new());
    let mut recipients = deliver(app, &mut commit, &caller.user_id, kind, messages)?;
    if sender::is_on(app) {
        recipients += sender::messages::keep(app, &mut commit, &caller.user_id, kind, messages)?;
    }
    if recipients > RECIPIENTS_MAX {
        return Err(ApiError::too_large("the messages are for too many devices"));
    }
    app.store.commit(commit).await?;
    Ok(())
}

/// Adds the messages for devices of local users, and says for how many devices there were any.
///
/// # Errors
/// When the store cannot be read.
pub fn deliver(
    app: &App,
    commit: &mut Commit,
    sender: &UserId,
    kind: &str,
    messages: &Messages,
) -> ApiResult<usize> {
    let mut recipients = 0;
    for (user_id, contents) in messages {
        let user = app.store.find_user(user_id)?;
        let Some(user) = user.filter(|_| app.is_local(user_id)) else {
            continue;
        };
        let devices = app.accounts.devices(user)?;
        for (to, content) in contents {
            let message = json!({ "type": kind, "sender": sender, "content": content });
            for (device, _) in devices.iter().filter(|(id, _)| to == "*" || id == to) {
                recipients += 1;
                let entry = commit.log(Change::ToDevice {
                    user,
                    device: device.clone(),
                });
                let value = Packed::new().raw(message.to_string().as_bytes());
                commit.put_raw_at(entry, of_device(user, device).position(), value);
            }
        }
    }
    Ok(recipients)
}

/// The first messages in `since < position <= until`, and up to where they are all told.
///
/// # Errors
/// When the store cannot be read.
pub fn pending(
    store: &Store,
    user: UserNum,
    device: &DeviceId,
    since: Position,
    until: Position,
) -> ApiResult<(Vec<Box<RawValue>>, Position)> {
    let (mut messages, mut told) = (Vec::new(), until);
    let (from, to) = (
        before(user, device, since + 1),
        before(user, device, until + 1),
    );
    let mut last = since;
    store.visit_range(&from, &to, Direction::Ascending, |key, value| {
        if messages.len() == BATCH_MAX {
            told = last;
            return Ok(false);
        }
        let mut parts = Unpack::key(key);
        let position = parts.user().and(parts.text()).and(parts.position());
        last = position.unwrap_or(last);
        messages.extend(serde_json::from_slice::<Box<RawValue>>(value).ok());
        Ok(true)
    })?;
    Ok((messages, told))
}

/// Deletes what a device has received: every message up to `told`.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn acknowledge(
    store: &Store,
    user: UserNum,
    device: &DeviceId,
    told: Position,
) -> ApiResult<()> {
    let mut commit = Commit::new();
    let (from, to) = (before(user, device, 0), before(user, device, told + 1));
    store.visit_range(&from, &to, Direction::Ascending, |key, _| {
        commit.delete(Packed::new().raw(key));
        Ok(true)
    })?;
    if !commit.is_empty() {
        store.commit(commit).await?;
    }
    Ok(())
}

/// Deletes one message that was delivered in another way than `/sync`.
pub fn forget(commit: &mut Commit, user: UserNum, device: &DeviceId, position: Position) {
    commit.delete(Packed::new().raw(&before(user, device, position)));
}
