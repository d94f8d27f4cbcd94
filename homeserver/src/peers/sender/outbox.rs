//! What goes into a transaction, and what its outcome changes in the store.

use std::{sync::Arc, time::Duration};

use federation::wire::{
    edu::write,
    queue::{Batch, Outcome},
    transaction::{PDUS_MAX, Transaction},
};
use ruma::{OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::{
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    kv::Direction,
};

use super::{
    devices::{self, Told},
    rows::{self, Unwritten},
};
use crate::{
    error::{ApiError, ApiResult},
    keys::lists,
    peers::{self, PeerError},
    server::App,
};

/// How long a destination may take to take a transaction.
///
/// Spec: none; others give up after 60 s, and go on with what they were sent.
const TAKE_TIMEOUT: Duration = Duration::from_mins(1);

/// How many EDUs that are kept go into one transaction: half the place, the other half is for moments.
const KEPT_MAX: usize = 50;

/// How large a piece of a transaction is, in bytes, when it is written down.
const PIECE_BYTES: usize = 512 << 10;

/// How many letters and digits the ID of a transaction has; 95 bits, so that none ever returns.
const TXN_ID_CHARS: usize = 16;

/// What a transaction carries of what is in the store: what is deleted when it has arrived.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Carried {
    rooms: Vec<(RoomNum, Position)>,
    messages: Vec<Position>,
    users: Vec<(UserNum, Told)>,
}

/// A transaction with what it carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Parcel {
    pub(super) transaction: Transaction,
    pub(super) carried: Carried,
    /// Kept EDUs are left in the store.
    #[serde(skip)]
    pub(super) kept: bool,
    /// Rooms are left in the store.
    #[serde(skip)]
    pub(super) behind: bool,
}

/// Makes a transaction. What is in the store is written, as it is read here.
pub(super) fn make(app: &App, server: &ServerName, batch: &Batch) -> ApiResult<Parcel> {
    let txn_id = app.entropy.text(TXN_ID_CHARS).into();
    let mut parcel = Parcel {
        transaction: Transaction::new(txn_id, app.clock.now()),
        carried: Carried::default(),
        kept: false,
        behind: false,
    };
    if batch.behind {
        add_rooms(app, server, &mut parcel)?;
    }
    for event in &batch.events {
        parcel.transaction.push_pdu(&event.pdu);
    }
    if batch.kept {
        let place = add_messages(app, server, &mut parcel)?;
        add_users(app, server, &mut parcel, place)?;
    }
    for edu in &batch.moments {
        if !parcel.transaction.push_edu(edu.clone()) {
            break;
        }
    }
    Ok(parcel)
}

/// The newest event of each room that the destination has missed.
fn add_rooms(app: &App, server: &ServerName, parcel: &mut Parcel) -> ApiResult<()> {
    let mut missed = Vec::new();
    let prefix = rows::of(Keyspace::DESTINATION_ROOM, server);
    app.store
        .visit(&prefix, Direction::Ascending, |key, value| {
            let mut parts = Unpack::key(key);
            let room = parts.text().and(parts.room());
            missed.extend(room.zip(Unpack(value).u64()));
            Ok(missed.len() <= PDUS_MAX)
        })?;
    parcel.behind = missed.len() > PDUS_MAX;
    missed.truncate(PDUS_MAX);
    for (room, position) in missed {
        let order = i64::try_from(position).unwrap_or(i64::MAX);
        if let Some(event) = app.store.event_at(room, order)? {
            parcel.transaction.push_pdu(&event.pdu);
        }
        parcel.carried.rooms.push((room, position));
    }
    Ok(())
}

/// Messages to devices, oldest first; how much place is left for other EDUs that are kept.
fn add_messages(app: &App, server: &ServerName, parcel: &mut Parcel) -> ApiResult<usize> {
    let mut place = KEPT_MAX;
    let prefix = rows::of(Keyspace::DESTINATION_MESSAGE, server);
    app.store
        .visit(&prefix, Direction::Ascending, |key, value| {
            let mut parts = Unpack::key(key);
            let position = parts.text().and(parts.position());
            let Some(position) = position else {
                return Ok(true);
            };
            if let Ok(content) = serde_json::from_slice::<Box<RawValue>>(value) {
                let edu = write("m.direct_to_device", &content);
                if place == 0 || !parcel.transaction.push_edu(edu) {
                    parcel.kept = true;
                    place = 0;
                    return Ok(false);
                }
                place -= 1;
            }
            parcel.carried.messages.push(position);
            Ok(true)
        })?;
    Ok(place)
}

