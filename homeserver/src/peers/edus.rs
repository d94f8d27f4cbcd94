//! EDUs of other servers: whether they may say so, and what changes then.
//!
//! A server speaks for its own users only, in rooms that they are in and that do not keep it out. What it may
//! not say is passed over, as is what cannot be read: the rest of its transaction is none the worse for it.
//! Spec: server-server API, "EDUs"; client-server API, "Server ACLs" (which EDUs they apply to).

mod early;
mod seen;

use std::{collections::BTreeMap, sync::Arc};

use federation::wire::edu::{self, RoomReceipts, Told};
use ruma::{
    OwnedUserId, RoomId, ServerName, UserId,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, Edu, PresenceUpdate, ReceiptData,
        SigningKeyUpdateContent, TypingContent,
    },
    serde::Raw,
};
use store::{
    Commit,
    keys::{RoomNum, UserNum},
    rooms::{Membership, RoomView, TimelineEvent},
};

pub use self::early::Early;
use crate::{
    error::ApiResult,
    keys::remote,
    presence::State,
    receipts::{self, Receipt, ReceiptRow},
    rooms::acl,
    server::App,
    to_device::{self, Messages},
};

/// How long somebody types whose server does not say so again, in milliseconds: servers do every 40 s.
const TYPING_MS: u64 = 60_000;

/// How many events one receipt may name. Servers name one.
const EVENTS_OF_RECEIPT_MAX: usize = 10;

/// For how many devices here one EDU may have messages.
const DEVICES_MAX: usize = 20_000;

/// How long the ID of a message to devices may be, in bytes, before it is not one: the specification's
/// [limit](edu::MESSAGE_ID_CHARS_MAX) is what is sent; what comes is read more leniently.
const MESSAGE_ID_BYTES_MAX: usize = 255;

/// The longest status that is shown of somebody, in bytes; a longer one is left out.
const STATUS_BYTES_MAX: usize = 1_024;

/// Takes an EDU that `origin` has sent.
///
/// # Errors
/// When the store cannot be read or written: the transaction must not be acknowledged then.
pub async fn take(app: &App, origin: &ServerName, edu: Raw<Edu>) -> ApiResult<()> {
    let told = match edu::read(&edu) {
        Ok(told) => told,
        Err(error) => {
            tracing::debug!(%origin, %error, "an EDU cannot be read");
            return Ok(());
        }
    };
    match told {
        Told::Typing(content) => typing(app, origin, &content),
        Told::Receipts(rooms) => {
            let mut commit = Commit::new();
            for (room_id, users) in rooms {
                receipts_in(app, &mut commit, origin, &room_id, users)?;
            }
            write(app, commit).await
        }
        Told::Presence(content) => {
            let push = content.push.into_iter();
            for update in push.take(edu::PRESENCE_USERS_MAX * 20) {
                presence(app, origin, update)?;
            }
            Ok(())
        }
        Told::DeviceList(content) => device_list(app, origin, &content).await,
        Told::SigningKeys(content) => signing_keys(app, origin, &content).await,
        Told::ToDevice(content) => messages(app, origin, content).await,
        Told::Other { kind, .. } => {
            tracing::debug!(%origin, kind, "an EDU of an unknown kind");
            Ok(())
        }
    }
}

async fn write(app: &App, commit: Commit) -> ApiResult<()> {
    if !commit.is_empty() {
        app.store.commit(commit).await?;
    }
    Ok(())
}

/// The room, if this server is in it and it does not keep `origin` out.
fn open_room(app: &App, origin: &ServerName, room_id: &RoomId) -> ApiResult<Option<Arc<RoomView>>> {
    let Some(room) = app.store.find_room(room_id)? else {
        return Ok(None);
    };
    let view = app.store.room(room)?;
    if acl::allows(app, room, origin)? {
        Ok(view)
    } else {
        Ok(None)
    }
}

/// The user, if they are of `origin` and joined to the room.
fn member(
    app: &App,
    origin: &ServerName,
    view: &RoomView,
    user_id: &UserId,
) -> ApiResult<Option<UserNum>> {
    if user_id.server_name() != origin {
        return Ok(None);
    }
    let user = app.store.find_user(user_id)?;
    Ok(user.filter(|user| view.head.membership(*user) == Membership::Join))
}

/// The user, if they are of `origin` and in any room here.
fn met(app: &App, origin: &ServerName, user_id: &UserId) -> ApiResult<Option<UserNum>> {
    if user_id.server_name() != origin {
        return Ok(None);
    }
    match app.store.find_user(user_id)? {
        Some(user) if remote::is_met(app, user)? => Ok(Some(user)),
        _ => Ok(None),
    }
}

fn typing(app: &App, origin: &ServerName, content: &TypingContent) -> ApiResult<()> {
    let Some(view) = open_room(app, origin, &content.room_id)? else {
        return Ok(());
    };
    let Some(user) = member(app, origin, &view, &content.user_id)? else {
        return Ok(());
    };
    let until_ms = content.typing.then(|| app.clock.now_ms() + TYPING_MS);
    if app.typing.set(&app.moments, view.room, user, until_ms) {
        app.wakeups.wake_room(&view, None);
    }
    Ok(())
}

