//! Users of other servers come into rooms of this one, and go: what this server proposes, and what it takes.
//!
//! Spec: server-server API, "Joining Rooms", "Knocking upon a room", "Leaving Rooms (Rejecting Invites)",
//! "Inviting to a room".

use std::{collections::BTreeSet, sync::Arc};

use federation::{
    event::{Draft, Pdu},
    room::{StateMap, auth::Verdict},
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, RoomId, RoomVersionId, ServerName, UserId,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
    signatures::hash_and_sign_event,
};
use serde_json::{Map, Value, value::RawValue};
use store::{Commit, rooms::Membership};

use super::{
    Turn,
    accept::{Outcome, StatesAfter},
    acl, foreign, members, policy,
    receive::is_resident,
    turn::Append,
};
use crate::{
    error::{ApiError, ApiResult},
    peers::{self, sender},
    server::App,
};

/// The turn of a room that this server is in, for a server that the room's ACL lets in.
///
/// # Errors
/// `M_NOT_FOUND`, `M_FORBIDDEN`.
pub async fn hosted(app: &App, room_id: &RoomId, origin: &ServerName) -> ApiResult<Turn> {
    let unknown = || ApiError::not_found("this server is not in the room");
    let room = app.store.find_room(room_id)?.ok_or_else(unknown)?;
    let view = app.store.room(room)?.ok_or_else(unknown)?;
    if !is_resident(app, &view)? {
        return Err(unknown());
    }
    if !acl::allows(app, room, origin)? {
        return Err(ApiError::forbidden(
            "the room's server ACL shuts your server out",
        ));
    }
    app.rooms.turn(app, room_id).await
}

/// The event by which a user of another server would get to `membership`, without hashes and signatures.
///
/// # Errors
/// `M_FORBIDDEN` when the room would not allow it; `M_UNABLE_TO_AUTHORISE_JOIN` and
/// `M_UNABLE_TO_GRANT_JOIN` as restricted rooms have them.
pub fn propose(
    app: &App,
    turn: &Turn,
    user_id: &UserId,
    membership: &str,
) -> ApiResult<Box<RawValue>> {
    let mut content = Map::new();
    content.insert("membership".to_owned(), membership.into());
    let present = turn.membership(user_id)?;
    if membership == "join"
        && !matches!(present, Membership::Invite | Membership::Join)
        && let Some(authoriser) = members::authoriser(app, turn, user_id)?
    {
        let authoriser = authoriser.to_string();
        content.insert(
            "join_authorised_via_users_server".to_owned(),
            authoriser.into(),
        );
    }
    let content =
        serde_json::value::to_raw_value(&content).map_err(|error| ApiError::internal(&error))?;
    let append = Append {
        sender: user_id.to_owned(),
        draft: Draft::state("m.room.member", user_id.as_str(), content),
        origin_server_ts: app.clock.now(),
        txn: None,
    };
    let pdu = turn.build(append)?;
    let mut event: Map<String, Value> =
        serde_json::from_str(pdu.json()).map_err(|error| ApiError::internal(&error))?;
    event.retain(|key, _| key != "hashes" && key != "signatures");
    serde_json::value::to_raw_value(&event).map_err(|error| ApiError::internal(&error))
}

