//! Timelines: the events of a room in the order this server came to know them.

use std::{ops::Bound, sync::Arc};

use federation::{
    event::Pdu,
    room::{StateChange, StateMap},
};
use ruma::{EventId, OwnedDeviceId, OwnedEventId};
use serde::{Deserialize, Serialize};

use super::{
    GapRow, RoomHead,
    gaps::{self, Gap},
    state::changes_to_json,
};
use crate::{
    Store, StoreError,
    commit::{Commit, EntryIndex, PendingEntry},
    keys::{Keyspace, Packed, Position, RoomNum, StateId, Unpack, UserNum},
    kv::{Direction, Row},
};

/// Which request of which device sent an event: shown to that device only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnRef {
    /// Whose device.
    pub user: UserNum,
    /// Which device.
    pub device: OwnedDeviceId,
    /// The `txnId` in the path of its request.
    pub txn_id: String,
}

/// An event in its room's timeline.
#[derive(Debug)]
pub struct TimelineEvent {
    /// The room.
    pub room: RoomNum,
    /// Its place: the position of its log entry, or a number below zero for backfilled history and for what fills
    /// a gap.
    pub order: i64,
    /// The event itself; after a redaction, what the redaction left of it.
    pub pdu: Arc<Pdu>,
    /// The state before it.
    pub state_before: StateId,
    /// The state after it.
    pub state_after: StateId,
    /// The state event whose place it took.
    pub replaces: Option<OwnedEventId>,
    /// The redaction that emptied it.
    pub redacted_by: Option<OwnedEventId>,
    /// The request that sent it, if a device of this server did.
    pub txn: Option<TxnRef>,
}

impl TimelineEvent {
    /// The position of its log entry; 0 for what was backfilled, which was never new.
    pub fn position(&self) -> Position {
        u64::try_from(self.order).unwrap_or(0)
    }

    /// Where the log was at its place in the timeline: its own position, or that of the gap that it fills; 0 for
    /// history before the timeline.
    pub fn place(&self) -> Position {
        gaps::filled(self.order).unwrap_or_else(|| self.position())
    }

    /// Whether it changed the state of the room.
    pub fn changes_state(&self) -> bool {
        self.state_before != self.state_after
    }
}

/// An event that changes because of another one: what a redaction leaves of its target.
#[derive(Debug)]
pub struct Rewrite {
    /// The event as it was.
    pub target: Arc<TimelineEvent>,
    /// What is left of it.
    pub pdu: Arc<Pdu>,
    /// The redaction.
    pub because: OwnedEventId,
}

/// An event about to be added to a timeline.
#[derive(Debug)]
pub struct NewEvent {
    /// The room.
    pub room: RoomNum,
    /// The event.
    pub pdu: Arc<Pdu>,
    /// The state before it.
    pub state_before: StateId,
    /// The state after it; on a fork not that of the head.
    pub state_after: StateId,
    /// The state event whose place it takes.
    pub replaces: Option<OwnedEventId>,
    /// States that got their numbers with it, for readers right after.
    pub states: Vec<(StateId, StateMap)>,
    /// The head of the room after it.
    pub head: Arc<RoomHead>,
    /// What it changes in the current state.
    pub changes: Vec<StateChange>,
    /// The request that sent it.
    pub txn: Option<TxnRef>,
    /// What it empties.
    pub rewrite: Option<Rewrite>,
    /// The redaction that came before it and emptied it.
    pub redacted_by: Option<OwnedEventId>,
    /// What is missing right before it: the log entry before it is that of the gap.
    pub gap: Option<GapRow>,
}

/// An event that is written, with what its publication changes.
#[derive(Debug)]
pub(crate) struct WrittenEvent {
    /// The event.
    pub(crate) event: Arc<TimelineEvent>,
    /// The head of its room right after it.
    pub(crate) head: Arc<RoomHead>,
    /// States that got their numbers with it.
    pub(crate) states: Vec<(StateId, StateMap)>,
    /// What it emptied, as it is now.
    pub(crate) rewrite: Option<Arc<TimelineEvent>>,
    /// The gap right before it.
    pub(crate) gap: Option<Gap>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "e")]
    event_id: OwnedEventId,
    #[serde(rename = "b")]
    state_before: StateId,
    #[serde(rename = "a")]
    state_after: StateId,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    replaces: Option<OwnedEventId>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    redacted_by: Option<OwnedEventId>,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    txn: Option<TxnRef>,
}

