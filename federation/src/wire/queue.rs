//! What waits for one destination, and when it is sent.
//!
//! A machine without a clock, a network or a disk: the caller tells it what happened ([`handle`]) and asks
//! what to do ([`next`]). At most one transaction is under way. One that fails is sent again as it was, under
//! the same ID, before any other.
//!
//! Three kinds of things wait, and are kept apart:
//!
//! - *events*: here while the destination keeps up, at most [`EVENTS_MAX`]. If it fails or falls behind, they
//!   leave by [`take_spilled`]: the caller writes down the newest of each room, and that is all that is sent
//!   when the destination is back. It asks for the others if it wants them.
//! - *kept* EDUs, messages to devices and device lists, which must arrive: they are in the caller's store
//!   only; here is known whether there are any.
//! - *moments*: typing, receipts, presence. True only for a while, so a destination that fails loses them, and
//!   so do more than [`MOMENTS_MAX`].
//!
//! So a destination that is down has nothing in memory but the numbers below, however long it is down.
//!
//! Times are milliseconds since the epoch, not of a monotonic clock, because they outlive the process: who
//! was gone for a week is still gone after a restart. A clock that is set back costs at most one wait of
//! [`BACKOFF_MS_LONGEST`].
//!
//! Spec: server-server API, "Transactions" (one at a time, the same again until it is answered). How long to
//! wait between attempts is not specified.
//!
//! [`handle`]: DestinationQueue::handle
//! [`next`]: DestinationQueue::next
//! [`take_spilled`]: DestinationQueue::take_spilled

mod moments;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::moments::Moments;
pub use self::moments::{EDUS_OF_MOMENTS_MAX, MOMENTS_MAX, Moment};
use super::transaction::PDUS_MAX;
use crate::event::Pdu;

/// How many events of one destination wait in memory. One that has more waiting is behind.
pub const EVENTS_MAX: usize = 200;

/// How long to wait after the first failure, in milliseconds.
///
/// Short, because most failures are restarts of the peer and take seconds.
pub const BACKOFF_MS_MIN: u64 = 10_000;

/// How long to wait at most while a destination is not gone for long, in milliseconds: an hour.
///
/// Each wait is twice the one before. An hour is what a peer that comes back after a night may miss without
/// anybody's doing; a peer that comes back earlier mostly asks something first, which ends the wait.
pub const BACKOFF_MS_MAX: u64 = 3_600_000;

/// How long to wait at most for a destination that is gone for long, in milliseconds: a day.
///
/// Most servers that are gone for a week never return, and there are hundreds of them in large rooms. The
/// wait is a seventh of the time that a destination is gone, once that is more than [`BACKOFF_MS_MAX`]: it
/// grows to a day at the end of a week.
pub const BACKOFF_MS_LONGEST: u64 = 86_400_000;

/// Which part of the time that a destination is gone is waited, if that is longer than [`BACKOFF_MS_MAX`].
const GONE_PARTS: u64 = 7;

/// An event for a destination.
#[derive(Clone, Debug)]
pub struct QueuedEvent {
    /// Where the caller's log says that it is to be sent; events are queued in this order.
    pub position: u64,
    /// Where it is itself, in the log or its room: by this the caller finds it again.
    pub place: u64,
    /// Its room, by the caller's numbers.
    pub room: u64,
    /// The event.
    pub pdu: Arc<Pdu>,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// There is an event for the destination.
    Event(QueuedEvent),
    /// There are kept EDUs for it in the store.
    Kept,
    /// There are rooms in the store whose newest event it has not got.
    Behind,
    /// Something that is true for a while.
    Moment(Moment),
    /// The transaction of the last [`Next::Send`] is made; what of the store is not in it.
    Made {
        /// Kept EDUs are left.
        kept: bool,
        /// Rooms are left.
        behind: bool,
    },
    /// What became of the transaction that was under way.
    Done(Outcome),
    /// The destination asked something of this server, or an admin says that it is back.
    Heard,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The destination has taken it.
    Taken,
    /// It was not sent, because there was nothing in it.
    Empty,
    /// The destination will never take it: it answered with a status that says so.
    Refused,
    /// The destination was not reached, or cannot take anything now.
    Failed {
        /// How long it wants to be left alone, in milliseconds, if it said so.
        retry_after_ms: Option<u64>,
        /// How much to wait on top, in thousandths of a tenth of the wait, so that not everybody comes back in
        /// the same second. The caller draws it: 0 to 1,000.
        jitter: u32,
    },
}

