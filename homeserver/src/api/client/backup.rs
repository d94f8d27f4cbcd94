//! Key backups and dehydrated devices.
//!
//! Spec: client-server API, "Server-side key backups"; MSC3814.

use std::collections::BTreeMap;

use http::Method;
use ruma::{OwnedDeviceId, RoomId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::PREFIXES;
use crate::{
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    keys::{
        backup::{self, BackedUp, Rooms, Sessions, Which},
        dehydrated,
    },
    server::App,
};

const DEHYDRATED: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

pub(super) fn routes(routes: &mut Routes) {
    for prefix in PREFIXES {
        let path = |rest: &str| format!("{prefix}/room_keys/{rest}");
        routes.raw(Method::POST, &path("version"), create);
        routes.raw(Method::GET, &path("version"), describe_current);
        routes.raw(Method::GET, &path("version/{version}"), describe);
        routes.raw(Method::PUT, &path("version/{version}"), update);
        routes.raw(Method::DELETE, &path("version/{version}"), delete);
        for keys in ["keys", "keys/{room_id}", "keys/{room_id}/{session_id}"] {
            routes.raw(Method::GET, &path(keys), get_keys);
            routes.raw(Method::PUT, &path(keys), put_keys);
            routes.raw(Method::DELETE, &path(keys), delete_keys);
        }
    }
    routes.raw(Method::PUT, DEHYDRATED, put_dehydrated);
    routes.raw(Method::GET, DEHYDRATED, get_dehydrated);
    routes.raw(Method::DELETE, DEHYDRATED, delete_dehydrated);
    let events = format!("{DEHYDRATED}/{{device_id}}/events");
    routes.raw(Method::GET, &events, dehydrated_events);
    routes.raw(Method::POST, &events, dehydrated_events_posted);
}

async fn create(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    backup::create(&app, caller.user, request.json()?).await
}

async fn describe_current(app: App, caller: Caller, _: RawRequest) -> ApiResult<Value> {
    backup::describe(&app, caller.user, None)
}

async fn describe(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    backup::describe(&app, caller.user, Some(request.arg(0)))
}

async fn update(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    backup::update(&app, caller.user, request.arg(0), request.json()?).await?;
    Ok(json!({}))
}

async fn delete(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    backup::delete(&app, caller.user, request.arg(0)).await?;
    Ok(json!({}))
}

fn version(request: &RawRequest) -> ApiResult<String> {
    request
        .query("version")
        .ok_or_else(|| ApiError::missing_param("`version` is missing"))
}

fn which(request: &RawRequest) -> Which<'_> {
    let arg = |index: usize| request.path.get(index).map(String::as_str);
    Which {
        room: arg(0),
        session: arg(1),
    }
}

async fn get_keys(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let which = which(&request);
    let mut found = backup::keys(&app, caller.user, &version(&request)?, which)?;
    let Some(room) = which.room else {
        return Ok(json!(found));
    };
    let of_room = RoomId::parse(room)
        .ok()
        .and_then(|room| found.rooms.remove(&room))
        .unwrap_or_default();
    let Some(session) = which.session else {
        return Ok(json!(of_room));
    };
    let key = of_room.sessions.get(session);
    Ok(json!(key.ok_or_else(|| {
        ApiError::not_found("no such key is in the backup")
    })?))
}

async fn put_keys(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let which = which(&request);
    let rooms = match (which.room, which.session) {
        (Some(room), session) => {
            let room = RoomId::parse(room).map_err(|_| ApiError::invalid_param("not a room ID"))?;
            let sessions = match session {
                Some(session) => {
                    let key: BackedUp = request.json()?;
                    Sessions {
                        sessions: BTreeMap::from([(session.to_owned(), key)]),
                    }
                }
                None => request.json()?,
            };
            Rooms {
                rooms: BTreeMap::from([(room, sessions)]),
            }
        }
        (None, _) => request.json()?,
    };
    backup::put_keys(&app, caller.user, &version(&request)?, rooms).await
}

async fn delete_keys(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    backup::delete_keys(&app, caller.user, &version(&request)?, which(&request)).await
}

async fn put_dehydrated(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    dehydrated::put(&app, caller.user, &caller.user_id, request.json()?).await
}

async fn get_dehydrated(app: App, caller: Caller, _: RawRequest) -> ApiResult<Value> {
    dehydrated::get(&app, caller.user)
}

async fn delete_dehydrated(app: App, caller: Caller, _: RawRequest) -> ApiResult<Value> {
    dehydrated::delete(&app, caller.user).await
}

async fn dehydrated_events(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    let device: OwnedDeviceId = request.arg(0).into();
    let from = request.query("from");
    let mut answer = dehydrated::events(&app, caller.user, &device, from.as_deref())?;
    if let Some(answer) = answer.as_object_mut()
        && answer
            .get("events")
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
    {
        // Here a client asks on for as long as there is a next point.
        answer.remove("next_batch");
    }
    Ok(answer)
}

#[derive(Deserialize)]
struct Events {
    next_batch: Option<String>,
}

/// The same as the proposal had it before: the point in the body, and a next one in every answer.
async fn dehydrated_events_posted(
    app: App,
    caller: Caller,
    request: RawRequest,
) -> ApiResult<Value> {
    let body: Events = request.json()?;
    let device: OwnedDeviceId = request.arg(0).into();
    let from = body.next_batch.as_deref();
    dehydrated::acknowledge(&app, caller.user, &device, from).await?;
    dehydrated::events(&app, caller.user, &device, from)
}
