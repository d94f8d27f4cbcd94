//! History from before this server was in a room, and what is missing in a gap, asked of servers that have it.
//!
//! It goes behind the oldest event of the timeline, or into the gap, never to the live end. States that do not follow
//! from what is known are asked for, too, so that the visibility of each event is this server's own finding.
//! Where a gap lies in the order of a timeline: `spec/decisions/0007-gaps.md`.
//! Spec: server-server API, "Backfilling and retrieving missing events".

mod fetched;

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use federation::{event::Pdu, room::auth::Verdict};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UInt,
    api::{self, federation::event::get_event_by_timestamp},
    events::TimelineEventType,
};
use store::{
    Commit,
    keys::RoomNum,
    kv::Direction,
    rooms::{Gap, GapRow, RoomView, Standing, TimelineEvent},
};

use self::fetched::Past;
use super::{
    Turn,
    accept::{Missing, StatesAfter},
    served,
    steps::{replaced, state_after},
    turn::Placed,
};
use crate::{error::ApiResult, peers, server::App};

/// How many events are asked for at a time.
const EVENTS_MAX: u32 = 100;

/// How often history is asked for to reach a time.
const ROUNDS_MAX: usize = 10;

/// How many servers are asked, one after the other.
const SERVERS_MAX: usize = 3;

/// How many events of a gap are known by their IDs only; what is behind further ones is not asked for.
const WANTS_MAX: usize = 100;

/// Behind how many of them is asked at a time.
const WANTS_ASKED_MAX: usize = 20;

