//! Reporting events, rooms and users, and what the admins do with the reports.
//!
//! Reading them is Synapse's admin API, not in the specification; rooms and users have lists of the same
//! shape. Spec: client-server API, "Reporting Content".

use http::Method;
use ruma::{EventId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::rooms::Membership;

use super::{PREFIXES, events::room_id, members::number, notices};
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes, limits::Doing},
    reports::{self, ReportRow, Target},
    rooms::read::{Sight, state_content},
    server::App,
};

/// How many reports a page has when the admin names no number, and at most.
const PAGE_DEFAULT: u64 = 100;
const PAGE_MAX: u64 = 1_000;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        let room = format!("{prefix}/rooms/{{room_id}}/report");
        routes.raw(Method::POST, &room, report_room);
        routes.raw(Method::POST, &format!("{room}/{{event_id}}"), report_event);
        let user = format!("{prefix}/users/{{user_id}}/report");
        routes.raw(Method::POST, &user, report_user);
    }
    let path = "/_synapse/admin/v1/event_reports";
    routes.raw(Method::GET, path, |app, caller, request| async move {
        list(&app, &caller, &request, "event_reports", |target| {
            matches!(target, Target::Event { .. })
        })
    });
    let one = format!("{path}/{{report_id}}");
    routes.raw(Method::GET, &one, details);
    routes.raw(Method::DELETE, &one, delete);
    let path = "/_synapse/admin/v1/room_reports";
    routes.raw(Method::GET, path, |app, caller, request| async move {
        list(&app, &caller, &request, "room_reports", |target| {
            matches!(target, Target::Room { .. })
        })
    });
    let path = "/_synapse/admin/v1/user_reports";
    routes.raw(Method::GET, path, |app, caller, request| async move {
        list(&app, &caller, &request, "user_reports", |target| {
            matches!(target, Target::User { .. })
        })
    });
}

#[derive(Deserialize)]
struct Body {
    reason: Option<String>,
    score: Option<i64>,
}

/// Keeps a report and tells the admins.
async fn keep(
    app: &App,
    caller: &Caller,
    request: &RawRequest,
    target: Target,
) -> ApiResult<Value> {
    let body: Body = request.json()?;
    if body.score.is_some_and(|score| !(-100..=0).contains(&score)) {
        return Err(ApiError::invalid_param("`score` is from -100 to 0"));
    }
    let row = ReportRow {
        reporter: caller.user_id.clone(),
        target,
        reason: body.reason,
        score: body.score,
        received_ms: app.clock.now_ms(),
    };
    let number = reports::add(app, &row).await?;
    let what = match &row.target {
        Target::Event {
            room_id,
            event_id,
            sender,
        } => format!("the event {event_id} of {sender} in {room_id}"),
        Target::Room { room_id } => format!("the room {room_id}"),
        Target::User { user_id } => format!("the user {user_id}"),
    };
    let reason = row.reason.as_deref().unwrap_or_default();
    let text = format!("Report {number}: {} reports {what}. {reason}", row.reporter);
    // The report is kept whether or not the admins can be told at once.
    if let Err(error) = notices::tell_admins(app, &text).await {
        tracing::warn!(error = %error.message, "the admins were not told of a report");
    }
    Ok(json!({}))
}

async fn report_event(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Report)?;
    let unknown = || ApiError::not_found("there is no such event, or you are not in its room");
    let room_id = room_id(&request)?;
    let event_id = EventId::parse(request.arg(1)).map_err(|_| unknown())?;
    let sight = Sight::of(&app, &room_id, caller.user, &caller.user_id).map_err(|_| unknown())?;
    if sight.membership() != Membership::Join {
        return Err(unknown());
    }
    let seen = sight.event(&app, &event_id)?;
    let sender = seen.event.pdu.sender().to_owned();
    let target = Target::Event {
        room_id,
        event_id,
        sender,
    };
    keep(&app, &caller, &request, target).await
}

async fn report_room(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Report)?;
    let room_id = room_id(&request)?;
    let room = app.store.find_room(&room_id)?;
    let view = room.map(|room| app.store.room(room)).transpose()?;
    if view.flatten().is_none() {
        return Err(ApiError::not_found("there is no such room here"));
    }
    keep(&app, &caller, &request, Target::Room { room_id }).await
}

async fn report_user(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Report)?;
    let unknown = || ApiError::not_found("there is no such user");
    let user_id =
        UserId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    let user = app.store.find_user(&user_id)?.ok_or_else(unknown)?;
    if app.is_local(&user_id) && app.accounts.user(user)?.is_none() {
        return Err(unknown());
    }
    keep(&app, &caller, &request, Target::User { user_id }).await
}

