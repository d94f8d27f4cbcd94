//! Joining, knocking on, and leaving rooms that this server is not in, by way of one that is.
//!
//! The other server proposes an event, this one signs it and sends it back. A join is answered with the state
//! of the room, which is verified event by event before anything of it is kept.
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Leaving Rooms (Rejecting Invites)".

use std::sync::Arc;

use federation::{
    event::{Draft, DraftContext, Pdu, SERVED_ROOM_VERSIONS},
    room::{StateMap, auth::allowed_by_auth_events, auth::allowed_by_state},
};
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId,
    ServerName,
    api::federation::membership::{
        RawStrippedState, create_join_event, create_knock_event, create_leave_event,
        prepare_join_event, prepare_knock_event, prepare_leave_event,
    },
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use store::{Commit, keys::RoomNum, rooms::Membership};

use super::{
    foreign,
    outside::{self, OutsideRow},
    receive::is_resident,
    steps::Place,
    turn::rules_of,
};
use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    peers::{self, PeerError},
    server::App,
};

/// How many servers are asked, one after the other.
const SERVERS_MAX: usize = 10;

/// The servers to ask about a room, the likeliest first: those that the client names, and the one that the user
/// was invited by. Without any, those that were there when this server was; without those, the server that
/// made it, where the room's ID tells.
///
/// # Errors
/// When the store cannot be read.
pub fn candidates(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    via: &[OwnedServerName],
) -> ApiResult<Vec<OwnedServerName>> {
    let others = via.iter().filter(|server| *server != app.server_name());
    let mut servers: Vec<OwnedServerName> = others.cloned().collect();
    if let Some(room) = app.store.find_room(room_id)? {
        if let Some(row) = outside::of(&app.store, caller.user, room)? {
            servers.extend(row.via);
        }
        // Who was there when this server was. A client that names servers wants those.
        let unnamed = servers.is_empty();
        if let Some(view) = app.store.room(room)?.filter(|_| unnamed) {
            for (user, membership) in &view.head.members {
                if servers.len() >= SERVERS_MAX {
                    break;
                }
                if *membership == Membership::Join {
                    let user_id = app.store.user_id(*user)?;
                    if !servers.iter().any(|server| server == user_id.server_name()) {
                        servers.push(user_id.server_name().to_owned());
                    }
                }
            }
        }
    }
    // Spec, "Room IDs": the server in it need not be in the room. It is a guess for who has nothing better.
    if servers.is_empty() {
        servers.extend(room_id.server_name().map(ToOwned::to_owned));
    }
    let mut distinct: Vec<OwnedServerName> = Vec::new();
    for server in servers {
        if !distinct.contains(&server) && &*server != app.server_name() {
            distinct.push(server);
        }
    }
    distinct.truncate(SERVERS_MAX);
    Ok(distinct)
}

/// Whether a room can only be joined by way of another server.
///
/// # Errors
/// When the store cannot be read.
pub fn is_elsewhere(app: &App, room_id: &RoomId) -> ApiResult<bool> {
    let Some(room) = app.store.find_room(room_id)? else {
        return Ok(true);
    };
    match app.store.room(room)? {
        Some(view) => Ok(!is_resident(app, &view)?),
        None => Ok(true),
    }
}

/// Joins a room by way of one of `servers`.
///
/// # Errors
/// What the last of them said: `M_FORBIDDEN` and the like; 502 when none could be asked.
pub async fn join(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    servers: &[OwnedServerName],
    extra: &Map<String, Value>,
) -> ApiResult<()> {
    let room = app.store.room_num(room_id)?;
    // What the others send meanwhile waits, and finds the room.
    let _receiving = app.rooms.receiving(room).await;
    let going = Going {
        app,
        caller,
        room,
        room_id,
        extra,
    };
    going.by_one_of(servers, Way::Join).await
}

/// Knocks on a room by way of one of `servers`.
///
/// # Errors
/// As [`join`].
pub async fn knock(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    servers: &[OwnedServerName],
    extra: &Map<String, Value>,
) -> ApiResult<()> {
    let room = app.store.room_num(room_id)?;
    let going = Going {
        app,
        caller,
        room,
        room_id,
        extra,
    };
    going.by_one_of(servers, Way::Knock).await
}

