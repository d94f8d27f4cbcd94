//! What was said around an event, and which event was nearest to a time.
//!
//! Spec: client-server API, "Event Context", "Jump to timestamp".

use std::ops::Bound;

use federation::room::StateMap;
use http::Method;
use ruma::EventId;
use serde_json::{Value, json, value::RawValue};
use store::kv::Direction;

use super::{
    events::{format, page, room_id},
    members::number,
};
use crate::{
    error::{ApiError, ApiResult},
    http::{Guest, RawRequest, Routes},
    rooms::{
        backfill,
        read::{Format, Seen, Sight, client_event},
    },
    server::App,
    sync::{Token, filter::EventFilter, room::state_events},
};

/// How many events come with the one in the middle when the client names no number.
const CONTEXT_DEFAULT: u64 = 10;

/// How many events come with it at most.
const CONTEXT_MAX: u64 = 100;

/// How many events are looked at for one that the caller may see.
const NEAR_EVENTS_MAX: usize = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["/_matrix/client/r0", "/_matrix/client/v3"] {
        routes.raw(
            Method::GET,
            &format!("{prefix}/rooms/{{room_id}}/context/{{event_id}}"),
            context,
        );
    }
    for prefix in [
        "/_matrix/client/v1",
        "/_matrix/client/unstable/org.matrix.msc3030",
    ] {
        routes.raw(
            Method::GET,
            &format!("{prefix}/rooms/{{room_id}}/timestamp_to_event"),
            timestamp_to_event,
        );
    }
}

/// What surrounds an event.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// What came before, nearest first.
    pub(super) before: Vec<Seen>,
    /// What came after, nearest first.
    pub(super) after: Vec<Seen>,
    /// The point before the first.
    pub(super) start: Token,
    /// The point behind the last.
    pub(super) end: Token,
}

/// What surrounds the event at `order`, of what the viewer may see and wants.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn surroundings(
    app: &App,
    sight: &Sight,
    order: i64,
    (before, after): (usize, usize),
    filter: &EventFilter,
) -> ApiResult<Surroundings> {
    let older = (Bound::Unbounded, Bound::Excluded(order));
    let newer = (Bound::Excluded(order), Bound::Unbounded);
    let before = page(app, sight, older, Direction::Descending, before, filter)?;
    let after = page(app, sight, newer, Direction::Ascending, after, filter)?;
    Ok(Surroundings {
        start: Token::before(before.next.unwrap_or(order)),
        end: Token::behind(after.next.unwrap_or(order)),
        before: before.events,
        after: after.events,
    })
}

async fn context(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    let event_id = EventId::parse(request.arg(1))
        .map_err(|_| ApiError::not_found("there is no such event in this room"))?;
    let filter: EventFilter = match request.query("filter") {
        Some(json) => serde_json::from_str(&json)
            .map_err(|error| ApiError::invalid_param(error.to_string()))?,
        None => EventFilter::default(),
    };
    let limit = number(&request, "limit")?
        .or(filter.limit)
        .unwrap_or(CONTEXT_DEFAULT)
        .min(CONTEXT_MAX);
    let before = usize::try_from(limit / 2).unwrap_or(0);
    let after = usize::try_from(limit).unwrap_or(0) - before;
    let seen = sight.event(&app, &event_id)?;
    let around = surroundings(&app, &sight, seen.event.order, (before, after), &filter)?;
    let format = Format {
        reader: (caller.user, caller.device.as_deref()),
        ..format(&app, &caller)
    };
    let write = |events: &[Seen]| -> ApiResult<Vec<Box<RawValue>>> {
        let written = events
            .iter()
            .map(|seen| client_event(&app, &sight, seen, &format));
        written.collect()
    };
    let last = around.after.last().unwrap_or(&seen);
    let state = sight.state_at(&app.store, last.event.state_after)?;
    let all = || {
        around
            .before
            .iter()
            .chain(&around.after)
            .chain(std::iter::once(&seen))
    };
    let ids = wanted_state(&state, &filter, all());
    let state = state_events(&app, &sight, ids.into_iter(), &EventFilter::default())?;
    Ok(json!({
        "start": around.start.to_string(),
        "end": around.end.to_string(),
        "event": client_event(&app, &sight, &seen, &format)?,
        "events_before": write(&around.before)?,
        "events_after": write(&around.after)?,
        "state": write(&state)?,
    }))
}

/// The state that goes with some events: all of it, or, lazily, only their senders among the members.
fn wanted_state<'a>(
    state: &StateMap,
    filter: &EventFilter,
    events: impl Iterator<Item = &'a Seen>,
) -> Vec<ruma::OwnedEventId> {
    let senders: std::collections::BTreeSet<&str> = events
        .map(|seen| seen.event.pdu.sender().as_str())
        .collect();
    state
        .iter()
        .filter(|(kind, key, _)| {
            !filter.lazy_load_members || *kind != "m.room.member" || senders.contains(key)
        })
        .map(|(_, _, event_id)| event_id.clone())
        .collect()
}

async fn timestamp_to_event(
    app: App,
    Guest(caller): Guest,
    request: RawRequest,
) -> ApiResult<Value> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    sight.must_see_something(&app)?;
    let timestamp = number(&request, "ts")?
        .ok_or_else(|| ApiError::missing_param("`ts` says which time is meant"))?;
    let direction = match request.query("dir").as_deref() {
        Some("f") => Direction::Ascending,
        Some("b") => Direction::Descending,
        _ => return Err(ApiError::invalid_param("`dir` is either f or b")),
    };
    backfill::towards(&app, &sight.view, timestamp, direction).await?;
    let seen = nearest(&app, &sight, timestamp, direction)?;
    let seen = seen.ok_or_else(|| {
        ApiError::not_found("there is no event in that direction that you may see")
    })?;
    Ok(json!({
        "event_id": seen.event.pdu.event_id(),
        "origin_server_ts": seen.event.pdu.origin_server_ts(),
    }))
}

/// The event nearest to a time, in milliseconds since the epoch, that the viewer may see.
fn nearest(
    app: &App,
    sight: &Sight,
    timestamp: u64,
    direction: Direction,
) -> ApiResult<Option<Seen>> {
    let mut found = None;
    let mut failed = None;
    let mut looked = 0;
    app.store
        .order_near_time(sight.view.room, timestamp, direction, |order| {
            looked += 1;
            let event = app.store.event_at(sight.view.room, order)?;
            match event.map(|event| sight.look(app, event)).transpose() {
                Ok(seen) => found = seen.flatten(),
                Err(error) => failed = Some(error),
            }
            Ok(found.is_some() || failed.is_some() || looked == NEAR_EVENTS_MAX)
        })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(found),
    }
}
