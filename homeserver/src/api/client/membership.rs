//! Joining, leaving, inviting, kicking, banning, forgetting.
//!
//! Spec: client-server API, "Room membership".

use federation::event::Draft;
use http::{Method, StatusCode};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, UserId,
    api::{
        client::membership::{
            ban_user, forget_room, joined_rooms, kick_user, leave_room, unban_user,
        },
        federation::query::get_room_information,
    },
};
use serde_json::{Map, Value, json};
use store::{
    Commit,
    keys::{Keyspace, Packed},
    log,
    rooms::Membership,
};

use crate::{
    appservices,
    error::{ApiError, ApiResult},
    http::{Caller, Guest, RawRequest, Routes, limits::Doing},
    peers,
    rooms::{
        aliases, join,
        members::{self, Change, To},
        outside,
    },
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    for prefix in ["/_matrix/client/r0", "/_matrix/client/v3"] {
        routes.raw(
            Method::POST,
            &format!("{prefix}/join/{{room_id_or_alias}}"),
            join,
        );
        routes.raw(
            Method::POST,
            &format!("{prefix}/rooms/{{room_id}}/join"),
            join,
        );
        routes.raw(
            Method::POST,
            &format!("{prefix}/rooms/{{room_id}}/invite"),
            invite,
        );
    }
    routes.raw(
        Method::POST,
        "/_matrix/client/v3/knock/{room_id_or_alias}",
        knock,
    );
    routes.add(leave);
    routes.add(kick);
    routes.add(ban);
    routes.add(unban);
    routes.add(forget);
    routes.add(joined);
}

/// The room that a client means by an ID or an alias, which an application service may make now.
///
/// # Errors
/// As [`room_meant`]; 408 when an application service did not answer in time.
pub(super) async fn room_meant_or_made(app: &App, text: &str) -> ApiResult<OwnedRoomId> {
    if let Ok(alias) = RoomAliasId::parse(text) {
        appservices::ask::alias(app, &alias).await?;
    }
    room_meant(app, text)
}

/// The room that a client means by an ID or an alias.
///
/// # Errors
/// `M_NOT_FOUND` when the alias leads nowhere, `M_INVALID_PARAM` when it is neither.
pub(super) fn room_meant(app: &App, text: &str) -> ApiResult<OwnedRoomId> {
    if let Ok(room_id) = RoomId::parse(text) {
        return Ok(room_id);
    }
    let alias = RoomAliasId::parse(text)
        .map_err(|_| ApiError::invalid_param("this is neither a room ID nor an alias"))?;
    let row = aliases::find(&app.store, &alias)?;
    let room_id = row
        .map(|row| app.store.room_id(row.room))
        .transpose()?
        .flatten();
    room_id.ok_or_else(|| ApiError::not_found("there is no such alias"))
}

/// How the errcodes begin that servers have for each other where one cannot let a user into a restricted room.
const UNABLE: &str = "M_UNABLE_TO_";

async fn join(app: App, Guest(caller): Guest, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Join)?;
    caller.must_not_be_suspended()?;
    let (room_id, via) = room_to_enter(&app, &request).await?;
    let mut extra: Map<String, Value> = request.json()?;
    extra.remove("third_party_signed");
    let federates = app.config.federation.enabled;
    let mut unable = None;
    if !(federates && join::is_elsewhere(&app, &room_id)?) {
        let change = with_reason(
            Change::plain(caller.user_id.clone(), To::Join),
            extra.clone(),
        );
        match members::change(&app, &caller, &room_id, change).await {
            // Somebody on another server may know more, or have the power.
            Err(error) if error.errcode.starts_with(UNABLE) => unable = Some(error),
            outcome => {
                outcome?;
                return Ok(json!({ "room_id": room_id }));
            }
        }
    }
    let servers = if federates {
        join::candidates(&app, &caller, &room_id, &via)?
    } else {
        Vec::new()
    };
    if let Some(error) = unable.filter(|_| servers.is_empty()) {
        return Err(ApiError::forbidden(error.message));
    }
    join::join(&app, &caller, &room_id, &servers, &extra).await?;
    Ok(json!({ "room_id": room_id }))
}

