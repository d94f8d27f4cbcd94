//! Gaps in a timeline: what was said there is not known, or only in part.
//!
//! A gap has a position of its own in the log, right before that of the event behind it, so that the point at that
//! position lies behind all that fills the gap, and the one before it in front of that. What fills it has orders far
//! below zero, made of the gap's position and a number that shrinks as older events come: see
//! `spec/decisions/0007-gaps.md`. Only [`RoomView::walk`] shows those events, in their place.

use std::{ops::Bound, sync::Arc};

use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};

use super::RoomView;
use crate::{
    Commit, Store, StoreError,
    keys::{Keyspace, Position, RoomNum, Table, Unpack},
    kv::Direction,
    rooms::TimelineEvent,
};

/// How many gaps a room has, at most; what comes behind a further one follows on what is before it.
pub const GAPS_MAX: usize = 1_000;

/// How many bits of an order number what fills a gap.
const NUMBER_BITS: u32 = 20;

/// One more than the number of the newest event that fills a gap; 0 is never given, so that there is a point before
/// the oldest.
const NUMBERS: i64 = 1 << NUMBER_BITS;

/// The lowest order of history before the timeline. What fills gaps is below: there is room for 2^42 positions.
pub(super) const HISTORY_MIN: i64 = i64::MIN / 2;

const ROWS: Table<GapRow> = Table::new(Keyspace::GAP);

/// A gap as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRow {
    /// What is known to be missing: the newest of it. Nothing when the gap is closed.
    pub wants: Vec<OwnedEventId>,
    /// What is less deep is older than this server's time in the room, and does not fill the gap.
    pub floor: u64,
    /// The number of the oldest event that fills it.
    pub lowest: i64,
}

impl GapRow {
    /// A gap that nothing fills.
    pub fn new(wants: Vec<OwnedEventId>, floor: u64) -> Self {
        let lowest = NUMBERS;
        Self {
            wants,
            floor,
            lowest,
        }
    }

    /// How many more events have room.
    pub fn room_left(&self) -> usize {
        usize::try_from(self.lowest - 1).unwrap_or(0)
    }
}

/// Where a room's timeline has a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its position: no event has it.
    pub position: Position,
    /// The number of the oldest event that fills it.
    pub lowest: i64,
    /// Whether something is missing still.
    pub open: bool,
}

impl Gap {
    fn of(position: Position, row: &GapRow) -> Self {
        Self {
            position,
            lowest: row.lowest,
            open: !row.wants.is_empty(),
        }
    }

    fn anchor(self) -> i64 {
        i64::try_from(self.position).unwrap_or(i64::MAX)
    }

    /// The order of what has a number in it.
    pub fn order(self, number: i64) -> i64 {
        i64::MIN + (self.anchor() << NUMBER_BITS) + number
    }

    /// The order of the first event behind what is missing: of the oldest that fills the gap, or of the one behind it.
    pub fn behind(self) -> i64 {
        if self.lowest < NUMBERS {
            self.order(self.lowest)
        } else {
            self.anchor() + 1
        }
    }
}

/// The position of the gap that an event fills, by its order.
pub(super) fn filled(order: i64) -> Option<Position> {
    let (anchor, _) = spot(order);
    let fills = anchor > 0 && order < 0;
    fills.then(|| u64::try_from(anchor).unwrap_or(0))
}

/// What orders are compared by: a position, or an order below zero; then the number in the gap there.
fn spot(order: i64) -> (i64, i64) {
    let above = order.wrapping_sub(i64::MIN);
    if order < HISTORY_MIN && above >= NUMBERS {
        (above >> NUMBER_BITS, above & (NUMBERS - 1))
    } else {
        (order, i64::MAX)
    }
}

/// The spots within some bounds, both included.
fn spots((lower, upper): (Bound<i64>, Bound<i64>)) -> ((i64, i64), (i64, i64)) {
    let low = match lower {
        Bound::Included(order) => spot(order),
        Bound::Excluded(order) => match spot(order) {
            (at, i64::MAX) => (at.saturating_add(1), i64::MIN),
            (at, number) => (at, number + 1),
        },
        Bound::Unbounded => (i64::MIN, i64::MIN),
    };
    let high = match upper {
        Bound::Included(order) => spot(order),
        Bound::Excluded(order) => {
            let (at, number) = spot(order);
            (at, number - 1)
        }
        Bound::Unbounded => (i64::MAX, i64::MAX),
    };
    (low, high)
}

/// The ranges of orders, both ends included, that a timeline with gaps is made of within bounds; oldest first.
fn pieces(gaps: &[Gap], orders: (Bound<i64>, Bound<i64>)) -> Vec<(i64, i64)> {
    let (low, high) = spots(orders);
    let last = match high {
        (at, i64::MAX) => at,
        (at, _) => at.saturating_sub(1),
    };
    let mut out = Vec::new();
    let mut from = low.0.max(HISTORY_MIN);
    for gap in gaps.iter().filter(|gap| gap.lowest < NUMBERS) {
        let at = gap.anchor();
        out.push((from, last.min(at - 1)));
        from = from.max(at);
        let (first, end) = (low.max((at, gap.lowest)), high.min((at, NUMBERS - 1)));
        if first <= end {
            out.push((gap.order(first.1), gap.order(end.1)));
        }
    }
    out.push((from, last));
    out.retain(|(first, last)| first <= last);
    out
}

