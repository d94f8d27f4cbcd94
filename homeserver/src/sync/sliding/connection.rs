//! Connections: what each sync loop of a device has been told. In memory only, and bounded.
//!
//! What a client has been told is data that does not change: a request with a `pos` starts from the
//! state that `pos` names, and its answer names a new one. The state before is kept until the client
//! shows that it got the answer, so a repeated request is answered as well as the first.
//! Spec: MSC4186, "Connections".

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use imbl::{OrdMap, OrdSet};
use store::keys::{Position, RoomNum, UserNum};

use super::{
    request::Rules,
    roster::Roster,
    rules::{Combined, Configs},
};
use crate::sync::Token;

/// How many connections a user has at most; the one unused for longest gives way.
const CONNECTIONS_USER_MAX: usize = 20;

/// How many connections there are at most on this server.
const CONNECTIONS_MAX: usize = 20_000;

/// How long a connection may be idle, in milliseconds.
const IDLE_MS_MAX: u64 = 6 * 60 * 60 * 1_000;

/// Whose connection, of which device, by which name.
pub(super) type Key = (UserNum, String, String);

/// Every connection.
#[derive(Debug, Default)]
pub struct Connections {
    all: Mutex<BTreeMap<Key, Slot>>,
}

#[derive(Debug)]
struct Slot {
    connection: Arc<Mutex<Connection>>,
    used_ms: u64,
}

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// What the client is known to have been told.
    base: Option<(String, Arc<Told>)>,
    /// What it was told last, if it got it.
    next: Option<(String, Arc<Told>)>,
    /// Counts requests: an earlier one that is still waiting must not answer any more.
    turn: u64,
    /// The user's rooms.
    pub(super) roster: Roster,
}

/// What a client has been told on a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Up to where; nowhere on a new connection.
    pub(super) upto: Option<Token>,
    /// Of rooms.
    pub(super) rooms: Heard<ToldRoom>,
    /// Of the account data of rooms.
    pub(super) account_data: Heard<()>,
    /// Of receipts.
    pub(super) receipts: Heard<()>,
    /// Of typing.
    pub(super) typing: Heard<()>,
    /// Of global account data, up to where.
    pub(super) global: Option<Position>,
    /// Of thread subscriptions, up to where.
    pub(super) threads: Option<Position>,
    /// Of changed devices, up to where.
    pub(super) devices: Option<Position>,
    /// How many keys the device has left.
    pub(super) keys: Option<Arc<serde_json::Value>>,
    /// What was asked for last, and the configurations made from it.
    pub(super) rules: Arc<Rules>,
    /// Those configurations, by the names of the rules that match.
    pub(super) combined: Configs,
}

/// Of which rooms something was told, and of which of them there is more since.
#[derive(Clone, Debug)]
pub(super) struct Heard<T> {
    rooms: OrdMap<RoomNum, (Token, T)>,
    /// Rooms where something happened while they were not wanted.
    missed: OrdSet<RoomNum>,
}

impl<T> Default for Heard<T> {
    fn default() -> Self {
        Self {
            rooms: OrdMap::new(),
            missed: OrdSet::new(),
        }
    }
}

/// What a client has been told of a room.
#[derive(Clone, Debug)]
pub(super) struct ToldRoom {
    /// What it wanted.
    pub(super) config: Arc<Combined>,
    /// How many of the newest events it has, at least.
    pub(super) limit: usize,
    /// Whether it has all of the timeline.
    pub(super) whole: bool,
    /// Whether it was told that the room is a direct chat.
    pub(super) is_dm: bool,
    /// How many unread events it was told of, and how many of them stand out.
    pub(super) unread: (u64, u64),
    /// Members whose present state event it has.
    pub(super) members: OrdSet<String>,
}

impl<T: Clone> Heard<T> {
    /// What was told of a room, and up to where.
    pub(super) fn of(&self, room: RoomNum) -> Option<&(Token, T)> {
        self.rooms.get(&room)
    }

    /// Whether something may have happened in a room since it was told of.
    pub(super) fn is_due(&self, room: RoomNum, touched: bool) -> bool {
        touched || self.missed.contains(&room) || !self.rooms.contains_key(&room)
    }

