//! A room in memory: what the next event is built upon, and what readers may see of it.

use std::{
    collections::VecDeque,
    ops::{Bound, RangeBounds as _},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use federation::room::{StateChange, StateMap};
use imbl::OrdMap;
use ruma::{
    OwnedEventId, OwnedRoomId, RoomVersionId, events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
};
use serde::{Deserialize, Serialize};

use super::{GAPS_MAX, Gap, StateBlock, TimelineEvent, timeline::WrittenEvent};
use crate::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Position, RoomNum, StateId, Unpack, UserNum},
    kv::{Direction, Row},
};

/// How many of a room's newest events stay beside its view.
const TAIL_EVENTS_MAX: usize = 32;

/// A user's membership in a room, as it stands in rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// Joined.
    Join,
    /// Invited.
    Invite,
    /// Knocking.
    Knock,
    /// Left, kicked, or never there.
    Leave,
    /// Banned.
    Ban,
}

impl Membership {
    /// From the specification's value; anything unknown counts as not being there.
    pub fn of(state: &MembershipState) -> Self {
        match state {
            MembershipState::Join => Self::Join,
            MembershipState::Invite => Self::Invite,
            MembershipState::Knock => Self::Knock,
            MembershipState::Ban => Self::Ban,
            _ => Self::Leave,
        }
    }

    /// As the specification's value.
    pub fn state(self) -> MembershipState {
        match self {
            Self::Join => MembershipState::Join,
            Self::Invite => MembershipState::Invite,
            Self::Knock => MembershipState::Knock,
            Self::Leave => MembershipState::Leave,
            Self::Ban => MembershipState::Ban,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Join => b'j',
            Self::Invite => b'i',
            Self::Knock => b'k',
            Self::Leave => b'l',
            Self::Ban => b'b',
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Join,
            Self::Invite,
            Self::Knock,
            Self::Leave,
            Self::Ban,
        ]
        .into_iter()
        .find(|membership| membership.byte() == byte)
    }
}

/// A user's relation to a room: one row for each room a user was ever in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MembershipRow {
    /// The membership now.
    pub membership: Membership,
    /// The position of the event that made it so.
    #[serde(skip)]
    pub position: Position,
    /// That event.
    pub event_id: OwnedEventId,
    /// Whether a leave was the user's own doing, not a kick or the undoing of a ban.
    pub by_self: bool,
    /// The position of the last join that followed another membership; 0 if there was none.
    pub joined_at: Position,
    /// The position of the last end of being joined; 0 if there was none.
    pub left_at: Position,
    /// Whether the user asked to forget the room.
    pub forgotten: bool,
}

impl MembershipRow {
    /// The value of the row. A position of 0 stands for the log entry that the row belongs to.
    pub fn pack(&self) -> Packed {
        let json = serde_json::to_vec(self).expect("strings and numbers always serialise");
        let value = Packed::new();
        let value = match self.position {
            0 => value.position(),
            position => value.raw(&crate::keys::position_bytes(position)),
        };
        value.raw(&json)
    }

    pub(crate) fn unpack(value: &[u8]) -> Option<Self> {
        let mut value = Unpack(value);
        let position = value.position()?;
        let mut row: Self = serde_json::from_slice(value.0).ok()?;
        row.position = position;
        // The membership change itself has no position while it is packed.
        if row.joined_at == Position::MAX {
            row.joined_at = position;
        }
        if row.left_at == Position::MAX {
            row.left_at = position;
        }
        Some(row)
    }
}

/// Everything that the next event of a room is built upon.
#[derive(Clone, Debug)]
pub struct RoomHead {
    /// The room's version.
    pub version: RoomVersionId,
    /// Its current state.
    pub state: StateMap,
    /// The number of that state.
    pub state_id: StateId,
    /// The events that nothing is built upon yet.
    pub extremities: Vec<OwnedEventId>,
    /// The deepest of them.
    pub depth: u64,
    /// How deep the join is by which this server came into the room last; 0 in a room that was made here. What
    /// is less deep is history.
    pub entered_depth: u64,
    /// Who is or was in the room.
    pub members: OrdMap<UserNum, Membership>,
    /// How many are joined.
    pub joined_count: u64,
    /// How many are invited.
    pub invited_count: u64,
    /// The state that got a number last: that of the room, or one of a fork.
    last: StateMap,
    /// Its number.
    last_id: StateId,
    /// What the rows of the next state are made from.
    block: StateBlock,
}

