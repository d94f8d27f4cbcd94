//! What a change of an account has still to do in its rooms: show a new name and avatar, or leave.
//!
//! The work is a row that is written with the change and removed when all rooms are done, so that a
//! restart takes it up again. Spec: client-server API, "Events on Change of Profile Information",
//! "Account deactivation".

use federation::event::Draft;
use ruma::UserId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::{
    Commit,
    keys::{Keyspace, RoomNum, Table, Unpack, UserNum},
    rooms::Membership,
};
use tokio::sync::Notify;

use crate::{
    error::{ApiError, ApiResult},
    rooms::turn::Append,
    server::App,
};

const UPKEEP: Table<Work> = Table::new(Keyspace::UPKEEP);

/// How many users' work is taken up at a time.
const BATCH_USERS_MAX: usize = 64;

/// How long after a failure of the store the work is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Work {
    leave: bool,
    /// Tells this work from later work of the same kind.
    nonce: String,
}

/// Wakes the task that does the work.
#[derive(Debug, Default)]
pub struct Upkeep {
    more: Notify,
    /// Held where rows are written or removed.
    rows: tokio::sync::Mutex<()>,
}

impl Upkeep {
    /// Begins work that is written in the commit; the right to write it, until the commit is made.
    pub async fn begin(
        &self,
        app: &App,
        commit: &mut Commit,
        user: UserNum,
        leave: bool,
    ) -> Begun<'_> {
        let row = self.rows.lock().await;
        let work = Work {
            leave,
            nonce: app.entropy.text(12),
        };
        commit.put(UPKEEP, UPKEEP.key().user(user), &work);
        Begun {
            upkeep: self,
            _row: row,
        }
    }
}

/// Work whose row is being written. Dropped after the commit, it lets the work start.
#[derive(Debug)]
pub struct Begun<'a> {
    upkeep: &'a Upkeep,
    _row: tokio::sync::MutexGuard<'a, ()>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.upkeep.more.notify_one();
    }
}

/// Does what there is to do, for ever.
pub async fn run(app: App) {
    loop {
        match round(&app).await {
            Ok(true) => {}
            Ok(false) => app.upkeep.more.notified().await,
            Err(error) => {
                tracing::error!(error = %error.message, "rooms were not told of an account's change; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Does some of the work; whether there was any.
async fn round(app: &App) -> ApiResult<bool> {
    let rows = app.store.rows(UPKEEP, &UPKEEP.key(), BATCH_USERS_MAX)?;
    let any = !rows.is_empty();
    for (key, work) in rows {
        let Some(user) = Unpack(&key).user() else {
            continue;
        };
        let user_id = app.store.user_id(user)?;
        for (room, row) in app.store.user_rooms(user)? {
            let done = match (work.leave, row.membership) {
                (true, Membership::Join | Membership::Invite | Membership::Knock) => {
                    leave(app, room, &user_id).await
                }
                (false, Membership::Join) => show_profile(app, room, user, &user_id).await,
                _ => Ok(()),
            };
            // A room may refuse, such as one of a version or state that allows nothing any more.
            if let Err(error) = done {
                if error.status.is_server_error() {
                    return Err(error);
                }
                tracing::warn!(%user_id, error = %error.message, "a room refused an account's change");
            }
        }
        let _row = app.upkeep.rows.lock().await;
        if app.store.get(UPKEEP, UPKEEP.key().user(user))? == Some(work) {
            let mut commit = Commit::new();
            commit.delete(UPKEEP.key().user(user));
            app.store.commit(commit).await?;
        }
    }
    Ok(any)
}

async fn leave(app: &App, room: RoomNum, user_id: &UserId) -> ApiResult<()> {
    let mut content = Map::new();
    content.insert("membership".to_owned(), "leave".into());
    append(app, room, user_id, content, |present| {
        present != Membership::Leave && present != Membership::Ban
    })
    .await
}

async fn show_profile(app: &App, room: RoomNum, user: UserNum, user_id: &UserId) -> ApiResult<()> {
    let mut content = Map::new();
    content.insert("membership".to_owned(), "join".into());
    let mut profile = app.accounts.profile(user)?;
    for key in ["displayname", "avatar_url"] {
        if let Some(value) = profile.remove(key) {
            content.insert(key.to_owned(), value);
        }
    }
    append(app, room, user_id, content, |present| {
        present == Membership::Join
    })
    .await
}

/// Queues a membership event of a user's own, unless their membership no longer calls for it or
/// says the same already.
async fn append(
    app: &App,
    room: RoomNum,
    user_id: &UserId,
    content: Map<String, Value>,
    applies: impl Fn(Membership) -> bool,
) -> ApiResult<()> {
    let Some(room_id) = app.store.room_id(room)? else {
        return Ok(());
    };
    let mut turn = app.rooms.turn(app, &room_id).await?;
    if !applies(turn.membership(user_id)?) {
        return Ok(());
    }
    let present = turn.state_event("m.room.member", user_id.as_str())?;
    let present: Option<Map<String, Value>> = present.and_then(|event| event.content_as());
    let same = present.is_some_and(|present| {
        ["membership", "displayname", "avatar_url"]
            .iter()
            .all(|key| present.get(*key) == content.get(*key))
    });
    if same {
        return Ok(());
    }
    let content =
        serde_json::value::to_raw_value(&content).map_err(|error| ApiError::internal(&error))?;
    let append = Append {
        sender: user_id.to_owned(),
        draft: Draft::state("m.room.member", user_id.as_str(), content),
        origin_server_ts: app.clock.now(),
        txn: None,
    };
    let mut commit = Commit::new();
    turn.append(&mut commit, append).await?;
    // The row of the work is removed in a later commit, so this one is durable by then.
    drop(turn.finish(commit).await?);
    Ok(())
}