/// The room that a client wants to be in, and servers that may be.
async fn room_to_enter(
    app: &App,
    request: &RawRequest,
) -> ApiResult<(OwnedRoomId, Vec<OwnedServerName>)> {
    let mut via: Vec<OwnedServerName> = ["via", "server_name"]
        .iter()
        .flat_map(|name| request.queries(name))
        .filter_map(|name| name.try_into().ok())
        .collect();
    let text = request.arg(0);
    if let Ok(alias) = RoomAliasId::parse(text)
        && alias.server_name() != app.server_name()
        && app.config.federation.enabled
    {
        let server = alias.server_name().to_owned();
        let request = get_room_information::v1::Request::new(alias);
        let answer = peers::ask(app, &server, request).await;
        let answer = answer.map_err(join::relayed)?;
        via.extend(answer.servers);
        return Ok((answer.room_id, via));
    }
    Ok((room_meant_or_made(app, text).await?, via))
}

/// A member event that a client writes itself: joining, leaving and the like are what the endpoints of
/// their own do, down to who lets whom into a restricted room. `None`: no such change, the event is sent as
/// it is, but for what only a server may say.
///
/// # Errors
/// As the change of membership.
pub(super) async fn by_event(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    draft: &mut Draft,
) -> ApiResult<Option<OwnedEventId>> {
    let target = UserId::parse(draft.state_key.as_deref().unwrap_or_default())
        .map_err(|_| ApiError::bad_json("the state key of a member event is a user ID"))?;
    let mut content: Map<String, Value> = serde_json::from_str(draft.content.get())
        .map_err(|error| ApiError::bad_json(error.to_string()))?;
    let own = target == caller.user_id;
    let user = app.store.find_user(&target)?;
    let room = app.store.find_room(room_id)?;
    let row = match (user, room) {
        (Some(user), Some(room)) => app.store.user_room(user, room)?,
        _ => None,
    };
    let present = row.map_or(Membership::Leave, |row| row.membership);
    let to = match content.get("membership").and_then(Value::as_str) {
        Some("join") if own && present != Membership::Join => Some(To::Join),
        Some("leave") if own => Some(To::Leave),
        Some("leave") if present == Membership::Ban => Some(To::Unban),
        Some("leave") => Some(To::Kick),
        Some("invite") => Some(To::Invite),
        Some("ban") => Some(To::Ban),
        Some("knock") if own => Some(To::Knock),
        _ => None,
    };
    let Some(to) = to else {
        if content.remove("join_authorised_via_users_server").is_some() {
            draft.content = serde_json::value::to_raw_value(&content)
                .map_err(|error| ApiError::internal(&error))?;
        }
        return Ok(None);
    };
    let change = with_reason(Change::plain(target, to), content);
    members::change(app, caller, room_id, change)
        .await
        .map_err(not_in_room)
}

fn with_reason(mut change: Change, mut extra: Map<String, Value>) -> Change {
    change.reason = extra
        .remove("reason")
        .and_then(|reason| reason.as_str().map(str::to_owned));
    change.extra = extra;
    change
}

async fn knock(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Join)?;
    caller.must_not_be_suspended()?;
    let (room_id, via) = room_to_enter(&app, &request).await?;
    let mut body: Map<String, Value> = request.json()?;
    body.retain(|key, _| key == "reason");
    if app.config.federation.enabled && join::is_elsewhere(&app, &room_id)? {
        let servers = join::candidates(&app, &caller, &room_id, &via)?;
        join::knock(&app, &caller, &room_id, &servers, &body).await?;
        return Ok(json!({ "room_id": room_id }));
    }
    let change = with_reason(Change::plain(caller.user_id.clone(), To::Knock), body);
    members::change(&app, &caller, &room_id, change).await?;
    Ok(json!({ "room_id": room_id }))
}

async fn invite(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.limit(&app, Doing::Invite)?;
    caller.must_not_be_suspended()?;
    let room_id =
        RoomId::parse(request.arg(0)).map_err(|_| ApiError::invalid_param("not a room ID"))?;
    let body: Map<String, Value> = request.json()?;
    let user_id = body
        .get("user_id")
        .ok_or_else(|| ApiError::missing_param("`user_id` is missing"))?
        .as_str()
        .ok_or_else(|| ApiError::bad_json("`user_id` is not a string"))?;
    let target = UserId::parse(user_id).map_err(|_| ApiError::invalid_param("not a user ID"))?;
    appservices::ask::user(&app, &target).await?;
    let mut change = Change::plain(target, To::Invite);
    change.reason = body
        .get("reason")
        .and_then(Value::as_str)
        .map(str::to_owned);
    members::change(&app, &caller, &room_id, change)
        .await
        .map_err(not_in_room)?;
    Ok(json!({}))
}

