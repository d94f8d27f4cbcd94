//! Membership: joining, leaving, inviting, knocking, kicking, banning.
//!
//! Spec: client-server API, "Room membership", "Restricted rooms", "Knocking on rooms".

use std::collections::BTreeSet;

use federation::event::Draft;
use ruma::{
    OwnedEventId, OwnedUserId, RoomId, UserId,
    api::federation::membership::{RawStrippedState, create_invite},
    events::room::member::MembershipState,
    room::{AllowRule, JoinRule},
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use store::{
    Commit,
    keys::{RoomNum, UserNum},
    rooms::Membership,
};

use super::{Turn, policy, turn::Append};
use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    peers,
    server::App,
};

/// A change of somebody's membership, as a client asks for it.
#[derive(Debug)]
pub struct Change {
    /// Whose membership.
    pub target: OwnedUserId,
    /// What it shall be.
    pub to: To,
    /// Why, for people.
    pub reason: Option<String>,
    /// Further keys of the event's content.
    pub extra: Map<String, Value>,
}

/// What a client asks for. Several end in the same membership from different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Join.
    Join,
    /// Leave, refuse an invite, take back a knock.
    Leave,
    /// Invite somebody.
    Invite,
    /// Ask to be let in.
    Knock,
    /// Make somebody leave.
    Kick,
    /// Keep somebody out.
    Ban,
    /// No longer keep somebody out.
    Unban,
}

impl Change {
    /// A change without a reason.
    pub fn plain(target: impl Into<OwnedUserId>, to: To) -> Self {
        Self {
            target: target.into(),
            to,
            reason: None,
            extra: Map::new(),
        }
    }
}

impl To {
    fn membership(self) -> MembershipState {
        match self {
            Self::Join => MembershipState::Join,
            Self::Leave | Self::Kick | Self::Unban => MembershipState::Leave,
            Self::Invite => MembershipState::Invite,
            Self::Knock => MembershipState::Knock,
            Self::Ban => MembershipState::Ban,
        }
    }
}

/// Changes a membership, and returns once the change is durable. `None`: it was so already.
///
/// # Errors
/// `M_FORBIDDEN` when the room does not allow it, `M_NOT_FOUND` when the room is not known.
pub async fn change(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    change: Change,
) -> ApiResult<Option<OwnedEventId>> {
    let mut turn = app.rooms.turn(app, room_id).await?;
    if change.to == To::Invite && !app.is_local(&change.target) {
        return invite_elsewhere(app, turn, caller, change).await.map(Some);
    }
    let mut commit = Commit::new();
    let Some(event_id) = append(app, &mut turn, &mut commit, caller, change).await? else {
        return Ok(None);
    };
    turn.finish(commit).await?.flushed().await?;
    Ok(Some(event_id))
}

/// Invites a user of another server, which has to sign the invite before anybody else sees it.
///
/// Spec: server-server API, "Inviting to a room".
async fn invite_elsewhere(
    app: &App,
    turn: Turn,
    caller: &Caller,
    change: Change,
) -> ApiResult<OwnedEventId> {
    let server = change.target.server_name().to_owned();
    let invite = prepare(app, &turn, caller, change)?;
    let invite = invite.ok_or_else(|| ApiError::unknown("the user is invited already"))?;
    let pdu = turn.build(invite)?;
    let policy = turn.policy_for(&pdu)?;
    let state = super::hosting::told_outside(app, &turn.head.state, &pdu)?;
    let (room_id, version, rules) = (turn.room_id.clone(), turn.head.version.clone(), turn.rules);
    // The network is not waited for with the turn.
    drop(turn);
    let pdu = match policy {
        Some(policy) => policy::ask(app, &policy, &pdu, rules).await?,
        None => pdu,
    };
    let event_id = pdu.event_id().to_owned();
    let raw = |json: &str| {
        RawValue::from_string(json.to_owned()).map_err(|error| ApiError::internal(&error))
    };
    let request = create_invite::v2::Request::new(
        room_id.clone(),
        event_id.clone(),
        version,
        raw(pdu.json())?,
        state.into_iter().map(RawStrippedState::Pdu).collect(),
    );
    let answer = peers::ask(app, &server, request).await;
    let answer = answer.map_err(|error| {
        let error = super::join::relayed(error);
        if error.status == http::StatusCode::NOT_FOUND {
            return ApiError::forbidden(format!("`{server}` knows no such user"));
        }
        error
    })?;
    let signed = super::foreign::checked(app, &room_id, rules, &[answer.event]).await;
    let signed = signed
        .into_iter()
        .find(|signed| signed.event_id() == event_id);
    let signed = signed.ok_or_else(|| {
        ApiError::bad_gateway("the user's server signed another event than was sent")
    })?;
    let mut turn = app.rooms.turn(app, &room_id).await?;
    let mut commit = Commit::new();
    turn.append_late(&mut commit, &signed, None).await?;
    turn.finish(commit).await?.flushed().await?;
    Ok(event_id)
}

