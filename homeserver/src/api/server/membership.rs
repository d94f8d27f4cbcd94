//! Users of other servers join, knock, leave; users of this one are invited.
//!
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Leaving Rooms (Rejecting Invites)",
//! "Inviting to a room".

use std::{collections::BTreeSet, sync::Arc};

use federation::event::Pdu;
use http::StatusCode;
use ruma::{
    RoomVersionId, UserId,
    api::federation::membership::{
        RawStrippedState, create_invite, create_join_event, create_knock_event, create_leave_event,
        prepare_join_event, prepare_knock_event, prepare_leave_event,
    },
};
use serde_json::value::RawValue;
use store::{Commit, rooms::Membership};

use crate::{
    error::{ApiError, ApiResult},
    http::{Origin, Routes},
    invites,
    rooms::{
        Turn, chains, hosting,
        join::stripped,
        outside::{self, OutsideRow},
        read::known_room,
        receive::is_resident,
        turn::rules_of,
    },
    server::App,
};

pub(super) fn routes(routes: &mut Routes) {
    routes.add(make_join);
    routes.add(send_join);
    routes.add(make_knock);
    routes.add(send_knock);
    routes.add(make_leave);
    routes.add(send_leave);
    routes.add(invite);
}

/// That a user is the asking server's, and the version one that it knows.
fn suits(
    origin: &Origin,
    user_id: &UserId,
    turn: &Turn,
    versions: Option<&[RoomVersionId]>,
) -> ApiResult<()> {
    if user_id.server_name() != origin.name {
        return Err(ApiError::forbidden("the user is not one of your server"));
    }
    let version = &turn.head.version;
    if versions.is_some_and(|versions| !versions.contains(version)) {
        return Err(incompatible(version));
    }
    Ok(())
}

fn incompatible(version: &RoomVersionId) -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "M_INCOMPATIBLE_ROOM_VERSION",
        format!("the room has version {version}"),
    )
    .with("room_version", version.as_str())
}

async fn make_join(
    app: App,
    origin: Origin,
    request: prepare_join_event::v1::Request,
) -> ApiResult<prepare_join_event::v1::Response> {
    let turn = hosting::hosted(&app, &request.room_id, &origin.name).await?;
    suits(&origin, &request.user_id, &turn, Some(&request.ver))?;
    let event = hosting::propose(&app, &turn, &request.user_id, "join")?;
    let mut response = prepare_join_event::v1::Response::new(event);
    response.room_version = Some(turn.head.version.clone());
    Ok(response)
}

async fn send_join(
    app: App,
    origin: Origin,
    request: create_join_event::v2::Request,
) -> ApiResult<create_join_event::v2::Response> {
    let turn = hosting::hosted(&app, &request.room_id, &origin.name).await?;
    let rules = turn.rules;
    drop(turn);
    let place = (&*request.room_id, &*request.event_id);
    let pdu = hosting::submitted(&app, &origin.name, place, "join", &request.pdu, rules).await?;
    let pdu = Arc::new(pdu);
    let (before, pdu) = hosting::admit(&app, &origin.name, &request.room_id, pdu).await?;
    let (_, view) = known_room(&app, &request.room_id)?;
    let mut state = Vec::with_capacity(before.len());
    for (_, _, event_id) in before.iter() {
        state.extend(chains::known(&app, &view, event_id)?);
    }
    let mut room_state = create_join_event::v2::RoomState::new();
    if request.omit_members {
        room_state.members_omitted = true;
        room_state.servers_in_room = Some(hosting::omit_members(&mut state, &pdu));
    }
    let resting = state.iter().chain([&pdu]).map(|pdu| &**pdu);
    let mut chain = chains::auth_chain(&app, &view, resting)?;
    if request.omit_members {
        // What the state tells is not told twice.
        let told: BTreeSet<_> = state.iter().map(|pdu| pdu.event_id()).collect();
        chain.retain(|pdu| !told.contains(pdu.event_id()));
    }
    room_state.state = state.iter().map(|pdu| raw(pdu)).collect::<ApiResult<_>>()?;
    room_state.auth_chain = chain.iter().map(|pdu| raw(pdu)).collect::<ApiResult<_>>()?;
    room_state.event = Some(raw(&pdu)?);
    Ok(create_join_event::v2::Response::new(room_state))
}

