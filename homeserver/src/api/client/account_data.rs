//! Account data and tags: what clients keep on the server for their user.
//!
//! Spec: client-server API, "Client Config", "Room Tagging"; MSC3391 for deleting.

use http::Method;
use ruma::{RoomId, UserId};
use serde_json::{Map, Value, json, value::RawValue};
use store::{Commit, keys::RoomNum};

use crate::{
    account_data,
    error::{ApiError, ApiResult},
    http::{Caller, Guest, RawRequest, Routes},
    push::rules::{self, PUSH_RULES},
    server::App,
};

/// How long the type of a piece of account data may be, in bytes.
const TYPE_BYTES_MAX: usize = 255;

/// How long a tag may be, in bytes. Spec: client-server API, "Room Tagging".
const TAG_BYTES_MAX: usize = 255;

/// How many tags a room may have.
const TAGS_MAX: usize = 200;

const TAG: &str = "m.tag";

/// Types that have endpoints of their own. Spec: client-server API, "Server Behaviour".
const MANAGED_TYPES: [&str; 2] = ["m.fully_read", PUSH_RULES];

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["r0", "v3", "unstable/org.matrix.msc3391"] {
        let user = format!("/_matrix/client/{prefix}/user/{{user_id}}");
        let global = format!("{user}/account_data/{{type}}");
        let of_room = format!("{user}/rooms/{{room_id}}/account_data/{{type}}");
        routes.raw(Method::DELETE, &global, delete_global);
        routes.raw(Method::DELETE, &of_room, delete_of_room);
        if prefix.starts_with("unstable") {
            continue;
        }
        routes.raw(Method::GET, &global, get_global);
        routes.raw(Method::PUT, &global, put_global);
        routes.raw(Method::GET, &of_room, get_of_room);
        routes.raw(Method::PUT, &of_room, put_of_room);
        let tags = format!("{user}/rooms/{{room_id}}/tags");
        routes.raw(Method::GET, &tags, get_tags);
        routes.raw(Method::PUT, &format!("{tags}/{{tag}}"), put_tag);
        routes.raw(Method::DELETE, &format!("{tags}/{{tag}}"), delete_tag);
    }
}

fn own(caller: &Caller, user_id: &str) -> ApiResult<()> {
    let user_id =
        UserId::parse(user_id).map_err(|_| ApiError::invalid_param("the path names no user ID"))?;
    caller.must_be(&user_id)
}

fn room(app: &App, room_id: &str) -> ApiResult<RoomNum> {
    let room_id =
        RoomId::parse(room_id).map_err(|_| ApiError::invalid_param("the path names no room ID"))?;
    app.store
        .find_room(&room_id)?
        .ok_or_else(|| ApiError::not_found("the room is not known here"))
}

fn get(app: &App, caller: &Caller, room: Option<RoomNum>, kind: &str) -> ApiResult<Box<RawValue>> {
    account_data::get(&app.store, caller.user, room, kind)?
        .filter(|content| content.get() != "{}")
        .ok_or_else(|| ApiError::not_found("there is no such account data"))
}

async fn set(
    app: &App,
    caller: &Caller,
    room: Option<RoomNum>,
    kind: &str,
    content: &Map<String, Value>,
) -> ApiResult<Value> {
    if MANAGED_TYPES.contains(&kind) {
        let message = format!("`{kind}` is set by an endpoint of its own");
        return Err(ApiError::bad_json(message).status(http::StatusCode::METHOD_NOT_ALLOWED));
    }
    if kind.len() > TYPE_BYTES_MAX {
        let message = format!("a type has at most {TYPE_BYTES_MAX} bytes");
        return Err(ApiError::invalid_param(message));
    }
    let _turn = app.account_data_turns.of(caller.user).await;
    write(app, caller, room, kind, content).await?;
    Ok(json!({}))
}