async fn leave(
    app: App,
    Guest(caller): Guest,
    request: leave_room::v3::Request,
) -> ApiResult<leave_room::v3::Response> {
    super::notices::may_leave(&app, &caller, &request.room_id)?;
    let room = app.store.find_room(&request.room_id)?;
    let outside = room.map(|room| outside::of(&app.store, caller.user, room));
    if outside.transpose()?.flatten().is_some() {
        let mut extra = Map::new();
        extra.extend(
            request
                .reason
                .map(|reason| ("reason".to_owned(), reason.into())),
        );
        join::leave(&app, &caller, &request.room_id, &extra).await?;
        return Ok(leave_room::v3::Response::new());
    }
    let mut change = Change::plain(caller.user_id.clone(), To::Leave);
    change.reason = request.reason;
    members::change(&app, &caller, &request.room_id, change).await?;
    Ok(leave_room::v3::Response::new())
}

async fn kick(
    app: App,
    caller: Caller,
    request: kick_user::v3::Request,
) -> ApiResult<kick_user::v3::Response> {
    caller.must_not_be_suspended()?;
    let mut change = Change::plain(request.user_id, To::Kick);
    change.reason = request.reason;
    members::change(&app, &caller, &request.room_id, change)
        .await
        .map_err(not_in_room)?;
    Ok(kick_user::v3::Response::new())
}

async fn ban(
    app: App,
    caller: Caller,
    request: ban_user::v3::Request,
) -> ApiResult<ban_user::v3::Response> {
    caller.must_not_be_suspended()?;
    let mut change = Change::plain(request.user_id, To::Ban);
    change.reason = request.reason;
    members::change(&app, &caller, &request.room_id, change)
        .await
        .map_err(not_in_room)?;
    Ok(ban_user::v3::Response::new())
}

async fn unban(
    app: App,
    caller: Caller,
    request: unban_user::v3::Request,
) -> ApiResult<unban_user::v3::Response> {
    caller.must_not_be_suspended()?;
    let mut change = Change::plain(request.user_id, To::Unban);
    change.reason = request.reason;
    members::change(&app, &caller, &request.room_id, change)
        .await
        .map_err(not_in_room)?;
    Ok(unban_user::v3::Response::new())
}

/// A room that is not known is a room that one is not in.
fn not_in_room(error: ApiError) -> ApiError {
    if error.status == StatusCode::NOT_FOUND {
        return ApiError::forbidden("you are not in this room, or it does not exist");
    }
    error
}

async fn forget(
    app: App,
    Guest(caller): Guest,
    request: forget_room::v3::Request,
) -> ApiResult<forget_room::v3::Response> {
    let room = app.store.find_room(&request.room_id)?;
    let row = room
        .map(|room| app.store.user_room(caller.user, room))
        .transpose()?
        .flatten();
    let (Some(room), Some(mut row)) = (room, row) else {
        return Err(ApiError::not_found("you were never in this room"));
    };
    if !matches!(row.membership, Membership::Leave | Membership::Ban) {
        return Err(ApiError::unknown("leave the room before you forget it"));
    }
    if !row.forgotten {
        row.forgotten = true;
        let mut commit = Commit::new();
        commit.put_raw(
            Packed::key(Keyspace::USER_ROOM)
                .user(caller.user)
                .room(room),
            row.pack(),
        );
        commit.log(log::Change::Forgot { user: caller.user });
        app.store.commit(commit).await?;
    }
    Ok(forget_room::v3::Response::new())
}

async fn joined(
    app: App,
    Guest(caller): Guest,
    _: joined_rooms::v3::Request,
) -> ApiResult<joined_rooms::v3::Response> {
    let mut rooms = Vec::new();
    for (room, row) in app.store.user_rooms(caller.user)? {
        if row.membership == Membership::Join {
            rooms.extend(app.store.room_id(room)?);
        }
    }
    Ok(joined_rooms::v3::Response::new(rooms))
}