impl Commit {
    /// Adds an event to a room's timeline, and makes `event.head` the room's head.
    ///
    /// The rows that follow from it (timeline, index by ID and by time, room) are written with it; those
    /// of new states come from [`RoomHead::number`].
    pub fn event(&mut self, event: NewEvent) -> EntryIndex {
        self.push_entry(PendingEntry::Event(Box::new(event)))
    }

    /// Adds history to the far end of a room's timeline, or to a gap in it; its order lies below zero. Nobody is
    /// told: it is not new.
    pub fn history(&mut self, event: &TimelineEvent) {
        for row in placing_rows(event) {
            self.put_row(row);
        }
    }

    /// Changes an event by what came to be known of the past.
    pub fn rewrite(&mut self, rewrite: Rewrite) {
        let event = Arc::new(rewrite.done());
        self.put_row(timeline_row(&event));
        self.rewritten.push(event);
    }

    fn put_row(&mut self, (key, value): Row) {
        let value = value.map(|value| Packed::new().raw(&value));
        self.put_raw(Packed::new().raw(&key), value.unwrap_or_default());
    }
}

impl Rewrite {
    fn done(self) -> TimelineEvent {
        let target = &self.target;
        TimelineEvent {
            room: target.room,
            order: target.order,
            pdu: self.pdu,
            state_before: target.state_before,
            state_after: target.state_after,
            replaces: target.replaces.clone(),
            redacted_by: Some(self.because),
            txn: target.txn.clone(),
        }
    }
}

impl NewEvent {
    /// Gives the event its place, and adds its rows.
    pub(crate) fn at(self, position: Position, rows: &mut Vec<Row>) -> WrittenEvent {
        let order = i64::try_from(position).expect("positions are far below 2^63");
        let rewrite = self.rewrite.map(|rewrite| Arc::new(rewrite.done()));
        let gap = self.gap.map(|row| {
            let (row, gap) = gaps::before_event(self.room, position, &row);
            rows.push(row);
            gap
        });
        let event = TimelineEvent {
            room: self.room,
            order,
            state_before: self.state_before,
            state_after: self.state_after,
            replaces: self.replaces,
            redacted_by: self.redacted_by,
            txn: self.txn,
            pdu: self.pdu,
        };
        rows.extend(placing_rows(&event));
        if let Some(target) = &rewrite {
            rows.push(timeline_row(target));
        }
        if !self.changes.is_empty() {
            rows.push((
                Packed::key(Keyspace::STATE_CHANGE)
                    .room(event.room)
                    .i64(order)
                    .into_bytes(),
                Some(changes_to_json(&self.changes)),
            ));
        }
        rows.push(self.head.row(event.room, position));
        WrittenEvent {
            event: Arc::new(event),
            head: self.head,
            states: self.states,
            rewrite,
            gap,
        }
    }
}

/// The rows that give an event its place: in the timeline, by its ID, by its time.
fn placing_rows(event: &TimelineEvent) -> [Row; 3] {
    let by_id = Packed::key(Keyspace::EVENT).event(event.pdu.event_id());
    let by_time = Packed::key(Keyspace::EVENT_TIME)
        .room(event.room)
        .u64(event.pdu.origin_server_ts().get().into())
        .i64(event.order);
    let place = Packed::new().room(event.room).i64(event.order);
    [
        timeline_row(event),
        (by_id.into_bytes(), Some(place.into_bytes())),
        (by_time.into_bytes(), Some(Vec::new())),
    ]
}

