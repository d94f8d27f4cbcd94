//! What another server may see of a room here: whether it may look into it at all, and each event as it is or
//! as a redaction would leave it.
//!
//! A server may see what any of its users may see. Spec: server-server API, "Backfilling and retrieving missing
//! events"; client-server API, "Room history visibility".

use std::{collections::BTreeMap, sync::Arc};

use federation::{
    event::Pdu,
    room::{
        StateMap,
        visibility::{Viewpoint, look},
    },
};
use ruma::{
    EventId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};
use store::{
    keys::StateId,
    rooms::{Membership, OUTSIDE, RoomHead, RoomView, Standing, TimelineEvent},
};

use super::{acl, read};
use crate::{
    error::{ApiError, ApiResult},
    server::App,
};

/// How many servers are named as residents of a room.
const SERVERS_TOLD_MAX: usize = 200;

/// A server that looks at a room.
#[derive(Debug)]
pub struct Asker {
    /// The room.
    pub view: Arc<RoomView>,
    server: OwnedServerName,
    joined: bool,
    /// What was read of the states at the events that were looked at.
    states: BTreeMap<StateId, At>,
}

/// What a state says about one server.
#[derive(Clone, Debug)]
struct At {
    visibility: HistoryVisibility,
    /// The server's users; empty where it does not matter who they are.
    users: BTreeMap<OwnedUserId, MembershipState>,
}

impl Asker {
    /// A server that may look into a room: one of its users is joined, or anybody may.
    ///
    /// # Errors
    /// `M_FORBIDDEN`, with the same words for a room that is not known, and for one that the server may not look
    /// into, be it by the room's server ACL.
    pub fn of(app: &App, room_id: &RoomId, server: &ServerName) -> ApiResult<Self> {
        let room = app.store.find_room(room_id)?.ok_or_else(unknown_room)?;
        let view = app.store.room(room)?.ok_or_else(unknown_room)?;
        let joined = is_joined(app, &view.head, server)?;
        let readable = || -> ApiResult<bool> {
            let visibility = read::history_visibility(app, &view.head.state)?;
            Ok(visibility == HistoryVisibility::WorldReadable)
        };
        if !(joined || readable()?) || !acl::allows(app, room, server)? {
            return Err(unknown_room());
        }
        Ok(Self {
            view,
            server: server.to_owned(),
            joined,
            states: BTreeMap::new(),
        })
    }

    /// That one of the server's users is joined.
    ///
    /// # Errors
    /// `M_FORBIDDEN`, with the words for a room that is not known.
    pub fn must_be_joined(&self) -> ApiResult<()> {
        if self.joined {
            return Ok(());
        }
        Err(unknown_room())
    }

    /// An event of the room that has its place there: of the timeline, or soft-failed, which others may be built upon.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn event(&self, app: &App, event_id: &EventId) -> ApiResult<Option<Arc<TimelineEvent>>> {
        let event = find(app, event_id)?;
        Ok(event
            .filter(|(event, place)| *place && event.room == self.view.room)
            .map(|(event, _)| event))
    }

    /// The event as the server gets it: whole, or what a redaction would leave of it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn served(&mut self, app: &App, event: &TimelineEvent) -> ApiResult<Arc<Pdu>> {
        if self.may_see(app, event)? {
            return Ok(event.pdu.clone());
        }
        let redacted = event.pdu.redacted(self.view.rules);
        redacted
            .map(Arc::new)
            .map_err(|error| ApiError::internal(&error))
    }

    /// Whether the server may see the whole event.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn may_see(&mut self, app: &App, event: &TimelineEvent) -> ApiResult<bool> {
        let sender = event.pdu.sender();
        if sender.server_name() != self.server && read::is_erased(app, sender)? {
            return Ok(false);
        }
        let before = self.at(app, event.state_before)?;
        let after = self.at(app, event.state_after)?;
        let view = |at: &At, user_id: Option<&UserId>, joined_later: bool| Viewpoint {
            at_event: at.visibility.clone(),
            membership_at_event: user_id
                .and_then(|user_id| at.users.get(user_id).cloned())
                .unwrap_or(MembershipState::Leave),
            joined_later,
        };
        // Stands for somebody who is in neither state, and may have come later.
        let nobody = UserId::parse(format!("@_:{}", self.server)).ok();
        if let Some(nobody) = &nobody {
            let (before, after) = (
                view(&before, None, self.joined),
                view(&after, None, self.joined),
            );
            if look((), &event.pdu, nobody, &before, &after).is_some() {
                return Ok(true);
            }
        }
        for user_id in before.users.keys().chain(after.users.keys()) {
            let joined_later = self.joined_after(app, user_id, event)?;
            let (before, after) = (
                view(&before, Some(user_id), joined_later),
                view(&after, Some(user_id), joined_later),
            );
            if look((), &event.pdu, user_id, &before, &after).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a user is joined, or was after the event.
    fn joined_after(&self, app: &App, user_id: &UserId, event: &TimelineEvent) -> ApiResult<bool> {
        let Some(user) = app.store.find_user(user_id)? else {
            return Ok(false);
        };
        let row = app.store.user_room(user, self.view.room)?;
        Ok(
            row.is_some_and(|row| {
                row.membership == Membership::Join || row.left_at > event.place()
            }),
        )
    }

    fn at(&mut self, app: &App, id: StateId) -> ApiResult<At> {
        if let Some(at) = self.states.get(&id) {
            return Ok(at.clone());
        }
        let state = if id == self.view.head.state_id {
            self.view.head.state.clone()
        } else {
            app.store.state(self.view.room, id)?
        };
        let visibility = read::history_visibility(app, &state)?;
        let open = match visibility {
            HistoryVisibility::WorldReadable => true,
            HistoryVisibility::Shared => self.joined,
            _ => false,
        };
        let mut users = BTreeMap::new();
        if !open {
            for user_id in users_of(&state, &self.server) {
                let membership = read::membership_in(app, &state, &user_id)?;
                users.insert(user_id, membership);
            }
        }
        let at = At { visibility, users };
        self.states.insert(id, at.clone());
        Ok(at)
    }
}

