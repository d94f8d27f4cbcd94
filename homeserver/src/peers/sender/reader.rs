//! The reader of the log: what concerns whom, and when it is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use federation::wire::queue::{Batch, DestinationQueue, Input, Next, Outcome, QueuedEvent, Saved};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use ruma::{
    EventId, OwnedServerName, ServerName, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    log::{Change, LogEntry},
    rooms::TimelineEvent,
};
use tokio::time::Instant;

use super::{
    Shown, cursor,
    moments::{self, Addressed, Telling},
    outbox::{self, Parcel, Sent},
    rows::{self, DESTINATIONS, Unwritten},
    servers::Servers,
};
use crate::{
    error::ApiResult,
    keys::{lists, remote},
    peers::edus,
    rooms::members::MemberContent,
    server::App,
};

/// How many entries of the log are read together.
const LOG_ENTRIES_MAX: usize = 256;

/// How many destinations are sent something at the same time; the others wait for their turn.
const SENDS_MAX: usize = 200;

/// How often the place in the log, and what destinations miss, is written at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// How many rows wait to be written at most, unless one entry of the log makes more.
const UNWRITTEN_MAX: usize = 4_096;

/// How often it is written how far destinations are that have everything: only a restart in a bad moment and
/// admins see the difference. They stay in memory as long.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// How long to wait when the store failed.
const RETRY: Duration = Duration::from_secs(10);

/// How many local members of a room a server that comes into it is told the devices of. Of the others it asks
/// when it needs them; the specification wants it to be told only of those who join later.
const MEMBERS_TOLD_MAX: usize = 100;