fn timeline_row(event: &TimelineEvent) -> Row {
    let header = serde_json::to_vec(&Header {
        event_id: event.pdu.event_id().to_owned(),
        state_before: event.state_before,
        state_after: event.state_after,
        replaces: event.replaces.clone(),
        redacted_by: event.redacted_by.clone(),
        txn: event.txn.clone(),
    })
    .expect("strings and numbers always serialise");
    let value = Packed::new()
        .u64(header.len() as u64)
        .raw(&header)
        .raw(event.pdu.json().as_bytes());
    (
        Packed::key(Keyspace::TIMELINE)
            .room(event.room)
            .i64(event.order)
            .into_bytes(),
        Some(value.into_bytes()),
    )
}

/// A log row of an event: the byte 1 and the room. Rows of other changes begin with `{`.
pub(crate) fn log_row(event: &TimelineEvent) -> Vec<u8> {
    Packed::new().u8(1).room(event.room).into_bytes()
}

pub(crate) fn parse_log_row(value: &[u8]) -> Option<RoomNum> {
    let mut value = Unpack(value);
    (value.u8()? == 1).then(|| value.room()).flatten()
}

/// Parses a row of the timeline; `cached` may save the parsing of the event itself.
pub(crate) fn parse_timeline_row(
    store: &Store,
    key: &[u8],
    value: &[u8],
) -> Result<Arc<TimelineEvent>, StoreError> {
    let corrupt = || StoreError::corrupt(Keyspace::TIMELINE, key);
    let mut parts = Unpack::key(key);
    let (room, order) = parts.room().zip(parts.i64()).ok_or_else(corrupt)?;
    if let Some(event_id) = store.inner.places.get(&(room, order))
        && let Some(event) = store.inner.events.get(&event_id)
    {
        return Ok(event);
    }
    let mut parts = Unpack(value);
    let length = parts
        .u64()
        .and_then(|length| usize::try_from(length).ok())
        .ok_or_else(corrupt)?;
    let (header, json) = parts.0.split_at_checked(length).ok_or_else(corrupt)?;
    let header: Header = serde_json::from_slice(header).map_err(|_| corrupt())?;
    let place = (room, order);
    store.inner.places.insert(place, header.event_id.clone());
    if let Some(event) = store.inner.events.get(&header.event_id) {
        return Ok(event);
    }
    let rules = store.room_rules(room)?.ok_or_else(corrupt)?;
    let json = std::str::from_utf8(json).map_err(|_| corrupt())?;
    let pdu = Pdu::from_stored(header.event_id.clone(), json.into(), rules, false)
        .map_err(|_| corrupt())?;
    let event = Arc::new(TimelineEvent {
        room,
        order,
        pdu: Arc::new(pdu),
        state_before: header.state_before,
        state_after: header.state_after,
        replaces: header.replaces,
        redacted_by: header.redacted_by,
        txn: header.txn,
    });
    store.inner.events.insert(header.event_id, event.clone());
    Ok(event)
}

