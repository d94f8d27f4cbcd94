//! What relates to an event, and the threads of a room.
//!
//! Spec: client-server API, "Relationships API", "Threading".

use std::collections::BTreeSet;

use http::Method;
use ruma::EventId;
use serde_json::{Value, json, value::RawValue};
use store::kv::Direction;

use super::{
    events::{format, room_id},
    members::number,
};
use crate::{
    account_data,
    error::{ApiError, ApiResult},
    http::{Guest, RawRequest, Routes},
    rooms::{
        read::{Format, Seen, Sight, client_event},
        relations::{visit_relations, visit_threads},
    },
    server::App,
    sync::Token,
};

/// How many events a page has when the client names no number.
const PAGE_DEFAULT: u64 = 50;

/// How many events a page has at most.
const PAGE_MAX: u64 = 100;

/// How many relations are looked at for one page.
const WALK_ROWS_MAX: usize = 10_000;

/// How many steps away from the event `recurse` goes. Spec: at least three.
const RECURSION_MAX: u64 = 3;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["/_matrix/client/v1", "/_matrix/client/unstable"] {
        let event = format!("{prefix}/rooms/{{room_id}}/relations/{{event_id}}");
        routes.raw(Method::GET, &event, relations);
        routes.raw(Method::GET, &format!("{event}/{{rel_type}}"), relations);
        routes.raw(
            Method::GET,
            &format!("{event}/{{rel_type}}/{{event_type}}"),
            relations,
        );
    }
    for prefix in [
        "/_matrix/client/v1",
        "/_matrix/client/unstable/org.matrix.msc3856",
    ] {
        routes.raw(
            Method::GET,
            &format!("{prefix}/rooms/{{room_id}}/threads"),
            threads,
        );
    }
}

fn limit(request: &RawRequest) -> ApiResult<usize> {
    let limit = number(request, "limit")?.unwrap_or(PAGE_DEFAULT);
    Ok(usize::try_from(limit.clamp(1, PAGE_MAX)).unwrap_or(1))
}

fn token(app: &App, request: &RawRequest, name: &str) -> ApiResult<Option<i64>> {
    let text = request.query(name);
    let token = text.map(|text| Token::parse(app, &text)).transpose()?;
    Ok(token.map(|token| token.order))
}

async fn relations(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    let target = EventId::parse(request.arg(1))
        .map_err(|_| ApiError::not_found("there is no such event in this room"))?;
    sight.event(&app, &target)?;
    let ascending = match request.query("dir").as_deref() {
        None | Some("b") => false,
        Some("f") => true,
        Some(_) => return Err(ApiError::invalid_param("`dir` is either f or b")),
    };
    let recurse = request
        .query("recurse")
        .or_else(|| request.query("org.matrix.msc3981.recurse"))
        .as_deref()
        == Some("true");
    let (from, to) = (token(&app, &request, "from")?, token(&app, &request, "to")?);
    let limit = limit(&request)?;
    let depth = if recurse { RECURSION_MAX } else { 1 };
    let orders = related(&app, &sight, &target, depth, |rel_type, kind| {
        (request.arg(2).is_empty() || request.arg(2) == rel_type)
            && (request.arg(3).is_empty() || request.arg(3) == kind)
    })?;
    // A token is the point behind its order, whichever way one goes.
    let within = |order: &i64| {
        if ascending {
            from.is_none_or(|from| *order > from) && to.is_none_or(|to| *order <= to)
        } else {
            from.is_none_or(|from| *order <= from) && to.is_none_or(|to| *order > to)
        }
    };
    let mut orders: Vec<i64> = orders.into_iter().filter(within).collect();
    if !ascending {
        orders.reverse();
    }
    let ignored = account_data::ignored_by(&app.store, caller.user)?;
    let mut page: Vec<Seen> = Vec::new();
    let mut next = None;
    for order in orders {
        if page.len() == limit {
            next = page.last().map(|last| last.event.order);
            break;
        }
        let event = app.store.event_at(sight.view.room, order)?;
        let event = event.filter(|event| {
            event.redacted_by.is_none() && !ignored.iter().any(|user| user == event.pdu.sender())
        });
        if let Some(event) = event {
            page.extend(sight.look(&app, event)?);
        }
    }
    let format = Format {
        reader: (caller.user, caller.device.as_deref()),
        ..format(&app, &caller)
    };
    let chunk = page
        .iter()
        .map(|seen| client_event(&app, &sight, seen, &format))
        .collect::<ApiResult<Vec<Box<RawValue>>>>()?;
    let mut reply = json!({ "chunk": chunk });
    if let Some(reply) = reply.as_object_mut() {
        if let Some(next) = next {
            let token = if ascending {
                Token::behind(next)
            } else {
                Token::before(next)
            };
            reply.insert("next_batch".to_owned(), token.to_string().into());
        }
        reply.extend(
            request
                .query("from")
                .map(|from| ("prev_batch".to_owned(), from.into())),
        );
        if recurse {
            reply.insert("recursion_depth".to_owned(), RECURSION_MAX.into());
        }
    }
    Ok(reply)
}

