//! Invites to rooms, and knocks on rooms, that this server is not in: what it was told of them.
//!
//! Such a room has no head and no view here; the user's row says what they are to it, and this says what the
//! room looks like from outside. Spec: server-server API, "Inviting to a room", "Knocking upon a room".

use std::sync::Arc;

use federation::event::Pdu;
use ruma::{OwnedServerName, RoomVersionId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::{
    Commit, Store, StoreError,
    keys::{Keyspace, Packed, RoomNum, Table, UserNum},
    log::Change,
    rooms::{AsideEvent, Membership, MembershipRow, Standing},
};

use crate::error::ApiResult;

const OUTSIDE: Table<OutsideRow> = Table::new(Keyspace::OUTSIDE);

/// How many state events are kept of one room, at most; others are left out.
pub const STATE_EVENTS_MAX: usize = 50;

/// How large all of them may be, in bytes (256 KiB).
pub const STATE_BYTES_MAX: usize = 256 << 10;

/// What a user knows of a room that this server is not in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutsideRow {
    /// The room's version.
    pub version: RoomVersionId,
    /// Its stripped state, as clients get it.
    pub state: Vec<Box<RawValue>>,
    /// Who is asked to join, or to leave: the server that the invite came from, those that took the knock.
    pub via: Vec<OwnedServerName>,
}

fn key(user: UserNum, room: RoomNum) -> Packed {
    OUTSIDE.key().user(user).room(room)
}

/// What a user knows of a room from outside.
///
/// # Errors
/// When the store cannot be read.
pub fn of(store: &Store, user: UserNum, room: RoomNum) -> Result<Option<OutsideRow>, StoreError> {
    store.get(OUTSIDE, key(user, room))
}

/// Notes an invite or a knock: the event, and what the room looks like.
///
/// # Errors
/// When the store cannot be read.
pub fn put(
    store: &Store,
    commit: &mut Commit,
    (user, room): (UserNum, RoomNum),
    (membership, pdu): (Membership, &Arc<Pdu>),
    mut row: OutsideRow,
) -> ApiResult<()> {
    // Clients look for the membership itself among the state.
    let own = serde_json::json!({
        "type": pdu.kind(), "state_key": pdu.state_key(), "sender": pdu.sender(), "content": pdu.content(),
    });
    row.state.extend(serde_json::value::to_raw_value(&own).ok());
    commit.put(OUTSIDE, key(user, room), &row);
    let event = AsideEvent {
        room,
        pdu: pdu.clone(),
        standing: Standing::Outlier,
        state_before: None,
        state_after: None,
    };
    commit.put_aside(event, &row.version);
    set(store, commit, (user, room), membership, pdu)
}

/// The user has nothing to do with the room any more: the invite is refused or taken back.
///
/// # Errors
/// When the store cannot be read.
pub fn leave(
    store: &Store,
    commit: &mut Commit,
    (user, room): (UserNum, RoomNum),
    pdu: &Arc<Pdu>,
    version: &RoomVersionId,
) -> ApiResult<()> {
    commit.delete(key(user, room));
    let event = AsideEvent {
        room,
        pdu: pdu.clone(),
        standing: Standing::Outlier,
        state_before: None,
        state_after: None,
    };
    commit.put_aside(event, version);
    set(store, commit, (user, room), Membership::Leave, pdu)
}

/// The user is in the room now.
pub fn forget(commit: &mut Commit, user: UserNum, room: RoomNum) {
    commit.delete(key(user, room));
}

fn set(
    store: &Store,
    commit: &mut Commit,
    (user, room): (UserNum, RoomNum),
    membership: Membership,
    pdu: &Pdu,
) -> ApiResult<()> {
    let old = store.user_room(user, room)?;
    let row = MembershipRow {
        membership,
        position: 0,
        event_id: pdu.event_id().to_owned(),
        by_self: pdu.state_key() == Some(pdu.sender().as_str()),
        joined_at: old.as_ref().map_or(0, |old| old.joined_at),
        left_at: old.as_ref().map_or(0, |old| old.left_at),
        forgotten: false,
    };
    let entry = commit.log(Change::Outside { user, room });
    commit.put_raw_at(
        entry,
        Packed::key(Keyspace::USER_ROOM).user(user).room(room),
        row.pack(),
    );
    Ok(())
}
