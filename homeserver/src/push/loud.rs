//! Which events of a room the server's own rules may tell anybody of: all but members' coming and going.
//!
//! Much of what happens in a large room is that, so a count that begins far back passes it by. It is found
//! once for all users of a room, and what is newer is added when the next one asks.
//! Spec: client-server API, "Push Rules: Predefined Rules", `.m.rule.member_event`.

use std::{ops::Bound, sync::Arc};

use quick_cache::{Weighter, sync::Cache};
use ruma::events::{TimelineEventType, room::member::MembershipState};
use store::{
    Store, StoreError,
    keys::RoomNum,
    kv::Direction,
    rooms::{RoomView, TimelineEvent},
};

use super::unread::WALK_EVENTS_MAX;
use crate::rooms::members::MemberContent;

/// How much memory it may use, in bytes.
const BYTES_MAX: u64 = 4 << 20;

/// The loud events of a stretch of a room's timeline.
#[derive(Clone, Debug)]
struct Stretch {
    /// It begins behind this order,
    after: i64,
    /// and ends with this one.
    upto: i64,
    /// Whether no more is looked for further back, as it would be too much.
    is_long: bool,
    /// Orders, oldest first; at most [`WALK_EVENTS_MAX`].
    loud: Vec<i64>,
}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<RoomNum, Arc<Stretch>> for Weigh {
    fn weight(&self, _: &RoomNum, stretch: &Arc<Stretch>) -> u64 {
        96 + 8 * stretch.loud.len() as u64
    }
}

/// What is remembered, by room.
#[derive(Debug)]
pub struct Loud(Cache<RoomNum, Arc<Stretch>, Weigh>);

impl Default for Loud {
    fn default() -> Self {
        Self(Cache::with_weighter(4_096, BYTES_MAX, Weigh))
    }
}

impl Loud {
    /// The orders of the loud events in `lower < order < tail` that are older than what the view has in
    /// memory (`tail`), oldest first: of the newest [`WALK_EVENTS_MAX`] events at least.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn before_tail(
        &self,
        store: &Store,
        view: &RoomView,
        lower: i64,
    ) -> Result<Vec<i64>, StoreError> {
        let Some(tail) = view.tail.front().map(|first| first.order) else {
            return Ok(Vec::new());
        };
        let old = self.0.get(&view.room);
        let covers = |old: &Arc<Stretch>| {
            old.upto >= tail.saturating_sub(1) && (old.after <= lower || old.is_long)
        };
        let stretch = match old {
            Some(old) if covers(&old) => old,
            old => {
                let old = old.map(|old| Stretch::clone(&old));
                let stretch = Arc::new(Stretch::extended(old, store, view.room, lower, tail)?);
                self.0.insert(view.room, stretch.clone());
                stretch
            }
        };
        let first = stretch.loud.partition_point(|order| *order <= lower);
        let end = stretch.loud.partition_point(|order| *order < tail);
        Ok(stretch.loud.get(first..end).unwrap_or_default().to_vec())
    }
}

impl Stretch {
    /// What lies in `lower < order < tail`, and what was found before.
    fn extended(
        old: Option<Self>,
        store: &Store,
        room: RoomNum,
        lower: i64,
        tail: i64,
    ) -> Result<Self, StoreError> {
        let mut stretch = old.unwrap_or(Self {
            after: tail.saturating_sub(1),
            upto: tail.saturating_sub(1),
            is_long: false,
            loud: Vec::new(),
        });
        let (newer, too_many) = walk(store, room, stretch.upto, tail)?;
        if too_many {
            stretch = Self {
                after: lower,
                upto: tail.saturating_sub(1),
                is_long: true,
                loud: newer,
            };
        } else {
            stretch.upto = stretch.upto.max(tail.saturating_sub(1));
            stretch.loud.extend(newer);
        }
        if stretch.after > lower && !stretch.is_long {
            let end = stretch.after.saturating_add(1);
            let (mut older, too_many) = walk(store, room, lower, end)?;
            older.append(&mut stretch.loud);
            stretch.loud = older;
            stretch.after = lower;
            stretch.is_long = too_many;
        }
        let surplus = stretch.loud.len().saturating_sub(WALK_EVENTS_MAX);
        if surplus > 0 {
            stretch.loud.drain(..surplus);
            stretch.is_long = true;
        }
        Ok(stretch)
    }
}

/// The loud ones of the newest [`WALK_EVENTS_MAX`] events in `lower < order < end`, oldest first, and
/// whether there are more events.
fn walk(
    store: &Store,
    room: RoomNum,
    lower: i64,
    end: i64,
) -> Result<(Vec<i64>, bool), StoreError> {
    let mut loud = Vec::new();
    let mut walked = 0;
    if lower.saturating_add(1) < end {
        let orders = (Bound::Excluded(lower), Bound::Excluded(end));
        store.walk_timeline(room, orders, Direction::Descending, |event| {
            if is_loud(&event) {
                loud.push(event.order);
            }
            walked += 1;
            Ok(walked < WALK_EVENTS_MAX)
        })?;
    }
    loud.reverse();
    Ok((loud, walked == WALK_EVENTS_MAX))
}

/// Whether the server's own rules may tell anybody of an event.
fn is_loud(event: &TimelineEvent) -> bool {
    let pdu = &event.pdu;
    if *pdu.kind() != TimelineEventType::RoomMember || pdu.state_key().is_none() {
        return true;
    }
    let content: Option<MemberContent> = pdu.content_as();
    content.is_none_or(|content| {
        !matches!(
            content.membership,
            MembershipState::Join | MembershipState::Leave | MembershipState::Ban
        )
    })
}