/// For how long messages to devices wait for a server that does not come back, in milliseconds: 30 days. The
/// devices on both sides have long made new sessions by then.
const MESSAGES_WAIT_MS_MAX: u64 = 30 * 86_400_000;

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
            self.take(position, &entry).await?;
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
            Some(self.save_at.saturating_duration_since(now))
        } else {
            None
        };
        [until, write]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Duration::MAX)
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
        let now_ms = self.app.clock.now_ms();
        let queue = &mut self.touch(server)?.queue;
        queue.handle(now_ms, input);
        let spilled = queue.take_spilled();
        self.spill(server, spilled);
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

    /// What has to be sent because of an entry of the log.
    async fn take(&mut self, position: Position, entry: &LogEntry) -> ApiResult<()> {
        let app = self.app.clone();
        match entry {
            LogEntry::Event(event) => self.event(position, event).await,
            LogEntry::Other(Change::Relay { event_id }) => self.relay(position, event_id),
            LogEntry::Other(Change::ToServer { server }) => self.tell(server, Input::Kept),
            LogEntry::Other(Change::DeviceList { user }) => {
                // What only one user sees of another's keys is told under the name of that user.
                if lists::stream_id(&app.store, *user)? < position {
                    return Ok(());
                }
                let to = moments::servers_of(&app, &mut self.servers, *user, self.position)?;
                for server in to {
                    self.owe_devices(&server, *user)?;
                }
                Ok(())
            }
            LogEntry::Other(Change::Receipt {
                room,
                user,
                private: false,
            }) => {
                let told = moments::receipts(&app, &mut self.servers, *room, *user, position)?;
                self.address(told)
            }
            LogEntry::Other(_) => Ok(()),
        }
    }

    async fn event(&mut self, position: Position, event: &Arc<TimelineEvent>) -> ApiResult<()> {
        let app = self.app.clone();
        if app.is_local(event.pdu.sender()) {
            let before = position.saturating_sub(1);
            let mut to = moments::others(&app, &mut self.servers, event.room, before)?;
            to.extend(target(&app, event));
            self.send_event(event, to)?;
        }
        let moved = self.servers.apply(&app, event)?;
        for user in moved.joined {
            let to = moments::others(&app, &mut self.servers, event.room, position)?;
            self.meet(&to, [user])?;
        }
        for server in moved.arrived {
            let members = self.servers.at(&app, event.room, position)?;
            let local = members.get(app.server_name()).into_iter().flatten();
            let local: Vec<UserNum> = local.copied().take(MEMBERS_TOLD_MAX).collect();
            self.meet(&BTreeSet::from([server]), local)?;
        }
        for user in moved.left {
            remote::left(&app, user).await?;
        }
        edus::arrived(&app, event).await
    }

    /// An event of another server's user that this server passes on.
    fn relay(&mut self, position: Position, event_id: &EventId) -> ApiResult<()> {
        let app = self.app.clone();
        let Some(event) = app.store.event(event_id)? else {
            return Ok(());
        };
        let mut to = moments::others(&app, &mut self.servers, event.room, position)?;
        to.remove(event.pdu.sender().server_name());
        self.send_event(&event, to)
    }

    fn send_event(
        &mut self,
        event: &Arc<TimelineEvent>,
        to: BTreeSet<OwnedServerName>,
    ) -> ApiResult<()> {
        for server in to {
            let queued = QueuedEvent {
                position: event.position(),
                room: event.room.0,
                pdu: event.pdu.clone(),
            };
            self.tell(&server, Input::Event(queued))?;
        }
        Ok(())
    }

    /// Local users share a room with servers that they may not have shared one with before.
    fn meet(
        &mut self,
        servers: &BTreeSet<OwnedServerName>,
        users: impl IntoIterator<Item = UserNum>,
    ) -> ApiResult<()> {
        let app = self.app.clone();
        for user in users {
            for server in servers {
                let told = rows::told(server, user);
                if self.unwritten.get(&app.store, told)?.is_none() {
                    self.owe_devices(server, user)?;
                }
            }
            if app.config.presence.enabled
                && let Some(moment) = moments::presence(&app, user)?
            {
                self.address(vec![(servers.clone(), moment)])?;
            }
        }
        Ok(())
    }

    /// A server has to be told of a user's devices.
    fn owe_devices(&mut self, server: &ServerName, user: UserNum) -> ApiResult<()> {
        self.unwritten.put(rows::user(server, user), Packed::new());
        self.tell(server, Input::Kept)
    }

    fn take_heard(&self) -> BTreeSet<OwnedServerName> {
        std::mem::take(&mut self.app.outgoing.lock().heard)
    }

    /// Begins to send what may be sent now.
    async fn start(&mut self, sending: &mut Sending) -> ApiResult<()> {
        let app = self.app.clone();
        while sending.len() < SENDS_MAX
            && let Some(server) = self.ready.pop_first()
        {
            let now_ms = app.clock.now_ms();
            let Some(destination) = self.destinations.get_mut(&server) else {
                continue;
            };
            if let Some(at_ms) = destination.wake_at_ms.take() {
                self.wakes.remove(&(at_ms, server.clone()));
            }
            let (parcel, again) = match destination.queue.next(now_ms) {
                Next::Wait(None) => continue,
                Next::Wait(Some(at_ms)) => {
                    destination.wake_at_ms = Some(at_ms);
                    self.wakes.insert((at_ms, server));
                    continue;
                }
                Next::Again => (outbox::pending(&app, &self.unwritten, &server)?, true),
                Next::Send(batch) => (self.make(&server, batch).await?, false),
            };
            let Some(parcel) = parcel else {
                // There is nothing to send, or nothing to send again.
                let outcome = if again {
                    Outcome::Taken
                } else {
                    Outcome::Empty
                };
                self.tell(&server, Input::Done(outcome))?;
                continue;
            };
            let parcel = Arc::new(parcel);
            if let Some(destination) = self.destinations.get_mut(&server) {
                destination.flight = Some((parcel.clone(), again));
            }
            sending.push(outbox::send(app.clone(), server, parcel).boxed());
        }
        Ok(())
    }

    /// Makes a transaction; `None` when there is nothing to send.
    async fn make(&mut self, server: &ServerName, batch: Batch) -> ApiResult<Option<Parcel>> {
        let made = self.try_make(server, &batch).await;
        let now_ms = self.app.clock.now_ms();
        let Some(destination) = self.destinations.get_mut(server) else {
            return Ok(None);
        };
        let queue = &mut destination.queue;
        match made {
            Ok(parcel) => {
                let (kept, behind) = (parcel.kept, parcel.behind);
                queue.handle(now_ms, Input::Made { kept, behind });
                if !parcel.transaction.is_empty() {
                    return Ok(Some(parcel));
                }
                // What nothing has to be said about needs no answer.
                outbox::arrived(&self.app, &mut self.unwritten, server, &parcel.carried)?;
                Ok(None)
            }
            Err(error) => {
                let behind = batch.behind || !batch.events.is_empty();
                let kept = batch.kept;
                queue.handle(now_ms, Input::Made { kept, behind });
                queue.handle(now_ms, Input::Done(Outcome::Empty));
                self.ready.insert(server.to_owned());
                let rooms = batch.events.iter();
                let rooms = rooms.map(|event| (event.room, event.position)).collect();
                self.spill(server, rooms);
                Err(error)
            }
        }
    }

    async fn try_make(&mut self, server: &ServerName, batch: &Batch) -> ApiResult<Parcel> {
        if (batch.behind || batch.kept) && !self.unwritten.is_empty() {
            self.write(false).await?;
        }
        outbox::make(&self.app, server, batch)
    }

    /// What became of a transaction.
    fn sent(&mut self, server: &ServerName, sent: Sent) {
        if let Err(error) = self.try_sent(server, sent) {
            tracing::error!(%server, error = %error.message, "the outcome of a transaction is not written");
        }
    }

    fn try_sent(&mut self, server: &ServerName, sent: Sent) -> ApiResult<()> {
        let app = self.app.clone();
        let flight = self.destinations.get_mut(server);
        let flight = flight.and_then(|destination| destination.flight.take());
        let Some((parcel, again)) = flight else {
            return Ok(());
        };
        let outcome = match sent {
            Sent::Done(outcome) => outcome,
            Sent::Denied => return self.forget(server),
        };
        app.metrics.federation_transaction(outcome);
        if matches!(outcome, Outcome::Failed { .. }) {
            if !again {
                outbox::pend(&mut self.unwritten, server, &parcel)?;
            }
        } else {
            outbox::arrived(&app, &mut self.unwritten, server, &parcel.carried)?;
            if again {
                let prefix = rows::of(Keyspace::DESTINATION_PENDING, server);
                self.unwritten.delete_all(&app.store, &prefix)?;
            }
        }
        self.tell(server, Input::Done(outcome))?;
        self.note_state(server)
    }

    /// Writes down that a destination is down, or is no more.
    fn note_state(&mut self, server: &ServerName) -> ApiResult<()> {
        let app = self.app.clone();
        let Some(destination) = self.destinations.get_mut(server) else {
            return Ok(());
        };
        let saved = destination.queue.saved();
        let written = destination.written.as_ref();
        let same = written.is_some_and(|written| {
            written.failures == saved.failures && written.again == saved.again
        });
        let gone_ms = saved
            .failing_since_ms
            .map_or(0, |since_ms| app.clock.now_ms().saturating_sub(since_ms));
        if gone_ms > MESSAGES_WAIT_MS_MAX {
            let prefix = rows::of(Keyspace::DESTINATION_MESSAGE, server);
            self.unwritten.delete_all(&app.store, &prefix)?;
        }
        if same && saved.failures == 0 {
            return Ok(());
        }
        let was_down = written.is_some_and(|written| written.failures > 0);
        match (was_down, saved.failures > 0) {
            (false, true) => tracing::info!(%server, "a server is not reached; trying again"),
            (true, false) => tracing::info!(%server, "a server is back"),
            _ => {}
        }
        destination.save(&mut self.unwritten, server);
        Ok(())
    }

    /// Forgets a destination that may not be sent anything.
    fn forget(&mut self, server: &ServerName) -> ApiResult<()> {
        tracing::debug!(%server, "nothing is sent to a server that is not federated with");
        for keyspace in rows::OF_DESTINATION {
            let prefix = rows::of(keyspace, server);
            self.unwritten.delete_all(&self.app.store, &prefix)?;
        }
        let row = DESTINATIONS.key().text(server.as_str());
        self.unwritten.delete(row);
        self.ready.remove(server);
        self.touched.insert(server.to_owned());
        if let Some(destination) = self.destinations.remove(server)
            && let Some(at_ms) = destination.wake_at_ms
        {
            self.wakes.remove(&(at_ms, server.to_owned()));
        }
        Ok(())
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

/// The server of whoever is invited, kicked, banned or let go: it may have nobody in the room.
///
/// Spec: server-server API, "PDUs"; it wants them to be told, but says so only for invites.
fn target(app: &App, event: &TimelineEvent) -> Option<OwnedServerName> {
    let pdu = &event.pdu;
    if *pdu.kind() != TimelineEventType::RoomMember {
        return None;
    }
    let target = pdu.state_key().and_then(|key| UserId::parse(key).ok())?;
    let content: MemberContent = pdu.content_as()?;
    let told = matches!(
        content.membership,
        MembershipState::Invite | MembershipState::Leave | MembershipState::Ban
    );
    (told && !app.is_local(&target)).then(|| target.server_name().to_owned())
}
