//! History from before this server was in a room, asked of servers that were.
//!
//! It goes behind the oldest event of the timeline, never to its live end. The state before the oldest new event is
//! asked for, too, so that the visibility of each is this server's own finding.
//! Spec: server-server API, "Backfilling and retrieving missing events".

use std::{ops::Bound, sync::Arc};

use federation::{
    event::Pdu,
    room::{StateMap, auth::Verdict},
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UInt,
    api::{
        self,
        federation::{backfill::get_backfill, event::get_event_by_timestamp},
    },
    events::TimelineEventType,
};
use store::{
    Commit,
    keys::RoomNum,
    kv::Direction,
    rooms::{RoomView, Standing, TimelineEvent},
};

use super::{
    Turn, foreign, gap,
    receive::Receiving,
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
        let request = get_backfill::v1::Request::new(
            room_id.to_owned(),
            vec![oldest.pdu.event_id().to_owned()],
            UInt::from(EVENTS_MAX),
        );
        let answer = match peers::ask(app, server, request).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::info!(%room_id, %server, %error, "history could not be had");
                continue;
            }
        };
        let mut raw = answer.pdus;
        raw.truncate(EVENTS_MAX as usize);
        let mut events = foreign::checked(app, room_id, view.rules, &raw).await;
        let mut new = Vec::new();
        for pdu in events.drain(..) {
            if app.store.event(pdu.event_id())?.is_none() {
                new.push(pdu);
            }
        }
        new.sort_by_key(|pdu| pdu.depth());
        let Some(first) = new.first() else {
            continue;
        };
        let mut receiving = Receiving::new(app, server, room, room_id, view.rules);
        let before = if first.prev_events().is_empty() {
            StateMap::new()
        } else {
            match gap::state_before(&mut receiving, first.event_id()).await {
                Ok(before) => before,
                Err(error) => {
                    tracing::info!(%room_id, %server, reason = %error.message, "history is left out");
                    continue;
                }
            }
        };
        let mut turn = app.rooms.turn(app, room_id).await?;
        let mut commit = Commit::new();
        let added = turn.add_history(&mut commit, &new, before, oldest.order)?;
        turn.finish(commit).await?.flushed().await?;
        if added {
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
    /// Adds history behind the oldest event of the timeline, which has the order `oldest`; whether any was added.
    ///
    /// `events` come oldest first, `state` is the state before the first of them. An event that the authorisation
    /// rules do not allow is kept as rejected.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn add_history(
        &mut self,
        commit: &mut Commit,
        events: &[Arc<Pdu>],
        mut state: StateMap,
        oldest: i64,
    ) -> ApiResult<bool> {
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let mut order = oldest.min(0).saturating_sub(count);
        let mut added = false;
        for pdu in events {
            let allowed = *pdu.kind() == TimelineEventType::RoomCreate
                || matches!(self.judge_upon(pdu, &state, &state), Verdict::Accepted);
            if !allowed {
                let rejected = Arc::new(pdu.as_rejected());
                self.put_aside(commit, &rejected, Standing::Rejected, Some(state.clone()));
                continue;
            }
            let after = state_after(&state, pdu);
            let (redacted_by, written) = self.emptied_before(pdu)?;
            let event = TimelineEvent {
                room: self.room,
                order,
                pdu: written,
                state_before: self.head.number(commit, self.room, &state),
                state_after: self.head.number(commit, self.room, &after),
                replaces: replaced(&state, pdu),
                redacted_by,
                txn: None,
            };
            commit.history(&event);
            commit.delete_aside(pdu.event_id());
            self.remember(Placed {
                pdu: pdu.clone(),
                standing: None,
                after: Some(after.clone()),
            });
            state = after;
            order += 1;
            added = true;
        }
        Ok(added)
    }
}
