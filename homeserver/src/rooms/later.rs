//! Events of other servers that could not be placed because what they need could not be had: tried again later.
//!
//! Whoever sent one does not send it again. The next event of the same server brings what it is built upon, but a room
//! may be quiet for days. What waits is in memory only: after a restart that next event is waited for.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use federation::event::PDU_BYTES_MAX;
use futures_util::{StreamExt as _, stream};
use ruma::{OwnedRoomId, OwnedServerName, RoomId, ServerName};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::receive;
use crate::server::App;

/// How often an event is tried again: for half an hour.
const TRIES_MAX: u32 = 6;

/// When an event is tried again for the first time, in milliseconds after it failed; each further time it is twice as long.
const WAIT_MS: u64 = 30 * 1_000;

/// From which try on, the first one being 0, a state counts from which single events are missing.
///
/// A state with a gap makes this server refuse what others take. But what nobody has any more, or what is signed with a
/// key that nobody tells, must not stop a room for good.
const RESIGNED: u32 = 3;

/// How many events wait, of at most [`PDU_BYTES_MAX`] each.
const EVENTS_MAX: usize = 500;

/// How many of them are of one room and came from one server; the oldest go when there are more. The newest brings the
/// others.
const EVENTS_OF_ONE_MAX: usize = 4;

/// How many are tried at once.
const AT_ONCE: usize = 8;

/// The events that wait.
#[derive(Debug, Default)]
pub struct Later {
    waiting: Mutex<Vec<Waiting>>,
    more: Notify,
}

#[derive(Debug)]
struct Waiting {
    room_id: OwnedRoomId,
    origin: OwnedServerName,
    raw: Box<RawValue>,
    tries: Tries,
    due_ms: u64,
}

/// How often an event was tried before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries(u32);

impl Tries {
    /// Whether it is time to go on with less than everything.
    pub fn are_many(self) -> bool {
        self.0 >= RESIGNED
    }
}

impl Later {
    /// An event that was tried so often waits for the next try, unless that was the last.
    pub fn wait(
        &self,
        app: &App,
        room_id: &RoomId,
        origin: &ServerName,
        raw: &RawValue,
        tries: Tries,
    ) {
        if tries.0 >= TRIES_MAX || raw.get().len() > PDU_BYTES_MAX {
            return;
        }
        let new = Waiting {
            room_id: room_id.to_owned(),
            origin: origin.to_owned(),
            raw: raw.to_owned(),
            tries: Tries(tries.0 + 1),
            due_ms: app.clock.now_ms() + (WAIT_MS << tries.0),
        };
        let mut waiting = self.waiting();
        let is_of_one =
            |other: &Waiting| other.room_id == new.room_id && other.origin == new.origin;
        let mut of_one = waiting.iter().filter(|other| is_of_one(other));
        if of_one.any(|other| other.raw.get() == new.raw.get()) {
            return;
        }
        let count = waiting.iter().filter(|other| is_of_one(other)).count();
        let oldest = waiting.iter().position(is_of_one);
        if let Some(oldest) = oldest.filter(|_| count >= EVENTS_OF_ONE_MAX) {
            waiting.remove(oldest);
        }
        if waiting.len() < EVENTS_MAX {
            waiting.push(new);
            self.more.notify_one();
        }
    }

    /// Something of another server was received: a good moment for what is due.
    pub fn look(&self) {
        if !self.waiting().is_empty() {
            self.more.notify_one();
        }
    }

    fn take_due(&self, now_ms: u64) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        waiting
            .extract_if(.., |waiting| waiting.due_ms <= now_ms)
            .collect()
    }

    fn next_ms(&self) -> Option<u64> {
        self.waiting().iter().map(|waiting| waiting.due_ms).min()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries what waits when its time comes, for ever.
pub async fn run(app: App) {
    let later = &app.rooms.later;
    loop {
        let more = later.more.notified();
        let wait_ms = later
            .next_ms()
            .map(|next_ms| next_ms.saturating_sub(app.clock.now_ms()));
        match wait_ms {
            None => more.await,
            Some(wait_ms) => {
                let due = tokio::time::sleep(Duration::from_millis(wait_ms));
                tokio::select! {
                    biased;
                    () = due => {}
                    () = more => {}
                }
            }
        }
        let due = later.take_due(app.clock.now_ms());
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |waiting| {
                let app = &app;
                async move {
                    let Waiting {
                        room_id,
                        origin,
                        raw,
                        tries,
                        ..
                    } = waiting;
                    receive::again(app, &origin, &room_id, raw, tries).await;
                }
            })
            .await;
    }
}
