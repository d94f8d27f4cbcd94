//! Who is in a room.
//!
//! Spec: client-server API, "Getting events for a room".

use std::ops::Bound;

use federation::room::visibility::entitled;
use http::Method;
use ruma::events::room::member::MembershipState;
use serde_json::{Map, Value, json, value::RawValue};
use store::{kv::Direction, rooms::Membership};

use super::events::{format, room_id};
use crate::{
    error::{ApiError, ApiResult},
    http::{Guest, RawRequest, Routes},
    rooms::{
        members::MemberContent,
        read::{Seen, Sight, client_event},
    },
    server::App,
    sync::{Token, room::state_up_to},
};

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["/_matrix/client/r0", "/_matrix/client/v3"] {
        let room = format!("{prefix}/rooms/{{room_id}}");
        routes.raw(Method::GET, &format!("{room}/members"), members);
        routes.raw(
            Method::GET,
            &format!("{room}/joined_members"),
            joined_members,
        );
    }
}

/// The members by their membership events, perhaps at an earlier point.
async fn members(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    let mut state = sight.state(&app)?;
    if let Some(at) = request.query("at") {
        let at = Token::parse(&app, &at)?.known();
        must_see(&app, &sight, at)?;
        let left = sight
            .viewer
            .row
            .as_ref()
            .filter(|row| row.membership != Membership::Join && row.left_at > 0)
            .map(|row| row.left_at);
        if left.is_none_or(|left| at < left) {
            state = state_up_to(&app, &sight, at)?;
        }
    }
    let only = request.query("membership").map(MembershipState::from);
    let not = request.query("not_membership").map(MembershipState::from);
    let format = format(&app, &caller);
    let membership = sight.membership();
    let mut chunk: Vec<Box<RawValue>> = Vec::new();
    for (_, event_id) in state.of_kind("m.room.member") {
        let Some(event) = app.store.state_event(event_id)? else {
            continue;
        };
        let Some(content) = event.pdu.content_as::<MemberContent>() else {
            continue;
        };
        let wanted = only.as_ref().is_none_or(|only| *only == content.membership)
            && not.as_ref() != Some(&content.membership);
        if wanted {
            let seen = Seen {
                event: entitled(event),
                membership,
            };
            chunk.push(client_event(&app, &sight, &seen, &format)?);
        }
    }
    Ok(json!({ "chunk": chunk }))
}

/// That the viewer may see what was last said at an earlier point, and with it who was there.
fn must_see(app: &App, sight: &Sight, at: u64) -> ApiResult<()> {
    let orders = (
        Bound::Unbounded,
        Bound::Included(i64::try_from(at).unwrap_or(i64::MAX)),
    );
    let mut last = None;
    app.store
        .walk_timeline(sight.view.room, orders, Direction::Descending, |event| {
            last = Some(event);
            Ok(false)
        })?;
    match last.map(|event| sight.look(app, event)).transpose()? {
        Some(None) => Err(ApiError::forbidden(
            "you may not see the room as it was at that point",
        )),
        _ => Ok(()),
    }
}

/// The joined members by ID, with the names and avatars they have in this room.
async fn joined_members(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    let sight = Sight::of(&app, &room_id(&request)?, caller.user, &caller.user_id)?;
    sight.must_be_joined()?;
    let mut joined = Map::new();
    let state = &sight.view.head.state;
    for (user_id, event_id) in state.of_kind("m.room.member") {
        let content = app.store.state_event(event_id)?;
        let content = content.and_then(|event| event.pdu.content_as::<MemberContent>());
        if let Some(content) = content.filter(|member| member.membership == MembershipState::Join) {
            joined.insert(
                user_id.to_owned(),
                json!({ "display_name": content.displayname, "avatar_url": content.avatar_url }),
            );
        }
    }
    Ok(json!({ "joined": joined }))
}

/// A whole number in a request's query.
///
/// # Errors
/// `M_INVALID_PARAM` when it is none.
pub(super) fn number(request: &RawRequest, name: &str) -> ApiResult<Option<u64>> {
    let Some(text) = request.query(name) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| ApiError::invalid_param(format!("`{name}` is not a whole number")))
}
