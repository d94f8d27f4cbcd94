//! What a push gateway is told.
//!
//! Spec: push gateway API, "POST /_matrix/push/v1/notify".

use ruma::push::{Action, HighlightTweakValue, Tweak};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{
    keys::UserNum,
    rooms::{Membership, RoomView, TimelineEvent},
};

use super::{
    badge,
    outbox::Item,
    pushers::PusherRow,
    unread::{Floors, thread_of},
};
use crate::{
    error::ApiResult,
    rooms::{members::MemberContent, read::state_content},
    server::App,
};

/// What a gateway is told of an event; `None` when there is nothing to tell any more: it was read,
/// redacted, or the user has left.
///
/// # Errors
/// When the store cannot be read.
pub fn of_event(
    app: &App,
    user: UserNum,
    pusher: &PusherRow,
    item: &Item,
) -> ApiResult<Option<Value>> {
    let order = i64::try_from(item.position).unwrap_or(i64::MAX);
    let event = app.store.event_at(item.room, order)?;
    let Some(event) = event.filter(|event| event.redacted_by.is_none()) else {
        return Ok(None);
    };
    let Some(view) = app.store.room(item.room)? else {
        return Ok(None);
    };
    let user_id = app.store.user_id(user)?;
    let is_target = *event.pdu.kind() == ruma::events::TimelineEventType::RoomMember
        && event.pdu.state_key() == Some(user_id.as_str());
    let wanted = match app.store.user_room(user, item.room)? {
        Some(row) if row.membership == Membership::Join => {
            let thread = thread_of(&app.store, &event)?;
            !Floors::of(&app.store, item.room, user)?.cover(&thread, order)
        }
        Some(row) => is_target && row.position == item.position,
        None => false,
    };
    if !wanted {
        return Ok(None);
    }
    badge::refresh(app, user, item.room)?;
    let mut notification = json!({
        "event_id": event.pdu.event_id(),
        "room_id": view.room_id,
        "prio": priority(&event, &item.actions),
        "counts": counts(app, user)?,
        "devices": [device(pusher, &item.actions)],
    });
    let only_id = pusher.data.get("format").and_then(Value::as_str) == Some("event_id_only");
    if let (false, Some(notification)) = (only_id, notification.as_object_mut()) {
        describe(app, &view, &event, notification)?;
        if is_target {
            notification.insert("user_is_target".to_owned(), true.into());
        }
    }
    Ok(Some(json!({ "notification": notification })))
}

/// What a gateway is told when there is less to read.
///
/// # Errors
/// When the store cannot be read.
pub fn of_badge(app: &App, user: UserNum, pusher: &PusherRow) -> ApiResult<Value> {
    Ok(json!({ "notification": {
        "prio": "low",
        "counts": counts(app, user)?,
        "devices": [device(pusher, &[])],
    }}))
}

/// A count of zero is said, too: gateways that are in use take its absence for no news, and the
/// number on the icon would stay.
fn counts(app: &App, user: UserNum) -> ApiResult<Value> {
    let (unread, missed_calls) = badge::total(app, user)?;
    let mut counts = json!({ "unread": unread });
    if let (true, Some(counts)) = (missed_calls > 0, counts.as_object_mut()) {
        counts.insert("missed_calls".to_owned(), missed_calls.into());
    }
    Ok(counts)
}

fn device(pusher: &PusherRow, actions: &[Action]) -> Value {
    let mut data = pusher.data.clone();
    data.remove("url");
    let tweaks: Map<String, Value> = actions.iter().filter_map(tweak).collect();
    json!({
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "pushkey_ts": pusher.set_ms / 1_000,
        "data": data,
        "tweaks": tweaks,
    })
}

fn tweak(action: &Action) -> Option<(String, Value)> {
    match action {
        Action::SetTweak(Tweak::Sound(sound)) => Some(("sound".to_owned(), sound.as_str().into())),
        Action::SetTweak(Tweak::Highlight(highlight)) => {
            let on = matches!(highlight, HighlightTweakValue::Yes);
            on.then(|| ("highlight".to_owned(), true.into()))
        }
        Action::SetTweak(_) => {
            let action = serde_json::to_value(action).ok()?;
            let name = action.get("set_tweak")?.as_str()?.to_owned();
            Some((name, action.get("value").cloned().unwrap_or(Value::Null)))
        }
        _ => None,
    }
}

/// What makes a sound or stands out must arrive soon; so must what only the app can decrypt, as it
/// may be either.
fn priority(event: &TimelineEvent, actions: &[Action]) -> &'static str {
    let encrypted = *event.pdu.kind() == ruma::events::TimelineEventType::RoomEncrypted;
    let loud = |action: &Action| action.is_highlight() || action.sound().is_some();
    if encrypted || actions.iter().any(loud) {
        "high"
    } else {
        "low"
    }
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Alias {
    alias: String,
}

fn describe(
    app: &App,
    view: &RoomView,
    event: &TimelineEvent,
    notification: &mut Map<String, Value>,
) -> ApiResult<()> {
    let (store, state, pdu) = (&app.store, &view.head.state, &event.pdu);
    let sender: Option<MemberContent> =
        state_content(store, state, "m.room.member", pdu.sender().as_str())?;
    let name: Option<Name> = state_content(store, state, "m.room.name", "")?;
    let alias: Option<Alias> = state_content(store, state, "m.room.canonical_alias", "")?;
    let mut say = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            notification.insert(key.to_owned(), value);
        }
    };
    say("type", Some(pdu.kind().to_string().into()));
    say("sender", Some(pdu.sender().as_str().into()));
    let sender = sender.and_then(|sender| sender.displayname);
    say("sender_display_name", sender.map(Value::from));
    say("room_name", name.map(|name| name.name.into()));
    say("room_alias", alias.map(|alias| alias.alias.into()));
    say("content", serde_json::from_str(pdu.content().get()).ok());
    Ok(())
}
