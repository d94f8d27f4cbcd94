//! Devices of local users. Their encryption keys are in `crate::keys`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use ruma::{DeviceId, OwnedDeviceId};
use serde::{Deserialize, Serialize};
use store::{
    Commit,
    keys::{Keyspace, Packed, Table, Unpack, UserNum},
};

use super::{Accounts, Session};
use crate::error::ApiResult;

pub(super) const DEVICES: Table<DeviceRow> = Table::new(Keyspace::DEVICE);

/// How many devices a user may have; logging in beyond that is refused.
pub const DEVICES_MAX: usize = 1_000;

/// How stale "last seen" may be, in milliseconds: it is written at most this often for a device.
const SEEN_EVERY_MS: u64 = 60_000;

/// A device of a local user.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Its name, for its user and their contacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// When it last made a request, in milliseconds since the epoch.
    #[serde(default)]
    pub last_seen_ms: u64,
    /// From where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ip: Option<IpAddr>,
}

/// Devices whose "last seen" is newer than what is written.
#[derive(Debug, Default)]
pub(super) struct LastSeen(Mutex<BTreeMap<(UserNum, OwnedDeviceId), (u64, IpAddr)>>);

/// How many of them are remembered; then they are all written.
const SEEN_MAX: usize = 512;

impl Accounts {
    /// One device of a user.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn device(&self, user: UserNum, device: &DeviceId) -> ApiResult<Option<DeviceRow>> {
        Ok(self.store.get(DEVICES, device_key(user, device))?)
    }

    /// Every device of a user, by ID.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn devices(&self, user: UserNum) -> ApiResult<Vec<(OwnedDeviceId, DeviceRow)>> {
        let rows = self
            .store
            .rows(DEVICES, &DEVICES.key().user(user), DEVICES_MAX)?;
        Ok(rows
            .into_iter()
            .filter_map(|(key, row)| {
                let mut parts = Unpack(&key);
                parts.user()?;
                Some((parts.text()?.into(), row))
            })
            .collect())
    }

    /// Writes a device.
    pub fn put_device(
        &self,
        commit: &mut Commit,
        user: UserNum,
        device: &DeviceId,
        row: &DeviceRow,
    ) {
        commit.put(DEVICES, device_key(user, device), row);
    }

    /// Deletes a device's row; its tokens and keys are other rows.
    pub fn delete_device(&self, commit: &mut Commit, user: UserNum, device: &DeviceId) {
        commit.delete(device_key(user, device));
    }

    /// Notes that a device made a request.
    pub fn saw(&self, session: &Session, address: IpAddr, now_ms: u64) {
        let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < SEEN_MAX {
            seen.insert((session.user, session.device.clone()), (now_ms, address));
        }
    }

    /// Writes down when devices were last seen; called about once a minute.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn write_seen(&self) -> ApiResult<()> {
        let seen = {
            let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *seen)
        };
        let mut commit = Commit::new();
        for ((user, device), (now_ms, address)) in seen {
            let Some(mut row) = self.device(user, &device)? else {
                continue;
            };
            if row.last_seen_ms + SEEN_EVERY_MS <= now_ms || row.last_seen_ip != Some(address) {
                row.last_seen_ms = now_ms;
                row.last_seen_ip = Some(address);
                self.put_device(&mut commit, user, &device, &row);
            }
        }
        if !commit.is_empty() {
            self.store.commit(commit).await?;
        }
        Ok(())
    }
}

fn device_key(user: UserNum, device: &DeviceId) -> Packed {
    DEVICES.key().user(user).text(device.as_str())
}