/// What changed of the devices of users.
fn add_users(
    app: &App,
    server: &ServerName,
    parcel: &mut Parcel,
    mut place: usize,
) -> ApiResult<()> {
    let mut users = Vec::new();
    let prefix = rows::of(Keyspace::DESTINATION_USER, server);
    app.store.visit(&prefix, Direction::Ascending, |key, _| {
        let mut parts = Unpack::key(key);
        users.extend(parts.text().and(parts.user()));
        Ok(users.len() <= KEPT_MAX)
    })?;
    for (index, user) in users.into_iter().enumerate() {
        let told = app.store.get_raw(rows::told(server, user))?;
        let told = told.and_then(|value| Told::unpack(&value));
        let (edus, until) = devices::edus(app, user, told.unwrap_or_default())?;
        // Those of one user go together, as they are linked.
        if edus.len() > place || index == KEPT_MAX {
            parcel.kept = true;
            break;
        }
        place -= edus.len();
        for edu in edus {
            if !parcel.transaction.push_edu(edu) {
                // What is missing of this user is told again with what went.
                parcel.kept = true;
                return Ok(());
            }
        }
        parcel.carried.users.push((user, until));
    }
    Ok(())
}

/// What became of sending a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sent {
    /// What the queue is told.
    Done(Outcome),
    /// The server may not be sent anything.
    Denied,
}

/// Sends a transaction once.
pub(super) async fn send(
    app: App,
    server: OwnedServerName,
    transaction: Arc<Parcel>,
) -> (OwnedServerName, Sent) {
    let request = transaction.transaction.request(app.server_name());
    // The queue has waited as long as it should.
    app.peers.reached(&server);
    let asking = peers::ask(&app, &server, request);
    let sent = match tokio::time::timeout(TAKE_TIMEOUT, asking).await {
        Ok(Ok(answer)) => {
            for (event_id, outcome) in &answer.pdus {
                if let Err(reason) = outcome {
                    tracing::debug!(%server, %event_id, reason, "an event was not accepted");
                }
            }
            Sent::Done(Outcome::Taken)
        }
        Ok(Err(PeerError::Denied(_))) => Sent::Denied,
        Ok(Err(error)) => {
            let sent = judge(&app, &error);
            if sent == Outcome::Refused {
                let (pdus, edus) = transaction.transaction.counts();
                tracing::warn!(%server, pdus, edus, %error, "a transaction was refused and is dropped");
            } else {
                tracing::debug!(%server, %error, "a transaction was not taken");
            }
            Sent::Done(sent)
        }
        Err(_) => Sent::Done(failed(&app, None)),
    };
    (server, sent)
}

fn failed(app: &App, retry_after_ms: Option<u64>) -> Outcome {
    let share = app.entropy.jitter(Duration::from_secs(1)).as_millis();
    Outcome::Failed {
        retry_after_ms,
        jitter: u32::try_from(share).unwrap_or(0),
    }
}

/// What an error means for a transaction.
///
/// A status of 4xx says that it will never be taken, and what is behind it must not wait for ever. Three do not
/// say that: 401, as the other server may not have got our keys; 404, as what stands before it may be up when it
/// is not; 408 and 429, which say so themselves.
fn judge(app: &App, error: &PeerError) -> Outcome {
    let PeerError::Refused { status, body, .. } = error else {
        return failed(app, None);
    };
    match status.as_u16() {
        401 | 404 | 408 | 429 => {
            let after = body
                .get("retry_after_ms")
                .and_then(serde_json::Value::as_u64);
            failed(app, after)
        }
        400..=499 => Outcome::Refused,
        _ => failed(app, None),
    }
}

/// Deletes what has arrived.
pub(super) fn arrived(
    app: &App,
    unwritten: &mut Unwritten,
    server: &ServerName,
    carried: &Carried,
) -> ApiResult<()> {
    for (room, position) in &carried.rooms {
        let key = rows::room(server, *room);
        let now = unwritten.get(&app.store, key.clone())?;
        if now.and_then(|value| Unpack(&value).u64()) == Some(*position) {
            unwritten.delete(key);
        }
    }
    for position in &carried.messages {
        unwritten.delete(rows::message(server, *position));
    }
    for (user, told) in &carried.users {
        unwritten.put(rows::told(server, *user), told.pack());
        if lists::stream_id(&app.store, *user)? <= told.until {
            unwritten.delete(rows::user(server, *user));
        }
    }
    Ok(())
}

/// Writes down a transaction that has to be sent again.
pub(super) fn pend(
    unwritten: &mut Unwritten,
    server: &ServerName,
    parcel: &Parcel,
) -> ApiResult<()> {
    let body = serde_json::to_vec(parcel).map_err(|error| ApiError::internal(&error))?;
    for (number, piece) in (0..).zip(body.chunks(PIECE_BYTES)) {
        unwritten.put(rows::piece(server, number), Packed::new().raw(piece));
    }
    Ok(())
}

/// The transaction that has to be sent again; `None` when there is none.
pub(super) fn pending(
    app: &App,
    unwritten: &Unwritten,
    server: &ServerName,
) -> ApiResult<Option<Parcel>> {
    let mut body = Vec::new();
    let mut number = 0;
    while let Some(piece) = unwritten.get(&app.store, rows::piece(server, number))? {
        body.extend(piece);
        number += 1;
    }
    Ok(serde_json::from_slice(&body).ok())
}
