//! Which servers are in a room, as of where the reader is in the log.
//!
//! The members of a room are walked once, when it is met first, and each later change is applied: an event
//! costs the servers it goes to, not the members of its room. What is remembered is bounded by
//! [`MEMBERS_MAX`]; the room that was not used for the longest time is forgotten first.

use std::collections::{BTreeMap, BTreeSet};

use federation::room::StateMap;
use ruma::{EventId, OwnedServerName, UserId, events::room::member::MembershipState};
use store::{
    keys::{Position, RoomNum, UserNum},
    rooms::{Membership, TimelineEvent},
};

use crate::{error::ApiResult, rooms::members::MemberContent, server::App};

/// How many members of all remembered rooms together are remembered; about 100 bytes each.
const MEMBERS_MAX: usize = 200_000;

/// How many rooms are remembered, also empty ones.
const ROOMS_MAX: usize = 20_000;

/// The joined members of a room, by server.
pub(super) type ByServer = BTreeMap<OwnedServerName, BTreeSet<UserNum>>;

/// Who came and who went by one event.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Local users who joined.
    pub(super) joined: Vec<UserNum>,
    /// Other servers whose first user joined.
    pub(super) arrived: Vec<OwnedServerName>,
    /// Users of other servers who are not joined any more, or are, but with nobody of this one.
    pub(super) left: Vec<UserNum>,
}

#[derive(Debug)]
struct Room {
    members: ByServer,
    count: usize,
    used: u64,
}

/// The rooms that are remembered.
#[derive(Debug, Default)]
pub(super) struct Servers {
    rooms: BTreeMap<RoomNum, Room>,
    by_use: BTreeMap<u64, RoomNum>,
    members: usize,
    uses: u64,
}

impl Servers {
    /// The joined members of a room, by server, where the log was read up to `position`.
    pub(super) fn at(
        &mut self,
        app: &App,
        room: RoomNum,
        position: Position,
    ) -> ApiResult<&ByServer> {
        self.uses += 1;
        let uses = self.uses;
        if let Some(known) = self.rooms.get_mut(&room) {
            self.by_use.remove(&known.used);
            known.used = uses;
        } else {
            let members = load(app, room, position)?;
            let count = members.values().map(BTreeSet::len).sum();
            self.members += count;
            let used = uses;
            self.rooms.insert(
                room,
                Room {
                    members,
                    count,
                    used,
                },
            );
        }
        self.by_use.insert(uses, room);
        self.forget_some(room);
        Ok(&self.rooms.entry(room).or_insert_with(Room::empty).members)
    }

    /// Takes note of an event, the next one of its room, and says who came and went by it.
    pub(super) fn apply(&mut self, app: &App, event: &TimelineEvent) -> ApiResult<Moved> {
        let mut moved = Moved::default();
        let position = event.position();
        let before = position.saturating_sub(1);
        // Where only this server is, there are no forks, by whose end an event changes what it does not name.
        if !event.changes_state() && self.is_own(app, event.room, before)? {
            return Ok(moved);
        }
        let changes = app.store.state_changes(event.room, before, position)?;
        let changes = changes.into_iter().flat_map(|(_, changes)| changes);
        let members: Vec<_> = changes
            .filter(|change| &*change.kind == "m.room.member")
            .collect();
        if members.is_empty() {
            return Ok(moved);
        }
        self.at(app, event.room, before)?;
        for change in members {
            let Ok(user_id) = UserId::parse(&*change.state_key) else {
                continue;
            };
            let Some(user) = app.store.find_user(&user_id)? else {
                continue;
            };
            let joined = is_join(app, event.room, user, change.event_id.as_deref())?;
            self.set(app, event.room, user, &user_id, joined, &mut moved);
        }
        Ok(moved)
    }

    /// Whether users of this server only are in a room, where the log was read up to `position`.
    fn is_own(&mut self, app: &App, room: RoomNum, position: Position) -> ApiResult<bool> {
        let members = self.at(app, room, position)?;
        Ok(members.keys().all(|name| name == app.server_name()))
    }

