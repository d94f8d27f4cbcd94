//! Sending events and reading them back.
//!
//! Spec: client-server API, "Sending events to a room", "Getting events for a room".

use std::{collections::BTreeSet, ops::Bound};

use federation::event::Draft;
use http::{Method, StatusCode};
use ruma::{
    MilliSecondsSinceUnixEpoch, RoomId, UInt,
    api::client::{redact::redact_event, room::get_room_event},
    serde::Raw,
};
use serde_json::{Value, json, value::RawValue};
use store::{keys::Position, kv::Direction as Walk, rooms::TimelineEvent};

use super::{delayed, membership};
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, Guest, RawRequest, Routes, limits::Doing},
    metrics::Stage,
    rooms::{
        backfill,
        read::{Format, Seen, Sight, client_event},
        relations::visit_relations,
        send::{self, Outgoing},
    },
    server::App,
    sync::{Token, filter::EventFilter},
};

/// How many events a page of `/messages` has that names no number.
const PAGE_EVENTS_DEFAULT: usize = 10;

/// How many times other servers are asked for history to fill one page of `/messages`.
const BACKFILLS_MAX: usize = 3;

/// How many events a page of `/messages` has at most.
const PAGE_EVENTS_MAX: usize = 1_000;

/// How many events are looked at for one page.
const WALK_EVENTS_MAX: usize = 10_000;

/// How many relations of one event are looked at for a filter.
const RELATED_ROWS_MAX: usize = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["/_matrix/client/r0", "/_matrix/client/v3"] {
        let room = format!("{prefix}/rooms/{{room_id}}");
        routes.raw(
            Method::PUT,
            &format!("{room}/send/{{event_type}}/{{txn_id}}"),
            send_message,
        );
        for path in [
            "{room}/state/{event_type}",
            "{room}/state/{event_type}/",
            "{room}/state/{event_type}/{state_key}",
        ] {
            routes.raw(Method::PUT, &path.replace("{room}", &room), send_state);
            routes.raw(Method::GET, &path.replace("{room}", &room), state_event);
        }
        routes.raw(Method::GET, &format!("{room}/state"), state);
        routes.raw(Method::GET, &format!("{room}/messages"), messages);
    }
    routes.add(redact);
    routes.add(event);
}

/// The room in a request's path.
///
/// # Errors
/// `M_INVALID_PARAM`.
pub(super) fn room_id(request: &RawRequest) -> ApiResult<ruma::OwnedRoomId> {
    RoomId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a room ID"))
}

/// The content of an event to be sent: a JSON object.
fn content(request: &RawRequest) -> ApiResult<Box<RawValue>> {
    let content: Box<RawValue> = request.json()?;
    if !content.get().starts_with('{') {
        return Err(ApiError::bad_json("the content of an event is an object"));
    }
    Ok(content)
}

/// When the event is said to be sent: application services may import the past.
fn timestamp(
    caller: &Caller,
    request: &RawRequest,
) -> ApiResult<Option<MilliSecondsSinceUnixEpoch>> {
    let Some(text) = request.query("ts").filter(|_| caller.service.is_some()) else {
        return Ok(None);
    };
    let ms = text
        .parse::<u64>()
        .ok()
        .and_then(|ms| UInt::try_from(ms).ok());
    ms.map(|ms| Some(MilliSecondsSinceUnixEpoch(ms)))
        .ok_or_else(|| ApiError::invalid_param("`ts` is not a time in milliseconds"))
}

/// What a request to send says.
fn message(request: &RawRequest) -> ApiResult<Draft> {
    let mut draft = Draft::message(request.arg(1), content(request)?);
    if draft.kind == "m.room.redaction" {
        draft.redacts = serde_json::from_str::<Value>(draft.content.get())
            .ok()
            .and_then(|content| content.get("redacts")?.as_str()?.try_into().ok());
    }
    Ok(draft)
}

