//! What sliding sync tells for end-to-end encryption: messages to the device, devices, keys.
//!
//! Whose devices changed is told as the log says; that somebody came into a room of the user's is not
//! told here. Spec: MSC3885, MSC3884.

use std::{collections::BTreeSet, sync::Arc};

use ruma::OwnedUserId;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use store::{
    keys::{Position, UserNum},
    log::{Change, LogEntry},
};

use super::{
    connection::Told,
    extensions::Asked,
    request::{Extensions, ToDevice},
};
use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    keys,
    rooms::members::share_a_room,
    server::App,
    sync::Token,
    to_device,
};

/// How many log entries are read at a time to find out whose devices changed.
const ENTRIES_BATCH_MAX: usize = 4_096;

/// How many log entries are read for that at all; a client that is further behind begins anew.
const ENTRIES_MAX: u64 = 1_000_000;

/// The part of an answer that is about encryption.
#[derive(Debug, Default, Serialize)]
pub(super) struct Encryption {
    #[serde(skip_serializing_if = "Option::is_none")]
    to_device: Option<Messages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e2ee: Option<Keys>,
}

#[derive(Debug, Serialize)]
struct Messages {
    next_batch: String,
    events: Vec<Box<RawValue>>,
}

#[derive(Debug, Serialize)]
struct Keys {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_lists: Option<DeviceLists>,
    #[serde(flatten)]
    left: Arc<Value>,
    /// Whether the client does not know that already.
    #[serde(skip)]
    news: bool,
}

#[derive(Debug, Serialize)]
struct DeviceLists {
    changed: Vec<OwnedUserId>,
}

impl Encryption {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.to_device
            .as_ref()
            .is_none_or(|messages| messages.events.is_empty())
            && self.e2ee.as_ref().is_none_or(|keys| !keys.news)
    }
}

/// Deletes the messages that the device says it has.
///
/// # Errors
/// `M_INVALID_PARAM` when `since` is no token of this server; when the store cannot be written.
pub(super) async fn acknowledge(app: &App, caller: &Caller, asked: &ToDevice) -> ApiResult<()> {
    if let (Some(device), Some(since)) = (&caller.device, &asked.since) {
        let since = Token::parse(app, since)?.position();
        to_device::acknowledge(&app.store, caller.user, device, since).await?;
    }
    Ok(())
}

/// All that is wanted; `told` becomes what the client has been told then.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn answer(
    asked: &Asked<'_>,
    wanted: &Extensions,
    told: &mut Told,
) -> ApiResult<Encryption> {
    let mut encryption = Encryption::default();
    let Some(device) = asked.device else {
        return Ok(encryption);
    };
    let (app, until) = (asked.look.app, asked.look.until.position());
    if wanted.to_device.enabled == Some(true) {
        let since = match &wanted.to_device.since {
            Some(since) => Token::parse(app, since)?.position(),
            None => 0,
        };
        let (events, upto) = to_device::pending(&app.store, asked.user, device, since, until)?;
        encryption.to_device = Some(Messages {
            next_batch: Token::new(upto, 0).to_string(),
            events,
        });
    }
    if wanted.e2ee.is_on() {
        let counts = keys::counts(&app.store, asked.user, device)?;
        let left = json!({
            "device_one_time_keys_count": counts.one_time,
            "device_unused_fallback_key_types": counts.unused_fallback,
        });
        let changed = match told.devices {
            Some(since) => changed_devices(app, asked, since, until)?,
            None => Vec::new(),
        };
        told.devices = Some(until);
        let news = !changed.is_empty() || told.keys.as_deref() != Some(&left);
        let left = Arc::new(left);
        told.keys = Some(left.clone());
        encryption.e2ee = Some(Keys {
            device_lists: (!changed.is_empty()).then_some(DeviceLists { changed }),
            left,
            news,
        });
    }
    Ok(encryption)
}

/// The users, known to the user, whose devices changed in `since < position <= until`.
fn changed_devices(
    app: &App,
    asked: &Asked<'_>,
    since: Position,
    until: Position,
) -> ApiResult<Vec<OwnedUserId>> {
    let mut users: BTreeSet<UserNum> = BTreeSet::new();
    if asked.since.map(Token::position) == Some(since) && asked.touched.rooms.is_some() {
        users.clone_from(&asked.touched.device_lists);
    } else {
        if until.saturating_sub(since) > ENTRIES_MAX {
            return Err(ApiError::unknown_pos(
                "begin this connection anew, without `pos`",
            ));
        }
        let mut from = since;
        while from < until {
            let entries = app.store.log(from, ENTRIES_BATCH_MAX)?;
            let Some((last, _)) = entries.last() else {
                break;
            };
            from = *last;
            for (position, entry) in entries {
                if let LogEntry::Other(Change::DeviceList { user }) = entry
                    && position <= until
                {
                    users.insert(user);
                }
            }
        }
    }
    let mut changed = Vec::new();
    for user in users {
        if user == asked.user || share_a_room(app, asked.user, user)? {
            changed.push(app.store.user_id(user)?);
        }
    }
    Ok(changed)
}
