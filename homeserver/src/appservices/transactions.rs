//! Telling an application service what happened: a reader of the log for each, in order, nothing twice.
//!
//! A transaction is written to the store before it is sent, and goes out as it was written until the service
//! takes it, also over restarts: the service knows by its ID whether it has seen it. What is true only for a
//! moment, typing and presence, goes along; alone it is sent once, and lost if the service is away.
//! A service that is new begins at the end of the log; one that leaves the configuration is forgotten.
//! Spec: application service API, "Pushing events"; MSC4203 (messages to devices), MSC3202 (keys).

use std::{sync::Arc, time::Duration};

use http::Method;
use ruma::OwnedDeviceId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, Table, Unpack, UserNum},
    kv::Direction,
    log::{Change, LogEntry},
    rooms::{Membership, TimelineEvent},
};

use super::{
    Registration,
    ask::{self, AskError},
    interest::Interest,
    transaction::{EPHEMERAL_MAX, Transaction},
};
use crate::{
    ephemeral::Moment,
    error::{ApiError, ApiResult},
    keys, receipts,
    rooms::read,
    server::App,
    to_device,
};

const PROGRESS: Table<Progress> = Table::new(Keyspace::APPSERVICE);

/// How many entries of the log are read together.
const LOG_ENTRIES_MAX: usize = 256;

/// After how many entries of the log that do not concern the service its position is written all the same:
/// a restart reads no more than this again.
const UNWRITTEN_ENTRIES_MAX: u64 = 4_096;

/// How much of a body lies in one row, in bytes.
const PIECE_BYTES: usize = 512 << 10;

/// How long a service may take to take a transaction.
const TAKE_TIMEOUT: Duration = Duration::from_mins(1);

/// How long to wait after the first failure; each further one doubles it.
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// How long to wait at most.
const BACKOFF_MAX: Duration = Duration::from_mins(5);

/// How long to wait when the store failed.
const RETRY: Duration = Duration::from_secs(5);

/// How far a service has been told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Progress {
    /// The log up to here has been read; what concerned the service was told, or is in `pending`.
    position: Position,
    /// The ID of the last transaction. The first one of a service is the time at which it came, so that no
    /// ID ever returns, whatever happens to the store.
    txn: u64,
    /// That transaction, until the service has taken it.
    pending: Option<Pending>,
}

/// A transaction that the service has not taken yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pending {
    /// In how many rows its body lies.
    pieces: u64,
    /// Messages to devices in it that nobody else will fetch.
    delivered: Vec<(UserNum, OwnedDeviceId, Position)>,
}

/// The rows of a body, in order.
fn piece_key(service: &Registration, piece: u64) -> Packed {
    PROGRESS.key().text(&service.id).u64(piece)
}

/// Forgets the services that are not registered any more.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn forget_others(app: &App) -> ApiResult<()> {
    let mut commit = Commit::new();
    app.store
        .visit(&PROGRESS.key(), Direction::Ascending, |key, _| {
            let id = Unpack::key(key).text().unwrap_or_default();
            if !app.appservices.iter().any(|service| service.id == id) {
                commit.delete(Packed::new().raw(key));
            }
            Ok(true)
        })?;
    if !commit.is_empty() {
        app.store.commit(commit).await?;
    }
    Ok(())
}

/// Where a service is told from: where it was, or, if it is new, the end of the log, which is written down.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn begin(app: &App, service: Arc<Registration>) -> ApiResult<Teller> {
    let key = PROGRESS.key().text(&service.id);
    let progress: Progress = match app.store.get(PROGRESS, key.clone())? {
        Some(progress) => progress,
        None => {
            let progress = Progress {
                position: app.store.published(),
                txn: app.clock.now_ms(),
                pending: None,
            };
            let mut commit = Commit::new();
            commit.put(PROGRESS, key, &progress);
            app.store.commit(commit).await?;
            progress
        }
    };
    let mut body = Vec::new();
    for piece in 0..progress
        .pending
        .as_ref()
        .map_or(0, |pending| pending.pieces)
    {
        body.extend(
            app.store
                .get_raw(piece_key(&service, piece))?
                .unwrap_or_default(),
        );
    }
    let body = progress
        .pending
        .as_ref()
        .map(|_| serde_json::from_slice(&body).map_err(|error| ApiError::internal(&error)))
        .transpose()?;
    Ok(Teller {
        body,
        app: app.clone(),
        interest: Interest::new(service.clone()),
        written: progress.position,
        told: app.moments.last(),
        progress,
        service,
        failures: 0,
    })
}

