//! Spaces of this server, for other servers.
//!
//! Spec: server-server API, `GET /hierarchy`.

use std::sync::Arc;

use http::Method;
use ruma::{RoomId, ServerName};
use serde_json::{Value, json};
use store::rooms::RoomView;

use crate::{
    api::client::spaces::suggested_only,
    error::{ApiError, ApiResult},
    http::{Origin, RawRequest, Routes},
    rooms::{
        outline::Outline,
        receive::is_resident,
        spaces::{self, Child},
    },
    server::App,
};

/// How many rooms of a space are told of at once.
const CHILDREN_MAX: usize = 500;

pub(super) fn routes(routes: &mut Routes) {
    let path = "/_matrix/federation/v1/hierarchy/{room_id}";
    routes.raw(Method::GET, path, hierarchy);
}

/// A room that this server is in: what may be told of it, if the other server may know of it.
enum Seen {
    Unknown,
    Inaccessible,
    Told(Arc<RoomView>, Outline),
}

fn look(app: &App, room_id: &RoomId, origin: &ServerName) -> ApiResult<Seen> {
    let room = app.store.find_room(room_id)?;
    let view = room.map(|room| app.store.room(room)).transpose()?.flatten();
    let Some(view) = view else {
        return Ok(Seen::Unknown);
    };
    // What was known when the last user of this server left is no longer true.
    if !is_resident(app, &view)? {
        return Ok(Seen::Unknown);
    }
    let outline = Outline::of(app, &view)?;
    if outline.may_be_told_to(app, &view, origin)? {
        Ok(Seen::Told(view, outline))
    } else {
        Ok(Seen::Inaccessible)
    }
}

async fn hierarchy(app: App, origin: Origin, request: RawRequest) -> ApiResult<Value> {
    let suggested_only = suggested_only(&request)?;
    let room_id =
        RoomId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a room ID"))?;
    let Seen::Told(view, outline) = look(&app, &room_id, &origin.name)? else {
        return Err(ApiError::not_found(
            "there is no such room, or your server may not know of it",
        ));
    };
    let mut links = spaces::children(&app, &view, &outline)?;
    links.retain(|child| child.suggested || !suggested_only);
    let (mut children, mut inaccessible) = (Vec::new(), Vec::new());
    for Child { room_id, .. } in links.iter().take(CHILDREN_MAX) {
        match look(&app, room_id, &origin.name)? {
            Seen::Unknown => {}
            Seen::Inaccessible => inaccessible.push(room_id.clone()),
            Seen::Told(_, outline) => children.push(outline.fields),
        }
    }
    let state: Vec<Value> = links.into_iter().map(|child| child.stripped).collect();
    let mut room = outline.fields;
    room.insert("children_state".to_owned(), state.into());
    Ok(json!({ "room": room, "children": children, "inaccessible_children": inaccessible }))
}
