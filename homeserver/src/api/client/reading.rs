//! Typing, receipts and read markers: what users do while they read a room.
//!
//! Spec: client-server API, "Typing Notifications", "Receipts", "Fully read markers".

use std::time::Duration;

use http::Method;
use ruma::{EventId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Commit, keys::RoomNum};

use crate::{
    account_data,
    ephemeral::TYPING_MS_MAX,
    error::{ApiError, ApiResult},
    http::{Caller, Guest, RawRequest, Routes},
    receipts::{self, Receipt, ReceiptRow},
    rooms::read::Sight,
    server::App,
};

const FULLY_READ: &str = "m.fully_read";
const READ: &str = "m.read";
const READ_PRIVATE: &str = "m.read.private";

/// How long somebody types who does not say how long, in milliseconds.
const TYPING_MS_DEFAULT: u64 = 30_000;

/// How often those are looked for who type no more.
const TYPING_CHECK: Duration = Duration::from_secs(1);

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["r0", "v3"] {
        let room = format!("/_matrix/client/{prefix}/rooms/{{room_id}}");
        routes.raw(Method::PUT, &format!("{room}/typing/{{user_id}}"), typing);
        routes.raw(
            Method::POST,
            &format!("{room}/receipt/{{type}}/{{event_id}}"),
            receipt,
        );
        routes.raw(Method::POST, &format!("{room}/read_markers"), markers);
    }
}

/// Ends typing that was not said again in time, and wakes the rooms, for as long as the server runs.
pub async fn expire_typing(app: App) {
    loop {
        tokio::time::sleep(TYPING_CHECK).await;
        for room in app.typing.expire(&app.moments, app.clock.now_ms()) {
            if let Ok(Some(view)) = app.store.room(room) {
                app.wakeups.wake_room(&view, None);
            }
        }
    }
}

fn joined(app: &App, caller: &Caller, room_id: &str) -> ApiResult<Sight> {
    let room_id =
        RoomId::parse(room_id).map_err(|_| ApiError::invalid_param("the path names no room ID"))?;
    let sight = Sight::of(app, &room_id, caller.user, &caller.user_id)?;
    sight.must_be_joined()?;
    Ok(sight)
}

#[derive(Deserialize)]
struct TypingBody {
    typing: bool,
    timeout: Option<u64>,
}

async fn typing(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let user_id = UserId::parse(request.arg(1))
        .map_err(|_| ApiError::invalid_param("the path names no user ID"))?;
    caller.must_be(&user_id)?;
    caller.must_not_be_suspended()?;
    let body: TypingBody = request.json()?;
    let sight = joined(&app, &caller, request.arg(0))?;
    let timeout_ms = body.timeout.unwrap_or(TYPING_MS_DEFAULT).min(TYPING_MS_MAX);
    let until_ms = body.typing.then(|| app.clock.now_ms() + timeout_ms);
    if app
        .typing
        .set(&app.moments, sight.view.room, caller.user, until_ms)
    {
        app.wakeups.wake_room(&sight.view, None);
    }
    Ok(json!({}))
}

#[derive(Default, Deserialize)]
struct ReceiptBody {
    thread_id: Option<String>,
}

async fn receipt(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let body: ReceiptBody = request.json()?;
    let sight = joined(&app, &caller, request.arg(0))?;
    let (kind, event_id) = (request.arg(1), request.arg(2));
    let thread = body.thread_id.unwrap_or_default();
    let mut commit = Commit::new();
    match kind {
        READ | READ_PRIVATE => {
            put_receipt(&app, &mut commit, &caller, &sight, kind, event_id, thread)?;
        }
        FULLY_READ if thread.is_empty() => {
            put_marker(&app, &mut commit, &caller, sight.view.room, event_id)?;
        }
        FULLY_READ => {
            let message = "`m.fully_read` has no thread";
            return Err(ApiError::invalid_param(message));
        }
        _ => return Err(ApiError::invalid_param("there is no such receipt type")),
    }
    write(&app, commit).await
}

#[derive(Default, Deserialize)]
struct Markers {
    #[serde(rename = "m.fully_read")]
    fully_read: Option<String>,
    #[serde(rename = "m.read")]
    read: Option<String>,
    #[serde(rename = "m.read.private")]
    read_private: Option<String>,
}

async fn markers(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let body: Markers = request.json()?;
    let sight = joined(&app, &caller, request.arg(0))?;
    let mut commit = Commit::new();
    for (kind, event_id) in [(READ, &body.read), (READ_PRIVATE, &body.read_private)] {
        if let Some(event_id) = event_id {
            put_receipt(
                &app,
                &mut commit,
                &caller,
                &sight,
                kind,
                event_id,
                String::new(),
            )?;
        }
    }
    if let Some(event_id) = &body.fully_read {
        put_marker(&app, &mut commit, &caller, sight.view.room, event_id)?;
    }
    write(&app, commit).await
}

async fn write(app: &App, commit: Commit) -> ApiResult<Value> {
    if !commit.is_empty() {
        app.store.commit(commit).await?;
    }
    Ok(json!({}))
}

fn put_receipt(
    app: &App,
    commit: &mut Commit,
    caller: &Caller,
    sight: &Sight,
    kind: &str,
    event_id: &str,
    thread: String,
) -> ApiResult<()> {
    let event_id =
        EventId::parse(event_id).map_err(|_| ApiError::invalid_param("that is no event ID"))?;
    if !(thread.is_empty() || thread == "main" || EventId::parse(&thread).is_ok()) {
        let message = "`thread_id` is `main` or the ID of a thread's root";
        return Err(ApiError::invalid_param(message));
    }
    let event = app
        .store
        .event(&event_id)?
        .filter(|event| event.room == sight.view.room)
        .ok_or_else(|| ApiError::not_found("there is no such event in this room"))?;
    let receipt = Receipt {
        user: caller.user,
        kind: kind.to_owned(),
        thread,
        row: ReceiptRow {
            event_id,
            order: event.order,
            ts: app.clock.now_ms(),
        },
    };
    receipts::put(&app.store, commit, sight.view.room, &receipt)?;
    Ok(())
}

fn put_marker(
    app: &App,
    commit: &mut Commit,
    caller: &Caller,
    room: RoomNum,
    event_id: &str,
) -> ApiResult<()> {
    let event_id =
        EventId::parse(event_id).map_err(|_| ApiError::invalid_param("that is no event ID"))?;
    let content = Map::from_iter([("event_id".to_owned(), event_id.as_str().into())]);
    let content =
        serde_json::value::to_raw_value(&content).map_err(|error| ApiError::internal(&error))?;
    account_data::put(
        &app.store,
        commit,
        caller.user,
        Some(room),
        FULLY_READ,
        &content,
    )?;
    Ok(())
}
