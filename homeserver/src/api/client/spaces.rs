//! Spaces and what a room looks like from outside.
//!
//! Spec: client-server API, "Spaces", "Room summary" (MSC3266 by its older names).

use std::{collections::BTreeSet, sync::Arc};

use http::Method;
use ruma::{OwnedRoomId, RoomId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{
    keys::UserNum,
    rooms::{RoomView, TimelineEvent},
};

use super::{events::room_id, members::number, membership::room_meant_or_made};
use crate::{
    error::{ApiError, ApiResult},
    http::{Guest, MaybeCaller, RawRequest, Routes},
    rooms::{outline::Outline, read::known_room},
    server::App,
};

/// How many rooms a page of a hierarchy has at most.
const PAGE_ROOMS_MAX: u64 = 50;

/// How many rooms of a hierarchy are looked at for one page.
const WALK_ROOMS_MAX: usize = 5_000;

/// How long the `order` of a child may be. Spec: "Ordering of children within a space".
const ORDER_CHARACTERS_MAX: usize = 50;

pub(super) fn routes(routes: &mut Routes) {
    for prefix in [
        "/_matrix/client/v1",
        "/_matrix/client/unstable/org.matrix.msc2946",
    ] {
        routes.raw(
            Method::GET,
            &format!("{prefix}/rooms/{{room_id}}/hierarchy"),
            hierarchy,
        );
    }
    for path in [
        "/_matrix/client/v1/room_summary/{room_id_or_alias}",
        "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
        "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary",
        "/_matrix/client/unstable/im.nheko.summary/room_summary/{room_id_or_alias}",
    ] {
        routes.raw(Method::GET, path, summary);
    }
}

async fn summary(
    app: App,
    MaybeCaller(caller): MaybeCaller,
    request: RawRequest,
) -> ApiResult<Map<String, Value>> {
    let (_, view) = known_room(&app, &room_meant_or_made(&app, request.arg(0)).await?)?;
    let outline = Outline::of(&app, &view)?;
    let user = caller.map(|caller| caller.user);
    if !outline.may_be_told(&app, &view, user)? {
        return Err(ApiError::not_found(
            "there is no such room, or you may not know of it",
        ));
    }
    let mut fields = outline.fields;
    if let Some(user) = user {
        let membership = Outline::membership(&view, user);
        let membership = membership.map_or_else(|| "leave".to_owned(), |state| state.to_string());
        fields.insert("membership".to_owned(), membership.into());
    }
    Ok(fields)
}

#[derive(Deserialize)]
struct ChildContent {
    via: Option<Vec<Value>>,
    order: Option<Value>,
    suggested: Option<bool>,
}

/// A valid link from a space to a room.
struct Child {
    room_id: OwnedRoomId,
    order: Option<String>,
    event: Arc<TimelineEvent>,
}

/// The rooms of a space, depth first.
async fn hierarchy(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let suggested_only = match request.query("suggested_only").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::invalid_param("`suggested_only` is true or false")),
    };
    let limit = number(&request, "limit")?.unwrap_or(PAGE_ROOMS_MAX);
    if limit == 0 {
        return Err(ApiError::invalid_param("`limit` is at least 1"));
    }
    let limit = usize::try_from(limit.min(PAGE_ROOMS_MAX)).unwrap_or(1);
    let depth_max = number(&request, "max_depth")?.unwrap_or(u64::MAX);
    let skip = match request.query("from") {
        None => 0,
        Some(from) => from
            .strip_prefix('h')
            .and_then(|text| text.parse::<usize>().ok())
            .ok_or_else(|| ApiError::invalid_param("`from` is not of this server"))?,
    };
    let root = room_id(&request)?;
    let mut rooms = Vec::new();
    let mut next = None;
    let mut found = 0;
    let mut walked = BTreeSet::new();
    let mut waiting = vec![(root.clone(), 0)];
    while let Some((room_id, depth)) = waiting.pop() {
        if walked.len() == WALK_ROOMS_MAX || !walked.insert(room_id.clone()) {
            continue;
        }
        let Some((view, outline)) = told(&app, &room_id, caller.user)? else {
            if room_id == root {
                return Err(ApiError::forbidden(
                    "you may not see this room, or it does not exist",
                ));
            }
            continue;
        };
        let children = children(&app, &view, &outline, suggested_only)?;
        if depth < depth_max {
            let below = children.iter().rev();
            waiting.extend(below.map(|child| (child.room_id.clone(), depth + 1)));
        }
        found += 1;
        if found <= skip {
            continue;
        }
        if rooms.len() == limit {
            next = Some(format!("h{}", skip + limit));
            break;
        }
        let state: Vec<Value> = children.iter().map(stripped).collect();
        let mut fields = outline.fields;
        fields.insert("children_state".to_owned(), state.into());
        rooms.push(fields);
    }
    let mut reply = json!({ "rooms": rooms });
    if let Some(reply) = reply.as_object_mut() {
        reply.extend(next.map(|next| ("next_batch".to_owned(), next.into())));
    }
    Ok(reply)
}

/// A room that a user may know of.
fn told(app: &App, room_id: &RoomId, user: UserNum) -> ApiResult<Option<(Arc<RoomView>, Outline)>> {
    let Some(room) = app.store.find_room(room_id)? else {
        return Ok(None);
    };
    let Some(view) = app.store.room(room)? else {
        return Ok(None);
    };
    let outline = Outline::of(app, &view)?;
    let told = outline.may_be_told(app, &view, Some(user))?;
    Ok(told.then_some((view, outline)))
}

/// The links of a space in the order clients show them; a room that is no space has none.
fn children(
    app: &App,
    view: &RoomView,
    outline: &Outline,
    suggested_only: bool,
) -> ApiResult<Vec<Child>> {
    let mut children = Vec::new();
    if outline.fields.get("room_type").and_then(Value::as_str) != Some("m.space") {
        return Ok(children);
    }
    for (key, event_id) in view.head.state.of_kind("m.space.child") {
        let Ok(room_id) = RoomId::parse(key) else {
            continue;
        };
        let Some(event) = app.store.state_event(event_id)? else {
            continue;
        };
        let content: Option<ChildContent> = event.pdu.content_as();
        let Some(content) = content.filter(|content| content.via.is_some()) else {
            continue;
        };
        if suggested_only && content.suggested != Some(true) {
            continue;
        }
        let order = content
            .order
            .and_then(|order| order.as_str().map(str::to_owned))
            .filter(|order| {
                order.len() <= ORDER_CHARACTERS_MAX
                    && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
            });
        children.push(Child {
            room_id,
            order,
            event,
        });
    }
    children.sort_by_key(|child| {
        (
            child.order.is_none(),
            child.order.clone(),
            child.event.pdu.origin_server_ts(),
            child.room_id.clone(),
        )
    });
    Ok(children)
}

fn stripped(child: &Child) -> Value {
    let pdu = &child.event.pdu;
    json!({
        "type": "m.space.child",
        "state_key": child.room_id,
        "content": pdu.content(),
        "sender": pdu.sender(),
        "origin_server_ts": pdu.origin_server_ts(),
    })
}
