//! Thread subscriptions: which threads a user wants to hear of, on all of their devices.
//!
//! One row for each user and thread, which says as well that the user does *not* want to hear of it
//! any more, and an index by position for sliding sync. What follows from a subscription is for
//! clients to decide. Spec: MSC4306, MSC4308.

use std::collections::BTreeMap;

use ruma::{EventId, OwnedEventId, OwnedRoomId};
use serde::{Deserialize, Serialize};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    kv::Direction,
    log::Change,
};

use crate::{
    error::{ApiError, ApiResult},
    rooms::{read::Seen, relations::Relation},
    server::App,
    sync::Token,
};

/// For how many threads a user's wish is remembered: the one that changed longest ago gives way.
const THREADS_USER_MAX: usize = 5_000;

/// How many changes a page has when the client names no number. Spec: MSC4308.
pub const PAGE_DEFAULT: u64 = 100;

/// How many changes a page has at most.
pub const PAGE_MAX: u64 = 500;

/// What a user wants of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// To hear of it: they said so.
    Manual,
    /// To hear of it: their client said so.
    Automatic,
    /// Not to hear of it any more.
    Unsubscribed,
}

impl Wish {
    /// Whether the client subscribed of itself; `None` when there is no subscription.
    pub fn automatic(self) -> Option<bool> {
        (self != Self::Unsubscribed).then_some(self == Self::Automatic)
    }
}

fn key(user: UserNum, room: RoomNum, root: &EventId) -> Packed {
    Packed::key(Keyspace::THREAD_SUBSCRIPTION)
        .user(user)
        .room(room)
        .event(root)
}

fn change_key(user: UserNum) -> Packed {
    Packed::key(Keyspace::THREAD_SUBSCRIPTION_CHANGE).user(user)
}

fn change_key_at(user: UserNum, position: Position) -> Packed {
    change_key(user).i64(i64::try_from(position).unwrap_or(i64::MAX))
}

/// What a user wants of a thread, and since which position; `None` when they never said.
///
/// # Errors
/// When the store cannot be read.
pub fn get(
    store: &Store,
    user: UserNum,
    room: RoomNum,
    root: &EventId,
) -> Result<Option<(Position, Wish)>, StoreError> {
    let Some(value) = store.get_raw(key(user, room, root))? else {
        return Ok(None);
    };
    let mut parts = Unpack(&value);
    let position = parts.position();
    Ok(position.zip(serde_json::from_slice(parts.0).ok()))
}

/// Subscribes a user to the thread of `root`: because they want to, or because of `cause`, an event
/// of it. Nothing changes where they are subscribed already, but that their own wish counts for more.
///
/// # Errors
/// `M_NOT_IN_THREAD` when `cause` does not answer in the thread; `M_CONFLICTING_UNSUBSCRIPTION` when
/// the user unsubscribed after it; when the store cannot be read or written.
pub async fn subscribe(
    app: &App,
    user: UserNum,
    root: &Seen,
    cause: Option<&Seen>,
) -> ApiResult<()> {
    if let Some(cause) = cause {
        let relation = Relation::of(&cause.event.pdu);
        let in_thread = relation.is_some_and(|relation| {
            relation.rel_type == "m.thread" && relation.target == root.event.pdu.event_id()
        });
        if !in_thread {
            return Err(ApiError::not_in_thread(
                "`automatic` is not the ID of an event in this thread",
            ));
        }
    }
    let _turn = app.account_data_turns.of(user).await;
    let (room, root) = (root.event.room, root.event.pdu.event_id());
    let before = get(&app.store, user, room, root)?;
    let wish = match (before, cause) {
        (Some((_, Wish::Manual)), _) | (Some((_, Wish::Automatic)), Some(_)) => return Ok(()),
        // The order of a live event is its position; what was backfilled is older than any of them.
        (Some((since, Wish::Unsubscribed)), Some(cause))
            if u64::try_from(cause.event.order).is_ok_and(|order| order > since) =>
        {
            Wish::Automatic
        }
        (Some((_, Wish::Unsubscribed)), Some(_)) => {
            return Err(ApiError::conflicting_unsubscription(
                "you unsubscribed from the thread after that event",
            ));
        }
        (None, Some(_)) => Wish::Automatic,
        (_, None) => Wish::Manual,
    };
    write(app, user, (room, root), before, wish).await
}

/// Unsubscribes a user from the thread of `root`. Nothing changes where they are not subscribed.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn unsubscribe(app: &App, user: UserNum, root: &Seen) -> ApiResult<()> {
    let _turn = app.account_data_turns.of(user).await;
    let (room, root) = (root.event.room, root.event.pdu.event_id());
    let before = get(&app.store, user, room, root)?;
    if before.is_none_or(|(_, wish)| wish == Wish::Unsubscribed) {
        return Ok(());
    }
    write(app, user, (room, root), before, Wish::Unsubscribed).await
}

/// Writes what a user wants of a thread; the user's turn is held.
async fn write(
    app: &App,
    user: UserNum,
    (room, root): (RoomNum, &EventId),
    before: Option<(Position, Wish)>,
    wish: Wish,
) -> ApiResult<()> {
    let mut commit = Commit::new();
    match before {
        Some((position, _)) => commit.delete(change_key_at(user, position)),
        None => make_place(&app.store, &mut commit, user, THREADS_USER_MAX)?,
    }
    put(&mut commit, user, (room, root), wish);
    app.store.commit(commit).await?;
    Ok(())
}

