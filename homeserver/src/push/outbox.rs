//! What pushers are still to be told, and when: queues, one for each pusher, without any I/O.
//!
//! A pusher is told one thing at a time, in order. After a failure it waits, longer each time; what
//! cannot be told for [`GIVE_UP`] is dropped, and so is the oldest of more than [`QUEUE_MAX`]: an app
//! that comes back learns of everything by `/sync`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use ruma::push::Action;
use store::keys::{Position, RoomNum};
use tokio::time::Instant;

use super::pushers::PusherKey;

/// How many events wait for one pusher; then the oldest is dropped.
pub const QUEUE_MAX: usize = 100;

/// How many events wait for all pushers; then what is new is dropped.
pub const ITEMS_MAX: usize = 50_000;

/// How many pushers are told at the same time.
pub const SENDING_MAX: usize = 64;

/// How long a pusher waits after its first failure. Doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// How long a pusher waits at most.
const BACKOFF_MAX: Duration = Duration::from_mins(10);

/// After how long without success everything that waits is dropped.
const GIVE_UP: Duration = Duration::from_hours(24);

/// An event that a pusher is to be told of.
#[derive(Clone, Debug)]
pub struct Item {
    /// The room.
    pub room: RoomNum,
    /// Its place in the log, and in its room's timeline.
    pub position: Position,
    /// What the rule says.
    pub actions: Vec<Action>,
}

/// What a pusher is to be told next.
#[derive(Clone, Debug)]
pub enum Task {
    /// An event.
    Event(Item),
    /// Only how much there is to read.
    Badge,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Whether the count changed since the pusher was told it.
    badge: bool,
    /// What is under way: an event or not, and whether the count was due, too.
    sending: Option<(bool, bool)>,
    failures: u32,
    failing_since: Option<Instant>,
    retry_at: Option<Instant>,
}

/// The queues.
#[derive(Debug, Default)]
pub struct Outbox {
    queues: BTreeMap<PusherKey, Queue>,
    ready: BTreeSet<PusherKey>,
    waiting: BTreeSet<(Instant, PusherKey)>,
    items: usize,
    sending: usize,
    dropped: u64,
}

impl Outbox {
    /// Adds an event.
    pub fn add(&mut self, key: &PusherKey, item: Item) {
        let full = self.items >= ITEMS_MAX;
        let queue = self.queues.entry(key.clone()).or_default();
        // What is under way stays the first until it is done.
        let first = usize::from(matches!(queue.sending, Some((true, _))));
        if queue.items.len() >= QUEUE_MAX || (full && queue.items.len() > first) {
            queue.items.remove(first);
            self.items -= 1;
            self.dropped += 1;
        } else if full {
            self.dropped += 1;
            return;
        }
        queue.items.push_back(item);
        self.items += 1;
        self.settle(key);
    }

    /// The count of a pusher's user has come down.
    pub fn badge(&mut self, key: &PusherKey) {
        self.queues.entry(key.clone()).or_default().badge = true;
        self.settle(key);
    }

    /// What to do now, if anything. It must be answered by one of the methods below.
    pub fn next(&mut self, now: Instant) -> Option<(PusherKey, Task)> {
        while let Some((at, key)) = self.waiting.first().cloned()
            && at <= now
        {
            self.waiting.remove(&(at, key.clone()));
            if let Some(queue) = self.queues.get_mut(&key) {
                queue.retry_at = None;
            }
            self.settle(&key);
        }
        if self.sending >= SENDING_MAX {
            return None;
        }
        let key = self.ready.pop_first()?;
        let queue = self.queues.get_mut(&key)?;
        let badge = std::mem::take(&mut queue.badge);
        let task = match queue.items.front() {
            Some(item) => Task::Event(item.clone()),
            None => Task::Badge,
        };
        queue.sending = Some((matches!(task, Task::Event(_)), badge));
        self.sending += 1;
        Some((key, task))
    }

    /// The pusher was told.
    pub fn sent(&mut self, key: &PusherKey) {
        self.done(key, |queue, _| {
            queue.failures = 0;
            queue.failing_since = None;
        });
    }

    /// There was nothing to tell any more.
    pub fn skipped(&mut self, key: &PusherKey) {
        self.done(key, |queue, (event, badge)| queue.badge |= event && badge);
    }

    fn done(&mut self, key: &PusherKey, then: impl FnOnce(&mut Queue, (bool, bool))) {
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        let Some(under_way) = queue.sending.take() else {
            return;
        };
        self.sending -= 1;
        if under_way.0 {
            queue.items.pop_front();
            self.items -= 1;
        }
        then(queue, under_way);
        self.settle(key);
    }

    /// The pusher was not told; `jitter` between 0 and 1 spreads those who fail together.
    pub fn failed(&mut self, key: &PusherKey, now: Instant, jitter: f64) {
        let Some(queue) = self.queues.get_mut(key) else {
            return;
        };
        let Some((_, badge)) = queue.sending.take() else {
            return;
        };
        self.sending -= 1;
        queue.badge |= badge || queue.items.is_empty();
        let wait = BACKOFF_FIRST
            .saturating_mul(1 << queue.failures.min(16))
            .min(BACKOFF_MAX);
        queue.failures += 1;
        let since = *queue.failing_since.get_or_insert(now);
        if now.duration_since(since) >= GIVE_UP {
            self.items -= queue.items.len();
            self.dropped += queue.items.len() as u64;
            queue.items.clear();
            queue.badge = false;
            queue.failing_since = Some(now);
        }
        let at = now + wait + wait.mul_f64(jitter.clamp(0.0, 1.0) / 2.0);
        queue.retry_at = Some(at);
        self.waiting.insert((at, key.clone()));
    }

    /// The pusher is gone, and all that waits for it.
    pub fn forget(&mut self, key: &PusherKey) {
        if let Some(queue) = self.queues.remove(key) {
            self.items -= queue.items.len();
            self.sending -= usize::from(queue.sending.is_some());
            self.ready.remove(key);
            if let Some(at) = queue.retry_at {
                self.waiting.remove(&(at, key.clone()));
            }
        }
    }

    /// Decides whether a queue is ready, waits, or is needed no more.
    fn settle(&mut self, key: &PusherKey) {
        let Some(queue) = self.queues.get(key) else {
            return;
        };
        if queue.sending.is_some() || queue.retry_at.is_some() {
            return;
        }
        if !queue.items.is_empty() || queue.badge {
            self.ready.insert(key.clone());
        } else if queue.failures == 0 {
            self.queues.remove(key);
        }
    }

    /// The position of the oldest event that waits.
    pub fn oldest(&self) -> Option<Position> {
        let queues = self.queues.values();
        queues
            .filter_map(|queue| Some(queue.items.front()?.position))
            .min()
    }

    /// When the next pusher has waited long enough.
    pub fn wake_at(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// How many events were dropped since this was asked last.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests;
