//! What concerns an application service: the rooms that its users are in, and those that it names.
//!
//! Whether an event concerns a service is decided by the room as it was at the event, however late the
//! event is sent: a user who has left since does not hide what was said before. A room's state is looked
//! through once; from then on the member events that pass by are enough.
//! Spec: application service API, "Registration", `namespaces` and `sender_localpart`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use federation::room::StateMap;
use ruma::{OwnedUserId, UserId, events::TimelineEventType};
use store::{
    keys::{Position, RoomNum, UserNum},
    rooms::{Membership, TimelineEvent},
};

use super::Registration;
use crate::{
    error::ApiResult,
    rooms::{aliases, members::MemberContent},
    server::App,
};

/// For how many rooms it is remembered who of the service is in them. Beyond that all are looked at anew.
const ROOMS_MAX: usize = 20_000;

/// What concerns one service, as far as the log has been read.
#[derive(Debug)]
pub struct Interest {
    service: Arc<Registration>,
    /// The joined users of the service, for rooms that were looked at.
    joined: BTreeMap<RoomNum, BTreeSet<UserNum>>,
}

/// A change of somebody's membership.
#[derive(Debug)]
pub struct MemberChange {
    /// Whose.
    pub user: UserNum,
    /// In full.
    pub user_id: OwnedUserId,
    /// Whether the service acts as them.
    pub own: bool,
    /// What it is now.
    pub membership: Membership,
}

/// An event, as a service sees it.
#[derive(Debug)]
pub struct Concern {
    /// Whether the service is told of it.
    pub told: bool,
    /// Whether users of the service are in the room afterwards.
    pub present: bool,
    /// What it says of a member, if it is about one.
    pub member: Option<MemberChange>,
}

impl Interest {
    /// Nothing read yet.
    pub fn new(service: Arc<Registration>) -> Self {
        Self {
            service,
            joined: BTreeMap::new(),
        }
    }

    /// Begins anew, when the log will be read from an earlier point.
    pub fn forget(&mut self) {
        self.joined.clear();
    }

    /// Whether the service acts as a user.
    pub fn is_own(&self, app: &App, user_id: &UserId) -> bool {
        app.is_local(user_id) && self.service.acts_as(user_id)
    }

    /// Takes note of an event, the next one of its room, and says whether it concerns the service.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn event(&mut self, app: &App, event: &TimelineEvent) -> ApiResult<Concern> {
        let (room, pdu) = (event.room, &event.pdu);
        if !self.joined.contains_key(&room) {
            let state = app.store.state(room, event.state_before)?;
            let joined = self.joined_in(app, &state)?;
            self.remember(room, joined);
        }
        let member = self.member_change(app, event)?;
        let joined = self.joined.entry(room).or_default();
        let mut told = !joined.is_empty();
        if let Some(member) = member.as_ref().filter(|member| member.own) {
            told = true;
            if member.membership == Membership::Join {
                joined.insert(member.user);
            } else {
                joined.remove(&member.user);
            }
        }
        let present = !joined.is_empty();
        let told =
            told || self.is_own(app, pdu.sender()) || self.names(app, room, pdu.room_id())?;
        Ok(Concern {
            told,
            present,
            member,
        })
    }

    fn member_change(&self, app: &App, event: &TimelineEvent) -> ApiResult<Option<MemberChange>> {
        let pdu = &event.pdu;
        if *pdu.kind() != TimelineEventType::RoomMember {
            return Ok(None);
        }
        let user_id = pdu.state_key().and_then(|key| UserId::parse(key).ok());
        let content: Option<MemberContent> = pdu.content_as();
        let (Some(user_id), Some(content)) = (user_id, content) else {
            return Ok(None);
        };
        Ok(app.store.find_user(&user_id)?.map(|user| MemberChange {
            user,
            own: self.is_own(app, &user_id),
            user_id,
            membership: Membership::of(&content.membership),
        }))
    }

    /// Whether the service names a room, by its ID or by one of its aliases.
    fn names(&self, app: &App, room: RoomNum, room_id: &ruma::RoomId) -> ApiResult<bool> {
        if self.service.is_interested_in_room(room_id.as_str()) {
            return Ok(true);
        }
        if self.service.namespaces.aliases.is_empty() {
            return Ok(false);
        }
        let aliases = aliases::of_room(&app.store, room)?;
        Ok(aliases
            .iter()
            .any(|alias| self.service.is_interested_in_alias(alias.as_str())))
    }

    /// Whether what happens in a room now concerns the service, when the log was read up to `read`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn room(&mut self, app: &App, room: RoomNum, read: Position) -> ApiResult<bool> {
        if self.is_present(app, room, read)? {
            return Ok(true);
        }
        match app.store.room_id(room)? {
            Some(room_id) => self.names(app, room, &room_id),
            None => Ok(false),
        }
    }

    /// Whether users of the service are in a room now, when the log was read up to `read`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_present(&mut self, app: &App, room: RoomNum, read: Position) -> ApiResult<bool> {
        if let Some(joined) = self.joined.get(&room) {
            return Ok(!joined.is_empty());
        }
        let Some(view) = app.store.room(room)? else {
            return Ok(false);
        };
        let joined = self.joined_in(app, &view.head.state)?;
        let present = !joined.is_empty();
        if view.position <= read {
            self.remember(room, joined);
        }
        Ok(present)
    }

    /// Whether a user is in a room with users of the service.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn meets(&mut self, app: &App, user: UserNum, read: Position) -> ApiResult<bool> {
        for (room, row) in app.store.user_rooms(user)? {
            if row.membership == Membership::Join && self.is_present(app, room, read)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The users of the service who are joined in a state.
    fn joined_in(&self, app: &App, state: &StateMap) -> ApiResult<BTreeSet<UserNum>> {
        let mut joined = BTreeSet::new();
        for (key, event_id) in state.of_kind("m.room.member") {
            let Ok(user_id) = UserId::parse(key) else {
                continue;
            };
            if !self.is_own(app, &user_id) {
                continue;
            }
            let event = app.store.state_event(event_id)?;
            let content: Option<MemberContent> = event.and_then(|event| event.pdu.content_as());
            let is_joined = content
                .is_some_and(|content| Membership::of(&content.membership) == Membership::Join);
            joined.extend(app.store.find_user(&user_id)?.filter(|_| is_joined));
        }
        Ok(joined)
    }

    fn remember(&mut self, room: RoomNum, joined: BTreeSet<UserNum>) {
        if self.joined.len() >= ROOMS_MAX {
            self.joined.clear();
        }
        self.joined.insert(room, joined);
    }
}