async fn send_message(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Message)?;
    caller.must_not_be_suspended()?;
    let room_id = room_id(&request)?;
    if let Some(delay_ms) = delayed::delay(&request)? {
        caller.limit(&app, Doing::DelayedEvent)?;
        let txn_id = Some(request.arg(2));
        let draft = || message(&request);
        let id = crate::delayed::schedule(&app, &caller, &room_id, delay_ms, txn_id, draft).await?;
        return Ok(json!({ "delay_id": id }));
    }
    let outgoing = Outgoing {
        draft: message(&request)?,
        txn_id: Some(request.arg(2).to_owned()),
        timestamp: timestamp(&caller, &request)?,
    };
    app.metrics.stage(Stage::Receive, request.age(&app));
    let event_id = send::send(&app, &caller, &room_id, outgoing).await?;
    Ok(json!({ "event_id": event_id }))
}

async fn send_state(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Message)?;
    caller.must_not_be_suspended()?;
    let room_id = room_id(&request)?;
    let draft = || {
        Ok(Draft::state(
            request.arg(1),
            request.arg(2),
            content(&request)?,
        ))
    };
    if let Some(delay_ms) = delayed::delay(&request)? {
        caller.limit(&app, Doing::DelayedEvent)?;
        let id = crate::delayed::schedule(&app, &caller, &room_id, delay_ms, None, draft).await?;
        return Ok(json!({ "delay_id": id }));
    }
    let mut draft = draft()?;
    if draft.kind == "m.room.member" {
        let changed = membership::by_event(&app, &caller, &room_id, &mut draft).await?;
        if let Some(event_id) = changed {
            return Ok(json!({ "event_id": event_id }));
        }
    }
    let outgoing = Outgoing {
        draft,
        txn_id: None,
        timestamp: timestamp(&caller, &request)?,
    };
    app.metrics.stage(Stage::Receive, request.age(&app));
    let event_id = send::send(&app, &caller, &room_id, outgoing).await?;
    Ok(json!({ "event_id": event_id }))
}

async fn redact(
    app: App,
    Guest(caller): Guest,
    request: redact_event::v3::Request,
) -> ApiResult<redact_event::v3::Response> {
    caller.limit(&app, Doing::Message)?;
    let mut content = json!({});
    if let Some(content) = content.as_object_mut() {
        content.extend(
            request
                .reason
                .map(|reason| ("reason".to_owned(), reason.into())),
        );
        content.insert("redacts".to_owned(), request.event_id.as_str().into());
    }
    let content =
        serde_json::value::to_raw_value(&content).map_err(|error| ApiError::internal(&error))?;
    let mut draft = Draft::message("m.room.redaction", content);
    draft.redacts = Some(request.event_id);
    let outgoing = Outgoing {
        draft,
        txn_id: Some(request.txn_id.to_string()),
        timestamp: None,
    };
    let event_id = send::send(&app, &caller, &request.room_id, outgoing).await?;
    Ok(redact_event::v3::Response::new(event_id))
}

/// How events are written for a caller, without the request that sent them.
pub(super) fn format(app: &App, caller: &Caller) -> Format<'static> {
    Format {
        with_room_id: true,
        reader: (caller.user, None),
        now_ms: app.clock.now_ms(),
    }
}

async fn event(
    app: App,
    Guest(caller): Guest,
    request: get_room_event::v3::Request,
) -> ApiResult<get_room_event::v3::Response> {
    let sight = Sight::of(&app, &request.room_id, caller.user, &caller.user_id)
        .map_err(|error| error.status(StatusCode::NOT_FOUND))?;
    let seen = sight.event(&app, &request.event_id)?;
    let format = Format {
        reader: (caller.user, caller.device.as_deref()),
        ..format(&app, &caller)
    };
    let json = client_event(&app, &sight, &seen, &format)?;
    Ok(get_room_event::v3::Response::new(Raw::from_json(json)))
}

async fn state(
    app: App,
    Guest(caller): Guest,
    request: RawRequest,
) -> ApiResult<Vec<Box<RawValue>>> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    let state = sight.state(&app)?;
    let ids = state.iter().map(|(_, _, event_id)| event_id.clone());
    let events = crate::sync::room::state_events(&app, &sight, ids, &EventFilter::default())?;
    let format = format(&app, &caller);
    events
        .iter()
        .map(|seen| client_event(&app, &sight, seen, &format))
        .collect()
}