/// Tells one service what happens.
#[derive(Debug)]
pub struct Teller {
    app: App,
    service: Arc<Registration>,
    interest: Interest,
    progress: Progress,
    /// The body of the transaction that is pending.
    body: Option<Box<RawValue>>,
    /// The position that the store has.
    written: Position,
    /// Up to here the service was told what is true for a moment.
    told: Moment,
    /// Failures in a row.
    failures: u32,
}

impl Teller {
    /// Tells the service, for as long as the server runs.
    pub async fn run(mut self) {
        let reader = self
            .app
            .metrics
            .reader(format!("application service {}", self.service.id));
        loop {
            if let Err(error) = self.step().await {
                tracing::error!(
                    service = self.service.id, error = %error.message,
                    "an application service is not told what happens; trying again"
                );
                // What was read but not written is read again.
                self.interest.forget();
                self.progress.position = self.written;
                tokio::time::sleep(RETRY).await;
            }
            reader.at(self.progress.position);
        }
    }

    /// Sends what there is, or waits until there is something.
    async fn step(&mut self) -> ApiResult<()> {
        if let Some(body) = self.body.clone() {
            let txn_id = self.progress.txn.to_string();
            while !self.send(&txn_id, &body).await {
                self.back_off().await;
            }
            return self.taken().await;
        }
        let app = self.app.clone();
        let (grew, moved) = (app.store.grew().notified(), app.moments.moved().notified());
        tokio::pin!(grew, moved);
        grew.as_mut().enable();
        moved.as_mut().enable();
        let entries = app.store.log(self.progress.position, LOG_ENTRIES_MAX)?;
        let mut transaction = Transaction::default();
        let read = !entries.is_empty();
        for (position, entry) in entries {
            self.take(&mut transaction, position, &entry)?;
            self.progress.position = position;
            if transaction.is_full() {
                break;
            }
        }
        if self.service.wants_ephemeral() {
            self.take_moments(&mut transaction)?;
        }
        if transaction.lasts() {
            return self.pend(transaction).await;
        }
        if self.progress.position - self.written >= UNWRITTEN_ENTRIES_MAX {
            self.write(Commit::new()).await?;
        }
        if !transaction.ephemeral.is_empty() {
            // Never the ID of a transaction that lasts: those are numbers.
            let txn_id = format!("moment-{}", self.told);
            let body = transaction.body(&app, &self.service)?;
            if !self.send(&txn_id, &body).await {
                self.back_off().await;
            }
        } else if !read {
            tokio::select! {
                biased;
                () = &mut grew => {}
                () = &mut moved, if self.service.wants_ephemeral() => {}
            }
        }
        Ok(())
    }

    /// Writes down a transaction, before it is sent.
    async fn pend(&mut self, mut transaction: Transaction) -> ApiResult<()> {
        let body = transaction.body(&self.app, &self.service)?;
        let mut commit = Commit::new();
        let mut pieces = 0;
        for piece in body.get().as_bytes().chunks(PIECE_BYTES) {
            commit.put_raw(piece_key(&self.service, pieces), Packed::new().raw(piece));
            pieces += 1;
        }
        let before = self.progress.clone();
        self.progress.txn += 1;
        self.progress.pending = Some(Pending {
            pieces,
            delivered: transaction.delivered,
        });
        if let Err(error) = self.write(commit).await {
            self.progress = before;
            return Err(error);
        }
        self.body = Some(body);
        Ok(())
    }

