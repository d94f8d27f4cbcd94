//! Guests leave a room that no longer lets them in.
//!
//! A reader of the log, which remembers how far it came: a room that was closed just before a crash is
//! cleared after it. Spec: client-server API, "Guest Access", server behaviour.

use federation::event::Draft;
use serde_json::json;
use store::{
    Commit,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    log::LogEntry,
    rooms::Membership,
};

use crate::{
    error::{ApiError, ApiResult},
    log::Reader,
    rooms::{members::guests_may_join, turn::Append},
    server::App,
};

/// How many entries of the log are read at a time.
const LOG_ENTRIES_MAX: usize = 256;

/// How many entries may be read once more after a restart, which changes nothing.
const CURSOR_EVERY_ENTRIES: u64 = 4_096;

/// How long after a failure of the store the work is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(10);

fn cursor() -> Packed {
    Packed::key(Keyspace::CURSOR).text("guests")
}

/// Watches for rooms that shut out guests, for ever.
pub async fn watch(app: App) {
    let reader = app.metrics.reader("guests");
    loop {
        if let Err(error) = read_log(&app, &reader).await {
            tracing::error!(error = %error.message, "guests could not be made to leave; trying again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Follows the log from where it was left. Ends only with an error.
async fn read_log(app: &App, reader: &Reader) -> ApiResult<()> {
    let stored = app.store.get_raw(cursor())?;
    // Without a cursor from the beginning: what was closed before is looked at again.
    let mut position = stored.and_then(|value| Unpack(&value).u64()).unwrap_or(0);
    let mut remembered = position;
    loop {
        for (at, entry) in reader.next(&app.store, position, LOG_ENTRIES_MAX).await {
            if let LogEntry::Event(event) = entry
                && event.pdu.is_state("m.room.guest_access", "")
            {
                clear(app, event.room).await?;
            }
            position = at;
        }
        if position - remembered >= CURSOR_EVERY_ENTRIES {
            remember(app, position).await?;
            remembered = position;
        }
    }
}

async fn remember(app: &App, position: Position) -> ApiResult<()> {
    let mut commit = Commit::new();
    commit.put_raw(cursor(), Packed::new().u64(position));
    app.store.commit(commit).await?;
    Ok(())
}

/// Makes the guests of this server leave a room, unless it lets them in.
async fn clear(app: &App, room: RoomNum) -> ApiResult<()> {
    let Some(view) = app.store.room(room)? else {
        return Ok(());
    };
    for (user, membership) in &view.head.members {
        if *membership == Membership::Join && is_guest(app, *user)? {
            match leave(app, &view.room_id, *user).await {
                Err(error) if error.status.is_server_error() => return Err(error),
                Err(error) => {
                    tracing::warn!(reason = %error.message, "a guest could not be made to leave");
                }
                Ok(true) => {}
                // The room lets them in, again or still.
                Ok(false) => return Ok(()),
            }
        }
    }
    Ok(())
}

fn is_guest(app: &App, user: UserNum) -> ApiResult<bool> {
    Ok(app.accounts.user(user)?.is_some_and(|row| row.guest))
}

/// Whether the room shuts out guests; if so, this one has left it.
async fn leave(app: &App, room_id: &ruma::RoomId, user: UserNum) -> ApiResult<bool> {
    let user_id = app.store.user_id(user)?;
    let mut turn = app.rooms.turn(app, room_id).await?;
    if guests_may_join(&turn)? {
        return Ok(false);
    }
    if turn.membership(&user_id)? != Membership::Join {
        return Ok(true);
    }
    let content = serde_json::value::to_raw_value(&json!({ "membership": "leave" }))
        .map_err(|error| ApiError::internal(&error))?;
    let append = Append {
        sender: user_id.clone(),
        draft: Draft::state("m.room.member", user_id.as_str(), content),
        origin_server_ts: app.clock.now(),
        txn: None,
    };
    let mut commit = Commit::new();
    turn.append(&mut commit, append).await?;
    turn.finish(commit).await?.flushed().await?;
    Ok(true)
}
