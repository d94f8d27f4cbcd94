//! The reader of the log that tells push gateways.
//!
//! For each event, the rules of those members are evaluated who have pushers. What is to be told waits in
//! the [`Outbox`]; it is written when it is sent, so that it says how much there is to read by then, and
//! is not sent if it was read meanwhile.
//!
//! The reader's place in the log is written at most once a second, and never beyond what still waits, so
//! that a restart takes it up again; unless that is more than [`HELD_ENTRIES_MAX`] behind, which is then
//! lost. A crash may send what was sent in the last second again: gateways go by the event ID.
//! Spec: client-server API, "Push Notifications"; push gateway API.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use http::{Method, header};
use ruma::{UserId, events::TimelineEventType};
use serde::Deserialize;
use serde_json::Value;
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    log::{Change, LogEntry},
    rooms::{Membership, TimelineEvent},
};
use tokio::time::Instant;

use super::{
    badge,
    evaluate::{Judge, wishes},
    notice,
    outbox::{Item, Outbox, Task},
    pushers::{self, PusherKey, PusherRow},
};
use crate::{
    error::ApiResult,
    media::outward::{FetchError, Limits},
    server::App,
};

/// How many entries of the log are read together.
const LOG_ENTRIES_MAX: usize = 256;

/// How far the place in the log may be held back by gateways that do not answer.
const HELD_ENTRIES_MAX: Position = 8_192;

/// How often the place in the log is written at most.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// How long to wait before looking again when the store failed.
const RETRY: Duration = Duration::from_secs(5);

/// How long a gateway's answer may be, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long a gateway may take.
const LIMITS: Limits = Limits {
    total: Duration::from_secs(30),
    idle: Duration::from_secs(10),
    redirects_max: 0,
};

/// What became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Sent(Option<Position>),
    Skipped,
    Failed,
    Gone,
}

fn cursor() -> Packed {
    Packed::key(Keyspace::CURSOR).text("push")
}

/// Tells push gateways, for as long as the server runs.
pub fn run(app: App) -> impl Future<Output = ()> + Send {
    // A server that never pushed begins at the end of the log as it is now, not when this first runs.
    let published = app.store.published();
    let stored = app.store.get_raw(cursor()).ok().flatten();
    let stored = stored.and_then(|value| Unpack(&value).u64());
    let position = stored
        .unwrap_or(published)
        .max(published.saturating_sub(HELD_ENTRIES_MAX));
    Reader {
        written: stored,
        write_at: app.clock.instant(),
        lag: app.metrics.reader("push"),
        app,
        position,
        outbox: Outbox::default(),
        told: BTreeMap::new(),
    }
    .run()
}

struct Reader {
    app: App,
    /// Up to where the log was read.
    position: Position,
    /// The same, for those who watch.
    lag: crate::log::Reader,
    /// Up to where a restart will not read it; a server that never pushed has nothing written.
    written: Option<Position>,
    /// When that may be written again.
    write_at: Instant,
    outbox: Outbox,
    /// Up to where pushers were told, since it was written.
    told: BTreeMap<PusherKey, Position>,
}