impl Store {
    /// The event with this ID, wherever it is; `None` when it is not known or not published yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn event(&self, event_id: &EventId) -> Result<Option<Arc<TimelineEvent>>, StoreError> {
        if let Some(event) = self.inner.events.get(event_id) {
            return Ok(Some(event));
        }
        let key = Packed::key(Keyspace::EVENT).event(event_id);
        let Some(value) = self.inner.kv.get(&key.bytes)? else {
            return Ok(None);
        };
        let mut parts = Unpack(&value);
        let (room, order) = parts
            .room()
            .zip(parts.i64())
            .ok_or_else(|| StoreError::corrupt(Keyspace::EVENT, &key.bytes))?;
        let event = self.event_at(room, order)?;
        Ok(event.filter(|event| event.position() <= self.published()))
    }

    /// The event at one place of a timeline.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn event_at(
        &self,
        room: RoomNum,
        order: i64,
    ) -> Result<Option<Arc<TimelineEvent>>, StoreError> {
        let key = Packed::key(Keyspace::TIMELINE)
            .room(room)
            .i64(order)
            .into_bytes();
        let Some(value) = self.inner.kv.get(&key)? else {
            return Ok(None);
        };
        parse_timeline_row(self, &key, &value).map(Some)
    }

    /// Walks a timeline within `orders`, until `visit` returns `false`. What fills gaps is not shown: see
    /// [`RoomView::walk`](super::RoomView::walk).
    ///
    /// # Errors
    /// When the store cannot be read, or `visit` fails.
    pub fn walk_timeline(
        &self,
        room: RoomNum,
        orders: (Bound<i64>, Bound<i64>),
        direction: Direction,
        visit: impl FnMut(Arc<TimelineEvent>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let lower = match orders.0 {
            Bound::Included(order) if order >= gaps::HISTORY_MIN => orders.0,
            Bound::Excluded(order) if order >= gaps::HISTORY_MIN => orders.0,
            _ => Bound::Included(gaps::HISTORY_MIN),
        };
        self.walk_orders(room, (lower, orders.1), direction, visit)
    }

    /// Walks the rows of a timeline within `orders`, until `visit` returns `false`.
    pub(super) fn walk_orders(
        &self,
        room: RoomNum,
        orders: (Bound<i64>, Bound<i64>),
        direction: Direction,
        mut visit: impl FnMut(Arc<TimelineEvent>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let published = i64::try_from(self.published()).unwrap_or(i64::MAX);
        let first = match orders.0 {
            Bound::Included(order) => order,
            Bound::Excluded(order) => order.saturating_add(1),
            Bound::Unbounded => i64::MIN,
        };
        let end = match orders.1 {
            Bound::Included(order) => order.saturating_add(1),
            Bound::Excluded(order) => order,
            Bound::Unbounded => i64::MAX,
        }
        .min(published.saturating_add(1));
        let key = |order| {
            Packed::key(Keyspace::TIMELINE)
                .room(room)
                .i64(order)
                .into_bytes()
        };
        self.visit_range(&key(first), &key(end), direction, |key, value| {
            visit(parse_timeline_row(self, key, value)?)
        })
    }

    /// What the current state of a room changed, by position, in `since < position <= until`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn state_changes(
        &self,
        room: RoomNum,
        since: Position,
        until: Position,
    ) -> Result<Vec<(Position, Vec<StateChange>)>, StoreError> {
        let key = |position: Position| {
            Packed::key(Keyspace::STATE_CHANGE)
                .room(room)
                .i64(i64::try_from(position).unwrap_or(i64::MAX))
                .into_bytes()
        };
        let mut out = Vec::new();
        let (from, to) = (key(since + 1), key(until + 1));
        self.visit_range(&from, &to, Direction::Ascending, |key, value| {
            let corrupt = || StoreError::corrupt(Keyspace::STATE_CHANGE, key);
            let mut parts = Unpack::key(key);
            let position = parts
                .room()
                .and_then(|_| parts.position())
                .ok_or_else(corrupt)?;
            out.push((
                position,
                super::state::changes_from_json(value).ok_or_else(corrupt)?,
            ));
            Ok(true)
        })?;
        Ok(out)
    }

    /// The place of the event nearest to `timestamp_ms`: the first at or after it, or the last at
    /// or before it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn order_near_time(
        &self,
        room: RoomNum,
        timestamp_ms: u64,
        direction: Direction,
        mut accept: impl FnMut(i64) -> Result<bool, StoreError>,
    ) -> Result<Option<i64>, StoreError> {
        let key = |time: u64| Packed::key(Keyspace::EVENT_TIME).room(room).u64(time);
        let (from, to) = match direction {
            Direction::Ascending => (
                key(timestamp_ms).into_bytes(),
                Packed::key(Keyspace::EVENT_TIME).room(room).end_of_prefix(),
            ),
            Direction::Descending => (
                key(0).into_bytes(),
                key(timestamp_ms.saturating_add(1)).into_bytes(),
            ),
        };
        let mut found = None;
        self.visit_range(&from, &to, direction, |key, _| {
            let mut parts = Unpack::key(key);
            let order = parts
                .room()
                .and_then(|_| parts.u64())
                .and_then(|_| parts.i64())
                .ok_or_else(|| StoreError::corrupt(Keyspace::EVENT_TIME, key))?;
            if accept(order)? {
                found = Some(order);
                return Ok(false);
            }
            Ok(true)
        })?;
        Ok(found)
    }
}
