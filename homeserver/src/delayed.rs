//! Delayed events (MSC4140): sent when their time comes, unless somebody restarts or cancels them.
//!
//! They survive restarts, and what is overdue is sent at the start. An event is sent under a transaction
//! of its own, so that a crash between sending it and forgetting it does not send it twice. Whoever has
//! the ID may restart, cancel or send: a client that is about to disappear leaves it with a service.

use std::time::Duration;

use federation::event::Draft;
use http::StatusCode;
use ruma::{OwnedDeviceId, OwnedRoomId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use sha2::{Digest as _, Sha256};
use store::{
    Commit,
    keys::{Keyspace, Packed, Table, Unpack, UserNum},
    kv::Direction,
    log::LogEntry,
};
use tokio::sync::{Mutex, Notify};

use crate::{
    error::{ApiError, ApiResult},
    http::Caller,
    rooms::send::{self, Outgoing},
    server::App,
};

const DELAYED: Table<DelayedRow> = Table::new(Keyspace::DELAYED);

/// How many overdue events are looked at together.
const BATCH_MAX: usize = 100;

/// How long to wait before looking again when the store failed.
const RETRY: Duration = Duration::from_secs(5);

/// How many entries of the log are read together.
const LOG_ENTRIES_MAX: usize = 256;

/// An event that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct DelayedRow {
    user: UserNum,
    device: Option<OwnedDeviceId>,
    room_id: OwnedRoomId,
    kind: String,
    state_key: Option<String>,
    content: Box<RawValue>,
    delay_ms: u64,
    /// Since when the delay runs, in milliseconds since the epoch.
    since_ms: u64,
    /// The key of the transaction that scheduled it.
    txn: Option<Vec<u8>>,
}

/// What wakes the task that sends.
#[derive(Debug, Default)]
pub struct Delayed {
    changed: Notify,
    /// Held while the events that wait are changed.
    changing: Mutex<()>,
}

/// What may be done with an event that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forget it.
    Cancel,
    /// Let its delay begin anew.
    Restart,
    /// Send it now.
    Send,
}

impl Action {
    /// The action of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "cancel" => Some(Self::Cancel),
            "restart" => Some(Self::Restart),
            "send" => Some(Self::Send),
            _ => None,
        }
    }
}

fn due_key(at_ms: u64, id: &str) -> Packed {
    Packed::key(Keyspace::DELAYED_DUE).u64(at_ms).text(id)
}

fn user_key(user: UserNum) -> Packed {
    Packed::key(Keyspace::DELAYED_USER).user(user)
}

fn state_key(room_id: &RoomId, kind: &str, state_key: &str) -> Packed {
    let target = Sha256::digest(json!([room_id, kind, state_key]).to_string());
    Packed::key(Keyspace::DELAYED_STATE).raw(&target)
}

/// Schedules an event and returns its delay ID; the same transaction gives the same ID.
///
/// # Errors
/// `M_UNKNOWN` with `org.matrix.msc4140.errcode` for a delay that is too long or too many events;
/// `M_FORBIDDEN` when the caller is not joined.
pub async fn schedule(
    app: &App,
    caller: &Caller,
    room_id: &RoomId,
    delay_ms: u64,
    txn_id: Option<&str>,
    draft: impl FnOnce() -> ApiResult<Draft>,
) -> ApiResult<String> {
    let delay_ms_max = app.config.delayed_events.delay_seconds_max * 1_000;
    if delay_ms > delay_ms_max {
        return Err(ApiError::unknown("the delay is too long")
            .with("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED")
            .with("org.matrix.msc4140.max_delay", delay_ms_max));
    }
    let txn = txn_id.map(|txn_id| {
        let request = json!([caller.device, room_id, txn_id]).to_string();
        Packed::key(Keyspace::DELAYED_TXN)
            .user(caller.user)
            .raw(&Sha256::digest(request))
    });
    let _changing = app.delayed.changing.lock().await;
    if let Some(txn) = &txn
        && let Some(id) = app.store.get_raw(txn.clone())?
    {
        return Ok(String::from_utf8_lossy(&id).into_owned());
    }
    let draft = draft()?;
    if !crate::rooms::members::is_joined(app, caller.user, room_id)? {
        return Err(ApiError::forbidden("you are not joined to this room"));
    }
    if ids_of(app, &user_key(caller.user))?.len() >= app.config.delayed_events.per_user_max {
        return Err(ApiError::unknown("you have too many events waiting").with(
            "org.matrix.msc4140.errcode",
            "M_MAX_DELAYED_EVENTS_EXCEEDED",
        ));
    }
    let id = app.entropy.text(24);
    let row = DelayedRow {
        user: caller.user,
        device: caller.device.clone(),
        room_id: room_id.to_owned(),
        kind: draft.kind,
        state_key: draft.state_key,
        content: draft.content,
        delay_ms,
        since_ms: app.clock.now_ms(),
        txn: txn.clone().map(Packed::into_bytes),
    };
    let mut commit = Commit::new();
    commit.put(DELAYED, DELAYED.key().text(&id), &row);
    commit.put_raw(due_key(row.since_ms + delay_ms, &id), Packed::new());
    commit.put_raw(user_key(caller.user).text(&id), Packed::new());
    if let Some(key) = &row.state_key {
        commit.put_raw(state_key(room_id, &row.kind, key).text(&id), Packed::new());
    }
    if let Some(txn) = txn {
        commit.put_raw(txn, Packed::new().raw(id.as_bytes()));
    }
    app.store.commit(commit).await?;
    app.delayed.changed.notify_one();
    Ok(id)
}