/// What was sent for a proposal, verified: a change of the sender's own membership.
///
/// # Errors
/// `M_INVALID_PARAM` when it is another event than the path says, or is not signed as it must be.
pub async fn submitted(
    app: &App,
    origin: &ServerName,
    (room_id, event_id): (&RoomId, &EventId),
    membership: &str,
    raw: &RawValue,
    rules: &RoomVersionRules,
) -> ApiResult<Pdu> {
    let mut object: CanonicalJsonObject =
        serde_json::from_str(raw.get()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    object.remove("unsigned");
    if authorised_here(app, &object) {
        // Whoever lets somebody in signs for it, and without the signature it would not verify.
        sign(app, &mut object, rules)?;
    }
    let object = peers::verify_event(app, &object, rules).await?;
    let pdu = Pdu::from_canonical(&object, rules)
        .map_err(|malformed| ApiError::invalid_param(malformed.to_string()))?;
    let said: Option<Map<String, Value>> = pdu.content_as();
    let said = said.and_then(|content| content.get("membership")?.as_str().map(str::to_owned));
    let right = *pdu.kind() == TimelineEventType::RoomMember
        && pdu.room_id() == room_id
        && pdu.event_id() == event_id
        && pdu.state_key() == Some(pdu.sender().as_str())
        && pdu.sender().server_name() == origin
        && said.as_deref() == Some(membership);
    if right {
        Ok(pdu)
    } else {
        Err(ApiError::invalid_param(format!(
            "this is not the event of a user of yours with the membership `{membership}` and the ID in the path"
        )))
    }
}

fn authorised_here(app: &App, object: &CanonicalJsonObject) -> bool {
    let content = object
        .get("content")
        .and_then(CanonicalJsonValue::as_object);
    let by = content
        .and_then(|content| content.get("join_authorised_via_users_server")?.as_str())
        .and_then(|by| UserId::parse(by).ok());
    by.is_some_and(|by| app.is_local(&by))
}

/// Adds this server's signature to an event.
///
/// # Errors
/// `M_BAD_JSON` when it cannot be signed.
pub fn sign(
    app: &App,
    object: &mut CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> ApiResult<()> {
    let name = app.server_name().as_str();
    hash_and_sign_event(name, app.key.key_pair(), object, &rules.redaction)
        .map_err(|error| ApiError::bad_json(error.to_string()))
}

/// Takes an event that was submitted into the room; the state before it, and the event as it is now.
///
/// # Errors
/// `M_FORBIDDEN` when the room does not allow it; what the room's policy server says against it.
pub async fn admit(
    app: &App,
    origin: &ServerName,
    room_id: &RoomId,
    mut pdu: Arc<Pdu>,
) -> ApiResult<(StateMap, Arc<Pdu>)> {
    let mut turn = hosted(app, room_id, origin).await?;
    let mut commit = Commit::new();
    let states = StatesAfter::new();
    let mut outcome = turn.accept(&mut commit, &pdu, &states, false).await?;
    if let Outcome::Unsigned(policy) = &outcome {
        let rules = turn.rules;
        drop(turn);
        pdu = Arc::new(policy::ask(app, policy, &pdu, rules).await?);
        turn = hosted(app, room_id, origin).await?;
        commit = Commit::new();
        outcome = turn.accept(&mut commit, &pdu, &states, true).await?;
    }
    match outcome {
        // The other servers in the room hear of it from here.
        Outcome::Placed(Verdict::Accepted) => sender::also(&mut commit, pdu.event_id()),
        Outcome::Known => {}
        Outcome::Placed(Verdict::SoftFailed(reason) | Verdict::Rejected(reason)) => {
            return Err(ApiError::forbidden(reason.to_string()));
        }
        Outcome::Missing(_) | Outcome::Unsigned(_) => {
            return Err(ApiError::forbidden(
                "the event is built upon others than this server proposed",
            ));
        }
    }
    let before = turn.before(&pdu)?;
    turn.finish(commit).await?.flushed().await?;
    Ok((before, pdu))
}

/// An invite of a local user by another server, verified.
///
/// # Errors
/// `M_INVALID_PARAM` when it is none.
pub async fn invitation(
    app: &App,
    origin: &ServerName,
    (room_id, event_id): (&RoomId, &EventId),
    version: &RoomVersionId,
    raw: &RawValue,
) -> ApiResult<(Arc<Pdu>, CanonicalJsonObject)> {
    let rules = super::turn::rules_of(version)?;
    let object: CanonicalJsonObject =
        serde_json::from_str(raw.get()).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let pdu = foreign::checked(app, room_id, rules, &[raw.to_owned()])
        .await
        .pop();
    let pdu = pdu.ok_or_else(|| ApiError::invalid_param("the event is not valid"))?;
    let said: Option<members::MemberContent> = pdu.content_as();
    let right = *pdu.kind() == TimelineEventType::RoomMember
        && pdu.event_id() == event_id
        && pdu.sender().server_name() == origin
        && said.is_some_and(|said| said.membership == MembershipState::Invite);
    if right {
        Ok((pdu, object))
    } else {
        Err(ApiError::invalid_param(
            "this is not an invite by a user of yours with the ID in the path",
        ))
    }
}

/// Takes the members out of a state, but for those that the join needs; the servers of those who are joined.
///
/// Spec: server-server API, `omit_members` of `send_join` (MSC3706).
pub fn omit_members(state: &mut Vec<Arc<Pdu>>, join: &Pdu) -> Vec<String> {
    let names = ["m.room.name", "m.room.canonical_alias"];
    let named = state
        .iter()
        .any(|pdu| names.iter().any(|kind| pdu.is_state(kind, "")));
    let mut heroes = if named { 0 } else { HEROES };
    let mut servers = BTreeSet::new();
    state.retain(|pdu| {
        if *pdu.kind() != TimelineEventType::RoomMember {
            return true;
        }
        let key = pdu.state_key().unwrap_or_default();
        let content: Option<members::MemberContent> = pdu.content_as();
        let joined = content.is_some_and(|content| content.membership == MembershipState::Join);
        if joined && let Ok(user_id) = UserId::parse(key) {
            servers.insert(user_id.server_name().to_string());
        }
        let id = pdu.event_id();
        let needed =
            key == join.sender().as_str() || join.auth_events().iter().any(|auth| auth == id);
        if needed || heroes == 0 {
            return needed;
        }
        heroes -= 1;
        true
    });
    servers.into_iter().collect()
}

/// How many members a room without a name is shown by. Spec: client-server API, "Calculating the display name".
const HEROES: usize = 5;

/// What someone outside the room is told of it, as whole events.
///
/// # Errors
/// When the store cannot be read.
pub fn told_outside(app: &App, state: &StateMap, own: &Pdu) -> ApiResult<Vec<Box<RawValue>>> {
    let by = state.get("m.room.member", own.sender().as_str());
    let entries = super::read::TOLD
        .iter()
        .filter_map(|kind| state.get(kind, ""));
    let mut told = Vec::new();
    for id in entries.chain(by) {
        if let Some(pdu) = app.store.pdu(id)? {
            told.push(
                RawValue::from_string(pdu.json().to_owned())
                    .map_err(|error| ApiError::internal(&error))?,
            );
        }
    }
    Ok(told)
}