/// Adds a change of membership to a turn. `None`: it is so already.
///
/// # Errors
/// As [`change`].
pub async fn append(
    app: &App,
    turn: &mut Turn,
    commit: &mut Commit,
    caller: &Caller,
    change: Change,
) -> ApiResult<Option<OwnedEventId>> {
    let Some(append) = prepare(app, turn, caller, change)? else {
        return Ok(None);
    };
    let pdu = turn.append(commit, append).await?;
    Ok(Some(pdu.event_id().to_owned()))
}

/// The event that a change of membership asks for. `None`: it is so already.
fn prepare(app: &App, turn: &Turn, caller: &Caller, change: Change) -> ApiResult<Option<Append>> {
    let target = &change.target;
    let present = turn.membership(target)?;
    match (change.to, present) {
        (To::Join, Membership::Join)
        | (To::Knock, Membership::Knock)
        | (To::Ban, Membership::Ban) => {
            return Ok(None);
        }
        (To::Leave, Membership::Leave) => {
            let user = app.store.find_user(target)?;
            let was_there = user
                .map(|user| app.store.user_room(user, turn.room))
                .transpose()?
                .flatten();
            if was_there.is_some() {
                return Ok(None);
            }
            return Err(ApiError::forbidden("you are not in this room"));
        }
        (To::Invite, Membership::Join) => {
            return Err(ApiError::forbidden("the user is in the room already"));
        }
        (To::Kick, Membership::Leave | Membership::Ban) => {
            return Err(ApiError::forbidden("the user is not in the room"));
        }
        (To::Unban, present) if present != Membership::Ban => {
            return Err(ApiError::forbidden("the user is not banned from the room"));
        }
        _ => {}
    }
    if change.to == To::Join && caller.account.guest && !guests_may_join(turn)? {
        return Err(ApiError::guest_forbidden("the room lets in no guests"));
    }
    let mut content = change.extra;
    for key in ["membership", "reason", "join_authorised_via_users_server"] {
        content.remove(key);
    }
    content.insert(
        "membership".to_owned(),
        change.to.membership().to_string().into(),
    );
    if let Some(reason) = change.reason {
        content.insert("reason".to_owned(), reason.into());
    }
    if matches!(change.to, To::Join | To::Knock | To::Invite) {
        add_profile(app, target, &mut content)?;
    }
    if change.to == To::Join && present != Membership::Invite {
        let authoriser = authoriser(app, turn, target)?;
        if let Some(authoriser) = authoriser {
            content.insert(
                "join_authorised_via_users_server".to_owned(),
                authoriser.to_string().into(),
            );
        }
    }
    if change.to == To::Invite && app.is_local(target) {
        crate::invites::check_allowed(app, &caller.user_id, target)?;
    }
    let content =
        serde_json::value::to_raw_value(&content).map_err(|error| ApiError::internal(&error))?;
    Ok(Some(Append {
        sender: caller.user_id.clone(),
        draft: Draft::state("m.room.member", change.target.as_str(), content),
        origin_server_ts: app.clock.now(),
        txn: None,
    }))
}

#[derive(Deserialize)]
struct GuestAccessContent {
    guest_access: String,
}

/// Whether guests of this server may join, or stay. Spec: client-server API, "Guest Access".
///
/// # Errors
/// When the store cannot be read.
pub fn guests_may_join(turn: &Turn) -> ApiResult<bool> {
    let event = turn.state_event("m.room.guest_access", "")?;
    let content: Option<GuestAccessContent> = event.and_then(|event| event.content_as());
    Ok(content.is_some_and(|content| content.guest_access == "can_join"))
}

/// A member event shows the profile of a local user as it is then.
fn add_profile(app: &App, target: &UserId, content: &mut Map<String, Value>) -> ApiResult<()> {
    if !app.is_local(target) {
        return Ok(());
    }
    let Some(user) = app.store.find_user(target)? else {
        return Ok(());
    };
    let mut profile = app.accounts.profile(user)?;
    for key in ["displayname", "avatar_url"] {
        if let Some(value) = profile.remove(key) {
            content.entry(key).or_insert(value);
        }
    }
    Ok(())
}

