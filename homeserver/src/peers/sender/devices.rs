//! Telling other servers of the devices of this server's users.
//!
//! A destination is told what changed since it was told last, each change linked to the one before. Where that
//! is not known, one change without a link makes it look up the whole list.
//! Spec: server-server API, "Device Management", "End-to-End Encryption".

use federation::wire::edu::{SIGNING_KEYS_OLD, write};
use ruma::{
    OwnedDeviceId, UInt, UserId,
    api::federation::transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use store::keys::{Packed, Position, Unpack, UserNum};

use crate::{
    error::{ApiError, ApiResult},
    keys::{
        self,
        lists::{self, changes},
        signing::{self, Key, Usage},
    },
    server::App,
};

/// How many changes of a user are told one by one; who missed more looks up the whole list.
const CHANGES_MAX: usize = 20;

/// Up to where a destination was told of a user's devices and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    /// The last change of a device, which the next one is linked to. 0: it was never told anything.
    pub(super) device: Position,
    /// Everything up to here.
    pub(super) until: Position,
}

impl Told {
    pub(super) fn pack(self) -> Packed {
        Packed::new().u64(self.device).u64(self.until)
    }

    pub(super) fn unpack(value: &[u8]) -> Option<Self> {
        let mut parts = Unpack(value);
        Some(Self {
            device: parts.u64()?,
            until: parts.u64()?,
        })
    }
}

/// The EDUs that tell what changed of a user behind `told`, and up to where they tell it.
pub(super) fn edus(app: &App, user: UserNum, told: Told) -> ApiResult<(Vec<Box<RawValue>>, Told)> {
    let user_id = app.store.user_id(user)?;
    let until = lists::stream_id(&app.store, user)?;
    if until <= told.until {
        return Ok((Vec::new(), told));
    }
    let changes = changes::since(&app.store, user, told.until)?;
    let changes = changes.filter(|changes| told.device > 0 && changes.len() <= CHANGES_MAX);
    let mut edus = Vec::new();
    let whole = Told {
        device: until,
        until,
    };
    let Some(changes) = changes else {
        // What counts is that nothing is named that came before. One with keys says that there is something to look up.
        let mut named = None;
        for (device, _) in app.accounts.devices(user)? {
            let has_keys = keys::device_keys(app, user, &device)?.is_some();
            if has_keys || named.is_none() {
                named = Some(device);
            }
            if has_keys {
                break;
            }
        }
        if let Some(device) = named {
            let content = update(app, user, &user_id, device, (None, until))?;
            edus.push(write("m.device_list_update", &content));
        }
        push_signing_keys(app, &mut edus, user, &user_id)?;
        return Ok((edus, whole));
    };
    let devices: Vec<_> = changes
        .iter()
        .filter(|(_, what)| what != changes::SIGNING_KEYS)
        .collect();
    let mut before = told.device;
    for (index, (position, device)) in devices.iter().enumerate() {
        // The last one carries the number that whoever looks up the list is told.
        let is_last = index + 1 == devices.len();
        let stream_id = if is_last { until } else { *position };
        let device = device.as_str().into();
        let content = update(app, user, &user_id, device, (Some(before), stream_id))?;
        edus.push(write("m.device_list_update", &content));
        before = stream_id;
    }
    if changes.len() > devices.len() {
        push_signing_keys(app, &mut edus, user, &user_id)?;
    }
    let device = before;
    Ok((edus, Told { device, until }))
}

fn update(
    app: &App,
    user: UserNum,
    user_id: &UserId,
    device: OwnedDeviceId,
    (before, stream_id): (Option<Position>, Position),
) -> ApiResult<DeviceListUpdateContent> {
    let row = app.accounts.device(user, &device)?;
    let keys = keys::device_keys(app, user, &device)?;
    let stream_id = UInt::new_saturating(stream_id);
    let mut content = DeviceListUpdateContent::new(user_id.to_owned(), device, stream_id);
    content.prev_id = before.into_iter().map(UInt::new_saturating).collect();
    match row {
        None => content.deleted = Some(true),
        Some(row) => {
            let shared = app.config.federation.share_device_names;
            content.device_display_name = row.display_name.filter(|_| shared);
            content.keys = keys.map(|keys| raw(&keys)).transpose()?;
        }
    }
    Ok(content)
}

fn push_signing_keys(
    app: &App,
    edus: &mut Vec<Box<RawValue>>,
    user: UserNum,
    user_id: &UserId,
) -> ApiResult<()> {
    let Some(mut master) = signing::key_of(&app.store, user, Usage::Master)? else {
        return Ok(());
    };
    let name = signing::public_key(&master).map(|(_, public)| public.to_owned());
    if let Some(name) = name {
        signing::add_signatures(app, &mut master, (user, &name), None)?;
    }
    let mut content = SigningKeyUpdateContent::new(user_id.to_owned());
    content.master_key = Some(raw(&master)?);
    let own = signing::key_of(&app.store, user, Usage::SelfSigning)?;
    content.self_signing_key = own.map(|key| raw(&key)).transpose()?;
    // Servers that know both take either for the other.
    edus.push(write("m.signing_key_update", &content));
    edus.push(write(SIGNING_KEYS_OLD, &content));
    Ok(())
}

fn raw<T>(key: &Key) -> ApiResult<Raw<T>> {
    let raw = to_raw_value(key).map_err(|error| ApiError::internal(&error))?;
    Ok(Raw::from_json(raw))
}