async fn state_event(
    app: App,
    Guest(caller): Guest,
    request: RawRequest,
) -> ApiResult<Box<RawValue>> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    let state = sight.state(&app)?;
    let not_found = || ApiError::not_found("the room has no such state");
    let event_id = state
        .get(request.arg(1), request.arg(2))
        .ok_or_else(not_found)?;
    let event = app.store.state_event(event_id)?.ok_or_else(not_found)?;
    if request.query("format").as_deref() == Some("event") {
        let seen = Seen {
            event: federation::room::visibility::entitled(event),
            membership: sight.membership(),
        };
        return client_event(&app, &sight, &seen, &format(&app, &caller));
    }
    Ok(event.pdu.content().to_owned())
}

/// A page; what is missing in gaps that it comes upon backwards, and with `older` at its end, is asked of other servers:
/// they may know more.
async fn whole_page(
    app: &App,
    sight: &Sight,
    (orders, walk): ((Bound<i64>, Bound<i64>), Walk),
    limit: usize,
    filter: &EventFilter,
    older: bool,
) -> ApiResult<Page> {
    let (mut sight, mut rounds) = (sight.clone(), 0);
    // Gaps of which nobody told more: the page goes on behind them.
    let mut passed: BTreeSet<Position> = BTreeSet::new();
    let asks = walk == Walk::Descending && app.config.federation.enabled;
    loop {
        let gap = sight
            .view
            .open_gap(orders, |gap| asks && !passed.contains(&gap.position));
        let lower = gap.map_or(orders.0, |gap| Bound::Included(gap.behind()));
        let mut found = page(app, &sight, (lower, orders.1), walk, limit, filter)?;
        if !found.ended {
            return Ok(found);
        }
        let has_more = match gap {
            Some(gap) if rounds == BACKFILLS_MAX => {
                found.next = Some(gap.behind());
                return Ok(found);
            }
            Some(gap) => {
                if !backfill::fill(app, &sight.view, gap).await? {
                    passed.insert(gap.position);
                }
                true
            }
            None if older && asks && rounds < BACKFILLS_MAX => {
                backfill::backfill(app, &sight.view.room_id, sight.view.room).await?
            }
            None => false,
        };
        if !has_more {
            return Ok(found);
        }
        rounds += 1;
        if let Some(view) = app.store.room(sight.view.room)? {
            sight.view = view;
        }
    }
}