/// Refuses an invite, or takes back a knock, of a room that this server is not in. If nobody can be told, the
/// user is rid of it all the same.
///
/// # Errors
/// `M_FORBIDDEN` when there is nothing to leave.
pub async fn leave(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    extra: &Map<String, Value>,
) -> ApiResult<()> {
    let not_there = || ApiError::forbidden("you are not in this room");
    let room = app.store.find_room(room_id)?.ok_or_else(not_there)?;
    let row = outside::of(&app.store, caller.user, room)?.ok_or_else(not_there)?;
    let going = Going {
        app,
        caller,
        room,
        room_id,
        extra,
    };
    let left = going.by_one_of(&row.via, Way::Leave).await;
    if let Err(error) = left {
        tracing::info!(%room_id, reason = %error.message, "nobody could be told of a refused invite");
        let pdu = going.unheard_leave(&row.version)?;
        let mut commit = Commit::new();
        let place = (caller.user, room);
        outside::leave(&app.store, &mut commit, place, &Arc::new(pdu), &row.version)?;
        app.store.commit(commit).await?;
    }
    Ok(())
}

/// What another server proposes.
#[derive(Deserialize)]
struct Template {
    #[serde(rename = "type")]
    kind: String,
    room_id: ruma::OwnedRoomId,
    sender: OwnedUserId,
    state_key: String,
    content: Map<String, Value>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: u64,
}

/// Where a user is going.
#[derive(Clone, Copy, Debug)]
enum Way {
    Join,
    Knock,
    Leave,
}

/// A user on the way into a room, or out of it.
struct Going<'a> {
    app: &'a App,
    caller: &'a Caller,
    room: RoomNum,
    room_id: &'a RoomId,
    extra: &'a Map<String, Value>,
}