#[derive(Serialize, Deserialize)]
struct RoomRow {
    version: RoomVersionId,
    extremities: Vec<OwnedEventId>,
    depth: u64,
    #[serde(default)]
    entered_depth: u64,
    state_id: StateId,
}

impl RoomHead {
    /// The head of a room before its create event.
    pub fn new(version: RoomVersionId) -> Self {
        Self {
            version,
            state: StateMap::new(),
            state_id: StateId(0),
            extremities: Vec::new(),
            depth: 0,
            entered_depth: 0,
            members: OrdMap::new(),
            joined_count: 0,
            invited_count: 0,
            last: StateMap::new(),
            last_id: StateId(0),
            block: StateBlock::default(),
        }
    }

    /// Gives a state its number, and adds the rows that keep it; a state that is the room's own, or the one
    /// numbered last, has one.
    ///
    /// Walks what differs from the one numbered last; [`RoomHead::step`] is for whoever knows that.
    pub fn number(&mut self, commit: &mut Commit, room: RoomNum, state: &StateMap) -> StateId {
        if state.changes_since(&self.state).is_empty() {
            return self.state_id;
        }
        let changes = state.changes_since(&self.last);
        if changes.is_empty() {
            return self.last_id;
        }
        let id = self.keep(commit, room, state, &changes);
        // An event outside the timeline writes no row of the room.
        let key = Packed::key(Keyspace::LAST_STATE).room(room);
        commit.put_raw(key, Packed::new().u64(id.0));
        id
    }

    /// Makes `changes` to the room's state; the new state gets a number.
    pub fn step(&mut self, commit: &mut Commit, room: RoomNum, changes: &[StateChange]) {
        let mut state = std::mem::take(&mut self.state);
        for change in changes {
            state.apply(change);
        }
        let id = if self.last_id == self.state_id {
            self.keep(commit, room, &state, changes)
        } else {
            self.number(commit, room, &state)
        };
        self.state = state;
        self.state_id = id;
    }

    fn keep(
        &mut self,
        commit: &mut Commit,
        room: RoomNum,
        state: &StateMap,
        changes: &[StateChange],
    ) -> StateId {
        self.last_id = StateId(self.last_id.0 + 1);
        self.last = state.clone();
        for (key, value) in self.block.step(room, self.last_id, changes, state) {
            let value = value.map(|value| Packed::new().raw(&value));
            commit.put_raw(Packed::new().raw(&key), value.unwrap_or_default());
        }
        self.last_id
    }

    /// The membership of a user; `Leave` when they were never there.
    pub fn membership(&self, user: UserNum) -> Membership {
        self.members
            .get(&user)
            .copied()
            .unwrap_or(Membership::Leave)
    }

    /// Sets a user's membership, and returns the row that keeps it.
    pub fn set_membership(
        &mut self,
        room: RoomNum,
        user: UserNum,
        membership: Membership,
    ) -> (Packed, Packed) {
        let old = self.members.insert(user, membership);
        let count =
            |of: Membership| -> i64 { i64::from(membership == of) - i64::from(old == Some(of)) };
        self.joined_count = self
            .joined_count
            .saturating_add_signed(count(Membership::Join));
        self.invited_count = self
            .invited_count
            .saturating_add_signed(count(Membership::Invite));
        (
            Packed::key(Keyspace::MEMBER).room(room).user(user),
            Packed::new().u8(membership.byte()),
        )
    }

    pub(super) fn row(&self, room: RoomNum, position: Position) -> Row {
        let json = serde_json::to_vec(&RoomRow {
            version: self.version.clone(),
            extremities: self.extremities.clone(),
            depth: self.depth,
            entered_depth: self.entered_depth,
            state_id: self.state_id,
        })
        .expect("strings and numbers always serialise");
        (
            Packed::key(Keyspace::ROOM).room(room).into_bytes(),
            Some(Packed::new().u64(position).raw(&json).into_bytes()),
        )
    }
}

