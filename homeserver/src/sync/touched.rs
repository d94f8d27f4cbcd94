//! Where to look: what changed for a user since a point, without looking at all of their rooms.
//!
//! A device that keeps up is answered from the newest entries of the log, which are in memory. One
//! that was away longer than they reach looks everywhere.

use std::collections::BTreeSet;

use ruma::OwnedDeviceId;
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
#[derive(Debug, Default)]
pub struct Touched {
    /// Rooms in which anything happened, whether the user is there or not; `None`: look everywhere.
    pub rooms: Option<BTreeSet<RoomNum>>,
    /// Whether anybody's devices changed; only meaningful with `rooms`.
    pub device_lists: bool,
    /// The user's devices whose key counts changed; only meaningful with `rooms`.
    pub key_counts: BTreeSet<OwnedDeviceId>,
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
        let entries = app.store.log(from, ENTRIES_MAX)?;
        let mut rooms: BTreeSet<RoomNum> = app
            .typing
            .rooms_changed_since(since.moment)
            .into_iter()
            .collect();
        let (mut device_lists, mut key_counts) = (false, BTreeSet::new());
        for (position, entry) in entries {
            if position > until {
                break;
            }
            match entry {
                LogEntry::Event(event) => {
                    rooms.insert(event.room);
                }
                LogEntry::Other(Change::Receipt { room, .. }) => {
                    rooms.insert(room);
                }
                LogEntry::Other(Change::AccountData {
                    user: whose,
                    room: Some(room),
                }) if whose == user => {
                    rooms.insert(room);
                }
                LogEntry::Other(Change::DeviceList { .. }) => device_lists = true,
                LogEntry::Other(Change::KeyCounts {
                    user: whose,
                    device,
                }) if whose == user => {
                    key_counts.insert(device);
                }
                LogEntry::Other(_) => {}
            }
        }
        Ok(Self {
            rooms: Some(rooms),
            device_lists,
            key_counts,
        })
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
            Some(rooms) if rooms.is_empty() && !self.device_lists => Ok(DeviceLists::default()),
            Some(rooms) => {
                let keys = self.device_lists;
                lists::between(app, user, since, until, Some(rooms), keys)
            }
            None => lists::between(app, user, since, until, None, true),
        }
    }
}
