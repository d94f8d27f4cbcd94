//! Looking into a room without being in it, as clients did it before `/sync`.
//!
//! The room comes with its newest events, and then what is said there for as long as one looks. The
//! stream of all rooms at once is not served: that is `/sync`. Spec: client-server API, "Room previews".

use std::{ops::Bound, time::Duration};

use http::Method;
use ruma::RoomId;
use serde_json::{Value, json};
use store::kv::Direction;

use super::{
    PREFIXES,
    events::{format, page, room_id},
    members::number,
};
use crate::{
    account_data,
    error::{ApiError, ApiResult},
    http::{Guest, RawRequest, Routes},
    rooms::{
        aliases,
        read::{Format, Seen, Sight, client_event},
    },
    server::App,
    sync::{Token, filter::EventFilter, room::state_events},
};

/// How many events the room comes with when the client names no number, and at most.
const PAGE_DEFAULT: u64 = 20;
const PAGE_MAX: u64 = 100;

/// How long a request for news waits at most, in milliseconds.
const WAIT_MS_MAX: u64 = 60_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        let path = format!("{prefix}/rooms/{{room_id}}/initialSync");
        routes.raw(Method::GET, &path, initial_sync);
        routes.raw(Method::GET, &format!("{prefix}/events"), events);
    }
}

async fn initial_sync(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    let state = sight.state(&app)?;
    let limit = number(&request, "limit")?
        .unwrap_or(PAGE_DEFAULT)
        .min(PAGE_MAX);
    let limit = usize::try_from(limit).unwrap_or(0);
    let everything = EventFilter::default();
    let until = i64::try_from(sight.view.position).unwrap_or(i64::MAX);
    let orders = (Bound::Unbounded, Bound::Included(until));
    let newest = Direction::Descending;
    let mut page = page(&app, &sight, orders, newest, limit, &everything)?;
    page.events.reverse();
    let format = Format {
        reader: (caller.user, caller.device.as_deref()),
        ..format(&app, &caller)
    };
    let write = |events: &[Seen]| {
        let events = events
            .iter()
            .map(|seen| client_event(&app, &sight, seen, &format));
        events.collect::<ApiResult<Vec<_>>>()
    };
    let ids = state.iter().map(|(_, _, event_id)| event_id.clone());
    let state = state_events(&app, &sight, ids, &everything)?;
    let room = sight.view.room;
    let account_data: Vec<Value> = account_data::of_room(&app.store, caller.user, room)?
        .into_iter()
        .map(|data| json!({ "type": data.kind, "content": data.content }))
        .collect();
    let published = aliases::is_published(&app.store, room)?;
    let mut reply = json!({
        "room_id": sight.view.room_id,
        "messages": {
            "start": Token::before(page.next.unwrap_or(until)).to_string(),
            "end": Token::behind(until).to_string(),
            "chunk": write(&page.events)?,
        },
        "state": write(&state)?,
        "visibility": if published { "public" } else { "private" },
        "account_data": account_data,
    });
    if let (Some(reply), Some(row)) = (reply.as_object_mut(), &sight.viewer.row) {
        reply.insert("membership".to_owned(), json!(row.membership));
    }
    Ok(reply)
}

/// What is new in a room, at once or as soon as there is something.
async fn events(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let named = request.query("room_id").ok_or_else(|| {
        ApiError::missing_param("`room_id` is missing: for all rooms there is /sync")
    })?;
    let room_id = RoomId::parse(&*named).map_err(|_| ApiError::invalid_param("not a room ID"))?;
    let from = request.query("from");
    let from = from.map(|text| Token::parse(&app, &text)).transpose()?;
    let wait_ms = number(&request, "timeout")?.unwrap_or(0).min(WAIT_MS_MAX);
    let waited = tokio::time::sleep(Duration::from_millis(wait_ms));
    tokio::pin!(waited);
    let mut start = None;
    loop {
        let grew = app.store.grew().notified();
        tokio::pin!(grew);
        grew.as_mut().enable();
        // Anew each time: who may look may change while one waits.
        let sight = Sight::of(&app, &room_id, caller.user, &caller.user_id)?;
        sight.must_see_something(&app)?;
        let newest = i64::try_from(sight.view.position).unwrap_or(i64::MAX);
        let begin = *start.get_or_insert_with(|| from.map_or(newest, |from| from.order));
        let mut end = newest.max(begin);
        let mut chunk = Vec::new();
        if newest > begin {
            let orders = (Bound::Excluded(begin), Bound::Included(newest));
            let most = usize::try_from(PAGE_MAX).unwrap_or(1);
            let oldest = Direction::Ascending;
            let everything = EventFilter::default();
            let page = page(&app, &sight, orders, oldest, most, &everything)?;
            end = page.next.unwrap_or(newest);
            let format = Format {
                reader: (caller.user, caller.device.as_deref()),
                ..format(&app, &caller)
            };
            for seen in &page.events {
                chunk.push(client_event(&app, &sight, seen, &format)?);
            }
        }
        if !chunk.is_empty() || waited.is_elapsed() || wait_ms == 0 {
            return Ok(json!({
                "start": Token::behind(begin).to_string(),
                "end": Token::behind(end).to_string(),
                "chunk": chunk,
            }));
        }
        start = Some(end);
        tokio::select! {
            biased;
            () = grew => {}
            () = &mut waited => {}
        }
    }
}
