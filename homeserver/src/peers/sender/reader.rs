//! The reader of the log: what concerns whom, and when it is sent.

mod concern;
mod flight;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use federation::wire::queue::{DestinationQueue, Input, Saved};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use ruma::{OwnedServerName, ServerName};
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack},
};
use tokio::time::Instant;

use super::{
    Shown, cursor,
    moments::{Addressed, Telling},
    outbox::{Parcel, Sent},
    rows::{self, DESTINATIONS, Unwritten},
    servers::Servers,
};
use crate::{error::ApiResult, server::App};

/// How many entries of the log are read together.
const LOG_ENTRIES_MAX: usize = 256;

/// How often the place in the log, and what destinations miss, is written at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// How many rows wait to be written at most, unless one entry of the log makes more.
const UNWRITTEN_MAX: usize = 4_096;

/// How often it is written how far destinations are that have everything: only a restart in a bad moment and
/// admins see the difference. They stay in memory as long.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// How long to wait when the store failed.
const RETRY: Duration = Duration::from_secs(10);

/// How often an entry of the log is tried to be dealt with, when the store fails each time.
const TRIES_MAX: u32 = 6;

/// How often the clock is looked at at least: it may jump, as it does when the machine has slept.
const CLOCK_EVERY: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
struct Destination {
    queue: DestinationQueue,
    /// What is under way, and whether it was sent before.
    flight: Option<(Arc<Parcel>, bool)>,
    /// What of the queue the store has.
    written: Option<Saved>,
    wake_at_ms: Option<u64>,
}

/// Reads the log and tells other servers, for as long as the server runs. Begins where it was, or, on a server
/// that never sent anything, at the end of the log as it is now.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn begin(app: &App) -> ApiResult<impl Future<Output = ()> + Send + use<>> {
    let stored = app.store.get_raw(cursor())?;
    let position = match stored.and_then(|value| Unpack(&value).u64()) {
        Some(position) => position,
        None => {
            let position = app.store.published();
            let mut commit = Commit::new();
            commit.put_raw(cursor(), Packed::new().u64(position));
            app.store.commit(commit).await?;
            position
        }
    };
    let now = app.clock.instant();
    let mut reader = Reader {
        telling: Telling::new(app),
        lag: app.metrics.reader("federation"),
        app: app.clone(),
        position,
        written: position,
        write_at: now,
        save_at: now + SAVE_EVERY,
        servers: Servers::default(),
        destinations: BTreeMap::new(),
        ready: BTreeSet::new(),
        touched: BTreeSet::new(),
        denied: BTreeSet::new(),
        failed: (0, 0),
        wakes: BTreeSet::new(),
        unwritten: Unwritten::default(),
    };
    reader.recall()?;
    Ok(reader.run())
}

struct Reader {
    app: App,
    /// Up to where the log was read.
    position: Position,
    /// The same, for those who watch.
    lag: crate::log::Reader,
    /// Up to where a restart will not read it.
    written: Position,
    write_at: Instant,
    save_at: Instant,
    servers: Servers,
    /// Those that have something to be sent, or had lately.
    destinations: BTreeMap<OwnedServerName, Destination>,
    /// Those whose queue is to be asked what to do.
    ready: BTreeSet<OwnedServerName>,
    /// Those that something happened to since they were shown.
    touched: BTreeSet<OwnedServerName>,
    /// Those that may not be sent anything.
    denied: BTreeSet<OwnedServerName>,
    /// Which entry of the log could not be dealt with, and how often.
    failed: (Position, u32),
    /// When those that wait are to be asked, in milliseconds since the epoch.
    wakes: BTreeSet<(u64, OwnedServerName)>,
    unwritten: Unwritten,
    telling: Telling,
}

type Sending = FuturesUnordered<futures_util::future::BoxFuture<'static, (OwnedServerName, Sent)>>;

impl Reader {
    /// Takes up what waits since before a restart.
    fn recall(&mut self) -> ApiResult<()> {
        let store = self.app.store.clone();
        let rows = store.rows(DESTINATIONS, &DESTINATIONS.key(), usize::MAX)?;
        for (key, saved) in rows {
            let name = Unpack(&key).text();
            let name = name.and_then(|name| OwnedServerName::try_from(name).ok());
            if let Some(name) = name.filter(|_| saved.failures > 0 || saved.again) {
                self.touch(&name)?;
            }
        }
        for keyspace in [
            Keyspace::DESTINATION_ROOM,
            Keyspace::DESTINATION_MESSAGE,
            Keyspace::DESTINATION_USER,
        ] {
            for name in rows::destinations(&store, keyspace)? {
                self.touch(&name)?;
            }
        }
        Ok(())
    }

