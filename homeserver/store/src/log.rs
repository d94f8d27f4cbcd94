//! The log: one ordered sequence of everything that changed.
//!
//! Every commit ends here. `/sync`, push, application services and the federation sender are
//! *readers*: each has its own cursor and is told only that the log grew. The newest entries stay in
//! memory, so that a reader that keeps up never touches the disk.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ruma::{OwnedDeviceId, OwnedEventId, OwnedServerName};
use serde::{Deserialize, Serialize};

use crate::{
    keys::{Position, RoomNum, UserNum},
    rooms::TimelineEvent,
};

/// How many of the newest entries stay in memory.
const TAIL_ENTRIES_MAX: usize = 8_192;

/// What one position changed.
#[derive(Clone, Debug)]
pub enum LogEntry {
    /// An event was added to a room's timeline.
    Event(Arc<TimelineEvent>),
    /// Anything else.
    Other(Change),
}

/// What changed, other than a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A user's account data, global or of one room.
    AccountData {
        /// Whose.
        user: UserNum,
        /// Of which room.
        room: Option<RoomNum>,
    },
    /// A receipt in a room.
    Receipt {
        /// Where.
        room: RoomNum,
        /// Whose.
        user: UserNum,
        /// Whether only its user may see it.
        private: bool,
    },
    /// A message waits for a device.
    ToDevice {
        /// For whom.
        user: UserNum,
        /// For which device.
        device: OwnedDeviceId,
    },
    /// A user's devices or their keys changed: everyone who shares a room learns of it.
    DeviceList {
        /// Whose.
        user: UserNum,
    },
    /// The number of one-time keys of a device, or the use of its fallback key, changed.
    KeyCounts {
        /// Whose.
        user: UserNum,
        /// Of which device.
        device: OwnedDeviceId,
    },
    /// What a user wants of a thread.
    ThreadSubscription {
        /// Whose.
        user: UserNum,
    },
    /// What a user is to a room changed that this server is not in: invited, or no longer.
    Outside {
        /// Who.
        user: UserNum,
        /// Which room.
        room: RoomNum,
    },
    /// A user forgot a room.
    Forgot {
        /// Who.
        user: UserNum,
    },
    /// A user's profile changed, beyond what their membership events say.
    Profile {
        /// Whose.
        user: UserNum,
    },
    /// Something that is not an event waits for another server.
    ToServer {
        /// For which.
        server: OwnedServerName,
    },
    /// Events are missing in a room's timeline right before the event of the next entry.
    Gap {
        /// Which room's.
        room: RoomNum,
    },
    /// An event of another server's user that this server passes on to the others in the room, as it was the
    /// one that was asked.
    Relay {
        /// Which.
        event_id: OwnedEventId,
    },
}

/// The newest entries, and how far the log is published.
#[derive(Debug)]
pub(crate) struct Tail {
    /// The last position that survives a crash and that readers may see.
    published: AtomicU64,
    entries: Mutex<VecDeque<(Position, LogEntry)>>,
}

impl Tail {
    pub(crate) fn new(published: Position) -> Self {
        Self {
            published: AtomicU64::new(published),
            entries: Mutex::default(),
        }
    }

    pub(crate) fn published(&self) -> Position {
        self.published.load(Ordering::Acquire)
    }

    /// Adds entries that are flushed, and lets readers see them.
    pub(crate) fn publish(&self, entries: impl IntoIterator<Item = (Position, LogEntry)>) {
        let mut tail = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut published = self.published();
        for (position, entry) in entries {
            assert_eq!(
                position,
                published + 1,
                "the log has no gaps: readers advance by one"
            );
            published = position;
            tail.push_back((position, entry));
        }
        while tail.len() > TAIL_ENTRIES_MAX {
            tail.pop_front();
        }
        self.published.store(published, Ordering::Release);
    }

    /// The entries behind `since`, at most `limit`, or `None` when some are only on disk.
    pub(crate) fn read(&self, since: Position, limit: usize) -> Option<Vec<(Position, LogEntry)>> {
        let published = self.published();
        if since >= published {
            return Some(Vec::new());
        }
        let tail = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let &(first, _) = tail.front()?;
        if since + 1 < first {
            return None;
        }
        let skip = usize::try_from(since + 1 - first).ok()?;
        Some(
            tail.iter()
                .skip(skip)
                .take_while(|(position, _)| *position <= published)
                .take(limit)
                .cloned()
                .collect(),
        )
    }
}
