//! Receipts: how far users have read.
//!
//! One row for each user, room, receipt type and thread, and an index by position for `/sync`.
//! Spec: client-server API, "Receipts", "Threaded read receipts".

use ruma::{OwnedEventId, events::receipt::ReceiptThread};
use serde::{Deserialize, Serialize};
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, Position, RoomNum, Unpack, UserNum},
    kv::Direction,
    log::Change,
};

/// How far a user has read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiptRow {
    /// Up to which event.
    pub event_id: OwnedEventId,
    /// Where that event is in the timeline.
    pub order: i64,
    /// When they said so, in milliseconds since the epoch.
    pub ts: u64,
}

/// A receipt of a user in a room.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Whose.
    pub user: UserNum,
    /// `m.read` or `m.read.private`.
    pub kind: String,
    /// Empty for an unthreaded one, `main`, or a thread root's event ID.
    pub thread: String,
    /// How far.
    pub row: ReceiptRow,
}

/// A receipt's thread as it stands in keys.
pub fn thread_key(thread: &ReceiptThread) -> String {
    thread.as_str().unwrap_or_default().to_owned()
}

fn key(room: RoomNum, user: UserNum, kind: &str, thread: &str) -> Packed {
    Packed::key(Keyspace::RECEIPT)
        .room(room)
        .user(user)
        .text(kind)
        .text(thread)
}

fn parse(value: &[u8]) -> Option<(Position, ReceiptRow)> {
    let mut parts = Unpack(value);
    let position = parts.position()?;
    Some((position, serde_json::from_slice(parts.0).ok()?))
}

/// Sets a receipt, unless the user has read further already. Says whether it was set.
///
/// # Errors
/// When the store cannot be read.
pub fn put(
    store: &Store,
    commit: &mut Commit,
    room: RoomNum,
    receipt: &Receipt,
) -> Result<bool, StoreError> {
    let Receipt {
        user,
        kind,
        thread,
        row,
    } = receipt;
    let key = || key(room, *user, kind, thread);
    let change_key = || Packed::key(Keyspace::RECEIPT_CHANGE).room(room);
    if let Some((position, old)) = store.get_raw(key())?.as_deref().and_then(parse) {
        if old.order >= row.order {
            return Ok(false);
        }
        commit.delete(change_key().i64(i64::try_from(position).unwrap_or(i64::MAX)));
    }
    let private = kind == "m.read.private";
    let entry = commit.log(Change::Receipt {
        room,
        user: *user,
        private,
    });
    let json = serde_json::to_vec(row).expect("strings and numbers always serialise");
    commit.put_raw_at(entry, key(), Packed::new().position().raw(&json));
    commit.put_raw_at(
        entry,
        change_key().position(),
        Packed::new().user(*user).text(kind).text(thread),
    );
    Ok(true)
}

/// The receipts of a user in a room.
///
/// # Errors
/// When the store cannot be read.
pub fn of_user(store: &Store, room: RoomNum, user: UserNum) -> Result<Vec<Receipt>, StoreError> {
    let mut receipts = Vec::new();
    let prefix = Packed::key(Keyspace::RECEIPT).room(room).user(user);
    store.visit(&prefix, Direction::Ascending, |key, value| {
        receipts.extend(receipt(key, value));
        Ok(true)
    })?;
    Ok(receipts)
}

/// Every receipt in a room that `viewer` may see, at most `limit`.
///
/// # Errors
/// When the store cannot be read.
pub fn all(
    store: &Store,
    room: RoomNum,
    viewer: UserNum,
    limit: usize,
) -> Result<Vec<Receipt>, StoreError> {
    let mut receipts = Vec::new();
    store.visit(
        &Packed::key(Keyspace::RECEIPT).room(room),
        Direction::Ascending,
        |key, value| {
            receipts.extend(receipt(key, value).filter(|receipt| may_see(receipt, viewer)));
            Ok(receipts.len() < limit)
        },
    )?;
    Ok(receipts)
}

/// The receipts in a room that were set in `since < position <= until` and `viewer` may see.
///
/// # Errors
/// When the store cannot be read.
pub fn changed(
    store: &Store,
    room: RoomNum,
    viewer: UserNum,
    since: Position,
    until: Position,
) -> Result<Vec<Receipt>, StoreError> {
    let bound = |position: Position| {
        Packed::key(Keyspace::RECEIPT_CHANGE)
            .room(room)
            .i64(i64::try_from(position).unwrap_or(i64::MAX))
            .into_bytes()
    };
    let mut named = Vec::new();
    store.visit_range(
        &bound(since + 1),
        &bound(until + 1),
        Direction::Ascending,
        |_, value| {
            let mut parts = Unpack(value);
            if let (Some(user), Some(kind), Some(thread)) =
                (parts.user(), parts.text(), parts.text())
            {
                named.push((user, kind, thread));
            }
            Ok(true)
        },
    )?;
    let mut receipts = Vec::new();
    for (user, kind, thread) in named {
        let row = store
            .get_raw(key(room, user, &kind, &thread))?
            .as_deref()
            .and_then(parse);
        if let Some((_, row)) = row {
            receipts.push(Receipt {
                user,
                kind,
                thread,
                row,
            });
        }
    }
    receipts.retain(|receipt| may_see(receipt, viewer));
    Ok(receipts)
}

fn receipt(key: &[u8], value: &[u8]) -> Option<Receipt> {
    let mut parts = Unpack::key(key);
    parts.room()?;
    let (user, kind, thread) = (parts.user()?, parts.text()?, parts.text()?);
    let (_, row) = parse(value)?;
    Some(Receipt {
        user,
        kind,
        thread,
        row,
    })
}

fn may_see(receipt: &Receipt, viewer: UserNum) -> bool {
    receipt.user == viewer || receipt.kind != "m.read.private"
}
