//! What other servers are sent, without being asked: events of the rooms they are in, and EDUs.
//!
//! One reader of the log hands each event and change to the [queues](federation::wire::queue) of those whom
//! it concerns. Its place in the log is written at most once a second, and never beyond an event that waits
//! in memory: nothing is lost by a crash, and what is sent twice then is known to the receiver by its ID. A
//! destination that is down has nothing in memory but its numbers: the newest event of each room that it
//! misses is a row ([`rows`]), as are the messages to its users' devices and the users of whose devices it
//! has to be told.
//!
//! A transaction gets an ID that is drawn, and is written down when it fails the first time, so that it can be
//! sent again as it was, also after a restart. One that is under way when the process is killed is made
//! again under another ID: events are told apart by their own IDs, messages to devices by theirs.
//!
//! Reading order: [`reader`] (what concerns whom, and when it is sent) → [`servers`] (who is in a room) →
//! [`outbox`] (what goes into a transaction) → [`devices`] (device lists) → [`moments`] (typing, receipts,
//! presence) → [`messages`] (to-device).
//! Spec: server-server API, "Transactions", "PDUs", "EDUs".

mod devices;
pub mod messages;
mod moments;
mod outbox;
mod reader;
mod rows;
mod servers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use federation::wire::queue::{Condition, Saved};
use ruma::{EventId, OwnedServerName, ServerName};
use store::{
    Commit, Store,
    keys::{Keyspace, Packed, Position, Unpack},
    kv::Direction,
    log::Change,
};
use tokio::sync::Notify;

pub use self::reader::begin;
use self::rows::DESTINATIONS;
use crate::{error::ApiResult, server::App};

/// What is shown of the reader, and how it is reached.
#[derive(Debug, Default)]
pub struct Outgoing {
    shared: Mutex<Shared>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Shared {
    /// The destinations that are in memory.
    shown: BTreeMap<OwnedServerName, Shown>,
    /// Those that are down and have asked something since.
    heard: BTreeSet<OwnedServerName>,
}

#[derive(Clone, Debug)]
struct Shown {
    saved: Saved,
    condition: Condition,
}

/// A destination, as an admin sees it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Which server.
    pub server: OwnedServerName,
    /// When it failed first, if it does not take anything now; in milliseconds since the epoch.
    pub failing_since_ms: Option<u64>,
    /// When it failed last; 0 if it does not fail.
    pub failed_ms: u64,
    /// How long is waited between the last failure and the next attempt, in milliseconds.
    pub wait_ms: u64,
    /// The newest position of the log that it has acknowledged; 0 if there is none.
    pub acknowledged: Position,
}

impl Destination {
    fn of(server: OwnedServerName, saved: &Saved) -> Self {
        let down = saved.failures > 0;
        Self {
            server,
            failing_since_ms: saved.failing_since_ms.filter(|_| down),
            failed_ms: if down { saved.failed_ms } else { 0 },
            wait_ms: if down {
                saved.retry_at_ms.saturating_sub(saved.failed_ms)
            } else {
                0
            },
            acknowledged: saved.acknowledged,
        }
    }
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server asked something, or an admin says that it is back: if it is left alone for a while, that ends.
    /// Whether it was.
    pub fn heard(&self, server: &ServerName) -> bool {
        let mut shared = self.lock();
        let down = shared
            .shown
            .get(server)
            .is_some_and(|shown| shown.condition == Condition::Down);
        if down && shared.heard.insert(server.to_owned()) {
            self.wake.notify_one();
        }
        down
    }

    /// How many destinations that are in memory are in each condition.
    pub fn conditions(&self) -> [(Condition, u64); 3] {
        let all = [Condition::Up, Condition::CatchingUp, Condition::Down];
        let shared = self.lock();
        all.map(|condition| {
            let shown = shared.shown.values();
            let count = shown.filter(|shown| shown.condition == condition).count();
            (condition, count as u64)
        })
    }

    /// One destination; `None` when nothing was ever sent there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn destination(
        &self,
        store: &Store,
        server: &ServerName,
    ) -> ApiResult<Option<Destination>> {
        if let Some(shown) = self.lock().shown.get(server) {
            return Ok(Some(Destination::of(server.to_owned(), &shown.saved)));
        }
        let saved = store.get(DESTINATIONS, DESTINATIONS.key().text(server.as_str()))?;
        Ok(saved.map(|saved| Destination::of(server.to_owned(), &saved)))
    }

    /// Every destination, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn destinations(&self, store: &Store) -> ApiResult<Vec<Destination>> {
        let mut all = BTreeMap::new();
        store.visit(&DESTINATIONS.key(), Direction::Ascending, |key, value| {
            let name = Unpack::key(key)
                .text()
                .and_then(|name| name.try_into().ok());
            let saved = serde_json::from_slice(value).ok();
            if let (Some(name), Some(saved)) = (name, saved) {
                let name: OwnedServerName = name;
                all.insert(name.clone(), Destination::of(name, &saved));
            }
            Ok(true)
        })?;
        for (name, shown) in &self.lock().shown {
            all.insert(name.clone(), Destination::of(name.clone(), &shown.saved));
        }
        Ok(all.into_values().collect())
    }
}

/// Sends an event of another server's user on to the servers in its room: this server was asked to let the
/// user in or out, and the others learn of it from here. Belongs into the commit that adds the event.
///
/// Spec: server-server API, "Joining Rooms", "Leaving Rooms", "Knocking upon a room".
pub fn also(commit: &mut Commit, event_id: &EventId) {
    commit.log(Change::Relay {
        event_id: event_id.to_owned(),
    });
}

/// Whether this server sends anything to others.
pub fn is_on(app: &App) -> bool {
    app.config.federation.enabled
}

/// The name of a condition, in metrics.
pub fn condition_name(condition: Condition) -> &'static str {
    match condition {
        Condition::Up => "up",
        Condition::CatchingUp => "catching_up",
        Condition::Down => "down",
    }
}

fn cursor() -> Packed {
    Packed::key(Keyspace::CURSOR).text("federation")
}