/// The places of what relates to an event, up to `depth` steps away, oldest first.
fn related(
    app: &App,
    sight: &Sight,
    target: &EventId,
    depth: u64,
    wants: impl Fn(&str, &str) -> bool,
) -> ApiResult<BTreeSet<i64>> {
    let mut orders = BTreeSet::new();
    let mut seen = BTreeSet::from([target.to_owned()]);
    let mut level = vec![target.to_owned()];
    let mut rows = 0;
    for _ in 0..depth {
        let mut below = Vec::new();
        for target in &level {
            let newest_first = Direction::Descending;
            visit_relations(
                &app.store,
                sight.view.room,
                target,
                newest_first,
                |order, row| {
                    rows += 1;
                    if wants(&row.rel_type, &row.kind) {
                        orders.insert(order);
                    }
                    if depth > 1 && seen.insert(row.event_id.clone()) {
                        below.push(row.event_id);
                    }
                    Ok(rows < WALK_ROWS_MAX)
                },
            )?;
        }
        if below.is_empty() || rows >= WALK_ROWS_MAX {
            break;
        }
        level = below;
    }
    Ok(orders)
}

/// The roots of a room's threads, that with the latest reply first.
async fn threads(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    sight.must_see_something(&app)?;
    let participated = match request.query("include").as_deref() {
        None | Some("all") => false,
        Some("participated") => true,
        Some(_) => return Err(ApiError::invalid_param("`include` is all or participated")),
    };
    let from = token(&app, &request, "from")?;
    let limit = limit(&request)?;
    let mut roots: Vec<Seen> = Vec::new();
    let mut last = None;
    let mut more = false;
    let mut failed = None;
    let mut rows = 0;
    let until = from.unwrap_or(i64::MAX - 1);
    visit_threads(&app.store, sight.view.room, until, |order, root| {
        if roots.len() == limit || rows == WALK_ROWS_MAX {
            more = true;
            return Ok(false);
        }
        rows += 1;
        last = Some(order);
        match thread_at(&app, &sight, order, &root, participated) {
            Ok(root) => roots.extend(root),
            Err(error) => {
                failed = Some(error);
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let format = Format {
        reader: (caller.user, caller.device.as_deref()),
        ..format(&app, &caller)
    };
    let chunk = roots
        .iter()
        .map(|seen| client_event(&app, &sight, seen, &format))
        .collect::<ApiResult<Vec<Box<RawValue>>>>()?;
    let mut reply = json!({ "chunk": chunk });
    if let (Some(reply), Some(last), true) = (reply.as_object_mut(), last, more) {
        reply.insert(
            "next_batch".to_owned(),
            Token::before(last).to_string().into(),
        );
    }
    Ok(reply)
}

/// The root of a thread, if the reply at `order` is the thread's last one and the viewer wants it.
fn thread_at(
    app: &App,
    sight: &Sight,
    order: i64,
    root: &EventId,
    participated: bool,
) -> ApiResult<Option<Seen>> {
    let room = sight.view.room;
    let Some(root) = app.store.event(root)?.filter(|root| root.room == room) else {
        return Ok(None);
    };
    let mut latest = None;
    let mut mine = root.pdu.sender() == sight.viewer.user_id;
    let mut rows = 0;
    let newest_first = Direction::Descending;
    visit_relations(
        &app.store,
        room,
        root.pdu.event_id(),
        newest_first,
        |order, row| {
            rows += 1;
            if row.rel_type == "m.thread" {
                let event = app.store.event_at(room, order)?;
                if event.is_some_and(|event| event.redacted_by.is_none()) {
                    latest = latest.or(Some(order));
                    mine |= row.sender == sight.viewer.user_id;
                }
            }
            let known = latest.is_some() && (mine || !participated);
            Ok(!known && rows < WALK_ROWS_MAX)
        },
    )?;
    if latest != Some(order) || (participated && !mine) {
        return Ok(None);
    }
    sight.look(app, root)
}