fn put(commit: &mut Commit, user: UserNum, (room, root): (RoomNum, &EventId), wish: Wish) {
    let entry = commit.log(Change::ThreadSubscription { user });
    let json = serde_json::to_vec(&wish).expect("a name always serialises");
    commit.put_raw_at(
        entry,
        key(user, room, root),
        Packed::new().position().raw(&json),
    );
    commit.put_raw_at(
        entry,
        change_key(user).position(),
        Packed::new().room(room).text(root.as_str()),
    );
}

/// Forgets what a user wants of the thread that changed longest ago, if `most` are remembered.
fn make_place(
    store: &Store,
    commit: &mut Commit,
    user: UserNum,
    most: usize,
) -> Result<(), StoreError> {
    let mut oldest = None;
    let mut count = 0;
    store.visit(&change_key(user), Direction::Ascending, |key, value| {
        count += 1;
        oldest.get_or_insert_with(|| (key.to_vec(), value.to_vec()));
        Ok(count < most)
    })?;
    let Some((change, value)) = oldest.filter(|_| count >= most) else {
        return Ok(());
    };
    if let Some((room, root)) = thread(&value) {
        commit.delete(key(user, room, &root));
    }
    let position = Unpack(change.get(9..).unwrap_or_default()).position();
    if let Some(position) = position {
        commit.delete(change_key_at(user, position));
    }
    Ok(())
}

fn thread(value: &[u8]) -> Option<(RoomNum, OwnedEventId)> {
    let mut parts = Unpack(value);
    let room = parts.room()?;
    Some((room, OwnedEventId::try_from(parts.text()?).ok()?))
}

/// What changed in a user's subscriptions, as clients get it.
#[derive(Debug, Default, Serialize)]
pub struct Page {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subscribed: BTreeMap<OwnedRoomId, BTreeMap<OwnedEventId, Subscribed>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unsubscribed: BTreeMap<OwnedRoomId, BTreeMap<OwnedEventId, Unsubscribed>>,
    /// Where there is more, going back.
    #[serde(skip)]
    pub more: Option<Token>,
}

#[derive(Debug, Serialize)]
struct Subscribed {
    automatic: bool,
    bump_stamp: Position,
}

#[derive(Debug, Serialize)]
struct Unsubscribed {
    bump_stamp: Position,
}

impl Page {
    /// The threads of a user that changed last in `since < position <= until`, each once, at most
    /// `limit` of them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn read(
        app: &App,
        user: UserNum,
        since: Position,
        until: Position,
        limit: usize,
    ) -> ApiResult<Self> {
        let mut page = Self::default();
        let mut named: Vec<(Position, RoomNum, OwnedEventId)> = Vec::new();
        app.store.visit_range(
            &change_key_at(user, since.saturating_add(1)).into_bytes(),
            &change_key_at(user, until.saturating_add(1)).into_bytes(),
            Direction::Descending,
            |key, value| {
                if named.len() == limit {
                    page.more = named
                        .last()
                        .and_then(|(last, ..)| i64::try_from(*last).ok())
                        .map(Token::before);
                    return Ok(false);
                }
                let mut parts = Unpack::key(key);
                let position = parts.user().and_then(|_| parts.position());
                let change = position.zip(thread(value));
                named.extend(change.map(|(position, (room, root))| (position, room, root)));
                Ok(true)
            },
        )?;
        for (_, room, root) in named {
            let row = get(&app.store, user, room, &root)?;
            let (Some((bump_stamp, wish)), Some(room_id)) = (row, app.store.room_id(room)?) else {
                continue;
            };
            if let Some(automatic) = wish.automatic() {
                let of_room = page.subscribed.entry(room_id).or_default();
                let subscribed = Subscribed {
                    automatic,
                    bump_stamp,
                };
                of_room.insert(root, subscribed);
            } else {
                let of_room = page.unsubscribed.entry(room_id).or_default();
                of_room.insert(root, Unsubscribed { bump_stamp });
            }
        }
        Ok(page)
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.subscribed.is_empty() && self.unsubscribed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ruma::event_id;
    use store::{CacheSizes, kv::Engine};

    use super::*;

    #[tokio::test]
    async fn the_thread_that_changed_longest_ago_gives_way() {
        let directory = tempfile::tempdir().unwrap();
        let sizes = CacheSizes::default();
        let store = Store::open(Engine::Memory, directory.path(), sizes).unwrap();
        let (user, other, room) = (UserNum(1), UserNum(2), RoomNum(1));
        let roots = [event_id!("$one"), event_id!("$two"), event_id!("$three")];
        for user in [other, user] {
            for root in roots {
                let mut commit = Commit::new();
                make_place(&store, &mut commit, user, 2).unwrap();
                put(&mut commit, user, (room, root), Wish::Manual);
                store.commit(commit).await.unwrap();
            }
        }
        for user in [other, user] {
            let kept = roots.map(|root| get(&store, user, room, root).unwrap().is_some());
            assert_eq!(kept, [false, true, true]);
            let mut changes = 0;
            let count = |_: &[u8], _: &[u8]| {
                changes += 1;
                Ok(true)
            };
            let prefix = change_key(user);
            store.visit(&prefix, Direction::Ascending, count).unwrap();
            assert_eq!(changes, 2);
        }
    }
}