/// Asks for what was before the oldest event that is known; whether there is more now.
///
/// # Errors
/// When the store cannot be read or written. Servers that cannot be asked are none.
pub async fn backfill(app: &App, room_id: &RoomId, room: RoomNum) -> ApiResult<bool> {
    let Some(view) = app.store.room(room)? else {
        return Ok(false);
    };
    let _receiving = app.rooms.receiving(room).await;
    let Some(oldest) = oldest(app, room)? else {
        return Ok(false);
    };
    if is_beginning(app, &oldest)? {
        return Ok(false);
    }
    let servers = served::residents(app, &view)?;
    let others = servers.iter().filter(|server| *server != app.server_name());
    for server in others.take(SERVERS_MAX) {
        let from = vec![oldest.pdu.event_id().to_owned()];
        let events = fetched::from(app, &view, server, from).await?;
        let Some(past) = fetched::past(app, &view, server, events).await? else {
            continue;
        };
        let count = i64::try_from(past.events.len()).unwrap_or(i64::MAX);
        let first = oldest.order.min(0).saturating_sub(count);
        let mut turn = app.rooms.turn(app, room_id).await?;
        let mut commit = Commit::new();
        let added = turn.add_past(&mut commit, &past, |at| first + at).await?;
        turn.finish(commit).await?.flushed().await?;
        if added {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Asks for what is missing in a gap of the timeline, the newest of it first; whether more is known now.
///
/// A gap in which nothing more can be had stays one.
///
/// # Errors
/// When the store cannot be read or written. Servers that cannot be asked are none.
pub async fn fill(app: &App, view: &RoomView, gap: Gap) -> ApiResult<bool> {
    let room = view.room;
    let _receiving = app.rooms.receiving(room).await;
    let Some(mut row) = app.store.gap(room, gap.position)? else {
        return Ok(false);
    };
    if row.wants.is_empty() || row.lowest != gap.lowest {
        // Somebody else asked meanwhile.
        return Ok(true);
    }
    let servers = served::residents(app, view)?;
    let others = servers.iter().filter(|server| *server != app.server_name());
    for server in others.take(SERVERS_MAX) {
        let from = row.wants.iter().take(WANTS_ASKED_MAX).cloned().collect();
        let mut events = fetched::from(app, view, server, from).await?;
        events.retain(|pdu| pdu.depth() >= row.floor);
        fetched::keep_behind(&mut events, &row.wants);
        let surplus = events.len().saturating_sub(row.room_left());
        events.drain(..surplus);
        let Some(past) = fetched::past(app, view, server, events).await? else {
            continue;
        };
        let known = row.wants.clone();
        row.lowest -= i64::try_from(past.events.len()).unwrap_or(i64::MAX);
        let mut turn = app.rooms.turn(app, &view.room_id).await?;
        let mut commit = Commit::new();
        let first = gap.order(row.lowest);
        let added = turn.add_past(&mut commit, &past, |at| first + at).await?;
        row.wants = turn.still_missing(&past.events, &row)?;
        if row.room_left() == 0 {
            row.wants.clear();
        }
        commit.gap(room, gap.position, &row);
        turn.finish(commit).await?.flushed().await?;
        if added || row.wants != known {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Asks for history until it reaches the event that other servers say is nearest to a time, in milliseconds since
/// the epoch, if that is before all that is known; whether there is more now.
///
/// It is not reached when it lies more than [`ROUNDS_MAX`] times [`EVENTS_MAX`] events back.
///
/// # Errors
/// When the store cannot be read or written. Servers that cannot be asked are none.
pub async fn towards(
    app: &App,
    view: &RoomView,
    timestamp_ms: u64,
    direction: Direction,
) -> ApiResult<bool> {
    let Some(oldest) = oldest(app, view.room)? else {
        return Ok(false);
    };
    let is_before = u64::from(oldest.pdu.origin_server_ts().get()) > timestamp_ms;
    if !app.config.federation.enabled || !is_before || is_beginning(app, &oldest)? {
        return Ok(false);
    }
    let Some(nearest) = nearest_elsewhere(app, view, timestamp_ms, direction).await? else {
        return Ok(false);
    };
    let mut any = false;
    for _ in 0..ROUNDS_MAX {
        if app.store.event(&nearest)?.is_some() || !backfill(app, &view.room_id, view.room).await? {
            break;
        }
        any = true;
    }
    Ok(any)
}

/// The event nearest to a time, as the first server says that knows one.
async fn nearest_elsewhere(
    app: &App,
    view: &RoomView,
    timestamp_ms: u64,
    direction: Direction,
) -> ApiResult<Option<OwnedEventId>> {
    let direction = match direction {
        Direction::Ascending => api::Direction::Forward,
        Direction::Descending => api::Direction::Backward,
    };
    let servers = served::residents(app, view)?;
    let others = servers.iter().filter(|server| *server != app.server_name());
    for server in others.take(SERVERS_MAX) {
        let request = get_event_by_timestamp::v1::Request::new(
            view.room_id.clone(),
            MilliSecondsSinceUnixEpoch(UInt::new_saturating(timestamp_ms)),
            direction,
        );
        match peers::ask(app, server, request).await {
            Ok(answer) => return Ok(Some(answer.event_id)),
            Err(error) => {
                tracing::info!(room_id = %view.room_id, %server, %error, "a time could not be had");
            }
        }
    }
    Ok(None)
}

/// Whether nothing is missing before an event.
fn is_beginning(app: &App, oldest: &TimelineEvent) -> ApiResult<bool> {
    for id in oldest.pdu.prev_events() {
        if app.store.event(id)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn oldest(app: &App, room: RoomNum) -> ApiResult<Option<Arc<TimelineEvent>>> {
    let mut oldest = None;
    let all = (Bound::Unbounded, Bound::Unbounded);
    app.store
        .walk_timeline(room, all, Direction::Ascending, |event| {
            oldest = Some(event);
            Ok(false)
        })?;
    Ok(oldest)
}

impl Turn {
    /// Adds events of the past, whose places `order` says by their number; whether any was added.
    ///
    /// An event that the authorisation rules do not allow is kept as rejected.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn add_past(
        &mut self,
        commit: &mut Commit,
        past: &Past,
        order: impl Fn(i64) -> i64,
    ) -> ApiResult<bool> {
        let mut added: BTreeMap<OwnedEventId, TimelineEvent> = BTreeMap::new();
        for (at, pdu) in (0_i64..).zip(&past.events) {
            let state = match past.states.get(pdu.event_id()) {
                Some(state) => Some(state.clone()),
                None => self.state_before(pdu, &StatesAfter::new(), &mut Missing::default())?,
            };
            let Some(state) = state else {
                continue;
            };
            let allowed = *pdu.kind() == TimelineEventType::RoomCreate
                || matches!(self.judge_upon(pdu, &state, &state), Verdict::Accepted);
            if !allowed {
                let rejected = Arc::new(pdu.as_rejected());
                self.put_aside(commit, &rejected, Standing::Rejected, Some(state));
                continue;
            }
            self.redact_past(commit, pdu, &mut added).await?;
            let after = state_after(&state, pdu);
            let (redacted_by, written) = self.emptied_before(pdu)?;
            let event = TimelineEvent {
                room: self.room,
                order: order(at),
                pdu: written,
                state_before: self.head.number(commit, self.room, &state),
                state_after: self.head.number(commit, self.room, &after),
                replaces: replaced(&state, pdu),
                redacted_by,
                txn: None,
            };
            added.insert(pdu.event_id().to_owned(), event);
            commit.delete_aside(pdu.event_id());
            self.remember(Placed {
                pdu: pdu.clone(),
                standing: None,
                after: Some(after),
            });
        }
        for event in added.values() {
            commit.history(event);
        }
        Ok(!added.is_empty())
    }

    /// Empties what an event of the past redacts, among those that are added with it, or known before.
    async fn redact_past(
        &self,
        commit: &mut Commit,
        redaction: &Pdu,
        added: &mut BTreeMap<OwnedEventId, TimelineEvent>,
    ) -> ApiResult<()> {
        if *redaction.kind() != TimelineEventType::RoomRedaction {
            return Ok(());
        }
        match redaction.redacts().and_then(|id| added.get_mut(id)) {
            Some(target) => {
                if let Some(left) = self.emptied_by(redaction, &target.pdu)? {
                    target.pdu = left;
                    target.redacted_by = Some(redaction.event_id().to_owned());
                }
            }
            None => {
                if let Some(rewrite) = self.empty(commit, redaction).await? {
                    commit.rewrite(rewrite);
                }
            }
        }
        Ok(())
    }

    /// What is missing of a gap after some of it was placed.
    fn still_missing(&self, events: &[Arc<Pdu>], gap: &GapRow) -> ApiResult<Vec<OwnedEventId>> {
        let before = events.iter().filter(|pdu| pdu.depth() > gap.floor);
        let before = before.flat_map(|pdu| pdu.prev_events());
        let mut wants = Vec::new();
        for id in gap.wants.iter().chain(before) {
            let placed = self.placed(id)?;
            if placed.is_none_or(|placed| placed.after.is_none()) && !wants.contains(id) {
                wants.push(id.clone());
            }
        }
        wants.truncate(WANTS_MAX);
        Ok(wants)
    }

    /// The gap that a new join leaves behind what was known before; `None` if all that it is built upon is known.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn gap_since(&self, join: &Pdu) -> ApiResult<Option<GapRow>> {
        let mut gap = GapRow::new(join.prev_events().to_vec(), self.head.entered_depth);
        gap.wants = self.still_missing(&[], &gap)?;
        Ok((!gap.wants.is_empty()).then_some(gap))
    }
}