/// What to do.
#[derive(Debug)]
pub enum Next {
    /// Make a transaction and send it; tell [`Input::Made`], then [`Input::Done`].
    Send(Batch),
    /// Send the last transaction again, as it was; tell [`Input::Done`].
    Again,
    /// Nothing until an input, or until this time in milliseconds.
    Wait(Option<u64>),
}

/// What goes into a transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events, oldest first.
    pub events: Vec<QueuedEvent>,
    /// EDUs that are true for a while, at most [`EDUS_OF_MOMENTS_MAX`]; they go behind the kept ones.
    pub moments: Vec<Box<RawValue>>,
    /// The store has kept EDUs.
    pub kept: bool,
    /// The store has rooms whose newest event goes first. There are no `events` then.
    pub behind: bool,
}

/// What of a queue outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Everything for it up to here in the log was taken, or waits by its room.
    #[serde(default)]
    pub acknowledged: u64,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// When the first of them was, in milliseconds since the epoch.
    #[serde(default)]
    pub failing_since_ms: Option<u64>,
    /// When the last of them was.
    #[serde(default)]
    pub failed_ms: u64,
    /// When to try again.
    #[serde(default)]
    pub retry_at_ms: u64,
    /// A transaction has to be sent again, as it was.
    #[serde(default)]
    pub again: bool,
}

/// What a destination is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// It has everything, or is being sent it.
    Up,
    /// It is being sent what it missed.
    CatchingUp,
    /// It failed, and is left alone for a while.
    Down,
}

/// What waits for one destination.
#[derive(Debug, Default)]
pub struct DestinationQueue {
    saved: Saved,
    under_way: bool,
    /// The events in the transaction that is under way: first and last position.
    flying: Option<(u64, u64)>,
    events: VecDeque<QueuedEvent>,
    moments: Moments,
    kept: bool,
    behind: bool,
    spilled: BTreeMap<u64, u64>,
}

impl DestinationQueue {
    /// The queue of a destination as it was when the process ended.
    pub fn restore(saved: Saved) -> Self {
        Self {
            saved,
            ..Self::default()
        }
    }