/// Who of this server lets `target` into a restricted room, if that is what the join needs.
///
/// Spec: client-server API, "Restricted rooms": the target is joined to one of the rooms that the
/// join rule names, and a joined local user has the power to invite.
///
/// # Errors
/// `M_FORBIDDEN` when the target meets none of the conditions, `M_UNABLE_TO_AUTHORISE_JOIN` when they may meet
/// one that this server cannot tell, `M_UNABLE_TO_GRANT_JOIN` when nobody here has the power to let them in.
pub fn authoriser(app: &App, turn: &Turn, target: &UserId) -> ApiResult<Option<OwnedUserId>> {
    let Some(rules) = turn.state_event("m.room.join_rules", "")? else {
        return Ok(None);
    };
    let rule: Option<JoinRule> = rules.content_as();
    let (Some(JoinRule::Restricted(restricted) | JoinRule::KnockRestricted(restricted)), true) =
        (rule, turn.rules.authorization.restricted_join_rule)
    else {
        return Ok(None);
    };
    let user = app.store.find_user(target)?;
    let (mut allowed, mut unsure) = (false, false);
    for condition in &restricted.allow {
        let AllowRule::RoomMembership(room) = condition else {
            continue;
        };
        // What this server was in once tells nothing of now.
        match app.store.find_room(&room.room_id)? {
            Some(room) if is_resident_of(app, room)? => {
                let row = user
                    .map(|user| app.store.user_room(user, room))
                    .transpose()?;
                let row = row.flatten();
                allowed |= row.is_some_and(|row| row.membership == Membership::Join);
            }
            _ => unsure = true,
        }
    }
    if !allowed && unsure {
        return Err(ApiError::new(
            http::StatusCode::BAD_REQUEST,
            "M_UNABLE_TO_AUTHORISE_JOIN",
            "this server does not know who is in the rooms whose members may join",
        ));
    }
    if !allowed {
        return Err(ApiError::forbidden(
            "the room lets in members of certain other rooms, and you are in none of them",
        ));
    }
    let powers = turn.powers()?;
    let joined: BTreeSet<UserNum> = turn
        .head
        .members
        .iter()
        .filter_map(|(user, membership)| (*membership == Membership::Join).then_some(*user))
        .collect();
    for user in joined {
        let user_id = app.store.user_id(user)?;
        if app.is_local(&user_id) && powers.can_invite(&user_id) {
            return Ok(Some(user_id));
        }
    }
    Err(ApiError::new(
        http::StatusCode::BAD_REQUEST,
        "M_UNABLE_TO_GRANT_JOIN",
        "nobody of this server has the power to let you in",
    ))
}

fn is_resident_of(app: &App, room: RoomNum) -> ApiResult<bool> {
    let view = app.store.room(room)?;
    let resident = view.map(|view| super::receive::is_resident(app, &view));
    Ok(resident.transpose()?.unwrap_or(false))
}

/// Whether a user is joined to a room that this server is in.
///
/// # Errors
/// When the store cannot be read.
pub fn is_joined(app: &App, user: UserNum, room_id: &RoomId) -> ApiResult<bool> {
    let Some(room) = app.store.find_room(room_id)? else {
        return Ok(false);
    };
    let row = app.store.user_room(user, room)?;
    Ok(row.is_some_and(|row| row.membership == Membership::Join))
}

/// The shape of `m.room.member` that this server reads.
#[derive(Clone, Debug, Deserialize)]
pub struct MemberContent {
    /// The membership.
    pub membership: MembershipState,
    /// The name shown in this room.
    pub displayname: Option<String>,
    /// The avatar shown in this room.
    pub avatar_url: Option<String>,
    /// Whether the invite is to a direct chat.
    pub is_direct: Option<bool>,
    /// Why.
    pub reason: Option<String>,
}

/// Whether two users are both joined to some room.
///
/// # Errors
/// When the store cannot be read.
pub fn share_a_room(app: &App, one: UserNum, other: UserNum) -> ApiResult<bool> {
    for (room, row) in app.store.user_rooms(one)? {
        if row.membership == Membership::Join
            && let Some(view) = app.store.room(room)?
            && view.head.membership(other) == Membership::Join
        {
            return Ok(true);
        }
    }
    Ok(false)
}