impl Commit {
    /// Writes down what is known of a gap now.
    pub fn gap(&mut self, room: RoomNum, position: Position, row: &GapRow) {
        let key = ROWS.key().room(room).u64(position);
        self.put(ROWS, key, row);
        self.gaps.push((room, Gap::of(position, row)));
    }
}

/// The row of a gap right before the event at `position`, and the gap.
pub(super) fn before_event(
    room: RoomNum,
    position: Position,
    row: &GapRow,
) -> (crate::kv::Row, Gap) {
    let gap = Gap::of(position - 1, row);
    let key = ROWS.key().room(room).u64(gap.position);
    let json = serde_json::to_vec(row).expect("strings and numbers always serialise");
    ((key.into_bytes(), Some(json)), gap)
}

impl RoomView {
    /// The newest gap of which `since < position <= until`.
    pub fn gap_between(&self, since: Option<Position>, until: Position) -> Option<Gap> {
        let newest = self.gaps.iter().rev().find(|gap| gap.position <= until);
        let newest = newest.filter(|gap| since.is_none_or(|since| since < gap.position));
        newest.copied()
    }

    /// The newest gap within bounds where something is missing, of those that `wanted` says.
    pub fn open_gap(
        &self,
        orders: (Bound<i64>, Bound<i64>),
        mut wanted: impl FnMut(Gap) -> bool,
    ) -> Option<Gap> {
        let (low, high) = spots(orders);
        let mut gaps = self.gaps.iter().rev().filter(|gap| gap.open).copied();
        gaps.find(|gap| (low..=high).contains(&(gap.anchor(), 0)) && wanted(*gap))
    }

    /// Walks the room's timeline within `orders`, with what fills its gaps in its place, until `visit` returns `false`.
    ///
    /// # Errors
    /// When the store cannot be read, or `visit` fails.
    pub fn walk(
        &self,
        store: &Store,
        orders: (Bound<i64>, Bound<i64>),
        direction: Direction,
        mut visit: impl FnMut(Arc<TimelineEvent>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut pieces = pieces(&self.gaps, orders);
        if direction == Direction::Descending {
            pieces.reverse();
        }
        let mut goes_on = true;
        for (first, last) in pieces {
            let orders = (Bound::Included(first), Bound::Included(last));
            store.walk_orders(self.room, orders, direction, |event| {
                goes_on = visit(event)?;
                Ok(goes_on)
            })?;
            if !goes_on {
                break;
            }
        }
        Ok(())
    }
}

impl Store {
    /// What is known of a gap.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn gap(&self, room: RoomNum, position: Position) -> Result<Option<GapRow>, StoreError> {
        self.get(ROWS, ROWS.key().room(room).u64(position))
    }

    /// All gaps of a room, oldest first.
    pub(super) fn gaps(&self, room: RoomNum) -> Result<Vec<Gap>, StoreError> {
        let mut gaps = Vec::new();
        let prefix = ROWS.key().room(room);
        self.visit(&prefix, Direction::Ascending, |key, value| {
            let corrupt = || StoreError::corrupt(Keyspace::GAP, key);
            let mut parts = Unpack::key(key);
            let position = parts.room().and_then(|_| parts.u64()).ok_or_else(corrupt)?;
            let row = serde_json::from_slice(value).map_err(|_| corrupt())?;
            gaps.push(Gap::of(position, &row));
            Ok(true)
        })?;
        Ok(gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Gap = Gap {
        position: 10,
        lowest: NUMBERS - 3,
        open: true,
    };

    #[test]
    fn what_fills_a_gap_lies_before_the_point_at_its_position() {
        let (oldest, newest) = (GAP.order(GAP.lowest), GAP.order(NUMBERS - 1));
        assert_eq!(filled(oldest), Some(10));
        assert_eq!(filled(-1), None);
        assert_eq!(filled(i64::MIN), None);
        let within = |orders| pieces(&[GAP], orders);
        let all = (Bound::Unbounded, Bound::Unbounded);
        let (before, behind) = ((HISTORY_MIN, 9), (10, i64::MAX));
        assert_eq!(within(all), [before, (oldest, newest), behind]);
        let back = |order| (Bound::Unbounded, Bound::Included(order));
        assert_eq!(within(back(10)), [before, (oldest, newest), (10, 10)]);
        assert_eq!(within(back(9)), [before]);
        assert_eq!(within(back(oldest)), [before, (oldest, oldest)]);
        assert_eq!(within(back(oldest - 1)), [before]);
        let on = |order| (Bound::Excluded(order), Bound::Unbounded);
        assert_eq!(within(on(9)), [(oldest, newest), behind]);
        assert_eq!(within(on(10)), [(11, i64::MAX)]);
        assert_eq!(within(on(oldest)), [(oldest + 1, newest), behind]);
        assert_eq!(within(on(newest)), [behind]);
        assert_eq!(within(on(i64::MIN)), [before, (oldest, newest), behind]);
    }

    #[test]
    fn a_timeline_without_gaps_is_one_piece() {
        let orders = (Bound::Excluded(-3), Bound::Excluded(7));
        assert_eq!(pieces(&[], orders), [(-2, 6)]);
        let unfilled = Gap {
            lowest: NUMBERS,
            ..GAP
        };
        assert_eq!(pieces(&[unfilled], orders), [(-2, 6)]);
        assert_eq!(unfilled.behind(), 11);
    }
}
