//! Server notices: messages of the admins, each user's in a room of their own.
//!
//! Sending is Synapse's admin API, not in the specification. Spec: client-server API, "Server
//! Notices".

use std::net::{IpAddr, Ipv4Addr};

use federation::event::Draft;
use http::{Method, StatusCode};
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use store::{
    Commit,
    keys::{Keyspace, Packed, RoomNum, Unpack, UserNum},
    kv::Direction,
    rooms::Membership,
};

use crate::{
    account_data,
    accounts::registration::{self, NewAccount},
    error::{ApiError, ApiResult},
    http::{Caller, RawRequest, Routes},
    rooms::{
        create::{NewRoom, create},
        members::{self, To},
        send::{Outgoing, send},
    },
    server::App,
};

/// How many rooms with notices are looked through for those of admins.
const NOTICE_ROOMS_MAX: usize = 10_000;

pub(super) fn routes(routes: &mut Routes) {
    let path = "/_synapse/admin/v1/send_server_notice";
    routes.raw(Method::POST, path, notify);
    routes.raw(Method::PUT, &format!("{path}/{{txn_id}}"), notify);
}

#[derive(Deserialize)]
struct Notice {
    user_id: OwnedUserId,
    #[serde(rename = "type")]
    kind: Option<String>,
    state_key: Option<String>,
    content: Box<RawValue>,
}

async fn notify(app: App, caller: Caller, request: RawRequest) -> ApiResult<Value> {
    caller.must_be_admin()?;
    let notice: Notice = request.json()?;
    let user = app
        .store
        .find_user(&notice.user_id)?
        .filter(|_| app.is_local(&notice.user_id));
    let account = user.map(|user| app.accounts.user(user)).transpose()?;
    let (Some(user), Some(Some(_))) = (user, account) else {
        return Err(ApiError::not_found("there is no such user here"));
    };
    let server = notifier(&app).await?;
    let room_id = room_for(&app, &server, user, &notice.user_id).await?;
    let kind = notice.kind.unwrap_or_else(|| "m.room.message".to_owned());
    let draft = match notice.state_key {
        Some(state_key) => Draft::state(kind, state_key, notice.content),
        None => Draft::message(kind, notice.content),
    };
    let txn_id = request.path.first().cloned();
    let outgoing = Outgoing {
        txn_id,
        ..Outgoing::now(draft)
    };
    let event_id = send(&app, &server, &room_id, outgoing).await?;
    Ok(json!({ "event_id": event_id }))
}

/// Says something to every admin who has a room with notices.
///
/// # Errors
/// When the store cannot be read or written.
pub(super) async fn tell_admins(app: &App, text: &str) -> ApiResult<()> {
    let mut users = Vec::new();
    app.store.visit(
        &Packed::key(Keyspace::NOTICE_ROOM),
        Direction::Ascending,
        |key, _| {
            users.extend(Unpack::key(key).user());
            Ok(users.len() < NOTICE_ROOMS_MAX)
        },
    )?;
    for user in users {
        let account = app.accounts.user(user)?;
        if !account.is_some_and(|account| account.admin && !account.deactivated) {
            continue;
        }
        let server = notifier(app).await?;
        let room_id = room_for(app, &server, user, &app.store.user_id(user)?).await?;
        let content = json!({ "msgtype": "m.notice", "body": text });
        let content = serde_json::value::to_raw_value(&content)
            .map_err(|error| ApiError::internal(&error))?;
        let draft = Draft::message("m.room.message", content);
        send(app, &server, &room_id, Outgoing::now(draft)).await?;
    }
    Ok(())
}

/// The user who sends notices, made when the first one is sent.
async fn notifier(app: &App) -> ApiResult<Caller> {
    let config = &app.config.server_notices;
    let user_id = app.local_user_id(&config.user_localpart)?;
    let mut user = app.store.find_user(&user_id)?;
    if user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten()
        .is_none()
    {
        let made = registration::register(app, &user_id, NewAccount::default()).await?;
        let mut profile = Map::new();
        profile.insert("displayname".to_owned(), config.display_name.clone().into());
        let mut commit = Commit::new();
        app.accounts.put_profile(&mut commit, made, &profile);
        app.store.commit(commit).await?;
        user = Some(made);
    }
    let account = user
        .map(|user| app.accounts.user(user))
        .transpose()?
        .flatten();
    let (user, account) = user
        .zip(account)
        .ok_or_else(|| ApiError::not_found("the user who sends notices is gone"))?;
    Ok(Caller {
        user,
        user_id,
        device: Some("notices".into()),
        session: None,
        service: None,
        account,
        address: IpAddr::from(Ipv4Addr::LOCALHOST),
    })
}

/// The room with a user's notices, to which they are invited unless they are in it.
async fn room_for(
    app: &App,
    server: &Caller,
    user: UserNum,
    user_id: &UserId,
) -> ApiResult<OwnedRoomId> {
    if let Some(room) = notice_room(app, user)?
        && let Some(room_id) = app.store.room_id(room)?
    {
        let row = app.store.user_room(user, room)?;
        let there =
            row.is_some_and(|row| matches!(row.membership, Membership::Join | Membership::Invite));
        if !there {
            let invite = members::Change::plain(user_id.to_owned(), To::Invite);
            members::change(app, server, &room_id, invite).await?;
        }
        return Ok(room_id);
    }
    let new = NewRoom {
        name: Some(app.config.server_notices.room_name.clone()),
        invite: vec![user_id.to_owned()],
        ..NewRoom::default()
    };
    let room_id = create(app, server, new).await?;
    let room = app.store.room_num(&room_id)?;
    let mut commit = Commit::new();
    commit.put_raw(
        Packed::key(Keyspace::NOTICE_ROOM).user(user),
        Packed::new().room(room),
    );
    let tags = serde_json::value::to_raw_value(&json!({ "tags": { "m.server_notice": {} } }))
        .map_err(|error| ApiError::internal(&error))?;
    account_data::put(&app.store, &mut commit, user, Some(room), "m.tag", &tags)?;
    app.store.commit(commit).await?;
    Ok(room_id)
}

fn notice_room(app: &App, user: UserNum) -> ApiResult<Option<RoomNum>> {
    let row = app
        .store
        .get_raw(Packed::key(Keyspace::NOTICE_ROOM).user(user))?;
    Ok(row.and_then(|row| Unpack(&row).room()))
}

/// That a user does not refuse the invite to the room with their notices.
///
/// # Errors
/// `M_CANNOT_LEAVE_SERVER_NOTICE_ROOM`.
pub(super) fn may_leave(app: &App, caller: &Caller, room_id: &ruma::RoomId) -> ApiResult<()> {
    let Some(room) = app.store.find_room(room_id)? else {
        return Ok(());
    };
    let invited = app
        .store
        .user_room(caller.user, room)?
        .is_some_and(|row| row.membership == Membership::Invite);
    if invited && notice_room(app, caller.user)? == Some(room) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM",
            "an invite to the notices of this server cannot be rejected",
        ));
    }
    Ok(())
}