/// Writes a piece of account data; the caller's turn is held.
async fn write(
    app: &App,
    caller: &Caller,
    room: Option<RoomNum>,
    kind: &str,
    content: &Map<String, Value>,
) -> ApiResult<()> {
    let content =
        serde_json::value::to_raw_value(content).map_err(|error| ApiError::internal(&error))?;
    let mut commit = Commit::new();
    account_data::put(&app.store, &mut commit, caller.user, room, kind, &content)?;
    app.store.commit(commit).await?;
    Ok(())
}

async fn get_global(
    app: App,
    Guest(caller): Guest,
    request: RawRequest,
) -> ApiResult<Box<RawValue>> {
    own(&caller, request.arg(0))?;
    let kind = request.arg(1);
    if kind == PUSH_RULES {
        // Who never changed a rule has none stored, but has the server's.
        return Ok(rules::content(&app.store, caller.user, &caller.user_id)?);
    }
    get(&app, &caller, None, kind)
}

async fn put_global(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    own(&caller, request.arg(0))?;
    set(&app, &caller, None, request.arg(1), &request.json()?).await
}

async fn delete_global(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    own(&caller, request.arg(0))?;
    set(&app, &caller, None, request.arg(1), &Map::new()).await
}

async fn get_of_room(
    app: App,
    Guest(caller): Guest,
    request: RawRequest,
) -> ApiResult<Box<RawValue>> {
    own(&caller, request.arg(0))?;
    let room = room(&app, request.arg(1))?;
    get(&app, &caller, Some(room), request.arg(2))
}

async fn put_of_room(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    own(&caller, request.arg(0))?;
    let room = room(&app, request.arg(1))?;
    set(&app, &caller, Some(room), request.arg(2), &request.json()?).await
}

async fn delete_of_room(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    own(&caller, request.arg(0))?;
    let room = room(&app, request.arg(1))?;
    set(&app, &caller, Some(room), request.arg(2), &Map::new()).await
}

fn tags(app: &App, caller: &Caller, room: RoomNum) -> ApiResult<Map<String, Value>> {
    let content: Option<Map<String, Value>> =
        account_data::get_as(&app.store, caller.user, Some(room), TAG)?;
    let tags = content.and_then(|mut content| content.remove("tags"));
    Ok(match tags {
        Some(Value::Object(tags)) => tags,
        _ => Map::new(),
    })
}

async fn get_tags(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    own(&caller, request.arg(0))?;
    let room = room(&app, request.arg(1))?;
    Ok(json!({ "tags": tags(&app, &caller, room)? }))
}

async fn put_tag(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    own(&caller, request.arg(0))?;
    let room = room(&app, request.arg(1))?;
    let tag = request.arg(2);
    if tag.len() > TAG_BYTES_MAX {
        let message = format!("a tag has at most {TAG_BYTES_MAX} bytes");
        return Err(ApiError::invalid_param(message));
    }
    let info: Map<String, Value> = request.json()?;
    let _turn = app.account_data_turns.of(caller.user).await;
    let mut tags = tags(&app, &caller, room)?;
    tags.insert(tag.to_owned(), info.into());
    if tags.len() > TAGS_MAX {
        return Err(ApiError::unknown(format!(
            "a room has at most {TAGS_MAX} tags"
        )));
    }
    let content = Map::from_iter([("tags".to_owned(), tags.into())]);
    write(&app, &caller, Some(room), TAG, &content).await?;
    Ok(json!({}))
}

async fn delete_tag(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    own(&caller, request.arg(0))?;
    let room = room(&app, request.arg(1))?;
    let _turn = app.account_data_turns.of(caller.user).await;
    let mut tags = tags(&app, &caller, room)?;
    if tags.remove(request.arg(2)).is_some() {
        let content = Map::from_iter([("tags".to_owned(), tags.into())]);
        write(&app, &caller, Some(room), TAG, &content).await?;
    }
    Ok(json!({}))
}