impl Reader {
    async fn run(mut self) {
        let app = self.app.clone();
        let mut sending = FuturesUnordered::new();
        loop {
            self.lag.at(self.position);
            let now = app.clock.instant();
            while let Some((key, task)) = self.outbox.next(now) {
                sending.push(perform(app.clone(), key, task));
            }
            let mut done = false;
            while let Some(Some((key, outcome))) = sending.next().now_or_never() {
                self.done(&key, outcome);
                done = true;
            }
            if done {
                // Who was told may have more to be told.
                continue;
            }
            if now >= self.write_at {
                self.write(now).await;
            }
            let grew = app.store.grew().notified();
            tokio::pin!(grew);
            grew.as_mut().enable();
            let read = app.store.log(self.position, LOG_ENTRIES_MAX);
            let failed = read.is_err();
            let entries = read.unwrap_or_default();
            if !entries.is_empty() {
                for (position, entry) in entries {
                    if let Err(error) = self.take(position, &entry) {
                        tracing::error!(error = %error.message, position, "nobody is told of an event");
                    }
                    self.position = position;
                }
                let dropped = self.outbox.take_dropped();
                if dropped > 0 {
                    tracing::info!(dropped, "pushes were dropped: gateways do not keep up");
                }
                tokio::task::yield_now().await;
                continue;
            }
            let wake_at = [
                self.outbox.wake_at(),
                (Some(self.held()) != self.written).then_some(self.write_at),
                failed.then(|| now + RETRY),
            ];
            let wake_at = wake_at.into_iter().flatten().min();
            let sleep = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some((key, outcome)) = sending.next(), if !sending.is_empty() => {
                    self.done(&key, outcome);
                }
                () = grew => {}
                () = sleep => {}
            }
        }
    }

    /// What has to be done because of an entry of the log.
    fn take(&mut self, position: Position, entry: &LogEntry) -> ApiResult<()> {
        match entry {
            LogEntry::Event(event) => self.event(position, event),
            LogEntry::Other(Change::Receipt { user, room, .. }) => {
                // After a restart it is not known what was told; a receipt means less, most likely.
                self.read(*user, *room, true)
            }
            LogEntry::Other(Change::AccountData { user, room: None })
                if self.app.push.pushers.has(*user) =>
            {
                // Other rules make other counts.
                badge::forget(&self.app, *user);
                Ok(())
            }
            LogEntry::Other(_) => Ok(()),
        }
    }

    fn event(&mut self, position: Position, event: &TimelineEvent) -> ApiResult<()> {
        let app = self.app.clone();
        let Some(view) = app.store.room(event.room)? else {
            return Ok(());
        };
        let pdu = &event.pdu;
        let pushers = &app.push.pushers;
        let mut users = pushers.joined(&view);
        if *pdu.kind() == TimelineEventType::RoomMember {
            // Whoever is invited is not among the joined; who leaves has one room less to read.
            let target = pdu.state_key().and_then(|key| UserId::parse(key).ok());
            let target = target
                .map(|target| app.store.find_user(&target))
                .transpose()?;
            let target = target.flatten().filter(|target| pushers.has(*target));
            if let Some(target) = target.filter(|target| !users.contains(target)) {
                self.read(target, event.room, false)?;
                users.push(target);
            }
        }
        let redaction = *pdu.kind() == TimelineEventType::RoomRedaction;
        for user in users {
            let user_id = app.store.user_id(user)?;
            if redaction || *pdu.sender() == user_id {
                // What one sends reads what was there; what is redacted counts no more.
                self.read(user, event.room, false)?;
            }
            if *pdu.sender() == user_id {
                continue;
            }
            let wishes = wishes(&app, user, &user_id)?;
            let judge = Judge::of(&app, &view, user, &user_id, wishes)?;
            let Some(actions) = judge.actions(event) else {
                continue;
            };
            if !entitled(&app, user, event)? {
                continue;
            }
            for row in pushers::to_tell(&app, user)? {
                if row.enabled && row.told < position {
                    let item = Item {
                        room: event.room,
                        position,
                        actions: actions.to_vec(),
                    };
                    self.outbox.add(&PusherKey::of(user, &row), item);
                }
            }
        }
        Ok(())
    }

    /// A user has read something, or has less to read for another reason; `else_told`: whether the
    /// count is told when it is not known what it was.
    fn read(&mut self, user: UserNum, room: RoomNum, else_told: bool) -> ApiResult<()> {
        if !self.app.push.pushers.has(user)
            || !badge::refresh(&self.app, user, room)?.unwrap_or(else_told)
        {
            return Ok(());
        }
        for row in pushers::to_tell(&self.app, user)? {
            if row.enabled {
                self.outbox.badge(&PusherKey::of(user, &row));
            }
        }
        Ok(())
    }

    fn done(&mut self, key: &PusherKey, outcome: Outcome) {
        match outcome {
            Outcome::Sent(position) => {
                self.outbox.sent(key);
                if let Some(position) = position {
                    self.told.insert(key.clone(), position);
                }
            }
            Outcome::Skipped => self.outbox.skipped(key),
            Outcome::Failed => {
                let share = self
                    .app
                    .entropy
                    .jitter(Duration::from_secs(1))
                    .as_secs_f64();
                self.outbox.failed(key, self.app.clock.instant(), share);
            }
            Outcome::Gone => self.outbox.forget(key),
        }
    }

    /// Up to where a restart need not read the log.
    fn held(&self) -> Position {
        let oldest = self.outbox.oldest().map(|oldest| oldest.saturating_sub(1));
        let least = self.position.saturating_sub(HELD_ENTRIES_MAX);
        oldest.unwrap_or(self.position).clamp(least, self.position)
    }

    async fn write(&mut self, now: Instant) {
        let held = self.held();
        let told = std::mem::take(&mut self.told);
        if Some(held) == self.written && told.is_empty() {
            return;
        }
        let mut commit = Commit::new();
        commit.put_raw(cursor(), Packed::new().u64(held));
        let _changing = self.app.push.pushers.change().await;
        let ahead = told.into_iter().filter(|(_, told)| *told > held);
        let noted = pushers::note_told(&self.app, &mut commit, ahead);
        // Losing it costs pushes that are told twice.
        if noted.is_ok() && self.app.store.commit(commit).await.is_ok() {
            self.written = Some(held);
        }
        self.write_at = now + WRITE_EVERY;
    }
}