/// A room as readers may see it: flushed, published.
#[derive(Clone, Debug)]
pub struct RoomView {
    /// The room's short number.
    pub room: RoomNum,
    /// Its ID.
    pub room_id: OwnedRoomId,
    /// The rules of its version.
    pub rules: &'static RoomVersionRules,
    /// Its head.
    pub head: Arc<RoomHead>,
    /// The position of its newest event.
    pub position: Position,
    /// The newest events, oldest first, without gaps.
    pub tail: VecDeque<Arc<TimelineEvent>>,
    /// Whether `tail` begins with the room's first event.
    pub tail_is_whole: bool,
    /// Where events are missing in its timeline, or were, oldest first.
    pub(super) gaps: Arc<Vec<Gap>>,
}

impl RoomView {
    /// The newest events behind `since`, oldest first; `None` when some are only on disk.
    pub fn tail_since(&self, since: Position) -> Option<Vec<Arc<TimelineEvent>>> {
        let covered = self.position <= since
            || self.tail_is_whole
            || self
                .tail
                .front()
                .is_some_and(|first| first.position() <= since);
        covered.then(|| {
            self.tail
                .iter()
                .filter(|event| event.position() > since)
                .cloned()
                .collect()
        })
    }

    /// Walks the room's events within `orders`, newest first, until `visit` returns `false`: those in memory, and
    /// what is before them from disk.
    ///
    /// # Errors
    /// When the store cannot be read, or `visit` fails.
    pub fn walk_back(
        &self,
        store: &Store,
        orders: (Bound<i64>, Bound<i64>),
        mut visit: impl FnMut(Arc<TimelineEvent>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        for event in self.tail.iter().rev() {
            if orders.contains(&event.order) && !visit(event.clone())? {
                return Ok(());
            }
        }
        let first = self.tail.front().map_or(i64::MAX, |first| first.order);
        let wants_older = match orders.0 {
            Bound::Included(lower) => lower < first,
            Bound::Excluded(lower) => lower.saturating_add(1) < first,
            Bound::Unbounded => true,
        };
        if !wants_older {
            return Ok(());
        }
        let upper = match orders.1 {
            Bound::Included(upper) if upper < first => orders.1,
            Bound::Excluded(upper) if upper < first => orders.1,
            _ => Bound::Excluded(first),
        };
        store.walk_timeline(self.room, (orders.0, upper), Direction::Descending, visit)
    }

    fn advance(
        &mut self,
        WrittenEvent {
            event,
            head,
            rewrite,
            gap,
            ..
        }: &WrittenEvent,
    ) {
        if event.position() <= self.position {
            return;
        }
        if let Some(gap) = gap {
            Arc::make_mut(&mut self.gaps).push(*gap);
        }
        self.head = head.clone();
        self.position = event.position();
        if let Some(target) = rewrite {
            self.rewrite(target);
        }
        self.tail.push_back(event.clone());
        if self.tail.len() > TAIL_EVENTS_MAX {
            self.tail.pop_front();
            self.tail_is_whole = false;
        }
    }

    fn rewrite(&mut self, target: &Arc<TimelineEvent>) {
        for slot in &mut self.tail {
            if slot.order == target.order {
                *slot = target.clone();
            }
        }
    }

    /// Whether no further gap of its timeline is written down.
    pub fn has_gaps_max(&self) -> bool {
        self.gaps.len() >= GAPS_MAX
    }
}

/// The published views of the rooms in use.
#[derive(Debug)]
pub(crate) struct RoomCache {
    views: quick_cache::sync::Cache<RoomNum, Arc<RoomView>, Weigh>,
    events: crate::EventCache,
    states: crate::StateCache,
    /// Held for reading while a room is loaded, for writing while a group is written.
    loading: RwLock<()>,
}

#[derive(Clone, Debug)]
struct Weigh;

impl quick_cache::Weighter<RoomNum, Arc<RoomView>> for Weigh {
    fn weight(&self, _: &RoomNum, view: &Arc<RoomView>) -> u64 {
        // Measured: about 150 bytes an entry of the state, 60 a member, 2 KB for the rest.
        2_048 + 150 * view.head.state.len() as u64 + 60 * view.head.members.len() as u64
    }
}

impl RoomCache {
    pub(crate) fn new(
        bytes_max: u64,
        events: crate::EventCache,
        states: crate::StateCache,
    ) -> Self {
        Self {
            views: quick_cache::sync::Cache::with_weighter(1_024, bytes_max, Weigh),
            events,
            states,
            loading: RwLock::default(),
        }
    }