    async fn run(mut self) {
        let app = self.app.clone();
        let mut sending = Sending::new();
        loop {
            let pause = match self.step(&mut sending).await {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error) => {
                    tracing::error!(error = %error.message, "other servers are not told what happens; trying again");
                    Some(RETRY)
                }
            };
            let (grew, moved) = (app.store.grew().notified(), app.moments.moved().notified());
            tokio::pin!(grew, moved);
            grew.as_mut().enable();
            moved.as_mut().enable();
            if pause.is_none() && (self.has_news() || self.telling_is_due()) {
                continue;
            }
            let pause = pause.unwrap_or_else(|| self.pause());
            tokio::select! {
                biased;
                Some((server, sent)) = sending.next(), if !sending.is_empty() => {
                    self.sent(&server, sent);
                }
                () = &mut grew => {}
                () = &mut moved => {}
                () = app.outgoing.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn has_news(&self) -> bool {
        self.app.store.published() > self.position
    }

    fn telling_is_due(&self) -> bool {
        let last = self.app.moments.last();
        last > self.telling.told()
    }

    /// Does what there is to do; whether there may be more.
    async fn step(&mut self, sending: &mut Sending) -> ApiResult<bool> {
        let app = self.app.clone();
        self.lag.at(self.position);
        while let Some(Some((server, sent))) = sending.next().now_or_never() {
            self.sent(&server, sent);
        }
        for server in self.take_heard() {
            self.tell(&server, Input::Heard)?;
        }
        let now_ms = app.clock.now_ms();
        while let Some((at_ms, _)) = self.wakes.first()
            && *at_ms <= now_ms
            && let Some((_, server)) = self.wakes.pop_first()
        {
            self.ready.insert(server);
        }
        let entries = app.store.log(self.position, LOG_ENTRIES_MAX)?;
        let read = !entries.is_empty();
        for (position, entry) in entries {
            if let Err(error) = self.take(position, &entry).await {
                if !self.gives_up(position) {
                    return Err(error);
                }
                tracing::error!(error = %error.message, position, "other servers are not told of an event");
            }
            self.position = position;
            if self.unwritten.len() >= UNWRITTEN_MAX {
                self.write(false).await?;
            }
        }
        let told = self.telling.take(&app, &mut self.servers, self.position)?;
        self.address(told)?;
        self.start(sending).await?;
        let now = app.clock.instant();
        if now >= self.write_at && self.has_to_write(now) {
            self.write(now >= self.save_at).await?;
        }
        self.show();
        if read {
            tokio::task::yield_now().await;
        }
        Ok(read)
    }

    /// Whether an entry of the log has failed often enough: one damaged row must not silence the server.
    fn gives_up(&mut self, position: Position) -> bool {
        let (at, times) = self.failed;
        let times = if at == position { times + 1 } else { 1 };
        self.failed = (position, times);
        times >= TRIES_MAX
    }

    /// How long there is nothing to do, unless something happens.
    fn pause(&self) -> Duration {
        let now = self.app.clock.instant();
        let now_ms = self.app.clock.now_ms();
        let first = self.wakes.first().map(|(at_ms, _)| *at_ms);
        let at_ms = [first, self.telling.wake_at_ms(&self.app)];
        let at_ms = at_ms.into_iter().flatten().min();
        let until = at_ms.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms)));
        let write = if self.held() != self.written || !self.unwritten.is_empty() {
            Some(self.write_at.saturating_duration_since(now))
        } else if self.destinations.values().any(Destination::is_unsaved) {
            // Not before anything may be written again: until then there would be nothing to do, over and over.
            let at = self.save_at.max(self.write_at);
            Some(at.saturating_duration_since(now))
        } else {
            None
        };
        [until, write]
            .into_iter()
            .flatten()
            .fold(CLOCK_EVERY, Duration::min)
    }

    /// A destination, as the store has it if it is not in memory.
    fn touch(&mut self, server: &ServerName) -> ApiResult<&mut Destination> {
        if !self.destinations.contains_key(server) {
            let store = &self.app.store;
            let saved = store.get(DESTINATIONS, DESTINATIONS.key().text(server.as_str()))?;
            let mut queue = DestinationQueue::restore(saved.clone().unwrap_or_default());
            let now_ms = self.app.clock.now_ms();
            if rows::has(store, Keyspace::DESTINATION_ROOM, server)? {
                queue.handle(now_ms, Input::Behind);
            }
            if rows::has(store, Keyspace::DESTINATION_MESSAGE, server)?
                || rows::has(store, Keyspace::DESTINATION_USER, server)?
            {
                queue.handle(now_ms, Input::Kept);
            }
            let destination = Destination {
                queue,
                written: saved,
                ..Destination::default()
            };
            self.destinations.insert(server.to_owned(), destination);
        }
        self.ready.insert(server.to_owned());
        self.touched.insert(server.to_owned());
        Ok(self.destinations.entry(server.to_owned()).or_default())
    }

    fn tell(&mut self, server: &ServerName, input: Input) -> ApiResult<()> {
        if self.denied.contains(server) {
            return self.drop_kept(server);
        }
        let now_ms = self.app.clock.now_ms();
        let queue = &mut self.touch(server)?.queue;
        queue.handle(now_ms, input);
        let spilled = queue.take_spilled();
        self.spill(server, spilled);
        Ok(())
    }

    /// Deletes what was kept for a server that may not be sent anything.
    fn drop_kept(&mut self, server: &ServerName) -> ApiResult<()> {
        for keyspace in [Keyspace::DESTINATION_MESSAGE, Keyspace::DESTINATION_USER] {
            let prefix = rows::of(keyspace, server);
            self.unwritten.delete_all(&self.app.store, &prefix)?;
        }
        Ok(())
    }

    fn spill(&mut self, server: &ServerName, spilled: BTreeMap<u64, u64>) {
        for (room, position) in spilled {
            let key = rows::room(server, RoomNum(room));
            self.unwritten.put(key, Packed::new().u64(position));
        }
    }

    fn address(&mut self, told: Vec<Addressed>) -> ApiResult<()> {
        for (servers, moment) in told {
            for server in servers {
                self.tell(&server, Input::Moment(moment.clone()))?;
            }
        }
        Ok(())
    }

    fn take_heard(&self) -> BTreeSet<OwnedServerName> {
        std::mem::take(&mut self.app.outgoing.lock().heard)
    }

    /// Up to where a restart need not read the log.
    fn held(&self) -> Position {
        let queues = self.destinations.values();
        let oldest = queues.filter_map(|destination| destination.queue.oldest());
        oldest
            .map(|oldest| oldest.saturating_sub(1))
            .fold(self.position, Position::min)
    }

    fn has_to_write(&self, now: Instant) -> bool {
        self.held() != self.written
            || !self.unwritten.is_empty()
            || (now >= self.save_at && self.destinations.values().any(Destination::is_unsaved))
    }

    /// Writes down the place in the log, and what goes with it; with `all`, also how far destinations are that
    /// have everything.
    async fn write(&mut self, all: bool) -> ApiResult<()> {
        let held = self.held();
        for (server, destination) in &mut self.destinations {
            let ahead = destination.queue.saved().acknowledged > held;
            if (all || ahead) && destination.is_unsaved() {
                destination.save(&mut self.unwritten, server);
            }
        }
        let mut commit = self.unwritten.commit();
        commit.put_raw(cursor(), Packed::new().u64(held));
        self.app.store.commit(commit).await?;
        self.unwritten.written();
        self.written = held;
        let now = self.app.clock.instant();
        self.write_at = now + WRITE_EVERY;
        if all {
            self.save_at = now + SAVE_EVERY;
            let (ready, touched) = (&self.ready, &mut self.touched);
            self.destinations.retain(|server, destination| {
                let used = !destination.queue.is_idle() || ready.contains(server);
                if !used {
                    touched.insert(server.clone());
                }
                used
            });
        }
        Ok(())
    }

    /// Shows others how those destinations are that something happened to.
    fn show(&mut self) {
        let mut shared = self.app.outgoing.lock();
        for server in std::mem::take(&mut self.touched) {
            match self.destinations.get(&server) {
                Some(destination) => {
                    let shown = Shown {
                        saved: destination.queue.saved().clone(),
                        condition: destination.queue.condition(),
                    };
                    shared.shown.insert(server, shown);
                }
                None => {
                    shared.shown.remove(&server);
                }
            }
        }
    }
}

impl Destination {
    fn is_unsaved(&self) -> bool {
        self.written.as_ref() != Some(self.queue.saved())
    }

    fn save(&mut self, unwritten: &mut Unwritten, server: &ServerName) {
        let saved = self.queue.saved().clone();
        if let Ok(json) = serde_json::to_vec(&saved) {
            let key = DESTINATIONS.key().text(server.as_str());
            unwritten.put(key, Packed::new().raw(&json));
        }
        self.written = Some(saved);
    }
}
