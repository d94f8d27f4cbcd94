//! What is true only for a moment, and kept in memory only: typing.
//!
//! Every change gets a *moment*, a number that only grows, also across restarts: it starts at the
//! clock's milliseconds. Sync tokens carry the last moment that their holder saw.
//! Spec: client-server API, "Typing notifications".

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use store::keys::{RoomNum, UserNum};
use tokio::sync::Notify;

/// Number of a change that is kept in memory only.
pub type Moment = u64;

/// The longest that somebody types without saying so again, in milliseconds.
pub const TYPING_MS_MAX: u64 = 120_000;

/// How many may type in a room at a time; more are not shown.
const TYPISTS_MAX: usize = 100;

/// Counts moments.
#[derive(Debug)]
pub struct Moments {
    last: std::sync::atomic::AtomicU64,
    moved: Notify,
}

impl Moments {
    /// Moments from `now_ms` on.
    pub fn from(now_ms: u64) -> Self {
        Self {
            last: std::sync::atomic::AtomicU64::new(now_ms << 10),
            moved: Notify::new(),
        }
    }

    /// The last moment.
    pub fn last(&self) -> Moment {
        self.last.load(std::sync::atomic::Ordering::Acquire)
    }

    /// A new moment.
    pub fn tick(&self) -> Moment {
        let moment = self.last.fetch_add(1, std::sync::atomic::Ordering::AcqRel) + 1;
        self.moved.notify_waiters();
        moment
    }

    /// Wakes whoever waits on it at each new moment. What changed may not be there yet for one who looks at
    /// once: take the lock of what is looked at, as every reader here does.
    pub fn moved(&self) -> &Notify {
        &self.moved
    }
}

/// Who types where.
#[derive(Debug, Default)]
pub struct Typing {
    rooms: Mutex<BTreeMap<RoomNum, TypingRoom>>,
}

#[derive(Debug, Default)]
struct TypingRoom {
    changed: Moment,
    /// Until when each types, in milliseconds since the epoch.
    until_ms: BTreeMap<UserNum, u64>,
}

impl Typing {
    /// Somebody types in a room for `until_ms`, or, with `None`, stops. Says whether that changed who
    /// types.
    pub fn set(
        &self,
        moments: &Moments,
        room: RoomNum,
        user: UserNum,
        until_ms: Option<u64>,
    ) -> bool {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = rooms.entry(room).or_default();
        let changed = match until_ms {
            Some(until_ms)
                if entry.until_ms.len() < TYPISTS_MAX || entry.until_ms.contains_key(&user) =>
            {
                entry.until_ms.insert(user, until_ms).is_none()
            }
            Some(_) => false,
            None => entry.until_ms.remove(&user).is_some(),
        };
        if changed {
            entry.changed = moments.tick();
        }
        changed
    }

    /// Forgets those who should have stopped by `now_ms`; the rooms where that changed who types.
    pub fn expire(&self, moments: &Moments, now_ms: u64) -> Vec<RoomNum> {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = Vec::new();
        for (room, entry) in rooms.iter_mut() {
            let before = entry.until_ms.len();
            entry.until_ms.retain(|_, until_ms| *until_ms > now_ms);
            if entry.until_ms.len() < before {
                entry.changed = moments.tick();
                changed.push(*room);
            }
        }
        changed
    }

    /// When the next one should stop, in milliseconds since the epoch.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms
            .values()
            .flat_map(|entry| entry.until_ms.values())
            .min()
            .copied()
    }

    /// Who types in a room, if that changed after `since`.
    pub fn changed_since(&self, room: RoomNum, since: Moment) -> Option<Vec<UserNum>> {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = rooms.get(&room).filter(|entry| entry.changed > since)?;
        Some(entry.until_ms.keys().copied().collect())
    }

    /// The rooms where who types changed after `since`.
    pub fn rooms_changed_since(&self, since: Moment) -> Vec<RoomNum> {
        let rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms
            .iter()
            .filter(|(_, entry)| entry.changed > since)
            .map(|(room, _)| *room)
            .collect()
    }
}