    /// What has to outlive the process.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Tells what happened at `now_ms`.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        match input {
            Input::Event(event) => self.event(event),
            Input::Kept => self.kept = true,
            Input::Behind => self.behind = true,
            Input::Moment(moment) => {
                if !self.is_down() {
                    self.moments.add(moment);
                }
            }
            Input::Made { kept, behind } => {
                self.kept |= kept;
                self.behind |= behind;
            }
            Input::Done(outcome) => self.done(now_ms, outcome),
            Input::Heard => {
                if self.is_down() {
                    // One more failure begins anew: the peer is known to be there.
                    self.saved.failures = 0;
                    self.saved.failing_since_ms = None;
                    self.saved.retry_at_ms = 0;
                }
            }
        }
    }

    /// What to do at `now_ms`. Asked again after every answer but [`Next::Wait`].
    pub fn next(&mut self, now_ms: u64) -> Next {
        if self.under_way {
            return Next::Wait(None);
        }
        if self.is_down() && !self.is_due(now_ms) {
            return Next::Wait(Some(self.saved.retry_at_ms));
        }
        if self.saved.again {
            self.under_way = true;
            return Next::Again;
        }
        if self.has_nothing() {
            return Next::Wait(None);
        }
        self.under_way = true;
        Next::Send(self.batch())
    }

    /// The place of the newest event of each room whose events left the queue unsent since this was called last. Each
    /// has to be written down before the caller's place in its log is.
    pub fn take_spilled(&mut self) -> BTreeMap<u64, u64> {
        std::mem::take(&mut self.spilled)
    }

    /// The first event that is here and not taken yet: the caller has to read its log from there again.
    pub fn oldest(&self) -> Option<u64> {
        let flying = self.flying.map(|(first, _)| first);
        flying.or_else(|| self.events.front().map(|event| event.position))
    }

    /// Whether nothing would be lost by forgetting the queue, but [`DestinationQueue::saved`].
    pub fn is_idle(&self) -> bool {
        !self.under_way && !self.is_down() && !self.saved.again && self.has_nothing()
    }

    /// What the destination is doing.
    pub fn condition(&self) -> Condition {
        if self.is_down() {
            Condition::Down
        } else if self.behind || self.saved.again {
            Condition::CatchingUp
        } else {
            Condition::Up
        }
    }

    fn is_down(&self) -> bool {
        self.saved.failures > 0
    }

    fn is_due(&self, now_ms: u64) -> bool {
        let wait = self.saved.retry_at_ms.saturating_sub(now_ms);
        // More than anybody waits: the clock was set back.
        wait == 0 || wait > BACKOFF_MS_LONGEST + BACKOFF_MS_LONGEST / 10
    }

    fn has_nothing(&self) -> bool {
        self.events.is_empty() && self.moments.is_empty() && !self.kept && !self.behind
    }

    fn event(&mut self, event: QueuedEvent) {
        if event.position <= self.saved.acknowledged {
            return;
        }
        let spills = self.behind || self.saved.again || self.is_down();
        self.events.push_back(event);
        if spills || self.events.len() > EVENTS_MAX {
            self.spill();
        }
    }

    /// Gives up all events that wait: what the destination gets instead is the newest of each room.
    fn spill(&mut self) {
        for event in self.events.drain(..) {
            self.spilled.insert(event.room, event.place);
            self.behind = true;
        }
    }

    fn batch(&mut self) -> Batch {
        let behind = std::mem::take(&mut self.behind);
        let mut batch = Batch {
            kept: std::mem::take(&mut self.kept),
            moments: self.moments.take(),
            events: Vec::new(),
            behind,
        };
        if !behind {
            let count = self.events.len().min(PDUS_MAX);
            batch.events = self.events.drain(..count).collect();
        }
        let ends = batch.events.first().zip(batch.events.last());
        self.flying = ends.map(|(first, last)| (first.position, last.position));
        batch
    }

    fn done(&mut self, now_ms: u64, outcome: Outcome) {
        self.under_way = false;
        let flying = self.flying.take();
        match outcome {
            Outcome::Empty => {}
            Outcome::Taken | Outcome::Refused => {
                let last = flying.map_or(0, |(_, last)| last);
                self.saved = Saved {
                    acknowledged: self.saved.acknowledged.max(last),
                    ..Saved::default()
                };
            }
            Outcome::Failed {
                retry_after_ms,
                jitter,
            } => {
                let since_ms = *self.saved.failing_since_ms.get_or_insert(now_ms);
                self.saved.failures = self.saved.failures.saturating_add(1);
                let gone_ms = now_ms.saturating_sub(since_ms);
                let wait = backoff_ms(self.saved.failures, gone_ms);
                let wait = wait.max(retry_after_ms.unwrap_or(0).min(BACKOFF_MS_LONGEST));
                let extra = wait / 10 * u64::from(jitter.min(1_000)) / 1_000;
                self.saved.failed_ms = now_ms;
                self.saved.retry_at_ms = now_ms.saturating_add(wait + extra);
                self.saved.again = true;
                self.moments.clear();
                self.spill();
            }
        }
    }
}

/// How long to wait after `failures` failures in a row, of a destination that is gone for `gone_ms`; both in
/// milliseconds.
///
/// Doubles from [`BACKOFF_MS_MIN`] up to [`BACKOFF_MS_MAX`], and on to [`BACKOFF_MS_LONGEST`] as the
/// destination stays away.
pub fn backoff_ms(failures: u32, gone_ms: u64) -> u64 {
    let longest = (gone_ms / GONE_PARTS).clamp(BACKOFF_MS_MAX, BACKOFF_MS_LONGEST);
    let doublings = failures.saturating_sub(1).min(32);
    BACKOFF_MS_MIN
        .saturating_mul(1_u64 << doublings)
        .min(longest)
}
