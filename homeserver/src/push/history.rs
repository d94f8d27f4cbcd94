//! What a user was told of before: `GET /notifications`.
//!
//! It is found when it is asked for, by evaluating the newest events of the user's rooms, and not kept: a
//! row for each member and message would cost every room for an endpoint that hardly any client calls.
//! At most [`WALK_EVENTS_MAX`] events are evaluated for an answer; the token behind them leads on.
//! Spec: client-server API, "GET /notifications".

use std::{
    collections::{BTreeMap, BinaryHeap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use ruma::{OwnedUserId, push::Action};
use serde_json::{Value, json};
use store::{
    keys::RoomNum,
    kv::Direction,
    rooms::{Membership, TimelineEvent},
};

use super::{
    evaluate::{Judge, wishes},
    unread::{Floors, thread_of},
};
use crate::{
    error::ApiResult,
    http::Caller,
    rooms::read::{Format, Sight, client_event},
    server::App,
};

/// How many events are evaluated for one answer.
const WALK_EVENTS_MAX: usize = 2_000;

/// How many events of a room are read together.
const READ_EVENTS_MAX: usize = 32;

/// A page of what a user was told of.
#[derive(Debug)]
pub struct Page {
    /// Newest first.
    pub notifications: Vec<Value>,
    /// The order of the last event that was looked at, if there may be more.
    pub next: Option<i64>,
}

/// One of the user's rooms, newest events first.
struct Room<'a> {
    sight: Sight,
    judge: Judge<'a>,
    floors: Floors,
    /// Events from here on down are not the user's.
    end: i64,
    read: VecDeque<Arc<TimelineEvent>>,
}

/// What a user was told of before `from`; only what stood out, if `highlight`.
///
/// # Errors
/// When the store cannot be read.
pub fn page(
    app: &App,
    caller: &Caller,
    from: Option<i64>,
    limit: usize,
    highlight: bool,
) -> ApiResult<Page> {
    let start = from.unwrap_or(i64::MAX);
    let mut rooms = BTreeMap::new();
    let mut newest = BinaryHeap::new();
    for (room, row) in app.store.user_rooms(caller.user)? {
        let position = |position| i64::try_from(position).unwrap_or(i64::MAX);
        let (end, top) = match row.membership {
            Membership::Join => (position(row.joined_at), i64::MAX),
            // Of a room that one is invited to, one is told of the invite.
            Membership::Invite => (position(row.position) - 1, position(row.position)),
            _ => continue,
        };
        let Some(entry) = enter(app, caller, room, end)? else {
            continue;
        };
        let top = top
            .min(position(entry.sight.view.position))
            .min(start.saturating_sub(1));
        if top > end {
            newest.push((top, room));
            rooms.insert(room, entry);
        }
    }
    let format = Format {
        with_room_id: true,
        reader: (caller.user, caller.device.as_deref()),
        now_ms: app.clock.now_ms(),
    };
    let mut notifications = Vec::new();
    let mut walked = 0;
    // Each room stands in the heap with a bound of what is next in it.
    while let Some((top, room)) = newest.pop() {
        let Some(entry) = rooms.get_mut(&room) else {
            continue;
        };
        let Some(order) = entry.next(app, top)? else {
            continue;
        };
        if order < top {
            newest.push((order, room));
            continue;
        }
        let Some(event) = entry.read.pop_front() else {
            continue;
        };
        walked += 1;
        if let Some(told) = entry.tell(app, event, &format, highlight)? {
            notifications.push(told);
        }
        newest.push((order.saturating_sub(1), room));
        if notifications.len() == limit || walked == WALK_EVENTS_MAX {
            return Ok(Page {
                notifications,
                next: Some(order),
            });
        }
    }
    Ok(Page {
        notifications,
        next: None,
    })
}

fn enter<'a>(
    app: &'a App,
    caller: &Caller,
    room: RoomNum,
    end: i64,
) -> ApiResult<Option<Room<'a>>> {
    let Some(view) = app.store.room(room)? else {
        return Ok(None);
    };
    let wishes = wishes(app, caller.user, &caller.user_id)?;
    let user_id: &OwnedUserId = &caller.user_id;
    Ok(Some(Room {
        judge: Judge::of(app, &view, caller.user, user_id, wishes)?,
        floors: Floors::of(&app.store, room, caller.user)?,
        sight: Sight::on(app, view, caller.user, user_id)?,
        end,
        read: VecDeque::new(),
    }))
}

impl Room<'_> {
    /// The order of the newest event up to `top`, which is then the first of `read`.
    fn next(&mut self, app: &App, top: i64) -> ApiResult<Option<i64>> {
        if self.read.is_empty() {
            let orders = (Bound::Excluded(self.end), Bound::Included(top));
            let read = &mut self.read;
            app.store.walk_timeline(
                self.sight.view.room,
                orders,
                Direction::Descending,
                |event| {
                    read.push_back(event);
                    Ok(read.len() < READ_EVENTS_MAX)
                },
            )?;
        }
        Ok(self.read.front().map(|event| event.order))
    }

    fn tell(
        &self,
        app: &App,
        event: Arc<TimelineEvent>,
        format: &Format<'_>,
        highlight: bool,
    ) -> ApiResult<Option<Value>> {
        let Some(actions) = self.judge.actions(&event) else {
            return Ok(None);
        };
        if highlight && !actions.iter().any(Action::is_highlight) {
            return Ok(None);
        }
        let thread = thread_of(&app.store, &event)?;
        let read = self.floors.cover(&thread, event.order);
        let ts = u64::from(event.pdu.origin_server_ts().get());
        let Some(seen) = self.sight.look(app, event)? else {
            return Ok(None);
        };
        Ok(Some(json!({
            "actions": &*actions,
            "event": client_event(app, &self.sight, &seen, format)?,
            "read": read,
            "room_id": self.sight.view.room_id,
            "ts": ts,
        })))
    }
}