    /// Notes that a room was told of.
    pub(super) fn tell(&mut self, room: RoomNum, upto: Token, what: T) {
        self.rooms.insert(room, (upto, what));
        self.missed.remove(&room);
    }

    /// Notes that something happened in rooms that are not wanted now; `None`: perhaps in all.
    pub(super) fn miss(
        &mut self,
        touched: Option<&std::collections::BTreeSet<RoomNum>>,
        wanted: impl Fn(RoomNum) -> bool,
    ) {
        let missed: Vec<RoomNum> = match touched {
            Some(touched) => touched
                .iter()
                .copied()
                .filter(|room| self.rooms.contains_key(room) && !wanted(*room))
                .collect(),
            None => self
                .rooms
                .keys()
                .copied()
                .filter(|room| !wanted(*room))
                .collect(),
        };
        self.missed.extend(missed);
    }
}

impl Connection {
    /// Begins a request: what the client has been told, and the number of the request.
    pub(super) fn begin(&mut self, pos: Option<&str>) -> Option<(Arc<Told>, u64)> {
        self.turn += 1;
        let Some(pos) = pos else {
            return Some((Arc::default(), self.turn));
        };
        if self.next.as_ref().is_some_and(|(next, _)| next == pos) {
            self.base = self.next.take();
        }
        let (base, told) = self.base.as_ref()?;
        (base == pos).then(|| (told.clone(), self.turn))
    }

    /// Whether a request is still the connection's newest.
    pub(super) fn is_current(&self, turn: u64) -> bool {
        self.turn == turn
    }

    /// Ends a request with what it told.
    pub(super) fn end(&mut self, pos: String, told: Arc<Told>) {
        self.next = Some((pos, told));
    }
}

impl Connections {
    /// The connection of a request: a new one without `pos`, else the one that there is.
    pub(super) fn open(
        &self,
        key: &Key,
        is_new: bool,
        now_ms: u64,
    ) -> Option<Arc<Mutex<Connection>>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_new {
            let slot = all.get_mut(key)?;
            slot.used_ms = now_ms;
            return Some(slot.connection.clone());
        }
        all.remove(key);
        make_place(&mut all, key.0, now_ms);
        let connection = Arc::<Mutex<Connection>>::default();
        let slot = Slot {
            connection: connection.clone(),
            used_ms: now_ms,
        };
        all.insert(key.clone(), slot);
        Some(connection)
    }

    /// How many connections there are.
    pub fn count(&self) -> usize {
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

/// Drops the user's idle connections, and whatever is needed for one more.
fn make_place(all: &mut BTreeMap<Key, Slot>, user: UserNum, now_ms: u64) {
    let first = (user, String::new(), String::new());
    let own = |all: &BTreeMap<Key, Slot>| -> Vec<(u64, Key)> {
        all.range(first.clone()..)
            .take_while(|((whose, _, _), _)| *whose == user)
            .map(|(key, slot)| (slot.used_ms, key.clone()))
            .collect()
    };
    let mut mine = own(all);
    mine.sort();
    let too_many = (mine.len() + 1).saturating_sub(CONNECTIONS_USER_MAX);
    for (place, (used_ms, key)) in mine.into_iter().enumerate() {
        if place < too_many || used_ms.saturating_add(IDLE_MS_MAX) < now_ms {
            all.remove(&key);
        }
    }
    if all.len() < CONNECTIONS_MAX {
        return;
    }
    all.retain(|_, slot| slot.used_ms.saturating_add(IDLE_MS_MAX) >= now_ms);
    // Still full: a tenth goes at once, so that a full server does not search for every newcomer.
    if all.len() >= CONNECTIONS_MAX {
        let mut oldest: Vec<(u64, Key)> = all
            .iter()
            .map(|(key, slot)| (slot.used_ms, key.clone()))
            .collect();
        oldest.sort();
        for (_, key) in oldest.into_iter().take(CONNECTIONS_MAX / 10) {
            all.remove(&key);
        }
    }
}

/// Locks a connection, whatever became of an earlier holder.
pub(super) fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}