    fn set(
        &mut self,
        app: &App,
        room: RoomNum,
        user: UserNum,
        user_id: &UserId,
        joined: bool,
        moved: &mut Moved,
    ) {
        let Some(known) = self.rooms.get_mut(&room) else {
            return;
        };
        let name = user_id.server_name();
        if joined {
            let first = !known.members.contains_key(name);
            let of_server = known.members.entry(name.to_owned()).or_default();
            if !of_server.insert(user) {
                return;
            }
            known.count += 1;
            self.members += 1;
            if app.is_local(user_id) {
                moved.joined.push(user);
            } else if first {
                moved.arrived.push(name.to_owned());
            }
        } else if let Some(of_server) = known.members.get_mut(name)
            && of_server.remove(&user)
        {
            let last = of_server.is_empty();
            if last {
                known.members.remove(name);
            }
            known.count -= 1;
            self.members -= 1;
            if !app.is_local(user_id) {
                moved.left.push(user);
            } else if last {
                moved.left.extend(known.members.values().flatten());
            }
        }
    }

    /// Forgets what was not used for the longest time, but not `kept`, until the rest is within its bounds.
    fn forget_some(&mut self, kept: RoomNum) {
        while self.members > MEMBERS_MAX || self.rooms.len() > ROOMS_MAX {
            let Some((_, room)) = self.by_use.pop_first() else {
                return;
            };
            if room == kept {
                let used = self.rooms.get(&room).map_or(0, |room| room.used);
                self.by_use.insert(used, room);
                return;
            }
            if let Some(forgotten) = self.rooms.remove(&room) {
                self.members -= forgotten.count;
            }
        }
    }
}

impl Room {
    fn empty() -> Self {
        Self {
            members: ByServer::new(),
            count: 0,
            used: 0,
        }
    }
}

/// The joined members of a room after `position`: those of now, without what happened since.
fn load(app: &App, room: RoomNum, position: Position) -> ApiResult<ByServer> {
    let Some(view) = app.store.room(room)? else {
        return Ok(ByServer::new());
    };
    let mut since = BTreeSet::new();
    let mut state = None;
    for (at, changes) in app.store.state_changes(room, position, view.position)? {
        for change in changes {
            if &*change.kind != "m.room.member" {
                continue;
            }
            if state.is_none() {
                state = Some(state_before(app, room, at)?);
            }
            if let Ok(user_id) = UserId::parse(&*change.state_key) {
                since.insert(user_id);
            }
        }
    }
    let mut members = ByServer::new();
    for (user, membership) in &view.head.members {
        if *membership != Membership::Join {
            continue;
        }
        let user_id = app.store.user_id(*user)?;
        if !since.contains(&user_id) {
            let of_server = members.entry(user_id.server_name().to_owned());
            of_server.or_default().insert(*user);
        }
    }
    for user_id in since {
        let event_id = state
            .as_ref()
            .and_then(|state| state.get("m.room.member", user_id.as_str()));
        let Some(user) = app.store.find_user(&user_id)? else {
            continue;
        };
        if is_join(app, room, user, event_id.map(|id| &**id))? {
            let of_server = members.entry(user_id.server_name().to_owned());
            of_server.or_default().insert(user);
        }
    }
    Ok(members)
}

fn state_before(app: &App, room: RoomNum, position: Position) -> ApiResult<StateMap> {
    let order = i64::try_from(position).unwrap_or(i64::MAX);
    match app.store.event_at(room, order)? {
        Some(event) => Ok(app.store.state(room, event.state_before)?),
        None => Ok(StateMap::new()),
    }
}

/// Whether a user is joined by this event. Without the event, the user is not; one that is not at hand says what
/// is true now.
fn is_join(app: &App, room: RoomNum, user: UserNum, event_id: Option<&EventId>) -> ApiResult<bool> {
    let Some(event_id) = event_id else {
        return Ok(false);
    };
    let Some(event) = app.store.state_event(event_id)? else {
        let view = app.store.room(room)?;
        return Ok(view.is_some_and(|view| view.head.membership(user) == Membership::Join));
    };
    let content: Option<MemberContent> = event.pdu.content_as();
    Ok(content.is_some_and(|content| content.membership == MembershipState::Join))
}