async fn messages(app: App, Guest(caller): Guest, raw: RawRequest) -> ApiResult<Value> {
    let room_id =
        RoomId::parse(raw.arg(0)).map_err(|_| ApiError::invalid_param("not a room ID"))?;
    let sight = Sight::of(&app, &room_id, caller.user, &caller.user_id)?;
    sight.must_see_something(&app)?;
    // The type of the request does not know every key of a filter.
    let filter: EventFilter = match raw.query("filter").filter(|json| !json.is_empty()) {
        Some(json) => serde_json::from_str(&json)
            .map_err(|error| ApiError::invalid_param(error.to_string()))?,
        None => EventFilter::default(),
    };
    // The specification wants a direction; clients in use leave it out and mean forwards.
    let backwards = match raw.query("dir").as_deref() {
        Some("b") => true,
        Some("f") | None => false,
        Some(_) => return Err(ApiError::invalid_param("`dir` is `b` or `f`")),
    };
    let token = |name: &str| {
        let text = raw.query(name).filter(|text| !text.is_empty());
        text.map(|text| Token::parse(&app, &text)).transpose()
    };
    let (from, to) = (token("from")?, token("to")?);
    let limit = match raw.query("limit") {
        Some(text) => text
            .parse::<usize>()
            .map_err(|_| ApiError::invalid_param("`limit` is a number"))?
            .min(PAGE_EVENTS_MAX),
        None => PAGE_EVENTS_DEFAULT,
    };
    let newest = Token::new(sight.view.position, 0);
    let start = from.unwrap_or(if backwards {
        newest
    } else {
        Token::behind(i64::MIN)
    });
    let orders = if backwards {
        (
            to.map_or(Bound::Unbounded, |to| Bound::Excluded(to.order)),
            Bound::Included(start.order),
        )
    } else {
        (
            Bound::Excluded(start.order),
            to.map_or(Bound::Unbounded, |to| Bound::Included(to.order)),
        )
    };
    let walk = if backwards {
        Walk::Descending
    } else {
        Walk::Ascending
    };
    let older = backwards && to.is_none();
    let page = whole_page(&app, &sight, (orders, walk), limit, &filter, older).await?;
    let format = Format {
        reader: (caller.user, caller.device.as_deref()),
        ..format(&app, &caller)
    };
    let write = |events: &[Seen]| {
        let events = events
            .iter()
            .map(|seen| client_event(&app, &sight, seen, &format));
        events.collect::<ApiResult<Vec<Box<RawValue>>>>()
    };
    let mut response = json!({ "start": start.to_string(), "chunk": write(&page.events)? });
    let mut state = Vec::new();
    if filter.lazy_load_members {
        let senders: BTreeSet<_> = page
            .events
            .iter()
            .map(|seen| seen.event.pdu.sender().to_owned())
            .collect();
        let current = &sight.view.head.state;
        let ids = senders
            .iter()
            .filter_map(|sender| current.get("m.room.member", sender.as_str()).cloned());
        state = crate::sync::room::state_events(&app, &sight, ids, &EventFilter::default())?;
    }
    if let Some(response) = response.as_object_mut() {
        if !state.is_empty() {
            response.insert("state".to_owned(), json!(write(&state)?));
        }
        let end = page.next.map(|order| {
            if backwards {
                Token::before(order)
            } else {
                Token::behind(order)
            }
        });
        response.extend(end.map(|end| ("end".to_owned(), end.to_string().into())));
    }
    Ok(response)
}

/// Some of a timeline, in the order it was walked.
#[derive(Debug)]
pub(super) struct Page {
    /// What the viewer may see and wants.
    pub(super) events: Vec<Seen>,
    /// The last event that was looked at, if there may be more behind it.
    pub(super) next: Option<i64>,
    /// Whether everything that is known was looked at, and there is room for more.
    ended: bool,
}

/// Whether something that a filter asks for relates to an event; `true` where it asks for nothing.
fn is_related(
    app: &App,
    event: &TimelineEvent,
    filter: &EventFilter,
) -> Result<bool, store::StoreError> {
    let (mut related, mut rows) = (!filter.asks_what_relates(), 0);
    if related {
        return Ok(true);
    }
    let (room, target) = (event.room, event.pdu.event_id());
    visit_relations(&app.store, room, target, Walk::Ascending, |order, row| {
        rows += 1;
        if filter.wants_for(&row.rel_type, &row.sender) {
            let relating = app.store.event_at(room, order)?;
            related = relating.is_some_and(|event| event.redacted_by.is_none());
        }
        Ok(!related && rows < RELATED_ROWS_MAX)
    })?;
    Ok(related)
}

/// Walks a timeline for what the viewer may see and wants.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn page(
    app: &App,
    sight: &Sight,
    orders: (Bound<i64>, Bound<i64>),
    walk: Walk,
    limit: usize,
    filter: &EventFilter,
) -> ApiResult<Page> {
    let mut events = Vec::new();
    let mut next = None;
    let mut walked = 0;
    let mut failed = None;
    sight.view.walk(&app.store, orders, walk, |event| {
        if events.len() == limit || walked == WALK_EVENTS_MAX {
            return Ok(false);
        }
        walked += 1;
        next = Some(event.order);
        let pdu = &event.pdu;
        if filter.wants(&pdu.kind().to_string(), pdu.sender(), pdu.content())
            && is_related(app, &event, filter)?
        {
            match sight.look(app, event) {
                Ok(seen) => events.extend(seen),
                Err(error) => {
                    failed = Some(error);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    // An empty page is the last one, unless only filters made it empty.
    if events.is_empty() && walked < WALK_EVENTS_MAX {
        next = None;
    }
    let ended = events.len() < limit && walked < WALK_EVENTS_MAX;
    Ok(Page {
        events,
        next,
        ended,
    })
}
