//! Making transactions, sending them, and what becomes of them.

use std::sync::Arc;

use federation::wire::queue::{Batch, Input, Next, Outcome};
use futures_util::FutureExt as _;
use ruma::ServerName;
use store::keys::Keyspace;

use super::{Reader, Sending};
use crate::{
    error::ApiResult,
    peers::sender::{
        outbox::{self, Parcel, Sent},
        rows::{self, DESTINATIONS},
    },
};

/// How many destinations are sent something at the same time; the others wait for their turn.
const SENDS_MAX: usize = 200;

/// How many servers that may not be sent anything are remembered; others are found out again.
const DENIED_MAX: usize = 10_000;

/// For how long messages to devices wait for a server that does not come back, in milliseconds: 30 days. The
/// devices on both sides have long made new sessions by then.
const MESSAGES_WAIT_MS_MAX: u64 = 30 * 86_400_000;

impl Reader {
    /// Begins to send what may be sent now.
    pub(super) async fn start(&mut self, sending: &mut Sending) -> ApiResult<()> {
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
                let rooms = rooms.map(|event| (event.room, event.place)).collect();
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
    pub(super) fn sent(&mut self, server: &ServerName, sent: Sent) {
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
            Sent::Denied => return self.deny(server),
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

    /// Forgets a destination that may not be sent anything, and that it may not: the configuration does not change
    /// while the server runs.
    fn deny(&mut self, server: &ServerName) -> ApiResult<()> {
        tracing::debug!(%server, "nothing is sent to a server that is not federated with");
        for keyspace in rows::OF_DESTINATION {
            let prefix = rows::of(keyspace, server);
            self.unwritten.delete_all(&self.app.store, &prefix)?;
        }
        if self.denied.len() >= DENIED_MAX {
            self.denied.clear();
        }
        self.denied.insert(server.to_owned());
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
}
