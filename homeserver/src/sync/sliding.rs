//! Sliding sync, the second of the two front ends: a client says which rooms it wants, and what of
//! them.
//!
//! Reading order: [`request`] (what is asked, in two forms) → [`connection`] (what was told before) →
//! [`roster`] (the user's rooms) → [`rules`] (which of them, and what) → [`room`] (one room) →
//! [`extensions`] and [`encryption`] (the rest).
//! Spec: MSC4186.

mod connection;
mod encryption;
mod extensions;
pub mod request;
mod room;
mod roster;
mod rules;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ruma::OwnedRoomId;
use serde::Serialize;

pub use self::connection::Connections;
use self::{
    connection::{Connection, Told, lock},
    extensions::{Asked, Extensions},
    request::{Form, Request},
    room::{Look, Room},
    rules::Windows,
};
use super::{Token, touched::Touched};
use crate::{
    account_data,
    error::{ApiError, ApiResult},
    http::Caller,
    rooms::read::{Format, Sight},
    server::App,
};

/// What sliding sync answers.
#[derive(Debug, Serialize)]
pub struct Response {
    pos: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    txn_id: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    lists: BTreeMap<String, Count>,
    rooms: BTreeMap<OwnedRoomId, Room>,
    extensions: Extensions,
}

#[derive(Debug, Serialize)]
struct Count {
    count: u64,
}

/// Answers: at once if there is something to tell, else when there is or the time is over.
///
/// # Errors
/// `M_UNKNOWN_POS` when the connection is not known; when the store cannot be read.
pub async fn sync(app: &App, caller: &Caller, request: &Request) -> ApiResult<Response> {
    let unknown = || ApiError::unknown_pos("begin this connection anew, without `pos`");
    let device = caller.device.as_ref().map(ToString::to_string);
    let key = (
        caller.user,
        device.unwrap_or_default(),
        request.conn_id.clone(),
    );
    let pos = request.pos.as_deref();
    let connection = app
        .connections
        .open(&key, pos.is_none(), app.clock.now_ms())
        .ok_or_else(unknown)?;
    let (mut told, turn) = lock(&connection).begin(pos).ok_or_else(unknown)?;
    encryption::acknowledge(app, caller, &request.extensions.to_device).await?;
    let longest = Duration::from_secs(app.config.limits.sync_wait_seconds_max);
    let deadline = app.clock.instant() + request.timeout.min(longest);
    let waiting = app.wakeups.wait(caller.user);
    loop {
        let notified = waiting.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        let (mut response, now_told) = {
            let mut connection = lock(&connection);
            if !connection.is_current(turn) {
                // The client has gone on without this answer.
                return Err(unknown());
            }
            answer(app, caller, request, &told, &mut connection)?
        };
        told = Arc::new(now_told);
        let tells = !response.rooms.is_empty() || !response.extensions.is_empty();
        if !(tells || pos.is_none() || app.tasks.is_stopping()) {
            let over = tokio::select! {
                biased;
                () = &mut notified => false,
                () = app.tasks.stopping() => true,
                () = tokio::time::sleep_until(deadline) => true,
            };
            if !over {
                continue;
            }
        }
        let mut connection = lock(&connection);
        if !connection.is_current(turn) {
            return Err(unknown());
        }
        connection.end(response.pos.clone(), told);
        response.txn_id.clone_from(&request.txn_id);
        return Ok(response);
    }
}

/// One look at everything, from a pinned position.
fn answer(
    app: &App,
    caller: &Caller,
    request: &Request,
    before: &Told,
    connection: &mut Connection,
) -> ApiResult<(Response, Told)> {
    let until = Token::new(app.store.published(), app.moments.last());
    let mut told = before.clone();
    if *told.rules != request.rules {
        told.rules = Arc::new(request.rules.clone());
        told.combined = rules::Configs::new();
    }
    let touched = match before.upto {
        Some(since) => Touched::between(app, caller.user, since, until.position())?,
        None => Touched::default(),
    };
    let look = Look {
        app,
        form: request.form,
        format: Format {
            with_room_id: false,
            reader: (caller.user, caller.device.as_deref()),
            now_ms: app.clock.now_ms(),
        },
        until,
        since: before.upto,
        ignored: account_data::ignored_by(&app.store, caller.user)?,
    };
    let windows = if request.rules.lists.is_empty() && request.rules.subscriptions.is_empty() {
        Windows::default()
    } else {
        connection
            .roster
            .advance(app, caller.user, until.position())?;
        let roster = &connection.roster;
        rules::windows(
            app,
            caller.user,
            &request.rules,
            roster,
            &told.rooms,
            &mut told.combined,
        )?
    };
    let rooms = rooms(&look, caller, &windows, &touched, connection, &mut told)?;
    let extensions = Asked {
        look: &look,
        user: caller.user,
        user_id: &caller.user_id,
        device: caller.device.as_deref(),
        since: before.upto,
        windows: &windows,
        touched: &touched,
        rooms: &rooms,
    }
    .answer(&request.extensions, &mut told)?;
    told.upto = Some(until);
    let counts = windows.counts.into_iter();
    let response = Response {
        // A point that every other endpoint understands, and a name for this one answer.
        pos: format!("{until}~{}", app.entropy.text(10)),
        txn_id: None,
        lists: counts
            .map(|(name, count)| (name, Count { count }))
            .collect(),
        rooms,
        extensions,
    };
    Ok((response, told))
}

/// The rooms of which there is something to tell.
fn rooms(
    look: &Look<'_>,
    caller: &Caller,
    windows: &Windows,
    touched: &Touched,
    connection: &Connection,
    told: &mut Told,
) -> ApiResult<BTreeMap<OwnedRoomId, Room>> {
    let touched = touched.rooms.as_ref();
    told.rooms
        .miss(touched, |room| windows.rooms.contains_key(&room));
    let mut rooms = BTreeMap::new();
    for (room, matched) in &windows.rooms {
        let is_dm = connection.roster.is_direct(&matched.room_id);
        let old = told.rooms.of(*room);
        let as_before = old.is_some_and(|(_, old)| {
            (Arc::ptr_eq(&old.config, &matched.config) || old.config == matched.config)
                && old.is_dm == is_dm
        });
        let is_touched = touched.is_none_or(|touched| touched.contains(room));
        if as_before && !told.rooms.is_due(*room, is_touched) {
            continue;
        }
        let Some(view) = look.app.store.room(*room)? else {
            continue;
        };
        let sight = Sight::on(look.app, view, caller.user, &caller.user_id)?;
        let (update, now_told) = look.room(&sight, old, matched, is_dm)?;
        if let Some(update) = update {
            rooms.insert(matched.room_id.clone(), update);
        }
        told.rooms.tell(*room, look.until, now_told);
    }
    Ok(rooms)
}

/// A request in the form that clients speak today, or as the proposal was accepted.
///
/// # Errors
/// When it has another shape, or more of something than there may be.
pub fn parse(
    form: Form,
    body: serde_json::Value,
    pos: Option<String>,
    timeout_ms: Option<u64>,
    caller: &Caller,
) -> ApiResult<Request> {
    match form {
        Form::Unstable => request::unstable(body, pos, timeout_ms, &caller.user_id),
        Form::Accepted => request::accepted(body),
    }
}