    /// How many views there are, and about how many bytes they take.
    pub(crate) fn used(&self) -> (usize, u64) {
        (self.views.len(), self.views.weight())
    }

    pub(crate) fn stop_loading(&self) -> RwLockWriteGuard<'_, ()> {
        self.loading.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn while_loading(&self) -> RwLockReadGuard<'_, ()> {
        self.loading.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a written event part of its room's view. A room that is not in use stays on disk.
    pub(crate) fn advance(&self, written: &WrittenEvent) {
        let WrittenEvent {
            event,
            head,
            states,
            rewrite,
            ..
        } = written;
        for event in std::iter::once(event).chain(rewrite) {
            self.events
                .insert(event.pdu.event_id().to_owned(), event.clone());
        }
        for (id, state) in states {
            self.states.insert((event.room, *id), state.clone());
        }
        let view = match self.views.get(&event.room) {
            Some(view) => {
                let mut view = RoomView::clone(&view);
                view.advance(written);
                view
            }
            // A new room: its view begins with its create event.
            None if event.state_before == StateId(0) => {
                let Some(rules) = crate::rules_of(&head.version) else {
                    return;
                };
                RoomView {
                    room: event.room,
                    room_id: event.pdu.room_id().to_owned(),
                    rules,
                    head: head.clone(),
                    position: event.position(),
                    tail: VecDeque::from([event.clone()]),
                    tail_is_whole: true,
                    gaps: Arc::default(),
                }
            }
            None => return,
        };
        self.views.insert(event.room, Arc::new(view));
    }

    /// Makes a gap as it is now part of its room's view.
    pub(crate) fn set_gap(&self, room: RoomNum, gap: Gap) {
        let Some(view) = self.views.get(&room) else {
            return;
        };
        let mut view = RoomView::clone(&view);
        for slot in Arc::make_mut(&mut view.gaps) {
            if slot.position == gap.position {
                *slot = gap;
            }
        }
        self.views.insert(room, Arc::new(view));
    }

    /// Makes what is left of an event part of its room's view.
    pub(crate) fn rewrite(&self, event: &Arc<TimelineEvent>) {
        self.events
            .insert(event.pdu.event_id().to_owned(), event.clone());
        if let Some(view) = self.views.get(&event.room) {
            let mut view = RoomView::clone(&view);
            view.rewrite(event);
            self.views.insert(event.room, Arc::new(view));
        }
    }
}

impl Store {
    /// The published view of a room, or `None` when the room is not known.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn room(&self, room: RoomNum) -> Result<Option<Arc<RoomView>>, StoreError> {
        if let Some(view) = self.inner.rooms.views.get(&room) {
            return Ok(Some(view));
        }
        let _loading = self.inner.rooms.while_loading();
        let Some(view) = self.load_room(room)? else {
            return Ok(None);
        };
        let view = Arc::new(view);
        self.inner.rooms.views.insert(room, view.clone());
        Ok(Some(view))
    }