/// Whether a user may see an event that a rule wants them to be told of: since their join, or their
/// own invite.
fn entitled(app: &App, user: UserNum, event: &TimelineEvent) -> ApiResult<bool> {
    let row = app.store.user_room(user, event.room)?;
    Ok(row.is_some_and(|row| match row.membership {
        Membership::Join => row.joined_at < event.position(),
        Membership::Invite => row.position == event.position(),
        _ => false,
    }))
}

async fn perform(app: App, key: PusherKey, task: Task) -> (PusherKey, Outcome) {
    let outcome = match tell(&app, &key, &task).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::error!(error = %error.message, "a push could not be made");
            Outcome::Failed
        }
    };
    (key, outcome)
}

async fn tell(app: &App, key: &PusherKey, task: &Task) -> ApiResult<Outcome> {
    let Some(pusher) = pushers::get(&app.store, key)? else {
        return Ok(Outcome::Gone);
    };
    if !pusher.enabled {
        return Ok(Outcome::Skipped);
    }
    let (body, position) = match task {
        Task::Event(item) => (
            notice::of_event(app, key.user, &pusher, item)?,
            Some(item.position),
        ),
        Task::Badge => (Some(notice::of_badge(app, key.user, &pusher)?), None),
    };
    let Some(body) = body else {
        return Ok(Outcome::Skipped);
    };
    match post(app, &pusher, &body).await {
        Ok(Some(rejected)) if rejected.contains(&pusher.pushkey) => {
            tracing::info!("a gateway rejected a push key; its pusher is deleted");
            pushers::delete(app, key).await?;
            Ok(Outcome::Gone)
        }
        Ok(Some(_)) => Ok(Outcome::Sent(position)),
        Ok(None) => Ok(Outcome::Failed),
        Err(FetchError::Refused(refusal)) => {
            tracing::info!(%refusal, "a pusher leads where no request may go");
            Ok(Outcome::Skipped)
        }
        Err(error) => {
            tracing::debug!(%error, "a push gateway cannot be reached");
            Ok(Outcome::Failed)
        }
    }
}

#[derive(Default, Deserialize)]
struct Answer {
    #[serde(default)]
    rejected: Vec<String>,
}

/// The rejected push keys; `None` when the gateway did not take the push.
async fn post(
    app: &App,
    pusher: &PusherRow,
    body: &Value,
) -> Result<Option<Vec<String>>, FetchError> {
    let url = pusher
        .data
        .get("url")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let outward = &app.media.outward;
    let request = outward
        .request(Method::POST, url)?
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.to_string());
    let answer = outward.send(request, &LIMITS).await?;
    if !answer.status().is_success() {
        let status = answer.status().as_u16();
        tracing::debug!(status, "a push gateway refused a push");
        return Ok(None);
    }
    let bytes = answer.bytes(ANSWER_BYTES_MAX).await?;
    // Some gateways answer with nothing.
    let answer: Answer = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(Some(answer.rejected))
}
