//! Events, states and auth chains for other servers.
//!
//! Spec: server-server API, "Backfilling and retrieving missing events", "Retrieving events".

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    sync::Arc,
};

use federation::event::Pdu;
use ruma::{
    OwnedEventId, OwnedRoomId,
    api::{
        Direction,
        federation::{
            authorization::get_event_authorization,
            backfill::get_backfill,
            event::{
                get_event, get_event_by_timestamp, get_missing_events, get_room_state,
                get_room_state_ids,
            },
        },
    },
};
use serde_json::value::RawValue;
use store::{kv, rooms::TimelineEvent};

use crate::{
    error::{ApiError, ApiResult},
    http::{Origin, Routes},
    rooms::{
        chains,
        served::{self, Asker},
    },
    seams::heavy,
    server::App,
};

/// How many events one answer to `/backfill` has at most, as elsewhere.
const BACKFILL_EVENTS_MAX: usize = 100;

/// How many events one answer to `/get_missing_events` has at most, as elsewhere.
const MISSING_EVENTS_MAX: usize = 20;

/// How many events a request may name to begin at, or to end at.
const NAMED_EVENTS_MAX: usize = 100;

/// How many events are looked at for `/timestamp_to_event`, from the time that is asked for.
const NEAR_EVENTS_MAX: usize = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    routes.add(backfill);
    routes.add(missing);
    routes.add(state);
    routes.add(state_ids);
    routes.add(event);
    routes.add(event_auth);
    routes.add(near_time);
}

fn raw(pdu: &Pdu) -> ApiResult<Box<RawValue>> {
    RawValue::from_string(pdu.json().to_owned()).map_err(|error| ApiError::internal(&error))
}

fn no_such_event() -> ApiError {
    ApiError::not_found("there is no such event, or your server may not see it")
}

fn must_be_few(named: &[OwnedEventId]) -> ApiResult<()> {
    if named.len() > NAMED_EVENTS_MAX {
        return Err(ApiError::invalid_param(format!(
            "a request names at most {NAMED_EVENTS_MAX} events"
        )));
    }
    Ok(())
}

/// The named events and what lies behind them, newest first.
async fn backfill(
    app: App,
    origin: Origin,
    request: get_backfill::v1::Request,
) -> ApiResult<get_backfill::v1::Response> {
    let mut asker = Asker::of(&app, &request.room_id, &origin.name)?;
    must_be_few(&request.v)?;
    let limit = usize::try_from(u64::from(request.limit))
        .map_or(BACKFILL_EVENTS_MAX, |limit| limit.min(BACKFILL_EVENTS_MAX));
    let mut pdus = Vec::new();
    for event in behind(&app, &asker, request.v, limit)? {
        pdus.push(raw(&*asker.served(&app, &event)?)?);
    }
    let (name, now) = (app.server_name().to_owned(), app.clock.now());
    Ok(get_backfill::v1::Response::new(name, now, pdus))
}

/// Events by depth, and then by the order in which this server came to know them.
type ByDepth = (u64, i64, OwnedEventId);

/// Walks back from some events, deepest first; each event is found once.
fn behind(
    app: &App,
    asker: &Asker,
    from: Vec<OwnedEventId>,
    limit: usize,
) -> ApiResult<Vec<Arc<TimelineEvent>>> {
    let mut waiting: BinaryHeap<ByDepth> = BinaryHeap::new();
    let mut known: BTreeMap<OwnedEventId, Arc<TimelineEvent>> = BTreeMap::new();
    let mut found = Vec::new();
    let mut next = from;
    loop {
        for event_id in std::mem::take(&mut next) {
            if known.contains_key(&event_id) {
                continue;
            }
            if let Some(event) = asker.event(app, &event_id)? {
                waiting.push((event.pdu.depth(), event.order, event_id.clone()));
                known.insert(event_id, event);
            }
        }
        if found.len() == limit {
            return Ok(found);
        }
        let Some((_, _, event_id)) = waiting.pop() else {
            return Ok(found);
        };
        let Some(event) = known.get(&event_id) else {
            continue;
        };
        next = event.pdu.prev_events().to_vec();
        found.push(event.clone());
    }
}

/// The events between those that a server has and those that it was sent, oldest first.
async fn missing(
    app: App,
    origin: Origin,
    request: get_missing_events::v1::Request,
) -> ApiResult<get_missing_events::v1::Response> {
    let mut asker = Asker::of(&app, &request.room_id, &origin.name)?;
    must_be_few(&request.earliest_events)?;
    must_be_few(&request.latest_events)?;
    let limit = usize::try_from(u64::from(request.limit))
        .map_or(MISSING_EVENTS_MAX, |limit| limit.min(MISSING_EVENTS_MAX));
    let min_depth = u64::from(request.min_depth);
    let mut passed: BTreeSet<OwnedEventId> = request.earliest_events.into_iter().collect();
    let mut waiting: VecDeque<OwnedEventId> = VecDeque::new();
    for event_id in request.latest_events {
        if passed.insert(event_id.clone())
            && let Some(event) = asker.event(&app, &event_id)?
        {
            waiting.extend(event.pdu.prev_events().iter().cloned());
        }
    }
    let mut found = Vec::new();
    while let Some(event_id) = waiting.pop_front() {
        if found.len() == limit {
            break;
        }
        if !passed.insert(event_id.clone()) {
            continue;
        }
        let Some(event) = asker.event(&app, &event_id)? else {
            continue;
        };
        if event.pdu.depth() < min_depth {
            continue;
        }
        waiting.extend(event.pdu.prev_events().iter().cloned());
        found.push(event);
    }
    found.sort_by_key(|event| (event.pdu.depth(), event.order));
    let mut events = Vec::new();
    for event in found {
        events.push(raw(&*asker.served(&app, &event)?)?);
    }
    Ok(get_missing_events::v1::Response::new(events))
}