    /// The rules of a room's version.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn room_rules(
        &self,
        room: RoomNum,
    ) -> Result<Option<&'static RoomVersionRules>, StoreError> {
        if let Some(view) = self.inner.rooms.views.get(&room) {
            return Ok(Some(view.rules));
        }
        let Some((_, row)) = self.room_row(room)? else {
            return Ok(None);
        };
        Ok(crate::rules_of(&row.version))
    }

    fn room_row(&self, room: RoomNum) -> Result<Option<(Position, RoomRow)>, StoreError> {
        let key = Packed::key(Keyspace::ROOM).room(room).into_bytes();
        let Some(value) = self.inner.kv.get(&key)? else {
            return Ok(None);
        };
        let corrupt = || StoreError::corrupt(Keyspace::ROOM, &key);
        let mut parts = Unpack(&value);
        let position = parts.u64().ok_or_else(corrupt)?;
        let row = serde_json::from_slice(parts.0).map_err(|_| corrupt())?;
        Ok(Some((position, row)))
    }

    fn load_room(&self, room: RoomNum) -> Result<Option<RoomView>, StoreError> {
        let Some((position, row)) = self.room_row(room)? else {
            return Ok(None);
        };
        let corrupt = || StoreError::corrupt(Keyspace::ROOM, &room.0.to_be_bytes());
        let rules = crate::rules_of(&row.version).ok_or_else(corrupt)?;
        let room_id = self.room_id(room)?.ok_or_else(corrupt)?;
        let mut members = OrdMap::new();
        let (mut joined_count, mut invited_count) = (0, 0);
        self.visit(
            &Packed::key(Keyspace::MEMBER).room(room),
            Direction::Ascending,
            |key, value| {
                let mut parts = Unpack::key(key);
                let user = parts
                    .room()
                    .and_then(|_| parts.user())
                    .ok_or_else(corrupt)?;
                let membership = value
                    .first()
                    .and_then(|&byte| Membership::from_byte(byte))
                    .ok_or_else(corrupt)?;
                joined_count += u64::from(membership == Membership::Join);
                invited_count += u64::from(membership == Membership::Invite);
                members.insert(user, membership);
                Ok(true)
            },
        )?;
        let key = Packed::key(Keyspace::LAST_STATE).room(room);
        let last_id = self.inner.kv.get(&key.bytes)?;
        let last_id = last_id.and_then(|value| Unpack(&value).u64());
        let last_id = StateId(last_id.unwrap_or(0).max(row.state_id.0));
        let head = RoomHead {
            version: row.version,
            state: self.state(room, row.state_id)?,
            last: self.state(room, last_id)?,
            last_id,
            block: self.state_block(room, last_id)?,
            state_id: row.state_id,
            extremities: row.extremities,
            depth: row.depth,
            entered_depth: row.entered_depth,
            members,
            joined_count,
            invited_count,
        };
        let mut tail = VecDeque::new();
        let prefix = Packed::key(Keyspace::TIMELINE).room(room);
        self.visit(&prefix, Direction::Descending, |key, value| {
            let event = super::parse_timeline_row(self, key, value)?;
            if event.order < 0 || tail.len() == TAIL_EVENTS_MAX {
                return Ok(false);
            }
            tail.push_front(event);
            Ok(true)
        })?;
        let tail_is_whole = tail
            .front()
            .is_some_and(|first| first.state_before == StateId(0));
        let head = Arc::new(head);
        Ok(Some(RoomView {
            room,
            room_id,
            rules,
            head,
            position,
            tail,
            tail_is_whole,
            gaps: Arc::new(self.gaps(room)?),
        }))
    }

    /// A user's relation to a room.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn user_room(
        &self,
        user: UserNum,
        room: RoomNum,
    ) -> Result<Option<MembershipRow>, StoreError> {
        let key = Packed::key(Keyspace::USER_ROOM)
            .user(user)
            .room(room)
            .into_bytes();
        let Some(value) = self.inner.kv.get(&key)? else {
            return Ok(None);
        };
        MembershipRow::unpack(&value)
            .map(Some)
            .ok_or_else(|| StoreError::corrupt(Keyspace::USER_ROOM, &key))
    }

    /// Every room a user is or was in.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn user_rooms(&self, user: UserNum) -> Result<Vec<(RoomNum, MembershipRow)>, StoreError> {
        let mut rooms = Vec::new();
        self.visit(
            &Packed::key(Keyspace::USER_ROOM).user(user),
            Direction::Ascending,
            |key, value| {
                let corrupt = || StoreError::corrupt(Keyspace::USER_ROOM, key);
                let mut parts = Unpack::key(key);
                let room = parts
                    .user()
                    .and_then(|_| parts.room())
                    .ok_or_else(corrupt)?;
                rooms.push((room, MembershipRow::unpack(value).ok_or_else(corrupt)?));
                Ok(true)
            },
        )?;
        Ok(rooms)
    }
}