/// An event of any room, and whether the states around it are known: not those of an outlier or of a rejected event,
/// which is then taken as if everybody in the room may see it.
///
/// # Errors
/// When the store cannot be read.
pub fn find(app: &App, event_id: &EventId) -> ApiResult<Option<(Arc<TimelineEvent>, bool)>> {
    if let Some(event) = app.store.event(event_id)? {
        return Ok(Some((event, true)));
    }
    let Some(aside) = app.store.aside(event_id)? else {
        return Ok(None);
    };
    let states = aside.state_before.zip(aside.state_after);
    let states = states.filter(|_| aside.standing == Standing::SoftFailed);
    let (state_before, state_after) = states.unwrap_or((StateId(0), StateId(0)));
    let event = Arc::new(TimelineEvent {
        room: aside.room,
        order: OUTSIDE,
        pdu: aside.pdu.clone(),
        state_before,
        state_after,
        replaces: None,
        redacted_by: None,
        txn: None,
    });
    Ok(Some((event, states.is_some())))
}

/// What a server is told of a room that is not known, or that it may not know of.
pub fn unknown_room() -> ApiError {
    ApiError::forbidden("your server is not in this room, or it does not exist")
}

/// The users of a server that have a member event in a state.
pub fn users_of<'a>(
    state: &'a StateMap,
    server: &'a ServerName,
) -> impl Iterator<Item = OwnedUserId> + 'a {
    let members = state.of_kind("m.room.member");
    members.filter_map(move |(key, _)| {
        let (_, of) = key.split_once(':')?;
        (of == server.as_str())
            .then(|| UserId::parse(key).ok())
            .flatten()
    })
}

/// Whether a user of a server has one of some memberships in a room now.
///
/// # Errors
/// When the store cannot be read.
pub fn has_member(
    app: &App,
    head: &RoomHead,
    server: &ServerName,
    memberships: &[Membership],
) -> ApiResult<bool> {
    for user_id in users_of(&head.state, server) {
        let Some(user) = app.store.find_user(&user_id)? else {
            continue;
        };
        let present = head.members.get(&user);
        if present.is_some_and(|present| memberships.contains(present)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a user of a server is joined to a room now.
///
/// # Errors
/// When the store cannot be read.
pub fn is_joined(app: &App, head: &RoomHead, server: &ServerName) -> ApiResult<bool> {
    has_member(app, head, server, &[Membership::Join])
}

/// The servers of those who are joined to a room: this one first if it is among them, then those with most
/// users, at most [`SERVERS_TOLD_MAX`].
///
/// # Errors
/// When the store cannot be read.
pub fn residents(app: &App, view: &RoomView) -> ApiResult<Vec<OwnedServerName>> {
    let mut counts: BTreeMap<OwnedServerName, u64> = BTreeMap::new();
    for (user, membership) in &view.head.members {
        if *membership == Membership::Join {
            let user_id = app.store.user_id(*user)?;
            *counts.entry(user_id.server_name().to_owned()).or_default() += 1;
        }
    }
    let mut servers: Vec<(OwnedServerName, u64)> = counts.into_iter().collect();
    servers.sort_by_key(|(server, count)| {
        (
            server != app.server_name(),
            std::cmp::Reverse(*count),
            server.clone(),
        )
    });
    let servers = servers.into_iter().map(|(server, _)| server);
    Ok(servers.take(SERVERS_TOLD_MAX).collect())
}
