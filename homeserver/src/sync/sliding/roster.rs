//! A user's rooms in memory, with what lists sort and filter by.
//!
//! Read in full once for a connection; afterwards only the rooms in which something happened are
//! read again. Spec: MSC4186, "Lists", "Activity ordering", `SlidingRoomFilter`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use ruma::OwnedRoomId;
use serde::Deserialize;
use store::{
    keys::{Position, RoomNum, UserNum},
    rooms::{Membership, MembershipRow},
};

use super::request::Filters;
use crate::{
    account_data,
    error::ApiResult,
    rooms::read::state_content,
    server::App,
    sync::{Token, touched::Touched},
};

/// A user's rooms.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// Up to where the log is in it; nothing is without.
    upto: Option<Position>,
    entries: BTreeMap<RoomNum, Entry>,
    order: BTreeSet<(Reverse<Position>, RoomNum)>,
    direct: BTreeSet<OwnedRoomId>,
    /// The account data that `direct` was read from.
    direct_json: String,
}

/// A room of a user.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its ID.
    pub(super) room_id: OwnedRoomId,
    /// Whether it is listed to who was never told of it: not when the user left by themselves.
    pub(super) always_listed: bool,
    membership: Membership,
    activity: Position,
    encrypted: bool,
    room_type: Option<String>,
    tags: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Create {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Roster {
    /// Takes in what happened up to a position.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn advance(&mut self, app: &App, user: UserNum, until: Position) -> ApiResult<()> {
        self.read_direct(app, user)?;
        let touched = match self.upto {
            Some(upto) if upto >= until => return Ok(()),
            Some(upto) => {
                let since = Token::new(upto, u64::MAX);
                Touched::between(app, user, since, until)?.rooms
            }
            None => None,
        };
        match touched {
            Some(rooms) => {
                for room in rooms {
                    if let Some(row) = app.store.user_room(user, room)? {
                        self.read_room(app, user, room, &row)?;
                    }
                }
            }
            None => {
                self.entries.clear();
                self.order.clear();
                for (room, row) in app.store.user_rooms(user)? {
                    self.read_room(app, user, room, &row)?;
                }
            }
        }
        self.upto = Some(until);
        Ok(())
    }

    fn read_direct(&mut self, app: &App, user: UserNum) -> ApiResult<()> {
        let json = account_data::get(&app.store, user, None, "m.direct")?;
        let json = json.as_ref().map_or("", |json| json.get());
        if json != self.direct_json {
            let direct: Option<BTreeMap<String, Vec<OwnedRoomId>>> =
                serde_json::from_str(json).ok();
            self.direct = direct
                .into_iter()
                .flatten()
                .flat_map(|(_, rooms)| rooms)
                .collect();
            json.clone_into(&mut self.direct_json);
        }
        Ok(())
    }

    fn read_room(
        &mut self,
        app: &App,
        user: UserNum,
        room: RoomNum,
        row: &MembershipRow,
    ) -> ApiResult<()> {
        if let Some(old) = self.entries.remove(&room) {
            self.order.remove(&(Reverse(old.activity), room));
        }
        let was_there = row.membership == Membership::Join || row.left_at > 0;
        let left = matches!(row.membership, Membership::Leave | Membership::Ban);
        if row.forgotten || (row.membership == Membership::Ban && !was_there) {
            return Ok(());
        }
        let Some(view) = app.store.room(room)? else {
            return Ok(());
        };
        let state = &view.head.state;
        let create: Option<Create> = state_content(&app.store, state, "m.room.create", "")?;
        let tags: Option<Tags> = account_data::get_as(&app.store, user, Some(room), "m.tag")?;
        let activity = match row.membership {
            Membership::Join => view.position,
            _ => row.position,
        };
        let entry = Entry {
            room_id: view.room_id.clone(),
            always_listed: !left || (was_there && !row.by_self),
            membership: row.membership,
            activity,
            encrypted: state.get("m.room.encryption", "").is_some(),
            room_type: create.and_then(|create| create.kind),
            tags: tags
                .map(|tags| tags.tags.into_keys().collect())
                .unwrap_or_default(),
        };
        self.entries.insert(room, entry);
        self.order.insert((Reverse(activity), room));
        Ok(())
    }

    /// The rooms, the one with the latest activity first.
    pub(super) fn by_activity(&self) -> impl Iterator<Item = (RoomNum, &Entry)> {
        self.order
            .iter()
            .filter_map(|(_, room)| Some((*room, self.entries.get(room)?)))
    }

    /// Whether a room is one of the user's.
    pub(super) fn knows(&self, room: RoomNum) -> bool {
        self.entries.contains_key(&room)
    }

    /// Whether a room is a direct chat.
    pub(super) fn is_direct(&self, room_id: &ruma::RoomId) -> bool {
        self.direct.contains(room_id)
    }
}

impl Entry {
    /// Whether the room is in a list with these filters.
    pub(super) fn passes(
        &self,
        filters: &Filters,
        in_spaces: Option<&BTreeSet<OwnedRoomId>>,
        roster: &Roster,
    ) -> bool {
        let is = |wanted: Option<bool>, fact: bool| wanted.is_none_or(|wanted| wanted == fact);
        is(filters.is_dm, roster.is_direct(&self.room_id))
            && is(filters.is_encrypted, self.encrypted)
            && is(filters.is_invited, self.membership == Membership::Invite)
            && in_spaces.is_none_or(|children| children.contains(&self.room_id))
            && filters
                .room_types
                .as_ref()
                .is_none_or(|types| types.contains(&self.room_type))
            && filters
                .not_room_types
                .as_ref()
                .is_none_or(|types| !types.contains(&self.room_type))
            && filters
                .tags
                .as_ref()
                .is_none_or(|tags| tags.iter().any(|tag| self.tags.contains(tag)))
            && filters
                .not_tags
                .as_ref()
                .is_none_or(|tags| !tags.iter().any(|tag| self.tags.contains(tag)))
    }
}