    /// Writes down that the service has taken the transaction, and deletes what it has now.
    async fn taken(&mut self) -> ApiResult<()> {
        let Some(pending) = self.progress.pending.take() else {
            return Ok(());
        };
        let mut commit = Commit::new();
        for piece in 0..pending.pieces {
            commit.delete(piece_key(&self.service, piece));
        }
        for (user, device, position) in &pending.delivered {
            to_device::forget(&mut commit, *user, device, *position);
        }
        if let Err(error) = self.write(commit).await {
            // It is sent once more, under the same ID.
            self.progress.pending = Some(pending);
            return Err(error);
        }
        self.body = None;
        Ok(())
    }

    /// Writes down how far the service is, with what goes with it.
    async fn write(&mut self, mut commit: Commit) -> ApiResult<()> {
        let key = PROGRESS.key().text(&self.service.id);
        commit.put(PROGRESS, key, &self.progress);
        self.app.store.commit(commit).await?;
        self.written = self.progress.position;
        Ok(())
    }

    /// Sends a transaction once; whether the service took it.
    async fn send(&mut self, txn_id: &str, body: &RawValue) -> bool {
        let at: (&[&str], &[(String, String)]) = (&["transactions", txn_id], &[]);
        let (app, service) = (&self.app, &self.service);
        let sent = ask::request(app, service, Method::PUT, at, Some(body), TAKE_TIMEOUT).await;
        app.metrics.transaction(sent.is_ok());
        match sent {
            Ok(_) => {
                if self.failures > 0 {
                    tracing::info!(service = service.id, "the application service is back");
                }
                self.failures = 0;
                true
            }
            Err(error) => {
                if self.failures == 0 {
                    self.complain(&error);
                }
                self.failures = self.failures.saturating_add(1);
                false
            }
        }
    }

    fn complain(&self, error: &AskError) {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason.push_str(": ");
            reason.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::warn!(
            service = self.service.id,
            reason,
            "the application service does not take what it is sent; trying again until it does"
        );
    }

    /// Waits until it makes sense to try again: when the time has come, or the service says that it is back.
    async fn back_off(&self) {
        let longest = backoff(self.failures);
        let Some(contact) = self.app.appservices.contacts.get(&self.service.id) else {
            return;
        };
        tokio::select! {
            biased;
            () = contact.back.notified() => {}
            () = tokio::time::sleep(longest) => {}
        }
    }

    /// Takes from an entry of the log what concerns the service.
    fn take(
        &mut self,
        transaction: &mut Transaction,
        position: Position,
        entry: &LogEntry,
    ) -> ApiResult<()> {
        let app = self.app.clone();
        match entry {
            LogEntry::Event(event) => self.take_event(transaction, event),
            LogEntry::Other(Change::Receipt {
                room,
                user,
                private,
            }) if self.service.wants_ephemeral() => {
                let told = if *private {
                    self.interest.is_own(&app, &app.store.user_id(*user)?)
                } else {
                    self.interest.room(&app, *room, self.progress.position)?
                };
                if told {
                    // One that was overtaken since is found at its later position.
                    let found =
                        receipts::changed(&app.store, *room, *user, position - 1, position)?;
                    transaction.receipts.entry(*room).or_default().extend(found);
                    transaction.receipts_count += 1;
                }
                Ok(())
            }
            LogEntry::Other(Change::ToDevice { user, device })
                if self.service.wants_ephemeral() =>
            {
                self.take_message(transaction, position, *user, device)
            }
            LogEntry::Other(Change::KeyCounts { user, device }) if self.service.encryption => {
                let user_id = app.store.user_id(*user)?;
                if self.interest.is_own(&app, &user_id) {
                    let of_user = transaction.key_counts.entry(user_id).or_default();
                    of_user.insert(device.clone(), keys::counts(&app.store, *user, device)?);
                }
                Ok(())
            }
            LogEntry::Other(Change::DeviceList { user }) if self.service.encryption => {
                let user_id = app.store.user_id(*user)?;
                let read = self.progress.position;
                if self.interest.is_own(&app, &user_id) || self.interest.meets(&app, *user, read)? {
                    transaction.left.remove(&user_id);
                    transaction.changed.insert(user_id);
                }
                Ok(())
            }
            LogEntry::Other(_) => Ok(()),
        }
    }