fn receipts_in(
    app: &App,
    commit: &mut Commit,
    origin: &ServerName,
    room_id: &RoomId,
    users: RoomReceipts,
) -> ApiResult<()> {
    let Some(view) = open_room(app, origin, room_id)? else {
        return Ok(());
    };
    for (user_id, data) in users {
        if let Some(user) = member(app, origin, &view, &user_id)? {
            receipt(app, commit, view.room, user, data)?;
        }
    }
    Ok(())
}

/// Sets a receipt at the newest of its events; one whose event is not known waits for it.
fn receipt(
    app: &App,
    commit: &mut Commit,
    room: RoomNum,
    user: UserNum,
    data: ReceiptData,
) -> ApiResult<()> {
    let ts = data
        .data
        .ts
        .map_or(app.clock.now_ms(), |ts| ts.get().into());
    let thread = receipts::thread_key(&data.data.thread);
    if thread.len() > federation::event::FIELD_BYTES_MAX {
        return Ok(());
    }
    let mut newest: Option<ReceiptRow> = None;
    let mut unknown = None;
    for event_id in data.event_ids.into_iter().take(EVENTS_OF_RECEIPT_MAX) {
        match app.store.event(&event_id)? {
            Some(event) if event.room == room => {
                let order = event.order;
                if newest.as_ref().is_none_or(|row| row.order < order) {
                    newest = Some(ReceiptRow {
                        event_id,
                        order,
                        ts,
                    });
                }
            }
            Some(_) => {}
            None => unknown = Some(event_id),
        }
    }
    if let Some(event_id) = unknown {
        app.early.keep(room, event_id, user, thread.clone(), ts);
    }
    if let Some(row) = newest {
        let receipt = Receipt {
            user,
            kind: "m.read".to_owned(),
            thread,
            row,
        };
        receipts::put(&app.store, commit, room, &receipt)?;
    }
    Ok(())
}

/// An event has come that receipts may have waited for.
///
/// # Errors
/// When the store cannot be read or written.
pub(super) async fn arrived(app: &App, event: &TimelineEvent) -> ApiResult<()> {
    let waiting = app.early.take(event.room, event.pdu.event_id());
    let mut commit = Commit::new();
    for (user, thread, ts) in waiting {
        let row = ReceiptRow {
            event_id: event.pdu.event_id().to_owned(),
            order: event.order,
            ts,
        };
        let receipt = Receipt {
            user,
            kind: "m.read".to_owned(),
            thread,
            row,
        };
        receipts::put(&app.store, &mut commit, event.room, &receipt)?;
    }
    write(app, commit).await
}

fn presence(app: &App, origin: &ServerName, update: PresenceUpdate) -> ApiResult<()> {
    if !app.config.presence.enabled {
        return Ok(());
    }
    let Some(user) = met(app, origin, &update.user_id)? else {
        return Ok(());
    };
    let Some(state) = State::named(update.presence.as_str()) else {
        return Ok(());
    };
    let now_ms = app.clock.now_ms();
    let active_ms = now_ms.saturating_sub(update.last_active_ago.into());
    let status = update
        .status_msg
        .filter(|status| status.len() <= STATUS_BYTES_MAX);
    let moments = &app.moments;
    if app
        .presence
        .hear(moments, user, state, status, active_ms, now_ms)
    {
        app.wakeups.wake_contacts(app, user);
    }
    Ok(())
}

async fn device_list(
    app: &App,
    origin: &ServerName,
    content: &DeviceListUpdateContent,
) -> ApiResult<()> {
    match met(app, origin, &content.user_id)? {
        Some(user) => remote::update(app, user, content).await,
        None => Ok(()),
    }
}

async fn signing_keys(
    app: &App,
    origin: &ServerName,
    content: &SigningKeyUpdateContent,
) -> ApiResult<()> {
    match met(app, origin, &content.user_id)? {
        Some(user) => remote::signing_keys(app, user, content).await,
        None => Ok(()),
    }
}

/// Messages to devices, once for each ID: the sender's server sends them again until it knows that they came.
async fn messages(app: &App, origin: &ServerName, content: DirectDeviceContent) -> ApiResult<()> {
    let id = content.message_id.as_str();
    if content.sender.server_name() != origin || id.len() > MESSAGE_ID_BYTES_MAX {
        return Ok(());
    }
    let mut count = 0;
    let mut messages = Messages::new();
    for (user_id, devices) in content.messages {
        if !app.is_local(&user_id) {
            continue;
        }
        let devices: BTreeMap<_, _> = devices
            .into_iter()
            .map(|(device, content)| (device.to_string().into(), content.into_json()))
            .collect();
        count += devices.len();
        messages.insert(user_id, devices);
    }
    if count > DEVICES_MAX {
        tracing::warn!(%origin, count, "messages for too many devices are dropped");
        return Ok(());
    }
    let sender: OwnedUserId = content.sender;
    let kind = content.ev_type.to_string();
    // One at a time for each sender: an ID that is looked up is not being written.
    let user = app.store.user_num(&sender)?;
    let _turn = app.key_turn.lock(user).await;
    let mut commit = Commit::new();
    if !seen::note(app, &mut commit, origin, id)? {
        return Ok(());
    }
    to_device::deliver(app, &mut commit, &sender, &kind, &messages)?;
    write(app, commit).await
}