fn raw(pdu: &Pdu) -> ApiResult<Box<RawValue>> {
    RawValue::from_string(pdu.json().to_owned()).map_err(|error| ApiError::internal(&error))
}

async fn make_knock(
    app: App,
    origin: Origin,
    request: prepare_knock_event::v1::Request,
) -> ApiResult<prepare_knock_event::v1::Response> {
    let turn = hosting::hosted(&app, &request.room_id, &origin.name).await?;
    suits(&origin, &request.user_id, &turn, Some(&request.ver))?;
    let event = hosting::propose(&app, &turn, &request.user_id, "knock")?;
    let version = turn.head.version.clone();
    Ok(prepare_knock_event::v1::Response::new(version, event))
}

async fn send_knock(
    app: App,
    origin: Origin,
    request: create_knock_event::v1::Request,
) -> ApiResult<create_knock_event::v1::Response> {
    let turn = hosting::hosted(&app, &request.room_id, &origin.name).await?;
    let rules = turn.rules;
    drop(turn);
    let place = (&*request.room_id, &*request.event_id);
    let pdu = hosting::submitted(&app, &origin.name, place, "knock", &request.pdu, rules).await?;
    let pdu = Arc::new(pdu);
    let (before, pdu) = hosting::admit(&app, &origin.name, &request.room_id, pdu).await?;
    let state = hosting::told_outside(&app, &before, &pdu)?;
    let state = state.into_iter().map(RawStrippedState::Pdu).collect();
    Ok(create_knock_event::v1::Response::new(state))
}

async fn make_leave(
    app: App,
    origin: Origin,
    request: prepare_leave_event::v1::Request,
) -> ApiResult<prepare_leave_event::v1::Response> {
    let turn = hosting::hosted(&app, &request.room_id, &origin.name).await?;
    suits(&origin, &request.user_id, &turn, None)?;
    let event = hosting::propose(&app, &turn, &request.user_id, "leave")?;
    let version = Some(turn.head.version.clone());
    Ok(prepare_leave_event::v1::Response::new(version, event))
}

async fn send_leave(
    app: App,
    origin: Origin,
    request: create_leave_event::v2::Request,
) -> ApiResult<create_leave_event::v2::Response> {
    let turn = hosting::hosted(&app, &request.room_id, &origin.name).await?;
    let rules = turn.rules;
    drop(turn);
    let place = (&*request.room_id, &*request.event_id);
    let pdu = hosting::submitted(&app, &origin.name, place, "leave", &request.pdu, rules).await?;
    hosting::admit(&app, &origin.name, &request.room_id, Arc::new(pdu)).await?;
    Ok(create_leave_event::v2::Response::new())
}

async fn invite(
    app: App,
    origin: Origin,
    request: create_invite::v2::Request,
) -> ApiResult<create_invite::v2::Response> {
    let version = &request.room_version;
    let rules = rules_of(version).map_err(|_| incompatible(version))?;
    let place = (&*request.room_id, &*request.event_id);
    let (pdu, mut object) =
        hosting::invitation(&app, &origin.name, place, version, &request.event).await?;
    let target = pdu.state_key().and_then(|key| UserId::parse(key).ok());
    let target = target.filter(|target| app.is_local(target));
    let target =
        target.ok_or_else(|| ApiError::invalid_param("the user is not one of this server"))?;
    let user = app.store.find_user(&target)?;
    let account = user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten();
    let Some((user, _)) = user.zip(account.filter(|account| !account.deactivated)) else {
        return Err(ApiError::not_found("there is no such user"));
    };
    invites::check_allowed(&app, pdu.sender(), &target)?;
    hosting::sign(&app, &mut object, rules)?;
    let room = app.store.room_num(&request.room_id)?;
    let view = app.store.room(room)?;
    let resident = view.map(|view| is_resident(&app, &view)).transpose()?;
    // Where this server is in the room, the invite comes in a transaction, too.
    if resident != Some(true) {
        let row = OutsideRow {
            version: version.clone(),
            state: stripped(request.invite_room_state),
            via: vec![origin.name.clone()],
        };
        let mut commit = Commit::new();
        let invited = (Membership::Invite, &pdu);
        outside::put(&app.store, &mut commit, (user, room), invited, row)?;
        app.store.commit(commit).await?;
    }
    let event =
        serde_json::value::to_raw_value(&object).map_err(|error| ApiError::internal(&error))?;
    Ok(create_invite::v2::Response::new(event))
}