    fn take_event(
        &mut self,
        transaction: &mut Transaction,
        event: &Arc<TimelineEvent>,
    ) -> ApiResult<()> {
        let app = self.app.clone();
        let concern = self.interest.event(&app, event)?;
        if concern.told {
            let invites_own = concern
                .member
                .as_ref()
                .filter(|member| member.own && member.membership == Membership::Invite);
            let invited = invites_own.map(|member| &*member.user_id);
            let event = read::service_event(&app, event, invited, app.clock.now_ms())?;
            transaction.bytes += event.get().len();
            transaction.events.push(event);
        }
        let Some(member) = concern.member.filter(|_| self.service.encryption) else {
            return Ok(());
        };
        if member.own {
            return Ok(());
        }
        match member.membership {
            Membership::Join if concern.present => {
                transaction.left.remove(&member.user_id);
                transaction.changed.insert(member.user_id);
            }
            Membership::Leave | Membership::Ban if concern.present => {
                let read = self.progress.position;
                if !self.interest.meets(&app, member.user, read)? {
                    transaction.changed.remove(&member.user_id);
                    transaction.left.insert(member.user_id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take_message(
        &mut self,
        transaction: &mut Transaction,
        position: Position,
        user: UserNum,
        device: &OwnedDeviceId,
    ) -> ApiResult<()> {
        let app = &self.app;
        let user_id = app.store.user_id(user)?;
        if !self.interest.is_own(app, &user_id) {
            return Ok(());
        }
        let (messages, _) = to_device::pending(&app.store, user, device, position - 1, position)?;
        for message in messages {
            transaction.bytes += message.get().len();
            let Ok(mut message) = serde_json::from_str::<Map<String, Value>>(message.get()) else {
                continue;
            };
            message.insert("to_user_id".to_owned(), user_id.as_str().into());
            message.insert("to_device_id".to_owned(), device.as_str().into());
            transaction.to_device.push(message);
        }
        // People whom a service may act as besides themselves fetch their messages, too.
        let account = app.accounts.user(user)?;
        if account.is_some_and(|account| account.service.as_deref() == Some(&*self.service.id)) {
            transaction.delivered.push((user, device.clone(), position));
        }
        Ok(())
    }

    /// Takes who types and who is online, as it is now, where that changed.
    fn take_moments(&mut self, transaction: &mut Transaction) -> ApiResult<()> {
        let (app, read) = (self.app.clone(), self.progress.position);
        let now = app.moments.last();
        if now == self.told {
            return Ok(());
        }
        let since = std::mem::replace(&mut self.told, now);
        for room in app
            .typing
            .rooms_changed_since(since)
            .into_iter()
            .take(EPHEMERAL_MAX)
        {
            let typing = app.typing.changed_since(room, since);
            if let (Some(users), true) = (typing, self.interest.room(&app, room, read)?)
                && let Some(room_id) = app.store.room_id(room)?
            {
                let users: Result<Vec<_>, _> = users
                    .into_iter()
                    .map(|user| app.store.user_id(user))
                    .collect();
                let content = json!({ "user_ids": users? });
                let event = json!({ "type": "m.typing", "room_id": room_id, "content": content });
                transaction.ephemeral.push(event);
            }
        }
        if app.config.presence.enabled {
            for user in app
                .presence
                .changed_since(since)
                .into_iter()
                .take(EPHEMERAL_MAX)
            {
                let user_id = app.store.user_id(user)?;
                if self.interest.is_own(&app, &user_id) || self.interest.meets(&app, user, read)? {
                    let event = app.presence.event(user, &user_id, app.clock.now_ms());
                    transaction.ephemeral.push(event);
                }
            }
        }
        Ok(())
    }
}

/// How long to wait after so many failures in a row.
fn backoff(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    BACKOFF_MIN.saturating_mul(doubled).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_doubles_from_a_second_to_five_minutes() {
        let seconds: Vec<u64> = (1..12)
            .map(|failures| backoff(failures).as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