/// A report as the admins see it.
fn shown(app: &App, number: u64, row: &ReportRow) -> ApiResult<Map<String, Value>> {
    let mut shown = Map::new();
    let mut set = |key: &str, value: Value| shown.insert(key.to_owned(), value);
    set("id", number.into());
    set("received_ts", row.received_ms.into());
    set("user_id", row.reporter.as_str().into());
    set("reason", row.reason.clone().into());
    set("score", row.score.into());
    let room_id = match &row.target {
        Target::Event {
            room_id,
            event_id,
            sender,
        } => {
            set("event_id", event_id.as_str().into());
            set("sender", sender.as_str().into());
            Some(room_id)
        }
        Target::Room { room_id } => Some(room_id),
        Target::User { user_id } => {
            set("target_user_id", user_id.as_str().into());
            None
        }
    };
    if let Some(room_id) = room_id {
        set("room_id", room_id.as_str().into());
        let room = app.store.find_room(room_id)?;
        let view = room.map(|room| app.store.room(room)).transpose()?.flatten();
        for (key, kind, field) in [
            ("name", "m.room.name", "name"),
            ("canonical_alias", "m.room.canonical_alias", "alias"),
        ] {
            let content: Option<Map<String, Value>> = match &view {
                Some(view) => state_content(&app.store, &view.head.state, kind, "")?,
                None => None,
            };
            let value = content.and_then(|mut content| content.remove(field));
            set(key, value.unwrap_or_default());
        }
    }
    Ok(shown)
}

/// A page of the reports of one kind. Spec: Synapse's admin API, "Show reported events".
fn list(
    app: &App,
    caller: &Caller,
    request: &RawRequest,
    name: &str,
    of_kind: fn(&Target) -> bool,
) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let from = usize::try_from(number(request, "from")?.unwrap_or(0)).unwrap_or(usize::MAX);
    let limit = number(request, "limit")?
        .unwrap_or(PAGE_DEFAULT)
        .clamp(1, PAGE_MAX);
    let limit = usize::try_from(limit).unwrap_or(1);
    let newest_first = match request.query("dir").as_deref() {
        None | Some("b") => true,
        Some("f") => false,
        Some(_) => return Err(ApiError::invalid_param("`dir` is either f or b")),
    };
    let (by, room) = (request.query("user_id"), request.query("room_id"));
    let mut rows = reports::all(app)?;
    rows.retain(|(_, row)| {
        let in_room = match &row.target {
            Target::Event { room_id, .. } | Target::Room { room_id } => Some(room_id.as_str()),
            Target::User { .. } => None,
        };
        of_kind(&row.target)
            && by
                .as_ref()
                .is_none_or(|part| row.reporter.as_str().contains(part))
            && room
                .as_ref()
                .is_none_or(|part| in_room.is_some_and(|room_id| room_id.contains(part)))
    });
    if newest_first {
        rows.reverse();
    }
    let total = rows.len();
    let page: Vec<Map<String, Value>> = rows
        .iter()
        .skip(from)
        .take(limit)
        .map(|(number, row)| shown(app, *number, row))
        .collect::<ApiResult<_>>()?;
    let end = from.saturating_add(page.len());
    let mut reply = json!({ name: page, "total": total });
    if let (Some(reply), true) = (reply.as_object_mut(), end < total) {
        reply.insert("next_token".to_owned(), end.into());
    }
    Ok(reply)
}

fn report_id(request: &RawRequest) -> ApiResult<u64> {
    request
        .arg(0)
        .parse()
        .map_err(|_| ApiError::invalid_param("the number of a report is a whole number"))
}

async fn details(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let number = report_id(&request)?;
    let row = reports::one(&app, number)?;
    let row = row.ok_or_else(|| ApiError::not_found("there is no such report"))?;
    let mut shown = shown(&app, number, &row)?;
    if let Target::Event { event_id, .. } = &row.target {
        let event = app.store.event(event_id)?;
        let json = event.and_then(|event| serde_json::from_str(event.pdu.json()).ok());
        shown.insert("event_json".to_owned(), json.unwrap_or_default());
    }
    Ok(shown.into())
}

async fn delete(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.must_be_admin()?;
    if reports::delete(&app, report_id(&request)?).await? {
        return Ok(json!({}));
    }
    Err(ApiError::not_found("there is no such report"))
}