/// The delay IDs behind a prefix.
fn ids_of(app: &App, prefix: &Packed) -> ApiResult<Vec<String>> {
    let length = prefix.clone().into_bytes().len();
    let mut ids = Vec::new();
    app.store.visit(prefix, Direction::Ascending, |key, _| {
        ids.extend(key.get(length..).and_then(|rest| Unpack(rest).text()));
        Ok(true)
    })?;
    Ok(ids)
}

/// Does something with an event that waits.
///
/// # Errors
/// `M_NOT_FOUND` when no such event waits; what sending it fails with.
pub async fn act(app: &App, id: &str, action: Action) -> ApiResult<()> {
    let _changing = app.delayed.changing.lock().await;
    let row = app.store.get(DELAYED, DELAYED.key().text(id))?;
    let mut row = row.ok_or_else(|| ApiError::not_found("no such event waits"))?;
    match action {
        Action::Cancel => forget(app, id, &row).await?,
        Action::Send => {
            send_now(app, id, &row).await?;
            forget(app, id, &row).await?;
        }
        Action::Restart => {
            let mut commit = Commit::new();
            commit.delete(due_key(row.since_ms + row.delay_ms, id));
            row.since_ms = app.clock.now_ms();
            commit.put(DELAYED, DELAYED.key().text(id), &row);
            commit.put_raw(due_key(row.since_ms + row.delay_ms, id), Packed::new());
            app.store.commit(commit).await?;
        }
    }
    app.delayed.changed.notify_one();
    Ok(())
}

async fn forget(app: &App, id: &str, row: &DelayedRow) -> ApiResult<()> {
    let mut commit = Commit::new();
    commit.delete(DELAYED.key().text(id));
    commit.delete(due_key(row.since_ms + row.delay_ms, id));
    commit.delete(user_key(row.user).text(id));
    if let Some(key) = &row.state_key {
        commit.delete(state_key(&row.room_id, &row.kind, key).text(id));
    }
    if let Some(txn) = &row.txn {
        commit.delete(Packed::new().raw(txn));
    }
    app.store.commit(commit).await?;
    Ok(())
}

/// Sends an event that waited, as the user who scheduled it.
async fn send_now(app: &App, id: &str, row: &DelayedRow) -> ApiResult<()> {
    let account = app
        .accounts
        .user(row.user)?
        .filter(|account| !account.deactivated);
    let caller = Caller {
        user: row.user,
        user_id: app.store.user_id(row.user)?,
        // Some device must own the transaction; that of an application service has none.
        device: Some(row.device.clone().unwrap_or_else(|| "delayed".into())),
        session: None,
        service: None,
        account: account.ok_or_else(|| ApiError::forbidden("the account is gone"))?,
        address: std::net::Ipv4Addr::LOCALHOST.into(),
    };
    let draft = Draft {
        kind: row.kind.clone(),
        state_key: row.state_key.clone(),
        content: row.content.clone(),
        redacts: None,
    };
    let outgoing = Outgoing {
        draft,
        txn_id: Some(format!("delayed {id}")),
        timestamp: None,
    };
    send::send(app, &caller, &row.room_id, outgoing)
        .await
        .map(drop)
}

