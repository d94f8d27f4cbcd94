//! Where to look: what changed for a user since a point, without looking at all of their rooms.
//!
//! A device that keeps up is answered from the newest entries of the log, which are in memory. One
//! that was away longer than they reach looks everywhere.

use std::collections::BTreeSet;

use ruma::{OwnedDeviceId, events::TimelineEventType};
use store::{
    keys::{Position, RoomNum, UserNum},
    log::{Change, LogEntry},
};

use super::Token;
use crate::{
    error::ApiResult,
    keys::lists::{self, DeviceLists},
    server::App,
};

/// How many entries are read to find out; beyond that it is cheaper to look everywhere.
const ENTRIES_MAX: usize = 4_096;

/// What may have changed for a user.
///
/// What is false here is not looked up in the store: a look that finds nothing reads the log alone.
#[derive(Debug, Default)]
pub struct Touched {
    /// Rooms in which anything happened, whether the user is there or not; `None`: look everywhere.
    pub rooms: Option<BTreeSet<RoomNum>>,
    /// The user's devices whose key counts changed; only meaningful with `rooms`, as all below.
    pub key_counts: BTreeSet<OwnedDeviceId>,
    /// Rooms in which anybody's membership changed.
    members: BTreeSet<RoomNum>,
    /// Rooms in which anybody read on.
    receipts: BTreeSet<RoomNum>,
    /// Whether anybody's devices changed.
    device_lists: bool,
    /// Whether the user's account data changed, that of rooms included.
    account_data: bool,
    /// Whether a message to a device of the user's came.
    to_device: bool,
}

impl Touched {
    /// What may have changed between `since` and `until`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn between(app: &App, user: UserNum, since: Token, until: Position) -> ApiResult<Self> {
        let from = since.position();
        if until.saturating_sub(from) > ENTRIES_MAX as u64 {
            return Ok(Self::default());
        }
        let mut touched = Self::default();
        let mut rooms = app.typing.rooms_changed_since(since.moment);
        for (position, entry) in app.store.log(from, ENTRIES_MAX)? {
            if position > until {
                break;
            }
            rooms.extend(touched.take(user, entry));
        }
        touched.rooms = Some(rooms.into_iter().collect());
        Ok(touched)
    }

    /// Notes an entry; the room it touches.
    fn take(&mut self, user: UserNum, entry: LogEntry) -> Option<RoomNum> {
        match entry {
            LogEntry::Event(event) => {
                if *event.pdu.kind() == TimelineEventType::RoomMember {
                    self.members.insert(event.room);
                }
                return Some(event.room);
            }
            LogEntry::Other(Change::Receipt { room, .. }) => {
                self.receipts.insert(room);
                return Some(room);
            }
            LogEntry::Other(Change::Outside { user: whose, room }) if whose == user => {
                return Some(room);
            }
            LogEntry::Other(Change::AccountData { user: whose, room }) if whose == user => {
                self.account_data = true;
                return room;
            }
            LogEntry::Other(Change::ToDevice { user: whose, .. }) if whose == user => {
                self.to_device = true;
            }
            LogEntry::Other(Change::KeyCounts {
                user: whose,
                device,
            }) if whose == user => {
                self.key_counts.insert(device);
            }
            LogEntry::Other(Change::DeviceList { .. }) => self.device_lists = true,
            LogEntry::Other(_) => {}
        }
        None
    }

    /// Whether the user's account data may have changed.
    pub fn account_data(&self) -> bool {
        self.rooms.is_none() || self.account_data
    }

    /// Whether a message to a device of the user's may have come.
    pub fn to_device(&self) -> bool {
        self.rooms.is_none() || self.to_device
    }

    /// Whether anybody may have read on in a room.
    pub fn receipts(&self, room: RoomNum) -> bool {
        self.rooms.is_none() || self.receipts.contains(&room)
    }

    /// Whose devices a user has to look up again, as far as can have changed where this says.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn device_lists(
        &self,
        app: &App,
        user: UserNum,
        since: Position,
        until: Position,
    ) -> ApiResult<DeviceLists> {
        match &self.rooms {
            Some(_) if self.members.is_empty() && !self.device_lists => Ok(DeviceLists::default()),
            Some(_) => {
                let (rooms, keys) = (Some(&self.members), self.device_lists);
                lists::between(app, user, since, until, rooms, keys)
            }
            None => lists::between(app, user, since, until, None, true),
        }
    }
}