impl Going<'_> {
    async fn by_one_of(&self, servers: &[OwnedServerName], way: Way) -> ApiResult<()> {
        let mut last = ApiError::not_found("the room is not known here, and no server to ask is");
        for server in servers {
            let outcome = match way {
                Way::Join => self.join_by(server).await,
                Way::Knock => self.knock_by(server).await,
                Way::Leave => self.leave_by(server).await,
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::info!(
                        room_id = %self.room_id, %server, reason = %error.message,
                        "a server does not help into or out of a room"
                    );
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Signs what was proposed, if it is what was asked for.
    fn sign(
        &self,
        template: &RawValue,
        membership: &str,
        rules: &RoomVersionRules,
    ) -> ApiResult<Pdu> {
        let template: Template = serde_json::from_str(template.get())
            .map_err(|_| ApiError::bad_gateway("the other server proposes no event"))?;
        let said = template.content.get("membership").and_then(Value::as_str);
        let as_asked = template.kind == "m.room.member"
            && template.room_id == self.room_id
            && template.sender == self.caller.user_id
            && template.state_key == self.caller.user_id.as_str()
            && said == Some(membership);
        if !as_asked {
            return Err(ApiError::bad_gateway(
                "the other server proposes another event than was asked for",
            ));
        }
        let mut content = template.content;
        for (key, value) in self.extra {
            if key != "membership" && key != "join_authorised_via_users_server" {
                content.insert(key.clone(), value.clone());
            }
        }
        if membership != "leave" {
            let profile = self.app.accounts.profile(self.caller.user)?;
            for key in ["displayname", "avatar_url"] {
                content.remove(key);
                if let Some(value) = profile.get(key) {
                    content.insert(key.to_owned(), value.clone());
                }
            }
        }
        let content = serde_json::value::to_raw_value(&content)
            .map_err(|error| ApiError::internal(&error))?;
        let user_id = &self.caller.user_id;
        let context = DraftContext {
            room_id: Some(self.room_id),
            sender: user_id,
            origin_server_ts: self.app.clock.now(),
            prev_events: &template.prev_events,
            auth_events: &template.auth_events,
            depth: template.depth,
            rules,
        };
        let draft = Draft::state("m.room.member", user_id.as_str(), content);
        Ok(draft.sign(&context, &self.app.key)?)
    }

    async fn join_by(&self, server: &ServerName) -> ApiResult<()> {
        let app = self.app;
        let (room_id, user_id) = (self.room_id.to_owned(), self.caller.user_id.clone());
        let mut request = prepare_join_event::v1::Request::new(room_id.clone(), user_id);
        request.ver = SERVED_ROOM_VERSIONS.to_vec();
        let proposed = peers::ask(app, server, request).await.map_err(relayed)?;
        let version = proposed.room_version.unwrap_or(RoomVersionId::V1);
        let rules = rules_of(&version)?;
        let mut pdu = self.sign(&proposed.event, "join", rules)?;
        let mut request = create_join_event::v2::Request::new(
            room_id,
            pdu.event_id().to_owned(),
            RawValue::from_string(pdu.json().to_owned())
                .map_err(|error| ApiError::internal(&error))?,
        );
        request.omit_members = false;
        let answer = peers::ask(app, server, request).await.map_err(relayed)?;
        let answer = answer.room_state;
        if let Some(countersigned) = &answer.event {
            pdu = countersigned_event(countersigned, &pdu, rules).unwrap_or(pdu);
        }
        self.enter(&version, Arc::new(pdu), &answer.auth_chain, &answer.state)
            .await
    }

    /// Takes over the state of the room, and the join upon it.
    async fn enter(
        &self,
        version: &RoomVersionId,
        pdu: Arc<Pdu>,
        auth_chain: &[Box<RawValue>],
        state: &[Box<RawValue>],
    ) -> ApiResult<()> {
        let (app, room_id) = (self.app, self.room_id);
        let rules = rules_of(version)?;
        let mut known = foreign::checked(app, room_id, rules, auth_chain).await;
        let state = foreign::checked(app, room_id, rules, state).await;
        known.extend(state.iter().cloned());
        let first = app
            .rooms
            .first_turn(app, room_id.to_owned(), version.clone())
            .await?;
        let is_new = first.is_some();
        let mut turn = match first {
            Some(turn) => turn,
            None => app.rooms.turn(app, room_id).await?,
        };
        let gap = if is_new { None } else { turn.gap_since(&pdu)? };
        let mut commit = Commit::new();
        turn.keep_outliers(&mut commit, known)?;
        let mut before = StateMap::new();
        for event in &state {
            let kept = turn.pdu(event.event_id())?;
            let kept = kept.filter(|kept| !kept.is_rejected());
            if let (Some(_), Some(key)) = (kept, event.state_key()) {
                let id = event.event_id().to_owned();
                before.insert(&event.kind().to_string(), key, id);
            }
        }
        let created = before
            .get("m.room.create", "")
            .map(|id| turn.pdu(id))
            .transpose()?;
        let created = created
            .flatten()
            .and_then(|create| create.content_as::<Created>());
        if created.is_none_or(|created| created.room_version != *version) {
            return Err(ApiError::bad_gateway(
                "the other server's state has no creation of a room of that version",
            ));
        }
        let by_id = |id: &ruma::EventId| turn.pdu(id).ok().flatten();
        allowed_by_auth_events(&pdu, &rules.authorization, by_id)
            .and_then(|()| {
                allowed_by_state(&pdu, &rules.authorization, |kind, key| {
                    before.get(kind, key).and_then(|id| by_id(id))
                })
            })
            .map_err(|reason| {
                ApiError::bad_gateway(format!(
                    "the other server's state does not allow it: {reason}"
                ))
            })?;
        outside::forget(&mut commit, self.caller.user, self.room);
        let place = Place {
            before,
            alone: true,
            gap,
        };
        turn.add(&mut commit, &pdu, None, Some(place)).await?;
        turn.finish(commit).await?.flushed().await?;
        Ok(())
    }

    async fn knock_by(&self, server: &ServerName) -> ApiResult<()> {
        let app = self.app;
        let (room_id, user_id) = (self.room_id.to_owned(), self.caller.user_id.clone());
        let mut request = prepare_knock_event::v1::Request::new(room_id.clone(), user_id);
        request.ver = SERVED_ROOM_VERSIONS.to_vec();
        let proposed = peers::ask(app, server, request).await.map_err(relayed)?;
        let version = proposed.room_version;
        let pdu = Arc::new(self.sign(&proposed.event, "knock", rules_of(&version)?)?);
        let request = create_knock_event::v1::Request::new(
            room_id,
            pdu.event_id().to_owned(),
            RawValue::from_string(pdu.json().to_owned())
                .map_err(|error| ApiError::internal(&error))?,
        );
        let answer = peers::ask(app, server, request).await.map_err(relayed)?;
        let row = OutsideRow {
            version,
            state: stripped(answer.knock_room_state),
            via: vec![server.to_owned()],
        };
        let mut commit = Commit::new();
        let place = (self.caller.user, self.room);
        outside::put(
            &app.store,
            &mut commit,
            place,
            (Membership::Knock, &pdu),
            row,
        )?;
        app.store.commit(commit).await?;
        Ok(())
    }

    async fn leave_by(&self, server: &ServerName) -> ApiResult<()> {
        let app = self.app;
        let (room_id, user_id) = (self.room_id.to_owned(), self.caller.user_id.clone());
        let request = prepare_leave_event::v1::Request::new(room_id.clone(), user_id);
        let proposed = peers::ask(app, server, request).await.map_err(relayed)?;
        let version = proposed.room_version.unwrap_or(RoomVersionId::V1);
        let pdu = Arc::new(self.sign(&proposed.event, "leave", rules_of(&version)?)?);
        let request = create_leave_event::v2::Request::new(
            room_id,
            pdu.event_id().to_owned(),
            RawValue::from_string(pdu.json().to_owned())
                .map_err(|error| ApiError::internal(&error))?,
        );
        peers::ask(app, server, request).await.map_err(relayed)?;
        let mut commit = Commit::new();
        let place = (self.caller.user, self.room);
        outside::leave(&app.store, &mut commit, place, &pdu, &version)?;
        app.store.commit(commit).await?;
        Ok(())
    }

    /// A leave that no other server hears of.
    fn unheard_leave(&self, version: &RoomVersionId) -> ApiResult<Pdu> {
        let content =
            serde_json::value::to_raw_value(&serde_json::json!({ "membership": "leave" }))
                .map_err(|error| ApiError::internal(&error))?;
        let user_id = &self.caller.user_id;
        let context = DraftContext {
            room_id: Some(self.room_id),
            sender: user_id,
            origin_server_ts: self.app.clock.now(),
            prev_events: &[],
            auth_events: &[],
            depth: 1,
            rules: rules_of(version)?,
        };
        let draft = Draft::state("m.room.member", user_id.as_str(), content);
        Ok(draft.sign(&context, &self.app.key)?)
    }
}

#[derive(Deserialize)]
struct Created {
    #[serde(default = "oldest")]
    room_version: RoomVersionId,
}

fn oldest() -> RoomVersionId {
    RoomVersionId::V1
}

/// The same event with the signature of whoever let its sender in.
fn countersigned_event(raw: &RawValue, pdu: &Pdu, rules: &RoomVersionRules) -> Option<Pdu> {
    let mut object: CanonicalJsonObject = serde_json::from_str(raw.get()).ok()?;
    object.remove("unsigned");
    object.remove("event_id");
    let signed = Pdu::from_canonical(&object, rules).ok()?;
    (signed.event_id() == pdu.event_id()).then_some(signed)
}

/// Stripped state as clients get it, from whatever a server gave: stripped events, or whole ones.
pub fn stripped(state: Vec<RawStrippedState>) -> Vec<Box<RawValue>> {
    const KEYS: [&str; 4] = ["type", "state_key", "sender", "content"];
    let mut told = Vec::new();
    let mut bytes = 0;
    for event in state.into_iter().take(outside::STATE_EVENTS_MAX) {
        let json = match &event {
            #[expect(deprecated, reason = "servers before v1.16 send it")]
            RawStrippedState::Stripped(event) => event.json(),
            RawStrippedState::Pdu(pdu) => &**pdu,
            _ => continue,
        };
        let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(json.get()) else {
            continue;
        };
        let creates = fields
            .get("type")
            .is_some_and(|kind| kind == "m.room.create");
        fields.retain(|key, _| KEYS.contains(&&**key) || (creates && key == "origin_server_ts"));
        let whole = KEYS.iter().all(|key| fields.contains_key(*key));
        bytes += json.get().len();
        if whole && bytes <= outside::STATE_BYTES_MAX {
            told.extend(serde_json::value::to_raw_value(&fields).ok());
        }
    }
    told
}

/// An error of the server that was asked, as the client gets it.
///
/// Spec: server-server API, "Joining Rooms": an errcode that says something about the user is passed on, one
/// that says this server asked wrongly is not.
pub fn relayed(error: PeerError) -> ApiError {
    match error {
        PeerError::Refused {
            status,
            errcode,
            message,
            body,
            ..
        } if status.is_client_error()
            && errcode != "M_MISSING_PARAM"
            && errcode != "M_INVALID_PARAM"
            && errcode != "M_UNAUTHORIZED"
            && errcode != "M_UNRECOGNIZED" =>
        {
            let version = body.get("room_version").and_then(Value::as_str);
            let error = ApiError::new(status, errcode, message);
            match version {
                Some(version) => error.with("room_version", version),
                None => error,
            }
        }
        PeerError::Denied(server) => {
            ApiError::forbidden(format!("this server does not federate with `{server}`"))
        }
        error => ApiError::bad_gateway(error.to_string()),
    }
}