type Pdus = Vec<Arc<Pdu>>;

/// The state before an event, and its auth chain. Of a large room that is a lot to read.
async fn state_before(
    app: &App,
    origin: Origin,
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
) -> ApiResult<(Pdus, Pdus)> {
    let (inline, app) = (app.seams.inline, app.clone());
    let read = move || {
        let asker = Asker::of(&app, &room_id, &origin.name)?;
        asker.must_be_joined()?;
        let event = asker.event(&app, &event_id)?.ok_or_else(no_such_event)?;
        let state = app.store.state(asker.view.room, event.state_before)?;
        let mut pdus = Vec::new();
        for (_, _, event_id) in state.iter() {
            pdus.extend(chains::known(&app, &asker.view, event_id)?);
        }
        let chain = chains::auth_chain(&app, &asker.view, pdus.iter().map(|pdu| &**pdu))?;
        Ok((pdus, chain))
    };
    heavy(inline, read).await
}

fn raw_all(pdus: &Pdus) -> ApiResult<Vec<Box<RawValue>>> {
    pdus.iter().map(|pdu| raw(pdu)).collect()
}

async fn state(
    app: App,
    origin: Origin,
    request: get_room_state::v1::Request,
) -> ApiResult<get_room_state::v1::Response> {
    let (state, chain) = state_before(&app, origin, request.room_id, request.event_id).await?;
    Ok(get_room_state::v1::Response::new(
        raw_all(&chain)?,
        raw_all(&state)?,
    ))
}

async fn state_ids(
    app: App,
    origin: Origin,
    request: get_room_state_ids::v1::Request,
) -> ApiResult<get_room_state_ids::v1::Response> {
    let (state, chain) = state_before(&app, origin, request.room_id, request.event_id).await?;
    let all = |pdus: Pdus| pdus.iter().map(|pdu| pdu.event_id().to_owned()).collect();
    Ok(get_room_state_ids::v1::Response::new(
        all(chain),
        all(state),
    ))
}

/// One event: whole or redacted for who may look into its room, and unknown to everybody else.
async fn event(
    app: App,
    origin: Origin,
    request: get_event::v1::Request,
) -> ApiResult<get_event::v1::Response> {
    let found = served::find(&app, &request.event_id)?;
    let (found, _) = found.ok_or_else(no_such_event)?;
    let room_id = found.pdu.room_id();
    let mut asker = Asker::of(&app, room_id, &origin.name).map_err(|error| {
        if error.status == http::StatusCode::FORBIDDEN {
            no_such_event()
        } else {
            error
        }
    })?;
    let pdu = raw(&*asker.served(&app, &found)?)?;
    let (name, now) = (app.server_name().to_owned(), app.clock.now());
    Ok(get_event::v1::Response::new(name, now, pdu))
}

async fn event_auth(
    app: App,
    origin: Origin,
    request: get_event_authorization::v1::Request,
) -> ApiResult<get_event_authorization::v1::Response> {
    let inline = app.seams.inline;
    let read = move || {
        let asker = Asker::of(&app, &request.room_id, &origin.name)?;
        let event = chains::known(&app, &asker.view, &request.event_id)?;
        let event = event.ok_or_else(no_such_event)?;
        raw_all(&chains::auth_chain(&app, &asker.view, [&*event])?)
    };
    let chain = heavy(inline, read).await?;
    Ok(get_event_authorization::v1::Response::new(chain))
}

/// The event nearest to a time that the server may see.
async fn near_time(
    app: App,
    origin: Origin,
    request: get_event_by_timestamp::v1::Request,
) -> ApiResult<get_event_by_timestamp::v1::Response> {
    let mut asker = Asker::of(&app, &request.room_id, &origin.name)?;
    let direction = match request.dir {
        Direction::Forward => kv::Direction::Ascending,
        Direction::Backward => kv::Direction::Descending,
    };
    let room = asker.view.room;
    let (mut looked_at, mut found, mut failed) = (0, None, None);
    app.store
        .order_near_time(room, request.ts.get().into(), direction, |order| {
            looked_at += 1;
            if let Some(event) = app.store.event_at(room, order)? {
                match asker.may_see(&app, &event) {
                    Ok(true) => found = Some(event),
                    Ok(false) => {}
                    Err(error) => failed = Some(error),
                }
            }
            Ok(found.is_some() || failed.is_some() || looked_at == NEAR_EVENTS_MAX)
        })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let event =
        found.ok_or_else(|| ApiError::not_found("there is no event at or beyond that time"))?;
    Ok(get_event_by_timestamp::v1::Response::new(
        event.pdu.event_id().to_owned(),
        event.pdu.origin_server_ts(),
    ))
}