/// The events of a user that wait, oldest first.
///
/// # Errors
/// When the store cannot be read.
pub fn list(app: &App, user: UserNum) -> ApiResult<Vec<Value>> {
    let mut rows = Vec::new();
    for id in ids_of(app, &user_key(user))? {
        let row = app.store.get(DELAYED, DELAYED.key().text(&id))?;
        rows.extend(row.map(|row| (row.since_ms, describe(&id, &row))));
    }
    rows.sort_by_key(|(since_ms, _)| *since_ms);
    Ok(rows.into_iter().map(|(_, described)| described).collect())
}

/// One event of a user that waits.
///
/// # Errors
/// `M_NOT_FOUND` when no such event of theirs waits.
pub fn one(app: &App, user: UserNum, id: &str) -> ApiResult<Value> {
    let row = app
        .store
        .get(DELAYED, DELAYED.key().text(id))?
        .filter(|row| row.user == user);
    row.map(|row| describe(id, &row))
        .ok_or_else(|| ApiError::not_found("no such event waits"))
}

fn describe(id: &str, row: &DelayedRow) -> Value {
    let mut described = json!({
        "delay_id": id,
        "room_id": row.room_id,
        "type": row.kind,
        "content": row.content,
        "delay": row.delay_ms,
        "running_since": row.since_ms,
    });
    if let (Some(described), Some(key)) = (described.as_object_mut(), &row.state_key) {
        described.insert("state_key".to_owned(), key.clone().into());
    }
    described
}

/// Sends what is due, for as long as the server runs.
pub async fn send_due(app: App) {
    loop {
        let pause = match due(&app) {
            Ok((ids, _)) if !ids.is_empty() => {
                let mut failed = false;
                for id in ids {
                    failed |= !send_one(&app, &id).await;
                }
                if failed { RETRY } else { Duration::ZERO }
            }
            Ok((_, Some(next_ms))) => {
                Duration::from_millis(next_ms.saturating_sub(app.clock.now_ms()))
            }
            Ok((_, None)) => Duration::MAX,
            Err(_) => RETRY,
        };
        tokio::select! {
            biased;
            () = app.delayed.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The IDs of what is due, and when the next one is.
fn due(app: &App) -> ApiResult<(Vec<String>, Option<u64>)> {
    let now_ms = app.clock.now_ms();
    let (mut ids, mut next_ms) = (Vec::new(), None);
    app.store.visit(
        &Packed::key(Keyspace::DELAYED_DUE),
        Direction::Ascending,
        |key, _| {
            let mut parts = Unpack::key(key);
            let Some((at_ms, id)) = parts.u64().zip(parts.text()) else {
                return Ok(true);
            };
            if at_ms > now_ms {
                next_ms = Some(at_ms);
                return Ok(false);
            }
            ids.push(id);
            Ok(ids.len() < BATCH_MAX)
        },
    )?;
    Ok((ids, next_ms))
}

/// Sends one event whose time has come. `false`: try again.
async fn send_one(app: &App, id: &str) -> bool {
    let _changing = app.delayed.changing.lock().await;
    let Ok(row) = app.store.get(DELAYED, DELAYED.key().text(id)) else {
        return false;
    };
    let Some(row) = row.filter(|row| row.since_ms + row.delay_ms <= app.clock.now_ms()) else {
        return true;
    };
    if let Err(error) = send_now(app, id, &row).await {
        if error.status == StatusCode::INTERNAL_SERVER_ERROR {
            return false;
        }
        tracing::info!(reason = %error.message, "a delayed event cannot be sent any more");
    }
    forget(app, id, &row).await.is_ok()
}

/// Cancels what waits to set a state that another user has set meanwhile, for as long as the server runs.
pub async fn cancel_overtaken(app: App) {
    let mut position = app.store.published();
    let reader = app.metrics.reader("overtaken events");
    loop {
        for (at, entry) in reader.next(&app.store, position, LOG_ENTRIES_MAX).await {
            position = at;
            let LogEntry::Event(event) = entry else {
                continue;
            };
            let Some(key) = event.pdu.state_key() else {
                continue;
            };
            let prefix = state_key(event.pdu.room_id(), &event.pdu.kind().to_string(), key);
            let sender = app.store.find_user(event.pdu.sender()).ok().flatten();
            for id in ids_of(&app, &prefix).unwrap_or_default() {
                let row = app
                    .store
                    .get(DELAYED, DELAYED.key().text(&id))
                    .ok()
                    .flatten();
                if row.is_some_and(|row| Some(row.user) != sender) {
                    // Gone already is as good.
                    drop(act(&app, &id, Action::Cancel).await);
                }
            }
        }
    }
}
