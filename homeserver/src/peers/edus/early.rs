//! Receipts that came before the event that they are for. Kept in memory: they may be lost, and mostly wait for
//! a second.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{EventId, OwnedEventId};
use store::keys::{RoomNum, UserNum};

/// How many of them wait; the oldest ones are forgotten then.
const WAITING_MAX: usize = 10_000;

/// Receipts for events that are not known yet.
#[derive(Debug, Default)]
pub struct Early(Mutex<Inner>);

/// Whose it is, in which thread.
type Whose = (UserNum, String);

/// The receipts for one event, and how old the oldest of them is, as a number that grows.
#[derive(Debug, Default)]
struct Waiting {
    age: u64,
    receipts: BTreeMap<Whose, u64>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: BTreeMap<(RoomNum, OwnedEventId), Waiting>,
    /// The events in the order in which they were named first.
    by_age: BTreeMap<u64, (RoomNum, OwnedEventId)>,
    count: usize,
    next: u64,
}

impl Early {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the receipt of a user at `ts`, in milliseconds since the epoch.
    pub(super) fn keep(
        &self,
        room: RoomNum,
        event_id: OwnedEventId,
        user: UserNum,
        thread: String,
        ts: u64,
    ) {
        let mut inner = self.lock();
        let key = (room, event_id);
        if !inner.waiting.contains_key(&key) {
            let age = inner.next;
            inner.next += 1;
            inner.by_age.insert(age, key.clone());
            let receipts = BTreeMap::new();
            inner.waiting.insert(key.clone(), Waiting { age, receipts });
        }
        let of_event = inner.waiting.entry(key).or_default();
        if of_event.receipts.insert((user, thread), ts).is_none() {
            inner.count += 1;
        }
        while inner.count > WAITING_MAX
            && let Some((_, oldest)) = inner.by_age.pop_first()
        {
            let of_event = inner.waiting.remove(&oldest).unwrap_or_default();
            inner.count -= of_event.receipts.len();
        }
    }

    /// The receipts that waited for an event: whose, in which thread, when.
    pub(super) fn take(&self, room: RoomNum, event_id: &EventId) -> Vec<(UserNum, String, u64)> {
        let mut inner = self.lock();
        if inner.waiting.is_empty() {
            return Vec::new();
        }
        let Some(found) = inner.waiting.remove(&(room, event_id.to_owned())) else {
            return Vec::new();
        };
        inner.count -= found.receipts.len();
        inner.by_age.remove(&found.age);
        found
            .receipts
            .into_iter()
            .map(|((user, thread), ts)| (user, thread, ts))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(early: &Early, event: usize, user: u64) {
        let event_id = format!("$e{event}").try_into().unwrap();
        early.keep(RoomNum(1), event_id, UserNum(user), String::new(), 5);
    }

    fn take(early: &Early, event: usize) -> Vec<(UserNum, String, u64)> {
        let event_id: OwnedEventId = format!("$e{event}").try_into().unwrap();
        early.take(RoomNum(1), &event_id)
    }

    #[test]
    fn receipts_wait_for_their_event_and_are_given_out_once() {
        let early = Early::default();
        keep(&early, 1, 1);
        keep(&early, 1, 2);
        keep(&early, 1, 2);
        keep(&early, 2, 1);
        assert_eq!(take(&early, 3), []);
        let receipts = [1, 2].map(|user| (UserNum(user), String::new(), 5));
        assert_eq!(take(&early, 1), receipts);
        assert_eq!(take(&early, 1), []);
        assert_eq!(take(&early, 2).len(), 1);
        assert!(early.lock().by_age.is_empty());
    }

    #[test]
    fn the_oldest_are_forgotten_when_there_are_too_many() {
        let early = Early::default();
        for event in 0..=WAITING_MAX {
            keep(&early, event, 1);
        }
        assert_eq!(take(&early, 0), []);
        assert_eq!(take(&early, 1).len(), 1);
        assert_eq!(early.lock().count, WAITING_MAX - 1);
    }
}
